r"""A discriminative finish for the latent trees of classes: gradient ascent on log p(y | x_visible) over random patterns.

What comes out is a tree per class as before, so every pattern is answered by one joint; only the tables were chosen to tell the classes apart.
The slope of a row's log posterior by the logs of the tables of class c is its expected counts there, times 1[y = c] - p(c | x_visible): the lean passes
of EM, with weights that may be negative, are all it takes.

Source:
    Salojarvi, Puolamaki, Kaski (2005), *Expectation maximization algorithms for conditional likelihoods*, ICML.
"""

from collections.abc import Sequence

import torch

from torch import Generator, Tensor
from tqdm.auto import tqdm

from pyro_ar.latent.learner import Learner, Rows
from pyro_ar.latent.parameters import Parameters

__all__ = ["finish"]

MOST_HIDDEN = 0.9  # of the cells of a row: each row hides a share drawn evenly up to it
BATCH = 250
RATE = 0.02


def finish(parts: Sequence[Parameters], log_prior: Tensor, rows: Rows, labels: Tensor, *, epochs: int, generative: float, dtype: torch.dtype,
           generator: Generator | None, progress: bool = False) -> list[Parameters]:
    """The trees after so many epochs.

    Args:
        parts: One tree per class.
        log_prior: `(C)`.
        rows: Training rows, and what each counts within a step.
        labels: Their classes, `(N)`.
        epochs: Passes over the rows.
        generative: Weight of log p(x_visible | y) beside log p(y | x_visible).
        dtype: Of all work.
        generator: Of patterns and the order of the rows.
        progress: Show a bar.
    """
    learners = [Learner(part, part, 0.0, dtype) for part in parts]
    leaves = [learner.leaves() for learner in learners]
    flat = [t for each in leaves for t in each]
    optimiser = torch.optim.Adam(flat, RATE)
    steps = epochs * -(-len(rows.x) // BATCH)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(steps, 1))
    for _ in tqdm(range(epochs), disable=not progress, desc="discriminative"):
        for index in torch.randperm(len(rows.x), generator=generator).split(BATCH):
            some = rows.take(index)
            shown = torch.rand(some.x.shape, generator=generator) >= MOST_HIDDEN * torch.rand(len(index), 1, generator=generator)
            some = Rows(some.x, shown if some.seen is None else shown & some.seen, some.weights)
            found = [learner.upward(some) for learner in learners]
            posterior = (torch.stack([each.log_p for each in found], -1) + log_prior.to(dtype)).softmax(-1)
            mine = torch.nn.functional.one_hot(labels[index], len(parts)).to(dtype)
            own = torch.ones(len(index), dtype=dtype) if some.weights is None else some.weights.to(dtype)
            weights = ((1 + generative) * mine - posterior) * own[:, None] / own.sum()
            for learner, each, one, weight in zip(learners, leaves, found, weights.mT, strict=True):
                learner.downward(one, weight)
                for leaf, slope in zip(each, learner.slopes(each), strict=True):
                    leaf.grad = -slope
            optimiser.step()
            decay.step()
            for learner, each in zip(learners, leaves, strict=True):
                learner.move(each)
    return [learner.parameters() for learner in learners]
