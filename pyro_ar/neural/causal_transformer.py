r"""`CausalTransformer`: each variable is predicted by attention to those before it."""

from collections.abc import Sequence
from typing import Any

from torch import Generator, Tensor

from pyro_ar.neural.family import Family
from pyro_ar.neural.layers.attention import Blocks
from pyro_ar.neural.layers.tokens import TokenNet
from pyro_ar.outputs import Output

__all__ = ["CausalTransformer", "CausalTransformerNet"]


class CausalTransformerNet(TokenNet):
    r"""Blocks of a transformer over tokens, see `TokenNet` for what a token holds and `Blocks` for f.

    A step computes one token, and keeps its keys and values; a prefill computes its tokens in one pass.
    """

    def __init__(self, event_shape: int | Sequence[int], output: Output, context_dim: int = 0, *, width: int = 128, layers: int = 3,
                 heads: int = 4, key_heads: int = 1, dropout: float = 0.0) -> None:
        super().__init__(event_shape, output, context_dim, width=width)
        self.blocks = Blocks(width, layers, heads, key_heads, dropout)

    def _unread(self) -> int:
        return super()._unread() + (self.blocks.num_scores if self.num_variables == 1 else 0)

    def memory(self, rows: int) -> Any:
        return self.blocks.caches(rows, self.num_variables)

    def through(self, tokens: Tensor, memory: Any = None, done: int = 0) -> Tensor:
        return self.blocks(tokens, memory, done)

    def inside(self, tokens: Tensor) -> Tensor:
        """The stream between the blocks of the lower and those of the upper half, where Chen et al. (2020) found the best features."""
        return self.blocks.inside(tokens)


class CausalTransformer(Family):
    r"""A transformer with causal attention over the variables, in the order of the chain; one pass for all conditionals.

    .. math:: t_i = x_{i-1} W + P_i, \qquad raw_i = \mathrm{blocks}(t_1, \dots, t_i)_i\, V + b_i

    In each block every head of a token weighs the tokens up to its own by softmax(q k / sqrt(d)). Sampling keeps the keys and values of
    earlier tokens, so that a step computes one token. With one key for all queries (`key_heads` = 1, the default)
    a step reads `heads` times less memory than with a key for each (`key_heads = heads`), as which it is about as good.

    Args:
        event_shape: An int or a tuple.
        width: Numbers per token.
        layers: Blocks.
        heads: Queries per token; they divide the width.
        key_heads: Keys and values per token; they divide the heads.
        dropout: Share of what each part of a block adds that is dropped in training.
        output: `Bernoulli()` unless given.
        context_dim: Width of the context, 0 for none; every token holds it.
        order: None (raster scan), a permutation of the flattened event, or 'random'.
        generator: For a random order.

    Raises:
        ValueError: Sizes that do not fit each other.

    Source:
        Vaswani et al. (2017), *Attention is all you need*, NeurIPS, eq. 1. Over pixels: Chen et al. (2020), *Generative pretraining
        from pixels*, ICML. One key for all queries: Shazeer (2019), *Fast transformer decoding: one write-head is all you need*.

    Example:
        >>> CausalTransformer(event_shape=(1, 4, 4), width=8, layers=2, heads=2)().event_shape
        torch.Size([1, 4, 4])
    """

    net_type = CausalTransformerNet

    def __init__(self, event_shape: int | Sequence[int], width: int = 128, layers: int = 3, heads: int = 4, output: Output | None = None,
                 context_dim: int = 0, order: Tensor | Sequence[int] | str | None = None, *, key_heads: int = 1, dropout: float = 0.0,
                 generator: Generator | None = None) -> None:
        self._make(event_shape, output, context_dim, order, generator, width=width, layers=layers, heads=heads, key_heads=key_heads,
                   dropout=dropout)
