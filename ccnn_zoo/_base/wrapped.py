"""What users put around a network: torch.compile is looked through, other wrappers are named."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from copy import copy

import torch
from torch import nn

from ccnn_zoo.errors import ConfigurationError

_COMPILED = "_orig_mod"  # torch's name for what it compiled; its class takes seconds to import
_CALLABLE = "_torchdynamo_orig_callable"  # of a function that it compiled
_MODULE = "pass .module, the network in it"
_REMEDIES = {
    "DataParallel": _MODULE,
    "DistributedDataParallel": _MODULE,
    "AveragedModel": _MODULE,
    "ModelEma": "pass .ema, the averaged network in it",
    "ModelEmaV2": _MODULE,
    "ModelEmaV3": _MODULE,
    "FullyShardedDataParallel": "gather its weights (torch.distributed.checkpoint.state_dict) into a plain network",
    "FSDPModule": "gather its weights (torch.distributed.checkpoint.state_dict) into a plain network",
    "ScriptModule": "pass the network before torch.jit",
}
"""By the names of their classes, of which some are slow to import."""


def unwrapped(model: nn.Module) -> nn.Module:
    """Return a network as Python runs it, without torch.compile, as a whole or of parts of it.

    Where nothing is compiled that is ``model``; otherwise a view of it that shares its parameters and buffers.

    Raises:
        ConfigurationError: ``model`` is another wrapper, or no module; names the remedy.
    """
    _refuse_wrapper(model)
    model = model._modules.get(_COMPILED, model)
    _refuse_wrapper(model)
    return _uncompiled(model, {})


def _refuse_wrapper(model: object) -> None:
    for base in type(model).__mro__:
        if base.__name__ in _REMEDIES:
            raise ConfigurationError(f"{type(model).__name__} wraps the network: {_REMEDIES[base.__name__]}")
    if not isinstance(model, nn.Module):
        raise ConfigurationError(f"expected a network, a torch.nn.Module, got {type(model).__name__}")


def _uncompiled(module: nn.Module, seen: dict[nn.Module, nn.Module]) -> nn.Module:
    if isinstance(module, torch.jit.ScriptModule):  # which nothing can be compiled in
        return module
    if module not in seen:
        bare = module._modules.get(_COMPILED, module)
        children = {name: child and _uncompiled(child, seen) for name, child in bare._modules.items()}
        view = bare
        forward = hasattr(vars(bare).get("forward"), _CALLABLE)
        apart = any(child is not bare._modules[name] for name, child in children.items())
        if apart or forward or bare._compiled_call_impl is not None:
            view = copy(bare)
            view._modules, view._compiled_call_impl = children, None
            if forward:  # of a copy it would still run the original
                del view.__dict__["forward"]
        seen[module] = view
    return seen[module]


@contextmanager
def usual_settings() -> Iterator[None]:
    """Run as torch does by default, whatever the caller has set: no autocast, float32, the CPU, ordinary tensors."""
    dtype = torch.get_default_dtype()
    with ExitStack() as stack:
        stack.callback(torch.set_default_dtype, dtype)
        torch.set_default_dtype(torch.float32)
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(torch.inference_mode(mode=False))
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield
