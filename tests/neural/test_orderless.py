"""The lean chain of OrderlessNADE against its plain form and a loop in Python, and every way of differentiating it."""

import math

import pytest
import torch

from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close

from pyro_ar import budget
from pyro_ar.neural import OrderlessNADENet, OverOrders, nade
from pyro_ar.neural import orderless_nade as module
from pyro_ar.neural.autoregressive import Autoregressive
from pyro_ar.neural.orderless_nade import OrderlessNADE, orderless_chain, plain_orderless_chain
from pyro_ar.order import random_orders, visible_first
from pyro_ar.outputs import Bernoulli, Categorical, Normal

pytestmark = pytest.mark.usefixtures("float64")


def a_net(output, n=61, hidden=5, context_dim=0, activation="sigmoid", scale=0.5):
    net = OrderlessNADENet(n, output, context_dim, hidden=hidden, activation=activation)
    with torch.no_grad():
        for p in net.parameters():
            p.normal_().mul_(scale)
    return net


def values(output, rows, n):
    return torch.randn(rows, n) if output.num_states is None else torch.randint(output.num_states, (rows, n)).double()


def by_hand(net, x, order):
    """One row and one variable at a time, layer by layer; `x` in the order of its row."""
    raw = torch.empty(*x.shape, net.output.raw)
    act = (lambda p: 1 / (1 + math.exp(-p))) if net.activation == "sigmoid" else (lambda p: max(p, 0.0))
    for r in range(len(x)):
        pre = net.hidden_bias.clone()
        for i, j in enumerate(order[r].tolist()):
            h = torch.tensor([act(float(p)) for p in pre])
            for layer in net.deep:
                h = torch.tensor([act(float(p)) for p in layer.weight @ h + layer.bias])
            raw[r, i] = net.output_bias[j] + h @ net.output_weight[j]
            pre = pre + net.known_weight[j] + net.output.encode(x[r, i]) @ net.input_weight[j]
    return raw


@pytest.mark.parametrize("activation", ["sigmoid", "relu"])
@pytest.mark.parametrize("output", [Bernoulli(), Categorical(3), Normal()], ids=lambda o: type(o).__name__)
@pytest.mark.parametrize("rows", [1, 3, 20])
def test_value(rows, output, activation) -> None:
    net, x, order = a_net(output, activation=activation), values(output, rows, 61), random_orders(rows, 61)
    with torch.no_grad():
        assert_close(net(x, None, order), by_hand(net, x, order))


def problem(rows=20, n=61, hidden=5, raw=1, terms=1, *, scaled=False, scale=0.5):
    order = random_orders(rows, n)
    index = order.unsqueeze(-1) * 3 + torch.randint(3, (rows, n, terms))
    factor = torch.randn(rows, n, terms).requires_grad_() if scaled else None
    table, a, V = torch.randn(3 * n, hidden) * scale, torch.randn(rows, hidden), torch.randn(n, hidden, raw)
    return table.requires_grad_(), index, factor, order, a.requires_grad_(), V.requires_grad_()


@pytest.mark.parametrize("activation", ["sigmoid", "relu"])
@pytest.mark.parametrize("rows", [1, 20])
@pytest.mark.parametrize(("raw", "terms", "scaled"), [(1, 1, False), (3, 1, False), (2, 2, True)])
def test_value_and_gradients(activation, rows, raw, terms, scaled) -> None:
    given = problem(rows, raw=raw, terms=terms, scaled=scaled)
    leaves = [t for t in given if t is not None and t.requires_grad]
    lean, plain = orderless_chain(*given, activation), plain_orderless_chain(*given, activation)
    assert_close(lean, plain)
    weight = torch.randn_like(lean)
    for actual, expected in zip(*(torch.autograd.grad((t * weight).sum(), leaves) for t in (lean, plain)), strict=True):
        assert_close(actual, expected)


