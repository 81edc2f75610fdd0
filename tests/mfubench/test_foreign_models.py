"""Models that nobody here wrote, through a whole profile: their FLOPs by hand, and what is not known is named."""

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mfubench.measure.calibrate import Calibration
from mfubench.profiling import profile_workload
from mfubench.run import Run
from mfubench.workload.spec import Workload
from mfubench.workload.step import make_optimizers
from mfubench.workload.user import default_loss
from tests.mfubench.steps import Product

B, D, H = 6, 8, 16  # samples, width in, width inside
PRODUCT = 2 * B * D * H


class Through(nn.Module):
    """Two layers, between which ``inside`` does something unusual."""

    def __init__(self, inside: Callable[[Tensor], Any] = torch.relu) -> None:
        super().__init__()
        self.first, self.last, self.inside = nn.Linear(D, H), nn.Linear(H, D), inside

    def forward(self, x: Tensor) -> Any:
        return self.last(self.inside(self.first(x)))


class InferenceMode(Through):
    """Decorated, as a model that is served often is."""

    @torch.inference_mode()
    def forward(self, x: Tensor) -> Any:
        return super().forward(x)


class Repeated(nn.Module):
    """Checkpointed in training, both ways that torch has."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.enter, self.inner, self.reentrant = nn.Linear(D, D), Through(), reentrant

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        out: Tensor = checkpoint(self.inner, x, use_reentrant=self.reentrant) if self.training else self.inner(x)
        return out


class Nested(nn.Module):
    """Rows of 1, 2, .. events as a jagged nested tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(D, H)

    def forward(self, x: Tensor) -> Tensor:
        rows = [row.expand(length + 1, D) for length, row in enumerate(x)]
        return self.map(torch.nested.nested_tensor(rows, layout=torch.jagged)).values()


class Handmade(Through):
    """Its second product is an autograd function's."""

    def forward(self, x: Tensor) -> Tensor:
        return Product.apply(self.first(x), self.last.weight.t())


class Bag(nn.Module):
    """A sparse table under a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.last = nn.EmbeddingBag(50, H, sparse=True, mode="sum"), nn.Linear(H, D)

    def forward(self, x: Tensor) -> dict[str, Any]:
        return {"scores": [self.last(self.table(x.abs().long()))], "count": 3}


class Looks(nn.Module):
    """Makes nothing at all."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 1:].t()


SYSTEM = H * torch.eye(512)


def solve(x: Tensor) -> Tensor:
    """A system so large that its time is nearly all, whatever a busy machine does to another operator."""
    return torch.linalg.solve(SYSTEM, nn.functional.pad(x.t(), (0, 0, 0, len(SYSTEM) - H)))[:H].t()


