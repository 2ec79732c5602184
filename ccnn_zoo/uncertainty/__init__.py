"""What a classifier does not know: numbers fitted on held-out pictures, and what they say of a new one.

:func:`fit` finds a temperature, thresholds for prediction sets of a wanted coverage and for deciding at a wanted risk,
and quantiles of an out-of-distribution score. They travel in the ONNX file (:class:`Confidence`), where the runtime
reads them. :func:`measure` says what they are worth on test pictures. The runtime needs numpy alone; only these two
need SciPy.

"Confidence" is of probabilities. "Calibration" means the calibration kernels R in this package, another thing.
"""

from ._cascade import Cascade, CascadePoint, FittedCascade, cascade_curve, fit_cascade, merged
from ._fit import LEAST_PICTURES, fit
from ._measure import Measured, Reliability, RiskCoverage, auroc, measure, reliability, risk_coverage
from ._numbers import COVERAGES, RISKS, SETS, Confidence
from ._scores import Doubt, doubt, energy, entropy, mutual_information, prediction_sets, probabilities

__all__ = [
    "COVERAGES",
    "LEAST_PICTURES",
    "RISKS",
    "SETS",
    "Cascade",
    "CascadePoint",
    "Confidence",
    "Doubt",
    "FittedCascade",
    "Measured",
    "Reliability",
    "RiskCoverage",
    "auroc",
    "cascade_curve",
    "doubt",
    "energy",
    "entropy",
    "fit",
    "fit_cascade",
    "measure",
    "merged",
    "mutual_information",
    "prediction_sets",
    "probabilities",
    "reliability",
    "risk_coverage",
]
