"""The transformer in any order: against torch's own encoder, one pass for patterns, and the known variables at once."""

import itertools

import pytest
import torch

from torch import nn
from torch.testing import assert_close

import pyro_ar as par

from pyro_ar import outputs
from pyro_ar.neural import AnyOrderNet, AnyOrderTransformerNet
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
