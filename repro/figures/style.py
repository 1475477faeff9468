"""What the figures have in common: style, the look of each condition, and marks for values over seeds.

Colours are Okabe and Ito's palette and shades of it, all with a contrast of at least 3:1
to the opaque white ground. They never stand alone: markers differ too. Text fits a phone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from functools import wraps

from repro.analysis.stats import Estimate, mean_estimate
from repro.lazy import Lazy

# Lazy: slow to import, and not needed to list the questions.
np, pd, mpl_style, ticker = map(Lazy, ("numpy", "pandas", "matplotlib.style", "matplotlib.ticker"))
axes, colors, mpl = map(Lazy, ("matplotlib.axes", "matplotlib.colors", "matplotlib.figure"))

GREY = "#595959"
LOOKS = {  # colour and marker
    "fresh": ("#0072B2", "o"),
    "warm start": ("#D55E00", "s"),
    "smooth": ("#009E73", "^"),
    "fresh, as many steps": ("#1F5C99", "v"),
    "with replacement": ("#6A7FDB", "P"),
    "stages": ("#A87400", "D"),
    "stages by class": ("#5E4200", "X"),
    "warm start, 3x": ("#B04A00", "<"),
    "warm start, 10x": ("#85340A", ">"),
    "warm start, 30x": ("#4F1F08", "v"),
    "warm start, 10x then 1x": ("#A8714F", "P"),
    "fresh, 10x": ("#3399D4", "^"),
    "fresh, 10x then 1x": ("#00405F", "X"),
    "fresh, falling rate": ("#5566B0", "h"),
    "shrink and perturb": ("#4D7A00", "D"),
    "rate restart": ("#7A4FB0", "p"),
    "Adam": ("#000000", "o"),
    "RMSprop": ("#868686", "s"),
    "SGD": ("#00553D", "^"),
    "SGD with momentum": ("#3FA37F", "D"),
}
COLOURS = {name: colour for name, (colour, _) in LOOKS.items()}
RESET = "#CC79A7", "#4A1535"  # one module re-initialised, and six or more
SYMBOLS = "osD^vPX<>hp*"
STYLE = {
    "axes.edgecolor": GREY,
    "axes.labelcolor": "#1a1a1a",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "figure.dpi": 100,
    "figure.facecolor": "white",
    "font.size": 13,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    "lines.linewidth": 2,
    "savefig.facecolor": "white",
    "svg.fonttype": "path",
    "svg.hashsalt": "repro",
    "xtick.color": GREY,
    "ytick.color": GREY,
}
DIFFERENCE = "Test accuracy minus that of fresh networks, points"  # also for fresh networks at other rates
GAP = "Generalisation gap, points\n(below 0: pretraining hurt)"


def drawing() -> AbstractContextManager:
    """A context that draws in the project's style, whatever the user's Matplotlib settings are."""
    return mpl_style.context(["default", STYLE])


def styled(draw: Callable) -> Callable:
    """Make a function draw in the project's style, whatever the user's own settings."""

    @wraps(draw)
    def drawn(*args: object, **settings: object) -> mpl.Figure:
        with drawing():
            return draw(*args, **settings)

    return drawn


def colour(condition: str) -> str:
    """The colour of a condition or optimiser in all figures; a reset of more modules, up to 6, is darker."""
    if condition.startswith("reset "):
        return shades(*RESET, 6)[len(condition.split()[:7]) - 2]
    return COLOURS.get(condition, GREY)


def marker(condition: str) -> str:
    """The marker of a condition or optimiser; resets of equally many modules share marker and colour."""
    if condition.startswith("reset "):
        return SYMBOLS[len(condition.split()[:7]) - 2]
    return LOOKS.get(condition, (GREY, "*"))[1]


def shades(start: str, end: str, n: int) -> list[str]:
    """`n` evenly spaced colours from `start` to `end`; only `end` if `n` is 1."""
    steps = np.linspace(0, 1, n)[:, None] if n > 1 else np.ones((1, 1))
    return [colors.to_hex(c) for c in (1 - steps) * colors.to_rgb(start) + steps * colors.to_rgb(end)]


def looks(values: Sequence) -> list[tuple[str, str]]:
    """Colour and marker of each condition or optimiser; for numbers from a ramp."""
    if any(isinstance(value, str) for value in values):
        return [(colour(value), marker(value)) for value in values]
    ramp = shades(COLOURS["warm start"], COLOURS["warm start, 30x"], len(values))
    return list(zip(ramp, itertools.cycle(SYMBOLS), strict=False))


def blank(rows: int = 1, columns: int = 1, height: float = 3.6, **settings: object):
    """A figure 7.2 inches wide, with `height` inches for each row of axes, and its axes."""
    figure = mpl.Figure(figsize=(7.2, height * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, **settings)


@styled
def message(words: str = "Nothing recorded yet") -> mpl.Figure:
    """A figure that shows only a message, as there is nothing to draw."""
    figure, ax = blank(height=1.8)
    notice(ax, words)
    return figure


def notice(ax: axes.Axes, words: str = "Nothing recorded yet") -> None:
    """Write the words in the middle of axes that are otherwise empty."""
    ax.set_axis_off()
    ax.text(0.5, 0.5, words, transform=ax.transAxes, ha="center", va="center", color=GREY, linespacing=1.5)


def known(frame: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """Rows in which none of these columns is NaN; no rows if a column is missing from the frame."""
    return frame.dropna(subset=list(columns)) if set(columns) <= set(frame.columns) else frame[:0]


def estimate(values: Iterable[float], log: bool = False) -> Estimate:
    """Mean and 95 % interval; if `log`, the geometric mean and its interval (`sd`: of the logarithms)."""
    x = np.asarray(list(values), dtype=float)
    if not log:
        return mean_estimate(x)
    found = mean_estimate(np.log(x))
    return Estimate(*np.exp([found.mean, found.low, found.high]), found.sd, found.n)


def bar(ax: axes.Axes, x: float, found: Estimate, shade: str, **settings: object) -> None:
    """Draw the interval of a mean as an upright bar; nothing for a single seed."""
    if found.n > 1:
        ax.plot([x, x], [found.low, found.high], color=shade, solid_capstyle="butt", **settings)


def line(
    ax: axes.Axes,
    frame: pd.DataFrame,
    x: str,
    y: str,
    shade: str,
    symbol: str,
    label: str | None = None,
    *,
    at: pd.Series | None = None,
    log: bool = False,
) -> None:
    """Draw the means of `y` over seeds as a line along `x`, with intervals and a faint dot per seed.

    `at` is the position of each row on the axis, if not its `x`.
    """
    frame = frame.assign(at=frame[x] if at is None else at)
    frame = frame.groupby(["at", "seed"], as_index=False)[y].mean()
    found = {place: estimate(part[y], log) for place, part in frame.groupby("at")}
    ax.plot(frame["at"], frame[y], "o", color=shade, alpha=0.35, ms=4.5, mew=0)
    for place, values in found.items():
        bar(ax, place, values, shade, lw=2, alpha=0.8)
    means = [values.mean for values in found.values()]
    ax.plot(list(found), means, color=shade, marker=symbol, ms=8, mec="white", label=label)


def strip(ax: axes.Axes, y: float, values: pd.Series, shade: str) -> None:
    """Draw a row of dots at height `y`, one per seed, with mean and interval below them."""
    found = estimate(values)
    ax.plot(values, [y - 0.12] * len(values), "o", color=shade, alpha=0.55, ms=7, mec="white")
    if found.n > 1:
        ax.plot([found.low, found.high], [y + 0.12] * 2, color=shade, lw=3, solid_capstyle="butt")
    ax.plot([found.mean], [y + 0.12], "D", color=shade, ms=8, mec="white")


def rows(ax: axes.Axes, names: Sequence[str]) -> None:
    """Label the rows of strips (`strip`) from the top down."""
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.grid(axis="y", visible=False)


def spread(i: int, n: int, x: pd.Series, log: bool = False) -> pd.Series:
    """`x` shifted a little for the i-th of n lines, so that their intervals do not overlap."""
    x = x.astype(float)
    low, high = x.min(), x.max()
    step = 0.018 * (i - (n - 1) / 2)
    return x * (high / low) ** step if log else x + (high - low) * step


def ticks(ax: axes.Axes, values: Iterable[float], log: bool = False) -> None:
    """Put ticks of the x axis at these values and nowhere else; if `log`, the axis is logarithmic."""
    values = sorted(set(values))
    if log:
        ax.set_xscale("log")
    ax.set_xticks(values, [f"{v:g}".replace("-", "\N{MINUS SIGN}") for v in values])
    ax.xaxis.set_minor_locator(ticker.NullLocator())


def logarithmic(ax: axes.Axes, which: str) -> None:
    """Make the x or y axis logarithmic, with few and plain tick labels. Call it after drawing."""
    ax.set(**{f"{which}scale": "log"})
    axis = getattr(ax, f"{which}axis")
    low, high = axis.get_view_interval()
    fine, medium = (1, 1.5, 2, 3, 4, 6, 8), (1, 2, 5)
    axis.set_major_locator(
        ticker.LogLocator(subs=fine if high < 10 * low else medium if high < 1000 * low else (1,))
    )
    axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(ticker.NullLocator())


def legend(figure: mpl.Figure, ax: axes.Axes) -> None:
    """Put the legend of `ax` below the axes, where it covers nothing."""
    handles, labels = ax.get_legend_handles_labels()
    widest = max((len(label) for label in labels), default=0)
    fit = max(1, 66 // (widest + 6))
    figure.legend(handles, labels, loc="outside lower center", ncols=min(fit, len(labels)) or 1)
