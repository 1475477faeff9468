"""How a chapter shows what it finds: figures with captions, tables and sentences, in any notebook.

Each is an ordinary output of its cell. On the book's pages a figure also has a
number and an alternative text (`repro.book.rendering`).
"""

from __future__ import annotations

import base64
import io
import os
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from pathlib import Path

from repro.analysis.recorded import Results
from repro.analysis.stats import Estimate, mean_estimate, signed
from repro.figures import style
from repro.lazy import Lazy
from repro.study import factor_text

pd = Lazy("pandas")
MARK = "repro"  # names the metadata of an output that a page shows in its own way
NOTHING = {"Date": None, "Creator": None}  # metadata of a picture: the same bytes for the same records


class Words(str):
    """Markdown that a cell shows as text."""

    def _repr_markdown_(self) -> str:
        return self


@dataclass(frozen=True)
class Table:
    """A table that a cell shows with its texts whole and without row numbers."""

    frame: pd.DataFrame
    escape: bool = True  # signs that HTML has a meaning for

    def _repr_html_(self) -> str:
        with pd.option_context("display.max_colwidth", None):
            return self.frame.to_html(
                index=False, escape=self.escape, border=0, justify="left", classes="claims"
            )


@dataclass(frozen=True)
class Captioned:
    """A figure with a caption in Markdown, and an alternative text that says what is to be seen."""

    figure: style.mpl.Figure
    name: str  # by which text refers to it, such as `fig-gap`
    caption: str
    alt: str

    def picture(self, kind: str = "svg") -> bytes:
        """The figure as a file, drawn in the project's style."""
        file = io.BytesIO()
        with style.drawing():
            self.figure.savefig(file, format=kind, metadata=NOTHING if kind == "svg" else None)
        return file.getvalue()

    def _ipython_display_(self) -> None:
        from IPython.display import display  # part of the tools of notebooks

        told = {"name": self.name, "caption": self.caption, "alt": self.alt}
        svg = self.picture().decode()
        svg = svg[svg.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{escape(self.alt)}"', 1)
        data = {"image/svg+xml": svg, "text/plain": self.alt}
        if os.environ.get("BOOK_URL"):  # the pages have an address, so that links to them show a picture
            data["image/png"] = base64.b64encode(self.picture("png")).decode()
        display(data, raw=True, metadata={MARK: told})
        shown = {"text/markdown": f"*Figure.* {self.caption}", "text/plain": self.caption}
        display(shown, raw=True, metadata={MARK: {}})


def captioned(
    figure: style.mpl.Figure, results: Results, name: str, caption: str, alt: str
) -> Captioned | Words:
    """The figure with its provenance in the caption; one line instead where nothing of it is recorded."""
    if results.table.empty:
        return Words(unrecorded(results))
    return Captioned(figure, name, f"{caption} {provenance(results)}", alt)


def unrecorded(results: Results) -> str:
    """One line on runs that are not recorded, with the command that records them; empty where all are."""
    if not results.missing:
        return ""
    command = f"`repro run {results.study.name} --profile {results.profile.name}`"
    if results.table.empty:
        return f"Nothing is recorded here yet: {command} trains it."
    of = results.missing + len(results.table)
    return f"{results.missing} of {of} runs are not recorded yet: {command} trains them."


def provenance(results: Results) -> str:
    """What a caption states: runs, seeds and where they come from."""
    table, profile = results.table, results.profile
    seeds, runs = table.seed.nunique(), table.run_id.nunique()
    said = f"{runs} run{'s' * (runs != 1)}, {seeds} seed{'s' * (seeds != 1)}, profile `{profile.name}`"
    if diverged := int(table.diverged.sum()):
        said += f". {diverged} ended early with a loss that was not finite, and count as they were"
    return f"{said}. {unrecorded(results)}".strip()


def budget(results: Results) -> Words:
    """The scale of the runs in one sentence: data, network, training, machine and date."""
    profile, table = results.profile, results.table
    train, test = ("all" if n is None else f"{n:,}" for n in (profile.train, profile.test))
    devices, precisions = (", ".join(sorted(table[c].unique())) for c in ("device", "precision"))
    made = f", in {precisions} on {devices}, last on {max(table.finished)[:10]}" if len(table) else ""
    tuned = f"{profile.tuning_epochs} epochs of tuning"
    if profile.arms_tuned != profile.tuning_epochs:
        tuned += f" ({profile.arms_tuned} where conditions are compared)"
    noise = f" under pixel noise of standard deviation {profile.noise:g}" * (profile.data().noise > 0)
    network = f"network of `{Path(profile.model).name}`"
    if not profile.model:
        blocks = f"{profile.depth} block{'s' * (profile.depth != 1)}"
        network = f"ResNet of width {profile.width} with {blocks} per module"
    return Words(
        f"Profile `{profile.name}`: {train} training and {test} test images of {Path(profile.dataset).name}"
        f"{noise}, "
        f"a {network}, batches of {profile.batch_size}, {profile.pretraining_epochs} epochs of pretraining, "
        f"{tuned}, "
        f"{profile.base} at rate {profile.optimizer.learning_rate:g}{made}. {unrecorded(results)}".strip()
    )


def listed(gaps: pd.DataFrame, by: str, words: str = "{}") -> str:
    """The mean gap at each value of a factor: `−9.8 for Adam, −7.1 for RMSprop and +0.3 for SGD`."""
    known = style.known(gaps, by, "gap")
    if known.empty:
        return enumerated([])
    groups = known.groupby(by, sort=not any(isinstance(v, str) for v in known[by]))
    means = {words.format(factor_text(key)): part.groupby("seed").gap.mean().mean() for key, part in groups}
    return enumerated([f"{signed(mean)} for {name}" for name, mean in means.items()])


def enumerated(items: Iterable[str]) -> str:
    """As in `a, b and c`, or `a; b, c; and d` where an item has a comma of its own."""
    items = list(items)
    if any("," in item for item in items) and len(items) > 1:
        return "; ".join([*items[:-1], f"and {items[-1]}"])
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items) or "not recorded"


def contrast(results: Results, first: str, second: str) -> Estimate:
    """Test accuracy under the first condition minus that under the second, in points, paired by seed."""
    by = 100 * results.table.pivot_table(index="seed", columns="condition", values="test_accuracy")
    return mean_estimate((by[first] - by[second]).dropna() if {first, second} <= set(by) else [])


def accuracies(results: Results, *by: str) -> pd.DataFrame:
    """Mean test and train accuracy in percent, a row for each value of the factors and condition."""
    groups = results.table.groupby([*by, "condition"], sort=False, dropna=False)
    found = groups[["test_accuracy", "train_accuracy"]].mean().mul(100).round(1)
    return found.assign(runs=groups.size()).rename(index=lambda value: "" if value != value else value)


def source(*functions: object) -> Words:
    """A Markdown block with the code of functions, methods or classes, decorators and docstrings included."""
    import inspect  # takes a while to load, and only pages need it

    code = "\n\n\n".join(
        textwrap.dedent(inspect.getsource(inspect.unwrap(function))).strip() for function in functions
    )
    return Words(f"```python\n{code}\n```")
