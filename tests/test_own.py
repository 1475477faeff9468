"""Questions, networks, remedies and data of one's own, in files that the package does not know."""

import dataclasses

import numpy as np
import pytest
import torch

from repro import cli, profiles
from repro.config import HALF, Dataset, InputError, Model, Run, Stage, as_json, run_from_json
from repro.data import own
from repro.questions import studies
from repro.store.records import Store
from repro.training import models
from repro.training.loop import Stopped, train_population
from repro.training.network import ResNet
from repro.training.populations import Member

CPU = torch.device("cpu")
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


def test_the_id_is_of_the_function_its_settings_and_what_it_uses_not_of_its_place(written):
    def of(text, where="a.py", **settings):
        return run(own.code(f"{written(where, text)}:mlp", **settings), Stage(1)).id

    first = of(MODELS)
    assert of(MODELS, "folder/b.py") == first == of(MODELS.replace("classes + 1", "classes + 2"))
    assert len({first, of(MODELS, width=8), of(MODELS.replace("width=16", "width=17"))}) == 3
    assert run(own.code("torchvision.models.resnet:resnet18"), Stage(1)).model.code.path.startswith("torchv")


def test_a_run_with_code_comes_back_from_json(written):
    hook = own.code(f"{written('models.py', MODELS)}:fails", one=1, two="b", three=0.5, four=True)
    made = run(own.code(f"{written('models.py', MODELS)}:mlp", width=4), Stage(1), Stage(1, hook=hook))
    assert run_from_json(as_json(made)) == made and run_from_json(as_json(made)).id == made.id
    assert str(hook.path) not in str(as_json(made))


WRONG = {
    "wrong": "wrong: it gives [4, 11] for 4 images, not logits [4, 10]",
    "normed": "normed: its size cannot be told: it has lazy layers",
    "raises": "raises: RuntimeError: not yet written",
    "mlp --set model.depth=3": "unexpected keyword argument 'depth'",
    "missing": "has no 'missing'; its functions: mlp, vit",
    "mlp --set model.=3": "'model.=3' sets nothing",
}


@pytest.mark.parametrize("name", WRONG)
def test_a_bad_network_is_one_line_and_writes_nothing(repro, written, tmp_path, name):
    path = written("models.py", MODELS)
    code, out, err = repro("run", "warm_start", *TINY, "--set", *f"model={path}:{name}".split())
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1 and WRONG[name] in err, err
    assert not (tmp_path / "results").exists()


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


def test_a_hook_that_changes_shapes_is_refused(written):
    path = written("models.py", MODELS)
    hook = own.code(f"{path}:grows")
    made = run(own.code(f"{path}:mlp"), Stage(1), Stage(1, hook=hook))
    with pytest.raises(InputError, match="must leave the network its modules and their shapes"):
        models.check([made])
