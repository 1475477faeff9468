"""Questions, networks, remedies and data of one's own, in files that the package does not know."""

import dataclasses
import importlib.util
import json
import math
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from repro import cli, profiles
from repro.analysis.claims import VERDICTS
from repro.config import (
    HALF,
    PROBES,
    Dataset,
    InputError,
    Model,
    Optimizer,
    Run,
    Stage,
    as_json,
    run_from_json,
)
from repro.data import datasets, folders, own
from repro.questions import studies
from repro.store.records import Store, names_of
from repro.sweep import cluster, dispatch, plans
from repro.training import models, probes
from repro.training.loop import Stopped, train_population
from repro.training.network import ResNet
from repro.training.populations import Member

CPU, ROOT = torch.device("cpu"), Path(__file__).resolve().parents[1]
TINY = ["--profile", "smoke", *(w for s in ("train=64", "test=32", "width=2") for w in ("--set", s))]
QUESTION = '''
"""Does a remedy of one's own close the gap?"""

from repro.analysis.claims import MORE, Claim
from repro.data.own import code
from repro.study import WARM, Arm, Study, crossed, pair, pretraining, tuning


def noisy(network, generator, amount=0.1):
    for parameter in network.parameters():
        parameter.add_(amount * torch.randn(parameter.shape, generator=generator))


import torch


@crossed
def remedies(profile):
    half = pretraining(profile)
    yield from pair(profile)
    yield Arm("reset 6", (half, tuning(profile, reset=(6,))))
    yield Arm("noise", (half, tuning(profile, hook=code(noisy, amount=0.2))))


def gained(results):
    accuracy = results.table.pivot(index="seed", columns="condition", values="test_accuracy")
    return 100 * (accuracy["noise"] - accuracy[WARM])


STUDIES = (Study("remedies", "Does noise help?", "none", "none", remedies),)
CLAIMS = (Claim("noise", "Noise helps a warm start.", "none", "remedies", direction=MORE, effect=gained),)
'''
MODELS = """
import numpy as np
import torch
from torch import nn


def mlp(channels, classes, size, width=16, dropout=0.0):
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(channels * size**2, width),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(width, classes),
    )


def vit(channels, classes, size, width=8):
    from torchvision.models import VisionTransformer

    network = VisionTransformer(size, size // 2, 1, 2, width, width, num_classes=classes, dropout=0.1)
    network.conv_proj = nn.Conv2d(channels, width, size // 2, size // 2)
    return network


def plain(channels, classes, size):
    network = nn.Sequential()
    network.append(nn.Conv2d(channels, 4, 3, 2)).append(nn.ReLU()).append(nn.Conv2d(4, 8, 3, 2))
    network.append(nn.AdaptiveAvgPool2d(1)).append(nn.Flatten()).append(nn.Linear(8, classes))
    network.modules_to_reset = ["0", "2", "5"]
    return network


def normed(channels, classes, size):
    return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(classes))


def wrong(channels, classes, size):
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * size**2, classes + 1))


def raises(channels, classes, size):
    raise RuntimeError("not\\nyet written")


def silent(channels, classes, size):
    mlp(channels, classes, size)


class Odd(nn.Linear):
    def __init__(self, channels, classes, size, fault):
        super().__init__(channels * size**2, classes)
        self.fault = fault
        if fault == "complex":
            self.turn = nn.Parameter(torch.zeros(1, dtype=torch.complex64))
        if fault == "numpy":
            self.weight.data += torch.from_numpy(np.random.default_rng().normal(size=self.weight.shape))
        if fault.startswith("modules"):
            self.modules_to_reset = ["weight", "nope"] if fault == "modules" else "weight"

    def forward(self, x):
        logits = super().forward(x.flatten(1))
        if self.fault == "exits":
            raise SystemExit(3)
        if self.fault == "tuple":
            return logits, x
        if self.fault == "eval" and not self.training:
            return logits[:, :2]
        return logits.squeeze() if self.fault == "squeeze" else logits


class More(Odd):
    def get_extra_state(self):
        return {}


def odd(channels, classes, size, fault):
    return (More if fault == "state" else Odd)(channels, classes, size, fault)


ONLY = nn.Linear(144, 10)


def shared(channels, classes, size):
    return nn.Sequential(nn.Flatten(), ONLY)


def frozen(channels, classes, size):
    network = mlp(channels, classes, size)
    network[1].requires_grad_(False)
    network.modules_to_reset = ["4"]
    return network


@torch.no_grad()
def freezes(network, generator):
    network.requires_grad_(False)[4].bias.fill_(0.5)


def returns(network, generator):
    return network


def leaves(network, generator):
    raise SystemExit(3)


def fails(network, generator):
    network.nothing.weight.zero_()


def grows(network, generator):
    network[-1] = nn.Linear(1, 1)
"""


@pytest.fixture
def repro(capsys):
    """Calls the command line; gives exit code, standard output and standard error."""

    def call(*arguments):
        with pytest.raises(SystemExit) as end:
            cli.main(list(map(str, arguments)))
        return end.value.code, *capsys.readouterr()

    return call


