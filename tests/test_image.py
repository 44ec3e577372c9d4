"""PSNR and SSIM against the definition and an independent reference."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from reverie.errors import ReverieError
from reverie.nn.image import LEAST_ERROR, SIGMA, WINDOW, psnr, ssim


def noisy(seed: int, shape=(2, 3, 20, 17, 3), amount: int = 30) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    smooth = rng.integers(0, 256, (*shape[:-3], 1, 1, 3)) + np.arange(shape[-2])[:, None] * 3
    truth = np.clip(smooth + rng.integers(-20, 20, shape), 0, 255).astype(np.uint8)
    return truth, np.clip(truth + rng.integers(-amount, amount + 1, shape), 0, 255).astype(np.uint8)


def slow_ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Wang et al. 2004 by the letter for uint8 (H, W, C): one window at a time, float64, centred moments."""
    y, x = np.mgrid[-5:6, -5:6]
    weights = np.exp(-(x**2 + y**2) / (2 * 1.5**2))
    weights /= weights.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values = []
    for top in range(a.shape[0] - 10):
        for left in range(a.shape[1] - 10):
            for channel in range(a.shape[2]):
                p = a[top : top + 11, left : left + 11, channel].astype(np.float64)
                q = b[top : top + 11, left : left + 11, channel].astype(np.float64)
                mp, mq = (weights * p).sum(), (weights * q).sum()
                vp, vq = (weights * (p - mp) ** 2).sum(), (weights * (q - mq) ** 2).sum()
                cov = (weights * (p - mp) * (q - mq)).sum()
                values.append((2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
    return float(np.mean(values))


@pytest.mark.parametrize("amount", [1, 10, 80])
def test_ssim_is_the_papers(amount):
    truth, other = noisy(amount, amount=amount)
    expected = [[slow_ssim(a, b) for a, b in zip(*row, strict=True)] for row in zip(truth, other, strict=True)]
    np.testing.assert_allclose(ssim(truth, other), expected, atol=2e-5)


def test_ssim_identities():
    truth, other = noisy(0)
    np.testing.assert_allclose(ssim(truth, truth), 1, atol=1e-6)
    np.testing.assert_allclose(ssim(truth, other), ssim(other, truth), atol=1e-6)
    assert (np.asarray(ssim(truth, 255 - truth)) < 0.5).all()
    flat = np.full((12, 12, 1), 100, np.uint8)  # no structure left: only light counts, in closed form
    p, q, c1 = 100 / 255, 150 / 255, 1e-4
    np.testing.assert_allclose(ssim(flat, flat + 50), (2 * p * q + c1) / (p * p + q * q + c1), atol=5e-5)
    with pytest.raises(ValueError, match=str(WINDOW)):
        ssim(truth[..., :10, :, :], truth[..., :10, :, :])
    assert SIGMA == 1.5


def test_psnr_is_the_definition():
    truth, other = noisy(1)
    mse = np.square(truth / 255 - other / 255).mean((-3, -2, -1))
    np.testing.assert_allclose(psnr(truth, other), 10 * np.log10(1 / mse), rtol=1e-5)
    shifted = np.full((4, 4, 3), 90, np.uint8)
    np.testing.assert_allclose(psnr(shifted, shifted + 10), 20 * math.log10(255 / 10), rtol=1e-5)


def test_psnr_of_equal_frames_is_finite_and_the_most():
    truth, other = noisy(2, amount=1)
    most = -10 * math.log10(LEAST_ERROR)
    np.testing.assert_allclose(psnr(truth, truth), most, rtol=1e-6)
    assert (np.asarray(psnr(truth, other)) < most).all()
    one = truth.copy()
    one[..., 0, 0, 0] ^= 255  # a single wrong pixel is not lost in the floor
    assert (np.asarray(psnr(truth, one)) < most - 1).all()


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_metrics_take_bytes_and_floats_jitted_or_not(metric):
    truth, other = noisy(3)
    expected = metric(truth, other)
    assert expected.shape == truth.shape[:-3] and expected.dtype == jnp.float32
    np.testing.assert_allclose(metric(np.float32(truth / 255), other), expected, rtol=1e-5)
    np.testing.assert_allclose(jax.jit(metric)(truth, other), expected, rtol=1e-5)
    np.testing.assert_allclose(metric(truth[0, 1], other[0, 1]), expected[0, 1], rtol=1e-5)


def test_metrics_fall_with_noise():
    levels = [noisy(4, amount=amount) for amount in (2, 8, 32, 100)]
    for metric in (psnr, ssim):
        means = [float(metric(*pair).mean()) for pair in levels]
        assert means == sorted(means, reverse=True)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_pictures_of_another_scale_are_refused(metric):
    """Of int32 0..255 or of floats 0..255 every pixel above 1 would be white: a number, and wrong."""
    truth, other = noisy(5)
    wrong = [truth.astype(np.int32), truth.astype(np.int8), truth > 128, truth.astype(np.uint16)]
    for bad in wrong:
        for pair in ((bad, other), (other, bad)):
            with pytest.raises(ReverieError, match=f"uint8.*{bad.dtype}"):
                metric(*pair)
        with pytest.raises(ReverieError, match="uint8"):
            jax.jit(metric)(bad, other)
    for bad in (np.float32(truth), jnp.asarray(truth, jnp.float32), truth / 127.5 - 1):
        with pytest.raises(ReverieError, match="scale them"):
            metric(bad, other)
    loud = np.float32(truth) / 255 * 1.2 - 0.1  # a model's own picture may reach beyond: it is shown clipped
    np.testing.assert_array_equal(metric(loud, other), metric(np.clip(loud, 0, 1), other))
