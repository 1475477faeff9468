"""The usual recipe: images that are moved at random, and weights that decay."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch

from repro import profiles
from repro.analysis.recorded import Results, results
from repro.config import HALF, Dataset, Model, Optimizer, Run, Stage
from repro.data.sampling import moves
from repro.questions import recipe, studies
from repro.questions.recipe import VARIANTS, at_own_rates, gaps
from repro.study import FRESH, LONGER, WARM
from repro.training.loop import Stopped, train_population
from repro.training.populations import Member, Population, moved

CPU = torch.device("cpu")
MOVED = Stage(3, shift=2, flip=True)


def run(*stages, seed=0):
    return Run(Dataset("digits", 96, 64), Model(2, 1), stages, 32, seed, seed, seed)


def train(runs, precision="float64", **settings):
    trained = train_population([Member(made) for made in runs], CPU, precision, **settings)
    return [snapshot for _, _, snapshot in sorted(trained, key=lambda found: found[0])]


def test_a_moved_image_is_cut_out_of_the_padded_one_and_mirrored():
    x = torch.randn(5, 3, 8, 8)
    padded = torch.nn.functional.pad(x, [2] * 4, "replicate")
    index, corners = torch.tensor([[4, 1], [0, 4]]), torch.randint(0, 5, (2, 2, 2))
    for mirrored in (0, 1):
        found = moved(padded, index, torch.cat([corners, torch.full((2, 2, 1), mirrored)], 2), 8)
        for p in range(2):
            for b in range(2):
                row, column = corners[p, b]
                expected = padded[index[p, b], :, row : row + 8, column : column + 8]
                assert torch.equal(found[p, b], expected.flip(2) if mirrored else expected)
    still = moved(padded, index, torch.tensor([2, 2, 0]).expand(2, 2, 3), 8)
    assert torch.equal(still, x[index])


def test_moves_cover_all_shifts_and_are_those_of_seed_stage_and_epoch():
    found = moves(run(Stage(1), seed=1), 5, 2, True)
    assert found.shape == (3, 32, 3)
    assert [np.unique(found[..., i]).tolist() for i in range(3)] == [[*range(5)], [*range(5)], [0, 1]]
    assert np.array_equal(found, moves(run(Stage(9), seed=1), 5, 2, True))
    others = [run(Stage(1), seed=2), run(Stage(1), Stage(1), seed=1)]
    assert not any(np.array_equal(found, moves(made, 5, 2, True)) for made in others)
    assert not np.array_equal(found, moves(run(Stage(1), seed=1), 6, 2, True))
    assert not moves(run(Stage(1)), 0, 0, False).any()


def test_training_sees_moved_images_of_the_same_examples():
    population = Population([Member(run(dataclasses.replace(MOVED, data=HALF)))], CPU, "float64")
    population.train_epoch()
    x, y = population._batch(population.batches[0], population.moves[0])
    still = population.x_train[population.batches[0]].transpose(0, 1).flatten(1, 2)
    assert torch.equal(y, population.y_train[population.batches[0]])
    assert x.shape == still.shape and not torch.equal(x, still)


@pytest.mark.parametrize(
    "stage", [MOVED, Stage(3, optimizer=Optimizer(weight_decay=0.5), shift=1)], ids=["moved", "decayed"]
)
def test_runs_come_out_the_same_alone_in_a_population_and_resumed(tmp_path, stage):
    runs = [run(stage, seed=seed) for seed in (0, 1)]
    together = train(runs)
    for made, found in zip(runs, together, strict=True):
        [alone] = train([made])
        for name, tensor in alone.state.items():
            assert torch.allclose(tensor, found.state[name], rtol=1e-9), name
    epochs = iter([False, True])
    with pytest.raises(Stopped):
        train(runs, checkpoint=tmp_path / "a.pt", stop=lambda: next(epochs))
    for a, b in zip(train(runs, checkpoint=tmp_path / "a.pt"), together, strict=True):
        assert a.curves == b.curves and all(torch.equal(t, b.state[n]) for n, t in a.state.items())


@pytest.mark.parametrize("name", ["adam", "sgd", "rmsprop"])
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_decay_shrinks_every_parameter_before_a_step(name, schedule):
    """At the first step, before which nothing else differs; as `torch.optim.AdamW` does."""
    rate, decay = 0.01, 3.0
    optimizers = [Optimizer(name, rate, schedule=schedule, weight_decay=d) for d in (decay, 0.0)]
    populations = [Population([Member(run(Stage(1, optimizer=o)))], CPU, "float64") for o in optimizers]
    before = {n: t.clone() for n, t in populations[0].networks[0].named_parameters()}
    for population in populations:
        population.batches.copy_(population._examples(0)[0])
        population._step()
    decayed, plain = (dict(population.networks[0].named_parameters()) for population in populations)
    for key, start in before.items():
        assert torch.allclose(decayed[key], plain[key] - rate * decay * start, atol=1e-12), key


def test_the_recipe_leaves_ids_without_it_as_they_were():
    cases = {
        name: study.cases(profiles.profile("smoke"))
        for name in ("recipe", "rates")
        for study in studies([name])
    }
    without = [case for case in cases["recipe"] if case.factors["recipe"] == "neither"]
    pairs = {case.run.id for case in without if case.condition in (FRESH, WARM)}
    assert pairs == {case.run.id for case in cases["rates"]}
    plain = {case.run.id for case in without}
    assert len({case.run.id for case in cases["recipe"]}) == 4 * len(plain)
    assert studies(["recipe"])[0].cases(profiles.profile("quick")) == []


def test_each_arm_is_compared_at_the_rate_that_held_out_images_choose():
    """Warm starts are best at 3 with both parts and at 10 with others, fresh ones the reverse."""
    conditions = (FRESH, LONGER, WARM)
    best = {(name, c): (10, 3)[(name == "both") == (c == WARM)] for name in VARIANTS for c in conditions}
    rows = [
        {"recipe": name, "condition": c, "rate": k, "held_out": held, "seed": seed}
        | {"test_accuracy": 0.5 + 0.01 * (k == rate) * held + 0.001 * k * (not held) - 0.02 * (c != FRESH)}
        for (name, c), rate in best.items()
        for k in (1, 3, 10)
        for held in (True, False)
        for seed in range(3)
    ]
    found = at_own_rates(pd.DataFrame(rows))
    assert len(found) == 3 * len(best)
    assert {key: set(rows.rate) for key, rows in found.groupby(["recipe", "condition"])} == {
        key: {rate} for key, rate in best.items()
    }
    assert found[found.condition != WARM].gap.isna().all()
    for name, warm in found[found.condition == WARM].groupby("recipe"):
        expected = best[name, WARM] - best[name, FRESH]
        assert warm.gap.tolist() == pytest.approx(3 * [100 * (0.001 * expected - 0.02)])
        assert warm.gap_longer.tolist() == pytest.approx(3 * [0.1 * expected])
    assert at_own_rates(pd.DataFrame(rows)[:0]).empty


def test_the_answer_waits_for_all_held_out_runs_and_for_those_at_the_chosen_rates():
    [study] = studies(["recipe"])
    profile = profiles.profile("smoke")
    rows = [
        {"condition": case.condition, "seed": case.seed, **case.factors, "run_id": case.run.id}
        | {"test_accuracy": 0.5 + 0.1 * (case.factors["rate"] == 1) - 0.2 * (case.condition == WARM)}
        for case in study.cases(profile)
    ]
    table = pd.DataFrame(rows)
    chosen = (table.rate == 1) & ~table.held_out
    needed = table[chosen | table.held_out]
    for part, answered in (
        (table, True),
        (needed, True),
        (needed.drop(needed.index[needed.held_out][-1]), False),
        (needed.drop(needed.index[~needed.held_out][-1]), False),
        (table.drop(table.index[chosen][0]), False),
    ):
        recorded = Results(study, profile, part, None, len(table) - len(part))
        assert recorded.answered == answered
        told = "−20.0 (95 % interval −20.0 to −20.0, 3 seeds) with both"
        assert (told in str(recipe.found(recorded))) == answered


def test_a_profile_without_the_study_says_so():
    [study] = studies(["recipe"])
    assert "has no runs with the usual recipe" in str(gaps(results(study, profiles.profile("quick"))))
    assert "Nothing is recorded here yet" in str(gaps(results(study, profiles.profile("smoke"))))
