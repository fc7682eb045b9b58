"""The maths: pure functions of representations, exact over the processes in scope."""

from xmodal.objectives.info_nce import clip_loss, info_nce_floor
from xmodal.objectives.siglip import siglip_loss

__all__ = ["clip_loss", "info_nce_floor", "siglip_loss"]
