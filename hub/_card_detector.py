"""The model card of a detector; see :mod:`ccnn_zoo.hub._card`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from string import Template
from typing import Any

from ccnn_zoo.metadata import DETECTION

from ._card import card_text, dataset_of, drawn_pictures, eval_results, one_line, options_of, table
from ._names import NETWORK, TAG, WEIGHTS

_TEXT = Template("""
# $name

Faster R-CNN on `$architecture`, a calibrated convolutional network, trained on $data to find $labels. In every layer of
the backbone $branches share one weight w; branch k convolves with the effective kernel R_k * w. In `onnx/model.onnx` R
is folded into plain grouped convolutions; resizing, proposals and non-maximum suppression are in the graph.

## Use

With `ccnn_zoo.runtime`, without torch, on CUDA where there is one, else on the CPU; paths, PIL images or uint8 arrays;
every file is compared with its checksum:

```python
from ccnn_zoo import runtime
from PIL import Image

detector = runtime.load_detector($runtime_name)
image = Image.new("RGB", (640, 480), "gray")  # yours: "picture.png"
for found in detector.detect([image], score=0.5):
    for each in found.objects:
        print(each.label, f"{each.score:.1%}", each.box)
    picture = runtime.draw(image, found, detector.metadata.labels)  # a PIL image with boxes: picture.save("found.png")
```

On the command line: `ccnn detect picture.png --model $model_name --output found`.

With torchvision, to go on training:

```python
from ccnn_zoo import hub
from ccnn_zoo.detection import load_detector

detector, record = load_detector($folder / "$weights")
print(type(detector).__name__, detector.config["labels"], record.metrics)
```

These need `pip install "ccnn-zoo[detection,runtime]"`.$where

With onnxruntime alone:

```python
import json
import numpy as np
$imports
from PIL import Image

session = ort.InferenceSession($network_file, providers=["CPUExecutionProvider"])
names = json.loads(session.get_modelmeta().custom_metadata_map["labels"])
image = Image.new("RGB", (640, 480), "gray")  # yours: Image.open("picture.png").convert("RGB")
pixels = np.asarray(image, np.float32).transpose(2, 0, 1)[None] / 255
boxes, labels, scores = session.run(["boxes", "labels", "scores"], {"image": pixels})
for box, label, score in zip(boxes, labels, scores):  # (x1, y1, x2, y2) in pixels; labels count from 1
    print(names[label - 1], f"{score:.1%}", box)
```

## Network

$network

$pictures## Measured

$measured

## Training

$training

## Files

`config.json` and `model.safetensors` hold the trained detector with R, `$network_path` the folded one, `manifest.json`
the SHA-256 of every file, which `ccnn_zoo.hub.download` and `ccnn_zoo.runtime.load_detector` verify. There is no
pickle.

## Source

"Calibrated Stochastic Gradient Descent for Convolutional Neural Networks", AAAI 2019; Ren et al., "Faster R-CNN",
NeurIPS 2015.
""")


def detector_card_of(folder: Path, files: Collection[str], details: Mapping[str, Any], address: str | None) -> bytes:
    """Return the card of a staged repository of a detector; arguments as of :func:`ccnn_zoo.hub._card.card_of`."""
    from huggingface_hub import ModelCardData

    record = details["record"]
    name = address.partition("@")[0].partition("/")[2] if address else f"faster_rcnn_{details['architecture']}"
    dataset, results = dataset_of(record), eval_results(record, DETECTION)
    header = ModelCardData(
        library_name="ccnn-zoo",
        pipeline_tag=DETECTION,
        tags=[DETECTION, "faster-rcnn", "ccnn", TAG, "onnx", "onnxruntime"],
        datasets=[dataset] if dataset else None,
        metrics=list(record["metrics"]) or None,
        model_name=name if results else None,
        eval_results=results or None,
    )
    return card_text(header, _body(details, name, address, drawn_pictures(files)))


def _body(details: Mapping[str, Any], name: str, address: str | None, pictures: str) -> str:
    branches, record = details["branches"], details["record"]
    repo_id, _, revision = (address or "").partition("@")
    pinned = f', revision="{revision}"' if revision else ""
    return _TEXT.substitute(
        name=name,
        architecture=details["architecture"],
        data=one_line(record["data"]),
        labels=_listed(details["labels"]),
        branches=f"{branches} branches" if branches > 1 else "1 branch",
        runtime_name=f'"{repo_id}"{pinned}' if address else '"."',
        model_name=(f"{repo_id} --revision {revision}" if revision else repo_id) if address else ".",
        folder=f'hub.download("{repo_id}"{pinned})' if address else 'hub.download("local:.")',
        weights=WEIGHTS,
        where="" if address else " Run them, and what follows, in this folder.",
        imports="import onnxruntime as ort" + ("\nfrom huggingface_hub import hf_hub_download" if address else ""),
        network_file=f'hf_hub_download("{repo_id}", "{NETWORK}"{pinned})' if address else f'"{NETWORK}"',
        network_path=NETWORK,
        pictures=pictures,
        network=table(("", ""), _network(details)),
        measured=table(("metric", "value"), _measurements(details)),
        training=table(("option", "value"), options_of(record)),
    )


def _listed(labels: list[str]) -> str:
    shown = ", ".join(map(one_line, labels[:20]))
    return f"{shown} and {len(labels) - 20} more" if len(labels) > 20 else shown


def _network(details: Mapping[str, Any]) -> Iterable[tuple[str, object]]:
    parameters = details["parameters"]
    yield "backbone", details["architecture"]
    yield "branches (K)", details["branches"]
    yield "branches meet by", details["merge"]
    yield "parameters, shared (trained, with R)", f"{parameters['shared']:,}"
    yield "parameters, folded (deployed)", f"{parameters['folded']:,}"
    yield "labels", f"{len(details['labels'])}: {_listed(details['labels'])}"


def _measurements(details: Mapping[str, Any]) -> Iterable[tuple[str, object]]:
    yield from details["record"]["metrics"].items()
    export = details["export"]
    what = f"{export['detections']:,} objects in {len(export['pictures'])} pictures, onnxruntime from torch"
    yield f"largest difference of a box's side on {what}", f"{export['max_box_difference']:.1e} pixels"
    yield "largest difference of a score on them", f"{export['max_score_difference']:.1e}"
