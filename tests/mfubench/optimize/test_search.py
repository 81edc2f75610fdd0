"""The search, with a runner that answers for the processes: what it tries, keeps, writes, and how it goes on."""

import json
import math
from dataclasses import replace
from pathlib import Path
from time import sleep
from typing import Any

import pytest

from mfubench.errors import BadInput, TimeUp, ToolBroke
from mfubench.figures import Dots
from mfubench.isolated import GaveUp
from mfubench.optimize.changes import Compile, UseBatchSize, UseDtype, from_plain, to_plain
from mfubench.optimize.recipe import read_recipe
from mfubench.optimize.survey import OpUse
from mfubench.optimize.tasks import finale, take_stock
from mfubench.optimize.trial import Trial, judge_time, try_change
from mfubench.report import write_page
from mfubench.report.blocks import Chart, Facts, Table
from mfubench.report.optimization import optimization_page
from mfubench.run import read_run
from tests.mfubench.optimize.answers import (
    CAUSES,
    FASTER,
    IDENTITY,
    SAME,
    SLOWER,
    Answers,
    everything_tried,
    refused,
    search,
    speedup,
    start,
    survey,
)


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
    assert found.speedup == speedup(1.5) and found.plain_compile["speedup"] == speedup(1.1)
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


def test_what_larger_batches_win_is_told_apart() -> None:
    """They change the training, and a step's fixed cost is shared by more samples."""
    found = search(Answers())
    gains = [s.speedup["median"] for s in found.steps if s.kept and s.change.startswith("batch_size") and s.speedup]
    assert len(gains) > 1
    share = optimization_page(found).headline.partition(" as the start, ")[2].partition(" times of it by larger")[0]
    assert float(share) == pytest.approx(math.prod(gains), rel=0.01)
    assert "larger batches" not in optimization_page(replace(found, steps=[])).headline


def test_what_a_loader_brings_is_told_beside_the_gain() -> None:
    found = search(Answers())

    def of_one(samples_per_s: float, waited: float) -> dict[str, Any]:
        loader = {"samples_per_s": samples_per_s, "waited_share": waited}
        return {"step": found.start["step"] | {"loader": loader}}

    fed = replace(found, start=of_one(526.0, 0.35), end=None)
    assert "fed by its loader, 526 samples/s (35.0 % waiting) at the start; stopped" in optimization_page(fed).headline
    fed.end = of_one(530.0, 0.979)
    assert "at the start and 530 samples/s (97.9 % waiting) at the end; stopped" in optimization_page(fed).headline
    assert "loader" not in optimization_page(found).headline


def test_what_was_not_tried_is_listed_by_what_it_could_still_win() -> None:
    won = [each.predicted_ms for each in search(Answers(), budget_s=1.0).not_tried]
    assert won == sorted(won, reverse=True) and len(set(won)) > 3


def test_what_is_predicted_below_one_percent_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the 100 ms, bf16 can win half of the last one's products."""
    for module in CAUSES:
        monkeypatch.setitem(CAUSES, module, {})
    monkeypatch.setitem(CAUSES, "towers", {"launch": 99.0})
    monkeypatch.setitem(CAUSES, "head", {"useful": 1.0})
    found = search(Answers(trials={title: refused("no") for title in everything_tried()}))
    assert [step.change for step in found.steps] == ["compile Tower", "compile model", "batch_size 64"]
    (bf16,) = [each for each in found.not_tried if each.change == "dtype bf16"]
    assert (bf16.predicted_ms, bf16.reason) == (0.5, "less than 1 % predicted")


def test_what_cannot_be_tried_here_says_why() -> None:
    reasons = {each.change: each.reason for each in search(Answers()).not_tried}
    assert reasons["compile model, CUDA graphs"] == "CUDA graphs need a CUDA device"
    assert "no tf32" in reasons["dtype tf32"]


def test_measured_milliseconds_are_those_of_the_fresh_process() -> None:
    weaker = Trial(logs=[0.05] * 16, old_ms=80.0)
    found = search(Answers(confirmations={"compile Tower": weaker}))
    step = found.steps[0]
    assert step.kept and step.measured_ms == pytest.approx(80 * (1 - 2.718281828**-0.05))
    assert step.speedup is not None and step.speedup["median"] == pytest.approx(2.718281828**0.05)


def test_a_trials_own_steps_make_what_it_won_and_its_ratio() -> None:
    trial = Trial(logs=[0.05, 0.07] * 8, old_ms=80.0)
    found = search(Answers(confirmations={"compile Tower": trial}))
    step = found.steps[0]
    assert step.old_ms == 80.0 and step.new_ms and step.speedup and step.ci95 and step.measured_ms
    assert step.old_ms / step.new_ms == pytest.approx(step.speedup["median"])
    assert step.old_ms - step.new_ms == pytest.approx(step.measured_ms)
    ratios = [80.0 / (80.0 - won) for won in step.ci95]
    assert ratios == pytest.approx([step.speedup["ci95_low"], step.speedup["ci95_high"]])
    table = optimization_page(found).sections[1].blocks[0]
    assert isinstance(table, Table)
    row = dict(zip((column.header for column in table.columns), table.rows[0], strict=True))
    assert (row["step without, ms"], row["step with, ms"]) == ("80.00", "75.34")
    assert (row["measured ms"], row["times as fast [95 % CI]"]) == ("4.7", "1.062 [1.051, 1.073]")


