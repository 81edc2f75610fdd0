"""What all tests share: a fixed seed, the real data sets, and skipping what needs a GPU where there is none.

Without a GPU Triton's interpreter runs the kernels. That is settled while triton is imported, so for all tests at once.
"""

import os
import signal
from pathlib import Path

import pytest
import torch

from tests.interpreting import build_types_once, prepare_once_a_launch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
    prepare_once_a_launch()
    build_types_once()
if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores, and so do the processes that they start
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what it does not wait for; tests interrupt
    signal.signal(signal.SIGINT, signal.default_int_handler)

BESIDE_THE_REPOSITORY = Path(__file__).resolve().parents[2] / "shared" / "data"
DATA_SETS = ("kuairand-slice", "ml-latest-small")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: tests of what hangs or is slow wait, and leave theirs to others."""
    return (os.cpu_count() or 1) + 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without a GPU what needs one is skipped; on one, what its libraries warn of is no failure of ours."""
    available = torch.cuda.is_available()
    mark = pytest.mark.filterwarnings("default") if available else pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if available or item.get_closest_marker("gpu"):
            item.add_marker(mark)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder with the real data sets: $MFUBENCH_TEST_DATA, by default shared/data beside the repository."""
    folder = Path(os.environ.get("MFUBENCH_TEST_DATA", BESIDE_THE_REPOSITORY))
    missing = [name for name in DATA_SETS if not (folder / name).is_dir()]
    if missing:
        pytest.skip(f"no {' and '.join(missing)} in {folder}; set MFUBENCH_TEST_DATA to a folder that has them")
    return folder
