"""The flows' Prefect server serves here too."""

from tests.flows.conftest import prefect

__all__ = ["prefect"]
