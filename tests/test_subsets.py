import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from repro.config import ALL, HALF, Dataset, InputError, Model, Run, Stage, Subset
from repro.data.sampling import examples, p_full, portions

# Stages of appendix A.3


@st.composite
def deals(draw, ratio=None):
    """Labels in which every class occurs, a number of parts they allow, a ratio and a seed."""
    classes = draw(st.integers(2, 7))
    extra = draw(st.lists(st.integers(0, classes - 1), max_size=50))
    y = np.array([*range(classes), *extra])
    ratio = draw(st.floats(0, 1)) if ratio is None else ratio
    return y, draw(st.integers(1, classes)), ratio, draw(st.integers(0, 2**32))


def all_portions(y, parts, ratio, seed):
    return [set(portions(y, Subset(i, parts, ratio), seed).tolist()) for i in range(1, parts + 1)]


@given(deals())
def test_portions_are_nested_and_end_with_everything(deal):
    y, parts, *_ = deal
    stages = all_portions(*deal)
    assert all(a <= b for a, b in itertools.pairwise(stages))
    assert stages[-1] == set(range(len(y)))
    one = portions(y, Subset(1, parts, deal[2]), deal[3])
    assert one.dtype == np.int64
    assert np.array_equal(one, np.unique(one))


@given(deals(ratio=1.0))
def test_ratio_one_deals_equal_portions_blind_to_classes(deal):
    y, parts, ratio, seed = deal
    stages = all_portions(*deal)
    sizes = np.diff([0, *map(len, stages)])
    assert sizes.tolist() == [len(part) for part in np.array_split(y, parts)]
    assert stages == all_portions(np.arange(len(y)), parts, ratio, seed)


@given(deals(ratio=0.0))
def test_ratio_zero_gives_each_portion_classes_of_its_own(deal):
    y, parts, *_ = deal
    stages = all_portions(*deal)
    groups = []
    for before, after in itertools.pairwise([set(), *stages]):
        groups.append(set(y[list(after - before)].tolist()))
        assert after - before == set(np.flatnonzero(np.isin(y, list(groups[-1]))).tolist())
    assert sum(map(len, groups)) == len(np.unique(y))
    assert [len(g) for g in groups] == [len(g) for g in np.array_split(np.unique(y), parts)]


@given(deals())
def test_any_ratio_holds_the_images_that_the_paper_counts(deal):
    """Beside its share of D_u, D_i holds of its own classes all that is not in D_u, and of others nothing."""
    y, parts, ratio, seed = deal
    uniform = round(ratio * len(y))
    dealt = np.cumsum([len(part) for part in np.array_split(np.arange(uniform), parts)])
    pure = all_portions(y, parts, 0.0, seed)  # all images of the classes C_1 to C_i
    for stage, own, share in zip(all_portions(*deal), pure, dealt, strict=True):
        others, missing = len(stage - own), len(own - stage)
        assert others <= share
        assert missing <= uniform - share
        assert share <= len(stage) <= share + len(y) - uniform


@given(st.integers(4, 200), st.integers(0, 100))
def test_half_is_half_and_its_seed_decides_which(n, seed):
    y = np.arange(n) % 10
    half = portions(y, HALF, seed)
    assert len(half) == (n + 1) // 2
    assert np.array_equal(half, portions(y, dataclasses.replace(HALF, gamma=0.5), seed))
    if n % 4 == 0:
        assert np.array_equal(half, portions(y, Subset(2, 4), seed))
    assert len(portions(y, ALL, seed)) == n
    if n >= 60:
        assert not np.array_equal(half, portions(y, HALF, seed + 1))


def test_portions_stay_as_they_were():
    y = np.arange(12) % 4
    assert portions(y, HALF, 0).tolist() == [3, 4, 6, 8, 10, 11]
    assert portions(y, Subset(1, 2, 0.5), 0).tolist() == [0, 1, 3, 5, 6, 8, 9]


def test_more_parts_than_classes_or_images_is_refused():
    y = np.arange(12) % 3
    assert len(portions(y, Subset(4, 4, 1.0), 0)) == 12
    with pytest.raises(InputError, match="3 classes make at most 3 parts, not 4"):
        portions(y, Subset(4, 4, 0.9), 0)
    with pytest.raises(InputError, match="12 images make at most 12 parts, not 13"):
        portions(y, Subset(1, 13), 0)


def test_p_full_grows_from_zero_to_one():
    assert p_full(0, 1000, 0.5) == 0
    assert p_full(20, 1000, 0.3) == pytest.approx(0.7)  # a fiftieth of the way: 1 - gamma
    assert p_full(1000, 1000, 0.9) == pytest.approx(1 - 0.9**50)


@given(st.floats(0, 1), st.floats(0, 1), st.floats(0.01, 0.99))
def test_p_full_is_a_probability_that_never_falls(a, b, gamma):
    low, high = (p_full(step, 1, gamma) for step in sorted((a, b)))
    assert 0 <= low <= high <= 1


def smooth(gamma, epochs=50, train=2000):
    stage = Stage(epochs, dataclasses.replace(HALF, gamma=gamma))
    return Run(Dataset("digits", train, 10), Model(2, 1), (stage,), batch_size=100)


@pytest.mark.parametrize("gamma", [0.1, 0.9])
def test_examples_come_from_outside_the_half_as_often_as_p_says(gamma):
    """Half of the draws from all of the data fall outside the half: p(n) / 2 of each epoch's examples."""
    run, labels = smooth(gamma), np.arange(2000) % 10
    half, steps = portions(labels, HALF, seed=0), 20
    for epoch in (0, 1, 10, 49):
        p = p_full(epoch * steps + np.arange(steps), 50 * steps, gamma).mean() / 2
        outside = ~np.isin(examples(run, labels, epoch), half)
        assert outside.mean() == pytest.approx(p, abs=4 * (0.25 / outside.size) ** 0.5)


def test_a_smooth_transition_starts_within_the_half_and_ends_in_all_of_the_data():
    run, labels = smooth(0.5), np.arange(2000) % 10
    half = portions(labels, HALF, seed=0)
    assert np.isin(examples(run, labels, 0)[0], half).all()
    assert (
        len(np.unique(np.concatenate([examples(run, labels, e).ravel() for e in (45, 46, 47, 48, 49)])))
        > 1900
    )


def test_without_gamma_every_example_is_met_once_in_an_epoch():
    run, labels = dataclasses.replace(smooth(0.5), stages=(Stage(3, HALF),)), np.arange(2000) % 10
    for epoch in range(2):
        assert sorted(examples(run, labels, epoch).ravel()) == portions(labels, HALF, seed=0).tolist()
    assert (examples(run, labels, 0) != examples(run, labels, 1)).any()
