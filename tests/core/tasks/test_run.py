"""The run over methods: inputs are enlarged, other sizes refused, a stop keeps what was done, sharper pictures score better."""

import pytest
import torch

from alignsr.core.image_files import write_image
from alignsr.core.metrics.comparison import Comparison
from alignsr.core.metrics.published import published_set
from alignsr.core.metrics.quantities import DOWNSTREAM
from alignsr.core.pairs import Pair
from alignsr.core.resize import imresize
from alignsr.core.tasks import TASKS
from alignsr.core.tasks.pictures import Labels
from alignsr.core.tasks.run import evaluate_task
from alignsr.core.tasks.semantic import SemanticJudge


def bright(image: torch.Tensor) -> torch.Tensor:
    return (image.mean((0, 1)) > 0.5).long()


@pytest.fixture
def scene(tmp_path):
    """Stripes two pixels wide, which shrinking by four wipes out, beside broad ones; labels are what is bright."""
    picture = torch.zeros(1, 3, 32, 48)
    picture[..., :24] = (torch.arange(24) // 2 % 2).float()
    picture[..., 24:] = (torch.arange(24) // 12 % 2).float()
    for name in ("a", "b"):
        write_image(tmp_path / "labels" / f"{name}.png", (bright(picture)[None, None] + 1.0) / 255)
    labels = Labels(tmp_path / "labels", (".png",))
    return picture, lambda: SemanticJudge(bright, 2, labels)


def test_sharp_pictures_score_better_than_inputs(scene) -> None:
    picture, make = scene
    small = imresize(picture, 0.25).clamp(0, 1)
    done = []
    methods = {"ground truth": [Pair("a", picture), Pair("b", picture)], "input": [Pair("a", small), Pair("b", small)]}
    sharp, blurred = evaluate_task(methods, make, inputs=["input"], progress=lambda n, _total, name: done.append((n, name)))
    assert sharp.mean() == {"miou": 100.0, "pix_acc": 100.0}
    assert 50 < blurred.mean()["pix_acc"] < 90
    assert blurred.rows[0].values["pix_acc"] == pytest.approx(blurred.mean()["pix_acc"])
    assert done == [(1, "a"), (2, "b"), (3, "a"), (4, "b")]
    assert blurred.remarks == ("enlarged by bicubic interpolation first",) and sharp.remarks == ()
    text = Comparison.of([sharp, blurred], "asasr-ade20k").to_text().splitlines()
    assert text[3].split() == ["ground", "truth", "100.00", "100.00", "measured,", "2", "images"]
    assert any(line.split()[:3] == ["ground", "truth", "49.39"] for line in text)


def test_another_size_is_refused(scene) -> None:
    picture, make = scene
    with pytest.raises(ValueError, match="b: expected the size of its labels 48x32, got 47x32; check the scale"):
        evaluate_task({"x": [Pair("a", picture), Pair("b", picture[..., :47])]}, make)


def test_a_stop_keeps_what_was_done(scene) -> None:
    picture, make = scene
    seen = []
    tables = evaluate_task(
        {"x": [Pair("a", picture), Pair("b", picture)], "y": [Pair("a", picture)]},
        make,
        progress=lambda n, *_: seen.append(n),
        should_stop=lambda: len(seen) == 1,
    )
    assert [(table.title, len(table.rows), table.complete) for table in tables] == [("x", 1, False)]
    nothing = evaluate_task({"x": [Pair("a", picture)]}, make, should_stop=lambda: True)
    assert nothing[0].mean() == {} and "nothing to score" in nothing[0].missing["miou"]


def test_tasks_and_their_published_sets() -> None:
    metrics = [metric for task in TASKS.values() for metric in task.metrics]
    assert set(metrics) == set(DOWNSTREAM) and len(set(metrics)) == len(metrics)
    for name, task in TASKS.items():
        facts = published_set(task.published)
        assert facts.task == name and set(facts.metrics) == set(task.metrics)
