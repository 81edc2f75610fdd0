"""The search, with a runner that answers for the processes: what it tries, keeps, writes, and how it goes on."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from time import sleep
from typing import Any

import pytest

from mfubench.errors import BadInput, TimeUp, ToolBroke
from mfubench.optimize.changes import Compile, UseBatchSize, UseDtype, from_plain, to_plain
from mfubench.optimize.document import Optimization, Step
from mfubench.optimize.isolated import GaveUp
from mfubench.optimize.log import FILE, read_log
from mfubench.optimize.recipe import read_recipe
from mfubench.optimize.search import optimize
from mfubench.optimize.state import Plan
from mfubench.optimize.survey import OpUse, Survey
from mfubench.optimize.tasks import Ends, finale, identify, profile_changed, take_stock
from mfubench.optimize.trial import Trial, confirm, try_change
from mfubench.report import write_page
from mfubench.report.blocks import Table
from mfubench.report.optimization import optimization_page
from mfubench.run import Run, read_run
from mfubench.workload.spec import WorkloadSpec
from tests.mfubench.report.factory import a_run

SPEC = WorkloadSpec("kunlun", size="tiny", device="cpu")
REGIONS = {"pkg.Tower": ["towers"], "pkg.Mixer": ["mixer"]}
CAUSES = {  # module -> its lost milliseconds
    "towers": {"launch": 30.0, "useful": 10.0},
    "mixer": {"inefficiency.norm": 20.0},
    "head": {"inefficiency.elementwise": 4.0},
    "(optimizer)": {"optimizer": 6.0},
}
FASTER, SLOWER, SAME = [0.2] * 16, [-0.2] * 16, [0.0, 0.001] * 8
IDENTITY = {"model": "kunlun", "model_hash": "abc", "device_name": "a CPU", "architecture": "a" * 16}


def start() -> Run:
    """A profile whose lost time is CAUSES."""
    run = a_run()
    rows = [replace(run.modules[0], name=name, causes=dict(causes)) for name, causes in CAUSES.items()]
    run.modules = rows
    run.workload |= {"model_hash": "abc", "batch_size": 32}
    return run


def survey() -> Survey:
    return Survey(
        device="cpu", dtype="fp32", batch_size=32, interpreted=False, shapes_vary=True,
        peaks={"fp32": 1.0, "bf16": 2.0}, bandwidth_gb_s=10.0, regions=REGIONS,
    )  # fmt: skip


@dataclass
class Answers:
    """A runner: what each change's trial and confirmation find, by title; FASTER unless it is said."""

    trials: Mapping[str, Trial | Exception] = field(default_factory=dict)
    confirmations: Mapping[str, Trial | Exception] = field(default_factory=dict)
    before: Callable[[str], None] = lambda title: None
    asked: list[tuple[str, str]] = field(default_factory=list)
    finales: list[Any] = field(default_factory=list)
    over_plain: float = 1.36

    def __call__(self, task: Any, argument: Any, *, limit_s: float, phase_limits: Any = None, tell: Any = None) -> Any:
        if task is take_stock:
            return IDENTITY, start(), survey()
        if task is identify:
            return IDENTITY
        if task is finale:
            self.finales.append(argument)
            plain = {"plain": _speedup(1.1)} if argument.plain else {}
            end = {"end": _speedup(1.5)} if argument.kept else {}
            over = {"end over plain": _speedup(self.over_plain)} if plain and end else {}
            gains = {**plain, **end, **over}
            return Ends(gains, {name: _step_at(gains[name]["median"]) for name in ("end", "plain") if name in gains})
        if task is profile_changed:
            return start()
        known = {try_change: self.trials, confirm: self.confirmations}[task]
        title = argument.change.title
        self.asked.append((task.__name__, title))
        if task is try_change:
            self.before(title)
        found = known.get(title, Trial(logs=list(FASTER), old_ms=80.0))
        if isinstance(found, Exception):
            raise found
        return replace(found)


