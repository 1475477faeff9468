import itertools
import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from repro.config import MODULES, Model
from repro.training.network import ResNet

SUBSETS = [chosen for n in range(7) for chosen in itertools.combinations(MODULES, n)]


def network(model, channels=1, classes=10, seeds=(0,), dtype=torch.float64):
    made = ResNet(model, channels, classes, len(seeds)).to(dtype)
    for p, seed in enumerate(seeds):
        made.initialise(p, MODULES, seed, stage=1)
    return made


def images(members, channels, side, seed=0, batch=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, members * channels, side, side, generator=generator, dtype=dtype)


def plain_logits(state, x, depth, training):
    """Logits [B, classes] of one ordinary network, written out with functions."""

    def norm(x, name):
        statistics = (state[f"{name}.running_mean"].clone(), state[f"{name}.running_var"].clone())
        return F.batch_norm(x, *statistics, state[f"{name}.weight"], state[f"{name}.bias"], training)

    x = F.relu(norm(F.conv2d(x, state["module1.0.weight"], padding=1), "module1.1"))
    for group in (2, 3, 4, 5):
        for block in range(depth):
            name, stride = f"module{group}.{block}", 2 if group > 2 and block == 0 else 1
            y = F.conv2d(x, state[f"{name}.conv1.weight"], stride=stride, padding=1)
            y = F.conv2d(F.relu(norm(y, f"{name}.norm1")), state[f"{name}.conv2.weight"], padding=1)
            if stride == 2:
                x = F.conv2d(x, state[f"{name}.shortcut.1.weight"], stride=2)
                x = norm(x, f"{name}.shortcut.2")
            x = F.relu(norm(y, f"{name}.norm2") + x)
    return F.linear(x.mean((2, 3)), state["module6.weight"][0], state["module6.bias"][0])


# Shapes and sizes


@pytest.mark.parametrize("members", [1, 3])
def test_width_64_depth_2_has_the_parameters_of_the_resnet_18_for_cifar(members):
    with torch.device("meta"):
        made = ResNet(Model(64, 2), 3, 10, members)
    assert sum(p.numel() for p in made.parameters()) == members * 11_173_962


def test_a_deeper_network_counts_two_convolutions_a_block_more():
    with torch.device("meta"):
        shallow, deep = (ResNet(Model(4, depth), 3, 10) for depth in (1, 2))
    blocks = sum(2 * (9 * c * c + 2 * c) for c in (4, 8, 16, 32))
    counts = [sum(p.numel() for p in made.parameters()) for made in (shallow, deep)]
    assert counts[1] - counts[0] == blocks


@pytest.mark.parametrize("members", [1, 3])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_any_size_give_logits_of_every_member(members, channels):
    made = network(Model(1, 1), channels, 7, range(members), torch.float32)
    for side in (4, 8, 9, 12, 15, 28, 32, 40):
        x = images(members, channels, side, batch=2, dtype=torch.float32)
        assert made.train()(x).shape == (members, 2, 7)
        assert made.eval()(x).shape == (members, 2, 7)


def test_every_tensor_is_cut_into_equal_shares_of_members():
    made = network(Model(2, 2), 3, 10, (0, 1, 2))
    alone = network(Model(2, 2), 3, 10, (1,))
    assert made.member(1).keys() == alone.state_dict().keys()
    for name, tensor in made.member(1).items():
        assert torch.equal(tensor, alone.state_dict()[name]), name
        assert made.state_dict()[name].shape[0] == 3 * tensor.shape[0]


# What it computes


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("depth", "channels", "side"), [(1, 1, 12), (2, 3, 9), (3, 1, 8)])
def test_one_member_is_the_ordinary_network(depth, channels, side, training):
    made = network(Model(3, depth), channels)
    made.train()(images(1, channels, side, seed=1))  # so that running statistics are not those of the start
    made.train(training)
    x = images(1, channels, side)
    expected = plain_logits({k: v.clone() for k, v in made.state_dict().items()}, x, depth, training)
    assert expected.std() > 0.01
    torch.testing.assert_close(made(x)[0], expected, rtol=1e-10, atol=1e-12)


