"""Run the demo and write its figures and picture into README.md and docs/.

    python scripts/readme_figures.py

Trains anew in a temporary folder, so that the times are real.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from documents import replacing, write_between

from ccnn_zoo.demo import DemoReport, NetworkReport, run

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = run(folder)
        with replacing(ROOT / "docs" / "demo.png") as temporary:
            shutil.copyfile(report.picture, temporary)
    write_between(ROOT / "README.md", "demo", [figures(report)])


def figures(report: DemoReport) -> str:
    """Return the table and the sentence under it."""
    versions = ", ".join(f"{name} {report.versions[name]}" for name in ("python", "torch", "timm"))
    errors = [network.test_error_percent for network in report.plain]
    plain = replace(
        report.plain[0], test_error_percent=fmean(errors), seconds=fmean(network.seconds for network in report.plain)
    )
    return f"""\
| network | K | trained parameters | deployed parameters | test error | training |
|---|---|---|---|---|---|
{row(f"plain, mean of {len(errors)} ({min(errors):.2f} to {max(errors):.2f} %)", plain)}
{row("these, joined: what is published", report.ensemble)}
{row("calibrated: branches that share one weight", report.calibrated)}

{report.data}: {report.learned_from} to learn from, {report.doubt.fitted_on} to fit confidence on, {report.images} to
test; {report.epochs} epochs, seed {report.seed}. One seed on so few digits decides little by itself: of
[three seeds](docs/results/ablation_small_digits.md) of a like task the ensemble errs least, too, and the calibrated
network as often as the plain one. The downloaded ONNX network, on
{report.provider}, is wrong on {report.onnx_error_percent:.2f} % and gives the class that torch gives on
{report.same_class_as_torch} of {report.images} digits. What this one file knows of its own answers:

{doubt(report)}

{os.cpu_count()} cores of {platform.machine()}; {versions}."""


def doubt(report: DemoReport) -> str:
    """Return what was asked and what was kept."""
    found, images = report.doubt, report.images
    share = f"{100 * found.covered / images:.1f} %"
    wrong = f"{100 * found.wrong / found.decided:.1f} %" if found.decided else "none"
    rows = [
        ("asked", f"kept on the {images} test digits"),
        ("---", "---"),
        (
            f"sets of classes that hold the right one for {100 * found.coverage:g} %",
            f"{share} of sets hold it, {found.mean_set_size:.2f} classes each",
        ),
        (
            f"decide only where at most {100 * found.max_risk:g} % are wrong",
            f"decides {found.decided}, {wrong} of these wrong; leaves {images - found.decided} to a person",
        ),
        (
            "tell pictures that are no digits: less like digits than 95 % of the held-out ones, by one of two scores",
            f"tells {100 * found.noise_told:.0f} % of pictures of noise, and {100 * found.digits_told:.1f} % of digits",
        ),
    ]
    return "\n".join(f"| {asked} | {kept} |" for asked, kept in rows)


def row(name: str, network: NetworkReport) -> str:
    return (
        f"| {name} | {network.branches} | {network.trained_parameters:,} | {network.deployed_parameters:,} "
        f"| {network.test_error_percent:.2f} % | {network.seconds:.0f} s |"
    )


if __name__ == "__main__":
    main()
