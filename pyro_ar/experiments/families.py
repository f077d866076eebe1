r"""`pyro-ar families`: every registered family, trained briefly on the same rows, and what it says of held-out ones.

A unit is one family on one number of levels. The tables that anybody would try first (independent cells, a Markov chain, a Chow-Liu tree, all with their prior
strength chosen by evidence) stand beside the families. Scores are of test rows that no fit has seen; training stops early on a tenth of the training rows.
"""

import csv
import io
import math
import time

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from torch import Generator, Tensor

from pyro_ar.checks import require
from pyro_ar.comparison import table_models
from pyro_ar.data import Dataset
from pyro_ar.experiments.store import Results, write_atomically
from pyro_ar.inference import fit
from pyro_ar.joint import Joint
from pyro_ar.neural.registry import FAMILIES, Registered
from pyro_ar.outputs import Bernoulli, DiscretisedLogisticMixture
from pyro_ar.plots import image_rows
from pyro_ar.provenance import digest_of

__all__ = ["Plan", "draw", "names", "run", "table"]

TABLES = ("independent", "Markov chain 1", "Chow-Liu tree")
STRENGTHS = (0.25, 1.0, 4.0, 16.0, 64.0)
SAMPLES = 12
TIMED = 64  # rows sampled, to be timed
COMPONENTS = 5  # of logistic mixtures over levels


@dataclass(frozen=True)
class Plan:
    """What is to be done.

    Args:
        data: Rows of states, which may be images.
        models: Names of tables and registered families; None: all that can be trained here.
        levels: Numbers of states to do it with; None: those of the data, and two where it has more.
        test_share: Of the rows, held out.
        steps: Of training, as a share of what the registry says.
        seed: Of the split, of training and of draws.

    Raises:
        ValueError: No states, unknown names, or shares out of range.
    """

    data: Dataset
    models: tuple[str, ...] | None = None
    levels: tuple[int, ...] | None = None
    test_share: float = 0.2
    steps: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        states = self.data.num_states
        require(states is not None and self.data.visible is None, "pyro-ar families wants complete rows of states", str(self.data))
        require(0 < self.test_share < 1, "test_share must be between 0 and 1", self.test_share)
        require(self.steps > 0, "steps must be more than 0", self.steps)
        found = names(self.data)
        chosen = found if self.models is None else self.models
        unknown = [name for name in chosen if name not in found]
        require(not unknown and len(chosen) > 0, f"models must be some of {', '.join(found)}", *unknown)
        levels = tuple(dict.fromkeys((2, states))) if self.levels is None else self.levels
        wrong = [k for k in levels if k not in (2, states)]
        require(len(levels) > 0 and not wrong, f"levels must be 2 or {states}, those of the data", *wrong)
        object.__setattr__(self, "models", tuple(chosen))
        object.__setattr__(self, "levels", levels)

    @property
    def units(self) -> list[tuple[int, str]]:
        """Levels and name of each."""
        return [(k, name) for k in self.levels or () for name in self.models or ()]

    def settings(self) -> dict[str, Any]:
        """What units must share to stand in one table."""
        return {"data": digest_of(self.data.x), "models": self.models, "levels": self.levels, "test_share": self.test_share, "steps": self.steps,
                "seed": self.seed}

    def rows(self, levels: int) -> tuple[Tensor, Tensor]:
        """Training and test rows, `(N, *event)`."""
        data = self.data if levels == self.data.num_states else self.data.binarise()
        order = torch.randperm(len(data.x), generator=Generator().manual_seed(self.seed))
        x = data.x[order].float().reshape(-1, *event_shape(data))
        test = max(1, round(self.test_share * len(x)))
        return x[test:], x[:test]


def event_shape(data: Dataset) -> tuple[int, ...]:
    """`(1, height, width)` of images, `(n,)` of other rows."""
    return (data.x.shape[1],) if data.image_shape is None else (1, *data.image_shape)


def names(data: Dataset) -> tuple[str, ...]:
    """Tables and families that these rows can train."""
    return (*TABLES, *(name for name, entry in FAMILIES.items() if entry.shown is not None and (data.image_shape is not None or not entry.images)))


def run(plan: Plan, results: Results) -> Iterator[dict[str, Any]]:
    """Do the units that are still to do, keep each, and yield all in their order."""
    keys = ({"levels": levels, "model": name} for levels, name in plan.units)
    yield from results.each(keys, lambda levels, model: _one_unit(plan, levels, model))


