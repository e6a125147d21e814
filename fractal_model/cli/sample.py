"""`fractal sample`: draw images from a model."""

from pathlib import Path
from typing import Annotated

import typer

from fractal_model.cli.options import BatchSizeOption, WorkersOption, path_option
from fractal_model.cli.sampling_options import (
    ClassesOption,
    SamplingOptions,
    require_images,
    with_sampling_options,
)
from fractal_model.common.console import progress_bar, say
from fractal_model.common.fingerprint import fingerprint
from fractal_model.common.plurals import count_of


@with_sampling_options
def sample(
    out: Annotated[
        Path, path_option("A .png file for a grid, an .npz file (ADM's format) or a folder.")
    ],
    classes: ClassesOption = "none",
    n: Annotated[int, typer.Option("--n", help="Number of images of each class.")] = 16,
    seed: Annotated[int, typer.Option(help="First image's seed; it rises by 1 per image.")] = 0,
    workers: WorkersOption = None,
    batch_size: BatchSizeOption = None,
    *,
    options: SamplingOptions,
) -> dict[str, object]:
    """Draw images from a model.

    An image depends only on the model, its class, its seed and the sampling settings, not on the
    batch size or the number of workers.
    """
    import torch

    from fractal_model.evaluation.protocol import ImageSource, SampleRequest
    from fractal_model.generation.classes import parse_classes
    from fractal_model.generation.sample_files import open_writer
    from fractal_model.generation.sample_images import sample_images
    from fractal_model.model.weights import weights_checksum
    from fractal_model.parallel.parts import LARGEST_PART
    from fractal_model.parallel.split import split_over_workers

    require_images(classes, n, seed, batch_size)
    network, serving = options.load()
    sampling = serving.sampling
    class_numbers = parse_classes(classes, network.config)
    labels = torch.tensor(class_numbers).repeat_interleave(n)
    checksum = weights_checksum(network)
    source = ImageSource(weights=serving.weights, sampling=sampling, seed=seed)
    total = len(labels)
    largest = LARGEST_PART if batch_size is None else batch_size
    writer = open_writer(
        out,
        labels,
        image_size=network.config.image_size,
        per_class=n,
        request=fingerprint(network.config, sampling, checksum, str((seed, class_numbers, n))),
        source=SampleRequest(images=source, model_checksum=checksum).model_dump_json(indent=1),
    )
    try:
        missing = writer.missing
        done = total - len(missing)
        with progress_bar("sampling, images", total, images=True) as update:
            update(done)
            for part, images in sample_images(
                network,
                sampling,
                labels[missing],
                [seed + number for number in missing],
                largest=largest,
                map_parts=split_over_workers(workers),
            ):
                writer.add([missing[place] for place in part], images)
                done += len(part)
                update(done)
        writer.finish()
    except BaseException:
        writer.discard()
        raise
    seeds = f"seeds {seed} … {seed + done - 1}" if done > 1 else f"seed {seed}"
    say(f"{count_of(done, 'image')}, {seeds}: {out}")
    return {"out": out, "images": done, "first_seed": seed, "last_seed": seed + done - 1}
