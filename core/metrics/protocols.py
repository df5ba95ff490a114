"""Names for whole evaluation protocols, so that one word asks for all metrics of a paper's tables."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..checks import did_you_mean
from .scoring import METRICS

PROTOCOLS: dict[str, tuple[str, ...]] = {
    "aesop": (
        *("psnr_y", "ssim_y", "lpips", "dists", "ae_psnr", "lr_psnr", "lr_psnr_crop0", "lr_psnr_rgb", "lr_psnr_rgb_crop0"),
        *("fid", "pfid", "niqe", "maniqa", "musiq", "clipiqa"),
    ),
    "aesop-real": ("niqe", "maniqa", "musiq", "clipiqa"),
}


@dataclass(frozen=True)
class Choice:
    """The metrics that somebody asked for.

    Attributes:
        names: metric names without repeats, in the order asked for, protocols replaced by their metrics.
        named: those that were asked for by their own name and not only as part of a protocol.
    """

    names: tuple[str, ...]
    named: frozenset[str]


def choose(words: str | Sequence[str]) -> Choice:
    """Read a list of metrics and protocols.

    Args:
        words: keys of METRICS or PROTOCOLS, as a text separated by commas or spaces, or one by one.

    Raises:
        ValueError: none, or an unknown one, with the nearest known name.

    Example:
        >>> choose("lsd, aesop-real").names
        ('lsd', 'niqe', 'maniqa', 'musiq', 'clipiqa')
    """
    wanted = words.replace(",", " ").split() if isinstance(words, str) else list(words)
    if not wanted:
        raise ValueError("metrics: expected at least one name, got none; psnr_y,ssim_y are the usual ones, aesop is a protocol")
    for word in wanted:
        if word not in METRICS and word not in PROTOCOLS:
            hint = did_you_mean(word, [*METRICS, *PROTOCOLS])
            raise ValueError(f"metric: expected a known name, got {word!r}; {hint}")
    names = [name for word in wanted for name in PROTOCOLS.get(word, (word,))]
    return Choice(tuple(dict.fromkeys(names)), frozenset(word for word in wanted if word in METRICS))
