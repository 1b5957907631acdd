"""Explanations: maps hit the only place that a network looks at; files open; grades against the truth of drawn data."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from data_preparation.common.errors import UserError
from data_preparation.synthetic import decisive
from data_preparation.synthetic.decisive import FILE, decisive_boxes, read_decisive, write_decisive
from data_preparation.synthetic.dives import SyntheticConfig
from tests.conftest import run_main
from tests.small import DIVES, FACTS, VIDEO_MODELS, batch_of, tiny_config
from training.backbones._maps import over_clip
from training.backbones.base import Backbone
from training.backbones.timesformer.network import divided_step
from training.data.batch import Batch
from training.data.plan import View
from training.explain import Explanation, Reason, explain, explain_batch, sheet, write
from training.explain.maps import attribution, effects_of_frames, kinds, number_of, predicted
from training.grade_explanations import count_hits, decisive_pixels, markdown, widened
from training.methods.regression.method import Regression
from training.model import ScoringModel, build_model
from training.scorer import Clip, Scorer

FRAME, TOP, LEFT = 3, 8, 20  # where the network below looks: a square of 8 pixels


class OnePlace(Backbone):
    """(B, 3, T, H, W) -> (B, 1, 1): the brightness of one square of one frame."""

    feature_dim = 1

    def forward(self, video_BCTHW: torch.Tensor) -> torch.Tensor:
        return video_BCTHW[:, :, FRAME, TOP : TOP + 8, LEFT : LEFT + 8].mean(dim=(1, 2, 3))[:, None, None]


@pytest.mark.parametrize("kind", ["gradient", "occlusion"])
def test_maps_and_curve_hit_the_only_place_that_counts(kind: str):
    config = tiny_config("timesformer", "regression", loss_spcoef_weight=0.0)
    model = ScoringModel(OnePlace(), Regression(torch.nn.Linear(1, 2), config)).eval()
    noise = torch.randint(0, 256, (2, 5, 3, 32, 40), generator=torch.Generator().manual_seed(1)).byte()
    batch = Batch({"clip": noise}, {}, {}, torch.arange(2))
    found = explain_batch(model, batch, ["a", "b"], kind=kind)
    for explanation in found:
        assert [reason.quantity for reason in explanation.reasons] == ["score", "execution", "difficulty"]
        for reason in explanation.reasons:
            frame, row, column = np.unravel_index(reason.map_THW.argmax(), reason.map_THW.shape)
            assert frame == FRAME == reason.strongest
            assert TOP - 1 <= row <= TOP + 8
            assert LEFT - 1 <= column <= LEFT + 8
            assert not np.delete(reason.effects_T, FRAME).any()


@pytest.mark.parametrize("model", VIDEO_MODELS)
def test_every_backbone_is_explained_by_each_map_that_it_offers(model: str):
    config = tiny_config(model, "regression")
    network = build_model(config, FACTS).eval()
    batch = batch_of(config, network.method, DIVES[:2])
    video = network.prepare(batch.clips["clip"])
    number = number_of(network, batch, "score", None)
    offered = kinds(network, video)
    assert offered[0] == network.backbone.explained_by
    for kind in [kind for kind in offered if kind != "occlusion"]:  # it needs hundreds of forward passes
        maps = attribution(kind, network, number, video)
        assert maps.shape == (2, config.frame_num, *config.input_size)
        assert maps.amin() >= 0
        assert torch.isfinite(maps).all()
        assert maps.amax(dim=(1, 2, 3)).round(decimals=5).tolist() in ([1, 1], [0, 0])
    assert effects_of_frames(network, number, video).shape == (2, config.frame_num)
    assert all(parameter.grad is None for parameter in network.parameters())
    with pytest.raises(UserError, match="no maps of the kind tarot: choose gradient"):
        attribution("tarot", network, number, video)


def test_attributes_classes_and_predictions_without_gradient_are_explained():
    config = tiny_config("c3d", "multitask")
    network = build_model(config, FACTS).eval()
    batch = batch_of(config, network.method, DIVES[:2])
    found = {name: chosen for name, _, chosen in predicted(network, batch, network.prepare(batch.clips["clip"]))}
    assert next(iter(found)) == "score"
    assert found["score"] is None
    assert found["position"].shape == (2,)
    config = tiny_config("timesformer", "usdl", decode="argmax", frame_num=2)  # no gradient
    network = build_model(config, FACTS).eval()
    batch = batch_of(config, network.method, DIVES[:1])
    assert explain_batch(network, batch, ["a"])[0].kind == "occlusion"
    with pytest.raises(UserError, match="has no gradient"):
        explain_batch(network, batch, ["a"], kind="gradient")
    config = tiny_config("tsm", "classify")
    network = build_model(config, FACTS).eval()
    reasons = explain_batch(network, batch_of(config, network.method, DIVES[:2]), ["a", "b"], FACTS.classes)[0].reasons
    assert reasons[0].quantity == "class"
    assert reasons[0].value.split()[0] in FACTS.classes


def test_maps_of_windows_lie_at_their_frames():
    maps = torch.zeros(1, 3, 2, 1, 1)
    maps[0, 1] = 1.0
    found = over_clip(maps, [0, 4, 6], 4, 12)[0, :, 0, 0]
    assert found.tolist() == [0, 0, 0, 0, 1, 1, 0.5, 0.5, 0, 0, 0, 0]


def test_rollout_loses_nothing_and_follows_the_attention():
    torch.manual_seed(0)
    b, p, t = 2, 6, 3
    space, time = torch.rand(b, t, 1 + p, 1 + p).softmax(dim=-1), torch.rand(b, p, t, t).softmax(dim=-1)
    shares = torch.rand(b, 1 + p * t).softmax(dim=-1)
    cls, patches = divided_step(shares[:, 0], shares[:, 1:].view(b, p, t), space, time)
    assert torch.allclose(cls + patches.sum(dim=(1, 2)), torch.ones(b))
    to_patch_4 = torch.zeros_like(space)
    to_patch_4[..., 1 + 4] = 1
    cls, patches = divided_step(torch.ones(b), torch.zeros(b, p, t), to_patch_4, torch.eye(t).expand(b, p, t, t))
    assert torch.allclose(patches[:, 4], torch.full((b, t), 0.5 / t))
    assert torch.allclose(cls, torch.full((b,), 0.5))


# -------------------------------------------------------------------------------------------------------------- writer


def explanation_of(frames: int, height: int, width: int, name: str = "clip") -> Explanation:
    rng = np.random.default_rng(0)
    reasons = tuple(
        Reason(quantity, "3.1", unit, rng.random((frames, height, width), np.float32), rng.normal(size=frames))
        for quantity, unit in (("score", "points"), ("difficulty", ""))
    )
    return Explanation(name, "gradient", rng.integers(0, 256, (frames, height, width, 3), np.uint8), reasons)


@pytest.mark.parametrize(("frames", "height", "width"), [(3, 33, 47), (20, 64, 64), (1, 300, 301)])
def test_sheet_and_video_open(tmp_path: Path, frames: int, height: int, width: int):
    picture, video = write(explanation_of(frames, height, width, "../../$x^$ pass wd\n\udcff.mp4"), tmp_path)
    assert picture.parent == video.parent == tmp_path
    with Image.open(picture) as image:
        image.load()
        assert image.width > 400
        assert image.height > 400
    with av.open(str(video)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert stream.width % 2 == stream.height % 2 == 0
        assert stream.width >= 2 * sheet.VIDEO_HEIGHT * width / height - 4
        shown = sum(1 for _ in container.decode(video=0))
    assert shown % frames == 0
    assert shown >= 0.6 * sheet.VIDEO_SECONDS * sheet.FPS


def test_an_interruption_leaves_no_part_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sheet, "overlay", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        sheet.write_video(explanation_of(3, 16, 16), tmp_path / "a.mp4")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="could not be written"):
        write(explanation_of(3, 16, 16), tmp_path / "file")


# -------------------------------------------------------------------------------------------------------------- grading


def test_boxes_of_a_drawn_dive_hold_all_that_differs_from_the_empty_pool(dataset: Path, tmp_path: Path):
    _, flags = decisive.drawn_with(decisive.DatasetLayout(dataset))
    config = SyntheticConfig(**{**flags, "dives": 4})
    found = decisive_boxes(config)
    write_decisive(tmp_path / FILE, found)
    assert read_decisive(tmp_path / FILE) == found
    for plan in decisive.dives.make_plan(config):
        stage = decisive.dives.make_stage(config, plan.video)
        for dive, board in zip(plan.dives, plan.boards, strict=True):
            rng = decisive.random_stream(config.seed, decisive.dives.PICTURE, *dive.key)
            performed = decisive.make_performance(dive, board, rng)
            boxes = found.boxes[dive.name]
            assert max(boxes) == dive.end_frame
            assert dive.start_frame + 0.4 * dive.frame_count < min(boxes) < dive.start_frame + 0.62 * dive.frame_count
            left, top, right, bottom = boxes[dive.end_frame]
            drawn, empty = (np.asarray(stage.dive_frame(performed, 1.0, p)).astype(int) for p in (True, False))
            changed = np.abs(drawn - empty).max(axis=2)
            assert changed[top:bottom, left:right].max() > 60
            changed[top:bottom, left:right] = 0
            assert changed.max() < decisive.LEAST_CHANGE


def test_hits_are_counted(tmp_path: Path):
    view = View((40, 80), (4, 10, 32, 64), flip=True)
    pixels = decisive_pixels({7: (20, 10, 30, 20)}, [3, 7, 9], view, 40, 80)[None]
    assert np.argwhere(pixels[0]).min(axis=0).tolist() == [1, 6, 44]  # x of 20 to 30 becomes 64 - (10 to 20)
    assert pixels.sum() == 100
    assert widened(pixels).sum() == 14 * 14  # 2 pixels on each side
    perfect, wrong = pixels.astype(float), np.roll(pixels, 16, axis=3).astype(float)
    assert count_hits(perfect, perfect.sum(axis=(2, 3)), pixels) == (1, 1, 1)
    assert count_hits(wrong, np.array([[1.0, 0, 0]]), pixels) == (0, 0, 1)
    assert count_hits(None, np.ones((1, 3)), pixels) == (None, 0, 1)  # says nothing


def test_runs_are_graded(train, dataset: Path, tmp_path: Path):
    _, flags = decisive.drawn_with(decisive.DatasetLayout(dataset))
    train("--run_name", "a", "--epochs", 1)
    run = tmp_path / "runs" / "a"
    missing = run_main("training.grade_explanations", "--run", run, check=False)
    assert missing.returncode == 2
    assert "data_preparation.synthetic.decisive --dataset" in missing.stderr
    truth = tmp_path / FILE
    write_decisive(truth, decisive_boxes(SyntheticConfig(**flags)))
    out = run_main("training.grade_explanations", "--run", run, "--truth", truth, "--clips", 4, "--gpu", "False").stdout
    rows = [line.split(" | ") for line in out.splitlines()[2:]]
    assert {row[1] for row in rows} == {"gradient", "rollout", "occlusion", "hidden frames", ""}
    assert [row[2] for row in rows].count("random") == 4
    assert markdown([])[0].startswith("| run")
    # clips in memory: the explained values are those of a prediction
    scorer = Scorer.from_run(run, gpu=False)
    frames = np.random.default_rng(0).integers(0, 256, (20, 72, 128, 3), np.uint8)
    clip = Clip(frames, scorer.action("mine", 1, 1, 20), "my dive")
    (explanation,) = explain(scorer, [clip])
    assert explanation.name == "my dive"
    assert explanation.kind == "gradient"
    (prediction,) = scorer.predict([clip])
    assert explanation.reasons[0].value == f"{prediction.values['score']:.1f} points"
    assert explanation.reasons[1].value == f"{prediction.values['execution']:.1f} points"
