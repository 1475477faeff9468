import json
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest

from repro import profiles
from repro.config import ALL, HALF, Dataset, InputError, Model, Optimizer, Stage
from repro.data.datasets import steps_per_epoch
from repro.profiles import PROFILES, profile
from repro.questions import STUDIES, by_priority, studies
from repro.store.records import ROOT
from repro.study import HELD_OUT_SEEDS, LONGER
from repro.sweep import plans

NAMES = (
    "smoke",
    "minutes",
    "quick",
    "digits",
    "laptop",
    "cifar10-small",
    "cifar10",
    "cifar10-wide",
    "paper",
)


def test_the_profiles_by_name():
    assert tuple(PROFILES) == NAMES
    assert all(profile(name).name == name for name in NAMES)


# Studies


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("study", STUDIES)
def test_every_profile_builds_every_study(name, study):
    chosen = profile(name)
    cases = STUDIES[study].cases(chosen)
    seeds = defaultdict(list)
    for case in cases:
        factors = tuple(sorted(case.factors.items()))
        seeds[case.condition, factors].append(case.seed)
        assert steps_per_epoch(case.run) >= 1
        assert case.run.probes or (case.epochs or case.run.stages[-1].epochs) >= chosen.window
        assert not case.epochs or case.run.test_window is None  # tested in the window that counts
    number, first = chosen.seeds if study == "warm_start" else chosen.study_seeds, chosen.first_seed
    for (_, factors), drawn in seeds.items():
        few = HELD_OUT_SEEDS if ("held_out", True) in factors else number
        assert drawn == list(range(first, first + few))
    assert len({(case.run.id, case.epochs) for case in cases}) == len(cases)
    assert (sum(group.steps for group in plans.plan(case.run for case in cases).groups) > 0) == bool(cases)


@pytest.mark.parametrize("study", STUDIES)
def test_every_pretrained_run_has_a_fresh_one_to_be_compared_with(study):
    cases = STUDIES[study].cases(profile("cifar10"))
    pair = {id(case): (case.seed, *(case.factors[name] for name in STUDIES[study].pairs)) for case in cases}
    fresh = [case for case in cases if case.condition == "fresh"]
    assert len({pair[id(case)] for case in fresh}) == len(fresh)
    for case in fresh:
        assert case.run.parent is None
    for case in cases:
        [partner] = [other for other in fresh if pair[id(other)] == pair[id(case)]]
        assert partner.run.model == case.run.model
        assert partner.run.split_seed == case.run.split_seed
        assert partner.run.stages[-1].data == ALL


def test_all_subsets_of_modules_are_reset_where_grids_are_full():
    cases = STUDIES["reset"].cases(profile("paper"))
    resets = [case.run.stages[1].reset for case in cases if case.seed == 0 and case.condition != "fresh"]
    assert len(resets) == len(set(resets)) == 64


def test_conditions_of_a_seed_are_paired():
    cases = STUDIES["warm_start"].cases(profile("smoke"))
    for seed in range(3):
        fresh, warm = (case.run for case in cases if case.seed == seed)
        assert (fresh.split_seed, fresh.init_seed, fresh.order_seed) == (seed, seed, seed)
        assert warm.stages[-1:] == fresh.stages
        assert replace(warm, stages=fresh.stages) == fresh


def test_paper_is_the_paper():
    cases = STUDIES["warm_start"].cases(profile("paper"))
    assert profile("paper").window == 100
    assert len(cases) == 2 * profile("paper").seeds
    adam = Optimizer("adam", 0.001)
    tuning = Stage(500, ALL, adam)
    assert {(case.condition, case.run.stages) for case in cases} == {
        ("fresh", (tuning,)),
        ("warm start", (Stage(350, HALF, adam), tuning)),
    }
    for case in cases:
        assert case.run.dataset == Dataset("cifar10")
        assert case.run.model == Model(width=64, depth=2)
        assert case.run.batch_size == 128
        assert steps_per_epoch(case.run) == 390
        assert case.run.parent is None or steps_per_epoch(case.run.parent) == 195


