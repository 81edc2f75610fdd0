"""Every activation compiles in a kernel in Gluon, too."""

from mfu_kernels.activations import ACTIVATIONS
from tests.kernels.gluon.compiled import output_of


def test_every_activation_compiles_in_gluon() -> None:
    assert output_of("-m", "tests.kernels.gluon.activations").split() == list(ACTIVATIONS)
