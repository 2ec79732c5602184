"""One walk through folders for all doors: what is found, what is left out and said, and what ends nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from pixel_network import save_pixel_network

from ccnn_zoo import pictures
from ccnn_zoo.errors import ConfigurationError
from ccnn_zoo.metadata import DetectorMetadata
from ccnn_zoo.train import load_data

CCNN = Path(sys.executable).with_name("ccnn")
DEPTH = 1100  # more than Python's limit of recursion


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> Path:
    return save_pixel_network(tmp_path_factory.mktemp("network") / "pixels.onnx", 4, 4)


def picture(path: Path, colour: str = "red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), colour).save(path, "PNG")
    return path


@pytest.fixture
def deep_folder() -> Iterator[Callable[[Path], Path]]:
    """Make nested folders below one, a picture in the last, and return its path; they are gone at the end."""
    made = []

    def make(root: Path) -> Path:
        made.append(root / "d")
        before = os.open(".", os.O_RDONLY)
        try:
            os.chdir(root)
            for _ in range(DEPTH):
                os.mkdir("d")
                os.chdir("d")
            picture(Path("x.png"))
        finally:
            os.fchdir(before)
            os.close(before)
        return root.joinpath(*["d"] * DEPTH, "x.png")

    yield make
    subprocess.run(["rm", "-rf", *map(str, made)], check=True)  # Python's and pytest's own removal is recursive


def without_power(command: list[str]) -> list[str]:
    """Return a command that may not read what its user may not: root may read everything."""
    if os.geteuid():
        return command
    if shutil.which("setpriv") is None:
        pytest.skip("as root this needs setpriv")
    powers = "-dac_override,-dac_read_search"
    return ["setpriv", f"--bounding-set={powers}", f"--inh-caps={powers}", *command]


def run(*arguments: object) -> tuple[int, list[str], list[str]]:
    """Run ``ccnn`` in its own process, as the user would, and return exit status and the lines of both streams."""
    command = without_power([str(CCNN), *map(str, arguments)])
    done = subprocess.run(command, capture_output=True, text=True, errors="surrogateescape", timeout=300)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stdout.splitlines(), done.stderr.splitlines()


def classified(network: Path, *arguments: object) -> tuple[int, list[str], list[str]]:
    """Run ``ccnn classify`` and return exit status, the pictures that were classified, and what stderr says."""
    status, lines, told = run("classify", *arguments, "--model", network, "--device", "cpu", "--json")
    results = map(json.loads, lines)
    return status, [result["source"] for result in results if result["error"] is None], told


def test_pictures_come_in_the_order_of_names_whatever_their_depth(tmp_path):
    expected = [picture(tmp_path / name) for name in ("a.png", "b/x.png", "b/y/z.gif", "b.PNG", "c.jfif")]
    found = list(pictures.pictures_in(tmp_path, pictures.LeftOut()))
    assert found == [str(tmp_path / name) for name in ("a.png", "b/x.png", "b/y/z.gif", "b.PNG", "c.jfif")]
    assert sorted(found) == sorted(map(str, expected))


def test_what_begins_with_a_dot_or_has_another_suffix_is_counted(tmp_path):
    for name in ("x.png", ".ipynb_checkpoints/x.png", "._x.png", ".DS_Store", "sub/.hidden.jpg"):
        picture(tmp_path / name)
    for name in ("notes.txt", "a.TXT", "labels.json", "README"):
        (tmp_path / name).write_text("no picture")
    left_out = pictures.LeftOut()
    assert list(pictures.pictures_in(tmp_path, left_out)) == [str(tmp_path / "x.png")]
    assert left_out.hidden == 4
    assert left_out.others == {".txt": 2, ".json": 1, "": 1}
    assert str(left_out) == (
        "4 with names that begin with a dot, 4 that are no pictures by their suffixes (.txt 2, .json 1, no suffix 1)"
    )


def test_links_are_followed_and_loops_end(tmp_path):
    picture(tmp_path / "elsewhere" / "x.png")
    folder = tmp_path / "folder"
    picture(folder / "a.png")
    (folder / "b").symlink_to(tmp_path / "elsewhere")
    (folder / "c.png").symlink_to(tmp_path / "elsewhere" / "x.png")
    (folder / "loop").symlink_to(folder)
    (folder / "sub").mkdir()
    (folder / "sub" / "up").symlink_to("..")
    (folder / "sub" / "self").symlink_to("self")
    (folder / "sub" / "nowhere.png").symlink_to("gone")
    for number in range(12):  # each leads to all the others: as many ways as 12! without a guard
        (folder / f"f{number}").mkdir()
        for other in range(12):
            (folder / f"f{number}" / f"l{other}").symlink_to(folder / f"f{other}")
    left_out = pictures.LeftOut()
    found = [Path(path).relative_to(folder).as_posix() for path in pictures.pictures_in(folder, left_out)]
    assert found == ["a.png", "b/x.png", "c.png", "sub/nowhere.png"]
    assert left_out.again == 2 + 12 * 12
    assert left_out.others == {"": 1}  # "self", which leads to itself


def test_folders_may_be_nested_more_deeply_than_calls(tmp_path, network, deep_folder):
    deepest = deep_folder(tmp_path)
    assert list(pictures.pictures_in(tmp_path, pictures.LeftOut())) == [str(deepest)]
    assert classified(network, tmp_path) == (0, [str(deepest)], [])


def test_a_path_that_cannot_be_read_ends_nothing(network, tmp_path):
    barred, good = picture(tmp_path / "unreadable.png"), picture(tmp_path / "good.png")
    barred.chmod(0)
    status, found, told = classified(network, barred, tmp_path / "gone.png", good)
    assert (status, found) == (1, [str(good)])
    assert told == [f"{barred} cannot be read: Permission denied", f"{tmp_path / 'gone.png'}: no such file"]


def test_folders_that_give_nothing_are_named_and_the_others_searched(network, tmp_path):
    good = picture(tmp_path / "photos" / "z" / "good.png")
    (tmp_path / "photos" / "empty").mkdir()
    barred = picture(tmp_path / "photos" / "barred" / "x.png").parent
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("no picture")
    barred.chmod(0)
    try:
        status, found, told = classified(network, tmp_path / "notes", tmp_path / "photos")
    finally:
        barred.chmod(0o755)
    assert (status, found) == (1, [str(good)])
    assert told[0] == "left out: 1 that are no pictures by their suffixes (.txt 1)"
    assert told[1].startswith(f"{barred} cannot be searched: Permission denied")
    assert told[2] == f"{tmp_path / 'photos' / 'empty'} is an empty folder"
    assert told[3].startswith(f"{tmp_path / 'notes'} holds no pictures (.jpg, ")
    assert len(told) == 4


@pytest.fixture(scope="module")
def detector(tmp_path_factory) -> Path:
    """A detector that finds one object in whatever it sees."""
    values = {"boxes": np.array([[0, 0, 2, 2]], np.float32), "labels": np.array([1]), "scores": np.float32([0.9])}
    nodes = [helper.make_node("Constant", [], [name], value=numpy_helper.from_array(v)) for name, v in values.items()]
    takes = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, "H", "W"])
    gives = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in values.items()
    ]
    graph = helper.make_graph(nodes, "constant", [takes], gives)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    helper.set_model_props(model, DetectorMetadata("constant", 1, ("thing",), 64, 64).to_props())
    path = tmp_path_factory.mktemp("detector") / "detector.onnx"
    onnx.save(model, path)
    return path


def test_detect_ends_at_no_path_that_cannot_be_read(detector, tmp_path, deep_folder):
    barred, good = picture(tmp_path / "unreadable.png"), picture(tmp_path / "good.png")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    barred.chmod(0)
    (tmp_path / "photos" / "empty").mkdir(parents=True)
    deepest = deep_folder(tmp_path / "photos")
    paths = [barred, broken, tmp_path / "gone.png", tmp_path / "photos", good]
    status, lines, told = run("detect", *paths, "--model", detector, "--device", "cpu", "--json")
    results = [json.loads(line) for line in lines]
    found = [(each["source"], len(each["objects"])) for each in results if each["error"] is None]
    assert (status, found) == (1, [(str(deepest), 1), (str(good), 1)])
    assert told[0] == f"{barred} cannot be read: Permission denied"
    assert told[1].startswith(f"{broken} ")
    assert told[2:] == [f"{tmp_path / 'gone.png'}: no such file", f"{tmp_path / 'photos' / 'empty'} is an empty folder"]


@pytest.mark.parametrize("command", ["classify", "detect"])
def test_a_network_that_cannot_be_read_is_named(network, tmp_path, command):
    good, barred = picture(tmp_path / "good.png"), Path(shutil.copy(network, tmp_path / "network.onnx"))
    barred.chmod(0)
    status, _, told = run(command, good, "--model", barred, "--device", "cpu")
    assert (status, len(told)) == (1, 1)
    assert re.match(
        rf"error: cannot read {barred}: .*Permission denied.* Check the file and your rights to it", told[0]
    )


def test_where_there_is_no_picture_at_all_nothing_is_written(network, tmp_path):
    (tmp_path / "photos").mkdir()
    output = tmp_path / "photos.csv"
    output.write_text("of an earlier run")
    status, _, told = run("classify", tmp_path / "photos", "--model", network, "--device", "cpu", "-o", output)
    assert status == 1
    assert told == [f"error: {tmp_path / 'photos'} is an empty folder. Name files, or another folder."]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "photos.csv"]
    assert output.read_text() == "of an earlier run"


@pytest.mark.filterwarnings("error")
def test_training_sees_the_pictures_that_classify_sees(tmp_path, network):
    for part in ("train", "test"):
        for label in ("cat", "dog"):
            for suffix in pictures.SUFFIXES:
                picture(tmp_path / part / label / f"x{suffix}")
    data = load_data(f"folder:{tmp_path}")
    assert len(data.train) == len(data.test) == 2 * len(pictures.SUFFIXES)
    status, found, told = classified(network, tmp_path / "train")
    assert sorted(found) == sorted(map(str, data.train.paths))
    assert (status, told) == (0, [])


def test_training_ignores_what_begins_with_a_dot_and_says_so(tmp_path):
    for name in ("train/cat/0.png", "train/.ipynb_checkpoints/1.png", "train/cat/._0.png", "test/cat/0.png"):
        picture(tmp_path / name)
    (tmp_path / "train" / "labels.txt").write_text("cat")
    (tmp_path / "train" / "cat" / "empty").mkdir()
    told = r"left out 2 with names that begin with a dot, 1 that are no .*\.txt 1.*; .*cat/empty is an empty folder"
    with pytest.warns(UserWarning, match=told):
        data = load_data(f"folder:{tmp_path}")
    assert data.labels == ("cat",)
    assert [Path(path).name for path in data.train.paths] == ["0.png"]
    with tarfile.open(tmp_path / "cifar10.tar", "w") as archive:
        for part in ("train", "test"):
            archive.add(tmp_path / part, f"./{part}")
    with pytest.warns(UserWarning, match="left out 2 with names that begin with a dot"):
        data = load_data(f"cifar10:{tmp_path / 'cifar10.tar'}")
    assert (data.labels, len(data.train)) == (("cat",), 1)


def test_training_reads_folders_that_are_deep_or_linked(tmp_path, deep_folder):
    for part in ("train", "test"):
        picture(tmp_path / part / "cat" / "0.png")
        (tmp_path / part / "cat" / "loop").symlink_to(tmp_path / part / "cat")
    (tmp_path / "train" / "dog").symlink_to(picture(tmp_path / "dogs" / "1.png").parent)
    (tmp_path / "test" / "dog").symlink_to(tmp_path / "dogs")
    deep_folder(tmp_path / "train" / "cat")
    with pytest.warns(UserWarning, match="left out 2 that links lead to again"):
        data = load_data(f"folder:{tmp_path}")
    assert (data.labels, data.train.targets.tolist()) == (("cat", "dog"), [0, 0, 1])
    (tmp_path / "test" / "dog").unlink()
    (tmp_path / "test" / "dog").mkdir()
    with pytest.raises(ConfigurationError, match=r"the class .*test/dog holds no pictures \(\.jpg, "):
        load_data(f"folder:{tmp_path}")
