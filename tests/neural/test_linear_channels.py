"""Channels by mixtures that are linear in the channels before: against scipy's components, sums over all colours, joint Normals, and loops over pixels."""

import itertools
import math

import numpy as np
import pytest
import torch

from registered import IMAGE_VARIANTS
from scipy import stats
from scipy.special import logsumexp, softmax
from test_pixel_cnn import chain, naive, randomised
from torch.testing import assert_close

import pyro_ar as par

from pyro_ar.neural import DiagonalBiLSTM, PixelCNN, RowLSTM
from pyro_ar.neural.layers.linear_channels import LinearChannels
from pyro_ar.neural.registry import FAMILIES
from pyro_ar.outputs import Bernoulli, DiscretisedLogisticMixture, MixtureOfLogistics, MixtureOfNormals, Normal, PerVariable

MIXTURES = {
    "levels": DiscretisedLogisticMixture(5, 3), "one component": DiscretisedLogisticMixture(4, 1), "logistics": MixtureOfLogistics(2, 0.05),
    "normals": MixtureOfNormals(3, 0.05),
}
EACH = pytest.mark.parametrize("output", MIXTURES.values(), ids=MIXTURES.keys())
KINDS = {
    "masked": lambda shape, output, **options: PixelCNN(shape, 7, 1, output, kernel=3, channels="linear", **options),
    "gated": lambda shape, output, **options: PixelCNN(shape, 7, 1, output, kernel=3, gated=True, channels="linear", **options),
    "rows": lambda shape, output, **options: RowLSTM(shape, 5, 1, output, kernel=3, channels="linear", **options),
    "diagonals": lambda shape, output, **options: DiagonalBiLSTM(shape, 5, 1, output, kernel=3, channels="linear", **options),
}
ALL = pytest.mark.parametrize("make", KINDS.values(), ids=KINDS.keys())


# The channels of a pixel.


def softplus(x):
    return np.logaddexp(0, x)


def log_component(output, place, loc, scale):
    """Log p of a value at `place` by one component, by scipy; scales come before softplus."""
    if isinstance(output, MixtureOfNormals | MixtureOfLogistics):
        kind = stats.norm if isinstance(output, MixtureOfNormals) else stats.logistic
        return kind(loc, softplus(scale + math.log(math.e - 1)) + output.min_scale).logpdf(place)
    half, scale = 1 / (output.states - 1), softplus(scale - 1) + output.min_scale
    upper, lower = math.inf if place > 1 - half else place + half, -math.inf if place < half - 1 else place - half
    if place > loc:  # by symmetry the smaller tails, whose difference is exact
        upper, lower, loc = -lower, -upper, -loc
    most, rest = (stats.logistic(loc, scale).logcdf(end) for end in (upper, lower))
    return most + math.log(-math.expm1(rest - most))


def place_of(output, x):
    return x if output.num_states is None else 2 * x / (output.states - 1) - 1


def by_loop(output, numbers, pixel, upto=None):
    """Log p of the first `upto` channels of a pixel, component by component and channel by channel, from the numbers that a net gives for it."""
    M, C, rest = output.components, len(pixel), list(numbers)
    weights = softmax([0.0] + [rest.pop(0) for _ in range(M - 1)])
    start = np.linspace(-1, 1, M) if M > 1 else [0.0]
    loc = [[rest.pop(0) + start[m] for m in range(M)] for _ in range(C)]
    scale = [[rest.pop(0) for _ in range(M)] for _ in range(C)]
    slope = {(c, k): [rest.pop(0) for _ in range(M)] for c in range(C) for k in range(c)}
    assert not rest
    places, terms = [place_of(output, x) for x in pixel], []
    for m in range(M):
        total = math.log(weights[m])
        for c in range(C if upto is None else upto):
            mean = loc[c][m] + sum(slope[c, k][m] * places[k] for k in range(c))
            total += log_component(output, places[c], mean, scale[c][m])
        terms.append(total)
    return logsumexp(terms)


def values(output, *shape):
    return torch.randn(*shape) if output.num_states is None else torch.randint(output.num_states, shape).double()


