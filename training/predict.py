"""Score videos of your own with a trained run.

    python -m training.predict --run runs/<name> --video FILES_OR_FOLDERS [--start 0:12.5 --end 0:16] [--difficulty 3.2] [--out FOLDER]
    python -m training.predict --run runs/<name> --actions actions.csv [--out FOLDER]

A video without --start and --end is one action as a whole or, if it is long, is searched for actions (search.py). Times and frame numbers may be mixed: 120 is a frame (from 1, as
ffmpeg numbers them), 4.5s and 1:23.5 are times. actions.csv has the column video and, as far as they are known, start, end,
difficulty, dive_number and kind; its paths are relative to its folder.

Under srun or torchrun the ranks, one for each GPU, share the actions; the first one writes the results.

Exit status: 0 all actions are scored, 1 some are not, 2 none is, or the command line is wrong. The reasons are printed.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_preparation.common.command_line import flag, parse, run
from data_preparation.common.errors import UserError, os_error_text, printable
from data_preparation.common.files import reporting_write_errors, write_atomic
from data_preparation.text_tables import csv_cells
from training.config import as_in_run, given_again, with_plugin_paths
from training.runtime.ranks import Ranks, allocated_cpus, read_ranks
from training.runtime.run_folder import RunFolder, write_json

if TYPE_CHECKING:
    from training.scorer import Clip, Prediction, Scorer

COLUMNS = ("video", "start", "end", "difficulty", "dive_number", "kind")  # of --actions
_SOME_FAILED, _INTERRUPTED = 1, 130
_MOST_NAMED = 5  # files that are skipped
_PATIENCE = timedelta(hours=2)  # in which all ranks finish after the first one


@dataclasses.dataclass(frozen=True)
class _PredictConfig:
    """Score videos with a trained run: score, interval, and what else the run's method tells."""

    run: Path = flag(None, "Run folder, or an exported model.")
    video: tuple[Path, ...] = flag((), "Video files, or folders that are searched for videos.", allowed="paths")
    actions: Path | None = flag(None, "CSV file with an action in each row, in place of --video.")
    start: str | None = flag(
        None, "Where the action begins; none: with the video.", allowed="frame number, or time as 4.5s or 1:23.5"
    )
    end: str | None = flag(
        None, "Where the action ends; none: with the video.", allowed="frame number, or time as 4.5s or 1:23.5"
    )
    difficulty: float | None = flag(None, "Difficulty of the action, for methods that do not predict it.", minimum=0.1)
    dive_number: str | None = flag(None, "Dive number such as 107B, for runs with --pairs number.")
    kind: str | None = flag(None, "Kind of the action, for runs on data of several kinds (sports).")
    clips: int = flag(
        1, "Clips of each action whose predictions are averaged; 1 is the clip of validation.", minimum=1, maximum=64
    )
    search: str = flag(
        "auto",
        "Search a video without --start and --end for actions: auto if it is longer than three of the longest training actions.",
        choices=("auto", "always", "never"),
    )
    decline: bool = flag(True, "Give no score to a clip unlike those of the training; False gives it, with a note.")
    out: Path | None = flag(None, "Folder for predictions.json and predictions.csv.")
    explain: bool = flag(
        False, "Also write a PNG sheet and a short mp4 for each action to --out: what changed its prediction."
    )
    gpu: bool = flag(True, "Use the GPU if there is one.")
    vocabulary_path: str | None = as_in_run("vocabulary_path")
    precision: str | None = as_in_run("precision")

    def __post_init__(self) -> None:
        faults = []
        if self.run is None:
            faults.append("--run is missing: give the run folder, such as runs/default")
        if bool(self.video) == (self.actions is not None):
            faults.append("give either --video (files or folders) or --actions (a CSV file)")
        of_one = [name for name in COLUMNS[1:] if getattr(self, name) is not None]
        if self.actions is not None and of_one:
            faults.append(f"--{of_one[0]} with --actions: write it into the column {of_one[0]} of {self.actions}")
        if self.explain and self.out is None:
            faults.append("--explain True without --out: give the folder for its files")
        if self.out is not None and self.out.exists() and not self.out.is_dir():
            faults.append(f"--out {self.out} is not a folder: give the folder for the results")
        if self.out is not None and (file := foreign_file(self.out)):
            faults.append(f"--out {self.out} holds {file} of a run or an exported model: give another folder")
        if faults:
            raise UserError.of(faults)


def foreign_file(folder: Path) -> str | None:
    """A file by which a folder is a run, a combination or an exported model, whose predictions must not be overwritten."""
    return next(
        (name for name in ("config.json", "combination.json", "summary.json") if (folder / name).exists()), None
    )


PredictConfig = with_plugin_paths(_PredictConfig)


# ------------------------------------------------------------------------------------------------------------ requests


