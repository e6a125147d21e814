"""One small project folder for all tests of the flows, with its own params.yaml, stores and data.

The path has a space, as users' paths may have. Commands run as a person types them.
"""

from __future__ import annotations

import pytest

from flows import evaluate, train
from fractal_model.cli import app
from tests.support.params import small_params
from tests.support.pixel_features import use_pixels_as_features
from tests.support.projects import Project, make_project


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory, prefect: None) -> Project:
    """A project with prepared data, a reference, and one trained and evaluated model."""
    project = make_project(tmp_path_factory.mktemp("flows") / "a project", small_params())
    with pytest.MonkeyPatch.context() as monkeypatch:
        use_pixels_as_features(monkeypatch)
        project.run(app.main, "data", "prepare", "digits")
        project.run(app.main, "data", "reference", "digits")
        project.run(train.main)
        project.run(evaluate.main)
    return project


@pytest.fixture(autouse=True)
def quick_features(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inception takes most of an evaluation's time; the tests of services and pages use it."""
    use_pixels_as_features(monkeypatch)


@pytest.fixture
def error_line(capsys):
    """A function that runs a failing command and returns its line on standard error."""

    def run(project, main, *arguments) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as raised:
            project.run(main, *arguments)
        output = capsys.readouterr()
        assert raised.value.code == 1
        assert output.err.startswith("error: ")
        assert output.err.count("\n") == 1, output.err
        assert output.out == ""
        return output.err

    return run
