"""The page of an explorer: all its panels drawn beforehand, and controls that choose one of them.

`book/_static/explorer.js` shows the panel that the controls name and draws
nothing itself; without it the page shows the panel it starts with, and a table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape

import numpy as np

from repro.analysis.stats import Estimate
from repro.book.explorer import LEVELS, Choice, Explorer, Panel
from repro.config import MODULES
from repro.figures import style
from repro.figures.shown import enumerated
from repro.study import FRESH, WARM

MODULE_NAMES = ("first convolution", "blocks", "blocks", "blocks", "blocks", "last layer")
LABELS = {  # of a factor's control, and of one value
    "optimizer": ("Optimiser", "{}"),
    "pretraining_epochs": ("Epochs of pretraining", "{} epochs of pretraining"),
    "gamma": ("γ", "γ = {}"),
    "width": ("Width", "width {}"),
    "depth": ("Blocks per module", "depth {}"),
}
START = {"reset": ("456",)}  # where it is not the last choice
WIDE, HIGH, LEFT, BOTTOM, TOP = 400, 250, 40, 206, 36  # of a drawing, and of the axes within
Limits = dict[str, tuple[float, float]]  # of axes, by what is drawn
POINTS = 100  # of a curve: more cannot be told apart at this size


def page(explorer: Explorer, panels: Mapping[Choice, Panel | None]) -> str:
    """HTML with controls and a panel for every choice, `panels` being all of the explorer's."""
    start = _start(explorer, panels)
    limits = _limits(filter(None, panels.values()))
    shown = [
        f'<div class="explorer-panel" data-key="{escape("|".join(choice))}" '
        f'data-said="{escape(said(explorer, choice, panel))}"{"" if choice == start else " hidden"}>'
        f"{panel_html(explorer, choice, panel, limits)}</div>"
        for choice, panel in panels.items()
    ]
    controls = _network(start[0]) if explorer.study.name == "reset" else _factors(explorer, start)
    return (
        f'<div class="explorer" role="group" aria-label="Explorer: {escape(explorer.study.question)}">'
        # disabled until the script is there to answer
        f'<fieldset class="explorer-controls" disabled aria-label="Choose">{controls}</fieldset>'
        f'<p class="visually-hidden" role="status"></p>'
        f"{''.join(shown)}{_without_script(explorer, panels)}</div>"
    )


def _start(explorer: Explorer, panels: Mapping[Choice, Panel | None]) -> Choice:
    """The choice that the page shows first."""
    recorded = [choice for choice, panel in panels.items() if panel] or list(panels)
    preferred = START.get(explorer.study.name)
    return preferred if preferred in recorded else recorded[-1]


def title(explorer: Explorer, choice: Choice) -> str:
    """The choice in words: `Modules 4, 5 and 6 re-initialised`."""
    if explorer.study.name != "reset":
        words = ", ".join(LABELS[name][1].format(v) for name, v in explorer.named(choice).items())
        # Γ is another symbol than γ
        return words[0].upper() + words[1:] if words[0].isascii() else words
    modules = list(choice[0])
    if len(modules) in (0, 6):
        return "All six modules re-initialised" if modules else "No module re-initialised"
    return f"Module{'s' * (len(modules) > 1)} {enumerated(modules)} re-initialised"


def said(explorer: Explorer, choice: Choice, panel: Panel | None) -> str:
    """The panel in one sentence, for those who hear it."""
    if panel is None:
        return f"{title(explorer, choice)}: not recorded"
    return f"{title(explorer, choice)}: generalisation gap {panel.gap} percentage points"


def panel_html(explorer: Explorer, choice: Choice, panel: Panel | None, limits: Limits | None = None) -> str:
    """One panel, on axes of its own or those of these limits."""
    name, command = escape(title(explorer, choice)), escape(explorer.command(choice))
    if panel is None:
        return (
            f"<p><strong>{name}</strong>: not recorded at profile {explorer.profile.name}. "
            f"This records it:</p><pre><code>{command}</code></pre>"
        )
    limits = limits or _limits([panel])
    rest = f" Runs not recorded yet: {panel.missing}; <code>{command}</code> records them."
    return (
        f"<p><strong>{name}</strong>: generalisation gap "
        f'<span class="explorer-gap">{panel.gap}</span> percentage points.{rest if panel.missing else ""}</p>'
        f'<div class="explorer-drawings">{_curves(panel, "test", limits)}{_curves(panel, "train", limits)}'
        f"{_gaps(panel, limits)}</div>{_reached(panel)}"
    )


