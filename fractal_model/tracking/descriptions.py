"""What MLflow's pages say about themselves: texts for people who open one without knowing it."""

from collections.abc import Mapping

from fractal_model.tracking import tags

_RUNS = {
    "train": (
        "Training of `fractal-{size}` on {dataset}. **Model metrics**: `loss` (training, in nats "
        "per value, weighted), the held-out likelihood and `images_per_second`, all against the "
        "number of images seen, so that runs with other batch sizes compare. **System metrics**: "
        "the machine. **Parameters**: everything that params.yaml said."
    ),
    "evaluate": (
        "Evaluation of one version of `fractal-{size}` on {dataset}. **Metrics**: "
        "`nll_bits_per_dim` and, of samples, `fid`, `kid`, `precision`, `recall` and others, each "
        "with its `_stderr` where it has one; a name that ends in a count, as `fid_5k`, is a "
        "preview of so many samples. **Artifacts**: `report.html` (all of it on one page), "
        "`results.json` (the numbers, and why one is missing), `protocol.json` (what they were "
        "made with), `samples.png`. Only runs with an equal `{tags.PROTOCOL_TAG}` compare."
    ),
    "import": (
        "`fractal-{size}` ({dataset}) from a published file. Nothing was trained: the run holds "
        "the registered model and its architecture; the tag `{tags.SOURCE_TAG}` names the file."
    ),
    "sweep": (
        "Search for the best guidance of `fractal-{size}` on {dataset}. The child runs are the "
        "settings that were tried, each with the metrics of its samples."
    ),
}


def describe_run(kind: str, size: str, dataset: str) -> str:
    """What the page of a run of this kind shows, in Markdown."""
    return _RUNS[kind].format(size=size, dataset=dataset, tags=tags)


def describe_experiment(dataset: str) -> str:
    """Of the experiment that has all runs of a data set."""
    return (
        f"Everything on the data set {dataset}: training, evaluation, import and sweep, told apart "
        f"by the tag `{tags.KIND_TAG}`. Select evaluations of equal `{tags.PROTOCOL_TAG}` and "
        f"press Compare; metrics have the same names in all of them. `fractal results` prints the "
        f"same numbers beside the published ones."
    )


def describe_model(size: str) -> str:
    """Of a registered model."""
    return (
        f"Fractal generative model of the size `{size}`. `candidate` is the newest version, "
        f"`champion` the best evaluated one. `mlflow.pyfunc.load_model"
        f'("models:/fractal-{size}@champion").predict(...)` takes a table of class, seed and, '
        f"where wanted, guidance and logit_scale, at most 1,000 rows, and returns PNG images."
    )


def describe_version(size: str, own_tags: Mapping[str, str]) -> str:
    """Of a registered version, from its tags."""
    if tags.IMPORT_RUN_TAG in own_tags:
        return f"`{size}`, imported from a published file (`{tags.SOURCE_CHECKSUM_TAG}`)."
    run = own_tags.get(tags.TRAINING_RUN_TAG)
    return f"`{size}`, trained here" + (f" in the run {run}." if run else ".")
