"""Autoregressive joints and Bayes nets as Pyro distributions, and the generative classifier they make."""

from pyro_ar import order, outputs, visible
from pyro_ar.annealing import Evidence
from pyro_ar.autoregressive import Autoregressive
from pyro_ar.bayesian import Bayesian, Posterior
from pyro_ar.checks import IntractableError
from pyro_ar.classify import (
    CorrectedClassifier,
    Decision,
    DiscriminantAnalysis,
    GenerativeClassifier,
    LogisticRegression,
    Looks,
    MixtureChainClassifier,
    MixtureDiscriminantAnalysis,
    PatternNet,
    Plausibility,
    RiskCoverage,
    SemiSupervised,
    TemperatureScaled,
    decide,
    information_gain,
    reveal,
    risk_coverage,
)
from pyro_ar.comparison import (
    Comparison,
    Difference,
    Loo,
    NeuralModel,
    Row,
    StructurePosterior,
    TableModel,
    arviz_comparison,
    average,
    chain_over,
    compare,
    cross_validate,
    guide_draws,
    held_out_score,
    loo,
    model_log_likelihood,
    paired_difference,
    pointwise_log_likelihood,
    refit_bad,
    stacking_weights,
    structure_posterior,
    table_models,
    to_inference_data,
    variable_orders,
)
from pyro_ar.divergence import KLEstimate, closest_table, estimate_kl, kl_divergence
from pyro_ar.elliptical import Gaussian, LowRankGaussian, LowRankStudentT, StudentT
from pyro_ar.estimate import estimate_log_marginal
from pyro_ar.families import FVSBN, MADE, NADE, Family, OrderlessNADE, OverOrders
from pyro_ar.imputing import impute
from pyro_ar.joint import Given, Joint, Latent, Marginal
from pyro_ar.mixture import Mixture
from pyro_ar.mixture_chain import MixtureChain
from pyro_ar.rank_normal import RankNormal
from pyro_ar.tables import BayesNet, ChowLiuTree, FullTable, FullyIndependent, MarkovChain, TablePosterior
from pyro_ar.training import Fit, fit, load, save
from pyro_ar.transformed import Transformed

__all__ = [
    "Autoregressive", "BayesNet", "Bayesian", "ChowLiuTree", "Comparison", "CorrectedClassifier", "Decision", "Difference",
    "DiscriminantAnalysis", "Evidence", "FVSBN", "Family", "Fit", "FullTable", "FullyIndependent", "Gaussian",
    "GenerativeClassifier", "Given", "IntractableError", "Joint", "KLEstimate", "Latent", "LogisticRegression", "Loo", "Looks",
    "LowRankGaussian", "LowRankStudentT", "MADE", "Marginal", "MarkovChain", "Mixture", "MixtureChain", "MixtureChainClassifier",
    "MixtureDiscriminantAnalysis", "NADE", "NeuralModel", "OrderlessNADE", "OverOrders", "PatternNet", "Plausibility", "Posterior", "RankNormal", "RiskCoverage",
    "Row", "SemiSupervised", "StructurePosterior", "StudentT", "TableModel", "TablePosterior", "TemperatureScaled", "Transformed",
    "arviz_comparison", "average", "chain_over", "closest_table", "compare", "cross_validate", "decide",
    "estimate_kl", "estimate_log_marginal", "fit", "guide_draws", "held_out_score", "impute", "information_gain",
    "kl_divergence", "load", "loo", "model_log_likelihood", "order", "outputs", "paired_difference",
    "pointwise_log_likelihood", "refit_bad", "reveal", "risk_coverage", "save", "stacking_weights",
    "structure_posterior", "table_models", "to_inference_data", "variable_orders", "visible",
]

__version__ = "0.1.0"
