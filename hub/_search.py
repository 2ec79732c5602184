"""Search: what networks there are on the Hub, with what was measured of them."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass

from ccnn_zoo.errors import ConfigurationError, IntegrityError, RepositoryError

from . import _remote
from ._download import read_fetched_manifest
from ._manifest import Manifest
from ._names import PRECISIONS, TAG
from ._retry import persistently

logger = logging.getLogger("ccnn_zoo.hub")

_ARCHITECTURE = re.compile(r"[\w.-]+")


@dataclass(frozen=True)
class FoundNetwork:
    """A network on the Hub, as its manifest describes it.

    Args:
        repo_id: ``"org/name"``.
        commit: the commit that was looked at.
        architecture: timm name.
        branches: number K of branches.
        metrics: what was measured, by name, in the unit that the name says.
        trained_parameters: parameters with w and R.
        deployed_parameters: parameters after folding.
        precisions: those of its ONNX files.
        size: bytes of all its files.
    """

    repo_id: str
    commit: str
    architecture: str
    branches: int
    metrics: Mapping[str, float]
    trained_parameters: int
    deployed_parameters: int
    precisions: tuple[str, ...]
    size: int


def search(author: str, *, token: _remote.Token = None) -> list[FoundNetwork]:
    """Return the networks that a user or an organisation has published with ccnn-zoo, in the order of their names.

    The Hub finds them by the tag of their cards; all else is read from their manifests. A repository that has the tag
    and no proper manifest is left out, which the logger ``ccnn_zoo.hub`` says.

    Args:
        author: the user or the organisation.
        token: see :func:`ccnn_zoo.hub.download`; with one that may read them, private networks are found too.

    Raises:
        ConfigurationError: ``author`` is no name.
        RepositoryError: the Hub cannot be reached.
    """
    if not author or "/" in author:
        raise ConfigurationError(f"author must be a user or an organisation, got {author!r}")
    with _remote.explained(author):
        api = _remote.client(token or False)
        models = persistently(lambda: list(api.list_models(author=author, filter=TAG, expand=["sha"])))
    found = []
    for model in sorted(models, key=lambda model: model.id):
        try:
            found.append(_look_at(model.id, model.sha, token))
        except (IntegrityError, RepositoryError) as error:
            logger.warning("left out: %s", error)
    return found


def _look_at(repo_id: str, commit: str, token: _remote.Token) -> FoundNetwork:
    folder = _remote.fetch(repo_id, commit, token, patterns=())
    manifest = read_fetched_manifest(folder, repo_id, commit, token)
    try:
        return _described(repo_id, commit, manifest)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        problem = f"{repo_id}: its manifest does not describe a network ({error!r}). Publish it again."
        raise IntegrityError(problem) from error


def _described(repo_id: str, commit: str, manifest: Manifest) -> FoundNetwork:
    details = manifest.details
    if not _ARCHITECTURE.fullmatch(details["architecture"]) or not PRECISIONS.keys() >= details["networks"].keys():
        raise ValueError("no name of a network, or of a precision")  # they are shown, and could say anything
    return FoundNetwork(
        repo_id=repo_id,
        commit=commit,
        architecture=details["architecture"],
        branches=int(details["branches"]),
        metrics={str(name): float(value) for name, value in details["record"]["metrics"].items()},
        trained_parameters=int(details["parameters"]["shared"]),
        deployed_parameters=int(details["parameters"]["folded"]),
        precisions=tuple(details["networks"]),
        size=sum(file.size for file in manifest.files.values()),
    )
