"""`make up` makes the deployments of the flows, on a real Prefect server."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.settings import get_current_settings

from fractal_model.config.services import ServicesConfig
from fractal_model.services.configuration import WORK_POOL
from fractal_model.services.deployments import deploy, set_paused
from fractal_model.services.folder import ServicesFolder
from tests.support.params import small_params


@pytest.fixture
def config(prefect: None) -> ServicesConfig:
    """Settings of services in which the tests' Prefect server is that of `make up`."""
    return ServicesConfig(prefect=urlsplit(get_current_settings().api.url).port)


@pytest.fixture
def folder(tmp_path) -> ServicesFolder:
    """The services' folder of a project with one size."""
    content = small_params()
    for section in ("models", "training", "sampling", "evaluation", "sweep"):
        content[section] = {"digits": content[section]["digits"]}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(content))
    folder = ServicesFolder(tmp_path / "params.yaml", tmp_path / "outputs")
    folder.state.mkdir(parents=True)
    return folder


def test_deploy_returns_the_deployments_and_resumes_the_work_pool(folder, config):
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name=WORK_POOL, type="process"), overwrite=True)
        set_paused(config, folder, True)
        assert client.read_work_pool(WORK_POOL).is_paused
        names = deploy(config, folder, ())
        flows = ("train-fractal", "evaluate-fractal", "sweep-guidance", "prepare-data")
        assert names == [*(f"{flow}/digits" for flow in flows), "nightly-evaluation/all"]
        assert not client.read_work_pool(WORK_POOL).is_paused
        training = client.read_deployment_by_name("train-fractal/digits")
    directory = training.pull_steps[0]["prefect.deployments.steps.set_working_directory"]
    assert directory == {"directory": str(folder.project)}
