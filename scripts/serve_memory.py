"""Measure what memory a replica of ``ccnn serve`` takes for batches of large pictures, and what reduced JPEGs change.

python scripts/serve_memory.py    writes docs/serving_memory.md; real pictures are those of CCNN_TEST_DATA
"""

from __future__ import annotations

import argparse
import io
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from urllib.request import Request, urlopen

import numpy as np
from bench_serve import Service, served
from PIL import Image
from real_data import real_data

DOCUMENT = Path(__file__).parent.parent / "docs" / "serving_memory.md"
SIDE = 6900  # 47.6 megapixels, just below the service's limit
BATCH = 8
FEW = 2  # of formats whose pictures take seconds each
RESTED_S = 5.0

FORMATS: dict[str, Callable[[io.BytesIO], None]] = {
    "PNG of 64 x 64, for comparison": lambda stream: Image.new("RGB", (64, 64)).save(stream, "PNG"),
    "PNG": lambda stream: _picture("RGB").save(stream, "PNG"),
    "PNG, transparent": lambda stream: _picture("RGBA").save(stream, "PNG"),
    "PNG, 16-bit grey": lambda stream: _picture("I;16").save(stream, "PNG"),
    "JPEG": lambda stream: _picture("RGB").save(stream, "JPEG"),
    "JPEG, progressive, to be turned": lambda stream: _picture("RGB").save(
        stream, "JPEG", progressive=True, subsampling=0, exif=_turned()
    ),
    "TIFF": lambda stream: _picture("RGB").save(stream, "TIFF", compression="tiff_deflate"),
    "WebP": lambda stream: _picture("RGB").save(stream, "WEBP", method=0),
}


WHOLE_BATCHES = {*list(FORMATS)[:2], "JPEG"}


def _picture(mode: str) -> Image.Image:
    return Image.new(mode, (SIDE, SIDE))


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def measured(service: Service, name: str) -> str:
    """Post a batch of pictures of one kind; return the row of the replica's memory."""
    stream = io.BytesIO()
    FORMATS[name](stream)
    picture = stream.getvalue()
    (replica,) = service.replicas()
    before = _memory(replica.pid, "VmRSS")
    Path(f"/proc/{replica.pid}/clear_refs").write_text("5")  # the peak counts from now

    count = BATCH if name in WHOLE_BATCHES else FEW

    def post(_: int) -> int:
        with urlopen(Request(f"{service.url}/classify", picture, {"Content-Type": "application/octet-stream"})) as done:
            return done.status

    with ThreadPoolExecutor(BATCH) as pool:
        statuses = set(pool.map(post, range(count)))
    peak = _memory(replica.pid, "VmHWM")
    time.sleep(RESTED_S)
    after = _memory(replica.pid, "VmRSS")
    if statuses != {200} or service.replicas()[0].pid != replica.pid:
        raise SystemExit(f"{name}: statuses {statuses}, or another replica answered")
    return f"| {name} | {count} | {len(picture):,} | {before:.0f} | {peak:.0f} | {peak - before:.0f} | {after:.0f} |"


def _memory(process: int, name: str) -> float:
    """Return a figure of Linux about a process, in MB."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024 / 1e6


def reduced() -> tuple[int, float, float]:
    """Compare JPEGs that are decoded at reduced scale with whole ones, after the preprocessing.

    Returns:
        pictures, share of the values that differ, and the largest difference in grey levels.
    """
    from ccnn_zoo.metadata import ModelMetadata
    from ccnn_zoo.runtime._preprocess import preprocess

    # Neither mean nor deviation: the values are grey levels.
    metadata = ModelMetadata("plain", 1, ("a", "b"), (3, 224, 224), (0.0,) * 3, (1 / 255,) * 3, crop_pct=0.875)
    differences = []
    for path in sorted((real_data() / "imagenet-sample").rglob("*.JPEG"))[:25]:
        with Image.open(path) as photo:
            large = photo.convert("RGB").resize((4 * photo.width, 4 * photo.height), Image.Resampling.BICUBIC)
        stream = io.BytesIO()
        large.save(stream, "JPEG", quality=90)
        whole, small = (Image.open(io.BytesIO(stream.getvalue())) for _ in range(2))
        small.draft("RGB", (512, 512))
        differences.append(np.abs(preprocess(whole, metadata) - preprocess(small, metadata)))
    return len(differences), float(np.mean([(d > 0.5).mean() for d in differences])), float(np.max(differences))


def exported(folder: Path) -> Path:
    """Export the network of the document."""
    import timm
    import torch

    import ccnn_zoo  # noqa: F401, registers the networks
    from ccnn_zoo.export import to_onnx

    torch.manual_seed(0)
    labels = [f"class {number}" for number in range(1000)]
    to_onnx(timm.create_model("ccnn_resnet18", branches=2), folder / "network.onnx", labels=labels)
    return folder / "network.onnx"


def document(rows: list[str]) -> Iterator[str]:
    """Yield the lines of the document."""
    count, share, largest = reduced()
    packages = ", ".join(f"{package} {version(package)}" for package in ("pillow", "ray", "onnxruntime-gpu"))
    yield "# Memory of a replica of ccnn serve"
    yield ""
    yield (
        f"Written by `scripts/serve_memory.py` (Linux, Python {platform.python_version()}, {packages}): `ccnn serve` "
        f"with one replica of `ccnn_resnet18`, K=2, `--batch-size {BATCH}`; requests at once, each one picture "
        f"of {SIDE} x {SIDE} pixels, all black. Megabytes of the replica's process: before, the most meanwhile, by how "
        f"much that is more, and {RESTED_S:g} seconds later. The small pictures show what the network itself takes for "
        "a batch; onnxruntime keeps that. Pillow holds a decoded picture of this size in "
        f"{SIDE * SIDE * 4 / 1e6:.0f} MB."
    )
    yield ""
    yield "| format | pictures | bytes of one | before | peak | peak more | after |"
    yield "|---|---|---|---|---|---|---|"
    yield from rows
    yield ""
    yield "## JPEGs at reduced scale"
    yield ""
    yield (
        f"libjpeg can decode at a half, a quarter or an eighth of the size, which takes less memory and time "
        f"(`Image.draft`). After the preprocessing to 224 x 224, {100 * share:.0f} % of the values of {count} "
        "photographs of about 2000 x 1500 pixels differ from those of the whole picture, by up to "
        f"{largest:.0f} grey levels. The runtime promises timm's pixels to the bit, so the service decodes whole "
        "pictures."
    )


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=DOCUMENT)
    arguments = parser.parse_args()
    arguments.replicas, arguments.threads = 1, 1
    from documents import write

    with tempfile.TemporaryDirectory() as folder:
        options = [f"--batch-size={BATCH}", "--batch-wait=1", "--timeout=900"]
        with served(exported(Path(folder)), arguments, *options) as service:
            rows = []
            for name in FORMATS:
                rows.append(measured(service, name))
                print(rows[-1], flush=True)
    write(arguments.output, document(rows))


if __name__ == "__main__":
    main()
