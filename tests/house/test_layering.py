"""Imports point one way: mfubench -> mfu_models -> mfu_kernels, and within mfubench from what acts to what measures."""

from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.house.tree import CODE, PACKAGES, ROOT, broken, imported, module_of, named, neighbours, package_of

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


def upward(path: Path) -> set[str]:
    """The packages above its own that a file imports."""
    return set(ORDER[: ORDER.index(package_of(path))]) & {name.partition(".")[0] for name in imported(path)}


def test_packages_import_one_way() -> None:
    assert not broken(CODE, upward)


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_parts_of_the_tool_import_one_way(folder: str) -> None:
    files = sorted((ROOT / folder).rglob("*.py"))
    assert files
    for path in files:
        wrong = [name for name in imported(path) for banned in FORBIDDEN[folder] if f"{name}.".startswith(f"{banned}.")]
        assert not wrong, f"{named(path)} imports {wrong}"


def test_no_modules_import_each_other() -> None:
    """In a circle, also one that closes inside a function, no file can be understood before the others."""
    modules = {module_of(path): path for path in CODE}
    del modules["mfubench"]  # only hands names on, and those when they are asked for
    uses = {name: set(neighbours(path, modules)) - {name} for name, path in modules.items()}
    assert {"mfubench.cli.profile", "mfubench.run"} <= uses["mfubench.cli.guard"], "from its folder, and by whole name"
    try:
        TopologicalSorter(uses).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' <- '.join(error.args[1])}")


@pytest.mark.parametrize("name", ["kernels", "model_zoo"])
def test_folders_that_hold_a_package_are_none(name: str) -> None:
    """With an __init__.py, `kernels` would overwrite Hugging Face's package of that name."""
    assert not (ROOT / name / "__init__.py").exists()
    holds = {entry.name for entry in (ROOT / name).iterdir() if entry.name != "__pycache__"}
    assert holds <= {"README.md", "mfu_kernels", "mfu_models"}, "anything else here becomes importable at top level"
