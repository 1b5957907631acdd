"""The one writer of explanations: a PNG sheet and a short mp4 for each clip."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from PIL import Image, ImageDraw, ImageFont

from data_preparation.common.errors import printable
from data_preparation.common.files import atomic_file, reporting_write_errors
from training.explain.explanation import Explanation, Reason
from training.explain.maps import KINDS
from training.plots import new_figure, save_figure

COLOURS = "cividis"  # even for people who see no red or no green
COLUMNS = 8  # frames on a sheet
GAP = 0.04  # between them, as a share of their width
RAISED, LOWERED = "#0072b2", "#d55e00"  # blue and orange of Okabe and Ito
VIDEO_HEIGHT = 256  # least height of a frame in the mp4, in pixels
VIDEO_SECONDS = 4.0  # shortest mp4
FPS = 12


def write(explanation: Explanation, folder: Path, stem: str = "") -> tuple[Path, Path]:
    """Write STEM.png and STEM.mp4 to the folder and return their paths; by default STEM is made from the clip's name.

    Each file is whole or absent, also if the command is interrupted.

    Raises:
        UserError: the folder cannot be written.
    """
    stem = stem or file_stem(explanation.name)
    sheet, video = folder / f"{stem}.png", folder / f"{stem}.mp4"
    with reporting_write_errors(sheet):
        folder.mkdir(parents=True, exist_ok=True)
    write_sheet(explanation, sheet)
    write_video(explanation, video)
    return sheet, video


def file_stem(name: str) -> str:
    """A file name for a clip: letters, digits, '-', '_' and '.' of its name, at most 80 of them, and no dot in front."""
    return re.sub(r"[^\w.-]+", "_", name)[-80:].lstrip("._") or "clip"


def overlay(frame_HWC: np.ndarray, map_HW: np.ndarray) -> np.ndarray:
    """A frame in grey with the map over it: the larger the value, the brighter and the less transparent its colour. Roots of the
    values are shown, because a few places often have nearly all of the map."""
    grey = frame_HWC.astype(np.float32).mean(axis=2, keepdims=True)
    map_HW = np.sqrt(map_HW)
    share = 0.25 + 0.6 * map_HW[..., None]
    colours = 255 * colormaps[COLOURS](map_HW)[..., :3]
    return np.clip(grey * (1 - share) + colours * share, 0, 255).astype(np.uint8)


def chosen_frames(explanation: Explanation) -> list[int]:
    """At most COLUMNS frames, evenly spread; the strongest of the first quantity is one of them."""
    count = len(explanation.frames_THWC)
    columns = min(COLUMNS, count)
    chosen = [round(i * (count - 1) / max(columns - 1, 1)) for i in range(columns)]
    strongest = explanation.reasons[0].strongest
    nearest = min(range(columns), key=lambda i: abs(chosen[i] - strongest))
    chosen[nearest] = strongest
    return chosen


def effect_text(reason: Reason) -> str:
    """The strongest moment of a quantity in words."""
    effect = reason.effects_T[reason.strongest]
    if effect == 0:
        return "no frame changed it"
    unit = f" {reason.unit}" if reason.unit else ""
    return f"frame {reason.strongest + 1} changed it most,\nby {effect:+.2g}{unit}"


def side_by_side(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures of one size in a row, with white gaps of GAP of their width."""
    gap = np.full_like(pictures[0], 255)[:, : gap_of(pictures[0].shape[1])]
    parts = [part for picture in pictures for part in (gap, picture)]
    return np.concatenate(parts[1:], axis=1)


def gap_of(width: int) -> int:
    """The gap between pictures of this width, in pixels."""
    return max(round(GAP * width), 1)


