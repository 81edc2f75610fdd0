"""A task that crashes, hangs or breaks its process costs itself and no other; a later call goes on."""

from pathlib import Path
from time import monotonic

import pytest

from mfubench.campaign.plan import Task
from mfubench.campaign.runner import Limits, Outcome, run_campaign
from mfubench.campaign.store import Store
from mfubench.campaign.tasks import proved
from mfubench.errors import BadInput
from mfubench.worker import ABSENT, DONE, FAILED, PART
from tests.mfubench.campaign.loops import act

HERE = {"device_name": "a CPU", "torch": "2.11"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    opened = Store(tmp_path / "campaign")
    opened.open(HERE)
    return opened


def task(name: str, do: str) -> Task:
    return Task("profile", name, {"do": do})


LIMITS = Limits(100, 30, 30)


def run(store: Store, *tasks: Task, limits: Limits = LIMITS, side_by_side: int = 1) -> Outcome:
    return run_campaign(
        tasks, store, "cpu",
        limits=limits, progress=lambda stage, done: None, side_by_side=side_by_side, work=act,
    )  # fmt: skip


def test_what_befalls_one_task_leaves_the_others(store: Store) -> None:
    names = ("succeed", "crash", "fill the device", "fail", "absent")
    outcome = run(store, *(task(name, name) for name in names), task("last", "succeed"))
    assert outcome == Outcome(done=2, before=0, failed=3, absent=1, left=0)
    found = {item["task"]: item for item in store.results("profile")}
    assert found["profile/crash"]["reason"] == "its process ended with code 9"
    assert found["profile/fail"]["status"] == FAILED and found["profile/absent"]["status"] == ABSENT
    full = found["profile/fill the device"]
    assert full["status"] == FAILED and full["reason"].startswith("out of memory: CUDA out of memory. Tried to alloc")
    pids = [found[f"profile/{name}"]["document"]["pid"] for name in ("succeed", "last")]
    assert pids[0] != pids[1], "after a crash the process is another"


def test_a_task_that_hangs_is_given_up(store: Store) -> None:
    start = monotonic()
    outcome = run(store, task("hang", "hang"), task("last", "succeed"), limits=Limits(60, 3, 30))
    assert outcome.failed == 1 and outcome.done == 1 and monotonic() - start < 50
    (hung,) = (item for item in store.results("profile") if item["task"] == "profile/hang")
    assert hung["reason"] == "was cut off at its limit of 3 s"


def test_what_is_done_is_not_done_again_and_what_failed_is(store: Store) -> None:
    run(store, task("one", "succeed"), task("two", "fail"))
    first = store.read("profile", "one")
    outcome = run(store, task("one", "succeed"), task("two", "succeed"))
    assert outcome == Outcome(done=1, before=1, failed=0, absent=0, left=0)
    assert store.read("profile", "one") == first and store.is_done(task("two", "succeed"))


def test_nothing_is_begun_when_the_budget_is_spent(store: Store) -> None:
    assert run(store, task("one", "succeed"), limits=Limits(0.1, 30, 30)) == Outcome(
        done=0, before=0, failed=0, absent=0, left=1
    )
    assert store.results("profile") == []


def test_a_folder_belongs_to_one_device_toolchain_and_code(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.open(HERE)
    with pytest.raises(BadInput, match=r"another campaign \(device a CPU there, a GPU here\); choose another --out"):
        store.open({**HERE, "device_name": "a GPU"})
    with pytest.raises(BadInput, match=r"another campaign \(torch 2\.11 there, 2\.13 here\); choose another --out"):
        store.open({**HERE, "torch": "2.13"})
    monkeypatch.setattr("mfubench.campaign.store.code_hash", lambda: "0" * 16)
    with pytest.raises(BadInput, match=r"another campaign \(other code\)"):
        store.open(HERE)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema_version": 99, "identity": {}}'])
def test_a_folder_that_holds_no_campaign(tmp_path: Path, text: str) -> None:
    with pytest.raises(BadInput, match="cannot read"):
        Store(tmp_path).index()
    (tmp_path / "campaign.json").write_text(text)
    with pytest.raises(BadInput, match=r"campaign\.json is no"):
        Store(tmp_path).index()


def test_a_result_that_is_cut_off_counts_as_none(store: Store) -> None:
    store.write(task("one", "succeed"), DONE, None, {})
    store.place(task("one", "succeed")).write_text('{"status": "do')
    assert not store.is_done(task("one", "succeed"))


def test_some_stages_run_side_by_side_and_the_timed_ones_alone(store: Store) -> None:
    def sleepy(stage: str, count: int) -> list[Task]:
        return [Task(stage, str(n), {"do": "sleep"}) for n in range(count)]

    tasks = [*sleepy("contract", 3), *sleepy("bench", 2)]
    assert run(store, *tasks, side_by_side=3).done == 5
    spans = {s: [tuple(found["document"]["span"]) for found in store.results(s)] for s in ("contract", "bench")}
    begins, ends = zip(*spans["contract"], strict=True)
    assert max(begins) < min(ends), "all three at once"
    (one, two) = sorted(spans["bench"])
    assert one[1] <= two[0] and max(end for _, end in spans["contract"]) <= one[0]


def test_an_interrupt_ends_what_runs_and_writes_nothing_of_it(store: Store) -> None:
    def interrupt(stage: str, done: float) -> None:
        if stage.endswith("last"):
            raise KeyboardInterrupt

    start = monotonic()
    with pytest.raises(KeyboardInterrupt):
        run_campaign(
            [Task("contract", "hang", {"do": "hang"}), Task("contract", "last", {"do": "succeed"})],
            store, "cpu", limits=Limits(200, 50, 50), progress=interrupt, side_by_side=2, work=act,
        )  # fmt: skip
    assert store.results("contract") == [] and monotonic() - start < 40


def test_an_op_is_proved_by_all_parts_of_its_contract_in_the_dtype_that_is_timed(store: Store) -> None:
    def part(op: str, index: int, *failed: str, status: str = DONE, config: int | None = None) -> None:
        failures = [{"case": {"dtype": dtype, "config": config}} for dtype in failed]
        document = {"ops": [{"op": op, "failed": len(failures), "failures": failures}]} if status == DONE else None
        store.write(Task("contract", f"{op}-{index}", {"op": op, "part": index, "parts": 2}), status, None, document)

    for index in range(2):
        part("gdpa", index)
        part("gdpa_block", index, *["fp32"] * index)
        part("rms_norm", index, *["bf16"] * index)
        part("layer_norm", index, status=(DONE, FAILED)[index])
        part("rotary_time", index, *["bf16"] * index, config=3)
    part("seed_pooling", 0)
    assert proved(store) == ["gdpa", "gdpa_block", "rotary_time"], "with what a launch takes"
    assert proved(store, any_config=True) == ["gdpa", "gdpa_block"]


def test_a_task_whose_part_hangs_is_done_without_it(store: Store) -> None:
    parts = Task("bench", "one", {"do": "parts", "parts": {"a": "work", "slow": "hang"}})
    assert run(store, parts, limits=Limits(60, 50, 2)) == Outcome(1, 0, 0, 0, 0)
    (found,) = store.results("bench")
    assert found["document"]["done"] == ["a"] and found["arguments"] == parts.arguments


def test_what_stands_of_a_task_is_kept_and_the_task_tried_again(store: Store) -> None:
    begun = Task("bench", "one", {"do": "so far, then hang"})
    assert run(store, begun, limits=Limits(60, 2, 30)) == Outcome(0, 0, failed=1, absent=0, left=0)
    (found,) = store.results("bench")
    assert (found["status"], found["document"]) == (PART, {"rows": [1]})
    assert found["reason"] == "was cut off at its limit of 2 s"
    assert store.documents("bench") == [{"rows": [1]}] and not store.is_done(begun)
    store.write(begun, FAILED, "no", None)
    assert store.documents("bench") == [{"rows": [1]}], "a failure takes nothing away"


def test_a_task_with_other_arguments_is_another(store: Store) -> None:
    first = Task("bench", "one", {"do": "succeed", "peers": ["a:b"], "ways": (1, 2)})
    assert run(store, first).done == 1 and store.is_done(first)
    assert not store.is_done(Task("bench", "one", {**first.arguments, "peers": ["c:d"]}))
    assert run(store, first) == Outcome(0, before=1, failed=0, absent=0, left=0)


def test_on_a_gpu_a_task_has_a_share_of_the_budget_at_most() -> None:
    limits = Limits(100, 50, 7, {"bench": 0.2, "contract": 0.3})
    stages = [Task(stage, "one") for stage in ("bench", "contract", "road")]
    assert [limits.of(one) for one in stages] == [20, 30, 50]
    assert [limits.of_part(one) for one in stages] == [7, 15, 7]


def test_compiling_leaves_the_budget_to_what_is_timed(store: Store) -> None:
    """At most a share of it, and what is then left over waits for the next call."""
    compiling = [Task("compile", str(n), {"do": "sleep"}) for n in range(20)]
    outcome = run(store, *compiling, task("timed", "succeed"), limits=Limits(30, 30, 30))
    assert store.is_done(task("timed", "succeed")) and outcome.left + outcome.failed >= 10
