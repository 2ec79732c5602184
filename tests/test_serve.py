"""``ccnn serve`` as its users meet it: a process of its own, real Ray, load from a further process."""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import json
import re
import signal
import socket
import subprocess
import sys
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.request import Request, urlopen

import jsonschema
import psutil
import pytest
from doc_pages import blocks
from openapi_spec_validator import validate
from serve_network import LABELS, METADATA, NUMBERS, encoded, probabilities_of, ray_folder, said_of, save_network
from waiting import HANG_S, free_port, until

pytest.importorskip("ray", reason="the extra serve is not installed")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:ray")

CCNN = Path(sys.executable).with_name("ccnn")
LOAD = Path(__file__).parent.parent / "scripts" / "serve_load.py"
COLOURS = {"red": (250, 10, 10), "green": (10, 250, 10), "blue": (10, 10, 250), "grey": (128, 128, 128)}
MAX_BYTES = 200_000


@dataclass
class Service:
    """A running ``ccnn serve``."""

    process: subprocess.Popen[bytes]
    log: Path
    address: str
    home: Path | None = None

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, object]:
        """Send one request on a connection of its own; headers' underscores are hyphens."""
        connection = http.client.HTTPConnection(self.address, timeout=HANG_S)
        try:
            connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
            response = connection.getresponse()
            text = response.read().decode()
            return response.status, json.loads(text) if "json" in response.headers["content-type"] else text
        finally:
            connection.close()

    def metric(self, name: str) -> float:
        _, text = self.ask("GET", "/metrics")
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(name))

    def replicas(self) -> list[psutil.Process]:
        """The processes that hold the network."""
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                if "ServeReplica" in " ".join(child.cmdline()):
                    found.append(child)
        return found


