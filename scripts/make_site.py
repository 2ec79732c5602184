"""Build the documentation as a site, strictly: `make docs`.

    python scripts/make_site.py build/docs

Sphinx's warnings are errors. So are links of the finished pages that lead nowhere, whatever a page loads from
elsewhere, and public names without an entry. The shipped checkpoints are exported into the site, where docs/models.md
names them.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import pkgutil
import re
import shutil
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("site", type=Path, help="the folder that is written")
    site = parser.parse_args().site
    if status := sphinx(site):
        raise SystemExit(status)
    open_pictures(site)
    export_checkpoints(site / "docs" / "checkpoints")
    faults = [*broken_links(site), *undocumented(documented(site / "objects.inv"))]
    if faults:
        raise SystemExit("\n".join(faults))
    print(f"{len([*site.rglob('*.html')])} pages: {(site / 'index.html').resolve().as_uri()}")


def sphinx(site: Path) -> int:
    """Write the pages; return Sphinx's exit code, which any warning makes 1."""
    from sphinx.cmd.build import main as build

    strict = ("--fail-on-warning", "--keep-going", "--nitpicky", "--quiet")
    doctrees = site.with_name(f"{site.name}-doctrees")
    for left in (site, doctrees):  # of another state of the source
        shutil.rmtree(left, ignore_errors=True)
    return build(["-b", "html", "-c", str(ROOT / "docs"), "-d", str(doctrees), *strict, str(ROOT), str(site)])


def open_pictures(site: Path) -> None:
    """Let links to pictures open them: Sphinx lets browsers save what a page links to in the source."""
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        opened = re.sub(r'(<a class="reference download internal") download=""( href="[^"]*\.png")', r"\1\2", text)
        if opened != text:
            page.write_text(opened, encoding="utf-8")


def export_checkpoints(folder: Path) -> None:
    """Export every shipped checkpoint."""
    import timm

    from ccnn_zoo import export

    folder.mkdir(parents=True, exist_ok=True)
    for name in timm.list_pretrained("ccnn_*"):
        export.to_onnx(timm.create_model(name, pretrained=True), folder / f"{name}.onnx")


class Page(HTMLParser):
    """What a page links to, what it loads, and the names that others can link to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.loaded: set[str] = set()
        self.anchors = {"", "top"}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if identity := given.get("id"):
            self.anchors.add(identity)
        if tag == "a" and given.get("href"):
            self.links.add(given["href"])
        loads = given.get("href") if tag == "link" else given.get("src") or given.get("data-onnx")
        if loads:
            self.loaded.add(loads)


def broken_links(site: Path) -> Iterator[str]:
    """Yield every link of a page to what is not in the site, and everything that a page loads from elsewhere."""
    pages = {path.resolve(): Page(path) for path in sorted(site.rglob("*.html"))}
    for path, page in pages.items():
        for address in sorted(page.links | page.loaded):
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                if address in page.loaded and parts.scheme != "data":
                    yield f"{path.relative_to(site.resolve())} loads {address}"
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not target.is_file():
                yield f"{path.relative_to(site.resolve())} links to {address}, which is not there"
            elif target in pages and unquote(parts.fragment) not in pages[target].anchors:
                yield f"{path.relative_to(site.resolve())} links to {address}, where nothing has that name"


def documented(inventory: Path) -> set[str]:
    """Return the Python names in an inventory of Sphinx's."""
    from sphinx.util.inventory import InventoryFile

    found = InventoryFile.loads(inventory.read_bytes(), uri="")
    return {name for kind, names in found.data.items() if kind.startswith("py:") for name in names}


def public_modules() -> list[str]:
    """Return the modules that make up the public interface: those of ``ccnn_zoo.__all__`` or with an ``__all__``."""
    import ccnn_zoo

    below = {found.name for found in pkgutil.iter_modules(ccnn_zoo.__path__, "ccnn_zoo.") if "._" not in found.name}
    named = {f"ccnn_zoo.{name}" for name in ccnn_zoo.__all__ if inspect.ismodule(getattr(ccnn_zoo, name))}
    listed = {name for name in below - {"ccnn_zoo.cli"} if hasattr(importlib.import_module(name), "__all__")}
    return ["ccnn_zoo", *sorted(named | listed)]


def public_names(module: str) -> Iterator[tuple[str, object]]:
    """Yield each public name of a module, with what it names: those of ``__all__``, else those defined in it."""
    home = importlib.import_module(module)
    for name in getattr(home, "__all__", None) or [name for name in vars(home) if not name.startswith("_")]:
        value = getattr(home, name)
        if hasattr(home, "__all__") or getattr(value, "__module__", None) == module:
            yield name, value


def undocumented(names: set[str]) -> Iterator[str]:
    """Yield the public names of the package that are not among these, by any of the names that they have."""
    for module in public_modules():
        for name, value in public_names(module):
            own = f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', '')}"
            if f"{module}.{name}" not in names and own not in names and not inspect.ismodule(value):
                yield f"{module}.{name} has no entry in docs/api: it lacks a docstring, or a line there"


if __name__ == "__main__":
    sys.exit(main())
