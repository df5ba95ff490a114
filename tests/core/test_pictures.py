"""Pictures for people, tested for what they show: the right pixels in the right panel, marks where they belong."""

import numpy as np
import pytest
import torch
from PIL import Image

from alignsr.core import drawing, plots
from alignsr.core.pictures import contact_sheet, curves, difference, side_by_side, spectra, table, thumbnail


def noise(height=60, width=80, channels=3, batch=1, seed=0):
    return torch.rand(batch, channels, height, width, generator=torch.Generator().manual_seed(seed))


def pixels(picture):
    return np.asarray(picture.convert("RGB")).astype(int)


def holds(picture, part):
    """Does `picture` contain the RGB array `part` exactly, anywhere?"""
    whole, wanted = pixels(picture), part
    height, width = wanted.shape[:2]
    starts = np.argwhere((whole == wanted[0, 0]).all(-1))
    return any(
        top + height <= whole.shape[0]
        and left + width <= whole.shape[1]
        and (whole[top : top + height, left : left + width] == wanted).all()
        for top, left in starts
    )


def test_crops_are_pixels_of_each_image_enlarged_by_a_whole_factor():
    first, second = noise(seed=1), noise(seed=2)
    sheet = side_by_side({"a": first, "b": second}, crops=[(40, 30)], crop_px=10, panel_px=200)
    factor = (200 - 8) // 10
    for image in (first, second):
        crop = (image[0, :, 25:35, 35:45] * 255).round().int().movedim(0, -1).numpy()
        assert holds(sheet, crop.repeat(factor, 0).repeat(factor, 1))


def test_crops_look_for_detail_and_keep_apart():
    image = torch.full((1, 3, 120, 160), 0.5)
    image[..., 10:40, 10:40] = noise(30, 30)
    image[..., 80:110, 120:150] = noise(30, 30)
    from alignsr.core.pictures import _busiest

    boxes = _busiest(drawing.as_picture(image), 2, 24)
    centres = sorted(((left + right) / 2, (top + bottom) / 2) for left, top, right, bottom in boxes)
    assert abs(centres[0][0] - 25) < 8 and abs(centres[0][1] - 25) < 8
    assert abs(centres[1][0] - 135) < 8 and abs(centres[1][1] - 95) < 8


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (200, 3), (61, 47)])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_side_by_side_takes_any_size_and_channels(size, channels):
    sheet = side_by_side({"small": noise(5, 5, channels), "large": noise(*size, channels)}, crops=2, panel_px=120)
    assert sheet.mode == "RGB" and sheet.width == 2 * 120 + 12 + 32


def test_side_by_side_refusals():
    with pytest.raises(ValueError, match=r"^images: expected at least one"):
        side_by_side({})
    with pytest.raises(ValueError, match=r"^crops: expected centres inside 80x60, got \(80, 3\)"):
        side_by_side({"a": noise()}, crops=[(80, 3)])


def test_alpha_shows_a_chequerboard():
    clear = torch.zeros(1, 4, 32, 32)
    shown = pixels(drawing.as_picture(clear))
    assert {tuple(colour) for colour in shown.reshape(-1, 3)} == {(208, 208, 208), (240, 240, 240)}


def test_difference_is_dark_where_equal_and_bright_at_the_top_of_its_scale():
    a = torch.full((1, 3, 330, 330), 0.5)
    b = a.clone()
    b[..., :165] += 20 / 255
    heat = pixels(difference(a, b, top_255=20.0))
    left, right = heat[100, 50], heat[100, 300]
    assert left.sum() > 500 and right.sum() < 20
    assert holds(difference(a, a), np.zeros((50, 50, 3), int) + pixels(difference(a, a))[100, 100])
    strip = torch.zeros(1, 3, 800, 1)
    assert difference(strip, strip).height < 2000, "a thin picture is not blown up to the usual width"
    with pytest.raises(ValueError, match=r"^a: expected the shape of b"):
        difference(a, a[..., :3])


def drawn(monkeypatch, series, **options):
    """The matplotlib figure of `curves`."""
    figures = []
    original = plots._to_image
    monkeypatch.setattr(plots, "_to_image", lambda figure: figures.append(figure) or original(figure))
    assert curves(series, x_label="step", title="t", **options).size == (800, 480)
    return figures[-1]


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("log_y", [False, True])
def test_steps_are_counted_in_whole_numbers(steps, log_y, monkeypatch):
    figure = drawn(monkeypatch, {"loss": [(float(i + 1), 1 / (i + 1)) for i in range(steps)]}, log_y=log_y)
    ticks = figure.axes[0].get_xticks()
    assert len(ticks) >= 1 and all(float(tick).is_integer() for tick in ticks)
    if steps == 1:
        assert list(ticks) == [1]


def test_a_curve_of_one_step_says_its_values_and_no_point_hides_another(monkeypatch):
    figure = drawn(monkeypatch, {"loss": [(1.0, 0.0512)], "psnr": [(1.0, 28.25)]})
    assert [axes.texts[0].get_text() for axes in figure.axes] == ["0.0512", "28.25"]
    heights = [axes.transData.transform((1.0, y))[1] for axes, y in zip(figure.axes, (0.0512, 28.25), strict=True)]
    assert abs(heights[0] - heights[1]) > 20


def test_an_axis_that_is_not_counted_in_steps_keeps_its_fractions(monkeypatch):
    figure = drawn(monkeypatch, {"loss": [(0.25, 1.0), (0.75, 2.0)]})
    assert any(not float(tick).is_integer() for tick in figure.axes[0].get_xticks())


