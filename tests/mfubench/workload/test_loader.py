"""A loader in make_batch's place: what its batches are, what waiting for it takes, and what is refused."""

import inspect
from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.data import DataLoader, RandomSampler

from mfubench.assemble import _loader
from mfubench.caveats import _of_the_loader
from mfubench.errors import BadInput
from mfubench.optimize.changes import UpdateTogether
from mfubench.optimize.trial import Request, _Checked, arms_of
from mfubench.profiling import profile
from mfubench.run import Run, read_run, write_run
from mfubench.workload.batches import loaded, made_by
from mfubench.workload.loader import OPTIONS, Fed, Loader
from mfubench.workload.prepare import prepare
from mfubench.workload.spec import WorkloadSpec
from tests.mfubench.report.factory import a_run
from tests.mfubench.workload.loading import Rows

HERE = "tests.mfubench.workload.loading"


def spec(build: str, **changes: Any) -> WorkloadSpec:
    return replace(WorkloadSpec(f"{HERE}:{build}", device="cpu", steps=6), **changes)


@pytest.fixture
def profiled(fixed_calibration: object) -> Any:
    return lambda build: profile(spec(build))


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_its_first_batches_are_the_input_sets_and_its_rows_the_requests() -> None:
    workload = prepare(spec("uneven"))
    assert [batch["x"][0, 0].item() for batch in workload.inputs] == [0, 4, 8, 0]
    assert workload.num_samples == [4, 4, 2, 4] and workload.description["batch_size"] == 4
    assert workload.description["data_description"] == "the model's own loader"


def test_one_that_iterates_over_itself_gives_one_batch_after_the_other() -> None:
    """Each of a mapping's own kind, which may hide its tensors, as a dict of them."""
    inputs = prepare(spec("begins_again")).inputs
    assert [batch["x"][0, 0].item() for batch in inputs] == [1, 2, 3, 4] and {type(batch) for batch in inputs} == {dict}


def test_a_list_of_parts_is_the_arguments_in_turn() -> None:
    workload = prepare(spec("listed"))
    assert [tuple(part.shape) for part in workload.inputs[0]] == [(4, 3), (4,)]
    assert isinstance(workload.to_device(workload.inputs[0]), tuple)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")  # as a DataLoader starts workers
def test_steps_take_its_batches_in_turn_and_begin_it_anew(profiled: Any, tmp_path: Path) -> None:
    """After three that warm up and the two that its worker has ready: from its third batch on, to its second again."""
    run: Run = profiled("uneven")
    loader = run.step["loader"]
    rows, seconds = 2 + 4 + 4 + 2 + 4 + 4, sum(loader["timings_ms"]) / 1e3
    assert len(loader["timings_ms"]) == 6 and loader["begun_again"] == 2
    assert loader["samples_per_s"] == pytest.approx(rows / seconds)
    write_run(run, tmp_path)
    assert read_run(tmp_path).step["loader"] == loader


def test_who_waits_for_batches_is_told_so(profiled: Any) -> None:
    run: Run = profiled("slow")
    assert 0.5 < run.step["loader"]["waited_share"] <= 1.0
    (warning,) = (text for text in run.warnings if "waiting for batches" in text)
    assert "num_workers" in warning and not [text for text in run.warnings if "begun anew" in text]


@pytest.mark.usefixtures("fixed_calibration")
@pytest.mark.parametrize(("mode", "steps"), [("train", 30), ("infer", 20)])
def test_an_inference_that_is_timed_for_its_percentiles_is_fed_for_its_rate(mode: str, steps: int) -> None:
    run = profile(spec("listed", mode=mode, steps=30))
    assert len(run.step["timings_ms"]) == 30 and len(run.step["loader"]["timings_ms"]) == steps


@pytest.mark.usefixtures("fixed_calibration")
def test_who_is_interrupted_before_it_keeps_what_was_measured_and_is_told_what_was_not() -> None:
    kept: list[Run] = []
    profile(spec("listed"), keep=lambda known: kept.append(known()))
    assert len(kept[0].step["timings_ms"]) == 6 and kept[0].step["loader"] is None
    assert "how long steps wait for the loader: not reached" in kept[0].not_measured


