"""Cells of the comparison on CIFAR-10: a training, or an ensemble of trainings, with all that its outputs are worth."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from documents import replacing
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from ccnn_zoo import calibrate, deep_ensemble
from ccnn_zoo.checkpoint import load_checkpoint, save_checkpoint
from ccnn_zoo.layers import CalibratedConv2d
from ccnn_zoo.train import CHECKPOINT, Data, Images, Recipe, TrainingResult, build_model, train
from ccnn_zoo.train.tasks import loader_of, view_of
from ccnn_zoo.uncertainty import fit_cascade

from ._beyond import beyond
from ._cells import finish, folder_of, key_of
from ._classification import Training
from ._doubt import Outputs, as_arrays, doubt, from_arrays, mixed
from ._scores import scores

OUTPUTS = "outputs.safetensors"
AVERAGED = ", average of the weights"
CASCADE = ", as a cascade"
_IMAGES_OF_STATISTICS = 12_800


@dataclass(frozen=True)
class Trial(Training):
    """A training with :func:`experiments._doubt.doubt`; :class:`experiments._cells.Cell`.

    Args:
        elsewhere: folder of :func:`experiments._beyond.beyond`.
        row: what this network is, in the tables; does not decide the result.
    """

    elsewhere: str = ""
    row: str = ""

    @property
    def name(self) -> str:
        """The row and the seed."""
        member = f"-member{self.recipe.member}" if self.recipe.member else ""
        return f"{self.recipe.image_size or ''} {self.row} seed{self.recipe.seed}{member}"

    def settings(self) -> dict[str, Any]:
        """Return the decisive values."""
        return {**super().settings(), "cell": "trial"}

    def _further(self, folder: Path, model: nn.Module, data: Data, held_out: Images | None) -> dict[str, Any]:
        model.eval()
        parts = {"validation": held_out, "test": data.test}
        found = {part: outputs(model, loader_of(view_of(images, data), self.recipe)) for part, images in parts.items()}
        strange = beyond(self.elsewhere, data)
        found |= {
            kind: outputs(model, ((batch, None) for batch in images.split(128))) for kind, images in strange.items()
        }
        with replacing(folder / OUTPUTS) as temporary:
            save_file({k: v for name, each in found.items() for k, v in as_arrays(name, each).items()}, temporary)
        measured = {"doubt": doubt(found["validation"], found["test"], {kind: found[kind] for kind in strange})}
        if self.network == "ours" and self.recipe.branches > 1 and model.conversion.mixing == "grouped":
            average = averaged(model, self.recipe, data)
            together = outputs(average, loader_of(view_of(data.test, data), self.recipe))
            measured["averaged_kernels"] = scores(together.log_probabilities.numpy(), together.targets.numpy())
        return measured


@dataclass(frozen=True)
class Unaveraged(Trial):
    """A trial without an average of the weights, taken from the trial that has one: to the bit the same training.

    Its settings are those of a trial of its own, for its figures are.

    Args:
        decay: of the average in the other trial.
    """

    decay: float = 0.0

    def averaged(self) -> Trial:
        """Return the trial that trains both."""
        recipe = replace(self.recipe, ema_decay=self.decay)
        return Trial(recipe, self.network, self.elsewhere, self.row + AVERAGED)

    def run(self, folder: Path) -> dict[str, Any]:
        """Finish the trial that trains both, then score the last weights."""
        both = finish(self.averaged(), folder.parent)
        return both.measured if "diverged" in both.measured else super().run(folder)

    def _trained(self, folder: Path) -> TrainingResult:
        other, built = self.averaged(), []

        def build(recipe: Recipe, data: Data) -> nn.Module:
            built.append(self._build(recipe, data))
            return built[-1]

        # At its end already: this loads its last state, into the network that was trained.
        result = train(other.recipe, folder_of(other, folder.parent), resume=True, progress=False, build=build)
        return replace(result, model=built[0].cpu().eval())


@dataclass(frozen=True)
class Mirrored(Unaveraged):
    """A plain trial's network, one branch of which sees the image and one the mirror image; not trained any further.

    Args:
        plain: row of the plain trial.
    """

    plain: str = ""

    def averaged(self) -> Trial:
        """Return the trial that trains the plain network."""
        return replace(super().averaged(), row=self.plain + AVERAGED)

    def settings(self) -> dict[str, Any]:
        """Return the plain trial's, as one of two branches."""
        return {**super().settings(), "cell": "mirrored"}

    def _trained(self, folder: Path) -> TrainingResult:
        result = super()._trained(folder)
        return replace(result, model=calibrate(result.model, branches=2, mirrored=[1]))