def write_sheet(explanation: Explanation, path: Path) -> None:
    """Rows of the sheet: the frames, a map over them for each quantity, and for each quantity the effect of every frame."""
    chosen, reasons = chosen_frames(explanation), explanation.reasons
    count, height, width = explanation.frames_THWC.shape[:3]
    cell = max(1.5, 8.0 / len(chosen) * min(width / height, 1))  # inches
    picture = cell * height / width
    heights = [picture + 0.3, *[picture + 0.12] * len(reasons), *[1.0] * len(reasons)]
    figure = new_figure(2.2 + cell * len(chosen), sum(heights) + 0.9)
    grid = figure.add_gridspec(len(heights), 2, height_ratios=heights, width_ratios=[1.6, cell * len(chosen)])
    name = printable(Path(explanation.name).name)
    kind = KINDS.get(explanation.kind, explanation.kind)
    # names of files and classes may hold $, which is not mathematics
    figure.suptitle(f"{name}: what changed the prediction ({kind})", parse_math=False)

    def label(row: int, text: str, size: int) -> Axes:
        axes = figure.add_subplot(grid[row, 0])
        axes.axis("off")
        axes.text(1.0, 0.5, printable(text, keep="\n"), ha="right", va="center", fontsize=size, parse_math=False)
        return axes

    gap = gap_of(width)
    rows: list[tuple[str, Reason | None]] = [("frames", None), *((f"{r.quantity}\n{r.value}", r) for r in reasons)]
    for row, (text, reason) in enumerate(rows):
        scale_place = label(row, text, 10)
        axes = figure.add_subplot(grid[row, 1])
        axes.axis("off")
        frames = [explanation.frames_THWC[index] for index in chosen]
        if reason is None:
            axes.imshow(side_by_side(frames))
            for column, index in enumerate(chosen):
                middle = column * (width + gap) + width / 2
                axes.text(middle, -0.03 * height, f"frame {index + 1}", ha="center", va="bottom", fontsize=8)
            scale = scale_place.inset_axes((0.35, 0.12, 0.65, 0.08))
            scale.imshow(np.linspace(0, 1, 64)[None], aspect="auto", cmap=COLOURS)
            scale.set_yticks([])
            scale.set_xticks([0, 63], ["changed\nit least", "most"], fontsize=7)
            continue
        maps = [overlay(frame, reason.map_THW[index]) for frame, index in zip(frames, chosen, strict=True)]
        axes.imshow(side_by_side(maps))
        if reason.strongest in chosen:
            left = chosen.index(reason.strongest) * (width + gap)
            colour = LOWERED if reason.effects_T[reason.strongest] < 0 else RAISED
            axes.add_patch(Rectangle((left - 0.5, -0.5), width, height, fill=False, color=colour, linewidth=2.5))
    for row, reason in enumerate(reasons, start=len(rows)):
        label(row, f"{reason.quantity}:\n{effect_text(reason)}", 8)
        axes = figure.add_subplot(grid[row, 1])
        effects = reason.effects_T
        axes.bar(np.arange(1, count + 1), effects, color=np.where(effects < 0, LOWERED, RAISED), width=0.8)
        axes.axhline(0, color="black", linewidth=0.6)
        axes.set_xlim(0.4, count + 0.6)
        axes.set_ylabel(reason.unit or "effect", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.set_axisbelow(True)
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if row == len(heights) - 1:
            axes.set_xlabel(
                "frame of the clip; bars: by how much it raised (blue) or lowered (orange) the quantity", fontsize=8
            )
    save_figure(figure, path)


def video_frames(explanation: Explanation) -> Iterator[Image.Image]:
    """The pictures of the mp4: the frame, the frame with the map of the first quantity, and below the effects of the frames
    with a mark at this one. All have the same even size."""
    reason = explanation.reasons[0]
    count, height, width = explanation.frames_THWC.shape[:3]
    factor = max(-(-VIDEO_HEIGHT // height), 1)
    shown = width * factor, height * factor
    total = 2 * shown[0], (shown[1] + 96 + 1) // 2 * 2
    font = ImageFont.load_default(15)
    largest = max(float(np.abs(reason.effects_T).max()), 1e-12)
    for index in range(count):
        image = Image.new("RGB", total, "white")
        frame = explanation.frames_THWC[index]
        for column, pixels in enumerate((frame, overlay(frame, reason.map_THW[index]))):
            image.paste(Image.fromarray(pixels).resize(shown, Image.Resampling.BICUBIC), (column * shown[0], 0))
        draw = ImageDraw.Draw(image)
        draw.text(
            (6, shown[1] + 4),
            f"{reason.quantity} {reason.value}; {effect_text(reason)}".replace("\n", " "),
            fill="black",
            font=font,
        )
        middle, step = shown[1] + 60, total[0] / count
        for other, effect in enumerate(reason.effects_T):
            left, right = other * step + 0.1 * step, (other + 1) * step - 0.1 * step
            upper, lower = sorted((middle, middle - 30 * float(effect) / largest))
            draw.rectangle((left, upper, max(right, left), lower), fill=LOWERED if effect < 0 else RAISED)
        draw.line((0, middle, total[0], middle), fill="black")
        draw.rectangle((index * step, shown[1] + 26, (index + 1) * step - 1, total[1] - 2), outline="black", width=2)
        yield image


def write_video(explanation: Explanation, path: Path) -> None:
    """Write the mp4 (H.264, yuv420p), which browsers play: each frame equally long, at least VIDEO_SECONDS in all."""
    count = len(explanation.frames_THWC)
    repeats = max(round(VIDEO_SECONDS * FPS / count), 1)
    with (
        reporting_write_errors(path),
        atomic_file(path) as temporary,
        av.open(str(temporary), "w", format="mp4", options={"movflags": "+faststart"}) as container,
    ):
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "18"})
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1
        for index, image in enumerate(video_frames(explanation)):
            if index == 0:
                stream.width, stream.height = image.size
            for repeat in range(repeats):
                frame = av.VideoFrame.from_image(image)
                frame.pts, frame.time_base = index * repeats + repeat, Fraction(1, FPS)
                container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
