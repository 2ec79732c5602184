"""The names that people type for a network, and the pictures that they hand over."""

from __future__ import annotations

import io
import json
import pickle
import shutil
import socket
import sys
from pathlib import Path

import pytest
import timm
import torch
from hub_network import published_folder, training_folder
from PIL import Image
from pixel_network import pixels_of, save_pixel_network

from ccnn_zoo import hub, runtime
from ccnn_zoo.checkpoint import load_checkpoint
from ccnn_zoo.cli import main
from ccnn_zoo.errors import ConfigurationError, ImageError

SHIPPED = "ccnn_resnet18_cifar.mnist"


@pytest.fixture(scope="module")
def published() -> Path:
    """A local repository, not to be changed."""
    return published_folder()


@pytest.fixture
def network(tmp_path) -> Path:
    return save_pixel_network(tmp_path / "pixels.onnx", 4, 4)


@pytest.fixture
def picture(tmp_path) -> Path:
    path = tmp_path / "cat.png"
    Image.linear_gradient("L").resize((4, 4)).convert("RGB").save(path)
    return path


@pytest.fixture
def ccnn(capfd, monkeypatch):
    """Run a command in this process; return its exit code and what it said on stdout and stderr."""

    def run(*arguments: object) -> tuple[object, str]:
        monkeypatch.setattr(sys, "argv", ["ccnn", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        said, code = "".join(capfd.readouterr()), ended.value.code
        return (1, f"{said}{code}") if isinstance(code, str) else (code, said)

    return run


def spellings(url: str) -> list[str]:
    return ["org/digits@v1", "hf-hub:org/digits@v1", "hf://org/digits@v1", f"{url}/org/digits/tree/v1/",
            "https://huggingface.co/org/digits/tree/v1", "huggingface.co/org/digits/tree/v1?x=1#files"]  # fmt: skip


def test_every_spelling_of_a_hub_repository_opens_it_at_that_revision(server, user, published, tmp_path):
    user.publish(published)
    tagged = user.publish(published, revision="v1")
    names = spellings(server.url)
    folders = user.call(*(f"hub.download({name!r})" for name in names), "hub.download('hf-hub:org/digits')")
    assert [Path(folder).name for folder in folders[:-1]] == [tagged] * len(names)
    assert Path(folders[-1]).name == server.repositories["org/digits"].branches["main"] != tagged
    program = f"""
from ccnn_zoo import runtime
for name in {names[:2] + names[4:5]!r}:
    print(runtime.load(name, device="cpu").source)
"""
    assert [tagged in line for line in user.run(program).splitlines()] == [True] * 3
    earlier = len(server.requests)
    user.ccnn("export", "org/digits@v1", "-o", tmp_path / "network.onnx")
    asked = [request.path for request in server.requests[earlier:]]
    assert any(revision in path for revision in ("v1", tagged) for path in asked)
    assert not any("main" in path for path in asked)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("https://example.com/org/x", "no address of the Hugging Face Hub"),
        ("https://huggingface.co/datasets/org/x", "something else than a repository"),
        ("https://huggingface.co/org/x/blob/main/onnx/model.onnx", "something else than a repository"),
        ("https://huggingface.co/org", "something else than a repository"),
    ],
)
def test_other_addresses_are_refused_with_what_to_write(name, said, monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("tried to reach a network"))
    for door in (runtime.load, runtime.load_detector, hub.download):
        with pytest.raises(ConfigurationError, match=said):
            door(name)


def test_two_revisions_are_one_too_many():
    for door in (runtime.load, hub.download):
        with pytest.raises(ConfigurationError, match=r"revision 'v1'|the revision v1, and revision='v2': give one"):
            door("org/x@v1", revision="v2")


@pytest.mark.parametrize("command", ["classify", "detect", "export"])
@pytest.mark.parametrize("file", ["checkpoint-9.pth.tar", "MODEL.PT", "pytorch_model.bin"])
def test_pickles_are_refused_with_the_way_to_go(ccnn, tmp_path, picture, command, file):
    path = tmp_path / file
    torch.save(timm.create_model("resnet10t").state_dict(), path)
    arguments = (path,) if command == "export" else (picture, "--model", path)
    code, said = ccnn(command, *arguments)
    assert code == 1
    assert f"timm.create_model(NAME, checkpoint_path={str(path)!r})" in said
    timm.create_model("resnet10t", checkpoint_path=str(path))  # as it says


def test_a_training_folder_is_classified_with_once_it_is_exported(ccnn, tmp_path, picture):
    run = tmp_path / "run"
    shutil.copytree(training_folder(), run)
    code, said = ccnn("classify", picture, "--model", run, "--device", "cpu")
    assert (code, f"`ccnn export {run} -p fp32 -o {run}/model.onnx` first" in said) == (1, True)
    with pytest.raises(ConfigurationError, match=r"`ccnn export .*last\.safetensors -o model\.onnx` first"):
        runtime.load(run / "last.safetensors")
    assert ccnn("export", run, "-p", "fp32", "-o", run / "model.onnx")[0] == 0
    found = runtime.load(run, device="cpu")
    images = torch.randn(2, *found.metadata.input_size)
    expected = load_checkpoint(run / "last.safetensors")[0](images)
    torch.testing.assert_close(torch.from_numpy(found.predict(images.numpy())), expected, atol=1e-4, rtol=0)
    assert ccnn("classify", picture, "--model", run, "--device", "cpu")[0] == 0
    with pytest.raises(ConfigurationError, match=r"-p int8 -o .*model_quantized\.onnx"):
        runtime.load(run, precision="int8")


