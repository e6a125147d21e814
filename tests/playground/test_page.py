"""The page in a browser: draw, see the picture grow, edit, compare, examine, and mistakes."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from PIL import Image

from fractal_model.playground.views import image_of
from tests.support.chromium import Page, browser_page, needs_chromium
from tests.support.playground import serve_playground

pytestmark = [pytest.mark.pages, needs_chromium, pytest.mark.xdist_group("playground")]
ALLOWED = ("http://127.0.0.1:", "ws://127.0.0.1:", "data:", "blob:")
WATCH = """
window.failures = [];
window.addEventListener("error", (event) => window.failures.push(String(event.message)), true);
window.shown = [];
setInterval(() => {
  const source = document.querySelector("#drawn img")?.src;
  if (source && source !== window.shown.at(-1)) window.shown.push(source);
}, 20);
"""


@pytest.fixture(scope="module")
def address(exported, tmp_path_factory) -> Iterator[str]:
    with serve_playground(tmp_path_factory.mktemp("playground"), *exported) as address:
        yield address


@pytest.fixture(scope="module")
def page(address) -> Iterator[Page]:
    with browser_page() as page:
        page.open(address, script=WATCH, size=(1300, 2000))
        page.wait_for_text("Fractal playground")
        yield page
        assert page.evaluate("window.failures") == []
        loaded = page.evaluate("performance.getEntriesByType('resource').map(e => e.name)")
        assert loaded and not [name for name in loaded if not name.startswith(ALLOWED)]


def tab(name: str) -> str:
    return f"[...document.querySelectorAll('button[role=tab]')].find(b => b.innerText === '{name}')"


def button(name: str) -> str:
    return f"[...document.querySelectorAll('button.primary')].find(b => b.innerText === '{name}')"


def source(place: str) -> str:
    return f"document.querySelector('#{place} img')?.src"


def wait_for_another(page: Page, place: str, before: str | None) -> str:
    """Wait until a picture is there that is another than before, and stays."""
    last, since = before, time.monotonic()
    deadline = time.monotonic() + 60
    while last in (before, None) or time.monotonic() - since < 1.5:
        assert time.monotonic() < deadline, page.text()
        time.sleep(0.2)
        if (now := page.evaluate(source(place))) != last:
            last, since = now, time.monotonic()
    return str(last)


def fetch(address: str, side: int = 4) -> np.ndarray:
    picture = Image.open(io.BytesIO(httpx.get(address, trust_env=False).content))
    return image_of(picture, side).permute(1, 2, 0).numpy()


def set_field(page: Page, label: str, value: str) -> None:
    """Write a value into the field with this label of the tab that is shown."""
    field = (
        f"[...document.querySelectorAll('label')].find(l => l.offsetParent && "
        f"l.innerText.trim() === '{label}').querySelector('input, textarea')"
    )
    page.wait(f"({field}.select(), true)")
    page.type(field, value)
    page.evaluate(f"{field}.dispatchEvent(new Event('change', {{bubbles: true}}))")


def test_a_drawn_picture_grows_and_another_seed_gives_another(page):
    page.click(tab("Draw"))
    page.click(button("Draw"))
    first = wait_for_another(page, "drawn", None)
    assert len(page.evaluate("window.shown")) > 1
    set_field(page, "Seed of the first image", "1")
    page.click(button("Draw"))
    other = wait_for_another(page, "drawn", first)
    assert not np.array_equal(fetch(first), fetch(other))


def test_a_painted_part_is_generated_and_the_rest_stays(page):
    drawn = fetch(page.evaluate(source("drawn")))
    page.click(tab("Edit"))
    page.wait("document.querySelector('#editor canvas')?.getBoundingClientRect().width > 100")
    time.sleep(2)  # The editor does not say when it has drawn its picture.
    # The third pixel of the third row. The canvas also has a margin around the picture.
    for down in (0.55, 0.6, 0.65, 0.7):
        page.drag("document.querySelector('#editor canvas')", (0.55, down), (0.7, down))
    set_field(page, "Seed of the first image", "7")
    page.click(button("Generate"))
    edited = fetch(wait_for_another(page, "variants", None))
    changed = (edited != drawn).any(-1)
    assert changed.any() and not changed[:2].any() and not changed[:, :2].any()


def test_two_sides_draw_from_the_same_seeds(page):
    page.click(tab("Compare"))
    page.click(button("Compare"))
    left, right = (wait_for_another(page, side, None) for side in ("left", "right"))
    assert np.array_equal(fetch(left), fetch(right))
    page.evaluate("document.querySelectorAll('#right')[0].scrollIntoView()")


def test_the_drawn_picture_is_examined(page):
    page.click(tab("Examine"))
    page.click(button("Measure"))
    page.wait_for_text("bits per dimension")
    heat = fetch(page.evaluate(source("bits-of-each-pixel")))
    assert len(np.unique(heat.reshape(-1, 3), axis=0)) > 4


def test_a_mistake_is_a_message_on_the_page(page):
    page.click(tab("Draw"))
    set_field(page, "Iterations of each level", "many")
    page.click(button("Draw"))
    page.wait_for_text("expected whole numbers")
    page.click(tab("Examine"))
    page.wait("document.querySelector('#picture img')?.complete")  # the drawn one is still there


def test_stop_ends_a_drawing(page):
    page.click(tab("Draw"))
    set_field(page, "Iterations of each level", "4, 4")
    number = "[...document.querySelectorAll('input[type=number]')].find(i => i.offsetParent)"
    page.wait(f"({number}.select(), true)")
    page.type(number, "16")
    page.click(button("Draw"))
    stop = "[...document.querySelectorAll('button')].filter(b => b.innerText === 'Stop')"
    page.click(f"{stop}.find(b => b.offsetParent)")
    page.type(number, "1")
    set_field(page, "Seed of the first image", "11")
    before = page.evaluate(source("drawn"))
    page.click(button("Draw"))
    assert fetch(wait_for_another(page, "drawn", before)).shape == (4, 4, 3)


def test_another_model_brings_its_classes_and_settings(page, exported):
    field = "document.querySelector('input[aria-label=Model]')"
    page.click(field)
    option = "[...document.querySelectorAll('[role=option]')].find(o => o.innerText.includes('%s'))"
    page.click(option % exported[1])
    iterations = (
        "[...document.querySelectorAll('label')].find(l => l.offsetParent && "
        "l.innerText.trim() === 'Iterations of each level').querySelector('input, textarea').value"
    )
    page.wait(f"{iterations} === '4, 4'")
