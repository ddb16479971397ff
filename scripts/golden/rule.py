# SPDX-License-Identifier: MIT
"""Weights and inputs that are a rule, not data: the Python half of tests/rule.h (same bits; its
comment states the rule). Needs numpy.

  python3 scripts/golden/rule.py SEED NAME ROWS COLS    prints the values as hexadecimal float32 bits
"""

import sys

import numpy as np

GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def key(seed, name):
    """FNV-1a over seed, a zero byte, name."""
    h = 0xCBF29CE484222325
    for byte in seed.encode() + b"\0" + name.encode():
        h = ((h ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return h


def bits(k, start, count):
    """The 64 random bits of elements start .. start + count - 1."""
    with np.errstate(over="ignore"):
        index = np.arange(start, start + count, dtype=np.uint64)
        z = np.uint64(k) + (index + np.uint64(1)) * GOLDEN
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def shift(name, cols):
    if name.endswith(".bias"):
        return 9
    if name.endswith("embed_tokens.weight") or not name.endswith(".weight"):
        return 7
    c = 0
    while 4**c < cols:
        c += 1
    return (6 if name.endswith("mlp.gate.weight") else 7) + c


def fill(seed, name, shape, first=0, count=None):
    """The tensor as float32; a one-axis shape is `length` rows of one column. first, count: only so
    many of its rows, so that a large one can be made piece by piece."""
    rows, cols = (tuple(shape) + (1,))[:2]
    rows = rows - first if count is None else count
    shape = (rows,) + tuple(shape)[1:]
    u = bits(key(seed, name), first * cols, rows * cols)
    if name.endswith("norm.weight"):
        w = (64 + ((u >> np.uint64(48)) % np.uint64(128)).astype(np.int64)).astype(np.float32)
        w = np.where((u >> np.uint64(40)) % np.uint64(16) == 0, -w, w)
        w = w * np.float32(2.0 ** (-6 if name.endswith("q_norm.weight") else -7))
        return w.astype(np.float32).reshape(shape)
    m = (2 * (u >> np.uint64(56)).astype(np.int64) - 255).astype(np.float32).reshape(rows, cols)
    scale = np.full((rows, 1), 2.0 ** -shift(name, cols), dtype=np.float32)
    if name.endswith("embed_tokens.weight"):
        scale[np.arange(first, first + rows) % 7 == 3] = 2.0**-17
    return (m * scale).reshape(shape)


def fill_torch(seed, name, shape, device="cpu"):
    """The same values as a torch tensor made on `device`, where a whole layer of a large model takes
    seconds; int64 arithmetic wraps as uint64's does, and a shift to the right loses its sign bits."""
    import torch

    def right(z, n):
        return (z >> n) & ((1 << (64 - n)) - 1)

    def signed(x):
        return x - (1 << 64) if x >> 63 else x

    rows, cols = (tuple(shape) + (1,))[:2]
    small = torch.full((rows, 1), 2.0 ** -shift(name, cols), dtype=torch.float32, device=device)
    if name.endswith("embed_tokens.weight"):
        small[torch.arange(rows, device=device) % 7 == 3] = 2.0**-17
    result = torch.empty((rows, cols), dtype=torch.float32, device=device)
    step = max(1, (1 << 26) // cols)  # rows at a time: the steps between need eight times the memory
    for first in range(0, rows, step):
        n = min(step, rows - first)
        z = torch.arange(first * cols + 1, (first + n) * cols + 1, dtype=torch.int64, device=device)
        z = z * signed(int(GOLDEN)) + signed(key(seed, name))
        z = (z ^ right(z, 30)) * signed(0xBF58476D1CE4E5B9)
        z = (z ^ right(z, 27)) * signed(0x94D049BB133111EB)
        z = (z ^ right(z, 31)).view(n, cols)
        if name.endswith("norm.weight"):
            w = (64 + right(z, 48) % 128) * torch.where(right(z, 40) % 16 == 0, -1, 1)
            result[first:first + n] = w * 2.0 ** (-6 if name.endswith("q_norm.weight") else -7)
        else:
            result[first:first + n] = (2 * right(z, 56) - 255) * small[first:first + n]
    return result.reshape(shape)


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    values = fill(sys.argv[1], sys.argv[2], (int(sys.argv[3]), int(sys.argv[4]))).reshape(-1)
    print(" ".join("%08x" % v for v in values.view(np.uint32)))