def epochs(estimate: Estimate, seeds: int) -> str:
    """Epochs to a level as the table has it: `4.3`, `4.3 (2 of 5 seeds)`, `never`."""
    some = f" ({estimate.n} of {seeds} seeds)" if estimate.n < seeds else ""
    return f"{estimate.mean:.1f}{some}" if estimate.n else "never"


# Drawings: SVG of few elements, on a white card in either theme as all figures of the book


def _drawing(height: int, label: str, body: str) -> str:
    return (
        f'<svg class="explorer-drawing" viewBox="0 0 {WIDE} {height}" role="img" '
        f'aria-label="{escape(label)}">{body}</svg>'
    )


def _text(x: float, y: float, words: str, anchor: str = "middle", colour: str = style.GREY) -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}" fill="{colour}">{escape(words)}</text>'


def _rule(x: float, y: float, to: str, colour: str = "#e6e6e6") -> str:
    return f'<path d="M{x:.1f} {y:.1f}{to}" stroke="{colour}"/>'


def _limits(panels: Iterable[Panel]) -> Limits:
    """Lowest and highest of all that panels draw: accuracies in tens of percent, gaps in points."""
    panels = list(panels)
    found = {}
    for column in ("test_accuracy", "train_accuracy"):
        tens = np.concatenate([[], *(10 * panel.curves[column].dropna() for panel in panels)])
        found[column] = (
            (10 * np.floor(tens.min()), 10 * np.ceil(tens.max() + 1e-9)) if len(tens) else (0.0, 100.0)
        )
    gaps = [0.0, *(value for p in panels for value in (*p.gaps, p.gap.low, p.gap.high))]
    return found | {"gap": (np.nanmin(gaps), np.nanmax(gaps))}


