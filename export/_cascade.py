"""``cascade_to_onnx``: a network as one file, and again as two: some of its branches, and the others."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ccnn_zoo._base.checks import is_integer
from ccnn_zoo._base.wrapped import unwrapped, usual_settings
from ccnn_zoo._conversion.network import CalibratedNetwork
from ccnn_zoo._files import replacing, sha256_of
from ccnn_zoo.convert import chosen_branches
from ccnn_zoo.errors import ConfigurationError, ExportError
from ccnn_zoo.uncertainty import Cascade, FittedCascade, fit_cascade

from ._export import to_onnx
from ._graph import OUTPUT
from ._metadata import metadata_of
from ._precisions import TOLERANCE
from ._probe import ImageBatches, Probe
from ._report import ExportReport
from ._session import runner

PROPERTY = "cascade"
_PARTS = ("first", "rest")
_REFUSED = ("precision", "int8_images", "preprocess", "size", "batch", "branch_outputs")


@dataclass(frozen=True)
class CascadeReport:
    """What was exported, and what the cascade costs and brings.

    Args:
        whole: the network's own file, which any runtime runs as it is.
        first: the file of the branches that run on every picture.
        rest: that of the others.
        chosen: numbers of the first branches, those that are the most often right alone.
        branches: number K of branches.
        fitted: what was measured on every second held-out image; the threshold was chosen on the others.
    """

    whole: ExportReport
    first: ExportReport
    rest: ExportReport
    chosen: tuple[int, ...]
    branches: int
    fitted: FittedCascade

    @property
    def path(self) -> Path:
        """The whole network's file."""
        return self.whole.path

    @property
    def verdict(self) -> str:
        """Whether it pays for this network, in words."""
        found, count = self.fitted, self.fitted.pictures
        said = (
            f"runs {100 * found.point.cost:.0f} % of the arithmetic: the other branches on "
            f"{100 * found.point.passed_on:.0f} % of {count} held-out images. Wrong on "
            f"{100 * found.point.wrong / count:.2f} %, the whole network on {100 * found.wrong_whole / count:.2f} %, "
            f"the first branches alone on {100 * found.wrong_first / count:.2f} %"
        )
        return said if found.pays else f"does not pay for this network: {said}"

    def rows(self) -> Iterator[tuple[str, str]]:
        """Yield the report as a table of two columns: what, and the figure."""
        yield from self.whole.rows()
        yield (
            "cascade, first branches",
            f"{', '.join(map(str, self.chosen))} of {self.branches}: {self.first.path.name}",
        )
        yield "cascade, the others", self.rest.path.name
        yield "cascade", self.verdict


