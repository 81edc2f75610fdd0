"""What an ablation runs: the settings of the road, the full model without each switch, and which to hold together."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

from mfu_models.kunlun import published as kunlun_published
from mfu_models.kunlun import road as kunlun_road
from mfu_models.kunlun.published import Published
from mfubench.errors import BadInput
from mfubench.workload.spec import WorkloadSpec

Kind = Literal["road", "leave_one_out", "whole", "noise_floor"]
REPEATED = "full model again"


@dataclass(frozen=True, slots=True)
class Road:
    """A model's road: where it starts, what each step turns on, and what is published of the steps."""

    start: Mapping[str, Any]
    steps: Mapping[str, Mapping[str, Any]]
    published: tuple[Published, ...]
    contradictions: tuple[str, ...]
    whole: str

    @property
    def switches(self) -> set[str]:
        """The fields of the model's config that the road turns."""
        return set(self.start)


ROADS: Mapping[str, Road] = {
    "kunlun": Road(
        kunlun_road.START,
        kunlun_road.STEPS,
        kunlun_published.PUBLISHED,
        kunlun_published.CONTRADICTIONS,
        kunlun_published.WHOLE,
    )
}


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting of the switches: a step of the road, or the full model without one switch."""

    name: str
    kind: Kind
    switches: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Contrast:
    """Two settings, by name, that are timed in turn. ``name`` is the step whose switch tells them apart."""

    name: str
    kind: Kind
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Plan:
    """Settings in the order in which they run, and contrasts, each of which can run as soon as its settings have."""

    spec: WorkloadSpec
    road: Road
    settings: tuple[Setting, ...]
    contrasts: tuple[Contrast, ...]

    def workload(self, setting: str) -> WorkloadSpec:
        """The workload of a setting."""
        (switches,) = (each.switches for each in self.settings if each.name == setting)
        given = {key: str(value).lower() if isinstance(value, bool) else str(value) for key, value in switches.items()}
        return replace(self.spec, overrides={**self.spec.overrides, **given})


def make_plan(spec: WorkloadSpec) -> Plan:
    """The plan for the model, size and options of ``spec``.

    Raises:
        BadInput: a model without a road, or an override of one of the road's own switches.
    """
    if spec.model not in ROADS:
        raise BadInput(f"{spec.model!r} has no road to ablate; models that have one: {', '.join(ROADS)}")
    road = ROADS[spec.model]
    turned = sorted(road.switches.intersection(spec.overrides))
    if turned:
        raise BadInput(
            f"--set {', '.join(turned)}: the road turns this itself; --set is for {spec.model}'s other fields"
        )
    settings, contrasts = _road(road)
    for setting, contrast in _leave_one_out(road, settings):
        settings += [setting] if setting not in settings else []
        contrasts.append(contrast)
    return Plan(spec, road, tuple(settings), tuple(contrasts))


def _road(road: Road) -> tuple[list[Setting], list[Contrast]]:
    switches, settings = dict(road.start), []
    for name, change in road.steps.items():
        switches = {**switches, **change}
        settings.append(Setting(name, "road", switches))
    names = [setting.name for setting in settings]
    contrasts = [Contrast(after, "road", before, after) for before, after in pairwise(names)]
    whole = Contrast(road.whole, "whole", names[0], names[-1])
    floor = Contrast(REPEATED, "noise_floor", names[-1], names[-1])
    return settings, [*contrasts, whole, floor]


def _leave_one_out(road: Road, settings: list[Setting]) -> list[tuple[Setting, Contrast]]:
    """Each step's switch at its start in the full model; a setting that the road has already is not made anew."""
    full, found = settings[-1], []
    for step, change in road.steps.items():
        if not change:
            continue
        switches = {**full.switches, **{key: road.start[key] for key in change}}
        same = next((setting for setting in settings if setting.switches == switches), None)
        without = same or Setting(f"without_{step.removeprefix('+')}", "leave_one_out", switches)
        found.append((without, Contrast(step, "leave_one_out", without.name, full.name)))
    return found
