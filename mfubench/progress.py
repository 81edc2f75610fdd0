"""How long work tells where it stands; the command line shows it."""

from collections.abc import Callable

Progress = Callable[[str, float], None]
"""Told the stage in words and how much of the whole is done, 0 to 1."""


def silent(_stage: str, _done: float) -> None:
    """Tells nobody."""
