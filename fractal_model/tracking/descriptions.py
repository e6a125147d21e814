"""Descriptions of runs, experiments and models on MLflow's pages, for newcomers."""

from collections.abc import Mapping
from urllib.parse import quote, urlencode

from mlflow.entities import Run

from fractal_model.metrics.names import FID, NLL, STANDARD_ERROR, error_name, is_preview_of
from fractal_model.tracking import tags

EVALUATION_HEADING = "\n\n### Evaluation\n"
"""Heading in a version's description. An evaluation replaces the text from there to the end."""

_RUNS = {
    "train": (
        "Training of `fractal-{size}` on {dataset}. **Model metrics**: `loss` (training, in nats "
        "per value, weighted), the held-out likelihood and `images_per_second`, all against the "
        "number of images seen, so that runs with different batch sizes can be compared. **System "
        "metrics**: the machine. **Parameters**: the settings from params.yaml."
    ),
    "evaluate": (
        "Evaluation of one version of `fractal-{size}` on {dataset}. **Metrics**: "
        "`nll_bits_per_dim` and, for samples, `fid`, `kid`, `precision`, `recall` and others, some "
        "with a standard error `_stderr`. A name that ends in a count, such as `fid_5k`, is a "
        "preview with that number of samples. **Artifacts**: `report.html` (everything on one "
        "page), `results.json` (all numbers, with the reason for each missing one), "
        "`protocol.json` (the settings behind the numbers), `samples.png`. Compare only runs with "
        "an equal `{tags.PROTOCOL_TAG}`."
    ),
    "tune": (
        "Fine-tuning of `fractal-{size}` on {dataset} by direct discriminative optimisation. "
        "**Model metrics**, against the number of real images seen: `ddo_loss`, and the "
        "log-likelihood ratio of the model to its frozen copy, in nats for an image, for real "
        "images (`ddo_ratio_real`) and for samples of the copy (`ddo_ratio_samples`)."
    ),
    "import": (
        "`fractal-{size}` ({dataset}) from a published file. Nothing was trained: the run holds "
        "the registered model and its architecture; the tag `{tags.SOURCE_TAG}` names the file."
    ),
    "sweep": (
        "Search for the best guidance of `fractal-{size}` on {dataset}. Each child run is one "
        "setting, with the metrics of its samples."
    ),
    "study": (
        "Study of recipes for `fractal-{size}` on {dataset}. Each child run is the training of one "
        "variant with one seed; `final_` metrics are those of the trained model. The study's page "
        "in the repository compares them."
    ),
}


def describe_run(kind: str, size: str, dataset: str) -> str:
    """Description of a run of this kind (a value of the kind's tag), in Markdown."""
    return _RUNS[kind].format(size=size, dataset=dataset, tags=tags)


def describe_start(own_tags: Mapping[str, str]) -> str:
    """Where the first weights of a training came from, in Markdown with links to the parent, made
    from the run's tags `own_tags`; "" if they were random."""
    if tags.START_TAG not in own_tags:
        return ""
    text = f" It started from the weights of `{own_tags[tags.START_TAG]}`"
    if parent := own_tags.get(tags.PARENT_VERSION_TAG):
        name, _, number = parent.rpartition("/")
        text += f", [{name} version {number}](#/models/{name}/versions/{number})"
    if run := own_tags.get(tags.PARENT_RUN_TAG):
        text += f", which [this run](#/runs/{run}) trained"
    return f"{text}."


def describe_experiment(dataset: str, experiment_id: str) -> str:
    """Description of the experiment that has all runs of a data set, in Markdown."""
    only = {"searchFilter": f"tags.`{tags.KIND_TAG}` = 'evaluate'"}
    order = {"orderByKey": f"metrics.`{FID}`", "orderByAsc": "true"}
    ranking = urlencode({**only, **order}, quote_via=quote)
    return (
        f"[Evaluations, the lowest FID first](#/experiments/{experiment_id}/runs?{ranking}). All "
        f"runs on the data set {dataset}; the tag `{tags.KIND_TAG}` tells whether one is a "
        f"training, tuning, evaluation, import or sweep. Select evaluations with an equal "
        f"`{tags.PROTOCOL_TAG}` and press Compare; the metrics have the same names in all of them. "
        f"`fractal results` prints the same numbers beside the published ones."
    )


def describe_model(size: str) -> str:
    """Description of the registered model of a size, in Markdown."""
    return (
        f"Fractal generative model of the size `{size}`. `candidate` is the newest version, "
        f"`champion` the best evaluated one. `mlflow.pyfunc.load_model"
        f'("models:/fractal-{size}@champion").predict(...)` takes a table with the columns class, '
        f"seed and, optionally, guidance and logit_scale. It has at most 1,000 rows; the result is "
        f"one PNG image per row."
    )


def describe_version(size: str, own_tags: Mapping[str, str], run: Run) -> str:
    """Description of a registered version, in Markdown. `own_tags`: the version's tags. `run`: the
    run that trained or imported it."""
    if tags.IMPORT_RUN_TAG in own_tags:
        return f"`{size}`, imported from a published file (`{tags.SOURCE_CHECKSUM_TAG}`)."
    return f"`{size}`, trained here in the run {link_to_run(run)}."


def link_to_run(run: Run) -> str:
    """Markdown link to a run's page. It is relative, so it works at every address of MLflow."""
    info = run.info
    return f"[{info.run_name}](#/experiments/{info.experiment_id}/runs/{info.run_id})"


def evaluation_line(run: Run) -> str:
    """One line about an evaluation for the description of its training run, in Markdown."""
    numbers = [
        f"`{name}` {value:.4g}"
        for name, value in sorted(run.data.metrics.items())
        if name in (FID, NLL) or is_preview_of(FID, name)
    ]
    return f"- {link_to_run(run)}: {', '.join(numbers) or 'no metrics'}"


def describe_evaluation(run: Run) -> str:
    """The metrics of an evaluation for the description of its version, in Markdown. Standard errors
    stand beside their metrics."""
    metrics = run.data.metrics
    rows = [
        f"| `{name}` | {value:.4g}"
        + (f" ± {metrics[error_name(name)]:.2g} |" if error_name(name) in metrics else " |")
        for name, value in sorted(metrics.items())
        if not name.endswith(STANDARD_ERROR)
    ]
    table = "\n".join(["| metric | value |", "|---|---|", *rows])
    protocol = run.data.tags.get(tags.PROTOCOL_TAG, "")[:12]
    return f"{EVALUATION_HEADING}{link_to_run(run)}, protocol `{protocol}`\n\n{table}\n"
