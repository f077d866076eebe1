r"""Summing over the joint states of hidden variables of a chain.

All tensors here are in chain order. `states` `(*O, n)` says how many states each variable has; `score` gives log p(x_i | x_<i) of values
`(*L, m)`, the first m variables. A row meets each joint state of its hidden variables once, numbered with the first hidden variable fastest.
"""

import math

from collections.abc import Callable

import torch

from torch import Size, Tensor

from pyro_ar.budget import at_once

__all__ = ["each_state", "fill", "hidden_before", "in_groups", "joint_states"]

Score = Callable[[Tensor], Tensor]


def hidden_before(visible: Tensor) -> Tensor:
    """The hidden variables that a visible one follows."""
    return ~visible & (visible.flip(-1).cumsum(-1).flip(-1) > 0)


def joint_states(hidden: Tensor, states: Tensor) -> Tensor:
    """How many joint states the hidden variables of each row have, `(*L)`, in double precision: it may be past counting."""
    return torch.where(hidden, states.double().log(), 0).sum(-1).exp().round()


def each_state(score: Score, x: Tensor, hidden: Tensor, counted: Tensor, states: Tensor, copies: int = 1) -> Tensor:
    """Log p of the counted variables for every joint state of the hidden ones, `(joint states, *L)`; `copies` of a row are held by `score`."""
    many = joint_states(hidden, states)
    numbers = torch.arange(int(many.max()), device=x.device).reshape(-1, *[1] * many.ndim)
    last = int(counted.flatten(0, -2).any(0).nonzero().max()) + 1 if bool(counted.any()) else 1
    x, hidden, counted, states = (t[..., :last] for t in (x, hidden, counted, states))
    parts = []
    for some in numbers.split(at_once(x.numel() * copies)):
        terms = torch.where(counted, score(fill(x, hidden, some, states)), 0)
        parts.append(torch.where(some < many, terms.sum(-1), -math.inf))
    return torch.cat(parts)


def fill(x: Tensor, hidden: Tensor, number: Tensor, states: Tensor) -> Tensor:
    """`x` with its hidden variables in joint state `number` `(*L)`."""
    place = torch.where(hidden, states, 1).cumprod(-1)
    place = torch.cat((torch.ones_like(place[..., :1]), place[..., :-1]), -1)
    return torch.where(hidden, (number.unsqueeze(-1) // place % states).to(x.dtype), x)


def in_groups(function: Callable[..., Tensor], x: Tensor, hidden: Tensor, visible: Tensor, states: Tensor, own: Size) -> Tensor:
    """`function(x, hidden, visible)` of rows with about equally many joint states, as many rows at once as memory allows.

    Args:
        function: Gives `(rows, *own, ...)`.
        x: `(*lead, *own, n)`; dimensions of `own` may be missing.
        hidden: As `x`.
        visible: As `x`.
        states: `(n,)`, or `(*own, n)`.
        own: The batch shape of the joint, whose dimensions are never rows.
    """
    # Batch dimensions that a value lacks are written out, lest they be taken for rows.
    x, hidden, visible = (t[(None,) * max(len(own) + 1 - t.ndim, 0)] for t in (x, hidden, visible))
    lead = x.shape[: x.ndim - 1 - len(own)]
    flat = [t.reshape(math.prod(lead), *t.shape[len(lead):]) for t in (x, hidden, visible)]
    many = joint_states(flat[1], states).reshape(len(flat[1]), -1).amax(1)
    size = many.log2().ceil()
    each = x.shape[-1] * math.prod(torch.broadcast_shapes(flat[0].shape[1:-1], own))
    pieces = [
        piece
        for group in size.unique().tolist()
        for piece in (size == group).nonzero().squeeze(-1).split(at_once(each * 2**group))
    ]
    answer = torch.cat([function(*(t[piece] for t in flat)) for piece in pieces])
    answer = answer[torch.cat(pieces).argsort()]
    return answer.reshape(lead + answer.shape[1:])