@pytest.fixture
def written(tmp_path):
    """Writes a file of Python."""

    def write(name, text):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return path

    return write


def ids(path, name="smoke"):
    return [case.run.id for study in studies([str(path)]) for case in study.cases(profiles.profile(name))]


# A question


def test_a_question_in_a_file_is_planned_run_and_judged_with_nothing_else_changed(repro, written, tmp_path):
    path = written("elsewhere/my_question.py", QUESTION)
    assert "remedies" in repro("plan", path, *TINY)[1]
    code, out, err = repro("run", path, *TINY)
    assert (code, "12 of 12 runs recorded" in out) == (0, True), err
    assert repro("status", path, *TINY)[1].split("\n")[1].split() == ["remedies", "12", "12", "0"]
    code, out, _ = repro("claims", path, *TINY)
    assert code == 0 and "noise" in out and "gap_rmsprop" not in out
    code, _, err = repro("run", f"{path}:remedy", *TINY)
    assert (code, "unknown study 'remedy': choose from remedies" in err) == (2, True)


def test_a_question_keeps_its_ids_where_it_moves_and_where_what_a_remedy_does_not_use_changes(written):
    here = ids(written("a.py", QUESTION))
    assert ids(written("folder/b.py", QUESTION)) == here
    assert ids(written("a.py", QUESTION.replace("Does noise help?", "Is noise good?"))) == here
    other = ids(written("a.py", QUESTION.replace("parameter.add_", "parameter.sub_")))
    assert sum(a != b for a, b in zip(here, other, strict=True)) == 3  # one condition of four


def test_a_question_shares_the_runs_of_the_paper(written):
    cases = [case for study in studies(["warm_start"]) for case in study.cases(profiles.profile("smoke"))]
    assert {case.run.id for case in cases} <= set(ids(written("a.py", QUESTION)))


