"""Contract of ccnn_zoo.train.load_data and of the batches made of it."""

from __future__ import annotations

import gzip
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from timm.data import create_transform
from torchvision.transforms.functional import hflip, pad, pil_to_tensor

from ccnn_zoo.errors import ConfigurationError, ImageError
from ccnn_zoo.train import Data, FileImages, Recipe, load_data
from ccnn_zoo.train._batches import PictureView, ShuffledOrder, TensorView, loader_of, view_of

MNIST_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def recipe(**kwargs) -> Recipe:
    return Recipe(**{"model": "ccnn_resnet18_cifar", "data": "digits", "epochs": 1, "batch_size": 8, **kwargs})


def write_folder(root: Path, splits=("train", "test"), classes=("cat", "dog"), size=(12, 10), count=3) -> Path:
    generator = np.random.default_rng(0)
    for split in splits:
        for label in classes:
            folder = root / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


def write_mnist(raw: Path, count: int = 20, zipped: bool = False) -> None:
    raw.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for name in MNIST_FILES:
        shape = (count, 28, 28) if "images" in name else (count,)
        header = b"\x00\x00\x08" + bytes([len(shape)]) + b"".join(n.to_bytes(4, "big") for n in shape)
        content = header + generator.integers(0, 10, shape, dtype=np.uint8).tobytes()
        if zipped:
            (raw / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (raw / name).write_bytes(content)


def test_digits_are_all_of_scikit_learns_split_without_overlap():
    data = load_data("digits")
    assert (len(data.train), len(data.test), data.input_size) == (1437, 360, (1, 8, 8))
    assert data.labels == tuple("0123456789")
    raw = load_digits()
    ours = torch.cat([data.train.pixels, data.test.pixels]).flatten(1).double() * 16 / 255
    rows = sorted(map(tuple, ours.round().int().tolist()))
    assert rows == sorted(map(tuple, raw.data.astype(int).tolist()))
    counts = torch.bincount(data.test.targets, minlength=10)
    assert torch.allclose(counts / 360, torch.tensor(np.bincount(raw.target) / 1797).float(), atol=0.004)


def test_digits_split_is_the_same_every_time():
    first, second = load_data("digits"), load_data("digits")
    assert torch.equal(first.test.pixels, second.test.pixels)


def test_mean_and_std_are_those_of_the_training_part():
    data = load_data("digits")
    values = data.train.pixels.double() / 255
    assert data.mean == pytest.approx([values.mean().item()])
    assert data.std == pytest.approx([values.std(correction=0).item()])


def test_items_are_pictures_with_their_class():
    picture, target = load_data("digits").test[5]
    assert (picture.mode, picture.size) == ("L", (8, 8))
    assert isinstance(target, int)


@pytest.mark.parametrize("place", ["", "MNIST", "MNIST/raw"])
@pytest.mark.parametrize("zipped", [False, True])
def test_mnist_is_found_wherever_its_layout_begins(tmp_path, place, zipped):
    write_mnist(tmp_path / "MNIST" / "raw", zipped=zipped)
    data = load_data(f"mnist:{tmp_path / place}")
    assert (len(data.train), data.input_size, data.name) == (20, (1, 28, 28), "MNIST (20 test images)")


def test_real_mnist_is_read_without_being_unpacked(real_data):
    data = load_data(f"mnist:{real_data}")
    assert (len(data.train), len(data.test)) == (60_000, 3_000)
    assert data.name == "MNIST (3,000 test images)"
    assert data.mean == pytest.approx([0.1307], abs=1e-4)  # the figures that every tutorial uses
    assert data.std == pytest.approx([0.3081], abs=1e-4)
    assert data.train.targets[:5].tolist() == [5, 0, 4, 1, 9]


def test_an_incomplete_mnist_names_what_is_missing(tmp_path):
    write_mnist(tmp_path / "MNIST" / "raw")
    (tmp_path / "MNIST" / "raw" / MNIST_FILES[1]).unlink()
    with pytest.raises(ConfigurationError, match=MNIST_FILES[1]):
        load_data(f"mnist:{tmp_path}")


def test_a_damaged_mnist_is_named(tmp_path):
    write_mnist(tmp_path, zipped=False) if not tmp_path.exists() else write_mnist(tmp_path / "raw")
    path = tmp_path / "raw" / MNIST_FILES[0]
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ConfigurationError, match="damaged"):
        load_data(f"mnist:{tmp_path}")


def test_a_truncated_gzip_is_named(tmp_path):
    write_mnist(tmp_path / "raw", zipped=True)
    path = tmp_path / "raw" / f"{MNIST_FILES[0]}.gz"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ConfigurationError, match=rf"{path.name} cannot be unpacked"):
        load_data(f"mnist:{tmp_path}")


