"""The lean chain of NADE against its plain form and a loop in Python, and every way of differentiating it."""

import math

import pytest
import torch

from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close

from pyro_ar.nets import NADENet
from pyro_ar.nets import nade as module
from pyro_ar.nets.nade import chain, plain_chain
from pyro_ar.outputs import Bernoulli, Categorical

pytestmark = pytest.mark.usefixtures("float64")


def problem(rows=20, n=61, inputs=1, hidden=5, raw=1, *, binary=True, scale=0.5):
    """Three blocks of steps; enough binary rows for the odds."""
    x = (torch.rand(rows, n, inputs) < 0.4).double() if binary else torch.randn(rows, n, inputs)
    a, W, V = torch.randn(rows, hidden), torch.randn(n, inputs, hidden) * scale, torch.randn(n, hidden, raw)
    return [t.requires_grad_() for t in (x, a, W, V)]


def by_hand(x, a, W, V, activation):
    """One number at a time."""
    raw = torch.empty(x.shape[0], x.shape[1], V.shape[-1])
    x, a, W, V = (t.tolist() for t in (x, a, W, V))
    for r, row in enumerate(x):
        pre = list(a[r])
        for i, features in enumerate(row):
            act = [1 / (1 + math.exp(-p)) if activation == "sigmoid" else max(p, 0.0) for p in pre]
            for k in range(raw.shape[-1]):
                raw[r, i, k] = sum(h * V[i][j][k] for j, h in enumerate(act))
            pre = [p + sum(f * W[i][m][j] for m, f in enumerate(features)) for j, p in enumerate(pre)]
    return raw


@pytest.mark.parametrize("activation", ["sigmoid", "relu"])
@pytest.mark.parametrize("rows", [1, 3, 20])
@pytest.mark.parametrize(("inputs", "raw", "binary"), [(1, 1, True), (2, 3, True), (1, 2, False)])
def test_value_and_gradients(activation, rows, inputs, raw, binary) -> None:
    tensors = problem(rows, inputs=inputs, raw=raw, binary=binary)
    lean, plain = chain(*tensors, activation), plain_chain(*tensors, activation)
    assert_close(plain, by_hand(*tensors, activation))
    assert_close(lean, plain)
    weight = torch.randn_like(lean)
    for actual, expected in zip(*(torch.autograd.grad((t * weight).sum(), tensors) for t in (lean, plain)), strict=True):
        assert_close(actual, expected)


def test_more_rows_than_a_piece(monkeypatch) -> None:
    monkeypatch.setattr(module, "ROWS", 7)
    tensors = problem(20)
    got = (torch.autograd.grad(f(*tensors, "sigmoid").square().sum(), tensors) for f in (chain, plain_chain))
    for actual, expected in zip(*got, strict=True):
        assert_close(actual, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.5, 3.0, 30.0])
@pytest.mark.parametrize("start", [0.0, -60.0, 60.0, 1e4])
def test_odds_stay_right_far_from_zero(dtype, scale, start) -> None:
    x, a, W, V = (t.detach().to(dtype) for t in problem(30, scale=scale))
    a = a + start
    exact = plain_chain(x.double(), a.double(), W.double(), V.double(), "sigmoid")
    tolerance = 1e-12 if dtype == torch.float64 else 2e-5 * max(scale, 1)
    assert_close(chain(x, a, W, V, "sigmoid").double(), exact, atol=tolerance, rtol=tolerance)


def test_odds_are_used_where_they_are_safe() -> None:
    x, _, W, _ = (t.detach() for t in problem())
    assert module._odds_are_safe(x, W)
    assert not module._odds_are_safe(x[:3], W)
    assert not module._odds_are_safe(x * 0.5, W)
    assert not module._odds_are_safe(x, W * 100)
    assert not module._odds_are_safe(x.float(), (W * 4).float())


@pytest.mark.parametrize("rows", [1, 2])
def test_one_row_leaves_the_weights_alone(rows) -> None:
    """A view of the bias would be written to: `expand` does not copy for one row."""
    net = NADENet(40, Bernoulli(), hidden=3)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    net(torch.ones(rows, 40)).sum().backward()
    state = net.start(rows)
    with torch.no_grad():
        for i in range(40):
            net.advance(state, torch.ones(rows) if i else None)
    for name, p in net.named_parameters():
        assert torch.equal(p, before[name]), name


def test_backward_twice() -> None:
    tensors = problem()
    total = chain(*tensors, "sigmoid").square().sum()
    first = torch.autograd.grad(total, tensors, retain_graph=True)
    for a, b in zip(first, torch.autograd.grad(total, tensors), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("needed", range(4))
def test_gradient_of_one_input_only(needed) -> None:
    tensors = [t.detach().requires_grad_(i == needed) for i, t in enumerate(problem())]
    got = (torch.autograd.grad(f(*tensors, "sigmoid").square().sum(), tensors[needed])[0] for f in (chain, plain_chain))
    assert_close(*got)


@pytest.mark.parametrize("activation", ["sigmoid", "relu"])
def test_numerical_gradients(activation) -> None:
    tensors = problem(2, n=3, inputs=2, hidden=2, raw=2, binary=False)
    assert gradcheck(lambda *t: chain(*t, activation), tensors)
    assert gradgradcheck(lambda *t: chain(*t, activation), tensors)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch.func.hessian itself
def test_hessians() -> None:
    x, a, W, V = (t.detach() for t in problem(2, n=3, hidden=2))

    def total(form):
        return lambda w: form(x, a, w, V, "sigmoid").square().sum()

    expected = torch.autograd.functional.hessian(total(plain_chain), W)
    assert_close(torch.autograd.functional.hessian(total(chain), W), expected)
    assert_close(torch.func.hessian(total(chain))(W), expected)
    assert_close(torch.func.jacrev(torch.func.grad(total(chain)))(W), expected)


def test_vmap_over_weights_and_over_rows() -> None:
    x, a, W, V = (t.detach() for t in problem(4, n=5))
    draws = W + torch.randn(3, *W.shape)
    together = torch.vmap(lambda w: chain(x, a, w, V, "sigmoid"))(draws)
    assert_close(together, torch.stack([chain(x, a, w, V, "sigmoid") for w in draws]))
    each = torch.func.vmap(torch.func.grad(lambda row, start: chain(row[None], start[None], W, V, "relu").square().sum()))
    rows = [x.clone().requires_grad_(), a]
    assert_close(each(x, a), torch.autograd.grad(chain(*rows, W, V, "relu").square().sum(), rows[0])[0])


def test_parameters_are_counted_as_used() -> None:
    """A weight counts if the answer depends on it."""
    net = NADENet(4, Categorical(3), context_dim=2, hidden=3)
    with torch.no_grad():
        for p in net.parameters():
            p.normal_()
    x = torch.randint(3, (50, 4)).double()
    raw = net(x, torch.randn(50, 2))
    grads = torch.autograd.grad((raw * torch.randn_like(raw)).sum(), list(net.parameters()))
    # the first step of a state is read only if some row is in it: 50 rows are in all states
    assert sum(int((g != 0).sum()) for g in grads) == net.num_parameters == NADENet.count(4, Categorical(3), 2, hidden=3)
