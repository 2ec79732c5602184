"""``ccnn classify``: labels for pictures, with neither torch nor timm."""

from __future__ import annotations

import heapq
import json
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ccnn_zoo._printable import printable
from ccnn_zoo.errors import ConfigurationError

from ._interrupts import ends_on_interrupt
from ._options import DEVICE, IMAGES, JSON_LINES, MODEL, PRECISION, REVISION, TOKEN, WORKERS
from ._output import say
from ._pictures import Pictures, is_standard_input

if TYPE_CHECKING:
    from ccnn_zoo.runtime import Classification, ImageClassifier
    from ccnn_zoo.serve import RayClassifier

    from ._journal import Journal

    Classifier = ImageClassifier | RayClassifier


@ends_on_interrupt()
def classify(
    images: Annotated[list[Path], IMAGES],
    model: Annotated[str, MODEL],
    device: Annotated[str, DEVICE] = "auto",
    top_k: Annotated[int, typer.Option(help="How many of the most probable classes to print.")] = 5,
    precision: Annotated[str, PRECISION] = "fp32",
    threads: Annotated[int | None, typer.Option(help="CPU threads of the network; all cores by default.")] = None,
    batch_size: Annotated[int, typer.Option(help="Pictures that are classified at once.")] = 32,
    workers: Annotated[int, WORKERS] = 2,
    coverage: Annotated[
        float | None, typer.Option(help="Sets that hold the true class of this share: 0.9, 0.95 or 0.99.")
    ] = None,
    max_risk: Annotated[
        float | None, typer.Option(help="Decide only where at most this share is wrong: 0.005 to 0.1.")
    ] = None,
    most_doubtful: Annotated[
        int | None, typer.Option(help="Print only so many pictures: those that a person should look at first.")
    ] = None,
    revision: Annotated[str | None, REVISION] = None,
    token: Annotated[bool, TOKEN] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write .csv, .jsonl or .parquet instead of lines.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an --output that was interrupted.")] = False,
    as_json: Annotated[bool, JSON_LINES] = False,
    on_ray: Annotated[bool, typer.Option("--ray", help="Classify in processes on Ray; needs the extra serve.")] = False,
    processes: Annotated[int, typer.Option(help="With --ray: processes that hold the network.")] = 2,
    address: Annotated[str, typer.Option(help="With --ray: local, or auto for this machine's cluster.")] = "local",
) -> None:
    """Print the most probable classes of pictures, or write them to a file.

    A picture that cannot be read is named on stderr; the others are classified all the same, and the exit code is 1.
    Any number of pictures takes the same memory. --output keeps results in FILE.part until all are there.

    Example:  ccnn classify cat.jpg --model ccnn_resnet18_cifar.cifar10

    Example:  ccnn classify cat.jpg photos/ --model local:ccnn-demo/hub/ccnn_resnet18_cifar --output photos.csv

    Example:  ccnn classify photos/ --model model.onnx --coverage 0.95 --max-risk 0.02 --most-doubtful 20
    """
    promises = {name: v for name, v in (("coverage", coverage), ("max_risk", max_risk)) if v is not None}
    if most_doubtful is not None and (most_doubtful < 1 or output is not None):
        raise ConfigurationError("--most-doubtful is the number of pictures to print, at least 1; --output writes all")
    if output is None and resume:
        raise ConfigurationError("--resume continues what --output FILE began: name the file")
    if output is not None:
        _check_output(output, as_json)
        if resume and output.exists() and not _part(output).exists():
            say(f"{output} is whole already. Delete it to classify again.", err=True)
            return
    options = {"device": device, "revision": revision, "token": token, "precision": precision}
    options |= {"threads": threads, "batch_size": batch_size}
    if on_ray:
        if any(map(is_standard_input, images)):
            raise ConfigurationError("--ray reads files: leave it out for standard input (-), or save it first")
        from ccnn_zoo.serve import RayClassifier

        classifier = RayClassifier(model, processes=processes, address=address, **options)
    else:
        from ccnn_zoo.runtime import load

        classifier = load(model, **options)
    pictures = Pictures(images)
    if output is None:
        shown = _Shown(as_json, most_doubtful)
        failed = _print(classifier, pictures, top_k, workers, promises, shown)
    else:
        failed = _write(classifier, pictures, top_k, workers, promises, output, resume)
    if failed:
        raise typer.Exit(1)


def _print(
    classifier: Classifier,
    pictures: Pictures,
    top_k: int,
    workers: int,
    promises: dict[str, float],
    shown: _Shown,
) -> int:
    failed = 0
    with _bar(pictures, shown=sys.stdout is None or not sys.stdout.isatty()) as progress:
        for result in classifier.classify_stream(map(pictures.opened, pictures), top_k, workers=workers, **promises):
            progress.show(result)
            failed += result.error is not None
            shown.add(result)
    shown.finish()
    return failed + pictures.tell()


