r"""The columns of a fit, by the kind of their output: what a row shows, how likely each hidden state makes it, and the closed forms that
turn expected counts into emissions.

Columns of a kind lie along dimension 0, hidden states along dimension 1, rows along the last: `(m, K, N)`.
"""

import abc
import math

from collections.abc import Callable

import torch
import torch.nn.functional as F

from torch import Tensor

from pyro_ar.latent.emissions import MAX_LISTED, state_tables
from pyro_ar.outputs import Bernoulli, Categorical, Constant, Normal, Output
from pyro_ar.outputs.base import UNIT

__all__ = ["LEAST", "Columns", "columns_of"]

LEAST = 1e-30  # no fitted probability is below it: products of matrices in single precision lose nothing then
STEPS = 5  # of gradient ascent in place of a closed form
HALVINGS = 12


class Columns(abc.ABC):
    """Columns of one output and their emissions in one tree.

    Attributes:
        raw: `(m, K, R)`, what the fit moves.
    """

    def __init__(self, output: Output, raw: Tensor) -> None:
        self.output, self.raw = output, raw

    @abc.abstractmethod
    def features(self, x: Tensor, seen: Tensor | None) -> Tensor:
        """What is needed of rows `x`, `seen` `(m, N)`: `(m, S, N)`, zero where hidden."""

    @abc.abstractmethod
    def log_p(self, features: Tensor) -> Tensor:
        """Log p(x | state), `(m, K, N)`."""

    def counts(self, features: Tensor, posterior: Tensor) -> Tensor:
        """Expected sufficient statistics, `(m, S, K)`."""
        return torch.bmm(features, posterior.mT)

    @abc.abstractmethod
    def maximise(self, counts: Tensor, prior: "Columns", strength: float) -> None:
        """Set `raw` to the maximum of the expected log-likelihood and `strength` rows as `prior` expects them."""

    @abc.abstractmethod
    def score(self, raw: Tensor, counts: Tensor) -> Tensor:
        """Expected log-likelihood of each column at `raw`, `(m)`, from expected statistics, up to a constant."""

    @abc.abstractmethod
    def expected(self) -> Tensor:
        """The statistics that one row has on average in each state, `(m, S, K)`."""


class _Listed(Columns):
    """Discrete columns of few states: indicators of the states, and their log-probabilities."""

    def __init__(self, output: Output, raw: Tensor) -> None:
        super().__init__(output, raw)
        self._tables: Tensor | None = None

    @property
    def tables(self) -> Tensor:
        """Log-probabilities, `(m, S, K)`."""
        if self._tables is None:
            self._tables = state_tables(self.output, self.raw).mT.contiguous()
        return self._tables

    def features(self, x: Tensor, seen: Tensor | None) -> Tensor:
        states = torch.arange(self.output.num_states or 0, dtype=x.dtype, device=x.device)
        here = x.unsqueeze(1) == states[:, None]
        return (here if seen is None else here & seen.unsqueeze(1)).to(self.raw.dtype)

    def log_p(self, features: Tensor) -> Tensor:
        return torch.bmm(self.tables.mT, features)

    def expected(self) -> Tensor:
        return self.tables.exp()

    def maximise(self, counts: Tensor, prior: Columns, strength: float) -> None:
        whole = counts + strength * prior.expected() if strength else counts
        if isinstance(self.output, Bernoulli | Categorical | Constant):
            share = whole / whole.sum(1, keepdim=True).clamp(min=torch.finfo(whole.dtype).tiny)
            logs = torch.where(whole.sum(1, keepdim=True) > 0, share, 1 / share.shape[1]).clamp(min=LEAST).log()
            self.raw = (logs[:, 1:] - logs[:, :1]).mT.contiguous()
        else:
            self.raw = _ascend(self.raw, lambda raw: self.score(raw, whole))
        self._tables = None

    def score(self, raw: Tensor, counts: Tensor) -> Tensor:
        return (counts * state_tables(self.output, raw).mT).sum((1, 2))


