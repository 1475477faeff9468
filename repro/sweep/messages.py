"""What the processes of a sweep tell each other: a job, what happens in it, and how it ended."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from repro.sweep.layouts import Layout
from repro.sweep.plans import Batch


@dataclass(frozen=True, eq=False)
class Job:
    """What a process needs to know to train a batch."""

    batch: Batch
    needed: frozenset[str]  # ids of its runs of which something is lacking
    wanted: frozenset[str]  # ids of runs to record
    parents: frozenset[str]  # ids of runs whose network to keep
    folder: str  # of the store
    device: str
    precision: str
    layout: Layout


@dataclass(frozen=True)
class EpochDone:
    steps: int  # optimiser steps of the networks that train together, added up
    epoch: str  # the number of the epoch and of how many, such as 3/10
    accuracy: float  # mean train accuracy of these networks, fraction


@dataclass(frozen=True)
class Recorded:
    run: str


@dataclass(frozen=True)
class Warned:
    text: str


@dataclass(frozen=True)
class Differs:
    line: str  # which run was trained a second time, and how its curves are not those of its record


@dataclass(frozen=True)
class Failed:
    line: str
    runs: tuple[str, ...]  # ids of the runs that are given up


Message = EpochDone | Recorded | Warned | Differs | Failed
Report = Callable[[Message], None]


class End(Enum):
    """How the training of a job ended."""

    DONE = auto()
    FAILED = auto()  # as `Failed` told, by no fault of the process
    STOPPED = auto()  # it was told to; a checkpoint is left
    BUSY = auto()  # another process trains some of its runs
    LACKING = auto()  # a network that it starts from is not there
    KILLED = auto()  # its process died
    SPLIT = auto()  # so many networks do not train together
    EAGER = auto()  # they do not train compiled
    SPOILT = auto()  # its only network does not train, as `Failed` told


# With these its process ends, too: after an error a GPU may do nothing right in it.
LAST = frozenset({End.STOPPED, End.KILLED, End.SPLIT, End.EAGER, End.SPOILT})


@dataclass(frozen=True)
class Ended:
    end: End
    said: str = ""  # who trains its runs, what is lacking, or how its process died
    size: int = 0  # how many networks to train at once, where it is to be split
