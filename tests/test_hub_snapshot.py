"""What was downloaded lies in huggingface_hub's cache, as links, and goes wherever a repository goes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from hub_network import FETCHED, LABELS, SIZE, content_of, published_folder, training_folder

from ccnn_zoo import hub, runtime
from ccnn_zoo.checkpoint import load_checkpoint
from ccnn_zoo.cli import app
from ccnn_zoo.errors import IntegrityError

IMAGES = np.random.default_rng(0).normal(size=(4, *SIZE)).astype(np.float32)


@pytest.fixture(scope="module")
def published() -> Path:
    """A local repository, not to be changed."""
    return published_folder()


@pytest.fixture
def downloaded(server, user, published) -> Path:
    """A folder of the cache."""
    user.publish(published)
    (folder,) = user.call("hub.download('org/digits')")
    return Path(folder)


def with_halves(published: Path, tmp_path: Path) -> Path:
    """Return a copy with a file that stands for the half precision."""
    folder = Path(shutil.copytree(published, tmp_path / "halves"))
    shutil.copyfile(folder / "onnx/model.onnx", folder / "onnx/model_fp16.onnx")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["onnx/model_fp16.onnx"] = manifest["files"]["onnx/model.onnx"]
    manifest["networks"]["fp16"] = "onnx/model_fp16.onnx"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def flip_last_bit(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def test_a_downloaded_folder_is_loaded_and_exported(downloaded, published, tmp_path):
    expected = runtime.load(published, device="cpu").predict(IMAGES)
    for name in (downloaded, f"local:{downloaded}", downloaded / "onnx" / "model.onnx"):
        np.testing.assert_array_equal(runtime.load(name, device="cpu").predict(IMAGES), expected)
    assert np.allclose(runtime.load(downloaded, device="torch").predict(IMAGES), expected, atol=1e-4)
    trained, _ = load_checkpoint(training_folder() / "last.safetensors")
    loaded = timm.create_model(f"local-dir:{downloaded}", pretrained=True).eval()
    images = torch.from_numpy(IMAGES)
    assert torch.equal(loaded(images), trained(images))
    app(["export", str(downloaded), "-o", str(tmp_path / "x.onnx")], standalone_mode=False)
    assert np.allclose(runtime.load(tmp_path / "x.onnx", device="cpu").predict(IMAGES), expected, atol=1e-4)


def test_a_downloaded_folder_is_published_without_the_pictures_that_it_lacks(server, user, downloaded, tmp_path):
    user.publish(downloaded, "org/copy")
    files = server.repositories["org/copy"].files
    assert files.keys() == {".gitattributes", *FETCHED}
    card = files["README.md"].decode()
    assert 'runtime.load("org/copy")' in card
    assert "org/digits" not in card
    assert "pictures/" not in card
    (copy,) = user.call("hub.download('org/copy')")
    assert content_of(Path(copy)) == {name: files[name] for name in FETCHED}
    hub.publish(downloaded, f"local:{tmp_path}/copy")
    assert not any(path.is_symlink() for path in (tmp_path / "copy").rglob("*"))
    assert runtime.load(tmp_path / "copy", device="cpu").metadata.labels == LABELS
    assert "local-dir:." in (tmp_path / "copy" / "README.md").read_text()


def test_a_card_that_was_edited_on_the_hub_keeps_no_one_from_the_network(server, user, downloaded, tmp_path):
    repository = server.repositories["org/digits"]
    repository.add({**repository.files, "README.md": b"# In my own words\n"})
    (edited,) = user.call("hub.download('org/digits')")
    assert edited != str(downloaded)
    assert runtime.load(edited, device="cpu").metadata.labels == LABELS
    hub.publish(edited, f"local:{tmp_path}/copy")
    assert (tmp_path / "copy" / "README.md").read_bytes() == b"# In my own words\n"
    assert hub.download(f"local:{tmp_path}/copy") == tmp_path / "copy"


def test_a_folder_with_one_precision_gives_that_one_and_says_what_it_lacks(server, user, published, tmp_path):
    server.create("org/digits", content_of(with_halves(published, tmp_path)))
    (folder,) = user.call("hub.download('org/digits', precision='fp16')")
    assert content_of(Path(folder)).keys() == {"manifest.json", "onnx/model_fp16.onnx"}
    for name, options in ((folder, {"precision": "fp16"}), (f"{folder}/onnx/model_fp16.onnx", {})):
        assert runtime.load(name, device="cpu", **options).metadata.labels == LABELS
    with pytest.raises(IntegrityError, match=r"onnx/model\.onnx is missing\. Download it again; without a precision"):
        runtime.load(folder, device="cpu")
    with pytest.raises(IntegrityError, match=r"config\.json is missing"):
        hub.publish(folder, f"local:{tmp_path}/copy")


def test_what_was_changed_in_a_downloaded_folder_is_refused_and_left_there(downloaded, tmp_path):
    outside = tmp_path / "config.json"
    outside.write_bytes((downloaded / "config.json").read_bytes())
    (downloaded / "config.json").unlink()
    (downloaded / "config.json").symlink_to(outside)
    with pytest.raises(IntegrityError, match=r"config\.json is a link out of the repository, to .*config\.json"):
        hub.download(f"local:{downloaded}")
    network = (downloaded / "onnx" / "model.onnx").resolve()
    flip_last_bit(network)
    with pytest.raises(IntegrityError, match=r"onnx/model\.onnx has SHA-256 .*Download it again"):
        runtime.load(downloaded / "onnx" / "model.onnx", device="cpu")
    (downloaded / "README.md").unlink()
    (downloaded / "README.md").symlink_to(tmp_path / "config.json")  # publishing would copy what it leads to
    with pytest.raises(IntegrityError, match=r"README\.md is a link out of the repository"):
        hub.publish(downloaded, f"local:{tmp_path}/copy")
    (downloaded / "manifest.json").unlink()
    (downloaded / "manifest.json").symlink_to(outside)
    with pytest.raises(IntegrityError, match=r"manifest\.json is a link out of the repository"):
        hub.download(f"local:{downloaded}")
    assert network.is_file()
    assert outside.is_file()


def test_torch_gets_the_trained_weights_and_only_verified_ones(server, user, published):
    server.create("org/digits", content_of(published))
    server.inject(r"GET .*/model\.safetensors", body="tampered")
    program = """
from ccnn_zoo import runtime
from ccnn_zoo.errors import IntegrityError
try:
    runtime.load("org/digits", device="torch")
except IntegrityError as error:
    print(error)
"""
    assert "model.safetensors has SHA-256" in user.run(program)
    server.faults.clear()
    loaded = "from ccnn_zoo import runtime; print(runtime.load('org/digits', device='torch').provider)"
    assert user.run(loaded) == "torch\n"


def test_a_cache_that_cannot_be_written_hides_no_damage(server, user, downloaded):
    flip_last_bit((downloaded / "model.safetensors").resolve())
    program = """
import pathlib
from ccnn_zoo import hub
from ccnn_zoo.errors import IntegrityError

def refuse(*_, **__):
    raise PermissionError(13, "Permission denied")

pathlib.Path.unlink = refuse
try:
    hub.download("org/digits")
except IntegrityError as error:
    print(error)
"""
    assert "model.safetensors has SHA-256" in user.run(program)
