"""The paper's theory on a real training run: Lipschitz constants, bounds, R over time, diversity of branches."""

from __future__ import annotations
