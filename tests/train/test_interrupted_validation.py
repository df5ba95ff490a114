"""Who asks to stop during a validation waits neither for its end nor for the samples that would follow it."""

import pytest
from train_helpers import StopAfter, make_pictures, tiny

from alignsr.train.loop import Stopped
from alignsr.train.recipes import load_config


class Impatient(StopAfter):
    """Asks to stop when the first validation begins."""

    def __init__(self) -> None:
        super().__init__(99)
        self.looked = list[tuple[int, int]]()

    def validating(self, done: int, total: int) -> None:
        self.looked.append((done, total))

    def should_stop(self) -> bool:
        return bool(self.looked)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return make_pictures(tmp_path_factory.mktemp("pictures"), side=72)


@pytest.mark.parametrize("name", [
    "tiny-aesop-autoencoder", "tiny-aesop-rrdb-128", "tiny-asasr-sft-pixel", "tiny-strsr-pixel-stage1", "tiny-asasr-pixel",
])  # fmt: skip
def test_samples_are_not_made_after_a_validation_that_was_cut(name, pictures, tmp_path):
    sets = {"run__steps": 2, "run__validate_every": 1, "run__preview_every": 1, "run__export_every": 1, "data__holdout": 1}
    config, hooks = tiny(name, pictures, **sets), Impatient()
    recipe, run = load_config(name)[0], tmp_path / "run"
    with pytest.raises(Stopped, match="step 1 of 2"):
        recipe.train(config, run, hooks)
    assert hooks.looked == [(0, 1)] and not (run / "samples.png").exists()
    assert list((run / "exports").glob("*-00000001*.safetensors")), "weights that are due are kept"
    hooks.looked, hooks.should_stop = [], lambda: False
    assert "psnr_y" in recipe.train(config, run, hooks, resume=True).logs[-1] and (run / "samples.png").is_file()
