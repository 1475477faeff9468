import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from repro import kernels, models, tiles
from repro.config import MODULES, Model
from repro.models import ResNet

CPU = torch.device("cpu")


def drawn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def close(found, expected):
    """To what float32 keeps of sums of this size."""
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_tiles_hold_the_images_and_give_them_back():
    x = drawn(48, 6, 5, 4)
    cut = tiles.tile(x, 2)
    assert cut.shape == (2, 3, 5, 4, 3, 16)
    assert cut[1, 2, 4, 3, 0, 7] == x[2 * 16 + 7, 1 * 3 + 0, 4, 3]
    assert torch.equal(tiles.untile(cut), x)


@settings(max_examples=40, deadline=None)
@given(
    members=st.integers(1, 3),
    inputs=st.integers(1, 14),
    outputs=st.integers(1, 14),
    side=st.integers(1, 9),
    tiled=st.integers(1, 3),
    size=st.sampled_from([1, 3]),
    stride=st.sampled_from([1, 2]),
)
def test_a_convolution_is_that_of_pytorch_forward_and_backward(
    members, inputs, outputs, side, tiled, size, stride
):
    x, weight = (
        drawn(16 * tiled, members * inputs, side, side + 1),
        drawn(members * outputs, inputs, size, size),
    )
    exact_x, exact_weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    exact = F.conv2d(exact_x, exact_weight, stride=stride, padding=size // 2, groups=members)
    towards = drawn(*exact.shape, seed=1)
    exact.backward(towards)

    ours_x, ours_weight = tiles.tile(x, members).float().requires_grad_(), weight.float().requires_grad_()
    ours = tiles.convolve(ours_x, ours_weight, stride)
    ours.backward(tiles.tile(towards, members).float())
    close(tiles.untile(ours), exact.detach())
    close(tiles.untile(ours_x.grad), exact_x.grad)
    close(ours_weight.grad, exact_weight.grad)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("adds", [True, False])
def test_batch_norm_residual_and_relu_are_those_of_pytorch(relu, adds):
    x, other = 3 + 2 * drawn(32, 6, 3, 3), drawn(32, 6, 3, 3, seed=1)
    exact, ours = models.Norm(6, relu).double(), models.Norm(6, relu)
    with torch.no_grad():
        for norm in (exact, ours):
            norm.weight.copy_(drawn(6, seed=2))
            norm.bias.copy_(drawn(6, seed=3))
    for training in (True, True, False):  # the second time around running statistics, then by them
        exact_x, exact_other = (t.clone().requires_grad_() for t in (x, other))
        y = exact.train(training)(exact_x, exact_other if adds else None)
        ours_x, ours_other = (tiles.tile(t, 2).float().requires_grad_() for t in (x, other))
        found = ours.train(training)(ours_x, ours_other if adds else None)
        close(tiles.untile(found), y.detach())
        if training:
            towards = drawn(*y.shape, seed=4)
            pairs = [(ours_x, exact_x), *zip(ours.parameters(), exact.parameters(), strict=True)]
            for a, b in pairs:
                a.grad = b.grad = None
            y.backward(towards)
            found.backward(tiles.tile(towards, 2).float())
            close(tiles.untile(ours_x.grad), exact_x.grad)
            for a, b in pairs[1:]:
                close(a.grad, b.grad)
            if adds:
                close(tiles.untile(ours_other.grad), exact_other.grad)
    for name in ("running_mean", "running_var"):
        close(getattr(ours, name), getattr(exact, name))


def test_a_norm_of_numbers_far_from_zero_keeps_their_spread():
    """Once running statistics are near; a mean of squares alone would lose it."""
    norm, x = models.Norm(1, relu=False), 1000 + drawn(160, 1, 4, 4)
    for _ in range(60):
        y = norm(tiles.tile(x, 1).float())
    assert float(y.detach().std()) == pytest.approx(1, abs=1e-3)


def network(members, width=5, depth=1, seeds=range(10)):
    made = ResNet(Model(width, depth), 3, 10, members)
    for p, seed in zip(range(members), seeds, strict=False):
        made.initialise(p, MODULES, seed, stage=1)
    return made.to(memory_format=torch.channels_last)


def slopes(made, x, y):
    made.zero_grad()
    losses = F.cross_entropy(made(x).flatten(0, 1), y.flatten(), reduction="sum")
    losses.backward()
    return float(losses.detach()), {name: p.grad for name, p in made.named_parameters()}


@pytest.mark.parametrize(("width", "depth", "side"), [(5, 1, 12), (3, 2, 9), (8, 1, 4), (8, 1, 16)])
def test_a_network_in_tiles_is_the_same_network(width, depth, side):
    """Loss, gradients, running statistics and test logits, against float64.

    With images that bring no number so near to zero that rounding decides its ReLU, as seed 0 does.
    """
    x, y = drawn(32, 2 * 3, side, side, seed=1), torch.arange(64).view(2, 32) % 10
    exact, ours = network(2, width, depth).double(), network(2, width, depth)
    (loss, gradients), (found_loss, found) = slopes(exact, x, y), slopes(ours, tiles.tile(x, 2).float(), y)
    assert found_loss == pytest.approx(loss, rel=1e-5)
    scale = max(float(gradient.abs().max()) for gradient in gradients.values())
    for name, gradient in gradients.items():
        torch.testing.assert_close(found[name].double(), gradient, rtol=1e-3, atol=1e-5 * scale)
    with torch.no_grad():
        close(ours.eval()(tiles.tile(x, 2).float()), exact.eval()(x))


@pytest.mark.parametrize("width", [5, 8])
def test_a_member_is_the_same_in_every_population(width):
    """Bit for bit before the head, a product of matrices, whose order is the library's."""
    x, y = drawn(32, 3 * 3, 8, 8, dtype=torch.float32), torch.arange(96).view(3, 32) % 10
    together = network(3, width)
    _, gradients = slopes(together, tiles.tile(x, 3), y)
    for p in range(3):
        alone = network(1, width, seeds=[p])
        _, expected = slopes(alone, tiles.tile(x.chunk(3, 1)[p], 1), y[p : p + 1])
        for name, gradient in expected.items():
            torch.testing.assert_close(gradients[name].chunk(3)[p], gradient, rtol=1e-5, atol=1e-5)
        for name, tensor in alone.state_dict().items():
            if "running" in name:
                assert torch.equal(together.member(p)[name], tensor), name


@pytest.mark.parametrize("width", [5, 8])
def test_no_number_of_one_member_or_image_reaches_another(width):
    x = drawn(32, 2 * 3, 8, 8, dtype=torch.float32)
    made = network(2, width).eval()
    with torch.no_grad():
        clean = made(tiles.tile(x, 2))
        x[5, 3:] = torch.nan  # an image of the second member
        logits = made(tiles.tile(x, 2))
    assert torch.equal(logits[0], clean[0])
    assert logits[1, 5].isnan().all()
    others = torch.arange(32) != 5
    assert torch.equal(logits[1, others], clean[1, others])


def test_a_network_that_diverges_shows_it_in_tiles_too():
    made = network(1)
    with torch.no_grad():
        made.module1[0].weight.fill_(torch.inf)
    loss, _ = slopes(made, tiles.tile(drawn(16, 3, 8, 8, dtype=torch.float32), 1), torch.zeros(1, 16).long())
    assert loss != loss


def test_what_fits_is_trained_in_tiles():
    assert tiles.fit(32, CPU, "float32")
    assert not tiles.fit(33, CPU, "float32")
    assert not tiles.fit(32, CPU, "bf16")
    assert not tiles.fit(32, CPU, "float64")
    assert not tiles.fit(32, torch.device("cuda"), "float32")


@pytest.mark.parametrize(("count", "most"), [(n, most) for n in range(1, 40) for most in (3, 4, 6)])
def test_blocks_cover_every_channel_once(count, most):
    sizes, larger = kernels.cut(count, most)
    smaller = count - larger
    assert 0 < larger <= count
    assert larger % sizes[0] == 0
    assert max(sizes) <= most
    assert smaller == 0 if len(sizes) == 1 else smaller % sizes[1] == 0 and smaller > 0


def test_without_llvmlite_networks_train_without_tiles():
    program = (
        "import sys; sys.modules['llvmlite'] = None\n"
        "import torch\n"
        "from repro import tiles\n"
        "from repro.config import Dataset, Model, Run, Stage\n"
        "from repro.populations import Member, Population\n"
        "assert not tiles.fit(32, torch.device('cpu'), 'float32')\n"
        "run = Run(Dataset('digits', 160, 96, 0.1), Model(2, 1), (Stage(1),), 32, 0, 0, 0)\n"
        "[loss], _ = Population([Member(run)], torch.device('cpu'), 'float32').train_epoch()\n"
        "assert 1 < loss < 4\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


FEWER_LANES = """
import sys
import torch
from llvmlite import binding

features = binding.get_host_cpu_features()
features.update({name: False for name in features if name.startswith("avx512")})
binding.get_host_cpu_features = lambda: features
from repro import loops, tiles

assert loops.LANES == 8
x, weight = (tensor.requires_grad_() for tensor in torch.load(sys.argv[1]))
y = tiles.convolve(x, weight, 1)
y.square().sum().backward()
torch.save([y.detach(), x.grad, weight.grad], sys.argv[1])
"""


@pytest.mark.parametrize(("inputs", "side"), [(3, 10), (8, 8)])  # directly, and by Winograd's method
def test_vectors_of_eight_and_of_sixteen_lanes_sum_in_the_same_order_but_for_weights(tmp_path, inputs, side):
    x, weight = drawn(1, 2, side, side, inputs, 16).float(), drawn(9, inputs, 3, 3).float()
    torch.save([x, weight], tmp_path / "tensors")
    subprocess.run([sys.executable, "-c", FEWER_LANES, str(tmp_path / "tensors")], check=True)
    x.requires_grad_(), weight.requires_grad_()
    y = tiles.convolve(x, weight, 1)
    y.square().sum().backward()
    with_eight = torch.load(tmp_path / "tensors")
    assert torch.equal(with_eight[0], y)
    assert torch.equal(with_eight[1], x.grad)
    close(with_eight[2], weight.grad.double())


def test_a_norm_is_no_other_module_to_pytorch():
    assert isinstance(models.Norm(3), nn.BatchNorm2d)
    assert set(models.Norm(3).state_dict()) == {"weight", "bias", "running_mean", "running_var"}
