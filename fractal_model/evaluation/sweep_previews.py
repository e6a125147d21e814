"""Previews of a sampler's settings, each with more images than the one before.

Decided here: what is added is a balanced set of its own, whose seeds go on where the last one's
ended, so that images of earlier previews count and none is sampled twice.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from fractal_model.common.fingerprint import fingerprint
from fractal_model.config.params import Size
from fractal_model.config.sampling import SamplingConfig
from fractal_model.evaluation.inputs import EvaluationInputs
from fractal_model.evaluation.protocol import Protocol
from fractal_model.evaluation.sample_metrics import References, sample_metrics
from fractal_model.evaluation.sample_set import SampleSet
from fractal_model.evaluation.samples import SamplesWithFeatures, draw_samples
from fractal_model.metrics.image_metrics import MetricResults
from fractal_model.metrics.inception import InceptionExtractor, load_inception
from fractal_model.model.fractal import FractalModel
from fractal_model.parallel.parts import MapParts


@dataclass(frozen=True)
class Previews:
    """Of one model."""

    model: FractalModel
    size: Size
    inputs: EvaluationInputs
    folder: Path
    """Where samples are kept until the sweep is done."""
    map_parts: MapParts

    def protocol(self, setting: SamplingConfig, per_class: int) -> Protocol:
        """Of a preview with so many images of each class. FractalError: see
        `EvaluationInputs.protocol`."""
        settings = self.size.evaluation.model_copy(update={"preview_per_class": per_class})
        return self.inputs.protocol(settings, sampling=setting, preview=True)

    def measure(
        self, setting: SamplingConfig, counts: Sequence[int], progress: Callable[[int], None]
    ) -> MetricResults:
        """All sample metrics of the last of `counts`, rising numbers of images of each class at
        which this setting was and is measured; `progress` counts images."""
        sets = [
            self._draw(setting, before, until, progress) for before, until in pairwise((0, *counts))
        ]
        protocol = self.protocol(setting, counts[-1])
        return sample_metrics(
            join_samples(sets),
            self._references,
            self._inception,
            protocol,
            model=self.model.config,
        )

    def _draw(
        self, setting: SamplingConfig, before: int, until: int, progress: Callable[[int], None]
    ) -> SamplesWithFeatures:
        protocol = self.protocol(setting, until - before)
        assert protocol.images is not None
        had = before * protocol.classes
        source = protocol.images.model_copy(update={"seed": protocol.images.seed + had})
        return draw_samples(
            self.model,
            protocol,
            source,
            self.inputs.networks,
            self.folder / fingerprint(setting)[:12] / f"{before:06d}-{until:06d}",
            lambda done: progress(had + done),
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
    """Drawn sets, one after the other, as one."""
    inception = torch.cat([each.inception for each in sets])
    dinov2 = [each.dinov2 for each in sets if each.dinov2 is not None]
    # Only images that came as files have no seconds.
    seconds = sum((each.seconds_per_image or 0.0) * len(each.inception) for each in sets)
    return SamplesWithFeatures(
        _Joined([each.images for each in sets]),
        inception,
        torch.cat(dinov2) if dinov2 else None,
        seconds / len(inception),
    )


class _Joined:
    """`SampleSet` of several."""

    def __init__(self, sets: Sequence[SampleSet]) -> None:
        self._sets = sets
        self.labels = torch.cat([each.labels for each in sets])
        self.side = sets[0].side

    def images(self, numbers: Sequence[int]) -> Tensor:
        places = [(each, i) for each in self._sets for i in range(len(each.labels))]
        return torch.cat([places[number][0].images([places[number][1]]) for number in numbers])
