"""The network on a CPU: `cpu.forward` gives what the plain network gives, and so does each part of it."""

import contextlib
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from repro import cpu
from repro.config import MODULES, Model
from repro.cpu import kernels, tiles, winograd
from repro.training.network import ResNet


def drawn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def close(found, expected):
    """To what float32 keeps of sums of this size."""
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def tiled(images, members):
    return tiles.tile(images, members).float()


def untiled(x):
    """Tiles [P, T, H, W, C, L] as images [B, P * C, H, W]."""
    return x.permute(1, 5, 0, 4, 2, 3).flatten(0, 1).flatten(1, 2)


def network(members, width=5, depth=1, seeds=range(10)):
    made = ResNet(Model(width, depth), 3, 10, members)
    for p, seed in zip(range(members), seeds, strict=False):
        made.initialise(p, MODULES, seed, stage=1)
    return made.to(memory_format=torch.channels_last)


# Networks


def gradients(made, x, y):
    """Summed loss, and its gradient by each parameter."""
    made.zero_grad()
    losses = F.cross_entropy(cpu.forward(made, x).flatten(0, 1), y.flatten(), reduction="sum")
    losses.backward()
    return float(losses.detach()), {name: p.grad for name, p in made.named_parameters()}


@pytest.mark.parametrize(("width", "depth", "side"), [(5, 1, 12), (3, 2, 9), (8, 1, 4), (8, 1, 16)])
def test_a_network_in_tiles_is_the_same_network(width, depth, side):
    """Loss, gradients, running statistics and test logits, against PyTorch's in float64.

    With images that bring no number so near to zero that rounding decides its ReLU, as seed 0 does.
    """
    x, y = drawn(32, 2 * 3, side, side, seed=1), torch.arange(64).view(2, 32) % 10
    exact, ours = network(2, width, depth).double(), network(2, width, depth)
    (loss, expected), (found_loss, found) = gradients(exact, x, y), gradients(ours, x.float(), y)
    assert found_loss == pytest.approx(loss, rel=1e-5)
    scale = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name].double(), gradient, rtol=1e-3, atol=1e-5 * scale)
    for name, buffer in exact.named_buffers():
        close(ours.get_buffer(name), buffer)
    with torch.no_grad():
        close(cpu.forward(ours.eval(), x.float()), exact.eval()(x))


@pytest.mark.parametrize("width", [5, 8])
def test_a_member_is_the_same_in_every_population(width):
    """Bit for bit before the head, a product of matrices, whose order is the library's."""
    x, y = drawn(32, 3 * 3, 8, 8, dtype=torch.float32), torch.arange(96).view(3, 32) % 10
    together = network(3, width)
    _, found = gradients(together, x, y)
    for p in range(3):
        alone = network(1, width, seeds=[p])
        _, expected = gradients(alone, x.chunk(3, 1)[p], y[p : p + 1])
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name].chunk(3)[p], gradient, rtol=1e-5, atol=1e-5)
        for name, tensor in alone.state_dict().items():
            if "running" in name:
                assert torch.equal(together.member(p)[name], tensor), name


@pytest.mark.parametrize("width", [5, 8])
def test_no_number_of_one_member_or_image_reaches_another(width):
    x = drawn(32, 2 * 3, 8, 8, dtype=torch.float32)
    made = network(2, width).eval()
    with torch.no_grad():
        clean = cpu.forward(made, x)
        x[5, 3:] = torch.nan  # an image of the second member
        logits = cpu.forward(made, x)
    assert torch.equal(logits[0], clean[0])
    assert logits[1, 5].isnan().all()
    others = torch.arange(32) != 5
    assert torch.equal(logits[1, others], clean[1, others])


def test_a_network_that_diverges_shows_it_in_tiles_too():
    made = network(1)
    with torch.no_grad():
        made.module1[0].weight.fill_(torch.inf)
    loss, _ = gradients(made, drawn(16, 3, 8, 8, dtype=torch.float32), torch.zeros(1, 16).long())
    assert loss != loss


