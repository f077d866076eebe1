r"""Which factorisation should be believed, given this much data? The plan of the fits, and the work.

For each number of training rows (nested: more rows contain the fewer) and each model: fit, and score the same test rows. The
tables average over the strength of their prior by its evidence; latent trees and neural models stop early on a tenth of their rows. Evidence and the
probabilities of the tables' structures, which need no test rows, stand beside the scores. `report` shows what came out.
"""

import functools
import hashlib
import math
import time

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from torch import Generator, Tensor

from pyro_ar.checks import require
from pyro_ar.comparison import NeuralModel, TableModel, held_out_score, table_models
from pyro_ar.comparison.recipes import fit_recipe
from pyro_ar.experiments.states import MAX_STATES
from pyro_ar.experiments.store import Results
from pyro_ar.joint import Joint
from pyro_ar.latent import LatentTree
from pyro_ar.neural.family import Family
from pyro_ar.neural.registry import FAMILIES, Trained
from pyro_ar.outputs import Bernoulli, Categorical
from pyro_ar.tables import TableJoint
from pyro_ar.tables.counts import check_data

__all__ = ["MODELS", "NEURAL", "TABLES", "Plan", "estimate_seconds", "run"]

STRENGTHS = (0.25, 1.0, 4.0, 16.0, 64.0, 256.0, 1024.0)
SECONDS_PER_EPOCH = 0.03  # of the training engine: validation, and a checkpoint


class Neural(NamedTuple):
    """A neural family of the line-up.

    Attributes:
        make: From the number of variables and the largest number of states to a fresh family.
        lr: Adam's step size.
        any_order: It answers any pattern; a fixed order, where a prefix of a row is visible, and else for few hidden cells only.
    """

    make: Callable[[int, int], Family]
    lr: float
    any_order: bool


def _output(states: int) -> Any:
    return Bernoulli() if states == 2 else Categorical(states)


def _fresh(family: Any, trained: Trained, variables: int, states: int) -> Family:
    return family(variables, output=_output(states), **trained.options)


TABLES = ("independent", "Markov chain 1", "Markov chain 2", "Markov chain 3", "Chow-Liu tree", "full table")
NEURAL: dict[str, Neural] = {
    entry.compared.name or name: Neural(functools.partial(_fresh, entry.family, entry.compared), entry.compared.fit["lr"], entry.family.net_type.any_order)
    for name, entry in FAMILIES.items() if entry.compared
}
LATENT = "latent tree"
MODELS = (*TABLES, LATENT, *NEURAL)
FIXED_ORDER = tuple(name for name, neural in NEURAL.items() if not neural.any_order)
PSEUDOCOUNTS = (0.01, 0.03, 0.1, 0.3, 1.0)  # of rows with hidden cells, per cell of a table
EM_STEPS = 30


