"""The scorecard: a verdict on every claim, by the records of one scale or of the largest that decides it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from itertools import chain
from pathlib import Path

from repro import questions
from repro.analysis import recorded
from repro.analysis.claims import DECIDED, VERDICTS, Verdict, verdicts
from repro.analysis.recorded import Results, published
from repro.analysis.stats import between, signed
from repro.config import InputError
from repro.figures.shown import Captioned, Table, Words, enumerated
from repro.figures.verdicts import verdict_rows
from repro.lazy import Lazy
from repro.profiles import scale
from repro.questions import CLAIMS, QUESTIONS, STUDIES, two_phases, warm_start
from repro.scales import LARGEST_FIRST, PROFILES, PUBLISHED, Profile
from repro.store.records import Store
from repro.study import CONTROL

pd = Lazy("pandas")
INTERVAL = "effect (95 % interval)"  # a column of tables


def scorecard(profile: Profile, question: str | None = None) -> dict[str, Verdict]:
    """The verdict on every claim, by the claim's id, from what is recorded at a profile; trains nothing.

    `question` is the path of a file with other claims than the paper's; p values are adjusted for
    the number of claims that are judged together.
    """
    if question is None:
        return _judged(profile)[1]
    known, claims = questions.question(question)
    made = {name: recorded.results(known[name], profile) for name in dict.fromkeys(c.study for c in claims)}
    return {v.claim.id: v for v in verdicts((claim, made[claim.study]) for claim in claims)}


def _judged(profile: Profile, folder: Path | None = None) -> tuple[dict[str, Results], dict[str, Verdict]]:
    """The results of all studies and the verdicts on all claims, from a folder or the profile's store."""
    store = Store.of(profile.name) if folder is None else Store(folder)
    return _stamped(profile, store.folder, store.stamp())


@lru_cache(maxsize=32)  # a chapter asks many times
def _stamped(profile: Profile, folder: Path, stamp: tuple) -> tuple[dict[str, Results], dict[str, Verdict]]:
    """The same, cached: a new `stamp` has records read again; an empty one means that there are none."""
    store = Store(folder)
    made = {name: recorded.results(study, profile, store=store) for name, study in STUDIES.items() if stamp}
    return made, {v.claim.id: v for v in verdicts((claim, made.get(claim.study)) for claim in CLAIMS)}


def against(profile: Profile, folder: Path) -> pd.DataFrame:
    """Our effects beside those in another folder of the same profile: a row per claim with two seeds in both.

    They agree if they differ by no more than two standard errors of the difference. Raises `InputError`
    if nothing in that folder gives an effect.
    """
    ours, theirs = scorecard(profile), _judged(profile, folder)[1]
    if not any(v.effect.n for v in theirs.values()):
        raise InputError(f"no records of the profile {profile.name} in {folder}")
    rows = []
    for claim in CLAIMS:
        a, b = ours[claim.id].effect, theirs[claim.id].effect
        if a.n > 1 and b.n > 1:
            tolerance = 2 * (a.sd**2 / a.n + b.sd**2 / b.n) ** 0.5
            agree = "yes" if abs(a.mean - b.mean) <= tolerance else "no"
            rows.append((claim.id, a.text(2), b.text(2), a.mean - b.mean, tolerance, claim.unit, agree))
    columns = ["claim", "here", "there", "difference", "tolerance", "unit", "agree"]
    return pd.DataFrame(rows, columns=columns)


def best() -> dict[str, Verdict]:
    """The verdict on every claim at the largest scale whose records decide it, else at the largest with any.

    Records decide if they are of all planned seeds, of networks that fit their training data, and not
    exploratory; whether the claim holds plays no part. P values are adjusted over the verdicts chosen.
    """
    judged = [_judged(PROFILES[name]) for name in LARGEST_FIRST]
    chosen = []
    for claim in CLAIMS:
        found = [(card[claim.id], results.get(claim.study)) for results, card in judged]
        whole = [results for verdict, results in found if verdict.verdict in DECIDED]
        begun = [results for verdict, results in found if _known(verdict)]
        chosen.append((claim, next(iter([*whole, *begun]), None)))
    return {v.claim.id: v for v in verdicts(chosen)}


def _known(verdict: Verdict) -> bool:
    """Whether the claim has an effect, or has networks that do not fit their training data."""
    return verdict.effect.n > 0 or verdict.verdict == "not tested"


def at_all_scales() -> list[list[Verdict]]:
    """For each claim the verdict of `best`, then those of the other scales with records of it.

    `minutes` is left out: its runs are some of those of `digits`.
    """
    told, cards = best(), [scorecard(PROFILES[name]) for name in LARGEST_FIRST]
    return [
        [first, *(card[id] for card in cards if _known(card[id]) and card[id].profile != first.profile)]
        for id, first in told.items()
    ]


