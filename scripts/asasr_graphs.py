"""The workflows that train ASASR: its three stages one by one and in one graph, and the paper's ablation."""

from typing import Any

from graph_parts import EXAMPLE, Graph, node, scored

CONFIG = "flux"
PICTURES, ARTEFACTS = "asasr-pictures", "asasr-artefacts"
SFT_FILE, ADVERSARY_FILE = "my-sft.safetensors", "my-adversary.safetensors"  # what stages 1 and 2 gave, in models/loras
ONE_GPU = "run.batch_size=1\nrun.accumulation_steps=512"  # the published 512 pairs per step, on one GPU
ONE_GPU_SFT = "run.batch_size=1\nrun.accumulation_steps=64"
MODEL, CURVE, LORA = 1, 2, 5  # outputs of the trainers
JOINED = 6  # of Sobolev DPO Trainer


def restored(model: list[Any], image: str, title: str = "") -> dict[str, Any]:
    return node("AlignSRMultiStepSR", title, model=model, image=[image, 0], scale=4, seed=0, color_fix="adain")


def sft_trainer(title: str = "") -> dict[str, Any]:
    return node(
        "AlignSRSFTTrainer", title, config=f"asasr-sft-{CONFIG}", data_folder=PICTURES, overrides=ONE_GPU_SFT, out_name="my-sft"
    )


def adversary_trainer(sft: list[Any] | None, artefacts: list[Any], overrides: str = ONE_GPU, title: str = "") -> dict[str, Any]:
    given = {"config": f"asasr-adversary-{CONFIG}", "overrides": overrides, "out_name": "my-adversary"}
    return node("AlignSRAdversaryTrainer", title, **given, **({} if sft is None else {"sft": sft}), artefacts=artefacts)


def policy_trainer(sft: list[Any] | None, adversary: list[Any] | None, title: str = "", **more: Any) -> dict[str, Any]:
    given = {"config": f"asasr-{CONFIG}", "data_folder": PICTURES, "overrides": ONE_GPU, "out_name": "my-asasr", **more}
    links = {name: link for name, link in (("sft", sft), ("adversary", adversary)) if link is not None}
    return node("AlignSRSobolevDPOTrainer", title, **given, **links)


def artefact_folder() -> dict[str, Any]:
    return node("AlignSRArtefactFolder", folder=ARTEFACTS)


def train_sft() -> Graph:
    return {
        "1": sft_trainer(),
        "2": node("AlignSRSaveLoRA", lora=["1", LORA], filename_prefix="alignsr/my-sft-adapter"),
        "3": node("LoadImage", image=EXAMPLE),
        "4": restored(["1", MODEL], "3"),
        "5": node("SaveImage", images=["4", 0], filename_prefix="alignsr/my-sft"),
        "6": node("AlignSRCompare", result=["4", 0], input=["3", 0], labels="input (bicubic), supervised"),
        "7": node("PreviewImage", "Comparison", images=["6", 0]),
        "8": node("PreviewImage", "Loss curve", images=["1", CURVE]),
    }


def train_adversary() -> Graph:
    return {
        "1": artefact_folder(),
        "2": adversary_trainer(None, ["1", 0], f'{ONE_GPU}\nmodel.adapter="{SFT_FILE}"'),
        "3": node("AlignSRSaveLoRA", lora=["2", LORA], filename_prefix="alignsr/my-adversary-adapter"),
        "4": node("LoadImage", image=EXAMPLE),
        "5": restored(["2", MODEL], "4"),
        "6": node("AlignSRCompare", result=["5", 0], input=["4", 0], labels="input (bicubic), the adversary"),
        "7": node("PreviewImage", "What it makes of a picture", images=["6", 0]),
        "8": node("PreviewImage", "Loss curve", images=["2", CURVE]),
        "9": node("PreviewImage", "What it imitates", images=["1", 1]),
    }


def train_preferences() -> Graph:
    files = f'{ONE_GPU}\nmodel.adapter="{SFT_FILE}"\nadversary.adapter="{ADVERSARY_FILE}"'
    return {
        "1": policy_trainer(None, None, overrides=files),
        "2": node("AlignSRSaveLoRA", lora=["1", JOINED], filename_prefix="alignsr/my-asasr-adapter"),
        "3": node("LoadImage", image=EXAMPLE),
        "4": restored(["1", MODEL], "3"),
        "5": node("SaveImage", images=["4", 0], filename_prefix="alignsr/my-asasr"),
        "6": node("AlignSRCompare", result=["4", 0], input=["3", 0], labels="input (bicubic), aligned"),
        "7": node("PreviewImage", "Comparison", images=["6", 0]),
        "8": node("PreviewImage", "Curves", images=["1", CURVE]),
    }


def train_asasr() -> Graph:
    return {
        "1": sft_trainer("Stage 1: supervised"),
        "2": artefact_folder(),
        "3": adversary_trainer(["1", LORA], ["2", 0], title="Stage 2: adversary"),
        "4": policy_trainer(["1", LORA], ["3", LORA], "Stage 3: preferences"),
        "5": node("AlignSRSaveLoRA", lora=["4", JOINED], filename_prefix="alignsr/my-asasr-adapter"),
        "6": node("LoadImage", image=EXAMPLE),
        "7": restored(["1", MODEL], "6", "After stage 1"),
        "8": restored(["4", MODEL], "6", "After stage 3"),
        "9": node("SaveImage", images=["8", 0], filename_prefix="alignsr/my-asasr"),
        "10": node(
            "AlignSRCompare",
            result=["7", 0],
            result_2=["8", 0],
            input=["6", 0],
            labels="input (bicubic), supervised, aligned",
        ),
        "11": node("PreviewImage", "Comparison", images=["10", 0]),
        "12": node("PreviewImage", "Curve of stage 1", images=["1", CURVE]),
        "13": node("PreviewImage", "Curve of stage 2", images=["3", CURVE]),
        "14": node("PreviewImage", "Curves of stage 3", images=["4", CURVE]),
    }


