"""Work for a GPU that is launched once and then replayed, as a CUDA graph.

The kernels of a small network end before the next one is launched: most of a
step's time goes into launching. A graph launches all of them at once. What is
captured must do the same on the same memory every time and wait for nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch

WARM_UPS = 3  # calls before capture, in which libraries choose their kernels and optimisers make their state


class Captured:
    """A call without arguments that from its fourth time on is replayed on a GPU; elsewhere, the call itself.

    Every call counts: the first ones are carried out as they are, on a stream of
    their own, as capture wants it.
    """

    def __init__(self, call: Callable[[], None], device: torch.device) -> None:
        self.call, self.calls = call, 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.captures = device.type == "cuda"
        self.stream = torch.cuda.Stream(device) if self.captures else None

    def __call__(self) -> None:
        if self.captures and self.graph is None and self.calls >= WARM_UPS:
            self._capture()
        self.calls += 1
        if self.graph is not None:
            self.graph.replay()
        elif self.stream is not None:
            main = torch.cuda.current_stream(self.stream.device)
            self.stream.wait_stream(main)
            with torch.cuda.stream(self.stream):
                self.call()
            main.wait_stream(self.stream)
        else:
            self.call()

    def renew(self) -> None:
        """Capture anew at the next call: a number that the graph holds has changed."""
        self.graph = None

    def _capture(self) -> None:
        try:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):  # records, carries nothing out
                self.call()
        except RuntimeError as error:
            for cause in (error, error.__context__):  # leaving a capture that failed fails too
                if isinstance(cause, torch.OutOfMemoryError):
                    raise cause from None
            self.captures = False
            warnings.warn(f"not captured as a CUDA graph, so slower: {error}"[:300], stacklevel=3)
            return
        self.graph = graph
