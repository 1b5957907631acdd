"""Draw a diver, the boards, the pool and the filler between dives of a broadcast (vector drawing with PIL).

The scene is a side view in metres: x to the right from the edge of the board, y up from the water. Divers are drawn as
jointed limbs at twice the size of the frame, which is then halved. The camera follows the diver, so that the body is
large in every frame. The frames show what judges look at: board, stance, direction and speed of the rotation, body
shape, twist (a suit with a yellow front and a magenta back), and the faults: angle of entry, splash, legs apart,
wobble, distance from the board.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image, ImageDraw

from data_preparation.actions import POSITIONS, ROTATION_TYPES, Dive
from data_preparation.synthetic.canvas import SKINS, SUPERSAMPLE, Colour, Point, ToPixels, draw_limb, ease, tint

FRAME_METRES = 3.4  # height of a frame: a diver of 1.75 m fills half of it
SKY = 3.6  # metres of wall drawn above the board
DEPTH = 1.9  # metres of water drawn below the point of entry (the camera looks slightly down)
FAR_EDGE = 0.55  # metres above the point of entry at which the far edge of the pool is drawn

FRONT: Colour = (255, 214, 0)  # different colours of the suit's front and back make twists countable
BACK: Colour = (226, 24, 128)
CONCRETE: Colour = (176, 176, 172)
FOAM: Colour = (250, 253, 255)
SPRAY: Colour = (214, 236, 248)
SUITS: tuple[Colour, ...] = ((20, 24, 70), (96, 14, 26), (12, 60, 52))
WALLS: tuple[Colour, ...] = ((58, 74, 104), (70, 92, 88), (92, 78, 96), (64, 64, 72), (96, 96, 84), (44, 84, 112))
POOLS: tuple[Colour, ...] = ((30, 120, 178), (24, 140, 160), (40, 104, 190), (36, 150, 190))


@dataclass(frozen=True)
class Board:
    """A springboard or platform. Each height has its own colour."""

    kind: str  # springboard or platform
    height: float  # metres above the water
    rise: float  # metres that the body rises at take-off
    colour: Colour

    @property
    def name(self) -> str:
        return f"{self.height:g} m {self.kind}"


BOARDS = (
    Board("springboard", 1.0, 1.2, (60, 190, 70)),
    Board("springboard", 3.0, 1.3, (255, 122, 30)),
    Board("platform", 5.0, 0.7, (240, 205, 60)),
    Board("platform", 7.5, 0.7, (200, 44, 40)),
    Board("platform", 10.0, 0.7, (232, 232, 226)),
)

FILLERS = ("empty pool", "crowd", "scoreboard", "replay")


# -------------------------------------------------------------------------------------------------------------- poses


@dataclass(frozen=True)
class Pose:
    """Joint angles in degrees. All zero is a diver who stands with the arms down."""

    hip: float = 0.0  # 0 straight, 150 folded
    knee: float = 0.0
    arm: float = 0.0  # 0 at the sides, 180 overhead
    elbow: float = 0.0

    def towards(self, other: Pose, fraction: float) -> Pose:
        """Interpolate linearly between this pose (`fraction` 0) and `other` (1)."""
        return Pose(*(a + (b - a) * fraction for a, b in zip(self._values(), other._values(), strict=True)))

    def _values(self) -> tuple[float, float, float, float]:
        return (self.hip, self.knee, self.arm, self.elbow)


STAND = Pose(arm=90)  # arms forward: shows which way the diver faces
UPRIGHT = Pose()  # feet-first entry
CROUCH = Pose(hip=60, knee=75, arm=-50)
LEAP = Pose(arm=165)
STRETCHED = Pose(arm=180)
TWISTING = Pose(hip=5, arm=70, elbow=110)
SHAPES = {
    "free": Pose(hip=8, arm=25),
    "pike": Pose(hip=146, arm=52),
    "tuck": Pose(hip=132, knee=142, arm=62, elbow=18),
}


# ---------------------------------------------------------------------------------------------------- plan of one dive


@dataclass(frozen=True)
class Performance:
    """What the frames of one dive show. Angles in degrees, lengths in metres, times as fractions of the clip."""

    board: Board
    shape: str
    armstand: bool
    facing: int  # +1 faces the water, -1 faces the board
    spin: float  # total rotation, clockwise positive (head away from the board)
    twist: float
    takeoff: float  # time
    contact: float  # time at which the diver touches the water
    tilt: float  # fault: too little (negative) or too much (positive) rotation at the entry
    splash: float  # fault: 0 (none) to 1 (largest)
    legs: float  # fault: half of the angle between the legs
    wobble: float  # fault: amplitude of the swaying, in degrees
    landing: float  # x of the entry
    skin: Colour
    suit: Colour
    spikes: tuple[float, ...]  # relative heights of the splash's jets
    drops: tuple[Point, ...]  # positions of single drops, in units of the splash's size

    @property
    def decisive(self) -> tuple[float, float]:
        """The times whose frames show the angle of entry, the distance from the board and the splash."""
        return self.takeoff + 0.9 * (self.contact - self.takeoff), 1.0

    @cached_property
    def head_first(self) -> bool:
        return round(self.spin / 180) % 2 != int(self.armstand)


def make_performance(dive: Dive, board: Board, rng: np.random.Generator) -> Performance:
    """Plan the drawing of a dive whose attributes are all known. `rng` chooses what the labels do not determine.

    The faults grow with the points that the judges deducted: 1 - score / difficulty / 30.
    """
    assert dive.rotation_type is not None
    assert dive.position is not None
    assert dive.ss_no is not None
    assert dive.tw_no is not None
    rotation = ROTATION_TYPES[dive.rotation_type]
    missing = min(max(1 - dive.final_score / dive.difficulty / 30, 0.0), 1.0)
    fault = min(missing / 0.75, 1.0)
    side, far = rng.choice((-1, 1), size=2)
    uneven = rng.uniform(0.85, 1.15, size=4)
    return Performance(
        board=board,
        shape=POSITIONS[dive.position],
        armstand=bool(dive.armstand),
        facing=1 if rotation in ("forward", "reverse") else -1,
        spin=180.0 * dive.ss_no * (1 if rotation in ("forward", "back") else -1),
        twist=180.0 * dive.tw_no,
        takeoff=0.12 + rng.uniform(-0.01, 0.01),
        contact=0.56 + rng.uniform(-0.01, 0.01),
        tilt=side * 52 * fault * uneven[0],
        splash=fault,
        legs=34 * fault * uneven[1],
        wobble=16 * fault * uneven[2],
        landing=1.15 + far * 0.75 * fault * uneven[3],
        skin=SKINS[rng.integers(len(SKINS))],
        suit=SUITS[rng.integers(len(SUITS))],
        spikes=tuple(rng.uniform(0.45, 1.0, size=9)),
        drops=tuple(zip(rng.uniform(-1.3, 1.3, size=10), rng.uniform(0.2, 1.25, size=10), strict=True)),
    )


# ----------------------------------------------------------------------------------------------------------- movement


@dataclass(frozen=True)
class State:
    """The diver at one moment: pose, position of the body's centre (metres) and angles (degrees)."""

    pose: Pose
    x: float
    y: float
    rotation: float
    twist: float
    legs: float


