"""The one writer of explanations: a PNG sheet and a short mp4 for each clip."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from PIL import Image, ImageDraw, ImageFont

from data_preparation.common.files import atomic_file, reporting_write_errors
from training.explain.explanation import Explanation, Reason
from training.explain.maps import KINDS
from training.plots import new_figure, save_figure

COLOURS = "cividis"  # even for people who see no red or no green
COLUMNS = 8  # frames on a sheet
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
    """A frame in grey with the map over it: the larger the value, the brighter and the less transparent its colour."""
    grey = frame_HWC.astype(np.float32).mean(axis=2, keepdims=True)
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
    return f"frame {reason.strongest + 1} changed it most: {effect:+.2g}{unit}"


def write_sheet(explanation: Explanation, path: Path) -> None:
    """Rows of the sheet: the frames, a map over them for each quantity, and for each quantity the effect of every frame."""
    chosen, reasons = chosen_frames(explanation), explanation.reasons
    count, (height, width) = len(explanation.frames_THWC), explanation.frames_THWC.shape[1:3]
    cell = 1.45
    picture = cell * height / width + 0.12
    heights = [picture + 0.2, *[picture] * len(reasons), *[1.15] * len(reasons)]
    figure = new_figure(1.9 + cell * len(chosen), sum(heights) + 1.1)
    grid = figure.add_gridspec(
        len(heights), len(chosen) + 1, height_ratios=heights, width_ratios=[1.3, *[1] * len(chosen)]
    )
    figure.suptitle(
        f"{explanation.name}: what changed the prediction ({KINDS.get(explanation.kind, explanation.kind)})"
    )
    rows = [("frames", None), *((f"{r.quantity}\n{r.value}", r) for r in reasons)]
    for row, (label, reason) in enumerate(rows):
        title = figure.add_subplot(grid[row, 0])
        title.axis("off")
        title.text(0.98, 0.5, label, ha="right", va="center", fontsize=10, wrap=True)
        for column, index in enumerate(chosen, start=1):
            axes = figure.add_subplot(grid[row, column])
            axes.set_xticks([])
            axes.set_yticks([])
            frame = explanation.frames_THWC[index]
            axes.imshow(frame if reason is None else overlay(frame, reason.map_THW[index]))
            if reason is None:
                axes.set_title(f"frame {index + 1}", fontsize=8)
            elif index == reason.strongest:
                for side in axes.spines.values():
                    side.set(color=LOWERED if reason.effects_T[index] < 0 else RAISED, linewidth=2.5)
    for row, reason in enumerate(reasons, start=len(rows)):
        title = figure.add_subplot(grid[row, 0])
        title.axis("off")
        title.text(
            0.98, 0.5, f"{reason.quantity}:\n{effect_text(reason)}", ha="right", va="center", fontsize=8, wrap=True
        )
        axes = figure.add_subplot(grid[row, 1:])
        effects = reason.effects_T
        axes.bar(np.arange(1, count + 1), effects, color=np.where(effects < 0, LOWERED, RAISED), width=0.8)
        axes.axhline(0, color="black", linewidth=0.6)
        axes.set_xlim(0.4, count + 0.6)
        axes.set_ylabel(reason.unit or "effect", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.set_axisbelow(True)
        axes.grid(alpha=0.3)
        if row == len(heights) - 1:
            axes.set_xlabel(
                "frame of the clip; bars: by how much it raised (blue) or lowered (orange) the quantity", fontsize=8
            )
    scale = figure.colorbar(
        ScalarMappable(cmap=COLOURS),
        ax=figure.axes[: len(rows) * (len(chosen) + 1)],
        location="right",
        shrink=0.5,
        pad=0.01,
        aspect=30,
    )
    scale.set_label("how much a place changed it", fontsize=8)
    scale.set_ticks([0, 1], labels=["least", "most"], fontsize=8)
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
            (6, shown[1] + 4), f"{reason.quantity} {reason.value}; {effect_text(reason)}", fill="black", font=font
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
