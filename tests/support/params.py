"""The shipped params.yaml, and a small version of it."""

from __future__ import annotations

import yaml

from tests.support import REPOSITORY

SHIPPED = REPOSITORY / "params.yaml"
SIZES = (
    *("digits", "digits-nll", "digits-fid", "emoji-64", "emoji-64-nll", "emoji-64-fid"),
    *("ar-64", "mar-64", "mar-64-80", "mar-64-nll", "mar-64-fid"),
    *("ar-64-two-level", "mar-64-two-level", "mar-b", "mar-l", "mar-l-fid", "mar-h"),
)
"""The shipped sizes. The user may have added others to params.yaml, which tests leave out."""
IMAGENET_SIZES = SIZES[6:]


def shipped_text() -> str:
    """The text of the shipped params.yaml without the rows that merge those of `digits`: an edit of
    these changes them too."""
    lines = SHIPPED.read_text().splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith(("  digits-nll", "  digits-fid")))


def small_params() -> dict:
    """The shipped settings with tiny models and short runs, which take seconds."""
    content = yaml.safe_load(SHIPPED.read_text())
    for section in ("models", "training", "sampling", "evaluation", "sweep"):
        content[section] = {k: v for k, v in content[section].items() if k in SIZES}
    del content["pipeline"]  # It is for DVC, and names a data set that tests replace.
    content["datasets"]["digits"].update(validation_images=40)
    content["metrics"]["statistics_images"] = {"digits": 30}
    content["models"]["digits"].update(
        widths=[16, 16, 8], blocks=[1, 1, 1], heads=[2, 2, 2], dropout=0.1
    )
    content["training"]["digits"].update(
        validate_every_epochs=0,
        ema_decays=[0.5, 0.9],
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
