"""The learned metrics of the four papers and the files each of them reads; pyiqa does the arithmetic.

Names, directions and ranges: pyiqa 0.1.16 default_model_configs.py. Which paper uses what: DP2O-SR sections 2.1 and 4 (LPIPS,
TOPIQ-FR, A-FINE FR and NR, MANIQA, MUSIQ, CLIP-IQA+, TOPIQ-NR, Q-Align, NIMA, TOPIQ-IAA), AESOP section 5 (LPIPS, DISTS, FID,
pFID, NIQE, MANIQA, MUSIQ, CLIP-IQA), ASASR section 4.3 (LPIPS, DISTS, MANIQA, MUSIQ, CLIP-IQA+, NIQE), StrSR section 4 (LPIPS,
DISTS, NIQE, MANIQA, MUSIQ, Q-Align, QualiCLIP). DP2O-SR's VQ-R1 (VisualQuality-R1) is not part of pyiqa and not offered.
"""

from collections.abc import Mapping
from typing import Any

from .spec import INF, PYIQA_LICENCE, Folder, MetricSpec, WeightFile

_PYIQA = "https://huggingface.co/chaofengc/IQA-PyTorch-Weights/resolve/main/"
_TORCH = "https://download.pytorch.org/models/"
_CLIP = "https://openaipublic.azureedge.net/clip/models/"
_RN50_SHA256 = "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762"
_VIT_B32_SHA256 = "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"


def _pyiqa(name: str) -> WeightFile:
    """By the name in the address: pyiqa looks for `%2B` on disk where the file is called `+`."""
    return WeightFile((name.replace("+", "%2B"),), "pyiqa", _PYIQA + name.replace("+", "%2B"))


def _backbone(name: str) -> WeightFile:
    return WeightFile((name,), "checkpoints", _TORCH + name)


def _clip(name: str, sha256: str, folder: Folder = "clip") -> WeightFile:
    return WeightFile((name,), folder, f"{_CLIP}{sha256}/{name}", sha256)


def _timm(name: str) -> WeightFile:
    return WeightFile(("model.safetensors", "pytorch_model.bin"), "hub", f"timm/{name}")


_ALEXNET = _backbone("alexnet-owt-7be5be79.pth")
_VGG16 = _backbone("vgg16-397923af.pth")
_RN50 = _clip("RN50.pt", _RN50_SHA256)
_VIT_B8 = _timm("vit_base_patch8_224.augreg2_in21k_ft_in1k")
_SWIN_B_FILE = "swin_base_patch4_window12_384_22kto1k.pth"
_SWIN_B = WeightFile(
    (_SWIN_B_FILE,), "checkpoints", f"https://github.com/SwinTransformer/storage/releases/download/v1.0.0/{_SWIN_B_FILE}"
)
_INCEPTION_RESNET = _timm("inception_resnet_v2.tf_in1k")
_INCEPTION = _pyiqa("pt_inception-2015-12-05-6726825d.pth")
_AFINE = (_pyiqa("afine.pth"), _clip("ViT-B-32.pt", _VIT_B32_SHA256, "home_clip"))
_ONE_ALIGN = tuple(
    WeightFile(names, "hub", "q-future/one-align")
    for names in (
        ("config.json",),
        ("preprocessor_config.json",),
        ("tokenizer.model",),
        ("pytorch_model.bin.index.json", "model.safetensors.index.json", "pytorch_model.bin", "model.safetensors"),
    )
)

_OWN_BACKBONE = {
    "backbone_pretrain": False
}  # the metric's own file holds the backbone too (strict load), so timm's is not needed
_UNIT = (0.0, 1.0)
_AFINE_NOTE = "sides in multiples of 32; pyiqa's own takes one picture and overwrites it; pyiqa and the paper call lower better"
_QALIGN_NOTE = "a 7-billion-parameter vision-language model"
_MANIQA_NOTE = "20 crops of 224 px at fixed places (a seed is set should pyiqa draw them): repeatable, slow"
_FID_NOTE = "one number for two sets of images; needs hundreds of images to mean something"


def _learned(
    name: str,
    title: str,
    weights: tuple[WeightFile, ...],
    span: tuple[float, float],
    *,
    higher: bool = True,
    reference: bool = False,
    pyiqa_name: str = "",
    packages: tuple[str, ...] = (),
    max_batch: int | None = None,
    size_multiple: int = 1,
    min_side_px: int = 1,
    mutates: bool = False,
    reward: bool = False,
    note: str = "",
    options: Mapping[str, Any] | None = None,
) -> MetricSpec:
    return MetricSpec(
        name=name,
        title=title,
        kind="learned",
        higher_is_better=higher,
        range=span,
        needs_reference=reference,
        pyiqa_name=pyiqa_name or name,
        weights=weights,
        packages=packages,
        max_batch=max_batch,
        size_multiple=size_multiple,
        min_side_px=min_side_px,
        mutates_input=mutates,
        in_reward=reward,
        licence=PYIQA_LICENCE,
        note=note,
        options=options or {},
    )


def _afine(name: str, title: str, reference: bool) -> MetricSpec:
    return _learned(
        name, title, _AFINE, (-2.0, 2.0), higher=False, reference=reference, size_multiple=32, min_side_px=32,
        mutates=True, reward=True, note=_AFINE_NOTE,
    )  # fmt: skip


