"""What a GPU replays, with capture emulated on the CPU; the real one is in tests/test_gpu.py."""

import dataclasses
import gc
import weakref
from unittest.mock import MagicMock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from repro.config import HALF, Dataset, Model, Optimizer, Run, Stage
from repro.sweep import trials
from repro.sweep.messages import Trial
from repro.training import cuda_graphs, loop, populations
from repro.training.loop import train_population
from repro.training.populations import Member

# 5 steps an epoch. No batch is a multiple of 16, so PyTorch's operations train on a CPU as on a GPU.
DIGITS, BATCH = Dataset("digits", 150, 90, 0.1), 30
EPOCHS = 6
OPTIMIZERS = {
    "adam": Optimizer("adam", 0.003),
    "falling": Optimizer("adam", 0.003, schedule="cosine"),
    "rmsprop": Optimizer("rmsprop", 0.001),
    "sgd": Optimizer("sgd", 0.1),
    "momentum": Optimizer("sgd", 0.05, 0.9),
}


def members(optimizer, seeds=3):
    stage = Stage(EPOCHS, optimizer=optimizer)
    return [Member(Run(DIGITS, Model(2, 1), (stage,), BATCH, s, s, s)) for s in range(seeds)]


def ends(made, device="cpu", **settings):
    """The last network of each member."""
    trained = train_population(made, torch.device(device), "float32", **settings)
    return [snapshot for _, _, snapshot in trained]


