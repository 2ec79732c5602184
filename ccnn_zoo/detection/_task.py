"""Detection, as the trainer sees it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.models.detection import FasterRCNN

from ccnn_zoo._printable import printable
from ccnn_zoo.checkpoint import TrainingRecord
from ccnn_zoo.errors import ConfigurationError
from ccnn_zoo.train import Recipe, TrainingResult, train
from ccnn_zoo.train.tasks import Draw, Outcome, ShuffledOrder, derived_seed, loader_of

from ._annotated import AnnotatedPicture
from ._checkpoint import save_detector
from ._data import DetectionBatch, DetectionView, as_numpy, load_detection_data
from ._detector import create_detector, detector_config
from ._voc_protocol import voc_evaluate

_NOT_FOR_DETECTORS = (
    *("image_size", "crop_padding", "crop_scale", "auto_augment", "color_jitter", "random_erasing"),
    *(
        "mixup",
        "cutmix",
        "label_smoothing",
        "branches_at_once",
        "start_from",
        "skip_unreadable",
        "objective",
        "teacher",
        "member",
    ),
)


def train_detector(
    recipe: Recipe,
    output: str | os.PathLike[str],
    *,
    resume: bool = False,
    progress: bool = True,
    tensorboard: bool = False,
) -> TrainingResult:
    """Train a detector: :func:`ccnn_zoo.train.train` for ``data`` of ``voc:FOLDER`` or ``coco:FOLDER``.

    ``model_kwargs`` of the recipe are arguments of :func:`create_detector`. The history holds the training loss and
    the mean average precision on the test pictures (VOC2007's, eleven points) after every epoch. Everything else,
    resuming too, is as for classifiers.

    Args:
        recipe: what to train.
        output: folder, made if missing.
        resume: go on from the newest whole state in ``output``, to the bit on a CPU.
        progress: show progress on stderr.
        tensorboard: log the history for TensorBoard too.

    Raises:
        ConfigurationError: the recipe asks for what detectors cannot do, the folder has another layout, or
            annotations are bad; lists all of them.
        CCNNError: as of :func:`ccnn_zoo.train.train`.
        TrainingInterrupted: SIGINT or SIGTERM came; the state after the last step is saved.
    """
    return train(recipe, output, resume=resume, progress=progress, tensorboard=tensorboard, task=Detection)


class Detection:
    """Pictures with boxes: a :class:`ccnn_zoo.train.tasks.Task`.

    Args:
        recipe: names data, detector and augmentation.

    Raises:
        ConfigurationError: the recipe sets what detectors do not have.
    """

    classifies = False

    def __init__(self, recipe: Recipe) -> None:
        defaults = Recipe(model=recipe.model, data=recipe.data, epochs=1)
        odd = [name for name in _NOT_FOR_DETECTORS if getattr(recipe, name) != getattr(defaults, name)]
        if odd:
            raise ConfigurationError(
                f"detectors have no {', '.join(odd)}; remove it (the size of images is model_kwargs' min_size)"
            )
        data = load_detection_data(recipe.data, skip_bad_annotations=recipe.skip_bad_annotations)
        if data.skipped:
            warnings.warn("left out:\n  " + "\n  ".join(data.skipped), stacklevel=5)
        if data.notes:
            warnings.warn(f"{printable(data.name)}:\n  " + "\n  ".join(map(printable, data.notes)), stacklevel=5)
        self.recipe, self.labels, self.data_name = recipe, data.labels, data.name
        self.train, self.test, self.held_out = data.train, data.test, None
        if recipe.validation:
            self.train, self.held_out = _split(data.train, recipe.validation, recipe.seed)

    def build_model(self) -> FasterRCNN:
        with torch.random.fork_rng():
            torch.manual_seed(self.recipe.seed)
            try:
                model = create_detector(
                    self.recipe.model,
                    num_classes=len(self.labels),
                    labels=self.labels,
                    branches=self.recipe.branches,
                    merge=self.recipe.merge,
                    **self.recipe.model_kwargs,
                )
            except TypeError as error:
                raise ConfigurationError(f"model_kwargs={self.recipe.model_kwargs!r}: {error}") from error
            detector_config(model)  # what no checkpoint may hold is refused before the training, not at its end
        return model.to(memory_format=torch.channels_last) if self.recipe.channels_last else model

    def training_view(self) -> DetectionView:
        return DetectionView(self.train, flip=self.recipe.flip, seed=self.recipe.seed, training=True)

    def evaluation_view(self, examples: Sequence[AnnotatedPicture]) -> DetectionView:
        return DetectionView(examples)

    def loader(self, view: DetectionView, order: ShuffledOrder | None = None) -> DataLoader[DetectionBatch]:
        return loader_of(view, self.recipe, order)

    def loss(self, model: nn.Module, batch: DetectionBatch) -> Outcome:
        images, targets = batch
        losses: dict[str, Tensor] = model(images, targets)
        return Outcome(torch.stack(list(losses.values())).sum(), None, len(images))

    def evaluate(
        self, model: nn.Module, batches: Iterable[DetectionBatch], accelerator: Accelerator
    ) -> dict[str, float]:
        """Return the mean average precision in percent, VOC2007's."""
        pairs = []
        for images, targets in batches:
            with accelerator.autocast():
                # One by one: padding to the largest of a batch would add proposals.
                found = [model([image])[0] for image in images]
            each = [(as_numpy(one), as_numpy(other)) for one, other in zip(found, targets, strict=True)]
            if accelerator.num_processes > 1:
                each = accelerator.gather_for_metrics(each, use_gather_object=True)
            pairs += each
        truths = [AnnotatedPicture(Path(), 0, 0, **target) for _, target in pairs]
        return {"map_percent": voc_evaluate([found for found, _ in pairs], truths, self.labels).map_percent}

    def save(self, path: Path, model: FasterRCNN, record: TrainingRecord) -> None:
        save_detector(path, model, record)

    def draw(self, model: FasterRCNN, device: torch.device, folder: Path) -> None:
        """Nothing: `ccnn detect` draws boxes."""


def _split(
    pictures: Sequence[AnnotatedPicture], share: float, seed: int
) -> tuple[list[AnnotatedPicture], list[AnnotatedPicture]]:
    """Return the pictures that stay and those that are held out, drawn by ``seed``."""
    count = round(share * len(pictures))
    if not 0 < count < len(pictures):
        raise ConfigurationError(
            f"validation={share} of {len(pictures)} pictures holds out {count}; give another share"
        )
    generator = torch.Generator().manual_seed(derived_seed(seed, Draw.HELD_OUT))
    held = set(torch.randperm(len(pictures), generator=generator)[:count].tolist())
    parts: tuple[list[AnnotatedPicture], list[AnnotatedPicture]] = ([], [])
    for number, picture in enumerate(pictures):
        parts[number in held].append(picture)
    return parts
