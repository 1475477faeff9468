import copy
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from repro.config import MODULES, PROBES, Model
from repro.training import probes
from repro.training.network import ResNet
from repro.training.probes import (
    gradient_noise,
    largest_hessian_eigenvalue,
    mean_loss,
    measure,
    noise,
    noise_to_signal,
    sharpness,
    trace_and_signal,
)

TINY = Model(1, 1)
OLD = torch.arange(20) < 10  # of twenty images, those that a pretraining had


@pytest.fixture(autouse=True)
def one_thread():
    """Networks this small lose more by waiting for a second thread than they win."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def network(seeds=(0,), model=TINY, channels=1, classes=3, dtype=torch.float64):
    """Networks with statistics of their own in batch norm, as after some training."""
    made = ResNet(model, channels, classes, len(seeds)).to(dtype)
    for p, seed in enumerate(seeds):
        made.initialise(p, MODULES, seed, stage=1)
        generator = torch.Generator().manual_seed(seed)
        for name, tensor in made.member(p).items():
            if "running" in name:
                noise = torch.rand(tensor.shape, generator=generator)
                tensor.copy_(0.1 * noise + 0.1 if name.endswith("var") else 0.2 * noise - 0.1)
    return made


def examples(n, channels=1, classes=3, side=6, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, channels, side, side, generator=generator, dtype=dtype)
    return x, torch.randint(classes, (n,), generator=generator)


# Noise of gradients


def regression_gradients(batch, count, weights=(0.5, 0.0), scale=1.0, seed=0):
    """Gradients of the mean of (w + b x - y)^2 / 2 on batches of normal x and y, and those batches."""
    x, y = np.random.default_rng(seed).standard_normal((2, count, batch))
    w, b = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in weights)
    gradients = []
    for rows, targets in zip(torch.tensor(x), torch.tensor(y), strict=True):
        loss = (w + b * rows - targets).square().mean() / 2
        gradients.append(torch.autograd.grad(scale * loss, (w, b)))
    return gradients, x, y


def test_trace_and_signal_are_unbiased_where_the_ratio_of_before_saturates():
    """Gradients of mean m and variance s^2 in each of d directions: trace d s^2, squared norm d m^2."""
    random, d, k = np.random.default_rng(0), 40, 20
    found = []
    for _ in range(400):
        gradients = 0.1 + 3 * random.standard_normal((k, d))
        found.append(trace_and_signal([torch.tensor(g)[None]] for g in gradients))
    trace, signal = np.mean(found, 0)
    assert trace == pytest.approx(9 * d, rel=0.01)
    assert signal == pytest.approx(0.01 * d, abs=4 * np.std(found, 0)[1] / 20)
    assert noise_to_signal([torch.tensor(g)[None]] for g in gradients) < k  # 900 without bias


def test_trace_and_signal_need_two_gradients():
    assert all(map(math.isnan, trace_and_signal([[torch.ones(2)]])))


def test_noise_of_old_and_of_new_images_is_that_of_these_images_alone():
    x, y = examples(48)
    old = torch.arange(48) % 2 == 0
    found = noise(network(), x, y, old, batch_size=8)
    assert list(found) == [f"noise_{n}{of}" for of in ("", "_old", "_new") for n in ("trace", "signal")]
    assert found["noise_trace_old"] != pytest.approx(found["noise_trace_new"])
    swapped = noise(network(), x, y, ~old, batch_size=8)
    assert swapped["noise_trace_old"] == found["noise_trace_new"]
    assert swapped["noise_trace"] == found["noise_trace"]


def test_the_loss_beside_a_curvature_is_that_of_the_tested_network():
    x, y = examples(20)
    made = network()
    expected = F.cross_entropy(made.eval()(x)[0], y)
    assert mean_loss(made.train(), x, y) == pytest.approx(float(expected))


def test_noise_to_signal_of_two_gradients_by_hand():
    batches = [[torch.tensor([1.0]), torch.tensor([[3.0]])], [torch.tensor([3.0]), torch.tensor([[1.0]])]]
    assert noise_to_signal(batches) == pytest.approx((1 + 1) / (4 + 4))


@pytest.mark.parametrize(("w", "b"), [(0.5, 0.0), (-1.0, 2.0), (3.0, 1.0)])
def test_noise_of_a_linear_regression_is_its_closed_form(w, b):
    gradients, x, y = regression_gradients(batch=10, count=7, weights=(w, b))
    by_batch = np.stack([(w + b * x - y).mean(1), ((w + b * x - y) * x).mean(1)])  # [2, batches]
    expected = by_batch.var(1).sum() / (by_batch.mean(1) ** 2).sum()
    assert noise_to_signal(gradients) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("scale", [1e-12, 3.0, 1e12])
def test_the_scale_of_the_loss_does_not_matter(scale):
    noise, scaled = (noise_to_signal(regression_gradients(10, 7, scale=s)[0]) for s in (1.0, scale))
    assert scaled == pytest.approx(noise, rel=1e-9)


def test_equal_batches_have_no_noise():
    gradient = [torch.randn(3, 4), torch.randn(3)]
    assert noise_to_signal([gradient] * 7) == pytest.approx(0, abs=1e-14)
    x, y = examples(1)
    repeated = gradient_noise(network(), x.repeat(20, 1, 1, 1), y.repeat(20), batch_size=4)
    assert repeated == pytest.approx(0, abs=1e-14)


def test_batches_four_times_as_large_are_a_quarter_as_noisy():
    small, large = (noise_to_signal(regression_gradients(batch, 4000)[0]) for batch in (8, 32))
    assert small / large == pytest.approx(4, rel=0.15)


def test_pure_noise_of_k_batches_comes_to_about_k_minus_1():
    generator = torch.Generator().manual_seed(0)
    batches = [[torch.randn(100_000, generator=generator)] for _ in range(5)]
    assert noise_to_signal(batches) == pytest.approx(4, rel=0.05)


def test_noise_is_nan_where_it_is_not_defined():
    assert math.isnan(noise_to_signal([]))
    assert math.isnan(noise_to_signal([[torch.ones(2)]]))
    assert math.isnan(noise_to_signal([[torch.zeros(2)]] * 2))
    assert math.isnan(noise_to_signal([[torch.tensor([math.nan, 1.0])], [torch.tensor([1.0, 1.0])]]))


def test_gradient_noise_of_a_network_is_that_of_its_stacked_gradients():
    x, y = examples(45)
    made, plain = network(), network().train()
    order = probes._order(y)
    stacked = []
    for k in range(4):  # the fifth batch of ten would not be full
        index = order[10 * k : 10 * (k + 1)]
        plain.zero_grad()
        F.cross_entropy(plain(x[index])[0], y[index]).backward()
        stacked.append(torch.cat([p.grad.flatten() for p in plain.parameters()]))
    gradients = torch.stack(stacked)
    expected = gradients.var(0, correction=0).sum() / gradients.mean(0).square().sum()
    assert gradient_noise(made, x, y, batch_size=10) == pytest.approx(expected.item(), rel=1e-9)
    first = gradients[:2]
    expected = first.var(0, correction=0).sum() / first.mean(0).square().sum()
    assert gradient_noise(made, x, y, batch_size=10, batches=2) == pytest.approx(expected.item(), rel=1e-9)


# Largest eigenvalue of a Hessian


def quadratic(spectrum, seed=0, terms=1, **settings):
    """Largest eigenvalue found for w'Aw / 2 with the given spectrum, in two parameters and some terms."""
    n = len(spectrum)
    rotation = np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n)))[0]
    a = torch.tensor(rotation @ np.diag(spectrum) @ rotation.T)
    u, v = (torch.ones(k, dtype=torch.float64, requires_grad=True) for k in (n // 2, n - n // 2))

    def losses():
        for _ in range(terms):
            w = torch.cat([u, v])
            yield w @ a @ w / 2 / terms

    return largest_hessian_eigenvalue(losses, [u, v], **settings)


@pytest.mark.parametrize(
    "spectrum",
    [
        [1, 2, 3, 4, 5, 6],
        [-100, -50, 0, 0, 0, 1, 2, 3],
        [-9, -5, -3, -2, -1],
        [2, 2, 2, 2, 2],
        [0, 0, 0, 0, 7],
        [-3, 1],
        [1e-9, 2e-9, 5e-9],
        list(np.linspace(-1, 1, 50)),
    ],
)
def test_the_largest_eigenvalue_of_a_quadratic_is_found_whatever_the_negative_ones(spectrum):
    assert quadratic(spectrum, tolerance=1e-10, restarts=1000) == pytest.approx(max(spectrum), rel=1e-8)
    assert quadratic(spectrum) == pytest.approx(max(spectrum), rel=0.02)


def test_terms_of_a_loss_add_up():
    assert quadratic([1, 2, 9], terms=5) == pytest.approx(quadratic([1, 2, 9]), rel=1e-9)


def test_parameters_without_curvature_count_as_zero():
    w, flat, unused = (torch.ones(3, requires_grad=True) for _ in range(3))
    found = largest_hessian_eigenvalue(lambda: [(-2 * w**2).sum() + flat.sum()], [w, flat, unused])
    assert found == pytest.approx(0, abs=1e-6)


def test_an_eigenvalue_that_is_not_found_is_nan():
    spectrum = list(np.linspace(0, 1, 200))
    assert math.isnan(quadratic(spectrum, tolerance=1e-12, restarts=1))
    assert math.isnan(quadratic([0.0, 0.0, 0.0]))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_hessian_that_is_not_finite_is_given_up_at_once(bad):
    calls, w = [], torch.ones(50, requires_grad=True)

    def losses():
        calls.append(1)
        yield (w**2).sum() * bad

    assert math.isnan(largest_hessian_eigenvalue(losses, [w]))
    assert len(calls) == 1


@pytest.mark.parametrize("seed", [0, 1])
def test_sharpness_is_the_top_of_the_dense_hessian(seed):
    x, y = examples(12, side=4)
    made = network((seed,)).eval()
    shapes = {name: p.shape for name, p in made.named_parameters()}

    def loss(vector):
        pieces = vector.split([shape.numel() for shape in shapes.values()])
        weights = {n: v.view(s) for (n, s), v in zip(shapes.items(), pieces, strict=True)}
        return F.cross_entropy(torch.func.functional_call(made, weights, (x,))[0], y)

    vector = torch.cat([p.detach().flatten() for p in made.parameters()])
    spectrum = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, vector, vectorize=True))
    assert spectrum[0] < 0 < spectrum[-1]
    assert sharpness(made, x, y, tolerance=1e-9) == pytest.approx(spectrum[-1].item(), rel=1e-6)
    assert sharpness(made, x, y) == pytest.approx(spectrum[-1].item(), rel=0.01)


