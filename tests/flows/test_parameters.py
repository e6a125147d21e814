"""Parameters that are refused when a run is created, and the warm-up of fewer epochs."""

from __future__ import annotations

import copy

import httpx
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun

from flows import deployments, evaluate, parameters, train
from fractal_model.config.params import Params, load_params
from fractal_model.services.configuration import WORK_POOL
from fractal_model.training import launch
from tests.support.params import small_params
from tests.support.projects import Project, make_project

SECTIONS = ("models", "training", "sampling", "evaluation")


@pytest.fixture(scope="module")
def deployed(prefect: None, tmp_path_factory) -> None:
    """Deployments of digits and of a person's own size with another recipe."""
    content = small_params()
    for section in SECTIONS:
        digits = content[section]["digits"]
        content[section] = {"digits": digits, "emoji": copy.deepcopy(digits)}
    content["sweep"] = {}
    content["training"]["emoji"].update(batch_size=12, workers=3, min_workers=1)
    project = make_project(tmp_path_factory.mktemp("deployed") / "a project", content)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project.folder)
        deployments.deploy(project.params)
        _deploy_for_any_size(load_params(project.params))


def _deploy_for_any_size(params: Params) -> None:
    """Make a deployment of the training without a size, as a person may."""
    deployment = train.train_fractal.to_deployment("any", work_pool_name=WORK_POOL)
    parameters.restrict_parameters(deployment, params)
    deployment.apply()


def _create(deployment: str, **values: object) -> FlowRun:
    with get_client(sync_client=True) as client:
        stored = client.read_deployment_by_name(deployment)
        return client.create_flow_run_from_deployment(stored.id, parameters=values)


@pytest.mark.parametrize(
    ("deployment", "values", "reason"),
    [
        ("train-fractal/digits", {"epochs": -1}, "-1 is less than the minimum of 1"),
        ("train-fractal/digits", {"epochs": 2.5}, "2.5 is not"),
        ("train-fractal/digits", {"epochs": "three"}, "'three' is not"),
        ("train-fractal/digits", {"warmup_epochs": -1}, "-1 is less than the minimum of 0"),
        ("train-fractal/digits", {"size": "emoji"}, "'emoji' is not one of ['digits']"),
        ("train-fractal/digits", {"precision": "float16"}, "'float16' is not one of"),
        ("train-fractal/digits", {"batch_size": 33}, "33 is not a multiple of 2"),
        ("train-fractal/emoji", {"batch_size": 32}, "32 is not a multiple of 3"),
        ("train-fractal/emoji", {"batch_size": 33, "workers": 2}, "33 is not a multiple of 2"),
        ("train-fractal/emoji", {"workers": 5}, "5 is not one of [None, 1, 2, 3, 4, 6, 12]"),
        ("evaluate-fractal/emoji", {"workers": -1}, "-1 is less than the minimum of 0"),
        ("evaluate-fractal/emoji", {"size": "digits"}, "'digits' is not one of ['emoji']"),
        ("train-fractal/any", {"size": "emojo"}, "'emojo' is not one of ['digits', 'emoji']"),
        (
            "train-fractal/digits",
            {"set": "training.digits.epochs=3"},
            "'training.digits.epochs=3' is",
        ),
        ("sweep-guidance/emoji", {"samples": 0}, "0 is less than the minimum of 1"),
    ],
)
def test_a_run_that_cannot_succeed_is_not_created(deployed, deployment, values, reason):
    with pytest.raises(httpx.HTTPStatusError) as raised:
        _create(deployment, **values)
    name = next(iter(values))
    detail = raised.value.response.json()["detail"]
    assert f"Validation failed for field '{name}'. Failure reason: {reason}" in detail


@pytest.mark.parametrize(
    ("deployment", "values"),
    [
        ("train-fractal/digits", {"epochs": 1}),
        ("train-fractal/digits", {"epochs": None, "dataset": None, "precision": None}),
        ("train-fractal/digits", {"batch_size": 34, "workers": None}),
        ("train-fractal/digits", {"batch_size": 33, "workers": 3}),
        ("train-fractal/digits", {"size": "digits"}),
        ("train-fractal/any", {"size": "emoji"}),
        ("train-fractal/emoji", {"workers": 4}),
        ("evaluate-fractal/emoji", {"workers": 0, "preview": True}),
        ("sweep-guidance/emoji", {}),
        ("train-fractal/digits", {"set": ["training.digits.epochs=3"]}),
        ("nightly-evaluation/all", {"set": ["nightly.budget_hours=2"]}),
        ("prepare-data/digits", {}),
        ("nightly-evaluation/all", {}),
    ],
)
def test_a_run_that_may_succeed_is_created(deployed, deployment, values):
    run = _create(deployment, **values)
    assert values.items() <= run.parameters.items()


@pytest.fixture
def long_recipe(project: Project, tmp_path) -> Project:
    """A project whose recipe has 22 epochs, the first 3 with warm-up."""
    content = small_params()
    content["training"]["digits"].update(epochs=22, warmup_epochs=3)
    other = make_project(tmp_path / "long", content)
    (other.folder / "data").symlink_to(project.folder / "data")
    return other


@pytest.mark.parametrize(
    ("changes", "warmup"),
    [
        ({}, 3),
        ({"epochs": 22}, 3),
        ({"epochs": 44}, 3),
        ({"epochs": 15}, 2),
        ({"epochs": 3}, 1),
        ({"epochs": 2}, 1),
        ({"epochs": 1}, 0),
        ({"epochs": 3, "warmup_epochs": 2}, 2),
        ({"warmup_epochs": 0}, 0),
    ],
)
def test_fewer_epochs_have_a_shorter_warm_up(long_recipe, changes, warmup):
    size, _ = launch.load_size_and_manifest(load_params(long_recipe.params), "digits", **changes)
    assert size.training.warmup_epochs == warmup
    assert size.training.epochs == changes.get("epochs", 22)


@pytest.mark.parametrize(
    ("main", "options", "expected"),
    [
        (train.main, ["--epochs", "-1"], "epochs: Input should be greater than or equal to 1"),
        (train.main, ["--precision", "float8"], "--precision"),
        (
            train.main,
            ["--epochs", "3", "--warmup-epochs", "4"],
            "warmup_epochs 4 are more than epochs 3",
        ),
        (train.main, ["--batch-size", "33"], "batch_size 33 does not divide by the 2 workers"),
        (train.main, ["--size", "emojo"], "size 'emojo' is unknown, did you mean 'emoji-64'"),
        (evaluate.main, ["--workers", "-1"], "workers: Input should be greater than or equal"),
        (evaluate.main, ["--model", "models:/fractal-digits/99"], "models:/fractal-digits/99"),
    ],
)
def test_the_command_line_refuses_wrong_parameters_on_one_line(
    long_recipe, project, capsys, main, options, expected
):
    if main is evaluate.main:
        long_recipe = project
    capsys.readouterr()
    with pytest.raises(SystemExit):
        long_recipe.run(main, *options)
    output = capsys.readouterr()
    assert output.out == "" and output.err.count("\n") == 1, output.err
    assert output.err.startswith("error: ") and expected in output.err
