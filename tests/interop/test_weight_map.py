"""Weights keep their numbers under other names, in both directions; none is left out and none made up."""

from __future__ import annotations

import open_clip
import pytest
import small_models
import torch
import transformers
from small_models import CLIP, SIGLIP

from xmodal.errors import InputError
from xmodal.interop import clip, siglip
from xmodal.interop.weight_map import State, same, stacked, translate, transposed


def states(which: str) -> tuple[State, State, list]:
    """open_clip's tensors, those that transformers' model of the same sizes wants, and the rules."""
    small_models.register_timm()
    if which == "clip":
        left = open_clip.CustomTextCLIP(**CLIP)
        values = clip.transformers_config(left.visual, left.text)
        right, rules = transformers.CLIPModel(transformers.CLIPConfig(**values)), clip.RULES
    else:
        left = open_clip.CustomTextCLIP(**{k: v for k, v in SIGLIP.items() if k != "custom_text"})
        values = siglip.transformers_config(left.visual, left.text)
        right, rules = transformers.SiglipModel(transformers.SiglipConfig(**values)), siglip.RULES
    towers = [{n: t for n, t in m.state_dict().items() if not n.startswith("logit_")} for m in (left, right)]
    return towers[0], towers[1], rules


@pytest.mark.parametrize("which", ["clip", "siglip"])
def test_names_and_shapes_are_those_of_the_other_library_and_go_back(which: str) -> None:
    left, right, rules = states(which)
    there = translate(left, rules, "right")
    assert {name: t.shape for name, t in there.items()} == {name: t.shape for name, t in right.items()}
    back = translate(there, rules, "left")
    assert back.keys() == left.keys()
    assert all(torch.equal(back[name], left[name]) for name in left)
    assert {name: t.shape for name, t in translate(right, rules, "left").items()} == {
        name: t.shape for name, t in left.items()
    }


@pytest.mark.parametrize("which", ["clip", "siglip"])
def test_a_tensor_that_is_missing_or_too_many_is_named(which: str) -> None:
    left, right, rules = states(which)
    for state, to in ((left, "right"), (right, "left")):
        for name in state:
            with pytest.raises(InputError, match="lack") as caught:
                translate({n: t for n, t in state.items() if n != name}, rules, to)
            assert repr(name) in str(caught.value)
        with pytest.raises(InputError, match="1 tensors have no place.*'more.weight'"):
            translate({**state, "more.weight": torch.zeros(1)}, rules, to)


def test_rows_are_shared_out_in_their_order() -> None:
    rules = [*stacked([("#.a.", 1), ("#.b.", 2)], [("#.c_", 3)]), transposed("p", "q"), same("r", "r")]
    c, p = torch.arange(12.0).view(6, 2), torch.arange(6.0).view(2, 3)
    right = {"0.c_weight": c, "0.c_bias": c[:, 0], "q": p, "r": p}
    left = translate(right, rules, "left")
    assert torch.equal(left["0.a.weight"], c[:2])
    assert torch.equal(left["0.b.weight"], c[2:])
    assert torch.equal(left["p"], p.T)
    assert torch.equal(left["r"], p)
    assert all(torch.equal(t, right[n]) for n, t in translate(left, rules, "right").items())
