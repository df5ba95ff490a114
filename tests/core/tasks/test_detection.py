"""Detection and instance segmentation: torchvision's operators in plain torch, AP by hand, Mask R-CNN on tiny random weights."""

import json

import pytest
import torch

from alignsr.core import compat
from alignsr.core.tasks.coco import Annotations, Detections, average_precision, coco_results
from alignsr.core.tasks.mask_rcnn import DetectionJudge, MaskRCNN, build_mask_rcnn
from alignsr.core.torchvision_ops import in_parts, nms
from alignsr.core.weights import WeightsError


def has(package: str) -> bool:
    from importlib.util import find_spec

    return find_spec(package) is not None


needs_coco = pytest.mark.skipif(not has("pycocotools"), reason="needs pycocotools, `python -m pip install 'alignsr[downstream]'`")


def boxes_of(seed: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 40
    size = 5 + torch.rand(count, 2, generator=generator) * 25
    return torch.cat([corner, corner + size], 1), torch.rand(count, generator=generator)


def overlap(a: list[float], b: list[float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0.0) * max(height, 0.0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7, 1.0])
def test_nms_is_what_its_definition_says(threshold: float) -> None:
    boxes, scores = boxes_of(1, 60)
    left = scores.argsort(descending=True).tolist()
    kept: list[int] = []
    while left:
        best, *left = left
        kept.append(best)
        left = [other for other in left if overlap(boxes[best].tolist(), boxes[other].tolist()) <= threshold]
    assert nms(boxes, scores, threshold).tolist() == kept


def test_nms_by_hand() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 10], [50, 50, 50, 50]])
    assert nms(boxes, torch.tensor([0.5, 0.4, 0.5, 0.1]), 0.5).tolist() == [0, 1, 3], "an IoU of 0.5 stays, of equals the first"
    assert nms(boxes, torch.tensor([0.5, 0.4, 0.5, 0.1]), 0.49).tolist() == [0, 3]
    assert nms(boxes[:0], boxes[:0, 0], 0.5).tolist() == []


def test_torchvisions_own_names_work() -> None:
    compat.import_detection()
    ops = compat.import_third_party("torchvision.ops")
    boxes, scores = boxes_of(2, 30)
    assert ops.nms(boxes, scores, 0.4).tolist() == nms(boxes, scores, 0.4).tolist()
    groups = torch.arange(30) % 3
    kept = ops.batched_nms(boxes, scores, groups, 0.4).tolist()
    alone = [torch.where(groups == g)[0][nms(boxes[groups == g], scores[groups == g], 0.4)] for g in range(3)]
    assert sorted(kept) == sorted(torch.cat(alone).tolist())
    assert compat.import_detection() is compat.import_detection()


def test_regions_are_pooled_in_parts_as_at_once() -> None:
    def pool(features: torch.Tensor, regions: torch.Tensor, factor: int) -> torch.Tensor:
        assert len(regions) <= 64
        return regions.sum(1) * features * factor

    regions = torch.rand(150, 5)
    assert torch.equal(in_parts(pool)(torch.tensor(2.0), regions, 3), regions.sum(1) * 6)
    assert in_parts(pool)(torch.tensor(2.0), regions[:0], 3).shape == (0,)
    compat.import_detection()
    align = compat.import_third_party("torchvision.ops").roi_align
    ramp = torch.arange(8.0).expand(1, 1, 8, 8)  # value = column
    pooled = align(ramp, torch.tensor([[0.0, 1, 1, 5, 5]]), (2, 2), sampling_ratio=2, aligned=True)
    assert pooled[0, 0].tolist() == [[1.5, 3.5], [1.5, 3.5]], "centres of the halves of 1..5, half a pixel to the left"


SIDE = 25


def square(left: int, top: int, width: int = SIDE, height: int = SIDE) -> torch.Tensor:
    mask = torch.zeros(100, 100, dtype=torch.bool)
    mask[top : top + height, left : left + width] = True
    return mask


