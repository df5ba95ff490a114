"""Show the pictures of several methods to a judge each, one picture in memory at a time."""

from collections.abc import Callable, Collection, Iterable, Mapping

from torch import Tensor

from ..checks import check_positive_int
from ..evaluate import Progress
from ..images import quantize_8bit
from ..metrics.table import Row, Table
from ..pairs import Pair, load_pair
from ..resize import bicubic
from .judge import Judge


def evaluate_task(
    methods: Mapping[str, Iterable[Pair]],
    make_judge: Callable[[], Judge],
    *,
    inputs: Collection[str] = (),
    scale: int = 4,
    progress: Progress | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> list[Table]:
    """Score a task downstream on the pictures of every method.

    Args:
        methods: name -> pairs, of which `sr` is looked at; may be generators.
        make_judge: a new judge, with nothing counted yet; called once per method.
        inputs: the methods that are low-resolution inputs: enlarged (bicubic) to the size of the labels, or `scale` times where
            labels have none. All other pictures must have that size already.
        scale: upscale factor for `inputs`.
        progress: called after each picture with (number done over all methods, None, name).
        should_stop: asked before each picture; True ends the run, and the tables keep what was done.

    Returns:
        A table per method, its title being the method's name: scores of the whole set, and of each picture where a picture alone
        has a score.

    Raises:
        ValueError: a picture without labels or of another size, or a class that the labels do not have.
    """
    check_positive_int(scale, "scale")
    tables: list[Table] = []
    seen = 0
    for method, pairs in methods.items():
        judge = make_judge()
        rows: list[Row] = []
        complete = True
        for pair in pairs:
            if should_stop is not None and should_stop():
                complete = False
                break
            image = _fitted(pair, judge.size_of(pair.name), scale if method in inputs else 0)
            rows.append(Row(pair.name, judge.see(pair.name, image)))
            seen += 1
            if progress is not None:
                progress(seen, None, pair.name)
        remarks = (*judge.remarks, *(("enlarged by bicubic interpolation first",) if method in inputs else ()))
        scores = judge.result() if rows else {}
        missing = {name: "nothing to score in these pictures" for name in judge.metrics if name not in scores}
        tables.append(
            Table(
                judge.metrics, tuple(rows), scores, missing, remarks=remarks, scale=scale, crop=0, title=method, complete=complete
            )
        )
        if not complete:
            break
    return tables


def _fitted(pair: Pair, size: tuple[int, int] | None, scale: int) -> Tensor:
    """The picture as RGB of the labels' size; `scale` above 0: an input that has to be enlarged."""
    image, _, _ = load_pair(Pair(pair.name, pair.sr))
    here = (image.shape[-2], image.shape[-1])
    if scale:
        wanted = size or (here[0] * scale, here[1] * scale)
        return quantize_8bit(bicubic(image, wanted).clamp(0, 1))
    if size is not None and here != size:
        raise ValueError(
            f"{pair.name}: expected the size of its labels {size[1]}x{size[0]}, got {here[1]}x{here[0]}; check the scale"
        )
    return quantize_8bit(image)
