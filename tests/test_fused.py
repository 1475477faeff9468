"""Steps that come from a compiler, on the CPU; on a GPU in tests/test_gpu.py."""

import shutil

import pytest
import torch

from repro.config import Dataset, Model, Run, Stage
from repro.training.loop import train_population
from repro.training.populations import Member, Population

BATCH = 30  # no multiple of 16, so that PyTorch's own operations train, as on a GPU
DIGITS = Dataset("digits", 5 * BATCH, 96, 0.1)
EPOCHS = 4
CPU = torch.device("cpu")


def members(count):
    return [Member(Run(DIGITS, Model(2, 1), (Stage(EPOCHS),), BATCH, s, s, s)) for s in range(count)]


def losses(population):
    return torch.tensor([population.train_epoch()[0] for _ in range(EPOCHS)])


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="needs a compiler of C++")
@pytest.mark.parametrize(("count", "grouped"), [(3, True), (3, False)], ids=["grouped", "apart"])
def test_twenty_compiled_steps_are_the_eager_ones(count, grouped):
    from torch._dynamo.utils import counters

    before = counters["stats"]["unique_graphs"]
    population = Population(members(count), CPU, "float32", grouped, compiled=True)
    assert population.compiled
    eager = Population(members(count), CPU, "float32", grouped)
    assert not eager.compiled
    found, expected = losses(population), losses(eager)
    for a, b in zip(population.networks, eager.networks, strict=True):  # weights and statistics
        torch.testing.assert_close(a.state_dict(), b.state_dict(), rtol=1e-2, atol=1e-2)
    population.test_accuracy()
    population.train_epoch()
    assert counters["stats"]["unique_graphs"] == before + 1, "networks of a shape share what is compiled"
    # Sums are taken in another order, and twenty steps of Adam make the difference larger.
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=0)
    assert (found[-1] < found[0]).all(), "it learns"


def test_where_nothing_can_be_compiled_training_is_eager_and_says_so(monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(torch, "compile", refuse)
    monkeypatch.setenv("TORCHINDUCTOR_DETERMINISTIC", "0")  # a way in which nothing is compiled so far
    begun = []
    with pytest.warns(UserWarning, match="not compiled, so slower: no compiler here") as told:
        ends = list(train_population(members(2), CPU, "float32", compiled=True, on_begin=begun.append))
    assert len(told) == 1
    assert not begun[0].compiled
    eager = train_population(members(2), CPU, "float32")
    for (*_, found), (*_, expected) in zip(ends, eager, strict=True):
        assert found.curves == expected.curves
