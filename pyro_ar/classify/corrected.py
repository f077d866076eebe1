r"""A generative classifier whose posterior of the class is corrected by a network: the chain visible cells, class, hidden cells."""

import math

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import pyro
import torch

from pyro.distributions import Categorical
from sklearn.base import clone
from sklearn.model_selection import StratifiedKFold
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Generator, Tensor, nn

from pyro_ar.checks import require
from pyro_ar.classify.base import PartlySeenClassifier
from pyro_ar.classify.generative import GenerativeClassifier
from pyro_ar.classify.mixture_discriminant import MixtureDiscriminantAnalysis
from pyro_ar.classify.pattern_net import PatternNet, random_parts

__all__ = ["CorrectedClassifier"]

REPEATS = 20000  # answers that the weights are learnt from, at least: rows are repeated under new patterns up to MOST_REPEATS times
MOST_REPEATS = 24
STEPS, BATCH, LR = 1000, 256, 5e-3
UNITS = 16
FLOOR = -50.0  # nats: what a certainty of the classifier is worth


class CorrectedClassifier(PartlySeenClassifier):
    r"""A joint in the order *visible cells, class, hidden cells*, whose class is the generative classifier's, corrected by a network.

    .. math:: p(x_v)\; p(y \mid x_v)\; p(x_h \mid x_v, y), \qquad
              p(y \mid x_v) \propto p_{gen}(y \mid x_v)^{a}\; p_{net}(y \mid x_v)^{b}\; e^{c_y}

    The cells' densities, before and after the class, are those of the generative classifier, exact for every pattern. The conditional of the
    class starts as its posterior (a = 1, b = c = 0) and is corrected by what a `PatternNet` says: a, b and c come from 16 hidden units that read
    how much is visible and how sure both are. They are learnt by log score on rows that neither had seen, under random patterns; then both are fitted to all rows.

    As an any-order family it is **one joint for each pattern**: every answer is that of a joint, but answers for two
    patterns need not be marginals of the same one. `score_samples` is coherent, being the generative classifier's; what asks for a coherent joint
    (`Plausibility`, `information_gain`, `reveal`) takes `classifier_`.

    Where rows are plenty the network knows more than a mixture while much is visible, and the mixture more where little is:
    docs/neural_joints.md.

    Shapes:
        As `PartlySeenClassifier`.

    Args:
        classifier: A `GenerativeClassifier`, for instance; None: `MixtureDiscriminantAnalysis()`. It is copied, never fitted itself.
        net: Any other classifier of partly seen rows; None: `PatternNet()`. It is copied too.
        image_shape: `(height, width)` or with channels before, if rows are images: the patterns are then those of `random_parts`, otherwise
            each cell is visible with a probability :math:`u^2`, u uniform, one for each row.
        folds: Parts of the training rows, to be held out one after the other.
        most: Held-out rows that are enough; further folds are left out.
        random_state: Of folds, patterns and steps; None: 0, so that equal data give equal classifiers.

    Attributes:
        classifier_: The generative classifier, fitted to all rows.
        net_: The network, fitted to all rows.
        weights_: The module of a, b and c.

    Raises:
        ValueError: Bad data or arguments; hidden training cells; a class with fewer rows than folds.

    Source:
        The weighted product of opinions: Genest, Zidek (1986), *Combining probability distributions*, Statistical Science 1. Held-out
        rows for the weights: Wolpert (1992), *Stacked generalization*, Neural Networks 5.

    Example:
        >>> X = np.random.default_rng(0).normal(size=(40, 2)) + np.repeat([[0.0], [3.0]], 20, 0)
        >>> net = PatternNet(hidden=8, members=1, steps=50, batch_size=16)
        >>> classifier = CorrectedClassifier(MixtureDiscriminantAnalysis(1), net, folds=2).fit(X, np.repeat(["a", "b"], 20))
        >>> classifier.predict(np.array([[np.nan, 3.2]]), visible=np.array([False, True]))
        array(['b'], dtype='<U1')
    """

    classifier_: GenerativeClassifier
    net_: PartlySeenClassifier
    weights_: "Weights"

    def __init__(self, classifier: GenerativeClassifier | None = None, net: PartlySeenClassifier | None = None, *,
                 image_shape: Sequence[int] | None = None, folds: int = 5, most: int = 5000, random_state: Any = None) -> None:
        self.classifier = classifier
        self.net = net
        self.image_shape = image_shape
        self.folds = folds
        self.most = most
        self.random_state = random_state

    def fit(self, X: Any, y: Any, visible: Any = None) -> Self:
        """Fit both to parts of the rows, learn the weights on the rest, and fit both to all rows.

        Args:
            X: Rows.
            y: One label per row.
            visible: Must be None or all True.
        """
        x, seen, labels = self._read_training(X, y, visible)
        require(seen is None, "CorrectedClassifier.fit wants complete training rows", seen)
        require(self.folds >= 2, "folds must be 2 or more", self.folds)
        require(self.most >= 1, "most must be 1 or more", self.most)
        self.classes_, index = np.unique(labels, return_inverse=True)
        fewest = int(np.bincount(index).min())
        require(fewest >= self.folds, "every class needs as many rows as there are folds", f"{fewest} rows, {self.folds} folds")
        random = check_random_state(0 if self.random_state is None else self.random_state)
        x = x.flatten(1)
        self.weights_ = _learnt(*self._held_out(x, index, random), seed=random.randint(2**31))
        self.classifier_, self.net_ = self._fitted(x, labels)
        return self

    def _fitted(self, x: Tensor, labels: np.ndarray) -> tuple[GenerativeClassifier, PartlySeenClassifier]:
        classifier = MixtureDiscriminantAnalysis() if self.classifier is None else self.classifier
        require(isinstance(classifier, GenerativeClassifier), "classifier must be a GenerativeClassifier", classifier)
        net = PatternNet() if self.net is None else self.net
        require(isinstance(net, PartlySeenClassifier), "net must be a classifier of this library", net)
        return clone(classifier).fit(x, labels), clone(net).fit(x, labels)

    def _held_out(self, x: Tensor, index: np.ndarray, random: np.random.RandomState) -> tuple[Tensor, ...]:
        """Both log posteriors `(R, C)`, patterns `(R, n)` and classes `(R,)` of rows held out."""
        generator = Generator().manual_seed(random.randint(2**31))
        parts, rows = [], 0
        for train, test in StratifiedKFold(self.folds, shuffle=True, random_state=random.randint(2**31)).split(x, index):
            test = random.permutation(test)[:self.most - rows]
            rows += len(test)
            times = min(MOST_REPEATS, max(1, round(REPEATS / min(self.most, len(x)))))
            test = np.tile(test, times)
            seen = self._patterns(len(test), generator)
            both = [torch.from_numpy(c.predict_log_proba(x[test], seen)).float() for c in self._fitted(x[train], index[train])]
            parts.append((*both, seen, torch.from_numpy(index[test])))
            if rows >= self.most:
                break
        return tuple(torch.cat(part) for part in zip(*parts, strict=True))

    def _patterns(self, rows: int, generator: Generator) -> Tensor:
        if self.image_shape is None:
            share = torch.rand(rows, 1, generator=generator).square()
            return torch.rand(rows, self.n_features_in_, generator=generator) < share
        shape = tuple(self.image_shape)
        fits = len(shape) in (2, 3) and math.prod(shape) == self.n_features_in_
        require(fits, f"image_shape must be (height, width) or (channels, height, width) of {self.n_features_in_} cells", shape)
        return random_parts(shape, rows, generator=generator).flatten(1)

    # Answering.

    def _log_posterior(self, x: Tensor, visible: Tensor | None) -> Tensor:
        x = x.flatten(1)
        seen = torch.ones(1, x.shape[1], dtype=torch.bool, device=x.device) if visible is None else visible.flatten(1)
        log_p, log_q = (c._log_posterior(x, seen) for c in (self.classifier_, self.net_))
        corrected = self.weights_(log_p.float(), log_q.float(), seen.expand(x.shape)).log_softmax(-1).to(log_p)
        # Nothing seen is no evidence, and what no class of the joint can have stays impossible.
        return torch.where(seen.any(-1, keepdim=True), corrected, log_p)

    def score_samples(self, X: Any, visible: Any = None) -> Tensor:
        """Log p(x_visible), `(N,)`, in nats: the generative classifier's, exact and coherent."""
        check_is_fitted(self)
        return self.classifier_.score_samples(*self._flat(X, visible))

    def log_joint(self, X: Any, visible: Any = None) -> Tensor:
        """Log p(x_visible) + log p(y | x_visible), `(N, C)`, in nats."""
        return self.score_samples(X, visible).unsqueeze(-1) + self._log_posterior(*self._read(X, visible))

    def model(self, x: Any = None, visible: Any = None) -> Tensor:
        r"""The joint of what is visible and the class as a Pyro model; without rows, one is drawn.

        A plate 'rows' (dimension -1) holds the sites 'x', observed through the marginal of the visible cells, then 'y', the position in
        `classes_`, which enumerates.

        Args:
            x: Rows as in `predict`.
            visible: As in `predict`.

        Returns:
            The positions of the classes, `(N,)`.
        """
        check_is_fitted(self)
        rows, seen = (None, None) if x is None else self._flat(x, visible)
        if x is None and visible is not None:
            seen = self._check_pattern(visible).flatten(1)
        joint = self.classifier_.joint_
        pattern = torch.ones(1, self.n_features_in_, dtype=torch.bool) if seen is None else seen
        with pyro.plate("rows", len(pattern) if rows is None else len(rows)):
            obs = None if rows is None else rows.to(joint.dtype).reshape(-1, *joint.event_shape)
            drawn = pyro.sample("x", joint.marginal(pattern.reshape(-1, *joint.event_shape)), obs=obs)
            return pyro.sample("y", Categorical(logits=self._log_posterior(drawn.flatten(1), pattern)), infer={"enumerate": "parallel"})

    def _flat(self, X: Any, visible: Any) -> tuple[Tensor, Tensor | None]:
        x, seen = self._read(X, visible)
        return x.flatten(1), None if seen is None else seen.flatten(1)

    @property
    def num_parameters(self) -> int:
        """Those of both classifiers, and of the weights."""
        check_is_fitted(self)
        net: Any = self.net_
        return self.classifier_.num_parameters + net.num_parameters + sum(w.numel() for w in self.weights_.parameters())


