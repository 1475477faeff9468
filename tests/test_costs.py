import re
from dataclasses import replace

import pytest
import torch

from repro import cli, profiles
from repro.config import HALF, Dataset, Model, Run, Stage
from repro.data import datasets
from repro.questions import STUDIES
from repro.store.records import Store
from repro.sweep import calibration, costs, dispatch, plans
from repro.training.network import ResNet

RUN = Run(Dataset("digits", 128, 32), Model(64, 1), (Stage(1),), 16)  # eight steps an epoch, each by itself


@pytest.mark.parametrize(
    "shape", [(2, 1, 1, 10), (12, 1, 1, 10), (16, 2, 3, 100), (64, 2, 3, 10), (5, 3, 3, 4)]
)
def test_numbers_of_a_network_are_those_of_its_tensors(shape):
    width, depth, channels, classes = shape
    with torch.device("meta"):
        network = ResNet(Model(width, depth), channels, classes)
    numbers = sum(tensor.numel() for tensor in network.member(0).values())
    assert costs.network_numbers(Model(width, depth), channels, classes) == numbers


def test_branches_wait_for_their_pretraining_and_then_share_the_machines():
    pretraining = Stage(4, HALF)  # 16 steps
    made = plans.plan(replace(RUN, stages=(pretraining, Stage(4, reset=r))) for r in ((), (5,), (6,)))
    alone, two, many = (costs.forecast(made, lambda run: 3600, gpus) for gpus in (1, 2, 9))
    assert [f.hours for f in (alone, two, many)] == [16 + 3 * 32, (16 + 3 * 32) / 2, 16 + 32]
    assert alone.gpu_hours == two.gpu_hours == many.gpu_hours == 112


def test_storage_is_what_a_sweep_leaves(tmp_path):
    store = Store(tmp_path)
    chosen = profiles.profile("smoke", ["train=96", "test=70", "tuning_epochs=50"])
    made = plans.plan(case.run for case in STUDIES["warm_start"].cases(chosen))
    dispatch.execute(made, store, device="cpu", slots=1)
    records = sum(path.stat().st_size for path in store.folder.glob("*.json"))
    networks = sum(path.stat().st_size for path in store.snapshot("x").parent.iterdir())
    epochs = sum(stage.epochs for run in made.wanted.values() for stage in run.stages)
    every = costs.RECORD * len(made.wanted) + costs.EPOCH * epochs
    assert every == pytest.approx(records, rel=0.3)
    whole = costs.forecast(made, lambda run: 1, gpus=1).bytes
    [tuned] = [group for group in made.groups if not made.parents & {run.id for run in group.runs}]
    checkpoint = 3 * len(tuned.trajectories) * networks / len(made.parents)  # of all that train together
    assert whole - every == pytest.approx(networks + checkpoint, rel=0.5)


@pytest.mark.parametrize("arguments", ["--gpus 8", "--gpus 0 --speed 9", "--gpus a --speed 9", "--speed 0"])
def test_a_mistake_in_what_to_plan_for_is_one_line(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["plan", "warm_start", "--profile", "smoke", *arguments.split()])
    assert end.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert re.match("repro: --(gpus|speed|measure) takes (numbers|a number)|repro: --gpus needs", line), line


@pytest.mark.slow
def test_measured_hours_tell_wide_networks_from_narrow_ones(monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")  # one process measures
    runs = [replace(RUN, model=Model(width, 1)) for width in (2, 64)]
    seconds = calibration.seconds_per_step(runs, Store.of("smoke"), seconds=0.3)
    narrow, wide = map(seconds, runs)
    assert 0 < 3 * narrow < wide < 60
    tests = replace(RUN.dataset, test=100 * datasets.counts(RUN.dataset)[1])
    assert seconds(replace(runs[0], dataset=tests)) > 1.5 * narrow, "tests after each epoch take time too"


def test_hours_are_given_or_measured_but_not_both(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["plan", "--speed", "100", "--measure"])
    assert end.value.code == 2 and "choose one" in capsys.readouterr().err


def test_memory_is_known_before_there_are_images(tmp_path, monkeypatch):
    monkeypatch.setenv("REPRO_DATA", str(tmp_path))  # where no data set is
    runs = [case.run for case in STUDIES["warm_start"].cases(profiles.profile("cifar10-small"))]
    assert costs.process_bytes(plans.plan(runs)) > costs.PROCESS
