"""The shipped workflows as plain descriptions: API-format graphs, each with the note that its template shows."""

from asasr_graphs import ASASR_GRAPHS
from dp2o_graphs import DP2O_GRAPHS
from graph_parts import EXAMPLE, ONE_GPU, Graph, node, scored
from multi_step_graphs import MULTI_STEP_GRAPHS
from strsr_graphs import STRSR_GRAPHS

AUTOENCODER = "autoencoder-tiny-x4"  # bundled, so that a template opens where no file of the paper is
GENERATOR = "lite-x4"  # likewise


def upscale_image() -> Graph:
    return {
        "1": node("LoadImage", image=EXAMPLE),
        "2": node("AlignSRLoadSRModel", model_name="lite-real-x4"),
        "3": node("AlignSROneStepSR", model=["2", 0], image=["1", 0], scale=4),
        "4": node("SaveImage", images=["3", 0], filename_prefix="alignsr/upscaled"),
        "5": node("AlignSRCompare", result=["3", 0], input=["1", 0], labels="input (bicubic), restored"),
        "6": node("PreviewImage", "Comparison", images=["5", 0]),
    }


def upscale_folder() -> Graph:
    return {
        "1": node("AlignSRLoadImageFolder", folder="photos", on_error="skip"),
        "2": node("AlignSRLoadSRModel", model_name="lite-real-x4"),
        "3": node("AlignSROneStepSR", model=["2", 0], image=["1", 0], scale=4),
        "4": node("SaveImage", images=["3", 0], filename_prefix=["1", 1]),
        "5": node("PreviewAny", "Files that could not be read", source=["1", 2]),
    }


def degrade_restore_score() -> Graph:
    return {
        "1": node("LoadImage", image=EXAMPLE),
        "2": node("AlignSRDegrade", image=["1", 0], preset="realesrgan", seed=0, scale=4, target="plain"),
        "3": node("AlignSRLoadSRModel", model_name="lite-real-x4"),
        "4": node("AlignSROneStepSR", model=["3", 0], image=["2", 0], scale=4),
        "5": node(
            "AlignSRIQAReward",
            images=["4", 0],
            metrics="psnr_y, ssim_y, lsd, lr_psnr",
            scale=4,
            reference=["2", 1],
            lq=["2", 0],
        ),
        "6": node("AlignSRCompare", result=["4", 0], input=["2", 0], reference=["2", 1]),
        "7": node("AlignSRSpectrum", image=["4", 0], reference=["2", 1], input=["2", 0]),
        "8": node(
            "AlignSRSaveReport",
            scores=["5", 0],
            filename_prefix="alignsr/report",
            pictures=["6", 0],
            more_pictures=["7", 0],
            params=["2", 2],
            info=["4", 2],
        ),
        "9": node("PreviewAny", "Scores", source=["5", 2]),
        "10": node("PreviewImage", "Difference", images=["6", 1]),
    }


def train_small_network() -> Graph:
    return {
        "1": node("AlignSRTrainSRNetwork", config="lite-x4", data_folder="training-pictures", out_name="my-lite-x4"),
        "2": node("LoadImage", image=EXAMPLE),
        "3": node("AlignSROneStepSR", model=["1", 1], image=["2", 0], scale=4),
        "4": node("SaveImage", images=["3", 0], filename_prefix="alignsr/my-lite-x4"),
        "5": node("PreviewImage", "Loss curve", images=["1", 2]),
        "6": node("PreviewAny", "Weights", source=["1", 0]),
    }


def pretrain_aesop_autoencoder() -> Graph:
    return {
        "1": node(
            "AlignSRTrainAutoEncoder",
            config="aesop-autoencoder",
            data_folder="DF2K",
            overrides=ONE_GPU,
            out_name="my-aesop-autoencoder",
        ),
        "2": node("LoadImage", image=EXAMPLE),
        "3": node("AlignSRAEView", autoencoder=["1", 1], image=["2", 0]),
        "4": node("PreviewImage", "What it keeps and removes", images=["3", 0]),
        "5": node("PreviewAny", "Health", source=["3", 3]),
        "6": node("PreviewImage", "Loss curve", images=["1", 2]),
        "7": node("PreviewAny", "Weights", source=["1", 0]),
    }