def test_cifar10_is_the_same_from_a_folder_and_from_its_archive(tmp_path):
    root = write_folder(tmp_path / "images", classes=("b", "a"), size=(32, 32))
    with tarfile.open(tmp_path / "cifar10-jpeg.tar.xz", "w:xz") as archive:
        for split in ("test", "train"):
            archive.add(root / split, split)
    unpacked, by_name = load_data(f"cifar10:{root}"), load_data(f"cifar10:{tmp_path / 'cifar10-jpeg.tar.xz'}")
    found = load_data(f"cifar10:{tmp_path}")
    for data in (by_name, found):
        assert data.labels == unpacked.labels == ("a", "b")
        assert torch.equal(data.train.pixels, unpacked.train.pixels)
        assert torch.equal(data.test.targets, unpacked.test.targets)
        assert data.mean == unpacked.mean


def test_a_truncated_archive_is_named(tmp_path):
    root = write_folder(tmp_path / "images", size=(32, 32))
    with tarfile.open(tmp_path / "cifar10.tar.xz", "w:xz") as archive:
        archive.add(root / "train", "train")
    content = (tmp_path / "cifar10.tar.xz").read_bytes()
    (tmp_path / "cifar10.tar.xz").write_bytes(content[: len(content) // 2])
    with pytest.raises(ConfigurationError, match=r"cifar10\.tar\.xz"):
        load_data(f"cifar10:{tmp_path / 'cifar10.tar.xz'}")


def test_cifar10_images_of_two_sizes_are_refused(tmp_path):
    root = write_folder(tmp_path / "images", size=(32, 32))
    Image.new("RGB", (16, 32)).save(root / "train" / "dog" / "1.png")
    with pytest.raises(ImageError, match="16 x 32"):
        load_data(f"cifar10:{root}")


@pytest.mark.parametrize("split", ["test", "val", "valid", "validation"])
def test_any_folder_of_images_is_read(tmp_path, split):
    data = load_data(f"folder:{write_folder(tmp_path, splits=('train', split))}", image_size=64)
    assert (len(data.train), len(data.test), data.labels, data.input_size) == (6, 6, ("cat", "dog"), (3, 64, 64))
    assert [target for _, target in data.train] == [0, 0, 0, 1, 1, 1]


def test_a_test_part_comes_before_validation_parts(tmp_path):
    folder = write_folder(tmp_path, ("train", "valid"), count=4)
    assert len(load_data(f"folder:{folder}").test) == 8
    write_folder(folder, ("test",), count=1)
    assert len(load_data(f"folder:{folder}").test) == 2


def test_files_are_turned_upright(tmp_path):
    image = Image.new("RGB", (6, 4))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    assert FileImages([tmp_path / "a.jpg"], torch.tensor([0]))[0][0].size == (4, 6)


def test_an_unreadable_file_is_named(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    with pytest.raises(ImageError, match=r"broken\.png"):
        FileImages([tmp_path / "broken.png"], torch.tensor([0]))[0]


@pytest.mark.parametrize("name", ["", "digit", "digits:here", "mnist", "mnist:", "imagenet:/tmp"])
def test_an_unknown_name_lists_the_known_ones(name):
    with pytest.raises(ConfigurationError, match="digits, mnist:FOLDER, cifar10:FOLDER, folder:FOLDER"):
        load_data(name)


@pytest.mark.parametrize("kind", ["mnist", "cifar10", "folder"])
def test_a_missing_folder_is_named(tmp_path, kind):
    with pytest.raises(ConfigurationError, match=r"does not exist.*absent"):
        load_data(f"{kind}:{tmp_path / 'absent'}")


@pytest.mark.parametrize("kind", ["mnist", "cifar10", "folder"])
def test_an_empty_folder_says_what_was_expected(tmp_path, kind):
    with pytest.raises(ConfigurationError, match="Expected"):
        load_data(f"{kind}:{tmp_path}")


def test_another_layout_says_what_was_found_and_expected(tmp_path):
    write_folder(tmp_path, splits=("cats", "dogs"))
    with pytest.raises(ConfigurationError, match=r"found cats, dogs.*Expected train/CLASS"):
        load_data(f"folder:{tmp_path}")


def test_a_class_without_images_is_named(tmp_path):
    shutil.rmtree(write_folder(tmp_path) / "test" / "dog")
    (tmp_path / "test" / "dog").mkdir()
    with pytest.raises(ConfigurationError, match="dog"):
        load_data(f"folder:{tmp_path}")


def test_differing_classes_are_named(tmp_path):
    (write_folder(tmp_path) / "test" / "dog").rename(tmp_path / "test" / "wolf")
    with pytest.raises(ConfigurationError, match="dog, wolf"):
        load_data(f"folder:{tmp_path}")


def test_held_out_images_are_a_stratified_share_of_the_training_part():
    data = load_data("digits")
    rest, held_out = data.hold_out(0.2, seed=1)
    assert (len(rest.train), len(held_out), rest.test) == (1149, 288, data.test)
    assert torch.bincount(held_out.targets).min() >= 27
    together = torch.cat([rest.train.pixels, held_out.pixels]).flatten(1).tolist()
    assert sorted(together) == sorted(data.train.pixels.flatten(1).tolist())


def test_a_share_too_small_for_the_classes_is_refused():
    with pytest.raises(ConfigurationError, match=r"validation=0\.001"):
        load_data("digits").hold_out(0.001, seed=0)


# Batches


def timm_tensors(data: Data, images) -> torch.Tensor:
    transform = create_transform(**data.preprocessing(), is_training=False)
    return torch.stack([transform(picture) for picture, _ in images])


def test_evaluation_tensors_are_those_of_timms_transform():
    data = load_data("digits")
    view = view_of(data.test, data)
    assert isinstance(view, TensorView)
    images, targets = view.__getitems__(range(360))
    assert torch.equal(images, timm_tensors(data, data.test))
    assert torch.equal(targets, data.test.targets)


def test_evaluation_tensors_of_colour_images_are_those_of_timms_transform(tmp_path):
    data = load_data(f"cifar10:{write_folder(tmp_path, size=(32, 32))}")
    assert torch.equal(view_of(data.test, data).__getitems__(range(6))[0], timm_tensors(data, data.test))


@pytest.mark.parametrize("image_size", [None, 16])
def test_evaluation_tensors_of_resized_images_are_those_of_timms_transform(tmp_path, image_size):
    data = load_data(f"folder:{write_folder(tmp_path)}", image_size)
    view = view_of(data.test, data)
    assert isinstance(view, PictureView)
    assert torch.equal(view.__getitems__(range(6))[0], timm_tensors(data, data.test))


def as_pictures(batch: torch.Tensor, data: Data) -> torch.Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in (data.mean, data.std))
    return ((batch * std + mean) * 255).round().to(torch.uint8)


@pytest.mark.parametrize("fast", [True, False])
def test_augmented_images_are_crops_of_the_padded_image_and_all_of_them_occur(fast):
    data = load_data("digits")
    options = recipe(crop_padding=1, flip=0.5)
    view = (TensorView if fast else PictureView)(data.train, data, options)
    original = pad(pil_to_tensor(data.train[3][0]), 1)
    windows = [original[:, top : top + 8, left : left + 8] for top in range(3) for left in range(3)]
    allowed = [w for window in windows for w in (window, hflip(window))]
    seen = set()
    for epoch in range(150):
        view.start_epoch(epoch)
        (image,) = as_pictures(view.__getitems__([3])[0], data)
        matches = [number for number, window in enumerate(allowed) if torch.equal(image, window)]
        assert matches
        seen.update(matches)
    assert seen == set(range(18))


def test_a_random_resized_crop_gives_the_networks_size(tmp_path):
    data = load_data(f"folder:{write_folder(tmp_path)}", image_size=20)
    images, _ = view_of(data.train, data, recipe(crop_scale=(0.3, 0.9), flip=0.5)).__getitems__([0, 0, 5])
    assert images.shape == (3, 3, 20, 20)


@pytest.mark.parametrize("fast", [True, False])
def test_augmentation_depends_on_seed_epoch_and_image_only(fast):
    data = load_data("digits")
    views = [(TensorView if fast else PictureView)(data.train, data, recipe(crop_padding=2)) for _ in range(2)]
    views[0].start_epoch(1)
    views[0].__getitems__([9, 1, 4])
    for view in views:
        view.start_epoch(3)
    torch.manual_seed(5)
    whole = views[0].__getitems__(range(40))[0]
    torch.manual_seed(6)
    halves = [views[1].__getitems__(half)[0] for half in (range(20, 40), range(20))]
    assert torch.equal(whole, torch.cat(halves[::-1]))
    views[1].start_epoch(4)
    assert not torch.equal(whole, views[1].__getitems__(range(40))[0])


def test_transforms_leave_the_global_generators_alone():
    data = load_data("digits")
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    PictureView(data.train, data, recipe(crop_padding=2)).__getitems__(range(4))
    assert torch.equal(torch.rand(1), expected)


def test_an_epoch_visits_every_image_once_in_an_order_of_its_own():
    data = load_data("digits")
    order = ShuffledOrder(view_of(data.train, data, recipe()), seed=1)
    orders = []
    for epoch in (0, 1, 0):
        order.start_epoch(epoch)
        orders.append(list(order))
    assert sorted(orders[0]) == list(range(1437))
    assert orders[0] == orders[2] != orders[1]
    other = ShuffledOrder(view_of(data.train, data, recipe()), seed=2)
    assert list(other) != orders[0]


def test_workers_give_the_same_batches(tmp_path):
    data = load_data(f"folder:{write_folder(tmp_path)}", image_size=16)
    batches = []
    for workers in (0, 2):
        options = recipe(batch_size=2, workers=workers, crop_scale=(0.3, 1.0))
        view = view_of(data.train, data, options)
        order = ShuffledOrder(view, seed=0)
        order.start_epoch(2)
        batches.append(torch.cat([images for images, _ in loader_of(view, options, order)]))
    assert torch.equal(*batches)
