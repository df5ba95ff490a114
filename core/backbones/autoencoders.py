"""The image autoencoders of the latent backbones: large ones from diffusers, tiny ones in their place, in tiles where asked."""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Generator, Tensor, nn

from ..checks import check_image, check_positive_int
from ..compat import import_diffusers, import_third_party
from ..networks.tiny_autoencoder import TinyAutoencoder, build_tiny_autoencoder, from_single_file, read_halves
from ..tiling import Box, blend, crop_tiles, plan
from ..weights import WeightsError
from .files import VAE_WRAPPERS, Part, build_module, count_blocks, read_part

STRIDE = 8  # of every autoencoder used here
_LARGE = ("AutoencoderKL", "AutoencoderKLFlux2")
_TINY = ("AutoencoderTiny",)
_GROUPS = 32  # of group normalisation: every published large autoencoder has it, and tensor shapes do not tell


class Codec:
    """Images in [-1, 1] to the autoencoder's own latents and back, whatever the autoencoder, its precision and its device.

    Args:
        autoencoder: AutoencoderKL, AutoencoderKLFlux2, AutoencoderTiny or `TinyAutoencoder`.
        tile_px: largest side that is coded at once, a multiple of 8; 0 codes whole images. Independent of the tiles that the
            transformer sees: at high resolution the autoencoder needs more memory than the transformer.
        overlap_px: overlap of those tiles.
    """

    def __init__(self, autoencoder: nn.Module, tile_px: int = 0, overlap_px: int = 128) -> None:
        self.autoencoder = autoencoder
        self.is_tiny = isinstance(autoencoder, TinyAutoencoder) or type(autoencoder).__name__ in _TINY
        self.channels = latent_channels(autoencoder)
        if tile_px:
            check_positive_int(tile_px, "vae_tile_px", low=2 * STRIDE)
            if tile_px % STRIDE or not 0 <= overlap_px < tile_px:
                raise ValueError(
                    f"vae_tile_px: expected a multiple of {STRIDE} above the overlap {overlap_px}, got {tile_px}; "
                    "use a larger tile or 0"
                )
        self.tile_px = tile_px
        self.overlap_px = overlap_px

    def encode(self, image: Tensor, generator: Generator | None = None) -> Tensor:
        """[B, 3, H, W] in [-1, 1] -> [B, channels, H / 8, W / 8] float32: the mean of the posterior.

        Args:
            image: sides are multiples of 8.
            generator: draw from the posterior instead; autoencoders without one ignore it. The noise is drawn for the whole
                image and cut for each tile, so that overlaps blend one draw and not several, whose mean would vary less.

        Raises:
            ValueError: not images, or a side that is not a multiple of 8.
        """
        check_sides(image, STRIDE)
        height, width = image.shape[-2:]
        noise = None if generator is None or self.is_tiny else self._noise(image, generator)
        if not self.tile_px or max(height, width) <= self.tile_px:
            return self._encode(image, noise)
        grid = image.new_zeros(image.shape[0], 1, height // STRIDE, width // STRIDE)  # tiles are planned on the latents

        def run(_: Tensor, boxes: Sequence[Box]) -> Tensor:
            pieces = [
                image[b.sample, :, b.top * STRIDE : (b.top + b.height) * STRIDE, b.left * STRIDE : (b.left + b.width) * STRIDE]
                for b in boxes
            ]
            return self._encode(torch.stack(pieces), None if noise is None else crop_tiles(noise, boxes))

        return blend(run, grid, self._plan(grid))

    def decode(self, latents: Tensor) -> Tensor:
        """[B, channels, h, w] -> [B, 3, 8 h, 8 w] float32, about [-1, 1], not clamped."""
        if not self.tile_px or max(latents.shape[-2:]) * STRIDE <= self.tile_px:
            return self._decode(latents)
        return blend(lambda part, _: self._decode(part), latents, self._plan(latents), scale=STRIDE)

    def _plan(self, grid: Tensor) -> Any:
        return plan(grid.shape[-2], grid.shape[-1], self.tile_px // STRIDE, self.overlap_px // STRIDE)

    def _noise(self, image: Tensor, generator: Generator) -> Tensor:
        """For every latent of an image, as the posterior would draw it: on the generator's device, in the weights' precision."""
        like = next(self.autoencoder.parameters())
        shape = (image.shape[0], self.channels, image.shape[-2] // STRIDE, image.shape[-1] // STRIDE)
        return torch.randn(shape, generator=generator, device=generator.device, dtype=like.dtype).to(like.device)

    def _encode(self, image: Tensor, noise: Tensor | None) -> Tensor:
        network: Any = self.autoencoder
        image = like_parameters(image, self.autoencoder)
        if isinstance(network, TinyAutoencoder):
            return network.encode(image).float()
        encoded: Any = network.encode(image)
        if self.is_tiny:
            return encoded.latents.float()
        posterior = encoded.latent_dist
        return (posterior.mode() if noise is None else posterior.mean + posterior.std * noise).float()

    def _decode(self, latents: Tensor) -> Tensor:
        network: Any = self.autoencoder
        latents = like_parameters(latents, self.autoencoder)
        if isinstance(network, TinyAutoencoder):
            return network.decode(latents).float()
        return network.decode(latents, return_dict=False)[0].float()


def check_sides(image: Tensor, multiple: int) -> None:
    """Raise ValueError unless `image` is [B, 3, H, W] with sides that are multiples of `multiple`."""
    check_image(image, "image", channels=(3,))
    if image.shape[-1] % multiple or image.shape[-2] % multiple:
        raise ValueError(
            f"image: expected sides that are multiples of {multiple}, got {tuple(image.shape[-2:])}; use images.pad_to_multiple"
        )


def like_parameters(x: Tensor, module: nn.Module) -> Tensor:
    """`x` on the device and in the precision of a module's first parameter."""
    first = next(module.parameters())
    return x.to(first.device, first.dtype)


def latent_channels(autoencoder: nn.Module) -> int:
    """Channels of an autoencoder's latents."""
    if isinstance(autoencoder, TinyAutoencoder):
        return autoencoder.latent_channels
    config: Any = autoencoder.config
    return int(config["latent_channels"])


def describe_autoencoder(autoencoder: nn.Module) -> dict[str, Any]:
    """JSON-able class name and options, from which `make_autoencoder` builds the same module."""
    if isinstance(autoencoder, TinyAutoencoder):
        return {"class": "TinyAutoencoder", "options": dict(autoencoder.options)}
    return {"class": type(autoencoder).__name__, "options": plain_config(autoencoder)}


def plain_config(module: nn.Module) -> dict[str, Any]:
    """A diffusers module's options: its configuration without what diffusers adds to it."""
    config: Any = module.config
    return _accepted(type(module), dict(config))


def known_options(part: Part, classes: Sequence[str]) -> dict[str, Any]:
    """The options that a component's `config.json` gives one of `classes`; entries that the class does not take are left out.

    Raises:
        WeightsError: the configuration of another class.
    """
    config = part.config or {}
    name = str(config.get("_class_name"))
    if name not in classes:
        raise WeightsError(f"{part.source}: expected {' or '.join(classes)} in config.json, got {name!r}; choose another folder")
    return _accepted(getattr(import_diffusers(), name), config)


def _accepted(cls: type, config: Mapping[str, Any]) -> dict[str, Any]:
    taken = inspect.signature(cls).parameters
    return {name: value for name, value in config.items() if name in taken}


def make_autoencoder(description: Mapping[str, Any]) -> nn.Module:
    """A randomly initialised autoencoder from `describe_autoencoder`'s answer.

    Raises:
        ValueError: a class that is not an autoencoder known here.
    """
    name, options = str(description.get("class")), dict(description.get("options", {}))
    if name == "TinyAutoencoder":
        return TinyAutoencoder(**options)
    if name not in (*_LARGE, *_TINY):
        raise ValueError(f"autoencoder: expected {', '.join(('TinyAutoencoder', *_LARGE, *_TINY))}, got {name!r}; check the file")
    return getattr(import_diffusers(), name)(**options)


def load_autoencoder(path: Path, dtype: torch.dtype, defaults: Mapping[str, Any], *, shapes_only: bool = False) -> nn.Module:
    """Load an autoencoder, whatever its form on disk.

    Read are: a diffusers folder (AutoencoderKL, AutoencoderKLFlux2, AutoencoderTiny); a single file with diffusers' or the
    original names, as ComfyUI's models/vae has them; a tiny autoencoder as one file, as an encoder file with its decoder file
    beside it, or as a folder that holds the two.

    Args:
        path: file or folder.
        dtype: of the weights.
        defaults: class and options for what tensor shapes do not tell, of large autoencoders in single files.
        shapes_only: see `read_part`.

    Raises:
        WeightsError: damaged, or not an autoencoder.
    """
    halves = _halves(path)
    if halves is not None:
        return build_tiny_autoencoder(read_halves(*halves), " and ".join(map(str, halves))).to(dtype)
    part = read_part(path, shapes_only=shapes_only, wrappers=VAE_WRAPPERS)
    if part.config is not None:
        options = known_options(part, (*_LARGE, *_TINY))
        name = part.config["_class_name"]
        return build_module(lambda: make_autoencoder({"class": name, "options": options}), part.state, dtype, part.source)
    if any(name.startswith(("encoder.layers.", "encoder.0.")) for name in part.state):
        return build_tiny_autoencoder(from_single_file(part.state), part.source).to(dtype)
    state = _to_diffusers(part)
    options = {**defaults["options"], **infer_options(state)}
    return build_module(lambda: make_autoencoder({**defaults, "options": options}), state, dtype, part.source)


def _halves(path: Path) -> tuple[Path, Path] | None:
    """The two files of a tiny autoencoder when `path` is one of them or the folder that holds them."""
    candidates = sorted(path.glob("*_encoder.*")) if path.is_dir() else [path]
    for file in candidates:
        encoder = file.with_name(file.name.replace("_decoder.", "_encoder."))
        decoder = file.with_name(file.name.replace("_encoder.", "_decoder."))
        if encoder != decoder and encoder.is_file() and decoder.is_file():
            return encoder, decoder
    return None


def _to_diffusers(part: Part) -> dict[str, Tensor]:
    state = part.state
    if any(name.startswith("encoder.down_blocks.") for name in state):
        return state
    stages = count_blocks(state, "encoder.down.")
    if not stages:
        raise WeightsError(f"{part.source}: expected an autoencoder, got {_some(state)}; choose a file of models/vae")
    outer = ("encoder.quant_conv.", "decoder.post_quant_conv.")
    state = {name.split(".", 1)[1] if name.startswith(outer) else name: tensor for name, tensor in state.items()}
    kept = {name: tensor for name, tensor in state.items() if name.startswith("bn.")}
    converters: Any = import_third_party("diffusers.loaders.single_file_utils")
    config = {"down_block_types": ["DownEncoderBlock2D"] * stages, "up_block_types": ["UpDecoderBlock2D"] * stages}
    converted: dict[str, Tensor] = converters.convert_ldm_vae_checkpoint(dict(state), config) | kept
    if len(converted) != len(state):
        raise WeightsError(
            f"{part.source}: expected an autoencoder of the original layout, {len(state) - len(converted)} of its "
            f"{len(state)} tensors are unknown; choose a file of models/vae"
        )
    return converted


def infer_options(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Options of a large autoencoder from the shapes of its tensors (diffusers' names).

    Raises:
        WeightsError: not an autoencoder.
    """
    try:
        stages = count_blocks(state, "encoder.down_blocks.")
        widths = [state[f"encoder.down_blocks.{i}.resnets.0.conv2.weight"].shape[0] for i in range(stages)]
        decoder = [state[f"decoder.up_blocks.{i}.resnets.0.conv2.weight"].shape[0] for i in reversed(range(stages))]
        latents = state["decoder.conv_in.weight"].shape[1]
    except KeyError as error:
        raise WeightsError(f"weights: expected an autoencoder, found no {error.args[0]}; choose a file of models/vae") from error
    options: dict[str, Any] = {
        "block_out_channels": tuple(widths),
        "down_block_types": ("DownEncoderBlock2D",) * stages,
        "up_block_types": ("UpDecoderBlock2D",) * stages,
        "layers_per_block": count_blocks(state, "encoder.down_blocks.0.resnets."),
        "latent_channels": latents,
        "norm_num_groups": _GROUPS,
        "use_quant_conv": "quant_conv.weight" in state,
        "use_post_quant_conv": "post_quant_conv.weight" in state,
        "mid_block_add_attention": any(".mid_block.attentions." in name for name in state),
    }
    if decoder != widths:
        options["decoder_block_out_channels"] = tuple(decoder)
    return options


def _some(state: Mapping[str, Tensor]) -> str:
    return ", ".join(sorted(state)[:3]) or "no tensors"
