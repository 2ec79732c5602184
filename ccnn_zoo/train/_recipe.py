"""A recipe: everything that decides a training run, in one frozen record, and its YAML file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

import timm
import yaml

from ccnn_zoo._base.checks import check_integer, check_number
from ccnn_zoo._files import parsed_yaml, read_text, replacing
from ccnn_zoo.errors import ConfigurationError
from ccnn_zoo.layers import check_branches, check_merge
from ccnn_zoo.models import zoo_name
from ccnn_zoo.optim import CALIBRATION_UPDATES, NOISES

from ._checks import check_auto_augment

OPTIMIZERS = ("csgd", "sgd")
SCHEDULERS = ("cosine", "multistep", "step", "constant")
PRECISIONS = ("no", "fp16", "bf16")

_RATES = ("lr", "momentum", "weight_decay", "noise_std", "noise_decay", "calibration_lr")
_MACHINERY = ("workers", "save_every", "keep")
_SWITCHES = ("compile", "sync_batchnorm", "channels_last", "skip_unreadable", "skip_bad_annotations")
_JOINT_SHARES = {"joint": 1.0, "branches": 0.0}
_ADDED_LATER = {"objective": "joint", "teacher": None, "teacher_share": 0.9, "skip_unreadable": False, "member": 0}
"""Keys that older runs did not know, with the value that changes nothing of them."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One training run; the same recipe gives the same weights, bit for bit, on the same CPU.

    Args:
        model: timm name of one of our networks, ``"ccnn_*"``, or of a plain one of timm's, which is calibrated:
            ``"resnet50"``.
        data: what :func:`ccnn_zoo.train.load_data` takes: ``"digits"``, ``"mnist:FOLDER"``, ...
        epochs: passes over the training images. Give this or ``iterations``, not both.
        iterations: optimizer steps; the last epoch ends where they do.
        evaluate_every: epochs from one evaluation on test and held-out images to the next; after the last one always.
        branches: number K of branches; 1 is the plain network.
        merge: how branches meet: ``"mean"``, ``"max"`` or ``"concat"`` before the classifier, ``"probability"`` behind
            one of their own each.
        objective: what is minimised: ``"joint"``, the loss of the merged logits; ``"branches"``, the mean of the
            branches' own losses; or the share in [0, 1] of the joint loss, the rest being the branches'.
        teacher: checkpoint or training folder of a network of the same classes, from which this one learns: by the
            Kullback-Leibler divergence from the teacher's probabilities. None learns from the labels alone.
        teacher_share: share in [0, 1] of that loss, the rest being the objective's; without a teacher it means nothing.
        model_kwargs: further arguments of the network, as ``timm.create_model`` takes them.
        start_from: checkpoint or training folder of the same network, or timm name of one with trained weights, from
            which training starts; a classifier of other classes starts afresh. A network of one branch is calibrated
            first, with the ``diversity`` of ``model_kwargs`` or 0.1. None starts from random weights.
        validation: share of the training images, in [0, 1), that is held out, drawn by ``seed``. Choose
            hyper-parameters by it, never by the test part.
        skip_unreadable: leave out pictures of a classification data set that cannot be read, instead of refusing it.
        skip_bad_annotations: leave out annotations of boxes that cannot be used, instead of refusing the data.
        image_size: side in pixels to which images of a folder are brought; None is the data's own.
        crop_padding: black pixels put around a training image before a random crop of its size; 0 is off.
        crop_scale: smallest and largest share of the picture that a random resized crop keeps; None is off.
        flip: probability of a horizontal flip.
        auto_augment: timm's name of a policy, such as ``"rand-m9-mstd0.5"``; None is off.
        color_jitter: strength of random brightness, contrast and saturation; 0 is off.
        random_erasing: probability that a random rectangle is erased.
        mixup: parameter alpha of mixup; 0 is off.
        cutmix: parameter alpha of CutMix; 0 is off. With both, each batch takes one of them.
        label_smoothing: share of the target, in [0, 1), spread over all classes.
        batch_size: images per step, over all processes together. The last, smaller batch is left out.
        accumulate: passes, each over an equal part of the batch, whose gradients make one step.
        optimizer: ``"csgd"``, or ``"sgd"``: torch's, with R frozen as it was drawn.
        lr: learning rate of w and all ordinary parameters at its highest.
        momentum: momentum of the same.
        weight_decay: L2 penalty on the same.
        noise_std: standard deviation sigma of CSGD's noise.
        noise: what CSGD adds it to: ``"weight"`` w, as Algorithm 1 does, or ``"gradient"``.
        noise_decay: exponent by which its variance fades; 0 keeps it.
        calibration_lr: learning rate l of R; no schedule changes it.
        calibration_update: ``"descent"`` or ``"ascent"``, the sign of R's step.
        scheduler: ``"cosine"`` to 0, ``"multistep"`` (times ``decay_rate`` at each of ``decay_at``), ``"step"``
            (times ``decay_rate`` every ``decay_at``) or ``"constant"``.
        warmup: share of the run in which ``lr`` rises linearly, in [0, 1).
        decay_at: shares of the run, in (0, 1); one alone for ``"step"``.
        decay_rate: factor, in (0, 1].
        seed: seed of initial weights, held-out images, order, augmentation and noise.
        member: number in an ensemble (:func:`ccnn_zoo.deep_ensemble`): other initial weights, all else as ``seed``
            says, so that what one member held out, no other has seen.
        ema_decay: decay of an average of the weights, which then is evaluated and saved; None is off.
        mixed_precision: ``"no"``, ``"fp16"`` or ``"bf16"``.
        compile: compile the network by ``torch.compile``.
        sync_batchnorm: normalise by the statistics of all processes together; GPUs only.
        branches_at_once: branches that a training pass runs together, on the way to the same gradients
            (:class:`ccnn_zoo.branchwise.Branchwise`); None lets the device decide.
        channels_last: hold images and weights channels last in memory.
        workers: processes that decode images of a folder; 0 decodes in the training process.
        save_every: steps after which the state of the run is saved within an epoch; None saves after every epoch.
        keep: number of saved states that stay.

    Raises:
        ConfigurationError: a value is outside its range, names it and what was expected.
    """

    model: str
    data: str
    epochs: int | None = None
    iterations: int | None = None
    evaluate_every: int = 1
    branches: int = 1
    merge: str = "mean"
    objective: str | float = "joint"
    teacher: str | None = None
    teacher_share: float = 0.9
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    start_from: str | None = None
    validation: float = 0.0
    skip_unreadable: bool = False
    skip_bad_annotations: bool = False
    image_size: int | None = None
    crop_padding: int = 0
    crop_scale: tuple[float, float] | None = None
    flip: float = 0.0
    auto_augment: str | None = None
    color_jitter: float = 0.0
    random_erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    label_smoothing: float = 0.0
    batch_size: int = 128
    accumulate: int = 1
    optimizer: str = "csgd"
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    noise_std: float = 1e-4
    noise: str = "weight"
    noise_decay: float = 0.0
    calibration_lr: float = 0.1
    calibration_update: str = "descent"
    scheduler: str = "cosine"
    warmup: float = 0.0
    decay_at: tuple[float, ...] = (0.5, 0.75)
    decay_rate: float = 0.1
    seed: int = 0
    member: int = 0
    ema_decay: float | None = None
    mixed_precision: str = "no"
    compile: bool = False
    sync_batchnorm: bool = False
    branches_at_once: int | None = None
    channels_last: bool = False
    workers: int = 0
    save_every: int | None = None
    keep: int = 2

    def __post_init__(self) -> None:
        for name in ("crop_scale", "decay_at"):
            if isinstance(getattr(self, name), list):  # YAML knows no tuples
                object.__setattr__(self, name, tuple(getattr(self, name)))
        self._check_network_and_data()
        self._check_length()
        self._check_numbers()
        self._check_choices()
        self._check_images()
        if self.compile and self.branches_at_once is not None:
            raise ConfigurationError("compile and branches_at_once exclude each other; drop one")

    def _check_network_and_data(self) -> None:
        try:
            zoo_name(self.model)
        except ConfigurationError as error:
            known = ", ".join(timm.list_models("ccnn_*"))
            raise ConfigurationError(
                f"model must be one of {known}, or a plain network of timm's, got {self.model!r}"
            ) from error
        if not isinstance(self.data, str) or not self.data:
            raise ConfigurationError(f"data must be a name such as 'digits' or 'folder:PATH', got {self.data!r}")
        check_branches(self.branches)
        check_merge(self.merge)
        if not isinstance(self.objective, str) or self.objective not in _JOINT_SHARES:
            named = " or ".join(map(repr, _JOINT_SHARES))
            check_number(f"objective, which is {named} or a share,", self.objective, 0, 1)
        for name in ("start_from", "teacher"):
            path = getattr(self, name)
            if path is not None and (not isinstance(path, str) or not path):
                raise ConfigurationError(f"{name} must be the path of a checkpoint, got {path!r}")
        if not isinstance(self.model_kwargs, dict):
            raise ConfigurationError(f"model_kwargs must map names to values, got {self.model_kwargs!r}")

    def _check_length(self) -> None:
        if (self.epochs is None) == (self.iterations is None):
            raise ConfigurationError(
                f"give epochs or iterations, one of the two; got epochs={self.epochs!r}, iterations={self.iterations!r}"
            )

    def _check_numbers(self) -> None:
        for name in ("epochs", "iterations", "image_size", "branches_at_once", "save_every"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name), least=1)
        for name in ("batch_size", "accumulate", "evaluate_every", "keep"):
            check_integer(name, getattr(self, name), least=1)
        for name in ("crop_padding", "workers", "seed", "member"):
            check_integer(name, getattr(self, name), least=0)
        at_least_0 = "lr", "momentum", "weight_decay", "noise_std", "calibration_lr", "color_jitter", "mixup", "cutmix"
        for name in at_least_0:
            check_number(name, getattr(self, name), 0, float("inf"))
        for name in ("validation", "warmup", "label_smoothing"):
            check_number(name, getattr(self, name), 0, 1, below=True)
        for name in ("flip", "random_erasing", "teacher_share"):
            check_number(name, getattr(self, name), 0, 1)
        if self.ema_decay is not None:
            check_number("ema_decay", self.ema_decay, 0, 1, below=True)
        check_number("decay_rate", self.decay_rate, 0, 1, above=True)
        if not isinstance(self.decay_at, tuple) or not self.decay_at:
            raise ConfigurationError(f"decay_at must list shares of the run, as [0.5, 0.75], got {self.decay_at!r}")
        for share in self.decay_at:
            check_number("decay_at", share, 0, 1, above=True, below=True)
        if self.scheduler == "step" and len(self.decay_at) != 1:
            raise ConfigurationError(f"scheduler='step' takes one decay_at, its interval; got {self.decay_at!r}")

    def _check_choices(self) -> None:
        choices = {
            "optimizer": OPTIMIZERS,
            "noise": NOISES,
            "calibration_update": CALIBRATION_UPDATES,
            "scheduler": SCHEDULERS,
            "mixed_precision": PRECISIONS,
            **dict.fromkeys(_SWITCHES, (True, False)),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                listed = ", ".join(map(repr, allowed))
                # YAML reads an unquoted `no` as False.
                hint = "; quote 'no' in YAML" if name == "mixed_precision" else ""
                raise ConfigurationError(f"{name} must be one of {listed}, got {getattr(self, name)!r}{hint}")

    def _check_images(self) -> None:
        if self.crop_scale is not None:
            if not isinstance(self.crop_scale, tuple) or len(self.crop_scale) != 2:
                raise ConfigurationError(f"crop_scale must be two shares, such as [0.08, 1.0], got {self.crop_scale!r}")
            for share in self.crop_scale:
                check_number("crop_scale", share, 0, 1, above=True)
            if self.crop_padding:
                raise ConfigurationError(
                    f"crop_padding={self.crop_padding} and crop_scale={self.crop_scale} exclude each other; drop one"
                )
        if self.auto_augment is not None:
            check_auto_augment(self.auto_augment)

    @classmethod
    def load(cls, name_or_path: str | os.PathLike[str]) -> Recipe:
        """Read a packaged recipe by name, e.g. ``"digits"``, or a YAML file by path.

        Raises:
            ConfigurationError: there is no such recipe, or it is not valid.
        """
        path = Path(name_or_path).expanduser()
        packaged = files("ccnn_zoo") / "recipes"
        if path.suffix in (".yaml", ".yml") or os.path.isfile(path):
            return cls.from_yaml(path)
        names = sorted(Path(f.name).stem for f in packaged.iterdir() if f.name.endswith(".yaml"))
        if str(name_or_path) not in names:
            listed = ", ".join(names)
            raise ConfigurationError(f"no recipe {str(name_or_path)!r}; packaged are {listed}; or give a .yaml file")
        entry = packaged / f"{name_or_path}.yaml"
        return cls.from_mapping(_parse(entry.read_text(encoding="utf-8"), entry.name), entry.name)

    @classmethod
    def from_yaml(cls, path: str | os.PathLike[str]) -> Recipe:
        """Read a YAML file.

        Raises:
            ConfigurationError: it is missing, no mapping, has an unknown key or a value outside its range.
        """
        return cls.from_mapping(_parse(read_text(path), str(path)), str(path))

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any], source: str = "recipe") -> Recipe:
        """Make a recipe from names and values; ``source`` is what error messages call them.

        Raises:
            ConfigurationError: a name is unknown or missing, or a value is outside its range.
        """
        names = [f.name for f in fields(cls)]
        unknown = [str(name) for name in values if name not in names]
        if unknown:
            raise ConfigurationError(f"{source} has unknown keys {', '.join(unknown)}; known are {', '.join(names)}")
        required = [f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING]
        missing = [name for name in required if name not in values]
        if missing:
            raise ConfigurationError(f"{source} lacks {', '.join(missing)}; every recipe names them")
        try:
            return cls(**values)
        except ConfigurationError as error:
            raise ConfigurationError(f"{source}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Return all values as JSON and YAML hold them."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    def decisive(self) -> dict[str, Any]:
        """Return the values that decide the result of the run, as JSON holds them.

        Keys that are younger than the first runs are left out where they change nothing, so that those runs stay.
        """
        unchanged = [name for name, value in _ADDED_LATER.items() if getattr(self, name) == value]
        return {name: v for name, v in self.to_dict().items() if name not in (*_MACHINERY, *unchanged)}

    @property
    def joint_share(self) -> float:
        """Share in [0, 1] of the loss of the merged logits; the rest is the mean of the branches' own losses."""
        return _JOINT_SHARES[self.objective] if isinstance(self.objective, str) else self.objective

    def to_yaml(self, path: str | os.PathLike[str]) -> None:
        """Write all values, defaults too, atomically.

        Raises:
            RepositoryError: the folder cannot be written.
        """
        with replacing(path) as temporary:
            temporary.write_text(yaml.safe_dump(self.to_dict(), sort_keys=False), encoding="utf-8")


def _parse(text: str, source: str) -> Mapping[str, Any]:
    values = parsed_yaml(text, source)
    if not isinstance(values, dict):
        raise ConfigurationError(f"{source} must hold lines of `name: value`, got {type(values).__name__}")
    return values
