"""Loss nodes of one-step training: LPIPS, the relativistic game over all levels of a critic, FDL, and the grid loss."""

from typing import Any

from ..core.losses.frequency import FDL_PATCH, FDL_PROJECTIONS, GRID_VISIBLE
from ..core.losses.lpips import LPIPS_FILE, VGG16_FILE
from .losses import LOSS, OUTPUT_TOOLTIP, Chain, chain_input, extend, weight

FEATURES = ("vgg19", "clip", "network")
REFERENCES = ("global", "average", "paired", "none")


def precision(network: str) -> tuple[list[str], dict[str, Any]]:
    """The widget of a frozen network's number format."""
    tooltip = f"Number format inside {network}. bf16 is faster on a GPU and rounds the loss."
    return (["fp32", "bf16"], {"default": "fp32", "advanced": True, "tooltip": tooltip})


class LPIPSLoss:
    """Node AlignSRLPIPSLoss."""

    CATEGORY = "AlignSR/losses"
    DESCRIPTION = (
        "Learned perceptual distance (LPIPS with VGG16). Needs two files in models/alignsr; the trainer says where to get them "
        "when they are missing."
    )
    FUNCTION = "add"
    RETURN_TYPES = (LOSS,)
    RETURN_NAMES = ("loss",)
    OUTPUT_TOOLTIPS = (OUTPUT_TOOLTIP,)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "weight": weight(3.0, "StrSR: 3."),
                "vgg": (
                    "STRING",
                    {
                        "default": VGG16_FILE,
                        "advanced": True,
                        "tooltip": "File name in models/alignsr, or path, of torchvision's VGG16. random: untrained, to try a "
                        "graph out.",
                    },
                ),
                "linear": (
                    "STRING",
                    {
                        "default": LPIPS_FILE,
                        "advanced": True,
                        "tooltip": "File name in models/alignsr, or path, of LPIPS's channel weights; not read with vgg random.",
                    },
                ),
                "precision": precision("VGG16"),
            },
            "optional": chain_input(),
        }

    def add(
        self,
        weight: float = 3.0,
        vgg: str = VGG16_FILE,
        linear: str = LPIPS_FILE,
        precision: str = "fp32",
        loss: Chain | None = None,
    ) -> tuple[Chain]:
        return extend(loss, "lpips", {"weight": weight, "vgg": vgg, "linear": linear, "precision": precision})


class RaGANLoss:
    """Node AlignSRRaGANLoss."""

    CATEGORY = "AlignSR/losses"
    DESCRIPTION = (
        "StrSR's adversarial loss: a critic judges patches of several sizes and the whole picture, each relative to the other "
        "side. For One-Step Trainer, with Load Discriminator; GAN Loss is the one for Train Perceptual SR."
    )
    FUNCTION = "add"
    RETURN_TYPES = (LOSS,)
    RETURN_NAMES = ("loss",)
    OUTPUT_TOOLTIPS = (OUTPUT_TOOLTIP,)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "weight": weight(0.1, "StrSR: 0.1. More gives more texture and more invention."),
                "reference": (
                    list(REFERENCES),
                    {
                        "default": "global",
                        "tooltip": "What a judgement is compared with. global: the mean over batch and places (paper). average: "
                        "over the batch at each place. paired: the picture's own counterpart (the released code at batch 1). "
                        "none: a plain loss, the paper's ablation.",
                    },
                ),
                "span": (
                    ["all", "process"],
                    {
                        "default": "all",
                        "advanced": True,
                        "tooltip": "Where the mean of global is taken when several processes train: over all of them, or over "
                        "each its own batch.",
                    },
                ),
                "factor": (
                    "FLOAT",
                    {
                        "default": 0.5,
                        "min": 0.0,
                        "max": 10.0,
                        "step": 0.1,
                        "advanced": True,
                        "tooltip": "Scale of both players' loss: 0.5 in the released code, 1 in the paper's formula.",
                    },
                ),
                "r1_weight": (
                    "FLOAT",
                    {
                        "default": 10.0,
                        "min": 0.0,
                        "max": 1000.0,
                        "step": 0.5,
                        "tooltip": "Weight of the critic's penalty for judging a slightly noisy photograph differently (StrSR: "
                        "10). 0 turns it off.",
                    },
                ),
                "r1_sigma": (
                    "FLOAT",
                    {
                        "default": 0.005,
                        "min": 0.0,
                        "max": 1.0,
                        "step": 0.001,
                        "round": 0.00001,
                        "advanced": True,
                        "tooltip": "Strength of that noise, on pictures in [-1, 1].",
                    },
                ),
                "r1_noise": (
                    ["gaussian", "uniform"],
                    {
                        "default": "gaussian",
                        "advanced": True,
                        "tooltip": "gaussian: as in the paper. uniform: between 0 and r1_sigma, as in the released code.",
                    },
                ),
            },
            "optional": chain_input(),
        }

    def add(
        self,
        weight: float = 0.1,
        reference: str = "global",
        span: str = "all",
        factor: float = 0.5,
        r1_weight: float = 10.0,
        r1_sigma: float = 0.005,
        r1_noise: str = "gaussian",
        loss: Chain | None = None,
    ) -> tuple[Chain]:
        game = {"weight": weight, "reference": reference, "span": span, "factor": factor}
        return extend(loss, "ragan", game | {"r1_weight": r1_weight, "r1_sigma": r1_sigma, "r1_noise": r1_noise})


