"""What the pages under docs/ show: their blocks, the programs in them, and which of these no test runs, and why."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).resolve().parents[1]
README = "../README.md"
PAGES = sorted(path.name for path in (ROOT / "docs").glob("*.md"))

NOT_RUN = {
    ("errors.md", ""): "tests/test_docs_errors.py runs each, and compares what it prints",
    (README, ""): "tests/test_readme.py runs them",
    ("index.md", 'pip install ".[all]"'): "the tests run in what it leaves",
    ("finetune.md", "import timm"): "a minute: tests/test_finetune.py runs it among the slow tests",
    ("runtime.md", "pip install"): "needs a package index",
    ("runtime.md", "import torch"): "needs a GPU",
    ("detection.md", "ccnn train --recipe voc07_detection"): "hours on a GPU",
    ("hub.md", "python -m venv /tmp/olah"): "needs a package index; .ci/run runs these tests",
    ("hub.md", "npm install"): "needs a package index; .ci/run runs these tests",
    ("hub.md", "OLAH_CLI="): "needs a package index; .ci/run runs these tests",
    ("serving.md", "tritonserver"): "needs NVIDIA's server",
    ("training.md", "accelerate launch"): "needs ImageNet and four GPUs",
    ("training.md", "torchrun"): "needs ImageNet and four GPUs",
}
"""(page, how a program begins): why no test runs it as the page has it. It is parsed all the same."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page.

    Attributes:
        page: name of the page, from docs/.
        line: where it begins, from 1.
        language: the word behind the fence.
        text: what is in it.
    """

    page: str
    line: int
    language: str
    text: str

    @property
    def programs(self) -> list[str]:
        """What is run in one go: a whole block of Python, each command of a shell's."""
        if self.language == "python":
            return [self.text]
        if self.language != "bash":
            return []
        lines = self.text.replace("\\\n", " ").splitlines()
        return [line for line in lines if shlex.split(line, comments=True)]


@cache
def _tokens(page: str) -> list[Token]:
    return MarkdownIt("commonmark").parse((ROOT / "docs" / page).read_text(encoding="utf-8"))


def blocks(page: str) -> list[Block]:
    """Return the fenced blocks of a page, in their order."""
    fences = [token for token in _tokens(page) if token.type in ("fence", "code_block")]
    return [Block(page, token.map[0] + 1, token.info.partition(" ")[0], token.content) for token in fences]


def spans(page: str) -> list[str]:
    """Return what stands in backticks within the text of a page, tables included."""
    text = MarkdownIt("commonmark").enable("table").parse((ROOT / "docs" / page).read_text(encoding="utf-8"))
    return [part.content for token in text for part in token.children or () if part.type == "code_inline"]


def why_not_run(page: str, program: str) -> str | None:
    """Return the reason why no test runs a program as the page has it, or None."""
    return next((why for (of, begin), why in NOT_RUN.items() if of == page and program.startswith(begin)), None)


def command(program: str) -> list[str] | None:
    """Return the arguments of ``ccnn`` in a line of shell, or None where there is no ``ccnn`` in it."""
    words = shlex.split(program.replace("$(which ccnn)", "ccnn"), comments=True)
    if "ccnn" not in words:
        return None
    rest = words[words.index("ccnn") + 1 :]
    ends = [index for index, word in enumerate(rest) if re.fullmatch(r"[|<>&;]+", word)]
    return rest[: ends[0]] if ends else rest
