"""Every activation compiles in a kernel in Gluon, too."""

import os
import subprocess
import sys

from mfu_kernels.activations import ACTIVATIONS


def test_every_activation_compiles_in_gluon() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    command = [sys.executable, "-m", "tests.kernels.gluon.activations"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == list(ACTIVATIONS)
