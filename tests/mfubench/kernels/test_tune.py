"""Tuning takes the fastest config, if it is so twice, and keeps its measurement; launches then take what is locked."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mfu_kernels import launching, lock, modes
from mfu_kernels.examples import Case, Draw, Inputs
from mfu_kernels.launching import KERNELS, Kernel, config
from mfu_kernels.rms_norm.examples import EXAMPLES
from mfubench.errors import BadInput, ToolBroke
from mfubench.kernels import tune
from mfubench.kernels.catalog import kernels_of, ops_with_kernels
from mfubench.kernels.targets import TARGETS
from mfubench.kernels.timing import Call
from mfubench.worker import UNWATCHED, PartBroke, Watch

CPU, SMALL = torch.device("cpu"), {"rows": 9, "width": 512, "weight": True}


@pytest.fixture
def no_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_adopted", [])
    monkeypatch.setattr(lock, "_holds", None)


def on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "a GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))


def entry(rows: int, device: str = "a GPU", date: str = "2026-11-26") -> dict[str, Any]:
    return {
        "kernel": "rms_norm_fwd_kernel",
        "device": device,
        "target": "sm_90",
        "date": date,
        "key": lock.key_text({"width": 512, "bytes": 2}),
        "config": {"ROWS": rows, "num_warps": 4, "num_stages": 1},
    }


def test_the_committed_lock_reads_and_names_kernels_that_exist() -> None:
    for op in ops_with_kernels():
        kernels_of(op)
    for found in lock.committed():
        assert found["kernel"] in KERNELS and found["date"] and found["ms"] > 0 and found["target"] in TARGETS
        config(**found["config"])


def test_what_is_adopted_holds_for_its_gpu_and_key_first(no_lock: None) -> None:
    lock.adopt([entry(2)])
    lock.adopt([entry(16)])
    lock.adopt([entry(2), entry(16)])  # as a younger process does with all that there are
    kernel, key = "rms_norm_fwd_kernel", {"bytes": 2, "width": 512}
    assert lock.locked_here(kernel, "a GPU", key) == lock.Locked(entry(16)["config"], "a GPU")
    assert len(lock.merged()) == len(lock.committed()) + 1
    assert lock.locked_here(kernel, "another GPU", key) is None
    assert lock.locked_here(kernel, "a GPU", {"bytes": 2, "width": 256}) is None


def test_another_gpu_of_the_generation_lends_its_newest_config(no_lock: None) -> None:
    kernel, key = "rms_norm_fwd_kernel", {"bytes": 4, "width": 512}
    text = lock.key_text(key)
    older, newer = entry(2, "GPU A", "2026-11-26"), entry(16, "GPU B", "2026-11-27")
    lock.adopt([{**newer, "key": text}, {**older, "key": text}])
    assert lock.locked_config(kernel, "GPU A", "sm_90", key) == lock.Locked(older["config"], "GPU A")
    assert lock.locked_config(kernel, "GPU C", "sm_90", key) == lock.Locked(newer["config"], "GPU B")
    assert lock.locked_config(kernel, "GPU C", "sm_100", key) is None


def test_places_that_are_held_for_a_while_are_left_again(no_lock: None) -> None:
    kernel, key = "rms_norm_fwd_kernel", {"bytes": 4, "width": 512}
    tuned = lock.places_with([{**entry(2), "key": lock.key_text(key)}])
    before = lock.places()
    with lock.holding(tuned):
        assert lock.locked_here(kernel, "a GPU", key) is not None
    assert lock.places() is before and lock.locked_here(kernel, "a GPU", key) is None


def test_a_launch_takes_what_was_adopted_since_the_last_one(no_lock: None, monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_gpu(monkeypatch)
    kernels_of("rms_norm")
    kernel, gpu = KERNELS["rms_norm_fwd_kernel"], torch.device("cuda", 0)
    key: dict[str, int | str | bool] = {"width": 384, "bytes": 2}  # locked nowhere
    default = kernel.space(key)[0].all_kwargs()
    assert kernel.choose(key, gpu).all_kwargs() == kernel.choose(key, gpu).all_kwargs() == default
    assert kernel.origin(key, gpu) == "default"
    lock.adopt([{**entry(2, "another GPU"), "key": lock.key_text(key)}])
    assert kernel.choose(key, gpu).kwargs["ROWS"] == 2 != default["ROWS"]
    assert kernel.origin(key, gpu) == "locked on another GPU"
    with modes.forced_config(lambda _kernel, configs: configs[-1]):
        assert kernel.choose(key, gpu).all_kwargs() == kernel.space(key)[-1].all_kwargs()
        assert kernel.origin(key, gpu) == "asked for"
    assert kernel.choose(key, gpu).kwargs["ROWS"] == 2
    assert kernel.choose({**key, "width": 320}, gpu).all_kwargs() == kernel.space({**key, "width": 320})[0].all_kwargs()


def test_what_was_never_held_against_all_configs_is_tuned_again(no_lock: None) -> None:
    kernels_of("rms_norm")
    key: dict[str, int | str | bool] = {"width": 512, "bytes": 2}
    configs = [tune.spelled(each) for each in KERNELS["rms_norm_fwd_kernel"].space(key)]
    timed = {**entry(2), "ms_by_config": dict.fromkeys(configs[2:], 1.0), "left_out": {configs[0]: "spills"}}
    lock.adopt([timed])
    assert tune.not_locked("a GPU")("rms_norm_fwd_kernel", key)  # a config is new
    lock.adopt([{**timed, "left_out": dict.fromkeys(configs[:2], "spills")}])
    assert not tune.not_locked("a GPU")("rms_norm_fwd_kernel", key)
    assert tune.not_locked("another GPU")("rms_norm_fwd_kernel", key)


KEY = {"width": 512, "bytes": 4}


def make_here(case: Case, draw: Draw) -> Inputs:
    """In a dtype that the interpreter computes rightly."""
    return EXAMPLES.make(case, Draw(torch.float16, draw.device))


EXAMPLES_HERE = type(EXAMPLES)(EXAMPLES.function, {}, make_here, {"small": SMALL})


def candidates(direction: str = "forward") -> tune.Candidates:
    name = f"rms_norm_{'fwd' if direction == 'forward' else 'bwd'}_kernel"
    kernel = next(kernel for kernel in kernels_of("rms_norm") if kernel.name == name)
    return tune.Candidates(kernel.name, KEY, direction, list(kernel.space(KEY))[:3])


def tuned(
    found: tune.Candidates, *, without: dict[str, str] | None = None, watch: Watch = UNWATCHED
) -> tuple[dict[str, Any], list[list[str]]]:
    """The entry, and what was timed, by turn: the second config takes the least, the default the most."""
    timed: list[list[str]] = []
    ms = dict(zip(map(found.part, found.configs), (3.0, 1.0, 2.0), strict=True))

    def time(calls: dict[str, Call], *, rounds: int, part: Any) -> dict[str, list[float]]:
        timed.append(list(calls))
        return {name: [ms[name]] * (rounds - 1) + [9.0] for name in calls}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tune, "time_in_turns", time)
        entry = tune._tune_kernel(
            EXAMPLES_HERE, "small", found, tune.Gpu(CPU, "NVIDIA H200", TARGETS["sm_90"]), without or {}, watch
        )
    assert entry is not None
    return entry, timed


def as_locked(found: Any) -> dict[str, Any]:
    return {**found.kwargs, "num_warps": found.num_warps, "num_stages": found.num_stages}


def test_the_fastest_config_wins_and_its_measurement_is_kept() -> None:
    found = candidates()
    entry, (timed, again) = tuned(found)
    best = found.configs[1]
    assert entry["config"] == as_locked(best)
    assert (entry["ms"], entry["ms_of_default"], entry["configs_timed"]) == (1.0, 3.0, 3)
    assert len(timed) == 3 and entry["left_out"] == {}
    assert again == [found.part(best), found.part(found.default)]
    assert entry["date"] and entry["toolchain"]["triton"]


def entry_of(time: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What tuning three configs finds, all of them right, where ``time(config, rounds)`` gives a turn's samples."""
    found = candidates()
    by_part = {found.part(config): index for index, config in enumerate(found.configs)}

    def in_turns(calls: dict[str, Call], *, rounds: int, part: Any) -> dict[str, Any]:
        return dict(zip(calls, time([by_part[name] for name in calls], rounds), strict=True))

    monkeypatch.setattr(tune, "_wrong", lambda *_: {})
    monkeypatch.setattr(tune, "time_in_turns", in_turns)
    entry = tune._tune_kernel(EXAMPLES_HERE, "small", found, tune.Gpu(CPU, "a GPU", TARGETS["sm_90"]), {}, UNWATCHED)
    assert entry is not None
    return entry


