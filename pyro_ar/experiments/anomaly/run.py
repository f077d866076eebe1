r"""Rows ranked by log p(x), and AUROC of joints and detectors for rows that do not belong.

Each class in turn is left out of training: four fifths of the other rows are fitted to, of which 15 % are held back to tune rivals by and to know what log p is
ordinary; the last fifth is ordinary rows that no fit has seen. Strange are all rows of the class, and the ordinary rows made strange (`strange.KINDS`).
Without labels there is one such round, of all rows.

The ranking is cross-fitted: no row is scored by a joint that it was fitted to.
"""

import time

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from torch import Generator, Tensor

from pyro_ar.checks import IntractableError, require
from pyro_ar.data import Dataset
from pyro_ar.experiments.anomaly.detectors import RIVALS, auroc, fit_joint, fit_rival, fitting, log_p, usual
from pyro_ar.experiments.anomaly.strange import KINDS
from pyro_ar.experiments.complete.spaces import Space
from pyro_ar.experiments.store import Results
from pyro_ar.experiments.workers import do_units
from pyro_ar.inference import surprise
from pyro_ar.joint import Joint
from pyro_ar.provenance import digest_of

__all__ = ["HELD_OUT", "LEAST", "MAPS", "Plan", "one_unit", "run"]

HELD_OUT = "class"  # as a kind of strange rows
TEST, HELD_BACK = 0.2, 0.15
LEAST = 8  # rows whose surprise is shown
MAPS = {"before": "given the pixels before", "others": "given all other pixels"}
MOST_CLASSES = 30
FAILURES = (ValueError, ArithmeticError, RuntimeError)


@dataclass(frozen=True)
class Plan:
    """What is to be done.

    Args:
        data: Complete rows, of states or real values.
        models: Joints and rivals; None: the quicker joints that fit the rows, and all rivals.
        classes: Labels that are left out in turn; None: all.
        rank_by: The joint of the ranking; None: a latent tree of states, a Student-t of real values.
        folds: Of the ranking.
        steps: Of training, as a share of the usual.
        seed: Of all that is random.

    Raises:
        ValueError: Hidden cells, unknown names or labels, or too few rows.
    """

    data: Dataset
    models: tuple[str, ...] | None = None
    classes: tuple[int, ...] | None = None
    rank_by: str | None = None
    folds: int = 5
    steps: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.data.visible is None, "pyro-ar anomaly wants complete rows", str(self.data))
        require(len(self.data.x) >= 50, "pyro-ar anomaly wants 50 rows or more", len(self.data.x))
        require(isinstance(self.folds, int) and 2 <= self.folds <= len(self.data.x), "folds must be 2 or more", self.folds)
        require(self.steps > 0, "steps must be more than 0", self.steps)
        joints = fitting(self._space(self.data.x, self.data.x))
        found = (*joints, *RIVALS)
        chosen = (*usual(self._space(self.data.x, self.data.x)), *RIVALS) if self.models is None else self.models
        unknown = [name for name in chosen if name not in found]
        require(len(chosen) > 0 and not unknown, f"model must be one of {', '.join(found)}", *unknown)
        rank_by = self.rank_by or ("latent tree" if self.data.num_states else "Student-t")
        require(rank_by in joints, f"--rank-by must be one of {', '.join(joints)}", rank_by)
        labels = [] if self.data.y is None else self.data.y.unique().tolist()
        strange = [c for c in self.classes or () if c not in labels]
        require(not strange, f"classes must be labels of the data, {labels}", *strange)
        require(self.classes is not None or len(labels) <= MOST_CLASSES, f"more than {MOST_CLASSES} labels: name some of them with --classes", len(labels))
        rounds = tuple(labels if self.classes is None else self.classes) if len(labels) > 1 else ()
        for name, value in (("models", tuple(chosen)), ("classes", rounds), ("rank_by", rank_by)):
            object.__setattr__(self, name, value)

    @property
    def units(self) -> list[dict[str, Any]]:
        """The ranking, and each model without each class (None: of all rows)."""
        rounds = self.classes or (None,)
        return [{"part": "ranking", "model": self.rank_by, "class": None},
                *({"part": "auroc", "model": model, "class": c} for model in self.models or () for c in rounds)]

    def settings(self) -> dict[str, Any]:
        """What units must share to stand in one table; models may be added to it."""
        return {"data": digest_of(self.data.x), "labels": None if self.data.y is None else digest_of(self.data.y), "classes": self.classes,
                "rank_by": self.rank_by, "folds": self.folds, "steps": self.steps, "seed": self.seed}

    @property
    def kinds(self) -> list[str]:
        """Of strange rows."""
        made = [name for name, kind in KINDS.items() if not kind.images or (self.data.image_shape is not None and self.data.num_states)]
        return [*([HELD_OUT] if self.classes else []), *made]

    def _space(self, train: Tensor, test: Tensor) -> Space:
        shape = self.data.image_shape or (1, self.data.x.shape[1])
        states = self.data.num_states or 0
        return Space("pixels", train, test, states, (1, *shape), states)

    def parts(self, label: int | None) -> tuple[Space, Tensor, Tensor]:
        """Training rows and ordinary rows to test by; rows held back; and the rows of the class left out."""
        own = torch.zeros(len(self.data.x), dtype=torch.bool) if label is None or self.data.y is None else self.data.y == label
        rest = self.data.x[~own]
        rest = rest[torch.randperm(len(rest), generator=Generator().manual_seed(self.seed))]
        test = max(1, round(TEST * len(rest)))
        held = max(2, round(HELD_BACK * (len(rest) - test)))
        train, ordinary, back, strange = rest[test + held:], rest[:test], rest[test:test + held], self.data.x[own]
        if not self.data.num_states:
            loc, scale = standard(train)
            train, ordinary, back, strange = ((part - loc) / scale for part in (train, ordinary, back, strange))
        return self._space(train, ordinary), back, strange


