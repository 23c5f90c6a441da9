"""The 19 corruptions: against formulas computed another way, against the published images, and as a contract."""

import colorsys
import io
import itertools
import subprocess
import sys
import tarfile

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from small_data import pixels

from moat.base.errors import ConfigError, DataError
from moat.data.corruptions import blur, corrupt, motion, spatter, weather
from moat.data.corruptions.draws import Draws
from moat.data.corruptions.severities import NAMES, PARAMETERS
from moat.data.pickles import load as load_pickle

DETERMINISTIC = (
    "defocus_blur",
    "zoom_blur",
    "brightness",
    "contrast",
    "pixelate",
    "jpeg_compression",
    "gaussian_blur",
    "saturate",
)
RANDOM = tuple(name for name in NAMES if name not in DETERMINISTIC)
EVERY = list(itertools.product(NAMES, PARAMETERS))


def scenes(count: int = 6, side: int = 16, seed: int = 0) -> np.ndarray:
    """Smooth coloured images with some structure, an even area and full black and white."""
    noise = np.random.default_rng(seed).normal(size=(count, side, side, 3))
    smooth = ndimage.gaussian_filter(noise, (0, side / 12, side / 12, 0.3))
    images = np.clip(128 + 70 * smooth / smooth.std(), 0, 255).astype(np.uint8)
    images[:, : side // 4, : side // 4] = 255
    images[:, -(side // 4) :, : side // 4] = 0
    images[:, -(side // 4) :, -(side // 4) :] = (200, 90, 90)
    return images


def distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(one.astype(int) - other).mean())


# -- the contract ---------------------------------------------------------------
@pytest.mark.parametrize(("name", "severities"), EVERY)
def test_every_severity_changes_images_and_repeats_itself(name, severities):
    images = scenes()
    before = images.copy()
    for severity in (1, 2, 3, 4, 5):
        found = corrupt(images, name, severity, seed=0, severities=severities)
        assert found.shape == images.shape and found.dtype == np.uint8
        assert distance(found, images) > 0.05
        assert np.array_equal(found, corrupt(images, name, severity, seed=0, severities=severities))
    assert np.array_equal(images, before)


@pytest.mark.parametrize(("name", "severities"), EVERY)
def test_an_image_is_corrupted_the_same_in_any_batch(name, severities):
    images = scenes(9)
    whole = corrupt(images, name, 4, seed=3, severities=severities, indices=range(20, 29))
    for part in ([4], [8, 2, 5]):
        rows = [20 + row for row in part]
        assert np.array_equal(corrupt(images[part], name, 4, seed=3, severities=severities, indices=rows), whole[part])


@pytest.mark.parametrize("name", NAMES)
def test_chance_comes_from_seed_and_index_alone(name):
    images = np.repeat(scenes(1), 2, axis=0)
    first, second = corrupt(images, name, 5, seed=0)
    (other,) = corrupt(images[:1], name, 5, seed=1)
    assert np.array_equal(first, second) == np.array_equal(first, other) == (name in DETERMINISTIC)


class Nowhere:
    """Takes what is written into it."""

    def __setitem__(self, part, value):
        pass


@pytest.mark.parametrize("name", RANDOM)
def test_severities_and_corruptions_have_streams_of_their_own(name, monkeypatch):
    from moat.data.corruptions import generate

    seen = set()
    monkeypatch.setitem(generate.FUNCTIONS, name, lambda images, parameters, draws: seen.add(draws.bits(1).item()))
    monkeypatch.setattr(generate.np, "empty_like", lambda images: Nowhere())
    for severity, severities in itertools.product((1, 5), PARAMETERS):
        generate.corrupt(scenes(1), name, severity, seed=0, severities=severities)
    assert len(seen) == 4


@pytest.mark.parametrize("side", [4, 8, 28, 64])
@pytest.mark.parametrize("name", NAMES)
def test_any_size(name, side):
    images = scenes(2, side)
    for severities in PARAMETERS:
        assert corrupt(images, name, 5, seed=0, severities=severities).shape == images.shape


@pytest.mark.parametrize("name", NAMES)
def test_grey_images_stay_grey(name):
    grey = scenes(3)[..., :1]
    found = corrupt(grey, name, 3, seed=0)
    assert found.shape == grey.shape
    assert np.array_equal(found, corrupt(np.repeat(grey, 3, axis=3), name, 3, seed=0)[..., :1])


# Of the others, the published parameters themselves do not grow in every respect; pixelation depends on its grid.
GROWING = (
    *("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "defocus_blur", "gaussian_blur", "zoom_blur"),
    *("fog", "brightness", "contrast", "jpeg_compression"),
)


@pytest.mark.parametrize("name", GROWING)
def test_damage_grows_with_severity(name):
    images = scenes(24, 32)
    damage = [distance(corrupt(images, name, severity, seed=0), images) for severity in (1, 2, 3, 4, 5)]
    assert damage == sorted(damage) and damage[4] > 1.3 * damage[0]


def test_severities_of_imagenet_are_harsher():
    images = scenes(12, 32)
    for name in ("gaussian_noise", "defocus_blur", "pixelate", "jpeg_compression", "fog", "frost", "elastic_transform"):
        mild, harsh = (distance(corrupt(images, name, 3, seed=0, severities=each), images) for each in PARAMETERS)
        assert harsh > 1.4 * mild, name


# -- formulas, computed another way ------------------------------------------------
def per_pixel_hsv(image: np.ndarray, change) -> np.ndarray:
    changed = [colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*pixel))) for pixel in image.reshape(-1, 3) / 255]
    return np.clip(np.array(changed), 0, 1).reshape(image.shape) * 255


def brightness(image, added):
    return per_pixel_hsv(image, lambda h, s, v: (h, s, min(v + added, 1)))


def saturate(image, parameters):
    # colorsys has no hue for grey either: 0.
    return per_pixel_hsv(image, lambda h, s, v: (h, min(s * parameters[0] + parameters[1], 1), v))


def contrast(image, factor):
    means = np.array([image[..., channel].mean() for channel in range(3)])
    return (image - means) * factor + means


def gaussian_blur(image, deviation):
    reach = int(4 * deviation + 0.5)
    weights = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * deviation**2))
    kernel = np.outer(weights, weights)
    return correlated(image, kernel / kernel.sum(), "edge")


