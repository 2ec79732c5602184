"""How Sphinx makes the site: `make docs`. The whole repository is its source, so that no link between files breaks."""

from __future__ import annotations

import re
import sys
from importlib import metadata
from typing import Any

from sphinx.application import Sphinx
from sphinx.pycode import ModuleAnalyzer

project = "ccnn-zoo"
release = metadata.version("ccnn-zoo")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
root_doc = "docs/index"
include_patterns = ["*.md", "docs/**"]
exclude_patterns = [".*", "build", "ccnn_zoo", "dist", "export", "hub", "runs", "scripts", "tests"]

myst_heading_anchors = 4
suppress_warnings = ["myst.xref_ambiguous"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"show-inheritance": True}
python_maximum_signature_line_length = 100
# Only our own names can be looked up: the build opens no other project's inventory.
nitpick_ignore_regex = [(r"py:.*", r"(?!ccnn_zoo).*"), (r"py:.*", r"ccnn_zoo\.(.*\.)?(_|ccnn_).*")]

html_theme = "furo"
html_title = f"ccnn-zoo {release}"
html_static_path = ["_static"]
html_extra_path = ["_extra"]
html_css_files = ["pictures.css"]
html_js_files = [("netron.js", {"defer": "defer"})]
html_copy_source = False
html_show_sphinx = False
copybutton_exclude = ".linenos, .gp, .go"


def constant(app: Sphinx, what: str, name: str, value: object, options: object, lines: list[str]) -> None:
    """Give a constant that a package hands on the words under it in the module that defines it."""
    if what != "data":
        return
    attribute = name.rpartition(".")[2]
    for module in sorted(sys.modules):
        if module.startswith("ccnn_zoo.") and getattr(sys.modules[module], attribute, None) is value:
            lines[:] = ModuleAnalyzer.for_module(module).find_attr_docs().get(("", attribute), lines)


def without_builtins(app: Sphinx) -> list[object]:
    """Leave the types of constants out of the list of sources: Python's own have no page."""
    app.env._viewcode_modules.pop("builtins", None)
    return []


def back_to_each_name(app: Sphinx, pagename: str, template: str, context: dict[str, Any], doctree: object) -> None:
    """Mend the links from a source to the pages that document it.

    Viewcode takes all names of a private module for names of one package, while two packages may hand them on.
    """
    if not pagename.startswith("_modules/"):
        return
    known = {name: entry.docname for name, entry in app.env.domains.python_domain.objects.items() if not entry.aliased}

    def mended(link: re.Match[str]) -> str:
        parts = link["name"].split(".")
        ends = [".".join(["", *parts[begin:]]) for begin in range(len(parts))]
        on_the_page = [name for name, page in known.items() if page == link["page"]]
        names = [name for end in ends for name in on_the_page if f".{name}".endswith(end)]
        return f"{link['before']}{names[0] if names else link['name']}"

    back = r'(?P<before>class="viewcode-back" href="[./]*(?P<page>docs/[^"]*)\.html#)(?P<name>[\w.]+)'
    context["body"] = re.sub(back, mended, context["body"])


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", constant)
    app.connect("html-collect-pages", without_builtins, priority=400)
    app.connect("html-page-context", back_to_each_name)
