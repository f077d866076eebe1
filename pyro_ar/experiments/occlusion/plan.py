r"""What an occlusion experiment is to do: data, splits, models and occlusions, checked when the plan is made."""

import hashlib
import math

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from sklearn.model_selection import StratifiedKFold
from torch import Generator, Tensor

from pyro_ar.checks import require
from pyro_ar.classify.rows_of_classes import require_rows
from pyro_ar.data import Dataset
from pyro_ar.experiments.occlusion import occlusions as hiding
from pyro_ar.experiments.occlusion.lineup import MODELS, fresh, unfit, usual
from pyro_ar.experiments.occlusion.occlusions import OCCLUSIONS
from pyro_ar.experiments.occlusion.scoring import BINS, FLOOR

__all__ = ["Plan"]

TRAINING = 2**40  # seeds of the holes in training are no seeds of those in test rows


@dataclass(frozen=True)
class Plan:
    """What is to be done.

    Args:
        data: With labels.
        seeds: One shuffle of the rows each; of an official test part, one.
        folds: Splits of each shuffle; 1 exactly with an official test part.
        models: Names from `MODELS`; None: the usual ones that fit the data.
        occlusions: Names from `OCCLUSIONS`; None: the usual ones of such data.
        test_rows: How many of the last rows are an official test part; 0: folds.
        holes: Hide as many cells of the training rows as of the test rows, and fit afresh for each occlusion.

    Attributes:
        dropped: Occlusions left out, and why: they hide every cell of such rows, or the same cells as another.

    Raises:
        ValueError: An unknown name, a model or occlusion that does not fit the data, no labels, one class only,
            a class with fewer rows than folds, or no occlusion that is left.
    """

    data: Dataset
    seeds: tuple[int, ...] = (1, 2)
    folds: int = 5
    models: tuple[str, ...] | None = None
    occlusions: tuple[str, ...] | None = None
    test_rows: int = 0
    holes: bool = False
    dropped: Mapping[str, str] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        data, seeds = self.data, self.seeds
        require(data.y is not None, f"{data.name} has no labels; say which column holds them with --label, or choose another set")
        require(len(seeds) > 0 and len(set(seeds)) == len(seeds) and all(0 <= seed < 2**32 for seed in seeds),
                "seeds must be different whole numbers from 0 to 2^32 - 1", seeds)
        self._check_splits()
        object.__setattr__(self, "models", _choose("model", self.models, self.unfit_models, usual(data, holes=self.holes), data.name))
        shape = "" if data.image_shape and min(data.image_shape) >= 2 else "the rows are no images"
        unfit = {name: "" if o.level is not None else shape for name, o in OCCLUSIONS.items()}
        wanted = _choose("occlusion", self.occlusions, unfit, hiding.HOLES if self.holes else hiding.usual(data.image_shape, data.x.shape[1]), data.name)
        dropped = _dropped(self.event_shape, wanted)
        object.__setattr__(self, "dropped", dropped)
        object.__setattr__(self, "occlusions", tuple(name for name in wanted if name not in dropped))
        require(len(self.occlusions or ()) > 0, f"{data.name}: no occlusion is left", "; ".join(dropped.values()))

    def _check_splits(self) -> None:
        name, train = self.data.name, self.labels[:len(self.labels) - self.test_rows]
        counts = np.unique(train, return_counts=True)[1]
        require(len(counts) >= 2, f"{name}: wanted rows of two classes or more", len(counts))
        if self.test_rows:
            require(self.folds == 1 and len(self.seeds) == 1, "an official test part makes one split: one fold, one seed", self.folds, self.seeds)
            known = np.isin(self.labels, train)
            require(bool(known.all()), f"{name}: the test part has classes that the training part lacks", np.unique(self.labels[~known]).tolist())
            return
        require(self.folds >= 2, "folds must be 2 or more", self.folds)
        require_rows(train, self.folds, f"{name}: {self.folds} folds want")

    @property
    def unfit_models(self) -> dict[str, str]:
        """Why a model cannot be used on this data, by name; empty if it can."""
        return {name: unfit(name, self.data, holes=self.holes) for name in MODELS}

    @property
    def labels(self) -> np.ndarray:
        return self.data.y.numpy() if self.data.y is not None else np.empty(0)

    @property
    def event_shape(self) -> tuple[int, ...]:
        return self.data.image_shape or (self.data.x.shape[1],)

    @property
    def hidden_counts(self) -> tuple[int, ...]:
        """How many cells the random levels hide."""
        return tuple(hiding.hidden(name, self.event_shape) for name in hiding.levels(self.occlusions or ()))

    @property
    def units(self) -> list[tuple[int, int, str]]:
        """(seed, fold, model), model fastest: an interrupted run has whole splits."""
        return [(s, f, m) for s in self.seeds for f in range(self.folds) for m in self.models or ()]

    def settings(self) -> dict[str, Any]:
        """What must be the same for results to belong together."""
        with torch.random.fork_rng(devices=[]):  # the weights of fresh nets are drawn
            models = {name: describe(self.fresh(name)) for name in self.models or ()}
        digest = hashlib.sha256(self.data.x.float().numpy().tobytes() + self.labels.astype("<i8").tobytes())
        return {
            "experiment": "occlusion",
            "data": {"name": self.data.name, "rows": len(self.data.x), "num_states": self.data.num_states,
                     "sha256": digest.hexdigest()[:16]} | ({"test rows": self.test_rows} if self.test_rows else {}),
            "seeds": self.seeds,
            "folds": self.folds,
            "models": models,
            "occlusions": {name: OCCLUSIONS[name].label for name in self.occlusions or ()},
            "log score": f"at most {FLOOR:g} nats per row",
            "calibration": f"{BINS} equal bins, over the folds of a shuffle together",
        } | ({"holes": "cells hidden in training as in the test rows"} if self.holes else {})

    def fresh(self, model: str) -> Any:
        """A classifier, not fitted."""
        return fresh(model, self.data, holes=self.holes)

    def split(self, seed: int, fold: int) -> tuple[np.ndarray, np.ndarray]:
        """Row numbers of the training and the test part."""
        if self.test_rows:
            rows = np.arange(len(self.labels))
            return rows[:-self.test_rows], rows[-self.test_rows:]
        folds = StratifiedKFold(self.folds, shuffle=True, random_state=seed)
        return list(folds.split(np.zeros(len(self.labels)), self.labels))[fold]

    def pattern(self, occlusion: str, seed: int, fold: int, rows: int) -> Tensor:
        """What is visible, `(rows or 1, n)`: the same for every model; a random level hides what the lower ones hide."""
        generator = Generator().manual_seed(1000 * seed + fold)
        return OCCLUSIONS[occlusion].make(self.event_shape, rows, generator).flatten(1)

    def training_pattern(self, occlusion: str, seed: int, train: np.ndarray) -> Tensor | None:
        """What is visible of the training rows, of `holes` for this occlusion, `(rows, n)`; None where all is. A row hides the same cells in every fold."""
        own = None if self.data.visible is None else self.data.visible[train]
        if not self.holes:
            return own
        generator = Generator().manual_seed(TRAINING + seed)
        seen = OCCLUSIONS[occlusion].make(self.event_shape, len(self.labels), generator).flatten(1).expand(len(self.labels), -1)[train]
        return seen if own is None else seen & own