REACH = 1.05  # metres from the body's centre to the hands (or feet) that touch the water first
STANDING = 0.95  # metres from the soles to the body's centre


def _flight_height(start: float, rise: float, u: float) -> float:
    """Height of the body's centre at the fraction `u` of a flight that starts at `start`, rises by `rise` and ends at
    REACH (all in metres)."""
    root = math.sqrt(2 * rise) + math.sqrt(2 * rise + 2 * max(start - REACH, 0.0))
    return start + math.sqrt(2 * rise) * root * u - root * root * u * u / 2


def state_at(plan: Performance, t: float) -> State:
    """The diver at time `t`, a fraction (0 to 1) of the clip."""
    height = plan.board.height + STANDING
    upright = 180.0 if plan.armstand else 0.0
    sway = plan.wobble * math.sin(t * 40)
    if t < plan.takeoff:
        u = t / plan.takeoff
        pose = STRETCHED if plan.armstand else _stance(u)
        return State(pose, -0.12, height - 0.22 * _crouch_depth(plan, u), upright + 0.5 * sway, 0.0, 0.3 * plan.legs)
    u = (t - plan.takeoff) / (plan.contact - plan.takeoff)
    turned = 0.12 * min(u, 1.0) + 0.88 * ease(u, 0.0, 0.86)
    return State(
        pose=_flight_pose(plan, u),
        x=-0.12 + (plan.landing + 0.12) * min(u, 1.0),
        y=_flight_height(height, plan.board.rise, u) if u < 1 else REACH - 7.0 * (u - 1),
        rotation=upright + plan.spin * turned + plan.tilt * ease(u, 0.55, 0.9) + sway * (1 - ease(u, 0.7, 0.9)),
        twist=plan.twist * ease(u, 0.04, 0.74),
        legs=plan.legs * (0.3 + 0.7 * ease(u, 0.5, 0.85)),
    )


