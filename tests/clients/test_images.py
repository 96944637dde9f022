from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from openpi_client import image_tools
from PIL import Image

from clients.errors import RoboserveError
from clients.images import decode_image, encode_image, fitted_size, resize_with_pad


def picture(height: int = 48, width: int = 64) -> np.ndarray:
    """A smooth picture, as cameras give: JPEG keeps it well."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)], axis=2).astype(np.uint8)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def claiming(width: int, height: int) -> bytes:
    """A JPEG of a few hundred bytes whose header claims another size."""
    data = bytearray(saved(Image.new("RGB", (8, 8)), "JPEG"))
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of RGB pixels from raw chunks, with right checksums."""
    header = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in (header, *chunks, (b"IEND", b""))
    )
    return b"\x89PNG\r\n\x1a\n" + body


def refused(value: object, *, max_pixels: int = 4096 * 4096) -> RoboserveError:
    with pytest.raises(RoboserveError) as refusal:
        decode_image(value, field="images.wrist", max_pixels=max_pixels)
    assert refusal.value.message.startswith("images.wrist: ")
    assert "0x" not in refusal.value.message
    assert "object at" not in refusal.value.message
    return refusal.value


@pytest.mark.parametrize("codec", ["png", "raw"])
def test_exact_codecs_give_every_pixel_back(codec: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (33, 57, 3), dtype=np.uint8)
    np.testing.assert_array_equal(decode_image(encode_image(noise, codec), field="image"), noise)


def test_jpeg_shifts_pixels_a_little_and_shrinks_them_a_lot() -> None:
    image = picture(224, 224)
    data = encode_image(image, "jpeg", quality=90)
    got = decode_image(data, field="image").astype(int)
    assert len(data) < image.nbytes / 10
    assert np.abs(got - image).mean() < 2
    assert np.abs(got - image).max() > 0


def test_quality_trades_bytes_for_likeness() -> None:
    image = picture()
    low, high = (encode_image(image, "jpeg", quality=quality) for quality in (20, 95))
    assert len(low) < len(high)


def test_slices_of_a_frame_can_be_sent() -> None:
    image = picture()[::2, ::-1]
    for codec in ("png", "raw"):
        np.testing.assert_array_equal(decode_image(encode_image(image, codec), field="image"), image)


def test_progressive_jpeg_and_transparent_png_are_read_as_rgb() -> None:
    image = Image.fromarray(picture())
    assert decode_image(saved(image, "JPEG", progressive=True), field="image").shape == (48, 64, 3)
    got = decode_image(saved(image.convert("RGBA"), "PNG"), field="image")
    np.testing.assert_array_equal(got, picture())


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((3, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
    ],
    ids=lambda image: f"{image.dtype} {image.shape}",
)
def test_a_robot_cannot_send_what_is_no_rgb_image(image: np.ndarray) -> None:
    for codec in ("jpeg", "png", "raw"):
        with pytest.raises(RoboserveError, match="invalid_image"):
            encode_image(image, codec)


def test_an_unknown_codec_is_named() -> None:
    with pytest.raises(RoboserveError, match="'webp'; allowed are jpeg, png, raw"):
        encode_image(picture(), "webp")


@pytest.mark.parametrize(
    ("array", "word"),
    [
        (np.zeros((4, 4, 3), np.float32), "float32"),
        (np.zeros((4, 4, 3), np.int8), "int8"),
        (np.zeros((4, 4), np.uint8), "(4, 4)"),
        (np.zeros((4, 4, 1), np.uint8), "(4, 4, 1)"),
        (np.zeros((4, 4, 4), np.uint8), "(4, 4, 4)"),
        (np.zeros((1, 4, 4, 3), np.uint8), "(1, 4, 4, 3)"),
        (np.zeros((0, 4, 3), np.uint8), "(0, 4, 3)"),
        (np.zeros((4, 0, 3), np.uint8), "(4, 0, 3)"),
    ],
    ids=lambda value: f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else None,
)
def test_raw_arrays_of_the_wrong_kind_are_refused(array: np.ndarray, word: str) -> None:
    error = refused(array)
    assert error.code == "invalid_image"
    assert word in error.message


@pytest.mark.parametrize("value", [None, 1, "text", [1, 2], {}, bytearray(b"\xff\xd8\xff"), True], ids=repr)
def test_other_values_are_refused(value: object) -> None:
    assert refused(value).code == "invalid_image"


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF", "WEBP", "JPEG2000", "PPM", "ICO"])
def test_formats_beyond_jpeg_and_png_are_refused_unread(kind: str) -> None:
    error = refused(saved(Image.fromarray(picture()), kind))
    assert error.code == "invalid_image"
    assert "neither JPEG nor PNG" in error.message


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_jpeg_of_other_colours_is_refused(mode: str) -> None:
    assert mode in refused(saved(Image.fromarray(picture()).convert(mode), "JPEG")).message


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "I;16"])
def test_png_of_other_colours_is_refused(mode: str) -> None:
    assert refused(saved(Image.new(mode, (8, 8)), "PNG")).code == "invalid_image"


