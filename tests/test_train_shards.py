"""WebDataset shards, written by the library webdataset and read by timm's reader as the judge."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.readers import create_reader

from ccnn_zoo.errors import ConfigurationError, ImageError
from ccnn_zoo.train import Recipe, load_data, train

webdataset = pytest.importorskip("webdataset")


def write_shards(root: Path, splits: dict[str, int], target: str = "cls", per_shard: int = 5) -> Path:
    """Write random pictures, ``splits`` of each split, and timm's description of them."""
    generator = np.random.default_rng(0)
    root.mkdir()
    info = {}
    for split, count in splits.items():
        pattern = str(root / f"set-{split}-%02d.tar")
        with webdataset.ShardWriter(pattern, maxcount=per_shard, verbose=0) as writer:
            for number in range(count):
                pixels = generator.integers(0, 256, (12, 12, 3), dtype=np.uint8)
                label = number % 3
                content = {"cls": label} if target == "cls" else {"json": {"kind": label, "note": "of a test"}}
                writer.write({"__key__": f"{split}.d/{number:03}", "jpg": Image.fromarray(pixels), **content})
        shards = sorted(path.name for path in root.glob(f"set-{split}-*.tar"))
        lengths = [min(per_shard, count - per_shard * i) for i in range(len(shards))]
        info[split] = {"name": split, "filenames": shards, "shard_lengths": lengths, "num_samples": count}
        if target != "cls":
            info[split]["alt_label"] = "kind"
    (root / "_info.json").write_text(json.dumps({"splits": info}))
    return root


@pytest.mark.parametrize("target", ["cls", "json"])
def test_samples_are_those_that_timms_reader_streams(tmp_path, target):
    root = write_shards(tmp_path / "shards", {"train": 13, "validation": 4}, target)
    data = load_data(f"wds/{root}")
    for split, images in (("train", data.train), ("validation", data.test)):
        reader = create_reader("wds/shards", root=str(root), split=split)
        expected = [(np.asarray(image).tobytes(), label) for image, label in reader]
        found = [(np.asarray(image).tobytes(), label) for image, label in (images[i] for i in range(len(images)))]
        assert found == expected
    assert data.labels == ("0", "1", "2")
    (root / "classes.txt").write_text("cat\ndog\nowl\n", encoding="utf-8-sig")  # as Windows saves it
    assert load_data(f"wds/{root}", 32).labels == ("cat", "dog", "owl")


def test_a_run_on_shards_goes_on_exactly(tmp_path):
    root = write_shards(tmp_path / "shards", {"train": 24, "test": 6})
    recipe = Recipe(
        model="ccnn_resnet18_cifar",
        model_kwargs={"layers": [1, 1, 1, 1], "channels": [4, 4, 8, 8]},
        branches=2,
        data=f"wds/{root}",
        image_size=12,
        epochs=2,
        batch_size=8,
        flip=0.5,
        workers=1,
    )
    whole = train(recipe, tmp_path / "run", progress=False, pictures=False)
    max((tmp_path / "run" / "resume").glob("step-*")).unlink()
    again = train(replace(recipe, workers=0), tmp_path / "run", resume=True, progress=False, pictures=False)
    for ours, theirs in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_what_is_no_shard_is_refused_by_name(tmp_path):
    with pytest.raises(ConfigurationError, match=r"nowhere has no _info\.json\. Expected FOLDER/_info\.json"):
        load_data(f"wds/{tmp_path}/nowhere")
    root = write_shards(tmp_path / "shards", {"train": 3, "test": 3})
    info = (root / "_info.json").read_text()
    for text, told in [
        ("{", r"_info\.json is no JSON\. Expected"),
        ("\xff", r"_info\.json is no JSON\. Expected"),
        ("[" * 100_000, r"_info\.json is no JSON\. Expected"),
        ("[]", r"_info\.json has no object 'splits'\. Expected"),
        ('{"splits": {}}', r"_info\.json has the splits none, not train and one of test, "),
        ('{"splits": {"train": {"filenames": []}}}', r"_info\.json has the splits train, not train and one of test, "),
        ('{"splits": {"train": {"filenames": []}, "test": {}}}', r"'train' has no list 'filenames' of shards"),
        ('{"splits": {"train": 3, "test": {}}}', r"'train' has no list 'filenames' of shards"),
        ('{"splits": {"train": {"filenames": [3]}, "test": {}}}', r"'train' has no list 'filenames' of shards"),
    ]:
        (root / "_info.json").write_text(text, encoding="latin-1")
        with pytest.raises(ConfigurationError, match=told):
            load_data(f"wds/{root}")
    (root / "_info.json").write_text(info)
    add(root / "set-train-00.tar", "x.cls", b"1")
    with pytest.raises(ConfigurationError, match=r"set-train-00\.tar: the sample /x has no picture \(cls\)"):
        load_data(f"wds/{root}")
    add(root / "set-train-00.tar", "x.jpg", b"no picture")
    broken = load_data(f"wds/{root}").train
    told = r"set-train-00\.tar: the picture at byte \d+ is not an image of a known format"
    with pytest.raises(ImageError, match=told):
        broken[len(broken) - 1]
    add(root / "set-train-00.tar", "y.jpg", b"")
    with pytest.raises(
        ConfigurationError, match=r"/y has no class from 0, neither in \.cls nor as 'label' in \.json\. "
    ):
        load_data(f"wds/{root}")
    unusable = {"cls": [b"dog", b"-1"], "json": [b"{", b"[]", b'{"label": null}', b'{"label": 1e999}']}
    for kind, content in [(kind, content) for kind, contents in unusable.items() for content in contents]:
        odd = write_shards(tmp_path / "odd", {"train": 1, "test": 1})
        add(odd / "set-train-00.tar", "y.jpg", b"")
        add(odd / "set-train-00.tar", f"y.{kind}", content)
        with pytest.raises(ConfigurationError, match=rf"/y has no class from 0, .*: \.{kind} holds b'"):
            load_data(f"wds/{odd}")
        shutil.rmtree(odd)
    (root / "set-test-00.tar").write_bytes(b"no tar file")
    (root / "set-train-00.tar").unlink()
    with pytest.raises(ConfigurationError, match=r"00\.tar is no readable, uncompressed tar file: No such file"):
        load_data(f"wds/{root}")


def add(shard: Path, name: str, content: bytes) -> None:
    with tarfile.open(shard, "a") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
