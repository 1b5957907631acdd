"""The examples of CONTRIBUTING.md are current, and run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from data_preparation.annotations import load_annotations
from tests.conftest import REPOSITORY, data_flags, run_python
from tests.examples import CONTRIBUTING, blocks, write


def test_contributing_shows_the_examples():
    text = CONTRIBUTING.read_text()
    for name, block in blocks().items():
        assert f"<!-- {name} -->\n{block}\n<!-- end of {name} -->" in text, "run python -m tests.examples"


@pytest.mark.slow
def test_the_example_plug_ins_pass_conformance_tests_and_train(tmp_path: Path, dataset: Path):
    write("method example", tmp_path / "plugins")
    write("backbone example", tmp_path / "plugins")
    env = {"DEEPSPORTS_PLUGINS": str(tmp_path / "plugins")}
    conformance = str(REPOSITORY / "tests" / "training" / "test_conformance.py")
    done = run_python(
        "-m",
        "pytest",
        "-q",
        conformance,
        "-k",
        "(huber and features or c3d_norm) and (own_clip or whole)",
        env=env,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    flags = ["--model", "c3d_norm", "--method", "huber", "--huber_delta", "0.2", "--topology", "16", "--dropout", "0"]
    small = ["--spatial_size", "16", "--frame_num", "16", "--epochs", "1", "--workers", "0", "--gpu", "False"]
    runs = ["--runs_dir", str(tmp_path / "runs"), "--evaluate", "True"]
    out = run_python("-m", "training.train", *data_flags(dataset), *flags, *small, *runs, env=env)
    assert "Test Spearman" in out.stdout + out.stderr


def test_the_example_reader_is_found_and_used(tmp_path: Path, shared: Path):
    write("reader example", tmp_path)
    files = shared / "mtl_aqa"
    lists = ["--train_path", files / "train_split_0.pkl", "--test_path", files / "test_split_0.pkl"]
    annotations = ["--annotation_path", files / "final_annotations_dict.pkl", "--dataset_kind", "from_zero", *lists]
    env = {"DEEPSPORTS_PLUGINS": str(tmp_path)}
    out = run_python("-m", "data_preparation.annotations", "summary", *annotations, env=env).stdout
    assert "1412 in 15 videos" in out
    assert re.search(r"^ +01 +191 +140 +51 +7378 +291972 +22318$", out, re.MULTILINE)  # one frame later


@pytest.mark.slow
def test_the_example_data_set_is_downloaded_extracted_and_verified(tmp_path: Path):
    source = tmp_path / "source"
    run_python("-m", "data_preparation.synthetic", "--dataset", source, "--videos", "1", "--dives", "8")
    write("data set example", tmp_path)
    folder = tmp_path / "my_dives"
    (video,) = (source / "whole_videos").glob("*.mp4")
    catalogue = folder / "catalogue.ini"
    catalogue.write_text(catalogue.read_text().replace("/path/of/my_dives.mp4", str(video)))
    dives = load_annotations(source / "annotations" / "final_annotations_dict.pkl").values()
    header = "video,dive,start_frame,end_frame,difficulty,final_score"
    rows = [f"27,{d.number},{d.start_frame},{d.end_frame},{d.difficulty},{d.final_score}" for d in dives]
    (folder / "dives.csv").write_text("\n".join([header, *rows]))
    assert f"{header}\n27," in CONTRIBUTING.read_text()
    for name, part in (("train", range(1, 6)), ("test", range(6, 9))):
        (folder / f"{name}.csv").write_text("\n".join(["video,dive", *(f"27,{dive}" for dive in part)]))

    env = {"DEEPSPORTS_DATASET": str(folder)}
    annotations = ["--annotation_path", folder / "dives.csv"]
    lists = ["--train_path", folder / "train.csv", "--test_path", folder / "test.csv"]
    run_python("-m", "data_preparation.download", "videos", "--only", "27", "--catalogue", catalogue, env=env)
    run_python("-m", "data_preparation.extract", *annotations, env=env)
    done = run_python("-m", "data_preparation.verify", *annotations, *lists, env=env)
    assert "8 dives" in done.stdout + done.stderr
