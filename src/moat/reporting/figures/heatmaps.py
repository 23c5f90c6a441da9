"""Class-activation heat maps of one image, clean and attacked, a row per model.

Each model was attacked on its own. The image is the first that the first model classifies correctly only when clean,
and the last model both times. A map that is zero everywhere (nothing in the image speaks for the predicted class) says
so. Options: none.
"""

import numpy as np
import pandas as pd

from moat.config.grid import Figure
from moat.reporting.figures import Frames, check_options, of_the_scale
from moat.reporting.style import Style
from moat.reporting.tables import not_run_reason

SHOWS = "probe"
_IMAGES = ("clean", "attacked")
_COLUMNS = ["label", "image", "images", "class", "predicted", "row", "column", "red", "green", "blue", "heat"]


def draw(figure: Figure, frames: Frames, style: Style):
    """The matplotlib figure and its pixels.

    Returns:
        (figure, DataFrame with one row per label, images (clean or attacked) and pixel: red, green and blue from 0 to
        255, heat from 0 to 1, and the image's index, its class and the predicted one).
    """
    check_options(figure, [])
    figure = of_the_scale(figure)
    probes = {line.label: frames.probe(line) for line in figure.lines if frames.evaluated(line)}
    number = _choose(list(probes.values())) if probes else 0
    canvas, grid = style.new(len(figure.lines), 4, height=1.25, width=style.column_width * 1.35)
    parts = []
    for axes, line, label in zip(grid, figure.lines, frames.labels(figure), strict=True):
        for each in axes:
            style.picture(each)
        axes[0].set_ylabel(label)
        if line.label not in probes:
            style.empty(axes[1], f"not run: {not_run_reason(line.cell, frames.results)}")
            continue
        _draw_row(axes, probes[line.label], number)
        parts += [_pixels(line.label, probes[line.label], number, images) for images in _IMAGES]
    return canvas, pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=_COLUMNS)


def _choose(probes: list) -> int:
    """The index of the image; the first where there is no such image."""
    count = min(len(probe["label"]) for probe in probes)
    right = [{images: (p[f"{images}_predicted"] == p["label"])[:count] for images in _IMAGES} for p in probes]
    telling = right[0]["clean"] & ~right[0]["attacked"] & right[-1]["clean"] & right[-1]["attacked"]
    return int(np.argmax(telling))


def _draw_row(axes, probe, number: int) -> None:
    for place, images in enumerate(_IMAGES):
        picture, heat = probe[images][number], probe[f"{images}_map"][number]
        predicted = probe["classes"][int(probe[f"{images}_predicted"][number])]
        axes[place].imshow(picture if picture.shape[-1] == 3 else picture[..., 0], cmap="gray", vmin=0, vmax=255)
        axes[place + 2].imshow(picture.mean(-1), cmap="gray", vmin=0, vmax=255)
        if heat.any():
            axes[place + 2].imshow(heat, cmap="inferno", vmin=0, vmax=1, alpha=0.7)
        else:
            middle = {"transform": axes[place + 2].transAxes, "ha": "center", "va": "center", "fontsize": 6}
            axes[place + 2].text(0.5, 0.5, "all zero", color="white", backgroundcolor="#333333", **middle)
        axes[place].set_title(images, fontsize=7)
        axes[place + 2].set_title(f"{images}: {predicted}", fontsize=7)


def _pixels(label: str, probe, number: int, images: str) -> pd.DataFrame:
    picture = np.broadcast_to(probe[images][number], (*probe[images][number].shape[:2], 3))
    rows, columns = np.indices(picture.shape[:2])
    content = {"label": label, "image": number, "images": images, "class": probe["label"][number]}
    content |= {"predicted": probe[f"{images}_predicted"][number], "row": rows.ravel(), "column": columns.ravel()}
    content |= {name: picture[..., channel].ravel() for channel, name in enumerate(("red", "green", "blue"))}
    return pd.DataFrame(content | {"heat": probe[f"{images}_map"][number].ravel()}, columns=_COLUMNS)
