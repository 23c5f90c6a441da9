"""Helpers of the corruptions: conversion to bytes, memory layouts, and linear filters as matrices."""

import numpy as np


def to_bytes(values: np.ndarray) -> np.ndarray:
    """Levels 0 to 255 as uint8, truncated rather than rounded, as in the published generators. Clips in place."""
    return np.clip(values, 0, 255, out=values).astype(np.uint8)


def planes(images: np.ndarray, dtype: type) -> np.ndarray:
    """(N, H, W, C) -> (N, C, H, W) as floating-point levels, contiguous."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)).astype(dtype)


def interleaved(pixels: np.ndarray) -> np.ndarray:
    """(N, C, H, W) -> (N, H, W, C), contiguous."""
    return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))


def separable(pixels: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """``matrix`` @ X @ ``matrix``.T for each image X (H, W) of ``pixels`` (…, H, W).

    One product per image, so that the rounding does not depend on the number of images.
    """
    return np.matmul(np.matmul(matrix, pixels), matrix.T)


def gaussian_matrix(size: int, deviation: float, mode: str, truncate: float) -> np.ndarray:
    """scipy's Gaussian filter over ``size`` pixels as a matrix, float64 (size, size)."""
    from scipy.ndimage import gaussian_filter1d

    if deviation == 0:
        return np.eye(size)
    return gaussian_filter1d(np.eye(size), deviation, axis=0, mode=mode, truncate=truncate)


def zoom_matrix(size: int, factor: float) -> np.ndarray:
    """Enlarge the middle of ``size`` pixels by ``factor`` with linear interpolation: float64 (size, size)."""
    from scipy.ndimage import zoom

    cut = int(np.ceil(size / factor))
    top = (size - cut) // 2
    enlarged = zoom(np.eye(size)[top : top + cut], (factor, 1), order=1)
    trim = (len(enlarged) - size) // 2
    return enlarged[trim : trim + size]
