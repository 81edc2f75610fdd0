"""Few cases that cover all pairs: each value of each factor meets each value of every other factor at least once."""

import itertools
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Pair = tuple[str, int, str, int]
SEED = 0
CANDIDATES = 30  # drawn for each case; the one that covers most new pairs is taken


def whole_product(factors: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Every combination."""
    for values in itertools.product(*factors.values()):
        yield dict(zip(factors, values, strict=True))


def pairwise_cover(factors: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Combinations that cover every pair of values, chosen greedily; the same seed gives the same list.

    The first combination holds the first value of each factor.
      cf. Cohen, Dalal, Fredman and Patton, The AETG System, IEEE Transactions on Software Engineering 23 (1997).
    """
    names = list(factors)
    draw = random.Random(SEED)
    missing = {
        (a, i, b, j)
        for a, b in itertools.combinations(names, 2)
        for i in range(len(factors[a]))
        for j in range(len(factors[b]))
    }
    chosen = [dict.fromkeys(names, 0)]
    missing -= _pairs(chosen[0])
    while missing:
        a, i, b, j = min(missing)  # the candidates all hold this pair, so that each case makes progress
        candidates = [
            {name: draw.randrange(len(factors[name])) for name in names} | {a: i, b: j} for _ in range(CANDIDATES)
        ]
        best = max(candidates, key=lambda case: len(_pairs(case) & missing))
        chosen.append(best)
        missing -= _pairs(best)
    if len(names) == 1:
        chosen = [{names[0]: i} for i in range(len(factors[names[0]]))]
    return [{name: factors[name][i] for name, i in case.items()} for case in chosen]


def _pairs(case: Mapping[str, int]) -> set[Pair]:
    return {(a, case[a], b, case[b]) for a, b in itertools.combinations(case, 2)}
