r"""What hidden states show: an output of `par.outputs` for each variable, with raw parameters of its own for each state."""

from collections.abc import Callable, Sequence

import torch

from torch import Tensor

from pyro_ar.outputs import Output

__all__ = ["MAX_LISTED", "kinds_of", "log_emissions", "emission_moments", "draw_emissions", "state_tables"]

MAX_LISTED = 64  # states up to which a cell is looked up by a product with indicators


def kinds_of(outputs: Sequence[Output]) -> dict[Output, list[int]]:
    """The variables of each kind of output."""
    kinds: dict[Output, list[int]] = {}
    for i, output in enumerate(outputs):
        kinds.setdefault(output, []).append(i)
    return kinds


def log_emissions(outputs: Sequence[Output], raw: Tensor, x: Tensor, visible: Tensor) -> Tensor:
    """Log p(x_i | state) of every variable, row and state, zero where hidden.

    Shapes:
        `raw` `(E, n, K, R)`, `x` and `visible` `(E or 1, N, n)`; the answer is `(E, n, N, K)`.
    """
    def of_kind(output: Output, raw: Tensor, x: Tensor, visible: Tensor) -> Tensor:
        if output.num_states is not None and output.num_states <= MAX_LISTED:
            states = torch.arange(output.num_states, dtype=x.dtype, device=x.device)
            indicators = ((x.unsqueeze(-1) == states) & visible.unsqueeze(-1)).to(raw.dtype)
            return indicators @ state_tables(output, raw).mT
        log_p = output.log_prob(raw.unsqueeze(-3), x.unsqueeze(-1))
        return torch.where(visible.unsqueeze(-1), log_p, 0)

    return _by_kind(outputs, of_kind, raw, x.mT, visible.mT)


def state_tables(output: Output, raw: Tensor) -> Tensor:
    """Log-probabilities of the states of a discrete output, `(*L, S)`, from raw parameters `(*L, R)`."""
    states = torch.arange(output.num_states or 0, dtype=raw.dtype, device=raw.device)
    return output.log_prob(raw.unsqueeze(-2), states)


def emission_moments(outputs: Sequence[Output], raw: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of every variable in every state, `(E, n, K)` each."""
    def of_kind(output: Output, raw: Tensor) -> Tensor:
        if output.num_states is None:
            found = output.distribution(raw)
            return torch.stack([found.mean, found.variance], -1)
        p = state_tables(output, raw).exp()
        states = torch.arange(output.num_states, dtype=raw.dtype, device=raw.device)
        mean = (p * states).sum(-1)
        return torch.stack([mean, (p * (states - mean.unsqueeze(-1)).square()).sum(-1)], -1)

    mean, variance = _by_kind(outputs, of_kind, raw).unbind(-1)
    return mean, variance


def draw_emissions(outputs: Sequence[Output], raw: Tensor, states: Tensor) -> Tensor:
    """Values of the variables in these states: `raw` `(E, n, K, R)`, `states` `(E, n, N)`; the answer is `(E, N, n)`."""
    def of_kind(output: Output, raw: Tensor, states: Tensor) -> Tensor:
        index = states.unsqueeze(-1).expand(*states.shape, raw.shape[-1])
        return output.sample(raw.gather(-2, index))

    return _by_kind(outputs, of_kind, raw, states).mT


def _by_kind(outputs: Sequence[Output], function: Callable[..., Tensor], raw: Tensor, *values: Tensor) -> Tensor:
    """`function(output, raw, *values)` of the variables of each kind at once; they lie along dimension 1 of all, and of the answer."""
    kinds = kinds_of(outputs)
    if len(kinds) == 1:
        output = outputs[0]
        return function(output, raw[..., :output.raw], *values)
    parts = []
    for output, places in kinds.items():
        index = torch.tensor(places, device=raw.device)
        parts.append(function(output, raw[..., :output.raw].index_select(1, index), *(v.index_select(1, index) for v in values)))
    back = torch.tensor([i for places in kinds.values() for i in places], device=raw.device).argsort()
    return torch.cat(parts, 1).index_select(1, back)


