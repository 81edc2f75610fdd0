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


def _run(code: str) -> str:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}  # so that it also runs uninstalled
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("packages", ["mfu_kernels", "mfu_models", "mfubench.cli, mfubench.profiling"])
def test_imports_without_triton(packages: str) -> None:
    _run(f"{BLOCK_TRITON}\nimport {packages}")


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from mfubench.cli import main\ntry: main(['--help'])\nfinally: print(*sys.modules)"
    loaded = set(_run(code).splitlines()[-1].split())
    assert not loaded.intersection(HEAVY)