BAD = {
    "missing": (None, "there is no file"),
    "empty": ("", "has no STUDIES"),
    "broken": ("def", "SyntaxError"),
    "raising": ("import nowhere", "ModuleNotFoundError: No module named 'nowhere'"),
    "without fresh runs": (QUESTION.replace("    yield from pair(profile)\n", ""), "has no fresh runs"),
    "of an unknown setting": (QUESTION.replace("reset=", "rest="), "unexpected keyword argument 'rest'"),
    "astray": (
        QUESTION.replace('"remedies", direction', '"other", direction'),
        "is of no study of this file",
    ),
    "whose hook raises": (QUESTION.replace("amount *", "amount / 0 *"), "noisy: ZeroDivisionError"),
    "whose hook is not there": (QUESTION.replace("code(noisy,", "code(len,"), "is no function that a file"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_question_is_one_line_and_writes_nothing(repro, written, tmp_path, name):
    text, message = BAD[name]
    path = tmp_path / "bad.py" if text is None else written("bad.py", text)
    code, out, err = repro("run", path, *TINY)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1 and message in err, err
    assert not (tmp_path / "results").exists()


# A network


def run(code, *stages, seed=0, **changes):
    made = Run(Dataset("digits", 96, 64), Model(code=code), stages, 32, seed, seed, seed)
    return dataclasses.replace(made, **changes)


def train(runs, starts=None, **settings):
    """Snapshots of runs that train as one population."""
    members = [Member(made, start) for made, start in zip(runs, starts or [None] * len(runs), strict=True)]
    trained = train_population(members, CPU, "float32", **settings)
    return [snapshot for _, _, snapshot in sorted(trained, key=lambda found: found[0])]


def same(a, b):
    return a.curves == b.curves and all(torch.equal(t, b.state[n]) for n, t in a.state.items())


@pytest.mark.parametrize("name", ["mlp", "vit", "plain"])
def test_a_network_of_ones_own_goes_from_one_command_to_a_verdict(repro, written, name):
    path = written("models.py", MODELS)
    settings = [*TINY, "--set", f"model={path}:{name}"]
    code, out, err = repro("run", "warm_start", *settings)
    assert (code, "6 of 6 runs recorded" in out) == (0, True), err
    assert repro("claims", *settings)[0] == 0
    store = Store.of("smoke")
    for run_id in store.ids():
        made = run_from_json(store.read(run_id)["run"])
        assert (made.id, made.model.code.name) == (run_id, name)


def test_its_own_modules_are_those_that_the_paper_s_questions_reset(written):
    settings = [f"model={written('models.py', MODELS)}:vit"]
    cases = {case.condition for case in studies(["reset"])[0].cases(profiles.profile("smoke", settings))}
    assert {"reset 1", "reset 4", "reset 1 2 3 4", "reset 3 4"} < cases and "reset 5" not in cases
    settings[0] = settings[0].replace("vit", "mlp")
    cases = {case.condition for case in studies(["beyond"])[0].cases(profiles.profile("smoke", settings))}
    assert {name for name in cases if "reset" in name} == {"reset 2"}


@pytest.mark.parametrize("name", ["mlp", "vit"])
def test_it_trains_to_the_same_bits_alone_in_a_population_and_resumed(written, tmp_path, name):
    settings = {"dropout": 0.5} if name == "mlp" else {}
    code = own.code(f"{written('models.py', MODELS)}:{name}", **settings)
    runs = [run(code, Stage(4), seed=seed) for seed in (0, 1, 2)]
    together = train(runs)
    torch.manual_seed(7)  # of no effect
    assert all(same(*train([made]), found) for made, found in zip(runs, together, strict=True))
    epochs = iter([False, False, True])
    with pytest.raises(Stopped):
        train(runs, checkpoint=tmp_path / "a.pt", stop=lambda: next(epochs))
    assert all(map(same, train(runs, checkpoint=tmp_path / "a.pt"), together))


def test_its_modules_are_reset_to_those_of_a_new_network_bare_parameters_and_buffers_too(written):
    vit = own.code(f"{written('models.py', MODELS)}:vit")
    first = run(vit, Stage(1, HALF))
    [start] = train([first])
    network = models.network(first.model, 1, 10, 12)
    assert list(dict.fromkeys(network.module_of)) == list(network.member(0))
    assert network.numbers == (1, 2, 3, 4)  # class token, first convolution, encoder, heads
    network.load_member(0, start.state)
    network.initialise(0, (1, 4), 5, 2)
    new = models.network(first.model, 1, 10, 12)
    new.initialise(0, new.numbers, 5, 2)
    for name, tensor in network.member(0).items():
        expected = new.member(0) if name.startswith(("class_token", "heads")) else start.state
        assert torch.equal(tensor, expected[name]), name


def test_a_network_can_say_where_its_modules_begin(written):
    plain = own.code(f"{written('models.py', MODELS)}:plain")
    network = models.network(Model(code=plain), 1, 10, 12)
    assert network.module_of == {"0.weight": 1, "0.bias": 1, "2.weight": 2, "2.bias": 2, "5.weight": 3} | {
        "5.bias": 3
    }


def test_what_comes_before_the_listed_modules_is_drawn_with_the_seed_and_never_reset(written):
    late = own.code(f"{written('models.py', MODELS)}:frozen")
    first, second = (models.network(Model(code=late), 1, 10, 12) for _ in range(2))
    assert first.module_of == {"1.weight": 0, "1.bias": 0, "4.weight": 1, "4.bias": 1}
    assert own.modules(late, 1, 10, 12) == (1,)
    first.initialise(0, first.numbers, 3, 1)
    second.initialise(0, second.numbers, 4, 1)
    assert not torch.equal(first.member(0)["1.weight"], second.member(0)["1.weight"])
    before = {name: tensor.clone() for name, tensor in first.member(0).items()}
    first.initialise(0, (1,), 5, 2)
    for name, tensor in first.member(0).items():
        assert torch.equal(tensor, before[name]) == name.startswith("1."), name


def test_weight_decay_leaves_frozen_layers_as_they_are(written):
    stage = Stage(2, optimizer=Optimizer(weight_decay=0.1))
    made = run(own.code(f"{written('models.py', MODELS)}:frozen"), stage)
    [trained] = train([made])
    new = models.network(made.model, 1, 10, 12)
    new.initialise(0, new.numbers, made.init_seed, 1)
    for name, tensor in trained.state.items():
        assert torch.equal(tensor, new.member(0)[name]) == name.startswith("1."), name


def test_the_id_is_of_the_function_its_settings_and_what_it_uses_not_of_its_place(written):
    def of(text, where="a.py", **settings):
        return run(own.code(f"{written(where, text)}:mlp", **settings), Stage(1)).id

    first = of(MODELS)
    assert of(MODELS, "folder/b.py") == first == of(MODELS.replace("classes + 1", "classes + 2"))
    assert len({first, of(MODELS, width=8), of(MODELS.replace("width=16", "width=17"))}) == 3
    for change in ("for w in [5]:\n    WIDTHS.append(w)", "_ = WIDTHS.append(5)", "WIDTHS.append(5)"):
        listed = MODELS.replace("width=16", "width=WIDTHS[-1]").replace(
            "def mlp", f"WIDTHS = []\n{change}\n\n\ndef mlp"
        )
        assert of(listed) != of(listed.replace("5", "7")), change
    for text in ("'A docstring'", "x = max(1, 2)", "if __name__ == '__main__':\n    print(mlp(1, 2, 3))"):
        assert of(f"{MODELS}\n{text}\n") == first, text
    paged = MODELS.replace("def mlp", "\f\n# \x85\n\ndef mlp")  # neither sign ends a line
    assert of(paged) != of(paged.replace("width=16", "width=17"))
    assert run(own.code("torchvision.models.resnet:resnet18"), Stage(1)).model.code.path.startswith("torchv")


def test_a_run_with_code_comes_back_from_json(written):
    hook = own.code(f"{written('models.py', MODELS)}:fails", one=1, two="b", three=0.5, four=True)
    made = run(own.code(f"{written('models.py', MODELS)}:mlp", width=4), Stage(1), Stage(1, hook=hook))
    assert run_from_json(as_json(made)) == made and run_from_json(as_json(made)).id == made.id
    assert str(hook.path) not in str(as_json(made))


def test_settings_are_plain_values_and_those_of_numpy_become_so(written):
    where = f"{written('models.py', MODELS)}:mlp"
    values = {"a": np.int64(3), "b": np.float32(0.5), "c": np.True_, "d": np.str_("x"), "e": None, "f": 2.0}
    found = own.code(where, **values).settings
    assert [type(value) for _, value in found] == [int, float, bool, str, type(None), float]
    for bad in ([1, 2], torch.zeros(9, 9), math.nan, np.inf, 1j, (1,), b"x", len):
        with pytest.raises(InputError, match=r"^the setting a takes a finite number") as raised:
            own.code(where, a=bad)
        assert "\n" not in str(raised.value)


def test_a_function_may_be_decorated_and_must_be_in_a_file(written):
    decorated = torch.no_grad()(doubled)
    assert own.place(decorated) == own.place(doubled) == f"{Path(__file__)}:doubled"
    typed: dict = {}
    exec("def net(channels, classes, size): ...\nclass Net: ...", typed)
    for bad in (typed["net"], typed["Net"]):
        with pytest.raises(InputError, match="is in no file: put it in one"):
            own.place(bad)
    code = own.code(f"{written('models.py', MODELS)}:mlp")
    for bad in (torch.nn.Linear(1, 1), code, Model(2, 1), 5, len, b"x"):
        with pytest.raises(InputError, match=r"^a .* is no function that a file defines: give the function"):
            own.place(bad)


WRONG = {
    "wrong": "wrong: it gives [16, 11] for 16 images in training, not logits [16, 10]",
    "normed": "normed: its size cannot be told: it has lazy layers",
    "raises": "raises: RuntimeError: not yet written",
    "mlp --set model.depth=3": "unexpected keyword argument 'depth'",
    "missing": "has no 'missing'; its functions: mlp, vit",
    "mlp --set model.=3": "'model.=3' sets nothing",
    "mlp --set model.width=inf": "the setting width takes a finite number, text, True, False or None",
    "silent": "silent: it returns None, not a torch.nn.Module",
    "shared": "shared: it must build a new network each time",
    "odd --set model.fault=numpy": "odd: it must build a new network each time",
    "odd --set model.fault=complex": "odd: it has complex weights",
    "odd --set model.fault=state": "odd: it has a get_extra_state",
    "odd --set model.fault=exits": "odd: SystemExit: 3",
    "odd --set model.fault=tuple": "odd: it gives a tuple for 16 images in training",
    "odd --set model.fault=eval": "odd: it gives [1, 2] for one image in evaluation, not logits [1, 10]",
    "odd --set model.fault=squeeze": "odd: it gives [10] for one image in evaluation",
    "odd --set model.fault=modules": "modules_to_reset has 'nope', which names no module: choose from weight",
    "odd --set model.fault=modules2": "modules_to_reset takes a list of names of modules, not a str",
}
COMMANDS = ["plan warm_start", "plan reset", "status reset", "run reset", "plan --speed 9 --gpus 1"]


@pytest.mark.parametrize("name", WRONG)
def test_a_bad_network_is_one_line_and_writes_nothing(repro, written, tmp_path, name):
    path = written("models.py", MODELS)
    code, out, err = repro("run", "warm_start", *TINY, "--set", *f"model={path}:{name}".split())
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1 and WRONG[name] in err, err
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_a_network_in_the_same_line(repro, written, tmp_path, command):
    settings = [*TINY, "--set", f"model={written('models.py', MODELS)}:mlp", "--set", "model.wdth=3"]
    code, out, err = repro(*command.split(), *settings)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "mlp: TypeError: mlp() got an unexpected keyword argument 'wdth'" in err
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("name", ["vit", "frozen"])
def test_a_network_with_attention_or_frozen_layers_is_probed(written, name):
    made = run(own.code(f"{written('models.py', MODELS)}:{name}"), Stage(1))
    [snapshot] = train([made])
    x, y = torch.randn(48, 1, 12, 12), torch.arange(48) % 10
    old = torch.arange(48) < 24
    found = probes.measure(PROBES, snapshot.state, made.model, x, y, 10, 8, old)
    assert len(found) == 10 and all(map(math.isfinite, found.values()))


def test_settings_of_a_network_come_back_from_a_changed_profile(written):
    given = [
        f"model={written('models.py', MODELS)}:mlp",
        "model.width=8",
        "model.dropout=0.5",
        "model.on=true",
    ]
    chosen = profiles.profile("smoke", [*given, "model.name=wide", "width=3"])
    assert dict(chosen.model_settings) == {"width": 8, "dropout": 0.5, "on": True, "name": "wide"}
    assert profiles.profile("smoke", profiles.changes(chosen)) == chosen
    assert profiles.scale("smoke", None, ", ".join(profiles.changes(chosen))) == chosen
    with pytest.raises(InputError, match="is a setting of a model of one's own"):
        profiles.profile("smoke", ["model.width=8"])


def test_modules_that_a_network_does_not_have_are_refused(written):
    made = run(own.code(f"{written('models.py', MODELS)}:mlp"), Stage(1), Stage(1, reset=(2, 3)))
    with pytest.raises(InputError, match=r"mlp has modules 1 to 2, not \[3\]"):
        models.check([made])


def test_code_that_changed_since_it_was_planned_is_not_run(written):
    code = own.code(f"{written('models.py', MODELS)}:mlp")
    written("models.py", MODELS.replace("width=16", "width=8"))
    with pytest.raises(InputError, match="is not what it was when its runs were planned"):
        own.function(code)


# A remedy between stages


def doubled(network, generator, factor=2.0):
    for parameter in network.parameters():
        parameter.mul_(factor)
    network.module6.bias.copy_(torch.randn(network.module6.bias.shape, generator=generator))


def halted(network, generator):
    network.requires_grad_(False).module6.bias.fill_(0.5)


def test_a_hook_changes_each_member_as_if_it_were_alone_and_draws_by_its_seed():
    stages = Stage(1, HALF), Stage(1, hook=own.code(doubled, factor=3.0))
    runs = [Run(Dataset("digits", 64, 64), Model(2, 1), stages, 32, seed, seed, seed) for seed in (0, 1)]
    starts = train([made.parent for made in runs])
    network = ResNet(Model(2, 1), 1, 10, 2)
    for p, start in enumerate(starts):
        network.load_member(p, start.state)
        models.hook(stages[1].hook, network, p, runs[p].init_seed, 2)
    for p, start in enumerate(starts):
        for name, tensor in network.member(p).items():
            kept = "running" in name
            if name != "module6.bias":
                assert torch.equal(tensor, start.state[name] * (1 if kept else 3)), name
    assert not torch.equal(network.member(0)["module6.bias"], network.member(1)["module6.bias"])
    apart = [train([made], [start])[0] for made, start in zip(runs, starts, strict=True)]
    for found, alone in zip(train(runs, starts), apart, strict=True):
        assert np.allclose(found.curves[-1]["train_loss"], alone.curves[-1]["train_loss"], rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("grows", "grows: it must leave the network its modules and their shapes"),
        ("returns", "returns: it returns a Sequential: it must change the network and return None"),
        ("leaves", "leaves: SystemExit: 3"),
    ],
)
def test_a_hook_that_cannot_work_is_refused(written, name, message):
    path = written("models.py", MODELS)
    made = run(own.code(f"{path}:mlp"), Stage(1), Stage(1, hook=own.code(f"{path}:{name}")))
    with pytest.raises(InputError, match=message):
        models.check([made])


@pytest.mark.parametrize("kind", ["own", "ResNet"])
def test_of_a_hook_only_the_state_that_it_leaves_is_taken_over(written, kind):
    path = written("models.py", MODELS)
    if kind == "own":
        model, hook = Model(code=own.code(f"{path}:mlp")), own.code(f"{path}:freezes")
    else:
        model, hook = Model(2, 1), own.code(halted)
    network = models.network(model, 1, 10, 12)
    network.initialise(0, network.numbers, 0, 1)
    models.hook(hook, network, 0, 0, 2)
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert (list(network.parameters())[-1] == 0.5).all()


# Data


def images(n=48, classes=3, side=8):
    random = np.random.default_rng(0)
    return random.integers(0, 256, (n, side, side, 3), dtype=np.uint8), np.arange(n) % classes


def npz(path):
    x, y = images()
    np.savez(path, x_train=x, y_train=y, x_test=x[:12], y_test=y[:12])
    return path


@pytest.fixture
def folder(tmp_path):
    """A folder with a folder of pictures, 9 wide and 12 high, for each of two classes."""
    made = tmp_path / "pictures"
    for i, (pixels, label) in enumerate(zip(*images(classes=2, side=12), strict=True)):
        path = made / ("cat", "dog")[label] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[:, :9]).save(path)
    return made


