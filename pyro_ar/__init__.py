"""Autoregressive joints and Bayes nets as Pyro distributions, and the generative classifier they make."""

from pyro_ar import order, outputs, visible
from pyro_ar.autoregressive import Autoregressive
from pyro_ar.checks import IntractableError
from pyro_ar.classify import DiscriminantAnalysis, GenerativeClassifier, LogisticRegression
from pyro_ar.families import FVSBN, MADE, NADE, Family, OrderlessNADE, OverOrders
from pyro_ar.gaussian import Gaussian
from pyro_ar.joint import Given, Joint, Marginal
from pyro_ar.mixture import Mixture
from pyro_ar.tables import BayesNet, ChowLiuTree, FullTable, FullyIndependent, MarkovChain, TablePosterior
from pyro_ar.training import Fit, fit, load, save

__all__ = [
    "Autoregressive", "BayesNet", "ChowLiuTree", "DiscriminantAnalysis", "FVSBN", "Family", "Fit", "FullTable",
    "FullyIndependent", "Gaussian", "GenerativeClassifier", "Given", "IntractableError", "Joint",
    "LogisticRegression", "MADE", "Marginal", "MarkovChain", "Mixture", "NADE", "OrderlessNADE", "OverOrders",
    "TablePosterior", "fit", "load", "order", "outputs", "save", "visible",
]

__version__ = "0.1.0"
