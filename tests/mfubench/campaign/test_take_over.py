"""What another campaign proved and tuned of the same kernels is taken over, says whose it is, and is not done again."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from mfubench.campaign.plan import Task, of_kernels
from mfubench.campaign.store import Store
from mfubench.campaign.tasks import proved
from mfubench.errors import BadInput
from mfubench.measure.environment import environment
from mfubench.report.campaign import campaign_page
from mfubench.report.markdown import render_page
from mfubench.worker import ABSENT, DONE, FAILED, PART
from tests.mfubench.campaign.test_command import run

HERE = {"device_name": "a GPU", "torch": "2.11", "triton": "3.6", "date": "2026-11-27", "git_sha": "abc"}
CONTRACT = Task("contract", "gdpa-1", {"op": "gdpa", "part": 0, "parts": 1, "shapes": ["X"]})
TUNE = Task("tune", "gdpa-X", {"op": "gdpa", "shape": "X"})
BOTH = [CONTRACT, TUNE]


def contract(op: str, device: str = "a GPU", *, cases: int = 7) -> dict[str, Any]:
    part = {"op": op, "cases": cases, "failed": 0, "worst_error_of_budget": 0.5, "dtypes": ["bf16"], "failures": []}
    return {"environment": {"device_name": device}, "run_by": device, "ops": [part]}


def tuned(ms: float = 1.5) -> dict[str, Any]:
    entry = {"kernel": "a_kernel", "shape": "X", "key": "d=64", "config": {"TILE": 64}, "ms": ms, "ms_of_default": 2.5}
    return {"entries": [{**entry, "configs_timed": 7, "device": "a GPU"}]}


@pytest.fixture
def earlier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A campaign of other code that is done."""
    store = Store(tmp_path / "earlier")
    with monkeypatch.context() as patched:
        patched.setattr("mfubench.campaign.store.code_hash", lambda: "old code")
        store.open(HERE, BOTH)
    store.write(CONTRACT, DONE, None, contract("gdpa"))
    store.write(TUNE, DONE, None, tuned())
    return store


def opened(folder: Path) -> Store:
    store = Store(folder)
    store.open({**HERE, "date": "2026-12-01"})
    return store


def edit_index(store: Store, **identity: Any) -> None:
    index = store.index()
    index["identity"] = {name: v for name, v in (index["identity"] | identity).items() if v is not None}
    (store.folder / "campaign.json").write_text(json.dumps(index))


def page(store: Store) -> str:
    return render_page(campaign_page(store.index(), {stage: store.shown(stage) for stage in ("contract", "tune")}))


def test_what_is_taken_over_is_done_and_says_whose_it_is(earlier: Store, tmp_path: Path) -> None:
    store = opened(tmp_path / "later")
    store.require_lender(earlier, HERE)
    assert store.take_over(earlier, BOTH) == {"contract": 1, "tune": 1}
    assert all(map(store.is_done, BOTH)) and proved(store) == ["gdpa"] and store.documents("tune") == [tuned()]
    of = {"code": "old code", "git_sha": "abc", "date": "2026-11-27"}
    assert store.read("contract", "gdpa-1") == {**(earlier.read("contract", "gdpa-1") or {}), "of": of}
    told = (
        "the numeric contract of 1 tasks and 1 tuned shapes, from a campaign of code old code (2026-11-27), whose ker"
    )
    assert told in page(store) and "taken over" not in page(earlier)
    assert store.take_over(earlier, BOTH) == {}, "once"
    last = opened(tmp_path / "last")
    assert last.take_over(store, [CONTRACT]) == {"contract": 1}
    assert (last.read("contract", "gdpa-1") or {})["of"] == of, "of the one that ran it"
    assert "numeric contract of 1 tasks, from a campaign of code old code" in page(last)


def test_what_stands_here_is_kept(earlier: Store, tmp_path: Path) -> None:
    store = opened(tmp_path / "later")
    store.write(CONTRACT, DONE, None, contract("gdpa", cases=9))
    store.write(TUNE, PART, "cut off", tuned(9.0))
    assert store.take_over(earlier, BOTH) == {"tune": 1}, "what is cut off is not done"
    (kept,) = store.results("contract")
    assert kept["document"] == contract("gdpa", cases=9) and "of" not in kept
    assert store.documents("tune") == [tuned()]


