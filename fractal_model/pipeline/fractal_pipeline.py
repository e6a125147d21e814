"""`FractalPipeline`: one object to sample, edit, animate and measure images with a trained model.

Decided here: the names are those that users of diffusers know. An image has the same bytes as that
of `fractal sample` or `fractal edit` with the same model, class, seed and settings. Pixels are
8-bit integers in every output type.

Shapes: N images of side S.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar, Unpack

import torch
from torch import Tensor
from tqdm.auto import tqdm

from fractal_model.common.devices import compute_device
from fractal_model.common.errors import FractalError
from fractal_model.common.extras import explain_missing_extras
from fractal_model.common.plurals import count_of
from fractal_model.common.safe_text import shorten
from fractal_model.config.sampling import SamplingConfig
from fractal_model.evaluation.image_likelihood import image_likelihood, image_pixel_bits
from fractal_model.generation import animation, editing
from fractal_model.generation.classes import class_number
from fractal_model.generation.request import SamplingChanges, change_sampling, require_request
from fractal_model.generation.sample_images import collect_images
from fractal_model.model.fractal import FractalModel
from fractal_model.model.likelihood import Likelihood
from fractal_model.model.pretrained import export_folder
from fractal_model.parallel.parts import map_in_this_process
from fractal_model.pipeline.arguments import (
    Class,
    Images,
    OutputType,
    class_text,
    convert_images,
    first_seed,
    largest_part,
    require_output_type,
    whole_number,
)
from fractal_model.pipeline.pictures_in import Picture, as_source, split_pictures
from fractal_model.pipeline.step_callback import StepCallback, watch_steps
from fractal_model.sampling.guide import pin_guide
from fractal_model.tracking.model_source import attach_guide, load_model

_LONGEST = 60
Measured = TypeVar("Measured")


class FractalPipeline:
    """A trained model with its sampling settings. Make one with `from_pretrained`.

    The sampling settings `guidance`, `guidance_interval`, `guidance_schedule`, `guide`,
    `logit_scale`, `iterations` and `order` of its methods replace the model's own; None keeps them.
    `guide` is a source as `from_pretrained` takes it. `classes` are class numbers or names as the
    command line takes them, None for no class, or a list of these. `seed` is the seed of the first
    image and is 0 by default. Instead of it, `generator` can be given, from which that seed is
    drawn.
    """

    def __init__(self, model: FractalModel) -> None:
        self.model = model
        self._bar: dict[str, Any] = {}
        self._guide: str | None = None

    @classmethod
    def from_pretrained(
        cls, source: str | Path, *, device: str | torch.device | None = None
    ) -> Self:
        """Load a model: the folder of an exported model or a checkpoint, a repository USER/NAME of
        the Hugging Face hub, or a registered model such as `models:/fractal-digits@champion`.
        `#ema` at the end chooses the moving average of the weights, `#ema-0.999` the one with this
        decay. `device` is by default the GPU if there is one, else the CPU. FractalError: the model
        is missing or damaged, its extra is not installed, or there is no such device."""
        with explain_missing_extras():
            model = load_model(str(source))
        return cls(model).to(device or compute_device())

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the model to a new folder, which `from_pretrained` and every `--model` option take.
        FractalError: the folder exists, or it cannot be written."""
        export_folder(self.model, Path(folder))

    def to(self, device: str | torch.device) -> Self:
        """Move the model to a device, such as `cuda`, and return the pipeline. FractalError: there
        is no such device."""
        try:
            self.model.to(device)
        except (RuntimeError, AssertionError) as error:
            reason = shorten(str(error).partition("\n")[0], _LONGEST)
            raise FractalError(
                f"the device {str(device)!r} cannot be used ({reason}): give cpu or cuda"
            ) from error
        return self

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes in the order of their numbers; empty if the names are not known."""
        return self.model.config.class_names

    @property
    def sampling(self) -> SamplingConfig:
        """The model's own sampling settings. A model without any has neutral ones: no guidance, and
        one iteration for each sub-patch."""
        serving = self.model.serving
        return SamplingConfig() if serving is None else serving.sampling

    def set_progress_bar_config(self, **options: Any) -> None:
        """Set options of the progress bars, as tqdm takes them; `disable=True` shows none."""
        self._bar = options

    def __call__(
        self,
        classes: Class | Sequence[Class] = None,
        *,
        num_images_per_class: int = 1,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        batch_size: int | None = None,
        output_type: OutputType = "pil",
        callback_on_step_end: StepCallback | None = None,
        **changes: Unpack[SamplingChanges],
    ) -> Images:
        """Draw `num_images_per_class` images of each class; the seed rises by 1 from image to
        image.

        `output_type`: `pil` returns a list of PIL images, `pt` a tensor (N, 3, S, S) uint8, `np` an
        array (N, S, S, 3) uint8. `batch_size` is the largest number of images at a time, by default
        what fits the memory. `callback_on_step_end` is called after each step of level 0, see
        `StepCallback`. FractalError: an argument is not allowed.
        """
        require_output_type(output_type)
        settings = self._settings(changes)
        labels = self._labels(classes, num_images_per_class)
        largest = largest_part(batch_size)
        first = first_seed(len(labels), seed, generator, largest)
        with self._progress("sampling", len(labels)) as update:
            images = collect_images(
                self.model,
                settings,
                labels,
                range(first, first + len(labels)),
                update,
                largest=largest,
                map_parts=self._map_parts,
                observe=watch_steps(callback_on_step_end, self, settings),
            )
        return convert_images(images, output_type)

    def edit(
        self,
        image: Picture,
        mask: Picture,
        classes: Class | Sequence[Class] = None,
        *,
        fit: bool = False,
        num_images_per_class: int = 1,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        batch_size: int | None = None,
        output_type: OutputType = "pil",
        callback_on_step_end: StepCallback | None = None,
        **changes: Unpack[SamplingChanges],
    ) -> Images:
        """Generate a part of an image anew, in `num_images_per_class` variants for each class.

        Pixels where `mask` is white (128 or more, True, or transparent) are generated. Black pixels
        are kept exactly. Image and mask are PIL images, files, arrays (S, S, 3) or (S, S), or
        tensors (3, S, S) or (S, S). With `fit` their middle square is cut and scaled to the model's
        size. The seed rises by 1 from variant to variant, and begins anew with each class. The
        other arguments are those of a call of the pipeline. FractalError: an argument is not
        allowed, or the image or the mask has another size than the model.
        """
        require_output_type(output_type)
        settings = self._settings(changes)
        labels = self._labels(classes, num_images_per_class)
        editing.require_different(labels[::num_images_per_class].tolist())
        largest = largest_part(batch_size)
        first = first_seed(len(labels), seed, generator, largest)
        side = self.model.config.image_size
        variants = range(first, first + num_images_per_class)
        with self._progress("generating", len(labels)) as update:
            images = editing.edit(
                self.model,
                settings,
                editing.read_image(as_source(image, "image"), side, fit=fit),
                editing.read_mask(as_source(mask, "mask"), side, fit=fit),
                labels,
                [*variants] * (len(labels) // num_images_per_class),
                update,
                largest=largest,
                map_parts=self._map_parts,
                observe=watch_steps(callback_on_step_end, self, settings),
            )
        return convert_images(images, output_type)

    def animate(
        self,
        out: str | Path,
        classes: Class | Sequence[Class] = None,
        *,
        sheet: str | Path | None = None,
        frames: int = 120,
        seed: int | None = None,
        generator: torch.Generator | None = None,
        **changes: Unpack[SamplingChanges],
    ) -> tuple[Path, Path]:
        """Write an animation of how one image of each class grows to `out` (.gif or .webp), and a
        still picture of some moments to `sheet` (.png, by default beside `out`). Return both paths.
        The other arguments are those of a call of the pipeline. FractalError: an argument is not
        allowed, or a file cannot be written."""
        settings = self._settings(changes)
        labels = self._labels(classes, 1)
        first = first_seed(len(labels), seed, generator)
        with self._progress("generating, %", 100) as update:
            return animation.animate(
                self.model,
                labels,
                range(first, first + len(labels)),
                settings,
                Path(out),
                sheet=None if sheet is None else Path(sheet),
                frames=frames,
                progress=update,
            )

    def likelihood(
        self,
        images: Picture | Sequence[Picture],
        classes: Class | Sequence[Class] = None,
        *,
        passes: int = 16,
        seed: int = 0,
        batch_size: int | None = None,
        fit: bool = False,
    ) -> Likelihood:
        """Measure how well the model predicts images, in bits per dimension; lower is better. The
        result has the `mean`, its `standard_error` over images, and the value of each image in
        `per_image`.

        `images` is one picture or several, in a form that `edit` takes, or an array (N, S, S, 3) or
        tensor (N, 3, S, S). With `classes`, one for each image, the model gets the class. The value
        is exact for AR models. For MAR models it is an upper bound that is estimated with `passes`
        random masks for each image, which `seed` decides. FractalError: an argument is not allowed,
        or an image has another size than the model.
        """
        arguments = (images, classes, passes, seed, batch_size, fit)
        return self._measure(image_likelihood, *arguments)

    def pixel_bits(
        self,
        images: Picture | Sequence[Picture],
        classes: Class | Sequence[Class] = None,
        *,
        passes: int = 16,
        seed: int = 0,
        batch_size: int | None = None,
        fit: bool = False,
    ) -> Tensor:
        """Measure where the model is surprised: the bits per dimension of each pixel, (N, S, S)
        float64. The mean over the pixels of an image is its likelihood, about so for MAR models,
        which give NaN to a pixel that no mask hides. The arguments and errors are those of
        `likelihood`."""
        arguments = (images, classes, passes, seed, batch_size, fit)
        return self._measure(image_pixel_bits, *arguments)

    def _measure(
        self,
        measure: Callable[..., Measured],
        images: Picture | Sequence[Picture],
        classes: Class | Sequence[Class],
        passes: int,
        seed: int,
        batch_size: int | None,
        fit: bool,
    ) -> Measured:
        """Read and check the images and their classes, and call `measure` with them."""
        side = self.model.config.image_size
        named = ((f"image {i}", picture) for i, picture in enumerate(split_pictures(images)))
        pictures = [
            editing.read_image(as_source(picture, name), side, fit=fit, name=name)
            for name, picture in named
        ]
        if not pictures:
            raise FractalError("there are no images: give one or more")
        labels = self._labels(classes, len(pictures) if classes is None else 1)
        if len(labels) != len(pictures):
            raise FractalError(
                f"{count_of(len(labels), 'class', 'classes')} and "
                f"{count_of(len(pictures), 'image')} given: give one class for each image, or None"
            )
        pixels = torch.stack(pictures)

        def read(part: range) -> tuple[Tensor, Tensor, range]:
            places = slice(part.start, part.stop)
            return pixels[places], labels[places], part

        with self._progress("likelihood", len(pixels)) as update:
            return measure(
                self.model,
                read,
                len(pixels),
                update,
                passes=whole_number(passes, "passes"),
                seed=whole_number(seed, "seed"),
                largest=largest_part(batch_size),
                map_parts=self._map_parts,
            )

    @property
    def _map_parts(self) -> Any:
        return partial(map_in_this_process, device=self.device)

    def _settings(self, changes: SamplingChanges) -> SamplingConfig:
        """Return the model's sampling settings with `changes`, and load their guide."""
        settings = change_sampling(self.sampling, self.model.config, **changes)
        if settings.guide != self._guide:
            attach_guide(self.model, settings, None)
            self._guide = settings.guide
        return pin_guide(settings, self.model.guide)

    def _labels(self, classes: Class | Sequence[Class], per_class: int) -> Tensor:
        """Numbers of the classes, each `per_class` times, (N,) int64."""
        # An array or tensor without dimensions is one number.
        is_one = isinstance(classes, str) or getattr(classes, "ndim", 1) == 0
        listed: list[Any] = [classes] if is_one or not isinstance(classes, Iterable) else [*classes]
        require_request(len(listed) * whole_number(per_class, "num_images_per_class"), 0)
        numbers = [class_number(class_text(part), self.model.config) for part in listed]
        return torch.tensor(numbers).repeat_interleave(per_class)

    @contextmanager
    def _progress(self, description: str, total: int) -> Iterator[Callable[[int], None]]:
        with tqdm(**{"desc": description, "total": total, **self._bar}) as bar:
            yield lambda done: bar.update(done - bar.n)
