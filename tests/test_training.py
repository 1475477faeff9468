import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from repro.config import ALL, HALF, MODULES, Dataset, InputError, Model, Optimizer, Run, Stage, Subset
from repro.data import datasets
from repro.data.sampling import examples
from repro.profiles import profile
from repro.questions.warm_start import warm_start
from repro.store.records import CURVES
from repro.sweep import machine, trainer
from repro.training import plain, populations, snapshots
from repro.training.loop import Stopped, train_population
from repro.training.network import ResNet
from repro.training.populations import Member, Population
from repro.training.snapshots import Snapshot

CPU = torch.device("cpu")
DIGITS = Dataset("digits", 160, 96, 0.1)  # 5 steps an epoch
OPTIMIZERS = {
    "adam": Optimizer("adam", 0.003),
    "rmsprop": Optimizer("rmsprop", 0.001),
    "sgd": Optimizer("sgd", 0.1),
    "momentum": Optimizer("sgd", 0.05, 0.9),
}
FALLING = Optimizer("adam", 0.003, schedule="cosine")


def run(*stages, seed=0, width=2, **changes):
    made = Run(DIGITS, Model(width, 1), stages, 32, seed, seed, seed)
    return dataclasses.replace(made, **changes)


def train(members, precision="float32", **settings):
    """Snapshots by (member, epoch)."""
    return by_epoch(train_population(members, CPU, precision, **settings))


def by_epoch(trained):
    return {(p, len(end.curves[-1]["train_loss"])): end for p, _, end in trained}


def alone(made, start=None, precision="float32"):
    """The snapshot in which a run ends that is trained by itself."""
    found = train([Member(made, start)], precision)
    assert len(found) == 1
    return next(iter(found.values()))


def warm(made, precision="float32"):
    """The snapshot in which a run ends that is trained by itself from its first stage."""
    return alone(made, warm(made.parent, precision) if made.parent else None, precision)


def assert_same(a, b):
    """Bit for bit the same network with the same past."""
    assert a.curves == b.curves
    assert a.diverged == b.diverged
    assert a.state.keys() == b.state.keys()
    for name, tensor in a.state.items():
        assert tensor.dtype == b.state[name].dtype
        assert torch.equal(tensor, b.state[name]), name


def assert_close(state, other, tolerance):
    assert state.keys() == other.keys()
    for name, tensor in state.items():
        difference = (tensor - other[name]).norm() / other[name].norm()
        assert difference < tolerance, (name, float(difference))


# Members of a population


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_member_of_four_has_after_20_steps_the_weights_of_the_run_alone(name):
    runs = [run(Stage(4, optimizer=OPTIMIZERS[name]), seed=seed, width=4) for seed in range(4)]
    together = train([Member(made) for made in runs], "float64")
    for p, made in enumerate(runs):
        found, expected = together[p, 4], alone(made, precision="float64")
        assert all(tensor.dtype == torch.float64 for tensor in found.state.values())
        assert any("running_var" in tensor_name for tensor_name in found.state)
        assert_close(found.state, expected.state, 1e-9)
        for curve in CURVES:
            assert found.curves[0][curve] == pytest.approx(expected.curves[0][curve], rel=1e-9)


def test_members_may_differ_in_seeds_in_past_and_in_modules_reset():
    short, tuning = Stage(1, HALF), Stage(2)
    runs = [
        run(tuning, seed=1),
        run(short, tuning, seed=1),
        run(short, dataclasses.replace(tuning, reset=(2, 6)), seed=1),
        run(tuning, seed=1, order_seed=5),
        run(tuning, seed=1, init_seed=5),
        run(tuning, seed=1, split_seed=5),
    ]
    starts = [warm(made.parent, "float64") if made.parent else None for made in runs]
    together = train([Member(*pair) for pair in zip(runs, starts, strict=True)], "float64")
    ends = [together[p, 2] for p in range(len(runs))]
    for made, end in zip(runs, ends, strict=True):
        assert_close(end.state, warm(made, "float64").state, 1e-9)
    heads = [end.state["module6.weight"] for end in ends]
    different = [torch.equal(a, b) for a, b in itertools.combinations(heads, 2)]
    assert different.count(True) == 1  # the split does not matter where all data are seen
    assert torch.equal(heads[0], heads[5])


