"""Up, down and status of a project's servers."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx
import psutil

from fractal_model.common.errors import FractalError
from fractal_model.common.locks import hold_lock
from fractal_model.config.services import ServicesConfig
from fractal_model.services import processes
from fractal_model.services.configuration import (
    SERVICES,
    server_environment,
    shell_lines,
    supervisor_configuration,
)
from fractal_model.services.deployments import (
    deploy,
    log_end,
    remove_settings,
    set_paused,
    wait_until_ended,
    write_settings,
)
from fractal_model.services.flow_runs import crash_dead_runs
from fractal_model.services.folder import ServicesFolder, write_private
from fractal_model.services.health import checks
from fractal_model.services.supervisor import DEAD, Program, Supervisor

FLOW_GRACE_SECONDS = 15.0
REST_SECONDS = 5.0
"""How long workers of a Ray that was killed may take to notice it."""


@dataclass(frozen=True)
class ServiceStatus(Program):
    """What `status` says of one service: `healthy`, `not answering`, or supervisord's word; of a
    flow run: `running`."""

    address: str


class Services:
    """The servers of the project that a settings file belongs to."""

    def __init__(self, params_file: Path, config: ServicesConfig, outputs: Path) -> None:
        self.config = config
        self.folder = ServicesFolder(params_file, outputs)
        self._checks = checks(self.config, self.folder)

    def up(self, say: Callable[[str], None]) -> None:
        """Start all and wait until they answer; `say` gets a line for each.

        FractalError: they run already, a port is taken, a service dies or does not answer (all are
        stopped again then).
        """
        with hold_lock(self.folder.state / "starting.lock"):
            left = self.folder.run
            if left is not None and not self.is_supervised():
                psutil.wait_procs(processes.marked(str(left)), timeout=REST_SECONDS)
            if states := ", ".join(f"{s.name} {s.state}" for s in self.status()):
                raise FractalError(f"the servers run already ({states}): `make down` stops them")
            if left is not None:  # of servers that are gone: nothing of it is at work
                self._stop(left)
            project = self.folder.project
            if not (project / "flows").is_dir():
                raise FractalError(f"{project} has no flows: run from the project's folder")
            processes.require_free_ports(self.config)
            run = self.folder.create_run()
            try:
                self._start(run, say)
            except BaseException:
                self._stop(run)
                raise

    def _start(self, run: Path, say: Callable[[str], None]) -> None:
        for name in SERVICES:
            self.folder.log(name).unlink(missing_ok=True)
        supervisor, begin = Supervisor(run), datetime.now(UTC)
        supervisor.start(
            supervisor_configuration(self.config, self.folder, run),
            server_environment(self.config, self.folder, run),
        )
        self._wait_for("prefect", supervisor, say)
        names = deploy(self.config, self.folder)
        say(f"deployments: {', '.join(names)}")
        for flow_run in crash_dead_runs(self.config, self.folder, before=begin):
            say(f"flow run {flow_run} ended with the servers before: it is Crashed now")
        supervisor.start_program("worker")
        for name in ("mlflow", "ray", "worker"):
            self._wait_for(name, supervisor, say)
        write_private(self.folder.environment, shell_lines(self.config, self.folder))
        write_settings(self.config, self.folder)

    def _wait_for(self, name: str, supervisor: Supervisor, say: Callable[[str], None]) -> None:
        begin = time.monotonic()
        while not self._checks[name]():
            program = supervisor.programs().get(name)
            if program is None or program.state in DEAD:
                raise FractalError(f"{name} ended at its start: {log_end(self.folder, name)}")
            if time.monotonic() - begin > self.config.startup_seconds:
                raise FractalError(
                    f"{name} does not answer after {self.config.startup_seconds} s (services."
                    f"startup_seconds in params.yaml): {log_end(self.folder, name)}"
                )
            time.sleep(0.5)
        say(f"{name} is up: {self.addresses()[name]}")

    def down(self) -> list[str]:
        """Stop what `up` started; the names of the services that ran.

        Only processes with the mark of this project's run folder are touched.
        """
        with hold_lock(self.folder.state / "starting.lock"):
            run = self.folder.run
            if run is None:
                remove_settings(self.folder.prefect_settings)
                return []
            ran = [program.name for program in self._programs(run) if program.pid]
            self._stop(run)
            return ran

    def _stop(self, run: Path) -> None:
        supervisor = Supervisor(run)
        # Flow runs have sessions of their own, so supervisord does not reach them. They end while
        # the worker is there to tell Prefect.
        flow_runs = processes.marked(str(run), processes.FLOW_RUN)
        if flow_runs:
            with suppress(httpx.HTTPError):
                set_paused(self.config, self.folder, True)
            processes.end(flow_runs, grace_seconds=FLOW_GRACE_SECONDS)
            wait_until_ended(self.config, self.folder, seconds=10)
        supervisor.shut_down()
        processes.end(processes.marked(str(run)), grace_seconds=5)
        remove_settings(self.folder.prefect_settings)
        self.folder.environment.unlink(missing_ok=True)
        self.folder.remove_run(run)

    def status(self) -> list[ServiceStatus]:
        """The state of each service and flow run; empty when nothing runs."""
        run = self.folder.run
        return [] if run is None else [self._status(program) for program in self._programs(run)]

    def is_supervised(self) -> bool:
        """True if supervisord answers; it restarts a service that dies."""
        return self.folder.run is not None and bool(Supervisor(self.folder.run).programs())

    def _programs(self, run: Path) -> list[Program]:
        """As supervisord knows them, else as they run: it may have been killed."""
        pids = processes.services_and_flow_runs(str(run))
        running = {name: Program(name, "RUNNING", pid) for name, pid in pids.items()}
        services = Supervisor(run).programs() or running
        flow_runs = [program for name, program in running.items() if name not in SERVICES]
        return [services[name] for name in SERVICES if name in services] + flow_runs

    def _status(self, program: Program) -> ServiceStatus:
        state, address = program.state.lower(), self.addresses().get(program.name, "")
        if program.pid and program.name in self._checks:
            state = "healthy" if self._checks[program.name]() else "not answering"
        return ServiceStatus(program.name, state, program.pid, address)

    def addresses(self) -> dict[str, str]:
        """Where a person finds each: an address to open, or what it is."""
        return {
            "prefect": f"http://127.0.0.1:{self.config.prefect} (login: {self.folder.login_file})",
            "mlflow": f"{self.config.mlflow_address} (login: the same)",
            "ray": f"{self.config.ray_jobs} (token: {self.folder.token})",
            "worker": "takes the flow runs of work pool fractal",
        }
