r"""Causal self-attention and the block of a transformer."""

import math

from typing import Any

import torch
import torch.nn.functional as F

from torch import Tensor, nn
from torch.autograd import forward_ad

from pyro_ar.checks import require
from pyro_ar.transforms import transforms_active

__all__ = ["Blocks", "Norm", "attend", "plain_attend"]

Cache = tuple[Tensor, Tensor]


class Blocks(nn.Module):
    r"""Blocks of a transformer, the norm before each part, and a norm behind them all.

    .. math:: h \leftarrow h + \mathrm{attention}(\mathrm{norm}(h)), \qquad h \leftarrow h + \mathrm{mlp}(\mathrm{norm}(h))

    Queries and keys have no biases: that of a key adds the same to all scores of a query, and cancels.

    Args:
        width: Numbers per token.
        layers: Blocks.
        heads: Queries per token; they divide the width.
        key_heads: Keys and values per token, each for heads / key_heads queries.
        dropout: Share of what each part adds that is dropped in training.

    Source:
        Vaswani et al. (2017), *Attention is all you need*, NeurIPS; the norm before: Xiong et al. (2020), *On layer normalization in the
        transformer architecture*, ICML; fewer keys than queries: Ainslie et al. (2023), *GQA*, EMNLP.
    """

    def __init__(self, width: int, layers: int, heads: int, key_heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        require(isinstance(layers, int) and layers > 0, "layers must be a positive int", layers)
        require(isinstance(heads, int) and heads > 0 and width % heads == 0, f"heads must divide the width, {width}", heads)
        require(isinstance(key_heads, int) and key_heads > 0 and heads % key_heads == 0, f"key_heads must divide the heads, {heads}", key_heads)
        require(0 <= dropout < 1, "dropout must be from 0 to below 1", dropout)
        self.key_heads, self.each = key_heads, width // heads
        self.blocks = nn.ModuleList(_Block(width, heads, key_heads, layers, dropout) for _ in range(layers))
        self.norm = Norm(width)

    def forward(self, h: Tensor, caches: list[Cache] | None = None, done: int = 0, sees: Tensor | None = None) -> Tensor:
        """`(rows, m, width)` to the same; caches that hold `done` tokens take these in place; `sees` as in `attend`, None: causal."""
        for i, block in enumerate(self.blocks):
            h = block(h, None if caches is None else caches[i], done if sees is None else sees)
        return self.norm(h)

    def inside(self, h: Tensor) -> Tensor:
        """The stream behind half of the blocks, the middle one included, causal."""
        for block in list(self.blocks)[:(len(self.blocks) + 1) // 2]:
            h = block(h, None, 0)
        return h

    def caches(self, rows: int, n: int) -> list[Cache]:
        """Room for the keys and values of n tokens, per block, each `(rows, key_heads, n, width / heads)`."""
        shape = rows, self.key_heads, n, self.each
        return [(self.norm.weight.new_zeros(shape), self.norm.weight.new_zeros(shape)) for _ in self.blocks]

    @property
    def num_scores(self) -> int:
        """Weights that scores alone read: they reach no answer where there is one token only."""
        return sum(p.numel() for name, p in self.named_parameters() if name.endswith(("query.weight", "key.weight")))


class Norm(nn.LayerNorm):
    """`torch.nn.LayerNorm`, in plain operations inside `torch.func`, where second derivatives of the fused one by its weights are wrong (torch 2.13)."""

    def forward(self, h: Tensor) -> Tensor:
        if not transforms_active():
            return super().forward(h)
        apart = h - h.mean(-1, keepdim=True)
        return apart * (apart.square().mean(-1, keepdim=True) + self.eps).rsqrt() * self.weight + self.bias


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, key_heads: int, layers: int, dropout: float) -> None:
        super().__init__()
        inner = width // heads * key_heads
        self.heads, self.key_heads, self.dropout = heads, key_heads, dropout
        self.norm, self.mlp_norm = Norm(width), Norm(width)
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, inner, bias=False)
        self.value = nn.Linear(width, inner, bias=False)
        self.out = nn.Linear(width, width)
        self.wide = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)
        for name, p in self.named_parameters():
            if p.ndim == 2:
                # What blocks add to the stream sums up to the size of one.
                added = 2 * layers if name.startswith(("out", "narrow")) else 1
                nn.init.normal_(p, std=1 / math.sqrt(p.shape[1] * added))
            elif "norm" not in name:
                nn.init.zeros_(p)

    def forward(self, h: Tensor, cache: Cache | None, sees: Tensor | int) -> Tensor:
        h = h + self._dropped(self.out(self._attention(self.norm(h), cache, sees)))
        return h + self._dropped(self.narrow(F.gelu(self.wide(self.mlp_norm(h)))))

    def _dropped(self, h: Tensor) -> Tensor:
        return F.dropout(h, self.dropout, self.training) if self.dropout else h

    def _attention(self, h: Tensor, cache: Cache | None, sees: Tensor | int) -> Tensor:
        m = h.shape[1]
        q = self.query(h).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = (part(h).unflatten(-1, (self.key_heads, -1)).transpose(1, 2) for part in (self.key, self.value))
        if cache is not None and isinstance(sees, int):
            end = sees + m
            for kept, new in zip(cache, (k, v), strict=True):
                kept[:, :, sees:end] = new
            k, v = (kept[:, :, :end] for kept in cache)
        group = self.heads // self.key_heads
        alone = m == 1 and isinstance(sees, int)  # the last token sees all
        if alone and group > 1:  # the queries of a group see the same keys: one product
            return attend(q.squeeze(2).unflatten(1, (self.key_heads, group)), k, v).flatten(1).unsqueeze(1)
        k, v = (t.unsqueeze(2).expand(-1, -1, group, -1, -1).flatten(1, 2) for t in (k, v))
        return attend(q, k, v, None if alone else sees).transpose(1, 2).flatten(2)


