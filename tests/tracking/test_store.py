"""The MLflow store that is used, and its errors."""

import os
import sqlite3
import traceback
from types import SimpleNamespace

import mlflow
import pytest
from mlflow.exceptions import MlflowException

from fractal_model.common.errors import FractalError, explanation
from fractal_model.config.sampling import SamplingConfig
from fractal_model.config.serving import ServingConfig
from fractal_model.tracking import registration, registry, runs, store


def test_the_default_store_is_a_file_in_the_outputs(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    uri = store.connect(tmp_path / "with space")
    experiment = mlflow.get_experiment(
        store.get_or_create_experiment("digits", tmp_path / "with space")
    )
    assert uri.startswith("sqlite:///")
    assert (tmp_path / "with space/mlflow/mlflow.db").is_file()
    assert experiment.name == "fractal-digits"
    assert store.get_or_create_experiment("digits", tmp_path) == experiment.experiment_id


def test_a_server_that_does_not_answer_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(FractalError, match="http://127.0.0.1:9") as raised:
        store.connect(tmp_path)
    assert "MLFLOW_TRACKING_URI" in str(raised.value)


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("http://[::1", "Invalid IPv6 URL"),
        ("sqlite:///", "expected a file"),
        ("sqlite:////proc/x/y.db", "No such file"),
        ("no-database+driver://me:s3cret@host/db", "no-database"),
        ("mysql+no_driver://me:s3cret@host/db", "no_driver"),
    ],
)
def test_an_unusable_address_is_named_on_one_line(tmp_path, monkeypatch, uri, reason):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(FractalError, match=reason) as raised:
        store.connect(tmp_path)
    assert "\n" not in str(raised.value) and "s3cret" not in str(raised.value)


@pytest.mark.parametrize("uri", ["", " "])
def test_an_empty_address_counts_as_unset(tmp_path, monkeypatch, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert store.connect(tmp_path) == f"sqlite:///{tmp_path}/mlflow/mlflow.db"


def test_the_client_retries_three_times_unless_the_environment_says_otherwise(monkeypatch):
    monkeypatch.setattr(mlflow, "set_tracking_uri", lambda uri: None)
    for before, after in ((None, "3"), ("9", "9")):
        environment = {} if before is None else {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": before}
        monkeypatch.setattr(os, "environ", environment)
        store.use_store("http://127.0.0.1:9")
        assert environment == {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": after}


def test_an_empty_registry_says_how_to_train(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store.connect(tmp_path)
    with pytest.raises(FractalError, match=r"models:/fractal-digits@candidate"):
        registry.resolve("digits")
    assert (
        registration.reuse(
            "digits", "0" * 64, ServingConfig(weights="model", sampling=SamplingConfig())
        )
        is None
    )


def test_a_failing_server_does_not_count_as_no_champion(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store.connect(tmp_path)

    def fail(*args):
        raise MlflowException("internal error")

    monkeypatch.setattr(mlflow.MlflowClient, "get_model_version_by_alias", fail)
    with pytest.raises(FractalError, match="nothing was changed"):
        registry.aliased_version("digits", registry.CHAMPION)


def test_nested_settings_become_flat_parameters():
    levels = {"levels": [{"width": 8}, {"width": 4}], "betas": (0.9, 0.95)}
    assert dict(runs._flat(levels, "model")) == {
        "model.levels.0.width": "8",
        "model.levels.1.width": "4",
        "model.betas": "(0.9, 0.95)",
    }


def test_the_git_revision_is_unknown_outside_a_clone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert runs.git_revision() == "unknown"


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_password_in_the_address_is_never_printed(tmp_path, monkeypatch, scheme, caplog, capfd):
    """MLflow gets user and password from its variables, since its errors contain the address."""
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "of another server")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{scheme}://me:s3cr%2Ft@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(FractalError, match=f"{scheme}://.*127.0.0.1:9") as raised:
        store.connect(tmp_path)
    chain = "".join(traceback.format_exception(raised.value))
    for text in (chain, caplog.text, *capfd.readouterr(), store.tracking_uri()):
        assert "s3cr" not in text
    assert os.environ["MLFLOW_TRACKING_USERNAME"] == "me"
    assert os.environ["MLFLOW_TRACKING_PASSWORD"] == "s3cr/t"


@pytest.mark.parametrize("error", [MlflowException("away"), sqlite3.OperationalError("away")])
def test_an_uncaught_error_of_the_store_has_no_password(monkeypatch, error):
    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: "postgresql://me:s3cret@host/mlflow")
    assert "postgresql://***@host/mlflow does not work (away)" in explanation(error)


def test_the_address_of_a_runs_page_has_no_password(monkeypatch):
    run = SimpleNamespace(info=SimpleNamespace(experiment_id="7"))
    monkeypatch.setattr(mlflow, "get_run", lambda run_id: run)
    monkeypatch.setattr(mlflow, "get_tracking_uri", lambda: "http://me:s3cret@host:5000/")
    assert store.run_page("a") == "http://host:5000/#/experiments/7/runs/a"


def test_settings_are_logged_without_secrets():
    address = "s3://KEY:s3cret@bucket"
    settings = {"storage": address, "name": "a\x1b[2J", "all": [address, (address,)]}
    assert dict(runs._flat(settings, "x")) == {
        "x.storage": "s3://***@bucket",
        "x.name": r"a\x1b[2J",
        "x.all": "['s3://***@bucket', ('s3://***@bucket',)]",
    }
