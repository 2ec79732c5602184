"""onnxruntime-web, which runs networks in browsers: one version of npm's package, of which each file has a known sum.

It does not come with this package: the files have 14 MB, 41 MB with WebGPU. npm brings them when a site is made.
"""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterable
from hashlib import sha256
from pathlib import Path

from ccnn_zoo.errors import ConfigurationError, IntegrityError, RepositoryError

VERSION = "1.30.0"

WASM = {
    "ort.wasm.min.mjs": "219e6a1fc8a9938268d18efca3c91d310bd2f4a59bbd13744df5b2b7fc6cee3b",
    "ort-wasm-simd-threaded.mjs": "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
WEBGPU = {
    "ort.webgpu.min.mjs": "3dffff71811bc13a3a3d9591c57ca5ee5735b8f5f3eaf789510b02bb040ae3a0",
    "ort-wasm-simd-threaded.asyncify.mjs": "3d1c85995364bb643302fc6fd877a0c3ba5ae72401815e0f24828a53d9191e28",
    "ort-wasm-simd-threaded.asyncify.wasm": "39f9f0894d478800487ed9f7dbe92618498db320cf55c8e3d89adff8dce658da",
}
"""Files of the package's folder ``dist``, with their SHA-256."""

_PACKAGE = f"onnxruntime-web@{VERSION}"


def copy_runtime(target: Path, *, webgpu: bool = False, folder: Path | None = None) -> None:
    """Put the files of onnxruntime-web into a folder, compared with their sums.

    Args:
        target: an existing folder.
        webgpu: those for WebGPU too.
        folder: where the package lies, e.g. ``node_modules/onnxruntime-web``; None lets npm fetch it.

    Raises:
        ConfigurationError: npm is wanted and not installed, or the folder does not hold the package.
        RepositoryError: npm could not fetch it, or a file cannot be read.
        IntegrityError: a file is not that of the known version.
    """
    wanted = WASM | (WEBGPU if webgpu else {})
    if folder is not None:
        _copy(target, wanted, _reader(folder))
        return
    with tempfile.TemporaryDirectory(prefix="ccnn-web-") as work, tarfile.open(_packed(Path(work))) as archive:
        _copy(target, wanted, lambda name: _member(archive, f"package/dist/{name}"))


def _copy(target: Path, wanted: dict[str, str], read: Callable[[str], bytes]) -> None:
    for name, expected in wanted.items():
        content = read(name)
        if sha256(content).hexdigest() != expected:
            raise IntegrityError(f"{name} is not that of {_PACKAGE}. Fetch it anew: npm install {_PACKAGE}")
        (target / name).write_bytes(content)


def _reader(folder: Path) -> Callable[[str], bytes]:
    places: Iterable[Path] = (folder, folder / "dist", folder / "node_modules" / "onnxruntime-web" / "dist")
    found = next((place for place in places if (place / next(iter(WASM))).is_file()), None)
    if found is None:
        raise ConfigurationError(
            f"{folder} holds no onnxruntime-web: name the folder in which you ran npm install {_PACKAGE}, or leave "
            "--runtime out"
        )

    def read(name: str) -> bytes:
        try:
            return (found / name).read_bytes()
        except OSError as error:
            raise RepositoryError(f"cannot read {found / name}: {error.strerror}. npm install {_PACKAGE}") from error

    return read


def _packed(work: Path) -> Path:
    """Let npm fetch the package into a folder; where from is npm's own setting."""
    npm = shutil.which("npm")
    if npm is None:
        raise ConfigurationError(
            f"onnxruntime-web comes from npm, which is not installed. Install it (Node.js brings it), or fetch "
            f"{_PACKAGE} elsewhere and name its folder: --runtime FOLDER"
        )
    command = [npm, "pack", _PACKAGE, "--ignore-scripts", "--prefer-offline", "--loglevel=error"]
    run = subprocess.run(  # noqa: S603, a constant command
        command, cwd=work, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
    )
    packed = work / f"onnxruntime-web-{VERSION}.tgz"
    if run.returncode or not packed.is_file():
        why = " ".join(run.stderr.split())[-300:] or f"exit code {run.returncode}"
        raise RepositoryError(f"npm cannot fetch {_PACKAGE}: {why}. Check npm's settings, or name --runtime FOLDER.")
    return packed


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    try:
        stream = archive.extractfile(name)
    except (KeyError, tarfile.TarError) as error:
        raise IntegrityError(f"npm's {_PACKAGE} has no {name}. Check npm's settings.") from error
    if stream is None:
        raise IntegrityError(f"npm's {_PACKAGE} has no file {name}. Check npm's settings.")
    return stream.read()