@settings(max_examples=20)
@given(
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(1, 2),
    st.sampled_from([1, 3]),
    st.sampled_from([4, 7]),
    st.data(),
)
def test_a_population_computes_what_each_member_computes_alone(members, width, depth, channels, side, data):
    seeds = [data.draw(st.integers(0, 10**6)) for _ in range(members)]
    together = network(Model(width, depth), channels, 5, seeds)
    alone = [network(Model(width, depth), channels, 5, [seed]) for seed in seeds]
    x = images(members, channels, side)
    for training in (True, False):
        logits = together.train(training)(x)
        for p, made in enumerate(alone):
            expected = made.train(training)(x.chunk(members, dim=1)[p])
            torch.testing.assert_close(logits[p], expected[0], rtol=1e-9, atol=1e-11)
            for name, tensor in together.member(p).items():  # running statistics too
                torch.testing.assert_close(tensor, made.state_dict()[name], rtol=1e-9, atol=1e-11)


def test_members_do_not_feel_each_other():
    """Not even an infinity or a NaN, in forward or backward."""
    made = network(Model(3, 1), seeds=(0, 1, 2))
    x = images(3, 1, 8)
    made.train()(x)[[0, 2]].sum().backward()
    gradients = {name: p.grad.chunk(3) for name, p in made.named_parameters()}
    assert all(not parts[1].any() for parts in gradients.values())
    poisoned = network(Model(3, 1), seeds=(0, 1, 2))
    with torch.no_grad():
        for tensor in poisoned.member(1).values():
            tensor.fill_(torch.nan)
    logits = poisoned.train()(x)
    logits.nan_to_num()[[0, 2]].sum().backward()
    assert logits[1].isnan().all()
    for name, p in poisoned.named_parameters():
        for member in (0, 2):
            assert torch.equal(p.grad.chunk(3)[member], gradients[name][member]), name


NARROW = """
import torch
from repro.config import MODULES, Model
from repro.training.network import ResNet

for width in (1, 4, 7):
    network = ResNet(Model(width, 1), 3, 10)
    network.initialise(0, MODULES, seed=0, stage=1)
    network.to(memory_format=torch.channels_last)
    network(torch.ones(32, 3, 32, 32).contiguous(memory_format=torch.channels_last)).sum().backward()
"""


def test_a_narrow_network_trains_where_strided_projections_would_crash():
    """On processors with AVX2 only: backward, oneDNN 3.13 writes beyond its memory (its issue 6035)."""
    subprocess.run(
        [sys.executable, "-c", NARROW], env=os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}, check=True
    )


# Members


def test_a_member_is_a_view_and_loads_as_it_was_taken():
    made, other = network(Model(2, 1), seeds=(0, 1, 2)), network(Model(2, 1), seeds=(7, 8))
    taken = {name: tensor.clone() for name, tensor in other.member(1).items()}
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    made.load_member(2, taken)
    for name, tensor in made.state_dict().items():
        parts, old = tensor.chunk(3), before[name].chunk(3)
        assert torch.equal(parts[2], taken[name])
        assert torch.equal(parts[0], old[0])
        assert torch.equal(parts[1], old[1])
    made.member(0)["module6.bias"].fill_(5)
    assert (made.module6.bias[0] == 5).all()
    assert not (made.module6.bias[1:] == 5).any()


# Initialisation


@pytest.mark.parametrize("numbers", SUBSETS, ids=lambda numbers: "".join(map(str, numbers)) or "none")
def test_reset_touches_exactly_the_named_modules_of_exactly_that_member(numbers):
    made = ResNet(Model(1, 1), 1, 3, 2)
    with torch.no_grad():
        for tensor in made.state_dict().values():
            tensor.fill_(7)
    made.initialise(1, numbers, seed=0, stage=2)
    touched = {f"module{number}" for number in numbers}
    for name, tensor in made.member(1).items():
        assert bool((tensor != 7).all() if name.split(".")[0] in touched else (tensor == 7).all()), name
    assert all((tensor == 7).all() for tensor in made.member(0).values())
    statistics = {name.split(".")[0] for name in made.member(1) if "running" in name}
    assert statistics == {f"module{number}" for number in (1, 2, 3, 4, 5)}


