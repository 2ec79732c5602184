"""Send pictures to ``ccnn serve`` and print what came back as JSON.

    python scripts/serve_load.py http://127.0.0.1:8000 FOLDER --requests 1000 --connections 8

Each connection sends its next picture as soon as it has its answer, so that latency under N connections is about
N / (requests per second). Nothing is ever sent twice.
"""

from __future__ import annotations

import argparse
import http.client
import json
import sys
import threading
import time
from collections import Counter
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit

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


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--requests", type=int, default=0, help="0: until standard input is closed")
    parser.add_argument("--connections", type=int, default=8)
    arguments = parser.parse_args()
    pictures = {path.name: path.read_bytes() for path in sorted(arguments.folder.iterdir())}
    sending = Load(arguments.url, pictures, arguments.requests, arguments.connections)
    if not arguments.requests:
        threading.Thread(target=lambda: (sys.stdin.read(), sending.stop()), daemon=True).start()
    print(json.dumps(sending.run()))


if __name__ == "__main__":
    main()
