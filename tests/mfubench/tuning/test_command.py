"""The command: what it refuses, and what it leaves in its folder."""

import json
from pathlib import Path
from typing import Any

import pytest

from mfubench.cli import main
from mfubench.tuning import step
from tests.mfubench.report.test_tuning import ENTRIES, told

REFUSED = {
    "no GPU": (["kunlun"], "on a GPU only; here is none"),
    "graphs": (["kunlun", "--compile", "cudagraphs"], "--compile none, regions or model"),
    "no time": (["kunlun", "--budget", "0s"], "--budget 0s"),
    "no time for a config": (["kunlun", "--config-limit", "soon"], "--config-limit soon"),
    "no recipe": (["kunlun", "--recipe", "no.toml"], "no.toml"),
    "a negative batch": (["kunlun", "--batch-size", "-1"], "--batch-size -1"),
}


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["kernels", "tune", *arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.parametrize("case", REFUSED)
def test_it_refuses(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    arguments, mentioned = REFUSED[case]
    assert run(*arguments, "--out", str(tmp_path / "out")) == 2
    out, err = capsys.readouterr()
    assert not out and mentioned in err and not list(tmp_path.iterdir())


def test_it_leaves_a_lock_a_document_and_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given: dict[str, Any] = {}

    def tune_step(subject: Any, **options: Any) -> Any:
        given.update(options, spec=subject.spec)
        options["keep"](ENTRIES[:1])
        given["kept"] = json.loads((out / "lock.json").read_text())["entries"]
        return told()

    monkeypatch.setattr(step, "tune_step", tune_step)
    out = tmp_path / "tuned"
    assert run("kunlun", "--size", "xl", "--again", "--budget", "9m", "--out", str(out), "--json") == 0
    assert json.loads((out / "lock.json").read_text()) == {
        "schema_version": 1,
        "entries": json.loads(json.dumps(ENTRIES)),
    }
    assert json.loads((out / "tune.json").read_text()) == json.loads(capsys.readouterr().out)
    assert {"report.md", "report.html"} <= {file.name for file in out.iterdir()}
    assert [entry["kernel"] for entry in given["kept"]] == ["layer_norm_fwd_kernel"]
    assert (given["again"], given["budget_s"], given["config_limit_s"]) == (True, 540.0, 60.0)
    assert (given["spec"].model, given["spec"].size, given["spec"].impl) == ("kunlun", "xl", "auto")
