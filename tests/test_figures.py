import io
import itertools
import math
from unittest import mock

import matplotlib
import numpy as np
import pandas as pd
import pytest

matplotlib.use("agg")

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.text import Text

from repro import profiles
from repro.analysis.claims import LESS, MORE, SAME, Claim, Verdict
from repro.analysis.stats import generalisation_gap, mean_estimate
from repro.data.sampling import p_full
from repro.figures import common, style
from repro.figures.verdicts import FARTHEST, t_value, verdict_rows
from repro.questions import CLAIMS, STUDIES
from repro.questions.beyond import accuracy_against_cost
from repro.questions.reset import SUBSETS, contributions, reset_gaps, speed
from repro.questions.smooth_transition import transition
from repro.questions.stages import stage_gaps
from repro.questions.two_phases import curvature, noise
from repro.store.records import CURVES
from repro.study import reset_condition


def curves(stages, seeds=3):
    rows = []
    for condition, lengths in stages.items():
        for seed in range(seeds):
            total = 0
            for stage, epochs in enumerate(lengths, start=1):
                for epoch in range(1, epochs + 1):
                    total += 1
                    rows.append((condition, seed, stage, total, epoch, 0.1, 0.5 + seed / 10, 0.4))
    names = ["condition", "seed", "stage", "total", "epoch", *CURVES]
    return pd.DataFrame(rows, columns=names)


def test_the_last_stage_of_every_condition_starts_at_zero():
    figure = common.learning_curves(curves({"fresh": [4], "warm start": [3, 4]}), window=2)
    for ax in figure.axes:
        thick = [line for line in ax.lines if line.get_linewidth() == 2]
        starts = sorted((line.get_xdata()[0], line.get_xdata()[-1]) for line in thick)
        assert starts == [(-2, 0), (1, 4), (1, 4)]


def test_the_thick_line_is_the_mean_over_seeds_in_percent():
    figure = common.learning_curves(curves({"fresh": [2]}), window=1)
    [mean] = [line for line in figure.axes[0].lines if line.get_label() == "fresh"]
    assert np.allclose(mean.get_ydata(), 60)


def test_gaps_show_a_dot_per_seed_and_the_mean():
    rows = [("fresh", s, 0.8) for s in range(3)] + [("warm start", s, 0.7 + s / 100) for s in range(3)]
    figure = common.gap_strip(
        generalisation_gap(pd.DataFrame(rows, columns=["condition", "seed", "test_accuracy"]))
    )
    dots, _, mean = figure.axes[0].lines[:3]
    assert np.allclose(sorted(dots.get_xdata()), [-10, -9, -8]) and np.allclose(mean.get_xdata(), -9)


def gaps(seeds=3, study="reset", **columns):
    """Rows as of `Results.gaps`; a gap of -4 and half a point more for each seed, unless given."""
    rows = pd.DataFrame(columns).merge(pd.DataFrame({"seed": range(seeds)}), how="cross")
    if "gap" not in rows:
        rows["gap"] = -4.0
    return rows.assign(gap=rows.gap + rows.seed / 2)


LENGTHS = {
    "condition": "warm start",
    "pretraining_epochs": [1, 10, 1, 10],
    "optimizer": ["Adam"] * 2 + ["SGD"] * 2,
}
SMOOTH = {
    "condition": ["smooth"] * 3 + ["warm start"],
    "gamma": [0.1, 0.5, 0.9, np.nan],
    "gap": [-1.0, -2, -3, -8],
}
STAGES = {
    "condition": "stages",
    "parts": [2, 3, 5, 2, 2],
    "ratio": [1.0, 1, 1, 0.5, 0],
    "gap": [-1.0, -2, -4, -5, -9],
}
ENDS = list(dict.fromkeys([*("123456"[:k] for k in range(7)), *("123456"[k:] for k in range(7)), *"123456"]))
RESET = {
    "condition": [reset_condition(tuple(map(int, s))) for s in SUBSETS],
    "modules": SUBSETS,
    "gap": [float(len(s)) - 6 for s in SUBSETS],
}
TUNED = ["fresh", "warm start", "reset 6", "shrink and perturb", "rate restart", "fresh, falling rate"]


def ends(seeds=3):
    found = gaps(seeds, **RESET)
    return found[found.modules.isin(ENDS)]


