"""The content of the registry, as typed values for people and programs."""

import mlflow
from mlflow.entities.model_registry import ModelVersion

from fractal_model.common.strict import StrictModel
from fractal_model.metrics.names import is_preview_of
from fractal_model.tracking import champions, registry
from fractal_model.tracking.champions import Change
from fractal_model.tracking.store import find_run
from fractal_model.tracking.tags import DECIDED_TAG, DECISION_TAG, EVALUATION_TAG


class RegisteredVersion(StrictModel):
    """One version of a registered model."""

    version: str
    aliases: tuple[str, ...]
    registered_at: float
    """Time of registration in seconds since 1970, UTC."""
    promoted: bool | None
    """True if the last decision promoted the version, False if not. None if there is no decision,
    or if an earlier release of this package stored it, without this value."""
    decision: str | None
    """Reason of the last decision about the version, on one line; None if there is no decision."""
    evaluation_run: str | None
    """Id of the MLflow run that evaluated the version under the protocol of the last decision. If
    no such run exists, id of the version's newest evaluation run. None: there is no evaluation."""
    metrics: dict[str, float]
    """Metrics of the run `evaluation_run`; empty if there is no such run."""

    @property
    def outcome(self) -> str:
        """One line about the version: the last decision with its reason, `not decided` or `not
        evaluated`."""
        if self.decision is None:
            return "not evaluated" if self.evaluation_run is None else "not decided"
        if self.promoted is None:
            return self.decision
        return f"{'promoted' if self.promoted else 'not promoted'}: {self.decision}"

    def format_metric(self, metric: str, digits: int) -> str:
        """Return a metric's value with `digits` decimals. If only a preview measured the metric
        (as fid_5k), add the number of samples: "9.81 (5k)". "": the version has no value."""
        if metric in self.metrics:
            return f"{self.metrics[metric]:.{digits}f}"
        for name, value in self.metrics.items():
            if is_preview_of(metric, name):
                return f"{value:.{digits}f} ({name.removeprefix(f'{metric}_')})"
        return ""


class RegisteredModel(StrictModel):
    """The registered model of one size."""

    size: str
    versions: tuple[RegisteredVersion, ...]
    """All versions, the newest first."""
    champions: tuple[Change, ...]
    """All changes of the champion, the oldest first."""


def registered_models() -> list[RegisteredModel]:
    """The registered models of all sizes, in the order of their names."""
    models = []
    for size in registry.sizes():
        aliases = mlflow.MlflowClient().get_registered_model(registry.model_name(size)).aliases
        versions = tuple(_version(version, aliases) for version in registry.versions(size))
        history = tuple(champions.history(size))
        models.append(RegisteredModel(size=size, versions=versions, champions=history))
    return models


def served_models() -> list[str]:
    """The champion of each size, and its candidate if that is another version, as sources of
    models."""
    sources: list[str] = []
    for size in registry.sizes():
        name = registry.model_name(size)
        by_version = {
            registry.aliased_version(size, alias): f"models:/{name}@{alias}"
            for alias in (registry.CANDIDATE, registry.CHAMPION)
        }
        by_version.pop(None, None)
        sources += reversed(by_version.values())
    return sources


def _version(version: ModelVersion, aliases: dict[str, str]) -> RegisteredVersion:
    number, tags = str(version.version), version.tags
    promoted = tags.get(f"{DECISION_TAG}.promoted")
    run_id, metrics = _evaluation(tags)
    return RegisteredVersion(
        version=number,
        aliases=tuple(sorted(name for name, v in aliases.items() if str(v) == number)),
        registered_at=version.creation_timestamp / 1000,
        promoted=None if promoted is None else promoted == "true",
        decision=tags.get(DECISION_TAG),
        evaluation_run=run_id,
        metrics=metrics,
    )


def _evaluation(tags: dict[str, str]) -> tuple[str | None, dict[str, float]]:
    """Return the run id and the metrics of one evaluation of the version that has these tags: the
    one under the protocol of the last decision, else the newest. (None, {}): there is none."""
    decided = registry.evaluation_tag(tags.get(DECIDED_TAG, ""))
    runs = {
        key: run
        for key, run_id in tags.items()
        if key.startswith(f"{EVALUATION_TAG}.") and (run := find_run(run_id)) is not None
    }
    if not runs:
        return None, {}
    run = runs.get(decided) or max(runs.values(), key=lambda run: run.info.start_time)
    return run.info.run_id, dict(run.data.metrics)
