"""Ways to publish to the Hub, and to find what was published."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hub_network import FILES, LABELS, SIZE, content_of, published_folder, training_folder
from hub_server import sha256

from ccnn_zoo import hub, runtime
from ccnn_zoo.checkpoint import load_checkpoint
from ccnn_zoo.errors import ConfigurationError, RepositoryError

CCNN = Path(sys.executable).with_name("ccnn")
SCRIPT = Path(__file__).parents[1] / "scripts" / "publish_zoo.py"


@pytest.fixture(scope="module")
def published() -> Path:
    return published_folder()


def changes_of(publication: str) -> str:
    return f"print(json.dumps([(c.action, c.path, c.size, c.sha256) for c in {publication}.changes]))"


def test_a_dry_run_shows_exactly_what_would_go_and_writes_nothing(server, user, published):
    """What it shows is what a real run does afterwards, in a new repository and in one with an earlier publication."""
    program = f"import json; from ccnn_zoo import hub; {changes_of(f'hub.publish({str(published)!r}, %r, dry_run=%r)')}"
    for earlier in (
        None,
        {"config.json": b"old", "onnx/model_fp16.onnx": b"old", "pictures/errors.png": b"", "x": b"x"},
    ):
        server.reset()
        if earlier is not None:
            server.create("org/digits", earlier)
        before = {name: dict(repository.commits) for name, repository in server.repositories.items()}
        shown = json.loads(user.run(program % ("org/digits", True), token=server.token))
        assert {name: repository.commits for name, repository in server.repositories.items()} == before
        assert {request.method for request in server.requests} <= {"GET", "HEAD"}
        assert json.loads(user.run(program % ("org/digits", False), token=server.token)) == shown
        old, new = earlier or {}, server.repositories["org/digits"].files
        expected = {name: "keep" if name in old and old[name] == new[name] else "add" for name in FILES}
        expected |= {name: "replace" for name in FILES & old.keys() if old[name] != new[name]}
        expected |= dict.fromkeys(old.keys() - new.keys(), "delete")
        assert {path: action for action, path, *_ in shown} == expected
        for action, path, size, digest in shown:
            assert action == "delete" or (size, digest) == (len(new[path]), sha256(new[path]))
    shown = json.loads(user.run(program % ("org/digits", True), token=server.token))
    assert {action for action, *_ in shown} == {"keep"}


def test_a_dry_run_into_a_folder_writes_nothing(published, tmp_path):
    publication = hub.publish(published, f"local:{tmp_path}/digits", dry_run=True)
    assert {(change.path, change.action) for change in publication.changes} == {(name, "add") for name in FILES}
    assert os.listdir(tmp_path) == []
    hub.publish(published, f"local:{tmp_path}/digits")
    again = hub.publish(published, f"local:{tmp_path}/digits", dry_run=True)
    assert (again.dry_run, {change.action for change in again.changes}) == (True, {"keep"})


def test_a_pull_request_leaves_the_branch_and_needs_no_right_to_it(server, user, published):
    repository = server.create("others/digits")
    before = dict(repository.branches)
    program = f"""
