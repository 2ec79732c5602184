"""From labelled images to batches of float tensors.

Order and augmentation are functions of (seed, epoch, index) alone: not of the batch, the process or the worker in
which an image lands, nor of what was drawn before. So several processes see together what one would see alone,
and a run can go on at any step.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ._augment import evaluation_transform, needs_pictures, training_transform
from ._data import Data
from ._images import ArrayImages, Images
from ._recipe import Recipe

Batch: TypeAlias = tuple[Tensor, Tensor]
"""Images float32 (N, C, H, W), normalised, and classes int64 (N,)."""


class Draw(IntEnum):
    """What a seed is derived for: two kinds of draws never share their numbers."""

    ORDER = 0
    AUGMENTATION = 1
    OTHER = 2
    HELD_OUT = 3


def derived_seed(*entropy: int) -> int:
    """Return a 32-bit seed that differs for every tuple of non-negative integers."""
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def step_seed(seed: int, step: int, process: int) -> int:
    """Return the seed of whatever else a step draws in a process, dropout for one."""
    return derived_seed(seed, Draw.OTHER, step, process)


def order_of(count: int, seed: int, epoch: int) -> Tensor:
    """Return the order in which an epoch, from 0, sees ``count`` images: int64 (count,)."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(derived_seed(seed, Draw.ORDER, epoch)))


def crops_of(count: int, recipe: Recipe, epoch: int) -> tuple[Tensor, Tensor]:
    """Return what an epoch, from 0, cuts out of each of ``count`` padded images.

    Returns:
        upper left corners, int64 (count, 2), and which are flipped, bool (count,).
    """
    generator = torch.Generator().manual_seed(derived_seed(recipe.seed, Draw.AUGMENTATION, epoch))
    corners = torch.randint(2 * recipe.crop_padding + 1, (count, 2), generator=generator)
    return corners, torch.rand(count, generator=generator) < recipe.flip


class Pixels:
    """Images of one size in a device's memory, from which a batch is one gather.

    Args:
        pixels: uint8 (N, H, W, C).
        data: mean and std.
        padding: black pixels put around each.
        device: where they lie.
    """

    def __init__(self, pixels: Tensor, data: Data, padding: int = 0, device: torch.device | str = "cpu") -> None:
        self._mean, self._std = (torch.tensor(values, device=device) for values in (data.mean, data.std))
        self._rows, self._columns = (torch.arange(side, device=device) for side in pixels.shape[1:3])
        self._padded = F.pad(pixels, (0, 0, padding, padding, padding, padding)).to(device)

    def batch(self, chosen: Tensor, corners: Tensor, flipped: Tensor) -> Tensor:
        """Cut images out of the padded ones.

        Args:
            chosen: which, int64 (n,), on the device as all the others.
            corners: upper left ones, int64 (n, 2).
            flipped: bool (n,).

        Returns:
            float32 (n, C, H, W), normalised.
        """
        top, left = corners[:, :, None].unbind(1)
        rows, columns = top + self._rows, self._columns.expand(len(chosen), -1)
        columns = left + torch.where(flipped[:, None], columns.flip(1), columns)
        pixels = self._padded[chosen[:, None, None], rows[:, :, None], columns[:, None, :]]
        values = pixels.float().div_(255).sub_(self._mean).div_(self._std)
        return values.permute(0, 3, 1, 2).contiguous()


class TensorView(Dataset[Batch]):
    """Batches of images that have the network's size already; crop and flip of a batch are one gather.

    Args:
        images: of size ``data.input_size``.
        data: mean and std.
        recipe: augmentation and seed; None for evaluation, whose tensors are those of timm's transform.
    """

    def __init__(self, images: ArrayImages, data: Data, recipe: Recipe | None) -> None:
        self._targets, self._recipe = images.targets, recipe
        self._pixels = Pixels(images.pixels, data, recipe.crop_padding if recipe else 0)
        self.start_epoch(0)

    def start_epoch(self, epoch: int) -> None:
        """Draw the crops and flips of all images for ``epoch``."""
        count = len(self)
        if self._recipe is None:
            self._corners, self._flipped = torch.zeros(count, 2, dtype=torch.long), torch.zeros(count, dtype=torch.bool)
        else:
            self._corners, self._flipped = crops_of(count, self._recipe, epoch)

    def __len__(self) -> int:
        return len(self._targets)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        chosen = torch.as_tensor(indices)
        return self._pixels.batch(chosen, self._corners[chosen], self._flipped[chosen]), self._targets[chosen]


