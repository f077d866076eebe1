r"""A generative classifier whose posterior of the class is corrected by a network: the chain visible cells, class, hidden cells."""

import math

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch

from sklearn.base import clone
from sklearn.model_selection import StratifiedKFold
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from torch import Generator, Tensor, nn

from pyro_ar.checks import require
from pyro_ar.classify.base import PartlySeenClassifier
from pyro_ar.classify.generative import GenerativeClassifier
from pyro_ar.classify.images import image_shape_of, random_parts
from pyro_ar.classify.mda.mixture_discriminant import MixtureDiscriminantAnalysis
from pyro_ar.classify.pattern_net import PatternNet
from pyro_ar.classify.rows_of_classes import require_rows
from pyro_ar.classify.visible_then_class import visible_then_class
from pyro_ar.inference.descent import descend
from pyro_ar.recorded import Recorded

__all__ = ["CorrectedClassifier"]

REPEATS = 20000  # answers, about, that the weights are learnt from: few rows are repeated under more patterns
LEAST_REPEATS, MOST_REPEATS = 4, 24
# A step for each held-out row, within bounds: of few rows more steps learn the noise, of many fewer leave something on the table.
LEAST_STEPS, MOST_STEPS = 1000, 5000
BATCH, LR = 256, 5e-3
UNITS = 16
FLOOR = -50.0  # nats: what a certainty of the classifier is worth


