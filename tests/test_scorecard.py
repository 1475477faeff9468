from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from repro import profiles, scorecard
from repro.analysis import recorded
from repro.analysis.claims import NotFitted, sample, slope
from repro.analysis.curves import epochs_to_reach
from repro.questions import CLAIMS, STUDIES, capacity
from repro.questions.two_phases import at_best_rates, probe_ratio, sharpness_at_equal_loss
from repro.store.records import ROOT, Store
from repro.study import LONGER


def curves(train_accuracy, condition="fresh", seed=0):
    n = len(train_accuracy)
    return pd.DataFrame(
        {
            "condition": condition,
            "seed": seed,
            "stage": 1,
            "epoch": range(1, n + 1),
            "train_accuracy": train_accuracy,
        }
    )


@pytest.mark.parametrize(
    ("accuracy", "epochs"),
    [
        ([0.5, 0.8, 1.0], 2.5),  # half way from 0.8 to 1
        ([0.5, 0.9, 1.0], 2.0),
        ([0.95, 1.0], 1.0),
        ([0.5, 0.95, 0.6, 1.0], 2 - 0.05 / 0.45),  # the first time counts
        ([0.2, 0.3], np.nan),
    ],
)
def test_epochs_to_reach_a_level_are_counted_between_epochs(accuracy, epochs):
    found = epochs_to_reach(curves(accuracy), 0.9)
    assert found.epochs.tolist() == pytest.approx([epochs], nan_ok=True)


def test_only_the_last_stage_counts_for_speed():
    second = curves([0.3, 0.9], "warm start").assign(stage=2)
    both = pd.concat([curves([0.95, 1.0], "warm start"), second])
    assert epochs_to_reach(both, 0.9).epochs.tolist() == [2.0]


def test_slope_is_that_of_a_line_within_each_seed():
    columns = [pd.Series([1.0, 5.0]), pd.Series([-1.0, 5.5]), pd.Series([-3.0, 6.0])]
    assert slope(columns, (1, 2, 3)).tolist() == pytest.approx([-2.0, 0.5])


def test_every_claim_belongs_to_a_study_and_is_not_run_where_nothing_is_recorded():
    assert {claim.study for claim in CLAIMS} <= set(STUDIES)
    assert len({claim.id for claim in CLAIMS}) == len(CLAIMS)
    card = scorecard.scorecard(profiles.profile("smoke"))
    assert {verdict.verdict for verdict in card.values()} == {"not run"}
    assert all(recorded.results(study, profiles.profile("smoke")).gaps.empty for study in STUDIES.values())


def best_rates(case):
    """Fresh networks are best at 3x, warm starts at 10x; other rates are better on test images alone."""
    best = {"fresh": 3, "warm start": 10}[case.condition] == case.factors["rate"]
    if case.factors["held_out"]:
        return 0.9 if best else 0.5
    return {"fresh": 0.7, "warm start": 0.64}[case.condition] if best else 0.99


def planted(study, accuracy, curve=(0.5, 1.0)):
    """Results of a study whose runs have the accuracies that `accuracy(case)` gives them."""
    profile = profiles.profile("smoke")
    rows, parts = [], []
    for case in STUDIES[study].cases(profile):
        row = {"condition": case.condition, "seed": case.seed, **case.factors, "train_accuracy": 1.0}
        rows.append(row | {"test_accuracy": accuracy(case) + 0.001 * case.seed**2})
        parts.append(curves(curve, case.condition, case.seed))
    return recorded.Results(STUDIES[study], profile, pd.DataFrame(rows), pd.concat(parts), 0)


@pytest.mark.parametrize(
    ("claim", "study", "accuracy", "expected"),
    [
        ("gap", "warm_start", lambda c: 0.8 - 0.1 * (c.condition != "fresh"), -10),
        ("gap_sgd", "optimizers", lambda c: 0.8 - 0.1 * (c.condition != "fresh"), -10),
        ("gap_as_many_steps", "budget", lambda c: 0.8 + 0.1 * (c.condition == LONGER), -10),
        ("gap_best_rates", "rates", best_rates, -6),
        (
            "grows_with_stages",
            "stages",
            lambda c: 0.9 - 0.02 * c.factors["parts"] - 0.03 * (c.factors["ratio"] < 1),
            -2,
        ),
        (
            "grows_with_imbalance",
            "stages",
            lambda c: 0.9 - 0.04 * (c.condition != "fresh") * (1 - c.factors["ratio"]),
            -4,
        ),
        (
            "every_capacity",
            "capacity",
            lambda c: 0.8 - 0.01 * c.factors["width"] * (c.condition != "fresh"),
            -2,
        ),
        ("survives_smoothness", "smooth_transition", lambda c: 0.8 - 0.03 * (c.condition == "smooth"), -3),
        ("rate_shrinks", "two_phases", lambda c: 0.8 - 0.1 * (c.condition == "warm start"), 10),
        ("small_reset", "reset", lambda c: 0.8 - 0.05 * (c.condition in ("reset 6", "reset 5 6")), -5),
        ("deep_reset", "reset", lambda c: 0.8 - 0.1 * (c.condition == "warm start"), 2),
    ],
)
def test_a_claim_measures_what_was_planted(claim, study, accuracy, expected):
    [asked] = [c for c in CLAIMS if c.id == claim]
    found = sample(asked, planted(study, accuracy))
    assert found.means.max() == pytest.approx(expected, abs=1e-6)
    assert found.seeds == 3