def test_a_member_of_nans_leaves_the_others_as_they_were_and_is_called_diverged():
    tuning = run(Stage(1), Stage(3))
    starts = [alone(run(Stage(1), seed=seed)) for seed in range(3)]
    runs = [dataclasses.replace(tuning, init_seed=seed, order_seed=seed) for seed in range(3)]
    sound = train([Member(*pair) for pair in zip(runs, starts, strict=True)])
    poisoned = {name: torch.full_like(tensor, math.nan) for name, tensor in starts[1].state.items()}
    starts[1] = dataclasses.replace(starts[1], state=poisoned)
    found = train([Member(*pair) for pair in zip(runs, starts, strict=True)])
    assert found.keys() == {(0, 3), (1, 1), (2, 3)}
    for p in (0, 2):
        assert_same(found[p, 3], sound[p, 3])
        assert found[p, 3].diverged is None
    assert found[1, 1].diverged == 1
    assert math.isnan(found[1, 1].curves[-1]["train_loss"][0])
    assert all(len(found[1, 1].curves[-1][name]) == 1 for name in CURVES)


def test_divergence_is_told_with_its_epoch_and_ends_the_run():
    wild = run(Stage(6, optimizer=Optimizer("sgd", 1e18)))
    end = alone(wild)
    losses = end.curves[0]["train_loss"]
    assert end.diverged == len(losses) < 6
    assert not math.isfinite(losses[-1])
    assert all(map(math.isfinite, losses[:-1]))


# Repeating


def test_the_same_run_twice_is_the_same_bit_for_bit_and_another_seed_is_not():
    members = [run(Stage(2), seed=seed) for seed in (0, 1, 2)]
    one, other = (train([Member(made) for made in members]) for _ in range(2))
    assert one.keys() == other.keys() == {(0, 2), (1, 2), (2, 2)}
    for key in one:
        assert_same(one[key], other[key])
    for changes in ({"init_seed": 9}, {"order_seed": 9}):
        changed = alone(run(Stage(2), **changes))
        assert changed.curves != alone(run(Stage(2))).curves
    half = alone(run(Stage(2, HALF)))
    assert half.curves != alone(run(Stage(2, HALF), split_seed=9)).curves


def test_nothing_depends_on_the_state_of_global_generators():
    torch.manual_seed(1)
    np.random.seed(1)
    one = alone(run(Stage(1)))
    torch.manual_seed(2)
    np.random.seed(2)
    assert_same(one, alone(run(Stage(1))))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_of_two_epochs_is_the_beginning_of_a_run_of_four(name):
    short, long = (run(Stage(epochs, optimizer=OPTIMIZERS[name]), seed=4) for epochs in (2, 4))
    kept = train([Member(long, others=(short,))])
    assert kept.keys() == {(0, 2), (0, 4)}
    assert_same(kept[0, 2], alone(short))
    for curve in CURVES:
        assert kept[0, 4].curves[0][curve][:2] == kept[0, 2].curves[0][curve]
    assert not torch.equal(kept[0, 2].state["module6.weight"], kept[0, 4].state["module6.weight"])


def test_curves_hold_the_stages_in_turn():
    end = warm(run(Stage(2, HALF), Stage(3), Stage(1)))
    assert [len(curve[name]) for curve in end.curves for name in CURVES] == [2] * 3 + [3] * 3 + [1] * 3
    assert end.seconds > 0


# Stopping and going on


@pytest.fixture(scope="module")
def past():
    """The end of a pretraining of one epoch."""
    return alone(run(Stage(1, HALF)))


def shorter(made):
    """The runs that end before this one, and begin as it does."""
    *before, last = made.stages
    ends = (dataclasses.replace(last, epochs=epochs) for epochs in range(1, last.epochs))
    return tuple(dataclasses.replace(made, stages=(*before, end)) for end in ends)


def mixture(past, optimizer=OPTIMIZERS["adam"]):
    """Two fresh members and two warm ones, one of them with modules reset and epochs to keep."""
    tuning = Stage(3, optimizer=optimizer)
    reset = dataclasses.replace(tuning, reset=(4, 5, 6))
    return [
        Member(run(tuning)),
        Member(run(Stage(1, HALF), tuning), past),
        Member(run(Stage(1, HALF), reset), past, shorter(run(Stage(1, HALF), reset))),
        Member(run(tuning, seed=1)),
    ]


