"""timm's transforms and mixing of images, as a recipe asks for them."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from timm.data import Mixup, create_transform
from torch import Tensor
from torchvision import transforms

from ._data import Data
from ._recipe import Recipe


def needs_pictures(recipe: Recipe) -> bool:
    """Return whether the augmentation is more than crops of a padded image and flips."""
    return bool(recipe.crop_scale or recipe.auto_augment or recipe.color_jitter or recipe.random_erasing)


def evaluation_transform(data: Data) -> Any:
    """Return timm's transform of one picture for evaluation."""
    return create_transform(**data.preprocessing(), is_training=False)


def training_transform(data: Data, recipe: Recipe) -> Any:
    """Return the transform of one picture for training: crop and flip, timm's augmentations, and to a tensor."""
    options = {name: value for name, value in data.preprocessing().items() if name not in ("crop_pct", "crop_mode")}
    crop, augment, to_tensor = create_transform(
        **options,
        is_training=True,
        scale=recipe.crop_scale,
        hflip=recipe.flip,
        auto_augment=recipe.auto_augment,
        color_jitter=recipe.color_jitter or None,
        re_prob=recipe.random_erasing,
        re_mode="pixel",
        separate=True,
    )
    if recipe.crop_scale is None:
        # Without the last two, ToTensor and Normalize: the padding is black, as in the original CIFAR recipe.
        resize = evaluation_transform(data).transforms[:-2]
        padded = transforms.RandomCrop(data.input_size[1:], recipe.crop_padding)
        crop = transforms.Compose([*resize, padded, transforms.RandomHorizontalFlip(recipe.flip)])
    return transforms.Compose([crop, augment, to_tensor])


class Objective:
    """The training loss: cross-entropy of images that may be mixed, with labels that may be smoothed.

    Args:
        recipe: mixup, cutmix and label_smoothing.
        classes: number of them.
    """

    def __init__(self, recipe: Recipe, classes: int) -> None:
        self._smoothing = recipe.label_smoothing
        self._mix = None
        if recipe.mixup or recipe.cutmix:
            self._mix = Mixup(recipe.mixup, recipe.cutmix, label_smoothing=self._smoothing, num_classes=classes)

    def mixed(self, images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return images and what they are to be classified as: classes (N,), or shares of them (N, classes)."""
        return self._mix(images, targets) if self._mix else (images, targets)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the mean loss of a batch, over all members if there are logits of several, member-major."""
        members = len(logits) // len(targets)
        if members > 1:
            targets = targets.repeat(members, *[1] * (targets.dim() - 1))
        # Mixup has smoothed its targets already.
        return F.cross_entropy(logits, targets, label_smoothing=0.0 if self._mix else self._smoothing)
