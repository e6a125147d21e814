"""Measure how fast images are prepared and read, compared with plain Pillow in one process.

    python -m tests.benchmarks.data [--json]

It makes 4,000 JPEG files of about 500 × 375 pixels, as in ImageNet, with the spectrum of
photographs. "Plain" decodes and crops each file in one process and stores nothing. The compared
ways run in turn, and each result is the median of the rounds. `dvc repro` is measured when nothing
has to be built, with the stages of digits and of the photographs. The program exits with 1 when a
goal is missed. pytest does not collect it.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import PIL.Image
import psutil
import typer
from rich.table import Table

from fractal_model.common.console import console, errors_on_one_line, progress_bar
from fractal_model.common.errors import FractalError
from fractal_model.config.data import PreparationConfig
from fractal_model.data.adm_crop import center_crop
from fractal_model.data.manifest import read_manifest, split_record, write_manifest
from fractal_model.data.preparation import prepare_source
from fractal_model.data.prepared import open_prepared
from fractal_model.data.shard_job import build_in_processes
from fractal_model.data.shards import images_per_shard, shard_name, write_shard
from fractal_model.data.sources.registered import read_registered, register

IMAGENET = 1_281_167
SIDES = (64, 256)
CODECS: dict[str, dict[str, object]] = {
    "PNG": {"format": "PNG"},
    "PNG, fastest": {"format": "PNG", "compress_level": 1},
    "WebP, fastest": {"format": "WEBP", "lossless": True, "quality": 0, "method": 0},
    "WebP": {"format": "WEBP", "lossless": True, "quality": 50, "method": 3},
}
GOALS = {
    "prepare 64": 0.85,
    "read 64": 12.0,
    "read 256": 2.0,
    "resident GiB": 1.0,
    "dvc repro s": 3.0,
}


def photograph(seed: int) -> PIL.Image.Image:
    """Return noise whose amplitude falls with the frequency, about 500 × 375 pixels."""
    random = np.random.default_rng(seed)
    width, height = int(random.normal(490, 30)), int(random.normal(385, 30))
    if seed % 4 == 0:
        width, height = height, width
    fy = np.fft.fftfreq(height)[:, None]
    fx = np.fft.rfftfreq(width)[None]
    falloff = 1 / np.maximum(np.hypot(fy, fx), 1 / width) ** 1.3
    channels = np.fft.irfft2(
        np.fft.rfft2(random.normal(size=(3, height, width))) * falloff, s=(height, width)
    )
    channels += 0.8 * channels.mean(axis=0)  # Colours of photographs are correlated.
    channels = 128 + 55 * channels / channels.std()
    return PIL.Image.fromarray(channels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))


def make_images(root: Path, images: int) -> list[Path]:
    """Write JPEG files of ten classes. The last tenth form the validation split."""
    files = []
    with progress_bar("making images", images) as update:
        for index in range(images):
            split = "validation" if index >= images * 9 // 10 else "train"
            file = root / split / f"class{index % 10}" / f"{index:05d}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            photograph(index).save(file, quality=93)
            files.append(file)
            update(index + 1)
    return files


def prepare_plainly(files: list[Path], side: int) -> None:
    """Decode and crop every file with Pillow, and store nothing."""
    for file in files:
        with PIL.Image.open(file) as image:
            np.asarray(center_crop(image.convert("RGB"), side))


def seconds(work: Callable[[], object]) -> float:
    """Run `work` and return how long it takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def prepare(data: Path, side: int, processes: int) -> None:
    """Prepare the photographs anew, as `fractal data prepare` does."""
    name = f"photographs{side}"
    shutil.rmtree(data / name, ignore_errors=True)
    prepare_source(
        data,
        name,
        source="photographs",
        resolution=side,
        settings=PreparationConfig(max_quarantined_share=0, processes=processes),
        run_jobs=lambda jobs: build_in_processes(jobs, processes),
    )


def read_all(folder: Path) -> None:
    """Open every split and read its images in random order, as in training."""
    for name in read_manifest(folder).splits:
        split = open_prepared(folder, name)
        for index in np.random.default_rng(0).permutation(len(split)):
            split[int(index)]