OF_DATA = ["--profile", "smoke", "--seeds", "1", "--set", "width=2"]


def test_a_file_goes_from_one_command_to_records_and_keeps_them_under_another_name(repro, tmp_path):
    path = npz(tmp_path / "mine.npz")
    code, out, err = repro("run", "warm_start", *OF_DATA, "--set", f"dataset={path}")
    assert (code, "2 of 2 runs recorded" in out) == (0, True), err
    renamed = path.rename(tmp_path / "yours.npz")
    _, out, _ = repro("status", "warm_start", *OF_DATA, "--set", f"dataset={renamed}")
    assert out.splitlines()[1].split() == ["warm_start", "2", "2", "0"]


def test_records_from_when_the_name_of_the_file_was_in_the_id_are_still_found(repro, tmp_path):
    chosen = profiles.profile("smoke", [f"dataset={npz(tmp_path / 'mine.npz')}", "width=2"], 1)
    [first, *_] = studies(["warm_start"])[0].cases(chosen)
    before = dataclasses.replace(first.run, dataset=dataclasses.replace(first.run.dataset, name="mine"))
    store = Store(tmp_path / "results" / "before")
    curve = {name: [0.5] * 3 for name in ("train_loss", "train_accuracy", "test_accuracy")}
    content = {"seconds": 1.0, "device": "one", "precision": "float32", "data": "0"}
    assert store.write(before, diverged=None, curves=[curve], **content)
    assert names_of(first.run.dataset.fingerprint, store.folder) == ("mine",)
    (tmp_path / "results" / "smoke").mkdir()
    store.path(before.id).rename(Store.of("smoke").path(before.id))
    names_of.cache_clear()  # a process looks once, and keeps the runs of a study
    studies(["warm_start"])[0].cases.cache_clear()
    _, out, _ = repro("status", "warm_start", *OF_DATA, "--set", f"dataset={tmp_path / 'mine.npz'}")
    assert out.splitlines()[1].split() == ["warm_start", "1", "2", "1"]


