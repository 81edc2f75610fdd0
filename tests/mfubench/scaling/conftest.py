"""What the tests of scaling share."""

from pathlib import Path

import pytest

from tests.mfubench.scaling.small import StandIn, write_log


@pytest.fixture(scope="session")
def log(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small log, as --data names it."""
    return write_log(tmp_path_factory.mktemp("log"))


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """A worker that answers at once."""
    return StandIn().installed(monkeypatch)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A ladder's folder, which is not there yet."""
    return tmp_path / "out"
