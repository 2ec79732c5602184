"""A Hub that fails: what is done succeeds after all, or ends with a clear error and nothing half-written."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hub_network import FETCHED, FILES, content_of, published_folder
from hub_user import PRELUDE
from waiting import until

from ccnn_zoo.hub import _retry


@pytest.fixture(scope="module")
def published() -> Path:
    return published_folder()


SOON = {"Retry-After": "0"}
LOST = {"lost": True, "times": 1}


@pytest.mark.parametrize(
    ("pattern", "fault"),
    [
        ("POST /api/repos/create", {"status": 429, "headers": SOON, "times": 3}),
        ("POST /api/repos/create", {"lost": True, "times": 1}),
        ("POST /api/models/.*/branch/", {"status": 500, "times": 1}),
        ("GET /api/models/org/digits/revision", {"status": 500, "times": 1}),
        ("GET /api/models/org/digits/revision", {"status": 504, "times": 2}),
        ("GET /api/models/.*/tree/", {"status": 500, "times": 1}),
        ("GET /api/models/.*/refs", {"status": 502, "times": 1}),
        ("POST /api/validate-yaml", {"status": 503, "times": 1}),
        ("POST .*/preupload/", {"status": 429, "headers": SOON, "times": 1}),
        ("POST .*/objects/batch", {"status": 500, "times": 1}),
        ("PUT /lfs/", {"status": 500, "times": 2}),
        ("PUT /lfs/", {"lost": True, "times": 1}),
        ("POST .*/verify", {"status": 500, "times": 1}),
        ("POST .*/commit/", {"status": 429, "headers": SOON, "times": 3}),
        ("POST .*/commit/", {"status": 502, "times": 2}),
        ("POST .*/commit/", LOST),
        ("POST .*/tag/", {"status": 500, "times": 1}),
        ("POST .*/tag/", {"lost": True, "times": 1}),
    ],
    ids=str,
)
def test_publishing_outlives_what_passes(server, user, published, pattern, fault):
    server.inject(pattern, **fault)
    commit = user.publish(published, revision="v2", tag="v2.0")
    repository = server.repositories["org/digits"]
    assert len(repository.commits) == 2  # the first, and one
    assert (repository.branches["v2"], repository.tags) == (commit, {"v2.0": commit})
    assert repository.commits[commit].files.keys() == {".gitattributes", *FILES}
    assert len(server.requested(pattern)) > 1 or fault == LOST  # a commit is looked for, not repeated


@pytest.mark.parametrize(
    ("pattern", "fault", "message"),
    [
        ("POST .*/preupload/", {"status": 404}, "no such repository"),
        ("POST .*/objects/batch", {"status": 400}, "the Hub answered 400"),
        ("PUT /lfs/", {"status": 403}, r"no right to this \(403\)"),
        ("PUT /lfs/", {"status": 500}, "the Hub answered 500"),
        ("POST .*/commit/", {"status": 403}, r"no right to this \(403\)"),
        ("POST .*/commit/", {"status": 429, "headers": SOON}, r"slow down \(429\)"),
        ("POST .*/commit/", {"status": 429, "headers": {"Retry-After": "3600"}}, r"slow down \(429\)"),
        ("POST .*/commit/", {"status": 503}, "the Hub answered 503"),
    ],
    ids=str,
)
def test_publishing_that_fails_leaves_the_repository_and_can_be_done_again(
    server, user, published, pattern, fault, message
):
    repository = server.create("org/digits", {"config.json": b"earlier"})
    before = dict(repository.branches)
    server.inject(pattern, **fault)
    error, text = user.publish(published, tag="v1")
    assert error == "RepositoryError"
    assert re.match(f"org/digits: .*{message}", text)
    assert "\n" not in text
    assert (repository.branches, repository.tags) == (before, {})
    server.faults.clear()
    uploaded = set(server.uploads)
    server.requests.clear()
    commit = user.publish(published, tag="v1")
    assert repository.tags == {"v1": commit}
    assert repository.files.keys() >= FILES
    sent_again = {request.path.split("/")[2] for request in server.requested("PUT /lfs/")}
    assert not sent_again & uploaded


def test_a_change_by_somebody_else_at_the_last_moment_is_kept(server, user, published):
    repository = server.create("org/digits")
    server.inject("POST .*/commit/", meanwhile=lambda: repository.add({"config.json": b"theirs"}), times=1)
    error, text = user.publish(published)
    assert (error, repository.files) == ("RepositoryError", {"config.json": b"theirs"})
    assert re.search(r"somebody else has changed.*\(412\), nothing was published.*publish again", text)


@pytest.mark.parametrize("pattern", ["POST /api/repos/create", "POST .*/commit/", "GET /api/models/.*/refs"])
def test_a_hub_that_never_answers_is_not_waited_for(server, user, published, pattern):
    repository = server.create("org/digits", {"config.json": b"earlier"})
    before, commits = dict(repository.files), len(repository.commits)
    never = threading.Event()
    server.inject(pattern, until=never)
    program = f"from ccnn_zoo.hub import _limits\n_limits.ANSWER = 5\n{PRELUDE}"  # enough for all that is answered
    call = f"attempt(lambda: hub.publish({str(published)!r}, 'org/digits', tag='v1'))"
    error, text = json.loads(user.run(program + call, token=server.token))
    never.set()  # for the server's thread
    assert error == "RepositoryError"
    assert re.match(r"org/digits: .* took the request and did not answer in time \(5 s.*Try again", text)
    assert len(server.requested(pattern)) == 1
    assert repository.files == before
    server.faults.clear()
    commit = user.publish(published, tag="v1")
    assert repository.tags == {"v1": commit}
    assert len(repository.commits) == commits + 1


def test_an_http_client_of_the_user_stays(server, user, published):
    program = f"""