def test_backward_twice() -> None:
    given = problem()
    total = orderless_chain(*given, "sigmoid").square().sum()
    leaves = [given[0], given[4], given[5]]
    first = torch.autograd.grad(total, leaves, retain_graph=True)
    for a, b in zip(first, torch.autograd.grad(total, leaves), strict=True):
        assert torch.equal(a, b)


def test_numerical_gradients() -> None:
    table, index, factor, order, a, V = problem(2, n=3, hidden=2, terms=2, scaled=True, raw=2)

    def form(table, factor, a, V):
        return orderless_chain(table, index, factor, order, a, V, "sigmoid")

    assert gradcheck(form, (table, factor, a, V))
    assert gradgradcheck(form, (table, factor, a, V))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")  # torch.func.hessian itself
def test_hessians_and_vmap() -> None:
    table, index, _, order, a, V = (t if t is None else t.detach() for t in problem(3, n=4, hidden=2))

    def total(form):
        return lambda t: form(t, index, None, order, a, V, "sigmoid").square().sum()

    expected = torch.autograd.functional.hessian(total(plain_orderless_chain), table)
    assert_close(torch.autograd.functional.hessian(total(orderless_chain), table), expected)
    assert_close(torch.func.hessian(total(orderless_chain))(table), expected)
    draws = torch.stack([table, 2 * table])
    assert_close(torch.vmap(total(orderless_chain))(draws), torch.stack([total(plain_orderless_chain)(t) for t in draws]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.5, 3.0, 30.0])
@pytest.mark.parametrize("start", [0.0, -60.0, 1e4])
def test_odds_stay_right_far_from_zero(dtype, scale, start) -> None:
    table, index, _, order, a, V = (t if t is None else t.detach() for t in problem(30, scale=scale))
    table, a, V = table.to(dtype), (a + start).to(dtype), V.to(dtype)
    exact = plain_orderless_chain(table.double(), index, None, order, a.double(), V.double(), "sigmoid")
    tolerance = 1e-12 if dtype == torch.float64 else 2e-5 * max(scale, 1)
    got = orderless_chain(table, index, None, order, a, V, "sigmoid")
    assert_close(got.double(), exact, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 1e-4), (torch.float32, 5.4), (torch.float64, 1.0), (torch.float64, 54.0)])
@pytest.mark.parametrize("beyond", [False, True])
def test_a_row_alone_is_the_row_in_a_batch(dtype, size, beyond) -> None:
    """Steps that undo each other, with a start within the range of the odds or beyond it: value and gradients."""
    order, index = random_orders(20, 3), torch.randint(2, (20, 3, 1))
    index = order.unsqueeze(-1) * 2 + index
    table = (torch.randint(2, (6, 5)) * 2.0 - 1).mul(size).to(dtype)
    a, V = torch.randn(20, 5).mul(min(size, 20)).to(dtype), torch.randn(3, 5, 1).to(dtype)
    a[:, 0] -= nade.START[dtype] if beyond else 0.0
    assert module._moves_little(table)
    weight = torch.randn(20, 3, 1)
    found = []
    for dt, form in ((dtype, orderless_chain), (torch.float64, plain_orderless_chain)):
        leaves = [t.to(dt).requires_grad_() for t in (table.clone(), a.clone(), V.clone())]
        raw = form(leaves[0], index, None, order, *leaves[1:], "sigmoid")
        found.append([t.double() for t in (raw, *torch.autograd.grad((raw * weight.to(dt)).sum(), leaves))])
    alone = [orderless_chain(table, index[i:i + 1], None, order[i:i + 1], a[i:i + 1], V, "sigmoid") for i in range(20)]
    close = (3e-6 if dtype == torch.float32 else 3e-14) * max(size, 1)
    assert_close(found[0][0], torch.cat(alone).double(), atol=close, rtol=close)
    for actual, expected in zip(*found, strict=True):
        assert_close(actual, expected, atol=20 * close, rtol=close)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_units_far_out_keep_their_digits(dtype) -> None:
    start, move = nade.START[dtype] + module.MOVE[dtype] + 6, 0.49 * module.MOVE[dtype]  # exp(start) is infinite
    assert module._moves_little(torch.full((2, 1), move, dtype=dtype))
    given = torch.full((2, 1), move, dtype=dtype), torch.zeros(16, 2, 1, dtype=torch.long), None, torch.arange(2).repeat(16, 1)
    for a in (-start, -0.9 * nade.START[dtype]):
        rest = torch.full((16, 1), a, dtype=dtype), torch.ones(2, 1, 1, dtype=dtype)
        raw = orderless_chain(*given, *rest, "sigmoid").double()
        exact = torch.sigmoid(torch.tensor([a, a + move]).to(dtype).double())[:, None].expand(16, 2, 1)
        assert_close(raw, exact, atol=torch.finfo(dtype).tiny, rtol=3e-5 if dtype == torch.float32 else 1e-12)


