"""The lean chain of NADE against its plain form and a loop in Python, and every way of differentiating it."""

import math

import pytest
import torch

from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close

from pyro_ar.neural import NADENet
from pyro_ar.neural import nade as module
from pyro_ar.neural.nade import NADE, chain, plain_chain
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


# Weights that odds can follow (the moves of three steps stay in the range of the dtype), up to where they undo each other.
STEEP = [(torch.float32, 1e-4), (torch.float32, 0.5), (torch.float32, 3.0), (torch.float32, 10.9),
         (torch.float64, 1e-4), (torch.float64, 0.5), (torch.float64, 37.0), (torch.float64, 109.0)]


@pytest.mark.parametrize(("dtype", "size"), STEEP)
def test_a_row_alone_is_the_row_in_a_batch(dtype, size) -> None:
    """A step of +size undoes one of -size: what is left of the odds must keep all its digits. Value and gradients."""
    x = torch.cartesian_prod(*[torch.arange(2.0)] * 4).repeat(3, 1).unsqueeze(-1).to(dtype)
    W = (torch.cartesian_prod(*[torch.tensor([-1.0, 1.0])] * 3).T * size).unsqueeze(1)  # eight units, all signs of three steps
    W = torch.cat([W, torch.zeros(1, 1, 8)]).to(dtype)
    a, V = (torch.randn(len(x), 8) * min(size, 20)).to(dtype), torch.randn(4, 8, 1).to(dtype)
    assert module._states_for_odds(x, W) is not None
    weight = torch.randn(len(x), 4, 1).to(dtype)
    batch = [t.clone().requires_grad_() for t in (x, a, W, V)]
    raw = chain(*batch, "sigmoid")
    exact = [t.double().requires_grad_() for t in (x, a, W, V)]
    right = plain_chain(*exact, "sigmoid")
    alone = torch.cat([chain(x[i:i + 1], a[i:i + 1], W, V, "sigmoid") for i in range(len(x))])
    close = 3e-6 * max(size, 1) if dtype == torch.float32 else 3e-14 * max(size, 1)
    assert_close(raw.double(), right, atol=close, rtol=close)
    assert_close(raw.detach(), alone, atol=close, rtol=close)
    grads = torch.autograd.grad((raw * weight).sum(), batch), torch.autograd.grad((right * weight.double()).sum(), exact)
    for actual, expected in zip(*grads, strict=True):
        assert_close(actual.double(), expected, atol=20 * close, rtol=close)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [0.1, 10.0, 17.0, 20.0, 37.0, 60.0, 1000.0])
def test_two_variables_by_hand(dtype, size) -> None:
    """Hidden bias -w, weight w: the second unit is at one half, whatever w is."""
    nade = NADE(2, 1).to(dtype)
    with torch.no_grad():
        for name, value in {"input_weight": size, "hidden_bias": -size, "output_weight": 10.0, "output_bias": -5.0}.items():
            getattr(nade.net, name).fill_(value)

    def log_sigmoid(logit):
        return -math.log1p(math.exp(-logit))

    h = math.exp(-size) / (1 + math.exp(-size))
    expected = log_sigmoid(10 * h - 5) + log_sigmoid(10 * 0.5 - 5)
    # d/dw, h at -w: log p = log sigmoid(10 h - 5) + log sigmoid(5 - 5) + 1/2 * 10 * h'(0), as the first input moves the second unit
    slope = (1 - math.exp(log_sigmoid(0.0))) * 10 * 0.25
    for rows in (1, 16, 300):
        log_p = nade().log_prob(torch.ones(rows, 2, dtype=dtype))
        close = 2e-6 if dtype == torch.float32 else 1e-13
        assert_close(log_p.double(), torch.full((rows,), expected), atol=close, rtol=close)
        (grad,) = torch.autograd.grad(log_p[0], nade.net.input_weight)
        assert_close(grad.flatten().double(), torch.tensor([slope, 0.0]), atol=1e2 * close, rtol=close)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_units_far_out_keep_their_digits(dtype, sign) -> None:
    """A unit of 1e-22, times a weight of 1e22, is no rounding error: relative digits count."""
    limit = module.START[dtype]
    x = torch.ones(16, 2, 1, dtype=dtype)
    for start in (0.9 * limit, limit, 1.02 * limit):  # within the odds' range, at its end, and beyond
        a = torch.full((16, 1), -start * sign, dtype=dtype)
        W = torch.full((2, 1, 1), 0.99 * module.MOVE[dtype] / 2 * sign, dtype=dtype)
        raw = chain(x, a, W, torch.ones(2, 1, 1, dtype=dtype), "sigmoid")
        exact = plain_chain(x.double(), a.double(), W.double(), torch.ones(2, 1, 1), "sigmoid")
        assert_close(raw.double(), exact, atol=0, rtol=3e-5 if dtype == torch.float32 else 1e-12)


def test_odds_are_used_where_they_are_safe() -> None:
    x, a, W, _ = (t.detach() for t in problem())
    assert torch.equal(module._states_for_odds(x, W), x[..., 0].T.int())
    assert module._states_for_odds(x[:3], W) is None
    assert module._states_for_odds(x * 0.5, W) is None
    assert module._states_for_odds(x, W * 100) is None
    assert module._states_for_odds(x.float(), (W * 4).float()) is None
    assert module._states_for_odds(x.to(torch.bfloat16), W.to(torch.bfloat16)) is None
    assert module.odds_hold(a)
    assert not module.odds_hold(a - 400)
    assert not module.odds_hold(a * math.nan)


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