def _crouch_depth(plan: Performance, u: float) -> float:
    """How far the diver crouches (0 to 1) at the fraction `u` of the time before take-off."""
    return 0.0 if plan.armstand else ease(u, 0.45, 0.75) * (1 - ease(u, 0.8, 1.0))


def _stance(u: float) -> Pose:
    return STAND.towards(CROUCH, ease(u, 0.45, 0.75)).towards(LEAP, ease(u, 0.75, 1.0))


def _flight_pose(plan: Performance, u: float) -> Pose:
    """The pose at the fraction `u` of the flight: leap, shape, stretch for the entry. Twists come before folding."""
    first = STRETCHED if plan.armstand else LEAP
    shape = SHAPES[plan.shape]
    if plan.twist:
        flying = first.towards(TWISTING, ease(u, 0.0, 0.12))
        shape = TWISTING if plan.shape == "free" else shape
        folded = flying.towards(shape, ease(u, 0.38, 0.5))
    else:
        folded = first.towards(shape, ease(u, 0.02, 0.16))
    return folded.towards(STRETCHED if plan.head_first else UPRIGHT, ease(u, 0.68, 0.84))


# -------------------------------------------------------------------------------------------------------------- scene


@dataclass(frozen=True)
class Look:
    """Appearance of one video."""

    wall: Colour
    pool: Colour
    lift: float  # metres that the camera points above the diver
    shift: float  # metres that it points to the right of the board's edge
    bands: tuple[float, ...]  # brightness of the bands of the wall


def sample_look(rng: np.random.Generator) -> Look:
    """Sample the appearance of one video."""
    wall = np.array(WALLS[rng.integers(len(WALLS))]) + rng.integers(-14, 15, size=3)
    pool = np.array(POOLS[rng.integers(len(POOLS))]) + rng.integers(-14, 15, size=3)
    return Look(
        wall=_colour(wall),
        pool=_colour(pool),
        lift=float(rng.uniform(-0.15, 0.15)),
        shift=float(rng.uniform(0.35, 0.6)),
        bands=tuple(float(b) for b in rng.uniform(0.8, 1.2, size=24)),
    )


def _colour(rgb: np.ndarray) -> Colour:
    red, green, blue = rgb.tolist()
    return red, green, blue


