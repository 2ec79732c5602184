"""The model card: what the network is, how to use it, what was measured of it.

Everything in it comes from the manifest and ``config.json``: no figure that the record of the training does not hold.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from string import Template
from typing import Any

from ._names import CONFIG

_TEXT = Template("""
# $name

`$architecture`, a calibrated convolutional network, trained on $data. In every layer $branches share one weight w;
branch k convolves with the effective kernel R_k * w. In `onnx/model.onnx` R is folded into plain grouped convolutions.

## Use

With [timm](https://github.com/huggingface/pytorch-image-models), to go on training or to take features:

```python
import ccnn_zoo  # registers the network with timm
import timm
import torch
from PIL import Image

model = timm.create_model("$timm_name", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
image = Image.new("$mode", ($width, $height), "gray")  # yours: Image.open("picture.png").convert("$mode")
with torch.inference_mode():
    probabilities = model(transform(image)[None]).softmax(-1)[0]
print(model.pretrained_cfg["label_names"][probabilities.argmax()], f"{probabilities.max():.1%}")
```

With onnxruntime, without torch, on CUDA where there is one, else on the CPU; paths, PIL images or uint8 arrays:

```python
from ccnn_zoo import runtime
from PIL import Image

classifier = runtime.load("$runtime_name")
image = Image.new("$mode", ($width, $height), "gray")  # yours: "picture.png"
for result in classifier.classify([image]):
    print(result.label, f"{result.probability:.1%}")
```

Both need `pip install ccnn-zoo`.$where

## Network

$network

## Measured

$measured

## Training

$training

## Files

`config.json` and `model.safetensors` hold the trained network with R, `onnx/model.onnx` the folded one with labels and
preprocessing, `manifest.json` the SHA-256 of every file, which `ccnn_zoo.hub.download` and `ccnn_zoo.runtime.load`
verify. There is no pickle.

## Source

"Calibrated Stochastic Gradient Descent for Convolutional Neural Networks", AAAI 2019.
""")


def card_of(folder: Path, details: Mapping[str, Any], address: str | None) -> bytes:
    """Return the card of a staged repository.

    Args:
        folder: the repository, with its ``config.json``.
        details: the manifest's, besides its files.
        address: name on the Hub, ``"org/name"`` or ``"org/name@revision"``; None for a repository on disk, whose
            examples run in its own folder.
    """
    from huggingface_hub import ModelCard

    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    name = address.partition("@")[0].partition("/")[2] if address else details["architecture"]
    header = _header(details, config, name).to_yaml()
    # Not card.save, which takes the line ends of the system: the sum must be the same everywhere.
    return ModelCard(f"---\n{header}\n---\n{_body(details, config, name, address)}").content.encode()


def _header(details: Mapping[str, Any], config: Mapping[str, Any], name: str) -> Any:
    from huggingface_hub import EvalResult, ModelCardData

    record = details["record"]
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=re.sub(r"[^a-z0-9]+", "-", record["data"].lower()).strip("-"),
            dataset_name=record["data"],
            metric_type=metric,
            metric_name=metric.replace("_", " "),
            metric_value=value,
        )
        for metric, value in record["metrics"].items()
    ]
    return ModelCardData(
        library_name="timm",
        pipeline_tag="image-classification",
        tags=["image-classification", "timm", "ccnn", "ccnn-zoo", "onnx", "onnxruntime"],
        license=config["pretrained_cfg"].get("license"),
        metrics=list(record["metrics"]) or None,
        model_name=name if results else None,
        eval_results=results or None,
    )


def _body(details: Mapping[str, Any], config: Mapping[str, Any], name: str, address: str | None) -> str:
    channels, height, width = config["pretrained_cfg"]["input_size"]
    branches, record = details["branches"], details["record"]
    # The runtime takes the revision apart from the name; timm takes both as one.
    repo_id, _, revision = (address or "").partition("@")
    return _TEXT.substitute(
        name=name,
        architecture=details["architecture"],
        data=_cell(record["data"]),
        branches=f"{branches} branches" if branches > 1 else "1 branch",
        timm_name=f"hf-hub:{address}" if address else "local-dir:.",
        runtime_name=f'{repo_id}", revision="{revision}' if revision else repo_id or ".",
        where="" if address else " Run them in this folder.",
        mode="L" if channels == 1 else "RGB",
        width=width,
        height=height,
        network=_network_table(details, config),
        measured=_table(("metric", "value"), _measurements(details)),
        training=_table(("option", "value"), _options(record)),
    )


def _network_table(details: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    parameters = details["parameters"]
    labels = config["pretrained_cfg"].get("label_names") or []
    rows = {
        "branches (K)": details["branches"],
        "branches meet by": details["merge"],
        "parameters, shared (trained, with R)": f"{parameters['shared']:,}",
        "parameters, folded (deployed)": f"{parameters['folded']:,}",
        "input (channels, height, width)": " x ".join(map(str, config["pretrained_cfg"]["input_size"])),
        "classes": f"{config['num_classes']}: {', '.join(map(str, labels[:20]))}{', …' if len(labels) > 20 else ''}",
    }
    return _table(("", ""), rows.items())


def _measurements(details: Mapping[str, Any]) -> Iterable[tuple[str, object]]:
    yield from details["record"]["metrics"].items()
    export = details["export"]
    yield "largest difference of a logit, onnxruntime from torch", f"{export['max_difference']:.1e}"
    if export["agreement"] is not None:
        yield f"same class on {export['images']:,} images, onnxruntime and torch", f"{export['agreement']:.2%}"


def _options(record: Mapping[str, Any]) -> Iterable[tuple[str, object]]:
    yield "data", record["data"]
    yield "epochs", record["epochs"]
    yield "seed", record["seed"]
    for name, value in record["recipe"].items():
        if name not in ("data", "epochs", "seed"):
            yield name, value
    for name, value in record["versions"].items():
        yield f"version of {name}", value


def _table(header: tuple[str, str], rows: Iterable[tuple[str, object]]) -> str:
    lines = [header, ("---", "---"), *((_cell(name), _cell(value)) for name, value in rows)]
    return "\n".join(f"| {left} | {right} |" for left, right in lines)


def _cell(value: object) -> str:
    """Return a value so that it breaks neither a table nor a line."""
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return " ".join(text.split()).replace("|", r"\|")
