"""The shipped workflows: both forms agree, come from one description, and run headless with tiny models and pictures."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import pytest
from artefact_helpers import make_artefacts
from multi_step_helpers import write_asasr
from node_helpers import picture, save_tiny_autoencoder, save_tiny_network, save_tiny_pixel
from PIL import Image
from strsr_helpers import write_adapters
from train_helpers import make_pictures
from workflow_helpers import (
    TINY_ASASR,
    TINY_DP2O,
    TINY_MULTI_STEP,
    TINY_STRSR_TRAINERS,
    TINY_TRAINERS,
    as_sets,
    three_stages,
    tiny_asasr_training,
    tiny_sets,
    tiny_strsr_sets,
    tiny_strsr_training,
)

from alignsr.core import weights
from alignsr.core.image_files import read_image, to_pil
from alignsr.core.resize import bicubic
from alignsr.nodes.host import LocalHost, use_host
from alignsr.runner import default_display_names, default_node_classes, load_workflow, run_workflow
from alignsr.runner.convert import convert
from alignsr.train.config import from_mapping
from alignsr.train.losses import LossesConfig
from alignsr.train.recipes import load_config
from paths import ROOT

FOLDER = ROOT / "workflows"
NAMES = (
    *(
        "aesop-ablation",
        "asasr-ablation",
        "compare-dp2o",
        "degrade-restore-score",
        "evaluate-folders",
        "pretrain-aesop-autoencoder",
    ),
    *("sample-score-curate", "spectral-comparison", "strsr-ablation", "train-aesop", "train-aesop-real-world"),
    *("train-asasr", "train-asasr-adversary", "train-asasr-preferences", "train-asasr-sft", "train-dp2o"),
    *("train-small-network", "train-strsr", "upscale-folder"),
    *("upscale-image", "upscale-with-aesop", "upscale-with-asasr", "upscale-with-dp2o-flux", "upscale-with-dp2o-sd2"),
    *("upscale-with-strsr-flux", "upscale-with-strsr-z", "view-autoencoder"),
)
SMALL = {
    **{name: tiny_sets(name) for name in TINY_TRAINERS},
    **{
        name: as_sets(tiny_strsr_training(name, json.loads((FOLDER / "api" / f"{name}.json").read_text(encoding="utf-8"))))
        for name in TINY_STRSR_TRAINERS
    },
    **{
        name: as_sets(tiny_asasr_training(name, json.loads((FOLDER / "api" / f"{name}.json").read_text(encoding="utf-8"))))
        for name in TINY_ASASR
    },
    **{name: as_sets(nodes) for name, nodes in (TINY_MULTI_STEP | TINY_DP2O).items()},
    "evaluate-folders": ["2.metrics=psnr_y, lr_psnr, ae_psnr"],
    "upscale-with-aesop": ["5.panel_px=100"],
    "upscale-with-strsr-flux": tiny_strsr_sets(),
    "upscale-with-strsr-z": tiny_strsr_sets(),
    "view-autoencoder": [],
    "spectral-comparison": ["30.panel_px=100"],
    "upscale-image": ["5.panel_px=100"],
    "upscale-folder": [],
    "degrade-restore-score": ["6.panel_px=100"],
    "train-small-network": [
        "1.overrides=run.steps=2\nrun.batch_size=2\ndata.gt_patch_px=32\ndata.holdout=1\n"
        "model.options={ features = 4, blocks = 1 }"
    ],
}


def load_script():
    scripts = ROOT / "scripts"
    spec = importlib.util.spec_from_file_location("make_workflows", scripts / "make_workflows.py")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(scripts))  # a script finds its neighbours
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(scripts))
    return module


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """An input folder with what the workflows name."""
    folder = tmp_path_factory.mktemp("input")
    to_pil(picture(1, 72, 68).movedim(-1, 1)).save(folder / "example.png")
    (folder / "photos" / "sub").mkdir(parents=True)
    to_pil(picture(1, 9, 7).movedim(-1, 1)).save(folder / "photos" / "grey_or_not.png")
    to_pil(picture(1, 6, 11, 4).movedim(-1, 1)).save(folder / "photos" / "sub" / "alpha.png")
    (folder / "photos" / "broken.png").write_bytes(b"no picture")
    for name in ("training-pictures", "Set14", "results/Set14-LDL", "results/Set14-AESOP"):
        make_pictures(folder / name)
    make_artefacts(folder / "artefacts")
    for path in (folder / "results" / "Set14-LDL").iterdir():
        Image.open(path).point(lambda value: value // 2).save(path)
    return folder


@pytest.fixture
def tiny(inputs, tmp_path, monkeypatch):
    """Tiny models under the names of the bundled ones, and a host that sees them and the inputs."""
    assets = tmp_path / "assets"
    for name in ("lite-x4", "lite-real-x4"):
        save_tiny_network(assets / f"{name}.safetensors")
    save_tiny_pixel(assets / "pixel-x4.safetensors")
    save_tiny_autoencoder(assets / "autoencoders" / "autoencoder-tiny-x4.safetensors")
    write_adapters(tmp_path / "models")
    write_asasr(tmp_path / "models")
    monkeypatch.setattr(weights, "ASSETS", assets)
    host = LocalHost(output_dir=tmp_path / "out", input_dirs=[inputs], models_dirs=[tmp_path / "models"])
    with use_host(host):
        yield host


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_folder_holds_whole_sets_with_names_that_open_by_address():
    assert tuple(sorted(path.stem for path in FOLDER.glob("*.json"))) == NAMES
    assert tuple(sorted(path.stem for path in (FOLDER / "api").glob("*.json"))) == NAMES
    assert tuple(sorted(path.stem for path in FOLDER.glob("*.jpg"))) == NAMES
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+", name) for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_thumbnail(name):
    with Image.open(FOLDER / f"{name}.jpg") as opened:
        assert opened.format == "JPEG" and opened.size == (512, 384)
        assert len(opened.convert("RGB").resize((64, 48)).getcolors(64 * 48)) > 50, "shows something"
    assert (FOLDER / f"{name}.jpg").stat().st_size < 150_000


@pytest.mark.parametrize("name", NAMES)
def test_both_forms_agree(name, tiny):
    api = read(FOLDER / "api" / f"{name}.json")
    assert convert(read(FOLDER / f"{name}.json"), default_node_classes(), default_display_names()) == api
    assert all("class_type" in node for node in api.values())


@pytest.mark.parametrize("name", NAMES)
def test_files_are_what_the_script_writes(name, tiny):
    script = load_script()
    assert set(script.GRAPHS) == set(NAMES)
    ui, api = script.build(name)
    hint = "run scripts/make_workflows.py and look at the difference"
    assert script.dump(ui) == (FOLDER / f"{name}.json").read_text(encoding="utf-8"), hint
    assert script.dump(api) == (FOLDER / "api" / f"{name}.json").read_text(encoding="utf-8"), hint


@pytest.mark.parametrize("name", NAMES)
def test_ui_form_has_a_note_and_no_crossed_nodes(name):
    nodes = read(FOLDER / f"{name}.json")["nodes"]
    assert any(node["type"] == "MarkdownNote" and node["widgets_values"][0].isascii() for node in nodes)
    boxes = [(*node["pos"], *node["size"]) for node in nodes]
    for index, (x, y, width, height) in enumerate(boxes):
        for left, top, wide, high in boxes[index + 1 :]:
            assert x + width <= left or left + wide <= x or y + height <= top or top + high <= y


def test_saved_settings_are_those_of_the_bundled_models(tiny):
    """Workflows hold the real settings; only tests make them small."""
    graphs = {name: load_workflow(FOLDER / f"{name}.json")[0] for name in NAMES}
    for name in ("upscale-image", "upscale-folder", "degrade-restore-score"):
        inputs = {node["class_type"]: node["inputs"] for node in graphs[name].values()}
        assert inputs["AlignSRLoadSRModel"]["model_name"] == "lite-real-x4"
        assert inputs["AlignSROneStepSR"]["scale"] == 4
    degrade = graphs["degrade-restore-score"]["2"]["inputs"]
    assert (degrade["preset"], degrade["scale"], degrade["target"]) == ("realesrgan", 4, "plain")
    train = graphs["train-small-network"]["1"]["inputs"]
    assert (train["config"], train["overrides"], train["resume"]) == ("lite-x4", "", True)


TRAINED = {  # workflow -> training node -> the published config whose losses it must repeat
    "train-aesop": {"6": "aesop-rrdb-128"},
    "train-aesop-real-world": {"5": "aesop-real"},
    "aesop-ablation": {
        "30": "ldl-rrdb-128",
        "31": "aesop-ablation-bicubic",
        "32": "aesop-ablation-no-lr-term",
        "33": "aesop-rrdb-128",
    },
    "train-strsr": {"6": "strsr-flux2-klein-stage1", "7": "strsr-flux2-klein-stage2"},
    "strsr-ablation": {"20": "strsr-flux2-klein-stage1", "30": "strsr-flux2-klein-stage2"},
}


@pytest.mark.parametrize(
    ("name", "node_id", "config"), [(name, *item) for name, nodes in TRAINED.items() for item in nodes.items()]
)
def test_saved_losses_are_those_of_the_paper(name, node_id, config, tiny):
    """A graph's chain of losses says what the config of its trainer says, the auto-encoder's file apart."""
    graph = load_workflow(FOLDER / f"{name}.json")[0]
    trainer = graph[node_id]["inputs"]
    settings = load_config(config)[1]
    assert trainer["config"] == config and trainer["overrides"] == "run.accumulation_steps=4"
    assert settings.run.accumulation_steps == 1, "published for four processes"
    chain = from_mapping(LossesConfig, chain_of(graph, trainer["loss"]))
    assert {loss: weight for loss, weight in chain.weights().items()} == settings.losses.weights()
    for loss in chain.weights():
        ours, published = getattr(chain, loss), getattr(settings.losses, loss)
        if loss == "aesop":
            assert (ours.power, ours.precision) == (published.power, published.precision)
        elif loss == "perceptual":
            assert ours.used_layers() == published.used_layers() and ours.target == published.target
        else:
            assert ours == published


def chain_of(graph, link):
    """What the loss nodes before a trainer give together."""
    classes = default_node_classes()
    inputs = dict(graph[link[0]]["inputs"])
    if "autoencoder" in inputs:
        inputs["autoencoder"] = type("Loaded", (), {"source": "some-file"})
    if "loss" in inputs:
        inputs["loss"] = chain_of(graph, inputs["loss"])
    node = classes[graph[link[0]]["class_type"]]
    return getattr(node(), node.FUNCTION)(**inputs)[0]


def test_the_ablation_differs_in_nothing_but_the_loss():
    graph = load_workflow(FOLDER / "aesop-ablation.json")[0]
    nodes = {node_id: node["inputs"] for node_id, node in graph.items()}
    encoders = {"11": "aesop-autoencoder-bicubic", "12": "aesop-autoencoder-no-lr-term", "13": "aesop-autoencoder"}
    assert {node_id: nodes[node_id]["config"] for node_id in encoders} == encoders
    assert [nodes[f"2{m}"]["autoencoder"] for m in (1, 2, 3)] == [[f"1{m}", 1] for m in (1, 2, 3)]
    assert len({json.dumps(nodes[f"2{m}"]["loss"]) for m in range(4)}) == 1
    assert len({(nodes[f"3{m}"]["data_folder"], nodes[f"3{m}"]["overrides"]) for m in range(4)}) == 1
    assert len({nodes[f"3{m}"]["out_name"] for m in range(4)}) == 4
    generators = [load_config(nodes[f"3{m}"]["config"])[1] for m in range(4)]
    for part in ("model", "discriminator", "data", "optimizer", "schedule", "run"):
        assert len({repr(getattr(config, part)) for config in generators}) == 1, part


def test_the_ablation_of_strsr_leaves_out_one_thing_of_each_method():
    """Of both stages; without FDL continues the stage 1 of the full method, all others their own."""
    graph = load_workflow(FOLDER / "strsr-ablation.json")[0]
    nodes = {node_id: node["inputs"] for node_id, node in graph.items()}
    chains = {
        node_id: chain_of(graph, nodes[node_id]["loss"]) for node_id in nodes if node_id[0] in "23" and "loss" in nodes[node_id]
    }
    full = {"20": {"pixel", "lpips", "ragan"}, "30": {"pixel", "lpips", "ragan", "fdl"}}
    expected = {"21": full["20"], "22": full["20"], "23": full["20"] - {"ragan"}}
    expected |= {"31": full["30"], "32": full["30"], "33": full["30"] - {"ragan"}, "34": full["30"] - {"fdl"}} | full
    assert {node_id: set(chain) for node_id, chain in chains.items()} == expected
    for name in ("pixel", "lpips", "ragan", "fdl"):
        assert len({json.dumps(chain[name]) for chain in chains.values() if name in chain}) == 1, "the same weights everywhere"
    told = {m: nodes[f"3{m}"]["overrides"].splitlines()[1:] for m in range(5)}
    text = next(line for line in told[1] if line.startswith("conditioning.prompt"))
    assert told == {0: [], 1: ['conditioning.kind="text"', text], 2: ['conditioning.kind="empty"'], 3: [], 4: []}
    assert nodes["41"]["text"] == json.loads(text.partition("=")[2]), "told the same at inference"
    for m in range(4):
        assert nodes[f"2{m}"]["overrides"] == nodes[f"3{m}"]["overrides"] and nodes[f"3{m}"]["start_from"] == [f"2{m}", 7]
        assert ("discriminator" in nodes[f"3{m}"]) == (m != 3)
    assert nodes["34"]["start_from"] == ["20", 7] and "24" not in nodes
    assert len({inputs["out_name"] for inputs in nodes.values() if "out_name" in inputs}) == len(chains)


def test_what_a_template_trains_is_told_the_same_at_inference():
    """VLM Encode prepares pictures as the trainer's config does, each tile for itself as each crop in training."""
    found = 0
    for name in NAMES:
        graph = load_workflow(FOLDER / f"{name}.json")[0]
        for node in graph.values():
            source = graph[node["inputs"]["model"][0]] if node["class_type"] == "AlignSRVLMEncode" else {"class_type": ""}
            if source["class_type"] == "AlignSROneStepTrainer":
                told = load_config(source["inputs"]["config"])[1].conditioning
                assert told.kind == "vlm" and "conditioning.is_parity" not in source["inputs"]["overrides"]
                assert node["inputs"]["mode"] == ("parity" if told.is_parity else "best"), name
                assert node["inputs"]["scope"] == "tile", name
                found += 1
    assert found == 5  # two of train-strsr, three of strsr-ablation