def train_aesop() -> Graph:
    return {
        "1": node("AlignSRAESOPAutoEncoder", model_name=AUTOENCODER),
        "2": node("AlignSRAESOPLoss", autoencoder=["1", 0], weight=1.0, power=1),
        "3": node("AlignSRArtifactLoss", weight=1.0, loss=["2", 0]),
        "4": node("AlignSRPerceptualLoss", weight=1.0, layers="synthetic", loss=["3", 0]),
        "5": node("AlignSRGANLoss", weight=0.005, kind="relativistic", loss=["4", 0]),
        "6": node(
            "AlignSRTrainPerceptualSR",
            config="aesop-rrdb-128",
            data_folder="DF2K",
            overrides=ONE_GPU,
            out_name="my-aesop-rrdb",
            loss=["5", 0],
        ),
        "7": node("LoadImage", image=EXAMPLE),
        "8": node("AlignSROneStepSR", model=["6", 1], image=["7", 0], scale=4),
        "9": node("SaveImage", images=["8", 0], filename_prefix="alignsr/my-aesop-rrdb"),
        "10": node("AlignSRCompare", result=["8", 0], input=["7", 0], labels="input (bicubic), AESOP"),
        "11": node("PreviewImage", "Comparison", images=["10", 0]),
        "12": node("PreviewImage", "Loss curves", images=["6", 2]),
        "13": node("PreviewAny", "Weights", source=["6", 0]),
    }


def train_aesop_real_world() -> Graph:
    return {
        "1": node("AlignSRAESOPAutoEncoder", model_name=AUTOENCODER),
        "2": node("AlignSRAESOPLoss", autoencoder=["1", 0], weight=1.0, power=1),
        "3": node("AlignSRPerceptualLoss", weight=1.0, layers="real", loss=["2", 0]),
        "4": node("AlignSRGANLoss", weight=0.1, kind="plain", loss=["3", 0]),
        "5": node(
            "AlignSRTrainPerceptualSR",
            config="aesop-real",
            data_folder="DF2K-OST",
            overrides=ONE_GPU,
            out_name="my-aesop-real",
            loss=["4", 0],
        ),
        "6": node("LoadImage", image=EXAMPLE),
        "7": node("AlignSRDegrade", image=["6", 0], preset="aesop_realworld", seed=0, scale=4, target="plain"),
        "8": node("AlignSROneStepSR", model=["5", 1], image=["7", 0], scale=4),
        "9": node("AlignSRCompare", result=["8", 0], input=["7", 0], reference=["7", 1]),
        "10": node("PreviewImage", "Comparison", images=["9", 0]),
        "11": node("PreviewImage", "Loss curves", images=["5", 2]),
        "12": node("PreviewAny", "Weights", source=["5", 0]),
    }


def upscale_with_aesop() -> Graph:
    return {
        "1": node("LoadImage", image=EXAMPLE),
        "2": node("AlignSRLoadSRModel", "AESOP network", model_name=GENERATOR),
        "3": node("AlignSROneStepSR", model=["2", 0], image=["1", 0], scale=4),
        "4": node("SaveImage", images=["3", 0], filename_prefix="alignsr/aesop"),
        "5": node("AlignSRCompare", result=["3", 0], input=["1", 0], labels="input (bicubic), restored"),
        "6": node("PreviewImage", "Comparison", images=["5", 0]),
        "7": node("PreviewAny", "Which network", source=["2", 1]),
    }


def view_autoencoder() -> Graph:
    return {
        "1": node("LoadImage", image=EXAMPLE),
        "2": node("AlignSRAESOPAutoEncoder", model_name=AUTOENCODER),
        "3": node("AlignSRAEView", autoencoder=["2", 0], image=["1", 0]),
        "4": node("SaveImage", "What it keeps and removes", images=["3", 0], filename_prefix="alignsr/autoencoder"),
        "5": node("PreviewImage", "Removed part", images=["3", 2]),
        "6": node("PreviewAny", "Health", source=["3", 3]),
    }