def _qalign(name: str, title: str, note: str, reward: bool = False) -> MetricSpec:
    return _learned(
        name, title, _ONE_ALIGN, (1.0, 5.0), packages=("icecream",), max_batch=1, reward=reward, note=f"{_QALIGN_NOTE}, {note}"
    )


def _set(name: str, title: str, note: str) -> MetricSpec:
    return MetricSpec(
        name=name,
        title=title,
        kind="set",
        higher_is_better=False,
        range=(0.0, INF),
        needs_reference=True,
        pyiqa_name="fid",
        weights=(_INCEPTION,),
        licence=PYIQA_LICENCE,
        note=f"{_FID_NOTE}; {note}",
    )


LEARNED: dict[str, MetricSpec] = {
    "lpips": _learned(
        "lpips", "LPIPS (alex)", (_pyiqa("LPIPS_v0.1_alex-df73285e.pth"), _ALEXNET), _UNIT,
        higher=False, reference=True, min_side_px=32, note="the variant of AESOP's tables",
    ),
    "lpips-vgg": _learned(
        "lpips-vgg", "LPIPS (vgg)", (_pyiqa("LPIPS_v0.1_vgg-a78928a0.pth"), _VGG16), _UNIT,
        higher=False, reference=True, min_side_px=32, reward=True, note="the variant that DP2O-SR's numbers fit",
    ),
    "dists": _learned(
        "dists", "DISTS", (_pyiqa("DISTS_weights-f5e65c96.pth"), _VGG16), _UNIT, higher=False, reference=True, min_side_px=32,
    ),
    "topiq_fr": _learned(
        "topiq_fr", "TOPIQ-FR", (_pyiqa("cfanet_fr_kadid_res50-2c4cc61d.pth"),), _UNIT,
        reference=True, min_side_px=32, reward=True, note="trained on KADID", options=_OWN_BACKBONE,
    ),
    "afine_fr": _afine("afine_fr", "A-FINE FR", reference=True),
    "niqe": _learned(
        "niqe", "NIQE", (_pyiqa("niqe_modelparameters.mat"),), (0.0, 100.0), higher=False, max_batch=1, min_side_px=192,
        note="fits statistics of 96x96 blocks on the Y of YIQ; needs at least two blocks per side",
    ),
    "maniqa": _learned(
        "maniqa", "MANIQA (KonIQ)", (_pyiqa("ckpt_koniq10k.pt"), _VIT_B8), _UNIT, max_batch=1, note=_MANIQA_NOTE,
    ),
    "maniqa-pipal": _learned(
        "maniqa-pipal", "MANIQA (PIPAL)", (_pyiqa("MANIQA_PIPAL-ae6d356b.pth"), _VIT_B8), _UNIT,
        max_batch=1, reward=True, note=_MANIQA_NOTE,
    ),
    "musiq": _learned(
        "musiq", "MUSIQ", (_pyiqa("musiq_koniq_ckpt-e95806b9.pth"),), (0.0, 100.0), min_side_px=32, reward=True, note="KonIQ",
    ),
    "clipiqa": _learned("clipiqa", "CLIP-IQA", (_RN50,), _UNIT, min_side_px=32, note="averages five antonym prompt pairs"),
    "clipiqa+": _learned(
        "clipiqa+", "CLIP-IQA+", (_pyiqa("CLIP-IQA+_learned_prompts-603f3273.pth"), _RN50), _UNIT, min_side_px=32, reward=True,
    ),
    "topiq_nr": _learned(
        "topiq_nr", "TOPIQ-NR", (_pyiqa("cfanet_nr_koniq_res50-9a73138b.pth"),), _UNIT,
        min_side_px=32, reward=True, note="KonIQ", options=_OWN_BACKBONE,
    ),
    "topiq_iaa": _learned(
        "topiq_iaa", "TOPIQ-IAA", (_pyiqa("cfanet_iaa_ava_swin-393b41b4.pth"), _SWIN_B), (1.0, 10.0),
        note="aesthetics, AVA; resizes to 384x384",
    ),
    "afine_nr": _afine("afine_nr", "A-FINE NR", reference=False),
    "qalign": _qalign("qalign", "Q-Align", "16-bit: about 16 GB", reward=True),
    "qalign_8bit": _qalign("qalign_8bit", "Q-Align (8 bit)", "8-bit weights through bitsandbytes: about 9 GB, GPU"),
    "qalign_4bit": _qalign("qalign_4bit", "Q-Align (4 bit)", "4-bit weights through bitsandbytes: about 6 GB, GPU"),
    "qualiclip": _learned("qualiclip", "QualiCLIP", (_pyiqa("QualiCLIP.pth"), _RN50), _UNIT, min_side_px=32),
    "nima": _learned(
        "nima", "NIMA", (_pyiqa("NIMA_InceptionV2_ava-b0c77c00.pth"), _INCEPTION_RESNET), (0.0, 10.0),
        note="aesthetics, AVA; resizes to 299 px and takes the centre",
    ),
    "fid": _set("fid", "FID", "whole images, resized bilinearly to 299x299"),
    "pfid": _set("pfid", "pFID", "non-overlapping 299x299 patches, not resized"),
}  # fmt: skip
