"""`fractal ui`: serve MLflow's pages with the runs and models in this project's folder."""

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from fractal_model.cli.options import ParamsOption
from fractal_model.common.console import say
from fractal_model.common.errors import FractalError
from fractal_model.config.params_source import DEFAULT_SOURCE
from fractal_model.services.access import mlflow_options, write_mlflow_login
from fractal_model.services.folder import ServicesFolder
from fractal_model.services.processes import require_free_port


def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on 127.0.0.1.")] = 5000,
    params: ParamsOption = DEFAULT_SOURCE,
) -> None:
    """Serve MLflow's pages with the runs and models in this project's folder."""
    from fractal_model.tracking.store import connect

    outputs = params.load().paths.outputs
    uri = connect(outputs)
    if uri.startswith("http"):
        raise FractalError(f"MLFLOW_TRACKING_URI names a server with its own pages: open {uri}")
    require_free_port(port, "choose another with --port")
    folder = ServicesFolder(params.file, outputs)
    login = folder.login()
    say(f"MLflow on http://127.0.0.1:{port} (login: {folder.login_file}; Ctrl-C stops it)")
    command = ["mlflow", "server", *mlflow_options(port)]
    with TemporaryDirectory() as private:
        # All users of the machine can see a command line, and the address may hold a password.
        secret = {"MLFLOW_BACKEND_STORE_URI": uri, **write_mlflow_login(login, Path(private))}
        environment = os.environ | secret
        done = subprocess.run([sys.executable, "-m", *command], env=environment, check=False)
    raise SystemExit(done.returncode)
