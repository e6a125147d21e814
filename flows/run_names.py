"""Names of flow runs in Prefect: what a run does, with which size or data set, and when."""

from collections.abc import Callable

from prefect.runtime import flow_run


def name_run(verb: str) -> Callable[[], str]:
    """Return a function that names a flow run, such as `train-digits-2026-11-29-14-50`."""

    def name() -> str:
        parameters = flow_run.get_parameters()
        subject = parameters.get("size") or parameters.get("dataset")
        moment = flow_run.get_scheduled_start_time().strftime("%Y-%m-%d-%H-%M")
        return "-".join(part for part in (verb, subject, moment) if part)

    return name