@dataclass(frozen=True)
class IncompleteTable:
    """A table class fitted to rows with hidden cells (NaN) by EM: a point estimate, its pseudocount chosen on a tenth of the rows.

    Attributes:
        joint: The class.
        structure: What its `from_data` needs besides.
        num_states: Of each variable.
        seed: Of the tenth.
    """

    joint: type[TableJoint]
    structure: Mapping[str, Any]
    num_states: tuple[int, ...]
    seed: int = 0

    def fit(self, x: Tensor) -> Joint:
        """The joint of all rows under the chosen pseudocount."""
        order = torch.randperm(len(x), generator=Generator().manual_seed(self.seed))
        held, rest = x[order[: max(1, len(x) // 10)]], x[order[max(1, len(x) // 10):]]
        scores = {p: float(self._fitted(rest, p).marginal(~held.isnan()).log_prob(held).mean()) for p in PSEUDOCOUNTS}
        return self._fitted(x, max(scores, key=lambda p: scores[p]))

    def _fitted(self, x: Tensor, pseudocount: float) -> TableJoint:
        return self.joint.from_data(x, visible=~x.isnan(), pseudocount=pseudocount, num_states=self.num_states, em_steps=EM_STEPS, **self.structure)


@dataclass(frozen=True)
class LatentModel:
    """A hidden Chow-Liu tree by EM, hidden cells (NaN) summed out; a tenth of the rows says when to stop.

    Attributes:
        num_states: Of each variable.
        seed: Of the tenth, and of all else.
    """

    num_states: tuple[int, ...]
    seed: int = 0

    def fit(self, x: Tensor) -> Joint:
        """The joint of nine tenths of the rows."""
        return LatentTree.from_data(x, num_hidden=8, num_states=self.num_states, held_out=0.1, smoothing=0.5, generator=Generator().manual_seed(self.seed),
                                    batch_size=min(1000, max(50, len(x) // 10)))


# The plan.


@dataclass(frozen=True)
class Plan:
    """What is to be done; checked when made.

    Args:
        name: Of the data.
        train: Training rows, `(N, n)` states.
        test: Test rows.
        sizes: Numbers of training rows; None: 25, four times as many, ..., all.
        models: Names from `MODELS`; None: all whose tables fit into memory, each once.
        seed: Of the order of the training rows, and of the neural models.
        steps: Of training of each neural model, at most.
        batch_size: Rows per step.

    Raises:
        ValueError: No states, no rows, an unknown model or one that does not fit, or sizes beyond the rows.
    """

    name: str
    train: Tensor
    test: Tensor
    sizes: tuple[int, ...] | None = None
    models: tuple[str, ...] | None = None
    seed: int = 0
    steps: int = 3000
    batch_size: int = 128

    def __post_init__(self) -> None:
        require(self.train.ndim == 2 and self.test.ndim == 2 and self.train.shape[1] == self.test.shape[1] and len(self.test) >= 2,
                f"{self.name}: wanted training rows and 2 or more test rows of as many variables", self.train, self.test)
        require(min(self.steps, self.batch_size) >= 1, "steps and batch_size must be 1 or more", self.steps, self.batch_size)
        require(self.seed >= 0, "seed must be 0 or more", self.seed)
        most = max(self.num_states)
        require(most <= MAX_STATES, f"{self.name}: wanted states, at most {MAX_STATES} of a variable (bin real numbers first)", most)
        n = len(self.train)
        sizes = self.sizes or (*(s for s in (25 * 4**i for i in range(20)) if 1.5 * s < n), n)
        require(all(10 <= s <= n for s in sizes) and len(set(sizes)) == len(sizes), f"sizes must be different numbers from 10 to the {n} training rows", sizes)
        object.__setattr__(self, "sizes", tuple(sorted(sizes)))
        fits = table_models(self.num_states)
        known = [name for name in MODELS if (name in fits or name == LATENT or name in NEURAL) and name not in self.blind]
        for name in self.models or ():
            require(name in MODELS, f"models must be some of {', '.join(MODELS)}", name)
            require(name not in self.too_long, f"{name} has more memory than {len(self.num_states)} variables can use: give a shorter chain")
            require(name not in self.blind, f"{name} learns from complete rows only, and cells of these are hidden")
            require(name in known, f"{name} does not fit: its tables would have {math.prod(map(float, self.num_states)):.1e} cells")
        wanted = [name for name in known if name not in self.same] if self.models is None else self.models
        object.__setattr__(self, "models", tuple(name for name in known if name in wanted))

    @property
    def num_states(self) -> tuple[int, ...]:
        """States of each variable, over training and test rows: a category is known even if the training part lacks it."""
        return check_data(torch.cat([self.train, self.test]).nan_to_num(0), None)[1]

    @property
    def hidden(self) -> bool:
        """Whether some cell is."""
        return bool(self.train.isnan().any() or self.test.isnan().any())

    @property
    def blind(self) -> tuple[str, ...]:
        """Models that cannot use rows with hidden cells, where there are some."""
        return FIXED_ORDER if self.hidden else ()

    @property
    def left_out(self) -> tuple[str, ...]:
        """Models whose tables do not fit into memory."""
        return tuple(name for name in TABLES if name not in table_models(self.num_states) and name not in self.too_long)

    @property
    def too_long(self) -> tuple[str, ...]:
        """Chains with more memory than there are variables before the last."""
        return tuple(name for name in TABLES if name.startswith("Markov chain") and int(name.split()[-1]) >= len(self.num_states))

    @property
    def same(self) -> tuple[str, ...]:
        """Chains that are the full table under another name, and would count twice."""
        name = f"Markov chain {len(self.num_states) - 1}"
        return (name,) if name in TABLES and "full table" in table_models(self.num_states) else ()

    @property
    def units(self) -> list[tuple[int, str]]:
        """(rows, model), model fastest."""
        return [(rows, model) for rows in self.sizes or () for model in self.models or ()]

    def rows(self, count: int) -> Tensor:
        """The first rows of a shuffle, so that more rows contain the fewer."""
        return self.train[torch.randperm(len(self.train), generator=Generator().manual_seed(self.seed))[:count]]

    def recipe(self, model: str, rows: int) -> Any:
        """How the model is made from so many rows: a `TableModel`, a `LatentModel` or a `NeuralModel`."""
        sizes = self.num_states
        if model in TABLES:
            whole = table_models(sizes, STRENGTHS)[model].with_states(sizes)
            return IncompleteTable(whole.joint, whole.structure, sizes, self.seed) if self.hidden else whole
        if model == LATENT:
            return LatentModel(sizes, self.seed)
        make, lr, _ = NEURAL[model]
        batch = max(8, min(self.batch_size, rows // 8))  # an epoch of one step would be mostly bookkeeping
        epochs = max(1, self.steps // math.ceil(0.9 * rows / batch))
        options = {"epochs": min(epochs, 500), "batch_size": batch, "lr": lr, "patience": max(10, min(epochs, 500) // 5), "accelerator": "cpu",
                   "seed": self.seed}
        return NeuralModel(lambda: make(len(sizes), max(sizes)), options, self.seed, sizes)

    def settings(self) -> dict[str, Any]:
        """What must be the same for results to belong together."""
        digest = hashlib.sha256(self.train.double().numpy().tobytes() + b"|" + self.test.double().numpy().tobytes())
        return {
            "experiment": "compare",
            "data": {"name": self.name, "train": len(self.train), "test": len(self.test), "num_states": self.num_states, "sha256": digest.hexdigest()[:16]},
            "sizes": self.sizes, "models": self.models, "seed": self.seed, "strengths": STRENGTHS, "pseudocounts": PSEUDOCOUNTS if self.hidden else (),
            "training": {"steps": self.steps, "batch_size": self.batch_size, "lr": {name: NEURAL[name].lr for name in NEURAL}},
        }


def estimate_seconds(plan: Plan, done: Sequence[tuple[int, str]] = ()) -> float:
    """How long the units take that are still to do, from a few timed steps of each neural model, and a sum over table cells."""
    seconds = 0.0
    n = len(plan.num_states)
    step: dict[str, float] = {}
    for rows, model in plan.units:
        if (rows, model) in done:
            continue
        if model in TABLES:
            cells = table_models(plan.num_states)[model].num_parameters(plan.num_states)
            if plan.hidden:
                seconds += (len(PSEUDOCOUNTS) + 1) * EM_STEPS * 1e-8 * cells * rows
            seconds += len(STRENGTHS) * (1e-7 * cells + 3e-8 * rows * n * (n if model == "Chow-Liu tree" else 1)) + 0.2
            continue
        if model == LATENT:
            seconds += 2e-6 * 60 * rows * n + 0.5
            continue
        if model not in step:
            step[model] = _seconds_per_step(plan.recipe(model, rows).family(), plan.train[: plan.batch_size])
        options = plan.recipe(model, rows).options
        seconds += options["epochs"] * (math.ceil(0.9 * rows / options["batch_size"]) * step[model] + SECONDS_PER_EPOCH)
    return seconds


def _seconds_per_step(family: Family, x: Tensor, repeats: int = 5) -> float:
    visible = ~x.isnan() if bool(x.isnan().any()) else None
    with torch.random.fork_rng(devices=[]):
        optimiser = torch.optim.AdamW(family.parameters())
        start = 0.0
        for i in range(repeats + 1):
            if i == 1:  # the first one warms up
                start = time.perf_counter()
            optimiser.zero_grad()
            (-family.training_log_prob(x, visible=visible).mean()).backward()
            optimiser.step()
    return (time.perf_counter() - start) / repeats + 2e-3  # what the training engine adds


# The work.


def run(plan: Plan, results: Results) -> Iterator[dict[str, Any]]:
    """Do the units that are still to do, keep each on disk, and yield it; done ones are yielded as they are."""
    keys = ({"rows": rows, "model": model} for rows, model in plan.units)
    yield from results.each(keys, lambda rows, model: _one_unit(plan, rows, model))


def _one_unit(plan: Plan, rows: int, model: str) -> dict[str, Any]:
    x, recipe = plan.rows(rows), plan.recipe(model, rows)
    start = time.perf_counter()
    evidences = recipe.log_evidences(x) if isinstance(recipe, TableModel) else None  # once, for the weights and for the report
    joint = fit_recipe(model, recipe if evidences is None else lambda rows: recipe.fit_with_evidences(rows, evidences), x)
    score = held_out_score(joint, plan.test, ~plan.test.isnan() if plan.hidden else None, what=model)
    unit = {"rows": rows, "model": model, "nats": -score.mean().item(), "error": score.std().item() / math.sqrt(len(score)),
            "parameters": joint.num_parameters, "scores": [round(s, 5) for s in score.tolist()]}
    if evidences is not None:
        unit["log_evidence"] = evidences.logsumexp(0).item() - math.log(len(evidences))
    return unit | {"seconds": round(time.perf_counter() - start, 2)}
