"""The model card: what the network is, how to use it, what was measured of it.

Everything in it comes from the manifest and ``config.json``: no figure that the record of the training does not hold.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from ccnn_zoo.metadata import in_order

from ._card_doubt import uncertainty_section
from ._card_kind import kind_of
from ._names import CONFIG, CURVES, DOUBT, HEAT_MAP, NETWORK, TAG

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

_TEXT = Template("""
# $name

`$architecture`, a $kind

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

With `ccnn_zoo.runtime`, without torch, on CUDA where there is one, else on the CPU; paths, PIL images or uint8 arrays;
every file is compared with its checksum:

```python
from ccnn_zoo import runtime
from PIL import Image

classifier = runtime.load($runtime_name)
image = Image.new("$mode", ($width, $height), "gray")  # yours: "picture.png"
for result in classifier.classify([image]):
    print(result.label, f"{result.probability:.1%}")
```

Both need `pip install "ccnn-zoo[runtime]"`.$where

With onnxruntime alone:

```python
import json
import numpy as np
$imports
from PIL import Image, ImageOps

session = ort.InferenceSession($network_file, providers=["CPUExecutionProvider"])
about = session.get_modelmeta().custom_metadata_map
_, height, width = json.loads(about["input_size"])
image = Image.new("$mode", ($width, $height), "gray")  # yours: Image.open("picture.png").convert("$mode")
border = (1 - json.loads(about["crop_pct"])) / 2
image = ImageOps.fit(image, (width, height), Image.Resampling[about["interpolation"].upper()], border)
pixels = np.asarray(image, np.float32).reshape(height, width, -1).transpose(2, 0, 1) / 255
mean, std = (np.float32(json.loads(about[name])).reshape(-1, 1, 1) for name in ("mean", "std"))
(logits,) = session.run(["logits"], {"image": ((pixels - mean) / std)[None]})[0]
probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
print(json.loads(about["labels"])[probabilities.argmax()], f"{probabilities.max():.1%}")
```
$in_javascript
## Network

$network

$pictures## Measured

$measured

$uncertainty## Training

$training

## Files

`config.json` and `model.safetensors` hold the trained network, $networks the deployed one with labels and
preprocessing, `manifest.json` the SHA-256 of every file, which `ccnn_zoo.hub.download` and `ccnn_zoo.runtime.load`
verify. There is no pickle.

## Source

"Calibrated Stochastic Gradient Descent for Convolutional Neural Networks", AAAI 2019.
""")

_JAVASCRIPT = Template("""
In JavaScript, in the browser or on node, with [transformers.js](https://github.com/huggingface/transformers.js):

```js
import { AutoModel, RawImage, Tensor, softmax } from "@huggingface/transformers";

const model = await AutoModel.from_pretrained("$repo_id", { dtype: "fp32"$revision });
const { input_size: [channels, height, width], mean, std, label_names } = model.config.pretrained_cfg;
let image = new RawImage(new Uint8ClampedArray(3 * width * height).fill(128), width, height, 3);
// yours: let image = await RawImage.read("picture.png");
image = await (channels === 1 ? image.grayscale() : image.rgb()).resize(width, height);
const pixels = Float32Array.from({ length: channels * height * width }, (_, i) => {
  const channel = Math.floor(i / (height * width));
  return (image.data[(i % (height * width)) * channels + channel] / 255 - mean[channel]) / std[channel];
});
const { logits } = await model({ image: new Tensor("float32", pixels, [1, channels, height, width]) });
const probabilities = softmax(logits.data);
const best = probabilities.indexOf(Math.max(...probabilities));
console.log(`$${label_names[best]} $${(100 * probabilities[best]).toFixed(1)}%`);
```

It says that it does not know the model class: it does not need to.
""")


def card_of(folder: Path, files: Collection[str], details: Mapping[str, Any], address: str | None) -> bytes:
    """Return the card of a staged repository.

    Args:
        folder: the repository, with its ``config.json``.
        files: paths of its files, of which the card shows the pictures.
        details: the manifest's, besides its files.
        address: name on the Hub, ``"org/name"`` or ``"org/name@revision"``; None for a repository on disk, whose
            examples run in its own folder.
    """
    config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    name = address.partition("@")[0].partition("/")[2] if address else details["architecture"]
    return card_text(_header(details, config, name), _body(details, config, name, address, drawn_pictures(files)))


def card_text(header: ModelCardData, body: str) -> bytes:
    """Return a card; not by ``card.save``, which takes the line ends of the system: sums are the same everywhere."""
    from huggingface_hub import ModelCard

    return ModelCard(f"---\n{header.to_yaml()}\n---\n{body}").content.encode()


def dataset_of(record: Mapping[str, Any]) -> str:
    """Return the name of the data as the Hub writes such names."""
    return re.sub(r"[^a-z0-9]+", "-", record["data"].lower()).strip("-")


def eval_results(record: Mapping[str, Any], task: str) -> list[EvalResult]:
    """Return the metrics of a record for a card's header."""
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type=task,
            dataset_type=dataset_of(record),
            dataset_name=record["data"],
            metric_type=metric,
            metric_name=metric.replace("_", " "),
            metric_value=value,
        )
        for metric, value in record["metrics"].items()
    ]


