"""The explorer: what it computes of records, and its widgets in a kernel driven as a browser would."""

import importlib.util
import queue
import time
from pathlib import Path

import numpy as np
import pytest

from repro import cli, profiles
from repro.analysis import recorded
from repro.analysis.stats import mean_estimate
from repro.book import explorer, panels
from repro.config import InputError
from repro.questions import STUDIES
from repro.store.records import Store
from repro.study import FRESH, WARM, Arm, Study, crossed, pretraining, tuning

ROOT = Path(__file__).resolve().parents[1]
SMOKE = profiles.profile("smoke")


def run(*arguments):
    with pytest.raises(SystemExit) as end:
        cli.main(["run", *arguments])
    return end.value.code


def write(store, case, test, train, shift=0.0):
    """A record of the case with these test and train accuracies in its last stage."""
    stages = [
        {"train_loss": [1.0] * n, "train_accuracy": [0.0] * n, "test_accuracy": [0.0] * n}
        for n in (stage.epochs for stage in case.run.stages[:-1])
    ]
    last = {
        "train_loss": [1.0] * len(test),
        "train_accuracy": train,
        "test_accuracy": [v + shift for v in test],
    }
    store.write(
        case.run,
        curves=[*stages, last],
        diverged=None,
        seconds=1.0,
        device="cpu",
        precision="float32",
        data="0",
        finished="2026-01-01T00:00:00+00:00",
    )


def test_a_panel_holds_the_known_numbers_of_its_records():
    found, store = explorer.of("reset", SMOKE), Store.of("smoke")
    assert found.panels().get(("456",)) is None
    for case in found.cases:
        if case.condition == FRESH:
            write(store, case, [0.1, 0.5, 0.7], [0.4, 0.6, 1.0])
        if case.condition == WARM:
            write(store, case, [0.2, 0.5, 0.5], [0.6, 0.9, 1.0])
        if case.condition == "reset 4 5 6" and case.seed < 2:
            write(store, case, [0.1, 0.5, 0.5], [0.3, 0.4, 0.45], shift=0.02 * case.seed)
    panel = found.panels().get(("456",))
    assert panel.condition == "reset 4 5 6"
    assert panel.conditions == [FRESH, WARM, "reset 4 5 6"]
    assert panel.gaps.to_dict() == pytest.approx({0: -10.0, 1: -8.0})  # window 2: 50 and 52 against 60
    assert str(panel.gap) == str(mean_estimate([-10.0, -8.0]))
    assert panel.missing == 1
    assert panel.seeds == {FRESH: 3, WARM: 3, "reset 4 5 6": 2}
    means = panel.curves.set_index(["condition", "epoch"]).test_accuracy
    assert means[("reset 4 5 6", 1)] == pytest.approx(0.11)
    assert [panels.epochs(e, 3) for e in panel.reached[FRESH][:3]] == ["1.5", "2.5", "2.8"]
    assert [panels.epochs(e, 2) for e in panel.reached["reset 4 5 6"]] == ["never"] * 5
    assert "−9.0" in panels.panel_html(found, ("456",), panel)
    assert found.panels().get(("",)).conditions == [FRESH, WARM]


def test_factors_choose_runs_and_the_fresh_ones_they_pair_with():
    found = explorer.of("pretraining_length", SMOKE)
    store = Store.of("smoke")
    for case in found.cases:
        base = 0.5 if case.factors["optimizer"] == "SGD" else 0.8
        hurt = 0.01 * case.factors.get("pretraining_epochs", 0)
        write(store, case, [base - hurt] * 3, [0.5, 0.6, 0.7])
    for (optimizer, length), panel in found.panels().items():
        assert panel.gap.mean == pytest.approx(-float(length)), optimizer
        assert panel.conditions == [FRESH, WARM]
        assert panel.missing == 0


