import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repro.config import (
    ALL,
    HALF,
    MODULES,
    PROBES,
    Dataset,
    InputError,
    Model,
    Optimizer,
    Run,
    Stage,
    Subset,
    as_json,
    run_from_json,
)

PAPER = Run(Dataset("cifar10"), Model(), (Stage(350, HALF), Stage(500)))

SIGNS = st.characters(exclude_categories=["Cs"])  # as by default, without asking a codec of each sign

seeds = st.integers(0, 2**64)
sizes = st.none() | st.integers(2, 10**6)
rates = st.floats(1e-12, 1e3)
datasets = st.builds(
    Dataset,
    name=st.text(SIGNS, min_size=1, max_size=12),
    train=sizes,
    test=sizes,
    noise=st.floats(0, 10),
    fingerprint=st.none() | st.text("0123456789abcdef", min_size=16, max_size=16),
)
models = st.builds(Model, width=st.integers(1, 512), depth=st.integers(1, 8))
schedules = st.sampled_from(["constant", "cosine"])
optimizers = st.builds(
    Optimizer, name=st.sampled_from(["adam", "rmsprop"]), learning_rate=rates, schedule=schedules
) | st.builds(
    Optimizer, name=st.just("sgd"), learning_rate=rates, momentum=st.floats(0, 0.999), schedule=schedules
)


@st.composite
def subsets(draw):
    parts = draw(st.integers(1, 20))
    part, ratio = draw(st.integers(1, parts)), draw(st.floats(0, 1))
    return Subset(part, parts, ratio, draw(st.none() | st.floats(0.001, 0.999)))


def stages(**changes):
    return st.builds(
        Stage,
        epochs=st.integers(1, 1000),
        data=subsets(),
        optimizer=optimizers,
        until=st.none() | st.floats(0.01, 1),
        **changes,
    )


later = stages(
    reset=st.lists(st.sampled_from(MODULES), max_size=8).map(tuple),
    shrink=st.floats(0, 1),
    perturb=st.floats(0, 2),
)
chains = st.builds(lambda first, others: (first, *others), stages(), st.lists(later, max_size=3))
runs = st.builds(
    Run,
    dataset=datasets,
    model=models,
    stages=chains,
    batch_size=st.integers(2, 1024),
    split_seed=seeds,
    init_seed=seeds,
    order_seed=seeds,
    probes=st.lists(st.sampled_from(PROBES), unique=True).map(tuple),
)


# Ids


def test_ids_stay_as_they_were():
    """Records are named by them: were one of these to change, every published record would be lost."""
    assert PAPER.id == "39c167369861c058"
    stages = '[{"data":{"parts":2},"epochs":350},{"epochs":500}]'
    text = '{"dataset":{"name":"cifar10"},"model":{},"stages":' + stages + "}"
    assert PAPER.id == hashlib.sha256(text.encode()).hexdigest()[:16]
    every = Run(
        Dataset("mine", 1000, 500, 0.25, "0123456789abcdef"),
        Model(8, 1),
        (
            Stage(5, Subset(1, 3, 0.5), Optimizer("sgd", 0.1, 0.9), until=0.99),
            Stage(10, Subset(2, 3, 0.5, 0.7), Optimizer("rmsprop"), (4, 5, 6)),
        ),
        32,
        1,
        2,
        3,
    )
    assert every.id == "371021fa83ba273f"


def test_a_setting_written_out_at_its_default_changes_no_id():
    spelt = Run(
        Dataset("cifar10", None, None, 0.0, None, None),
        Model(64, 2),
        (
            Stage(350, Subset(1, 2, 1.0, None), Optimizer("adam", 0.001, 0.0), (), None),
            Stage(500, Subset(1, 1, 1.0, None), Optimizer("adam", 0.001, 0.0), (), None),
        ),
        128,
        0,
        0,
        0,
    )
    assert spelt == PAPER
    assert spelt.id == PAPER.id


def test_a_field_added_later_changes_no_id_of_runs_without_it():
    @dataclass(frozen=True)
    class Later(Model):
        dropout: float = 0.0

    assert replace(PAPER, model=Later()).id == PAPER.id
    assert replace(PAPER, model=Later(dropout=0.1)).id != PAPER.id


