r"""`LatentTree`: hidden states on a tree, an emission for each variable, and exact answers to every pattern by one pass of messages."""

import math

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from pyro.distributions import Categorical, constraints
from torch import Generator, Size, Tensor

from pyro_ar.arrays import Array, as_tensor
from pyro_ar.budget import at_once
from pyro_ar.checks import counted, require, require_exact_states
from pyro_ar.expandable import batch_of
from pyro_ar.joint import Joint
from pyro_ar.latent.discriminative import finish as discriminative
from pyro_ar.latent.emissions import draw_emissions, emission_moments, log_emissions
from pyro_ar.latent.learning import Recipe, Schedule, fit_tree, read_rows_of_fit
from pyro_ar.latent.messages import Messages, Tables, down, up
from pyro_ar.latent.parameters import Parameters
from pyro_ar.latent.several import fit_mixture
from pyro_ar.latent.start import output_of
from pyro_ar.latent.tree import read_tree
from pyro_ar.mixture import Mixture
from pyro_ar.outputs import Bernoulli, Output
from pyro_ar.outputs.per_variable import support_of
from pyro_ar.transforms import is_mapped
from pyro_ar.visible import check_visible, read_rows

__all__ = ["LatentTree"]



class LatentTree(Joint):
    r"""Hidden states on a tree, each variable emitted by one of them: as strong as a net, and exact for every pattern.

    .. math:: p(x) = \sum_z p(z_r) \prod_{h \neq r} p(z_h \mid z_{pa(h)}) \prod_i p(x_i \mid z_{h(i)})

    One hidden state per variable on the Chow-Liu tree of the variables is the hidden Chow-Liu tree, on a chain the hidden Markov model;
    one hidden state for all variables is a mixture. A hidden cell sends no message, so every pattern costs one pass: linear in rows and variables,
    quadratic in K.

    `mode` and `entropy` have no closed form; they are enumerated where few cells are hidden, and refused beyond.

    Shapes:
        - `root_logits` `(*B, K)` and `transition_logits` `(*B, H - 1, K, K)`, the parent's state first, one table for each node but the root,
          in their order; unnormalised (softmax over the last dimension); minus infinity forbids a state.
          None for the transitions of a single node.
        - `emission` `(*B, n, K, R)`: raw parameters of `output` for each variable and state; finite.
        - `batch_shape` `B`, `event_shape` `(n,)`; the batch dimensions broadcast.

    Args:
        root_logits: Of the hidden state at the root.
        transition_logits: Of each other hidden state given that of its parent.
        emission: Of the variables given their hidden states.
        output: Of `par.outputs`, `PerVariable` for columns of several kinds; None: `Bernoulli()`.
        parents: The parent of each of H hidden states, as number or tuple; -1, None or () at the root. None: a chain.
        nodes: Which hidden state emits each variable; None: variable i the i-th, or all of them the only one.

    Raises:
        ValueError: Shapes that do not fit, NaN, parents that are no tree, or nodes that do not exist.

    Source:
        Liu, Van den Broeck (2021), *Tractable regularization of probabilistic circuits*, NeurIPS (hidden Chow-Liu trees).

    Example:
        >>> coin = torch.tensor([[[-3.0], [3.0]]]).expand(2, 2, 1)  # two coins, each nearly shows its hidden state
        >>> stay = torch.tensor([[[2.0, 0.0], [0.0, 2.0]]])
        >>> joint = LatentTree(torch.zeros(2), stay, coin)
        >>> joint.given(torch.tensor([1.0, math.nan]), torch.tensor([True, False])).mean
        tensor([1.0000, 0.8120])
    """

    arg_constraints = {"root_logits": constraints.real_vector, "transition_logits": constraints.independent(constraints.real, 3),
                       "emission": constraints.independent(constraints.real, 3)}

    def __init__(self, root_logits: Tensor, transition_logits: Tensor | None, emission: Tensor, output: Output | None = None, *,
                 parents: Any = None, nodes: Any = None, validate_args: bool | None = None) -> None:
        self.output = Bernoulli() if output is None else output
        require(isinstance(self.output, Output), "output must be one of par.outputs", output)
        given = {"root_logits": root_logits, "transition_logits": transition_logits, "emission": emission}
        tensors: dict[str, Tensor] = {name: t for name, t in given.items() if t is not None}
        for name, t in tensors.items():
            least = EVENT_DIMS[name]
            require(isinstance(t, Tensor) and t.is_floating_point() and t.ndim >= least,
                    f"{name} must be a floating tensor of at least {least} dimensions", t)
        require(len({t.dtype for t in tensors.values()}) == 1, "all tensors of a LatentTree must have one dtype", *tensors.values())
        K, n = root_logits.shape[-1], emission.shape[-3]
        H = 1 if transition_logits is None else transition_logits.shape[-3] + 1
        require(K >= 1 and n >= 1, "a LatentTree needs at least one variable, and one hidden state", root_logits, emission)
        fits = transition_logits is None or transition_logits.shape[-2:] == (K, K)
        require(fits, f"transition_logits must end in ({H - 1}, {K}, {K})", transition_logits)
        self._outputs = self.output.variables(n)
        raw = max(o.raw for o in self._outputs)
        require(emission.shape[-2:] == (K, raw), f"emission must end in ({n}, {K}, {raw}), the raw parameters of {self.output!r} in each hidden state",
                emission)
        require_exact_states(max(o.num_states or 1 for o in self._outputs), root_logits.dtype, type(self).__name__)
        self._tree = read_tree(parents, nodes, H, n)
        batch = batch_of(type(self), {name: tuple(t.shape) for name, t in tensors.items()}, EVENT_DIMS)
        # Every tensor has all batch dimensions, so that a mixture, or more dimensions left of the batch, find them in place.
        short = {name: len(batch) - (t.ndim - EVENT_DIMS[name]) for name, t in tensors.items()}
        tensors = {name: t[(None,) * short[name]] if short[name] else t for name, t in tensors.items()}
        self.root_logits, self.transition_logits, self.emission = tensors["root_logits"], tensors.get("transition_logits"), tensors["emission"]
        self._own_batch_shape = batch
        if validate_args is not False and not is_mapped(*tensors.values()):
            for name in tensors.keys() - {"emission"}:
                t = tensors[name].detach()
                good = bool((t < math.inf).all()) and bool((t > -math.inf).any(-1).all())
                require(good, f"{name} must have a state of finite logit in every distribution, and neither NaN nor +inf", t)
            require(bool(emission.isfinite().all()), "emission must be finite, without NaN", emission)
        self.arg_constraints = {name: type(self).arg_constraints[name] for name in tensors}
        super().__init__(tensors, batch, Size([n]), validate_args=validate_args)

    @classmethod
    def infer_shapes(cls, *, root_logits: Sequence[int], emission: Sequence[int], transition_logits: Sequence[int] | None = None,  # type: ignore[override]
                     output: Any = None, parents: Any = None, nodes: Any = None) -> tuple[Size, Size]:
        given = {"root_logits": root_logits, "transition_logits": transition_logits, "emission": emission}
        return batch_of(cls, {name: shape for name, shape in given.items() if shape is not None}, EVENT_DIMS), Size([emission[-3]])

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> "LatentTree":
        return type(self)(tensors["root_logits"], tensors.get("transition_logits"), tensors["emission"], self.output,
                          parents=self._tree.parents, nodes=self._tree.nodes, validate_args=self._validate_args)

    @classmethod
    def from_data(cls, x: Array, visible: Array | None = None, *, num_hidden: int = 16, structure: Any = "chow-liu", nodes: Any = None,
                  output: Output | None = None, num_states: int | Sequence[int] | None = None, sample_weight: Array | None = None,
                  held_out: Any = None, smoothing: float = 0.1, epochs: int = 60, batch_size: int | None = 1000, restarts: int = 1, patience: int = 8,
                  start: "LatentTree | None" = None, prior: "LatentTree | None" = None, generator: Generator | None = None,
                  progress: bool = False) -> "LatentTree":
        r"""EM: hidden states and hidden cells are summed out exactly.

        By minibatches a step replaces a share of the running counts, which falls from 1/2 to 1/50 over the epochs; with
        `batch_size=None` each step takes all rows, and none lowers the log-likelihood of the visible cells plus that of the rows made up. The maximum is a
        local one. Cells must be hidden at random (given what is visible).

        Categorical, binary and normal columns have closed forms; other outputs take a few steps of gradient ascent, none of which lowers the score.

        Args:
            x: `(N, n)`; a tensor, an array or a data frame.
            visible: bool, broadcastable to `x`; True = seen. None: NaN hides a cell.
            num_hidden: K.
            structure: 'chow-liu': one hidden variable for each column, on the tree of largest mutual information between the columns (real
                columns in eighths), rooted at its centre; 'chain': the hidden Markov model; 'star': one for all columns, a mixture; or
                the parents of the hidden variables, as in the constructor.
            nodes: As in the constructor, with parents of your own.
            output: Of `par.outputs`; None: the columns hold states.
            num_states: For all columns or for each, where there is no `output`; by default the largest state seen plus one.
            sample_weight: `(N)`, 0 or more: a row of weight 2 is two equal rows, beside a `smoothing` that stays as it is; one of weight 0 is no row.
            held_out: Rows to judge by, whose hidden cells are NaN, or a share of `x` to be put aside, a float: after each epoch they are scored, and
                the best epoch is kept. None: the last.
            smoothing: Rows made up for each distribution: of even shares for hidden states, of the column's own frequencies for emissions.
            epochs: Most passes over the rows.
            batch_size: Rows per step; None: all.
            restarts: Starts at random; the best by held-out nats, else by those of the rows, is kept.
            patience: Epochs without a better held-out score before it stops.
            start: Where to start, with its structure and output; None: at random.
            prior: The joint that the rows made up come from, with its structure and output; EM starts there too unless `start` says otherwise.
            generator: Source of all randomness; the global one by default.
            progress: Show a bar.

        Raises:
            ValueError: `x` is no rows, values outside the support, or arguments that do not fit them.

        Example:
            >>> x = torch.tensor([[0, 0, 0, 1], [1, 1, 1, 0]]).repeat(50, 1)
            >>> fitted = LatentTree.from_data(x, num_hidden=2, structure="star", smoothing=0.0, generator=torch.Generator().manual_seed(0))
            >>> fitted.log_prob(x[:2]).exp().round(decimals=2)
            tensor([0.5000, 0.5000])
        """
        recipe = Recipe(num_hidden, structure, nodes, output, num_states, smoothing)
        known = [None if joint is None else joint._parameters() for joint in (start, prior)]
        fitted, dtype = fit_tree(x, visible, sample_weight, held_out, recipe, Schedule(epochs, batch_size, patience, progress, generator),
                                 restarts=restarts, start=known[0], prior=known[1])
        return cls._of(fitted.to(dtype))

    @classmethod
    def mixture_from_data(cls, x: Array, visible: Array | None = None, *, num_components: int, num_hidden: int = 16, structure: Any = "chow-liu",
                          nodes: Any = None, output: Output | None = None, num_states: int | Sequence[int] | None = None,
                          sample_weight: Array | None = None, held_out: Any = None, smoothing: float = 0.1, epochs: int = 60,
                          batch_size: int | None = 1000, patience: int = 8, generator: Generator | None = None, progress: bool = False) -> Mixture:
        r"""EM for a `Mixture` of latent trees, each with a structure of its own.

        Each component starts as the tree of the rows nearest to one of the centres of k-means, and after a few epochs of its own all are fitted
        together: a row counts in each as often as that component's posterior says. A step costs what its components cost one by one.

        Args:
            x: As in `from_data`.
            visible: As in `from_data`.
            num_components: How many trees.
            num_hidden: K of each tree.
            structure: As in `from_data`, found for each tree from the rows it starts with.
            nodes: As in `from_data`.
            output: As in `from_data`.
            num_states: As in `from_data`.
            sample_weight: As in `from_data`.
            held_out: As in `from_data`.
            smoothing: As in `from_data`.
            epochs: As in `from_data`.
            batch_size: As in `from_data`.
            patience: As in `from_data`.
            generator: As in `from_data`.
            progress: As in `from_data`.

        Raises:
            ValueError: As `from_data`; or fewer rows than components.

        Example:
            >>> x = torch.tensor([[0, 0, 0, 1], [1, 1, 1, 0]]).repeat(50, 1)
            >>> options = {"num_hidden": 2, "smoothing": 0.0, "generator": torch.Generator().manual_seed(0)}
            >>> LatentTree.mixture_from_data(x, num_components=2, **options).log_prob(x[:2]).exp().round(decimals=2)
            tensor([0.5000, 0.5000])
        """
        recipe = Recipe(num_hidden, structure, nodes, output, num_states, smoothing)
        schedule = Schedule(epochs, batch_size, patience, progress, generator)
        logs, parts, dtype = fit_mixture(x, visible, sample_weight, held_out, num_components, recipe, schedule)
        return Mixture(logs.to(dtype), [cls._of(part.to(dtype)) for part in parts])

    @classmethod
    def of_classes(cls, x: Array, weights: Array, visible: Array | None = None, *, shared: float = 0.0, finish: int = 0, generative: float = 0.0,
                   **options: Any) -> "LatentTree | list[LatentTree]":
        r"""A tree for each class, as `GenerativeClassifier(LatentTree)` asks for them.

        Args:
            x: `(N, n)`.
            weights: `(C, N)`, the share of each row in each class.
            visible: As in `from_data`.
            shared: Rows made up for each distribution of a class from the tree of all classes, whose structure all take. 0: each class has a
                structure of its own, and knows nothing of the others.
            finish: Epochs of gradient ascent on log p(y | x_visible) over random patterns, after EM: a discriminative finish. What comes out is a joint
                per class as before, a better classifier and a worse density. Rows that belong to several classes count for the one of largest share.
            generative: Weight of log p(x_visible | y) in that finish.
            options: Of `from_data`; `smoothing` of the tree of all classes, where they share it.

        Returns:
            One joint of batch shape `(C,)` where `shared` is above 0, else a list.

        Raises:
            ValueError: As `from_data`.
        """
        x, seen = read_rows(x, visible)
        weights = as_tensor(weights)
        require(math.isfinite(shared) and shared >= 0, "shared must be 0 or more", shared)
        fits = isinstance(weights, Tensor) and weights.ndim == 2 and weights.shape[-1] == len(x)
        require(fits, f"weights must be (C, {len(x)}), a row for each class", weights)
        if options.get("output") is None:  # the same for all classes
            options |= {"output": output_of(read_rows_of_fit(x, seen, None), None, options.pop("num_states", None))}
        seen = None if seen is None else check_visible(seen, x.shape[1:]).expand(x.shape)

        def fitted(w: Tensor, **more: Any) -> "LatentTree":
            mine = w > 0
            return cls.from_data(x[mine], None if seen is None else seen[mine], sample_weight=None if bool((w[mine] == 1).all()) else w[mine], **options | more)

        if shared == 0:
            trees = [fitted(w) for w in weights]
        else:
            everyone = fitted(weights.sum(0))
            trees = [fitted(w, prior=everyone, smoothing=shared) for w in weights]
        if finish:
            rows, parts = read_rows_of_fit(x, seen, weights.sum(0)), [tree._parameters() for tree in trees]
            labels, shares = weights[:, weights.sum(0) > 0].argmax(0), weights.double().sum(-1)
            found = discriminative(parts, (shares / shares.sum()).log(), rows, labels, epochs=finish, generative=generative,
                                   dtype=torch.float32 if trees[0].num_states and x.dtype != torch.float64 else torch.float64,
                                   generator=options.get("generator"), progress=options.get("progress", False))
            trees = [cls._of(part.to(tree.dtype)) for part, tree in zip(found, trees, strict=True)]
        if shared == 0:  # of different structures
            return trees
        return trees[0].with_tensors({name: torch.stack([tree.tensors[name] for tree in trees]) for name in trees[0].tensors})

    @classmethod
    def _of(cls, fitted: Parameters) -> "LatentTree":
        tree, steps = fitted.tree, fitted.transition_logits
        return cls(fitted.root_logits, steps if len(steps) else None, fitted.emission, fitted.output, parents=tree.parents, nodes=tree.nodes)

    def _parameters(self) -> Parameters:
        require(not self.batch_shape, "a fit starts from a single tree, without batch dimensions", tuple(self.batch_shape))
        root, K = self.root_logits, self.num_hidden
        steps = root.new_zeros(0, K, K) if self.transition_logits is None else self.transition_logits
        return Parameters(self._tree, self.output, root, steps, self.emission)

    # What it is.

    @property
    def num_hidden(self) -> int:
        """States of each hidden variable, K."""
        return self.root_logits.shape[-1]

    @property
    def parents(self) -> tuple[tuple[int, ...], ...]:
        """The parent of each hidden variable, () at the root."""
        return tuple(() if p < 0 else (p,) for p in self._tree.parents)

    @property
    def nodes(self) -> tuple[int, ...]:
        """Which hidden variable emits each variable."""
        return self._tree.nodes

    @property
    def num_states(self) -> tuple[int, ...] | None:
        each = [o.num_states for o in self._outputs]
        return None if None in each else tuple(each)  # type: ignore[arg-type]

    @property
    def support(self) -> constraints.Constraint:
        return support_of(self._outputs, self.event_shape)

    @classmethod
    def count_parameters(cls, num_variables: int, num_hidden: int, output: Output | None = None, *, num_nodes: int | None = None) -> int:
        """K - 1 + (H - 1) K (K - 1) of the hidden states, and K times the raw parameters of the variables; allocates nothing.

        Args:
            num_variables: n.
            num_hidden: K.
            output: As in the constructor.
            num_nodes: H; None: one per variable.
        """
        K, H = num_hidden, num_variables if num_nodes is None else num_nodes
        return K - 1 + (H - 1) * K * (K - 1) + K * sum(o.raw for o in (output or Bernoulli()).variables(num_variables))

    @property
    def num_parameters(self) -> int:
        return self.count_parameters(self.event_shape[0], self.num_hidden, self.output, num_nodes=len(self._tree.parents))

    def _particulars(self) -> list[str]:
        return [f"{counted(len(self._tree.parents), 'hidden variable')} of {counted(self.num_hidden, 'state')}"]

    # Queries.

    def hidden_posterior(self, x: Array, visible: Array | None = None) -> Categorical:
        r"""p(z_h | x_visible) of every hidden variable: features of a row, whatever is hidden in it.

        Args:
            x: `(*S, *B, n)`.
            visible: bool, broadcastable to `x`; None: all is seen.

        Returns:
            A `Categorical` of batch shape `(*S, *B, H)` over K states; its `probs` are the features.

        Raises:
            ValueError: Bad shapes or values, or visible cells of probability zero.

        Example:
            >>> joint = LatentTree(torch.zeros(2), None, torch.tensor([[[0.0], [math.log(3.0)]]]))
            >>> joint.hidden_posterior(torch.tensor([1.0])).probs
            tensor([[0.4000, 0.6000]])
        """
        if visible is None:
            x = self.check_value(x)
            seen = torch.ones_like(x, dtype=torch.bool)
        else:
            pattern = self.marginal(visible).visible
            x = self.check_value(x, pattern)
            seen = pattern.expand(x.shape)
        logits = self._in_turn(lambda tables, raw, x, v: self._posterior(tables, raw, x, v).movedim(2, 1), x, seen)
        left = torch.broadcast_shapes(x.shape[:-1], self.batch_shape)
        logits = logits.expand(*left, *logits.shape[-2:])
        impossible = (logits == -math.inf).all(-1).any(-1)
        require(is_mapped(logits) or not bool(impossible.any()), "hidden_posterior wants visible cells of positive probability")
        return Categorical(logits=logits, validate_args=None if logits.numel() else False)

    def conditional_log_prob(self, x: Array) -> Tensor:
        r"""Log p(x_i | the variables before i), `(*S, *B, n)`, in nats: one pass for each prefix, quadratic in n."""
        x = self.check_value(x)
        left = torch.broadcast_shapes(x.shape[:-1], self.batch_shape)
        n = self.event_shape[0]
        places = torch.arange(n, device=x.device)
        prefix = []
        for i in range(n):
            seen = (places <= i).expand(x.shape)
            prefix.append(self.log_marginal(torch.where(seen, x, 0), seen).expand(left))
        before = torch.stack([torch.zeros_like(prefix[0]), *prefix[:-1]], -1)
        return torch.stack(prefix, -1) - before.masked_fill(before == -math.inf, 0.0)

    def log_density(self, x: Tensor) -> Tensor:
        return self.log_marginal(x, torch.ones_like(x, dtype=torch.bool))

    def methods(self, visible: Tensor) -> np.ndarray:
        return np.full(tuple(visible.shape[:-1]), "elimination")

    def log_marginal(self, x: Tensor, visible: Tensor) -> Tensor:
        return self._in_turn(lambda tables, raw, x, v: self._up(tables, raw, x, v).total, x, visible)

    def moments(self, x: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
        places = self._tree.variable_places

        def answer(tables: Tables, raw: Tensor, x: Tensor, v: Tensor) -> Tensor:
            p = self._posterior_in_places(tables, raw, x, v).exp().index_select(1, places.to(x.device))  # (E, n, N, K)
            mean, variance = (m.unsqueeze(-2) for m in emission_moments(self._outputs, raw))
            whole = (p * mean).sum(-1)
            spread = (p * (variance + (mean - whole.unsqueeze(-1)).square())).sum(-1)
            return torch.stack([whole, spread], -1).movedim(1, 2)

        mean, variance = self._in_turn(answer, x, visible).unbind(-1)
        return torch.where(visible, x.to(self.dtype), mean), torch.where(visible, 0, variance)

    def draw(self, shape: Size) -> Tensor:
        return self.complete(*self.unseen(shape + self.event_shape))

    def complete(self, x: Tensor, visible: Tensor) -> Tensor:
        drawn = self._in_turn(self._drawn, x, visible)
        return torch.where(visible, x, drawn.to(x.dtype))

    # Messages, in the places of the tree.

    def _up(self, tables: Tables, raw: Tensor, x: Tensor, visible: Tensor) -> Messages:
        columns = self._tree.columns
        if columns is not None:  # at each place one variable: no messages are moved
            index = torch.tensor(columns, device=x.device)
            outputs = [self._outputs[i] for i in columns]
            local = log_emissions(outputs, raw.index_select(1, index), x.index_select(2, index), visible.index_select(2, index))
        else:
            shown = log_emissions(self._outputs, raw, x, visible)
            local = shown.new_zeros(shown.shape[0], len(self._tree.parents), *shown.shape[2:])
            local = local.index_add(1, self._tree.variable_places.to(x.device), shown)
        return up(local, tables, self._tree)

    def _posterior_in_places(self, tables: Tables, raw: Tensor, x: Tensor, visible: Tensor) -> Tensor:
        return down(self._up(tables, raw, x, visible), tables, self._tree)

    def _posterior(self, tables: Tables, raw: Tensor, x: Tensor, visible: Tensor) -> Tensor:
        """Log posterior of the hidden states in their own order, `(E, H, N, K)`."""
        return self._posterior_in_places(tables, raw, x, visible).index_select(1, torch.tensor(self._tree.place, device=x.device))

    def _drawn(self, tables: Tables, raw: Tensor, x: Tensor, visible: Tensor) -> Tensor:
        """All cells drawn given the visible ones, `(E, N, n)`."""
        messages = self._up(tables, raw, x, visible)
        states = [_draw(messages.inside[0] + tables.root[:, None, None])]
        for depth, inside in enumerate(messages.inside[1:], start=1):
            start, stop = self._tree.levels[depth]
            parent = states[-1].index_select(1, self._tree.above[depth - 1].to(x.device))
            index = parent.unsqueeze(-1).expand(*parent.shape, self.num_hidden)
            step = tables.transitions[:, start - 1:stop - 1].gather(2, index)
            states.append(_draw(inside + step))
        shown = torch.cat(states, 1).index_select(1, self._tree.variable_places.to(x.device))
        return draw_emissions(self._outputs, raw, shown)

    # Rows and batch.

    def _tables(self) -> tuple[Tables, Tensor]:
        """Log tables in the places of the tree, and raw emissions; all with one dimension of entries."""
        own = self._own_batch_shape
        E, K = math.prod(own), self.num_hidden
        root = self.root_logits.expand(*own, K).reshape(E, K)
        transitions = root.new_zeros(E, 0, K, K)
        if self.transition_logits is not None:
            given = self.transition_logits.expand(own + self.transition_logits.shape[-3:]).reshape(E, *self.transition_logits.shape[-3:])
            transitions = given.index_select(1, torch.tensor(self._tree.transitions, dtype=torch.long, device=root.device))
        raw = self.emission.expand(own + self.emission.shape[-3:]).reshape(E, *self.emission.shape[-3:])
        return Tables.of(root, transitions), raw

    def _in_turn(self, function: Callable[[Tables, Tensor, Tensor, Tensor], Tensor], x: Tensor, visible: Tensor) -> Tensor:
        """`function(tables, raw, x, visible)`, `(E, N, *)`, of entries and rows `(E or 1, N, n)`, as many at once as memory allows; `(*L, *)`."""
        tables, raw = self._tables()
        own = self._own_batch_shape
        left = torch.broadcast_shapes(x.shape[:-1], visible.shape[:-1], own)
        sizes = (1,) * (len(left) - len(own)) + tuple(own)
        entries = [d for d, size in enumerate(sizes) if size != 1]
        rows = [d for d, size in enumerate(sizes) if size == 1]
        N = math.prod(left[d] for d in rows)
        x, visible = (_by_entries(t, left, entries, rows) for t in (x.to(self.dtype), visible))
        step = at_once(math.prod(own) * len(self._tree.parents) * self.num_hidden)
        parts = [function(tables, raw, x[:, i:i + step], visible[:, i:i + step]) for i in range(0, max(N, 1), step)]
        answer = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        answer = answer.expand(math.prod(own), *answer.shape[1:])
        back = torch.tensor(entries + rows).argsort().tolist() if left else []
        spread = answer.reshape((*(left[d] for d in entries + rows), *answer.shape[2:]))
        return spread.permute((*back, *range(len(left), spread.ndim)))


EVENT_DIMS = {"root_logits": 1, "transition_logits": 3, "emission": 3}


def _by_entries(t: Tensor, left: Size, entries: list[int], rows: list[int]) -> Tensor:
    """`(*L, n)` as `(E, N, n)`, or `(1, N, n)` where all entries share the rows."""
    short = len(left) - (t.ndim - 1)
    t = t[(None,) * short] if short else t
    shared = all(t.shape[d] == 1 or t.stride(d) == 0 for d in entries)
    if shared and all(left[d] for d in entries):
        for d in entries:
            t = t.narrow(d, 0, 1)
        t = t.expand(*(1 if d in entries else left[d] for d in range(len(left))), t.shape[-1])
    else:
        t = t.expand(*left, t.shape[-1])
    E, N = (math.prod(t.shape[d] for d in dims) for dims in (entries, rows))
    return t.permute((*entries, *rows, t.ndim - 1)).reshape(E, N, t.shape[-1])


def _draw(logits: Tensor) -> Tensor:
    """One state for each of `(*L, K)`."""
    if logits.numel() == 0:  # torch draws none of nothing
        return torch.zeros(logits.shape[:-1], dtype=torch.long, device=logits.device)
    return Categorical(logits=logits, validate_args=False).sample()