def test_a_page_says_of_every_choice_what_is_recorded_or_the_command_that_records_it():
    found = explorer.of("reset", SMOKE)
    page = panels.page(found, found.panels())
    assert page.count("data-key") == 64
    assert page.count(" hidden>") == 64, "all but one, and that of a choice that is not there"
    assert "repro run reset --profile smoke --only modules=456" in page
    assert "repro run reset --profile smoke --set full_grids=true --only modules=135" in page


@pytest.mark.parametrize(
    ("study", "choice", "settings"),
    [("reset", ("135",), []), ("pretraining_length", ("SGD with momentum", "1"), ["width=2"])],
)
def test_the_command_records_what_the_panel_lacks(study, choice, settings):
    import shlex

    found = explorer.of(study, profiles.profile("smoke", settings, seeds=1))
    program, command, *arguments = shlex.split(found.command(choice))
    assert (program, command) == ("repro", "run")
    assert run(*arguments) == 0
    panel = found.panels().get(choice)
    assert panel.missing == 0
    assert len(Store.of("smoke").ids()) == len(found.runs(choice)) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["reset", "--only", "456"], "--only takes FACTOR=VALUE, such as modules=456, not '456'"),
        (["reset", "--only", "modules=135"], "reset has no modules '135': choose from 1, 6, 12, 56"),
        (["reset", "--only", "width=3"], "reset has no factor 'width': choose from modules"),
        (["warm_start", "--only", "width=3"], "warm_start has no factor 'width': choose from none"),
    ],
)
def test_a_choice_that_is_not_there_is_refused_in_one_line(capsys, arguments, message, tmp_path):
    assert run(*arguments, "--profile", "smoke") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and message in said
    assert not (tmp_path / "results").exists()


def test_a_study_without_factors_to_choose_has_no_explorer():
    with pytest.raises(InputError, match="beyond has no factor to choose"):
        explorer.of("beyond", SMOKE)


@crossed
def noises(profile):
    """A question of a reader's own: two kinds of noise, one of them at one strength only."""
    yield Arm(FRESH, (tuning(profile),))
    for kind, batch in (("white", 1), ("white", 2), ("pink", 1)):
        stages = pretraining(profile, epochs=batch), tuning(profile)
        yield Arm("noisy", stages, {"kind": kind, "first_epochs": batch})


def test_a_question_of_ones_own_is_explored_by_its_factors_without_a_word_more(monkeypatch):
    monkeypatch.setitem(STUDIES, "noise", Study("noise", "Does noise help?", "", "", noises))
    found = explorer.of("noise", SMOKE)
    for case in found.cases:
        write(Store.of("smoke"), case, [0.5 if case.condition == FRESH else 0.6] * 3, [0.5] * 3)
    assert found.choices == [("white", "1"), ("white", "2"), ("pink", "1")]
    assert {round(panel.gap.mean, 6) for panel in found.panels().values()} == {10.0}
    page = panels.page(found, found.panels())
    assert "<strong>Kind white, first epochs 2</strong>" in page
    assert page.count('type="range"') == 2 and 'data-values="white|pink"' in page
    assert "no run with these values" in panels.panel_html(
        found, ("pink", "2"), found.panels().get(("pink", "2"))
    )
    assert found.runs(("pink", "2")) == []
    shown = found._repr_mimebundle_()
    assert "text/html" in shown and "application/vnd.jupyter.widget-view+json" in shown


def test_the_command_for_a_question_in_a_file_names_the_file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from repro.study import FRESH, Arm, Study, crossed, pretraining, tuning\n"
        "@crossed\n"
        "def longer(profile):\n"
        "    yield Arm(FRESH, (tuning(profile),))\n"
        "    yield Arm('mine', (pretraining(profile), tuning(profile)), {'strength': 1})\n"
        "STUDIES = (Study('mine', 'Mine?', 'none', 'none', longer),)\n"
    )
    for asked in (str(path), f"{path}:mine"):
        found = explorer.of(asked, SMOKE)
        assert found.command(("1",)) == f"repro run {path}:mine --profile smoke --only strength=1"


