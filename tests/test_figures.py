import io

import matplotlib
import numpy as np
import pandas as pd

matplotlib.use("agg")

from repro import figures
from repro.records import CURVES
from repro.stats import generalisation_gap


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
    figure = figures.learning_curves(curves({"fresh": [4], "warm start": [3, 4]}), window=2)
    for ax in figure.axes:
        thick = [line for line in ax.lines if line.get_linewidth() == 2]
        starts = sorted((line.get_xdata()[0], line.get_xdata()[-1]) for line in thick)
        assert starts == [(-2, 0), (1, 4), (1, 4)]


def test_the_thick_line_is_the_mean_over_seeds_in_percent():
    figure = figures.learning_curves(curves({"fresh": [2]}), window=1)
    [mean] = [line for line in figure.axes[0].lines if line.get_label() == "fresh"]
    assert np.allclose(mean.get_ydata(), 60)


def test_gaps_show_a_dot_per_seed_and_the_mean():
    rows = [("fresh", s, 0.8) for s in range(3)] + [("warm start", s, 0.7 + s / 100) for s in range(3)]
    figure = figures.gap_strip(
        generalisation_gap(pd.DataFrame(rows, columns=["condition", "seed", "test_accuracy"]))
    )
    dots, _, mean = figure.axes[0].lines[:3]
    assert np.allclose(sorted(dots.get_xdata()), [-10, -9, -8]) and np.allclose(mean.get_xdata(), -9)


def test_same_records_same_picture():
    def drawn():
        made, file = figures.learning_curves(curves({"fresh": [3]}), window=1), io.BytesIO()
        with matplotlib.rc_context({"svg.hashsalt": "repro"}):
            made.savefig(file, format="svg", metadata={"Date": None})
        return file.getvalue()

    assert drawn() == drawn()
