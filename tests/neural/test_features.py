"""What nets hold of whole rows: by hand where a formula says it, and of every family its shape, its rows and its draws."""

import pytest
import torch

from torch import nn
from torch.testing import assert_close

import pyro_ar as par

from pyro_ar.neural.registry import FAMILIES
from pyro_ar.outputs import Categorical

pytestmark = pytest.mark.usefixtures("float64")


def a_family(name, event_shape=(1, 2, 3), **options):
    torch.manual_seed(0)
    entry = FAMILIES[name]
    family = entry.family(event_shape, **{**entry.small, **options}).eval()
    with torch.no_grad():
        for p in family.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return family, torch.randint(0, family.output.num_states, (7, *family.event_shape)).double()


@pytest.mark.parametrize("name", [name for name in FAMILIES if name != "MixtureChain"])
def test_rows_contexts_and_draws_keep_to_themselves(name):
    family, x = a_family(name, context_dim=2, output=Categorical(3))
    context = torch.randn(7, 2)
    found = family.features(x, context)
    assert found.ndim == 2
    assert found.isfinite().all()
    for i in (0, 4):
        assert_close(family.features(x[i:i + 1], context[i:i + 1])[0], found[i])
        assert_close(family.features(x[i], context[i]), found[i])
    assert (found[0] - found[1]).abs().max() > 1e-3
    assert (family.features(x, context.roll(1, 0)) - found).abs().max() > 1e-3
    assert_close(family.features(x.numpy(), context), found)
    joint = family(context[0])
    weights = {k: t * torch.tensor([1.0, 1.3]).reshape(2, *[1] * t.ndim) for k, t in joint.arguments["weights"].items()}
    drawn = par.Autoregressive(joint.net, weights, joint.output, context=joint.context, buffers=joint.arguments["buffers"])
    assert_close(drawn.features(x.unsqueeze(1))[:, 0], joint.features(x))
    with pytest.raises(ValueError, match="states 0 to 2"):
        family.features(x + 1, context)
    with pytest.raises(ValueError, match="no NaN"):
        family.features(torch.full_like(x, torch.nan), context)


def test_of_nade_it_is_the_hidden_layer_that_has_read_everything():
    family, x = a_family("NADE", 4, order=[2, 0, 3, 1])
    net = family.net
    pre = net.hidden_bias.expand(7, -1)
    for place, i in enumerate([2, 0, 3, 1]):
        pre = pre + x[:, i:i + 1] * net.input_weight[place]
    assert_close(family.features(x), torch.sigmoid(pre))


def test_of_orderless_nade_it_is_the_last_layer_in_any_order():
    family, x = a_family("OrderlessNADE", 4, hidden=(5, 3))
    net = family.net
    pre = net.hidden_bias + sum(net.known_weight[i] + x[:, i:i + 1] * net.input_weight[i] for i in range(4))
    expected = torch.sigmoid(torch.sigmoid(pre) @ net.deep[0].weight.T + net.deep[0].bias)
    assert_close(family.features(x), expected)
    assert_close(family(order=torch.tensor([3, 1, 0, 2])).features(x), expected)


@pytest.mark.parametrize("masks", [1, 3])
def test_of_made_it_is_the_last_hidden_layer_under_each_mask(masks):
    family, x = a_family("MADE", 4, hidden=(6, 5), masks=masks, order="random", direct=True)
    found = family.features(x).unflatten(-1, (masks, 5))
    for mask in range(masks):
        joint = family() if masks == 1 else family.of_mask(mask)
        # What the last layer makes of it, and the direct connections, are the raw parameters.
        net, h, place = family.net, torch.zeros(7, 5), joint.order.argsort()
        h[:, net.units_1[mask] if masks > 1 else torch.arange(5)] = found[:, mask]
        degrees = torch.zeros(5, dtype=torch.long)
        degrees[net.units_1[mask] if masks > 1 else torch.arange(5)] = net.layers[-2].degrees
        rows = x if masks > 1 else x[:, joint.order]
        place = place if masks > 1 else torch.arange(4)
        logits = h @ (net.layers[-1].weight * (place[:, None] + 1 > degrees)).T + net.layers[-1].bias
        logits = logits + rows @ (net.direct_weight * (place[:, None] > place)).T
        log_p = -nn.functional.binary_cross_entropy_with_logits(logits, rows, reduction="none").sum(1)
        assert_close(joint.log_prob(x), log_p)


def test_of_transformers_it_is_the_mean_of_the_stream_in_the_middle():
    family, x = a_family("CausalTransformer", 6, layers=3)
    seen = []
    family.net.blocks.blocks[1].register_forward_hook(lambda module, given, out: seen.append(out))
    family.net(x)
    assert_close(family.features(x), seen[0].mean(1))


def test_of_images_it_is_the_mean_within_fields():
    family, x = a_family("PixelCNN", (1, 8, 8))
    heads = []
    family.net.head[0].register_forward_pre_hook(lambda module, given: heads.append(given[0]))
    family.net(x)
    expected = heads[0].unflatten(2, (4, 2)).unflatten(4, (4, 2)).mean((3, 5)).flatten(1)
    assert_close(family.features(x), expected)


def test_elsewhere_it_is_the_raw_parameters():
    family, x = a_family("FVSBN", 4)
    assert_close(family.features(x), family.net(x).flatten(1))
