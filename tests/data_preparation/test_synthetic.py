"""The synthetic data set: labels by MTL-AQA's rules, files in its formats, frames at their annotated numbers."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import PictureType

from data_preparation.actions import ATTRIBUTE_CLASSES, Dive, plain_key
from data_preparation.annotations import (
    load_annotations,
    load_captions,
    load_split,
    load_vocabulary,
)
from data_preparation.common.command_line import parse, to_argv
from data_preparation.common.errors import UserError
from data_preparation.layout import DatasetLayout
from data_preparation.pickles import load_pickle
from data_preparation.synthetic import dives as synthetic
from data_preparation.synthetic.diver import BOARDS, FILLERS
from data_preparation.synthetic.dives import REPERTOIRE, SyntheticConfig
from tests.conftest import PATIENCE_S, run_python

REAL = Path(__file__).resolve().parents[3] / "shared" / "mtl_aqa" / "final_annotations_dict.pkl"
SMALL = SyntheticConfig(videos=2, dives=13, width=64, height=36, filler=7, workers=1, seed=3)
KEYS = {"primary_view", "start_frame", "end_frame", "difficulty", "final_score", *ATTRIBUTE_CLASSES}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> DatasetLayout:
    root = tmp_path_factory.mktemp("synthetic") / "set"
    synthetic.generate(replace(SMALL, dataset=root))
    return DatasetLayout(root)


@pytest.fixture(scope="module")
def dives(made: DatasetLayout) -> dict[tuple[int, int], Dive]:
    numbered = made.annotations / "final_annotations_dict_with_dive_number.pkl"
    return load_annotations(numbered, made.captions_file)


@pytest.fixture
def real_file() -> Path:
    if not REAL.exists():
        pytest.skip(f"{REAL} is not here")
    return REAL


def content(root: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Mean difference in brightness (H.264 halves the resolution of colour)."""
    return float(np.abs(a.mean(axis=2) - b.mean(axis=2)).mean())


def frames(path: Path) -> Iterator[np.ndarray]:
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            yield frame.to_ndarray(format="rgb24")


# ------------------------------------------------------------------------------------------------------- the labels


@pytest.mark.parametrize("listed", REPERTOIRE, ids=lambda listed: f"{listed.number}-{listed.kind}")
def test_repertoire(listed):
    fields = synthetic.attributes(listed.number)
    dive = Dive("01", 1, 1, 50, difficulty=listed.difficulty, final_score=60.0, **fields)
    assert synthetic.dive_number(dive) == listed.number
    assert 1.5 <= listed.difficulty <= 4.1
    assert all(0 <= fields[name] < classes for name, classes in ATTRIBUTE_CLASSES.items())
    assert listed.kind == "platform" or not fields["armstand"]
    feet_first = (fields["ss_no"] + fields["armstand"]) % 2 == 0
    assert not feet_first or fields["armstand"] == 0
    board = synthetic.choose_board(listed.kind, listed.difficulty)
    assert board in BOARDS
    assert board.kind == listed.kind


def test_dive_numbers_are_read_as_mtl_aqa_does(real_file):
    numbered = load_annotations(real_file.with_name("final_annotations_dict_with_dive_number.pkl"))
    for dive in numbered.values():
        assert synthetic.dive_number(dive) == dive.dive_number
        assert synthetic.attributes(dive.dive_number) == {name: getattr(dive, name) for name in ATTRIBUTE_CLASSES}


def test_distributions_are_those_of_mtl_aqa():
    sampled = [dive for plan in synthetic.sample_plan(SyntheticConfig()) for dive in plan.dives]
    difficulty = np.array([dive.difficulty for dive in sampled])
    execution = np.array([synthetic.execution_of(dive) for dive in sampled])
    assert len(sampled) == 1200
    assert difficulty.std() / difficulty.mean() == pytest.approx(0.135, abs=0.015)
    assert execution.std() / execution.mean() == pytest.approx(0.187, abs=0.02)
    assert np.corrcoef(difficulty, execution)[0, 1] == pytest.approx(0, abs=0.1)


@pytest.mark.parametrize("total", [0, 0.5, 12.5, 22.5, 27.2, 29.5, 30])
def test_judges_of_a_total(total):
    judges = synthetic.judge_scores_for_total(total, np.random.default_rng(0))
    assert len(judges) == 7
    assert all(0 <= score <= 10 and score * 2 == int(score * 2) for score in judges)
    assert sum(sorted(judges)[2:5]) == pytest.approx(total, abs=0.25)