@dataclasses.dataclass(frozen=True)
class Request:
    """An action that is to be scored: a file, where it begins and ends (clips.Place, None: as the video), and what is known of it.
    `number` is its place among all requests."""

    video: Path
    start: Any = None
    end: Any = None
    known: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    number: int = 0


def request_of(video: Path, cells: Mapping[str, Any], where: str) -> Request:
    """The request for an action with the values of COLUMNS by name, None or '' where they are not known; `where` names them in messages.

    Raises:
        UserError: naming all values that are not allowed.
    """
    from training.clips import Place

    faults: list[str] = []
    places: dict[str, Any] = {}
    for name in ("start", "end"):
        try:
            places[name] = Place.parse(cells[name]) if cells.get(name) else None
        except ValueError as error:
            faults.append(f"{where}{name}: {error}")
    known = {name: cells[name] for name in ("dive_number", "kind") if cells.get(name)}
    if cells.get("difficulty"):
        try:
            known["difficulty"] = float(cells["difficulty"])
            if not 0 < known["difficulty"] < math.inf:
                raise ValueError
        except ValueError:
            faults.append(f"{where}difficulty: '{cells['difficulty']}' is not a number above 0, such as 3.2")
    if faults:
        raise UserError.of(faults)
    return Request(video, **places, known=known)


def read_requests(path: Path) -> list[Request]:
    """The requests of a CSV file (--actions).

    Raises:
        UserError: naming all faults of the file.
    """
    header, rows, faults = csv_cells(path)
    names = [name.lower().removesuffix("_frame") for name in header]
    if "video" not in names or (unknown := [name for name in names if name not in COLUMNS]):
        found = f"columns {', '.join(header)}" if "video" not in names else f"a column {unknown[0]}"
        raise UserError(f"{path} has {found}: give the column video and as many as needed of {', '.join(COLUMNS[1:])}")
    requests = []
    for number, row in rows:
        cells = dict(zip(names, row, strict=False))
        try:
            if not cells["video"]:
                raise UserError(f"{path}, row {number}: the video is missing")
            requests.append(request_of(path.parent / cells["video"], cells, f"{path}, row {number}, "))
        except UserError as error:
            faults.append(str(error))
    if faults or not requests:
        raise UserError.of(faults or [f"{path} has no row: write an action in each row"])
    return requests


def requests_of(options: Any) -> tuple[list[Request], list[str]]:
    """(the requests of a command line, messages about files that are skipped).

    Raises:
        UserError: naming all values that are not allowed, and paths that do not exist.
    """
    from training.clips import video_files

    if options.actions is not None:
        return read_requests(options.actions), []
    cells = {name: getattr(options, name) for name in COLUMNS[1:]}
    one = request_of(Path(), cells, "--")
    files, other = video_files(options.video)
    skipped = []
    if other:
        more = ", ..." if len(other) > _MOST_NAMED else ""
        skipped = [f"{len(other)} other files are skipped ({', '.join(f.name for f in other[:_MOST_NAMED])}{more})"]
    return [dataclasses.replace(one, video=file) for file in files], skipped


# ------------------------------------------------------------------------------------------------------------- scoring


@dataclasses.dataclass(frozen=True)
class Scored:
    """A prediction for an action of a file with `fps` frames per second; `explanation` are the files of --explain, `number` that of
    the request."""

    number: int
    video: Path
    fps: float
    prediction: Prediction
    notes: Sequence[str]
    explanation: Sequence[Path] = ()


@dataclasses.dataclass
class Results:
    """The predictions so far, and the requests that failed: their numbers, files and reasons."""

    predictions: list[Scored] = dataclasses.field(default_factory=list)
    failed: list[tuple[int, Path, str]] = dataclasses.field(default_factory=list)

    @classmethod
    def of_ranks(cls, parts: Sequence[Results]) -> Results:
        """The results of all ranks in the order of the requests."""
        predictions = [each for part in parts for each in part.predictions]
        failed = [each for part in parts for each in part.failed]
        return cls(sorted(predictions, key=lambda each: each.number), sorted(failed, key=lambda each: each[0]))


def read_clips(
    scorer: Scorer, requests: Sequence[Request], clips_each: int, results: Results, search: str
) -> Iterator[tuple[Request, Clip, list[str]]]:
    """The clips of some requests, each with its notes. Requests that fail go to `results.failed`."""
    from data_preparation.frame_numbers import scan_video
    from training.clips import action_ranges, read_clip, warnings_of

    scan_of = lru_cache(maxsize=1)(scan_video)  # rows of one video follow each other
    for request in requests:
        try:
            scan = scan_of(request.video)
            for frames in action_ranges(scorer, scan, request.start, request.end, search):
                clip = read_clip(scorer, scan, frames, clips_each=clips_each, **request.known)
                yield request, clip, warnings_of(scorer, scan, clip.action)
        except UserError as error:
            results.failed.append((request.number, request.video, str(error)))
        except OSError as error:
            results.failed.append((request.number, request.video, os_error_text(error)))


