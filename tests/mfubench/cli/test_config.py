"""Defaults of options from a file: which file, which options, what goes before it, and what is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mfubench.cli import main

Invoke = Callable[..., tuple[int, str, str]]
NAMES = ("mfubench.toml", "pyproject.toml")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def invoke(capsys: pytest.CaptureFixture[str]) -> Invoke:
    def run(*arguments: str) -> tuple[int, Any, str]:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        out, err = capsys.readouterr()
        return int(str(ended.value.code)), out, err

    return run


def shown(invoke: Invoke, *arguments: str) -> dict[tuple[str, str], Any]:
    code, out, _ = invoke("config", "show", "--json", *arguments)
    assert code == 0
    return {(row["command"], row["option"]): (row["value"], row["origin"]) for row in json.loads(out)["options"]}


def test_a_file_sets_defaults_and_what_is_typed_goes_before(here: Path, invoke: Invoke) -> None:
    (here / "mfubench.toml").write_text('[profile]\nsize = "tiny"\nbatch-size = 2\nsteps = 2\nset = ["width=32"]\n')
    code, out, _ = invoke("profile", "dlrm", "--batch-size", "3", "--quiet", "--json")
    workload = json.loads(out)["workload"]
    assert code == 0 and (workload["size"], workload["batch_size"], workload["steps"]) == ("tiny", 3, 2)
    assert workload["overrides"] == {"width": "32"}


def test_what_is_set_is_shown_with_where_it_is_from(here: Path, invoke: Invoke) -> None:
    assert shown(invoke) == {}
    (here / "pyproject.toml").write_text('[project]\nname = "mine"\n[tool.mfubench.gate.check]\nbase = "main"\n')
    assert shown(invoke) == {("gate check", "--base"): ("main", "pyproject.toml")}
    (here / "pyproject.toml").write_text('[project]\nname = "mine"\n')
    (here / "mfubench.toml").write_text("[compare]\nforce = true\n[gate.limits]\nstep_time = 0.1\n")
    assert shown(invoke) == {("compare", "--force"): (True, "mfubench.toml")}
    everything = shown(invoke, "--verbose")
    assert everything["profile", "--steps"] == (20, "default") and everything["compare", "--force"][0] is True
    assert "mfubench.toml sets one option" in invoke("config", "show")[1]


@pytest.mark.parametrize(
    ("line", "refused"),
    [
        ('batch-size = "12"', None),
        ('set = "width=32"', None),
        ("size = 3", "--size '3' is unknown"),
        ("set = [1]", "--set '1' has no '='"),
        ('batch-size = "0"', "--batch-size 0"),
    ],
)
def test_values_are_shown_as_commands_would_take_them(
    line: str, refused: str | None, here: Path, invoke: Invoke
) -> None:
    (here / "mfubench.toml").write_text(f"[profile]\n{line}\n")
    code, _, err = invoke("config", "show")
    assert (code, err) == (0, "") if refused is None else code == 2 and refused in err


def test_a_lone_value_is_a_list_of_one(here: Path, invoke: Invoke) -> None:
    (here / "mfubench.toml").write_text('[plan]\nsize = "tiny"\n')
    assert shown(invoke)["plan", "--size"] == (["tiny"], "mfubench.toml")


def test_what_the_parser_refuses_is_said_to_be_from_the_file(here: Path, invoke: Invoke) -> None:
    (here / "mfubench.toml").write_text('[profile]\nsteps = "many"\n')
    code, _, err = invoke("profile", "dlrm")
    assert code == 2 and "'--steps'" in err and "(from the configuration; see `mfubench config show`)" in err


def test_two_files_are_one_too_many(here: Path, invoke: Invoke) -> None:
    (here / "mfubench.toml").write_text("[profile]\nsteps = 3\n")
    (here / "pyproject.toml").write_text("[tool.mfubench.gate.limits]\nbytes = 0.5\n")
    code, _, err = invoke("models")
    assert code == 2 and "mfubench.toml and pyproject.toml both configure mfubench" in err


def test_a_limit_may_stand_beside_options_of_the_gate(here: Path) -> None:
    from mfubench.gate.policy import read_policy

    (here / "mfubench.toml").write_text('[gate.check]\nbase = "main"\n[gate.limits]\nstep_time = 0.1\n')
    assert read_policy(None).limits["step_time"] == 0.1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[profle]\n", "mfubench.toml: profle is unknown; did you mean profile? allowed: profile, sweep"),
        ("[profile]\nstepz = 2\n", "mfubench.toml: profile: stepz is unknown; did you mean steps?"),
        ("[gate.chekc]\n", "mfubench.toml: gate: chekc is unknown; did you mean check?"),
        ("profile = 3\n", "mfubench.toml: profile is 3, not a table"),
        ("[profile\n", "mfubench.toml is not TOML"),
        ('[models]\nmarkdown = "maybe"\n', "models: markdown = 'maybe'; allowed: true or false"),
        ("[plan]\nseed = 2024-01-01\n", "plan: seed = datetime.date(2024, 1, 1); allowed: text or a number"),
        ("[plan]\nmemory = inf\n", "plan: memory = inf; allowed: text or a number"),
        ("[plan]\nmode = ['infer']\n", "plan: mode = ['infer']; allowed: text or a number"),
        ("[plan]\nbatch-size = true\n", "plan: batch-size = True; allowed: text or a number"),
        ("[plan]\njson = true\n", "plan: json belongs to one call; give it on the command line"),
        ('[profile]\nout = "x"\n', "profile: out belongs to one call"),
        ('[profile]\nlock = ""\n', "profile: lock = ''; allowed: text or a number"),
        ("[gate]\nwaiver = 1\n", "gate: waiver is unknown; did you mean waivers?"),
    ],
)
def test_what_a_file_cannot_say_is_refused_in_one_line(here: Path, invoke: Invoke, text: str, says: str) -> None:
    (here / "mfubench.toml").write_text(text)
    code, out, err = invoke("models")
    assert (code, out, len(err.splitlines())) == (2, "", 1) and says in err


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[profile]\nsteps = "many"\n', "profile: steps = 'many': "),
        ("[profile]\nsteps = 2.5\n", "profile: steps = 2.5: "),
        ("[profile]\nbatch-size = 0\n", "profile: --batch-size 0; allowed: 1 or more"),
        ('[profile]\nmode = "tst"\n', "profile: --mode 'tst' is unknown; allowed: train, infer"),
        ('[profile]\nimpl = "auto,gdpa"\n', "profile: impl='auto,gdpa'; allowed: "),
        ('[profile]\nsize = "hug"\n', "profile: --size 'hug' is unknown; allowed: tiny, small"),
        ('[profile]\ntimeout = "soon"\n', "profile: --timeout soon; allowed: a time above 0, up to 500h"),
        ('[profile]\nset = ["width"]\n', "profile: --set 'width' has no '='"),
        ('[profile]\ndata = "criteo:x"\n', "profile: data source 'criteo:x' is unknown; allowed: synthetic"),
        ('[kernels.tune]\ncompile = "all"\n', "kernels.tune: --compile 'all' is unknown; allowed: none, regions"),
        ('[plan]\ngpu = ["H200", "H20x"]\n', "plan: --gpu 'H20x' is unknown"),
        ('[optimize]\njudge = "taste"\nbudget = "9x"\n', "--budget 9x; allowed: a time above 0"),
        ('[optimize]\njudge = "taste"\nbudget = 9\n', "optimize: --judge 'taste' is unknown; allowed: time, numbers"),
        ('[scale]\nmodels = "dlrm, nope"\n', "scale: --model 'nope' is unknown; allowed: transformer"),
        ('[gate.check]\ntarget = ["sm_70"]\n', "gate.check: --target sm_70 is unknown; allowed: sm_80"),
        ('[campaign]\nstage = "contrac"\n', "campaign: --stage 'contrac' is unknown; allowed: calibration"),
        ("[gate.limits]\nstep_tim = 1\n", "limits: step_tim is unknown; did you mean step_time?"),
    ],
)
def test_what_a_command_would_refuse_is_refused_where_it_is_shown(
    here: Path, invoke: Invoke, text: str, says: str
) -> None:
    (here / "mfubench.toml").write_text(text)
    code, out, err = invoke("config", "show")
    assert (code, out, len(err.splitlines())) == (2, "", 1) and says in err and "mfubench.toml" in err


def test_what_a_command_takes_is_shown(here: Path, invoke: Invoke) -> None:
    text = """
[profile]
size = "tiny"
timeout = 600
impl = "auto,gdpa=reference"
set = ["width=32"]
[plan]
gpu = ["H200", "T4"]
size = ["tiny", "base"]
memory = 80.5
[scale]
models = "dlrm,wukong"
sizes = "tiny, small"
data = "kuairand:anywhere"
[optimize]
budget = "20m"
"""
    (here / "mfubench.toml").write_text(text)
    assert len(shown(invoke)) == 11
