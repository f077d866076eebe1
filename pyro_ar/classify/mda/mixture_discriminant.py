r"""Mixture discriminant analysis: a mixture of Student-t per class, on rank-normal features."""

import itertools
import math

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import torch

from sklearn.base import clone
from sklearn.model_selection import StratifiedShuffleSplit
from sklearn.utils import check_random_state
from torch import Tensor
from torch.distributions import Transform

from pyro_ar.changes.rank_normal import RankNormal
from pyro_ar.changes.transformed import Transformed
from pyro_ar.checks import require
from pyro_ar.classify.generative import GenerativeClassifier
from pyro_ar.classify.images import image_shape_of, shifted
from pyro_ar.classify.mda.class_mixture import Recipe, fit_complete
from pyro_ar.classify.mda.hidden_classes import fit_hidden
from pyro_ar.classify.rows_of_classes import require_rows
from pyro_ar.elliptical import LowRankStudentT, StudentT
from pyro_ar.elliptical.units import column_units, in_values
from pyro_ar.joint import Joint
from pyro_ar.mixture import Mixture

__all__ = ["MixtureDiscriminantAnalysis"]

MAX_DENSE = 100  # features up to which the matrices are full unless told otherwise
RANK = 15  # above

GRID = {"num_components": (1, 6, (4, 6, 8, 10, 12)), "feature_transform": ("rank-normal", None), "shrinkage": (0.1, 0.3)}
HIDDEN = (0.0, 0.25, 0.5, 0.75, 0.9)


