"""The maths: pure functions of representations, exact over the processes in scope."""

from xmodal.objectives.barlow_twins import barlow_twins_loss
from xmodal.objectives.byol import byol_loss
from xmodal.objectives.clip import clip_loss, info_nce_floor
from xmodal.objectives.cpc import cpc_loss
from xmodal.objectives.dcl import dcl_loss
from xmodal.objectives.distill import distill_loss
from xmodal.objectives.guided_info_nce import guided_info_nce_loss
from xmodal.objectives.hard_nt_xent import hard_nt_xent_loss
from xmodal.objectives.info_nce import info_nce_loss, simcse_loss
from xmodal.objectives.mined_pairs import mined_pairs
from xmodal.objectives.moco import moco_loss
from xmodal.objectives.n_pair import n_pair_loss
from xmodal.objectives.nt_xent import nt_xent_loss
from xmodal.objectives.pairwise import logistic_loss, margin_loss
from xmodal.objectives.siglip import siglip_loss
from xmodal.objectives.sup_con import sup_con_loss
from xmodal.objectives.swav import sinkhorn, swav_loss
from xmodal.objectives.triplet import triplet_loss
from xmodal.objectives.without_positive import rows_without_positive

__all__ = [
    "barlow_twins_loss",
    "byol_loss",
    "clip_loss",
    "cpc_loss",
    "dcl_loss",
    "distill_loss",
    "guided_info_nce_loss",
    "hard_nt_xent_loss",
    "info_nce_floor",
    "info_nce_loss",
    "logistic_loss",
    "margin_loss",
    "mined_pairs",
    "moco_loss",
    "n_pair_loss",
    "nt_xent_loss",
    "rows_without_positive",
    "siglip_loss",
    "simcse_loss",
    "sinkhorn",
    "sup_con_loss",
    "swav_loss",
    "triplet_loss",
]
