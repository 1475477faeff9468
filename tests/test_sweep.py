import contextlib
import hashlib
import json
import math
import os
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from repro import profiles
from repro.analysis import recorded
from repro.config import ALL, HALF, MODULES, Dataset, InputError, Model, Optimizer, Run, Stage, Subset
from repro.data.datasets import steps_per_epoch
from repro.questions import STUDIES
from repro.running import run_study
from repro.store.records import CURVES, Store
from repro.sweep import dispatch, messages, plans, processes
from repro.sweep.progress import Progress
from repro.training import snapshots
from repro.training.network import ResNet

TINY = ["train=64", "test=32", "width=2", "batch_size=16"]
LONG = [*TINY, "tuning_epochs=60"]  # a second or two, time enough to be interrupted
DIGITS = Dataset("digits", 64, 32, 0.1)
TUNING = Stage(3)


def run(*stages, seed=0, **changes):
    return replace(Run(DIGITS, Model(2, 1), stages, 16, seed, seed, seed), **changes)


def warm_start(seeds=3, settings=TINY):
    """The runs of the first study, at a scale of milliseconds."""
    return [case.run for case in STUDIES["warm_start"].cases(profiles.profile("smoke", settings, seeds))]


def conditions():
    """Fresh, warm, re-initialised and prefixed runs, of which some share their beginning."""
    pretraining = Stage(2, HALF)
    return [
        made
        for seed in (0, 1)
        for made in (
            run(TUNING, seed=seed),
            run(replace(TUNING, epochs=1), seed=seed),
            run(pretraining, TUNING, seed=seed),
            run(pretraining, replace(TUNING, reset=(4, 5, 6)), seed=seed),
            run(replace(pretraining, epochs=1), TUNING, seed=seed),
            run(pretraining, Stage(1, HALF), Stage(2, reset=(6,)), seed=seed),
            run(Stage(3, Subset(1, 2, 1.0, 0.5)), seed=seed),
            run(Stage(4, optimizer=Optimizer("adam", 0.01), until=0.3), seed=seed),
            run(pretraining, replace(TUNING, shrink=0.4, perturb=0.1), seed=seed),
            run(Stage(3, optimizer=Optimizer("adam", 0.01, schedule="cosine")), seed=seed),
            run(replace(TUNING, epochs=1), seed=seed, probes=("gradient_noise",)),
        )
    ]


def execute(runs, store, precision="float32", **changes):
    """Train what is missing; whether all of it was."""
    made = plans.plan(runs)
    outcome = dispatch.execute(made, store, device="cpu", precision=precision, **changes)
    assert outcome.failures == []
    return outcome.finished


def curves(store):
    """What was recorded, by run."""
    found = store.load(store.ids())
    assert found.keys() == store.ids()
    return {name: (record["curves"], record["diverged"]) for name, record in found.items()}


