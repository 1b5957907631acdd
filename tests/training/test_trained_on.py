"""A run is refused if its test split holds actions that its starting weights or features were trained on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from data_preparation.annotations import load_annotations, load_split, write_split
from data_preparation.identity import TrainedOn, identities, source_hashes
from tests.conftest import data_flags, run_main, tiny_model
from training.runtime import checkpoint


def entry_of(run: Path) -> TrainedOn:
    return TrainedOn.from_text(checkpoint.load(run / "checkpoints" / "best.pt")["trained_on"])


@pytest.fixture
def lists(dataset: Path) -> tuple[list, list]:
    train, test = (load_split(dataset / "annotations" / f"{part}_split_0.pkl") for part in ("train", "test"))
    return train, test


@pytest.fixture
def pretrained(train, dataset: Path, lists, tmp_path: Path) -> Path:
    """The folder of a run that trained and validated on 20 train dives and 5 test dives of the data set."""
    known, test = lists
    write_split(tmp_path / "train.csv", [*known[:20], *test[:5]])
    write_split(tmp_path / "test.csv", known[20:25])
    train("--run_name", "first", "--epochs", 1, "--train_path", tmp_path / "train.csv", "--test_path", tmp_path / "test.csv")  # fmt: skip
    return tmp_path / "runs" / "first"


def test_weights_that_know_test_actions_are_refused_along_a_chain(
    train, dataset: Path, lists, pretrained: Path, tmp_path: Path
):
    weights, runs = pretrained / "checkpoints" / "best.pt", pretrained.parent
    known, test = lists
    found = identities(
        load_annotations(dataset / "annotations" / "final_annotations_dict.pkl").values(),
        source_hashes(dataset / "whole_videos_frames", ["01", "02"]),
    )
    assert entry_of(pretrained) == TrainedOn.of(found[key] for key in [*known[:20], *test[:5]])

    done = train("--run_name", "second", "--epochs", 1, "--pretrained_model", weights, check=False)
    print(done.stderr)
    assert done.returncode == 2
    assert f"weight file {weights}" not in done.stderr  # no warning: the weights state what they know
    assert f"--pretrained_model {weights} was trained on 5 of the {len(test)} test actions" in done.stderr
    listed = runs / "second" / "leave_out.csv"
    assert f"give --leave_out {listed}" in done.stderr
    assert set(load_split(listed)) == set(test[:5])
    assert [file.name for file in listed.parent.iterdir()] == [listed.name]

    # launch.submit learns it from the forecast, before the job queues
    forecast = [0, *data_flags(dataset), *tiny_model(), "--runs_dir", tmp_path, "--pretrained_model", weights]
    done = run_main("training.forecast", *forecast, check=False)
    assert (done.returncode, "5 of the" in done.stderr) == (2, True)

    train("--run_name", "second", "--epochs", 1, "--pretrained_model", weights, "--leave_out", listed, "--evaluate", "True")  # fmt: skip
    lines = (runs / "second" / "predictions.csv").read_text().splitlines()
    assert len(lines) == 1 + len(test) - 5
    assert entry_of(runs / "second") == TrainedOn.of(found[key] for key in [*known, *test[:5]])

    # the second run did not train on the five dives itself, but it inherits them
    second = runs / "second" / "checkpoints" / "best.pt"
    done = train("--run_name", "third", "--epochs", 1, "--pretrained_model", second, check=False)
    assert done.returncode == 2
    assert f"5 of the {len(test)} test actions" in done.stderr


def test_weights_that_state_nothing(train, pretrained: Path, tmp_path: Path):
    best = checkpoint.load(pretrained / "checkpoints" / "best.pt")
    old, published = tmp_path / "old.pt", tmp_path / "published.pth"
    torch.save({name: value for name, value in best.items() if name != "trained_on"}, old)
    torch.save(
        {n.removeprefix("backbone."): t for n, t in best["model"].items() if n.startswith("backbone.")}, published
    )
    words = "not checked whether the test split holds some of them"

    done = train("--run_name", "old", "--epochs", 1, "--pretrained_model", old)
    assert done.stderr.count(words) == 1
    assert f"{old} does not state which actions it was trained on (an older version wrote it)" in done.stderr
    assert not entry_of(pretrained.parent / "old").is_complete
    inherited = pretrained.parent / "old" / "checkpoints" / "best.pt"
    done = train("--run_name", "next", "--epochs", 1, "--pretrained_model", inherited)
    assert done.stderr.count(words) == 1
    assert words not in train("--run_name", "published", "--epochs", 1, "--pretrained_model", published).stderr

    torch.save({**best, "trained_on": "[]"}, old)
    done = train("--run_name", "damaged", "--pretrained_model", old, check=False)
    assert done.returncode == 2
    assert "is damaged" in done.stderr


def test_a_frozen_backbone_passes_on_what_it_was_trained_on_before(train, lists, pretrained: Path):
    weights, runs = pretrained / "checkpoints" / "best.pt", pretrained.parent
    head_first = ["--epochs", 1, "--freeze", "True", "--train_path", pretrained.parent.parent / "train.csv"]
    head_first += ["--test_path", pretrained.parent.parent / "test.csv"]
    train("--run_name", "frozen", *head_first)  # random weights, the head is trained on five of the test dives
    train("--run_name", "next", "--epochs", 1, "--pretrained_model", runs / "frozen" / "checkpoints" / "best.pt")
    train("--run_name", "frozen-pretrained", *head_first, "--pretrained_model", weights)
    frozen = runs / "frozen-pretrained" / "checkpoints" / "best.pt"
    done = train("--run_name", "last", "--epochs", 1, "--pretrained_model", frozen, check=False)
    assert done.returncode == 2
    assert "5 of the" in done.stderr


def test_features_of_a_network_that_knows_test_actions(dataset: Path, lists, pretrained: Path, tmp_path: Path):
    features = tmp_path / "features.npz"
    run_main("training.extract_features", "--run", pretrained, "--output", features)
    svr = ["--model", "features", "--features", features, "--method", "svr"]
    flags = [*data_flags(dataset), "--runs_dir", tmp_path / "runs", *tiny_model(*svr), *svr]
    done = run_main("training.train", *flags, "--run_name", "svr", check=False)
    assert done.returncode == 2
    assert f"--features {features} was trained on 5 of the {len(lists[1])} test actions" in done.stderr
    listed = tmp_path / "runs" / "svr" / "leave_out.csv"
    run_main("training.train", *flags, "--run_name", "svr", "--leave_out", listed)
    assert entry_of(tmp_path / "runs" / "svr").labels > entry_of(pretrained).labels


def test_one_video_under_two_names_in_one_table(dataset: Path, tmp_path: Path):
    """The dives of video 01 are listed again as those of video 07, which is the same file."""
    frames = tmp_path / "frames"
    frames.mkdir()
    for name, source in (("01", "01"), ("02", "02"), ("07", "01")):
        (frames / f"{name}.zip").symlink_to(dataset / "whole_videos_frames" / f"{source}.zip")
    dives = load_annotations(dataset / "annotations" / "final_annotations_dict.pkl").values()
    rows = ["video,dive,start_frame,end_frame,difficulty,final_score"]
    rows += [f"{d.video},{d.number},{d.start_frame},{d.end_frame},{d.difficulty},{d.final_score}" for d in dives]
    rows += [f"7,{d.number},{d.start_frame + 1},{d.end_frame},{d.difficulty},1.5" for d in dives if d.video == "01"]
    (tmp_path / "table.csv").write_text("\n".join(rows))
    write_split(tmp_path / "train.csv", [d.key for d in dives])
    write_split(tmp_path / "test.csv", [("07", d.number) for d in dives if d.video == "01"][:9])
    flags = ["--root_dir", frames, "--annotation_path", tmp_path / "table.csv", "--train_path", tmp_path / "train.csv"]
    flags += ["--test_path", tmp_path / "test.csv", "--runs_dir", tmp_path / "runs", *tiny_model()]
    done = run_main("training.train", *flags, check=False)
    assert done.returncode == 2
    assert "the train list has 9 of the 9 test actions" in done.stderr
    assert "give another test split, or other lists" in done.stderr
