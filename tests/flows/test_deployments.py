"""Prefect's deployments: made from params.yaml alone, and read back from a real server."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from prefect.client.orchestration import get_client
from prefect.client.schemas.schedules import CronSchedule
from prefect.deployments.runner import RunnerDeployment
from prefect.runner.storage import LocalStorage
from prefect.utilities.callables import parameter_schema

from flows import deployments
from flows.evaluate import evaluate_fractal
from flows.nightly import nightly_evaluation
from flows.prepare import prepare_data
from flows.sweep import sweep_guidance
from flows.train import train_fractal
from flows.tune_ddo import tune_ddo
from fractal_model.common.errors import FractalError
from fractal_model.config.params import Params, load_params
from fractal_model.data.sources.registered import Registered, update_registered
from fractal_model.services.configuration import WORK_POOL
from tests.support import REPOSITORY
from tests.support.failing_prefect import failing_prefect
from tests.support.params import SHIPPED, small_params
from tests.support.projects import Project, make_project

SIZE_SECTIONS = ("models", "training", "sampling", "evaluation")
H100 = "32 workers, one H100, 8 CPUs and 40 GiB of memory each"


def _only(*sizes: str) -> dict:
    """The small settings with these sizes, each a copy of digits."""
    content = small_params()
    for section in SIZE_SECTIONS:
        digits = content[section]["digits"]
        content[section] = {size: copy.deepcopy(digits) for size in sizes}
    content["sweep"] = {}
    return content


@pytest.fixture
def project(tmp_path, monkeypatch) -> Project:
    """A project with flows and the sizes digits and own, as the working directory."""
    project = make_project(tmp_path / "a project", _only("digits", "own"))
    monkeypatch.chdir(project.folder)
    return project


def test_the_page_about_servers_shows_the_number_of_deployments():
    params = load_params(REPOSITORY / "params.yaml")
    names = [each.entrypoint.rpartition(".")[2] for each in deployments.deployments(params)]
    flows = Counter(name.replace("_", "-") for name in names)
    expected = ", ".join(f"{flow} ({count})" for flow, count in flows.items())
    page = (REPOSITORY / "docs" / "servers.md").read_text()
    assert f"deployments: {expected}\n" in page


def _by_name(params: Params) -> dict[tuple[str, str], deployments.Deployment]:
    all_deployments = list(deployments.deployments(params))
    by_name = {(each.entrypoint, each.name): each for each in all_deployments}
    assert len(by_name) == len(all_deployments)
    return by_name


def test_every_size_is_trained_evaluated_and_swept():
    params = load_params(SHIPPED)
    by_name = _by_name(params)
    for name in params.models:
        recipe = params.training[name]
        is_ar = set(params.models[name].generators) == {"ar"}
        assert ((deployments.TUNE, name) in by_name) == is_ar
        of_size = (deployments.TRAIN, deployments.EVALUATE, deployments.SWEEP)
        for entrypoint in (*of_size, deployments.TUNE) if is_ar else of_size:
            deployment = by_name.pop((entrypoint, name))
            assert deployment.parameters == {"size": name}
            assert {"fractal", recipe.dataset} < set(deployment.tags)
            assert "Resources: " in deployment.description
    others = {(deployments.NIGHTLY, "all")}
    assert set(by_name) == others | {x for x in by_name if x[0] == deployments.PREPARE}


@pytest.mark.parametrize(
    ("size", "recipe", "description", "tags"),
    [
        (
            "digits",
            {"workers": 2, "resources_per_worker": {"CPU": 1}, "accelerator_type": None},
            "Trains a fractal-digits on digits: MAR levels, 8 → 2 → 1 px, 22 epochs. "
            "Resources: 2 workers, 1 CPU each, no GPU.",
            ("fractal", "digits", "cpu"),
        ),
        (
            "ar-64-two-level",
            {},
            "Trains a fractal-ar-64-two-level on imagenet64: AR levels, 64 → 1 px, 800 epochs. "
            f"Resources: {H100}.",
            ("fractal", "imagenet64", "h100"),
        ),
        (
            "mar-64",
            {"resources_per_worker": {"GPU": 0.5, "licence": 2}, "accelerator_type": None},
            "Trains a fractal-mar-64 on imagenet64: MAR levels, 64 → 4 → 1 px, 800 epochs. "
            "Resources: 32 workers, 0.5 GPU and 2 licence each.",
            ("fractal", "imagenet64", "gpu"),
        ),
        (
            "mar-l",
            {},
            "Trains a fractal-mar-l on imagenet256: MAR levels, 256 → 16 → 4 → 1 px, 800 epochs. "
            f"Resources: {H100}.",
            ("fractal", "imagenet256", "h100"),
        ),
    ],
)
def test_a_description_has_the_resources_of_the_recipe(tmp_path, size, recipe, description, tags):
    content = yaml.safe_load(SHIPPED.read_text())
    published = {
        "workers": 32,
        "min_workers": 1,
        "resources_per_worker": {"CPU": 8, "GPU": 1, "memory": 40 * 2**30},
        "accelerator_type": "H100",
    }
    content["training"][size].update(published | recipe)
    params = load_params(make_project(tmp_path / "recipe", content).params)
    deployment = _by_name(params)[deployments.TRAIN, size]
    assert (deployment.description, deployment.tags) == (description, tags)


@pytest.mark.parametrize(
    ("workers", "place"),
    [
        (0, "all CPUs of the cluster, one worker each"),
        (1, "this machine"),
        (4, "4 CPUs of the cluster, one worker each"),
    ],
)
def test_a_description_says_where_an_evaluation_and_a_sweep_sample(tmp_path, workers, place):
    content = _only("digits")
    content["evaluation"]["digits"]["workers"] = workers
    by_name = _by_name(load_params(make_project(tmp_path / "workers", content).params))
    for entrypoint in (deployments.EVALUATE, deployments.SWEEP):
        assert by_name[entrypoint, "digits"].description.endswith(f" Resources: {place}.")


def test_each_registered_data_set_has_a_deployment(project):
    params = load_params(project.params)
    entry = Registered(source="flowers", resolution=64, description="data/sources/flowers.json")
    params.paths.data.mkdir()
    update_registered(params.paths.data, {"flowers": entry})
    by_name = _by_name(params)
    for dataset in ("digits", "flowers"):
        deployment = by_name[deployments.PREPARE, dataset]
        assert deployment.parameters == {"dataset": dataset}
        assert deployment.tags == ("fractal", dataset)


def _parameters() -> Iterator[tuple[str, str, dict]]:
    flows = (train_fractal, evaluate_fractal, nightly_evaluation, sweep_guidance, prepare_data)
    for flow in (*flows, tune_ddo):
        for name, schema in parameter_schema(flow.fn).model_dump()["properties"].items():
            yield flow.name, name, schema


@pytest.mark.parametrize(("flow", "parameter", "schema"), list(_parameters()))
def test_every_parameter_has_a_description_in_prefects_form(flow, parameter, schema):
    assert len(schema["description"]) > 10


@pytest.fixture
def server(prefect: None) -> None:
    """A Prefect server without deployments."""
    with get_client(sync_client=True) as client:
        for each in client.read_deployments():
            client.delete_deployment(each.id)


def _on_the_server() -> dict:
    with get_client(sync_client=True) as client:
        flows = {flow.id: flow.name for flow in client.read_flows()}
        return {f"{flows[each.flow_id]}/{each.name}": each for each in client.read_deployments()}


def _names(*sizes: str) -> set[str]:
    of_sizes = {
        f"{flow}/{size}"
        for flow in ("train-fractal", "evaluate-fractal", "sweep-guidance")
        for size in sizes
    }
    return of_sizes | {"prepare-data/digits", "nightly-evaluation/all"}


def test_the_server_has_every_deployment_with_its_settings(project, server, capsys):
    project.run(deployments.main)
    assert set(capsys.readouterr().out.split()) == {"deployed"} | _names("digits", "own")
    stored = _on_the_server()
    assert set(stored) == _names("digits", "own")
    here = {"directory": str(project.folder)}
    for each in stored.values():
        assert each.work_pool_name == WORK_POOL
        assert each.global_concurrency_limit.limit == 1
        assert each.concurrency_options.collision_strategy == "ENQUEUE"
        assert each.path is None
        assert each.pull_steps == [{"prefect.deployments.steps.set_working_directory": here}]
        assert not each.job_variables
        assert not each.paused
    training = stored["train-fractal/own"]
    assert training.entrypoint == deployments.TRAIN
    assert training.parameters == {"size": "own"}
    assert training.tags == ["fractal", "digits", "cpu"]
    assert training.description.startswith("Trains a fractal-own on digits: MAR levels, 8 → 2 → 1")
    properties = training.parameter_openapi_schema["properties"]
    assert all(len(schema["description"]) > 10 for schema in properties.values())
    assert (properties["size"]["enum"], properties["size"]["readOnly"]) == (["own"], True)
    night = load_params(project.params).nightly
    (schedule,) = stored["nightly-evaluation/all"].schedules
    assert schedule.active
    assert schedule.schedule == CronSchedule(cron=night.cron, timezone=night.timezone)
    assert [name for name, each in stored.items() if each.schedules] == ["nightly-evaluation/all"]


def test_new_and_deleted_sizes_and_another_schedule_change_the_server(project, server, capsys):
    project.run(deployments.main)
    # Deployments that a person has made, from this folder or another one, stay.
    for name, folder in (("own-short", project.folder), ("elsewhere", project.folder.parent)):
        _deploy_by_hand(name, folder)
    content = _only("digits", "new")
    content["nightly"] = {"cron": "30 2 * * 1", "timezone": "Europe/Berlin"}
    project.params.write_text(yaml.safe_dump(content))
    capsys.readouterr()
    project.run(deployments.main)
    removed = _names("own") - _names()
    lines = capsys.readouterr().out.splitlines()
    assert {line.removeprefix("removed ") for line in lines if "removed" in line} == removed
    stored = _on_the_server()
    by_hand = {"train-fractal/own-short", "train-fractal/elsewhere"}
    assert set(stored) == _names("digits", "new") | by_hand
    (schedule,) = stored["nightly-evaluation/all"].schedules
    assert schedule.schedule == CronSchedule(cron="30 2 * * 1", timezone="Europe/Berlin")
    assert stored["train-fractal/digits"].concurrency_options.collision_strategy == "ENQUEUE"


def _deploy_by_hand(name: str, folder: Path) -> None:
    size = "own" if folder == Path.cwd() else name
    code = LocalStorage(str(REPOSITORY))
    deployment = RunnerDeployment.from_storage(
        code, deployments.TRAIN, name, parameters={"size": size}, work_pool_name=WORK_POOL
    )
    deployment.storage = LocalStorage(str(folder))
    deployment.apply()


def test_runs_read_a_settings_file_of_another_name(project, server):
    other = project.folder / "mine.yaml"
    project.params.rename(other)
    deployments.deploy(Path("mine.yaml"))
    parameters = _on_the_server()["train-fractal/digits"].parameters
    assert parameters == {"size": "digits", "params_file": str(other)}


def test_a_server_that_does_not_answer_is_named(project):
    with failing_prefect(), pytest.raises(FractalError, match=r"Prefect's server http.*`make up`"):
        deployments.deploy(Path("params.yaml"))
