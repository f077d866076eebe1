"""What a joint says when part of x is seen: `Marginal` of the visible cells, `Given` of the hidden ones, and its form for latent sites."""

import math

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from pyro.distributions import constraints
from torch import Size, Tensor
from torch.distributions import biject_to

from pyro_ar.arrays import Array, as_tensor
from pyro_ar.checks import IntractableError, broadcast, one_line, require
from pyro_ar.enumeration import moments_of, visible_states
from pyro_ar.expandable import Expandable, shapes_of, support_of_cells
from pyro_ar.sites import NoEvidence, PartlyFixed, latent_site
from pyro_ar.transforms import is_mapped
from pyro_ar.visible import check_visible

if TYPE_CHECKING:
    from pyro_ar.joint import Joint

__all__ = ["Given", "Latent", "Marginal"]


class Marginal(Expandable):
    r"""log p(x_visible) of a joint, for one pattern or one per row.

    A density over the visible cells only: what is stored under a hidden cell is never read, so
    NaN there changes neither value nor gradient. Samples carry NaN where hidden.

    Attributes:
        method: How each pattern was answered, an array of names of the pattern's left shape:
            'prefix', 'elimination', 'enumeration', 'closed form' or 'visible-first chain'.
    """

    has_enumerate_support = False

    def __init__(self, joint: "Joint", visible: Array, *, validate_args: bool | None = None) -> None:
        self.joint = joint
        visible = visible if isinstance(visible, Tensor) else as_tensor(visible, joint.device)
        self.visible = check_visible(visible, joint.event_shape)
        left = self.visible.shape[: self.visible.ndim - len(joint.event_shape)]
        self.method = joint.methods(self.visible)
        self.answering = joint.answering(self.visible)
        super().__init__(_broadcast("the pattern", left, joint.batch_shape), joint.event_shape,
                         validate_args=joint._validate_args if validate_args is None else validate_args)

    def __repr__(self) -> str:
        return one_line("Marginal", _seen(self.visible, self.event_shape), f"of {type(self.joint).__name__}", *self.joint.described())

    @classmethod
    def infer_shapes(cls, *, joint: Any = None, visible: Sequence[int] = ()) -> tuple[Size, Size]:  # type: ignore[override]
        batch, event = shapes_of(cls, joint)
        return _broadcast("the pattern", Size(visible[: max(len(visible) - len(event), 0)]), batch), event

    @property
    def support(self) -> constraints.Constraint | None:
        free = self.joint.support
        if free is None or bool(self.visible.all()):
            return free
        return PartlyFixed(free, self._supports, "a marginal with hidden cells is no latent site, because nothing says where these lie: "
                           "observe it, or sample the joint itself")

    def _supports(self, value: Tensor) -> Tensor:
        return _all_cells(support_of_cells(self.joint.support).check(value) | ~self.visible, self.event_shape)

    def log_prob(self, value: Array) -> Tensor:
        if not isinstance(value, Tensor):
            value = as_tensor(value, self.joint.device)
        require(isinstance(value, Tensor) and value.ndim >= len(self.event_shape),
                f"marginal wants a tensor that ends in the event shape {tuple(self.event_shape)}", value)
        joint = self.answering
        left = value.shape[: value.ndim - len(self.event_shape)]
        left = _broadcast("the value", left, self.batch_shape)
        x, visible = _align(joint, value, self.visible)
        answer = joint.log_marginal(x, visible)
        return answer.expand(left)

    def sample(self, sample_shape: Any = Size()) -> Tensor:
        x = self.answering.expand(self.batch_shape).sample(sample_shape)
        return torch.where(self.visible, x, math.nan)

    def _whole(self) -> Tensor:
        return self.visible.expand(self.batch_shape + self.event_shape)

    def _cell_moments(self) -> tuple[Tensor, Tensor]:
        joint = self.answering
        try:
            return joint.moments(*joint.unseen(self.batch_shape + self.event_shape))
        except IntractableError:
            return visible_states(joint, self._whole(), moments_of(len(self.event_shape)), "mean and variance of some cells")

    @property
    def mean(self) -> Tensor:
        """Of the visible cells, `(*batch, *event)`, NaN where hidden. Raises as `Joint.mean`."""
        return torch.where(self.visible, self._cell_moments()[0], math.nan)

    @property
    def variance(self) -> Tensor:
        """Of the visible cells, as `mean`."""
        return torch.where(self.visible, self._cell_moments()[1], math.nan)

    @property
    def mode(self) -> Tensor:
        """The most likely value of the visible cells together, `(*batch, *event)`, NaN where hidden. Raises as `Joint.mode`."""
        with torch.no_grad():
            return torch.where(self.visible, self.answering.marginal_mode(self._whole()), math.nan)

    def entropy(self) -> Tensor:
        """Of the visible cells, in nats, `(*batch)`. Raises as `Joint.entropy`."""
        return self.answering.marginal_entropy(self._whole()).expand(self.batch_shape)


