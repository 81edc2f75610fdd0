import json
import os
import re
from dataclasses import fields
from typing import Any

import pytest

from mfubench.errors import BadInput
from mfubench.run import _EXPECTED as EXPECTED_INSIDE
from mfubench.run import _EXPECTED_OF_A_GPU as EXPECTED_OF_A_GPU
from mfubench.run import SCHEMA_VERSION, KernelRow, ModuleRow, Run, read_run, run_of, write_run
from tests.house.tree import ROOT
from tests.mfubench.report.factory import a_gpu_run, a_run


@pytest.fixture
def document() -> dict:
    return json.loads(a_run().to_json())


def written(folder, content) -> "os.PathLike[str]":
    path = folder / "run.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize("run", [a_run(), a_gpu_run()], ids=["on_a_cpu", "with_a_datasheet"])
def test_a_run_comes_back_as_it_went(tmp_path, run):
    write_run(run, tmp_path / "out")
    assert read_run(tmp_path / "out") == run
    assert read_run(tmp_path / "out" / "run.json") == run


def test_the_schema_version_comes_first(document):
    assert next(iter(document)) == "schema_version" and document["schema_version"] == SCHEMA_VERSION
    assert document.keys() == {field.name for field in fields(Run)}


def test_a_key_that_is_not_known_is_passed_over(tmp_path, document):
    assert read_run(written(tmp_path, document | {"new_key": 1})) == a_run()


def test_a_run_of_before_configs_were_kept_is_read(tmp_path, document):
    del document["kernel_configs"]
    assert read_run(written(tmp_path, document)) == a_run(kernel_configs=[])


@pytest.mark.parametrize("version", [0, SCHEMA_VERSION + 1, "1", None])
def test_another_schema_version_is_refused(tmp_path, document, version):
    path = written(tmp_path, document | {"schema_version": version})
    with pytest.raises(BadInput, match=f"schema_version {version!r}; this release reads {SCHEMA_VERSION}"):
        read_run(path)


@pytest.mark.parametrize("content", ["[]", "3", "{}"])
def test_json_that_is_no_run_is_refused(tmp_path, content):
    with pytest.raises(BadInput, match="schema_version None"):
        read_run(written(tmp_path, content))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(BadInput, match=r"cannot read .*nowhere.*mfubench profile --out"):
        read_run(tmp_path / "nowhere")
    with pytest.raises(BadInput, match=r"cannot read .*run\.json"):
        read_run(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "\x00", '{"mfu": NaN}', '{"mfu": -Infinity}'])
def test_what_is_not_json_is_refused(tmp_path, content):
    with pytest.raises(BadInput, match="is not JSON"):
        read_run(written(tmp_path, content))


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "run.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BadInput, match="is not JSON"):
        read_run(tmp_path)


def test_missing_keys_are_named(tmp_path, document):
    del document["ledger"], document["mfu"]
    with pytest.raises(BadInput, match="lacks ledger, mfu"):
        read_run(written(tmp_path, document))


@pytest.mark.parametrize("part", ["modules", "kernels", "ledger"])
@pytest.mark.parametrize("row", [{"name": "a"}, {"surprise": 1}, 7])
def test_a_row_that_does_not_fit_is_refused(tmp_path, document, part, row):
    document[part] = [row]
    with pytest.raises(BadInput, match="a row that does not fit"):
        read_run(written(tmp_path, document))


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        *[("modules", "time_ms", "x"), ("modules", "causes", {"useful": "x"}), ("ledger", "modules", None)],
        *[("kernels", "calls", True), ("hotspots", "won_ms", None)],
    ],
)
def test_a_row_with_a_value_of_another_kind_is_refused(tmp_path, document, part, key, value):
    document[part][0][key] = value
    with pytest.raises(BadInput, match=f"{part} is .*, a row that does not fit: {key}; profile again"):
        read_run(written(tmp_path, document))


@pytest.mark.parametrize("latency", ["fast", [1.0], {"50": "fast"}])
def test_percentiles_of_another_kind_are_refused(latency: Any) -> None:
    document = json.loads(a_run().to_json())
    document["step"]["latency_ms"] = latency
    with pytest.raises(BadInput, match=r"step\.latency_ms is no percentiles"):
        run_of(document, "x")


@pytest.mark.parametrize("loader", ["slow", {}, {"samples_per_s": 1.0, "waited_share": None}])
def test_a_loader_of_another_kind_is_refused(loader: Any) -> None:
    document = json.loads(a_run().to_json())
    document["step"]["loader"] = loader
    with pytest.raises(BadInput, match=r"loader\.\w+ is .*; it is no whole Run"):
        run_of(document, "x")


