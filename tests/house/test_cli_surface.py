"""Every option that the command line exposes stands here; adding one is a visible act."""

from typing import Any

from rich.text import Text
from typer.main import get_command

from mfubench.cli import app

EVERYWHERE = {"--json", "--quiet", "--verbose", "--debug"}
WORKLOAD = {
    *("model", "--size", "--set", "--impl", "--compile", "--mode", "--dtype", "--device", "--peak", "--batch-size"),
    *("--candidates", "--steps", "--seed", "--data"),
}
COMPARED = (WORKLOAD - {"model", "--peak", "--steps"}) | {"models"}
GATED = {
    *("--base", "--path", "--target", "--config", "--out", "--summary", "--junit", "--annotations"),
    "--require-baseline",
}
FROZEN = {
    "profile": EVERYWHERE | WORKLOAD | {"--out", "--trace", "--timeout", "--recipe", "--lock"},
    "sweep": EVERYWHERE
    | (WORKLOAD - {"--batch-size"})
    | {"--batch-sizes", "--p99-ms", "--budget", "--recipe", "--lock", "--out"},
    "optimize": EVERYWHERE
    | (WORKLOAD - {"--compile"})
    | {"--budget", "--compile-budget", "--judge", "--out", "--lock"},
    "plan": EVERYWHERE
    | ((COMPARED - {"--compile", "--device"}) | {"--gpu", "--like", "--memory", "--samples-per-day", "--out"}),
    "compare": EVERYWHERE | {"runs", "--baseline", "--force", "--out"},
    "ablate": EVERYWHERE | WORKLOAD | {"--budget", "--out"},
    "scale": EVERYWHERE
    | {"--models", "--sizes", "--baseline", "--data", "--samples", "--evaluate", "--seeds", "--batch-size", "--budget"}
    | {"--impl", "--dtype", "--device", "--out"},
    "report": EVERYWHERE | {"runs", "--out"},
    "config show": EVERYWHERE,
    "models": EVERYWHERE | {"--markdown"},
    "doctor": EVERYWHERE | {"--calibrate"},
    "campaign": EVERYWHERE
    | {
        "--ahead",
        "--data",
        "--from",
        "--out",
        "--budget",
        "--task-limit",
        "--peer-limit",
        "--stage",
        "--size",
        "--model",
        "--tune",
        "--peer",
        "--table",
    },
    "gate check": EVERYWHERE | GATED | (COMPARED - {"--compile", "--device"}),
    "gate run": EVERYWHERE | GATED | COMPARED | {"--budget", "--strict"},
    "gate self-check": EVERYWHERE | (COMPARED - {"models"}) | {"model", "--path", "--config", "--budget", "--out"},
    "kernels list": EVERYWHERE,
    "kernels check": EVERYWHERE | {"ops", "--full", "--device"},
    "kernels static": EVERYWHERE | {"ops", "--target", "--all-configs"},
    "kernels bench": EVERYWHERE
    | {"ops", "--shape", "--peer", "--without", "--peer-limit", "--rounds", "--tune", "--out"},
    "kernels tune": EVERYWHERE
    | (WORKLOAD - {"--device", "--peak", "--steps"})
    | {"--recipe", "--lock", "--again", "--budget", "--config-limit", "--out"},
}


def every_command() -> dict[str, Any]:
    """Commands by name, those of a group with the group's before it."""
    found = {}
    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", None)
        found |= {name: command} if inner is None else {f"{name} {key}": item for key, item in inner.items()}
    return found


def test_commands_and_options_are_frozen() -> None:
    seen = {
        name: {parameter.opts[0] for parameter in command.params if parameter.name != "help"}
        for name, command in every_command().items()
    }
    assert seen == FROZEN


def test_every_command_has_help_with_an_example() -> None:
    for name, command in every_command().items():
        assert f"mfubench {name}" in (command.help or ""), f"`mfubench {name} --help` shows no example"
        for parameter in command.params:
            assert getattr(parameter, "help", None), f"{name}: {parameter.name} has no help"


def test_what_is_in_brackets_is_shown() -> None:
    """Rich takes ``[default: all]`` for markup, and leaves it out, unless its bracket is escaped."""
    for name, command in every_command().items():
        for parameter in command.params:
            text = str(getattr(parameter, "help", ""))
            assert Text.from_markup(text).plain == text.replace("\\[", "["), f"{name}: {text}"
