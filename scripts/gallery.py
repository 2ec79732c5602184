"""Train on digits, and write docs/gallery.md with the pictures of that run beside those that other scripts have made.

python scripts/gallery.py
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

from documents import write

from ccnn_zoo import hub
from ccnn_zoo.train import CHECKPOINT, Recipe, train

DOCS = Path(__file__).resolve().parents[1] / "docs"
ELSEWHERE = {
    "demo.png": "`make demo`: error curves of a plain and a calibrated network, four plain ones joined, digits, R",
    "browser.png": "the page that `ccnn web` writes, in Chromium (`scripts/browser_pictures.py`)",
    "browser_phone.png": "the same on a phone, in dark mode",
    "results/detection.png": "blood cells that the detector found ([how](results/detection.md))",
    "results/figure2_small_digits.png": "error curves of Figure 2, small ([how](results/figure2_small_digits.md))",
    "architecture.png": "rooms of the package ([architecture](architecture.md))",
}
WORDS = {
    "curves": "error of every epoch",
    "confidence": "reliability before and after the temperature, risk over coverage, and a score of strange pictures",
    "doubtful": "the test pictures that are most in doubt, with what each branch says",
    "calibration": "R of every layer after training: a row per branch, a square per kernel",
}


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    recipe = replace(Recipe.load("digits"), validation=0.2)
    (DOCS / "gallery").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        train(recipe, f"{folder}/run")
        hub.publish(Path(folder, "run", CHECKPOINT), f"local:{folder}/hub")
        made = [Path(folder, "run", f"{name}.png") for name in ("curves", "confidence", "doubtful")]
        for picture in [*made, Path(folder, "hub", "pictures", "calibration.png")]:
            shutil.copyfile(picture, DOCS / "gallery" / picture.name)
    shown = {f"gallery/{name}.png": words for name, words in WORDS.items()}
    lines = [
        "# Gallery",
        "",
        "Every picture is of a real run, made by a script; a click opens it in full size. The first ones are from one",
        f"training on scikit-learn's digits (recipe `digits`, a fifth held out, K = {recipe.branches}, seed",
        f"{recipe.seed}), by `scripts/gallery.py`.",
    ]
    for path, words in (shown | ELSEWHERE).items():
        lines += ["", f"[![{Path(path).stem}]({path})]({path})", "", f"{words[0].upper()}{words[1:]}."]
    write(DOCS / "gallery.md", lines)


if __name__ == "__main__":
    main()
