"""How deep in its tower each parameter lies, from the input up: for locking all but the last layers, and for learning
rates that fall from layer to layer."""

from __future__ import annotations

from torch import nn


def depths(tower: nn.Module) -> tuple[dict[str, int], int]:
    """Names of parameters -> 0 for what comes before the layers, 1 … n for these, n + 1 for what comes after; and n.

    Layers are the children of the outermost lists and sequences in the order in which the tower defines them: the
    blocks of a transformer, the stages of a ResNet. A parameter beside them that projects (open_clip's `proj`) comes
    after them, others (a class token, positions) before.
    """
    places: dict[str, tuple[int, int]] = {}  # prefix -> which layer, of how many so far

    def walk(module: nn.Module, prefix: str, count: int) -> int:
        for name, child in module.named_children():
            path = f"{prefix}{name}."
            if isinstance(child, nn.ModuleList | nn.Sequential) and len(child) > 1:
                for number, layer in child.named_children():
                    if any(True for _ in layer.parameters()):
                        count += 1
                        places[f"{path}{number}."] = (count, 0)
            else:
                places[path] = (0, count)
                count = walk(child, path, count)
        return count

    layers = walk(tower, "", 0)
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


def _owns_layers(prefix: str, places: dict[str, tuple[int, int]]) -> bool:
    return any(path.startswith(prefix) and layer for path, (layer, _) in places.items())