@pytest.fixture(scope="module")
def service(tmp_path_factory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("serve")
    network = save_network(folder / "network.onnx", metadata=replace(METADATA, confidence=NUMBERS))
    log = folder / "log"
    options = ["--device=cpu", "--replicas=2", "--threads=1", "--port=0", "--batch-size=4", "--batch-wait=0.2"]
    options += ["--max-risk=0.05"]
    options += [f"--max-bytes={MAX_BYTES}", f"--timeout={HANG_S}", "--header-timeout=30"]
    with ray_folder() as environment, log.open("wb") as stream:
        environment["HOME"] = str(folder)
        process = subprocess.Popen([CCNN, "serve", network, *options], stdout=stream, stderr=stream, env=environment)
        try:
            until(lambda: b"serving " in log.read_bytes(), process)
            yield Service(process, log, log.read_text().rpartition("http://")[2].strip(), folder)
        finally:
            process.terminate()
            process.wait(HANG_S)


def check(answer: object, colour: tuple[int, int, int], top_k: int) -> None:
    expected = list(probabilities_of(colour).items())[:top_k]
    found = [(p["label"], p["probability"]) for p in answer["predictions"]]
    assert [label for label, _ in found] == [label for label, _ in expected]
    assert [value for _, value in found] == pytest.approx([value for _, value in expected], rel=1e-5)
    assert all(LABELS[p["index"]] == p["label"] for p in answer["predictions"])


def form(*files: bytes) -> tuple[bytes, str]:
    parts = [
        b'--cut\r\nContent-Disposition: form-data; name="file"; filename="a.png"\r\n\r\n' + file + b"\r\n"
        for file in files
    ]
    return b"".join(parts) + b"--cut--\r\n", "multipart/form-data; boundary=cut"


def test_answers_are_the_networks_however_the_picture_comes(service):
    red = COLOURS["red"]
    status, answer = service.ask("POST", "/classify?top_k=6", encoded(red), Content_Type="image/png")
    assert status == 200
    check(answer, red, 6)
    body, kind = form(encoded(red))
    assert service.ask("POST", "/classify?top_k=6", body, Content_Type=kind) == (200, answer)
    counted = service.metric("ccnn_batch_size_sum")
    with ThreadPoolExecutor(12) as pool:  # pictures of several colours and top_k share batches
        requests = [(colour, 1 + number % 5) for number in range(6) for colour in COLOURS.values()]
        answers = pool.map(lambda r: service.ask("POST", f"/classify?top_k={r[1]}", encoded(r[0])), requests)
        for (colour, top_k), (status, answer) in zip(requests, answers, strict=True):
            assert status == 200
            check(answer, colour, top_k)
    assert service.metric("ccnn_batch_size_sum") - counted == len(requests)  # each batch once
    sizes = service.metric("ccnn_batch_size_sum") / service.metric("ccnn_batch_size_count")
    assert 1 < sizes <= 4
    assert service.ask("GET", "/healthz") == (200, {"status": "ok", "replicas": 2})
    assert service.ask("GET", "/")[1]["labels"] == list(LABELS)


def test_an_answer_says_what_it_is_worth_and_the_metrics_count_doubts(service):
    names = ('ccnn_decisions_total{outcome="abstained"}', "ccnn_decisions_total", "ccnn_out_of_distribution_total")
    before = [service.metric(name) for name in names]
    with ThreadPoolExecutor(8) as pool:  # in batches with requests that ask for no set
        requests = [(colour, asked) for colour in COLOURS.values() for asked in ("?coverage=0.9", "")]
        answers = list(pool.map(lambda r: service.ask("POST", f"/classify{r[1]}", encoded(r[0])), requests))
    for (colour, asked), (status, answer) in zip(requests, answers, strict=True):
        expected = said_of(colour)
        assert status == 200
        check(answer, colour, 5)
        assert answer["prediction_set"] == (expected["prediction_set"] if asked else None)
        assert (answer["abstained"] is None) == expected["decided"], "the service's own --max-risk"
        assert answer["entropy"] == pytest.approx(expected["entropy"], rel=1e-5)
        assert answer["ood"]["energy"] == pytest.approx(expected["energy"], rel=1e-5)
        assert answer["ood"]["percentile"] == expected["percentile"]
        assert [answer[name] for name in ("agreement", "mutual_information", "branches")] == [None] * 3
    said = [said_of(colour) for colour, _ in requests]
    counts = [sum(not one["decided"] for one in said), len(said), sum(one["percentile"] >= 99 for one in said)]
    assert 0 < counts[2] < len(said)
    assert 0 < counts[0] < len(said)
    assert [service.metric(name) - was for name, was in zip(names, before, strict=True)] == counts
    _, answer = service.ask("POST", "/classify?max_risk=0.01", encoded(COLOURS["blue"]))
    assert "no probability is high enough" in answer["abstained"], "a request may ask for another risk"


def test_the_description_is_valid_and_answers_are_as_it_says(service):
    status, described = service.ask("GET", "/openapi.json")
    validate(described)
    png, form_body = encoded(COLOURS["red"]), form()
    for method, path, body, kind in (
        ("POST", "/classify?coverage=0.9&top_k=2", png, "image/png"),
        ("POST", "/classify", png, "image/png"),
        ("POST", "/classify?top_k=0", png, "image/png"),
        ("POST", "/classify", form_body[0], form_body[1]),
        ("POST", "/classify", b"no picture", "image/png"),
        ("POST", "/classify", png, "text/plain"),
        ("POST", "/classify", bytes(MAX_BYTES + 1), "image/png"),
        ("GET", "/", None, ""),
        ("GET", "/healthz", None, ""),
    ):
        status, answer = service.ask(method, path, body, Content_Type=kind)
        operation = described["paths"][path.partition("?")[0]][method.lower()]
        content = operation["responses"][str(status)]["content"]["application/json"]
        jsonschema.validate(answer, {**content["schema"], "components": described["components"]})
    (shown,) = [block for block in blocks("serving.md") if block.language == "json"]
    answer = described["components"]["schemas"]["Answer"]
    assert set(answer["required"]) <= set(json.loads(shown.text)) <= set(answer["properties"])
    jsonschema.validate(json.loads(shown.text), {**answer, "components": described["components"]})
    parameters = described["paths"]["/classify"]["post"]["parameters"]
    assert [parameter["name"] for parameter in parameters] == ["top_k", "coverage", "max_risk"]


def test_the_page_that_describes_it_loads_nothing(service):
    connection = http.client.HTTPConnection(service.address, timeout=HANG_S)
    connection.request("GET", "/docs")
    response = connection.getresponse()
    page = response.read().decode()
    connection.close()
    assert response.headers["content-security-policy"].startswith("default-src 'none'")
    read = _Page()
    read.feed(page)
    assert read.open == []
    assert not read.names & {"script", "link", "img", "iframe", "object"}
    assert {address.partition("#")[0] for address in read.addresses} == {"", "openapi.json"}
    assert {address[1:] for address in read.addresses if address.startswith("#")} <= read.ids
    for word in ("POST /classify", "GET /healthz", "max_risk", "prediction_set", "nats", "413"):
        assert word in page


class _Page(HTMLParser):
    """Names, addresses and ids of a page's elements; ``open`` is those that are never closed."""

    def __init__(self) -> None:
        super().__init__()
        self.names, self.addresses, self.ids, self.open = set(), set(), set(), []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.names.add(tag)
        self.addresses |= {values[name] for name in ("src", "href") if name in values}
        self.ids |= {values["id"]} if "id" in values else set()
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_browsers_get_a_page_and_programs_json_at_the_same_address(service):
    for accept, kind in (("text/html,*/*;q=0.8", "text/html"), ("*/*", "application/json")):
        with urlopen(Request(f"http://{service.address}/", headers={"Accept": accept})) as answer:
            assert answer.headers["Content-Type"].startswith(kind)
            text = answer.read().decode()
            if kind == "text/html":
                assert "script-src 'self';" in answer.headers["Content-Security-Policy"]
                page = text
    parts = re.findall(r'(?:href|src)="([^"]*)"', page)
    assert sorted(parts) == ["page/icon.svg", "page/page.css", "page/service.js"]
    for part in (*parts, "page/show.js"):
        with urlopen(f"http://{service.address}/{part}") as answer:
            assert answer.headers["Content-Type"].startswith(("image/svg+xml", "text/css", "text/javascript"))
    for none in ("page/engine.js", "page/page.html", "page/..%2f__init__.py", "page/"):
        assert service.ask("GET", f"/{none}")[0] == 404


@pytest.mark.browser
def test_a_picture_dropped_on_the_page_gets_the_services_answer(service):
    from browser import Browser

    chromium = Browser()
    try:
        chromium.open(f"http://{service.address}/")
        chromium.drop(("red.png", encoded(COLOURS["red"])), ("no.png", b"nothing"))
        assert chromium.answered(1) == [next(iter(probabilities_of(COLOURS["red"])))]
        chromium.until("document.getElementById('status').textContent.startsWith('no.png: It is damaged')")
        _, said = service.ask("POST", "/classify", encoded(COLOURS["red"]), content_type="image/png")
        assert list(chromium.shares()) == [p["label"] for p in said["predictions"]]
        assert chromium.facts()["Doubt"].startswith(f"{said['entropy']:.2f} nats")
        assert chromium.js("document.querySelector('footer a').href") == f"http://{service.address}/docs"
        assert chromium.logs() == []
    finally:
        chromium.close()


def test_what_holds_no_picture_is_refused_by_name(service):
    png = encoded(COLOURS["red"], size=(40, 40))
    size = b"IHDR" + (50_000).to_bytes(4, "big") + (40_000).to_bytes(4, "big") + png[24:29]
    bomb = png[:12] + size + zlib.crc32(size).to_bytes(4, "big") + png[33:]
    two_files, empty_form = form(png, png), form()
    cases = [
        ("GET", "/classify", None, {}, 405, "POST /classify"),
        ("POST", "/elsewhere", png, {}, 404, "POST /classify"),
        ("POST", "/classify", b"", {}, 400, "empty"),
        ("POST", "/classify", png, {"Content_Type": "text/plain"}, 415, "text/plain"),
        ("POST", "/classify", b"no picture at all", {}, 415, "known format"),
        ("POST", "/classify", png[:-30], {}, 400, "the picture"),
        ("POST", "/classify?top_k=0", png, {}, 400, "top_k"),
        ("POST", "/classify?top_k=many", png, {}, 400, "many"),
        ("POST", "/classify?coverage=0.8", png, {}, 400, "coverage must be one of those that were fitted"),
        ("POST", "/classify?max_risk=2", png, {}, 400, "max_risk"),
        ("POST", "/classify?max_risk=nan", png, {}, 400, "max_risk"),
        ("POST", "/classify?maxrisk=0.05", png, {}, 400, "no parameter 'maxrisk'; there are top_k"),
        ("POST", "/classify", two_files[0], {"Content_Type": two_files[1]}, 400, "one file"),
        ("POST", "/classify", empty_form[0], {"Content_Type": empty_form[1]}, 400, "no file"),
        ("POST", "/classify", png, {"Content_Type": "multipart/form-data"}, 400, "form"),
        ("POST", "/classify", png + bytes(MAX_BYTES), {}, 413, str(MAX_BYTES)),
        ("POST", "/classify", bomb, {}, 413, "pixels"),
    ]
    for method, path, body, headers, expected, word in cases:
        status, answer = service.ask(method, path, body, **headers)
        assert (status, list(answer)) == (expected, ["error"]), (path, answer)
        assert word in answer["error"]
    # A body that never says how long it is may not be longer either.
    connection = http.client.HTTPConnection(service.address, timeout=HANG_S)
    connection.request("POST", "/classify", iter([bytes(MAX_BYTES), b"!"]), encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()
    assert service.ask("POST", "/classify", png)[0] == 200


def test_but_for_one_port_a_replica_nothing_listens_beyond_this_machine_and_the_token_is_the_users_alone(service):
    ports = set()
    for process in (own := psutil.Process(service.process.pid), *own.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):  # one that Ray has just ended
            heard = [c.laddr for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN]
            ports |= {(process.pid, address.ip, address.port) for address in heard}
    beyond = [port for port in ports if not ipaddress.ip_address(port[1].removeprefix("::ffff:")).is_loopback]
    assert len(ports) > 5
    # Serve gives no choice here; docs/serving.md says so.
    assert sorted(process for process, *_ in beyond) == sorted(replica.pid for replica in service.replicas())
    token = service.home / ".ray" / "auth_token"
    assert (token.stat().st_mode & 0o777, len(token.read_text())) == (0o600, 64)


def test_a_connection_that_asks_nothing_is_closed(service):
    host, port = service.address.split(":")
    with socket.create_connection((host, int(port)), HANG_S) as connection:
        assert connection.recv(1) == b""


def test_killing_replicas_under_load_loses_no_accepted_request(service, tmp_path):
    for name, colour in COLOURS.items():
        (tmp_path / name).write_bytes(encoded(colour))
    command = [sys.executable, LOAD, service.url, tmp_path, "--connections=16"]
    retried = service.metric("ccnn_retries_total")
    with subprocess.Popen(
        [str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as client:
        kills = 0
        while kills < 3 or service.metric("ccnn_retries_total") == retried:  # a replica may die between two requests
            until(lambda: service.metric("ccnn_requests_pending") > 8)
            victim = service.replicas()[0]
            victim.kill()
            until(lambda gone=victim: not gone.is_running())
            until(lambda: len(service.replicas()) == 2)
            kills += 1
        output, _ = client.communicate()  # closes its input, which ends the load
    result = json.loads(output)
    count = sum(result["statuses"].values())
    assert result["statuses"] == {"200": count}
    for name, colour in COLOURS.items():
        assert sum(result["answers"][name].values()) >= count // len(COLOURS)
        for answer in result["answers"][name]:
            check(json.loads(answer), colour, 1)
    until(lambda: service.ask("GET", "/healthz")[0] == 200)


def test_sigterm_ends_the_service_when_what_it_had_accepted_is_answered(service):
    picture = encoded(COLOURS["blue"])
    with contextlib.ExitStack() as stack:
        accepted = [stack.enter_context(stall(service, "/classify?top_k=3", picture)) for _ in range(6)]
        until(lambda: service.metric("ccnn_requests_pending") == 6)
        processes = psutil.Process(service.process.pid).children(recursive=True)
        service.process.send_signal(signal.SIGTERM)
        until(lambda: _refuses(service))
        for connection in accepted:
            connection.sendall(picture[4:])
        for connection in accepted:
            status, answer = response_to(connection)
            assert status == 200
            check(answer, COLOURS["blue"], 3)
    assert service.process.wait() == 0, service.log.read_text()
    psutil.wait_procs(processes)


def test_serves_own_proxies_reach_the_application_and_time_is_limited(tmp_path, monkeypatch):
    """A batch of two never fills with one picture: whoever comes alone waits, or meets the time limit."""
    from ray import serve

    from ccnn_zoo.serve import application
    from ccnn_zoo.serve._ray import running

    port, red = free_port(), encoded(COLOURS["red"])
    args = {"model": str(save_network(tmp_path / "network.onnx")), "device": "cpu", "threads": "1"}
    args |= {"max_batch_size": 2, "batch_wait_s": HANG_S, "max_pending": 3}
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(4) as pool:
        for name, value in stack.enter_context(ray_folder()).items():
            monkeypatch.setenv(name, value)
        stack.enter_context(running("local", 2))
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        stack.callback(serve.shutdown)
        serve.run(application(args | {"timeout_s": str(HANG_S)}), name="pets")
        serve.run(application(args | {"timeout_s": "0.5"}), name="hasty", route_prefix="/hasty")
        service = Service(None, None, f"127.0.0.1:{port}")
        for status, answer in pool.map(lambda _: service.ask("POST", "/classify?top_k=6", red), range(2)):
            assert status == 200
            check(answer, COLOURS["red"], 6)
        assert service.ask("GET", "/healthz") == (200, {"status": "ok", "replicas": 1})
        alone = pool.submit(service.ask, "POST", "/classify?top_k=6", red)
        stalled = [stack.enter_context(stall(service, "/classify?top_k=6", red)) for _ in range(2)]
        until(lambda: service.metric("ccnn_requests_pending") == 3)
        status, answer = service.ask("POST", "/classify", red)
        assert (status, answer["error"].split()[:4]) == (503, ["3", "requests", "are", "held"])
        stalled[0].sendall(red[4:])
        assert response_to(stalled[0])[0] == alone.result()[0] == 200
        assert service.ask("POST", "/hasty/classify", red)[0] == 504
        with stall(service, "/hasty/classify", red) as connection:
            assert response_to(connection)[0] == 408


def stall(service: Service, path: str, body: bytes) -> socket.socket:
    """Send a request whose body stops after four bytes."""
    host, port = service.address.split(":")
    connection = socket.create_connection((host, int(port)), HANG_S)
    connection.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body[:4])
    return connection


def response_to(connection: socket.socket) -> tuple[int, object]:
    response = http.client.HTTPResponse(connection)
    response.begin()
    return response.status, json.loads(response.read())


def _refuses(service: Service) -> bool:
    try:
        stall(service, "/classify", b"").close()
    except ConnectionRefusedError:
        return True
    return False


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.onnx"], "missing.onnx"),
        (["NETWORK", "--replicas=0"], "replicas must be an integer of at least 1, got 0"),
        (["NETWORK", "--timeout=0"], "timeout_s"),
        (["NETWORK", "--coverage=95"], "coverage must be a share between 0 and 1, got 95"),
        (["NETWORK", "--device=cpu", "--coverage=0.95"], "carries no thresholds"),
        (["NETWORK", "--device=cpu", "--port=PORT"], "port 0 takes a free one"),
    ],
)
def test_what_cannot_be_served_is_one_line(arguments, message, tmp_path):
    network = save_network(tmp_path / "network.onnx")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        values = {"NETWORK": str(network), "PORT": str(taken.getsockname()[1])}
        for name, value in values.items():
            arguments = [argument.replace(name, value) for argument in arguments]
        run = subprocess.run([CCNN, "serve", *arguments], capture_output=True, text=True)
    assert run.returncode == 1
    assert message in run.stderr
    assert run.stderr.startswith("error: ")
