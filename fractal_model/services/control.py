"""Start and stop a project's servers, and show their status."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
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
    last_log_lines,
    remove_settings,
    set_paused,
    wait_until_ended,
    write_settings,
)
from fractal_model.services.flow_runs import crash_dead_runs
from fractal_model.services.folder import ServicesFolder, write_private
from fractal_model.services.health import health_checks
from fractal_model.services.supervisor import DEAD, Program, Supervisor

FLOW_GRACE_SECONDS = 15.0
RAY_EXIT_SECONDS = 5.0
"""Longest time in seconds that the workers of a killed Ray take to end by themselves."""


@dataclass(frozen=True)
class ServiceStatus(Program):
    """The status of one service or flow run. The `state` of a service is `healthy`, `not answering`
    or the state that supervisord reports, in lower case. The `state` of a flow run is `running`."""

    address: str


class Services:
    """The servers of one project. `params_file` is the project's settings file, `config` the file's
    section `services`, and `outputs` the folder of results. `overrides` replace settings of the
    file in the runs of deployments."""

    def __init__(
        self,
        params_file: Path,
        config: ServicesConfig,
        outputs: Path,
        overrides: Sequence[str] = (),
    ) -> None:
        self.config, self._overrides = config, overrides
        self.folder = ServicesFolder(params_file, outputs)
        self._checks = health_checks(self.config, self.folder)

    def up(self, say: Callable[[str], None]) -> None:
        """Start all servers and wait until they answer; `say` gets a line for each. FractalError:
        servers run already or a port is taken. If a server dies or does not answer, all are stopped
        before the error."""
        with hold_lock(self.folder.state / "starting.lock"):
            old_run = self.folder.run
            if old_run is not None and not self.is_supervised():
                psutil.wait_procs(processes.find_processes(str(old_run)), timeout=RAY_EXIT_SECONDS)
            if states := ", ".join(f"{s.name} {s.state}" for s in self.status()):
                raise FractalError(f"the servers run already ({states}): `make down` stops them")
            if old_run is not None:  # The servers of this run folder have ended.
                self._stop(old_run)
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
        names = deploy(self.config, self.folder, self._overrides)
        flows = Counter(name.partition("/")[0] for name in names)
        say(f"deployments: {', '.join(f'{flow} ({count})' for flow, count in flows.items())}")
        for flow_run in crash_dead_runs(self.config, self.folder, before=begin):
            say(f"flow run {flow_run} ended when the servers stopped: it is Crashed now")
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
                raise FractalError(
                    f"{name} stopped while it was starting: {last_log_lines(self.folder, name)}"
                )
            if time.monotonic() - begin > self.config.startup_seconds:
                raise FractalError(
                    f"{name} does not answer after {self.config.startup_seconds} s (raise services."
                    f"startup_seconds in params.yaml to wait longer): "
                    f"{last_log_lines(self.folder, name)}"
                )
            time.sleep(0.5)
        say(f"{name} is up: {self.addresses()[name]}")

    def down(self) -> list[str]:
        """Stop all processes that `up` started, and no others. Return the names of those
        stopped."""
        with hold_lock(self.folder.state / "starting.lock"):
            run = self.folder.run
            if run is None:
                remove_settings(self.folder.prefect_settings)
                return []
            names = [program.name for program in self._programs(run) if program.pid]
            self._stop(run)
            return names

    def _stop(self, run: Path) -> None:
        supervisor = Supervisor(run)
        # supervisord does not reach flow runs, because each has its own session. They are ended
        # first, while the worker can still report their end to Prefect.
        flow_runs = processes.find_processes(str(run), processes.FLOW_RUN_VARIABLE)
        if flow_runs:
            with suppress(httpx.HTTPError):
                set_paused(self.config, self.folder, True)
            processes.end_processes(flow_runs, grace_seconds=FLOW_GRACE_SECONDS)
            wait_until_ended(self.config, self.folder, seconds=10)
        supervisor.shut_down()
        processes.end_processes(processes.find_processes(str(run)), grace_seconds=5)
        remove_settings(self.folder.prefect_settings)
        self.folder.environment.unlink(missing_ok=True)
        self.folder.remove_run(run)

    def status(self) -> list[ServiceStatus]:
        """The status of each service and flow run; empty if nothing runs."""
        run = self.folder.run
        return [] if run is None else [self._status(program) for program in self._programs(run)]

    def is_supervised(self) -> bool:
        """True if supervisord answers. It would restart a service that dies."""
        return self.folder.run is not None and bool(Supervisor(self.folder.run).programs())

    def _programs(self, run: Path) -> list[Program]:
        """List the services, then the flow runs. If supervisord does not answer, list the services
        that have a process."""
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
        """The text that the user sees for each service: its address and login, or for the worker,
        which has no address, what it does."""
        return {
            "prefect": f"http://127.0.0.1:{self.config.prefect} (login: {self.folder.login_file})",
            "mlflow": f"{self.config.mlflow_address} (login: the same)",
            "ray": f"{self.config.ray_jobs} (token: {self.folder.token})",
            "worker": "takes the flow runs of work pool fractal",
        }
