"""The workflows of StrSR: inference with the released adapters, training in two stages, and the paper's ablation."""

from typing import Any

from graph_parts import EXAMPLE, ONE_GPU, Graph, node, scored

CONFIG = "strsr-flux2-klein"
PICTURES = "strsr-pictures"
PROMPT = "a sharp photograph full of fine detail"
MODEL, LORA, RUN = 1, 5, 7  # outputs of One-Step Trainer
AS_TRAINED = {"mode": "parity", "scope": "tile"}  # what conditioning.is_parity trains: two resizes, each crop told about itself


def upscale_with_strsr(backbone: str, lora: str, name: str) -> Graph:
    return {
        "1": node("LoadImage", image=EXAMPLE),
        "2": node("AlignSRLoadOneStepBackbone", backbone=backbone),
        "3": node("AlignSRLoadLoRA", lora_name=lora),
        "4": node("AlignSRMergeLoRA", model=["2", 0], lora=["3", 0], strength=1.0),
        "5": node("AlignSRLoadVLM", vlm_name="auto"),
        "6": node("AlignSRVLMEncode", vlm=["5", 0], model=["4", 0], image=["1", 0], mode="best"),
        "7": node("AlignSROneStepSR", model=["4", 0], image=["1", 0], scale=4, conditioning=["6", 0], mode="best"),
        "8": node("SaveImage", images=["7", 0], filename_prefix=f"alignsr/{name}"),
        "9": node("AlignSRCompare", result=["7", 0], input=["1", 0], labels="input (bicubic), StrSR"),
        "10": node("PreviewImage", "Comparison", images=["9", 0]),
        "11": node("PreviewAny", "What was done", source=["7", 2]),
    }


def losses(start: int) -> Graph:
    """The chain of stage 1, `start` to `start + 2`, and of stage 2, `start + 3`: the last node of a stage is its chain."""
    first, second, third, last = (str(start + k) for k in range(4))
    return {
        first: node("AlignSRPixelLoss", weight=1.0, kind="l1", model_range=True),
        second: node("AlignSRLPIPSLoss", weight=3.0, loss=[first, 0]),
        third: node("AlignSRRaGANLoss", weight=0.1, reference="global", r1_weight=10.0, loss=[second, 0]),
        last: node("AlignSRFDLLoss", weight=0.002, features="vgg19", projections=256, loss=[third, 0]),
    }


def train_strsr() -> Graph:
    given = {"data_folder": PICTURES, "overrides": ONE_GPU}
    graph = {
        "1": node("AlignSRLoadDiscriminator", features="clip", model_name="auto", hidden=512),
        **losses(2),
        "6": node(
            "AlignSROneStepTrainer",
            "Stage 1",
            config=f"{CONFIG}-stage1",
            out_name="my-strsr-stage1",
            loss=["4", 0],
            discriminator=["1", 0],
            **given,
        ),
        "7": node(
            "AlignSROneStepTrainer",
            "Stage 2",
            config=f"{CONFIG}-stage2",
            out_name="my-strsr",
            loss=["5", 0],
            discriminator=["1", 0],
            start_from=["6", RUN],
            **given,
        ),
        "8": node("AlignSRSaveLoRA", lora=["7", LORA], filename_prefix="alignsr/my-strsr-adapter"),
        "9": node("LoadImage", image=EXAMPLE),
        "10": node("AlignSRLoadVLM", vlm_name="auto"),
    }
    for stage, (trainer, told, result) in enumerate((("6", "11", "12"), ("7", "13", "14")), 1):
        graph[told] = node(
            "AlignSRVLMEncode",
            f"Stage {stage}: conditions",
            vlm=["10", 0],
            model=[trainer, MODEL],
            image=["9", 0],
            **AS_TRAINED,
        )
        graph[result] = node(
            "AlignSROneStepSR",
            f"Stage {stage}: result",
            model=[trainer, MODEL],
            image=["9", 0],
            scale=4,
            conditioning=[told, 0],
        )
    return graph | {
        "15": node("SaveImage", images=["14", 0], filename_prefix="alignsr/my-strsr"),
        "16": node(
            "AlignSRCompare",
            result=["12", 0],
            result_2=["14", 0],
            input=["9", 0],
            labels="input (bicubic), stage 1, stage 2",
        ),
        "17": node("PreviewImage", "Comparison", images=["16", 0]),
        "18": node("PreviewImage", "Loss curves of stage 1", images=["6", 2]),
        "19": node("PreviewImage", "Loss curves of stage 2", images=["7", 2]),
        "20": node("PreviewAny", "Adapter", source=["8", 0]),
    }


