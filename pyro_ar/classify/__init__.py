"""Classifiers of partly seen rows, in scikit-learn's conventions."""

from pyro_ar.classify.any_order import AnyOrderClassifier
from pyro_ar.classify.around.abstention import Decision, RiskCoverage, decide, risk_coverage
from pyro_ar.classify.around.corrected import CorrectedClassifier
from pyro_ar.classify.around.estimated import EstimatedClassifier, PosteriorEstimate
from pyro_ar.classify.around.mixture_chain import MixtureChainClassifier
from pyro_ar.classify.around.plausibility import Plausibility
from pyro_ar.classify.around.pool import OpinionPool
from pyro_ar.classify.around.semi_supervised import SemiSupervised
from pyro_ar.classify.around.temperature import TemperatureScaled
from pyro_ar.classify.discriminant import DiscriminantAnalysis
from pyro_ar.classify.generative import GenerativeClassifier
from pyro_ar.classify.logistic import LogisticRegression
from pyro_ar.classify.looking.looks import Looks, information_gain, reveal
from pyro_ar.classify.mda import MixtureDiscriminantAnalysis
from pyro_ar.classify.pattern_net import PatternNet

__all__ = [
    "AnyOrderClassifier", "CorrectedClassifier", "Decision", "DiscriminantAnalysis", "EstimatedClassifier", "GenerativeClassifier",
    "LogisticRegression", "Looks", "MixtureChainClassifier", "MixtureDiscriminantAnalysis", "OpinionPool", "PatternNet", "Plausibility",
    "PosteriorEstimate", "RiskCoverage", "SemiSupervised",
    "TemperatureScaled", "decide", "information_gain", "reveal", "risk_coverage",
]
