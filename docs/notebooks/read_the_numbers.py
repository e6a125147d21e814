# %% [markdown]
# # Read the numbers
#
# An evaluation gives many numbers. This notebook computes the most important ones step by step, with
# their errors, and shows why a preview is not a FID. It uses the demo's model and data (`make demo`).

# %%
from pathlib import Path

import torch

from fractal_model import FractalPipeline
from fractal_model.config.params import load_params
from fractal_model.data.prepared import open_prepared
from fractal_model.metrics.bootstrap import frechet_standard_error
from fractal_model.metrics.distances import frechet_distance, precision_recall
from fractal_model.metrics.inception import load_inception
from fractal_model.metrics.reference import load_reference
from fractal_model.metrics.statistics import FeatureStatistics

params = load_params(Path("params.yaml"))
pipe = FractalPipeline.from_pretrained("models:/fractal-digits@champion")
pipe.set_progress_bar_config(disable=True)

# %% [markdown]
# ## Likelihood: bits per dimension
#
# How well does the model predict images that it has never seen? Without any model a value of 256 levels
# costs 8 bits. The standard error says how much another choice of held-out images would change the
# mean. A difference of two models counts if it is larger than about two of its own standard errors.

# %%
held_out = open_prepared(params.dataset_folder("digits"), "validation")
images, labels = (
    torch.stack(each) for each in zip(*((e.image, torch.tensor(e.label)) for e in held_out))
)
likelihood = pipe.likelihood(images, passes=4)
print(f"{likelihood.mean:.3f} ± {likelihood.standard_error:.3f} bits/dim of {len(images)} images")
conditional = pipe.likelihood(images, labels.tolist(), passes=4)
print(f"{conditional.mean:.3f} ± {conditional.standard_error:.3f} if the model is told the class")
assert 0 < likelihood.mean < 8

# %% [markdown]
# For a MAR model the number is a bound that is estimated with random masks, here four for each image:
# `monte_carlo_error` is what these masks add to the error. An AR model's likelihood is exact.

# %%
print(f"exact: {likelihood.exact}; error by the choice of masks {likelihood.monte_carlo_error:.4f}")

# %% [markdown]
# ## FID: one number for how far the samples are
#
# An Inception network turns each image into 2,048 features. FID is the distance between the features of
# samples and those of training images, each described by mean and covariance. Lower is better.

# %%
inception = load_inception(params.metrics.inception_weights)
reference = load_reference(params.reference_file("digits"))
classes = list(range(pipe.model.config.num_classes)) * 12
samples = pipe([str(number) for number in classes], seed=0, output_type="pt")
features = torch.cat([inception(part) for part in samples.split(30)])


def fid(part: torch.Tensor) -> float:
    return frechet_distance(FeatureStatistics.from_features(part), reference.statistics)


# %%
for size in (60, 120):
    error = frechet_standard_error(features[:size], reference.statistics, resamples=10, seed=0)
    print(f"FID of {size:3} samples: {fid(features[:size]):6.1f} ± {error:.1f}")

# %% [markdown]
# ## Why a preview is not a FID
#
# With few images the covariance is poorly known, and that alone makes the distance larger. Real images
# show it best, because nothing is wrong with them: here are parts of the very images that the reference
# is made of.

# %%
count = len(reference.features)
curve = [fid(reference.features[: count * part // 4]) for part in (1, 2, 4)]
for part, value in zip((1, 2, 4), curve):
    print(f"FID of {count * part // 4:4} real images: {value:6.1f}")
assert curve[0] > curve[1] > curve[2]

# %% [markdown]
# So numbers of different sample counts must not be compared. Fractal names them apart: `fid` is that of
# the full protocol, `fid_50` that of a preview with 50 samples. And a model can reach a FID of 0 no more
# than new real images can: on the digits 300 of them have about 25.

# %% [markdown]
# ## Precision and recall
#
# FID mixes two questions. Precision: how many samples look like real images? Recall: how much of the
# variety of real images do the samples cover? Guidance raises the first and lowers the second.

# %%
for guidance in (1.0, 4.0):
    drawn = pipe([str(number) for number in classes], seed=0, guidance=guidance, output_type="pt")
    part = torch.cat([inception(each) for each in drawn.split(30)])
    precision, recall = precision_recall(part, reference.features)
    print(
        f"guidance {guidance}: precision {precision:.2f}, recall {recall:.2f}, FID {fid(part):.1f}"
    )

# %% [markdown]
# The full evaluation does all of this by a written protocol, and keeps the protocol with the numbers:
# `fractal evaluate models:/fractal-digits@champion --dataset digits`.
