"""`fractal import` and `fractal export`: read a published checkpoint, write a model folder."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from fractal_model.cli.options import (
    ModelOption,
    ParamsOption,
    parse_path,
    path_option,
)
from fractal_model.cli.sampling_options import SizeOption, load_served
from fractal_model.common.console import progress_bar, say
from fractal_model.common.files import require_new, sha256
from fractal_model.common.fingerprint import fingerprint
from fractal_model.config.params import DEFAULT_FILE, Params, Size, load_params


def import_checkpoint(
    checkpoint: Annotated[
        Path, typer.Argument(parser=parse_path, help="A downloaded checkpoint-last.pth.")
    ],
    size: Annotated[str, typer.Option(help="The checkpoint's size in params.yaml, such as mar-b.")],
    out: Annotated[Path, path_option("The folder to write; must not exist.")],
    register: Annotated[
        bool,
        typer.Option("--register", help="Also register it as the candidate of fractal-SIZE."),
    ] = False,
    params: ParamsOption = DEFAULT_FILE,
) -> None:
    """Convert a published checkpoint into a checkpoint of this project.

    The file is read without running any code in it. The name and shape of every weight must fit
    the size. The result is a checkpoint folder that every --model option takes. It has no optimiser
    state, so training cannot continue from it.
    """
    from fractal_model.checkpoints.importing import (
        import_published,
        read_published,
        require_archive,
        with_imagenet_names,
    )

    settings = load_params(params)
    named_size = with_imagenet_names(settings.size(size))
    require_new(out)
    require_archive(checkpoint)
    if register:
        from fractal_model.tracking import store

        store.connect(settings.paths.outputs)  # So a missing server is reported before the work.
    with _bytes_bar(f"checking {checkpoint.name}, MB", checkpoint) as update:
        published = read_published(checkpoint, update)
    import_published(checkpoint, published, named_size, settings, out)
    parameters = sum(tensor.numel() for tensor in published.weights.values())
    say(f"imported {checkpoint.name} as {size}: {parameters:,} parameters in {out}")
    if register:
        _register(checkpoint, named_size, settings, out)


def export_model(
    model: ModelOption,
    out: Annotated[Path, path_option("The folder to write; must not exist.")],
    size: SizeOption = None,
    params: ParamsOption = DEFAULT_FILE,
) -> None:
    """Write a model as a folder in the form that the Hugging Face hub expects.

    The folder holds safetensors and JSON: weights, architecture, class names and sampling settings.
    Load it with FractalPipeline.from_pretrained(FOLDER), or give it to any --model option.
    """
    from fractal_model.model.pretrained import export_folder

    require_new(out)
    network, network.serving = load_served(model, size, params)
    export_folder(network, out)
    say(f"exported {model} to {out}: {', '.join(sorted(path.name for path in out.iterdir()))}")


def _register(source: Path, size: Size, settings: Params, checkpoint: Path) -> None:
    """Register the imported checkpoint as the candidate. If the same file was imported for the same
    model before, make the version of that import the candidate again."""
    from fractal_model.tracking import registration, runs, tags

    with _bytes_bar(f"SHA-256 of {source.name}, MB", source) as update:
        checksum = sha256(source, update)
    identity = fingerprint(size.model, checksum)
    candidate = registration.reuse(size.name, identity, size.serving)
    if candidate is not None:
        say(f"fractal-{size.name} version {candidate.version}, of the same file, is the candidate")
        return
    with runs.import_run(size, source, checksum, settings.paths.outputs) as run_id:
        own_tags = {
            tags.FINGERPRINT_TAG: identity,
            tags.SIZE_TAG: size.name,
            tags.SOURCE_CHECKSUM_TAG: checksum,
            tags.IMPORT_RUN_TAG: run_id,
        }
        version = registration.register(size.name, checkpoint, serving=size.serving, tags=own_tags)
    say(f"registered fractal-{size.name} version {version} as candidate")


@contextmanager
def _bytes_bar(description: str, file: Path) -> Iterator[Callable[[int], None]]:
    with progress_bar(description, max(1, file.stat().st_size // 10**6)) as update:
        yield lambda done: update(done // 10**6)
