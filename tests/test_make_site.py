"""What `make docs` is strict about."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "make_site.py"


@pytest.fixture(scope="module")
def make_site():
    spec = importlib.util.spec_from_file_location("make_site", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def site(folder: Path, body: str) -> Path:
    (folder / "other.html").write_text('<h1 id="here">Other</h1>')
    (folder / "index.html").write_text(body)
    return folder


@pytest.mark.parametrize(
    "body", ['<a href="other.html#here">', '<a href="#top">', '<a href="https://netron.app">', '<img src="other.html">']
)
def test_links_that_lead_somewhere_are_no_fault(make_site, tmp_path, body):
    assert list(make_site.broken_links(site(tmp_path, body))) == []


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ('<a href="gone.html">', "index.html links to gone.html, which is not there"),
        ('<a href="other.html#gone">', "index.html links to other.html#gone, where nothing has that name"),
        ('<p data-onnx="gone.onnx">', "index.html links to gone.onnx, which is not there"),
        ('<script src="https://cdn.example/x.js">', "index.html loads https://cdn.example/x.js"),
        ('<link rel="stylesheet" href="//cdn.example/x.css">', "index.html loads //cdn.example/x.css"),
    ],
)
def test_links_that_lead_nowhere_and_loading_from_elsewhere_are_named(make_site, tmp_path, body, fault):
    assert list(make_site.broken_links(site(tmp_path, body))) == [fault]


def test_a_public_name_without_an_entry_is_named(make_site):
    names = {f"{module}.{name}" for module in make_site.public_modules() for name, _ in make_site.public_names(module)}
    assert {"ccnn_zoo.calibrate", "ccnn_zoo.hub.publish", "ccnn_zoo.optim.CSGD", "ccnn_zoo.errors.DeviceError"} <= names
    assert list(make_site.undocumented(names)) == []
    assert [fault.split()[0] for fault in make_site.undocumented(names - {"ccnn_zoo.export.TOLERANCE"})] == [
        "ccnn_zoo.export.TOLERANCE"
    ]


def test_every_public_module_has_a_page(make_site):
    pages = {path.stem for path in (SCRIPT.parents[1] / "docs" / "api").glob("*.rst")}
    assert {name.rpartition(".")[2] for name in make_site.public_modules()} <= pages


API = SCRIPT.parents[1] / "docs" / "api"


def listed() -> list[str]:
    """The names that the pages of the interface name one by one."""
    pages = "\n".join(page.read_text() for page in sorted(API.glob("*.rst")))
    return re.findall(r"^\.\. autodata:: (\S+)$", pages, re.MULTILINE)


@pytest.mark.parametrize("name", listed())
def test_what_a_page_of_the_interface_names_exists(name):
    module, _, attribute = name.rpartition(".")
    assert hasattr(importlib.import_module(module), attribute)


def test_every_public_constant_is_named_by_a_page_of_the_interface(make_site):
    """Sphinx finds classes, functions and modules by their docstrings; it must be told of the rest."""
    constants = {
        f"{module}.{name}"
        for module in make_site.public_modules()
        for name, value in make_site.public_names(module)
        if not (inspect.isclass(value) or inspect.isroutine(value) or inspect.ismodule(value))
    }
    assert constants - set(listed()) == set()
