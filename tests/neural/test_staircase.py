"""The product in blocks against the dense masked one, which a loop writes down, with all its derivatives."""

import contextlib

import pytest
import torch

from torch import nn
from torch.autograd import forward_ad
from torch.testing import assert_close

from pyro_ar import FVSBN, MADE, NADE, outputs, testing
from pyro_ar.neural import staircase as module
from pyro_ar.neural.fvsbn import LinearNet
from pyro_ar.neural.made import MADENet
from pyro_ar.neural.staircase import staircase
from pyro_ar.outputs import PerVariable
from pyro_ar.testing import NET_CHECKS

pytestmark = pytest.mark.usefixtures("float64")

# Units by features: none sees anything, all see all, one block, a block that begins with blind units, steps within and between blocks.
ENDS = {
    "nothing": [0] * 40, "all": [30] * 40, "one unit": [3], "few": [0, 1, 1, 5], "even": list(range(120)),
    "blind first": [0] * 20 + [7] * 30 + [30] * 100, "uneven": sorted(i * i % 31 for i in range(230)),
}


@pytest.fixture
def blocks(monkeypatch):
    """Blocks however small the product, and how often they were used."""
    monkeypatch.setattr(module, "LEAST_WORK", 1)
    used = []
    apply = module._Staircase.apply
    monkeypatch.setattr(module._Staircase, "apply", lambda *args: used.append(1) or apply(*args))
    return used


def problem(name, rows=(6,)):
    ends = ENDS[name]
    features = max(30, ends[-1])
    x, weight, bias = torch.randn(*rows, features), torch.randn(len(ends), features), torch.randn(len(ends))
    mask = torch.zeros(len(ends), features)
    for unit, end in enumerate(ends):
        mask[unit, :end] = 1
    return [t.requires_grad_() for t in (x, weight, bias)], torch.tensor(ends), mask


def dense(x, weight, bias, mask):
    return torch.einsum("...f,uf->...u", x, weight * mask) + bias


@pytest.mark.parametrize("units_first", [False, True])
@pytest.mark.parametrize("name", ENDS)
def test_value_and_gradients_are_the_dense_ones(name, units_first, blocks) -> None:
    inputs, ends, mask = problem(name)
    got, expected = staircase(*inputs, ends, units_first=units_first), dense(*inputs, mask)
    assert_close(got, expected)
    weight = torch.randn_like(got)
    for a, b in zip(torch.autograd.grad(got, inputs, weight), torch.autograd.grad(expected, inputs, weight), strict=True):
        assert_close(a, b)
    assert len(blocks) == 1