def test_templates_name_only_what_every_list_has():
    """They open without a missing model where no file of a paper is: bundled, or entries that stand in every list."""
    lists = {node: default_node_classes()[f"AlignSR{node}"].INPUT_TYPES()["required"] for node in ("LoadLoRA", "LoadVLM")}
    assert "auto" in lists["LoadVLM"]["vlm_name"][0]
    with_auto = [f"AlignSRLoad{name}" for name in ("OneStepBackbone", "MultiStepBackbone", "Discriminator")]
    for name in NAMES:
        for node in load_workflow(FOLDER / f"{name}.json")[0].values():
            inputs = node["inputs"]
            known = weights.bundled_autoencoders() if "AutoEncoder" in node["class_type"] else weights.bundled_models()
            model = inputs.get("model_name")
            assert model is None or model in known or (model == "auto" and node["class_type"] in with_auto)
            assert inputs.get("control_name") in (None, "auto", "none") and inputs.get("vae_name") in (None, "auto")
            assert node["class_type"] != "AlignSRLoadLoRA" or inputs["lora_name"] in lists["LoadLoRA"]["lora_name"][0]


TWICE = [
    name for name in NAMES if name not in (*TINY_TRAINERS, *TINY_STRSR_TRAINERS, "train-dp2o", "compare-dp2o", *TINY_ASASR)
]  # the two forms are equal by the tests above; training takes time


