"""Whether a command would take the values that a file sets, without running it: types, choices and durations.

What hangs on other things than the value, such as whether a file is there, is the command's own to say.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import typer

from mfubench.errors import BadInput

from .defaults import SEVERAL, Option
from .options import overrides, seconds

TIME = "TIME"  # the metavar of durations
IN_A_SPEC = ("impl", "compile", "mode", "dtype", "device", "peak", "batch-size", "candidates", "steps", "seed")


def refusals(options: Sequence[Option], found: Mapping[str, Any], context: typer.Context) -> Iterator[str]:
    """Why commands would refuse what ``found`` sets of ``options``, a sentence each."""
    for option in options:
        table: Any = found
        for name in option.command:
            table = table.get(name, {})
        if option.parameter not in table:
            continue
        try:
            _check(option, table[option.parameter], context)
        except (BadInput, ValueError) as error:
            yield f"{'.'.join(option.command)}: {error}"


def _check(option: Option, value: Any, context: typer.Context) -> None:
    """Raise what the command would raise."""
    value = option.parse(value, context)
    if option.given.metavar == TIME:
        seconds(f"--{option.key}", str(value))
    elif option.key in IN_A_SPEC:
        from mfubench.workload.spec import WorkloadSpec

        WorkloadSpec("any", **{option.key.replace("-", "_"): value})
    elif option.key in _OF_KEYS:
        _OF_KEYS[option.key](list(value) if option.takes == SEVERAL else [value])


def _check_choices(option: str, given: Sequence[str], allowed: Sequence[str]) -> None:
    for value in given:
        if value not in allowed:
            raise BadInput(f"--{option} {value!r} is unknown; allowed: {', '.join(allowed)}")


def _check_sizes(given: Sequence[str]) -> None:
    from mfubench.workload.zoo import all_sizes

    _check_choices("size", _listed(given), all_sizes())


def _check_models(given: Sequence[str]) -> None:
    from mfu_models import MODELS

    _check_choices("model", _listed(given), list(MODELS))


def _listed(given: Sequence[str]) -> list[str]:
    """With commas between them where an option takes several in one."""
    return [name.strip() for text in given for name in text.split(",")]


def _check_targets(given: Sequence[str]) -> None:
    from mfubench.kernels.targets import require_targets

    require_targets(given)


def _check_stages(given: Sequence[str]) -> None:
    from mfubench.campaign.plan import STAGES

    _check_choices("stage", given, STAGES)


def _check_gpus(given: Sequence[str]) -> None:
    from mfubench.planning.gpu import sheet_of

    for name in given:
        sheet_of(name)


def _check_batch_sizes(given: Sequence[str]) -> None:
    from mfubench.sweep import sizes_of

    for text in given:
        sizes_of(text)


def _check_data(given: Sequence[str]) -> None:
    from mfubench.data import require_source

    for text in given:
        require_source(text)


def _check_judge(given: Sequence[str]) -> None:
    from .optimize import JUDGES

    _check_choices("judge", given, JUDGES)


_OF_KEYS: Mapping[str, Callable[[Sequence[str]], object]] = {
    "set": lambda given: overrides(list(given)),
    "size": _check_sizes,
    "sizes": _check_sizes,
    "model": _check_models,
    "models": _check_models,
    "target": _check_targets,
    "ahead": _check_targets,
    "stage": _check_stages,
    "gpu": _check_gpus,
    "batch-sizes": _check_batch_sizes,
    "data": _check_data,
    "judge": _check_judge,
}
