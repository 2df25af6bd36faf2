"""intervals.py: published numbers, exact coverage, and what a mean over tasks must do.

Run: pytest tests/test_intervals.py        (about a second on one core)
"""

import numpy as np
import pytest
from scipy.stats import binom, ttest_1samp

from intervals import Estimate, difference, interval, mean_of, wilson


@pytest.mark.parametrize(
    "successes, n, low, high",  # Newcombe (1998), table I, method 3: Wilson's
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_as_published(successes, n, low, high):
    assert wilson(successes, n) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))
    assert interval([1.0] * successes + [0.0] * (n - successes), rate=True)[1:] == wilson(successes, n)


@pytest.mark.parametrize(
    "a, b, low, high",  # Newcombe (1998), the other paper of that year, table II, method 10
    [((56, 70), (48, 80), 0.0524, 0.3339), ((9, 10), (3, 10), 0.1705, 0.8090), ((10, 10), (0, 20), 0.6791, 1.0)],
)
def test_differences_of_rates_as_published(a, b, low, high):
    parts = [interval([1.0] * k + [0.0] * (n - k), rate=True) for k, n in (a, b)]
    found = difference(*parts)
    assert found[1:] == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


def test_rates_near_the_ends_are_covered():
    """Of all that may be seen in 20 episodes, the share whose interval holds the true rate (normal: 0.64)."""
    for rate in (0.05, 0.5, 0.95):
        ends = [wilson(k, 20) for k in range(21)]
        held = sum(binom.pmf(k, 20, rate) for k, (low, high) in enumerate(ends) if low <= rate <= high)
        assert held > 0.92


def test_numbers_of_any_size_have_students_interval():
    values = [1.0, 2.0, 3.0, 4.0, 40.0]
    want = ttest_1samp(values, 0).confidence_interval()
    assert interval(values) == (10.0, pytest.approx(want.low), pytest.approx(want.high))
    assert interval([1.0, 0.0]).low < -5  # a return: 0 and 1 are numbers like others
    assert interval([0.2, 1.0, 0.9], rate=True).high == 1.0


def test_one_episode_tells_no_width_but_of_a_rate():
    assert interval([7.0])[0] == 7.0 and np.isnan(interval([7.0])[1:]).all()
    assert interval([1.0], rate=True).low == pytest.approx(0.2065, abs=1e-3)
    assert np.isnan(interval([1.0, np.nan])).all() and np.isnan(interval([])).all()


def test_means_over_tasks():
    """Equal parts: the width shrinks with the square root of how many; a part that isn't defined is left out."""
    part = Estimate(0.5, 0.4, 0.7)
    assert mean_of([part] * 4) == pytest.approx((0.5, 0.45, 0.6))
    assert mean_of([part, Estimate(*[np.nan] * 3)]) == pytest.approx(part)
    assert np.isnan(mean_of([])).all()
    # Deviations of independent means add up as squares do.
    assert mean_of([Estimate(1, 0.7, 1.3), Estimate(2, 1.6, 2.4)]) == pytest.approx((1.5, 1.25, 1.75))
