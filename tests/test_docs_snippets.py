"""The programs of the pages under docs/ run as printed, in their order, each page's in a folder of its own.

Which do not, and why, stands in tests/doc_pages.py. tests/docs_scene.py makes what the others find in their folder.
"""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from doc_pages import PAGES, blocks, why_not_run
from docs_scene import CCNN, PROGRAMS, SMALL_DETECTOR, scene
from hub_user import User
from serve_network import ray_folder
from waiting import HANG_S, free_port, until

RUN = {
    page: [
        (block.language, program)
        for block in blocks(page)
        for program in block.programs
        if not why_not_run(page, program)
    ]
    for page in PAGES
}
SERVES = ("ccnn serve ", "python -m http.server ")
ONE_EPOCH, SHALLOW = ["--epochs", "1"], "layers: [1, 1, 1, 1]"
QUICKER = {
    "ccnn train ": ONE_EPOCH,
    "ccnn train --recipe digits ": ["--set", f"model_kwargs={{{SHALLOW}}}"],
    "ccnn train --recipe cifar10_table1 ": ["--set", f"model_kwargs={{{SHALLOW}}}"],
    "ccnn train --model resnet18 ": ["--set", f"model_kwargs={{{SHALLOW}, channels: [8, 8, 8, 8]}}"],
    "ccnn train --recipe bccd_detection ": ["--set", f"model_kwargs={SMALL_DETECTOR}"],
    "ccnn analyze ": ["--runs", "2", "--steps", "3"],
    "ccnn classify photos/ --model org/ccnn_resnet18 --ray ": ["--processes", "2"],
}
"""How a command begins, and what is added to it, so that a test need not wait as a reader would."""
SCRIPT = "import runpy, sys\nsys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')"


class Reader:
    """Somebody who types what a page says, and has a token of the Hub.

    What the page serves goes on until the ``background`` ends.
    """

    def __init__(self, user: User, folder: Path, background: ExitStack) -> None:
        self.user, self.folder, self._background, self._port = user, folder, background, free_port()
        self._ray = background.enter_context(ray_folder())
        (folder / ".curlrc").write_text("fail\nsilent\nshow-error\n")  # a request that is refused is a failure

    def types(self, language: str, program: str) -> None:
        """Run what stands there: the port is a free one, and what takes minutes is made shorter."""
        program, token = program.replace("8000", str(self._port)), self.user.server.token
        if language == "python":
            self.user.run(program, token, folder=self.folder)
            return
        words = shlex.split(program, comments=True)
        for beginning, options in QUICKER.items():
            words += options if program.startswith(beginning) else []
        own = "--ray" in words or (self.folder / PROGRAMS).exists() or words[0] not in ("ccnn", "python")
        if program.startswith(SERVES):
            self._background.enter_context(self._serving(words))
        elif {"|", "<", ">", "&&"} & {*words}:
            self._run(["bash", "-euo", "pipefail", "-c", program])
        elif own:
            self._run(words)
        else:
            run = CCNN if words[0] == "ccnn" else SCRIPT
            self.user.run(run, token, arguments=words[1:], folder=self.folder)

    def _run(self, words: list[str]) -> None:
        run = subprocess.run(words, cwd=self.folder, env=self._environment(), capture_output=True, text=True)
        assert run.returncode == 0, run.stderr

    def _environment(self) -> dict[str, str]:
        path = os.pathsep.join([str(self.folder / PROGRAMS), str(Path(sys.executable).parent), os.environ["PATH"]])
        own = {"HF_TOKEN": self.user.server.token, "PATH": path, "HOME": str(self.folder)}
        return self._ray | self.user.environment(**own)

    @contextmanager
    def _serving(self, words: list[str]) -> Iterator[None]:
        with open(self.folder / "log", "ab") as log:
            process = subprocess.Popen(words, cwd=self.folder, env=self._environment(), stdout=log, stderr=log)
            try:
                until(self._answers, process)
                yield
            finally:
                process.terminate()
                process.wait(HANG_S)

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self._port)) == 0


# Half a minute or more each. `make test` still parses their commands and looks up their names (test_docs_pages.py).
SLOW = {"analysis.md", "browser.md", "detection.md", "hub.md", "serving.md"}


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=pytest.mark.slow if page in SLOW else ()) for page in PAGES if RUN[page]]
)
def test_what_the_page_shows_runs(page, user, tmp_path):
    scene(page, tmp_path, user)
    with ExitStack() as background:
        reader = Reader(user, tmp_path, background)
        for language, program in RUN[page]:
            try:
                reader.types(language, program)
            except AssertionError as error:
                raise AssertionError(f"{page}: {program}\n{error}") from error
