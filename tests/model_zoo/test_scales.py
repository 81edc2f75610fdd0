"""Where a model begins, nothing of a sample drowns the rest: the parts of its tokens are of like length."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mfu_models import MODELS
from mfu_models.common.layers import DenseToken
from mfubench.data.kuairand import read_kuairand
from mfubench.data.logs import LogSource

WITH_A_DENSE_TOKEN = sorted(set(MODELS) - {"din", "sdim"})  # whose heads read the dense features as they are
SUMMED = ("amortized_history", "hstu", "ligr")  # where they are mapped by one matrix, in two of them added to a token


@pytest.fixture(scope="module")
def log(test_data: Path) -> LogSource:
    return read_kuairand(test_data / "kuairand-slice")


def lengths_of_parts(name: str, size: str, log: LogSource) -> dict[str, float]:
    """Mean length of what the modules called ``dense``, ``fields``, .. give for real impressions, before training."""
    torch.manual_seed(2)
    spec = MODELS[name]
    config = spec.config(size, log.schema, {"num_candidates": 1} if spec.request_level else {})
    model = spec.build(config, "reference")
    lengths = {sequence.name: 8 for sequence in log.schema.sequences}
    found: dict[str, float] = {}

    def note(part: str) -> Any:
        def hook(_module: nn.Module, _args: object, output: object) -> None:
            if isinstance(output, Tensor):  # a tower may be called events, too
                found[part] = output.norm(dim=-1).mean().item()

        return hook

    for path, module in model.named_modules():
        part = path.rpartition(".")[2]
        if part in ("dense", "fields", "events", "project", "position", "age", "context"):
            module.register_forward_hook(note(part))
    with torch.no_grad():
        model(log.batches(256, 1, seed=1, max_lengths=lengths)[0])
    return found


@pytest.mark.parametrize("widths", [(5, 32), (13, 512), (13, 1024, 512), (13, 512, 256, 160), (5, 64, 32)])
def test_a_dense_token_is_of_unit_length_however_it_is_made(widths: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    lengths = DenseToken(widths)(torch.randn(256, widths[0])).square().sum(dim=-1)
    assert lengths.mean().item() == pytest.approx(1, abs=0.25)


@pytest.mark.parametrize("size", ["tiny", "base"])
@pytest.mark.parametrize("name", WITH_A_DENSE_TOKEN)
def test_dense_features_are_a_token_like_those_of_fields(name: str, size: str, log: LogSource) -> None:
    """Raw logarithms of counts made it up to 20 times as long, on the KuaiRand slice; as PyTorch draws it, it grows."""
    parts = lengths_of_parts(name, size, log)
    assert 0.6 < parts["dense"] / parts["fields"] < 1.4


@pytest.mark.parametrize("name", WITH_A_DENSE_TOKEN)
def test_a_dense_token_is_made_by_what_holds_its_length_at_every_size(name: str) -> None:
    """Sizes too large to be run here."""
    for size in MODELS[name].sizes:
        model = MODELS[name].outline(MODELS[name].config(size))
        (dense,) = (part for path, part in model.named_modules() if path.rpartition(".")[2] == "dense")
        assert isinstance(dense, DenseToken)


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
@pytest.mark.parametrize("name", SUMMED)
def test_a_candidates_token_has_as_much_of_each_part_at_every_width(name: str, size: str, log: LogSource) -> None:
    """Attention would otherwise see of a candidate its dense features, and the less of its item the wider it is."""
    parts = lengths_of_parts(name, size, log)
    if name != "amortized_history":
        assert 1 < parts.pop("context") < 2  # of two
    assert all(0.7 < length < 2 for length in parts.values()), parts