ABLATION = (  # title, config, whether an adversary makes the losers: Table 3, first row to third; the fourth is stage 1 itself
    ("Sobolev, adversary", f"asasr-{CONFIG}", True),
    ("Euclidean, adversary", "asasr-ablation-euclidean", True),
    ("Sobolev, input as loser", "asasr-ablation-lq-loser", False),
)


def asasr_ablation() -> Graph:
    """Method m = 0..2 is trained at 1m; its result is at 2m, that of supervised training alone at 23."""
    graph: Graph = {
        "1": node("LoadImage", "Test picture", image=EXAMPLE),
        "2": node("AlignSRDegrade", image=["1", 0], preset="asasr", seed=0, scale=4, target="plain"),
        "3": sft_trainer("Supervised"),
        "4": artefact_folder(),
        "5": adversary_trainer(["3", LORA], ["4", 0], title="Adversary"),
    }
    for m, (title, config, has_adversary) in enumerate(ABLATION):
        adversary = ["5", LORA] if has_adversary else None
        graph[f"1{m}"] = policy_trainer(["3", LORA], adversary, title, config=config, out_name=f"asasr-ablation-{m + 1}")
        graph[f"2{m}"] = restored([f"1{m}", MODEL], "2", f"{title}: result")
    graph["23"] = restored(["3", MODEL], "2", "supervised alone: result")
    titles = (*(title for title, *_ in ABLATION), "supervised alone")
    return graph | scored(30, [f"2{m}" for m in range(4)], [title.replace(",", " and") for title in titles], "asasr-ablation")


BASE = "- `alignsr models download flux1` and `flux1-text` (needed once, for the empty prompt); accept FLUX.1's licence first\n"
PHOTOS = f"- sharp pictures (DIV2K, LSDIR) in `input/{PICTURES}`; the last by name are kept for validation\n"
OTHERS = (
    f"- `input/{ARTEFACTS}` with a folder `lq` of inputs and one folder per method (Real-ESRGAN, SeeSR, SUPIR) with its results "
    "under the same names, four times as large\n"
)
HINTS = (
    "\nInterrupt at any time and queue again: it goes on. A finished stage is found on disk.\n\n"
    "- Stable Diffusion: configs ending in `-sd15` or `-sdxl`\n"
    "- for a processor: configs ending in `-pixel`; they train the bundled `pixel-flow-x4`\n"
    "- to try it out in seconds: `tiny-` before a config's name"
)
ASASR_GRAPHS: dict[str, tuple[Graph, str]] = {
    "train-asasr": (
        train_asasr(),
        "## Train ASASR in three stages\n\nAn adapter learns to restore; a second one learns the artefacts of other methods; "
        "a third one is taught by preferences to stay away from them, with errors weighed by frequency. The first and the third "
        f"are saved as one adapter.\n\nNeeds a large GPU, days, and:\n\n{PHOTOS}{OTHERS}{BASE}{HINTS}",
    ),
    "train-asasr-sft": (
        train_sft(),
        "## ASASR, stage 1: supervised training\n\nFLUX.1 [dev] learns to restore: an adapter of rank 64, plain flow matching. "
        f"Copy the saved file to `models/loras` for the next stages.\n\nNeeds:\n\n{PHOTOS}{BASE}{HINTS}",
    ),
    "train-asasr-adversary": (
        train_adversary(),
        "## ASASR, stage 2: the adversary\n\nOn top of the supervised adapter, another one of rank 16 learns to restore as other "
        f"methods do, artefacts included.\n\nNeeds the adapter of stage 1 as "
        f"`models/loras/{SFT_FILE}`, and:\n\n{OTHERS}{BASE}{HINTS}",
    ),
    "train-asasr-preferences": (
        train_preferences(),
        "## ASASR, stage 3: preferences\n\nThe adversary makes a loser of every ground truth, and the policy, a third adapter of "
        "rank 16, learns to tell them apart in a Sobolev norm. Supervised adapter and policy are saved as one.\n\nNeeds the "
        f"adapters of stages 1 and 2 as `{SFT_FILE}` and `{ADVERSARY_FILE}` in `models/loras`, and:\n\n"
        f"{PHOTOS}{BASE}{HINTS}\n"
        '- `order` 0 is plain DPO; `adversary.mode="closed_form"` in `overrides` needs no adversary',
    ),
    "asasr-ablation": (
        asasr_ablation(),
        "## Ablation of ASASR\n\nThe rows of the paper's Table 3, trained from one supervised adapter and one adversary: the "
        "full method, Euclidean instead of Sobolev, the enlarged input as loser instead of the adversary's, and supervised "
        "training alone. The results of one picture are compared on a sheet and in a table, in `output/alignsr`.\n\nNeeds a "
        f"large GPU, days, and:\n\n{PHOTOS}{OTHERS}{BASE}{HINTS}\n- sweeps of s and beta: configs `asasr-sweep-...`",
    ),
}
