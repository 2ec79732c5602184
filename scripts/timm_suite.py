"""Run timm's own test suite on the networks and the optimizer of ccnn-zoo.

The suite is in timm's source distribution, which pip downloads into a cache folder; it is run as it is. This file
is also the pytest plugin that picks the tests: those of the chosen networks in test_models.py and those of ``csgd``
in test_optim.py. Tests that timm runs on a few networks by name run on ours too.

    python scripts/timm_suite.py                       # one network of each class but VGG
    python scripts/timm_suite.py --all                 # every network
    python scripts/timm_suite.py --models ccnn_nin -- -x --tb=short
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterable
from pathlib import Path

TIMM_VERSION = "1.0.31"
# VGG-16's 138 million weights alone take as long as all of these: --all has it.
ORDINARY = ("ccnn", "ccnn_alexnet", "ccnn_nin", "ccnn_resnet18", "ccnn_resnet20_cifar", "ccnn_wrn28_4")
OPTIMIZER = "csgd"
HANG_S = 3600  # timm's two minutes a test judge how busy the machine is; this ends what hangs
MODULES = ("ccnn_any", "ccnn_alexnet", "ccnn_nin", "ccnn_resnet", "ccnn_vgg", "ccnn_wrn")

# timm runs these on networks that it names, not on all that are registered; the value makes one parameter set.
BY_NAME = {
    "test_features_only_grad_checkpointing_backward": lambda name: name,
    "test_head_hidden_size": lambda name: (name, {}),
    "test_prune_intermediate_layers_params_used": lambda name: name,
    "test_reset_classifier_keeps_pool": lambda name: name,
}
# At the 64 pixels of these tests the features before AlexNet's and VGG's pooling are 1x1, where average and maximum
# agree (timm's own vgg16 fails there too); AlexNet's hidden layers, which follow the pooling, take no concatenated one.
# Which features a base gives is known when it is built, so "ccnn" takes timm's getter, which checkpoints no gradients.
NOT_BY_NAME = {
    "test_features_only_grad_checkpointing_backward": {"ccnn"},
    "test_head_hidden_size": {"ccnn_alexnet"},
    "test_reset_classifier_keeps_pool": {"ccnn_alexnet", "ccnn_vgg16"},
}


def main() -> int:
    """Download the suite where it is not yet, run it, and return pytest's exit status."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=ORDINARY, help="names of networks")
    parser.add_argument("--all", action="store_true", help="every network of the zoo")
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "ccnn-zoo" / "timm-suite")
    parser.add_argument("--jobs", default="2", help="processes of pytest-xdist; 0 runs all in one")
    parser.add_argument("pytest_args", nargs="*", help="after --: further arguments for pytest")
    options = parser.parse_args()
    folder = download(options.cache)
    command = [sys.executable, "-m", "pytest", "tests/test_models.py", "tests/test_optim.py", "-p", "timm_suite"]
    command += ["-p", "no:cacheprovider", "-n", options.jobs, *options.pytest_args]
    environment = {
        **os.environ,
        "TORCH_BACKEND": "ccnn_zoo",  # the suite imports it, and so registers the networks
        "TORCH_DEVICE": "cpu",
        "OMP_NUM_THREADS": "1",  # one process per core
        "TIMM_SUITE_MODELS": "*" if options.all else " ".join(options.models),
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
    }
    return subprocess.call(command, cwd=folder, env=environment)


def download(cache: Path) -> Path:
    """Return the unpacked source distribution of timm, which is downloaded into ``cache`` once."""
    folder = cache / f"timm-{TIMM_VERSION}"
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        subprocess.check_call([*pip, "--dest", str(cache), f"timm=={TIMM_VERSION}"])
        with tarfile.open(cache / f"timm-{TIMM_VERSION}.tar.gz") as archive:
            archive.extractall(cache, filter="data")
        # The tests are to judge the installed timm, not the one beside them.
        (folder / "timm").rename(folder / "timm_sources")
    return folder


def chosen_models() -> list[str]:
    """Return the networks that this run is about."""
    import timm

    import ccnn_zoo  # noqa: F401, registers the networks

    asked = os.environ["TIMM_SUITE_MODELS"].split()
    known = timm.list_models("ccnn*")
    unknown = set(asked) - {"*", *known}
    if unknown:
        raise SystemExit(f"no such network: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    return known if asked == ["*"] else asked


def pytest_configure() -> None:
    """Let the suite's list of modules with ``forward_intermediates`` include ours."""
    import timm

    timms_own = timm.list_models

    def list_models(*args: object, module: str | Iterable[str] = "", **kwargs: object) -> list[str]:
        if not isinstance(module, str):
            module = [*module, *MODULES]
        return timms_own(*args, module=module, **kwargs)

    timm.list_models = list_models


def pytest_pycollect_makeitem(collector: object, name: str, obj: object) -> None:
    """Add our networks, and our optimizer, to tests of fixed names."""
    marks = [mark for mark in getattr(obj, "pytestmark", []) if mark.name == "parametrize"]
    for mark in marks:
        if name in BY_NAME and mark.args[0].startswith("model_name"):
            models = [model for model in chosen_models() if model not in NOT_BY_NAME.get(name, ())]
            mark.args[1].extend(BY_NAME[name](model) for model in models)
        if name == "test_optimizer_convergence" and mark.args[0] == "optimizer":
            # "basic" is momentum 1, which converges with Nesterov's look-ahead alone: timm's "sgd" has it, ours not.
            convergence = collector.obj._CONVERGENCE_CFGS
            convergence[OPTIMIZER] = {**convergence["sgd"], "basic": ()}
            mark.args[1].append(OPTIMIZER)


def pytest_collection_modifyitems(config: object, items: list) -> None:
    """Keep the tests of the chosen networks, with every tag, and those of the optimizer."""
    import pytest

    wanted = {OPTIMIZER, *chosen_models()}
    kept, dropped = [], []
    for item in items:
        values = item.callspec.params.values() if hasattr(item, "callspec") else ()
        firsts = [value[0] if isinstance(value, tuple) and value else value for value in values]
        names = {first.partition(".")[0] for first in firsts if isinstance(first, str)}
        (kept if names & wanted else dropped).append(item)
    config.hook.pytest_deselected(items=dropped)
    items[:] = kept
    for item in kept:
        item.add_marker(pytest.mark.timeout(HANG_S), append=False)  # before timm's own


if __name__ == "__main__":
    raise SystemExit(main())
