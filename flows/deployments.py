"""Makes Prefect's deployments from params.yaml; `make up` runs it as `python -m flows.deployments`.

    train-fractal/<size>  evaluate-fractal/<size>  sweep-guidance/<size>    for each size
    tune-ddo/<size>                                        for each size with AR levels only
    prepare-data/<dataset>                                 for digits and each registered data set
    nightly-evaluation/all                                 every night

Decided here: Prefect imports the flows of this package and makes no copy of the code. A flow file
that Prefect loads by its path would not import its package, which removes secrets from messages.
All runs of a deployment write to the same files, so only one works at a time and the next one
waits. If a size or data set was deleted, its deployments are removed, as their runs would fail. The
server refuses a run with parameters that params.yaml does not allow (`flows.parameters`), or of
another size than its deployment's.
"""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import WorkPoolFilter, WorkPoolFilterName
from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
from prefect.deployments.runner import DeploymentApplyError, RunnerDeployment
from prefect.events import DeploymentEventTrigger
from prefect.exceptions import ObjectAlreadyExists
from prefect.runner.storage import LocalStorage
from prefect.schedules import Cron, Schedule
from prefect.settings import get_current_settings
from prefect.utilities.annotations import freeze
from prefect.workers.process import ProcessWorker

from fractal_model.common.console import say
from fractal_model.common.errors import FractalError, one_line
from fractal_model.common.plurals import count_of
from fractal_model.config.data import DIGITS
from fractal_model.config.params import DEFAULT_FILE, Params, Size, load_params
from fractal_model.config.params_source import DEFAULT_SOURCE
from fractal_model.config.training import TrainingConfig
from fractal_model.data.datasets import dataset_names
from fractal_model.services.configuration import WORK_POOL
from fractal_model.services.deployments import DEPLOYED

from .automations import RUN_TAG, evaluation_trigger, watch_runs
from .command import ParamsOption, run_command
from .parameters import restrict_parameters

TRAIN, EVALUATE, SWEEP, TUNE, PREPARE, NIGHTLY = (
    f"{__package__}.{place}"
    for place in (
        "train.train_fractal",
        "evaluate.evaluate_fractal",
        "sweep.sweep_guidance",
        "tune_ddo.tune_ddo",
        "prepare.prepare_data",
        "nightly.nightly_evaluation",
    )
)
"""Modules and functions of the flows, which Prefect imports."""
ONE_AT_A_TIME = ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.ENQUEUE)


@dataclass(frozen=True)
class Deployment:
    """Settings of one Prefect deployment of a flow."""

    entrypoint: str
    name: str
    description: str
    tags: tuple[str, ...]
    parameters: dict[str, str] = field(default_factory=dict)
    schedule: Schedule | None = None
    triggers: tuple[DeploymentEventTrigger, ...] = ()


def deployments(params: Params) -> Iterator[Deployment]:
    """Yield the deployments of all sizes and data sets of `params`, and the nightly one."""
    for size in map(params.size, params.models):
        model, resources = f"a fractal-{size.name}", evaluation_resources(size)
        purposes = {
            TRAIN: f"Trains {model} on {size.training.dataset}: {_describe_model(size)}, "
            f"{count_of(size.training.epochs, 'epoch')}. "
            f"Resources: {training_resources(size.training)}.",
            EVALUATE: f"Measures likelihood, FID and more of {model} by the protocol of "
            f"params.yaml; promotes it if it beats the champion. Resources: {resources}.",
            SWEEP: f"Searches the best guidance, logit scale and iterations of {model}, within a "
            f"budget of images. Resources: {resources}.",
        }
        if size.model.is_autoregressive:
            purposes[TUNE] = (
                f"Fine-tunes {model} with its own samples and registers the result. Resources: "
                f"this machine; for the sampling, {resources}."
            )
        device = size.training.accelerator_type or ("gpu" if size.training.uses_gpu else "cpu")
        tags = (RUN_TAG, size.training.dataset, device.lower())
        is_triggered = params.services.evaluate_after_training
        triggers = {EVALUATE: (evaluation_trigger(size.name),) if is_triggered else ()}
        for entrypoint, purpose in purposes.items():
            yield Deployment(
                entrypoint,
                size.name,
                purpose,
                tags,
                {"size": size.name},
                triggers=triggers.get(entrypoint, ()),
            )
    for dataset in dataset_names(params):
        place = "this machine" if dataset == DIGITS else "the Ray cluster, or this machine"
        yield Deployment(
            PREPARE,
            dataset,
            f"Prepares the images of {dataset}, the features that FID compares with, and its "
            f"report. Resources: {place}.",
            (RUN_TAG, dataset),
            {"dataset": dataset},
        )
    yield Deployment(
        NIGHTLY,
        "all",
        "Evaluates, every night, each registered size whose candidate has no evaluation under the "
        "current protocol. Resources: those of its evaluations, one after the other.",
        (RUN_TAG, "nightly"),
        schedule=Cron(params.nightly.cron, timezone=params.nightly.timezone),
    )


