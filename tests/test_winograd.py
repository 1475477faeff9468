"""Convolutions by Winograd's method are convolutions, at any size, and round little more."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_tiles import close, drawn
from torch.nn import functional as F

from repro import models, tiles, winograd
from repro.config import Model


def convolved(x, weight, towards, members):
    """The convolution of images, and the gradients by images and weights of its product with `towards`."""
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    y = F.conv2d(x, weight, padding=1, groups=members)
    return y.detach(), *torch.autograd.grad(y, (x, weight), towards)


def by_winograd(x, weight, towards, members):
    x, weight, towards = tiles.tile(x, members).float(), weight.float(), tiles.tile(towards, members).float()
    y, dx = winograd.convolve(x, weight), winograd.convolve(towards, weight, backward=True)
    return tiles.untile(y), tiles.untile(dx), winograd.correlate(x, towards)


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
    tiled=st.integers(1, 3),
)
def test_it_is_the_convolution_of_pytorch_with_both_gradients(members, inputs, outputs, height, width, tiled):
    x, towards = (drawn(16 * tiled, members * n, height, width, seed=n) for n in (inputs, outputs))
    weight = drawn(members * outputs, inputs, 3, 3)
    exact = convolved(x, weight, towards, members)
    for found, expected in zip(by_winograd(x, weight, towards, members), exact, strict=True):
        close(found, expected)


@pytest.mark.parametrize(("channels", "side"), [(16, 32), (128, 4)])
def test_it_rounds_little_more_than_other_float32(channels, side):
    """A hundred times less than bf16, which keeps eight binary digits, would."""
    x, towards = drawn(32, channels, side, side).relu(), drawn(32, channels, side, side, seed=1)
    weight = drawn(channels, channels, 3, 3)
    exact = convolved(x, weight, towards, 1)
    direct = convolved(x.float(), weight.float(), towards.float(), 1)
    for found, plain, expected in zip(by_winograd(x, weight, towards, 1), direct, exact, strict=True):
        assert error(found, expected) < min(3e-6, 30 * error(plain, expected))


def test_a_single_one_finds_each_weight():
    """The known answer: where one pixel is 1, the kernel appears turned around it."""
    x, weight = torch.zeros(16, 1, 8, 8), torch.arange(1.0, 10).view(1, 1, 3, 3)
    x[3, 0, 4, 3] = 1
    y = tiles.untile(winograd.convolve(tiles.tile(x, 1), weight))
    torch.testing.assert_close(y[3, 0, 3:6, 2:5], weight[0, 0].flip(0, 1), rtol=1e-5, atol=1e-5)
    assert float(y[3, 0].abs().sum()) == pytest.approx(45, abs=1e-3)
    assert float(y[torch.arange(16) != 3].abs().max()) == 0


def test_wide_networks_on_large_images_train_by_it(monkeypatch):
    made = models.ResNet(Model(8, 1), 3, 10, 1)
    made.initialise(0, range(1, 7), 0, 1)
    seen, convolve = set(), winograd.convolve
    monkeypatch.setattr(winograd, "convolve", lambda x, *rest: seen.add(x.shape[2:5]) or convolve(x, *rest))
    made(tiles.tile(torch.zeros(32, 3, 32, 32), 1))
    assert seen == {(32, 32, 8), (16, 16, 16), (8, 8, 32)}  # 4 x 4 has too few squares for 32 images


@pytest.mark.parametrize(
    ("size", "stride", "tiled", "height", "width", "channels"),
    [
        (1, 1, 8, 32, 32, 16),
        (3, 2, 8, 32, 32, 16),
        (3, 1, 2, 6, 6, 24),
        (3, 1, 2, 4, 4, 64),
        (3, 1, 8, 32, 32, 3),
    ],
)
def test_what_gains_nothing_goes_the_direct_way(size, stride, tiled, height, width, channels):
    assert not winograd.pays(size, stride, tiled, height, width, channels)
