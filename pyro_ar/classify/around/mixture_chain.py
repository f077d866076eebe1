r"""The classifier whose class densities are mixtures of Student-t priced on levels and corrected by a net."""

from typing import Any

import numpy as np
import torch

from sklearn.base import clone
from sklearn.model_selection import StratifiedKFold
from sklearn.utils import check_random_state
from torch import Generator, Tensor
from torch.nn.functional import one_hot

from pyro_ar.changes.transformed import Transformed
from pyro_ar.checks import require
from pyro_ar.classify.generative import GenerativeClassifier
from pyro_ar.classify.mda.mixture_discriminant import MixtureDiscriminantAnalysis
from pyro_ar.classify.rows_of_classes import require_rows
from pyro_ar.elliptical import StudentT
from pyro_ar.inference.descent import descend
from pyro_ar.neural.mixture_chain import MixtureChain, MixtureChainNet
from pyro_ar.neural.over_orders import OverOrders
from pyro_ar.order import random_orders

__all__ = ["MixtureChainClassifier"]

MAX_LEVELS = 4096

TRAINING_ORDERS = 6  # in which the conditionals of each training row are kept
FOLDS = 5
BATCH = 128
LR, TABLE_LR = 0.01, 0.03
DECAY = 0.01
RIDGE = 0.1  # on the table, per row
DROPOUT = 0.5


class MixtureChainClassifier(GenerativeClassifier):
    r"""`MixtureDiscriminantAnalysis` on levels: a `MixtureChain` per class, its correction learnt from cross-fitted conditionals.

    `fit` fits the mixtures to all rows, and again to the rows outside each of five folds. What these say of the levels of the fold's rows, in
    random orders, is what a mixture says of rows it has not seen, and the net learns to correct that by maximum likelihood;
    then it corrects the mixtures of all rows. Hidden cells are answered by the mixture of the visible-first chains of a few orders.

    For values on few levels, such as grey levels. On the digits its accuracy is that of `MixtureDiscriminantAnalysis`, its
    probabilities are better without a temperature, and it is slower: see docs/neural_joints.md.

    Shapes:
        As `PartlySeenClassifier`. `joint_` is over rows `(n,)`, flattened, in single precision.

    Args:
        mixture: The classifier to start from, with full matrices; None: `MixtureDiscriminantAnalysis()`. It is copied, never fitted itself.
        num_levels: Values are 0 to `num_levels - 1`; None: up to the largest one in training.
        hidden: Units of the correction.
        steps: Of its training; 0 leaves the mixtures as they are, only priced on levels.
        num_orders: That an answer averages over.
        prior: As in `GenerativeClassifier`.
        random_state: Of folds, orders and training; None: 0, so that equal data give equal classifiers.

    Attributes:
        mixture_: The classifier it started from, fitted to all rows.
        history_: Nats per row of the training batches.

    Raises:
        ValueError: Bad data or arguments; values that are no levels; hidden training cells; a class of one row.

    Example:
        >>> import numpy as np
        >>> X, y = np.array([[0, 0], [1, 1], [0, 1], [3, 3], [2, 3], [3, 2]]), np.array([0, 0, 0, 1, 1, 1])
        >>> classifier = MixtureChainClassifier(MixtureDiscriminantAnalysis(1), steps=5).fit(X, y)
        >>> classifier.predict(np.array([[0, 3]]), visible=np.array([False, True]))
        array([1])
    """

    _takes_weights = False
    mixture_: MixtureDiscriminantAnalysis
    history_: list[float]

    def __init__(self, mixture: MixtureDiscriminantAnalysis | None = None, *, num_levels: int | None = None, hidden: int = 48,
                 steps: int = 600, num_orders: int = 2, prior: Any = None, random_state: Any = None) -> None:
        super().__init__(None, prior=prior)
        self.mixture = mixture
        self.num_levels = num_levels
        self.hidden = hidden
        self.steps = steps
        self.num_orders = num_orders
        self.random_state = random_state

    @property
    def num_parameters(self) -> int:
        """Free parameters, those of the mixtures and of the transform included."""
        return super().num_parameters + getattr(self.mixture_.transform_, "num_parameters", 0)

    def wanted_classes(self) -> int | None:
        return None

    def class_conditional(self) -> tuple[Any, dict[str, Any]]:
        return type(self), {}

    def _fit_likelihood(self, x: Tensor, context: Tensor, visible: Tensor | None) -> OverOrders:
        require(visible is None, "MixtureChainClassifier.fit wants complete training rows", visible)
        require(self.steps >= 0, "steps must be 0 or more", self.steps)
        rows, label = x.flatten(1), context.argmax(1)
        num_levels = self._check_levels(rows)
        random = check_random_state(0 if self.random_state is None else self.random_state)
        self.mixture_ = self._fit_mixture(x, label)
        family = _chain(self.mixture_, num_levels, self.hidden)
        generator = Generator().manual_seed(random.randint(2**31))
        orders = random_orders((TRAINING_ORDERS, len(rows)), rows.shape[1], generator=generator)
        self.history_ = []
        if self.steps:
            net: Any = family.net
            tables = self._cross_fitted(x, label, orders, num_levels, random)
            self.history_ = _train(net, tables, rows.float(), context.float(), orders, self.steps, generator)
        return OverOrders(family, self.num_orders, generator=generator).eval().requires_grad_(False)

    def _fit_mixture(self, x: Tensor, label: Tensor) -> MixtureDiscriminantAnalysis:
        mixture = MixtureDiscriminantAnalysis() if self.mixture is None else clone(self.mixture)
        require(isinstance(mixture, MixtureDiscriminantAnalysis), "mixture must be a MixtureDiscriminantAnalysis", mixture)
        return mixture.fit(x, label.numpy())

    def _check_levels(self, rows: Tensor) -> int:
        require(self.num_levels is None or self.num_levels >= 2, "num_levels must be None, or 2 or more", self.num_levels)
        most = max(int(rows.max()) + 1, 2) if self.num_levels is None else self.num_levels
        require(most <= MAX_LEVELS, f"values must lie on at most {MAX_LEVELS} levels: each conditional prices all of them", most)
        right = bool(((rows >= 0) & (rows < most) & (rows == rows.round())).all())
        require(right, f"MixtureChainClassifier wants whole numbers from 0 to {most - 1}", rows.min().item(), rows.max().item())
        return most

    def _cross_fitted(self, x: Tensor, label: Tensor, orders: Tensor, num_levels: int, random: np.random.RandomState) -> Tensor:
        """Log q of the levels of each row in each order, by mixtures that have not seen the row, `(orders, N, n, K)`."""
        rows, context = x.flatten(1).float(), one_hot(label).float()
        most = int(torch.bincount(label).min())
        require_rows(self.classes_[label.numpy()], 2, "the correction is learnt on rows held out, and wants")
        tables = rows.new_empty(*orders.shape, num_levels)
        folds = StratifiedKFold(min(FOLDS, most), shuffle=True, random_state=random.randint(2**31))
        for train, test in folds.split(rows, label):
            net: Any = _chain(self._fit_mixture(x[train], label[train]), num_levels, 1).net
            for table, order in zip(tables, orders, strict=True):
                place = order[test]
                table[test] = net.base(rows[test].gather(1, place), context[test], place)
        return tables


