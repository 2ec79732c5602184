"""Publishing to the Hub and downloading from it, over HTTP, against a server that speaks its protocol."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import shutil
from pathlib import Path

import pytest
import timm
import torch
from hub_network import FETCHED, FILES, LABELS, content_of, published_folder, training_folder

from ccnn_zoo import calibrate, hub, runtime
from ccnn_zoo.checkpoint import TrainingRecord, save_checkpoint
from ccnn_zoo.errors import ConfigurationError
from ccnn_zoo.serve import ServeOptions

TWO_CLASSES = {"input_size": (3, 32, 32), "pool_size": None, "label_names": ["cat", "dog"]}


@pytest.fixture(scope="module")
def published() -> Path:
    """A local repository, not to be changed."""
    return published_folder()


def fails(result: object, error: str, pattern: str) -> bool:
    """Whether the call raised this error with such a message."""
    return isinstance(result, list) and result[0] == error and re.search(pattern, result[1]) is not None


def test_what_is_published_comes_back(server, user, published):
    commit = user.publish(published)
    repository = server.repositories["org/digits"]
    assert (repository.branches["main"], len(repository.commits)) == (commit, 2)
    assert repository.files.keys() == {".gitattributes", *FILES}
    (folder,) = user.call("hub.download('org/digits')")
    content = content_of(Path(folder))
    assert content.keys() == FETCHED
    assert content == {name: repository.files[name] for name in FETCHED}
    original = content_of(published)
    assert all(repository.files[name] == original[name] for name in FILES - {"README.md", "manifest.json"})
    assert b'runtime.load("org/digits")' in content["README.md"]
    assert Path(folder, "onnx", "model.onnx").is_symlink()
    sums = {name: entry["sha256"] for name, entry in json.loads(content["manifest.json"])["files"].items()}
    assert {name: sums[name] for name in FETCHED - {"manifest.json"}} == {
        name: hashlib.sha256(content[name]).hexdigest() for name in FETCHED - {"manifest.json"}
    }


def test_what_is_published_is_listed_downloaded_loaded_by_timm_and_classifies_by_onnxruntime(server, user, published):
    program = f"""
import numpy, timm, torch
from ccnn_zoo import hub, runtime
from ccnn_zoo.checkpoint import load_checkpoint
hub.publish({str(training_folder() / "last.safetensors")!r}, "org/digits")
hub.publish({str(published)!r}, "org/digits", revision="v1")
network, _ = load_checkpoint({str(training_folder() / "last.safetensors")!r})
images = torch.randn(3, 1, 12, 10)
for name in ("org/digits", "org/digits@v1"):
    print(torch.equal(timm.create_model(f"hf-hub:{{name}}", pretrained=True).eval()(images), network(images)))
(found,) = hub.search("org")
print(hub.download(found.repo_id, found.commit).name == found.commit)
logits = runtime.load(found.repo_id, revision=found.commit, device="cpu").predict(images.numpy())
print(numpy.allclose(logits, network(images).detach().numpy(), atol=1e-4))
"""
    assert user.run(program, token=server.token) == 4 * "True\n"


def test_what_calibrate_made_of_a_plain_network_is_loaded_by_timm_from_the_hub(server, user, tmp_path):
    plain = timm.create_model(
        "resnet18", layers=(1, 1, 1, 1), channels=(8, 8, 8, 8), num_classes=2, pretrained_cfg_overlay=TWO_CLASSES
    )
    model = calibrate(plain, branches=2, diversity=0.5).eval()
    save_checkpoint(tmp_path / "run.safetensors", model, TrainingRecord("noise", seed=0, epochs=0))
    user.publish(tmp_path / "run.safetensors", "org/generic")
    assert json.loads(server.repositories["org/generic"].files["config.json"])["architecture"] == "ccnn"
    program = """
