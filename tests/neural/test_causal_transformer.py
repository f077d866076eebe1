"""The transformer: against torch's own encoder, attention in both forms, caches, and what it counts and refuses."""

import pytest
import torch

from torch import nn
from torch.testing import assert_close

import pyro_ar as par

from pyro_ar import outputs
from pyro_ar.neural import CausalTransformerNet, PerDimensionMLPNet, RecurrentARNet
from pyro_ar.neural.layers import attention
from pyro_ar.neural.layers.attention import attend, plain_attend
from pyro_ar.testing.nets import _prepared

MIXED = outputs.PerVariable([outputs.Normal(), outputs.Bernoulli(), outputs.Constant(), outputs.Categorical(4)])


def torchs(net, heads, key_heads):
    """torch's encoder with the weights of the net's blocks; of keys that queries share, it holds copies."""
    width, layers = net.width, len(net.blocks.blocks)
    layer = nn.TransformerEncoderLayer(width, heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
    encoder = nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(width), enable_nested_tensor=False).double().eval()

    def copied(weight):
        return weight.unflatten(0, (key_heads, -1)).repeat_interleave(heads // key_heads, 0).flatten(0, 1)

    with torch.no_grad():
        for ours, theirs in zip(net.blocks.blocks, encoder.layers, strict=True):
            theirs.self_attn.in_proj_weight.copy_(torch.cat((ours.query.weight, copied(ours.key.weight), copied(ours.value.weight))))
            theirs.self_attn.in_proj_bias.zero_()
            for a, b in ((theirs.self_attn.out_proj, ours.out), (theirs.linear1, ours.wide), (theirs.linear2, ours.narrow),
                         (theirs.norm1, ours.norm), (theirs.norm2, ours.mlp_norm)):
                a.load_state_dict(b.state_dict())
        encoder.norm.load_state_dict(net.blocks.norm.state_dict())
    return encoder


@pytest.mark.parametrize(("heads", "key_heads"), [(1, 1), (4, 4), (4, 2), (4, 1)])
def test_it_is_torchs_encoder_over_tokens_of_last_value_and_place(heads, key_heads) -> None:
    net, x, known = _prepared(CausalTransformerNet(5, outputs.Categorical(3, "one-hot"), 2, width=8, layers=2, heads=heads, key_heads=key_heads))
    encoder = torchs(net, heads, key_heads)
    tokens = []
    for i in range(5):
        token = net.place[i] + known["context"] @ net.context_weight
        if i:
            token = token + torch.cat((torch.zeros(1, 8), net.value_weight)).double()[x[:, i - 1].long()]
        tokens.append(token)
    with torch.no_grad():
        h = encoder(torch.stack(tokens, 1), nn.Transformer.generate_square_subsequent_mask(5, dtype=torch.float64), is_causal=True)
        assert_close(net(x, **known), h @ net.head_weight + net.head_bias)


@pytest.mark.parametrize("first", [None, 0, 3])
def test_both_forms_of_attention_agree_in_value_and_gradients(first, float64) -> None:
    m, t = 4, 7 if first else 4
    q, k, v = torch.randn(2, 3, m, 5), torch.randn(2, 3, t, 5), torch.randn(2, 3, t, 5)
    mask = (torch.arange(t) <= (t if first is None else first) + torch.arange(m)[:, None]).expand(2, 1, m, t)
    assert_close(attend(q, k, v, mask), attend(q, k, v, first))
    assert_close(plain_attend(q, k, v, mask), attend(q, k, v, first))
    with torch.no_grad():
        by_hand = torch.zeros_like(q)
        for i in range(m):
            last = t if first is None else first + i + 1
            scores = (q[:, :, i:i + 1] * k[:, :, :last]).sum(-1) / 5**0.5
            by_hand[:, :, i] = (scores.exp().unsqueeze(-1) * v[:, :, :last]).sum(2) / scores.exp().sum(-1, keepdim=True)
        assert_close(attend(q, k, v, first), by_hand)
        assert_close(plain_attend(q, k, v, first), by_hand)

    def total(form):
        return lambda *given: (form(*given, first) ** 3).sum()

    ours, plain = (torch.autograd.functional.jacobian(total(form), (q, k, v)) for form in (attend, plain_attend))
    assert_close(ours, plain)
    ours, plain = (torch.autograd.functional.hessian(total(form), (q, k, v)) for form in (attend, plain_attend))
    assert_close(ours, plain)
    only_v = v.clone().requires_grad_()
    total(attend)(q, k, only_v).backward()
    assert_close(only_v.grad, torch.autograd.functional.jacobian(lambda v: total(plain_attend)(q, k, v), v))


def test_the_gradient_asks_the_fused_kernel(monkeypatch) -> None:
    def refuse(*_):
        raise AssertionError("plain")

    monkeypatch.setattr(attention, "plain_attend", refuse)
    family = par.CausalTransformer(4, width=8, heads=2)
    family().log_prob(torch.ones(3, 4)).sum().backward()
    assert all(p.grad is not None for p in family.parameters())


def test_a_known_prefix_is_one_pass_and_a_step_one_token(monkeypatch) -> None:
    lengths = []
    through = CausalTransformerNet.through
    monkeypatch.setattr(CausalTransformerNet, "through", lambda self, tokens, *a: lengths.append(tokens.shape[1]) or through(self, tokens, *a))
    joint = par.CausalTransformer(12, width=8, heads=2)()
    given = joint.given(torch.ones(12), torch.arange(12) < 8)
    lengths.clear()  # of log p(x_visible)
    given.sample((3,))
    assert lengths == [8, 1, 1, 1, 1]


NETS = {
    "transformer": lambda *a: CausalTransformerNet(*a, width=8, layers=2, heads=4, key_heads=2),
    "recurrent": lambda *a: RecurrentARNet(*a, hidden=3, layers=2, width=4),
    "per dimension": lambda *a: PerDimensionMLPNet(*a, hidden=(3, 2)),
}


@pytest.mark.parametrize("context_dim", [0, 2])
@pytest.mark.parametrize("event_shape", [1, 2, 4])
@pytest.mark.parametrize("output", [outputs.Bernoulli(), outputs.Categorical(3), MIXED], ids=["bernoulli", "categorical", "mixed"])
@pytest.mark.parametrize("name", NETS)
def test_the_weights_counted_are_those_that_reach_an_answer(name, output, event_shape, context_dim) -> None:
    if output is MIXED:
        output = outputs.PerVariable(MIXED.outputs[:event_shape])
    net, _, known = _prepared(NETS[name](event_shape, output, context_dim))
    each = output.variables(event_shape)
    x = torch.stack([torch.arange(5) % (o.num_states or 5) for o in each], 1).double()
    raw = net(x, **known)
    asked = torch.stack([torch.arange(output.raw) < o.raw for o in each])
    grads = torch.autograd.grad((raw * torch.randn(raw.shape).double() * asked).sum(), list(net.parameters()), allow_unused=True)
    reached = sum(int((g.abs() > 1e-14).sum()) for g in grads if g is not None)
    assert net.num_parameters == reached
    assert type(net).count(event_shape, output, context_dim, **OPTIONS[name]) == reached


OPTIONS = {
    "transformer": {"width": 8, "layers": 2, "heads": 4, "key_heads": 2},
    "recurrent": {"hidden": 3, "layers": 2, "width": 4},
    "per dimension": {"hidden": (3, 2)},
}


def test_dropout_is_for_training_alone() -> None:
    net = CausalTransformerNet(4, outputs.Bernoulli(), width=8, heads=2, dropout=0.5)
    x = torch.ones(2, 4)
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))


@pytest.mark.parametrize("options", [{"width": 0}, {"width": 10, "heads": 4}, {"heads": 4, "key_heads": 3}, {"layers": 0}, {"dropout": 1.0}])
def test_sizes_that_do_not_fit_are_refused(options) -> None:
    with pytest.raises(ValueError, match=r"width|divide|layers|dropout"):
        par.CausalTransformer(4, **{"width": 8, **options})
