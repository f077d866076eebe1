"""Autoregressive joints and Bayes nets as Pyro distributions, and the generative classifier they make."""

from pyro_ar import order, outputs, visible
from pyro_ar.autoregressive import Autoregressive
from pyro_ar.checks import IntractableError
from pyro_ar.classify import (
    DiscriminantAnalysis,
    GenerativeClassifier,
    LogisticRegression,
    MixtureDiscriminantAnalysis,
    TemperatureScaled,
)
from pyro_ar.elliptical import Gaussian, LowRankGaussian, LowRankStudentT, StudentT
from pyro_ar.estimate import estimate_log_marginal
from pyro_ar.families import FVSBN, MADE, NADE, Family, OrderlessNADE, OverOrders
from pyro_ar.joint import Given, Joint, Marginal
from pyro_ar.mixture import Mixture
from pyro_ar.rank_normal import RankNormal
from pyro_ar.tables import BayesNet, ChowLiuTree, FullTable, FullyIndependent, MarkovChain, TablePosterior
from pyro_ar.training import Fit, fit, load, save
from pyro_ar.transformed import Transformed

__all__ = [
    "Autoregressive", "BayesNet", "ChowLiuTree", "DiscriminantAnalysis", "FVSBN", "Family", "Fit", "FullTable",
    "FullyIndependent", "Gaussian", "GenerativeClassifier", "Given", "IntractableError", "Joint",
    "LogisticRegression", "LowRankGaussian", "LowRankStudentT", "MADE", "Marginal", "MarkovChain", "Mixture",
    "MixtureDiscriminantAnalysis", "NADE", "OrderlessNADE", "OverOrders", "RankNormal", "StudentT", "TablePosterior",
    "TemperatureScaled", "Transformed", "estimate_log_marginal", "fit", "load", "order", "outputs", "save", "visible",
]

__version__ = "0.1.0"
