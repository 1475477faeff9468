"""What a sweep survives: other sweeps, kills, damage, full disks, failures; with the real engine."""

import contextlib
import dataclasses
import errno
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

from repro import cli, profiles
from repro.config import HALF, Dataset, Model, Run, Stage
from repro.questions import STUDIES
from repro.store import files
from repro.store.files import Damaged
from repro.store.records import Store
from repro.sweep import costs, dispatch, leases, machine, plans
from repro.sweep.messages import End, Ended
from repro.sweep.processes import Child, Children, Here
from repro.sweep.progress import Progress
from repro.training import loop, snapshots

TINY = ["train=64", "test=32", "width=2", "batch_size=16"]
LONG = [*TINY, "tuning_epochs=24"]
KILLS = int(os.environ.get("REPRO_KILLS", "4"))  # 50 for the long version


def warm_start(seeds=3, settings=TINY):
    return [case.run for case in STUDIES["warm_start"].cases(profiles.profile("smoke", settings, seeds))]


def execute(runs, store, **changes):
    settings = {"device": "cpu", "precision": "float32", "slots": 1} | changes
    return dispatch.execute(plans.plan(runs), store, **settings)


def here(train):
    """This process as a place where networks are trained by this function."""
    return lambda stopping: contextlib.nullcontext(Here(stopping, train=train))


def saved_often(*arguments, **settings):
    """Training with a checkpoint after every epoch."""
    return loop.train_population(*arguments, **settings, every=0)


def outcomes(store):
    """Curves of every record, all of them sound."""
    return {name: (store.read(name)["curves"], store.read(name)["diverged"]) for name in store.ids()}


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("undisturbed"))
    assert execute(warm_start(), store) == dispatch.Outcome()
    return outcomes(store)


# Leases


def busy(folder, *names):
    try:
        with leases.held(folder, names):
            return False
    except leases.Busy:
        return True


def test_who_holds_a_lease_keeps_others_out_and_all_or_none_are_taken(tmp_path):
    with leases.held(tmp_path, ["b", "c"]):
        assert busy(tmp_path, "b")
        assert busy(tmp_path, "a", "c")
        assert not busy(tmp_path, "a")
        with pytest.raises(leases.Busy, match=f"process {os.getpid()} on "), leases.held(tmp_path, "c"):
            pass
    assert list(tmp_path.iterdir()) == []
    assert not busy(tmp_path, "b", "c")


HOLD = "import sys, time\nfrom repro.sweep import leases\nfrom pathlib import Path\n"
HOLD += "with leases.held(Path(sys.argv[1]), ['a']):\n    print('held', flush=True)\n    time.sleep(60)"


