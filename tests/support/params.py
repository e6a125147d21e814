"""The shipped params.yaml, and the same made small."""

from __future__ import annotations

import yaml

from tests.support import REPOSITORY

SHIPPED = REPOSITORY / "params.yaml"


def small_params() -> dict:
    """The shipped settings, made small: seconds instead of minutes."""
    content = yaml.safe_load((REPOSITORY / "params.yaml").read_text())
    content["datasets"]["digits"].update(validation_images=40)
    content["metrics"]["statistics_images"] = {"digits": 30}
    content["models"]["digits"].update(
        widths=[16, 16, 8], blocks=[1, 1, 1], heads=[2, 2, 2], dropout=0.1
    )
    content["training"]["digits"].update(
        epochs=3,
        warmup_epochs=1,
        batch_size=100,
        images_per_worker=50,
        checkpoint_every_epochs=1,
        log_every_steps=4,
    )
    content["sampling"]["digits"].update(iterations=[4, 2])
    content["evaluation"]["digits"].update(
        likelihood_passes=2,
        samples_per_class=3,
        preview_per_class=2,
        kid_subset_size=10,
        kid_subsets=5,
        fid_resamples=5,
    )
    return content
