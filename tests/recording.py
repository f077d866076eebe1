r"""Which rows a model is fitted to and which it answers: one ledger for all code that splits rows.

A `Ledger` is made of all rows of a test. Models of this file write into it, `assert_apart` says whether a row was scored by a model that
had been fitted to it, and `fits` and `scores` hold the numbers of the rows for everything else that a test wants to know. What to use:

=======================================  ==========================================================================
the code under test wants                give it
=======================================  ==========================================================================
any classifier of this library           `recording(ItsClass, ledger)(...)`, which does its work and writes it down
a classifier, no matter which            `recording(Frequencies, ledger)()`
a classifier of scikit-learn             `recording(GaussianNB, ledger)()`
a recipe: a function from rows to joint  `joint_recipe(ledger)`
a family for `par.fit`, `NeuralModel`    `RecordingFamily(ledger, cells)`
a joint                                  `RecordingJoint(ledger, cells)`
none of these                            `ledger.fitted(model, rows)`, `ledger.scored(model, rows)` from a patch of your own
=======================================  ==========================================================================

Example:
    >>> ledger = Ledger(numbered(6, 2))
    >>> model = recording(Frequencies, ledger)().fit(ledger.x[:4], [0, 1, 0, 1])
    >>> ledger.fits, model.predict(ledger.x[3:]).shape
    ([{0, 1, 2, 3}], (3,))
    >>> ledger.assert_apart()
    Traceback (most recent call last):
    AssertionError: model 0 was fitted to rows that it is scored on: [3]
"""

import inspect
import math

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from pyro.distributions import constraints
from torch import Size, Tensor, nn

from pyro_ar.classify.base import PartlySeenClassifier
from pyro_ar.joint import Joint

__all__ = ["Frequencies", "Ledger", "RecordingFamily", "RecordingJoint", "joint_recipe", "numbered", "recording"]

ANSWERS = ("log_posterior", "log_joint", "score_samples", "predict", "predict_log_proba", "predict_proba", "decision_function")


def numbered(rows: int, cells: int) -> Tensor:
    """`(rows, cells)`: every cell holds the number of its row, so that a row is known by any cell that is seen."""
    return torch.arange(rows, dtype=torch.float64).unsqueeze(1).expand(rows, cells).clone()


class Ledger:
    """What was fitted to which rows, and scored on which.

    Args:
        x: All rows, `(N, *event)`. A row is recognised by its visible cells, so no two may agree in them.

    Attributes:
        x: The rows.
        fits: Per model, in the order in which they were fitted first, the numbers of the rows that it knows.
        scores: Per model, the numbers of the rows that it was asked about, each as often as it was.
    """

    def __init__(self, x: Any) -> None:
        self.x = torch.as_tensor(x)
        self.fits: list[set[int]] = []
        self.scores: list[list[int]] = []
        self._models: list[Any] = []  # kept alive, so that no two share an identity

    def fitted(self, model: Any, rows: Any, visible: Any = None, *, more: bool = False) -> None:
        """The model was fitted to these rows: to nothing else, or to `more` than before."""
        number = self._number(model)
        seen = {row for row in self.numbers(rows, visible) if row is not None}
        self.fits[number] = seen | self.fits[number] if more else seen
        if not more:
            self.scores[number] = []

    def scored(self, model: Any, rows: Any, visible: Any = None) -> None:
        """The model was asked about these rows."""
        self.scores[self._number(model)] += [row for row in self.numbers(rows, visible) if row is not None]

    def numbers(self, rows: Any, visible: Any = None) -> list[int | None]:
        """Which rows of `x` these are; None where nothing is seen."""
        cells = self.x[0].numel()
        found = torch.as_tensor(rows.detach() if isinstance(rows, Tensor) else np.asarray(rows)).double().reshape(-1, cells)
        seen = ~found.isnan()
        if visible is not None:
            seen = seen & torch.as_tensor(visible).reshape(-1, cells)  # a pattern for each row, or for all
        same = ((found[:, None] == self.x.double().flatten(1)) | ~seen[:, None]).all(-1)
        known = seen.any(-1)
        assert (same.sum(-1)[known] == 1).all(), "rows that are none of the ledger's, or that no cell tells from others"
        return [int(match.nonzero()[0]) if any_seen else None for match, any_seen in zip(same, known, strict=True)]

    def assert_apart(self, models: Sequence[int] | None = None) -> None:
        """No model, or none of these, was fitted to a row that it was scored on; and some were fitted, and scored."""
        asked = range(len(self.fits)) if models is None else models
        assert any(self.fits[m] and self.scores[m] for m in asked), "no model was fitted to rows and scored on rows"
        for m in asked:
            both = sorted(self.fits[m].intersection(self.scores[m]))
            if both:
                raise AssertionError(f"model {m} was fitted to rows that it is scored on: {both}")

    def _number(self, model: Any) -> int:
        for number, known in enumerate(self._models):
            if known is model:
                return number
        self._models.append(model)
        self.fits.append(set())
        self.scores.append([])
        return len(self._models) - 1