@pytest.mark.parametrize("logs", [SLOWER, [0.05, -0.04] * 32])
def test_a_refused_trial_tells_no_other_interval_than_that_of_its_step(logs: list[float]) -> None:
    reason = judge_time(logs, 0.01)
    assert reason is not None and f"times as fast in {len(logs)} blocks" in reason and "[" not in reason


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


def test_nothing_kept_is_nospeedup() -> None:
    answers = Answers(trials={title: refused("no") for title in everything_tried()})
    found = search(answers)
    assert found.kept == [] and found.speedup is None
    assert "0 of 5 changes kept; nothing was changed; no gain was measured" in optimization_page(found).headline
    assert found.plain_compile["speedup"] == speedup(1.1) and found.over_plain_compile is None


class Watching(Answers):
    """Every trial takes more than all that was predicted; the alphas of trials are noted by title."""

    def __call__(self, task: Any, argument: Any, **limits: Any) -> Any:
        if task is try_change:
            self.alphas = {**getattr(self, "alphas", {}), argument.change.title: argument.alpha}
            self.trials = {argument.change.title: Trial(logs=list(FASTER), old_ms=1e6), **self.trials}
            self.confirmations = self.trials
        return super().__call__(task, argument, **limits)


def test_the_alpha_of_a_search_is_split_over_its_candidates() -> None:
    watching = Watching(trials={title: refused("no") for title in everything_tried()})
    search(watching)
    assert len(watching.alphas) == 5  # and the larger batches that were never reached
    assert set(watching.alphas.values()) == {0.05 / 7}


TRIED_LATER = ["compile Tower", "compile model", "dtype bf16", "batch_size 64", "batch_size 128", "batch_size 256"]


@pytest.mark.parametrize(
    ("causes", "tried", "candidates"),
    [
        # 0.9 ms of 100.9 are not worth a trial until the launch gaps are gone.
        ({"towers": {"launch": 99.1}, "head": {"useful": 1.8}}, ["compile Tower", "dtype bf16"], TRIED_LATER),
        # Nothing for a compiler or a larger batch to win: yet plain torch.compile may be tried at the end.
        ({"head": {"useful": 10.0}}, ["dtype bf16"], ["dtype bf16", "compile model"]),
    ],
)
def test_alpha_is_split_over_all_that_may_be_tried_later_too(
    causes: dict[str, dict[str, float]], tried: list[str], candidates: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in list(CAUSES):
        monkeypatch.delitem(CAUSES, module)
    for module, lost in causes.items():
        monkeypatch.setitem(CAUSES, module, lost)
    watching = Watching()
    search(watching)
    assert list(watching.alphas) == tried and set(watching.alphas.values()) == {0.05 / len(candidates)}


def test_an_end_that_cannot_be_timed_says_so() -> None:
    class Stuck(Answers):
        def __call__(self, task: Any, argument: Any, **limits: Any) -> Any:
            if task is finale:
                raise GaveUp("given up after 5 s, while timing")
            return super().__call__(task, argument, **limits)

    found = search(Stuck())
    assert found.speedup is None and found.plain_compile["reason"] == "given up after 5 s, while timing"
    assert found.notes == ["start and end were not timed in turn: given up after 5 s, while timing"]


def test_the_budget_ends_the_search() -> None:
    found = search(Answers(), budget_s=1.0)
    stopped = "the time for trials is spent; the rest of the budget is kept for finishing"
    assert found.steps == [] and found.stopped == stopped
    reasons = {each.change: each.reason for each in found.not_tried}
    assert reasons["batch_size 64"] == "the time for trials was spent before it was decided"
    assert reasons["batch_size 128"] == "follows batch_size 64, which was not reached"


def test_where_nothing_was_tried_no_gain_is_told(tmp_path: Path) -> None:
    found = search(Answers(), tmp_path, budget_s=1.0)
    headline = optimization_page(found).headline
    assert ": no change was tried; nothing was changed; no gain was measured; plain" in headline
    facts = optimization_page(found).sections[0].blocks[0]
    assert isinstance(facts, Facts)
    assert dict(facts.pairs)["The end, times as fast as the start"] == (
        "n/a (nothing was changed; no gain was measured)"
    )
    measured = read_recipe(tmp_path / "recipe.toml").measured
    assert "speedup" not in measured and measured["note"] == "nothing was changed; no gain was measured"


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
    assert not any(isinstance(block, Chart) for block in page.sections[0].blocks)
    assert "numbers" in page.warnings[0] and json.loads(found.to_json())["judge"] == "numbers"


def test_judged_by_time_no_interpreted_kernel_is_tried() -> None:
    answers = Interpreted()
    found = search(answers)
    assert ("try_change", "impl rms_norm=triton") not in answers.asked
    assert "interpreter" in {each.change: each.reason for each in found.not_tried}["impl rms_norm=triton"]


def test_a_page_draws_what_was_timed() -> None:
    found = search(Answers(trials={"compile Mixer": BadInput("does not run")}))
    (chart,) = (block for block in optimization_page(found).sections[0].blocks if isinstance(block, Chart))
    assert isinstance(chart.figure, Dots)
    timed = [step.change for step in found.steps if step.change != "compile Mixer"]
    assert chart.figure.rows == [*timed, "the end over the start", "plain torch.compile over the start"]


def test_changes_survive_the_log() -> None:
    for change in (Compile("pkg.Tower"), UseDtype("bf16"), UseBatchSize(64)):
        assert from_plain(json.loads(json.dumps(to_plain(change)))) == change