def test_a_lease_ends_with_the_process_that_held_it(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout.readline() == "held\n"
        assert busy(tmp_path, "a")
        holder.kill()
    assert (tmp_path / "a").exists()
    assert not busy(tmp_path, "a")


def test_a_lease_of_another_machine_ends_when_it_is_no_longer_touched(tmp_path):
    lease = tmp_path / "a"
    for holder in ("elsewhere 1234-5678 99", ""):  # the second: killed, or out of room, before it was named
        lease.write_text(holder)
        assert busy(tmp_path, "a")
        then = time.time() - leases.EXPIRY - 5
        os.utime(lease, (then, then))
        assert not busy(tmp_path, "a")
        assert not lease.exists()
    with leases.held(tmp_path, ["a"], beat=0.02):
        os.utime(lease, (then, then))
        deadline = time.monotonic() + 10
        while lease.stat().st_mtime < then + 60:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_of_many_that_find_an_abandoned_lease_one_takes_it(tmp_path):
    inside, most, taken = [], [], []
    start = threading.Barrier(8)

    def compete():
        start.wait()
        for _ in range(20):
            try:
                with leases.held(tmp_path, ["a", "b"]):
                    inside.append(1)
                    most.append(len(inside))
                    time.sleep(0.001)
                    inside.pop()
                    taken.append(1)
            except leases.Busy:
                time.sleep(0.001)

    (tmp_path / "a").write_text(f"{leases.machine()} 999999")
    (tmp_path / "b").write_text(f"{leases.machine()} 999999")
    threads = [threading.Thread(target=compete) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1}
    assert taken
    assert list(tmp_path.iterdir()) == []


# Several sweeps on one store


def together(store, monkeypatch, *several):
    """Steps that sweeps of these runs train, at the same time in threads of this process that tell apart."""
    monkeypatch.setattr(dispatch, "PAUSE", 0.05)
    slow = [Progress(show=lambda progress: time.sleep(0.1)) for _ in several]
    ends = []
    sweeps = [
        threading.Thread(target=lambda r=runs, p=progress: ends.append(execute(r, store, progress=p)))
        for runs, progress in zip(several, slow, strict=True)
    ]
    for thread in sweeps:
        thread.start()
    for thread in sweeps:
        thread.join()
    assert ends == [dispatch.Outcome() for _ in several]
    return sum(progress.steps_done for progress in slow)


def test_a_run_in_training_elsewhere_is_waited_for_and_used(store, undisturbed, monkeypatch):
    with pytest.warns(UserWarning, match="is in training by process .*: waiting for it"):
        steps = together(store, monkeypatch, warm_start(), warm_start())
    assert steps == plans.plan(warm_start()).steps
    assert outcomes(store) == undisturbed


@pytest.mark.filterwarnings("ignore:group .* is in training by")
def test_sweeps_that_share_some_runs_train_these_once(store, monkeypatch):
    few, many = warm_start(2), warm_start(4)  # in groups of other ids
    assert together(store, monkeypatch, few, many) == plans.plan(many).steps
    assert store.ids() == {run.id for run in many}


RUN = """
import contextlib, os, sys
from repro import profiles
from repro.questions import STUDIES
from repro.store import records
from repro.sweep import dispatch, plans, processes
from repro.sweep.progress import Progress

def sweep(slots):
    def train(*arguments, **named):  # with a checkpoint after every epoch
        from repro.training import loop

        return loop.train_population(*arguments, **named, every=0)

    def here(stopping):
        return contextlib.nullcontext(processes.Here(stopping, train=train))

    store, progress, place = records.Store.of("smoke"), Progress(), here if slots == "1" else None
    outcome = dispatch.execute(
        made, store, device="cpu", precision="float32", slots=int(slots), progress=progress, place=place
    )
    return progress.steps_done, 1 if outcome.failures else 0 if outcome.finished else 3

slots, *settings = sys.argv[1:]
dispatch.PAUSE = 0.2
cases = STUDIES["warm_start"].cases(profiles.profile("smoke", settings, 3))
made = plans.plan(c.run for c in cases)
if slots != "many":
    print("go", flush=True)
    sys.exit(sweep(slots)[1])
dispatch.execute(made, records.Store.of("compiled"), device="cpu", precision="float32", slots=1)
for line in sys.stdin:  # begins a sweep as a copy of this process, whose kernels are compiled, or ends one
    slots, _, folder = line.strip().partition(" ")
    if slots == "end":
        print(os.waitstatus_to_exitcode(os.waitpid(int(folder), 0)[1]), flush=True)
    elif pid := os.fork():
        print(pid, flush=True)
    else:
        os.environ["REPRO_RESULTS"] = folder
        steps, code = sweep(slots)
        with open(f"{folder}/steps{os.getpid()}", "w") as told:
            told.write(str(steps))
        os._exit(code)
"""


def sweep_process(slots, settings=LONG, **named):
    command = [sys.executable, "-W", "ignore", "-c", RUN, str(slots), *settings]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen(command, text=True, env=environment, **pipes, **named)


class Starter:
    """A process that has imported PyTorch, and begins sweeps in processes that are copies of it."""

    def __init__(self, process):
        self.process = process

    def _asked(self, *words):
        print(*words, file=self.process.stdin, flush=True)
        return int(self.process.stdout.readline())

    def begin(self, slots, folder):
        """The process id of a sweep with its records in a folder."""
        folder.mkdir(exist_ok=True)
        return self._asked(slots, folder)

    def end(self, sweep):
        """The exit status of a sweep, once it has ended."""
        return self._asked("end", sweep)


@pytest.fixture(scope="module")
def starter(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REPRO_RESULTS", str(tmp_path_factory.mktemp("starter")))
        process = sweep_process("many")
    with process:
        yield Starter(process)
        process.stdin.close()


@pytest.mark.slow
def test_two_sweeps_in_processes_of_their_own_train_each_run_once(starter, tmp_path):
    runs = warm_start(settings=LONG)
    both = [starter.begin(1, tmp_path) for _ in range(2)]
    assert [starter.end(sweep) for sweep in both] == [0, 0]
    assert sum(int((tmp_path / f"steps{sweep}").read_text()) for sweep in both) == plans.plan(runs).steps
    assert outcomes(Store(tmp_path / "smoke")).keys() == {run.id for run in runs}


# Kills


def children_of(pid):
    """Process ids of the children of a process, as the kernel tells."""
    with contextlib.suppress(OSError):
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs /proc to find children")
def test_kills_at_random_moments_lose_nothing_and_change_nothing(starter, tmp_path):
    """Of drivers and of children; a sweep is gone on with until it is whole, then another is begun."""
    chance = random.Random(int(os.environ.get("REPRO_SEED", "0")))
    kills, whole, orphans, spans = {"sweep": 0, "child": 0}, 0, [], {}
    for slots in (1, 2):
        start = time.monotonic()
        assert starter.end(starter.begin(slots, tmp_path / f"undisturbed{slots}")) == 0
        spans[slots] = time.monotonic() - start
    expected, other = (outcomes(Store(tmp_path / f"undisturbed{slots}" / "smoke")) for slots in (1, 2))
    assert len(expected) == 6
    assert other == expected
    while sum(kills.values()) < KILLS or not whole:
        slots, folder = 2 if sum(kills.values()) % 4 == 0 else 1, tmp_path / f"sweep{whole}"
        start, sweep = time.monotonic(), starter.begin(slots, folder)
        moment = start + chance.uniform(0, spans[slots])
        while alive(sweep) and time.monotonic() < moment:
            time.sleep(0.002)
        children = children_of(sweep)
        if alive(sweep) and sum(kills.values()) < KILLS:
            victim = chance.choice(["sweep", "child", "child"] if children else ["sweep"])
            with contextlib.suppress(ProcessLookupError):
                os.kill(sweep if victim == "sweep" else chance.choice(children), signal.SIGKILL)
                kills[victim] += 1
                orphans += children if victim == "sweep" else []
        code, store = starter.end(sweep), Store(folder / "smoke")
        assert code in (0, -signal.SIGKILL)
        assert outcomes(store).items() <= expected.items()  # each of them sound, and as it would be
        if code == 0:
            spans[slots] = time.monotonic() - start  # as busy as the machine is by now
            assert outcomes(store) == expected
            assert not list(store.checkpoint("x").parent.glob("*.pt"))
            whole += 1
    deadline = time.monotonic() + 300
    while any(map(alive, orphans)):
        assert time.monotonic() < deadline, "a child outlived its sweep"
        time.sleep(0.1)
    print(f"kills: {kills}; sweeps completed: {whole}; children left alone, all gone: {len(orphans)}")


@pytest.mark.slow
def test_an_interrupt_while_children_start_shows_no_traceback():
    with sweep_process(2, stderr=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout.readline() == "go\n"
        deadline = time.monotonic() + 300
        while len(children_of(process.pid)) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.3)  # the children import
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        _, errors = process.communicate(timeout=600)
    assert process.returncode == 3
    assert errors == ""


# Going on


@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("asked", [True, False], ids=["SIGTERM", "killed"])
def test_resumed_at_random_epochs_a_sweep_comes_to_the_same_end_bit_for_bit(store, tmp_path, seeds, asked):
    class Killed(BaseException):
        """Nothing catches it, and nothing is saved for it, as where a process is killed."""

    runs, calm = warm_start(seeds, [*TINY, "tuning_epochs=9"]), Store(tmp_path / "calm")
    execute(runs, calm)
    epochs = random.Random(seeds).sample(range(1, 10), 3)  # from one interruption to the next
    interrupted = 0
    for count in epochs:
        told = []

        def show(progress, told=told, count=count):
            told += [progress.steps_done] if progress.steps_done and progress.steps_done not in told else []
            if len(told) == count:
                told.append(None)
                if not asked:
                    raise Killed
                signal.raise_signal(signal.SIGTERM)

        try:
            progress = Progress(show=show)
            interrupted += not execute(runs, store, progress=progress, place=here(saved_often)).finished
        except Killed:
            interrupted += 1
    assert interrupted >= 1
    assert execute(runs, store, place=here(saved_often)) == dispatch.Outcome()
    assert outcomes(store) == outcomes(calm)


# Damage


def damage(path, other, kind, chance):
    """Change a stored file in one of the ways that files go bad."""
    whole = path.read_bytes()
    place = chance.randrange(len(whole))
    if kind == "truncated":
        path.write_bytes(whole[: place - len(whole) // 2] if place > len(whole) // 2 else whole[:place])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "foreign":
        path.write_bytes(chance.randbytes(chance.randrange(1, 500)))
    elif kind == "swapped":
        shutil.copy(other, path)
    elif kind == "future":
        path.write_bytes(
            whole.replace(b'"schema": 1', b'"schema": 2', 1).replace(b"repro-1 ", b"repro-2 ", 1)
        )
    else:  # a flipped bit, of a digit or a letter where the file is text
        while path.suffix == ".json" and not chr(whole[place]).isalnum():
            place = chance.randrange(len(whole))
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 2]) + whole[place + 1 :])


KINDS = ["truncated", "empty", "foreign", "swapped", "future", "flipped"]


@pytest.fixture(scope="module")
def halfway(tmp_path_factory):
    """A store with records, networks, and the checkpoint of a sweep that was stopped."""
    store = Store(tmp_path_factory.mktemp("halfway"))
    execute(warm_start(2), store)
    told = []

    def show(progress):
        told.append(progress.steps_done)
        if len(set(told)) == 4:
            signal.raise_signal(signal.SIGTERM)

    assert not execute(warm_start(5), store, progress=Progress(show=show)).finished
    assert len(list(store.checkpoint("x").parent.iterdir())) == 1
    return store


def read(store, path):
    if path.suffix == ".json":
        return store.read(path.stem)
    return snapshots.load(path)


def test_200_damaged_files_are_all_named_and_none_is_used(halfway, tmp_path):
    chance, silent = random.Random(0), 0
    for number in range(200):
        folder = tmp_path / str(number)
        shutil.copytree(halfway.folder, folder)
        store, paths = Store(folder), sorted(p for p in folder.rglob("*") if p.is_file())
        path, kind = chance.choice(paths), KINDS[number % len(KINDS)]
        alike = [p for p in paths if p.suffix == path.suffix and p != path]
        good = read(store, path)
        damage(path, chance.choice(alike), kind, chance)
        try:
            found = read(store, path)
        except Damaged as error:
            assert str(path) in str(error), kind
        else:  # the seventeenth digit of a number may be another and the number the same
            silent += 1
            assert kind == "flipped" and path.suffix == ".json" and found == good
        shutil.rmtree(folder)
    assert silent <= 4


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    """What a sweep of five seeds comes to in float64."""
    store = Store(tmp_path_factory.mktemp("exact"))
    assert execute(warm_start(5), store, precision="float64") == dispatch.Outcome()
    return outcomes(store)


@pytest.mark.parametrize("round", range(6))
def test_a_sweep_repairs_a_store_of_damaged_files(halfway, exact, tmp_path, round):
    chance = random.Random(round)
    folder = tmp_path / "store"
    shutil.copytree(halfway.folder, folder)
    store = Store(folder)
    records, networks = sorted(folder.glob("*.json")), sorted(store.snapshot("x").parent.iterdir())
    [checkpoint] = store.checkpoint("x").parent.iterdir()
    hurt = {}
    for path in [checkpoint] if round % 2 else [*records[:3], *networks[1:]]:
        damage(path, records[3] if path in records else networks[0], KINDS[round], chance)
        hurt[path] = path.read_bytes()
    with pytest.warns(UserWarning) as warned:
        assert execute(warm_start(5), store) == dispatch.Outcome()
    said = "\n".join(str(warning.message) for warning in warned)
    for path, content in hurt.items():
        if (
            path not in networks or path.with_name(f"{path.name}.damaged").exists()
        ):  # a network is looked at where it is needed
            assert str(path) in said
            assert path.with_name(f"{path.name}.damaged").read_bytes() == content
    for name, (curves, _) in exact.items():
        for stage, expected in zip(store.read(name)["curves"], curves, strict=True):
            assert stage["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-3)
    assert store.ids() == exact.keys()
    assert not list(store.checkpoint("x").parent.glob("*.pt"))


def test_files_set_aside_never_take_the_place_of_each_other(tmp_path):
    path = tmp_path / "a.json"
    for content in ("one", "two", "three"):
        path.write_text(content)
        files.set_aside(path)
    files.set_aside(path)  # which another process has set aside already
    found = {p.name: p.read_text() for p in tmp_path.iterdir()}
    assert found == {"a.json.damaged": "one", "a.json.damaged2": "two", "a.json.damaged3": "three"}


def test_half_written_files_of_killed_writers_are_removed_and_those_of_live_ones_are_not(store):
    store.folder.mkdir()
    old, new = (store.folder / f".{name}.json.abc.partial" for name in ("old", "new"))
    for path in (old, new):
        path.write_text("{")
    then = time.time() - files.ABANDONED - 60
    os.utime(old, (then, then))
    execute(warm_start(1), store)
    assert [p for p in (old, new) if p.exists()] == [new]


def test_a_checkpoint_left_behind_by_a_sweep_killed_at_its_very_end_is_removed(store):
    runs = warm_start(1)
    execute(runs, store)
    left = [store.checkpoint(f"{group.id}-1") for group in plans.plan(runs).groups]
    other = store.checkpoint("0123456789abcdef-1")  # of a sweep of other runs, which may go on from it
    for path in (*left, other):
        path.touch()
    assert execute(runs, store) == dispatch.Outcome()
    assert list(other.parent.iterdir()) == [other]


def test_a_network_of_another_shape_is_set_aside(store):
    runs = warm_start(2)
    execute(runs, store)
    wide = dataclasses.replace(runs[0], model=Model(4, 1))
    execute([wide], store)
    parent = next(run.parent for run in runs if run.parent)
    snapshot = snapshots.Snapshot.load(store.snapshot(parent.id))
    snapshot.state.pop("module6.bias")
    snapshot.save(store.snapshot(parent.id))
    for path in store.folder.glob("*.json"):
        path.unlink()
    with pytest.warns(UserWarning, match=f"{parent.id}.pt: not a network of this shape; set aside as"):
        assert execute(runs, store) == dispatch.Outcome()


def test_a_second_result_is_compared_and_the_first_stands(store):
    """As where a lease expired while its holder slept: the records are back before the training ends."""
    runs = warm_start(1)
    execute(runs, store)
    before = {path: path.read_bytes() for path in store.folder.glob("*.json")}

    def again(precision):
        for path in before:
            path.unlink()

        def show(progress):
            for path, content in before.items() if progress.steps_done else ():
                path.write_bytes(content)

        return execute(runs, store, precision=precision, progress=Progress(show=show))

    assert again("float32") == dispatch.Outcome()
    with pytest.warns(UserWarning) as told:
        assert again("float64") == dispatch.Outcome()
    assert {str(warning.message).partition(": ")[0] for warning in told} == {
        f"run {run.id} was trained twice and its curves differ" for run in runs
    }
    assert {path: path.read_bytes() for path in store.folder.glob("*.json")} == before


# Failures


def failing(run, error):
    """This process as a place where the end of a run raises an error, amid others that train with it."""

    def train(*arguments, **settings):
        for p, made, end in loop.train_population(*arguments, **settings):
            if made.id == run.id:
                raise error
            yield p, made, end

    return here(train)


def test_a_run_that_fails_is_tried_alone_and_the_others_go_on(store, undisturbed, capfd):
    runs = warm_start()
    lame = next(run for run in runs if run.parent is None)
    place = failing(lame, ZeroDivisionError("once, and alone again"))
    with pytest.warns(UserWarning, match="ZeroDivisionError: once, and alone again; now 1 at a time"):
        outcome = execute(runs, store, place=place)
    assert outcome.finished
    assert outcome.failures == [f"run {lame.id}: ZeroDivisionError: once, and alone again"]
    assert store.ids() == {run.id for run in runs} - {lame.id}
    assert capfd.readouterr().err.count("Traceback") == 1
    for name, (curves, _) in outcomes(store).items():
        assert curves[-1]["train_loss"] == pytest.approx(undisturbed[name][0][-1]["train_loss"], rel=1e-3)


def test_what_starts_from_a_run_that_failed_is_given_up_and_nothing_else(store, capfd):
    half = [Run(Dataset("digits", 64, 32), Model(2, 1), (Stage(1, HALF),), 16, s, s, s) for s in range(3)]
    runs = [*half, *(dataclasses.replace(r, stages=(*r.stages, Stage(2))) for r in half)]
    with pytest.warns(UserWarning, match="now 1 at a time"):
        outcome = execute(runs, store, place=failing(half[1], ValueError("no")))
    assert outcome.finished and len(outcome.failures) == 1
    assert store.ids() == {run.id for run in runs} - {half[1].id, runs[4].id}


@pytest.mark.filterwarnings("ignore:group .* networks at once")
def test_networks_too_large_together_are_trained_by_halves(store, undisturbed):
    def small(members, *rest, **settings):
        if len(members) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loop.train_population(members, *rest, **settings)

    with pytest.warns(
        UserWarning, match="6 networks at once need more memory than there is; now 3 at a time"
    ):
        assert execute(warm_start(), store, place=here(small)) == dispatch.Outcome()
    assert {store.read(name)["population"] for name in store.ids()} <= {1, 2}
    assert store.ids() == undisturbed.keys()


def test_a_network_larger_than_memory_is_one_line_with_a_width_that_fits(capfd):
    with pytest.raises(SystemExit) as end:
        cli.main(["run", "warm_start", "--profile", "smoke", "--seeds", "1", "--set", "width=99999"])
    lines = capfd.readouterr().err.splitlines()
    assert end.value.code == 1
    assert len(lines) == 2
    said = r"GiB of memory here; width=(\d+) with batch_size=16 would fit"
    [fits] = {int(re.search(said, line)[1]) for line in lines}
    wide = [dataclasses.replace(warm_start(1)[0], model=Model(w, 1)) for w in (fits, 2 * fits)]
    small, large = (costs.PROCESS + 2 * costs.training_bytes(run) for run in wide)
    assert small <= machine.memory() < large


def test_a_child_killed_again_and_again_is_given_up_with_a_word_on_memory(store):
    class Shot(Child):
        def start(self, job):
            super().start(job)
            self.process.kill()

    def place(stopping):
        return contextlib.closing(Children([Shot(1), Shot(1)]))

    outcome = execute(warm_start(1)[:1], store, place=place)
    assert outcome.finished
    [line] = outcome.failures
    assert "tried 3 times: its process was killed (SIGKILL), as systems do that run out of memory" in line


def test_each_piece_of_a_group_that_was_split_is_tried_three_times_and_given_up(store):
    class Deadly:
        slots, tried = 1, []

        def start(self, job):
            self.job = job

        def listen(self, hear):
            self.tried.append(self.job.part.id)
            together = len(self.job.part.trajectories) > 1
            yield self.job, Ended(End.SPLIT, size=1) if together else Ended(End.KILLED, "killed")

    runs = [run for run in warm_start() if len(run.stages) == 1]
    outcome = execute(runs, store, place=lambda stopping: contextlib.nullcontext(Deadly()))
    assert outcome.finished and len(outcome.failures) == len(runs) == 3
    assert sorted(Counter(Deadly.tried).values()) == [1, 3, 3, 3]


# Disks


def mounted(folder, options, remount=False):
    folder.mkdir(exist_ok=True)
    command = [
        "mount",
        *(["-o", f"remount,{options}"] if remount else ["-t", "tmpfs", "-o", options, "tmpfs"]),
    ]
    return subprocess.run([*command, str(folder)], capture_output=True).returncode == 0


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    if not shutil.which("mount") or os.geteuid() or not mounted(folder, "size=40k"):
        pytest.skip("mounting a small tmpfs takes root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_costs_a_line_and_what_fits_is_recorded(small_disk, monkeypatch, capsys):
    def run():
        with pytest.raises(SystemExit) as end:
            cli.main(["run", "warm_start", "--profile", "smoke"])
        return end.value.code, capsys.readouterr()

    monkeypatch.setenv("REPRO_RESULTS", str(small_disk))
    code, told = run()
    assert code == 1
    assert "3 of 6 runs recorded" in told.out
    said = [line for line in told.err.splitlines() if "No space left on device" in line]
    assert len(said) == 3  # two checkpoints, and one network of three
    assert all(line.startswith(f"repro: {small_disk}") or line.startswith("repro: run ") for line in said)
    assert "Traceback" not in told.err
    assert len(list(small_disk.rglob("*.json"))) == 3
    assert not [p for p in small_disk.rglob("*") if p.is_file() and p.suffix != ".json"]
    assert mounted(small_disk, "ro", remount=True)
    code, told = run()
    assert (code, told.out) == (2, "")
    assert f"repro: cannot write in {small_disk}/smoke: Read-only file system; REPRO_RESULTS " in told.err
    assert told.err.count("\n") == 1
    assert mounted(small_disk, "rw,size=20m", remount=True)
    code, told = run()
    assert (code, "6 of 6 runs recorded" in told.out) == (0, True)


@pytest.mark.parametrize(("mode", "verb"), [(0o500, "write in"), (0o000, "read")])
def test_a_folder_without_permission_is_one_clear_line(tmp_path, mode, verb):
    results = tmp_path / "closed"
    results.mkdir(mode=mode)
    done = command("run", "warm_start", *SMOKE, capless=True, REPRO_RESULTS=str(results))
    assert done.returncode == 2, done.stderr
    assert done.stderr == (
        f"repro: cannot {verb} {results}/smoke: Permission denied; REPRO_RESULTS names another folder\n"
    )
    assert list(results.iterdir()) == []


def command(*arguments, capless=False, **environment):
    """A command in a process; as a user who may not do everything, if so asked, though root."""
    prefix = []
    if capless and os.geteuid() == 0:  # whom only its capabilities let read and write everywhere
        if not shutil.which("setpriv"):
            pytest.skip("root may read and write everything")
        prefix = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    words = [*prefix, sys.executable, "-m", "repro", *arguments]
    return subprocess.run(words, capture_output=True, text=True, env=os.environ | environment, timeout=300)


SMOKE = ["--profile", "smoke", "--seeds", "1", *(f"--set={setting}" for setting in TINY)]


def called(capsys, *words):
    """Exit code of a command of the smoke profile in this process, and what it printed."""
    with pytest.raises(SystemExit) as end:
        cli.main([*words, "warm_start", *SMOKE])
    return end.value.code, capsys.readouterr()


@pytest.mark.parametrize("number", [errno.EPERM, errno.EACCES, errno.EIO, errno.EINVAL, errno.EOPNOTSUPP])
def test_a_file_system_without_links_or_modes_is_written_all_the_same(monkeypatch, capsys, number):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    for name in ("link", "chmod", "fchmod"):
        monkeypatch.setattr(os, name, refuse)
    assert called(capsys, "run")[0] == 0
    assert Store.of("smoke").ids() == {run.id for run in warm_start(1)}
    assert not list(Store.of("smoke").folder.rglob("*.partial"))


@pytest.mark.parametrize("call", ["rename", "fsync"])
def test_a_file_system_on_which_nothing_can_be_stored_is_found_out_before_training(monkeypatch, capsys, call):
    def refuse(*_, **__):
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(*((Path, "replace") if call == "rename" else (os, "fsync")), refuse)
    if call == "rename":
        monkeypatch.setattr(os, "link", refuse)
    code, told = called(capsys, "run")
    assert (code, told.out) == (2, "")
    assert told.err == (
        f"repro: cannot write in {Store.of('smoke').folder}: Invalid argument; "
        "REPRO_RESULTS names another folder\n"
    )
    assert not [path for path in Store.of("smoke").folder.rglob("*") if path.is_file()]


# What is no file


def to_nowhere(path):
    path.symlink_to(path.parent / "not" / "mounted")


def to_itself(path):
    path.symlink_to(path)


PLACED = {
    "a link to nowhere": to_nowhere,
    "a link to itself": to_itself,
    "a folder": Path.mkdir,
    "a pipe": os.mkfifo,
}


@pytest.mark.parametrize("what", PLACED)
def test_what_is_no_file_in_the_place_of_a_record_is_named_and_made_anew(what, capsys):
    runs, store = warm_start(1), Store.of("smoke")
    execute(runs, store)
    before, path = store.read(runs[0].id)["curves"], store.path(runs[0].id)
    path.unlink()
    PLACED[what](path)
    assert "1 records in" in called(capsys, "status")[1].out
    code, told = called(capsys, "run", "--time-limit", "0")
    assert (code, len(store.ids())) == (3, 1)
    assert f"repro: {path}: " in told.err and f"set aside as {path.name}.damaged" in told.err
    assert called(capsys, "run")[0] == 0
    assert store.read(runs[0].id)["curves"] == before
    assert os.path.lexists(f"{path}.damaged")


def test_links_to_nowhere_in_the_places_of_leases_networks_and_checkpoints_stop_nothing(store, undisturbed):
    made = plans.plan(warm_start())
    for path in (
        *(store.leases / run.id for group in made.groups for run in group.runs),
        *(store.snapshot(name) for name in made.parents),
        *(store.checkpoint(group.part((1 << len(group.trajectories)) - 1).id) for group in made.groups),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        to_nowhere(path)
    assert execute(warm_start(), store, time_limit=60) == dispatch.Outcome()
    assert outcomes(store) == undisturbed


# What is somebody else's

ELSE = 12345  # a user's number
only_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes files of other users")


@only_root
def test_a_record_that_may_not_be_read_is_neither_renamed_nor_trained_again():
    runs, store = warm_start(1), Store.of("smoke")
    execute(runs, store)
    path = store.path(runs[0].id)
    content = path.read_bytes()
    store.path(runs[1].id).unlink()
    path.chmod(0o600)
    os.chown(path, ELSE, ELSE)
    done = command("run", "warm_start", *SMOKE, capless=True)
    assert done.returncode == 1
    assert f"repro: run {runs[0].id}: {path}: Permission denied\n" in done.stderr
    assert {p.name: p.stat().st_uid == ELSE for p in store.folder.glob("*.json*")} == {
        f"{runs[0].id}.json": True,
        f"{runs[1].id}.json": False,
    }
    assert path.read_bytes() == content
    verified = command("results", "verify", "smoke", capless=True)
    assert f"repro: {path}: Permission denied\n" in verified.stderr and verified.returncode == 1


@only_root
def test_a_network_that_may_not_be_read_is_one_line_and_stays():
    runs, store = warm_start(1), Store.of("smoke")
    execute(runs, store)
    [parent] = store.snapshot("x").parent.iterdir()
    store.path(runs[1].id).unlink()
    parent.chmod(0o600)
    os.chown(parent, ELSE, ELSE)
    done = command("run", "warm_start", *SMOKE, capless=True)
    assert done.returncode == 1
    assert f"repro: run {runs[1].id}: {parent}: Permission denied\n" in done.stderr
    assert parent.stat().st_uid == ELSE


def lease_of_somebody_else(path, mode, age=0.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{leases.machine()} 999999")
    path.chmod(mode)
    then = time.time() - age
    os.utime(path, (then, then))
    os.chown(path, ELSE, ELSE)


@only_root
def test_the_lease_of_another_user_whose_process_is_dead_keeps_nobody_waiting():
    lease = Store.of("smoke").leases / warm_start(1)[0].id
    lease_of_somebody_else(lease, 0o644)
    done = command("run", "warm_start", *SMOKE, capless=True)
    assert done.returncode == 0, done.stderr
    assert not lease.exists()


@only_root
@pytest.mark.parametrize(("age", "taken"), [(0.0, False), (leases.EXPIRY + 5, True)])
def test_a_lease_that_may_not_even_be_read_ends_by_its_age(tmp_path, age, taken):
    lease_of_somebody_else(tmp_path / "a", 0o600, age)
    quick = HOLD.replace("time.sleep(60)", "pass")
    prefix = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]
    done = subprocess.run(
        [*prefix, sys.executable, "-c", quick, str(tmp_path)], capture_output=True, text=True
    )
    assert ("held" in done.stdout, "Busy" in done.stderr) == (taken, not taken), done.stderr