from huggingface_hub import get_session, set_client_factory
from ccnn_zoo import hub

mine = type(get_session())(timeout=7)
set_client_factory(lambda: mine)
hub.publish({str(published)!r}, "org/digits")
print(get_session() is mine, mine.timeout.read)
"""
    assert user.run(program, token=server.token) == "True 7\n"


def test_a_pull_request_is_never_opened_twice(server, user, published):
    repository = server.create("org/digits")
    server.inject("POST .*/commit/", lost=True, times=1)
    error, text = user.publish(published, create_pr=True)
    assert (error, len(repository.pull_requests)) == ("RepositoryError", 1)
    assert "cannot be reached" in text
    server.inject("POST .*/commit/", status=429, headers=SOON, times=2)
    user.publish(published, create_pr=True)
    assert len(repository.pull_requests) == 2


def test_a_tag_that_fails_is_set_by_publishing_again(server, user, published):
    server.inject("POST .*/tag/", status=403)
    error, text = user.publish(published, tag="v1")
    repository = server.repositories["org/digits"]
    assert error == "RepositoryError"
    assert re.search(r"403.*Commit \w{12} is published, its tag 'v1' is missing: publish again", text)
    server.faults.clear()
    assert user.publish(published, tag="v1") == repository.tags["v1"] == repository.branches["main"]
    assert len(repository.commits) == 2


def test_a_killed_publisher_leaves_nothing_and_what_it_sent_is_not_sent_again(server, user, published):
    server.inject("PUT /lfs/", times=1)
    never = threading.Event()
    server.inject("PUT /lfs/", until=never)
    program = f"from ccnn_zoo import hub; hub.publish({str(published)!r}, 'org/digits')"
    environment = user.environment(HF_TOKEN=server.token)
    publisher = subprocess.Popen([sys.executable, "-c", program], env=environment, stderr=subprocess.DEVNULL)
    until(lambda: server.uploads and len(server.requested("PUT /lfs/")) > 1, publisher)
    os.kill(publisher.pid, signal.SIGKILL)
    publisher.wait()
    never.set()
    assert server.repositories["org/digits"].files.keys() == {".gitattributes"}
    server.faults.clear()
    (sent,) = server.uploads
    server.requests.clear()
    user.publish(published)
    assert server.repositories["org/digits"].files.keys() == {".gitattributes", *FILES}
    assert not server.requested(f"PUT /lfs/{sent}")


@pytest.mark.parametrize(
    ("pattern", "fault"),
    [
        ("GET /api/models/.*/revision/main", {"status": 500, "times": 2}),
        ("GET /api/models/.*/revision/main", {"status": 429, "headers": SOON, "times": 2}),
        ("GET /api/models/.*/tree/", {"status": 503, "times": 1}),
        ("HEAD .*/manifest.json", {"status": 500, "times": 1}),
        ("GET .*/config.json", {"status": 500, "times": 1}),
        ("GET .*/cdn/.*/model.onnx", {"status": 503, "times": 1}),
        ("GET .*/cdn/.*/model.onnx", {"status": 429, "headers": SOON, "times": 1}),
        ("GET .*/cdn/.*/model.onnx", {"body": "truncated", "times": 2}),
        ("GET .*/cdn/.*/model.onnx", {"body": "reset", "times": 2}),
        ("GET .*/cdn/.*/model.onnx", {"lost": True, "times": 1}),
    ],
    ids=str,
)
def test_downloading_outlives_what_passes(server, user, published, pattern, fault):
    server.create("org/digits", content_of(published))
    server.inject(pattern, **fault)
    (folder,) = user.call("hub.download('org/digits')")
    assert content_of(Path(folder)) == {name: content_of(published)[name] for name in FETCHED}
    assert len(server.requested(pattern)) > 1


def test_a_download_that_gets_no_answer_is_asked_for_again(server, user, published):
    server.create("org/digits", content_of(published))
    never = threading.Event()
    server.inject("GET .*/cdn/.*/model.onnx", until=never, times=1)
    (folder,) = user.call("hub.download('org/digits')", HF_HUB_DOWNLOAD_TIMEOUT="5")
    never.set()
    assert content_of(Path(folder)) == {name: content_of(published)[name] for name in FETCHED}
    assert len(server.requested("GET .*/cdn/.*/model.onnx")) > 1


def test_a_download_goes_on_where_it_broke_off(server, user, published):
    server.create("org/digits", content_of(published))
    server.inject("GET .*/cdn/.*/model.onnx", body="truncated", times=1)
    program = """