def train_in_pieces(make, checkpoint, stops):
    """Snapshots by (member, epoch) of a training stopped after these epochs and gone on with."""
    found = {}
    for stop in (*stops, None):
        done = []
        members = make()
        resumed = checkpoint.exists()
        settings = {
            "checkpoint": checkpoint,
            "stop": lambda stop=stop, done=done: stop is not None and bool(done) and done[-1] >= stop,
            "on_epoch": lambda epoch, accuracies, done=done: done.append(epoch),
        }
        if stop == 0:
            settings["stop"] = lambda: True
        try:
            for trained in train_population(members, CPU, "float32", **settings):
                found |= by_epoch([trained])
        except Stopped:
            assert stop is not None
            assert checkpoint.exists()
            assert done == list(range(done[0], stop + 1)) if done else stop == 0
        else:
            assert stop is None
            assert resumed == bool(stops)
    return found


@pytest.mark.parametrize("epoch", [0, 1, 2])
@pytest.mark.parametrize("population", ["one", "four"])
def test_stopped_after_any_epoch_it_goes_on_as_if_nothing_had_happened(epoch, population, past, tmp_path):
    def make():
        return mixture(past)[: 4 if population == "four" else 1]

    undisturbed = train(make())
    found = train_in_pieces(make, tmp_path / "stopped.pt", [epoch])
    assert found.keys() == undisturbed.keys()
    for key in found:
        assert_same(found[key], undisturbed[key])


@pytest.mark.parametrize("optimizer", [*OPTIMIZERS.values(), FALLING], ids=[*OPTIMIZERS, "falling"])
def test_stopped_after_every_epoch_it_goes_on_with_any_optimiser(optimizer, past, tmp_path):
    def make():
        return mixture(past, optimizer)

    undisturbed = train(make())
    found = train_in_pieces(make, tmp_path / "stopped.pt", [0, 1, 2])
    assert found.keys() == undisturbed.keys()
    for key in found:
        assert_same(found[key], undisturbed[key])


@pytest.mark.parametrize("lost", range(6))
def test_what_is_lost_behind_a_yield_comes_again(lost, past, tmp_path):
    def trained():
        return train_population(mixture(past), CPU, "float32", checkpoint=tmp_path / "lost.pt")

    undisturbed = train(mixture(past))
    before = trained()
    found = by_epoch(itertools.islice(before, lost))
    [unwritten] = by_epoch([next(before)])
    before.close()  # as a process does that is killed before it has written the snapshot down
    again = by_epoch(trained())
    assert unwritten not in found
    assert unwritten in again
    assert found.keys() | again.keys() == undisturbed.keys()
    for key, snapshot in [*found.items(), *again.items()]:
        assert_same(snapshot, undisturbed[key])


def test_a_checkpoint_is_written_every_so_many_seconds(tmp_path):
    path = tmp_path / "x.pt"

    def written(every):
        """Epochs of the checkpoint that is there as each of three epochs ends, and in the end."""
        found = []

        def look(*_):
            found.append(snapshots.load(path)["epoch"] if path.exists() else None)

        train([Member(run(Stage(3)))], every=every, checkpoint=path, on_epoch=look)
        look()
        return found

    assert written(0.0) == [0, 1, 2, 3]
    path.unlink()
    assert written(1e9) == [None, None, None, 3]


def test_a_checkpoint_of_another_precision_or_population_is_refused(tmp_path):
    path = tmp_path / "stopped.pt"
    with pytest.raises(Stopped):
        train([Member(run(Stage(2)))], checkpoint=path, stop=lambda: True)
    with pytest.raises(InputError, match="float32"):
        train([Member(run(Stage(2)))], "float64", checkpoint=path)
    with pytest.warns(UserWarning, match=r"other runs, .+; set aside as stopped\.pt\.damaged"):
        found = train([Member(run(Stage(2), seed=1))], checkpoint=path)
    assert_same(found[0, 2], alone(run(Stage(2), seed=1)))
    path.unlink()
    with pytest.raises(Stopped):
        train([Member(run(Stage(2)))], checkpoint=path, stop=lambda: True)
    snapshots.save({k: v for k, v in snapshots.load(path).items() if k != "engine"}, path)
    with pytest.warns(UserWarning, match="another version; set aside"):
        assert_same(train([Member(run(Stage(2)))], checkpoint=path)[0, 2], alone(run(Stage(2))))