def learning(conditions=TUNED, seeds=3, epochs=12):
    """Train accuracy 0, 0.1, 0.2, ... to 1, delayed by an epoch for each condition after the first."""
    parts = [
        pd.DataFrame(
            {
                "condition": name,
                "seed": seed,
                "stage": 1,
                "epoch": range(1, epochs + 1),
                "total": range(1, epochs + 1),
                "train_loss": 0.1,
                "train_accuracy": np.clip((np.arange(epochs) - i) / 10, 0, 1),
                "test_accuracy": 0.5,
            }
        )
        for i, name in enumerate(conditions)
        for seed in range(seeds)
    ]
    return pd.concat(parts, ignore_index=True)


def table(conditions=TUNED, seeds=3):
    rows = itertools.product(enumerate(conditions), range(seeds))
    return pd.DataFrame(
        [(c, s, 0.8 - i / 100 + s / 500) for (i, c), s in rows],
        columns=["condition", "seed", "test_accuracy"],
    )


def probes(seeds=3):
    """Noise 2 for fresh, 1 for warm, times e^seed and the epoch; sharpness after the last epoch alone."""
    rows = itertools.product((("fresh", 2.0), ("warm start", 1.0)), range(seeds), (1, 5, 40))
    found = [(c, s, n, v * n * math.e**s, 10 * v + s if n == 40 else np.nan) for (c, v), s, n in rows]
    made = pd.DataFrame(found, columns=["condition", "seed", "tuning_epochs", "gradient_noise", "sharpness"])
    noises = {f"noise_trace{of}": made.gradient_noise * (1 + i) for i, of in enumerate(("", "_old", "_new"))}
    return made.assign(**noises, curvature=10 * made.sharpness, curvature_loss=0.1 / made.tuning_epochs)


def verdict(
    word="reproduced", values=(-3.0, -4.0, -5.0), direction=LESS, words="Pretraining hurts.", margin=1.0
):
    claim = Claim("x", words, "Figure 0", "x", lambda results: None, direction, margin)
    return Verdict(claim, word, mean_estimate(values), 0.01)


def card(seeds=3):
    words = itertools.cycle(["reproduced", "contradicted", "inconclusive"])
    found = [Verdict(c, next(words), mean_estimate([-4.0 - s for s in range(seeds)]), 0.01) for c in CLAIMS]
    return [*found[:-2], *(Verdict(c, "not run", mean_estimate([]), math.nan) for c in CLAIMS[-2:])]


FIGURES = {
    "learning_curves": lambda n: common.learning_curves(learning(seeds=n), 2),
    "gap_strip": lambda n: common.gap_strip(gaps(n, condition=TUNED[1:])),
    "gap_strip by optimizer": lambda n: common.gap_strip(gaps(n, **LENGTHS), "optimizer"),
    "pretraining": lambda n: common.gap_lines(
        gaps(n, **LENGTHS), "pretraining_epochs", "optimizer", log=True
    ),
    "gamma": lambda n: common.gap_lines(gaps(n, **SMOOTH), "gamma", xlabel="γ"),
    "stage_gaps": lambda n: stage_gaps(gaps(n, **STAGES)),
    "reset_gaps": lambda n: reset_gaps(ends(n)),
    "contributions": lambda n: contributions(gaps(n, **RESET)),
    "epochs_to_reach": lambda n: speed(learning(seeds=n), TUNED),
    "noise": lambda n: noise(probes(n)),
    "noise before": lambda n: noise(probes(n)[["condition", "seed", "tuning_epochs", "gradient_noise"]]),
    "curvature": lambda n: curvature(probes(n)),
    "accuracy_against_cost": lambda n: accuracy_against_cost(table(seeds=n), learning(seeds=n)),
    "scorecard": lambda n: verdict_rows(card(n)),
    "transition": lambda n: transition((0.1, 0.5, 0.9)[:n], 40),
}
EMPTY = pd.DataFrame()
NOTHING = {
    "learning_curves": lambda: common.learning_curves(curves({}), 2),
    "gap_strip": lambda: common.gap_strip(EMPTY),
    "gap_lines": lambda: common.gap_lines(EMPTY, "gamma"),
    "gap_lines without the factor": lambda: common.gap_lines(gaps(condition=["warm start"]), "gamma"),
    "gap_lines of NaN": lambda: common.gap_lines(gaps(**LENGTHS).assign(gap=np.nan), "pretraining_epochs"),
    "stage_gaps": lambda: stage_gaps(EMPTY),
    "reset_gaps": lambda: reset_gaps(EMPTY),
    "epochs_to_reach": lambda: speed(curves({}), TUNED),
    "epochs_to_reach of others": lambda: speed(learning(), ["reset 1"]),
    "noise": lambda: noise(EMPTY),
    "curvature": lambda: curvature(EMPTY),
    "accuracy_against_cost": lambda: accuracy_against_cost(EMPTY, EMPTY),
}
drawings = pytest.mark.parametrize("draw", FIGURES.values(), ids=list(FIGURES))


