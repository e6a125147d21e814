"""Settings of all tests: no test reaches a server of the user, and groups share servers."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

if "PYTEST_XDIST_WORKER" in os.environ:  # there is about one process for each core
    # Set before torch is imported, also for programs that tests start. Otherwise the threads of
    # several processes wait for each other, at worst forty times as long as they compute.
    os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

# Removed before the package reads them, so that tests never reach a server of the user.
for _name in [n for n in os.environ if n.startswith("MLFLOW_")]:
    del os.environ[_name]
for _name in ("RAY_ADDRESS", "PREFECT_API_URL", "PREFECT_PROFILE"):
    os.environ.pop(_name, None)
# By default Ray gives its workers a lower priority than the tests that wait for them.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
# A background job of a shell ignores Ctrl-C, and so would the commands that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
if not torch.cuda.is_available():  # set before Triton is imported, so that it interprets kernels
    os.environ["TRITON_INTERPRET"] = "1"

from tests.support import KINDS

IN_ONE_PROCESS = ("flows", "tracking", "faults", "training", "parallel", "cli", "services")
"""Folders whose tests share servers, a Ray cluster or trained models."""
LONGEST_FIRST = ("flows", "tests/sampling/test_compiled.py", *IN_ONE_PROCESS[1:])
"""Groups that start first, so that at the end no process is alone with a long group."""


def group(nodeid: str) -> str:
    """The group of a test; all tests of a group run in the same process."""
    file = nodeid.partition("::")[0]
    _, folder, *_ = file.split("/")
    return folder if folder in IN_ONE_PROCESS else file


class ByFolder(LoadScopeScheduling):
    """Gives whole groups to processes, in the order in which they are collected."""

    def _split_scope(self, nodeid: str) -> str:
        return group(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByFolder:
    config.option.loadscopereorder = False
    return ByFolder(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: order.get(group(item.nodeid), len(order)))


@pytest.fixture(autouse=True)
def forget_tracking_server() -> Iterator[None]:
    """Remove the address that MLflow writes into the environment, because later tests would take it
    for the user's choice."""
    yield
    os.environ.pop("MLFLOW_TRACKING_URI", None)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Each kind of model in turn: the names in KINDS."""
    return request.param


@pytest.fixture(scope="session")
def prefect() -> Iterator[None]:
    """A Prefect server for the tests, with a new database."""
    from prefect.testing.utilities import prefect_test_harness

    # Prefect's exit hooks of threads fail in a forked process, which then ends with exit code 1:
    # loader processes of later tests would seem to crash.
    os.register_at_fork(after_in_child=threading._threading_atexits.clear)
    with prefect_test_harness(server_startup_timeout=180):
        yield