def test_many_curves_are_told_apart_and_decibels_have_a_panel_of_their_own(monkeypatch):
    losses = {f"discriminator/loss number {n}": [(float(i + 1), 2.0 + n / 60 + i / 50) for i in range(5)] for n in range(18)}
    scores = {"psnr_y": [(1.0, 24.0), (5.0, 25.0)], "lr_psnr": [(1.0, 44.0), (5.0, 60.0)]}
    figures = []
    original = plots._to_image
    monkeypatch.setattr(plots, "_to_image", lambda figure: figures.append(figure) or original(figure))
    picture = curves(losses | scores, x_label="step", title="t", decibels=list(scores))
    (figure,) = figures
    upper, lower = figure.axes
    assert lower.get_ylabel() == "dB" and [line.get_label() for line in lower.lines] == list(scores)
    looks = [(line.get_color(), line.get_linestyle()) for axes in figure.axes for line in axes.lines]
    assert len(set(looks)) == len(looks) == 20
    assert upper.get_ylim()[1] < 5, "losses keep an axis of their own size"
    (legend,) = figure.legends
    texts = [text.get_window_extent() for text in legend.get_texts()]
    assert len(texts) == 20 and all(box.x0 >= 0 and box.x1 <= picture.width for box in texts)
    assert not any(a.overlaps(b) for n, a in enumerate(texts) for b in texts[:n])
    assert all(box.y1 < lower.get_window_extent().y0 for box in texts)


def test_curves_merge_equal_series_and_smooth_long_ones():
    short = [(float(i), 1.0) for i in range(5)]
    assert curves({"a": short, "b": short}, x_label="step", title="t").size == (800, 480)
    noisy = [(float(i), float(i % 2)) for i in range(200)]
    picture = pixels(curves({"a": noisy}, x_label="step", title="t"))
    middle = picture[205:235, 150:700]  # the moving mean runs through the middle of the axis in full colour
    assert (np.abs(middle - np.array([31, 119, 180])).sum(-1) < 30).any(0).mean() > 0.9
    with pytest.raises(ValueError, match=r"^series: expected at least one"):
        curves({}, x_label="step", title="t")


def test_spectra_draw_every_curve_and_the_grid():
    line = [(i / 64, -float(i)) for i in range(1, 32)]
    plain = spectra({"reference": line})
    more = spectra({"reference": line, "restored": [(x, y - 5) for x, y in line]}, distances={"restored": 5.0})
    assert plain.size == more.size == (900, 540)
    orange = (np.abs(pixels(more) - np.array([255, 127, 14])).sum(-1) < 40).sum()
    assert orange > 300 and (np.abs(pixels(plain) - np.array([255, 127, 14])).sum(-1) < 40).sum() == 0
    without_grid = spectra({"reference": line}, grid_px=())
    renamed = spectra({"picture": line}, grid_px=(), reference="picture")
    assert (pixels(renamed).max(-1) < 30).sum() > 0.8 * (pixels(without_grid).max(-1) < 30).sum(), "black, whatever its name"
    marked = spectra({"reference": line}, grid_px=(), marks={"limit": 0.25})
    assert (pixels(marked) != pixels(without_grid)).any(-1).any(0)[440:520].any(), "a line at half the width"
    assert not np.array_equal(pixels(plain), pixels(without_grid))
    with pytest.raises(ValueError, match=r"^series: expected"):
        spectra({})


def test_table_marks_cells_and_grows_with_rows():
    rows = [["a", "1"], ["b", "2"]]
    plain, marked = table(["name", "x"], rows), table(["name", "x"], rows, marked={(1, 1)})
    green = np.array(drawing.GOOD)
    assert not (pixels(plain) == green).all(-1).any() and (pixels(marked) == green).all(-1).any()
    ruled = table(["name", "x"], rows, ruled=(1,))
    assert (
        ruled.size == plain.size
        and (pixels(ruled) == np.array(drawing.RULE)).all(-1).sum() > (pixels(plain) == np.array(drawing.RULE)).all(-1).sum()
    ), "one line more"
    assert table(["name", "x"], rows * 5).height > plain.height
    with pytest.raises(ValueError, match=r"^rows: expected 2 cells in every row, got \[3\]"):
        table(["name", "x"], [["a", "b", "c"]])


def test_long_words_are_cut_in_the_middle():
    short = drawing.shorten("a_very_long_name_of_a_file.png", 15, 120)
    assert drawing.text_width(short, 15) <= 120 and short.startswith("a_v") and short.endswith(".png") and "\u2026" in short
    assert drawing.shorten("x.png", 15, 120) == "x.png"


def test_contact_sheet_shows_every_picture():
    reds = {f"{i}": Image.new("RGB", (20, 10), (40 * i, 0, 0)) for i in range(1, 6)}
    shown = {tuple(colour) for colour in pixels(contact_sheet(reds, columns=3, cell_px=40)).reshape(-1, 3)}
    assert {(40 * i, 0, 0) for i in range(1, 6)} <= shown


def test_thumbnail_has_the_size_and_the_middle():
    image = Image.new("RGB", (300, 100), (255, 0, 0))
    image.paste((0, 0, 255), (100, 0, 200, 100))
    small = thumbnail(image, 60, 60)
    assert small.size == (60, 60) and small.getpixel((30, 30)) == (0, 0, 255)


def test_a_score_far_above_a_negative_loss_gets_its_own_axis():
    """Otherwise both are flat lines: a PSNR loss is near -22 where the score is near +24."""
    from alignsr.core.plots import _is_elsewhere

    loss = [(0, -21.0), (50, -22.5), (100, -23.0)]
    assert _is_elsewhere([(50, 23.8), (100, 23.9)], loss)
    assert not _is_elsewhere([(50, -21.5), (100, -22.9)], loss)
    assert _is_elsewhere([(50, 31.0)], [(0, 0.04), (50, 0.03)])
    assert not _is_elsewhere([(50, 0.05)], [(50, 0.04)])
