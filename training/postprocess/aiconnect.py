"""The rules of a solution of the Aiconnect 2021 action recognition challenge (github.com/lee-gwang/aiconnect_action_recognition).

Its thresholds and order were tuned on the public leaderboard, so take the file as an example: check the rules on your own
validation actions (training.combine does), and write your own file. The detector knows two classes, ride_kick and fall_down.
"""

from __future__ import annotations

from training.postprocess.base import Case, Rules

# (from, to): the second class is taken if it is the second or third most probable one; the pairs are tried in this order
NEAR = (
    ("jay_walk", "driveway_walk"),
    ("normal", "jay_walk"),
    ("ride_kick", "driveway_walk"),
    ("fighting", "driveway_walk"),
)


def umbrella(label: str, case: Case) -> str:
    """An umbrella that is not certain is the second class."""
    return case.order[1] if label == "putup_umbrella" and case.probability[label] < 0.95 else label


def near(label: str, case: Case) -> str:
    """Classes that the network mistakes for each other."""
    for seen, wanted in NEAR:
        if label == seen and wanted in case.order[1:3]:
            label = wanted
    return label


def detector(label: str, case: Case) -> str:
    """A kickboard or a fallen person in many boxes. Both tests look at the label before this rule; the fall wins."""
    changed = label
    if label in ("driveway_walk", "jay_walk") and case.count("ride_kick", above=0.9) > 20:
        changed = "ride_kick"
    if label in ("driveway_walk", "jay_walk", "normal") and case.count("fall_down", above=0.5) > 10:
        changed = "fall_down"
    return changed


CLASSES = ("putup_umbrella", "ride_kick", "fall_down", "driveway_walk", "jay_walk", "fighting", "normal")
RULES = Rules(CLASSES, (umbrella, near, detector), needs_boxes=True)