class Weights(nn.Module):
    """The exponents a and b of the two posteriors and the biases c, from how much is visible and how sure they are; at first 1, 0 and 0."""

    FEATURES = 8

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.inner = nn.Linear(self.FEATURES, UNITS)
        self.outer = nn.Linear(UNITS, 2 + classes)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, log_p: Tensor, log_q: Tensor, visible: Tensor) -> Tensor:
        """What is to be normalised, `(R, C)`."""
        raw = self.outer(self.inner(_features(log_p, log_q, visible)).tanh())
        return raw[:, :1].exp() * log_p.clamp(min=FLOOR) + raw[:, 1:2] * log_q.clamp(min=FLOOR) + raw[:, 2:]


def _features(log_p: Tensor, log_q: Tensor, visible: Tensor) -> Tensor:
    share = visible.to(log_p).mean(-1, keepdim=True)
    found = [share, (share + 0.01).log()]
    for log in (log_p, log_q):
        found += [-(log.exp() * log.clamp(min=FLOOR)).sum(-1, keepdim=True), log.topk(2).values.clamp(min=-20) / 10]
    return torch.cat(found, -1)


def _learnt(log_p: Tensor, log_q: Tensor, visible: Tensor, index: Tensor, *, seed: int) -> Weights:
    """The weights with the best log score on held-out rows."""
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        weights = Weights(log_p.shape[1])
        adam = torch.optim.AdamW(weights.parameters(), lr=LR, weight_decay=0.01)
        decay = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: 1 - step / STEPS)
        for _ in range(STEPS):
            some = torch.randint(len(index), (BATCH,))
            loss = nn.functional.cross_entropy(weights(log_p[some], log_q[some], visible[some]), index[some])
            adam.zero_grad()
            loss.backward()
            adam.step()
            decay.step()
    return weights.eval().requires_grad_(False)