ABLATION = (  # title, name of the results, what both stages override, whether there is a game, whether stage 2 has the FDL
    ("full", "strsr-full", "", True, True),
    ("without VLM", "strsr-without-vlm", f'conditioning.kind="text"\nconditioning.prompt="{PROMPT}"', True, True),
    ("without embedding", "strsr-without-embedding", 'conditioning.kind="empty"', True, True),
    ("without GAN", "strsr-without-gan", "", False, True),
    ("without FDL", "strsr-without-fdl", "", True, False),  # goes on from the stage 1 of the full method
)


def strsr_ablation() -> Graph:
    """Method number m = 0..4 has stage 1 at 2m (without FDL: that at 20), stage 2 at 3m, conditions at 4m, its result at 5m."""
    graph: Graph = {
        "1": node("LoadImage", "Test picture", image=EXAMPLE),
        "2": node("AlignSRDegrade", image=["1", 0], preset="strsr", seed=0, scale=4, target="plain"),
        "3": node("AlignSRLoadVLM", vlm_name="auto"),
        "4": node("AlignSRLoadDiscriminator", features="clip", model_name="auto", hidden=512),
        **losses(10),
        "14": node("AlignSRFDLLoss", "FDL Loss, no GAN", weight=0.002, features="vgg19", projections=256, loss=["11", 0]),
    }
    for m, (title, name, told, has_game, has_fdl) in enumerate(ABLATION):
        critic: dict[str, Any] = {"discriminator": ["4", 0]} if has_game else {}
        given = {"data_folder": PICTURES, "overrides": "\n".join(filter(None, (ONE_GPU, told))), **critic}
        first, second = ("12", "13") if has_game else ("11", "14")
        start = f"2{m}" if has_fdl else "20"
        if has_fdl:
            graph[start] = node(
                "AlignSROneStepTrainer",
                f"{title}: stage 1",
                config=f"{CONFIG}-stage1",
                out_name=f"{name}-stage1",
                loss=[first, 0],
                **given,
            )
        graph[f"3{m}"] = node(
            "AlignSROneStepTrainer",
            f"{title}: stage 2",
            config=f"{CONFIG}-stage2",
            out_name=name,
            loss=[second if has_fdl else first, 0],
            start_from=[start, RUN],
            **given,
        )
        model, what = [f"3{m}", MODEL], f"{title}: conditions"
        graph[f"4{m}"] = {
            "without VLM": node("AlignSRTextEncode", what, model=model, text=PROMPT),
            "without embedding": node("AlignSREmptyConditioning", what, model=model),
        }.get(title, node("AlignSRVLMEncode", what, vlm=["3", 0], model=model, image=["2", 0], **AS_TRAINED))
        graph[f"5{m}"] = node(
            "AlignSROneStepSR", f"{title}: result", model=model, image=["2", 0], scale=4, conditioning=[f"4{m}", 0]
        )
    results = [f"5{m}" for m in range(len(ABLATION))]
    return graph | scored(60, results, [title for title, *_ in ABLATION], "strsr-ablation")


