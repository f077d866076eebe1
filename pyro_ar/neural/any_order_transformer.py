r"""`AnyOrderTransformer`: the variables in any order in one causal pass."""

import inspect
import math

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from pyro.distributions import Categorical
from torch import Generator, Tensor, nn

from pyro_ar.arrays import Array
from pyro_ar.checks import require
from pyro_ar.neural.family import Family
from pyro_ar.neural.layers.attention import Blocks
from pyro_ar.neural.layers.tokens import TokenNet
from pyro_ar.neural.net import AnyOrderNet
from pyro_ar.order import check_order, random_orders, visible_first
from pyro_ar.outputs import Output
from pyro_ar.visible import check_visible, read_rows

__all__ = ["AnyOrderTransformer", "AnyOrderTransformerNet"]


class AnyOrderTransformerNet(TokenNet, AnyOrderNet):
    r"""Blocks of a transformer over tokens of double positions: where the last variable stands, and where the next one does.

    .. math:: t_i = x_{o_{i-1}} W + S_{o_{i-1}} + P_{o_i} + c\,C, \qquad raw_{o_i} = \mathrm{blocks}(t_1, \dots, t_i)_i\, V + b_{o_i}

    The positions of an event of several dimensions are sums over its dimensions: of an image S_(r,c) = S_r + S_c, and so P.

    Shapes:
        - as `TokenNet`; in place of `place`, `last_place.d` and `next_place.d` `(size, width)` for each dimension d of more than one place.
    """

    def __init__(self, event_shape: int | Sequence[int], output: Output, context_dim: int = 0, *, width: int = 128, layers: int = 3,
                 heads: int = 4, key_heads: int = 1, dropout: float = 0.0) -> None:
        super().__init__(event_shape, output, context_dim, width=width)
        self.blocks = Blocks(width, layers, heads, key_heads, dropout)

    def _make_places(self) -> None:
        sizes = [size for size in self.event_shape if size > 1] or [1]
        self.last_place, self.next_place = (nn.ParameterList(0.3 * torch.randn(size, self.width) for size in sizes) for _ in range(2))

    def _unread(self) -> int:
        if self.num_variables > 1:
            # Any variable may be the last but one in some order: all values are read.
            last = self.output.totals(self.num_variables)[1] - self.output.totals(self.num_variables - 1)[1]
            return super()._unread() - (self.width * last if self.value_weight.ndim == 3 else 0)
        return super()._unread() + self.blocks.num_scores + self.width  # there is no place of a last variable

    def memory(self, rows: int) -> Any:
        return self.blocks.caches(rows, self.num_variables)

    def through(self, tokens: Tensor, memory: Any = None, done: int = 0) -> Tensor:
        return self.blocks(tokens, memory, done)

    def inside(self, tokens: Tensor) -> Tensor:
        """The stream between the blocks of the lower and those of the upper half, where Chen et al. (2020) found the best features."""
        return self.blocks.inside(tokens)

    def _told(self, x: Tensor, places: Tensor) -> Tensor:
        return super()._told(x, places) + self._at(self.last_place, places)

    def _asked(self, places: Tensor) -> Tensor:
        return self._at(self.next_place, places)

    def _at(self, tables: nn.ParameterList, places: Tensor) -> Tensor:
        """The sum of what the dimensions say of places in the flattened event, `(*places.shape, width)`."""
        found: Any = 0.0
        for table in reversed(tables):  # the last dimension runs fastest
            found = found + table[places % len(table)]
            places = places // len(table)
        return found

    def given_known(self, x: Tensor, known: Tensor, context: Tensor | None = None) -> Tensor:
        """As `AnyOrderNet` says, the known variables read in their own order: one pass.

        Behind the tokens of the known variables stands one for each variable, which asks for it, and is seen by itself alone.
        """
        n, many = self.num_variables, known.sum(-1)
        m = int(many.max()) if len(x) else 0
        places = (~known).long().argsort(dim=-1, stable=True)
        told = self._told(torch.where(known, x, 0).gather(1, places), places)
        told = F.pad(told, (0, 0, 1, 0))  # entry i: of the first i variables, the last one
        asked, of_context = self._asked(places), self._of_context(context)
        last = told.gather(1, many.reshape(-1, 1, 1).expand(-1, 1, self.width))
        queries = last + self._asked(torch.arange(n, device=x.device)) + of_context
        tokens = torch.cat((told[:, :m] + asked[:, :m] + of_context, queries), 1)
        token = torch.arange(m + n, device=x.device)
        chain = (token < m) & (token[:, None] >= token) & (token < many.reshape(-1, 1, 1))
        sees = chain | (token[:, None] == token)
        h = self.blocks(tokens, sees=sees.unsqueeze(1))[:, m:]
        return self._read_out(h, torch.arange(n, device=x.device))


    def after_prefixes(self, x: Tensor, asked: Tensor, context: Tensor | None = None, order: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Raw parameters as `forward` gives them, and beside them in the same pass what is read after each prefix, the empty one first.

        Behind the tokens of the chain stands one after each prefix, which tells of its last variable, asks for something else, and is seen by itself alone.

        Args:
            x: `(rows, m)` in chain order.
            asked: What those tokens ask, `(width,)`.
            context: `(rows, context_dim)`.
            order: `(rows, m)`.

        Returns:
            `(rows, m, raw)` and `(rows, m + 1, width)`.
        """
        m = x.shape[1]
        places = self._places(0, m, order)
        told, of_context = F.pad(self._told(x, places), (0, 0, 1, 0)), self._of_context(context)
        tokens = torch.cat((told[:, :m] + self._asked(places) + of_context, told + asked + of_context), 1)
        token = torch.arange(2 * m + 1, device=x.device)
        known = torch.where(token < m, token + 1, token - m)  # how many tokens of the chain each sees
        h = self.blocks(tokens, sees=(token < known[:, None]) & (token < m) | (token == token[:, None]))
        return self._read_out(h[:, :m], places), h[:, m:]

    def after_known(self, x: Tensor, many: Tensor, asked: Tensor, context: Tensor | None = None, order: Tensor | None = None) -> Tensor:
        """What `after_prefixes` reads after the first `many` `(rows,)` variables alone, `(rows, width)`; values behind them are not read."""
        m = int(many.max()) if len(x) else 0
        places, many = self._places(0, m, order), many.reshape(-1, 1)
        known = torch.arange(m, device=x.device) < many
        told = F.pad(self._told(torch.where(known, x[:, :m], 0), places), (0, 0, 1, 0))
        last = told.gather(1, many.unsqueeze(-1).expand(-1, 1, self.width))
        of_context = self._of_context(context)
        tokens = torch.cat((told[:, :m] + self._asked(places) + of_context, last + asked + of_context), 1)
        token = torch.arange(m + 1, device=x.device)
        causal = (token[:, None] >= token) & (token < m)
        sees = causal & (token < many.unsqueeze(-1)) | (token == token[:, None])
        return self.blocks(tokens, sees=sees.unsqueeze(1))[:, m]


class _ReadClass(nn.Module):
    """What a token asks for the class, and the class from what it sees."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.place = nn.Parameter(0.3 * torch.randn(width))
        self.weight = nn.Parameter(torch.randn(width, num_classes) * (0.5 / math.sqrt(width)))
        self.bias = nn.Parameter(torch.zeros(num_classes))

    def forward(self, h: Tensor) -> Tensor:
        return (h @ self.weight + self.bias).log_softmax(-1)


class AnyOrderTransformer(Family):
    r"""A causal transformer told, with each value, where it stands and where the next one stands: one net for every order.

    .. math:: t_i = x_{o_{i-1}} W + S_{o_{i-1}} + P_{o_i}, \qquad p(x_{o_i} \mid x_{o_1}, \dots, x_{o_{i-1}}) \text{ from } \mathrm{blocks}(t_1, \dots, t_i)_i

    A joint for each order: its joints are not `coherent`. `marginal` and `given` are exact for the chain that puts the visible variables
    first, each row in its own order: `marginal(visible)` of a batch with another pattern in every row is one pass over the visible variables,
    never longer than that of `log_prob`. `par.fit` trains it in an order drawn for each row. Of an image, positions are sums of a row's and a column's.

    With `num_classes` the class y of a row is a variable too, read after every prefix: :math:`p(y \mid x_{o_1}, \dots, x_{o_i})` for i = 0 to n beside
    p(x), in one pass over 2 n + 1 tokens. The class is never told, so p(x) is as without; and p(x_visible) p(y | x_visible) is a joint of visible cells and
    class for each pattern. `posterior(x, visible)` is one pass over the visible variables, not one per class. `par.classify.AnyOrderClassifier` is the
    classifier it makes.

    Args:
        event_shape: An int or a tuple.
        width: Numbers per token.
        layers: Blocks.
        heads: Queries per token; they divide the width.
        output: `Bernoulli()` unless given.
        context_dim: Width of the context, 0 for none; every token holds it.
        order: Order of `log_prob` where none is asked for: None (raster scan), a permutation, or 'random'.
        key_heads: Keys and values per token; they divide the heads.
        dropout: Share of what each part of a block adds that is dropped in training.
        num_classes: How many classes are read, 0 for none.
        generator: For a random order.

    Raises:
        ValueError: Sizes that do not fit each other.

    Source:
        Pannatier, Courdier, Fleuret (2024), *sigma-GPTs: a new approach to autoregressive models*, ECML PKDD, section 2.1 (double
        positional encoding). The chain of visible variables first: Uria, Murray, Larochelle (2014), *A deep and tractable density estimator*, ICML.

    Example:
        >>> joint = AnyOrderTransformer(event_shape=(1, 4, 4), width=8, layers=1, heads=2)()
        >>> joint.marginal(torch.rand(5, 1, 4, 4) < 0.5).log_prob(torch.zeros(1, 4, 4)).shape
        torch.Size([5])
        >>> family = AnyOrderTransformer(event_shape=16, width=8, layers=1, heads=2, num_classes=3)
        >>> family.posterior(torch.zeros(5, 16), torch.rand(5, 16) < 0.5).probs.shape
        torch.Size([5, 3])
    """

    net_type = AnyOrderTransformerNet

    def __init__(self, event_shape: int | Sequence[int], width: int = 128, layers: int = 3, heads: int = 4, output: Output | None = None,
                 context_dim: int = 0, order: Tensor | Sequence[int] | str | None = None, *, key_heads: int = 1, dropout: float = 0.0,
                 num_classes: int = 0, generator: Generator | None = None) -> None:
        self._make(event_shape, output, context_dim, order, generator, width=width, layers=layers, heads=heads, key_heads=key_heads,
                   dropout=dropout)
        require(isinstance(num_classes, int) and num_classes >= 0, "num_classes must be 0 or more", num_classes)
        self.read_class = _ReadClass(width, num_classes) if num_classes else None

    @property
    def num_classes(self) -> int:
        """How many classes are read; 0: none."""
        return 0 if self.read_class is None else self.read_class.bias.numel()

    @property
    def num_parameters(self) -> int:
        """Free parameters, those that read the class included."""
        if self.read_class is None:
            return super().num_parameters
        net: Any = self._structure[0]
        # After the only variable nothing but the class is asked: then it alone reads all that tells of it.
        of_net = net.num_parameters if net.num_variables > 1 else sum(p.numel() for p in net.parameters())
        return of_net + sum(p.numel() for p in self.read_class.parameters())

    @classmethod
    def count_parameters(cls, *args: Any, **options: Any) -> int:
        asked = inspect.signature(cls.__init__).bind(None, *args, **options).arguments
        with torch.device("meta"):
            return cls(**{name: value for name, value in asked.items() if name not in ("self", "order", "generator")}).num_parameters

    def posterior(self, x: Array, visible: Array | None = None, context: Tensor | None = None) -> Categorical:
        """p(y | x_visible), a `Categorical` of batch shape `(N,)`: one pass over the visible variables, in the family's order.

        Args:
            x: `(N, *event)`; what is stored under a hidden cell is never read.
            visible: bool, broadcastable to `x`; True = seen. None: NaN hides a cell.
            context: `(N, context_dim)`.

        Raises:
            ValueError: The family reads no class (`num_classes`), or values or patterns that do not fit.
        """
        return Categorical(logits=self.log_posterior(x, visible, context))

    def log_posterior(self, x: Array, visible: Array | None = None, context: Tensor | None = None) -> Tensor:
        """Log p(y | x_visible), normalised, `(N, num_classes)`; as `posterior`."""
        reads, (rows, seen, context) = self._reads(), self._read(x, visible, context)
        order = visible_first(self._order(), seen)
        net: Any = self.net
        return reads(net.after_known(rows.gather(1, order), seen.sum(-1), reads.place, context, order))

    def prefix_log_posterior(self, x: Array, order: Tensor | None = None, context: Tensor | None = None) -> Tensor:
        """Log p(y | the first i variables of the order) for i from 0 to n, `(N, n + 1, num_classes)`, in one pass.

        Args:
            x: `(N, *event)`, complete.
            order: `(n,)` or `(N, n)`; None: the family's.
            context: `(N, context_dim)`.
        """
        reads, (rows, _, context) = self._reads(), self._read(x, torch.ones(self.event_shape, dtype=torch.bool), context)
        order = check_order(self._order() if order is None else order, rows.shape[1]).to(rows.device).expand(rows.shape)
        net: Any = self.net
        return reads(net.after_prefixes(rows.gather(1, order), reads.place, context, order)[1])

    def _reads(self) -> _ReadClass:
        if self.read_class is None:
            raise ValueError("this AnyOrderTransformer reads no class: make it with num_classes")
        return self.read_class

    def _order(self) -> Tensor:
        return torch.arange(math.prod(self.event_shape), device=self.net.head_bias.device) if self.order is None else self.order  # type: ignore[arg-type]

    def _read(self, x: Array, visible: Array | None, context: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Checked rows and what of them is seen, `(N, n)`, and the context."""
        x, found = read_rows(x, visible)
        joint = self(context)  # checks the context, and the values below
        require(isinstance(x, Tensor) and x.shape[1:] == self.event_shape, f"x must be rows of shape (N, {tuple(self.event_shape)})", x)
        seen = torch.ones_like(x, dtype=torch.bool) if found is None else check_visible(found, self.event_shape).to(x.device).expand(x.shape)
        return joint.check_value(x, seen).to(joint.dtype).flatten(1), seen.flatten(1), joint.context

    def training_log_prob(self, x: Tensor, context: Tensor | None = None, visible: Tensor | None = None, y: Tensor | None = None, *,
                          class_weight: float = 1.0) -> Tensor:
        r"""As of any family; with labels, log p(x_visible) in an order drawn for each row plus what the class is worth, in one pass, `(N,)`.

        .. math:: \log p(x) + \frac{w}{n + 1} \sum_{i=0}^{n} \log p(y \mid x_{o_1}, \dots, x_{o_i})

        For w = 1 that is log p(x, y), averaged over where the class stands among the variables. Of hidden cells nothing is read: then i runs over the
        visible variables.

        Args:
            x: `(N, *event)`.
            context: `(N, context_dim)`.
            visible: bool `(N, *event)`, True = seen.
            y: Classes, whole numbers `(N,)`; None: the class is not trained.
            class_weight: w.
        """
        if y is None:
            return super().training_log_prob(x, context, visible)
        reads, (rows, seen, context) = self._reads(), self._read(x, torch.ones(self.event_shape, dtype=torch.bool) if visible is None else visible, context)
        order = visible_first(random_orders(len(rows), rows.shape[1]).to(rows.device), seen)
        many, chain = seen.sum(-1, keepdim=True), rows.gather(1, order)
        net: Any = self.net
        raw, h = net.after_prefixes(chain, reads.place, context, order)
        place = torch.arange(rows.shape[1] + 1, device=rows.device)
        log_x = torch.where(place[:-1] < many, self.output.at(order).log_prob(raw, chain), 0).sum(-1)
        log_y = reads(h).gather(-1, y.reshape(-1, 1, 1).expand(-1, len(place), 1)).squeeze(-1)
        return log_x + class_weight * torch.where(place <= many, log_y, 0).sum(-1) / (many.squeeze(-1) + 1)