def test_scoring_rule(dives):
    for dive in dives.values():
        assert len(dive.judge_scores) == 7
        assert all(0 <= score <= 10 and score * 2 == int(score * 2) for score in dive.judge_scores)
        assert dive.final_score == pytest.approx(sum(sorted(dive.judge_scores)[2:5]) * dive.difficulty)
        assert synthetic.dive_number(dive) == dive.dive_number


# --------------------------------------------------------------------------------------------------------- the files


def test_annotation_files_have_the_formats_of_mtl_aqa(made, dives):
    plain = load_pickle(made.annotation_file)
    enriched = load_pickle(made.annotations / "final_annotations_dict_with_dive_number.pkl")
    assert made.annotation_file.read_bytes()[:2] == b"\x80\x03"
    assert list(plain) == list(enriched) == [plain_key(key) for key in dives]
    for key, fields in plain.items():
        assert all(type(part) is int for part in key)
        assert set(fields) == KEYS
        assert fields["primary_view"] == 0
        assert all(type(fields[k]) is (float if k in ("difficulty", "final_score") else int) for k in fields)
        more = enriched[key]
        assert set(more) == KEYS | {"judge_scores", "dive_number"}
        assert {k: more[k] for k in fields} == fields
        judges = np.asarray(more["judge_scores"])
        assert judges.dtype == np.float64
        assert judges.shape == (7,)


def test_vocabulary_covers_the_captions(made, dives):
    words = load_vocabulary(made.vocabulary_file)
    assert words[:2] == ["<eos>", "<sos>"]
    captions = load_captions(made.captions_file)
    assert set(captions) == set(dives)
    assert {word for tokens in captions.values() for word in tokens} == set(words)
    assert all(tokens[0] == "<sos>" and tokens[-1] == "<eos>" for tokens in captions.values())
    index = json.loads(made.vocabulary_file.read_text())["word_to_ix"]
    assert [index[word] for word in words] == list(range(len(words)))


def test_splits(made, dives):
    train, test = load_split(made.train_file), load_split(made.test_file)
    assert not set(train) & set(test)
    assert set(train) | set(test) == set(dives)
    assert {video for video, _ in train} == {video for video, _ in test} == {"01", "02"}
    assert len(test) / len(dives) == pytest.approx(0.25, abs=0.06)
    assert train != sorted(train)


# -------------------------------------------------------------------------------------------------------- the videos


def test_dives_and_filler_follow_each_other(dives):
    for video in ("01", "02"):
        last = 0
        for dive in sorted((d for d in dives.values() if d.video == video), key=lambda d: d.number):
            assert dive.start_frame == last + SMALL.filler + 1
            assert SMALL.min_frames <= dive.frame_count <= SMALL.max_frames
            last = dive.end_frame


def test_frame_k_of_the_video_is_frame_k_of_the_plan(made):
    config = replace(SMALL, dataset=made.root)
    for plan in synthetic.make_plan(config):
        drawn = [np.asarray(image) for image in synthetic.render_frames(config, plan)]
        decoded = list(frames(made.video_file(plan.video)))
        assert len(decoded) == len(drawn) == plan.frames == plan.dives[-1].end_frame + SMALL.filler
        for dive in plan.dives:  # both ends are cuts, so a shift by one frame would show filler
            for cut in (dive.start_frame - 1, dive.end_frame):
                before, after = drawn[cut - 1], drawn[cut]
                assert 2 * distance(decoded[cut - 1], before) < distance(decoded[cut - 1], after), f"frame {cut}"
                assert 2 * distance(decoded[cut], after) < distance(decoded[cut], before), f"frame {cut + 1}"


