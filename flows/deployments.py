"""Prefect's deployments, made from params.yaml: `python -m flows.deployments`; `make up` does it.

    train-fractal/<size>  evaluate-fractal/<size>  sweep-guidance/<size>    each size
    prepare-data/<dataset>                                 digits and each registered data set
    nightly-evaluation/all                                 every night

Decided here: a flow is loaded from the folder that it was deployed from, nothing is cloned; of one
deployment one run is at work, the next one waits, since both would write to the same files; a
deployment of this folder whose size or data set is gone is removed, as its runs would fail; the
server refuses a run with parameters that params.yaml has no place for (`flows.parameters`).
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import FlowFilter, FlowFilterName
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.deployments.runner import DeploymentApplyError, RunnerDeployment
from prefect.exceptions import ObjectAlreadyExists
from prefect.runner.storage import LocalStorage
from prefect.schedules import Cron, Schedule
from prefect.settings import get_current_settings
from prefect.workers.process import ProcessWorker

from flows.command import ParamsOption, run_command
from flows.parameters import restrict_parameters
from fractal_model.common.console import say
from fractal_model.common.errors import FractalError, one_line
from fractal_model.common.plurals import count_of
from fractal_model.config.data import DIGITS
from fractal_model.config.params import DEFAULT_FILE, Params, Size, load_params
from fractal_model.config.training import TrainingConfig
from fractal_model.data.datasets import dataset_names
from fractal_model.services.configuration import WORK_POOL
from fractal_model.services.deployments import DEPLOYED

TRAIN, EVALUATE, SWEEP, PREPARE, NIGHTLY = (
    "flows/train.py:train_fractal",
    "flows/evaluate.py:evaluate_fractal",
    "flows/sweep.py:sweep_guidance",
    "flows/prepare.py:prepare_data",
    "flows/nightly.py:nightly_evaluation",
)
ONE_AT_A_TIME = ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.ENQUEUE)


@dataclass(frozen=True)
class Deployment:
    """One deployment, as the settings ask for it."""

    entrypoint: str
    name: str
    description: str
    tags: tuple[str, ...]
    parameters: dict[str, str] = field(default_factory=dict)
    schedule: Schedule | None = None


def deployments(params: Params) -> Iterator[Deployment]:
    """All deployments of these settings."""
    for size in map(params.size, params.models):
        model, resources = f"a fractal-{size.name}", evaluation_resources(size)
        purposes = {
            TRAIN: f"{_title(size)}. Resources: {training_resources(size.training)}.",
            EVALUATE: f"Likelihood, FID and more of {model} by the protocol of params.yaml, and "
            f"its promotion where it is better. Resources: {resources}.",
            SWEEP: f"The best guidance, logit scale and iterations of {model}, within a budget of "
            f"images. Resources: {resources}.",
        }
        device = size.training.accelerator_type or ("gpu" if size.training.uses_gpu else "cpu")
        tags = ("fractal", size.training.dataset, device.lower())
        for entrypoint, purpose in purposes.items():
            yield Deployment(entrypoint, size.name, purpose, tags, {"size": size.name})
    for dataset in dataset_names(params):
        place = "this machine" if dataset == DIGITS else "the Ray cluster, or this machine"
        yield Deployment(
            PREPARE,
            dataset,
            f"The images of {dataset}, the features that FID compares with, and its report. "
            f"Resources: {place}.",
            ("fractal", dataset),
            {"dataset": dataset},
        )
    yield Deployment(
        NIGHTLY,
        "all",
        "Every night: evaluates each registered size whose candidate has no evaluation under the "
        "current protocol. Resources: those of its evaluations, one after the other.",
        ("fractal", "nightly"),
        schedule=Cron(params.nightly.cron, timezone=params.nightly.timezone),
    )


def _title(size: Size) -> str:
    """Such as FractalMAR-B at 256 × 256: as the paper calls it, by the generators of its levels."""
    side = f"{size.model.image_size} × {size.model.image_size}"
    if size.training.dataset == DIGITS:
        return f"The embedded handwritten digits at {side}"
    generators = {level.generator: level.generator.upper() for level in size.model.levels}
    model = f"Fractal{'-'.join(generators.values())}"
    *_, last = size.name.split("-")
    if len(last) == 1:
        model = f"{model}-{last.upper()}"
    ablation = "The two-level ablation of " if len(size.model.levels) == 1 else ""
    return f"{ablation}{model} at {side}"


def training_resources(recipe: TrainingConfig) -> str:
    """What a training asks Ray for, such as: 2 workers, 1 CPU each, no GPU."""
    others = dict(recipe.resources_per_worker)
    gpus, cpus, memory = (others.pop(name, 0) for name in ("GPU", "CPU", "memory"))
    amounts = {
        recipe.accelerator_type or "GPU": "one" if gpus == 1 else f"{gpus:g}",
        "CPU" if cpus == 1 else "CPUs": f"{cpus:g}",
        "GiB of memory": f"{memory / 2**30:g}",
        **{name: f"{amount:g}" for name, amount in others.items()},
    }
    parts = [f"{amount} {name}" for name, amount in amounts.items() if amount != "0"]
    *first, last = parts or ["Ray's default"]
    each = f"{', '.join(first)} and {last}" if first else last
    return f"{count_of(recipe.workers, 'worker')}, {each} each{'' if gpus else ', no GPU'}"


def evaluation_resources(size: Size) -> str:
    """Where an evaluation or a sweep samples."""
    workers, unit = size.evaluation.workers, "GPU" if size.training.uses_gpu else "CPU"
    if workers == 1:
        return "this machine"
    return f"{workers or 'all'} {unit}s of the cluster, one worker each"


def deploy(params_file: Path) -> tuple[list[str], list[str]]:
    """Make the work pool where there is none, and all deployments, for runs from this folder.

    Returns the names of those made and of those removed. FractalError: the folder has no flows,
    or Prefect's server does not answer or refuses.
    """
    params = load_params(params_file)
    wanted = list(deployments(params))
    storage = LocalStorage(str(Path.cwd()))
    if not (storage.destination / TRAIN.partition(":")[0]).is_file():
        raise FractalError(f"{storage.destination} has no flows: run from the project's folder")
    file = params_file.resolve()
    more = {} if file == DEFAULT_FILE.resolve() else {"params_file": str(file)}
    try:
        with get_client(sync_client=True) as client:
            _make_work_pool(client)
            made = [_apply(each, storage, more, params) for each in wanted]
            return made, _remove_others(client, made, storage)
    except (httpx.HTTPError, DeploymentApplyError) as error:
        server = get_current_settings().api.url or "of this process"
        raise FractalError(
            f"Prefect's server {server} does not take the deployments ({one_line(error)}): "
            f"start it with `make up`, or set PREFECT_API_URL to one that answers"
        ) from error


def _make_work_pool(client: SyncPrefectClient) -> None:
    template = ProcessWorker.get_default_base_job_template()
    pool = WorkPoolCreate(name=WORK_POOL, type=ProcessWorker.type, base_job_template=template)
    with contextlib.suppress(ObjectAlreadyExists):  # its settings may be a person's
        client.create_work_pool(pool)


def _apply(
    each: Deployment, storage: LocalStorage, parameters: dict[str, str], params: Params
) -> str:
    """Make or change one deployment; returns its full name."""
    deployment = RunnerDeployment.from_storage(
        storage,
        each.entrypoint,
        each.name,
        description=each.description,
        tags=list(each.tags),
        parameters={**each.parameters, **parameters},
        schedule=each.schedule,
        concurrency_limit=ONE_AT_A_TIME,
        work_pool_name=WORK_POOL,
    )
    assert isinstance(deployment, RunnerDeployment)  # no coroutine outside of a loop
    restrict_parameters(deployment, params)
    deployment.apply()
    return deployment.full_name


def _remove_others(client: SyncPrefectClient, made: list[str], storage: LocalStorage) -> list[str]:
    """Remove what an earlier call made from this folder and this call did not."""
    flow_names = sorted({name.partition("/")[0] for name in made})
    of_ours = FlowFilter(name=FlowFilterName(any_=flow_names))
    flows = {flow.id: flow.name for flow in client.read_flows(flow_filter=of_ours)}
    removed = []
    for each in client.read_deployments(flow_filter=of_ours):
        name = f"{flows[each.flow_id]}/{each.name}"
        # What a person adds, with other parameters, is not called as its size or data set is.
        ours = each.name in each.parameters.values()
        if ours and name not in made and each.pull_steps == [storage.to_pull_step()]:
            client.delete_deployment(each.id)
            removed.append(name)
    return removed


def main() -> None:
    def command(params: ParamsOption = DEFAULT_FILE) -> None:
        """Make Prefect's deployments from the settings; remove those of sizes that are gone."""
        made, removed = deploy(params)
        for name in made:
            say(f"{DEPLOYED}{name}")
        for name in removed:
            say(f"removed {name}")

    run_command(command)


if __name__ == "__main__":
    main()
