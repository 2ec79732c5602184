"""One network in one process: pictures as bytes in, classes out, several at a time."""

from __future__ import annotations

import asyncio
import io
import logging
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError
from ray import serve

from ccnn_zoo import runtime
from ccnn_zoo.errors import CCNNError
from ccnn_zoo.pictures import FORMATS, identified
from ccnn_zoo.runtime import Classification

from ._options import ServeOptions

OK, BAD_REQUEST, TOO_LARGE, UNSUPPORTED, FAILED = 200, 400, 413, 415, 500

_logger = logging.getLogger("ccnn_zoo.serve")


class Reply(NamedTuple):
    """What became of one picture.

    Args:
        status: HTTP's status code: 200, or what is wrong with the picture.
        predictions: (label, probability, index), the most probable class first.
        error: what is wrong with the picture.
        batch: pictures that were classified together with it, itself included.
    """

    status: int
    predictions: tuple[tuple[str, float, int], ...] = ()
    error: str = ""
    batch: int = 0


class Replica:
    """A Serve deployment's class.

    Args:
        options: the service's.
    """

    def __init__(self, options: ServeOptions) -> None:
        self._classifier = runtime.load(
            options.model,
            device=options.device,
            precision=options.precision,
            threads=options.threads_each,
            batch_size=options.max_batch_size,
        )

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

    async def classify(self, picture: bytes, top_k: int) -> Reply:
        """Classify one encoded picture."""
        return await self.together(picture, top_k)

    @serve.batch
    async def together(self, pictures: list[bytes], top_k: list[int]) -> list[Reply]:
        """Classify pictures that came at the same time, in a thread: the next ones are received meanwhile."""
        return await asyncio.to_thread(self._replies, pictures, top_k)

    def _replies(self, pictures: list[bytes], top_k: list[int]) -> list[Reply]:
        opened = [_opened(picture) for picture in pictures]
        images = [image for image in opened if not isinstance(image, Reply)]
        results = iter(self._classified(images, max(top_k)))
        return [
            image if isinstance(image, Reply) else _reply(next(results), count, len(images))
            for image, count in zip(opened, top_k, strict=True)
        ]

    def _classified(self, images: list[Image.Image], top_k: int) -> list[Classification | Reply]:
        try:
            return list(self._classifier.classify(images, top_k))
        except CCNNError as error:
            if len(images) > 1:  # whoever shares a batch with a picture that fails shall not fail with it
                return [result for image in images for result in self._classified([image], top_k)]
            _logger.exception("a picture failed")
            return [Reply(FAILED, error=f"the network failed on this picture ({type(error).__name__}); see its log")]


def _opened(picture: bytes) -> Image.Image | Reply:
    """Read a picture's header; its pixels are decoded by the runtime, which refuses too many of them."""
    try:
        image = identified(io.BytesIO(picture))  # never all that Pillow knows: of EPS it lets Ghostscript run the body
    except UnidentifiedImageError:
        return Reply(UNSUPPORTED, error=f"the body is no picture of a known format ({', '.join(FORMATS)})")
    except Image.DecompressionBombError as error:
        return Reply(TOO_LARGE, error=f"the picture has too many pixels: {error}")
    except Exception as error:  # on damaged bytes Pillow's plugins raise nearly any exception
        return Reply(BAD_REQUEST, error=f"the picture cannot be read: {error or type(error).__name__}")
    if Image.MAX_IMAGE_PIXELS is not None and image.width * image.height > Image.MAX_IMAGE_PIXELS:
        return Reply(TOO_LARGE, error=f"the picture has {image.width} x {image.height} pixels, too many")
    return image


def _reply(result: Classification | Reply, top_k: int, batch: int) -> Reply:
    if isinstance(result, Reply):
        return result
    if result.error is not None:
        # In memory a picture is called "image 3", which says nothing to whoever sent it.
        return Reply(BAD_REQUEST, error=result.error.replace(result.source, "the picture", 1))
    predictions = tuple((p.label, p.probability, p.index) for p in result.predictions[:top_k])
    return Reply(OK, predictions, batch=batch)
