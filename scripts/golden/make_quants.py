# SPDX-License-Identifier: MIT
"""Quantised weights: the tables of host/quants.c, and what others make of some bytes.

    make_quants.py --header > host/quant_grids.h
    make_quants.py golden/quants       writes blocks.safetensors and fp8.safetensors there

Needs gguf 0.19.0, ml_dtypes and safetensors. Values of GGUF's blocks are the gguf package's, FP8's
those of ml_dtypes times the scale in float64 (which is exact); sums are added here as MODEL.md
section 2 says, from weights that ml_dtypes and numpy have rounded.
"""
import sys

import gguf.quants as quants
import ml_dtypes
import numpy as np
from gguf.constants import GGML_QUANT_SIZES
from safetensors.numpy import save_file

GRIDS = [  # name here, class there, elements of a row
    ("iq2_xxs", "IQ2_XXS", 8), ("iq2_xs", "IQ2_XS", 8), ("iq2_s", "IQ2_S", 8),
    ("iq3_xxs", "IQ3_XXS", 4), ("iq3_s", "IQ3_S", 4), ("iq1", "IQ1_S", 8)]
HEAD = """/* SPDX-License-Identifier: MIT */
/* quant_grids.h - tables of quants.c, written by scripts/golden/make_quants.py from those of the
 * Python package gguf 0.19.0 (gguf/quants.py; llama.cpp's ggml-common.h); not edited by hand.
 *
 * A row is a number of 16 bits: eight elements of 2 bits or four of 4 bits, the first one lowest,
 * each an index of the values; iq1's are the values + 1. */
#ifndef Q3_QUANT_GRIDS_H
#define Q3_QUANT_GRIDS_H

#include <stdint.h>
"""
# Where a block has its float16 scales; MXFP4 and NVFP4 have others, IQ1_M one in four pieces.
HALVES = {"Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82],
          "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ2_XXS": [0],
          "IQ2_XS": [0], "IQ3_XXS": [0], "IQ1_S": [0], "IQ4_NL": [0], "IQ3_S": [0], "IQ2_S": [0],
          "IQ4_XS": [0], "TQ1_0": [52], "TQ2_0": [64]}
# Zeros, subnormals, the largest, infinities, NaN.
SPECIAL = [0x0000, 0x8000, 0x0001, 0x83FF, 0x7BFF, 0xFBFF, 0x7C00, 0xFC00, 0x7E01]
ROWS, COLUMNS, TOKENS = 2, 512, 2


def lines(items):
    text, line = [], "   "
    for item in items:
        if len(line) + len(item) + 2 > 100:
            text.append(line)
            line = "   "
        line += f" {item},"
    return "\n".join([*text, line])


