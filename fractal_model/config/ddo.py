"""The section `ddo` of params.yaml: fine-tuning by direct discriminative optimisation."""

from typing import Annotated

from pydantic import Field

from fractal_model.common.strict import NUMBER, StrictModel
from fractal_model.config.training import AtLeastOne, NotNegative, Positive


class DDOConfig(StrictModel):
    """Settings of `fractal tune-ddo` for one size (Zheng et al. 2025). Everything else, such as the
    number format and the decays of moving averages, comes from the size's recipe."""

    rounds: Annotated[int, Field(ge=1, le=1000), NUMBER] = 3
    """Number of rounds. Each compares the model with a frozen copy from the end of the round
    before."""
    share: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False), NUMBER] = 0.01
    """Real images that a round sees, as a share of those that the size's recipe sees in all its
    epochs. Published: below 0.01."""
    samples: AtLeastOne | None = None
    """Number of images that the frozen copy draws in a round, with the classes in the proportions
    of the training images. null: as many as the round sees real ones; with fewer, each is seen
    several times."""
    alpha: NotNegative = 1.0
    """Weight of the loss of the samples beside that of the real images."""
    beta: Positive = 0.02
    """Factor on the log-likelihood ratio, which is in nats for the whole image. With alpha and beta
    1 the loss is that of a discriminator."""
    learning_rate: Positive = 5e-5
    """Learning rate at the start of each round; it falls as half a cosine to 0."""
    batch_size: AtLeastOne | None = None
    """Number of real images of one step, and of samples beside them; null: that of the recipe."""
