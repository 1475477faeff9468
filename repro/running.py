"""Run a question of the paper, or read what is recorded of it: what a chapter calls."""

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
    """The results of a study, after training what of it is not recorded yet; not with the device `none`.

    The profile `published` is the largest at which all of the study is recorded; it trains nothing.
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

    Raises `RuntimeError` with the first failure, all others being trained nevertheless, and
    `KeyboardInterrupt` where it was stopped before.
    """
    check_engine(device, "auto")
    with shown() as progress:
        outcome = dispatch.execute(plan(runs), store, device=device, progress=progress)
    if outcome.failures:
        raise RuntimeError(outcome.failures[0])
    if not outcome.finished:
        raise KeyboardInterrupt("stopped with runs left; run again to go on")


def gap(
    data: Data = "digits",
    model: str | Callable = "",
    profile: str = "quick",
    seeds: int | None = None,
    device: str = "auto",
    settings: str | Sequence[str] = (),
) -> Estimate:
    """The generalisation gap: test accuracy of a warm start less that of a fresh network, in points.

    Mean over seeds with its 95 % interval (`mean`, `low`, `high`, `sd`, `n`); negative
    where pretraining on half of the images hurts. Both networks of a seed have the
    same test images, first weights and order of examples. What is trained is
    recorded, and a second call trains nothing.

    `data` is a name (digits, cifar10, ...), the path of an `.npz` file or of a folder
    of images, a data set of PyTorch, or a pair of two, training and test
    (`repro.data.datasets.npz_dataset` and `repro.data.folders` say in what shapes).
    `model` gives a `torch.nn.Module` from (channels, classes, size), which maps
    images [B, channels, size, size], float32, normalised, to logits [B, classes]:
    a function, `./file.py:function` or `package.module:function`; if none is named it
    is the paper's ResNet. `settings` change the profile, as `--set` does.

    Raises `InputError`, in one line, where this cannot be done, and `RuntimeError`
    where a run failed.
    """
    chosen = scale(profile, seeds, settings)
    named = {"dataset": _place(data), "model": own.place(model) if model else chosen.model}
    chosen = resolved(dataclasses.replace(chosen, **named))
    return mean_estimate(_run(studies(["warm_start"])[0], chosen, device).gaps.gap)


def train(
    data: Data,
    stages: Sequence[Stage],
    model: str | Callable | Model = "",
    batch_size: int = 128,
    seed: int = 0,
    device: str = "auto",
) -> pd.DataFrame:
    """Learning curves of one network, a row per epoch, recorded as every run is.

    Columns are `stage`, and `epoch` within it, from 1; `total`, epochs so far;
    `train_loss`, the mean cross-entropy, in nats; `train_accuracy`, as met in
    training, and `test_accuracy`, fractions. `data` and `model` are as `gap` takes
    them, `model` also a `repro.config.Model` of some width. Raises as `gap` does.
    """
    plain = resolved(dataclasses.replace(PROFILES["paper"], name=SCRIPTS, dataset=_place(data)))
    network = model if isinstance(model, Model) else Model(code=own.code(model) if model else None)
    run, store = Run(plain.data(), network, tuple(stages), batch_size, seed, seed, seed), Store.of(SCRIPTS)
    _train([run], store, device)
    return tables.curves([Case("run", seed, run)], store).drop(columns=["condition", "seed"])


def _place(data: Data) -> str:
    """The name of a data set, or the path of its file or folder."""
    if isinstance(data, str | Path):
        return str(data)
    return str(folders.of_torch(*data) if isinstance(data, tuple) else folders.of_torch(data))