def measure_codecs(files: list[Path]) -> list[dict[str, object]]:
    """Measure milliseconds and kB per image of each encoding; the choice is based on them."""
    rows = []
    for side in SIDES:
        crops = []
        for file in files[:100]:
            with PIL.Image.open(file) as image:
                crops.append(center_crop(image.convert("RGB"), side))
        for name, options in CODECS.items():
            started = time.perf_counter()
            encoded = [encode(image, options) for image in crops]
            between = time.perf_counter()
            for content in encoded:
                np.asarray(PIL.Image.open(io.BytesIO(content)))
            ended = time.perf_counter()
            rows.append(
                {
                    "side": side,
                    "codec": name,
                    "encode_ms": 1e3 * (between - started) / len(crops),
                    "decode_ms": 1e3 * (ended - between) / len(crops),
                    "kilobytes": sum(map(len, encoded)) / len(crops) / 1e3,
                }
            )
    return rows


def encode(image: PIL.Image.Image, options: dict[str, object]) -> bytes:
    file = io.BytesIO()
    image.save(file, **options)
    return file.getvalue()


READER = """
import json, sys
import numpy as np, psutil
from fractal_model.data.prepared import open_prepared
split = open_prepared(sys.argv[1], "train")
random, peak = np.random.default_rng(0), 0
for step in range(int(sys.argv[2])):
    split[int(random.integers(len(split)))]
    if step % 64 == 0:
        peak = max(peak, psutil.Process().memory_info().rss)
print(json.dumps({"images": len(split), "resident": peak}))
"""


def measure_memory(data: Path, gigabytes: float, reads: int) -> dict[str, float]:
    """Measure the memory of a process that reads at random from a large data set. The data set is
    one complete shard of 256 px images, linked under many names."""
    source, big = data / "photographs256", data / "big"
    manifest = read_manifest(source)
    images = open_prepared(source, "train")
    file = big / "train" / shard_name(0)
    with write_shard(file, manifest.class_names) as shard:
        for index in range(images_per_shard(256)):
            example = images[index % len(images)]
            picture = PIL.Image.fromarray(example.image.permute(1, 2, 0).numpy())
            shard.add(picture, example.label)
    record = shard.record()
    times = int(gigabytes * 1e9 / record.bytes) + 1
    shards = [record]
    for number in range(1, times):
        os.link(file, file.with_name(shard_name(number)))
        shards.append(record.model_copy(update={"file": f"train/{shard_name(number)}"}))
    checksums, labels = shard.checksums.tobytes() * times, np.tile(shard.labels, times)
    splits = {"train": split_record(256, len(manifest.class_names), checksums, labels, shards)}
    write_manifest(big, manifest.model_copy(update={"splits": splits}))
    command = [sys.executable, "-c", READER, str(big), str(reads)]
    measured = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return {
        "gigabytes": times * record.bytes / 1e9,
        "images": measured["images"],
        "reads": reads,
        "resident_gib": measured["resident"] / 2**30,
    }


def measure_repro(scratch: Path, raw: Path, rounds: int) -> float:
    """Measure the seconds of `dvc repro` with nothing to do, in a new project with digits and 64 px
    photographs."""
    project, checkout = scratch / "project", Path(__file__).parents[2]
    project.mkdir()
    shutil.copytree(checkout / "fractal_model", project / "fractal_model")
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(checkout / name, project / name)
    register(raw, project / "data", name="photographs", resolutions=(64,))
    dvc = [sys.executable, "-m", "dvc"]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"

    def run(*arguments: str) -> None:
        subprocess.run(
            [*dvc, *arguments],
            check=True,
            cwd=project,
            env={**os.environ, "PATH": path},
            stdout=subprocess.DEVNULL,
        )

    run("init", "--no-scm", "--quiet")
    # Stages of references are left out: their Inception features would take minutes.
    (photographs,) = read_registered(project / "data")
    stages = ["digits", "digits-report", f"prepare@{photographs}", f"report@{photographs}"]
    run("repro", *stages)
    return statistics.median(seconds(lambda: run("repro", *stages)) for _ in range(rounds))


def missed_goals(results: dict) -> list[str]:
    """Describe the results that miss their goals."""
    prepare_goal = GOALS["prepare 64"] * results["cores"]
    at_least = {
        "prepare 64 px, × plain": (results["64"]["prepare_speedup"], prepare_goal),
        "read 64 px, × plain": (results["64"]["read_speedup"], GOALS["read 64"]),
        "read 256 px, × plain": (results["256"]["read_speedup"], GOALS["read 256"]),
    }
    below = {
        "resident GiB": (results["memory"]["resident_gib"], GOALS["resident GiB"]),
        "dvc repro, seconds": (results["repro_seconds"], GOALS["dvc repro s"]),
    }
    missed = []
    for quantity, (result, goal) in at_least.items():
        if result < goal:
            missed.append(f"{quantity}: {result:.2f}, at least {goal:g}")
    for quantity, (result, goal) in below.items():
        if result >= goal:
            missed.append(f"{quantity}: {result:.2f}, under {goal:g}")
    return missed


