r"""The models of the occlusion experiment.

A model joins by one entry in `MODELS`. The usual ones run unless told otherwise; the others take longer, and run if named or with `--models all`.
Where a model has settings, its comment or its class says on which inner split they were chosen; no test row had a say.
"""

import math

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from torch import nn

from pyro_ar.budget import MEMORY
from pyro_ar.classify import (
    CorrectedClassifier,
    DiscriminantAnalysis,
    EstimatedClassifier,
    GenerativeClassifier,
    LogisticRegression,
    MixtureChainClassifier,
    MixtureDiscriminantAnalysis,
    OpinionPool,
    PatternNet,
)
from pyro_ar.data import Dataset
from pyro_ar.elliptical import LowRankGaussian
from pyro_ar.elliptical.units import SCALES
from pyro_ar.experiments.occlusion.bars import Binarised, KernelDensity, SupportVectors
from pyro_ar.experiments.occlusion.filled import MeanFilled
from pyro_ar.experiments.occlusion.inner import Chosen, Tempered
from pyro_ar.experiments.occlusion.practice import boosting, forest, iterative_logistic
from pyro_ar.latent import LatentTree
from pyro_ar.neural.orderless_nade import OrderlessNADE
from pyro_ar.neural.over_orders import OverOrders
from pyro_ar.neural.registry import FAMILIES, Trained
from pyro_ar.outputs import Bernoulli, DiscretisedLogisticMixture, Output
from pyro_ar.tables import ChowLiuTree, FullyIndependent, MarkovChain

__all__ = ["MODELS", "REFERENCE", "Model", "fitting", "fresh", "is_large", "note_of", "unfit", "usual"]

REFERENCE = "MDA"  # of the paired differences: the model to beat
LARGE = 2**22  # values in the training data
MANY = 400  # cells: the answers of nets take many milliseconds per row
MAX_STEPS = 2000  # of training of a net: what bounds the time on large data
RANK = 40  # of the Gaussian of large data
MOST_LEVELS, MOST_DENSE = 64, 150  # of a chain over levels: its tables and matrices grow with them
PENALTIES = (0.001, 0.01, 0.1, 1.0, 10.0, 100.0)  # C of logistic regression
BANDWIDTHS = (1 / 16, 1.5 / 16, 2 / 16, 2.5 / 16, 3 / 16, 4 / 16, 6 / 16)  # of the range of each cell
KERNELS = {"C": (0.1, 1.0, 10.0, 100.0), "gamma": (0.5, 1.0, 2.0), "scale": SCALES}  # of support vectors
FEW_KERNELS = {"C": (1.0, 10.0), "gamma": (1.0, 2.0), "scale": SCALES}  # where a fit takes many seconds
MANY_HELD_OUT = 12000  # rows that the weights of mixture and network are learnt from: a fold of MNIST, of 3000 they were worse by 1 to 2 % of the log score
PARTICLES = 32  # for each class and row, where a chain has no exact answer: about half a second of CPU time for each 8x8 digit
SUBSAMPLE = 5000  # training rows of the bars whose cost grows with their square


def is_large(data: Dataset) -> bool:
    """Whether methods that want minutes on a few thousand small images must be cut down."""
    return data.x.numel() > LARGE


class Model(NamedTuple):
    """A classifier of the line-up.

    Attributes:
        make: A fresh classifier for this data; its arguments go into the settings of the results.
        unfit: Why it cannot be used on this data, empty if it can.
        note: What a reader must know about it.
        usual: Whether it runs on such data unless told otherwise.
    """

    make: Callable[[Dataset], Any]
    unfit: Callable[[Dataset], str] = lambda data: ""
    note: Callable[[Dataset], str] = lambda data: ""
    usual: Callable[[Dataset], bool] = lambda data: True


def fitting(data: Dataset, *, holes: bool = False) -> tuple[str, ...]:
    """The names of all models that can be used on this data, where `holes` says that cells are to be hidden in training too.

    Without those of estimates, which take hours and run where they are named.
    """
    return tuple(name for name in MODELS if name not in ESTIMATED and not unfit(name, data, holes=holes))


def usual(data: Dataset, *, holes: bool = False) -> tuple[str, ...]:
    """The names of those that run unless told otherwise."""
    return tuple(name for name, model in MODELS.items() if (name in TABLES_WITH_HOLES if holes else model.usual(data)))


