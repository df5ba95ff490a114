"""Load One-Step Backbone: the large transformers of one-step super-resolution, from whatever a user has on disk."""

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from .common import SR_MODEL, file_stamp, input_names
from .host import Host, get_host
from .models import DEVICES

LOGGER = logging.getLogger("alignsr")
AUTO, TINY = "auto", "tiny"
KINDS = ("flux2_klein", "z_image")
PRECISIONS = ("bf16", "fp16", "fp32", "8bit", "4bit")
OFFLOADS = ("sequential", "none")
FOLDER_KEYS = ("diffusers", "alignsr", "diffusion_models")  # where diffusers folders lie


@dataclass(frozen=True)
class Request:
    """What to open: the arguments of `core.backbones.open_backbone`, or of `open_multi_step` for its kinds."""

    kind: str
    source: str | Path | None
    folders: Mapping[str, list[Path]]
    transformer: str | None = None
    autoencoder: str | None = None
    control: str | None = None
    precision: str = "bf16"
    use_compile: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])


class OneStepModel:
    """The value of an ALIGNSR_MODEL socket, of one step or of many, whose weights are read when they are first needed.

    So adapters can be added before: they are merged in full precision and quantised with the weights. Everything that can be
    wrong is found at once: files are opened, and names and shapes compared, without reading the values.

    Args:
        request: what to open.
        device: `auto` or `cpu`.
        offload: modules take turns on the device.
        adapters: `core.lora.Adapter` with strength, merged in that order.
    """

    def __init__(self, request: Request, device: str, offload: bool, adapters: tuple[tuple[Any, float], ...] = ()) -> None:
        self.request, self.device, self.offload, self.adapters = request, device, offload, adapters
        self.meta = self._open("meta")
        self.spec = self.meta.spec
        self.name = self.spec.name
        self.files, self.remarks = self._find()
        self.path = Path(str(request.transformer or request.source or self.files.get("transformer", self.name)))

    @cached_property
    def backbone(self) -> Any:
        """The backbone on the CPU, frozen."""
        LOGGER.info("reading the weights of %s ...", self.name)
        bar = get_host().progress(1, f"reading {self.name}")
        bar.update(0)
        device = torch.device("cpu") if self.device == "cpu" else get_host().device()  # merging is much faster where it will run
        backbone = self._open("cpu", device)
        bar.update(1)
        return backbone

    @property
    def projector(self) -> Any:
        """The `TokenAdapter` that came with the last adapter that has one, or None."""
        found = [adapter for adapter, _ in self.adapters if adapter.projector]
        if not found:
            return None
        from ..core.conditioning import make_adapter

        with torch.inference_mode(False):
            return make_adapter(found[-1].projector, found[-1].source, self.spec.conditioning_dim).requires_grad_(False)

    def with_adapter(self, adapter: Any, strength: float) -> "OneStepModel":
        """The same model with one more adapter.

        Raises:
            WeightsError, ValueError: an adapter that does not fit; everything about it is said at once.
        """
        return OneStepModel(self.request, self.device, self.offload, (*self.adapters, (adapter, strength)))

    def _find(self) -> tuple[dict[str, Path], list[str]]:
        """Files of `transformer` (or UNet), `vae` and `control`, and what is to be said about them."""
        from ..core.backbones import LATENT_KINDS, MULTI_STEP_KINDS, find_files

        want, main = self.request, (LATENT_KINDS | MULTI_STEP_KINDS)[self.request.kind].main
        chosen = {main: want.transformer, "vae": want.autoencoder, "control": want.control}
        version = str(want.facts.get("version", ""))
        files, said = find_files(want.kind, want.source, folders=want.folders, chosen=chosen, version=version)
        return {"transformer" if part == main else part: path for part, path in files.items()}, said

    def _open(self, device: str | torch.device, work_device: torch.device | None = None) -> Any:
        from ..core.backbones import MULTI_STEP_KINDS, open_backbone, open_multi_step

        want = self.request
        common: dict[str, Any] = {
            "folders": want.folders, "autoencoder": want.autoencoder, "precision": want.precision, "adapters": self.adapters,
            "device": device, "work_device": work_device, "use_compile": want.use_compile, **want.facts,
        }  # fmt: skip
        with torch.inference_mode(False):
            if want.kind in MULTI_STEP_KINDS:
                return open_multi_step(want.kind, want.source, network=want.transformer, control=want.control, **common)
            return open_backbone(want.kind, want.source, transformer=want.transformer, **common)


