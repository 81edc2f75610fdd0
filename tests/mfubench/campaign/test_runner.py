"""A task that crashes, hangs or breaks its process costs itself and no other; a later call goes on."""

from pathlib import Path
from time import monotonic

import pytest
import torch

from mfubench import exhausted
from mfubench.campaign.plan import Task
from mfubench.campaign.runner import Outcome, Worker, _usable, run_campaign
from mfubench.campaign.store import ABSENT, DONE, FAILED, Store
from mfubench.campaign.tasks import proved
from mfubench.errors import BadInput
from tests.mfubench.campaign.loops import act

HERE = {"device_name": "a CPU"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    opened = Store(tmp_path / "campaign")
    opened.open(HERE)
    return opened


def task(name: str, do: str) -> Task:
    return Task("profile", name, {"do": do})


def run(store: Store, *tasks: Task, budget_s: float = 60, task_limit_s: float = 30, side_by_side: int = 1) -> Outcome:
    return run_campaign(
        tasks, store, "cpu",
        budget_s=budget_s, task_limit_s=task_limit_s, progress=lambda stage, done: None, side_by_side=side_by_side,
        loop=act,
    )  # fmt: skip


def test_what_befalls_one_task_leaves_the_others(store: Store) -> None:
    names = ("succeed", "crash", "break", "fail", "absent")
    outcome = run(store, *(task(name, name) for name in names), task("last", "succeed"))
    assert outcome == Outcome(done=2, before=0, failed=3, absent=1, left=0)
    found = {item["task"]: item for item in store.results("profile")}
    assert found["profile/crash"]["reason"] == "its process ended with code 9"
    assert found["profile/break"]["status"] == FAILED and found["profile/absent"]["status"] == ABSENT
    pids = [found[f"profile/{name}"]["document"]["pid"] for name in ("succeed", "last")]
    assert pids[0] != pids[1], "after a crash and after a broken context the process is another"


def test_a_process_that_ends_between_two_tasks_is_neithers_failure(store: Store) -> None:
    """A kernel's late fault may end it after the result has gone out."""
    worker = Worker("cpu", store.folder, act)
    first = worker.run(task("first", "die after"), 30)
    worker._process.join()
    second = worker.run(task("last", "succeed"), 30)
    worker.close()
    assert first[0] == second[0] == DONE


def test_a_worker_that_is_gone_when_its_task_comes_costs_that_task_alone(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It died after it was looked for: the pipe is broken."""
    worker = Worker("cpu", store.folder, act)
    pipe = worker._started()
    worker._process.kill()
    worker._process.join()
    monkeypatch.setattr(worker, "_started", lambda: pipe)
    assert worker.run(task("one", "succeed"), 30) == (FAILED, "its process ended with code -9", None)


def test_a_broken_device_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_device: torch.device) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    released: list[torch.device] = []
    monkeypatch.setattr(exhausted, "release", lambda _, device: released.append(device))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _device: None)
    assert _usable(torch.device("cuda")) and released == [torch.device("cuda")]
    monkeypatch.setattr(torch.cuda, "synchronize", broken)
    assert not _usable(torch.device("cuda")) and _usable(torch.device("cpu"))


def test_a_task_that_hangs_is_given_up(store: Store) -> None:
    start = monotonic()
    outcome = run(store, task("hang", "hang"), task("last", "succeed"), task_limit_s=8)
    assert outcome.failed == 1 and outcome.done == 1 and monotonic() - start < 50
    (hung,) = (item for item in store.results("profile") if item["task"] == "profile/hang")
    assert hung["reason"] == "gave up after 8 s"


def test_what_is_done_is_not_done_again_and_what_failed_is(store: Store) -> None:
    run(store, task("one", "succeed"), task("two", "fail"))
    first = store.read("profile", "one")
    outcome = run(store, task("one", "succeed"), task("two", "succeed"))
    assert outcome == Outcome(done=1, before=1, failed=0, absent=0, left=0)
    assert store.read("profile", "one") == first and store.is_done(task("two", "succeed"))


def test_nothing_is_begun_when_the_budget_is_spent(store: Store) -> None:
    assert run(store, task("one", "succeed"), budget_s=0.1) == Outcome(done=0, before=0, failed=0, absent=0, left=1)
    assert store.results("profile") == []


def test_a_folder_belongs_to_one_device_and_one_code(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.open(HERE)
    with pytest.raises(BadInput, match="campaign of device a CPU, this is a GPU; choose another --out"):
        store.open({"device_name": "a GPU"})
    monkeypatch.setattr("mfubench.campaign.store.code_hash", lambda: "0" * 16)
    with pytest.raises(BadInput, match=f"this is {'0' * 16}"):
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
            store, "cpu", budget_s=60, task_limit_s=50, progress=interrupt, side_by_side=2, loop=act,
        )  # fmt: skip
    assert store.results("contract") == [] and monotonic() - start < 40


def test_an_op_is_proved_by_all_parts_of_its_contract_in_the_dtype_that_is_timed(store: Store) -> None:
    def part(op: str, index: int, *failed: str, status: str = DONE) -> None:
        failures = [{"case": {"dtype": dtype}} for dtype in failed]
        document = {"ops": [{"op": op, "failed": len(failures), "failures": failures}]} if status == DONE else None
        store.write(Task("contract", f"{op}-{index}", {"op": op, "part": index, "parts": 2}), status, None, document)

    for index in range(2):
        part("gdpa", index)
        part("gdpa_block", index, *["fp32"] * index)
        part("rms_norm", index, *["bf16"] * index)
        part("layer_norm", index, status=(DONE, FAILED)[index])
    part("seed_pooling", 0)
    assert proved(store) == ["gdpa", "gdpa_block"]


def test_a_task_that_leaves_a_part_out_is_run_again_in_a_new_process(store: Store) -> None:
    assert run(store, task("first", "succeed"), task("again", "again")) == Outcome(2, 0, 0, 0, 0)
    found = {name: store.read("profile", name) for name in ("first", "again")}
    assert found["again"] and found["first"] and found["again"]["arguments"] == {"do": "again"}
    assert found["again"]["document"]["pid"] != found["first"]["document"]["pid"]