def test_sharpness_does_not_depend_on_the_chunks():
    x, y = examples(30)
    whole, chunked = (sharpness(network(), x, y, chunk=chunk, tolerance=1e-6) for chunk in (30, 7))
    assert chunked == pytest.approx(whole, rel=1e-9)


def test_sharpness_takes_the_first_images_of_the_fixed_order():
    x, y = examples(30)
    chosen = probes._order(y)[:10]
    assert chosen.tolist() != list(range(10))
    some = sharpness(network(), x, y, images=10, tolerance=1e-6)
    assert some == pytest.approx(sharpness(network(), x[chosen], y[chosen], tolerance=1e-6), rel=1e-9)
    assert some != pytest.approx(sharpness(network(), x, y, tolerance=1e-6), rel=1e-3)


# Both


def probe_both(made, x, y):
    return gradient_noise(made, x, y, batch_size=8), sharpness(made, x, y)


@pytest.mark.parametrize("training", [True, False])
def test_a_network_is_left_as_it_was(training):
    x, y = examples(20)
    made = network().train(training)
    for p in made.parameters():
        p.grad = torch.full_like(p, 5.0)
    before = copy.deepcopy(made.state_dict())
    with torch.no_grad():
        found = probe_both(made, x, y)
        assert not torch.is_grad_enabled()
    assert np.isfinite(found).all()
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.state_dict().items())
    assert all((p.grad == 5).all() and p.requires_grad for p in made.parameters())
    assert all(module.training is training for module in made.modules())


