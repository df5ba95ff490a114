import pytest

from alignsr.train.config import CONFIGS, ConfigError, apply_sets, config_hash, from_mapping, published, read_toml
from alignsr.train.recipes import RECIPES, load_config
from alignsr.train.recipes.fidelity import FidelityConfig, build_model


def test_unknown_key_is_an_error_with_a_suggestion():
    with pytest.raises(ConfigError, match=r"run\.batchsize: unknown key; did you mean 'batch_size'"):
        from_mapping(FidelityConfig, {"run": {"batchsize": 3}})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"run": {"steps": "many"}}, r"run\.steps: expected int, got str 'many'"),
        ({"run": {"steps": True}}, r"run\.steps: expected int, got bool"),
        ({"run": {"steps": 0}}, "steps: expected at least 1, got 0"),
        ({"run": 3}, r"run: expected a table, got 3"),
        ({"run": {"precision": "bf61"}}, r"run\.precision: expected one of .*did you mean 'bf16'"),
        ({"optimizer": {"betas": [0.9]}}, r"optimizer\.betas: expected 2 values, got 1"),
        ({"data": {"folders": "x"}}, r"data\.folders: expected a list"),
        ({"data": {"gt_patch_px": 30}}, r"data\.gt_patch_px: expected a multiple of model\.scale 4, got 30"),
    ],
)
def test_wrong_values_name_the_key(values, message):
    with pytest.raises(ConfigError, match=message):
        from_mapping(FidelityConfig, values)


def test_integers_are_taken_for_floats_but_not_the_reverse():
    config = from_mapping(FidelityConfig, {"optimizer": {"learning_rate": 1}})
    assert config.optimizer.learning_rate == 1.0
    assert isinstance(config.optimizer.learning_rate, float)
    with pytest.raises(ConfigError, match="expected int, got float"):
        from_mapping(FidelityConfig, {"run": {"steps": 1.5}})


def test_base_is_overlaid_table_by_table(tmp_path):
    (tmp_path / "a.toml").write_text('recipe = "fidelity"\n[run]\nsteps = 5\nseed = 1\n')
    (tmp_path / "b.toml").write_text('base = "a.toml"\n[run]\nseed = 2\n')
    assert read_toml(tmp_path / "b.toml") == {"recipe": "fidelity", "run": {"steps": 5, "seed": 2}}


def test_a_circle_of_bases_is_refused(tmp_path):
    (tmp_path / "a.toml").write_text('base = "b.toml"\n')
    (tmp_path / "b.toml").write_text('base = "a.toml"\n')
    with pytest.raises(ConfigError, match="leads back to itself"):
        read_toml(tmp_path / "a.toml")


def test_broken_or_missing_toml_is_one_message(tmp_path):
    (tmp_path / "a.toml").write_text("steps = = 3")
    with pytest.raises(ConfigError, match="expected TOML"):
        read_toml(tmp_path / "a.toml")
    with pytest.raises(ConfigError, match="expected a TOML file"):
        read_toml(tmp_path / "missing.toml")


def test_sets_parse_toml_values_and_fall_back_to_strings():
    values = apply_sets({"run": {"steps": 1}}, ["run.steps=7", "name=lite", 'data.folders=["x", "y"]', "run.channels_last=true"])
    assert values == {"run": {"steps": 7, "channels_last": True}, "name": "lite", "data": {"folders": ["x", "y"]}}
    with pytest.raises(ConfigError, match="expected key=value"):
        apply_sets({}, ["run.steps"])


def test_hash_changes_with_any_value_and_only_then():
    one, two = from_mapping(FidelityConfig, {}), from_mapping(FidelityConfig, {"run": {"seed": 1}})
    assert config_hash(one) == config_hash(from_mapping(FidelityConfig, {}))
    assert config_hash(one) != config_hash(two)


def test_unknown_recipe_is_refused(tmp_path):
    (tmp_path / "a.toml").write_text('recipe = "fidelty"\n')
    with pytest.raises(ConfigError, match="did you mean 'fidelity'"):
        load_config(tmp_path / "a.toml")


@pytest.mark.parametrize("name", published())
def test_every_published_config_is_valid_and_builds_its_model_on_meta(name):
    import torch

    recipe, config = load_config(name, ["model.init="])
    assert recipe in RECIPES.values()
    with torch.device("meta"):
        backbone = build_model(config)
    assert 100 < backbone.spec.parameters < 3_000_000


def test_every_published_config_has_a_tiny_twin():
    names = published()
    assert {name for name in names if not name.startswith("tiny-")} == {
        name.removeprefix("tiny-") for name in names if name.startswith("tiny-")
    }
    assert all((CONFIGS / f"{name}.toml").is_file() for name in names)