def test_fresh_runs_are_compared_with_whatever_factors_they_do_not_pair_by():
    found = explorer.of("stages", SMOKE)
    choice = next(choice for choice in found.choices if choice != ("1", "1"))
    assert {case.condition for case in found.runs(choice)} == {FRESH, "stages"}
    for case in found.runs(choice):
        write(Store.of("smoke"), case, [0.5] * 3, [0.5] * 3)
    assert found.panels().get(choice).conditions == [FRESH, "stages"]
    assert found.panels().get(choice).missing == 0


def test_settings_of_a_changed_profile_make_it_again():
    changed = profiles.profile("quick", ["train=all", "noise=0.5", "full_grids=true"], seeds=4)
    assert profiles.profile("quick", profiles.changes(changed)) == changed
    assert profiles.changes(profiles.profile("quick")) == []


def test_a_curve_of_many_epochs_is_drawn_with_few_points():
    found = explorer.of("smooth_transition", profiles.profile("smoke", ["tuning_epochs=500"]))
    rising = np.linspace(0.1, 0.9, 500).tolist()
    for case in found.cases:
        write(Store.of("smoke"), case, rising, rising)
    html = panels.panel_html(found, ("0.5",), found.panels().get(("0.5",)))
    lines = [part.split('"')[0].split() for part in html.split('points="')[1:]]
    assert [len(points) for points in lines] == [panels.POINTS] * 6


@pytest.mark.parametrize(
    ("study", "choice", "words"),
    [
        ("smooth_transition", ("0.5",), "γ = 0.5"),
        ("capacity", ("8", "2"), "Width 8, depth 2"),
        ("pretraining_length", ("SGD", "5"), "SGD, 5 epochs of pretraining"),
        ("reset", ("456",), "Modules 4, 5 and 6 re-initialised"),
        ("reset", ("2",), "Module 2 re-initialised"),
        ("reset", ("",), "No module re-initialised"),
    ],
)
def test_a_choice_in_words_begins_with_a_capital_but_for_a_symbol(study, choice, words):
    assert explorer.of(study, SMOKE).title(choice) == words


# The widgets, in a kernel


class Kernel:
    """A kernel with a live explorer in it, its widgets read and moved by the messages of a front end."""

    def __init__(self, client, code: str) -> None:
        self.client, self.widgets = client, {}
        client.execute("from repro.book import explorer\n" + code)
        self.until(lambda: self.find("HTMLModel", "") and self.panel, "no panel came")

    def until(self, condition, complaint: str, seconds: float = 300) -> float:
        """Seconds waited for the condition, while the widgets' messages are taken in."""
        start = time.monotonic()
        while not condition():
            assert time.monotonic() - start < seconds, complaint
            try:
                message = self.client.get_iopub_msg(timeout=0.1)
            except queue.Empty:
                continue
            content = message["content"]
            assert message["msg_type"] != "error", content
            if message["msg_type"] == "comm_open":
                self.widgets[content["comm_id"]] = content["data"]["state"]
            if message["msg_type"] == "comm_msg" and "state" in content["data"]:
                self.widgets[content["comm_id"]] |= content["data"]["state"]
        return time.monotonic() - start

    def find(self, model: str, description: str) -> str | None:
        """The id of the widget of this model and description."""
        for name, state in self.widgets.items():
            if state.get("_model_name") == model and state.get("description", "") == description:
                return name
        return None

    def state(self, model: str, description: str = "") -> dict:
        return self.widgets[self.find(model, description)]

    def send(self, name: str, data: dict) -> None:
        message = self.client.session.msg("comm_msg", {"comm_id": name, "data": data})
        self.client.shell_channel.send(message)

    def set(self, model: str, description: str, **state) -> None:
        name = self.find(model, description)
        self.widgets[name] |= state  # as the front end has it
        self.send(name, {"method": "update", "state": state, "buffer_paths": []})

    def click(self, description: str) -> None:
        self.send(self.find("ButtonModel", description), {"method": "custom", "content": {"event": "click"}})

    @property
    def panel(self) -> str:
        return self.state("HTMLModel")["value"]

    @property
    def said(self) -> str:
        return self.state("LabelModel")["value"]


