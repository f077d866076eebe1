r"""Where a fit starts: the kinds of the columns, the tree over them, what the columns are on their own, and tables at random."""

from collections.abc import Sequence
from typing import Any

import torch

from torch import Generator, Tensor

from pyro_ar.checks import require
from pyro_ar.latent.emissions import MAX_LISTED, kinds_of
from pyro_ar.latent.learner import Rows
from pyro_ar.latent.parameters import Parameters
from pyro_ar.latent.shown import columns_of
from pyro_ar.latent.tree import Tree, chain, read_tree, rooted_at_centre, star
from pyro_ar.outputs import Bernoulli, Normal, Output, PerVariable
from pyro_ar.tables.chow_liu import best_tree
from pyro_ar.tables.counts import check_data

__all__ = ["alone", "at_random", "output_of", "tree_of"]

BINS = 8  # of a real column, for the mutual information of a tree
STEPS = 20  # of gradient ascent, of an output without a closed form


def output_of(rows: Rows, output: Output | None, num_states: int | Sequence[int] | None) -> Output:
    """The output asked for, or one of the states seen; the rows must fit it.

    Raises:
        ValueError: Values outside the support, real ones where nothing says how they are distributed, or numbers of states beside an output.
    """
    x = rows.x if rows.seen is None else torch.where(rows.seen, rows.x, 0)
    n = x.shape[1]
    if output is None:
        whole = bool((x.long() == x).all())
        require(whole, "columns of real values need an output, such as outputs.Normal(), or outputs.PerVariable([...]) for columns of several kinds", x)
        _, sizes = check_data(x, num_states)
        return Bernoulli() if set(sizes) == {2} else PerVariable.of_states(sizes)
    require(num_states is None, "give num_states or output, not both", num_states)
    require(isinstance(output, Output), "output must be one of par.outputs", output)
    for i, each in enumerate(output.variables(n)):
        good = each.support.check(x[:, i]) & x[:, i].isfinite()
        good = good if rows.seen is None else good | ~rows.seen[:, i]
        require(bool(good.all()), f"column {i} must hold values in the support of {each!r}", float(x[:, i][~good][0]) if not bool(good.all()) else 0.0)
    return output


def tree_of(structure: Any, nodes: Any, rows: Rows, output: Output) -> Tree:
    """The tree asked for: 'chow-liu', 'chain', 'star', or the parents of the hidden variables.

    Raises:
        ValueError: None of these, or no tree.
    """
    n = rows.x.shape[1]
    if not isinstance(structure, str):
        require(isinstance(structure, Sequence | Tensor), "structure must be 'chow-liu', 'chain', 'star', or the parents of a tree", structure)
        return read_tree(structure, nodes, len(structure), n)
    require(structure in ("chow-liu", "chain", "star"), "structure must be 'chow-liu', 'chain', 'star', or the parents of a tree", structure)
    require(nodes is None, f"nodes go with parents of your own; structure {structure!r} has its own", nodes)
    if structure == "star":
        return read_tree(star(), None, 1, n)
    if structure == "chain" or n == 1:
        return read_tree(chain(n), None, n, n)
    states = torch.stack([_binned(rows.x[:, i], None if rows.seen is None else rows.seen[:, i], each)
                          for i, each in enumerate(output.variables(n))], -1)
    sizes = tuple(int(k) for k in states.amax(0) + 1)
    parents = best_tree(states, sizes, rows.weights, rows.seen)
    return read_tree(rooted_at_centre([(v, *p) for v, p in enumerate(parents) if p], n), None, n, n)  # type: ignore[misc]


def alone(rows: Rows, output: Output, tree: Tree, K: int, dtype: torch.dtype) -> Parameters:
    """Hidden states that know nothing: each shows every column as it is on its own, with one row of every state made up."""
    outputs = output.variables(rows.x.shape[1])
    widest = max(o.raw for o in outputs)
    emission = torch.zeros(len(outputs), K, widest, dtype=dtype)
    for each, variables in kinds_of(outputs).items():
        index = torch.tensor(variables)
        flat = columns_of(each, torch.zeros(len(variables), 1, each.raw, dtype=dtype))
        fitted = columns_of(each, flat.raw)
        x, seen = (None if t is None else t[:, index].mT.contiguous() for t in rows[:2])
        features = fitted.features(x.to(dtype), seen)  # type: ignore[union-attr]
        weight = torch.ones(len(rows.x)) if rows.weights is None else rows.weights
        closed = each.num_states is not None or isinstance(each, Normal)
        for _ in range(STEPS):
            counts = fitted.counts(features, weight.to(dtype).expand(len(variables), 1, -1))
            made_up = 0.0 if isinstance(each, Normal) else float(each.num_states or 0)
            fitted.maximise(counts, flat, made_up)
            if closed and (each.num_states or 0) <= MAX_LISTED:
                break
        emission[index, :, :each.raw] = fitted.raw
    return Parameters(tree, output, torch.zeros(K, dtype=dtype), torch.zeros(len(tree.parents) - 1, K, K, dtype=dtype), emission)


def at_random(marginal: Parameters, generator: Generator | None) -> Parameters:
    """Tables at random, and emissions at random about those of the columns on their own."""
    def noise(t: Tensor) -> Tensor:
        return torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t)

    wide = marginal.emission
    moved = wide + noise(wide)
    for i, each in enumerate(marginal.output.variables(len(wide))):
        if isinstance(each, Normal):  # raw zero is the unit, the column's spread is its own
            spread = each.distribution(wide[i, :, :2]).stddev
            moved[i, :, 0], moved[i, :, 1] = wide[i, :, 0] + spread * noise(spread), wide[i, :, 1]
    return marginal._replace(root_logits=noise(marginal.root_logits), transition_logits=noise(marginal.transition_logits), emission=moved)


def _binned(x: Tensor, seen: Tensor | None, output: Output) -> Tensor:
    """A column as states: its own where they are few, else its rank among the visible values."""
    if output.num_states is not None and output.num_states <= MAX_LISTED:
        return (x if seen is None else torch.where(seen, x, 0)).long()
    here = x if seen is None else x[seen]
    if len(here) == 0:
        return torch.zeros(len(x), dtype=torch.long)
    edges = here.double().quantile(torch.linspace(0, 1, BINS + 1, dtype=torch.float64)[1:-1]).unique()
    found = torch.bucketize(x.double().contiguous(), edges, right=True)
    return found if seen is None else torch.where(seen, found, 0)
