"""Fitting, weight posteriors, evidence, distances and estimates."""

from pyro_ar.inference.bayesian import Bayesian, Posterior
from pyro_ar.inference.estimate import estimate_log_marginal
from pyro_ar.inference.training import Fit, fit

__all__ = ["Bayesian", "Fit", "Posterior", "estimate_log_marginal", "fit"]
