r"""Bayesian comparison of factorisations: which one should be believed, given this much data?

========================================  =====================================================================
question                                  who answers
========================================  =====================================================================
one table and one picture of any mix      `compare`
probabilities of structures of tables     `structure_posterior`, with `table_models` or `variable_orders`
evidence of neural joints                 `Bayesian.log_evidence`
PSIS-LOO of posterior draws               `to_inference_data`, `loo`, `refit_bad`
scores of point estimates                 `held_out_score`, `cross_validate`, `paired_difference`
mixtures of fitted joints                 `stacking_weights`, `average`
how far one joint is from another         `kl_divergence`, `estimate_kl`, `closest_table`
========================================  =====================================================================
"""

from pyro_ar.comparison.held_out import (
    Difference,
    average,
    cross_validate,
    held_out_score,
    paired_difference,
    stacking_weights,
)
from pyro_ar.comparison.pointwise import model_log_likelihood, pointwise_log_likelihood
from pyro_ar.comparison.predictive import Loo, arviz_comparison, guide_draws, loo, refit_bad, to_inference_data
from pyro_ar.comparison.recipes import NeuralModel, TableModel, chain_over
from pyro_ar.comparison.scoring import compare
from pyro_ar.comparison.structures import StructurePosterior, structure_posterior, table_models, variable_orders
from pyro_ar.comparison.table import Comparison, Row
from pyro_ar.inference.annealing import Evidence
from pyro_ar.inference.divergence import KLEstimate, closest_table, estimate_kl, kl_divergence

__all__ = [
    "Comparison", "Difference", "Evidence", "KLEstimate", "Loo", "NeuralModel", "Row", "StructurePosterior", "TableModel", "arviz_comparison", "average",
    "chain_over", "closest_table", "compare", "cross_validate", "estimate_kl", "guide_draws", "held_out_score", "kl_divergence", "loo",
    "model_log_likelihood", "paired_difference", "pointwise_log_likelihood", "refit_bad", "stacking_weights", "structure_posterior", "table_models",
    "to_inference_data", "variable_orders",
]
