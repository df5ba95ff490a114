import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from alignsr.core.image_files import ImageFileError, list_images, read_image, to_pil, write_image
from reference.formula import U


@pytest.mark.parametrize("suffix", [".png", ".webp", ".bmp", ".tif", ".jpg"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_round_trip_of_every_format(suffix, channels, tmp_path):
    x = U(f"file/{channels}", 1, channels, 16, 24)
    if channels == 4 and suffix in (".jpg", ".bmp"):
        with pytest.raises(ValueError, match="format with transparency"):
            write_image(tmp_path / f"a{suffix}", x)
        return
    smooth = torch.nn.functional.avg_pool2d(x, 5, 1, 2)
    back = read_image(write_image(tmp_path / f"a{suffix}", smooth, quality=100)).pixels
    lossless = suffix in (".png", ".bmp", ".tif")
    back = back if back.shape[1] == channels else back[:, :channels]
    error = (back - smooth).abs()
    assert float(error.max() if lossless else error.mean()) <= (0.5 / 255 + 1e-6 if lossless else 0.02)


def test_saving_a_ramp_rounds_and_does_not_truncate(tmp_path):
    """strsr.md check 30: mean error below 0.01 grey level; truncation has -0.5."""
    ramp = torch.linspace(0, 1, 64 * 64).view(1, 1, 64, 64)
    error = (read_image(write_image(tmp_path / "ramp.png", ramp)).pixels - ramp).mean() * 255
    assert abs(float(error)) < 0.01


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_survive(channels, suffix, tmp_path):
    values = (U(f"file16/{channels}", 1, channels, 9, 11) * 65535).round() / 65535
    first = tmp_path / f"a{suffix}"
    write_image(first, values, like=read_image(_sixteen_bit_grey(tmp_path)))
    if channels == 1:
        again = read_image(first)
        assert again.bit_depth == 16
        assert torch.allclose(again.pixels, values, atol=1e-7)
    elif suffix == ".tif":
        import tifffile

        assert np.array_equal(tifffile.imread(first), (values[0].movedim(0, -1) * 65535).round().numpy().astype(np.uint16))
    else:
        assert np.array_equal(
            _decode_png16(first.read_bytes()), (values[0].movedim(0, -1) * 65535).round().numpy().astype(np.uint16)
        )
        with Image.open(first) as opened:
            opened.verify()


def _sixteen_bit_grey(folder):
    path = folder / "grey16.png"
    Image.fromarray(np.arange(16, dtype=np.uint16).reshape(4, 4) * 4000).save(path)
    return path


def _decode_png16(data):
    """An independent little reader for unfiltered 16-bit PNG."""
    position, parts, header = 8, b"", None
    while position < len(data):
        (length,), tag = struct.unpack(">I", data[position : position + 4]), data[position + 4 : position + 8]
        body = data[position + 8 : position + 8 + length]
        assert zlib.crc32(tag + body) == struct.unpack(">I", data[position + 8 + length : position + 12 + length])[0]
        header = struct.unpack(">IIBBBBB", body) if tag == b"IHDR" else header
        parts += body if tag == b"IDAT" else b""
        position += 12 + length
    width, height, depth, kind = header[:4]
    assert depth == 16
    channels = {0: 1, 2: 3, 6: 4}[kind]
    rows = np.frombuffer(zlib.decompress(parts), np.uint8).reshape(height, -1)
    assert not rows[:, 0].any()
    return rows[:, 1:].copy().view(">u2").reshape(height, width, channels)


def test_exif_icc_and_orientation(tmp_path):
    image = Image.fromarray((U("file/exif", 4, 6, 3).numpy() * 255).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: 4x6 on file is 6x4 to look at
    exif[0x010F] = "Maker"
    image.save(tmp_path / "a.jpg", exif=exif, icc_profile=b"profile" * 20, quality=100, subsampling=0)
    opened = read_image(tmp_path / "a.jpg")
    assert opened.pixels.shape == (1, 3, 6, 4)
    write_image(tmp_path / "b.jpg", opened.pixels, like=opened)
    with Image.open(tmp_path / "b.jpg") as again:
        assert again.info["icc_profile"] == b"profile" * 20
        assert again.getexif().get(0x010F) == "Maker"
        assert again.getexif().get(0x0112) in (None, 1)  # not turned a second time
        assert again.size == (4, 6)


def test_palette_with_transparency_is_rgba(tmp_path):
    palette = Image.new("P", (4, 4))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.save(tmp_path / "p.png", transparency=0)
    assert read_image(tmp_path / "p.png").pixels.shape[1] == 4


def test_unusable_files_are_named(tmp_path):
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "empty.png").write_bytes(b"")
    Image.new("RGB", (64, 64), (9, 99, 200)).save(tmp_path / "whole.bmp")
    (tmp_path / "cut.bmp").write_bytes((tmp_path / "whole.bmp").read_bytes()[:300])
    header = struct.pack(">IIBBBBB", 20000, 20000, 8, 2, 0, 0, 0)
    chunks = b"".join(
        struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body))
        for tag, body in ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))))
    )
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    for name, message in (
        ("text.png", "another kind"),
        ("empty.png", "empty file"),
        ("cut.bmp", "truncated"),
        ("bomb.png", "20000x20000|more"),
    ):
        with pytest.raises(ImageFileError, match=f"{name}.*({message})"):
            read_image(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="expected a file"):
        read_image(tmp_path / "missing.png")