def test_a_probe_gives_the_same_twice_whatever_the_global_generator():
    x, y = examples(20, dtype=torch.float32)
    made = network(dtype=torch.float32)
    first = probe_both(made, x, y)
    torch.manual_seed(1)
    torch.rand(3)
    assert probe_both(made, x, y) == first


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_measure_probes_the_network_of_a_state(dtype):
    x, y = examples(20, channels=3, dtype=dtype)
    population = network((4, 5), channels=3, dtype=dtype)
    single = network((5,), channels=3, dtype=dtype)
    noise, alone = gradient_noise(single, x, y, batch_size=8), sharpness(single, x, y)
    state = {name: tensor.clone() for name, tensor in population.member(1).items()}
    allowed = torch.backends.cudnn.allow_tf32
    found = measure(("sharpness", "gradient_noise"), state, TINY, x, y, classes=3, batch_size=8, old=OLD)
    assert list(found) == ["sharpness", "gradient_noise"]
    rel = 1e-3 if dtype == torch.float32 else 1e-9
    assert found == pytest.approx({"sharpness": alone, "gradient_noise": noise}, rel=rel)
    assert torch.backends.cudnn.allow_tf32 is allowed
    assert measure([], state, TINY, x, y, 3, 8, OLD) == {}
    assert measure(PROBES[:1], state, TINY, x, y, 3, 8, OLD).keys() == {"gradient_noise"}


def test_float64_weights_are_not_rounded_on_their_way():
    x, y = examples(20)
    made = network()
    for tensor in made.member(0).values():
        tensor.mul_(math.pi / 3)  # no float32 any more, as the first weights are
    found = measure(PROBES[:2], made.member(0), TINY, x, y, classes=3, batch_size=8, old=OLD)
    assert tuple(found.values()) == probe_both(made, x, y)


def test_measure_of_a_diverged_network_is_nan():
    x, y = examples(20)
    state = network().member(0)
    state["module3.0.conv1.weight"][0] = math.nan
    found = measure(PROBES, state, TINY, x, y, classes=3, batch_size=8, old=OLD)
    assert len(found) == 2 + 6 + 2 and all(map(math.isnan, found.values()))