class _Normals(Columns):
    """Real columns of normal emissions: counts, sums and sums of squares."""

    output: Normal

    def features(self, x: Tensor, seen: Tensor | None) -> Tensor:
        one = torch.ones_like(x) if seen is None else seen.to(x.dtype)
        return torch.stack([one, x * one, x.square() * one], 1)

    def _loc_scale(self, raw: Tensor | None = None) -> tuple[Tensor, Tensor]:
        loc, scale = (self.raw if raw is None else raw).unbind(-1)
        return loc, F.softplus(scale + UNIT) + self.output.min_scale

    def log_p(self, features: Tensor) -> Tensor:
        loc, scale = (t.unsqueeze(-1) for t in self._loc_scale())
        one, x = features[:, :1], features[:, 1:2]
        return (-((x - loc) / scale).square() / 2 - scale.log() - math.log(2 * math.pi) / 2) * one

    def score(self, raw: Tensor, counts: Tensor) -> Tensor:
        loc, scale = self._loc_scale(raw)
        rows, total, square = counts.unbind(1)
        return (-(square - 2 * loc * total + loc.square() * rows) / scale.square() / 2 - rows * scale.log()).sum(-1)

    def expected(self) -> Tensor:
        loc, scale = self._loc_scale()
        return torch.stack([torch.ones_like(loc), loc, loc.square() + scale.square()], 1)

    def maximise(self, counts: Tensor, prior: Columns, strength: float) -> None:
        whole = counts + strength * prior.expected() if strength else counts
        rows, total, square = whole.unbind(1)
        before, spread = self._loc_scale()
        some = rows > LEAST
        rows = rows.clamp(min=LEAST)
        loc = torch.where(some, total / rows, before)
        least = self.output.min_scale * (1 + 1e-6)
        scale = torch.where(some, (square / rows - loc.square()).clamp(min=0).sqrt(), spread).clamp(min=least) - self.output.min_scale
        self.raw = torch.stack([loc, torch.where(scale > 20, scale, torch.expm1(scale.clamp(max=20)).log()) - UNIT], -1)


class _ByGradient(Columns):
    """Columns of any other output: the expected log-likelihood has no statistics, so the rows themselves are kept until the next step."""

    def __init__(self, output: Output, raw: Tensor) -> None:
        super().__init__(output, raw)
        self._rows: list[tuple[Tensor, Tensor]] = []

    def features(self, x: Tensor, seen: Tensor | None) -> Tensor:
        one = torch.ones_like(x) if seen is None else seen.to(x.dtype)
        return torch.stack([one, torch.where(one > 0, x, 0)], 1)

    def log_p(self, features: Tensor) -> Tensor:
        return self._each(self.raw, features)

    def score(self, raw: Tensor, counts: Tensor) -> Tensor:
        rows, self._rows = self._rows, []
        return sum(((self._each(raw, f) * p).sum((1, 2)) for f, p in rows), raw.new_zeros(len(raw)))

    def _each(self, raw: Tensor, features: Tensor) -> Tensor:
        return self.output.log_prob(raw.unsqueeze(-2), features[:, 1:2]) * features[:, :1]

    def counts(self, features: Tensor, posterior: Tensor) -> Tensor:
        self._rows.append((features, posterior.clone()))
        return super().counts(features, posterior)

    def expected(self) -> Tensor:
        return self.raw.new_zeros(len(self.raw), 2, self.raw.shape[1])

    def maximise(self, counts: Tensor, prior: Columns, strength: float) -> None:
        rows, self._rows = self._rows, []

        def expected_log_p(raw: Tensor) -> Tensor:
            # A step towards the prior's raw parameters stands for rows of it, of which there are no closed forms.
            score = sum(((self._each(raw, f) * p).sum((1, 2)) for f, p in rows), raw.new_zeros(len(raw)))
            return score - strength * (raw - prior.raw).square().sum((1, 2)) / 2 if strength else score

        if rows:
            self.raw = _ascend(self.raw, expected_log_p)


def columns_of(output: Output, raw: Tensor) -> Columns:
    """The columns of this kind, with emissions `(m, K, R)`."""
    if output.num_states is not None and output.num_states <= MAX_LISTED:
        return _Listed(output, raw)
    return (_Normals if isinstance(output, Normal) else _ByGradient)(output, raw)


def _ascend(raw: Tensor, score: Callable[[Tensor], Tensor]) -> Tensor:
    """Some steps up the scores `(m)` of columns that do not depend on each other; none is ever lowered."""
    size = torch.full((len(raw), 1, 1), 0.5, dtype=raw.dtype, device=raw.device)
    for _ in range(STEPS):
        leaf = raw.detach().requires_grad_()
        with torch.enable_grad():
            now = score(leaf)
            (slope,) = torch.autograd.grad(now.sum(), leaf)
        now = now.detach()
        slope = slope / slope.abs().amax((1, 2), keepdim=True).clamp(min=torch.finfo(raw.dtype).tiny)
        open_, new = torch.ones_like(now, dtype=torch.bool), raw
        for _ in range(HALVINGS):
            tried = torch.where(open_[:, None, None], raw + size * slope, new)
            better = score(tried).detach() >= now
            new = torch.where((open_ & better)[:, None, None], tried, new)
            open_ = open_ & ~better
            if not bool(open_.any()):
                break
            size = torch.where(open_[:, None, None], size / 2, size)
        raw, size = new, size * 1.5
    return raw
