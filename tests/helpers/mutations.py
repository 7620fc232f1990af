"""Seeded damage to the bytes of a file."""

import random

KINDS = ("flip", "cut", "extend", "zero", "swap")


def mutate(content: bytes, kind: str, seed: int) -> bytes:
    """Damages a file: another `seed`, another place."""
    draw = random.Random(f"{kind} {seed}")
    at = draw.randrange(len(content))
    data = bytearray(content)
    length = draw.choice((1, 16, 256))
    if kind == "flip":
        data[at] ^= 1 << draw.randrange(8)
    elif kind == "cut":
        del data[at:]
    elif kind == "extend":
        data += draw.randbytes(length)
    elif kind == "zero":
        data[at : at + length] = bytes(len(data[at : at + length]))
    elif kind == "swap":
        length = min(length, len(data) // 2)
        other = draw.randrange(len(data) - length)
        at = min(at, len(data) - length)
        there, here = data[other : other + length], data[at : at + length]
        data[at : at + length] = there
        data[other : other + length] = here
    return bytes(data)
