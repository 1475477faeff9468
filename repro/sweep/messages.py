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
    needed: frozenset[str]  # ids of its runs of which something is lacking
    wanted: frozenset[str]  # ids of runs to record
    parents: frozenset[str]  # ids of runs whose network to keep
    folder: str  # where the store is
    device: str
    precision: str
    layout: Layout


@dataclass(frozen=True, eq=False)
class Trial:
    """Runs to train together for some seconds, only to know how fast they are."""

    runs: tuple[Run, ...]
    device: str
    precision: str
    seconds: float  # to train for, at least
    grouped: bool = True
    compiled: bool = False


@dataclass(frozen=True)
class Speed:
    """What populations of one shape reached, one in each slot."""

    rate: float  # training images a second, of all members in all slots
    memory: float  # GiB that a slot took at most so far
    evaluation: float  # seconds to test one member on one image


@dataclass(frozen=True)
class EpochDone:
    steps: int  # optimiser steps of the networks that train together, added up
    epoch: str  # the number of the epoch and of how many, such as 3/10
    accuracy: float  # mean train accuracy of these networks, fraction


@dataclass(frozen=True)
class Warned:
    text: str


Message = EpochDone | Warned
Report = Callable[[Message], None]


class End(Enum):
    """How a job or a trial ended."""

    DONE = auto()
    FAILED = auto()  # it cannot be done
    STOPPED = auto()  # it was told to; a checkpoint is left
    BUSY = auto()  # another process trains some of its runs
    LACKING = auto()  # a network that it starts from is not there
    KILLED = auto()  # its process died
    SPLIT = auto()  # so many networks do not train together


# With these its process ends, too: after an error a GPU may do nothing right in it.
LAST = frozenset({End.FAILED, End.STOPPED, End.KILLED, End.SPLIT})


@dataclass(frozen=True)
class Ended:
    end: End
    said: str = ""  # why it failed, who trains its runs, what is lacking, or how its process died
    size: int = 0  # how many networks to train at once, where it is to be split
    speed: Speed | None = None  # what a trial found