# Of data with hidden cells, all others learn from what is visible.
FILLED = ("kernel density", "pattern net", "SVM (mean)")
FIXED_ORDER = tuple(entry.classifies.name or name for name, entry in FAMILIES.items() if entry.classifies and not entry.family.net_type.any_order)
ESTIMATED = tuple(f"{name} (estimates)" for name in FIXED_ORDER)
COMPLETE = ("MDA + pattern net", "MDA chain", *FIXED_ORDER, *ESTIMATED)
TORN = ("opinion pool", "boosting", "forest", "iterative + logistic")  # they learn from holes such as they will meet
TABLES_WITH_HOLES = ("Gaussian", "MDA", "MDA (tempered)", *TORN)  # the usual ones there


def unfit(name: str, data: Dataset, *, holes: bool = False) -> str:
    """Why a model cannot be used on this data, empty if it can."""
    torn = _torn(data, holes)
    if name in COMPLETE and torn:
        return MODELS[name].unfit(data) or "it learns from complete rows only, and cells of these are hidden"
    if name in TORN and not torn:
        return "it learns from holes such as it will meet, and the training rows have none (--holes hides cells there too)"
    return MODELS[name].unfit(data)


def note_of(name: str, data: Dataset, *, holes: bool = False) -> str:
    """What a reader must know about a model on this data."""
    filled = "hidden training cells filled with the mean of their column" if name in FILLED and _torn(data, holes) else ""
    return ", ".join(filter(None, (MODELS[name].note(data), filled)))


def fresh(name: str, data: Dataset, *, holes: bool = False) -> Any:
    """A classifier for this data, not fitted."""
    classifier = MODELS[name].make(data)
    return MeanFilled(classifier) if name in FILLED and _torn(data, holes) else classifier


def _torn(data: Dataset, holes: bool) -> bool:
    return holes or data.visible is not None


def _never(data: Dataset) -> bool:
    return False


def _if_small(data: Dataset) -> bool:
    return not is_large(data) and data.x.shape[1] < MANY


# Tables.


