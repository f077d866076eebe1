r"""Particles along a chain: hidden variables are drawn, visible ones weigh, and particles that explain little are replaced.

This is sequential Monte Carlo (Doucet, Johansen 2009, *A tutorial on particle filtering and smoothing*). Particles form islands that do not
know of each other, so that the spread of the islands' estimates tells the error of their mean. A look-ahead twists draws and
weights by what another joint says of the visible variables that are still to come; it changes the spread, never the expectation.
"""

import contextlib
import math

from dataclasses import dataclass
from typing import Any

import torch

from torch import Size, Tensor

from pyro_ar.joint import Joint
from pyro_ar.neural.autoregressive import Autoregressive
from pyro_ar.transforms import transforms_active

__all__ = ["Cloud", "run_particles"]

FEWEST = 0.5  # share of an island's particles below which their effective number makes it resample


@dataclass(frozen=True)
class Cloud:
    """Weighted particles.

    Attributes:
        x: `(islands, particles, *L, n)` in chain order; beyond the last visible variable drawn only where that was asked for.
        log_weight: `(islands, particles, *L)`; the mean of `exp` over both is unbiased for p(x_visible).
    """

    x: Tensor
    log_weight: Tensor


def run_particles(chain: Autoregressive, x: Tensor, visible: Tensor, islands: int, particles: int, *, look_ahead: Joint | None = None,
                  complete: bool = False) -> Cloud:
    """Weighted particles of the hidden variables.

    Args:
        chain: Whose weights have no draws where there is a look-ahead.
        x: `(*L, n)` in chain order, all of the chain's batch dimensions written out.
        visible: As `x`.
        islands: How many.
        particles: Of each.
        look_ahead: A joint over the same event, whose marginals are exact for every pattern; its batch shape broadcasts to L.
        complete: Draw what comes after the last visible variable too.
    """
    left, n = x.shape[:-1], x.shape[-1]
    shape = Size((islands, particles, *left))
    known = visible.reshape(-1, n).all(0).tolist()
    first = next((i for i, all_known in enumerate(known) if not all_known), n)
    seen = visible.reshape(-1, n).any(0).nonzero()
    end = n if complete else int(seen.max()) + 1 if len(seen) else 0
    order = None if chain.coherent else chain.order
    values = {"x": x.to(chain.dtype), "visible": visible, "context": chain.context, "order": order,
              "rows": torch.zeros((), device=chain.device).expand((*shape, 1))}
    values = {name: None if t is None else t.expand(shape + t.shape[-1:]) for name, t in values.items()}
    look = None if look_ahead is None else _LookAhead(chain, look_ahead, visible, shape)

    def walk(net: Any, values: dict[str, Tensor]) -> Tensor:
        return _Walk(chain, net, values, look).run(first, end)

    with contextlib.nullcontext() if transforms_active() else torch.inference_mode():
        packed = chain.over_draws(walk, values, map_all=True).clone()
    start = chain.conditionals_in_chain(x[..., :first]).sum(-1) if first else x.new_zeros(left)
    return Cloud(packed[..., :-1], packed[..., -1] + start)


class _LookAhead:
    """What another joint says of the visible variables to come."""

    def __init__(self, chain: Autoregressive, joint: Joint, visible: Tensor, shape: Size) -> None:
        self.chain, self.joint, self.visible, self.shape = chain, joint, visible, shape

    def __call__(self, x: Tensor, i: int) -> Tensor:
        """Log p(visible ones from place i on | the first i), `(*extra, rows)`, for `x` `(*extra, rows, n)`."""
        early = torch.arange(x.shape[-1], device=x.device) < i
        if not bool((self.visible & ~early).any()):
            return x.new_zeros(x.shape[:-1])
        values = self.chain.from_chain(x.reshape(*x.shape[:-2], *self.shape, x.shape[-1]))
        both, one = (self.joint.marginal(self.chain.from_chain(seen.expand(self.visible.shape))).log_prob(values) for seen in (self.visible | early, early))
        return (both - one).nan_to_num(nan=0.0, neginf=-1e4).reshape(x.shape[:-1]).to(x.dtype)


