"""Work for a GPU that is recorded once and then replayed, as a CUDA graph.

Each kernel of a small network ends before the next one is launched, so most of a
step's time goes into launching. A graph launches all its kernels at once. What is
captured must do the same on the same memory every time, without waiting for results.
"""

from __future__ import annotations

import contextlib
import gc
import warnings
from collections.abc import Callable, Iterator

import torch

WARM_UPS = 3  # calls before capture, in which libraries choose kernels and optimisers create their state


class Captured:
    """Runs a function without arguments; on a GPU, from the fourth call on, by replaying a graph.

    The first calls run the function itself, on a separate stream, as capture requires;
    if capture fails, a warning says so and all calls do. The function is passed at each
    call, not stored: an object that stored one of its own methods here would be in a
    reference cycle, and keep its graph's memory until a garbage collection.
    """

    def __init__(self, device: torch.device) -> None:
        self.calls = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.captures = device.type == "cuda"
        self.stream = torch.cuda.Stream(device) if self.captures else None

    def __call__(self, call: Callable[[], None]) -> None:
        if self.captures and self.graph is None and self.calls >= WARM_UPS:
            self._capture(call)
        self.calls += 1
        if self.graph is not None:
            self.graph.replay()
        elif self.stream is not None:
            main = torch.cuda.current_stream(self.stream.device)
            self.stream.wait_stream(main)
            with torch.cuda.stream(self.stream):
                call()
            main.wait_stream(self.stream)
        else:
            call()

    def _capture(self, call: Callable[[], None]) -> None:
        try:
            with _uncollected():
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, stream=self.stream):  # records only, runs nothing
                    call()
        except RuntimeError as error:
            for cause in (error, error.__context__):  # leaving a failed capture raises again
                if isinstance(cause, torch.OutOfMemoryError):
                    raise cause from None
            self.captures = False
            warnings.warn(f"not captured as a CUDA graph, so slower: {error}"[:300], stacklevel=3)
            return
        self.graph = graph


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Collect garbage before, but not during, a capture: freeing another graph's memory would spoil it."""
    gc.collect()
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
