"""Grids with a row of images for each prompt, and the prompt drawn beside its row."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from trainer.conditions import all_given, none_given
from trainer.images import ImageSpec
from trainer.models.base import Model, known_conditions
from trainer.patches import whole_images
from trainer.prompts import encode, in_one_line, parse_prompts
from trainer.sampling import SampleConditions, make_samples
from trainer.tracking.captions import as_metadata
from trainer.tracking.pictures import cell_of, grid

IMAGES = 8  # of each prompt at an evaluation
COLUMNS = 16  # images of a prompt beside each other; more go to the next line
GAP = 2  # pixels between images, as in the grid
WIDTH, MARGIN = 220, 6  # pixels of the column of prompts
SIZE, LINE = 13, 15  # pixels of its font, and of a line
ELLIPSIS = "..."
GREY = "#606060"  # of the lines between rows, as in the grid


def draw_prompts(model: Model, prompts: Sequence[str], seed: int) -> dict[str, bytes]:
    """The picture `prompts` of a model with averaged weights, as a PNG file: images of each of `trainer.prompts`, the
    first ones of `jobs.sample --prompt` in the same order; nothing without prompts. Computed in full float32.
    """
    captions = parse_prompts(model, prompts)
    if not captions:
        return {}
    options = model.picture_options
    conditions = SampleConditions(values=encode(model, captions).tokens)
    images = make_samples(model, IMAGES * len(captions), conditions, seed, options=options)
    uses = none_given(known_conditions(model)) | all_given({name for row in captions for name in row})
    caption = f"{model.samples_in_words(options, uses)}, averaged weights"
    return {"prompts": prompt_rows(images, model.spec, list(map(in_one_line, captions)), caption)}


def prompt_rows(images: Tensor, spec: ImageSpec, prompts: Sequence[str], caption: str = "") -> bytes:
    """A PNG with a row for each prompt, the prompt to the left, cut if it does not fit; at least an image of each.

    Of `images` (a batch of `spec`) image i has prompt i mod their number. The file's metadata has the caption
    (Description) and the whole prompts (Prompt), one a line.
    """
    count = len(prompts)
    columns = min(COLUMNS, -(-len(images) // count))
    cell = cell_of(whole_images(images.cpu(), spec))
    grids = [Image.open(io.BytesIO(grid(images[row::count], spec, columns, cell=cell))) for row in range(count)]
    height = grids[0].height - GAP  # neighbours share a line
    canvas = Image.new(grids[0].mode, (WIDTH + grids[0].width, count * height + GAP), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(SIZE)
    for row, prompt in enumerate(prompts):
        canvas.paste(grids[row], (WIDTH, row * height))
        pen.rectangle((0, row * height, WIDTH, row * height + GAP - 1), fill=GREY)
        lines = fitted(prompt, max(1, height // LINE), lambda text: pen.textlength(text, font) <= WIDTH - 2 * MARGIN)
        top = GAP + row * height + (height - LINE * len(lines)) // 2
        for i, line in enumerate(lines):
            pen.text((MARGIN, top + i * LINE), line, fill="black", font=font)
    listed = "\n".join(prompts)
    buffer = io.BytesIO()
    canvas.save(buffer, format="PNG", pnginfo=as_metadata(f"{caption}; row by row:\n{listed}".lstrip("; "), listed))
    return buffer.getvalue()


def fitted(text: str, lines: int, fits: Callable[[str], bool]) -> list[str]:
    """A text broken into at most so many lines that fit, between words where it can be; the rest is cut."""
    found: list[str] = []
    rest = text
    while rest and len(found) < lines:
        line = _head(rest, fits)
        rest = rest[len(line) :].lstrip()
        found.append(line.rstrip())
    if rest:
        last = found[-1]
        while last and not fits(last + ELLIPSIS):
            last = last[:-1]
        found[-1] = last.rstrip() + ELLIPSIS
    return found


def _head(text: str, fits: Callable[[str], bool]) -> str:
    """The longest beginning that fits, up to the end of a word if one fits; at least a character."""
    end = next((end for end in range(1, len(text) + 1) if not fits(text[:end])), len(text) + 1) - 1
    if end == len(text) or (space := text.rfind(" ", 0, end + 1)) <= 0:
        return text[: max(1, end)]
    return text[:space]