def test_a_folder_of_pictures_goes_from_one_command_to_records(repro, folder, tmp_path):
    settings = [*OF_DATA, "--set", f"dataset={folder}", "--set", "size=8", "--set", "batch_size=8"]
    code, out, err = repro("run", "warm_start", *settings)
    assert (code, "2 of 2 runs recorded" in out) == (0, True), err
    assert len(list((tmp_path / "data").iterdir())) == 1
    dataset = profiles.profile("smoke", [f"dataset={folder}", "size=8"]).data()
    found = datasets.images(dataset)
    assert (found.x_train.shape, found.x_test.shape, found.classes) == ((38, 8, 8, 3), (10, 8, 8, 3), 2)
    assert len(list((tmp_path / "data").iterdir())) == 1
    assert profiles.profile("smoke", [f"dataset={folder}", "size=8", "split=1"]).data().split == 1
    folder.rename(tmp_path / "renamed")
    renamed = [word.replace(str(folder), str(tmp_path / "renamed")) for word in settings]
    _, out, _ = repro("status", "warm_start", *renamed)
    assert out.splitlines()[1].split() == ["warm_start", "2", "2", "0"]


def test_a_folder_with_train_and_test_in_it_keeps_them_apart(folder):
    shutil.copytree(folder, folder / "train")
    for name in ("cat", "dog"):
        (folder / "test" / name).mkdir(parents=True)
        for path in sorted((folder / name).iterdir())[:3]:
            path.rename(folder / "test" / name / path.name)
        shutil.rmtree(folder / name)
    dataset = profiles.profile("smoke", [f"dataset={folder}"]).data()
    found = datasets.images(dataset)
    assert (dataset.split, found.x_train.shape, len(found.y_test)) == (None, (48, 32, 32, 3), 6)