def defocus_blur(image, parameters):
    radius, smoothing = parameters
    reach = max(8, radius)
    line = np.arange(-reach, reach + 1)
    disk = (line[:, None] ** 2 + line**2 <= radius**2).astype(float)
    taps = 1 if radius <= 8 else 2
    weights = np.exp(-(np.arange(-taps, taps + 1) ** 2) / (2 * smoothing**2))
    smoothing = np.outer(weights, weights)
    # A disk that reaches the rim of its 17 x 17 pixels gets a little too heavy, as published.
    kernel = ndimage.convolve(disk / disk.sum(), smoothing / smoothing.sum(), mode="mirror")
    return correlated(image, kernel, "reflect")


def correlated(image, kernel, mode):
    """Shifted images, weighted and summed."""
    reach, side = len(kernel) // 2, len(image)
    padded = np.pad(image.astype(float), ((reach, reach), (reach, reach), (0, 0)), mode=mode)
    places = itertools.product(range(len(kernel)), repeat=2)
    return sum(kernel[down, right] * padded[down : down + side, right : right + side] for down, right in places)


def zoom_blur(image, parameters):
    side, total = len(image), image.astype(float)
    factors = np.arange(1, *parameters)
    for factor in factors:
        cut = int(np.ceil(side / factor))
        top = (side - cut) // 2
        enlarged = ndimage.zoom(image[top : top + cut, top : top + cut].astype(float), (factor, factor, 1), order=1)
        trim = (len(enlarged) - side) // 2
        total += enlarged[trim : trim + side, trim : trim + side]
    return total / (len(factors) + 1)


def pixelate(image, scale):
    small = int(len(image) * scale)
    shrunk = Image.fromarray(image).resize((small, small), Image.Resampling.BOX)
    return np.array(shrunk.resize(image.shape[:2], Image.Resampling.BOX))


def jpeg_compression(image, quality):
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.array(Image.open(file))


@pytest.mark.parametrize(("severities", "severity"), list(itertools.product(PARAMETERS, (1, 2, 3, 4, 5))))
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_deterministic_ones_are_the_published_formula(name, severities, severity):
    images = np.concatenate([scenes(2, 32), pixels(1, 32)])
    expected = np.stack([globals()[name](image, PARAMETERS[severities][name][severity - 1]) for image in images])
    found = corrupt(images, name, severity, seed=0, severities=severities)
    exact = np.clip(expected, 0, 255)
    # Cut off, not rounded; what is a whole number may come out just below it.
    assert np.abs(found - np.floor(exact)).max() <= 1
    assert ((found == np.floor(exact + 1e-4)) | (found == np.floor(exact - 1e-4))).mean() > 0.999


