"""Where tools put labelled pictures: the layouts of folders that are read."""

from __future__ import annotations

TEST_SPLITS = ("test", "validation", "valid", "val")
"""What libraries of data sets call the test part, the first that is there."""
_SPLITS = ", else ".join(f"`{name}/`" for name in TEST_SPLITS)
LAYOUTS = (
    ("`digits`", "scikit-learn", "four fifths of 1,797 pictures", "the rest"),
    ("`mnist:`", "torchvision", "`MNIST/raw/train-*-ubyte`, gzipped or not", "`t10k-*-ubyte`"),
    ("`cifar10:`", "folders or a tar file, pictures of one size", "`train/CLASS/*`", f"`CLASS/*` in {_SPLITS}"),
    ("`folder:`", "folders, pictures of any size", "`train/CLASS/*`", f"`CLASS/*` in {_SPLITS}"),
    ("`hfds/`", "the library datasets", "`train`", ", else ".join(f"`{name}`" for name in TEST_SPLITS)),
    ("`wds/`", "WebDataset, with timm's `_info.json`", "`train`", ", else ".join(f"`{name}`" for name in TEST_SPLITS)),
)
"""What is read: (source, who writes it, where training pictures are, where those are that are tested on)."""
