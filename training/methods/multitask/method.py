"""Score, five attributes and a caption from the same features: C3D-AVG-MTL, "What and How Well You Performed? A
Multitask Learning Approach to Action Quality Assessment" (Parmar and Morris, CVPR 2019), on any backbone.

The score and the attributes use the average of a clip's features; the captioner reads the features in order. Losses and
their weights are the original's: MSE + L1 of score / 17, the sum of five cross entropies, and 0.01 x the negative
log-likelihood of the caption (summed over words, averaged over dives). --loss_mse_weight is the weight of MSE + L1;
--loss_spcoef_weight adds the soft Spearman correlation, as in --method regression. With --heads context the heads are those of
MSCADC-MTL, of the same paper, which read the maps of the backbone.

Parameter names, original -> here: fc6.fc -> fc6, score.fc_final_score -> score, dive.fc_position, .fc_armstand,
.fc_rot_type, .fc_ss_no, .fc_tw_no -> attributes.position, .armstand, .rotation_type, .ss_no, .tw_no; the captioner's names
are the original's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from data_preparation.actions import ATTRIBUTE_CLASSES, POSITIONS, ROTATION_TYPES, Action
from data_preparation.annotations import load_vocabulary
from data_preparation.common.errors import UserError
from training.backbones.base import Backbone, Mapped
from training.config import TrainConfig
from training.data.batch import Tensors
from training.data.facts import DataFacts
from training.data.plan import Arrays
from training.losses import mse, soft_spearman
from training.methods.base import Method
from training.methods.multitask.context import CAPTION_MAPS, WIDTH, ContextHead, MeanConv3d, caption_vector
from training.methods.multitask.s2vt import END, S2VT, START, caption_mask, encode_caption
from training.methods.rank_loss_flags import RANK_LOSS_ADVICE
from training.rows import full_precision

HIDDEN = 4096
SCORE_UNIT = 17.0  # points: standard deviation of MTL-AQA's final scores, rounded
CAPTION_WEIGHT = 0.01
CAPTION_LENGTH = 100  # words, including <sos> and <eos>


def build(config: TrainConfig, feature_dim: int, data: DataFacts) -> Multitask:
    words = load_vocabulary(config.vocabulary_file) if config.vocabulary_file else None
    return (ContextMultitask if config.heads == "context" else LinearMultitask)(config, feature_dim, words)


class Multitask(Method):
    """Predicts score and attributes and, with a vocabulary, captions. Base class of two kinds of heads."""

    captioner: S2VT | None

    against_constant = RANK_LOSS_ADVICE

    def __init__(self, config: TrainConfig, words: Sequence[str] | None) -> None:
        super().__init__()
        if words is not None and list(words[:2]) != ["<eos>", "<sos>"]:
            raise UserError(
                f"--vocabulary_path {config.vocabulary_path} does not begin with <eos> and <sos>: give MTL-AQA's vocab.json"
            )
        self.config, self.words = config, words
        self._numbers = {word: number for number, word in enumerate(words or ())}

    def labels(self, dive: Action) -> Arrays:
        if missing := [name for name in ATTRIBUTE_CLASSES if getattr(dive, name) is None]:
            raise UserError(
                f"{dive.title} has no {', '.join(missing)}, which --method multitask requires: add them to the annotations, or choose another --method"
            )
        classes = {name: np.array(getattr(dive, name), np.int64) for name in ATTRIBUTE_CLASSES}
        caption = {} if self.words is None else {"caption": self._encoded(dive).numpy()}
        return {"final_score": np.array(dive.final_score, np.float32), **classes, **caption}

    def why_no_onnx(self) -> str | None:
        return None if self.captioner is None else "it writes captions word by word"

    def get_extra_state(self) -> list[str] | None:
        return None if self.words is None else list(self.words)

    def set_extra_state(self, words: list[str] | None) -> None:
        if words != self.get_extra_state():
            raise UserError(
                f"--vocabulary_path {self.config.vocabulary_path} holds other words than the run was trained with: give that vocabulary"
            )

    def _encoded(self, dive: Action) -> torch.Tensor:
        caption = getattr(dive, "caption", None)
        if not caption:
            raise UserError(
                f"{dive.title} has no caption: give captions for every dive, or give --captions_path none and --vocabulary_path none"
            )
        if unknown := sorted(set(caption) - set(self._numbers)):
            raise UserError(
                f"{dive.title}: the vocabulary lacks words of the caption ({', '.join(unknown[:5])}): give the vocabulary of these captions"
            )
        return encode_caption([self._numbers[word] for word in caption], CAPTION_LENGTH)

    def heads(self, backbone: Backbone, clip: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        """The score (B,) and the logits (B, classes) of each attribute by name, and the vectors (B, N, D) that the captioner
        reads."""
        raise NotImplementedError

    def forward(self, backbone: Backbone, clips: Tensors, given: Tensors, labels: Tensors) -> Tensors:
        outputs, vectors_BND = self.heads(backbone, clips["clip"])
        if self.captioner is None:
            return outputs
        with torch.autocast(vectors_BND.device.type, enabled=False):
            if "caption" in labels:  # teacher forcing, for the loss only
                words_BL = labels["caption"][:, : int(caption_mask(labels["caption"]).sum(dim=1).max())]
                outputs["caption_nll"] = caption_nll(self.captioner(vectors_BND, words_BL), words_BL)
            if not self.training:
                outputs["caption_words"] = self.captioner.greedy(vectors_BND, CAPTION_LENGTH)
        return outputs

    def loss(self, outputs: Tensors, given: Tensors, labels: Tensors) -> Tensors:
        c = self.config
        true_B = labels["final_score"] / SCORE_UNIT
        error = mse(outputs["score"], true_B)
        l1_error = F.l1_loss(outputs["score"], true_B)
        cross_entropy = sum(F.cross_entropy(outputs[name], labels[name]) for name in ATTRIBUTE_CLASSES)
        parts = {"mse": error, "l1": l1_error, "attributes": cross_entropy}
        loss = c.loss_mse_weight * (error + l1_error) + cross_entropy
        if c.loss_spcoef_weight:
            scores = self.predict(outputs, given)["score"]
            correlation = soft_spearman(scores, labels["final_score"], c.spcoef_strength, c.spcoef_norm)
            parts["soft_spearman"] = correlation
            loss = loss - c.loss_spcoef_weight * correlation
        if "caption_nll" in outputs:
            parts["caption"] = outputs["caption_nll"].mean()
            loss = loss + CAPTION_WEIGHT * parts["caption"]
        return {"loss": loss, **parts}

    def predict(self, outputs: Tensors, given: Tensors) -> Tensors:
        return {"score": outputs["score"] * SCORE_UNIT}

    def quantities(self, outputs: Tensors, given: Tensors) -> Tensors:
        return self.predict(outputs, given) | {name: outputs[name].softmax(dim=1) for name in ATTRIBUTE_CLASSES}

    def metrics(self, outputs: Tensors, labels: Tensors) -> dict[str, float]:
        """Accuracy of each attribute (0 to 1); BLEU-4 and ROUGE-L F of the captions (0 to 1)."""
        found = {
            f"{name}_accuracy": float((outputs[name].argmax(dim=1) == labels[name]).double().mean())
            for name in ATTRIBUTE_CLASSES
        }
        if "caption_words" in outputs:
            found |= caption_metrics(self._sentences(outputs["caption_words"]), self._sentences(labels["caption"]))
        return found

    def columns(self, outputs: Tensors) -> dict[str, list]:
        columns: dict[str, list] = {
            f"predicted_{name}": outputs[name].argmax(dim=1).tolist() for name in ATTRIBUTE_CLASSES
        }
        if "caption_words" in outputs:
            columns["predicted_caption"] = self._sentences(outputs["caption_words"])
        return columns

    def details(self, outputs: Tensors) -> dict[str, list]:
        chosen = {name: outputs[name].argmax(dim=1).tolist() for name in ATTRIBUTE_CLASSES}
        found: dict[str, list] = {
            "position": [POSITIONS[k] for k in chosen["position"]],
            "armstand": [("no", "yes")[k] for k in chosen["armstand"]],
            "rotation": [ROTATION_TYPES[k] for k in chosen["rotation_type"]],
            "somersaults": [k / 2 for k in chosen["ss_no"]],
            "twists": [k / 2 for k in chosen["tw_no"]],
        }
        return found | ({"caption": self._sentences(outputs["caption_words"])} if "caption_words" in outputs else {})

    def _sentences(self, words_BL: torch.Tensor) -> list[str]:
        """(B, L) word indices -> sentences, without <sos> and up to <eos>."""
        assert self.words is not None
        return [
            " ".join(self.words[number] for number in row[mask] if number not in (START, END))
            for row, mask in zip(words_BL, caption_mask(words_BL), strict=True)
        ]


class LinearMultitask(Multitask):
    """C3D-AVG-MTL: linear layers on the mean of a clip's vectors."""

    def __init__(self, config: TrainConfig, feature_dim: int, words: Sequence[str] | None) -> None:
        super().__init__(config, words)
        self.fc6 = nn.Linear(feature_dim, HIDDEN)
        self.score = nn.Linear(HIDDEN, 1)
        self.attributes = nn.ModuleDict({name: nn.Linear(HIDDEN, n) for name, n in ATTRIBUTE_CLASSES.items()})
        self.captioner = None if words is None else S2VT(len(words), feature_dim)

    def heads(self, backbone: Backbone, clip: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        features_BND = backbone(clip)
        with torch.autocast(features_BND.device.type, enabled=False):  # in bf16 scores have steps of half a point
            features_BND = full_precision(features_BND)
            hidden_BH = F.relu(self.fc6(features_BND.mean(dim=1)))
            outputs = {"score": self.score(hidden_BH)[:, 0]}
            return outputs | {name: layer(hidden_BH) for name, layer in self.attributes.items()}, features_BND


class ContextMultitask(Multitask):
    """MSCADC-MTL: a context head of its own on the maps of a clip for score, attributes and captions.

    Parameter names, original -> here: score.*, dive.*, caption.* -> context.score.*, context.attributes.*, context.caption.*; their
    head_conv3 -> score.*, attributes.*, caption_conv.*.
    """

    def __init__(self, config: TrainConfig, feature_dim: int, words: Sequence[str] | None) -> None:
        super().__init__(config, words)
        parts = ("score", "attributes") if words is None else ("score", "attributes", "caption")
        self.context = nn.ModuleDict({part: ContextHead(feature_dim) for part in parts})
        self.score = MeanConv3d(1)
        self.attributes = nn.ModuleDict({name: MeanConv3d(n) for name, n in ATTRIBUTE_CLASSES.items()})
        self.captioner = None if words is None else S2VT(len(words), WIDTH * math.prod(CAPTION_MAPS))
        self.caption_conv = None if words is None else nn.Conv3d(WIDTH, WIDTH, 3, padding=1)

    def heads(self, backbone: Backbone, clip: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        features_BND, maps = cast(Mapped, backbone).with_maps(clip)
        with torch.autocast(features_BND.device.type, enabled=False):
            volume = full_precision(maps["volume"])  # (B, C, T, H, W)
            hidden = {part: head(volume) for part, head in self.context.items()}
            outputs = {"score": self.score(hidden["score"])[:, 0]}
            outputs |= {name: layer(hidden["attributes"]) for name, layer in self.attributes.items()}
            if self.caption_conv is None:
                return outputs, features_BND
            return outputs, caption_vector(self.caption_conv(hidden["caption"]))


def caption_nll(log_probabilities_BLV: torch.Tensor, tokens_BL: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood (B,) of each caption: the sum over tokens[:, 1:] up to and including the first <eos>."""
    following = tokens_BL[:, 1:]
    of_word_BL = -log_probabilities_BLV.gather(2, following[..., None])[..., 0]
    return (of_word_BL * caption_mask(tokens_BL)[:, 1:]).sum(dim=1)


def caption_metrics(found: Sequence[str], true: Sequence[str]) -> dict[str, float]:
    """Corpus BLEU-4 (Papineni et al., 2002) and mean ROUGE-L F (Lin, 2004), both from 0 to 1, computed by torchmetrics."""
    # imported here because the import takes seconds
    from torchmetrics.functional.text import bleu_score, rouge_score

    return {
        "bleu4": float(bleu_score(found, [[sentence] for sentence in true])),
        "rouge_l": float(rouge_score(found, true, rouge_keys="rougeL")["rougeL_fmeasure"]),
    }
