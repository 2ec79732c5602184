"""``ccnn web`` in a real browser: what a visitor drops, draws and chooses is read as the runtime reads it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import serve_network
from browser import ISOLATION, Browser, runtime_folder, serving
from PIL import Image

from ccnn_zoo import runtime, uncertainty
from ccnn_zoo.export import add_confidence

pytestmark = pytest.mark.browser

MNIST = "ccnn_resnet18_cifar.mnist"
HOSTILE = "<img src=x onerror=hacked=1>"
LABELS = (HOSTILE, "</span><script>hacked=1</script>", "cat & dog", "dog", "'\"eel", "fox")
NUMBERS = uncertainty.fit(
    np.random.default_rng(0).normal(size=(300, 6)) * 2, np.random.default_rng(1).integers(0, 6, 300)
)
# In parts of the pad's sides.
STROKES = {
    "0": [
        [(0.5, 0.2), (0.33, 0.3), (0.3, 0.5), (0.33, 0.7), (0.5, 0.8), (0.67, 0.7), (0.7, 0.5), (0.67, 0.3), (0.5, 0.2)]
    ],
    "1": [[(0.5, 0.15), (0.5, 0.85)]],
    "7": [[(0.3, 0.2), (0.7, 0.2), (0.45, 0.85)]],
}


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A site of the shipped MNIST network and of one with hostile names that carries numbers of confidence."""
    from typer.testing import CliRunner

    from ccnn_zoo.cli import app

    folder = tmp_path_factory.mktemp("web")
    metadata = replace(serve_network.METADATA, labels=LABELS)
    model = onnx.load(serve_network.save_network(folder / "plain.onnx", metadata=metadata))
    model.graph.input[0].name = model.graph.node[0].input[0] = "image"
    onnx.save(model, folder / "plain.onnx")
    hostile = folder / "<b>colours<b>.onnx"
    add_confidence(folder / "plain.onnx", NUMBERS, hostile)
    arguments = ["web", MNIST, str(hostile), "-o", str(folder / "site"), "--runtime", str(runtime_folder())]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return folder / "site"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    browser = Browser()
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    with serving(site, {}) as address:
        yield address


@pytest.fixture
def page(chromium: Browser, address: str) -> Browser:
    """The page, opened anew, without cross-origin isolation."""
    chromium.open(address)
    return chromium


def digits(site: Path) -> list[tuple[str, bytes]]:
    return [(path.name, path.read_bytes()) for path in sorted((site / "examples").iterdir())]


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def colours(page: Browser) -> None:
    """Choose the other network."""
    page.driver.find_element("id", "network").send_keys("<b>")
    page.until("!document.getElementById('status').textContent.startsWith('Loading')")


@pytest.mark.parametrize("headers", [{}, ISOLATION], ids=["open", "isolated"])
def test_ten_digits_that_are_dropped_get_the_runtimes_classes(chromium: Browser, site: Path, headers: dict) -> None:
    classifier = runtime.load(next(site.glob("networks/0_*.onnx")), device="cpu")
    expected = classifier.classify([content for _, content in digits(site)])
    with serving(site, headers) as address:
        chromium.open(address)
        assert chromium.js("self.crossOriginIsolated") == bool(headers)
        chromium.drop(*digits(site))
        assert chromium.answered(10) == [found.label for found in expected]
        last = {p.label: p.probability for p in expected[-1].predictions}
        assert chromium.shares() == pytest.approx(last, abs=6e-4)
        assert len(chromium.texts("#members li")) == 4
        runs_on = chromium.facts()["Runs on"]
        assert runs_on == "WebAssembly, one thread" or (headers and runs_on.endswith(" threads")), runs_on
        requests = [one for one in chromium.requests() if not one.startswith((address, f"blob:{address}", "chrome:"))]
        entries = chromium.js("performance.getEntriesByType('resource').map((entry) => entry.name)")
        assert [one for one in requests if not one.startswith("data:")] == []
        assert [one for one in entries if not one.startswith((address, f"blob:{address}"))] == []
        assert f"{address}ort/ort-wasm-simd-threaded.wasm" in entries
        assert chromium.logs() == []


@pytest.mark.parametrize("digit", STROKES)
def test_a_digit_that_is_drawn_is_read(page: Browser, digit: str) -> None:
    from selenium.webdriver import ActionChains

    page.driver.find_element("id", "draw").click()
    pad = page.driver.find_element("id", "pad")
    side = pad.size["width"]
    for stroke in STROKES[digit]:
        pen = ActionChains(page.driver, duration=10)
        for number, (x, y) in enumerate(stroke):
            pen.move_to_element_with_offset(pad, round((x - 0.5) * side), round((y - 0.5) * side))
            if number == 0:
                pen.click_and_hold()
        pen.release().perform()
    assert page.answered(1) == [digit]
    assert page.text("#top") == digit


def test_all_but_the_mouse_works(page: Browser) -> None:
    from selenium.webdriver import ActionChains, Keys

    reached = []
    for _ in range(20):
        ActionChains(page.driver).send_keys(Keys.TAB).perform()
        reached.append(page.js("document.activeElement.id || document.activeElement.firstChild?.alt"))
    assert [name for name in dict.fromkeys(reached) if name in ("network", "file", "camera", "draw")] == [
        "network", "file", "camera", "draw",
    ]  # fmt: skip
    assert {f"a handwritten {digit}" for digit in range(10)} <= set(reached)
    page.js("document.querySelector('#examples button').focus()")
    ActionChains(page.driver).send_keys(Keys.ENTER).perform()
    assert page.answered(1) == ["0"]
    page.js("document.getElementById('draw').focus()")
    ActionChains(page.driver).send_keys(Keys.SPACE).perform()
    ActionChains(page.driver).send_keys(Keys.ARROW_DOWN * 15).perform()
    page.until("[...document.querySelectorAll('#history button')].some((one) => one.title === 'a drawing')")
    assert page.js("document.activeElement.id") == "pad"
    page.until("document.getElementById('top').textContent === '1'")


