"""Attacks on those who download, each seen refused; docs/security.md has the table.

Every repository here has a manifest that vouches for its files: what is refused is refused for what it holds.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import shutil
import tomllib
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import onnx
import pytest
import timm
from hub_network import content_of, published_folder
from hub_server import HubServer
from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, TensorProto, helper
from packaging.requirements import Requirement
from torch import nn

from ccnn_zoo import hub
from ccnn_zoo.errors import ConfigurationError, IntegrityError, RepositoryError


def seal(folder: Path) -> None:
    """Write a manifest that vouches for all that is in the folder."""
    files = {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
        for name, content in content_of(folder).items()
        if name != "manifest.json"
    }
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "files": files}))


@pytest.fixture
def repository(tmp_path) -> Path:
    """A copy of a repository, for the attacker."""
    return Path(shutil.copytree(published_folder(), tmp_path / "digits"))


def external(name: str = "w") -> TensorProto:
    """A tensor whose values are in another file: here, in one that the attacker wants to see."""
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../../../../etc/passwd")
    return tensor


def graph_with(node: NodeProto) -> GraphProto:
    return helper.make_graph([node], "inner", [], [])


def identity(attribute: AttributeProto) -> NodeProto:
    node = helper.make_node("Identity", ["x"], ["y"])
    node.attribute.append(attribute)
    return node


def _external_initializer(model: ModelProto) -> None:
    model.graph.initializer.append(external())


def _location_alone(model: ModelProto) -> None:
    model.graph.initializer.add(name="w", data_type=1, dims=[1], data_location=TensorProto.EXTERNAL)


def _entries_alone(model: ModelProto) -> None:
    """No location is set, so that the checker sees a plain tensor."""
    tensor = external()
    tensor.ClearField("data_location")
    model.graph.initializer.append(tensor)


def _external_constant(model: ModelProto) -> None:
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=external()))


def _external_in_a_list(model: ModelProto) -> None:
    attribute = AttributeProto(name="values", type=AttributeProto.TENSORS, tensors=[external()])
    model.graph.node.append(identity(attribute))


def _external_sparse_initializer(model: ModelProto) -> None:
    sparse = model.graph.sparse_initializer.add(dims=[1])
    sparse.values.CopyFrom(external())
    sparse.indices.CopyFrom(helper.make_tensor("i", TensorProto.INT64, [1], [0]))


def _external_sparse_indices(model: ModelProto) -> None:
    sparse = onnx.SparseTensorProto(dims=[1], values=helper.make_tensor("v", 1, [1], [0.0]), indices=external())
    attribute = AttributeProto(name="sparse_value", type=AttributeProto.SPARSE_TENSOR, sparse_tensor=sparse)
    model.graph.node.append(identity(attribute))


def _external_sparse_list(model: ModelProto) -> None:
    sparse = onnx.SparseTensorProto(dims=[1], values=external())
    attribute = AttributeProto(name="many", type=AttributeProto.SPARSE_TENSORS, sparse_tensors=[sparse])
    model.graph.node.append(identity(attribute))


def _external_in_a_branch(model: ModelProto) -> None:
    inner = graph_with(helper.make_node("Constant", [], ["c"], value=external()))
    branch = graph_with(helper.make_node("If", ["x"], ["y"], then_branch=inner, else_branch=inner))
    model.graph.node.append(helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch))


def _external_in_a_list_of_graphs(model: ModelProto) -> None:
    inner = graph_with(helper.make_node("Constant", [], ["c"], value=external()))
    model.graph.node.append(identity(AttributeProto(name="g", type=AttributeProto.GRAPHS, graphs=[inner])))


def _external_in_a_function(model: ModelProto) -> None:
    constant = helper.make_node("Constant", [], ["c"], value=external())
    model.functions.append(FunctionProto(name="f", domain="local", node=[constant]))


def _external_default_of_a_function(model: ModelProto) -> None:
    default = AttributeProto(name="a", type=AttributeProto.TENSOR, t=external())
    model.functions.append(FunctionProto(name="f", domain="local", attribute_proto=[default]))


def _external_in_training(model: ModelProto) -> None:
    model.training_info.add().initialization.initializer.append(external())


def _custom_operator(model: ModelProto) -> None:
    model.graph.node.append(helper.make_node("RunMe", ["x"], ["y"], domain="evil.corp"))


def _custom_operator_in_a_branch(model: ModelProto) -> None:
    body = graph_with(helper.make_node("RunMe", ["x"], ["y"], domain="evil.corp"))
    model.graph.node.append(helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body))


def _compiled(model: ModelProto) -> None:
    model.graph.node.append(
        helper.make_node("EPContext", ["x"], ["y"], domain="com.microsoft", ep_cache_context="x.so")
    )


def _compiled_without_a_domain(model: ModelProto) -> None:
    model.graph.node.append(helper.make_node("EPContext", ["x"], ["y"], ep_cache_context="x.so"))


OTHER_FILES, NOT_OWN = "keeps tensors in other files", "which are not ONNX's own"


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (_external_initializer, OTHER_FILES),
        (_location_alone, OTHER_FILES),
        (_entries_alone, OTHER_FILES),
        (_external_constant, OTHER_FILES),
        (_external_in_a_list, OTHER_FILES),
        (_external_sparse_initializer, OTHER_FILES),
        (_external_sparse_indices, OTHER_FILES),
        (_external_sparse_list, OTHER_FILES),
        (_external_in_a_branch, OTHER_FILES),
        (_external_in_a_list_of_graphs, OTHER_FILES),
        (_external_in_a_function, OTHER_FILES),
        (_external_default_of_a_function, OTHER_FILES),
        (_external_in_training, OTHER_FILES),
        (_custom_operator, NOT_OWN),
        (_custom_operator_in_a_branch, NOT_OWN),
        (_compiled, NOT_OWN + "|compiled network"),
        (_compiled_without_a_domain, r"compiled network \(EPContext\)"),
    ],
)
def test_networks_that_point_elsewhere_are_refused(repository, attack: Callable[[ModelProto], None], message):
    path = repository / "onnx" / "model.onnx"
    model = onnx.load(path)
    attack(model)
    path.write_bytes(model.SerializeToString())
    seal(repository)
    with pytest.raises(IntegrityError, match=rf"onnx/model\.onnx .*({message}).*Do not use it"):
        hub.download(f"local:{repository}")
    with pytest.raises(IntegrityError, match=message):
        hub.publish(repository, f"local:{repository.parent}/other")
    with pytest.raises(ConfigurationError, match=rf"fp16 network .*({message}).*Export it again"):
        hub.publish(nn.Identity(), f"local:{repository.parent}/other", networks={"fp16": path})
    assert os.listdir(repository.parent) == ["digits"]


def _graph_twice(model: bytes) -> bytes:
    """Protobuf merges repeated messages: the second adds to the first."""
    extra = ModelProto()
    extra.graph.initializer.append(external())
    return model + extra.SerializeToString()


def _domain_twice(model: bytes) -> bytes:
    """Of repeated strings the last one counts."""
    node = NodeProto(op_type="RunMe", domain="evil.corp").SerializeToString() + NodeProto(domain="").SerializeToString()
    node += b"\x3a\x00"
    graph = b"\x0a" + bytes([len(node)]) + node
    return model + b"\x3a" + bytes([len(graph)]) + graph


def _truncated(model: bytes) -> bytes:
    return model[:-1]


def _pickled(model: bytes) -> bytes:
    return pickle.dumps({"weights": [1.0]})


def _ort_format(model: bytes) -> bytes:
    return b"\x18\x00\x00\x00ORTM" + model


def _deep(model: bytes) -> bytes:
    """Nested far deeper than protobuf allows, to exhaust the stack."""
    message = b""
    for _ in range(3000):
        message = b"\x32" + _size(message) + message  # attribute's graph
        message = b"\x2a" + _size(message) + message  # node's attribute
        message = b"\x0a" + _size(message) + message  # graph's node
    return b"\x3a" + _size(message) + message


def _size(message: bytes) -> bytes:
    size, encoded = len(message), b""
    while size > 0x7F:
        encoded += bytes([size & 0x7F | 0x80])
        size >>= 7
    return encoded + bytes([size])


def _long_tag(model: bytes) -> bytes:
    return b"\xba\x80\x80\x80\x80\x80\x00" + model


@pytest.mark.parametrize(
    "change",
    [_graph_twice, _domain_twice, _truncated, _pickled, _ort_format, _deep, _long_tag, lambda model: b""],
)
def test_networks_written_to_fool_the_check_are_refused(repository, change):
    path = repository / "onnx" / "model.onnx"
    path.write_bytes(change(path.read_bytes()))
    seal(repository)
    with pytest.raises(IntegrityError, match=r"onnx/model\.onnx .*Do not use it"):
        hub.download(f"local:{repository}")


def test_every_prefix_of_a_network_is_refused_or_harmless(repository):
    """The check ends, with an answer, whatever the bytes are."""
    path = repository / "onnx" / "model.onnx"
    model = path.read_bytes()
    for size in (1, 2, 3, 7, 50, 1000, len(model) // 2):
        path.write_bytes(model[:size])
        seal(repository)
        with pytest.raises(IntegrityError, match=r"is no ONNX network"):
            hub.download(f"local:{repository}")


class _Payload:
    def __reduce__(self) -> tuple:
        return os.mkdir, (os.environ["CCNN_TEST_TRAP"],)


@pytest.mark.parametrize("protocol", [0, 4])
def test_a_pickle_called_safetensors_is_refused_and_never_run(repository, tmp_path, monkeypatch, protocol):
    trap = tmp_path / "sprung"
    monkeypatch.setenv("CCNN_TEST_TRAP", str(trap))
    weights = repository / "model.safetensors"
    weights.write_bytes(pickle.dumps(_Payload(), protocol))
    seal(repository)
    with pytest.raises(IntegrityError, match=r"model\.safetensors is no safetensors file.*Do not use it"):
        hub.download(f"local:{repository}")
    with pytest.raises(Exception, match=r"(?i)header|deserializ"):  # safetensors' own
        timm.create_model(f"local-dir:{repository}", pretrained=True)
    assert not trap.exists()
    pickle.loads(weights.read_bytes())
    assert trap.exists()  # the trap works


def test_code_in_a_repository_is_neither_fetched_nor_run(server, user):
    files = content_of(published_folder())
    code = b"raise SystemExit('code of the repository ran')"
    names = ("modeling.py", "ccnn_zoo.py", "onnx/__init__.py", "hubconf.py")
    server.create("org/digits", {**files, **dict.fromkeys(names, code)})
    program = """
