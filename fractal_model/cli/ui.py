"""`fractal ui`: MLflow's pages on this machine's own store."""

import os
import subprocess
import sys
from typing import Annotated

import typer

from fractal_model.cli.options import ParamsOption
from fractal_model.common.console import say
from fractal_model.common.errors import FractalError
from fractal_model.config.params import DEFAULT_FILE, load_params
from fractal_model.services.processes import require_free_port


def ui(
    port: Annotated[int, typer.Option(min=1, max=65535, help="On 127.0.0.1.")] = 5000,
    params: ParamsOption = DEFAULT_FILE,
) -> None:
    """Open the MLflow UI on this machine's own store."""
    from fractal_model.tracking.store import connect

    uri = connect(load_params(params).paths.outputs)
    if uri.startswith("http"):
        raise FractalError(f"MLFLOW_TRACKING_URI names the server {uri}: open it in a browser")
    require_free_port(port, "choose another with --port")
    say(f"MLflow on http://127.0.0.1:{port} (Ctrl-C stops it)")
    command = ["mlflow", "server", "--host", "127.0.0.1", "--port", str(port)]
    # Everybody on the machine sees a command's words: the address may hold a password.
    environment = os.environ | {"MLFLOW_BACKEND_STORE_URI": uri}
    done = subprocess.run([sys.executable, "-m", *command], env=environment, check=False)
    raise SystemExit(done.returncode)