def _step_at(ratio: float) -> dict[str, Any]:
    return {"time_ms": _speedup(80.0 / ratio), "samples_per_s": 400.0 * ratio}


def _speedup(ratio: float) -> dict[str, float]:
    return {"median": ratio, "ci95_low": ratio - 0.01, "ci95_high": ratio + 0.01}


def refused(reason: str) -> Trial:
    return Trial(refused=reason, logs=list(SLOWER), old_ms=80.0)


def search(answers: Answers, out: Path | None = None, **changes: Any) -> Optimization:
    return optimize(Plan(SPEC, out, **changes), run=answers)


def test_the_best_prediction_is_tried_first_and_what_is_proved_is_kept() -> None:
    no = refused("not faster by 1 %")
    answers = Answers(trials={"compile Mixer": no, "compile model": no})
    found = search(answers)
    titles = [step.change for step in found.steps]
    assert titles[:2] == ["compile Tower", "compile Mixer"]
    predicted = [step.predicted_ms for step in found.steps]
    assert predicted[:2] == [30.0, 20.0] and predicted[2:] == sorted(predicted[2:], reverse=True)
    assert [step.kept for step in found.steps][:2] == [True, False]
    assert answers.asked[:3] == [
        ("try_change", "compile Tower"),
        ("confirm", "compile Tower"),
        ("try_change", "compile Mixer"),
    ]
    assert found.kept[0] == "compile Tower" and "compile Mixer" not in found.kept
    assert found.speedup == _speedup(1.5) and found.plain_compile["speedup"] == _speedup(1.1)
    assert "nothing is left" in found.stopped


def test_a_kept_change_takes_what_it_won_out_of_other_predictions() -> None:
    """Of the towers' launch gaps a larger batch can win what compiling them has left."""
    whole = {"compile model": refused("no")}

    def predicted(tower: Trial) -> float:
        found = search(Answers({**whole, "compile Tower": tower}, {"compile Tower": tower}))
        return next(s.predicted_ms for s in found.steps if s.change == "batch_size 64")

    assert predicted(refused("no")) == pytest.approx((30 + 6) / 2)
    some = Trial(logs=list(FASTER), old_ms=80.0)
    won_ms = 80 * (1 - math.exp(-0.2))
    assert predicted(some) == pytest.approx((30 - won_ms + 6) / 2)
    assert predicted(replace(some, old_ms=800.0)) == pytest.approx(6 / 2)  # more than was predicted


def test_the_whole_model_is_compiled_after_its_parts_for_what_they_left() -> None:
    found = search(Answers())
    titles = [step.change for step in found.steps]
    assert titles.index("compile Mixer") < titles.index("compile model")
    assert "compile model" in found.kept and not {"compile Tower", "compile Mixer"} & set(found.kept)
    (tried,) = (s.blocks[0] for s in optimization_page(found).sections if s.title.startswith("What was tried"))
    assert isinstance(tried, Table)
    kept = {row[0]: row[[column.header for column in tried.columns].index("kept")] for row in tried.rows}
    assert (kept["compile Tower"], kept["compile model"]) == ("replaced", "yes")


def test_what_was_not_tried_is_listed_by_what_it_could_still_win() -> None:
    won = [each.predicted_ms for each in search(Answers(), budget_s=1.0).not_tried]
    assert won == sorted(won, reverse=True) and len(set(won)) > 3


def test_what_is_predicted_below_one_percent_is_not_tried() -> None:
    found = search(Answers())
    least = 0.01 * sum(ms for causes in CAUSES.values() for ms in causes.values())
    assert all(step.predicted_ms > least for step in found.steps)
    reasons = {each.change: each.reason for each in found.not_tried}
    assert reasons["compile model, CUDA graphs"] == "CUDA graphs need a CUDA device"
    assert "no tf32" in reasons["dtype tf32"]


