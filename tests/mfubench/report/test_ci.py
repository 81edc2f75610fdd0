"""What a performance gate tells a CI service: JUnit XML, annotations, and a summary."""

import re
from xml.etree import ElementTree

import pytest

from mfubench.gate.where import Difference
from mfubench.report.ci import MARKER, MOST_SUMMARY, annotations, junit, summary
from tests.mfubench.report.gate_factory import (
    HOSTILE,
    a_check,
    a_gate,
    a_hostile_gate,
    a_row,
    located,
    of_a_kernel,
    slower,
    some_rows,
)

WAIVED = "until 2026-12-31: the new mask needs them"
COMMAND = re.compile(r"::(error|warning) ((?:\w+=[^,:\r\n]*,?)*)::([^\r\n]*)")


def cases(text: str) -> dict[str, ElementTree.Element]:
    return {
        f"{case.get('classname')} {case.get('name')}": case for case in ElementTree.fromstring(text).iter("testcase")
    }


def outcome(case: ElementTree.Element) -> tuple[str, str | None]:
    (child,) = case
    return child.tag, child.get("message", child.text)


def commands(told) -> list[tuple[str, dict[str, str], str]]:
    """As GitHub's runner reads them."""
    found = []
    for line in annotations(told):
        kind, properties, message = COMMAND.fullmatch(line).groups()
        named = dict(pair.split("=", 1) for pair in properties.split(","))
        for code, sign in {"%3A": ":", "%2C": ",", "%0D": "\r", "%0A": "\n", "%25": "%"}.items():
            named = {name: value.replace(code, sign) for name, value in named.items()}
            message = message if code in ("%3A", "%2C") else message.replace(code, sign)
        found.append((kind, named, message))
    return found


def test_a_suite_is_a_benchmark_and_a_case_a_row():
    root = ElementTree.fromstring(junit(a_gate(*some_rows())))
    assert [suite.get("name") for suite in root][:2] == ["kunlun small", "hstu small"]
    assert {row.name for row in some_rows()} == cases(junit(a_gate(*some_rows()))).keys()


def test_counts_are_those_of_the_cases():
    root = ElementTree.fromstring(junit(a_gate(*some_rows())))
    assert root.attrib == {"name": "mfubench gate", "tests": "21", "failures": "2", "errors": "1", "skipped": "4"}
    for name in ("tests", "failures", "errors", "skipped"):
        assert sum(int(suite.get(name)) for suite in root) == int(root.get(name))


def test_every_verdict_has_its_element():
    found = cases(junit(a_gate(*some_rows())))
    assert outcome(found["kunlun small step_time"]) == ("failure", "the whole interval is above what is allowed")
    assert "ratio [95 % CI] 1.080 [1.060, 1.100], allowed 1.03 times" in found["kunlun small step_time"][0].text
    assert outcome(found["hstu small model"]) == ("error", "head: no module named x")
    assert outcome(found["gr small step_time"]) == ("skipped", "INCONCLUSIVE: the budget ended")
    assert outcome(found["dlrm small step_time"]) == ("skipped", "ENVIRONMENT: slower, and no code differs")
    assert outcome(found["new small model"]) == ("skipped", "NO_BASELINE: base: no such model")
    waived = found["kunlun small hstu_fwd on sm_80 spill_bytes"]
    assert outcome(waived) == ("skipped", f"waived {WAIVED}") and "spills 176" in waived[0].text
    told, text = outcome(found["kunlun small gdpa_fwd (bf16) on sm_90 registers"])
    assert told == "system-out" and text.startswith("CHANGED: registers 128 to 168; base 128, head 168")
    assert len(found["tiger small step_time"]) == 0


WHERE = "items: +12.0 MiB copy, forward; users.blocks.* (4 modules): -1.00 MiB gemm, backward"


def test_every_output_says_where_a_count_differs():
    told = a_check(located(), located("CHANGED", metric="operators", elsewhere=2, head=(111 << 20) + 512))
    failed, changed = cases(junit(told)).values()
    assert outcome(failed) == ("failure", f"+11.00%; {WHERE}")
    assert f"CHANGED: +11.00%; {WHERE}; and +512 B in 2 more places; base" in outcome(changed)[1]
    assert commands(told)[0][2] == f"FAIL: +11.00%; {WHERE}"
    text = summary(told).replace("\\", "")
    assert f"| bytes | {WHERE} |" in text and "and +512 B in 2 more places |" in text
    waived = cases(junit(a_check(located(waived=WAIVED))))["kunlun small bytes"]
    assert waived[0].text == f"+11.00%; {WHERE}"


def test_a_case_says_where_its_kernel_is():
    case = cases(junit(a_gate(of_a_kernel("FAIL"))))["kunlun small gdpa_fwd (bf16) on sm_90 spill_bytes"]
    assert (case.get("file"), case.get("line")) == ("kernels/mfu_kernels/gdpa/kernel.py", "41")
    assert cases(junit(a_gate(slower())))["kunlun small step_time"].get("file") is None


@pytest.mark.parametrize("rows", [[], [of_a_kernel()] * 5000], ids=["none", "many"])
def test_junit_has_all_rows(rows):
    root = ElementTree.fromstring(junit(a_check(*rows)))
    assert root.get("tests") == str(len(rows)) and root.get("failures") == "0"