def recording(classifier: type, ledger: Ledger) -> Any:
    """A subclass that writes down what it is fitted to and what it answers, and so do its clones."""
    def pattern(method: Callable[..., Any], *given: Any, **named: Any) -> Any:
        return inspect.signature(method).bind(*given, **named).arguments.get("visible")

    def answer(name: str) -> Callable[..., Any]:
        def method(self: Any, X: Any, *rest: Any, **named: Any) -> Any:
            inherited = getattr(super(recorded, self), name)
            ledger.scored(self, X, pattern(inherited, X, *rest, **named))
            return inherited(X, *rest, **named)

        return method

    def fit(self: Any, X: Any, y: Any = None, *rest: Any, **named: Any) -> Any:
        inherited = super(recorded, self).fit
        ledger.fitted(self, X, pattern(inherited, X, y, *rest, **named))
        return inherited(X, y, *rest, **named)

    methods = {name: answer(name) for name in ANSWERS if hasattr(classifier, name)}
    recorded: Any = type(f"Recording{classifier.__name__}", (classifier,), methods | {"fit": fit})
    return recorded


class Frequencies(PartlySeenClassifier):
    """Answers every row with the class frequencies."""

    num_parameters = 0

    def fit(self, X: Any, y: Any, visible: Any = None) -> "Frequencies":
        _, _, labels = self._read_training(X, y, visible)
        self.classes_, counts = np.unique(labels, return_counts=True)
        self.frequencies_ = torch.from_numpy(counts / counts.sum()).log()
        return self

    def log_posterior(self, x: Tensor, visible: Tensor | None) -> Tensor:
        return self.frequencies_.expand(len(x), -1)


class RecordingJoint(Joint):
    """Independent normals of one scale around 0, which write down what they are asked.

    Args:
        ledger: Where to.
        cells: Of a row.
        scale: A number, as a tensor.
        model: Whose name to write; None: its own.
    """

    support = constraints.real_vector

    def __init__(self, ledger: Ledger, cells: int, scale: Tensor | None = None, model: Any = None) -> None:
        self.ledger, self.model = ledger, self if model is None else model
        super().__init__({"scale": torch.ones(()) if scale is None else scale}, Size(), Size([cells]))

    def with_tensors(self, tensors: Any) -> "RecordingJoint":
        return RecordingJoint(self.ledger, self.event_shape[0], tensors["scale"], self.model)

    def log_density(self, x: Tensor) -> Tensor:
        return self.log_marginal(x, torch.ones_like(x, dtype=torch.bool))

    def log_marginal(self, x: Tensor, visible: Tensor) -> Tensor:
        self.ledger.scored(self.model, x, visible)
        scale = self._tensors["scale"]
        each = -0.5 * (x / scale).square() - scale.log() - 0.5 * math.log(2 * math.pi)
        return torch.where(visible, each, 0).sum(-1)

    def methods(self, visible: Tensor) -> np.ndarray:
        return np.full(visible.shape[:-1], "closed form", dtype=object)

    @property
    def num_parameters(self) -> int:
        return 1


def joint_recipe(ledger: Ledger) -> Callable[[Tensor], RecordingJoint]:
    """A function from rows to a joint that was fitted to them."""
    def fit(x: Tensor) -> RecordingJoint:
        joint = RecordingJoint(ledger, x.shape[1])
        ledger.fitted(joint, x)
        return joint

    return fit


class RecordingFamily(nn.Module):
    """A family of `RecordingJoint`: rows that it sees in training mode are fitted, others are scored."""

    context_dim = 0

    def __init__(self, ledger: Ledger, cells: int) -> None:
        super().__init__()
        self.ledger, self.event_shape = ledger, Size([cells])
        self.log_scale = nn.Parameter(torch.tensor(3.0))

    num_parameters = 1

    def forward(self) -> RecordingJoint:
        return RecordingJoint(self.ledger, self.event_shape[0], self.log_scale.exp(), self)

    def training_log_prob(self, x: Tensor, context: Tensor | None = None, visible: Tensor | None = None) -> Tensor:
        if self.training and torch.is_grad_enabled():
            self.ledger.fitted(self, x, visible, more=True)
        else:
            self.ledger.scored(self, x, visible)
        each = -0.5 * (x / self.log_scale.exp()).square() - self.log_scale
        return (each if visible is None else torch.where(visible, each, 0)).sum(-1)
