"""The published CIFAR-10-C recipe, one image at a time, as a peer for benchmarks/corruptions.py.

Written from the formulas (methods: Hendrycks and Dietterich, ICLR 2019) with the libraries that the published generator
calls. A Pillow image and a severity go in, levels 0 to 255 come out.
"""

import functools
import importlib.util
import io
import math
from pathlib import Path

import numpy as np
from PIL import Image

from moat.data.corruptions.severities import CIFAR10_C


def frost_photographs() -> list[Path]:
    """The five photographs that the published generator uses, out of the package imagecorruptions; or none."""
    spec = importlib.util.find_spec("imagecorruptions")
    folder = Path(spec.origin).parent / "frost" if spec else Path("none")
    return sorted(folder.glob("frost*"))[:5]


def with_parameters(function):
    """The function with the parameters of a severity, as the published ones look them up."""

    @functools.wraps(function)
    def call(image, severity):
        return function(image, CIFAR10_C[function.__name__][severity - 1])

    return call


def unit(image) -> np.ndarray:
    return np.array(image) / 255.0


def finished(x: np.ndarray) -> np.ndarray:
    return np.clip(x, 0, 1) * 255


def smooth(x: np.ndarray, sigma: float) -> np.ndarray:
    from skimage.filters import gaussian

    return gaussian(x, sigma=sigma, channel_axis=-1)


@with_parameters
def gaussian_noise(image, c):
    x = unit(image)
    return finished(x + np.random.normal(size=x.shape, scale=c))


@with_parameters
def shot_noise(image, c):
    return finished(np.random.poisson(unit(image) * c) / c)


@with_parameters
def impulse_noise(image, c):
    from skimage.util import random_noise

    return finished(random_noise(unit(image), mode="s&p", amount=c))


@with_parameters
def speckle_noise(image, c):
    x = unit(image)
    return finished(x + x * np.random.normal(size=x.shape, scale=c))


@with_parameters
def gaussian_blur(image, c):
    return finished(smooth(unit(image), c))


@with_parameters
def glass_blur(image, c):
    sigma, reach, passes = c
    x = np.uint8(smooth(unit(image), sigma) * 255)
    for _ in range(passes):
        for row in range(32 - reach, reach, -1):
            for column in range(32 - reach, reach, -1):
                right, down = np.random.randint(-reach, reach, size=(2,))
                x[row, column] = x[row + down, column + right]
    return finished(smooth(x / 255.0, sigma))


@with_parameters
def defocus_blur(image, c):
    import cv2

    radius, smoothing = c
    line = np.arange(-8, 9)
    disk = np.array(line[:, None] ** 2 + line**2 <= radius**2, dtype=np.float32)
    kernel = cv2.GaussianBlur(disk / disk.sum(), ksize=(3, 3), sigmaX=smoothing)
    x = unit(image)
    return finished(np.stack([cv2.filter2D(x[:, :, channel], -1, kernel) for channel in range(3)], axis=-1))