def find_request(host: Host, kind: str, model_name: str = AUTO, vae_name: str = AUTO, **options: Any) -> Request:
    """Find what the names of the node's lists mean on this computer.

    Args:
        host: knows the folders.
        kind: a family.
        model_name: `auto`: the published single file, else a diffusers folder of the published name; `tiny`; a listed name.
        vae_name: `auto`, or a file or folder of models/vae.
        options: further fields of `Request`.

    Raises:
        MissingModelError: names each missing file, the folders searched and where to get it.
    """
    from ..core.backbones import LATENT_KINDS
    from ..core.backbones.published import find_folder, find_source

    folders = {part.folder: host.model_dirs(part.folder) for part in LATENT_KINDS[kind].components}
    vae = None if vae_name == AUTO else vae_name
    request = Request(kind, None, folders, autoencoder=vae, **options)
    if model_name == TINY:
        return replace(request, source=TINY, autoencoder=None)
    places = [folder for key in FOLDER_KEYS for folder in host.model_dirs(key)]
    if model_name != AUTO:
        whole = find_folder(model_name, LATENT_KINDS[kind].main, places)
        return replace(request, source=whole) if whole is not None else replace(request, transformer=model_name)
    return replace(request, source=find_source(kind, folders, places, chosen={"vae": vae} if vae else {}))