def _curves(panel: Panel, which: str, limits: Limits) -> str:
    """Mean test or train accuracy along the last stage, a line for each condition."""
    column = f"{which}_accuracy"
    last = max(int(panel.curves.epoch.max()), 2)
    low, high = limits[column]
    right, across, down = WIDE - 12, WIDE - 12 - LEFT, BOTTOM - TOP

    def at(epoch: float, percent: float) -> tuple[float, float]:
        return LEFT + across * (epoch - 1) / (last - 1), BOTTOM - down * (percent - low) / (high - low)

    body = ""
    for percent in np.arange(low, high + 1, 10 if high - low <= 60 else 20):
        _, y = at(1, percent)
        body += _rule(LEFT, y, f"H{right}") + _text(LEFT - 6, y + 4, f"{percent:g}", "end")
    for epoch in dict.fromkeys((1, (last + 1) // 2, last)):
        body += _text(at(epoch, low)[0], BOTTOM + 18, str(epoch))
    body += _text(LEFT + across / 2, HIGH - 6, f"Epochs of tuning: {which} accuracy, %")
    ends = []
    for place, name in enumerate(panel.conditions):
        curve = panel.curves[panel.curves.condition == name]
        epoch, value = curve.epoch.to_numpy(float), curve[column].to_numpy(float)
        if len(curve) > POINTS:
            epoch, value = (
                np.interp(np.linspace(epoch[0], epoch[-1], POINTS), epoch, v) for v in (epoch, value)
            )
        known = ~np.isnan(value)
        points = zip(*at(epoch[known], 100 * value[known]), strict=True)
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        look = f'stroke="{style.colour(name)}" stroke-dasharray="{_dashes(name)}"'
        body += f'<polyline points="{line}" fill="none" stroke-width="2.5" {look}/>'
        key = 12 + place * 116
        body += f'<path d="M{key} 14h22" stroke-width="3" {look}/>'
        body += _text(key + 27, 18, _short(name), "start", "#1a1a1a")
        ends.append(f"{name} {100 * value[known][-1]:.1f} %" if known.any() else f"{name} not known")
    return _drawing(HIGH, f"Mean {which} accuracy by epoch of tuning; at the end: {', '.join(ends)}", body)


def _dashes(condition: str) -> str:
    return {FRESH: "none", WARM: "7 4"}.get(condition, "2 3")


def _short(condition: str) -> str:
    return condition.replace("reset 1 2 3 4 5 6", "reset all")


def _gaps(panel: Panel, limits: Limits) -> str:
    """The gap of each seed, their mean and its interval."""
    found = panel.gap
    low, high = limits["gap"][0] - 0.5, limits["gap"][1] + 0.5
    across = WIDE - 40

    def x(value: float) -> float:
        return 20 + across * (value - low) / (high - low)

    step = next(s for s in (0.5, 1, 2, 5, 10, 20, 50, 100) if (high - low) / s <= 7)
    body = "".join(
        _rule(x(tick), 8, "V52") + _text(x(tick), 68, f"{tick:g}".replace("-", "\N{MINUS SIGN}"))
        for tick in np.arange(np.ceil(low / step), high / step) * step
    )
    body += _rule(x(0), 8, "V52", style.GREY)
    shade = style.colour(panel.condition)
    body += "".join(
        f'<circle cx="{x(gap):.1f}" cy="20" r="4" fill="{shade}" opacity="0.6"/>' for gap in panel.gaps
    )
    if found.n > 1:
        body += f'<path d="M{x(found.low):.1f} 38H{x(found.high):.1f}" stroke="{shade}" stroke-width="3"/>'
    body += f'<path d="M{x(found.mean):.1f} 31l7 7-7 7-7-7z" fill="{shade}"/>'
    body += _text(WIDE / 2, 86, "Generalisation gap, points (left of 0: pretraining hurt)")
    return _drawing(92, f"Generalisation gap in percentage points: {found}", body)


def _reached(panel: Panel) -> str:
    """Epochs to each train accuracy, a row for each condition."""
    head = "".join(f'<th scope="col">{100 * level:g} %</th>' for level in LEVELS)
    rows = ""
    for name, found in panel.reached.items():
        cells = "".join(f"<td>{epochs(estimate, panel.seeds[name])}</td>" for estimate in found)
        rows += f'<tr><th scope="row">{name}</th>{cells}</tr>'
    return (
        "<p>Epochs of tuning until the train accuracy is reached, means over seeds:</p>"
        '<div class="explorer-table" tabindex="0" role="region" aria-label="Epochs to train accuracies">'
        f"<table><thead><tr><td></td>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


# Controls


def _network(start: str) -> str:
    """The six modules from input to output, each a box to tick, and a slider that ticks the last or first."""
    boxes = "".join(
        f'<label><input type="checkbox" data-module value="{m}"{" checked" * (str(m) in start)}>'
        f'<b>{m}</b> {name}<span class="explorer-state"></span></label>'
        for m, name in zip(MODULES, MODULE_NAMES, strict=True)
    )
    sides = "".join(
        f'<label><input type="radio" name="side" value="{side}"{" checked" * (side == "last")}>{side}</label>'
        for side in ("last", "first")
    )
    return (
        "<fieldset><legend>The network, from image to classes: tick the modules to re-initialise</legend>"
        f'<div class="explorer-network">{boxes}</div></fieldset>'
        f'<fieldset class="explorer-depth"><legend>Or re-initialise so many modules</legend>{sides}'
        f"{_slider('Reset depth', [str(k) for k in range(7)], str(len(start)), 'data-depth')}</fieldset>"
    )


def _factors(explorer: Explorer, start: Choice) -> str:
    """A menu for names and a slider for numbers."""
    controls = []
    for (name, values), value in zip(explorer.values.items(), start, strict=True):
        label = LABELS[name][0]
        if name == "optimizer":
            options = "".join(f"<option{' selected' * (v == value)}>{v}</option>" for v in values)
            controls.append(f"<label>{label} <select data-factor>{options}</select></label>")
        else:
            controls.append(_slider(label, values, value, "data-factor"))
    return "".join(controls)


def _slider(label: str, values: list[str], value: str, kind: str) -> str:
    """A slider over a few values, with the value beside it and a button that plays them all."""
    scale = f'min="0" max="{len(values) - 1}" value="{values.index(value)}" data-values="{"|".join(values)}"'
    return (
        f'<span class="explorer-slider"><label>{label} '
        f'<input type="range" {kind} {scale} aria-valuetext="{value}"></label><output>{value}</output>'
        f'<button type="button" data-play aria-label="Play: {label.lower()}">Play</button></span>'
    )


def _without_script(explorer: Explorer, panels: Mapping[Choice, Panel | None]) -> str:
    """What is recorded of all choices, for a page without scripts."""
    rows = "".join(
        f'<tr><th scope="row">{escape(title(explorer, choice))}</th><td>{panel.gap}</td></tr>'
        for choice, panel in panels.items()
        if panel
    )
    return (
        "<noscript><p>Without JavaScript the controls do not answer. This is the generalisation gap of every "
        f"choice recorded, in percentage points:</p><table><tbody>{rows}</tbody></table></noscript>"
    )
