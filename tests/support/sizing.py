"""Machines and data sets for which sizes are proposed."""

from __future__ import annotations

from fractal_model.sizing.choices import ImageSet
from fractal_model.sizing.machine import Machine
from fractal_model.sizing.proposal import Request

LAPTOP = Machine(
    cores=2, memory_bytes=16e9, gpus=0, gpu_name="", precision="float32", training_speed=60e9
)
NODE = Machine(
    cores=64,
    memory_bytes=80e9,
    gpus=8,
    gpu_name="NVIDIA H100 80GB HBM3",
    precision="bfloat16",
    training_speed=8 * 989.4e12 * 0.169,
)
DIGITS = ImageSet(name="digits", resolution=8, classes=10, train=1500, held_out=297)
FLOWERS = ImageSet(name="flowers", resolution=64, classes=5, train=3300, held_out=370)
IMAGENET = ImageSet(
    name="imagenet64", resolution=64, classes=1000, train=1_281_167, held_out=50_000
)


def request(images: ImageSet = FLOWERS, machine: Machine = LAPTOP, **options: object) -> Request:
    return Request(images, machine, **options)
