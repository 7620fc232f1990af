"""Encoded images of every kind: valid, oversized and damaged."""

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

HEADER = struct.Struct(">IIBBBBB")  # of PNG


def example(height: int = 121, width: int = 163, seed: int = 0) -> Image.Image:
    """A smooth RGB image with noise."""
    rng = np.random.default_rng(seed)
    colors = rng.integers(0, 256, (5, 6, 3), "uint8")
    smooth = Image.fromarray(colors).resize((width, height))
    noise = rng.integers(-9, 10, (height, width, 3))
    return Image.fromarray(np.clip(noise + smooth, 0, 255).astype("uint8"))


def detailed_image(rng: np.random.Generator, noise: float) -> Image.Image:
    """A random image of smooth shapes and noise."""
    coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), "uint8"))
    smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC))
    noisy = smooth + rng.normal(0, noise, smooth.shape)
    return Image.fromarray(np.clip(noisy, 0, 255).astype("uint8"))


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    """The image as a file of a format that Pillow writes."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    """A chunk of a PNG."""
    checksum = zlib.crc32(kind + data)
    return (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)
    )


def png(
    height: int,
    width: int,
    bits: int = 8,
    color: int = 0,
    rows: int | None = None,
    extra: bytes = b"",
) -> bytes:
    """A black PNG.

    Args:
        height, width: size that the header declares.
        bits: bits per channel.
        color: color type of PNG, 0 for gray, 2 for RGB.
        rows: rows of data, if not `height`.
        extra: chunks between header and data.
    """
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[color]
    row = bytes(1 + (width * channels * bits + 7) // 8)
    data = zlib.compressobj(9)
    rows = height if rows is None else rows
    parts = [data.compress(row) for _ in range(rows)] + [data.flush()]
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", HEADER.pack(width, height, bits, color, 0, 0, 0))
        + extra
        + chunk(b"IDAT", b"".join(parts))
        + chunk(b"IEND")
    )


def bmp(
    height: int,
    width: int,
    bits: int = 24,
    compression: int = 0,
    header: int = 40,
    pixels: bytes | None = None,
) -> bytes:
    """A BMP of noise; a negative height stores the rows from the top down.

    Args:
        height, width: size that the header declares.
        bits: bits per pixel.
        compression: 0 none, 1 runs of 8 bits, 3 masks.
        header: length of the header; 12 is that of OS/2.
        pixels: the data, if not noise.
    """
    rng = np.random.default_rng(0)
    if pixels is None:
        size = abs(height) * ((width * bits + 31) // 32 * 4)
        pixels = rng.bytes(size)
    palette = (
        rng.bytes((3 if header == 12 else 4) << bits) if bits <= 8 else b""
    )
    if header == 12:
        sizes = struct.pack("<IHHHH", header, width, height, 1, bits)
    else:
        sizes = struct.pack(
            "<IiiHHIIiiII",
            *(header, width, height, 1, bits, compression),
            *(len(pixels), 2835, 2835, 0, 0),
        )
    if compression == 3:
        sizes += struct.pack("<III", 0xFF0000, 0xFF00, 0xFF)
    offset = 14 + len(sizes) + len(palette)
    start = struct.pack("<2sIHHI", b"BM", offset + len(pixels), 0, 0, offset)
    return start + sizes + palette + pixels


def gif_with_small_frame(
    canvas: tuple[int, int] = (70, 90), corner: tuple[int, int] = (11, 7)
) -> bytes:
    """A GIF of 40 x 50 pixels on a larger canvas of (height, width)."""
    data = bytearray(encode(example(40, 50).quantize(16), "GIF"))
    data[6:10] = struct.pack("<HH", canvas[1], canvas[0])
    frame = data.index(b",", 13 + 3 * 16)
    data[frame + 1 : frame + 5] = struct.pack("<HH", corner[1], corner[0])
    return bytes(data)


def animation(kind: str, size: int = 48) -> bytes:
    """Four frames."""
    frames = [example(size, size, seed) for seed in range(4)]
    if kind == "GIF":
        frames = [frame.quantize(32) for frame in frames]
    return encode(
        frames[0], kind, save_all=True, append_images=frames[1:], duration=50
    )


def turned(kind: str, orientation: int, endian: str = "<") -> bytes:
    """An image with an EXIF orientation."""
    exif = Image.Exif()
    exif.endian = endian
    exif[0x010F], exif[0x0112] = "a camera", orientation
    return encode(example(), kind, exif=exif.tobytes())


def without_adobe(jpeg: bytes) -> bytes:
    """A JPEG without the marker that tells how CMYK is stored."""
    start = jpeg.index(b"\xff\xee")
    length = int.from_bytes(jpeg[start + 2 : start + 4])
    return jpeg[:start] + jpeg[start + 2 + length :]


def kinds() -> dict[str, bytes]:
    """Whole images of all kinds, by the row of the table of formats."""
    image = example()
    rng = np.random.default_rng(0)
    ink = Image.frombytes("CMYK", (80, 60), rng.bytes(60 * 80 * 4))
    wide = rng.integers(0, 65536, (60, 80), "uint16")
    alpha = {mode: image.convert(mode) for mode in ("LA", "RGBA")}
    for one in alpha.values():
        one.putalpha(7)
    palette = image.quantize(64)
    return {
        "JPEG 4:4:4": encode(image, "JPEG", subsampling=0),
        "JPEG 4:2:2": encode(image, "JPEG", subsampling=1),
        "JPEG 4:2:0": encode(image, "JPEG", subsampling=2),
        "JPEG, progressive": encode(image, "JPEG", progressive=True),
        "JPEG, gray": encode(image.convert("L"), "JPEG"),
        "JPEG, RGB": encode(image, "JPEG", keep_rgb=True),
        "JPEG, restart markers": encode(image, "JPEG", restart_marker_rows=1),
        "JPEG, CMYK": encode(ink, "JPEG", subsampling=0),
        "JPEG, CMYK without Adobe marker": without_adobe(encode(ink, "JPEG")),
        "JPEG, EXIF orientation": turned("JPEG", 6),
        "PNG, RGB": encode(image, "PNG"),
        "PNG, RGBA": encode(alpha["RGBA"], "PNG"),
        "PNG, gray": encode(image.convert("L"), "PNG"),
        "PNG, gray and alpha": encode(alpha["LA"], "PNG"),
        "PNG, palette": encode(palette, "PNG"),
        "PNG, palette and transparency": encode(palette, "PNG", transparency=3),
        "PNG, 1 bit": encode(image.convert("1"), "PNG"),
        "PNG, gray of 16 bits": encode(Image.fromarray(wide), "PNG"),
        "PNG, RGB of 16 bits": wide_png(2),
        "PNG, gray and alpha of 16 bits": wide_png(4),
        "PNG, EXIF orientation": turned("PNG", 6),
        "GIF": encode(palette, "GIF", interlace=0),
        "GIF, interlaced": encode(palette, "GIF", interlace=1),
        "GIF, transparency": encode(palette, "GIF", transparency=3),
        "GIF, animation (first frame)": animation("GIF"),
        "GIF, first frame smaller than the canvas": gif_with_small_frame(),
        "GIF, first frame beyond the canvas": gif_with_small_frame((40, 40)),
        "BMP, 32 bits": bmp(30, 41, 32),
        "BMP, 32 bits with masks": bmp(30, 41, 32, compression=3),
        "BMP, 24 bits": bmp(30, 41),
        "BMP, top-down": bmp(-30, 41),
        "BMP, palette of 8 bits": bmp(30, 41, 8),
        "BMP, 16 bits": bmp(30, 41, 16),
        "BMP, palette of 4 bits": bmp(30, 41, 4),
        "BMP, palette of 1 bit": bmp(30, 41, 1),
        "BMP, compressed": bmp(
            2, 3, 8, compression=1, pixels=b"\3\1\0\0\3\2\0\1"
        ),
        "BMP, header of OS/2": bmp(30, 41, header=12),
        "WebP": encode(image, "WEBP", lossless=True),
        "WebP, animation": animation("WEBP"),
        "AVIF": encode(image, "AVIF"),
        "JPEG 2000": encode(image, "JPEG2000"),
        "TIFF": encode(image, "TIFF"),
        "PPM": encode(image, "PPM"),
    }


def wide_png(color: int) -> bytes:
    """A PNG of 16-bit noise, of a color type with several channels."""
    channels = {2: 3, 4: 2}[color]
    rng = np.random.default_rng(0)
    rows = b"".join(b"\0" + rng.bytes(80 * channels * 2) for _ in range(60))
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", HEADER.pack(80, 60, 16, color, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND")
    )


def oversized(megapixels: int = 50) -> dict[str, bytes]:
    """Images of just more pixels than the limit, declared or real."""
    side = int((megapixels * 1e6) ** 0.5) + 1
    plain = encode(example(16, 16), "JPEG")
    frame = plain.index(b"\xff\xc0")
    large = plain[: frame + 5] + struct.pack(">HH", side, side)
    gif = bytearray(encode(example(16, 16).quantize(4), "GIF"))
    gif[6:10] = struct.pack("<HH", side, side)
    return {
        "PNG": png(side, side, bits=1),
        "PNG of 20000 x 20000": png(20000, 20000, bits=1),
        "PNG, declared": png(side, side, rows=4),
        "PNG of 2^31 - 1": png(2**31 - 1, 1, rows=1),
        "JPEG, declared": large + plain[frame + 9 :],
        "GIF, declared": bytes(gif),
        "BMP, declared": bmp(-side, side, pixels=b""),
    }


def bombs() -> dict[str, bytes]:
    """Small files that take long, or much memory, in common decoders."""
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes([65]) * 7_900_000, 9))
    profile = chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(7_900_000), 9))
    return {
        "PNG, 900 texts of 8 MB": png(8, 8, extra=900 * text),
        "PNG, profile of 8 MB": png(8, 8, extra=profile),
        "PNG, 100,000 empty chunks": png(8, 8, extra=100_000 * chunk(b"teXt")),
        "PNG, text after the data": png(8, 8)[:-12]
        + 900 * text
        + chunk(b"IEND"),
        "JPEG, 2000 scans": many_scans(2000),
        "JPEG, 100,000 empty segments": many_segments(100_000),
        "GIF, 3000 frames": many_frames(3000),
        "GIF, chains of 1 byte": chains_of_one_byte(1_000_000),
    }


def many_scans(count: int, side: int = 2000) -> bytes:
    """A progressive JPEG whose last scan is repeated."""
    data = encode(
        Image.new("RGB", (side, side), "teal"), "JPEG", progressive=True
    )
    scan = data.rindex(b"\xff\xda")
    last = data[data.rindex(b"\xff\xc4", 0, scan) : -2]
    return data[:-2] + count * last + data[-2:]


def many_segments(count: int) -> bytes:
    """A JPEG with empty application data."""
    data = encode(example(16, 16), "JPEG")
    return data[:2] + count * b"\xff\xe5\0\2" + data[2:]


def many_frames(count: int, side: int = 2000) -> bytes:
    """A GIF of one color, whose frame is repeated."""
    data = encode(Image.new("P", (side, side)), "GIF")
    frame = data.index(b",", 13)
    return data[:-1] + count * data[frame:-1] + data[-1:]


def chains_of_one_byte(count: int) -> bytes:
    """A GIF with a long comment in blocks of one byte."""
    data = encode(example(16, 16).quantize(4), "GIF")
    frame = data.index(b",", 13)
    return data[:frame] + b"!\xfe" + count * b"\1 " + b"\0" + data[frame:]


def liars() -> dict[str, bytes]:
    """Images whose headers contradict each other or the data."""
    jpeg = encode(example(16, 24), "JPEG")
    progressive = encode(example(16, 24), "JPEG", progressive=True)
    frame = jpeg.index(b"\xff\xc0")
    length = 2 + int.from_bytes(jpeg[frame + 2 : frame + 4])
    header = jpeg[frame : frame + length]
    other = header[:5] + struct.pack(">HH", 9000, 9000) + header[9:]
    tall = header[:5] + struct.pack(">HH", 5000, 5000) + header[9:]
    first = png(8, 8)
    second = chunk(b"IHDR", HEADER.pack(9000, 9000, 8, 0, 0, 0, 0))
    return {
        "JPEG, second header": jpeg[: frame + length]
        + other
        + jpeg[frame + length :],
        "JPEG, other header first": jpeg[:frame] + other + jpeg[frame:],
        "JPEG, second header behind the data": jpeg[:-2] + other + jpeg[-2:],
        "JPEG, data of fewer rows": jpeg[:frame]
        + tall
        + jpeg[frame + length :],
        "JPEG, height 0": jpeg[: frame + 5] + b"\0\0" + jpeg[frame + 7 :],
        "JPEG, baseline data as progressive": jpeg[: frame + 1]
        + b"\xc2"
        + jpeg[frame + 2 :],
        "JPEG, progressive data as baseline": progressive.replace(
            b"\xff\xc2", b"\xff\xc0"
        ),
        "JPEG, arithmetic coding": jpeg.replace(b"\xff\xc0", b"\xff\xc9"),
        "JPEG, lossless": jpeg.replace(b"\xff\xc0", b"\xff\xc3"),
        "JPEG, 12 bits": jpeg[: frame + 4] + b"\x0c" + jpeg[frame + 5 :],
        "JPEG, two components": jpeg[: frame + 9] + b"\2" + jpeg[frame + 10 :],
        "PNG, second header": first[:33] + second + first[33:],
        "PNG, data of fewer rows": png(5000, 5000, rows=1),
        "PNG, data of more rows": png(8, 8, rows=1_000_000),
        "PNG, no header": first[:8] + first[33:],
        "PNG, no data": first[:33] + chunk(b"IEND"),
        "PNG, height 0": png(0, 8),
        "PNG, negative length": first[:33] + b"\xff\xff\xff\xff" + first[37:],
        "PNG, unknown important chunk": png(8, 8, extra=chunk(b"ABCD")),
        "PNG, palette missing": first[:25] + b"\3" + first[26:],
        "GIF, frame of 65535": gif_with_small_frame((65535, 700)),
        "GIF, no frame": encode(example(16, 16).quantize(4), "GIF")[:25] + b";",
        "BMP, data of fewer rows": bmp(5000, 5000, pixels=bytes(100)),
        "BMP, data of more rows": bmp(8, 8, pixels=bytes(10_000_000)),
        "BMP, 32 bits with other masks": bmp(8, 8, 32, compression=3).replace(
            struct.pack("<I", 0xFF0000), struct.pack("<I", 0xFF000000)
        ),
        "BMP, offset 0": bmp(8, 8)[:10] + bytes(4) + bmp(8, 8)[14:],
        "BMP, height -2^31": bmp(-(2**31), 8, pixels=b""),
        "text": b"not an image",
        "JPEG, signature only": b"\xff\xd8\xff",
        "PNG, signature only": b"\x89PNG\r\n\x1a\n",
        "GIF, signature only": b"GIF89a",
        "BMP, signature only": b"BM",
        "nothing": b"",
    }


def damaged(seed: int = 0, count: int = 10) -> Iterator[tuple[str, bytes]]:
    """Whole images that are cut, extended, or changed in a few bytes."""
    rng = np.random.default_rng(seed)
    images = {
        "JPEG": encode(example(48, 64), "JPEG"),
        "JPEG, progressive": encode(example(48, 64), "JPEG", progressive=True),
        "PNG": encode(example(48, 64), "PNG"),
        "GIF": encode(example(48, 64).quantize(16), "GIF"),
        "BMP": encode(example(12, 16), "BMP"),
    }
    for kind, data in images.items():
        for number in range(count):
            at = int(rng.integers(4, len(data)))
            yield f"{kind}, cut {number}", data[:at]
            changed = bytearray(data)
            for place in rng.integers(0, len(data), 1 + number % 4):
                changed[place] ^= 1 << int(rng.integers(8))
            yield f"{kind}, bits flipped {number}", bytes(changed)
            changed = bytearray(data)
            at = int(rng.integers(2, min(len(data), 700)))
            changed[at : at + 4] = rng.bytes(4)
            yield f"{kind}, header changed {number}", bytes(changed)
            changed = bytearray(data)
            changed[at : at + 16] = bytes(len(changed[at : at + 16]))
            yield f"{kind}, zeros {number}", bytes(changed)
        yield f"{kind}, extended", data + rng.bytes(1000)
