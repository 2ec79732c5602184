"""Write the figures that README.md, docs/why.md and docs/decisions.md take from the experiments' pages.

python scripts/why_figures.py
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from documents import renewed, write

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAYS = tuple(f"results/pays_medium_cifar10_16{bed}.md" for bed in ("_narrow", "_narrow_few", ""))
CARDS = DOCS.parent / "ccnn_zoo" / "checkpoints"
SHIPPED = ("ccnn_resnet18_cifar.mirror_cifar10", "ccnn_resnet18_cifar.cifar10")
MIRROR = "mirror_figures.md"
DIGITS = "results/ablation_small_digits.md"
DATA = ("CIFAR-10", "MNIST")
ASKED = {
    "error of the network, %": "error, %",
    "coverage asked 95 %: kept, %": "asked 95 %: sets hold, %",
    "classes in such a set": "asked 95 %: classes in a set",
    "risk asked 5 %: wrong of what was decided, %": "risk asked 5 %: wrong of them, %",
    "decided, %": "risk asked 5 %: decided, %",
}

SHORT = (
    "plain, image and mirror image",
    "plain, image and mirror image, as a cascade",
    "plain, trained twice as long",
    "plain, trained twice as long, image and mirror image",
    "plain, 1.41 times wider",
    "plain, 2 times wider",
    "ensemble of 2 plain networks",
    "ensemble of 4 plain networks",
    "K=2, joint",
    "K=4, joint",
    "K=2, joint, one sees the mirror image",
    "K=2, half joint, one sees the mirror image, R alike",
    "K=2, joint, dense, 1.41 times narrower",
    "K=2, joint, dense",
    "K=4, joint, dense, 2 times narrower",
)
"""Rows of the comparison that README has, where they are trained."""


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for name in PAGES:
        write(DOCS / name, [current(name)])


def current(page: str) -> str:
    """Return the text of one of :data:`PAGES` with the figures that the other pages hold now."""
    text = (DOCS / page).read_text(encoding="utf-8")
    for name, lines in PAGES[page].items():
        text = renewed(text, name, lines())
    return text


def rows(page: str, section: str = "") -> list[list[str]]:
    """Return the cells of every row of the tables of a page, from a heading on to the next of its kind."""
    text = (DOCS / page).read_text(encoding="utf-8")
    if section:
        text = text.partition(f"\n## {section}")[2].partition("\n## ")[0]
    return _rows_of(text)


def _rows_of(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def confidence() -> list[str]:
    """Return what was asked of the files, and what they kept."""
    kept: dict[str, dict[str, str]] = {}
    for data in DATA:
        heading, _, *table = rows("uncertainty_figures.md", data)
        for column, network in enumerate(heading[1:], start=1):
            kept[f"{data}, {network}"] = {row[0]: row[column] for row in table}
    lines = [_line(["", *kept]), f"|---|{'---|' * len(kept)}"]
    return lines + [_line([name, *(of[row] for of in kept.values())]) for name, row in ASKED.items()]


def branches() -> list[str]:
    """Return how far the comparisons have come, their rows, and those of the smaller one on digits."""
    heading, *digits = [row[:3] for row in rows(DIGITS)[:5]]
    del digits[0]  # the line under the heading
    return [
        *(line for page in PAYS for line in _pays(page)),
        f"scikit-learn's digits, K = 4, three seeds ([the page]({DIGITS})); a small task, which decides little:",
        "",
        _line(heading),
        "|---|---|---|",
        *(_line(row) for row in digits),
    ]


def equals() -> list[str]:
    """Return what branches that are trained together gain or lose against plain networks of as much cost."""
    lines = []
    for page, pictures in zip(PAYS[:2], ("All pictures", "A tenth of the pictures"), strict=True):
        found = rows(page, "At equal cost")
        lines += [f"{pictures} ([the page]({page}#at-equal-cost)):", "", *(_line(row[:-1]) for row in found), ""]
    return lines[:-1]


def _pays(page: str) -> Iterator[str]:
    """Yield what a page of `pays` is of, and its figures with what the errors are less than the plain one's."""
    text = (DOCS / page).read_text(encoding="utf-8")
    far = re.search(r"\*\*Not finished: (.*?)\.\*\*", text)
    of = re.search(r"^CIFAR-10 .*? epochs", text, re.MULTILINE)[0]
    yield f"{of} ([the page]({page})): {f'{far[1]} are there yet' if far else 'all trainings are there'}."
    yield ""
    heading, rule, *table = _rows_of(text.partition("\n## ")[0])
    less = {row[0]: row[1] for row in rows(page, "Less the plain network")}
    for (name, error, *others), gap in [
        (heading, "less the plain one"),
        (rule, "---"),
        *((row, less.get(row[0], "")) for row in table),
    ]:
        yield _line([name, error, gap, *others])
    yield ""


