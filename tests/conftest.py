"""Fixtures that several test files share."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import pytest

# What somebody set on their machine for the Hub, networks and terminals reaches no test, nor does their token.
# huggingface_hub reads its settings on import, so this comes first.
for _name in [*os.environ]:
    if _name.upper().startswith(("HF_", "HUGGING")) or _name.upper().endswith("_PROXY"):
        del os.environ[_name]
for _name in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "GITHUB_ACTIONS"):
    os.environ.pop(_name, None)
# On processors with AVX2 and without AVX-512, oneDNN's AVX2 kernels (torch 2.14.1) write past the end of what they
# allocate in the backward pass of convolutions with 4 channels, which many test networks have: docs/training.md.
_CPU = Path("/proc/cpuinfo")
if _CPU.is_file() and "avx512f" not in _CPU.read_text():
    os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX")
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="ccnn-tests-hub-")
atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)

import made_once  # noqa: E402
import quick_exports  # noqa: E402, F401
from hub_user import server, user  # noqa: E402

__all__ = ["server", "user"]

LONGER = Path(__file__).with_name("longer.txt")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real pictures outside the repository; what it holds stands in CONTRIBUTING.md.

    Only here is it asked where that folder is. A test that uses it is marked ``data``, and skips where none is named.
    """
    named = os.environ.get("CCNN_TEST_DATA")
    if not named:
        pytest.skip("CCNN_TEST_DATA names no folder of real pictures (CONTRIBUTING.md)")
    folder = Path(named).resolve()
    assert folder.is_dir(), f"CCNN_TEST_DATA={named} is no folder"
    return folder


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        made_once.begin()


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        made_once.end()


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    longer = {line for line in LONGER.read_text().splitlines() if line and not line.startswith("#")}
    for item in items:
        if "real_data" in getattr(item, "fixturenames", ()):
            item.add_marker("data")
        test = item.nodeid.partition("[")[0]
        if longer & {item.nodeid, test, test.partition("::")[0]}:
            item.add_marker("longer")
