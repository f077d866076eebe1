r"""Outputs: from the raw parameters that a net computes to the conditional distribution of one variable.

An output is a small frozen dataclass. To add one, say five things about one variable:

================  ==========================================================================
`raw`             how many real numbers a net must compute for it
`inputs`          how many features a net reads of it
`num_states`      how many states it has, or None when it is continuous
`support`         the constraint of its values
`encode(x)`       the features of values `(*L)`, `(*L, inputs)`
`distribution(r)` from raw parameters `(*L, raw)` the distribution of batch shape `(*L)`
================  ==========================================================================

Every real `raw` must be legal, raw zero must be a sensible start, and `log_prob` must stay finite
and differentiable for raw numbers of any size. `log_prob` and `sample` follow from
`distribution`; override them only to be faster.

=================  ====================================================================================================================
states             `Bernoulli`, `RestrictedBernoulli` (its probability within bounds), `Categorical`, `TiedCategorical` (some states of one probability),
                   `Constant`; of ordered ones, such as grey levels, `DiscretisedLogisticMixture`
real numbers       `Normal`, `Logistic`, `MixtureOfNormals`, `MixtureOfLogistics`
=================  ====================================================================================================================

One output usually serves all variables alike. `PerVariable` gives each its own; a net that asks `output.at(i)` before it
encodes a single variable, as those of this library do, serves both.
"""

from pyro_ar.outputs.base import Output
from pyro_ar.outputs.continuous import Logistic, MixtureOfLogistics, MixtureOfNormals, Normal
from pyro_ar.outputs.discrete import Bernoulli, Categorical, Constant, RestrictedBernoulli, TiedCategorical
from pyro_ar.outputs.discretised import DiscretisedLogisticMixture
from pyro_ar.outputs.per_variable import PerVariable

__all__ = [
    "Bernoulli", "Categorical", "Constant", "DiscretisedLogisticMixture", "Logistic", "MixtureOfLogistics", "MixtureOfNormals", "Normal", "Output",
    "PerVariable", "RestrictedBernoulli", "TiedCategorical",
]
