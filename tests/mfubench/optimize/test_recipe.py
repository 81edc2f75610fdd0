"""A recipe is read as it was written, goes onto its own model only, and leaves no trace once it is undone."""

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mfubench
from mfu_kernels import OPS
from mfu_models import MODELS
from mfubench.errors import BadInput
from mfubench.optimize.changes import (
    BucketByLength,
    Change,
    Compile,
    SparseGradients,
    UpdateTogether,
    UseBatchSize,
    UseDtype,
    UseImpl,
    WithoutAttentionWeights,
)
from mfubench.optimize.numbers import results
from mfubench.optimize.recipe import Kept, Recipe, architecture, prepare_with, read_recipe
from mfubench.workload.prepare import prepare
from mfubench.workload.regions import MODEL
from mfubench.workload.spec import Workload, WorkloadSpec
from mfubench.workload.step import run_step
from tests.mfubench.optimize.conftest import STAND_IN

SPEC = WorkloadSpec("kunlun", size="tiny", batch_size=4, steps=2, device="cpu")
GAIN = {"median": 1.31, "ci95_low": 1.28, "ci95_high": 1.34}
EVERY = (
    UseImpl("layer_norm", "reference"),
    Compile("mfu_models.common.layers.Mlp", dynamic=False),
    UseDtype("bf16"),
    UseBatchSize(6),
    BucketByLength(),
    UpdateTogether("foreach"),
    SparseGradients(),
    WithoutAttentionWeights(),
)


def recipe_for(module: nn.Module, *changes: Change, description: dict[str, Any] | None = None) -> Recipe:
    named = {key: (description or {}).get(key, "mine") for key in ("model", "model_hash")}
    model = {**named, "size": None, "architecture": architecture(module)}
    return Recipe(model, {"device": "cpu", "speedup": GAIN}, "time", tuple(Kept(change, GAIN) for change in changes))


def written(folder: Path, recipe: Recipe) -> Path:
    recipe.write(folder / "recipe.toml")
    return folder / "recipe.toml"


@pytest.fixture
def workload() -> Workload:
    return prepare(SPEC)


# Files ------------------------------------------------------------------------------------------------------------


def test_a_recipe_is_read_as_it_was_written(workload: Workload, tmp_path: Path) -> None:
    recipe = recipe_for(workload.module, *EVERY, description=workload.description)
    recipe = replace(recipe, kept=(*recipe.kept, Kept(UseImpl("rms_norm", "reference"), None)))
    found = read_recipe(written(tmp_path, recipe))
    assert found.changes == recipe.changes and found.kept == recipe.kept
    assert found.model == {key: value for key, value in recipe.model.items() if value is not None}
    assert (found.measured, found.judge, found.file) == (recipe.measured, "time", tmp_path / "recipe.toml")


GARBAGE: dict[str, tuple[Callable[[str], str | bytes], str]] = {
    "empty": (lambda text: "", "schema_version None"),
    "no TOML": (lambda text: "change = = 3", "is no TOML"),
    "no text": (lambda text: b"\xff\xfe\x00", "is no TOML"),
    "cut short": (lambda text: text[: text.index("[measured]")], "has no measured"),
    "another release's": (lambda text: text.replace(mfubench.__version__, "9.9.9"), r"mfubench '9\.9\.9'"),
    "another schema": (lambda text: text.replace("schema_version = 1", "schema_version = 7"), "schema_version 7"),
    "no model": (lambda text: text.replace("architecture", "house"), r"model\.architecture is missing"),
    "unknown change": (lambda text: text.replace('"impl"', '"magic"'), "change 'magic' is unknown.*compile"),
    "a list for a name": (lambda text: text.replace('"impl"', '["impl"]'), r"change \['impl'\] is unknown"),
    "unknown op": (lambda text: text.replace('"layer_norm"', '"layer"'), "op 'layer' is unknown.*layer_norm"),
    "unknown impl": (lambda text: text.replace('"reference"', '"cuda"'), "no implementation 'cuda'.*reference"),
    "unknown dtype": (lambda text: text.replace('"bf16"', '"fp8"'), "dtype 'fp8'; allowed: bf16, tf32"),
    "no batch": (lambda text: text.replace("batch_size = 6", "batch_size = 0"), "1 or more"),
    "words": (lambda text: text.replace("batch_size = 6", 'batch_size = "six"'), "batch_size is 'six'.*of int"),
    "a yes for a number": (lambda text: text.replace("batch_size = 6", "batch_size = true"), "batch_size is True"),
    "a parameter too many": (lambda text: text.replace("batch_size = 6", "batch_size = 6\nfast = true"), "fast"),
    "a parameter too few": (lambda text: text.replace('op = "layer_norm"\n', ""), "it takes: op, impl"),
}


