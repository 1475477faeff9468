"""The explorer as widgets, for JupyterLab or Voila: the controls of its page, and training.

Training runs in a thread, so that the kernel can react to the cancel button.
What to train is read from the controls before the thread starts.
"""

from __future__ import annotations

import threading

import ipywidgets as widgets
import traitlets

from repro.book import panels
from repro.book.choices import SIDES, Choice, Choices, Control
from repro.store.records import Store
from repro.sweep import dispatch
from repro.sweep.plans import Plan, plan
from repro.sweep.progress import Progress


class Slider(widgets.HBox):
    """A slider over a few values, with a button that steps through them all."""

    value = traitlets.Unicode()

    def __init__(self, control: Control) -> None:
        values = list(control.options)
        slider = widgets.SelectionSlider(options=values, value=control.value, description=control.label)
        # The button starts at the slider's value: on linking, a front end sets the slider to the button.
        play = widgets.Play(slider.index, max=len(values) - 1, interval=1000)
        widgets.jslink((play, "value"), (slider, "index"))
        super().__init__([play, slider])
        traitlets.link((slider, "value"), (self, "value"))


class Boxes(widgets.VBox):
    """Boxes to tick, and a slider that ticks the first or last n; `value` joins those ticked, as in `456`."""

    value = traitlets.Unicode()

    def __init__(self, control: Control) -> None:
        names = [f"{value} {name}" for value, name in control.options.items()]
        boxes = [widgets.Checkbox(n[0] in control.value, description=n, indent=False) for n in names]
        side, number = widgets.ToggleButtons(options=SIDES), Slider(control.how_many)

        def read(_: object) -> None:
            self.value = "".join(v for v, box in zip(control.options, boxes, strict=True) if box.value)

        def tick(_: object) -> None:
            with self.hold_trait_notifications():  # draw one new panel, not one per box
                for place, box in enumerate(boxes if side.value == "first" else reversed(boxes)):
                    box.value = place < int(number.value)

        grid = widgets.GridBox(boxes, layout={"grid_template_columns": "repeat(3, 12rem)"})
        label = widgets.Label(control.label)
        super().__init__([label, grid, widgets.HBox([side, number])], value=control.value)
        for widget, heard in (*((box, read) for box in boxes), (side, tick), (number, tick)):
            widget.observe(heard, "value")


class Live:
    """All widgets of an explorer; `box` holds them, for display."""

    def __init__(self, explorer: Choices, start: Choice) -> None:
        self.explorer = explorer
        self.panel = widgets.HTML()
        self.train = widgets.Button(description="Train what is missing", layout={"width": "auto"})
        self.cancel = widgets.Button(description="Cancel", disabled=True)
        self.bar = widgets.FloatProgress(max=1.0, layout={"visibility": "hidden"})
        self.status = widgets.Label()
        self.thread: threading.Thread | None = None
        self._stop = threading.Event()
        self.controls = [_widget(control) for control in explorer.controls(start)]
        for control in self.controls:
            control.observe(self.show, "value")
        self.train.on_click(self._start)
        self.cancel.on_click(self._cancel)
        training = widgets.HBox([self.train, self.cancel, self.bar, self.status])
        self.box = widgets.VBox([*self.controls, training, self.panel])
        self.show()

    @property
    def choice(self) -> Choice:
        return tuple(control.value for control in self.controls)

    def show(self, _: object = None) -> None:
        """Show the panel of the current choice, with the records read again."""
        found = self.explorer.panels().get(self.choice)
        self.panel.value = panels.panel_html(self.explorer, self.choice, found)
        lacking = found.missing if found else len(self.explorer.runs(self.choice))
        self.train.disabled = self.thread is not None or not lacking

    def _start(self, _: object) -> None:
        made = plan(case.run for case in self.explorer.runs(self.choice))
        self._stop.clear()
        self.train.disabled, self.cancel.disabled = True, False
        self.bar.value, self.bar.layout.visibility, self.status.value = 0.0, "visible", "starting"
        store = Store.of(self.explorer.profile.name)
        self.thread = threading.Thread(target=self._train, args=(made, store))
        self.thread.start()

    def _cancel(self, _: object) -> None:
        self.status.value = "stopping at the end of this epoch"
        self.cancel.disabled = True
        self._stop.set()

    def _train(self, made: Plan, store: Store) -> None:
        try:
            progress = Progress(show=self._progress)
            outcome = dispatch.execute(made, store, progress=progress, stop=self._stop.is_set)
            ended = "recorded" if outcome.finished else "cancelled; training again resumes from here"
            ended = outcome.failures[0] if outcome.failures else ended
        except Exception as error:  # nothing above this thread would show it
            ended = f"{type(error).__name__}: {error}"
        self.thread, self.cancel.disabled, self.bar.layout.visibility = None, True, "hidden"
        self.show()
        self.status.value = ended

    def _progress(self, progress: Progress) -> None:
        self.bar.value = progress.steps_done / progress.steps if progress.steps else 0.0
        if not self._stop.is_set():
            self.status.value = progress.line


def _widget(control: Control) -> widgets.Widget:
    """A widget for the control; its `value` is the chosen one."""
    if control.kind != "menu":
        return {"slider": Slider, "boxes": Boxes}[control.kind](control)
    values = list(control.options)
    return widgets.Dropdown(options=values, value=control.value, description=control.label)
