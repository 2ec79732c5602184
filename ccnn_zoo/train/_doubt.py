"""What a network does not know, as pictures after its training: on the test part, and on what was held out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ccnn_zoo import uncertainty

from ._branch_logits import branch_logits, meeting_classifier
from ._data import Data
from ._doubt_pictures import Doubtful, Strange, draw_confidence, draw_doubtful

CONFIDENCE, DOUBTFUL = "confidence.png", "doubtful.png"
MOST_PICTURES = 10_000
"""Test or held-out pictures that are looked at, spread over the whole."""
_SHUFFLED = 1_000
_SHOWN = 20

Loader = Callable[[object], DataLoader]


class _Outputs(NamedTuple):
    logits: NDArray[np.float32]
    branch_logits: NDArray[np.float32] | None
    targets: NDArray[np.int64]


def draw_doubt(
    model: nn.Module, data: Data, held_out: object | None, loader: Loader, device: torch.device, folder: Path
) -> None:
    """Draw reliability, risk over coverage, strange pictures' scores, and the test pictures that are most in doubt.

    Args:
        model: the network, in eval mode.
        data: of the training; its test part is drawn.
        held_out: images of :meth:`Data.hold_out`, by which the numbers of confidence are fitted; None for none.
        loader: makes of images what yields batches of them, preprocessed.
        device: to run on.
        folder: gets ``confidence.png`` and ``doubtful.png``.
    """
    run = _runner(model.to(device), len(data.labels), device)
    numbers = None
    if held_out is not None and len(held_out) >= uncertainty.LEAST_PICTURES:
        fitted = _outputs(run, loader(_spread(held_out, MOST_PICTURES)))
        numbers = uncertainty.fit(fitted.logits, fitted.targets, fitted.branch_logits)
    test = _spread(data.test, MOST_PICTURES)
    found = _outputs(run, loader(test))
    strange = _outputs(run, _shuffled(loader(_spread(test, _SHUFFLED))))
    doubts = uncertainty.doubt(found.logits, found.branch_logits, numbers)
    scores = _strange(doubts, uncertainty.doubt(strange.logits, strange.branch_logits, numbers))
    draw_confidence(found.logits, found.targets, numbers, scores, folder / CONFIDENCE)
    order = np.argsort(-doubts.entropy, kind="stable")[:_SHOWN]
    shown = torch.cat([images for images, _ in loader(test.subset(order))])
    draw_doubtful(
        [_described(row, image, found, doubts, data) for row, image in zip(order, shown, strict=True)],
        folder / DOUBTFUL,
    )
    model.to("cpu")


def _runner(model: nn.Module, classes: int, device: torch.device) -> Callable[[Tensor], tuple[Tensor, Tensor | None]]:
    """Return what gives logits (N, classes) and those of the branches (K, N, classes), where there are some."""
    meets = meeting_classifier(model, classes) is not None
    branched = getattr(model, "branches", 1) > 1

    @torch.inference_mode()
    def run(images: Tensor) -> tuple[Tensor, Tensor | None]:
        images = images.to(device)
        with branch_logits(model, classes, wanted=branched and meets) as alone:
            logits = model(images)
        if branched and not meets and callable(getattr(model, "forward_branches", None)):
            alone.append(model.forward_branches(images))
        return logits.float().cpu(), alone[0].float().cpu() if alone else None

    return run


def _outputs(run: Callable[[Tensor], tuple[Tensor, Tensor | None]], batches: object) -> _Outputs:
    logits, branches, targets = [], [], []
    for images, classes in batches:
        merged, alone = run(images)
        logits.append(merged)
        targets.append(classes)
        if alone is not None:
            branches.append(alone)
    return _Outputs(
        torch.cat(logits).numpy(),
        torch.cat(branches, dim=1).numpy() if branches else None,
        torch.cat(targets).numpy(),
    )


def _spread(images: object, most: int) -> object:
    if len(images) <= most:
        return images
    return images.subset(np.linspace(0, len(images) - 1, most).astype(np.int64))


def _shuffled(batches: object) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield pictures whose pixels have changed places, each in its own way: their colours are those of known ones."""
    generator = torch.Generator().manual_seed(0)
    for images, classes in batches:
        flat = images.flatten(2)
        for picture in flat:
            picture[:] = picture[:, torch.randperm(picture.shape[1], generator=generator)]
        yield flat.view_as(images), classes


def _strange(usual: uncertainty.Doubt, shuffled: uncertainty.Doubt) -> Strange:
    if usual.percentile is None:
        return Strange("energy", usual.energy, shuffled.energy)
    return Strange("percentile of the held-out pictures", usual.percentile, shuffled.percentile)


def _described(row: int, image: Tensor, found: _Outputs, doubts: uncertainty.Doubt, data: Data) -> Doubtful:
    mean, std = (torch.tensor(values)[:, None, None] for values in (data.mean, data.std))
    pixels = ((image * std + mean).clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    said = int(found.logits[row].argmax())
    branches = () if doubts.branches is None else tuple(data.labels[top] for top in doubts.branches[:, row])
    return Doubtful(
        pixels, data.labels[found.targets[row]], data.labels[said], float(doubts.probabilities[row, said]), branches
    )