def texts(figure):
    """Every text that is drawn, with its box in pixels; width and height of the page."""
    canvas, drawn, draw = FigureCanvasAgg(figure), {}, Text.draw

    def noted(text, renderer):
        if text.get_visible() and text.get_text().strip():
            drawn[text] = text.get_window_extent(renderer)
        draw(text, renderer)

    with mock.patch.object(Text, "draw", noted):
        canvas.draw()
    return [(text.get_text(), box) for text, box in drawn.items()], canvas.get_width_height()


def labelled(ax):
    return {line.get_label(): line for line in ax.lines if not line.get_label().startswith("_")}


def bars(ax):
    """Upright intervals as {x: (low, high)}."""
    upright = [
        line for line in ax.lines if len(line.get_xdata()) == 2 and line.get_xdata()[0] == line.get_xdata()[1]
    ]
    return {line.get_xdata()[0]: tuple(line.get_ydata()) for line in upright}


@pytest.mark.parametrize("seeds", [1, 2, 5])
@drawings
def test_words_of_a_figure_are_on_the_page_large_enough_and_clear_of_each_other(draw, seeds):
    figure = draw(seeds)
    found, (width, height) = texts(figure)
    assert figure.get_figwidth() == 7.2 and figure.get_facecolor() == (1, 1, 1, 1)
    for words, box in found:
        assert box.x0 > -1 and box.y0 > -1 and box.x1 < width + 1 and box.y1 < height + 1, words
    for (one, a), (other, b) in itertools.combinations(found, 2):
        overlap = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        assert min(overlap) <= 1, (one, other)
    assert all(text.get_fontsize() >= 11 for text in figure.findobj(Text))


@drawings
def test_same_records_same_picture(draw):
    def drawn():
        made, file = draw(3), io.BytesIO()
        with matplotlib.rc_context({"svg.hashsalt": "repro"}):
            made.savefig(file, format="svg", metadata={"Date": None})
        return file.getvalue()

    assert drawn() == drawn()


@pytest.mark.parametrize("draw", NOTHING.values(), ids=list(NOTHING))
def test_where_nothing_is_recorded_the_figure_says_so(draw):
    [(words, _)], _ = texts(draw())
    assert words == "Nothing recorded yet"


def test_drawing_leaves_the_settings_of_others_alone():
    before = matplotlib.rcParams.copy()
    common.gap_strip(gaps(condition=["warm start"]))
    assert matplotlib.rcParams == before


def cases():
    whole = profiles.profile("quick", ["controls=true", "full_grids=true"])
    return {case.condition for study in STUDIES.values() for case in study.cases(whole)}


def test_every_condition_has_a_look_of_its_own_that_stands_out_from_the_ground():
    named = {c for c in cases() if not c.startswith("reset")}
    optimizers = {"Adam", "RMSprop", "SGD", "SGD with momentum"}
    assert named | optimizers | {"stages by class"} == set(style.LOOKS)
    assert len(set(style.COLOURS.values())) == len(style.COLOURS)
    for name in cases() | optimizers:
        linear = [
            v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in to_rgb(common.colour(name))
        ]
        assert 1.05 / (np.dot(linear, (0.2126, 0.7152, 0.0722)) + 0.05) >= 3, name


def test_resets_are_the_darker_the_more_modules_they_name():
    shades = [sum(to_rgb(common.colour(reset_condition(tuple(range(1, k + 1)))))) for k in range(1, 7)]
    assert shades == sorted(shades, reverse=True) and len(set(shades)) == 6


def test_gap_lines_join_the_means_and_bars_are_their_intervals():
    found = gaps(condition="warm start", width=[4, 8], gap=[-6.0, -1.0])
    ax = common.gap_lines(found, "width").axes[0]
    [mean] = labelled(ax).values()
    assert np.allclose(mean.get_xdata(), [4, 8]) and np.allclose(mean.get_ydata(), [-5.5, -0.5])
    expected = mean_estimate(found[found.width == 4].gap)
    assert bars(ax)[4] == pytest.approx((expected.low, expected.high))


