"""What is seen of a model before anything is tried: its ops, regions, optimizers and tables, by hand."""

import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import Tensor, nn

from mfubench.measure.calibrate import Calibration
from mfubench.optimize.survey import Survey, look
from mfubench.workload.prepare import prepare
from mfubench.workload.spec import Workload, WorkloadSpec
from tests.mfubench.optimize.small_model import BLOCKS, ITEMS, WIDTH
from tests.mfubench.report.factory import a_run

KUNLUN = WorkloadSpec("kunlun", size="tiny", batch_size=4, steps=4, impl="reference", device="cpu")
SMALL = WorkloadSpec("tests.mfubench.optimize.small_model:build", batch_size=3, steps=2, device="cpu")


@pytest.fixture
def peaks(monkeypatch: pytest.MonkeyPatch, fixed_calibration: Calibration) -> None:
    monkeypatch.setattr("mfubench.optimize.survey.load_or_calibrate", lambda *args, **options: fixed_calibration)


def seen(workload: Workload) -> Survey:
    return look(workload, a_run())


@pytest.mark.usefixtures("peaks", "sparse_tables")
def test_a_model_of_the_zoo() -> None:
    workload = prepare(KUNLUN)
    found = seen(workload)
    assert (found.device, found.dtype, found.batch_size) == ("cpu", "fp32", 4)
    ops = {"layer_norm", "seed_pooling", "sum_kron_linear", "gdpa_block", "window_attention"}
    assert found.ops.keys() == ops and {use.impl for use in found.ops.values()} == {"reference"}
    assert found.ops["window_attention"].modules == ["towers.clicks.layers.1.attention"]
    assert (found.ops["window_attention"].kind, found.ops["layer_norm"].kind) == ("attention", "norm")
    names = {name for name, _ in workload.module.named_modules()}
    for region, modules in found.regions.items():
        assert region.startswith("mfu_models.") and set(modules) <= names
    (towers,) = (modules for region, modules in found.regions.items() if region.endswith(".TowerLayer"))
    assert "towers.clicks.layers.1.attention" in towers and "towers.impressions.layers.0.ffn" in towers
    assert {"dense", "weight_gens.0.mix", "towers.clicks.layers.1.attention"} <= set(found.regional) <= names
    assert found.sparse_tables and not found.dense_tables and not found.attention
    assert found.optimizers == {"fused": [], "foreach": []}  # the zoo's AdamW is fused
    assert found.padded_share_won is not None and -0.2 < found.padded_share_won < 1


@pytest.mark.usefixtures("peaks")
def test_somebodys_own_model() -> None:
    workload = prepare(SMALL)
    found = seen(workload)
    blocks = [f"blocks.{at}" for at in range(BLOCKS)]
    norms = sorted(f"{block}.{norm}" for block in blocks for norm in ("ffn_norm", "norm"))
    assert found.ops["layer_norm"].modules == norms and found.ops["rms_norm"].modules == ["norm"]
    assert found.ops["window_attention"].modules == found.attention  # once they hand out no weights
    assert found.ops["embedding"].modules == ["items"]
    assert {use.impl for use in found.ops.values()} == {"torch"}
    assert found.attention == [f"{block}.attention" for block in blocks]
    (region,) = (name for name in found.regions if name.endswith(".Block"))
    assert set(blocks) <= set(found.regions[region])
    assert found.optimizers == {"fused": ["Adam"], "foreach": ["Adam"]}
    assert found.padded_share_won is None and not found.shapes_vary
    numbers = sum(parameter.numel() for parameter in workload.module.parameters())
    state = 2 * numbers + len(list(workload.module.parameters()))  # two moments of each, and a count of steps
    assert found.update_bytes == 4 * (3 * numbers + 2 * state)
    assert not found.dense_tables and found.stuck_tables == {"items": 4 * ITEMS * WIDTH}  # Adam reads whole tables


class Attends(nn.Module):
    """Calls torch's attention, which picks another kernel on each device."""

    def __init__(self, mask: Tensor | None = None) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x, self.mask)


