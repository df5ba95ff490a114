"""PSNR as a loss: its term must not carry the name of the figure that validation measures."""

import pytest
from train_helpers import make_pictures, tiny

from alignsr.train.recipes import fidelity


@pytest.mark.parametrize(("loss", "term"), [("psnr", "psnr_loss"), ("psnr_y", "psnr_y_loss"), ("mse", "mse")])
def test_loss_and_validation_are_logged_under_their_own_names(loss, term, tmp_path):
    config = tiny("tiny-lite-x4", make_pictures(tmp_path / "pictures"), loss=loss)
    logs = fidelity.train(config, tmp_path / "run").logs[-1]
    assert logs[term] == pytest.approx(logs["loss"])
    assert logs["psnr_y"] > 0 and logs["psnr_y"] != pytest.approx(logs["loss"])
