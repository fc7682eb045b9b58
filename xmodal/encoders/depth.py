"""How deep in its tower each parameter lies, from the input up: for locking all but the last layers, and for learning
rates that fall from layer to layer."""

from __future__ import annotations

from torch import nn


def depths(tower: nn.Module) -> tuple[dict[str, int], int]:
    """Names of parameters -> 0 for what comes before the layers, 1 … n for these, n + 1 for what comes after; and n.

    Layers are the blocks in the outermost lists and sequences, in the order in which the tower defines them: those of a
    transformer, of a ResNet's stages. A block has several modules with weights; convolutions and the like by themselves
    count only in a tower that has no blocks. A parameter beside the layers that projects (open_clip's `proj`) comes
    after them, others (a class token, positions) before, and so do embeddings, wherever they are defined: MPNet's and
    DeBERTa's of relative positions come last, and every layer uses them.
    """
    places, layers = _places(tower)
    found = {}
    for name, _ in tower.named_parameters():
        prefix = max((p for p in places if name.startswith(p)), key=len, default="")
        layer, before = places.get(prefix, (0, 0))
        if layer:
            found[name] = layer
        elif not prefix or ("." not in name.removeprefix(prefix) and _owns_layers(prefix, places)):
            found[name] = layers + 1 if "proj" in name.rpartition(".")[2] else 0
        else:
            found[name] = layers + 1 if before == layers else before
    return found, layers


def blocks(towers: nn.Module) -> list[nn.Module]:
    """The layers of a tower, or of several, from the input up."""
    return [towers.get_submodule(path.rstrip(".")) for path, (layer, _) in _places(towers)[0].items() if layer]


def _places(tower: nn.Module) -> tuple[dict[str, tuple[int, int]], int]:
    """Prefixes of parameters -> which layer, after how many layers if it is none; and how many there are."""
    places: dict[str, tuple[int, int]] = {}

    def walk(module: nn.Module, prefix: str, count: int, size: int) -> int:
        for name, child in module.named_children():
            path = f"{prefix}{name}."
            if _is_list(child):
                for number, layer in child.named_children():
                    count += (block := _weighted(layer) >= size)
                    places[f"{path}{number}."] = (count, 0) if block else (0, count)
            else:
                places[path] = (0, 0 if isinstance(child, nn.Embedding) else count)
                count = walk(child, path, count, size)
        return count

    layers = walk(tower, "", 0, 2) or walk(tower, "", 0, 1)
    return places, layers


def _owns_layers(prefix: str, places: dict[str, tuple[int, int]]) -> bool:
    return any(path.startswith(prefix) and layer for path, (layer, _) in places.items())


def _is_list(module: nn.Module) -> bool:
    """A list or sequence of several modules; of one alone if it is numbered, for what has a name is a part."""
    names = [name for name, _ in module.named_children()]
    return isinstance(module, nn.ModuleList | nn.Sequential) and (len(names) > 1 or names == ["0"])


def _weighted(module: nn.Module) -> int:
    """How many modules of a module, itself among them, have parameters of their own."""
    return sum(1 for m in module.modules() if any(True for _ in m.parameters(recurse=False)))