import timm, torch
print(timm.create_model("hf-hub:org/generic", pretrained=True).eval()(torch.full((1, 3, 32, 32), 0.5)).tolist())
"""
    with torch.no_grad():
        expected = model(torch.full((1, 3, 32, 32), 0.5))
    torch.testing.assert_close(torch.tensor(json.loads(user.run(program))), expected)


def test_the_snippets_of_the_card_run_as_printed(server, user, published):
    user.publish(published)
    user.publish(published, revision="v1")
    repository = server.repositories["org/digits"]
    snippets = re.findall(r"```python\n(.*?)```", repository.files["README.md"].decode(), re.DOTALL)
    answers = [user.run(snippet) for snippet in snippets]
    assert (len(answers), len(set(answers))) == (3, 1)
    assert re.fullmatch(rf"({'|'.join(LABELS)}) \d+\.\d%\n", answers[0])
    tagged = repository.commits[repository.branches["v1"]].files["README.md"].decode()
    assert '"hf-hub:org/digits@v1"' in tagged
    assert 'runtime.load("org/digits", revision="v1")' in tagged
    assert 'hf_hub_download("org/digits", "onnx/model.onnx", revision="v1")' in tagged
    assert 'from_pretrained("org/digits", { dtype: "fp32", revision: "v1" })' in tagged


def test_only_what_is_needed_is_fetched_and_no_token_sent(server, user, published):
    user.publish(published)
    extra = {"pytorch_model.bin": b"\x80\x04.", "onnx/x.pkl": b"\x80\x04.", "picture.png": b"png", "code.py": b"1"}
    repository = server.repositories["org/digits"]
    repository.add({**repository.files, **extra})
    server.requests.clear()
    (folder,) = user.call("hub.download('org/digits')", token=server.token)
    assert content_of(Path(folder)).keys() == FETCHED
    assert not server.requested("pytorch_model|pkl|picture|code")
    assert {request.authorization for request in server.requests} == {None}


def test_every_door_has_the_same_default_of_the_token(user, published):
    doors = (hub.download, hub.publish, hub.search, runtime.load)
    assert {inspect.signature(door).parameters["token"].default for door in doors} == {None}
    (refused,) = user.call(f"hub.publish({str(published)!r}, 'org/digits', token=False)", token="hf_any")
    assert fails(refused, "ConfigurationError", r"token=False sends none.*Leave it out")


def test_private_repositories_need_the_token_which_no_other_host_sees(server, user, published):
    user.publish(published, private=True)
    assert server.repositories["org/digits"].private
    download = "hub.download('org/digits')"
    (refused,) = user.call(download, token=server.token)
    assert fails(refused, "RepositoryError", r"org/digits: there is no such repository.*private.*token=True")
    server.requests.clear()
    (folder,) = user.call("hub.download('org/digits', token=True)", token=server.token)
    assert content_of(Path(folder)).keys() == FETCHED
    elsewhere = server.requested(" /cdn/")
    assert {request.host for request in elsewhere} == {f"localhost:{server.port}"}
    assert {request.authorization for request in elsewhere} == {None}


DOORS = {
    "download": "hub.download('org/digits', token=TOKEN)",
    "load": "runtime.load('org/digits', device='cpu', token=TOKEN)",
    "torch": "runtime.load('org/digits', device='torch', token=TOKEN)",
    "load_detector": "runtime.load_detector('org/digits', token=TOKEN)",  # of a classifier it says that it is none
    "ccnn download": "ccnn('download', 'org/digits')",
    "ccnn classify": "ccnn('classify', 'digit.png', '--model', 'org/digits', '--device', 'cpu')",
    "ccnn detect": "ccnn('detect', 'digit.png', '--model', 'org/digits')",
    "ccnn export": "ccnn('export', 'org/digits', '-o', 'exported.onnx')",
    "ccnn list": "ccnn('list', '--hub', 'org')",
    "serve": "Replica(ServeOptions('org/digits', device='cpu', token=TOKEN))",
    "classify --ray": "RayClassifier('org/digits', device='cpu', token=TOKEN)",
}
AT_A_DOOR = """
import os, sys
os.chdir({folder!r})
from PIL import Image
from ccnn_zoo import cli, hub, runtime
from ccnn_zoo.errors import CCNNError, MetadataError
TOKEN = {token}
Image.new("L", (10, 12)).save("digit.png")

def ccnn(*arguments):
    sys.argv = ["ccnn", *arguments, *(["--token"] if TOKEN else [])]
    try:
        cli.main()
    except SystemExit as end:
        if isinstance(end.code, str) and "detector" not in end.code:
            raise CCNNError(end.code)

if {serves}:
    from ccnn_zoo.serve import RayClassifier, ServeOptions
    from ccnn_zoo.serve._replica import Replica

try:
    {call}
except MetadataError:
    print("opened")
except CCNNError as error:
    print("refused", error)
else:
    print("opened")
