"""Who may use the servers on this machine: the login, and the hosts and origins that are ours.

Decided here: loopback is no protection. Other users of the machine reach it, and so do pages in the
person's browser. So every server that runs code or changes results asks for a secret; MLflow does
both, since its assistant runs commands. The login is of Prefect and MLflow, the token of Ray.
"""

import secrets
from pathlib import Path

from fractal_model.services.folder import ServicesFolder, write_private


def own_hosts(port: int) -> list[str]:
    """What requests to a server of ours may name as their host."""
    return [f"127.0.0.1:{port}", f"localhost:{port}"]


def own_origins(port: int) -> str:
    """The origins of a server's own pages, as Prefect and MLflow read them."""
    return ",".join(f"http://{host}" for host in own_hosts(port))


def client_secrets(folder: ServicesFolder) -> dict[str, str]:
    """The variables by which clients of the servers identify themselves."""
    login = folder.login()
    user, _, password = login.partition(":")
    return {
        "PREFECT_API_AUTH_STRING": login,
        "MLFLOW_TRACKING_USERNAME": user,
        "MLFLOW_TRACKING_PASSWORD": password,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder.token),
    }


def mlflow_options(port: int) -> list[str]:
    """The options of `mlflow server` on loopback: it asks for a login, and refuses other hosts and
    origins than its own. (By default MLflow also accepts `10.any.name`.)"""
    options = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    options += ["--app-name", "basic-auth", "--allowed-hosts", ",".join(own_hosts(port))]
    return [*options, "--cors-allowed-origins", own_origins(port)]


def write_mlflow_login(login: str, private: Path) -> dict[str, str]:
    """Write the settings of an MLflow server that asks for this login; returns its environment.

    `private` is a folder of this start alone. MLflow keeps its users in a database there, made anew
    each time, so that the login is always that of our file.
    """
    user, _, password = login.partition(":")
    settings = {
        "default_permission": "NO_PERMISSIONS",
        "database_uri": f"sqlite:///{private / 'mlflow-users.db'}",
        # A check of a password takes a tenth of a second of a CPU on purpose.
        "auth_cache_ttl_seconds": "600",
    }
    file = private / "mlflow-login.ini"
    lines = [f"{key} = {value}" for key, value in settings.items()]
    write_private(file, "\n".join(["[mlflow]", *lines, ""]))
    return {
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_AUTH_CONFIG_PATH": str(file),
        "MLFLOW_AUTH_ADMIN_USERNAME": user,
        "MLFLOW_AUTH_ADMIN_PASSWORD": password,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets.token_hex(32),
    }
