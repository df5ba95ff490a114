"""What a run began with is known by content: a file that took another's place makes another run, of every recipe."""

import json
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from strsr_helpers import one_step_adapter, projector_for
from train_helpers import make_pictures, tiny

from alignsr.core.lora_files import DIFFUSERS_NOTE, PEFT_NOTE, save_adapter
from alignsr.core.weights import WeightsError, load_state_dict, read_info, save_weights
from alignsr.train.config import published, to_mapping
from alignsr.train.origins import KEYS, NETWORKS, differing, fingerprint, learned_from, origins
from alignsr.train.recipes import RECIPES, load_config
from alignsr.train.recipes import one_step_distill as one_step
from alignsr.train.session import finished_weights
from alignsr.train.state import checkpoints

QUIET = {"run__steps": 1, "run__preview_every": 0, "run__validate_every": 0, "data__holdout": 0, "data__workers": 0}
LIGHT = {
    **QUIET, "data__gt_patch_px": 64, "losses__lpips__weight": 0, "discriminator__features__kind": "network",
    "data__pair_pool": 0,
}  # fmt: skip
FLUX = "tiny-strsr-flux2-klein-stage1"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("pictures"), side=136)


def train(config: Any, folder: Path, resume: bool = False) -> Path:
    recipe = next(known for known in RECIPES.values() if known.config is type(config))
    return recipe.train(config, folder, resume=resume).weights


def replaced(path: Path) -> bytes:
    """Put other weights of the same shapes in a file's place; what was there."""
    before = path.read_bytes()
    state = {key: 0.5 * value if value.is_floating_point() else value for key, value in load_state_dict(path).items()}
    save_weights(path, state, read_info(path) or None)
    return before


def check(config: Any, key: str, file: Path, folder: Path) -> None:
    """A finished run is found; with other content in the file it is not, and does not go on; put back, it is found again."""
    weights = train(config, folder)
    assert set(read_info(weights)["origins"]) >= {key}
    assert finished_weights(folder, config, learned_from(config)) == weights
    before = replaced(file)
    assert finished_weights(folder, config, learned_from(config)) is None
    with pytest.raises(WeightsError, match=rf"{key}: expected the content that the run in .* began with, got another"):
        train(config, folder, resume=True)
    file.write_bytes(before)
    os.utime(file)
    assert finished_weights(folder, config, learned_from(config)) == weights
    assert train(config, folder, resume=True) == weights


@pytest.mark.parametrize(
    ("first", "name", "key"),
    [
        ("tiny-lite-x4", "tiny-lite-x4", "model.init"),
        ("tiny-aesop-autoencoder", "tiny-aesop-autoencoder", "model.init"),
        ("tiny-aesop-autoencoder", "tiny-aesop-rrdb-128", "losses.aesop.autoencoder"),
        ("tiny-asasr-sft-pixel", "tiny-asasr-pixel", "model.adapter"),
        ("tiny-asasr-sft-pixel", "tiny-asasr-pixel", "adversary.adapter"),
        ("tiny-asasr-sft-pixel", "tiny-asasr-sft-pixel", "model.init"),
    ],
)
def test_a_file_that_took_anothers_place_is_noticed(first: str, name: str, key: str, pictures: Path, tmp_path: Path) -> None:
    made = train(tiny(first, pictures, **QUIET), tmp_path / "one")
    adapter = made.with_name(f"{made.stem}-adapter.safetensors")
    file = adapter if adapter.is_file() else made
    more = {"lora__rank": 4} if key == "model.init" and "asasr" in name else {}
    config = tiny(name, pictures, **QUIET, **more, **{key.replace(".", "__"): file.as_posix()})
    check(config, key, file, tmp_path / "two")


