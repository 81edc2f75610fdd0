"""A ladder's folder: ladder.json says whose it is, and each training has a file of its facts and one of its losses."""

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from mfubench.errors import BadInput
from mfubench.files import kept_json, write_bytes, write_json
from mfubench.identity import ELSEWHERE, require_same

from .plan import Training
from .train import Trained

LADDER, PEAK = "ladder.json", "peak.json"
TRAININGS = "trainings"
PEAK_FACTS = {"tflops", "dtype", "date", "how", "busy"}
SCHEMA_VERSION = 1


class Store:
    """What a ladder keeps in ``folder``; with None it keeps nothing.

    Raises:
        BadInput: the folder holds another ladder, or what is none of this release.
    """

    def __init__(self, folder: Path | None, identity: Mapping[str, Any]) -> None:
        self.folder = folder
        self.identity = dict(identity)
        if folder is not None and (folder / LADDER).exists():
            self._check(folder / LADDER)

    def _check(self, file: Path) -> None:
        there = kept_json(file)
        if (
            there is None
            or there.get("schema_version") != SCHEMA_VERSION
            or not isinstance(there.get("identity"), dict)
        ):
            raise BadInput(f"{file} is no ladder of this release; {ELSEWHERE}")
        require_same(file, "ladder", there["identity"], self.identity)

    def begin(self) -> None:
        """Make the folder and say whose it is."""
        if self.folder is not None:
            (self.folder / TRAININGS).mkdir(parents=True, exist_ok=True)
            self._put(self.folder / LADDER, {"identity": self.identity})

    def write(self, training: Training, found: Trained, wall_s: float) -> None:
        """Keep a training: its losses first, so that whoever finds the facts finds them too."""
        if self.folder is not None:
            place, data = self.folder / TRAININGS / training.file, BytesIO()
            np.save(data, found.losses)
            write_bytes(place.with_suffix(".npy"), data.getvalue())
            self._put(place.with_suffix(".json"), {"training": training.name, **found.facts(), "wall_s": wall_s})

    def read(self, training: Training, evaluated: int) -> tuple[Trained, float] | None:
        """A training that is kept, with as many losses as impressions are evaluated, and how long it took in all.

        None where there is none, or its files are damaged: it is done anew.
        """
        if self.folder is None:
            return None
        place = self.folder / TRAININGS / training.file
        facts = kept_json(place.with_suffix(".json"))
        try:
            losses = np.load(place.with_suffix(".npy"), allow_pickle=False)
            given = {name: facts[name] for name in Trained.__dataclass_fields__ if name != "losses"}  # type: ignore[index]
            found = Trained(**given, losses=losses)
            whole = losses.shape == (evaluated,) and losses.dtype == np.float32 and bool(np.isfinite(losses).all())
            return (found, float(facts["wall_s"])) if whole else None  # type: ignore[index]
        except (OSError, ValueError, KeyError, TypeError, EOFError):
            return None

    def write_peak(self, calibration: Mapping[str, Any]) -> None:
        """Keep what the device reached, for all sittings alike."""
        if self.folder is not None:
            self._put(self.folder / PEAK, dict(calibration))

    def read_peak(self) -> dict[str, Any] | None:
        """The same, None where it is not kept or damaged."""
        found = None if self.folder is None else kept_json(self.folder / PEAK)
        whole = found is not None and found.keys() >= PEAK_FACTS and isinstance(found["tflops"], int | float)
        return found if found is not None and whole and found["tflops"] > 0 else None

    def _put(self, file: Path, told: dict[str, Any]) -> None:
        write_json(file, {"schema_version": SCHEMA_VERSION, **told})
