"""The maths: pure functions of representations, exact over the processes in scope."""

from xmodal.objectives.clip import clip_loss, info_nce_floor
from xmodal.objectives.info_nce import info_nce_loss, simcse_loss
from xmodal.objectives.nt_xent import nt_xent_loss
from xmodal.objectives.siglip import siglip_loss
from xmodal.objectives.sup_con import sup_con_loss

__all__ = [
    "clip_loss",
    "info_nce_floor",
    "info_nce_loss",
    "nt_xent_loss",
    "siglip_loss",
    "simcse_loss",
    "sup_con_loss",
]