ABLATION = (  # title, config of the network, config of its auto-encoder (none: pixel loss), name of the results
    ("LDL", "ldl-rrdb-128", "", "ablation-ldl"),
    ("(a) bicubic encoder", "aesop-ablation-bicubic", "aesop-autoencoder-bicubic", "ablation-a"),
    ("(b) no LR term", "aesop-ablation-no-lr-term", "aesop-autoencoder-no-lr-term", "ablation-b"),
    ("(c) AESOP", "aesop-rrdb-128", "aesop-autoencoder", "ablation-c"),
)


def aesop_ablation() -> Graph:
    """Table 3: method number m = 0..3 has auto-encoder 1m, loss 2m, training 3m and result 5m."""
    graph: Graph = {
        "1": node("LoadImage", "Test picture", image=EXAMPLE),
        "2": node("AlignSRDegrade", image=["1", 0], preset="bicubic", seed=0, scale=4, target="plain"),
        "3": node("AlignSRArtifactLoss", weight=1.0),
        "4": node("AlignSRPerceptualLoss", weight=1.0, layers="synthetic", loss=["3", 0]),
        "5": node("AlignSRGANLoss", weight=0.005, kind="relativistic", loss=["4", 0]),
        "20": node("AlignSRPixelLoss", "LDL: pixel loss", weight=0.01, kind="l1", loss=["5", 0]),
    }
    data = {"data_folder": "DF2K", "overrides": ONE_GPU}
    for m, (title, config, autoencoder, name) in enumerate(ABLATION):
        if autoencoder:
            trained = f"{title}: auto-encoder"
            graph[f"1{m}"] = node("AlignSRTrainAutoEncoder", trained, config=autoencoder, out_name=f"{name}-autoencoder", **data)
            graph[f"2{m}"] = node(
                "AlignSRAESOPLoss", f"{title}: loss", autoencoder=[f"1{m}", 1], weight=1.0, power=1, loss=["5", 0]
            )
        graph[f"3{m}"] = node("AlignSRTrainPerceptualSR", title, config=config, out_name=name, loss=[f"2{m}", 0], **data)
        graph[f"5{m}"] = node("AlignSROneStepSR", f"{title}: result", model=[f"3{m}", 1], image=["2", 0], scale=4)
    return graph | scored(60, [f"5{m}" for m in range(4)], [title for title, *_ in ABLATION], "aesop-ablation")


def evaluate_folders() -> Graph:
    return {
        "1": node("AlignSRAESOPAutoEncoder", model_name=AUTOENCODER),
        "2": node(
            "AlignSREvaluateFolders",
            sr="LDL = results/Set14-LDL\nAESOP = results/Set14-AESOP",
            metrics="aesop, lsd",
            scale=4,
            published="Set14",
            gt="Set14",
            autoencoder=["1", 0],
        ),
        "3": node(
            "AlignSRSaveReport",
            scores=["2", 0],
            filename_prefix="alignsr/evaluation",
            pictures=["2", 3],
            more_pictures=["2", 4],
        ),
        "4": node("PreviewAny", "Table", source=["2", 2]),
        "5": node("PreviewImage", "Perception and distortion", images=["2", 4]),
    }


COMPARED = ("lite-x4", "pixel-x4", "lite-real-x4")  # bundled; method number m has model 1m and result 2m


