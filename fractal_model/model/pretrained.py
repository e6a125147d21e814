"""A model as an exported folder, in the form that the Hugging Face hub expects.

    model.safetensors   weights
    config.json         the model's configuration
    README.md           the model card

Decided here: the hub's library saves, writes the model card and pushes; this module loads. The
library's loader only warns of a missing configuration, ignores unknown keys, and reads a pickle if
there is no safetensors file. Here each of these is an error.
"""

from pathlib import Path
from typing import Self

import torch
from huggingface_hub import ModelHubMixin, snapshot_download
from huggingface_hub.errors import HFValidationError, HTTPError
from torch import nn

from fractal_model.common.errors import FractalError, one_line
from fractal_model.common.validation import read_json
from fractal_model.config.model import ModelConfig
from fractal_model.model.weights import load_weights, save_weights

WEIGHTS, CONFIG = "model.safetensors", "config.json"
_CARD = """---
{{ card_data }}
---

# A fractal generative model

Autoregressive models inside autoregressive models, down to the pixel
([paper]({{ paper_url }})). `config.json` holds the levels' sizes and the names of the classes.

```python
from fractal_model.model.fractal import FractalModel

model = FractalModel.from_pretrained("FOLDER or USER/NAME")
```
"""


class PretrainedModule(
    nn.Module,
    ModelHubMixin,
    library_name="fractal-model",
    pipeline_tag="unconditional-image-generation",
    paper_url="https://arxiv.org/abs/2502.17437",
    model_card_template=_CARD,
):
    """A module that is built from its `config`, with the hub's `save_pretrained(folder)`,
    `from_pretrained(folder)` and `push_to_hub(name)`."""

    config: ModelConfig

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write weights and configuration to a folder; `save_pretrained` adds the model card."""
        save_weights(self.state_dict(), save_directory / WEIGHTS)
        (save_directory / CONFIG).write_text(self.config.model_dump_json(indent=1))

    @classmethod
    def from_pretrained(  # type: ignore[override]  # It has fewer options than the library's.
        cls, source: str | Path, *, revision: str | None = None, token: str | bool | None = None
    ) -> Self:
        """Load the model from a folder, or from the hub's repository USER/NAME if there is no such
        folder. The model is on the CPU, in evaluation mode. FractalError: the download fails, a
        file is missing or damaged, the configuration has an unknown key, or weights do not fit
        it."""
        folder = Path(source)
        if not folder.is_dir():
            folder = _download(str(source), revision, token)
        missing = [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]
        if missing:
            raise FractalError(
                f"{folder} is no exported model, it lacks {' and '.join(missing)}: write one with "
                f"`fractal export`, or copy the whole folder again"
            )
        config = read_config(folder)
        weights = load_weights(folder / WEIGHTS, cls.without_memory(config).state_dict())
        model = cls(config)
        model.load_state_dict(weights)
        return model.eval()

    @classmethod
    def without_memory(cls, config: ModelConfig) -> Self:
        """Build the model on torch's `meta` device: its weights have shapes, but take no memory."""
        with torch.device("meta"):
            return cls(config)


def read_config(folder: Path) -> ModelConfig:
    """Read the configuration in an exported folder. FractalError: it is damaged or not valid."""
    return read_json(folder / CONFIG, ModelConfig, "the configuration of a fractal model")


def is_pretrained_folder(folder: Path, foreign: tuple[str, ...]) -> bool:
    """True if `folder` has a file of an exported model, and none of another kind. `foreign`: the
    patterns of files of another kind, for `Path.glob`."""
    has_ours = any((folder / name).is_file() for name in (CONFIG, WEIGHTS))
    return has_ours and not any(any(folder.glob(pattern)) for pattern in foreign)


def _download(name: str, revision: str | None, token: str | bool | None) -> Path:
    """Download configuration and weights from the hub and return their folder. No other file is
    downloaded, because it could be a pickle, which can run any code."""
    try:
        files = [CONFIG, WEIGHTS]
        return Path(snapshot_download(name, revision=revision, token=token, allow_patterns=files))
    except (HFValidationError, HTTPError, OSError) as error:
        raise FractalError(
            f"there is no folder {name}, and no model of that name can be loaded from the hub "
            f"({one_line(error)}): check the path"
        ) from error