@pytest.mark.parametrize(
    ("images", "dtype", "in_tiles"),
    [(32, torch.float32, True), (33, torch.float32, False), (32, torch.float64, False)],
)
def test_float32_in_multiples_of_sixteen_goes_in_tiles_and_all_else_through_pytorch(images, dtype, in_tiles):
    # Of this size convolutions go by Winograd's method, which rounds in its own way.
    made, x = network(2, width=8).to(dtype).eval(), drawn(images, 2 * 3, 16, 16, dtype=dtype)
    with torch.no_grad():
        expected = made(x.contiguous(memory_format=torch.channels_last))
        assert torch.equal(cpu.forward(made, x), expected) != in_tiles


@pytest.mark.parametrize("supported", [True, False])
def test_bf16_is_that_of_the_processor_or_emulated(supported):
    # So wide that the orders of sums differ, and with them some roundings.
    made, x = network(2, width=16).eval(), drawn(32, 2 * 3, 16, 16, dtype=torch.float32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = cpu.forward(made, x, supported)
        with contextlib.nullcontext() if supported else cpu.EmulatedBf16():
            assert torch.equal(found, made(x.contiguous(memory_format=torch.channels_last)))


def test_without_llvmlite_networks_train_without_tiles():
    program = (
        "import sys; sys.modules['llvmlite'] = None\n"
        "import torch\n"
        "from repro import cpu\n"
        "from repro.config import Dataset, Model, Run, Stage\n"
        "from repro.training.populations import Member, Population\n"
        "assert cpu.versions() == {}\n"
        "run = Run(Dataset('digits', 160, 96, 0.1), Model(2, 1), (Stage(1),), 32, 0, 0, 0)\n"
        "[loss], _ = Population([Member(run)], torch.device('cpu'), 'float32').train_epoch()\n"
        "assert 1 < loss < 4\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


# Rounding to bf16


@pytest.mark.parametrize(("size", "stride"), [(3, 1), (3, 2), (1, 1)])
def test_a_processor_without_bf16_rounds_as_one_with_it(size, stride):
    """To one unit of bf16's last place of exact convolutions of rounded numbers, forward and backward."""
    layer = nn.Conv2d(2 * 6, 2 * 5, size, stride, padding=size // 2, groups=2, bias=False)
    x = drawn(5, 2 * 6, 8, 8, dtype=torch.float32).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16), cpu.EmulatedBf16():
        y = layer(x)
    towards = drawn(*y.shape, seed=1).bfloat16()
    y.backward(towards)

    exact_x, exact_weight = (t.detach().bfloat16().double().requires_grad_() for t in (x, layer.weight))
    exact = F.conv2d(exact_x, exact_weight, stride=stride, padding=size // 2, groups=2)
    exact.backward(towards.double())
    assert y.dtype == torch.bfloat16
    for found, expected in ((y, exact), (x.grad, exact_x.grad), (layer.weight.grad, exact_weight.grad)):
        assert torch.equal(found, found.bfloat16().to(found.dtype))
        torch.testing.assert_close(found.double(), expected, rtol=2**-8, atol=1e-6)
    assert layer(x).dtype == torch.float32  # outside the context


# Layers in tiles


def test_tiles_hold_the_images():
    x = drawn(48, 6, 5, 4)
    cut = tiles.tile(x, 2)
    assert cut.shape == (2, 3, 5, 4, 3, 16)
    assert cut[1, 2, 4, 3, 0, 7] == x[2 * 16 + 7, 1 * 3 + 0, 4, 3]
    assert torch.equal(untiled(cut), x)


@settings(max_examples=40, deadline=None)
@given(
    members=st.integers(1, 3),
    inputs=st.integers(1, 14),
    outputs=st.integers(1, 14),
    side=st.integers(1, 9),
    count=st.integers(1, 3),
    size=st.sampled_from([1, 3]),
    stride=st.sampled_from([1, 2]),
)
def test_a_convolution_is_that_of_pytorch_forward_and_backward(
    members, inputs, outputs, side, count, size, stride
):
    x = drawn(16 * count, members * inputs, side, side + 1)
    weight = drawn(members * outputs, inputs, size, size)
    exact_x, exact_weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    exact = F.conv2d(exact_x, exact_weight, stride=stride, padding=size // 2, groups=members)
    towards = drawn(*exact.shape, seed=1)
    exact.backward(towards)

    ours_x, ours_weight = tiled(x, members).requires_grad_(), weight.float().requires_grad_()
    ours = tiles.convolve(ours_x, ours_weight, stride)
    ours.backward(tiled(towards, members))
    close(untiled(ours), exact.detach())
    close(untiled(ours_x.grad), exact_x.grad)
    close(ours_weight.grad, exact_weight.grad)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("adds", [True, False])
def test_batch_norm_residual_and_relu_are_those_of_pytorch(relu, adds):
    x, other = 3 + 2 * drawn(32, 6, 3, 3), drawn(32, 6, 3, 3, seed=1)
    exact, ours = nn.BatchNorm2d(6).double(), nn.BatchNorm2d(6)
    with torch.no_grad():
        for norm in (exact, ours):
            norm.weight.copy_(drawn(6, seed=2))
            norm.bias.copy_(drawn(6, seed=3))
    for training in (True, True, False):  # the second time around running statistics, then by them
        exact_x, exact_other = (t.clone().requires_grad_() for t in (x, other))
        y = exact.train(training)(exact_x)
        y = y + exact_other if adds else y
        y = F.relu(y) if relu else y
        ours_x, ours_other = (tiled(t, 2).requires_grad_() for t in (x, other))
        found = tiles.normalise(ours_x, ours.train(training), relu, ours_other if adds else None)
        close(untiled(found), y.detach())
        if training:
            towards = drawn(*y.shape, seed=4)
            pairs = [(ours_x, exact_x), *zip(ours.parameters(), exact.parameters(), strict=True)]
            for a, b in pairs:
                a.grad = b.grad = None
            y.backward(towards)
            found.backward(tiled(towards, 2))
            close(untiled(ours_x.grad), exact_x.grad)
            for a, b in pairs[1:]:
                close(a.grad, b.grad)
            if adds:
                close(untiled(ours_other.grad), exact_other.grad)
    for name in ("running_mean", "running_var"):
        close(getattr(ours, name), getattr(exact, name))


def test_a_norm_of_numbers_far_from_zero_keeps_their_spread():
    """Once running statistics are near; a mean of squares alone would lose it."""
    norm, x = nn.BatchNorm2d(1), tiled(1000 + drawn(160, 1, 4, 4), 1)
    for _ in range(60):
        y = tiles.normalise(x, norm, relu=False)
    assert float(y.detach().std()) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(("count", "most"), [(n, most) for n in range(1, 40) for most in (3, 4, 6)])
def test_blocks_cover_every_channel_once(count, most):
    sizes, larger = kernels.cut(count, most)
    smaller = count - larger
    assert 0 < larger <= count
    assert larger % sizes[0] == 0
    assert max(sizes) <= most
    assert smaller == 0 if len(sizes) == 1 else smaller % sizes[1] == 0 and smaller > 0


FEWER_LANES = """
import sys
import torch
from llvmlite import binding

features = binding.get_host_cpu_features()
features.update({name: False for name in features if name.startswith("avx512")})
binding.get_host_cpu_features = lambda: features
from repro.cpu import tiles, vectors

assert vectors.LANES == 8
for path in sys.argv[1:]:
    x, weight = (tensor.requires_grad_() for tensor in torch.load(path))
    y = tiles.convolve(x, weight)
    y.square().sum().backward()
    torch.save([y.detach(), x.grad, weight.grad], path)
"""


def test_vectors_of_eight_and_of_sixteen_lanes_sum_in_the_same_order_but_for_weights(tmp_path):
    """Directly, and by Winograd's method."""
    made = {}
    for inputs, side in ((3, 10), (8, 8)):
        x, weight = drawn(1, 2, side, side, inputs, 16).float(), drawn(9, inputs, 3, 3).float()
        made[tmp_path / f"tensors{inputs}"] = x, weight
        torch.save([x, weight], tmp_path / f"tensors{inputs}")
    subprocess.run([sys.executable, "-c", FEWER_LANES, *map(str, made)], check=True)
    for path, (x, weight) in made.items():
        x.requires_grad_(), weight.requires_grad_()
        y = tiles.convolve(x, weight)
        y.square().sum().backward()
        with_eight = torch.load(path)
        assert torch.equal(with_eight[0], y)
        assert torch.equal(with_eight[1], x.grad)
        close(with_eight[2], weight.grad.double())


# Convolutions by Winograd's method


def by_pytorch(x, weight, towards, members):
    """The convolution of images, and the gradients by images and weights of its product with `towards`."""
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    y = F.conv2d(x, weight, padding=1, groups=members)
    return y.detach(), *torch.autograd.grad(y, (x, weight), towards)


def by_winograd(x, weight, towards, members):
    x, weight, towards = tiled(x, members), weight.float(), tiled(towards, members)
    y, dx = winograd.convolve(x, weight), winograd.convolve(towards, weight, backward=True)
    return untiled(y), untiled(dx), winograd.correlate(x, towards)


def error(found, exact):
    """Root mean square, in units of the exact numbers' own."""
    return float((found.double() - exact).norm() / exact.norm())


@settings(max_examples=40, deadline=None)
@given(
    members=st.integers(1, 3),
    inputs=st.integers(1, 14),
    outputs=st.integers(1, 14),
    height=st.integers(1, 10),
    width=st.integers(1, 18),
    count=st.integers(1, 3),
)
def test_winograds_is_the_convolution_of_pytorch_with_both_gradients(
    members, inputs, outputs, height, width, count
):
    x, towards = (drawn(16 * count, members * n, height, width, seed=n) for n in (inputs, outputs))
    weight = drawn(members * outputs, inputs, 3, 3)
    exact = by_pytorch(x, weight, towards, members)
    for found, expected in zip(by_winograd(x, weight, towards, members), exact, strict=True):
        close(found, expected)


@pytest.mark.parametrize(("channels", "side"), [(16, 32), (128, 4)])
def test_it_rounds_little_more_than_other_float32(channels, side):
    """A hundred times less than bf16, which keeps eight binary digits, would."""
    x, towards = drawn(32, channels, side, side).relu(), drawn(32, channels, side, side, seed=1)
    weight = drawn(channels, channels, 3, 3)
    exact = by_pytorch(x, weight, towards, 1)
    direct = by_pytorch(x.float(), weight.float(), towards.float(), 1)
    for found, plain, expected in zip(by_winograd(x, weight, towards, 1), direct, exact, strict=True):
        assert error(found, expected) < min(3e-6, 30 * error(plain, expected))


def test_a_single_one_finds_each_weight():
    """The known answer: where one pixel is 1, the kernel appears turned around it."""
    x, weight = torch.zeros(16, 1, 8, 8), torch.arange(1.0, 10).view(1, 1, 3, 3)
    x[3, 0, 4, 3] = 1
    y = untiled(winograd.convolve(tiles.tile(x, 1), weight))
    torch.testing.assert_close(y[3, 0, 3:6, 2:5], weight[0, 0].flip(0, 1), rtol=1e-5, atol=1e-5)
    assert float(y[3, 0].abs().sum()) == pytest.approx(45, abs=1e-3)
    assert float(y[torch.arange(16) != 3].abs().max()) == 0


@pytest.mark.parametrize(("channels", "side", "used"), [(8, 32, True), (16, 16, True), (64, 4, False)])
def test_wide_layers_on_large_images_are_computed_by_it(channels, side, used):
    """At 4 x 4, 32 images have too few squares."""
    x, weight = drawn(1, 2, side, side, channels, 16).float(), drawn(channels, channels, 3, 3).float()
    assert torch.equal(tiles.convolve(x, weight), winograd.convolve(x, weight)) == used


@pytest.mark.parametrize(
    ("size", "stride", "count", "height", "width", "channels"),
    [
        (1, 1, 8, 32, 32, 16),
        (3, 2, 8, 32, 32, 16),
        (3, 1, 2, 6, 6, 24),
        (3, 1, 2, 4, 4, 64),
        (3, 1, 8, 32, 32, 3),
    ],
)
def test_what_gains_nothing_goes_the_direct_way(size, stride, count, height, width, channels):
    assert not winograd.pays(size, stride, count, height, width, channels)
