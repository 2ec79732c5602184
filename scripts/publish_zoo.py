"""Publish all checkpoints of a folder to an organisation on the Hugging Face Hub, or below a local folder.

    python scripts/publish_zoo.py ORG runs
    python scripts/publish_zoo.py local:hub runs --dry-run --recorded-data

Every training folder (one with a last.safetensors) becomes the repository ORG/NAME, NAME its own name. One that fails
does not stop the others, and the exit status is 1. Run it again to go on: what is there already is neither sent nor
committed again. --recorded-data opens the data that each checkpoint names, to verify on: for runs of your own only,
since whoever wrote a checkpoint chose the name.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ccnn_zoo.checkpoint import load_record
from ccnn_zoo.cli import app
from ccnn_zoo.errors import CCNNError, RepositoryError
from ccnn_zoo.train import CHECKPOINT


def main() -> int:
    """Publish each checkpoint as ``ccnn publish`` does, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", help="user or organisation on the Hub, or local:FOLDER")
    parser.add_argument("runs", type=Path, nargs="+", help="training folders, or folders of them")
    parser.add_argument("--tag", help="name for every commit, e.g. v1.0")
    parser.add_argument("--private", action="store_true", help="make new repositories private")
    for name in ("fp16", "int8"):
        parser.add_argument(f"--{name}", action="store_true", help=f"export {name} too")
    parser.add_argument("--recorded-data", action="store_true", help="open the data that the checkpoints name")
    parser.add_argument("--dry-run", action="store_true", help="show what would go, and write nothing")
    options = parser.parse_args()
    failed = 0
    try:
        checkpoints = find_checkpoints(options.runs)
    except RepositoryError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name, checkpoint in checkpoints.items():
        repo_id = f"{options.target}/{name}"
        print(f"{repo_id}:", flush=True)
        try:
            app(["publish", str(checkpoint.parent), repo_id, *arguments(checkpoint, options)], standalone_mode=False)
        except CCNNError as error:
            failed += 1
            print(f"{repo_id}: failed: {error}", file=sys.stderr)
    print(f"{len(checkpoints) - failed} of {len(checkpoints)} checkpoints")
    return 1 if failed else 0


def find_checkpoints(runs: list[Path]) -> dict[str, Path]:
    """Return name to checkpoint of all training folders, in the order of their names.

    Raises:
        RepositoryError: there are none, or two of the same name.
    """
    found: dict[str, Path] = {}
    for run in runs:
        for checkpoint in sorted(run.rglob(CHECKPOINT)):
            name = checkpoint.resolve().parent.name
            if name in found and found[name].resolve() != checkpoint.resolve():
                raise RepositoryError(f"{found[name]} and {checkpoint} would both be {name}. Rename a folder.")
            found[name] = checkpoint
    if not found:
        raise RepositoryError(f"there is no {CHECKPOINT} below {', '.join(map(str, runs))}. Train something first.")
    return dict(sorted(found.items()))


def arguments(checkpoint: Path, options: argparse.Namespace) -> list[str]:
    """Return what ``ccnn publish`` is told of a checkpoint besides its place and its name."""
    given = [f"--{name}" for name in ("fp16", "int8", "private", "dry-run") if vars(options)[name.replace("-", "_")]]
    given += [] if options.tag is None else [f"--tag={options.tag}"]
    recorded = load_record(checkpoint).recipe.get("data") if options.recorded_data else None
    return given if recorded is None else [*given, f"--data={recorded}"]


if __name__ == "__main__":
    raise SystemExit(main())
