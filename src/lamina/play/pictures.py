"""Pictures on their way to the page, as PNG, and from it, as uploads that are checked before they are decoded."""

from __future__ import annotations

import base64
import struct
import zlib

import torch
from jaxtyping import UInt8
from torch import Tensor

from lamina.data.video import FAILURES, decode_picture
from lamina.errors import LaminaError
from lamina.types import ImageSize

LARGEST_UPLOAD = 8 * 2**20  # bytes
LARGEST_SIDE = 4096  # pixels of an upload: a small file can hold a huge picture


def png(frame: UInt8[Tensor, "3 h w"]) -> bytes:
    """A frame as a PNG file."""
    _, height, width = frame.shape
    rows = torch.zeros(height, 1 + 3 * width, dtype=torch.uint8)  # each row begins with its filter, 0: none
    rows[:, 1:] = frame.cpu().permute(1, 2, 0).reshape(height, -1)

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(rows.numpy().tobytes(), 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def data_uri(frame: UInt8[Tensor, "3 h w"]) -> str:
    """A frame as the address of a PNG that holds it."""
    return "data:image/png;base64," + base64.b64encode(png(frame)).decode()


def from_data_uri(address: str) -> bytes:
    """The file in a data address. Raises LaminaError for anything else."""
    head, _, body = address.partition(",")
    try:
        if head.startswith("data:image/") and head.endswith(";base64"):
            return base64.b64decode(body, validate=True)
    except ValueError:
        pass
    raise LaminaError("the start frame of the session is no picture")


def read_upload(content: bytes, size: ImageSize, name: str = "the upload") -> UInt8[Tensor, "3 h w"]:
    """The picture in an uploaded PNG, JPEG or WebP file, resized to (height, width) exactly as frames are.

    Raises LaminaError for another kind of file, one that is too large, or damaged.
    """
    if len(content) > LARGEST_UPLOAD:
        raise LaminaError(f"{name}: more than {LARGEST_UPLOAD // 2**20} MB; choose a smaller picture")
    try:
        sides = _sides(content)
    except (struct.error, IndexError):
        sides = None
    if sides is None:
        raise LaminaError(f"{name}: is no PNG, JPEG or WebP picture")
    if not 0 < min(sides) <= max(sides) <= LARGEST_SIDE:
        raise LaminaError(f"{name}: {sides[1]} x {sides[0]} pixels; each side can be 1 to {LARGEST_SIDE}")
    try:
        picture = decode_picture(content, size)
    except FAILURES as error:
        raise LaminaError(f"{name}: is damaged, it cannot be decoded") from error
    return torch.from_numpy(picture).permute(2, 0, 1).contiguous()


def _sides(content: bytes) -> ImageSize | None:
    """(height, width) that the header of a PNG, JPEG or WebP file states; None for another file."""
    if content[:8] == b"\x89PNG\r\n\x1a\n":
        width, height = struct.unpack_from(">II", content, 16)
        return height, width
    if content[:2] == b"\xff\xd8":
        return _jpeg_sides(content)
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return _webp_sides(content)
    return None


def _jpeg_sides(content: bytes) -> ImageSize | None:
    at = 2
    while content[at] == 0xFF:
        kind = content[at + 1]
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):  # a start of frame
            height, width = struct.unpack_from(">HH", content, at + 5)
            return height, width
        at += 1 if kind == 0xFF else 2 + struct.unpack_from(">H", content, at + 2)[0]
    return None


def _webp_sides(content: bytes) -> ImageSize | None:
    kind = content[12:16]
    if kind == b"VP8X":
        width, height = (int.from_bytes(content[n : n + 3], "little") + 1 for n in (24, 27))
        return height, width
    if kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", content, 21)
        return (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1
    if kind == b"VP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", content, 26))
        return height, width
    return None
