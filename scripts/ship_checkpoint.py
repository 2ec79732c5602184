"""Put a trained network into the package, with its card: scripts/ship_checkpoint.py RUN NAME.TAG --note TEXT.

    ccnn train --recipe mnist_cpu --data mnist:data --output runs/mnist
    python scripts/ship_checkpoint.py runs/mnist ccnn_resnet18_cifar.mnist

The test error on the card is measured anew from the file that ships; the run's own must be the same.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from pathlib import Path

import torch
from documents import replacing, write

from ccnn_zoo.checkpoint import TrainingRecord, load_checkpoint
from ccnn_zoo.train import CHECKPOINT, Recipe, evaluation_batches, load_data

FOLDER = Path(__file__).resolve().parents[1] / "ccnn_zoo" / "checkpoints"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of `ccnn train`")
    parser.add_argument("name", help="timm name with its tag, e.g. ccnn_resnet18_cifar.mnist")
    parser.add_argument("--recipe", required=True, help="packaged recipe that the run was started with")
    parser.add_argument("--note", default="", help="what a reader must know of the data")
    args = parser.parse_args()
    checkpoint = FOLDER / f"{args.name}.safetensors"
    with replacing(checkpoint) as temporary:
        shutil.copyfile(args.run / CHECKPOINT, temporary)
        _, record = load_checkpoint(temporary)
        error = test_error_percent(temporary, record)
        if abs(error - record.metrics["test_error_percent"]) > 1e-6:
            parser.error(
                f"the file's test error is {error} %, its record says {record.metrics['test_error_percent']} %"
            )
    write(checkpoint.with_suffix(".md"), [card(args, checkpoint, record, error)])


@torch.no_grad()
def test_error_percent(checkpoint: Path, record: TrainingRecord) -> float:
    """Return the error of the network in a checkpoint on its test images."""
    model, _ = load_checkpoint(checkpoint)
    data = load_data(record.recipe["data"])
    wrong = sum((model(images).argmax(1) != targets).sum().item() for images, targets in evaluation_batches(data))
    return 100 * wrong / len(data.test)


def card(args: argparse.Namespace, checkpoint: Path, record: TrainingRecord, error: float) -> str:
    """Return the card's text."""
    architecture = args.name.partition(".")[0]
    recipe = record.recipe
    options = "".join(f" {option}" for option in changes(Recipe(**recipe), Recipe.load(args.recipe)))
    versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    return f"""\
# {args.name}

| what | value |
|---|---|
| network | `{architecture}`, K={recipe["branches"]}, merge {recipe["merge"]} |
| data | {record.data} |
| test error | {error:.2f} % |
| test loss | {record.metrics["test_loss"]:.4f} |
| epochs, seed | {record.epochs}, {record.seed} |
| versions | {versions} |
| SHA-256 | `{digest}` |

Trained on CPU cores by

```bash
ccnn train --recipe {args.recipe} --data {recipe["data"]} --output runs/{args.run.name}{options}
python scripts/ship_checkpoint.py runs/{args.run.name} {args.name} --recipe {args.recipe}
```
{f"{chr(10)}{args.note}{chr(10)}" if args.note else ""}
The error is that of the last epoch; no epoch or setting was chosen by the test images. Apache-2.0.
"""


def changes(run: Recipe, packaged: Recipe) -> list[str]:
    """Return the command-line options by which a run differs from its packaged recipe, but for the data's place."""
    usual = packaged.decisive()
    changed = {name: value for name, value in run.decisive().items() if value != usual.get(name) and name != "data"}
    named = [f"--{name} {changed.pop(name)}" for name in ("branches", "epochs", "seed") if name in changed]
    return named + [f"--set {name}={json.dumps(value)}" for name, value in changed.items()]


if __name__ == "__main__":
    main()