def test_gap_lines_draw_a_line_for_each_value_side_by_side_with_a_marker_of_its_own():
    lines = labelled(common.gap_lines(gaps(**LENGTHS), "pretraining_epochs", "optimizer", log=True).axes[0])
    assert set(lines) == {"Adam", "SGD"}
    assert lines["Adam"].get_marker() != lines["SGD"].get_marker()
    assert lines["Adam"].get_color() == common.colour("Adam")
    for line in lines.values():
        assert np.allclose(line.get_xdata(), [1, 10], rtol=0.05)
    assert lines["Adam"].get_xdata()[0] < lines["SGD"].get_xdata()[0]


def test_gap_lines_average_what_differs_in_other_factors_within_each_seed():
    found = gaps(2, condition="warm start", width=[4, 4], depth=[1, 2], gap=[-6.0, -2.0])
    ax = common.gap_lines(found, "width").axes[0]
    expected = mean_estimate([-4.0, -3.5])
    assert bars(ax)[4] == pytest.approx((expected.low, expected.high))


def test_a_warm_start_without_the_factor_is_drawn_for_comparison():
    lines = labelled(common.gap_lines(gaps(**SMOOTH), "gamma").axes[0])
    assert np.allclose(lines["warm start"].get_ydata(), -7.5)
    assert np.allclose(lines["smooth"].get_ydata(), [-0.5, -1.5, -2.5])


def test_transition_draws_the_probability_itself():
    lines = labelled(transition([0.9, 0.1], 40).axes[0])
    assert list(lines) == ["γ = 0.1", "γ = 0.9"]
    x, y = lines["γ = 0.9"].get_data()
    assert np.allclose(y, [p_full(n, 40, 0.9) for n in x]) and (x[0], x[-1]) == (0, 40)


def test_stages_go_left_and_the_two_parts_of_unlike_classes_right():
    left, right = stage_gaps(gaps(1, **STAGES)).axes
    for ax, x, y in ((left, [2, 3, 5], [-1, -2, -4]), (right, [0, 0.5, 1], [-9, -5, -1])):
        [line] = [line for line in ax.lines if line.get_marker() == "D"]
        assert np.allclose(line.get_xdata(), x) and np.allclose(line.get_ydata(), y)


def test_a_panel_without_records_says_so_beside_one_that_has_some():
    found = gaps(**STAGES)
    words = [text for text, _ in texts(stage_gaps(found[found.parts > 2]))[0]]
    assert "Nothing recorded yet" in words


def test_resets_run_from_the_warm_start_to_all_six_modules():
    axes = reset_gaps(ends(1)).axes
    for ax, ks, y in zip(
        axes, (range(7), range(7), range(1, 7)), (range(-6, 1), range(-6, 1), [-5] * 6), strict=True
    ):
        marks = sorted(
            (line.get_xdata()[0], line.get_ydata()[0]) for line in ax.lines if line.get_markersize() == 8
        )
        assert marks == [(k, float(v)) for k, v in zip(ks, y, strict=True)]
    assert [ax.get_title() for ax in axes] == ["First k", "Last k", "Only k"]
    [reference] = [line for line in axes[2].lines if line.get_linestyle() == "--"]
    assert np.allclose(reference.get_ydata(), -6)


def test_a_kind_of_reset_that_is_not_recorded_has_no_panel():
    found = ends(1)
    last = found[found.modules.isin(["", "6", "56", "456", "123456"])]
    assert [ax.get_title() for ax in reset_gaps(last).axes] == ["Last k"]
    with_one = found[found.modules.isin(["", "6", "56", "3"])]
    assert [ax.get_title() for ax in reset_gaps(with_one).axes] == ["Last k", "Only k"]


def test_contributions_are_bars_of_both_accounts():
    found = gaps(**RESET | {"gap": [2.0 * ("3" in s) - ("6" in s) for s in SUBSETS]})
    heights = [bar.get_height() for bar in contributions(found).axes[0].patches]
    assert np.allclose(heights, [0, 0, 2, 0, 0, -1] * 2)


