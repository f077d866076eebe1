r"""Which cell to look at next: what each hidden cell is expected to tell about the class, and what looking does tell."""

import math

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from pyro_ar.budget import at_once
from pyro_ar.changes.transformed import Transformed
from pyro_ar.checks import IntractableError, require
from pyro_ar.classify.generative import GenerativeClassifier
from pyro_ar.classify.looking.quadrature import line_information, neglected
from pyro_ar.elliptical.base import Elliptical
from pyro_ar.elliptical.cells import Components
from pyro_ar.joint import Joint
from pyro_ar.mixture import Mixture
from pyro_ar.tables.base import TableJoint
from pyro_ar.tables.cells import cell_probabilities

__all__ = ["Looks", "information_gain", "reveal"]



class Looks(NamedTuple):
    """What `reveal` saw: k cells of each of N rows, one after the other.

    Attributes:
        cells: Positions in the flattened event, in the order in which they were looked at, `(N, k)`.
        log_posterior: log p(y | what was seen by then), before the first look and after each, `(N, k + 1, C)`.
        gains: Of a greedy order, the information of every cell before each look, in nats, `(N, k, *event)`; None otherwise.
    """

    cells: Tensor
    log_posterior: Tensor
    gains: Tensor | None


class _Leaf(NamedTuple):
    """Joints without mixtures inside: how probable each is (`(E,)`, log) and whose it is (`(E,)`), over the flattened batch.

    Attributes:
        change: The change of variable around it, if any.
    """

    joint: Joint
    log_weight: Tensor
    owner: Tensor
    change: Transformed | None


def information_gain(classifier: GenerativeClassifier, X: Any, visible: Any = None, *, tolerance: float = 1e-4) -> Tensor:
    r"""What each hidden cell is expected to tell about the class, given the visible ones, in nats.

    .. math:: I(y; x_i \mid x_v) = H(y \mid x_v) - \mathrm{E}_{x_i \mid x_v} H(y \mid x_v, x_i)
              = \sum_c p(c \mid x_v)\, \mathrm{KL}\big( p(x_i \mid c, x_v) \,\|\, p(x_i \mid x_v) \big)

    It is at least 0 and at most H(y | x_v). A visible cell tells nothing more: exactly 0.

    Discrete cells are summed over their states, exactly: tables by one elimination and its gradient for all cells and states, other
    discrete joints (chains of nets) by asking the marginal of every state of every hidden cell, (hidden cells) x K marginals per row. Of
    (mixtures of, monotone transforms of) Gaussian and Student-t joints the cells are real numbers: the integral over one of
    them is a sum over nodes, right to `tolerance`; a transform that all classes share leaves the information as it is.

    Shapes:
        `(N, *event)`, the event as in `fit`.

    Args:
        classifier: A fitted `GenerativeClassifier`, without `pattern`.
        X: As in `predict`.
        visible: As in `predict`. None: NaN in X is hidden and all else is seen, as in `predict`; of X without any NaN nothing is seen yet (all
            else would tell nothing).
        tolerance: Of real cells, in nats.

    Raises:
        ValueError: Bad rows, or visible cells that no class can have.
        IntractableError: No exact answer: real cells of other joints, transforms that differ between classes, any-order
            families (whose marginals are not those of one joint), or components too narrow for the tolerance.

    Source:
        Lindley (1956), *On a measure of the information provided by an experiment*, Annals of Mathematical Statistics 27.

    Example:
        >>> from pyro_ar.tables import FullyIndependent
        >>> X, y = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]]), torch.tensor([0, 0, 1, 1])
        >>> classifier = GenerativeClassifier(FullyIndependent, fit_options={"pseudocount": 0.0}).fit(X, y)
        >>> information_gain(classifier, X[:1])  # the first cell is the class, log 2; the second says nothing
        tensor([[0.6931, 0.0000]], dtype=torch.float64)
    """
    x, seen = _rows(classifier, X, visible)
    require(tolerance > 0, "tolerance must be more than 0", tolerance)
    with torch.no_grad():
        return _Looker(classifier).information(x, seen, tolerance).reshape(-1, *classifier.event_shape_)


