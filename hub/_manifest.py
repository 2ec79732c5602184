"""The manifest of a repository: what each file must be, to the bit.

``manifest.json`` is ``{"format": 1, "files": {path: {"sha256": ..., "size": ...}}, ...}``; its other keys describe
the network (``architecture``, ``branches``, ``parameters``, ``record``, ``export``, ``further_exports``,
``confidence``, ``versions``).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ccnn_zoo._files import replacing, sha256_of
from ccnn_zoo.errors import IntegrityError, RepositoryError

from ._contents import refused_content, refused_numbers
from ._names import MANIFEST, is_pickle, is_wanted

FORMAT = 1
CONFIDENCE = "confidence"
"""Key of the table from an ONNX file's path to the numbers that it carries, where any does."""

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class FileSum:
    """What a file must be.

    Args:
        sha256: SHA-256 of its content, in lower-case hexadecimal.
        size: bytes.
    """

    sha256: str
    size: int


@dataclass(frozen=True)
class Manifest:
    """Files of a repository and what it holds.

    Args:
        files: path in the repository, with forward slashes, to its sum.
        details: the other keys of ``manifest.json``.
    """

    files: Mapping[str, FileSum]
    details: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, folder: Path, paths: Iterable[str], details: Mapping[str, Any]) -> Manifest:
        """Return the manifest of these files as they are now."""
        files = {path: FileSum(sha256_of(folder / path), (folder / path).stat().st_size) for path in sorted(paths)}
        return cls(files, details)

    def write(self, folder: Path) -> None:
        """Write ``manifest.json``, atomically."""
        files = {path: asdict(entry) for path, entry in self.files.items()}
        text = json.dumps({"format": FORMAT, "files": files, **self.details}, indent=2, allow_nan=False)
        with replacing(folder / MANIFEST) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")


def git_blob_id(content: bytes) -> str:
    """Return the name that git, and so the Hub, gives a small file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def read_manifest(folder: Path, repo_id: str) -> Manifest:
    """Read ``manifest.json`` of a repository, trusting nothing in it.

    Args:
        folder: the repository on disk.
        repo_id: its name, for the messages.

    Raises:
        RepositoryError: there is no manifest, so that the folder is no repository of ours.
        IntegrityError: the manifest is malformed, of another format, or names a path outside the folder or a pickle.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise RepositoryError(
            f"{repo_id} is no ccnn-zoo repository: it has no {MANIFEST}. `ccnn publish` writes one with its files."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise _malformed(repo_id, f"is not JSON ({error})") from error
    if not isinstance(content, dict) or not isinstance(content.get("files"), dict):
        raise _malformed(repo_id, "has no table of files")
    if type(content.get("format")) is not int or content["format"] != FORMAT:  # to Python, True is 1 and so is 1.0
        raise IntegrityError(
            f"{repo_id}: {MANIFEST} is of format {content.get('format')!r}, this version reads format {FORMAT}. "
            "Upgrade ccnn-zoo, or publish the network again."
        )
    files = {name: _file_sum(repo_id, name, entry) for name, entry in content["files"].items()}
    numbers = content.get(CONFIDENCE, {})
    if not isinstance(numbers, dict) or not numbers.keys() <= files.keys():
        raise _malformed(repo_id, f"has in {CONFIDENCE!r} no table by its files")
    return Manifest(files, {key: value for key, value in content.items() if key not in ("format", "files")})


def _file_sum(repo_id: str, name: str, entry: object) -> FileSum:
    _check_path(repo_id, name)
    sha256, size = (entry.get("sha256"), entry.get("size")) if isinstance(entry, dict) else (None, None)
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256) or type(size) is not int or size < 0:
        raise _malformed(repo_id, f"has no valid sha256 and size for {name!r}: {entry!r}")
    return FileSum(sha256, size)


def _check_path(repo_id: str, name: str) -> None:
    """Refuse all but plain relative paths; what another system reads as a drive or a separator too."""
    path = PurePosixPath(name)
    plain = path.parts and path.as_posix() == name and not path.is_absolute() and ".." not in path.parts
    if not plain or any(character in "\\:" or ord(character) < 32 for character in name) or name == MANIFEST:
        raise IntegrityError(
            f"{repo_id}: {MANIFEST} names {name!r}, which is no plain path inside the repository. Do not use it."
        )
    if is_pickle(name):
        raise IntegrityError(
            f"{repo_id}: {MANIFEST} names {name!r}, which may hold a pickle, and loading one can run any code. "
            "Do not use it; a repository of ours holds safetensors and ONNX files only."
        )


def _malformed(repo_id: str, why: str) -> IntegrityError:
    return IntegrityError(f"{repo_id}: {MANIFEST} {why}. Publish the network again.")