@pytest.mark.parametrize("status", [FAILED, PART, ABSENT])
def test_what_is_not_done_there_is_left(status: str, earlier: Store, tmp_path: Path) -> None:
    earlier.place(TUNE).unlink()
    earlier.write(TUNE, status, "a reason", tuned() if status == PART else None)
    store = opened(tmp_path / "later")
    assert store.take_over(earlier, BOTH) == {"contract": 1} and not store.results("tune")


def test_what_is_another_task_or_no_result_is_left(earlier: Store, tmp_path: Path) -> None:
    store = opened(tmp_path / "later")
    at_others = Task("contract", "gdpa-1", {**CONTRACT.arguments, "shapes": ["X", "Y"]})
    earlier.write(TUNE, DONE, None, {"no": "entries"})
    assert store.take_over(earlier, [at_others, TUNE]) == {}
    assert not store.results("contract") and not store.results("tune")


def test_only_what_hangs_on_kernels_alone_is_offered() -> None:
    with_tuning, without = of_kernels("cuda", tune=True), of_kernels("cuda", tune=False)
    assert {task.stage for task in with_tuning} == {"contract", "tune"}
    assert {task.stage for task in without} == {"contract"}, "without --tune launches take the configs that they took"
    assert not any("step" in task.arguments for task in with_tuning) and of_kernels("cpu", tune=True)


def test_a_source_that_is_of_other_kernels_names_all_that_differs(earlier: Store, tmp_path: Path) -> None:
    store = Store(tmp_path / "later")
    edit_index(earlier, device="another GPU", torch="2.13", triton="3.7", kernels="0")
    differs = (
        "another campaign (device another GPU there, a GPU here; torch 2.13 there, 2.11 here; triton 3.7 there, 3.6 "
        "here; other kernels); give --from a campaign of the same, or leave it out: the contract is then run anew"
    )
    with pytest.raises(BadInput, match=re.escape(differs)):
        store.require_lender(earlier, HERE)


def test_an_older_index_does_not_tell_its_kernels(earlier: Store, tmp_path: Path) -> None:
    edit_index(earlier, kernels=None)
    with pytest.raises(BadInput, match=r"does not tell its kernels' sources, .*; leave --from out: their contract is"):
        Store(tmp_path / "later").require_lender(earlier, HERE)
    assert "Campaign on a GPU" in page(earlier), "its page is made all the same"


def test_an_older_folder_of_the_same_code_goes_on(tmp_path: Path) -> None:
    store = opened(tmp_path / "later")
    before = store.index()
    edit_index(store, kernels=None)
    store.open(HERE)
    assert store.index() == before, "the same code has the same kernels"


def cpu_campaign(folder: Path) -> Store:
    """One of this machine whose contract is done."""
    store, here = Store(folder), environment(torch.device("cpu"))
    store.open(here)
    for task in of_kernels("cpu", tune=False):
        store.write(task, DONE, None, contract(task.arguments["op"], here["device_name"]))
    return store


def test_the_command_does_not_run_what_it_took_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = cpu_campaign(tmp_path / "earlier").folder, tmp_path / "out"
    count = len(of_kernels("cpu", tune=False))
    command = ["--out", str(out), "--from", str(source), "--stage", "contract", "--quiet", "--json"]
    assert run(*command) == 0
    shown = capsys.readouterr()
    assert f"mfubench: took over {count} contracts from {source}\n" in shown.err
    assert f"tasks: {count} done before" in shown.err
    assert {"code", "git_sha", "date"} == set(json.loads(shown.out)["results"]["contract"][0]["of"])
    assert f"the numeric contract of {count} tasks, from a campaign of code" in (out / "report.md").read_text()
    assert run(*command) == 0
    assert f"took over nothing new from {source}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--from", "nowhere"], "cannot read nowhere/campaign.json"),
        (["--from", "other"], "(other kernels); give --from a campaign of the same"),
        (["--from", "out"], "--from out is --out itself"),
        (["--from", "other", "--table", "README.md"], "--table runs none; give one of them"),
        (["--from", "other", "--ahead", "sm_90"], "--ahead runs none; give one of them"),
    ],
)
def test_bad_input_leaves_nothing(
    more: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    other = Store(Path("other"))
    other.open(environment(torch.device("cpu")))
    edit_index(other, kernels="0")
    assert run("--out", "out", "--stage", "contract", *more) == 2
    told = capsys.readouterr().err
    assert message in told and len(told.splitlines()) == 1 and not Path("out").exists()
