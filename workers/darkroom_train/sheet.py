"""Contact sheets: many pictures in one file, with a line of text below each if wanted."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from darkroom_train.files import write_safely

MARGIN = 6
PAPER = (250, 249, 246)
INK = (60, 58, 70)
LINE_HEIGHT = 12
CHARACTER_WIDTH = 6
WEBP_QUALITY = 90


def contact_sheet(
    pictures: Sequence[npt.NDArray[np.uint8]], *, columns: int, captions: Sequence[str] = ()
) -> Image.Image:
    """Lay pictures (3, S, S) of one size out in rows."""
    side = pictures[0].shape[-1]
    lines = [textwrap.wrap(caption, max(8, side // CHARACTER_WIDTH)) for caption in captions]
    text_height = LINE_HEIGHT * max((len(several) for several in lines), default=0)
    rows = -(-len(pictures) // columns)
    wide, high = side + MARGIN, side + MARGIN + text_height
    sheet = Image.new("RGB", (columns * wide + MARGIN, rows * high + MARGIN), PAPER)
    pencil = ImageDraw.Draw(sheet)
    for number, picture in enumerate(pictures):
        x, y = MARGIN + number % columns * wide, MARGIN + number // columns * high
        sheet.paste(Image.fromarray(np.ascontiguousarray(picture.transpose(1, 2, 0))), (x, y))
        if captions:
            pencil.multiline_text((x, y + side + 1), "\n".join(lines[number]), fill=INK, spacing=1)
    return sheet


def save_sheet(sheet: Image.Image, path: Path) -> None:
    """Write a sheet safely: as WebP where its name ends so, else as PNG."""

    def save(beside: Path) -> None:
        if path.suffix == ".webp":
            sheet.save(beside, format="WEBP", quality=WEBP_QUALITY)
        else:
            sheet.save(beside, format="PNG", optimize=True)

    write_safely(path, save)