def test_shipped_weights_classify_by_their_name(monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("tried to reach a network"))
    found = runtime.load(SHIPPED, device="cpu")
    images = torch.randn(2, *found.metadata.input_size, generator=torch.Generator().manual_seed(0))
    expected = timm.create_model(SHIPPED, pretrained=True).eval()(images)
    torch.testing.assert_close(torch.from_numpy(found.predict(images.numpy())), expected, atol=1e-4, rtol=0)
    assert found.metadata.labels == tuple(map(str, range(10)))
    made = Path(found.source).stat().st_mtime_ns
    assert Path(runtime.load(SHIPPED, device="cpu").source).stat().st_mtime_ns == made, "exported only once"
    with pytest.raises(ConfigurationError, match=r"int8 needs images.*ccnn export"):
        runtime.load(SHIPPED, precision="int8")


def test_precision_and_threads_are_options_of_classify(ccnn, published, network, picture):
    opened = runtime.load(published, precision="fp32", threads=1)
    grey = picture.with_name("grey.png")
    Image.open(picture).convert("L").save(grey)
    code, said = ccnn(
        "classify", grey, "--model", published, "--device", "cpu", "--threads", "1", "--precision", "fp32"
    )
    assert (code, opened.classify(grey)[0].label in said) == (0, True)
    code, said = ccnn("classify", picture, "--model", published, "--precision", "int8")
    assert (code, "has no int8 network" in said) == (1, True)
    code, said = ccnn("classify", picture, "--model", network, "--precision", "int8")
    assert (code, "precision chooses a file of a repository" in said) == (1, True)
    code, said = ccnn("classify", picture, "--model", network, "--threads", "0")
    assert (code, "threads must be" in said) == (1, True)


def test_a_picture_is_the_same_however_it_is_handed_over(network, picture):
    classifier = runtime.load(network, device="cpu")
    content = picture.read_bytes()

    class Pipe(io.RawIOBase):  # cannot seek
        def __init__(self) -> None:
            self.rest = io.BytesIO(content)

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: bytearray) -> int:
            return self.rest.readinto(buffer)

    with picture.open("rb") as file:
        forms = [picture, str(picture), Image.open(picture), content, bytearray(content), memoryview(content),
                 io.BytesIO(content), file, Pipe()]  # fmt: skip
        results = classifier.classify(forms, top_k=100)
        assert not file.closed
        assert classifier.classify(file, top_k=100)[0].predictions == results[0].predictions, "from its beginning again"
    assert {result.predictions for result in results} == {results[0].predictions}
    assert pixels_of(results[0].predictions, 4, 4).tolist() == pixels_of(
        classifier.classify(Image.open(picture), top_k=100)[0].predictions, 4, 4
    ).tolist()  # fmt: skip
    names = [str(picture)] * 2 + [f"image {n}" for n in range(2, 7)] + [str(picture), "image 8"]
    assert [result.source for result in results] == names
    assert [classifier.classify(one, top_k=1)[0].error for one in (content, io.BytesIO(content))] == [None, None]
    (broken,) = classifier.classify(content[:60])
    assert (broken.source, broken.error.startswith("image 0 ")) == ("image 0", True)
    with picture.with_name("x.txt").open("w") as text, pytest.raises(ImageError, match=r"opened as text.*'rb'"):
        classifier.classify(text)


def test_standard_input_is_a_picture(ccnn, network, picture, monkeypatch):
    def given(content: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))

    given(picture.read_bytes())
    code, said = ccnn("classify", "-", picture, "--model", network, "--device", "cpu", "--json")
    piped, named = (json.loads(line) for line in said.splitlines())
    assert (code, piped["source"], named["source"]) == (0, "-", str(picture))
    assert piped["predictions"] == named["predictions"]
    given(b"no picture")
    code, said = ccnn("classify", "-", "--model", network, "--device", "cpu")
    assert (code, said.startswith("- is not an image")) == (1, True)
    code, said = ccnn("classify", "-", "--model", network, "--ray")
    assert (code, "--ray reads files" in said) == (1, True)


def test_a_pickled_classifier_opens_its_file_again(network, picture, monkeypatch):
    monkeypatch.chdir(network.parent)
    classifier = runtime.load(network.name, device="cpu", threads=1, batch_size=3)
    content = pickle.dumps(classifier)
    assert len(content) < 2000, "the network is not in it"
    monkeypatch.chdir("/")
    again = pickle.loads(content)
    assert again.classify(picture, top_k=100) == classifier.classify(picture, top_k=100)
    assert again.metadata == classifier.metadata
    by_hand = runtime.ImageClassifier.__new__(runtime.ImageClassifier)
    with pytest.raises(ConfigurationError, match=r"make it by ccnn_zoo\.runtime\.load"):
        pickle.dumps(by_hand)