@EACH
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_conditionals_multiply_to_the_mixture_of_whole_pixels(output, channels, float64):
    linear = LinearChannels(output, channels)
    numbers, pixels = 1.5 * torch.randn(6, linear.raw), values(output, 6, channels)
    raw = linear(numbers, pixels[:, :-1])
    assert raw.shape == (6, channels, output.raw)
    found = output.log_prob(raw, pixels).cumsum(-1)
    for r, c in itertools.product(range(6), range(channels)):
        assert found[r, c].item() == pytest.approx(by_loop(output, numbers[r].tolist(), pixels[r].tolist(), c + 1), abs=1e-9)


@pytest.mark.parametrize(("states", "components"), [(2, 1), (3, 2), (4, 3)])
def test_all_colours_sum_to_one_and_r_alone_is_its_mixture(states, components, float64):
    output = DiscretisedLogisticMixture(states, components)
    linear = LinearChannels(output, 3)
    numbers = 2 * torch.randn(linear.raw)
    colours = torch.tensor(list(itertools.product(range(states), repeat=3))).double()
    log_p = output.log_prob(linear(numbers.expand(len(colours), -1), colours[:, :-1]), colours).sum(-1)
    assert_close(log_p.logsumexp(0), torch.zeros(()))
    M = components
    alone = torch.cat((numbers[:M - 1], numbers[M - 1:2 * M - 1], numbers[4 * M - 1:5 * M - 1]))  # R's own part
    assert_close(log_p.reshape(states, -1).logsumexp(1), output.log_prob(alone, torch.arange(states).double()))


def test_one_normal_component_is_a_normal_of_the_whole_pixel(float64):
    r"""With :math:`x = a + L x + s z`, its covariance is :math:`(I - L)^{-1} S^2 (I - L)^{-\top}`."""
    output = MixtureOfNormals(1)
    linear = LinearChannels(output, 3)
    numbers, pixel = torch.randn(linear.raw), torch.randn(3)
    a, before_softplus, (rg, rb, gb) = numbers[:3], numbers[3:6], numbers[6:].tolist()
    into = torch.linalg.inv(torch.eye(3) - torch.tensor([[0.0, 0, 0], [rg, 0, 0], [rb, gb, 0]]))
    root = into * (torch.nn.functional.softplus(before_softplus + math.log(math.e - 1)) + 1e-3)
    expected = torch.distributions.MultivariateNormal(into @ a, root @ root.mT).log_prob(pixel)
    assert_close(output.log_prob(linear(numbers, pixel[:-1]), pixel).sum(), expected)


@EACH
def test_gradients_are_those_of_differences(output, float64):
    linear, pixels = LinearChannels(output, 3), values(output, 2, 3)
    numbers = torch.randn(2, linear.raw, requires_grad=True)
    pixels.requires_grad_(output.num_states is None)
    assert torch.autograd.gradcheck(lambda n, x: output.log_prob(linear(n, x[:, :-1]), x), (numbers, pixels))


