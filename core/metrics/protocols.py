"""Names for whole evaluation protocols, so that one word asks for all metrics of a paper's tables and for its borders."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..checks import did_you_mean
from .published import published_set
from .scoring import METRICS


@dataclass(frozen=True)
class Protocol:
    """How a paper measures.

    Attributes:
        metrics: keys of METRICS, in the order of its tables.
        crop: border in pixels that PSNR, SSIM and AE-PSNR leave out; None: the upscale factor.
        remarks: what the paper leaves open and how it is read here.
    """

    metrics: tuple[str, ...]
    crop: int | None = None
    remarks: tuple[str, ...] = ()


_PYIQA = "whole images (crop 0) and pyiqa's default variants, since the released scripts leave everything else to pyiqa"
PROTOCOLS: dict[str, Protocol] = {
    "aesop": Protocol(
        (
            *("psnr_y", "ssim_y", "lpips", "dists", "ae_psnr", "lr_psnr", "lr_psnr_crop0", "lr_psnr_rgb", "lr_psnr_rgb_crop0"),
            *("fid", "pfid", "niqe", "maniqa", "musiq", "clipiqa"),
        )
    ),
    "aesop-real": Protocol(("niqe", "maniqa", "musiq", "clipiqa")),
    "asasr": Protocol(
        ("psnr_y", "ssim_y", "lpips", "dists", "maniqa", "musiq", "clipiqa+", "lsd"),
        0,
        (f"asasr: PSNR and SSIM on Y, {_PYIQA}", "asasr: the paper shows LSD without defining it; ours is in spectral.py"),
    ),
    "asasr-real": Protocol(("niqe", "maniqa", "musiq", "clipiqa+")),
    "dp2o": Protocol(
        (
            *("lpips-vgg", "topiq_fr", "afine_fr", "maniqa-pipal", "musiq", "clipiqa+", "topiq_nr", "afine_nr", "qalign"),
            *("nima", "topiq_iaa", "psnr_y", "ssim_y"),
        ),
        0,
        ("dp2o: PSNR and SSIM on Y, whole images (crop 0); the paper says neither",),
    ),
    "strsr": Protocol(
        ("psnr_rgb", "ssim_y", "psnr_y", "lpips", "dists", "niqe", "maniqa", "musiq", "qalign", "qualiclip"),
        0,
        (f"strsr: PSNR on RGB beside Y, {_PYIQA}",),
    ),
    "strsr-real": Protocol(("niqe", "maniqa", "musiq", "qalign")),
}


@dataclass(frozen=True)
class Choice:
    """The metrics that somebody asked for.

    Attributes:
        names: metric names without repeats, in the order asked for, protocols replaced by their metrics.
        named: those that were asked for by their own name and not only as part of a protocol.
        crop: border of the protocols; None: the upscale factor.
        remarks: of the protocols.
        quarters: metrics that see each image cut in four.
    """

    names: tuple[str, ...]
    named: frozenset[str]
    crop: int | None = None
    remarks: tuple[str, ...] = ()
    quarters: tuple[str, ...] = ()


def preset(dataset: str) -> Choice:
    """What a paper measures on a set that it prints numbers for, and how.

    Args:
        dataset: as `published.find_set` takes it.

    Raises:
        ValueError: an unknown set, or one on which no restored images are scored.

    Example:
        >>> preset("DRealSR").names, preset("DRealSR").quarters
        (('niqe', 'maniqa', 'musiq', 'clipiqa'), ('clipiqa',))
    """
    facts = published_set(dataset)
    if not facts.protocol:
        kind = f"`alignsr evaluate-task {facts.task}` measures it" if facts.task else "nothing here measures it"
        raise ValueError(f"published: expected a set of restored images, got {facts.name}; {kind}")
    return replace(choose([facts.protocol]), quarters=facts.quarters)


def choose(words: str | Sequence[str]) -> Choice:
    """Read a list of metrics and protocols.

    Args:
        words: keys of METRICS or PROTOCOLS, as a text separated by commas or spaces, or one by one.

    Raises:
        ValueError: none, an unknown one, with the nearest known name, or protocols with different borders.

    Example:
        >>> choose("lsd, aesop-real").names
        ('lsd', 'niqe', 'maniqa', 'musiq', 'clipiqa')
        >>> choose("asasr").crop
        0
    """
    wanted = words.replace(",", " ").split() if isinstance(words, str) else list(words)
    if not wanted:
        raise ValueError("metrics: expected at least one name, got none; psnr_y,ssim_y are the usual ones, aesop is a protocol")
    for word in wanted:
        if word not in METRICS and word not in PROTOCOLS:
            hint = did_you_mean(word, [*METRICS, *PROTOCOLS])
            raise ValueError(f"metric: expected a known name, got {word!r}; {hint}")
    protocols = {word: PROTOCOLS[word] for word in wanted if word in PROTOCOLS}
    names = [name for word in wanted for name in (protocols[word].metrics if word in protocols else (word,))]
    remarks = [remark for protocol in protocols.values() for remark in protocol.remarks]
    return Choice(
        tuple(dict.fromkeys(names)),
        frozenset(word for word in wanted if word in METRICS),
        _border(protocols),
        tuple(dict.fromkeys(remarks)),
    )


def _border(protocols: dict[str, Protocol]) -> int | None:
    """The border of those protocols for which it means something."""
    bordered = {
        word: protocol.crop
        for word, protocol in protocols.items()
        if any(METRICS[name].crop == "scale" for name in protocol.metrics)
    }
    if len(set(bordered.values())) > 1:
        said = ", ".join(f"{word} ({'the scale' if crop is None else crop})" for word, crop in bordered.items())
        raise ValueError(f"metrics: expected protocols that leave out one border, got {said}; score them one after the other")
    return next(iter(bordered.values()), None)