def test_measured_milliseconds_are_those_of_the_fresh_process() -> None:
    weaker = Trial(logs=[0.05] * 16, old_ms=80.0)
    found = search(Answers(confirmations={"compile Tower": weaker}))
    step = found.steps[0]
    assert step.kept and step.measured_ms == pytest.approx(80 * (1 - 2.718281828**-0.05))
    assert step.speedup is not None and step.speedup["median"] == pytest.approx(2.718281828**0.05)


def test_what_is_not_confirmed_is_not_kept() -> None:
    again = Trial(refused="not confirmed in a fresh process: 1.001 times as fast", logs=list(SAME), old_ms=80.0)
    found = search(Answers(confirmations={"compile Tower": again}))
    assert not found.steps[0].kept and "not confirmed" in found.steps[0].reason
    assert "compile Tower" not in found.kept


@pytest.mark.parametrize("error", [GaveUp("compiling took longer than what it was given"), BadInput("no such kernel")])
def test_a_trial_that_breaks_is_refused_with_its_reason(error: Exception) -> None:
    found = search(Answers(trials={"compile Tower": error}))
    assert (found.steps[0].kept, found.steps[0].reason) == (False, str(error))
    assert found.steps[0].measured_ms is None and found.steps[0].ci95 is None
    assert len(found.steps) > 1  # the search goes on


def test_only_one_of_a_kind_is_kept_where_only_one_can_be() -> None:
    found = search(Answers())
    tried = [step.change for step in found.steps if step.change.startswith("batch_size")]
    assert tried == ["batch_size 64", "batch_size 128", "batch_size 256"]
    assert [title for title in found.kept if title.startswith("batch_size")] == tried[-1:]
    assert found.alters == [f"dtype bf16: {UseDtype.alters}", f"batch_size 256: {UseBatchSize.alters}"]


def test_a_larger_batch_is_tried_after_a_smaller_one_was_kept() -> None:
    found = search(Answers(trials={"batch_size 64": refused("no")}))
    assert not any(step.change in ("batch_size 128", "batch_size 256") for step in found.steps)
    reasons = {each.change: each.reason for each in found.not_tried}
    assert reasons["batch_size 128"] == "batch_size 64 was not kept"


def test_nothing_kept_is_no_speedup() -> None:
    answers = Answers(trials={title: refused("no") for title in everything_tried()})
    found = search(answers)
    assert found.kept == [] and found.speedup == {"median": 1.0, "ci95_low": 1.0, "ci95_high": 1.0}
    assert found.plain_compile["speedup"] == _speedup(1.1) and found.over_plain_compile is None


def everything_tried() -> list[str]:
    return ["compile Tower", "compile Mixer", "compile model", "dtype bf16", "batch_size 64"]


def test_the_alpha_of_a_search_is_split_over_its_candidates() -> None:
    seen: list[float] = []

    class Watching(Answers):
        def __call__(self, task: Any, argument: Any, **limits: Any) -> Any:
            if task is try_change:
                seen.append(argument.alpha)
            return super().__call__(task, argument, **limits)

    search(Watching(trials={title: refused("no") for title in everything_tried()}))
    assert len(seen) == 5 and set(seen) == {0.05 / 7}  # with the larger batches that were never reached


def test_plain_torch_compile_that_does_not_compile_in_time_is_left_out() -> None:
    class Slow(Answers):
        def __call__(self, task: Any, argument: Any, **limits: Any) -> Any:
            if task is finale and argument.plain:
                raise GaveUp("compiling took longer than what it was given")
            return super().__call__(task, argument, **limits)

    answers = Slow()
    found = search(answers)
    assert found.plain_compile["reason"] == "compiling took longer than what it was given"
    assert found.speedup == _speedup(1.5) and [f.plain for f in answers.finales] == [None]
    assert found.notes == []


def test_plain_torch_compile_that_was_kept_is_not_timed_beside_itself() -> None:
    no = {title: refused("no") for title in everything_tried() if title != "compile model"}
    answers = Answers(trials=no)
    found = search(answers)
    assert found.kept == ["compile model"] and [f.plain for f in answers.finales] == [None]
    assert found.speedup == found.plain_compile["speedup"] == _speedup(1.5) and found.over_plain_compile is None