def test_three_stages_in_one_graph(tiny, tmp_path):
    """The two training templates joined: auto-encoder -> network by its loss -> upscaled picture."""
    graph = three_stages(*(read(FOLDER / "api" / f"{name}.json") for name in ("pretrain-aesop-autoencoder", "train-aesop")))
    path = tmp_path / "three-stages.json"
    path.write_text(json.dumps(graph), encoding="utf-8")
    result = run_workflow(path, out_dir=tmp_path / "out", quiet=True, host=tiny)
    (autoencoder,) = (tmp_path / "out").rglob("my-aesop-autoencoder.safetensors")
    (network,) = (tmp_path / "out").rglob("my-aesop-rrdb.safetensors")
    assert weights.read_info(network)["config"]["losses"]["aesop"]["autoencoder"] == str(autoencoder)
    assert result.outputs["t13"]["text"] == [str(network)]
    sr = read_image(tmp_path / "out" / "alignsr" / "my-aesop-rrdb_00001_.png").pixels
    assert sr.shape == (1, 3, 72 * 4, 68 * 4) and sr.std() > 0.05
    before = read_image(tiny.find_input("example.png")).pixels
    assert (bicubic(sr, (72, 68)) - before).abs().mean() < 0.1, "not the picture that went in"


@pytest.mark.parametrize(("name", "form"), [(name, "api") for name in NAMES] + [(name, "ui") for name in TWICE])
def test_runs_headless(name, form, tiny, tmp_path):
    path = FOLDER / f"{name}.json" if form == "ui" else FOLDER / "api" / f"{name}.json"
    result = run_workflow(path, sets=SMALL[name], out_dir=tmp_path / "out", quiet=True, host=tiny)
    written = {file.relative_to(tmp_path / "out").as_posix() for file in result.files}
    assert all((tmp_path / "out" / file).is_file() for file in written)
    if name == "upscale-image":
        assert written == {"alignsr/upscaled_00001_.png"}
        assert Image.open(result.files[0]).size == (68 * 4, 72 * 4)
    elif name == "upscale-folder":
        assert written == {"grey_or_not_00001_.png", "sub/alpha_00001_.png"}
        assert {Image.open(file).mode for file in result.files} == {"RGB", "RGBA"}
        assert "broken.png" in result.outputs["5"]["text"][0]
    elif name == "degrade-restore-score":
        assert {"alignsr/report_00001_.json", "alignsr/report_00001_.csv", "alignsr/report_00001_.png"} <= written
        record = read(tmp_path / "out" / "alignsr" / "report_00001_.json")
        assert set(record["scores"]["mean"]) == {"psnr_y", "ssim_y", "lsd", "lr_psnr"}
        assert record["degradation"][0][0]["config"] == "realesrgan" and record["restoration"][0]["backbone"] == "lite-real-x4"
        assert len(record["pictures"]) == 2
    elif name == "train-small-network":
        assert any(file.endswith("curve.png") for file in written) and "alignsr/my-lite-x4_00001_.png" in written
        assert any(file.name == "my-lite-x4.safetensors" for file in (tmp_path / "out").rglob("*"))
    elif name in TINY_DP2O:
        runs = sorted(path.parent.name.rpartition("-")[0] for path in (tmp_path / "out").rglob("pairs.parquet"))
        assert runs == ["tiny-dp2o-candidates-pixel"]
        trained = [path.name for path in (tmp_path / "out").rglob("my-dp2o.safetensors")]
        assert trained == ([] if name == "sample-score-curate" else ["my-dp2o.safetensors"])
        if name == "compare-dp2o":
            assert result.outputs["12"]["text"][0].startswith("3 seeds of 3 pictures")
    elif name.startswith("upscale-with-strsr"):
        assert written == {f"alignsr/{name.removeprefix('upscale-with-')}_00001_.png"}
        assert Image.open(result.files[0]).size == (68 * 4, 72 * 4)
        facts = json.loads(result.outputs["11"]["text"][0])
        kind = "flux2_klein" if name.endswith("flux") else "z_image"
        assert facts["backbone"] == f"tiny {kind}" and facts["mode"] == "best" and facts["tiles"] == 9
    elif name in TINY_MULTI_STEP:
        check_multi_step(name, result, written)
    elif name in TINY_ASASR:
        check_asasr(name, written, tmp_path / "out")
    elif name in TINY_STRSR_TRAINERS:
        check_strsr(name, result, written, tmp_path / "out")
    else:
        check_aesop(name, result, written, tmp_path / "out")


