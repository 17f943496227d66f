"""What may happen to the bytes of a file: a flipped bit, a block gone, an end cut off."""

import random

BLOCK = 512
DAMAGES = ("flip", "blot", "cut", "swap", "zero", "insert", "empty", "replace")
FEW_BYTES = ("flip", "blot")


def damaged(kind: str, data: bytes, other: bytes | None, chance: random.Random) -> bytes:
    """The bytes after a damage, one of DAMAGES; `other` is what may stand in their place."""
    new = bytearray(data)
    size = max(1, len(new))
    at = chance.randrange(size)
    if kind == "flip":
        for _ in range(chance.choice((1, 1, 1, 2, 4))):
            if new:
                new[chance.randrange(size)] ^= 1 << chance.randrange(8)
    elif kind == "cut":
        del new[at:]
    elif kind == "swap":
        block = chance.choice((BLOCK, 8 * BLOCK))
        first, second = (chance.randrange(size) // block * block for _ in range(2))
        if max(first, second) + block <= len(new):
            here, there = (slice(place, place + block) for place in (first, second))
            new[here], new[there] = new[there], new[here]
    elif kind in ("zero", "blot"):
        block = chance.choice((1, 16) if kind == "blot" else (BLOCK, 8 * BLOCK))
        start = at // block * block
        new[start : start + block] = bytes(len(new[start : start + block]))
    elif kind == "insert":
        new[at:at] = chance.randbytes(chance.randint(1, 20))
    elif kind == "empty":
        new.clear()
    elif other is not None:
        new[:] = other
    return bytes(new)