@pytest.mark.parametrize("angle", [-45.0, -17.3, 0.0, 30.0, -90.0, -120.0])
def test_motion_blur_pixel_by_pixel(angle):
    image = scenes(1, 12)
    weights = np.exp(-(np.arange(9) ** 2) / (2 * 2.5**2))
    radians = np.deg2rad(angle)
    expected = np.zeros((12, 12, 3))
    for row, column, step in itertools.product(range(12), range(12), range(9)):
        down, right = (int(np.ceil(step * f(radians) - 0.5)) for f in (np.sin, np.cos))
        source = image[0, np.clip(row + down, 0, 11), np.clip(column + right, 0, 11)]
        expected[row, column] += weights[step] / weights.sum() * source
    found = motion.blur_along(image, 4, 2.5, np.array([angle]))[0]
    assert np.abs(found - expected).max() < 0.502


@pytest.mark.parametrize("reach", [1, 2, 4])
def test_glass_is_the_loop_over_the_pixels(reach):
    """What follows chains of copies in one go is the published loop, one pixel after the other."""
    side = 14
    inner = list(itertools.product(range(reach + 1, side - reach + 1), repeat=2))
    moves = Draws([5]).randint(2 * reach, (2, len(inner)))[0] - reach
    value = np.arange(side * side).reshape(side, side)
    for number in reversed(range(len(inner))):
        row, column = inner[number]
        value[row, column] = value[row + moves[0, number], column + moves[1, number]]
    assert np.array_equal(blur._sources(side, reach, Draws([5]))[0], value.ravel())


def test_plasma_is_rougher_the_slower_it_decays():
    smooth, rough = (weather.plasma(32, decay, Draws(range(20))) for decay in (3, 1.75))
    for grid in (smooth, rough):
        assert (grid.min(axis=(1, 2)) == 0).all() and (grid.max(axis=(1, 2)) == 1).all()
    roughness = [np.abs(np.diff(grid, axis=1)).mean() for grid in (smooth, rough)]
    assert roughness[1] > 1.3 * roughness[0]


def test_chamfer_distance_to_every_edge():
    edges = np.random.default_rng(0).random((4, 15, 15)) < 0.02
    edges[3] = False
    rows, columns = np.indices((15, 15))
    for found, image in zip(spatter._distance(edges), edges, strict=True):
        far, near = np.full((15, 15), 1e4), np.zeros((15, 15))
        for row, column in np.argwhere(image):
            near, wide = np.sort([np.abs(rows - row), np.abs(columns - column)], axis=0)
            # Knight's moves and straight ones, or knight's moves and diagonal ones.
            flat = 2.1969 * near + (wide - 2 * near)
            steep = 2.1969 * (wide - near) + 1.4 * (2 * near - wide)
            far = np.minimum(far, np.where(2 * near <= wide, flat, steep))
        assert np.abs(np.minimum(found, 20) - np.minimum(far, 20)).max() < 1e-3


def test_edges_and_equalisation():
    levels = np.zeros((2, 12, 12), np.uint8)
    levels[0, 3:9, 3:9] = 200
    found = spatter._edges(levels)
    rows, columns = np.nonzero(found[0])
    assert not found[1].any() and found[0].sum() >= 16
    assert all({row, column} & {2, 3, 8, 9} for row, column in zip(rows, columns, strict=True))
    assert np.unique(spatter._equalized(levels)[0]).tolist() == [0, 255]
    assert (spatter._equalized(levels)[1] == 0).all()


def test_an_image_without_a_drop_stays_as_it_is():
    """The public recipe divides its shading by the darkest shade, 0 / 0 here, and the image turns black."""
    images = np.full((1000, 32, 32, 3), 128, np.uint8)
    spattered = corrupt(images, "spatter", 1, seed=0, severities="imagenet-c")
    untouched = (spattered == images).all((1, 2, 3))
    assert untouched.any() and not untouched.all()
    # Water only brightens.
    assert spattered.min() == 128


# -- random numbers ----------------------------------------------------------------
def test_streams_are_splitmix64():
    """Its first numbers for the seed 1234567, as published with its C source."""
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    draws = Draws([1234567, 7])
    assert [*draws.bits(3)[0].tolist(), *draws.bits(1)[0].tolist()] == expected


@pytest.mark.parametrize(
    ("draw", "mean", "deviation"),
    [
        (lambda draws: draws.normal((50, 50)), 0, 1),
        (lambda draws: draws.uniform((50, 50)), 0, 3**-0.5),
        (lambda draws: draws.between(-45, 45, (2500,)), 0, 90 / 12**0.5),
        (lambda draws: draws.randint(6, (2500,)), 2.5, (35 / 12) ** 0.5),
    ],
)
def test_distributions(draw, mean, deviation):
    values = draw(Draws(range(16)))
    assert values.mean() == pytest.approx(mean, abs=0.02 * deviation)
    assert values.std() == pytest.approx(deviation, rel=0.02)
    assert abs(np.corrcoef(values.reshape(16, -1))[~np.eye(16, dtype=bool)]).max() < 0.1


