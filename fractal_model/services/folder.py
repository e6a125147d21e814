"""The files and folders of a project's servers.

Databases, logs and secrets lie in `outputs/services`. Sockets lie in the run folder, a private
folder inside the system's temporary folder. The reason is that a socket's path may have at most 107
characters, and a project's path may be longer. The run folder has links to the project, so that
supervisord and Ray never read the project's path, which may have spaces or special characters.
"""

import re
import secrets
import shutil
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from fractal_model.common.errors import FractalError
from fractal_model.common.files import atomic_file

LONGEST_TEMPORARY = 24
"""Largest number of characters in the path of the temporary folder. Ray appends up to 70, and a
socket's path may have at most 107."""
_USER, _SECRET = "[A-Za-z0-9_.-]+:", "[A-Za-z0-9_.-]{16,}"


def write_private(file: Path, text: str) -> None:
    """Write `text` atomically to a file that only its owner may read."""
    with atomic_file(file, unique=True) as partial:
        partial.touch(mode=0o600)
        partial.write_text(text)


class ServicesFolder:
    """The files of one project's servers."""

    def __init__(self, params_file: Path, outputs: Path) -> None:
        self.params_file = params_file.resolve()
        self.project = self.params_file.parent
        self.state = outputs / "services"
        self.mlflow = outputs / "mlflow"
        """MLflow's store, used by the server and by commands without one, so that all see the same
        runs."""
        self.link = self.state / "run"
        self.token = self.state / "ray-token"
        self.login_file = self.state / "login"
        """File with `user:password` for Prefect and MLflow."""
        self.environment = self.state / "environment"
        """Shell file that sets the variables for the servers' clients."""
        self.prefect_settings = self.project / "prefect.toml"
        """Settings that Prefect's commands read in the project's folder."""

    def log(self, service: str) -> Path:
        return self.state / f"{service}.log"

    @property
    def run(self) -> Path | None:
        """The run folder of this project; None if no servers are started."""
        if not self.link.is_symlink():
            return None
        run = self.link.resolve()
        owner = (run / "project").resolve()
        # A copy of the project has the same link, so the run folder must name this project. If its
        # owner is missing, the project was moved or the system has cleaned its temporary folder.
        return run if owner == self.project or not owner.is_dir() else None

    def login(self) -> str:
        """The login of Prefect and MLflow as `user:password`. The first call makes the file with
        it. FractalError: the file is empty or malformed; Prefect would accept an empty password."""
        return self._read_or_create_secret(self.login_file, "fractal:")

    def _read_or_create_secret(self, file: Path, prefix: str = "") -> str:
        self.state.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            write_private(file, prefix + secrets.token_hex(32))
        secret = ""
        with suppress(OSError, UnicodeDecodeError):
            if file.stat().st_mode & 0o077:
                file.chmod(0o600)
            secret = file.read_text().strip()
        if not re.fullmatch(f"{_USER if prefix else ''}{_SECRET}", secret):
            raise FractalError(
                f"{file} holds no valid secret, expected {'USER:' if prefix else ''}SECRET with at "
                f"least 16 letters, digits, `_`, `.` or `-`: remove the file, then `make down` and "
                f"`make up` write a new one and use it"
            )
        return secret

    def create_run(self) -> Path:
        """Make a new run folder and the servers' secrets, and return the folder."""
        self._read_or_create_secret(self.token)
        self.login()
        self.state.chmod(0o700)
        self.mlflow.mkdir(exist_ok=True)
        usual = tempfile.gettempdir()
        base = usual if len(usual) <= LONGEST_TEMPORARY else "/tmp"
        run = Path(tempfile.mkdtemp(prefix="fractal-", dir=base)).resolve()
        (run / "project").symlink_to(self.project)
        (run / "state").symlink_to(self.state)
        (run / "python").symlink_to(sys.prefix)
        self.link.unlink(missing_ok=True)
        self.link.symlink_to(run)
        return run

    def remove_run(self, run: Path) -> None:
        shutil.rmtree(run, ignore_errors=True)
        self.link.unlink(missing_ok=True)
