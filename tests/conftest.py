"""What holds for every test: no server of the person's is reached."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

if "PYTEST_XDIST_WORKER" in os.environ:  # about as many processes as cores
    # Before torch is imported, and for all that tests start: threads of several processes wait for
    # each other, at worst forty times as long as one of them works.
    os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

# Before the package is imported, which reads them: tests never reach a server of the person's.
for _name in [n for n in os.environ if n.startswith("MLFLOW_")]:
    del os.environ[_name]
for _name in ("RAY_ADDRESS", "PREFECT_API_URL", "PREFECT_PROFILE"):
    os.environ.pop(_name, None)
# Ray makes its workers nicer than the tests that wait for them.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112
# A shell's background job ignores Ctrl-C, and so would the commands that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
if not torch.cuda.is_available():  # before Triton is imported: its kernels are interpreted
    os.environ["TRITON_INTERPRET"] = "1"

from tests.support import KINDS

IN_ONE_PROCESS = ("flows", "tracking", "faults", "training", "parallel", "cli", "services")
"""Folders of tests whose tests share servers, a Ray or trained models."""
LONGEST_FIRST = ("flows", "tests/sampling/test_compiled.py", *IN_ONE_PROCESS[1:])
"""Groups that begin before the others, so that no process is left alone with a long one."""


def group(nodeid: str) -> str:
    """Tests of one group run in one process, where pytest runs several."""
    file = nodeid.partition("::")[0]
    _, folder, *_ = file.split("/")
    return folder if folder in IN_ONE_PROCESS else file


class ByFolder(LoadScopeScheduling):
    """Hands out whole groups, in the order in which they are collected."""

    def _split_scope(self, nodeid: str) -> str:
        return group(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> ByFolder:
    config.option.loadscopereorder = False
    return ByFolder(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {name: place for place, name in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: order.get(group(item.nodeid), len(order)))


@pytest.fixture(autouse=True)
def no_tracking_server_is_left() -> Iterator[None]:
    """MLflow writes the store that it is pointed to into the environment, where it would pass for
    the person's own choice in the tests that follow."""
    yield
    os.environ.pop("MLFLOW_TRACKING_URI", None)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Each kind of recursion in turn."""
    return request.param


@pytest.fixture(scope="session")
def prefect() -> Iterator[None]:
    """A Prefect server of the tests' own, on a database of its own."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=180):
        yield
