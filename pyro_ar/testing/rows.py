"""Does the answer for a row depend on the rows that come with it?"""

from collections.abc import Callable
from typing import Any

import torch

from pyro.distributions import constraints
from torch import Tensor

from pyro_ar.testing.oracles import agree, answered_patterns, check, conditionals, has_conditionals, holds, per_row
from pyro_ar.testing.rebuilding import constraint_of, gradients

__all__ = ["rows_stand_alone"]

FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "as they are": lambda t: t,
    "100 times as small": lambda t: t / 100,
    "100 times as large": lambda t: t * 100,
    # What one adds the next takes away again: a shortcut that cancels shows, in single precision and in double.
    "all of size 12": lambda t: 12 * t.sign(),
    "all of size 40": lambda t: 40 * t.sign(),
}
"""Of the parameters: shortcuts for many rows may fail for weights that are small, or extreme."""


@check
def rows_stand_alone(joint: Any, *, rows: int = 24, alone: int = 8) -> None:
    """One row alone has the answers it has among many: `log_prob`, `conditional_log_prob` and `marginal`, and their gradients.

    The joint is also made of small and of extreme parameters (`FORMS`), as far as their constraints allow it and it accepts them.

    Options: `rows`, how many there are together; `alone`, how many of them are asked alone.
    """
    x, patterns = joint.sample((rows,)), answered_patterns(joint, joint.sample())
    visible = per_row(patterns[torch.arange(rows, device=x.device) % len(patterns)], joint)
    asks: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
        "log_prob": lambda p, x, v: p.log_prob(x),
        "marginal": lambda p, x, v: p.marginal(v).log_prob(x),
    }
    if has_conditionals(joint, x[:1]):
        asks["conditional_log_prob"] = lambda p, x, v: conditionals(p, x)
    picked = torch.randperm(rows)[:alone].tolist()
    for form, change in FORMS.items():
        one = _changed(joint, change)
        for what, ask in asks.items() if one is not None else ():
            said = f"{what} of one row alone and among {rows}, parameters {form}"
            with torch.no_grad():
                each = torch.cat([ask(one, x[i:i + 1], visible[i:i + 1]) for i in picked])
                agree(ask(one, x, visible)[picked], each, said)
            possible = [i for i, value in zip(picked, each, strict=True) if bool(value.isfinite().all())]
            _gradients_agree(one, ask, x, visible, possible[:3], said)


def _gradients_agree(one: Any, ask: Callable[..., Tensor], x: Tensor, visible: Tensor, picked: list[int], said: str) -> None:
    """By the parameters: of these rows among all, and of each alone, summed."""
    if not picked:
        return
    total, answer = ask(one, x, visible)[picked], torch.cat([ask(one, x[i:i + 1], visible[i:i + 1]) for i in picked])
    holds(total.requires_grad == answer.requires_grad, f"{said}: only one of them can be differentiated")
    if not total.requires_grad:
        return
    together, each = (dict(gradients(one, t.sum())) for t in (total, answer))
    # Rounding of the largest terms shows in all: a deep net passes them on to weights whose own gradients nearly vanish.
    size = max(1.0, *(float(g.abs().amax()) for g in together.values() if g.numel()))
    for name, g in together.items():
        agree(g / size, each[name] / size, f"gradient by {name} of {said}")


def _changed(joint: Any, change: Callable[[Tensor], Tensor]) -> Any | None:
    """The joint of changed leaves, as far as their constraints allow it; None where the joint refuses them."""
    tensors = {}
    for name, t in joint.tensors.items():
        t = t.detach().clone()
        if t.is_floating_point():
            constraint = constraint_of(joint, name)
            # A positive definite matrix stays one only as a whole.
            other = t * change(t.new_ones(())) if constraint is constraints.positive_definite else change(t)
            other = torch.where(t.isfinite(), other, t)
            t = (other if bool(constraint.check(other).all()) else t).requires_grad_()
        tensors[name] = t
    try:
        return joint.with_tensors(tensors)
    except ValueError:
        return None
