"""Drawn everyday actions: a person waves, jumps, squats, spins or walks.

Distractors are the hall, the person's looks, the direction that the person faces, speed and number of repetitions, and a
camera that pans.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from data_preparation.synthetic.canvas import Colour, blend, ease, tint
from data_preparation.synthetic.figure import CLOTHES, Limb, Posture, Stand

PERFORMER = "person"
FRAME_METRES = 2.5  # height of a frame
GROUND = 0.24  # metres from the lower edge of a frame to the feet

REST = Posture(2, Limb(4, 8, 12), Limb(4, 8, 12), Limb(2, 4, -4), Limb(-2, 4, -4))
CROUCH = Posture(44, Limb(76, 12, 8), Limb(76, 12, 8), Limb(92, 12, -108), Limb(92, 12, -108))
READY = Posture(30, Limb(-46, 14), Limb(-46, 14), Limb(50, 6, -70), Limb(50, 6, -70))
LEAP = Posture(0, Limb(150, 22), Limb(150, 22), Limb(4, 10, -16), Limb(4, 10, -16))
STRIDE = Posture(6, Limb(-30, 6, 22), Limb(30, 6, 22), Limb(32, 2, -8), Limb(-26, 2, -18))
PASSING = Posture(6, Limb(0, 6, 20), Limb(0, 6, 20), Limb(0, 2, -4), Limb(16, 2, -56))


@dataclass(frozen=True)
class Movement:
    """One clip. Times are fractions of the clip, lengths metres, angles degrees."""

    label: str
    cycles: float  # repetitions in the clip
    phase: float
    strength: float  # 0 (smallest) to 1
    turn: float  # where the person faces: 0 right, 90 the camera
    mirrored: bool
    arms_out: float  # of a spin
    walked: float  # metres in the clip
    pan: tuple[float, float]  # of the camera: metres per clip, metres of unsteadiness
    zoom_shift: float

    @property
    def decisive(self) -> tuple[float, float]:
        """The times whose frames decide the class: all of them."""
        return 0.0, 1.0

    def stand_at(self, t: float) -> Stand:
        """The person at time `t`, 0 to 1."""
        stand = _MOVES[self.label](self, self.cycles * t + self.phase)
        posture = stand.posture.mirrored() if self.mirrored else stand.posture
        x = self.walked * (t - 0.5) * math.cos(math.radians(self.turn)) if self.label == "walk" else 0.0
        return Stand(posture, x, stand.lift, self.turn + stand.turn)

    def camera_at(self, t: float) -> tuple[float, float]:
        """What the middle of the lower edge of the frame shows, in metres."""
        speed, unsteady = self.pan
        follow = 0.5 * self.stand_at(t).x if self.label == "walk" else 0.0
        return follow + speed * (t - 0.5) + unsteady * math.sin(9 * t + 40 * self.phase), self.zoom_shift - GROUND


def _wave(plan: Movement, at: float) -> Stand:
    swing = math.sin(2 * math.pi * 1.6 * at)
    raised = Limb(10, 112 + 22 * plan.strength, 0, 34 + 38 * swing)
    return Stand(REST._replace(left_arm=raised), 0.0)


def _jump(plan: Movement, at: float) -> Stand:
    u = at % 1.0
    if u < 0.4:
        return Stand(REST.towards(READY, ease(u, 0.0, 0.28)).towards(LEAP, ease(u, 0.3, 0.4)), 0.0)
    flight = min((u - 0.4) / 0.36, 1.0)
    posture = LEAP.towards(READY, ease(u, 0.68, 0.84)).towards(REST, ease(u, 0.86, 1.0))
    return Stand(posture, 0.0, 4 * (0.28 + 0.2 * plan.strength) * flight * (1 - flight))


def _squat(plan: Movement, at: float) -> Stand:
    depth = (0.75 + 0.25 * plan.strength) * (0.5 - 0.5 * math.cos(2 * math.pi * at))
    return Stand(REST.towards(CROUCH, depth), 0.0)


def _spin(plan: Movement, at: float) -> Stand:
    arm = Limb(4, plan.arms_out, 8)
    return Stand(REST._replace(left_arm=arm, right_arm=arm), 0.0, turn=(1 if plan.mirrored else -1) * 360 * at)


def _walk(plan: Movement, at: float) -> Stand:
    u = (1.5 * at) % 1.0
    poses = (STRIDE, PASSING, STRIDE.mirrored(), PASSING.mirrored(), STRIDE)
    i = min(int(4 * u), 3)
    return Stand(poses[i].towards(poses[i + 1], 4 * u - i), 0.0)


_MOVES: dict[str, Callable[[Movement, float], Stand]] = {
    "wave": _wave,
    "jump": _jump,
    "squat": _squat,
    "spin": _spin,
    "walk": _walk,
}
CLASSES = tuple(_MOVES)
PATTERN = CLASSES


def perform(label: str, rng: np.random.Generator) -> Movement:
    """Plan a clip of a class."""
    way = int(rng.choice((-1, 1)))
    sideways = rng.uniform(-35, 35)
    front = rng.uniform(55, 125)
    turn = sideways if label == "walk" or (label in ("jump", "squat") and rng.random() < 0.8) else front
    return Movement(
        label=label,
        cycles=rng.uniform(0.9, 1.25),
        phase=rng.uniform(0, 0.15),
        strength=rng.uniform(0, 1),
        turn=turn if way > 0 else 180 - turn,
        mirrored=bool(rng.integers(2)),
        arms_out=rng.uniform(35, 85),
        walked=rng.uniform(1.6, 2.6),
        pan=(rng.uniform(-0.6, 0.6), rng.uniform(0, 0.1)),
        zoom_shift=rng.uniform(-0.1, 0.1),
    )


# --------------------------------------------------------------------------------------------------------------- hall

FLOOR_END = 0.5  # metres: where the wall behind the floor begins


def scenery(image: Image.Image, left: float, bottom: float, scale: float, rng: np.random.Generator) -> None:
    """Draw the hall on `image`, whose lower left corner is at (`left`, `bottom`) metres."""
    draw = ImageDraw.Draw(image)
    right, top = left + image.width / scale, bottom + image.height / scale

    def box(x0: float, y0: float, x1: float, y1: float, colour: Colour) -> None:
        draw.rectangle(((x0 - left) * scale, (top - y1) * scale, (x1 - left) * scale, (top - y0) * scale), fill=colour)

    pale = tint((226, 222, 214), rng.uniform(0.8, 1.1))
    wall = blend(CLOTHES[rng.integers(len(CLOTHES))], pale, rng.uniform(0.7, 0.9))
    floor = blend((168, 140, 108), pale, rng.uniform(0.5, 0.8))
    box(left, bottom, right, top, wall)
    box(left, bottom, right, FLOOR_END, floor)
    box(left, FLOOR_END, right, FLOOR_END + 0.08, tint(floor, 0.6))
    x = left + rng.uniform(0, 1)
    while x < right:  # windows, doors and posters
        width, low, high = rng.uniform(0.3, 1.1), rng.uniform(0.6, 1.3), rng.uniform(1.5, 2.4)
        box(x, low, x + width, high, blend(CLOTHES[rng.integers(len(CLOTHES))], wall, rng.uniform(0.7, 0.9)))
        x += width + rng.uniform(0.3, 1.6)
    for _ in range(rng.integers(0, 4)):  # balls and boxes on the floor
        x, r = rng.uniform(left, right), rng.uniform(0.1, 0.2)
        box(x - r, 0.2, x + r, 0.2 + 2 * r, tint(CLOTHES[rng.integers(len(CLOTHES))], rng.uniform(0.7, 1.2)))
