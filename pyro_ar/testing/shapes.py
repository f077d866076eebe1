"""Shapes, and expanding."""

import math

from collections.abc import Callable
from typing import Any

import torch

from torch import Size, Tensor

from pyro_ar.checks import IntractableError
from pyro_ar.testing.oracles import (
    agree,
    answered_patterns,
    check,
    conditionals,
    device_of,
    dtype_of,
    has_conditionals,
    holds,
    order_of,
    refuses,
    shaped,
)
from pyro_ar.testing.rebuilding import gradients, rebuilt

__all__ = ["answers_no_rows", "conditionals_sum_to_log_prob", "expands", "shapes_agree"]


@check
def shapes_agree(joint: Any) -> None:
    """`sample` and `log_prob` follow torch's shapes, with extra left dimensions and dimensions of size 1."""
    batch, event = joint.batch_shape, joint.event_shape
    holds(isinstance(batch, Size) and isinstance(event, Size), "batch_shape and event_shape must be torch.Size")
    for shape in ((), (3,), [2], Size([2, 1, 3])):
        x = joint.sample(shape)
        holds(x.shape == Size(shape) + batch + event, f"sample({shape!r}) has shape {tuple(x.shape)}")
        holds(x.dtype == dtype_of(joint), "samples must be floating, of the joint's dtype")
        holds(joint.log_prob(x).shape == Size(shape) + batch, f"log_prob of sample({shape!r}) has a wrong shape")
    x = joint.sample((2, 3))
    expected = joint.log_prob(x)
    agree(torch.stack([torch.stack([joint.log_prob(entry) for entry in row]) for row in x]), expected,
          "log_prob of rows together and one by one")
    agree(joint.log_prob(x.unsqueeze(1)), expected.unsqueeze(1), "log_prob with a dimension of size 1")
    first = x[(0, 0, *[0] * len(batch))]  # one value for the whole batch
    together = joint.log_prob(first.expand(batch + event))
    agree(joint.log_prob(first), together, "log_prob of a value without batch dimensions")
    ones = first.reshape(*[1] * len(batch), *event)
    agree(joint.log_prob(ones), together, "log_prob of a value with batch dimensions of size 1")
    agree(joint.log_prob(ones.expand(4, 1, *ones.shape)), together.expand(4, 1, *batch), "log_prob with more left dimensions")
    holds(isinstance(joint.num_parameters, int) and joint.num_parameters >= 0, "num_parameters must be a whole number")
    order = order_of(joint)
    holds(bool((order.sort(-1).values == torch.arange(math.prod(event), device=order.device)).all()),
          "order must hold permutations of the event's cells")


@check
def conditionals_sum_to_log_prob(joint: Any) -> None:
    """`conditional_log_prob` is event-shaped and sums to `log_prob`."""
    x = joint.sample((3, 2))
    terms = conditionals(joint, x)
    holds(joint.conditional_log_prob(x).shape == x.shape, "conditional_log_prob must have the shape of the value")
    agree(terms.sum(-1), joint.log_prob(x), "sum of conditional_log_prob against log_prob")
    first = x[(0, 0, *[0] * len(joint.batch_shape))]
    spread = conditionals(joint, first.expand(joint.batch_shape + joint.event_shape))
    agree(conditionals(joint, first), spread, "conditional_log_prob of a value without batch dimensions")


@check
def expands(joint: Any) -> None:
    """`expand` takes a list or a Size, gives a new joint that keeps its validation; all its answers have the new shape."""
    batch, event = joint.batch_shape, joint.event_shape
    for shape in ([4, *batch], Size((2, 3, *batch))):
        wide = joint.expand(shape)
        holds(wide is not joint and joint.batch_shape == batch, "expand must give a new object and leave the old one")
        holds(wide.batch_shape == Size(shape) and isinstance(wide.batch_shape, Size), "batch_shape of expand must be a Size")
        holds(wide.event_shape == event, "expand must keep the event shape")
        holds(type(wide) is type(joint), f"expand must keep the class; gave {type(wide).__name__}: write your own expand")
        holds(wide._validate_args == joint._validate_args, "expand must keep validation as it is")
        x = wide.sample((5,))
        holds(x.shape == Size([5, *shape]) + event, f"sample of expand({shape}) has shape {tuple(x.shape)}")
        agree(wide.log_prob(x), joint.log_prob(x), "log_prob of the expanded joint")
        one = joint.sample()
        agree(wide.log_prob(one), joint.log_prob(one).expand(shape), "log_prob of one value under the expanded joint")
        rows = x[0].flatten(0, -len(event) - 1) if event else x[0].flatten()
        holds(len(rows) == 1 or rows.unique(dim=0).shape[0] > 1 or joint.num_states is not None,
              "draws of the expanded joint must be independent")
        visible = torch.ones(event, dtype=torch.bool, device=device_of(joint))
        agree(wide.marginal(visible).log_prob(x), joint.log_prob(x), "marginal of the expanded joint")
        holds(wide.given(one, visible).sample().shape == Size(shape) + event, "given of the expanded joint has a wrong shape")
        _answers_expand(joint, wide)
    if batch:
        refuses(lambda: joint.expand([batch[0] + 1, *batch[1:]] if batch[0] != 1 else []), "expand to a shape that does not fit")