class MixtureDiscriminantAnalysis(GenerativeClassifier):
    r"""`GenerativeClassifier` over mixtures of Student-t joints: exact for every pattern of visible cells.

    Each cell passes through a monotone transform that is the same for all classes (so it does not favour one). Each class is a mixture, its
    components found by k-means, all in closed form. Normal scores have one unit; without them each cell is divided by half its range over
    the training rows while the mixtures are found, so that its unit does not matter. With n rows of a cluster, scatter W around its centre,
    and T = (1 - b) S_class + b S_pooled:

    .. math:: m = \frac{\sum z + 3\, m_{class}}{n + 3}, \quad V = \frac{W + 0.8\, r\, T}{n + r}, \quad
              V \leftarrow (1 - a) V + a\, \frac{\mathrm{tr} V}{D} I, \quad w \propto n + \tfrac12

    and the scale matrix is :math:`V (\nu - 2)/\nu`, so that V is the covariance. With several numbers of components the
    mixtures are averaged, which is again one mixture. An empty cluster is the prior: it stays as a component of little weight.

    Training rows may have hidden cells. Normal scores are then those of the visible values; :math:`m_{class}` and the covariances come
    from EM for Gaussians, of the same rank, k-means sees the rows with hidden cells at their means under these, and a step of EM from these
    gives the components; further steps follow.

    Shapes:
        As `PartlySeenClassifier`. `joint_` is over rows `(n,)`, flattened.

    Args:
        num_components: Of each class; several numbers: the average of the mixtures of each.
        df: Degrees of freedom :math:`\nu`, more than 2.
        feature_transform: 'rank-normal' (`RankNormal`, learnt on the training rows), None, or a torch transform whose inverse is applied
            to the cells; its tensors broadcast to flattened rows, and rows outside its image are refused.
        shrinkage: a, towards a multiple of the identity (of cells of one unit), from 0 to 1.
        pooling: b, towards the pooled covariance within classes, from 0 to 1.
        prior_rows: r, how many rows the covariance of the class is worth to a component.
        rank: Of the scale matrices, which are then low rank plus diagonal (`LowRankStudentT`): mixtures of factor analysers.
            None: full up to 100 cells, 15 above. 0: full.
        image_shape: `(height, width)` or with channels before; images moved by one pixel then widen the components. None: the rows' own
            shape, where they are not flat. `()`: no images.
        em_steps: Further steps of EM, under the same shrinkage. None: 2 for full matrices of training rows with hidden cells, else none.
        select: Choose `num_components`, `feature_transform` and `shrinkage` on a quarter of the training rows, by the log score
            over five shares of hidden cells; a stratified split. The choice is in `settings_`.
        prior: As in `GenerativeClassifier`.
        num_classes: As in `GenerativeClassifier`.
        pattern: As in `GenerativeClassifier`.
        pattern_options: As in `GenerativeClassifier`.
        random_state: Of k-means and of the split; None: 0, so that equal data give equal classifiers.

    Attributes:
        transform_: The transform; None where there is none.
        settings_: The settings that were chosen, or given.

    Raises:
        ValueError: Bad data or arguments; a singular covariance, which more shrinkage mends.

    Source:
        Hastie, Tibshirani (1996), *Discriminant analysis by Gaussian mixtures*, JRSS B 58; Peel, McLachlan (2000), *Robust
        mixture modelling using the t distribution*, Statistics and Computing 10.

    Example:
        >>> import numpy as np
        >>> X, y = np.array([[0.0, 0.0], [1.0, 1.0], [4.0, 4.0], [5.0, 5.0]]), np.array([0, 0, 1, 1])
        >>> classifier = MixtureDiscriminantAnalysis(num_components=1).fit(X, y)
        >>> classifier.predict(np.array([[np.nan, 4.2]]), visible=np.array([False, True]))
        array([1])
    """

    transform_: Transform | None
    settings_: dict[str, Any]

    def __init__(self, num_components: int | Sequence[int] = (4, 6, 8, 10, 12), df: float = 10.0, *,
                 feature_transform: Any = "rank-normal", shrinkage: float = 0.1, pooling: float = 0.2, prior_rows: float = 20.0,
                 rank: int | None = None, image_shape: Sequence[int] | None = None, em_steps: int | None = None, select: bool = False,
                 prior: Any = None, num_classes: int | None = None, pattern: Any = None, pattern_options: Mapping[str, Any] | None = None,
                 random_state: Any = None) -> None:
        self.num_components = num_components
        self.df = df
        self.feature_transform = feature_transform
        self.shrinkage = shrinkage
        self.pooling = pooling
        self.prior_rows = prior_rows
        self.rank = rank
        self.image_shape = image_shape
        self.em_steps = em_steps
        self.select = select
        self.prior = prior
        self.num_classes = num_classes
        self.pattern = pattern
        self.pattern_options = pattern_options
        self.random_state = random_state

    @classmethod
    def count_parameters(cls, num_classes: int, num_features: int, num_components: int | Sequence[int],
                         rank: int | None = None) -> int:
        """Free parameters without transform, with a learnt prior; allocates nothing. `df` is given, not learnt."""
        K, r = sum(_numbers(num_components)), _rank(rank, num_features)
        each = (LowRankStudentT.count_parameters(num_features, r) if r else StudentT.count_parameters(num_features)) - 1
        return num_classes - 1 + num_classes * (K - 1 + K * each)

    @property
    def num_parameters(self) -> int:
        """Free parameters, those of the transform included; C - 1 less where the prior is given."""
        numbers = self.settings_["num_components"]
        total = self.count_parameters(len(self.classes_), self.n_features_in_, numbers, self.rank)
        total += getattr(self.transform_, "num_parameters", 0) + self._pattern_parameters()
        return total if self.prior is None else total - (len(self.classes_) - 1)

    # Fitting.

    def fit(self, X: Any, y: Any, visible: Any = None, sample_weight: Any = None) -> Self:
        """Fit the mixture of each class and the prior.

        Args:
            X: Rows.
            y: One label per row.
            visible: Training patterns; what is hidden is never read. None: NaN hides a cell.
            sample_weight: `(N,)`: a row of weight 2 is two equal rows, one of weight 0 is no row. Their scale matters, as 3 rows of the centre and
                `prior_rows` do not change. `select` splits the rows as they are, weights with them, so there a repeated row is more than a heavier one.

        Raises:
            ValueError: Bad rows, labels or settings.
        """
        self._check_settings()
        self._settings = {name: getattr(self, name) for name in GRID}
        if self.select:
            self._settings = self._selected(X, y, visible, sample_weight)
        super().fit(X, y, visible, sample_weight)
        self.settings_ = self.__dict__.pop("_settings")
        return self

    def _check_settings(self) -> None:
        _numbers(self.num_components)
        require(self.df > 2, "df must be more than 2", self.df)
        require(0 <= self.shrinkage <= 1, "shrinkage must lie between 0 and 1", self.shrinkage)
        require(0 <= self.pooling <= 1, "pooling must lie between 0 and 1", self.pooling)
        require(self.prior_rows > 0, "prior_rows must be more than 0", self.prior_rows)
        require(self.rank is None or self.rank >= 0, "rank must be None, 0 or more", self.rank)
        require(self.em_steps is None or self.em_steps >= 0, "em_steps must be 0 or more", self.em_steps)
        change = self.feature_transform
        known = change is None or isinstance(change, Transform) or change == "rank-normal"
        require(known, "feature_transform must be 'rank-normal', None or a torch transform", change)

    def wanted_classes(self) -> int | None:
        return self.num_classes

    def class_conditional(self) -> tuple[Any, dict[str, Any]]:
        return type(self), {}

    def _fit_likelihood(self, x: Tensor, context: Tensor, visible: Tensor | None) -> Joint:
        empty = (context.sum(0) == 0).nonzero().flatten().tolist()
        require(not empty, "every class needs at least one training row", f"none of {self.classes_[empty].tolist()}")
        rows = x.flatten(1)
        seen = None if visible is None else visible.flatten(1).expand(rows.shape)
        self.transform_ = self._fit_transform(rows, seen, context.sum(1))
        mixture = self._fit_mixture(rows, seen, context)
        if self.transform_ is None:
            return mixture
        joint = Transformed(mixture, self.transform_)
        joint.check_value(rows[:, None], None if seen is None else seen[:, None])  # some of torch's inverses leave their image
        return joint

    def _fit_transform(self, rows: Tensor, seen: Tensor | None, weights: Tensor) -> Transform | None:
        chosen = self._settings["feature_transform"]
        return RankNormal.from_data(rows, visible=seen, weights=weights) if isinstance(chosen, str) else chosen

    def _scores(self, rows: Tensor) -> Tensor:
        return rows if self.transform_ is None else self.transform_.inv(rows)

    def _values(self, scores: Tensor) -> Tensor:
        return scores if self.transform_ is None else self.transform_(scores)

    def _image_shape(self) -> tuple[int, ...]:
        return image_shape_of(self.image_shape, self.event_shape_)

    def _fit_mixture(self, rows: Tensor, seen: Tensor | None, context: Tensor) -> Mixture:
        """Mixture of batch shape `(C,)`, of the scores."""
        random = check_random_state(0 if self.random_state is None else self.random_state)
        recipe, shape, label = self._recipe(), self._image_shape(), context.argmax(1)
        inside = self._values(rows.new_zeros(rows.shape[1]))  # a value at hand for hidden cells
        z = self._scores(rows if seen is None else torch.where(seen, rows, inside))
        unit = torch.ones_like(z[0]) if isinstance(self.transform_, RankNormal) else column_units(z, seen)  # ranks have one already
        z = z / unit
        if seen is None:
            classes = [label == c for c in range(context.shape[1])]
            weights = [context[mine, c] for c, mine in enumerate(classes)]
            mixture = fit_complete(recipe, [z[mine] for mine in classes], weights,
                                   lambda c: self._scores(shifted(rows[classes[c]], shape)) / unit, random)
        else:
            filled = torch.where(seen, z, 0)
            mixture = fit_hidden(recipe, filled, seen, context, lambda z: self._scores(shifted(self._values(z * unit), shape)) / unit, random)
        joint: Any = mixture.joints
        return Mixture(mixture.log_weights, recipe.joint(*in_values(unit, *(t for name, t in joint.tensors.items() if name != "df"))))

    def _recipe(self) -> Recipe:
        return Recipe(_numbers(self._settings["num_components"]), self.df, self._settings["shrinkage"], self.pooling, self.prior_rows,
                      _rank(self.rank, self.n_features_in_), self.em_steps)

    # Choosing.

    def _selected(self, X: Any, y: Any, visible: Any, sample_weight: Any) -> dict[str, Any]:
        """The settings of `GRID` with the best log score on held-out rows, over shares of hidden cells."""
        x, seen, labels, weights = self._read_weighted(X, y, visible, sample_weight)
        require_rows(labels, 2, "`select` holds out a quarter of the rows, and wants")
        random = check_random_state(0 if self.random_state is None else self.random_state)
        split = StratifiedShuffleSplit(1, test_size=0.25, random_state=random.randint(2**31))
        train, test = next(split.split(np.zeros(len(labels)), labels))
        cells = np.argsort(random.random_sample((len(test), self.n_features_in_)), 1)
        patterns = [(cells >= round(h * self.n_features_in_)).reshape(-1, *self.event_shape_) for h in HIDDEN]
        mine = None if seen is None else seen.expand(x.shape)
        if mine is not None:
            patterns = [v & mine[test].cpu().numpy() for v in patterns]
        best, chosen = -math.inf, {}
        for values in itertools.product(*({getattr(self, name): None} | dict.fromkeys(GRID[name]) for name in GRID)):
            settings = dict(zip(GRID, values, strict=True))
            trial = clone(self).set_params(select=False, **settings).fit(x[train], labels[train], None if mine is None else mine[train], weights[train])
            true = np.searchsorted(trial.classes_, labels[test])
            log_p = [trial.predict_log_proba(x[test], v)[np.arange(len(test)), true] for v in patterns]
            score = float(np.average(np.mean(log_p, 0), weights=weights[test].cpu().numpy()))
            if score > best:
                best, chosen = score, settings
        return chosen


def _numbers(num_components: int | Sequence[int]) -> tuple[int, ...]:
    numbers = (num_components,) if isinstance(num_components, int | np.integer) else tuple(num_components)
    right = len(numbers) > 0 and all(isinstance(k, int | np.integer) and k >= 1 for k in numbers)
    require(right, "num_components must be one or several positive whole numbers", num_components)
    return tuple(int(k) for k in numbers)


def _rank(rank: int | None, num_features: int) -> int:
    """The rank of the scale matrices, 0 where they are full."""
    rank = (RANK if num_features > MAX_DENSE else 0) if rank is None else rank
    return 0 if rank >= num_features else rank
