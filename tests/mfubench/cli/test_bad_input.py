"""Bad input gets one line on stderr and exit code 2, and leaves nothing behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mfubench.cli import main
from mfubench.errors import TimeUp
from mfubench.measure.calibrate import Calibration
from mfubench.optimize.changes import Change, Compile, UseImpl
from mfubench.optimize.recipe import Kept, Recipe, architecture
from mfubench.timeout import time_limit
from mfubench.workload.spec import Workload
from tests.mfubench.report.factory import a_run

Invoke = Callable[..., tuple[int, str, str]]
COLUMNS = "user_id video_id date hourmin time_ms is_click is_follow is_comment is_forward long_view duration_ms"
HEADER = ",".join([*COLUMNS.split(), "is_profile_enter"])


@pytest.fixture
def invoke(capsys: pytest.CaptureFixture[str]) -> Invoke:
    """Run the command line in this process: exit code, stdout, stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        out, err = capsys.readouterr()
        code = ended.value.code
        assert isinstance(code, int)
        return code, out, err

    return run


def refused(result: tuple[int, str, str], *mentioned: str) -> None:
    """One line, exit code 2, nothing on stdout, and the line names what was given or is allowed."""
    code, out, err = result
    lines = err.splitlines()
    assert (code, out, len(lines)) == (2, "", 1), err
    assert lines[0].startswith("mfubench: error: ")
    for words in mentioned:
        assert words in lines[0]


PROFILE = {
    "more candidates than memory": (
        ["kunlun", "--size", "tiny", "--batch-size", "2", "--candidates", "999999999"],
        ["--batch-size 2: ", "candidates 999999999", "GB are free"],
    ),
    "a file for a module": (["json.py:build"], ["give json:build, a module's name"]),
    "a path for a module": (["./a_folder/json.py:build"], ["give a_folder.json:build, a module's name"]),
    "a path elsewhere": (["/a_folder/json.py:build"], ["run from /a_folder and give json:build, a module's name"]),
    "no number": (["kunlun", "--batch-size", "x"], ["--batch-size", "integer", "profile --help"]),
    "unknown model": (["nope"], ["nope", "transformer", "kunlun"]),
    "unknown size": (["kunlun", "--size", "huge"], ["huge", "tiny", "xxl"]),
    "unknown impl": (["kunlun", "--impl", "cuda"], ["cuda", "reference", "triton"]),
    "unknown mode": (["kunlun", "--mode", "test"], ["test", "train", "infer"]),
    "unknown dtype": (["kunlun", "--dtype", "fp8"], ["fp8", "bf16", "fp32"]),
    "unknown device": (["kunlun", "--device", "tpu"], ["tpu", "cpu", "cuda"]),
    "unknown compile": (["kunlun", "--compile", "all"], ["all", "cudagraphs"]),
    "unknown peak": (["kunlun", "--peak", "best"], ["best", "datasheet", "measured"]),
    "no datasheet for a CPU": (["kunlun", "--size", "tiny", "--device", "cpu", "--peak", "datasheet"], ["measured"]),
    "cudagraphs on a CPU": (["kunlun", "--device", "cpu", "--compile", "cudagraphs"], ["CUDA"]),
    "no such kernel": (
        ["transformer", *["--size", "tiny", "--batch-size", "2", "--device", "cpu", "--impl", "triton"]],
        ["triton"],
    ),
    "batch of 0": (["kunlun", "--batch-size", "0"], ["--batch-size 0", "1 or more"]),
    "0 steps": (["kunlun", "--steps", "0"], ["--steps 0", "1 or more"]),
    "negative seed": (["kunlun", "--seed", "-1"], ["--seed -1"]),
    "steps that are no number": (["kunlun", "--steps", "many"], ["--steps"]),
    "no time at all": (["kunlun", "--timeout", "0"], ["--timeout 0", "above 0"]),
    "negative time": (["kunlun", "--timeout", "-3"], ["--timeout -3", "above 0"]),
    "time without end": (["kunlun", "--timeout", "inf"], ["--timeout inf", "up to 500h"]),
    "time that is no number": (["kunlun", "--timeout", "nan"], ["--timeout nan", "a number of seconds"]),
    "time in words": (["kunlun", "--timeout", "soon"], ["--timeout soon", "a number of seconds"]),
    "time beyond all timers": (["kunlun", "--timeout", "999999999h"], ["--timeout 999999999h", "up to 500h"]),
    "time in days": (["kunlun", "--timeout", "5d"], ["--timeout 5d", "90s, 9m, 2h"]),
    "no model": ([], ["MODEL"]),
    "unknown option": (["kunlun", "--fast"], ["--fast"]),
    "override without a value": (["kunlun", "--set", "comp_skip"], ["KEY=VALUE"]),
    "override of no field": (["kunlun", "--size", "tiny", "--set", "depth=3"], ["depth", "num_layers"]),
    "override of another type": (["kunlun", "--size", "tiny", "--set", "comp_skip=maybe"], ["maybe"]),
    "override that makes no model": (
        ["kunlun", "--size", "tiny", "--set", "engagement.window=0"],
        ["engagement.window"],
    ),
    "a width of no number": (["transformer", "--size", "tiny", "--set", f"width={2 * 10**12}"], ["smaller values"]),
    "a batch beyond all memory": (
        ["transformer", "--size", "tiny", "--batch-size", str(10**9), "--candidates", "1000"],
        ["--batch-size", "GB are free"],
    ),
    "a batch of no machine": (["kunlun", "--batch-size", str(10**20)], ["--batch-size", "allowed: 1 to 1000000000"]),
    "candidates of no machine": (["kunlun", "--candidates", str(10**20)], ["--candidates", "1 to 1000000000"]),
    "a seed beyond torch's": (["kunlun", "--seed", str(2**63)], ["--seed", "2**63"]),
    "more than the machine holds": (["kunlun", "--size", "xxl", "--device", "cpu"], ["GB"]),
    "unknown data": (["kunlun", "--data", "criteo:x"], ["criteo", "kuairand", "movielens"]),
    "trace without a folder": (["kunlun", "--trace"], ["--out"]),
    "no lock": (["kunlun", "--size", "tiny", "--lock", "no.json"], ["no.json", "mfubench kernels tune"]),
    "no such module": (["no_such_package:build"], ["no_such_package"]),
    "module without a function": (["json:"], ["package.module:build"]),
    "no such function": (["json:nope"], ["nope"]),
}


