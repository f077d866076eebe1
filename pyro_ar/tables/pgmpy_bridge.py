r"""Bayes nets of pgmpy, and so BIF files, to and from `BayesNet`: the one place that knows how pgmpy lays out a table.

A `TabularCPD` holds p(v | evidence) with v on the *first* axis and the evidence on the others, in the order of `cpd.variables[1:]`
(`get_evidence()` gives them reversed); each table names the states of its parents in an order of its own.
"""

import warnings

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from torch import Tensor

from pyro_ar.checks import require

__all__ = ["Named", "read_pgmpy", "write_pgmpy"]


class Named(NamedTuple):
    """A net with the names of its variables and of their states."""

    parents: list[tuple[int, ...]]
    tables: list[Tensor]
    variables: tuple[Hashable, ...]
    state_names: tuple[tuple[Hashable, ...], ...]


def read_pgmpy(model: Any, variables: Sequence[Hashable] | None, dtype: torch.dtype) -> Named:
    """The net of a pgmpy model.

    Raises:
        ValueError: No discrete pgmpy model, no table for a node, or other variables than its nodes.
    """
    require(callable(getattr(model, "nodes", None)) and callable(getattr(model, "get_cpds", None)),
            "from_pgmpy wants a DiscreteBayesianNetwork, such as BIFReader(path).get_model()", type(model).__name__)
    nodes = list(model.nodes())
    order = nodes if variables is None else list(variables)
    require(len(order) == len(nodes) and set(order) == set(nodes), "variables must name every node of the model once", order)
    cpds = {v: model.get_cpds(v) for v in order}
    bare = [v for v, cpd in cpds.items() if cpd is None or not hasattr(cpd, "state_names")]
    require(not bare, "every node of the model needs a TabularCPD; without one are", bare)
    states = {v: tuple(cpd.state_names[v]) for v, cpd in cpds.items()}
    parents, tables = [], []
    for v, cpd in cpds.items():
        axes = list(cpd.variables)
        values = np.asarray(cpd.values, dtype=np.float64)
        for axis, u in enumerate(axes):  # states in the order in which their own variable names them
            there = list(cpd.state_names[u])
            require(sorted(map(str, there)) == sorted(map(str, states[u])), f"the table of {v} must know the states of {u}", there, states[u])
            values = values.take([there.index(s) for s in states[u]], axis)
        parents.append(tuple(order.index(u) for u in axes if u != v))
        tables.append(torch.from_numpy(np.moveaxis(values, axes.index(v), -1).copy()).log().to(dtype))
    return Named(parents, tables, tuple(order), tuple(states[v] for v in order))


def write_pgmpy(net: Named) -> Any:
    """The pgmpy model of a net of normalised probabilities.

    Raises:
        ImportError: pgmpy is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*pgmpy.*", category=FutureWarning)  # of its own renamings
            from pgmpy.factors.discrete import TabularCPD
            from pgmpy.models import DiscreteBayesianNetwork
    except ImportError:
        raise ImportError("to_pgmpy needs pgmpy, which is not installed: pip install pgmpy") from None
    model = DiscreteBayesianNetwork()
    model.add_nodes_from(net.variables)
    model.add_edges_from((net.variables[u], net.variables[v]) for v, p in enumerate(net.parents) for u in p)
    for v, (p, table) in enumerate(zip(net.parents, net.tables, strict=True)):
        size = table.shape[-1]
        scope = (v, *p)
        model.add_cpds(TabularCPD(
            net.variables[v], size, table.reshape(-1, size).T.cpu().double().numpy(),
            evidence=[net.variables[u] for u in p] or None, evidence_card=list(table.shape[:-1]) or None,
            state_names={net.variables[u]: list(net.state_names[u]) for u in scope}))
    return model
