import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from repro.analysis.stats import (
    generalisation_gap,
    mean_estimate,
    noncentrality,
    p_below,
    two_way_residuals,
)

accuracies = st.lists(st.floats(0, 1), min_size=2, max_size=6)


def table(fresh, warm):
    rows = [("fresh", seed, a) for seed, a in fresh.items()] + [("warm start", s, a) for s, a in warm.items()]
    return pd.DataFrame(rows, columns=["condition", "seed", "test_accuracy"])


def test_gap_is_pretrained_minus_fresh_of_the_same_seed_in_points():
    gap = generalisation_gap(table({0: 0.8, 1: 0.7}, {1: 0.75, 0: 0.7}))
    assert dict(zip(gap.seed, gap.gap.round(9), strict=True)) == {1: 5.0, 0: -10.0}


def test_a_pretrained_run_without_its_fresh_one_has_no_gap():
    assert list(generalisation_gap(table({0: 0.8}, {0: 0.7, 1: 0.2})).seed) == [0]


@given(accuracies, st.randoms())
def test_gap_does_not_depend_on_the_order_of_records(values, random):
    made = table(dict(enumerate(values)), dict(enumerate(reversed(values))))
    mixed = made.sample(frac=1, random_state=random.randrange(10**6))
    a, b = (generalisation_gap(t).set_index("seed").gap.sort_index() for t in (made, mixed))
    pd.testing.assert_series_equal(a, b)


def test_t_interval_is_the_textbook_one():
    estimate = mean_estimate([1.0, 2.0, 3.0, 4.0, 5.0])  # sd sqrt(2.5), t(0.975, 4) = 2.776445
    assert estimate.mean == 3 and estimate.n == 5
    assert estimate.high - 3 == pytest.approx(2.776445 * (2.5 / 5) ** 0.5, rel=1e-6)
    assert (estimate.low, estimate.high) == pytest.approx(
        scipy_stats.ttest_1samp([1, 2, 3, 4, 5], 0).confidence_interval()
    )


def test_intervals_cover_the_true_mean_as_often_as_they_say():
    draws = np.random.default_rng(0).normal(2.0, 3.0, size=(4000, 5))
    covered = np.mean([e.low < 2 < e.high for e in map(mean_estimate, draws)])
    assert covered == pytest.approx(0.95, abs=0.012)  # three and a half standard errors


@pytest.mark.parametrize("bound", [-0.5, 0.0, 3.0])
def test_the_t_test_is_that_of_scipy(bound):
    values = np.array([-12.0, -3.0, 8.0, -9.0, 4.0])
    expected = scipy_stats.ttest_1samp(values, bound, alternative="less").pvalue
    error = values.std(ddof=1) / len(values) ** 0.5
    assert p_below(values.mean(), error, len(values) - 1, bound) == pytest.approx(expected, rel=1e-12)


def test_residuals_lack_what_arms_and_seeds_have_in_common():
    arms, seeds = np.array([1.0, 5.0, 9.0]), np.array([[0.0], [20.0], [3.0], [7.0]])
    assert two_way_residuals(arms + seeds) == pytest.approx(np.zeros((4, 3)))
    noise = np.random.default_rng(0).normal(size=(4, 3))
    assert two_way_residuals(arms + seeds + noise) == pytest.approx(two_way_residuals(noise))


def test_a_noncentrality_gives_the_power_it_was_asked_for():
    found, freedom, level = noncentrality(8, 0.05, 0.9), 8, 0.05
    critical = scipy_stats.t.ppf(1 - level, freedom)
    assert scipy_stats.nct.sf(critical, freedom, found) == pytest.approx(0.9, abs=1e-6)


def test_one_seed_has_no_interval():
    assert str(mean_estimate([-3.0])) == "−3.0 (1 seed, no interval)"
    assert str(mean_estimate([])) == "(not recorded)"
