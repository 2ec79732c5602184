"""Measure ``ccnn serve`` under load from another process, with and without replicas that are killed.

    python scripts/bench_serve.py                    writes docs/serving_load.md
    python scripts/bench_serve.py load URL FOLDER    only sends pictures, and prints what came back as JSON

Requests come from as many connections as named, each sending its next one as soon as it has its answer, so that
latency under N connections is N / (requests per second). No request is ever sent twice by the client.
"""

from __future__ import annotations

import argparse
import http.client
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit

ROOT = Path(__file__).parent.parent
PICTURES = ROOT.parent / "shared" / "data" / "imagenet-sample"
DOCUMENT = ROOT / "docs" / "serving_load.md"
ANSWER_TIMEOUT_S = 120


class Load:
    """Connections that send pictures to a service until there were enough requests.

    Args:
        url: the service's.
        pictures: their encoded bytes by name, sent in turn.
        requests: how many to send in all; 0 sends until :meth:`stop`.
        connections: how many at once.
    """

    def __init__(self, url: str, pictures: dict[str, bytes], requests: int, connections: int) -> None:
        self._address = urlsplit(url).netloc
        self._pictures = list(pictures.items())
        self._numbers = iter(range(requests)) if requests else count()
        self._lock = threading.Lock()
        self._connections = connections
        self._seconds: list[float] = []
        self._statuses: Counter[str] = Counter()
        self._answers: dict[str, Counter[str]] = {name: Counter() for name in pictures}

    def run(self) -> dict[str, object]:
        """Send all requests; return statuses, answers by picture, requests per second and latencies in seconds."""
        threads = [threading.Thread(target=self._send) for _ in range(self._connections)]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        elapsed = time.perf_counter() - started
        ordered = sorted(self._seconds) or [0.0]
        return {
            "statuses": dict(self._statuses),
            "answers": {name: dict(answers) for name, answers in self._answers.items()},
            "requests_per_second": len(self._seconds) / elapsed,
            **{f"p{share}": ordered[min(len(ordered) - 1, len(ordered) * share // 100)] for share in (50, 99)},
            "slowest": ordered[-1],
        }

    def stop(self) -> None:
        """Let every connection end with the answer that it waits for."""
        with self._lock:
            self._numbers = iter(())

    def _send(self) -> None:
        connection = http.client.HTTPConnection(self._address, timeout=ANSWER_TIMEOUT_S)
        while True:
            with self._lock:
                number = next(self._numbers, None)
            if number is None:
                break
            name, picture = self._pictures[number % len(self._pictures)]
            started = time.perf_counter()
            try:
                connection.request("POST", "/classify?top_k=1", picture, {"Content-Type": "application/octet-stream"})
                response = connection.getresponse()
                status, body = str(response.status), response.read().decode()
            except (OSError, http.client.HTTPException) as error:
                status, body = type(error).__name__, ""
                connection.close()
            with self._lock:
                self._seconds.append(time.perf_counter() - started)
                self._statuses[status] += 1
                self._answers[name][body] += 1
        connection.close()


def load(arguments: argparse.Namespace) -> None:
    """Send pictures and print what came back; with no number of requests, until standard input is closed."""
    pictures = {path.name: path.read_bytes() for path in sorted(arguments.folder.iterdir())}
    sending = Load(arguments.url, pictures, arguments.requests, arguments.connections)
    if not arguments.requests:
        threading.Thread(target=lambda: (sys.stdin.read(), sending.stop()), daemon=True).start()
    print(json.dumps(sending.run()))


def sent(url: str, requests: int, connections: int, folder: Path = PICTURES) -> subprocess.Popen[str]:
    """Start a process that sends pictures, and go on."""
    command = [sys.executable, __file__, "load", url, str(folder), f"--requests={requests}"]
    return subprocess.Popen([*command, f"--connections={connections}"], stdout=subprocess.PIPE, text=True)


def received(process: subprocess.Popen[str]) -> dict[str, object]:
    """Wait for such a process and return what it prints."""
    output, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"the load ended with {process.returncode}")
    return json.loads(output)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers()
    sender = commands.add_parser("load", help="only send pictures")
    sender.add_argument("url")
    sender.add_argument("folder", type=Path)
    sender.add_argument("--requests", type=int, default=0, help="0: until standard input is closed")
    sender.add_argument("--connections", type=int, default=8)
    sender.set_defaults(run=load)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