@dataclass(frozen=True)
class MirroredCascade(Mirrored):
    """The same, whose first branch answers alone where it is sure enough."""

    def settings(self) -> dict[str, Any]:
        """Return the plain trial's, as a cascade of two branches."""
        return {**super().settings(), "cell": "mirrored cascade"}

    def run(self, folder: Path) -> dict[str, Any]:
        """Finish the trial of both branches, then let the first decide whether the second is asked."""
        row = self.row.removesuffix(CASCADE)
        both = finish(Mirrored(self.recipe, self.network, self.elsewhere, row, self.decay, self.plain), folder.parent)
        if "diverged" in both.measured:
            return both.measured
        found, share = cascaded(written_outputs(both.folder), 2)
        return {**both.measured, **of_outputs(found), "multiply_adds": round(share * both.measured["multiply_adds"])}


@dataclass(frozen=True)
class Student(Trial):
    """A trial that learns from the probabilities of another one.

    Args:
        teacher: which is trained first, where it is not.
    """

    teacher: Trial | Ensemble | None = None

    def settings(self) -> dict[str, Any]:
        """Return the decisive values; of the teacher the sum over its own."""
        return {**super().settings(), "cell": "student", "teacher": key_of(self.teacher.settings())}

    def run(self, folder: Path) -> dict[str, Any]:
        """Train the teacher, then the student."""
        return _after(self, self.teacher, "teacher", folder)


@dataclass(frozen=True)
class Tuned(Trial):
    """A trial that starts from the weights of another one.

    Args:
        start: which is trained first, where it is not.
    """

    start: Trial | None = None

    def settings(self) -> dict[str, Any]:
        """Return the decisive values; of the start the sum over its own."""
        return {**super().settings(), "cell": "tuned", "start": key_of(self.start.settings())}

    def run(self, folder: Path) -> dict[str, Any]:
        """Train the start, then go on from it."""
        return _after(self, self.start, "start_from", folder)


def _after(trial: Trial, first: Trial | Ensemble, name: str, folder: Path) -> dict[str, Any]:
    """Finish ``first``, then run ``trial`` with its folder as the recipe's value ``name``."""
    done = finish(first, folder.parent)
    if "diverged" in done.measured:
        return done.measured
    if isinstance(first, Ensemble):
        first.join(done.folder)
    recipe = replace(trial.recipe, **{name: str(done.folder)})
    return Trial(recipe, trial.network, elsewhere=trial.elsewhere, row=trial.row).run(folder)


@dataclass(frozen=True)
class Ensemble:
    """Networks trained apart, whose probabilities are averaged; :class:`experiments._cells.Cell`.

    Args:
        members: their trainings, of one seed.
        row: what it is, in the tables.
    """

    members: tuple[Trial, ...]
    row: str = ""

    @property
    def name(self) -> str:
        """The row and the seed."""
        return f"{self.row} seed{self.members[0].recipe.seed}"

    def settings(self) -> dict[str, Any]:
        """Return the settings of the first member, how many there are, and of what kind, if not plain trials."""
        first = self.members[0].settings()
        kind = {} if first["cell"] == "trial" else {"member_cell": first["cell"]}
        return {**first, **kind, "cell": "ensemble", "members": len(self.members)}

    def run(self, folder: Path) -> dict[str, Any]:
        """Train the members that are not trained, and score what they say together."""
        records = [finish(member, folder.parent) for member in self.members]
        diverged = [r.measured["diverged"] for r in records if "diverged" in r.measured]
        if diverged:
            return {**records[0].measured, "diverged": diverged[0]}
        alone = [written_outputs(record.folder) for record in records]
        found = {name: mixed([each[name] for each in alone]) for name in alone[0]}
        found, share = self._said(found)
        totals = ("trained_parameters", "deployed_parameters", "multiply_adds", "seconds")
        losses = [record.measured["train"]["loss"] for record in records]
        sums = {name: sum(record.measured[name] for record in records) for name in totals}
        return {
            **records[0].measured,
            **of_outputs(found),
            **sums,
            "multiply_adds": round(share * sums["multiply_adds"]),
            "train": {"loss": sum(losses) / len(losses)},
        }

    def join(self, folder: Path) -> None:
        """Put one network of all members into the folder of this cell, which has run."""
        networks, records = zip(
            *(load_checkpoint(finish(member, folder.parent).folder / CHECKPOINT) for member in self.members),
            strict=True,
        )
        save_checkpoint(folder / CHECKPOINT, deep_ensemble(networks), records[0])

    def _said(self, together: dict[str, Outputs]) -> tuple[dict[str, Outputs], float]:
        """Return what is said, and the share of all members' arithmetic that a test image takes."""
        return together, 1.0


