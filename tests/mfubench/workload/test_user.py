"""The user's own model as a workload; what is refused is in ../cli/test_bad_input.py."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from mfubench.errors import BadInput
from mfubench.workload.prepare import prepare
from mfubench.workload.spec import Workload, WorkloadSpec
from mfubench.workload.step import run_step
from mfubench.workload.user import default_loss

MODULES = {
    "positional": "return nn.Linear(3, 2), lambda b, d: (torch.randn(b, 3, device=d),)",
    "keywords": "return nn.Linear(3, 2), lambda b, d: {'input': torch.randn(b, 3, device=d)}",
    "own_loss": "return nn.Linear(3, 2), lambda b, d: (torch.randn(b, 3),), lambda out, batch: out.square().sum()",
}


def users_model(body: str, name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Workload:
    """The workload of a module that is written to ``folder``, the working directory."""
    (folder / f"{name}.py").write_text(f"import torch\nfrom torch import nn\ndef build():\n    {body}\n")
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.path", ["", *__import__("sys").path])
    return prepare(WorkloadSpec(f"{name}:build", device="cpu", batch_size=5, steps=2))


@pytest.mark.parametrize("kind", MODULES)
def test_batches_and_losses(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workload = users_model(MODULES[kind], f"mine_{kind}", tmp_path, monkeypatch)
    before = workload.module.weight.clone()
    run_step(workload, 0)
    assert not torch.equal(before, workload.module.weight)
    assert workload.num_samples == [5, 5]
    assert workload.needed is None
    assert workload.description["size"] is None


@dataclass
class Output:
    score: torch.Tensor
    names: list[str]


def test_default_loss_finds_tensors_anywhere() -> None:
    """The sum of the means of every floating-point tensor that a gradient can flow from."""
    x = torch.tensor([1.0, 3.0], requires_grad=True)
    ids = torch.tensor([7, 9])
    outputs = [x, (x, ids), {"a": x, "b": {"c": ids}}, [x], Output(x, ["a"]), {"out": Output(x, [])}]
    assert [default_loss(output, None).item() for output in outputs] == [2.0] * len(outputs)
    assert default_loss({"a": x, "b": [x, 2 * x]}, None).item() == 8.0


@pytest.mark.parametrize("output", [None, 3, torch.tensor([1, 2]), torch.tensor([1.0]), {"a": []}])
def test_nothing_to_differentiate_is_said(output: object) -> None:
    with pytest.raises(BadInput, match="--mode infer"):
        default_loss(output, None)


def test_frozen_parameters_are_not_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = "m = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1)); m[0].requires_grad_(False); return m, "
    workload = users_model(body + "lambda b, d: (torch.randn(b, 3),)", "mine_frozen", tmp_path, monkeypatch)
    trained = {id(p) for optimizer in workload.optimizers for group in optimizer.param_groups for p in group["params"]}
    assert trained == {id(parameter) for parameter in workload.module[1].parameters()}  # type: ignore[index]


@pytest.mark.parametrize("size", ["b", "3"])
def test_batches_that_are_as_large_whatever_is_asked_for_are_told(
    size: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples a second, and FLOPs a request, would silently be of another number of samples."""
    body = f"return nn.Linear(3, 1), lambda b, d: (torch.randn({size}, 3),)"
    workload = users_model(body, f"mine_sized_{size}", tmp_path, monkeypatch)
    assert [text for text in workload.warnings if "as large as make_batch(5, device)" in text] == workload.warnings
    assert bool(workload.warnings) == (size == "3")