from ccnn_zoo import hub
publication = hub.publish({str(published)!r}, "others/digits", create_pr=True)
print(publication.pull_request == publication.location, publication.pull_request, publication.commit)
print(hub.download("others/digits", "refs/pr/1").name)
"""
    lines = user.run(program, token=server.token).split()
    commit = repository.pull_requests["refs/pr/1"]
    assert lines == ["True", f"{server.url}/others/digits/discussions/1", commit, commit]
    assert (repository.branches, len(repository.pull_requests)) == (before, 1)
    assert repository.commits[commit].files.keys() >= FILES
    (refused,) = user.call(f"hub.publish({str(published)!r}, 'org/gone', create_pr=True)", token=server.token)
    assert refused[0] == "RepositoryError"
    assert "there is no such repository" in refused[1]
    with pytest.raises(ConfigurationError, match="tag and create_pr exclude each other"):
        hub.publish(published, "org/digits", create_pr=True, tag="v1")


def test_tags_name_the_commit_and_stay_where_they_are(server, user, published, tmp_path):
    first = user.publish(published, tag="v1")
    repository = server.repositories["org/digits"]
    assert repository.tags == {"v1": first}
    assert user.publish(published, tag="v1") == first  # the same again
    folder = Path(shutil.copytree(published, tmp_path / "digits"))
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "note": "another"}))
    for options in ({"tag": "v1"}, {"tag": "v1", "dry_run": True}):
        error, text = user.publish(folder, **options)
        assert error == "RepositoryError"
        assert re.search(rf"has a tag 'v1' at another commit, {first[:12]}: nothing was published.*another name", text)
    assert (repository.branches["main"], repository.tags) == (first, {"v1": first})
    second = user.publish(folder, tag="v2")
    assert repository.tags == {"v1": first, "v2": second}
    (old,) = user.call("hub.download('org/digits', 'v1')")
    assert Path(old).name == first


def test_private_is_never_quietly_public(server, user, published):
    server.create("org/digits")
    error, text = user.publish(published, private=True)
    assert (error, len(server.repositories["org/digits"].commits)) == ("RepositoryError", 1)
    assert "org/digits is public" in text


def test_large_files_go_in_parts(server, user, published):
    server.part = 300_000
    server.inject("PUT /lfs/.*/part/2", status=500, times=2)
    user.publish(published)
    files = server.repositories["org/digits"].files
    assert files["onnx/model.onnx"] == content_of(published)["onnx/model.onnx"]
    sent = {request.path.rpartition("/")[2] for request in server.requested("PUT /lfs/.*/part/")}
    assert sent == {str(n) for n in range(1, -(-len(files["onnx/model.onnx"]) // server.part) + 1)}


def test_progress_is_shown(server, user, published):
    user.publish(published)
    assert re.search(r"model\.onnx: .*100%", user.errors)
    assert re.search(r"model\.safetensors: .*100%", user.errors)


def test_long_lists_come_in_pages(server, user, published):
    server.page = 2
    commit = user.publish(published)
    assert user.publish(published) == commit  # all files are seen to be there
    assert len(server.repositories["org/digits"].commits) == 2


def test_further_precisions_are_exported_measured_and_run(tmp_path):
    """From the checkpoint alone: the files, what was measured of each, and the same network when it is loaded."""
    checkpoint = training_folder() / "last.safetensors"
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(40, *SIZE, generator=generator)
    network, _ = load_checkpoint(checkpoint)
    with torch.no_grad():
        expected = network(images)
    classes = expected.argmax(1)
    classes[:4] = (classes[:4] + 1) % len(LABELS)  # the network has 36 of 40 right

    def publish() -> hub.Publication:
        return hub.publish(
            checkpoint,
            f"local:{tmp_path}/digits",
            images=[(images, classes)],
            networks={"fp16": None, "int8": None},
            int8_images=torch.randn(64, *SIZE, generator=torch.Generator().manual_seed(1)),
        )

    found = publish().manifest.details
    assert found["networks"].keys() == {"fp32", "fp16", "int8"} == {"fp32", *found["further_exports"]}
    assert found["export"]["accuracy"] == found["further_exports"]["fp16"]["accuracy"] == 90
    card = (tmp_path / "digits" / "README.md").read_text()
    for precision, tolerance in (("fp16", 0.02), ("int8", 0.3)):
        logits = runtime.load(tmp_path / "digits", device="cpu", precision=precision).predict(images.numpy())
        difference = np.abs(logits - expected.numpy()).max()
        assert 1e-5 < difference < tolerance * expected.abs().max()
        measured = found["further_exports"][precision]
        assert measured["agreement"] == np.mean(logits.argmax(1) == expected.argmax(1).numpy())
        assert f"{measured['accuracy']:.2f} %, {measured['accuracy_loss']:.2f}" in card
    assert {change.action for change in publish().changes} == {"keep"}  # to the bit the same
    with pytest.raises(ConfigurationError, match="int8 needs real images"):
        hub.publish(checkpoint, f"local:{tmp_path}/digits", networks={"int8": None})


def test_further_precisions_are_published_and_fetched_alone(server, user, published, tmp_path):
    """A copy stands for the file of another precision: what is tested here is where it goes."""
    network = published / "onnx" / "model.onnx"
    checkpoint = training_folder() / "last.safetensors"
    folder = tmp_path / "digits"
    hub.publish(checkpoint, f"local:{folder}", networks={"fp16": network, "int8": network})
    assert {"onnx/model_fp16.onnx", "onnx/model_quantized.onnx"} <= content_of(folder).keys()
    assert "`onnx/model_fp16.onnx` (fp16)" in (folder / "README.md").read_text()
    user.publish(folder)
    server.requests.clear()
    program = "from ccnn_zoo import runtime; print(runtime.load('org/digits', device='cpu', precision='fp16').metadata)"
    assert repr(LABELS) in user.run(program)
    assert {request.path.rpartition("/")[2] for request in server.requested("GET .*/(resolve|cdn)/")} == {
        "manifest.json",
        "model_fp16.onnx",
    }
    assert runtime.load(folder, device="cpu", precision="int8").metadata.labels == LABELS
    with pytest.raises(RepositoryError, match=r"has no fp16 network\. It has: fp32"):
        runtime.load(published, device="cpu", precision="fp16")
    server.create("org/fp32", content_of(published))
    (refused,) = user.call("hub.download('org/fp32', precision='int8')")
    assert refused == ["RepositoryError", "org/fp32 has no int8 network. It has: fp32."]
    for call in (
        lambda: hub.download(f"local:{folder}", precision="fp8"),
        lambda: hub.publish(checkpoint, f"local:{folder}", networks={"bf16": network}),
    ):
        with pytest.raises(ConfigurationError, match="precision must be one of fp32, fp16, int8"):
            call()
    with pytest.raises(ConfigurationError, match="fp32, which is exported from the network itself"):
        hub.publish(checkpoint, f"local:{folder}", networks={"fp32": network})
    with pytest.raises(ConfigurationError, match="curves must be a PNG picture"):
        hub.publish(checkpoint, f"local:{folder}", curves=checkpoint)
    with pytest.raises(RepositoryError, match=r"cannot copy .*gone\.png"):
        hub.publish(checkpoint, f"local:{folder}", curves=tmp_path / "gone.png")


def test_the_card_shows_curves_and_heat_map(published):
    card = (published / "README.md").read_text()
    shown = re.findall(r"!\[[^]]+\]\(([^)]+)\)", card)
    assert shown == ["pictures/errors.png", "pictures/calibration.png"]
    assert (published / shown[0]).read_bytes() == (training_folder() / "curves.png").read_bytes()
    listed = json.loads((published / "manifest.json").read_text())["files"]
    assert set(shown) <= listed.keys()


def _make_zoo(server, published: Path) -> None:
    files = content_of(published)
    server.create("org/digits", files)
    server.create("org/another", files)
    server.create("org/hidden", files, private=True)
    server.create("others/digits", files)
    server.create("org/plain", {"README.md": b"---\ntags:\n- timm\n---\n"})
    server.create("org/broken", {**files, "manifest.json": b"{}"})
    manifest = json.loads(files["manifest.json"])
    vague = ({"record": 7}, {"architecture": "[bold red]x"}, {"networks": {"[link=http://x]fp32": "onnx/model.onnx"}})
    for number, change in enumerate(vague):
        name = f"org/vague{number}"
        server.create(name, {**files, "manifest.json": json.dumps({**manifest, **change}).encode()})


def test_search_finds_the_networks_of_an_organisation(server, user, published):
    _make_zoo(server, published)
    server.page = 2
    program = """
