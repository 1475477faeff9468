"""Published records agree with each other, with the repository, and with training anew."""

import json
import math
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

import matplotlib as mpl
import pytest
import torch

from repro import cli, profiles, scorecard
from repro.analysis import recorded
from repro.config import PRECISIONS
from repro.data import downloads
from repro.figures import common
from repro.questions import by_priority, studies
from repro.questions.warm_start import warm_start
from repro.running import run_study
from repro.store import audit, records
from repro.store.records import Store
from repro.study import LAST
from repro.sweep import dispatch, plans, trainer
from repro.training.populations import Member, Population

ROOT = Path(__file__).resolve().parents[1]
MOSAICS = ROOT.parent / "shared" / "data"
PUBLISHED = re.findall(r"^!(results/[\w-]+)/$", (ROOT / ".gitignore").read_text(), re.MULTILINE)
FOLDERS = [ROOT / name for name in sorted(PUBLISHED) if any((ROOT / name).glob("*.json"))]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Six records of `smoke`, made by the present commit, and that commit."""
    head = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True)
    store, commit = Store(tmp_path_factory.mktemp("trained") / "smoke"), head.stdout.strip()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REPRO_COMMIT", commit)
        dispatch.execute(plans.plan(case.run for case in warm_start(profiles.profile("smoke"))), store)
    return store, commit


@pytest.fixture
def store(trained, monkeypatch):
    """A copy of these records for a test to change."""
    made, commit = trained
    monkeypatch.setenv("REPRO_COMMIT", commit)
    store = Store.of("smoke")
    shutil.copytree(made.folder, store.folder)
    return store


def changed(store, **changes):
    """Name of a record after a change that its checksum does not betray."""
    name = min(store.ids())
    record = store.read(name) | changes
    record["checksum"] = records._checksum(record)
    store.path(name).write_text(json.dumps(record))
    return name


def test_sound_records_have_no_problems(store):
    rows, problems = audit.verify(store.folder)
    assert problems == [] and len(rows) == 6
    [row] = audit.summary(rows)
    assert row.records == 6 and row.precision in PRECISIONS and row.hours < 1


WRONG = {
    "another commit": ({"commit": "0" * 40}, "made by 0000"),
    "uncommitted code": ({"commit": "abc+"}, "made by abc"),
    "other images": ({"data": "f" * 16}, "made from images ffff"),
    "another time": ({"finished": "2999-01-01T00:00:00+00:00"}, "finished in the future"),
    "no time at all": ({"finished": "soon"}, "malformed"),
    "no work": ({"seconds": 0}, "no seconds"),
    "nobody": ({"population": 0}, "no population"),
    "another schema": ({"schema": 99}, "not a record of schema"),
    "no versions": ({"versions": {}}, "malformed"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_wrong_with_a_record_is_named(store, kind):
    changes, words = WRONG[kind]
    if "commit" in changes and audit._commits() is None:
        pytest.skip("no git history here")
    name = changed(store, **changes)
    _, problems = audit.verify(store.folder)
    assert len(problems) == 1 and name in problems[0] and words in problems[0]


@pytest.mark.parametrize("landed", [True, False])
def test_a_commit_that_was_rewritten_before_it_landed_is_known_by_the_one_that_did(store, landed):
    if audit._commits() is None:
        pytest.skip("no git history here")
    name, old, new = changed(store, commit="0" * 40), "0" * 40, records.commit() if landed else "1" * 40
    (store.folder.parent / audit.REWRITTEN).write_text(json.dumps({old: new}))
    _, problems = audit.verify(store.folder)
    assert landed == (problems == [])
    assert all(name in line and "made by 0000" in line for line in problems)


def test_edited_and_foreign_files_are_named_and_the_exit_code_says_so(store, capsys):
    name = min(store.ids())
    text = store.path(name).read_text()
    store.path(name).write_text(text.replace('"seconds": ', '"seconds": 1'))
    (store.folder / "notes.txt").write_text("")
    with pytest.raises(SystemExit) as end:
        cli.main(["results", "verify", "smoke"])
    said = capsys.readouterr().err
    assert end.value.code == 1 and said.count("\n") == 2
    assert "checksum differs" in said and "notes.txt: no record" in said


def test_an_unknown_folder_is_one_line(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["results", "verify", "labtop"])
    assert end.value.code == 2 and "no results of 'labtop'" in capsys.readouterr().err


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_committed_records_are_sound_and_their_page_says_whence_they_are(folder):
    rows, problems = audit.verify(folder)
    assert problems == []
    page = (ROOT / "results" / "README.md").read_text()
    for row in audit.summary(rows):
        assert re.search(rf"^{re.escape(row.device)} .*{row.commit} .* {row.records} ", page, re.MULTILINE), (
            row
        )


def test_the_gap_is_what_a_reader_computes_without_this_package(monkeypatch):
    [code] = re.findall(r"```python\n(.*?)```", (ROOT / "results" / "README.md").read_text(), re.DOTALL)
    assert "repro" not in code
    monkeypatch.chdir(ROOT)
    exec(code, computed := {})
    folder = Store(ROOT / "results" / "cifar10")
    [study] = studies(["warm_start"])
    shown = recorded.results(study, profiles.profile("cifar10"), store=folder).gaps.set_index("seed").gap
    assert len(shown) == 5
    assert computed["gap"].to_dict() == pytest.approx(shown.to_dict(), abs=1e-9)


def test_pretraining_compiled_and_not_differs_by_what_the_page_says():
    accuracies = {
        "585f4d61001a36512c5f2dbad6b9649ed8681eeb": {},
        "585f4d61001a36512c5f2dbad6b9649ed8681eeb+": {},
    }
    for path in sorted((ROOT / "results" / "cifar10").glob("*.json")):
        record = json.loads(path.read_text())
        first, seeds = record["run"]["stages"][0], accuracies.get(record["commit"])
        if seeds is not None and first["data"]["parts"] == 2:
            mean = 100 * statistics.mean(record["curves"][0]["test_accuracy"][-10:])
            assert mean == seeds.setdefault(record["run"]["init_seed"], mean), (
                "trained once for all conditions"
            )
    eager, compiled = accuracies.values()
    assert eager.keys() == compiled.keys() == set(range(5))
    differences = [compiled[seed] - eager[seed] for seed in eager]
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    means = [statistics.mean(values.values()) for values in accuracies.values()]
    page = " ".join((ROOT / "results" / "README.md").read_text().split())
    assert f"is {means[0]:.2f} % and {means[1]:.2f} %" in page
    difference = f"{statistics.mean(differences):.2f}".replace("-", "−")
    assert f"is {difference} points (standard error {error:.2f})" in page


def test_the_scale_of_downloaded_data_shows_what_is_recorded_and_trains_nothing():
    results = run_study("warm_start", "laptop", device="none")
    assert (len(results.table), results.missing) == (0, 10)
    assert results.gaps.empty and not Store.of("laptop").folder.exists()


@pytest.mark.parametrize("names", [(), ("reset", "rates", "warm_start")], ids=["all", "named"])
def test_what_says_most_is_trained_first_in_whatever_order_studies_are_named(names):
    chosen = profiles.profile("cifar10")
    cases = [case for study in studies(names) for case in study.cases(chosen)]
    order = [run.id for run in by_priority(cases)]
    assert set(order) == {case.run.id for case in cases} and len(order) == len(set(order))
    first = {case.run.id for case in warm_start(chosen)}
    assert set(order[: len(first)]) == first
    rank = {run_id: place for place, run_id in enumerate(order)}
    wanted = {case.run.id for case in cases if case.priority < LAST}
    assert max(rank[name] for name in wanted) < min(rank[name] for name in set(order) - wanted)


def test_the_first_page_shows_and_says_what_the_records_do(tmp_path, monkeypatch):
    """Its figure and its account are drawn from the published records."""
    monkeypatch.setenv("REPRO_RESULTS", str(ROOT / "results"))
    chosen, drawn = profiles.profile("cifar10"), tmp_path / "drawn.svg"
    [study] = studies(["warm_start"])
    figure = common.learning_curves(recorded.results(study, chosen).curves, chosen.window)
    with mpl.rc_context({"svg.hashsalt": "repro"}):
        figure.savefig(drawn, metadata={"Date": None, "Creator": None})
    assert drawn.read_bytes() == (ROOT / "book" / "_static" / "warm_start.svg").read_bytes()
    assert (ROOT / "book" / "strip.md").read_text() == scorecard.strip()


# Records did not name a processor's vectors at first.
VECTORS = {("AMD EPYC", "bf16"): "AMD EPYC (AVX512)", ("AMD EPYC", "float32"): "AMD EPYC (AVX2)"}


def test_the_table_of_effects_has_each_claim_first_as_it_is_told_and_then_at_other_scales(monkeypatch):
    """Anyone may take it along; its numbers are those of the verdicts."""
    monkeypatch.setenv("REPRO_RESULTS", str(ROOT / "results"))
    table, told = scorecard.effects(), scorecard.best()
    first = table.drop_duplicates("id").set_index("id")
    assert list(first.index) == list(told)
    for id, verdict in told.items():
        assert first.verdict[id] == verdict.verdict and first.profile[id] == verdict.profile
        assert first.loc[id, ["effect", "low", "high"]].tolist() == pytest.approx(
            [verdict.effect.mean, verdict.effect.low, verdict.effect.high], nan_ok=True
        )
    assert not table.duplicated(["id", "profile"]).any() and {"cifar10", "laptop"} <= set(table.profile)


def origin(device, precision, versions):
    """What the bits of a run depend on, besides its population."""
    libraries = ("torch", "llvmlite") if precision == "float32" else ("torch",)
    return VECTORS.get((device, precision), device), precision, *map(versions.get, libraries)


@pytest.mark.slow
def test_training_anew_finds_the_beginning_of_published_curves(tmp_path):
    """Bitwise where machine, precision and libraries are the same, else within some percent of the loss."""
    store = Store(ROOT / "results" / "laptop")
    cases = (case for study in studies() for case in study.cases(profiles.profile("laptop")))
    runs = {case.run.id: case.run for case in cases if case.run.parent is None}
    found = store.load(runs)
    kinds = {
        (*origin(r["device"], r["precision"], r["versions"]), r["population"]): name
        for name, r in sorted(found.items())
    }
    if not kinds:
        pytest.skip("no record of the profile laptop is published here")
    if not (MOSAICS / "unpack_cifar10.py").exists():
        pytest.skip("the CIFAR-10 mosaics do not lie beside this checkout")
    script = [sys.executable, str(MOSAICS / "unpack_cifar10.py"), str(tmp_path / "copy.npz")]
    subprocess.run(script, check=True)
    downloads.import_npz("cifar10", tmp_path / "copy.npz")
    cpu = torch.device("cpu")
    for (*there, size), name in kinds.items():
        record, curve = found[name], found[name]["curves"][0]
        here = origin(trainer.device_name(cpu), record["precision"], trainer.versions())
        torch.set_num_threads(record["threads"])
        population = Population([Member(runs[name])] * size, cpu, record["precision"])
        for epoch in range(2):
            losses, accuracies = population.train_epoch()
            assert math.isclose(losses[0], curve["train_loss"][epoch], rel_tol=0.05)
            if here == tuple(there):
                assert losses == [curve["train_loss"][epoch]] * size
                assert accuracies == [curve["train_accuracy"][epoch]] * size
