import itertools
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from repro.questions.reset import SUBSETS, main_effects, shapley, subsets_recorded

MODULES = range(1, 7)
numbers = st.floats(-100, 100)
games = st.lists(numbers, min_size=64, max_size=64)
both = pytest.mark.parametrize("account", [main_effects, shapley])


def gaps(game, seed=0):
    """Rows as of `Results.gaps`, from a function of the set of modules or from 64 values."""
    values = [game({int(m) for m in s}) for s in SUBSETS] if callable(game) else game
    return pd.DataFrame({"seed": seed, "modules": SUBSETS, "gap": values})


def values(account, game):
    return account(gaps(game)).set_index("module").value


@both
@given(weights=st.lists(numbers, min_size=6, max_size=6), start=numbers)
def test_in_an_additive_game_each_module_contributes_its_weight(account, weights, start):
    found = values(account, lambda s: start + sum(weights[m - 1] for m in s))
    assert np.allclose(found, weights, atol=1e-9)


@both
def test_a_module_that_changes_nothing_contributes_nothing_and_alike_ones_contribute_alike(account):
    found = values(account, lambda s: -10.0 + 6 * ({2, 5} <= s) + 4 * ({2, 5, 6} <= s))
    assert found[[1, 3, 4]].tolist() == pytest.approx([0, 0, 0])
    assert found[2] == pytest.approx(found[5]) and found[2] > found[6] > 0


@given(game=games)
def test_shapley_values_sum_to_the_change_from_none_to_all(game):
    assert values(shapley, game).sum() == pytest.approx(game[-1] - game[0], abs=1e-9)


@given(game=games)
def test_shapley_values_are_averages_over_all_720_orders(game):
    v, total = dict(zip(SUBSETS, game, strict=True)), dict.fromkeys(MODULES, 0.0)
    for order in itertools.permutations(MODULES):
        done = ""
        for module in order:
            after = "".join(sorted(done + str(module)))
            total[module] += v[after] - v[done]
            done = after
    found = values(shapley, game)
    assert all(math.isclose(found[m], total[m] / 720, abs_tol=1e-9) for m in MODULES)


@given(game=games)
def test_main_effect_is_the_mean_of_32_subsets_less_that_of_the_other_32(game):
    rows, found = gaps(game), values(main_effects, game)
    for m in MODULES:
        among = rows.modules.str.contains(str(m))
        assert found[m] == pytest.approx(rows[among].gap.mean() - rows[~among].gap.mean(), abs=1e-9)


def test_seeds_stay_apart_whatever_the_order_of_rows():
    rows = pd.concat([gaps(lambda s: float(len(s)), seed=3), gaps(lambda s: -2.0 * len(s), seed=1)])
    found = shapley(rows.sample(frac=1, random_state=0)).pivot(index="seed", columns="module", values="value")
    assert np.allclose(found.loc[3], 1) and np.allclose(found.loc[1], -2)


@both
def test_seeds_without_all_64_subsets_are_left_out(account):
    whole, partial, diverged = (gaps(lambda s: 1.0 * len(s), seed=n) for n in range(3))
    diverged.loc[5, "gap"] = np.nan
    assert set(account(pd.concat([whole, partial[:-1], diverged])).seed) == {0}
    for empty in (partial[:17], gaps([0.0] * 64)[:0], pd.DataFrame()):
        found = account(empty)
        assert found.empty and list(found.columns) == ["seed", "module", "value"]


def test_subsets_recorded_are_those_of_the_seed_with_most():
    assert subsets_recorded(pd.concat([gaps([1.0] * 64)[:17], gaps([1.0] * 64, seed=1)[20:40]])) == 20
    assert subsets_recorded(pd.DataFrame()) == 0


@both
def test_another_study_has_no_contributions(account):
    with pytest.raises(ValueError, match="modules"):
        account(gaps([1.0] * 64).drop(columns="modules"))
