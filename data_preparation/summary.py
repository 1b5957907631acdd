"""A summary of a data set's annotations: sizes, ranges of the targets, labels, judges, and a row for each video."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from data_preparation.actions import (
    POSITIONS,
    ROTATION_TYPES,
    Action,
    has_field,
    judge_exceptions,
    judged_score,
    video_order,
)
from data_preparation.datasets import DataSet

_MAX_VIDEOS = 40  # with a row each
_MAX_WARNINGS = 50


def summary(data: DataSet) -> str:
    """The summary as text."""
    actions = list(data.actions.values())
    noun = actions[0].noun
    videos = sorted({a.video for a in actions}, key=video_order)
    listed = {key for split in data.splits.values() for key in (*split.train, *split.test)}
    unlisted = f", {len(set(data.actions) - listed)} in neither" if data.splits else ""
    lines = [
        f"{noun + 's':<14} {len(actions)} in {len(videos)} videos; {_lists_text(data)}{unlisted}",
        f"frames         {sum(a.frame_count for a in actions)} in {noun}s; {'an' if noun[0] in 'aeiou' else 'a'} {noun} has {_spread((a.frame_count for a in actions), 0)}",
        *_value_lines(data, actions),
        *_label_lines(data, actions),
        *_dive_lines(actions),
    ]
    exceptions: list[Action] = []
    if judged := [a for a in actions if judged_score(a) is not None]:
        exceptions = judge_exceptions(judged)
        lines.append(
            f"judges         {len(judged)} {noun}s; the rules give the final score of {len(judged) - len(exceptions)}"
        )
    if len(videos) <= _MAX_VIDEOS:
        lines += _video_rows(data, videos)
    if data.warnings:
        lines += ["", *(f"warning: {text}" for text in data.warnings[:_MAX_WARNINGS])]
        more = len(data.warnings) - _MAX_WARNINGS
        lines += [f"and {more} more warnings"] if more > 0 else []
    elif exceptions:
        lines.append(
            f"\nwarning: the judges' scores of {len(exceptions)} {noun}s do not give the final score (training uses the final score):"
        )
        lines += [
            f"  {a.name}  {' '.join(f'{j:g}' for j in a.judge_scores or ())} at difficulty {a.difficulty or 1:g} give {judged_score(a):.2f}, not {a.final_score:.2f}"
            for a in exceptions
        ]
    return "\n".join(lines)


def _lists_text(data: DataSet) -> str:
    if list(data.splits) == ["official"]:
        split = data.splits["official"]
        return f"{len(split.train)} in the train list, {len(split.test)} in the test list"
    return data.splits_text


def _spread(values: Iterable[float], digits: int = 1) -> str:
    low, median, high = np.percentile(list(values), [0, 50, 100])
    return f"{low:.{digits}f} to {high:.{digits}f}, median {median:.{digits}f}"


def _counts(actions: Iterable[Action], name: str, words: Sequence[str] = ()) -> str:
    counted = sorted(Counter(a.need(name) for a in actions).items())
    return ", ".join(f"{words[value] if words else value}: {count}" for value, count in counted)


def _value_lines(data: DataSet, actions: Sequence[Action]) -> list[str]:
    """Final scores of each kind, the range that the data set states for them, and difficulties."""
    lines = []
    official = data.splits.get("official")
    parts = [("to train", set(official.train)), ("to test", set(official.test))] if official else []
    for kind in sorted({a.kind for a in actions}):
        scores = [a.final_score for a in actions if a.kind == kind and a.final_score is not None]
        if scores:
            counts = [f"{sum(a.kind == kind and a.key in keys for a in actions)} {text}" for text, keys in parts]
            rules = data.rules.get(kind)
            counts += [f"range {rules.low:g} to {rules.high:g}"] if rules else []
            of_kind = f" ({kind}: {', '.join([f'{len(scores)} {actions[0].noun}s', *counts])})" if kind else ""
            lines.append(f"final score    {_spread(scores)}; {len(set(scores))} distinct{of_kind}")
    if difficulties := [a.difficulty for a in actions if a.difficulty is not None]:
        lines.append(f"difficulty     {_spread(difficulties)}; {len(set(difficulties))} distinct")
    return lines


def _label_lines(data: DataSet, actions: Sequence[Action]) -> list[str]:
    """The number of actions of each class, and of groups."""
    lines = []
    if data.classes:
        labels = Counter(a.label for a in actions)
        counts = ", ".join(f"{name}: {labels[i]}" for i, name in enumerate(data.classes))
        lines.append(f"classes        {len(data.classes)} ({counts})")
    if groups := {a.group for a in actions if a.group}:
        lines.append(f"groups         {len(groups)}")
    return lines


def _dive_lines(actions: Sequence[Action]) -> list[str]:
    """What only dives have, if all have it."""
    lines = []
    for name, words in (("position", POSITIONS), ("rotation_type", ROTATION_TYPES)):
        if all(has_field(a, name) for a in actions):
            lines.append(f"{name:<14} {_counts(actions, name, words)}")
    for name, text in (("armstand", "armstand"), ("ss_no", "half somersaults"), ("tw_no", "half twists")):
        if all(has_field(a, name) for a in actions):
            lines.append(f"{name:<14} {_counts(actions, name)} ({text})")
    if numbers := {a.need("dive_number") for a in actions if has_field(a, "dive_number")}:
        lines.append(f"dive numbers   {len(numbers)} distinct")
    if captions := sum(has_field(a, "caption") for a in actions):
        lines.append(f"captions       {captions} dives")
    return lines


def _video_rows(data: DataSet, videos: Sequence[str]) -> list[str]:
    """A table with a row for each video."""
    actions = list(data.actions.values())
    train, test = ({key for s in data.splits.values() for key in getattr(s, part)} for part in ("train", "test"))
    in_train, in_test = Counter(video for video, _ in train), Counter(video for video, _ in test)
    wide = max(5, *map(len, videos))
    lines = [
        f"\n{'video':<{wide}} {actions[0].noun + 's':>7}   train    test   first frame   last frame   frames in {actions[0].noun}s"
    ]
    for video in videos:
        of = [a for a in actions if a.video == video]
        lines.append(
            f"{video:>{wide}} {len(of):>7} {in_train[video]:>7} {in_test[video]:>7} {min(a.start_frame for a in of):>13} {max(a.end_frame for a in of):>12} {sum(a.frame_count for a in of):>17}"
        )
    return lines
