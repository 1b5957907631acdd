"""report.html of a run, made from the files of its run folder; thumbnails also need the frames that the run read."""

from __future__ import annotations

import base64
import dataclasses
import io
import logging
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_preparation.actions import Action, action_name, video_name
from data_preparation.archive import FrameReaders
from data_preparation.common.errors import UserError, first_line
from data_preparation.common.files import reporting_write_errors, write_atomic
from training.calibration import (
    FEWEST_IN_GROUP,
    WORST_GROUP,
    Calibration,
    covered_in,
    groups_of,
    percent,
    read_calibration,
)
from training.compare import predictions_of
from training.config import TrainConfig, as_record
from training.html_report.content import ExampleTexts, Picture, Section, Table, Tile
from training.html_report.figures import GroupRow, Line, coverage_curve, extreme, groups, over_steps
from training.metrics import wilson_interval
from training.predictions import prediction_lines
from training.runtime.run_folder import RunFolder, read_json
from training.tasks import task_of
from training.tasks.base import Metric, Predictions, Task, number_text

if TYPE_CHECKING:
    from jinja2 import Environment

log = logging.getLogger("training")

_EXAMPLES = 5  # of the best and of the worst predictions
_FRAMES, _FRAME_HEIGHT, _QUALITY = 6, 96, 80  # of an example: number of thumbnails, pixels, JPEG quality
_STATED_GROUPS = "kind and difficulty"  # those of calibration.json, whose names say what they are
_LEVELS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95)  # of the intervals whose coverage is drawn
_COMMAND = "python -m training.report --html"


@dataclasses.dataclass(frozen=True)
class Example:
    """A test action with thumbnails (data URIs) of its frames and, if wanted, of maps."""

    name: str
    line: str
    frames: Sequence[str]
    maps: Sequence[str] = ()
    maps_line: str = ""


