"""Alternative text of a glued figure that holds computed numbers, and a warning where there is none.

In `:alt: The fresh networks reach {fresh-accuracy} %` each name in braces is a glued value.
"""

import re

from myst_nb.core.variables import RetrievalError
from myst_nb.ext.glue.directives import PasteFigureDirective
from myst_nb.ext.glue.domain import NbGlueDomain
from myst_nb.ext.glue.utils import glue_warning, retrieve_glue_data


class DescribedFigure(PasteFigureDirective):
    def glued_text(self, match: re.Match) -> str:
        return str(retrieve_glue_data(self.document, match[1]).data["text/plain"]).strip("'\"")

    def run(self) -> list:
        if not self.options.get("alt"):
            return [glue_warning("a figure needs alternative text (:alt:)", self.document, self.lineno)]
        try:
            self.options["alt"] = re.sub(r"\{([\w-]+)\}", self.glued_text, self.options["alt"])
        except RetrievalError as error:
            return [glue_warning(str(error), self.document, self.lineno)]
        return super().run()


def setup(app) -> dict:
    NbGlueDomain.directives = {**NbGlueDomain.directives, "figure": DescribedFigure}
    return {"version": "1", "parallel_read_safe": True}
