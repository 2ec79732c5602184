"""Publishing to a folder and downloading from it."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors
import timm
import torch
import torchvision
from detector_network import seeded_detector
from forks import python
from hub_network import FILES, LABELS, RECORD, SIZE, content_of, published_folder, trained_network, training_folder
from huggingface_hub import ModelCard
from PIL import Image
from torch import nn

import ccnn_zoo
from ccnn_zoo import hub, runtime
from ccnn_zoo.errors import CCNNError, ConfigurationError, IntegrityError, MetadataError, RepositoryError


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return trained_network(branches=2)


@pytest.fixture(scope="module")
def published() -> Path:
    """A published repository, not to be changed."""
    return published_folder()


@pytest.fixture
def repository(published, tmp_path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(published, tmp_path / "digits"))


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param({}, marks=pytest.mark.slow),
        pytest.param({"branches": 8, "merge": "max"}, marks=pytest.mark.slow),
        {"branches": 2, "merge": "concat"},
        {"branches": 2, "folded": True},
    ],
    ids=str,
)
def test_timm_loads_the_same_network_from_what_was_published(tmp_path, arguments):
    model = trained_network(**arguments)
    publication = hub.publish(model, f"local:{tmp_path}/digits", record=RECORD)
    folder = hub.download(publication.repo_id)
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.randn(4, *SIZE)
    assert torch.equal(loaded(images), model(images))
    assert (loaded.branches, loaded.merge) == (model.branches, model.merge)
    assert loaded.pretrained_cfg["label_names"] == list(LABELS)
    assert publication.manifest.details["branches"] == model.branches
    # The number of branches is written down even where it is today's default.
    assert json.loads((folder / "config.json").read_text())["model_args"]["branches"] == model.branches


@pytest.mark.parametrize("classes", [5, 1000])
def test_the_configuration_names_the_classes_as_the_onnx_file_does(tmp_path, classes):
    small = {"layers": (1, 1, 1, 1), "channels": (8, 8, 8, 8), "num_classes": classes}
    overlay = {"input_size": (3, 32, 32)}
    if classes == 5:
        overlay["label_names"] = {str(i): LABELS[i] for i in (4, 2, 0, 1, 3)}  # timm's other form
    model = timm.create_model("resnet18", **small, pretrained_cfg_overlay=overlay)
    hub.publish(model, f"local:{tmp_path}/x", record=RECORD)
    labels = runtime.load(tmp_path / "x", device="cpu").metadata.labels
    assert classes == 1000 or labels == LABELS
    loaded = timm.create_model(f"local-dir:{tmp_path}/x", pretrained=True)
    assert tuple(loaded.pretrained_cfg["label_names"]) == labels
    assert f"| classes | {classes}: {labels[0]}, " in (tmp_path / "x" / "README.md").read_text()


def test_the_onnx_file_classifies_as_the_network(network, published):
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (20, 16), np.uint8)) for _ in range(6)]
    config = timm.data.resolve_model_data_config(network)
    transform = timm.data.create_transform(**config)
    with torch.inference_mode():
        expected = network(torch.stack([transform(picture) for picture in pictures])).softmax(-1)
    results = runtime.load(f"local:{published}", device="cpu").classify(pictures)
    assert [r.label for r in results] == [LABELS[i] for i in expected.argmax(-1)]
    np.testing.assert_allclose([r.probability for r in results], expected.amax(-1).numpy(), atol=1e-4)


def test_a_repository_is_these_files_and_their_sums(network, published):
    content = content_of(published)
    assert content.keys() == FILES
    manifest = json.loads(content.pop("manifest.json"))
    assert manifest["format"] == 1
    assert manifest["files"] == {
        name: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)} for name, data in content.items()
    }
    assert (manifest["architecture"], manifest["branches"]) == ("ccnn_resnet18_cifar", 2)
    assert manifest["record"]["metrics"] == RECORD.metrics
    assert manifest["export"]["max_difference"] < 1e-4
    with safetensors.safe_open(published / "model.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"
        assert file.metadata()["architecture"] == "ccnn_resnet18_cifar"
        assert "conv1.calibration" in file.keys()  # noqa: SIM118, not a dict


def test_the_card_shows_what_was_measured_and_nothing_else(network, published):
    card = ModelCard.load(published / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("timm", "image-classification")
    assert card.data.license == "apache-2.0"
    assert {"ccnn", "ccnn-zoo", "onnx"} <= set(card.data.tags)
    assert {r.metric_type: r.metric_value for r in card.data.eval_results} == RECORD.metrics
    assert card.data.metrics == list(RECORD.metrics)
    shared = sum(p.numel() for p in network.parameters())
    folded = sum(p.numel() for p in ccnn_zoo.fold(network).parameters())
    assert shared < folded
    for row in (f"| branches (K) | 2 |\n| branches meet by | {network.merge} |", f"| {shared:,} |", f"| {folded:,} |"):
        assert row in card.text
    assert r"| data | digits \| five of them |" in card.text


def test_the_snippets_of_the_card_run_as_printed(repository):
    snippets = re.findall(r"```python\n(.*?)```", (repository / "README.md").read_text(), re.DOTALL)
    assert len(snippets) == 3
    answers = []
    for snippet in snippets:
        run = python(snippet, folder=repository)
        assert run.returncode == 0, run.stderr
        answers.append(run.stdout)
    assert len(set(answers)) == 1
    assert re.fullmatch(rf"({'|'.join(LABELS)}) \d+\.\d%\n", answers[0])


def test_checkpoints_are_published_with_their_record(network, published, tmp_path):
    checkpoint = training_folder() / "last.safetensors"
    hub.publish(network, f"local:{tmp_path}/digits", record=RECORD, curves=training_folder() / "curves.png")
    assert content_of(tmp_path / "digits") == content_of(published)
    hub.publish(str(checkpoint), f"local:{tmp_path}/digits", record=replace(RECORD, seed=8, metrics={}))
    manifest = json.loads((tmp_path / "digits" / "manifest.json").read_text())
    assert manifest["record"]["seed"] == 8
    card = ModelCard.load(tmp_path / "digits" / "README.md")
    assert (card.data.eval_results, card.data.metrics) == (None, None)
    with pytest.raises(RepositoryError, match=r"name the \.safetensors file"):
        hub.publish(training_folder(), f"local:{tmp_path}/other")


def test_folders_are_published_as_they_are(published, repository, tmp_path):
    publication = hub.publish(repository, f"local:{tmp_path}/deep/er/copy")
    assert content_of(Path(publication.location)) == content_of(published)
    hub.publish(repository, f"local:{repository}")
    assert content_of(repository) == content_of(published)
    (repository / "README.md").write_text("# Mine\n")
    with pytest.raises(IntegrityError, match=r"README\.md has 7 bytes"):
        hub.publish(repository, f"local:{tmp_path}/deep/er/copy")
    assert content_of(Path(publication.location)) == content_of(published)


def test_publishing_again_replaces_the_whole_repository(published, tmp_path):
    folder = tmp_path / "digits"
    hub.publish(trained_network(1, branches=1), f"local:{folder}", record=RECORD)
    before = content_of(folder)
    assert before.keys() == FILES - {"pictures/calibration.png", "pictures/errors.png"}  # one branch has no R
    hub.publish(published, f"local:{folder}")
    after = content_of(folder)
    assert after == content_of(published)
    assert all(before[name] != after[name] for name in before)
    assert os.listdir(tmp_path) == ["digits"]
    empty = tmp_path / "empty"
    empty.mkdir()
    hub.publish(published, f"local:{empty}")
    assert content_of(empty) == after


def test_links_to_a_repository_stay_links(published, repository, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(repository)
    (repository / "README.md").write_text("# Outdated\n")
    hub.publish(published, f"local:{link}")
    assert link.is_symlink()
    assert content_of(repository) == content_of(published)
    assert hub.download(f"local:{link}") == link


def test_publishing_leaves_the_network_and_the_random_numbers_alone(tmp_path):
    model = trained_network(branches=2).train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    hub.publish(model, f"local:{tmp_path}/digits", record=RECORD)
    assert model.training
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


def test_a_failed_publication_leaves_the_earlier_one(published, repository):
    model = trained_network()
    model.pretrained_cfg["label_names"] = {str(number + 1): name for number, name in enumerate(LABELS)}
    with pytest.raises(MetadataError, match="label_names is a table without the index"):
        hub.publish(model, f"local:{repository}", record=RECORD)
    assert content_of(repository) == content_of(published)
    assert os.listdir(repository.parent) == ["digits"]


def test_an_exchange_that_fails_brings_the_earlier_one_back(published, repository, monkeypatch):
    (repository / "README.md").write_text("# Earlier\n")
    before = content_of(repository)
    rename = Path.rename
    monkeypatch.setattr(ctypes, "CDLL", lambda name: None)  # a C library that cannot exchange folders

    def fail_on_new(path: Path, target: Path) -> Path:
        if path.name == "new":
            raise OSError(28, "No space left on device")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail_on_new)
    with pytest.raises(RepositoryError, match=r"cannot write local:.*No space left"):
        hub.publish(published, f"local:{repository}")
    assert content_of(repository) == before
    assert os.listdir(repository.parent) == ["digits"]


def _web_app(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"name": "A web app", "icons": []}')


def _note(folder: Path) -> None:
    (folder / "onnx" / "note.txt").write_text("do not lose me")


def _broken(folder: Path) -> None:
    (folder / "manifest.json").write_text("{")


def _photos(folder: Path) -> None:
    (folder / "manifest.json").unlink()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_web_app, "no repository of ours.*Choose another folder"),
        (_photos, "no repository of ours.*Choose another folder"),
        (_broken, "no repository of ours.*Choose another folder"),
        (_note, r"holds onnx/note\.txt.*would be lost"),
    ],
)
def test_what_is_not_ours_is_never_replaced(network, repository, make, message):
    make(repository)
    before = content_of(repository)
    with pytest.raises(RepositoryError, match=message):
        hub.publish(network, f"local:{repository}", record=RECORD)
    assert content_of(repository) == before
    assert os.listdir(repository.parent) == ["digits"]


def test_folders_that_cannot_be_written_are_named(published, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(RepositoryError, match="file is a file, not a folder"):
        hub.publish(published, f"local:{tmp_path}/file")
    for name in (f"local:{tmp_path}/file/below", "local:/proc/nowhere/digits"):
        with pytest.raises(RepositoryError, match=rf"cannot write {name}.*Choose a folder"):
            hub.publish(published, name)
    assert (tmp_path / "file").read_text() == "x"


def test_folded_networks_come_back_folded(network, tmp_path):
    hub.publish(ccnn_zoo.fold(network), f"local:{tmp_path}/digits", record=RECORD)
    loaded = timm.create_model(f"local-dir:{tmp_path}/digits", pretrained=True).eval()
    images = torch.randn(4, *SIZE)
    assert torch.equal(loaded(images), network(images))
    assert not any(name.endswith("calibration") for name in loaded.state_dict())


def test_networks_that_could_not_be_loaded_back_are_refused(tmp_path):
    altered = ccnn_zoo.calibrate(timm.create_model("resnet10t", num_classes=5), branches=2)
    altered.pretrained_cfg["label_names"] = list(LABELS)
    altered.layer1.extra = nn.Linear(1, 1)
    with pytest.raises(ConfigurationError, match=r"'layer1\.extra\.bias' and 1 more tensors.*model\.state_dict\(\)"):
        hub.publish(altered, f"local:{tmp_path}/digits", record=RECORD)
    for foreign in (nn.Conv2d(1, 1, 1), ccnn_zoo.calibrate(torchvision.models.resnet18(num_classes=5), branches=2)):
        with pytest.raises(ConfigurationError, match=r"no classifier of timm's.*model\.state_dict\(\)"):
            hub.publish(foreign, f"local:{tmp_path}/digits", record=RECORD)
    assert os.listdir(tmp_path) == []


def test_a_detector_with_a_tensor_that_create_detector_does_not_make_is_refused(tmp_path):
    detector = seeded_detector()
    detector.register_buffer("extra", torch.ones(1))
    with pytest.raises(ConfigurationError, match=r"'extra'.* Publish it as create_detector made it"):
        hub.publish(detector, f"local:{tmp_path}/cells", record=RECORD)
    assert os.listdir(tmp_path) == []


def test_wrong_arguments_are_named(network, published, tmp_path):
    target = f"local:{tmp_path}/digits"
    with pytest.raises(ConfigurationError, match="record is missing"):
        hub.publish(network, target)
    for value in (float("nan"), float("inf"), "2.4", None, True):
        record = replace(RECORD, metrics={"test_error_percent": value})
        with pytest.raises(ConfigurationError, match=f"'test_error_percent' of the record is {value!r}"):
            hub.publish(network, target, record=record)
    with pytest.raises(ConfigurationError, match="record, images, held_out, curves, pictures and networks"):
        hub.publish(published, target, record=RECORD)
    with pytest.raises(ConfigurationError, match="source must be"):
        hub.publish(3, target, record=RECORD)
    with pytest.raises(RepositoryError, match=r"no checkpoint at gone\.safetensors"):
        hub.publish("gone.safetensors", target)
    for argument in ({"revision": "main"}, {"private": True}, {"parent_commit": "a" * 40}, {"token": "hf_secret"}):
        (name,) = argument
        with pytest.raises(ConfigurationError, match=f"{name} is for Hub repositories") as caught:
            hub.publish(published, target, **argument)
        assert "hf_secret" not in str(caught.value)
    with pytest.raises(ConfigurationError, match="revision is for Hub repositories"):
        hub.download(f"local:{published}", "main")
    for name in ("digits", "a/b/c", "./digits", "/tmp/digits", "org/", "local:", ""):
        with pytest.raises(ConfigurationError, match=r"repo_id .*local:FOLDER"):
            hub.download(name)
        with pytest.raises(ConfigurationError, match=r"repo_id .*local:FOLDER"):
            hub.publish(published, name)
    assert os.listdir(tmp_path) == []


def _flip(repository: Path) -> None:
    path = repository / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def _truncate(repository: Path) -> None:
    path = repository / "onnx" / "model.onnx"
    path.write_bytes(path.read_bytes()[:-100])


def _remove(repository: Path) -> None:
    (repository / "config.json").unlink()


def _make_folder(repository: Path) -> None:
    (repository / "config.json").unlink()
    (repository / "config.json").mkdir()


def _link_out(repository: Path) -> None:
    outside = repository.parent / "outside"
    (repository / "config.json").rename(outside)
    (repository / "config.json").symlink_to(outside)


def _link_manifest_out(repository: Path) -> None:
    outside = repository.parent / "outside"
    (repository / "manifest.json").rename(outside)
    (repository / "manifest.json").symlink_to(outside)


def _link_folder_out(repository: Path) -> None:
    (repository / "onnx").rename(repository.parent / "outside")
    (repository / "onnx").symlink_to(repository.parent / "outside")


def _link_in_circles(repository: Path) -> None:
    (repository / "config.json").unlink()
    (repository / "config.json").symlink_to("config.json")


def _add_pickle(repository: Path) -> None:
    (repository / "onnx" / "Weights.PTH").write_bytes(b"\x80\x04.")


def _add_network(repository: Path) -> None:
    shutil.copy(repository / "onnx" / "model.onnx", repository / "onnx" / "model_fp16.onnx")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_flip, r"model\.safetensors has SHA-256 .* instead of .*Restore"),
        (_truncate, r"onnx/model\.onnx has [\d,]+ bytes instead of .*Restore"),
        (_remove, r"config\.json is missing.*Restore"),
        (_make_folder, r"config\.json is no regular file.*Restore"),
        (_link_out, r"config\.json is a link out of the repository.*Restore"),
        (_link_manifest_out, r"manifest\.json is a link out of the repository.*Do not use it"),
        (_link_folder_out, r"onnx/model\.onnx is a link out of the repository.*Restore"),
        (_link_in_circles, r"config\.json cannot be read.*Restore"),
        (_add_pickle, r"holds onnx/Weights\.PTH, which may be a pickle.*Remove"),
        (_add_network, r"onnx/model_fp16\.onnx is not in manifest\.json.*Remove"),
    ],
)
def test_damaged_repositories_are_refused(repository, tmp_path, damage, message):
    damage(repository)
    with pytest.raises(IntegrityError, match=rf"local:.*{message}"):
        hub.download(f"local:{repository}")
    with pytest.raises(IntegrityError, match=message):
        hub.publish(repository, f"local:{tmp_path}/other")
    assert not (tmp_path / "other").exists()


SUM = {"sha256": "0" * 64, "size": 1}


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        ("", "is not JSON.*Publish"),
        ("{", "is not JSON.*Publish"),
        ("[" * 100_000, "is not JSON.*Publish"),
        (b"\xff\xfe\x00", "is not JSON.*Publish"),
        ("[]", "has no table of files.*Publish"),
        ({"format": 1}, "has no table of files.*Publish"),
        ({"format": 1, "files": []}, "has no table of files.*Publish"),
        ({"format": 2, "files": {}}, "is of format 2, this version reads format 1. Upgrade"),
        ({"files": {}}, "is of format None"),
        ({"format": True, "files": {}}, "is of format True"),
        ({"format": 1.0, "files": {}}, "is of format 1.0"),
        *(
            ({"format": 1, "files": {name: SUM}}, "which is no plain path inside the repository. Do not use")
            for name in ("../x", "onnx/../../x", "/etc/passwd", "C:\\x", "C:x", "a\\b", "", ".", "./x", "a//b", "a\0b")
        ),
        *(
            ({"format": 1, "files": {name: SUM}}, "which may hold a pickle.*Do not use")
            for name in ("pytorch_model.bin", "onnx/x.PKL", "w.pt", "w.pth", "w.ckpt")
        ),
        *(
            ({"format": 1, "files": {"x": entry}}, "has no valid sha256 and size for 'x'")
            for entry in (None, {}, {**SUM, "sha256": "0" * 63}, {**SUM, "size": -1}, {**SUM, "size": True}, "0" * 64)
        ),
    ],
    ids=lambda value: str(value)[:40] if not isinstance(value, str) else "",
)
def test_malformed_manifests_are_refused(repository, manifest, message):
    text = json.dumps(manifest) if isinstance(manifest, dict) else manifest
    (repository / "manifest.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(IntegrityError, match=rf"local:.*manifest\.json.*{message}"):
        hub.download(f"local:{repository}")


def test_names_of_nothing_are_refused(tmp_path):
    with pytest.raises(RepositoryError, match=r"gone does not exist.*Check the spelling"):
        hub.download(f"local:{tmp_path}/gone")
    with pytest.raises(RepositoryError, match=r"is no ccnn-zoo repository: it has no manifest\.json.*ccnn publish"):
        hub.download(f"local:{tmp_path}")


def test_every_error_is_one_of_ours(repository):
    """One ``except CCNNError`` is enough."""
    assert issubclass(IntegrityError, CCNNError)
    _flip(repository)
    with pytest.raises(CCNNError):
        hub.download(f"local:{repository}")


def test_downloading_and_publishing_folders_import_neither_torch_nor_timm_nor_onnx(published, tmp_path):
    program = f"""
import sys
import ccnn_zoo.hub
print(sorted({{"torch", "timm", "onnx", "numpy", "huggingface_hub"}} & set(sys.modules)))
ccnn_zoo.hub.publish({str(published)!r}, "local:{tmp_path}/copy")
ccnn_zoo.hub.download("local:{tmp_path}/copy")
print(sorted({{"torch", "timm", "onnx"}} & set(sys.modules)))
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout == "[]\n[]\n"
