"""The wheel holds the three packages, their typing marks, the report's templates and the licence, and nothing else."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.house.tree import CODE, PACKAGES, ROOT


def test_wheel_holds_everything(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="hatchling builds the wheel; install the extra [test]")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)], cwd=ROOT, check=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for package, folder in PACKAGES.items():
        files = [path for path in CODE if path.is_relative_to(folder)] + [folder / "py.typed"]
        assert names >= {f"{package}/{path.relative_to(folder).as_posix()}" for path in files}
    templates = {path.name for path in (ROOT / "mfubench" / "report" / "templates").iterdir()}
    assert templates and names >= {f"mfubench/report/templates/{name}" for name in templates}
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    top = {name.split("/")[0] for name in names if not name.split("/")[0].endswith(".dist-info")}
    assert top == set(PACKAGES)
