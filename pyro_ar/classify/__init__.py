"""Classifiers of partly seen rows, in scikit-learn's conventions."""

from pyro_ar.classify.discriminant import DiscriminantAnalysis
from pyro_ar.classify.generative import GenerativeClassifier
from pyro_ar.classify.logistic import LogisticRegression
from pyro_ar.classify.mixture_discriminant import MixtureDiscriminantAnalysis
from pyro_ar.classify.temperature import TemperatureScaled

__all__ = ["DiscriminantAnalysis", "GenerativeClassifier", "LogisticRegression", "MixtureDiscriminantAnalysis", "TemperatureScaled"]