def test_pictures_that_cannot_be_read_get_a_sentence_and_the_next_is_read(page: Browser, site: Path) -> None:
    whole = encoded(Image.new("RGB", (40, 40), (9, 9, 9)))
    for name, content, sentence in (
        ("text.png", b"no picture", "text.png: It is damaged, or no picture of a kind that this browser reads."),
        ("cut.png", whole[:60], "cut.png: It is damaged, or no picture of a kind that this browser reads."),
        ("empty.jpg", b"", "empty.jpg: It is empty."),
        ("huge.png", encoded(Image.new("1", (9000, 9000))), "huge.png: It has 9000 x 9000 pixels"),
        ("thin.png", encoded(Image.new("1", (6500, 100))), "thin.png: It has 6500 x 100 pixels, which is too thin"),
        (f"{HOSTILE}.png", b"x", f"{HOSTILE}.png: It is damaged"),
    ):
        page.drop((name, content))
        page.until(f"document.getElementById('status').textContent.startsWith({sentence!r})")
    page.drop(digits(site)[7])
    assert page.answered(1) == ["7"]
    assert page.text("#status") == ""


def test_names_of_strangers_become_text_and_no_other_script_runs(page: Browser) -> None:
    colours(page)
    page.drop((f"{HOSTILE}.png", serve_network.encoded((250, 20, 20))), ("b.png", serve_network.encoded((9, 9, 250))))
    page.answered(2)
    assert set(page.texts("#bars .name")) <= set(LABELS)
    assert page.js("document.title") == "<b>colours<b> · ccnn-zoo"
    assert page.js("document.querySelectorAll('main b, main script, [onerror], img[src=x]').length") == 0
    page.driver.execute_script(
        "for (const code of ['ran = 1']) document.body.append(Object.assign(document.createElement('script'), "
        "{ textContent: code }));"
        "document.body.insertAdjacentHTML('beforeend', '<img src=/none onerror=\"ran = 1\">');"
    )
    reached = page.driver.execute_async_script(
        "const done = arguments[0]; fetch('http://127.0.0.1:9/').then(() => done('yes'), () => done('no'))"
    )
    assert reached == "no"
    assert page.js("[typeof hacked, typeof ran]") == ["undefined", "undefined"]
    refusals = page.logs()
    assert sum("Content Security Policy" in one for one in refusals) >= 3, refusals


def test_probabilities_doubt_and_strangeness_are_those_of_the_numbers_in_the_file(page: Browser) -> None:
    colours(page)
    colour = (60, 150, 70)
    page.drop(("a.png", serve_network.encoded(colour, size=(31, 47))))
    page.answered(1)
    features = (np.array(colour) / 255 - serve_network.METADATA.mean) / serve_network.METADATA.std
    logits = (features @ serve_network.WEIGHT.astype(float))[None]
    found = uncertainty.doubt(logits, None, NUMBERS)
    expected = dict(zip(LABELS, found.probabilities[0], strict=True))
    shares = page.shares()
    assert list(shares) == sorted(expected, key=lambda label: -expected[label])[:5]
    assert shares == pytest.approx({label: expected[label] for label in shares}, abs=2e-3)
    facts = page.facts()
    assert facts["Doubt"] == f"{found.entropy[0]:.2f} nats of {np.log(6):.2f}"
    assert facts["Unlike the known pictures"] == f"more than {found.percentile[0]:.0f} % of them"
    assert page.js("document.getElementById('members').hidden")
    assert page.js("document.getElementById('draw').hidden")


def test_another_network_looks_at_the_same_picture(page: Browser, site: Path) -> None:
    page.drop(digits(site)[3])
    assert page.answered(1) == ["3"]
    colours(page)
    assert set(page.answered(2)) - {"3"} <= set(LABELS)


def test_the_camera_is_looked_at_until_it_is_stopped(page: Browser) -> None:
    page.driver.find_element("id", "camera").click()
    page.until("!document.getElementById('answer').hidden && !document.getElementById('video').hidden")
    page.driver.find_element("id", "camera").click()
    page.until("document.getElementById('video').hidden")
    assert page.js("document.getElementById('video').srcObject.active") is False
    assert page.js("document.getElementById('history').hidden")  # its pictures are not kept


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_can_be_read_by_day_and_night(page: Browser, site: Path, scheme: str) -> None:
    emulate = page.driver.execute_cdp_cmd
    emulate("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
    size = {"width": 320, "height": 640, "deviceScaleFactor": 2, "mobile": True}
    emulate("Emulation.setDeviceMetricsOverride", size)
    try:
        page.drop(*digits(site))
        page.answered(10)
        assert page.js("document.documentElement.scrollWidth") <= 320
        ratios = page.contrasts()
        assert len(ratios) > 20
        assert min(ratios)[0] >= 4.5, min(ratios)  # of WCAG's level AA
        dark = page.js("getComputedStyle(document.body).backgroundColor") == "rgb(14, 19, 29)"
        assert dark == (scheme == "dark")
    finally:
        emulate("Emulation.clearDeviceMetricsOverride", {})
        emulate("Emulation.setEmulatedMedia", {"features": []})
