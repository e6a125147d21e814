"""`fractal playground` explains what is missing before it opens a port."""

from __future__ import annotations

import socket

import pytest
from typer.testing import CliRunner

from fractal_model.cli.app import app
from fractal_model.common.errors import FractalError
from tests.support.params import small_params
from tests.support.projects import make_project


@pytest.fixture
def project(tmp_path):
    return make_project(tmp_path / "a project", small_params())


def run(*words: object) -> None:
    done = CliRunner().invoke(app, ["playground", *map(str, words)])
    assert isinstance(done.exception, FractalError)
    raise done.exception


def test_without_a_registered_model_the_way_out_is_named(project):
    with pytest.raises(FractalError, match="no model is registered: run `make demo`, train one"):
        run("--params", project.params)


def test_a_missing_model_is_explained(project, tmp_path):
    with pytest.raises(FractalError, match="there is no model .*nothing"):
        run("--params", project.params, "--model", tmp_path / "nothing")


def test_a_port_that_is_taken_is_explained(project, tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(FractalError, match=f"port {port} .*choose another with --port"):
            run("--params", project.params, "--model", tmp_path, "--port", port)