def spectral_comparison() -> Graph:
    graph: Graph = {
        "1": node("LoadImage", image=EXAMPLE),
        "2": node("AlignSRDegrade", image=["1", 0], preset="bicubic", seed=0, scale=4, target="plain"),
    }
    for m, name in enumerate(COMPARED):
        graph[f"1{m}"] = node("AlignSRLoadSRModel", f"Method {m + 1}", model_name=name)
        graph[f"2{m}"] = node("AlignSROneStepSR", f"Method {m + 1}: result", model=[f"1{m}", 0], image=["2", 0], scale=4)
    return graph | {
        "30": node(
            "AlignSRCompare",
            result=["20", 0],
            result_2=["21", 0],
            result_3=["22", 0],
            input=["2", 0],
            reference=["2", 1],
            labels=", ".join(("input (bicubic)", *COMPARED, "ground truth")),
            panel_px=300,
        ),
        "31": node(
            "AlignSRSpectrum",
            image=["20", 0],
            image_2=["21", 0],
            image_3=["22", 0],
            reference=["2", 1],
            input=["2", 0],
            labels=["30", 3],
        ),
        "32": node(
            "AlignSRIQAReward",
            images=["30", 2],
            names=["30", 3],
            reference=["2", 1],
            lq=["2", 0],
            metrics="lsd, psnr_y, ssim_y, hf_energy",
            scale=4,
        ),
        "33": node(
            "AlignSRSaveReport",
            scores=["32", 0],
            filename_prefix="alignsr/spectral-comparison",
            pictures=["31", 0],
            more_pictures=["31", 3],
        ),
        "34": node("PreviewAny", "Spectra", source=["31", 2]),
        "35": node("PreviewImage", "Comparison", images=["30", 0]),
    }


START = "`ESRGAN_PSNR_SRx4_DF2K_official-150ff491.pth` (BasicSR's model zoo)"
VGG = "`vgg19-dcbb9e9d.pth` (torchvision)"
BATCH = "`run.accumulation_steps=4` makes the published batch of 4 GPUs on one; with less memory take more steps of a smaller "
BATCH += "`run.batch_size`"
GOES_ON = "Interrupt at any time and queue again: it goes on"

