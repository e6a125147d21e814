"""With a proxy in the shell, loopback is reached without it and everything else through it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from tests.support import REPOSITORY

LOOPBACK = "127.0.0.1,localhost,::1"
CLOSED = "http://127.0.0.1:9"
SHOW = """
import fractal_model, json, os
names = ("no_proxy", "NO_PROXY", "no_grpc_proxy")
print(json.dumps({name: os.environ.get(name) for name in names}))
"""
ASK = """
import fractal_model, sys, urllib.request
import httpx, requests
for host in ("127.0.0.1", "localhost"):
    address = f"http://{host}:{sys.argv[1]}/"
    print(httpx.get(address).text, requests.get(address).text, end=" ")
    print(urllib.request.urlopen(address).read().decode(), end=" ")
for refused in (httpx.HTTPError, OSError):
    try:
        (httpx if refused is httpx.HTTPError else requests).get("http://elsewhere.invalid/")
    except refused as error:
        print(type(error).__name__, end=" ")
"""


def _environment(**proxies: str) -> dict[str, str]:
    """The environment of this process, with `proxies` as its only variables of a proxy."""
    without = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    return {**without, **proxies}


def _run_python(code: str, *arguments: str, **proxies: str) -> str:
    command = [sys.executable, "-c", code, *arguments]
    environment = _environment(**proxies)
    return subprocess.run(command, env=environment, capture_output=True, text=True).stdout


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"no_proxy": LOOPBACK, "NO_PROXY": LOOPBACK}),
        (
            {"NO_PROXY": ".example.org, localhost"},
            dict.fromkeys(("no_proxy", "NO_PROXY"), ".example.org,localhost,127.0.0.1,::1"),
        ),
        (
            {"no_proxy": "a", "NO_PROXY": "b", "no_grpc_proxy": "c"},
            {
                "no_proxy": f"a,{LOOPBACK}",
                "NO_PROXY": f"b,{LOOPBACK}",
                "no_grpc_proxy": f"c,{LOOPBACK}",
            },
        ),
        ({"no_proxy": "*"}, {"no_proxy": "*", "NO_PROXY": "*"}),
    ],
)
def test_hosts_that_the_user_excludes_stay_excluded(before, after):
    variables = json.loads(_run_python(SHOW, **before))
    assert variables == {"no_grpc_proxy": None, **after}


def test_prefect_commands_load_the_package_first(tmp_path):
    """Prefect loads it by the entry point of pyproject.toml, which `make up` turns on."""
    groups = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["entry-points"]
    (entry,) = groups["prefect.plugins"].items()
    installed = tmp_path / "ours-1.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: ours\nVersion: 1\n")
    (installed / "entry_points.txt").write_text(f"[prefect.plugins]\n{' = '.join(entry)}\n")
    output = _run_python(
        "import prefect, os; print(os.environ['no_proxy'])",
        PYTHONPATH=os.pathsep.join([str(tmp_path), str(REPOSITORY)]),
        PREFECT_PLUGINS_ENABLED="true",
        PREFECT_HOME=str(tmp_path),
    )
    assert output.strip() == LOOPBACK


class _Greeting(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"here")

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def port() -> Iterator[int]:
    """Port of a server on this machine that answers `here`."""
    with HTTPServer(("127.0.0.1", 0), _Greeting) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.mark.parametrize("variables", [("HTTP_PROXY", "http_proxy"), ("ALL_PROXY", "all_proxy")])
def test_only_loopback_is_reached_past_the_proxy(port, variables):
    answers = _run_python(ASK, str(port), **dict.fromkeys(variables, CLOSED)).split()
    assert answers == ["here"] * 6 + ["ConnectError", "ProxyError"]
