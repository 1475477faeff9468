"""What the chapters have in common: figure format, and values that the text shows."""

from __future__ import annotations

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.pyplot import close

from repro import scorecard
from repro.profiles import Profile
from repro.sweep import Results


def prepare() -> None:
    """Draw figures as SVG, the same bytes for the same records."""
    from matplotlib_inline.backend_inline import set_matplotlib_formats

    mpl.rcParams["svg.hashsalt"] = "repro"
    set_matplotlib_formats("svg", metadata={"Date": None, "Creator": None})


def show(**values: object) -> None:
    """Make values available to the text of the page by name, in `{glue:text}` and `{glue:figure}`."""
    from myst_nb import glue

    for name, value in values.items():
        glue(name, value if isinstance(value, Figure) else str(value), display=False)
        if isinstance(value, Figure):
            close(value)


def readings(profile: Profile, study: str) -> dict[str, str]:
    """What the whole scorecard says of each claim that a study decides, by the claim's id."""
    card = scorecard.scorecard(profile)
    return {claim.id: str(card[claim.id]) for claim in scorecard.of(study)}


def means(table: pd.DataFrame) -> dict[str, str]:
    """Mean test and train accuracy of each condition, in percent, as `fresh_test`, `warm_start_train`."""
    found = 100 * table.groupby("condition")[["test_accuracy", "train_accuracy"]].mean()
    return {
        f"{condition.replace(' ', '_')}_{column.partition('_')[0]}": f"{value:.1f}"
        for (condition, column), value in found.stack().items()
    }


def provenance(results: Results) -> dict[str, str]:
    """What a caption states: runs, seeds, profile, data set, network, training, device."""
    table, profile = results.table, results.profile
    missing = f" ({results.missing} not recorded yet)" if results.missing else ""
    images = {
        n: "all" if getattr(profile, n) is None else f"{getattr(profile, n):,}" for n in ("train", "test")
    }
    return {
        "profile": profile.name,
        "runs": f"{len(table)}{missing}",
        "seeds": str(table.seed.nunique()),
        "dataset": profile.dataset,
        "images": f"{images['train']} training and {images['test']} test images",
        "width": str(profile.width),
        "depth": str(profile.depth),
        "batch_size": str(profile.batch_size),
        "learning_rate": f"{profile.learning_rate:g}",
        "pretraining_epochs": str(profile.pretraining_epochs),
        "tuning_epochs": str(profile.tuning_epochs),
        "window": str(profile.window),
        "device": ", ".join(sorted(table.device.unique())),
        "precision": ", ".join(sorted(table.precision.unique())),
    }
