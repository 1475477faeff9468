import json
import math
import os
import stat
import subprocess
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from repro.analysis import tables
from repro.config import HALF, Dataset, Model, Run, Stage, as_json
from repro.store import records
from repro.store.files import Damaged, set_aside
from repro.store.records import CURVES, Store
from repro.study import Case

RUN = Run(Dataset("digits", 64, 32), Model(2, 1), (Stage(3, HALF), Stage(4)), 16)
ENVIRONMENT = {
    "seconds": 1.25,
    "finished": "2026-01-02T03:04:05+00:00",
    "population": 4,
    "precision": "float32",
    "device": "A processor [4 cores] é",
    "threads": 2,
    "versions": {"python": "3.11"},
    "commit": None,
    "data": "0123456789abcdef",
}


def content(run=RUN, seed=0, **changes):
    random = np.random.default_rng(seed)
    curves = [{name: random.random(s.epochs).tolist() for name in CURVES} for s in run.stages]
    return {"diverged": None, "curves": curves, **ENVIRONMENT, **changes}


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "results" / "smoke")


def forged(store, made=RUN, **changes):
    """A record that says what it likes, its checksum correct."""
    record = {"schema": 1, "id": made.id, "run": as_json(made), **content(made), **changes}
    record = {name: value for name, value in record.items() if value is not ...}
    record["checksum"] = records._checksum(record)
    store.folder.mkdir(parents=True, exist_ok=True)
    store.path(made.id).write_text(json.dumps(record))


def assert_damaged(store, run=RUN):
    with pytest.raises(Damaged) as damage:
        store.read(run.id)
    assert str(store.path(run.id)) in str(damage.value)
    with pytest.warns(UserWarning, match=f"skipped .*{run.id}.json"):
        assert store.load([run.id]) == {}


# Writing and reading


def test_what_is_written_is_read_again(store):
    written = content()
    assert store.write(RUN, **written) is True
    record = store.read(RUN.id)
    assert record.pop("checksum")
    assert record == {"schema": 1, "id": RUN.id, "run": as_json(RUN), **written}
    assert store.ids() == {RUN.id}
    assert [path.name for path in store.folder.iterdir()] == [f"{RUN.id}.json"]
    assert stat.S_IMODE(store.path(RUN.id).stat().st_mode) == 0o644


def test_the_first_record_of_a_run_stands(store):
    store.write(RUN, **content(seed=0))
    before, age = store.path(RUN.id).read_bytes(), store.path(RUN.id).stat().st_mtime_ns
    assert store.write(RUN, **content(seed=1)) is False
    first = content(seed=0)["curves"]
    assert store.difference(RUN, None, first) is None
    assert "train loss from epoch 1 of stage 1 on" in store.difference(RUN, None, content(seed=1)["curves"])
    late = [first[0], {**first[1], "test_accuracy": [*first[1]["test_accuracy"][:3], 0.5]}]
    assert "test accuracy from epoch 4 of stage 2 on" in store.difference(RUN, None, late)
    assert "number of epochs" in store.difference(RUN, 3, first[:1])
    assert store.path(RUN.id).read_bytes() == before
    assert store.path(RUN.id).stat().st_mtime_ns == age
    assert len(list(store.folder.iterdir())) == 1


SIGNS = st.characters(exclude_categories=["Cs"])  # as by default, without asking a codec of each sign


@given(
    st.text(SIGNS, min_size=1, max_size=30)
    | st.sampled_from(["a [1  2]", "[1,\n2]", 'a "[1, 2]"', "\\n [\t]"])
)
def test_any_name_survives(tmp_path_factory, name):
    made = replace(RUN, dataset=replace(RUN.dataset, name=name))
    store = Store(tmp_path_factory.mktemp("names"))
    store.write(made, **content(device=name))
    assert store.read(made.id)["run"]["dataset"]["name"] == name
    assert store.read(made.id)["device"] == name


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False) | st.none(), min_size=4, max_size=4))
def test_losses_come_back_to_the_last_bit(tmp_path_factory, losses):
    written = content()
    written["curves"][1]["train_loss"] = losses
    store = Store(tmp_path_factory.mktemp("losses"))
    store.write(RUN, **written)
    assert store.read(RUN.id)["curves"][1]["train_loss"] == losses


