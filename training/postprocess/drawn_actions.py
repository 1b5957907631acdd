"""Rules for drawn everyday actions (data_preparation.synthetic --task actions), in the manner of aiconnect.py.

The boxes are those of data_preparation.synthetic.detector.
"""

from __future__ import annotations

from training.postprocess.base import Case, Rules


def unsure(label: str, case: Case) -> str:
    """A walk that is not certain is the second class."""
    return case.order[1] if label == "walk" and case.probability[label] < 0.5 else label


def near(label: str, case: Case) -> str:
    """Rare classes are taken if they are the second most probable ones."""
    return case.order[1] if label in ("wave", "jump") and case.order[1] in ("spin", "squat") else label


def detector(label: str, case: Case) -> str:
    """Feet off the floor in many boxes are a jump; a figure that leans in many boxes and stays on the floor squats."""
    if case.count("airborne", above=0.5) > 4:
        return "jump"
    return "squat" if case.count("bent", above=0.5) > 5 else label


RULES = Rules(("wave", "jump", "squat", "spin", "walk"), (unsure, near, detector), needs_boxes=True)
