"""What every output promises."""

import abc
import math

from collections.abc import Sequence

from pyro.distributions import TorchDistribution, constraints
from torch import Tensor

from pyro_ar.checks import require_exact_states

__all__ = ["OfComponents", "Output"]


UNIT = math.log(math.e - 1)  # softplus of it is one


class Output(abc.ABC):
    """The conditional distribution of one variable, given the raw parameters of a net."""

    num_states: int | None = None
    support: constraints.Constraint = constraints.real

    @property
    @abc.abstractmethod
    def raw(self) -> int:
        """Raw parameters per variable."""

    @property
    def inputs(self) -> int:
        """Features per variable that a net reads."""
        return 1

    def encode(self, x: Tensor) -> Tensor:
        """The features of values `(*L)`, `(*L, inputs)`; x itself unless overridden."""
        return x.unsqueeze(-1)

    @abc.abstractmethod
    def distribution(self, raw: Tensor) -> TorchDistribution:
        """From `(*L, raw)` the distribution of one variable, batch shape `(*L)`."""

    def log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        """Log p(x) in nats; `raw` `(*L, raw)` and `x` `(*M)` broadcast."""
        return self.distribution(raw).log_prob(x)

    def sample(self, raw: Tensor) -> Tensor:
        """One floating value for each of `(*L, raw)`, of the dtype of `raw`."""
        require_exact_states(self.num_states, raw.dtype, type(self).__name__)
        return self.distribution(raw).sample().to(raw.dtype)

    @property
    def has_rsample(self) -> bool:
        """Whether its draws move smoothly with the raw parameters, as `reparameterised` says."""
        return False

    def reparameterised(self, raw: Tensor, x: Tensor) -> Tensor:
        """The draw `x` again, as what it is of `raw` where the noise behind it is held: its gradient is how the draw moves.

        Raises:
            NotImplementedError: Draws do not move smoothly (`has_rsample` is False).
        """
        raise NotImplementedError(f"draws of {type(self).__name__} carry no gradients; sample them")

    # Which variable it answers for: the same for all, unless it is a `PerVariable`.

    def at(self, variable: int | Tensor) -> "Output":
        """What answers for variable `variable` alone, or for a tensor of them that broadcasts to the values."""
        return self

    def in_order(self, order: Sequence[int]) -> "Output":
        """What answers for the variables in another order."""
        return self

    def totals(self, n: int) -> tuple[int, int, int]:
        """Of the first n variables: raw parameters, features, and raw parameters times the features of the variables before. Allocates nothing."""
        return n * self.raw, n * self.inputs, self.raw * self.inputs * (n * (n - 1) // 2)

    def variables(self, n: int) -> tuple["Output", ...]:
        """The output of each of n variables.

        Raises:
            ValueError: It is not for n variables.
        """
        return (self,) * n


class OfComponents(Output):
    """A mixture of M components: the raw parameters are M - 1 logits (against component 0), M locations and M scales before softplus, and the net reads one
    feature of a value, of which the locations are in the units.
    """

    components: int

    @property
    def raw(self) -> int:
        return 3 * self.components - 1

    @abc.abstractmethod
    def of_components(self, raw: Tensor, x: Tensor) -> Tensor:
        """The log of each component's weight times its density (or probability) at x, `(*L, M)`."""

    def log_prob(self, raw: Tensor, x: Tensor) -> Tensor:
        return self.of_components(raw, x).logsumexp(-1)
