import json
import math
import random
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from process_helpers import run_processes
from train_helpers import StopAfter, equal_files, make_pictures, tiny

from alignsr.core.weights import WeightsError, load_state_dict, read_info
from alignsr.train.config import ConfigError, OptimizerConfig, RunConfig, ScheduleConfig
from alignsr.train.data import DataError
from alignsr.train.loop import NonFiniteError, SilentHooks, Stopped, learning_rate, make_average
from alignsr.train.recipes import fidelity
from alignsr.train.state import checkpoints

SIX = {"run__steps": 6, "run__checkpoint_every": 2, "run__validate_every": 3, "run__batch_size": 2}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return make_pictures(tmp_path_factory.mktemp("pictures"))


@pytest.mark.parametrize("name", ["tiny-lite-x4", "tiny-pixel-x4", "tiny-lite-real-x4-start", "tiny-lite-real-x4"])
def test_every_tiny_twin_trains_one_step_and_its_weights_load_back(name, pictures, tmp_path):
    from alignsr.core.backbones import load_backbone

    result = fidelity.train(tiny(name, pictures), tmp_path / "run")
    assert result.step == 1
    assert math.isfinite(result.logs[-1]["loss"])
    assert math.isfinite(result.logs[-1]["psnr_y"])
    assert load_backbone(result.weights).spec.name == name
    assert result.curve.is_file()
    assert read_info(result.weights)["config"]["name"] == name


@pytest.mark.parametrize("name", ["tiny-lite-x4", "tiny-lite-real-x4"])
def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(name, pictures, tmp_path):
    config = tiny(name, pictures, **SIX)
    whole = fidelity.train(config, tmp_path / "whole")
    hooks = StopAfter(3)
    with pytest.raises(Stopped, match="step 3 of 6"):
        fidelity.train(config, tmp_path / "parts", hooks)
    assert hooks.seen == [1, 2, 3]
    rest = StopAfter(99)
    parts = fidelity.train(config, tmp_path / "parts", rest, resume=True)
    assert rest.seen == [4, 5, 6]
    assert equal_files(whole.weights, parts.weights)
    last = [checkpoints(tmp_path / folder)[-1] for folder in ("whole", "parts")]
    assert equal_files(*last)
    keys = ("step", "loss", "grad_norm", "learning_rate", "psnr_y")
    assert [[e.get(k) for k in keys] for e in whole.logs] == [[e.get(k) for k in keys] for e in parts.logs]


def test_another_number_of_processes_is_refused(pictures, tmp_path, monkeypatch):
    """It would take steps of another batch, from another place in the sequence of samples."""
    from alignsr.train import loop

    config = tiny("tiny-lite-x4", pictures, **SIX)
    with pytest.raises(Stopped):
        fidelity.train(config, tmp_path / "run", StopAfter(3))
    make = loop.make_accelerator

    def pretended():
        accelerator = make()
        state = SimpleNamespace(num_processes=2, process_index=0, device=accelerator.device, is_main_process=True)
        return state

    monkeypatch.setattr(loop, "make_accelerator", pretended)
    with pytest.raises(WeightsError, match=r"processes: expected 1, with which .*state-00000003.safetensors was written, got 2"):
        fidelity.train(config, tmp_path / "run", resume=True)


@pytest.mark.parametrize(
    "switch",
    [
        {"run__ema_decay": 0.0},
        {"loss": "mse"},
        {"run__precision": "bf16"},
        {"run__channels_last": True},
        {"data__augment": False},
        {"data__cache_images": False},
        {"optimizer__weight_decay": 0.1},
        {"schedule__kind": "constant"},
        {"schedule__kind": "multistep", "schedule__milestones": [1]},
        {"model__save_dtype": "fp16"},
        {"run__num_threads": 1},
        {"optimizer__max_grad_norm": 0.0},
        {"run__precision": "fp16"},
    ],
)
def test_every_option_runs_and_resumes(switch, pictures, tmp_path):
    config = tiny("tiny-lite-x4", pictures, **(SIX | {"run__steps": 2, "run__checkpoint_every": 1} | switch))
    whole = fidelity.train(config, tmp_path / "whole")
    with pytest.raises(Stopped):
        fidelity.train(config, tmp_path / "parts", StopAfter(1))
    assert equal_files(whole.weights, fidelity.train(config, tmp_path / "parts", resume=True).weights)