def test_junit_holds_any_text():
    root = ElementTree.fromstring(junit(a_hostile_gate()))
    messages = [failure.get("message") for failure in root.iter("failure")]
    assert "".join(sign for sign in HOSTILE if sign not in "\x00\x1b\ud800") in messages
    assert junit(a_hostile_gate()).startswith("<?xml version='1.0' encoding='utf-8'?>")


def test_annotations_are_worst_first_and_where_the_kernel_is():
    told = commands(a_gate(*some_rows()))
    assert [kind for kind, _, _ in told] == ["error"] * 3 + ["warning"] * 4
    place = {"file": "kernels/mfu_kernels/gdpa/kernel.py", "line": "41"}
    spilled = {**place, "title": "kunlun small gdpa_fwd (bf16) on sm_90 spill_bytes"}
    assert ("error", spilled, "FAIL: spills 176 bytes a thread, 0 before") in told
    title = {"title": "kunlun small step_time"}
    assert told[0] == ("error", title, "FAIL: the whole interval is above what is allowed")
    assert any(message.startswith(f"CHANGED: waived {WAIVED}") for _, _, message in told)
    assert not any("NO_BASELINE" in message or "IMPROVED" in message for _, _, message in told)


@pytest.mark.parametrize(("number", "more"), [(10, None), (11, "2 more"), (5000, "4991 more")])
def test_what_github_would_drop_is_counted(number, more):
    told = commands(a_gate(*[slower()] * number, *[of_a_kernel("CHANGED")] * number))
    for kind in ("error", "warning"):
        own = [message for each, _, message in told if each == kind]
        assert len(own) == 10 and (own[-1].startswith(more) if more else "more" not in own[-1])


def test_an_annotation_is_one_command_whatever_it_holds():
    told = commands(a_hostile_gate())
    text = "".join(sign for sign in HOSTILE if sign not in "\x00\x1b\ud800")
    assert (f"FAIL: {text}", text) in [(message, place.get("file")) for _, place, message in told]
    assert len(told) == 3 and commands(a_gate()) == []
    ((_, _, long),) = commands(a_gate(slower(why="%" * 10**6)))
    assert len(long) == 4000 and long.endswith("…")


def test_a_summary_begins_with_what_a_bot_finds_it_by():
    lines = summary(a_gate(*some_rows())).splitlines()
    assert lines[:2] == [MARKER, "## Performance gate"] and lines[3].startswith("**FAIL: step time of kunlun small")


def test_a_summary_has_what_does_not_pass():
    text = summary(a_gate(*some_rows()))
    header = "| verdict | benchmark | metric | base | head | ratio [95 % CI] | allowed | why |"
    assert header in text and "| PASS |" not in text and f"waived {WAIVED}" in text
    assert "All rows: 2 fail, 1 could not be looked at, 1 undecided" in text and "12 pass." in text
    assert "kunlun small 1.080 [1.060, 1.100]" in text and "**Warning:** another process" in text
    folded = text.partition("<details>")[2].partition("</details>")[0]
    for fact in ("origin/main, commit abc123def456", "NVIDIA H100", "took turns", "1.15 times", "mfubench gate run"):
        assert fact in folded


def rows_in(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("| CHANGED")]


def test_a_summary_shows_the_first_rows_and_counts_the_others():
    text = summary(a_gate(*[of_a_kernel("CHANGED")] * 5000, a_row())).replace("\u00a0", "")
    assert len(rows_in(text)) == 20
    assert "4980 more rows that do not pass; gate.json lists them all." in text
    assert "All rows: 5000 changed, 1 passes." in text


@pytest.mark.parametrize("sign", ["x", "|", "@a"])
def test_a_summary_fits_a_comment_whatever_its_texts(sign):
    texts = dict.fromkeys(("benchmark", "metric", "subject", "why", "base", "head"), sign * 10**4)
    told = a_check(*[of_a_kernel("CHANGED", **texts)] * 50, notes=[sign * 10**4] * 50, warnings=[sign * 10**4] * 50)
    told["environment"] = {f"{at}": sign * 10**4 for at in range(20)}
    text = summary(told)
    assert MARKER in text and len(text) <= MOST_SUMMARY and text.count("<details>") == text.count("</details>")
    assert f"{50 - len(rows_in(text))} more rows" in text and rows_in(text) and "40 more; gate.json" in text
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in rows_in(text)} == {8}


def test_a_summary_fits_a_comment_however_long_the_names_of_modules():
    text = summary(a_check(*[located(where=(Difference("x" * 10**5, "copy", "", 0, 1),))] * 50))
    assert len(text) <= MOST_SUMMARY and text.count("x…") == 20


def test_a_summary_without_room_keeps_its_verdict():
    told = a_gate(*some_rows(), environment={f"{at}": "x" * 300 for at in range(1000)})
    text = summary(told)
    assert len(text) <= MOST_SUMMARY and "**FAIL: step time" in text and "<details>" not in text


@pytest.mark.parametrize("told", [a_gate(), a_check(a_row())], ids=["nothing", "all pass"])
def test_a_summary_of_what_passes_has_no_table(told):
    text = summary(told)
    assert "\n|" not in text and "**PASS: " in text


def test_a_summary_calls_nobody_and_is_no_markup():
    text = summary(a_hostile_gate())
    assert not re.search(r"@\w|#\d", text) and "@\u200btriton.jit" in text and "<i>" not in text
    assert all(line.count("|") - line.count(r"\|") == 9 for line in text.splitlines() if line.startswith("| FAIL"))