@pytest.mark.parametrize(("level", "photons"), [(20, 500), (128, 50), (60, 3)])
def test_shot_noise_has_poissons_mean_and_variance(level, photons):
    images = np.full((40, 32, 32, 3), level, np.uint8)
    tables = {name: table["shot_noise"] for name, table in PARAMETERS.items()}
    severities = next(name for name, table in tables.items() if photons in table)
    severity = tables[severities].index(photons) + 1
    found = corrupt(images, "shot_noise", severity, seed=0, severities=severities) / 255
    rate = level / 255
    # Cutting off costs half a level on average; at 3 photons a few values would exceed white.
    assert found.mean() == pytest.approx(rate, abs=0.003)
    assert found.std() == pytest.approx((rate / photons) ** 0.5, rel=0.05)


# -- the published images ------------------------------------------------------------
@pytest.fixture(scope="module")
def published(real_mirror):
    """100 clean test images, and a function: corruption -> the published ones (5, 100, 32, 32, 3)."""
    with tarfile.open(real_mirror / "cifar-10-python.tar.gz") as tar:
        batch = load_pickle(tar.extractfile("cifar-10-batches-py/test_batch").read(), where="test_batch")
    with tarfile.open(real_mirror / "CIFAR-10-C.tar") as archive:

        def read(name):
            rows = np.load(io.BytesIO(archive.extractfile(f"CIFAR-10-C/{name}.npy").read()))
            return rows.reshape(5, -1, 32, 32, 3)[:, :100]

        yield batch["data"][:100].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), read


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_deterministic_ones_agree_with_the_published_images(name, published):
    clean, read = published
    for severity, expected in enumerate(read(name), start=1):
        found = corrupt(np.ascontiguousarray(clean), name, severity, seed=0)
        assert (np.abs(found.astype(int) - expected) <= 1).all()
        assert (found == expected).mean() >= (0.995 if name == "zoom_blur" else 1)


@pytest.mark.parametrize("name", RANDOM)
def test_random_ones_damage_as_much_as_the_published_images(name, published):
    clean, read = published
    clean = np.ascontiguousarray(clean)
    for severity, expected in enumerate(read(name), start=1):
        ours = np.mean([distance(corrupt(clean, name, severity, seed=seed), clean) for seed in range(4)])
        assert ours == pytest.approx(distance(expected, clean), rel=0.1), severity


# -- refusals ------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"name": "fogg"}, ConfigError, ["'fogg'", "did you mean 'fog'", "spatter"]),
        ({"severity": 0}, ConfigError, ["severity 0", "1, 2, 3, 4, 5"]),
        ({"severity": 6}, ConfigError, ["severity 6"]),
        ({"severity": 1.5}, ConfigError, ["severity 1.5"]),
        ({"severities": "cifar"}, ConfigError, ["'cifar'", "cifar10-c", "imagenet-c"]),
        ({"images_uint8_NHWC": scenes().astype(float)}, DataError, ["float64", "uint8 (N, H, W, C)"]),
        ({"images_uint8_NHWC": scenes()[:, :8]}, DataError, ["(6, 8, 16, 3)", "H = W"]),
        ({"images_uint8_NHWC": scenes().transpose(0, 3, 1, 2)}, DataError, ["(6, 3, 16, 16)"]),
        ({"images_uint8_NHWC": scenes()[0]}, DataError, ["(16, 16, 3)"]),
        ({"images_uint8_NHWC": scenes(2, 16)[:, :2, :2]}, DataError, ["from 4"]),
        ({"indices": [1]}, DataError, ["1 indices for 6 images"]),
    ],
)
def test_refusals(changes, error, words):
    arguments = {"images_uint8_NHWC": scenes(), "name": "fog", "severity": 3, "seed": 0, **changes}
    with pytest.raises(error) as caught:
        corrupt(**arguments)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize("name", NAMES)
def test_no_images_are_no_error(name):
    assert corrupt(scenes()[:0], name, 1, seed=0).shape == (0, 16, 16, 3)


def test_names_and_parameters_need_no_numpy():
    code = "import moat.config.corruptions, sys; print(len(moat.config.corruptions.all_settings()), *sys.modules)"
    count, *loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split()
    assert count == "190" and not {"numpy", "torch"} & set(loaded)
