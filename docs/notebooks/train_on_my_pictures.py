# %% [markdown]
# # Train on my pictures
#
# Five commands take a folder of pictures to a model that draws more of them. Here the pictures are
# handwritten digits that scikit-learn brings, written as PNG files of three classes; put your own
# folder in their place. Nothing outside the new folder is changed.

# %%
import os
import tempfile
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_digits

project = Path(tempfile.mkdtemp()) / "my-project"
pictures = project.parent / "pictures"
digits = load_digits()
for number, (grey, digit) in enumerate(zip(digits.images, digits.target)):
    if digit in (0, 1, 7):
        file = pictures / ("zero", "one", *[""] * 5, "seven")[digit] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((grey * 15.9).astype("uint8")).convert("RGB").save(file)
print({folder.name: len(list(folder.iterdir())) for folder in sorted(pictures.iterdir())})

# %% [markdown]
# A project is a folder with settings. `fractal init` makes one; in a clone you can use the clone itself.

# %%
# !fractal init {project}
os.chdir(project)

# %% [markdown]
# **Register** the pictures: the names of the folders are the classes, and a tenth is held out. Then
# **prepare** them once: they are cut to a square, scaled and packed, and damaged files are listed.

# %%
# !fractal data register {pictures} --name mine --resolution 8 --holdout 0.1
# !dvc repro --quiet reference report

# %% [markdown]
# **Propose a size** for them. Every setting comes with its reason, and the time is measured here.

# %%
# !fractal size new mine --dataset mine --budget 1m

# %% [markdown]
# **Train** it, and **evaluate** it on the pictures that it has never seen.

# %%
# !fractal train --size mine
# !fractal evaluate --size mine --preview

# %% [markdown]
# **Draw**, one row for each class:

# %%
from fractal_model import FractalPipeline

pipe = FractalPipeline.from_pretrained("models:/fractal-mine@candidate")
print(pipe.classes)
images = pipe(list(pipe.classes), num_images_per_class=6, seed=0)
sheet = Image.new("RGB", (6 * 66, 3 * 66), "white")
for place, image in enumerate(images):
    row, column = divmod(place, 6)
    sheet.paste(image.resize((64, 64), Image.Resampling.NEAREST), (column * 66, row * 66))
assert set(pipe.classes) == {"zero", "one", "seven"}
sheet

# %% [markdown]
# With a longer budget the pictures become better: `fractal size new mine-long --dataset mine --budget
# 1h` proposes another size. The page of `fractal ui` shows the curves, and `fractal playground` lets you play with the model.
