"""Tables with holes, completed from a joint."""

from pyro_ar.imputation.columns import Column
from pyro_ar.imputation.imputer import JointImputer

__all__ = ["Column", "JointImputer"]
