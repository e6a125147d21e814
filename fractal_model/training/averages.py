"""Exponential moving averages of the weights, with several decays at once.

Decided here: an average is updated as torch's `AveragedModel` does it, to the bit: the first update
copies the weights, and each later one is `torch.lerp`. One call of `torch._foreach_lerp_` updates
all tensors of an average. `AveragedModel` itself takes several times as long for small models.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from fractal_model.common.errors import FractalError
from fractal_model.config.weights import EMA, average_name


class MovingAverages:
    """Moving averages of a model's parameters, one for each of `decays`, on the model's device."""

    def __init__(self, model: nn.Module, decays: Sequence[float]) -> None:
        self._decays = {average_name(decay): decay for decay in decays}
        named = dict(model.named_parameters())
        self._names = list(named)
        self._weights = [parameter.detach() for parameter in named.values()]
        self._averages = {name: [w.clone() for w in self._weights] for name in self._decays}
        self._is_first = True

    @torch.no_grad()
    def update(self) -> None:
        """Add the model's current weights to each average; the first update copies them."""
        if self._is_first:
            self._copy_weights()
        else:
            for name, decay in self._decays.items():
                torch._foreach_lerp_(self._averages[name], self._weights, 1 - decay)
        self._is_first = False

    def reset(self) -> None:
        """Return to the state before the first update. Call it after the model's own reset."""
        self._copy_weights()
        self._is_first = True

    def state(self) -> dict[str, dict[str, Tensor]]:
        """The averages by name, such as `ema-0.999`, each as tensors by the parameter's name."""
        return {
            name: dict(zip(self._names, tensors, strict=True))
            for name, tensors in self._averages.items()
        }

    def require(self, stored: Mapping[str, object]) -> None:
        """Check that training can continue with the averages of a checkpoint. FractalError: one of
        the recipe's decays is missing. One average of an earlier version has no decay in its name;
        it is taken for that of a recipe with one decay."""
        missing = [] if self._is_unnamed(stored) else [n for n in self._decays if n not in stored]
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
        for name, tensors in self._averages.items():
            source = stored[EMA if self._is_unnamed(stored) else name]
            for parameter, tensor in zip(self._names, tensors, strict=True):
                tensor.copy_(source[parameter])
        self._is_first = is_first

    def _is_unnamed(self, stored: Mapping[str, object]) -> bool:
        return len(self._decays) == 1 and list(stored) == [EMA]

    @torch.no_grad()
    def _copy_weights(self) -> None:
        for tensors in self._averages.values():
            torch._foreach_copy_(tensors, self._weights)
