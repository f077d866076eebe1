"""What nets of large images are asked in more than one file."""

import torch

from torch.testing import assert_close

__all__ = ["draws_sample_as_alone", "steps_as_it_passes"]


def steps_as_it_passes(net, x, told, whole, before, known):
    """Prefilled from variable `before` up to `known`, a net steps on as its pass says, also for rows that are taken from its state.

    Args:
        net: Of at least `known` variables.
        x: Rows in chain order, five or more.
        told: Context, or nothing.
        whole: What a pass over all of `x` answers.
        before: Variables that are stepped through one by one first.
        known: Variables that are known in all; no more than `before` asks nothing.
    """
    if known <= before:
        return
    state, last = net.start(len(x), **told), None
    for i in range(before):
        net.advance(state, last)
        last = x[:, i]
    net.prefill(state, x[:, before:known] if last is None else x[:, before - 1:known])
    assert_close(net.advance(state, None), whole[:, known])
    index = torch.tensor([4, 4, 1])
    taken = net.take(state, index)
    for i in range(known + 1, x.shape[1]):
        assert_close(net.advance(state, x[:, i - 1]), whole[:, i])
        assert_close(net.advance(taken, x[index, i - 1]), whole[index, i])


def draws_sample_as_alone(family):
    """Two draws of all weights sample as each would: under vmap, with an output `Normal` made all but certain, so that there is no noise to share."""
    with torch.no_grad():
        family.net.head[1].bias[1] = -40.0  # the scale, softplus of it is nothing
        family.net.head[1].weight[1] = 0.0
        draws = {name: t * torch.tensor([1.0, 0.5]).reshape(2, *[1] * t.ndim) if "bias" not in name else t.expand(2, *t.shape)
                 for name, t in family.net.named_parameters()}
        both = family().with_tensors(draws).sample((3,))
        for k in range(2):
            alone = family().with_tensors({name: t[k] for name, t in draws.items()}).sample()
            assert_close(both[:, k], alone.expand(3, *family.event_shape), atol=1e-6, rtol=0)
