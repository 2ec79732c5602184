"""timm's description of a network's data (``pretrained_cfg``): one for ImageNet layouts, one for small images."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from ccnn_zoo.metadata import PREPROCESSING

CIFAR_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR_STD = (0.2470, 0.2435, 0.2616)


def imagenet_cfg(first_conv: str, classifier: str, **kwargs: Any) -> dict[str, Any]:
    """Return the cfg of a network for 224x224 images and 1000 classes; ``kwargs`` override its entries."""
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bilinear",
        "mean": (0.485, 0.456, 0.406),
        "std": (0.229, 0.224, 0.225),
        "first_conv": first_conv,
        "classifier": classifier,
        "license": "apache-2.0",
        **kwargs,
    }


def cifar_cfg(first_conv: str, classifier: str, **kwargs: Any) -> dict[str, Any]:
    """Return the cfg of a network for 32x32 images and 10 classes; ``kwargs`` override its entries."""
    cifar = {
        "num_classes": 10,
        "input_size": (3, 32, 32),
        "pool_size": (8, 8),
        "crop_pct": 1.0,
        "mean": CIFAR_MEAN,
        "std": CIFAR_STD,
    }
    return imagenet_cfg(first_conv, classifier, **{**cifar, **kwargs})


def shipped_cfg(name: str) -> dict[str, Any]:
    """Return the cfg entries of trained weights that come with the package: where they are and what they expect.

    Args:
        name: timm name with its tag, e.g. ``"ccnn_resnet18_cifar.mnist"``.
    """
    path = str(files("ccnn_zoo") / "checkpoints" / f"{name}.safetensors")
    trained = _config(path)["pretrained_cfg"]
    expected = (*PREPROCESSING, "num_classes", "label_names")
    return {"file": path, **{key: trained[key] for key in expected if key in trained}}


def arguments_of_weights(file: str) -> dict[str, Any]:
    """Return the arguments that a network needs to hold trained weights that come with the package.

    Args:
        file: of :func:`shipped_cfg`.
    """
    made = _config(file)["model_args"]
    return {key: made[key] for key in ("branches", "merge", "mixing", "mirrored", "folded") if key in made}


def _config(path: str) -> dict[str, Any]:
    with open(path, "rb") as stream:  # a safetensors file begins with the length of its JSON header
        header = json.loads(stream.read(int.from_bytes(stream.read(8), "little")))
    return json.loads(header["__metadata__"]["config"])
