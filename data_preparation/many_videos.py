"""Messages about thousands of videos in few lines (imports nothing of the project)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

MAX_LINES = 40  # up to this many videos have a line each
_NAMED = 5  # videos that a line about more of them names


def names_text(videos: Sequence[str], separator: str = " ") -> str:
    """The names of videos: all of them if they are few, else the first ones and the number of the others."""
    if len(videos) <= MAX_LINES:
        return separator.join(videos)
    return f"{separator.join(videos[:_NAMED])} and {len(videos) - _NAMED} more"


def grouped_lines(messages: Iterable[tuple[str, str]]) -> list[str]:
    """A line for each (video, message), or for all videos with the same message if there are more than MAX_LINES."""
    pairs = list(messages)
    if len(pairs) <= MAX_LINES:
        return [f"video {video}: {message}" for video, message in pairs]
    by_message: dict[str, list[str]] = {}
    for video, message in pairs:
        by_message.setdefault(message, []).append(video)
    return [
        f"video {videos[0]}: {message}"
        if len(videos) == 1
        else f"{len(videos)} videos ({', '.join(videos[:_NAMED])}{', ...' if len(videos) > _NAMED else ''}): {message}"
        for message, videos in by_message.items()
    ]
