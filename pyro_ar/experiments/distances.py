r"""Learning makes a distance small: what each family cannot close, and what it has not closed yet.

On a truth small enough to list, KL(truth || fit) is exact. The nearest joint of a family is where it ends with endless
data; the rest of the distance shrinks with the rows.
"""

import io
import math
import textwrap

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from matplotlib.figure import Figure
from torch import Tensor
from tqdm.auto import tqdm

from pyro_ar.checks import require
from pyro_ar.comparison import TableModel, table_models
from pyro_ar.comparison.recipes import fit_recipe, freeze
from pyro_ar.enumeration import all_states
from pyro_ar.experiments.compare.pictures import by_size
from pyro_ar.experiments.compare.screen import WIDTH, aligned, fitting_columns
from pyro_ar.experiments.store import Results, write_atomically, write_csv
from pyro_ar.inference.divergence import MAX_STATES, closest_table, kl_divergence
from pyro_ar.joint import Joint
from pyro_ar.mixture import Mixture
from pyro_ar.neural.family import Family
from pyro_ar.neural.fvsbn import FVSBN
from pyro_ar.plots.style import Series
from pyro_ar.tables import ChowLiuTree, FullyIndependent, MarkovChain

__all__ = ["TRUTHS", "Distance", "NewtonModel", "closest_family", "distances", "draw", "make_truth", "run_distances"]

STRENGTHS = (0.25, 1.0, 4.0, 16.0, 64.0)
TRUTHS = ("mixture", "FVSBN", "chain", "tree", "coins")


class NewtonModel:
    r"""A small family fitted by penalised maximum likelihood with a quasi-Newton method: the optimum, where it is unique.

    The penalty is that of a normal prior on every weight, so the fit is the largest posterior density.

    Args:
        make: Makes a fresh family.
        scale: Standard deviation of the prior.
        seed: Of the initial weights.
        iterations: At most.

    Example:
        >>> from pyro_ar.neural import FVSBN
        >>> NewtonModel(lambda: FVSBN(2)).fit(torch.tensor([[0., 0.], [1., 1.]] * 50)).batch_shape
        torch.Size([])
    """

    def __init__(self, make: Callable[[], Family], scale: float = 3.0, seed: int = 0, iterations: int = 300) -> None:
        require(scale > 0 and iterations >= 1, "scale and iterations must be positive", scale, iterations)
        self.make, self.scale, self.seed, self.iterations = make, scale, seed, iterations

    def fit(self, x: Tensor) -> Joint:
        """The joint of the best weights for these rows."""
        unique, counts = x.unique(dim=0, return_counts=True)
        return self._climb(unique, counts.double(), 1 / self.scale**2)

    def num_parameters(self, num_states: Sequence[int]) -> int:
        return self._family().num_parameters

    def _family(self) -> Family:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return self.make()

    def _climb(self, x: Tensor, weights: Tensor, penalty: float) -> Joint:
        family = self._family().double()
        parameters, x = list(family.parameters()), x.double()
        optimiser = torch.optim.LBFGS(parameters, max_iter=self.iterations, line_search_fn="strong_wolfe", tolerance_grad=1e-8, tolerance_change=1e-10)
        total = weights.sum()

        def loss() -> Tensor:
            optimiser.zero_grad()
            value = -(weights @ family().log_prob(x)) + 0.5 * penalty * sum(p.square().sum() for p in parameters)
            (value / total).backward()
            return value / total

        optimiser.step(loss)
        require(all(bool(p.isfinite().all()) for p in parameters), "the fit diverged; use a smaller scale")
        return freeze(family())


def closest_family(truth: Joint, make: Callable[[], Family], seed: int = 0, iterations: int = 1000) -> Joint:
    """The joint of a family nearest to `truth`, by a quasi-Newton climb over all values; FVSBN's is unique, others may have several.

    Raises:
        ValueError: The truth has batch dimensions, or more than `MAX_STATES` values.
    """
    sizes = truth.num_states
    require(truth.batch_shape == () and sizes is not None and math.prod(sizes) <= MAX_STATES, f"the truth must be one joint of at most {MAX_STATES} values")
    x = all_states(sizes or (), torch.float64, truth.device).reshape(-1, *truth.event_shape)
    with torch.no_grad():
        weights = truth.log_prob(x).double().exp()
    return NewtonModel(make, seed=seed, iterations=iterations)._climb(x, weights, 1e-9)