@pytest.mark.parametrize(("ratio", "least", "most"), [(1.0, 0, 5), (0.95, 90, 100)])
def test_the_luckiest_of_equal_configs_does_not_take_over_and_a_faster_one_does(
    ratio: float, least: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw, default = np.random.default_rng(0), as_locked(candidates().default)

    def time(configs: Sequence[int], rounds: int) -> list[Any]:
        pace = draw.normal(1.0, 0.1, rounds)  # the machine's, which all of a round share
        truth = (1.0, ratio, 1.0)
        return [truth[config] * pace * draw.normal(1.0, 0.02, rounds) for config in configs]

    taken_over = sum(entry_of(time, monkeypatch)["config"] != default for _ in range(100))
    assert least <= taken_over <= most


def in_this_order(*turns: dict[int, float]) -> Any:
    left = iter(turns)

    def time(configs: Sequence[int], rounds: int) -> list[list[float]]:
        turn = next(left)
        return [[turn[config]] * rounds for config in configs]

    return time


def test_the_luck_of_the_first_rounds_is_not_in_the_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    first = {0: 2.0, 1: 1.0, 2: 2.0}
    entry = entry_of(in_this_order(first, {0: 2.0, 1: 1.6}), monkeypatch)
    assert entry["config"] == as_locked(candidates().configs[1])
    assert (entry["ms"], entry["ms_of_default"]) == (1.6, 2.0) and entry["ratio_of_fastest"] == (0.8, 0.8, 0.8)
    entry = entry_of(in_this_order(first, {0: 2.1, 1: 2.1}), monkeypatch)
    assert entry["config"] == as_locked(candidates().default) and entry["ms"] == entry["ms_of_default"] == 2.1
    assert sorted(entry["ms_by_config"].values()) == [1.0, 2.0, 2.0]


def test_what_is_locked_stands_against_one_that_is_no_faster(monkeypatch: pytest.MonkeyPatch, no_lock: None) -> None:
    locked = candidates().configs[2]
    lock.adopt([{**entry(2), "key": lock.key_text(KEY), "config": as_locked(locked)}])
    found = entry_of(in_this_order({0: 2.0, 1: 1.0, 2: 1.2}, {0: 2.0, 1: 1.4, 2: 1.4}), monkeypatch)
    assert found["config"] == as_locked(locked) and (found["ms"], found["ms_of_default"]) == (1.4, 2.0)


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (lambda out: out + 1, "differ from what was proved by more than 5%"),
        (lambda out: out * float("nan"), "differ from what was proved by more than 5%"),
        (lambda out: out * (1 + 0.02 * torch.rand(())), "other bits in a second run"),
        (lambda out: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_a_config_that_is_not_right_is_never_timed(
    direction: str, fault: Any, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = candidates(direction)
    wrong = found.configs[1]
    plain = tune.forced_config

    @contextmanager
    def forced(choice: Any) -> Iterator[None]:
        nonlocal broken
        broken = choice(found.kernel, []) is wrong
        with plain(choice):
            yield
        broken = False

    def spoilt(*args: Any, **kwargs: Any) -> Any:
        result = run(*args, **kwargs)
        if not broken:
            return result
        return fault(result) if isinstance(result, torch.Tensor) else tuple(fault(part) for part in result)

    broken = False
    if direction == "forward":
        run: Any = EXAMPLES.function
        examples = type(EXAMPLES)(spoilt, {}, make_here, {"small": SMALL})
        monkeypatch.setattr(f"{__name__}.EXAMPLES_HERE", examples)
    else:
        run = torch.autograd.grad
        monkeypatch.setattr(torch.autograd, "grad", spoilt)
    monkeypatch.setattr(tune, "forced_config", forced)
    entry, timed = tuned(found)
    assert len(timed[0]) == entry["configs_timed"] == 2 and not any(found.part(wrong) in turn for turn in timed)
    (reason,) = entry["left_out"].values()
    assert why in reason and entry["config"] != {**wrong.kwargs, "num_warps": wrong.num_warps, "num_stages": 1}


def test_a_config_that_hung_is_not_run_again_and_each_is_a_part_while_it_runs() -> None:
    found, parts = candidates(), list[str]()

    def part(name: str) -> Any:
        parts.append(name)
        return nullcontext()

    hung = found.part(found.configs[1])
    entry, timed = tuned(found, without={hung: "took over 30 s"}, watch=Watch(part))
    assert parts == timed[0] == [found.part(found.configs[0]), found.part(found.configs[2])]
    assert list(entry["left_out"].values()) == ["took over 30 s"] and entry["ms"] == 2.0


def test_a_kernel_of_which_nothing_can_be_timed_is_named_and_the_others_stand(
    monkeypatch: pytest.MonkeyPatch, no_lock: None
) -> None:
    told: list[Any] = []
    unfit = tune.Candidates("rms_norm_bwd_kernel", KEY, "backward", [], {"ROWS=4": "does not fit"})
    monkeypatch.setattr(tune, "device_target", lambda device: TARGETS["sm_90"])
    on_a_gpu(monkeypatch)
    monkeypatch.setattr(tune, "candidates_of", lambda *_: [unfit, candidates()])

    def time(calls: dict[str, Call], **_: Any) -> dict[str, list[float]]:
        return {name: [1.0, 1.0] for name in calls}

    monkeypatch.setattr(tune, "time_in_turns", time)
    with pytest.raises(ToolBroke, match=r"rms_norm_bwd_kernel at small: \{'ROWS=4': 'does not fit'\}"):
        tune.tune_op(EXAMPLES_HERE, CPU, shapes=["small"], watch=Watch(so_far=told.append))
    assert [[entry["kernel"] for entry in entries] for entries in told] == [["rms_norm_fwd_kernel"]]


def test_a_config_that_breaks_the_context_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def wait(device: torch.device) -> None:
        raise RuntimeError("CUDA error: an illegal instruction was encountered")

    monkeypatch.setattr(tune, "wait_for", wait)
    with pytest.raises(PartBroke, match="a config broke the device's context: RuntimeError: CUDA error"):
        tune._disagreement("a config", lambda: [], [], CPU)


def test_what_is_unfit_says_why() -> None:
    target = TARGETS["sm_90"]
    compiled = SimpleNamespace(metadata=SimpleNamespace(shared=target.block_shared + 1), run=True)
    assert "bytes of shared memory" in (tune._unfit(compiled, target) or "")
    compiled.metadata.shared = 0
    assert tune._unfit(compiled, target) is None
    assert tune._unfit(ValueError("no"), target) == "ValueError: no"


@pytest.mark.parametrize(("ms_of_matmuls", "wins"), [(2.0, True), (1.0, False)])
def test_a_kernel_that_is_slower_than_what_it_is_instead_of_is_not_locked(
    ms_of_matmuls: float, wins: bool, monkeypatch: pytest.MonkeyPatch, no_lock: None
) -> None:
    found = candidates()
    kernel = KERNELS[found.kernel]
    monkeypatch.setattr(kernel, "instead_of", "matmuls")
    monkeypatch.setattr(tune, "device_target", lambda device: TARGETS["sm_90"])
    on_a_gpu(monkeypatch)
    monkeypatch.setattr(tune, "candidates_of", lambda *_: [found])

    def time(calls: dict[str, Call], **_: Any) -> dict[str, list[float]]:
        return {name: [ms_of_matmuls if name == "matmuls" else 1.0] * 2 for name in calls}

    monkeypatch.setattr(tune, "time_in_turns", time)
    gpu = torch.device("cuda")
    assert not kernel.takes_over(KEY, gpu) and kernel.takes_over(KEY, CPU)
    with modes.forced_config(modes.nth_config(0)):
        assert kernel.takes_over(KEY, gpu)
    entries = tune.tune_op(EXAMPLES_HERE, CPU, shapes=["small"])
    assert [(entry["ms"], entry["ms_of_default"], entry["configs_timed"]) for entry in entries] == [
        (1.0, 2.0, 3)
    ] * wins
    assert kernel.takes_over(KEY, gpu) == wins


@pytest.fixture
def two_forms(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    """A kernel whose space has four configs of its own, the default first, and then two of another form."""

    def plain() -> None:
        pass

    monkeypatch.setattr(launching, "KERNELS", {})
    space = [*(config(TILE=tile) for tile in (16, 32, 64, 128)), *(config(TILE=64, GROUPS=n) for n in (1, 2))]
    return Kernel(SimpleNamespace(fn=plain), lambda key: space, {"GROUPS": (None, lambda *args, **kwargs: (args, {}))})


def test_forms_that_the_contract_does_not_hold_are_left_out(two_forms: Kernel) -> None:
    found = tune.Candidates("plain", {}, "forward", two_forms.space({})[1:])
    tune._leave_out_other_forms(found)
    assert found.configs == two_forms.space({})[1:4] and found.default == two_forms.space({})[0]
    assert all("contract fails" in why for why in found.left_out.values()) and len(found.left_out) == 2


def test_the_first_configs_of_a_check_are_some_of_each_form(two_forms: Kernel) -> None:
    first: list[Any] = []
    for index in range(3):
        with modes.forced_config(modes.nth_config(index)):
            first.append(two_forms.choose({}, CPU).kwargs)
    assert first == [{"TILE": 16}, {"TILE": 64, "GROUPS": 1}, {"TILE": 32}]


def test_without_a_gpu_nothing_is_tuned() -> None:
    with pytest.raises(BadInput, match="on a GPU only"):
        tune.tune_op(EXAMPLES, CPU, shapes=["norm 295k x 512"])