def test_a_snapshot_comes_back_from_its_file(past, tmp_path):
    past.save(tmp_path / "folder" / "past.pt")
    assert_same(Snapshot.load(tmp_path / "folder" / "past.pt"), past)
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["past.pt"]


# Stages


def test_until_ends_a_stage_with_the_network_of_that_epoch():
    adam = Optimizer("adam", 0.01)
    made = run(Stage(8, optimizer=adam))
    whole = train([Member(made, others=shorter(made))])
    accuracies = whole[0, 8].curves[0]["train_accuracy"]
    reached = next(epoch for epoch, accuracy in enumerate(accuracies, 1) if accuracy >= 0.5)
    assert 1 < reached < 8
    ended = train([Member(run(Stage(8, optimizer=adam, until=0.5)))])
    assert ended.keys() == {(0, reached)}
    assert_same(ended[0, reached], whole[0, reached])


def test_members_of_one_population_end_each_at_its_epoch():
    adam = Optimizer("adam", 0.01)
    runs = [run(Stage(8, optimizer=adam, until=0.5), seed=seed, width=4) for seed in range(4)]
    ends = {p: (epoch, s) for (p, epoch), s in train([Member(made) for made in runs], "float64").items()}
    assert len({epoch for epoch, _ in ends.values()}) > 1
    for p, made in enumerate(runs):
        [(_, expected)] = train([Member(made)], "float64").items()
        assert len(expected.curves[0]["train_loss"]) == ends[p][0]
        assert_close(ends[p][1].state, expected.state, 1e-9)


def normalised(images, x):
    mean, std = images.normalization
    return torch.from_numpy((x.astype(np.float32) - mean) / std).permute(0, 3, 1, 2).double()


def plainly_trained(made, forget=True):
    """Weights of a run after all its stages, by a plain loop over one ordinary network in float64."""
    images = datasets.images(made.dataset)
    x, y = normalised(images, images.x_train), torch.tensor(images.y_train)
    net = ResNet(made.model, x.shape[1], images.classes).double()
    net.initialise(0, MODULES, made.init_seed, stage=1)
    optimizer = None
    for number, stage in enumerate(made.stages, 1):
        new = ResNet(made.model, x.shape[1], images.classes).double()
        new.initialise(0, MODULES, made.init_seed, stage=number)
        with torch.no_grad():
            for old, other in zip(net.parameters(), new.parameters(), strict=True):
                old.mul_(stage.shrink).add_(stage.perturb * other)
        net.initialise(0, stage.reset, made.init_seed, stage=number)
        rate = stage.optimizer.learning_rate
        if forget or optimizer is None:
            optimizer = {
                "adam": lambda rate=rate: torch.optim.Adam(net.parameters(), rate),
                "rmsprop": lambda rate=rate: torch.optim.RMSprop(net.parameters(), rate),
                "sgd": lambda rate=rate, m=stage.optimizer.momentum: torch.optim.SGD(
                    net.parameters(), rate, m
                ),
            }[stage.optimizer.name]()
        for epoch in range(stage.epochs):
            net.train()
            if stage.optimizer.schedule == "cosine":  # by half its way, half the rate
                optimizer.param_groups[0]["lr"] = rate * math.cos(math.pi * epoch / stage.epochs / 2) ** 2
            so_far = dataclasses.replace(made, stages=made.stages[:number])
            for batch in examples(so_far, images.y_train, epoch):
                optimizer.zero_grad()
                F.cross_entropy(net(x[batch])[0], y[batch]).backward()
                optimizer.step()
    return net.member(0)


