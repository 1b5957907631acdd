"""A judge that needs no network, for tests of the judge page. It reads files as the real one does; a clip with a special ending
makes it crash or hang, as decoders do."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

from data_preparation.common.errors import UserError
from training.judge_page.judging import read_video
from training.judge_page.records import Question, RunFacts, Verdict, VideoFacts

CRASH, HANG = b"decoder crashes here", b"decoder hangs here"
GO = "go"  # a file in the folder of a clip that ends the hanging
DIFFICULTY = Question("difficulty", "Difficulty", "such as 3.2", is_number=True)


class StandIn:
    facts = RunFacts("stand-in", (DIFFICULTY,), ("difficulty given",))

    def read(self, path: Path, folder: Path) -> VideoFacts:
        content = path.read_bytes()
        if content.endswith(CRASH):
            os.abort()
        while content.endswith(HANG) and not (folder / GO).exists():
            time.sleep(0.05)
        return read_video(path, folder)

    def score(self, path: Path, name: str, start: int, end: int, answers: Mapping[str, str], folder: Path) -> Verdict:
        if float(answers["difficulty"]) > 9:
            raise UserError(f"{path} cannot be scored: its difficulty is too large")
        (folder / "sheet.png").write_bytes(b"a picture")
        return Verdict(
            f"frames {start} to {end}", "71.5", "points", (60.0, 83.0), 71.5, (0.0, 104.5), pictures=("sheet.png",)
        )


class NoRun:
    def __init__(self) -> None:
        raise UserError("runs/none has no run: give a run folder")
