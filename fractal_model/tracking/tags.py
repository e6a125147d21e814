"""The names of all tags that this package writes: to MLflow, and to the metadata of Ray jobs."""

# On a run; a version of a registered model has some of them too.
KIND_TAG, SIZE_TAG = "fractal.kind", "fractal.size"
"""Kinds are train, evaluate, import and sweep."""
PACKAGE_TAG, REVISION_TAG = "fractal.version", "fractal.git_revision"
DATASET_TAG = "fractal.dataset_checksum"
FINGERPRINT_TAG = "fractal.fingerprint"
"""Checksum of the settings and data that decide the result; equal ones are not trained twice."""
SUPERSEDED_TAG = "fractal.superseded"
"""On a training run that was begun anew: nothing is added to it any more."""
VERSION_TAG = "fractal.model_version"
"""On an evaluation or a sweep: the registered version that it is of."""
PROTOCOL_TAG = "fractal.protocol"
"""On an evaluation: the checksum of its protocol."""
SOURCE_TAG, SOURCE_CHECKSUM_TAG = "fractal.source", "fractal.source_sha256"
"""On an import: name and SHA-256 of the published file."""
SETTING_TAG = "fractal.setting"
"""On a sweep's child run: the checksum of its sampling settings."""
ABSENT_TAG = "fractal.absent"
"""On a sweep's child run, `<this>.<metric>`: why the metric has no value."""
BEST_RUN_TAG = "fractal.evaluation_run"
"""On a sweep that is done: the run that evaluated its best setting by the full protocol."""
PARENT_TAG, NOTE_TAG = "mlflow.parentRunId", "mlflow.note.content"
"""MLflow's own: the run that a child run belongs to; the description of a run or experiment."""

# On a version of a registered model
TRAINING_RUN_TAG, IMPORT_RUN_TAG = "fractal.training_run", "fractal.import_run"
EVALUATION_TAG = "fractal.evaluation"
"""`<this>.<protocol>`: the run that evaluated the version under that protocol."""
DECISION_TAG = "fractal.decision"
"""The reason of the last decision about the version; `<this>.<name>` are its details."""
DECIDED_TAG = f"{DECISION_TAG}.protocol"
"""Checksum of the protocol under which the version was last compared with a champion."""

# On a registered model
CHANGE_TAG = "fractal.champion."
"""Followed by a number of four digits: one change of the champion, as JSON."""
WAITS_TAG = "fractal.nightly_waits_since"
"""When an evaluation of the model first did not fit a night's budget (UTC)."""

# On a Ray job, beside SIZE_TAG and FINGERPRINT_TAG
OWNER_TAG = "fractal.owner"
"""The flow run and process that submitted the job."""
