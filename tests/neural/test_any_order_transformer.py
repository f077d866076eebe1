"""The transformer in any order: against torch's own encoder, one pass for patterns, and the known variables at once."""

import itertools

import pytest
import torch

from torch import nn
from torch.testing import assert_close

import pyro_ar as par

from pyro_ar import outputs
from pyro_ar.neural import AnyOrderNet, AnyOrderTransformerNet
from pyro_ar.order import random_orders, visible_first
from pyro_ar.testing.nets import _prepared

OPTIONS = {"width": 8, "layers": 2, "heads": 2}


def test_tokens_hold_the_last_value_where_it_stands_and_where_the_next_one_stands() -> None:
    """torch's encoder, over tokens made by hand of rows and columns."""
    net, x, known = _prepared(AnyOrderTransformerNet((1, 2, 3), outputs.Normal(), 2, **OPTIONS, key_heads=2))
    layer = nn.TransformerEncoderLayer(8, 2, 32, 0.0, "gelu", batch_first=True, norm_first=True)
    encoder = nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(8), enable_nested_tensor=False).double().eval()
    with torch.no_grad():
        for ours, theirs in zip(net.blocks.blocks, encoder.layers, strict=True):
            theirs.self_attn.in_proj_weight.copy_(torch.cat((ours.query.weight, ours.key.weight, ours.value.weight)))
            theirs.self_attn.in_proj_bias.zero_()
            for a, b in ((theirs.self_attn.out_proj, ours.out), (theirs.linear1, ours.wide), (theirs.linear2, ours.narrow),
                         (theirs.norm1, ours.norm), (theirs.norm2, ours.mlp_norm)):
                a.load_state_dict(b.state_dict())
        encoder.norm.load_state_dict(net.blocks.norm.state_dict())
        assert [len(t) for t in net.last_place] == [len(t) for t in net.next_place] == [2, 3]

        def at(tables, place):
            return tables[0][place // 3] + tables[1][place % 3]

        found = net(x, **known)
        for r in range(len(x)):
            order, tokens = known["order"][r].tolist(), []
            for i in range(6):
                token = at(net.next_place, order[i]) + known["context"][r] @ net.context_weight
                if i:
                    token = token + x[r, i - 1] * net.value_weight[0] + at(net.last_place, order[i - 1])
                tokens.append(token)
            h = encoder(torch.stack(tokens).unsqueeze(0), nn.Transformer.generate_square_subsequent_mask(6, dtype=torch.float64), is_causal=True)
            assert_close(found[r], h[0] @ net.head_weight + net.head_bias[order])


@pytest.mark.parametrize("context_dim", [0, 2])
def test_the_known_variables_at_once_are_a_pass_for_each_unknown(context_dim, float64) -> None:
    net, x, known = _prepared(AnyOrderTransformerNet((2, 3), outputs.Categorical(3), context_dim, **OPTIONS))
    x = x.gather(1, known["order"].argsort(-1))
    seen = torch.tensor([[1, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0], [0, 0, 1, 0, 0, 0], [1, 1, 1, 1, 1, 1]], dtype=torch.bool)
    with torch.no_grad():
        at_once = net.given_known(torch.where(seen, x, torch.nan), seen, known.get("context"))
        one_by_one = AnyOrderNet.given_known(net, x, seen, known.get("context"))
    assert_close(at_once[~seen], one_by_one[~seen])


def test_marginals_of_a_pattern_per_row_are_one_pass_and_no_longer_than_a_density(monkeypatch) -> None:
    lengths = []
    through = AnyOrderTransformerNet.through
    monkeypatch.setattr(AnyOrderTransformerNet, "through", lambda self, tokens, *a: lengths.append(tuple(tokens.shape[:2])) or through(self, tokens, *a))
    joint = par.AnyOrderTransformer((1, 3, 4), **OPTIONS)()
    visible = torch.rand(7, 1, 3, 4) < 0.5
    visible[0, 0, 0, 0] = True
    x = torch.randint(0, 2, (7, 1, 3, 4)).float()
    joint.log_prob(x)
    joint.marginal(visible).log_prob(x)
    assert lengths == [(7, 12), (7, int(visible.flatten(1).sum(1).max()))]
    assert set(joint.marginal(visible).method.tolist()) == {"visible-first chain"}


def test_a_marginal_is_the_prefix_of_its_own_chain_and_normalised(float64) -> None:
    family = par.AnyOrderTransformer((2, 2), **OPTIONS)
    for pattern in ([True, False, True, False], [False, True, True, True], [False, False, False, True]):
        visible = torch.tensor(pattern)
        order = torch.tensor([i for i in range(4) if pattern[i]] + [i for i in range(4) if not pattern[i]])
        every = torch.tensor(list(itertools.product([0.0, 1.0], repeat=4)))
        answer = family().marginal(visible.reshape(2, 2)).log_prob(every.reshape(-1, 2, 2))
        chain = family(order=order).conditional_log_prob(every.reshape(-1, 2, 2)).flatten(1)
        assert_close(answer, chain[:, visible].sum(-1))
        assert_close((answer.exp().sum() / 2 ** (~visible).sum()), torch.ones(()))


@pytest.mark.parametrize("context_dim", [0, 2])
@pytest.mark.parametrize("event_shape", [1, 2, (1, 2, 2)])
@pytest.mark.parametrize("mixed", [False, True])
def test_the_weights_counted_are_those_that_reach_an_answer(mixed, event_shape, context_dim) -> None:
    n = event_shape if isinstance(event_shape, int) else 4
    kinds = [outputs.Categorical(3, "level"), outputs.Bernoulli(), outputs.Constant(), outputs.Normal()]
    output = outputs.PerVariable(kinds[:n]) if mixed else outputs.Categorical(3)
    net, _, known = _prepared(AnyOrderTransformerNet(event_shape, output, context_dim, **OPTIONS))
    total = 0.0
    for order in itertools.permutations(range(n)):
        order = torch.tensor(order).expand(5, n)
        x = torch.stack([torch.arange(5) % (o.num_states or 5) for o in output.variables(n)], 1).double().gather(1, order)
        raw = net(x, known.get("context"), order)
        asked = torch.stack([torch.arange(output.raw) < o.raw for o in output.variables(n)])[order]
        total = total + (raw * torch.randn(raw.shape).double() * asked).sum()
    grads = torch.autograd.grad(total, list(net.parameters()), allow_unused=True)
    reached = sum(int((g.abs() > 1e-14).sum()) for g in grads if g is not None)
    assert net.num_parameters == reached


def with_classes(event_shape=(1, 2, 3), output=None, **options):
    torch.manual_seed(4)
    family = par.AnyOrderTransformer(event_shape, output=output or outputs.Categorical(3), **OPTIONS, num_classes=4, **options).double().eval()
    with torch.no_grad():
        for p in family.parameters():
            p.add_(0.3 * torch.randn_like(p))
    x = torch.randint(0, 3, (5, *family.event_shape)).double()
    return family, x, torch.randn(5, 2).double() if family.context_dim else None


def read_by_hand(family, x, order, context=None):
    """Log p(y | prefix) of one row, from a pass of its own over the tokens of the prefix and one that asks for the class."""
    net, reads = family.net, family.read_class
    empty = torch.zeros(net.width).double()

    def told(i):
        return empty if i == 0 else net._told(x[order[i - 1]].reshape(1, 1), order[i - 1].reshape(1, 1))[0, 0]

    tokens = [told(i) + net._asked(order[i].reshape(1))[0] for i in range(len(order))] + [told(len(order)) + reads.place]
    tokens = torch.stack(tokens) + (0 if context is None else context @ net.context_weight)
    return (net.blocks(tokens.unsqueeze(0))[0, -1] @ reads.weight + reads.bias).log_softmax(-1)


@pytest.mark.parametrize("context_dim", [0, 2])
def test_the_class_is_read_after_every_prefix_of_every_order_in_one_pass(context_dim, monkeypatch) -> None:
    family, x, context = with_classes(context_dim=context_dim)
    orders = random_orders(5, 6)
    flat = x.flatten(1)
    by_hand = torch.stack([torch.stack([read_by_hand(family, flat[r], orders[r, :i], None if context is None else context[r]) for i in range(7)])
                           for r in range(5)])
    passes = []
    through = type(family.net.blocks).forward
    monkeypatch.setattr(type(family.net.blocks), "forward", lambda self, *a, **k: passes.append(a[0].shape[1]) or through(self, *a, **k))
    assert_close(family.prefix_log_posterior(x, orders, context), by_hand)
    assert passes == [13]
    assert_close(by_hand.exp().sum(-1), torch.ones(5, 7).double())
    passes.clear()
    cells = [[1, 0, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0], [1, 1, 0, 1, 1, 0], [0, 0, 1, 0, 0, 0], [0, 1, 1, 1, 0, 0]]
    visible = torch.tensor(cells, dtype=torch.bool).reshape(x.shape)
    found = family.log_posterior(torch.where(visible, x, torch.nan), visible, context)
    assert passes == [5]  # the four visible variables at most, and the class
    order = visible_first(torch.arange(6), visible.flatten(1))
    many = visible.flatten(1).sum(1).tolist()
    assert_close(found, torch.stack([read_by_hand(family, flat[r], order[r, :many[r]], None if context is None else context[r]) for r in range(5)]))
    assert_close(family.posterior(torch.where(visible, x, torch.nan), context=context).logits, found)  # NaN hides a cell
    for r in range(5):
        alone = family.log_posterior(x[r:r + 1], visible[r:r + 1], None if context is None else context[r:r + 1])
        assert_close(alone, found[r:r + 1])
    assert_close(family.log_posterior(x, None, context), family.prefix_log_posterior(x, None, context)[:, -1])


def test_a_family_reads_in_its_own_order() -> None:
    family, x, _ = with_classes(order=[5, 3, 1, 0, 2, 4])
    seen = torch.tensor([0, 1, 1, 0, 0, 1], dtype=torch.bool)
    expected = torch.stack([read_by_hand(family, row, torch.tensor([5, 1, 2])) for row in x.flatten(1)])
    assert_close(family.log_posterior(x, seen.reshape(1, 2, 3)), expected)
    other = torch.stack([read_by_hand(family, row, torch.tensor([1, 2, 5])) for row in x.flatten(1)])
    assert (expected - other).abs().max() > 1e-3


@pytest.mark.parametrize("hidden", [False, True])
def test_training_sees_the_cells_and_the_class_of_a_drawn_order(hidden) -> None:
    family, x, context = with_classes(context_dim=2)
    y = torch.tensor([0, 3, 1, 1, 2])
    visible = torch.rand(x.shape) < 0.6 if hidden else torch.ones(x.shape, dtype=torch.bool)
    torch.manual_seed(6)
    given = torch.where(visible, x, torch.nan), context, visible if hidden else None, y
    found = family.training_log_prob(*given)
    torch.manual_seed(6)
    heavier = family.training_log_prob(*given, class_weight=3.0)
    torch.manual_seed(6)
    order = visible_first(random_orders(5, 6), visible.flatten(1))
    for r in range(5):
        m = int(visible[r].sum())
        log_y = sum(read_by_hand(family, x[r].flatten(), order[r, :i], context[r])[y[r]] for i in range(m + 1)) / (m + 1)
        log_x = family(context[r], order[r]).conditional_log_prob(x[r]).flatten()[order[r, :m]].sum()
        assert_close(found[r], log_x + log_y)
        assert_close(heavier[r], log_x + 3 * log_y)
    grads = torch.autograd.grad(found.sum(), list(family.parameters()), allow_unused=True)
    assert all(g is not None and bool(g.isfinite().all()) for g in grads)


def test_the_class_is_never_told() -> None:
    family, x, _ = with_classes()
    plain = par.AnyOrderTransformer((1, 2, 3), output=outputs.Categorical(3), **OPTIONS).double().eval()
    plain.net.load_state_dict(family.net.state_dict())
    assert_close(family().log_prob(x), plain().log_prob(x))
    with torch.no_grad():
        family.read_class.weight.mul_(2)
    assert_close(family().log_prob(x), plain().log_prob(x))
    assert family.num_classes == 4
    assert plain.num_classes == 0


@pytest.mark.parametrize("event_shape", [1, 3])
def test_the_weights_counted_are_those_that_cells_or_class_read(event_shape) -> None:
    family, x, _ = with_classes(event_shape)
    total = 0.0
    for order in itertools.permutations(range(event_shape)):
        order = torch.tensor(order)
        raw, h = family.net.after_prefixes(x[:, order], family.read_class.place, None, order.expand(5, -1))
        total = total + (raw * torch.randn(raw.shape)).sum() + (family.read_class(h) * torch.randn(5, event_shape + 1, 4)).sum()
    grads = torch.autograd.grad(total, list(family.parameters()), allow_unused=True)
    reached = sum(int((g.abs() > 1e-14).sum()) for g in grads if g is not None)
    made = par.AnyOrderTransformer.count_parameters(event_shape, output=outputs.Categorical(3), **OPTIONS, num_classes=4, order="random")
    assert family.num_parameters == made == reached


def test_what_reads_no_class_says_so() -> None:
    family, x, context = with_classes(context_dim=2)
    with pytest.raises(ValueError, match="reads no class: make it with num_classes"):
        par.AnyOrderTransformer(6, **OPTIONS).posterior(torch.zeros(2, 6))
    with pytest.raises(ValueError, match="num_classes must be 0 or more; got -1"):
        par.AnyOrderTransformer(6, **OPTIONS, num_classes=-1)
    with pytest.raises(ValueError, match="context"):
        family.posterior(x)
    with pytest.raises(ValueError, match="rows of shape"):
        family.posterior(x.flatten(1), context=context)
    with pytest.raises(ValueError, match="states 0 to 2"):
        family.posterior(x + 2, context=context)
    with pytest.raises(ValueError, match="permutations"):
        family.prefix_log_posterior(x, torch.zeros(6, dtype=torch.long), context)
    assert family.log_posterior(x, torch.zeros(1, 2, 3, dtype=torch.bool), context).isfinite().all()
