"""Figures and their data as ``data:`` addresses, so that the page needs no other file."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from moat.base.errors import DataError

# In bytes. To keep the page light, a larger PNG is embedded as lossless WebP and a larger CSV is only linked.
LARGE_PICTURE = 100_000
LARGE_TABLE = 200_000
# CSS pixels (96 an inch) for each pixel of a figure (300 an inch), so that its small print is as large as the page's.
SHOWN = 1.3 * 96 / 300


@dataclass(frozen=True)
class Picture:
    """An image as a data address, and its size in pixels, so that the page does not move while it loads."""

    address: str
    width: int
    height: int

    @property
    def shown(self) -> tuple[int, int]:
        """Width and height on the page: text is as large in a narrow figure as in a wide one."""
        return round(SHOWN * self.width), round(SHOWN * self.height)


def read(path: Path) -> Picture:
    """A PNG file, pixel for pixel.

    Raises:
        DataError: it is not an image; names it.
    """
    content, kind = path.read_bytes(), "image/png"
    try:
        with Image.open(io.BytesIO(content)) as image:
            width, height = image.size
            if len(content) > LARGE_PICTURE:
                buffer = io.BytesIO()
                image.save(buffer, format="WEBP", lossless=True, method=4)
                content, kind = buffer.getvalue(), "image/webp"
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f"{path}: not a readable PNG ({error}); `moat draw` makes it") from error
    return Picture(data_address(kind, content), width, height)


def table(path: Path, elsewhere: str) -> str:
    """A CSV as a data address; of a large one the address ``elsewhere``."""
    content = path.read_bytes()
    return elsewhere if len(content) > LARGE_TABLE else data_address("text/csv;charset=utf-8", content)


def data_address(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
