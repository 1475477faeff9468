"""Which populations a GPU trains, without one."""

import dataclasses
import json
from multiprocessing import Pipe
from types import SimpleNamespace

import pytest
import torch

from repro import profiles
from repro.config import InputError
from repro.questions import STUDIES
from repro.store.records import Store
from repro.sweep import calibration, dispatch, layouts, machine, plans, processes, trainer
from repro.sweep.calibration import Engine
from repro.sweep.messages import LAST, End, Ended
from repro.sweep.plans import Layout
from repro.sweep.progress import Progress
from repro.training import loop


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def runs(seeds=12, *settings):
    chosen = profiles.profile("smoke", settings, seeds)
    return [case.run for case in STUDIES["warm_start"].cases(chosen)]


def fitted(store):
    """The plan that a sweep then follows."""
    return layouts.fitted(plans.plan(runs()), store)[0]


def sizes(plan):
    return {len(group.trajectories) for group in plan.groups}


def test_what_is_faster_compiled_is_compiled_where_training_is_long_enough(store):
    run = runs()[0]
    layouts.keep(store, run, Layout(1, True, compiled=True))
    plan = plans.plan(runs())
    images = sum(group.steps for group in plan.groups) * run.batch_size
    for pays, compiled in ((images, True), (images + 1, False)):
        assert layouts.fitted(plan, store, pays)[1](run).compiled == compiled


@pytest.mark.parametrize(("grouped", "compiled"), [(True, {8}), (False, {6, 8})])
def test_groups_are_compiled_size_by_size_and_networks_on_streams_together(grouped, compiled, store):
    layouts.keep(store, runs()[0], Layout(10, grouped, compiled=True))
    plan, layout = layouts.fitted(plans.plan(runs()), store)
    assert sizes(plan) == {6, 8}
    eights = [group for group in plan.groups if len(group.trajectories) == 8]
    pays = sum(group.steps for group in eights) * runs()[0].batch_size
    plan, layout = layouts.fitted(plan, store, pays)
    assert {len(b.trajectories) for b in plan.groups for run in b.runs if layout(run).compiled} == compiled


def test_a_sweep_for_which_nothing_was_measured_follows_a_table(store):
    plan, layout = layouts.fitted(plans.plan(runs()), store)
    default = layouts.default(runs()[0])
    assert default.compiled and layout(runs()[0]) == dataclasses.replace(default, compiled=False), "so few"
    assert max(sizes(plan)) <= layouts.default(runs()[0]).population
    populations = [
        layouts.default(run).population for run in (runs(1, f"width={w}")[0] for w in (4, 32, 64, 128))
    ]
    assert populations == sorted(populations, reverse=True) and populations[-1] == 1


def test_a_layout_of_before_is_read(store):
    run = runs()[0]
    layouts.keep(store, run, Layout(4, True))
    [path] = (store.folder / ".layouts").iterdir()
    content = json.loads(path.read_bytes())
    del content["compiled"]
    path.write_text(json.dumps(content | {"rate": 10.0, "evaluation": 0.1, "layout": "channels_last"}))
    assert layouts.read(store, run) == Layout(4, True)


@pytest.mark.slow
def test_a_slot_that_cannot_train_says_why_and_goes_on():
    broken, sound = Engine("cpu", "float8", slots=1, threads=1), Engine("cpu", "float32", slots=1, threads=1)
    with sound.children() as children:
        with pytest.raises(InputError, match="unknown precision 'float8'"):
            calibration.speed(children, broken.trial(runs(1), 0.1))
        assert calibration.speed(children, sound.trial(runs(1), 0.1)).rate > 0


def test_where_what_was_measured_is_damaged_the_table_is_followed(store):
    layouts.keep(store, runs()[0], Layout(1, True))
    assert sizes(fitted(store)) == {1}
    for path in (store.folder / ".layouts").iterdir():
        path.write_text("{")
    plan, layout = layouts.fitted(plans.plan(runs()), store)
    assert sizes(plan) == {12} and layout(runs()[0]).population == layouts.default(runs()[0]).population


def test_of_two_machines_that_measure_the_first_is_followed(store):
    run = runs()[0]
    layouts.keep(store, run, Layout(4, True))
    layouts.keep(store, run, Layout(8, False))
    assert layouts.read(store, run) == Layout(4, True)


