r"""Expectation-maximisation for latent trees, by minibatches or in full, of one tree or of several in a mixture.

Each step replaces a share of the running expected counts by those of the batch; the share falls in equal steps over the epochs. A batch of all rows has
share 1, which is EM itself: no step lowers the log-likelihood of the visible cells plus that of the rows that are made up.

Dempster, Laird, Rubin (1977), JRSS B 39; by minibatches: Cappe, Moulines (2009), *On-line
expectation-maximization algorithm for latent data models*, JRSS B 71.
"""

import copy
import math

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from torch import Generator, Tensor
from tqdm.auto import tqdm

from pyro_ar.arrays import Array, as_tensor
from pyro_ar.checks import require
from pyro_ar.latent.learner import Learner, Rows
from pyro_ar.latent.parameters import Parameters
from pyro_ar.latent.start import alone, at_random, output_of, tree_of
from pyro_ar.outputs import Output
from pyro_ar.tables.counts import check_weights
from pyro_ar.visible import training_rows

__all__ = ["Fit", "Recipe", "Schedule", "fit_tree", "lean", "learn", "read_fit", "read_rows_of_fit"]

FIRST, LAST = 0.5, 0.02  # shares of the running counts that a minibatch replaces, in the first and last epoch
TOLERANCE = 1e-6  # nats per row, of steps over all rows


class Schedule:
    """How long a fit goes on, and in which batches.

    Args:
        epochs: Most passes over the rows.
        batch_size: Rows per step; None: all.
        patience: Epochs without a better held-out score before it stops.
        progress: Show a bar.
        generator: For the order of the rows.
    """

    def __init__(self, epochs: int, batch_size: int | None, patience: int, progress: bool, generator: Generator | None) -> None:
        for name, value, least in (("epochs", epochs, 0), ("patience", patience, 1), ("batch_size", batch_size or 1, 1)):
            require(isinstance(value, int) and value >= least, f"{name} must be a whole number, {least} or more", value)
        self.epochs, self.batch_size, self.patience = epochs, batch_size, patience
        self.progress, self.generator = progress, generator

    def share(self, epoch: int) -> float:
        """Of the running counts that a minibatch replaces."""
        return FIRST + (LAST - FIRST) * epoch / max(self.epochs - 1, 1)


def learn(learners: Sequence[Learner], rows: Rows, held_out: Rows | None, schedule: Schedule,
          log_weights: Tensor | None = None) -> tuple[list[Learner], Tensor, float]:
    """EM for trees with these weights in a mixture; the state of the best held-out score, or the last.

    Returns:
        The learners, their log weights, and the score: mean held-out nats per row, or those of the rows and what is made up.
    """
    N, batch = len(rows.x), min(schedule.batch_size or len(rows.x), len(rows.x))
    logs = torch.zeros(len(learners), dtype=learners[0].dtype) if log_weights is None else log_weights.to(learners[0].dtype)
    state = _State(list(learners), logs)
    best, best_score, since, before = state, -math.inf, 0, -math.inf
    if held_out is not None:
        best, best_score = state.copied(), state.score(held_out)
    with tqdm(total=schedule.epochs, disable=not schedule.progress, desc="EM") as bar:
        for epoch in range(schedule.epochs):
            order = torch.arange(N) if batch == N else torch.randperm(N, generator=schedule.generator)
            fitted = 0.0
            prior = state.log_prior() if batch == N else 0.0
            for index in order.split(batch):
                some = rows if batch == N else rows.take(index)
                total = state.count(some)
                fitted += total
                state.step(1.0 if batch == N else schedule.share(epoch), rows.total / max(some.total, 1e-30))
            bar.update()
            score = (fitted + prior) / rows.total
            if held_out is not None:
                score = state.score(held_out)
                bar.set_postfix(nats=f"{score:.4f}")
                if score > best_score:
                    best, best_score, since = state.copied(), score, 0
                    continue
                since += 1
                if since >= schedule.patience:
                    break
            else:
                best, best_score = state, score
                bar.set_postfix(nats=f"{score:.4f}")
                if batch == N and score - before <= TOLERANCE:
                    break
                before = score
    return best.learners, best.logs, best_score