@pytest.mark.parametrize("case", GARBAGE)
def test_what_is_no_recipe_is_refused(case: str, workload: Workload, tmp_path: Path) -> None:
    change, message = GARBAGE[case]
    file = written(tmp_path, recipe_for(workload.module, *EVERY))
    given = change(file.read_text())
    file.write_bytes(given if isinstance(given, bytes) else given.encode())
    with pytest.raises(BadInput, match=message) as refused:
        read_recipe(file)
    assert str(file) in str(refused.value)


def test_a_missing_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"cannot read .*nowhere\.toml.*`mfubench optimize`"):
        read_recipe(tmp_path / "nowhere.toml")


# On a live model --------------------------------------------------------------------------------------------------


class Mlp(nn.Module):
    """A block of one's own, to be compiled."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.linear(x))


class Everything(nn.Module):
    """Each of torch's parts that a change knows, as somebody's own model has them."""

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.items = nn.EmbeddingBag(30, 16, mode="sum"), nn.Embedding(30, 16)
        self.norm, self.rms, self.head = nn.LayerNorm(16), nn.RMSNorm(16), nn.Linear(16, 1)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.mlp = Mlp()

    def forward(self, ids: Tensor) -> Tensor:
        x = self.norm(self.items(ids))
        x = x + self.attention(x, x, x)[0]
        heads = x.unflatten(-1, (2, 8)).transpose(1, 2)
        x = self.rms(x + F.scaled_dot_product_attention(heads, heads, heads).transpose(1, 2).flatten(2))
        return self.head(self.mlp(x).mean(1) + self.bag(ids)).squeeze(-1)


IDS = torch.arange(12).reshape(3, 4)
ON_MINE = (
    UseImpl("layer_norm", STAND_IN),
    UseImpl("rms_norm", STAND_IN),
    UseImpl("window_attention", STAND_IN),
    WithoutAttentionWeights(),
    SparseGradients(),
    Compile(f"{__name__}.Mlp"),
    UseDtype("bf16"),
    UpdateTogether("foreach"),
)


def mine() -> tuple[Everything, list[torch.optim.Optimizer]]:
    torch.manual_seed(7)
    model = Everything()
    tables = [model.bag.weight, model.items.weight]
    rest = [p for p in model.parameters() if not any(p is table for table in tables)]
    optimizers = (torch.optim.Adagrad(tables, foreach=False), torch.optim.Adam(rest, foreach=False))
    return model, list(optimizers)


def trained(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """Output and gradients of a step, and what its update leaves in the parameters."""
    output = model(IDS)
    output.square().sum().backward()
    found = {"output": output.detach().clone()}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        found[f"gradient of {name}"] = parameter.grad.to_dense().clone()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return found | {name: value.clone() for name, value in model.state_dict().items()}


def apart(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    """What differs in any bit."""
    return sorted(name for name in {**a, **b} if name not in a or name not in b or not torch.equal(a[name], b[name]))


def hung_on(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> list[Any]:
    """What hangs on modules and optimizers besides numbers: nothing may stay behind."""
    groups = [{**group, "params": ()} for o in optimizers for group in (o.defaults, *o.param_groups)]
    return [*groups, *((name, {*vars(module)}) for name, module in model.named_modules())]


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf",  # dynamo looks at it
    "ignore:Sparse invariant checks",  # torch's default, which it wants said aloud
)
def test_on_ones_own_model_it_is_applied_and_undone(
    stand_in: dict[str, int], quick_compiler: list[Any], tmp_path: Path
) -> None:
    expected, changed, undone = trained(*mine()), mine(), mine()
    file, before = written(tmp_path, recipe_for(undone[0], *ON_MINE)), hung_on(*undone)

    with mfubench.apply(changed[0], file, changed[1]) as applied:
        found = trained(*changed)
    assert applied.left == [] and stand_in.keys() == {"layer_norm", "rms_norm", "window_attention"}
    assert quick_compiler and {"output", "gradient of items.weight"} <= set(apart(found, expected))

    applied = mfubench.apply(undone[0], file, undone[1])
    undone[0](IDS).sum().backward()
    undone[0].zero_grad()
    applied.undo()
    stand_in.clear()
    assert apart(trained(*undone), expected) == [] and not stand_in
    assert hung_on(*undone) == before


@pytest.mark.parametrize("name", MODELS)
def test_on_the_zoo_it_is_applied_and_undone(name: str, stand_in: dict[str, int]) -> None:
    made = prepare(replace(SPEC, model=name, batch_size=2))
    recipe = recipe_for(made.module, *(UseImpl(op, STAND_IN) for op in OPS), UseDtype("bf16"))
    parameters = {key: value.clone() for key, value in made.module.state_dict().items()}
    expected, before = dense(results(made, made.inputs[0])), hung_on(made.module, made.optimizers)
    with mfubench.apply(made.module, recipe, made.optimizers):
        assert "output 0" in apart(dense(results(made, made.inputs[0])), expected)
    stand_in.clear()
    assert apart(dense(results(made, made.inputs[0])), expected) == [] and not stand_in
    assert apart(made.module.state_dict(), parameters) == []
    assert hung_on(made.module, made.optimizers) == before


def dense(found: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.to_dense() for name, tensor in found.items()}


def test_what_only_the_script_can_do_is_left_to_it() -> None:
    model, optimizers = mine()
    applied = mfubench.apply(
        model, recipe_for(model, UseBatchSize(64), BucketByLength(), SparseGradients()), optimizers
    )
    assert applied.left == ["batch_size 64", "bucket_by_length"] and model.bag.sparse


def test_one_optimizer_is_as_good_as_a_list_of_one() -> None:
    model, (optimizer, *_) = mine()
    assert mfubench.apply(model, recipe_for(model, UpdateTogether("foreach")), optimizer).left == []
    assert all(group["foreach"] for group in optimizer.param_groups)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, "recipe.toml"), "apply: model is of type int; allowed: a torch.nn.Module"),
        ((torch.nn.Linear(1, 1), None), "apply: recipe is of type NoneType; allowed: a recipe, or the path of one"),
        ((torch.nn.Linear(1, 1), "recipe.toml", [3]), "apply: optimizers is of type list; allowed: a torch optimizer"),
    ],
)
def test_arguments_of_another_type_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(BadInput, match=re.escape(message)):
        mfubench.apply(*arguments)


@pytest.mark.parametrize("changes", [(UpdateTogether("fused"), SparseGradients()), (UpdateTogether("foreach"),)])
def test_what_finds_no_optimizer_is_left_to_the_script(changes: tuple[Change, ...]) -> None:
    model, optimizers = mine()
    recipe = recipe_for(model, *changes, WithoutAttentionWeights())
    assert mfubench.apply(model, recipe).left == [change.title for change in changes]
    for group in (group for optimizer in optimizers for group in optimizer.param_groups):
        group["foreach"] = True
    model, _ = mine()
    if UpdateTogether("foreach") in changes:
        assert mfubench.apply(model, recipe, optimizers).left == ["optimizer foreach"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (Compile("my.Tower"), "no module of the model is a my.Tower"),
        (UseImpl("gdpa", "reference"), "no module of the model has the op gdpa"),
        (WithoutAttentionWeights(), "no nn.MultiheadAttention"),
        (Compile(MODEL, cudagraphs=True), "compile model, CUDA graphs: CUDA graphs need a CUDA device"),
    ],
)
def test_a_change_with_nothing_to_change_is_refused(change: Change, message: str) -> None:
    model = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8))
    optimizers: list[torch.optim.Optimizer] = [torch.optim.Adam(model.parameters(), foreach=False)]
    before = hung_on(model, optimizers)
    with pytest.raises(BadInput, match=message):
        mfubench.apply(model, recipe_for(model, UpdateTogether("fused"), UseDtype("bf16"), change), optimizers)
    assert hung_on(model, optimizers) == before


def test_another_models_recipe_is_refused() -> None:
    recipe, (model, optimizers) = recipe_for(nn.Linear(2, 3), SparseGradients()), mine()
    before = hung_on(model, optimizers)
    with pytest.raises(BadInput, match=f"is for mine, architecture .*; this model's is {architecture(model)}"):
        mfubench.apply(model, recipe, optimizers)
    assert hung_on(model, optimizers) == before and not model.bag.sparse


def test_a_kernel_whose_package_is_missing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    model, optimizers = mine()
    before = hung_on(model, optimizers)
    with pytest.raises(BadInput, match=r"impl layer_norm=triton: .*needs the package triton; install it"):
        mfubench.apply(model, recipe_for(model, SparseGradients(), UseImpl("layer_norm", "triton")), optimizers)
    assert hung_on(model, optimizers) == before and not model.bag.sparse


def test_a_change_that_fails_takes_back_those_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_args: Any, **_options: Any) -> None:
        raise RuntimeError("no compiler here")

    monkeypatch.setattr("mfubench.workload.regions.compile_region", fails)
    model, optimizers = mine()
    before, expected = hung_on(model, optimizers), trained(*mine())
    recipe = recipe_for(model, WithoutAttentionWeights(), SparseGradients(), UpdateTogether("foreach"), Compile(MODEL))
    with pytest.raises(RuntimeError, match="no compiler here"):
        mfubench.apply(model, recipe, optimizers)
    assert hung_on(model, optimizers) == before and apart(trained(model, optimizers), expected) == []


# On a workload ----------------------------------------------------------------------------------------------------


def test_a_profile_with_a_recipe_runs_what_it_says(workload: Workload, stand_in: dict[str, int]) -> None:
    changes = (UseImpl("sum_kron_linear", STAND_IN), UseBatchSize(6), BucketByLength(), UseDtype("bf16"))
    recipe = replace(recipe_for(workload.module, *changes, description=workload.description), judge="numbers")
    made = prepare_with(replace(SPEC, batch_size=None), recipe)
    run_step(made, 0)
    assert stand_in.keys() == {"sum_kron_linear"} and (made.num_samples, made.dtype) == ([6, 6], "bf16")
    assert made.description["changes"] == [change.title for change in changes]
    assert any("judged by numbers only" in warning for warning in made.warnings)


def test_where_nothing_is_trained_what_needs_optimizers_is_left_out(workload: Workload) -> None:
    changes = (UpdateTogether("foreach"), UseBatchSize(6))
    recipe = recipe_for(workload.module, *changes, description=workload.description)
    made = prepare_with(replace(SPEC, batch_size=None, mode="infer"), recipe)
    assert made.description["changes"] == ["batch_size 6"]
    assert any("optimizer foreach of the recipe is left out" in warning for warning in made.warnings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (BucketByLength(), "recipe.toml: change bucket_by_length: the model makes its own batches"),
        (Compile("my.Tower", dynamic=False), "recipe.toml: nothing to compile: .*my.Tower"),
        (UpdateTogether("fused"), "recipe.toml: nothing to change: no optimizer loops"),
    ],
)
def test_a_change_that_a_workload_has_no_place_for_is_refused(change: Change, message: str, tmp_path: Path) -> None:
    spec = replace(SPEC, model="tests.mfubench.optimize.test_recipe:built", size=None)
    made = prepare(spec)
    recipe = read_recipe(written(tmp_path, recipe_for(made.module, change, description=made.description)))
    with pytest.raises(BadInput, match=message):
        prepare_with(spec, recipe)


def built() -> tuple[Any, ...]:
    """A model of one's own whose optimizer is fused already."""
    adam = partial(torch.optim.Adam, fused=True)
    return mine()[0], lambda size, device: (IDS,), None, lambda module: adam(module.parameters())


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"size": "small"}, "another model, size or config"),
        ({"model": "dlrm"}, r"is for kunlun .* this is dlrm"),
        ({"overrides": {"comp_skip": "false"}}, "another model, size or config"),
        ({"batch_size": 8}, "--batch-size 8 and the recipe's 6 say different things"),
        ({"dtype": "fp32"}, "--dtype fp32 and the recipe's bf16"),
        ({"compile": "model"}, "--compile model: the recipe compiles already"),
    ],
)
def test_a_workload_that_contradicts_the_recipe_is_refused(
    asked: dict[str, Any], message: str, workload: Workload
) -> None:
    recipe = recipe_for(workload.module, *EVERY, description=workload.description)
    with pytest.raises(BadInput, match=message):
        prepare_with(replace(SPEC, **{"batch_size": None, **asked}), recipe)
