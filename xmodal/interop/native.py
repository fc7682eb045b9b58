"""The weights of our towers under the names of the library they come from."""

from __future__ import annotations

from xmodal.encoders.two_tower import TwoTower
from xmodal.interop.weight_map import State


def open_clip_state(towers: TwoTower) -> State:
    """Towers of open_clip -> the names of its CustomTextCLIP, without the scale and the bias of the logits."""
    visual = {f"visual.{name}": tensor for name, tensor in towers.image.state_dict().items()}
    return visual | {f"text.{name}": tensor for name, tensor in towers.text.state_dict().items()}


def transformers_state(towers: TwoTower) -> State:
    """Towers of transformers -> the names of its CLIPModel or SiglipModel, without the scale and the bias."""
    return {**towers.image.state_dict(), **towers.text.state_dict()}
