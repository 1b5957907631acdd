"""Feature files: a matrix for each action, computed in advance by a network.

    FILE.npz    one array (N, D) or (D,) for each action, named such as "03/055" (video/dive), or two arrays: "keys" (A, 2) of
                video and dive, and "features" (A, N, D) or (A, D)
    FILE.npy    one array (A, N, D) or (A, D), and next to it FILE.csv with the columns video and dive, a row for each
    FILE.h5     datasets as the arrays of an .npz file (needs h5py)

`python -m training.extract_features` writes .npz files. They also have an array "about": JSON text as bytes, with what the
network was trained on and hashes of the source videos. Reading never executes code of the file (no pickles).
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache, cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from data_preparation.actions import Action, ActionKey, action_name, list_names, plain_key, sort_key, video_name
from data_preparation.annotations import load_split
from data_preparation.common.errors import UserError, first_line

SUFFIXES = (".npz", ".npy", ".h5", ".hdf5")
ABOUT = "about"  # the array that is not named after an action


@cache
def feature_file(path: Path) -> FeatureFile:
    """The feature file of a path, read once in each process."""
    return FeatureFile(path)


class FeatureFile:
    """The features of some actions: `row(key)` is (N, D) float32. The file is read at the first use."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def rows(self) -> dict[ActionKey, np.ndarray]:
        """The features of every action by key, each (N, D) float32.

        Raises:
            UserError: the file is missing, damaged, or its arrays do not fit together.
        """
        with self._reporting_faults():
            rows = dict(_read(self.path))
        if not rows:
            raise UserError(f"--features {self.path} holds no features: write it again")
        shapes = {array.shape for array in rows.values()}
        if len(shapes) > 1:
            listed = ", ".join("x".join(map(str, shape)) for shape in sorted(shapes)[:4])
            raise UserError(
                f"--features {self.path} has actions of differing sizes ({listed}): give each the same number of vectors of the same width"
            )
        return rows

    @cached_property
    def about(self) -> dict[str, Any]:
        """What the file states about its features: "trained_on" (identity.TrainedOn as text) and "videos" (hashes of the
        source videos by name); {} for files of other programs.

        Raises:
            UserError: the file is missing or damaged.
        """
        with self._reporting_faults(), _opened(self.path) as arrays:
            if ABOUT not in arrays:
                return {}
            found = json.loads(arrays[ABOUT].tobytes())
            if not isinstance(found, dict) or not isinstance(found.get("videos"), dict):
                raise ValueError(f"its array '{ABOUT}' is not a description of features")
            return found

    @contextmanager
    def _reporting_faults(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, TypeError, KeyError, AttributeError, EOFError, zipfile.BadZipFile) as error:
            raise UserError(
                f"--features {self.path} cannot be read ({first_line(error)}): give a file that python -m training.extract_features wrote, or one as training/data/features.py describes"
            ) from None

    @property
    def width(self) -> int:
        """D, the length of a vector."""
        return next(iter(self.rows.values())).shape[1]

    def row(self, key: ActionKey) -> np.ndarray:
        """(N, D) float32."""
        return self.rows[key]

    def fingerprint(self, actions: Sequence[Action]) -> str:
        """A short hash of these actions' features."""
        digest = hashlib.sha256()
        for key in sorted((action.key for action in actions), key=sort_key):
            row = self.row(key)
            digest.update(repr((plain_key(key), row.shape)).encode() + row.tobytes())
        return digest.hexdigest()[:16]

    def faults(self, actions: Sequence[Action]) -> list[str]:
        """Messages about actions that the file lacks, and about those whose features are not finite."""
        faults = []
        if missing := [action.key for action in actions if action.key not in self.rows]:
            faults.append(
                f"--features {self.path} has no features of {len(missing)} actions ({list_names(missing)}): compute them as well (python -m training.extract_features)"
            )
        if odd := [a.key for a in actions if a.key in self.rows and not np.isfinite(self.rows[a.key]).all()]:
            faults.append(
                f"--features {self.path} holds values that are not finite for {len(odd)} actions ({list_names(odd)}): compute them again"
            )
        return faults

    def __getstate__(self) -> dict:
        return {"path": self.path}


def _read(path: Path) -> Iterator[tuple[ActionKey, np.ndarray]]:
    with _opened(path) as arrays:
        if path.suffix.lower() == ".npy":
            if not path.with_suffix(".csv").is_file():
                raise ValueError(f"{path.with_suffix('.csv').name}, which names the action of each row, is missing")
            yield from _matrix(load_split(path.with_suffix(".csv")), arrays["features"])
        else:
            yield from _arrays(arrays)


def _opened(path: Path) -> AbstractContextManager[Mapping[str, np.ndarray]]:
    """The arrays of a feature file by name; the only one of an .npy file is "features"."""
    suffix = path.suffix.lower()
    if suffix == ".npy":
        return nullcontext({"features": np.load(path, allow_pickle=False)})
    if suffix == ".npz":
        return np.load(path, allow_pickle=False)
    if suffix in SUFFIXES:
        return _hdf5(path)
    raise ValueError(f"its name does not end in {', '.join(SUFFIXES)}")


@contextmanager
def _hdf5(path: Path) -> Iterator[Mapping[str, np.ndarray]]:
    if find_spec("h5py") is None:
        raise UserError(f"--features {path} needs h5py: pip install h5py, or convert the file to .npz")
    import h5py

    with h5py.File(path, "r") as file:
        found: dict[str, np.ndarray] = {}
        file.visititems(lambda name, item: found.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None)
        yield found


def _arrays(arrays: Mapping[str, np.ndarray]) -> Iterator[tuple[ActionKey, np.ndarray]]:
    if "features" in arrays and "keys" in arrays:
        yield from _matrix(
            [(video_name(str(v)), int(number)) for v, number in arrays["keys"].tolist()], arrays["features"]
        )
        return
    for name in arrays:
        if name == ABOUT:
            continue
        video, slash, number = name.rpartition("/")
        if not (slash and number.isdigit()):
            raise ValueError(f"array '{name}' is not named after an action, such as {action_name(('03', 55))}")
        yield (video_name(video), int(number)), _vectors(arrays[name])


def _matrix(keys: Sequence[ActionKey], features: np.ndarray) -> Iterator[tuple[ActionKey, np.ndarray]]:
    if len(keys) != len(features):
        raise ValueError(f"{len(keys)} keys for {len(features)} rows")
    if len(set(keys)) < len(keys):
        raise ValueError("it names an action twice")
    yield from zip(keys, map(_vectors, features), strict=True)


def _vectors(array: np.ndarray) -> np.ndarray:
    """(D,) or (N, D) of any number type -> (N, D) float32."""
    vectors = np.atleast_2d(np.asarray(array))
    if vectors.ndim != 2 or not vectors.size or vectors.dtype.kind not in "fiu":
        raise ValueError(f"an array of {vectors.dtype} {vectors.shape} is not (vectors, width) of numbers")
    return np.ascontiguousarray(vectors, np.float32)
