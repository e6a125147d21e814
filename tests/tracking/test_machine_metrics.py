"""System metrics of this machine under MLflow's names."""

from __future__ import annotations

from fractal_model.tracking import machine_metrics
from fractal_model.tracking.machine_metrics import MachineMonitor


def test_processor_memory_disk_and_network_are_measured_anew_each_time():
    monitor = MachineMonitor()
    first, second = monitor.measure(), monitor.measure()
    expected = {
        "cpu_utilization_percentage",
        "system_memory_usage_megabytes",
        "system_memory_usage_percentage",
        "disk_usage_percentage",
        "network_receive_megabytes",
        "network_transmit_megabytes",
    }
    assert expected <= set(first) == set(second)
    assert 0 < second["system_memory_usage_percentage"] < 100


def test_gpus_are_measured_if_there_are_any(monkeypatch):
    class OneGpu(machine_metrics.NetworkMonitor):
        def collect_metrics(self):
            self._metrics["gpu_0_utilization_percentage"] = 40

    monkeypatch.setattr(machine_metrics, "GPUMonitor", OneGpu)
    assert MachineMonitor().measure()["gpu_0_utilization_percentage"] == 40
