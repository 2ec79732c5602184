"""Running a plain network to see what reads the image, and as that with which a calibrated one is compared."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from ccnn_zoo._conversion.survey import Survey
from ccnn_zoo.errors import CalibrationError, CCNNError

Result = TypeVar("Result")

FAILURES = (RuntimeError, ValueError, TypeError, AssertionError, IndexError)
"""What networks raise for images of a size that they do not take."""


@dataclass(frozen=True)
class Probe:
    """A plain network to compare with: random weights, on the CPU, in eval mode and float32.

    Args:
        network: the network.
        images: input, (2, C, H, W).
    """

    network: nn.Module
    images: Tensor


def traced(found: Survey, model: nn.Module, input_size: tuple[int, int, int] | None = None) -> Survey:
    """Return what the self-check does, and check nothing: for networks that were checked when they were made.

    On the meta device, which computes nothing; of a network that does not run there, ``found`` is returned.
    """
    network = deepcopy(model).to("meta").eval()
    for size in [input_size] if input_size else likely_sizes(model, model.get_submodule(found.convs[0]).in_channels):
        images = torch.empty(2, *size, device="meta", dtype=next(network.parameters()).dtype)
        with torch.no_grad(), suppress(*FAILURES), _noted_readers(network, images, found.convs) as readers:
            network(images)
            return _with_readers(found, readers)
    return found


def _with_readers(found: Survey, readers: Sequence[str]) -> Survey:
    return replace(found, image_readers=tuple(readers)) if readers else found


@contextmanager
def private_randomness() -> Iterator[None]:
    """Draw the same numbers every time, and leave the global random state alone."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.default_generator.manual_seed(0)  # torch.manual_seed would reach for CUDA's too
        yield


def make_probe(model: nn.Module, found: Survey, input_size: tuple[int, int, int] | None) -> tuple[Probe, Survey]:
    """Return a probe of the architecture of ``model``, and ``found`` with the convolutions that read its images.

    Raises:
        CalibrationError: the network does not run on any of the sizes that were tried.
    """
    network = deepcopy(model).to("cpu", torch.float32).requires_grad_(False).eval()
    _randomise(network)
    sizes = [input_size] if input_size else likely_sizes(model, model.get_submodule(found.convs[0]).in_channels)

    def run(images: Tensor) -> tuple[str, ...]:
        with _noted_readers(network, images, found.convs) as readers:
            settle(network, images)
        return tuple(readers)

    why = f"{type(model).__name__} cannot be checked", "give input_size=(channels, height, width)"
    images, readers = on_first_size((torch.randn(2, *size) for size in sizes), run, *why)
    return Probe(network, images), _with_readers(found, readers)


def on_first_size(
    images: Iterable[Tensor], run: Callable[[Tensor], Result], failed: str, remedy: str
) -> tuple[Tensor, Result]:
    """Return the first images on which a network runs, and what came of it.

    Args:
        images: of one size after the other.
        run: runs the network on some.
        failed: what cannot be done, in the error.
        remedy: what to do about it.

    Raises:
        CalibrationError: it runs on none of them.
    """
    sizes = []
    for some in images:
        try:
            return some, run(some)
        except CCNNError:
            raise
        except FAILURES as failure:
            sizes.append("x".join(map(str, some.shape[1:])))
            error = failure
    raise CalibrationError(
        f"{failed}, for it does not run on images of {' or '.join(sizes)} ({error}); {remedy}"
    ) from error


def likely_sizes(model: nn.Module, channels: int) -> list[tuple[int, int, int]]:
    """Return sizes (C, H, W) of images of ``channels`` channels of which the network may take one."""
    cfg = getattr(model, "pretrained_cfg", None) or {}
    declared = [(channels, *cfg["input_size"][1:])] if cfg.get("input_size") else []
    if declared and cfg.get("fixed_input_size"):
        return declared
    return [(channels, 64, 64), *declared, (channels, 32, 32), (channels, 224, 224)]


def _randomise(network: nn.Module) -> None:
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if tensor.ndim > 1:
            tensor.normal_(0, (2 / tensor[0].numel()) ** 0.5)
        elif tensor.is_floating_point():
            low = -0.5 if name.endswith("bias") else 0.5
            tensor.uniform_(low, low + 1)


def settle(network: nn.Module, images: Tensor) -> None:
    """Give batch normalisation the statistics of ``images``, so that nothing explodes."""
    norms = tracking_norms(network).values()
    try:
        for norm in norms:
            norm.momentum = 1.0
            norm.train()
        network(images)
    finally:
        for norm in norms:
            norm.eval()
            # A channel that hardly varies would have its rounding errors blown up.
            norm.running_var.clamp_(min=0.01 * norm.running_mean.square())


@contextmanager
def _noted_readers(network: nn.Module, images: Tensor, convs: Iterable[str]) -> Iterator[list[str]]:
    """Collect the names of those of ``convs`` that read ``images`` themselves."""
    readers: list[str] = []

    def note(name: str) -> Callable[..., None]:
        return lambda _, args: readers.append(name) if args and args[0] is images else None

    hooks = [network.get_submodule(name).register_forward_pre_hook(note(name)) for name in convs]
    try:
        yield readers
    finally:
        for handle in hooks:
            handle.remove()


def tracking_norms(network: nn.Module) -> dict[str, nn.Module]:
    modules = network.named_modules()
    return {name: m for name, m in modules if hasattr(m, "momentum") and getattr(m, "running_mean", None) is not None}
