"""What people type for a network: repositories of the Hub in all their spellings, shipped names, files of weights."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from ccnn_zoo.errors import ConfigurationError

PICKLES = (".bin", ".ckpt", ".joblib", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth", ".tar")
"""Suffixes of formats that are, or may hold, pickles: loading one can run any code."""

_HUB_ID = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:@(.+))?")
_PREFIXES = ("hf-hub:", "hf_hub:", "hf://")  # timm's, and huggingface_hub's file system
_HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
_PULL_REQUEST = re.compile(r"refs/pr/\d+")


class HubName(NamedTuple):
    """A repository of the Hub, and which of its states: a branch, tag or commit; None is ``main``."""

    repo_id: str
    revision: str | None


def hub_name(text: str, revision: str | None = None) -> HubName | None:
    """Return the repository of the Hub that a text names, or None if it has no form of such a name.

    Args:
        text: ``org/name``, ``org/name@revision``, either after ``hf-hub:`` as timm writes it, or the address of a
            repository's page, also at a revision.
        revision: what was said beside it.

    Raises:
        ConfigurationError: it is an address, but of no repository of networks; or it names another revision.
    """
    for prefix in _PREFIXES:
        text = text.removeprefix(prefix)
    if text.startswith(("http://", "https://")) or text.partition("/")[0].lower() in _HOSTS:
        found = _of_address(text)
    else:
        match = _HUB_ID.fullmatch(text)
        if match is None:
            return None
        found = HubName(match[1], match[2])
    if found.revision and revision and found.revision != revision:
        raise ConfigurationError(f"{text!r} names the revision {found.revision}, and revision={revision!r}: give one")
    return found._replace(revision=found.revision or revision)


def _of_address(text: str) -> HubName:
    """Read the address of a page; links to the Hub are what browsers give."""
    address = urlsplit(text if "://" in text else f"https://{text}")
    hosts = {*_HOSTS, urlsplit(os.environ.get("HF_ENDPOINT", "")).hostname}
    if address.hostname not in hosts:
        raise ConfigurationError(f"{text!r} is no address of the Hugging Face Hub. Download it and name the file.")
    owner, name, kind, revision = ([*address.path.strip("/").split("/", 3), "", "", ""])[:4]
    revision = unquote(revision)
    match = _HUB_ID.fullmatch(f"{owner}/{name}")
    at_revision = kind == "tree" and revision and ("/" not in revision or _PULL_REQUEST.fullmatch(revision))
    if not match or owner in ("datasets", "spaces", "models") or not (at_revision or not kind):
        raise ConfigurationError(
            f"{text!r} is the address of something else than a repository. Name the repository: org/name, or "
            "org/name@revision."
        )
    return HubName(match[1], revision or None)


def shipped_weights(name: str) -> Path | None:
    """Return the trained weights that come with the package under timm's name, e.g. ``ccnn_resnet18_cifar.mnist``."""
    path = Path(__file__).parents[1] / "checkpoints" / f"{name}.safetensors"
    return path if re.fullmatch(r"\w{1,100}\.\w{1,100}", name) and path.is_file() else None


def refuse_weights(path: Path) -> None:
    """Refuse a file of weights where an exported network is wanted, or a pickle anywhere, with the way to go.

    Raises:
        ConfigurationError: by its name the file is such.
    """
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        raise ConfigurationError(
            f"{path} holds trained weights, no exported network: run `ccnn export {path} -o model.onnx` first, then "
            "name model.onnx"
        )
    if suffix in PICKLES:
        raise ConfigurationError(
            f"{path} is a pickle, which may run any code when it is loaded, so no command loads it. If you trust it: "
            f"`model = timm.create_model(NAME, checkpoint_path={str(path)!r})`, then "
            "`ccnn_zoo.export.to_onnx(model.eval(), 'model.onnx')`, or `ccnn_zoo.calibrate(model)` as in "
            "docs/finetune.md."
        )
