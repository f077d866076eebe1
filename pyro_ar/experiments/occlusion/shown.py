r"""Which test rows of the occlusion experiment are shown in pictures: a rule, not a choice."""

from typing import NamedTuple

import numpy as np

from torch import Tensor

from pyro_ar.experiments.occlusion.occlusions import OCCLUSIONS
from pyro_ar.experiments.occlusion.plan import Plan

__all__ = ["COMPLETED", "Example", "completed", "examples"]

COMPLETED = "bottom"  # the trailing half: every joint has an exact answer
MILD = 0.25  # shares up to this one are not shown


class Example(NamedTuple):
    """A test row that is shown."""

    occlusion: str
    row: int
    label: int
    visible: Tensor


def examples(plan: Plan) -> list[Example]:
    """For each occlusion but the mildest the first test row of the next class, from the first split."""
    seed, fold = plan.seeds[0], 0
    test = plan.split(seed, fold)[1]
    classes = np.unique(plan.labels)
    names = [name for name in plan.occlusions or () if (OCCLUSIONS[name].level is None or (OCCLUSIONS[name].level or 0) > MILD)]
    shown = []
    for i, name in enumerate(names):
        label = classes[i % len(classes)]
        at = int(np.flatnonzero(plan.labels[test] == label)[0])
        pattern = plan.pattern(name, seed, fold, len(test))
        shown.append(Example(name, int(test[at]), int(label), pattern[at if len(pattern) > 1 else 0]))
    return shown


def completed(plan: Plan) -> list[Example]:
    """The rows whose lower half is drawn: the first test row of each of the first ten classes, from the first split."""
    if COMPLETED not in (plan.occlusions or ()):
        return []
    seed, fold = plan.seeds[0], 0
    test = plan.split(seed, fold)[1]
    seen = plan.pattern(COMPLETED, seed, fold, len(test))[0]
    firsts = [(label, test[np.flatnonzero(plan.labels[test] == label)[0]]) for label in np.unique(plan.labels)[:10]]
    return [Example(COMPLETED, int(row), int(label), seen) for label, row in firsts]