def _choose(what: str, wanted: Sequence[str] | None, unfit: Mapping[str, str], usual: Sequence[str], data: str) -> tuple[str, ...]:
    if wanted is None:
        return tuple(name for name in usual if not unfit[name])
    known = {name.lower(): name for name in unfit}
    for name in wanted:
        require(name.lower() in known, f"{what} must be one of {', '.join(unfit)}", name)
    wanted = [known[name.lower()] for name in wanted]
    require(len(set(wanted)) == len(wanted) > 0, f"{what}s must be different names, at least one", wanted)
    for name in wanted:
        require(not unfit[name], f"{what} {name!r} does not fit {data}: {unfit[name]}")
    return tuple(name for name in unfit if name in wanted)


def _dropped(event: tuple[int, ...], names: Sequence[str]) -> dict[str, str]:
    """Occlusions that say nothing, by name: all cells hidden, or as many at random (or the very same) as by another one before."""
    cells = math.prod(event)
    said: dict[tuple[int, bytes], str] = {}
    found = {}
    for name in names:
        o, count = OCCLUSIONS[name], hiding.hidden(name, event)
        pattern = b"" if o.level is not None else o.make(event, 1, Generator()).numpy().tobytes()
        before = said.setdefault((count, pattern), o.label)
        if count == cells:
            found[name] = f"{o.label} hides all {cells} cells"
        elif before != o.label:
            found[name] = f"{o.label} hides {count} of {cells} cells, as {before} does"
    return found


def describe(classifier: Any) -> str:
    """All its arguments, the defaults too: a results file must not survive a changed default."""
    arguments = ", ".join(f"{name}={describe(value) if hasattr(value, 'get_params') else repr(value)}"
                          for name, value in classifier.get_params(deep=False).items() if value is not None)
    return f"{type(classifier).__name__}({' '.join(arguments.split())})"
