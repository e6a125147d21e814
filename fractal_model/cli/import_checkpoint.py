"""`fractal import`: download a published checkpoint by its size, or read a file, and convert it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fractal_model.cli.options import (
    ParamsOption,
    parse_path,
    parse_text,
    path_option,
)
from fractal_model.common.console import progress_bar, say
from fractal_model.common.errors import FractalError
from fractal_model.common.files import require_new, sha256
from fractal_model.common.fingerprint import fingerprint
from fractal_model.config.params import Params, Size
from fractal_model.config.params_source import DEFAULT_SOURCE

if TYPE_CHECKING:
    from fractal_model.checkpoints.importing import Published


def import_checkpoint(
    source: Annotated[
        Path,
        typer.Argument(
            parser=parse_path,
            help="A published size to download, such as mar-b; or, with --size, a downloaded file.",
        ),
    ],
    size: Annotated[
        str | None, typer.Option(help="Size of the downloaded file in params.yaml, such as mar-b.")
    ] = None,
    out: Annotated[
        Path | None,
        path_option("The folder to write; must not exist. Default: the size's name."),
    ] = None,
    mirror: Annotated[
        str | None,
        typer.Option(
            parser=parse_text,
            help="Address of a server that has the file SIZE.pth. Default: FRACTAL_MIRROR, or else "
            "the authors' address.",
        ),
    ] = None,
    register: Annotated[
        bool,
        typer.Option("--register", help="Also register it as the candidate of fractal-SIZE."),
    ] = False,
    params: ParamsOption = DEFAULT_SOURCE,
) -> dict[str, object]:
    """Download a published checkpoint and convert it into one of this project.

    A published size is downloaded once and then taken from the cache; a broken download is
    continued. The file is read without running any code in it. The name and shape of every weight
    must fit the size. The result is a checkpoint folder that every --model option takes. It has no
    optimiser state, so training cannot continue from it.
    """
    from fractal_model.checkpoints.importing import (
        import_published,
        require_archive,
        require_published_layers,
        with_imagenet_names,
    )

    settings = params.load()
    if size is None and source.is_file():
        raise FractalError(f"{source} is a file: give its size, such as mar-b", setting="size")
    if size is not None and mirror is not None:
        raise FractalError("a file needs no mirror: leave out --size to download", setting="mirror")
    named_size = with_imagenet_names(settings.size(size or str(source)))
    require_published_layers(named_size)
    named_size.serving.require_no_guide()
    out = out or Path(named_size.name)
    require_new(out)
    if size is not None:
        require_archive(source)
    if register:
        from fractal_model.tracking import store

        store.connect(settings.paths.outputs)  # So a missing server is reported before the work.
    file = source if size is not None else _fetch(named_size, mirror)
    published = _read(file, is_cached=size is None)
    import_published(file, published, named_size, settings, out)
    parameters = sum(tensor.numel() for tensor in published.weights.values())
    say(f"imported {file.name} as {named_size.name}: {parameters:,} parameters in {out}")
    version = _register(file, named_size, settings, out) if register else None
    return {"out": out, "size": named_size.name, "parameters": parameters, "version": version}


def _fetch(size: Size, mirror: str | None) -> Path:
    """Return the published file of a size in the cache; download it if it is not there."""
    from fractal_model.checkpoints import published_files

    if (cached := published_files.find_cached(size)) is not None:
        return cached
    least, _ = published_files.expected_bytes(size)
    with _bytes_bar(f"downloading {size.name}, MB", least) as update:
        return published_files.download(size, mirror, update)


def _read(file: Path, *, is_cached: bool) -> "Published":
    """Read a published checkpoint. A cached file that is damaged or refused is removed, so that the
    next import downloads it again."""
    from fractal_model.checkpoints.importing import read_published

    try:
        with _bytes_bar(f"checking {file.name}, MB", file.stat().st_size) as update:
            return read_published(file, update)
    except FractalError:
        if is_cached:
            file.unlink(missing_ok=True)
        raise


def _register(source: Path, size: Size, settings: Params, checkpoint: Path) -> str:
    """Register the imported checkpoint as the candidate and return its version. If the same file
    was imported for the same model before, make the version of that import the candidate again."""
    from fractal_model.tracking import registration, runs, tags

    with _bytes_bar(f"SHA-256 of {source.name}, MB", source.stat().st_size) as update:
        checksum = sha256(source, update)
    identity = fingerprint(size.model, checksum)
    candidate = registration.reuse(size.name, identity, size.serving)
    if candidate is not None:
        say(f"fractal-{size.name} version {candidate.version}, of the same file, is the candidate")
        return candidate.version
    with runs.import_run(size, source, checksum, settings.paths.outputs) as run_id:
        own_tags = {
            tags.FINGERPRINT_TAG: identity,
            tags.SIZE_TAG: size.name,
            tags.SOURCE_CHECKSUM_TAG: checksum,
            tags.IMPORT_RUN_TAG: run_id,
        }
        version = registration.register(size.name, checkpoint, serving=size.serving, tags=own_tags)
    say(f"registered fractal-{size.name} version {version} as candidate")
    return version


@contextmanager
def _bytes_bar(description: str, total: int) -> Iterator[Callable[[int], None]]:
    with progress_bar(description, max(1, total // 10**6)) as update:
        yield lambda done: update(done // 10**6)