class Given(Expandable):
    r"""p(x | x_visible): completions of a partly seen value, visible cells unchanged.

    `log_prob` is `joint.log_prob - marginal(visible).log_prob` in the same order, and minus
    infinity where a visible cell differs. `mode` is the most likely completion.

    It serves as a guide, as a proposal and with `obs=`. As an unobserved site that a guide or MCMC moves it would have
    density zero wherever a visible cell differs, and is refused: `latent` is its form for that, and `par.impute` the
    call that uses it.

    Raises:
        ValueError: The visible cells have probability zero; or inference moves a site of it off its visible cells.
    """

    has_enumerate_support = False

    def __init__(self, joint: "Joint", x: Array, visible: Array,
                 *, validate_args: bool | None = None) -> None:
        marginal = joint.marginal(visible)
        x = x if isinstance(x, Tensor) else as_tensor(x, joint.device)
        self.joint = joint
        self.visible = marginal.visible
        self.method = marginal.method
        self.log_evidence = marginal.log_prob(x)
        impossible = self.log_evidence == -math.inf
        if is_mapped(impossible):  # what cannot be refused is no number
            self.log_evidence = torch.where(impossible, math.nan, self.log_evidence)
        elif bool(impossible.any()):
            error = NoEvidence if joint.num_states is None else ValueError
            raise error("given wants visible cells of positive probability; got probability zero in "
                        f"{int(impossible.sum())} of {impossible.numel()} rows")
        self.answering = marginal.answering
        self._x, self._visible = _align(self.answering, x, self.visible)
        super().__init__(self.log_evidence.shape, joint.event_shape,
                         validate_args=joint._validate_args if validate_args is None else validate_args)

    @property
    def arguments(self) -> dict[str, Any]:
        return {"joint": self.joint, "x": self._x, "visible": self.visible}

    def __repr__(self) -> str:
        rows = f"batch {tuple(self.batch_shape)}" if self.batch_shape else ""
        return one_line("Given", _seen(self.visible, self.event_shape), rows, f"of {type(self.joint).__name__}", *self.joint.described())

    @classmethod
    def infer_shapes(cls, *, joint: Any = None, x: Sequence[int] = (), visible: Sequence[int] = ()) -> tuple[Size, Size]:  # type: ignore[override]
        batch, event = Marginal.infer_shapes(joint=joint, visible=visible)
        return _broadcast("the value", Size(x[: max(len(x) - len(event), 0)]), batch), event

    @property
    def support(self) -> constraints.Constraint | None:
        free = self.joint.support
        return free if free is None else PartlyFixed(free, self._supports, self._advice)

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return self.answering.has_rsample

    def _supports(self, value: Tensor) -> Tensor:
        same = _all_cells((value == self._x) | ~self._visible, self.event_shape)
        return same & _all_cells(support_of_cells(self.joint.support).check(value), self.event_shape)

    @property
    def _advice(self) -> str:
        if self.joint.num_states is None:
            return ("given(x, visible) is no latent site: its density is zero wherever a visible cell differs. Use given(x, visible).latent(), "
                    "or par.impute(name, joint, x, visible), which also puts the visible cells back")
        return ("given(x, visible) of discrete cells is no latent site: sum the hidden cells out. Observe joint.marginal(visible), or enumerate "
                "a site of the joint itself, its visible cells tied by pyro.factor")

    def log_prob(self, value: Array) -> Tensor:
        joint = self.answering
        x = joint.check_value(value)
        left = _broadcast("the value", x.shape[: x.ndim - len(self.event_shape)], self.batch_shape)
        same = _all_cells((x == self._x) | ~self._visible, self.event_shape)
        if self.joint.num_states is None:  # discrete values may meet the visible cells by chance, and then they count
            site = latent_site()
            require(site is None or bool(same.all()), f"{self._advice} (site {site!r})")
        return torch.where(same, self._log_hidden(x), -math.inf).expand(left)

    def _log_hidden(self, x: Tensor) -> Tensor:
        """Log p of the hidden cells of `x`, whose visible cells are not read."""
        return self.answering.log_density(torch.where(self._visible, self._x.to(x.dtype), x)) - self.log_evidence

    def _row(self, shape: Size) -> tuple[Tensor, Tensor]:
        shape = shape + self.batch_shape + self.event_shape
        return self._x.expand(shape), self._visible.expand(shape)

    def sample(self, sample_shape: Any = Size()) -> Tensor:
        with torch.no_grad():
            return self._drawn(sample_shape)

    def rsample(self, sample_shape: Any = Size()) -> Tensor:
        """Completions that carry gradients, where `has_rsample` says so."""
        if not self.has_rsample:
            raise NotImplementedError(f"completions by {type(self.joint).__name__} carry no gradients; sample them")
        return self._drawn(sample_shape)

    def _drawn(self, sample_shape: Any) -> Tensor:
        return self._where_possible(self.answering.complete(*self._row(Size(sample_shape))))

    @property
    def mean(self) -> Tensor:
        """The posterior-mean imputation, `(*batch, *event)`: visible cells as they are. Raises as `Joint.mean`."""
        return self.answering.moments(*self._row(Size()))[0]

    @property
    def variance(self) -> Tensor:
        """Of every cell given the visible ones, 0 where visible. Raises as `Joint.mean`."""
        return self.answering.moments(*self._row(Size()))[1]

    def entropy(self) -> Tensor:
        """Of the hidden cells given the visible ones, in nats, `(*batch)`. Raises as `Joint.entropy`."""
        return self.answering.entropy_given(*self._row(Size())).expand(self.batch_shape)

    def latent(self) -> "Latent":
        """The same over all real vectors, for sites that a guide or MCMC moves; see `Latent`.

        Raises:
            IntractableError: The joint is discrete.
        """
        return Latent(self)

    @property
    def mode(self) -> Tensor:
        """The most likely completion, `(*batch, *event)`; the first one where several tie.

        Raises:
            IntractableError: The joint has no exact one.
        """
        with torch.no_grad():
            return self._where_possible(self.answering.most_likely(*self._row(Size())))

    def _where_possible(self, completions: Tensor) -> Tensor:
        if not is_mapped(self.log_evidence):
            return completions  # anything else was refused
        dead = self.log_evidence.isnan()
        return torch.where(dead.reshape(*dead.shape, *[1] * len(self.event_shape)), math.nan, completions)