@EACH
@pytest.mark.parametrize("size", [0.0, 30.0, 1e3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_number_is_legal(output, size, dtype):
    linear, pixels = LinearChannels(output, 3), values(output, 40, 3).to(dtype)
    numbers = (size * torch.randn(40, linear.raw, dtype=dtype)).requires_grad_()
    log_p = output.log_prob(linear(numbers, pixels[:, :-1]), pixels)
    assert log_p.isfinite().all()
    log_p.sum().backward()
    assert numbers.grad.isfinite().all()


def test_numbers_of_zero_are_channels_without_slopes():
    """They share their component all the same: with one component they are independent."""
    output = DiscretisedLogisticMixture(4, 1)
    raw = LinearChannels(output, 3)(torch.zeros(12 - 3), torch.tensor([3.0, 0.0]))
    assert torch.equal(raw, torch.zeros(3, 2))
    raw = LinearChannels(MixtureOfNormals(2), 2)(torch.zeros(11), torch.tensor([1.0]))
    assert float(raw[1, 0]) > 0.5  # R = 1 tells of the component that stands at 1


# The families.


@ALL
@pytest.mark.parametrize("output", [DiscretisedLogisticMixture(4, 2), MixtureOfNormals(2, 0.1)], ids=str)
def test_an_image_is_the_product_of_its_pixels(make, output, float64):
    """What the net gives for a pixel depends on those before it alone, and is read as the loop reads it."""
    family = randomised(make((3, 3, 4), output), 0.5)
    net, given = family.net, []
    x, other = values(output, 2, 3, 3, 4), values(output, 2, 3, 3, 4)
    net.head[1].register_forward_hook(lambda _, __, answer: given.append(answer))
    with torch.no_grad():
        log_p = family().log_prob(x)
        net(x)
        net(torch.where(torch.arange(12).reshape(3, 4) < 6, x, other))
    first, second = (t.flatten(2) for t in given[-2:])
    assert first.shape == (2, LinearChannels(output, 3).raw, 12)
    assert torch.equal(first[..., :7], second[..., :7])
    assert not torch.equal(first[..., 7], second[..., 7])
    total = [sum(by_loop(output, first[r, :, p].tolist(), x[r].flatten(1)[:, p].tolist()) for p in range(12)) for r in range(2)]
    assert_close(log_p, torch.tensor(total))


@ALL
def test_every_image_is_counted_once(make, float64):
    """All 4096 images of two rows, three columns, two channels and two levels."""
    joint = randomised(make((2, 2, 3), DiscretisedLogisticMixture(2, 2)), 0.7)()
    images = torch.tensor(list(itertools.product((0, 1), repeat=12))).double().reshape(-1, 2, 2, 3)
    log_p = joint.log_prob(images)
    assert_close(log_p.logsumexp(0), torch.zeros(()))
    visible = torch.zeros(2, 2, 3, dtype=torch.bool)
    visible[0, 0, 0] = visible[1, 1, 2] = visible[1, 0, 1] = True  # R of the first pixel, and two more
    some = images[:, visible]
    summed = torch.stack([log_p[(some == row).all(-1)].logsumexp(0) for row in some[:8]])
    assert_close(joint.marginal(visible).log_prob(images[:8]), summed)


@ALL
def test_channels_and_pixels_before_are_seen_and_no_others(make, float64):
    """By Jacobian, channel by channel, of the raw parameters of real channels."""
    channels, n = 3, 18
    net = randomised(make((channels, 2, 3), MixtureOfNormals(2, 0.1)), 0.5).net
    x = torch.randn(1, n)
    found = torch.autograd.functional.jacobian(lambda v: net.in_chain(v)[0], x).squeeze(2).abs().sum(1) > 0
    assert not bool((found & ~torch.ones(n, n).tril(-1).bool()).any())
    own = torch.arange(n)[:, None] // channels == torch.arange(n) // channels
    assert torch.equal(found & own, torch.ones(n, n).tril(-1).bool() & own)
    if make is not KINDS["masked"]:  # which has a blind spot
        assert bool(found[channels:, :channels].all())


@ALL
@pytest.mark.parametrize("shape", [(3, 5, 4), (2, 4, 6)], ids=str)
def test_samples_are_the_naive_ones_with_a_step_per_pixel(make, shape, float64, monkeypatch):
    """The same noise, the same decisions in every row, and the layers are stepped once for each pixel."""
    family = randomised(make(shape, DiscretisedLogisticMixture(9, 2), context_dim=2), 0.3)
    context, steps = torch.randn(8, 2), []
    body = type(family.net.body)
    whole = body.step
    monkeypatch.setattr(body, "step", lambda self, state, pixel, c: steps.append((pixel, c)) or whole(self, state, pixel, c))
    torch.manual_seed(4)
    cached = family(context).sample()
    torch.manual_seed(4)
    assert torch.equal(cached, naive(family.net, 8, context))
    assert len(cached.flatten(1).unique(dim=0)) == 8
    beyond = shape[1] - 1 if isinstance(family, DiagonalBiLSTM) else 0  # a column beyond each row but the last
    assert len(steps) == shape[1] * shape[2] + beyond
    assert {c for _, c in steps} == {0}


@ALL
def test_draws_of_weights_are_answered_as_each_alone(make, float64):
    family = randomised(make((3, 2, 3), DiscretisedLogisticMixture(3, 2)), 0.5)
    draws = {name: torch.stack((t, 0.5 * t, -t)) for name, t in family.net.named_parameters()}
    x = family().sample((4,))
    with torch.no_grad():
        together = family().with_tensors(draws).log_prob(x.unsqueeze(1))
        for k in range(3):
            assert_close(together[:, k], family().with_tensors({name: t[k] for name, t in draws.items()}).log_prob(x))


def test_real_channels_move_with_the_draws_of_those_before(float64):
    """Gradients of `rsample` against a loop over variables that autograd follows, with a single component."""
    family = randomised(KINDS["gated"]((3, 2, 3), MixtureOfNormals(1, 0.1)), 0.3)
    joint = family()
    x = joint.rsample((2,))
    drawn, xs = joint.to_chain(x.detach()), []
    for i in range(18):
        raw = family.net.in_chain(torch.stack([*xs, drawn[:, i]], 1))[:, i]
        scale = torch.nn.functional.softplus(raw[:, 1] + math.log(math.e - 1)) + 0.1
        xs.append(raw[:, 0] + scale * ((drawn[:, i] - raw[:, 0]) / scale).detach())
    weight = torch.randn(2, 18)
    leaves = list(family.parameters())
    found = torch.autograd.grad((joint.to_chain(x) * weight).sum(), leaves)
    for one, other in zip(found, torch.autograd.grad((torch.stack(xs, 1) * weight).sum(), leaves), strict=True):
        assert_close(one, other)


@ALL
def test_parameters_are_those_that_reach_an_answer(make, float64):
    output, shape = DiscretisedLogisticMixture(3, 2), (3, 3, 4)
    family = make(shape, output, context_dim=2, places=True)
    with torch.no_grad():
        for p in family.parameters():
            p.abs_().mul_(0.2)
    net = family.net
    x = torch.randint(3, (200, *shape)).double()
    raw = net.in_chain(x.flatten(1)[:, chain(net)], torch.rand(200, 2))
    grads = torch.autograd.grad((raw * torch.randn_like(raw)).sum(), list(net.parameters()))
    assert family.num_parameters == sum(int((grad != 0).sum()) for grad in grads)


@ALL
def test_files_hold_how_channels_follow(make, tmp_path):
    family = randomised(make((3, 3, 4), DiscretisedLogisticMixture(4, 2)))
    par.save(family, tmp_path / "family.safetensors")
    again = par.load(tmp_path / "family.safetensors")
    x = family().sample((5,))
    assert again.net.linear is not None
    assert torch.equal(again().log_prob(x), family().log_prob(x))


def test_every_family_of_images_has_both_ways():
    assert {f"{name}, linear" for name, entry in FAMILIES.items() if entry.images} == set(IMAGE_VARIANTS)


@pytest.mark.parametrize("kind", [PixelCNN, RowLSTM, DiagonalBiLSTM])
@pytest.mark.parametrize(("options", "message"), [
    ({"channels": "linear"}, "channels='linear' wants a mixture"),
    ({"channels": "linear", "output": Bernoulli()}, "channels='linear' wants a mixture"),
    ({"channels": "linear", "output": Normal()}, "channels='linear' wants a mixture"),
    ({"channels": "linear", "output": PerVariable([MixtureOfNormals(2)] * 192)}, "a mixture for all variables"),
    ({"channels": "squares"}, "channels must be 'groups' or 'linear'; got 'squares'"),
])
def test_bad_input_is_refused(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind((3, 8, 8), 6, **options)


def test_hidden_channels_need_not_divide_by_those_of_the_image():
    with pytest.raises(ValueError, match="multiple of the channels of the image, 3"):
        PixelCNN((3, 8, 8), 7, 1)
    assert PixelCNN((3, 8, 8), 7, 1, DiscretisedLogisticMixture(4, 2), channels="linear").event_shape == (3, 8, 8)


@pytest.mark.slow
def test_channels_that_follow_from_one_another_are_learnt():
    """R is uniform over eight levels, G is R and B its negative: log 8 nats a pixel, where channels that know nothing of one another cost three times that."""
    torch.manual_seed(0)
    red = torch.randint(8, (600, 1, 2, 3)).float()
    x = torch.cat((red, red, 7 - red), 1)
    family = PixelCNN((3, 2, 3), 8, 0, DiscretisedLogisticMixture(8, 1, 1e-2), kernel=3, channels="linear")
    par.fit(family, x[:500], epochs=60, batch_size=50, lr=3e-2, progress=False, accelerator="cpu")
    with torch.no_grad():
        nats = float(-family.eval()().log_prob(x[500:]).mean()) / 6
    assert nats < math.log(8) * 1.3
