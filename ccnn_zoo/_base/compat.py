"""What other packages do not promise to keep, all of it: names that begin with ``_``, or lie in modules that do.

``from ccnn_zoo._base.compat import tree_leaves`` imports torch then, not with this module. tests/test_compat.py uses
each name as it is used here, and finds others that stand elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from operator import attrgetter
from typing import Any

NAMES = {
    # What an `out_indices` of features_only and forward_intermediates means: no public function says it.
    "feature_take_indices": "timm.models._features:feature_take_indices",
    # config.json as timm writes it; timm's public functions write weights or upload with it.
    "save_config_for_hf": "timm.models._hub:save_config_for_hf",
    # create_optimizer_v2 finds optimizers here; there is no public door for another one.
    "optimizer_registry": "timm.optim._optim_factory:default_registry",
    # onnxruntime's exceptions derive from Exception alone, and are exported nowhere else.
    "ort_errors": "onnxruntime.capi.onnxruntime_pybind11_state",
    # Sees every operator that runs; documented by torch in spite of its module's name.
    "TorchDispatchMode": "torch.utils._python_dispatch:TorchDispatchMode",
    # Tensors of whatever a forward returns; torch's own code takes this everywhere.
    "tree_leaves": "torch.utils._pytree:tree_leaves",
    # What all kinds of batch normalisation are, and those of instances too: torch's own code asks so.
    "BatchNorm": "torch.nn.modules.batchnorm:_BatchNorm",
    "BatchOrInstanceNorm": "torch.nn.modules.batchnorm:_NormBase",
    # How torch's own optimizers step many tensors at once, and keep themselves out of torch.compile.
    "disable_dynamo": "torch:_disable_dynamo",
    "foreach_add_": "torch:_foreach_add_",
    "foreach_copy_": "torch:_foreach_copy_",
    "foreach_mul_": "torch:_foreach_mul_",
    # Reads torchvision's weights of VGG as timm does.
    "vgg_weights": "timm.models.vgg:_filter_fn",
    # Called, it lets the next Accelerator of this process have another precision, which accelerate refuses.
    "forget_accelerators": "accelerate.state:AcceleratorState._reset_state",
}


def __getattr__(name: str) -> Any:
    if name not in NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = NAMES[name].partition(":")
    found = import_module(module)
    return attrgetter(attribute)(found) if attribute else found


def hub_client_factory() -> Callable[[], Any] | None:
    """Return how huggingface_hub makes its HTTP clients, or None where its user has set how.

    There is no public way to ask.
    """
    from huggingface_hub.utils import _http

    default = getattr(_http, "default_client_factory", None)
    return default if getattr(_http, "_GLOBAL_CLIENT_FACTORY", None) is default else None
