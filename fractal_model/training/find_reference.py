"""The curves with which a training is compared: shipped with the package, or the champion's.

Decided here: the shipped curve is used if it was made with the same data, architecture and recipe,
and otherwise the champion's curve. Without a champion it is the shipped one of another recipe, if
the data is the same. The reference names the settings in which the run differs from it.
"""

from collections.abc import Mapping

from fractal_model.config.params import Size
from fractal_model.config.training import TrainingConfig
from fractal_model.data.manifest import Manifest
from fractal_model.reporting.reference_curve import LABELS, ReferenceCurve
from fractal_model.reporting.shipped_curves import read_shipped_curve
from fractal_model.tracking import runs
from fractal_model.tracking.training_history import curve

_MODEL, _RECIPE = "model.", "training."
_DEFAULTS = {
    **runs.flatten_settings(training=TrainingConfig.curve_defaults()),
    "training.start_from": "random weights",
}


def curve_settings(size: Size) -> dict[str, str]:
    """Settings that decide the curves of a training, apart from its seed: texts by dotted name, as
    in the parameters of an MLflow run."""
    return runs.flatten_settings(
        model=runs.model_settings(size), training=size.training.curve_settings()
    )


def find_reference(
    size: Size, manifest: Manifest, champion_run: str | None
) -> ReferenceCurve | None:
    """Return the curves with which a training of `size` is compared; None if there are none.
    `champion_run`: id of the MLflow run that trained the champion, if any."""
    settings, shipped = curve_settings(size), read_shipped_curve(size.name)
    other_recipe = None
    if shipped is not None and shipped[0].dataset_checksum == manifest.checksum:
        origin, reference = shipped
        differences = _describe_differences(origin.settings, settings)
        if not differences:
            return reference
        other_recipe = reference.model_copy(update={"differences": differences})
    return _champion_curve(champion_run, settings) or other_recipe


def _champion_curve(run_id: str | None, settings: Mapping[str, str]) -> ReferenceCurve | None:
    curves = {metric: curve(run_id, metric) for metric in LABELS}
    if run_id is None or not any(curves.values()):
        return None
    differences = _describe_differences(runs.read_params(run_id), settings)
    return ReferenceCurve.of_run("the champion", curves, differences)


def _describe_differences(
    theirs: Mapping[str, str], settings: Mapping[str, str]
) -> tuple[str, ...]:
    """Describe the settings that differ from `theirs`. A setting that is on one side alone has its
    default on the other."""
    theirs, settings = _DEFAULTS | {**theirs}, _DEFAULTS | {**settings}
    texts = [
        f"{name.removeprefix(_RECIPE)} {value} instead of {theirs[name]}"
        for name, value in settings.items()
        if name.startswith(_RECIPE) and theirs.get(name, value) != value
    ]
    is_other_model = _of_model(theirs) != _of_model(settings)
    return (*texts, *(["another architecture"] if is_other_model else []))


def _of_model(settings: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in settings.items() if name.startswith(_MODEL)}
