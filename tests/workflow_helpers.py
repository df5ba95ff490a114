"""The training workflows made small, and those of AESOP joined: for the runner's tests and for those in a real server."""

import json
from typing import Any

SHORT = "run.preview_every=1000\nrun.validate_every=0\ndata.holdout=0\ndata.workers=0"
TINY_TRAINERS: dict[str, dict[str, str]] = {  # workflow -> training node -> its tiny config
    "pretrain-aesop-autoencoder": {"1": "tiny-aesop-autoencoder"},
    "train-aesop": {"6": "tiny-aesop-rrdb-128"},
    "train-aesop-real-world": {"5": "tiny-aesop-real"},
    "aesop-ablation": {
        "11": "tiny-aesop-autoencoder-bicubic",
        "12": "tiny-aesop-autoencoder-no-lr-term",
        "13": "tiny-aesop-autoencoder",
        "30": "tiny-ldl-rrdb-128",
        "31": "tiny-aesop-ablation-bicubic",
        "32": "tiny-aesop-ablation-no-lr-term",
        "33": "tiny-aesop-rrdb-128",
    },
}
TINY_STRSR: dict[str, dict[str, Any]] = {  # node -> inputs of both StrSR workflows; the adapters lie in models/loras
    "2": {"model_name": "tiny", "precision": "fp32"},
    "5": {"vlm_name": "tiny", "precision": "fp32"},
    "7": {"tile_px": 128, "overlap_px": 16},
    "9": {"panel_px": 100},
}
_TINY_MULTI = {"model_name": "tiny", "precision": "fp32"}
_TINY_TEXT = {"encoder_name": "tiny", "precision": "fp32"}
_TINY_SAMPLING = {"steps": 2, "tile_px": 128, "overlap_px": 16}
TINY_MULTI_STEP: dict[str, dict[str, dict[str, Any]]] = {  # workflow -> node -> inputs; ASASR's adapters lie in models/loras
    "upscale-with-asasr": {"2": _TINY_MULTI, "7": _TINY_SAMPLING, "9": {"panel_px": 100}},
    "upscale-with-dp2o-flux": {"2": _TINY_MULTI, "3": _TINY_TEXT, "5": _TINY_SAMPLING, "7": {"panel_px": 100}},
    "upscale-with-dp2o-sd2": {
        "2": _TINY_MULTI,
        "3": _TINY_TEXT,
        "4": _TINY_TEXT,
        "5": _TINY_SAMPLING,
        "7": {"panel_px": 100},
    },
}
_TINY_DRAWN = {"config": "tiny-dp2o-candidates-pixel", "overrides": ""}
_TINY_PAIRS = {"1": _TINY_DRAWN, "4": {"config": "tiny-dp2o-pixel", "overrides": "guard.pictures=0"}}
_TINY_SEEDS = _TINY_DRAWN | {"overrides": "sampling.candidates=3"}
TINY_DP2O: dict[str, dict[str, dict[str, Any]]] = {  # workflow -> node -> inputs
    "sample-score-curate": {"1": _TINY_DRAWN},
    "train-dp2o": {**_TINY_PAIRS, "6": {"steps": 2}, "8": {"panel_px": 100}},
    "compare-dp2o": {**_TINY_PAIRS, "5": _TINY_SEEDS, "6": _TINY_SEEDS},
}
TINY_ASASR: dict[str, str] = {  # workflow -> its comparison
    "train-asasr-sft": "6",
    "train-asasr-adversary": "6",
    "train-asasr-preferences": "6",
    "train-asasr": "10",
    "asasr-ablation": "30",
}
TINY_DISCRIMINATOR = {"features": "network", "model_name": "random", "hidden": 8}
TINY_FDL = {"features": "network", "features_file": "random", "projections": 4}
ONE_STEP = "data.gt_patch_px=64\ndata.pair_pool=0\noptimizer.learning_rate=1e-3"
TINY_STRSR_TRAINERS: dict[
    str, dict[str, dict[str, Any]]
] = {  # workflow -> node -> inputs, but for what its trainers have in common
    "train-strsr": {
        "1": TINY_DISCRIMINATOR,
        "3": {"vgg": "random"},
        "5": TINY_FDL,
        "10": {"vlm_name": "tiny", "precision": "fp32"},
        "16": {"panel_px": 100},
    },
    "strsr-ablation": {
        "3": {"vlm_name": "tiny", "precision": "fp32"},
        "4": TINY_DISCRIMINATOR,
        "11": {"weight": 0.0},  # VGG16 of random weights takes a second each time
        "13": TINY_FDL,
        "14": TINY_FDL,
        "41": {"encoder_name": "tiny", "precision": "fp32"},
        "60": {"panel_px": 100},
    },
}
STAGES = {  # a network that starts as interpolation, so that the last picture is the first one, enlarged
    "pretrain-aesop-autoencoder": {"1": {"config": "tiny-aesop-autoencoder-tiny", "overrides": f"{SHORT}\nrun.steps=2"}},
    "train-aesop": {
        "4": {"vgg": "random"},
        "6": {
            "overrides": SHORT,
            "config": """
recipe = "perceptual_gan"
[model]
architecture = "lite"
options = { features = 8, blocks = 1 }
[discriminator]
features = 4
[data]
gt_patch_px = 32
[run]
steps = 2
batch_size = 2
log_every = 1
""",
        },
    },
}
VGG = {"train-aesop": "4", "train-aesop-real-world": "3", "aesop-ablation": "4"}  # the node with VGG19