def along_a_path(x: np.ndarray, radius: float, sigma: float, angle: float) -> np.ndarray:
    """ImageMagick's motion blur as a sum of shifted images, in numpy."""
    width = 2 * math.ceil(radius) + 1
    weights = np.exp(-(np.arange(width) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    total = np.zeros(x.shape, np.float32)
    padded = np.pad(x, [(width, width), (width, width)] + [(0, 0)] * (x.ndim - 2), mode="edge")
    size = len(x)
    for step, weight in enumerate(weights):
        down, right = (math.ceil(step * f(math.radians(angle)) - 0.5) for f in (math.sin, math.cos))
        total += weight * padded[width + down : width + down + size, width + right : width + right + size]
    return np.round(total)


@with_parameters
def motion_blur(image, c):
    return along_a_path(np.array(image), *c, np.random.uniform(-45, 45))


def clipped_zoom(x: np.ndarray, factor: float) -> np.ndarray:
    from scipy.ndimage import zoom

    size = len(x)
    cut = math.ceil(size / factor)
    top = (size - cut) // 2
    x = zoom(x[top : top + cut, top : top + cut], (factor, factor, 1), order=1)
    trim = (len(x) - size) // 2
    return x[trim : trim + size, trim : trim + size]


@with_parameters
def zoom_blur(image, c):
    x = unit(image).astype(np.float32)
    factors = np.arange(1, *c)
    total = np.zeros_like(x)
    for factor in factors:
        total += clipped_zoom(x, factor)
    return finished((x + total) / (len(factors) + 1))


@with_parameters
def snow(image, c):
    import cv2

    x = unit(image).astype(np.float32)
    layer = clipped_zoom(np.random.normal(size=x.shape[:2], loc=c[0], scale=c[1])[..., None], c[2])
    layer[layer < c[3]] = 0
    layer = (np.clip(layer.squeeze(), 0, 1) * 255).astype(np.uint8)
    layer = (along_a_path(layer, c[4], c[5], np.random.uniform(-135, -45)) / 255)[..., None]
    grey = cv2.cvtColor(x, cv2.COLOR_RGB2GRAY)[..., None]
    x = c[6] * x + (1 - c[6]) * np.maximum(x, grey * 1.5 + 0.5)
    return finished(x + layer + np.rot90(layer, k=2))


@with_parameters
def frost(image, c):
    import cv2

    photograph = cv2.imread(str(_FROST[np.random.randint(len(_FROST))]))
    photograph = cv2.resize(photograph, (0, 0), fx=c[2], fy=c[2])
    top, left = (np.random.randint(0, side - 32) for side in photograph.shape[:2])
    piece = photograph[top : top + 32, left : left + 32][..., ::-1]
    return np.clip(c[0] * np.array(image) + c[1] * piece, 0, 255)


def plasma(size: int, decay: float) -> np.ndarray:
    grid = np.zeros((size, size))
    step, wibble = size, 100.0
    while step >= 2:
        half = step // 2

        def wibbled(sums, wibble=wibble):
            return sums / 4 + wibble * np.random.uniform(-wibble, wibble, sums.shape)

        corners = grid[::step, ::step]
        sums = corners + np.roll(corners, -1, axis=0)
        grid[half::step, half::step] = wibbled(sums + np.roll(sums, -1, axis=1))
        middles = grid[half::step, half::step]
        sums = middles + np.roll(middles, 1, axis=0) + corners + np.roll(corners, -1, axis=1)
        grid[::step, half::step] = wibbled(sums)
        sums = middles + np.roll(middles, 1, axis=1) + corners + np.roll(corners, -1, axis=0)
        grid[half::step, ::step] = wibbled(sums)
        step, wibble = half, wibble / decay
    grid -= grid.min()
    return grid / grid.max()


@with_parameters
def fog(image, c):
    x = unit(image)
    brightest = x.max()
    return finished((x + c[0] * plasma(32, c[1])[..., None]) * brightest / (brightest + c[0]))


@with_parameters
def brightness(image, c):
    from skimage.color import hsv2rgb, rgb2hsv

    x = rgb2hsv(unit(image))
    x[:, :, 2] = np.clip(x[:, :, 2] + c, 0, 1)
    return finished(hsv2rgb(x))


@with_parameters
def saturate(image, c):
    from skimage.color import hsv2rgb, rgb2hsv

    x = rgb2hsv(unit(image))
    x[:, :, 1] = np.clip(x[:, :, 1] * c[0] + c[1], 0, 1)
    return finished(hsv2rgb(x))


@with_parameters
def contrast(image, c):
    x = unit(image)
    means = np.mean(x, axis=(0, 1), keepdims=True)
    return finished((x - means) * c + means)


@with_parameters
def elastic_transform(image, c):
    import cv2
    from scipy.ndimage import map_coordinates
    from skimage.filters import gaussian

    displacement, smoothing, corner = (32 * length for length in c[:3])
    x = unit(image).astype(np.float32)
    points = np.float32([[26, 26], [26, 6], [6, 6]])
    moved = points + np.random.uniform(-corner, corner, size=points.shape).astype(np.float32)
    x = cv2.warpAffine(x, cv2.getAffineTransform(points, moved), (32, 32), borderMode=cv2.BORDER_REFLECT_101)
    field = [
        (gaussian(np.random.uniform(-1, 1, size=(32, 32)), smoothing, mode="reflect", truncate=3) * displacement)[
            ..., None
        ]
        for _ in range(2)
    ]
    columns, rows, channels = np.meshgrid(np.arange(32), np.arange(32), np.arange(3))
    places = [np.reshape(each, (-1, 1)) for each in (rows + field[0], columns + field[1], channels)]
    return finished(map_coordinates(x, places, order=1, mode="reflect").reshape(x.shape))


@with_parameters
def pixelate(image, c):
    small = image.resize((int(32 * c), int(32 * c)), Image.Resampling.BOX)
    return small.resize((32, 32), Image.Resampling.BOX)


@with_parameters
def jpeg_compression(image, c):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=c)
    return Image.open(file)


@with_parameters
def spatter(image, c):
    from skimage.filters import gaussian

    x = unit(image).astype(np.float32)
    layer = gaussian(np.random.normal(size=x.shape[:2], loc=c[0], scale=c[1]), sigma=c[2])
    layer[layer < c[3]] = 0
    if c[5] == "mud":
        cover = gaussian(np.where(layer > c[3], 1, 0).astype(np.float32), sigma=c[4])
        cover[cover < 0.8] = 0
        cover = cover[..., None]
        return finished(x * (1 - cover) + cover * np.array([63, 42, 20]) / 255)
    shading = lit(np.uint8(layer * 255))
    return finished(x + (c[4] * shading / max(shading.max(), 1))[..., None] * np.array([175, 238, 238]) / 255)


def lit(water: np.ndarray) -> np.ndarray:
    import cv2

    distance = cv2.distanceTransform(255 - cv2.Canny(water, 50, 150), cv2.DIST_L2, 5)
    distance = cv2.threshold(distance, 20, 20, cv2.THRESH_TRUNC)[1]
    distance = cv2.equalizeHist(cv2.blur(distance, (3, 3)).astype(np.uint8))
    relief = cv2.filter2D(distance, cv2.CV_8U, np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]]))
    return water * cv2.blur(relief, (3, 3)).astype(np.float32)


_FROST = frost_photographs()
RECIPE = {name: globals()[name] for name in CIFAR10_C if name != "frost" or _FROST}
