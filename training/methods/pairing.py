"""Which references an action is compared with: the exemplar of a training pair, and the voters of a prediction."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from data_preparation.actions import ATTRIBUTE_CLASSES, Action, sort_key
from data_preparation.common.errors import UserError
from training.data.batch import Tensors
from training.data.dataset import Plan
from training.data.plan import Arrays
from training.methods.base import Bank
from training.methods.grouping import DECIMALS
from training.runtime.seeding import derive_seed

DIFFICULTY_SPAN, SCORE_SPAN = 30.0, 100.0  # largest difference of labels, as in CoRe and TPT


class Pairing:
    """The pairs of --pairs.

    A label is what is compared: the final score divided by the difficulty ("difficulty", "number"), mapped to 0..100 ("kind"),
    or as it is ("free"). Actions of the same pool are compared. If a pool has no other action, those of the nearest
    difficulty are taken.
    """

    def __init__(self, config: Any) -> None:
        self.pairs, self.voter_count, self.split_seed = config.pairs, config.voter_count, config.split_seed
        self.difficulty_given = config.difficulty == "given"
        self._pool: tuple[Sequence[Action], np.ndarray, np.ndarray] | None = None

    @property
    def uses_difficulty(self) -> bool:
        return self.pairs in ("difficulty", "number")

    @property
    def span(self) -> float:
        """The largest difference of labels."""
        return DIFFICULTY_SPAN if self.uses_difficulty else SCORE_SPAN

    # ------------------------------------------------------------------------------------------ values of an action

    def given(self, action: Action) -> Arrays:
        """What a prediction needs to know of an action. `scale` (2,) turns a label into a score: scale[0] + scale[1] * label.

        Raises:
            UserError: the action has no difficulty, dive number or kind.
        """
        seed = {"voter_seed": np.array(voter_seed(self.split_seed, action), np.int64)}
        if not self.difficulty_given:
            return seed
        scale = np.array(self._scale(action))
        return {**seed, "scale": scale, **self._place(action)}

    def labels(self, action: Action) -> Arrays:
        """The label, pool and difficulty of an action whose score is known.

        Raises:
            UserError: as `given`, or the action has no final score.
        """
        return {"label": np.array(self.label(action)), **self._place(action)}

    def label(self, action: Action) -> float:
        offset, factor = self._scale(action)
        return round((action.need("final_score") - offset) / factor, DECIMALS)

    def pool(self, action: Action) -> int:
        """A number that is equal for actions that may be compared."""
        return derive_seed("pool", *self._pool_parts(action))

    def _place(self, action: Action) -> Arrays:
        difficulty = self._difficulty(action) if self.uses_difficulty else 0.0
        return {"pool": np.array(self.pool(action), np.int64), "difficulty": np.array(difficulty)}

    def _scale(self, action: Action) -> tuple[float, float]:
        if self.pairs == "free":
            return 0.0, 1.0
        if self.pairs == "kind":
            rules = action.need("rules")
            return rules.low, (rules.high - rules.low) / SCORE_SPAN
        return 0.0, self._difficulty(action)

    def _difficulty(self, action: Action) -> float:
        if action.difficulty is None:
            raise UserError(f"{action.title} has no difficulty, which --pairs {self.pairs} needs: give --pairs kind")
        return round(action.difficulty, DECIMALS)

    def _pool_parts(self, action: Action) -> tuple:
        if self.pairs == "difficulty":
            return (self._difficulty(action),)
        if self.pairs == "kind":
            return (action.kind,)
        if self.pairs == "free":
            return ()
        attributes = tuple(getattr(action, name, None) for name in ATTRIBUTE_CLASSES)
        number = getattr(action, "dive_number", None)
        if number is None and None in attributes:
            raise UserError(
                f"{action.title} has no dive number, which --pairs number needs: give annotations with dive numbers, or --pairs difficulty"
            )
        # together the attributes determine the dive number
        return (number,) if number is not None else attributes

    # ----------------------------------------------------------------------------------------------- pairs and voters

    def exemplar(self, plan: Plan) -> Action | None:
        """The other action of a training pair: a draw from the pool of `plan.action`, a function of (seed, epoch, action).
        None without augmentation.

        Raises:
            UserError: the training part has no other action to compare with.
        """
        rng = plan.rng("exemplar")
        if rng is None:
            return None
        if self._pool is None or self._pool[0] is not plan.pool:
            places = [self._place(action) for action in plan.pool]
            pools, difficulties = (np.array([place[name] for place in places]) for name in ("pool", "difficulty"))
            self._pool = plan.pool, pools, difficulties
        actions, pools, difficulties = self._pool
        others = np.array([action.key != plan.action.key for action in actions])
        place = self._place(plan.action)
        candidates = self._candidates(others, pools == place["pool"], difficulties, float(place["difficulty"]))
        if not len(candidates):
            raise UserError(
                f"{plan.action.title} has no other action to be compared with: use more --videos, or another --pairs"
            )
        return actions[int(candidates[rng.integers(len(candidates))])]

    def differences_of(self, actions: Sequence[Action]) -> tuple[list[float], list[int]]:
        """The labels and pools of actions, for grouping.pair_differences."""
        return [self.label(action) for action in actions], [self.pool(action) for action in actions]

    def voters(self, given: Tensors, bank: Bank, difficulty: torch.Tensor | None = None) -> list[np.ndarray]:
        """The references that vote for each of B actions: positions in the bank. Never the action itself.

        `difficulty` (B,) replaces the difficulties of `given` if these are predicted.

        Raises:
            UserError: the bank has no reference of the action's kind.
        """
        # in the order of the keys, so that a draw does not depend on the order of the bank
        order = np.array(sorted(range(len(bank.keys)), key=lambda row: sort_key(bank.keys[row])))
        own = np.array([derive_seed(self.split_seed, "voters", *bank.keys[row]) for row in order])
        pools, difficulties = (bank.labels[name].cpu().numpy()[order] for name in ("pool", "difficulty"))
        seeds = given["voter_seed"].tolist()
        if difficulty is None:
            pool_of, difficulty_of = given["pool"].tolist(), given["difficulty"].tolist()
        else:
            pool_of, difficulty_of = [None] * len(seeds), difficulty.tolist()
        chosen = []
        for seed, pool, value in zip(seeds, pool_of, difficulty_of, strict=True):
            same = np.zeros(len(order), bool) if pool is None else pools == pool
            candidates = self._candidates(own != seed, same, difficulties, value)
            if not len(candidates):
                raise UserError("the run has no reference to compare an action with: use more --videos")
            if self.voter_count is not None:
                drawn = np.random.default_rng(seed).permutation(len(candidates))[: self.voter_count]
                candidates = candidates[drawn]
            chosen.append(order[np.sort(candidates)])
        return chosen

    def _candidates(
        self, others: np.ndarray, same: np.ndarray, difficulties: np.ndarray, difficulty: float
    ) -> np.ndarray:
        """Positions of the other actions of the same pool, else of those of the nearest difficulty: (N,) arrays -> (M,)."""
        found = np.flatnonzero(others & same)
        if len(found) or not self.uses_difficulty or not others.any():
            return found
        distance = np.round(np.abs(difficulties - difficulty), DECIMALS)
        return np.flatnonzero(others & (distance == distance[others].min()))


def voter_seed(split_seed: int, action: Action) -> int:
    """The seed of an action's voters; it identifies the action, too."""
    return derive_seed(split_seed, "voters", *action.key)


def pairs_of(voters: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    """(rows, references), each (P,) int64: one pair for each voter of each row."""
    rows = np.repeat(np.arange(len(voters)), [len(each) for each in voters])
    return torch.from_numpy(rows), torch.from_numpy(np.concatenate(voters))


def mean_vote(votes: torch.Tensor, rows: torch.Tensor, count: int) -> torch.Tensor:
    """The mean vote of each of `count` rows: votes (P,) and rows (P,) -> (count,)."""
    sums = votes.new_zeros(count).index_add(0, rows, votes)
    return sums / torch.bincount(rows, minlength=count)


def in_parts(
    compute: Callable[[torch.Tensor, torch.Tensor], Tensors],
    rows: torch.Tensor,
    references: torch.Tensor,
    size: int = 2048,
) -> Tensors:
    """compute(rows, references) of at most `size` pairs at a time, concatenated on the CPU."""
    parts = [compute(*part) for part in zip(rows.split(size), references.split(size), strict=True)]
    return {name: torch.cat([part[name].cpu() for part in parts]) for name in parts[0]}