def explained(scorer: Scorer, clip: Clip, folder: Path, stem: str) -> tuple[Sequence[Path], list[str]]:
    """(the files that explain the prediction of a clip, a note if there are none)."""
    from training.explain import explain, write

    try:
        return write(explain(scorer, [clip])[0], folder, stem), []
    except UserError as error:
        return (), [f"it is not explained: {error}"]


def predict_all(
    scorer: Scorer,
    requests: Sequence[Request],
    options: Any,
    results: Results,
    explanations: Path | None = None,
) -> None:
    """Score all requests, in batches of the size of validation, with a progress bar in requests. An error of one leaves the
    others alone. `options` are those of the command line. With a folder for `explanations`, what is not declined is explained
    there."""
    from tqdm import tqdm

    from training.data.loader import evaluation_size
    from training.explain.sheet import file_stem
    from training.novelty import declined_text

    waiting: list[tuple[Request, Clip, list[str]]] = []

    def score() -> None:
        found = scorer.predict([clip for _, clip, _ in waiting], clips_each=options.clips)
        for (request, clip, notes), prediction in zip(waiting, found, strict=True):
            if prediction.declined and not options.decline and prediction.distance is not None:
                why = declined_text(prediction.noun, prediction.distance)
                notes = [
                    *notes,
                    f"it is scored although it is {why}; it has no interval, which holds only for such as those",
                ]
                prediction = dataclasses.replace(prediction, declined=False, low=None, high=None, classes=None)
            files: Sequence[Path] = ()
            if explanations is not None and prediction.declined:
                notes = [*notes, "it is not explained, because it has no score (--decline False gives one)"]
            elif explanations is not None:
                stem = f"{request.number + 1:03d}_{file_stem(request.video.stem)}_{prediction.start}-{prediction.end}"
                files, more = explained(scorer, clip, explanations, stem)
                notes = [*notes, *more]
            results.predictions.append(Scored(request.number, request.video, clip.fps, prediction, notes, files))
        waiting.clear()

    with tqdm(total=len(requests), unit="video", desc="scoring", disable=not sys.stderr.isatty()) as bar:
        for each in read_clips(scorer, requests, options.clips, results, options.search):
            waiting.append(each)
            if len(waiting) == evaluation_size(scorer.config):
                score()
            bar.update(len(results.predictions) + len(results.failed) - bar.n)
        score()
        bar.update(len(results.predictions) + len(results.failed) - bar.n)


# -------------------------------------------------------------------------------------------------------------- output


def record_of(scored: Scored) -> dict[str, Any]:
    """A prediction as JSON types. One that is declined has null for all that was predicted, and a note."""
    from training.novelty import declined_text

    prediction, notes = scored.prediction, list(scored.notes)
    if prediction.declined:
        notes.append(declined_text(prediction.noun, prediction.distance or 0))
        blank = dict.fromkeys(prediction.values)
        prediction = dataclasses.replace(prediction, values=blank, low=None, high=None, classes=None)
    found: dict[str, Any] = {
        "video": printable(str(scored.video)),
        "start_frame": prediction.start,
        "end_frame": prediction.end,
        "start_s": round((prediction.start - 1) / scored.fps, 3),
        "end_s": round(prediction.end / scored.fps, 3),
        **prediction.values,
        "low": prediction.low,
        "high": prediction.high,
    }
    if prediction.classes is not None:
        found["classes"] = list(prediction.classes)
    declined = {"declined": prediction.declined, "distance": prediction.distance, "threshold": prediction.threshold}
    files = {"explanation": list(map(str, scored.explanation))} if scored.explanation else {}
    return {**found, **declined, **files, "notes": notes}