from ccnn_zoo import hub, runtime
import timm
folder = hub.download("org/digits")
runtime.load("org/digits", device="cpu")
timm.create_model("hf-hub:org/digits", pretrained=True)
print(sorted(path.name for path in folder.rglob("*.py")))
"""
    assert user.run(program) == "[]\n"


def test_a_manifest_changed_on_the_way_is_refused_though_it_is_valid(server, user):
    """Whoever changes a file and the manifest alike is seen by what the Hub lists for the manifest."""
    repository = server.create("org/digits", content_of(published_folder()))
    forged = repository.files["manifest.json"].replace(b'"branches": 2', b'"branches": 3')
    assert len(forged) == len(repository.files["manifest.json"])
    commit = repository.branches["main"]
    server.replaced["manifest.json"] = forged
    for revision in ("main", commit):
        (refused,) = user.call(f"hub.download('org/digits', {revision!r})")
        assert refused[0] == "IntegrityError"
        assert f"manifest.json is not the file that commit {commit[:12]} lists" in refused[1]
    (refused,) = user.call(f"hub.download('org/digits', {commit!r})", HF_HUB_DISABLE_SYMLINKS="1")
    assert "manifest.json is not the file that commit" in refused[1]
    server.replaced.clear()
    for settings in ({}, {"HF_HUB_DISABLE_SYMLINKS": "1"}):
        (folder,) = user.call(f"hub.download('org/digits', {commit!r})", **settings)
        assert Path(folder).name == commit


def test_the_token_is_in_no_file_and_no_output(server: HubServer, user, tmp_path):
    """``user.run`` looks at every output."""
    user.publish(published_folder(), private=True, tag="v1")
    assert user.publish(published_folder(), "other/digits")[0] == "RepositoryError"
    server.inject("POST .*/commit/", status=500, times=1)
    program = f"""