def test_a_failed_write_leaves_nothing_and_keeps_the_old_file(tmp_path, monkeypatch):
    path = write_image(tmp_path / "a.png", torch.zeros(1, 3, 4, 4))
    before = path.read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_image(path, torch.ones(1, 3, 4, 4))
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_folder_listing_is_sorted_and_deep(tmp_path):
    for name in ("b.png", "a.JPG", "sub/c.webp", "note.txt", ".hidden.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert [p.relative_to(tmp_path).as_posix() for p in list_images(tmp_path)] == ["a.JPG", "b.png", "sub/c.webp"]


def test_to_pil_rounds():
    assert to_pil(torch.full((1, 1, 1, 1), 0.6 / 255)).getpixel((0, 0)) == 1


@pytest.mark.parametrize(
    ("name", "shape", "change", "message"),
    [
        ("a.jpg", (1, 1, 1, 65501), {}, "path: expected sides of at most 65500 px for .jpg, got 65501x1; use .png"),
        ("a.webp", (1, 3, 16384, 1), {}, "path: expected sides of at most 16383 px for .webp, got 1x16384"),
        ("a.png", (2, 3, 4, 4), {}, "pixels: expected one picture"),
        ("a.jpg", (1, 3, 4, 4), {"quality": 500}, "quality: expected an integer in 1..100, got 500"),
    ],
)
def test_pictures_that_cannot_be_written_are_named(tmp_path, name, shape, change, message):
    with pytest.raises(ValueError, match=message):
        write_image(tmp_path / name, torch.zeros(shape), **change)
    with pytest.raises(ValueError, match="pixels: expected finite values"):
        write_image(tmp_path / name, torch.full((1, 3, 4, 4), float("nan")))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("worst", [255.0, -3.0])
def test_floating_point_files_hold_the_unit_range_or_are_refused(tmp_path, worst):
    values = np.linspace(0, 1.2, 12, dtype=np.float32).reshape(3, 4)
    Image.fromarray(values).save(tmp_path / "good.tif")
    assert torch.equal(read_image(tmp_path / "good.tif").pixels[0, 0], torch.from_numpy(values).clamp(0, 1))
    values[1, 2] = worst
    Image.fromarray(values).save(tmp_path / "bad.tif")
    with pytest.raises(ImageFileError, match=r"bad\.tif: expected floating-point samples in \[0, 1\]"):
        read_image(tmp_path / "bad.tif")
