"""One small project folder for all tests of the flows: its own params.yaml, stores and data.

The path has a space in it, as users' paths do. Commands run as a person types them.
"""

from __future__ import annotations

import pytest

from flows import evaluate, train
from fractal_model.cli import app
from tests.support.params import small_params
from tests.support.projects import Project, make_project


@pytest.fixture(scope="session")
def project(tmp_path_factory: pytest.TempPathFactory, prefect: None) -> Project:
    """Data prepared, reference extracted, one model trained and evaluated."""
    project = make_project(tmp_path_factory.mktemp("flows") / "a project", small_params())
    project.run(app.main, "data", "prepare", "digits")
    project.run(app.main, "data", "reference", "digits")
    project.run(train.main)
    project.run(evaluate.main)
    return project


@pytest.fixture
def error_line(capsys):
    """The one line that a failing command leaves on standard error."""

    def run(project, main, *arguments) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            project.run(main, *arguments)
        shown = capsys.readouterr()
        assert stopped.value.code == 1
        assert shown.err.startswith("error: ")
        assert shown.err.count("\n") == 1, shown.err
        assert shown.out == ""
        return shown.err

    return run