# Model, and model FLOPs forward and backward: the first layer's input needs no gradient.
KNOWN: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "plain": (Through, 2 * PRODUCT, 3 * PRODUCT),
    "repeated by reentrance": (lambda: Repeated(True), 2 * PRODUCT + PRODUCT // 2, 4 * PRODUCT + PRODUCT // 2),
    "repeated with early stop": (lambda: Repeated(False), 2 * PRODUCT + PRODUCT // 2, 4 * PRODUCT + PRODUCT // 2),
    "jagged nested tensor": (Nested, 21 * 2 * D * H, 21 * 2 * D * H),
    "autograd function": (Handmade, 2 * PRODUCT, 3 * PRODUCT),
    "sparse table": (Bag, PRODUCT, 2 * PRODUCT),
    "half precision": (lambda: Through().half(), 2 * PRODUCT, 3 * PRODUCT),
    "double precision": (lambda: Through().double(), 2 * PRODUCT, 3 * PRODUCT),
    "frozen": (lambda: nn.Sequential(Through().requires_grad_(False), nn.Linear(D, H)), 3 * PRODUCT, PRODUCT),
    "inference mode": (InferenceMode, 2 * PRODUCT, 0),
    "no parameter and no memory": (Looks, 0, 0),
}


@pytest.fixture
def profiled(zoo: Callable[..., Workload], fixed_calibration: Calibration) -> Callable[..., Run]:
    """Profiles a module as a user's own is."""

    def run(module: nn.Module, mode: str = "train") -> Run:
        workload = zoo(mode=mode, steps=2)
        dtype = next((parameter.dtype for parameter in module.parameters()), torch.float32)
        workload.module, workload.needed = module.train(mode == "train"), None
        workload.inputs, workload.num_samples = [torch.randn(B, D, dtype=dtype) for _ in range(2)], [B, B]
        workload.forward, workload.loss = lambda model, x: model(x), default_loss
        workload.optimizers = make_optimizers(module) if mode == "train" else []
        return profile_workload(workload)

    return run


def adds_up(run: Run) -> bool:
    """Whether the ledger and the rows sum to the totals."""
    rows = run.modules
    return (
        sum(line.ms for line in run.ledger) == pytest.approx(run.step["time_ms"]["median"], rel=1e-3)
        and sum(row.fwd_model_flops + row.bwd_model_flops for row in rows) == run.flops["model"]
        and sum(row.memory_bytes for row in rows) == run.memory["peak_bytes"]
    )


@pytest.mark.parametrize(
    ("name", "mode"),
    [(name, mode) for name in KNOWN for mode in ("train", "infer") if KNOWN[name][2] or mode == "infer"],
)
def test_flops_of_any_model(name: str, mode: str, profiled: Callable[..., Run]) -> None:
    """Whatever wraps a product, it is counted once, and the books balance."""
    build, fwd, bwd = KNOWN[name]
    run = profiled(build(), mode)
    assert (run.flops["fwd_model"], run.flops["bwd_model"]) == (fwd, bwd if mode == "train" else 0)
    assert run.flops["coverage"] == 1.0 and adds_up(run)
    repeated = mode == "train" and name.startswith("repeated")
    assert (run.flops["recomputed"] > 0) == repeated
    assert run.flops["hardware"] - run.flops["recomputed"] == run.flops["model"]


@pytest.mark.parametrize("mode", ["train", "infer"])
def test_an_operator_without_a_formula_lowers_coverage(mode: str, profiled: Callable[..., Run]) -> None:
    """Its time counts wherever it is, also inside the composite operator that the model calls."""
    run = profiled(Through(solve), mode)
    assert "aten::_linalg_solve_ex" in run.flops["unknown_ops"]
    assert 0.0 < run.flops["coverage"] < 0.95 and adds_up(run)
    assert any("nothing is known of the FLOPs of" in warning for warning in run.warnings)


@pytest.mark.parametrize("mode", ["train", "infer"])
def test_attention_of_torch_counts_in_both_modes(mode: str, profiled: Callable[..., Run]) -> None:
    """Outside training, torch runs the whole attention as one operator."""
    layer = nn.TransformerEncoderLayer(D, 2, H, dropout=0.0, batch_first=True)
    model = nn.Sequential(nn.Unflatten(1, (1, D)), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))
    run = profiled(model, mode)
    one = 4 * 2 * B * D * D + 2 * 2 * B * D + 2 * PRODUCT
    assert run.flops["fwd_model"] == 2 * one and run.flops["coverage"] == 1.0 and adds_up(run)
    if mode == "train":
        assert run.flops["bwd_model"] == 4 * one - 3 * 2 * B * D * D
    assert (mode == "infer") == any("off its fused path" in warning for warning in run.warnings)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_padded_rows_that_torch_packs_count_as_long_as_they_are(profiled: Callable[..., Run]) -> None:
    """With a padding mask, outside training, an encoder of torch runs on a nested tensor, which has no shape."""

    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(D, 2, H, dropout=0.0, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 1)

        def forward(self, x: Tensor) -> Tensor:
            rows, longest = x.unsqueeze(1).repeat(1, B, 1), torch.arange(B)
            out: Tensor = self.encoder(rows, src_key_padding_mask=longest > longest[:, None])
            return out

    run = profiled(Padded(), "infer")
    events, pairs = sum(range(1, B + 1)), sum(length**2 for length in range(1, B + 1))
    assert run.flops["fwd_model"] == 2 * (4 * events * D * D + 2 * pairs * D + 2 * events * D * H)
    assert run.flops["coverage"] == 1.0 and adds_up(run)


class Threaded(Through):
    """Its first layer runs in a thread of its own, twice."""

    def forward(self, x: Tensor) -> Tensor:
        with ThreadPoolExecutor() as threads:
            return self.last(sum(threads.map(self.first, [x, x])))


def test_what_a_mask_drops_is_padding(profiled: Callable[..., Run]) -> None:
    """The kernel computes all pairs, and half of them are needed."""

    class Masked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            rows = x.view(1, 1, B, D)
            keep = torch.arange(B) < B // 2
            return nn.functional.scaled_dot_product_attention(rows, rows, rows, attn_mask=keep.expand(B, B))

    run = profiled(nn.Sequential(Masked(), nn.Linear(D, H)), "infer")
    whole, linear = 4 * B * B * D, 2 * B * D * H
    assert run.flops["model"] == whole // 2 + linear
    assert run.flops["padded"] == run.flops["hardware"] == whole + linear


