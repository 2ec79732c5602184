"""One network in one process: pictures as bytes in, classes out, several at a time."""

from __future__ import annotations

import asyncio
import io
import logging
import math
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain, repeat
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError
from ray import serve

from ccnn_zoo import runtime
from ccnn_zoo.errors import CCNNError, ConfigurationError
from ccnn_zoo.pictures import FORMATS, identified
from ccnn_zoo.runtime import Classification

from ._options import ServeOptions
from ._schema import Query

OK, BAD_REQUEST, TOO_LARGE, UNSUPPORTED, FAILED = 200, 400, 413, 415, 500

_logger = logging.getLogger("ccnn_zoo.serve")


class Reply(NamedTuple):
    """What became of one picture.

    Args:
        status: HTTP's status code: 200, or what is wrong with the picture.
        found: what was found in it, where the status is 200.
        error: what is wrong with the picture.
        batch: of the first of those that were classified together, how many they are; 0 of the others.
    """

    status: int
    found: Classification | None = None
    error: str = ""
    batch: int = 0


class Replica:
    """A Serve deployment's class.

    Args:
        options: the service's.
    """

    def __init__(self, options: ServeOptions) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ccnn-classify")
        self._max_pixels = options.max_pixels
        # For what a header does not tell, as of a large PNG in a small icon. The process is the replica's alone.
        Image.MAX_IMAGE_PIXELS = options.max_pixels
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        self._classifier = runtime.load(
            options.model,
            device=options.device,
            precision=options.precision,
            token=options.token,
            threads=options.threads_each,
            batch_size=options.max_batch_size,
        )
        self._classifier.classify((), **options.promises)  # refuses what was not fitted for the file

    def reconfigure(self, config: dict[str, float]) -> None:
        """Set the batch's size and waiting time; Serve calls it with ``user_config``."""
        self.together.set_max_batch_size(config["max_batch_size"])
        self.together.set_batch_wait_timeout_s(config["batch_wait_s"])

    async def check_health(self) -> None:
        """Classify one grey picture; Serve replaces a replica where that fails or does not end."""
        channels, height, width = self._classifier.metadata.input_size
        grey = np.full((height, width, channels), 128, np.uint8)
        await asyncio.to_thread(self._classifier.classify, grey, 1)

    def labels(self) -> tuple[str, tuple[str, ...]]:
        """Return the network's architecture and labels."""
        return self._classifier.metadata.architecture, self._classifier.metadata.labels

    async def classify(self, picture: bytes, query: Query) -> Reply:
        """Classify one encoded picture."""
        try:
            self._classifier.classify((), query.top_k, **query.promises)
        except ConfigurationError as error:
            return Reply(BAD_REQUEST, error=str(error))
        return await self.together(picture, query)

    @serve.batch
    async def together(self, pictures: list[bytes], queries: list[Query]) -> list[Reply]:
        """Classify pictures that came at the same time, in a thread: the next ones are received meanwhile.

        Always in the same one: the C library keeps freed memory for the thread that had it.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._replies, pictures, queries)

    def _replies(self, pictures: list[bytes], queries: list[Query]) -> list[Reply]:
        seen = [self._looked_at(picture) for picture in pictures]
        replies = {row: one for row, one in enumerate(seen) if isinstance(one, Reply)}
        together: dict[Query, list[int]] = {}  # what is asked alike but for top_k, which is cut afterwards
        top_k = max(query.top_k for query in queries)
        for row, query in enumerate(queries):
            if row not in replies:
                together.setdefault(query.model_copy(update={"top_k": top_k}), []).append(row)
        for query, rows in together.items():
            parts = self._parts([(pictures[row], seen[row]) for row in rows])
            answers = chain.from_iterable(self._answers(part, query) for part in parts)
            for row, (result, count) in zip(rows, answers, strict=True):
                replies[row] = _reply(result, count, queries[row].top_k)
        return [replies[row] for row in range(len(pictures))]

    def _looked_at(self, picture: bytes) -> int | Reply:
        """Return how many pixels a picture has, by its header, or why it is refused."""
        too_large = Reply(TOO_LARGE, error=f"the picture has more than {self._max_pixels} pixels. Send a smaller one.")
        try:
            with _opened(picture) as image:
                width, height = image.size
        except UnidentifiedImageError:
            return Reply(UNSUPPORTED, error=f"the body is no picture of a known format ({', '.join(FORMATS)})")
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            return too_large
        except Exception as error:  # on damaged bytes Pillow's plugins raise nearly any exception
            return Reply(BAD_REQUEST, error=f"the picture cannot be read: {error or type(error).__name__}")
        return width * height if width * height <= self._max_pixels else too_large

    def _parts(self, pictures: list[tuple[bytes, int]]) -> Iterator[list[bytes]]:
        """Yield pictures that are held together: all, or of those that go into the graph whole, ``max_pixels``."""
        limit = self._max_pixels if self._classifier.metadata.preprocessing_in_graph else math.inf
        part, held = [], 0
        for picture, pixels in pictures:
            if part and held + pixels > limit:
                yield part
                part, held = [], 0
            part.append(picture)
            held += pixels
        if part:
            yield part

    def _answers(self, part: list[bytes], query: Query) -> Iterator[tuple[Classification | Reply, int]]:
        """Yield each picture's result, and with the first how many were classified together."""
        sizes = chain([len(part)], repeat(0))
        yield from zip(self._classified(part, query), sizes, strict=False)

    def _classified(self, pictures: list[bytes], query: Query) -> list[Classification | Reply]:
        try:
            # Each picture is decoded when its turn comes, and is gone when it is preprocessed.
            return list(self._classifier.classify_stream(map(_opened, pictures), query.top_k, **query.promises))
        except CCNNError as error:
            if len(pictures) > 1:  # whoever shares a batch with a picture that fails shall not fail with it
                return [result for picture in pictures for result in self._classified([picture], query)]
            _logger.exception("a picture failed")
            return [Reply(FAILED, error=f"the network failed on this picture ({type(error).__name__}); see its log")]


def _opened(picture: bytes) -> Image.Image:
    """Read a picture's header."""
    return identified(io.BytesIO(picture))  # never all that Pillow knows: of EPS it lets Ghostscript run the body


def _reply(result: Classification | Reply, batch: int, top_k: int) -> Reply:
    if isinstance(result, Reply):
        return result
    if result.error is not None:
        # In memory a picture is called "image 3", which says nothing to whoever sent it.
        return Reply(BAD_REQUEST, error=result.error.replace(result.source, "the picture", 1))
    return Reply(OK, replace(result, predictions=result.predictions[:top_k]), batch=batch)
