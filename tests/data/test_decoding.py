"""Image files: each kind is decoded as PIL decodes it, or refused by name."""

import functools
import io
import struct
import zlib

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import skimage.data
import tensorflow as tf

from amdim_tf.data import decoding, views
from amdim_tf.data.data import Data
from amdim_tf.data.decoding import MAX_PIXELS, decode, fault, reason
from amdim_tf.data.exif import orientation

PHOTOGRAPH = PIL.Image.fromarray(skimage.data.astronaut()[40:101, 180:263])
GREY = PHOTOGRAPH.convert("L")
PALETTE = PHOTOGRAPH.quantize(200)
CLEAR = PHOTOGRAPH.copy()
CLEAR.putalpha(GREY)
EXCESS = f", more than {MAX_PIXELS}"
NOISE = np.random.default_rng(0)
# As a server runs them, and `tf.data`: in a graph.
in_graph = tf.function(decode, [tf.TensorSpec((), tf.string)])
orientation_of = tf.function(orientation, [tf.TensorSpec((), tf.string)])


def encoded(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def by_pil(contents):
    return np.asarray(PIL.Image.open(io.BytesIO(contents)).convert("RGB"))


def assert_decoded(contents, expected):
    ours = in_graph(contents).numpy()
    assert ours.dtype == np.uint8
    np.testing.assert_array_equal(ours, expected)
    assert reason(contents) == ""


def assert_refused(contents, why):
    assert reason(contents) == why
    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        in_graph(contents)
    if "broken" not in why:
        assert why in error.value.message


# Exif.


def exif(value, order="<", kind=3, tag=0x0112, offset=8, before=(), mark=None):
    """Exif data with entries of the tags `before`, and then an orientation."""
    entries = [struct.pack(order + "HHII", other, 4, 1, 7) for other in before]
    entries += [struct.pack(order + "HHIHH", tag, kind, 1, value, 0)]
    mark = mark or {"<": b"II", ">": b"MM"}[order]
    header = mark + struct.pack(order + "HI", 42, offset) + (offset - 8) * b"?"
    count = struct.pack(order + "H", len(entries))
    return b"Exif\0\0" + header + count + b"".join(entries) + bytes(4)


def segment(marker, payload):
    return struct.pack(">BBH", 0xFF, marker, 2 + len(payload)) + payload


def with_segments(*segments, contents=None):
    """A JPEG with `segments` behind its start, instead of JFIF's."""
    contents = contents or encoded(PHOTOGRAPH, "JPEG")
    return contents[:2] + b"".join(segments) + contents[20:]


JFIF = segment(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0")
OTHERS = (
    JFIF,
    segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x/>"),
    segment(0xE2, 60_000 * b"I"),
    segment(0xFE, b"a comment"),
)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("value", range(1, 9))
def test_a_jpeg_is_turned_as_it_was_taken(value, order):
    data = segment(0xE1, exif(value, order, before=(0x0100, 0x010F), offset=8 + 2 * value))
    plain = tf.io.decode_image(encoded(PHOTOGRAPH, "JPEG")).numpy()
    taken = PIL.Image.fromarray(plain)
    taken.getexif()[0x0112] = value
    expected = np.asarray(PIL.ImageOps.exif_transpose(taken))
    for contents in (
        with_segments(data),
        with_segments(JFIF, data),
        with_segments(*OTHERS, data, *OTHERS),
    ):
        assert PIL.Image.open(io.BytesIO(contents)).getexif()[0x0112] == value
        assert_decoded(contents, expected)
    grey = with_segments(data, contents=encoded(GREY, "JPEG"))
    assert in_graph(grey).shape == expected.shape


MALFORMED = {
    "no value": exif(0),
    "another value": exif(9),
    "a long": exif(6, kind=4),
    "another tag": exif(6, tag=0x0113),
    "the other order": exif(6, mark=b"MM"),
    "no order": exif(6, mark=b"XX"),
    "far": exif(6)[:10] + b"\xff\xff\xff\xff" + exif(6)[14:],
    "far, signed": exif(6)[:10] + b"\xff\xff\xff\x7f" + exif(6)[14:],
    "itself": exif(6)[:10] + bytes(4) + exif(6)[14:],
    "empty": b"Exif\0\0",
    "another name": b"Exit" + exif(6)[4:],
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_exif_is_none(data):
    expected = tf.io.decode_image(encoded(PHOTOGRAPH, "JPEG"))
    assert_decoded(with_segments(segment(0xE1, data)), expected)


def test_truncated_exif_is_none():
    data = exif(6)
    for size in range(len(data)):
        # In a segment that ends, in a file that ends, and in one where other bytes follow.
        expected = 6 if size >= len(data) - 4 else 1
        for contents in (
            with_segments(segment(0xE1, data[:size])),
            with_segments(segment(0xE1, data))[: 6 + size],
        ):
            assert orientation_of(contents).numpy() == expected
        longer = with_segments(segment(0xE1, data)[: 4 + size])
        assert orientation_of(longer).numpy() in (expected, 6)
    many = struct.pack("<H", 60_000)
    assert orientation_of(with_segments(segment(0xE1, data[:14] + many + data[16:]))) == 6
    endless = b"\xff\xd8" + 100_000 * segment(0xE2, b"")
    for contents in (endless, b"", b"\xff\xd8", encoded(PHOTOGRAPH, "PNG"), 99 * b"\xff"):
        assert orientation_of(contents).numpy() == 1


@pytest.mark.parametrize("value", range(1, 9))
def test_windows_are_of_the_turned_image(value, tmp_path):
    path = str(tmp_path / "a.jpg")
    tf.io.write_file(path, with_segments(segment(0xE1, exif(value))))
    data = Data(
        *(None, None, None, ()),
        lambda path: decode(tf.io.read_file(path)),
        (None, None),
        read=tf.io.read_file,
    )
    image, draws = data.decode(path), views.draw((0, value), 1)
    crop, boxes = data.decode_window(path, functools.partial(views.crop_boxes, draws))
    window, of_all = views.crop_boxes(draws, *tf.unstack(tf.shape(image)[:2]))
    top, left, height, width = window.numpy()
    np.testing.assert_array_equal(boxes, of_all)
    image = np.float32(image[top : top + height, left : left + width])
    difference = np.abs(crop.numpy() - image)
    # At its borders a window of a JPEG lacks neighbours.
    assert difference.max() <= (16 if value == 1 else 0) and difference.mean() <= 0.2


# JPEG.


def ycck():
    """A JPEG of four channels, the first three of them luminance and colour."""
    contents = bytearray(encoded(PHOTOGRAPH.convert("CMYK"), "JPEG", subsampling=0))
    contents[contents.index(b"Adobe") + 11] = 2
    return bytes(contents)


JPEGS = {
    "colours": encoded(PHOTOGRAPH, "JPEG"),
    "grey": encoded(GREY, "JPEG"),
    "progressive": encoded(PHOTOGRAPH, "JPEG", progressive=True),
    "without subsampling": encoded(PHOTOGRAPH, "JPEG", subsampling=0),
    "RGB": encoded(PHOTOGRAPH, "JPEG", keep_rgb=True),
    "CMYK": encoded(PHOTOGRAPH.convert("CMYK"), "JPEG"),
    "YCCK": ycck(),
}


@pytest.mark.parametrize("contents", JPEGS.values(), ids=JPEGS.keys())
def test_jpegs(contents):
    # The one inverse transform is fast, the other accurate.
    difference = np.abs(in_graph(contents).numpy() - np.float32(by_pil(contents)))
    assert difference.mean() < 1.5 and np.percentile(difference, 99) <= 6


# BMP.


def bmp(bits, header=40, compression=0, fields=b"", top_down=False, used=0, size=(17, 6), gap=0):
    width, height = size
    row = (bits * width + 31) // 32 * 4
    pixels = NOISE.integers(0, 256, row * height, "uint8")
    colours = NOISE.integers(0, 256, (used or 2**bits, 4), "uint8") if bits <= 8 else np.array([])
    if used:
        pixels %= used
    if header == 12:
        start = struct.pack("<IHHHH", header, width, height, 1, bits)
        colours = colours[..., :3]
    else:
        height *= -1 if top_down else 1
        start = struct.pack("<IiiHHI", header, width, height, 1, bits, compression)
        start += struct.pack("<IiiII", 0, 0, 0, used, 0) + fields
        start = start.ljust(header, b"\0")
    start += colours.tobytes() + gap * b"?"
    place = 14 + len(start)
    return b"BM" + struct.pack("<IHHI", place + pixels.size, 0, 0, place) + start + pixels.tobytes()


def masks(*numbers):
    return struct.pack(f"<{len(numbers)}I", *numbers)


USUAL = (0xFF0000, 0xFF00, 0xFF)


@pytest.mark.parametrize("header", [12, 40, 52, 56, 64, 108, 124])
@pytest.mark.parametrize("bits", [1, 4, 8, 24, 32])
def test_bmps_without_compression(bits, header):
    for size in ((1, 1), (5, 3), (16, 2), (17, 6)):
        for top_down in (False, True)[: 1 + (header > 12)]:
            contents = bmp(bits, header, size=size, top_down=top_down)
            assert_decoded(contents, by_pil(contents))


@pytest.mark.parametrize(
    "contents",
    [
        bmp(8, used=3),
        bmp(8, used=200, top_down=True),
        bmp(8, gap=10),
        bmp(24, gap=10),
        bmp(24) + b"\0\0",
        bmp(32, 40, 3, masks(*USUAL)),
        bmp(32, 108, 3, masks(*USUAL, 0xFF000000), top_down=True),
        bmp(32, 124, 3, masks(*USUAL)),
        *(encoded(PHOTOGRAPH.convert(mode), "BMP") for mode in ("1", "L", "P", "RGB", "RGBA")),
        encoded(PALETTE, "BMP"),
        encoded(PHOTOGRAPH.quantize(16), "BMP"),
    ],
)
def test_bmps_of_programs(contents):
    assert_decoded(contents, by_pil(contents))


@pytest.mark.parametrize(
    "contents, why",
    [
        (bmp(16), "a BMP of 16 bits"),
        (bmp(16, 56, 3, masks(0xF800, 0x7E0, 0x1F)), "a BMP of 16 bits"),
        (bmp(2), "a BMP of 2 bits"),
        (bmp(8, compression=1), "a compressed BMP"),
        (bmp(4, compression=2), "a compressed BMP"),
        (bmp(24, compression=5), "a compressed BMP"),
        (bmp(32, 108, 3, masks(0xFF, 0xFF00, 0xFF0000)), "a BMP of unusual bit fields"),
        (bmp(24, 48), "a BMP, 48 bytes of header"),
        (b"BM", "a BMP, 0 bytes of header"),
        (bmp(24)[:10] + bytes(4) + bmp(24)[14:], "a BMP whose pixels start in its header"),
        (bmp(24)[:-4], "a BMP that is broken or truncated"),
        (bmp(8)[:60], "a BMP that is broken or truncated"),
        (bmp(24)[:10] + b"\xff\xff\xff\xff" + bmp(24)[14:], "a BMP that is broken or truncated"),
        (bmp(24, size=(0, 5)), "a BMP of 0 pixels"),
        (
            bmp(24)[:18] + struct.pack("<ii", 2**20, -(2**20)) + bmp(24)[26:],
            f"a BMP of {2**40} pixels{EXCESS}",
        ),
    ],
)
def test_other_bmps_are_refused_by_name(contents, why):
    assert_refused(contents, why)


# PNG.


def png(pixels, depth, colour_type, interlaced=False):
    """A PNG of rows of samples (H,W*channels), with or without interlacing."""

    def chunk(name, data):
        checksum = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + checksum

    height, width, _ = pixels.shape
    passes = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2))
    rows = b""
    for top, left, down, right in (*passes, (1, 0, 2, 1)) if interlaced else ((0, 0, 1, 1),):
        for row in pixels[top::down, left::right]:
            if row.size:
                bits = np.unpackbits(row[..., None].view("uint8")[..., ::-1].copy(), axis=-1)
                rows += b"\0" + np.packbits(bits[..., -depth:].ravel()).tobytes()
    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, interlaced)
    chunks = [chunk(b"IHDR", header)]
    if colour_type == 3:
        chunks += [chunk(b"PLTE", bytes(range(3 * 2**depth))), chunk(b"tRNS", bytes(2**depth))]
    chunks += [chunk(b"IDAT", zlib.compress(rows)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(
    "depth, colour_type", [(1, 0), (2, 0), (4, 0), (1, 3), (4, 3), (8, 2), (8, 6)]
)
def test_pngs(depth, colour_type, interlaced):
    channels = {0: 1, 2: 3, 3: 1, 6: 4}[colour_type]
    pixels = NOISE.integers(0, 2**depth, (13, 21, channels), "uint8")
    contents = png(pixels, depth, colour_type, interlaced)
    assert_decoded(contents, by_pil(contents))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA"])
def test_pngs_of_programs(mode):
    contents = encoded(
        PHOTOGRAPH.convert(mode), "PNG", **{"transparency": 5} if mode == "P" else {}
    )
    assert_decoded(contents, by_pil(contents))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_pngs_of_16_bits_lose_8_of_them_unless_they_use_12(channels):
    pixels = NOISE.integers(0, 2**16, (30, 40, channels), "uint16")
    contents = tf.io.encode_png(pixels).numpy()
    colours = pixels[..., : 3 if channels > 2 else 1]
    assert_decoded(contents, np.broadcast_to(colours >> 8, (30, 40, 3)))
    np.testing.assert_array_equal(in_graph(contents), tf.io.decode_image(contents, 3))

    dark = pixels // 16
    if channels in (2, 4):
        dark[..., -1] = 2**16 - 1  # of which no brightness can be told
    assert_refused(tf.io.encode_png(dark).numpy(), decoding.DARK_PNG)
    dark[7, 8, 0] = 2**12
    expected = np.broadcast_to(dark[..., : colours.shape[-1]] >> 8, (30, 40, 3))
    assert_decoded(tf.io.encode_png(dark).numpy(), expected)


# GIF.


def gif(screen, corner, sides, before=b"", image=PALETTE):
    """A GIF with a frame of `image`, resized, at a `corner` of the screen."""
    contents = encoded(image.resize(sides), "GIF")
    colours = 13 + 3 * 2 ** (contents[10] % 8 + 1)
    start = contents.index(b"," + struct.pack("<HHHH", 0, 0, *sides), colours)
    frame = struct.pack("<cHH", b",", *corner) + contents[start + 5 :]
    return contents[:6] + struct.pack("<HH", *screen) + contents[10:colours] + before + frame


EXTENSIONS = b"!\xfe\x03com\x04ment\0" + b"!\xff\x0bNETSCAPE2.0\x03\1\0\0\0"
MOVING = [PALETTE, PALETTE.rotate(90)]


@pytest.mark.parametrize(
    "contents",
    [
        encoded(PALETTE, "GIF"),
        encoded(GREY, "GIF"),
        encoded(PALETTE, "GIF", interlace=1),
        encoded(PALETTE, "GIF", interlace=0, comment=700 * b"comment"),
        encoded(MOVING[0], "GIF", save_all=True, append_images=MOVING[1:]),
        gif((50, 40), (0, 0), (50, 40)),
        gif((50, 40), (0, 0), (50, 40), EXTENSIONS),
        gif((30, 20), (0, 0), (50, 40)),
    ],
)
def test_gifs(contents):
    assert_decoded(contents, by_pil(contents))


def test_transparent_pixels_of_a_gif_are_black():
    contents = encoded(PALETTE, "GIF", transparency=5)
    clear = np.asarray(PALETTE)[..., None] == 5
    assert 0 < clear.mean() < 0.5
    assert_decoded(contents, np.where(clear, 0, by_pil(contents)))


@pytest.mark.parametrize(
    "contents, why",
    [
        (gif((100, 80), (0, 0), (50, 40)), "a GIF whose first frame is not all of it"),
        (gif((50, 40), (1, 0), (50, 40)), "a GIF whose first frame is not all of it"),
        (gif((50, 80), (0, 0), (50, 40), EXTENSIONS), "a GIF whose first frame is not all of it"),
        (encoded(PALETTE, "GIF")[:30], "a GIF without a frame"),
        (b"GIF89a", "a GIF without a frame"),
        (b"GIF89a" + bytes(7) + 30_000 * b"!\xfe\0", "a GIF without a frame"),
        (encoded(PALETTE, "GIF")[:-50], "a GIF that is broken or truncated"),
        # On a screen of one pixel.
        (b"GIF89a\1\0\1\0\0\0\0,\0\0\0\0" + 4 * b"\xff", f"a GIF of {65535**2} pixels{EXCESS}"),
    ],
)
def test_other_gifs_are_refused_by_name(contents, why):
    assert_refused(contents, why)


# WebP.


@pytest.mark.parametrize("lossless", [False, True])
@pytest.mark.parametrize("image", [PHOTOGRAPH, GREY, PALETTE, CLEAR, CLEAR.resize((1, 1))])
def test_webps(image, lossless):
    contents = encoded(image, "WEBP", lossless=lossless)
    assert_decoded(contents, by_pil(contents))


def webp(kind, data):
    chunk = kind + struct.pack("<I", len(data)) + data
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


@pytest.mark.parametrize(
    "contents, why",
    [
        (encoded(PHOTOGRAPH, "WEBP", save_all=True, append_images=MOVING), "an animated WebP"),
        (
            encoded(CLEAR, "WEBP", save_all=True, append_images=[CLEAR.rotate(9)]),
            "an animated WebP",
        ),
        (webp(b"VP8L", b"/" + 9 * b"\xff"), f"a WebP of {2**28} pixels{EXCESS}"),
        (
            webp(b"VP8 ", b"\0\0\0\x9d\1\x2a" + 4 * b"\xff"),
            f"a WebP of {(2**14 - 1) ** 2} pixels{EXCESS}",
        ),
        (webp(b"VP8X", bytes(4) + 6 * b"\xff"), f"a WebP of {2**48} pixels{EXCESS}"),
        (webp(b"ICCP", bytes(9)), "a WebP of 0 pixels"),
        (encoded(PHOTOGRAPH, "WEBP")[:-99], "a WebP that is broken or truncated"),
        (encoded(CLEAR, "WEBP", lossless=True)[:99], "a WebP that is broken or truncated"),
        (b"RIFF\0\0\0\0WEBP", "a WebP of 0 pixels"),
    ],
)
def test_other_webps_are_refused_by_name(contents, why):
    assert_refused(contents, why)


# Other files.


@pytest.mark.parametrize(
    "contents, name",
    [
        (encoded(PHOTOGRAPH, "TIFF"), "a TIFF"),
        (encoded(PHOTOGRAPH, "TIFF", big_tiff=True), "a TIFF"),
        (b"MM\0*" + bytes(99), "a TIFF"),
        (b"\0\0\0\x18ftypheic" + bytes(99), "a HEIC"),
        (b"\0\0\0\x1cftypmif1" + bytes(99), "a HEIC"),
        (b"\0\0\0\x20ftypavif" + bytes(99), "an AVIF"),
        (encoded(PHOTOGRAPH, "JPEG2000"), "a JPEG 2000"),
        (encoded(PHOTOGRAPH, "JPEG2000", no_jp2=True), "a JPEG 2000"),
        (b"\xff\x0a" + bytes(99), "a JPEG XL"),
        (b"8BPS\0\1" + bytes(99), "a PSD"),
        (b"<svg/>", "an SVG"),
        (b'<?xml version="1.0"?><svg/>', "an SVG or other XML"),
        (encoded(PHOTOGRAPH, "PDF"), "a PDF"),
    ],
)
def test_kinds_that_are_not_read_are_refused_by_name(contents, name):
    assert_refused(contents, f"{name}, which is not read: convert it to PNG or JPEG")


@pytest.mark.parametrize(
    "contents, why",
    [
        (b"", "empty"),
        (b"\0", "no image"),
        (b"not found", "no image"),
        (bytes(999), "no image"),
        (b"\xff\xd8\xff", "a JPEG that is broken or truncated"),
        (encoded(PHOTOGRAPH, "JPEG")[:-99], "a JPEG that is broken or truncated"),
        (b"\x89PNG\r\n\x1a\n", "a PNG of 0 pixels"),
        (encoded(PHOTOGRAPH, "PNG")[:-99], "a PNG that is broken or truncated"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\x40\0\0\0\x40\0", f"a PNG of {2**28} pixels{EXCESS}"),
    ],
)
def test_broken_files_are_refused(contents, why):
    assert_refused(contents, why)


def test_a_refusal_says_what_is_read():
    with pytest.raises(
        tf.errors.InvalidArgumentError, match="a complete JPEG, PNG, GIF, BMP or WebP of 1 to"
    ):
        in_graph(encoded(PHOTOGRAPH, "TIFF"))
    name = f"a BMP of {MAX_PIXELS + 1} pixels{EXCESS}"
    assert fault(bmp(24)[:18] + struct.pack("<ii", MAX_PIXELS + 1, 1) + bmp(24)[26:]) == name


def test_damaged_files_are_decoded_or_refused():
    """No error of another kind, and none that ends the process."""
    kinds = [encoded(PALETTE, kind) for kind in ("PNG", "GIF", "BMP")]
    kinds += [encoded(PHOTOGRAPH, kind) for kind in ("JPEG", "PNG", "WEBP", "BMP")]
    kinds += [encoded(CLEAR, "WEBP", lossless=True), with_segments(segment(0xE1, exif(6)))]
    refused = 0
    for contents in kinds:
        for _ in range(60):
            damaged = bytearray(contents)
            for place in NOISE.integers(0, min(len(damaged), 80), NOISE.integers(1, 4)):
                damaged[place] = NOISE.integers(256)
            try:
                image = in_graph(bytes(damaged))
                assert image.ndim == 3 and 0 < image.shape[0] * image.shape[1] <= MAX_PIXELS
            except tf.errors.InvalidArgumentError:
                refused += 1
    assert 50 < refused < 400