def test_a_best_rate_is_not_known_before_all_rates_are_recorded():
    """Of those that happen to be there, another one may lead."""
    [asked] = [c for c in CLAIMS if c.id == "gap_best_rates"]
    whole = planted("rates", best_rates)
    without = whole.table[(whole.table.rate != 10) | ~whole.table.held_out.astype(bool)]
    part = replace(whole, table=without, missing=6)
    assert sample(asked, part).seeds == 0 and "are not recorded yet" in at_best_rates(part)
    told = at_best_rates(whole)
    assert "10 times the base rate for warm starts, 3 times for fresh networks" in told
    assert "the gap is −6.0" in told and "which excludes zero" in told


def test_sharpness_is_compared_at_one_training_loss():
    """Both networks lie on one curve of sharpness against loss; the warm one has gone further along it."""
    rows = [
        {"condition": name, "seed": 0, "tuning_epochs": n, "curvature": 7 * loss**0.5, "curvature_loss": loss}
        for name, losses in {"fresh": (1.0, 0.1, 0.01), "warm start": (0.5, 0.02, 0.001)}.items()
        for n, loss in enumerate(losses, start=1)
    ]
    found = sharpness_at_equal_loss(pd.DataFrame(rows))
    assert found.loc[0].tolist() == pytest.approx([0.7, 0.7])
    lacking = sharpness_at_equal_loss(pd.DataFrame(rows[:4]))  # the warm one's first probe alone
    assert np.isnan(lacking.loc[0, "warm start"]) or lacking.loc[0, "fresh"] > 0


def test_a_claim_is_told_at_the_largest_scale_that_is_whole(monkeypatch):
    told = scorecard.best()
    assert {v.verdict for v in told.values()} == {"not run"}
    monkeypatch.setenv("REPRO_RESULTS", str(ROOT / "results"))
    told = scorecard.best()
    assert (told["gap"].profile, told["gap"].effect.n) == ("cifar10", 5)
    assert told["gap_as_many_steps"].profile != "cifar10", "its records there were seen before the rule"


@pytest.mark.parametrize(("warm", "expected"), [(2.0, np.log(2)), (0.5, -np.log(2))])
def test_probe_ratios_are_logarithms_of_warm_over_fresh(warm, expected):
    results = planted("probes", lambda case: 0.8)
    table = results.table.assign(gradient_noise=np.where(results.table.condition == "fresh", 1.0, warm))
    results = recorded.Results(results.study, results.profile, table, results.curves, 0)
    assert probe_ratio(results, "gradient_noise", [1, 2]).tolist() == pytest.approx([expected] * 3)
    lacking = replace(results, table=table[:-1])  # of the last seed, at a later epoch
    assert probe_ratio(lacking, "gradient_noise", [1, 2]).tolist() == pytest.approx([expected] * 2)


def record(case):
    """Write a record of a case with made-up curves."""
    made = [
        dict.fromkeys(("train_loss", "train_accuracy", "test_accuracy"), [1.0] * s.epochs)
        for s in case.run.stages
    ]
    names = "noise_trace", "noise_signal", "curvature", "curvature_loss"
    measured = dict.fromkeys(names, 1.0) if case.run.probes else {}
    known = {"seconds": 1.0, "device": "x", "precision": "x", "data": "x"}
    Store.of("smoke").write(case.run, diverged=None, curves=made, probes=measured, **known)


@pytest.mark.parametrize("study", STUDIES)
def test_a_scorecard_can_be_drawn_up_whatever_is_recorded(study):
    """All of one study, which holds parts of others; before that, its first runs alone."""
    profile = profiles.profile("smoke")
    cases = STUDIES[study].cases(profile)
    for part in (cases[:1], cases[: len(cases) // 2], cases):
        for case in part:
            record(case)
        card = scorecard.scorecard(profile)
        words = {verdict.verdict for verdict in card.values()}
        assert words <= {"not run", "not tested", "incomplete", "inconclusive", "reproduced", "contradicted"}
    told = {claim.id: card[claim.id].verdict for claim in CLAIMS if claim.study == study}
    assert "incomplete" not in told.values()


def test_a_claim_on_every_condition_waits_for_all_of_a_seed():
    profile = profiles.profile("smoke")
    cases = STUDIES["capacity"].cases(profile)
    narrow = [case for case in cases if case.factors["width"] == min(c.factors["width"] for c in cases)]
    for case in narrow:
        record(case)
    assert scorecard.scorecard(profile)["every_capacity"].verdict == "not run"
    for case in cases:
        if case.seed == 1:
            record(case)
    found = scorecard.scorecard(profile)["every_capacity"]
    assert (found.verdict, found.effect.n) == ("incomplete", 1)


def test_a_claim_on_every_size_is_not_tested_where_one_does_not_fit():
    [asked] = [c for c in CLAIMS if c.id == "every_capacity"]
    made = planted("capacity", lambda c: 0.8 - 0.1 * (c.condition != "fresh"))
    deep = made.table.depth == made.table.depth.max()
    made.table.loc[deep & (made.table.condition == "fresh"), "train_accuracy"] = 0.97
    with pytest.raises(NotFitted, match="depth"):
        sample(asked, made)
    assert "cannot be tested, the mean gap is" in capacity.found(made)
    half_made = made.table.drop(made.table.index[deep & (made.table.condition != "fresh")])
    assert "cannot be tested" not in capacity.found(replace(made, table=half_made))