def test_whole_numbers_give_one_id_as_integers_and_as_floats():
    def made(one, zero):
        stage = Stage(3, Subset(1, 2, one), Optimizer("sgd", one, zero), until=one)
        return Run(Dataset("digits", noise=one), Model(8, 1), (stage,), init_seed=7)

    assert made(1, 0).id == made(1.0, 0.0).id
    assert made(1, 0) == made(1.0, 0.0)


def test_the_order_and_repetition_of_probes_do_not_matter():
    one, other = (
        replace(PAPER, probes=probes)
        for probes in (("sharpness", "gradient_noise"), ("gradient_noise", "sharpness", "gradient_noise"))
    )
    assert one.id == other.id
    assert one == other


def test_the_order_of_modules_to_reset_does_not_matter():
    one, other = (Stage(1, reset=reset) for reset in ((6, 4, 5), (4, 5, 6, 6)))
    assert one == other
    assert one.reset == (4, 5, 6)


@settings(max_examples=50)
@given(runs, runs)
def test_runs_have_one_id_exactly_when_they_are_equal(a, b):
    assert (a.id == b.id) == (a == b)
    assert len(a.id) == 16
    assert set(a.id) <= set("0123456789abcdef")


@given(runs)
def test_every_single_change_gives_a_new_id(run):
    last = run.stages[-1]
    changed = [
        replace(run, dataset=replace(run.dataset, name=run.dataset.name + "x")),
        replace(run, dataset=replace(run.dataset, train=2 if run.dataset.train != 2 else 3)),
        replace(run, dataset=replace(run.dataset, test=2 if run.dataset.test != 2 else 3)),
        replace(run, dataset=replace(run.dataset, noise=run.dataset.noise + 1)),
        replace(run, dataset=replace(run.dataset, fingerprint="another")),
        replace(run, model=replace(run.model, width=run.model.width + 1)),
        replace(run, model=replace(run.model, depth=run.model.depth + 1)),
        replace(run, batch_size=run.batch_size + 1),
        replace(run, split_seed=run.split_seed + 1),
        replace(run, init_seed=run.init_seed + 1),
        replace(run, order_seed=run.order_seed + 1),
        replace(run, stages=(*run.stages, last)),
        replace(run, probes=() if run.probes else PROBES),
    ]
    other = "rmsprop" if last.optimizer.name == "adam" else "adam"
    for stage in (
        replace(last, epochs=last.epochs + 1),
        replace(last, data=replace(last.data, parts=last.data.parts + 1)),
        replace(last, data=replace(last.data, ratio=1 - last.data.ratio / 2 if last.data.ratio else 1)),
        replace(last, data=replace(last.data, gamma=0.5 if last.data.gamma != 0.5 else None)),
        replace(last, optimizer=Optimizer(other, last.optimizer.learning_rate)),
        replace(last, optimizer=replace(last.optimizer, learning_rate=2 * last.optimizer.learning_rate)),
        replace(last, until=0.5 if last.until != 0.5 else None),
    ):
        if stage != last:
            changed.append(replace(run, stages=(*run.stages[:-1], stage)))
    ids = [run.id, *(c.id for c in changed)]
    assert len(set(ids)) == len(ids)


def test_the_place_of_an_npz_file_is_not_part_of_the_run():
    here, there = (
        Dataset("mine", fingerprint="0123456789abcdef", path=path) for path in ("/a/mine.npz", "/b/mine.npz")
    )
    assert here == there
    one, other = (replace(PAPER, dataset=dataset) for dataset in (here, there))
    assert one.id == other.id
    assert "/a/mine.npz" not in json.dumps(as_json(one))
    assert replace(PAPER, dataset=replace(here, fingerprint="fedcba9876543210")).id != one.id


# Data and back


@given(runs)
def test_a_run_comes_back_from_json(run):
    assert run_from_json(as_json(run)) == run
    text = json.dumps(as_json(run), allow_nan=False)
    assert run_from_json(json.loads(text)) == run
    assert run_from_json(json.loads(text)).id == run.id


@given(runs)
def test_a_run_comes_back_from_json_without_its_defaults(run):
    assert run_from_json(json.loads(json.dumps(as_json(run, defaults=False)))) == run


