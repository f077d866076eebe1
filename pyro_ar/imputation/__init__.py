"""Tables with holes, completed from a joint."""

from pyro_ar.imputation.columns import Column
from pyro_ar.imputation.imputer import JointImputer
from pyro_ar.imputation.rubin import Pooled, pool

__all__ = ["Column", "JointImputer", "Pooled", "pool"]