def test_studies_are_chosen_by_name():
    assert studies() == list(STUDIES.values())
    assert [study.name for study in studies(["warm_start", "warm_start"])] == ["warm_start"]
    with pytest.raises(InputError, match="unknown study 'cold_start': choose from warm_start"):
        studies(["warm_start", "cold_start"])


# Settings


def test_settings_come_as_what_their_fields_are():
    chosen = profile(
        "smoke", ["width=6", " learning_rate = 1e-2", "train=all", "test=200", "noise=0", "full_grids=true"]
    )
    expected = {
        "width": 6,
        "learning_rate": 0.01,
        "train": None,
        "test": 200,
        "noise": 0.0,
        "full_grids": True,
    }
    for field, value in expected.items():
        assert getattr(chosen, field) == value
        assert type(getattr(chosen, field)) is type(value)
    changed = replace(PROFILES["smoke"], **expected)
    assert chosen == changed
    assert profile("quick", ["dataset=cifar10"]).data().name == "cifar10"


def test_the_last_of_two_settings_of_a_field_counts_and_seeds_come_after_them():
    assert profile("smoke", ["width=6", "width=8"]).width == 8
    assert profile("smoke", ["seeds=2"]).seeds == 2
    assert profile("smoke", ["seeds=2"], seeds=7).seeds == 7


def test_settings_do_not_change_the_named_profile():
    before = dict(PROFILES)
    profile("smoke", ["width=6"])
    assert before == PROFILES
    assert profile("smoke") is not None
    assert profile("smoke").width == 4


def test_settings_reach_the_runs():
    [case, *_] = STUDIES["warm_start"].cases(profile("smoke", ["learning_rate=0.01", "batch_size=16"], 1))
    assert case.run.batch_size == 16
    assert case.run.stages[0].optimizer == Optimizer("adam", 0.01)


