"""The page of an explorer: all its panels, drawn beforehand, and controls that choose one of them.

`book/_static/explorer.js` shows the panel that the controls name and draws
nothing itself; without JavaScript the page shows the choice to start with, and a table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape

import numpy as np

from repro.analysis.curves import LEVELS
from repro.analysis.stats import Estimate
from repro.book.choices import SIDES, Choice, Choices, Control, Panel
from repro.figures import style
from repro.study import FRESH, WARM

WIDE, HIGH, LEFT, BOTTOM, TOP = 400, 250, 40, 206, 36  # of a drawing and its axes, in SVG units
Limits = dict[str, tuple[float, float]]  # lowest and highest value of an axis, by what is drawn
POINTS = 100  # most points of a curve: more cannot be told apart at this size
# Styles are inline, as panels are also shown in JupyterLab, without the style sheet of the book.
SIDE_BY_SIDE = "display:grid;gap:.5rem;grid-template-columns:repeat(auto-fit,minmax(min(17rem,100%),1fr))"
CARD = "background:#fff;border-radius:.4rem;font-size:13px;max-width:26rem;width:100%"


def page(explorer: Choices, panels: Mapping[Choice, Panel | None]) -> str:
    """HTML with controls and a panel for every choice; `panels` are those of `explorer.panels()`."""
    start, limits = explorer.start(panels), _limits(filter(None, panels.values()))
    shown = "".join(
        f'<div class="explorer-panel" data-key="{escape("|".join(choice))}"{" hidden" * (choice != start)}>'
        f"{panel_html(explorer, choice, panel, limits)}</div>"
        for choice, panel in panels.items()
    )
    gaps = "".join(_row(explorer.title(choice), panel.gap) for choice, panel in panels.items() if panel)
    return (
        f'<div class="explorer" role="group" aria-label="Explorer: {escape(explorer.study.question)}">'
        # disabled until explorer.js runs
        '<fieldset class="explorer-controls" disabled aria-label="Choose">'
        f"{''.join(map(_control, explorer.controls(start)))}</fieldset>"
        f'<p class="visually-hidden" role="status"></p>{shown}'
        f'<div class="explorer-panel" hidden>{panel_html(explorer, (), None)}</div>'
        "<noscript><p>The controls need JavaScript. This table has the generalisation gap of every recorded "
        f"choice, in percentage points:</p><table><tbody>{gaps}</tbody></table></noscript></div>"
    )


def panel_html(explorer: Choices, choice: Choice, panel: Panel | None, limits: Limits | None = None) -> str:
    """HTML of one panel, with axes for `limits` or else for its values; a sentence if there is none."""
    if choice not in explorer.choices:
        return "<p>The study has no run with these values.</p>"
    name, command = escape(explorer.title(choice)), escape(explorer.command(choice))
    if panel is None:
        return (
            f"<p><strong>{name}</strong>: not recorded at profile {explorer.profile.name}. "
            f"This command records it:</p><pre><code>{command}</code></pre>"
        )
    limits = limits or _limits([panel])
    rest = f" Runs not recorded yet: {panel.missing}; <code>{command}</code> records them."
    return (
        f"<p><strong>{name}</strong>: generalisation gap "
        f'<span class="explorer-gap">{panel.gap}</span> percentage points.{rest if panel.missing else ""}</p>'
        f'<div style="{SIDE_BY_SIDE}">{_curves(panel, "test", limits)}{_curves(panel, "train", limits)}'
        f"{_gaps(panel, limits)}</div>{_reached(panel)}"
    )


def epochs(estimate: Estimate, seeds: int) -> str:
    """Mean epochs to an accuracy, as the table shows them: `4.3`, `4.3 (2 of 5 seeds)`, `never`."""
    some = f" ({estimate.n} of {seeds} seeds)" if estimate.n < seeds else ""
    return f"{estimate.mean:.1f}{some}" if estimate.n else "never"


def _reached(panel: Panel) -> str:
    """A table of the epochs to each train accuracy of `LEVELS`, a row for each condition."""
    head = "".join(f'<th scope="col">{100 * level:g} %</th>' for level in LEVELS)
    rows = "".join(
        _row(name, *(epochs(estimate, panel.seeds[name]) for estimate in found))
        for name, found in panel.reached.items()
    )
    return (
        "<p>Epochs of tuning until each train accuracy is reached (means over seeds):</p>"
        '<div style="overflow-x:auto" tabindex="0" role="region" '
        'aria-label="Epochs to reach train accuracies">'
        f"<table><thead><tr><td></td>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _row(head: str, *cells: object) -> str:
    return f'<tr><th scope="row">{escape(head)}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


# Drawings: SVG of few elements, on white in the light and the dark theme, as all figures of the book


def _drawing(height: int, label: str, body: str) -> str:
    return (
        f'<svg style="{CARD}" viewBox="0 0 {WIDE} {height}" role="img" '
        f'aria-label="{escape(label)}">{body}</svg>'
    )


def _text(x: float, y: float, words: str, anchor: str = "middle", colour: str = style.GREY) -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" fill="{colour}">{escape(words)}</text>'


def _rule(x: float, y: float, to: str, look: str = 'stroke="#e6e6e6"') -> str:
    return f'<path d="M{x:.1f} {y:.1f}{to}" {look}/>'


def _limits(panels: Iterable[Panel]) -> Limits:
    """Range of each axis over all panels: accuracies in percent, rounded to tens; gaps in points, with 0."""
    panels, found = list(panels), {}
    for column in ("test_accuracy", "train_accuracy"):
        tens = [10 * value for panel in panels for value in panel.curves[column].dropna()]
        low = 10 * np.floor(min(tens, default=0))
        found[column] = low, max(10 * np.ceil(max(tens, default=10)), low + 10)
    gaps = [0.0, *(value for p in panels for value in (*p.gaps, p.gap.low, p.gap.high))]
    gaps = np.clip(gaps, -100, 100)  # an interval of two seeds can reach beyond what is possible
    return found | {"gap": (np.nanmin(gaps), np.nanmax(gaps))}


def _curves(panel: Panel, which: str, limits: Limits) -> str:
    """A drawing of mean test or train accuracy through the last stage, a line for each condition."""
    column = f"{which}_accuracy"
    last = max(int(panel.curves.epoch.max()), 2)
    low, high = limits[column]
    across, down = WIDE - 12 - LEFT, BOTTOM - TOP

    def at(epoch: float, percent: float) -> tuple[float, float]:
        return LEFT + across * (epoch - 1) / (last - 1), BOTTOM - down * (percent - low) / (high - low)

    body = _text(LEFT + across / 2, HIGH - 6, f"Epochs of tuning (vertical: {which} accuracy, %)")
    for percent in np.arange(low, high + 1, 10 if high - low <= 60 else 20):
        x, y = at(1, percent)
        body += _rule(x, y, f"h{across}") + _text(x - 6, y + 4, f"{percent:g}", "end")
    for epoch in dict.fromkeys((1, (last + 1) // 2, last)):
        body += _text(at(epoch, low)[0], BOTTOM + 18, str(epoch))
    key, ends = 12, []
    for name in panel.conditions:
        curve = panel.curves.loc[panel.curves.condition == name, ["epoch", column]].dropna().to_numpy()
        curve = curve[np.linspace(0, len(curve) - 1, min(len(curve), POINTS)).astype(int)]
        points = (at(epoch, 100 * value) for epoch, value in curve)
        dashes = {FRESH: "none", WARM: "7 4"}.get(name, "2 3")
        look = f'stroke="{style.colour(name)}" stroke-width="2.5" stroke-dasharray="{dashes}"'
        body += f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}" fill="none" {look}/>'
        body += _rule(key, 14, "h22", look) + _text(key + 27, 18, name, "start", "#1a1a1a")
        key += 45 + 7 * len(name)
        ends += [f"{name} {100 * curve[-1, 1]:.1f} %" if len(curve) else f"{name} not known"]
    return _drawing(HIGH, f"Mean {which} accuracy by epoch of tuning; at the end: {', '.join(ends)}", body)


def _gaps(panel: Panel, limits: Limits) -> str:
    """A drawing of the gap of each seed, their mean and its interval."""
    found, shade = panel.gap, style.colour(panel.condition)
    low, high = limits["gap"][0] - 0.5, limits["gap"][1] + 0.5

    def x(value: float) -> float:
        return 20 + (WIDE - 40) * (value - low) / (high - low)

    step = next(s for s in (0.5, 1, 2, 5, 10, 20, 50, 100) if (high - low) / s <= 7)
    body = "".join(
        _rule(x(tick), 8, "V52") + _text(x(tick), 68, f"{tick:g}".replace("-", "\N{MINUS SIGN}"))
        for tick in np.arange(np.ceil(low / step), high / step) * step
    )
    body += _rule(x(0), 8, "V52", f'stroke="{style.GREY}"')
    body += "".join(
        f'<circle cx="{x(g):.1f}" cy="20" r="4" fill="{shade}" opacity="0.6"/>' for g in panel.gaps
    )
    if found.n > 1:
        body += _rule(x(found.low), 38, f"H{x(found.high):.1f}", f'stroke="{shade}" stroke-width="3"')
    body += _rule(x(found.mean), 31, "l7 7-7 7-7-7z", f'fill="{shade}"')
    body += _text(WIDE / 2, 86, "Generalisation gap, points (left of 0: pretraining hurt)")
    return _drawing(92, f"Generalisation gap in percentage points: {found}", body)


# Controls


def _control(control: Control) -> str:
    if control.kind == "slider":
        return f"<span data-control>{_slider(control)}</span>"
    if control.kind == "menu":
        options = "".join(
            f"<option{' selected' * (v == control.value)}>{v}</option>" for v in control.options
        )
        return f"<label>{control.label} <select data-control>{options}</select></label>"
    boxes = "".join(
        f'<label><input type="checkbox" value="{value}"{" checked" * (value in control.value)}>'
        f"<b>{value}</b> {name}</label>"
        for value, name in control.options.items()
    )
    sides = "".join(
        f'<label><input type="radio" name="{escape(control.label)}" value="{side}"{checked}>{side}</label>'
        for side, checked in zip(SIDES, (" checked", ""), strict=True)
    )
    return (
        f'<fieldset data-control><legend>{control.label}</legend><div class="explorer-boxes">{boxes}</div>'
        f'<div class="explorer-row" role="group" aria-label="Or tick several at once">Or tick the {sides}'
        f"{_slider(control.how_many)}</div></fieldset>"
    )


def _slider(control: Control) -> str:
    """A slider over a few values, with the value beside it and a button that steps through them all."""
    values, value = list(control.options), control.value
    scale = f'min="0" max="{len(values) - 1}" value="{values.index(value)}" data-values="{"|".join(values)}"'
    return (
        f'<span class="explorer-slider"><label>{control.label} '
        f'<input type="range" {scale} aria-valuetext="{value}"></label><output>{value}</output>'
        f'<button type="button" data-play aria-label="Play: {control.label.lower()}">Play</button></span>'
    )