def test_a_record_is_small_and_can_be_read_by_people(store):
    paper = replace(RUN, stages=(Stage(350, HALF), Stage(500)))
    store.write(paper, **content(paper))
    text = store.path(paper.id).read_text()
    lines = text.splitlines()
    assert len(text) < 80_000
    assert len(lines) < 120
    curves = [line for line in lines if line.strip().startswith(tuple(f'"{name}": [' for name in CURVES))]
    assert len(curves) == 6
    assert all(line.rstrip(",").endswith("]") for line in curves)
    assert ' "seconds": 1.25,' in lines
    assert text.endswith("}\n")


def test_numbers_that_json_does_not_have_are_refused_and_leave_nothing(store):
    with pytest.raises(ValueError, match="JSON"):
        store.write(RUN, **content(seconds=math.nan))
    assert not store.folder.exists() or list(store.folder.iterdir()) == []


def test_a_missing_record_is_missing_and_not_damaged(store):
    with pytest.raises(FileNotFoundError):
        store.read(RUN.id)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert store.load([RUN.id]) == {}
    assert store.ids() == set()


def test_only_records_count_as_records(store):
    store.write(RUN, **content())
    (store.folder / f".{RUN.id[::-1]}.json.abc123").write_text("{")  # left by a killed writer
    (store.folder / f"{RUN.id[::-1]}.json.damaged").write_text("{")
    store.snapshot(RUN.id).parent.mkdir()
    store.snapshot(RUN.id).write_text("")
    store.checkpoint(RUN.id).parent.mkdir()
    store.checkpoint(RUN.id).write_text("")
    assert store.ids() == {RUN.id}


def test_records_lie_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("REPRO_RESULTS", str(tmp_path / "elsewhere"))
    assert Store.of("quick").path("ab") == tmp_path / "elsewhere" / "quick" / "ab.json"
    monkeypatch.delenv("REPRO_RESULTS")
    assert records.results_folder() == records.ROOT / "results"


def test_the_commit_is_told_with_a_mark_where_the_code_differs_and_by_hand_without_git(monkeypatch):
    found = records.head.__wrapped__()
    assert found is None or len(found.rstrip("+")) == 40
    assert records.commit() == records.head()
    monkeypatch.setenv("PATH", "/nowhere")
    assert records.head.__wrapped__() is None
    monkeypatch.setenv("REPRO_COMMIT", "0ddba11")
    assert records.commit() == "0ddba11"


