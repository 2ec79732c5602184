"""Trainings side by side on one device: the trainer's steps, without its host, for several networks at a time.

A step finds its images, its learning rate and its place in the run in the device's memory. So on a GPU it is captured
once, as a CUDA graph, and replayed; each network does so on a stream of its own. On a CPU the same function is called.
Split, initial weights, order, crops and schedule are those of :func:`ccnn_zoo.train.train` by the same recipe.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ccnn_zoo.branchwise import Branchwise
from ccnn_zoo.errors import ConfigurationError
from ccnn_zoo.train import ArrayImages, Data, EpochResult, Recipe, build_model, build_optimizer, build_scheduler
from ccnn_zoo.train._accelerator import steps_per_epoch
from ccnn_zoo.train._augment import needs_pictures
from ccnn_zoo.train._batches import Pixels, crops_of, order_of
from ccnn_zoo.train._environment import package_versions
from ccnn_zoo.train._state import RunState, StateFolder

PRECISIONS = ("tf32", "fp32", "bf16")
WARM_UP = 3  # steps before a capture, as torch's documentation has them


@dataclass(frozen=True)
class Way:
    """How a step is computed; all ways give the same but for rounding.

    Args:
        apart: one pass per branch, :class:`ccnn_zoo.branchwise.Branchwise`, instead of grouped convolutions.
        channels_last: memory layout of images and weights.
        compiled: by ``torch.compile``.
    """

    apart: bool = False
    channels_last: bool = False
    compiled: bool = False

    @property
    def name(self) -> str:
        """In words."""
        words = ["branch by branch" if self.apart else "all branches together"]
        return ", ".join(words + ["channels last"] * self.channels_last + ["torch.compile"] * self.compiled)


def set_precision(precision: str) -> None:
    """Let convolutions and matrix products use TensorFloat-32, or not; ``"bf16"`` is :class:`Network`'s autocast."""
    torch.backends.cudnn.allow_tf32 = precision != "fp32"
    torch.set_float32_matmul_precision("highest" if precision == "fp32" else "high")
    torch.backends.cudnn.benchmark = True


class DeviceImages:
    """All images of a data set in a device's memory, uint8.

    Args:
        data: images in memory, of one size.
        padding: around each, for crops.
        device: where.
    """

    def __init__(self, data: Data, padding: int, device: torch.device) -> None:
        self.data, self.device, self._padding = data, device, padding
        self.pixels = Pixels(torch.cat([data.train.pixels, data.test.pixels]), data, padding, device)
        self.targets = torch.cat([data.train.targets, data.test.targets]).to(device)

    def parts(self, recipe: Recipe) -> dict[str, Tensor]:
        """Return the indices of training, held-out and test images, as the trainer splits them, on the CPU."""
        count = len(self.data.train)
        parts = {"train": torch.arange(count), "test": torch.arange(count, len(self.targets))}
        if recipe.validation:
            # Each image is its own number, so that the split tells where the images went.
            numbers = ArrayImages(parts["train"][:, None, None, None], self.data.train.targets)
            kept, held_out = replace(self.data, train=numbers).hold_out(recipe.validation, recipe.seed)
            parts |= {"train": kept.train.pixels.flatten(), "validation": held_out.pixels.flatten()}
        return parts

    def uncut(self, chosen: Tensor) -> Tensor:
        """Return images as they are evaluated, float32 (n, C, H, W)."""
        corners = torch.full((len(chosen), 2), self._padding, device=self.device)
        return self.pixels.batch(chosen, corners, torch.zeros(len(chosen), dtype=torch.bool, device=self.device))


def _require_plain(recipe: Recipe) -> None:
    """Refuse a recipe of which a step here would leave something out."""
    asked = {
        **{name: bool(getattr(recipe, name)) for name in ("mixup", "cutmix", "label_smoothing", "ema_decay")},
        "augmentation beside crops and flips": needs_pictures(recipe),
        "objective": recipe.joint_share != 1,
        "accumulate": recipe.accumulate != 1,
        "optimizer": recipe.optimizer != "csgd",
    }
    if refused := [name for name, is_so in asked.items() if is_so]:
        raise ConfigurationError(
            f"trainings side by side know no {', '.join(refused)}; take these out of the recipe, or use `ccnn train`"
        )


