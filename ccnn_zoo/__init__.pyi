from . import analysis as analysis
from . import checkpoint as checkpoint
from . import detection as detection
from . import errors as errors
from . import export as export
from . import hub as hub
from . import metadata as metadata
from . import models as models
from . import runtime as runtime
from . import serve as serve
from . import train as train
from . import uncertainty as uncertainty
from .convert import Split as Split
from .convert import calibrate as calibrate
from .convert import deep_ensemble as deep_ensemble
from .convert import fold as fold
from .convert import split as split
from .layers import BranchLinear as BranchLinear
from .layers import CalibratedConv2d as CalibratedConv2d
from .optim import CSGD as CSGD

__version__: str
__all__ = [
    "CSGD",
    "BranchLinear",
    "CalibratedConv2d",
    "Split",
    "analysis",
    "calibrate",
    "checkpoint",
    "deep_ensemble",
    "detection",
    "errors",
    "export",
    "fold",
    "hub",
    "metadata",
    "models",
    "runtime",
    "serve",
    "split",
    "train",
    "uncertainty",
]
