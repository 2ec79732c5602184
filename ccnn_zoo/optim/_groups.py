"""Which parameters are w, R or neither, and whether an optimizer can know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ccnn_zoo._base.compat import disable_dynamo
from ccnn_zoo._base.roles import CALIBRATION, SHARED_WEIGHT, get_role, layers_with_roles, set_role
from ccnn_zoo.errors import ConfigurationError

from ._sharded import is_sharded

_ROLE = "role"
_OTHER = "other"
_OF_CALIBRATION = {"momentum": 0.0, "weight_decay": 0.0}
"""Which R never has; its group says so."""


def layers_of(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the calibrated layers of a model with their names; their parameters are marked again.

    Raises:
        ConfigurationError: nothing in the model is calibrated.
    """
    found = list(layers_with_roles(model))
    for _, layer, roles in found:
        for name, role in roles.items():
            set_role(getattr(layer, name), role)
    if not found and not any(map(get_role, model.parameters())):
        raise ConfigurationError(
            f"{type(model).__name__} has no calibrated layer: CSGD would be torch.optim.SGD. Calibrate the network "
            "(ccnn_zoo.calibrate), or take torch.optim.SGD; a folded network holds neither w nor R"
        )
    return [(name, layer) for name, layer, _ in found]


def groups_of(params: list[Any]) -> tuple[list[Any], list[int]]:
    """Return the groups w, R and rest of bare parameters, and the place that each had; groups are left as they are."""
    roles = [get_role(p) if isinstance(p, Tensor) else None for p in params]
    if not any(roles):
        return params, []
    groups, order = [], []
    for role, options in ((SHARED_WEIGHT, {}), (CALIBRATION, _OF_CALIBRATION), (None, {})):
        places = [place for place, own in enumerate(roles) if own == role]
        if places:
            groups.append({"params": [params[place] for place in places], _ROLE: role or _OTHER, **options})
            order += places
    return groups, order


def role_in(group: dict[str, Any], param: Tensor) -> str | None:
    """Return the role of a parameter: its group's, which outlives the parameter object, or its own."""
    return group.get(_ROLE) or get_role(param)


def refuse_lost_roles(groups: Sequence[dict[str, Any]]) -> None:
    """Refuse parameters that look like w or R and do not know it, as far as that can be seen.

    Raises:
        ConfigurationError: a tensor sums to 1 over its first axis, as R does; or there are R and no w.
    """
    params = [(group, param) for group in groups for param in group["params"]]
    advice = "Give CSGD the model, which finds them through its layers, or the parameters that the layers hold now"
    for group, param in params:
        if group.get(_ROLE) in (None, _OTHER) and get_role(param) is None and _looks_like_r(param):
            raise ConfigurationError(
                f"a parameter {tuple(param.shape)} looks like a calibration kernel R (never negative, sum 1 over the "
                f"branches) but is not marked as one, so it would be decayed and not projected. {advice}"
            )
    roles = {role_in(group, param) for group, param in params}
    unmarked = [p for group, p in params if role_in(group, p) in (None, _OTHER) and p.ndim == 4 and p.requires_grad]
    if CALIBRATION in roles and SHARED_WEIGHT not in roles and unmarked:
        raise ConfigurationError(
            f"there are calibration kernels R but no weight w that is marked as one, among them one of "
            f"{tuple(unmarked[0].shape)}: noise would reach none. {advice}"
        )


@torch.no_grad()
def _looks_like_r(param: Tensor) -> bool:
    if param.ndim != 3 or len(param) < 2 or not param.is_floating_point() or param.is_meta or is_sharded(param):
        return False
    tolerance = 16 * torch.finfo(param.dtype).eps
    return bool((param >= 0).all()) and bool(((param.sum(0) - 1).abs() <= tolerance).all())


# Dynamo cannot trace identities of tensors.
@disable_dynamo
def check_known(layers: Sequence[tuple[str, nn.Module]], groups: Sequence[dict[str, Any]]) -> None:
    """Refuse to step where a layer learns by parameters that no group holds: they were replaced after the optimizer
    was built.

    Raises:
        ConfigurationError: names the layer and the parameter.
    """
    if not layers:
        return
    known = {id(param) for group in groups for param in group["params"]}
    for layer_name, layer in layers:
        for name in layer.parameter_roles:
            param = layer._parameters.get(name)
            if param is not None and param.grad is not None and id(param) not in known:
                raise ConfigurationError(
                    f"the optimizer does not know {'.'.join(filter(None, (layer_name, name)))}, which has a gradient: "
                    "the parameter was replaced after the optimizer was built. Build CSGD(model) again after that"
                )


def regrouped(state: dict[str, Any], own: Sequence[dict[str, Any]], order: Sequence[int]) -> dict[str, Any]:
    """Return the state of an optimizer that has all parameters in one group, for one of the groups w, R and rest.

    Args:
        state: a state dict; one of as many groups as ``own`` is returned as it is.
        own: the groups that it is for.
        order: see :func:`groups_of`.
    """
    given = state["param_groups"]
    if len(given) != 1 or len(own) < 2 or len(given[0]["params"]) != len(order):
        return state
    options = {name: value for name, value in given[0].items() if name != "params"}
    sorted_ids = iter([given[0]["params"][place] for place in order])
    groups = []
    for group in own:
        fixed = _OF_CALIBRATION if group[_ROLE] == CALIBRATION else {}
        ids = [next(sorted_ids) for _ in group["params"]]
        groups.append({**options, **fixed, _ROLE: group[_ROLE], "params": ids})
    return {**state, "param_groups": groups}
