"""`prefect.toml` in the project's folder: which server Prefect's commands talk to there.

It comes with the servers and goes with them. A person's own file, and their profile in
`~/.prefect`, are left alone.
"""

from __future__ import annotations

from pathlib import Path

from fractal_model.common.errors import FractalError
from fractal_model.config.services import ServicesConfig

OURS = "# Written by `make up`, removed by `make down`.\n"


def write_settings(file: Path, config: ServicesConfig) -> None:
    """Point Prefect at our server. FractalError: the person has a file of their own."""
    if file.exists() and not _is_ours(file):
        raise FractalError(
            f"{file} is not of `make up` and may name another server: move it away, or set "
            f'url = "{config.prefect_api}" under [api] there'
        )
    file.write_text(f'{OURS}[api]\nurl = "{config.prefect_api}"\n')


def remove_settings(file: Path) -> None:
    """Remove it where it is ours."""
    if file.exists() and _is_ours(file):
        file.unlink()


def _is_ours(file: Path) -> bool:
    return file.read_text().startswith(OURS)
