"""An encoder of patches as one of pictures: the mean over a picture's patches, each of which it sees by itself.

van den Oord et al. 2018 (arXiv:1807.03748), section 3.2.
"""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor, nn

from xmodal.data.patches import cut, grey
from xmodal.encoders.image import ImageEncoder

M = TypeVar("M", bound=nn.Module)


def without_batch_norm(module: M) -> M:
    """The same module with GroupNorm over all channels and places in the place of every BatchNorm.

    With statistics of the batch a patch would know of those it is to predict. The paper has no normalisation at all
    in its network; Hénaff et al. 2020 (arXiv:1905.09272) put layer normalisation there, and so do we.
    """
    for name, child in module.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            setattr(module, name, nn.GroupNorm(1, child.num_features, child.eps))
        else:
            without_batch_norm(child)
    return module


class MeanOverPatches(nn.Module):
    """What evaluation sees of a picture: the mean of a network's features of its patches, grey and whole.

    mean, std: what pixels come normalised by.
    """

    def __init__(self, network: nn.Module, side: int, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        self.network, self.side = network, side
        self.register_buffer("mean", mean.clone(), persistent=False)
        self.register_buffer("std", std.clone(), persistent=False)

    mean: Tensor
    std: Tensor

    def forward(self, pixels: Tensor) -> Tensor:
        """(b, 3, h, h) -> (b, d)."""
        seen = (grey(pixels * self.std + self.mean) - self.mean) / self.std
        patches = cut(seen, self.side)
        return self.network(patches.flatten(0, 1)).unflatten(0, patches.shape[:2]).mean(1)


def mean_over_patches(encoder: ImageEncoder, side: int) -> ImageEncoder:
    """An encoder of whole pictures from one of patches, with the same weights."""
    image = MeanOverPatches(encoder.image, side, encoder.mean, encoder.std)
    described = {**encoder.description, "patches": side}
    whole = ImageEncoder(image, encoder.d, preparation=encoder.preparation, description=described)
    return whole.to(encoder.device).train(encoder.training)


def encoder_of_patches(encoder: ImageEncoder) -> ImageEncoder:
    """An encoder without BatchNorm; of one that is a mean over patches already, that of its patches."""
    if not isinstance(encoder.image, MeanOverPatches):
        return without_batch_norm(encoder)
    described = {name: value for name, value in encoder.description.items() if name != "patches"}
    return ImageEncoder(encoder.image.network, encoder.d, preparation=encoder.preparation, description=described)