@cache
def _templates() -> Environment:
    """The templates, which escape all texts."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    folder = FileSystemLoader(Path(__file__).parent / "templates")
    found = Environment(loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    found.filters["anchor"] = lambda title: re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    return found


def render(template: str, **content: Any) -> str:
    """A page from templates/. All content is escaped, except for the drawings."""
    made = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    return _templates().get_template(template).render(made=made, command=_COMMAND, **content)


def write_page(path: Path, text: str) -> None:
    """Write a page atomically.

    Raises:
        UserError: the disk is full or not writable.
    """
    with reporting_write_errors(path):
        write_atomic(path, text.encode("utf-8", "replace"))


def write_report(run: RunFolder, root_dir: Path | None = None, *, with_maps: bool = False) -> Path:
    """Write report.html of a run folder and return its path. `root_dir` is the folder of the frames, if they were moved. `with_maps`
    also shows what the network looked at in the examples, which needs the network.

    Raises:
        UserError: the folder holds no run, one of its files is damaged, or the disk is full.
    """
    write_page(run.report_file, report_page(run, root_dir, with_maps=with_maps))
    return run.report_file


def write_report_or_warn(run: RunFolder) -> None:
    """Write report.html at the end of an evaluation, whose result must not be lost: any error becomes a warning."""
    try:
        write_report(run)
    except Exception as error:
        log.warning(
            "%s could not be made (%s): correct that, then run " + _COMMAND + " %s",
            run.report_file,
            first_line(error),
            run.path,
        )


def report_page(run: RunFolder, root_dir: Path | None = None, *, with_maps: bool = False) -> str:
    """The text of report.html. A run whose test split was not opened gets a page without a result.

    Raises:
        UserError: the folder holds no run, or one of its files is damaged.
    """
    config, summary = run.existing_config(), run.summary()
    task = task_of(config.task)
    tiles: list[Tile] = []
    sections: list[Section] = []
    best: list[Example] = []
    worst: list[Example] = []
    titles = ("", "")
    note = ""
    remarks: list[str] = []
    if summary is not None:
        tested = predictions_of(run.path)
        rows = prediction_lines(run.predictions_file)
        calibration = read_calibration(run)
        tiles, remarks = result_tiles(task, summary, len(rows)), task.remarks(summary)
        limits = None if calibration is None else calibration.limits(tested.truth.kinds, tested.predicted)
        sections = [
            baselines_section(task, summary),
            *task.report_sections(tested, summary, limits),
            coverage_section(run, tested, calibration),
        ]
        texts = task.example_texts(tested)
        titles = (texts.best, texts.worst)
        frames_dir = root_dir or config.root_dir
        best, worst, note = examples(tested, texts, rows, frames_dir)
        if with_maps:
            mapped = add_maps(run, [*best, *worst], tested, rows, frames_dir)
            best, worst = mapped[: len(best)], mapped[len(best) :]
    return render(
        "run.html",
        title=run.title,
        about=f"{config.model} + {config.method}, seed {config.seed}",
        tiles=tiles,
        remarks=remarks,
        training=training_section(run, task.metric, config),
        sections=sections,
        best=best,
        worst=worst,
        titles=titles,
        examples_note=note,
        throughput=throughput_section(run, config),
        trained_on=trained_on_section(run, config),
        configuration=configuration_tables(run, config),
        has_result=summary is not None,
    )


# -------------------------------------------------------------------------------------------------------------- result


def interval_text(interval: Sequence[float | None] | None, digits: int, sign: str = "") -> str:
    """'0.92 to 0.95', or '' if it is unknown."""
    if not interval or any(end is None or not np.isfinite(end) for end in interval):
        return ""
    return " to ".join(cell(end, digits, sign) for end in interval)


def cell(value: float | None, digits: int, sign: str = "") -> str:
    """A number in a table. With `sign` "+" positive numbers have one."""
    return "undefined" if value is None or not np.isfinite(value) else f"{value:{sign}.{digits}f}"


def result_tiles(task: Task, summary: Mapping[str, Any], actions: int) -> list[Tile]:
    """The metrics of the test split with their intervals, and the number of actions."""
    test = summary["test"]
    tiles = []
    for key, title, digits in task.table:
        between = interval_text(test.get(f"{key}_ci95"), digits)
        tiles.append(Tile(title, cell(test.get(key), digits), f"95 % interval {between}" if between else "test split"))
    return [*tiles, Tile("Test actions", f"{actions:,}", _checkpoint_text(task.metric, summary))]


def _checkpoint_text(metric: Metric, summary: Mapping[str, Any]) -> str:
    checkpoint = summary["checkpoint"]
    return (
        f"epoch {checkpoint.get('epoch')}, validation {metric.name} {number_text(checkpoint.get(f'val_{metric.key}'))}"
    )


def baselines_section(task: Task, summary: Mapping[str, Any]) -> Section:
    """This run and the baselines that use no video, on the same test actions."""
    head = ["predictor", *(title for _, title, _ in task.table)]
    found = {"this run": summary["test"]} | {f"without video: {name}": v for name, v in summary["baselines"].items()}
    rows = [[name, *(cell(v.get(key), digits) for key, _, digits in task.table)] for name, v in found.items()]
    more = [[name.replace("_", " "), number_text(value)] for name, value in summary["method_metrics"].items()]
    key, title, _ = task.table[0]
    drawn = [
        GroupRow(name.removeprefix("without video: "), None, v.get(key), v.get(f"{key}_ci95"))
        for name, v in found.items()
    ]
    picture = Picture(
        groups(drawn, title, "value and, of this run, 95 % interval"),
        f"{title} of this run and of {len(drawn) - 1} baselines.",
        "If a baseline lies inside the interval of the run, these test actions do not show that the video helps.",
    )
    tables = [
        Table(
            head,
            rows,
            "The run next to predictors that see no video. A run that is not clearly better has not learned to judge.",
            wide=False,
        )
    ]
    if more:
        tables.append(
            Table(["also predicted", "result"], more, "Other outputs of the method, on the test actions.", wide=False)
        )
    return Section("Result and baselines", [picture], tables)


# ------------------------------------------------------------------------------------------------------------ coverage


def coverage_section(run: RunFolder, tested: Predictions, calibration: Calibration | None) -> Section:
    """Whether predicted values mean what they say, and how many of the test actions are inside their prediction intervals: at several
    levels, and by group."""
    title = "Calibration and coverage"
    curve = tested.task.calibration_picture(tested)
    if calibration is None:
        return Section(
            title,
            [curve],
            text=f"There are no intervals: python -m training.calibrate --run {run.path} makes them, then {_COMMAND} {run.path} makes this page again.",
        )
    if np.isinf(calibration.limits(tested.truth.kinds, tested.predicted)).all():
        return Section(
            title,
            [curve],
            text=f"There are no intervals: {'; '.join(calibration.lines()[: len(calibration.misfits)])}.",
        )
    validated = sum(map(len, calibration.misfits.values()))
    shares = [float(covered_in(dataclasses.replace(calibration, level=level), tested).mean()) for level in _LEVELS]
    inside = covered_in(calibration, tested)
    stated, found = percent(calibration.level), percent(float(inside.mean()), 1)
    pictures = [
        curve,
        Picture(
            coverage_curve(_LEVELS, shares, len(inside), validated),
            f"Observed over stated coverage: the {stated} interval holds {found} of the test actions.",
            f"The {stated} interval, from {validated} validation actions, holds {found} of the {len(inside)} test actions. Below the grey band: intervals too narrow.",
        ),
    ]
    weak: list[str] = []
    for grouping, of_group in coverage_groups(tested).items():
        noun = "" if grouping == _STATED_GROUPS else f"{grouping} "
        rows = []
        for name, own in of_group.items():
            held = int(inside[own].sum())
            rows.append(GroupRow(name, len(own), held / len(own), wilson_interval(held, len(own))))
        weak += [
            f"{noun}{row.name} ({percent(row.value or 0)} of {row.size})"
            for row in rows
            if (row.value or 0) < WORST_GROUP
        ]
        shown = extreme(rows, lowest=True)
        few = (
            f" Of {len(rows)} groups, the {len(shown)} with the lowest coverage are shown."
            if len(shown) < len(rows)
            else ""
        )
        pictures.append(
            Picture(
                groups(
                    shown,
                    f"share inside the {stated} interval",
                    "test actions, 95 % interval",
                    line=calibration.level,
                    line_label="stated",
                ),
                f"Coverage of the {stated} interval by {grouping}, lowest {percent(min(row.value or 0 for row in rows))}.",
                f"By {grouping} (number of actions). A group whose interval is left of the line is covered too rarely.{few}",
            )
        )
    text = f"{'; '.join(calibration.lines()[: len(calibration.misfits)])}."
    if weak:
        text += f" Trust the intervals less where fewer than {percent(WORST_GROUP)} of the test actions are inside: {', '.join(weak[:8])}{', ...' if len(weak) > 8 else ''}."
    return Section(title, pictures, text=text[0].upper() + text[1:])


def coverage_groups(tested: Predictions) -> dict[str, dict[str, np.ndarray]]:
    """Groups of the test actions whose coverage is shown, by what they have in common: indices of the actions of each group."""
    videos = [key[0] for key in tested.keys]
    found = {_STATED_GROUPS: groups_of(tested), "video": rows_by(videos)}
    if tested.classes:
        found["class"] = rows_by([tested.classes[label] for label in tested.truth.values])
    large = {name: {n: own for n, own in of.items() if len(own) >= FEWEST_IN_GROUP} for name, of in found.items()}
    return {name: of for name, of in large.items() if len(of) > 1}


def rows_by(names: Sequence[str]) -> dict[str, np.ndarray]:
    """The indices of each name."""
    rows: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        rows.setdefault(name, []).append(i)
    return {name: np.array(rows[name]) for name in sorted(rows)}


# ------------------------------------------------------------------------------------------------------------ training


def training_section(run: RunFolder, metric: Metric, config: TrainConfig) -> Section:
    """The curves of loss and validation metric, with restarts and the best epoch."""
    epochs, steps = run.metrics("epoch"), run.metrics("step")
    if not steps:
        text = "This method has no gradient steps: it was fitted once." if epochs else "No step is logged yet."
        return Section("Training", text=text)
    restarts = [resume["step"] for resume in run.resumes()]
    key = f"val_{metric.key}"
    known = [epoch for epoch in epochs if epoch[key] is not None]
    found = max(known, key=lambda epoch: epoch[key], default={})
    best = found.get("step")
    at = [epoch["step"] for epoch in epochs]
    losses = [Line("training", [s["step"] for s in steps], [s["loss"] for s in steps])]
    losses.append(Line("validation", at, [epoch["val_loss"] for epoch in epochs]))
    count = f"{len(epochs)} epochs, {steps[-1]['step']} steps, {_count(len(restarts), 'restart')}"
    pictures = [
        Picture(
            over_steps(losses, "loss", restarts=restarts, best=best),
            f"Training and validation loss over {count}.",
            "Loss. A validation loss that rises while the training loss falls shows overfitting.",
        ),
        Picture(
            over_steps(
                [Line("validation", at, [epoch[key] for epoch in epochs])], metric.label, restarts=restarts, best=best
            ),
            f"{metric.title} on the validation actions over {count}; the best value is {number_text(found.get(key))}.",
            f"{metric.title}, on the validation actions. It chose the best epoch; the test split took no part in it.",
        ),
    ]
    return Section("Training", pictures, text=f"{count[0].upper()}{count[1:]}.")


def _count(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"


def throughput_section(run: RunFolder, config: TrainConfig) -> Section | None:
    """Actions per second and the time that waited for data, over the steps; None where no step was logged."""
    if not (steps := run.metrics("step")):
        return None
    at = [step["step"] for step in steps]
    rates = [config.batch_size / max(step["data_s"] + step["step_s"], 1e-9) for step in steps]
    waits = [100 * step["data_s"] / max(step["data_s"] + step["step_s"], 1e-9) for step in steps]
    restarts = [resume["step"] for resume in run.resumes()]
    progress = run.progress()
    facts = [
        ["actions per second, median", f"{np.median(rates):,.1f}"],
        ["time that waited for data, median", f"{np.median(waits):.1f} %"],
        ["seconds in all epochs, with validation", f"{sum(e['seconds'] for e in run.metrics('epoch')):,.0f}"],
    ]
    if progress and progress.peak_memory_gib:
        facts.append(["peak memory", f"{progress.peak_memory_gib:.2f} GiB"])
    pictures = [
        Picture(
            over_steps([Line("all ranks", at, rates)], "actions per second", restarts=restarts, low=0),
            f"Actions per second over {at[-1]} steps; the median is {np.median(rates):.1f}.",
            "Throughput of all ranks together.",
        ),
        Picture(
            over_steps([Line("waiting for data", at, waits)], "share of the time (%)", restarts=restarts, low=0),
            f"Share of the time that waited for data over {at[-1]} steps; the median is {np.median(waits):.1f} %.",
            "Data wait. More than a few per cent after the first steps: give more --workers.",
        ),
    ]
    return Section(
        "Throughput and data wait",
        pictures,
        [Table(["quantity", "value"], facts, "Speed of the training.", wide=False)],
    )


# ------------------------------------------------------------------------------------------------------------ examples


def examples(
    tested: Predictions, texts: ExampleTexts, rows: Sequence[Mapping[str, str]], frames_dir: Path
) -> tuple[list[Example], list[Example], str]:
    """The best and the worst predictions, the worst first, with thumbnails; and a note if there are no thumbnails. `rows` are the lines
    of predictions.csv in the order of `tested`."""
    order = np.argsort(tested.task.misfits(tested.predicted, tested.truth), kind="stable")
    shown = min(_EXAMPLES, len(order) // 2)
    readers = FrameReaders(frames_dir)
    note = ""

    def example(i: int) -> Example:
        nonlocal note
        frames: list[str] = []
        try:
            if not note:  # one missing archive is enough: do not look for ten of them
                start, end = int(rows[i]["start_frame"]), int(rows[i]["end_frame"])
                frames = thumbnails(readers, tested.keys[i][0], start, end)
        except UserError as error:
            note = (
                f"Thumbnails are missing ({error}). Where the frames were moved, give {_COMMAND} RUN --root_dir FOLDER."
            )
        return Example(action_name(tested.keys[i]), texts.lines[i], frames)

    return [example(i) for i in order[:shown]], [example(i) for i in order[::-1][:shown]], note


def add_maps(
    run: RunFolder, chosen: Sequence[Example], tested: Predictions, rows: Sequence[Mapping[str, str]], frames_dir: Path
) -> list[Example]:
    """The examples with maps of what the network looked at.

    Raises:
        UserError: as maps.maps_of.
    """
    from training.html_report.maps import maps_of  # here: it imports torch

    places = {action_name(key): i for i, key in enumerate(tested.keys)}
    actions = []
    for i in (places[example.name] for example in chosen):
        start, end = int(rows[i]["start_frame"]), int(rows[i]["end_frame"])
        difficulty = tested.difficulties[i] if tested.difficulties else None
        actions.append(Action(*tested.keys[i], start, end, difficulty=difficulty, kind=tested.truth.kinds[i]))
    found = maps_of(run.path, actions, frames_dir)
    return [
        dataclasses.replace(example, maps=[data_uri(picture) for picture in pictures], maps_line=text)
        for example, (pictures, text) in zip(chosen, found, strict=True)
    ]


def thumbnails(readers: FrameReaders, video: str, start: int, end: int) -> list[str]:
    """JPEG data URIs of frames evenly spaced from the first to the last one of an action.

    Raises:
        UserError: the frames are missing or damaged.
    """
    numbers = np.unique(np.linspace(start, end, _FRAMES).round().astype(int))
    return [data_uri(readers[video_name(video)].image(int(number))) for number in numbers]


def data_uri(image_HWC: np.ndarray) -> str:
    """A thumbnail of a picture (H, W, 3) uint8 as a JPEG data URI."""
    from PIL import Image

    image = Image.fromarray(image_HWC)
    image.thumbnail((3 * _FRAME_HEIGHT, _FRAME_HEIGHT))
    jpeg = io.BytesIO()
    image.save(jpeg, "JPEG", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg.getvalue()).decode()}"


# ------------------------------------------------------------------------------------------- data, flags and environment


def trained_on_section(run: RunFolder, config: TrainConfig) -> Table:
    """What the run was trained, validated and tested on."""
    splits = read_json(run.splits_file) or {}
    counts = [f"{len(splits.get(part, ())):,}" for part in ("train", "val", "test")]
    videos = [f"{len({key[0] for key in splits.get(part, ())}):,}" for part in ("train", "val", "test")]
    rows = [
        ["actions for training, validation, test", " / ".join(counts)],
        ["videos that they are from", " / ".join(videos)],
        ["data set", config.dataset_kind],
        ["fingerprint of the training and validation labels", str(splits.get("fingerprint", "unknown"))],
        ["annotations", str(config.annotation_path)],
        ["split", config.split + (f", fold {config.fold} of {config.folds}" if config.split == "event" else "")],
        ["starting weights", str(config.pretrained_model)],
        ["left out", str(config.leave_out)],
    ]
    return Table(["what", "value"], rows, "The actions of each part are listed in splits.json.", names=2)


def configuration_tables(run: RunFolder, config: TrainConfig) -> tuple[Table, Table, Table]:
    """The flags that differ from their defaults, the others, and code and machine."""
    record = as_record(config)
    defaults = {f.name: f.default for f in dataclasses.fields(config)}
    changed = [name for name in record if getattr(config, name) != defaults[name]]

    def rows(names: Sequence[str]) -> list[list[str]]:
        return [[f"--{name}", _flag_text(record[name])] for name in names]

    environment = read_json(run.path / "environment.json") or {}
    revision = environment.get("code_revision") or "unknown"
    packages = environment.get("packages") or {}
    machine = [
        ["code revision", revision + (" with uncommitted changes" if environment.get("code_changed") else "")],
        ["Python", str(environment.get("python", "unknown"))],
        ["packages", ", ".join(f"{name} {number}" for name, number in packages.items() if number)],
        ["host", str(environment.get("host", "unknown"))],
    ]
    return (
        Table(["flag", "value"], rows(changed), "Flags that differ from their defaults.", names=2),
        Table(
            ["flag", "value"],
            rows([name for name in record if name not in changed]),
            "Flags at their defaults.",
            names=2,
        ),
        Table(["what", "value"], machine, "Code and machine of the first start.", names=2),
    )


def _flag_text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