@pytest.mark.parametrize("case", PROFILE)
def test_profile_refuses(case: str, invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mfubench.workload.prepare.free_host_memory", lambda: 8 * 10**9)  # on any machine
    arguments, mentioned = PROFILE[case]
    out = [] if case == "trace without a folder" else ["--out", str(tmp_path / "out")]
    refused(invoke("profile", *arguments, *out), *mentioned)
    assert not list(tmp_path.iterdir())


def test_cuda_where_none_is(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    refused(invoke("profile", "kunlun", "--size", "tiny", "--device", "cuda"), "no CUDA device")


DATA = {
    "missing": (None, ["no such"]),
    "empty": ("", ["empty"]),
    "header only": (f"{HEADER}\n", []),
    "other columns": ("a,b,c\n1,2,3\n", ["user_id"]),
    "truncated": (f"{HEADER}\n1,2,20220410,1700,1649581149287,1,0,0,0,1,45916,0\n1,3,2022", []),
    "words for numbers": (f"{HEADER}\n1,2,20220410,1700,soon,1,0,0,0,1,45916,0\n", ["time_ms", "soon"]),
}


@pytest.mark.parametrize("case", DATA)
def test_kuairand_file_refused(case: str, invoke: Invoke, tmp_path: Path) -> None:
    text, mentioned = DATA[case]
    file = tmp_path / "log_standard_pure.csv"
    if text is not None:
        file.write_text(text)
    refused(invoke("profile", "kunlun", "--size", "tiny", "--data", f"kuairand:{file}"), file.name, *mentioned)


def test_movielens_folder_without_ratings_refused(invoke: Invoke, tmp_path: Path) -> None:
    refused(invoke("profile", "kunlun", "--size", "tiny", "--data", f"movielens:{tmp_path}"), "ratings.csv")


USER_MODULES = {
    "raises at import": ("raise OSError('no disk')\ndef build(): ...", ["no disk", ".py:3)"]),
    "takes an argument": ("def build(size): ...", ["build()"]),
    "raises": ("def build():\n    raise KeyError('vocab')", ["vocab", ".py:4)"]),
    "returns no tuple": ("def build():\n    return 3", ["make_batch"]),
    "returns no module": ("def build():\n    return 3, lambda b, d: ()", ["(module, make_batch)"]),
    "make_batch of one argument": ("def build():\n    return nn.Linear(2, 1), lambda b: ()", ["batch_size, device"]),
    "make_batch raises": (
        "def build():\n    return nn.Linear(2, 1), lambda b, d: 1 / 0",
        ["ZeroDivisionError", ".py:4)"],
    ),
    "batch of a wrong kind": ("def build():\n    return nn.Linear(2, 1), lambda b, d: torch.ones(b, 2)", ["tuple"]),
    "forward fails": ("def build():\n    return nn.Linear(2, 1), lambda b, d: (torch.ones(b, 3),)", ["step failed"]),
    "forward wants another batch": (
        "def build():\n    return nn.Linear(2, 1), lambda b, d: {'rows': torch.ones(b, 2)}",
        ["step failed", "TypeError", "rows"],
    ),
    "loss is no tensor": (
        "def build():\n    return nn.Linear(2, 1), lambda b, d: (torch.ones(b, 2),), lambda out, batch: 3.0",
        ["step failed", "float"],
    ),
    "shapes not known yet": ("def build():\n    return nn.LazyLinear(1), lambda b, d: (torch.ones(b, 2),)", ["lazy"]),
    "leaves at import": ("raise SystemExit('a script')\ndef build(): ...", ["cannot import", "a script"]),
    "leaves at work": ("def build():\n    raise SystemExit(3)", ["raised SystemExit: 3"]),
    "leaves with a batch": (
        "def build():\n    return nn.Linear(2, 1), lambda b, d: exit(3)",
        ["make_batch(32, cpu) raised SystemExit: 3"],
    ),
    "leaves in its step": (
        "class M(nn.Linear):\n    def forward(self, x):\n        raise SystemExit(0)\n"
        "def build():\n    return M(2, 1), lambda b, d: (torch.ones(b, 2),)",
        ["the model's step failed: SystemExit: 0 (user_", ".py:5)"],
    ),
    "on the device meta": (
        "def build():\n    return nn.Linear(2, 1, device='meta'), lambda b, d: (torch.ones(b, 2),)",
        ["its module cannot be moved to cpu", "meta"],
    ),
    "a batch without rows": ("def build():\n    return nn.Linear(2, 1), lambda b, d: (torch.ones(0, 2),)", ["rows"]),
    "returns an int": ("def build():\n    return 3", ["returned an int"]),
    "nothing to differentiate": ("def build():\n    return nn.Identity(), lambda b, d: (torch.ones(b, 3),)", ["infer"]),
}


@pytest.mark.parametrize("case", USER_MODULES)
def test_users_model_refused(case: str, invoke: Invoke, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text, mentioned = USER_MODULES[case]
    name = f"user_{abs(hash(case))}"
    (tmp_path / f"{name}.py").write_text(f"import torch\nfrom torch import nn\n{text}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    refused(invoke("profile", f"{name}:build", "--device", "cpu", "--out", "out"), *mentioned)
    assert not (tmp_path / "out").exists()


def test_zoo_options_refused_for_a_users_model(invoke: Invoke) -> None:
    refused(invoke("profile", "json:loads", "--size", "tiny"), "--size")


def test_output_folder_that_cannot_be_written(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(invoke("profile", "kunlun", "--size", "tiny", "--out", str(tmp_path / "file" / "out")), "--out", "a file")
    refused(invoke("profile", "kunlun", "--size", "tiny", "--out", "/proc/mfubench"), "--out", "/proc")


SLEEPS = """
import time, torch
class Sleeps(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)
    def forward(self, x):
        time.sleep(600)
        return self.layer(x)
def build():
    return Sleeps(), lambda b, d: (torch.ones(b, 3),)
"""


def test_a_model_that_hangs_ends_in_time(tmp_path: Path) -> None:
    """In a process of its own: what interrupts an import leaves half a module to all that come after."""
    (tmp_path / "sleeps.py").write_text(SLEEPS)
    arguments = ("sleeps:build", "--device", "cpu", "--out", "out", "--trace", "--quiet", "--timeout", "6")
    command = [sys.executable, "-m", "mfubench", "profile", *arguments]
    paths = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    found = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path, env=paths)
    assert (found.returncode, found.stdout) == (2, "")
    (line,) = found.stderr.splitlines()
    assert line.startswith("mfubench: error: --timeout 6: the workload was still running")
    assert not (tmp_path / "out").exists()


HANGS = """
import mfubench.timeout as timeout
timeout.GRACE_S = 0.3
with timeout.time_limit(2):
    while True:
        try:
            __import__("time").sleep(60)
        except BaseException:
            pass  # as deaf as a library that does not return
"""


def test_what_is_deaf_to_the_signal_ends_too() -> None:
    found = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=60)
    assert (found.returncode, found.stdout) == (2, "")
    assert len(found.stderr.splitlines()) == 1 and found.stderr.startswith("mfubench: error: --timeout 2: ")


def test_code_that_catches_every_error_is_interrupted_all_the_same() -> None:
    """As compilers do, to go on without what failed."""
    deaf = HANGS.replace("except BaseException", "except Exception").replace("GRACE_S = 0.3", "GRACE_S = 60")
    found = subprocess.run([sys.executable, "-c", deaf], capture_output=True, text=True, timeout=60)
    assert found.returncode == 1 and "TimeUp: --timeout 2" in found.stderr.splitlines()[-1]


@contextmanager
def leaving_nothing_behind() -> Iterator[None]:
    before, threads = signal.getsignal(signal.SIGALRM), threading.active_count()
    yield
    assert signal.getsignal(signal.SIGALRM) is before and signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    deadline = time.monotonic() + 5
    while threading.active_count() > threads and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() == threads


def test_a_limit_that_is_kept_leaves_nothing_behind() -> None:
    with leaving_nothing_behind(), time_limit(60):
        pass


def test_a_limit_that_is_reached_leaves_nothing_behind() -> None:
    with leaving_nothing_behind(), pytest.raises(TimeUp, match=r"--timeout 0\.1: "), time_limit(0.1):
        time.sleep(600)


ABLATE = {
    "model without a road": (["dlrm"], ["dlrm", "no road", "kunlun"]),
    "unknown model": (["nope"], ["nope", "kunlun"]),
    "one's own model": (["my_package.my_module:build"], ["no road", "kunlun"]),
    "no model": ([], ["MODEL"]),
    "unknown size": (["kunlun", "--size", "huge"], ["huge", "tiny", "xxl"]),
    "a switch of the road": (["kunlun", "--size", "tiny", "--set", "ffn=gdpa"], ["--set ffn", "the road"]),
    "override of no field": (["kunlun", "--size", "tiny", "--set", "depth=3"], ["depth", "num_layers"]),
    "no budget": (["kunlun", "--budget", "0s"], ["--budget 0s", "90s, 9m, 2h"]),
    "a budget that is no time": (["kunlun", "--budget", "600d"], ["--budget 600d", "90s, 9m, 2h"]),
    "0 steps": (["kunlun", "--steps", "0"], ["--steps 0", "1 or more"]),
    "unknown data": (["kunlun", "--data", "criteo:x"], ["criteo", "kuairand", "movielens"]),
    "unknown impl": (["kunlun", "--impl", "cuda"], ["cuda", "reference", "triton"]),
    "no such kernel": (["kunlun", "--size", "tiny", "--device", "cpu", "--impl", "triton"], ["triton"]),
    "no datasheet for a CPU": (["kunlun", "--size", "tiny", "--device", "cpu", "--peak", "datasheet"], ["measured"]),
}


@pytest.mark.parametrize("case", ABLATE)
def test_ablate_refuses(case: str, invoke: Invoke, tmp_path: Path) -> None:
    arguments, mentioned = ABLATE[case]
    refused(invoke("ablate", *arguments, "--quiet", "--out", str(tmp_path / "out")), *mentioned)
    assert not list(tmp_path.iterdir())


def test_ablate_leaves_another_ablation_alone(invoke: Invoke, tmp_path: Path) -> None:
    (tmp_path / "ablation.json").write_text("{}")
    result = invoke("ablate", "kunlun", "--size", "tiny", "--device", "cpu", "--out", str(tmp_path))
    refused(result, "ablation.json", "no ablation of this release", "--out")
    assert [path.name for path in tmp_path.iterdir()] == ["ablation.json"]


OPTIMIZE = {
    "unknown model": (["nope"], ["nope", "kunlun"]),
    "unknown size": (["kunlun", "--size", "huge"], ["huge", "tiny", "xxl"]),
    "unknown judge": (["kunlun", "--judge", "taste"], ["--judge", "taste", "time, numbers"]),
    "no budget": (["kunlun", "--budget", "0m"], ["--budget 0m", "90s, 9m, 2h"]),
    "a budget of a unit": (["kunlun", "--budget", "m"], ["--budget m", "90s, 9m, 2h"]),
    "a budget in words": (["kunlun", "--compile-budget", "soon"], ["--compile-budget soon", "90s, 9m, 2h"]),
    "op without a kernel": (["kunlun", "--impl", "auto,gdpa=cuda"], ["gdpa=cuda", "reference"]),
    "no model": ([], ["MODEL"]),
}


@pytest.mark.parametrize("case", OPTIMIZE)
def test_optimize_refuses(case: str, invoke: Invoke, tmp_path: Path) -> None:
    arguments, mentioned = OPTIMIZE[case]
    out = tmp_path / "out"
    refused(invoke("optimize", *arguments, "--device", "cpu", "--quiet", "--out", str(out)), *mentioned)
    assert not out.exists()


def test_optimize_leaves_another_searchs_log_alone(invoke: Invoke, tmp_path: Path) -> None:
    """One that was interrupted, of another release."""
    log = tmp_path / "optimize.jsonl"
    log.write_text('{"kind": "search", "schema_version": 99}\n')
    result = invoke("optimize", "kunlun", "--size", "tiny", "--device", "cpu", "--quiet", "--out", str(tmp_path))
    refused(result, "optimize.jsonl", "no log of this release", "another --out")
    assert [path.name for path in tmp_path.iterdir()] == ["optimize.jsonl"]


RECIPE = """schema_version = 1
mfubench = "0.1.0"
judge = "time"
changes = [{ change = "impl", op = "rms_norm", impl = "triton" }, { change = "batch_size", batch_size = 64 }]
model = { model = "transformer", model_hash = "abc", architecture = "def" }
measured = {}
"""
RECIPES: dict[str, tuple[str | None, list[str], list[str]]] = {
    "missing": (None, [], ["cannot read", "No such file", "`mfubench optimize`"]),
    "empty": ("", [], ["schema_version None", "`mfubench optimize`"]),
    "garbage": ("\x00\x01{]", [], ["is no TOML"]),
    "another release's": (RECIPE.replace("0.1.0", "7.0.0"), [], ["mfubench '7.0.0'", "'0.1.0'"]),
    "another model's": (RECIPE, ["--size", "tiny"], ["is for transformer (abc)", "another model, size or config"]),
    "unknown change": (RECIPE.replace('"impl"', '"hope"'), [], ["change 'hope' is unknown", "compile"]),
    "another batch": (RECIPE, ["--batch-size", "8"], ["--batch-size 8", "the recipe's 64"]),
}


@pytest.mark.parametrize("case", RECIPES)
def test_recipe_refused(case: str, invoke: Invoke, tmp_path: Path) -> None:
    text, options, mentioned = RECIPES[case]
    file = tmp_path / "recipe.toml"
    if text is not None:
        file.write_text(text)
    arguments = ("transformer", "--device", "cpu", "--quiet", "--recipe", str(file), "--out", str(tmp_path / "out"))
    refused(invoke("profile", *arguments, *options), *mentioned)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def own_recipe(tmp_path: Path, zoo: Callable[..., Workload]) -> Callable[..., tuple[str, ...]]:
    """Arguments that profile a model with a recipe of its own."""

    def make(model: str, *changes: Change) -> tuple[str, ...]:
        workload = zoo(model)
        named = {key: workload.description[key] for key in ("model", "model_hash")}
        recipe = Recipe(
            {**named, "architecture": architecture(workload.module)}, {}, "time", tuple(Kept(c, None) for c in changes)
        )
        recipe.write(tmp_path / "recipe.toml")
        options = ("--size", "tiny", "--batch-size", "2", "--steps", "2", "--device", "cpu", "--quiet")
        return ("profile", model, *options, "--recipe", str(tmp_path / "recipe.toml"), "--out", str(tmp_path / "out"))

    return make


def test_a_recipes_kernel_whose_package_is_missing(
    invoke: Invoke, own_recipe: Callable[..., tuple[str, ...]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    arguments = own_recipe("kunlun", UseImpl("layer_norm", "triton"))
    monkeypatch.setitem(sys.modules, "triton", None)
    refused(invoke(*arguments), "impl layer_norm=triton", "needs the package triton; install it")
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch", "ignore::UserWarning:torch")  # of its own parts
def test_a_recipes_compile_that_fails(
    invoke: Invoke,
    own_recipe: Callable[..., tuple[str, ...]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    fixed_calibration: Calibration,
) -> None:
    def fails(*_args: object, **_options: object) -> None:
        raise OSError("no compiler here")

    arguments = own_recipe("dlrm", Compile("model"))
    monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", fails)
    refused(invoke(*arguments), "the compiled step failed", "no compiler here", "recipe")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def two_runs(tmp_path: Path) -> tuple[Path, Path]:
    """Folders with runs that compare."""
    folders = (tmp_path / "a", tmp_path / "b")
    for folder, impl in zip(folders, ("reference", "triton"), strict=True):
        folder.mkdir()
        (folder / "run.json").write_text(a_run(workload={"impl": impl}).to_json())
    return folders


def test_compare_refuses_what_is_no_pair_of_runs(invoke: Invoke, two_runs: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = map(str, two_runs)
    out = ("--out", str(tmp_path / "out"))
    refused(invoke("compare", a, *out), "one run", "two or more")
    refused(invoke("compare", *out), "RUN")
    refused(invoke("compare", a, f"{a}/../a/run.json", *out), "given twice")
    refused(invoke("compare", a, b, "--baseline", str(tmp_path), *out), "--baseline", "not among the runs", b)
    (tmp_path / "copy.json").write_bytes((tmp_path / "a" / "run.json").read_bytes())
    refused(invoke("compare", a, b, str(tmp_path / "copy.json"), *out), "copy.json", "same run")
    refused(invoke("compare", a, str(tmp_path / "nowhere"), *out), "nowhere", "cannot read")
    (tmp_path / "b" / "run.json").write_text("{")
    refused(invoke("compare", a, b, *out), "is not JSON")
    (tmp_path / "b" / "run.json").write_text('{"schema_version": 99}')
    refused(invoke("compare", a, b, *out), "schema_version 99", "this release reads")
    (tmp_path / "b" / "run.json").write_text(a_run(step={"timings_ms": []}).to_json())
    refused(invoke("compare", a, b, *out), "no step timings", "profile it again")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("key", ["data_hash", "mode", "dtype"])
def test_compare_refuses_what_does_not_compare(
    key: str, invoke: Invoke, two_runs: tuple[Path, Path], tmp_path: Path
) -> None:
    (two_runs[1] / "run.json").write_text(a_run(workload={key: "another"}).to_json())
    result = invoke("compare", *map(str, two_runs), "--out", str(tmp_path / "out"))
    refused(result, f"{key}: {a_run().workload[key]}, another", "--force")
    assert not (tmp_path / "out").exists()


RUNS = {"missing": None, "no JSON": "{", "another document": "[]", "another schema": '{"schema_version": 99}'}


@pytest.mark.parametrize("case", RUNS)
def test_report_refuses(case: str, invoke: Invoke, tmp_path: Path) -> None:
    text = RUNS[case]
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    refused(invoke("report", str(tmp_path), "--out", str(tmp_path / "out")), "run.json")
    assert not (tmp_path / "out").exists()


def test_debug_shows_where(invoke: Invoke) -> None:
    code, _, err = invoke("profile", "nope", "--debug")
    assert code == 2
    assert "Traceback" in err


def test_a_full_disk_is_no_defect(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is it bad input: exit code 5, and the system's own words."""

    def full() -> None:
        raise OSError(28, "No space left on device", "run.json")

    monkeypatch.setattr("mfubench.workload.zoo.list_models", full)
    code, out, err = invoke("models")
    assert (code, out, len(err.splitlines())) == (5, "", 1)
    assert "No space left on device: 'run.json'" in err and "defect" not in err


def test_own_defects_are_told_apart(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 5 and still one line: the input was fine, the tool is not."""

    def broken(*_args: object, **_options: object) -> None:
        raise AssertionError("planted")

    monkeypatch.setattr("mfubench.workload.zoo.list_models", broken)
    code, out, err = invoke("models")
    assert (code, out, len(err.splitlines())) == (5, "", 1)
    assert "planted" in err
