"""Classifying many pictures: results to a file, interrupted and continued, in bounded memory."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
from fuzz_networks import convolutions, int8
from PIL import Image
from pyarrow import parquet
from terminal import on_terminal
from waiting import HANG_S, until

from ccnn_zoo import runtime
from ccnn_zoo.cli import main
from ccnn_zoo.errors import ConfigurationError, ImageError
from ccnn_zoo.runtime._stream import mapped

CCNN = Path(sys.executable).with_name("ccnn")
FORMATS = (".csv", ".jsonl", ".parquet")


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("network") / "network.onnx"
    onnx.save(convolutions(), path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """60 pictures in nested folders, one broken, with names that each format must quote or escape."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    names = [f"{i % 3}/{i:02}.png" for i in range(57)] + ['a,"b"\n.png', "0/=ü.PNG", os.fsdecode(b"2/\xff.png")]
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (9, 14, 3), np.uint8)).save(folder / name, "PNG")
    (folder / "1" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture(scope="module")
def expected(network, folder) -> list[runtime.Classification]:
    """One picture at a time, without workers."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() == ".png")
    return runtime.load(network, device="cpu", batch_size=1).classify(paths, top_k=2)


@pytest.fixture(scope="module")
def journal(network, folder, tmp_path_factory) -> bytes:
    """What a run leaves that is killed after its last picture."""
    path = tmp_path_factory.mktemp("whole") / "r.csv"
    remove, Path.unlink = Path.unlink, lambda self, missing_ok=False: None
    try:
        classify(folder, network, path)
    finally:
        Path.unlink = remove
    return path.with_name("r.csv.part").read_bytes()


def classify(folder: Path, network: Path, output: Path, *options: object) -> object:
    """Run the command in this process and return its exit code."""
    arguments = ["classify", folder, "--model", network, "--device", "cpu", "-o", output, "--top-k", 2, *options]
    before, sys.argv = sys.argv, ["ccnn", *map(str, arguments)]
    try:
        main()
    except SystemExit as end:
        return end.code
    finally:
        sys.argv = before
    raise AssertionError("the command line ends with SystemExit")


def rows_of(path: Path) -> list[tuple[str, str | None, list[tuple[str, float, int]]]]:
    """Read the three formats by other means than they were written by: source, error, predictions."""
    if path.suffix == ".jsonl":
        records = map(json.loads, path.read_text().splitlines())
        return [(r["source"], r["error"], [tuple(p.values()) for p in r["predictions"]]) for r in records]
    if path.suffix == ".csv":
        with path.open(newline="", errors="surrogateescape") as stream:
            table = [{k: v or None for k, v in row.items()} for row in csv.DictReader(stream)]
    else:
        table = parquet.read_table(path).to_pylist()
    ranks = [k.split("_")[1] for k in table[0] if k.startswith("label_")]
    return [
        (
            row["source"],
            row["error"],
            [
                (row[f"label_{rank}"], float(row[f"probability_{rank}"]), int(row[f"index_{rank}"]))
                for rank in ranks
                if row["error"] is None
            ],
        )
        for row in table
    ]


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_holds_every_result_in_order(network, folder, expected, tmp_path, suffix, capfd):
    output = tmp_path / "out" / f"results{suffix}"
    assert classify(folder, network, output, "--batch-size", 7) == 1  # one picture is broken
    assert os.listdir(output.parent) == [output.name]
    printed = capfd.readouterr()
    assert printed.out == ""
    assert f"{folder / '1' / 'broken.png'} " in printed.err
    assert printed.err.endswith(f"{output}: 61 pictures, 1 of which could not be read\n")
    rows = rows_of(output)
    for (source, error, predictions), result in zip(rows, expected, strict=True):
        name = result.source
        if suffix == ".parquet":  # UTF-8 alone
            name = name.replace("\udcff", "\\xff")
        assert (source, error is None) == (name, result.error is None)
        assert [(label, index) for label, _, index in predictions] == [(p.label, p.index) for p in result.predictions]
        np.testing.assert_allclose([p for _, p, _ in predictions], [p.probability for p in result.predictions], 1e-5)


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_run_cut_anywhere_goes_on_to_the_same_file(network, folder, journal, tmp_path, suffix):
    whole, output = tmp_path / f"whole{suffix}", tmp_path / f"r{suffix}"
    classify(folder, network, whole)
    lines = journal.splitlines(keepends=True)
    cuts = [
        0,
        1,
        len(lines[0]) - 1,
        len(lines[0]),
        len(lines[0]) + 1,
        len(journal) // 2,
        len(journal) - 1,
        len(journal),
    ]
    for cut in cuts:
        part = tmp_path / f"r{suffix}.part"
        part.write_bytes(journal[:cut])
        assert classify(folder, network, output, "--resume") == 1
        assert not part.exists()
        assert rows_of(output) == rows_of(whole), cut
        output.unlink()


def test_what_is_done_is_not_done_again(network, folder, journal, tmp_path):
    part = tmp_path / "r.jsonl.part"
    part.write_bytes(b"".join(journal.splitlines(keepends=True)[:21]) + b'{"source": "torn' + bytes(20_000))
    shutil.copytree(folder, tmp_path / "copy", symlinks=True)
    marked = part.read_bytes().replace(str(folder).encode(), str(tmp_path / "copy").encode()).replace(b"ant", b"ANT")
    part.write_bytes(marked)
    (tmp_path / "copy" / "0" / "00.png").unlink()  # done before, so not looked for
    Image.new("RGB", (5, 5)).save(tmp_path / "copy" / "0" / "late.png")  # not there before
    assert classify(tmp_path / "copy", network, tmp_path / "r.jsonl", "--resume") == 1
    text = (tmp_path / "r.jsonl").read_text()
    rows = rows_of(tmp_path / "r.jsonl")
    assert text.startswith(marked[marked.index(b"\n") + 1 : marked.rindex(b"\n") + 1].decode())
    assert len(rows) == 62
    assert "torn" not in text  # nor the zeros that a machine without power may leave
    assert "\0" not in text
    assert sum("late.png" in source for source, *_ in rows) == 1


def test_a_killed_run_leaves_no_result_and_goes_on(network, tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    Image.new("RGB", (8, 8), (9, 99, 199)).save(pictures / "0.png")
    for i in range(1, 3000):
        os.link(pictures / "0.png", pictures / f"{i}.png")
    output, part = tmp_path / "r.csv", tmp_path / "r.csv.part"
    command = [CCNN, "classify", pictures, "--model", network, "--device", "cpu", "-o", output, "--batch-size", "4"]
    child = subprocess.Popen([*map(str, command)], stderr=subprocess.DEVNULL)
    until(lambda: part.exists() and part.stat().st_size > 20_000, child)
    child.send_signal(signal.SIGSTOP)  # it is there, however long the next line takes
    assert f"process {child.pid} on " in str(classify(pictures, network, output, "--resume", "--top-k", 5))
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not output.exists()
    done = part.read_bytes().count(b"\n") - 1
    assert 0 < done < 3000
    assert "Continue it with --resume" in str(classify(pictures, network, output))
    assert classify(pictures, network, output, "--resume", "--top-k", 5) == 0
    rows = rows_of(output)
    assert sorted(Path(source).name for source, *_ in rows) == sorted(f"{i}.png" for i in range(3000))
    assert len({label for _, _, ((label, *_), *_) in rows}) == 1
    assert sorted(os.listdir(tmp_path)) == ["pictures", "r.csv"]


def test_an_interrupt_says_how_to_go_on(network, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    for i in range(1, 3000):
        os.link(tmp_path / "0.png", tmp_path / f"{i}.png")
    command = [
        CCNN,
        "classify",
        tmp_path,
        "--model",
        network,
        "--device",
        "cpu",
        "--batch-size",
        "1",
        "-o",
        tmp_path / "r.csv",
    ]
    child = subprocess.Popen(
        [*map(str, command)],
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs ignore it, and so would their children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    part = tmp_path / "r.csv.part"
    until(lambda: part.exists() and part.stat().st_size > 2000, child)
    child.send_signal(signal.SIGINT)
    _, said = child.communicate()
    assert child.returncode == 130
    counted = re.fullmatch(rf"interrupted: (\d+) pictures are in {part}\. Continue with --resume\.\n", said)
    # The interrupt may come between a line and its count.
    assert len(part.read_bytes().splitlines()) - 1 - int(counted[1]) in (0, 1)


def test_results_of_different_runs_are_never_mixed(network, folder, journal, tmp_path):
    output, part = tmp_path / "r.csv", tmp_path / "r.csv.part"
    part.write_bytes(journal)
    assert "interrupted. Continue it with --resume, or delete" in str(classify(folder, network, output))
    assert "another run (top_k 2, not 3)" in str(classify(folder, network, output, "--resume", "--top-k", 3))
    onnx.save(int8(), tmp_path / "other.onnx")
    assert "another run (classifier" in str(classify(folder, tmp_path / "other.onnx", output, "--resume"))
    lines = journal.splitlines(keepends=True)
    part.write_bytes(b"".join([*lines[:3], b"{}\n", *lines[3:]]))
    assert f"{part}: line 4 is damaged. Delete" in str(classify(folder, network, output, "--resume"))
    assert not output.exists()
    part.unlink()
    output.write_text("of another day")
    assert classify(folder, network, output, "--resume") == 0  # whole already, as its name says
    assert output.read_text() == "of another day"
    assert classify(folder, network, output) == 1
    assert len(rows_of(output)) == 61


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-o", "results.xls"], r"ends in \.csv, \.jsonl, \.parquet, got 'results\.xls'"),
        (["-o", "r.csv", "--json"], "--json prints, --output writes"),
        (["-o", "."], r"got '\.'"),
        (["--resume"], "name the file"),
        (["--workers", "-1"], "workers must be an integer of at least 0, got -1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_that_do_not_fit_are_refused(network, folder, options, message, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["ccnn", "classify", str(folder), "--model", str(network), *options])
    with pytest.raises(SystemExit) as caught:
        main()
    assert re.search(message, str(caught.value.code))


def test_parquet_without_pyarrow_says_what_to_install(network, folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # Python's own way to say that there is none
    assert 'pip install "ccnn-zoo[parquet]"' in str(classify(folder, network, tmp_path / "r.parquet"))


def test_a_full_disk_keeps_what_is_there_and_says_so(network, folder, tmp_path):
    program = (
        "import atexit, resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "before = resource.getrlimit(resource.RLIMIT_FSIZE)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (5000, before[1]))\n"
        "atexit.register(resource.setrlimit, resource.RLIMIT_FSIZE, before)  # for what coverage writes\n"
        "from ccnn_zoo.cli import main; main()"
    )
    command = [sys.executable, "-c", program, "classify", str(folder), "--model", str(network), "-o", "r.csv"]
    run = subprocess.run([*command, "--top-k", "2"], capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1].startswith("error: cannot write r.csv.part: File too large. Free some space")
    assert classify(folder, network, tmp_path / "r.csv", "--resume") == 1
    assert len(rows_of(tmp_path / "r.csv")) == 61


def test_a_terminal_sees_progress_a_pipe_does_not(network, folder, tmp_path):
    command = [CCNN, "classify", folder, "--model", network, "-o", tmp_path / "r.csv"]
    status, seen, out = on_terminal(command, "stderr", stdout=subprocess.PIPE)
    assert status == 1
    assert b"61/61" in seen
    assert b"broken.png" in seen
    assert out == b""
    piped = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert "61/61" not in piped.stderr


def test_a_pipe_among_the_pictures_is_named_not_waited_for(network, tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    Image.new("RGB", (5, 5)).save(tmp_path / "x.png")
    results = runtime.load(network, device="cpu").classify([tmp_path / "pipe.png", tmp_path / "x.png"])
    assert "neither a file nor a folder" in results[0].error
    assert results[1].error is None


def test_workers_keep_the_order_and_draw_no_more_than_they_may():
    drawn, running, most = 0, 0, 0
    lock, done = threading.Lock(), [threading.Event() for _ in range(120)]

    def items():
        nonlocal drawn
        while True:
            drawn += 1
            yield drawn

    def square(number: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        if number % 4:  # of each four, later ones are ready before earlier ones
            assert done[number + 1].wait(HANG_S)
        with lock:
            running -= 1
        done[number].set()
        return number * number

    results = mapped(square, items(), workers=4, ahead=10)
    assert drawn == 0
    for number in range(1, 100):
        assert next(results) == number * number
        assert drawn <= number + 9
    assert most == 4
    for event in done:  # for those that wait for one that will not be drawn
        event.set()
    results.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ccnn-decode")]


def test_what_a_worker_raises_comes_in_its_turn(network):
    classifier = runtime.load(network, device="cpu", batch_size=2)
    images = [np.zeros((4, 4), np.uint8)] * 9
    stream = classifier.classify_stream((image for image in [*images, "gone.png", 3.5]), workers=3)
    got = [next(stream) for _ in range(2)]
    assert [result.source for result in got] == ["image 0", "image 1"]
    with pytest.raises(ImageError, match="image 10 is a float"):
        list(stream)
    for workers in (-1, 1.5, None):
        with pytest.raises(ConfigurationError, match="workers"):
            classifier.classify_stream([], workers=workers)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_number_of_pictures(network, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(tmp_path / "x.png")
    program = f"""
import re
from pathlib import Path
from ccnn_zoo import runtime
classifier = runtime.load({str(network)!r}, device="cpu", threads=1)
def peak(pictures):
    for result in classifier.classify_stream(({str(tmp_path / "x.png")!r} for _ in range(pictures)), workers=2):
        assert result.error is None
    # Not getrusage: its peak counts what the parent held when it forked.
    return re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]