def reveal(classifier: GenerativeClassifier, X: Any, order: Any = "greedy", visible: Any = None, *, steps: int | None = None,
           tolerance: float = 1e-3) -> Looks:
    r"""Look at hidden cells one after the other, and see how the posterior of the class moves.

    'greedy' looks next where `information_gain` is largest, so each row has its own order, which depends on what
    it has shown: active feature acquisition. It is best for one look ahead, not for several. A row of which no cell tells more than
    `tolerance` any longer is as good as decided; the rest of it is looked at in the order of what the cells told at first.

    Args:
        classifier: A fitted `GenerativeClassifier`, without `pattern`.
        X: Rows with all cells known, without NaN: what is hidden is looked up here.
        order: 'greedy', or positions of cells in the flattened event, `(k,)` for all rows or `(N, k)`; visible ones may not
            be among them.
        visible: What is seen at the beginning; None: nothing.
        steps: How many cells to look at; None: all (of the greedy order, as many as the row with the fewest hidden cells has).
        tolerance: Of the greedy order, in nats, as in `information_gain`.

    Raises:
        ValueError: Bad rows, an order that repeats a cell or leads to a visible one, or more steps than cells.
        IntractableError: As `information_gain`; with a given order, as `log_joint`.

    Example:
        >>> from pyro_ar.tables import FullyIndependent
        >>> X, y = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]]), torch.tensor([0, 0, 1, 1])
        >>> classifier = GenerativeClassifier(FullyIndependent).fit(X, y)
        >>> looks = reveal(classifier, X[3:])
        >>> looks.cells, looks.log_posterior.exp()[0, :, 1]
        (tensor([[0, 1]]), tensor([0.5000, 0.7500, 0.7500], dtype=torch.float64))
    """
    x, seen = _rows(classifier, X, visible)
    require(bool(x.isfinite().all()), "reveal looks hidden cells up in X, so all of X must be finite: no NaN, say what is hidden by visible=")
    greedy = isinstance(order, str)
    require(not greedy or order == "greedy", "order must be 'greedy' or positions of cells", order)
    places = None if greedy else _places(order, seen)
    most = int((~seen).sum(1).min()) if places is None else places.shape[1]
    k = most if steps is None else steps
    require(0 <= k <= most, f"steps must be from 0 to the {most} cells that there are to look at", k)
    seen, rows = seen.clone(), torch.arange(len(x), device=x.device)
    cells, gains = torch.zeros(len(x), k, dtype=torch.long, device=x.device), []
    with torch.no_grad():
        looker = _Looker(classifier) if greedy else None
        log_posterior = [_posterior(classifier, x, seen)]
        for step in range(k):
            if looker is not None:
                gain = looker.information(x, seen, tolerance)
                gains.append(gain)
                decided = gain.amax(1, keepdim=True) <= tolerance
                cells[:, step] = torch.where(decided, gains[0], gain).masked_fill(seen, -math.inf).argmax(1)
            elif places is not None:
                cells[:, step] = places[:, step]
            seen[rows, cells[:, step]] = True
            log_posterior.append(_posterior(classifier, x, seen))
    maps = torch.stack(gains, 1).unflatten(2, classifier.event_shape_) if gains else None
    return Looks(cells, torch.stack(log_posterior, 1), maps)


def _rows(classifier: GenerativeClassifier, X: Any, visible: Any) -> tuple[Tensor, Tensor]:
    """Checked rows and patterns, `(N, n)` both."""
    require(isinstance(classifier, GenerativeClassifier), "looking wants a GenerativeClassifier (of a corrected one, its classifier_)",
            type(classifier).__name__)
    check_is_fitted(classifier)
    require(getattr(classifier, "pattern_", None) is None, "looking wants a classifier without a model of the pattern: a cell that was "
            "looked up is not one that happened to be seen")
    x, seen = classifier.read_rows(X, visible)
    if visible is None and seen is None:
        seen = torch.zeros(1, *classifier.event_shape_, dtype=torch.bool, device=x.device)
    x = x.flatten(1)
    everything = torch.ones_like(x, dtype=torch.bool)
    return x, everything if seen is None else seen.flatten(1).expand(x.shape)


def _posterior(classifier: GenerativeClassifier, x: Tensor, seen: Tensor) -> Tensor:
    return classifier.log_posterior(x.reshape(-1, *classifier.event_shape_), seen.reshape(-1, *classifier.event_shape_))


def _places(order: Any, seen: Tensor) -> Tensor:
    """A given order, `(N, k)`, checked."""
    places = torch.as_tensor(order, device=seen.device)
    fits = places.ndim in (1, 2) and not places.is_floating_point() and places.dtype != torch.bool
    fits = fits and (places.ndim == 1 or len(places) == len(seen))
    require(fits, f"order must be positions of cells, (k,) or ({len(seen)}, k) (a pattern goes to visible=)", places)
    places = places.long().expand(len(seen), -1)
    inside = not places.numel() or bool((places >= 0).all() & (places < seen.shape[1]).all())
    require(inside, f"positions in order must lie from 0 to {seen.shape[1] - 1}")
    repeated = bool((places.sort(1).values.diff() == 0).any())
    require(not repeated and not bool(seen.gather(1, places).any()), "order must name hidden cells, each of them once")
    return places