STRSR = (
    "One Euler step of a large diffusion transformer from the enlarged input, told what a vision-language model saw.\n\n"
    "Needs, each with `alignsr models download NAME`:\n\n"
)
STRSR_HINTS = (
    "\n\nThe language model, the autoencoder and the transformer take turns on the GPU. With less memory: `precision` 8bit or "
    "4bit, `tile_px` 768.\n\n"
    "- as the released scripts do it: `mode` parity in **VLM Encode** and **One-Step SR**, any `seed`\n"
    "- closer to the input: `strength` below 1, in **One-Step SR** or **Merge LoRA**; `color_fix` wavelet keeps its colours\n"
    "- the adapters are the authors', for non-commercial use"
)
FILES = (
    f"- sharp pictures (Aesthetic-4K, LSDIR; sides of 1024 px or more) in `input/{PICTURES}`; the last 100 by name are kept for "
    "validation\n- `alignsr models download flux2-klein` and `qwen3-vl`, 8 and 9 GB\n- in `models/alignsr`: "
    "`open_clip_pytorch_model.bin` of laion/CLIP-convnext_xxlarge-laion2B-s34B-b82K-augreg-soup (3.4 GB), "
    "`vgg16-397923af.pth` and `vgg19-dcbb9e9d.pth` (torchvision), `LPIPS_v0.1_vgg-a78928a0.pth`\n\n"
)

STRSR_GRAPHS: dict[str, tuple[Graph, str]] = {
    "upscale-with-strsr-flux": (
        upscale_with_strsr("flux2_klein", "StrSR-flux", "strsr-flux"),
        f"## Upscale with StrSR on FLUX.2 [klein]\n\n{STRSR}- `flux2-klein`, 8 GB, or the single files in "
        f"`models/diffusion_models` and `models/vae`\n- `StrSR-flux`, 1.2 GB\n- `qwen3-vl`, 9 GB{STRSR_HINTS}",
    ),
    "upscale-with-strsr-z": (
        upscale_with_strsr("z_image", "StrSR-zimage", "strsr-z"),
        f"## Upscale with StrSR on Z-Image-Turbo\n\n{STRSR}- `z-image`, 12 GB or more, or the single files in "
        f"`models/diffusion_models` and `models/vae`\n- `StrSR-zimage`, 2.4 GB\n- `qwen3-vl`, 9 GB{STRSR_HINTS}",
    ),
    "train-strsr": (
        train_strsr(),
        "## Train StrSR in two stages\n\nSettings of the paper on FLUX.2 [klein]: 40,000 steps by L1, LPIPS and a relativistic "
        "GAN, then 20,000 with the Frequency Distribution Loss on top, optimisers and all. The result is saved as an adapter, "
        "and both stages are compared on a picture.\n\nNeeds a large GPU, days, and:\n\n"
        f"{FILES}Interrupt at any time and queue again: it goes on.\n\n"
        "- Z-Image: config `strsr-z-image-stage1` and `-stage2`\n"
        "- less memory: `optimizer.bits=8`, `data.gt_patch_px=512` in `overrides`\n"
        "- a stage 1 of yours: its folder in `start_from` of **Stage 2**, and no **Stage 1**\n"
        f"- `{ONE_GPU}` makes the published batch of 4 GPUs on one",
    ),
    "strsr-ablation": (
        strsr_ablation(),
        "## Ablation of StrSR\n\nThe full method, and four with one thing left out: the vision-language model (a fixed prompt "
        "through the base model's own text encoder instead), every embedding (zeros), the GAN, the FDL. Without FDL goes on "
        "from the stage 1 of the full method. The results of one picture are compared on a sheet and in a table, in "
        "`output/alignsr`.\n\nNeeds a large GPU, weeks, and:\n\n"
        f"{FILES}The text encoder is that of the diffusers folder `FLUX.2-klein-base-4B`. Interrupt at any time and queue again: "
        "it goes on.\n\n"
        "- plain instead of relativistic GAN, the paper's other row: `reference` none in **RaGAN Loss**\n"
        "- the paper's metrics: `maniqa, musiq, qalign` in **IQA Reward**; they need their weights",
    ),
}