print(peak(500), peak(3000))
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    few, many = map(int, run.stdout.split())
    # Keeping nothing but the results would take 2800 KiB.
    assert many - few < 1500, f"{few} KiB after 500 pictures, {many} KiB after 3000 more"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_of_the_command_is_flat_on_20_000_pictures(network, tmp_path):
    picture = tmp_path / "x.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(picture)
    program = """
import re, sys
from pathlib import Path
from ccnn_zoo.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""
    peaks = []
    for number in (1000, 20_000):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        for i in range(number):
            os.link(picture, folder / f"{i:06}.png")
        command = [sys.executable, "-c", program, "classify", folder, "--model", network, "--device", "cpu"]
        output = tmp_path / f"{number}.csv"
        run = subprocess.run([*map(str, command), "-o", str(output)], capture_output=True, text=True, check=True)
        assert len(rows_of(output)) == number
        peaks.append(int(run.stdout))
    # A name and 16 bytes of a digest are held of each picture, 330 bytes with what Python adds.
    assert peaks[1] - peaks[0] < 8192, f"{peaks} KiB at 1,000 and 20,000 pictures"
    print(f"{peaks} KiB at 1,000 and 20,000 pictures")


def test_a_run_without_any_result_is_in_nobodys_way(network, folder, journal, tmp_path):
    output, part = tmp_path / "r.csv", tmp_path / "r.csv.part"
    (tmp_path / "empty").mkdir()
    assert "is an empty folder" in str(classify(tmp_path / "empty", network, output))
    assert not part.exists()
    head = journal.splitlines(keepends=True)[0]
    for left in (b"", head, head.replace(b"classifier", b"classifieR")):  # killed before its first result; not ours
        part.write_bytes(left)
        code = classify(folder / "0" / "00.png", network, output)
        if b"classifieR" in left:
            assert "delete the file" in str(code)
            assert part.read_bytes() == left
        else:
            assert code == 0
            assert not part.exists()
