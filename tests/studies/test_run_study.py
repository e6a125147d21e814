"""A study from its file to its table. The trainings have ended before, except in the slow test."""

from __future__ import annotations

import shutil

import mlflow
import pytest
import torch

from fractal_model.checkpoints.checkpoint import Progress, save_checkpoint
from fractal_model.cli import app
from fractal_model.common.errors import FractalError
from fractal_model.config.params_source import ParamsSource
from fractal_model.data.holdout import open_held_out_images
from fractal_model.evaluation.measure_likelihood import measure_likelihood
from fractal_model.model.fractal import FractalModel, initialise
from fractal_model.studies.run_study import plan_trials, run_study
from fractal_model.studies.study_file import Study
from fractal_model.studies.trial import Trial
from fractal_model.studies.trial_table import read_rows
from fractal_model.tracking import runs, store, trial_runs
from fractal_model.tracking.tags import FINGERPRINT_TAG
from tests.support.params import small_params
from tests.support.projects import Project, make_project

SETTINGS = ("evaluation.digits.likelihood_passes=1", "datasets.digits.validation_images=1600")
AR = ("models.digits.generators=[ar,ar]", "models.digits.conditions=1")
STUDY = Study(question="?", size="digits", set=SETTINGS, seeds=(0, 1, 2), held_out=0.25)


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Project:
    """A project with prepared data: 197 training images."""
    content = small_params()
    content["datasets"]["digits"].update(validation_images=1600)
    project = make_project(tmp_path_factory.mktemp("study") / "a project", content)
    project.run(app.main, "data", "prepare", "digits")
    store.connect(project.outputs)
    return project


@pytest.fixture
def source(project) -> ParamsSource:
    store.connect(project.outputs)
    return ParamsSource(project.params)


def complete(trial: Trial, *, is_finite: bool = True, first: int = 0) -> FractalModel:
    """Do what a training of the trial would leave behind, with random weights from the seed `first`
    on; return its model."""
    model = FractalModel(trial.size.model)
    initialise(model, torch.Generator().manual_seed(first + trial.seed))
    if not is_finite:
        torch.nn.init.constant_(model.class_embedding.weight, torch.nan)
        torch.nn.init.constant_(next(model.pixel.parameters()), torch.nan)
    outputs = trial.params.paths.outputs
    folder = outputs / f"checkpoint-{trial.variant}-{trial.seed}"
    shutil.rmtree(folder, ignore_errors=True)
    progress = Progress(size="digits", fingerprint=trial.training, position=8, steps=1)
    save_checkpoint(folder, model=model, optimizer=None, progress=progress)
    with runs.training_run(trial.size, trial.manifest, trial.training, outputs) as run_id:
        for position in (300, 500):
            values = {"epoch": position / 148, "images_per_second": 100.0 + trial.seed}
            mlflow.log_metrics(values, step=position)
        mlflow.log_metric("nll_bits_per_dim", 6.5, step=300)
    trial_runs.store_checkpoint_place(run_id, str(folder))
    return model.eval()


def test_the_trials_of_a_study_are_its_variants_with_each_seed(source):
    study = STUDY.model_copy(update={"variants": {"a": ("training.digits.weight_decay=0",)}})
    trials = plan_trials(study, source)
    assert [trial.name for trial in trials] == [
        f"{variant}, seed {seed}" for variant in ("base", "a") for seed in (0, 1, 2)
    ]
    assert {trial.images for trial in trials} == {3 * 148}  # a quarter of 197 is held out
    assert len({trial.fingerprint for trial in trials}) == 6
    assert trials[3].size.training.weight_decay == 0 and trials[3].size.training.holdout == 0.25


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variants": {"a": ()}}, "base and a have the same settings"),
        ({"variants": {"a": ("sampling.digits.guidance=3",)}}, "base and a have the same settings"),
        (
            {"variants": {"a": ("training.digits.epochs=4",)}},
            "a sees 592 images and the base 444: give it as many epochs, or name it in other_im",
        ),
        ({"variants": {"a": ("training.digits.epoch=4",)}}, "variant a: .*did you mean 'epochs'"),
        (
            {"variants": {"a": ()}, "tuned": {"a": "model"}},
            "size digits has MAR levels.*choose a size whose generators are all ar",
        ),
        (
            {"set": (*SETTINGS, *AR), "variants": {"a": ()}, "tuned": {"a": "ema-0.7"}},
            "tuned, a: there is no moving average ema-0.7: choose ema-0.5 or ema-0.9",
        ),
        (
            {
                "variants": {
                    "weak": ("models.digits.patch_sizes=[8,4,1]",),
                    "a": (),
                },
                "guides": {"a": "weak"},
            },
            "the guide's list of patch sizes is",
        ),
        ({"size": "digit"}, "variant base: training.digit.holdout.*did you mean 'digits'"),
    ],
)
def test_a_study_that_compares_nothing_is_refused(source, changes, message):
    with pytest.raises(FractalError, match=message):
        plan_trials(STUDY.model_copy(update=changes), source)