def _header(details: Mapping[str, Any], config: Mapping[str, Any], name: str) -> ModelCardData:
    from huggingface_hub import ModelCardData

    record = details["record"]
    dataset, results = dataset_of(record), eval_results(record, "image-classification")
    return ModelCardData(
        library_name="timm",
        pipeline_tag="image-classification",
        tags=["image-classification", "timm", "ccnn", TAG, "onnx", "onnxruntime"],
        license=config["pretrained_cfg"].get("license"),
        datasets=[dataset] if dataset else None,
        metrics=list(record["metrics"]) or None,
        model_name=name if results else None,
        eval_results=results or None,
    )


def drawn_pictures(files: Collection[str]) -> str:
    """Return the lines that show the pictures of a repository."""
    captions = {
        CURVES: "Training and test error over epochs",
        HEAT_MAP: "R of each branch (row) in some layers (columns)",
        DOUBT["confidence"]: "Reliability, risk over coverage, and scores of pictures with shuffled pixels, test part",
        DOUBT["doubtful"]: "The test pictures that are most in doubt, with what the network and each branch says",
    }
    shown = [f"![{caption}]({path})\n\n" for path, caption in captions.items() if path in files]
    return "".join(shown)


def _body(details: Mapping[str, Any], config: Mapping[str, Any], name: str, address: str | None, pictures: str) -> str:
    channels, height, width = config["pretrained_cfg"]["input_size"]
    record = details["record"]
    # The runtime takes the revision apart from the name; timm takes both as one.
    repo_id, _, revision = (address or "").partition("@")
    pinned = f', revision="{revision}"' if revision else ""
    chosen = f', revision: "{revision}"' if revision else ""
    example = {
        "runtime_name": f'"{repo_id}"{pinned}' if address else '"."',
        "mode": "L" if channels == 1 else "RGB",
        "width": width,
        "height": height,
    }
    return _TEXT.substitute(
        example,
        name=name,
        architecture=details["architecture"],
        kind=kind_of(details, one_line(record["data"]), (config.get("model_args") or {}).get("mirrored")),
        timm_name=f"hf-hub:{address}" if address else "local-dir:.",
        where="" if address else " Run them, and what follows, in this folder.",
        imports="import onnxruntime as ort" + ("\nfrom huggingface_hub import hf_hub_download" if address else ""),
        network_file=f'hf_hub_download("{repo_id}", "{NETWORK}"{pinned})' if address else f'"{NETWORK}"',
        in_javascript=_JAVASCRIPT.substitute(repo_id=repo_id, revision=chosen) if address else "",
        pictures=pictures,
        networks=", ".join(f"`{path}` ({name})" for name, path in details["networks"].items()),
        network=_network_table(details, config),
        measured=table(("metric", "value"), _measurements(details)),
        uncertainty=uncertainty_section(details, example),
        training=table(("option", "value"), options_of(record)),
    )


def _network_table(details: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    parameters = details["parameters"]
    labels = in_order(config["pretrained_cfg"].get("label_names") or [])
    rows = {
        "branches (K)": details["branches"],
        "branches meet by": details["merge"],
        "parameters, trained": f"{parameters['shared']:,}",
        "parameters, deployed": f"{parameters['folded']:,}",
        "input (channels, height, width)": " x ".join(map(str, config["pretrained_cfg"]["input_size"])),
        "classes": f"{config['num_classes']}: {', '.join(map(str, labels[:20]))}{', …' if len(labels) > 20 else ''}",
    }
    return table(("", ""), rows.items())


def _measurements(details: Mapping[str, Any]) -> Iterable[tuple[str, object]]:
    yield from details["record"]["metrics"].items()
    for precision, export in {"fp32": details["export"], **details.get("further_exports", {})}.items():
        file = "" if precision == "fp32" else f" {precision}"
        yield f"largest difference of a logit, onnxruntime{file} from torch", f"{export['max_difference']:.1e}"
        if export["agreement"] is not None:
            yield (
                f"same class on {export['images']:,} images, onnxruntime{file} and torch",
                f"{export['agreement']:.2%}",
            )
        if export.get("accuracy") is not None:
            yield f"accuracy of onnxruntime{file} on them, and points lost to torch", _accuracy(export)


def _accuracy(export: Mapping[str, Any]) -> str:
    return f"{export['accuracy']:.2f} %, {export['accuracy_loss']:.2f}"


def options_of(record: Mapping[str, Any]) -> Iterable[tuple[str, object]]:
    """Yield what a training was told, and its versions, for a table."""
    yield "data", record["data"]
    yield "epochs", record["epochs"]
    yield "seed", record["seed"]
    for name, value in record["recipe"].items():
        if name not in ("data", "epochs", "seed"):
            yield name, value
    for name, value in record["versions"].items():
        yield f"version of {name}", value


def table(header: tuple[str, str], rows: Iterable[tuple[str, object]]) -> str:
    """Return a table of two columns in Markdown."""
    lines = [header, ("---", "---"), *((one_line(name), one_line(value)) for name, value in rows)]
    return "\n".join(f"| {left} | {right} |" for left, right in lines)


def one_line(value: object) -> str:
    """Return a value so that it breaks neither a table nor a line."""
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return " ".join(text.split()).replace("|", r"\|")
