"""Fractal generative models: autoregressive models inside autoregressive models, down to the pixel.

Decided here, before any numerical library is loaded: the environment variables that the
libraries read only once. They are defaults; a value set by the user stays.
"""

import os

_ENVIRONMENT = {
    # MKL's strict reproducibility mode, which it has on Intel's processors: a row of a matrix
    # product does not depend on how many rows stand beside it, so an image does not depend on
    # the batch it is sampled in. `model/kernels/linear.py` sees to it on others.
    "MKL_CBWR": "AUTO,STRICT",
    # One heap for all threads of the processes that this one starts: what a thread's own heap frees
    # goes back to the system, and Ray trains in a thread (see `memory.keep_freed_memory`).
    "MALLOC_ARENA_MAX": "1",
    # Telemetry of every library is off by default.
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_DATASETS_DISABLE_TELEMETRY": "1",
    "DVC_NO_ANALYTICS": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GRADIO_ANALYTICS_ENABLED": "False",
    # Without a server Prefect starts one for the run; a busy laptop needs more than its 20 s.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
}
LOCAL_RAY = {
    # A Ray of our own has the address 127.0.0.1 (the name speaks of systems where that is the
    # default) and asks for a token; and it does not warn of workers without a GPU seeing them all.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Nobody takes this machine away from under us: one actor fewer to start.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}
if not os.environ.get("RAY_ADDRESS"):
    _ENVIRONMENT |= LOCAL_RAY
for _name, _value in _ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def _exclude_loopback_from_proxies() -> None:
    """Add this machine to the hosts that are reached without the proxy of the person's shell.

    Libraries read either spelling of the variable, gRPC another one first where that is set.
    """
    names = ("no_proxy", "NO_PROXY", "no_grpc_proxy")
    lower, upper, grpc = (os.environ.get(name, "") for name in names)
    for name, value in zip(names, (lower or upper, upper or lower, grpc), strict=True):
        if name == "no_grpc_proxy" and not value:
            continue
        hosts = [host.strip() for host in value.split(",") if host.strip()]
        if "*" not in hosts:  # which stands for all hosts, and only alone
            hosts += [host for host in LOOPBACK if host not in hosts]
        os.environ[name] = ",".join(hosts)


_exclude_loopback_from_proxies()

__version__ = "0.1.0"
