"""The Hub's protocol as others wrote it: an independent server to read from, an independent client to read with.

Neither is a dependency of ours; docs/hub.md says how to get them, and without them the tests are skipped.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from hub_network import FETCHED, LABELS, RECORD, SIZE, content_of, published_folder, trained_network
from waiting import HANG_S, free_port, until

from ccnn_zoo import hub, runtime
from ccnn_zoo.uncertainty import doubt

OLAH = os.environ.get("OLAH_CLI") or shutil.which("olah-cli")
TRANSFORMERS_JS = os.environ.get("TRANSFORMERS_JS")

pytestmark = pytest.mark.judge

LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize {}\n"


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=tester", "-c", "user.email=tester@localhost", "-c", "commit.gpgsign=false"]
    run = subprocess.run(["git", *identity, "-C", folder, *arguments], capture_output=True, text=True, check=True)
    return run.stdout.strip()


def make_git_repository(folder: Path, files: dict[str, bytes]) -> str:
    """Write what ``git lfs clone`` would leave, and return its commit."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".onnx", ".safetensors"):
            digest = hashlib.sha256(content).hexdigest()
            large = folder / ".git" / "lfs" / "objects" / digest[:2] / digest[2:4] / digest
            large.parent.mkdir(parents=True, exist_ok=True)
            large.write_bytes(content)
            content = LFS_POINTER.format(digest, len(content)).encode()
        path.write_bytes(content)
    git(folder, "init", "--quiet", "--initial-branch=main")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message=Publish")
    git(folder, "tag", "v1")
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture(scope="module")
def olah(tmp_path_factory) -> Iterator[tuple[str, str]]:
    """Run olah in its offline mode over a git repository, with nothing to fall back on; yield address and commit."""
    if not OLAH:
        pytest.skip("olah is not installed (docs/hub.md)")
    folder = tmp_path_factory.mktemp("olah")
    commit = make_git_repository(folder / "mirrors" / "models" / "org" / "digits", content_of(published_folder()))
    port = free_port()
    (folder / "configs.toml").write_text(f"""
[basic]
host = "127.0.0.1"
port = {port}
repos-path = "{folder}/repos"
mirrors-path = ["{folder}/mirrors"]
mirror-netloc = "127.0.0.1:{port}"
mirror-lfs-netloc = "127.0.0.1:{port}"
hf-netloc = "127.0.0.1:9"
[accessibility]
offline = true
""")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([OLAH, "-c", "configs.toml"], cwd=folder, stdout=log, stderr=log)
    try:
        url = f"http://127.0.0.1:{port}"
        until(lambda: _answers(f"{url}/api/models/org/digits/revision/main"), process)
        yield url, commit
    finally:
        process.terminate()
        process.wait()


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=HANG_S).close()
    except OSError:
        return False
    return True


def test_what_olah_serves_is_downloaded_verified_and_loaded(olah, user):
    url, commit = olah
    program = """
import timm, torch
from ccnn_zoo import hub, runtime
print(hub.download("org/digits"))
print(hub.download("org/digits", "v1"))
print(runtime.load("org/digits", device="cpu").metadata.labels)
print(sum(p.numel() for p in timm.create_model("hf-hub:org/digits", pretrained=True).parameters()) > 0)
"""
    main, tagged, labels, loaded = user.run(program, HF_ENDPOINT=url).splitlines()
    assert Path(main).name == Path(tagged).name == commit
    assert {name: content_of(published_folder())[name] for name in FETCHED} == content_of(Path(main))
    assert (labels, loaded) == (str(LABELS), "True")


def test_what_olah_serves_can_be_pinned(olah, user):
    url, commit = olah
    assert Path(user.call(f"hub.download('org/digits', {commit!r})", HF_ENDPOINT=url)[0]).name == commit
    (refused,) = user.call(f"hub.download('org/digits', {'0' * 40!r})", HF_ENDPOINT=url)
    assert refused[0] == "RepositoryError"


@pytest.fixture(scope="module")
def javascript(tmp_path_factory) -> Path:
    """A folder in which node finds transformers.js, and a module that points it to another Hub."""
    if not TRANSFORMERS_JS or not Path(TRANSFORMERS_JS, "node_modules", "@huggingface", "transformers").is_dir():
        pytest.skip("TRANSFORMERS_JS names no folder with @huggingface/transformers in node_modules (docs/hub.md)")
    if not shutil.which("node"):
        pytest.skip("node is not installed")
    folder = tmp_path_factory.mktemp("javascript")
    (folder / "node_modules").symlink_to(Path(TRANSFORMERS_JS).resolve() / "node_modules")
    (folder / "endpoint.mjs").write_text("""
import { env } from "@huggingface/transformers";
env.remoteHost = process.env.HF_ENDPOINT;
env.allowLocalModels = false;
env.cacheDir = process.env.HF_HOME;
""")
    return folder


