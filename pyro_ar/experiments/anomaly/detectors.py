"""What gives a row a score, the higher the more ordinary: joints by log p(x), and the detectors of scikit-learn."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from torch import Generator, Tensor

from pyro_ar.elliptical import Gaussian, StudentT
from pyro_ar.experiments.anomaly.strange import shuffle_columns
from pyro_ar.experiments.complete.answers import OfLevels
from pyro_ar.experiments.complete.lineup import MODELS
from pyro_ar.experiments.complete.spaces import Space
from pyro_ar.joint import Joint
from pyro_ar.neural.registry import FAMILIES

__all__ = ["JOINTS", "RIVALS", "auroc", "fit_joint", "fit_rival", "fitting", "log_p", "usual"]

SHRINKAGES = (0.003, 0.03, 0.1, 0.3)

TREES = 200
LEAST = -1e300  # a score, that of impossible rows

Score = Callable[[Tensor], Tensor]


def auroc(ordinary: Tensor, strange: Tensor) -> float:
    """The chance that a strange row scores lower than an ordinary one, ties counting half."""
    from sklearn.metrics import roc_auc_score

    labels = torch.cat((torch.zeros(len(ordinary)), torch.ones(len(strange))))
    return float(roc_auc_score(labels.numpy(), -torch.cat((ordinary, strange)).double().clamp(min=LEAST).numpy()))


# Joints.


@dataclass(frozen=True)
class _Real:
    """A joint over real columns in standard units, its shrinkage chosen on a tenth of the rows."""

    joint: Any
    options: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, space: Space, seed: int, steps: float) -> Joint:
        cut = max(1, len(space.train) // 10)
        held, train = space.train[:cut].double(), space.train[cut:].double()
        scores = {s: self.joint.from_data(train, shrinkage=s, **self.options).log_prob(held).mean().item() for s in SHRINKAGES}
        return self.joint.from_data(space.train.double(), shrinkage=max(scores, key=lambda s: scores[s]), **self.options)


def _named(name: str, space: Space, seed: int, steps: float) -> Joint | OfLevels:
    return MODELS[name].fit(space, seed, steps).joint


# In closed form the Student-t would rank as the Gaussian does.
_REAL: Mapping[str, Callable[..., Any]] = {"Gaussian": _Real(Gaussian), "Student-t": _Real(StudentT, {"em_steps": 30})}
JOINTS: tuple[str, ...] = (*MODELS, *(name for name in _REAL if name not in MODELS))
USUAL = ("independent", "Chow-Liu tree", "Gaussian", "Gaussian mixture", "latent tree", "NADE", "OrderlessNADE", "Student-t")


def fitting(space: Space) -> tuple[str, ...]:
    """Joints that these rows can be scored by."""
    if not space.num_states:
        return tuple(_REAL)
    return tuple(name for name in MODELS if min(space.event_shape[1:]) > 1 or name not in FAMILIES or not FAMILIES[name].images)


def usual(space: Space) -> tuple[str, ...]:
    """Those that do not take long."""
    return tuple(name for name in fitting(space) if name in USUAL)


def fit_joint(name: str, space: Space, seed: int, steps: float) -> Joint | OfLevels:
    """The joint of the training rows."""
    make = partial(_named, name) if space.num_states else _REAL[name]
    return make(space, seed, steps)


def log_p(joint: Joint | OfLevels, x: Tensor) -> Tensor:
    """Log p(x) of rows `(N, n)`; of a density over levels at the middle of their cells."""
    with torch.no_grad():
        if isinstance(joint, OfLevels):
            return joint.joint.log_prob(x.to(joint.joint.dtype) + 0.5)
        values = x if joint.num_states is not None else x.to(joint.dtype)
        return torch.cat([joint.log_prob(part.reshape(-1, *joint.event_shape)) for part in values.split(500)])


# The detectors of scikit-learn.


def _forest(train: Any, seed: int, **options: Any) -> Any:
    from sklearn.ensemble import IsolationForest

    rows = options.pop("max_samples")
    return IsolationForest(n_estimators=TREES, random_state=seed, max_samples=min(rows, len(train)) if isinstance(rows, int) else rows, **options).fit(train)


def _support_vectors(train: Any, seed: int, *, times: float, **options: Any) -> Any:
    from sklearn.svm import OneClassSVM

    return OneClassSVM(gamma=times / max(train.shape[1] * train.var(), 1e-12), **options).fit(train)


def _local_outliers(train: Any, seed: int, *, n_neighbors: int) -> Any:
    from sklearn.neighbors import LocalOutlierFactor

    return LocalOutlierFactor(novelty=True, n_neighbors=min(n_neighbors, len(train) - 1)).fit(train)


RIVALS: Mapping[str, tuple[Callable[..., Any], Sequence[Mapping[str, Any]]]] = {
    "isolation forest": (_forest, [{"max_samples": rows, "max_features": share} for rows in (256, 1.0) for share in (0.25, 1.0)]),
    "one-class SVM": (_support_vectors, [{"nu": nu, "times": times} for nu in (0.01, 0.1, 0.5) for times in (0.1, 1.0, 10.0)]),
    "local outlier factor": (_local_outliers, [{"n_neighbors": k} for k in (2, 5, 10, 20, 50)]),
}


def fit_rival(name: str, train: Tensor, held: Tensor, seed: int) -> tuple[Score, dict[str, Any]]:
    """A detector on scaled columns, its settings those that best tell the held-back rows from the same with shuffled columns.

    Nobody has strange rows of every kind to tune by; rows whose columns were shuffled are the substitute that needs none.

    Returns:
        Its score of rows, and its settings.
    """
    from sklearn.preprocessing import StandardScaler

    make, settings = RIVALS[name]
    scaler = StandardScaler().fit(train.numpy())

    def scored(detector: Any, x: Tensor) -> Tensor:
        return torch.as_tensor(detector.score_samples(scaler.transform(x.numpy())))

    false = shuffle_columns(held, Generator().manual_seed(seed))
    rows = scaler.transform(train.numpy())
    fitted = [make(rows, seed, **options) for options in settings]
    found = [auroc(scored(one, held), scored(one, false)) for one in fitted]
    best = max(range(len(found)), key=found.__getitem__)
    return partial(scored, fitted[best]), dict(settings[best])
