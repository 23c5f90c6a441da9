"""Elastic deformation: a random affine map, then smooth random displacements."""

import functools

import numpy as np
import torch
from torch.nn.functional import grid_sample

from moat.data.corruptions.draws import Draws
from moat.data.corruptions.pixels import gaussian_matrix, interleaved, planes, separable, to_bytes


def elastic_transform(images: np.ndarray, parameters: tuple[float, float, float, str], draws: Draws) -> np.ndarray:
    """Resample the image so that three of its points move, then displace every pixel by a smooth random field."""
    size = images.shape[1]
    unit = size if parameters[3] == "fraction" else 1
    displacement, smoothing, corner = (unit * length for length in parameters[:3])
    pixels = torch.from_numpy(planes(images, np.float32))
    pixels = _resample(pixels, *_affine(size, corner, draws), align=True)
    if displacement:
        matrix = _smoothing(size, smoothing)
        field = separable(draws.uniform((2, size, size)), matrix) * np.float32(displacement)
        line = np.arange(size, dtype=np.float32)
        pixels = _resample(pixels, line + field[:, 0], line[:, None] + field[:, 1], align=False)
    return to_bytes(interleaved(pixels.numpy()))


def _affine(size: int, corner: float, draws: Draws) -> tuple[np.ndarray, np.ndarray]:
    """The source coordinates x and y of each pixel, float64 (N, size, size)."""
    centre, reach = size // 2, size // 3
    points = np.array([[reach, reach], [reach, -reach], [-reach, -reach]], np.float64) + centre
    moved = points + draws.between(-corner, corner, (3, 2))
    homogeneous = np.concatenate([moved, np.ones((len(moved), 3, 1))], axis=2)
    back = np.linalg.solve(homogeneous, np.broadcast_to(points, moved.shape))
    line = np.arange(size)
    along_x, along_y, shift = (back[:, row, :, None, None] for row in range(3))
    places = along_x * line + along_y * line[:, None] + shift
    return places[:, 0], places[:, 1]


def _resample(pixels: torch.Tensor, x: np.ndarray, y: np.ndarray, *, align: bool) -> torch.Tensor:
    """Sample at x and y bilinearly, with reflection padding; with ``align`` edge pixels are not repeated."""
    size = pixels.shape[-1]
    grid = np.stack([x, y], axis=-1)
    grid = 2 * grid / (size - 1) - 1 if align else (2 * grid + 1) / size - 1
    grid = torch.from_numpy(grid.astype(np.float32))
    return grid_sample(pixels, grid, mode="bilinear", padding_mode="reflection", align_corners=align)


@functools.lru_cache(maxsize=32)
def _smoothing(size: int, deviation: float) -> np.ndarray:
    return gaussian_matrix(size, deviation, "reflect", 3.0).astype(np.float32)


CORRUPTIONS = {"elastic_transform": elastic_transform}
