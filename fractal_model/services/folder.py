"""Where the servers of a project keep their files.

Databases, logs and the secrets lie in `outputs/services`. Sockets lie in a private folder in the
system's temporary folder, the run folder: their paths may have 107 characters at most, and a
project's path may be longer. The run folder's own links to the project keep spaces and special
characters out of supervisord's configuration and of Ray's command lines.
"""

import secrets
import shutil
import sys
import tempfile
from pathlib import Path

from fractal_model.common.files import atomic_file

LONGEST_TEMPORARY = 24
"""Ray adds up to 70 characters to it for its sockets."""


def write_private(file: Path, text: str) -> None:
    """Write a file that its owner alone may read, whole or not at all."""
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
        """The store that is used without a server too: earlier runs are seen, later ones kept."""
        self.link = self.state / "run"
        self.token = self.state / "ray-token"
        self.login_file = self.state / "login"
        """`user:password`, for Prefect and MLflow."""
        self.environment = self.state / "environment"
        """To be sourced by a shell."""
        self.prefect_settings = self.project / "prefect.toml"
        """Prefect reads it where a command is typed in the project's folder."""

    def log(self, service: str) -> Path:
        return self.state / f"{service}.log"

    @property
    def run(self) -> Path | None:
        """The run folder of this project, None while nothing was started. A copy of the project has
        the link, but is another."""
        if not self.link.is_symlink():
            return None
        run = self.link.resolve()
        owner = (run / "project").resolve()
        # No folder: the project was moved, or the system has cleaned its temporary folder.
        return run if owner == self.project or not owner.is_dir() else None

    def login(self) -> str:
        """The login of Prefect and MLflow, as `user:password`; made once."""
        return self._secret(self.login_file, "fractal:")

    def _secret(self, file: Path, beginning: str = "") -> str:
        self.state.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            write_private(file, beginning + secrets.token_hex(32))
        return file.read_text().strip()

    def create_run(self) -> Path:
        """A new run folder, and the secrets that the servers ask for."""
        self._secret(self.token)
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