def compare(data: Path, files: list[Path], side: int, rounds: int) -> dict[str, float]:
    """Measure plain Pillow, preparation and reading in turn, and return medians and ratios."""
    cores, folder = psutil.cpu_count() or 1, data / f"photographs{side}"
    times: dict[str, list[float]] = {"plain": [], "prepare": [], "read": []}
    for _ in range(rounds):
        times["plain"].append(seconds(lambda: prepare_plainly(files, side)))
        times["prepare"].append(seconds(lambda: prepare(data, side, cores)))
        times["read"].append(seconds(lambda: read_all(folder)))
    medians = {name: statistics.median(values) for name, values in times.items()}
    size = sum(s.bytes for r in read_manifest(folder).splits.values() for s in r.shards)
    return {
        **{f"{name}_ms": 1e3 * value / len(files) for name, value in medians.items()},
        "prepare_speedup": medians["plain"] / medians["prepare"],
        "read_speedup": medians["plain"] / medians["read"],
        "kilobytes": size / len(files) / 1e3,
    }


def main(
    images: Annotated[int, typer.Option(min=100, help="Number of JPEG files.")] = 4000,
    rounds: Annotated[int, typer.Option(min=1, help="Measurements per median.")] = 3,
    gigabytes: Annotated[float, typer.Option(help="Size of the simulated large data set.")] = 100,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results as JSON.")] = False,
) -> None:
    cores = psutil.cpu_count() or 1
    with tempfile.TemporaryDirectory() as scratch:
        data, results = Path(scratch, "data"), {"cores": cores, "images": images}
        files = make_images(Path(scratch, "raw"), images)
        results["codecs"] = measure_codecs(files)
        register(Path(scratch, "raw"), data, name="photographs", resolutions=SIDES)
        for side in SIDES:
            results[f"{side}"] = compare(data, files, side, rounds)
        results["memory"] = measure_memory(data, gigabytes, reads=20_000)
        results["repro_seconds"] = measure_repro(Path(scratch), Path(scratch, "raw"), rounds)
    if as_json:
        print(json.dumps(results))
    else:
        show(results)
    if missed := missed_goals(results):
        raise FractalError(f"goals missed on {cores} cores: {'; '.join(missed)}")


def show(results: dict) -> None:
    """Print the results as tables."""
    cores, memory = results["cores"], results["memory"]
    table = Table("milliseconds per image", "encode", "decode", "kB", title_justify="left")
    for row in results["codecs"]:
        numbers = (f"{row[key]:.2f}" for key in ("encode_ms", "decode_ms"))
        table.add_row(f"{row['side']} px, {row['codec']}", *numbers, f"{row['kilobytes']:.1f}")
    console.print(table)
    table = Table("", "measured", "goal", title=f"{cores} cores", title_justify="left")
    for side in SIDES:
        row = results[str(side)]
        goal = f"{GOALS['prepare 64'] * cores:.2f} ×" if side == 64 else ""
        speed = f"{row['prepare_ms']:.2f} ms, {row['prepare_speedup']:.2f} × plain"
        table.add_row(f"prepare {side} px, {cores} processes", speed, goal)
        speed = f"{row['read_ms']:.3f} ms, {row['read_speedup']:.1f} × plain"
        table.add_row(f"read {side} px, one process", speed, f"{GOALS[f'read {side}']:.0f} ×")
        table.add_row(f"plain {side} px, one process", f"{row['plain_ms']:.2f} ms", "")
    table.add_row(
        f"memory of a reader of {memory['gigabytes']:.0f} GB",
        f"{memory['resident_gib']:.2f} GiB resident",
        f"< {GOALS['resident GiB']:.0f} GiB",
    )
    repro = f"{results['repro_seconds']:.2f} s"
    table.add_row("dvc repro with nothing to do", repro, f"< {GOALS['dvc repro s']:.0f} s")
    console.print(table)
    table = Table(f"{IMAGENET:,} images, extrapolated", "64 px", "256 px", title_justify="left")
    for count in (2, 16, 64):
        hours = (
            results[str(side)]["prepare_ms"] * cores / count * IMAGENET / 3.6e6 for side in SIDES
        )
        table.add_row(f"hours on {count} cores", *(f"{value:.2f}" for value in hours))
    sizes = (results[str(side)]["kilobytes"] * IMAGENET / 1e6 for side in SIDES)
    table.add_row("GB on disk", *(f"{value:.0f}" for value in sizes))
    console.print(table)


if __name__ == "__main__":
    with errors_on_one_line():
        typer.run(main)
