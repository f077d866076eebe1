r"""The shape of a latent tree: which hidden state hangs on which, and which variable shows which hidden state."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from torch import Tensor

from pyro_ar.checks import require

__all__ = ["Tree", "chain", "read_tree", "rooted_at_centre", "star"]


@dataclass(frozen=True)
class Tree:
    """Hidden states on a rooted tree, and the variables that they emit.

    Work goes level by level, so all is kept in *places*: nodes breadth first, the root at place 0, the children of one node side by side.

    Args:
        parents: Of each node; -1 at the root.
        nodes: Of each variable, the node whose state emits it.
    """

    parents: tuple[int, ...]
    nodes: tuple[int, ...]

    @cached_property
    def order(self) -> tuple[int, ...]:
        """The node at each place."""
        children: list[list[int]] = [[] for _ in self.parents]
        for child, parent in enumerate(self.parents):
            if parent >= 0:
                children[parent].append(child)
        order = [self.parents.index(-1)]
        for node in order:  # grows as it goes
            order += children[node]
        return tuple(order)

    @cached_property
    def place(self) -> tuple[int, ...]:
        """The place of each node."""
        return tuple(torch.tensor(self.order).argsort().tolist())

    @cached_property
    def levels(self) -> tuple[tuple[int, int], ...]:
        """First place of each depth, and the place after its last."""
        depth = [0]
        for node in self.order[1:]:
            depth.append(depth[self.place[self.parents[node]]] + 1)
        sizes = torch.bincount(torch.tensor(depth)).tolist()
        ends = torch.tensor(sizes).cumsum(0).tolist()
        return tuple((end - size, end) for end, size in zip(ends, sizes, strict=True))

    @cached_property
    def above(self) -> tuple[Tensor, ...]:
        """For each level but the first: where in the level above the parents of its nodes are."""
        found = []
        for (first, _), (start, stop) in zip(self.levels, self.levels[1:], strict=False):
            found.append(torch.tensor([self.place[self.parents[node]] - first for node in self.order[start:stop]]))
        return tuple(found)

    @cached_property
    def transitions(self) -> tuple[int, ...]:
        """Which transition table, counted over the nodes but the root in their own order, belongs to each place but the first."""
        root = self.order[0]
        return tuple(node - (node > root) for node in self.order[1:])

    @cached_property
    def columns(self) -> tuple[int, ...] | None:
        """The variable at each place, where each node emits exactly one."""
        if len(self.nodes) != len(self.parents) or len(set(self.nodes)) < len(self.nodes):
            return None
        of = {node: variable for variable, node in enumerate(self.nodes)}
        return tuple(of[node] for node in self.order)

    @cached_property
    def variable_places(self) -> Tensor:
        """The place of the node of each variable."""
        return torch.tensor([self.place[node] for node in self.nodes])


def chain(n: int) -> tuple[int, ...]:
    """Each node hangs on the one before: a hidden Markov model."""
    return tuple(range(-1, n - 1))


def star() -> tuple[int, ...]:
    """One hidden state for all variables: a mixture."""
    return (-1,)


def read_tree(parents: Any, nodes: Any, num_nodes: int, num_variables: int) -> Tree:
    """A checked tree.

    Args:
        parents: One for each node: its parent, or a tuple of it; -1, None or () at the root. None: a chain.
        nodes: The node of each variable; None: variable i shows node i, or all of them the only node.
        num_nodes: How many hidden states there are.
        num_variables: How many variables there are.

    Raises:
        ValueError: No tree over that many nodes, or variables that hang on nothing.
    """
    above = chain(num_nodes) if parents is None else tuple(_parent(p) for p in _listed("parents", parents))
    wanted = f"parents must be a tree over {num_nodes} hidden states: one root, and one parent for each other node"
    require(len(above) == num_nodes, wanted, f"{len(above)} parents")
    require(all(-1 <= p < num_nodes for p in above), f"{wanted}, from 0 to {num_nodes - 1}", above)
    require(above.count(-1) == 1, wanted, f"{above.count(-1)} roots")
    steps = torch.tensor([p if p >= 0 else i for i, p in enumerate(above)])
    reached = steps
    for _ in range(max(num_nodes, 2).bit_length()):  # each doubles the steps taken towards the root
        reached = reached[reached]
    require(bool((reached == above.index(-1)).all()), f"{wanted}; a parent must not be its own descendant", above)
    if nodes is None:
        require(num_nodes in (1, num_variables), f"without `nodes` there must be one hidden state for all variables, or one for each of {num_variables}",
                num_nodes)
        nodes = (0,) * num_variables if num_nodes == 1 else range(num_variables)
    shown = tuple(int(v) for v in _listed("nodes", nodes))
    require(len(shown) == num_variables and all(0 <= v < num_nodes for v in shown),
            f"nodes must name, for each of {num_variables} variables, its hidden state from 0 to {num_nodes - 1}", shown)
    return Tree(above, shown)


def rooted_at_centre(edges: Sequence[tuple[int, int]], n: int) -> tuple[int, ...]:
    """Parents of an undirected tree, its root where the depth is least; the lowest number where two nodes tie."""
    neighbours: list[list[int]] = [[] for _ in range(n)]
    for a, b in edges:
        neighbours[a].append(b)
        neighbours[b].append(a)

    def walk(start: int) -> list[int]:
        parents = [-2] * n
        parents[start] = -1
        seen = [start]
        for node in seen:
            for other in neighbours[node]:
                if parents[other] == -2:
                    parents[other] = node
                    seen.append(other)
        return [*parents, seen[-1]]  # the last one is farthest

    far = walk(walk(0)[-1])
    path = [far[-1]]
    while far[path[-1]] >= 0:
        path.append(far[path[-1]])
    middle = path[(len(path) - 1) // 2: len(path) // 2 + 1]
    return tuple(walk(min(middle))[:-1])


def _listed(what: str, value: Any) -> list[Any]:
    value = value.tolist() if isinstance(value, Tensor) else value
    require(isinstance(value, Sequence) and not isinstance(value, str), f"{what} must be a sequence", value)
    return list(value)


def _parent(value: Any) -> int:
    if isinstance(value, Sequence) and not isinstance(value, str):
        require(len(value) <= 1, "in a tree each node has at most one parent", value)
        value = value[0] if value else -1
    require(value is None or isinstance(value, int), "a parent is the number of a node, or None at the root", value)
    return -1 if value is None else int(value)
