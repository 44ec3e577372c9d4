"""LPIPS: a distance, computed as it is defined, from weights that are checked at the door."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reverie.errors import ReverieError
from reverie.nn import perceptual
from reverie.nn.perceptual import ALEXNET, SCALE, SHIFT, VGG16

KERNELS = {"AlexNet": (11, 5, 3, 3, 3), "VGG16": (3,) * 13}


def arrays(network, width=4, seed=0) -> dict[str, np.ndarray]:
    """Random weights of a network as narrow as can be, under torchvision's names."""
    rng, made, before, kernels = np.random.default_rng(seed), {}, 3, iter(KERNELS[network.name])
    for number, block in enumerate(network.blocks):
        for index, _, _ in block:
            side = next(kernels)
            made[f"features.{index}.weight"] = rng.normal(size=(width, before, side, side)) / side
            made[f"features.{index}.bias"] = rng.normal(size=width) / 4
            before = width
        made[f"lin{number}.model.1.weight"] = rng.uniform(0.1, 1, (1, width, 1, 1))
    return made


def written(folder, weights):
    path = folder / "lpips.npz"
    np.savez(path, **weights)
    perceptual.read.cache_clear()
    return str(path)


def pictures(seed, side=32):
    return jnp.asarray(np.random.default_rng(seed).uniform(size=(3, side, side, 3)), jnp.float32)


@pytest.mark.parametrize("network", [VGG16, ALEXNET], ids=lambda network: network.name)
def test_it_is_a_distance_that_teaches(network, tmp_path):
    measure = perceptual.read(written(tmp_path, arrays(network)))
    assert measure.network == network
    apart, a, b = jax.jit(lambda a, b: measure(a, b)), pictures(0), pictures(1)
    np.testing.assert_allclose(apart(a, a), np.zeros(3), atol=1e-12)
    np.testing.assert_allclose(apart(a, b), apart(b, a), rtol=1e-6)
    assert (apart(a, b) > 0).all() and (apart(a, a + 0.3 * (b - a)) < apart(a, b)).all()
    slope = jax.jit(jax.grad(lambda a: jnp.sum(measure(a, b))))
    assert np.isfinite(slope(a)).all() and (np.abs(slope(a)).max(axis=(1, 2, 3)) > 0).all()
    assert np.isfinite(slope(b)).all(), "nor is it broken where nothing is left to learn"
    assert np.isfinite(slope(jnp.zeros_like(a))).all()


def by_hand(weights, network, a, b, before_pool=False):
    """The definition in loops of numpy: windows, rectifier, unit features, weighted squares, mean."""

    def convolve(x, kernel, bias, stride, padding):
        side = kernel.shape[-1]
        x = np.pad(x, [(padding, padding), (padding, padding), (0, 0)])
        rows, columns = ((n - side) // stride + 1 for n in x.shape[:2])
        y = np.empty((rows, columns, len(kernel)))
        for i in range(rows):
            for j in range(columns):
                window = x[i * stride : i * stride + side, j * stride : j * stride + side]
                y[i, j] = np.einsum("hwc,ochw->o", window, kernel) + bias
        return np.maximum(y, 0)

    def pool(x, side):
        rows, columns = ((n - side) // 2 + 1 for n in x.shape[:2])
        return np.array(
            [[x[2 * i : 2 * i + side, 2 * j : 2 * j + side].max((0, 1)) for j in range(columns)] for i in range(rows)]
        )

    def features(x):
        x = (2 * np.asarray(x, np.float64) - 1 - SHIFT) / SCALE
        for number, block in enumerate(network.blocks):
            x = pool(x, network.pool) if 0 < number <= network.pools else x
            for index, stride, padding in block:
                x = convolve(x, weights[f"features.{index}.weight"], weights[f"features.{index}.bias"], stride, padding)
            yield x / (np.sqrt((x**2).sum(-1, keepdims=True)) + 1e-10)

    heads = [weights[f"lin{n}.model.1.weight"].reshape(-1) for n in range(len(network.blocks))]
    return sum(np.mean((x - y) ** 2 @ head) for head, x, y in zip(heads, features(a), features(b), strict=True))


@pytest.mark.parametrize("network", [VGG16, ALEXNET], ids=lambda network: network.name)
def test_it_is_what_loops_say(network, tmp_path):
    weights = arrays(network, width=3)
    measure, a, b = perceptual.read(written(tmp_path, weights)), pictures(0)[:1], pictures(1)[:1]
    np.testing.assert_allclose(measure(a, b)[0], by_hand(weights, network, a[0], b[0]), rtol=1e-4)
    wrong = measure._replace(kernels={i: kernel[::-1] for i, kernel in measure.kernels.items()})  # planted: upside down
    with pytest.raises(AssertionError):
        np.testing.assert_allclose(wrong(a, b)[0], by_hand(weights, network, a[0], b[0]), rtol=1e-4)


def without(name):
    return lambda weights: weights.pop(name)


def shaped(name, *shape):
    return lambda weights: weights.update({name: np.zeros(shape)})


@pytest.mark.parametrize(
    "spoil, says",
    [
        (without("features.0.bias"), "'features.0.bias' of VGG16 is missing"),
        (without("lin4.model.1.weight"), "'lin4.model.1.weight' of VGG16 is missing"),
        (without("features.2.weight"), "'features.3.weight' of AlexNet is missing"),
        (shaped("features.5.weight", 4, 5, 3, 3), "'features.5.weight' has shape"),
        (shaped("lin1.model.1.weight", 4), "'lin1.model.1.weight' has shape"),
    ],
)
def test_weights_that_are_not_whole_are_refused(spoil, says, tmp_path):
    weights = arrays(VGG16)
    spoil(weights)
    with pytest.raises(ReverieError, match=says) as error:
        perceptual.read(written(tmp_path, weights))
    assert "\n" not in str(error.value)


def test_what_is_no_file_of_weights_is_refused(tmp_path):
    with pytest.raises(ReverieError, match="there are no LPIPS weights at"):
        perceptual.read(str(tmp_path / "none.npz"))
    (tmp_path / "words.npz").write_text("these are words")
    np.savez(tmp_path / "objects.npz", **{"features.0.weight": np.array([{}], object)})
    np.save(tmp_path / "one.npy", np.zeros(3))
    for name in ("words.npz", "objects.npz", "one.npy", "."):
        with pytest.raises(ReverieError, match="holds no LPIPS weights"):
            perceptual.read(str(tmp_path / name))


def test_pictures_too_small_are_refused(tmp_path):
    with pytest.raises(ReverieError, match="frames of 8x8 are too small for LPIPS by VGG16"):
        perceptual.read(written(tmp_path, arrays(VGG16)))(pictures(0, 8), pictures(1, 8))
