r"""`MixtureChain`: a family on levels that starts as a fitted mixture of Student-t, and learns what the mixture misses."""

import math

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from torch import Tensor, nn

from pyro_ar.budget import CACHE, at_once
from pyro_ar.checks import require
from pyro_ar.neural.family import Family
from pyro_ar.neural.net import AnyOrderNet
from pyro_ar.outputs import Categorical
from pyro_ar.rising import log_rising_over_power

__all__ = ["MixtureChain", "MixtureChainNet"]

LEAST = 1e-20  # of the probability of a level before the correction: a row far out costs no more than 46 nats per cell
FEATURES = 4  # of a level


class MixtureChainNet(AnyOrderNet):
    r"""For each variable, in any order, the mixture's conditional density at the scores of its levels, corrected.

    .. math:: p(x_i = k \mid x_{<i}, c) \propto q_{ik}^{\exp \tau_i}
              \exp\left(a_{ik} + \textstyle\sum_f \phi_{if}(k)\, g_{if}\right), \quad
              q_{ik} \propto \Delta_{ik} \sum_m r_m(x_{<i})\, t(z_{ik} \mid x_{<i}, m)

    z are the scores of the levels and Δ the widths of their intervals; r are the exact responsibilities of the components of class c,
    and the conditional of each is Student-t, out of one Cholesky factor per row and component. :math:`\phi` holds z, its square, and marks for
    the first and last level; :math:`g` and :math:`\tau` come from a hidden layer that reads the scores of the variables before i, which ones they
    are, and the class. **All that is learnt starts at zero**: an untrained net is the mixture itself, priced on levels.

    Shapes:
        - `table` a `(n, K)`, `input_weight` and `known_weight` `(n, hidden)`, `hidden_bias` `(hidden,)`, `hidden_context` `(C, hidden)`,
          `output_weight` `(n, hidden, 5)`. The mixture is in buffers: it is not trained.
        - `context` `(rows, C)` is one-hot, absent where C is 1.

    Args:
        log_weights: `(C, M)`, normalised or not.
        df: Degrees of freedom, a number or `(C, M)`.
        loc: `(C, M, n)`.
        scale_matrix: `(C, M, n, n)`.
        scores: z of the levels, increasing, `(n, K)`.
        event_shape: None: `(n,)`.
        hidden: Units.

    Raises:
        ValueError: Shapes that do not fit, or scores that do not increase.
    """

    log_weights: Tensor
    df: Tensor
    loc: Tensor
    scale_matrix: Tensor
    scores: Tensor

    def __init__(self, log_weights: Tensor, df: Tensor | float, loc: Tensor, scale_matrix: Tensor, scores: Tensor, *,
                 event_shape: int | Sequence[int] | None = None, hidden: int = 48) -> None:
        require(log_weights.ndim == 2 and scores.ndim == 2, "log_weights must be (C, M) and scores (n, K)", log_weights, scores)
        (C, M), (n, K) = log_weights.shape, scores.shape
        require(loc.shape == (C, M, n) and scale_matrix.shape == (C, M, n, n),
                f"loc must be {(C, M, n)} and scale_matrix {(C, M, n, n)}", loc, scale_matrix)
        require(K >= 2 and bool((scores.diff() > 0).all()), "scores must increase over two levels or more", scores)
        super().__init__(n if event_shape is None else event_shape, Categorical(K, "level"), C if C > 1 else 0)
        require(self.num_variables == n, f"event_shape must have {n} cells", tuple(self.event_shape))
        require(isinstance(hidden, int) and hidden > 0, "hidden must be a positive int", hidden)
        self.hidden = hidden
        df = torch.as_tensor(df).to(loc).expand(C, M).clone()
        for name, t in {"log_weights": log_weights, "df": df, "loc": loc, "scale_matrix": scale_matrix, "scores": scores}.items():
            self.register_buffer(name, t.detach().clone())
        dtype = loc.dtype
        self.table = nn.Parameter(torch.zeros(n, K, dtype=dtype))
        self.input_weight = nn.Parameter(torch.randn(n, hidden, dtype=dtype) / math.sqrt(n))
        self.known_weight = nn.Parameter(torch.randn(n, hidden, dtype=dtype) * (0.5 / math.sqrt(n)))
        self.hidden_bias = nn.Parameter(torch.zeros(hidden, dtype=dtype))
        self.hidden_context = nn.Parameter(torch.randn(C, hidden, dtype=dtype) * 0.5) if C > 1 else None
        self.output_weight = nn.Parameter(torch.zeros(n, hidden, FEATURES + 1, dtype=dtype))

    @property
    def num_parameters(self) -> int:
        C, M, n = self.loc.shape
        return C * (M - 1 + M * (n + n * (n + 1) // 2)) + super().num_parameters

    def forward(self, x: Tensor, context: Tensor | None = None, order: Tensor | None = None) -> Tensor:
        order = torch.arange(x.shape[1], device=x.device).expand(x.shape) if order is None else order
        log_p = self.corrected(self.base(x, context, order), x, context, order)
        return log_p[..., 1:] - log_p[..., :1]

    def corrected(self, log_q: Tensor, x: Tensor, context: Tensor | None, order: Tensor, *, dropout: float = 0.0) -> Tensor:
        """From `base` the log-probabilities of all levels, up to a constant, `(rows, m, K)`."""
        z = self._score(x, order).unsqueeze(-1)
        a = self.hidden_bias + _before(self.input_weight[order] * z + self.known_weight[order], 1)
        if context is not None and self.hidden_context is not None:
            a = a + (context @ self.hidden_context).unsqueeze(1)
        h = F.dropout(torch.tanh(a), dropout)
        g = torch.einsum("rmh,rmhf->rmf", h, self.output_weight[order])
        phi = self._features()[order]
        return log_q * g[..., -1:].exp() + self.table[order] + torch.einsum("rmf,rmkf->rmk", g[..., :-1], phi)

    def _features(self) -> Tensor:
        """What the levels of each variable are to the correction, `(n, K, FEATURES)`."""
        z = self.scores.to(self.table)
        marks = torch.zeros_like(z[..., None].expand(*z.shape, 2))
        marks[:, 0, 0] = marks[:, -1, 1] = 1
        phi = torch.cat([torch.stack([z, z.square() - 1], -1), marks], -1)
        return phi - phi.mean(1, keepdim=True)

    @torch.no_grad()
    def base(self, x: Tensor, context: Tensor | None, order: Tensor) -> Tensor:
        """Log q: what the mixture says of the levels of each variable given those before it, `(rows, m, K)`."""
        label = order.new_zeros(len(x)) if context is None else context.argmax(-1)
        rows = at_once(self.loc.shape[1] * order.shape[1] * max(order.shape[1], self.scores.shape[1]), CACHE // 2)
        pieces = zip(x.split(rows), label.split(rows), order.split(rows), strict=True)
        return torch.cat([self._levels(*piece) for piece in pieces])

    def _score(self, x: Tensor, order: Tensor) -> Tensor:
        return self.scores.to(self.table)[order, x.long()]

    def _levels(self, x: Tensor, label: Tensor, order: Tensor) -> Tensor:
        z, scores = self._score(x, order).unsqueeze(1), self.scores.to(self.table)
        mean, scale, df = self._student(z, label, order)
        half = (df + 1) / 2
        norm = log_rising_over_power(df / 2, df.new_tensor(0.5)) - 0.5 * math.log(2 * math.pi) - scale.log()
        inverse = 1 / (scale * df.sqrt())
        seen = norm - half * torch.log1p(((z - mean) * inverse).square())
        log_r = (self.log_weights.to(scores)[label].unsqueeze(-1) + _before(seen, 2)).log_softmax(1) + norm
        levels = scores[order]
        u = (levels.unsqueeze(1) - mean.unsqueeze(-1)) * inverse.unsqueeze(-1)
        log_t = log_r.unsqueeze(-1) - half.unsqueeze(-1) * torch.log1p(u.square())
        # One logarithm per level, not one per component: half the time of logsumexp.
        t = (log_t - log_t.amax((1, 3), keepdim=True)).exp().sum(1) * _widths(levels)
        return (t / t.sum(-1, keepdim=True)).clamp(min=LEAST).log()

    def _student(self, z: Tensor, label: Tensor, order: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Centre, scale and degrees of freedom of each variable given those before it, `(rows, M, m)`."""
        loc, matrix = self.loc.to(z), self.scale_matrix.to(z)
        component = torch.arange(loc.shape[1], device=z.device)[:, None]
        mu = loc[label[:, None, None], component, order.unsqueeze(1)]
        block = matrix[label[:, None, None, None], component.unsqueeze(-1), order[:, None, :, None], order[:, None, None, :]]
        L = torch.linalg.cholesky(block)
        e = torch.linalg.solve_triangular(L, (z - mu).unsqueeze(-1), upper=False)
        df = self.df.to(z)[label].unsqueeze(-1)
        later = df + torch.arange(z.shape[-1], device=z.device)
        stretch = (df + _before(e.squeeze(-1).square(), 2)) / later
        return mu + (L.tril(-1) @ e).squeeze(-1), L.diagonal(dim1=-2, dim2=-1) * stretch.sqrt(), later

    def extra_repr(self) -> str:
        C, M, n = self.loc.shape
        return f"{C} classes of {M} components over {n} variables, hidden={self.hidden}"


def _before(t: Tensor, dim: int) -> Tensor:
    """Sums of what stands before each place; the place itself never enters, not even by rounding."""
    return torch.cat([torch.zeros_like(t.narrow(dim, 0, min(1, t.shape[dim]))), t.cumsum(dim).narrow(dim, 0, max(t.shape[dim] - 1, 0))], dim)


def _widths(levels: Tensor) -> Tensor:
    """The interval of each level: half the way to its neighbours, and as far on the outer side."""
    gap = levels.diff()
    return torch.cat([gap[..., :1], (gap[..., 1:] + gap[..., :-1]) / 2, gap[..., -1:]], -1)


class MixtureChain(Family):
    r"""A chain over levels, in any order, whose conditionals are those of a mixture of Student-t per class, corrected by a net.

    A mixture of densities prices grey levels wrongly: a pixel that is always 0 in a class gives it a density without bound, where its
    probability is at most one. The chain takes the mixture's exact conditional at every level and normalises over
    the levels; the correction (`MixtureChainNet`) starts at zero. Like `OrderlessNADE` it is one joint per order, not `coherent`.

    A correction trained on the rows that the mixture was fitted to learns the wrong thing, because the mixture is too sure of them:
    `MixtureChainClassifier` trains it on cross-fitted conditionals. A pass costs a Cholesky factor per row and component.

    Shapes:
        As `MixtureChainNet`; the context is the one-hot class, absent for one class.

    Args:
        log_weights: `(C, M)`.
        df: Degrees of freedom.
        loc: `(C, M, n)`.
        scale_matrix: `(C, M, n, n)`.
        scores: Of the levels, `(n, K)`.
        event_shape: None: `(n,)`.
        hidden: Units of the correction.
        order: As in `OrderlessNADE`.

    Raises:
        ValueError: Shapes that do not fit.

    Example:
        >>> import torch
        >>> scores = torch.tensor([[-1.0, 0.0, 1.0]]).expand(2, 3)
        >>> joint = MixtureChain(torch.zeros(1, 1), 5.0, torch.zeros(1, 1, 2), torch.eye(2).expand(1, 1, 2, 2), scores)()
        >>> joint.marginal(torch.tensor([True, False])).log_prob(torch.tensor([1.0, 0.0])).exp().detach()
        tensor(0.4635)
    """

    def __init__(self, log_weights: Tensor, df: Tensor | float, loc: Tensor, scale_matrix: Tensor, scores: Tensor, *,
                 event_shape: int | Sequence[int] | None = None, hidden: int = 48,
                 order: Tensor | Sequence[int] | str | None = None) -> None:
        net = MixtureChainNet(log_weights, df, loc, scale_matrix, scores, event_shape=event_shape, hidden=hidden)
        super().__init__(net, net.output, order=order)
