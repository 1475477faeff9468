"""Explorers of a study's records, as a chapter shows them.

An `Explorer` is displayed as HTML that needs no kernel (its page) and, if there is a
kernel, as widgets that can also train what is not recorded.
"""

from __future__ import annotations

from repro.book import panels
from repro.book.choices import Choice, Choices
from repro.config import InputError
from repro.profiles import scale
from repro.questions import studies
from repro.scales import Profile


class Explorer(Choices):
    """The choices of a study, displayed as the value of a cell's last line."""

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict:
        """Both forms of the explorer: widgets, and the page to show where there is no kernel."""
        found = self.panels()
        widgets = _live(self, self.start(found))
        return widgets._repr_mimebundle_() | {"text/html": panels.page(self, found)}


def of(study: str, profile: Profile) -> Explorer:
    """The explorer of a study, such as `reset` or `question.py:study`; `InputError` if it has no factor."""
    path, ending, _ = study.rpartition(".py")
    found = Explorer(studies([study])[0], profile, path + ending)
    if not any(found.choices):
        raise InputError(f"{study} has no factor to choose a value of")
    return found


def live(study: str, profile: str = "quick", seeds: int | None = None, settings: str = ""):
    """The explorer of a study as widgets, to be shown in JupyterLab or Voila."""
    found = of(study, scale(profile, seeds, settings))
    return _live(found, found.start(found.panels()))


def _live(explorer: Explorer, start: Choice):
    from repro.book.live import Live  # imports ipywidgets

    return Live(explorer, start).box
