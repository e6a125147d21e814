"""One flow prepares a data set, on this machine or as a job of a Ray cluster."""

from __future__ import annotations

import json

import pytest

from flows import prepare
from fractal_model.common.errors import FractalError
from fractal_model.config.params import load_params
from fractal_model.data.manifest import read_manifest
from fractal_model.data.sources.registered import register
from fractal_model.metrics.reference import load_reference
from fractal_model.training.ray_jobs import jobs, log
from tests.support import mini_imagenet
from tests.support.jobs_api import JobsApi, serve
from tests.support.params import small_params
from tests.support.projects import Project, make_project


@pytest.fixture
def fresh(tmp_path) -> Project:
    """A project without data."""
    return make_project(tmp_path / "a project", small_params())


def test_digits_are_prepared_on_this_machine(fresh, prefect, monkeypatch, capsys):
    """The cluster is not used for so few images."""
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:9")
    fresh.run(prepare.main, "--dataset", "digits")
    params = load_params(fresh.params)
    manifest = read_manifest(params.paths.data / "digits")
    assert manifest.splits["validation"].images == 40
    reference = load_reference(params.reference_file("digits"))
    reference.require(
        dataset_checksum=manifest.checksum, weights_checksum=reference.weights_checksum
    )
    report = json.loads((params.paths.data / "digits-report/metrics.json").read_text())
    assert report["train_images"] == manifest.splits["train"].images
    assert "digits: report of" in capsys.readouterr().out


def test_an_unknown_data_set_is_named(fresh, error_line):
    line = error_line(fresh, prepare.main, "--dataset", "imagenet64")
    assert "'imagenet64' is unknown, known are digits; add one" in line
    assert "fractal data register" in line


@pytest.fixture
def api(fresh, monkeypatch):
    """The Jobs API of a cluster; a data set of 16 px is registered."""
    monkeypatch.setattr(log, "REOPEN_SECONDS", 0.05)
    monkeypatch.setattr(jobs, "POLL_SECONDS", 0.1)
    monkeypatch.setattr(jobs, "STATUS_SECONDS", 0.1)
    root = fresh.folder / "raw"
    mini_imagenet.write_tree(root)
    register(root, load_params(fresh.params).paths.data, resolutions=(16,))
    with serve(JobsApi(log="imagenet16: 27 train images\n", polls_until_end=2)) as api:
        monkeypatch.setenv("RAY_ADDRESS", api.address)
        yield api


def test_a_cluster_prepares_a_registered_data_set(fresh, api, prefect, capsys):
    fresh.run(prepare.main, "--dataset", "imagenet16")
    (job,) = api.submitted
    assert job["submission_id"].startswith("prepare-imagenet16-")
    stages = job["entrypoint"].split(" && ")
    options = f"imagenet16 --params '{fresh.params}'"
    assert stages == [f"python -m fractal_model data {x} {options}" for x in prepare.STAGES]
    assert capsys.readouterr().out.count("imagenet16: 27 train images") == 1


def test_a_failed_job_is_reported_with_its_reason(fresh, api, prefect):
    api.ends = {"status": "FAILED"}
    api.log += "error: too many images\n"
    with pytest.raises(FractalError, match="ended as FAILED: too many images$"):
        prepare.prepare_data("imagenet16", fresh.params)


def test_cancelling_the_flow_stops_the_job(fresh, api, prefect, monkeypatch):
    def cancel(*arguments: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare, "follow_job", cancel)
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare_on_cluster.fn(api.address, "imagenet16", [])
    assert [job["status"] for job in api.jobs.values()] == ["STOPPED"]