def _describe_model(size: Size) -> str:
    """The levels and patch sizes of a size, such as `MAR levels, 256 → 16 → 4 → 1 px`."""
    kinds = dict.fromkeys(level.generator.upper() for level in size.model.levels)
    sides = (size.model.image_size, *(level.sub_patch_size for level in size.model.levels))
    return f"{' and '.join(kinds)} levels, {' → '.join(map(str, sides))} px"


def training_resources(recipe: TrainingConfig) -> str:
    """Say what a training requests from Ray, for example "2 workers, 1 CPU each, no GPU"."""
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
    resources = f"{', '.join(first)} and {last}" if first else last
    return f"{count_of(recipe.workers, 'worker')}, {resources} each{'' if gpus else ', no GPU'}"


def evaluation_resources(size: Size) -> str:
    """Say where an evaluation or a sweep draws its samples, for example "this machine" or "8 GPUs
    of the cluster, one worker each"."""
    workers, unit = size.evaluation.workers, "GPU" if size.training.uses_gpu else "CPU"
    if workers == 1:
        return "this machine"
    return f"{workers or 'all'} {unit}s of the cluster, one worker each"


def deploy(params_file: Path, overrides: Sequence[str] = ()) -> tuple[list[str], list[str]]:
    """Make the work pool if it is missing, the automations that end silent runs, and all
    deployments. Their runs take the settings from the file, with `overrides`, and work in the
    current folder. Return the names of the deployments that were made and that were removed.
    FractalError: Prefect's server does not answer or refuses."""
    params = load_params(params_file, overrides)
    storage = LocalStorage(str(Path.cwd()))
    file = params_file.resolve()
    shared: dict[str, Any] = {} if file == DEFAULT_FILE.resolve() else {"params_file": str(file)}
    shared |= {"set": list(overrides)} if overrides else {}
    try:
        with get_client(sync_client=True) as client:
            _make_work_pool(client)
            watch_runs(client)
            names = [_apply(each, storage, shared, params) for each in deployments(params)]
            return names, _remove_others(client, names, storage)
    except (httpx.HTTPError, DeploymentApplyError) as error:
        server = get_current_settings().api.url or "of this process"
        raise FractalError(
            f"Prefect's server {server} does not accept the deployments ({one_line(error)}): start "
            f"it with `make up`, or set PREFECT_API_URL to a server that answers"
        ) from error


def _make_work_pool(client: SyncPrefectClient) -> None:
    template = ProcessWorker.get_default_base_job_template()
    pool = WorkPoolCreate(name=WORK_POOL, type=ProcessWorker.type, base_job_template=template)
    with contextlib.suppress(ObjectAlreadyExists):  # A person may have changed its settings.
        client.create_work_pool(pool)


def _apply(
    deployment: Deployment, storage: LocalStorage, parameters: dict[str, Any], params: Params
) -> str:
    """Make or change a deployment on the server and return its name, `flow/deployment`. Its runs
    get `parameters` in addition to the deployment's own ones."""
    fixed = {k: freeze(v) if k == "size" else v for k, v in deployment.parameters.items()}
    runner = RunnerDeployment.from_storage(
        storage,
        deployment.entrypoint,
        deployment.name,
        description=deployment.description,
        tags=list(deployment.tags),
        parameters={**fixed, **parameters},
        schedule=deployment.schedule,
        triggers=list(deployment.triggers),
        concurrency_limit=ONE_AT_A_TIME,
        work_pool_name=WORK_POOL,
    )
    assert isinstance(runner, RunnerDeployment)  # Only in an event loop it is a coroutine.
    restrict_parameters(runner, params)
    runner.apply()
    return runner.full_name


def _remove_others(client: SyncPrefectClient, names: list[str], storage: LocalStorage) -> list[str]:
    """Remove the deployments that an earlier call made from this folder and that are not in
    `names`; return the names of the removed deployments."""
    pool = WorkPoolFilter(name=WorkPoolFilterName(any_=[WORK_POOL]))
    flows = {flow.id: flow.name for flow in client.read_flows(work_pool_filter=pool)}
    removed = []
    for stored in client.read_deployments(work_pool_filter=pool):
        name = f"{flows[stored.flow_id]}/{stored.name}"
        # A deployment that a person added does not have the name of its size or data set.
        is_ours = stored.name in stored.parameters.values()
        if is_ours and name not in names and stored.pull_steps == [storage.to_pull_step()]:
            client.delete_deployment(stored.id)
            removed.append(name)
    return removed


def main() -> None:
    def command(params: ParamsOption = DEFAULT_SOURCE) -> None:
        """Make Prefect's deployments, and remove those of deleted sizes and data sets."""
        deployed, removed = deploy(params.file, params.overrides)
        for name in deployed:
            say(f"{DEPLOYED}{name}")
        for name in removed:
            say(f"removed {name}")

    run_command(command)


if __name__ == "__main__":
    main()
