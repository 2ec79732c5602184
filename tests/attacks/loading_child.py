"""Loads files whose author chose every value in them, with Python closed; prints what each did as JSON."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import resource
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import timm
import torch
import torchvision
from closed import Forbidden, closed
from timm.models import PretrainedCfg, _builder, _factory, _features, _helpers, _hub, _registry
from torchvision.models.detection import FasterRCNN, faster_rcnn

from ccnn_zoo._arguments import ARGUMENTS, DETECTOR, PREPROCESSING
from ccnn_zoo._files.sealed import write_sealed
from ccnn_zoo.checkpoint import config_json, load_checkpoint, load_repository
from ccnn_zoo.detection import create_detector, detector_config, load_detector
from ccnn_zoo.errors import CCNNError

SMALL = {"layers": (1, 1, 1), "channels": (4, 4, 4), "branches": 2, "num_classes": 3}
THIN = {"backbone_kwargs": {"layers": (1, 1, 1, 1), "channels": (4, 4, 4, 4)}, "representation_size": 4, "min_size": 32}
RECORD = {"data": "digits", "seed": 0, "epochs": 1, "recipe": {}, "metrics": {}, "versions": {}}


def names() -> list[str]:
    """Every argument that a factory of timm or torchvision takes, and every field of a ``pretrained_cfg``."""
    factories = [
        *(timm.create_model, _builder.build_model_with_cfg, _builder.load_pretrained, _builder.load_custom_pretrained),
        *(_builder.resolve_pretrained_cfg, _factory.resolve_model_input_args, _helpers.load_checkpoint),
        *(_hub.load_model_config_from_hf, _hub.load_state_dict_from_hf, _hub.load_custom_from_hf),
        *(_hub.load_model_config_from_path, _hub.load_state_dict_from_path, _hub.download_cached_file),
        *(_features.FeatureListNet, _features.FeatureHookNet, _features.FeatureGetterNet, _registry.get_pretrained_cfg),
        *(
            timm.models.ResNet,
            timm.models.VisionTransformer,
            timm.models.EfficientNet,
            torch.hub.load_state_dict_from_url,
        ),
        *(FasterRCNN, faster_rcnn.fasterrcnn_resnet50_fpn, torchvision.models.get_model, create_detector),
    ]
    found = {name for factory in factories for name in inspect.signature(factory).parameters}
    fields = {field.name for field in dataclasses.fields(PretrainedCfg)}
    aliases = {"labels", "default_cfg", "checkpoint", "state_dict_path", "weights_backbone", "jit", "__class__"}
    return sorted(found | fields | aliases - {"self"})


def values(canary: Path) -> list[object]:
    file, url = str(canary / "weights.pth"), "http://127.0.0.1:9/x.pth"
    everything = {"url": url, "file": file, "source": "local-dir", "hf_hub_id": "evil/x", "custom_load": True}
    return [file, url, True, 10**30, [10**9] * 4, everything]


def attacks(config: dict, detector: dict, canary: Path) -> Iterator[tuple[str, str, object]]:
    """Yield a name, the kind of file, and its configuration."""
    known, unknown = values(canary), values(canary)[:1]
    for name in sorted({*names(), *ARGUMENTS}):
        for value in known if name in ARGUMENTS else unknown:
            args = {**config["model_args"], name: value}
            yield f"model_args {name}={value!r:.60}", "checkpoint", {**config, "model_args": args}
    for name in sorted({*names(), *DETECTOR}):
        for value in known if name in DETECTOR else unknown:
            yield f"detector {name}={value!r:.60}", "detector", {**detector, name: value}
        kwargs = {**detector["backbone_kwargs"], name: unknown[0]}
        yield f"backbone_kwargs {name}={unknown[0]!r:.60}", "detector", {**detector, "backbone_kwargs": kwargs}
    for name in PREPROCESSING:
        for value in known:
            cfg = {**config["pretrained_cfg"], name: value}
            yield f"pretrained_cfg {name}={value!r:.60}", "checkpoint", {**config, "pretrained_cfg": cfg}
    for value in values(canary):  # what is left out may come all at once
        others = dict.fromkeys(set(names()) - PREPROCESSING.keys(), value)
        cfg = {**config["pretrained_cfg"], **others}
        yield f"pretrained_cfg, all others={value!r:.60}", "checkpoint", {**config, "pretrained_cfg": cfg}
    strange = [
        f"local-dir:{canary}",
        "hf-hub:evil/x",
        "resnet18.a1_in1k",
        "\x1b]0;x\x07",
        "",
        [[[[[1]]]]],
        None,
        {},
        -1,
    ]
    for value in [*known, *strange]:
        for key in ("architecture", "model_args", "pretrained_cfg"):
            yield f"{key}={value!r:.60}", "checkpoint", {**config, key: value}
            yield f"repository {key}={value!r:.60}", "repository", {**config, key: value}
        for key in ("backbone", "backbone_kwargs"):
            yield f"{key}={value!r:.60}", "detector", {**detector, key: value}
        yield f"config={value!r:.60}", "checkpoint", value
        yield f"detector={value!r:.60}", "detector", value
        generic = {**config, "architecture": "ccnn", "model_args": {**config["model_args"], "base": value}}
        yield f"base={value!r:.60}", "checkpoint", generic
    overlay = {"url": "http://127.0.0.1:9/x.pth", "file": str(canary / "weights.pth")}
    whole = {"pretrained": True, "cache_dir": str(canary), "pretrained_cfg_overlay": overlay}
    for kind in ("checkpoint", "repository"):
        yield f"the issue's, {kind}", kind, {**config, "model_args": {**config["model_args"], **whole}}
    yield "the issue's, detector", "detector", {**detector, "backbone_kwargs": {**detector["backbone_kwargs"], **whole}}


def tried(load: Callable[[Path], object], path: Path, canary: Path) -> dict[str, object]:
    with closed(canary) as noted:
        try:
            load(path)
            outcome = "loaded"
        except CCNNError as error:
            outcome = type(error).__name__
        except (Exception, Forbidden) as error:
            outcome = f"raw {type(error).__name__}: {error}"
    return {"outcome": outcome, "noted": list(noted)}


def main() -> None:
    folder = Path(tempfile.mkdtemp())
    canary = folder / "canary"
    canary.mkdir()
    network = timm.create_model("ccnn_resnet18_cifar", **SMALL)
    detector = create_detector("ccnn_resnet18", num_classes=2, **THIN)
    torch.save(network.state_dict(), canary / "weights.pth")
    doors = {
        "checkpoint": load_checkpoint,
        "detector": load_detector,
        "repository": lambda path: load_repository(path.parent),
    }
    os.fsync = lambda _: None  # thousands of files that nobody needs after a crash
    results = {}
    # The lock must hold, or nothing below means anything: these reach out.
    with closed(canary) as noted:
        for reach in (
            lambda: torch.load(canary / "weights.pth"),
            lambda: timm.create_model("resnet18", pretrained=True),
        ):
            try:
                reach()
            except BaseException as error:
                results.setdefault("control", []).append(type(error).__name__)
        results["control_noted"] = list(noted)
    soft = 64 * 2**30
    resource.setrlimit(resource.RLIMIT_AS, (soft, soft))
    weights = {"checkpoint": network.state_dict(), "detector": detector.state_dict()}
    for name, kind, config in attacks(json.loads(config_json(network)), detector_config(detector), canary):
        if kind == "repository":
            path = folder / "model.safetensors"
            (folder / "config.json").write_text(json.dumps(config))
            write_sealed(path, network.state_dict(), {})
        else:
            path = folder / "a.safetensors"
            key = "detector" if kind == "detector" else "config"
            write_sealed(path, weights[kind], {key: json.dumps(config), "record": json.dumps(RECORD)})
        results[name] = tried(doors[kind], path, canary)
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
