"""The trained bridge from a vision-language model's tokens to a transformer's: StrSR's f_adapt."""

from collections.abc import Mapping
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

from ..checks import check_positive_int
from ..records import Conditioning
from ..weights import WeightsError, load_into, load_state_dict

VLM_WIDTH = 2560  # of Qwen3-VL-4B's tokens
ADAPTER_WIDTHS = {"flux2_klein": 7680, "z_image": 2560}


class TokenAdapter(nn.Sequential):
    """The trainable bridge from the vision-language model's tokens to the transformer's: linear, SiLU, linear.

    Parameters are float32 whatever the model's precision (at 16 bits a step of 5e-6 is lost to rounding on 9 of 10 weights,
    strsr.md 6.2 item 1); the products run in the dtype of the input.

    Args:
        inputs: width of the vision-language model.
        outputs: width of the transformer's text tokens: 7680 (FLUX.2 klein, 39.33 M parameters) or 2560 (Z-Image, 6.56 M).

    Shapes:
        [B, N, inputs] -> [B, N, outputs].

    Source:
        StrSR, arXiv:2603.06275v1 (f_adapt); strsr.md sections 1.3 and 5.8. Names of parameters as in `projector.pth`.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        check_positive_int(inputs, "inputs")
        check_positive_int(outputs, "outputs", low=2)
        super().__init__(nn.Linear(inputs, outputs // 2), nn.SiLU(), nn.Linear(outputs // 2, outputs))
        self.float()

    def forward(self, input: Tensor) -> Tensor:  # nn.Sequential's name
        """See the class for shapes."""
        first, _, last = self
        assert isinstance(first, nn.Linear) and isinstance(last, nn.Linear)
        hidden = F.silu(F.linear(input, first.weight.to(input), first.bias.to(input)))
        return F.linear(hidden, last.weight.to(hidden), last.bias.to(hidden))

    def condition(self, tokens: Tensor) -> Conditioning:
        """Tokens of `VLMEncoder.encode` -> what the backbone takes, on the adapter's device."""
        return Conditioning(self(tokens.to(next(self.parameters()).device)))


def load_adapter(path: str | Path, outputs: int | None = None) -> TokenAdapter:
    """Read a trained adapter, `projector.pth` of the released weights or our own.

    Args:
        path: .pth (read with weights_only=True) or .safetensors, with the keys 0.weight, 0.bias, 2.weight and 2.bias.
        outputs: what the backbone takes (`ADAPTER_WIDTHS`, or its spec's conditioning_dim); checked.

    Returns:
        The adapter in float32 and eval mode.

    Raises:
        FileNotFoundError: no such file.
        WeightsError: other keys or shapes, or the adapter of another backbone.
    """
    return make_adapter(load_state_dict(path), str(path), outputs)


def make_adapter(tensors: Mapping[str, Tensor], source: str, outputs: int | None = None) -> TokenAdapter:
    """The same from tensors, for example from those that lie beside a LoRA in one file.

    Raises:
        WeightsError: other keys or shapes, or the adapter of another backbone.
    """
    state = {name: value.float() for name, value in tensors.items()}
    first, last = state.get("0.weight"), state.get("2.weight")
    if first is None or last is None or first.ndim != 2 or last.ndim != 2:
        raise WeightsError(
            f"{source}: expected an adapter with 0.weight and 2.weight, got {', '.join(sorted(state))[:200]}; "
            "choose projector.pth"
        )
    if outputs is not None and last.shape[0] != outputs:
        fits = [name for name, width in ADAPTER_WIDTHS.items() if width == last.shape[0]]
        raise WeightsError(
            f"{source}: expected an adapter to {outputs} channels, got {last.shape[0]}"
            f"{f' (that of {fits[0]})' if fits else ''}; choose the one that was trained with this backbone"
        )
    adapter = TokenAdapter(first.shape[1], last.shape[0])
    load_into(adapter, state, source)
    return adapter.eval()
