"""Files fit on a desk and functions in a head; a longer one gives its reason here."""

import ast
from pathlib import Path

from tests.house.tree import CODE, TESTS, broken, named

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


def test_files_fit_on_a_desk() -> None:
    def lines_too_many(path: Path) -> int:
        return max(0, len(path.read_text().splitlines()) - MAX_FILE_LINES)

    assert not broken((path for path in [*CODE, *TESTS] if named(path) not in OVERSIZE), lines_too_many)


def jitted(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether Triton compiles it: its parameters are pointers, strides and tiles, which nothing can bundle."""
    return any("triton.jit" in ast.unparse(decorator) for decorator in node.decorator_list)


def oversize(path: Path) -> list[str]:
    """The functions of a file that are too long or take too much, and how."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and f"{named(path)}:{node.name}" not in LONG:
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            parameters = len(node.args.posonlyargs) + len(node.args.args) + len(node.args.kwonlyargs)
            # What launches a kernel takes what its PyTorch operator takes: tensors and numbers, no objects.
            fixed = jitted(node) or path.name.startswith(("kernel", "boundary"))
            if lines > MAX_FUNCTION_LINES or (parameters > MAX_PARAMETERS and not fixed):
                found.append(f"{node.name} has {lines} lines and {parameters} parameters")
    return found


def test_functions_fit_in_a_head() -> None:
    assert not broken(CODE, oversize)


def bare(path: Path) -> list[str]:
    """What of a file is public and does not say what it is."""
    tree = ast.parse(path.read_text())
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    found = [n.name for n in tree.body if isinstance(n, kinds) and n.name[0] != "_" and not ast.get_docstring(n)]
    return found if ast.get_docstring(tree) else ["the module", *found]


def test_what_is_public_has_a_docstring() -> None:
    assert not broken(CODE, bare)


def test_excuses_are_still_needed() -> None:
    """An entry for a file or function that is gone would excuse the next one of that name."""
    files = {named(path): path for path in [*CODE, *TESTS]}
    assert not OVERSIZE.keys() - files.keys()
    for entry in LONG:
        name, _, function = entry.partition(":")
        assert f"def {function}(" in files[name].read_text()