class _State:
    """Learners and their weights."""

    def __init__(self, learners: list[Learner], logs: Tensor) -> None:
        self.learners, self.logs = learners, logs.log_softmax(-1)
        self._counted: Tensor | None = None
        self._running: Tensor | None = None

    def copied(self) -> "_State":
        return _State([copy.copy(each).frozen() for each in self.learners], self.logs)

    def count(self, rows: Rows) -> float:
        """Expected counts of these rows into all learners; their log-likelihood."""
        total = 0.0
        at_once = max(1, min(each.rows_at_once for each in self.learners) // len(self.learners))
        parts = math.ceil(len(rows.x) / at_once)
        for part in torch.arange(len(rows.x)).tensor_split(parts):
            some = rows.take(part)
            found = [each.upward(some) for each in self.learners]
            if len(found) == 1:
                log_p, shares = found[0].log_p, [some.weights]
            else:
                joint = torch.stack([each.log_p for each in found]) + self.logs[:, None]
                log_p = joint.logsumexp(0)
                mine = (joint - log_p).exp()
                mine = mine if some.weights is None else mine * some.weights.to(mine)
                shares = list(mine)
                self._counted = mine.sum(-1) if self._counted is None else self._counted + mine.sum(-1)
            total += float((log_p if some.weights is None else log_p * some.weights.to(log_p)).sum())
            for learner, one, share in zip(self.learners, found, shares, strict=True):
                learner.downward(one, None if share is None else share.to(one.log_p))
        return total

    def step(self, share: float, scale: float) -> None:
        for learner in self.learners:
            learner.step(share, scale)
        if self._counted is not None:
            new = self._counted * scale
            self._running = new if self._running is None or share == 1 else self._running.lerp(new, share)
            self._counted = None
            self.logs = self._running.clamp(min=1e-10).log().log_softmax(-1)

    def log_p(self, rows: Rows) -> Tensor:
        each = torch.stack([learner.log_p(rows) for learner in self.learners])
        return (each + self.logs[:, None]).logsumexp(0)

    def score(self, rows: Rows) -> float:
        """Mean nats per row."""
        log_p = self.log_p(rows).double()
        return float(log_p.mean() if rows.weights is None else (log_p * rows.weights).sum() / rows.weights.sum())

    def log_prior(self) -> float:
        return sum(float(each.log_prior()) for each in self.learners)


def read_rows_of_fit(x: Array, visible: Array | None, sample_weight: Array | None) -> Rows:
    """Checked rows; those of weight zero are left out.

    Raises:
        ValueError: Not rows `(N, n)`, or weights that are not `(N)`, 0 or more.
    """
    x, seen, weights = training_rows(x, visible, sample_weight)
    require(isinstance(x, Tensor) and x.ndim == 2 and x.numel() > 0, "data must be rows of shape (N, n)", x)
    check_weights(weights, len(x))
    require(weights is None or weights.ndim == 1, "sample_weight must be one weight per row", weights)
    require(weights is None or bool((weights > 0).any()), "some row must have a weight above 0", weights)
    return Rows(x, seen, weights)


class Recipe(NamedTuple):
    """What is fitted, as the arguments of `LatentTree.from_data` say."""

    num_hidden: int
    structure: Any
    nodes: Any
    output: Output | None
    num_states: int | Sequence[int] | None
    smoothing: float

    def checked(self) -> "Recipe":
        """Itself, or `ValueError`."""
        require(isinstance(self.num_hidden, int) and self.num_hidden >= 1, "num_hidden must be 1 or more", self.num_hidden)
        require(math.isfinite(self.smoothing) and self.smoothing >= 0, "smoothing must be 0 or more", self.smoothing)
        return self


class Fit(NamedTuple):
    """Checked rows of a fit.

    Attributes:
        rows: To be fitted.
        held_out: To judge by, or None.
        output: Of the columns.
        dtype: Of the rows, and of what is found.
        work: Of the fit: double precision unless all columns are states, in single precision.
    """

    rows: Rows
    held_out: Rows | None
    output: Output
    dtype: torch.dtype
    work: torch.dtype

    @property
    def discrete(self) -> bool:
        """Whether all columns are states."""
        return all(o.num_states is not None for o in self.output.variables(self.rows.x.shape[1]))


def read_fit(x: Array, visible: Array | None, sample_weight: Array | None, held_out: Any, recipe: Recipe, schedule: Schedule) -> Fit:
    """Checked rows and output.

    Raises:
        ValueError: Bad rows, or arguments that do not fit them.
    """
    recipe.checked()
    rows, held = _held_out(read_rows_of_fit(x, visible, sample_weight), held_out, schedule.generator)
    dtype = rows.x.dtype if rows.x.is_floating_point() else torch.get_default_dtype()
    output = output_of(rows, recipe.output, recipe.num_states)
    if held is not None:
        output_of(held, output, None)
    fit = Fit(rows, held, output, dtype, torch.float64)
    return fit._replace(work=torch.float32) if fit.discrete and dtype != torch.float64 else fit


def fit_tree(x: Array, visible: Array | None, sample_weight: Array | None, held_out: Any, recipe: Recipe, schedule: Schedule, *, restarts: int = 1,
             start: Parameters | None = None, prior: Parameters | None = None) -> tuple[Parameters, torch.dtype]:
    """What `LatentTree.from_data` finds, and the precision of the rows; the arguments are its own."""
    require(isinstance(restarts, int) and restarts >= 1, "restarts must be 1 or more", restarts)
    known = start or prior
    fit = read_fit(x, visible, sample_weight, held_out, recipe if known is None else recipe._replace(output=known.output), schedule)
    n = fit.rows.x.shape[1]
    for each in (start, prior):
        require(each is None or len(each.tree.nodes) == n, f"start and prior must be trees over {n} variables", each and len(each.tree.nodes))
    tree = tree_of(recipe.structure, recipe.nodes, fit.rows, fit.output) if known is None else known.tree
    K = recipe.num_hidden if known is None else len(known.root_logits)
    marginal = alone(fit.rows, fit.output, tree, K, torch.float64)
    rows, held = lean(fit.rows, fit), None if fit.held_out is None else lean(fit.held_out, fit)
    found = []
    for _ in range(restarts):
        learner = Learner(known or at_random(marginal, schedule.generator), prior or marginal, recipe.smoothing, fit.work)
        fitted, _, score = learn([learner], rows, held, schedule)
        found.append((score, fitted[0]))
    return max(found, key=lambda pair: pair[0])[1].parameters(), fit.dtype


def _held_out(rows: Rows, held_out: Any, generator: Generator | None) -> tuple[Rows, Rows | None]:
    """Rows to fit, and rows to judge by: those given, or a share of the former."""
    if held_out is None:
        return rows, None
    if isinstance(held_out, float):
        many = round(held_out * len(rows.x))
        require(0 < many < len(rows.x), "held_out must be rows, or a share of them that leaves some on both sides", held_out)
        order = torch.randperm(len(rows.x), generator=generator)
        return rows.take(order[many:]), rows.take(order[:many])
    held = read_rows_of_fit(as_tensor(held_out), None, None)
    require(held.x.shape[1] == rows.x.shape[1], f"held_out must have {rows.x.shape[1]} columns, as the rows have", held.x)
    return rows, held


def lean(rows: Rows, fit: Fit) -> Rows:
    """States as bytes, where they fit."""
    return Rows(rows.x.to(torch.uint8), rows.seen, rows.weights) if fit.discrete and float(rows.x.max()) <= 255 else rows
