"""Mapping from parameter names and settings of the published checkpoints to ours.

The published modules are nested (`next_fractal.next_fractal.…`), ours are a list.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fractal_model.common.errors import FractalError
from fractal_model.config.architecture import Architecture
from fractal_model.config.model import ModelConfig

_PUBLISHED_PIXEL = "[rgb]_codebook|[rgb]_mlm|cond_proj|ln|norm|blocks"
_NAMES = (  # (published pattern, our name), applied in order to the name without its level
    (r"^patch_emb_ln\.", "norm_in."),
    (r"^patch_emb\.", "patch."),
    (r"^cond_emb\.", "condition."),
    (r"^pix_proj\.", "guide."),
    (r"^pos_embed_learned$", "positions"),
    (r"^guiding_pixel_loss\.", "guide_network."),
    (r"(^|\.)ln\.", r"\1norm_in."),
    (r"(^|\.)norm\.", r"\1norm_out."),
    (r"(^|\.)cond_proj\.", r"\1condition."),
    (r"\.attention_norm\.", ".norm1."),
    (r"\.ffn_norm\.", ".norm2."),
    (r"\.(?:attn|attention)\.w?qkv\.", ".attention.qkv."),
    (r"\.(?:attn|attention)\.(?:proj|wo)\.", ".attention.projection."),
    (r"\.mlp\.", ".feed_forward."),
    (r"\.feed_forward\.w1\.", ".feed_forward.fc1_g."),
    (r"\.feed_forward\.w3\.", ".feed_forward.fc1_x."),
    (r"\.feed_forward\.w2\.", ".feed_forward.fc2."),
)


def our_name(published: str) -> str:
    """Return our name of a published parameter: `levels.1.norm_out.bias` for
    `next_fractal.generator.norm.bias`. An unknown name is returned unchanged."""
    if published == "class_emb.weight":
        return "class_embedding.weight"
    if published == "fake_latent":
        return "null_embedding"
    depth, rest = 0, published
    while rest.startswith("next_fractal."):
        depth, rest = depth + 1, rest.removeprefix("next_fractal.")
    if rest.startswith("generator."):
        prefix, rest = f"levels.{depth}.", rest.removeprefix("generator.")
    elif depth and re.match(rf"({_PUBLISHED_PIXEL})\b", rest):
        prefix = "pixel."
    else:
        return published
    for pattern, ours in _NAMES:
        rest = re.sub(pattern, ours, rest)
    for channel, letter in enumerate("rgb"):
        rest = re.sub(rf"(^|\.){letter}_codebook\.", rf"\1codebooks.{channel}.", rest)
        rest = re.sub(rf"(^|\.){letter}_mlm\.bias$", rf"\1biases.{channel}", rest)
    return prefix + rest


def from_published(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a published state dict under our names."""
    return {our_name(name): tensor for name, tensor in weights.items()}


def model_config(settings: Mapping[str, Any]) -> ModelConfig:
    """Return our configuration of a published model. `settings` has the published names.
    FractalError: a setting is missing or unknown. ValidationError: a value is not allowed."""
    keys = {
        "img_size_list": "patch_sizes",
        "embed_dim_list": "widths",
        "num_blocks_list": "blocks",
        "num_heads_list": "heads",
        "generator_type_list": "generators",
        "num_conds": "conditions",
        "guiding_pixel": "guiding_pixel",
        "num_classes": "num_classes",
        "r_weight": "red_weight",
    }
    names = set(settings) if isinstance(settings, Mapping) else {repr(settings)[:60]}
    if names != set(keys):
        raise FractalError(
            f"the model's settings are not as published, missing: {sorted(set(keys) - names)}, "
            f"unknown: {sorted(names - set(keys))}; give exactly {sorted(keys)}"
        )
    row = {ours: settings[name] for name, ours in keys.items()}
    row["generators"] = row["generators"][: len(row["patch_sizes"]) - 1]
    return Architecture(**row, dropout=0.0).to_model()
