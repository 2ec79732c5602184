"""The cell of detection: a recipe through ccnn_zoo.detection, then its detections kept and scored."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from documents import replacing
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from ccnn_zoo import fold
from ccnn_zoo.detection import AnnotatedPicture, Detections, coco_evaluate, detect, train_detector, voc_evaluate
from ccnn_zoo.detection._task import Detection
from ccnn_zoo.errors import NonFiniteLossError
from ccnn_zoo.train import Recipe

from ._cells import Record
from ._classification import _environment, _training_seconds

DETECTIONS = "detections.safetensors"


@dataclass(frozen=True)
class DetectorTraining:
    """A training of a detector by a recipe; :class:`experiments._cells.Cell`."""

    recipe: Recipe

    @property
    def name(self) -> str:
        """Network, K, merge and seed."""
        network = self.recipe.model.removeprefix("ccnn_")
        merge = f"-{self.recipe.merge}" if self.recipe.branches > 1 else ""
        held_out = "-validation" if self.recipe.validation else ""
        return f"detector-{network}-k{self.recipe.branches}{merge}{held_out}-seed{self.recipe.seed}"

    def settings(self) -> dict[str, Any]:
        """Return the decisive values; of the data's place its last name only, so that a moved copy stays the same."""
        values = self.recipe.decisive()
        kind, colon, place = values["data"].partition(":")
        return {**values, "data": f"{kind}{colon}{Path(place).name}"}

    def run(self, folder: Path) -> dict[str, Any]:
        """Train and score. A loss that does not stay finite is a result too: ``{"diverged": why}``."""
        task = Detection(self.recipe)
        sizes = {"train": len(task.train), "test": len(task.test)}
        if task.held_out is not None:
            sizes["validation"] = len(task.held_out)
        size = [3, self.recipe.model_kwargs.get("min_size", 600), self.recipe.model_kwargs.get("max_size", 1000)]
        measured = {"data": {"name": task.data_name, "input_size": size, **sizes}, "labels": list(task.labels)}
        try:
            result = train_detector(self.recipe, folder, resume=True, progress=False)
        except NonFiniteLossError as error:
            return {**measured, "diverged": str(error), **_environment(folder)}
        device = "cuda" if torch.cuda.is_available() else "cpu"
        found = detect(result.model, task.test, device)
        _keep(found, folder / DETECTIONS)
        model = result.model.cpu()
        last = result.history[-1]
        return {
            **measured,
            "test": _scores(found, task.test, task.labels),
            **({} if task.held_out is None else {"validation": {"map_percent": last.validation_map_percent}}),
            "train": {"loss": last.train_loss},
            "epochs": last.epoch,
            "iterations": last.step,
            "seconds": _training_seconds(result.history, self.recipe),
            "trained_parameters": sum(p.numel() for p in model.parameters()),
            "deployed_parameters": sum(p.numel() for p in fold(model).parameters()),
            **_environment(folder),
        }


def kept_detections(record: Record) -> list[dict[str, NDArray[Any]]]:
    """Return boxes, labels and scores of each test picture of a finished cell."""
    tensors = load_file(record.folder / DETECTIONS)
    ends = np.cumsum(tensors.pop("count"))[:-1]
    parts = {name: np.split(values, ends) for name, values in tensors.items()}
    return [dict(zip(parts, each, strict=True)) for each in zip(*parts.values(), strict=True)]


def _keep(found: list[Detections], path: Path) -> None:
    tensors = {name: np.concatenate([each[name] for each in found]) for name in found[0]}
    tensors["count"] = np.array([len(each["scores"]) for each in found])
    with replacing(path) as temporary:
        save_file(tensors, temporary)


def _scores(found: list[Detections], pictures: list[AnnotatedPicture], labels: tuple[str, ...]) -> dict[str, Any]:
    voc = voc_evaluate(found, pictures, labels)
    by_class = {name: [None if np.isnan(x) else x for x in asdict(voc)[name]] for name in ("eleven_point", "area")}
    coco = {name: None if np.isnan(value) else value for name, value in coco_evaluate(found, pictures, labels).items()}
    return {"map_percent": voc.map_percent, "area_map_percent": voc.area_map_percent, "coco": coco, **by_class}