def _one_unit(plan: Plan, levels: int, name: str) -> dict[str, Any]:
    train, test = plan.rows(levels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        joint, parameters, seconds = _table(name, train, levels) if name in TABLES else _family(FAMILIES[name], train, levels, plan)
        with torch.no_grad():
            flat = name in TABLES
            rows = test.flatten(1) if flat else test
            score, scoring = _timed(lambda: joint.log_prob(rows))
            drawn, sampling = _timed(lambda: joint.sample(torch.Size([TIMED])))
    nats = -score.double()
    return {"levels": levels, "model": name, "nats": nats.mean().item(), "error": (nats.std() / math.sqrt(len(nats))).item(),
            "bits_per_dim": nats.mean().item() / math.log(2) / train[0].numel(), "parameters": parameters, "train_seconds": seconds,
            "score_seconds": 1000 * scoring / len(test), "sample_seconds": sampling, "samples": drawn[:SAMPLES].flatten(1).int().tolist()}


def _table(name: str, train: Tensor, levels: int) -> tuple[Joint, int, float]:
    rows = train.flatten(1)
    sizes = (levels,) * rows.shape[1]
    model = table_models(sizes, STRENGTHS)[name].with_states(sizes)
    joint, seconds = _timed(lambda: model.fit(rows))
    return joint, joint.num_parameters, seconds


def _family(entry: Registered, train: Tensor, levels: int, plan: Plan) -> tuple[Joint, int, float]:
    assert entry.shown is not None  # noqa: S101
    output = Bernoulli() if levels == 2 else DiscretisedLogisticMixture(levels, COMPONENTS)
    make: Any = entry.family
    family = make(tuple(train.shape[1:]), output=output, **entry.shown.options)
    options = {"epochs": 60, "batch_size": 64, "lr": 3e-3, "patience": 10, **entry.shown.fit}
    options["epochs"] = max(1, round(options["epochs"] * plan.steps))
    _, seconds = _timed(lambda: fit(family, train, seed=plan.seed, progress=False, accelerator="cpu", **options))
    return family.eval()(), family.num_parameters, seconds


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    answer = call()
    return answer, time.perf_counter() - start


def table(units: Sequence[Mapping[str, Any]]) -> str:
    """One line per unit, best first for each number of levels; ± is one standard error over the test rows."""
    lines = []
    for levels in dict.fromkeys(unit["levels"] for unit in units):
        lines.append(f"{levels} levels: nats per held-out row")
        lines.append(f"  {'':20s}{'nats':>9s} {'±':>5s}{'bits/dim':>10s}{'parameters':>12s}{'train s':>9s}{'score ms/row':>14s}{f'{TIMED} draws s':>12s}")
        for unit in sorted((u for u in units if u["levels"] == levels), key=lambda u: u["nats"]):
            lines.append(f"  {unit['model']:20s}{unit['nats']:9.3f} {unit['error']:5.3f}{unit['bits_per_dim']:10.4f}{unit['parameters']:12,d}"
                         f"{unit['train_seconds']:9.1f}{unit['score_seconds']:14.3f}{unit['sample_seconds']:12.3f}")
    return "\n".join(lines)


def draw(plan: Plan, units: Sequence[Mapping[str, Any]], out: Path) -> list[Path]:
    """Write `families.csv`, and a picture of the draws for each number of levels where rows are images.

    Returns:
        What was written.
    """
    columns = [name for name in units[0] if name != "samples"]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(units)
    write_atomically(out / "families.csv", text.getvalue())
    written = [out / "families.csv"]
    if plan.data.image_shape is not None:
        for levels in plan.levels or ():
            train, _ = plan.rows(levels)
            some = [row.reshape(plan.data.image_shape).numpy() for row in train[:SAMPLES]]
            rows = {"training rows": some}
            rows |= {unit["model"]: [np.array(s, float).reshape(plan.data.image_shape) for s in unit["samples"]] for unit in units if unit["levels"] == levels}
            image = io.BytesIO()
            image_rows(rows, title=f"Draws of each family, {levels} levels").savefig(image, format="png")
            write_atomically(out / f"samples-{levels}.png", image.getvalue())
            written.append(out / f"samples-{levels}.png")
    return written
