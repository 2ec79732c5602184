"""CSGD among timm's optimizers."""

from __future__ import annotations

from ._csgd import CSGD


def register_with_timm() -> None:
    """Register CSGD as ``opt="csgd"`` of ``timm.optim.create_optimizer_v2`` and of timm's scripts."""
    from timm.optim import OptimInfo

    from ccnn_zoo._base.compat import optimizer_registry

    optimizer_registry.register(
        OptimInfo(
            name="csgd",
            opt_class=CSGD,
            description="Calibrated SGD with noise on the shared weights and projected calibration kernels",
            has_eps=False,
            has_momentum=True,
        )
    )