@pytest.mark.usefixtures("peaks")
@pytest.mark.parametrize("mode", ["train", "infer"])
def test_torchs_attention_is_seen_where_it_is_called(mode: str) -> None:
    """On a GPU its kernels have names of their own, such as flash_fwd_kernel, that do not say whose they are."""
    workload = prepare(replace(SMALL, mode=mode))
    workload.module = nn.Sequential(nn.Linear(8, 8), nn.Sequential(Attends(), nn.ReLU()), Attends())
    workload.inputs = [(torch.randn(2, 2, 4, 8),)]
    workload.loss = lambda output, batch: output.mean()
    found = seen(workload)
    assert found.ops["window_attention"].modules == ["1.0", "2"]
    assert (found.ops["window_attention"].kind, found.ops["window_attention"].impl) == ("attention", "torch")


@pytest.mark.usefixtures("peaks")
def test_attention_that_hands_out_no_weights_has_none_to_leave_out() -> None:
    workload = prepare(SMALL)
    workload.module = nn.TransformerEncoderLayer(8, 2, 8, dropout=0.0)
    workload.inputs = [(torch.randn(3, 2, 8),)]
    workload.loss = lambda output, batch: output.mean()
    found = seen(workload)
    assert not found.attention and found.ops["window_attention"].modules == ["self_attn"]
    assert "forward" not in vars(workload.module.self_attn)


@pytest.mark.usefixtures("peaks")
def test_attention_with_a_mask_is_the_ops_where_it_pads() -> None:
    workload = prepare(SMALL)
    ends, hole = torch.tensor([[[[True, True, False]]]]), torch.tensor([[[[True, False, True]]]])
    earlier = torch.ones(3, 3).tril().bool()
    workload.module = nn.Sequential(nn.Linear(8, 8), Attends(ends), Attends(earlier))
    workload.inputs = [(torch.randn(2, 2, 3, 8),)]
    workload.loss = lambda output, batch: output.mean()
    use = seen(workload).ops["window_attention"]
    assert use.modules == ["1", "2"] and use.blocked is None
    workload.module.append(Attends(hole))
    use = seen(workload).ops["window_attention"]
    assert use.modules == ["1", "2"]
    assert use.blocked == "a mask drops more than padding and what is later, in 3"


@pytest.mark.usefixtures("peaks")
def test_attention_that_checkpointing_repeats_is_blocked() -> None:
    class Repeats(Attends):
        def forward(self, x: Tensor) -> Tensor:
            return torch.utils.checkpoint.checkpoint(super().forward, x, use_reentrant=False)

    workload = prepare(SMALL)
    workload.module = nn.Sequential(nn.Linear(8, 8), Repeats())
    workload.inputs = [(torch.randn(2, 2, 3, 8),)]
    workload.loss = lambda output, batch: output.mean()
    assert "checkpointing repeats it" in str(seen(workload).ops["window_attention"].blocked)


@pytest.mark.usefixtures("peaks")
def test_tables_that_could_have_sparse_gradients_and_odd_widths() -> None:
    workload = prepare(SMALL)
    workload.module.head = nn.Linear(2 * WIDTH, 5)
    workload.loss = lambda output, batch: output.float().mean()
    workload.optimizers = [torch.optim.Adagrad(workload.module.parameters(), foreach=False)]
    found = seen(workload)
    assert found.dense_tables == {"items": 4 * ITEMS * WIDTH}
    assert found.odd_widths == [f"head [5, {2 * WIDTH}]"]


@pytest.mark.usefixtures("peaks")
def test_a_kernel_whose_package_is_missing_is_blocked(monkeypatch: pytest.MonkeyPatch) -> None:
    workload = prepare(SMALL)
    monkeypatch.setitem(sys.modules, "triton", None)
    found = seen(workload)
    assert not found.interpreted and "needs the package triton; install it" in str(found.ops["layer_norm"].blocked)