def test_stream_is_like_a_broadcast(made):
    with av.open(str(made.video_file("01"))) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.width, stream.height, stream.average_rate) == (64, 36, 25)
        kinds = [PictureType(frame.pict_type).name for frame in container.decode(stream)]
    assert "B" in kinds


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="ffmpeg is not installed")
def test_ffmpeg_has_the_same_frame_numbers(made, tmp_path):
    command = ["ffmpeg", "-v", "error", "-i", str(made.video_file("01")), str(tmp_path / "%06d.png")]
    subprocess.run(command, check=True, timeout=PATIENCE_S)
    written = sorted(p.name for p in tmp_path.glob("*.png"))
    decoded = list(frames(made.video_file("01")))
    assert written == [f"{k:06d}.png" for k in range(1, len(decoded) + 1)]
    for k in (1, 8, 9, 60, len(decoded)):
        with av.open(str(tmp_path / f"{k:06d}.png")) as container:
            picture = next(container.decode(video=0)).to_ndarray(format="rgb24")
        assert np.abs(picture.astype(int) - decoded[k - 1]).mean() < 1


def test_dives_differ_from_filler_and_end_in_a_splash():
    config = replace(SMALL, width=160, height=90)
    plan = synthetic.make_plan(config)[0]
    drawn = [np.asarray(image).astype(int) for image in synthetic.render_frames(config, plan)]
    for dive in plan.dives:
        start, end = drawn[dive.start_frame - 1], drawn[dive.end_frame - 1]
        assert np.abs(start - drawn[dive.start_frame - 2]).mean() > 3
        assert np.abs(end - drawn[dive.end_frame]).mean() > 3
        assert (end.min(axis=2) > 240).sum() > 20  # foam
        assert (start.min(axis=2) > 240).sum() == 0


def test_better_dives_splash_less():
    stage = synthetic.make_stage(SMALL, 1)
    foam = []
    for execution in (0.95, 0.75, 0.5, 0.2):
        dive = Dive("01", 1, 1, 50, difficulty=3.2, final_score=execution * 96, **synthetic.attributes("407C"))
        plan = synthetic.make_performance(dive, BOARDS[-1], np.random.default_rng(0))
        foam.append(int((np.asarray(stage.dive_frame(plan, 0.8)).min(axis=2) > 235).sum()))
    assert foam == sorted(foam)
    assert foam[-1] > 4 * foam[0]


@pytest.mark.parametrize("kind", FILLERS)
def test_every_filler_is_drawn(kind):
    stage = synthetic.make_stage(SMALL, 1)
    dive = Dive("01", 1, 1, 50, difficulty=3.2, final_score=80.0, **synthetic.attributes("5253B"))
    plan = synthetic.make_performance(dive, BOARDS[0], np.random.default_rng(0))
    for share in (0.0, 0.5, 1.0):
        assert stage.filler_frame(kind, plan, share).size == (SMALL.width, SMALL.height)


# ---------------------------------------------------------------------------------- reproducibility and existing folders


def test_workers_do_not_change_a_byte_and_a_second_call_reuses(made, tmp_path):
    config = replace(SMALL, dataset=tmp_path / "again", workers=2)
    synthetic.generate(config)
    first = content(tmp_path / "again")
    assert first == content(made.root)

    (tmp_path / "again" / "whole_videos" / "02.mp4").unlink()
    kept = tmp_path / "again" / "whole_videos" / "01.mp4"
    before = kept.stat().st_mtime_ns
    synthetic.generate(config)
    assert kept.stat().st_mtime_ns == before
    assert content(tmp_path / "again") == first


@pytest.mark.parametrize("pattern", ["1", "170"])
def test_uninitialised_memory_does_not_change_a_byte(made, tmp_path, pattern):
    config = replace(SMALL, dataset=tmp_path / "again")
    env = {"MALLOC_PERTURB_": pattern}  # the C library fills new memory with this byte
    run_python("-m", "data_preparation.synthetic", *to_argv(config), env=env)
    assert content(tmp_path / "again") == content(made.root)


def test_another_seed_gives_another_set(dives):
    other = synthetic.make_plan(replace(SMALL, seed=4))
    assert [dive.final_score for plan in other for dive in plan.dives] != [d.final_score for d in dives.values()]


def test_different_flags_in_one_folder_are_refused(made):
    before = content(made.root)
    with pytest.raises(UserError, match=r"other flags \(--noise\): choose another --dataset"):
        synthetic.generate(replace(SMALL, dataset=made.root, noise=1.0))
    assert content(made.root) == before


def test_a_folder_with_real_videos_is_refused(tmp_path):
    (tmp_path / "whole_videos").mkdir()
    (tmp_path / "whole_videos" / "01.mp4").write_bytes(b"a real one")
    with pytest.raises(UserError, match="is not synthetic"):
        synthetic.generate(replace(SMALL, dataset=tmp_path))
    assert [p.name for p in tmp_path.rglob("*.*")] == ["01.mp4"]


