"""A virtual event log in the image of KuaiRand-27K: who sees what and when, and which of it engages them.

Recorded facts of that log (April 8 to May 8, 2022): 27,285 users with 100 to 228,000 exposures each, median 8,594, 90th
percentile 24,587; click rate 0.379. A log-normal fits: its mean of 12,030 is 2 % above the recorded 11,796. Measured on
a like/hate slice of the log: 0.703 long views a click, 21.3 s watched an exposure, the most shown video 3.2 times as
often as the 100th. The rest is assumed: five sessions a day, and what makes a user click.
"""

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from .histories import Array, Ints

VERSION = 1  # of what a seed gives; to be raised with any change of it

NUM_USERS = 27_285
MIN_EVENTS, MEDIAN_EVENTS, P90_EVENTS, MAX_EVENTS = 100, 8_594, 24_587, 228_000
P90_Z = 1.2816  # the standard normal's 90th percentile
CLICK_RATE = 0.379
THINNING = 0.462 / 0.657  # long views a click: how much rarer each further kind of engagement is
START_MS, SPAN_MS = 1_649_347_200_000, 31 * 86_400_000  # from April 8, 2022, 0:00 in China
WATCH_MS = 21_300
SESSIONS = 5 * 31
POPULARITY_OFFSET = 45  # the r-th item's share ~ 1 / (r + 45): the 1st is shown 3.2 times as often as the 100th
CALIBRATION_DRAWS = 1 << 17

Floats = npt.NDArray[np.float32]


@cache
def user_events() -> Ints:
    """Number of exposures of each user, int64 [27,285]: log-normal, its two ends pinned to the recorded ones."""
    sigma = math.log(P90_EVENTS / MEDIAN_EVENTS) / P90_Z
    counts = MEDIAN_EVENTS * np.exp(sigma * np.random.default_rng(VERSION).standard_normal(NUM_USERS))
    counts[[counts.argmin(), counts.argmax()]] = MIN_EVENTS, MAX_EVENTS
    events: Ints = np.clip(counts, MIN_EVENTS, MAX_EVENTS).astype(np.int64)
    return events


def draw_impressions(rng: np.random.Generator, size: int) -> tuple[Ints, Ints]:
    """Rows of the log, uniformly: each one's user, numbered from 0, and how many of that user's events precede it."""
    ends = np.cumsum(user_events())
    rows = rng.integers(ends[-1], size=size)
    users = np.searchsorted(ends, rows, side="right").astype(np.int64)
    return users, rows - (ends - user_events())[users]


def draw_items(rng: np.random.Generator, size: int, vocab: int) -> Ints:
    """Item ids 1 .. vocab-1, low ones popular: Zipf's law with an offset, by inverting its distribution."""
    ranks = POPULARITY_OFFSET * np.expm1(rng.random(size) * math.log1p((vocab - 1) / POPULARITY_OFFSET))
    return np.minimum(ranks.astype(np.int64) + 1, vocab - 1)


def draw_gaps_ms(rng: np.random.Generator, users: Ints, counts: Ints) -> Ints:
    """``counts`` gaps for each user, at least 1 ms each: watching a video, or now and then the hours between sessions.

    They are scaled so that all of a user's events take about the 31 days of the log.
    """
    mean = SPAN_MS / user_events()[users]
    watch = np.minimum(WATCH_MS, mean / 2)
    pause_rate = np.minimum(1, SESSIONS / user_events()[users])
    pause = (mean - (1 - pause_rate) * watch) / pause_rate
    size = int(counts.sum())
    is_pause = rng.random(size, dtype=np.float32) < np.repeat(pause_rate.astype(np.float32), counts)
    scale = np.where(is_pause, np.repeat(pause, counts), np.repeat(watch, counts))
    return 1 + (rng.standard_exponential(size, dtype=np.float32) * scale).astype(np.int64)


def trait(ids: Array, salt: int) -> Floats:
    """A fixed number in [0, 1) for each id and salt: an integer hash, so that no table of the vocabulary is needed."""
    mixed = ids.astype(np.uint32) * np.uint32(0x9E3779B1) + np.uint32(salt * 0x9E3779B1 % 2**32)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):  # MurmurHash3's finaliser
        mixed = (mixed ^ (mixed >> np.uint32(shift))) * np.uint32(factor)
    mixed ^= mixed >> np.uint32(16)
    traits: Floats = (mixed >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-24)
    return traits


def user_bias(users: Array) -> Floats:
    """How eager a user is to engage, within 0.75 of the average."""
    return np.float32(1.5) * (trait(users, 1) - np.float32(0.5))


def draw_appeal(rng: np.random.Generator, users: Array, items: Array) -> Floats:
    """How an item pleases a user, bias aside: its quality, the match of tastes, and chance of unit variance."""
    quality = np.float32(1.5) * (trait(items, 2) - np.float32(0.5))
    match = np.cos(np.float32(2 * np.pi) * (trait(users, 3) - trait(items, 4)))
    appeal: Floats = quality + match + rng.standard_normal(len(items), dtype=np.float32)
    return appeal


@dataclass(frozen=True, slots=True)
class Engagement:
    """The thresholds, ascending, that appeal + bias passes in each kind of engagement, and the appeals they come from.

    The kinds are nested, as nearly every recorded long view is a click.
    """

    thresholds: Floats
    appeals: Floats

    def events_needed(self, kind: int, users: Ints, wanted: int) -> npt.NDArray[np.float64]:
        """So many of a user's latest events hold ``wanted`` of ``kind``, but for a chance beyond six deviations."""
        passed = len(self.appeals) - np.searchsorted(self.appeals, self.thresholds[kind] - user_bias(users))
        rate = np.maximum(passed, 1) / len(self.appeals)
        needed: npt.NDArray[np.float64] = (wanted + 6 * np.sqrt(wanted * (1 - rate))) / rate
        return needed


@cache
def calibrate(item_vocab: int, kinds: int) -> Engagement:
    """Thresholds at which 0.379 of all impressions are of the first kind, 0.703 of those of the second, and so on."""
    rng = np.random.default_rng(VERSION)
    users, _ = draw_impressions(rng, CALIBRATION_DRAWS)
    appeals = draw_appeal(rng, users, draw_items(rng, CALIBRATION_DRAWS, item_vocab))
    rates = CLICK_RATE * THINNING ** np.arange(kinds)
    return Engagement(np.quantile(appeals + user_bias(users), 1 - rates).astype(np.float32), np.sort(appeals))
