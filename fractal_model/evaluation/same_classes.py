"""A comparison of a model's classes with a data set's: no number by class is valid where
they differ.

Decided here: the names decide, in order. A model that does not know its classes' names is compared
by their number alone.
"""

from fractal_model.config.model import ModelConfig
from fractal_model.data.manifest import Manifest


def class_mismatch(model: ModelConfig, data: Manifest) -> str:
    """Why nothing by class can be measured, on one line; "" where the classes are the same."""
    same_number = len(data.class_names) == model.num_classes
    if same_number and model.class_names in ((), data.class_names):
        return ""
    return (
        f"the {len(data.class_names)} classes of the data set {data.dataset} are not the "
        f"{model.num_classes} that the model knows: measure it on the classes that it was made "
        f"for, or measure it unconditionally"
    )