def test_json_names_every_setting_but_the_path():
    plain = as_json(PAPER)
    assert plain["dataset"].keys() == {f.name for f in dataclasses.fields(Dataset)} - {"path"}
    assert plain.keys() == {f.name for f in dataclasses.fields(Run)}
    assert plain["stages"][0].keys() == {f.name for f in dataclasses.fields(Stage)}
    assert plain["stages"][0]["data"] == {"part": 1, "parts": 2, "ratio": 1, "gamma": None}


@pytest.mark.parametrize(
    "change",
    [
        {"stages": []},
        {"stages": [{"epochs": 0}]},
        {"stages": [{"epochs": 1, "colour": "red"}]},
        {"stages": 3},
        {"model": {"width": 0}},
        {"model": None},
        {"batch_size": "many"},
        {"speed": 1},
    ],
)
def test_json_that_is_no_run_is_refused(change):
    with pytest.raises((InputError, TypeError, KeyError)):
        run_from_json({**as_json(PAPER), **change})


# Stages


def test_parents_lead_back_to_the_first_stage():
    assert PAPER.parent == replace(PAPER, stages=(Stage(350, HALF),))
    assert PAPER.parent.parent is None


def test_configuration_cannot_be_changed_afterwards():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PAPER.batch_size = 64
    assert isinstance(Run(Dataset("digits"), Model(), [Stage(1)]).stages, tuple)


# Mistakes