def assert_close(found, expected, tolerance):
    assert len(found) == len(expected)
    for curve, other in zip(found, expected, strict=True):
        for name in CURVES:
            assert curve[name] == pytest.approx(other[name], rel=tolerance, abs=tolerance)


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A store of the first study, three seeds, trained at one go."""
    store = Store(tmp_path_factory.mktemp("trained"))
    assert execute(warm_start(), store)
    return store


@pytest.fixture(scope="module")
def undisturbed(trained):
    """Curves of the first study, three seeds."""
    return curves(trained)


@pytest.fixture(scope="module")
def varied(tmp_path_factory):
    """A store of all conditions, trained at one go in this process."""
    store = Store(tmp_path_factory.mktemp("varied"))
    assert execute(conditions(), store, slots=1)
    return store


# Plans


@st.composite
def forests(draw):
    """Runs that branch from each other at random, among few stages, so that they share many."""
    stage = st.builds(
        Stage,
        epochs=st.integers(1, 3),
        data=st.sampled_from([ALL, HALF, Subset(1, 2, 1.0, 0.5), Subset(2, 3, 0.5), Subset(2, 2)]),
        optimizer=st.sampled_from([Optimizer(), Optimizer("sgd", 0.1), Optimizer(schedule="cosine")]),
        reset=st.sampled_from([(), (), (4, 5, 6)]),
        until=st.sampled_from([None, None, 0.9]),
    )
    roots = stage.map(lambda s: run(replace(s, reset=())))
    runs = draw(st.lists(roots, min_size=1, max_size=3))
    for _ in range(draw(st.integers(0, 8))):
        parent = draw(st.sampled_from(runs))
        kind = draw(st.integers(0, 5))
        if kind == 0:
            width = draw(st.sampled_from([2, 32, 64]))
            made = replace(parent, model=Model(width, 1))
        elif kind == 1:
            made = replace(parent, split_seed=draw(st.integers(0, 2)), init_seed=draw(st.integers(0, 40)))
        elif kind == 2:
            made = replace(parent, probes=("sharpness",))
        else:
            made = replace(parent, stages=(*parent.stages, draw(stage)))
        runs.append(made)
    return draw(st.permutations(runs))[: draw(st.integers(1, len(runs)))]


def needed(runs):
    """The runs and all their ancestors, by id."""
    found = {}
    for made in runs:
        while made is not None:
            found[made.id] = made
            made = made.parent
    return found


@given(forests())
def test_every_run_and_ancestor_is_trained_exactly_once_after_its_parent(runs):
    made = plans.plan(runs)
    assert made.wanted == {r.id: r for r in runs}
    trained = []
    for group in made.groups:
        starts = [t.longest.parent for t in group.trajectories]
        assert all(start is None or start.id in trained for start in starts)
        trained += [r.id for t in group.trajectories for r in t.runs]
    assert len(trained) == len(set(trained))
    assert set(trained) == needed(runs).keys()
    assert made.parents == {r.parent.id for r in needed(runs).values() if r.parent}


@given(forests())
def test_members_of_a_group_can_train_as_one_network(runs):
    for group in plans.plan(runs).groups:
        longest = [t.longest for t in group.trajectories]
        assert len(longest) <= plans.population_size(longest[0])
        for share in (
            lambda r: (r.dataset, r.model, r.batch_size),
            lambda r: (r.stages[-1].epochs, r.stages[-1].optimizer, r.stages[-1].until),
            steps_per_epoch,
        ):
            assert len({share(r) for r in longest}) == 1
        assert group.steps == sum(r.stages[-1].epochs * steps_per_epoch(r) for r in longest)


def training_of(made):
    """What is the same for all runs that are one training: their configuration but for the last epochs.

    These count where the stage depends on their number: through the schedule of
    gamma or of the learning rate, or as it may end before them. What is probed is
    trained by itself.
    """
    last = made.stages[-1]
    whole = last.data.gamma is not None or last.until is not None or last.optimizer.schedule != "constant"
    last = replace(last, epochs=last.epochs if whole else 99)
    return replace(made, probes=(), stages=(*made.stages[:-1], last)), bool(made.probes)


@given(forests())
def test_runs_that_are_one_training_are_trained_together(runs):
    trajectories = [t for group in plans.plan(runs).groups for t in group.trajectories]
    for t in trajectories:
        assert {training_of(r) for r in t.runs} == {training_of(t.longest)}
        assert t.longest.stages[-1].epochs == max(r.stages[-1].epochs for r in t.runs)
    assert len(trajectories) == len({training_of(r) for r in needed(runs).values()})


@given(forests())
def test_a_plan_depends_on_neither_repetition_nor_what_is_recorded(runs):
    made, again = plans.plan(runs), plans.plan([*runs, *runs])
    assert made == again
    ids = [group.id for group in made.groups]
    assert len(set(ids)) == len(ids)
    assert made.epochs <= made.epochs_alone
    assert made.steps == sum(group.steps for group in made.groups)


@settings(max_examples=50)
@given(forests(), st.randoms(use_true_random=False))
def test_what_is_left_can_be_trained_whatever_is_there_already(tmp_path_factory, runs, chance):
    made, store = plans.plan(runs), Store(tmp_path_factory.mktemp("left"))
    for folder in (store.snapshot("x").parent, store.checkpoint("x").parent):
        folder.mkdir()
    absent = {name for name in made.wanted if chance.random() < 0.5}
    there = {name for name in made.parents if chance.random() < 0.5}
    whole = plans.unfinished(made, store, set(made.wanted))
    begun = {group.id for group, _ in whole if chance.random() < 0.3}
    for name in there:
        store.snapshot(name).touch()
    for name in begun:
        store.checkpoint(name).touch()
    trained = []
    for group, wanting in plans.unfinished(made, store, absent):
        assert wanting <= {r.id for r in group.runs}
        for start in (t.longest.parent for t in group.trajectories):
            assert start is None or start.id in there
        finished = {r.id for t in group.trajectories for r in t.runs}
        trained += finished
        there |= finished & made.parents
        assert wanting & (absent | made.parents)
    assert len(trained) == len(set(trained))
    assert absent <= set(trained)
    if not absent:
        assert trained == []


def test_shared_pretraining_appears_once():
    pretraining = Stage(5, HALF)
    resets = [run(pretraining, Stage(4, reset=reset)) for reset in ((), (6,), (5, 6), MODULES)]
    made = plans.plan(resets)
    assert [len(group.trajectories) for group in made.groups] == [1, 4]
    assert made.groups[0].trajectories[0].runs == (run(pretraining),)
    assert made.epochs == 5 + 4 * 4
    assert made.epochs_alone == 4 * (5 + 4)


def test_five_epochs_are_the_beginning_of_ten():
    short, long = run(Stage(5, HALF), Stage(4)), run(Stage(10, HALF), Stage(4))
    made = plans.plan([short, long, run(Stage(5))])
    runs = [t.runs for group in made.groups for t in group.trajectories]
    assert sorted(runs, key=len)[-1] == (run(Stage(5, HALF)), run(Stage(10, HALF)))
    assert made.epochs == 10 + 4 + 4 + 5


def test_seeds_of_a_study_train_together_and_no_more_than_the_width_allows():
    made = plans.plan(warm_start(seeds=5))
    assert [len(group.trajectories) for group in made.groups] == [5, 10]
    wide = [replace(r, model=Model(16, 1)) for r in warm_start(seeds=5)]
    assert sorted(len(group.trajectories) for group in plans.plan(wide).groups) == [2, 3, 3, 3, 4]
    paper = [replace(r, model=Model(64, 2)) for r in warm_start(seeds=2)]
    assert [len(group.trajectories) for group in plans.plan(paper).groups] == [1] * 6


def test_first_seeds_come_first():
    wide = [replace(r, model=Model(64, 1)) for r in warm_start(seeds=3)]
    order = [group.trajectories[0].longest.init_seed for group in plans.plan(wide).groups]
    assert order == sorted(order)


def test_a_plan_of_nothing_is_done(store):
    assert plans.plan([]).groups == ()
    assert execute([], store)
    assert not store.folder.exists()


def test_planning_many_stages_takes_no_longer_than_there_are_runs(monkeypatch):
    """Appendix A.3 trains in up to ten stages, each the parent of the next."""
    calls = 0

    def counted(text, sha256=hashlib.sha256):
        nonlocal calls
        calls += 1
        return sha256(text)

    monkeypatch.setattr(hashlib, "sha256", counted)
    stages = [Stage(1, Subset(part, 7)) for part in range(1, 7)]
    made = plans.plan(run(*stages, seed=seed) for seed in range(6))
    assert sum(len(group.trajectories) for group in made.groups) == 36
    assert calls < 40 * 36


# Training


def test_exactly_the_wanted_runs_are_recorded(varied):
    runs, store = conditions(), varied
    made = plans.plan(runs)
    assert store.ids() == {r.id for r in runs} == made.wanted.keys()
    assert needed(runs).keys() > store.ids()
    for r in runs:
        record = store.read(r.id)
        lengths = [len(curve["train_loss"]) for curve in record["curves"]]
        assert record["diverged"] is None
        assert lengths == [s.epochs for s in r.stages] or r.stages[-1].until is not None
        assert record["precision"] == "float32"
        assert record["device"]
        assert record["threads"] == torch.get_num_threads()
        assert record["versions"]["torch"] == torch.__version__
        assert record["data"] == store.read(runs[0].id)["data"]
        assert record["seconds"] >= 0
    assert list(store.checkpoint("x").parent.glob("*")) == []
    assert {path.stem for path in store.snapshot("x").parent.iterdir()} == made.parents


def test_a_run_is_recorded_as_it_would_be_if_it_were_the_only_one(store, tmp_path):
    """In float64, where members of a population agree with networks alone to the ninth digit."""
    runs = conditions()
    execute(runs, store, "float64")
    together = curves(store)
    for number, r in enumerate(runs[:8]):
        single = Store(tmp_path / str(number))
        execute([r], single, "float64")
        assert_close(together[r.id][0], curves(single)[r.id][0], 1e-8)


def test_prefixes_and_shared_beginnings_are_the_same_numbers(varied):
    runs, recorded = conditions(), curves(varied)
    fresh, short, warm, reset, *_ = (recorded[r.id][0] for r in runs)
    for name in CURVES:
        assert short[0][name] == fresh[0][name][:1]
        assert warm[0][name] == reset[0][name]
    assert warm[1] != reset[1]


def test_a_second_sweep_trains_nothing(trained):
    before = {path: path.stat().st_mtime_ns for path in trained.folder.rglob("*")}
    progress = Progress()
    assert dispatch.execute(plans.plan(warm_start()), trained, progress=progress, time_limit=0).finished
    assert (progress.runs, progress.recorded, progress.steps, progress.steps_done) == (6, 6, 0, 0)
    assert {path: path.stat().st_mtime_ns for path in trained.folder.rglob("*")} == before


def test_two_sweeps_record_the_same_numbers(store, undisturbed):
    assert execute(warm_start(), store)
    assert curves(store) == undisturbed


def test_more_seeds_leave_the_first_ones_as_they_are(store):
    execute(warm_start(1), store)
    first = {path.name: path.read_bytes() for path in store.folder.glob("*.json")}
    execute(warm_start(3), store)
    assert len(first) == 2
    assert len(store.ids()) == 6
    assert all((store.folder / name).read_bytes() == content for name, content in first.items())


def test_a_damaged_record_is_set_aside_and_trained_again(store):
    runs = warm_start()
    execute(runs, store, "float64")
    before = curves(store)
    broken = store.path(runs[1].id)
    broken.write_text(broken.read_text().replace("0.", "1.", 1))
    others = {path: path.stat().st_mtime_ns for path in store.folder.glob("*.json") if path != broken}
    with pytest.warns(UserWarning, match=rf"{runs[1].id}.json: .* set aside as {broken.name}\.damaged"):
        assert execute(runs, store, "float64")
    after = curves(store)
    assert after.keys() == before.keys()
    assert_close(after[runs[1].id][0], before[runs[1].id][0], 1e-8)
    assert all(path.stat().st_mtime_ns == age for path, age in others.items())
    assert broken.with_suffix(".json.damaged").exists()


def test_deleting_snapshots_is_harmless(store):
    runs = warm_start()
    execute(runs, store, "float64")
    before = {path.name: path.read_bytes() for path in store.folder.glob("*.json")}

    def delete():
        for path in store.snapshot("x").parent.iterdir():
            path.unlink()

    delete()
    assert execute(runs, store, "float64")
    assert not list(store.snapshot("x").parent.iterdir())
    store.path(runs[1].id).unlink()  # a warm start, whose pretraining is to be trained again
    assert execute(runs, store, "float64")
    after = {path.name: path.read_bytes() for path in store.folder.glob("*.json")}
    assert after.keys() == before.keys()
    again = f"{runs[1].id}.json"
    assert {name for name in before if before[name] != after[name]} <= {again}
    expected = json.loads(before[again])["curves"]
    assert_close(json.loads(after[again])["curves"], expected, 1e-8)


def test_mistakes_are_refused_before_anything_is_trained(store):
    with pytest.raises(InputError, match="unknown device"):
        dispatch.execute(plans.plan(warm_start()), store, device="tpu")
    with pytest.raises(InputError, match="unknown precision"):
        execute(warm_start(), store, "float16")
    assert not store.folder.exists()


# Divergence


def test_a_run_that_diverges_is_recorded_with_its_epoch_and_so_are_its_children(store):
    wild = Stage(4, optimizer=Optimizer("sgd", 1e18))
    parent, child = run(wild), run(wild, TUNING)
    grandchild = run(wild, TUNING, Stage(2))
    sound = run(Stage(4, optimizer=Optimizer("sgd", 0.1)))
    with pytest.warns(UserWarning) as warned:
        assert execute([parent, grandchild, child, sound], store)
    record = store.read(parent.id)
    told = f"diverged: no finite loss in epoch {record['diverged']} of stage 1; recorded so"
    assert {str(warning.message) for warning in warned} == {
        f"run {made.id} {told}" for made in (parent, child, grandchild)
    }
    losses = record["curves"][0]["train_loss"]
    assert record["diverged"] == len(losses) < 4
    assert losses[-1] is None
    for made in (child, grandchild):
        assert store.read(made.id)["curves"] == record["curves"]
        assert store.read(made.id)["diverged"] == record["diverged"]
    assert store.read(sound.id)["diverged"] is None


def poison(store, parent, bias):
    """Leave the snapshot of a parent that answers nothing but this bias."""
    net = ResNet(parent.model, 1, 10)
    net.initialise(0, MODULES, 0, 1)
    net.module6.weight.data.zero_()
    net.module6.bias.data.copy_(torch.tensor(bias))
    curve = {name: [0.5] * parent.stages[-1].epochs for name in CURVES}
    snapshots.Snapshot(net.member(0), [curve], 1.0).save(store.snapshot(parent.id))


@pytest.mark.filterwarnings("ignore:run .* diverged")
@pytest.mark.parametrize("wrong", [math.nan, 3e38], ids=["nan", "infinite"])
def test_one_diverging_member_is_recorded_and_the_others_are_as_if_it_were_sound(store, tmp_path, wrong):
    """Where the loss is infinite too, a number that JSON does not have."""
    runs = [run(Stage(1, HALF), TUNING, seed=seed) for seed in range(3)]
    calm = Store(tmp_path / "calm")
    for seed, made in enumerate(runs):
        poison(calm, made.parent, [0.0] * 10)
        poison(store, made.parent, [wrong, -wrong] + [0.0] * 8 if seed == 1 else [0.0] * 10)
    assert execute(runs, calm)
    assert execute(runs, store)
    expected, found = curves(calm), curves(store)
    for seed in (0, 2):
        assert found[runs[seed].id] == expected[runs[seed].id]
    [_, last], diverged = found[runs[1].id]
    assert diverged == 1
    assert last["train_loss"] == [None]


# Stopping and going on


def interrupting(epochs, times=1, number=signal.SIGINT):
    """A progress that sends a signal to this process once so many epochs are done."""
    done = []

    def show(progress):
        if progress.steps_done and progress.steps_done not in done:
            done.append(progress.steps_done)
            for _ in range(times if len(done) == epochs else 0):
                signal.raise_signal(number)

    return Progress(show=show)


def test_no_time_leaves_a_checkpoint_from_which_the_next_sweep_goes_on(store, undisturbed):
    assert not execute(warm_start(), store, time_limit=0)
    assert store.ids() == set()
    assert len(list(store.checkpoint("x").parent.iterdir())) == 1
    assert execute(warm_start(), store, time_limit=3600)
    assert curves(store) == undisturbed
    assert list(store.checkpoint("x").parent.iterdir()) == []


@pytest.mark.parametrize("epochs", [1, 2, 3, 4])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_after_any_epoch_the_next_sweep_completes_it_bit_for_bit(store, undisturbed, epochs, number):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert not execute(warm_start(), store, progress=interrupting(epochs, number=number))
    assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert len(store.ids()) < 6
    assert execute(warm_start(), store)
    assert curves(store) == undisturbed


def test_interrupted_after_every_epoch_it_comes_to_the_same_end(store, varied):
    runs = conditions()
    for _ in range(100):
        before = curves(store)
        if execute(runs, store, progress=interrupting(1)):
            break
        assert before.items() <= curves(store).items()
    assert curves(store) == curves(varied)
    assert list(store.checkpoint("x").parent.iterdir()) == []


def test_a_second_interrupt_stops_at_once_and_loses_nothing_recorded(store, undisturbed):
    with pytest.raises(KeyboardInterrupt):
        execute(warm_start(), store, progress=interrupting(4, times=2))
    assert execute(warm_start(), store)
    assert curves(store) == undisturbed


def test_a_part_of_a_group_interrupted_after_some_of_it_ended_goes_on_in_its_checkpoint(store):
    """Of runs that end early one has been recorded by an earlier sweep, and some end before others."""
    adam = Optimizer("adam", 0.01)
    early = [run(Stage(9, optimizer=adam, until=0.35), seed=seed) for seed in range(6)]
    execute(early[:1], store)
    interrupted = 0
    while not execute(early, store, progress=interrupting(1)):
        interrupted += 1
        assert interrupted <= 9
        assert len(list(store.checkpoint("x").parent.iterdir())) == 1
    assert len({len(found[0]["train_loss"]) for found, _ in curves(store).values()}) > 1
    assert store.ids() == {r.id for r in early}
    assert list(store.checkpoint("x").parent.iterdir()) == []


def test_another_precision_does_not_go_on_from_a_checkpoint(store):
    assert not execute(warm_start(), store, "float32", progress=interrupting(1))
    with pytest.raises(InputError, match="float32"):
        execute(warm_start(), store, "float64")


# Other processes


def test_what_no_process_may_tell_is_refused_and_not_passed_over(store):
    sweeping = dispatch.Sweep(plans.plan(warm_start()), store, Progress(), "cpu", "float32")
    with pytest.raises(AssertionError):
        sweeping.hear({"recorded": "0123456789abcdef"})
    with pytest.raises(TypeError):
        messages.EpochDone(step=1, epoch="1/1", accuracy=0.1)


class Noted(processes.Child):
    """A child that is noted when it is born."""

    def __init__(self, found, threads):
        self.found = found
        super().__init__(threads)

    def begin(self):
        super().begin()
        self.found.append(self.process)


@pytest.fixture
def born():
    """Children, one after another as they are born at the place that has two at a time."""
    found = []
    yield found
    assert all(process.poll() is not None for process in found)  # none outlives the sweep


@pytest.fixture
def few_threads():
    """As many threads in this process as one of two children has, so that sums come out alike."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // 2))
    yield torch.get_num_threads()
    torch.set_num_threads(before)


