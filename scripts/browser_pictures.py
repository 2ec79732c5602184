"""Pictures of the browser's page for the documents: `python scripts/browser_pictures.py SITE`, a site of `ccnn web`.

Needs chromium, chromedriver and selenium; docs/browser.md has a site's making. A seven is drawn with the mouse.
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image
from selenium.webdriver import ActionChains

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from browser import ISOLATION, Browser, serving  # noqa: E402

SEVEN = ((0.28, 0.2), (0.72, 0.2), (0.45, 0.85))


def draw(browser: Browser) -> None:
    browser.driver.find_element("id", "draw").click()
    pad = browser.driver.find_element("id", "pad")
    side = pad.size["width"]
    pen = ActionChains(browser.driver, duration=30)
    for number, (x, y) in enumerate(SEVEN):
        pen.move_to_element_with_offset(pad, round((x - 0.5) * side), round((y - 0.5) * side))
        if number == 0:
            pen.click_and_hold()
    pen.release().perform()


def shoot(browser: Browser, address: str, path: Path, width: int, height: int, scheme: str) -> None:
    """Look at the example pictures, draw a seven, and keep what is to be seen."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1.5, "mobile": width < 600}
    browser.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.open(address)
    count = browser.js("document.querySelectorAll('#examples button').length")
    for position in range(count):
        browser.js(f"document.querySelectorAll('#examples button')[{position}].click()")
        browser.answered(position + 1)
    draw(browser)
    browser.answered(count + 1)
    browser.driver.execute_script("document.activeElement.blur(); scrollTo(0, 0)")
    browser.driver.save_screenshot(str(path))
    Image.open(path).convert("P", palette=Image.Palette.ADAPTIVE, colors=128).save(path, optimize=True)


def main(site: Path) -> None:
    browser = Browser()
    try:
        with serving(site, ISOLATION) as address:
            shoot(browser, address, ROOT / "docs" / "browser.png", 1100, 860, "light")
            shoot(browser, address, ROOT / "docs" / "browser_phone.png", 390, 1180, "dark")
    finally:
        browser.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
