"""``ccnn publish --space``: what a static Space of the Hub needs, and that its page works as the Space serves it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from browser import Browser, runtime_folder, serving
from hub_network import LABELS, training_folder
from hub_user import User
from serve_network import encoded

PUBLISH = "import sys\nfrom ccnn_zoo.cli import main\nsys.argv[1:] = {}\nmain()"


def space_folder(folder: Path, **files: str) -> Path:
    """Write the least that a Space of ours has, and further files."""
    folder.mkdir(exist_ok=True)
    for name, text in {"README.md": "---\nsdk: static\n---\n", "site.json": "{}", **files}.items():
        (folder / name).write_text(text)
    return folder


PROGRAM = """
import json
from ccnn_zoo import hub
from ccnn_zoo.errors import CCNNError

try:
    p = hub.publish_space({folder!r}, 'org/page', mark='site.json', dry_run={dry_run})
    print(json.dumps([[(c.action, c.path) for c in p.changes], p.commit, p.location]))
except CCNNError as error:
    print(json.dumps([str(error)]))
"""


def publish(user: User, folder: Path, dry_run: bool = False) -> list:
    """Return changes, commit and location, or the message of an error alone."""
    return json.loads(user.run(PROGRAM.format(folder=str(folder), dry_run=dry_run), token=user.server.token))


def test_a_space_gets_one_commit_and_loses_what_an_earlier_one_left(server, user, tmp_path):
    folder = space_folder(tmp_path / "site", **{"old.js": "1"})
    shown, nothing, _ = publish(user, folder, dry_run=True)
    assert nothing is None
    assert not server.repositories
    changes, first, location = publish(user, folder)
    assert changes == shown
    assert location == f"{server.url}/spaces/org/page"
    assert server.repositories["org/page"].sdk == "static"
    (folder / "old.js").rename(folder / "new.js")
    changes, second, _ = publish(user, folder)
    assert changes == [["keep", "README.md"], ["add", "new.js"], ["delete", "old.js"], ["keep", "site.json"]]
    assert server.repositories["org/page"].files.keys() == {".gitattributes", "README.md", "new.js", "site.json"}
    assert server.repositories["org/page"].commits[second].parent == first
    assert publish(user, folder)[1] == second  # nothing has changed, so no commit is made


def test_somebody_elses_space_is_left_alone(server, user, tmp_path):
    server.create("org/page", {"app.py": b"work", "README.md": b"mine"}, sdk="gradio")
    before = dict(server.repositories["org/page"].commits)
    for dry_run in (True, False):
        (problem,) = publish(user, space_folder(tmp_path / "site"), dry_run=dry_run)
        assert "holds something else (app.py), which would be lost: nothing was published" in problem
    assert server.repositories["org/page"].commits == before


@pytest.mark.browser
def test_a_published_space_is_isolated_by_its_own_headers_and_classifies(server, user, tmp_path):
    line = ["publish", str(training_folder()), "org/digits", "--space", "org/page", "--runtime", str(runtime_folder())]
    said = user.run(PUBLISH.format([*line, "--dry-run"]), token=server.token)
    assert re.search(r"add +[\d,]+ bytes  ort/ort-wasm-simd-threaded\.wasm\n", said)
    assert said.endswith(f"would publish {server.url}/spaces/org/page\n")
    assert not server.repositories
    user.run(PUBLISH.format(line), token=server.token)
    assert server.repositories.keys() == {"org/digits", "org/page"}
    files = server.repositories["org/page"].files
    header = yaml.safe_load(files["README.md"].split(b"---\n")[1])
    assert header["sdk"] == "static"
    assert header["models"] == ["org/digits"]
    assert len(header["short_description"]) <= 60  # more are refused by the Hub
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    browser = Browser()
    try:
        with serving(tmp_path, header["custom_headers"]) as address:
            browser.open(address)
            browser.drop(("a.png", encoded((200, 10, 10))))
            assert browser.answered(1)[0] in LABELS
            assert browser.js("self.crossOriginIsolated")
            assert browser.js("document.title") == "digits · ccnn-zoo"
    finally:
        browser.close()
