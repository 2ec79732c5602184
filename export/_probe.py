"""The images that exported files are compared on, and those that int8 ranges are measured on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import TypeAlias

import torch
from torch import Tensor

from ccnn_zoo.errors import ConfigurationError

ImageBatches: TypeAlias = Tensor | Iterable[Tensor | tuple[Tensor, Tensor] | list[Tensor]]
"""Preprocessed float images (N, C, H, W); or an iterable of such, of single ones, or of pairs with their classes."""

BATCH = 32
"""Images that are compared at once."""

_Labelled = tuple[Tensor, int | None]


class Probe:
    """The images that the outputs are compared on.

    Args:
        images: of the caller, see :func:`ccnn_zoo.export.to_onnx`; None for seeded noise.
        input_size: (C, H, W) of one image.
        classes: number of classes, which bounds the targets of labelled images.
        count: images in :attr:`batch`.
        substitute: (N, C, H, W) to compare on in the place of noise.
        name: of the argument, for the messages.

    Attributes:
        batch: (count, C, H, W), the first images of the caller (again from the first where they are fewer), or noise.
        given: whether the images are the caller's.
        labelled: whether every image came with its class.

    Raises:
        ConfigurationError: an image or class has another type, shape or range, or there is none.
    """

    def __init__(
        self,
        images: ImageBatches | None,
        input_size: tuple[int, int, int],
        classes: int,
        count: int = BATCH,
        substitute: Tensor | None = None,
        name: str = "images",
    ) -> None:
        self._stream: Iterator[_Labelled] = iter(())
        self._first: list[_Labelled] = []
        self.given, self.labelled = images is not None, False
        if images is None and substitute is not None:
            self.batch = substitute[torch.arange(count) % len(substitute)]
            return
        if images is None:
            self.batch = torch.randn(count, *input_size, generator=torch.Generator().manual_seed(0))
            return
        self._stream = single_images(images, input_size, classes, name)
        self._first = list(islice(self._stream, count))
        if not self._first:
            raise ConfigurationError(f"{name} is empty. Pass preprocessed images, or leave it out.")
        self.labelled = self._first[0][1] is not None
        self.batch = torch.stack([self._first[i % len(self._first)][0] for i in range(count)])

    def batches(self) -> Iterator[tuple[Tensor, Tensor | None]]:
        """Yield all images of the caller once, (N, C, H, W) with classes (N,) or None, at most 32 at a time."""
        stream = chain(self._first, self._stream)
        while items := list(islice(stream, BATCH)):
            targets = [target for _, target in items if target is not None]
            if len(targets) != (len(items) if self.labelled else 0):
                raise ConfigurationError("some images come with their class, some without. Pass all alike.")
            yield torch.stack([image for image, _ in items]), torch.tensor(targets) if self.labelled else None


def single_images(
    images: ImageBatches, input_size: tuple[int, int, int], classes: int, name: str = "images"
) -> Iterator[_Labelled]:
    """Yield (C, H, W) float32 images of the CPU with their classes, checking each.

    Raises:
        ConfigurationError: an item is no image of this size, not finite, or its classes do not fit; names it.
    """
    for number, item in enumerate([images] if isinstance(images, Tensor) else images):
        where = f"{name}[{number}]"
        # torch's DataLoader makes lists of pairs.
        image, targets = item if isinstance(item, tuple | list) and len(item) == 2 else (item, None)
        if not isinstance(image, Tensor) or not image.is_floating_point():
            found = f"{image.dtype} tensor" if isinstance(image, Tensor) else type(image).__name__
            raise ConfigurationError(f"{where} is a {found}. Pass float tensors as the transform makes them.")
        if image.dim() not in (3, 4) or image.shape[-3:] != input_size:
            raise ConfigurationError(f"{where} has shape {tuple(image.shape)}, the exported network reads {input_size}")
        if not image.isfinite().all():
            raise ConfigurationError(f"{where} is not finite everywhere; check its normalisation")
        image = image.detach().to("cpu", torch.float32)
        batch = image.unsqueeze(0) if image.dim() == 3 else image
        yield from zip(batch, _targets(targets, len(batch), classes, where), strict=True)


def _targets(targets: object, count: int, classes: int, where: str) -> list[int] | list[None]:
    if targets is None:
        return [None] * count
    values = torch.as_tensor(targets).reshape(-1)
    if values.is_floating_point() or len(values) != count or not ((values >= 0) & (values < classes)).all():
        raise ConfigurationError(
            f"{where} comes with the classes {values.tolist()[:8]}; pass {count} integers from 0 to {classes - 1}"
        )
    return values.tolist()