import logging
logging.basicConfig(level=logging.DEBUG)
from ccnn_zoo import hub
hub.publish({str(published_folder())!r}, "org/digits", revision="v2")
hub.download("org/digits", token=True)
print(repr(hub.search("org", token=True)))
"""
    user.run(program, token=server.token)
    assert "trying again" in user.errors  # what is logged was seen
    for path in user.home.rglob("*"):
        assert not path.is_file() or server.token.encode() not in path.read_bytes(), path
    for repository in server.repositories.values():
        for commit in repository.commits.values():
            assert not any(server.token.encode() in content for content in commit.files.values())


def test_pickles_are_not_published(repository, tmp_path):
    (repository / "weights.pth").write_bytes(pickle.dumps([1.0]))
    with pytest.raises(IntegrityError, match=r"weights\.pth, which may be a pickle"):
        hub.publish(repository, f"local:{tmp_path}/other")
    with pytest.raises(RepositoryError, match="no checkpoint at"):
        hub.publish(tmp_path / "gone.pth", f"local:{tmp_path}/other")
    assert not (tmp_path / "other").exists()


ROOT = Path(__file__).parents[1]


def test_every_line_of_the_attack_table_names_a_test_that_exists():
    table = (ROOT / "docs" / "security.md").read_text().split("## Attacks")[1].split("##")[0]
    lines = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(lines) > 10
    for line in lines:
        named = re.findall(r"`(tests/(?:attacks/)?\w+\.py)::(\w+)`", line)
        assert named, line
        for file, name in named:
            assert f"\ndef {name}(" in (ROOT / file).read_text(), line


def test_versions_with_known_holes_are_excluded():
    """The version before the fix must not be installable; the numbers are those of docs/security.md."""
    text = (ROOT / "docs" / "security.md").read_text()
    holes = re.findall(r"\| (\w+) \| CVE-\d+-\d+: [^|]+ \| ([\d.]+) \|", text)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = chain(project["dependencies"], *project["optional-dependencies"].values())
    required = [(r.name, r.specifier) for r in map(Requirement, lines)]
    assert {package for package, _ in holes} == {"onnx", "torch"}
    for package, fixed in holes:
        major, minor, _ = fixed.split(".")
        found = [specifier for name, specifier in required if name == package]
        assert found
        for specifier in found:
            assert f"{major}.{int(minor) - 1}.99" not in specifier, (package, fixed)
            assert "99" in specifier