def test_a_module_gets_the_same_values_whatever_else_is_drawn():
    whole = network(Model(2, 1), seeds=(3,)).member(0)
    torch.manual_seed(1)
    for numbers in SUBSETS:
        made = network(Model(2, 1), seeds=(8, 9, 10))
        made.initialise(2, reversed(numbers), seed=3, stage=1)
        for name, tensor in made.member(2).items():
            if int(name[6]) in numbers:
                assert torch.equal(tensor, whole[name]), (numbers, name)


def test_the_values_of_a_seed_stay_as_they_were():
    made = network(Model(2, 1), seeds=(0,), dtype=torch.float32).member(0)
    assert made["module6.bias"][0, :3].tolist() == pytest.approx(
        [-0.10362235, 0.16818804, 0.03298482], abs=1e-7
    )
    assert made["module1.0.weight"].flatten()[:3].tolist() == pytest.approx(
        [0.33165213, -0.27223989, -0.08974402], abs=1e-7
    )


def test_every_seed_stage_and_module_draws_values_of_its_own():
    drawn = {}
    for seed, stage in itertools.product((0, 1, 2, 2**40), (1, 2, 3)):
        made = ResNet(Model(4, 1), 1, 10)
        made.initialise(0, MODULES, seed, stage)
        for number in MODULES:
            weight = next(v for k, v in made.member(0).items() if k.startswith(f"module{number}."))
            fan_in = weight.shape[-1] if number == 6 else weight[0].numel()
            drawn[seed, stage, number] = tuple(
                (weight.flatten()[:8] * fan_in**0.5).round(decimals=3).tolist()
            )
    assert len(set(drawn.values())) == len(drawn)


def test_weights_start_uniform_within_one_over_the_root_of_the_fan_in():
    state = network(Model(16, 2), 3, seeds=(0,), dtype=torch.float32).member(0)
    for name, tensor in state.items():
        if tensor.ndim == 4:
            fan_in = tensor.shape[1] * tensor.shape[2] * tensor.shape[3]
        elif name.startswith("module6"):
            fan_in = 128  # features, for the bias as well
        else:
            value = 1 if name.endswith(("weight", "running_var")) else 0
            assert (tensor == value).all(), name
            continue
        bound, n = fan_in**-0.5, tensor.numel()
        assert tensor.abs().max() <= bound, name
        if n >= 100:
            assert tensor.abs().max() > bound * (1 - 12 / n), name
            # Five standard errors of the mean and of the deviation of n uniform numbers.
            assert abs(tensor.mean()) < 5 * bound / (3 * n) ** 0.5, name
            assert tensor.std() == pytest.approx(bound / 3**0.5, rel=5 * 0.447 / n**0.5), name


def test_shrinking_and_perturbing_adds_a_new_network_to_a_shrunken_one():
    """In all parameters, batch norms included, of one member; running statistics stay."""
    made, new = network(Model(2, 1), seeds=(3, 4)), ResNet(Model(2, 1), 1, 10).double()
    made.train()(images(2, 1, 8))  # so that running statistics are not those of the start
    new.initialise(0, MODULES, seed=9, stage=2)
    with torch.no_grad():
        for p in made.parameters():
            p.mul_(1.5)
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    made.shrink_and_perturb(1, 0.4, 0.1, 9, 2)
    for name, tensor in made.member(1).items():
        old = before[name].chunk(2)[1]
        expected = old if "running" in name else 0.4 * old + 0.1 * new.state_dict()[name]
        torch.testing.assert_close(tensor, expected, rtol=1e-12, atol=0)
    for name, tensor in made.member(0).items():
        assert torch.equal(tensor, before[name].chunk(2)[0])


def test_the_start_is_that_of_pytorch():
    """The same distribution, to three digits in its quantiles, as `torch.nn` draws for these shapes."""
    torch.manual_seed(0)
    ours = network(Model(16, 2), 3, seeds=(0,), dtype=torch.float32).member(0)["module5.1.conv2.weight"]
    theirs = torch.nn.Conv2d(128, 128, 3, bias=False).weight.detach()
    levels = torch.linspace(0, 1, 11)
    quantiles = [tensor.flatten()[:100_000].quantile(levels) for tensor in (ours, theirs)]
    torch.testing.assert_close(*quantiles, rtol=0, atol=0.01 * float(theirs.abs().max()))