def test_a_longer_variant_must_be_named(source):
    variants = {"a": ("training.digits.epochs=4",)}
    study = STUDY.model_copy(update={"variants": variants, "other_images": ("a",)})
    assert plan_trials(study, source)[-1].images == 4 * 148


def test_trials_are_measured_once_and_failures_leave_the_others_alone(source, tmp_path, capsys):
    trials = plan_trials(STUDY, source)
    models = [complete(trial, is_finite=trial.seed != 1) for trial in trials]
    table = tmp_path / "mine.csv"
    with pytest.raises(FractalError, match="1 trial of mine failed.*base, seed 1.*not finite"):
        run_study(STUDY, "mine", source, tmp_path, jobs=1)
    assert [row.seed for row in read_rows(table)] == [0, 2]

    models[1] = complete(trials[1])
    comparison = run_study(STUDY, "mine", source, tmp_path, jobs=1)
    assert "3 trials, 2 with a result" in capsys.readouterr().out
    rows = read_rows(table)
    held_out = open_held_out_images(trials[0].params.dataset_folder("digits"), 0.25)
    for row, model in zip(rows, models, strict=True):
        likelihood = measure_likelihood(model, held_out, lambda done: None, passes=1, seed=0)
        assert row.metrics["nll_bits_per_dim"] == pytest.approx(likelihood.mean, abs=1e-4)
        assert (row.images, row.curve) == (500, ((300, 6.5),))
        assert row.minutes == pytest.approx(5 / (1 + row.seed / 100) / 60, abs=1e-3)
    assert comparison[0].metrics["nll_bits_per_dim"].value.count == 3
    assert "| base | 3 | 500 |" in (tmp_path / "mine.md").read_text()

    experiment = store.get_or_create_experiment("digits", source.load().paths.outputs)
    (parent,) = store.find_runs([experiment], {"fractal.study": "mine"})
    children = store.find_runs([experiment], {"mlflow.parentRunId": parent.info.run_id})
    assert [run.data.tags["fractal.kind"] for run in children] == ["train"] * 3
    final = sorted(run.data.metrics["final_nll_bits_per_dim"] for run in children)
    assert final == pytest.approx(sorted(r.metrics["nll_bits_per_dim"] for r in rows), abs=1e-4)

    shutil.rmtree(source.load().paths.outputs / "checkpoint-base-0")  # it is not needed any more
    assert run_study(STUDY, "mine", source, tmp_path, jobs=1) == comparison
    assert "3 trials, 3 with a result" in capsys.readouterr().out


def test_an_earlier_training_guides_and_a_tuning_follows(project, source, tmp_path):
    project.run(app.main, "data", "reference", "digits")
    store.connect(project.outputs)
    study = STUDY.model_copy(
        update={
            "set": (*SETTINGS, *AR, "sampling.digits.guidance=1.5"),
            "variants": {
                "weak": ("training.digits.epochs=1",),
                "guided": (),
                "tuned": ("ddo.digits.share=0.1", "ddo.digits.rounds=1"),
            },
            "other_images": ("weak",),
            "guides": {"guided": "weak"},
            "tuned": {"tuned": "model"},
            "metrics": ("nll_bits_per_dim", "fid"),
            "seeds": (0,),
        }
    )
    trials = {trial.variant: trial for trial in plan_trials(study, source)}
    assert len({trial.fingerprint for trial in trials.values()}) == 4
    assert len({trial.training for trial in trials.values()}) == 2  # only `weak` trains otherwise
    for variant, first in (("base", 0), ("weak", 9)):
        complete(trials[variant], first=first)
    run_study(study, "after", source, tmp_path, jobs=1)
    rows = {row.variant: row.metrics for row in read_rows(tmp_path / "after.csv")}
    assert rows["guided"]["nll_bits_per_dim"] == rows["base"]["nll_bits_per_dim"]
    assert rows["guided"]["fid"] != rows["base"]["fid"]
    assert rows["tuned"]["nll_bits_per_dim"] != rows["base"]["nll_bits_per_dim"]
    experiment = store.get_or_create_experiment("digits", source.load().paths.outputs)
    (run,) = store.find_runs([experiment], {FINGERPRINT_TAG: trials["base"].training})
    shown = run.data.metrics["final_nll_bits_per_dim"]  # not that of the tuned model
    assert shown == pytest.approx(rows["base"]["nll_bits_per_dim"], abs=1e-4)


@pytest.mark.slow
def test_a_study_trains_and_compares(project, source, tmp_path):
    project.run(app.main, "data", "reference", "digits")
    store.connect(project.outputs)
    variants = {"no-decay": ("training.digits.weight_decay=0",)}
    metrics = ("nll_bits_per_dim", "class_agreement")
    settings = (*SETTINGS, "training.digits.workers=1", "training.digits.min_workers=1")
    study = STUDY.model_copy(update={"variants": variants, "set": settings, "metrics": metrics})
    base, other = run_study(study, "real", source, tmp_path, jobs=2)
    assert base.images == other.images == 500 and base.minutes.mean > 0
    assert base.metrics.keys() == other.metrics.keys() == set(metrics)