class Stage:
    """The scenery of one video, drawn once. Frames are crops of it, with the diver drawn on top.

    Frames are RGB images of `width` x `height` pixels.
    """

    def __init__(self, appearance: Look, width: int, height: int, rng: np.random.Generator) -> None:
        self.look = appearance
        self.size = (width * SUPERSAMPLE, height * SUPERSAMPLE)
        self.scale = height * SUPERSAMPLE / FRAME_METRES  # pixels of the drawing per metre
        self.sceneries = {board: self._scenery(board) for board in BOARDS}
        self.crowd = self._crowd(rng)
        self.scoreboard = self._scoreboard(rng)

    # --- static images

    def _scenery(self, board: Board) -> Image.Image:
        """A tall image of wall, board and pool, from SKY above the board to DEPTH below the water."""
        top = board.height + SKY
        width = self.size[0]
        image = Image.new("RGB", (width, math.ceil((top + DEPTH) * self.scale)), self.look.wall)
        draw = ImageDraw.Draw(image)

        def box(left: float, upper: float, right: float, lower: float, colour: Colour) -> None:
            x0, x1 = (self._column(x) for x in (left, right))
            draw.rectangle((x0, (top - upper) * self.scale, x1, (top - lower) * self.scale), fill=colour)

        for row in range(math.ceil(top)):  # one band per metre makes the fall visible
            box(-9, row + 1, 9, row, tint(self.look.wall, self.look.bands[row % 24] * (1.0 if row % 2 else 0.86)))
        for row in range(16):
            box(-9, FAR_EDGE - row * 0.16, 9, -DEPTH, tint(self.look.pool, 0.92 + 0.02 * row))
        box(-9, FAR_EDGE + 0.1, 9, FAR_EDGE, tint(self.look.pool, 1.45))
        deck, shade = board.height, tint(board.colour, 0.7)
        thickness = 0.42 if board.kind == "platform" else 0.2
        box(
            -1.8, deck - thickness, -1.2, -0.2, CONCRETE
        )  # the same for all boards, so that the water does not reveal the board
        box(-9, deck, 0.0, deck - thickness, board.colour)
        box(-9, deck - 0.6 * thickness, 0.0, deck - thickness, shade)
        if board.kind == "springboard":  # its roller
            box(-1.0, deck - thickness, -0.7, deck - 0.45, shade)
        return image

    def _crowd(self, rng: np.random.Generator) -> Image.Image:
        """Rows of heads, slightly wider than a frame."""
        width, height = self.size
        image = Image.new("RGB", (width * 5 // 4, height), (38, 34, 44))
        draw = ImageDraw.Draw(image)
        head = max(height / 26, 2.0)
        for row in range(9):
            y = height * (row + 0.6) / 9
            for column in range(int(image.width / (head * 2.6)) + 1):
                x = (column + 0.5 * (row % 2)) * head * 2.6 + rng.uniform(-0.3, 0.3) * head
                shirt = tuple(int(c) for c in rng.integers(60, 235, size=3))
                draw.ellipse((x - 1.2 * head, y + 0.6 * head, x + 1.2 * head, y + 3 * head), fill=shirt)
                draw.ellipse((x - 0.7 * head, y - 0.8 * head, x + 0.7 * head, y + 0.8 * head), fill=SKINS[row % 3])
        return image

    def _scoreboard(self, rng: np.random.Generator) -> Image.Image:
        """A scoreboard with bars instead of text: it shows no information."""
        width, height = self.size
        image = Image.new("RGB", (width * 5 // 4, height), (12, 16, 28))
        draw = ImageDraw.Draw(image)
        for row in range(8):
            y, bar = height * (row + 1) / 9.5, height / 18
            name, total = rng.uniform(0.18, 0.4), rng.uniform(0.06, 0.12)
            draw.rectangle((width * 0.15, y, width * (0.15 + name), y + bar), fill=(238, 238, 226))
            draw.rectangle((width * 0.8, y, width * (0.8 + total), y + bar), fill=(255, 190, 40))
        return image

    def _column(self, x: float) -> float:
        return self.size[0] / 2 + (x - self.look.shift) * self.scale

    # --- frames

    def dive_frame(self, plan: Performance, t: float, performer: bool = True) -> Image.Image:
        """The frame at time `t`, a fraction (0 to 1) of a dive's clip; without diver and splash if `performer` is False."""
        state = state_at(plan, t)
        frame, top = self._view(plan.board, max(state.y, 1.05) + self.look.lift)
        if not performer:
            return frame.reduce(SUPERSAMPLE)
        water = round(top * self.scale)
        draw = ImageDraw.Draw(frame)

        def to_pixels(point: Point) -> Point:
            return self._column(point[0]), (top - point[1]) * self.scale

        since_contact = t - plan.contact
        if state.y > -1.2:
            draw_diver(draw, plan, state, to_pixels, self.scale)
            if since_contact > -0.06:  # from the end of the flight on
                self._hide_below(frame, plan.board, top, water)
        if since_contact > 0:
            draw_splash(draw, plan, since_contact / (1 - plan.contact), to_pixels)
        return frame.reduce(SUPERSAMPLE)

    def filler_frame(self, kind: str, plan: Performance, t: float) -> Image.Image:
        """The frame at time `t`, a fraction (0 to 1) of a filler between two dives. `plan` is the dive of a replay."""
        if kind == "empty pool":
            frame, _ = self._view(plan.board, 1.05 + self.look.lift + 0.5 * t)
            return frame.reduce(SUPERSAMPLE)
        if kind == "replay":
            return self._replay(plan, t)
        width, height = self.size
        image = self.crowd if kind == "crowd" else self.scoreboard
        left = round((image.width - width) * (t if kind == "crowd" else 0.5))
        return image.crop((left, 0, left + width, height)).reduce(SUPERSAMPLE)

    def _view(self, board: Board, y: float) -> tuple[Image.Image, float]:
        """The scenery around height `y`, and the height of the frame's upper edge (both in metres)."""
        width, height = self.size
        scenery = self.sceneries[board]
        sky = board.height + SKY
        offset = min(max(round((sky - y) * self.scale - height / 2), 0), scenery.height - height)
        return scenery.crop((0, offset, width, offset + height)), sky - offset / self.scale

    def _hide_below(self, frame: Image.Image, board: Board, top: float, water: int) -> None:
        """Cover everything below the surface with the pool."""
        if water < frame.height:
            offset = round((board.height + SKY - top) * self.scale)
            box = (0, offset + water, frame.width, offset + frame.height)
            frame.paste(self.sceneries[board].crop(box), (0, water))

    def _replay(self, plan: Performance, t: float) -> Image.Image:
        """A slow close-up of a flight in front of a dark hall, with a white border as in broadcasts."""
        width, height = self.size
        frame = Image.new("RGB", self.size, tint(self.look.wall, 0.45))
        draw = ImageDraw.Draw(frame)
        state = state_at(plan, plan.takeoff + (plan.contact - plan.takeoff) * (0.3 + 0.3 * t))
        zoom = self.scale * 1.5

        def to_pixels(point: Point) -> Point:
            return width / 2 + (point[0] - state.x) * zoom, height / 2 - (point[1] - state.y) * zoom

        draw_diver(draw, plan, state, to_pixels, zoom)
        draw.rectangle((0, 0, width - 1, height - 1), outline=(240, 240, 240), width=max(height // 18, 1))
        return frame.reduce(SUPERSAMPLE)


# -------------------------------------------------------------------------------------------------------------- diver


def draw_diver(draw: ImageDraw.ImageDraw, plan: Performance, state: State, to_pixels: ToPixels, scale: float) -> None:
    """Draw the body. `to_pixels` maps metres to pixels, `scale` is in pixels per metre.

    The direction of a limb is an angle from the body's upward axis towards its front. A twist turns the body about this
    axis: depth is scaled by the cosine of the twist, and the width of the shoulders by its sine.
    """
    forward = plan.facing * math.cos(math.radians(state.twist))
    broad = math.sin(math.radians(state.twist)) * plan.facing
    cos, sin = (f(math.radians(state.rotation)) for f in (math.cos, math.sin))
    pose = state.pose

    def step(start: Point, angle: float, length: float) -> Point:
        ahead, up = forward * math.sin(math.radians(angle)) * length, math.cos(math.radians(angle)) * length
        return start[0] + ahead, start[1] + up

    def leg(spread: float) -> list[Point]:
        knee = step(hip, 180 - pose.hip + spread, 0.43)
        ankle = step(knee, 180 - pose.hip + spread + pose.knee, 0.43)
        return [hip, knee, step(ankle, 180 - pose.hip + spread + pose.knee - 30, 0.12)]

    hip: Point = (0.0, 0.0)
    shoulder = step(hip, 0, 0.52)
    head = step(shoulder, 12, 0.24)
    elbow = step(shoulder, 180 - pose.arm, 0.3)
    hand = step(elbow, 180 - pose.arm - pose.elbow, 0.34)
    legs = [leg(state.legs), leg(-state.legs)]
    # the centre of mass, between trunk and thighs, follows the flight path
    cx = (shoulder[0] + hip[0] + legs[0][1][0] + legs[1][1][0]) / 4
    cy = (shoulder[1] + hip[1] + legs[0][1][1] + legs[1][1][1]) / 4

    def put(points: Sequence[Point]) -> list[Point]:
        turned = (((x - cx), (y - cy)) for x, y in points)
        return [to_pixels((state.x + x * cos + y * sin, state.y - x * sin + y * cos)) for x, y in turned]

    trunk = 0.25 + 0.16 * abs(broad)
    suit = plan.suit if abs(broad) < 0.25 else FRONT if broad > 0 else BACK
    thin = 0.11 * scale
    draw_limb(draw, put([shoulder, elbow, hand]), thin, tint(plan.skin, 0.82))
    draw_limb(draw, put(legs[0]), 0.15 * scale, tint(plan.skin, 0.85))
    draw_limb(draw, put(legs[1]), 0.15 * scale, plan.skin)
    draw_limb(draw, put([hip, shoulder]), trunk * scale, suit)
    (x, y), r = put([head])[0], 0.15 * scale
    draw.ellipse((x - r, y - r, x + r, y + r), fill=plan.skin)
    if pose.arm < 150:  # not raised: the near arm is in front of the body
        draw_limb(draw, put([shoulder, elbow, hand]), thin, plan.skin)


def draw_splash(draw: ImageDraw.ImageDraw, plan: Performance, age: float, to_pixels: ToPixels) -> None:
    """Draw jets, drops and foam. `age` is 0 when the diver touches the water and 1 at the end of the clip."""
    grown = (1 - (1 - min(age / 0.14, 1.0)) ** 2) * (1 - 0.35 * max(age - 0.14, 0.0))
    height = (0.12 + 2.5 * plan.splash) * grown
    radius = (0.22 + 1.35 * plan.splash) * (0.6 + 0.4 * grown)

    def at(x: float, y: float) -> Point:
        return to_pixels((plan.landing + x, y))

    def oval(x: float, y: float, rx: float, ry: float, colour: Colour) -> None:
        (left, upper), (right, lower) = at(x - rx, y + ry), at(x + rx, y - ry)
        draw.ellipse((left, upper, right, lower), fill=colour)

    oval(0, -0.05, radius * 1.25, 0.1 + radius * 0.22, SPRAY)
    outline = [at(-radius, -0.02)]
    count = len(plan.spikes)
    for i, spike in enumerate(plan.spikes):
        middle = (2 * i + 1) / count - 1
        envelope = 1 - 0.55 * abs(middle)
        outline.append(at(middle * radius * 1.15, height * spike * envelope))
        outline.append(at((middle + 1 / count) * radius * 0.95, 0.3 * height * envelope))
    draw.polygon([*outline, at(radius, -0.02)], fill=FOAM)
    for dx, dy in plan.drops:
        oval(dx * radius, dy * height, 0.05, 0.05, FOAM)
    oval(0, -0.05, radius * 0.95, 0.06 + radius * 0.12, FOAM)
