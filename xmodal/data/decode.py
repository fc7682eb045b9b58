import numpy
from PIL import Image
def decode(x):
    return Image.fromarray(x).convert("RGB") if isinstance(x,numpy.ndarray) else x
