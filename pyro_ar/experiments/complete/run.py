r"""Completions, looked at and scored: each model is trained once per space, and answers all its tasks.

A unit is one model on one space. All models see the same cells of the same held-out rows.
"""

import math
import time

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from torch import Generator, Tensor

from pyro_ar.checks import IntractableError, require
from pyro_ar.data import Dataset
from pyro_ar.experiments.complete.answers import Answer, answer
from pyro_ar.experiments.complete.lineup import FILLS, MODELS, fill
from pyro_ar.experiments.complete.spaces import Space, blocks, colours, pixels
from pyro_ar.experiments.complete.tasks import TASKS, affected
from pyro_ar.experiments.store import Results
from pyro_ar.experiments.workers import do_units
from pyro_ar.inference import coherence
from pyro_ar.provenance import digest_of

__all__ = ["AVERAGED", "DRAWN", "SHOWN", "Plan", "run"]

SHOWN = 3  # images of a picture
DRAWN = 4  # completions of each in it
AVERAGED = (1, 4, 16)  # orders, in the report of any-order families
MEASURED = 10  # rows of it
FAILURES = (ValueError, ArithmeticError, RuntimeError)  # of data that a model cannot use: constant, singular, too many

@dataclass(frozen=True)
class Plan:
    """What is to be done.

    Args:
        data: Images of levels.
        tasks: Names out of `TASKS`; None: all that fit the images.
        models: Names out of `MODELS`; None: those usual for each space.
        rows: Held-out rows that are completed, at most.
        draws: Completions of each row.
        particles: Of an estimate.
        test_share: Of the images, held out.
        steps: Of training, as a share of the usual.
        seed: Of the split, of patterns, of training and of draws.

    Raises:
        ValueError: No images, unknown names, or numbers out of range.
    """

    data: Dataset
    tasks: tuple[str, ...] | None = None
    models: tuple[str, ...] | None = None
    rows: int = 100
    draws: int = 30
    particles: int = 512
    test_share: float = 0.2
    steps: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        fitting = tuple(name for name, task in TASKS.items() if task.space != "blocks" or self._is_even)
        chosen = fitting if self.tasks is None else self.tasks
        unknown = [name for name in chosen if name not in TASKS]
        require(len(chosen) > 0 and not unknown, f"task must be one of {', '.join(TASKS)}", *unknown)
        unfit = [name for name in chosen if name not in fitting]
        require(not unfit, f"{', '.join(unfit)} wants images of an even height and width", self.data.image_shape)
        strange = [name for name in self.models or () if name not in (*MODELS, *FILLS)]
        require(self.models is None or (len(self.models) > 0 and not strange), f"model must be one of {', '.join((*MODELS, *FILLS))}", *strange)
        for name, number, least in (("rows", self.rows, 2), ("draws", self.draws, DRAWN), ("particles", self.particles, 2)):
            require(isinstance(number, int) and number >= least, f"{name} must be {least} or more", number)
        require(self.steps > 0, "steps must be more than 0", self.steps)
        object.__setattr__(self, "tasks", tuple(dict.fromkeys(chosen)))
        if any(TASKS[name].space != "colours" for name in chosen):
            self.space("pixels")  # which says what is wrong with the data

    @property
    def _is_even(self) -> bool:
        return self.data.image_shape is not None and not any(size % 2 for size in self.data.image_shape)

    @property
    def units(self) -> list[tuple[str, str]]:
        """Space and model of each."""
        spaces = list(dict.fromkeys(TASKS[name].space for name in self.tasks or ()))
        return [(space, model) for space in spaces for model in (*MODELS, *FILLS) if self._wanted(space, model)]

    def _wanted(self, space: str, model: str) -> bool:
        if self.models is not None:
            return model in self.models
        return model in FILLS or space in MODELS[model].usual

    def settings(self) -> dict[str, Any]:
        """What units must share to stand in one table; models may be added to it."""
        return {"data": digest_of(self.data.x), "image_shape": self.data.image_shape, "tasks": self.tasks, "rows": self.rows, "draws": self.draws,
                "particles": self.particles, "test_share": self.test_share, "steps": self.steps, "seed": self.seed}

    @cached_property
    def _spaces(self) -> dict[str, Space]:
        return {}

    def space(self, name: str) -> Space:
        """Rows of a kind of variables."""
        if name not in self._spaces:
            self._spaces[name] = colours() if name == "colours" else pixels(self.data, self.test_share, self.seed)
            if name == "blocks":
                self._spaces[name] = blocks(self._spaces[name])
        return self._spaces[name]

    def asked(self, task: str) -> tuple[Space, Tensor, Tensor]:
        """The space, the rows to be completed, and what is visible of them."""
        space = self.space(TASKS[task].space)
        x = space.test[:self.rows]
        return space, x, TASKS[task].visible(space, len(x), self.seed)


