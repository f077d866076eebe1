r"""Counts of rows with hidden cells: expectation-maximisation, the same for every table joint.

The expected count of a joint state of one factor's variables is the gradient of log p(x_visible) with respect to the log of that
factor's entry, so elimination, run backwards once, counts for chains, trees, nets and full tables alike.

Dempster, Laird, Rubin (1977), *Maximum likelihood from incomplete data via the EM algorithm*, JRSS B 39.
"""

import math

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from torch import Tensor

from pyro_ar.budget import at_once
from pyro_ar.tables.counts import Block, block_counts, relative
from pyro_ar.tables.elimination import evidence, forward, log_total, make_plan

if TYPE_CHECKING:
    from pyro_ar.tables.base import TableJoint

__all__ = ["expected_counts"]

TOLERANCE = 1e-6  # nats per row


def expected_counts(joint_of: Callable[[list[Tensor], torch.dtype], "TableJoint"], tables: Sequence[Sequence[Block]], states: Tensor,
                    visible: Tensor, num_states: Sequence[int], weights: Tensor | None, pseudocount: float,
                    em_steps: int) -> list[Tensor]:
    """Counts of each table, `(*B, *K_parents, *K_children)`, hidden cells in expectation under the joint that EM finds.

    Args:
        joint_of: From counts to the joint, the pseudocount added.
        tables: The blocks that share each conditional table.
        states: `(N, n)`, int64, anything where hidden.
        visible: `(N, n)`.
        num_states: Per variable.
        weights: `(*B, N)`; None counts each row once. Every batch entry has an EM of its own.
        pseudocount: Added to every cell, 0 or more.
        em_steps: Most steps.
    """
    batch = () if weights is None else weights.shape[:-1]
    every = states.new_ones(1, len(states)).double() if weights is None else weights.double().reshape(-1, len(states))
    entries = []
    for w in every:
        mine = w > 0
        x, seen, w = states[mine], visible[mine], w[mine]
        counts = [_available(blocks, x, seen, num_states, w, pseudocount) for blocks in tables]
        best = -math.inf
        for _ in range(em_steps):
            prior = _log_prior(counts, tables, pseudocount)
            counts, score = _expect(joint_of(counts, torch.float64), tables, x, seen, w)
            score += prior
            if score - best <= TOLERANCE * float(w.sum()):
                break
            best = score
        entries.append(counts)
    return [torch.stack(each).reshape(*batch, *each[0].shape) for each in zip(*entries, strict=True)]


def _available(blocks: Sequence[Block], states: Tensor, visible: Tensor, num_states: Sequence[int], weights: Tensor,
               pseudocount: float) -> Tensor:
    """Counts of the rows that show a whole block; never zero in all, for EM cannot leave a zero."""
    each = [block_counts(b, states, num_states, weights * visible[:, [*b.parents, *b.children]].all(1)) for b in blocks]
    counts = torch.stack(each).sum(0)
    return counts if pseudocount > 0 else counts + 1 / counts.numel()


def _expect(joint: "TableJoint", tables: Sequence[Sequence[Block]], states: Tensor, visible: Tensor,
            weights: Tensor) -> tuple[list[Tensor], float]:
    """Expected counts under `joint`, and the log-likelihood of the visible cells."""
    scopes, sizes = joint.scopes, joint.num_states
    plan = make_plan(scopes, sizes)
    leaves = [table.detach().requires_grad_() for table in joint.factors()]
    total = 0.0
    with torch.enable_grad():
        for turn in torch.arange(len(states), device=states.device).split(at_once(plan.cells * len(sizes))):
            x, seen = states[turn].double(), visible[turn]
            answer = log_total(plan, [(t.exp(), s) for t, s in zip(leaves, scopes, strict=True)],
                               evidence(x, seen, sizes, logs=False))
            if answer is None:
                answer, _ = forward(plan, list(zip(leaves, scopes, strict=True)), evidence(x, seen, sizes))
            score = (answer * weights[turn]).sum()
            score.backward()
            total += float(score.detach())
    counts = {scope: torch.zeros_like(t) if t.grad is None else t.grad for scope, t in zip(scopes, leaves, strict=True)}
    return [torch.stack([counts[*b.parents, *b.children] for b in blocks]).sum(0) for blocks in tables], total


def _log_prior(counts: list[Tensor], tables: Sequence[Sequence[Block]], pseudocount: float) -> float:
    """`pseudocount` times the sum of the logs of the tables: Dirichlet priors up to a constant."""
    if pseudocount == 0:
        return 0.0
    return pseudocount * sum(float(relative(t + pseudocount, b[0]).log().sum()) for t, b in zip(counts, tables, strict=True))
