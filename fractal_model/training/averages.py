"""Exponential moving averages of the weights, with several decays at once.

Decided here: an average is updated as torch's `AveragedModel` does it, to the bit: the first update
copies the weights, and each later one is `torch.lerp`. The averages of a parameter are one tensor,
(D, …) for D decays, so that an update reads the parameter once. On a CPU this takes three quarters
of the time of one `torch._foreach_lerp_` for each decay.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fractal_model.common.errors import FractalError
from fractal_model.config.weights import EMA, average_name


class MovingAverages:
    """Moving averages of a model's parameters, one for each of `decays`, on the model's device."""

    def __init__(self, model: nn.Module, decays: Sequence[float]) -> None:
        self._names = [average_name(decay) for decay in decays]
        self._parameters = [name for name, _ in model.named_parameters()]
        self._weights = [parameter.detach() for parameter in model.parameters()]
        self._averages = [w.repeat(len(decays), *[1] * w.ndim) for w in self._weights]
        # The share of the new weights in each average, in a shape that broadcasts: (D, 1, …).
        shares = [1 - decay for decay in decays]
        self._shares = [w.new_tensor(shares).view(-1, *[1] * w.ndim) for w in self._weights]
        self._is_first = True

    @torch.no_grad()
    def update(self) -> None:
        """Add the model's current weights to each average; the first update copies them."""
        if not self._names:
            return
        if self._is_first:
            self._copy_weights()
        else:
            torch._foreach_lerp_(self._averages, self._weights, self._shares)
        self._is_first = False

    def reset(self) -> None:
        """Return to the state before the first update. Call it after the model's own reset."""
        self._copy_weights()
        self._is_first = True

    def state(self) -> dict[str, dict[str, Tensor]]:
        """The averages by name, such as `ema-0.999`, each as tensors by the parameter's name."""
        return {
            average: {
                name: tensor[number]
                for name, tensor in zip(self._parameters, self._averages, strict=True)
            }
            for number, average in enumerate(self._names)
        }

    def require(self, stored: Mapping[str, object]) -> None:
        """Check that training can continue with the averages of a checkpoint. FractalError: one of
        the recipe's decays is missing. One average of an earlier version has no decay in its name;
        it is taken for that of a recipe with one decay."""
        missing = [] if self._is_unnamed(stored) else [n for n in self._names if n not in stored]
        if missing:
            raise FractalError(
                f"ema_decays in the recipe needs the moving averages {' and '.join(missing)} of "
                f"the weights, but the checkpoint has {' and '.join(stored) or 'none'}: start from "
                f"the beginning, or remove these decays from ema_decays"
            )

    @torch.no_grad()
    def load(self, stored: Mapping[str, Mapping[str, Tensor]], *, is_first: bool) -> None:
        """Continue with the averages of a checkpoint. `is_first`: no update was made before the
        checkpoint was written. FractalError: see `require`."""
        self.require(stored)
        for average, tensors in self.state().items():
            source = stored[EMA if self._is_unnamed(stored) else average]
            for name, tensor in tensors.items():
                tensor.copy_(source[name])
        self._is_first = is_first

    def _is_unnamed(self, stored: Mapping[str, object]) -> bool:
        return len(self._names) == 1 and list(stored) == [EMA]

    @torch.no_grad()
    def _copy_weights(self) -> None:
        for averages, weight in zip(self._averages, self._weights, strict=True):
            averages.copy_(weight)
