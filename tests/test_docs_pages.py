"""What the pages show can be what they say: commands and options exist, Python compiles and finds what it imports.

tests/test_docs_snippets.py runs it.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable
from functools import cache, partial
from importlib import import_module

import pytest
import typer
import yaml
from doc_pages import NOT_RUN, PAGES, README, ROOT, Block, blocks, command, spans
from serve_network import save_network

from ccnn_zoo.cli import app
from ccnn_zoo.export import describe

READERS: dict[str, Callable[[str], object]] = {
    "json": json.loads,
    "yaml": yaml.safe_load,
    "toml": tomllib.loads,
    "bash": partial(shlex.split, comments=True),
    "python": ast.parse,
    "text": str,  # what a program prints: tests/test_docs_errors.py
    "{toctree}": str,  # Sphinx's, which `make docs` reads
}
ALL = [*PAGES, README]
BLOCKS = [block for page in ALL for block in blocks(page)]


def named(block: Block) -> str:
    return f"{block.page}:{block.line}"


@cache
def commands() -> dict[str, typer.core.TyperCommand]:
    return typer.main.get_command(app).commands


@pytest.mark.parametrize("block", BLOCKS, ids=named)
def test_a_block_says_its_language_and_is_well_formed(block):
    assert block.language in READERS, "a block whose language no test knows would be left out"
    READERS[block.language](block.text)


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "bash"], ids=named)
def test_commands_and_their_arguments_exist(block):
    for program in block.programs:
        if (arguments := command(program)) is not None:
            commands()[arguments[0]].make_context(arguments[0], arguments[1:])
        for script in re.findall(r"\bscripts/\S+\.py", program):
            assert (ROOT / script).is_file()
        for target in re.findall(r"\bmake ([\w-]+)", program):
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("page", ALL)
def test_options_of_commands_within_the_text_exist(page):
    for span in spans(page):
        if span.startswith("ccnn ") and (arguments := command(span.replace("…", "..."))):
            known = commands()[arguments[0]]
            options = {"--help", *(name for parameter in known.params for name in parameter.opts)}
            asked = {word.partition("=")[0] for word in arguments[1:] if re.match(r"--?\w", word)}
            assert asked <= options, span


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "python"], ids=named)
def test_python_knows_every_name_that_it_uses(block):
    ruff = [sys.executable, "-m", "ruff", "check", "--isolated", "--select=F821", "--quiet", "-"]
    run = subprocess.run(ruff, input=block.text, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
    for node in ast.walk(ast.parse(block.text)):
        for name in node.names if isinstance(node, ast.Import) else ():
            import_module(name.name)
        for name in node.names if isinstance(node, ast.ImportFrom) else ():
            assert hasattr(import_module(node.module), name.name), f"{node.module} has no {name.name}"


@pytest.mark.parametrize(("page", "begin"), NOT_RUN)
def test_what_is_not_run_is_still_on_its_page(page, begin):
    assert any(program.startswith(begin) for block in blocks(page) for program in block.programs)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")
def test_the_configuration_of_a_cluster_is_one():
    pytest.importorskip("ray", reason="the extra serve is not installed")
    from ccnn_zoo.serve import application

    (block,) = [block for block in blocks("serving.md") if block.language == "yaml"]
    (described,) = yaml.safe_load(block.text)["applications"]
    assert described["import_path"] == f"{application.__module__.rpartition('.')[0]}:{application.__name__}"
    application(described["args"])


def test_the_entry_point_of_a_backend_is_that_of_the_example():
    (block,) = [block for block in blocks("runtime.md") if block.language == "toml"]
    example = tomllib.loads((ROOT / "tests/example_backend/pyproject.toml").read_text())
    assert tomllib.loads(block.text)["project"]["entry-points"] == example["project"]["entry-points"]


def test_what_describes_a_file_of_others_is_taken(tmp_path):
    (block,) = [block for block in blocks("uncertainty.md") if block.language == "json"]
    described = describe(save_network(tmp_path / "theirs.onnx"), json.loads(block.text), tmp_path / "known.onnx")
    assert (described.labels, described.crop_pct) == (("cat", "dog"), 0.875)
