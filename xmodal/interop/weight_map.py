"""Weights of one library under the names and in the shapes of another: a table of rules, read in either direction."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from xmodal.errors import InputError

State = dict[str, Tensor]
Names = tuple[tuple[str, int], ...]
How = Literal["as it is", "transposed", "one row"]


@dataclass(frozen=True)
class Rule:
    """Tensors that hold the same numbers on both sides.

    left, right: names, `#` standing for a layer's number, each with its share of the rows: what is one tensor on one
    side (an attention's input projection) may be three on the other.
    how: what the right side is to the left: the same, its transpose, or the one row that it holds.
    """

    left: Names
    right: Names
    how: How = "as it is"


def same(left: str, right: str) -> Rule:
    return Rule(((left, 1),), ((right, 1),))


def transposed(left: str, right: str) -> Rule:
    return Rule(((left, 1),), ((right, 1),), "transposed")


def one_row(left: str, right: str) -> Rule:
    """left: (1, …); right: (…)."""
    return Rule(((left, 1),), ((right, 1),), "one row")


def layer(left: str, right: str, *names: str) -> list[Rule]:
    """Weights and biases below two prefixes; names: "left right" or one for both."""
    pairs = [(name.split()[0], name.split()[-1]) for name in names]
    return [same(f"{left}{a}.{kind}", f"{right}{b}.{kind}") for a, b in pairs for kind in ("weight", "bias")]


def stacked(left: Sequence[tuple[str, int]], right: Sequence[tuple[str, int]]) -> list[Rule]:
    """Weights and biases whose rows, one below the other, are the same; names up to `weight` and `bias`."""
    return [
        Rule(tuple((a + kind, n) for a, n in left), tuple((b + kind, n) for b, n in right))
        for kind in ("weight", "bias")
    ]


def translate(state: State, rules: Iterable[Rule], to: Literal["left", "right"]) -> State:
    """Every tensor of a state under its names on the other side.

    Raises InputError for a tensor that the rules want and the state lacks, and for one that no rule speaks of.
    """
    rest = dict(state)
    result: State = {}
    for rule in rules:
        source, target = (rule.right, rule.left) if to == "left" else (rule.left, rule.right)
        for number in _numbers(source[0][0], state):
            names = [name.replace("#", number) for name, _ in source]
            if missing := [name for name in names if name not in rest]:
                raise InputError(f"The weights lack {missing[0]!r}, so they are of another architecture.")
            tensors = [rest.pop(name) for name in names]
            whole = _turned(tensors[0] if len(tensors) == 1 else torch.cat(tensors), rule.how, to)
            for (name, _), part in zip(target, _shared(whole, [share for _, share in target]), strict=True):
                result[name.replace("#", number)] = part
    if rest:
        raise InputError(f"{len(rest)} tensors have no place in the other architecture, such as {min(rest)!r}.")
    return result


def _numbers(name: str, state: State) -> list[str]:
    """The layers of a state that `#` stands for, by what any of their tensors is called; [""] for a name without it."""
    if "#" not in name:
        return [""]
    layers = re.compile(re.escape(name.partition("#")[0]) + r"(\d+)\.")
    return list(dict.fromkeys(found[1] for key in state if (found := layers.match(key))))


def _shared(whole: Tensor, shares: list[int]) -> Sequence[Tensor]:
    if len(shares) == 1:
        return [whole]
    return whole.split([len(whole) // sum(shares) * share for share in shares])


def _turned(tensor: Tensor, how: How, to: str) -> Tensor:
    if how == "transposed":
        return tensor.T
    if how == "one row":
        return tensor[0] if to == "right" else tensor[None]
    return tensor