class _Shown:
    """Prints results as they come, or at the end the most doubtful of them, of which it keeps no more."""

    def __init__(self, as_json: bool, most_doubtful: int | None) -> None:
        self._as_json, self._most_doubtful = as_json, most_doubtful
        self._kept: list[tuple[float, int, Classification]] = []  # a heap, the least doubtful first
        self._count = 0

    def add(self, result: Classification) -> None:
        if self._most_doubtful is None:
            self._say(result)
        elif result.error is None:
            doubt = 1 - result.probability if result.entropy is None else result.entropy
            self._count += 1
            heapq.heappush(self._kept, (doubt, -self._count, result))  # of equal ones the first that came
            if len(self._kept) > self._most_doubtful:
                heapq.heappop(self._kept)

    def finish(self) -> None:
        for *_, result in sorted(self._kept, key=lambda kept: kept[:2], reverse=True):
            self._say(result)

    def _say(self, result: Classification) -> None:
        if self._as_json:
            say(json.dumps(asdict(result)))
        elif result.error is None:
            say(_line(result))


def _write(
    classifier: Classifier,
    pictures: Pictures,
    top_k: int,
    workers: int,
    promises: dict[str, float],
    output: Path,
    resume: bool,
) -> int:
    """Write the results of all pictures; return how many, and how many folders, gave nothing."""
    from ccnn_zoo._files import replacing

    from ._formats import write
    from ._journal import Journal

    run = {"classifier": _fingerprint(classifier), "top_k": top_k, **promises}
    classes = min(top_k, len(classifier.metadata.labels))
    with Journal(_part(output), run, resume=resume) as journal:
        try:
            _fill(journal, classifier, pictures, top_k, workers, promises)
        except KeyboardInterrupt:
            so_far = f"{len(journal)} pictures are in {journal.path}. Continue with --resume."
            say(f"interrupted: {so_far if len(journal) else 'no picture was classified yet.'}", err=True)
            raise typer.Exit(130) from None
        with replacing(output) as path:
            write(journal.records(), path, classes, doubts=classifier.metadata.confidence is not None)
        failed = sum(record["error"] is not None for record in journal.records())
        nothing = pictures.tell()
        say(f"{output}: {len(journal)} pictures, {failed} of which could not be read", err=True)
        journal.remove()
    return failed + nothing


def _fill(
    journal: Journal,
    classifier: Classifier,
    pictures: Pictures,
    top_k: int,
    workers: int,
    promises: dict[str, float],
) -> None:
    wanted = (picture for picture in pictures if journal.claim(picture))
    with _bar(pictures, shown=True, done=len(journal)) as progress:
        for result in classifier.classify_stream(map(pictures.opened, wanted), top_k, workers=workers, **promises):
            progress.show(result)
            journal.append(asdict(result))


def _check_output(output: Path, as_json: bool) -> None:
    from ._formats import check_format

    check_format(output)
    if as_json:
        raise ConfigurationError("--json prints, --output writes a file: leave one out, or name the file .jsonl")
    if output.is_dir():
        raise ConfigurationError(f"--output {output} is a folder; name a file")


def _part(output: Path) -> Path:
    return output.with_name(f"{output.name}.part")


def _fingerprint(classifier: Classifier) -> str:
    """Return what differs when results would: of the network's file, its labels and its preprocessing."""
    import hashlib

    from ccnn_zoo._files import sha256_of

    source = classifier.source
    network = sha256_of(source) if os.path.isfile(source) else source
    return hashlib.sha256(f"{network} {classifier.metadata}".encode("utf-8", "backslashreplace")).hexdigest()


class _Progress:
    """A progress bar on stderr, where that is a terminal; broken pictures are named above it or on stderr."""

    def __init__(self, pictures: Pictures, done: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._console = Console(stderr=True)
        columns = TextColumn("classified"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        self._bar = Progress(*columns, console=self._console)
        self._task = self._bar.add_task("", total=sum(1 for _ in pictures), completed=done)

    def __enter__(self) -> _Progress:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def show(self, result: Classification) -> None:
        self._bar.advance(self._task)
        if result.error is not None:
            self._console.print(printable(result.error), markup=False, highlight=False, soft_wrap=True)


class _NoProgress:
    def show(self, result: Classification) -> None:
        if result.error is not None:
            say(result.error, err=True)


def _bar(pictures: Pictures, *, shown: bool, done: int = 0) -> AbstractContextManager[_Progress | _NoProgress]:
    """Return the display of a run; rich is imported, and pictures are counted, only where somebody looks."""
    return _Progress(pictures, done) if shown and sys.stderr.isatty() else nullcontext(_NoProgress())


def _line(result: Classification) -> str:
    said = ", ".join(f"{p.label} {100 * p.probability:.1f}%" for p in result.predictions)
    if result.prediction_set is not None:
        said += f"; one of {{{', '.join(result.prediction_set)}}}"
    if result.ood is not None and result.ood.unlike:
        said += "; unlike the known pictures"
    if result.abstained is not None:
        said += f"; ask a person: {result.abstained}"
    return f"{os.fspath(result.source)}: {said}"
