"""Fitting, weight posteriors, evidence, distances, estimates, surprise and coherence."""

from pyro_ar.inference.bayesian import Bayesian, Posterior
from pyro_ar.inference.estimate import Completions, LogMarginal, estimate_log_marginal, sample_given
from pyro_ar.inference.one_joint import Coherence, coherence
from pyro_ar.inference.surprising import surprise
from pyro_ar.inference.training import Fit, fit

__all__ = [
    "Bayesian", "Coherence", "Completions", "Fit", "LogMarginal", "Posterior", "coherence", "estimate_log_marginal", "fit", "sample_given", "surprise",
]