def claims_table(*studies: str) -> Table:
    """A row for each claim of these studies (all by default) at each scale that has records of it.

    The first row of a claim is the verdict of `best`.
    """
    rows = []
    for first, *others in at_all_scales():
        if not studies or first.claim.study in studies:
            rows += [row(first), *(row(verdict) | {"claim": ""} for verdict in others)]
    return Table(pd.DataFrame(rows))


def effects() -> pd.DataFrame:
    """The rows of `claims_table` for all claims, with effects and intervals as numbers."""
    rows = pd.DataFrame(verdict.as_json() for found in at_all_scales() for verdict in found)
    return rows.assign(low=rows.interval.str[0], high=rows.interval.str[1]).drop(columns="interval")


def row(verdict: Verdict) -> dict[str, str]:
    """A verdict as a row of a table: text by column name."""
    v, effect = verdict, verdict.effect
    said = f"{signed(effect.mean, 2)} {v.claim.unit}" if effect.n else v.reason
    return {
        "claim": v.claim.words,
        "verdict": v.verdict,
        "scale": v.profile,
        INTERVAL: said + f" ({between((effect.low, effect.high), 2)})" * (effect.n > 1),
        "seeds": f"{effect.n} of {v.planned}" if effect.n else "",
        "p, adjusted": v.p_text,
    }


def told(profile: str = PUBLISHED, seeds: int | None = None, settings: str = "") -> list[Verdict]:
    """The verdict on every claim, as `best` chooses it or at one profile."""
    found = best() if profile == PUBLISHED else scorecard(scale(profile, seeds, settings))
    return list(found.values())


def tally(verdicts: Iterable[Verdict]) -> Words:
    """Lists of the claims that got each verdict, as Markdown."""
    claims = {word: [] for word in VERDICTS}
    for v in verdicts:
        claims[v.verdict].append(f"\n- {v.claim.words}" + f" *{v.profile}*" * bool(v.profile))
    lines = [f"**{word.capitalize()}: {len(of)}**\n{''.join(of)}" for word, of in claims.items() if of]
    return Words("\n\n".join(lines))


def picture(verdicts: Iterable[Verdict]) -> Captioned:
    """The figure of every claim with its verdict and its t value."""
    verdicts = list(verdicts)
    caption = (
        "Every claim with its verdict and its t value: the distance of the effect from zero (or, for a claim "
        "of no difference, from the margin) in standard errors, to the right if it supports the claim. "
        "Beyond the upright mark, all of the 95 % interval is on the claim's side; a verdict also corrects "
        "for the number of claims."
    )
    counts = ", ".join(f"{n} {word}" for word, n in Counter(v.verdict for v in verdicts).items())
    alt = f"A row for each of {len(verdicts)} claims: {counts}."
    return Captioned(verdict_rows(verdicts), "fig-scorecard", caption, alt)


def strip() -> str:
    """Markdown for the first page: what weakens the finding, the finding, and the main verdicts."""
    objection = warm_start.objection(published(STUDIES["two_phases"]))
    own = two_phases.at_best_rates(published(STUDIES["rates"]))
    found, told = warm_start.found(published(STUDIES["warm_start"])), best()
    lines = [objection, "", own, "", found, "", "| The paper says | We find | Verdict |", "|---|---|---|"]
    pages = {study.name: study.chapter for study in STUDIES.values()}
    controls = [claim for claim in CLAIMS if claim.figure == CONTROL]
    first = ([claim for claim in q.CLAIMS if claim not in controls][:1] for q in QUESTIONS)
    for claim in [*chain.from_iterable(first), *controls]:
        said, words = row(told[claim.id]), "*Our control:* " * (claim in controls)
        scale = f"; {said['seeds']} seeds, {said['scale']}" * bool(said["seeds"])
        effect = f"{said[INTERVAL]}{scale}" or "not run yet"
        link = f"[{claim.words}](chapters/{pages[claim.study]}.ipynb)"
        lines.append(f"| {words}{link} | {effect} | **{said['verdict']}** |")
    counts = Counter(verdict.verdict for verdict in told.values())
    against = [f"*{v.claim.words[:-1]}*" for v in told.values() if v.verdict == "contradicted"]
    counted = enumerated(f"{counts[word]} {word}" for word in VERDICTS if counts[word])
    told_of_all = f"Of all {len(told)} claims, {counted.replace(' ', ' are ', 1)}."
    if against:
        told_of_all += f" Contradicted: {enumerated(against)}."
    lines += ["", f"The table shows the first claim of each question and our controls. {told_of_all}"]
    return "\n".join(lines) + "\n"