class CorrectedClassifier(PartlySeenClassifier):
    r"""A joint in the order *visible cells, class, hidden cells*, whose class is the generative classifier's, corrected by a network.

    .. math:: p(x_v)\; p(y \mid x_v)\; p(x_h \mid x_v, y), \qquad
              p(y \mid x_v) \propto p(y) \left( \frac{p_{gen}(y \mid x_v)}{p(y)} \right)^{a} \left( \frac{p_{net}(y \mid x_v)}{\pi(y)} \right)^{b} e^{c_y}

    with p(y) the generative classifier's prior and :math:`\pi` the frequencies of training.
    The cells' densities, before and after the class, are those of the generative classifier, exact for every pattern. The conditional of the
    class starts as its posterior (a = 1, b = c = 0) and is corrected by what a `PatternNet` says: a, b and c come from 16 hidden units that read
    how much is visible and how sure both are. They are learnt by log score on rows that neither had seen, under random patterns; then both are fitted to
    all rows.

    As an any-order family it is **one joint for each pattern**: every answer is that of a joint, but answers for two
    patterns need not be marginals of the same one. `score_samples` is coherent, being the generative classifier's; what asks for a coherent joint
    (`Plausibility`, `information_gain`, `reveal`) takes `classifier_`.

    Where rows are plenty the network knows more than a mixture while much is visible, and the mixture more where little is:
    docs/neural_joints.md. `fit` trains six networks (two where `most` rows are fewer than a fold has), a minute or more. It takes complete rows only.

    Shapes:
        As `PartlySeenClassifier`.

    Args:
        classifier: A `GenerativeClassifier` without `pattern`; None: `MixtureDiscriminantAnalysis()`. It is copied, never fitted itself.
        net: Any other classifier of partly seen rows; None: a `PatternNet` of one member. It is copied too.
        image_shape: `(height, width)` or with channels before: the patterns are then those of `random_parts`, otherwise
            each cell is visible with a probability :math:`u^2`, u uniform, one for each row. None: the rows' own shape, where they are not flat.
            `()`: no images. It goes to `classifier` and `net` where these are None.
        folds: Parts of the training rows, to be held out one after the other.
        most: Held-out rows that are enough; further folds are left out.
        random_state: Of folds, patterns and steps; None: 0, so that equal data give equal classifiers.

    Attributes:
        classifier_: The generative classifier, fitted to all rows.
        log_prior_: Its log p(y), `(C,)`.
        frequencies_: The log of the class frequencies in training, `(C,)`, which the network has learnt as its prior.
        net_: The network, fitted to all rows.
        weights_: The module of a, b and c.

    Raises:
        ValueError: Bad data or arguments; hidden training cells; one class only; a class with fewer rows than folds.

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
    log_prior_: Tensor
    frequencies_: Tensor
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
        whole = all(isinstance(k, int | np.integer) for k in (self.folds, self.most))
        require(whole and self.folds >= 2 and self.most >= 1, "folds must be 2 or more and most 1 or more, whole numbers", self.folds, self.most)
        self.classes_, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
        require(len(counts) >= 2, "CorrectedClassifier wants rows of two classes or more, not of one class", self.classes_.tolist())
        require_rows(labels, self.folds, f"{self.folds} folds want")
        random = check_random_state(0 if self.random_state is None else self.random_state)
        self.frequencies_ = torch.from_numpy(counts / counts.sum()).log()
        steps = min(max(min(self.most, len(x)), LEAST_STEPS), MOST_STEPS)
        self.weights_ = _learnt(self.frequencies_.float(), *self._held_out(x, index, random), steps=steps, seed=random.randint(2**31))
        self.classifier_, self.net_ = self._fitted(x, labels)
        self.log_prior_ = self.classifier_.log_prior_
        return self

    def _fitted(self, x: Tensor, labels: np.ndarray) -> tuple[GenerativeClassifier, PartlySeenClassifier]:
        shape = self._image_shape()
        classifier = MixtureDiscriminantAnalysis(image_shape=shape) if self.classifier is None else self.classifier
        require(isinstance(classifier, GenerativeClassifier), "classifier must be a GenerativeClassifier", classifier)
        require(classifier.pattern is None, "classifier must ignore patterns: in training all is visible", "one with `pattern`")
        net = PatternNet(members=1, image_shape=shape) if self.net is None else self.net
        require(isinstance(net, PartlySeenClassifier), "net must be a classifier of this library", net)
        return clone(classifier).fit(x, labels), clone(net).fit(x, labels)

    def _image_shape(self) -> tuple[int, ...]:
        return image_shape_of(self.image_shape, self.event_shape_)

    def _held_out(self, x: Tensor, index: np.ndarray, random: np.random.RandomState) -> tuple[Tensor, ...]:
        """What both say beyond their priors `(R, C)`, patterns `(R, n)` and classes `(R,)` of rows held out."""
        generator = Generator().manual_seed(random.randint(2**31))
        parts, rows = [], 0
        for train, test in StratifiedKFold(self.folds, shuffle=True, random_state=random.randint(2**31)).split(x, index):
            test = random.permutation(test)[:self.most - rows]
            rows += len(test)
            times = min(MOST_REPEATS, max(LEAST_REPEATS, round(REPEATS / min(self.most, len(x)))))
            test = np.tile(test, times)
            seen = self._patterns(len(test), generator)
            classifier, net = self._fitted(x[train], index[train])
            both = (torch.from_numpy(c.predict_log_proba(x[test], seen)) for c in (classifier, net))
            said = (log - prior for log, prior in zip(both, (classifier.log_prior_, self.frequencies_), strict=True))
            parts.append((*(t.float() for t in said), seen, torch.from_numpy(index[test])))
            if rows >= self.most:
                break
        return tuple(torch.cat(part) for part in zip(*parts, strict=True))

    def _patterns(self, rows: int, generator: Generator) -> Tensor:
        if shape := self._image_shape():
            return random_parts(shape, rows, generator=generator).flatten(1)
        share = torch.rand(rows, 1, generator=generator).square()
        return torch.rand(rows, self.n_features_in_, generator=generator) < share

    # Answering.

    def log_posterior(self, x: Tensor, visible: Tensor | None) -> Tensor:
        return self._corrected(self.classifier_.log_posterior(x, visible), x, visible)

    def _corrected(self, log_p: Tensor, x: Tensor, visible: Tensor | None) -> Tensor:
        """What becomes of the generative classifier's log posterior, `(N, C)`."""
        seen = torch.ones(1, *self.event_shape_, dtype=torch.bool, device=x.device) if visible is None else visible
        log_q = self.net_.log_posterior(x, visible)
        prior, frequencies = self.log_prior_.to(log_p), self.frequencies_.to(log_q)
        seen = seen.flatten(1).expand(len(x), -1)
        beyond = self.weights_((log_p - prior).float(), (log_q - frequencies).float(), seen).to(log_p)
        # Nothing seen is no evidence, and a class that the joint rules out stays impossible.
        corrected = (prior + beyond).masked_fill(log_p == -math.inf, -math.inf).log_softmax(-1)
        return torch.where(seen.any(-1, keepdim=True), corrected, log_p)

    def score_samples(self, X: Any, visible: Any = None) -> Tensor:
        """Log p(x_visible), `(N,)`, in nats: the generative classifier's, exact and coherent."""
        check_is_fitted(self)
        return self.classifier_.score_samples(*self.read_rows(X, visible))

    def log_joint(self, X: Any, visible: Any = None) -> Tensor:
        """Log p(x_visible) + log p(y | x_visible), `(N, C)`, in nats; minus infinity where no class can have the row."""
        x, seen = self.read_rows(X, visible)
        scores = self.classifier_.log_joint(x, seen)
        dead = (scores == -math.inf).all(-1, keepdim=True)
        scores = scores.masked_fill(dead, 0)
        evidence = scores.logsumexp(-1, keepdim=True)
        return (evidence + self._corrected(scores - evidence, x, seen)).masked_fill(dead, -math.inf)

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
        rows, seen = self.read_if_given(x, visible)
        return visible_then_class(self, self.classifier_.joint_, rows, seen)

    @property
    def num_parameters(self) -> int:
        """Those of both classifiers, and of the weights."""
        check_is_fitted(self)
        net: Any = self.net_
        return self.classifier_.num_parameters + net.num_parameters + sum(w.numel() for w in self.weights_.parameters())


