"""Previews of a sweep's sampling settings. Each further preview of a setting has more images.

Decided here: a preview uses the images of the setting's earlier previews and adds a balanced set of
new images. The seeds of the new set begin after the last seed of the set before, so that no image
is sampled twice.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from fractal_model.config.params import Size
from fractal_model.config.serving import ServingConfig
from fractal_model.evaluation.inputs import EvaluationInputs
from fractal_model.evaluation.protocol import Protocol
from fractal_model.evaluation.sample_metrics import References, sample_metrics
from fractal_model.evaluation.sample_set import SampleSet
from fractal_model.evaluation.samples import SamplesWithFeatures, draw_samples
from fractal_model.evaluation.sweep_settings import setting_fingerprint
from fractal_model.metrics.image_metrics import MetricResults
from fractal_model.metrics.inception import InceptionExtractor, load_inception
from fractal_model.model.fractal import FractalModel
from fractal_model.parallel.parts import MapParts


@dataclass(frozen=True)
class Previews:
    """The previews of one registered version in a sweep."""

    models: Callable[[str], FractalModel]
    """Function that returns the model with the weights of this name."""
    size: Size
    inputs: EvaluationInputs
    folder: Path
    """Folder where samples are stored until the sweep has ended."""
    map_parts: MapParts

    def protocol(self, setting: ServingConfig, per_class: int) -> Protocol:
        """Build the protocol of a preview of `setting` with `per_class` images of each class.
        FractalError: see `EvaluationInputs.protocol`."""
        changes = {"preview_per_class": per_class, "weights": setting.weights}
        settings = self.size.evaluation.model_copy(update=changes)
        return self.inputs.protocol(settings, sampling=setting.sampling, preview=True)

    def measure(
        self, setting: ServingConfig, counts: Sequence[int], progress: Callable[[int], None]
    ) -> MetricResults:
        """Measure all sample metrics of a preview of `setting`. `counts` has the number of images
        of each class in every preview of the setting so far. The numbers rise, and the last one is
        for this preview. `progress` receives the number of images done."""
        sets = [
            self._draw(setting, start, stop, progress) for start, stop in pairwise((0, *counts))
        ]
        protocol = self.protocol(setting, counts[-1])
        samples, model = join_samples(sets), self.models(setting.weights).config
        return sample_metrics(samples, self._references, self._inception, protocol, model=model)

    def _draw(
        self, setting: ServingConfig, start: int, stop: int, progress: Callable[[int], None]
    ) -> SamplesWithFeatures:
        protocol = self.protocol(setting, stop - start)
        assert protocol.images is not None
        earlier = start * protocol.classes
        source = protocol.images.model_copy(update={"seed": protocol.images.seed + earlier})
        return draw_samples(
            self.models(setting.weights),
            protocol,
            source,
            self.inputs.networks,
            self.folder / setting_fingerprint(setting, self.size)[:12] / f"{start:06d}-{stop:06d}",
            lambda done: progress(earlier + done),
            largest=self.size.evaluation.batch_size,
            map_parts=self.map_parts,
        )

    @cached_property
    def _references(self) -> References:
        return self.inputs.references()

    @cached_property
    def _inception(self) -> InceptionExtractor:
        return load_inception(self.inputs.params.metrics.inception_weights)


def join_samples(sets: Sequence[SamplesWithFeatures]) -> SamplesWithFeatures:
    """Join sets of samples and their features into one set, in the order of `sets`."""
    inception = torch.cat([part.inception for part in sets])
    dinov2 = [part.dinov2 for part in sets if part.dinov2 is not None]
    # Only images from files have no seconds.
    seconds = sum((part.seconds_per_image or 0.0) * len(part.inception) for part in sets)
    return SamplesWithFeatures(
        _JoinedSamples([part.images for part in sets]),
        inception,
        torch.cat(dinov2) if dinov2 else None,
        seconds / len(inception),
    )


class _JoinedSamples:
    """A `SampleSet` that has the images of several sets, one set after the other."""

    def __init__(self, sets: Sequence[SampleSet]) -> None:
        self._places = [(part, i) for part in sets for i in range(len(part.labels))]
        self.labels = torch.cat([part.labels for part in sets])
        self.side = sets[0].side

    def images(self, numbers: Sequence[int]) -> Tensor:
        places = [self._places[number] for number in numbers]
        return torch.cat([part.images([i]) for part, i in places])