def two(born, threads):
    """A place with two such children."""
    return lambda stopping: contextlib.closing(processes.Children(Noted(born, threads) for _ in range(2)))


@pytest.mark.slow
def test_children_train_what_one_process_trains_though_killed_and_though_a_start_is_damaged(
    store, tmp_path, born, few_threads
):
    runs, single, killed = conditions(), Store(tmp_path / "single"), []
    lame = run(Stage(2, HALF), Stage(2), seed=5)
    # Both pretrain it anew by itself: on some processors last bits depend on how many train together.
    for hurt in (store, single):
        hurt.snapshot("x").parent.mkdir(parents=True)
        hurt.snapshot(lame.parent.id).write_bytes(b"no network")

    def show(progress):
        if progress.steps_done and not killed:
            killed.extend(born)
            for child in killed:
                child.kill()

    made, progress = plans.plan([*runs, lame]), Progress(show=show)
    with pytest.warns(UserWarning, match=f"{lame.parent.id}.pt: not a file of this format; set aside as"):
        outcome = dispatch.execute(
            made, store, device="cpu", precision="float32", progress=progress, place=two(born, few_threads)
        )
    assert len(killed) == 2
    assert len(born) > 2
    assert outcome == dispatch.Outcome()
    with pytest.warns(UserWarning, match="set aside as"):
        assert execute([*runs, lame], single, slots=1)
    assert curves(store) == curves(single)
    assert not list(store.checkpoint("x").parent.glob("*"))