def learning_rates(recipe: Recipe) -> Tensor:
    """Return the learning rate of every step, by the trainer's schedule: float32 (steps,)."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(()))], lr=recipe.lr)
    scheduler = build_scheduler(recipe, optimizer, recipe.iterations)
    rates = []
    for step in range(recipe.iterations):
        rates.append(optimizer.param_groups[0]["lr"])
        scheduler.step_update(step + 1)
    return torch.tensor(rates)


class Network:
    """One training among several on a device.

    Args:
        recipe: of ``iterations``, on images that need no more than crops and flips.
        images: of its data.
        rates: :func:`learning_rates`.
        way: how a step is computed.
        bf16: compute in bfloat16 where torch's autocast does.
        graph: on a GPU, replay a CUDA graph; False takes every step from the host.

    Attributes:
        done: steps taken.
        seconds: share in the time of the steps, of other networks too, that were taken side by side.
        loss: mean over the steps of the last epoch that was trained; before the first, None.

    Raises:
        ConfigurationError: the recipe asks for more than is done here.
    """

    def __init__(
        self, recipe: Recipe, images: DeviceImages, rates: Tensor, way: Way, *, bf16: bool = False, graph: bool = True
    ) -> None:
        _require_plain(recipe)
        self.recipe, self.images, self.way, device = recipe, images, way, images.device
        self.model = build_model(replace(recipe, channels_last=way.channels_last), images.data).to(device)
        if way.compiled:
            self.model.compile()
        self._trained = Branchwise(self.model, 1) if way.apart else self.model
        self.optimizer = build_optimizer(recipe, self.model)
        self._bf16, self._graph = bf16, graph
        self._stream = torch.cuda.Stream() if device.type == "cuda" else None
        self._take = self._step
        self.parts = images.parts(recipe)
        self.steps_per_epoch = steps_per_epoch(recipe, len(self.parts["train"]), 1)
        self.done, self.seconds, self.loss = 0, 0.0, None
        # What a step reads and counts on, all of it on the device.
        self._lr = torch.tensor(recipe.lr, device=device)
        self._rates = rates.to(device)
        self._rows = torch.zeros(self.steps_per_epoch, recipe.batch_size, 4, dtype=torch.long, device=device)
        self._place, self._count = (torch.zeros(1, dtype=torch.long, device=device) for _ in range(2))
        self._losses = torch.zeros((), device=device)
        self._use_lr()

    def _use_lr(self) -> None:
        for group in self.optimizer.param_groups:
            group.update(lr=self._lr, capturable=True)

    @property
    def left(self) -> int:
        """Steps to be taken."""
        return self.recipe.iterations - self.done

    @property
    def diverged(self) -> bool:
        """Whether the loss did not stay finite."""
        return self.loss is not None and not math.isfinite(self.loss)

    def _step(self) -> None:
        """Take one step; nothing in it waits for the device."""
        rows = self._rows.index_select(0, self._place)[0]
        chosen, corners, flipped = rows[:, 0], rows[:, 1:3], rows[:, 3].bool()
        images, targets = self.images.pixels.batch(chosen, corners, flipped), self.images.targets[chosen]
        if self.way.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        self._lr.copy_(self._rates.index_select(0, self._count)[0])
        self.optimizer.zero_grad()
        with torch.autocast(images.device.type, torch.bfloat16) if self._bf16 else nullcontext():
            logits = self._trained(images)
        loss = F.cross_entropy(logits.float(), targets)
        loss.backward()
        self.optimizer.step()
        self._losses.add_(loss.detach())
        # Round and round, so that a rehearsal longer than the run reads nothing from outside.
        self._place.add_(1).remainder_(len(self._rows))
        self._count.add_(1).remainder_(len(self._rates))

    def prepare(self) -> None:
        """Capture the step, where there are graphs."""
        wait_for(self.images.device)  # what was built was built on another stream
        if self._stream is None or not self._graph:
            return
        with self.rehearsal():
            for _ in range(WARM_UP):
                self.take()
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            self.optimizer.register_with_graph(graph)
            with torch.cuda.graph(graph, stream=self._stream):
                self._step()
            self._take = graph.replay

    def take(self) -> None:
        """Begin one step, on the network's own stream."""
        with self._on_stream():
            self._take()

    @contextmanager
    def rehearsal(self) -> Iterator[None]:
        """Put back, after the steps within, all that they change but the state of the noise's generator."""
        wait_for(self.images.device)
        before = {name: tensor.clone() for name, tensor in self._changed().items()}
        try:
            yield
        finally:
            wait_for(self.images.device)
            with torch.no_grad():
                for name, tensor in self._changed().items():
                    tensor.copy_(before.get(name, torch.zeros_like(tensor)))  # momentum begins at zero
            wait_for(self.images.device)

    def _changed(self) -> dict[str, Tensor]:
        counters = {"place": self._place, "count": self._count, "losses": self._losses}
        states = enumerate(self.optimizer.state.values())
        momenta = {f"momentum {n}": state["momentum_buffer"] for n, state in states if "momentum_buffer" in state}
        return {**self.model.state_dict(), **momenta, **counters}

    def start_epoch(self) -> int:
        """Send the images, crops and flips of the epoch that is due; return its number of steps."""
        epoch, begun = divmod(self.done, self.steps_per_epoch)
        train = self.parts["train"]
        order = order_of(len(train), self.recipe.seed, epoch)[: self._rows[..., 0].numel()]
        corners, flipped = crops_of(len(train), self.recipe, epoch)
        rows = torch.cat([train[order, None], corners[order], flipped[order, None].long()], 1).view(self._rows.shape)
        with self._on_stream():
            # From pinned memory, or the copy would wait for the steps before it.
            self._rows.copy_(rows if self._stream is None else rows.pin_memory(), non_blocking=True)
            self._place.fill_(begun)
            self._losses.zero_()
        return min(self.steps_per_epoch - begun, self.left)

    def end_epoch(self, steps: int, seconds: float) -> None:
        """Count the steps of an epoch that the device has done, and their time."""
        self.done, self.seconds, self.loss = self.done + steps, self.seconds + seconds, self._losses.item() / steps

    @torch.no_grad()
    def log_probabilities(self, part: str, batch_size: int = 1000) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Return log-probabilities (N, classes) and classes (N,) of ``"test"`` or ``"validation"`` images."""
        model = build_model(self.recipe, self.images.data).to(self.images.device).eval()
        model.load_state_dict(self.model.state_dict())
        chosen = self.parts[part].to(self.images.device)
        logits = torch.cat([model(self.images.uncut(some)).float() for some in chosen.split(batch_size)])
        return logits.log_softmax(1).cpu().numpy(), self.images.targets[chosen].cpu().numpy()

    def save(self, states: StateFolder) -> None:
        """Save all that the training needs to go on."""
        optimizer, lr = self.optimizer.state_dict(), float(self._lr)
        optimizer["param_groups"] = [{**group, "lr": lr} for group in optimizer["param_groups"]]  # not one for all
        parts = {"model": self.model.state_dict(), "optimizer": optimizer}
        epoch = -(-self.done // self.steps_per_epoch)
        history = (EpochResult(epoch=epoch, step=self.done, lr=lr, train_loss=self.loss),)
        sums = (self.seconds, 0, 0)  # nothing is summed over the epoch under way
        states.save(RunState(self.recipe.decisive(), package_versions(), self.done, lr, sums, history, parts))

    def resume(self, states: StateFolder) -> None:
        """Go on from the newest state, if there is one; before :meth:`prepare`."""
        state = states.newest(self.recipe.decisive())
        if state is not None:
            self.model.load_state_dict(state.parts["model"])
            self.optimizer.load_state_dict(state.parts["optimizer"])
            self._use_lr()
            self.done, self.seconds, self.loss = state.step, state.sums[0], state.history[-1].train_loss
            self._count.fill_(self.done)

    def _on_stream(self) -> AbstractContextManager[None]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)


def train_epoch(networks: Sequence[Network]) -> None:
    """Train every network to the end of its epoch, or of its run, step by step in turn."""
    start = time.perf_counter()
    steps = [network.start_epoch() for network in networks]
    for step in range(max(steps)):
        for network, its in zip(networks, steps, strict=True):
            if step < its:
                network.take()
    wait_for(networks[0].images.device)
    seconds = time.perf_counter() - start
    for network, its in zip(networks, steps, strict=True):
        network.end_epoch(its, seconds / len(networks))


def step_seconds(networks: Sequence[Network], steps: int) -> float:
    """Measure one step of all networks side by side, in seconds; their trainings stay where they are."""
    device = networks[0].images.device
    with ExitStack() as rehearsals:
        for network in networks:
            rehearsals.enter_context(network.rehearsal())
            network.take()
        wait_for(device)
        start = time.perf_counter()
        for _ in range(steps):
            for network in networks:
                network.take()
        wait_for(device)
        return (time.perf_counter() - start) / steps


def wait_for(device: torch.device) -> None:
    """Wait until a device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
