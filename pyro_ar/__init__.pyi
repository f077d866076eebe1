# The public names, each imported from its file on first use: read by `lazy_loader` at run time, and by type checkers.

from . import classify as classify
from . import comparison as comparison
from . import data as data
from . import order as order
from . import outputs as outputs
from . import plots as plots
from . import testing as testing
from . import visible as visible
from .changes import RankNormal, Transformed
from .checks import IntractableError
from .classify import DiscriminantAnalysis, GenerativeClassifier, LogisticRegression, MixtureDiscriminantAnalysis
from .comparison import compare
from .elliptical import Gaussian, LowRankGaussian, LowRankStudentT, StudentT
from .files import load, save
from .imputation import JointImputer
from .imputing import impute
from .inference import Bayesian, estimate_log_marginal, fit
from .joint import Joint
from .latent import LatentTree
from .mixture import Mixture
from .neural import (
    FVSBN,
    MADE,
    NADE,
    AnyOrderNet,
    AnyOrderTransformer,
    Autoregressive,
    CausalTransformer,
    DiagonalBiLSTM,
    Family,
    MixtureChain,
    Net,
    OrderlessNADE,
    OverOrders,
    PerDimensionMLP,
    PixelCNN,
    RecurrentAR,
    RowLSTM,
    WaveNet,
)
from .tables import BayesNet, ChowLiuTree, FullTable, FullyIndependent, MarkovChain

__all__ = [
    "AnyOrderNet", "AnyOrderTransformer", "Autoregressive", "BayesNet", "Bayesian", "CausalTransformer", "ChowLiuTree", "DiagonalBiLSTM",
    "DiscriminantAnalysis", "FVSBN", "Family", "FullTable", "FullyIndependent", "Gaussian", "GenerativeClassifier", "IntractableError", "Joint",
    "JointImputer", "LatentTree", "LogisticRegression", "LowRankGaussian", "LowRankStudentT", "MADE", "MarkovChain", "Mixture", "MixtureChain",
    "MixtureDiscriminantAnalysis", "NADE", "Net", "OrderlessNADE", "OverOrders", "PerDimensionMLP", "PixelCNN", "RankNormal", "RecurrentAR", "RowLSTM",
    "StudentT", "Transformed", "WaveNet", "compare", "estimate_log_marginal", "fit", "impute", "load", "save",
]

__version__: str
