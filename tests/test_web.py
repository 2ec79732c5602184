"""Sites of ``ccnn web``, as far as they can be judged without a browser: what is refused, and what a graph gains."""

from __future__ import annotations

import os
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import serve_network
from hub_network import SIZE, trained_network
from PIL import Image

from ccnn_zoo import runtime, web
from ccnn_zoo.cli import main
from ccnn_zoo.errors import ConfigurationError, ExportError, IntegrityError, RepositoryError
from ccnn_zoo.export import add_preprocessing, to_onnx

MODULES = Path(web.__file__).parent


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "plain.onnx"
    to_onnx(trained_network(branches=2), path, branch_outputs=True)
    return path


def fake_package(folder: Path) -> Path:
    """A folder with files of the right names and other content."""
    (folder / "dist").mkdir(parents=True)
    for name in ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"):
        (folder / "dist" / name).write_bytes(b"hacked")
    return folder


def test_preprocessing_that_is_added_gives_what_the_runtime_gives_without_it(exported: Path, tmp_path: Path) -> None:
    added = add_preprocessing(exported, tmp_path / "added.onnx")
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, size, np.uint8)) for size in (SIZE[1:], (70, 41), (33, 90))]
    plain, wrapped = runtime.load(exported, device="cpu"), runtime.load(added, device="cpu")
    assert wrapped.metadata == replace(plain.metadata, preprocessing_in_graph=True)
    for one, other in zip(plain.classify(pictures), wrapped.classify(pictures), strict=True):
        assert one.label == other.label
        assert one.branches == other.branches
        assert one.probability == pytest.approx(other.probability, abs=0.01)  # a grey level, where the two round apart
    assert add_preprocessing(added, tmp_path / "again.onnx").read_bytes() == added.read_bytes()


def test_preprocessing_is_added_to_no_foreign_graph(tmp_path: Path, exported: Path) -> None:
    with pytest.raises(ExportError, match="does not take the one input 'image'"):
        add_preprocessing(serve_network.save_network(tmp_path / "other.onnx"))
    model = onnx.load(exported)
    model.graph.initializer[0].data_location = onnx.TensorProto.EXTERNAL
    model.graph.initializer[0].external_data.add(key="location", value="/etc/passwd")
    (tmp_path / "outside.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(IntegrityError):
        add_preprocessing(tmp_path / "outside.onnx")


def put_npm(folder: Path, package: Path) -> Path:
    """Write a program ``npm`` that packs a folder where npm would pack what it fetched."""
    folder.mkdir()
    (folder / "npm").write_text(
        f"#!{sys.executable}\nimport sys, tarfile\n"
        f"assert sys.argv[1:3] == ['pack', 'onnxruntime-web@{web.VERSION}'], sys.argv\n"
        f"with tarfile.open('onnxruntime-web-{web.VERSION}.tgz', 'w:gz') as archive:\n"
        f"    archive.add({str(package)!r}, 'package')\n"
    )
    (folder / "npm").chmod(0o755)
    return folder


def test_other_files_than_those_of_the_known_onnxruntime_web_are_refused(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(IntegrityError, match=re.escape(f"is not that of onnxruntime-web@{web.VERSION}")):
        web.write_site({"digits": exported}, tmp_path / "site", runtime=fake_package(tmp_path / "package"))
    monkeypatch.setenv("PATH", str(put_npm(tmp_path / "bin", tmp_path / "package")))
    with pytest.raises(IntegrityError, match=re.escape(f"is not that of onnxruntime-web@{web.VERSION}")):
        web.write_site({"digits": exported}, tmp_path / "site")
    with pytest.raises(ConfigurationError, match="holds no onnxruntime-web"):
        web.write_site({"digits": exported}, tmp_path / "site", runtime=tmp_path)
    assert not (tmp_path / "site").exists()


def test_without_npm_the_way_is_named(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"npm, which is not installed.*--runtime FOLDER"):
        web.write_site({"digits": exported}, tmp_path / "site")


def test_no_folder_but_a_site_is_replaced(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(RepositoryError, match="holds something else than a site"):
        web.write_site({"digits": exported}, tmp_path, runtime=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
    with pytest.raises(RepositoryError, match="is a file"):
        web.write_site({"digits": exported}, tmp_path / "thesis.txt", runtime=tmp_path)


@pytest.mark.parametrize(
    ("networks", "message"),
    [
        (["exported/plain.onnx", "exported/plain.onnx"], "two networks have the name 'plain'"),
        (["exported", "exported/plain.onnx"], "two networks have the name 'plain'"),  # of a folder each file is one
        (["none.onnx"], "no network found"),
    ],
    ids=str,
)
def test_the_command_refuses_names_that_are_one_or_none(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, networks: list[str], message: str
) -> None:
    shutil.copytree(exported.parent, tmp_path / "exported")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["ccnn", "web", *networks, "--runtime", "."])
    with pytest.raises(SystemExit) as caught:
        main()
    assert message in str(caught.value.code)
    assert os.listdir(tmp_path) == ["exported"]


def test_the_page_asks_nothing_of_others_and_makes_no_markup_of_names() -> None:
    for path in (MODULES / "assets").iterdir():
        if path.suffix in (".js", ".html", ".css"):
            text = path.read_text()
            assert not re.findall(r"(?:https?:)?//[a-z]", text), path.name
            assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|style=", text), path
