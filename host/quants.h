/* SPDX-License-Identifier: MIT */
/* quants.h - weights that files keep as blocks of small numbers (MODEL.md section 2): FP8 with
 * scales of its own, and the block types of GGUF. Private. */
#ifndef Q3_QUANTS_H
#define Q3_QUANTS_H

#include "qwen3moe.h"

/* q3_quantized's dequantize. */
typedef void q3_read_fn(double *values, const q3_quantized *weight, size_t first, size_t count);

/* A block type of GGUF. */
typedef struct q3_block_format q3_block_format;
struct q3_block_format {
    const char *name;     /* GGML_TYPE_ of llama.cpp, without that */
    uint32_t type;        /* its number in a file */
    uint16_t elements;    /* of a block, a multiple of 32 */
    uint16_t bytes;
    q3_read_fn *read[2]; /* for any processor, and with AVX2 and F16C, which give the same; */
                         /* NULL where this is not compiled for them */
};

/* The block type of this number; NULL: none that is known here. F32, F16 and BF16 have no blocks,
 * and are none. */
Q3_PRIVATE_API const q3_block_format *q3_block_find(uint32_t type);
/* The index-th of them, NULL behind the last. */
Q3_PRIVATE_API const q3_block_format *q3_block_at(size_t index);

/* A weight of whole blocks at data. Each element is the float32 that the gguf package's dequantize
 * gives, bit for bit (but for the bits of a NaN), and is rounded to the run's dtype. Its `format`
 * is this one; FP8's is NULL. */
Q3_PRIVATE_API q3_quantized q3_block_weight(const q3_block_format *format, const void *data);

/* e4m3 (no infinities; 0x7F and 0xFF are NaN), one byte an element, in rows of `columns`; times the
 * scale of its block of block_rows times block_columns, of which there are [rows of blocks, columns
 * of blocks], the last ones short. Each element is the exact product, in every run. */
Q3_PRIVATE_API q3_quantized q3_fp8_weight(const void *data, size_t columns, q3_tensor scales,
                                          size_t block_rows, size_t block_columns);

/* As q3_block_format's read. */
extern q3_read_fn *const q3_fp8_readers[2];

/* The tensor from its element `first` on, which is the beginning of a row; of a quantised one *own
 * describes what is left, and must live as long. */
Q3_PRIVATE_API q3_tensor q3_tensor_from(q3_tensor tensor, size_t first, q3_quantized *own);

#endif