def test_a_job_carries_the_layout_and_records_have_it(store):
    made = runs(4)
    sweep = dispatch.Sweep(
        plans.plan(made, lambda run: 4),
        store,
        Progress(),
        "cpu",
        "float32",
        lambda run: Layout(4, grouped=False),
    )
    while (job := sweep.next()) is not None:
        sweep.settle(job, trainer.train_part(job, sweep.hear, lambda: False))
    records = [store.read(run.id) for run in made]
    names = ("population", "grouped", "compiled", "layout")
    assert {tuple(record[name] for name in names) for record in records} == {
        (4, False, False, "channels_last")
    }


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        (None, ["0", "1"]),
        ("", ["0", "1"]),
        ("5,3", ["5", "3"]),
        ("GPU-8932f937, GPU-1f", ["GPU-8932f937", "GPU-1f"]),
    ],
)
def test_a_child_gets_the_gpu_at_its_place_among_those_it_may_use(named, expected, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert [machine.visible_gpu(0), machine.visible_gpu(1)] == expected


GPU = trainer.Processor("cuda", "a GPU", 2**36)


def trained(job, sweep, error):
    """How a job ends whose training raises an error on a GPU."""

    def train(*_, **__):
        raise error

    return trainer.train_part(job, sweep.hear, lambda: False, GPU, train)


def swept(store):
    layout = Layout(4, grouped=False)
    return dispatch.Sweep(
        plans.plan(runs(4), lambda run: 4), store, Progress(), "cuda", "bf16", lambda run: layout
    )


def test_what_a_gpu_has_no_memory_for_is_halved_for_a_fresh_process(store):
    sweep = swept(store)
    job = sweep.next()
    assert len(job.part.trajectories) == 4
    with pytest.warns(UserWarning, match="need more memory than there is; now 2 at a time"):
        end = trained(job, sweep, torch.OutOfMemoryError("CUDA out of memory"))
    assert end == Ended(End.SPLIT, size=2) and end.end in LAST
    sweep.settle(job, end)
    half = sweep.next()
    assert len(half.part.trajectories) == 2 and half.part.whole == job.part.whole
    assert sweep.next() is None, "the other half waits: a planned group has one lease"
    sweep.settle(half, Ended(End.LACKING))
    assert len(sweep.next().part.trajectories) == 2, "it is remembered"


def test_halves_of_what_was_too_large_train_in_a_fresh_child_on_the_same_gpu(store, monkeypatch):
    """As on a GPU, but for the device, and children that work while they are given a job."""
    made, devices = [], set()

    class Here(processes.Child):
        def begin(self):
            made.append(self.gpu)
            self.pipe, self.far = Pipe()
            self.process = SimpleNamespace(poll=lambda: None, wait=lambda: None)

        def start(self, job):
            super().start(job)
            devices.add(job.device)
            self.far.send(trainer.train_part(job, self.far.send, lambda: False, GPU, train))

        def close(self):
            super().close()
            self.process.poll = lambda: 0

    def train(members, device, precision, **settings):
        if len(members) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loop.train_population(members, torch.device("cpu"), "float32", **settings)

    monkeypatch.setattr(machine, "gpus", lambda device: 1)
    monkeypatch.setattr(dispatch, "Child", Here)
    wanted = runs(4)
    with pytest.warns(UserWarning, match="now 2 at a time"):
        assert dispatch.execute(plans.plan(wanted), store) == dispatch.Outcome()
    assert store.ids() == {run.id for run in wanted}
    assert {store.read(run.id)["population"] for run in wanted} == {2}
    assert devices == {"cuda"}, "a child is not to choose"
    assert made == [0] * 4, "one, and one after each that was spoilt by 4, 8 and 4 networks at once"


def test_after_an_error_on_a_gpu_its_process_ends(store, capfd):
    error = RuntimeError("CUDA error: an illegal memory access was encountered")
    sweep, ends = swept(store), []
    with pytest.warns(UserWarning) as told:
        while (job := sweep.next()) is not None:
            ends.append(trained(job, sweep, error))
            sweep.settle(job, ends[-1])
    assert "now 1 at a time" in str(told[0].message)
    assert [ended.end for ended in ends[:2]] == [End.SPLIT, End.FAILED]
    assert {ended.end for ended in ends} <= LAST
    assert len(sweep.outcome.failures) >= 1 and not sweep.left