def test_an_end_that_cannot_be_timed_says_so() -> None:
    class Stuck(Answers):
        def __call__(self, task: Any, argument: Any, **limits: Any) -> Any:
            if task is finale:
                raise GaveUp("given up after 5 s, while timing")
            return super().__call__(task, argument, **limits)

    found = search(Stuck())
    assert found.speedup is None and found.plain_compile["reason"] == "given up after 5 s, while timing"
    assert found.notes == ["start and end were not timed in turn: given up after 5 s, while timing"]


# Plain torch.compile beside what was kept --------------------------------------------------------------------------

WHOLE = "compile model"


class Slow(Answers):
    """A trial takes 30 seconds of a clock of its own, the comparison at the end 10."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **given: Any) -> None:
        super().__init__(**given)
        self.now = 0.0
        monkeypatch.setattr("mfubench.optimize.search.monotonic", lambda: self.now)

    def __call__(self, task: Any, argument: Any, **limits: Any) -> Any:
        if task is try_change:
            self.now += min(30.0, limits["limit_s"])
            if limits["limit_s"] < 30.0:
                raise GaveUp(f"given up after {limits['limit_s']:.0f} s, while compiling")
        self.now += 10.0 * (task is finale)
        return super().__call__(task, argument, **limits)


def test_plain_torch_compile_that_is_faster_is_held_to_the_numbers_in_the_time_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow = Slow(monkeypatch, over_plain=0.9)
    found = search(slow, budget_s=105.0)
    assert slow.asked == [
        *(("try_change", "compile Tower"), ("confirm", "compile Tower")),
        *(("try_change", WHOLE), ("confirm", WHOLE)),
    ]
    assert found.kept == [WHOLE] and found.over_plain_compile is None
    assert found.speedup == found.plain_compile["speedup"] == _speedup(1.1)
    assert found.in_turn["end"] == found.in_turn["plain"] == _step_at(1.1)
    assert "that is what was kept" in str(optimization_page(found).sections[0])


@pytest.mark.parametrize(
    ("budget_s", "trials", "said"),
    [
        (75.0, {}, "a longer --budget gives time to check its numbers"),
        (105.0, {WHOLE: refused("wrong numbers: a gradient")}, "refused: wrong numbers: a gradient"),
        (900.0, {WHOLE: refused("wrong losses")}, "refused: wrong losses"),
    ],
)
def test_plain_torch_compile_that_is_faster_and_not_kept_is_named(
    budget_s: float, trials: dict[str, Trial | Exception], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = search(Slow(monkeypatch, over_plain=0.9, trials=trials), budget_s=budget_s)
    assert WHOLE not in found.kept and found.speedup == _speedup(1.5)
    (note,) = found.notes
    assert note.startswith("plain torch.compile of the whole model is faster than what was kept; ") and said in note


def test_plain_torch_compile_that_is_not_faster_is_not_named() -> None:
    found = search(Answers(trials={WHOLE: refused("slower")}))
    assert found.notes == []


def test_the_budget_ends_the_search() -> None:
    found = search(Answers(), budget_s=1.0)
    assert found.steps == [] and found.stopped == "the time budget is spent"
    assert any(each.reason == "the time budget was spent before it was decided" for each in found.not_tried)


def test_a_profile_that_breaks_is_the_tools_fault() -> None:
    class Broken(Answers):
        def __call__(self, task: Any, argument: Any, **limits: Any) -> Any:
            raise GaveUp("its process ended with SIGSEGV while starting")

    with pytest.raises(ToolBroke, match="SIGSEGV"):
        search(Broken())


def test_a_budget_that_ends_in_the_profile_is_the_users_to_mend() -> None:
    class Slow(Answers):
        def __call__(self, task: Any, argument: Any, **limits: Any) -> Any:
            sleep(0.05)
            raise GaveUp("given up after 0.05 s, while profiling")

    with pytest.raises(TimeUp, match="while profiling; give a longer --budget"):
        search(Slow(), budget_s=0.05)


def test_the_folder_holds_everything(tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = search(Answers(), out)
    document = json.loads((out / "optimize.json").read_text())
    assert document == json.loads(found.to_json())
    assert document["speedup"].keys() == {"median", "ci95_low", "ci95_high"}
    for step in document["steps"]:
        assert step.keys() >= {"change", "cause", "predicted_ms", "measured_ms", "ci95", "kept", "reason"}
    recipe = read_recipe(out / "recipe.toml")
    assert [change.title for change in recipe.changes] == found.kept
    assert recipe.kept[0].gain is not None and recipe.kept[0].gain["median"] > 1.0
    for name in ("start", "end"):
        assert read_run(out / name).workload["model_hash"] == "abc"
    write_page(optimization_page(found), out)
    for name in ("report.md", "report.html"):
        text = (out / name).read_text()
        for words in ("compile Tower", "predicted ms", "measured ms", "Plain torch.compile", "CUDA graphs need"):
            assert words in text


# Going on ---------------------------------------------------------------------------------------------------------


def interrupted(out: Path, at: str) -> None:
    """A search that Ctrl-C ends while ``at`` is tried."""

    def stop(title: str) -> None:
        if title == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(Answers(before=stop), out)


def test_an_interrupted_search_goes_on(tmp_path: Path) -> None:
    whole = search(Answers())
    interrupted(tmp_path, "compile Mixer")
    assert not (tmp_path / "recipe.toml").exists()
    answers = Answers()
    found = search(answers, tmp_path)
    assert ("try_change", "compile Tower") not in answers.asked
    assert found.resumed and not whole.resumed
    assert [(s.change, s.kept) for s in found.steps] == [(s.change, s.kept) for s in whole.steps]
    assert [s.predicted_ms for s in found.steps] == pytest.approx([s.predicted_ms for s in whole.steps])
    assert any("resumed" in note for note in found.notes)


def test_a_line_that_was_cut_short_is_tried_again(tmp_path: Path) -> None:
    interrupted(tmp_path, "compile model")
    log = tmp_path / FILE
    lines = log.read_text().splitlines(keepends=True)
    assert len(lines) == 4  # whose, survey, two trials
    log.write_text("".join(lines[:3]) + lines[3][:40])
    answers = Answers()
    found = search(answers, tmp_path)
    assert ("try_change", "compile Tower") not in answers.asked and ("try_change", "compile Mixer") in answers.asked
    assert len({step.change for step in found.steps}) == len(found.steps)


def test_a_search_that_ended_begins_anew(tmp_path: Path) -> None:
    search(Answers(), tmp_path)
    answers = Answers()
    assert not search(answers, tmp_path).resumed and ("try_change", "compile Tower") in answers.asked


def test_another_searchs_log_is_refused(tmp_path: Path) -> None:
    interrupted(tmp_path, "compile Mixer")
    with pytest.raises(BadInput, match=r"another search \(judge time there, numbers here\)"):
        search(Answers(), tmp_path, judge="numbers")

    class Other(Answers):
        def __call__(self, task: Any, argument: Any, **limits: Any) -> Any:
            return (
                {**IDENTITY, "device_name": "a GPU"} if task is identify else super().__call__(task, argument, **limits)
            )

    with pytest.raises(BadInput, match="device_name a CPU there, a GPU here"):
        search(Other(), tmp_path)


@pytest.mark.parametrize(
    "text", [b"nonsense\nmore\n", b'{"kind": "step"}\n', b'{"kind": "search", "schema_version": 99}\n', b"\xff\xfe\n"]
)
def test_what_is_no_log_is_refused(text: bytes, tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(text)
    with pytest.raises(BadInput, match=FILE):
        read_log(tmp_path / FILE)


def test_a_log_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE).mkdir()
    with pytest.raises(BadInput, match=f"cannot read .*{FILE}"):
        read_log(tmp_path / FILE)


@pytest.mark.parametrize(
    ("place", "fact"),
    [
        (0, {"kind": "search", "schema_version": 1}),
        (1, {"kind": "survey", "survey": {"ops": 3}}),
        (2, {"kind": "step"}),
        (2, {"kind": "step", "step": {"change": "compile Tower"}}),
        (2, {"kind": "step", "step": dict.fromkeys(field.name for field in fields(Step))}),
        (2, {"kind": "step", "step": {field.name: {"change": "magic"} for field in fields(Step)}}),
    ],
)
def test_a_log_with_other_facts_is_refused_and_left_as_it_is(place: int, fact: dict[str, Any], tmp_path: Path) -> None:
    interrupted(tmp_path, "compile Mixer")
    lines = (tmp_path / FILE).read_text().splitlines()
    lines[place] = json.dumps(fact)
    (tmp_path / FILE).write_text("\n".join(lines) + "\n")
    with pytest.raises(BadInput, match=f"{FILE} is no log of this release; choose another --out"):
        search(Answers(), tmp_path)
    assert (tmp_path / FILE).read_text().splitlines() == lines


class NoTime(Answers):
    """For the end's profile."""

    def __call__(self, task: Any, argument: Any, **limits: Any) -> Any:
        if task is profile_changed:
            raise GaveUp("given up after 9 s")
        return super().__call__(task, argument, **limits)


