"""Fractal generative models: autoregressive models inside autoregressive models, down to the pixel.

Decided here, before any numerical library is loaded: the environment variables that libraries read
only once. They are defaults: a value that the user has set stays. `FractalPipeline` is imported
when it is asked for, because it needs torch.
"""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fractal_model.pipeline.fractal_pipeline import FractalPipeline

__all__ = ["FractalPipeline"]

_ENVIRONMENT = {
    # MKL's strict reproducibility mode on Intel processors: a row of a matrix product does not
    # depend on the number of rows, so an image does not depend on the batch it is sampled in.
    # `model/kernels/linear.py` ensures the same on other processors.
    "MKL_CBWR": "AUTO,STRICT",
    # One heap for all threads in child processes. Ray trains in a thread, and a heap of that thread
    # alone would return freed memory to the system (see `memory.keep_freed_memory`).
    "MALLOC_ARENA_MAX": "1",
    # GCC's OpenMP, which torch uses. A thread that waits for the others lets other programs run
    # after a fraction of a millisecond, not after several. Otherwise a batch of small operations
    # took 25 times as long while two other programs computed.
    "GOMP_SPINCOUNT": "10000",
    # Every library's telemetry is off by default.
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_DATASETS_DISABLE_TELEMETRY": "1",
    "DVC_NO_ANALYTICS": "1",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "GRADIO_ANALYTICS_ENABLED": "False",
    # Without a server Prefect starts one for the run. A busy laptop needs more than its 20 s.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",
}
LOCAL_RAY = {
    # A Ray that we start listens on 127.0.0.1, as on Windows and macOS by default. It asks for a
    # token, and it does not warn that workers without a GPU see all GPUs.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # This machine is not preempted, so Ray need not start an actor that watches for it.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # The process of a validation waits a minute for the next one. By default Ray ends it after a
    # second, and importing torch again costs a small training more than the validation itself.
    "RAY_idle_worker_killing_time_threshold_ms": "60000",
}
if not os.environ.get("RAY_ADDRESS"):
    _ENVIRONMENT |= LOCAL_RAY
for _name, _value in _ENVIRONMENT.items():
    os.environ.setdefault(_name, _value)

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def _exclude_loopback_from_proxies() -> None:
    """Make libraries connect to this machine directly, also if the shell has set a proxy.

    The variable with the exceptions is `no_proxy` or `NO_PROXY`, depending on the library. gRPC
    reads `no_grpc_proxy` instead if it is set."""
    names = ("no_proxy", "NO_PROXY", "no_grpc_proxy")
    lower, upper, grpc = (os.environ.get(name, "") for name in names)
    for name, value in zip(names, (lower or upper, upper or lower, grpc), strict=True):
        if name == "no_grpc_proxy" and not value:
            continue
        hosts = [host.strip() for host in value.split(",") if host.strip()]
        if "*" not in hosts:  # "*" means all hosts, but only if nothing else is listed
            hosts += [host for host in LOOPBACK if host not in hosts]
        os.environ[name] = ",".join(hosts)


_exclude_loopback_from_proxies()

__version__ = "0.1.0"


if not TYPE_CHECKING:  # A type checker would take every name for one of this package.

    def __getattr__(name):
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module("fractal_model.pipeline.fractal_pipeline"), name)
