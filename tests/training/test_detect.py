"""Boxes of torchvision's detectors, written as rules read them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from data_preparation.archive import open_frames
from data_preparation.common.errors import UserError
from data_preparation.detections import read_detections
from training.detect import DetectConfig, check_operators, detection, get_model_builder, list_models, main, torchvision

DETECTOR = "ssdlite320_mobilenet_v3_large"  # the smallest
NAMES = ("background", "diver", "board")


def greedy_nms(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """The indices of boxes (N, 4) that overlap no better one by more than the threshold, the best first."""
    overlaps, kept = torchvision.ops.box_iou(boxes, boxes), []
    for index in scores.argsort(descending=True, stable=True).tolist():
        if not (overlaps[index, kept] > iou_threshold).any():
            kept.append(index)
    return torch.tensor(kept, dtype=torch.int64)


@pytest.fixture
def operators(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision's operator, or where its compiled ones do not load, as with a torch for CPUs only, the same in Python."""
    try:
        check_operators(torch.device("cpu"))
    except UserError:
        monkeypatch.setattr(torchvision.ops.boxes, "nms", greedy_nms)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights for three classes, whose scores differ."""
    network = build(len(NAMES))
    with torch.no_grad():
        for parameter in network.head.classification_head.parameters():
            parameter += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)) / 10
    path = tmp_path_factory.mktemp("weights") / "detector.pth"
    torch.save({"model": network.state_dict()}, path)
    return path


def build(classes: int) -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return get_model_builder(DETECTOR)(weights=None, weights_backbone=None, num_classes=classes)


def flags(dataset: Path, output: Path, weights: Path, *more: object) -> list[str]:
    words = ["--root_dir", dataset / "whole_videos_frames", "--output", output, "--weights", weights]
    return [str(word) for word in (*words, "--detector", DETECTOR, "--gpu", "False", *more)]


def test_the_boxes_are_those_of_torchvision_in_pixels_of_the_video(
    operators, dataset: Path, weights: Path, tmp_path: Path
):
    output = tmp_path / "detections.csv"
    reader = open_frames(dataset / "whole_videos_frames", "01")
    every = len(reader.numbers) // 3  # 4 frames, in a batch of 3 and one of 1
    main(flags(dataset, output, weights, "--videos", "01", "--classes", *NAMES, "--least_score", "0.4", "--every", every, "--batch_size", "3"))  # fmt: skip
    found = read_detections(output)["01"]

    network = build(len(NAMES)).eval()
    network.load_state_dict(torch.load(weights, weights_only=True)["model"])
    source = reader.provenance["source"]
    expected = []
    for number in reader.numbers[::every].tolist():
        image = torch.from_numpy(reader.image(number)).permute(2, 0, 1) / 255
        scale = torch.tensor([source["width"] / image.shape[2], source["height"] / image.shape[1]] * 2)
        with torch.no_grad():
            (result,) = network([image])
        rows = zip(
            (result["boxes"] * scale).tolist(), result["labels"].tolist(), result["scores"].tolist(), strict=True
        )
        expected += [(number, NAMES[label], score, box) for box, label, score in rows if score >= 0.4]
    assert {each.frame for each in found} == set(reader.numbers[::every].tolist())
    assert len({each.name for each in found}) == 2
    assert [(each.frame, each.name) for each in found] == [row[:2] for row in expected]
    for each, (_, _, score, box) in zip(found, expected, strict=True):
        assert each.score == pytest.approx(score, abs=1e-4)
        assert each.corners == pytest.approx(box, abs=0.1)


def test_a_video_without_boxes_has_its_row_and_published_classes_their_names(operators, dataset: Path, tmp_path: Path):
    torch.save(build(91).state_dict(), tmp_path / "coco.pth")
    main(flags(dataset, tmp_path / "none.csv", tmp_path / "coco.pth", "--least_score", "1", "--every", "500"))
    assert read_detections(tmp_path / "none.csv") == {"01": [], "02": []}


def test_bad_inputs_are_named_and_nothing_is_written(operators, dataset: Path, weights: Path, tmp_path: Path):
    (tmp_path / "text.pth").write_text("no weights")
    for words, expected in (
        ((tmp_path / "none.pth",), "none.pth"),
        ((tmp_path / "text.pth",), "text.pth"),
        ((weights,), "has 3 classes and COCO has 91"),
        ((weights, "--classes", "a"), "has 3 classes and --classes has 1"),
        ((weights, "--detector", "fcos_resnet50_fpn"), "does not fit this network"),
        ((weights, "--detector", "yolo"), "ssd300_vgg16"),
        ((weights, "--videos", "01", "77"), "77.zip is missing"),
    ):
        with pytest.raises(UserError, match=expected) as error:
            main(flags(dataset, tmp_path / "out.csv", *words))
        assert len(str(error.value).splitlines()) == 1
        assert str(words[0]) in str(error.value) or len(words) > 1
    assert not (tmp_path / "out.csv").exists()


def test_missing_operators_are_named(monkeypatch: pytest.MonkeyPatch):
    def absent(*_):
        raise RuntimeError("Couldn't load custom C++ ops")

    monkeypatch.setattr(torchvision.ops.boxes, "nms", absent)
    with pytest.raises(UserError, match=r"operator nms.*install the two versions"):
        check_operators(torch.device("cpu"))


def test_all_architectures_of_torchvision_can_be_chosen():
    assert set(DetectConfig.__dataclass_fields__["detector"].metadata["choices"]) == set(list_models(module=detection))