@pytest.mark.usefixtures("fixed_calibration")
def test_a_batch_that_the_model_does_not_take_leaves_out_what_needs_it() -> None:
    run = profile(spec("narrows"))
    (line,) = (line for line in run.not_measured if line.startswith("how long steps wait for the loader"))
    assert "the model's step fails in it: RuntimeError: mat1 and mat2" in line and run.step["loader"] is None
    assert run.flops["model"] and run.ledger and any(line in warning for warning in run.warnings)


@pytest.mark.usefixtures("fixed_calibration")
def test_a_batch_needs_the_same_memory_whoever_makes_it() -> None:
    loaded, made = (profile(spec(build, batch_size=4)).memory["peak_bytes"] for build in ("listed", "made"))
    assert loaded == made


def test_a_loader_that_gives_its_batches_in_bursts_is_told() -> None:
    def told(*timings_ms: float) -> list[str]:
        loader = {"samples_per_s": 1.0, "waited_share": 0.0, "begun_again": 0, "timings_ms": list(timings_ms)}
        return _of_the_loader(a_run(step={"loader": loader}))

    assert told(1.0, 1.1, 1.0) == []
    (warning,) = told(1.0, 1.0, 1.0, 97.0)
    assert "their mean is 25.00 times their median" in warning


def test_without_a_loader_nothing_is_told_of_one(profiled: Any) -> None:
    assert prepare(WorkloadSpec("examples.own_model:build", device="cpu", batch_size=2, steps=1)).loader is None
    assert not [text for text in profiled("listed").warnings if "begun anew" in text]


@pytest.mark.parametrize(
    ("device", "drawing_ms", "share"),
    [("cpu", 30.0, 0.3), ("cuda", 30.0, 0.2), ("cuda", 10.0, 0.1), ("cuda", 0.0, 0.0)],
)
def test_a_gpu_is_idle_no_longer_than_its_host_waits_or_its_steps_are_slower(
    device: str, drawing_ms: float, share: float
) -> None:
    """Of 100 ms that give 80 requests, where batches at hand give 100."""
    told = _loader(Fed([50.0, 50.0], 80, drawing_ms, 0), 1000.0, device)
    assert told["samples_per_s"] == 800.0 and told["waited_share"] == pytest.approx(share)
    assert _loader(Fed([50.0, 50.0], 120, 30.0, 0), 1000.0, "cuda")["waited_share"] == 0.0


REFUSED = {
    "empty": "its loader has no batch",
    "once": "gives nothing when it is begun again",
    "breaks": r"its loader raised ValueError: no row 0 \(.*loading.py:\d+\)",
    "words": "its loader gave a str; a tuple of positional or a dict of keyword arguments",
    "rowless": "its loader gave a batch without rows",
    "one_batch": r"make_batch is a tuple of 2; it must be callable as make_batch\(batch_size, device\), or a loader",
}


@pytest.mark.parametrize("build", REFUSED)
@pytest.mark.usefixtures("fixed_calibration")
def test_what_is_no_loader_of_batches_is_refused(build: str) -> None:
    with pytest.raises(BadInput, match=REFUSED[build]):
        profile(spec(build))


def test_rows_of_a_torch_loader_come_in_batches_of_any_size() -> None:
    """In the order of its own sampler, and in whole ones: a mean step of shorter ones were of no size."""
    rows = Loader("mine", DataLoader(Rows(10), batch_size=4, sampler=range(9, -1, -1))).of_size(3)
    assert [rows.draw()["x"][:, 0].tolist() for _ in range(4)] == [[9, 8, 7], [6, 5, 4], [3, 2, 1], [9, 8, 7]]
    assert prepare(spec("listed", batch_size=24)).num_samples == [24] * 4
    streamed = prepare(spec("streamed", batch_size=3))
    assert [batch[0][0, 0].item() for batch in streamed.inputs] == [0, 3, 6, 0] and not streamed.one_size
    assert prepare(spec("listed")).num_samples == [4] * 4


def test_rows_that_are_packed_keep_their_lengths_on_the_host() -> None:
    """As torch demands, wherever what they hold is."""
    packed = pack_sequence([torch.ones(3, 2), torch.ones(1, 2)])
    far = torch.device("meta")
    made = made_by(lambda batch_size, device: {"x": [packed]}, 2, far, 1).inputs[0]["x"][0]
    moved = loaded(Loader("mine", [(packed,)]), None, far, 1).to_device((packed,))[0]
    for found in (made, moved):
        assert isinstance(found, PackedSequence) and found.data.is_meta and found.batch_sizes.tolist() == [2, 1, 1]