@pytest.mark.parametrize(
    ("batch", "told"),
    {
        "(torch.randn(b * (2 + next(calls) % 2), 3), torch.zeros(b))": None,  # two sizes in one batch tell nothing
        "(torch.randn(b * (2 + next(calls) % 2), 3),)": "10 and 15 rows",
        "(torch.randn(b * (1 + next(calls) % 2), 3),)": "5 and 10 rows",
        "(torch.randn(2 * b, 3), torch.tensor(1.0))": "10 rows",
        "(torch.randn(7, b, 3), torch.zeros(7))": None,  # time first
        "(torch.randn(b, 3), torch.zeros(b))": None,
        "(torch.nested.nested_tensor([torch.randn(n + 1, 3) for n in range(b)], layout=torch.jagged),)": None,
        "(torch.nested.nested_tensor([torch.randn(n + 1, 3) for n in range(2 * b)]),)": "10 rows",
    }.items(),
)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_batches_of_other_rows_than_were_asked_for_are_told(
    batch: str, told: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples a second would silently be of the number that was asked for."""
    name = f"mine_rows_{sum(map(ord, batch))}"
    body = f"calls = __import__('itertools').count(); return nn.Linear(3, 1), lambda b, d: {batch}"
    expected = f"make_batch(5, device) made batches of {told}: what is told of a sample takes a step to have 5"
    assert users_model(body, name, tmp_path, monkeypatch).warnings == ([expected] if told else [])


def test_an_optimizer_that_runs_the_model_itself_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = (
        "return nn.Linear(3, 1), lambda b, d: (torch.randn(b, 3),), None, lambda m: torch.optim.LBFGS(m.parameters())"
    )
    with pytest.raises(BadInput, match=r"LBFGS.step\(\) needs a closure.*such as torch.optim.AdamW.*--mode infer"):
        users_model(body, "mine_lbfgs", tmp_path, monkeypatch)


def test_sparse_tables_get_an_optimizer_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = "return nn.Embedding(9, 2, sparse=True), lambda b, d: (torch.randint(9, (b,)),)"
    workload = users_model(body, "mine_sparse", tmp_path, monkeypatch)
    assert isinstance(workload.module, nn.Embedding)
    assert [type(optimizer).__name__ for optimizer in workload.optimizers] == ["Adagrad"]
    run_step(workload, 0)


@pytest.mark.parametrize("drawn", ["__import__('random').random()", "__import__('numpy').random.rand()"])
def test_what_is_drawn_from_python_and_numpy_is_the_same_again(
    drawn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the two sides of a gate would never have the same batches."""
    body = f"return nn.Linear(3, 1), lambda b, d: (torch.full((b, 3), {drawn}),)"
    one, again = (users_model(body, f"mine_drawn_{len(drawn)}", tmp_path, monkeypatch).inputs for _ in range(2))
    assert [batch[0].tolist() for batch in one] == [batch[0].tolist() for batch in again]
    assert not torch.equal(one[0][0], one[1][0])


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_data_are_the_same_for_another_model_and_not_for_other_lengths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two builds on the same batches would not compare, or a model would with itself on more events."""

    def data(name: str, model: str, batch: str) -> str:
        body = f"return {model}, lambda b, d: ({batch},)"
        return str(users_model(body, f"mine_{name}", tmp_path, monkeypatch).description["data_hash"])

    drawn = "torch.randint(9, (b, 3))"
    first = data("ids", "nn.Embedding(9, 2)", drawn)
    assert first == data("twin", "nn.Sequential(nn.Embedding(9, 2), nn.Linear(2, 7))", drawn)
    assert first != data("fewer", "nn.Embedding(9, 2)", "torch.randint(8, (b, 3))")
    assert data("column", "nn.Embedding(9, 2)", "torch.randint(9, (b, 3))[:, 0]"), "numbers that do not lie together"
    dense = data("dense", "nn.Linear(3, 1)", "torch.randn(b, 3)")
    assert dense == data("scaled", "nn.Linear(3, 1)", "2 * torch.rand(b, 3)"), "numbers that decide no work"
    assert dense != data("double", "nn.Linear(3, 1).double()", "torch.randn(b, 3).double()")

    def jagged(*lengths: int, layout: str = "jagged") -> str:
        rows = f"[torch.randn(n, 3) for n in {lengths}]"
        batch = f"torch.nested.nested_tensor({rows}, layout=torch.{layout})"
        name = "_".join(map(str, (layout, *lengths)))
        return data(name, "nn.Linear(3, 1)", batch)

    assert jagged(1, 3) != jagged(2, 2)
    assert jagged(1, 3, layout="strided") != jagged(2, 2, layout="strided")
    adjacent = data("sparse", "nn.Linear(3, 1)", "torch.eye(3).to_sparse()")
    assert adjacent != data("other_sparse", "nn.Linear(3, 1)", "torch.eye(3).flip(0).to_sparse()")


def test_a_filter_of_complex_numbers_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No fused optimizer takes it, and nobody asked for one."""
    model = "class M(nn.Linear): forward = lambda self, x: nn.Linear.forward(self, (x * self.filter).abs())"
    body = f"{model}\n    m = M(3, 1); m.filter = nn.Parameter(torch.ones(3, dtype=torch.cfloat)); return m, "
    run_step(users_model(body + "lambda b, d: (torch.randn(b, 3),)", "mine_complex", tmp_path, monkeypatch), 0)


def test_what_a_model_takes_out_of_its_batch_is_there_in_the_next_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a loop that trains, each batch is new; here the same ones come again and again."""
    model = "class M(nn.Linear): forward = lambda self, batch: nn.Linear.forward(self, batch.pop('x')[0].pop())"
    body = f"{model}\n    return M(3, 1), lambda b, d: ({{'x': ([torch.randn(b, 3)],)}},)"
    workload = users_model(body, "mine_taken", tmp_path, monkeypatch)
    for _ in range(2):
        run_step(workload, 0)


@pytest.mark.parametrize("impl", ["triton", "auto,gdpa=triton"])
def test_an_implementation_that_a_model_would_not_take_is_refused(impl: str) -> None:
    """It would run as without, and the run would say otherwise."""
    with pytest.raises(BadInput, match=r"--impl .* belongs to the zoo's models: any:build would run as it does"):
        prepare(WorkloadSpec("any:build", impl=impl, device="cpu"))


def test_a_models_own_commit_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    body = MODULES["positional"]
    untracked = users_model(body, "mine_in_no_checkout", tmp_path, monkeypatch).description
    assert untracked["model_git_sha"] is None
    git("init", "--quiet")
    (tmp_path / "mine_in_a_checkout.py").touch()
    git("add", "mine_in_a_checkout.py")
    git("commit", "--quiet", "--no-verify", "--no-gpg-sign", "-m", "one")
    told = users_model(body, "mine_in_a_checkout", tmp_path, monkeypatch).description
    assert (told["model_git_sha"], told["model_git_dirty"]) == (git("rev-parse", "HEAD"), True)


EXPORTED = """ids = torch.zeros(4, 3)
    exported = torch.export.export(nn.Sequential(nn.Linear(3, 2), nn.ReLU()).eval(), (ids,)).module()
    return exported, lambda b, d: (torch.randn(4, 3),)"""


def test_an_exported_model_is_served_in_the_one_mode_that_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BadInput, match=r"train\(\) raised NotImplementedError.*; use --mode infer"):
        users_model(EXPORTED, "exported", tmp_path, monkeypatch)
    workload = prepare(WorkloadSpec("exported:build", device="cpu", batch_size=4, steps=2, mode="infer"))
    run_step(workload, 0)
    assert workload.warnings[0].startswith("its eval() raised NotImplementedError")
