"""Put a trained network into the package, with its card: scripts/ship_checkpoint.py RUN NAME.TAG --note TEXT.

    ccnn train --recipe mnist_cpu --data mnist:data --output runs/mnist
    ccnn train --recipe mnist_cpu --data mnist:data --output runs/mnist_plain --branches 1
    python scripts/ship_checkpoint.py runs/mnist ccnn_resnet18_cifar.mnist --control runs/mnist_plain

The test errors on the card are measured anew from the files; those of the runs must be the same. The control is the
plain network of the same recipe, data and seed, so that the card says what branches changed. What `ccnn ensemble` made
of one network or of several is shipped as

    python scripts/ship_checkpoint.py runs/all ccnn_resnet18_cifar.mnist --members runs/0 runs/1 --control runs/0
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from shlex import quote

from documents import replacing, write

from ccnn_zoo.checkpoint import TrainingRecord, load_checkpoint, load_record
from ccnn_zoo.train import CHECKPOINT, Recipe, load_data, measure

FOLDER = Path(__file__).resolve().parents[1] / "ccnn_zoo" / "checkpoints"
_loaded = cache(load_data)  # the network's and its control's are the same


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of `ccnn train`")
    parser.add_argument("name", help="timm name with its tag, e.g. ccnn_resnet18_cifar.mnist")
    parser.add_argument("--recipe", required=True, help="packaged recipe that the run was started with")
    parser.add_argument("--note", default="", help="what a reader must know of the data")
    parser.add_argument("--control", type=Path, help="folder of the plain network's run, with which the card compares")
    parser.add_argument("--members", type=Path, nargs="+", default=[], help="the runs that `ccnn ensemble` joined")
    args = parser.parse_args()
    checkpoint = FOLDER / f"{args.name}.safetensors"
    try:
        with replacing(checkpoint) as temporary:
            shutil.copyfile(args.run / CHECKPOINT, temporary)
            record = measured_again(temporary)
            control = measured_again(args.control / CHECKPOINT) if args.control else None
            members = [load_record(run / CHECKPOINT) for run in args.members]
            for other in (control, *members):
                if other and (others := differences(record, other)):
                    raise ValueError(f"a control or member differs in more than its branches: {', '.join(others)}")
    except ValueError as error:
        parser.error(str(error))
    write(checkpoint.with_suffix(".md"), [card(args, checkpoint, record, control, members)])


def measured_again(checkpoint: Path) -> TrainingRecord:
    """Return the record of a checkpoint, whose test error is that of its network.

    Raises:
        ValueError: it is not.
    """
    model, record = load_checkpoint(checkpoint)
    recorded = record.metrics["test_error_percent"]
    error = measure(model, _loaded(record.recipe["data"]))["error_percent"]
    if abs(error - recorded) > 1e-6:
        raise ValueError(f"the test error of {checkpoint} is {error} %, its record says {recorded} %")
    return record


def differences(record: TrainingRecord, plain: TrainingRecord) -> list[str]:
    """Return the settings in which a plain network differs from a run, but for branches, what they see, and member."""
    network = {name: value for name, value in record.recipe["model_kwargs"].items() if name != "mirrored"}
    wanted = {**record.recipe, "branches": 1, "epochs": record.epochs, "model_kwargs": network}
    found = {**plain.recipe, "epochs": plain.epochs}
    return [name for name in wanted if wanted[name] != found.get(name) and name not in ("merge", "member")]


def commands(args: argparse.Namespace, record: TrainingRecord, members: Sequence[TrainingRecord]) -> Iterator[str]:
    """Yield the commands that made the checkpoint."""
    runs = dict(zip(args.members, members, strict=True)) or {args.run: record}
    data = re.sub(":.*", ":DATA", record.recipe["data"])  # the place is that of one machine
    for run, trained in runs.items():
        options = "".join(f" {o}" for o in changes(Recipe(**trained.recipe), Recipe.load(args.recipe)))
        yield f"ccnn train --recipe {args.recipe} --data {data} --output runs/{run.name}{options}"
    ship = f"python scripts/ship_checkpoint.py runs/{args.run.name} {args.name} --recipe {args.recipe}"
    if members:
        names = " ".join(f"runs/{run.name}" for run in args.members)
        mirrored = " --mirrored" * bool(record.recipe["model_kwargs"].get("mirrored"))
        yield f"ccnn ensemble {names}{mirrored} --data {data} --output runs/{args.run.name}"
        ship += f" --members {names}"
    if args.control:
        ship += f" --control runs/{args.control.name}"
    yield ship


def card(
    args: argparse.Namespace,
    checkpoint: Path,
    record: TrainingRecord,
    control: TrainingRecord | None,
    members: Sequence[TrainingRecord],
) -> str:
    """Return the card's text."""
    architecture = args.name.partition(".")[0]
    recipe = record.recipe
    versions = ", ".join(f"{name} {version}" for name, version in record.versions.items())
    digest = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    plain = ""
    if control:
        error, loss = (control.metrics[name] for name in ("test_error_percent", "test_loss"))
        plain = f"\n| the same of the plain network of that recipe, its control | {error:.2f} %, {loss:.4f} |"
    if members[1:]:
        errors = ", ".join(f"{member.metrics['test_error_percent']:.2f} %" for member in members)
        plain += f"\n| test errors of its members alone | {errors} |"
    views = recipe["model_kwargs"].get("mirrored", ())
    seen = f", of which {len(views)} see{'s' * (len(views) == 1)} the mirror image" if views else ""
    return f"""\
# {args.name}

| what | value |
|---|---|
| network | `{architecture}`, K={recipe["branches"]}{seen}, merge {recipe["merge"]} |
| data | {record.data} |
| test error | {record.metrics["test_error_percent"]:.2f} % |
| test loss | {record.metrics["test_loss"]:.4f} |{plain}
| epochs, seed | {record.epochs}, {record.seed} |
| versions | {versions} |
| SHA-256 | `{digest}` |

Trained on CPU cores by

```bash
{chr(10).join(commands(args, record, members))}
```
{f"{chr(10)}{args.note}{chr(10)}" if args.note else ""}
The error is that of the last epoch; no epoch or setting was chosen by the test images. Apache-2.0.
"""


def changes(run: Recipe, packaged: Recipe) -> list[str]:
    """Return the command-line options by which a run differs from its packaged recipe, but for the data's place."""
    usual = packaged.decisive()
    changed = {name: value for name, value in run.decisive().items() if value != usual.get(name) and name != "data"}
    named = [f"--{name} {changed.pop(name)}" for name in ("branches", "epochs", "seed") if name in changed]
    return named + [f"--set {quote(f'{name}={json.dumps(value)}')}" for name, value in changed.items()]


if __name__ == "__main__":
    main()
