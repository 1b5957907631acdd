"""Drawn figure skating: a skater glides, jumps, and lands smoothly or falls.

Everything up to the landing is drawn without knowing the class, so the frames before the landing do not tell it. Distractors are
the arena, the skater's looks and direction, the number of turns, a dip before the jump, deep knees and swaying on a
smooth landing, toys on the ice, and a camera that follows imprecisely.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageDraw

from data_preparation.synthetic.canvas import Colour, blend, ease, tint
from data_preparation.synthetic.figure import CLOTHES, Limb, Posture, Stand

CLASSES = ("landing", "fall")
PATTERN = ("landing", "landing", "fall")  # one in three falls, as in FR-FS
PERFORMER = "skater"
FRAME_METRES = 2.7  # height of a frame
GROUND = 0.62  # metres from the lower edge of a frame to the blades

GLIDE = Posture(12, Limb(-30, 62), Limb(30, 62), Limb(18, 0, -34), Limb(-22, 6, -12))
DIP = Posture(32, Limb(-60, 30), Limb(-50, 30), Limb(52, 0, -86), Limb(-38, 6, -24))
FLYING = Posture(2, Limb(42, 14, 74), Limb(42, 14, 74), Limb(4, 0, -6), Limb(10, -2, -16))
LANDED = Posture(20, Limb(8, 84), Limb(8, 84), Limb(34, 0, -56), Limb(-46, 8, -14))
HELD = Posture(24, Limb(4, 88), Limb(4, 88), Limb(12, 0, -18), Limb(-62, 6, -8))
CAUGHT = Posture(34, Limb(96, 40, 10), Limb(-70, 60), Limb(60, 10, -70), Limb(-20, 30, -40))  # loses balance
FALLEN = {
    "sitting": Posture(-24, Limb(-44, 26, -6), Limb(-40, 30, -10), Limb(84, 14, -22), Limb(74, 20, -40)),
    "on the back": Posture(6, Limb(120, 50, 20), Limb(70, 60), Limb(40, 16, -64), Limb(14, 12, -20)),
    "on the front": Posture(-8, Limb(150, 24, 10), Limb(120, 40, 20), Limb(2, 10, -12), Limb(-14, 14, -30)),
}
_TILT = {
    "sitting": 8.0,
    "on the back": 84.0,
    "on the front": -84.0,
}  # towards the direction of travel, skated backwards


@dataclass(frozen=True)
class Skate:
    """One clip. Times are fractions of the clip, lengths metres, angles degrees."""

    fallen: str  # how the skater lies; "" for a smooth landing
    way: int  # +1 skates to the right
    speed: float  # metres per clip
    takeoff: float
    contact: float  # time at which the blades touch the ice again
    height: float  # of the jump
    turns: int
    slant: float  # of the axis in the air
    dip: float  # depth before the jump, 0 to 1
    knees: float  # depth of the knee on landing, 0 to 1
    sway: float  # of a smooth landing
    mirrored: bool
    collapse: float  # time from contact to lying
    lag: tuple[float, float, float]  # of the camera: metres, cycles per clip, phase
    zoom_shift: float  # metres that the camera points above its usual height

    @property
    def decisive(self) -> tuple[float, float]:
        """The times whose frames decide the class."""
        return self.contact, 1.0

    def stand_at(self, t: float) -> Stand:
        """The skater at time `t`, 0 to 1."""
        after = t - self.contact
        x = self.way * self.speed * (t - self._slowed(after))
        if t < self.takeoff:
            u = t / self.takeoff
            posture = GLIDE.towards(DIP, (0.5 + 0.5 * self.dip) * ease(u, 0.45, 0.8)).towards(
                FLYING, ease(u, 0.86, 1.0)
            )
            return self._stand(posture, x, turn=180 * ease(u, 0.75, 1.0))
        u = min((t - self.takeoff) / (self.contact - self.takeoff), 1.0)
        turn = 180 + 360 * self.turns * u
        if after < 0:
            posture = FLYING.towards(LANDED, ease(u, 0.8, 1.0))
            return self._stand(posture, x, 4 * self.height * u * (1 - u), turn, self.slant * ease(u, 0.1, 0.8))
        if self.fallen:
            down = ease(after / self.collapse, 0.05, 1.0)
            posture = LANDED.towards(CAUGHT, ease(after / self.collapse, 0.0, 0.4))
            posture = posture.towards(FALLEN[self.fallen], ease(after / self.collapse, 0.35, 1.0))
            return self._stand(posture, x, 0.0, turn, self.slant * (1 - down) + _TILT[self.fallen] * down)
        deep = LANDED.towards(DIP._replace(lean=38), self.knees)
        posture = LANDED.towards(deep, ease(after, 0.0, 0.08)).towards(HELD, ease(after, 0.1, 0.28))
        sway = self.sway * math.sin(30 * after) * (1 - ease(after, 0.1, 0.35))
        return self._stand(posture, x, 0.0, turn, self.slant * (1 - ease(after, 0.0, 0.12)) + sway)

    def _slowed(self, after: float) -> float:
        """How much time of travel is lost at `after` the contact: a fallen skater slides on and stops."""
        if not self.fallen or after <= 0:
            return 0.0
        braking = 0.35
        spent = min(after, braking)
        return spent * spent / (2 * braking) + max(after - braking, 0.0)

    def _stand(self, posture: Posture, x: float, lift: float = 0.0, turn: float = 0.0, tilt: float = 0.0) -> Stand:
        # a skater lands backwards: with `turn` 180 the front points away from the direction of travel
        posture = posture.mirrored() if self.mirrored else posture
        facing = turn if self.way > 0 else 180 + turn
        return Stand(posture, x, lift, facing, self.way * tilt)

    def camera_at(self, t: float) -> tuple[float, float]:
        """What the middle of the lower edge of the frame shows, in metres."""
        metres, cycles, phase = self.lag
        stand = self.stand_at(t)
        x = stand.x + metres * math.sin(2 * math.pi * (cycles * t + phase))
        return x, 0.7 * stand.lift + self.zoom_shift - GROUND


def perform(label: str, rng: np.random.Generator) -> Skate:
    """Plan a clip of a class."""
    takeoff = rng.uniform(0.26, 0.34)
    smooth = Skate(
        fallen="",
        way=int(rng.choice((-1, 1))),
        speed=rng.uniform(3.0, 4.5),
        takeoff=takeoff,
        contact=takeoff + rng.uniform(0.2, 0.26),
        height=rng.uniform(0.35, 0.6),
        turns=int(rng.integers(1, 4)),
        slant=rng.uniform(-9, 9),
        dip=rng.uniform(0, 1),
        knees=rng.uniform(0, 0.8),
        sway=rng.uniform(0, 8),
        mirrored=bool(rng.integers(2)),
        collapse=rng.uniform(0.16, 0.24),
        lag=(rng.uniform(0.1, 0.5), rng.uniform(0.4, 1.2), rng.uniform(0, 1)),
        zoom_shift=rng.uniform(-0.06, 0.12),
    )
    fallen = tuple(FALLEN)[rng.integers(len(FALLEN))]
    return replace(smooth, fallen=fallen) if label == "fall" else smooth


# ------------------------------------------------------------------------------------------------------- two skaters

PAIR_WIDTH = 2.2  # width of a frame that holds two skaters, in heights
APART = (2.1, 2.5)  # metres between two skaters before one of them falls


@dataclass(frozen=True)
class Companion:
    """A second skater, who goes the same way at the same speed. Nothing tells which of the two counts."""

    skate: Skate
    gap: float  # metres to the right of the first skater, before a fall
    in_front: bool

    def stand_at(self, t: float) -> Stand:
        """The second skater at time `t`, 0 to 1."""
        stand = self.skate.stand_at(t)
        return replace(stand, x=stand.x + self.gap)


def accompany(skate: Skate, rng: np.random.Generator) -> Companion:
    """Plan a second skater, who lands or falls as often as the first one, and independently."""
    label = PATTERN[rng.integers(len(PATTERN))]
    other = replace(perform(label, rng), way=skate.way, speed=skate.speed)
    return Companion(other, rng.choice((-1, 1)) * rng.uniform(*APART), bool(rng.integers(2)))


def shared_camera(skate: Skate, companion: Companion, t: float) -> tuple[float, float]:
    """What the middle of the lower edge of the frame shows, in metres, if the camera follows two skaters alike."""
    _, cycles, phase = skate.lag
    stands = skate.stand_at(t), companion.stand_at(t)
    x, lift = (sum(values) / 2 for values in zip(*((s.x, s.lift) for s in stands), strict=True))
    return x + 0.15 * math.sin(2 * math.pi * (cycles * t + phase)), 0.5 * lift + skate.zoom_shift - GROUND


# -------------------------------------------------------------------------------------------------------------- arena

BOARD_FOOT, BOARD_TOP = 0.42, 1.25  # metres: where the boards behind the ice begin and end


def scenery(image: Image.Image, left: float, bottom: float, scale: float, rng: np.random.Generator) -> None:
    """Draw the arena on `image`, whose lower left corner is at (`left`, `bottom`) metres."""
    draw = ImageDraw.Draw(image)
    right, top = left + image.width / scale, bottom + image.height / scale

    def box(x0: float, y0: float, x1: float, y1: float, colour: Colour) -> None:
        draw.rectangle(((x0 - left) * scale, (top - y1) * scale, (x1 - left) * scale, (top - y0) * scale), fill=colour)

    ice = tint((214, 228, 238), rng.uniform(0.86, 1.04))
    hall = blend(tint(CLOTHES[rng.integers(len(CLOTHES))], 0.8), ice, rng.uniform(0.65, 0.8))
    box(left, bottom, right, BOARD_FOOT, ice)
    box(left, BOARD_TOP, right, top, hall)
    for _ in range(round((right - left) * 14)):  # spectators
        x, y, r = rng.uniform(left, right), rng.uniform(BOARD_TOP, top), 0.07
        box(x - r, y - r, x + r, y + r, tint(hall, rng.uniform(0.9, 1.15)))
    x = left
    while x < right:  # advertisements
        width = rng.uniform(0.7, 2.2)
        board = blend(CLOTHES[rng.integers(len(CLOTHES))], ice, 0.8)
        box(x, BOARD_FOOT, x + width, BOARD_TOP, board)
        box(x + 0.2 * width, 0.7, x + rng.uniform(0.4, 0.8) * width, 1.0, tint(board, 0.88))
        x += width
    box(left, BOARD_FOOT, right, BOARD_FOOT + 0.1, (236, 206, 60))
    for _ in range(round((right - left) * 3)):  # marks of other skaters
        x, y = rng.uniform(left, right), rng.uniform(bottom, BOARD_FOOT)
        box(x, y, x + rng.uniform(0.2, 0.9), y + 0.015, tint(ice, rng.choice((0.9, 1.08))))
    for _ in range(rng.integers(0, 4)):  # toys that spectators threw
        x, y, r = rng.uniform(left, right), rng.uniform(0.05, BOARD_FOOT - 0.1), rng.uniform(0.08, 0.16)
        box(x - r, y - r / 2, x + r, y + r, CLOTHES[rng.integers(len(CLOTHES))])