class Weights(Recorded, nn.Module):
    """The exponents a and b of what both say beyond their priors, and the biases c, from how much is visible and how sure both are; at first 1, 0 and 0."""

    FEATURES = 8

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.inner = nn.Linear(self.FEATURES, UNITS)
        self.outer = nn.Linear(UNITS, 2 + classes)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, log_p: Tensor, log_q: Tensor, visible: Tensor) -> Tensor:
        """What speaks for the classes beyond the prior, `(R, C)`."""
        raw = self.outer(self.inner(_features(log_p, log_q, visible)).tanh())
        return raw[:, :1].exp() * log_p.clamp(min=FLOOR) + raw[:, 1:2] * log_q.clamp(min=FLOOR) + raw[:, 2:]


def _features(log_p: Tensor, log_q: Tensor, visible: Tensor) -> Tensor:
    share = visible.to(log_p).mean(-1, keepdim=True)
    found = [share, (share + 0.01).log()]
    for log in (log_p.log_softmax(-1), log_q.log_softmax(-1)):
        found += [-(log.exp() * log.clamp(min=FLOOR)).sum(-1, keepdim=True), log.topk(2).values.clamp(min=-20) / 10]
    return torch.cat(found, -1)


def _learnt(log_prior: Tensor, log_p: Tensor, log_q: Tensor, visible: Tensor, index: Tensor, *, steps: int, seed: int) -> Weights:
    """The weights with the best log score on held-out rows."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        weights = Weights(log_p.shape[1])

        def loss(_: int) -> Tensor:
            some = torch.randint(len(index), (BATCH,))
            return nn.functional.cross_entropy(log_prior + weights(log_p[some], log_q[some], visible[some]), index[some])

        descend(weights.parameters(), loss, steps, lr=LR)
    return weights.eval().requires_grad_(False)
