"""Noise: Gaussian, shot (Poisson), impulse (salt and pepper), speckle."""

import functools

import numpy as np

from moat.data.corruptions.draws import Draws
from moat.data.corruptions.pixels import to_bytes

# Each of the 256 levels has 2**14 quantiles of the Poisson distribution.
_QUANTILE_BITS = 14


def gaussian_noise(images: np.ndarray, deviation: float, draws: Draws) -> np.ndarray:
    """x + deviation * N(0, 1)."""
    noise = draws.normal(images.shape[1:])
    noise *= np.float32(255 * deviation)
    noise += images
    return to_bytes(noise)


def speckle_noise(images: np.ndarray, deviation: float, draws: Draws) -> np.ndarray:
    """x + x * deviation * N(0, 1)."""
    noise = draws.normal(images.shape[1:])
    noise *= np.float32(deviation)
    noise += 1
    noise *= images
    return to_bytes(noise)


def shot_noise(images: np.ndarray, photons: float, draws: Draws) -> np.ndarray:
    """Poisson(x * photons) / photons."""
    place = (draws.uint16(images.shape[1:]) >> np.uint16(16 - _QUANTILE_BITS)).astype(np.int32)
    place |= images.astype(np.int32) << _QUANTILE_BITS
    return _poisson_quantiles(photons).take(place)


@functools.lru_cache(maxsize=10)
def _poisson_quantiles(photons: float) -> np.ndarray:
    """For each level the noisy levels at equidistant quantiles, uint8 (256 * 2**_QUANTILE_BITS,)."""
    from scipy.stats import poisson

    places = 2**_QUANTILE_BITS
    levels = np.arange(256) / 255 * photons
    counts = np.arange(int(photons + 12 * np.sqrt(photons) + 20))
    output = (np.clip(counts / photons, 0, 1) * 255).astype(np.uint8)
    ends = np.rint(poisson.cdf(counts, levels[:, None]) * places).astype(np.int64)
    return np.concatenate([np.repeat(output, np.diff(row, prepend=0)) for row in ends])


def impulse_noise(images: np.ndarray, amount: float, draws: Draws) -> np.ndarray:
    """Replace a fraction ``amount`` of the values, half of them by 0 and half by 255."""
    place = draws.uint16(images.shape[1:])
    half = round(amount * 32768)
    salted = images | -(place >= 65536 - half).view(np.int8).view(np.uint8)
    return salted & -(place >= half).view(np.int8).view(np.uint8)


CORRUPTIONS = {
    "gaussian_noise": gaussian_noise,
    "shot_noise": shot_noise,
    "impulse_noise": impulse_noise,
    "speckle_noise": speckle_noise,
}
