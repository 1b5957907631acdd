"""MTL-AQA (Parmar and Morris, "What and How Well You Performed? A Multitask Learning Approach to Action Quality
Assessment", CVPR 2019), and dives in files with the same fields (.pkl, .csv, .json)."""

from __future__ import annotations

from dataclasses import replace

from data_preparation.actions import DIVING
from data_preparation.annotations import load_captions, load_official_split, read_annotations
from data_preparation.datasets import AnnotationFiles, DataSet

READS_LISTS = True
LICENCE = "MTL-AQA is published without a licence file, and its videos are television broadcasts: ask the owners of the rights before you publish. Data of your own in this format have your terms."


def read(files: AnnotationFiles) -> DataSet:
    """Read dives, split lists and captions; lists that are not given are left out.

    Raises:
        UserError: a file as a whole is unreadable.
    """
    read = read_annotations(files.annotations)
    captions = load_captions(files.captions) if files.captions else {}
    actions = {key: replace(d, caption=captions.get(key, d.caption)) for key, d in read.dives.items()}
    splits, faults = load_official_split(files, read.keys)
    return DataSet(dict(actions), splits, (), {"": DIVING}, (*read.faults, *faults), (), read.facts, read.keys)