class _Walk:
    """The steps, on rows `(islands * particles * L)`."""

    def __init__(self, chain: Autoregressive, net: Any, values: dict[str, Tensor], look: _LookAhead | None) -> None:
        self.chain, self.net, self.look = chain, net, look
        self.left = values["rows"].shape[:-1]
        rows = {name: t.reshape(-1, t.shape[-1]) for name, t in values.items()}
        self.visible, self.order = rows["visible"], rows.get("order")
        self.x = rows["x"].clone()
        self.state = net.start(math.prod(self.left), **{name: rows[name] for name in ("context", "order") if name in rows})
        self.log_weight = self.x.new_zeros(len(self.x))
        self.ahead = self.x.new_zeros(len(self.x))

    def run(self, first: int, end: int) -> Tensor:
        if end > first:
            if first:
                self.net.prefill(self.state, self.x[:, :first])
            if self.look is not None:
                self.ahead = self.look(self.x, first)
                self.log_weight = self.log_weight + self.ahead
            last = None
            for i in range(first, end):
                raw = self.net.advance(self.state, last)
                self._weigh(i, raw)
                self._resample(last_one=i == end - 1)
                last = self.x[:, i]
        return torch.cat((self.x, self.log_weight.unsqueeze(-1)), -1).reshape(*self.left, -1)

    def _weigh(self, i: int, raw: Tensor) -> None:
        output = self.chain.output_at(i, self.order)
        seen, value = self.visible[:, i], self.x[:, i]
        if self.look is not None and output.num_states is not None:
            drawn, gain, ahead = self._twisted(i, raw, output)
        else:
            drawn, gain, ahead = output.sample(raw), torch.zeros_like(self.log_weight), None
        value = torch.where(seen, value, drawn)
        self.x = torch.cat((self.x[:, :i], value.unsqueeze(-1).to(self.x.dtype), self.x[:, i + 1:]), -1)
        gain = torch.where(seen, output.log_prob(raw, value), gain)
        if self.look is not None:
            after = self.look(self.x, i + 1)
            gain = gain + torch.where(seen, after - self.ahead, after - self.ahead if ahead is None else 0)
            self.ahead = after
        self.log_weight = self.log_weight + gain

    def _twisted(self, i: int, raw: Tensor, output: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Draw from p(x_i | x_<i) times what the look-ahead says of each state; the gain is the sum of these products over the old look-ahead."""
        states = torch.arange(output.num_states, device=raw.device, dtype=self.x.dtype)
        log_p = torch.stack([output.log_prob(raw, state.expand(len(raw))) for state in states])
        each = self.x.expand(len(states), *self.x.shape).clone()
        each[..., i] = states.unsqueeze(-1)
        assert self.look is not None  # noqa: S101
        ahead = self.look(each, i + 1)
        scores = log_p + ahead
        place = torch.distributions.Categorical(logits=scores.mT, validate_args=False).sample()
        return states[place], scores.logsumexp(0) - self.ahead, ahead.gather(0, place.unsqueeze(0)).squeeze(0)

    def _resample(self, *, last_one: bool) -> None:
        if last_one:
            return  # the weights say it all
        islands, many = self.left[:2]
        log_w = self.log_weight.reshape(islands, many, -1)
        total = log_w.logsumexp(1, keepdim=True)
        share = (log_w - total).exp().nan_to_num(0.0)
        poor = (share.square().sum(1, keepdim=True) * many * FEWEST > 1) & total.isfinite()
        if not transforms_active() and not bool(poor.any()):
            return
        # Systematic: one uniform number per island, and evenly spaced ones from there.
        at = (torch.rand_like(total) + torch.arange(many, device=total.device).reshape(1, -1, 1)) / many
        upto = share.cumsum(1)
        chosen = (upto.unsqueeze(1) < at.unsqueeze(2) * upto[:, -1:].unsqueeze(2)).sum(2).clamp(max=many - 1)
        stay = torch.arange(many, device=total.device).reshape(1, -1, 1).expand(chosen.shape)
        chosen = torch.where(poor, chosen, stay)
        columns = chosen.shape[2]
        rows = ((torch.arange(islands, device=total.device).reshape(-1, 1, 1) * many + chosen) * columns
                + torch.arange(columns, device=total.device)).flatten()
        self.state = self.net.take(self.state, rows)
        self.x, self.ahead = self.x.index_select(0, rows), self.ahead.index_select(0, rows)
        self.log_weight = torch.where(poor, (total - math.log(many)).expand(log_w.shape), log_w).flatten()
