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

from ccnn_zoo import hub
from ccnn_zoo.checkpoint import load_record
from ccnn_zoo.cli._sources import beside_checkpoint
from ccnn_zoo.errors import CCNNError, RepositoryError
from ccnn_zoo.train import CHECKPOINT


def main() -> int:
    """Publish, one line for each checkpoint, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", help="user or organisation on the Hub, or local:FOLDER")
    parser.add_argument("runs", type=Path, nargs="+", help="training folders, or folders of them")
    parser.add_argument("--tag", help="name for every commit, e.g. v1.0")
    parser.add_argument("--private", action="store_true", help="make new repositories private")
    for name in ("fp16", "int8"):
        parser.add_argument(
            f"--{name}", dest="precisions", action="append_const", const=name, help=f"export {name} too"
        )
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
        try:
            publication = hub.publish(
                checkpoint,
                repo_id,
                **beside_checkpoint(
                    checkpoint, options.precisions or (), recorded_data(checkpoint) if options.recorded_data else None
                ),
                networks=dict.fromkeys(options.precisions or ()),
                tag=options.tag,
                private=options.private,
                dry_run=options.dry_run,
            )
        except CCNNError as error:
            failed += 1
            print(f"{repo_id}: failed: {error}", file=sys.stderr)
        else:
            print(f"{repo_id}: {outcome(publication)}")
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


def recorded_data(checkpoint: Path) -> str | None:
    """Return the name of the data that a network was trained on, as its file says."""
    return load_record(checkpoint).recipe.get("data")


def outcome(publication: hub.Publication) -> str:
    """Return what became of a repository, in a few words."""
    changed = [change for change in publication.changes if change.action != "keep"]
    if not changed:
        return "is there already"
    size = sum(change.size for change in changed)
    verb = "would send" if publication.dry_run else "sent"
    return f"{verb} {len(changed)} files, {size:,} bytes, to {publication.location}"


if __name__ == "__main__":
    raise SystemExit(main())
