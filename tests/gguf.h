/* SPDX-License-Identifier: MIT */
/* GGUF files for the tests: bytes as ggml's docs/gguf.md has them, written a second time. */
#ifndef Q3_TESTS_GGUF_H
#define Q3_TESTS_GGUF_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct gguf_file {
    uint8_t *bytes;
    size_t size, capacity;
} gguf_file;

static inline void gguf_put(gguf_file *f, const void *bytes, size_t count)
{
    if (f->capacity - f->size < count) {
        f->capacity = 2 * f->capacity + count + 4096;
        f->bytes = realloc(f->bytes, f->capacity);
        if (f->bytes == NULL) exit(1);
    }
    if (count > 0) memcpy(f->bytes + f->size, bytes, count);
    f->size += count;
}

/* A little-endian number of so many bytes. */
static inline void gguf_number(gguf_file *f, uint64_t value, size_t size)
{
    uint8_t bytes[8];
    for (size_t i = 0; i < size; i++) bytes[i] = (uint8_t)(value >> (8 * i));
    gguf_put(f, bytes, size);
}

static inline void gguf_bytes(gguf_file *f, const void *bytes, size_t length)
{
    gguf_number(f, length, 8);
    gguf_put(f, bytes, length);
}

static inline void gguf_text(gguf_file *f, const char *text)
{
    gguf_bytes(f, text, strlen(text));
}

/* Zeros up to a multiple of the alignment. */
static inline void gguf_pad(gguf_file *f, size_t alignment)
{
    while (f->size % alignment != 0) gguf_number(f, 0, 1);
}

static inline void gguf_header(gguf_file *f, uint64_t tensors, uint64_t values)
{
    f->size = 0;
    gguf_put(f, "GGUF", 4);
    gguf_number(f, 3, 4);
    gguf_number(f, tensors, 8);
    gguf_number(f, values, 8);
}

/* Metadata: 4 is uint32, 5 int32, 6 float32, 7 bool, 8 a text, 9 an array. */
static inline void gguf_uint(gguf_file *f, const char *key, uint64_t value)
{
    gguf_text(f, key);
    gguf_number(f, 4, 4);
    gguf_number(f, value, 4);
}

static inline void gguf_float(gguf_file *f, const char *key, float value)
{
    uint32_t bits;
    memcpy(&bits, &value, 4);
    gguf_text(f, key);
    gguf_number(f, 6, 4);
    gguf_number(f, bits, 4);
}

static inline void gguf_bool(gguf_file *f, const char *key, int value)
{
    gguf_text(f, key);
    gguf_number(f, 7, 4);
    gguf_number(f, (uint64_t)value, 1);
}

static inline void gguf_string(gguf_file *f, const char *key, const char *value)
{
    gguf_text(f, key);
    gguf_number(f, 8, 4);
    gguf_text(f, value);
}

/* Its elements follow. */
static inline void gguf_array(gguf_file *f, const char *key, unsigned type, uint64_t count)
{
    gguf_text(f, key);
    gguf_number(f, 9, 4);
    gguf_number(f, type, 4);
    gguf_number(f, count, 8);
}

#endif
