"""Files fit on a desk and functions in a head; a longer one gives its reason here."""

import ast
from pathlib import Path

import pytest

from tests.house.tree import CODE, TESTS, named

MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_PARAMETERS = 500, 80, 10 + 1  # one may be self
OVERSIZE: dict[str, str] = {}  # file -> why it may be longer
LONG: dict[str, str] = {  # file:function -> why it may be longer, or have more parameters
    "mfubench/cli/campaign.py:campaign": "a command's options are its parameters",
    "kernels/mfu_kernels/gdpa_block/kernel_bwd.py:gdpa_block_bwd_kernel": "three passes over the same tiles",
    "mfubench/cli/profile.py:profile": "a command's options are its parameters",
    "mfubench/cli/sweep.py:sweep": "a command's options are its parameters",
    "mfubench/cli/optimize.py:optimize": "a command's options are its parameters",
    "mfubench/cli/ablate.py:ablate": "a command's options are its parameters",
    "mfubench/cli/tune.py:tune": "a command's options are its parameters",
    "mfubench/cli/plan.py:plan": "a command's options are its parameters",
    "mfubench/cli/scale.py:scale": "a command's options are its parameters",
    "mfubench/cli/gate.py:check": "a command's options are its parameters",
    "mfubench/cli/gate.py:run": "a command's options are its parameters",
    "mfubench/cli/gate.py:self_check": "a command's options are its parameters",
    "kernels/mfu_kernels/hstu_attention/op.py:hstu_attention": "an attention and the three parts of its mask",
    "kernels/mfu_kernels/hstu_attention/cost.py:hstu_attention_cost": "it takes what its op takes",
}


@pytest.mark.parametrize("path", [*CODE, *TESTS], ids=named)
def test_file_fits_on_a_desk(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= MAX_FILE_LINES or named(path) in OVERSIZE, f"{lines} lines"


def jitted(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether Triton compiles it: its parameters are pointers, strides and tiles, which nothing can bundle."""
    return any("triton.jit" in ast.unparse(decorator) for decorator in node.decorator_list)


@pytest.mark.parametrize("path", CODE, ids=named)
def test_functions_fit_in_a_head(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and f"{named(path)}:{node.name}" not in LONG:
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            parameters = len(node.args.posonlyargs) + len(node.args.args) + len(node.args.kwonlyargs)
            assert lines <= MAX_FUNCTION_LINES, f"{node.name} has {lines} lines"
            # What launches a kernel takes what its PyTorch operator takes: tensors and numbers, no objects.
            fixed = jitted(node) or path.name.startswith(("kernel", "boundary"))
            assert parameters <= MAX_PARAMETERS or fixed, f"{node.name} has {parameters} parameters"


@pytest.mark.parametrize("path", CODE, ids=named)
def test_what_is_public_has_a_docstring(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "the module says what it is"
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    bare = [n.name for n in tree.body if isinstance(n, kinds) and n.name[0] != "_" and not ast.get_docstring(n)]
    assert not bare


def test_excuses_are_still_needed() -> None:
    """An entry for a file or function that is gone would excuse the next one of that name."""
    files = {named(path): path for path in [*CODE, *TESTS]}
    assert not OVERSIZE.keys() - files.keys()
    for entry in LONG:
        name, _, function = entry.partition(":")
        assert f"def {function}(" in files[name].read_text()
