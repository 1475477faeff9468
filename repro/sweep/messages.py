"""What the processes of a sweep tell each other: a job or a trial, what happens in it, and how it ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from repro.config import Run
from repro.sweep.plans import Layout, Part


@dataclass(frozen=True, eq=False)
class Job:
    """What a process needs to know to train a part of a group."""

    part: Part
    needed: frozenset[str]  # ids of its runs whose record or network is missing
    wanted: frozenset[str]  # ids of runs to record
    parents: frozenset[str]  # ids of the group's runs whose final network to keep
    folder: str  # of the store
    device: str
    precision: str
    layout: Layout


@dataclass(frozen=True, eq=False)
class Trial:
    """Runs to train together for some seconds, only to measure their speed."""

    runs: tuple[Run, ...]
    device: str
    precision: str
    seconds: float  # to train for, at least
    grouped: bool = True
    compiled: bool = False


@dataclass(frozen=True)
class Speed:
    """The speed of populations of one shape that train at the same time, one in each slot."""

    rate: float  # training images a second, of all members in all slots
    memory: float  # GiB, the most that a slot's process has taken so far
    evaluation: float  # seconds to test one member on one image


@dataclass(frozen=True)
class EpochDone:
    steps: int  # optimiser steps in this epoch of all networks in the population
    epoch: str  # epochs done and the last stage's total, such as 3/10
    accuracy: float  # mean train accuracy of these networks, a fraction


@dataclass(frozen=True)
class Warned:
    text: str


Message = EpochDone | Warned
Report = Callable[[Message], None]


class End(Enum):
    """How a job or a trial ended."""

    DONE = auto()
    FAILED = auto()  # it is not to be tried again
    STOPPED = auto()  # it was told to; if it had begun, a checkpoint is left
    BUSY = auto()  # another process trains runs of its group
    LACKING = auto()  # a network that it starts from, or the store, is not there
    KILLED = auto()  # its process died
    SPLIT = auto()  # it failed with this many networks; fewer may train together


# After these the child process ends, too: an error may have left its GPU unusable in that process.
LAST = frozenset({End.FAILED, End.STOPPED, End.KILLED, End.SPLIT})


@dataclass(frozen=True)
class Ended:
    end: End
    said: str = ""  # why it failed, who trains its runs, what is lacking, or how its process died
    size: int = 0  # how many networks to train at once, if it is to be split
    speed: Speed | None = None  # what a trial found