@pytest.mark.parametrize("name", ["few", "blind first", "uneven"])
def test_second_derivatives_are_the_dense_ones(name, blocks) -> None:
    inputs, ends, mask = problem(name)

    def curvatures(product):
        value = product(*inputs).tanh().square().sum()
        first = torch.autograd.grad(value, inputs, create_graph=True)
        return torch.autograd.grad(sum((g * g.detach().cos()).sum() for g in first), inputs)

    got = curvatures(lambda x, w, b: staircase(x, w, b, ends))
    for a, b in zip(got, curvatures(lambda x, w, b: dense(x, w, b, mask)), strict=True):
        assert_close(a, b)
    assert blocks


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (0, 2)])
def test_only_the_gradients_that_are_wanted(wanted, blocks) -> None:
    inputs, ends, mask = problem("uneven")
    fixed = [t if i in wanted else t.detach() for i, t in enumerate(inputs)]
    chosen = [inputs[i] for i in wanted]
    got = torch.autograd.grad(staircase(*fixed, ends).square().sum(), chosen)
    expected = torch.autograd.grad(dense(*fixed, mask).square().sum(), chosen)
    for a, b in zip(got, expected, strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("rows", [(), (0,), (1,), (3, 4), (2, 1, 3)])
def test_left_dimensions_and_biases_broadcast(rows, blocks) -> None:
    (x, weight, _), ends, mask = problem("uneven", rows)
    for bias in (torch.randn(len(ends)), torch.randn(5, *[1] * len(rows), len(ends))):
        assert_close(staircase(x, weight, bias, ends), dense(x, weight, bias, mask))


def test_what_is_not_seen_is_never_read(blocks) -> None:
    (x, weight, bias), ends, mask = problem("uneven")
    spoilt = torch.where(mask == 1, weight, 1e6).detach().requires_grad_()
    got = staircase(x, spoilt, bias, ends)
    assert_close(got, dense(x, weight, bias, mask))
    gradient = torch.autograd.grad(got.square().sum(), spoilt)[0]
    assert torch.equal(gradient * (1 - mask), torch.zeros_like(mask))


def test_the_weight_stays_as_it_is(blocks) -> None:
    (x, weight, bias), ends, _ = problem("uneven")
    before = weight.detach().clone()
    staircase(x, weight, bias, ends).sum().backward()
    assert torch.equal(weight, before)


def test_made_in_inference_mode_it_serves_training_after(blocks) -> None:
    inputs, _, _ = problem("uneven")
    ends = torch.arange(230) // 8  # seen by no other test
    with torch.inference_mode():
        first = staircase(*(t.detach() for t in inputs), ends)
    again = staircase(*inputs, ends)
    again.sum().backward()
    assert_close(again.detach(), first.clone())


def test_transforms_of_torch_func_take_the_plain_way(blocks) -> None:
    (x, weight, bias), ends, mask = problem("uneven")
    draws = torch.stack([weight, weight.cos()]).detach()
    got = torch.vmap(lambda w: staircase(x, w, bias, ends))(draws)
    assert_close(got, torch.stack([dense(x, w, bias, mask) for w in draws]))
    assert_close(torch.func.jacfwd(lambda w: staircase(x, w, bias, ends).sum(0))(weight),
                 torch.func.jacrev(lambda w: dense(x, w, bias, mask).sum(0))(weight))
    assert not blocks


def test_forward_mode_takes_the_plain_way(blocks) -> None:
    (x, weight, bias), ends, mask = problem("uneven")
    push = torch.randn_like(weight)
    for t, size in ((weight, push), (bias, torch.randn_like(bias)), (x, torch.randn_like(x))):
        with forward_ad.dual_level():
            tensors = [forward_ad.make_dual(s.detach(), size) if s is t else s.detach() for s in (x, weight, bias)]
            assert_close(forward_ad.unpack_dual(staircase(*tensors, ends)).tangent, forward_ad.unpack_dual(dense(*tensors, mask)).tangent)


def test_autocast_takes_the_plain_way(blocks) -> None:
    (x, weight, bias), ends, mask = problem("uneven")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        single = [t.detach().float() for t in (x, weight, bias)]
        assert_close(staircase(*single, ends), single[0] @ (single[1] * mask.float()).mT + single[2], rtol=0.02, atol=0.1)
    assert not blocks


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_answer_is_of_the_dtype_of_the_weights(dtype, blocks) -> None:
    (x, weight, bias), ends, mask = problem("uneven")
    tensors = [t.detach().to(dtype) for t in (x, weight, bias)]
    got = staircase(*tensors, ends)
    assert got.dtype == dtype
    assert_close(got.double(), dense(x, weight, bias, mask).detach(), rtol=1e-4, atol=1e-4)


MIXED = PerVariable([outputs.Normal(), outputs.Bernoulli(), outputs.Constant(), outputs.Categorical(4)])


@pytest.mark.parametrize("context_dim", [0, 2])
@pytest.mark.parametrize("output", [outputs.Bernoulli(), outputs.Categorical(3), MIXED], ids=str)
@pytest.mark.parametrize("make", [LinearNet, lambda *a: MADENet(*a, hidden=(7,)), lambda *a: MADENet(*a, hidden=(20, 3, 40), activation="tanh")],
                         ids=["linear", "made", "deep made"])
def test_nets_keep_their_contract_in_blocks(make, output, context_dim, blocks) -> None:
    net = make((1, 2, 2), output, context_dim)
    for check in NET_CHECKS:
        with contextlib.suppress(testing.NotApplicable):
            check(net)
    assert blocks


@pytest.mark.parametrize("context_dim", [0, 2])
@pytest.mark.parametrize("family", [lambda **o: FVSBN(90, **o), lambda **o: MADE(90, hidden=(130, 60), **o)], ids=["fvsbn", "made"])
def test_families_train_and_answer_in_blocks_as_in_one_product(family, context_dim, blocks, monkeypatch) -> None:
    """Values, gradients, and the marginal of the first variables, which takes a part of every product."""
    made = family(context_dim=context_dim).double()
    for p in made.parameters():
        nn.init.normal_(p, std=0.3)
    x, visible = (torch.rand(5, 90) < 0.4).double(), torch.arange(90) < 71
    context = torch.randn(5, 2) if context_dim else None

    def answers():
        made.zero_grad()
        joint = made(context)
        value, part = joint.log_prob(x), joint.marginal(visible).log_prob(x)
        (value + part.sin()).sum().backward()
        return [value, part, *(p.grad.clone() for p in made.parameters())]

    in_blocks = answers()
    assert blocks
    monkeypatch.setattr(module, "LEAST_WORK", 10**9)
    for a, b in zip(in_blocks, answers(), strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("activation", ["sigmoid", "relu"])
def test_steps_of_nade_that_write_in_place_leave_weights_and_other_states_alone(activation) -> None:
    net = NADE(9, hidden=12, context_dim=2, activation=activation).double().net
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    x, context = (torch.rand(1, 9) < 0.5).double(), torch.randn(1, 2).double()
    with torch.no_grad():
        whole = net(x, context)
        state = net.start(1, context)
        net.advance(state, None)
        copy = net.take(state, torch.tensor([0]))
        for i in range(1, 9):
            assert_close(net.advance(state, x[:, i - 1]), whole[:, i])
        flipped = 1 - x
        other = net(torch.cat((flipped, x), 0), context.expand(2, 2))[:1]
        for i in range(1, 9):
            assert_close(net.advance(copy, flipped[:, i - 1]), other[:, i])
    for name, p in net.named_parameters():
        assert torch.equal(p, before[name]), name


def test_steps_of_nade_are_differentiable() -> None:
    net = NADE(6, hidden=7).double().net
    x = (torch.rand(3, 6) < 0.5).double()
    state, steps = net.start(3), []
    for i in range(6):
        steps.append(net.advance(state, x[:, i - 1] if i else None))
    got = torch.autograd.grad(torch.stack(steps, 1).square().sum(), net.input_weight)[0]
    assert_close(got, torch.autograd.grad(net(x).square().sum(), net.input_weight)[0])