def standard(train: Tensor) -> tuple[Tensor, Tensor]:
    """Means and standard deviations of columns, 1 where a column is constant."""
    scale = train.std(0)
    return train.mean(0), torch.where(scale > 0, scale, 1.0)


def run(plan: Plan, results: Results, *, workers: int = 1, threads: int = 1) -> Iterator[dict[str, Any]]:
    """Do the units that are still to do, keep each on disk, and yield all in their order."""
    yield from do_units(one_unit, plan, results, plan.units, workers=workers, threads=threads)


def one_unit(plan: Plan, key: Mapping[str, Any]) -> dict[str, Any]:
    """The ranking, or one model without one class."""
    start = time.process_time()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        found = ranking(plan) if key["part"] == "ranking" else scores(plan, key["model"], key["class"])
    return {**key, **found, "seconds": round(time.process_time() - start, 3)}


def scores(plan: Plan, model: str, label: int | None) -> dict[str, Any]:
    """AUROC of each kind of strange rows; of joints also by how far log p is from what is ordinary, on either side."""
    space, back, left_out = plan.parts(label)
    generator = Generator().manual_seed(plan.seed)
    strange = {name: left_out if name == HELD_OUT else KINDS[name].make(space.test, space, generator) for name in plan.kinds}
    try:
        if model in RIVALS:
            score, chosen = fit_rival(model, space.train, back, plan.seed)
            return {"auroc": {name: auroc(score(space.test), score(rows)) for name, rows in strange.items()}, "chosen": chosen}
        joint = fit_joint(model, space, plan.seed, plan.steps)
        middle = log_p(joint, back).median()
        one_sided = {name: (log_p(joint, space.test), log_p(joint, rows)) for name, rows in strange.items()}
    except (IntractableError, *FAILURES) as error:
        return {"reason": f"it could not be fitted: {error}"}
    return {"auroc": {name: auroc(*pair) for name, pair in one_sided.items()},
            "two_sided": {name: auroc(*(-(one - middle).abs() for one in pair)) for name, pair in one_sided.items()}}


def ranking(plan: Plan) -> dict[str, Any]:
    """Log p of each row by the joint of the other folds, and maps of surprise of the least plausible rows where rows are images."""
    x, n = plan.data.x, len(plan.data.x)
    fold = torch.arange(n)[torch.randperm(n, generator=Generator().manual_seed(plan.seed)).argsort()] % plan.folds
    found = torch.zeros(n, dtype=torch.float64)
    maps: dict[int, dict[str, list[float]]] = {}
    for k in range(plan.folds):
        mine, train, units = fold == k, x[fold != k], torch.ones(x.shape[1])
        rows = x[mine]
        if not plan.data.num_states:
            loc, units = standard(train)
            train, rows = (train - loc) / units, (rows - loc) / units
        joint = fit_joint(plan.rank_by or "", plan._space(train, rows), plan.seed, plan.steps)
        found[mine] = log_p(joint, rows).double() - units.double().log().sum()
        if plan.data.image_shape is not None and isinstance(joint, Joint):
            places = mine.nonzero().squeeze(1)
            least = found[mine].argsort()[:LEAST]
            maps |= dict(zip(places[least].tolist(), _maps(joint, rows[least]), strict=True))
    least_of_all = found.argsort()[:LEAST].tolist()
    return {"log_p": [round(v, 6) for v in found.clamp(min=-1e300).tolist()], "maps": {str(row): maps[row] for row in least_of_all if row in maps}}


def _maps(joint: Joint, rows: Tensor) -> list[dict[str, list[float]]]:
    """Of each row, by what is given; without those that the joint has no exact answer for."""
    answers = {}
    for given in MAPS:
        try:
            with torch.no_grad():
                answers[given] = surprise(joint, rows.reshape(-1, *joint.event_shape), given=given).reshape(len(rows), -1).tolist()
        except IntractableError:
            continue
    return [{given: [round(v, 4) for v in of[i]] for given, of in answers.items()} for i in range(len(rows))]