# Damage


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A store with one record, its bytes and what they say."""
    store = Store(tmp_path_factory.mktemp("sound"))
    store.write(RUN, **content())
    return store, store.path(RUN.id).read_bytes(), store.read(RUN.id)


@given(share=st.floats(0, 1, exclude_max=True))
def test_a_record_cut_anywhere_is_damaged(sound, share):
    store, whole, _ = sound
    cut = whole[: int(share * (len(whole) - 1))]  # without the last newline it is still whole
    store.path(RUN.id).write_bytes(cut)
    assert_damaged(store)


def assert_found_out(sound, place, byte):
    """A record with one byte replaced is damaged, or says the same, as it does with a tab for a space."""
    store, whole, record = sound
    changed = bytes([*whole[:place], byte, *whole[place + 1 :]])
    store.path(RUN.id).write_bytes(changed)
    try:
        assert store.read(RUN.id) == record
        return False
    except Damaged as damage:
        assert str(store.path(RUN.id)) in str(damage)
        return True


@given(share=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 255))
def test_a_record_with_one_byte_changed_is_damaged_or_says_the_same(sound, share, flip):
    place = int(share * len(sound[1]))
    before = sound[1][place]
    assert assert_found_out(sound, place, before ^ flip) or chr(before) in " \neE0123456789"


def test_a_record_with_another_digit_anywhere_is_damaged(sound):
    digits = [i for i, byte in enumerate(sound[1]) if chr(byte).isdigit()]
    found_out = [assert_found_out(sound, place, sound[1][place] ^ 1) for place in digits[::3]]
    assert len(digits) > 400
    # The seventeenth digit of a number may be another and the number the same.
    assert found_out.count(False) <= 7 * 3


def test_records_swapped_between_runs_are_damaged(store):
    other = replace(RUN, init_seed=1)
    store.write(RUN, **content())
    store.write(other, **content())
    a, b = store.path(RUN.id), store.path(other.id)
    a.rename(a.with_suffix(".tmp"))
    b.rename(a)
    a.with_suffix(".tmp").rename(b)
    assert_damaged(store, RUN)
    assert_damaged(store, other)


CURVE = {name: [0.5] * 4 for name in CURVES}
FIRST = {name: [0.5] * 3 for name in CURVES}
FORGERIES = {
    "another schema": {"schema": 2},
    "no schema": {"schema": ...},
    "the id of another run": {"id": replace(RUN, init_seed=1).id},
    "no id": {"id": ...},
    "another run": {"run": as_json(replace(RUN, init_seed=1))},
    "no run": {"run": ...},
    "half a run": {"run": {"stages": []}},
    "a run that cannot be": {"run": {**as_json(RUN), "batch_size": 0}},
    "a run with a setting that nobody knows": {"run": {**as_json(RUN), "speed": 9}},
    "no curves": {"curves": ...},
    "an empty list of curves": {"curves": []},
    "curves of no dictionary": {"curves": [1, 2]},
    "curves of one stage of two": {"curves": [FIRST]},
    "curves of a stage too many": {"curves": [FIRST, CURVE, CURVE]},
    "curves too short": {"curves": [FIRST, FIRST]},
    "curves too long": {"curves": [FIRST, {name: [0.5] * 5 for name in CURVES}]},
    "curves of several lengths": {"curves": [FIRST, {**CURVE, "train_loss": [0.5] * 3}]},
    "a curve too few": {"curves": [FIRST, {name: CURVE[name] for name in CURVES[:2]}]},
    "an accuracy above one": {"curves": [FIRST, {**CURVE, "test_accuracy": [0.5, 0.5, 0.5, 1.01]}]},
    "an accuracy in percent": {"curves": [FIRST, {**CURVE, "train_accuracy": [50, 60, 70, 80]}]},
    "a negative accuracy": {"curves": [{**FIRST, "test_accuracy": [-0.1, 0.5, 0.5]}, CURVE]},
    "an accuracy that is no number": {"curves": [FIRST, {**CURVE, "test_accuracy": ["0.5"] * 4}]},
    "a loss that is no number": {"curves": [FIRST, {**CURVE, "train_loss": ["0.5"] * 4}]},
    "nothing on divergence": {"diverged": ...},
    "divergence before the first epoch": {"diverged": 1, "curves": []},
    "no seconds": {"seconds": ...},
    "no device": {"device": ...},
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_a_record_that_cannot_be_true_is_damaged_whatever_its_checksum(store, forgery):
    forged(store)
    assert store.read(RUN.id)
    forged(store, **FORGERIES[forgery])
    assert_damaged(store)


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", "3", '"text"', "{", "\ufeff{}", '{"schema": NaN}'])
def test_other_files_are_no_records(store, text):
    store.folder.mkdir(parents=True)
    store.path(RUN.id).write_text(text)
    assert_damaged(store)


def test_a_record_without_its_checksum_is_damaged(store):
    store.write(RUN, **content())
    record = store.read(RUN.id)
    del record["checksum"]
    store.path(RUN.id).write_text(json.dumps(record))
    assert_damaged(store)


def test_a_run_that_diverged_or_was_accurate_early_has_short_curves(store):
    curves = [FIRST, {name: [0.5] * 2 for name in CURVES}]
    curves[1]["train_loss"] = [0.5, None]
    forged(store, curves=curves, diverged=2)
    assert store.read(RUN.id)["diverged"] == 2
    forged(store, curves=curves[:1], diverged=3)
    assert store.read(RUN.id)["diverged"] == 3
    early = replace(RUN, stages=(RUN.stages[0], replace(RUN.stages[1], until=0.9)))
    forged(store, early, curves=curves)
    assert len(store.read(early.id)["curves"][1]["train_loss"]) == 2


def test_load_keeps_the_sound_and_warns_of_the_damaged(store):
    runs = [replace(RUN, init_seed=seed) for seed in range(4)]
    for made in runs[:3]:
        store.write(made, **content(made))
    store.path(runs[1].id).write_text("{}")
    with pytest.warns(UserWarning) as caught:
        found = store.load(made.id for made in [*runs, *runs])
    assert list(found) == [runs[0].id, runs[2].id]
    assert len(caught) == 1
    assert runs[1].id in str(caught[0].message)


def test_a_damaged_record_is_set_aside_and_makes_room(store):
    store.folder.mkdir(parents=True)
    store.path(RUN.id).write_text("{}")
    aside = store.folder / set_aside(store.path(RUN.id))
    assert aside.read_text() == "{}"
    assert aside.name == f"{RUN.id}.json.damaged"
    assert store.ids() == set()
    assert store.write(RUN, **content())
    assert store.read(RUN.id)


# Tables


def cases():
    return [
        Case("fresh", 0, replace(RUN, stages=RUN.stages[1:]), {"width": 2}),
        Case("warm start", 0, RUN, {"width": 2}),
        Case("warm start", 1, replace(RUN, init_seed=1), {"width": 2}),
    ]


def test_test_accuracy_is_the_mean_over_the_last_epochs_of_the_last_stage(store):
    fresh, warm, lacking = cases()
    first = {"train_loss": [9.0] * 3, "train_accuracy": [0.0] * 3, "test_accuracy": [1.0] * 3}
    last = {
        "train_loss": [2.0, 1.0, 0.5, 0.25],
        "train_accuracy": [0.25, 0.5, 0.75, 1.0],
        "test_accuracy": [0.1, 0.2, 0.5, 0.7],
    }
    store.write(fresh.run, **content(curves=[last]))
    store.write(warm.run, **content(curves=[first, last], device="B"))
    table = tables.table([fresh, warm, lacking], store, window=2)
    assert table.test_accuracy.tolist() == pytest.approx([0.6, 0.6])
    assert table.train_accuracy.tolist() == [1.0, 1.0]
    assert table.epochs.tolist() == [4, 4]
    assert table.condition.tolist() == ["fresh", "warm start"]
    assert table.seed.tolist() == [0, 0]
    assert table.width.tolist() == [2, 2]
    assert table.run_id.tolist() == [fresh.run.id, warm.run.id]
    assert table.diverged.tolist() == [False, False]
    assert table.device.tolist() == [ENVIRONMENT["device"], "B"]
    assert table.seconds.tolist() == [1.25, 1.25]
    wide, all_epochs = (tables.table([warm], store, window) for window in (3, 4))
    assert wide.test_accuracy.tolist() == pytest.approx([1.4 / 3])
    assert all_epochs.test_accuracy.tolist() == pytest.approx([0.375])


def test_a_diverged_run_has_a_row_that_says_so(store):
    [_, warm, _] = cases()
    curve = {"train_loss": [2.0, None], "train_accuracy": [0.5, 0.1], "test_accuracy": [0.5, None]}
    store.write(warm.run, **content(curves=[FIRST, curve], diverged=2))
    [row] = tables.table([warm], store, window=2).itertuples()
    assert row.diverged
    assert row.epochs == 2
    assert math.isnan(row.test_accuracy)
    assert tables.curves([warm], store).train_loss.isna().sum() == 1


def test_curves_count_epochs_within_the_stage_and_in_all(store):
    fresh, warm, lacking = cases()
    store.write(fresh.run, **content(fresh.run, seed=1))
    written = content(warm.run, seed=2)
    store.write(warm.run, **written)
    frame = tables.curves([fresh, lacking, warm], store)
    assert len(frame) == 4 + 7
    part = frame[frame.condition == "warm start"]
    assert part.stage.tolist() == [1, 1, 1, 2, 2, 2, 2]
    assert part.epoch.tolist() == [1, 2, 3, 1, 2, 3, 4]
    assert part.total.tolist() == [1, 2, 3, 4, 5, 6, 7]
    for name in CURVES:
        assert part[name].tolist() == [v for curve in written["curves"] for v in curve[name]]
    assert frame[frame.condition == "fresh"].total.tolist() == [1, 2, 3, 4]
    assert set(frame.width) == {2}


def test_tables_of_nothing_are_empty_and_have_their_columns(store):
    table, frame = tables.table(cases(), store, 2), tables.curves(cases(), store)
    assert len(table) == len(frame) == 0
    assert {"condition", "seed", "test_accuracy", "train_accuracy"} <= set(table)
    assert {"condition", "seed", *CURVES} <= set(frame)


def test_a_run_that_diverged_between_two_tests_counts_by_its_last_ones(store):
    """As at `cifar10-small`, where not every epoch is tested."""
    case = Case("fresh", 0, RUN)
    curve = {"train_loss": [1.0, 1.0, None], "train_accuracy": [0.5] * 3, "test_accuracy": [0.4, None, 0.2]}
    store.write(RUN, **content() | {"diverged": 3, "curves": [curve]})
    for median in (False, True):
        assert tables.table([case], store, 3, median).test_accuracy.tolist() == pytest.approx([0.3])


def test_a_damaged_record_is_left_out_of_tables(store):
    fresh, warm, _ = cases()
    for case in (fresh, warm):
        store.write(case.run, **content(case.run))
    store.path(fresh.run.id).write_text("{}")
    with pytest.warns(UserWarning, match=fresh.run.id):
        assert tables.table(cases(), store, 2).condition.tolist() == ["warm start"]
    with pytest.warns(UserWarning, match=fresh.run.id):
        assert set(tables.curves(cases(), store).condition) == {"warm start"}


# Other processes

PRELUDE = """
import os, random, signal, sys, time
from dataclasses import replace
from pathlib import Path
from repro.config import Dataset, Model, Run, Stage
from repro.store.records import CURVES, Store

