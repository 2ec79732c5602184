"""Run mutated files through the runtime, in a process that may die of them.

    python tests/fuzz_child.py models FOLDER SEED FIRST LAST    # or openvino, or pictures

Before each case its number goes to ``FOLDER/current``, after it one line to ``FOLDER/outcomes``: a result, an error of
the package, or what must not be. The file of a single case stays in FOLDER: ``... SEED 1234 1235``.
"""

from __future__ import annotations

import faulthandler
import io
import json
import random
import resource
import sys
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import fuzz_mutations as mutations
import numpy as np
import onnx
from fuzz_networks import networks
from PIL import Image

from ccnn_zoo import runtime
from ccnn_zoo.errors import CCNNError

HANGS_AFTER = 60  # seconds a case; the slowest takes a hundredth
MEMORY = 6 << 30  # bytes of address space: what asks for more fails here, not the machine
FORMATS = ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "JPEG2000", "ICO", "AVIF", "PPM", "QOI")


@dataclass(frozen=True)
class Case:
    """A mutated file: what was done to which original, its bytes, and whether loading it must be refused."""

    what: str
    data: bytes
    hostile: bool = False


def model_case(rng: random.Random) -> Case:
    """Mutate one of the networks: half of them field by field, a quarter byte by byte, a quarter with an attack."""
    name = rng.choice(list(NETWORKS))
    way = rng.random()
    if way < 0.25:
        data = NETWORKS[name].SerializeToString()
        for _ in range(rng.randint(1, 3)):
            data = mutations.mutate_bytes(data, rng) or b"\0"
        return Case(f"bytes of {name}", data)
    model = onnx.ModelProto()
    model.CopyFrom(NETWORKS[name])
    if way < 0.75:
        for _ in range(rng.randint(1, 4)):
            mutations.mutate_message(model, rng)
        return Case(f"fields of {name}", model.SerializeToString())
    attack = rng.choice(list(mutations.HOSTILE))
    mutations.HOSTILE[attack](model)
    return Case(f"{attack} in {name}", model.SerializeToString(), hostile=True)


def picture_case(rng: random.Random) -> Case:
    """Mutate the bytes of a picture; of a PNG also chunk by chunk."""
    name = rng.choice(list(PICTURES))
    data = PICTURES[name]
    if name.startswith("PNG") and rng.random() < 0.7:
        return Case(f"chunks of {name}", mutations.mutate_png(data, rng))
    for _ in range(rng.randint(1, 3)):
        data = mutations.mutate_bytes(data, rng) or b"\0"
    return Case(f"bytes of {name}", data)


def pictures() -> dict[str, bytes]:
    """Return small pictures in every format, and PNG and TIFF in every mode."""
    noise = np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8)
    picture = Image.fromarray(noise)
    sources = dict.fromkeys(FORMATS, picture)
    for mode in ("1", "L", "LA", "P", "RGBA", "I;16"):
        sources[f"PNG {mode}"] = (
            Image.fromarray(noise[..., 0].astype(np.uint16)) if mode == "I;16" else picture.convert(mode)
        )
    for mode in ("CMYK", "LAB", "I", "F"):
        sources[f"TIFF {mode}"] = Image.new(mode, (20, 12))
    encoded = {}
    for name, source in sources.items():
        stream = io.BytesIO()
        exif = Image.Exif()
        exif[0x0112] = 6
        source.save(stream, name.split()[0], **({"exif": exif} if name in ("PNG", "JPEG", "WEBP") else {}))
        encoded[name] = stream.getvalue()
    return encoded


def classify_with(path: Path, device: str = "cpu") -> str:
    """Load a network and classify a picture; NaN and infinity must not come out as probabilities."""
    classifier = runtime.load(path, device=device, threads=1)
    (result,) = classifier.classify(np.full((9, 30, 3), 77, np.uint8))
    return _checked(result)


def classify_picture(path: Path) -> str:
    (result,) = CLASSIFIER.classify(path)
    if result.error is None:
        return _checked(result)
    if str(path) not in result.error:
        raise AssertionError(f"the error names no file: {result.error}")
    return "refused"


def _checked(result: runtime.Classification) -> str:
    total = sum(p.probability for p in result.predictions)
    if not result.predictions or not 0.0 < total < 1.000001:
        raise AssertionError(f"no probabilities: {result}")
    return "accepted"


def outcome(case: Case, run: Callable[[Path], str], path: Path) -> tuple[str, str]:
    """Return accepted, refused or wrong, and the reason."""
    path.write_bytes(case.data)
    try:
        kind = run(path)
    except CCNNError as error:
        return "refused", f"{type(error).__name__}: {error}"
    except BaseException:
        return "wrong", traceback.format_exc(limit=-4)
    return ("wrong", "a hostile file was accepted") if case.hostile and kind == "accepted" else (kind, "")


def main() -> None:
    kind, folder, seed, first, last = sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:6])
    make, run = KINDS[kind]
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    warnings.simplefilter("ignore")
    np.seterr(all="ignore")
    inside = folder / "inside"
    inside.mkdir(exist_ok=True)
    (folder / "current").touch()
    (folder / "secret.bin").write_bytes(np.ones(1024, np.float32).tobytes())
    with (folder / "outcomes").open("a") as outcomes, (folder / "current").open("r+") as current:
        for number in range(first, last):
            case = make(random.Random(f"{make.__name__} {seed} {number}"))
            current.seek(0)
            current.write(f"{number} {case.what:60}\n")
            current.flush()
            faulthandler.dump_traceback_later(HANGS_AFTER, exit=True)
            result, reason = outcome(case, run, inside / "x.onnx")
            faulthandler.cancel_dump_traceback_later()
            outcomes.write(json.dumps([number, case.what, result, reason]) + "\n")
            outcomes.flush()


NETWORKS = networks()
PICTURES = pictures()
KINDS = {
    "models": (model_case, classify_with),
    "openvino": (model_case, lambda path: classify_with(path, "openvino")),
    "pictures": (picture_case, classify_picture),
}

if __name__ == "__main__":
    network = Path(sys.argv[2]) / "network.onnx"
    onnx.save(NETWORKS["convolutions"], network)
    CLASSIFIER = runtime.load(network, device="cpu", threads=1)
    main()
