"""Names of all tags that this package writes to MLflow and to the metadata of Ray jobs."""

# Tags of a run. A version of a registered model has some of them too.
KIND_TAG, SIZE_TAG = "fractal.kind", "fractal.size"
"""Kind of a run (train, tune, evaluate, import, sweep or study), and its size."""
PACKAGE_TAG, REVISION_TAG = "fractal.version", "fractal.git_revision"
"""Version of this package, and git commit of the working folder, when the run was written."""
DATASET_TAG = "fractal.dataset_checksum"
FINGERPRINT_TAG = "fractal.fingerprint"
"""Fingerprint of the settings and data that decide a run's result, so that no run is repeated."""
SUPERSEDED_TAG = "fractal.superseded"
"""Tag of a training run that no later training may continue, because a user began it anew."""
VERSION_TAG = "fractal.model_version"
"""Tag of an evaluation or a sweep: the registered version that it measures."""
PROTOCOL_TAG = "fractal.protocol"
"""Tag of an evaluation: the fingerprint of its protocol."""
START_TAG, START_CHECKSUM_TAG = "fractal.start_from", "fractal.start_sha256"
"""Tags of a training that did not start from random weights: the source of its first weights as the
user gave it, and the checksum of that model's weights."""
PARENT_VERSION_TAG, PARENT_RUN_TAG = "fractal.parent_version", "fractal.parent_run"
"""Tags of a training that started from a registered version: that version as NAME/VERSION, and the
id of the run that trained it."""
SOURCE_TAG, SOURCE_CHECKSUM_TAG = "fractal.source", "fractal.source_sha256"
"""Tags of an import: name and SHA-256 of the published file."""
STUDY_TAG = "fractal.study"
"""Tag of a study's parent run: the name of the study."""
CHECKPOINT_TAG = "fractal.checkpoint"
"""Tag of a completed training of a study: the folder or address of its chosen checkpoint."""
SETTING_TAG = "fractal.setting"
"""Tag of a sweep's child run: the fingerprint of its setting."""
ABSENT_TAG = "fractal.absent"
"""Tag `fractal.absent.METRIC` of a sweep's child run: the reason why the metric has no value."""
BEST_RUN_TAG = "fractal.evaluation_run"
"""Tag of a finished sweep: id of the run that evaluated the best setting by the full protocol."""
PARENT_TAG, NOTE_TAG = "mlflow.parentRunId", "mlflow.note.content"
"""MLflow's own tags: id of a child run's parent, and the description of a run or experiment."""

# Tags of a version of a registered model
TRAINING_RUN_TAG, IMPORT_RUN_TAG = "fractal.training_run", "fractal.import_run"
"""Two tags: the id of the run that trained the version, or of the run that imported it. The first
one is also a tag of the evaluations of the version."""
EVALUATION_TAG = "fractal.evaluation"
"""Tag `fractal.evaluation.FINGERPRINT`: id of the run that evaluated the version under the protocol
with this fingerprint (its first 12 digits). The run that trained the version has it too."""
DECISION_TAG = "fractal.decision"
"""Reason of the last decision about the version. Tag `fractal.decision.NAME`: a detail of it."""
DECIDED_TAG = f"{DECISION_TAG}.protocol"
"""Fingerprint of the protocol under which the version was last compared with a champion."""

# Tags of a registered model
CHANGE_TAG = "fractal.champion."
"""Tag `fractal.champion.NNNN`: the change of the champion with number NNNN, as JSON."""
WAITS_TAG = "fractal.nightly_waits_since"
"""Time (UTC) since which an evaluation of the model waits for a night with enough budget."""

# Tag of a Ray job, beside SIZE_TAG and FINGERPRINT_TAG
OWNER_TAG = "fractal.owner"
"""Flow run and process that submitted the job, as JSON."""