import json
from dataclasses import asdict
from ccnn_zoo import hub
print(json.dumps([asdict(network) for network in hub.search("org")]))
"""
    found = json.loads(user.run(program))
    assert [network["repo_id"] for network in found] == ["org/another", "org/digits"]
    assert "left out: org/broken" in user.errors
    assert all(f"left out: org/vague{number}" in user.errors for number in range(3))
    manifest = json.loads(content_of(published)["manifest.json"])
    assert found[1] == {
        "repo_id": "org/digits",
        "commit": server.repositories["org/digits"].branches["main"],
        "architecture": "ccnn_resnet18_cifar",
        "branches": 2,
        "metrics": {"test_error_percent": 2.4375, "train_loss": 0.125},
        "trained_parameters": manifest["parameters"]["shared"],
        "deployed_parameters": manifest["parameters"]["folded"],
        "precisions": ["fp32"],
        "size": sum(file["size"] for file in manifest["files"].values()),
    }
    assert {request.authorization for request in server.requests} == {None}
    assert not server.requested("onnx|safetensors|org/plain")
    assert "org/hidden" in user.run("from ccnn_zoo import hub; print(hub.search('org', token=True))", server.token)
    with pytest.raises(ConfigurationError, match="author must be a user or an organisation, got 'org/x'"):
        hub.search("org/x")


COMMANDS = """
import contextlib, io, json, os, runpy, sys
os.environ["COLUMNS"] = "200"

