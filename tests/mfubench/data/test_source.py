"""Opening a source by its text, and asking it for batches."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mfu_models import MODELS
from mfubench.data import Field, Schema, SequenceField, open_source
from mfubench.data.logs import LogSource
from mfubench.errors import BadInput

SCHEMA = Schema(
    source="synthetic",
    dense=("d",),
    sparse=(Field("s", 10),),
    item=Field("item", 100),
    sides=(Field("category", 5), Field("action", 4)),
    sequences=(SequenceField("clicks", "engagement"), SequenceField("shown", "exposure")),
    target="is_click",
)
LENGTHS = {"clicks": 4, "shown": 8}


@pytest.mark.parametrize("text", ["", "criteo", "kuairand", "kuairand:", "synthetic:x", "movielens", "KuaiRand:x"])
def test_unknown_source_is_named_with_what_is_allowed(text: str) -> None:
    with pytest.raises(BadInput) as caught:
        open_source(text, SCHEMA)
    assert repr(text) in str(caught.value) and "synthetic, kuairand:PATH, movielens:PATH" in str(caught.value)


@pytest.mark.parametrize("kind", ["kuairand", "movielens"])
def test_missing_path(kind: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such file or folder; give a"):
        open_source(f"{kind}:{tmp_path / 'nowhere'}", SCHEMA)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"batch_size": 0}, "batch_size=0; allowed: 1 or more"),
        ({"num_batches": 0}, "num_batches=0; allowed: 1 or more"),
        ({"seed": -1}, "seed=-1; allowed: 0 or more"),
        ({"max_lengths": {"clicks": 4, "shown": 0}}, "maximum length of 'shown' is 0; allowed: 1 or more"),
        ({"max_lengths": {"clicks": 4}}, "given for clicks; the synthetic sequences.* are clicks, shown"),
        ({"max_lengths": {"clicks": 4, "shown": 8, "likes": 2}}, "given for clicks, likes, shown; the synthetic"),
        ({"max_lengths": {}}, "given for none; the synthetic"),
    ],
)
def test_bad_request(changed: dict[str, object], said: str) -> None:
    request: dict[str, object] = {"batch_size": 2, "num_batches": 1, "seed": 0, "max_lengths": LENGTHS}
    with pytest.raises(BadInput, match=said):
        open_source("synthetic", SCHEMA).batches(**(request | changed))  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["kuairand:kuairand-slice", "movielens:ml-latest-small"])
def test_what_was_shown_is_every_past_target_once(text: str, test_data: Path) -> None:
    """Models of one history would see what the user liked alone, or all but that; or a rate would count some twice."""
    source = open_source(text.replace(":", f":{test_data}/"), SCHEMA)
    assert isinstance(source, LogSource)
    (exposure,) = (sequence.name for sequence in source.schema.sequences if sequence.kind == "exposure")
    rows = source.targets[:: len(source.targets) // 200].astype(np.int64)
    first, end = source.log.before(rows)
    events = source.batch(rows, {sequence.name: 10_000 for sequence in source.schema.sequences}).sequences[exposure]
    counted = np.stack([source.log.count(name, first, end) for name in source.shown]).sum(axis=0)
    for i in range(len(rows)):
        past = source.targets[(source.targets >= first[i]) & (source.targets < end[i])]
        begin, stop = events.offsets[i : i + 2].tolist()
        assert events.item_ids[begin:stop].tolist() == source.log.items[past].tolist()
        assert counted[i] == len(past)
    for model in ("transformer", "hstu", "ligr", "amortized_history"):
        assert MODELS[model].config("tiny", source.schema).history.name == exposure


def test_importing_the_package_opens_nothing_heavy() -> None:
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]; import mfubench.data; "
        "print(*(name for name in ('pandas', 'mfubench.data.histories') if name in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *filter(None, sys.path)], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.split() == []
