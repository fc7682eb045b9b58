"""Weights between those a model began with and those it was trained to: WiSE-FT.

Wortsman et al. 2022, "Robust fine-tuning of zero-shot models" (arXiv:2109.01903).

What fine-tuning gains on its own data it may lose elsewhere; half-way often keeps most of both.
"""

from __future__ import annotations

from copy import deepcopy
from typing import TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)
State = dict[str, Tensor]


def state_of(module: nn.Module) -> State:
    """A copy of a module's weights."""
    return {name: weight.detach().clone() for name, weight in module.state_dict().items()}


@torch.no_grad()
def between(first: State, trained: M, alpha: float) -> M:
    """A copy of `trained` with (1 − alpha) · first + alpha · trained for weights; 1 gives `trained`, 0 the first.

    Raises ValueError where `first` is of another model.
    """
    module = deepcopy(trained)
    state = module.state_dict()
    if state.keys() != first.keys():
        raise ValueError(f"not of the same model: {sorted(state.keys() ^ first.keys())[:3]}")
    for name, weight in state.items():
        if weight.is_floating_point():
            weight.copy_(torch.lerp(first[name].to(weight.device), weight, alpha))
    return module
