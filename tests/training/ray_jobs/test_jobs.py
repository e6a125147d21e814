"""Training as a Ray job: what is sent, whose job is stopped, which faults following survives."""

from __future__ import annotations

import io
import json
import socket
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import fractal_model
from fractal_model.common.errors import FractalError
from fractal_model.training.job import Report, TrainingJob
from fractal_model.training.ray_jobs import log, server
from fractal_model.training.ray_jobs.driver import JOB_VARIABLE, MARKER
from fractal_model.training.ray_jobs.jobs import TrainingJobs
from fractal_model.training.ray_jobs.owner import Owner
from tests.support.jobs_api import JobsApi, serve
from tests.support.recipes import make_job
from tests.support.reports import make_report

CODE = Path(fractal_model.__file__).parents[1]
REPORTS = [make_report(position=position) for position in range(0, 80, 8)]
LOG = "".join(
    ["the first line\n"]
    + [f'{MARKER}{{"report": {report.model_dump_json(exclude_none=True)}}}\n' for report in REPORTS]
    + ["one more ä line\n", f"{MARKER}{json.dumps({'checkpoint': '/runs/checkpoint_3'})}\n"]
)
MINE, OTHER = "f" * 64, "e" * 64


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(server, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(server, "PATIENCE_SECONDS", 1.0)
    monkeypatch.setattr(log, "REOPEN_SECONDS", 0.05)
    monkeypatch.setattr("fractal_model.training.ray_jobs.jobs.STATUS_SECONDS", 0.3)
    monkeypatch.setattr("fractal_model.training.ray_jobs.jobs.POLL_SECONDS", 0.1)


@pytest.fixture
def api():
    with serve(JobsApi(log=LOG)) as api:
        yield api


@pytest.fixture
def job(tmp_path) -> TrainingJob:
    return make_job(tmp_path, fingerprint=MINE, tracking_uri="http://mlflow:5000", run_id="a")


class Screen:
    """Records the reports and lines that a person sees."""

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self.lines: list[str] = []

    def train(self, api: JobsApi, job: TrainingJob, **options: object) -> str:
        jobs = TrainingJobs(api.address, Owner.current(), **options)
        return jobs.train(job, on_report=self.reports.append, on_line=self.lines.append)


def _ended_owner() -> Owner:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return Owner.current().model_copy(update={"process": process.pid})


# What is sent to the cluster


def test_the_package_contains_all_code_and_nothing_else(api, job):
    Screen().train(api, job)
    (package,) = api.packages.values()
    names = set(zipfile.ZipFile(io.BytesIO(package)).namelist())
    for folder in ("fractal_model", "flows"):
        expected = {str(path.relative_to(CODE)) for path in (CODE / folder).rglob("*.py")}
        assert len(expected) > 4
        assert expected <= names
    assert "fractal_model/data/prepared.py" in names
    tops = {name.split("/")[0] for name in names}
    assert not tops & {".git", ".venv", ".dvc", "data", "docs", "outputs", "tests", "mlruns"}


def test_a_wheel_sends_its_own_package_alone(api, job, monkeypatch):
    monkeypatch.setattr("fractal_model.training.ray_jobs.jobs.IS_WHEEL", True)
    Screen().train(api, job)
    (package,) = api.packages.values()
    names = zipfile.ZipFile(io.BytesIO(package)).namelist()
    assert "fractal_model/training/ray_jobs/driver.py" in names
    assert {name.split("/")[0] for name in names} == {"fractal_model"}


@pytest.mark.parametrize("folder", [".git", ".venv", ".venv.other", "data", "outputs", "mlruns"])
def test_folders_are_excluded_at_the_top_level_only(tmp_path, api, job, folder, monkeypatch):
    for place in (tmp_path / folder, tmp_path / "fractal_model" / "data"):
        place.mkdir(parents=True)
        (place / "file.py").write_text("1")
    (tmp_path / "fractal_model/__init__.py").write_text("")
    (tmp_path / "prefect.toml").write_text("contains the login")
    monkeypatch.setattr(fractal_model, "__file__", str(tmp_path / "fractal_model/__init__.py"))
    Screen().train(api, job)
    (package,) = api.packages.values()
    files = {n for n in zipfile.ZipFile(io.BytesIO(package)).namelist() if not n.endswith("/")}
    assert files == {"fractal_model/__init__.py", "fractal_model/data/file.py"}


def test_addresses_are_sent_and_secrets_are_not(api, job, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hidden-1")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "hidden-2")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hidden-3")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://store:8333")
    Screen().train(api, job)
    (request,) = api.submitted
    assert "hidden" not in json.dumps(request)
    variables = request["runtime_env"]["env_vars"]
    assert variables["AWS_ENDPOINT_URL"] == "http://store:8333"
    assert variables["MLFLOW_TRACKING_URI"] == job.tracking_uri
    assert TrainingJob.model_validate_json(variables[JOB_VARIABLE]) == job


def test_a_password_in_the_address_is_refused(api, job):
    job = job.model_copy(update={"tracking_uri": "http://me:hidden@mlflow:5000"})
    with pytest.raises(FractalError, match="MLFLOW_TRACKING_PASSWORD") as raised:
        Screen().train(api, job)
    assert "hidden" not in str(raised.value)
    assert api.submitted == []


@pytest.mark.parametrize("is_head", [True, False])
def test_this_python_is_used_only_if_the_head_is_this_machine(api, job, is_head):
    """The address is 127.0.0.1 in both cases, because a tunnel has this address too."""
    api.head = socket.gethostname() if is_head else "fractal-ray-head-x7k2p"
    Screen().train(api, job)
    interpreter = api.submitted[0]["entrypoint"].split(" -m ")[0]
    assert interpreter == (sys.executable if is_head else "python")


# Following


@pytest.mark.parametrize("ending", ["close", "break"])
def test_a_broken_log_connection_loses_and_repeats_no_line(api, job, ending):
    api.tails = [(20, ending), (150, ending), (150, ending), (400, ending)]
    api.polls_until_end = 4
    screen = Screen()
    assert screen.train(api, job) == "/runs/checkpoint_3"
    assert screen.reports == REPORTS
    assert screen.lines == ["the first line", "one more ä line"]
    assert len([r for r in api.requests if r.endswith("tail")]) >= 5
    assert not [r for r in api.requests if r.endswith("stop")]


def test_the_end_of_a_job_is_seen_while_its_log_hangs(api, job):
    api.tails = [(100, "hang")]
    screen = Screen()
    assert screen.train(api, job) == "/runs/checkpoint_3"
    assert screen.reports == REPORTS


def test_a_quiet_connection_is_replaced(api, job, monkeypatch):
    monkeypatch.setattr(log, "QUIET_SECONDS", 0.3)
    api.tails = [(100, "hang")]
    api.polls_until_end = 6
    screen = Screen()
    screen.train(api, job)
    assert len([r for r in api.requests if r.endswith("tail")]) >= 2
    assert screen.reports == REPORTS


def test_a_line_that_another_process_wrote_into_is_shown_to_people(api, job):
    broken = f'{MARKER}{{"report": {{"posi a warning'
    api.log = f"{broken}\n{LOG}"
    screen = Screen()
    assert screen.train(api, job) == "/runs/checkpoint_3"
    assert screen.lines[0] == broken


def test_the_error_of_a_failed_job_is_raised(api, job):
    api.log = f"{MARKER}{json.dumps({'error': 'the data is gone: prepare it'})}\n"
    api.ends = {"status": "FAILED", "message": "exit code 1"}
    with pytest.raises(FractalError, match=r"failed .*: the data is gone: prepare it$"):
        Screen().train(api, job)


@pytest.mark.parametrize(("error", "is_stopped"), [(OSError, False), (KeyboardInterrupt, True)])
def test_only_cancelling_stops_the_job(api, job, error, is_stopped):
    api.polls_until_end = 1000

    def fail(report: Report) -> None:
        raise error("the screen is gone")

    jobs = TrainingJobs(api.address, Owner.current())
    with pytest.raises(error):
        jobs.train(job, on_report=fail, on_line=print)
    (state,) = [listed["status"] for listed in api.jobs.values()]
    assert state == ("STOPPED" if is_stopped else "RUNNING")


# Jobs that are on the cluster already


def test_a_running_job_of_this_run_is_followed(api, job):
    api.add("earlier", size="tiny", fingerprint=MINE)
    assert Screen().train(api, job) == "/runs/checkpoint_3"
    assert api.submitted == []


def test_a_job_whose_owner_has_ended_is_stopped(api, job):
    api.add("stale", size="tiny", fingerprint=OTHER, owner=_ended_owner().model_dump_json())
    screen = Screen()
    screen.train(api, job, is_over=lambda owner, fingerprint: owner.is_process_dead())
    assert api.jobs["stale"]["status"] == "STOPPED"
    assert len(api.submitted) == 1
    assert "stale" in screen.lines[0]


@pytest.mark.parametrize("owner_kind", ["alive", "of another machine", "unknown"])
def test_a_job_of_somebody_else_is_left_alone(api, job, owner_kind):
    owner = _ended_owner() if owner_kind == "of another machine" else Owner.current()
    owner = owner.model_copy(update={"user": "mia", "flow_run": "0" * 8})
    if owner_kind == "of another machine":
        owner = owner.model_copy(update={"host": "elsewhere"})
    text = "" if owner_kind == "unknown" else owner.model_dump_json()
    api.add("theirs", size="tiny", fingerprint=OTHER, owner=text)
    with pytest.raises(FractalError, match="ray job stop theirs") as raised:
        Screen().train(api, job, is_over=lambda owner, fingerprint: owner.is_process_dead())
    assert "\n" not in str(raised.value)
    assert ("somebody unknown" if owner_kind == "unknown" else "mia") in str(raised.value)
    assert api.jobs["theirs"]["status"] == "RUNNING"
    assert api.submitted == []


def test_jobs_of_other_sizes_and_ended_jobs_are_ignored(api, job):
    api.add("larger", size="mar-h", fingerprint=OTHER)
    api.add("past", status="FAILED", size="tiny", fingerprint=OTHER)
    Screen().train(api, job)
    assert len(api.submitted) == 1
    assert api.jobs["larger"]["status"] == "RUNNING"


def test_stop_run_stops_only_the_job_of_its_fingerprint(api, job):
    stale = _ended_owner().model_dump_json()
    api.add("same", size="tiny", fingerprint=MINE, owner=stale)
    api.add("other", size="tiny", fingerprint=OTHER, owner=stale)
    jobs = TrainingJobs(
        api.address, Owner.current(), lambda owner, fingerprint: owner.is_process_dead()
    )
    jobs.stop_run("tiny", MINE, on_line=print)
    states = {name: listed["status"] for name, listed in api.jobs.items()}
    assert states == {"same": "STOPPED", "other": "RUNNING"}


def test_stop_run_stops_the_job_of_an_earlier_attempt_of_this_flow_run(api):
    earlier = Owner.current().model_copy(update={"flow_run": "0" * 8})
    api.add("attempt", size="tiny", fingerprint=MINE, owner=earlier.model_dump_json())
    TrainingJobs(api.address, earlier).stop_run("tiny", MINE, on_line=print)
    assert api.jobs["attempt"]["status"] == "STOPPED"


# A server with faults


def test_a_request_is_repeated_after_a_temporary_fault(api, job):
    api.failures = [503, 500, 502]
    assert Screen().train(api, job) == "/runs/checkpoint_3"
    assert api.failures == []


def test_a_submission_whose_answer_is_lost_is_made_once(api):
    client = server.JobsServer(api.address)
    client.submit("job", entrypoint="true", metadata={"answer": "lost"})
    assert len(api.submitted) == 1


@pytest.mark.parametrize("status", [401, 413, 500])
def test_a_lasting_fault_is_an_error_on_one_line(api, job, status):
    api.failures = [status] * 1000
    with pytest.raises(FractalError) as raised:
        Screen().train(api, job)
    assert "\n" not in str(raised.value)
    assert api.address in str(raised.value)
    assert ("Authentication required" if status == 401 else "it is ill") in str(raised.value)


def test_a_missing_server_is_an_error_on_one_line(job):
    with pytest.raises(FractalError, match="does not answer") as raised:
        TrainingJobs("http://127.0.0.1:9", Owner.current())
    assert "\n" not in str(raised.value)
