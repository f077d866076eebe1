r"""Messages on a tree of hidden states, differentiable: up to the root, and down again.

All tensors are logarithms, in the places of a `Tree`: `(E, nodes, N, K)`, with E entries of the batch and N rows. With what node c shows and
hears from its children, :math:`m_c(j)`, it tells its parent

.. math:: u_c(i) = \log \sum_j T_{ij} e^{m_c(j)}

which is a product of matrices once the largest :math:`m_c` is taken off, unless some T is so small that the product might lose it; then,
and under `vmap`, which shows no values, it is summed in logarithms throughout.

Rabiner (1989), *A tutorial on hidden Markov models*; Pearl (1988), *Probabilistic reasoning in intelligent systems*, section 4.2.
"""

import math

from typing import NamedTuple

import torch

from torch import Tensor

from pyro_ar.latent.tree import Tree
from pyro_ar.transforms import is_mapped

__all__ = ["Messages", "Tables", "down", "log_sum", "up"]


class Tables(NamedTuple):
    """Normalised log tables of the hidden states.

    Attributes:
        root: `(E, K)`.
        transitions: `(E, nodes - 1, K, K)`, the parent's state first.
        plain: Whether products of matrices lose nothing.
    """

    root: Tensor
    transitions: Tensor
    plain: bool

    @classmethod
    def of(cls, root: Tensor, transitions: Tensor) -> "Tables":
        """From logits; the smallest entry decides how to sum."""
        root, transitions = root.log_softmax(-1), transitions.log_softmax(-1)
        if is_mapped(root, transitions):
            return cls(root, transitions, False)
        about = torch.finfo(transitions.dtype)
        least = float(transitions.detach().min()) if transitions.numel() else 0.0
        return cls(root, transitions, least > math.log(about.tiny / about.eps))


class Messages(NamedTuple):
    """What went up, one tensor per level, the root's first.

    Attributes:
        inside: What a node shows and hears from below.
        sent: What it tells its parent; of the root nothing.
        total: Log-probability of all that is shown, `(E, N)`.
    """

    inside: list[Tensor]
    sent: list[Tensor]
    total: Tensor


def up(local: Tensor, tables: Tables, tree: Tree) -> Messages:
    """From what each node shows, `(E, nodes, N, K)`, the messages to the root."""
    inside: list[Tensor] = []
    sent: list[Tensor] = []
    for depth in reversed(range(len(tree.levels))):
        start, stop = tree.levels[depth]
        m = local[:, start:stop]
        if sent:
            m = m.index_add(1, tree.above[depth].to(m.device), sent[-1])
        inside.append(m)
        if depth:
            sent.append(_transfer(m, tables.transitions[:, start - 1:stop - 1], tables.plain))
    total = log_sum(inside[-1].squeeze(1) + tables.root.unsqueeze(-2))
    return Messages(inside[::-1], sent[::-1], total)


def down(messages: Messages, tables: Tables, tree: Tree) -> Tensor:
    """Log posterior of each hidden state given all that is shown, `(E, nodes, N, K)`; where that is impossible, minus infinity."""
    possible = messages.total != -math.inf
    total = torch.where(possible, messages.total, 0)[:, None, :, None]
    levels = [messages.inside[0] + tables.root[:, None, None] - total]
    for depth in range(1, len(tree.levels)):
        start, stop = tree.levels[depth]
        parent = levels[-1].index_select(1, tree.above[depth - 1].to(total.device))
        none = parent == -math.inf
        others = (parent - messages.sent[depth - 1].masked_fill(none, 0.0)).masked_fill(none, -math.inf)
        heard = _transfer(others, tables.transitions[:, start - 1:stop - 1].mT, tables.plain)
        levels.append(messages.inside[depth] + heard)
    return torch.cat(levels, 1)


def log_sum(terms: Tensor) -> Tensor:
    """log-sum-exp over the last dimension, without NaN gradients where all is minus infinity."""
    dead = (terms == -math.inf).all(-1, keepdim=True)
    return terms.masked_fill(dead, 0.0).logsumexp(-1).masked_fill(dead.squeeze(-1), -math.inf)


def _transfer(m: Tensor, log_table: Tensor, plain: bool) -> Tensor:
    """Log of the sum over j of T_ij exp(m_j): `(E, h, N, K)` and `(E, h, K, K)`."""
    if not plain:
        return log_sum(log_table.unsqueeze(-3) + m.unsqueeze(-2))
    top = m.detach().amax(-1, keepdim=True)
    dead = top == -math.inf
    top = top.masked_fill(dead, 0.0)
    found = (m - top).exp() @ log_table.exp().mT
    if not bool(dead.any()):
        return found.log() + top
    return found.masked_fill(dead, 1.0).log().masked_fill(dead, -math.inf) + top
