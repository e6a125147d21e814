"""What is in the registry, for people and programs that look."""

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
    """Seconds since 1970, UTC."""
    promoted: bool | None
    """What was decided last; None where nothing was, or where a store of before says only why."""
    decision: str | None
    """Why, on one line."""
    evaluation_run: str | None
    """The id of the MLflow run behind the decision, by its protocol; else of the newest that
    evaluated it."""
    metrics: dict[str, float]
    """Of that run; empty where there is none."""

    @property
    def outcome(self) -> str:
        if self.decision is None:
            return "not evaluated" if self.evaluation_run is None else "not decided"
        if self.promoted is None:
            return self.decision
        return f"{'promoted' if self.promoted else 'not promoted'}: {self.decision}"

    def format_metric(self, metric: str, digits: int) -> str:
        """A metric, or under its name the one of a preview, such as fid_5k; "" without."""
        if metric in self.metrics:
            return f"{self.metrics[metric]:.{digits}f}"
        for name, value in self.metrics.items():
            if is_preview_of(metric, name):
                return f"{value:.{digits}f} ({name.removeprefix(f'{metric}_')})"
        return ""


class RegisteredModel(StrictModel):
    """All versions of a size, the newest first, and its champions in their order."""

    size: str
    versions: tuple[RegisteredVersion, ...]
    champions: tuple[Change, ...]


def registered_models() -> list[RegisteredModel]:
    """All sizes by name."""
    models = []
    for size in registry.sizes():
        aliases = mlflow.MlflowClient().get_registered_model(registry.model_name(size)).aliases
        versions = tuple(_version(version, aliases) for version in registry.versions(size))
        history = tuple(champions.history(size))
        models.append(RegisteredModel(size=size, versions=versions, champions=history))
    return models


def _version(found: ModelVersion, aliases: dict[str, str]) -> RegisteredVersion:
    number, tags = str(found.version), found.tags
    promoted = tags.get(f"{DECISION_TAG}.promoted")
    run_id, metrics = _evaluation(tags)
    return RegisteredVersion(
        version=number,
        aliases=tuple(sorted(name for name, v in aliases.items() if str(v) == number)),
        registered_at=found.creation_timestamp / 1000,
        promoted=None if promoted is None else promoted == "true",
        decision=tags.get(DECISION_TAG),
        evaluation_run=run_id,
        metrics=metrics,
    )


def _evaluation(tags: dict[str, str]) -> tuple[str | None, dict[str, float]]:
    """That of the decision's protocol, so that decision and numbers belong together, else the
    newest."""
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
