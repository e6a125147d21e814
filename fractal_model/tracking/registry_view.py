"""What is in the registry, for people and programs that look."""

from __future__ import annotations

import mlflow
from mlflow.entities import LifecycleStage, Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from fractal_model.common.strict import StrictModel
from fractal_model.tracking import champions, registry
from fractal_model.tracking.champions import Change


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

    def shown(self, metric: str, digits: int) -> str:
        """A metric, or under its name the one of a preview, such as fid_5k; "" without."""
        names = [metric, *(n for n in self.metrics if _is_preview_of(metric, n))]
        found = [name for name in names if name in self.metrics]
        if not found:
            return ""
        of = found[0].removeprefix(metric).removeprefix("_")
        return f"{self.metrics[found[0]]:.{digits}f}{f' ({of})' if of else ''}"


class RegisteredModel(StrictModel):
    """All versions of a size, the newest first, and its champions in their order."""

    size: str
    versions: tuple[RegisteredVersion, ...]
    champions: tuple[Change, ...]


def registered_models() -> list[RegisteredModel]:
    """All sizes by name."""
    return [_model(size) for size in registry.sizes()]


def _model(size: str) -> RegisteredModel:
    aliases = mlflow.MlflowClient().get_registered_model(registry.model_name(size)).aliases
    return RegisteredModel(
        size=size,
        versions=tuple(_version(found, aliases) for found in registry.versions(size)),
        champions=tuple(champions.history(size)),
    )


def _version(found: ModelVersion, aliases: dict[str, str]) -> RegisteredVersion:
    number, tags = str(found.version), found.tags
    promoted = tags.get(f"{registry.DECISION_TAG}.promoted")
    run_id, metrics = _evaluation(tags)
    return RegisteredVersion(
        version=number,
        aliases=tuple(sorted(name for name, v in aliases.items() if str(v) == number)),
        registered_at=found.creation_timestamp / 1000,
        promoted=None if promoted is None else promoted == "true",
        decision=tags.get(registry.DECISION_TAG),
        evaluation_run=run_id,
        metrics=metrics,
    )


def _evaluation(tags: dict[str, str]) -> tuple[str | None, dict[str, float]]:
    """That of the decision's protocol, so that decision and numbers belong together, else the
    newest."""
    decided = registry.evaluation_tag(tags.get(champions.DECIDED_TAG, ""))
    runs = {
        key: run
        for key, run_id in tags.items()
        if key.startswith(f"{registry.EVALUATION_TAG}.") and (run := _run(run_id)) is not None
    }
    if not runs:
        return None, {}
    run = runs.get(decided) or max(runs.values(), key=lambda run: run.info.start_time)
    return run.info.run_id, dict(run.data.metrics)


def _run(run_id: str) -> Run | None:
    """None for one that was deleted."""
    try:
        run = mlflow.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":  # for good
            return None
        raise
    return run if run.info.lifecycle_stage == LifecycleStage.ACTIVE else None


def _is_preview_of(metric: str, name: str) -> bool:
    """`fid_5k` and `fid_300` are of fid, `fid_stderr` is not."""
    count = name.removeprefix(f"{metric}_").removesuffix("k")
    return name.startswith(f"{metric}_") and count.isdecimal()