class PictureView(Dataset[Batch]):
    """Batches of images of any size, each decoded and transformed by timm's or torchvision's transforms.

    Args: as of :class:`TensorView`.
    """

    def __init__(self, images: Images, data: Data, recipe: Recipe | None) -> None:
        self._images = images
        self._seed = recipe.seed if recipe else None
        self._transform = training_transform(data, recipe) if recipe else evaluation_transform(data)
        self.start_epoch(0)

    def start_epoch(self, epoch: int) -> None:
        """Draw other crops and flips from now on."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._images)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        tensors, targets = zip(*(self._item(index) for index in indices), strict=True)
        return torch.stack(tensors), torch.tensor(targets)

    def _item(self, index: int) -> tuple[Tensor, int]:
        picture, target = self._images[index]
        if self._seed is None:
            return self._transform(picture), target
        with _seeded(derived_seed(self._seed, Draw.AUGMENTATION, self._epoch, index)):
            return self._transform(picture), target


View: TypeAlias = TensorView | PictureView


class ShuffledOrder(Sampler[int]):
    """The indices of a view, in an order drawn anew for every epoch, as far as they fill whole batches.

    Args:
        view: its images.
        seed: of the order.
        batch_size: images of one step.
    """

    def __init__(self, view: View, seed: int, batch_size: int = 1) -> None:
        self._view, self._seed, self._epoch, self._done = view, seed, 0, 0
        self._used = len(view) // batch_size * batch_size

    # Not called set_epoch: accelerate calls that by its own count, which starts at 0 whenever a run goes on.
    def start_epoch(self, epoch: int, done: int = 0) -> None:
        """Set the epoch, from 0, of the order and of the view's augmentation; leave out its first ``done`` images."""
        self._epoch, self._done = epoch, done
        self._view.start_epoch(epoch)

    def __len__(self) -> int:
        return self._used - self._done

    def __iter__(self) -> Iterator[int]:
        return iter(order_of(len(self._view), self._seed, self._epoch)[self._done : self._used].tolist())


def view_of(images: Images, data: Data, recipe: Recipe | None = None) -> View:
    """Return the view that gives batches of ``images``: for training by ``recipe``, or for evaluation."""
    ready = isinstance(images, ArrayImages) and images.pixels.shape[1:3] == data.input_size[1:] and data.crop_pct == 1
    if ready and (recipe is None or not needs_pictures(recipe)):
        return TensorView(images, data, recipe)
    return PictureView(images, data, recipe)


def loader_of(view: Dataset, recipe: Recipe, order: ShuffledOrder | None = None) -> DataLoader:
    """Return batches of a view: in ``order``, each a pass of training, or all as they come, for evaluation."""
    return DataLoader(
        view,
        recipe.batch_size // recipe.accumulate,
        sampler=order,
        collate_fn=_as_is,
        num_workers=0 if isinstance(view, TensorView) else recipe.workers,
        pin_memory=torch.cuda.is_available(),
    )


def evaluation_batches(data: Data, batch_size: int = 128) -> Iterator[Batch]:
    """Yield all test images once, preprocessed as timm does for evaluation, with their classes."""
    return iter(DataLoader(view_of(data.test, data), batch_size, collate_fn=_as_is))


def _as_is(batch: Batch) -> Batch:
    return batch


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed the generators that transforms draw from, and put them back."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach for CUDA's too
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
