"""Loss nodes: each adds one entry to a chain, which a training node puts into its config's `losses`.

A chain is a plain mapping, name of the loss -> its options: the same keys as [losses.NAME] in a TOML file, so that a graph and a
file say the same and a chain can be written into a checkpoint.
"""

from collections.abc import Mapping
from typing import Any

from .autoencoder import AUTOENCODER, LoadedAutoEncoder

LOSS = "ALIGNSR_LOSS"  # socket type of a chain of losses
Chain = Mapping[str, Mapping[str, Any]]
CHAIN_TOOLTIP = "Losses from other loss nodes; this one is added to them. Leave open for the first."
OUTPUT_TOOLTIP = "The chain with this loss, for another loss node or a training node."


def extend(loss: Chain | None, name: str, options: Mapping[str, Any]) -> tuple[Chain]:
    """The chain with one more entry.

    Raises:
        TypeError: `loss` is no chain.
        ValueError: the chain has this loss already.
    """
    _check_chain(loss)
    if name in (loss or {}):
        raise ValueError(
            f"loss: expected no {name} loss yet, got a chain of {', '.join(loss or {})}; remove one of the two nodes"
        )
    return ({**(loss or {}), name: dict(options)},)


def as_losses(loss: Chain | None) -> dict[str, Any]:
    """The `losses` that a connected chain puts in the place of a config's; empty where none is connected.

    Raises:
        TypeError: `loss` is no chain.
    """
    _check_chain(loss)
    return {} if loss is None else {"losses": {name: dict(options) for name, options in loss.items()}}


def _check_chain(loss: Any) -> None:
    if loss is not None and not isinstance(loss, Mapping):
        raise TypeError(f"loss: expected a chain of losses, got {type(loss).__name__}; connect the output of a loss node")


def weight(default: float, more: str) -> tuple[str, dict[str, Any]]:
    """The widget of a loss's weight."""
    return (
        "FLOAT",
        {
            "default": default,
            "min": 0.0,
            "max": 1000.0,
            "step": 0.001,
            "round": 0.00001,
            "tooltip": f"Weight of this loss. {more}",
        },
    )


def chain_input() -> dict[str, Any]:
    """The optional section of every loss node."""
    return {"loss": (LOSS, {"tooltip": CHAIN_TOOLTIP})}


class PixelLoss:
    """Node AlignSRPixelLoss."""

    CATEGORY = "AlignSR/losses"
    DESCRIPTION = (
        "Error of every pixel. Safe and blurry at weight 1; perceptual training gives it 0.01 and lets an adversarial loss make "
        "the texture. Low pass compares images shrunk by 4 instead."
    )
    FUNCTION = "add"
    RETURN_TYPES = (LOSS,)
    RETURN_NAMES = ("loss",)
    OUTPUT_TOOLTIPS = (OUTPUT_TOOLTIP,)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "weight": weight(1.0, "Papers: 1 for fidelity alone, 0.01 beside an adversarial loss."),
                "kind": (
                    ["l1", "mse", "psnr", "low_pass"],
                    {
                        "default": "l1",
                        "tooltip": "l1: absolute error (usual). mse: squared. psnr: decibels, every sample counts alike. "
                        "low_pass: absolute error after MATLAB's bicubic reduction by 4.",
                    },
                ),
            },
            "optional": chain_input()
            | {
                "model_range": (
                    "BOOLEAN",
                    {
                        "default": False,
                        "advanced": True,
                        "tooltip": "On: measured on pictures in [-1, 1], as StrSR counts: l1 twice, mse four times as large. "
                        "low_pass ignores it.",
                    },
                ),
            },
        }

    def add(self, weight: float = 1.0, kind: str = "l1", loss: Chain | None = None, model_range: bool = False) -> tuple[Chain]:
        if kind == "low_pass":
            return extend(loss, "low_pass", {"weight": weight})
        return extend(loss, "pixel", {"weight": weight, "kind": kind} | ({"model_range": True} if model_range else {}))


class AESOPLoss:
    """Node AlignSRAESOPLoss."""

    CATEGORY = "AlignSR/losses"
    DESCRIPTION = (
        "AESOP's fidelity loss: both images go through a frozen auto-encoder first, so that only what regression could predict "
        "is compared and texture is not punished. Takes the place of the pixel loss, at full weight."
    )
    FUNCTION = "add"
    RETURN_TYPES = (LOSS,)
    RETURN_NAMES = ("loss",)
    OUTPUT_TOOLTIPS = (OUTPUT_TOOLTIP,)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "autoencoder": (
                    AUTOENCODER,
                    {"tooltip": "From AESOP Auto-Encoder or Train Auto-Encoder; its scale must be the network's."},
                ),
                "weight": weight(1.0, "Paper: 1, a hundred times the usual pixel loss."),
                "power": ("INT", {"default": 1, "min": 1, "max": 2, "tooltip": "1: absolute error (paper). 2: squared error."}),
                "precision": (
                    ["fp32", "bf16"],
                    {
                        "default": "fp32",
                        "tooltip": "Number format inside the auto-encoder. bf16 is faster on a GPU and rounds the loss.",
                    },
                ),
            },
            "optional": chain_input(),
        }

    def add(
        self,
        autoencoder: LoadedAutoEncoder,
        weight: float = 1.0,
        power: int = 1,
        precision: str = "fp32",
        loss: Chain | None = None,
    ) -> tuple[Chain]:
        return extend(
            loss, "aesop", {"weight": weight, "autoencoder": autoencoder.source, "power": power, "precision": precision}
        )


