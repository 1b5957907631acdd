"""Draw a jointed figure, seen from the side, and the rotated rectangle around it.

Lengths are in metres and angles in degrees. The body's own axes are forward, up and left. A figure is turned about its
vertical axis (`turn`: 0 faces right, 90 faces the camera), tilted in the picture (clockwise positive), and placed with
its lowest point at `lift` above the ground.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import ImageDraw

from data_preparation.synthetic.canvas import SKINS, Colour, Point, ToPixels, draw_limb, tint

THIGH, SHIN, FOOT, UPPER_ARM, FOREARM, TRUNK, NECK = 0.43, 0.42, 0.19, 0.28, 0.27, 0.5, 0.22
HEAD_RADIUS, LEG_WIDTH, ARM_WIDTH, TRUNK_WIDTH, BLADE_WIDTH = 0.13, 0.15, 0.12, 0.2, 0.05

HAIRS: tuple[Colour, ...] = ((40, 28, 22), (96, 60, 30), (206, 170, 90), (150, 66, 34), (70, 70, 74))
CLOTHES: tuple[Colour, ...] = (
    *((200, 30, 44), (24, 74, 190), (26, 130, 70), (236, 150, 24), (124, 44, 150), (20, 22, 30)),
    *((214, 60, 140), (18, 140, 160), (120, 84, 50), (228, 214, 60)),
)


class Limb(NamedTuple):
    """An arm or a leg. 0 hangs down; `swing` is forward, `out` to its own side; `bend` and `bend_out` are what elbow or
    knee add (a knee bends backwards, so its `bend` is negative)."""

    swing: float = 0.0
    out: float = 0.0
    bend: float = 0.0
    bend_out: float = 0.0


class Posture(NamedTuple):
    """Angles of a body. All zero stands upright with the arms down."""

    lean: float = 0.0  # of the trunk, forward
    left_arm: Limb = Limb()
    right_arm: Limb = Limb()
    left_leg: Limb = Limb()
    right_leg: Limb = Limb()

    def towards(self, other: Posture, fraction: float) -> Posture:
        """Interpolate linearly between this posture (`fraction` 0) and `other` (1)."""
        limbs = (
            Limb(*(p + (q - p) * fraction for p, q in zip(a, b, strict=True)))
            for a, b in zip(self[1:], other[1:], strict=True)
        )
        return Posture(self.lean + (other.lean - self.lean) * fraction, *limbs)

    def mirrored(self) -> Posture:
        """Exchange left and right."""
        return Posture(self.lean, self.right_arm, self.left_arm, self.right_leg, self.left_leg)


@dataclass(frozen=True)
class Looks:
    """What a performer looks like."""

    size: float  # 1 is a body of 1.7 m
    skin: Colour
    hair: Colour
    shirt: Colour
    stripe: Colour  # on the chest: shows the front
    trousers: Colour
    shoes: Colour
    blades: bool  # wears skates


def sample_looks(rng: np.random.Generator, blades: bool) -> Looks:
    """Sample the looks of a performer."""
    # darker than the surroundings, so that a small network finds the figure
    shirt, stripe, trousers = (tint(CLOTHES[i], 0.66) for i in rng.permutation(len(CLOTHES))[:3])
    return Looks(
        size=float(rng.uniform(0.88, 1.08)),
        skin=SKINS[rng.integers(len(SKINS))],
        hair=HAIRS[rng.integers(len(HAIRS))],
        shirt=shirt,
        stripe=tint(stripe, 1.8),
        trousers=trousers,
        shoes=((244, 244, 240), (30, 30, 34))[rng.integers(2)],
        blades=blades,
    )


@dataclass(frozen=True)
class Stand:
    """The figure at one moment: posture, horizontal position, height above the ground, and angles."""

    posture: Posture
    x: float
    lift: float = 0.0
    turn: float = 0.0
    tilt: float = 0.0


@dataclass(frozen=True)
class Figure:
    """A placed figure. `joints` (J, 3) are x, y and depth (towards the camera) in metres, in the order of `JOINTS`."""

    joints: np.ndarray
    looks: Looks
    facing: float  # cosine of the angle between its front and the camera

    def __getitem__(self, name: str) -> np.ndarray:
        return self.joints[JOINTS.index(name)]


JOINTS = (
    *("pelvis", "neck", "head"),
    *("left_shoulder", "left_elbow", "left_hand", "right_shoulder", "right_elbow", "right_hand"),
    *("left_hip", "left_knee", "left_ankle", "left_toe", "right_hip", "right_knee", "right_ankle", "right_toe"),
)
RADII = np.array([
    *(TRUNK_WIDTH / 2, TRUNK_WIDTH / 2, HEAD_RADIUS + 0.03),
    *(TRUNK_WIDTH / 2, ARM_WIDTH / 2, ARM_WIDTH / 2) * 2,
    *(TRUNK_WIDTH / 2, LEG_WIDTH / 2, LEG_WIDTH / 2, LEG_WIDTH / 2) * 2,
])  # fmt: skip


def place(stand: Stand, looks: Looks) -> Figure:
    """The joints of a figure."""
    posture, size = stand.posture, looks.size
    lean = math.radians(posture.lean)
    neck = TRUNK * np.array([math.sin(lean), math.cos(lean), 0.0])
    head = neck + NECK * np.array([math.sin(0.6 * lean), math.cos(0.6 * lean), 0.0])
    points = [np.zeros(3), neck, head]
    for side, arm in ((1, posture.left_arm), (-1, posture.right_arm)):
        shoulder = 0.9 * neck + np.array([0.0, 0.0, 0.15 * side])
        points += _chain(shoulder, arm, (UPPER_ARM, FOREARM), side)
    for side, leg in ((1, posture.left_leg), (-1, posture.right_leg)):
        hip, knee, ankle = _chain(np.array([0.0, 0.0, 0.08 * side]), leg, (THIGH, SHIN), side)
        shin = math.radians(leg.swing + leg.bend)
        points += [hip, knee, ankle, ankle + FOOT * np.array([math.cos(shin), math.sin(shin), 0.0])]
    forward, up, left = size * np.array(points).T
    turn, tilt = math.radians(stand.turn), math.radians(stand.tilt)
    across = forward * math.cos(turn) + left * math.sin(turn)
    depth = forward * math.sin(turn) - left * math.cos(turn)
    x = across * math.cos(tilt) + up * math.sin(tilt)
    y = up * math.cos(tilt) - across * math.sin(tilt)
    y += stand.lift - (y - size * RADII).min()
    return Figure(np.stack([x + stand.x, y, depth], axis=1), looks, math.sin(turn))


def _chain(start: np.ndarray, limb: Limb, lengths: tuple[float, float], side: int) -> list[np.ndarray]:
    """The joints of a limb: its start, elbow or knee, hand or ankle."""
    middle = start + lengths[0] * _direction(limb.swing, limb.out, side)
    return [start, middle, middle + lengths[1] * _direction(limb.swing + limb.bend, limb.out + limb.bend_out, side)]


def _direction(swing: float, out: float, side: int) -> np.ndarray:
    """The unit vector (forward, up, left) of a limb segment."""
    s, o = math.radians(swing), math.radians(out)
    return np.array([math.sin(s) * math.cos(o), -math.cos(s) * math.cos(o), side * math.sin(o)])


def draw_figure(draw: ImageDraw.ImageDraw, figure: Figure, to_pixels: ToPixels, scale: float) -> None:
    """Draw the figure, far parts first. `to_pixels` maps metres to pixels, `scale` is in pixels per metre."""
    looks, unit = figure.looks, figure.looks.size * scale
    parts: list[tuple[float, list[str], float, Colour]] = []
    for side in ("left", "right"):
        shade = 1.0 if figure[f"{side}_hip"][2] >= 0 else 0.72
        leg = [f"{side}_{joint}" for joint in ("hip", "knee", "ankle")]
        arm = [f"{side}_{joint}" for joint in ("shoulder", "elbow", "hand")]
        foot = [f"{side}_ankle", f"{side}_toe"]
        parts.append((_depth(figure, leg), leg, LEG_WIDTH, tint(looks.trousers, shade)))
        parts.append((_depth(figure, leg) + 0.001, foot, 0.8 * LEG_WIDTH, tint(looks.shoes, shade)))
        parts.append((1.3 * _depth(figure, arm), arm, ARM_WIDTH, tint(looks.skin, shade)))
    parts.append((0.0, ["pelvis", "neck"], TRUNK_WIDTH, looks.shirt))
    for _, names, width, colour in sorted(parts, key=lambda part: part[0]):
        points = [to_pixels((figure[name][0], figure[name][1])) for name in names]
        if names[0] == "pelvis":
            _draw_trunk(draw, figure, to_pixels, unit)
        else:
            draw_limb(draw, points, width * unit, colour)
    if looks.blades:
        for side in ("left", "right"):
            _draw_blade(draw, figure, side, to_pixels, unit)


def _depth(figure: Figure, names: Sequence[str]) -> float:
    return float(np.mean([figure[name][2] for name in names]))


def _draw_trunk(draw: ImageDraw.ImageDraw, figure: Figure, to_pixels: ToPixels, unit: float) -> None:
    """Trunk and head, with a stripe on the chest if the front is seen."""
    looks = figure.looks

    def at(name: str) -> Point:
        return to_pixels((figure[name][0], figure[name][1]))

    shoulders, hips = [at("left_shoulder"), at("right_shoulder")], [at("right_hip"), at("left_hip")]
    draw_limb(draw, [*shoulders, *hips, shoulders[0]], TRUNK_WIDTH * unit, looks.shirt)
    draw.polygon([*shoulders, *hips], fill=looks.shirt)
    if figure.facing > 0.2:
        draw_limb(draw, [at("neck"), at("pelvis")], 0.07 * unit, looks.stripe)
    (x, y), r = at("head"), HEAD_RADIUS * unit
    draw.ellipse((x - r, y - r, x + r, y + r), fill=looks.hair)
    ahead = figure["left_toe"] + figure["right_toe"] - figure["left_ankle"] - figure["right_ankle"]
    if figure.facing > -0.3:  # the face is seen
        shift = (1 - abs(figure.facing)) * 0.06 * unit * (1 if ahead[0] > 0 else -1)
        r *= 0.8
        draw.ellipse((x - r + shift, y - r + 0.02 * unit, x + r + shift, y + r), fill=looks.skin)


def _draw_blade(draw: ImageDraw.ImageDraw, figure: Figure, side: str, to_pixels: ToPixels, unit: float) -> None:
    ends = figure[f"{side}_ankle"], figure[f"{side}_toe"]
    down = figure[f"{side}_ankle"] - figure[f"{side}_knee"]
    offset = (LEG_WIDTH / 2 - BLADE_WIDTH / 2) * down / max(float(np.hypot(*down[:2])), 1e-6) * figure.looks.size
    points = [to_pixels((end[0] + offset[0], end[1] + offset[1])) for end in ends]
    draw_limb(draw, points, BLADE_WIDTH * unit, (150, 160, 172))


def quad(figure: Figure) -> np.ndarray:
    """The corners (4, 2) in metres of the smallest rectangle along the trunk that holds the figure."""
    trunk = (figure["neck"] - figure["pelvis"])[:2]
    length = float(np.hypot(*trunk))
    along = trunk / length if length > 0.1 else np.array([0.0, 1.0])
    across = np.array([along[1], -along[0]])
    radii = figure.looks.size * RADII
    spans = [(figure.joints[:, :2] @ axis) for axis in (across, along)]
    (left, right), (low, high) = (((s - radii).min(), (s + radii).max()) for s in spans)
    return np.array([across * a + along * b for a, b in ((left, high), (right, high), (right, low), (left, low))])
