"""LPIPS: the distance of two images in the features of a pretrained network (arXiv 1801.03924).

Nothing is downloaded. The user brings the weights: an .npz file with the arrays of torchvision's VGG16 or AlexNet and
of the ``lpips`` package under their original names. With those installed, this writes it:

    features = {name: w for name, w in torchvision.models.vgg16(weights="DEFAULT").state_dict().items()}
    heads = lpips.LPIPS(net="vgg").state_dict()
    np.savez("lpips.npz", **{name: w.numpy() for name, w in (features | heads).items() if name[:3] in ("fea", "lin")})

Shapes: B batch, H W C image.
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from reverie.bounded import read_npz
from reverie.errors import Damaged, ReverieError
from reverie.nn.quantise import unit

# The input normalisation of both networks, for pixels in -1..1 (LPIPS, its scaling layer).
SHIFT = np.array([-0.030, -0.088, -0.188], np.float32)
SCALE = np.array([0.458, 0.448, 0.450], np.float32)


@dataclass(frozen=True)
class Network:
    """Blocks of convolutions; the features after each block are compared.

    blocks: (index in torchvision's ``features``, stride, padding) of every convolution. Before blocks 1..``pools``
    there is a max-pooling of ``pool`` pixels with stride 2.
    """

    name: str
    blocks: tuple[tuple[tuple[int, int, int], ...], ...]
    pool: int
    pools: int


VGG16 = Network(
    "VGG16",
    tuple(tuple((i, 1, 1) for i in block) for block in ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))),
    pool=2,
    pools=4,
)
ALEXNET = Network("AlexNet", (((0, 4, 2),), ((3, 1, 2),), ((6, 1, 1),), ((8, 1, 1),), ((10, 1, 1),)), pool=3, pools=2)


class Perceptual(NamedTuple):
    """A network with its weights: (height, width, in, out) and (out,) by convolution, (C,) by block."""

    network: Network
    kernels: dict[int, np.ndarray]
    biases: dict[int, np.ndarray]
    heads: tuple[np.ndarray, ...]

    def __call__(self, a_BHWC: Array, b_BHWC: Array) -> Array:
        """Return the distance (B,) of images in 0..1, 0 for equal ones; ReverieError if they are too small."""
        distance = jnp.zeros(len(a_BHWC))
        for head, a, b in zip(self.heads, self._features(a_BHWC), self._features(b_BHWC), strict=True):
            error = jnp.square(unit(a) - unit(b))
            distance += jnp.mean(jnp.einsum("bhwc,c->bhw", error, jnp.asarray(head)), axis=(1, 2))
        return distance

    def _features(self, x_BHWC):
        network, size = self.network, x_BHWC.shape[1:3]
        x = (x_BHWC.astype(jnp.float32) * 2 - 1 - SHIFT.reshape(1, 1, 1, -1)) / SCALE.reshape(1, 1, 1, -1)
        for number, block in enumerate(network.blocks):
            if 0 < number <= network.pools:
                if min(x.shape[1:3]) < network.pool:
                    raise ReverieError(f"frames of {size[0]}x{size[1]} are too small for LPIPS by {network.name}.")
                x = nnx.max_pool(x, (network.pool, network.pool), (2, 2))
            for index, stride, padding in block:
                kernel, bias = jnp.asarray(self.kernels[index]), jnp.asarray(self.biases[index])
                x = jax.lax.conv_general_dilated(
                    x, kernel, (stride, stride), [(padding, padding)] * 2, dimension_numbers=("NHWC", "HWIO", "NHWC")
                )
                x = jax.nn.relu(x + bias.reshape(1, 1, 1, -1))
            yield x


@functools.lru_cache(maxsize=2)
def read(path: str) -> Perceptual:
    """Read a file of weights; ReverieError unless it is complete and fits one of the two networks."""
    try:
        found = read_npz(Path(path))
        arrays = {name: np.asarray(array, np.float32) for name, array in found.items() if name[:3] in ("fea", "lin")}
    except FileNotFoundError:
        says = f"there are no LPIPS weights at '{path}'; reverie/nn/perceptual.py says how to make them."
        raise ReverieError(says) from None
    except (OSError, ValueError, Damaged):
        raise ReverieError(f"'{path}' holds no LPIPS weights: it is not an .npz file of plain numbers.") from None
    network = VGG16 if "features.2.weight" in arrays else ALEXNET

    def array(name: str, *shape: int | None) -> np.ndarray:
        found = arrays.get(name)
        if found is None:
            raise ReverieError(f"'{path}' is not a file of LPIPS weights: '{name}' of {network.name} is missing.")
        if len(found.shape) != len(shape) or any(n not in (None, m) for n, m in zip(shape, found.shape, strict=True)):
            raise ReverieError(f"'{path}' is not a file of LPIPS weights: '{name}' has shape {found.shape}.")
        return found

    kernels, biases, heads, width = {}, {}, [], 3
    for number, block in enumerate(network.blocks):
        for index, _, _ in block:
            kernel = array(f"features.{index}.weight", None, width, None, None)
            width = len(kernel)
            kernels[index] = np.transpose(kernel, (2, 3, 1, 0))
            biases[index] = array(f"features.{index}.bias", width)
        heads.append(array(f"lin{number}.model.1.weight", 1, width, 1, 1).reshape(width))
    return Perceptual(network, kernels, biases, tuple(heads))
