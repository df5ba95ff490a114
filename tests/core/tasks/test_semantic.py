"""Semantic segmentation: mIoU and pixel accuracy by hand, label pictures, SegFormer with tiny random weights."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from alignsr.core import compat
from alignsr.core.tasks.pictures import Labels, read_levels
from alignsr.core.tasks.semantic import MEAN, STD, Confusion, SegFormer, SemanticJudge


def test_scores_by_hand() -> None:
    """Nine pixels, one without a label; class 3 occurs nowhere and does not count."""
    labels = torch.tensor([[0, 0, 0], [1, 1, 1], [2, 2, 255]])
    predicted = torch.tensor([[0, 0, 1], [1, 1, 2], [2, 2, 0]])
    counts = Confusion(4)
    counts.add(predicted, labels)
    ious = [2 / 3, 2 / 4, 2 / 3]  # of class 0: two right, three labelled, two predicted where there is a label
    assert counts.scores() == {"miou": pytest.approx(100 * sum(ious) / 3), "pix_acc": pytest.approx(100 * 6 / 8)}


def test_a_class_that_is_only_predicted_counts_as_missed() -> None:
    counts = Confusion(3)
    counts.add(torch.tensor([[0, 2]]), torch.tensor([[0, 0]]))
    assert counts.scores() == {"miou": pytest.approx(25), "pix_acc": 50}


def test_pictures_are_added_up_before_dividing() -> None:
    counts = Confusion(2)
    counts.add(torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, 1, dtype=torch.int64))
    counts.add(torch.zeros(3, 3, dtype=torch.int64), torch.ones(3, 3, dtype=torch.int64))
    assert counts.scores() == {"miou": pytest.approx(100 * (1 / 10) / 2), "pix_acc": pytest.approx(10)}
    empty = Confusion(2)
    empty.add(torch.zeros(2, 2, dtype=torch.int64), torch.full((2, 2), 255))
    assert empty.scores() == {}


def test_what_does_not_fit_is_refused() -> None:
    counts = Confusion(2)
    with pytest.raises(ValueError, match=r"predicted: expected the size of the labels \(2, 3\)"):
        counts.add(torch.zeros(2, 2, dtype=torch.int64), torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"labels: expected classes in 0..1, got 0..5; check --first-label"):
        counts.add(torch.zeros(1, 2, dtype=torch.int64), torch.tensor([[0, 5]]))
    with pytest.raises(ValueError, match=r"predicted: expected classes in 0\.\.1"):
        counts.add(torch.tensor([[0, 2]]), torch.zeros(1, 2, dtype=torch.int64))


def save(path, levels, mode: str = "L") -> None:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.array(levels, dtype=np.uint8)).convert(mode).save(path)


def test_label_pictures(tmp_path) -> None:
    save(tmp_path / "labels" / "a.png", [[0, 1], [150, 255]])
    labels = Labels(tmp_path / "labels", (".png",))
    assert labels.names == ("a",)
    assert read_levels(labels.file("a_x4")).tolist() == [[0, 1], [150, 255]]
    palette = Image.fromarray(np.array([[0, 3]], dtype=np.uint8), mode=None).convert("P")
    palette.putpalette([value for level in range(256) for value in (level, 255 - level, 0)])
    palette.putdata([0, 3])
    palette.save(tmp_path / "labels" / "b.png")
    assert read_levels(tmp_path / "labels" / "b.png").tolist() == [[0, 3]], "indices, not colours"
    save(tmp_path / "labels" / "c.png", [[0, 1]], "RGB")
    with pytest.raises(ValueError, match="labels: expected a picture of one channel, got RGB"):
        read_levels(tmp_path / "labels" / "c.png")
    (tmp_path / "labels" / "d.png").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="labels: expected a picture in"):
        read_levels(tmp_path / "labels" / "d.png")
    with pytest.raises(ValueError, match="labels: expected a file for z in"):
        labels.file("z")
    with pytest.raises(FileNotFoundError, match="labels: expected a folder"):
        Labels(tmp_path / "nowhere", (".png",))
    with pytest.raises(ValueError, match=r"labels: expected files ending in \.txt"):
        Labels(tmp_path / "labels", (".txt",))
    (tmp_path / "labels" / "a.txt").write_text("")
    with pytest.raises(ValueError, match=r"labels: expected one file per name, got a\.png and a\.txt"):
        Labels(tmp_path / "labels", (".png", ".txt"))


@pytest.mark.parametrize("first", [0, 1])
def test_the_judge_shifts_labels(tmp_path, first: int) -> None:
    """Level `first` is class 0, lower ones and 255 have no label."""
    save(tmp_path / "labels" / "a.png", [[0, first, first + 1, 255]])
    judge = SemanticJudge(lambda image: (image[0, 0] > 0.5).long(), 2, Labels(tmp_path / "labels", (".png",)), first_label=first)
    assert judge.size_of("a") == (1, 4)
    image = torch.tensor([0.0, 0.0, 1.0, 0.0]).expand(1, 3, 1, 4)
    assert judge.see("a", image) == {"miou": 100, "pix_acc": 100}
    judge.see("a", 1 - image)
    assert judge.result() == {"miou": pytest.approx(100 / 3 if first else 100 * (2 / 5 + 1 / 4) / 2), "pix_acc": 50}


def tiny_segformer(labels: int = 5):
    transformers = compat.import_transformers()
    sizes = {
        "hidden_sizes": [8, 8, 16, 16],
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 1, 2, 2],
        "mlp_ratios": [2, 2, 2, 2],
    }
    config = transformers.SegformerConfig(num_labels=labels, decoder_hidden_size=16, **sizes)
    torch.manual_seed(0)
    module = transformers.SegformerForSemanticSegmentation(config)
    torch.nn.init.normal_(module.decode_head.classifier.weight, std=2.0)
    return module


def test_segformer_on_tiny_weights(tmp_path) -> None:
    tiny_segformer().save_pretrained(tmp_path / "segformer")
    segmenter = SegFormer.load(tmp_path / "segformer")
    assert segmenter.classes == 5 and segmenter.short_side_px == 640
    small = SegFormer(segmenter.module, short_side_px=64)
    image = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    pixels = (image - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    with torch.no_grad():
        logits = segmenter.module(pixel_values=pixels).logits
    assert logits.shape == (1, 5, 16, 24)
    expected = F.interpolate(logits, size=(64, 96), mode="bilinear").argmax(1)[0]
    seen = small(image)
    assert torch.equal(seen, expected) and len(seen.unique()) > 1
    assert SegFormer(segmenter.module, short_side_px=32)(image).shape == (64, 96), "resized first, labelled at full size"
    with pytest.raises(FileNotFoundError, match="weights: expected a folder of transformers with config"):
        SegFormer.load(tmp_path)