def run(program, *arguments):
    sys.argv = [program, *arguments]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_path(program, run_name="__main__")
        except SystemExit as stop:
            code = stop.code
    return [code or 0, out.getvalue(), err.getvalue()]
"""


def commands(user, *lines: list[object]) -> list[list]:
    """Return (exit code, output, errors) of command lines, run in one process, since each would import timm anew."""
    program = COMMANDS + f"results = [run(*line) for line in {[list(map(str, line)) for line in lines]!r}]\n"
    return json.loads(user.run(program + "print(json.dumps(results))", token=user.server.token))


def test_the_commands_publish_list_and_download(server, user, published):
    dry, real, listed, downloaded = commands(
        user,
        [CCNN, "publish", published, "org/digits", "--dry-run"],
        [CCNN, "publish", published, "org/digits", "--tag", "v1"],
        [CCNN, "list", "--hub", "org"],
        [CCNN, "download", "org/digits", "--revision", "v1", "--precision", "fp32"],
    )
    assert [dry[0], real[0], listed[0], downloaded[0]] == [0, 0, 0, 0]
    commit = server.repositories["org/digits"].tags["v1"]
    assert re.search(r"add +[\d,]+ bytes  onnx/model\.onnx\n", dry[1])
    assert dry[1].endswith("would publish org/digits\n")
    assert real[1].endswith(f"published {server.url}/org/digits/commit/{commit}\n")
    assert re.search(r"org/digits +ccnn_resnet18_cifar +2 +(error )?2\.44 +0\.08 +0\.16 +1\.\d +fp32", listed[1])
    folder = Path(downloaded[1].strip())
    assert (folder.name, content_of(folder).keys()) == (commit, {"manifest.json", "onnx/model.onnx"})


def test_the_zoo_is_published_in_one_go_and_again(server, user, tmp_path):
    for name in ("one", "two"):
        shutil.copytree(training_folder(), tmp_path / "runs" / name)
    server.inject("POST /api/models/org/two/commit/", status=403, times=1)
    line = [SCRIPT, "org", tmp_path / "runs", "--tag", "v1"]
    first, second = commands(user, line, line)
    assert [first[0], second[0]] == [1, 0]
    sent = r"org/{}:\n(add +[\d,]+ bytes  [\w./]+\n){{7}}published http"
    assert re.search(sent.format("one"), first[1])
    assert "1 of 2 checkpoints" in first[1]
    assert "org/two: failed: org/two: the token gives no right" in first[2]
    assert "org/one:\npublished http" in second[1]  # it is there already
    assert re.search(sent.format("two"), second[1])
    # Both are the same network, so that its two large files were sent once.
    assert len(server.requested("PUT /lfs/")) == 2
    assert len(server.requested("POST .*/org/one/commit")) == 1
    assert {name: len(r.commits) for name, r in server.repositories.items()} == {"org/one": 2, "org/two": 2}
    assert all(repository.tags.keys() == {"v1"} for repository in server.repositories.values())
