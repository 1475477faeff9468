"""Profiles (scales) as users ask for them: by name, with fields changed, and with the files they name."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from repro.config import MODULES, InputError, given
from repro.data import datasets, folders, own
from repro.data.downloads import SOURCES
from repro.scales import FIELDS, PROFILES, Profile
from repro.store.records import Store, names_of

OWN = "own"  # name of every user-supplied data set
is_folder = os.path.isdir  # unlike that of pathlib, returns False for impossible file names


def profile(name: str, settings: Iterable[str] = (), seeds: int | None = None) -> Profile:
    """The named profile with `field=value` settings applied; raises `InputError` on any mistake."""
    if not isinstance(name, str) or name not in PROFILES:
        raise InputError(f"unknown profile {name!r}: choose from {', '.join(PROFILES)}")
    settings = list(settings)
    owned = [text for text in settings if str(text).lstrip().startswith("model.")]
    changes = dict(_setting(text) for text in settings if text not in owned)
    if owned:
        changes["model_settings"] = tuple(map(_own_setting, owned))
    if seeds is not None:
        changes |= {"seeds": seeds, "study_seeds": seeds}
    found = resolved(replace(PROFILES[name], **changes))
    if {"dataset", "train", "test"} & changes.keys():
        datasets.counts(found.data())  # raises `InputError` if there are not as many images
    return found


def resolved(profile: Profile) -> Profile:
    """The profile with `images` and `code` filled in, if its data or its network are user-supplied.

    Run ids depend on the content of an image file. They depend on its name only if the
    store has older records of these images, made when ids still did.
    """
    if profile.model_settings and not profile.model:
        raise InputError("model.NAME=VALUE is a setting of a model of one's own: name it by model=...")
    found: dict[str, object] = {}
    if profile.model:
        found["model"] = str(given(profile.model)) if ".py:" in profile.model else profile.model
        found["code"] = own.code(found["model"], **dict(profile.model_settings))
    if _is_path(profile.dataset):
        path = given(profile.dataset)
        file = folders.of_folder(path, profile.size) if is_folder(path) else path
        images = datasets.npz_dataset(file, profile.train, profile.test, profile.split)
        names = names_of(images.fingerprint, Store.of(profile.name).folder)
        name = images.name if images.name in names else min(names, default=OWN)
        found |= {"dataset": str(path), "images": replace(images, name=name)}
    return replace(profile, **found)


def _is_path(dataset: str) -> bool:
    """Whether `dataset` is the path of a file or a folder, not the name of a known data set."""
    found = Path(dataset).suffix or os.sep in dataset or (dataset and is_folder(dataset))
    return bool(found) and dataset not in ("digits", *SOURCES)


def module_numbers(profile: Profile) -> tuple[int, ...]:
    """Numbers of the modules of the profile's network; a custom network is built to count them."""
    if profile.code is None:
        return MODULES
    side, channels, classes = datasets.shape(profile.data())
    return own.modules(profile.code, channels, classes, side)


def scale(
    name: str, seeds: int | str | None = None, settings: str | Sequence[str] | None = (), *more: str
) -> Profile:
    """The named profile, changed by the parameters of a chapter.

    `seeds` is the number of seeds, None for the profile's own; `settings` change fields:
    ["width=16", "train=500"], or "width=16, train=500". Numbers may come as text or as
    floats ("3", 3.0), as papermill passes them. `more` settings replace earlier ones of a
    field. Raises `InputError` on any mistake.
    """
    if seeds is not None and not re.fullmatch(r"\d{1,9}(\.0)?", str(seeds)):
        raise InputError(
            f"seeds takes a whole number from 1, or None for those of the profile, not {seeds!r}"
        )
    if isinstance(settings, str):
        settings = filter(
            None, re.split(r",\s*(?=[\w.]+\s*=|$)", settings)
        )  # a comma within a path does not split
    chosen = settings if isinstance(settings, Iterable) else filter(None, [settings])
    return profile(name, [*chosen, *more], None if seeds is None else int(float(seeds)))


def _setting(text: str) -> tuple[str, object]:
    field, equals, value = (part.strip() for part in str(text).partition("="))
    allowed = [name for name in FIELDS if name not in ("name", "model_settings")]
    if not equals or field not in allowed:
        raise InputError(
            f"unknown setting {text!r}: write field=value with a field from {', '.join(allowed)}, model.NAME"
        )
    kind = FIELDS[field]
    if kind is str:
        return field, value
    if kind is bool:
        if value not in ("true", "false"):
            raise InputError(f"{field} takes true or false, not {value!r}")
        return field, value == "true"
    optional = kind == int | None
    if optional and value == "all":
        return field, None
    number = float if kind is float else int
    try:
        return field, number(value)
    except ValueError:
        allowed = ("a number" if kind is float else "a whole number") + (" or all" if optional else "")
        raise InputError(f"{field} takes {allowed}, not {value!r}") from None


def _own_setting(text: str) -> tuple[str, object]:
    """Name and value of `model.name=value`; the value becomes an int, float or bool if it reads as one."""
    name, equals, value = (part.strip() for part in text.partition("model.")[2].partition("="))
    if not (equals and name.isidentifier()):
        raise InputError(f"{text!r} sets nothing: write model.name=value")
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return name, kind(value)
    return name, {"true": True, "false": False}.get(value, value)


def changes(profile: Profile) -> list[str]:
    """The `field=value` settings that turn the profile of this name into this one."""
    base = PROFILES[profile.name]
    values = {name: getattr(profile, name) for name in FIELDS}
    values = {name: value for name, value in values.items() if value != getattr(base, name)}
    values |= {f"model.{name}": v for name, v in values.pop("model_settings", ())}
    words = {None: "all", True: "true", False: "false"}
    return [f"{name}={words[v] if v is None or isinstance(v, bool) else v}" for name, v in values.items()]
