"""The schema by which Prefect's server refuses runs with wrong parameters.

Decided here: fixed bounds are in the flows' annotations; limits from params.yaml are added when a
deployment is made. The batch size must be a multiple of the workers. A schema cannot divide them,
so it has a condition for each number of workers up to `MOST_WORKERS`; above, the flow checks it.
"""

from typing import Any

from prefect.deployments.runner import RunnerDeployment
from prefect.utilities.callables import ParameterSchema
from pydantic import Field

from fractal_model.config.params import Params
from fractal_model.config.training import TrainingConfig

MOST_WORKERS = 64


class _Schema(ParameterSchema):
    """Prefect's parameter schema, with conditions that concern several parameters together."""

    allOf: list[dict[str, Any]] = Field(default_factory=list)


def restrict_parameters(deployment: RunnerDeployment, params: Params) -> None:
    """Let a deployment accept only sizes in params.yaml (if it does not fix the size), and batch
    sizes that are a multiple of the number of workers."""
    schema = deployment._parameter_openapi_schema.model_dump(exclude_unset=True)
    properties, size = schema["properties"], deployment.parameters.get("size")
    if "size" in properties and size is None:
        properties["size"]["enum"] = list(params.models)
    if "batch_size" in properties and size is not None:
        schema["allOf"] = _batch_conditions(size, params.training[size])
    deployment._parameter_openapi_schema = _Schema(**schema)


def _batch_conditions(size: str, recipe: TrainingConfig) -> list[dict[str, Any]]:
    """JSON schema conditions: the batch size is a multiple of the number of workers. If a run sets
    only one of the two, the other comes from the recipe."""
    workers = [n for n in range(1, recipe.batch_size + 1) if recipe.batch_size % n == 0]
    this_size = {"size": {"const": size}}
    return [
        {
            "if": {"properties": {**this_size, "workers": {"type": "null"}}},
            "then": {"properties": {"batch_size": {"multipleOf": recipe.workers}}},
        },
        {
            "if": {"properties": {**this_size, "batch_size": {"type": "null"}}},
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