def _table(joint: type, *, pairs: bool = False) -> Callable[[Dataset], Any]:
    def make(data: Dataset) -> Any:
        states, bits = data.num_states or 2, pairs and _too_many_pairs(data)
        # One pseudo-observation per row of a table: with 17 levels and 150 images per class, a whole one per cell
        # would flatten the chain and the tree.
        options = {"num_states": 2, "pseudocount": 1 / 2} if bits else {"num_states": states, "pseudocount": 1 / states}
        classifier = GenerativeClassifier(joint, fit_options=options)
        return Binarised(classifier, states // 2) if bits else classifier

    return make


def _needs_states(data: Dataset) -> str:
    return "" if data.num_states else "it needs states, and the values are real numbers (binarise them)"


def _too_many_pairs(data: Dataset) -> bool:
    return (data.x.shape[1] * (data.num_states or 0)) ** 2 > MEMORY // 2


def _bits_note(data: Dataset) -> str:
    level = (data.num_states or 2) // 2
    return f"sees black and white, from level {level} on: the pair tables of grey levels would be too large" if _too_many_pairs(data) else ""


def _latent(data: Dataset) -> Any:
    """A latent tree per class; grey levels through smooth emissions, or in black and white where the data are large.

    Chosen on an inner split of the digits (`benchmarks/latent_tree_classifier.py --digits`): of seven settings the best at half of the pixels hidden.
    """
    states, large = data.num_states or 2, is_large(data)
    bits = states == 2 or large
    options = {"num_hidden": 16 if bits else 8, "smoothing": 0.3 if large else 1.0, "epochs": 15 if large else 25, "batch_size": 200,
               "output": Bernoulli() if bits else DiscretisedLogisticMixture(states, 2)}
    classifier = GenerativeClassifier(LatentTree, fit_options=options)
    return Binarised(classifier, states // 2) if bits and states > 2 else classifier


def _latent_note(data: Dataset) -> str:
    seen = f", black and white from level {(data.num_states or 2) // 2} on" if is_large(data) and (data.num_states or 2) > 2 else ""
    return f"a tree of hidden states per class{seen}"


# Gaussians and mixtures of Student-t. The settings for large data were chosen on rows of MNIST's training part: 1000 to judge by.


def _gaussian(data: Dataset) -> GenerativeClassifier:
    """Of many cells a full matrix takes too long: at half of 784 hidden, each row in its own way, a third of a second per row."""
    if is_large(data):
        return GenerativeClassifier(LowRankGaussian, fit_options={"rank": RANK, "shrinkage": 0.1})
    return DiscriminantAnalysis(shrinkage=0.1)


def _mixture(data: Dataset) -> MixtureDiscriminantAnalysis:
    """The library's defaults, with shifted images where there are images.

    On large data more components and more shrinkage: with 12,000 training rows a = 0.1, 0.2, 0.4, 0.6 gave 89.9, 90.2, 90.6, 90.5 % as mean over 0, 50, 80, 90
    and 95 % hidden, the logit 89.8, shifted images 89.3, rank 25 90.2 at twice the time; then 40 components on all rows, 92.1.
    """
    if is_large(data):
        return MixtureDiscriminantAnalysis(40, rank=15, shrinkage=0.5, image_shape=())
    return MixtureDiscriminantAnalysis(image_shape=data.image_shape or ())


# Neural joints.


def _neural(make: Callable[[int, Output, int], nn.Module], *, epochs: int, batch_size: int, **options: Any) -> Callable[[Dataset], Any]:
    """A family with the class as context.

    Sizes and settings were chosen by log score and seconds on an inner split (1150 and 287 rows) of the training part of seed 1,
    split 1, of the digits, and nowhere else. Time was the main constraint: with several times the steps, and dropout, such nets gain a
    point or two. A categorical output in place of the mixture loses far more (FVSBN 81 %, NADE 86 % with nothing hidden).
    """

    def build(data: Dataset) -> Any:
        states = data.num_states or 2
        output = Bernoulli() if states == 2 else DiscretisedLogisticMixture(states, 5)
        family = make(data.x.shape[1], output, len(np.unique(data.y)) if data.y is not None else 0)
        most = max(1, MAX_STEPS // math.ceil(0.9 * len(data.x) / batch_size))
        fit = {"epochs": min(epochs, most), "batch_size": batch_size, **options, "accelerator": "cpu", "progress": False}
        return GenerativeClassifier(family, fit_options=fit)

    return build


def _registered(family: Any, trained: Trained) -> Model:
    def make(n: int, output: Output, classes: int) -> nn.Module:
        return family(n, output=output, context_dim=classes, **trained.options)

    return Model(_neural(make, **trained.fit), _needs_states, usual=_if_small)


def _estimates(made: Model) -> Model:
    """The same family under every pattern."""
    def make(data: Dataset) -> EstimatedClassifier:
        return EstimatedClassifier(made.make(data), num_particles=PARTICLES, num_islands=16)

    return Model(make, made.unfit, lambda data: f"estimated by {PARTICLES} particles where there is no exact answer, marked ~", usual=_never)


def _orderless_long(n: int, output: Output, classes: int) -> OverOrders:
    return OverOrders(OrderlessNADE(n, 128, output, classes, activation="relu"), 4)


# Mixture and network together.


def _corrected(data: Dataset) -> CorrectedClassifier:
    """Of small data one network, since it is trained six times; the choice between folds was by log score on the inner split of the nets."""
    if is_large(data):
        return CorrectedClassifier(_mixture(data), _pattern_net(data), image_shape=data.image_shape, most=MANY_HELD_OUT)
    return CorrectedClassifier(_mixture(data), PatternNet(members=1), image_shape=data.image_shape)


def _chain(data: Dataset) -> MixtureChainClassifier:
    return MixtureChainClassifier(_mixture(data), num_levels=data.num_states)


def _needs_few_levels(data: Dataset) -> str:
    if not data.num_states or data.num_states > MOST_LEVELS:
        return f"it needs values on {MOST_LEVELS} levels at most"
    return "its full matrices are for fewer cells" if data.x.shape[1] > MOST_DENSE else ""


# Bars.


def _density(data: Dataset) -> Chosen:
    return Chosen(KernelDensity(), {"bandwidth": BANDWIDTHS, "scale": SCALES}, max_rows=SUBSAMPLE if is_large(data) else None)


def _machine(data: Dataset) -> Tempered:
    chosen = Chosen(SupportVectors(), FEW_KERNELS if is_large(data) else KERNELS, max_rows=SUBSAMPLE if is_large(data) else None)
    return Tempered(chosen, each_share=True)


def _logistic(fill: str) -> Callable[[Dataset], Tempered]:
    """The strong penalty that is right most often where much is hidden says next to nothing without a temperature."""
    def make(data: Dataset) -> Tempered:
        return Tempered(Chosen(LogisticRegression(fill=fill), {"C": PENALTIES, "scale": SCALES}), each_share=True)

    return make


def _pattern_net(data: Dataset) -> PatternNet:
    """Settings by log score on the same inner split as the nets above; of large data on 4000 to 6000 of the training rows."""
    if not is_large(data):
        return PatternNet()
    if not data.image_shape:
        return PatternNet(steps=6000, lr=2e-3, dropout=0.1, ranks=False)
    return PatternNet(256, members=1, steps=9000, batch_size=128, dropout=0.2, ranks=False, image_shape=data.image_shape, channels=32, bfloat16=True)


def _pattern_net_note(data: Dataset) -> str:
    return ("a convolutional network trained on random pixels and boxes" if is_large(data) and data.image_shape
            else "3 discriminative networks trained on random patterns")


def _some_rows_note(text: str) -> Callable[[Dataset], str]:
    def note(data: Dataset) -> str:
        few = f"{SUBSAMPLE} training rows" if is_large(data) and len(data.x) > SUBSAMPLE else ""
        return ", ".join(filter(None, (text, few)))

    return note


MODELS: dict[str, Model] = {
    "independent": Model(_table(FullyIndependent), _needs_states),
    "Markov chain": Model(_table(MarkovChain, pairs=True), _needs_states, _bits_note),
    "Chow-Liu tree": Model(_table(ChowLiuTree, pairs=True), _needs_states, _bits_note),
    "latent trees": Model(_latent, _needs_states, _latent_note, usual=_never),
    "Gaussian": Model(_gaussian, note=lambda data: f"factor analysis of rank {RANK}" if is_large(data) else ""),
    "MDA": Model(_mixture, note=lambda data: "mixtures of Student-t per class on rank-normal cells"),
    "MDA (tempered)": Model(lambda data: Tempered(_mixture(data)), note=lambda data: "the same with a temperature from inner rows, no longer a joint"),
    "MDA + pattern net": Model(_corrected, note=lambda data: "the class posterior of MDA corrected by the pattern net; a joint for each pattern",
                               usual=is_large),
    "MDA chain": Model(_chain, _needs_few_levels, lambda data: "conditionals of MDA priced on levels and corrected by a net", usual=_never),
    "kernel density": Model(_density, note=_some_rows_note("")),
    **{entry.classifies.name or name: _registered(entry.family, entry.classifies) for name, entry in FAMILIES.items() if entry.classifies},
    **{f"{entry.classifies.name or name} (estimates)": _estimates(_registered(entry.family, entry.classifies))
       for name, entry in FAMILIES.items() if entry.classifies and not entry.family.net_type.any_order},
    "OrderlessNADE (4 orders)": Model(
        _neural(_orderless_long, epochs=120, batch_size=64, lr=1e-2, weight_decay=0.1), _needs_states, usual=_never),
    "pattern net": Model(_pattern_net, note=_pattern_net_note, usual=is_large),
    "SVM (mean)": Model(_machine, note=_some_rows_note("hidden cells filled with their training mean; its probabilities are a softmax of votes")),
    "logistic (mean)": Model(_logistic("mean"), note=lambda data: "hidden cells filled with their training mean"),
    "logistic (zero)": Model(_logistic("zero"), note=lambda data: "hidden cells filled with zero"),
    "opinion pool": Model(lambda data: OpinionPool(), note=lambda data: "MDA, logistic regression and a forest, pooled; no joint"),
    "boosting": Model(lambda data: boosting(), note=lambda data: "histogram gradient boosting, which reads holes"),
    "forest": Model(lambda data: forest(), note=lambda data: "random forest on cells filled with medians, beside columns that say where"),
    "iterative + logistic": Model(lambda data: iterative_logistic(), note=lambda data: "logistic regression on cells filled by chained ridge regressions"),
}
