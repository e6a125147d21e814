"""Flow `tune-ddo`: fine-tune an AR model with its own samples, and register the result.

As a command: `fractal tune-ddo --size emoji-64`. Decided here: this process trains, on its GPU if
there is one; only the sampling is shared with Ray workers. The rounds are kept in the outputs
folder, so a tuning that was stopped continues with the broken round.
"""

from pathlib import Path

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from fractal_model.common.console import progress_bar, say
from fractal_model.common.locks import hold_lock
from fractal_model.config.ddo import DDOConfig
from fractal_model.config.params import DEFAULT_FILE, Params, Size, load_params
from fractal_model.data.holdout import open_training_images
from fractal_model.data.manifest import Manifest, manifest_files
from fractal_model.parallel.split import split_over_workers
from fractal_model.tracking import registration, registry, runs, store
from fractal_model.tracking.tags import FINGERPRINT_TAG, SIZE_TAG, TRAINING_RUN_TAG
from fractal_model.training import launch
from fractal_model.training.ddo import TuningStep, require_exact_likelihood
from fractal_model.training.ddo_rounds import Tuning, require_known_classes, tuning_fingerprint
from fractal_model.training.start import Start, read_start

from .automations import announce_version
from .command import flow_command, run_command
from .failures import report_failure
from .run_names import name_run
from .train import register, report_reuse


@flow(name="tune-ddo", flow_run_name=name_run("tune"))
@report_failure
def tune_ddo(
    size: str = "emoji-64",
    model: str | None = None,
    params_file: Path = DEFAULT_FILE,
    set: list[str] | None = None,
) -> str:
    """Fine-tune an AR model with its own samples and register the result. Return its version of
    `fractal-<size>`.

    This is direct discriminative optimisation. In rounds, the model is trained to tell real images
    from samples of a frozen copy of itself, by the likelihood ratio of the two. It needs exact
    likelihoods.

    Args:
        size: Name of a size in params.yaml; its section `ddo` has the settings of the rounds.
        model: Model to start from: a folder, models:/NAME/VERSION or models:/NAME@ALIAS; #ema,
            #ema-0.999 or #model at its end chooses the weights. By default the size's candidate.
        params_file: Path of the settings file.
        set: Settings that replace those of the file, such as ddo.emoji-64.rounds=2.
    """
    params = load_params(params_file, set)
    named_size, manifest, start = _prepare(params, size, model)
    settings = params.ddo.get(size, DDOConfig())
    fingerprint = tuning_fingerprint(named_size, settings, manifest, start)
    reused = registration.reuse(size, fingerprint, named_size.serving)
    if reused is not None:
        return report_reuse(size, reused)
    outputs, data = params.paths.outputs, params.dataset_folder(named_size.training.dataset)
    tuning = Tuning(
        named_size,
        settings,
        open_training_images(data, named_size.training.holdout),
        fingerprint,
        launch.local_folder(params, size, fingerprint),
        split_over_workers(named_size.evaluation.workers, manifest_files(data)),
    )
    with (
        hold_lock(launch.lock_file(outputs, size, fingerprint)),
        runs.tuning_run(named_size, settings, manifest, fingerprint, outputs, start.tags) as run_id,
    ):
        _say_extent(tuning, start)
        checkpoint = tune(tuning, start)
        tags = {FINGERPRINT_TAG: fingerprint, SIZE_TAG: size, TRAINING_RUN_TAG: run_id}
        version = register(named_size, str(checkpoint), tags)
    announce_version(size, f"models:/{registry.model_name(size)}/{version}")
    say(f"registered fractal-{size} version {version} as candidate")
    return version


def _prepare(params: Params, size: str, model: str | None) -> tuple[Size, Manifest, Start]:
    """Read and check all inputs of a tuning. FractalError: see `check`."""
    require_exact_likelihood(params.size(size))
    source = model or f"models:/{registry.model_name(size)}@{registry.CANDIDATE}"
    named_size, manifest = launch.load_size_and_manifest(params, size, start_from=source)
    store.connect(params.paths.outputs)
    start = read_start(named_size, params.paths.outputs)
    assert start is not None  # The size has a start.
    require_known_classes(start)
    return named_size, manifest, start


def _say_extent(tuning: Tuning, start: Start) -> None:
    recipe, images = tuning.size.training, len(tuning.split)
    rounds = tuning.settings.rounds
    share = rounds * tuning.images / (recipe.epochs * images)
    say(start.describe())
    say(
        f"{rounds} rounds with {tuning.steps} steps in all; they see {rounds * tuning.images:,} "
        f"real images, {share:.1%} of the recipe's {recipe.epochs * images:,} in "
        f"{recipe.steps(recipe.epochs, images):,} steps"
    )


@task(name="tune", cache_policy=NO_CACHE)
def tune(tuning: Tuning, start: Start) -> Path:
    """Tune to the end and show the progress. Return the folder of the last checkpoint."""
    model, start.model = start.model, None  # So that its memory is free after round 1.
    assert model is not None
    total = tuning.settings.rounds * tuning.images
    with progress_bar(f"tuning fractal-{tuning.size.name}, images", total) as update:

        def show_samples(number: int, done: int, count: int) -> None:
            before = (number - 1) * tuning.images
            update(before, f"round {number}: {done} of {count} samples")

        def report(number: int, step: TuningStep) -> None:
            position = (number - 1) * tuning.images + step.position
            ratios = f"ratio {step.real_ratio:+.3f} real, {step.sampled_ratio:+.3f} samples"
            update(position, f"round {number}: loss {step.loss:.4f}, {ratios}")
            runs.log_step(step.metrics(), position)

        return tuning.run(model, show_samples, report)


def check(params: Params, size: str, model: str | None) -> None:
    """Check before the flow starts. FractalError: the size has MAR levels, the data set is missing,
    damaged or does not fit, the MLflow server does not answer, or the model is missing, does not
    fit the size, or does not know all classes."""
    _prepare(params, size, model)


command = flow_command(tune_ddo, check=check, key="version")


def main() -> None:
    run_command(command)


if __name__ == "__main__":
    main()
