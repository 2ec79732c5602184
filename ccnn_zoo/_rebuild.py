"""From what a file says of its network to the network: the one way by which configuration of others builds anything.

Only names that timm's registry holds are built, without trained weights, from the arguments of
:mod:`ccnn_zoo._arguments`. What would be built is compared with the tensors at hand, by name and shape, before any
memory is taken for it: a network is never larger than the file that it comes from.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import timm
import torch
from torch import Tensor, nn

import ccnn_zoo.models  # noqa: F401, registers the networks that a file may name
from ccnn_zoo._arguments import ARGUMENTS, WORD, checked, described, named
from ccnn_zoo.errors import ConfigurationError

_Network = TypeVar("_Network", bound=nn.Module)

_UNSAVED = 2**28
"""Largest number of values in buffers that no file holds, such as tables of positions."""


def build(name: object, arguments: object, pretrained_cfg: object) -> nn.Module:
    """Return a network with fresh weights, from values that nobody vouches for.

    Args:
        name: timm name, without a tag.
        arguments: of ``timm.create_model``.
        pretrained_cfg: of the same; what it says of weights is left out.

    Raises:
        ConfigurationError: timm knows no such name, an argument is not allowed or out of range, or the network refuses
            them.
    """
    name = registered(name)
    arguments = checked(arguments, ARGUMENTS, f"the arguments of {name}")
    cfg = {**described(pretrained_cfg), "architecture": name}
    return created(name, pretrained=False, pretrained_cfg=cfg, **arguments)


def created(name: str, **arguments: Any) -> nn.Module:
    """Return ``timm.create_model(name, **arguments)``, whose errors are ours.

    Raises:
        ConfigurationError: the network refuses the arguments.
    """
    with refused_by(name, {key: value for key, value in arguments.items() if not key.startswith("pretrained")}):
        return timm.create_model(name, **arguments)


@contextmanager
def refused_by(name: str, arguments: Mapping[str, Any]) -> Iterator[None]:
    """What timm's and torchvision's networks raise on arguments that do not go together is not documented: anything.

    Raises:
        ConfigurationError: in its place; names the network and the arguments.
    """
    try:
        yield
    except ConfigurationError:
        raise
    except Exception as error:
        raise ConfigurationError(
            f"{name} refuses {reprlib.repr(dict(arguments))} ({type(error).__name__}: {error}); remove what it does "
            "not know, and give it what goes together"
        ) from error


def rebuild(config: object, weights: Mapping[str, Tensor]) -> nn.Module:
    """Return the network that timm's ``config.json`` describes, with its weights.

    Args:
        config: the parsed file.
        weights: all tensors of the network, by name.

    Raises:
        ConfigurationError: it cannot be built, or the weights are those of another network.
    """
    return filled(_builder(config), weights)


def check_describes(config: object, weights: Mapping[str, Tensor]) -> None:
    """Refuse a ``config.json`` by which :func:`rebuild` would not get the network of these weights.

    Raises:
        ConfigurationError: as :func:`rebuild`.
    """
    check_builds(_builder(config), weights)


def _builder(config: object) -> Callable[[], nn.Module]:
    config = named(config, "config.json")
    missing = [name for name in ("architecture", "pretrained_cfg") if name not in config]
    if missing:
        raise ConfigurationError(f"config.json lacks {' and '.join(missing)}")
    about = (config["architecture"], config.get("model_args") or {}, config["pretrained_cfg"])
    return lambda: build(*about)


def filled(make: Callable[[], _Network], weights: Mapping[str, Tensor]) -> _Network:
    """Return the network that ``make`` builds, holding ``weights``.

    Raises:
        ConfigurationError: they are those of another network; names the first tensor that differs.
    """
    check_builds(make, weights)
    network = make()
    network.load_state_dict(weights)
    return network


def check_builds(make: Callable[[], nn.Module], weights: Mapping[str, Tensor]) -> None:
    """Refuse, before any memory is taken for it, a network that is not the one whose tensors ``weights`` are.

    Raises:
        ConfigurationError: names the first tensor that differs.
    """
    with torch.device("meta"):
        planned = make()
    own = planned.state_dict()
    check_same_tensors(own, weights)
    unsaved = sum(buffer.numel() for name, buffer in planned.named_buffers() if name not in own)
    if unsaved > _UNSAVED:
        raise ConfigurationError(f"the network computes tables of {unsaved:,} values, more than {_UNSAVED:,}")


def check_same_tensors(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> None:
    """Refuse weights that are those of another network than the one whose state ``own`` is.

    Raises:
        ConfigurationError: names the first tensor that differs in name or shape.
    """
    shapes, given = ({name: tensor.shape for name, tensor in state.items()} for state in (own, weights))
    differing = sorted(name for name in shapes.keys() | given.keys() if shapes.get(name) != given.get(name))
    if differing:
        raise ConfigurationError(
            f"the weights are not those of the network that is described: {reprlib.repr(differing[0])} and "
            f"{len(differing) - 1} more tensors differ in name or shape"
        )


def registered(name: object) -> str:
    """Return ``name`` if timm's registry holds it: no address, no path, no tag of weights.

    Raises:
        ConfigurationError: it does not.
    """
    if not (WORD.holds(name) and timm.is_model(name)):
        raise ConfigurationError(
            f"{reprlib.repr(name)} is no network that timm or the zoo knows; `ccnn list` and timm.list_models() list "
            "the names"
        )
    return name


def parsed(text: str | bytes, what: str) -> dict[str, Any]:
    """Return a JSON object.

    Raises:
        ConfigurationError: the text is none.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"{what} is not JSON: {error}") from error
    return dict(named(value, what))