"""


@pytest.mark.parametrize("door", DOORS)
def test_every_door_opens_private_repositories_by_the_token_and_sends_it_only_if_asked(
    server, user, published, tmp_path, door
):
    serves = door in ("serve", "classify --ray")
    if serves:
        pytest.importorskip("ray", reason="the extra serve is not installed")
    user.publish(published, private=True)
    said = []
    for token in (False, True):
        server.requests.clear()
        program = AT_A_DOOR.format(folder=str(tmp_path), token=token, call=DOORS[door], serves=serves)
        said.append(user.run(program, token=server.token).splitlines()[-1])
        asked = {(r.path, r.authorization) for r in server.requested(r" /(api/models|org/)")}
        assert asked
        wanted = f"Bearer {server.token}" if token else None
        assert {(path, by) for path, by in asked if by != wanted} == set()
    assert re.match(r"refused .*(private.*token=True \(--token\)|org has published no network)", said[0]), said
    assert said[1] == "opened"


def test_a_token_is_refused_where_it_means_nothing_and_is_not_shown(published):
    for name in (f"local:{published}", str(published), str(published / "onnx" / "model.onnx")):
        with pytest.raises(ConfigurationError, match="token is for Hub") as caught:
            runtime.load(name, device="cpu", token="hf_secret")
        assert "hf_secret" not in str(caught.value)
    with pytest.raises(ConfigurationError, match="token must be True or False") as caught:
        ServeOptions("org/digits", token="hf_secret")
    assert "hf_secret" not in str(caught.value)


def test_branches_are_apart(server, user, published):
    first = user.publish(published)
    second = user.publish(published, revision="v2")
    repository = server.repositories["org/digits"]
    assert repository.branches == {"main": first, "v2": second}
    old, new, by_hash = user.call(
        "hub.download('org/digits')", "hub.download('org/digits', 'v2')", f"hub.download('org/digits', {second!r})"
    )
    assert (Path(old).name, Path(new).name, Path(by_hash).name) == (first, second, second)


def test_publishing_again_replaces_ours_and_keeps_the_rest(server, user, published):
    repository = server.create(
        "org/digits", {"onnx/model_fp16.onnx": b"old", "config.json": b"{}", "notes.md": b"mine"}
    )
    first = user.publish(published)
    assert repository.files.keys() == {".gitattributes", "notes.md", *FILES}
    assert user.publish(published) == first  # nothing new: no empty commit
    assert len(repository.commits) == 2


def test_a_card_with_words_of_ones_own_is_kept(server, user, published, tmp_path):
    folder = Path(shutil.copytree(published, tmp_path / "mine"))
    (folder / "README.md").write_bytes(b"# My own words\n")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["README.md"] = {"sha256": hashlib.sha256(b"# My own words\n").hexdigest(), "size": 15}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    user.publish(folder)
    assert server.repositories["org/digits"].files["README.md"] == b"# My own words\n"


@pytest.mark.parametrize("path", sorted(FETCHED - {"README.md"}))
def test_a_file_changed_on_the_way_is_refused_and_forgotten(server, user, published, path):
    """The size stays, so that huggingface_hub takes it."""
    user.publish(published)
    server.inject(f"GET .*/{path}", body="tampered")
    (refused,) = user.call("hub.download('org/digits')")
    assert fails(refused, "IntegrityError", rf"org/digits: .*{path}")
    server.faults.clear()
    (folder,) = user.call("hub.download('org/digits')")
    assert content_of(Path(folder))[path] == server.repositories["org/digits"].files[path]


def test_a_download_that_breaks_off_is_no_repository(server, user, published):
    user.publish(published)
    server.inject(r"GET .*/model\.safetensors", body="truncated")
    (refused,) = user.call("hub.download('org/digits')")
    assert fails(refused, "RepositoryError", r"org/digits: .*try again")
    server.faults.clear()
    (folder,) = user.call("hub.download('org/digits')")
    assert content_of(Path(folder)).keys() == FETCHED


def test_a_damaged_cache_is_found(server, user, published):
    user.publish(published)
    (folder,) = user.call("hub.download('org/digits')")
    file = Path(folder, "model.safetensors").resolve()
    data = file.read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    refused, again = user.call("hub.download('org/digits')", "hub.download('org/digits')")
    assert fails(refused, "IntegrityError", r"model\.safetensors has SHA-256 .*removed from the cache: download again")
    assert Path(again, "model.safetensors").read_bytes() == data


def _without_manifest(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if name != "manifest.json"}


def _with_unlisted_network(files: dict[str, bytes]) -> dict[str, bytes]:
    return {**files, "onnx/other.onnx": b"onnx"}


def _with_missing_network(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if name != "onnx/model.onnx"}


def _with_a_way_out(files: dict[str, bytes]) -> dict[str, bytes]:
    manifest = json.loads(files["manifest.json"])
    manifest["files"]["../../../../outside"] = {"sha256": "0" * 64, "size": 1}
    return {**files, "manifest.json": json.dumps(manifest).encode()}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (_without_manifest, "RepositoryError", r"is no ccnn-zoo repository: it has no manifest\.json"),
        (_with_unlisted_network, "IntegrityError", r"onnx/other\.onnx is not in manifest\.json"),
        (_with_missing_network, "IntegrityError", r"onnx/model\.onnx is missing"),
        (_with_a_way_out, "IntegrityError", r"'\.\./\.\./\.\./\.\./outside', which is no plain path"),
    ],
)
def test_repositories_that_contradict_their_manifest_are_refused(server, user, published, change, error, message):
    server.create("org/digits", change(content_of(published)))
    (refused,) = user.call("hub.download('org/digits')")
    assert fails(refused, error, f"org/digits.*{message}")


def test_a_change_by_somebody_else_is_not_overwritten(server, user, published):
    repository = server.create("org/digits")
    before = repository.branches["main"]
    theirs = repository.add({**repository.files, "config.json": b"theirs"})
    refused = user.publish(published, parent_commit=before)
    assert fails(refused, "RepositoryError", r"org/digits: somebody else has changed.*publish again")
    assert repository.branches["main"] == theirs
    assert user.publish(published, parent_commit=theirs) == repository.branches["main"] != theirs


def test_uploads_that_fail_leave_the_repository_as_it_was(server, user, published):
    repository = server.create("org/digits", {"config.json": b"earlier"})
    before = dict(repository.files)
    for request, status in (("POST .*/commit/", 403), ("POST .*/preupload/", 404), ("POST .*/objects/batch", 400)):
        server.faults.clear()
        server.inject(request, status=status)
        refused = user.publish(published)
        assert fails(refused, "RepositoryError", "org/digits: ")
        assert repository.files == before
    server.faults.clear()
    user.publish(published)  # what was uploaded already is not in the way
    assert repository.files.keys() >= FILES


def test_rights_are_explained(server, user, published):
    for token, repo_id, message in (
        (None, "org/digits", r"no token.*401.*hf auth login"),
        ("hf_wrong", "org/digits", r"none that the Hub accepts.*401.*hf auth login"),
        (server.token, "other/digits", r"no right.*403.*hf auth login"),
    ):
        refused = user.publish(published, repo_id, token=token)
        assert fails(refused, "RepositoryError", f"{repo_id}: .*{message}")
        assert "hf_wrong" not in refused[1]
    assert server.repositories == {}


def test_names_of_nothing_and_closed_doors_are_explained(server, user, published):
    server.create("org/digits", content_of(published))
    server.create("org/gated", gated=True)
    gone, revision, gated = user.call(
        "hub.download('org/gone')", "hub.download('org/digits', 'v9')", "hub.download('org/gated')"
    )
    assert fails(gone, "RepositoryError", r"org/gone: there is no such repository.*Check the spelling")
    assert fails(revision, "RepositoryError", r"org/digits: there is no revision 'v9'.*branch, tag or commit")
    assert fails(gated, "RepositoryError", r"org/gated: access is gated.*Ask for it on .*org/gated")
    server.inject("GET /api/models", status=503)
    (down,) = user.call("hub.download('org/digits')")
    assert fails(down, "RepositoryError", r"org/digits: the Hub answered 503.*Try again later")


def test_offline_the_cache_is_enough(server, user, published):
    user.publish(published)
    (folder,) = user.call("hub.download('org/digits')")
    server.requests.clear()
    cached, other, upload = user.call(
        "hub.download('org/digits')",
        "hub.download('org/other')",
        f"hub.publish({str(published)!r}, 'org/digits')",
        HF_HUB_OFFLINE="1",
    )
    assert cached == folder
    assert fails(other, "RepositoryError", r"org/other: .*not .*in the cache.*offline mode is on.*HF_HUB_OFFLINE")
    assert fails(upload, "RepositoryError", r"org/digits: offline mode is on.*HF_HUB_OFFLINE")
    assert server.requests == []


def test_a_hub_that_cannot_be_reached_is_named(server, user, published):
    settings = {"HF_ENDPOINT": "http://127.0.0.1:9"}
    down, up = user.call("hub.download('org/digits')", f"hub.publish({str(published)!r}, 'org/digits')", **settings)
    assert fails(down, "RepositoryError", r"org/digits: http://127\.0\.0\.1:9 cannot be reached.*try again")
    assert fails(up, "RepositoryError", r"org/digits: http://127\.0\.0\.1:9 cannot be reached.*try again")


def test_a_cache_that_cannot_be_written_is_named_with_the_remedy(server, user, published, tmp_path):
    user.publish(published)
    place = tmp_path / "home"
    place.write_text("a file, where a folder should be")
    for home in (place, place / "below"):
        (refused,) = user.call("hub.download('org/digits')", HF_HOME=str(home))
        assert fails(refused, "RepositoryError", rf"the cache {home}/hub cannot be written \(.*Set HF_HOME")
    program = """
from ccnn_zoo import runtime
from ccnn_zoo.errors import RepositoryError
try:
    runtime.load("ccnn_resnet18_cifar.mnist", device="cpu")
except RepositoryError as error:
    print(error)
"""
    said = user.run(program, HF_HOME=str(place))
    assert re.match(rf"the cache {place}/assets cannot be written \(.*Set HF_HOME", said)
