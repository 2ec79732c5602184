"""The paper's theory on a real training: Lipschitz constants, bounds, R over time, diversity of the branches.

>>> analysis = analyze("runs/digits", "runs/digits/analysis")
>>> analysis.bound.measured_shares
"""

from __future__ import annotations

from ._bounds import lemma_1, lipschitz_constants, mean_tail_bound, tail_bound, threshold
from ._diversity import Diversity, branch_disagreement, branch_diversity, calibration_distance
from ._report import Analysis, analyze
from ._theorem import BoundReport, compare_with_theorem
from ._trajectory import Recorder, Trajectory, record_runs

__all__ = [
    "Analysis",
    "BoundReport",
    "Diversity",
    "Recorder",
    "Trajectory",
    "analyze",
    "branch_disagreement",
    "branch_diversity",
    "calibration_distance",
    "compare_with_theorem",
    "lemma_1",
    "lipschitz_constants",
    "mean_tail_bound",
    "record_runs",
    "tail_bound",
    "threshold",
]