def test_an_npz_file_is_a_data_set(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    labels = np.arange(40) % 4
    file = tmp_path / "mine.npz"
    np.savez(file, x_train=images, y_train=labels, x_test=images[:20], y_test=labels[:20])
    chosen = profile("smoke", [f"dataset={file}", "train=all", "test=20", "batch_size=8"])
    found = chosen.data()
    assert (found.name, found.train, found.test) == ("own", None, 20)
    assert found.fingerprint
    assert steps_per_epoch(STUDIES["warm_start"].cases(chosen)[0].run) == 5
    with pytest.raises(InputError, match=r"mine\.npz"):
        profile("smoke", [f"dataset={tmp_path / 'not' / 'mine.npz'}"]).data()


# Mistakes


def refusal(*settings, seeds=None, name="smoke"):
    """The line that refuses these settings, before anything is trained."""
    with pytest.raises(InputError) as refused:
        cases = STUDIES["warm_start"].cases(profile(name, settings, seeds))
        sum(group.steps for group in plans.plan(case.run for case in cases).groups)
    assert len(str(refused.value).splitlines()) == 1
    return str(refused.value)


def test_an_unknown_profile_is_refused_with_all_names():
    assert refusal(name="tiny") == f"unknown profile 'tiny': choose from {', '.join(NAMES)}"


@pytest.mark.parametrize("text", ["witdh=8", "name=mine", "width", "", "=8", "width 8", "Width=8"])
def test_a_mistyped_setting_is_refused_with_all_fields(text):
    message = refusal(text)
    assert repr(text) in message
    assert "field=value" in message
    for field in (name.replace("_settings", ".NAME") for name in profiles.FIELDS if name != "name"):
        assert field in message


@pytest.mark.parametrize(
    ("text", "allowed"),
    [
        ("width=wide", "a whole number"),
        ("width=4.5", "a whole number"),
        ("width=", "a whole number"),
        ("width=8=8", "a whole number"),
        ("seeds=all", "a whole number"),
        ("train=many", "a whole number"),
        ("train=many", "all"),
        ("train=", "all"),
        ("test=0.5", "all"),
        ("learning_rate=fast", "a number"),
        ("learning_rate=", "a number"),
        ("noise=all", "a number"),
        ("full_grids=1", "true or false"),
        ("full_grids=", "true or false"),
        ("dataset=", "digits"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_with_its_field_and_what_it_takes(text, allowed):
    field, _, value = text.partition("=")
    message = refusal(text)
    assert field in message.replace("data set", "dataset")
    assert allowed in message
    assert repr(value) in message


@pytest.mark.parametrize(
    "text",
    [
        "width=0",
        "depth=-1",
        "batch_size=0",
        "batch_size=1",
        "learning_rate=0",
        "learning_rate=-0.001",
        "learning_rate=nan",
        "learning_rate=inf",
        "noise=-1",
        "noise=inf",
        "train=1",
        "test=0",
        "pretraining_epochs=0",
        "tuning_epochs=0",
        "window=0",
        "seeds=0",
        "study_seeds=0",
    ],
)
def test_a_value_out_of_range_is_refused_with_its_field_and_the_range(text):
    message = refusal(text)
    assert text.partition("=")[0] in message
    assert any(word in message for word in ("must be", "must not be", "must lie"))


def test_values_that_do_not_fit_together_are_refused():
    assert "window (2) is longer than tuning_epochs (1)" in refusal("tuning_epochs=1")
    assert "batch_size 81" in refusal("batch_size=81")  # more than the half of 160 images
    assert "seeds" in refusal(seeds=0)
    assert "unknown data set 'mnist': choose from digits, cifar10" in refusal("dataset=mnist")


# What the H200 recorded first keeps its place


@pytest.mark.parametrize(("name", "width", "number"), [("cifar10", 16, 15), ("cifar10-wide", 64, 4)])
def test_the_first_records_of_a_gpu_are_runs_of_their_profile(name, width, number):
    """Fields of runs were added since: none of them may change an id, nor may a study plan other runs."""
    first = {path.stem for path in (ROOT / "results" / name).glob("*.json")}
    made = {
        record["id"]
        for record in map(json.loads, (p.read_text() for p in (ROOT / "results" / name).glob("*.json")))
        if record["commit"] == "585f4d61001a36512c5f2dbad6b9649ed8681eeb"
    }
    planned = {c.run.id: c.run for study in studies() for c in study.cases(profile(name))}
    assert len(made) == number and made <= first <= planned.keys()
    assert {planned[run_id].model.width for run_id in made} == {width}


def test_arms_tuned_for_fewer_epochs_begin_as_the_longer_runs_that_are_recorded():
    chosen = profile("cifar10")
    by_condition = {case.condition: case for case in STUDIES["reset"].cases(chosen) if case.seed == 0}
    for condition in ("fresh", "warm start", "reset 3 4 5 6"):
        case = by_condition[condition]
        assert (case.run.stages[-1].epochs, case.epochs) == (75, 45)
    assert (by_condition["reset 6"].run.stages[-1].epochs, by_condition["reset 6"].epochs) == (45, None)
    whole = {case.run.id for case in STUDIES["warm_start"].cases(chosen)}
    assert by_condition["warm start"].run.id in whole
    [longer] = [c for c in STUDIES["budget"].cases(chosen) if (c.condition, c.seed) == (LONGER, 0)]
    assert longer.epochs == 45 + 25 and longer.run.id in whole


def test_each_seed_of_the_small_profile_has_images_of_its_own_and_tests_on_all():
    chosen = profile("cifar10-small")
    runs = {case.seed: case.run for case in STUDIES["warm_start"].cases(chosen)}
    assert len({run.dataset for run in runs.values()}) == len(runs) == 8
    assert {(run.dataset.train, run.dataset.test) for run in runs.values()} == {(3000, None)}
    assert min(runs) == 100  # seeds of before had been looked at


def test_runs_that_say_most_come_first():
    order = by_priority(case for study in studies() for case in study.cases(profile("cifar10")))
    of = {
        case.run.id: (case.condition, study.name)
        for study in reversed(STUDIES.values())
        for case in study.cases(profile("cifar10"))
    }
    names = list(dict.fromkeys(of[run.id][0] for run in order))
    assert names[:2] == ["fresh", "warm start"]
    assert (
        names.index("warm start, 10x")
        < names.index("reset 6")
        < names.index("smooth")
        < names.index("stages")
    )