def _answers_expand(joint: Any, wide: Any) -> None:
    """All answers of the expanded joint, also for values that lack its dimensions, are those of the joint, written out."""
    one, new = joint.sample(), wide.batch_shape
    bare = one[(0,) * len(joint.batch_shape)]
    visible = shaped(answered_patterns(joint, one, count=0)[-1], joint)
    asks: dict[str, tuple[Callable[[Any, Tensor], Tensor], Size]] = {
        "marginal": (lambda p, x: p.marginal(visible).log_prob(x), Size()),
        "given": (lambda p, x: p.given(x, visible).log_prob(x), Size()),
        "log_evidence of given": (lambda p, x: p.given(x, visible).log_evidence, Size()),
    }
    if has_conditionals(joint, one):
        asks["conditional_log_prob"] = (lambda p, x: p.conditional_log_prob(x), joint.event_shape)
    if hasattr(joint, "component_log_joint"):
        components = joint.component_log_joint(one).shape[-1:]
        asks["component_log_joint"] = (lambda p, x: p.component_log_joint(x), components)
        asks["component_log_joint under a pattern"] = (lambda p, x: p.component_log_joint(x, visible), components)
    extra = [1] * (len(new) - len(joint.batch_shape))
    for x in (one, bare, one.expand(5, *extra, *one.shape)):
        left = torch.broadcast_shapes(x.shape[: x.ndim - len(joint.event_shape)], new)
        for what, (ask, right) in asks.items():
            answer = ask(wide, x)
            holds(answer.shape == left + right, f"{what} of expand({tuple(new)}) for {tuple(x.shape)} has shape {tuple(answer.shape)}")
            agree(answer, ask(joint, x).expand(answer.shape), f"{what} of the expanded joint")
        holds(wide.given(x, visible).sample((2,)).shape == (2, *left, *joint.event_shape), "given.sample of the expanded joint")


@check
def answers_no_rows(joint: Any) -> None:
    """Of no rows there are no answers, of the right shape: values, patterns, completions and draws; gradients are zero."""
    one = rebuilt(joint, leaves=True)
    batch, event = one.batch_shape, one.event_shape
    patterns = [shaped(v, one) for v in answered_patterns(one, one.sample(), count=4)[-3:]]
    for rows in ((0,), (2, 0)):
        left = Size(rows) + batch
        x = one.sample(rows)
        holds(x.shape == left + event and x.dtype == dtype_of(one), f"sample({rows}) has shape {tuple(x.shape)}")
        _of_shape(one.log_prob(x), left, "log_prob of no rows")
        for name, g in gradients(one, one.log_prob(x).sum()):
            holds(bool((g == 0).all()), f"the gradient of no rows by {name} must be zero")
        if has_conditionals(one, x):
            _of_shape(one.conditional_log_prob(x), left + event, "conditional_log_prob of no rows")
        for pattern in patterns:
            for visible in (pattern, pattern.expand(left + event)):
                marginal, given = one.marginal(visible), one.given(x, visible)
                _of_shape(marginal.log_prob(x), left, "marginal of no rows")
                _of_shape(marginal.sample(rows), Size(rows) + marginal.batch_shape + event, "no samples of a marginal")
                _of_shape(given.log_prob(x), left, "given of no rows")
                _of_shape(given.sample((2,)), Size([2]) + left + event, "completions of no rows")
                _of_shape(given.sample((0,)), Size([0]) + left + event, "no completions of no rows")
                try:
                    _of_shape(given.mode, left + event, "mode of no rows")
                except IntractableError:
                    pass
        complete = one.given(one.sample(), patterns[-1])
        _of_shape(complete.sample(rows), Size(rows) + batch + event, "no completions")


def _of_shape(t: Tensor, shape: Size, what: str) -> None:
    holds(t.shape == shape, f"{what} should have shape {tuple(shape)}, has {tuple(t.shape)}")