def test_the_javascript_of_the_card_runs_as_printed_and_agrees(server, user, javascript):
    user.publish(published_folder())
    card = server.repositories["org/digits"].files["README.md"].decode()
    (snippet,) = re.findall(r"```js\n(.*?)```", card, re.DOTALL)
    (javascript / "snippet.mjs").write_text(snippet)
    command = ["node", "--import", "./endpoint.mjs", "snippet.mjs"]
    run = subprocess.run(command, cwd=javascript, capture_output=True, text=True, env=user.environment())
    assert run.returncode == 0, run.stderr
    (python,) = re.findall(r"```python\n(from ccnn_zoo import runtime.*?)```", card, re.DOTALL)
    assert run.stdout == user.run(python)
    assert re.fullmatch(rf"({'|'.join(LABELS)}) \d+\.\d%\n", run.stdout)


def test_javascript_gives_the_probabilities_of_runtime_onnx_and_torch(server, user, javascript, tmp_path):
    model, noise = trained_network(branches=2), torch.Generator().manual_seed(0)
    model.fc.weight.data.mul_(100)  # so that its answers differ by picture
    held = torch.randn(150, *SIZE, generator=noise)
    with torch.inference_mode():
        targets = model(held).argmax(1)
    targets = (targets + (torch.arange(150) % 3 == 0)) % len(LABELS)  # it is wrong on a third
    hub.publish(model, f"local:{tmp_path}/sure", record=RECORD, held_out=[(held, targets)])
    user.publish(tmp_path / "sure", "org/sure")
    images = torch.randn(3, *SIZE, generator=noise)
    (javascript / "pixels.bin").write_bytes(images.numpy().astype("<f4").tobytes())
    (javascript / "sure.mjs").write_text(f"""
import {{ readFileSync }} from "node:fs";
import {{ AutoModel, Tensor }} from "@huggingface/transformers";
const pixels = new Float32Array(new Uint8Array(readFileSync("pixels.bin")).buffer);
const model = await AutoModel.from_pretrained("org/sure", {{ dtype: "fp32" }});
const found = await model({{ image: new Tensor("float32", pixels, [3, {", ".join(map(str, SIZE))}]) }});
const entries = Object.entries(found).map(([name, tensor]) => [name, [tensor.dims, [...tensor.data]]]);
console.log(JSON.stringify(Object.fromEntries(entries)));
""")
    command = ["node", "--import", "./endpoint.mjs", "sure.mjs"]
    run = subprocess.run(command, cwd=javascript, capture_output=True, text=True, env=user.environment())
    assert run.returncode == 0, run.stderr
    found = {name: np.array(data).reshape(dims) for name, (dims, data) in json.loads(run.stdout).items()}
    classifier = runtime.load(tmp_path / "sure", device="cpu")
    numbers = classifier.metadata.confidence
    with torch.inference_mode():
        by_torch = (model(images).double() / numbers.temperature).softmax(-1).numpy()
        branches = (model.forward_branches(images).double() / numbers.temperature).softmax(-1).numpy()
    session = ort.InferenceSession(tmp_path / "sure/onnx/model.onnx", providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    by_onnx = dict(zip(names, session.run(None, {"image": images.numpy()}), strict=True))
    outputs = classifier.predict_branches(images.numpy())
    by_runtime = doubt(outputs.logits, outputs.branch_logits, numbers)
    assert found.keys() == by_onnx.keys()
    assert np.ptp(by_torch) > 0.01, "probabilities that are all alike would agree with anything"
    for ours in (by_torch, by_runtime.probabilities, by_onnx["probabilities"]):
        np.testing.assert_allclose(found["probabilities"], ours, rtol=0, atol=1e-5)
    np.testing.assert_allclose(found["branch_probabilities"], branches, rtol=0, atol=1e-5)
    np.testing.assert_allclose(found["uncertainty"][:, 0], by_runtime.entropy, rtol=0, atol=1e-5)
    np.testing.assert_allclose(found["uncertainty"][:, 1], by_runtime.mutual_information, rtol=0, atol=1e-5)
    assert np.abs(found["ood_score"] - by_runtime.percentile).max() <= 1
