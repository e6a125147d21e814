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
