"""Tuning a step: what is recorded, left out and why, tried, kept, and held to the step itself; without a GPU."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from math import inf
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mfu_kernels import layer_norm, lock
from mfu_kernels.launching import KERNELS
from mfu_kernels.lock import as_locked, key_text
from mfu_kernels.modes import watching_launches
from mfubench.errors import BadInput, ToolBroke
from mfubench.isolated import GaveUp
from mfubench.kernels import tune
from mfubench.kernels.budget import Verdict
from mfubench.kernels.check import CaseResult, OpResult
from mfubench.kernels.locks import key_of
from mfubench.kernels.targets import TARGETS
from mfubench.optimize.changes import UseImpl
from mfubench.optimize.recipe import Kept, Recipe, architecture
from mfubench.tuning import step as tuning
from mfubench.tuning.calls import Call, Floats
from mfubench.worker import DONE, FAILED, PART, UNWATCHED, Answer
from mfubench.workload.prepare import prepare
from mfubench.workload.spec import WorkloadSpec

CPU = torch.device("cpu")


class Norms(nn.Module):
    """A LayerNorm by our kernels, twice of the same kind, and one without a gradient of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(256, 256)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = layer_norm(self.project(x), impl="triton")
        return x


def build() -> Any:
    return Norms(), lambda batch_size, device: (torch.randn(batch_size, 256, device=device),)


def build_without_kernels() -> Any:
    return nn.Linear(4, 4), lambda batch_size, device: (torch.randn(batch_size, 4, device=device),)


SPEC = WorkloadSpec(model=f"{__name__}:build", device="cpu", dtype="fp32", batch_size=6, steps=2)


@pytest.fixture
def no_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_adopted", [])
    monkeypatch.setattr(lock, "_holds", None)


@pytest.fixture
def a_gpu(monkeypatch: pytest.MonkeyPatch, no_lock: None) -> None:
    """A CPU that is taken for a GPU whose kernels run in the interpreter, each with all its configs."""
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "a GPU")
    for module in (tune, tuning):
        monkeypatch.setattr(module, "device_target", lambda device: TARGETS["sm_90"])
    monkeypatch.setattr(tune, "candidates_of", launched_in_turn)
    monkeypatch.setattr(tune, "time_in_turns", partial(second_is_fastest, set()))


def launched_in_turn(examples: Any, shape: str, target: Any, wanted: Any) -> list[tune.Candidates]:
    """What the call launches, by running it: no compiler is here for what an interpreter runs."""
    inputs = examples.make(examples.shapes[shape], tune.Draw(torch.float32, CPU))
    leaves = {name: tensor.requires_grad_() for name, tensor in inputs.tensors.items()}
    found: dict[str, tune.Candidates] = {}
    direction = "forward"

    def note(kernel: str, key: str, *_: str) -> None:
        parsed = key_of(key)
        if wanted(kernel, parsed):
            found[kernel] = tune.Candidates(kernel, parsed, direction, list(KERNELS[kernel].space(parsed)))

    with watching_launches(note):
        out = examples.function(**leaves, **inputs.others, impl="triton")
        direction = "backward"
        torch.autograd.grad(out, list(leaves.values()), torch.ones_like(out))
    return list(found.values())


def second_is_fastest(fast: set[str], calls: Mapping[str, Any], *, rounds: int, part: Any) -> dict[str, list[float]]:
    """Of the configs that are tried first, and again where it stands beside the one that launches take."""
    fast |= set() if fast & calls.keys() else {list(calls)[1]}
    return {name: [1.0 if name in fast else 2.0] * rounds for name in calls}


def recorded() -> list[Call]:
    return list(tuning.record(tuning.Subject(SPEC), lambda phase: None).calls)


def test_a_step_s_calls_are_recorded_with_its_workload() -> None:
    found = tuning.record(tuning.Subject(SPEC), lambda phase: None)
    assert [(call.op, call.module) for call in found.calls] == [("layer_norm", "(model)")]
    assert found.workload["model"] == SPEC.model and found.environment["torch"]