def check_multi_step(name, result, written):
    end = {"upscale-with-asasr": "asasr", "upscale-with-dp2o-flux": "dp2o-flux1", "upscale-with-dp2o-sd2": "dp2o-sd2"}[name]
    assert written == {f"alignsr/{end}_00001_.png"}
    assert Image.open(result.files[0]).size == (68 * 4, 72 * 4)
    facts = json.loads(result.outputs["11" if name == "upscale-with-asasr" else "9"]["text"][0])
    wanted = {"asasr": ("euler", 3.5), "dp2o-flux1": ("euler", 2.5), "dp2o-sd2": ("ddpm", 3.5)}[end]
    assert (facts["sampler"], facts["guidance"]) == wanted and facts["tiles"] == 9 and facts["color_fix"] == "adain"


def check_asasr(name, written, out):
    """What was trained, and on what: every stage starts from the files of those before it."""
    trained = {file.stem: weights.read_info(file) for file in out.rglob("*.safetensors") if not file.stem.startswith("state")}
    stages = {
        "sft": {"my-sft"},
        "adversary": {"my-adversary", "my-adversary-with-sft"},
        "preferences": {"my-asasr", "my-asasr-with-sft"},
    }
    runs = set().union(*stages.values()) if name == "train-asasr" else stages.get(name.removeprefix("train-asasr-"), set())
    if name == "asasr-ablation":
        runs = {
            "my-sft",
            "my-adversary",
            "my-adversary-with-sft",
            *(f"asasr-ablation-{m}{end}" for m in (1, 2, 3) for end in ("", "-with-sft")),
        }
        record = read(out / "alignsr" / "asasr-ablation_00001_.json")
        rows = [image["name"] for image in record["scores"]["images"]]
        titles = ["Sobolev and adversary", "Euclidean and adversary", "Sobolev and input as loser", "supervised alone"]
        assert rows == titles
        configs = [trained[f"asasr-ablation-{m}"]["config"] for m in (1, 2, 3)]
        assert [config["preference"]["order"] for config in configs] == [1.5, 0.0, 1.5]
        assert [config["adversary"]["mode"] for config in configs] == ["mimic", "mimic", "lq"]
    assert {stem for stem, info in trained.items() if "_0000" not in stem and info.get("architecture") != "prompt"} == runs
    assert all(info["config"]["run"]["steps"] == 1 for stem, info in trained.items() if stem in runs and "config" in info)
    if name == "train-asasr":
        policy, adversary = trained["my-asasr"]["config"], trained["my-adversary"]["config"]
        assert Path(policy["model"]["adapter"]).name == Path(adversary["model"]["adapter"]).name == "my-sft.safetensors"
        assert Path(policy["adversary"]["adapter"]).name == "my-adversary.safetensors"
        assert trained["my-asasr-adapter_00001_"]["rank"] == trained["my-asasr"]["rank"] + trained["my-sft"]["rank"]
        assert "alignsr/my-asasr_00001_.png" in written


