"""A site as a static Hugging Face Space, which serves it with cross-origin isolation."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from ccnn_zoo._base.named import hub_name

from ._site import SITE, fill_site

MARK = SITE
"""The file by which a Space is known as ours."""


@contextmanager
def staged_space(
    networks: Mapping[str, str | os.PathLike[str]],
    title: str,
    *,
    model: str | None = None,
    webgpu: bool = False,
    runtime: str | os.PathLike[str] | None = None,
) -> Iterator[Path]:
    """Yield a temporary folder with the files of a Space, for :func:`ccnn_zoo.hub.publish_space`.

    Args:
        networks, webgpu, runtime: see :func:`ccnn_zoo.web.write_site`.
        title: the Space's.
        model: repository of the network on the Hub, to which the Space then links.

    Raises:
        as :func:`ccnn_zoo.web.write_site`.
    """
    with tempfile.TemporaryDirectory(prefix="ccnn-space-") as work:
        folder = Path(work)
        fill_site(folder, networks, webgpu=webgpu, runtime=runtime)
        (folder / "README.md").write_text(_card(title, model), encoding="utf-8")
        yield folder


def _card(title: str, model: str | None) -> str:
    import yaml

    header = {
        "title": title,
        "colorFrom": "blue",
        "colorTo": "indigo",
        "sdk": "static",
        "app_file": "index.html",
        "pinned": False,
        "short_description": "Classifies pictures in your own browser",
        # Without these a page is not cross-origin isolated, and WebAssembly gets one thread.
        "custom_headers": {
            "cross-origin-embedder-policy": "require-corp",
            "cross-origin-opener-policy": "same-origin",
            "cross-origin-resource-policy": "cross-origin",
        },
    }
    named = hub_name(model) if model is not None else None
    if named is not None:
        header["models"] = [named.repo_id]
    text = yaml.safe_dump(header, sort_keys=False, allow_unicode=True)
    return f"---\n{text}---\n\nMade by `ccnn publish --space`. Pictures never leave the visitor's machine.\n"