@pytest.mark.parametrize("wrong", ["one class", "no pictures", "a broken picture"])
def test_a_folder_that_is_none_of_pictures_is_one_line_and_writes_nothing(repro, folder, tmp_path, wrong):
    if wrong == "one class":
        shutil.rmtree(folder / "dog")
    elif wrong == "no pictures":
        shutil.rmtree(folder)
        folder.mkdir()
    else:
        (folder / "cat" / "0.png").write_bytes(b"no picture")
    code, out, err = repro("run", "warm_start", *OF_DATA, "--set", f"dataset={folder}")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    named = f"{folder}/cat/0.png is no image" if "broken" in wrong else f"{folder} is no folder of images"
    assert named in err
    assert ("one class, 'cat'" in err) == (wrong == "one class")
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


def test_data_sets_of_pytorch_are_those_of_a_file_of_the_same_pixels(tmp_path):
    x, y = images()
    tensors = torch.utils.data.TensorDataset(torch.tensor(x).movedim(3, 1), torch.tensor(y))
    pairs = list(zip(x[:12], y[:12], strict=True))
    path = folders.of_torch(tensors, pairs)
    assert datasets.npz_dataset(path).fingerprint == datasets.npz_dataset(npz(tmp_path / "a.npz")).fingerprint
    assert folders.of_torch(tensors, pairs) == path
    assert datasets.npz_dataset(folders.of_torch(tensors)).split == 0
    with pytest.raises(InputError, match="no images of one size"):
        folders.of_torch([(x[0], 0), (x[0, :4, :4], 1)])


# From a script


