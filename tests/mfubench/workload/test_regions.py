"""Regional compilation: what is compiled by itself, what shares a compilation, and that all of it can be undone."""

import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mfu_models import MODELS, model_spec
from mfubench.workload.regions import class_name, compile_in_place, compile_region, compile_regions, regions

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::UserWarning:torch")  # of its own
D = 8


class Block(nn.Module):
    """A block with a part that may be called past it."""

    def __init__(self, width: int = D) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(width), nn.Linear(width, width)
        self.pool = Pool(width)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.relu(self.linear(self.norm(x)))


class Pool(nn.Module):
    """A part with parts."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.linear(x)) * x


class Scale(nn.Module):
    """Operators of its own, and no part."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x) * 2.0


class Encoder(nn.Module):
    """Holds repeated blocks."""

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(width) for width in widths)
        self.scale = Scale()

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x) + block.pool(x)
        return self.scale(x)


class Net(nn.Module):
    """An encoder behind two tables, and a head."""

    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.rare, self.dense = nn.Embedding(50, D, sparse=True), nn.Embedding(50, D)
        self.encoder = Encoder([D] * depth)
        self.head = nn.Sequential(nn.Linear(D, D), Pool(D))

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.encoder(self.rare(ids) + self.dense(ids)))


class Counter:
    """A compiler that runs graphs as they are, and counts them."""

    def __init__(self) -> None:
        self.graphs: list[torch.fx.GraphModule] = []

    def __call__(self, graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> Any:
        self.graphs.append(graph)
        return graph.forward


@pytest.fixture
def counter() -> Iterator[Counter]:
    torch.compiler.reset()
    yield Counter()
    torch.compiler.reset()


def names_of(model: nn.Module) -> list[str]:
    names = {module: name for name, module in model.named_modules()}
    return [names[region] for region in regions(model)]


def test_repeated_blocks_and_other_parts_are_regions() -> None:
    blocks = [f"encoder.blocks.{index}" for index in range(3)]
    assert names_of(Net()) == [*blocks, "encoder.scale", "head.1"]


def test_what_repeats_nothing_is_one_region() -> None:
    assert names_of(Net(depth=1)) == ["encoder", "head.1"]
    assert names_of(nn.Linear(D, D)) == names_of(Scale()) == [""]


@pytest.mark.parametrize("name", MODELS)
def test_no_model_of_the_zoo_is_its_own_region(name: str) -> None:
    """It would be compiled whole under another name."""
    spec = model_spec(name)
    names = names_of(spec.outline(spec.config("base")))
    assert "" not in names and len(names) > 1


def test_equal_blocks_share_their_compilation_and_their_parts_are_compiled_too(counter: Counter) -> None:
    model, ids = Net(), torch.arange(7)
    expected = model(ids)
    undo = compile_regions(model, backend=counter, dynamic=True)
    torch.testing.assert_close(model(ids), expected)
    assert len(counter.graphs) == 3  # three blocks, their pools and the head's, the scale
    model(torch.arange(11))
    assert len(counter.graphs) == 3  # for more events, too
    undo()
    torch.compiler.reset()
    assert torch.equal(model(ids), expected) and len(counter.graphs) == 3
    assert all(module._compiled_call_impl is None for module in model.modules())


def test_hooks_of_torchs_own_blocks_run_whenever_they_come(counter: Counter) -> None:
    """As of a trace, which looks on where steps were timed before; what is compiled stays as it is."""
    model = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True) for _ in range(3))
    x, ran = torch.randn(2, 5, 8), list[int]()
    expected = [block(x) for block in model]
    undo = compile_regions(model, backend=counter)
    for _ in range(2):
        for block, right in zip(model, expected, strict=True):
            torch.testing.assert_close(block(x), right)
    compiled = len(counter.graphs)
    for place, block in enumerate(model):
        block.register_forward_pre_hook(lambda _module, _args, place=place: ran.append(place))
    for block, right in zip(model, expected, strict=True):
        torch.testing.assert_close(block(x), right)
    assert ran == [0, 1, 2] and len(counter.graphs) == compiled == 1
    undo()
    assert all("forward" not in vars(module) for module in model.modules())


def test_torchs_own_blocks_are_called_by_several_threads_and_by_themselves(counter: Counter) -> None:
    block, x = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), torch.randn(2, 5, 8)
    expected = block(x)
    undo = compile_in_place(block, backend=counter)
    block(x)
    with ThreadPoolExecutor(4) as threads:
        for found in threads.map(block, [x] * 200):
            torch.testing.assert_close(found, expected)
    undo()
    assert "forward" not in vars(block) and len(counter.graphs) == 1


def test_a_class_in_many_widths_is_compiled_in_each(counter: Counter) -> None:
    """Beyond its limit torch would run the rest eagerly, which nobody would see."""
    before = torch._dynamo.config.recompile_limit
    blocks = nn.ModuleList(Block(width) for width in range(2, 2 + before + 4))
    undo = compile_regions(blocks, backend=counter)
    for width, block in enumerate(blocks, start=2):
        block(torch.ones(3, width))
    assert len(counter.graphs) == len(blocks)
    undo()
    assert torch._dynamo.config.recompile_limit == before


@pytest.mark.parametrize("model", [nn.Sequential(nn.Linear(8, 8), nn.ReLU()), nn.TransformerEncoderLayer(8, 2, 16)])
def test_torch_s_own_classes_are_compiled_too(model: nn.Module, counter: Counter) -> None:
    """Torch's compiler leaves their frames alone, where nothing of ours is around them."""
    undo, x = compile_in_place(model.eval(), backend=counter), torch.ones(3, 8)
    compiled = model(x)
    assert len(counter.graphs) == 1
    undo()
    torch.testing.assert_close(compiled, model(x))


def test_tables_with_sparse_gradients_stay_eager(counter: Counter) -> None:
    model = nn.Sequential(Net())
    undo = compile_regions(model, backend=counter)
    model(torch.arange(7)).sum().backward()
    assert model[0].rare.weight.grad.is_sparse and "forward" in vars(model[0].rare)
    undo()
    assert "forward" not in vars(model[0].rare)


@pytest.mark.parametrize(
    ("module", "file", "name"),
    [
        (None, "train.py", "train"),
        (None, "pack/train.py", "pack.train"),
        (None, "/elsewhere/train.py", "train"),
        ("pack.train", "/elsewhere/train.py", "pack.train"),
        (None, None, "__main__"),
    ],
)
def test_a_scripts_class_has_the_name_under_which_others_import_it(
    module: str | None, file: str | None, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that is written in its own training script has the same regions there as for who imports it."""
    script = ModuleType("__main__")
    script.__spec__ = module and ModuleSpec(module, None)  # type: ignore[assignment]
    script.__file__ = file
    monkeypatch.setitem(sys.modules, "__main__", script)
    monkeypatch.setattr(Block, "__module__", "__main__")
    assert class_name(Block()) == f"{name}.Block"
    compile_region(Block(), f"{name}.Block", dynamic=False)()
