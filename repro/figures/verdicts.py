"""The figure of the scorecard: every claim with its verdict and its t value."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

from repro.analysis.claims import MORE, SAME, Verdict
from repro.figures import style
from repro.figures.style import GREY, blank, styled
from repro.lazy import Lazy

np = Lazy("numpy")

VERDICTS = {  # symbol, colour, marker
    "reproduced": ("✓", "#1B6E3C", "o"),
    "contradicted": ("✗", "#A3195B", "X"),
    "inconclusive": ("?", "#595959", "D"),
    "not tested": ("–", "#595959", ""),
    "exploratory": ("~", "#595959", "d"),
    "incomplete": ("…", "#595959", "d"),
    "not run": ("–", "#8A8A8A", ""),
}
FARTHEST = 100  # t value at which the axis ends


def t_value(verdict: Verdict) -> float:
    """The effect over its standard error, positive if it supports the claim; NaN for fewer than two seeds.

    For a claim of no difference, the effect is how far the mean lies within the margin.
    """
    effect, claim = verdict.effect, verdict.claim
    if effect.n < 2:
        return np.nan
    inside = claim.margin - abs(effect.mean) if claim.direction == SAME else effect.mean
    towards = inside if claim.direction in (MORE, SAME) else -inside
    error = effect.sd / effect.n**0.5
    return towards / error if error else float(np.copysign(np.inf, towards)) if towards else 0.0


@styled
def verdict_rows(verdicts: Iterable[Verdict]) -> style.mpl.Figure:
    """A row per claim: its verdict and its t value, positive if it supports the claim.

    A small upright mark shows the t value beyond which the claim's 95 % interval is
    all on the claim's side; the verdict also corrects for the number of claims.
    """
    verdicts = list(verdicts)
    words = [textwrap.fill(verdict.claim.words, 32) for verdict in verdicts]
    heights = np.array([0.3 + 0.2 * (text.count("\n") + 1) for text in words])
    y = np.cumsum(heights) - heights / 2
    figure, ax = blank(height=1.2 + heights.sum())
    for place, verdict in zip(y, verdicts, strict=True):
        symbol, shade, mark = VERDICTS[verdict.verdict]
        t = t_value(verdict)
        if not np.isnan(t):
            effect = verdict.effect
            threshold = (effect.high - effect.mean) / effect.sd * effect.n**0.5 if effect.sd else np.nan
            ax.plot([threshold] * 2, [place - 0.14, place + 0.14], color=GREY, lw=1.5)
            shown = float(np.clip(t, -FARTHEST, FARTHEST))
            ax.plot([0, shown], [place] * 2, color=shade, lw=1.5)
            beyond = {FARTHEST: ">", -FARTHEST: "<"}.get(shown, mark)
            ax.plot(shown, place, beyond, color=shade, ms=9, mec="white", clip_on=False)
        ax.text(
            1.06,
            place,
            f"{symbol} {verdict.verdict}",
            transform=ax.get_yaxis_transform(),
            color=shade,
            va="center",
        )
    ax.set_yticks(y, words)
    for label, verdict in zip(ax.get_yticklabels(), verdicts, strict=True):
        label.set_color(VERDICTS["not run"][1] if verdict.verdict == "not run" else "#1a1a1a")
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(heights.sum(), 0)
    ax.set_xscale("symlog", linthresh=3)
    ax.set_xlim(-FARTHEST, FARTHEST)
    style.ticks(ax, (-30, -3, 0, 3, 30))
    ax.axvline(0, color=GREY, lw=1)
    ax.grid(axis="y", visible=False)
    figure.supxlabel(
        "t value: ← against the claim, for it →\nBeyond the upright mark: 95 % interval on the claim's side",
        fontsize="medium",
    )
    return figure
