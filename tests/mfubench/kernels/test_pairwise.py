"""Every pair of values is covered, in far fewer cases than the product has."""

import itertools

import pytest

from mfubench.kernels import pairwise
from mfubench.kernels.pairwise import pairwise_cover, whole_product

FACTORS = {"a": (1, 2, 3), "b": ("x", "y"), "c": (None, 0, 1, 2), "d": (True, False), "e": tuple(range(6))}


@pytest.mark.parametrize("seed", range(5))
def test_every_pair_is_covered_and_the_first_case_is_the_plainest(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pairwise, "SEED", seed)
    cases = pairwise_cover(FACTORS)
    for first, second in itertools.combinations(FACTORS, 2):
        seen = {(case[first], case[second]) for case in cases}
        assert seen == set(itertools.product(FACTORS[first], FACTORS[second]))
    assert cases[0] == {name: values[0] for name, values in FACTORS.items()}
    assert 24 <= len(cases) <= 40  # c and e alone have 24 pairs; the product has 288
    assert cases == pairwise_cover(FACTORS)


def test_one_factor_is_its_values() -> None:
    assert pairwise_cover({"a": (3, 1)}) == [{"a": 3}, {"a": 1}]


def test_the_whole_product() -> None:
    assert len(list(whole_product(FACTORS))) == 288
