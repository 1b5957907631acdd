"""The count and the list of the actions that two data sets share."""

from __future__ import annotations

from pathlib import Path

from data_preparation.annotations import load_split, write_split
from tests.conftest import run_main


def test_the_shared_actions_are_counted_and_listed(shared: Path, tmp_path: Path):
    folder = shared / "mtl_aqa"
    train, test = (load_split(folder / f"{part}_split_0.pkl") for part in ("train", "test"))
    lists = tmp_path / "other_train.pkl", tmp_path / "other_test.pkl"
    write_split(lists[0], train[:100])
    write_split(lists[1], [*train[100:140], *test[:60]])
    first = ["--annotation_path", folder / "final_annotations_dict.pkl", "--train_path", folder / "train_split_0.pkl"]
    first += ["--test_path", folder / "test_split_0.pkl"]
    other = ["--other_annotation_path", folder / "final_annotations_dict_with_dive_number.pkl"]
    other += ["--other_train_path", lists[0], "--other_test_path", lists[1]]
    output = tmp_path / "leave_out.csv"
    text = run_main("data_preparation.overlap", *first, *other, "--output", output).stdout
    print(text)
    rows = {tuple(line.split()[:2]): line.split()[2:] for line in text.splitlines()[1:4]}
    assert rows == {
        ("mtl_aqa", "train"): ["1059", "100", "40", "1059"],
        ("mtl_aqa", "test"): ["353", "0", "60", "353"],
        ("mtl_aqa", "all"): ["1412", "100", "100", "1412"],
    }
    assert set(load_split(output)) == {*train[100:140], *test[:60]}

    for arguments, words in (
        ([], "--annotation_path, --other_annotation_path missing"),
        ([*first[:2], *other], "give the train and the test list"),
        ([*first, *other, "--root_dir", tmp_path / "absent"], "is not a folder"),
        ([*first, *other, "--output", tmp_path / "list.txt"], "give a name that ends in .pkl, .csv, .json"),
    ):
        done = run_main("data_preparation.overlap", *arguments, check=False)
        assert done.returncode == 2
        assert words in done.stderr
