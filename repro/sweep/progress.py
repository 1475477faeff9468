"""How a sweep shows how far it is: by a bar on a terminal, by plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from repro import terminal


@dataclass
class Progress:
    """State of a sweep; the sweep updates the numbers and calls `show`."""

    runs: int = 0  # asked for
    recorded: int = 0  # how many of these runs are recorded
    steps: int = 0  # optimiser steps to do, added up over all networks
    steps_done: int = 0
    epoch: str = ""  # where the population now in training is, such as 3/10
    accuracy: float = 0.0  # mean train accuracy of that population, a fraction
    show: Callable[[Progress], None] = lambda progress: None

    @property
    def line(self) -> str:
        return (
            f"{self.recorded}/{self.runs} runs, epoch {self.epoch or '-'}, "
            f"train accuracy {100 * self.accuracy:.1f} %"
        )


@contextlib.contextmanager
def shown() -> Iterator[Progress]:
    """A progress that shows itself on standard error while the block lasts."""
    from rich import progress as bars  # takes a tenth of a command's start-up time

    console = terminal.console(sys.stderr)
    if not console.is_terminal or console.is_jupyter:
        yield Progress(show=_plain())
        return
    columns = (bars.TextColumn("{task.description}"), bars.BarColumn(None), bars.TaskProgressColumn())
    times = (bars.TextColumn("left"), bars.TimeRemainingColumn())
    with bars.Progress(*columns, *times, console=console, expand=True) as bar:
        task = bar.add_task("", total=None)
        yield Progress(
            show=lambda now: bar.update(
                task, description=now.line, total=max(1, now.steps), completed=now.steps_done
            )
        )


def _plain() -> Callable[[Progress], None]:
    """A function that prints a line at most every ten seconds, and always once all runs are recorded."""
    started = last = time.monotonic()

    def show(progress: Progress) -> None:
        nonlocal last
        now = time.monotonic()
        if progress.steps_done and (now - last >= 10 or progress.recorded == progress.runs):
            last = now
            left = (now - started) * max(0, progress.steps / progress.steps_done - 1)  # some are done twice
            print(f"{progress.line}, {left:.0f} s left", file=sys.stderr, flush=True)

    return show