def test_odds_are_used_where_they_are_safe() -> None:
    table = torch.randn(300, 5) * 0.2
    assert module._moves_little(table)
    assert not module._moves_little(table.float() * 30)


@pytest.mark.parametrize("output", [Bernoulli(), Normal()], ids=lambda o: type(o).__name__)
def test_gradient_of_the_values(output) -> None:
    net, x, order = a_net(output, n=6), values(output, 4, 6), random_orders(4, 6)
    leaf = x.clone().requires_grad_()
    raw = net(leaf, None, order)
    assert_close(raw, net(x, None, order))
    weight = torch.randn_like(raw)
    (grad,) = torch.autograd.grad((raw * weight).sum(), leaf)
    step = 1e-6
    for r, i in ((0, 0), (2, 3), (3, 5)):
        moved = [x.clone().requires_grad_() for _ in range(2)]
        with torch.no_grad():
            moved[0][r, i] += step
            moved[1][r, i] -= step
        up, down = ((net(m, None, order) * weight).sum() for m in moved)
        assert_close(grad[r, i], (up - down) / (2 * step), atol=1e-7, rtol=1e-5)


def test_parameters_are_counted_as_used() -> None:
    net = a_net(Categorical(3), n=4, hidden=3, context_dim=2)
    raw = net(torch.randint(3, (60, 4)).double(), torch.randn(60, 2), random_orders(60, 4))
    grads = torch.autograd.grad((raw * torch.randn_like(raw)).sum(), list(net.parameters()))
    count = OrderlessNADENet.count(4, Categorical(3), 2, hidden=3)
    assert sum(int((g != 0).sum()) for g in grads) == net.num_parameters == count


@pytest.mark.parametrize("output", [Bernoulli(), Categorical(3, "level")])
def test_gradients_of_x_are_right_where_a_tensor_does_not_tell_that_it_needs_them(output):
    """Under draws of weights, vmap and forward mode `x.requires_grad` is False inside."""
    net = OrderlessNADE(4, 3, output).double().net
    weights = {k: torch.randn(2, *p.shape, dtype=torch.float64) for k, p in net.named_parameters()}
    x = torch.randint(0, output.num_states, (2, 4)).double()

    def gradient(weights, x):
        x = x.clone().requires_grad_()
        return torch.autograd.grad(Autoregressive(net, weights, output).log_prob(x).sum(), x)[0]

    each = torch.stack([gradient({k: w[i] for k, w in weights.items()}, x[i]) for i in range(2)])
    torch.testing.assert_close(gradient(weights, x), each)
    one = Autoregressive(net, {k: w[0] for k, w in weights.items()}, output, validate_args=False)
    torch.testing.assert_close(torch.func.jacfwd(one.log_prob)(x[0]), each[0])


def a_deep_net(output, **options):
    return a_net(output, n=9, hidden=(5, 4, 3), activation="relu", **options)


@pytest.mark.parametrize("output", [Bernoulli(), Categorical(3), Normal()], ids=lambda o: type(o).__name__)
@pytest.mark.parametrize("rows", [1, 3, 20])
def test_value_of_several_layers(rows, output) -> None:
    net, x, order = a_deep_net(output), values(output, rows, 9), random_orders(rows, 9)
    with torch.no_grad():
        assert_close(net(x, None, order), by_hand(net, x, order))