@usual_settings()
def cascade_to_onnx(
    model: nn.Module, path: str | os.PathLike[str], *, held_out: ImageBatches, first: int = 1, **options: Any
) -> CascadeReport:
    """Export a network, and beside it two files by which only doubtful pictures cost what all its branches cost.

    ``model.onnx`` is what :func:`to_onnx` writes. ``model_first.onnx`` holds the ``first`` branches that are the most
    often right alone on held-out images, a network of its own for ``runtime.load("model.onnx", branches=first)``;
    ``model_rest.onnx`` holds the others. ``runtime.load("model.onnx", cascade=True)`` runs the first ones, and the
    others where the first ones' highest probability is below a threshold: the lowest cost at which no more held-out
    images are wrong than by the whole network. Each file is checked as every export is; besides, the two together must
    say what the whole network says.

    Whether it pays is measured, and the report says it. Branches that were trained together (the default) are weak
    alone, so that most pictures are passed on.

    Args:
        model: a calibrated network with at least 2 branches of grouped mixing, merged by ``"mean"``, ``"concat"`` or
            ``"probability"``.
        path: the whole network's file.
        held_out: as of :func:`to_onnx`, at least 200.
        first: number of branches that run on every picture.
        options: further arguments of :func:`to_onnx`: ``images``, ``labels``, ``opset``, ``measure``.

    Raises:
        ConfigurationError: the network or an option is no such.
        ExportError: a file fails its check, or the two do not make up the whole.
    """
    model, path = unwrapped(model), Path(path)
    _check(model, first, options)
    metadata = metadata_of(model, options.get("labels"))
    probe = Probe(held_out, metadata.input_size, len(metadata.labels), 1, name="held_out")
    if not probe.labelled:
        raise ConfigurationError("held_out must be images with their classes: pairs (images, classes)")
    held = list(probe.batches())
    branches = model.conversion.branches
    chosen = _most_often_right(model, held, first)
    others = [k for k in range(branches) if k not in chosen]
    paths = {"whole": path} | {part: path.with_name(f"{path.stem}_{part}.onnx") for part in _PARTS}
    networks = {"whole": model, "first": chosen_branches(model, chosen), "rest": chosen_branches(model, others)}
    with ExitStack() as stack:
        files = {name: stack.enter_context(replacing(one)) for name, one in paths.items()}  # whole is renamed last
        reports = {}
        for name, network in networks.items():
            own = dict(options) if name == "whole" else {k: v for k, v in options.items() if k != "images"}
            own["held_out"] = None if name == "rest" else held
            reports[name] = replace(to_onnx(network, files[name], **own), path=paths[name])
        logits = {name: _logits(file, held) for name, file in files.items()}
        targets = torch.cat([classes for _, classes in held]).numpy()
        fitted = fit_cascade(logits["first"], logits["whole"], targets, first / branches)
        record = Cascade(
            branches=branches,
            first=first,
            merge=model.conversion.merge,
            threshold=fitted.point.threshold,
            files={part: paths[part].name for part in _PARTS},
            sha256={part: sha256_of(files[part]) for part in _PARTS},
            confidence=fitted.confidence,
        )
        _check_together(record, logits)
        network = onnx.load(files["whole"])
        network.metadata_props.add(key=PROPERTY, value=record.to_json())
        onnx.save(network, files["whole"])
    return CascadeReport(*(reports[name] for name in paths), tuple(chosen), branches, fitted)


def _check(model: nn.Module, first: int, options: dict[str, Any]) -> None:
    if unknown := sorted(name for name in options if name in _REFUSED):
        raise ConfigurationError(f"a cascade is exported in fp32 as it is: leave out {', '.join(unknown)}")
    branches = model.conversion.branches if isinstance(model, CalibratedNetwork) else 1
    if not is_integer(first, 1) or first >= branches:
        raise ConfigurationError(
            f"first must be at least 1 and less than the network's {branches} branches, got {first}"
        )
    if model.conversion.merge == "max":
        raise ConfigurationError("merge='max': what branches say apart cannot be merged into what they say together")


@torch.no_grad()
def _most_often_right(model: nn.Module, held: Sequence[tuple[Tensor, Tensor]], count: int) -> list[int]:
    """Return the numbers of branches, ascending; of equally good ones the first. Judged on every second image."""
    whole = chosen_branches(model, range(model.conversion.branches))
    right: Tensor | int = 0
    for images, classes in held:
        right = right + (whole.forward_branches(images[::2]).argmax(-1) == classes[::2]).sum(1)
    return sorted(torch.argsort(-right, stable=True)[:count].tolist())


def _logits(file: Path, held: Sequence[tuple[Tensor, Tensor]]) -> NDArray[np.float32]:
    run = runner(file)
    return np.concatenate([run(images)[OUTPUT] for images, _ in held])


def _check_together(record: Cascade, logits: dict[str, NDArray[np.float32]]) -> None:
    off = float(np.abs(record.merged(logits["first"], logits["rest"]) - logits["whole"]).max())
    # Probabilities: with merge="probability" logits are logarithms, whose own errors add up.
    if not off <= 10 * TOLERANCE * max(1.0, float(np.abs(logits["whole"]).max())):
        raise ExportError(
            f"the first branches and the others together differ from the whole network by {off:.2g}: layers that are "
            "not linear follow the one in which they meet. Such a network has no cascade."
        )
