r"""`AnyOrderTransformer`: the variables in any order in one causal pass."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

from torch import Generator, Tensor, nn

from pyro_ar.neural.family import Family
from pyro_ar.neural.layers.attention import Blocks
from pyro_ar.neural.layers.tokens import TokenNet
from pyro_ar.neural.net import AnyOrderNet
from pyro_ar.outputs import Output

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


class AnyOrderTransformer(Family):
    r"""A causal transformer told, with each value, where it stands and where the next one stands: one net for every order.

    .. math:: t_i = x_{o_{i-1}} W + S_{o_{i-1}} + P_{o_i}, \qquad p(x_{o_i} \mid x_{o_1}, \dots, x_{o_{i-1}}) \text{ from } \mathrm{blocks}(t_1, \dots, t_i)_i

    A joint for each order: its joints are not `coherent`. `marginal` and `given` are exact for the chain that puts the visible variables
    first, each row in its own order: `marginal(visible)` of a batch with another pattern in every row is one pass over the visible variables,
    never longer than that of `log_prob`. `par.fit` trains it in an order drawn for each row. Of an image, positions are sums of a row's and a column's.

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
    """

    net_type = AnyOrderTransformerNet

    def __init__(self, event_shape: int | Sequence[int], width: int = 128, layers: int = 3, heads: int = 4, output: Output | None = None,
                 context_dim: int = 0, order: Tensor | Sequence[int] | str | None = None, *, key_heads: int = 1, dropout: float = 0.0,
                 generator: Generator | None = None) -> None:
        self._make(event_shape, output, context_dim, order, generator, width=width, layers=layers, heads=heads, key_heads=key_heads,
                   dropout=dropout)
