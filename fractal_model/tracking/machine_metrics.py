"""System metrics of one machine, as MLflow measures and names them."""

import logging

from mlflow.system_metrics.metrics.base_metrics_monitor import BaseMetricsMonitor
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

PREFIX = "system/"
"""First part of the names of the metrics that MLflow shows in the tab "System metrics"."""


class MachineMonitor:
    """Measures CPU, memory, disk, network and NVIDIA GPUs of the machine on which it runs."""

    def __init__(self) -> None:
        self._monitors: list[BaseMetricsMonitor] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
        try:
            self._monitors.append(GPUMonitor())
        except Exception as error:  # MLflow's way to say that there is no NVIDIA GPU.
            logging.getLogger(__name__).debug("no GPU metrics: %s", error)
        # CPU utilisation is measured from one call to the next. This is the first call.
        self.measure()

    def measure(self) -> dict[str, float]:
        """Return the metrics, by MLflow's names such as `cpu_utilization_percentage`."""
        values: dict[str, float] = {}
        for monitor in self._monitors:
            monitor.collect_metrics()
            values |= monitor.aggregate_metrics()
            monitor.clear_metrics()
        return values
