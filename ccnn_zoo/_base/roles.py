"""How a parameter says to the optimizer what it is.

Optimizer factories (timm's among them) hand over parameters, never the model, so the calibrated layer marks
its two parameters and CSGD asks each parameter it was given. A layer also says which parameters these are, in its class
attribute ``parameter_roles``, for an optimizer that is given the model. No map from tensors to layers is kept anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

SHARED_WEIGHT = "shared_weight"
"""w of the paper: receives noise."""
CALIBRATION = "calibration"
"""R of the paper: projected, never decayed, never given momentum."""


def set_role(parameter: Tensor, role: str) -> None:
    """Mark ``parameter`` as :data:`SHARED_WEIGHT` or :data:`CALIBRATION`."""
    parameter.ccnn_role = role


def get_role(parameter: Tensor) -> str | None:
    """Return the role of ``parameter``; None for every ordinary one."""
    return getattr(parameter, "ccnn_role", None)


def layers_with_roles(model: nn.Module) -> Iterator[tuple[str, nn.Module, Mapping[str, str]]]:
    """Yield name, layer and the roles of its parameters by their names, for every layer of ``model`` that has some."""
    for name, module in model.named_modules():
        roles = getattr(type(module), "parameter_roles", None)
        if roles:
            yield name, module, roles
