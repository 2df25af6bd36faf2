"""Means, and how sure they are: 95 % intervals of episodes, of means over tasks, of differences. No random numbers.

    interval([1, 1, 0, 1], rate=True)   Estimate(mean=0.75, low=0.30, high=0.95)

Of rates: Wilson's interval, which is right near 0 and 1, where mean ± 1.96 deviations has no width although nobody can
be sure (10 successes of 10: 0.72 to 1). Of other numbers: Student's t, since episodes are few. Means over tasks and
differences put the intervals of their parts together (MOVER: each side's distances add up as deviations do), and so
are right where the parts are. Of a difference of two rates this is Newcombe's interval.

Papers: Wilson, J. Am. Stat. Assoc. 22 (1927); Newcombe, Stat. Med. 17 (1998), method 10; Zou and Donner (MOVER), Stat.
Med. 27 (2008).
Test: pytest tests/test_intervals.py
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit

Z = 1.959964  # 97.5 % of a normal distribution lie below


class Estimate(NamedTuple):
    """A mean with its 95 % interval. NaN where it isn't defined; the ends also where one episode can't tell them."""

    mean: float
    low: float
    high: float

    @property
    def half(self) -> float:
        """Half the interval's width."""
        return (self.high - self.low) / 2


def wilson(successes: float, n: int) -> tuple[float, float]:
    """Low and high end for a rate, of which `successes` of n were seen."""
    p, spread = successes / n, Z**2 / n
    centre, half = p + spread / 2, np.sqrt(spread * (p * (1 - p) + spread / 4))
    return float(max(0.0, (centre - half) / (1 + spread))), float(min(1.0, (centre + half) / (1 + spread)))


def interval(values: Iterable[float], rate: bool = False) -> Estimate:
    """Of the mean of these episodes. rate: they are in [0, 1], and so is the interval; Wilson's if all are 0 or 1."""
    x = np.asarray(list(values), dtype=np.float64)
    if not len(x) or np.isnan(x).any():
        return Estimate(*[np.nan] * 3)
    mean = float(x.mean())
    if rate and np.isin(x, (0, 1)).all():
        return Estimate(mean, *wilson(x.sum(), len(x)))
    if len(x) == 1:
        return Estimate(mean, np.nan, np.nan)
    half = float(stdtrit(len(x) - 1, 0.975) * x.std(ddof=1) / np.sqrt(len(x)))
    low, high = (max(0.0, mean - half), min(1.0, mean + half)) if rate else (mean - half, mean + half)
    return Estimate(mean, low, high)


def mean_of(parts: Iterable[Estimate]) -> Estimate:
    """The mean over tasks, of those that are defined. Of these tasks: that others might be drawn is not in it."""
    parts = np.array([part for part in parts if not np.isnan(part.mean)]).reshape(-1, 3)
    if not len(parts):
        return Estimate(*[np.nan] * 3)
    mean, low, high = parts.T
    return Estimate(
        float(mean.mean()),
        float(mean.mean() - np.sqrt(((mean - low) ** 2).sum()) / len(parts)),
        float(mean.mean() + np.sqrt(((high - mean) ** 2).sum()) / len(parts)),
    )


def difference(a: Estimate, b: Estimate) -> Estimate:
    """a - b of independent episodes. Where both begin alike and go alike, the truth is narrower."""
    return Estimate(
        a.mean - b.mean,
        float(a.mean - b.mean - np.hypot(a.mean - a.low, b.high - b.mean)),
        float(a.mean - b.mean + np.hypot(a.high - a.mean, b.mean - b.low)),
    )