def test_an_interrupted_video_leaves_no_file(tmp_path):
    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        synthetic.write_video(SMALL, synthetic.make_plan(SMALL)[0], tmp_path / "01.mp4", stop)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--width", "65"], "--width 65 is odd"),
        (["--min_frames", "60", "--max_frames", "50"], "--min_frames 60 is greater"),
        (["--videos", "9", "--dives", "10"], "--dives 10 is too few"),
        (["--keep_timeline", "True"], "add --like PATH"),
        (["--like", "/nowhere.pkl", "--dataset", "/nowhere"], "/nowhere.pkl is not a file"),
        (["--videos", "1", "--dives", "2"], "give --dataset DIR"),
    ],
)
def test_errors_are_reported(argv, sentence, monkeypatch):
    monkeypatch.delenv("DEEPSPORTS_DATASET", raising=False)
    with pytest.raises(UserError, match=sentence):
        synthetic.generate(parse(SyntheticConfig, argv))


# --------------------------------------------------------------------------------------------- imitation of a real file


def test_like_keeps_videos_labels_and_lengths(real_file, tmp_path):
    config = SyntheticConfig(dataset=tmp_path, like=real_file, dives=20, width=64, height=36, filler=5)
    plans = synthetic.generate(config)
    real, imitation = load_annotations(real_file), load_annotations(DatasetLayout(tmp_path).annotation_file)
    assert len(imitation) == 20
    assert len(plans) > 10  # thinned evenly, not cut off
    for key, dive in imitation.items():
        moved = replace(real[key], start_frame=dive.start_frame, end_frame=dive.end_frame)
        assert dive == moved
        assert dive.frame_count == real[key].frame_count
    for plan in plans:
        last = 0
        for dive in plan.dives:
            assert dive.start_frame == last + 6
            last = dive.end_frame
            assert sum(sorted(dive.judge_scores)[2:5]) * dive.difficulty == pytest.approx(dive.final_score, abs=1.1)
    train, test = (load_split(p) for p in (DatasetLayout(tmp_path).train_file, DatasetLayout(tmp_path).test_file))
    official = load_split(real_file.with_name("test_split_0.pkl"))
    assert test == [key for key in official if key in imitation]
    assert set(train) | set(test) == set(imitation)


def test_keep_timeline_keeps_all_frame_numbers(real_file):
    plans = synthetic.plan_like(SyntheticConfig(like=real_file, keep_timeline=True))
    real = load_annotations(real_file)
    assert sum(len(plan.dives) for plan in plans) == len(real) == 1412
    for plan in plans:
        for dive in plan.dives:
            assert (dive.start_frame, dive.end_frame) == (real[dive.key].start_frame, real[dive.key].end_frame)
    # Springboard events hold no armstand dives; platform events may hold anything.
    assert {p.video for p in plans if p.boards[0].kind == "springboard"} == {"17", "18", "22"}


def test_like_refuses_overlapping_dives(tmp_path):
    fields = synthetic.annotation(
        Dive("01", 1, 10, 60, difficulty=3.2, final_score=80.0, **synthetic.attributes("407C"))
    )
    path = tmp_path / "overlap.pkl"
    path.write_bytes(pickle.dumps({(1, 1): fields, (1, 2): {**fields, "start_frame": 60, "end_frame": 90}}))
    with pytest.raises(UserError, match=r"dive 01/002: .* overlap those of dive 01/001"):
        synthetic.plan_like(SyntheticConfig(like=path))


def test_like_needs_the_attributes(tmp_path):
    path = tmp_path / "bare.pkl"
    path.write_bytes(pickle.dumps({(1, 1): dict(start_frame=1, end_frame=50, difficulty=3.0, final_score=60.0)}))
    with pytest.raises(UserError, match=r"has no position, .* for dive 01/001"):
        synthetic.plan_like(SyntheticConfig(like=path))


# ---------------------------------------------------------------------------------------------------- contact sheet


def test_contact_sheet(tmp_path):
    path = tmp_path / "figures" / "sheet.png"
    synthetic.main(["--sheet", str(path), "--dives", "60"])
    assert path.read_bytes()[:4] == b"\x89PNG"
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["sheet.png"]
