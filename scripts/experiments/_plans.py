"""How large an experiment is run: the paper's recipe in full, small on a CPU, or quick, to see that all of it works."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ccnn_zoo.errors import ConfigurationError
from ccnn_zoo.train import Recipe

from ._classification import Training
from ._subset import cifar10_halved, mnist_subset

SIZES = ("full", "medium", "small", "quick")

_SEEDS = {"full": 3, "medium": 5, "small": 3, "quick": 2, "few": 8}
# One block a stage; with the stages of the paper's ResNet-18, or even narrower.
_RELATIVES = {
    "small": {"layers": [1, 1, 1, 1], "channels": [16, 16, 32, 64]},
    "quick": {"layers": [1, 1, 1], "channels": [8, 16, 32]},
}

# Short recipes for small data, after the packaged recipe `digits`. Most images of digits are held out, which leaves a
# training set small enough to overfit and a validation set large enough to choose by.
_DIGITS = {
    "image_size": None,
    "crop_scale": None,
    "workers": 0,
    "channels_last": True,
    "save_every": None,
    "validation": 0.8,
    "batch_size": 32,
    "lr": 0.1,
    "scheduler": "cosine",
    "warmup": 0.1,
    "crop_padding": 1,
    "flip": 0.0,
    "iterations": None,
}
_MNIST = {**_DIGITS, "validation": 0.2, "batch_size": 64, "crop_padding": 1}
_MNIST_IMAGES = 2500
# ResNet-18 of CIFAR as the paper's Table 1 has it; and ResNet-10 with half as wide a first stage, which trains in a
# third of the time: what is to be compared in several seeds on a CPU.
_NETWORKS = {"whole": {"channels": [16, 16, 32, 64]}, "narrow": {"layers": [1, 1, 1, 1], "channels": [8, 16, 32, 64]}}
# CIFAR-10 on a CPU: one cycle of 30 epochs. Sigma is 0, so that rows differ in what they are about.
_MEDIUM = {
    **_DIGITS,
    "epochs": 30,
    "evaluate_every": 10,
    "validation": 0.1,
    "batch_size": 128,
    "weight_decay": 5e-4,
    "noise_std": 0.0,
    "warmup": 0.2,
    "flip": 0.5,
}
# A tenth of the pictures: the network learns them too well, where with all of them it is too small.
_FEW = {"validation": 0.9, "epochs": 60, "evaluate_every": 60}
_EPOCHS = {("small", "digits"): 60, ("quick", "digits"): 6, ("small", "mnist"): 12, ("quick", "mnist"): 2}


@dataclass(frozen=True)
class Plan:
    """What all experiments of one call share.

    Args:
        size: one of :data:`SIZES`.
        data: as recipes name data, ``"digits"`` or ``"KIND:PLACE"``; "" if none was given.
        seeds: one training each.
        overrides: values of recipes that differ from the paper's, but for the network; empty in full size.
        elsewhere: folder of pictures of other things, in medium size.
        narrow: whether the networks of medium size are the narrow ones.
        few: whether medium size trains on a tenth of the pictures.
    """

    size: str
    data: str
    seeds: tuple[int, ...]
    overrides: dict[str, Any]
    elsewhere: str = ""
    narrow: bool = False
    few: bool = False

    @property
    def kind(self) -> str:
        """The kind of the data: ``"digits"``, ``"mnist"``, ``"cifar10"``, ..."""
        return self.data.partition(":")[0]

    @property
    def full(self) -> bool:
        """Whether the paper's recipe is run as it is."""
        return self.size == "full"

    @property
    def network(self) -> dict[str, list[int]]:
        """Blocks of the stages, where they are not ResNet-18's, and their channels, in medium size."""
        return _NETWORKS["narrow" if self.narrow else "whole"]

    @property
    def side(self) -> int | None:
        """Side of the images in pixels, where the plan sets it."""
        return self.overrides.get("image_size")

    @property
    def suffix(self) -> str:
        """What tells the documents of other sizes and data from the paper's."""
        if self.size == "medium":
            return f"_medium_{self.kind}_{self.side}{'_narrow' * self.narrow}{'_few' * self.few}"
        return "" if self.full else f"_{self.size}_{self.kind}"

    @property
    def label(self) -> str:
        """What a heading says of a size that is not the paper's."""
        return f"{self.size} relatives on {self.kind}"

    def warning(self, paper: str) -> str:
        """Return what stands above the figures of a size that is not the paper's."""
        epochs = self.overrides["epochs"]
        purpose = "shows that the experiment runs, and nothing else" if self.size == "quick" else "is another task"
        return (
            f"**Not the paper's experiment.** {paper} Here small relatives of the networks were trained on {self.kind} "
            f"for {epochs} epochs. That {purpose}."
        )

    def training(self, recipe: str, network: str = "ours", **changes: Any) -> Training:
        """Return one training.

        Args:
            recipe: name of the packaged recipe of the full size.
            network: of :class:`experiments._classification.Training`.
            changes: what this training is about; wins over everything.
        """
        values = {**Recipe.load(recipe).to_dict(), "data": self.data, **self.overrides, **changes}
        grouped = network == "ours" and values["model_kwargs"].get("mixing", "grouped") == "grouped"
        if grouped and self.size in ("small", "quick"):
            # On so small images a pass costs more than what it computes.
            values["branches_at_once"] = values["branches"]
        return Training(Recipe.from_mapping(values), network)

    def small_network(self, full: dict[str, Any], small: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the network's values in full size, or those of its small relative."""
        if self.full:
            return full
        return {**full, "model_kwargs": {**full.get("model_kwargs", {}), **(small or _RELATIVES[self.size])}}

    def with_seeds(self, cells: Sequence[Training]) -> list[Training]:
        """Return each training with each seed: all with the first, then all with the second, ..."""
        return [replace(c, recipe=replace(c.recipe, seed=seed)) for seed in self.seeds for c in cells]


def make_plan(
    size: str,
    data: str | None,
    seeds: int | None,
    place: Path,
    side: int = 16,
    narrow: bool = False,
    few: bool = False,
) -> Plan:
    """Return the plan of a call.

    Args:
        size: one of :data:`SIZES`.
        data: as recipes name data; None is digits, or nothing in full size.
        seeds: number of them; None is the size's own.
        place: folder for subsets of data.
        side: of the images in pixels, in medium size.
        narrow: whether medium size trains narrow networks.
        few: whether it trains on a tenth of the pictures.

    Raises:
        ConfigurationError: the small sizes know no recipe for the data, or there is no seed.
    """
    if seeds is not None and seeds < 1:
        raise ConfigurationError(f"--seeds must be at least 1, got {seeds}")
    if (narrow or few) and size != "medium":
        raise ConfigurationError("--narrow and --few go with --medium")
    chosen = tuple(range(seeds or _SEEDS["few" if few else size]))
    if size == "full":
        return Plan(size, data or "", chosen, {})
    kind, _, folder = (data or "digits").partition(":")
    if size == "medium":
        plan = _medium(kind, folder, chosen, place, side)
        return replace(plan, narrow=narrow, few=few, overrides={**plan.overrides, **(_FEW if few else {})})
    if kind in ("voc", "coco"):  # the packaged recipes of detectors as they are
        return Plan(size, data, chosen, {})
    if (size, kind) not in _EPOCHS:
        raise ConfigurationError(f"--{size} trains on 'digits' or 'mnist:FOLDER', got --data {data!r}")
    length = _EPOCHS[size, kind]
    epochs = {"epochs": length, "evaluate_every": max(1, length // (6 if size == "small" else 2))}
    if kind == "digits":
        return Plan(size, kind, chosen, {**_DIGITS, **epochs})
    subset = mnist_subset(Path(folder), place / "data", _MNIST_IMAGES)
    return Plan(size, f"mnist:{subset}", chosen, {**_MNIST, **epochs})


def _medium(kind: str, folder: str, seeds: tuple[int, ...], place: Path, side: int) -> Plan:
    if kind != "cifar10" or side not in (16, 32):
        raise ConfigurationError(f"--medium trains on 'cifar10:FOLDER' at 16 or 32 pixels, got {kind!r} at {side}")
    source = cifar10_halved(Path(folder), place / "data") if side == 16 else folder
    overrides = {**_MEDIUM, "image_size": side, "crop_padding": side // 8}
    return Plan("medium", f"cifar10:{source}", seeds, overrides, elsewhere=folder)


class MissingDataError(ConfigurationError):
    """The data of an experiment in full size were not given."""


def need_data(plan: Plan, experiment: str, expected: str) -> None:
    """Refuse a full run on other data than the paper's.

    Args:
        plan: of the call.
        experiment: for the message.
        expected: for example ``"cifar10:FOLDER"``.

    Raises:
        MissingDataError: no data of this kind were given.
    """
    if plan.full and plan.kind != expected.partition(":")[0]:
        given = f", got --data {plan.data}" if plan.data else ""
        raise MissingDataError(f"{experiment} needs --data {expected}{given}; or run --small or --quick")
