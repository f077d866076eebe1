r"""How many free parameters each factorisation has, for a given shape and number of states.

Everything is counted by formula, so that 2^784 - 1 allocates nothing. The formulas of the table
joints are tested against their own `count_parameters`; the neural families are asked for theirs, of the sizes in their registry, and a
table's freedom in each conditional: `Bernoulli` for two states, `Categorical` for more.
"""

import math

from collections.abc import Sequence
from dataclasses import dataclass

from pyro_ar.checks import require
from pyro_ar.neural.registry import FAMILIES
from pyro_ar.outputs import Bernoulli, Categorical, Output

__all__ = ["Count", "Row", "parameter_table", "parse_shape"]

STATES = 16  # of the hidden variables of a latent tree
READABLE = 15  # digits; beyond, a count is shown as a power


@dataclass(frozen=True)
class Count:
    """`factor * base^exponent + plus`, never multiplied out when it is large."""

    factor: int
    base: int = 1
    exponent: int = 0
    plus: int = 0

    @property
    def log10(self) -> float:
        """Decimal logarithm; `plus` is negligible where it matters."""
        small = self.value
        if small is not None:
            return math.log10(small) if small > 0 else -math.inf
        return math.log10(self.factor) + self.exponent * math.log10(self.base)

    @property
    def value(self) -> int | None:
        """The number itself, None beyond `READABLE` digits."""
        if self.factor and math.log10(self.factor) + self.exponent * math.log10(self.base) >= READABLE:
            return None
        return self.factor * self.base**self.exponent + self.plus

    def __str__(self) -> str:
        if self.value is not None:
            return f"{self.value:,}"
        rounded = f"~10^{round(self.log10):,}"
        if self.exponent == 0:
            return rounded
        power = f"{self.base}^{self.exponent}" if self.factor == 1 else f"{self.factor:,} x {self.base}^{self.exponent}"
        plus = f" {'-' if self.plus < 0 else '+'} {abs(self.plus)}" if self.plus else ""
        return f"{power}{plus} ({rounded})"


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    group: str
    name: str
    formula: str
    count: Count


def parse_shape(text: str) -> tuple[int, ...]:
    """`28x28`, `3x32x32` or `784` as a tuple.

    Raises:
        ValueError: It is none of these.
    """
    parts = text.lower().replace(",", "x").split("x")
    good = all(part.strip().isdecimal() and len(part) <= 12 and int(part) > 0 for part in parts)
    require(good, "shape must be positive numbers such as 28x28, 3x32x32 or 784", text)
    return tuple(int(part) for part in parts)


def parameter_table(shape: Sequence[int], states: int = 2, classes: int | None = None) -> list[Row]:
    """Parameter counts of one joint over `shape`, and of classifiers if there are `classes`.

    Args:
        shape: Of the event, such as `(28, 28)`.
        states: K, of each variable.
        classes: C; None leaves the classifiers out.

    Raises:
        ValueError: Fewer than one variable, two states or two classes.

    Example:
        >>> [str(row.count) for row in parameter_table((3,), 256)][:2]
        ['16,777,215', '765']
    """
    require(len(shape) >= 1 and all(n >= 1 for n in shape), "shape must be positive numbers", tuple(shape))
    require(states >= 2, "there must be 2 states or more", states)
    require(classes is None or classes >= 2, "there must be 2 classes or more", classes)
    n = math.prod(shape)
    rows = _joints(n, states)
    if classes is not None:
        rows += _classifiers(n, states, classes)
    return rows + _image_to_image(n, states)


def _joints(n: int, K: int) -> list[Row]:
    group = "joint p(x)"
    rows = [
        Row(group, "full table", "K^n - 1", Count(1, K, n, -1)),
        Row(group, "independent", "n (K-1)", Count(_independent(n, K))),
        Row(group, "Markov chain", "(K-1) + (n-1) K (K-1)", Count(_markov(n, K, 1))),
        Row(group, "Markov chain of order 2", "(K^2-1) + (n-2) K^2 (K-1)", Count(_markov(n, K, 2))),
        Row(group, "Chow-Liu tree", "(K-1) + (n-1) K (K-1)", Count(_markov(n, K, 1))),
        Row(group, f"latent tree, H = {STATES}", "(H-1) + (n-1) H (H-1) + n H (K-1)", Count(_latent(n, K))),
        Row(group, "Gaussian", "n + n (n+1)/2", Count(n + n * (n + 1) // 2)),
    ]
    return rows + _neural(group, n, K)


def _neural(group: str, n: int, K: int) -> list[Row]:
    output: Output = Bernoulli() if K == 2 else Categorical(K)
    return [Row(group, f"{name}{entry.remark}", entry.formula[K > 2], Count(entry.family.count_parameters(n, output=output, **entry.counted)))
            for name, entry in FAMILIES.items() if entry.counted is not None and n * (K - 1) <= entry.most_counted]


def _classifiers(n: int, K: int, C: int) -> list[Row]:
    group, prior, triangle = f"classifier, {C} classes", C - 1, n * (n + 1) // 2
    return [
        Row(group, "full table per class", "(C-1) + C (K^n - 1)", Count(C, K, n, -1)),
        Row(group, "naive Bayes", "(C-1) + C n (K-1)", Count(prior + C * _independent(n, K))),
        Row(group, "chain or tree per class", "(C-1) + C x (the above)",
            Count(prior + C * _markov(n, K, 1))),
        Row(group, "Gaussian discriminant", "(C-1) + C n + C n (n+1)/2", Count(prior + C * n + C * triangle)),
        Row(group, "the same, one covariance", "(C-1) + C n + n (n+1)/2", Count(prior + C * n + triangle)),
        Row(group, "logistic regression", "C n + C", Count(C * n + C)),
    ]


def _image_to_image(n: int, K: int) -> list[Row]:
    formula = "r c 2^(h w)" if K == 2 else "r c (K-1) K^(h w)"
    return [Row("image to image, h x w to r x c of the same size", "multinomial regression", formula,
                Count(n * (K - 1), K, n))]


def _independent(n: int, K: int) -> int:
    return n * (K - 1)


def _latent(n: int, K: int) -> int:
    return STATES - 1 + (n - 1) * STATES * (STATES - 1) + n * STATES * (K - 1)


def _markov(n: int, K: int, order: int) -> int:
    first = min(order, n)
    return K**first - 1 + (n - first) * K**order * (K - 1)
