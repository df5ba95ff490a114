"""The command evaluate-task: what detectors, segmenters and OCR engines make of restored pictures."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from .evaluate import folders_of, terminal_width
from .terminal import (
    DeviceOption,
    JsonFile,
    Progress,
    Quiet,
    ScaleOption,
    check_reports,
    choose_device,
    ctrl_c_asks,
    find_weights,
    whole_number,
    write_json,
    write_text,
)

GT, LQ = "ground truth", "input"  # as the published rows call them


def evaluate_task(
    task: Annotated[str, typer.Argument(metavar="TASK", help="detection, semantic or ocr.")],
    labels: Annotated[
        Path,
        typer.Option(
            "--labels",
            metavar="PATH",
            help="detection: COCO's JSON file; semantic: folder of label pictures; ocr: folder of word lists.",
            show_default=False,
        ),
    ],
    sr: Annotated[
        list[str] | None,
        typer.Option("--sr", metavar="[NAME=]DIR", help="Folder of results to score; once per method.", show_default=False),
    ] = None,
    gt: Annotated[
        Path | None, typer.Option("--gt", metavar="DIR", help="Folder of ground truth, a row of its own.", show_default=False)
    ] = None,
    lq: Annotated[
        Path | None,
        typer.Option("--lq", metavar="DIR", help="Folder of inputs, a row of its own (enlarged).", show_default=False),
    ] = None,
    weights: Annotated[
        str,
        typer.Option(
            "--weights",
            metavar="PATH",
            help="detection: a Mask R-CNN file of torchvision; semantic: a SegFormer folder of transformers; ocr: a folder with "
            "PaddleOCR's models det and rec.",
            show_default=False,
        ),
    ] = "",
    words: Annotated[
        list[str] | None,
        typer.Option(
            "--words",
            metavar="[NAME=]DIR",
            help="ocr, instead of --sr and --weights: words that an engine of yours has read, a file per picture.",
            show_default=False,
        ),
    ] = None,
    first_label: Annotated[
        int,
        typer.Option("--first-label", metavar="N", help="semantic: the level of class 0 in the label pictures (ADE20K: 1)."),
    ] = 1,
    scale: ScaleOption = 4,
    published: Annotated[
        str,
        typer.Option("--published", metavar="SET", help="Numbers to print beside ours: auto, none, or a set: asasr-ablation."),
    ] = "auto",
    device: DeviceOption = "auto",
    quiet: Quiet = False,
    json_file: JsonFile = None,
    csv: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Write a CSV table.", show_default=False)] = None,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", metavar="FILE", help="Write a Markdown table.", show_default=False)
    ] = None,
    picture: Annotated[Path | None, typer.Option("--picture", metavar="PNG", help="Draw the table.", show_default=False)] = None,
) -> None:
    """Score what a network sees in restored pictures: objects, classes of pixels, or words.

    Pictures need the size of their labels and their names (`street_x4.png` belongs to `street.txt`). Nothing is downloaded:
    --weights names files on this computer. Word lists are .txt files with a line `x1,y1,x2,y2,x3,y3,x4,y4,text` or
    `left,top,right,bottom,text` per word, or .json files; ### marks words to ignore. Detection needs
    `python -m pip install 'alignsr[downstream]'`.
    """
    from ..core.checks import did_you_mean
    from ..core.metrics.comparison import Comparison
    from ..core.metrics.published import find_set
    from ..core.tasks import TASKS
    from ..core.tasks.run import evaluate_task as evaluate

    if task not in TASKS:
        raise ValueError(f"TASK: expected {', '.join(TASKS)}, got {task!r}; {did_you_mean(task, list(TASKS))}")
    check_reports(json_file, csv, markdown, picture)
    if picture is not None and picture.suffix.lower() != ".png":
        raise ValueError(f"--picture: expected the name of a PNG file, got {picture}; end it in .png")
    name = TASKS[task].published if published == "auto" else published
    dataset = "" if name == "none" else find_set(name)
    if words and task != "ocr":
        raise ValueError(f"--words: expected the task ocr, got {task}; give pictures with --sr")
    factor = whole_number(scale, "--scale")
    if words:
        if sr or gt or lq or weights:
            raise ValueError("--words: expected no --sr, --gt, --lq or --weights beside it, got some; leave them out")
        tables = _score_words(folders_of(words, "--words"), labels)
    else:
        methods = _methods(sr or [], gt, lq)
        make = _judges(task, labels, weights, choose_device(device), first_label)
        with Progress(sum(map(len, methods.values())), quiet) as bar, ctrl_c_asks() as cancelled:
            tables = evaluate(
                methods,
                make,
                inputs=(LQ,),
                scale=factor,
                progress=lambda done, _total, image: bar.update(done, image),
                should_stop=cancelled,
            )
    comparison = Comparison.of(tables, dataset, (GT, LQ))
    write_json(json_file, comparison.to_dict())
    if csv is not None:
        write_text(csv, comparison.to_csv())
    if markdown is not None:
        write_text(markdown, comparison.to_markdown())
    if picture is not None:
        _draw(comparison, picture)
    if not quiet:
        typer.echo(comparison.to_text(terminal_width()), nl=False, err=str(json_file) == "-")
    if not all(table.complete for table in tables):
        raise KeyboardInterrupt


def _methods(sr: list[str], gt: Path | None, lq: Path | None) -> dict[str, list[Any]]:
    """The rows to come: ground truth, input, methods.

    Raises:
        ValueError: nothing to look at, or a method with the name of another row.
    """
    from ..core.evaluate import pairs_from_folders

    found = folders_of(sr, "--sr")
    taken = next((name for name in found if name in (GT, LQ)), None)
    if taken is not None:
        raise ValueError(f"--sr: expected another name, got {taken}, which is a row of its own; write --sr NAME=DIR")
    if not (found or gt or lq):
        raise ValueError("--sr: expected pictures to score, got none; name folders with --sr, --gt or --lq")
    references = {GT: gt, LQ: lq}
    methods = {name: pairs_from_folders(folder) for name, folder in references.items() if folder is not None}
    return methods | {name: pairs_from_folders(folder, gt) for name, folder in found.items()}


def _judges(task: str, labels: Path, weights: str, device: Any, first_label: int) -> Callable[[], Any]:
    """A maker of judges: labels and network are read once."""
    if not weights:
        more = ", or give the words that were read with --words" if task == "ocr" else ""
        raise ValueError(f"--weights: expected the network's files for {task}, got none; see --help{more}")
    if task == "detection":
        from ..core.tasks.coco import Annotations
        from ..core.tasks.mask_rcnn import DetectionJudge, MaskRCNN

        annotations, file = Annotations.read(labels), find_weights(weights)
        detector = MaskRCNN.load(file, device)
        return lambda: DetectionJudge(detector, annotations, (f"Mask R-CNN: {file.name}",))
    from ..core.tasks.pictures import Labels

    if task == "semantic":
        from ..core.tasks.semantic import SegFormer, SemanticJudge

        maps, segmenter = Labels(labels, (".png",)), SegFormer.load(weights, device)
        note = (f"SegFormer: {Path(weights).name}, short side {segmenter.short_side_px} px",)
        return lambda: SemanticJudge(segmenter, segmenter.classes, maps, first_label=first_label, remarks=note)
    from ..core.tasks.ocr import OCRJudge, PaddleReader
    from ..core.tasks.words import SUFFIXES

    lists, reader = Labels(labels, SUFFIXES), PaddleReader.load(weights)
    return lambda: OCRJudge(reader, lists, (f"PaddleOCR: models in {weights}",))


def _score_words(methods: dict[str, Path], labels: Path) -> list[Any]:
    """Tables of words that were read elsewhere."""
    from ..core.tasks.ocr import score_word_files
    from ..core.tasks.pictures import Labels
    from ..core.tasks.words import SUFFIXES

    truth = Labels(labels, SUFFIXES)
    return [score_word_files(name, Labels(folder, SUFFIXES), truth) for name, folder in methods.items()]


def _draw(comparison: Any, path: Path) -> None:
    from ..core.evaluation_pictures import table_picture
    from ..core.weights import write_atomic

    image = table_picture(comparison)
    write_atomic(path, lambda part: image.save(part, format="PNG"))
