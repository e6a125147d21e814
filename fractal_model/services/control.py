"""Up, down and status of a project's servers."""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx

from fractal_model.common.errors import FractalError
from fractal_model.common.locks import only_one
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
from fractal_model.services.folder import ServicesFolder, write_private
from fractal_model.services.health import checks
from fractal_model.services.supervisor import DEAD, Program, Supervisor

FLOW_RUN = "PREFECT__FLOW_RUN_ID"
"""In the environment of a flow run's process."""
FLOW_GRACE_SECONDS = 15.0


@dataclass(frozen=True)
class ServiceStatus(Program):
    """What `status` says of one service: `healthy`, `not answering`, or supervisord's word."""

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
        with only_one(self.folder.state / "starting.lock"):
            if states := ", ".join(f"{s.name} {s.state}" for s in self.status()):
                raise FractalError(f"the servers run already ({states}): `make down` stops them")
            if self.folder.run is not None:  # left when the machine or supervisord was switched off
                self._stop(self.folder.run)
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
        supervisor = Supervisor(run)
        supervisor.start(
            supervisor_configuration(self.config, self.folder, run),
            server_environment(self.config, self.folder, run),
        )
        self._wait_for("prefect", supervisor, say)
        names = deploy(self.config, self.folder)
        say(f"deployments: {', '.join(names)}")
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
        with only_one(self.folder.state / "starting.lock"):
            run = self.folder.run
            if run is None:
                remove_settings(self.folder.prefect_settings)
                return []
            ran = [p.name for p in Supervisor(run).programs().values() if p.pid]
            self._stop(run)
            return ran

    def _stop(self, run: Path) -> None:
        supervisor = Supervisor(run)
        # Flow runs have sessions of their own, so supervisord does not reach them. They end while
        # the worker is there to tell Prefect.
        flow_runs = processes.marked(str(run), FLOW_RUN)
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
        """Of each service; empty when nothing was started."""
        run = self.folder.run
        programs = Supervisor(run).programs() if run is not None else {}
        return [self._status(programs[name]) for name in SERVICES if name in programs]

    def _status(self, program: Program) -> ServiceStatus:
        state = program.state.lower()
        if program.pid:
            state = "healthy" if self._checks[program.name]() else "not answering"
        return ServiceStatus(program.name, state, program.pid, self.addresses()[program.name])

    def addresses(self) -> dict[str, str]:
        """Where a person finds each: an address to open, or what it is."""
        return {
            "prefect": f"http://127.0.0.1:{self.config.prefect} (login: {self.folder.login_file})",
            "mlflow": f"{self.config.mlflow_address} (login: the same)",
            "ray": f"{self.config.ray_jobs} (token: {self.folder.token})",
            "worker": "takes the flow runs of work pool fractal",
        }