store = Store(Path(sys.argv[1]))
RUN = Run(Dataset("digits"), Model(2, 1), (Stage(400),))
curves = [{name: [1 / 3] * 400 for name in CURVES}]
environment = dict(seconds=1, precision="float32", device="-", data="-")

def write(seed, **more):
    return store.write(replace(RUN, init_seed=seed), diverged=None, curves=curves, **environment, **more)
"""


def python(code, *arguments):
    command = [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ})
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def test_of_many_writers_of_one_run_exactly_one_wins(store):
    code = """
ready, go = os.pipe()
children = []
for writer in range(6):
    child = os.fork()
    if not child:
        os.close(go)
        os.read(ready, 1)  # returns in all children at once, when the parent closes its end
        os._exit(sum(write(seed, writer=writer) for seed in range(40)))
    children.append(child)
os.close(go)
print(*(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))
"""
    wins = list(map(int, python(PRELUDE + code, store.folder).split()))
    assert len(wins) == 6
    assert sum(wins) == 40
    found = store.load(store.ids())
    assert len(found) == 40
    writers = [record["writer"] for record in found.values()]
    assert [writers.count(writer) for writer in range(6)] == wins
    assert len(list(store.folder.iterdir())) == 40


def test_a_writer_killed_at_any_moment_leaves_whole_records_or_none(store):
    code = """
