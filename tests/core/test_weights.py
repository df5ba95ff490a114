import os
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from alignsr.core import weights
from alignsr.core.weights import (
    MissingModelError,
    WeightsError,
    check_state,
    find_model,
    load_into,
    load_shapes,
    load_state_dict,
    read_info,
    save_weights,
)


def test_round_trip_with_info_and_shared_tensors(tmp_path):
    shared = torch.rand(3, 4)
    path = save_weights(
        tmp_path / "a.safetensors", {"x": shared, "y": shared.T, "half": shared.half()}, {"backbone": "network", "scale": 4}
    )
    state = load_state_dict(path)
    assert torch.equal(state["x"], shared)
    assert torch.equal(state["y"], shared.T)
    assert state["half"].dtype == torch.float16
    assert read_info(path) == {"backbone": "network", "scale": 4}


def test_files_of_other_programs_have_no_info(tmp_path):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(1)}, tmp_path / "a.safetensors")
    assert read_info(tmp_path / "a.safetensors") == {}


@pytest.mark.parametrize("wrapper", ["params_ema", "params", "state_dict", None])
def test_pickled_checkpoints_are_unwrapped(wrapper, tmp_path):
    state = {"module.conv.weight": torch.ones(2)}
    torch.save({wrapper: state, "iter": 3} if wrapper else state, tmp_path / "a.pth")
    assert list(load_state_dict(tmp_path / "a.pth")) == ["conv.weight"]


def test_ema_is_preferred_to_live_weights(tmp_path):
    torch.save({"params": {"x": torch.zeros(1)}, "params_ema": {"x": torch.ones(1)}}, tmp_path / "a.pth")
    assert load_state_dict(tmp_path / "a.pth")["x"].item() == 1


class _RunsCode:
    def __reduce__(self):
        return os.mkdir, ("must-not-exist",)


def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"x": _RunsCode()}, tmp_path / "bad.pth")
    with pytest.raises(WeightsError, match=r"bad\.pth: .*weights_only=True refuses"):
        load_state_dict(tmp_path / "bad.pth")
    assert not (tmp_path / "must-not-exist").exists()
    (tmp_path / "plain.pth").write_bytes(pickle.dumps({"x": _RunsCode()}))
    with pytest.raises(WeightsError):
        load_state_dict(tmp_path / "plain.pth")
    assert not (tmp_path / "must-not-exist").exists()


def test_damaged_empty_and_missing_files_are_named(tmp_path):
    path = save_weights(tmp_path / "a.safetensors", {"x": torch.rand(100)})
    path.write_bytes(path.read_bytes()[:80])
    with pytest.raises(WeightsError, match=r"a\.safetensors: .*damaged or incomplete"):
        load_state_dict(path)
    (tmp_path / "empty.safetensors").write_bytes(b"")
    with pytest.raises(WeightsError, match="got 0 bytes"):
        read_info(tmp_path / "empty.safetensors")
    for header in ("not json", "[1]"):
        save_file({"x": torch.zeros(1)}, tmp_path / "header.safetensors", {"alignsr": header})
        with pytest.raises(WeightsError, match="expected a JSON object under 'alignsr' in the header"):
            read_info(tmp_path / "header.safetensors")
    torch.save({"epoch": 3}, tmp_path / "none.pth")
    with pytest.raises(WeightsError, match="no named tensors"):
        load_state_dict(tmp_path / "none.pth")
    with pytest.raises(FileNotFoundError, match="expected a file"):
        load_state_dict(tmp_path / "missing.pth")


def test_everything_that_differs_is_reported_at_once_and_nothing_is_loaded():
    module = nn.Linear(2, 2)
    before = module.weight.clone()
    with pytest.raises(WeightsError, match=r"missing: bias; unexpected: extra; wrong shape: weight \(3, 2\) instead of \(2, 2\)"):
        load_into(module, {"weight": torch.zeros(3, 2), "extra": torch.zeros(1)}, "file")
    assert torch.equal(module.weight, before)


def test_long_reports_are_cut_at_eight_names():
    expected = {f"layer{i:02d}": torch.zeros(1) for i in range(11)}
    with pytest.raises(WeightsError, match=r"layer07, \.\.\. \(3 more\)"):
        check_state({}, expected, "file")


def test_only_safetensors_are_written(tmp_path):
    with pytest.raises(ValueError, match=r"ending in \.safetensors"):
        save_weights(tmp_path / "a.pth", {"x": torch.zeros(1)})


def test_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = save_weights(tmp_path / "a.safetensors", {"x": torch.zeros(1)})

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_weights(path, {"x": torch.ones(1)})
    assert load_state_dict(path)["x"].item() == 0
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_written_files_have_the_usual_permissions(tmp_path):
    path = save_weights(tmp_path / "a.safetensors", {"x": torch.zeros(1)})
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    assert path.stat().st_mode == plain.stat().st_mode


def test_models_are_found_by_path_bundle_and_folder(tmp_path):
    path = save_weights(tmp_path / "mine.safetensors", {"x": torch.zeros(1)})
    assert find_model(path) == path
    assert find_model("mine", [tmp_path]) == path
    assert find_model("mine.safetensors", [tmp_path]) == path
    assert find_model("models/mine.safetensors", [tmp_path]) == path, "as the published configs name weights"
    with pytest.raises(MissingModelError, match=f"{tmp_path}.*found no 'other'.*put the weight file there"):
        find_model("other", [tmp_path])


def test_shapes_are_read_without_values(tmp_path):
    tensors = {"a": torch.zeros(2, 3, dtype=torch.bfloat16), "b": torch.zeros((), dtype=torch.int64)}
    tensors["c"] = torch.zeros(4).to(torch.float8_e4m3fn)
    torch.save(tensors, tmp_path / "x.pth")
    for path in (save_weights(tmp_path / "x.safetensors", tensors), tmp_path / "x.pth"):
        shapes = load_shapes(path)
        assert all(
            shapes[name].is_meta and shapes[name].shape == t.shape and shapes[name].dtype == t.dtype
            for name, t in tensors.items()
        )
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "x.safetensors").read_bytes()[:-1])
    with pytest.raises(WeightsError, match="damaged or incomplete"):
        load_shapes(tmp_path / "cut.safetensors")