def check_strsr(name, result, written, out):
    trained = {file.stem: weights.read_info(file) for file in out.rglob("*.safetensors") if not file.stem.startswith("state")}
    started = {stem: info["config"]["start_from"] for stem, info in trained.items() if "config" in info}
    if name == "train-strsr":
        assert set(started) == {"my-strsr-stage1", "my-strsr", "my-strsr-adapter_00001_"}
        assert started["my-strsr-stage1"] == "" and "my-strsr-stage1-" in started["my-strsr"]
        assert "alignsr/my-strsr_00001_.png" in written and sum(file.endswith("curve.png") for file in written) == 2
        assert Image.open(out / "alignsr" / "my-strsr_00001_.png").size == (68 * 4, 72 * 4)
        (saved,) = result.outputs["20"]["text"]
        assert saved.endswith("my-strsr-adapter_00001_.safetensors")
        assert trained["my-strsr-adapter_00001_"]["conditioning"] == "vlm"
        return
    methods = ("full", "without-vlm", "without-embedding", "without-gan", "without-fdl")
    assert set(started) == {f"strsr-{m}" for m in methods} | {f"strsr-{m}-stage1" for m in methods[:4]}
    assert {f"strsr-{m}": trained[f"strsr-{m}"]["conditioning"] for m in methods} == {
        **dict.fromkeys(started.keys() & {f"strsr-{m}" for m in methods}, "vlm"),
        "strsr-without-vlm": "text",
        "strsr-without-embedding": "empty",
    }
    assert "strsr-full-stage1-" in started["strsr-without-fdl"] and not any("gan-critic" in stem for stem in trained)
    record = read(out / "alignsr" / "strsr-ablation_00001_.json")
    rows = [image["name"] for image in record["scores"]["images"]]
    assert rows == ["full", "without VLM", "without embedding", "without GAN", "without FDL"]
    assert len({image["scores"]["psnr_y"] for image in record["scores"]["images"]}) == 5, "five different results"


