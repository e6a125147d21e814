"""The device that computes, and copies to it."""

import torch


def compute_device() -> torch.device:
    """The current CUDA GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def copy_to(device: torch.device, tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor on `device`. A copy from the CPU to a GPU waits for its turn in the GPU's
    work, and the host goes on."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
