"""The command: a whole small campaign, its pages, its table, and bad input."""

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import torch

from mfubench.campaign.plan import Task
from mfubench.campaign.store import Store
from mfubench.cli import main
from mfubench.cli.folders import sole_writer
from mfubench.errors import BadInput
from mfubench.measure.environment import environment
from mfubench.report.campaign import BEGIN, END, campaign_page
from mfubench.report.markdown import render_page

SMALL = ["--model", "transformer", "--stage", "calibration", "--stage", "profile", "--budget", "9m", "--quiet"]


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["campaign", *arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_a_small_campaign_and_its_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a campaign"
    assert run("--out", str(out), *SMALL, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert {item["task"] for item in told["results"]["profile"]} == {
        "profile/transformer-tiny-train-eager",
        "profile/transformer-tiny-infer-eager",
    }
    assert "transformer" in (out / "report.md").read_text() and "</html>" in (out / "report.html").read_text()
    readme = tmp_path / "docs" / "README.md"
    readme.parent.mkdir()
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    (out / "report-9.svg").write_text("of an earlier report")
    capsys.readouterr()
    assert run("--out", str(out), "--table", str(readme), "--json") == 0
    shown = capsys.readouterr()
    assert json.loads(shown.out)["results"] == told["results"] and f"into {readme}" in shown.err
    text = readme.read_text()
    (link,) = re.findall(r"!\[[^]]*\]\(([^)]*)\)", text)
    assert "<svg" in (readme.parent / unquote(link)).read_text() and not (out / "report-9.svg").exists()
    assert not (out / "lock.json").exists()
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    samples = told["results"]["profile"][0]["document"]["step"]["samples_per_s"]
    assert text.count("| transformer | tiny |") == 2 and samples > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budget", "soon"], "--budget soon; allowed: a time above 0"),
        (["--budget", "0s"], "--budget 0s"),
        (["--task-limit", "9d"], "--task-limit 9d"),
        (["--peer-limit", "never"], "--peer-limit never"),
        (["--stage", "lunch"], "--stage lunch is unknown; allowed: calibration"),
        (["--table", "README.md"], "cannot read"),
        (
            ["--stage", "profile", "--size", "xxl", "--model", "dlrm"],
            "--model dlrm has none of --size xxl; it has: tiny",
        ),
        (["--stage", "bench"], "nothing is left of --stage bench; kernels are timed on a GPU only"),
        (["--data", "kuairand:nowhere"], "nowhere"),
        (["--data", "synthetic", "--stage", "scale"], "no log"),
        (["--stage", "road", "--model", "dlrm"], "nothing is left of --stage road --model dlrm"),
    ],
)
def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert run("--out", str(tmp_path / "none"), *arguments) == 2
    told = capsys.readouterr().err
    assert message in told and len(told.splitlines()) == 1
    assert not (tmp_path / "none").exists()


def test_a_folder_where_another_works_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with sole_writer(tmp_path):
        assert run("--out", str(tmp_path), *SMALL) == 2
    assert "another mfubench works there" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_campaign_without_any_result_is_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--out", str(tmp_path / "none"), *SMALL[:4], "--quiet", "--task-limit", "0.1s") == 5
    told = capsys.readouterr().err
    assert "tasks: 1 failed or cut off" in told and f"{tmp_path / 'none'}/report.md says why" in told


def test_a_file_without_markers_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, readme = tmp_path / "campaign", tmp_path / "README.md"
    assert run("--out", str(out), *SMALL, "--quiet") == 0
    readme.write_text("no place\n")
    assert run("--out", str(out), "--table", str(readme)) == 2
    assert readme.read_text() == "no place\n" and BEGIN in capsys.readouterr().err
    readme.write_bytes(b"\xff\xfe")
    assert run("--out", str(out), "--table", str(readme)) == 2
    assert "is not UTF-8" in capsys.readouterr().err


BROKEN = {
    "no result": "{}",
    "a list": "[]",
    "half written": '{"task": "profile/x", "arg',
    "without a document": '{"task": "profile/x", "arguments": {}, "status": "done", "reason": null}',
    "of another kind": '{"task": "profile/x", "arguments": {}, "status": "done", "reason": null, "document": {}}',
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_result_counts_as_none(case: str, tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.open({"device_name": "a CPU", "torch": "2.13"}, [Task("profile", "x"), Task("bench", "y")])
    (tmp_path / "profile").mkdir()
    (tmp_path / "profile" / "x.json").write_text(BROKEN[case])
    shown = render_page(
        campaign_page(store.index(), {"profile": store.shown("profile"), "bench": store.shown("bench")})
    )
    assert "0 of 2 tasks have results" in shown and "1 of profile, 1 of bench; the same command goes on" in shown


@pytest.mark.parametrize("index", ["{", "[]", '{"schema_version": 1, "identity": "x", "environment": {}}', "{}"])
def test_a_broken_index_is_bad_input(index: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "campaign.json").write_text(index)
    assert run("--out", str(tmp_path), "--table", str(tmp_path / "README.md")) == 2
    assert "campaign.json" in capsys.readouterr().err


def test_a_contract_that_does_not_say_its_parts_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is no defect of the tool; a campaign does not begin, nor is a report written, before it is away."""
    store = Store(tmp_path)
    store.open(environment(torch.device("cuda" if torch.cuda.is_available() else "cpu")))
    (tmp_path / "contract").mkdir()
    told = {"task": "contract/gdpa-0", "arguments": {"op": "gdpa"}, "status": "done", "reason": None}
    document: dict[str, Any] = {"ops": [], "environment": {"device_name": store.index()["identity"]["device"]}}
    (tmp_path / "contract" / "gdpa-0.json").write_text(json.dumps({**told, "document": document}))
    says = "contract/gdpa-0.json in the campaign's folder does not say its parts: it is damaged, or of another release"
    assert run("--out", str(tmp_path), *SMALL) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"mfubench: error: {says}; take it away, and") and len(err.splitlines()) == 1
    with pytest.raises(BadInput, match="does not say its parts"):
        campaign_page(store.index(), {"contract": store.shown("contract")})