def test_a_script_gets_the_gap_and_learning_curves_and_trains_nothing_twice(written, tmp_path):
    import repro

    x, y = images()
    pairs = list(zip(x, y, strict=True))
    model = f"{written('models.py', MODELS)}:mlp"
    found = repro.gap(pairs, model, "smoke", 2, "cpu")
    assert (found.n, found.low < found.mean < found.high) == (2, True)
    stages = [repro.Stage(2, repro.HALF), repro.Stage(3, reset=(2,))]
    curves = repro.train(pairs, stages, model, batch_size=8, device="cpu")
    assert curves.columns[:2].tolist() == ["total", "epoch"] and curves.stage.tolist() == [1, 1, 2, 2, 2]
    assert curves.test_accuracy.between(0, 1).all()
    kept = [Store.of(name).snapshot("x").parent for name in ("smoke", "scripts")]
    for folder in kept:  # what trains leaves networks there, of which others start
        shutil.rmtree(folder)
    assert repro.gap((pairs), model, "smoke", 2, "cpu") == found
    assert repro.train(pairs, stages, model, batch_size=8, device="cpu").equals(curves)
    assert not any(folder.exists() for folder in kept)
    with pytest.raises(InputError, match="there is no file"):
        repro.gap(tmp_path / "nowhere.npz", profile="smoke")
    with pytest.raises(InputError, match="modules 1 to 2, not"):
        repro.train(pairs, [repro.Stage(1), repro.Stage(1, reset=(5,))], model, 8, device="cpu")
    with pytest.raises(InputError, match="a Model is no function"):
        repro.gap(pairs, Model(2, 1), "smoke")
    with pytest.raises(InputError, match="unexpected keyword argument 'depth'"):
        repro.run_study("reset", "smoke", 1, "none", [f"model={model}", "model.depth=3"])


def test_the_gap_is_of_the_data_and_the_model_that_the_call_its_settings_or_its_profile_name(
    written, tmp_path, monkeypatch
):
    import repro
    from repro import running

    def found(*arguments, **settings):
        with monkeypatch.context() as patched:
            patched.setattr(running, "_run", lambda study, profile, device: chosen.append(profile))
            with pytest.raises(AttributeError):
                repro.gap(*arguments, **settings)
        return chosen[-1]

    chosen, path, model = [], npz(tmp_path / "d.npz"), f"{written('models.py', MODELS)}:mlp"
    assert found(profile="cifar10").dataset == "cifar10"
    assert found(settings=[f"dataset={path}"]).dataset == str(path)
    assert found("digits", settings=f"dataset={path}, width=3").dataset == "digits"
    made = found(path, model, settings="model.width=4, seeds=2")
    assert (made.code.settings, made.seeds, made.images) == ((("width", 4),), 2, found(path).images)


SCRIPT = """
import repro
from torch import nn


def net(channels, classes, size):
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * size**2, classes))


print(repro.gap("digits", net, "smoke", 1, "cpu", ["train=64", "test=32"]))
"""


def test_a_file_that_trains_when_it_is_imported_says_so_in_one_line(repro, written, tmp_path):
    path = written("script.py", SCRIPT)
    code, out, err = repro("run", "warm_start", *TINY, "--set", f"model={path}:net")
    main = 'put that under `if __name__ == "__main__":`'
    assert (code, out, err) == (2, "", f"repro: {path} trains when it is imported: {main}\n")
    assert not (tmp_path / "results").exists()
    with pytest.raises(InputError, match=f"{path} trains when it is imported"):
        own.module(str(path))  # another time, too


# In other processes


def curves_of(store):
    return {name: store.read(name)["curves"] for name in store.ids()}


def planned(path, models_path, settings=()):
    """The plan of a question for a network of one's own."""
    chosen = profiles.profile("smoke", ["train=64", "test=32", f"model={models_path}:mlp", *settings])
    return plans.plan(case.run for study in studies([str(path)]) for case in study.cases(chosen))


@pytest.mark.slow
def test_a_question_and_a_network_outside_the_repository_survive_kills_children_and_a_cluster(
    written, tmp_path, monkeypatch
):
    """Records are bit for bit those of a sweep that nothing disturbed."""
    question = written("elsewhere/question.py", QUESTION.replace("reset=(6,)", "reset=(2,)"))
    network = written("elsewhere/models.py", MODELS)
    made = planned(question, network, ["model.dropout=0.3", "tuning_epochs=20"])
    calm, killed, apart, dask = (Store(tmp_path / name / "smoke") for name in ("a", "b", "c", "d"))
    assert dispatch.execute(made, calm, device="cpu", slots=1) == dispatch.Outcome()

    words = ["run", question, "--profile", "smoke", "--set", f"model={network}:mlp", "--device", "cpu"]
    words += [
        w for s in ("train=64", "test=32", "model.dropout=0.3", "tuning_epochs=20") for w in ("--set", s)
    ]
    environment = os.environ | {"REPRO_RESULTS": str(killed.folder.parent), "PYTHONPATH": str(ROOT)}
    environment["OMP_NUM_THREADS"] = "2"  # of no effect on the bits
    command = [sys.executable, "-m", "repro", *map(str, words)]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL) as sweep:
        while not killed.ids():
            time.sleep(0.05)
        sweep.kill()
    assert len(killed.ids()) < len(made.wanted)
    assert dispatch.execute(made, killed, device="cpu", slots=1) == dispatch.Outcome()

    monkeypatch.chdir(tmp_path)
    assert dispatch.execute(made, apart, device="cpu", slots=2) == dispatch.Outcome()
    found = [killed, apart]
    if importlib.util.find_spec("distributed"):
        found.append(dask)
        file = tmp_path / "scheduler.json"
        programs = [
            ["dask_scheduler", "--host", "127.0.0.1", "--port", "0"],
            ["dask_worker", "--nthreads", str(os.cpu_count()), "--memory-limit", "0", "--no-nanny"],
        ]
        started = []
        try:
            for name, *options in programs:
                words = [f"distributed.cli.{name}", *options, "--no-dashboard", "--scheduler-file", str(file)]
                program = [sys.executable, "-W", "ignore", "-m", *words]
                started.append(subprocess.Popen(program, cwd=ROOT, stderr=subprocess.DEVNULL))
                while not file.exists():
                    time.sleep(0.1)
            address = json.loads(file.read_text())["address"]
            assert (
                dispatch.execute(made, dask, device="cpu", place=cluster.place(address)) == dispatch.Outcome()
            )
        finally:
            for process in started:
                process.kill()
                process.wait()
    assert len(calm.ids()) == 12
    for store in found:
        assert curves_of(store) == curves_of(calm), store.folder


