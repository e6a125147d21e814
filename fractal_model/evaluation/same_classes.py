"""Comparison of a model's classes with those of a data set. If they differ, no metric that uses
classes is valid.

Decided here: the classes are the same if both have the same class names in the same order. For a
model without class names, only the number of classes is compared.
"""

from fractal_model.config.model import ModelConfig
from fractal_model.data.manifest import Manifest


def class_mismatch(model: ModelConfig, data: Manifest) -> str:
    """Return on one line how the classes of `model` and `data` differ; "" if they are the same."""
    has_same_number = len(data.class_names) == model.num_classes
    if has_same_number and model.class_names in ((), data.class_names):
        return ""
    return (
        f"the classes of the data set {data.dataset} ({len(data.class_names)}) are not the "
        f"model's ({model.num_classes}): measure the model on a data set with the model's classes, "
        f"or unconditionally"
    )
