"""The one place that knows ArviZ, of both generations: 0.23 (Python 3.11) and 1.x (3.12 and later).

Plain arrays in, plain arrays out: nothing here needs torch, which has no wheel beside ArviZ 1.x on some machines.
"""

import warnings

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

__all__ = ["ArvizLoo", "compare_table", "diagnostics", "drawn_by", "group_of", "psis_loo", "to_arviz"]


class ArvizLoo(NamedTuple):
    """What `az.loo` says: sums in nats, one value and one Pareto shape per row, and the shape that is still good."""

    elpd: float
    error: float
    p: float
    pointwise: np.ndarray
    pareto_k: np.ndarray
    good_k: float


def _generation() -> tuple[Any, bool]:
    """The module, and whether it is 1.x."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # 0.23 announces 1.x once a day
        import arviz  # slow to import, and only comparison needs it

    return arviz, int(arviz.__version__.split(".")[0]) >= 1


def to_arviz(groups: Mapping[str, Mapping[str, np.ndarray]], how: str | None = None) -> Any:
    """`InferenceData` (0.23) or `DataTree` (1.x) of these groups; arrays are (chain, draw, ...).

    Args:
        groups: By name.
        how: The draws were made, kept in the attributes of the posterior group; `drawn_by` reads it.
    """
    az, new = _generation()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of more chains than draws, which small examples have
        data = az.from_dict(dict(groups)) if new else az.from_dict(**groups)
    if how is not None:
        data["posterior"].attrs["drawn_by"] = how
    return data


def drawn_by(data: Any) -> str | None:
    """How the draws in `data` were made, if it says."""
    try:
        return data["posterior"].attrs.get("drawn_by")
    except KeyError:
        return None


def group_of(data: Any, group: str) -> dict[str, np.ndarray]:
    """The arrays of a group by name, empty if there is none."""
    try:
        found = data[group]
    except KeyError:
        return {}
    return {str(name): np.asarray(found[name]) for name in found.data_vars}


def psis_loo(data: Any) -> ArvizLoo:
    """PSIS-LOO of the log-likelihood in `data`. Bad Pareto shapes are in the answer, not in a warning."""
    az, _ = _generation()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = az.loo(data, pointwise=True)
    draws = next(iter(group_of(data, "log_likelihood").values())).shape[:2]
    if hasattr(found, "elpd"):
        values = found.elpd, found.se, found.p, found.elpd_i, found.pareto_k
    else:
        values = found["elpd_loo"], found["se"], found["p_loo"], found["loo_i"], found["pareto_k"]
    elpd, error, p = (float(v) for v in values[:3])
    pointwise, k = (np.asarray(v, dtype=float).ravel() for v in values[3:])
    # Vehtari et al. (2024): a shape is good below this, depending on the number of draws.
    return ArvizLoo(elpd, error, p, pointwise, k, min(1 - 1 / np.log10(draws[0] * draws[1]), 0.7))


def compare_table(data: Mapping[str, Any]) -> Any:
    """ArviZ's own comparison, a pandas table: elpd, its differences, and stacking weights."""
    az, _ = _generation()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pandas' announcements inside ArviZ 0.23
        return az.compare(dict(data), method="stacking")


def diagnostics(data: Any) -> dict[str, np.ndarray]:
    """R-hat and effective sample sizes of all numbers of the posterior: `r_hat`, `ess_bulk`, `ess_tail`, each `(P,)`."""
    az, _ = _generation()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # divisions by zero where a number never moves
        found = {"r_hat": az.rhat(data), "ess_bulk": az.ess(data, method="bulk"), "ess_tail": az.ess(data, method="tail")}
    return {name: np.concatenate([np.asarray(v[n], dtype=float).ravel() for n in _names(v)]) for name, v in found.items()}


def _names(found: Any) -> list[str]:
    return list(found.data_vars) if hasattr(found, "data_vars") else list(found["posterior"].data_vars)
