"""Work for a GPU that is launched once and then replayed, as a CUDA graph.

The kernels of a small network end before the next one is launched: most of a
step's time goes into launching. A graph launches all of them at once. What is
captured must do the same on the same memory every time and wait for nothing.
"""

from __future__ import annotations

import contextlib
import gc
import warnings
from collections.abc import Callable, Iterator

import torch

WARM_UPS = 3  # calls before capture, in which libraries choose their kernels and optimisers make their state


class Captured:
    """Carries out a call without arguments; on a GPU, from the fourth time on, by a replay.

    Every call counts: the first ones are carried out as they are, on a stream of
    their own, as capture wants it. The call is handed over each time and not kept:
    an object that kept one of its own methods here would live until a collection,
    and with it the memory of its graph.
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
                with torch.cuda.graph(graph, stream=self.stream):  # records, carries nothing out
                    call()
        except RuntimeError as error:
            for cause in (error, error.__context__):  # leaving a capture that failed fails too
                if isinstance(cause, torch.OutOfMemoryError):
                    raise cause from None
            self.captures = False
            warnings.warn(f"not captured as a CUDA graph, so slower: {error}"[:300], stacklevel=3)
            return
        self.graph = graph


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Dead objects are freed before and none meanwhile: to free a graph's memory would spoil a capture."""
    gc.collect()
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
