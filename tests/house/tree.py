"""The tree that the rules of the house are about."""

import ast
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {  # import name -> folder; imports point down this list only
    "mfubench": ROOT / "mfubench",
    "mfu_models": ROOT / "model_zoo" / "mfu_models",
    "mfu_kernels": ROOT / "kernels" / "mfu_kernels",
}
CODE = sorted(path for folder in PACKAGES.values() for path in folder.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
DOCS = sorted(
    [
        *ROOT.glob("*.md"),
        *(doc for folder in ("docs", "kernels", "model_zoo", "reports") for doc in (ROOT / folder).glob("*.md")),
    ]
)
assert CODE and TESTS and DOCS, "nothing found: the rules would pass by testing nothing"


def named(path: Path) -> str:
    """The path as messages show it."""
    return path.relative_to(ROOT).as_posix()


def broken(paths: Iterable[Path], complaint: Callable[[Path], object]) -> dict[str, object]:
    """What there is to complain of, by file: one test of a rule, not one for each of hundreds of files."""
    complaints = {named(path): complaint(path) for path in paths}
    return {name: found for name, found in complaints.items() if found}


def package_of(path: Path) -> str:
    """The package that a file of code belongs to."""
    return next(name for name, folder in PACKAGES.items() if path.is_relative_to(folder))


def module_of(path: Path) -> str:
    """The name that a file of code is imported by."""
    package = package_of(path)
    parts = path.relative_to(PACKAGES[package]).with_suffix("").parts
    return ".".join((package, *(part for part in parts if part != "__init__")))


def imported(path: Path) -> Iterator[str]:
    """Every absolute module name that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module


def neighbours(path: Path, modules: Collection[str]) -> Iterator[str]:
    """Those of ``modules`` that a file of code imports, by whatever spelling, also inside functions."""
    inside = [*module_of(path).split("."), *(["__init__"] if path.name == "__init__.py" else [])]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = ".".join(filter(None, (*inside[: len(inside) - node.level if node.level else 0], node.module)))
            names = [(origin, alias.name) for alias in node.names]
        else:
            continue
        for origin, name in names:
            yield from [found for found in (f"{origin}.{name}", origin) if found in modules][:1]
