"""Methods: outputs of the original captioner and multitask heads, refused inputs, and SVR against scikit-learn."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.svm import SVR
from torch import nn
from torch.nn import functional as F

from data_preparation.actions import ATTRIBUTE_CLASSES, Dive
from data_preparation.common.errors import UserError
from tests.golden import difference, follow, golden, recipe_state, recipe_tensor, scaled_state
from tests.small import config_of, labels_of
from training.backbones.base import Backbone
from training.config import TrainConfig
from training.data.batch import Batch, Rows, Tensors
from training.data.facts import DataFacts
from training.engine.step import Step
from training.methods.multitask.method import LinearMultitask, Multitask, caption_metrics, caption_nll
from training.methods.multitask.s2vt import S2VT, caption_mask, encode_caption
from training.methods.svr.method import SupportVectorRegression
from training.model import ScoringModel
from training.runtime import checkpoint
from training.runtime.ranks import Ranks

DIVE = Dive(
    "01",
    7,
    100,
    200,
    difficulty=3.2,
    final_score=80.0,
    position=2,
    armstand=0,
    rotation_type=2,
    ss_no=7,
    tw_no=0,
    caption=("<sos>", "a", "dive", "<eos>"),
)

# C3D-AVG-MTL's names -> ours
NAMES = {
    "fc6.fc": "fc6", "score.fc_final_score": "score", "dive.fc_position": "attributes.position",
    "dive.fc_armstand": "attributes.armstand", "dive.fc_rot_type": "attributes.rotation_type",
    "dive.fc_ss_no": "attributes.ss_no", "dive.fc_tw_no": "attributes.tw_no",
}  # fmt: skip


@pytest.mark.parametrize("index", range(4))
def test_the_captioner_is_the_original(shared: Path, index: int):
    file = golden(shared, "s2vt")
    case = file["cases"][index]
    c = case["config"]
    model = S2VT(c["vocab_size"], c["dim_vid"], c["dim_hidden"], c["dim_word"], c["n_layers"]).eval()
    state = recipe_state(case["state_dict"], case["scale"])
    for name, scale in file["scale_overrides"].items():
        state[name] = recipe_tensor(name, case["state_dict"][name], scale)
    model.load_state_dict(state)
    assert sum(p.numel() for p in model.parameters()) == case["parameters"]

    tokens = torch.stack([encode_caption(caption, c["max_len"]) for caption in case["captions"]])
    assert tokens.tolist() == case["tokens"]
    assert caption_mask(tokens).int().tolist() == case["mask"]
    video = recipe_tensor("input:" + case["name"], case["input"], 1.0).requires_grad_()
    log_probabilities = model(video, tokens)
    if "teacher_forced_log_probs" in case:
        assert difference(log_probabilities.detach(), case["teacher_forced_log_probs"]) < 1e-4
    assert difference(log_probabilities.detach().norm(dim=2), case["log_prob_norm_per_step"]) < 1e-4
    nll = caption_nll(log_probabilities, tokens).mean()  # sum over words / batch size
    assert nll.item() == pytest.approx(case["masked_nll"], rel=1e-4)
    nll.backward()
    gradients = dict(model.named_parameters())
    for name, norm in case["gradient_norms_of_masked_nll"].items():
        assert gradients[name].grad.norm().item() == pytest.approx(norm, rel=1e-3), name
    assert video.grad.norm().item() == pytest.approx(case["input_gradient_norm"], rel=1e-3)
    assert model.greedy(video.detach(), c["max_len"]).tolist() == case["greedy_tokens"]


@pytest.mark.parametrize("index", [0, 1])
def test_the_multitask_heads_are_the_originals(shared: Path, index: int):
    file = golden(shared, "c3d_avg")
    case = file["cases"][index]
    config = TrainConfig(
        model="c3d", method="multitask", frame_num=case["input"][2], spatial_size=112, window_layout="reference"
    )
    from training.model import build_model

    model = build_model(config).eval()
    renamed = {}
    for name, tensor in recipe_state(file["state_dict"], file["scale"]).items():
        stem, _, kind = name.rpartition(".")
        renamed[name if name.startswith("backbone.") else f"method.{NAMES[stem]}.{kind}"] = tensor
    model.load_state_dict(
        {
            **renamed,
            **{n: t for n, t in model.state_dict().items() if n.startswith("input_") or n.endswith("_extra_state")},
        }
    )
    with torch.no_grad():
        outputs = model.method(
            model.backbone, {"clip": recipe_tensor("input:" + case["name"], case["input"], 1.0)}, {}, {}
        )
    # the score is a small sum of large terms: processors differ by 3e-6
    assert outputs["score"][:, None].numpy() == pytest.approx(np.array(case["score"]), rel=1e-4, abs=1e-5)
    for name in ATTRIBUTE_CLASSES:
        assert difference(outputs[name], case[name]) < 1e-4
    assert sum(p.numel() for p in model.parameters()) == sum(file["parameters"].values())


class Windows(Backbone):
    """The stand-in of the golden trajectory for C3D: means of 16 frames, a linear layer over the channels."""

    feature_dim = 8192

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(3, 512, 1)

    def prepare(self, clip: torch.Tensor, mean_C: torch.Tensor, std_C: torch.Tensor) -> torch.Tensor:
        return clip

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        starts = range(0, video.shape[2] - 17, 16)
        windows = torch.stack([video[:, :, s : s + 16] for s in starts], dim=1).flatten(0, 1)
        maps = F.relu(self.conv1(F.adaptive_avg_pool3d(windows, (1, 4, 4))))
        return maps.flatten(1).unflatten(0, (len(video), -1))  # (B, N, 8192)


@pytest.mark.slow
def test_optimizer_steps_of_c3d_avg_are_the_originals(shared: Path):
    """In float64, through the step of the engine: score, five attributes and caption."""
    (case,) = golden(shared, "trajectories_c3d_avg")["cases"]
    c = case["caption_config"]
    config = config_of("c3d", "multitask", frame_num=103, optimizer="Adam", batch_size=case["batch"], learning_rate=case["lr"], weight_decay=0.0)  # fmt: skip
    method = LinearMultitask(config, 8192, ["<eos>", "<sos>", *map(str, range(c["vocab_size"] - 2))])
    method.captioner = S2VT(c["vocab_size"], 8192, c["dim_hidden"], c["dim_word"], c["n_layers"])
    for gru in (method.captioner.rnn1, method.captioner.rnn2):
        gru.row_dropout.rate = 0.0
    model = ScoringModel(Windows(), method)
    own_names = {}
    for name in case["state_dict"]:
        stem, _, kind = name.rpartition(".")
        renamed = f"{NAMES[stem]}.{kind}" if stem in NAMES else name.replace("caption.", "captioner.")
        own_names[name] = name if name.startswith("backbone.") else f"method.{renamed}"
    state = scaled_state(case["state_dict"], 1.0, case["scale_overrides"])
    model.load_state_dict({own_names[name]: t for name, t in state.items()}, strict=False)
    clips = recipe_tensor(f"input:{case['name']}", case["input"], 1.0).double().split(case["batch"])
    columns = ["final_score", *ATTRIBUTE_CLASSES]
    batches = []
    for number, clip in enumerate(clips):
        rows = slice(number * case["batch"], (number + 1) * case["batch"])
        labels: Tensors = {n: torch.tensor(column) for n, column in zip(columns, zip(*case["dives"][rows], strict=True), strict=True)}  # fmt: skip
        labels["final_score"] = torch.tensor([dive[0] for dive in case["dives"][rows]], dtype=torch.float64)
        labels["caption"] = torch.tensor(case["captions"][rows])
        assert caption_mask(labels["caption"]).sum(dim=1).tolist() == case["caption_mask_ones"][rows]
        batches.append(Batch({"clip": clip}, {}, labels, torch.arange(len(clip))))
    step = Step(model.double(), config, Ranks(), torch.device("cpu"))
    follow(step, batches * case["epochs"], case, own_names, [case["lr"]] * len(case["loss"]))


def multitask(tmp_path: Path, words: list[str]) -> Multitask:
    vocabulary = {"ix_to_word": {str(i): w for i, w in enumerate(words)}}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    from training.methods.multitask.method import build

    paths = {"captions_path": str(tmp_path / "c.pkl"), "vocabulary_path": str(tmp_path / "vocab.json")}
    return build(TrainConfig(method="multitask", **paths), 24, DataFacts())


def test_the_multitask_loss_is_the_papers(tmp_path: Path):
    method = multitask(tmp_path, ["<eos>", "<sos>", "a", "dive"])
    dives = [DIVE, dataclasses.replace(DIVE, final_score=51.0, position=0)]
    targets = labels_of(method, dives)
    outputs = {n: torch.randn(2, k) for n, k in ATTRIBUTE_CLASSES.items()}
    outputs |= {"score": torch.tensor([4.0, 3.5]), "caption_nll": torch.tensor([8.0, 6.0])}
    true = np.array([80 / 17, 3.0])
    found = np.array([4.0, 3.5])
    expected = np.mean((found - true) ** 2) + np.mean(np.abs(found - true)) + 0.01 * 7
    for name in ATTRIBUTE_CLASSES:
        expected += torch.nn.functional.cross_entropy(outputs[name], targets[name]).item()
    assert method.loss(outputs, {}, targets)["loss"].item() == pytest.approx(expected, rel=1e-5)
    assert method.predict(outputs, {})["score"].tolist() == pytest.approx([68.0, 59.5])


def test_attributes_are_counted_and_captions_written(tmp_path: Path):
    method = multitask(tmp_path, ["<eos>", "<sos>", "a", "dive", "splash"])
    outputs = {n: torch.eye(k)[:2] for n, k in ATTRIBUTE_CLASSES.items()}  # classes 0 and 1
    outputs["caption_words"] = torch.tensor([[2, 3, 0, 4], [4, 4, 4, 4]])
    targets = {n: torch.tensor([0, 0]) for n in ATTRIBUTE_CLASSES}
    targets["caption"] = torch.tensor([[1, 2, 3, 0, 0], [1, 2, 3, 0, 0]])
    metrics = method.metrics(outputs, targets)
    assert metrics["position_accuracy"] == 0.5
    assert metrics["rouge_l"] == pytest.approx(0.5)
    columns = method.columns(outputs)
    assert columns["predicted_caption"] == ["a dive", "splash splash splash splash"]
    assert columns["predicted_ss_no"] == [0, 1]


def test_caption_metrics():
    true = ["the diver enters the water with hardly any splash", "a forward two and a half"]
    assert caption_metrics(true, true) == pytest.approx({"bleu4": 1.0, "rouge_l": 1.0})
    assert caption_metrics(["x y z", ""], true) == pytest.approx({"bleu4": 0.0, "rouge_l": 0.0})
    some = caption_metrics(["the diver enters the water", "a half"], true)
    assert 0 < some["bleu4"] < some["rouge_l"] < 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"position": None}, "no position"),
        ({"caption": None}, "no caption"),
        ({"caption": ("<sos>", "belly", "<eos>")}, "belly"),
    ],
)
def test_a_dive_that_lacks_what_is_learned_is_named(tmp_path: Path, change: dict, words: str):
    method = multitask(tmp_path, ["<eos>", "<sos>", "a", "dive"])
    with pytest.raises(UserError, match=words) as error:
        method.labels(dataclasses.replace(DIVE, **change))
    assert "01/007" in str(error.value)


def test_a_vocabulary_without_its_marks_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="<eos> and <sos>"):
        multitask(tmp_path, ["a", "dive"])


@given(st.lists(st.integers(2, 30), max_size=30), st.integers(4, 20))
def test_captions_end_once(words: list[int], length: int):
    tokens = encode_caption([1, *words, 0], length)
    mask = caption_mask(tokens[None])[0]
    assert len(tokens) == length
    assert tokens[mask][-1] == 0
    assert mask.sum() == min(len(words) + 2, length)
    assert (tokens[mask][:-1] != 0).all()


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_svr_predicts_as_scikit_learn_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kernel: str):
    monkeypatch.setattr("training.methods.svr.method.KERNELS", (kernel,))
    rng = np.random.default_rng(0)
    features = rng.normal(3, 2, (60, 12))
    scores = 60 + 10 * np.tanh(features[:, 0]) + features[:, 1]
    rows = [
        Rows({"features": torch.tensor(features[part])}, {}, {"final_score": torch.tensor(scores[part])})
        for part in (slice(0, 40), slice(40, 60))
    ]
    method = SupportVectorRegression()
    text = method.fit(*rows)
    assert kernel in text
    cost = float(text.split("C ")[1].split(",")[0])
    epsilon = float(text.split("epsilon ")[1].split(",")[0])
    mean, scale = features[:40].mean(0), features[:40].std(0)
    theirs = SVR(kernel=kernel, C=cost, epsilon=epsilon, gamma=1 / 12).fit((features[:40] - mean) / scale, scores[:40])
    expected = theirs.predict((features[40:] - mean) / scale)
    found = method.predict(rows[1].outputs, {})["score"]
    assert found.numpy() == pytest.approx(expected, abs=1e-6)
    checkpoint.save(tmp_path / "svr.pt", {"model": method.state_dict()})
    other = SupportVectorRegression()
    other.load_state_dict(checkpoint.load(tmp_path / "svr.pt")["model"])
    assert torch.equal(other.predict(rows[1].outputs, {})["score"], found)