class ArtifactLoss:
    """Node AlignSRArtifactLoss."""

    CATEGORY = "AlignSR/losses"
    DESCRIPTION = (
        "LDL's artifact loss: punishes pixels where the network is worse than its own moving average and its error is restless. "
        "Part of the synthetic recipes; costs one more forward pass."
    )
    FUNCTION = "add"
    RETURN_TYPES = (LOSS,)
    RETURN_NAMES = ("loss",)
    OUTPUT_TOOLTIPS = (OUTPUT_TOOLTIP,)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "weight": weight(1.0, "Papers: 1."),
                "detach_map": (
                    "BOOLEAN",
                    {
                        "default": False,
                        "tooltip": "On: the map is held constant. Off: gradient flows through it, as the released code does.",
                    },
                ),
            },
            "optional": chain_input(),
        }

    def add(self, weight: float = 1.0, detach_map: bool = False, loss: Chain | None = None) -> tuple[Chain]:
        return extend(loss, "artifact", {"weight": weight, "detach_map": detach_map})


class PerceptualLoss:
    """Node AlignSRPerceptualLoss."""

    CATEGORY = "AlignSR/losses"
    DESCRIPTION = (
        "Distance between VGG19 features. Needs torchvision's file vgg19-dcbb9e9d.pth in models/alignsr; the node says where to "
        "get it when it is missing."
    )
    FUNCTION = "add"
    RETURN_TYPES = (LOSS,)
    RETURN_NAMES = ("loss",)
    OUTPUT_TOOLTIPS = (OUTPUT_TOOLTIP,)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "weight": weight(1.0, "Papers: 1."),
                "layers": (
                    ["synthetic", "real"],
                    {
                        "default": "synthetic",
                        "tooltip": "synthetic: five layers, for clean low-resolution pictures. real: without the first, against "
                        "a sharpened ground truth, for degraded pictures.",
                    },
                ),
                "vgg": (
                    "STRING",
                    {
                        "default": "vgg19-dcbb9e9d.pth",
                        "advanced": True,
                        "tooltip": "File name in models/alignsr, or path, of torchvision's VGG19. random: untrained, to try a "
                        "graph out.",
                    },
                ),
            },
            "optional": chain_input(),
        }

    def add(
        self, weight: float = 1.0, layers: str = "synthetic", vgg: str = "vgg19-dcbb9e9d.pth", loss: Chain | None = None
    ) -> tuple[Chain]:
        from ..core.losses.perceptual import LAYERS_REAL, LAYERS_SYNTHETIC

        sets = {"synthetic": (LAYERS_SYNTHETIC, "plain"), "real": (LAYERS_REAL, "sharpened")}
        if layers not in sets:
            raise ValueError(f"layers: expected synthetic or real, got {layers!r}; choose one of them")
        weights, target = sets[layers]
        return extend(loss, "perceptual", {"weight": weight, "vgg": vgg, "layers": dict(weights), "target": target})


class GANLoss:
    """Node AlignSRGANLoss."""

    CATEGORY = "AlignSR/losses"
    DESCRIPTION = (
        "Adversarial loss: a discriminator learns to tell results from photographs while the network learns to fool it. The "
        "config of Train Perceptual SR says which discriminator; One-Step Trainer takes RaGAN Loss instead."
    )
    FUNCTION = "add"
    RETURN_TYPES = (LOSS,)
    RETURN_NAMES = ("loss",)
    OUTPUT_TOOLTIPS = (OUTPUT_TOOLTIP,)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {
            "required": {
                "weight": weight(0.005, "Papers: 0.005 relativistic, 0.1 plain. More gives more texture and more invention."),
                "kind": (
                    ["relativistic", "plain"],
                    {
                        "default": "relativistic",
                        "tooltip": "relativistic: more real than the average result (synthetic recipes). plain: real or not "
                        "(real-world recipe).",
                    },
                ),
                "average": (
                    ["process", "global"],
                    {
                        "default": "process",
                        "advanced": True,
                        "tooltip": "Where the relativistic mean is taken when several processes train: each its own batch (as "
                        "released), or all together.",
                    },
                ),
            },
            "optional": chain_input(),
        }

    def add(
        self, weight: float = 0.005, kind: str = "relativistic", average: str = "process", loss: Chain | None = None
    ) -> tuple[Chain]:
        return extend(loss, "adversarial", {"weight": weight, "kind": kind, "average": average})