@pytest.mark.parametrize("codec", ["jpeg", "png"])
def test_a_picture_cut_anywhere_is_refused(codec: str) -> None:
    data = encode_image(np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8), codec)
    for cut in range(0, len(data) - 16, 37):
        assert refused(data[:cut]).code == "invalid_image"


def test_damaged_pictures_are_refused_or_read_at_their_size_and_never_crash() -> None:
    rng = np.random.default_rng(7)
    originals = [encode_image(picture(), codec) for codec in ("jpeg", "png")]
    outcomes, messages = set(), []
    for number in range(600):
        data = bytearray(originals[number % 2])
        for at in rng.integers(0, len(data), 3):
            data[at] = rng.integers(0, 256)
        try:
            outcomes.add(decode_image(bytes(data), field="image", max_pixels=100_000).dtype.name)
        except RoboserveError as error:
            outcomes.add(error.code)
            messages.append(error.message)
    assert not [message for message in messages if "0x" in message]
    assert {"uint8", "invalid_image"} <= outcomes <= {"uint8", "invalid_image", "too_large"}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(65535, 65535), (30000, 30000), (10000, 10000), (4097, 4096)])
def test_a_jpeg_that_claims_too_many_pixels_is_refused_as_too_large(size: tuple[int, int]) -> None:
    error = refused(claiming(*size))
    assert error.code == "too_large"
    assert str(4096 * 4096) in error.message


def test_a_bomb_costs_no_memory() -> None:
    # In a process of its own, for the peak of this one is already high.
    script = """
import resource, sys
from clients.errors import RoboserveError
from clients.images import decode_image, encode_image
import numpy as np
decode_image(encode_image(np.zeros((8, 8, 3), np.uint8)), field="warm")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    decode_image(sys.stdin.buffer.read(), field="bomb")
except RoboserveError as error:
    print(error.code, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    for bomb in (claiming(30000, 30000), png(30000, 30000, (b"IDAT", zlib.compress(bytes(1_000_000))))):
        assert len(bomb) < 3000
        done = subprocess.run([sys.executable, "-c", script], input=bomb, capture_output=True, check=True)
        code, grown_kib = done.stdout.split()
        assert code == b"too_large"
        assert int(grown_kib) < 20_000


def test_a_png_whose_data_outgrows_its_header_stops_at_the_header() -> None:
    lines = zlib.compress(bytes(20_000_000))
    assert decode_image(png(4, 4, (b"IDAT", lines)), field="image").shape == (4, 4, 3)


@pytest.mark.parametrize(
    "chunk",
    [
        (b"zTXt", b"note\0\0" + zlib.compress(bytes(20_000_000))),
        (b"iTXt", b"note\0\1\0\0\0" + zlib.compress(bytes(20_000_000))),
    ],
    ids=["zTXt", "iTXt"],
)
def test_a_png_with_a_text_bomb_is_refused(chunk: tuple[bytes, bytes]) -> None:
    rows = zlib.compress((b"\0" + bytes(12)) * 4)
    assert decode_image(png(4, 4, (b"IDAT", rows)), field="image").shape == (4, 4, 3)
    assert refused(png(4, 4, chunk, (b"IDAT", rows))).code == "invalid_image"


def test_a_jpeg_of_countless_scans_is_refused() -> None:
    data = saved(Image.fromarray(picture()), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    assert decode_image(data[:-2] + last * 20 + b"\xff\xd9", field="image").shape == (48, 64, 3)
    error = refused(data[:-2] + last * 2000 + b"\xff\xd9")
    assert error.code == "too_large"
    assert "scans" in error.message


def test_the_pixel_limit_holds_for_every_codec_and_what_just_fits_is_read() -> None:
    image = picture(10, 10)
    for codec in ("jpeg", "png", "raw"):
        data = encode_image(image, codec)
        assert decode_image(data, field="image", max_pixels=100).shape == (10, 10, 3)
        error = refused(data, max_pixels=99)
        assert error.code == "too_large"
        assert "99" in error.message


@pytest.mark.parametrize("size", [(480, 640), (640, 480), (224, 224), (100, 223), (1000, 30), (1, 1)])
def test_resizing_is_that_of_the_stock_client(size: tuple[int, int]) -> None:
    image = picture(*size)
    np.testing.assert_array_equal(resize_with_pad(image, 224, 224), image_tools.resize_with_pad(image, 224, 224))


def test_padding_is_black_and_centred() -> None:
    padded = resize_with_pad(np.full((100, 200, 3), 255, np.uint8), 64, 64)
    assert padded.shape == (64, 64, 3)
    assert not padded[:16].any()
    assert not padded[48:].any()
    assert (padded[16:48] == 255).all()


def test_fitted_sizes_are_truncated_and_never_empty() -> None:
    assert fitted_size((480, 640), (224, 224)) == (168, 224)
    assert fitted_size((99, 448), (224, 224)) == (49, 224)
    assert fitted_size((1, 448), (224, 224)) == (1, 224)
