"""Autoregressive joints and Bayes nets as Pyro distributions, and the generative classifier they make.

The public names and where they come from stand in `__init__.pyi`. Each is imported when it is first used, so that a
joint waits neither for scikit-learn nor for matplotlib. What few need lives in `par.comparison` and `par.classify`.
"""

import importlib
import pkgutil

from typing import Any

import lazy_loader

__version__ = "0.1.0"

importlib.import_module("pyro_ar.inference.divergence")  # registers torch's `kl_divergence` of any two joints
_load, _, _names = lazy_loader.attach_stub(__name__, __file__)
_modules = {module.name for module in pkgutil.iter_modules(__path__)}
__all__ = [name for name in _names if name not in _modules]

# Names of 0.1 that were here once, and those that stand beside them now.
_MOVED = {
    "comparison": {
        "Comparison", "Difference", "Evidence", "KLEstimate", "Loo", "NeuralModel", "Row", "StructurePosterior", "TableModel", "arviz_comparison",
        "average", "chain_over", "closest_table", "cross_validate", "estimate_kl", "guide_draws", "held_out_score", "kl_divergence", "loo",
        "model_log_likelihood", "paired_difference", "pointwise_log_likelihood", "refit_bad", "stacking_weights", "structure_posterior",
        "table_models", "to_inference_data", "variable_orders",
    },
    "classify": {
        "AnyOrderClassifier", "CorrectedClassifier", "Decision", "EstimatedClassifier", "Looks", "MixtureChainClassifier", "OpinionPool", "PatternNet",
        "Plausibility", "PosteriorEstimate", "RiskCoverage", "SemiSupervised", "TemperatureScaled", "decide", "information_gain", "reveal", "risk_coverage",
    },
    "inference": {"Fit", "Posterior"},
    "queries": {"Given", "Latent", "Marginal"},
    "tables": {"TablePosterior"},
}


# Modules of 0.1, and where their names are now.
_MOVED_MODULES = {
    "annealing": "inference", "autoregressive": "neural", "bayesian": "inference", "divergence": "inference", "estimate": "inference",
    "families": "neural", "mixture_chain": "neural", "nets": "neural", "plots_looking": "plots", "rank_normal": "changes", "training": "inference",
    "transformed": "changes",
}


def __getattr__(name: str) -> Any:
    if name in _MOVED_MODULES:
        raise AttributeError(f"{__name__}.{name} has moved: its names are in {__name__}.{_MOVED_MODULES[name]} now")
    for namespace, names in _MOVED.items():
        if name in names:
            raise AttributeError(f"{__name__}.{name} has moved: it is {__name__}.{namespace}.{name} now")
    return importlib.import_module(f"{__name__}.{name}") if name in _modules else _load(name)


def __dir__() -> list[str]:
    """The public names, without the modules."""
    return list(__all__)
