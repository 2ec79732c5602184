"""The model card's first sentence: what kind of network it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def kind_of(details: Mapping[str, Any], data: str, mirrored: Sequence[int] | None) -> str:
    """Return what the network is: plain, one whose branches share their weights, or one whose branches do not.

    Args:
        details: of the manifest.
        data: what it was trained on, in one line.
        mirrored: numbers of the branches that see the mirror image.
    """
    branches, parameters = details["branches"], details["parameters"]
    if mirrored:
        numbers = ", ".join(map(str, mirrored))
        return (
            f"convolutional network of {branches} branches, trained on {data}.\n"
            f"Branches {numbers}, counted from 0, see the mirror image of a picture, the others the picture.\n"
            "Weights that two branches have in common may be counted twice below."
        )
    if branches == 1:
        return f"convolutional network, trained on {data}. It has one branch, so it is the plain network."
    if parameters["shared"] == parameters["folded"]:
        return (
            f"convolutional network of {branches} branches, trained on {data}. Every branch has weights of its own, in "
            "plain grouped\nconvolutions."
        )
    return (
        f"calibrated convolutional network, trained on {data}. In every layer {branches} branches share one weight w;\n"
        "branch k convolves with the effective kernel R_k * w. In `onnx/model.onnx` R is folded into plain grouped "
        "convolutions."
    )