def refuse_link_out(path: Path, within: Collection[Path], repo_id: str) -> None:
    """Refuse a file that nothing vouches for and that is a link to elsewhere.

    Raises:
        IntegrityError: it lies in none of the folders ``within``.
    """
    target = Path(os.path.realpath(path))  # of a loop of links resolve() raises
    if not any(target.is_relative_to(os.path.realpath(root)) for root in within):
        raise IntegrityError(f"{repo_id}: {path.name} is a link out of the repository, to {target}. Do not use it.")


def sums_of(folder: Path, paths: Iterable[str]) -> dict[str, str]:
    """Return the SHA-256 of each file; of one that cannot be read, the empty one."""
    sums = {}
    for path in paths:
        try:
            sums[path] = sha256_of(folder / path)
        except OSError:
            sums[path] = ""
    return sums


def damaged_files(
    folder: Path, files: Mapping[str, FileSum], *, within: Collection[Path] | None
) -> Iterator[tuple[str, str]]:
    """Yield (path, what is wrong) for every file that is not what the manifest says.

    Args:
        folder: the repository on disk.
        files: the files to compare, paths as :func:`read_manifest` accepted them.
        within: the folders that links may lead into; None allows all.
    """
    roots = None if within is None else [root.resolve() for root in within]
    for name, expected in files.items():
        path = folder / name
        try:
            status = path.stat()
            inside = roots is None or any(path.resolve().is_relative_to(root) for root in roots)
        except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links
            missing = isinstance(error, FileNotFoundError | NotADirectoryError)
            yield name, "is missing" if missing else f"cannot be read ({error})"
            continue
        if not inside:
            yield name, f"is a link out of the repository, to {path.resolve()}"
        elif not stat.S_ISREG(status.st_mode):
            yield name, "is no regular file"
        elif status.st_size != expected.size:
            yield name, f"has {status.st_size:,} bytes instead of {expected.size:,}"
        else:
            yield from _compare_sums(name, path, expected)


def _compare_sums(name: str, path: Path, expected: FileSum) -> Iterator[tuple[str, str]]:
    try:
        found = sha256_of(path)
    except OSError as error:
        yield name, f"cannot be read ({error.strerror})"
        return
    if found != expected.sha256:
        yield name, f"has SHA-256 {found[:12]}… instead of {expected.sha256[:12]}…"


def refused_files(folder: Path, manifest: Manifest, files: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield (path, why) for every file that is what the manifest says, and must not be loaded all the same.

    What an ONNX file carries of confidence must be what the manifest says, where it says any.
    """
    said = manifest.details.get(CONFIDENCE)
    for name in files:
        problem = refused_content(folder / name, name)
        if problem is None and said is not None and name.endswith(".onnx"):
            problem = refused_numbers(folder / name, said.get(name))
        if problem:
            yield name, problem


def unlisted_files(folder: Path, manifest: Manifest) -> Iterator[str]:
    """Yield the paths of files that would be loaded, though the manifest does not vouch for them."""
    for name in all_files(folder):
        if name not in manifest.files and is_wanted(name):
            yield name


def all_files(folder: Path) -> Iterator[str]:
    """Yield the paths of all files below ``folder``; folders that are links are named, not entered."""
    for root, folders, names in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(root, name))]
        for name in [*names, *links]:
            yield Path(root, name).relative_to(folder).as_posix()


def verify_folder(folder: Path, repo_id: str) -> Manifest:
    """Compare every file of a repository on disk with its manifest, and return the manifest.

    Raises:
        RepositoryError: the folder does not exist or is no repository of ours.
        IntegrityError: a file differs, is missing, is not listed, leads out of the folder, may hold a pickle, or is an
            ONNX file that points elsewhere.
    """
    if not os.path.isdir(folder):
        raise RepositoryError(f"{repo_id} does not exist: {folder.absolute()} is no folder. Check the spelling.")
    refuse_link_out(folder / MANIFEST, [folder], repo_id)
    manifest = read_manifest(folder, repo_id)
    for name in all_files(folder):
        if is_pickle(name):
            raise IntegrityError(
                f"{repo_id} holds {name}, which may be a pickle, and loading one can run any code. Remove that file."
            )
    for name, problem in damaged_files(folder, manifest.files, within=[folder]):
        raise IntegrityError(f"{repo_id}: {name} {problem}. Restore that file, or publish the network again.")
    for name in unlisted_files(folder, manifest):
        raise IntegrityError(f"{repo_id}: {name} is not in {MANIFEST}. Remove it, or publish the network again.")
    for name, problem in refused_files(folder, manifest, manifest.files):
        raise IntegrityError(f"{repo_id}: {name} {problem}. Do not use it; export and publish the network again.")
    return manifest
