"""Mixture discriminant analysis: a mixture per class, of complete and of partly seen rows."""

from pyro_ar.classify.mda.mixture_discriminant import MixtureDiscriminantAnalysis

__all__ = ["MixtureDiscriminantAnalysis"]