def test_the_plain_loop_that_the_book_shows_is_what_a_population_does():
    """Until rounding has grown: a few epochs of small networks, up to two test images of 128."""
    for case in warm_start(profile("smoke"))[:2]:
        shown = plain.train(case.run)
        last = shown[shown.stage == len(case.run.stages)].test_accuracy
        recorded = warm(case.run).curves[-1]["test_accuracy"]
        assert list(last) == pytest.approx(recorded, abs=2 / 128)
        assert len(shown) == sum(stage.epochs for stage in case.run.stages)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_two_stages_are_what_a_plain_loop_does_with_a_new_optimiser_in_each(name):
    optimizer = OPTIMIZERS[name]
    first, second = Stage(2, HALF, optimizer), Stage(2, ALL, optimizer, (1, 5, 6))
    made = run(first, second, seed=3)
    found = warm(made, "float64").state
    assert_close(found, plainly_trained(made), 1e-9)
    if optimizer.name != "sgd" or optimizer.momentum:
        carried = plainly_trained(made, forget=False)
        assert (found["module3.0.conv1.weight"] - carried["module3.0.conv1.weight"]).norm() > 1e-4


def test_four_unlike_stages_are_what_a_plain_loop_does():
    made = run(
        Stage(1, Subset(1, 3, 0.5), OPTIMIZERS["momentum"]),
        Stage(2, Subset(2, 3, 0.5, 0.5), OPTIMIZERS["adam"], (6,)),
        Stage(1, ALL, OPTIMIZERS["rmsprop"], shrink=0.4, perturb=0.1),
        Stage(3, ALL, FALLING, (1,), shrink=0.9),
    )
    assert_close(warm(made, "float64").state, plainly_trained(made), 1e-9)


# What the curves say


def constant(bias):
    """A network that answers every image with these logits, and what it takes to stay so."""
    net = ResNet(Model(2, 1), 1, 10)
    net.initialise(0, MODULES, 0, 1)
    net.module6.weight.data.zero_()
    net.module6.bias.data.copy_(torch.tensor(bias))
    start = Snapshot({name: tensor.clone() for name, tensor in net.member(0).items()}, [], 0.0)
    return Member(run(Stage(1), Stage(1, optimizer=Optimizer("sgd", 1e-30))), start)


def test_curves_of_a_constant_answer_are_those_computed_by_hand():
    bias = [0.0] * 10
    bias[3], bias[7] = 2.0, 1.0
    [snapshot] = train([constant(bias)]).values()
    images = datasets.images(DIGITS)
    threes, sevens, n = (images.y_train == 3).sum(), (images.y_train == 7).sum(), 160
    normaliser = math.log(math.exp(2) + math.exp(1) + 8)
    curve = snapshot.curves[-1]
    assert curve["train_loss"] == pytest.approx([normaliser - (2 * threes + sevens) / n], rel=1e-6)
    assert curve["train_accuracy"] == pytest.approx([threes / n], abs=1e-7)
    assert curve["test_accuracy"] == pytest.approx([(images.y_test == 3).mean()], abs=1e-7)


def test_a_blind_guess_loses_the_logarithm_of_the_number_of_classes():
    [snapshot] = train([constant([0.0] * 10)]).values()
    assert snapshot.curves[-1]["train_loss"] == pytest.approx([math.log(10)], rel=1e-6)


def test_images_arrive_with_mean_zero_and_deviation_one():
    population = Population([Member(run(Stage(1)))], CPU, "float32")
    assert population.x_train.shape == (160, 1, 12, 12)
    assert float(population.x_train.mean()) == pytest.approx(0, abs=1e-5)
    assert float(population.x_train.std()) == pytest.approx(1, abs=1e-4)
    images = datasets.images(DIGITS)
    pixel = (images.x_test[5, 3, 4, 0] - images.x_train.mean()) / images.x_train.std()
    assert float(population.x_test[5, 0, 3, 4]) == pytest.approx(pixel, abs=1e-5)


def test_test_accuracy_depends_on_neither_the_order_nor_the_batches_of_the_test_images(monkeypatch):
    """As batch norm uses its running statistics, which testing leaves alone."""
    population = Population([Member(run(Stage(2), seed=seed, width=4)) for seed in range(3)], CPU, "float64")
    for _ in range(6):
        population.train_epoch()
    before = {name: tensor.clone() for name, tensor in population.networks[0].state_dict().items()}
    expected = population.test_accuracy()
    assert len(set(expected)) > 1
    assert max(expected) > 0.2
    for batch in (1, 7, 96, 10):
        monkeypatch.setitem(populations.TEST_BATCH, "cpu", batch)
        assert population.test_accuracy() == expected
    order = torch.randperm(96, generator=torch.Generator().manual_seed(0))
    population.x_test, population.y_test = population.x_test[order], population.y_test[order]
    assert population.test_accuracy() == expected
    for name, tensor in population.networks[0].state_dict().items():
        assert torch.equal(tensor, before[name])


