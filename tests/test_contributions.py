import itertools
import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from repro import profiles
from repro.analysis.claims import verdicts
from repro.analysis.recorded import Results
from repro.figures import common, style
from repro.questions import CLAIMS, STUDIES
from repro.questions.reset import SUBSETS, main_effects, reset_gaps, shapley, shares, subsets_to_reset
from repro.questions.reset import found as in_words
from repro.study import only, reset_condition

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
    def told(found):
        results = Results(STUDIES["reset"], profiles.profile("smoke"), pd.DataFrame(), pd.DataFrame(), 0)
        vars(results)["gaps"] = found  # in place of what is recorded
        return shares(results)

    found = told(pd.concat([gaps([1.0] * 64)[:17], gaps([1.0] * 64, seed=1)[20:40]]))
    assert found.startswith("20 of the 64 subsets") and "`repro run reset --set full_grids=true`" in found
    assert told(pd.DataFrame()).startswith("0 of the 64 subsets")


# Networks with other than six modules

LAYERS = """
from itertools import pairwise

from torch import nn


def layers(channels, classes, size, n=1):
    widths = [channels * size * size, *[classes] * n]
    return nn.Sequential(nn.Flatten(), *(nn.Linear(*ends) for ends in pairwise(widths)))
"""


@pytest.fixture
def of_modules(tmp_path):
    """The smoke profile with full grids, for a network of so many modules."""
    (tmp_path / "layers.py").write_text(LAYERS)
    settings = [f"model={tmp_path}/layers.py:layers", "full_grids=true"]
    return lambda n: profiles.profile("smoke", [*settings, f"model.n={n}"])


def planted(profile):
    """Results of the study of resets in which every module that is re-initialised gains a point."""
    study = STUDIES["reset"]
    rows = [
        {"condition": c.condition, "seed": c.seed, **c.factors, "train_accuracy": 1.0}
        | {"test_accuracy": 0.5 + len(c.run.stages[-1].reset) / 100 + 0.1 * (c.condition == "fresh")}
        for c in study.cases(profile)
    ]
    curves = [{"condition": r["condition"], "seed": r["seed"], "stage": 1, "epoch": 1} for r in rows]
    curves = pd.DataFrame(curves).assign(train_accuracy=1.0)
    return Results(study, profile, pd.DataFrame(rows), curves, 0)


def test_all_subsets_are_reset_of_up_to_six_modules_only(of_modules):
    assert [len(subsets_to_reset(of_modules(n))) for n in (1, 2, 6, 7, 13, 40)] == [2, 4, 64, 19, 37, 118]


def test_each_set_of_many_modules_has_a_value_of_its_own(of_modules):
    profile, study = of_modules(12), STUDIES["reset"]
    cases = study.cases(profile)
    chosen = only(study, cases, {"modules": "12"})
    assert {case.condition for case in chosen} == {"fresh", "reset 12"}
    assert {case.condition for case in only(study, cases, {"modules": "1 2"})} == {"fresh", "reset 1 2"}
    assert len({case.factors.get("modules") for case in cases}) == len(subsets_to_reset(profile)) + 1


@pytest.mark.parametrize("n", [2, 5, 7, 12])
def test_there_is_no_verdict_on_six_modules_where_a_network_has_others(of_modules, n):
    found = planted(of_modules(n))
    told = verdicts((claim, found) for claim in CLAIMS if claim.study == "reset")
    assert [verdict.verdict for verdict in told] == ["not run"] * 3


def test_the_last_modules_are_those_of_the_network(of_modules):
    found = planted(of_modules(7))
    assert in_words(found).startswith(
        "The mean gap by number of last modules re-initialised is −10.0 for 0, "
    )
    assert in_words(found).endswith("−4.0 for 6 and −3.0 for 7.")
    axes = reset_gaps(found.gaps, range(1, 8)).axes
    assert [ax.get_title() for ax in axes] == ["First k", "Last k", "Only k"]
    for ax, k in zip(axes, (7, 7, 1), strict=True):
        [last] = [line for line in ax.lines if line.get_markersize() == 8 and line.get_xdata()[0] == 7]
        assert last.get_ydata()[0] == pytest.approx(k - 10)


def test_resets_of_any_number_of_modules_can_be_drawn():
    names = [reset_condition(tuple(range(1, k + 1))) for k in (6, 7, 13)]
    rows = pd.DataFrame({"condition": names, "seed": 0, "gap": -1.0})
    assert len(common.gap_strip(rows).axes[0].get_yticks()) == 3
    assert len({(style.colour(name), style.marker(name)) for name in names}) == 1
