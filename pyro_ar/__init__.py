"""Autoregressive joints and Bayes nets as Pyro distributions, and the generative classifier they make."""

from pyro_ar import visible
from pyro_ar.checks import IntractableError
from pyro_ar.gaussian import Gaussian
from pyro_ar.joint import Given, Joint, Marginal
from pyro_ar.mixture import Mixture
from pyro_ar.tables import BayesNet, ChowLiuTree, FullTable, FullyIndependent, MarkovChain, TablePosterior

__all__ = [
    "BayesNet", "ChowLiuTree", "FullTable", "FullyIndependent", "Gaussian", "Given", "IntractableError", "Joint",
    "MarkovChain", "Marginal", "Mixture", "TablePosterior", "visible",
]

__version__ = "0.1.0"
