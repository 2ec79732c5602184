from . import export as export
from . import hub as hub
from . import models as models
from . import runtime as runtime
from . import train as train
from .convert import calibrate as calibrate
from .convert import fold as fold
from .layers import CalibratedConv2d as CalibratedConv2d
from .optim import CSGD as CSGD

__version__: str
__all__ = [
    "CSGD",
    "CalibratedConv2d",
    "calibrate",
    "export",
    "fold",
    "hub",
    "models",
    "runtime",
    "train",
]