def test_one_step_training_notices_adapter_projector_and_heads(pictures: Path, tmp_path: Path) -> None:
    """Even where the bytes of a header alone differ: an adapter of another alpha is another adapter."""
    start = save_adapter(tmp_path / "start.safetensors", one_step_adapter("flux2_klein"))
    projector = save_weights(tmp_path / "projector.safetensors", projector_for("flux2_klein"))
    heads = one_step.critic_path(train(tiny(FLUX, pictures, **LIGHT), tmp_path / "first"))
    files = {"model.init": start, "conditioning.init": projector, "discriminator.init": heads}
    config = tiny(FLUX, pictures, **LIGHT, **{key.replace(".", "__"): file.as_posix() for key, file in files.items()})
    assert set(origins(config)) == set(files)
    for number, (key, file) in enumerate(files.items()):
        check(config, key, file, tmp_path / str(number))
    before = origins(config)
    save_weights(start, load_state_dict(start), read_info(start) | {"alpha": 1.0})
    assert origins(config) == {**before, "model.init": origins(config)["model.init"]} != before


def test_stage_2_notices_another_stage_1_in_the_same_folder(pictures: Path, tmp_path: Path) -> None:
    train(tiny(FLUX, pictures, **LIGHT), tmp_path / "one")
    (state,) = checkpoints(tmp_path / "one")
    given = {"start_from": (tmp_path / "one").as_posix(), "discriminator__init": "nobody reads it"}
    check(tiny(FLUX, pictures, **LIGHT, **given), "start_from", state, tmp_path / "two")


def test_a_stage_1_that_has_gone_on_since_holds_what_stage_2_began_with(pictures: Path, tmp_path: Path) -> None:
    train(tiny(FLUX, pictures, **LIGHT), tmp_path / "one")
    config = tiny(FLUX, pictures, **LIGHT, start_from=(tmp_path / "one").as_posix())
    weights = train(config, tmp_path / "two")
    (state,) = checkpoints(tmp_path / "one")
    newer = state.with_name(state.name.replace("1", "9"))
    shutil.copy(state, newer)
    replaced(newer)
    assert train(config, tmp_path / "two", resume=True) == weights
    state.unlink()
    with pytest.raises(WeightsError, match=r"start_from: expected the content that the run in .* began with"):
        train(config, tmp_path / "two", resume=True)


def test_settings_of_stage_1_matter_where_stage_2_begins(pictures: Path, tmp_path: Path) -> None:
    """A run that has begun has weights of its own; keys of other versions say nothing of the convention."""
    train(tiny(FLUX, pictures, **LIGHT), tmp_path / "one")
    path = tmp_path / "one" / "config.json"
    told = json.loads(path.read_text())
    path.write_text(json.dumps({**told, "of_another_version": 1, "model": {**told["model"], "also": 2}}))
    config = tiny(FLUX, pictures, **LIGHT, start_from=(tmp_path / "one").as_posix())
    weights = train(config, tmp_path / "two")
    path.write_text(json.dumps({**told, "lora": {**told["lora"], "alpha": 16.0}}))
    assert train(config, tmp_path / "two", resume=True) == weights
    with pytest.raises(WeightsError, match=r"lora\.alpha is 16\.0 there and 4\.0 here"):
        train(config, tmp_path / "three")