def assert_same(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert a.curves == b.curves
        assert all(torch.equal(a.state[name], b.state[name]) for name in b.state)


class Tape(TorchDispatchMode):
    """The operations of a call on their very tensors, as a CUDA graph holds them."""

    def __init__(self):
        super().__init__()
        self.done, self.before = [], {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        for argument, value in zip(function._schema.arguments, args, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self.keep(tree_leaves(value))
        out = function(*args, **kwargs)
        self.done.append((function, args, kwargs, out))
        return out

    def keep(self, tensors):
        for tensor in tensors:
            self.before.setdefault(id(tensor), (tensor, tensor.clone()))

    def undo(self):
        for tensor, value in reversed(self.before.values()):  # views of one memory: the first kept is right
            tensor.detach().copy_(value)

    def replay(self):
        with torch.no_grad():
            for function, args, kwargs, out in self.done:
                pairs = zip(tree_leaves(out), tree_leaves(function(*args, **kwargs)), strict=True)
                for old, new in pairs:
                    if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)


@pytest.fixture
def emulated(monkeypatch):
    """The tapes of all captures, in order."""
    tapes = []

    class Emulated(cuda_graphs.Captured):
        def __init__(self, device):
            super().__init__(device)
            self.captures = True

        def _capture(self, call):
            tape = Tape()
            networks = call.__self__.networks
            tape.keep(buffer for network in networks for buffer in network.buffers())
            with tape:
                call()
            tape.undo()
            self.graph = tape
            tapes.append(tape)

    monkeypatch.setattr(populations, "Captured", Emulated)
    return tapes


@pytest.mark.parametrize("grouped", [True, False], ids=["grouped", "apart"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_what_is_replayed_is_what_would_have_been_done(name, grouped, emulated, monkeypatch):
    found = ends(members(OPTIMIZERS[name]), grouped=grouped)
    monkeypatch.setattr(populations, "Captured", cuda_graphs.Captured)
    assert_same(found, ends(members(OPTIMIZERS[name]), grouped=grouped))
    assert len(emulated) == 2, "a step and a test"


def test_nothing_that_is_captured_waits_for_the_device(emulated):
    ends(members(OPTIMIZERS["adam"]))
    step, test = emulated
    for tape in (step, test):
        names = {function._schema.name for function, *_ in tape.done}
        assert not names & {"aten::_local_scalar_dense", "aten::nonzero", "aten::is_nonzero", "aten::equal"}
    assert any(function._schema.name == "aten::convolution_backward" for function, *_ in step.done)
    assert not any("backward" in function._schema.name for function, *_ in test.done)


def test_a_checkpoint_between_replays_is_gone_on_from_bit_for_bit(emulated, tmp_path):
    half = [
        Member(dataclasses.replace(m.run, stages=(Stage(4, HALF), Stage(EPOCHS))))
        for m in members(Optimizer())
    ]
    for member, start in zip(half, ends([Member(m.run.parent) for m in half]), strict=True):
        member.start = start
    whole = ends([dataclasses.replace(m, curve=Member(m.run).curve) for m in half])
    epochs = []
    settings = {"checkpoint": tmp_path / "a.pt", "stop": lambda: len(epochs) == 5}
    with pytest.raises(loop.Stopped):
        ends(half, on_epoch=lambda *_: epochs.append(1), **settings)
    again = [Member(m.run, m.start) for m in half]
    assert_same(ends(again, checkpoint=tmp_path / "a.pt"), whole)


def test_what_is_timed_is_what_a_sweep_replays(emulated, monkeypatch):
    captured, turn = [], trials.turn

    def spied(epoch, seconds):
        captured.append(len(emulated))
        return turn(epoch, 0)

    monkeypatch.setattr(trials, "turn", spied)
    trial = Trial(tuple(member.run for member in members(Optimizer())), "cpu", "float32", seconds=1)
    speed = trials.measured(trial).speed
    assert captured == [1, 2], "the step before it is timed, and the test before that is"
    assert speed.rate > 0 and 0 < speed.evaluation < 1


@pytest.mark.parametrize(("precision", "tf32"), [("float32", False), ("bf16", True)])
def test_where_training_happens_kernels_are_repeatable_and_float32_is_no_tf32(precision, tf32, monkeypatch):
    for name, value in (("deterministic", False), ("allow_tf32", not tf32)):
        monkeypatch.setattr(torch.backends.cudnn, name, value)
    populations.Population(members(Optimizer()), torch.device("cpu"), precision)
    assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32) == (True, tf32)


def test_a_population_makes_its_gpu_the_current_one_before_it_puts_anything_there(monkeypatch):
    class Chosen(Exception):
        pass

    def choose(device):
        raise Chosen(device)

    monkeypatch.setattr(torch.cuda, "set_device", choose)
    with pytest.raises(Chosen, match="cuda:1"):
        populations.Population(members(Optimizer()), torch.device("cuda", 1), "bf16")


def test_streams_part_before_any_of_them_has_work(monkeypatch):
    """Two may be one, and what is forked behind another's work waits for it."""
    population = populations.Population(members(Optimizer()), torch.device("cpu"), "float32", grouped=False)
    done = []
    monkeypatch.setattr(torch.cuda, "current_stream", MagicMock())
    monkeypatch.setattr(torch.cuda, "stream", MagicMock())
    population.streams = [MagicMock(wait_stream=lambda main: done.append("fork")) for _ in range(3)]
    for network in population.networks:
        network.register_forward_pre_hook(lambda *_: done.append("work"))
    population.train_epoch()
    assert done == (["fork"] * 3 + ["work"] * 3) * 5


def test_networks_apart_are_those_trained_alone():
    alone = [end for member in members(Optimizer()) for end in ends([member])]
    assert_same(ends(members(Optimizer()), grouped=False), alone)


def test_a_capture_that_fails_is_told_and_done_without(monkeypatch):
    def refuse():
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", refuse)
    calls = []
    captured = cuda_graphs.Captured(torch.device("cpu"))
    captured.captures = True
    with pytest.warns(UserWarning, match="not captured as a CUDA graph, so slower: operation not permitted"):
        for _ in range(cuda_graphs.WARM_UPS + 3):
            captured(lambda: calls.append(1))
    assert len(calls) == cuda_graphs.WARM_UPS + 3


def test_memory_that_is_too_small_is_not_hidden(monkeypatch):
    def full():
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", full)
    captured = cuda_graphs.Captured(torch.device("cpu"))
    captured.captures, captured.calls = True, cuda_graphs.WARM_UPS
    with pytest.raises(torch.OutOfMemoryError):
        captured(lambda: None)


def test_a_population_is_freed_at_its_end_and_not_by_a_collection():
    """A graph that a later collection frees would spoil what is being captured then."""
    population = populations.Population(members(Optimizer()), torch.device("cpu"), "float32", grouped=False)
    population.train_epoch()
    population.test_accuracy()
    held = [weakref.ref(population), *map(weakref.ref, population.networks)]
    gc.collect()
    gc.disable()
    try:
        del population
        assert [reference() for reference in held] == [None] * 4
    finally:
        gc.enable()


def test_nothing_is_collected_while_a_graph_is_captured(monkeypatch):
    collecting = []

    def refuse():
        collecting.append(gc.isenabled())
        raise RuntimeError("no")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", refuse)
    captured = cuda_graphs.Captured(torch.device("cpu"))
    captured.captures, captured.calls = True, cuda_graphs.WARM_UPS
    with pytest.warns(UserWarning, match="not captured"):
        captured(lambda: None)
    assert collecting == [False] and gc.isenabled()