def attend(q: Tensor, k: Tensor, v: Tensor, sees: Tensor | int | None = None) -> Tensor:
    r"""softmax(q k^T / sqrt(d)) v, `(*L, m, d)`, by torch's fused kernels, which keep no scores.

    They know neither `torch.func` nor second derivatives: there it is `plain_attend`.

    Args:
        q: `(*L, m, d)`.
        k: `(*L, t, d)`.
        v: `(*L, t, d)`.
        sees: Query i sees the keys up to `sees + i`; or those where a bool tensor that broadcasts to `(*L, m, t)` is True; None: all.
    """
    if transforms_active() or forward_ad._current_level >= 0:
        return plain_attend(q, k, v, sees)
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
        return _Attend.apply(q, k, v, sees)
    return _fused(q, k, v, sees)


def plain_attend(q: Tensor, k: Tensor, v: Tensor, sees: Tensor | int | None = None) -> Tensor:
    """`attend` in plain operations: differentiable any number of times, and by `torch.func`."""
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    if sees is not None:
        scores = scores.masked_fill(~_seen(q, k, sees), -math.inf)
    return scores.softmax(-1) @ v


def _seen(q: Tensor, k: Tensor, sees: Tensor | int) -> Tensor:
    if isinstance(sees, Tensor):
        return sees
    query, key = (torch.arange(t.shape[-2], device=q.device) for t in (q, k))
    return key <= sees + query[:, None]


def _fused(q: Tensor, k: Tensor, v: Tensor, sees: Tensor | int | None) -> Tensor:
    if sees is None or (isinstance(sees, int) and sees == 0):
        return F.scaled_dot_product_attention(q, k, v, is_causal=sees is not None)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=_seen(q, k, sees))


class _Attend(torch.autograd.Function):
    """The fused kernel with its own backward pass, and the plain form where the gradient itself must be differentiable."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, sees: Tensor | int | None) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.sees = sees
        with torch.enable_grad():
            ctx.inner = q, k, v = [t.detach().requires_grad_() for t in (q, k, v)]
            ctx.out = _fused(q, k, v, sees)
        return ctx.out.detach()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            given, needed = ctx.saved_tensors, ctx.needs_input_grad[:3]
            q, k, v = given
            out = plain_attend(q, k, v, ctx.sees)
            got = iter(torch.autograd.grad(out, [t for t, n in zip(given, needed, strict=True) if n], grad, create_graph=True))
            return *(next(got) if n else None for n in needed), None
        return *torch.autograd.grad(ctx.out, ctx.inner, grad, retain_graph=True), None