def _seen(visible: Tensor, event_shape: Size) -> str:
    """A pattern in words."""
    cells = math.prod(event_shape)
    rows = visible.flatten(-len(event_shape)).sum(-1)
    few, most = (int(rows.min()), int(rows.max())) if rows.numel() else (0, 0)
    many = f" of {rows.numel():,} patterns" if rows.ndim else ""
    return f"{few if few == most else f'{few} to {most}'} of {cells} cells visible" + (f" in each{many}" if many else "")


class Latent(Expandable):
    r"""p(hidden | visible) on the hidden cells times a standard normal on the visible ones: the form of `Given` for latent sites.

    The visible cells of a value `z` mean nothing: they are standard normal and independent of the rest, so that the site has a
    positive density everywhere, and `complete` replaces them by what was seen. With :math:`T` that takes the reals onto the joint's support
    (`biject_to`; the identity where the support is the reals)

    .. math:: \log q(z) = \log p(z_h \mid x_v) + \sum_{i \in v} \left( \log \mathcal{N}(T^{-1}(z_i); 0, 1)
              + \log \left| \frac{d T^{-1}(z_i)}{d z_i} \right| \right)

    Shapes:
        - As `given`: its batch shape and event shape; each row has its own pattern.
        - `support` is that of the joint.

    Args:
        given: Of a continuous joint.

    Raises:
        IntractableError: The joint is discrete.

    Example:
        >>> from pyro_ar.elliptical import Gaussian
        >>> joint = Gaussian(torch.zeros(2), torch.tensor([[1.0, 0.5], [0.5, 1.0]]))
        >>> given = joint.given(torch.tensor([1.0, math.nan]), torch.tensor([True, False]))
        >>> z = torch.tensor([3.0, 0.5])
        >>> given.latent().log_prob(z)  # N(3; 0, 1) N(0.5; 0.5, 0.75)
        tensor(-6.1940)
        >>> given.latent().complete(z)
        tensor([1.0000, 0.5000])
    """

    has_enumerate_support = False

    def __init__(self, given: Given) -> None:
        if given.joint.num_states is not None:
            raise IntractableError(given._advice)
        self.given = given
        self._to_support = biject_to(support_of_cells(given.joint.support))
        super().__init__(given.batch_shape, given.event_shape, validate_args=given._validate_args)

    @classmethod
    def infer_shapes(cls, *, given: Any = None) -> tuple[Size, Size]:  # type: ignore[override]
        return shapes_of(cls, given)

    def __repr__(self) -> str:
        return repr(self.given).replace("Given", "Latent", 1)

    @property
    def support(self) -> constraints.Constraint | None:
        return self.given.joint.support

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]
        return self.given.has_rsample

    def log_prob(self, value: Tensor) -> Tensor:
        given = self.given
        z = given.answering.check_value(value)
        left = _broadcast("the value", z.shape[: z.ndim - len(self.event_shape)], self.batch_shape)
        visible = given._visible
        free = self._to_support.inv(z)
        cells = -(free.square() + math.log(2 * math.pi)) / 2 - self._to_support.log_abs_det_jacobian(free, z)
        log_p = given._log_hidden(z) + torch.where(visible, cells, 0).flatten(-len(self.event_shape)).sum(-1)
        return log_p.expand(left)

    def sample(self, sample_shape: Any = Size()) -> Tensor:
        with torch.no_grad():
            return self._drawn(sample_shape)

    def rsample(self, sample_shape: Any = Size()) -> Tensor:
        """Draws that carry gradients, where `has_rsample` says so."""
        if not self.has_rsample:
            raise NotImplementedError(f"completions by {type(self.given.joint).__name__} carry no gradients; sample them")
        return self._drawn(sample_shape)

    def _drawn(self, sample_shape: Any) -> Tensor:
        x = self.given.expand(self.batch_shape)._drawn(sample_shape)
        return torch.where(self.given._visible, self._to_support(torch.randn_like(x)), x)

    def complete(self, z: Tensor) -> Tensor:
        """`z` with its visible cells replaced by what was seen there."""
        return torch.where(self.given._visible, self.given._x.to(z.dtype), z)


def _all_cells(good: Tensor, event_shape: Size) -> Tensor:
    return good.flatten(good.ndim - len(event_shape)).all(-1) if event_shape else good


def _broadcast(what: str, left: Size, batch_shape: Size) -> Size:
    return broadcast(f"{what} must have left dimensions that broadcast with the batch shape {tuple(batch_shape)}", left, batch_shape, came=(tuple(left),))


def _align(joint: "Joint", value: Any, visible: Tensor) -> tuple[Tensor, Tensor]:
    """Checked value and pattern with the same left dimensions (the batch's own may be absent)."""
    x = joint.check_value(value, visible)
    return x, visible.expand(x.shape)
