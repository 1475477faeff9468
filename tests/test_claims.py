import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from repro.claims import ALPHA, LESS, MORE, SAME, Claim, holm, verdicts


def claim(direction=LESS, name="x", margin=1.0):
    return Claim(name, "words", "Figure 0", name, lambda results: results.table, direction, margin)


def recorded(values):
    return SimpleNamespace(table=pd.DataFrame(values))


def verdict(values, **kind):
    [found] = verdicts({"x": recorded(values)}, [claim(**kind)])
    return found


CLEAR = [-5.0, -5.5, -4.5, -5.2, -4.8]


@pytest.mark.parametrize(
    ("values", "direction", "word"),
    [
        (CLEAR, LESS, "reproduced"),
        (CLEAR, MORE, "contradicted"),
        ([-v for v in CLEAR], MORE, "reproduced"),
        ([-v for v in CLEAR], LESS, "contradicted"),
        ([-5.0, 4.0, -1.0, 3.0], LESS, "inconclusive"),
        ([0.1, -0.1, 0.05, -0.02, 0.0], SAME, "reproduced"),
        (CLEAR, SAME, "contradicted"),
        ([-v for v in CLEAR], SAME, "contradicted"),
        ([-5.0, 4.0, -1.0, 3.0], SAME, "inconclusive"),
        ([-5.0, -5.1], LESS, "inconclusive"),  # two seeds decide nothing
        ([], LESS, "not run"),
        ([0.0, 0.0, 0.0], LESS, "inconclusive"),
    ],
)
def test_verdict(values, direction, word):
    assert verdict(values, direction=direction).verdict == word


def test_effect_and_interval_come_with_the_verdict():
    found = verdict(CLEAR).as_json()
    assert found["effect"] == pytest.approx(-5.0) and found["n"] == 5
    assert found["interval"][0] < -5 < found["interval"][1] < 0
    assert set(found) >= {"id", "claim", "figure", "verdict", "effect", "interval", "n", "p"}


def test_json_of_a_claim_without_records_is_valid_json():
    text = json.dumps(verdict([]).as_json(), allow_nan=False)
    assert json.loads(text)["p"] is None


def test_holm_is_the_textbook_procedure():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_never_lowers_a_p_value_and_keeps_their_order(p):
    adjusted = holm(p)
    assert all(a >= b for a, b in zip(adjusted, p, strict=True)) and max(adjusted) <= 1
    for i in range(len(p)):
        for j in range(len(p)):
            assert p[i] >= p[j] or adjusted[i] <= adjusted[j]


@pytest.mark.parametrize("direction", [LESS, MORE])
def test_any_false_reproduction_on_null_data_is_as_rare_as_stated(direction):
    """Ten true null hypotheses: at most ALPHA of such scorecards hold a false verdict of a kind."""
    random = np.random.default_rng(1)
    claims = [claim(direction, f"c{i}") for i in range(10)]
    trials, words = 600, []
    for _ in range(trials):
        tables = {c.study: recorded(random.normal(size=5)) for c in claims}
        words.append({v.verdict for v in verdicts(tables, claims)})
    for word in ("reproduced", "contradicted"):
        rate = np.mean([word in found for found in words])
        assert rate < ALPHA + 3 * (ALPHA * (1 - ALPHA) / trials) ** 0.5


def test_equivalence_at_the_margin_is_claimed_as_rarely_as_stated():
    random = np.random.default_rng(2)
    found = [verdict(random.normal(1.0, 0.4, 5), direction=SAME).verdict for _ in range(600)]
    assert found.count("reproduced") / 600 < ALPHA + 3 * (ALPHA * 0.95 / 600) ** 0.5


def test_a_claim_about_several_conditions_has_to_hold_in_all_of_them():
    strong, weak = np.array(CLEAR), np.array([-1.0, 2.0, -2.0, 1.5, 0.3])
    assert verdict(np.stack([strong, strong - 1], 1)).verdict == "reproduced"
    found = verdict(np.stack([strong, weak], 1))
    assert found.verdict == "inconclusive" and found.effect.mean == pytest.approx(weak.mean())
    assert verdict(np.stack([strong, -strong], 1)).verdict == "contradicted"


def test_a_study_of_which_a_condition_is_missing_is_not_run():
    def effect(results):
        return results.table["absent"]

    found = verdicts({"x": recorded({"there": [1.0]})}, [Claim("x", "words", "Figure 0", "x", effect)])
    assert [v.verdict for v in found] == ["not run"]


def test_a_p_value_is_never_shown_as_nought():
    exact = verdict([0.0] * 5, direction=SAME)
    assert (exact.p, exact.p_text) == (0.0, "< 0.0001")
    assert str(exact).endswith(", p < 0.0001")
    assert ", p = 0." in str(verdict([-5.0, 4.0, -1.0, -3.0]))
    assert verdict([1.0]).p_text == ""