def as_csv(records: Sequence[Mapping[str, Any]]) -> str:
    """The records as a table, with a column for each class's probability."""
    of_classes = {name for record in records for name, value in record.items() if isinstance(value, Mapping)}
    rows = []
    for record in records:
        row: dict[str, Any] = {}
        for name, value in record.items():
            if value is None and name in of_classes:  # declined: the columns of the classes stay empty
                continue
            if isinstance(value, Mapping):
                row |= {f"probability_{key}": f"{p:.6f}" for key, p in value.items()}
            elif isinstance(value, list):
                row[name] = "; ".join(value)
            else:
                row[name] = f"{value:.6f}" if isinstance(value, float) else value
        rows.append(row)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def table_lines(records: Sequence[Mapping[str, Any]], level: float) -> list[str]:
    """The records as a table for the terminal."""
    hidden = {"start_frame", "end_frame", "start_s", "end_s", "low", "high", "classes", "probabilities", "declined", "distance", "threshold", "explanation", "notes"}  # fmt: skip
    shown = list(dict.fromkeys(name for record in records for name in record if name not in hidden))
    interval = f"{100 * level:.0f} % interval"
    rows = [[*shown[:1], "frames", shown[1], interval, *shown[2:]]]
    for record in records:
        cells = {name: _cell(record.get(name)) for name in shown}
        first, second, *rest = (cells[name] for name in shown)
        inside = "-"
        if record.get("low") is not None:
            inside = f"{record['low']:.2f} to {record['high']:.2f}"
        elif record.get("classes") is not None:
            inside = ", ".join(record["classes"]) or "none"
        if record["declined"]:
            second = "declined"
        rows.append([first, f"{record['start_frame']}-{record['end_frame']}", second, inside, *rest])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _cell(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else "-" if value is None else str(value)


def write_results(folder: Path, run: Path, scorer: Scorer, results: Results, complete: bool) -> list[Path]:
    """Write predictions.json and predictions.csv; each is whole or absent.

    Raises:
        UserError: the disk is full or not writable.
    """
    records = [record_of(each) for each in results.predictions]
    content = {
        "run": printable(str(run)),
        "complete": complete,
        "level": None if scorer.calibration is None else scorer.calibration.level,
        "notes": run_notes(scorer),
        "predictions": records,
        "failed": [{"video": printable(str(video)), "why": why} for _, video, why in results.failed],
    }
    files = [folder / "predictions.json", folder / "predictions.csv"]
    write_json(files[0], content)
    with reporting_write_errors(files[1]):
        write_atomic(files[1], as_csv(records).encode())
    return files


def run_notes(scorer: Scorer) -> list[str]:
    """What is to be known about all predictions of a run, a sentence each."""
    about = [scorer.why_no_interval] if scorer.calibration is None else scorer.calibration.lines()
    if scorer.novelty is None:
        about.append(scorer.why_no_distance)
    return about + scorer.model.method.notes()


def main(argv: Sequence[str]) -> int:
    options: Any = parse(PredictConfig, argv, prog="python -m training.predict")
    saved = RunFolder(options.run).scoring_config()
    given = given_again(saved, options)
    requests, skipped = requests_of(options)
    requests = [dataclasses.replace(request, number=number) for number, request in enumerate(requests)]
    if options.out is not None:
        with reporting_write_errors(options.out):
            options.out.mkdir(parents=True, exist_ok=True)  # before the work, not after it

    import torch  # here, because the imports take seconds

    from training.runtime import collectives
    from training.scorer import Scorer

    if cpus := allocated_cpus():
        torch.set_num_threads(cpus)
    ranks = read_ranks()
    scorer = Scorer.from_run(options.run, gpu=options.gpu, ranks=ranks, **given)
    explanations = options.out / "explanations" if options.explain else None

    def score() -> int:
        collectives.connect(ranks, scorer.device, _PATIENCE)
        results, complete = Results(), False
        try:
            predict_all(scorer, share_of(ranks, requests), options, results, explanations)
            complete = True
        except KeyboardInterrupt:
            if ranks.world_size > 1:  # the results of the other ranks do not come any more
                raise
            print("stopped by Ctrl-C", file=sys.stderr)
        results = Results.of_ranks(collectives.gather_objects(results))
        if ranks.is_first:
            show(options, scorer, results, skipped, complete)
        collectives.disconnect()
        if not complete:
            return _INTERRUPTED
        return 0 if not results.failed else _SOME_FAILED if results.predictions else 2

    return collectives.exit_status(score)


def share_of(ranks: Ranks, requests: Sequence[Request]) -> Sequence[Request]:
    """The requests of a rank: neighbours, because rows of one video follow each other."""
    first, last = (len(requests) * part // ranks.world_size for part in (ranks.rank, ranks.rank + 1))
    return requests[first:last]


def show(options: Any, scorer: Scorer, results: Results, skipped: Sequence[str], complete: bool) -> None:
    """Print the results, and write them to --out."""
    records = [record_of(each) for each in results.predictions]
    if records:
        print("\n".join(table_lines(records, 0.9 if scorer.calibration is None else scorer.calibration.level)))
        notes = [f"{record['video']}: {note}" for record in records for note in record["notes"]]
        print("\n".join(f"note: {note}" for note in [*run_notes(scorer), *skipped, *notes]))
    for _, _, why in results.failed:
        print("\n".join(f"error: {line}" for line in why.splitlines()), file=sys.stderr)
    if options.out is not None and (records or results.failed):
        written = write_results(options.out, options.run, scorer, results, complete)
        if options.explain and (options.out / "explanations").exists():
            written.append(options.out / "explanations")
        print(f"written: {' '.join(map(str, written))}")


if __name__ == "__main__":
    run(main)