def run(plan: Plan, results: Results, *, workers: int = 1, threads: int = 1) -> Iterator[dict[str, Any]]:
    """Do the units that are still to do, keep each on disk, and yield all in their order; they are the same with any number of workers.

    Raises:
        ChildProcessError: A worker was killed.
    """
    keys = [{"space": space, "model": model} for space, model in plan.units]
    yield from do_units(one_unit, plan, results, keys, workers=workers, threads=threads)


def one_unit(plan: Plan, key: Mapping[str, str]) -> dict[str, Any]:
    """One model on one space."""
    name, model = key["space"], key["model"]
    tasks = [task for task in plan.tasks or () if TASKS[task].space == name]
    start = time.process_time()
    unit: dict[str, Any] = {"space": name, "model": model, "parameters": None}
    if model in FILLS:
        cells = {task: _filled(plan, task, model) for task in tasks}
        return unit | {"fit_seconds": 0.0, "answer_seconds": round(time.process_time() - start, 3), "cells": cells}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        try:
            fitted = MODELS[model].fit(plan.space(name), plan.seed, plan.steps)
        except FAILURES as error:
            reason = {"reason": f"it could not be fitted: {error}"}
            return unit | {"fit_seconds": round(time.process_time() - start, 3), "answer_seconds": 0.0, "cells": dict.fromkeys(tasks, reason)}
        done = time.process_time()
        cells = {}
        for task in tasks:
            torch.manual_seed(plan.seed)  # what is drawn for a task depends on no other task
            cells[task] = _cell(plan, task, fitted.joint)
        unit |= {"parameters": fitted.parameters, "fit_seconds": round(done - start, 3), "answer_seconds": round(time.process_time() - done, 3)}
        return unit | {"cells": cells} | ({} if fitted.any_order is None else {"coherence": _coherence(plan.space(name), fitted.any_order, plan.seed)})


def _coherence(space: Space, family: Any, seed: int) -> dict[str, Any]:
    """Of the first held-out rows."""
    rows = space.test[:MEASURED].reshape(-1, *space.event_shape)
    found = coherence(family, rows, num_orders=2 * max(AVERAGED), averaged=AVERAGED, generator=Generator().manual_seed(seed))
    return {name: list(getattr(found, name).values()) for name in ("log_prob", "spread", "gap", "bias")} | {"hidden": found.num_hidden, "rows": found.rows}


def _cell(plan: Plan, task: str, joint: Any) -> dict[str, Any]:
    space, x, visible = plan.asked(task)
    try:
        found = answer(joint, x, visible, plan.draws, plan.particles)
    except (IntractableError, *FAILURES) as error:  # evidence that a model holds for impossible is one
        return {"reason": f"no answer: {error}"}
    images = space.images(found.draws.double()).clamp(0, space.levels - 1)  # differences may lead out of the levels
    return _score(found, visible) | _errors(space, x, visible, images.mean(0), images.median(0).values) | _shown(images)


def _score(found: Answer, visible: Tensor) -> dict[str, Any]:
    """Per hidden variable: mean over rows, and its standard error; the estimates' own share of it."""
    hidden = (~visible).sum(-1).double()
    each = found.log_p.double() / hidden
    own = (found.error.double() / hidden).square().mean().sqrt()
    return {"kind": found.kind, "method": found.method, "log_p": _finite(each.mean()), "error": _finite(each.std() / math.sqrt(len(each))),
            "estimate_error": own.item(), "trusted": found.trusted.double().mean().item(), "hidden": hidden.mean().item(), "rows": len(each)}


def _finite(number: Tensor) -> float | None:
    """None where a row was impossible: files of results hold no infinity."""
    return number.item() if bool(number.isfinite()) else None


def _errors(space: Space, x: Tensor, visible: Tensor, mean: Tensor, median: Tensor) -> dict[str, float]:
    """How far two fills are from the images, in levels, over the pixels that are not told: root mean square of the first, mean size of the second."""
    truth, cells = space.images(x.double()), affected(space, visible)
    return {"rmse": (mean - truth)[cells].square().mean().sqrt().item(), "mae": (median - truth)[cells].abs().mean().item()}


def _shown(images: Tensor) -> dict[str, Any]:
    """The first draws of the first rows, and the mean and standard deviation of all draws, for a picture."""
    some = images[:, :SHOWN]
    rounded = {"mean": some.mean(0), "deviation": some.std(0)}
    return {"draws": some[:DRAWN].int().tolist(), **{name: [[round(v, 3) for v in row.flatten().tolist()] for row in t] for name, t in rounded.items()}}


def _filled(plan: Plan, task: str, name: str) -> dict[str, Any]:
    space, x, visible = plan.asked(task)
    image = space.images(fill(name, space, x, visible).double()).clamp(0, space.levels - 1)
    return {"kind": "fill", "method": "", "hidden": (~visible).sum(-1).double().mean().item(), "rows": len(x)} | _errors(space, x, visible, image, image)