@pytest.mark.slow
def test_children_stop_with_a_checkpoint_when_their_sweep_is_asked_to(store, tmp_path, born, few_threads):
    runs, calm = warm_start(settings=LONG), Store(tmp_path / "calm")
    made, progress = plans.plan(runs), interrupting(4)
    outcome = dispatch.execute(
        made, store, device="cpu", precision="float32", progress=progress, place=two(born, few_threads)
    )
    assert not outcome.finished
    assert outcome.failures == []
    assert store.ids() == set()
    assert {path.stem for path in store.snapshot("x").parent.iterdir()} == made.parents
    assert len(list(store.checkpoint("x").parent.iterdir())) == 1
    assert execute(runs, store, slots=1)
    assert execute(runs, calm, slots=1)
    assert curves(store) == curves(calm)


def test_where_a_group_trains_does_not_depend_on_what_is_recorded_already(store, monkeypatch):
    """As processes of fewer threads add numbers in another order, and end with other last digits."""
    made = plans.plan(warm_start())
    assert execute(warm_start(), store, slots=1)
    store.path(warm_start()[1].id).unlink()
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1}, raising=False)
    monkeypatch.setattr(dispatch, "Children", lambda children: pytest.fail("in children"))
    monkeypatch.setattr(dispatch, "FEW_STEPS", made.steps)
    with pytest.raises(pytest.fail.Exception, match="in children"):
        dispatch.execute(made, store, device="cpu", precision="float32")


