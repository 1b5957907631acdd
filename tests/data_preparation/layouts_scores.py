"""Draw the released files of data sets of scores: AQA-7, JIGSAWS, UNLV-Dive. The numbers of clips, ranges and sums are those of
the releases; the scores are drawn."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np

from data_preparation.datasets import aqa7, jigsaws, unlv_dive

POINTS = {  # lowest and highest score of the train list and of the test list
    1: ((29.70, 102.60), (21.60, 102.60)),
    2: ((12.30, 16.87), (13.10, 16.67)),
    3: ((8, 50), (8, 47)),
    4: ((8, 50), (8, 50)),
    5: ((46.20, 104.88), (47.40, 100.32)),
    6: ((49.80, 93.96), (51.00, 99.36)),
}
HARD_TRIALS = {("Knot_Tying", "H"): (3, 4, 5)}  # surgeons whose trials are not the first ones
FIRST_OF_FOLD = {"Suturing": "Suturing_I002", "Needle_Passing": "Needle_Passing_B003", "Knot_Tying": "Knot_Tying_H005"}


def numbers_with_sum(count: int, chosen: int, total: int, rng: np.random.Generator) -> np.ndarray:
    """`chosen` of the numbers 1 to `count` in random order, with the sum `total`."""
    members = set(rng.permutation(count)[:chosen] + 1)
    while (lack := total - sum(members)) != 0:
        member = int(rng.choice(sorted(members)))
        other = int(np.clip(member + lack, 1, count))
        while other in members and other != member:
            other += 1 if lack < 0 else -1
        members = members - {member} | {other}
    return rng.permutation(sorted(members))


def write_aqa7(folder: Path, *, hundredfold: bool = False, seed: int = 0) -> dict[str, np.ndarray]:
    """The lists of the zip file, or with `hundredfold` those of the authors' PyTorch code; the rows in points."""
    from scipy.io import savemat

    rng = np.random.default_rng(seed)
    rows: dict[str, list[np.ndarray]] = {"train": [], "test": []}
    for number, kind in aqa7.KINDS.items():
        count = sum(kind.clips)
        train = numbers_with_sum(count, kind.clips.train, kind.number_sums.train, rng)
        test = rng.permutation(np.setdiff1d(np.arange(1, count + 1), train))
        for part, clips, (low, high) in zip(rows, (train, test), POINTS[number], strict=True):
            scores = np.round(rng.uniform(low, high, len(clips)), 2)
            scores[rng.permutation(len(clips))[:2]] = low, high
            rows[part].append(np.column_stack([np.full(len(clips), number), clips, scores]))
    whole = {part: np.concatenate(parts).astype(np.float64) for part, parts in rows.items()}
    place = folder if hundredfold else folder / "Split_4"
    place.mkdir(parents=True, exist_ok=True)
    for part, table in whole.items():
        stored = table.copy()
        if hundredfold:  # with noise of floating point, as in 8159.999999999999
            stored[:, 2] = np.nextafter(table[:, 2] * 100, 0)
        name = f"consolidated_{part}_list"
        savemat(
            place / (f"{name}.mat" if hundredfold else f"split_4_{part}_list.mat"), {name: stored}, do_compression=True
        )
    return whole


def write_jigsaws(folder: Path, *, frames: int = 3, seed: int = 0) -> tuple[dict, dict]:
    """annotations/label.pkl, splits.pkl and frames.csv, by which each clip has `frames` frames."""
    rng = np.random.default_rng(seed)
    labels: dict[str, list[int]] = {}
    splits: dict[str, list[list[str]]] = {}
    for task, surgeons in jigsaws.TRIALS.items():
        names = [
            f"{task}_{surgeon}{trial:03d}"
            for surgeon, count in surgeons.items()
            for trial in HARD_TRIALS.get((task, surgeon), range(1, count + 1))
        ]
        labels |= {name: rng.integers(1, 6 if task == "Suturing" else 5, 6).tolist() for name in names}
        first = FIRST_OF_FOLD[task]
        order = [first, *rng.permutation([name for name in names if name != first]).tolist()]
        ends = np.cumsum(jigsaws.FOLD_SIZES[task])[:-1]
        splits[task] = [part.tolist() for part in np.split(np.array(order), ends)]
    annotations = folder / "annotations"
    annotations.mkdir(parents=True, exist_ok=True)
    for name, content in (("label", labels), ("splits", splits)):
        (annotations / f"{name}.pkl").write_bytes(pickle.dumps(content))
    rows = [f"{jigsaws.clip_video(name)},{frames}\n" for name in labels]
    (annotations / "frames.csv").write_text("clip,frames\n" + "".join(rows))
    return labels, splits


def write_unlv_dive(
    folder: Path, scores: np.ndarray, difficulties: np.ndarray, train: np.ndarray, *, suffix: str = ".npy"
) -> None:
    """The four files, as the authors of S3D store them (.npy) or as C3D-LSTM and the release do (.mat, hundredfold)."""
    from scipy.io import savemat

    folder.mkdir(parents=True, exist_ok=True)
    test = np.setdiff1d(np.arange(1, unlv_dive.DIVES + 1), train)
    if suffix == ".npy":
        for name, numbers in (("training_idx", np.sort(train)), ("testing_idx", test)):
            np.save(folder / f"{name}.npy", numbers[:, None].astype(np.uint16))
        np.save(folder / "overall_scores.npy", scores[None])
        np.save(folder / "difficulty_level.npy", difficulties[None])
        return
    for name, numbers in (("training_idx", train), ("testing_idx", test)):
        savemat(folder / f"{name}.mat", {name: numbers[None].astype(np.uint16)})
    savemat(folder / "diving_overall_scores.mat", {"overall_scores": scores[None] * 100})
    savemat(folder / "diving_difficulty_level.mat", {"difficulty_level": difficulties[None] * 100})


def drawn_unlv_dive(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, difficulties (370,) and the train numbers (300,), with the released sum of numbers."""
    rng = np.random.default_rng(seed)
    difficulties = rng.choice([3.0, 3.2, 3.3, 3.6, 3.7], unlv_dive.DIVES)
    scores = np.round(rng.integers(15, 54, unlv_dive.DIVES) / 2 * difficulties, 2)
    scores[:2] = 21.6, 102.6
    difficulties[:2] = 3.6, 3.8
    kind = unlv_dive.KIND
    return scores, difficulties, numbers_with_sum(unlv_dive.DIVES, kind.clips.train, kind.number_sums.train, rng)