random.seed(0)
start = 0
for _ in range(12):
    child = os.fork()
    if not child:
        seed = start
        while True:
            write(seed)
            seed += 1
    before = len(store.ids())
    while len(store.ids()) == before:  # it has begun, however busy the machine
        time.sleep(0.001)
    time.sleep(random.uniform(0, 0.05))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    start += 100_000
"""
    python(PRELUDE + code, store.folder)
    names = store.ids()
    assert len(names) > 12
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert store.load(names).keys() == names


def test_records_are_read_and_sweeps_planned_without_torch(store):
    store.write(RUN, **content())
    code = """
import sys
from pathlib import Path
import repro.profiles, repro.questions
import repro.analysis.recorded, repro.analysis.tables, repro.store.records
import repro.sweep.plans, repro.sweep.dispatch
cases = [case for study in repro.questions.studies() for case in study.cases(repro.profiles.profile("quick"))]
made = repro.sweep.plans.plan(case.run for case in cases)
sum(group.steps for group in made.groups)
repro.analysis.tables.table(cases, repro.store.records.Store(Path(sys.argv[1])), 2)
repro.store.records.Store(Path(sys.argv[1])).read(sys.argv[2])
print(*sorted({"torch", "torchvision"} & set(sys.modules)))
"""
    assert python(code, store.folder, RUN.id).strip() == ""