def check_aesop(name, result, written, out):
    trained = {file.stem: weights.read_info(file) for file in out.rglob("*.safetensors") if not file.stem.startswith("state")}
    if name == "evaluate-folders":
        (record,) = [read(file) for file in result.files if file.suffix == ".json"]
        ldl, aesop = record["scores"]["methods"]
        assert (ldl["title"], aesop["title"]) == ("LDL", "AESOP") and ldl["mean"]["psnr_y"] < aesop["mean"]["psnr_y"]
        assert "published" in result.outputs["4"]["text"][0] and "AE-PSNR" in result.outputs["4"]["text"][0]
    elif name == "upscale-with-aesop":
        assert written == {"alignsr/aesop_00001_.png"} and '"scale": 4' in result.outputs["7"]["text"][0]
    elif name == "spectral-comparison":
        assert {f"alignsr/spectral-comparison_00001_.{end}" for end in ("csv", "json", "png")} <= written
        record = read(out / "alignsr" / "spectral-comparison_00001_.json")
        methods = ["lite-x4", "pixel-x4", "lite-real-x4"]
        assert [image["name"] for image in record["scores"]["images"]] == methods and len(record["pictures"]) == 2
        table = result.outputs["34"]["text"][0].splitlines()
        assert [line.split()[0] for line in table[2:7]] == [*methods, "input", "reference"]
        distances = {image["name"]: image["scores"]["lsd"] for image in record["scores"]["images"]}
        assert [float(line.split()[1]) for line in table[2:5]] == [pytest.approx(distances[name], abs=0.006) for name in methods]
    elif name == "view-autoencoder":
        assert written == {"alignsr/autoencoder_00001_.png"}
        assert json.loads(result.outputs["6"]["text"][0])[0].keys() == {"psnr_y", "high_frequency_kept", "out_of_range"}
    elif name == "aesop-ablation":
        wanted = {"ablation-ldl", *(f"ablation-{m}{end}" for m in "abc" for end in ("", "-autoencoder"))}
        assert wanted <= trained.keys()
        record = read(out / "alignsr" / "aesop-ablation_00001_.json")
        rows = [image["name"] for image in record["scores"]["images"]]
        assert rows == ["LDL", "(a) bicubic encoder", "(b) no LR term", "(c) AESOP"]
    else:
        name_of = {"pretrain-aesop-autoencoder": "my-aesop-autoencoder", "train-aesop": "my-aesop-rrdb"}
        info = trained[name_of.get(name, "my-aesop-real")]
        assert info["step"] == info["config"]["run"]["steps"] == 1
        assert any(file.endswith("curve.png") for file in written)