def tiny_inputs(workflow: str, data_folder: str = "training-pictures") -> dict[str, dict[str, Any]]:
    """Node id -> inputs that make a training workflow one step of tiny networks on tiny pictures."""
    nodes: dict[str, dict[str, Any]] = {
        node_id: {"config": config, "overrides": SHORT, "data_folder": data_folder}
        for node_id, config in TINY_TRAINERS[workflow].items()
    }
    return nodes | ({VGG[workflow]: {"vgg": "random"}} if workflow in VGG else {})


def tiny_sets(workflow: str) -> list[str]:
    """The same as `--set` takes it."""
    return as_sets(tiny_inputs(workflow))


def tiny_strsr_training(
    workflow: str, graph: dict[str, Any], data_folder: str = "training-pictures"
) -> dict[str, dict[str, Any]]:
    """Node id -> inputs that make a StrSR training workflow one step per stage of tiny networks; what a method changes stays."""
    nodes = dict(TINY_STRSR_TRAINERS[workflow])
    for node_id, entry in graph.items():
        if entry["class_type"] == "AlignSROneStepTrainer":
            kept = entry["inputs"]["overrides"].removeprefix("run.accumulation_steps=4")
            overrides = f"{SHORT}\n{ONE_STEP}{kept}"
            nodes[node_id] = {"config": f"tiny-{entry['inputs']['config']}", "overrides": overrides, "data_folder": data_folder}
    return nodes


def tiny_asasr_training(
    workflow: str, graph: dict[str, Any], data_folder: str = "training-pictures"
) -> dict[str, dict[str, Any]]:
    """Node id -> inputs that make a training workflow of ASASR one step per stage of tiny networks."""
    nodes: dict[str, dict[str, Any]] = {TINY_ASASR[workflow]: {"panel_px": 100}}
    for node_id, entry in graph.items():
        kind, given = entry["class_type"], entry["inputs"]
        if kind in ("AlignSRSFTTrainer", "AlignSRAdversaryTrainer", "AlignSRSobolevDPOTrainer"):
            overrides = f"{SHORT}\ndata.gt_patch_px=32"
            nodes[node_id] = {"config": f"tiny-{given['config']}", "overrides": overrides}
            nodes[node_id] |= {"data_folder": data_folder} if "data_folder" in given else {}
            if kind == "AlignSRAdversaryTrainer":
                nodes[node_id]["overrides"] = f"{overrides}\nartefacts.holdout=0"
        elif kind == "AlignSRArtefactFolder":
            nodes[node_id] = {"folder": "artefacts"}
        elif kind == "AlignSRMultiStepSR":
            nodes[node_id] = dict(_TINY_SAMPLING)
    return nodes


def as_sets(nodes: dict[str, dict[str, Any]]) -> list[str]:
    """The same as `--set` takes it."""
    return [f"{node_id}.{key}={value}" for node_id, inputs in nodes.items() for key, value in inputs.items()]


def tiny_strsr_sets() -> list[str]:
    """What makes a StrSR workflow small, as `--set` takes it."""
    return as_sets(TINY_STRSR)


def three_stages(pretrain: dict[str, Any], train: dict[str, Any], data_folder: str = "training-pictures") -> dict[str, Any]:
    """Both saved graphs in one, tiny: the second learns from the auto-encoder that the first trains, and upscales a picture."""
    joined: dict[str, Any] = {}
    for prefix, name, graph in (("p", "pretrain-aesop-autoencoder", pretrain), ("t", "train-aesop", train)):
        copy = json.loads(json.dumps(graph))
        for node_id, inputs in STAGES[name].items():
            given = inputs | ({"data_folder": data_folder} if "config" in inputs else {})
            assert given.keys() <= copy[node_id]["inputs"].keys()
            copy[node_id]["inputs"] |= given
        for node_id, entry in copy.items():
            links = {key: [prefix + value[0], value[1]] for key, value in entry["inputs"].items() if isinstance(value, list)}
            joined[prefix + node_id] = entry | {"inputs": entry["inputs"] | links}
    loader = next(node_id for node_id, entry in joined.items() if entry["class_type"] == "AlignSRAESOPAutoEncoder")
    trainer = next(node_id for node_id, entry in joined.items() if entry["class_type"] == "AlignSRTrainAutoEncoder")
    joined[loader]["inputs"]["path"] = [trainer, 0]
    return joined
