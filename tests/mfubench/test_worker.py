"""Work that crashes, hangs or breaks its process costs itself; a part of it that does so costs that part."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
import torch

from mfubench import exhausted, worker
from mfubench.errors import ToolBroke
from mfubench.group import start
from mfubench.worker import ABSENT, DONE, FAILED, PART, Answer, Place, Worker
from tests.mfubench.campaign.loops import act


@pytest.fixture
def made() -> Iterator[Worker]:
    made = Worker("cpu")
    yield made
    made.close()


def run(made: Worker, do: str, limit_s: float = 60, part_limit_s: float = 60, **arguments: Any) -> Answer:
    return made.run(act, {"arguments": {"do": do, **arguments}}, limit_s=limit_s, part_limit_s=part_limit_s)


def gone(pid: int) -> bool:
    """Whether the process has ended, within some seconds; a zombie has."""
    for _ in range(100):
        try:
            with open(f"/proc/{pid}/stat") as stat:
                state = stat.read().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.1)
    return False


def test_a_process_is_kept_until_it_breaks(made: Worker) -> None:
    first, second = run(made, "succeed"), run(made, "succeed")
    assert first.status == DONE and first == second
    assert run(made, "fail") == Answer(FAILED, "ValueError: no") and run(made, "absent") == Answer(
        ABSENT, "needs a GPU"
    )
    assert run(made, "succeed") == first
    assert run(made, "crash") == Answer(FAILED, "its process ended with code 9")
    assert run(made, "succeed").document != first.document


def test_a_process_that_ends_between_two_works_is_neithers_failure(made: Worker) -> None:
    """A kernel's late fault may end it after the answer has gone out."""
    first = run(made, "succeed")
    made._process.kill()
    made._process.join()
    assert run(made, "succeed").status == first.status == DONE


def test_a_process_that_is_gone_when_work_comes_costs_that_alone(made: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """It died after it was looked for: the pipe is broken."""
    pipe = made._started()
    made._process.kill()
    made._process.join()
    monkeypatch.setattr(made, "_started", lambda: pipe)
    assert run(made, "succeed") == Answer(FAILED, "its process ended with SIGKILL")


def test_what_hangs_is_ended_with_all_that_it_has_started(made: Worker) -> None:
    start = monotonic()
    answer = run(made, "hang with a child", limit_s=2)
    assert answer.status == PART and answer.reason == "was cut off at its limit of 2 s" and monotonic() - start < 30
    assert all(map(gone, answer.document["pids"]))
    assert run(made, "succeed").status == DONE


def test_parts_that_hang_crash_or_fault_are_left_out_and_the_others_done(made: Worker) -> None:
    parts = {"a": "work", "slow": "hang", "dies": "crash", "faults": "fault", "b": "work"}
    answer = run(made, "parts", part_limit_s=2, parts=parts)
    assert answer.status == DONE and answer.document["done"] == ["a", "b"]
    assert answer.document["without"] == {
        "slow": "took over 2 s", "dies": "its process ended with code 9", "faults": "wrote where it should not",
    }  # fmt: skip


def test_what_stands_is_kept_when_the_time_is_over(made: Worker) -> None:
    kept: list[Any] = []
    arguments = {"arguments": {"do": "so far, then hang"}}
    answer = made.run(act, arguments, limit_s=2, keep=kept.append)
    assert answer == Answer(PART, "was cut off at its limit of 2 s", {"rows": [1]}) and kept == [{"rows": [1]}]


def test_a_part_within_its_own_limit_does_not_outlast_the_whole(made: Worker) -> None:
    answer = run(made, "parts", limit_s=2, part_limit_s=50, parts={"slow": "hang"})
    assert answer == Answer(PART, "was cut off at its limit of 2 s", {"ours": 1})


def test_a_part_that_is_left_out_and_breaks_again_is_a_failure(made: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(made, "_try", lambda *_: worker._Broke("ours", "took over 1 s"))
    assert run(made, "succeed") == Answer(FAILED, "ours: took over 1 s")


def test_a_worker_ends_with_a_parent_that_is_killed() -> None:
    code = """
from tests.mfubench.campaign.loops import act
from mfubench.worker import Worker
if __name__ == "__main__":
    hang = {"arguments": {"do": "hang with a child"}}
    Worker("cpu").run(act, hang, keep=lambda told: print(*told["pids"], flush=True))
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        pids = list(map(int, parent.stdout.readline().split()))
        parent.send_signal(signal.SIGKILL)
    assert len(pids) == 2 and all(map(gone, pids))


def test_a_broken_device_is_not_used_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_device: torch.device) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    released: list[torch.device] = []
    monkeypatch.setattr(exhausted, "release", lambda _, device: released.append(device))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _device: None)
    assert worker._usable(torch.device("cuda")) and released == [torch.device("cuda")]
    monkeypatch.setattr(torch.cuda, "synchronize", broken)
    assert not worker._usable(torch.device("cuda")) and worker._usable(torch.device("cpu"))


def test_a_worker_may_be_killed_while_it_starts(made: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    def killing(*given: Any, **options: Any) -> Any:
        made.kill()
        return start(*given, **options)

    monkeypatch.setattr("mfubench.worker.start", killing)
    with pytest.raises(ToolBroke, match="did not start"):
        run(made, "succeed")


def test_a_worker_in_another_place_imports_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a module that both have, its own; not what only the folder that it leaves or a hidden one has."""
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, here / "src", there / "src"):
        folder.mkdir(parents=True)
        (folder / "twofold.py").write_text("")
        (folder / f"only_{folder.parent.name}_{folder.name}.py").write_text("")
    monkeypatch.chdir(here)
    for folder in (here, here / "src"):
        monkeypatch.syspath_prepend(str(folder))
    with closing(Worker("cpu", place=Place(there, [there / "src"], hidden=[here / "src"]))) as made:
        found = run(made, "import", module="twofold").document
        assert found == {"file": str(there / "src" / "twofold.py"), "folder": str(there)}
        for module in (f"only_{tmp_path.name}_here", "only_here_src"):
            assert f"No module named '{module}'" in str(run(made, "import", module=module).reason)