def test_results_of_a_search_that_ended_stay_until_a_new_one_has_its_own(tmp_path: Path) -> None:
    """And no end of the one is left beside the other."""
    search(Answers(), tmp_path)
    recipe, end = tmp_path / "recipe.toml", tmp_path / "end" / "run.json"
    before = recipe.read_bytes()
    interrupted(tmp_path, "compile Mixer")
    assert recipe.read_bytes() == before and end.exists()
    found = search(NoTime(trials={"compile Mixer": refused("no")}), tmp_path)
    assert "the end was not profiled: given up after 9 s" in found.notes
    assert recipe.exists() and not end.exists()


# Judged by numbers ------------------------------------------------------------------------------------------------


class Interpreted(Answers):
    """A machine whose kernels run under Triton's interpreter, and one op that has a kernel."""

    def __call__(self, task: Any, argument: Any, **limits: Any) -> Any:
        if task is take_stock:
            found = survey()
            found.interpreted = True
            found.ops = {"rms_norm": OpUse(["mixer"], "norm", "reference", None)}
            return IDENTITY, start(), found
        return super().__call__(task, argument, **limits)


def test_judged_by_numbers_nothing_is_timed_and_every_output_says_so(tmp_path: Path) -> None:
    answers = Interpreted({"impl rms_norm=triton": Trial(numbers=["all within"])})
    found = search(answers, tmp_path, judge="numbers")
    assert answers.asked == [("try_change", "impl rms_norm=triton")] and answers.finales == []
    assert found.kept == ["impl rms_norm=triton"] and found.speedup is None
    assert found.plain_compile["speedup"] is None and found.steps[0].measured_ms is None
    assert "numbers" in found.steps[0].reason
    reasons = {each.change: each.reason for each in found.not_tried}
    assert reasons["compile Tower"] == "--judge numbers tries kernels only: it times nothing"
    recipe = read_recipe(tmp_path / "recipe.toml")
    assert recipe.judge == "numbers" and recipe.kept[0].gain is None
    page = optimization_page(found)
    assert "numbers" in page.warnings[0] and json.loads(found.to_json())["judge"] == "numbers"


def test_judged_by_time_no_interpreted_kernel_is_tried() -> None:
    answers = Interpreted()
    found = search(answers)
    assert ("try_change", "impl rms_norm=triton") not in answers.asked
    assert "interpreter" in {each.change: each.reason for each in found.not_tried}["impl rms_norm=triton"]


def test_changes_survive_the_log() -> None:
    for change in (Compile("pkg.Tower"), UseDtype("bf16"), UseBatchSize(64)):
        assert from_plain(json.loads(json.dumps(to_plain(change)))) == change
