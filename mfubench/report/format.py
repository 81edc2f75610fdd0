"""Numbers and values as text, the same in every output. What is not known reads n/a, with the reason if there is one.

A single number carries its unit; the numbers of a table column share their decimals and leave the unit to the header.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

GROUP = "\u00a0"  # between thousands: a no-break space, so that a wrapped line never splits a number
NOT_KNOWN = "n/a"
MEBI = 1024**2
MEGA, GIGA, TERA = 10**6, 10**9, 10**12
# How a document's key ends, and what its label shows of that: a unit that stands beside the value is left out.
UNITS = {"_bytes": "", "_w": "", "_mhz": "", "_c": "", "_percent": "", "_tflops": " TFLOP/s", "_gb_s": " GB/s"}

LABELS = {  # of keys that do not say whose they are
    "git_sha": "git sha of mfubench",
    "git_dirty": "git dirty, of mfubench",
    "model_git_sha": "git sha of the model's code",
    "model_git_dirty": "git dirty, of the model's code",
}
NOT_TEXT = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # what XML 1.0 forbids


def number(value: float | None, digits: int = 3) -> str:
    """``digits`` significant digits; those before the decimal point are all kept."""
    if value is None or not math.isfinite(value):
        return NOT_KNOWN
    return _fixed(value, _decimals(value, digits))


def column(values: Sequence[float | None], digits: int = 3, unit: float = 1, least: int = 0) -> list[str]:
    """Numbers that stand below each other, in ``unit``, with the decimals that give the largest ``digits`` digits.

    They have at least ``least`` decimals. A value that these would round to nothing keeps one digit of its own: it is
    small, not absent.
    """
    scaled = [None if value is None or not math.isfinite(value) else value / unit for value in values]
    largest = max((abs(value) for value in scaled if value is not None), default=0.0)
    places = max(least, _decimals(largest, digits))

    def cell(value: float | None) -> str:
        if value is None or (value and not round(value, places)):
            return number(value, 1)
        return _fixed(value, places if value else 0)

    return [cell(value) for value in scaled]


def percent(share: float | None, why_not: str = "") -> str:
    """A share of 1 as a percentage."""
    return not_known(why_not) if share is None else f"{number(100 * share)} %"


def percents(shares: Sequence[float | None]) -> list[str]:
    """Shares of 1 as a column of percentages; the header has the sign."""
    return column(shares, unit=0.01, least=1)


def interval(middle: float, low: float, high: float, unit: str = "", digits: int = 4) -> str:
    """A value with its confidence interval: ``12.34 ms [12.31, 12.40]``."""
    at, start, end = column([middle, low, high], digits=digits)
    return f"{at}{unit and f' {unit}'} [{start}, {end}]"


def change(share: float, low: float, high: float) -> str:
    """A relative change with its interval, 0.311 as ``+31.1 % [+28.0, +34.2]``; an exact one stands alone."""
    middle, *ends = (f"{'+' if given > 0 else ''}{cell}" for given, cell in _signed(share, low, high))
    return f"{middle} %" if low == high else f"{middle} % [{', '.join(ends)}]"


def flops(value: float | None) -> str:
    """FLOPs in the thousands that fit: FLOP, kFLOP, MFLOP, GFLOP, TFLOP, PFLOP."""
    return _scaled(value, 1000, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP"))


def size(value: float | None) -> str:
    """Bytes in the binary thousands that fit."""
    return _scaled(value, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def count(value: int) -> str:
    """A whole number, every digit kept."""
    return _fixed(value, 0)


def counted(number: int, of: str) -> str:
    """How many there are of what is called ``of`` in the plural: ``1 target``."""
    return f"{count(number)} {of.removesuffix('s') if number == 1 else of}"


def more(number: int, of: str) -> str:
    """How many more there are of what is called ``of`` in the plural: ``1 more module``."""
    return f"{number} more {of.removesuffix('s') if number == 1 else of}"


def not_known(why: str = "") -> str:
    """n/a, and why."""
    return f"{NOT_KNOWN} ({why})" if why else NOT_KNOWN


def words(name: str) -> str:
    """A name in a document as words."""
    return name.replace("_", " ")


def label(key: str) -> str:
    """A document's key as words."""
    if key in LABELS:
        return LABELS[key]
    ending = max((ending for ending in UNITS if key.endswith(ending)), key=len, default="")
    return words(key.removesuffix(ending)) + UNITS.get(ending, "")


def value(key: str, given: Any) -> str:
    """Any JSON value as text; the unit is read off the key's ending."""
    match given:
        case None:
            return NOT_KNOWN
        case bool():
            return "yes" if given else "no"
        case int() | float() if key.endswith("_bytes"):
            return size(given)
        case int() if key.endswith("params"):
            return count(given)
        case float():
            return number(given, 4)
        case {"unavailable": why}:
            return not_known(str(why))
        case {"value": amount, "unit": unit}:
            return f"{number(amount)} {unit}"
        case dict():
            return ", ".join(f"{inner}={value(inner, item)}" for inner, item in given.items()) or "none"
        case list():
            return ", ".join(value(key, item) for item in given) or "none"
    return str(given)


def cleaned(told: Any) -> Any:
    """JSON without what no XML, and so neither a chart nor JUnit, can hold: control characters and lone surrogates."""
    match told:
        case str():
            return NOT_TEXT.sub("", told)
        case Mapping():
            return {cleaned(key): cleaned(value) for key, value in told.items()}
        case list() | tuple():
            return [cleaned(value) for value in told]
    return told


def _signed(*shares: float) -> list[tuple[float, str]]:
    return list(zip(shares, column(shares, unit=0.01, least=1), strict=True))


def _decimals(value: float, digits: int) -> int:
    return max(0, digits - 1 - math.floor(math.log10(abs(value)))) if value else 0


def _fixed(value: float, places: int) -> str:
    return f"{value:,.{places}f}".replace(",", GROUP)


def _scaled(value: float | None, step: int, units: tuple[str, ...]) -> str:
    if value is None:
        return NOT_KNOWN
    unit = 0
    while abs(value) >= step and unit < len(units) - 1:
        value, unit = value / step, unit + 1
    return f"{number(value)} {units[unit]}"