AMOUNTS = """
@crossed
def amounts(profile):
    yield from pair(profile)
    for amount in (0.1, 0.3):
        stages = pretraining(profile), tuning(profile, hook=code(noisy, amount=amount))
        yield Arm("noise", stages, {"amount": amount})


def amounts_figure(explored):
    from repro.figures.common import gap_strip

    return gap_strip(explored.panels()[("0.1",)].gaps.reset_index().assign(condition="noise"))


AMOUNTS = Study("amounts", "How much noise?", "none", "99_remedies", amounts)
"""
IN_A_COPY = """
import sys
from pathlib import Path
from repro import cli, profiles, questions
from repro.book import explorer

taken, added = Path(sys.argv[1]), Path(sys.argv[2])
chosen = profiles.profile("smoke")
assert taken.stem not in {q.__name__.rpartition(".")[2] for q in questions.QUESTIONS}
assert "recipe" not in questions.STUDIES and "remedies" in questions.STUDIES
for words in (["plan"], ["run", "remedies", "amounts"], ["status"], ["claims"], ["studies"]):
    try:
        cli.main([*words, "--profile", "smoke"])
    except SystemExit as end:
        assert not end.code, (words, end.code)
explored = explorer.of("amounts", chosen)
assert explored.choices == [("0.1",), ("0.3",)]
assert explored.panels()[("0.1",)].gap.n == 3
assert questions.QUESTIONS[-1].amounts_figure(explored) is not None
"""


@pytest.mark.slow
def test_a_question_file_added_to_the_package_is_all_it_takes_and_one_taken_away_breaks_nothing(tmp_path):
    """Issue 19: it is planned, run, judged, drawn and explored with nothing else changed."""
    shutil.copytree(ROOT / "repro", tmp_path / "repro", ignore=shutil.ignore_patterns("__pycache__"))
    folder = tmp_path / "repro" / "questions"
    (folder / "recipe.py").unlink()
    text = QUESTION.replace('"none", "none", remedies),)', '"none", "99_remedies", remedies), AMOUNTS)')
    text = text.replace("STUDIES =", AMOUNTS + "\n\nSTUDIES =")
    (folder / "remedies.py").write_text(text)
    command = [sys.executable, "-c", IN_A_COPY, str(folder / "recipe.py"), str(folder / "remedies.py")]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "noise" in done.stdout and "99_remedies" in done.stdout


# The page


PAGE = (ROOT / "book" / "own.md").read_text()
BLOCKS = re.compile(r"```\{code-block\} python\n:caption: (\S+)\n(.*?)```|```console\n(.*?)```", re.DOTALL)


@pytest.mark.slow
def test_every_line_of_the_page_runs_from_files_to_verdicts(tmp_path, repro, monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "1")  # no children: the test above has them
    here, env = tmp_path / "work", os.environ | {"PYTHONPATH": str(ROOT)}
    here.mkdir()
    monkeypatch.chdir(here)
    said = {}
    page = PAGE.replace("--profile quick", "--profile smoke").replace('"quick"', '"smoke"')
    page = page.replace("tuning_epochs=30", "tuning_epochs=3")
    for name, text, console in BLOCKS.findall(page):
        commands = console.replace("\\\n", "").replace("$ ", "").splitlines()
        if name:
            (here / name).write_text(text)
            commands = [f"python {name}"] if name in ("my_figure.py", "my_script.py") else []
        for command in commands:
            word, *words = shlex.split(command)
            if word == "repro":
                status, said[command], errors = repro(*words)
            else:
                done = subprocess.run([sys.executable, *words], env=env, capture_output=True, text=True)
                status, said[command], errors = done.returncode, done.stdout, done.stderr
            assert not status, (command, errors[-2000:])
    outputs = list(said.values())
    assert len(outputs) == 8 and "6 of 6 runs recorded" in outputs[2]
    for claim, output in (("gap", outputs[3]), ("renewed", outputs[5])):
        assert re.search(rf"^{claim} +({'|'.join(VERDICTS)})", output, re.MULTILINE)
    assert (here / "remedies.png").stat().st_size > 10_000
    assert re.match(r"gap: [+−]\d", outputs[7])
