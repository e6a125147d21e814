"""Which parameters a deployment's runs may have; Prefect's server refuses others by this schema.

Decided here: bounds stand in the flows' annotations; what depends on params.yaml is added when a
deployment is made. A schema cannot divide one parameter by another, so that there is a condition
for each number of workers; beyond `MOST_WORKERS` the flow itself refuses a batch that does not fit.
"""

from typing import Any

from prefect.deployments.runner import RunnerDeployment
from prefect.utilities.callables import ParameterSchema
from pydantic import Field

from fractal_model.config.params import Params
from fractal_model.config.training import TrainingConfig

MOST_WORKERS = 64


class _Schema(ParameterSchema):
    """Prefect's, with conditions on several parameters."""

    allOf: list[dict[str, Any]] = Field(default_factory=list)


def restrict_parameters(deployment: RunnerDeployment, params: Params) -> None:
    """Allow only sizes that there are, and batches that divide over the workers."""
    schema = deployment._parameter_openapi_schema.model_dump(exclude_unset=True)
    properties, size = schema["properties"], deployment.parameters.get("size")
    if "size" in properties:
        properties["size"]["enum"] = list(params.models)
    if "batch_size" in properties and size is not None:
        schema["allOf"] = _divides(size, params.training[size])
    deployment._parameter_openapi_schema = _Schema(**schema)


def _divides(size: str, recipe: TrainingConfig) -> list[dict[str, Any]]:
    """The batch divides over the workers, whichever of the two is the recipe's."""
    workers = [n for n in range(1, recipe.batch_size + 1) if recipe.batch_size % n == 0]
    ours = {"size": {"const": size}}
    return [
        {
            "if": {"properties": {**ours, "workers": {"type": "null"}}},
            "then": {"properties": {"batch_size": {"multipleOf": recipe.workers}}},
        },
        {
            "if": {"properties": {**ours, "batch_size": {"type": "null"}}},
            "then": {"properties": {"workers": {"enum": [None, *workers]}}},
        },
        *(
            {
                "if": {"properties": {"workers": {"const": number}}, "required": ["workers"]},
                "then": {"properties": {"batch_size": {"multipleOf": number}}},
            }
            for number in range(2, MOST_WORKERS + 1)
        ),
    ]
