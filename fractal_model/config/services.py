"""The section `services` of params.yaml: the servers that `make up` starts."""

from itertools import combinations
from typing import Annotated, Self

from pydantic import Field, model_validator

from fractal_model.common.strict import NUMBER, StrictModel

Port = Annotated[int, Field(ge=1024, le=65535), NUMBER]
PORTS = ("prefect", "mlflow", "ray", "ray_client", "ray_dashboard")


class ServicesConfig(StrictModel):
    """Ports of the servers on 127.0.0.1, the CPUs that Ray may use, and what starts by itself."""

    prefect: Port = 4200
    """Port of Prefect's server."""
    mlflow: Port = 5000
    """Port of MLflow's server."""
    ray: Port = 6379
    """Port for Ray's nodes and for programs that join the cluster."""
    ray_client: Port = 10001
    """Port for programs that connect through `ray://`; Ray cannot start without this port."""
    ray_dashboard: Port = 8265
    """Port of Ray's dashboard and its Jobs API."""
    ray_cpus: Annotated[int, Field(ge=0, le=10_000), NUMBER] = 0
    """Number of logical CPUs that Ray offers; 0: all CPUs of the machine."""
    startup_seconds: Annotated[int, Field(ge=1, le=86_400), NUMBER] = 180
    """Longest time in seconds that a started server may take until it answers."""
    evaluate_after_training: bool = True
    """Evaluate each version as soon as a training of a deployment has registered it."""

    def ports(self) -> dict[str, int]:
        """The ports of all servers, by their keys in the section `services`."""
        return {name: getattr(self, name) for name in PORTS}

    @model_validator(mode="after")
    def _require_different_ports(self) -> Self:
        for (name, port), (other, its_port) in combinations(self.ports().items(), 2):
            if port == its_port:
                raise ValueError(
                    f"services.{name} and services.{other} are both {port}: give each another port"
                )
        return self

    @property
    def prefect_api(self) -> str:
        return f"http://127.0.0.1:{self.prefect}/api"

    @property
    def mlflow_address(self) -> str:
        return f"http://127.0.0.1:{self.mlflow}"

    @property
    def ray_jobs(self) -> str:
        return f"http://127.0.0.1:{self.ray_dashboard}"