def test_what_runs_in_other_threads_is_not_known_rather_than_none(profiled: Callable[..., Run]) -> None:
    """Neither operators nor memory are seen there, and the scopes of two threads are not nested."""
    run = profiled(Threaded(), "infer")
    assert run.flops["model"] is None and run.memory["peak_bytes"] is None
    assert any("first runs in a thread of its own" in warning for warning in run.warnings)


class Penalised(Through):
    """Adds how steep its score is, by a gradient that has a gradient."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        score = super().forward(x)
        (steepness,) = torch.autograd.grad(score.sum(), x, create_graph=True)
        return score + steepness.square()


def test_a_gradient_that_has_a_gradient_repeats_nothing(profiled: Callable[..., Run]) -> None:
    """Its products run with grad mode on, as those that checkpointing repeats do; and they are useful."""
    run = profiled(Penalised(lambda x: x))
    score, gradient, backward_of_score, backward_of_gradient = 2, 2, 4, 3
    products = score + gradient + backward_of_score + backward_of_gradient
    assert run.flops["recomputed"] == 0 and run.flops["model"] == run.flops["hardware"] == products * PRODUCT


class Remembering(Through):
    """Scores against all that it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = torch.zeros(0, H)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        self.seen = torch.cat([self.seen, hidden.detach()])
        return hidden @ self.seen.t()


@pytest.mark.parametrize(("build", "told"), [(Remembering, True), (Through, False)])
def test_steps_that_need_more_and_more_flops_are_told(
    build: Callable[[], nn.Module], told: bool, profiled: Callable[..., Run]
) -> None:
    """What is counted is then not what was timed."""
    assert any("a step on the same batch needed" in warning for warning in profiled(build(), "infer").warnings) == told


def test_a_lower_precision_has_a_line_of_its_own(profiled: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of this model's FLOPs are done in bf16, whose peak is lower here than the run's."""
    slow = Calibration("a CPU", {"fp32": 1.0, "bf16": 0.25}, 100.0, {}, "", "", 1, "by hand")
    monkeypatch.setattr("mfubench.profiling.load_or_calibrate", lambda *args, **options: slow)

    class Mixed(Through):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                hidden = self.first(x)
            return self.last(hidden.float())

    run = profiled(Mixed(), "infer")
    (line,) = (line for line in run.ledger if line.cause == "dtype")
    assert line.modules == ["first"] and line.ms == pytest.approx(PRODUCT / 1e9 * (4 - 1))


def in_a_pool(x: Tensor) -> Tensor:
    """A product, and no module's, in a thread of the model's own, where no count sees it."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: x + x @ torch.eye(H)).result()


def test_products_in_threads_of_the_models_own_are_told_to_be_missing(profiled: Callable[..., Run]) -> None:
    run = profiled(Through(in_a_pool), "infer")
    assert run.flops["model"] == 2 * PRODUCT and adds_up(run)
    assert any("aten::mm ran in threads of the model's own" in warning for warning in run.warnings)


class Outside(nn.Module):
    """Its products are nobody's whom torch knows."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(D, H))

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(x.numpy() @ self.weight.detach().numpy())


def test_a_step_without_any_product_is_told_of(profiled: Callable[..., Run]) -> None:
    run = profiled(Outside(), "infer")
    assert run.flops["model"] == 0 and any("no matrix product was seen" in warning for warning in run.warnings)
    assert not any("no matrix product" in warning for warning in profiled(Through(), "infer").warnings)


@pytest.mark.parametrize("whole", [True, False])
def test_a_scripted_module_works_for_the_one_around_it(profiled: Callable[..., Run], whole: bool) -> None:
    """It takes no hooks; its operators are seen all the same."""
    with warnings.catch_warnings(action="ignore"):  # torch would have it exported
        scripted = torch.jit.script(Through(nn.ReLU()))
    model = scripted if whole else nn.Sequential(scripted, nn.Linear(D, D))
    run = profiled(model, "infer")
    assert run.flops["model"] == 2 * PRODUCT + (0 if whole else 2 * B * D * D) and run.flops["coverage"] == 1.0
    (told,) = [warning for warning in run.warnings if "scripted modules do not say when they run" in warning]
    assert told.endswith(": the whole model" if whole else ": 0") and adds_up(run)
