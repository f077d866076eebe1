r"""One latent tree while it is fitted: messages up and down that keep what counting needs and nothing else.

With :math:`e_c` the exponential of what node c shows and hears (its largest taken off), :math:`u_c = T_c e_c` what it told its parent, and q the parent's
posterior over :math:`u_c`,

.. math:: p(z_{pa} = i, z_c = j \mid x) = q_i T_{ij} e_c(j), \quad q_i = p(z_{pa} = i \mid x) / u_c(i)

so that counts, like messages, are products of matrices: :math:`T \circ (q e^\top)` summed over rows. All lie `(nodes, K, N)`, rows last, in the
places of the tree; rows come in parts that stay in a processor's cache.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from torch import Tensor

from pyro_ar.budget import CACHE, at_once
from pyro_ar.latent.emissions import kinds_of
from pyro_ar.latent.parameters import Parameters
from pyro_ar.latent.shown import LEAST, Columns, columns_of

__all__ = ["Learner", "Rows", "Upward"]


class Rows(NamedTuple):
    """Rows of a fit.

    Attributes:
        x: `(N, n)`, anything where hidden.
        seen: `(N, n)`, None where all is seen.
        weights: `(N)`, None where each counts once.
    """

    x: Tensor
    seen: Tensor | None = None
    weights: Tensor | None = None

    def take(self, index: Tensor | slice) -> "Rows":
        """Some of them."""
        return Rows(*(None if t is None else t[index] for t in self))  # type: ignore[arg-type]

    @property
    def total(self) -> float:
        """What all count together."""
        return float(len(self.x) if self.weights is None else self.weights.sum())


class Upward(NamedTuple):
    """What the way down needs of the way up.

    Attributes:
        log_p: Of the rows, `(N)`.
        features: Of the columns of each kind.
        inside: e of all nodes, `(H, K, N)`; at the root the posterior.
        told: u of all nodes but the root, `(H - 1, K, N)`.
    """

    log_p: Tensor
    features: list[Tensor]
    inside: Tensor
    told: Tensor


class _Kind(NamedTuple):
    """Columns of one kind, and where their nodes are; None: one at each place, in order."""

    columns: Columns
    prior: Columns
    variables: Tensor
    places: Tensor | None


class Learner:
    """The tables of one tree and the counts that they come from.

    Args:
        start: Where it starts.
        prior: The tables towards which rows that are made up pull.
        strength: How many rows are made up for each distribution.
        dtype: Of all work.
    """

    def __init__(self, start: Parameters, prior: Parameters, strength: float, dtype: torch.dtype) -> None:
        self.tree, self.output, self.strength, self.dtype = start.tree, start.output, strength, dtype
        self.K = start.root_logits.shape[-1]
        self.root, self.transitions, raw = self._read(start)
        self._prior_root, self._prior_transitions, prior_raw = self._read(prior)
        outputs = start.output.variables(len(self.tree.nodes))
        own = self.tree.columns
        places = self.tree.variable_places
        self._kinds = []
        grouped = kinds_of(outputs)
        for output, variables in grouped.items():
            index = torch.tensor(own if own is not None and len(grouped) == 1 else variables)
            mine, made_up = (columns_of(output, t[index][..., :output.raw]) for t in (raw, prior_raw))
            direct = own is not None and len(grouped) == 1
            self._kinds.append(_Kind(mine, made_up, index, None if direct else places[index]))
        self._running: list[Tensor] | None = None
        self._counted: list[Tensor] | None = None

    def _read(self, given: Parameters) -> tuple[Tensor, Tensor, Tensor]:
        """Tables of probabilities in the places of the tree, and raw emissions."""
        given = given.to(self.dtype)
        order = torch.tensor(self.tree.transitions, dtype=torch.long)
        root, transitions = (t.softmax(-1).clamp(min=LEAST) for t in (given.root_logits, given.transition_logits[order]))
        return root, transitions, given.emission

    @property
    def rows_at_once(self) -> int:
        """As many as stay in a processor's cache."""
        return at_once(len(self.tree.parents) * self.K, 8 * CACHE)

    def upward(self, rows: Rows) -> Upward:
        """Messages to the root."""
        features, local = [], None
        for kind in self._kinds:
            x, seen = (None if t is None else t[:, kind.variables].mT.contiguous() for t in rows[:2])
            features.append(kind.columns.features(x.to(self.dtype), seen))  # type: ignore[union-attr]
            shown = kind.columns.log_p(features[-1])
            if kind.places is None:
                local = shown
                break
            if local is None:
                local = shown.new_zeros(len(self.tree.parents), *shown.shape[1:])
            local.index_add_(0, kind.places, shown)
        inside: Tensor = local  # type: ignore[assignment]
        told = inside.new_empty(len(inside) - 1, *inside.shape[1:])
        heard = None
        for depth in reversed(range(len(self.tree.levels))):
            start, stop = self.tree.levels[depth]
            m = inside[start:stop]
            if heard is not None:
                m.index_add_(0, self.tree.above[depth], heard)
            if depth:
                top = m.amax(1, keepdim=True)
                m.sub_(top).exp_()
                u = told[start - 1:stop - 1]
                torch.bmm(self.transitions[start - 1:stop - 1], m, out=u)
                heard = u.log().add_(top)
        whole = inside[0] + self.root.log().unsqueeze(-1)
        log_p = whole.logsumexp(0)
        inside[0] = (whole - log_p).exp()
        return Upward(log_p, features, inside, told)

    def downward(self, found: Upward, weights: Tensor | None = None) -> None:
        """Add the expected counts of these rows, each as often as its weight `(N)`; uses up what it is given."""
        inside, told, levels = found.inside, found.told, self.tree.levels
        if weights is not None:
            inside[0] *= weights
        pairs = torch.empty_like(self.transitions)
        for depth in range(1, len(levels)):
            (first, _), (start, stop) = levels[depth - 1], levels[depth]
            q = inside.index_select(0, self.tree.above[depth - 1] + first)
            q.div_(told[start - 1:stop - 1])
            torch.bmm(q, inside[start:stop].mT, out=pairs[start - 1:stop - 1])
            inside[start:stop].mul_(torch.bmm(self.transitions[start - 1:stop - 1].mT, q))
        counts = [inside[0].sum(-1), pairs.mul_(self.transitions)]
        for kind, features in zip(self._kinds, found.features, strict=True):
            posterior = inside if kind.places is None else inside.index_select(0, kind.places)
            counts.append(kind.columns.counts(features, posterior))
        self._counted = counts if self._counted is None else [a.add_(b) for a, b in zip(self._counted, counts, strict=True)]

    def step(self, share: float, scale: float) -> None:
        """New tables, from what was counted since the last step.

        Args:
            share: Of the running counts to be replaced, 1 for all.
            scale: From the rows that were counted to all.
        """
        if self._counted is None:
            return
        new = [t.mul_(scale) for t in self._counted]
        old, self._counted = self._running, None
        self._running = new if old is None or share == 1 else [a.lerp_(b, share) for a, b in zip(old, new, strict=True)]
        root, pairs, *shown = self._running
        self.root = self._shares(root, self._prior_root)
        self.transitions = self._shares(pairs, self._prior_transitions)
        for kind, counts in zip(self._kinds, shown, strict=True):
            kind.columns.maximise(counts, kind.prior, self.strength)

    # Ascent along the counts, in place of EM's steps.

    def leaves(self) -> list[Tensor]:
        """Logits of the root and the transitions in the places of the tree, and the raw emissions of each kind: what `move` sets."""
        return [self.root.log(), self.transitions.log(), *(kind.columns.raw.clone() for kind in self._kinds)]

    def slopes(self, leaves: Sequence[Tensor]) -> list[Tensor]:
        """Gradients by `leaves` of what was counted since the last step, each row as often as its weight, which may be negative."""
        counted, self._counted = self._counted, None
        if counted is None:
            return [torch.zeros_like(leaf) for leaf in leaves]
        root, pairs, *shown = counted
        found = [root - root.sum() * self.root, pairs - pairs.sum(-1, keepdim=True) * self.transitions]
        for kind, counts, raw in zip(self._kinds, shown, leaves[2:], strict=True):
            leaf = raw.detach().requires_grad_()
            with torch.enable_grad():
                found.append(torch.autograd.grad(kind.columns.score(leaf, counts).sum(), leaf)[0])
        return found

    def move(self, leaves: Sequence[Tensor]) -> None:
        """Take these tables."""
        self.root, self.transitions = (t.softmax(-1).clamp(min=LEAST) for t in leaves[:2])
        self._kinds = [kind._replace(columns=columns_of(kind.columns.output, raw.clone())) for kind, raw in zip(self._kinds, leaves[2:], strict=True)]

    def frozen(self) -> "Learner":
        """Of a shallow copy: tables of its own, that later steps of the original do not change."""
        self._kinds = [kind._replace(columns=columns_of(kind.columns.output, kind.columns.raw)) for kind in self._kinds]
        self._running = self._counted = None
        return self

    def _shares(self, counts: Tensor, prior: Tensor) -> Tensor:
        """Relative counts over the last dimension; uniform where nothing was counted."""
        whole = counts + self.strength * prior if self.strength else counts
        total = whole.sum(-1, keepdim=True)
        return torch.where(total > 0, whole / total.clamp(min=LEAST), 1 / self.K).clamp(min=LEAST)

    def log_p(self, rows: Rows) -> Tensor:
        """Of each row's visible cells, `(N)`."""
        parts = torch.arange(len(rows.x)).split(self.rows_at_once)
        return torch.cat([self.upward(rows.take(part)).log_p for part in parts])

    def log_prior(self) -> Tensor:
        """Log density of the rows that are made up, at the present tables, up to a constant; of discrete columns and hidden states."""
        total = (self._prior_root * self.root.log()).sum() + (self._prior_transitions * self.transitions.log()).sum()
        for kind in self._kinds:
            if kind.columns.output.num_states is not None:
                total = total + (kind.prior.expected() * kind.columns.expected().clamp(min=LEAST).log()).sum()
        return self.strength * total

    def parameters(self) -> Parameters:
        """The present tables, in the order of the nodes."""
        order = torch.tensor(self.tree.transitions, dtype=torch.long).argsort()
        widest = max(kind.columns.raw.shape[-1] for kind in self._kinds)
        raw = self.root.new_zeros(len(self.tree.nodes), self.K, widest)
        for kind in self._kinds:
            raw[kind.variables, :, :kind.columns.raw.shape[-1]] = kind.columns.raw
        return Parameters(self.tree, self.output, self.root.log(), self.transitions.log()[order], raw)