GRAPHS: dict[str, tuple[Graph, str]] = {
    "upscale-image": (
        upscale_image(),
        "## Upscale an image\n\nChoose a picture in **Load Image** and queue. The result goes to `output/alignsr`.\n\n"
        "- blurred, noisy or compressed picture: model `lite-real-x4`\n- clean, small picture: `lite-x4` or `pixel-x4`\n"
        "- out of memory: nothing to do, smaller tiles are tried; set `tile_px` to avoid the first try",
    ),
    "upscale-folder": (
        upscale_folder(),
        "## Upscale a folder\n\nPut pictures into `input/photos` (or type another path) and queue. Sizes may differ. "
        "Results keep their "
        "names in `output`; files that cannot be read are listed at the bottom.",
    ),
    "degrade-restore-score": (
        degrade_restore_score(),
        "## Degrade, restore, score\n\nA good picture is made bad as Real-ESRGAN does, restored, and measured against the "
        "original. "
        "The report (JSON, CSV, pictures) goes to `output/alignsr`.\n\n- another `seed`: other damage\n"
        "- `target` is plain because the bundled model was trained on plain targets",
    ),
    "train-small-network": (
        train_small_network(),
        "## Train a small network\n\nPut training pictures (100 or more, at least 192 px) into `input/training-pictures` "
        "and queue. The loss "
        "curve appears while it runs. Interrupt at any time and queue again: it goes on.\n\nThe settings are those of the "
        "bundled "
        "`lite-x4`, hours on a processor. For a first look put `run.steps=200` into `overrides`.",
    ),
    "pretrain-aesop-autoencoder": (
        pretrain_aesop_autoencoder(),
        "## Pretrain AESOP's auto-encoder\n\nStep 1 of 2, settings of the paper. Needs a GPU and:\n\n"
        f"- sharp pictures (DIV2K, Flickr2K) in `input/DF2K`\n- {START} in `models/alignsr`\n\n{GOES_ON}. Copy the weights to "
        "`models/alignsr` for **Train AESOP**.\n\n"
        "- real-world input: config `aesop-autoencoder-real`, which starts from `RealESRNet_x4plus.pth`\n"
        "- no GPU: config `aesop-autoencoder-tiny`, empty `overrides`\n"
        f"- {BATCH}",
    ),
    "train-aesop": (
        train_aesop(),
        "## Train AESOP\n\nStep 2 of 2, settings of the paper. Needs a GPU and:\n\n"
        f"- sharp pictures (DIV2K, Flickr2K) in `input/DF2K`; the last 100 by name are kept for validation\n- {START} and "
        "{VGG} in `models/alignsr`\n"
        "- for the paper's results its auto-encoder, chosen on the left: `AE_RRDBdecoder_100K.pth`, or yours of **Pretrain**. "
        f"`{AUTOENCODER}` is bundled\n\n{GOES_ON}.\n\n"
        "- other networks: config `aesop-rrdb-256`, `aesop-swinir-256`, `aesop-drct-256`\n"
        f"- {BATCH}",
    ),
    "train-aesop-real-world": (
        train_aesop_real_world(),
        "## Train AESOP for real-world pictures\n\nBlur, noise and JPEG are made while training, as the paper's code does. "
        "Needs a GPU and:\n\n"
        f"- sharp pictures (DF2K, OST) in `input/DF2K-OST`\n- `RealESRNet_x4plus.pth` and {VGG} in `models/alignsr`\n"
        f"- for the paper's results `RealAE_RRDBdecoder_100K.pth`, chosen on the left; `{AUTOENCODER}` is bundled\n\n{GOES_ON}."
        f"\n\n- {BATCH}",
    ),
    "upscale-with-aesop": (
        upscale_with_aesop(),
        "## Upscale with an AESOP network\n\nPut your weights of **Train AESOP**, or a released file, into `models/alignsr` or "
        "`models/upscale_models`, choose it in **AESOP network**, choose a picture and queue.\n\n"
        f"`{GENERATOR}` stands there because it is bundled: it was trained for fidelity alone, and shows the smooth result "
        "that AESOP goes beyond.",
    ),
    **STRSR_GRAPHS,
    **MULTI_STEP_GRAPHS,
    **ASASR_GRAPHS,
    **DP2O_GRAPHS,
    "view-autoencoder": (
        view_autoencoder(),
        "## What does the auto-encoder do?\n\nThe sheet shows a picture, what comes back from the auto-encoder, what it "
        "removed (AESOP's loss does not punish a network for differing there) and the spectra of all three. Choose a sharp "
        "picture; the sheet is saved in `output/alignsr`.\n\n"
        "- **Health**: PSNR of what comes back, share of fine detail kept, pixels out of range\n"
        "- a good one keeps shapes and colours, and removes texture only",
    ),
    "aesop-ablation": (
        aesop_ablation(),
        "## Ablation of AESOP (Table 3)\n\nFour networks by the same recipe, losses apart: LDL's pixel loss; (a) an "
        "auto-encoder with a bicubic encoder; (b) one without the LR term; (c) the full method. Three auto-encoders are "
        "trained first. The results of one picture are compared on a sheet and in a table, in `output/alignsr`.\n\n"
        f"Needs a GPU, many days, `input/DF2K`, {START} and {VGG} in `models/alignsr`. {GOES_ON}.\n\n"
        "- whole test sets: `alignsr upscale` with each of the four weights, then **evaluate-folders**",
    ),
    "spectral-comparison": (
        spectral_comparison(),
        "## Spectral comparison\n\nA sharp picture is made small, restored by three methods, and their spectra are held "
        "against the original's (ASASR, Fig. 6): how much energy there is at each spatial frequency, how far that is from the "
        "original (LSD), and in which band. Below 0 dB a method is too soft, above 0 dB it invents detail or noise. The report "
        "goes to `output/alignsr`.\n\n"
        "- other methods: choose other models, or connect any results of the same size, such as **Multi-Step SR** with and "
        "without an adapter; up to five in **Compare** and **Spectrum**. Name them in **Compare**'s `labels`\n"
        "- real-world input: `preset` asasr, the degradation of the paper\n"
        "- whole folders: `alignsr evaluate --gt DIR --sr DIR --spectra spectra.png`",
    ),
    "evaluate-folders": (
        evaluate_folders(),
        "## Evaluate folders\n\nScores folders of results against ground truth as AESOP's paper does, beside the numbers it "
        "prints. Put ground truth into `input/Set14` and results of the same names into `input/results/...`; a line per "
        "method: `NAME = folder`.\n\n"
        "- metrics without weights on disk are listed as missing; `lsd` needs none and stands in for LPIPS in the plane\n"
        f"- AE-PSNR of the bundled `{AUTOENCODER}` is not that of the paper: choose `AE_RRDBdecoder_100K.pth`\n"
        "- other sets: change `gt`, `sr` and `published`",
    ),
}