class Distance(NamedTuple):
    """A family at one number of rows, over several draws of them.

    Attributes:
        model: Its name.
        rows: Training rows.
        floor: KL(truth || nearest joint of the family): what it cannot close.
        open: KL(truth || fit) - floor, the mean over the draws: what it has not closed yet.
        error: Its standard error over the draws.
        parameters: Free ones.
    """

    model: str
    rows: int
    floor: float
    open: float
    error: float
    parameters: int


def distances(truth: Joint, families: Mapping[str, Callable[[], Family]], sizes: Sequence[int] = (20, 100, 500, 2500), repeats: int = 5,
              strengths: Sequence[float] = STRENGTHS, seed: int = 0, progress: bool = False, results: Results | None = None) -> list[Distance]:
    """Exact distances of the tables and of these families from a small truth.

    Args:
        truth: One discrete joint of few values, float64.
        families: Neural ones by name, small enough for `NewtonModel`.
        sizes: Numbers of rows.
        repeats: Draws of rows.
        strengths: Of the tables' priors, averaged by evidence.
        seed: Of the draws.
        progress: Show a bar.
        results: Keeps each model on disk when it is done, and knows those that are.

    Raises:
        ValueError: Too large a truth, no positive sizes, fewer than 2 repeats.
    """
    require(len(sizes) > 0 and min(sizes) >= 1 and len(set(sizes)) == len(sizes), "sizes must be different numbers of rows, 1 or more", sizes)
    require(repeats >= 2, "repeats must be 2 or more, for an error", repeats)
    sizes_of = truth.num_states or ()
    models: dict[str, Any] = {name: m.with_states(sizes_of) for name, m in table_models(sizes_of, strengths).items()}
    models |= {name: NewtonModel(make) for name, make in families.items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        x = truth.sample((repeats, max(sizes)))
    found = []
    for name, model in (bar := tqdm(models.items(), disable=not progress)):
        bar.set_description(name)
        unit = None if results is None else results.find(model=name)
        if unit is None:
            nearest = closest_table(truth, model.joint, **model.structure) if isinstance(model, TableModel) else closest_family(truth, families[name])
            floor = kl_divergence(truth, nearest).item()
            unit = {"model": name, "floor": floor, "gaps": [[kl_divergence(truth, fit_recipe(name, model, some[:rows])).item() - floor for some in x]
                                                            for rows in sizes]}
            if results is not None:
                results.add(unit)
        for rows, gaps in zip(sizes, torch.tensor(unit["gaps"], dtype=torch.float64), strict=True):
            found.append(Distance(name, rows, unit["floor"], gaps.mean().item(), (gaps.std() / math.sqrt(repeats)).item(), model.num_parameters(sizes_of)))
    return found


def draw(found: Sequence[Distance], title: str = "How far from the truth?") -> Figure:
    """Two panels: the whole distance against rows beside the part that is still open."""
    sizes = sorted({d.rows for d in found})
    by = {(d.model, d.rows): d for d in found}
    names = list(dict.fromkeys(d.model for d in found))

    def line(model: str, part: Callable[[Distance], float]) -> Series:
        return Series([part(by[model, r]) for r in sizes], [by[model, r].error for r in sizes])

    labels = {m: f"{m} ({by[m, sizes[0]].parameters:,}), floor {by[m, sizes[0]].floor:.3f}" for m in names}
    whole, still = "KL(truth || fit), nats", "of which still open, nats"
    return by_size({whole: {m: line(m, lambda d: d.floor + d.open) for m in names}, still: {m: line(m, lambda d: d.open) for m in names}}, sizes, labels,
                   title=title, scales={whole: "log", still: "log"}, note="Brackets: free parameters. Floor: the distance that no amount of data closes.")


def make_truth(name: str, variables: int = 6, seed: int = 0) -> Joint:
    """A known joint of binary variables, float64: one of `TRUTHS`.

    'mixture' is one of three products, which no family of the line-up but the full table holds.

    Raises:
        ValueError: No such truth, or not 2 to 10 variables.
    """
    require(name in TRUTHS, f"truth must be one of {', '.join(TRUTHS)}", name)
    require(2 <= variables <= 10, "variables must be 2 to 10, so that all values can be listed often", variables)
    n, flip = variables, torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name == "FVSBN":
            joint = FVSBN(n).double()()
            return joint.with_tensors({k: 2.0 * torch.randn_like(t.detach()) for k, t in joint.tensors.items()})
        if name == "mixture":
            return Mixture(torch.zeros(3, dtype=torch.float64), FullyIndependent(1.5 * torch.randn(3, n, 2, dtype=torch.float64)))
        if name == "chain":
            return MarkovChain(torch.zeros(2, dtype=torch.float64), flip.expand(n - 1, 2, 2))
        if name == "tree":  # a star, so that no chain holds it
            return ChowLiuTree([(), *[(0,)] * (n - 1)], [flip.new_zeros(2), *[flip] * (n - 1)])
        return FullyIndependent(torch.randn(n, 2, dtype=torch.float64))


def run_distances(truth: str = "mixture", *, variables: int = 6, sizes: Sequence[int] = (20, 100, 500, 2500), repeats: int = 5, seed: int = 0,
                  out: Path = Path("distances"), fresh: bool = False, keep_old_results: bool = False, progress: bool = False,
                  say: Callable[[str], None] = print) -> list[Distance]:
    """The command `pyro-ar distances`: a table, a CSV file and a picture of what each family cannot close and has not closed yet.

    Args:
        truth: One of `TRUTHS`.
        variables: Of the truth, binary.
        sizes: Numbers of rows.
        repeats: Draws of rows.
        seed: Of the truth and of the draws.
        out: Folder of the results; a run that was interrupted goes on from what it holds.
        fresh: Start over, overwriting what the folder holds.
        keep_old_results: Go on with results that other code of this library wrote.
        progress: Show a bar.
        say: Where the lines of text go.

    Raises:
        ValueError: Bad options, or a folder with results of other options or other code.
    """
    require(seed >= 0, "seed must be 0 or more", seed)
    joint, out, sizes = make_truth(truth, variables, seed), Path(out), sorted(sizes)
    settings = {"experiment": "distances", "truth": truth, "variables": variables, "sizes": sizes, "repeats": repeats, "seed": seed, "strengths": STRENGTHS}
    results = Results.open(out / "results.json", settings, fresh=fresh, keep_old_results=keep_old_results)
    if results.note:
        say(results.note)
    found = distances(joint, {"FVSBN": lambda: FVSBN(variables)}, sizes, repeats, seed=seed, progress=progress, results=results)
    write_csv(out / "results.csv", [{"rows": d.rows, "model": d.model, "parameters": d.parameters, "floor": d.floor, "open": d.open, "se": d.error}
                                    for d in found])
    picture = io.BytesIO()
    draw(found, f"How far from the truth? ({truth}, {variables} binary variables)").savefig(picture, format="png")
    write_atomically(out / "distances.png", picture.getvalue())
    said = (f"KL(truth || fit) in nats; the truth: {truth}, {variables} binary variables; means of {repeats} draws of rows and their standard errors",
            ("floor: of the family's nearest joint, which no amount of data closes. open: what the rows have not closed yet; floor + open is the "
            "distance, * the nearest model with so many rows."))
    say(textwrap.fill(said[0], WIDTH) + "\n")
    say(_text(found, sizes))
    say("\n" + textwrap.fill(said[1], WIDTH) + f"\nWritten to {out}/: results.json, results.csv, distances.png")
    return found


def _text(found: Sequence[Distance], sizes: Sequence[int]) -> str:
    by = {(d.model, d.rows): d for d in found}
    nearest = {rows: min((d for d in found if d.rows == rows), key=lambda d: d.floor + d.open).model for rows in sizes}
    names = sorted({d.model for d in found}, key=lambda m: by[m, sizes[-1]].floor + by[m, sizes[-1]].open)
    lines = [["model", "parameters", "floor", *(f"open, {rows:,} rows" for rows in sizes)]]
    for m in names:
        each = [f"{by[m, rows].open:.4f} ±{by[m, rows].error:.4f}{'*' if nearest[rows] == m else ' '}" for rows in sizes]
        lines.append([m, f"{by[m, sizes[0]].parameters:,}", f"{by[m, sizes[0]].floor:.4f}", *each])
    table, dropped = fitting_columns(lines, fixed=3)
    return "\n".join(aligned(table) + ([f"{dropped} smaller numbers of rows are in results.csv"] if dropped else []))
