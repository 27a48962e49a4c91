"""The small encodings libp2p is made of: unsigned varints, base58btc, base32, protobuf fields.

Sources: multiformats/unsigned-varint, the base58 draft (draft-msporny-base58), RFC 4648,
protobuf encoding. Decoders take untrusted bytes: they raise `DecodeError` and nothing else.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable

UVARINT_BYTES_MAX = 9
"""multiformats/unsigned-varint: practical maximum, 63 bits."""

BASE58_CHARS_MAX = 512
"""base58 decoding is quadratic: a peer id has 46 to 59 characters, nothing we read has more than this."""

_ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
_DIGIT = {char: value for value, char in enumerate(_ALPHABET)}

Field = tuple[int, int | bytes]


class DecodeError(ValueError):
    """Bytes or text that are not what they should be."""


def encode_uvarint(value: int) -> bytes:
    assert 0 <= value < 1 << 63, "unsigned varints carry 63 bits"
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def decode_uvarint(data: bytes, start: int = 0) -> tuple[int, int]:
    """-> (value, index after it). Refuses truncated, over-long and non-minimal forms."""
    value = 0
    for count in range(UVARINT_BYTES_MAX):
        if start + count >= len(data):
            raise DecodeError("varint is truncated")
        byte = data[start + count]
        value |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            if byte == 0 and count:
                raise DecodeError("varint is not minimal")
            return value, start + count + 1
    raise DecodeError(f"varint is longer than {UVARINT_BYTES_MAX} bytes")


def length_prefixed(data: bytes) -> bytes:
    return encode_uvarint(len(data)) + data


def base58_encode(data: bytes) -> str:
    number, digits = int.from_bytes(data, "big"), ""
    while number:
        number, digit = divmod(number, 58)
        digits = _ALPHABET[digit] + digits
    return "1" * (len(data) - len(data.lstrip(b"\0"))) + digits


def base58_decode(text: str) -> bytes:
    if len(text) > BASE58_CHARS_MAX:
        raise DecodeError(f"base58 text is longer than {BASE58_CHARS_MAX} characters")
    number = 0
    for char in text:
        digit = _DIGIT.get(char)
        if digit is None:
            raise DecodeError(f"{char!r} is not a base58btc character")
        number = number * 58 + digit
    zeros = len(text) - len(text.lstrip("1"))
    return b"\0" * zeros + number.to_bytes((number.bit_length() + 7) // 8, "big")


def base32_encode(data: bytes) -> str:
    """RFC 4648 base32, lower case, no padding (multibase `b` without its letter)."""
    return base64.b32encode(data).decode("ascii").rstrip("=").lower()


def base32_decode(text: str) -> bytes:
    """Strict inverse of base32_encode: one text for each byte string."""
    padded = text.upper() + "=" * (-len(text) % 8)
    try:
        data = base64.b32decode(padded)
    except (binascii.Error, ValueError) as error:
        raise DecodeError("not base32 text") from error
    if base32_encode(data) != text:
        raise DecodeError("base32 text is not canonical")
    return data


def encode_fields(fields: Iterable[tuple[int, int | bytes | str]]) -> bytes:
    """A protobuf message of varint and length-delimited fields, in the order given."""
    out = bytearray()
    for number, value in fields:
        if isinstance(value, int):
            out += encode_uvarint(number << 3) + encode_uvarint(value)
        else:
            data = value.encode() if isinstance(value, str) else value
            out += encode_uvarint(number << 3 | 2) + length_prefixed(data)
    return bytes(out)


def decode_fields(data: bytes) -> list[Field]:
    """The (number, value) pairs of a protobuf message; fixed32/fixed64 values are their raw bytes."""
    fields: list[Field] = []
    index = 0
    while index < len(data):
        tag, index = decode_uvarint(data, index)
        number, wire_type = tag >> 3, tag & 7
        if number == 0:
            raise DecodeError("protobuf field number 0")
        if wire_type == 0:
            value, index = decode_uvarint(data, index)
            fields.append((number, value))
            continue
        if wire_type == 2:
            size, index = decode_uvarint(data, index)
        elif wire_type in (1, 5):
            size = 8 if wire_type == 1 else 4
        else:
            raise DecodeError(f"protobuf wire type {wire_type} is not used here")
        if size > len(data) - index:
            raise DecodeError("protobuf field is truncated")
        fields.append((number, data[index : index + size]))
        index += size
    return fields


def bytes_field(fields: Iterable[Field], number: int) -> bytes | None:
    """Last value of a length-delimited field (protobuf: the last one wins), None when absent."""
    found: bytes | None = None
    for field_number, value in fields:
        if field_number == number:
            if not isinstance(value, bytes):
                raise DecodeError(f"protobuf field {number} has the wrong type")
            found = value
    return found


def repeated_bytes(fields: Iterable[Field], number: int, *, count_max: int) -> list[bytes]:
    found: list[bytes] = []
    for field_number, value in fields:
        if field_number == number:
            if not isinstance(value, bytes):
                raise DecodeError(f"protobuf field {number} has the wrong type")
            if len(found) == count_max:
                raise DecodeError(f"protobuf field {number} is repeated more than {count_max} times")
            found.append(value)
    return found


def int_field(fields: Iterable[Field], number: int) -> int | None:
    found: int | None = None
    for field_number, value in fields:
        if field_number == number:
            if not isinstance(value, int):
                raise DecodeError(f"protobuf field {number} has the wrong type")
            found = value
    return found


def text_field(fields: Iterable[Field], number: int) -> str:
    """A string field; "" when absent."""
    raw = bytes_field(fields, number) or b""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DecodeError(f"protobuf field {number} is not UTF-8") from error
