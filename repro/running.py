"""The functions that chapters and scripts call to train networks, or to read what is recorded."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from repro.analysis import tables
from repro.analysis.recorded import Results, published, results
from repro.analysis.stats import Estimate, mean_estimate
from repro.config import InputError, Model, Run, Stage, check_engine
from repro.data import folders, own
from repro.profiles import resolved, scale
from repro.questions import studies
from repro.scales import PROFILES, PUBLISHED, Profile
from repro.store.records import Store
from repro.study import Case, Study
from repro.sweep import dispatch
from repro.sweep.plans import plan
from repro.sweep.progress import shown

if TYPE_CHECKING:
    import pandas as pd
    from torch.utils.data import Dataset as TorchDataset

    Data = str | Path | TorchDataset | tuple[TorchDataset, TorchDataset]

SCRIPTS = "scripts"  # folder of the records of `train`


def run_study(
    name: str,
    profile: str = PUBLISHED,
    seeds: int | None = None,
    device: str = "auto",
    settings: str | Sequence[str] | None = (),
) -> Results:
    """The results of a study, after training the runs that are not recorded yet.

    The device `none` trains nothing. Nor does the profile `published`: it reads the largest scale that
    is recorded (see `repro.analysis.recorded.published`). Raises as `gap` does.
    """
    found = studies([name])
    if len(found) > 1:
        raise InputError(f"{name} has {len(found)} studies: name one, as in {name}:{found[0].name}")
    if profile == PUBLISHED:
        if seeds or settings:
            raise InputError("seeds and settings need a profile: published records are as they are")
        return published(found[0])
    return _run(found[0], scale(profile, seeds, settings), device)


def _run(study: Study, profile: Profile, device: str) -> Results:
    if device != "none":
        _train([case.run for case in study.cases(profile)], Store.of(profile.name), device)
    return results(study, profile)


def _train(runs: list[Run], store: Store, device: str) -> None:
    """Train the runs that the store lacks, and record them there.

    If runs fail, the others are trained all the same, then `RuntimeError` is raised with the first
    failure. Raises `KeyboardInterrupt` if training was stopped before its end.
    """
    check_engine(device, "auto")
    with shown() as progress:
        outcome = dispatch.execute(plan(runs), store, device=device, progress=progress)
    if outcome.failures:
        raise RuntimeError(outcome.failures[0])
    if not outcome.finished:
        raise KeyboardInterrupt("stopped with runs left; run again to go on")


def gap(
    data: Data | None = None,
    model: str | Callable = "",
    profile: str = "quick",
    seeds: int | None = None,
    device: str = "auto",
    settings: str | Sequence[str] = (),
) -> Estimate:
    """The generalisation gap: test accuracy of a warm start less that of a fresh network, in points.

    Mean over seeds with its 95 % interval (`mean`, `low`, `high`, `sd`, `n`); negative
    if pretraining on half of the images hurts. With one seed, `low`, `high` and `sd` are
    NaN. Both networks of a seed have the same images and first weights. Runs are
    recorded, so that a second call trains nothing.

    `data` is a name (digits, cifar10, ...), the path of an `.npz` file or of a folder
    of images, a PyTorch data set, or a pair of them, training and test; see
    `repro.data.datasets.npz_dataset` and `repro.data.folders` for their shapes. By
    default it is the profile's own.
    `model` is a function that takes (channels, classes, size) and returns a
    `torch.nn.Module`, which maps normalised images, float32 [B, channels, size, size],
    to logits [B, classes]. It may be named: `./file.py:function` or
    `package.module:function`. The default is the paper's ResNet. `settings` change
    fields of the profile, as `--set` does.

    Raises `InputError`, with a message of one line, on bad input, and `RuntimeError`
    if a run fails.
    """
    named = [] if data is None else [f"dataset={folders.place(data)}"]
    named += [f"model={own.place(model)}"] if model else []
    chosen = scale(profile, seeds, settings, *named)
    return mean_estimate(_run(studies(["warm_start"])[0], chosen, device).gaps.gap)


def train(
    data: Data,
    stages: Sequence[Stage],
    model: str | Callable | Model = "",
    batch_size: int = 128,
    seed: int = 0,
    device: str = "auto",
) -> pd.DataFrame:
    """Train one network and return its learning curves, a row per epoch.

    Columns are `stage`, and `epoch` within it, from 1; `total`, epochs so far;
    `train_loss`, the mean cross-entropy in nats; `train_accuracy`, measured on the
    batches as they are trained on, and `test_accuracy`, both fractions. `data` and
    `model` are as in `gap`; `model` may also be a `repro.config.Model`. The run is
    recorded, so that a second call trains nothing. Raises as `gap` does.
    """
    plain = resolved(dataclasses.replace(PROFILES["paper"], name=SCRIPTS, dataset=folders.place(data)))
    network = model if isinstance(model, Model) else Model(code=own.code(model) if model else None)
    run, store = Run(plain.data(), network, stages, batch_size, seed, seed, seed), Store.of(SCRIPTS)
    _train([run], store, device)
    return tables.curves([Case("run", seed, run)], store).drop(columns=["condition", "seed"])
