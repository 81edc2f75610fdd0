"""What a request for a gate comes to, before anything is measured."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mfubench.errors import BadInput
from mfubench.gate import run
from mfubench.gate.judge import Judged, Question
from mfubench.gate.rows import Row
from mfubench.gate.run import AskedModels, Request, run_gate, run_self_check
from mfubench.kernels.targets import TARGETS
from mfubench.progress import silent
from tests.mfubench.gate.repository import a_repository

UNDECIDED = Row("INCONCLUSIVE", "net:build", "time", "step_time", None, None, "the budget ended")
Asked = list[tuple[Question, dict[str, Any]]]
NET = AskedModels(["net:build"], {"device": "cpu"})


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asked:
    """What is judged, which is always undecided, in a repository with a model."""
    monkeypatch.chdir(a_repository(tmp_path / "repository"))
    found: Asked = []

    def judge(question: Question, base: Any, head: Any, **how: Any) -> Judged:
        assert base.folder != head.folder == Path.cwd() and base.folder.is_dir()
        found.append((question, how))
        return Judged([UNDECIDED])

    monkeypatch.setattr(run, "judge", judge)
    return found


def test_what_is_not_timed_is_compiled_for_all_targets(asked: Asked) -> None:
    document = run_gate(Request(NET, "main"), silent)
    ((question, how),) = asked
    assert list(question.workloads) == ["net:build"] and question.targets == list(TARGETS)
    assert how["timed_on"] is None and question.limits["bytes"] == 0.0
    assert (document["verdict"], document["exit_code"], document["targets"]) == ("INCONCLUSIVE", 0, list(TARGETS))


def test_what_is_timed_on_a_cpu_is_compiled_for_no_gpu(asked: Asked) -> None:
    request = Request(NET, "main", timed=True, budget_s=7.0, exits={"strict": True, "require_baseline": False})
    document = run_gate(request, silent)
    ((question, how),) = asked
    assert question.targets == [] and (how["timed_on"], how["budget_s"]) == ("cpu", 7.0)
    assert document["exit_code"] == 3


@pytest.mark.parametrize(("capability", "targets"), [((9, 0), ["sm_90"]), ((7, 5), [])])
def test_what_is_timed_on_a_gpu_is_compiled_for_it(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], targets: list[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert run._targets_to_compile_for((), "cuda") == targets


def test_targets_that_are_given_are_taken_once_each(asked: Asked) -> None:
    for timed in (False, True):
        run_gate(Request(NET, "main", targets=("sm_90", "sm_80", "sm_90"), timed=timed), silent)
    assert [question.targets for question, _ in asked] == [["sm_90", "sm_80"]] * 2


def test_rows_are_named_by_model_and_size(asked: Asked) -> None:
    run_gate(Request(AskedModels(["net:build", "kunlun"], {"device": "cpu", "size": "tiny"}), "main"), silent)
    assert list(asked[0][0].workloads) == ["net:build", "kunlun tiny"]


def test_data_are_found_from_bases_folder_too(asked: Asked) -> None:
    run_gate(Request(AskedModels(["net:build"], {"device": "cpu", "data": "kuairand:logs"}), "main"), silent)
    assert asked[0][0].workloads["net:build"].data == f"kuairand:{Path.cwd() / 'logs'}"


def test_bad_input_is_said_before_base_is_fetched(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "both_sides", None)
    with pytest.raises(BadInput, match="given twice"):
        run_gate(Request(AskedModels(["net:build"] * 2), "main"), silent)
    with pytest.raises(BadInput, match="--target sm_70"):
        run_gate(Request(NET, "main", targets=("sm_70",)), silent)
    with pytest.raises(BadInput, match="cannot be read"):
        run_gate(Request(NET, "main", config=Path("none.toml")), silent)


def test_a_self_check_is_of_the_working_directory(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        run, "self_check", lambda side, spec, device, **how: {"side": side, "spec": spec, "device": device, **how}
    )
    Path("mfubench.toml").write_text("[gate.limits]\nstep_time = 0.1\n", encoding="utf-8")
    found = run_self_check(NET, (), None, budget_s=5.0, progress=silent)
    assert found["side"].folder == Path.cwd() and found["spec"]["model"] == found["benchmark"] == "net:build"
    assert (found["device"], found["margin"], found["budget_s"]) == ("cpu", 0.1, 5.0)
    assert found["environment"]["device_type"] == "cpu"
