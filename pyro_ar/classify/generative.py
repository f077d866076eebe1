r"""Generative classifiers: one joint per class and Bayes' rule, for any visible cells."""

import copy
import inspect
import math

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np
import pyro
import torch

from pyro.distributions import Categorical
from sklearn.utils.validation import check_is_fitted
from torch import Size, Tensor, nn

from pyro_ar.budget import CACHE, at_once
from pyro_ar.checks import require
from pyro_ar.classify.base import PartlySeenClassifier
from pyro_ar.classify.of_class import OfClass
from pyro_ar.classify.per_class import (
    class_weights,
    count_parameters,
    fit_classes,
    fit_pattern,
    fit_prior,
    log_pattern,
    sorted_classes,
)
from pyro_ar.classify.rows_of_classes import naming_classes
from pyro_ar.joint import Joint
from pyro_ar.mixture import Mixture

__all__ = ["GenerativeClassifier"]



class GenerativeClassifier(PartlySeenClassifier):
    r"""Classifier by a joint of the cells for each class.

    .. math:: p(y \mid x_v) = \frac{p(y)\, p(x_v \mid y)}{\sum_c p(c)\, p(x_v \mid c)}

    Hidden cells are integrated out by the joints, exactly, or `IntractableError` passes through.
    A row with nothing visible gets the prior.

    What is hidden may itself depend on the class. With `pattern` the pattern v is a value like others, and
    :math:`p(y \mid x_v, v) \propto p(y)\, p(v \mid y)\, p(x_v \mid y)`, by the assumption that v depends on the class alone, not on the cells themselves.
    Without it the pattern is ignored, which is right where v depends on nothing but visible cells.

    Shapes:
        As `PartlySeenClassifier`. A joint over vectors reads rows `(N, *event)` flattened.

    Args:
        likelihood: What p(x | y) is:

            - a class with `from_data` (a table joint, `Gaussian`): fitted to the rows of each class, in one
              call; `ChowLiuTree` gets a tree per class;
            - a fitted joint whose rightmost batch dimension is the class, or a list of joints, one per class
              in the order of the sorted labels: kept as it is, `fit` learns labels and prior;
            - a family: a module with `context_dim` that is the number of classes. A deep copy of it is trained, with the
              class as one-hot context.
        num_classes: How many classes; None: as many as there are labels in `y`. If `y` lacks some of them,
            labels must be the numbers from 0 to `num_classes - 1`.
        prior: p(y): None, learnt: the class frequencies without smoothing, so that a class without rows
            is never predicted (closed-form fits refuse such a class); 'uniform'; or C probabilities in the order of the sorted labels.
        fit_options: Keyword arguments of `from_data` (such as `num_states`, `pseudocount`, `shrinkage`), or of `train`.
        pattern: p(visible | y): a class with `from_data` over binary cells (`FullyIndependent`, `ChowLiuTree`; True is state 1), fitted to
            the training patterns of each class; or fitted joints, one per class, as in `likelihood`. None: patterns are ignored.
        pattern_options: Keyword arguments of its `from_data`.
        train: For families: `train(module, x, context=..., visible=..., **fit_options)` changes the module in place;
            None: `par.fit`.

    Attributes:
        likelihood_: The fitted joint of batch shape `(C,)`, list of joints, or trained family.
        log_prior_: log p(y), `(C,)`.
        joint_: `Mixture` of the class joints: p(x), with the class as its component.
        pattern_: The joint of the patterns of each class, of batch shape `(C,)` or a list; None where they are ignored.

    Raises:
        ValueError: Data, labels or arguments that do not fit; the message says what was wanted.

    Example:
        >>> import numpy as np
        >>> from pyro_ar.tables import FullyIndependent
        >>> X, y = np.array([[0, 0], [0, 1], [1, 1], [1, 1]]), np.array(["a", "a", "b", "b"])
        >>> classifier = GenerativeClassifier(FullyIndependent).fit(X, y)
        >>> classifier.predict_proba(X[:1], visible=np.array([True, False])).round(2)
        array([[0.75, 0.25]])
    """

    log_prior_: Tensor
    likelihood_: Any
    joint_: Mixture
    pattern_: Any
    _takes_weights = True

    def __init__(self, likelihood: Any, num_classes: int | None = None, *, prior: Any = None,
                 fit_options: Mapping[str, Any] | None = None, train: Callable[..., Any] | None = None, pattern: Any = None,
                 pattern_options: Mapping[str, Any] | None = None) -> None:
        self.likelihood = likelihood
        self.num_classes = num_classes
        self.prior = prior
        self.fit_options = fit_options
        self.train = train
        self.pattern = pattern
        self.pattern_options = pattern_options

    def fit(self, X: Any, y: Any, visible: Any = None, sample_weight: Any = None) -> Self:
        """Fit the joint of each class and the prior.

        Args:
            X: Rows.
            y: One label per row.
            visible: Training patterns; what is hidden is never read. None: NaN hides a cell. Closed forms become EM, in `from_data`.
            sample_weight: `(N,)`, 0 or more, for likelihoods that are fitted in closed form: a row of weight 2 is two equal rows, one of weight 0
                is no row. Their scale matters where priors are worth rows (`pseudocount`, `MixtureDiscriminantAnalysis`), and nowhere else.

        Raises:
            ValueError: Bad rows, labels or weights, or hidden cells or weights where the fit cannot use them.
        """
        x, seen, labels, weights = self._read_weighted(X, y, visible, sample_weight)
        self.classes_ = sorted_classes(labels, self.wanted_classes())
        if sample_weight is not None:
            closed = not isinstance(self.class_conditional()[0], nn.Module)
            require(closed and self._takes_weights, f"{type(self).__name__} trains its likelihood by steps, which take no sample_weight")
        index = torch.from_numpy(np.searchsorted(self.classes_, labels)).to(x.device)
        shares = nn.functional.one_hot(index, len(self.classes_)) * weights[:, None]
        return self.fit_shares(x, shares.to(x.dtype), seen)

    def fit_shares(self, x: Tensor, context: Tensor, seen: Tensor | None) -> Self:
        """Fit to checked rows that belong to the classes in shares, `(N, C)`."""
        with naming_classes(self.classes_, context):
            self.likelihood_ = self._fit_likelihood(x, context, seen)
        joints = self._class_joints()
        dtype = (joints if isinstance(joints, Joint) else joints[0]).dtype
        self.log_prior_ = fit_prior(self.prior, context).log().to(dtype)
        self.joint_ = Mixture(self.log_prior_, joints)
        cells = math.prod(self.joint_.event_shape)
        require(cells == self.n_features_in_, f"the likelihood is over {cells} cells; X must have as many",
                self.n_features_in_)
        self.pattern_ = self._fit_pattern(x, context, seen)
        return self

    def log_joint(self, X: Any, visible: Any = None) -> Tensor:
        r"""Log p(y) + log p(x_visible | y), `(N, C)`, in nats; with `pattern` also + log p(visible | y).

        Raises:
            ValueError: Bad shapes or values.
            IntractableError: There is no exact answer for some pattern.
        """
        return self._log_joint(*self.read_rows(X, visible))

    def score_samples(self, X: Any, visible: Any = None) -> Tensor:
        r"""Log p(x_visible) under the mixture of all classes, `(N,)`, in nats; with `pattern` log p(x_visible, visible).

        Densities over different cells do not compare: `Plausibility` turns them into p-values.

        Raises:
            ValueError: Bad shapes or values.
            IntractableError: There is no exact answer for some pattern.
        """
        scores = self.log_joint(X, visible)
        dead = (scores == -math.inf).all(-1)
        return scores.masked_fill(dead.unsqueeze(-1), 0).logsumexp(-1).masked_fill(dead, -math.inf)

    def method(self, visible: Any) -> np.ndarray:
        """How rows with these patterns are answered: an array of names, one per pattern.

        Raises:
            IntractableError: There is no exact answer for some pattern; the message names what would work.
        """
        seen = self._check_pattern(visible)
        return self.joint_.marginal(seen.reshape(len(seen), *self.joint_.event_shape)).method

    def model(self, x: Any = None, visible: Any = None, y: Any = None) -> Tensor:
        r"""The classifier as a Pyro model; what is None is drawn.

        A plate 'rows' (dimension -1) holds the sites 'y', the position in `classes_`, which enumerates, and
        'x', observed through `marginal(visible)` of the class joint; a draw of 'x' has NaN where hidden. With `pattern` there is
        a site 'visible' between them, 0 and 1 `(N, n)`, drawn where neither `x` nor `visible` is given.
        `TraceEnum_ELBO.compute_marginals` and `infer_discrete` give what `posterior` gives.

        Args:
            x: Rows as in `predict`.
            visible: As in `predict`.
            y: Labels, one per row.

        Returns:
            The rows, `(N, *event)` with the event shape of the joint. Without any argument N is 1.

        Raises:
            ValueError: Bad rows, patterns or labels.
        """
        rows, seen = self.read_if_given(x, visible)
        event = self.joint_.event_shape
        index = None if y is None else self._positions(y)
        known = [len(v) for v in (rows, index, seen) if v is not None and (v is not seen or len(v) > 1)] or [1]
        require(len(set(known)) == 1, "x, visible and y must have equally many rows", known)
        if rows is not None:
            rows = rows.to(self.joint_.dtype).reshape(len(rows), *event)
        pattern = torch.ones(event, dtype=torch.bool) if seen is None else seen.reshape(len(seen), *event)
        with pyro.plate("rows", known[0]):
            label = pyro.sample("y", Categorical(logits=self.log_prior_), obs=index, infer={"enumerate": "parallel"})
            if self.pattern_ is not None:
                drawn = self._sample_pattern(label, pattern if x is not None or visible is not None else None, known[0])
                pattern = drawn.bool().reshape(*drawn.shape[:-1], *event)
            return pyro.sample("x", OfClass(self.joint_.joints, pattern.to(self.log_prior_.device), label), obs=rows)

    def _sample_pattern(self, label: Tensor, pattern: Tensor | None, rows: int) -> Tensor:
        """The site 'visible', `(*L, n)`."""
        first = self.pattern_ if isinstance(self.pattern_, Joint) else self.pattern_[0]
        everything = torch.ones(first.event_shape, dtype=torch.bool, device=label.device)
        if pattern is not None:
            pattern = pattern.to(label.device, first.dtype).reshape(-1, *first.event_shape).expand(rows, *first.event_shape)
        drawn = pyro.sample("visible", OfClass(self.pattern_, everything, label), obs=pattern)
        return drawn.flatten(drawn.ndim - len(first.event_shape))

    def _pattern_parameters(self) -> int:
        return 0 if self.pattern_ is None else count_parameters(self.pattern_)

    @property
    def num_parameters(self) -> int:
        """Free parameters: of the prior where it is learnt, and of the joints."""
        check_is_fitted(self)
        learnt = (len(self.classes_) - 1 if self.prior is None else 0) + self._pattern_parameters()
        if isinstance(self.likelihood_, nn.Module):
            # The classes, and the orders of an ensemble, share one set of weights.
            joints: Any = self.joint_.joints
            return learnt + getattr(self.likelihood_, "num_parameters", joints.num_parameters)
        return learnt + count_parameters(self.joint_.joints)

    # Fitting.

    def class_conditional(self) -> tuple[Any, Mapping[str, Any]]:
        """What is to be fitted, and the options of its fit."""
        return self.likelihood, self.fit_options or {}

    def wanted_classes(self) -> int | None:
        """The number of classes, from what was given; None: from the labels."""
        like, _ = self.class_conditional()
        sizes = {"num_classes": self.num_classes}
        if isinstance(like, Joint):
            require(len(like.batch_shape) == 1, "a fitted likelihood must have batch shape (num_classes,)",
                    tuple(like.batch_shape))
            sizes["the likelihood"] = like.batch_shape[0]
        elif isinstance(like, Sequence) and not isinstance(like, str):
            require(len(like) > 0 and all(isinstance(j, Joint) and not j.batch_shape for j in like),
                    "a list of likelihoods must hold one joint without batch dimensions per class", like)
            sizes["the likelihood"] = len(like)
        elif isinstance(like, nn.Module):
            sizes["context_dim"] = getattr(like, "context_dim", None)
            require(bool(sizes["context_dim"]), "a family must have context_dim, the number of classes", type(like).__name__)
        else:
            require(hasattr(like, "from_data"), "likelihood must be a class with from_data, a fitted joint whose batch is the "
                    "class, a list of joints, or a family with context_dim", like)
        found = {name: size for name, size in sizes.items() if size is not None}
        require(len(set(found.values())) <= 1, "num_classes must agree with the likelihood", found)
        return next(iter(found.values()), None)

    def _fit_likelihood(self, x: Tensor, context: Tensor, visible: Tensor | None) -> Any:
        """What becomes `likelihood_`; `context` holds the one-hot classes, `(N, C)`."""
        like, options = self.class_conditional()
        if isinstance(like, Joint | Sequence):
            return like
        if isinstance(like, nn.Module):
            return self._train_family(like, x, context, visible, dict(options))
        takes = "visible" in inspect.signature(like.from_data).parameters
        require(visible is None or takes, f"{like.__name__}.from_data wants complete training rows: it takes no `visible`; fill the "
                "hidden cells, or leave such rows out", visible)
        seen = None if visible is None else visible.flatten(1)
        return self._fit_closed_form(like, x.flatten(1), class_weights(context, self.classes_), seen, dict(options))

    def _fit_closed_form(self, like: Any, x: Tensor, weights: Tensor, visible: Tensor | None, options: dict[str, Any]) -> Any:
        """`from_data` with one row of weights per class."""
        return fit_classes(like, x, weights, visible, options)

    def _fit_pattern(self, x: Tensor, context: Tensor, visible: Tensor | None) -> Any:
        """What becomes `pattern_`."""
        if self.pattern is None:
            return None
        seen = torch.ones_like(x) if visible is None else visible.expand(x.shape).to(x.dtype)
        return fit_pattern(self.pattern, seen.flatten(1), context, self.classes_, dict(self.pattern_options or {}))

    def _train_family(self, family: nn.Module, x: Tensor, context: Tensor, visible: Tensor | None,
                      options: dict[str, Any]) -> nn.Module:
        from pyro_ar.inference import training  # here, so that closed-form classifiers load no neural code

        family = copy.deepcopy(family)  # the caller's stays as it is, so that clone and cross-validation are safe
        weight = next(family.parameters()).detach()
        event = Size(np.atleast_1d(getattr(family, "event_shape", self.event_shape_)).tolist())
        require(event.numel() == self.n_features_in_, f"the family is over {tuple(event)}; X must have as many cells",
                self.n_features_in_)
        x = x.to(weight).reshape(-1, *event)
        visible = None if visible is None else visible.reshape(-1, *event).expand(x.shape)
        train: Callable[..., Any] = training.fit if self.train is None else self.train
        train(family, x, context=context.to(weight), visible=visible, **options)
        return family.eval().requires_grad_(False)

    def _class_joints(self) -> Any:
        """One joint of batch shape `(C,)`, or a list of C joints."""
        if not isinstance(self.likelihood_, nn.Module):
            return self.likelihood_
        weight = next(self.likelihood_.parameters())
        return self.likelihood_(torch.eye(len(self.classes_), dtype=weight.dtype, device=weight.device))

    # Answering.

    def _log_joint(self, x: Tensor, visible: Tensor | None) -> Tensor:
        mixture = self.joint_
        if visible is None and not mixture.coherent:  # all seen is a pattern too, with an order of its own
            visible = torch.ones(1, *self.event_shape_, dtype=torch.bool, device=x.device)
        x = x.to(mixture.dtype).to(mixture.device).reshape(len(x), *mixture.event_shape)
        if visible is not None:
            visible = visible.to(x.device).reshape(len(visible), *mixture.event_shape)
        step = at_once(len(self.classes_) * self.n_features_in_, CACHE)
        answers = []
        for i in range(0, len(x), step):
            seen = visible if visible is None or len(visible) == 1 else visible[i:i + step]
            answers.append(mixture.component_log_joint(x[i:i + step], seen))
        scores = torch.cat(answers)
        return scores if self.pattern_ is None else scores + log_pattern(self.pattern_, visible).to(scores)

    def log_posterior(self, x: Tensor, visible: Tensor | None) -> Tensor:
        scores = self._log_joint(x, visible)
        dead = (scores == -math.inf).all(-1)
        require(not bool(dead.any()), "every row must be possible under some class; the visible cells have probability zero "
                "under all classes", f"{int(dead.sum())} such rows of {len(dead)}")
        return scores.log_softmax(-1)

    def _positions(self, y: Any) -> Tensor:
        """Positions of the labels in `classes_`."""
        labels = np.atleast_1d(y.detach().cpu().numpy() if isinstance(y, Tensor) else np.asarray(y))
        known = np.isin(labels, self.classes_)
        require(labels.ndim == 1 and bool(known.all()), f"y must be one label per row, out of {self.classes_.tolist()}",
                labels[~known].tolist())
        return torch.from_numpy(np.searchsorted(self.classes_, labels)).to(self.log_prior_.device)