def annotations(count: int = 1) -> dict:
    """A picture with two objects of class 7, further pictures without any."""
    images = [{"id": 10 + k, "file_name": f"scene{k}.jpg", "width": 100, "height": 100} for k in range(count)]
    objects = []
    for number, (left, top) in enumerate(((0, 0), (50, 50)), start=1):
        outline = [left, top, left + SIDE, top, left + SIDE, top + SIDE, left, top + SIDE]
        shape = {"bbox": [left, top, SIDE, SIDE], "area": SIDE**2, "segmentation": [outline], "iscrowd": 0}
        objects.append({"id": number, "image_id": 10, "category_id": 7, **shape})
    return {"images": images, "annotations": objects, "categories": [{"id": 7, "name": "square"}]}


def three_boxes() -> Detections:
    """Right, wrong, and right at an IoU of 16/25 = 0.64, by falling score."""
    boxes = torch.tensor([[0.0, 0, 25, 25], [60, 0, 85, 25], [50, 50, 75, 66]])
    masks = torch.stack([square(0, 0), square(60, 0), square(50, 50, height=16)])
    return Detections(boxes, torch.tensor([7, 7, 7]), torch.tensor([0.9, 0.8, 0.7]), masks)


@needs_coco
def test_average_precision_by_hand() -> None:
    """At IoU 0.50, 0.55, 0.60: precision 1 up to recall 1/2 (51 of 101 points), then 2/3; at the other seven 0 beyond 1/2."""
    loose, strict = (51 + 50 * 2 / 3) / 101, 51 / 101
    truth = Annotations(annotations())
    scores = average_precision(coco_results(10, three_boxes()), truth, [10])
    for kind in ("box", "mask"):
        assert scores[f"ap50_{kind}"] == pytest.approx(100 * loose)
        assert scores[f"ap75_{kind}"] == pytest.approx(100 * strict)
        assert scores[f"ap_{kind}"] == pytest.approx(100 * (3 * loose + 7 * strict) / 10)
    boxes_alone = average_precision(coco_results(10, three_boxes()), truth, [10], has_masks=False)
    assert set(boxes_alone) == {"ap_box", "ap50_box", "ap75_box"}


@needs_coco
def test_ends_of_average_precision() -> None:
    truth = Annotations(annotations(2))
    exact = Detections(torch.tensor([[0.0, 0, 25, 25], [50, 50, 75, 75]]), torch.tensor([7, 7]), torch.tensor([0.9, 0.8]))
    assert average_precision(coco_results(10, exact), truth, [10], has_masks=False)["ap_box"] == pytest.approx(100)
    other = Detections(exact.boxes, torch.tensor([8, 8]), exact.scores)
    assert average_precision(coco_results(10, other), truth, [10], has_masks=False)["ap_box"] == 0
    assert average_precision([], truth, [10])["ap_mask"] == 0
    assert average_precision([], truth, [11]) == {}, "nothing is annotated there, so there is nothing to score"


@needs_coco
def test_the_judge_finds_annotations_by_name() -> None:
    judge = DetectionJudge(lambda _: three_boxes(), Annotations(annotations(2)), ("toy",))
    assert judge.size_of("scene0_x4") == (100, 100)
    assert judge.see("some/folder/scene0", torch.zeros(1, 3, 100, 100)) == {}
    assert judge.result()["ap50_box"] == pytest.approx(100 * (51 + 50 * 2 / 3) / 101)
    with pytest.raises(ValueError, match="labels: expected annotations for scene9, got none in annotations; names must agree"):
        judge.size_of("scene9")


