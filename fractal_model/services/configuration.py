"""supervisord's configuration and the environment of the servers and their clients."""

import os
import shlex
from pathlib import Path

from fractal_model import LOCAL_RAY, LOOPBACK
from fractal_model.common.installation import FLOWS
from fractal_model.config.services import ServicesConfig
from fractal_model.services.access import (
    client_secrets,
    mlflow_options,
    own_origins,
    write_mlflow_login,
)
from fractal_model.services.folder import ServicesFolder

SERVICES = ("prefect", "mlflow", "ray", "worker")
"""The services in the order of their start; they are stopped in the opposite order."""
WORK_POOL = "fractal"
RUN_VARIABLE = "FRACTAL_SERVICES"
"""Environment variable with the path of the run folder. All processes of the servers inherit it."""
IGNORED_VARIABLES = (
    "PREFECT_API_URL",
    "PREFECT_API_KEY",
    "PREFECT_API_AUTH_STRING",
    "PREFECT_PROFILE",
    "MLFLOW_TRACKING_URI",
    "MLFLOW_REGISTRY_URI",
    "MLFLOW_TRACKING_AUTH",
    "MLFLOW_TRACKING_TOKEN",
    "RAY_ADDRESS",
    "RAY_AUTH_TOKEN",
)
"""Environment variables of the user that the servers do not get, as they may name other servers."""


def server_environment(config: ServicesConfig, folder: ServicesFolder, run: Path) -> dict[str, str]:
    """The environment variables of supervisord and of all processes that it starts; `run` is the
    run folder."""
    inherited = {name: value for name, value in os.environ.items() if name not in IGNORED_VARIABLES}
    return {
        **LOCAL_RAY,
        "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{folder.mlflow / 'mlflow.db'}",
        **inherited,
        **client_secrets(folder),
        # No other node could take over the work of this one when it stops.
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
        "MLFLOW_DEFAULT_ARTIFACT_ROOT": (folder.mlflow / "artifacts").as_uri(),
        **write_mlflow_login(folder.login(), run),
        "PREFECT_HOME": str(folder.state / "prefect"),
        "PREFECT_SERVER_API_AUTH_STRING": folder.login(),
        "PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS": own_origins(config.prefect),
        # The address that Prefect's pages use; the default is always port 4200.
        "PREFECT_SERVER_UI_API_URL": config.prefect_api,
        # With these settings `--watch` shows a run's log, which has the reason of a failure.
        "PREFECT_SERVER_LOGS_STREAM_OUT_ENABLED": "true",
        "PREFECT_SERVER_LOGS_STREAM_PUBLISHING_ENABLED": "true",
        "PATH": f"{run}/python/bin:{os.environ.get('PATH', os.defpath)}",
        RUN_VARIABLE: str(run),
    }


def _addresses(config: ServicesConfig) -> dict[str, str]:
    return {
        "PREFECT_API_URL": config.prefect_api,
        "MLFLOW_TRACKING_URI": config.mlflow_address,
        "RAY_ADDRESS": config.ray_jobs,
    }


def client_environment(config: ServicesConfig, folder: ServicesFolder) -> dict[str, str]:
    """The environment variables that a program needs to use the servers."""
    return _addresses(config) | client_secrets(folder)


def shell_lines(config: ServicesConfig, folder: ServicesFolder) -> str:
    """Lines for a shell to source. They set the client environment and make loopback an exception
    from proxies."""
    variables = client_environment(config, folder).items()
    lines = [f"export {name}={shlex.quote(value)}\n" for name, value in variables]
    for name in ("no_proxy", "NO_PROXY"):  # Add loopback to the shell's own exceptions.
        value = f"{','.join(LOOPBACK)}${{{name}:+,${name}}}"
        lines.append(f'[ "${{{name}-}}" = "*" ] || export {name}="{value}"\n')
    return "".join(lines)


def _commands(config: ServicesConfig, run: Path) -> dict[str, str]:
    cpus = f"--num-cpus {config.ray_cpus}" if config.ray_cpus else ""
    # supervisord splits commands at spaces; the run folder's path has none.
    words = {
        "prefect": f"uvicorn --factory {FLOWS}.prefect_server:create_app --log-level warning "
        f"--host 127.0.0.1 --port {config.prefect}",
        # Clients are on this machine and write artifacts themselves, as without a server.
        "mlflow": f"mlflow server {' '.join(mlflow_options(config.mlflow))} --no-serve-artifacts",
        # Port 0 means any free port, because Ray's fixed ports may belong to another Ray.
        "ray": "ray.scripts.scripts start --head --block --disable-usage-stats "
        f"--node-ip-address 127.0.0.1 --port {config.ray} --dashboard-host 127.0.0.1 "
        f"--dashboard-port {config.ray_dashboard} --ray-client-server-port {config.ray_client} "
        "--dashboard-agent-listen-port 0 --min-worker-port 0 --max-worker-port 0 "
        f"--temp-dir {run}/ray {cpus}",
        "worker": f"prefect worker start --pool {WORK_POOL} --type process --name this-machine "
        "--install-policy never",
    }
    python = f"{run}/python/bin/python"
    return {name: f"{python} -m {words[name].strip()}" for name in SERVICES}


def supervisor_configuration(config: ServicesConfig, folder: ServicesFolder, run: Path) -> str:
    """The text of supervisord.conf. All paths in it begin with the run folder `run`."""
    lines = [
        "[supervisord]",
        "identifier=fractal",
        f"directory={run}/state",
        f"logfile={run}/state/supervisord.log",
        f"pidfile={run}/supervisord.pid",
        "strip_ansi=true",
        "[unix_http_server]",
        f"file={run}/socket",
        "chmod=0700",
        "[rpcinterface:supervisor]",
        "supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface",
    ]
    for priority, (name, command) in enumerate(_commands(config, run).items(), start=1):
        lines += [f"[program:{name}]", f"command={command}"]
        lines += [f"priority={priority}", *_PROGRAM]
        lines += [f"stdout_logfile={run}/state/{name}.log"]
        if name == "worker":
            # `up` starts the worker when Prefect has the deployments. It inherits the secrets.
            settings = ",".join(f'{key}="{value}"' for key, value in _addresses(config).items())
            lines += ["autostart=false", f"directory={run}/project", f"environment={settings}"]
    return "\n".join(lines) + "\n"


_PROGRAM = (
    "startsecs=2",
    "startretries=0",
    "autorestart=unexpected",
    "stopasgroup=true",
    "killasgroup=true",
    "stopwaitsecs=20",
    "redirect_stderr=true",
    "stdout_logfile_maxbytes=10MB",
    "stdout_logfile_backups=1",
)
