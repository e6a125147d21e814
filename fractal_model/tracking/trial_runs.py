"""What a study adds to the MLflow runs of its trainings: parent, checkpoint and results."""

from collections.abc import Mapping

import mlflow

from fractal_model.tracking.tags import CHECKPOINT_TAG, PARENT_TAG


def join_study(run_id: str, study_run: str) -> None:
    """Make a training the child of a study's run, unless it is the child of another one."""
    if PARENT_TAG not in mlflow.get_run(run_id).data.tags:
        mlflow.set_tag(PARENT_TAG, study_run)


def store_checkpoint_place(run_id: str, place: str) -> None:
    """Write the folder or address of the checkpoint that a completed training has chosen."""
    mlflow.MlflowClient().set_tag(run_id, CHECKPOINT_TAG, place)


def read_checkpoint(run_id: str) -> str | None:
    """Return the folder or address that `store_checkpoint_place` has written; None: nothing was."""
    return mlflow.get_run(run_id).data.tags.get(CHECKPOINT_TAG)


def log_result(metrics: Mapping[str, float]) -> None:
    """Log the metrics of the trained model to the active run. Their names begin with `final_`, as
    those of the training's own validations are measured with fewer passes and images."""
    mlflow.log_metrics({f"final_{name}": value for name, value in metrics.items()})
