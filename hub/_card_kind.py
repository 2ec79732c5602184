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
    return _network(details, data, bool(mirrored)) + (_views(mirrored) if mirrored else "")


def _network(details: Mapping[str, Any], data: str, mirrored: bool) -> str:
    branches, parameters = details["branches"], details["parameters"]
    if branches == 1:
        return f"convolutional network, trained on {data}. It has one branch, so it is the plain network."
    if parameters["shared"] != parameters["folded"]:
        return (
            f"calibrated convolutional network, trained on {data}. In every layer {branches} branches share one weight "
            "w;\nbranch k convolves with the effective kernel R_k * w. In `onnx/model.onnx` R is folded into plain "
            "grouped convolutions."
        )
    if mirrored:
        return (
            f"convolutional network of {branches} branches, trained on {data}, in plain grouped convolutions.\n"
            "A network that sees the picture and its mirror image is two branches, and counts twice below."
        )
    return (
        f"convolutional network of {branches} branches, trained on {data}. Every branch has weights of its own, in "
        "plain grouped\nconvolutions."
    )


def _views(mirrored: Sequence[int]) -> str:
    *others, last = map(str, mirrored)
    which = f"branches {', '.join(others)} and {last} see" if others else f"branch {last} sees"
    return f"\nCounted from 0, {which} the mirror image of a picture."
