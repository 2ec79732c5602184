"""Classifying many pictures on Ray Data: one session in each of many processes, here or on a cluster."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import weakref
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import asdict
from itertools import islice
from typing import Any

from numpy.typing import NDArray

from ccnn_zoo import runtime
from ccnn_zoo._base.checks import check_integer
from ccnn_zoo.errors import DeviceError
from ccnn_zoo.runtime import Asked, Classification, OutOfDistribution, Prediction

from . import _ray
from ._options import GPU_DEVICES, check_flag, threads_each

PICTURES_A_JOB = 100_000
"""Names that one job holds in memory; more pictures are further jobs, one after another."""


class RayClassifier:
    """What :class:`ccnn_zoo.runtime.ImageClassifier` is for a stream of files, in many processes.

    Args:
        model: what :func:`ccnn_zoo.runtime.load` takes; every machine must be able to reach it, and the pictures.
        device: ``"cpu"``, ``"cuda"`` (one GPU a process) or ``"auto"``.
        revision: branch, tag or commit of a Hub repository.
        token: whether the stored token is sent to the Hub, for a private repository: each machine's own.
        precision: which ONNX file of a repository.
        processes: that hold the network.
        threads: CPU threads of each; None shares this machine's cores among them.
        batch_size: pictures that a process classifies at once.
        address: ``"local"`` starts Ray on this machine, ``"auto"`` joins the cluster that it belongs to.

    Attributes:
        metadata: labels and preprocessing.
        source: the network's file, as this machine sees it.

    Raises:
        ConfigurationError: the extra ``serve`` is not installed, or an argument is outside its range.
        CCNNError: as :func:`ccnn_zoo.runtime.load`.
    """

    def __init__(
        self,
        model: str,
        *,
        device: str = "auto",
        revision: str | None = None,
        token: bool = False,
        precision: str = "fp32",
        processes: int = 2,
        threads: int | None = None,
        batch_size: int = 32,
        address: str = _ray.LOCAL,
    ) -> None:
        _ray.require("ray", "pyarrow", address=address)
        check_integer("processes", processes)
        self._processes = processes
        self._threads = threads_each(processes) if threads is None else threads
        self._gpus = int(device in GPU_DEVICES)
        self._address = address
        check_flag("token", token)
        options = {"revision": revision, "token": token, "precision": precision}
        options |= {"threads": self._threads, "batch_size": batch_size}
        # The process that sends out the work may have no GPU.
        here = runtime.load(model, device="cpu" if self._gpus else device, **options)
        self.metadata = here.metadata
        self.source: str = here.source
        self._batch_size = batch_size
        self._load = {"path_or_repo_id": _ray.absolute(model), "device": device, **options}

    def classify_stream(
        self,
        images: Iterable[str | os.PathLike[str]],
        top_k: int = 5,
        *,
        workers: int = 0,
        coverage: float | None = None,
        max_risk: float | None = None,
        sets: str = "lac",
    ) -> Iterator[Classification]:
        """Classify files; results come in their order, as they are ready.

        Args:
            images: paths. One that cannot be read gets an entry with ``error``.
            top_k: how many of the most probable classes to return.
            workers: threads that decode ahead in each process.
            coverage, max_risk, sets: as :meth:`ccnn_zoo.runtime.ImageClassifier.classify` takes them.

        Raises:
            ConfigurationError: an argument is outside its range, or was not fitted for the file.
            DeviceError: the processes do not start, or their device fails.
            RepositoryError: there is no Ray cluster at the address.
        """
        check_integer("workers", workers, least=0)
        asked = Asked(self.metadata, top_k, coverage, max_risk, sets)  # refuses now what no process could keep
        import ray.data  # noqa: F401, before the handler below: those that were registered last run first

        stream = self._stream(iter(images), asked, workers)
        # A stream that nobody reads to its end must end before Ray does: cancelling its tasks would start Ray anew.
        atexit.register(_close, weakref.ref(stream))
        return stream

    def _stream(
        self, images: Iterator[str | os.PathLike[str]], asked: Asked, workers: int
    ) -> Generator[Classification, None, None]:
        with _ray.running(self._address, self._processes * self._threads, self._processes * self._gpus):
            while paths := [os.fsencode(path) for path in islice(images, PICTURES_A_JOB)]:
                yield from self._job(paths, asked, workers)

    def _job(self, paths: list[bytes], asked: Asked, workers: int) -> Iterator[Classification]:
        import ray
        from ray.exceptions import RayError

        # Blocks of a few batches: small enough to be spread evenly and to come back soon.
        blocks = max(self._processes, len(paths) // (4 * self._batch_size))
        dataset = ray.data.from_items([{"path": path} for path in paths], override_num_blocks=min(blocks, len(paths)))
        dataset = dataset.map_batches(
            Worker,
            fn_constructor_args=(self._load, asked.arguments(), workers, os.getcwd()),
            batch_size=self._batch_size,
            compute=ray.data.ActorPoolStrategy(size=min(self._processes, len(paths))),
            num_cpus=self._threads,
            num_gpus=self._gpus or None,
        )
        dataset.context.execution_options.preserve_order = True
        dataset.context.enable_progress_bars = False
        rows = iter(dataset.iter_rows())
        try:
            for row in rows:
                yield _result(json.loads(row["result"]))
        except RayError as error:
            raise DeviceError(f"the processes on Ray failed: {getattr(error, 'cause', None) or error}") from error
        finally:
            rows.close()  # now, while Ray runs: an exception's traceback could keep it for longer


class Worker:
    """One process of a job.

    Args:
        load: arguments of :func:`ccnn_zoo.runtime.load`.
        asked: further arguments of :meth:`ccnn_zoo.runtime.ImageClassifier.classify_stream`.
        workers: threads that decode ahead.
        folder: relative paths start there.
    """

    def __init__(self, load: Mapping[str, Any], asked: Mapping[str, Any], workers: int, folder: str) -> None:
        # Elsewhere there may be no such folder; then a picture with a relative path is one that cannot be read.
        with contextlib.suppress(OSError):
            os.chdir(folder)
        self._classifier = runtime.load(**load)
        self._asked = asked
        self._workers = workers

    def __call__(self, batch: dict[str, NDArray]) -> dict[str, list[str]]:
        """Classify the files of one batch."""
        paths = [os.fsdecode(path) for path in batch["path"]]
        results = self._classifier.classify_stream(paths, workers=self._workers, **self._asked)
        return {"result": [json.dumps(asdict(result)) for result in results]}


def _close(stream: weakref.ref[Generator[Classification, None, None]]) -> None:
    if (open_stream := stream()) is not None:
        open_stream.close()


def _result(values: dict[str, Any]) -> Classification:
    """Build a result again of what :func:`dataclasses.asdict` and JSON have made of it."""
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    values["predictions"] = tuple(Prediction(**one) for one in values["predictions"])
    values["ood"] = values["ood"] and OutOfDistribution(**values["ood"])
    return Classification(**values)
