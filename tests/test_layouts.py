"""Which populations a GPU trains, with a GPU whose speeds are made up."""

import pytest

from repro import calibration, layouts, plans, profiles, studies, worker, workers
from repro.calibration import Engine, Speed
from repro.config import InputError
from repro.layouts import Layout
from repro.records import Store


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


def runs(seeds=12, *settings):
    chosen = profiles.profile("smoke", settings, seeds)
    return [case.run for case in studies.STUDIES["warm_start"].cases(chosen)]


@pytest.fixture
def gpu(monkeypatch):
    """Sets the speed of a GPU by members, and whether they are grouped; lists what was measured."""
    asked = []

    def make(rate):
        class Slots:
            def __init__(self, made):
                assert (made.device, made.slots) == ("cuda", 1)

            def speed(self, members, grouped=True):
                assert len({run.init_seed for run in members}) == len(members)
                asked.append((len(members), grouped))
                found = rate(len(members), grouped)
                return found and Speed(found, 1.0, 0.1)

            def close(self):
                pass

        monkeypatch.setattr(calibration, "Slots", Slots)
        return asked

    return make


def fitted(store, made):
    return calibration.fitted(plans.plan(made), store, "bf16")


def sizes(plan):
    return {len(batch.trajectories) for batch in plan.batches}


def test_the_smallest_population_is_taken_that_is_near_the_fastest(gpu, store):
    asked = gpu(lambda size, grouped: min(100 * size, 400 + size) * (1.0 if grouped else 0.5))
    made = runs()
    plan = fitted(store, made)
    assert sizes(plan) == {4}
    assert plan.wanted.keys() == {run.id for run in made}
    assert layouts.read(store, made[0]) == Layout(4, True, 400, 0.1)
    assert max(size for size, _ in asked) == 8, "it went on though it was no faster"


def test_networks_side_by_side_are_taken_where_they_are_faster(gpu, store):
    gpu(lambda size, grouped: 100 if grouped else 100 * min(size, 2))
    assert sizes(fitted(store, runs())) == {2}
    assert not layouts.read(store, runs()[0]).grouped


@pytest.mark.parametrize(("fits", "population"), [(4, 4), (1, 1), (0, 1)])
def test_memory_ends_the_search(gpu, store, fits, population):
    gpu(lambda size, grouped: 100 * size if size <= fits else None)
    assert sizes(fitted(store, runs())) == {population}


def test_what_cannot_be_measured_is_told_and_trains_alone(gpu, store):
    def rate(size, grouped):
        raise InputError("not to be trained here: no such kernel")

    gpu(rate)
    with pytest.warns(UserWarning, match="no such kernel"):
        assert sizes(fitted(store, runs())) == {1}
    assert layouts.read(store, runs()[0]) is None  # the next sweep measures again


@pytest.mark.slow
def test_a_slot_that_cannot_train_says_why_and_goes_on():
    slots = calibration.Slots(Engine("cpu", "float8", slots=1, threads=1))
    for _ in range(2):
        with pytest.raises(InputError, match="unknown precision 'float8'"):
            slots.speed(runs(1), 0.1)
    slots.close()


def test_hours_of_a_network_that_does_not_fit_are_refused(gpu, monkeypatch):
    gpu(lambda size, grouped: None)
    monkeypatch.setattr(calibration, "engine", lambda: Engine("cuda", "bf16", 1, 1))
    with pytest.raises(InputError, match="width 4 with batches of 16 needs more memory"):
        calibration.seconds_per_step(runs(1))


def test_a_shape_is_measured_once_for_a_store_and_again_where_that_is_damaged(gpu, store):
    asked = gpu(lambda size, grouped: 100)
    first = fitted(store, runs())
    before = len(asked)
    assert before and fitted(store, runs()) == first and len(asked) == before
    fitted(store, runs(2, "width=8"))
    assert len(asked) > before
    for path in (store.folder / ".layouts").iterdir():
        path.write_text("{")
    fitted(store, runs())
    assert layouts.read(store, runs()[0]) is not None


def test_of_two_machines_that_measure_the_first_is_followed(store):
    run = runs()[0]
    assert layouts.keep(store, run, Layout(4, True, 10.0, 0.1)) == Layout(4, True, 10.0, 0.1)
    assert layouts.keep(store, run, Layout(8, False, 20.0, 0.1)) == Layout(4, True, 10.0, 0.1)


def test_a_sweep_follows_what_was_measured_and_records_it(store, monkeypatch):
    """As on a GPU, but for the device: its networks are trained side by side on the CPU."""
    made = runs(4)
    for run in made:
        layouts.keep(store, run, Layout(4, False, 1.0, 0.1))
    monkeypatch.setattr(workers, "_gpus", lambda device: 1)
    real = worker.layouts.read
    monkeypatch.setattr(worker, "_layout", lambda store, run, device: real(store, run))
    assert workers.execute(plans.plan(made), store, precision="float32", slots=1) == workers.Outcome()
    records = [store.read(run.id) for run in made]
    assert {(record["population"], record["grouped"]) for record in records} == {(4, False)}