def test_each_option_of_a_torch_loader_is_kept() -> None:
    """All that its constructor takes, and the order of its rows."""
    ours = {"dataset", "batch_size", "shuffle", "sampler", "batch_sampler", "drop_last", *OPTIONS}
    assert set(inspect.signature(DataLoader).parameters) == ours
    given: dict[str, Any] = {
        "num_workers": 2, "collate_fn": len, "pin_memory": True, "timeout": 3.0,
        "worker_init_fn": print, "generator": torch.Generator(), "prefetch_factor": 5, "persistent_workers": True,
        "in_order": False,
    }  # fmt: skip
    resized: Any = Loader("mine", DataLoader(Rows(10), batch_size=4, shuffle=True, **given)).of_size(2).source
    assert resized.batch_size == 2 and {option: getattr(resized, option) for option in given} == given
    assert isinstance(resized.sampler, RandomSampler) and resized.sampler.generator is given["generator"]


def test_what_cannot_come_in_another_size_says_why() -> None:
    assert prepare(spec("begins_again", batch_size=2)).one_size
    with pytest.raises(BadInput, match="batches of 8 are asked for, and its loader gives 2; ask for these"):
        prepare(spec("begins_again", batch_size=8))
    fixed = DataLoader(Rows(10), batch_size=4, collate_fn=lambda rows: (torch.ones(2, 3),))
    with pytest.raises(BadInput, match="its loader gives 2; ask for these, as its dataset or collate_fn makes them"):
        loaded(Loader("mine", fixed), 8, torch.device("cpu"), 1)
    with pytest.raises(BadInput, match="a batch of 65 is asked for, and its loader has 64 rows"):
        prepare(spec("listed", batch_size=65))
    with pytest.raises(BadInput, match="its loader has no batch of 11 rows"):
        prepare(spec("streamed", batch_size=11))
    endless = DataLoader(Rows(10), batch_size=2, sampler=Endless())
    assert len(Loader("mine", endless).of_size(11).draw()["x"]) == 11, "how many rows it has nobody knows"
    by_itself = DataLoader(Rows(10), batch_sampler=[[0, 1], [2]])
    assert Loader("mine", by_itself).of_size(5).source is by_itself


def test_a_change_is_checked_on_whole_batches_where_there_are_no_smaller_ones() -> None:
    """The same ones for the model as it was and as it is, also where nobody can draw them twice."""
    request = Request(spec("unseeded"), (), UpdateTogether("foreach"), 0.05, one_size=True)
    checked, notes = _Checked(request, lambda phase: None), list[str]()
    assert checked.results(notes) is None and checked.training(notes) is None, notes
    assert "gradient of layer" in str(notes) or "output 0" in str(notes)


class Endless:
    """A sampler without a length, as torch allows."""

    def __iter__(self) -> Iterator[int]:
        return cycle(range(10))


def test_batches_that_are_not_alike_are_timed_in_whole_rounds() -> None:
    """Else a step of two rows were one of four."""
    arms = arms_of(spec("unequal"), [(), ()], lambda phase: None)
    assert arms.steps_a_turn == 4 and arms.samples == [4 + 4 + 2 + 4] * 2
    assert arms_of(spec("listed"), [()], lambda phase: None).samples == [4]


class Sized(list[Any]):
    batch_size = 7


@pytest.mark.parametrize(
    ("batch", "rows", "of_sized"),
    [
        ((torch.ones(5, 2), torch.ones(5)), 5, 5),  # the last of an epoch, say
        ((torch.ones(30), torch.ones(5, 2)), 30, 7),  # all ids of all rows one after the other
        ((torch.ones(50, 7, 3),), 50, 7),  # time first
        ((torch.ones(()),), None, 7),
    ],
)
def test_the_rows_of_a_batch_are_what_its_tensors_agree_on_or_what_the_loader_says(
    batch: Any, rows: int | None, of_sized: int
) -> None:
    assert Loader("mine", Sized()).rows_of(batch) == of_sized
    if rows is None:
        with pytest.raises(BadInput, match=r"mine: no tensor says how many rows .* give the loader a batch_size"):
            Loader("mine", []).rows_of(batch)
    else:
        assert Loader("mine", []).rows_of(batch) == rows
        assert bool(Loader("mine", []).doubt(batch)) == (rows == 30) and not Loader("mine", Sized()).doubt(batch)