class LoadOneStepBackbone:
    """Node AlignSRLoadOneStepBackbone."""

    CATEGORY = "AlignSR/models"
    DESCRIPTION = (
        "Opens a large diffusion transformer with its autoencoder for one-step restoration: FLUX.2 [klein] 4B or "
        "Z-Image-Turbo, as single files from models/diffusion_models and models/vae, or as a diffusers folder. Add a LoRA with "
        "Merge LoRA; without one such a model makes pictures, it does not restore them."
    )
    MODEL_FOLDERS = (("model_name", "diffusion_models"), ("vae_name", "vae"))
    FUNCTION = "load"
    RETURN_TYPES = (SR_MODEL, "STRING")
    RETURN_NAMES = ("model", "info")
    OUTPUT_TOOLTIPS = (
        "The model, for Merge LoRA, VLM Encode, Text Encode and One-Step SR. Its weights are read at the first use.",
        "Facts as JSON: files, parameters, tile size, tokens, licence of the weights.",
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        host = get_host()
        folders = host.list_folders("transformer/config.json", *FOLDER_KEYS)
        return {
            "required": {
                "backbone": (
                    list(KINDS),
                    {"default": KINDS[0], "tooltip": "The family. flux2_klein: FLUX.2 [klein] 4B. z_image: Z-Image-Turbo 6B."},
                ),
                "model_name": (
                    [AUTO, TINY, *folders, *host.list_files("diffusion_models")],
                    {
                        "default": AUTO,
                        "tooltip": "auto: the published file of models/diffusion_models, else the diffusers folder of the "
                        "published name in models/diffusers. tiny: a random miniature that shows whether a workflow runs.",
                    },
                ),
                "vae_name": (
                    [AUTO, *host.list_files("vae")],
                    {
                        "default": AUTO,
                        "tooltip": "auto: the model's own autoencoder. A tiny one of the same latents (taef2, taef1) is many "
                        "times faster and a little less exact.",
                    },
                ),
                "precision": (
                    list(PRECISIONS),
                    {
                        "default": PRECISIONS[0],
                        "tooltip": "Number format of the weights. 8bit and 4bit store the transformer's blocks smaller, for "
                        "small graphics cards; they need bitsandbytes.",
                    },
                ),
                "offload": (
                    list(OFFLOADS),
                    {
                        "default": OFFLOADS[0],
                        "tooltip": "sequential: language model, autoencoder and transformer take turns on the GPU, so the "
                        "largest alone has to fit. none: autoencoder and transformer stay there together during a run, a little "
                        "faster.",
                    },
                ),
                "device": (
                    list(DEVICES),
                    {"default": DEVICES[0], "tooltip": "auto: the GPU if there is one. cpu: stay on the processor, very slow."},
                ),
            },
            "optional": {
                "vae_tile_px": (
                    "INT",
                    {
                        "default": 0,
                        "min": 0,
                        "max": 8192,
                        "step": 8,
                        "advanced": True,
                        "tooltip": "Largest side that the autoencoder codes at once, apart from the transformer's tiles; at "
                        "least 136. 0: the transformer's tile. Smaller needs less memory.",
                    },
                ),
                "latents": (
                    ["auto", "scaled", "raw"],
                    {
                        "default": "auto",
                        "advanced": True,
                        "tooltip": "Z-Image only: which latents the LoRA was trained on. auto: what the LoRA's file says.",
                    },
                ),
                "use_compile": (
                    "BOOLEAN",
                    {
                        "default": False,
                        "advanced": True,
                        "tooltip": "Compile the transformer's blocks: minutes at the first picture, faster from then on.",
                    },
                ),
            },
        }

    @classmethod
    def IS_CHANGED(cls, model_name: str | None = AUTO, vae_name: str | None = AUTO, **_: Any) -> str | float:  # noqa: N802
        """Open again when a file was replaced; always where a name comes through a link."""
        if model_name is None or vae_name is None:
            return math.nan
        host = get_host()
        places = [folder for key in ("diffusion_models", "vae", *FOLDER_KEYS) for folder in host.model_dirs(key)]
        found = [path for name in (model_name, vae_name) for place in places if (path := place / name).exists()]
        return " ".join(map(file_stamp, found))

    def load(
        self,
        backbone: str,
        model_name: str = AUTO,
        vae_name: str = AUTO,
        precision: str = "bf16",
        offload: str = "sequential",
        device: str = "auto",
        vae_tile_px: int = 0,
        latents: str = "auto",
        use_compile: bool = False,
    ) -> tuple[OneStepModel, str]:
        for name, value, known in (("backbone", backbone, KINDS), ("offload", offload, OFFLOADS), ("device", device, DEVICES)):
            if value not in known:
                raise ValueError(f"{name}: expected one of {', '.join(known)}, got {value!r}; choose one of them")
        facts: dict[str, Any] = {"vae_tile_px": vae_tile_px} | ({} if latents == "auto" else {"latents": latents})
        with input_names(
            "model_name", precision="precision", latents="latents", vae_tile_px="vae_tile_px", autoencoder="vae_name"
        ):
            request = find_request(
                get_host(), backbone, model_name, vae_name, precision=precision, use_compile=use_compile, facts=facts
            )
            model = OneStepModel(request, device, offload == "sequential")
        return model, report(model)


def report(model: OneStepModel) -> str:
    """The facts for people; what is to be said about the files goes to the log, too."""
    for remark in model.remarks:
        LOGGER.warning("%s: %s", model.name, remark)
    return json.dumps(describe(model), indent=2)


def describe(model: OneStepModel) -> dict[str, Any]:
    """JSON-able facts of a model: what is opened, from which files, what is to be said about them, and its spec."""
    want = model.request
    files = {"transformer": str(want.transformer or want.source or AUTO), "vae": str(want.autoencoder or AUTO)}
    files |= {} if want.control is None else {"control": str(want.control)}
    files |= {part: str(path) for part, path in model.files.items()}
    loras = [{"file": adapter.source, "rank": adapter.rank, "strength": strength} for adapter, strength in model.adapters]
    facts = {"backbone": want.kind, "files_used": files, "precision": want.precision, "loras": loras}
    return facts | ({"warning": "; ".join(model.remarks)} if model.remarks else {}) | asdict(model.spec)