def test_sigkill_of_the_command_line_and_resume_equals_uninterrupted(pictures, tmp_path):
    sets = [
        f'data.folders=["{pictures.as_posix()}"]',
        "run.steps=40",
        "run.checkpoint_every=4",
        "run.validate_every=0",
        "run.preview_every=0",
    ]
    command = [sys.executable, "-m", "alignsr", "train", "tiny-lite-x4", *(x for s in sets for x in ("--set", s)), "--quiet"]
    process = subprocess.Popen(
        [*command, "--out", str(tmp_path / "killed")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while not checkpoints(tmp_path / "killed") and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()  # SIGKILL: nothing can be saved any more
    process.wait()
    assert checkpoints(tmp_path / "killed"), "the run was killed before its first checkpoint"
    subprocess.run([*command, "--out", str(tmp_path / "killed"), "--resume"], check=True, capture_output=True)
    whole = fidelity.train(load(sets), tmp_path / "whole")
    assert equal_files(whole.weights, tmp_path / "killed" / "tiny-lite-x4.safetensors")


def load(sets):
    from alignsr.train.recipes import load_config

    return load_config("tiny-lite-x4", sets)[1]


def test_accumulation_of_two_equals_a_doubled_batch(pictures, tmp_path):
    common = {"run__steps": 3, "optimizer__learning_rate": 1e-3, "schedule__warmup_steps": 0, "run__validate_every": 0}
    one = fidelity.train(tiny("tiny-lite-x4", pictures, run__batch_size=4, **common), tmp_path / "one")
    two = fidelity.train(tiny("tiny-lite-x4", pictures, run__batch_size=2, run__accumulation_steps=2, **common), tmp_path / "two")
    a, b = load_state_dict(one.weights), load_state_dict(two.weights)
    assert all(torch.allclose(a[key], b[key], atol=2e-6) for key in a)


def test_two_processes_equal_one_with_a_doubled_batch(pictures, tmp_path):
    common = {"run__steps": 3, "schedule__warmup_steps": 0, "run__validate_every": 0}
    one = fidelity.train(tiny("tiny-lite-x4", pictures, run__batch_size=4, **common), tmp_path / "one")
    script = tmp_path / "worker.py"
    sets = [
        f'data.folders=["{pictures.as_posix()}"]',
        "run.steps=3",
        "schedule.warmup_steps=0",
        "run.validate_every=0",
        "run.batch_size=2",
    ]
    script.write_text(
        "from alignsr.train.recipes import load_config\n"
        f"recipe, config = load_config('tiny-lite-x4', {sets!r})\n"
        f"recipe.train(config, {str(tmp_path / 'two')!r})\n"
        "import torch.distributed as dist\n"
        "dist.destroy_process_group()\n",
        encoding="utf-8",
    )
    run_processes([str(script)], tmp_path / "logs", environment={"ACCELERATE_USE_CPU": "true"})
    a, b = load_state_dict(one.weights), load_state_dict(tmp_path / "two" / "tiny-lite-x4.safetensors")
    assert all(torch.allclose(a[key], b[key], atol=2e-6) for key in a)


def test_what_a_process_that_dies_said_is_kept(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(
        "import os, sys\nprint('the reason', file=sys.stderr, flush=True)\nos.abort() if os.environ['RANK'] == '1' else None\n",
        encoding="utf-8",
    )
    with pytest.raises(AssertionError) as caught:
        run_processes([str(script)], tmp_path / "logs")
    assert "the reason" in str(caught.value) and "Fatal Python error: Aborted" in str(caught.value)


def test_training_lowers_the_loss(pictures, tmp_path):
    config = tiny(
        "tiny-lite-x4",
        pictures,
        run__steps=60,
        run__batch_size=4,
        optimizer__learning_rate=5e-3,
        schedule__warmup_steps=0,
        run__validate_every=30,
        run__ema_decay=0.9,
        run__checkpoint_every=60,
    )
    logs = fidelity.train(config, tmp_path / "run").logs
    first = sum(e["loss"] for e in logs[:10]) / 10
    last = sum(e["loss"] for e in logs[-10:]) / 10
    assert last < 0.8 * first


def test_nan_in_a_term_names_step_term_and_samples_and_keeps_finished_steps(pictures, tmp_path, monkeypatch):
    original, calls = fidelity.l1_loss, []

    def poisoned(sr, gt):
        calls.append(1)
        return original(sr, gt) * (float("nan") if len(calls) == 3 else 1.0)

    monkeypatch.setitem(fidelity.LOSSES, "l1", poisoned)
    with pytest.raises(NonFiniteError, match=r"step 3: term l1 is not finite for picture_\d\.png"):
        fidelity.train(tiny("tiny-lite-x4", pictures, **SIX), tmp_path / "run")
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["state-00000002.safetensors"]


def test_an_interruption_raised_by_the_host_keeps_the_finished_step(pictures, tmp_path):
    class Interrupting(SilentHooks):
        def progress(self, step, total, logs):
            if step == 3:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fidelity.train(tiny("tiny-lite-x4", pictures, **SIX), tmp_path / "run", Interrupting())
    assert checkpoints(tmp_path / "run")[-1].name == "state-00000003.safetensors"


def test_an_interruption_raised_when_asked_to_stop_keeps_the_finished_step(pictures, tmp_path):
    class Interrupting(StopAfter):
        def should_stop(self):
            if super().should_stop():
                raise KeyboardInterrupt
            return False

    with pytest.raises(KeyboardInterrupt):
        fidelity.train(tiny("tiny-lite-x4", pictures, **SIX), tmp_path / "run", Interrupting(3))
    assert checkpoints(tmp_path / "run")[-1].name == "state-00000003.safetensors"


def test_an_old_run_is_neither_overwritten_nor_resumed_with_another_config(pictures, tmp_path):
    fidelity.train(tiny("tiny-lite-x4", pictures), tmp_path / "run")
    with pytest.raises(FileExistsError, match="--resume"):
        fidelity.train(tiny("tiny-lite-x4", pictures), tmp_path / "run")
    with pytest.raises(WeightsError, match=r"expected a checkpoint of config .* \(run.seed: 0 there, 9 now\)"):
        fidelity.train(tiny("tiny-lite-x4", pictures, run__seed=9), tmp_path / "run", resume=True)


def test_a_damaged_checkpoint_is_one_message(pictures, tmp_path):
    config = tiny("tiny-lite-x4", pictures)
    fidelity.train(config, tmp_path / "run")
    path = checkpoints(tmp_path / "run")[-1]
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(WeightsError, match="damaged or incomplete"):
        fidelity.train(config, tmp_path / "run", resume=True)


def test_training_works_under_inference_mode_and_leaves_global_randomness_alone(pictures, tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with torch.inference_mode():
        fidelity.train(tiny("tiny-lite-x4", pictures), tmp_path / "run")
    assert torch.equal(torch.rand(3), expected)


def test_resuming_leaves_the_hosts_randomness_alone(pictures, tmp_path):
    config = tiny("tiny-lite-x4", pictures, **SIX)
    with pytest.raises(Stopped):
        fidelity.train(config, tmp_path / "run", StopAfter(2))
    random.seed(3)
    np.random.seed(3)
    expected = (random.random(), np.random.rand())
    random.seed(3)
    np.random.seed(3)
    fidelity.train(config, tmp_path / "run", resume=True)
    assert (random.random(), np.random.rand()) == expected


def test_a_bad_validation_picture_stops_the_run_at_its_start_or_is_left_out(tmp_path):
    folder = make_pictures(tmp_path / "pictures", count=4)
    (folder / "picture_3.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"picture_3\.png: not readable"):
        fidelity.train(tiny("tiny-lite-x4", folder), tmp_path / "stop")
    result = fidelity.train(tiny("tiny-lite-x4", folder, data__on_error="skip", data__holdout=2), tmp_path / "skip")
    assert math.isfinite(result.logs[-1]["psnr_y"])


def test_endless_overflow_in_half_precision_stops_with_the_step(pictures, tmp_path, monkeypatch):
    """The scaler may skip some steps; a gradient that never becomes finite means that the run has diverged."""
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda parameters, norm: torch.tensor(float("inf")))
    config = tiny("tiny-lite-x4", pictures, run__steps=40, run__precision="fp16", run__validate_every=0)
    with pytest.raises(NonFiniteError, match="step 21: the gradient of network is not finite"):
        fidelity.train(config, tmp_path / "run")


def test_the_transformer_wants_patches_of_whole_tokens(pictures):
    with pytest.raises(ConfigError, match=r"multiple of model\.options\.patch_px 8, got 36"):
        tiny("tiny-pixel-x4", pictures, data__gt_patch_px=36)


def test_log_on_disk_and_preview_follow_the_run(pictures, tmp_path):
    hooks = StopAfter(99)
    fidelity.train(tiny("tiny-lite-x4", pictures, **SIX), tmp_path / "run", hooks)
    entries = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [entry["step"] for entry in entries] == [1, 2, 3, 4, 5, 6]
    assert [e["step"] for e in entries if "psnr_y" in e] == [3, 6]
    assert hooks.previews == 5  # from the second step on: a curve needs two points


def test_learning_rate_by_hand():
    cosine = ScheduleConfig("cosine", warmup_steps=10, final_ratio=0.1)
    assert learning_rate(0, 110, 1.0, cosine) == pytest.approx(0.1)
    assert learning_rate(9, 110, 1.0, cosine) == pytest.approx(1.0)
    assert learning_rate(60, 110, 1.0, cosine) == pytest.approx(0.1 + 0.9 * 0.5)
    assert learning_rate(109, 110, 1.0, cosine) == pytest.approx(0.1, abs=1e-3)
    steps = ScheduleConfig("multistep", milestones=(5, 8), gamma=0.5)
    assert [learning_rate(s, 10, 2.0, steps) for s in (4, 5, 8)] == [2.0, 1.0, 0.5]
    assert learning_rate(7, 10, 2.0, ScheduleConfig("constant")) == 2.0


def test_average_starts_at_the_live_weights_and_follows_the_formula():
    """aesop.md check 11: one update of a zero average with live ones gives 0.001; after n steps 1 - 0.999^n."""
    live = torch.nn.Linear(2, 2, bias=False)
    torch.nn.init.zeros_(live.weight)
    average = make_average(live, 0.999)
    torch.nn.init.ones_(live.weight)
    average.update_parameters(live)
    assert average.module.weight == pytest.approx(torch.full((2, 2), 0.001), rel=1e-4) or torch.allclose(
        average.module.weight, torch.full((2, 2), 0.001), rtol=1e-4
    )
    for _ in range(9):
        average.update_parameters(live)
    assert torch.allclose(average.module.weight, torch.full((2, 2), 1 - 0.999**10), rtol=1e-4)


def test_losses_by_hand():
    gt = torch.zeros(2, 1, 2, 2)
    sr = torch.tensor([[0.0, 0.0, 0.0, 0.4], [0.2, 0.2, 0.2, 0.2]]).view(2, 1, 2, 2)
    assert torch.allclose(fidelity.l1_loss(sr, gt), torch.tensor([0.1, 0.2]))
    assert torch.allclose(fidelity.mse_loss(sr, gt), torch.tensor([0.04, 0.04]))


def test_defaults_are_stated_once():
    assert RunConfig().steps == fidelity.FidelityConfig().run.steps
    assert OptimizerConfig() == fidelity.FidelityConfig().optimizer


@pytest.mark.parametrize("degradation", ["matlab", "realesrgan"])
def test_a_scale_that_does_not_divide_sixteen_is_validated_too(degradation, tmp_path):
    pictures = make_pictures(tmp_path / "pictures", 3, 64)  # 64 is no multiple of 3
    sets = {"model__scale": 3, "data__gt_patch_px": 48, "data__holdout": 1, "run__steps": 1, "run__validate_every": 1}
    result = fidelity.train(tiny("tiny-lite-x4", pictures, data__degradation=degradation, **sets), tmp_path / "run")
    assert 10 < result.logs[-1]["psnr_y"] < 80
