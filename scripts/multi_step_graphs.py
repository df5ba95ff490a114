"""The workflows of restoration in many steps: ASASR's released adapters, DP2O-SR's released control branches."""

from graph_parts import EXAMPLE, Graph, node

SR_ADAPTER = "ASASR/sr_lora/pytorch_lora_weights_v2.safetensors"
POLICY = "ASASR/dpo_lora/adapter_model.safetensors"
NEGATIVE = "dotted, noise, blur, lowres, smooth"


def upscale_with_asasr() -> Graph:
    return {
        "1": node("LoadImage", image=EXAMPLE),
        "2": node("AlignSRLoadMultiStepBackbone", backbone="flux1", control_name="none"),
        "3": node("AlignSRLoadLoRA", "Super-resolution adapter", lora_name=SR_ADAPTER),
        "4": node("AlignSRMergeLoRA", model=["2", 0], lora=["3", 0], strength=1.0),
        "5": node("AlignSRLoadLoRA", "Policy", lora_name=POLICY),
        "6": node("AlignSRMergeLoRA", model=["4", 0], lora=["5", 0], strength=1.0),
        "7": node("AlignSRMultiStepSR", model=["6", 0], image=["1", 0], scale=4, steps=28, seed=0, color_fix="adain"),
        "8": node("SaveImage", images=["7", 0], filename_prefix="alignsr/asasr"),
        "9": node("AlignSRCompare", result=["7", 0], input=["1", 0], labels="input (bicubic), ASASR"),
        "10": node("PreviewImage", "Comparison", images=["9", 0]),
        "11": node("PreviewAny", "What was done", source=["7", 2]),
    }


def upscale_with_dp2o(backbone: str, steps: int) -> Graph:
    is_guided = backbone == "sd2"
    told = {"conditioning": ["3", 0]} | ({"negative": ["4", 0]} if is_guided else {})
    graph = {
        "1": node("LoadImage", image=EXAMPLE),
        "2": node("AlignSRLoadMultiStepBackbone", backbone=backbone, control_name="auto"),
        "3": node("AlignSRTextEncode", "Tags", model=["2", 0], text=""),
    }
    if is_guided:
        graph["4"] = node("AlignSRTextEncode", "Stay away from", model=["2", 0], text=NEGATIVE)
    return graph | {
        "5": node("AlignSRMultiStepSR", model=["2", 0], image=["1", 0], scale=4, steps=steps, seed=0, color_fix="adain", **told),
        "6": node("SaveImage", images=["5", 0], filename_prefix=f"alignsr/dp2o-{backbone}"),
        "7": node("AlignSRCompare", result=["5", 0], input=["1", 0], labels="input (bicubic), DP2O-SR"),
        "8": node("PreviewImage", "Comparison", images=["7", 0]),
        "9": node("PreviewAny", "What was done", source=["5", 2]),
    }


HINTS = (
    "\n\nAnother `seed` gives another picture. The text encoders are needed once, for the prompts in this graph; these are then "
    "found in `~/.cache/alignsr/prompts`.\n\n"
    "- less memory: `precision` 8bit (FLUX.1 in 24 GB) or 4bit; `tile_px` 512\n"
    "- several results of one picture: repeat it as a batch, `seeds` count up\n"
)
FLUX1 = (
    "- `flux1`, 24 GB, or the single files in `models/diffusion_models` and `models/vae`; accept its non-commercial licence on "
    "its page first\n- `flux1-text`, 10 GB, or `clip_l.safetensors` and `t5xxl_fp16.safetensors` in `models/text_encoders`\n"
)
NEEDS = "Needs, with `alignsr models download NAME`:\n\n"
DRIVE = "`alignsr models list` says from which page, as `models/controlnet/"

MULTI_STEP_GRAPHS: dict[str, tuple[Graph, str]] = {
    "upscale-with-asasr": (
        upscale_with_asasr(),
        "## Upscale with ASASR\n\nFLUX.1 [dev] sees the enlarged picture as additional tokens. One adapter makes it restore, the "
        f"other one was aligned by Sobolev preference optimisation; 28 steps.\n\n{NEEDS}{FLUX1}- `ASASR`, 1.1 GB, for "
        f"non-commercial use{HINTS}- before alignment: strength 0 in the second **Merge LoRA**",
    ),
    "upscale-with-dp2o-flux": (
        upscale_with_dp2o("flux1", 25),
        "## Upscale with DP2O-SR on FLUX.1\n\nA control branch beside the stock FLUX.1 [dev], aligned by perceptual preferences; "
        f"25 steps. Put tags of the picture into **Tags**, commas between, or leave it empty.\n\n{NEEDS}{FLUX1}- `dp2o-flux`: "
        f"{DRIVE}dp2o-flux.safetensors`{HINTS}- before alignment: `c-flux.safetensors` as `control_name`",
    ),
    "upscale-with-dp2o-sd2": (
        upscale_with_dp2o("sd2", 50),
        "## Upscale with DP2O-SR on Stable Diffusion 2\n\nA control branch beside the stock model, aligned by perceptual "
        "preferences; 50 ancestral steps with guidance 3.5. Put tags of the picture into **Tags**, commas between, or leave it "
        f"empty.\n\nNeeds:\n\n- `sd2` and `dp2o-sd2`: {DRIVE}dp2o-sd2.safetensors` and `models/diffusers/stable-diffusion-2-base`"
        f"{HINTS}- faster: `sampler` dpm, 25 `steps`\n- before alignment: `c-sd2.safetensors` as `control_name`",
    ),
}