@needs_coco
def test_files_that_are_no_annotations(tmp_path) -> None:
    path = tmp_path / "labels.json"
    path.write_text(json.dumps(annotations()))
    assert Annotations.read(path).image("scene0")["id"] == 10
    for content, said in (
        ("no json", "labels: expected JSON in"),
        ("[]", "got no images, annotations, categories"),
        ('{"images": [], "annotations": [], "categories": []}', "got no images in it"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=said):
            Annotations.read(path)
    with pytest.raises(FileNotFoundError, match="labels: expected a JSON file"):
        Annotations.read(tmp_path / "none.json")


def test_without_pycocotools_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    def absent(name: str) -> None:
        raise ModuleNotFoundError(f"No module named {name!r}", name="pycocotools")

    monkeypatch.setattr(importlib, "import_module", absent)
    with pytest.raises(ModuleNotFoundError, match=r"detection: expected the package pycocotools, .*'alignsr\[downstream\]'"):
        Annotations(annotations())


def tiny_mask_rcnn(classes: int = 4) -> torch.nn.Module:
    """A Mask R-CNN of torchvision's own parts on three convolutions."""
    detection = compat.import_detection()
    anchors = compat.import_third_party("torchvision.models.detection.rpn").AnchorGenerator(((16, 32),), ((0.5, 1.0),))
    body = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, 4, 1), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 3, 2, 1))
    body.out_channels = 8
    pool = compat.import_third_party("torchvision.ops").MultiScaleRoIAlign
    options = {"min_size": 64, "max_size": 96, "rpn_post_nms_top_n_test": 12, "box_detections_per_img": 5}
    return detection.MaskRCNN(
        body,
        rpn_anchor_generator=anchors,
        box_roi_pool=pool(["0"], 3, 2),
        mask_roi_pool=pool(["0"], 4, 2),
        box_head=torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(72, 16)),
        box_predictor=compat.import_third_party("torchvision.models.detection.faster_rcnn").FastRCNNPredictor(16, classes),
        mask_head=torch.nn.Conv2d(8, 8, 3, padding=1),
        mask_predictor=compat.import_third_party("torchvision.models.detection.mask_rcnn").MaskRCNNPredictor(8, 8, classes),
        **options,
    )


def test_mask_rcnn_on_tiny_weights() -> None:
    torch.manual_seed(0)
    detector = MaskRCNN(tiny_mask_rcnn())
    image = torch.rand(1, 3, 48, 72, generator=torch.Generator().manual_seed(3))
    found = detector(image)
    assert 0 < len(found.boxes) <= 5
    assert found.masks.shape == (len(found.boxes), 48, 72) and found.masks.dtype == torch.bool
    assert (found.boxes[:, 2] <= 72).all() and (found.boxes[:, 3] <= 48).all() and (found.boxes >= 0).all()
    assert set(found.labels.tolist()) <= {1, 2, 3}
    assert (found.scores.diff() <= 0).all()
    again = detector(image)
    assert torch.equal(found.boxes, again.boxes) and torch.equal(found.masks, again.masks)
    assert not any(parameter.requires_grad for parameter in detector.module.parameters())
    with pytest.raises(ValueError, match="image: expected"):
        detector(image[:, :1])


@needs_coco
def test_tiny_weights_all_the_way_to_ap() -> None:
    torch.manual_seed(0)
    judge = DetectionJudge(MaskRCNN(tiny_mask_rcnn()), Annotations(annotations(2)))
    for name in ("scene0", "scene1"):
        judge.see(name, torch.rand(1, 3, 100, 100, generator=torch.Generator().manual_seed(4)))
    scores = judge.result()
    assert set(scores) == set(judge.metrics)
    assert all(0 <= value <= 100 for value in scores.values())


@pytest.mark.parametrize("version", ["", "_v2"])
def test_weights_of_both_versions_load_strictly(version: str) -> None:
    detection = compat.import_detection()
    make = getattr(detection, f"maskrcnn_resnet50_fpn{version}")
    with torch.device("meta"):
        expected = make(weights=None, weights_backbone=None, num_classes=3).state_dict()
    state = {key: torch.zeros(value.shape, dtype=value.dtype) for key, value in expected.items()}
    loaded = build_mask_rcnn(state, "zeros.pth")
    assert set(loaded.state_dict()) == set(state)
    assert loaded.roi_heads.box_predictor.cls_score.out_features == 3
    del state["rpn.head.cls_logits.weight"]
    with pytest.raises(WeightsError, match=r"rpn\.head\.cls_logits\.weight"):
        build_mask_rcnn(state, "zeros.pth")
