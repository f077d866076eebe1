r"""Tables with holes, completed by what a joint says of the hidden cells given the visible ones of the same row."""

from collections.abc import Callable, Mapping
from typing import Any, Self

import numpy as np
import torch

from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import Tags, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import Generator, Tensor

from pyro_ar.budget import at_once
from pyro_ar.checks import IntractableError, require
from pyro_ar.imputation.columns import Column, decoded, encoded, read_columns
from pyro_ar.imputation.recipes import NUMBERS_ONLY, apportioned, choose, fitting, in_states
from pyro_ar.inference.arviz_bridge import to_arviz
from pyro_ar.joint import Joint

__all__ = ["JointImputer"]

DRAWS = 200  # of a hidden cell whose mean or most likely state has no closed form


class JointImputer(TransformerMixin, BaseEstimator):
    r"""Fill hidden cells from :math:`p(x_h \mid x_v)`, and draw completed tables for multiple imputation.

    `transform` puts the conditional mean of numbers, and the most probable value of other columns, in place of NaN (None, pd.NA). `sample` draws m
    completed tables: an analysis of each, pooled by Rubin's rules (`pool`), knows how unsure the holes leave it. Where means have no closed form (rank-normal
    joints, states) they are those of 200 draws, whose error is a fourteenth of a standard deviation of the cell.

    What N rows leave unknown of the joint itself is in the draws too: several joints are fitted, each to other weights of the rows (the Bayesian
    bootstrap), and completed tables come from one after the other.

    Args:
        joint: Which joints are fitted. None: those of `RECIPES`, in the shares whose pooled draws of cells hidden on purpose in held-out rows have the best
            CRPS; the name of one ('gaussian', 'rank-normal gaussian', 'rank-normal student-t', 'mixture of 3 student-t', 'rank-normal mixture of 3
            student-t', 'mixture of 4', 'mixture of 16', 'latent tree'); or a function from rows `(N, n)` (numbers standardised, states by their position,
            NaN where hidden), their `Column`s, their weights `(N,)`, whose mean is 1, and a generator to a `Joint`.
        fits: How many joints are fitted; 1: one, to the rows as they are, which is quicker, and draws that take it for the truth.
        kinds: Kind of a column ('real', 'count', 'binary', 'categorical') by its name, or position as text where columns have no names; others are found.
        folds: Parts of the rows in the choice of the joints.
        random_state: Of the choice, of fits and of draws in `transform`; None: 0, so that equal tables are filled equally.

    Attributes:
        columns_: What each column was found to be.
        joints_: The fitted joints, over the columns that are not constant.
        chosen_: How many of them there are of each name; empty for a function.
        scores_: Minus the CRPS (of states half the Brier score) of each candidate by itself; empty where there was no choice.
        n_features_in_: Columns.
        feature_names_in_: Their names, if they have some.

    Raises:
        ValueError: A column that is all missing or mixes words and numbers, categories never seen in fit, infinities, or no rows.
        IntractableError: The joint does not answer a pattern of the table.

    Source:
        Rubin (1987), *Multiple imputation for nonresponse in surveys*; the bootstrap: Rubin (1981), *The Bayesian bootstrap*, Annals of Statistics 9; the
        choice by cells hidden on purpose: Yoon, Jordon, van der Schaar (2018), *GAIN*, ICML, section 5.

    Example:
        >>> X = np.array([[1.0, 2.1], [2.0, 3.9], [3.0, 6.1], [4.0, np.nan], [5.0, 9.9]])
        >>> JointImputer("gaussian", fits=1).fit_transform(X)[3].round(1)
        array([4. , 7.9])
    """

    columns_: tuple[Column, ...]
    joints_: list[Joint]
    chosen_: dict[str, int]
    scores_: dict[str, float]
    n_features_in_: int

    def __init__(self, joint: str | Callable[..., Joint] | None = None, *, fits: int = 10, kinds: Mapping[str, str] | None = None,
                 folds: int = 3, random_state: Any = None) -> None:
        self.joint = joint
        self.fits = fits
        self.kinds = kinds
        self.folds = folds
        self.random_state = random_state

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.string = tags.input_tags.categorical = True
        return tags

    def fit(self, X: Any, y: Any = None) -> Self:
        """Find the kinds of the columns, and fit the joints.

        Args:
            X: `(N, n)`; an array or a data frame, NaN where hidden.
            y: Not used.
        """
        cells, names = self._cells(X, reset=True)
        for name, least in (("folds", 2), ("fits", 1)):
            require(isinstance(getattr(self, name), int) and getattr(self, name) >= least, f"{name} must be {least} or more", getattr(self, name))
        self.columns_ = read_columns(cells, names, self.kinds or {}, two_numbers="real" if self.joint in NUMBERS_ONLY else "binary")
        self._kept = [i for i, column in enumerate(self.columns_) if column.kind != "constant"]
        self.scores_, self.chosen_, self.joints_ = {}, {}, []
        if self._kept:
            rows = encoded([cells[i] for i in self._kept], self._columns)
            self._fit_joints(rows[(~rows.isnan()).any(1)])  # a row without visible cells says nothing
        return self

    def _fit_joints(self, rows: Tensor) -> None:
        generator = self._generator()
        recipes: Any = [self.joint] * self.fits
        if self.joint is None or isinstance(self.joint, str):
            candidates = fitting(self._columns)
            if self.joint is None:
                self.scores_, shares = choose(rows, self._columns, candidates, self.folds, generator)
                require(sum(shares.values()) > 0, "no joint could be fitted to these rows; name one as `joint`", rows)
            else:
                require(self.joint in candidates, f"joint must be one of {', '.join(candidates)} for columns of these kinds", self.joint)
                shares = {self.joint: 1.0}
            names = apportioned(shares, self.fits)
            self.chosen_ = {name: names.count(name) for name in dict.fromkeys(names)}
            recipes = [candidates[name] for name in names]
        require(callable(recipes[0]), "joint must be None, a name or a function from rows, columns, weights and a generator to a joint", self.joint)
        self.joints_ = [recipe(rows, self._columns, self._weights(rows, generator), generator) for recipe in recipes]
        for joint in self.joints_:
            require(isinstance(joint, Joint) and tuple(joint.event_shape) == (len(self._kept),),
                    f"the function must make a joint over {len(self._kept)} columns", joint)

    def _weights(self, rows: Tensor, generator: Generator) -> Tensor:
        """Of one fit to the rows as they are 1; of several a draw of the Bayesian bootstrap, of mean 1."""
        if self.fits == 1:
            return rows.new_ones(len(rows))
        drawn = rows.new_empty(len(rows)).exponential_(generator=generator)
        return drawn / drawn.mean()

    @property
    def _columns(self) -> list[Column]:
        return [self.columns_[i] for i in self._kept]

    def _generator(self) -> Generator:
        random = check_random_state(0 if self.random_state is None else self.random_state)
        return Generator().manual_seed(int(random.randint(2**31)))

    def transform(self, X: Any) -> Any:
        """X with its hidden cells filled, of the type that came, `(N, n)`; visible cells are those that came.

        Args:
            X: As in `fit`.
        """
        cells, rows, seen = self._read(X)
        filled = [list(column) for column in cells]
        if self._kept and bool((~seen).any()):
            codes = self._expected(rows, seen)
            for k, i in enumerate(self._kept):
                _put(filled[i], decoded(codes[:, k].numpy(), self.columns_[i], draw=False), ~seen[:, k].numpy())
        return self._like(X, filled)

    def sample(self, X: Any, num_samples: int = 5, *, random_state: Any = None) -> list[Any]:
        """So many completed tables, each of the type that came: draws from p(hidden | visible) of one fitted joint after the other.

        Args:
            X: As in `fit`.
            num_samples: m.
            random_state: Of the draws; None: that of the imputer.
        """
        require(isinstance(num_samples, int) and num_samples >= 1, "num_samples must be 1 or more", num_samples)
        cells, rows, seen = self._read(X)
        tables = []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(check_random_state(self._seed() if random_state is None else random_state).randint(2**31)))
            drawn = self._draws(rows, seen, num_samples) if self._kept and bool((~seen).any()) else [None] * num_samples
            for codes in drawn:
                filled = [list(column) for column in cells]
                if codes is not None:
                    for k, i in enumerate(self._kept):
                        _put(filled[i], decoded(codes[:, k].numpy(), self.columns_[i], draw=True), ~seen[:, k].numpy())
                tables.append(self._like(X, filled))
        return tables

    def draws(self, X: Any, num_samples: int = 100, *, random_state: Any = None) -> Any:
        """The hidden cells of `sample` for ArviZ: its `InferenceData` (or `DataTree`), whose posterior has a variable `(1, num_samples, holes)` for each
        column with holes, from the first row to the last; states by their position in `values` of the column.

        Args:
            X: As in `fit`.
            num_samples: Draws, independent given the fitted joints: one chain.
            random_state: As in `sample`.

        Raises:
            ValueError: As `sample`, or there is no hole.
        """
        tables = self.sample(X, num_samples, random_state=random_state)
        holes = ~self._read(X)[2].numpy()
        require(bool(holes.any()), "draws of hidden cells want a table with holes")
        whole = [self._cells(table, reset=False)[0] for table in tables]
        found = {}
        for k, i in enumerate(self._kept):
            if holes[:, k].any():
                about = self.columns_[i]
                cells = np.stack([encoded([table[i][holes[:, k]]], [about]).numpy()[:, 0] for table in whole])
                found[about.name] = (cells * about.scale + about.center if about.is_number else cells)[None]
        return to_arviz({"posterior": found}, how=f"{type(self).__name__}, {num_samples} independent draws")

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Names of the columns, which are those that came."""
        check_is_fitted(self, "columns_")
        names = [column.name for column in self.columns_]
        if input_features is not None:
            require(len(input_features) == len(names), f"input_features must be {len(names)} names", len(input_features))
            names = list(input_features)
        elif not hasattr(self, "feature_names_in_"):
            names = [f"x{i}" for i in range(len(names))]
        return np.array(names, dtype=object)

    def _cells(self, X: Any, *, reset: bool) -> tuple[list[np.ndarray], list[str]]:
        """Columns as arrays of objects, and their names; checks them, and sets or checks `n_features_in_` and `feature_names_in_`."""
        X = X.detach().cpu().numpy() if isinstance(X, Tensor) else X
        array = validate_data(self, X, reset=reset, dtype=None, ensure_all_finite=False)
        if hasattr(X, "columns"):
            return [np.array(X[name].tolist(), dtype=object) for name in X.columns], [str(name) for name in X.columns]
        return [np.array(column.tolist(), dtype=object) for column in array.T], [str(i) for i in range(array.shape[1])]

    def _seed(self) -> Any:
        return 0 if self.random_state is None else self.random_state

    def _read(self, X: Any) -> tuple[list[np.ndarray], Tensor, Tensor]:
        check_is_fitted(self, "columns_")
        cells, _ = self._cells(X, reset=False)
        constant = [i for i in range(len(cells)) if i not in self._kept]
        for i in constant:
            codes = encoded([cells[i]], [self.columns_[i]])
            _put(cells[i], np.full(len(codes), self.columns_[i].values[0], dtype=object), codes.isnan().numpy()[:, 0])
        rows = encoded([cells[i] for i in self._kept], self._columns) if self._kept else torch.zeros(len(cells[0]), 0)
        return cells, rows, ~rows.isnan()

    def _expected(self, rows: Tensor, seen: Tensor) -> Tensor:
        """Conditional means of numbers, most probable positions of states, over all joints."""
        answer = rows.clone()
        holes = (~seen).any(1).nonzero().squeeze(-1)
        some, visible = rows[holes], seen[holes]
        numbers = torch.tensor([column.is_number for column in self._columns])
        means, drawn = [], []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(check_random_state(self._seed()).randint(2**31)))
            for joint in self.joints_:
                mean = _closed_mean(joint, some, visible)
                if mean is None or not bool(numbers.all()):
                    drawn.append(self._drawn(joint, some, visible, -(-DRAWS // len(self.joints_))))
                    mean = drawn[-1].mean(0) if mean is None else mean
                means.append(mean)
        answer[holes] = torch.stack(means).mean(0)
        if not bool(numbers.all()):
            answer[holes] = torch.where(numbers, answer[holes], torch.cat(drawn).mode(0).values)
        return answer

    def _draws(self, rows: Tensor, seen: Tensor, many: int) -> Tensor:
        """`(many, N, n)`, of one joint after the other."""
        found = rows.new_empty(many, *rows.shape)
        for k, joint in enumerate(self.joints_[:many]):
            found[k::len(self.joints_)] = self._drawn(joint, rows, seen, len(range(k, many, len(self.joints_))))
        return found

    def _drawn(self, joint: Joint, rows: Tensor, seen: Tensor, many: int) -> Tensor:
        step = at_once(many * rows.shape[1] ** 2)
        with torch.no_grad():
            parts = [joint.given(x, v).sample((many,)) for x, v in zip(rows.split(step), seen.split(step), strict=True)]
        return in_states(torch.cat(parts, 1).to(rows), self._columns)

    def _like(self, X: Any, filled: list[list[Any]]) -> Any:
        """Completed columns as what came: a frame with its index and names, or an array."""
        if hasattr(X, "columns"):
            made = X.copy()
            for i, name in enumerate(X.columns):
                made[name] = type(X[name])(filled[i], index=X.index, name=name) if _changes_type(X[name], filled[i]) else \
                    type(X[name])(filled[i], index=X.index, name=name).astype(X[name].dtype)
            return made
        array = np.asarray(X)
        table = np.empty(array.shape, dtype=object)
        for i, column in enumerate(filled):
            table[:, i] = column
        return table.astype(array.dtype if array.dtype.kind == "f" else float) if array.dtype.kind in "fiub" else table


def _closed_mean(joint: Joint, rows: Tensor, seen: Tensor) -> Tensor | None:
    try:
        with torch.no_grad():
            return joint.given(rows, seen).mean.to(rows)
    except (IntractableError, NotImplementedError):
        return None


def _changes_type(column: Any, filled: list[Any]) -> bool:
    """Whether filled cells do not fit the column's own dtype: means of whole numbers, say."""
    try:
        return not all(a == b for a, b in zip(type(column)(filled).astype(column.dtype).tolist(), filled, strict=True))
    except (TypeError, ValueError):
        return True


def _put(column: Any, values: np.ndarray, where: np.ndarray) -> None:
    for r in where.nonzero()[0]:
        column[r] = values[r].item() if isinstance(values[r], np.generic) else values[r]
