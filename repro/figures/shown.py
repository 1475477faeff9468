"""Outputs of a chapter's cells: figures with captions, tables and sentences, for any notebook.

On the book's pages a figure also has a number and an alternative text
(`repro.book.rendering`).
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
MARK = "repro"  # key of output metadata, by which `repro.book.rendering` knows figures and captions
NO_METADATA = {"Date": None, "Creator": None}  # in an SVG, so that the same records give the same bytes


class Words(str):
    """Markdown that a cell shows as text."""

    def _repr_markdown_(self) -> str:
        return self


@dataclass(frozen=True)
class Table:
    """A table that a cell shows without row numbers and without cutting long texts."""

    frame: pd.DataFrame
    escape: bool = True  # whether to escape HTML in the texts

    def _repr_html_(self) -> str:
        with pd.option_context("display.max_colwidth", None):
            return self.frame.to_html(
                index=False, escape=self.escape, border=0, justify="left", classes="claims"
            )


@dataclass(frozen=True)
class Captioned:
    """A figure with a caption in Markdown, and an alternative text that describes it."""

    figure: style.mpl.Figure
    name: str  # label for references in the text, such as `fig-gap`
    caption: str
    alt: str

    def picture(self, kind: str = "svg") -> bytes:
        """The figure as a file, drawn in the project's style."""
        file = io.BytesIO()
        with style.drawing():
            self.figure.savefig(file, format=kind, metadata=NO_METADATA if kind == "svg" else None)
        return file.getvalue()

    def _ipython_display_(self) -> None:
        from IPython.display import display  # installed only with the tools for notebooks

        told = {"name": self.name, "caption": self.caption, "alt": self.alt}
        svg = self.picture().decode()
        svg = svg[svg.index("<svg") :].replace("<svg", f'<svg role="img" aria-label="{escape(self.alt)}"', 1)
        data = {"image/svg+xml": svg, "text/plain": self.alt}
        if os.environ.get("BOOK_URL"):  # published pages: previews of links to them show a PNG
            data["image/png"] = base64.b64encode(self.picture("png")).decode()
        display(data, raw=True, metadata={MARK: told})
        shown = {"text/markdown": f"*Figure.* {self.caption}", "text/plain": self.caption}
        display(shown, raw=True, metadata={MARK: {}})


def captioned(
    figure: style.mpl.Figure, results: Results, name: str, caption: str, alt: str
) -> Captioned | Words:
    """The figure with its provenance in the caption; one line instead if nothing is recorded."""
    if results.table.empty:
        return Words(unrecorded(results))
    return Captioned(figure, name, f"{caption} {provenance(results)}", alt)


def unrecorded(results: Results) -> str:
    """One line on runs that are not recorded, with the command that records them; empty if all are."""
    if not results.missing:
        return ""
    command = f"`repro run {results.study.name} --profile {results.profile.name}`"
    if results.table.empty:
        return f"Nothing is recorded here yet: {command} trains these runs."
    of = results.missing + len(results.table)
    return f"{results.missing} of {of} runs are not recorded yet: {command} trains them."


def provenance(results: Results) -> str:
    """The end of a caption: numbers of runs and seeds, the profile, and what diverged or is not recorded."""
    table, profile = results.table, results.profile
    seeds, runs = table.seed.nunique(), table.run_id.nunique()
    said = f"{runs} run{'s' * (runs != 1)}, {seeds} seed{'s' * (seeds != 1)}, profile `{profile.name}`"
    if diverged := int(table.diverged.sum()):
        said += f". {diverged} ended early as the loss was not finite; the accuracies until then count"
    return f"{said}. {unrecorded(results)}".strip()


def budget(results: Results) -> Words:
    """The scale of the runs in one sentence: data, network, training, machine and date."""
    profile, table = results.profile, results.table
    train, test = ("all" if n is None else f"{n:,}" for n in (profile.train, profile.test))
    devices, precisions = (", ".join(sorted(table[c].unique())) for c in ("device", "precision"))
    made = f", trained in {precisions} on {devices}, last on {max(table.finished)[:10]}" if len(table) else ""
    tuned = f"{profile.tuning_epochs} epochs of tuning"
    if profile.arms_tuned != profile.tuning_epochs:
        tuned += f" ({profile.arms_tuned} in all studies but the first)"
    noise = f" with pixel noise of standard deviation {profile.noise:g}" * (profile.data().noise > 0)
    network = f"network of `{Path(profile.model).name}`"
    if not profile.model:
        blocks = f"{profile.depth} block{'s' * (profile.depth != 1)}"
        network = f"ResNet of width {profile.width} with {blocks} per module"
    names = dict.fromkeys(c.factors.get("optimizer", profile.base) for c in results.study.cases(profile))
    rates = enumerated(f"{name} at rate {profile.optimizers[name].learning_rate:g}" for name in names)
    return Words(
        f"Profile `{profile.name}`: {train} training and {test} test images of {Path(profile.dataset).name}"
        f"{noise}, "
        f"a {network}, batches of {profile.batch_size}, {profile.pretraining_epochs} epochs of pretraining, "
        f"{tuned}, "
        f"{rates}{made}. {unrecorded(results)}".strip()
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
    """For example `a, b and c`, or `a; b, c; and d` if an item contains a comma; "not recorded" for none."""
    items = list(items)
    if any("," in item for item in items) and len(items) > 1:
        return "; ".join([*items[:-1], f"and {items[-1]}"])
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items) or "not recorded"


def contrast(results: Results, first: str, second: str) -> Estimate:
    """Test accuracy of the first condition minus that of the second, in points, paired by seed."""
    by = 100 * results.table.pivot_table(index="seed", columns="condition", values="test_accuracy")
    return mean_estimate((by[first] - by[second]).dropna() if {first, second} <= set(by) else [])


def accuracies(results: Results, *by: str) -> pd.DataFrame:
    """Mean test and train accuracy in percent, a row for each combination of factors `by` and condition."""
    groups = results.table.groupby([*by, "condition"], sort=False, dropna=False)
    found = groups[["test_accuracy", "train_accuracy"]].mean().mul(100).round(1)
    return found.assign(runs=groups.size()).rename(index=lambda value: "" if value != value else value)


def source(*functions: object) -> Words:
    """A Markdown block with the code of functions, methods or classes, with decorators and docstrings."""
    import inspect  # takes a while to load, and only pages need it

    code = "\n\n\n".join(
        textwrap.dedent(inspect.getsource(inspect.unwrap(function))).strip() for function in functions
    )
    return Words(f"```python\n{code}\n```")
