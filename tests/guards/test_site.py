"""The documentation site: built without a warning, complete, readable, without other servers."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from fractal_model.cli.app import COMMANDS
from fractal_model.config.params import Params
from tests.support import REPOSITORY
from tests.support.chromium import browser_page, needs_chromium

NARROW = 400
CATCH_ERRORS = """
window.failures = [];
window.addEventListener("error", (event) => window.failures.push(String(event.message)), true);
const report = console.error;
console.error = (...words) => { window.failures.push(words.join(" ")); report(...words); };
"""
ELSEWHERE = re.compile(r"<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)=\"?https?://[^\">]*")


def load_hooks():
    spec = importlib.util.spec_from_file_location("hooks", REPOSITORY / "infra/site/hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *words: object) -> None: ...


@pytest.fixture(scope="module")
def address(site) -> Iterator[str]:
    """The site on a server of this machine."""
    handler = partial(QuietHandler, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    return folder


def test_every_command_and_setting_is_in_the_reference(site):
    commands = (site / "reference/commands.html").read_text()
    for name in COMMANDS:
        assert f"<code>fractal {name}</code>" in commands, name
    for words in ("fractal data register", "--start-from", "--guidance-interval"):
        assert words in commands
    settings = (site / "reference/settings.html").read_text()
    for section in Params.model_fields:
        assert f'<h2 id="{section}">' in settings, section
    for key in (
        "patch_sizes",
        "clip_norm",
        "guidance_interval",
        "likelihood_passes",
        "grid_classes",
    ):
        assert f"<code>{key}</code>" in settings, key


def test_the_python_reference_has_signatures_and_docstrings(site):
    page = (site / "python.html").read_text()
    for words in (
        "from_pretrained",
        "save_pretrained",
        "A trained model with its sampling settings",
    ):
        assert words in page


def test_no_page_loads_anything_from_another_server(site):
    for page in site.rglob("*.html"):
        own = [tag for tag in ELSEWHERE.findall(page.read_text()) if 'rel="canonical"' not in tag]
        assert own == [], page


def test_the_search_knows_every_page(site):
    index = (site / "search/search_index.json").read_text()
    for page in ("training.html", "reference/settings.html", "explanation/models.html"):
        assert f'"location":"{page}' in index, page


@pytest.mark.parametrize(
    ("text", "folder", "page", "expected"),
    [
        ("[t](docs/training.md#a)", "", "project/x.md", "[t](../training.md#a)"),
        ("[i](../infra/README.md)", "docs", "training.md", "[i](cluster.md)"),
        ("[a](ARCHITECTURE.md)", "", "project/contributing.md", "[a](architecture.md)"),
        ("[kernel](../fractal_model/x.py)", "docs", "speed.md", "kernel"),
        ("[s](studies/a.md)", "docs", "training.md", "[s](studies/a.md)"),
        ("[d](../training.md)", "docs/studies", "studies/a.md", "[d](../training.md)"),
        ("[p](https://a.b/c.md) [h](#x)", "docs", "a.md", "[p](https://a.b/c.md) [h](#x)"),
        ("![picture](a.png)", "docs", "a.md", "![picture](a.png)"),
    ],
)
def test_links_fit_the_site(text, folder, page, expected):
    assert load_hooks().relink(text, folder, page) == expected


def test_a_notebook_is_a_page_with_its_text_and_code():
    hooks = load_hooks()
    source = REPOSITORY / "docs" / "notebooks" / "train_on_my_pictures.py"
    page = hooks.describe_notebook(source)
    assert page.startswith("# Train on my pictures\n\nA notebook: `make notebooks`")
    assert "```python\n!fractal size new mine" in page and "jupytext" not in page
    link = "[x](notebooks/train_on_my_pictures.py)"
    assert hooks.relink(link, "docs", "index.md") == "[x](tutorial/train_on_my_pictures.md)"


@pytest.mark.pages
@needs_chromium
@pytest.mark.parametrize("name", ["index", "training", "reference/settings", "python", "speed"])
def test_pages_are_readable_on_a_narrow_screen(address, name):
    with browser_page() as page:
        page.open(f"{address}/{name}.html", script=CATCH_ERRORS, size=(NARROW, 800))
        page.wait("document.readyState === 'complete'")
        assert page.evaluate("document.documentElement.scrollWidth") <= NARROW
        assert page.evaluate("window.failures") == []
        assert float(page.evaluate("parseFloat(getComputedStyle(document.body).fontSize)")) >= 10


@pytest.mark.pages
@needs_chromium
def test_the_search_finds_a_setting(address):
    with browser_page() as page:
        page.open(f"{address}/index.html", script=CATCH_ERRORS)
        page.wait("document.readyState === 'complete'")
        page.click("document.querySelector('.md-search__input')")
        page.type("document.querySelector('.md-search__input')", "clip_norm")
        page.press("End")  # The search begins when a key is released.
        page.wait("document.querySelectorAll('.md-search-result__item').length > 0")
        assert "clip_norm" in page.evaluate(
            "document.querySelector('.md-search-result__list').innerText"
        )
        assert page.evaluate("window.failures") == []
