"""Any network of timm's that can be calibrated, under one name: ``timm.create_model("ccnn", base="resnet50")``."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Any

import timm
from timm.models import PretrainedCfg, build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from ccnn_zoo._arguments import check_ranges
from ccnn_zoo._conversion.apply import apply
from ccnn_zoo._conversion.network import GENERIC, WEIGHTS
from ccnn_zoo._conversion.options import FROM_SCRATCH, ConversionOptions, take_options
from ccnn_zoo._conversion.selfcheck import checked, traced
from ccnn_zoo._conversion.survey import survey
from ccnn_zoo.convert import fold_
from ccnn_zoo.errors import ConfigurationError
from ccnn_zoo.models._cfgs import imagenet_cfg

__all__ = ["zoo_name"]

BASE = "resnet18"
"""The plain network where none is named."""

FINE_TUNED = {"diversity": 0.1, "rescale": True}
"""From trained weights: near the plain network's function, with branches that can go different ways."""

default_cfgs = generate_default_cfgs({GENERIC: imagenet_cfg("conv1", "fc")})


@register_model
def ccnn(
    pretrained: bool = False,
    *,
    base: str | None = None,
    pretrained_cfg: str | dict[str, Any] | PretrainedCfg | None = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    cache_dir: str | None = None,
    **kwargs: Any,
) -> nn.Module:
    """A plain network of timm's, calibrated; with K=2 branches by default.

    Args:
        pretrained: start from the trained weights of ``base``, as timm fetches them, calibrated so that the network
            starts near the function of the plain one (``diversity=0.1, rescale=True``; with ``diversity=0`` at that
            function). The weights of a repository that was published (``hf-hub:``, ``local-dir:``) are taken as they
            are.
        base: timm name of the plain network, with or without a tag; ``"ccnn.resnet50"`` names it too.
        pretrained_cfg, pretrained_cfg_overlay, cache_dir: as of ``timm.create_model``. Where weights are, of an
            overlay, is said of those of ``base``.
        kwargs: further arguments of ``base``; options of the conversion, ``branches=2``, ``merge="mean"`` and all that
            :class:`ccnn_zoo.convert.ConversionOptions` has; ``folded=True`` for the form without R; and timm's
            ``features_only``, for which timm's ``forward_intermediates`` is called.

    Raises:
        ConfigurationError: ``base`` is no plain network of timm's, or an option is out of range.
        CalibrationError: ``base`` cannot be calibrated; names the module and why.
    """
    named = pretrained_cfg if isinstance(pretrained_cfg, str) else None  # timm takes it for a tag
    base = base or named or BASE
    _check_base(base)
    overlay = dict(pretrained_cfg_overlay or {})
    plain = {"cache_dir": cache_dir, "pretrained": False}
    recorded = bool(pretrained_cfg) and not named
    if not recorded:
        plain |= {
            "pretrained": pretrained,
            "pretrained_cfg_overlay": {k: overlay.pop(k) for k in WEIGHTS & overlay.keys()},
        }
        pretrained_cfg, pretrained = _without_weights(timm.get_pretrained_cfg(base)), False
    check_ranges(kwargs)  # a repository's config.json ("hf-hub:") may have given them
    defaults = FINE_TUNED if plain["pretrained"] else FROM_SCRATCH
    options = ConversionOptions(**{"branches": 2, **defaults, **take_options(kwargs)})
    features = {"feature_cls": "getter", "out_indices": None}
    if "feature_cls" in kwargs:
        del features["out_indices"]  # timm's default
    model = build_model_with_cfg(
        partial(_build, base, plain, options, recorded),
        GENERIC,
        pretrained,
        pretrained_cfg=pretrained_cfg,
        pretrained_cfg_overlay={**overlay, "architecture": GENERIC},
        feature_cfg=features,
        cache_dir=cache_dir,
        **kwargs,
    )
    model._model_args = {"base": base.partition(".")[0], **options.architecture()}  # which timm completes
    return model


def zoo_name(name: str) -> tuple[str, dict[str, str]]:
    """Return the registered name of ours, and its arguments, of the network that ``name`` names.

    Args:
        name: a network of the zoo, or one of timm's, which is then calibrated: ``"resnet50"`` or ``"ccnn.resnet50"``.

    Raises:
        ConfigurationError: timm knows no such network.
    """
    if name in timm.list_models(f"{GENERIC}*"):
        return name, {}
    if isinstance(name, str):
        name = name.removeprefix(f"{GENERIC}.")
    _check_base(name)
    return GENERIC, {"base": name}


def _check_base(base: str) -> None:
    if not isinstance(base, str) or not timm.is_model(base) or base.partition(".")[0].partition("_")[0] == GENERIC:
        raise ConfigurationError(
            f"{base!r} is neither a network of the zoo (`ccnn list`) nor a plain one of timm's (timm.list_models())"
        )


def _without_weights(cfg: PretrainedCfg | None) -> dict[str, Any]:
    return {name: value for name, value in asdict(cfg or PretrainedCfg()).items() if name not in WEIGHTS | {"tag"}}


def _build(
    base: str,
    plain: dict[str, Any],
    options: ConversionOptions,
    recorded: bool,
    folded: bool = False,
    **kwargs: Any,
) -> nn.Module:
    name, _, tag = base.partition(".")
    # Not create_model, which takes paths too: a repository's config.json may hold any argument.
    model = timm.models.model_entrypoint(name)(pretrained_cfg=tag or None, **plain, **kwargs)
    found = survey(model, options)
    # What a repository records was checked when it was made.
    apply(traced(found, model) if recorded else checked(found, model, options), model, options)
    if folded:
        fold_(model)
    return model
