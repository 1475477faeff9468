"""The explorer as widgets, for JupyterLab or Voila: the controls of its page, and training.

Training runs in a thread, so that the kernel still hears the cancel button;
what it needs of the other widgets it is told before it starts.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

import ipywidgets as widgets

from repro.book import panels
from repro.book.explorer import Choice, Explorer, Panel
from repro.config import MODULES
from repro.store.records import Store
from repro.sweep import dispatch
from repro.sweep.plans import plan
from repro.sweep.progress import Progress

STYLE = """<style>
.explorer-drawings { display: flex; flex-wrap: wrap; gap: 0.5rem; }
.explorer-drawing { background: #fff; flex: 1 1 18rem; font-size: 13px; max-width: 26rem; }
</style>"""  # the book's own sheet is not there in JupyterLab


class Live:
    """Widgets of an explorer; `box` holds them all."""

    def __init__(
        self,
        explorer: Explorer,
        device: str = "auto",
        found: Mapping[Choice, Panel | None] | None = None,  # panels, where they are known
    ) -> None:
        self.explorer, self.device = explorer, device
        self.panel = widgets.HTML()
        self.train = widgets.Button(description="Train what is missing", layout={"width": "auto"})
        self.cancel = widgets.Button(description="Cancel", disabled=True)
        self.bar = widgets.FloatProgress(max=1.0, layout={"visibility": "hidden"})
        self.status = widgets.Label()
        self.thread: threading.Thread | None = None
        self._stop = threading.Event()
        controls = self._network() if explorer.study.name == "reset" else self._factors()
        self.train.on_click(self._start)
        self.cancel.on_click(lambda _: self._cancel())
        training = widgets.HBox([self.train, self.cancel, self.bar, self.status])
        self.box = widgets.VBox([*controls, training, self.panel])
        self._show(found[self.choice] if found else explorer.panel(self.choice))

    @property
    def choice(self) -> Choice:
        if self.explorer.study.name == "reset":
            return ("".join(str(m) for m, box in zip(MODULES, self.modules, strict=True) if box.value),)
        return tuple(control.value for control in self.controls)

    def show(self, _: object = None) -> None:
        """Show the panel of the choice, read anew from the records."""
        self._show(self.explorer.panel(self.choice))

    def _show(self, found: Panel | None) -> None:
        self.panel.value = STYLE + panels.panel_html(self.explorer, self.choice, found)
        training = self.thread is not None and self.thread.is_alive()
        self.train.disabled = training or (found is not None and not found.missing)

    # Controls

    def _network(self) -> list[widgets.Widget]:
        """The six modules, and a slider with a play button that ticks the last or the first k."""
        names = zip(MODULES, panels.MODULE_NAMES, strict=True)
        self.modules = [widgets.Checkbox(m > 3, description=f"{m} {name}", indent=False) for m, name in names]
        self.depth = widgets.IntSlider(3, 0, len(MODULES), description="Reset depth")
        self.side = widgets.ToggleButtons(options=["last", "first"])
        play = widgets.Play(3, max=len(MODULES), interval=1000)  # at 3 too: a front end begins by linking
        widgets.jslink((play, "value"), (self.depth, "value"))
        for control in (self.depth, self.side):
            control.observe(self._tick_by_depth, "value")
        for box in self.modules:
            box.observe(self.show, "value")
        depth = widgets.HBox([self.side, play, self.depth])
        return [widgets.GridBox(self.modules, layout={"grid_template_columns": "repeat(3, 12rem)"}), depth]

    def _tick_by_depth(self, _: object) -> None:
        k, last = self.depth.value, self.side.value == "last"
        for module, box in zip(MODULES, self.modules, strict=True):
            box.unobserve(self.show, "value")  # one new panel, not six
            box.value = module > len(MODULES) - k if last else module <= k
            box.observe(self.show, "value")
        self.show()

    def _factors(self) -> list[widgets.Widget]:
        """A menu for names and a slider for numbers."""
        self.controls = []
        for name, values in self.explorer.values.items():
            kind = widgets.Dropdown if name == "optimizer" else widgets.SelectionSlider
            self.controls.append(kind(options=values, value=values[-1], description=panels.LABELS[name][0]))
            self.controls[-1].observe(self.show, "value")
        return self.controls

    # Training

    def _start(self, _: object) -> None:
        explorer = self.explorer
        made = plan(case.run for case in explorer.runs(self.choice))
        self._stop.clear()
        self.train.disabled, self.cancel.disabled = True, False
        self.bar.value, self.bar.layout.visibility, self.status.value = 0.0, "visible", "starting"
        self.thread = threading.Thread(target=self._train, args=(made, Store.of(explorer.profile.name)))
        self.thread.start()

    def _cancel(self) -> None:
        self.status.value = "stopping at the end of this epoch"
        self.cancel.disabled = True
        self._stop.set()

    def _train(self, made, store: Store) -> None:
        try:
            outcome = dispatch.execute(
                made,
                store,
                device=self.device,
                progress=Progress(show=self._progress),
                stop=self._stop.is_set,
            )
            ended = "recorded" if outcome.finished else "cancelled; training again goes on from here"
            ended = outcome.failures[0] if outcome.failures else ended
        except Exception as error:  # there is no one above this thread to see it
            ended = f"{type(error).__name__}: {error}"
        self.thread, self.cancel.disabled, self.bar.layout.visibility = None, True, "hidden"
        self.show()
        self.status.value = ended

    def _progress(self, progress: Progress) -> None:
        self.bar.value = progress.steps_done / progress.steps if progress.steps else 0.0
        if not self._stop.is_set():
            self.status.value = progress.line
