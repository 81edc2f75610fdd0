"""Climb the road: profile every setting, time the contrasts in turn, and keep each result as it comes."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from math import inf
from pathlib import Path
from time import monotonic
from typing import Any

import torch

from mfu_models import model_spec
from mfubench.data import Source, open_source
from mfubench.errors import BadInput
from mfubench.exhausted import ran_out_of_memory, release
from mfubench.files import write_text
from mfubench.identity import ELSEWHERE, code_hash, require_same
from mfubench.measure.environment import environment
from mfubench.profiling import profile_workload
from mfubench.progress import Progress, silent
from mfubench.run import Run, read_run, write_run
from mfubench.workload.prepare import DEFAULT_SIZE, device_and_dtype, prepare
from mfubench.workload.spec import WorkloadSpec

from .assemble import Found, Timings, assemble
from .document import SCHEMA_VERSION, Ablation
from .pair import forget_compiled, time_pair
from .plan import Contrast, Plan, Setting, make_plan

FILE = "ablation.json"
# What the environment must have in common for two sittings to belong to one ablation.
SAME_ENVIRONMENT = ("mfubench", "torch", "triton", "device_name", "torch_threads")


class Ladder:
    """An ablation under way. With ``folder`` every result is written there as it comes, and what is there is kept.

    Raises:
        BadInput, mfu_kernels.errors.InvalidArgument: a model without a road, a workload that cannot be had, or a folder
            that holds another ablation.
    """

    def __init__(self, spec: WorkloadSpec, folder: Path | None = None) -> None:
        self.plan: Plan = make_plan(spec)
        self.folder = folder
        device, dtype = device_and_dtype(spec)
        model, size = model_spec(spec.model), spec.size or DEFAULT_SIZE
        self.source: Source = open_source(spec.data, model.config(size).schema)
        for setting in self.plan.settings:  # bad settings are refused before the first is measured
            model.config(size, self.source.schema, self.plan.workload(setting.name).overrides)
        here = environment(device)
        asked = asdict(spec) | {"size": size, "dtype": dtype, "device": device.type}
        self.identity: dict[str, Any] = (
            asked
            | {"data_fingerprint": self.source.fingerprint, "code": code_hash()}
            | {key: here[key] for key in SAME_ENVIRONMENT}
        )
        self.found = Found(environment=here)
        if folder is not None and (folder / FILE).exists():
            self._take_up(folder)

    def climb(self, *, budget_s: float | None = None, progress: Progress = silent) -> None:
        """Do what is not done yet; start nothing new once ``budget_s`` are over. Out of memory is noted and passed."""
        end = None if budget_s is None else monotonic() + budget_s
        units = list(self._units())
        for place, unit in enumerate(units):
            if self._has(unit):
                continue
            if end is not None and monotonic() >= end:
                self.found.stopped = f"--budget {budget_s:g}s was spent"
                break

            def told(stage: str, done: float, unit: Setting | Contrast = unit, place: int = place) -> None:
                progress(f"{unit.name}: {stage}", (place + done) / len(units))

            self._do(unit, told)
            self.keep()

    def keep(self) -> None:
        """Write what there is into the folder, if there is one and anything to write."""
        if self.folder is None or not self.found.runs:
            return
        for name, run in self.found.runs.items():
            if name not in self.found.written:
                write_run(run, self.folder / "runs" / name)
                self.found.written.add(name)
        write_text(self.folder / FILE, self.ablation().to_json())

    def ablation(self) -> Ablation:
        """What has been found so far."""
        return assemble(self.plan, self.identity, self.found)

    @property
    def progress_made(self) -> tuple[int, int]:
        """How many of the settings and contrasts are done, of how many."""
        units = list(self._units())
        return sum(map(self._has, units)), len(units)

    def _units(self) -> Iterator[Setting | Contrast]:
        """Each contrast right after the later of its settings."""
        waiting, known = list(self.plan.contrasts), set[str]()
        for setting in self.plan.settings:
            yield setting
            known.add(setting.name)
            ready = [contrast for contrast in waiting if {contrast.before, contrast.after} <= known]
            waiting = [contrast for contrast in waiting if contrast not in ready]
            yield from ready

    def _has(self, unit: Setting | Contrast) -> bool:
        return unit.name in self.found.runs if isinstance(unit, Setting) else _key(unit) in self.found.timings

    def _do(self, unit: Setting | Contrast, progress: Progress) -> None:
        """Run one unit; if memory runs out, note it under its name."""
        noted = unit.name if isinstance(unit, Setting) else _key(unit)
        self.found.failed.pop(noted, None)
        if isinstance(unit, Contrast) and any(name in self.found.failed for name in (unit.before, unit.after)):
            return  # nothing to time: its setting says why
        reason = None
        try:
            if isinstance(unit, Setting):
                self.found.runs[unit.name] = self._profile(unit, progress)
            else:
                self.found.timings[_key(unit)] = self._time(unit, progress)
        except Exception as error:
            if not ran_out_of_memory(error):
                raise
            reason = str(error)
        if reason is not None:  # outside the handler, whose error holds the tensors
            self.found.failed[noted] = reason
        if reason is not None or self.identity["device"] == "cuda":
            release((), torch.device(self.identity["device"]))  # the next find it as empty as the first did

    def _profile(self, setting: Setting, progress: Progress) -> Run:
        forget_compiled(self.plan.spec)
        progress("building the model and its batches, and a first step", 0.0)
        return profile_workload(prepare(self.plan.workload(setting.name), self.source), progress=progress)

    def _time(self, contrast: Contrast, progress: Progress) -> Timings:
        rounds = self.plan.spec.steps

        def told(done: int) -> None:
            progress(f"timing in turn with {contrast.before}, round {done} of {rounds}", done / rounds)

        before, after = (self.plan.workload(name) for name in (contrast.before, contrast.after))
        first, second = time_pair(before, after, self.source, told)
        return {"before": first, "after": second}

    def _take_up(self, folder: Path) -> None:
        """Continue the ablation in ``folder``."""
        document = _read(folder / FILE)
        require_same(folder / FILE, "ablation", document["identity"], self.identity)
        try:
            for step in document["steps"]:
                if step["status"] == "done":
                    self._take_up_run(step["name"], folder / step["run"])
            for change in document["changes"]:
                if change["timings_ms"]:
                    pair = (change["before"], change["after"])
                    self.found.timings[pair] = _timings(change["timings_ms"], self.plan.spec.steps)
        except (KeyError, TypeError, ValueError):
            raise BadInput(f"{folder / FILE} is no ablation of this release; {ELSEWHERE}") from None

    def _take_up_run(self, name: str, file: Path) -> None:
        try:
            self.found.runs[name] = read_run(file)
            self.found.written.add(name)
        except BadInput as error:
            self.found.warnings.append(f"{error}: {name} was measured anew")


def _timings(given: Mapping[str, list[float]], rounds: int) -> Timings:
    """Both sides' timings, as they were written."""
    found = {side: [float(ms) for ms in given[side]] for side in ("before", "after")}
    if any(len(timings) != rounds or not all(0 < ms < inf for ms in timings) for timings in found.values()):
        raise ValueError("no timings of such rounds")
    return found


def _key(contrast: Contrast) -> tuple[str, str]:
    return contrast.before, contrast.after


def _read(file: Path) -> Mapping[str, Any]:
    try:
        document: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        whole = document["schema_version"] == SCHEMA_VERSION and all(
            isinstance(document[key], kind) for key, kind in (("identity", dict), ("steps", list), ("changes", list))
        )
    except OSError as error:
        raise BadInput(f"cannot read {file}: {error.strerror}; {ELSEWHERE}") from None
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise BadInput(f"{file} is no ablation of this release; {ELSEWHERE}")
    return document
