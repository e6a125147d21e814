"""A model as an exported folder, in the form that the Hugging Face hub expects.

    model.safetensors   weights
    config.json         the model's configuration
    serving.json        which weights these are, and the sampling settings; may be absent
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
from fractal_model.common.files import atomic_folder, require_new
from fractal_model.common.validation import read_json
from fractal_model.config.model import ModelConfig
from fractal_model.config.serving import ServingConfig
from fractal_model.model.weights import load_weights, save_weights

WEIGHTS, CONFIG, SERVING = "model.safetensors", "config.json", "serving.json"
_CARD = """---
{{ card_data }}
---

# A fractal generative model

Autoregressive models inside autoregressive models, down to the pixel
([paper]({{ paper_url }})). `config.json` holds the levels' sizes and the names of the classes,
`serving.json` the sampling settings. Draw eight images of class 0 with them:

```python
from fractal_model import FractalPipeline

pipe = FractalPipeline.from_pretrained("FOLDER or USER/NAME")
images = pipe(classes=[0] * 8, seed=0)
images[0].save("image.png")
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
    serving: ServingConfig | None = None
    """Which weights the model has, and the sampling settings that belong to it; None if its files
    do not say."""

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write weights, configuration and sampling settings to a folder. `save_pretrained` adds
        the model card."""
        save_weights(self.state_dict(), save_directory / WEIGHTS)
        (save_directory / CONFIG).write_text(self.config.model_dump_json(indent=1))
        if self.serving is not None:
            (save_directory / SERVING).write_text(self.serving.model_dump_json(indent=1))

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
        model.serving = read_serving(folder)
        return model.eval()

    @classmethod
    def without_memory(cls, config: ModelConfig) -> Self:
        """Build the model on torch's `meta` device: its weights have shapes, but take no memory."""
        with torch.device("meta"):
            return cls(config)


def export_folder(model: PretrainedModule, folder: Path) -> None:
    """Write a model with its card to the new `folder`, which appears only when it is complete.
    FractalError: the folder exists, or the disk is full or not writable."""
    require_new(folder)
    with atomic_folder(folder, "the exported model") as partial:
        model.save_pretrained(partial)


def read_config(folder: Path) -> ModelConfig:
    """Read the configuration in an exported folder. FractalError: it is damaged or not valid."""
    return read_json(folder / CONFIG, ModelConfig, "the configuration of a fractal model")


def read_serving(folder: Path) -> ServingConfig | None:
    """Read the weights' name and the sampling settings in the folder of a model; None if it has no
    such file, because an earlier version wrote it. FractalError: the file is damaged or not
    valid."""
    file = folder / SERVING
    if not file.is_file():
        return None
    return read_json(file, ServingConfig, "the sampling settings of a fractal model")


def is_pretrained_folder(folder: Path, foreign: tuple[str, ...]) -> bool:
    """True if `folder` has a file of an exported model, and none of another kind. `foreign`: the
    patterns of files of another kind, for `Path.glob`."""
    has_ours = any((folder / name).is_file() for name in (CONFIG, WEIGHTS))
    return has_ours and not any(any(folder.glob(pattern)) for pattern in foreign)


def _download(name: str, revision: str | None, token: str | bool | None) -> Path:
    """Download a model's files from the hub and return their folder. No other file is
    downloaded, because it could be a pickle, which can run any code."""
    try:
        files = [CONFIG, WEIGHTS, SERVING]
        return Path(snapshot_download(name, revision=revision, token=token, allow_patterns=files))
    except (HFValidationError, HTTPError, OSError) as error:
        raise FractalError(
            f"there is no folder {name}, and no model of that name can be loaded from the hub "
            f"({one_line(error)}): check the path"
        ) from error