SWEEP = """
import sys, time
from repro import profiles
from repro.questions import STUDIES
from repro.store import records
from repro.sweep import dispatch, plans
from repro.sweep.progress import Progress

def show(progress):
    if progress.steps_done:
        print(progress.steps_done, flush=True)
        time.sleep(0.1 if slots == "1" else 0)

slots, *settings = sys.argv[1:]
cases = STUDIES["warm_start"].cases(profiles.profile("smoke", settings, 3))
made, store = plans.plan(case.run for case in cases), records.Store.of("smoke")
progress = Progress(show=show)
outcome = dispatch.execute(
    made, store, device="cpu", precision="float32", slots=int(slots), progress=progress
)
sys.exit(0 if outcome.finished else 3)
"""


def disturbed(number, slots, epochs):
    """Exit status of a sweep in processes of its own that get a signal after so many epochs."""
    command = [sys.executable, "-c", SWEEP, str(slots), *(TINY if slots == 1 else LONG)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ}) as process:
        for _ in range(epochs):
            assert process.stdout.readline()
        process.send_signal(number)
        process.communicate(timeout=60)  # ends when the last child has ended
        return process.returncode


@pytest.mark.slow
def test_an_interrupted_sweep_leaves_what_is_finished_and_the_next_completes_it(undisturbed):
    assert disturbed(signal.SIGINT, slots=1, epochs=3) == 3
    store = Store.of("smoke")
    assert len(list(store.snapshot("x").parent.iterdir())) == 3  # pretraining was finished
    assert len(list(store.checkpoint("x").parent.iterdir())) == 1
    assert execute(warm_start(), store)
    assert curves(store) == undisturbed
    assert list(store.checkpoint("x").parent.iterdir()) == []


