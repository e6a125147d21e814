# %% [markdown]
# # What is a fractal generative model?
#
# A fractal generative model is an autoregressive model whose parts are autoregressive models again,
# down to the single pixel (Li, Sun, Fan, He, 2025). This notebook takes one apart: its levels, the way
# an image grows, and what surprises it. It uses the demo's model, so run `make demo` first.

# %%
import numpy as np
from PIL import Image, ImageDraw

from fractal_model import FractalPipeline

pipe = FractalPipeline.from_pretrained("models:/fractal-digits@champion")
config = pipe.model.config

# %% [markdown]
# ## The levels
#
# Each level takes a patch apart into smaller patches. The first one sees the whole image, the last one
# sees patches of a few pixels, and below it a small network predicts the red, green and blue of one
# pixel, one after the other.

# %%
for number, level in enumerate(config.levels):
    weights = sum(weight.numel() for weight in pipe.model.levels[number].parameters())
    print(
        f"level {number} ({level.generator}): a patch of {level.patch_size} × {level.patch_size} px "
        f"is {level.tokens} patches of {level.sub_patch_size} px; {weights:,} weights"
    )
weights = sum(weight.numel() for weight in pipe.model.pixel.parameters())
print(f"pixel network: 3 values of 256 levels each; {weights:,} weights")

# %% [markdown]
# The same as a picture: orange lines are the patches of the first level, and blue lines those of the
# second.


# %%
def enlarge(image: Image.Image, side: int = 320) -> Image.Image:
    return image.resize((side, side), Image.Resampling.NEAREST)


def with_grid(image: Image.Image) -> Image.Image:
    picture, side = enlarge(image), image.width
    draw, scale = ImageDraw.Draw(picture), picture.width // side
    for level, colour in reversed(list(zip(config.levels, ("#ff7a00", "#008cff", "#00aa5a")))):
        for place in range(0, side, level.sub_patch_size):
            draw.line([(place * scale, 0), (place * scale, picture.height)], colour, 2)
            draw.line([(0, place * scale), (picture.width, place * scale)], colour, 2)
    return picture


(image,) = pipe("3", seed=0)
with_grid(image)

# %% [markdown]
# ## An image grows
#
# A function that is called after each step of the first level sees the image so far. Patches that are
# not generated yet are grey here.

# %%
moments = []


def keep(pipe, step, steps, state):
    pixels = state["images"][0].permute(1, 2, 0).numpy().copy()
    pixels[state["hidden"][0].numpy()] = 196
    moments.append(Image.fromarray(pixels))


pipe("3", seed=0, callback_on_step_end=keep)
print(f"{len(moments)} steps of the first level")
shown = [moments[round(place)] for place in np.linspace(0, len(moments) - 1, 5)]
strip = Image.new("RGB", (5 * 130, 128), "white")
for place, moment in enumerate(shown):
    strip.paste(enlarge(moment, 128), (place * 130, 0))
strip

# %% [markdown]
# Inside each of these steps the level below runs to its end, and inside that the pixel network. The
# animation shows it: `pipe.animate("growth.gif", classes=["3"])`.
#
# ## What surprises it
#
# The model gives every pixel a probability, so it can say how many bits an image costs, and where.
# Bright pixels were hard to predict.

# %%
bits = pipe.pixel_bits([image], ["3"])[0].numpy()
print(f"{np.nanmean(bits):.3f} bits per dimension; a pixel without any prediction would cost 8")
heat = np.nan_to_num(255 * bits / np.nanmax(bits)).astype(np.uint8)
enlarge(Image.fromarray(heat))

# %% [markdown]
# A picture of noise surprises it everywhere:

# %%
noise = np.random.default_rng(0).integers(
    0, 256, (config.image_size, config.image_size, 3), np.uint8
)
surprise = pipe.likelihood([noise]).mean
print(f"{surprise:.1f} bits per dimension")
assert surprise > np.nanmean(bits)
