"""``ccnn detect-demo``: train a detector on real pictures, deploy it, and draw what it finds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def detect_demo(
    data: Annotated[str, typer.Option(help="voc:FOLDER or coco:FOLDER, e.g. voc:data/bccd.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for training, repository and pictures.")] = (
        Path("ccnn-detect-demo")
    ),
    recipe: Annotated[str, typer.Option(help="A packaged recipe or a YAML file.")] = "bccd_detection",
    epochs: Annotated[int | None, typer.Option(help="Passes over the training pictures.")] = None,
    pictures: Annotated[int, typer.Option(min=1, help="Test pictures to draw.")] = 8,
    score: Annotated[float, typer.Option(help="Leave out objects that the network is less sure of.")] = 0.5,
    device: Annotated[str, typer.Option(help="Where the ONNX network runs; as of `ccnn detect`.")] = "auto",
) -> None:
    """Train, fold, export, publish to a folder, download, and draw boxes on test pictures; a few minutes on two cores.

    What is trained already is not trained again: a second run goes on from the first one's last state.

    Example:  ccnn detect-demo --data voc:data/bccd
    """
    from ccnn_zoo import hub
    from ccnn_zoo.detection import load_detection_data, train_detector
    from ccnn_zoo.errors import ConfigurationError
    from ccnn_zoo.train import Recipe, keep_freed_memory

    from . import _sources
    from ._detect import detect
    from ._output import say

    loaded = load_detection_data(data, skip_bad_annotations=True)  # names what is wrong before anything is trained
    if not loaded.test:
        raise ConfigurationError(f"{data} has no test pictures to draw on")
    changes = {"data": data, "skip_bad_annotations": True}
    if epochs is not None:
        changes |= {"epochs": epochs, "iterations": None}
    resolved = Recipe.from_mapping({**Recipe.load(recipe).to_dict(), **changes}, source=f"recipe {recipe} as changed")
    keep_freed_memory()
    result = train_detector(resolved, output / "run", resume=True)
    say(f"trained on {data}: test mAP {result.record.metrics['test_map_percent']:.2f} %")

    repository = f"local:{output / 'hub'}"
    beside = _sources.beside_checkpoint(result.checkpoint, data=data)
    details = hub.publish(result.checkpoint, repository, **beside).manifest.details
    compared = details["export"]
    objects, shown = compared["detections"], len(compared["pictures"])
    say(f"folded, exported and published to {repository}")
    say(
        f"onnxruntime and torch find the same {objects} objects on {shown} pictures, boxes within "
        f"{compared['max_box_difference']:.2g} pixels"
    )
    drawn = output / "found"
    step = max(1, len(loaded.test) // pictures)
    chosen = [picture.path for picture in loaded.test[::step][:pictures]]
    detect(chosen, repository, device=device, score=score, output=drawn, workers=1)
    say(f"pictures with boxes and detections.jsonl are in {drawn}")