def test_a_finished_run_needs_its_origin_no_more(pictures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    start = train(tiny("tiny-lite-x4", pictures, **QUIET), tmp_path / "one")
    config = tiny("tiny-lite-x4", pictures, **QUIET, model__init=start.as_posix())
    weights = train(config, tmp_path / "two")
    start.unlink()
    assert finished_weights(tmp_path / "two", config, learned_from(config)) == weights
    assert "what it was trained from is not there any more (model.init)" in caplog.text


def test_only_other_content_differs() -> None:
    assert differing(None, {"a": "1"}) == [] == differing({"a": "1"}, {"a": "1"})
    assert differing({"a": "1", "b": "2"}, {"a": "3", "b": "4"}) == ["a", "b"]
    assert differing({}, {"a": "1"}) == [], "a key that the run did not know"
    assert differing({"a": "1"}, {}) == [], "gone since"


def test_every_key_is_one_of_a_recipe() -> None:
    """A field that is renamed would be compared no more."""
    configs = [to_mapping(load_config(name)[1]) for name in published() if name.startswith("tiny-")]

    def has(values: Any, parts: list[str]) -> bool:
        return not parts or (isinstance(values, dict) and parts[0] in values and has(values[parts[0]], parts[1:]))

    keys = [*KEYS, *(f"{key}.{more}" for key in NETWORKS for more in ("kind", "weights")), "model.source", "start_from"]
    assert [key for key in keys if not any(has(config, key.split(".")) for config in configs)] == []


def test_headers_of_older_versions_and_alphas_of_other_programs(tmp_path: Path) -> None:
    state = {"transformer.a.lora_A.weight": torch.zeros(1, 2)}
    info = {"backbone": "flux2_klein", "alpha": 4.0}
    plain = save_weights(tmp_path / "plain.safetensors", state, info)
    written = save_weights(tmp_path / "written.safetensors", state, {**info, "origins": {}, "step": 3, "licence": "x"})
    assert fingerprint(plain) == fingerprint(written)
    noted = [
        save_weights(
            tmp_path / f"{alpha}.safetensors", state, info, {DIFFUSERS_NOTE: json.dumps({"transformer.lora_alpha": alpha})}
        )
        for alpha in (4, 16)
    ]
    assert len({fingerprint(path) for path in (plain, *noted)}) == 3
    found = set[str]()
    for alpha in (4, 16):
        (tmp_path / PEFT_NOTE).write_text(json.dumps({"r": 1, "lora_alpha": alpha}))
        found.add(fingerprint(plain))
    assert len(found) == 2


def test_the_same_training_again_is_the_same_origin(pictures: Path, tmp_path: Path) -> None:
    """Seconds differ, and the order in which a header lists its entries is anyone's."""
    config, found = tiny(FLUX, pictures, **LIGHT), []
    for name in ("one", "two"):
        weights = train(config, tmp_path / name)
        found.append([fingerprint(path) for path in (weights, *checkpoints(tmp_path / name))])
    assert found[0] == found[1] and found[0][0] != found[0][1]


def test_a_folder_is_known_by_its_weight_files(tmp_path: Path) -> None:
    for name in ("state_dict", "projector"):
        torch.save({"a": torch.zeros(2)}, tmp_path / f"{name}.pth")
    before = fingerprint(tmp_path)
    (tmp_path / "readme.txt").write_text("x")
    assert fingerprint(tmp_path) == before
    torch.save({"a": torch.ones(2)}, tmp_path / "projector.pth")
    assert fingerprint(tmp_path) != before


def test_what_is_no_file_of_the_user_has_no_origin(pictures: Path, tmp_path: Path) -> None:
    assert origins(tiny("tiny-asasr-pixel", pictures)) == {} == learned_from(tiny("tiny-lite-x4", pictures))
    assert origins(tiny("tiny-lite-x4", pictures, model__init="lite-x4")) == {}, "bundled"
    assert origins(tiny("tiny-lite-x4", pictures, model__init=(tmp_path / "none.safetensors").as_posix())) == {}
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(struct.pack("<Q", 99) + json.dumps({}).encode())
    with pytest.raises(WeightsError, match="expected a safetensors file"):
        origins(tiny("tiny-lite-x4", pictures, model__init=broken.as_posix()))


def test_a_run_of_a_version_that_did_not_say_goes_on(pictures: Path, tmp_path: Path) -> None:
    start = train(tiny("tiny-lite-x4", pictures, **QUIET), tmp_path / "one")
    config = tiny("tiny-lite-x4", pictures, **QUIET, model__init=start.as_posix())
    train(config, tmp_path / "two")
    (state,) = checkpoints(tmp_path / "two")
    info = read_info(state)
    del info["extra"]["origins"]
    save_weights(state, load_state_dict(state), info)
    train(config, tmp_path / "two", resume=True)