class _Looker:
    """A classifier taken apart into joints without mixtures, which are asked cell by cell."""

    def __init__(self, classifier: GenerativeClassifier) -> None:
        mixture = classifier.joint_
        if not mixture.coherent:
            raise IntractableError("an any-order family has another joint for every order, so what a cell tells is not defined: "
                                   "use reveal with an order of your own")
        self.num_classes = len(classifier.classes_)
        self.dtype, self.device, self.event_shape = mixture.dtype, mixture.device, mixture.event_shape
        classes = torch.arange(self.num_classes, device=self.device)
        log_prior = mixture.log_mixing().detach()
        parts = mixture.joints
        if isinstance(parts, Joint):
            self.leaves = self._take_apart(parts, log_prior, classes)
        else:
            self.leaves = [leaf for c, part in enumerate(parts) for leaf in self._take_apart(part, log_prior[c], classes[c])]
        self.owner = torch.cat([leaf.owner for leaf in self.leaves])
        self.discrete = mixture.num_states is not None
        self.components = None if self.discrete else self._components()

    def _take_apart(self, joint: Joint, log_weight: Tensor, owner: Tensor, change: Transformed | None = None) -> list[_Leaf]:
        """Leaves of a joint whose batch broadcasts with the shape of `log_weight` and `owner`."""
        if isinstance(joint, Mixture):
            inner = joint.log_mixing().detach()
            if isinstance(joint.joints, Joint):
                log_weight = log_weight.unsqueeze(-1) + inner
                return self._take_apart(joint.joints, log_weight, owner.unsqueeze(-1).expand(log_weight.shape), change)
            return [leaf for m, part in enumerate(joint.joints)
                    for leaf in self._take_apart(part, log_weight + inner[..., m], owner, change)]
        shape = log_weight.shape
        if joint.batch_shape != shape:
            joint = joint.expand(shape)
        if isinstance(joint, Transformed):
            return self._take_apart(joint.joint, log_weight, owner, joint)  # over the reals, so not a change of variable itself
        return [_Leaf(joint, log_weight.reshape(-1), owner.reshape(-1), change)]

    def _components(self) -> Components:
        good = all(isinstance(leaf.joint, Elliptical) for leaf in self.leaves)
        transforms = [getattr(leaf.change, "transform", None) for leaf in self.leaves]
        if not good or any(t != transforms[0] for t in transforms):
            names = sorted({type(leaf.joint).__name__ for leaf in self.leaves})
            raise IntractableError("what a real cell tells is known for mixtures of Gaussian and Student-t joints under one transform, "
                                   f"not for {names} or transforms that differ: use reveal with an order of your own")
        return Components([leaf.joint for leaf in self.leaves])

    def information(self, x: Tensor, seen: Tensor, tolerance: float) -> Tensor:
        """I(y; x_i | x_visible) of rows `(N, n)`; equal questions are answered once."""
        answer = torch.zeros(x.shape, dtype=self.dtype, device=self.device)
        x = torch.where(seen, x.to(self.dtype).to(self.device), 0)
        together, which = torch.cat([x, seen.to(x)], 1).unique(dim=0, return_inverse=True)
        rows, patterns = together[:, :x.shape[1]], together[:, x.shape[1]:] > 0
        step = at_once(sum(len(leaf.owner) for leaf in self.leaves) * self._states() * x.shape[1])
        each = [self._answer(r, p, tolerance) for r, p in zip(rows.split(step), patterns.split(step), strict=True)]
        if each:
            answer = torch.cat(each)[which]
        return answer

    def _states(self) -> int:
        return max(self.leaves[0].joint.num_states or (1,))

    def _answer(self, x: Tensor, seen: Tensor, tolerance: float) -> Tensor:
        change = self.leaves[0].change
        if change is not None:  # the same one around all leaves, so its slope cancels
            x, _ = change.back_where(x, seen)
        evidence = [self._evidence(leaf, x, seen) for leaf in self.leaves]
        log_share = torch.cat(evidence, 1)
        dead = (log_share == -math.inf).all(1)
        require(not bool(dead.any()), "every row must be possible under some class; the visible cells have probability zero under "
                "all classes", f"{int(dead.sum())} such rows of {len(dead)}")
        share = log_share.softmax(1)
        if self.discrete:
            return self._of_states(x, seen, share, evidence)
        return self._of_lines(x, seen, share, tolerance)

    def _evidence(self, leaf: _Leaf, x: Tensor, seen: Tensor) -> Tensor:
        """Log p(component, x_visible), `(N, E)`."""
        left = (len(x), *[1] * len(leaf.joint.batch_shape), *self.event_shape)
        log_p = leaf.joint.marginal(seen.reshape(left)).log_prob(x.reshape(left))
        return log_p.reshape(len(x), -1) + leaf.log_weight

    # Discrete cells.

    def _of_states(self, x: Tensor, seen: Tensor, share: Tensor, evidence: Sequence[Tensor]) -> Tensor:
        each = share.split([len(leaf.owner) for leaf in self.leaves], 1)
        p = x.new_zeros(len(x), self.num_classes, x.shape[1], self._states())  # p(y, x_i = k | x_visible)
        for leaf, own, scores in zip(self.leaves, each, evidence, strict=True):
            p.index_add_(1, leaf.owner, own[..., None, None] * self._cells(leaf, x, seen, scores))
        prior = p.sum(-1, keepdim=True)  # p(y | x_visible), once for every cell
        whole = p.sum(1, keepdim=True)
        tiny = torch.finfo(p.dtype).tiny
        told = torch.xlogy(p, p / (prior * whole).clamp(min=tiny)).sum((1, 3))
        return told.clamp(min=0)

    def _cells(self, leaf: _Leaf, x: Tensor, seen: Tensor, scores: Tensor) -> Tensor:
        """p(x_i = k | component, x_visible), `(N, E, n, K)`, zero where visible."""
        joint, E = leaf.joint, len(leaf.owner)
        left = (len(x), *[1] * len(joint.batch_shape), *self.event_shape)
        if isinstance(joint, TableJoint):
            return cell_probabilities(joint, x.reshape(left), seen.reshape(left)).reshape(len(x), E, x.shape[1], -1)
        return self._by_asking(leaf, x, seen, scores)

    def _by_asking(self, leaf: _Leaf, x: Tensor, seen: Tensor, scores: Tensor) -> Tensor:
        """The same by a marginal for every state of every hidden cell."""
        K, E = self._states(), len(leaf.owner)
        row, cell = (~seen).nonzero(as_tuple=True)
        answer = x.new_zeros(len(x), x.shape[1], K, E)
        for turn in torch.arange(len(row), device=x.device).split(at_once(K * E * x.shape[1])):
            r, i = row[turn], cell[turn]
            more, at = seen[r].scatter(1, i[:, None], True), torch.arange(len(turn), device=x.device)
            states = torch.tensor(leaf.joint.num_states, device=x.device)[i]
            for k in range(int(states.max())):
                asked = x[r].clone()
                asked[at, i] = torch.where(k < states, k, 0).to(x)
                log_p = self._evidence(leaf, asked, more) - scores[r].clamp(min=torch.finfo(x.dtype).min)
                answer[r, i, k] = torch.where((k < states)[:, None], log_p.exp(), 0)
        return answer.permute(0, 3, 1, 2)

    # Real cells.

    def _of_lines(self, x: Tensor, seen: Tensor, share: Tensor, tolerance: float) -> Tensor:
        share, order = share.sort(1, descending=True)
        needed = (share.cumsum(1) < 1 - neglected(tolerance, self.num_classes)).sum(1) + 1  # components that matter
        size = needed.double().log2().ceil().exp2().long().clamp(max=share.shape[1])
        answer = torch.zeros_like(x)
        for m in size.unique().tolist():
            rows = (size == m).nonzero().squeeze(-1)
            for turn in rows.split(at_once(m * x.shape[1] * (x.shape[1] + self.num_classes))):
                part = share[turn, :m]
                answer[turn] = self._of_components(x[turn], seen[turn], part / part.sum(1, keepdim=True), order[turn, :m], tolerance)
        return answer

    def _of_components(self, x: Tensor, seen: Tensor, share: Tensor, entry: Tensor, tolerance: float) -> Tensor:
        """Of components `entry` `(R, M)` alone, with these shares; only the hidden cells are worked out."""
        answer, (row, cell) = torch.zeros_like(x), (~seen).nonzero(as_tuple=True)
        if self.components is not None:
            lines = self.components.given(x, seen, entry)
            owner = torch.nn.functional.one_hot(self.owner[entry], self.num_classes).to(x)
            answer[row, cell] = line_information(share[row], owner[row], lines.loc[row, :, cell], lines.scale[row, :, cell],
                                                 lines.df[row], tolerance=tolerance)
        return answer
