"""Labelled images for training, by name."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from ccnn_zoo._tasks import TASKS
from ccnn_zoo.errors import ConfigurationError
from ccnn_zoo.pictures import LeftOut

from . import _sources
from ._hfds import ReaderImages, hfds
from ._images import Images
from ._wds import ShardImages, wds


@dataclass(frozen=True)
class Data:
    """Training and test images of one classification task, and how a network sees them.

    Args:
        name: as a reader would cite it, e.g. ``"scikit-learn digits"``.
        train: training images; each item is (PIL image, class).
        test: test images, the same.
        labels: one name per class.
        input_size: (C, H, W) of one image; C is 1 (grey) or 3 (RGB).
        mean: per channel, on pixel values in [0, 1].
        std: per channel, on pixel values in [0, 1].
        crop_pct: share of the resized image that the central crop keeps, in (0, 1].
        interpolation: filter by which images of another size are resized.
        left_out: what the search for pictures passed by.
    """

    name: str
    train: Images | ReaderImages | ShardImages
    test: Images | ReaderImages | ShardImages
    labels: tuple[str, ...]
    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop_pct: float = 1.0
    interpolation: str = "bilinear"
    left_out: LeftOut = field(default_factory=LeftOut)

    def preprocessing(self) -> dict[str, Any]:
        """Return the preprocessing in the names of timm's ``pretrained_cfg``."""
        return {
            "input_size": self.input_size,
            "mean": self.mean,
            "std": self.std,
            "crop_pct": self.crop_pct,
            "crop_mode": "center",
            "interpolation": self.interpolation,
        }

    def hold_out(self, share: float, seed: int) -> tuple[Data, Images | ReaderImages | ShardImages]:
        """Split off a share of the training images, of every class alike.

        Args:
            share: in (0, 1).
            seed: of the draw.

        Returns:
            the data with the remaining training images, and the held-out ones.

        Raises:
            ConfigurationError: a class has too few images for the split.
        """
        from sklearn.model_selection import train_test_split  # 1 s to import, rarely needed

        targets = self.train.targets.numpy()
        try:
            kept, held = train_test_split(np.arange(len(targets)), test_size=share, random_state=seed, stratify=targets)
        except ValueError as error:
            raise ConfigurationError(
                f"validation={share} cannot be split off the {len(targets)} training images of {self.name} ({error}); "
                "give a larger share, or 0"
            ) from error
        return replace(self, train=self.train.subset(np.sort(kept))), self.train.subset(np.sort(held))


DIGITS = "digits"
"""The data that come with scikit-learn."""


def load_data(name: str, image_size: int | None = None) -> Data:
    """Load images by name.

    ========================  =====================================================================================
    ``digits``                scikit-learn's 1,797 digits of 8x8 pixels, embedded; 80 % train, 20 % test
    ``mnist:FOLDER``          torchvision's layout, ``FOLDER/MNIST/raw/*-ubyte``, gzipped or not
    ``cifar10:FOLDER``        ``train/CLASS/*.jpg`` and ``test/CLASS/*.jpg`` of one size, or an archive of them
    ``folder:FOLDER``         ``train/CLASS/*`` and ``test/CLASS/*`` (or ``val``) of any sizes
    ``hfds/NAME``             a data set of the Hugging Face Hub, or a folder of one; needs the package datasets
    ``wds/FOLDER``            WebDataset shards (uncompressed tar files) with timm's ``_info.json``
    ========================  =====================================================================================

    Args:
        name: one of these.
        image_size: side in pixels to which the network sees images; None is the data's own, 224 for ``folder``,
            ``hfds`` and ``wds``.

    Raises:
        ConfigurationError: the name is unknown, or the folder is missing, empty or of another layout; says what
            was expected.
        ImageError: an image cannot be read.
    """
    kind, _, place = name.partition(":")
    if name == DIGITS:
        data = Data(**_sources.digits())
    elif name.startswith("hfds/") and name != "hfds/":
        data = Data(**hfds(name))
    elif name.startswith("wds/") and name != "wds/":
        data = Data(**wds(name))
    elif kind in _FROM_A_FOLDER and place:
        data = Data(**_FROM_A_FOLDER[kind](place))
    else:
        known = ", ".join(["digits", *(f"{kind}:FOLDER" for kind in _FROM_A_FOLDER), "hfds/NAME", "wds/FOLDER"])
        others = [f"; {t.trainer} takes " + " and ".join(f"{kind}:FOLDER" for kind in t.data) for t in TASKS if t.data]
        raise ConfigurationError(f"data must be one of {known}, got {name!r}{''.join(others)}")
    _tell(data)
    if image_size is None:
        return data
    return replace(data, input_size=(data.input_size[0], image_size, image_size))


def data_to_open(given: str | None, recorded: object, source: object) -> str | None:
    """Return the name of the data to load for a network that was read from a file.

    Whoever wrote a checkpoint wrote into it what it was trained on. Loaded unasked, that name would choose which data
    set is downloaded here, or which folder is read. So only what needs neither is: digits. A training folder is no
    exception, since it can be handed on with all that is in it.

    Args:
        given: what the user named, which decides.
        recorded: ``data`` in the recipe that the file holds; None where it holds none.
        source: name of the file, for the message.

    Raises:
        ConfigurationError: nothing is given, and the file names other data; names them and the remedy.
    """
    if given is not None or recorded is None:
        return given
    if recorded == DIGITS:
        return DIGITS
    raise ConfigurationError(
        f"{source} was trained on {recorded!r:.200}, as it says itself, and what a file says is not opened unasked. If "
        f"you want it to be, name it: --data {recorded!r:.200} (data= in Python)"
    )


def _tell(data: Data) -> None:
    """Say what was left out, in one of the processes."""
    told = [str(data.left_out), *data.left_out.problems]
    if any(told) and not (torch.distributed.is_initialized() and torch.distributed.get_rank()):
        warnings.warn(f"{data.name}: left out {'; '.join(filter(None, told))}", stacklevel=3)


_FROM_A_FOLDER: dict[str, Callable[[str], dict[str, Any]]] = {
    "mnist": _sources.mnist,
    "cifar10": _sources.cifar10,
    "folder": _sources.folder,
}
