"""Where the servers of a project keep their files.

Databases, logs and Ray's token lie in `outputs/services`. Sockets lie in a private folder in the
system's temporary folder, the run folder: their paths may have 107 characters at most, and a
project's path may be longer. The run folder's own links to the project keep spaces and special
characters out of supervisord's configuration and of Ray's command lines.
"""

import secrets
import shutil
import sys
import tempfile
from pathlib import Path

LONGEST_TEMPORARY = 24
"""Ray adds up to 70 characters to it for its sockets."""


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

    def create_run(self) -> Path:
        """A new run folder, and the token that Ray asks for."""
        self.state.mkdir(parents=True, exist_ok=True)
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
        if not self.token.exists():
            self.token.touch(mode=0o600)
            self.token.write_text(secrets.token_hex(32))
        return run

    def remove_run(self, run: Path) -> None:
        shutil.rmtree(run, ignore_errors=True)
        self.link.unlink(missing_ok=True)