@pytest.fixture
def kernel(tmp_path):
    """Starts a kernel that shows a live explorer."""
    if not all(map(importlib.util.find_spec, ("jupyter_client", "ipykernel", "ipywidgets"))):
        pytest.skip('needs pip install "repro[book]"')
    from jupyter_client.manager import start_new_kernel

    managers = []

    def start(code: str) -> Kernel:
        manager, client = start_new_kernel(kernel_name="python3", cwd=str(ROOT))
        managers.append((manager, client))
        return Kernel(client, code)

    yield start
    for manager, client in managers:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


TRAIN = "Train what is missing"


@pytest.mark.slow
def test_a_live_explorer_trains_an_unrecorded_depth_and_shows_it(kernel):
    small = profiles.profile("smoke", ["width=2"])
    live = kernel('explorer.live("reset", profile="smoke", settings="width=2")')
    assert "Modules 4, 5 and 6 re-initialised" in live.panel
    assert live.state("PlayModel")["value"] == live.state("SelectionSliderModel", "How many")["index"] == 3
    live.set("SelectionSliderModel", "How many", index=2)
    live.until(lambda: "Modules 5 and 6 re-initialised" in live.panel, "the slider moved nothing")
    assert "not recorded" in live.panel and "--only modules=56" in live.panel
    assert live.state("CheckboxModel", "6 last layer")["value"]
    live.click(TRAIN)
    live.until(lambda: "explorer-gap" in live.panel, "the panel still says that nothing is recorded")
    live.until(lambda: live.said == "recorded", "it does not say that it ended")
    assert live.state("FloatProgressModel")["value"] == 1.0
    assert live.state("ButtonModel", TRAIN)["disabled"]
    found = explorer.of("reset", small)
    assert f"{found.panels().get(('56',)).gap}" in live.panel
    results = recorded.results(STUDIES["reset"], small)
    assert set(results.table.condition) == {FRESH, "reset 5 6"}


@pytest.mark.slow
def test_cancelling_stops_within_an_epoch_and_loses_nothing(kernel, tmp_path):
    epochs = 30
    settings = f"tuning_epochs={epochs}, window=2"
    live = kernel(f'explorer.live("smooth_transition", profile="smoke", seeds=1, settings="{settings}")')
    live.click(TRAIN)
    live.until(lambda: live.state("FloatProgressModel")["value"] > 0.2, "it does not train")
    live.click("Cancel")
    live.until(lambda: "stopping" in live.said, "the button is not heard")
    begun = live.state("FloatProgressModel")["value"]
    live.until(lambda: "cancelled" in live.said, "it does not stop")
    assert live.state("FloatProgressModel")["value"] <= begun + 1 / epochs
    store = Store.of("smoke")
    assert store.ids() == set()
    assert list((store.folder / ".checkpoints").iterdir())
    assert not live.state("ButtonModel", TRAIN)["disabled"]

    live.click(TRAIN)
    live.until(lambda: live.said == "recorded", "it does not go on")
    resumed = {path.name: Store.of("smoke").read(path.stem)["curves"] for path in store.folder.glob("*.json")}
    assert len(resumed) == 4  # the transition, and what it is compared with: fresh, warm, with replacement
    for path in store.folder.glob("*.json"):
        path.unlink()
    arguments = [item for setting in settings.split(", ") for item in ("--set", setting)]
    command = ["smooth_transition", "--profile", "smoke", "--seeds", "1", "--only", "gamma=0.9", *arguments]
    assert run(*command) == 0
    for name, curves in resumed.items():
        assert store.read(name.removesuffix(".json"))["curves"] == curves