@dataclass(frozen=True)
class CascadedEnsemble(Ensemble):
    """An ensemble whose first member answers alone where it is sure enough; :class:`experiments._cells.Cell`.

    How sure, is chosen by held-out images, as ``ccnn export --cascade`` does.
    """

    def settings(self) -> dict[str, Any]:
        """Return the ensemble's, as a cascade."""
        return {**super().settings(), "cell": "cascade"}

    def _said(self, together: dict[str, Outputs]) -> tuple[dict[str, Outputs], float]:
        return cascaded(together, len(self.members))


def cascaded(together: dict[str, Outputs], count: int) -> tuple[dict[str, Outputs], float]:
    """Return what is said where the first of ``count`` branches answers alone if it is sure enough, as held-out images
    choose, and the share of all branches' arithmetic that a test image takes."""
    first = 1 / count
    held = together["validation"]
    held_out = (held.branches[0].numpy(), held.log_probabilities.numpy(), held.targets.numpy())
    threshold = fit_cascade(*held_out, first).point.threshold
    doubted = {name: each.branches[0].exp().amax(1) < threshold for name, each in together.items()}
    said = {
        name: Outputs(torch.where(doubted[name][:, None], each.log_probabilities, each.branches[0]), None, each.targets)
        for name, each in together.items()
    }
    return said, first + (1 - first) * float(doubted["test"].double().mean())


def written_outputs(folder: Path) -> dict[str, Outputs]:
    """Return what a finished trial said of validation, test and other images, by their names."""
    tensors = load_file(folder / OUTPUTS)
    return {name: from_arrays(tensors, name) for name in dict.fromkeys(key.partition("/")[0] for key in tensors)}


def of_outputs(found: dict[str, Outputs]) -> dict[str, Any]:
    """Return the figures of what is said of validation, test and other images."""
    strange = {name: each for name, each in found.items() if name not in ("validation", "test")}
    parts = {
        part: scores(found[part].log_probabilities.numpy(), found[part].targets.numpy())
        for part in ("validation", "test")
    }
    return {**parts, "doubt": doubt(found["validation"], found["test"], strange)}


@torch.no_grad()
def outputs(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor | None]]) -> Outputs:
    """Return what ``model``, in eval mode on the CPU, says of batches of images and their classes, or None."""
    alone = getattr(model, "forward_branches", None) if getattr(model, "branches", 1) > 1 else None
    logits, branches, targets = [], [], []
    for images, classes in batches:
        logits.append(model(images).log_softmax(1))
        if alone is not None:
            branches.append(alone(images).log_softmax(2))
        if classes is not None:
            targets.append(classes)
    return Outputs(
        torch.cat(logits), torch.cat(branches, dim=1) if branches else None, torch.cat(targets) if targets else None
    )


@torch.no_grad()
def averaged(model: nn.Module, recipe: Recipe, data: Data) -> nn.Module:
    """Return the plain network that holds the mean of the branches' kernels, its statistics measured anew.

    Args:
        model: a calibrated network, grouped.
        recipe: by which it was trained.
        data: images for the statistics of batch normalisation.
    """
    branches = recipe.branches
    kept = {name: v for name, v in recipe.model_kwargs.items() if name in ("layers", "channels")}
    plain = build_model(replace(recipe, branches=1, merge="mean", model_kwargs=kept), data)
    state = dict(model.state_dict())
    for name, module in model.named_modules():
        if isinstance(module, CalibratedConv2d):
            state[f"{name}.weight"] = module.effective_weight().unflatten(0, (branches, -1)).mean(0)
    for name, value in plain.state_dict().items():
        if name.endswith("calibration"):
            continue
        mine = state[name]
        value.copy_(mine if mine.shape == value.shape else mine.unflatten(0, (branches, -1)).mean(0))
    some = data.train.subset(np.random.default_rng(0).permutation(len(data.train))[:_IMAGES_OF_STATISTICS])
    update_bn((images for images, _ in loader_of(view_of(some, data), recipe)), plain)
    return plain.eval()
