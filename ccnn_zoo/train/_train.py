"""Training as one call."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from ._classification import Classification
from ._network import Builder, build_model
from ._recipe import Recipe
from ._trainer import Trainer, TrainingResult
from .tasks import MakeTask


def train(
    recipe: Recipe,
    output: str | os.PathLike[str],
    *,
    resume: bool = False,
    progress: bool = True,
    tensorboard: bool = False,
    pictures: bool = True,
    build: Builder = build_model,
    task: MakeTask | None = None,
) -> TrainingResult:
    """Train a network, on whatever devices accelerate was launched on.

    After every epoch ``output`` holds ``last.safetensors`` (:mod:`ccnn_zoo.checkpoint`), ``history.csv`` and the
    state of the run (:mod:`ccnn_zoo.train._state`), beside ``recipe.yaml``, resolved, and ``environment.json``, each
    whole at any moment; ``curves.png`` is drawn at the end, also of a run that was interrupted; ``confidence.png`` and
    ``doubtful.png``, what the network does not know of the test part, at the end of a whole one. If training images
    are held out, ``best.safetensors`` is the network of the epoch with the lowest error on them; by the test part
    nothing is ever chosen. Python's, numpy's and torch's generators are seeded anew.

    Args:
        recipe: what to train.
        output: folder, made if missing; what an earlier run left there is overwritten.
        resume: go on from the newest whole state in ``output``, to the bit on a CPU; without one, begin.
        progress: show progress on stderr.
        tensorboard: log the history for TensorBoard too, in the folder ``tensorboard`` of ``output``.
        pictures: draw them at the end; they take a second or two, which many short runs save.
        build: makes the initial network, the same for the same recipe; what is compared with ours is trained by it.
            A network that gives in training the logits of M members, member-major (M * N, classes), trains each
            member on all images.
        task: another kind of task than classification, made for the recipe; ``build`` is not for it.

    Raises:
        ConfigurationError: the data cannot be had or do not fit the recipe, the state to resume is another recipe's,
            or the package tensorboard is missing.
        IntegrityError: every state to resume is damaged.
        NonFiniteLossError: the loss became NaN or infinite; names epoch and step. The checkpoint of the epoch
            before stays.
        RepositoryError: ``output`` cannot be written; what was there before stays.
        DeviceError: the device cannot compute in ``mixed_precision``.
        ImageError: images cannot be read, and ``recipe.skip_unreadable`` is off; names them before anything is trained.
            What only decoding finds, a file that is cut off, ends the run later.
        TrainingInterrupted: SIGINT or SIGTERM came; the state after the last step is saved.
    """
    make = task or partial(Classification, build=build, progress=progress)
    return Trainer(recipe, Path(output), tensorboard, make).run(resume, progress, pictures)
