"""Who may use the servers on this machine: the login, and the accepted hosts and origins.

Decided here: loopback is no protection, because other users of the machine and pages in the user's
browser can reach it. So every server that runs code or changes results asks for a secret. Prefect
and MLflow (its assistant runs commands) ask for the login, Ray asks for the token.
"""

import secrets
from pathlib import Path

from fractal_model.services.folder import ServicesFolder, write_private


def own_hosts(port: int) -> list[str]:
    """The values of a request's Host header, as `name:port`, that our server at `port` accepts."""
    return [f"127.0.0.1:{port}", f"localhost:{port}"]


def own_origins(port: int) -> str:
    """The web origins of our server at `port`, whose pages may use it: one text with a comma
    between them, as Prefect and MLflow read it."""
    return ",".join(f"http://{host}" for host in own_hosts(port))


def client_secrets(folder: ServicesFolder) -> dict[str, str]:
    """The environment variables that give the servers' clients the login and the token."""
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
    """The options of an `mlflow server` on loopback that asks for a login and refuses foreign hosts
    and origins. By default MLflow would also accept hosts such as `10.any.name`."""
    options = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    options += ["--app-name", "basic-auth", "--allowed-hosts", ",".join(own_hosts(port))]
    return [*options, "--cors-allowed-origins", own_origins(port)]


def write_mlflow_login(login: str, private: Path) -> dict[str, str]:
    """Write to the folder `private` the settings of an MLflow server that asks for `login`. Return
    the environment variables for this server. The folder must be new: in an old one MLflow would
    keep the old login."""
    user, _, password = login.partition(":")
    settings = {
        "default_permission": "NO_PERMISSIONS",
        "database_uri": f"sqlite:///{private / 'mlflow-users.db'}",
        # Checking a password takes a tenth of a second of CPU time, by design.
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