class OneSize:
    """A loader that puts its batches together itself."""

    def __iter__(self) -> Iterator[tuple[Tensor]]:
        return iter([(torch.randn(6, 256),)] * 2)


def in_one_size() -> Any:
    return Norms(), OneSize()


def test_where_there_are_no_smaller_batches_the_whole_ones_are_checked() -> None:
    found = tuning.record(tuning.Subject(replace(SPEC, model=f"{__name__}:in_one_size", batch_size=None)), print)
    assert found.few is found.calls and len(found.calls) == 1


class Plain(nn.Module):
    """A LayerNorm of torch, which a recipe swaps."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(16)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


def build_plain() -> Any:
    return Plain(), lambda batch_size, device: (torch.randn(batch_size, 16, device=device),)


def test_what_a_recipe_swaps_in_is_recorded() -> None:
    spec = replace(SPEC, model=f"{__name__}:build_plain")
    whose = {"model": spec.model, "size": None, "model_hash": prepare(spec).description["model_hash"]}
    recipe = Recipe(
        {**whose, "architecture": architecture(Plain())}, {}, "time", (Kept(UseImpl("layer_norm", "triton"), None),)
    )
    assert not tuning.record(tuning.Subject(spec), lambda phase: None).calls
    (call,) = tuning.record(tuning.Subject(spec, recipe), lambda phase: None).calls
    assert (call.op, call.module) == ("layer_norm", "norm")


def test_the_kernels_of_calls_are_tuned_once_each(a_gpu: None) -> None:
    stood: list[Any] = []
    calls = recorded()
    entries = tuning.tune_calls(
        tune.Watch(so_far=stood.append), calls=calls, device="cpu", again=False, held=[], without={}
    )
    assert [entry["kernel"] for entry in entries] == ["layer_norm_fwd_kernel", "layer_norm_bwd_kernel"]
    for entry in entries:
        kernel = KERNELS[entry["kernel"]]
        assert entry["shape"] == calls[0].title and (entry["device"], entry["target"]) == ("a GPU", "sm_90")
        assert entry["config_before"] == as_locked(kernel.space(key_of(entry["key"]))[0]) != entry["config"]
        assert (entry["ms"], entry["ms_before"], entry["ratio_of_fastest"]) == (1.0, 2.0, (0.5, 0.5, 0.5))
    assert [len(so_far) for so_far in stood] == [1, 2]
    again = tuning.tune_calls(UNWATCHED, calls=calls, device="cpu", again=False, held=entries, without={})
    assert again == []  # what is locked for this very GPU stands


@dataclass
class FakeWorker:
    """Answers what it is told to, by op."""

    answers: Mapping[str, Answer]
    failed: Sequence[str] = ()
    broken: Sequence[str] = ()
    asked: list[Mapping[str, Any]] = field(default_factory=list)

    def run(self, work: Any, arguments: Mapping[str, Any], **_: Any) -> Answer:
        if work is tuning.compile_call:
            return Answer(FAILED, "no compiler")  # which tuning finds again
        if work is tuning.check_work:
            return self.checks(arguments["call"])
        self.asked.append(arguments)
        return self.answers[arguments["calls"][0].op]

    def checks(self, call: Call) -> Answer:
        if call.op in self.broken:
            return Answer(FAILED, "its process ended")
        verdict, case = Verdict("out", 3.0, 2.0), {"call": call, "config": 1}
        return Answer(
            DONE, None, OpResult(call.op, [CaseResult(case, [verdict], ())] if call.op in self.failed else [])
        )

    def close(self) -> None:
        pass


def an_entry(kernel: str, *, new: bool = True) -> dict[str, Any]:
    config = {"ROWS": 4, "num_warps": 4, "num_stages": 1}
    before = {"ROWS": 8} if new else config
    return {"kernel": kernel, "device": "a GPU", "key": "", "config": config, "config_before": before}


def a_call(op: str) -> Call:
    return Call(op, "layers.0", {}, {}, None)


TOO_LARGE = replace(a_call("embedding"), tensors={"x": Floats((1 << 27,), (1,), 0, torch.float32, False, 0.0, 1.0)})
PROOF = {"speedup": {"median": 1.1, "ci95_low": 1.05, "ci95_high": 1.2}, "verdict": "faster"}


def tuned(
    monkeypatch: pytest.MonkeyPatch,
    answers: Mapping[str, Answer],
    *,
    failed: Sequence[str] = (),
    broken: Sequence[str] = (),
    proof: Any = PROOF,
    spec: WorkloadSpec = SPEC,
    **options: Any,
) -> tuple[dict[str, Any], FakeWorker]:
    """What comes of a step whose calls are those of ``answers``, by fake processes."""
    worker, calls = FakeWorker(answers, failed, broken), [a_call(op) for op in answers]
    found = tuning.Recorded({"model": "m"}, {"device_name": "a GPU"}, calls, [*calls, TOO_LARGE])

    def isolated(task: Any, argument: Any, **_: Any) -> Any:
        given = found if task is tuning.record else proof
        if isinstance(given, Exception):
            raise given
        return given

    @contextmanager
    def workers(device: str, count: int) -> Any:
        yield [worker]

    monkeypatch.setattr(tuning, "run_isolated", isolated)
    monkeypatch.setattr(tuning, "workers", workers)
    monkeypatch.setattr(tuning, "Worker", lambda device: worker)
    monkeypatch.setattr(tuning, "device_target", lambda device: TARGETS["sm_90"])
    return tuning.tune_step(tuning.Subject(spec), **options), worker


def test_ops_are_tuned_one_after_the_other_and_the_step_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = an_entry("a_kernel"), an_entry("b_kernel", new=False)
    answers, kept = {"gdpa": Answer(DONE, None, [first]), "rms_norm": Answer(DONE, None, [second])}, list[int]()
    told, worker = tuned(monkeypatch, answers, keep=lambda entries: kept.append(len(entries)))
    assert kept == [1, 2]
    assert told["entries"] == [first, second] and told["step"] == PROOF and not told["not_tuned"]
    assert [asked["held"] for asked in worker.asked] == [[], [first]]
    assert told["calls"] == [{"op": op, "module": "layers.0"} for op in ("gdpa", "rms_norm")]
    (not_held,) = told["not_held"]
    assert not_held.startswith("layers.0 (embedding): not held to fp64, as 134,217,728 numbers are too many")


def test_a_lock_that_it_goes_on_from_is_kept_and_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    old, held, kept = an_entry("a_kernel"), an_entry("b_kernel"), list[Any]()
    new = {**old, "config": {"ROWS": 2}}
    monkeypatch.setattr(tuning, "read_lock", lambda file: [old, held])
    spec = replace(SPEC, lock="lock.json")
    told, _ = tuned(monkeypatch, {"gdpa": Answer(DONE, None, [new])}, spec=spec, keep=kept.append)
    assert told["lock"] == kept[-1] == [new, held] and told["entries"] == [new]
    told, _ = tuned(monkeypatch, {"gdpa": Answer(DONE, None, [])}, spec=spec)
    assert told["lock"] == [old, held]


def test_what_cannot_be_tuned_is_named_and_the_rest_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    first = an_entry("a_kernel")
    answers = {
        "gdpa": Answer(PART, "took over 60 s", [first]),
        "rms_norm": Answer(FAILED, "out of memory"),
        "layer_norm": Answer(DONE, None, []),
        "hstu_attention": Answer(DONE, None, []),
    }
    told, worker = tuned(monkeypatch, answers, failed=["layer_norm"], broken=["hstu_attention"])
    assert told["entries"] == [first] and told["not_tuned"] == {
        "gdpa": "took over 60 s",
        "rms_norm": "out of memory",
        "layer_norm": "its numbers fail the contract at layers.0 (layer_norm), config 1: "
        "out errs 1.50 times its budget",
        "hstu_attention": "its numbers were not checked: its process ended",
    }
    assert [asked["calls"][0].op for asked in worker.asked] == ["gdpa", "rms_norm"]


def test_a_budget_ends_it_and_says_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    told, worker = tuned(monkeypatch, {"gdpa": Answer(DONE, None, [])}, budget_s=1.0)
    assert told["not_tuned"] == {"gdpa": tuning.NOT_REACHED} and not worker.asked
    assert told["step"] == {"reason": "launches take what they took before: nothing faster was found"}


@pytest.mark.parametrize("error", [GaveUp("given up after 5 s"), BadInput("no memory")])
def test_a_step_that_cannot_be_timed_leaves_the_configs(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    told, _ = tuned(monkeypatch, {"gdpa": Answer(DONE, None, [an_entry("a_kernel")])}, proof=error)
    assert told["entries"] and told["step"] == {"reason": f"the step was not timed: {error}"}


def test_nothing_new_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    told, _ = tuned(monkeypatch, {"gdpa": Answer(DONE, None, [an_entry("a_kernel", new=False)])}, proof=ToolBroke("no"))
    assert "nothing faster was found" in told["step"]["reason"]


def test_a_step_without_kernels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "device_target", lambda device: TARGETS["sm_90"])
    monkeypatch.setattr(tuning, "run_isolated", lambda task, argument, **_: task(argument, lambda phase: None))
    with pytest.raises(BadInput, match="launches no kernel of ours with --impl auto: there is nothing to tune"):
        tuning.tune_step(tuning.Subject(replace(SPEC, model=f"{__name__}:build_without_kernels")))


def test_graphs_that_keep_their_launches_are_refused() -> None:
    with pytest.raises(BadInput, match="cudagraphs keeps the configs that were captured"):
        tuning.tune_step(tuning.Subject(replace(SPEC, compile="cudagraphs")))


def test_both_arms_run_in_turns_each_with_its_own_configs(monkeypatch: pytest.MonkeyPatch, no_lock: None) -> None:
    entry = {
        **an_entry("layer_norm_fwd_kernel"), "device": "a GPU", "target": "sm_90", "date": "2026-11-27",
        "key": key_text({"width": 16}),
    }  # fmt: skip
    held: list[bool] = []

    def blocks(arms: Sequence[Any], *, device: Any, first: int, num_blocks: int) -> Any:
        return [[(2.0, 2.0)] * num_blocks, [(1.6, 1.6)] * num_blocks]

    def run_step(workload: Any, index: int) -> None:
        held.append(lock.locked_here("layer_norm_fwd_kernel", "a GPU", {"width": 16}) is not None)

    monkeypatch.setattr(tuning, "time_in_blocks", blocks)
    monkeypatch.setattr(tuning, "run_step", run_step)
    found = tuning.prove(tuning.Proof(tuning.Subject(SPEC), [entry], inf), lambda phase: None)
    assert held == [False, True] * 4
    assert found["verdict"] == "faster" and found["speedup"]["median"] == pytest.approx(1.25)
    assert (found["ms_before"], found["ms"]) == ((2.0, 2.0, 2.0), (1.6, 1.6, 1.6)) and found["blocks"] == 16


def test_what_is_still_open_when_the_time_is_over_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    def undecided(arms: Sequence[Any], *, device: Any, first: int, num_blocks: int) -> Any:
        time.sleep(0.3)
        return [[(1.0, 1.0)] * num_blocks, [(0.9 if block % 2 else 1.1,) * 2 for block in range(num_blocks)]]

    monkeypatch.setattr(tuning, "time_in_blocks", undecided)
    found = {limit_s: tuning.prove(tuning.Proof(tuning.Subject(SPEC), [], limit_s), lambda phase: None)
             for limit_s in (0.1, inf)}  # fmt: skip
    assert (found[0.1]["blocks"], found[inf]["blocks"]) == (16, 64) and found[0.1]["verdict"] == "open"


def test_a_step_is_timed_for_real() -> None:
    found = tuning.prove(tuning.Proof(tuning.Subject(SPEC), [], 0.1), lambda phase: None)  # no time for a second look
    assert found["ms"][0] > 0 and found["verdict"] in ("open", "not faster", "faster") and found["blocks"] >= 16
