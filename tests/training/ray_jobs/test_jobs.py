"""Training as a Ray job: what travels, who may stop what, and what following it survives."""

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
def quick(monkeypatch):
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
    """What a person sees."""

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self.lines: list[str] = []

    def train(self, api: JobsApi, job: TrainingJob, **options: object) -> str:
        jobs = TrainingJobs(api.address, Owner.current(), **options)
        return jobs.train(job, on_report=self.reports.append, on_line=self.lines.append)


def _dead_process() -> Owner:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return Owner.current().model_copy(update={"process": done.pid})


# What travels


def test_the_package_holds_all_code_and_nothing_else(api, job):
    Screen().train(api, job)
    (package,) = api.packages.values()
    found = set(zipfile.ZipFile(io.BytesIO(package)).namelist())
    for folder in ("fractal_model", "flows"):
        expected = {str(path.relative_to(CODE)) for path in (CODE / folder).rglob("*.py")}
        assert len(expected) > 4
        assert expected <= found
    assert "fractal_model/data/prepared.py" in found
    tops = {name.split("/")[0] for name in found}
    assert not tops & {".git", ".venv", ".dvc", "data", "docs", "outputs", "tests", "mlruns"}


@pytest.mark.parametrize("folder", [".git", ".venv", ".venv.other", "data", "outputs", "mlruns"])
def test_what_is_left_out_is_so_at_the_top_alone(tmp_path, api, job, folder, monkeypatch):
    for place in (tmp_path / folder, tmp_path / "fractal_model" / "data"):
        place.mkdir(parents=True)
        (place / "file.py").write_text("1")
    (tmp_path / "fractal_model/__init__.py").write_text("")
    (tmp_path / "prefect.toml").write_text("of `make up`, with the login")
    monkeypatch.setattr(fractal_model, "__file__", str(tmp_path / "fractal_model/__init__.py"))
    Screen().train(api, job)
    (package,) = api.packages.values()
    files = {n for n in zipfile.ZipFile(io.BytesIO(package)).namelist() if not n.endswith("/")}
    assert files == {"fractal_model/__init__.py", "fractal_model/data/file.py"}


def test_addresses_travel_and_secrets_do_not(api, job, monkeypatch):
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
    with pytest.raises(FractalError, match="MLFLOW_TRACKING_PASSWORD") as caught:
        Screen().train(api, job)
    assert "hidden" not in str(caught.value)
    assert api.submitted == []


@pytest.mark.parametrize("here", [True, False])
def test_the_interpreter_is_ours_on_our_machine_alone(api, job, here):
    """The address is 127.0.0.1 both times: a tunnel's looks the same."""
    api.head = socket.gethostname() if here else "fractal-ray-head-x7k2p"
    Screen().train(api, job)
    interpreter = api.submitted[0]["entrypoint"].split(" -m ")[0]
    assert interpreter == (sys.executable if here else "python")


# Following


@pytest.mark.parametrize("then", ["close", "break"])
def test_a_log_that_breaks_off_is_read_on_and_each_line_once(api, job, then):
    api.tails = [(20, then), (150, then), (150, then), (400, then)]
    api.polls_until_end = 4
    screen = Screen()
    assert screen.train(api, job) == "/runs/checkpoint_3"
    assert screen.reports == REPORTS
    assert screen.lines == ["the first line", "one more ä line"]
    assert len([r for r in api.requests if r.endswith("tail")]) >= 5
    assert not [r for r in api.requests if r.endswith("stop")]


def test_a_log_that_hangs_does_not_hide_the_end(api, job):
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


def test_a_line_that_another_process_wrote_into_is_for_people(api, job):
    broken = f'{MARKER}{{"report": {{"posi a warning'
    api.log = f"{broken}\n{LOG}"
    screen = Screen()
    assert screen.train(api, job) == "/runs/checkpoint_3"
    assert screen.lines[0] == broken


def test_a_job_that_fails_says_why(api, job):
    api.log = f"{MARKER}{json.dumps({'error': 'the data is gone: prepare it'})}\n"
    api.ends = {"status": "FAILED", "message": "exit code 1"}
    with pytest.raises(FractalError, match=r"failed .*: the data is gone: prepare it$"):
        Screen().train(api, job)


