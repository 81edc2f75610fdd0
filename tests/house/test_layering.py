"""Imports point one way: mfubench -> mfu_models -> mfu_kernels, and within mfubench from what acts to what measures."""

from pathlib import Path

import pytest

from tests.house.tree import CODE, PACKAGES, ROOT, imported, named, package_of

ORDER = list(PACKAGES)
PROFILE = ("mfubench.profiling", "mfubench.passes", "mfubench.assemble", "mfubench.caveats")
# folder of mfubench -> what it must not import
FORBIDDEN = {
    "mfubench/measure": ("mfubench.attribute", "mfubench.report", "mfubench.cli", *PROFILE),
    "mfubench/attribute": ("mfubench.report", "mfubench.cli", "mfubench.workload", *PROFILE),
    "mfubench/kernels": (
        *("mfu_models", "mfubench.attribute", "mfubench.workload", "mfubench.report", "mfubench.cli"),
        *PROFILE,
    ),
    "mfubench/data": ("mfubench.measure", "mfubench.attribute", "mfubench.report", "mfubench.cli", "mfubench.workload"),
    "mfubench/ablate": ("mfubench.report", "mfubench.cli"),
    "mfubench/optimize": ("mfubench.report", "mfubench.cli"),
    "mfubench/scaling": ("mfubench.report", "mfubench.cli"),
    "mfubench/report": ("torch", "mfu_models", "mfu_kernels", "mfubench.measure", "mfubench.attribute", "mfubench.cli"),
}


@pytest.mark.parametrize("path", CODE, ids=named)
def test_packages_import_one_way(path: Path) -> None:
    above = set(ORDER[: ORDER.index(package_of(path))])
    assert not above & {name.partition(".")[0] for name in imported(path)}


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_parts_of_the_tool_import_one_way(folder: str) -> None:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    for path in files:
        wrong = [name for name in imported(path) for banned in FORBIDDEN[folder] if f"{name}.".startswith(f"{banned}.")]
        assert not wrong, f"{named(path)} imports {wrong}"


@pytest.mark.parametrize("name", ["kernels", "model_zoo"])
def test_folders_that_hold_a_package_are_none(name: str) -> None:
    """With an __init__.py, `kernels` would overwrite Hugging Face's package of that name."""
    assert not (ROOT / name / "__init__.py").exists()
    holds = {entry.name for entry in (ROOT / name).iterdir() if entry.name != "__pycache__"}
    assert holds <= {"README.md", "mfu_kernels", "mfu_models"}, "anything else here becomes importable at top level"
