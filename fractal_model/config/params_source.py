"""Where the settings of a command come from: the options --params and --set."""

from dataclasses import dataclass
from pathlib import Path

from fractal_model.config.params import DEFAULT_FILE, Params, load_params


@dataclass(frozen=True)
class ParamsSource:
    """A settings file, and texts such as `training.digits.epochs=5` that replace settings in it."""

    file: Path = DEFAULT_FILE
    overrides: tuple[str, ...] = ()

    def load(self) -> Params:
        """Read and check the settings. FractalError: see `load_params`."""
        return load_params(self.file, self.overrides)

    def __str__(self) -> str:
        return str(self.file)


DEFAULT_SOURCE = ParamsSource()