@pytest.mark.parametrize("output", [Categorical(3), Normal()], ids=lambda o: type(o).__name__)
def test_several_layers_pass_in_chunks_that_fit(output, monkeypatch) -> None:
    """All at once and two steps at a time: value, gradients and their gradients; without a graph kept, each chunk holds no more than a turn."""
    net, order = a_deep_net(output, context_dim=2), random_orders(7, 9)
    x, context = values(output, 7, 9), torch.randn(7, 2)
    if output.num_states is None:
        x.requires_grad_()
    leaves = [*net.parameters(), *([x] if x.requires_grad else [])]
    found, steps = [], []
    chunk = OrderlessNADENet._chunk
    monkeypatch.setattr(OrderlessNADENet, "_chunk", lambda self, table, index, *rest: steps.append(index.shape[1]) or chunk(self, table, index, *rest))
    numbers = (1 + output.inputs if output.num_states is None else 1) * 5 + 12 + 3 * output.raw
    for turn in (10**9, 7 * 2 * numbers + 1):
        monkeypatch.setattr(budget, "TURN", turn)
        steps.clear()
        raw = net(x, context, order)
        assert steps == ([9] if turn == 10**9 else [2, 2, 2, 2, 1])
        first = torch.autograd.grad(raw.square().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), leaves)
        found.append([raw, *first, *second])
    for at_once, in_chunks in zip(*found, strict=True):
        assert_close(in_chunks, at_once)
    with torch.no_grad():
        assert_close(net(x, context, order), found[0][0])


def test_several_layers_are_trained_in_one_pass_and_answered_in_any_order() -> None:
    family = OrderlessNADE(6, (5, 4), context_dim=2)
    x, context = values(Bernoulli(), 4, 6), torch.randn(4, 2)
    torch.manual_seed(5)
    drawn = family.training_log_prob(x, context)
    torch.manual_seed(5)
    many = torch.full((4, 1), 6)
    shown = (torch.rand(4, 1) * many).floor()
    known = torch.rand(4, 6).argsort(-1).argsort(-1) < shown
    for r in range(4):  # every variable that is not shown, scored by a chain in which it stands right behind those that are
        total = 0.0
        for i in (~known[r]).nonzero().flatten().tolist():
            order = torch.tensor([*known[r].nonzero().flatten().tolist(), i, *(j for j in range(6) if j != i and not known[r, j])])
            total += family(context[r], order).conditional_log_prob(x[r])[i]
        assert_close(drawn[r], total * 6 / (6 - shown[r, 0]))
    mixture = OverOrders(family, 3)
    each = torch.stack([family(context, order).log_prob(x) for order in mixture.orders])
    assert_close(mixture(context).log_prob(x), each.logsumexp(0) - math.log(3))
    visible = torch.rand(4, 6) < 0.5
    order = visible_first(torch.arange(6), visible)
    chain = family(context, order).conditional_log_prob(x)
    assert_close(family(context).marginal(visible).log_prob(x), torch.where(visible, chain, 0).sum(-1))


def test_parameters_of_several_layers_are_counted_as_used() -> None:
    net = a_net(Categorical(3), n=4, hidden=(3, 5, 2), context_dim=2)
    raw = net(torch.randint(3, (60, 4)).double(), torch.randn(60, 2), random_orders(60, 4))
    grads = torch.autograd.grad((raw * torch.randn_like(raw)).sum(), list(net.parameters()))
    assert sum(int((g != 0).sum()) for g in grads) == net.num_parameters == OrderlessNADE.count_parameters(4, (3, 5, 2), Categorical(3), 2)
    assert OrderlessNADE.count_parameters(4, (3,)) == OrderlessNADE.count_parameters(4, 3)
    with pytest.raises(ValueError, match="hidden must be positive ints, one per layer"):
        OrderlessNADE(4, (3, 0))