class FDLLoss:
    """Node AlignSRFDLLoss."""

    CATEGORY = "AlignSR/losses"
    DESCRIPTION = (
        "Frequency Distribution Loss: compares how amplitudes and phases of a network's features are distributed, whatever lies "
        "where. StrSR adds it in stage 2."
    )
    FUNCTION = "add"
    RETURN_TYPES = (LOSS,)
    RETURN_NAMES = ("loss",)
    OUTPUT_TOOLTIPS = (OUTPUT_TOOLTIP,)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "weight": weight(0.002, "StrSR: 0.002, tuned on pictures in [-1, 1]; see model_range."),
                "features": (
                    list(FEATURES),
                    {
                        "default": FEATURES[0],
                        "tooltip": "Whose features. vgg19: as published. clip: OpenCLIP's ConvNeXt. network: one of ours, such "
                        "as lite-x4, which is bundled.",
                    },
                ),
                "features_file": (
                    "STRING",
                    {
                        "default": "",
                        "advanced": True,
                        "tooltip": "File name in models/alignsr, or path. Empty: the published file, lite-x4 for network. "
                        "random: untrained, to try a graph out.",
                    },
                ),
                "projections": (
                    "INT",
                    {
                        "default": FDL_PROJECTIONS,
                        "min": 1,
                        "max": 4096,
                        "tooltip": "Random filters per level. Fewer are faster and measure less exactly.",
                    },
                ),
                "patch": (
                    "INT",
                    {
                        "default": FDL_PATCH,
                        "min": 1,
                        "max": 31,
                        "step": 2,
                        "advanced": True,
                        "tooltip": "Side of a filter in frequency bins, odd.",
                    },
                ),
                "phase_weight": (
                    "FLOAT",
                    {
                        "default": 1.0,
                        "min": 0.0,
                        "max": 100.0,
                        "step": 0.1,
                        "tooltip": "Weight of the phases beside the amplitudes. 0: amplitudes alone.",
                    },
                ),
                "model_range": (
                    "BOOLEAN",
                    {
                        "default": False,
                        "advanced": True,
                        "tooltip": "On: pictures in [-1, 1] go in, as in the released training. Off: [0, 1], what VGG19 expects. "
                        "The log of step 1 has the loss both ways.",
                    },
                ),
                "projection_seed": (
                    "INT",
                    {
                        "default": 0,
                        "min": 0,
                        "max": 2**31 - 1,
                        "advanced": True,
                        "tooltip": "Of the random filters, which stay the same for the whole run.",
                    },
                ),
                "precision": precision("the features"),
            },
            "optional": chain_input(),
        }

    def add(
        self,
        weight: float = 0.002,
        features: str = FEATURES[0],
        features_file: str = "",
        projections: int = FDL_PROJECTIONS,
        patch: int = FDL_PATCH,
        phase_weight: float = 1.0,
        model_range: bool = False,
        projection_seed: int = 0,
        precision: str = "fp32",
        loss: Chain | None = None,
    ) -> tuple[Chain]:
        options = {
            "weight": weight,
            "features": {"kind": features, "weights": features_file.strip()},
            "projections": projections,
            "patch": patch,
            "phase_weight": phase_weight,
            "model_range": model_range,
            "seed": projection_seed,
            "precision": precision,
        }
        return extend(loss, "fdl", options)


class GridLoss:
    """Node AlignSRGridLoss."""

    CATEGORY = "AlignSR/losses"
    DESCRIPTION = (
        "Punishes what repeats with the transformer's patch and is not in the photograph: the grid that one-step transformers "
        "leave. Ours, not part of StrSR."
    )
    FUNCTION = "add"
    RETURN_TYPES = (LOSS,)
    RETURN_NAMES = ("loss",)
    OUTPUT_TOOLTIPS = (OUTPUT_TOOLTIP,)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "weight": weight(0.01, "No published value; 0.01 is where to start."),
                "period_px": (
                    "INT",
                    {
                        "default": 16,
                        "min": 2,
                        "max": 256,
                        "tooltip": "Side of what one token covers, in pixels of the result: 16 for FLUX.2 and Z-Image, patch_px "
                        "for pixel.",
                    },
                ),
                "visible": (
                    "FLOAT",
                    {
                        "default": GRID_VISIBLE,
                        "min": 0.000001,
                        "max": 1.0,
                        "step": 0.001,
                        "round": 0.000001,
                        "advanced": True,
                        "tooltip": "Strength of a grid that can just be seen (standard deviation, on [0, 1]); weaker ones count "
                        "little.",
                    },
                ),
            },
            "optional": chain_input(),
        }

    def add(
        self, weight: float = 0.01, period_px: int = 16, visible: float = GRID_VISIBLE, loss: Chain | None = None
    ) -> tuple[Chain]:
        return extend(loss, "grid", {"weight": weight, "period_px": period_px, "visible": visible})