def print_header():
    def values(kind, name, numbers):
        print(f"\nstatic const {kind} q3_{name}_values[{len(numbers)}] = {{\n"
              f"{lines(map(str, numbers))}\n}};")

    print(HEAD, end="")
    values("int8_t", "iq4", quants.IQ4_NL.kvalues)
    values("int8_t", "iq2", quants.IQ2_XS.grid_map)
    values("int8_t", "iq3_xxs", quants.IQ3_XXS.grid_map)
    values("int8_t", "iq3_s", quants.IQ3_S.grid_map)
    for name, cls, elements in GRIDS:
        cls = getattr(quants, cls)
        cls.init_grid()
        grid = cls.grid.reshape(-1, elements)
        index = {float(value): i for i, value in enumerate(cls.grid_map)}
        rows = [sum(index[float(value)] << 16 // elements * i for i, value in enumerate(row))
                for row in grid]
        print(f"\nstatic const uint16_t q3_{name}_grid[{len(rows)}] = {{\n"
              f"{lines(f'0x{row:04X}' for row in rows)}\n}};")
    print("\n#endif")


def dot(w, x):
    """16 lanes over the last axis, then the fold: w[N,C], x[T,C] in float64 -> [T,N]."""
    products = x[:, None, :] * w[None, :, :]
    lane = np.zeros((*products.shape[:2], 16))
    for c in range(products.shape[2]):
        lane[:, :, c % 16] += products[:, :, c]
    for s in (8, 4, 2, 1):
        lane[:, :, :s] += lane[:, :, s:2 * s]
    return np.ascontiguousarray(lane[:, :, 0])


def tokens(rng, columns):
    """Full significands, exponents far apart."""
    scale = 2.0 ** rng.integers(-8, 8, (TOKENS, columns))
    return (rng.standard_normal((TOKENS, columns)) * scale).astype(np.float32)


def blocks_of(rng, name, kind):
    """Ordinary blocks for ROWS rows of COLUMNS, then one for each special scale."""
    elements, size = GGML_QUANT_SIZES[kind]
    ordinary = ROWS * COLUMNS // elements
    blocks = rng.integers(0, 256, (ordinary + len(SPECIAL), size), dtype=np.uint8)
    for b, block in enumerate(blocks):
        for i, at in enumerate(HALVES.get(name, [])):
            # a minimum may be so much larger or smaller that a difference has more than 24 bits
            low, high = (0x1000, 0x3000) if i == 0 else (0x0400, 0x5800)
            bits = int(rng.integers(low, high)) | int(rng.integers(0, 2)) << 15
            if b >= ordinary:  # where there are two: each with another one
                bits = SPECIAL[(b - ordinary + 4 * i) % len(SPECIAL)]
            block[at:at + 2] = bits & 0xFF, bits >> 8
        if name == "IQ1_M":
            bits = int(rng.integers(0x1000, 0x3000))
            if b >= ordinary:
                bits = SPECIAL[b - ordinary]
            for k in range(4):
                block[49 + 2 * k] = (block[49 + 2 * k] & 0xF) | (bits >> 4 * k & 0xF) << 4
        if name == "MXFP4":
            block[0] = rng.integers(110, 140)
            if b >= ordinary:
                block[0] = [0, 1, 2, 3, 127, 252, 253, 254, 255][b - ordinary]
        if name == "NVFP4" and b >= ordinary:
            first = 4 * (b - ordinary)
            block[:4] = [0, 0x80, 1, 7, 8, 0x7E, 0x7F, 0xFF, 0x88, *range(27, 54)][first:first + 4]
    return blocks, ordinary


def make_blocks(folder):
    rng = np.random.default_rng(13)
    out = {"x": tokens(rng, COLUMNS)}
    x = out["x"].astype(np.float64)
    for kind in sorted(quants._type_traits):
        name = kind.name
        if name == "BF16":
            continue
        blocks, ordinary = blocks_of(rng, name, kind)
        values = quants.dequantize(blocks, kind)
        w = values[:ordinary].reshape(ROWS, COLUMNS)
        assert np.isfinite(w).all(), name
        rounded = [w, w.astype(ml_dtypes.bfloat16), w.astype(np.float16)]
        out[f"{name}.type"] = np.array([int(kind)], np.int32)
        out[f"{name}.blocks"] = blocks.astype(np.int32)
        out[f"{name}.values"] = values
        out[f"{name}.sums"] = np.stack([dot(r.astype(np.float64), x) for r in rounded])
    save_file(out, f"{folder}/blocks.safetensors", {"producer": "gguf 0.19.0"})


def make_fp8(folder):
    rng = np.random.default_rng(8)
    codes = np.arange(256, dtype=np.uint8)
    out = {"e4m3": codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32)}
    rows, columns, block = 10, 53, (4, 8)
    shape = -(-rows // block[0]), -(-columns // block[1])
    dtypes = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
    for name, dtype in dtypes.items():
        for special in (False, True):
            case = f"{name}.special" if special else name
            w8 = rng.permutation(np.resize(codes, rows * columns)).reshape(rows, columns)
            if not special:
                w8 = np.where(w8 & 0x7F == 0x7F, w8 ^ 1, w8)
            scales = (rng.standard_normal(shape) * 2.0 ** rng.integers(-9, 3, shape)).astype(dtype)
            if special:
                least = np.array(1, np.uint32 if dtype is np.float32 else np.uint16).view(dtype)
                most = ml_dtypes.finfo(dtype).max
                scales.ravel()[:9] = [0, -0.0, least, -least, 1e-23, most, np.inf, -np.inf, np.nan]
            each = np.repeat(np.repeat(scales.astype(np.float64), block[0], 0), block[1], 1)
            values = out["e4m3"][w8].astype(np.float64) * each[:rows, :columns]
            out[f"{case}.codes"] = w8.astype(np.int32)
            out[f"{case}.scales"] = scales
            out[f"{case}.values"] = values
            if not special:
                out[f"{case}.x"] = tokens(rng, columns)
                out[f"{case}.sums"] = dot(values, out[f"{case}.x"].astype(np.float64))
    out["block"] = np.array(block, np.int32)
    save_file(out, f"{folder}/fp8.safetensors", {"producer": "ml_dtypes"})


if sys.argv[1:] == ["--header"]:
    print_header()
elif len(sys.argv) == 2 and not sys.argv[1].startswith("-"):
    np.seterr(all="ignore")
    make_blocks(sys.argv[1])
    make_fp8(sys.argv[1])
else:
    sys.exit(__doc__)