@pytest.mark.parametrize("times", [(0.0, 0.0, 0.0), (-5.0, -6.0, 1.0), (3.0, 1.0, 2.0), (1e300, 1e300, 1e300)])
def test_a_step_time_that_is_none_is_refused(tmp_path, document, times):
    document["step"]["time_ms"] = dict(zip(("median", "ci95_low", "ci95_high"), times, strict=True))
    with pytest.raises(BadInput, match="no interval of a time"):
        read_run(written(tmp_path, document))


def test_a_number_beyond_all_others_is_refused(tmp_path, document):
    document["step"]["samples_per_s"] = 12345.5
    with pytest.raises(BadInput, match="is not JSON"):
        read_run(written(tmp_path, json.dumps(document).replace("12345.5", "1e999")))


def test_a_folder_may_be_given_as_text(tmp_path, document):
    written(tmp_path, document)
    assert read_run(str(tmp_path)).title == "kunlun small train fp32"


@pytest.mark.parametrize("path", [*EXPECTED_INSIDE, *EXPECTED_OF_A_GPU])
@pytest.mark.parametrize("damage", ["missing", "another kind"])
def test_a_document_whose_inside_is_not_a_runs_is_refused(tmp_path, path, damage):
    """A reader that stumbled over it would look like a defect of the tool."""
    document = json.loads((a_gpu_run() if path in EXPECTED_OF_A_GPU else a_run()).to_json())
    *outer, last = path.split(".")
    inside = document
    for key in outer:
        inside = inside[key]
    if damage == "missing":
        del inside[last]
    else:
        inside[last] = {} if not isinstance(inside[last], dict) else "words"
    with pytest.raises(BadInput, match=f"{path.split('.')[0]}.*; profile again"):
        read_run(written(tmp_path, document))


@pytest.mark.parametrize("rows", ["words", ["words"], [{"dtype": "bf16"}]])
def test_peaks_that_are_not_whole_are_refused(tmp_path, document, rows):
    document["peak"]["by_dtype"] = rows
    with pytest.raises(BadInput, match=r"peak\.by_dtype is .*; profile again"):
        read_run(written(tmp_path, document))


def test_an_error_is_one_line(tmp_path):
    with pytest.raises(BadInput) as caught:
        read_run(tmp_path / "two\nlines")
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2


def test_the_title_leaves_out_what_a_run_has_not():
    assert a_run().title == "kunlun small train fp32"
    assert a_run(workload={"size": None}).title == "kunlun train fp32"


def test_modules_as_a_table():
    run = a_run()
    frame = run.modules_frame()
    assert list(frame.columns) == [field.name for field in fields(ModuleRow)]
    assert frame["time_ms"].sum() == pytest.approx(sum(row.time_ms for row in run.modules))


def test_kernels_as_a_table():
    run = a_run()
    frame = run.kernels_frame()
    assert list(frame.columns) == [field.name for field in fields(KernelRow)] and len(frame) == len(run.kernels)
    assert frame["time_ms"].sum() == pytest.approx(sum(row.time_ms for row in run.kernels))


def test_what_a_pass_that_was_left_out_would_have_brought_is_unknown():
    run = a_run()
    assert run.of_modules("time_ms") == [row.time_ms for row in run.modules] and None not in run.of_modules(
        "memory_bytes"
    )
    run.trace["steps"], run.memory["peak_bytes"] = 0, None
    for key in ("time_ms", "fwd_time_ms", "share", "memory_bytes", "activation_bytes"):
        assert set(run.of_modules(key)) == {None}
    assert run.of_modules("fwd_model_flops") == [row.fwd_model_flops for row in run.modules]
    run.flops["model"] = None
    assert set(run.of_modules("fwd_model_flops")) == {None}


def test_the_readme_s_tables_are_those_of_a_run(tmp_path, monkeypatch, capsys):
    """Its example runs as it stands, on the run.json that the README's first command leaves."""
    examples = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (example,) = (text for text in examples if "read_run" in text)
    (tmp_path / "out" / "kunlun").mkdir(parents=True)
    written(tmp_path / "out" / "kunlun", a_run().to_json())
    monkeypatch.chdir(tmp_path)
    exec(example, {})
    printed = capsys.readouterr().out
    assert "memory-bound" in printed and "aten::bmm" in printed