WRONG = {
    "one training image": lambda: Dataset("digits", train=1),
    "a negative number of test images": lambda: Dataset("digits", test=-5),
    "negative noise": lambda: Dataset("digits", noise=-0.1),
    "noise that is no number": lambda: Dataset("digits", noise=math.nan),
    "infinite noise": lambda: Dataset("digits", noise=math.inf),
    "no width": lambda: Model(width=0),
    "half a channel": lambda: Model(width=4.5),
    "no blocks": lambda: Model(depth=0),
    "an unknown optimizer": lambda: Optimizer("adamw"),
    "a learning rate of zero": lambda: Optimizer(learning_rate=0),
    "a negative learning rate": lambda: Optimizer(learning_rate=-0.1),
    "a learning rate that is no number": lambda: Optimizer(learning_rate=math.nan),
    "an infinite learning rate": lambda: Optimizer(learning_rate=math.inf),
    "momentum of one": lambda: Optimizer("sgd", 0.1, 1.0),
    "negative momentum": lambda: Optimizer("sgd", 0.1, -0.1),
    "momentum that adam does not have": lambda: Optimizer("adam", 0.001, 0.9),
    "momentum that rmsprop is not given": lambda: Optimizer("rmsprop", 0.001, 0.9),
    "an unknown schedule": lambda: Optimizer(schedule="linear"),
    "part zero": lambda: Subset(part=0),
    "a part beyond the last": lambda: Subset(part=3, parts=2),
    "a negative ratio": lambda: Subset(ratio=-0.1),
    "a ratio above one": lambda: Subset(ratio=1.1),
    "a ratio that is no number": lambda: Subset(ratio=math.nan),
    "gamma of zero": lambda: Subset(gamma=0),
    "gamma of one": lambda: Subset(gamma=1),
    "no epochs": lambda: Stage(0),
    "half an epoch": lambda: Stage(2.5),
    "module zero": lambda: Stage(1, reset=(0,)),
    "module seven": lambda: replace(PAPER, stages=(Stage(1), Stage(1, reset=(6, 7)))),
    "an accuracy above one to end at": lambda: Stage(1, until=1.5),
    "an accuracy to end at that is no number": lambda: Stage(1, until=math.nan),
    "growth": lambda: Stage(1, shrink=1.1),
    "a negative perturbation": lambda: Stage(1, perturb=-0.1),
    "an infinite perturbation": lambda: Stage(1, perturb=math.inf),
    "no stages": lambda: replace(PAPER, stages=()),
    "new weights to reset": lambda: replace(PAPER, stages=(Stage(1, reset=(1,)),)),
    "new weights to shrink": lambda: replace(PAPER, stages=(Stage(1, shrink=0.5),)),
    "new weights to perturb": lambda: replace(PAPER, stages=(Stage(1, perturb=0.5),)),
    "an unknown probe": lambda: replace(PAPER, probes=("flatness",)),
    "batches of one": lambda: replace(PAPER, batch_size=1),
    "a negative split seed": lambda: replace(PAPER, split_seed=-1),
    "a negative init seed": lambda: replace(PAPER, init_seed=-1),
    "a negative order seed": lambda: replace(PAPER, order_seed=-1),
    "a hook without code": lambda: Stage(1, hook=len),
    "a hook by name": lambda: Stage(1, hook="len"),
    "a network without code": lambda: Model(code=len),
    "an optimizer by name": lambda: Stage(1, optimizer="adam"),
    "a subset by name": lambda: Stage(1, "half"),
    "numbers for stages": lambda: replace(PAPER, stages=[1, 2]),
    "one stage that is in no tuple": lambda: replace(PAPER, stages=Stage(1)),
    "one module that is in no tuple": lambda: Stage(1, reset=6),
    "half a module": lambda: Stage(1, reset=(4.5,)),
    "a word for epochs": lambda: Stage("2"),
    "None for epochs": lambda: Stage(None),
    "epochs without end": lambda: Stage(math.inf),
    "a word for a rate": lambda: Optimizer(learning_rate="fast"),
    "half a batch": lambda: replace(PAPER, batch_size=8.5),
    "a word for flip": lambda: Stage(1, flip="no"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_values_are_refused_in_one_line(wrong):
    with pytest.raises(InputError) as refusal:
        WRONG[wrong]()
    assert str(refusal.value).strip()
    assert len(str(refusal.value).splitlines()) == 1


def test_the_refusal_says_what_is_allowed():
    with pytest.raises(InputError, match="unknown optimizer 'adamw': choose from adam, rmsprop, sgd"):
        Optimizer("adamw")
    with pytest.raises(InputError, match=r"part must lie in 1\.\.2, not 3"):
        Subset(3, 2)
    with pytest.raises(InputError, match=r"modules from 1 to 6, not \[6, 7\]"):
        replace(PAPER, stages=(Stage(1), Stage(1, reset=(7, 6))))


def test_a_value_of_another_type_is_refused_with_the_name_of_its_field():
    with pytest.raises(InputError, match=r"hook must be code\(FUNCTION\), not 'h'"):
        Stage(1, hook="h")
    with pytest.raises(InputError, match="optimizer must be of class Optimizer, not 'adam'"):
        Stage(1, optimizer="adam")
    with pytest.raises(InputError, match="epochs must be a whole number"):
        Stage(2.5)


def test_whole_numbers_of_any_type_are_integers():
    stages = Stage(np.float32(4)), Stage(np.int64(3), reset=(4.0, np.uint8(5)), shift=1.0)
    made = replace(PAPER, stages=stages, batch_size=8.0, init_seed=np.int64(2), test_window=2.0)
    assert made.id == replace(made, stages=(Stage(4), Stage(3, reset=(4, 5), shift=1)), batch_size=8).id
    last = made.stages[1]
    numbers = made.stages[0].epochs, last.epochs, *last.reset, last.shift, made.batch_size, made.init_seed
    assert [type(number) for number in (*numbers, made.test_window)] == [int] * 8


def test_the_ends_of_what_is_allowed_are_allowed():
    assert Dataset("digits", 2, 2, 0.0)
    assert Subset(20, 20, 0.0, 0.001)
    assert Stage(1, ALL, Optimizer("sgd", 1e-9, 0.0), MODULES, 1.0)
    assert replace(PAPER, batch_size=2, stages=(Stage(1), Stage(1, reset=MODULES)))


def test_sparse_tests_come_at_fibonacci_numbers_and_in_the_window():
    def tested(run):
        return [epoch for epoch in range(1, 30) if run.tested(epoch)]

    sparse = replace(PAPER, test_window=3, stages=(Stage(20, HALF), Stage(15)))
    assert tested(sparse) == [1, 2, 3, 5, 8, 13, 14, 15]
    assert tested(sparse.parent) == [1, 2, 3, 5, 8, 13, 18, 19, 20]
    assert tested(replace(sparse, test_window=None)) == list(range(1, 16))
    endless = replace(sparse, stages=(Stage(10**9, until=0.1),))
    assert tested(endless) == [1, 2, 3, 5, 8, 13, 21] and endless.tested(10**9)
    assert sparse.id != PAPER.id
