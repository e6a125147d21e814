"""Preparing a registered source gives the right pixels and the same bytes, and loses no image."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from fractal_model.common.errors import FractalError
from fractal_model.config.data import PreparationConfig
from fractal_model.data import shard_job
from fractal_model.data.manifest import read_manifest
from fractal_model.data.preparation import prepare_source
from fractal_model.data.prepared import open_prepared, verify_prepared
from fractal_model.data.shard_job import ShardJob, build_in_processes
from fractal_model.data.shards import ShardWriter, write_shard
from fractal_model.data.sources.registered import register
from tests.support import REPOSITORY
from tests.support import mini_imagenet as mini
from tests.support.preparing import SIDE, contents, expected_crop, prepare


@pytest.fixture(scope="module")
def pristine(tmp_path_factory) -> Path:
    """Return a data folder in which the mini ImageNet is registered and prepared."""
    root = tmp_path_factory.mktemp("pristine")
    register(mini.write_tree(root / "raw"), root / "data", resolutions=(SIDE,))
    prepare(root / "data")
    return root / "data"


@pytest.mark.parametrize("form", mini.FORMS)
def test_each_form_gives_the_same_images(tmp_path, pristine, form):
    register(mini.FORMS[form](tmp_path / "raw"), tmp_path / "data", resolutions=(SIDE,))
    manifest = prepare(tmp_path / "data")
    same = read_manifest(pristine / "imagenet16").splits
    assert manifest.splits["train"].checksum == same["train"].checksum
    if form != "parquet":  # Its validation images keep the order of the file.
        assert manifest.splits["validation"].checksum == same["validation"].checksum
    split = open_prepared(tmp_path / "data/imagenet16", "train")
    ids = list(mini.CLASSES)
    expected = [
        (ids.index(class_id), content)
        for class_id, files in mini.train_images().items()
        for content in files.values()
    ]
    assert len(split) == len(expected) == manifest.splits["train"].images
    for example, (label, content) in zip(split.in_order(), expected, strict=True):
        assert (example.image.permute(1, 2, 0).numpy() == expected_crop(content)).all()
        assert example.label == label
    verify_prepared(tmp_path / "data/imagenet16")


def test_any_number_of_processes_gives_the_same_bytes(pristine, tmp_path, monkeypatch):
    monkeypatch.setattr("fractal_model.data.preparation._SMALL_SHARD", 4)
    parts = {}
    for processes in (1, 3):
        data = tmp_path / str(processes)
        register(pristine.parent / "raw", data, resolutions=(SIDE,))
        manifest = prepare(data, processes)
        parts[processes] = contents(data / "imagenet16")
    assert len(manifest.splits["train"].shards) == 7 and parts[1] == parts[3]
    assert manifest.checksum == read_manifest(pristine / "imagenet16").checksum


def test_progress_ends_with_the_number_of_all_images(pristine, tmp_path):
    register(pristine.parent / "raw", tmp_path / "data", resolutions=(SIDE,))
    seen = []
    prepare(tmp_path / "data", progress=seen.append)
    assert seen[-1] == 33 and seen == sorted(seen)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_killed_run_is_continued_to_the_same_bytes(tmp_path, processes):
    """A real run is killed as soon as a shard exists. The next run keeps that shard."""
    data = tmp_path / "data"
    register(slow_images(tmp_path / "raw"), data, name="slow", resolutions=(SIDE,))
    child = start_slow_run(data, processes)
    done = data / ".slow.partial" / shard_job.DONE_FOLDER
    os.killpg(child.pid, signal.SIGKILL)  # also its worker processes
    assert child.wait() == -signal.SIGKILL, "it was killed while it worked"
    assert not (data / "slow").exists()
    finished = set(done.glob("*.json"))
    assert finished
    options = {"source": "slow", "resolution": SIDE}
    settings = PreparationConfig(max_quarantined_share=0, processes=1)
    built: list[ShardJob] = []

    def run_jobs(jobs: list[ShardJob]) -> None:
        built.extend(jobs)
        build_in_processes(jobs, 2)

    prepare_source(data, "slow", settings=settings, run_jobs=run_jobs, **options)
    assert not {job.done_file for job in built} & finished, "complete shards are not built again"
    assert built
    register(tmp_path / "raw", tmp_path / "whole", name="slow", resolutions=(SIDE,))
    prepare_source(
        tmp_path / "whole",
        "slow",
        settings=settings,
        run_jobs=lambda jobs: build_in_processes(jobs, 1),
        **options,
    )
    assert contents(data / "slow") == contents(tmp_path / "whole" / "slow")


SLOW_RUN = """
import sys
from pathlib import Path
from fractal_model.data.preparation import prepare_source
from fractal_model.config.data import PreparationConfig
from fractal_model.data.shard_job import build_in_processes
prepare_source(
    Path(sys.argv[1]), "slow", source="slow", resolution=16,
    settings=PreparationConfig(max_quarantined_share=0, processes=1),
    run_jobs=lambda jobs: build_in_processes(jobs, int(sys.argv[2])),
)
"""


def start_slow_run(data: Path, processes: int, **options: object) -> subprocess.Popen[bytes]:
    """Start the run in a session of its own and return it when it has built a shard."""
    child = subprocess.Popen(
        [sys.executable, "-c", SLOW_RUN, str(data), str(processes)],
        cwd=REPOSITORY,
        start_new_session=True,
        **options,
    )
    done = data / ".slow.partial" / shard_job.DONE_FOLDER
    wait_for(lambda: (done.is_dir() and any(done.glob("*.json"))) or child.poll() is not None)
    return child


def slow_images(root: Path) -> Path:
    """Make a source of 560 links to a photograph that takes a while to decode."""
    mini.put(root.parent / "large.jpg", mini.encode(mini.photograph(0, 400, 300)))
    for split, count in (("train", 500), ("validation", 60)):
        folder = root / split / "one"
        folder.mkdir(parents=True)
        for index in range(count):
            os.symlink(root.parent / "large.jpg", folder / f"{index:04d}.jpg")
    return root


def wait_for(condition, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "the condition did not become true"
        time.sleep(0.005)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_file_missing_since_registration_stops_the_preparation(tmp_path, monkeypatch, processes):
    monkeypatch.setattr("fractal_model.data.preparation._SMALL_SHARD", 4)
    root = mini.write_tree(tmp_path / "raw")
    register(root, tmp_path / "data", resolutions=(SIDE,))
    (root / "train/n01440764/n01440764_5.JPEG").unlink()
    with pytest.raises(FractalError, match="n01440764_5.JPEG cannot be read .*No such .*register"):
        prepare(tmp_path / "data", processes)


def test_a_split_without_usable_images_is_an_error(tmp_path):
    root = mini.write_tree(tmp_path / "raw")
    for file in (root / "val").rglob("*.JPEG"):
        file.write_bytes(b"x")
    register(root, tmp_path / "data", resolutions=(SIDE,))
    with pytest.raises(FractalError, match="6 of 33 .* no validation image is left.*val_00000001"):
        prepare(tmp_path / "data", share=1.0)
    mended = {name: content for name, (_, content) in mini.validation_images().items()}
    for file in (root / "val").rglob("*.JPEG"):
        file.write_bytes(mended[file.name])
    assert prepare(tmp_path / "data").splits["validation"].images == 6, "the files are read again"


def test_shards_of_another_source_are_not_reused(tmp_path):
    root, data = mini.write_tree(tmp_path / "raw"), tmp_path / "data"
    register(root, data, resolutions=(SIDE,))

    def build_one_and_stop(jobs: list[ShardJob]) -> None:
        build_in_processes(jobs[:1], 1)
        raise KeyboardInterrupt

    settings = PreparationConfig(max_quarantined_share=0, processes=1)
    options = {"source": "imagenet", "resolution": SIDE, "settings": settings}
    with pytest.raises(KeyboardInterrupt):
        prepare_source(data, "imagenet16", run_jobs=build_one_and_stop, **options)
    mini.put(root / "train/n01440764/n01440764_99.JPEG", mini.encode(mini.photograph(99)))
    register(root, data, resolutions=(SIDE,))
    assert prepare(data).splits["train"].images == 28


def test_a_process_that_dies_is_an_error(pristine, tmp_path, monkeypatch):
    monkeypatch.setattr("fractal_model.data.preparation._SMALL_SHARD", 4)
    monkeypatch.setattr(shard_job, "prepare_image", lambda *_, **__: os._exit(1))
    register(pristine.parent / "raw", tmp_path / "data", resolutions=(SIDE,))
    with pytest.raises(FractalError, match="a process of the preparation died.*to continue"):
        prepare(tmp_path / "data", 2)


def planned_jobs(data: Path) -> list[ShardJob]:
    """Return the jobs of a run that is stopped before it builds a shard."""
    planned: list[ShardJob] = []

    def stop(jobs: list[ShardJob]) -> None:
        planned.extend(jobs)
        raise KeyboardInterrupt

    settings = PreparationConfig(max_quarantined_share=0, processes=1)
    options = {"source": "imagenet", "resolution": SIDE, "settings": settings}
    with pytest.raises(KeyboardInterrupt):
        prepare_source(data, "imagenet16", run_jobs=stop, **options)
    return planned


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_or_killed_run_leaves_no_process_behind(tmp_path, number):
    """Ctrl-C also reaches the worker processes, which print nothing. A kill reaches the run."""
    data = tmp_path / "data"
    register(slow_images(tmp_path / "raw"), data, name="slow", resolutions=(SIDE,))
    with start_slow_run(data, 2, stderr=subprocess.PIPE) as child:
        try:
            (os.killpg if number == signal.SIGINT else os.kill)(child.pid, number)
            wait_for(lambda: not processes_of_session(child.pid), 10)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
        stderr = child.stderr.read().decode()
    assert stderr.count("Traceback") == (number == signal.SIGINT), stderr
    done = list((data / ".slow.partial" / shard_job.DONE_FOLDER).glob("*.json"))
    assert len(done) < 5, "it ended while it worked"


def processes_of_session(leader: int) -> list[int]:
    """Return the processes of a session that still run. A zombie has ended."""
    running = []
    for process in psutil.process_iter(["status"]):
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(process.pid) == leader and process.info["status"] != "zombie":
                running.append(process.pid)
    return running


def test_a_process_left_behind_does_not_disturb_the_next_run(pristine, tmp_path, monkeypatch):
    """The old process writes the same shard at the same time and ends first, with an error."""
    register(pristine.parent / "raw", tmp_path / "data", resolutions=(SIDE,))
    left_behind = planned_jobs(tmp_path / "data")[0]
    (other := write_shard(left_behind.shard_file, ["a"])).__enter__()
    partial = list(left_behind.shard_file.parent.iterdir())
    ended = []

    def add(shard: ShardWriter, *image: object) -> None:
        if not ended:
            ended.append(True)
            other.__exit__(SystemExit, SystemExit(), None)
        original(shard, *image)

    original = ShardWriter.add
    monkeypatch.setattr(ShardWriter, "add", add)
    jobs = planned_jobs(tmp_path / "data")
    assert partial and not partial[0].exists(), "the next run removes it"
    build_in_processes(jobs, 1)
    (left_behind.shard_file.parent / partial[0].name).write_bytes(b"still being written")
    prepare(tmp_path / "data")
    assert contents(tmp_path / "data/imagenet16") == contents(pristine / "imagenet16")


def test_no_other_files_are_written(tmp_path):
    root = mini.write_archives(tmp_path / "raw")
    before = contents(root)
    register(root, tmp_path / "data", resolutions=(SIDE,))
    prepare(tmp_path / "data")
    assert contents(root) == before
    assert {path.name for path in (tmp_path / "data").iterdir()} == {
        "imagenet16",
        "sources",
        "registered.yaml",
        ".imagenet16.lock",
    }
    assert {path.name for path in tmp_path.iterdir()} == {"raw", "data"}