def _chain(mixture: MixtureDiscriminantAnalysis, num_levels: int, hidden: int) -> MixtureChain:
    """The fitted mixtures, priced on levels, in single precision."""
    joint: Any = mixture.joint_.joints
    n = joint.event_shape[0]
    levels = torch.arange(num_levels, dtype=joint.dtype).unsqueeze(1).expand(-1, n)
    scores = (joint.transform.inv(levels) if isinstance(joint, Transformed) else levels).T
    inner = joint.joint if isinstance(joint, Transformed) else joint
    part = inner.joints
    require(isinstance(part, StudentT), "MixtureChainClassifier wants a mixture with full matrices: rank=0", type(part).__name__)
    tensors = (t.float() for t in (inner.log_weights, part.df, part.loc, part.scale_matrix, scores))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MixtureChain(*tensors, hidden=hidden)


def _train(net: MixtureChainNet, tables: Tensor, rows: Tensor, context: Tensor, orders: Tensor, steps: int,
           generator: Generator) -> list[float]:
    """Maximum likelihood of the correction on kept conditionals, in place."""
    context_or_none = context if net.context_dim else None
    rest = [p for name, p in net.named_parameters() if name != "table"]
    history = []

    def loss(step: int) -> Tensor:
        some = torch.randperm(len(rows), generator=generator)[:BATCH]
        order = orders[step % len(orders)][some]
        x = rows[some].gather(1, order)
        log_q = tables[step % len(orders)][some]
        seen = context_or_none[some] if context_or_none is not None else None
        log_p = net.corrected(log_q, x, seen, order, dropout=DROPOUT).log_softmax(-1)
        nats = -log_p.gather(-1, x.long().unsqueeze(-1)).sum((1, 2)).mean()
        history.append(float(nats.detach()))
        return nats + RIDGE * net.table.square().sum() / len(rows)

    groups = [{"params": [net.table], "lr": TABLE_LR, "weight_decay": 0.0}, {"params": rest}]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))  # of dropout
        descend(groups, loss, steps, lr=LR, weight_decay=DECAY)
    return history