def test_epochs_to_reach_are_those_of_the_last_stage_and_hollow_where_a_seed_never_came():
    found = learning(["fresh", "warm start"])
    found.loc[(found.condition == "warm start") & (found.seed == 0), "train_accuracy"] = 0.6
    figure = speed(found, ["fresh", "warm start", "reset 6"])
    lines = labelled(figure.axes[0])
    assert set(lines) == {"fresh", "warm start"}
    assert np.allclose(
        lines["fresh"].get_ydata(), [6, 9, 10, 10.5, 10.9]
    )  # accuracies of 50, 80, 90, 95 and 99 %
    assert np.allclose(lines["warm start"].get_ydata(), [(1 + 7 + 7) / 3, 10, 11, 11.5, 11.9])
    [hollow] = [line for line in figure.axes[0].lines if line.get_markerfacecolor() == "white"]
    assert np.allclose(hollow.get_ydata(), [10, 11, 11.5, 11.9]) and "hollow" in figure.axes[0].get_xlabel()


def test_runs_that_reach_nothing_are_said_to():
    slow = learning().assign(train_accuracy=0.1)
    for figure in (speed(slow, TUNED), accuracy_against_cost(table(), slow)):
        [(words, _)], _ = texts(figure)
        assert words.startswith("No run reached")


def test_noise_shows_geometric_means():
    lines = labelled(noise(probes()).axes[0])
    assert np.allclose(lines["fresh"].get_ydata(), [2 * n * math.e for n in (1, 5, 40)])
    assert np.allclose(lines["warm start"].get_ydata(), [n * math.e for n in (1, 5, 40)])


def test_curvature_is_drawn_against_the_loss_of_each_seed():
    lines = labelled(curvature(probes()).axes[0])
    assert lines["fresh"].get_xdata().tolist() == pytest.approx([0.1 / 40])  # it was measured there alone
    assert lines["fresh"].get_ydata().tolist() == pytest.approx([200])


def test_accuracy_stands_above_the_epochs_it_took():
    found = learning(["fresh", "warm start", "reset 6"])
    found.loc[found.condition == "reset 6", "train_accuracy"] = 0.5
    figure = accuracy_against_cost(table(), found)
    marks = {
        (line.get_xdata()[0], line.get_ydata()[0])
        for line in figure.axes[0].lines
        if line.get_markersize() == 11
    }
    assert {(x, round(y, 6)) for x, y in marks} == {(10.5, 80.2), (11.5, 79.2)}
    assert figure.axes[0].get_xlabel().endswith("Never reached by: reset 6")


@pytest.mark.parametrize(
    ("values", "direction", "t"),
    [
        ((-3.0, -4.0, -5.0), LESS, 4 * 3**0.5),
        ((-3.0, -4.0, -5.0), MORE, -4 * 3**0.5),
        ((-3.0, -4.0, -5.0), SAME, -3 * 3**0.5),
        ((-1.0, 0.0, 1.0), SAME, 3**0.5),
        ((-2.0, -2.0), LESS, math.inf),
        ((2.0, 2.0), LESS, -math.inf),
        ((0.0, 0.0), LESS, 0),
        ((-4.0,), LESS, math.nan),
        ((), LESS, math.nan),
    ],
)
def test_t_value_is_positive_where_it_supports_the_claim(values, direction, t):
    assert t_value(verdict(values=values, direction=direction)) == pytest.approx(t, nan_ok=True)


def test_scorecard_says_each_verdict_in_words_and_greys_what_was_not_run():
    found = [verdict(), verdict("contradicted", (4.0, 4.0, 4.0)), verdict("not run", ())]
    ax = verdict_rows(found).axes[0]
    assert [text.get_text() for text in ax.texts] == ["✓ reproduced", "✗ contradicted", "– not run"]
    ends = [line.get_xdata()[0] for line in ax.lines if line.get_markersize() == 9]
    assert ends == pytest.approx([4 * 3**0.5, -FARTHEST])
    shades = [label.get_color() for label in ax.get_yticklabels()]
    assert shades[0] == shades[1] != shades[2]


@pytest.mark.parametrize("seeds", [1, 3])
def test_equal_values_and_missing_ones_are_drawn(seeds):
    same = gaps(seeds, **LENGTHS).assign(gap=-2.0)
    holed = pd.concat([same, same[:1].assign(gap=np.nan, seed=9)])
    for figure in (
        common.gap_strip(holed),
        common.gap_lines(holed, "pretraining_epochs", "optimizer", log=True),
    ):
        assert all(np.isfinite(line.get_xdata()).all() for line in figure.axes[0].lines)
        texts(figure)