def cost() -> list[str]:
    """Return the time of K branches over that of the plain network, in onnxruntime on one core."""
    table = rows("inference_speed.md", "Batch 1, 1 thread")
    column = table[0].index("ratio")
    lines = ["| network | onnxruntime, fp32 | onnxruntime, int8 |", "|---|---|---|"]
    for network in ("plain", "K=2", "K=4", "K=8"):
        times = {row[1]: row[column] for row in table if row[0] == network}
        lines.append(f"| {network} | {times['onnxruntime fp32']} | {times['onnxruntime int8']} |")
    return [
        *lines,
        "",
        "Times over the plain one in fp32, ResNet-18 at 224x224 on one core: [speed](inference_speed.md).",
    ]


def cifar() -> list[str]:
    """Return what each way is better or worse by than the plain network, and each choice than the default."""
    lines = []
    for page in PAYS:
        text = (DOCS / page).read_text(encoding="utf-8")
        for heading in re.findall(r"^## (Less .*|Choices: .*)$", text, re.MULTILINE):
            table = rows(page, heading)
            if table:
                title = re.search(r"^# (.*)$", text, re.MULTILINE)[1]
                lines += [f"[{title}]({page}). {heading}:", "", *(_line(row) for row in table), ""]
    return lines[:-1]


def short() -> list[str]:
    """Return what branches cost and buy on CIFAR-10, beside the ways that README names."""
    whole, tenth = (_gaps(page) for page in PAYS[:2])
    trained, multiplied = (_ratios(PAYS[0], column) for column in (1, 3))
    of_few = _ratios(PAYS[1], 3)
    lines = ["| network | multiply-adds | trained weights | all pictures | a tenth of them |", "|---|---|---|---|---|"]
    for label in SHORT:
        if label in whole:
            cost, again = multiplied[label], of_few.get(label, multiplied[label])
            note = f" (a tenth: {again})" if again != cost else ""  # that of a cascade
            lines.append(f"| {label} | {cost}{note} | {trained[label]} | {whole[label]} | {tenth.get(label, '')} |")
    return lines


def _ratios(page: str, column: int) -> dict[str, str]:
    """Return a column of what every row costs, over the plain network's."""
    costs = {row[0]: int(row[column].replace(",", "")) for row in rows(page, "What it costs")[2:]}
    return {label: f"{cost / costs['plain']:.1f} x" for label, cost in costs.items()}


def _gaps(page: str) -> dict[str, str]:
    """Return the points of error of every row less the plain one's; bold: beyond the spread of the seeds."""
    cells = (row[:2] for row in rows(page, "Less the plain network")[2:])
    split = {label: gap.partition(": ")[::2] for label, gap in cells}
    marks = {"within the spread": "{}", "one seed, no spread": "{} (one seed)"}
    return {label: marks.get(verdict, "**{}**").format(points) for label, (points, verdict) in split.items()}


def shipped() -> list[str]:
    """Return what the cards of the shipped networks for CIFAR-10 say."""
    seen, joined = (
        {row[0]: row[1] for row in _rows_of((CARDS / f"{name}.md").read_text(encoding="utf-8"))} for name in SHIPPED
    )
    alone = seen["the same of the plain network of that recipe, its control"].partition(",")[0]
    epochs = [said["epochs, seed"].partition(",")[0] for said in (seen, joined)]
    return [
        f"With the package come two networks for 32x32 pixels. `{SHIPPED[0]}`, the one that you get by default, is a "
        f"plain network of {epochs[0]} epochs that sees picture and mirror image: test error {seen['test error']}, and "
        f"{alone} without the mirror image. `{SHIPPED[1]}` is an ensemble of two plain networks of {epochs[1]} epochs, "
        f"which cost as much to train and to run: {joined['test error']}; its members alone "
        f"{joined['test errors of its members alone']} ([figures](docs/{MIRROR}))."
    ]


PAGES = {
    "../README.md": {"pays": short, "shipped": shipped},
    "why.md": {"confidence": confidence, "equals": equals, "branches": branches, "cost": cost},
    "decisions.md": {"cifar": cifar},
}

if __name__ == "__main__":
    main()