@pytest.mark.slow
def test_children_end_when_their_sweep_is_killed_and_another_completes_it(tmp_path, few_threads):
    runs, calm, store = warm_start(settings=LONG), Store(tmp_path / "calm"), Store.of("smoke")
    assert disturbed(signal.SIGKILL, slots=2, epochs=4) == -signal.SIGKILL
    assert len(store.ids()) < len(runs)
    assert len(list(store.checkpoint("x").parent.iterdir())) == 1  # of children that found themselves alone
    assert execute(runs, store, slots=1)
    assert execute(runs, calm, slots=1)
    assert curves(store) == curves(calm)


# Studies


def test_a_study_is_run_once_and_read_without_torch():
    settings = ", ".join(TINY)
    found = run_study("warm_start", "smoke", seeds=2, device="cpu", settings=settings)
    assert found.missing == 0
    assert found.profile.seeds == 2
    assert len(found.table) == 4
    assert found.table.epochs.tolist() == [3] * 4
    assert len(found.curves) == 2 * 3 + 2 * (2 + 3)
    assert found.table.test_accuracy.between(0, 1).all()
    code = f"""
import sys
from repro import run_study
found = run_study("warm_start", "smoke", seeds=2, settings={settings!r})
print(found.table.test_accuracy.tolist(), "torch" in sys.modules)
"""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert finished.stdout.strip() == f"{found.table.test_accuracy.tolist()} False", finished.stderr


def test_results_tell_what_is_missing(store):
    chosen = profiles.profile("smoke", TINY, 2)
    made = plans.plan(warm_start(1))
    dispatch.execute(made, Store.of("smoke"), device="cpu", precision="float32")
    found = recorded.results(STUDIES["warm_start"], chosen)
    assert found.missing == 2
    assert found.table.seed.tolist() == [0, 0]
