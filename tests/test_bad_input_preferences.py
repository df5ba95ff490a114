"""Preference pairs and training on them, given what they cannot use: one line that says what to do, through the commands."""

from collections.abc import Callable
from pathlib import Path

import pytest
from candidates_helpers import pictures
from cli_helpers import call
from preference_helpers import sample, write_control

FREE = '["psnr_y", "sharpness"]'


class Place:
    """Pictures, finished candidates of the tiny pixel model, and where results go."""

    def __init__(self, folder: Path, pairs: Path) -> None:
        self.folder, self.pairs = folder, pairs
        self.data, self.out = pairs.parent / "gt", folder / "out"

    def candidates(self, *sets: str, data: Path | None = None) -> list[str]:
        items = [f'data.folders=["{(data or self.data).as_posix()}"]', *sets]
        return ["candidates", "tiny-dp2o-candidates-pixel", "--out", str(self.out), *flags(items)]

    def train(self, *sets: str, config: str = "tiny-dp2o-pixel", pairs: Path | None = None) -> list[str]:
        items = [f'data.pairs="{(pairs or self.pairs).as_posix()}"', "guard.pictures=0", "run.preview_every=0", *sets]
        return ["train", config, "--out", str(self.out), *flags(items)]


def flags(sets: list[str]) -> list[str]:
    return [word for item in sets for word in ("--set", item)]


def copied(place: Place) -> Path:
    import shutil

    return Path(shutil.copytree(place.pairs, place.folder / "copy"))


def truncated(place: Place) -> Path:
    folder = copied(place)
    shard = folder / "candidates" / "shard-000001.tar"
    shard.write_bytes(shard.read_bytes()[:2000])
    return folder


def changed(place: Place) -> Path:
    folder = copied(place)
    shard = folder / "candidates" / "shard-000000.tar"
    content = bytearray(shard.read_bytes())
    content[len(content) // 3 : len(content) // 2] = bytes(len(content) // 2 - len(content) // 3)
    shard.write_bytes(content)
    return folder


def of_different_sizes(place: Place) -> Path:
    """Whole pictures, which differ in size."""
    folder = place.folder / "whole"
    done = call(
        "candidates", "tiny-dp2o-candidates-pixel", "--out", str(folder), "--quiet",
        *flags([f'data.folders=["{place.data.as_posix()}"]', "data.gt_patch_px=0", "data.limit=2"]),
    )  # fmt: skip
    assert done.code == 0, done.err
    return folder


def made_elsewhere(place: Place, odd: bool) -> list[str]:
    """Candidates of another program: one of another size, or all alike."""
    from PIL import Image

    made = place.folder / "made"
    for path in place.data.iterdir():
        (made / path.stem).mkdir(parents=True)
        with Image.open(path) as whole:
            for k in range(2):
                size = (whole.width // 2, whole.height) if odd and k else whole.size
                whole.resize(size).save(made / path.stem / f"{k}.png")
    return place.candidates(f'data.candidates="{made.as_posix()}"', "data.gt_patch_px=0", f"scoring.metrics={FREE}")


ROWS: dict[str, tuple[Callable[[Place], list[str]], str]] = {
    "metric unknown": (
        lambda p: p.candidates('scoring.metrics=["psnr_y", "muisq"]'),
        "did you mean 'musiq'",
    ),
    "metric unknown to the probe": (
        lambda p: p.train('guard.metrics=["lpips"]', "guard.pictures=1"),
        "guard.metrics: expected some of psnr_y, ssim_y, lsd, hf_energy, sharpness, got lpips; score them first",
    ),
    "weights of a metric missing": (lambda p: p.candidates('scoring.metrics=["psnr_y", "musiq"]'), "musiq"),
    "weights of the model missing": (
        lambda p: p.train('model.source="gone.safetensors"', "data.any_model=true"),
        "found no 'gone.safetensors'",
    ),
    "image sizes differ in a group": (lambda p: made_elsewhere(p, True), "candidates of a group have one size"),
    "image sizes differ in a batch": (
        lambda p: p.train("run.batch_size=2", pairs=of_different_sizes(p)),
        "in the same batch, got another size; sample with data.gt_patch_px, or train with a batch size of 1",
    ),
    "group smaller than 2 N": (
        lambda p: p.candidates("pairs.picks=3"),
        "pairs.picks: expected at most half of 4 candidates, got 3",
    ),
    "group smaller than 2 N, paired anew": (
        lambda p: p.train("data.picks=3"),
        "data.picks: expected at least 2 x 3 candidates, got 4; take fewer picks",
    ),
    "all rewards equal": (lambda p: made_elsewhere(p, False), "expected rewards that differ, got"),
    "truncated shard": (lambda p: p.train(pairs=truncated(p)), "shard-000001.tar: expected a finished shard"),
    "changed shard": (lambda p: p.train(pairs=changed(p)), "as it was sampled, got other bytes than were written"),
    "candidates of the other backbone": (
        lambda p: p.train(config="tiny-dp2o-sd2"),
        "model.backbone: expected pixel, with which the candidates in",
    ),
    "control branch of the other backbone": (
        lambda p: p.train(
            f'model.control="{write_control(p.folder, "flux").as_posix()}"',
            config="tiny-dp2o-sd2",
            pairs=sample(p.folder / "sd2", "sd2", data__limit=1),
        ),
        "control-flux-3.safetensors",
    ),
    "no pairs": (lambda p: p.train(pairs=p.folder), "expected a Parquet table, found none; run the step before this one"),
    "everything held out": (
        lambda p: p.train("guard.pictures=4"),
        "expected at least one pair beside 4 pictures that are held out",
    ),
    "rounds of another kind": (lambda p: ["dp2o", "dp2o-sd2"], "recipe: expected 'dp2o_rounds', got 'perceptual_dpo'"),
    "rounds as a training": (lambda p: ["train", "dp2o-online-pixel"], "`alignsr dp2o` runs it"),
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sample(tmp_path_factory.mktemp("pairs"), "pixel")


@pytest.mark.parametrize("row", ROWS)
def test_bad_input_is_one_clear_message(row: str, pairs: Path, tmp_path: Path) -> None:
    build, expected = ROWS[row]
    done = call(*build(Place(tmp_path, pairs)))
    assert done.code == 1, done.err
    assert "Traceback" not in done.err + done.out
    assert len(done.errors) == 1 and expected in done.errors[0], done.err
    assert len(done.errors[0]) < 900  # with the long paths of the test folder


def test_the_good_ones_pass(pairs: Path, tmp_path: Path) -> None:
    place = Place(tmp_path, pairs)
    assert call(*place.train()).code == 0
    assert call(*place.candidates(data=pictures(tmp_path / "gt", 1)), "--quiet").code == 0
