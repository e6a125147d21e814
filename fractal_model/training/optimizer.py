"""The optimiser of a recipe: AdamW alone, or Muon and AdamW for different parameters.

Decided here: Muon (Jordan et al. 2024) makes the update of a matrix nearly orthogonal, which suits
hidden layers. It gets the weight matrices of all transformer blocks. Embeddings, other projections,
biases and norms keep AdamW. Queries, keys and values are three matrices in one tensor, and each has
an update of its own. Muon's updates are scaled to the size of AdamW's (Liu et al. 2025, "Muon is
scalable for LLM training"), so both share learning rate and weight decay. Every rank computes the
whole update from the same gradients, so all ranks keep equal weights.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fractal_model.common.errors import FractalError
from fractal_model.config.training import TrainingConfig
from fractal_model.model.blocks import Block

_MUON, _ADAMW = "muon", "adamw"


class _AdamW(torch.optim.AdamW):
    """AdamW on one pass over all parameters, which can leave them as they are."""

    found_inf: Tensor | None = None
    """If 1, a step changes nothing. torch's gradient scaler uses it in the same way."""


class MuonAndAdamW:
    """Muon for the weight matrices of a model's blocks, and AdamW for its other parameters. It has
    the methods of a torch optimiser that training uses."""

    def __init__(self, model: nn.Module, recipe: TrainingConfig) -> None:
        # Muon updates views of the weights: one for each matrix in a tensor.
        self._views: list[tuple[Tensor, tuple[Tensor, ...]]] = [
            (weight, weight.detach().chunk(matrices)) for weight, matrices in _hidden_weights(model)
        ]
        self._muon = torch.optim.Muon(
            [view for _, views in self._views for view in views],
            lr=recipe.peak_learning_rate,
            weight_decay=recipe.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        )
        hidden = {id(weight) for weight, _ in self._views}
        others = ((name, p) for name, p in model.named_parameters() if id(p) not in hidden)
        self._adamw = _adamw(others, recipe)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of both optimisers, in which training sets the learning rate."""
        return [*self._muon.param_groups, *self._adamw.param_groups]

    def step(self) -> None:
        """Update all parameters from their gradients."""
        for weight, views in self._views:
            assert weight.grad is not None
            for view, gradient in zip(views, weight.grad.chunk(len(views)), strict=True):
                view.grad = gradient
        self._muon.step()
        self._muon.zero_grad()  # The views would keep the gradients in memory.
        self._adamw.step()

    def state_dict(self) -> dict[str, Any]:
        return {_MUON: self._muon.state_dict(), _ADAMW: self._adamw.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._muon.load_state_dict(state[_MUON])
        self._adamw.load_state_dict(state[_ADAMW])


def update_if(is_finite: Tensor, optimizer: _AdamW | MuonAndAdamW) -> None:
    """Update all parameters if `is_finite`, a bool scalar on their device, is True. AdamW does not
    wait for its value, Muon does."""
    if isinstance(optimizer, _AdamW):
        optimizer.found_inf = (~is_finite).float()
        optimizer.step()
    elif is_finite:
        optimizer.step()


def new_optimizer(model: nn.Module, recipe: TrainingConfig) -> _AdamW | MuonAndAdamW:
    """Return the recipe's optimiser for a model, without state."""
    if recipe.optimizer == _MUON:
        return MuonAndAdamW(model, recipe)
    return _adamw(model.named_parameters(), recipe)


def require_state(state: dict[str, Any] | None, recipe: TrainingConfig) -> dict[str, Any]:
    """Return the optimiser state of a checkpoint, with which training continues. FractalError:
    there is none, or it belongs to another optimiser than the recipe's."""
    if state is None:
        raise FractalError(
            "training cannot continue from a checkpoint without optimiser state (it was "
            "imported): resume one that training saved, or start from the beginning"
        )
    stored = _MUON if _MUON in state else _ADAMW
    if stored != recipe.optimizer:
        raise FractalError(
            f"optimizer in the recipe is {recipe.optimizer}, but the checkpoint has the state of "
            f"{stored}: set optimizer to {stored}, or start from the beginning"
        )
    return state


def _hidden_weights(model: nn.Module) -> Iterator[tuple[Tensor, int]]:
    """Yield each weight of the linear layers in a model's blocks, and the number of matrices that
    it consists of: 3 for queries, keys and values, otherwise 1."""
    for block in model.modules():
        if isinstance(block, Block):
            for layer in block.modules():
                if isinstance(layer, nn.Linear):
                    yield layer.weight, 3 if layer is block.attention.qkv else 1


def _adamw(parameters: Iterator[tuple[str, nn.Parameter]], recipe: TrainingConfig) -> _AdamW:
    groups: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
    for name, parameter in parameters:
        is_bias = parameter.ndim <= 1 or ".biases." in name  # Pixel logits' biases are (1, V)
        groups[is_bias].append(parameter)
    decays = zip(groups, (recipe.weight_decay, 0.0), strict=True)
    options = [{"params": group, "weight_decay": decay} for group, decay in decays]
    return _AdamW(options, lr=recipe.peak_learning_rate, betas=recipe.betas, fused=True)
