"""Rules for drawn everyday actions (data_preparation.synthetic --task actions), in the manner of aiconnect.py.

The boxes are those of data_preparation.synthetic.detector. All thresholds were chosen on the validation clips of
job_files/aiconnect.sh.
"""

from __future__ import annotations

from training.postprocess.base import Case, Rules

RARE = ("squat", "spin")  # in the training list of job_files/aiconnect.sh


def unsure(label: str, case: Case) -> str:
    """A jump that is not certain is the second class."""
    return case.order[1] if label == "jump" and case.probability[label] < 0.4 else label


def near(label: str, case: Case) -> str:
    """Networks underrate classes that are rare in training: one is taken if it has 0.6 of the probability of the label."""
    best = max(RARE, key=lambda name: case.probability[name])
    return best if label not in RARE and case.probability[best] > 0.6 * case.probability[label] else label


def detector(label: str, case: Case) -> str:
    """Feet off the floor in many boxes are a jump; a figure that leans in many boxes and stays on the floor squats."""
    if case.count("airborne", above=0.5) > 3:
        return "jump"
    return "squat" if case.count("bent", above=0.5) > 7 else label


RULES = Rules(("wave", "jump", "squat", "spin", "walk"), (unsure, near, detector), needs_boxes=True)
