"""What every calibrated network can do, whether ``calibrate`` made it or timm's factory: one mixin."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ccnn_zoo._conversion.kinds import is_linear, new_classifier
from ccnn_zoo._conversion.known_blocks import keep_branches_apart
from ccnn_zoo._conversion.mixed import Mixin, mix_in, unmix
from ccnn_zoo._conversion.options import ConversionOptions
from ccnn_zoo.errors import ConfigurationError
from ccnn_zoo.layers import BranchConv2d, BranchLinear, CalibratedConv2d

GENERIC = "ccnn"
"""timm name of a network that is another one's, calibrated; which one says its argument ``base``."""

WEIGHTS = frozenset(
    ("url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "custom_load", "label_offset")
)


SAID = ("branches", "merge", "mixing")
"""Options that a calibrated network has as attributes too, where the plain one has nothing of that name."""

UNNAMED: dict[str, Any] = {"label_names": [], "label_descriptions": None}
"""timm's names of the classes, for a classifier that has learned none: not None, which may stand for ImageNet's."""


class CalibratedNetwork(Mixin):
    """Mixin of every calibrated network, before its plain class.

    Attributes:
        conversion: the :class:`ConversionOptions` by which it was calibrated. It is not annotated: TorchScript would
            try to understand that.
    """

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of R, probabilities that no optimizer should decay, besides what the plain network names (timm's
        convention)."""
        plain = getattr(super(), "no_weight_decay", set)()
        convs = (name for name, module in self.named_modules() if isinstance(module, CalibratedConv2d))
        return {*plain, *(f"{name}.calibration" for name in convs)}

    def forward_branches(self, x: Tensor) -> Tensor:
        """Return the logits that each branch alone gives.

        With ``merge="mean"`` their mean over the branches is what the network returns, unless layers that are not
        linear follow the one in which the branches meet; with ``"probability"`` it is the logarithm of their mean
        probability.

        Args:
            x: images, (N, C, H, W).

        Returns:
            Tensor (K, N, classes).

        Raises:
            ConfigurationError: the network has no classifier, or its ``forward`` does not pass through its modules.
        """
        name, meeting = meeting_layer(self)
        if meeting is None:
            raise ConfigurationError(
                f"num_classes={getattr(self, 'num_classes', 0)}: without a classifier there are no logits of branches; "
                "call reset_classifier first"
            )
        apart, branches = _Apart(meeting), meeting.branches
        outputs = _with_submodule(self, name.split("."), apart)(x)
        if outputs is apart.stacked:  # nothing follows
            return apart.logits
        if apart.stacked is None or outputs.shape[0] != branches * x.shape[0]:
            raise ConfigurationError(
                f"{type(self).__name__} makes {tuple(outputs.shape)} of {branches} branches of {len(x)} images, so the "
                "branches cannot be told apart behind the layer in which they meet"
            )
        return outputs.unflatten(0, (branches, x.shape[0]))


class CalibratedClassifier(CalibratedNetwork):
    """The same of networks that follow timm's contract of a classifier."""

    def reset_classifier(self, num_classes: int, global_pool: str | None = None, **kwargs: Any) -> None:
        """Replace the classifier; as in timm, and branches meet in the new one, which knows no names of its classes."""
        branches, merge = self.conversion.branches, self.conversion.merge
        scale_declared_widths(self, lambda width: width // branches)  # the plain class counts one branch
        try:
            super().reset_classifier(num_classes, global_pool, **kwargs)
            classifier = self.get_classifier()
            # Branches that met in an earlier layer (AlexNet's first linear one) stay met.
            if (is_linear(classifier) or type(classifier) is nn.Conv2d) and meeting_layer(self)[1] is None:
                name = next(name for name, module in self.named_modules() if module is classifier)
                self.set_submodule(name, new_classifier(classifier, branches, merge))
            keep_branches_apart(self, branches)
        finally:
            scale_declared_widths(self, lambda width: width * branches)
        if isinstance(cfg := getattr(self, "pretrained_cfg", None), dict):
            self.pretrained_cfg = self.default_cfg = {**cfg, **UNNAMED}


def scale_declared_widths(model: nn.Module, change: Callable[[int], int]) -> None:
    """Change the widths that timm networks declare, of every level, and of pooled and unpooled features where these are
    of all branches."""
    meeting = meeting_layer(model)[1]
    classifies = callable(getattr(model, "get_classifier", None))
    met_before = meeting is not None and classifies and model.get_classifier() is not meeting  # in a hidden layer
    owners = [(model, ("num_features",) if met_before else ("num_features", "head_hidden_size"))]
    head = getattr(model, "head", None)
    if hasattr(head, "global_pool"):  # timm's ClassifierHead, which sizes new classifiers by it
        owners.append((head, ("in_features", "num_features")))
    for owner, names in owners:
        for name in names:
            if isinstance(getattr(owner, name, None), int):
                setattr(owner, name, change(getattr(owner, name)))
    feature_info = getattr(model, "feature_info", None)
    holder, name = (feature_info, "info") if hasattr(feature_info, "info") else (model, "feature_info")
    if isinstance(levels := getattr(holder, name, None), list):
        setattr(holder, name, [{**level, "num_chs": change(level["num_chs"])} for level in levels])


def become_calibrated(model: nn.Module, options: ConversionOptions) -> None:
    """Give a network whose layers have been calibrated the mixin, and record how it was done.

    A network of timm's is then the one that ``timm.create_model("ccnn", base=...)`` builds. A graph of torch.fx, whose
    class is its own and generates code, keeps it.
    """
    if not isinstance(model, CalibratedNetwork | torch.fx.GraphModule):
        timms = all(callable(getattr(model, name, None)) for name in ("get_classifier", "reset_classifier"))
        mix_in(model, CalibratedClassifier if timms else CalibratedNetwork, "Calibrated")
        _rename(model)
    _record(model, options)
    if hasattr(model, "_model_args"):  # timm's record of how it was made
        model._model_args = {**model._model_args, **options.architecture()}


def _record(model: nn.Module, options: ConversionOptions) -> None:
    """Record on a network how it was calibrated; what the plain network has by these names stays."""
    model.conversion = options
    for name in vars(model).setdefault("_said", tuple(name for name in SAID if not hasattr(model, name))):
        setattr(model, name, getattr(options, name))


def have_branches(model: nn.Module, chosen: Sequence[int]) -> None:
    """Record on a copy of a folded network that it is to have the branches ``chosen``."""
    before, count = model.conversion, len(chosen)
    scale_declared_widths(model, lambda width: width // before.branches * count)
    mirrored = [new for new, old in enumerate(chosen) if old in before.mirrored]
    _record(model, replace(before, branches=count, mirrored=mirrored))
    for module in model.modules():
        if module is not model and isinstance(module, Mixin) and "branches" in vars(module):
            module.branches = count
    if hasattr(model, "_model_args"):
        made = {"num_classes": model.num_classes, "folded": True}
        kept = {name: value for name, value in model._model_args.items() if name not in before.architecture()}
        model._model_args = {**kept, **model.conversion.architecture(), **made}


def become_plain(model: nn.Module) -> None:
    """Give a network of one branch, which ends where branches would meet, its plain class again, if it has one."""
    timms = hasattr(model, "_model_args")
    if timms:
        model.num_classes = 0
        model._model_args = {**model._model_args, "num_classes": 0}
    for module in model.modules():
        if module is not model and unmix(module):
            del module.branches
    if not unmix(model):
        return
    ours = model.conversion.architecture()
    for name in ("conversion", *vars(model).pop("_said")):
        delattr(model, name)
    if timms:
        base = model._model_args["base"]
        kept = {name: value for name, value in model._model_args.items() if name not in {*ours, "base", "folded"}}
        model._model_args = kept
        model.pretrained_cfg = model.default_cfg = {**model.pretrained_cfg, "architecture": base}


def _rename(model: nn.Module) -> None:
    cfg = getattr(model, "pretrained_cfg", None)
    if isinstance(cfg, dict) and cfg.get("architecture"):
        # The weights are no longer those that can be fetched.
        kept = {name: value for name, value in cfg.items() if name not in WEIGHTS and name != "tag"}
        model.pretrained_cfg = model.default_cfg = {**kept, "architecture": GENERIC}
        model._model_args = {**getattr(model, "_model_args", {}), "base": cfg["architecture"]}


def timm_name(model: nn.Module) -> str:
    """Return the name by which ``timm.create_model`` builds a network of this architecture: of what ``calibrate`` made
    of a network of timm's it is ``"ccnn.resnet50"``.

    Raises:
        KeyError: it has none.
    """
    name = model.pretrained_cfg["architecture"]
    return f"{GENERIC}.{model._model_args['base']}" if name == GENERIC else name


def meeting_layer(model: nn.Module) -> tuple[str, BranchLinear | BranchConv2d | None]:
    """Return name and layer in which the branches of ``model`` meet; None where it has no classifier."""
    found = (item for item in model.named_modules() if isinstance(item[1], BranchLinear | BranchConv2d))
    return next(found, ("", None))


class _Apart(nn.Module):
    """Stands for the layer in which branches meet: keeps apart what it gives for each, as so many images."""

    def __init__(self, meeting: BranchLinear | BranchConv2d) -> None:
        super().__init__()
        self.meeting = meeting
        self.logits: Tensor | None = None
        self.stacked: Tensor | None = None

    def forward(self, features: Tensor) -> Tensor:
        self.logits = self.meeting.forward_branches(features)
        self.stacked = self.logits.flatten(0, 1)
        return self.stacked


def _with_submodule(module: nn.Module, path: Sequence[str], replacement: nn.Module) -> nn.Module:
    """Return what ``module`` is with another module at ``path``. It shares all else; ``module`` stays as it is."""
    if not path:
        return replacement
    view = copy(module)
    view.__dict__.pop("forward", None)  # what wrappers bind to the module itself
    view._compiled_call_impl = None
    view._modules = {**module._modules}
    view._modules[path[0]] = _with_submodule(module._modules[path[0]], path[1:], replacement)
    return view