def test_testing_between_epochs_does_not_change_the_training():
    one, other = (Population([Member(run(Stage(2)))], CPU, "float32") for _ in range(2))
    one.train_epoch()
    one.test_accuracy()
    other.train_epoch()
    assert one.train_epoch() == other.train_epoch()


def test_networks_learn_what_holds_for_other_images_too():
    adam = Optimizer("adam", 0.01)
    end = alone(run(Stage(6, optimizer=adam), width=6, dataset=Dataset("digits", 1000, 200)))
    assert end.curves[0]["train_loss"][0] > 1.8
    assert end.curves[0]["train_loss"][-1] < 0.4
    assert end.curves[0]["test_accuracy"][-1] > 0.6


# Devices and precisions


def test_bf16_stays_close_to_float32_for_a_few_steps():
    found = {p: alone(run(Stage(2), width=4), precision=p) for p in ("float32", "bf16", "float64")}
    losses = {p: end.curves[0]["train_loss"] for p, end in found.items()}
    assert losses["bf16"] == pytest.approx(losses["float32"], rel=0.02)
    assert losses["bf16"] != losses["float32"]
    assert losses["float64"] == pytest.approx(losses["float32"], rel=1e-4)
    assert all(tensor.dtype == torch.float32 for tensor in found["bf16"].state.values())


def test_unknown_devices_and_precisions_are_refused():
    with pytest.raises(InputError, match="unknown device 'tpu': choose from auto, cpu, cuda"):
        machine.gpus("tpu")
    with pytest.raises(InputError, match="unknown precision 'float16': choose from auto, float32, bf16"):
        trainer.choose_precision("cpu", "float16")
    with pytest.raises(InputError, match="unknown precision 'float16': choose from float32, bf16, float64"):
        train([Member(run(Stage(1)))], "float16")
    assert machine.gpus("cpu") == 0
    assert trainer.choose_precision("cpu", "float64") == "float64"
    assert trainer.choose_precision("cpu", "auto") == "float32"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_here_is_refused_and_auto_does_without():
    with pytest.raises(InputError, match="no CUDA device here: choose auto or cpu"):
        machine.gpus("cuda")
    assert machine.gpus("auto") == 0


# Tests of some epochs only


def test_an_epoch_without_a_test_trains_the_same_network():
    """Tests change nothing but what is known: 1, 2, 3 and 5 by rule, 6 and 7 in the window."""
    every = alone(run(Stage(7)))
    sparse = alone(run(Stage(7), test_window=2))
    told = every.curves[0]["test_accuracy"]
    expected = [told[0], told[1], told[2], math.nan, told[4], told[5], told[6]]
    assert sparse.curves[0]["test_accuracy"] == pytest.approx(expected, nan_ok=True)
    assert sparse.curves[0]["train_loss"] == every.curves[0]["train_loss"]
    assert all(torch.equal(tensor, every.state[name]) for name, tensor in sparse.state.items())


def test_a_run_cut_from_a_longer_one_has_its_own_tests_only():
    """Runs of 4 and 8 epochs are one training, tested for both; each record is that of the run alone."""
    long = run(Stage(8), test_window=1)
    short = run(Stage(4), test_window=1)
    both = train([Member(long, others=(short,))])
    for epochs, made in ((4, short), (8, long)):
        found, expected = both[0, epochs].curves, alone(made).curves
        for name in CURVES:
            assert found[0][name] == pytest.approx(expected[0][name], nan_ok=True), name


def test_a_stage_that_ends_early_is_tested_where_it_ends():
    first = alone(run(Stage(6))).curves[0]["train_accuracy"]
    ended = alone(run(Stage(6, until=min(first[:4])), test_window=1))
    assert not math.isnan(ended.curves[0]["test_accuracy"][-1])
