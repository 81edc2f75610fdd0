"""Starting is cheap, and a machine without Triton or an accelerator is no lesser one."""

import os
import subprocess
import sys

import pytest

HEAVY = ("torch", "triton", "pandas", "jinja2", "numpy", "altair")
BLOCK_TRITON = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "triton":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocker())
"""


def _python(*arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}  # so that it also runs uninstalled
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _run(code: str) -> str:
    return _python("-c", code)


@pytest.mark.parametrize("packages", ["mfu_kernels", "mfu_models", "mfubench.cli, mfubench.profiling"])
def test_imports_without_triton(packages: str) -> None:
    _run(f"{BLOCK_TRITON}\nimport {packages}")


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from mfubench.cli import main\ntry: main(['--help'])\nfinally: print(*sys.modules)"
    loaded = set(_run(code).splitlines()[-1].split())
    assert not loaded.intersection(HEAVY)


def test_it_runs_as_a_module() -> None:
    assert "campaign" in _python("-m", "mfubench", "--help")


def test_it_runs_uninstalled() -> None:
    """A copy of the sources has no metadata beside them."""
    code = """
from importlib import metadata
def absent(name): raise metadata.PackageNotFoundError(name)
metadata.version = absent
from mfubench.cli import main
main(["models", "--json"])
"""
    assert "kunlun" in _run(code)