from huggingface_hub import constants
from ccnn_zoo import hub
constants.DOWNLOAD_CHUNK_SIZE = 1 << 16  # it writes whole chunks; the default is larger than this network
hub.download("org/digits")
"""
    user.run(program)
    ranges = [request.range for request in server.requested("GET .*/cdn/.*/model.onnx")]
    assert ranges[0] is None
    start = int(re.fullmatch(r"bytes=(\d+)-", ranges[1])[1])
    assert 0 < start <= len(content_of(published)["onnx/model.onnx"]) // 2


@pytest.mark.parametrize(
    ("pattern", "fault", "error", "message"),
    [
        ("GET /api/models", {"status": 500}, "RepositoryError", "the Hub answered 500"),
        ("GET /api/models", {"status": 429, "headers": SOON}, "RepositoryError", r"slow down \(429\)"),
        ("GET /api/models", {"lost": True}, "RepositoryError", "cannot be reached"),
        ("GET .*/cdn/", {"status": 403}, "RepositoryError", "403"),
        ("GET .*/cdn/", {"status": 500}, "RepositoryError", "the Hub answered 500"),
        ("GET .*/cdn/", {"body": "truncated"}, "RepositoryError", "cannot be reached|try again"),
        ("GET .*/cdn/", {"body": "tampered"}, "IntegrityError", "SHA-256.*removed from the cache: download again"),
    ],
    ids=str,
)
def test_downloading_that_fails_leaves_nothing_that_is_taken_for_whole(
    server, user, published, pattern, fault, error, message
):
    server.create("org/digits", content_of(published))
    server.inject(pattern, **fault)
    found, text = user.call("hub.download('org/digits')")[0]
    assert found == error
    assert re.match(f"org/digits: .*({message})", text)
    assert "\n" not in text
    server.faults.clear()
    (folder,) = user.call("hub.download('org/digits')")
    assert content_of(Path(folder)) == {name: content_of(published)[name] for name in FETCHED}


class _RefusalError(Exception):
    """An answer like those of huggingface_hub."""

    def __init__(self, status: int, **headers: str) -> None:
        super().__init__(status)
        self.response = type("Response", (), {"status_code": status, "headers": headers})()


def test_waits_grow_and_the_server_may_ask_for_others(monkeypatch):
    waits: list[float] = []
    monkeypatch.setattr(_retry.time, "sleep", waits.append)
    answers = iter(
        [_RefusalError(500), _RefusalError(502), _RefusalError(429, **{"Retry-After": "7"}), _RefusalError(503)]
    )

    def call() -> str:
        for answer in answers:
            raise answer
        return "done"

    assert _retry.persistently(call) == "done"
    assert waits == [1, 2, 7, 8]
    waits.clear()
    for refusal in (_RefusalError(404), _RefusalError(412), _RefusalError(429, **{"Retry-After": "3600"})):
        answers = iter([refusal])
        with pytest.raises(_RefusalError):
            _retry.persistently(call)
    assert waits == []