@pytest.mark.parametrize(("error", "stops"), [(OSError, False), (KeyboardInterrupt, True)])
def test_only_cancelling_stops_the_job(api, job, error, stops):
    api.polls_until_end = 1000

    def ends(report: Report) -> None:
        raise error("the screen is gone")

    jobs = TrainingJobs(api.address, Owner.current())
    with pytest.raises(error):
        jobs.train(job, on_report=ends, on_line=print)
    (state,) = [known["status"] for known in api.jobs.values()]
    assert state == ("STOPPED" if stops else "RUNNING")


# Jobs that are there


def test_a_job_of_this_run_is_joined(api, job):
    api.add("earlier", size="tiny", fingerprint=MINE)
    assert Screen().train(api, job) == "/runs/checkpoint_3"
    assert api.submitted == []


def test_a_job_whose_process_died_is_stopped(api, job):
    api.add("stale", size="tiny", fingerprint=OTHER, owner=_dead_process().model_dump_json())
    screen = Screen()
    screen.train(api, job, is_over=lambda owner, mark: owner.is_process_dead())
    assert api.jobs["stale"]["status"] == "STOPPED"
    assert len(api.submitted) == 1
    assert "stale" in screen.lines[0]


@pytest.mark.parametrize("who", ["alive", "of another machine", "unknown"])
def test_a_job_of_somebody_else_is_left_alone(api, job, who):
    owner = _dead_process() if who == "of another machine" else Owner.current()
    owner = owner.model_copy(update={"user": "mia", "flow_run": "0" * 8})
    if who == "of another machine":
        owner = owner.model_copy(update={"host": "elsewhere"})
    text = "" if who == "unknown" else owner.model_dump_json()
    api.add("theirs", size="tiny", fingerprint=OTHER, owner=text)
    with pytest.raises(FractalError, match="ray job stop theirs") as caught:
        Screen().train(api, job, is_over=lambda owner, mark: owner.is_process_dead())
    assert "\n" not in str(caught.value)
    assert ("somebody unknown" if who == "unknown" else "mia") in str(caught.value)
    assert api.jobs["theirs"]["status"] == "RUNNING"
    assert api.submitted == []


def test_jobs_of_other_sizes_and_of_the_past_do_not_matter(api, job):
    api.add("larger", size="mar-h", fingerprint=OTHER)
    api.add("past", status="FAILED", size="tiny", fingerprint=OTHER)
    Screen().train(api, job)
    assert len(api.submitted) == 1
    assert api.jobs["larger"]["status"] == "RUNNING"


def test_a_run_that_begins_anew_stops_its_own_stale_job(api, job):
    stale = _dead_process().model_dump_json()
    api.add("same", size="tiny", fingerprint=MINE, owner=stale)
    api.add("other", size="tiny", fingerprint=OTHER, owner=stale)
    jobs = TrainingJobs(api.address, Owner.current(), lambda owner, mark: owner.is_process_dead())
    jobs.stop_run("tiny", MINE, on_line=print)
    states = {name: known["status"] for name, known in api.jobs.items()}
    assert states == {"same": "STOPPED", "other": "RUNNING"}


def test_the_job_of_an_earlier_attempt_of_this_flow_run_is_ours(api):
    earlier = Owner.current().model_copy(update={"flow_run": "0" * 8})
    api.add("attempt", size="tiny", fingerprint=MINE, owner=earlier.model_dump_json())
    TrainingJobs(api.address, earlier).stop_run("tiny", MINE, on_line=print)
    assert api.jobs["attempt"]["status"] == "STOPPED"


# A server that is ill


def test_what_passes_is_asked_for_again(api, job):
    api.failures = [503, 500, 502]
    assert Screen().train(api, job) == "/runs/checkpoint_3"
    assert api.failures == []


def test_a_submission_whose_answer_is_lost_is_made_once(api, job, monkeypatch):
    ill = server.JobsServer(api.address)
    ill.submit("job", entrypoint="true", metadata={"answer": "lost"})
    assert len(api.submitted) == 1


@pytest.mark.parametrize("status", [401, 413, 500])
def test_what_does_not_pass_is_one_line(api, job, status):
    api.failures = [status] * 1000
    with pytest.raises(FractalError) as caught:
        Screen().train(api, job)
    assert "\n" not in str(caught.value)
    assert api.address in str(caught.value)
    assert ("Authentication required" if status == 401 else "it is ill") in str(caught.value)


def test_no_server_is_one_line(job):
    with pytest.raises(FractalError, match="does not answer") as caught:
        TrainingJobs("http://127.0.0.1:9", Owner.current())
    assert "\n" not in str(caught.value)
