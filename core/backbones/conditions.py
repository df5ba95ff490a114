"""Token embeddings on their way into a transformer."""

import torch
from torch import Tensor

from ..records import Conditioning

EMPTY_TOKENS = 68  # zero embeddings that stand in when nothing is given: as many as the vision-language model would send


def tokens_per_sample(conditioning: Conditioning | None, batch: int, width: int, like: Tensor) -> list[Tensor]:
    """The tokens that count, sample by sample, on the device and in the dtype of `like`.

    Args:
        conditioning: embeddings [B, N, width] or [1, N, width] for all; None gives `EMPTY_TOKENS` zeros.
        batch: B.
        width: what the model takes.
        like: tells device and dtype.

    Returns:
        B tensors [n, width], n the number of tokens whose mask is True, at least one.

    Raises:
        ValueError: another width or batch, or a sample without any token.

    Source:
        StrSR specification, section 5 item 16: zeros in place of the embedding, same token count.
    """
    if conditioning is None:
        return [like.new_zeros(EMPTY_TOKENS, width)] * batch
    embeddings, mask = conditioning.embeddings, conditioning.mask
    if embeddings.ndim != 3 or embeddings.shape[0] not in (1, batch) or embeddings.shape[2] != width:
        raise ValueError(
            f"conditioning: expected embeddings [{batch} or 1, N, {width}], got {tuple(embeddings.shape)}; "
            "use the adapter that was made for this backbone"
        )
    rows = list(embeddings.to(like.device, like.dtype))
    if mask is not None and not bool(mask.all()):
        rows = [row[keep] for row, keep in zip(rows, mask.to(like.device, torch.bool), strict=True)]
    if any(row.shape[0] == 0 for row in rows):
        raise ValueError("conditioning: expected at least one token per sample, got a mask without any; pass None for no tokens")
    return rows * (batch // len(rows))
