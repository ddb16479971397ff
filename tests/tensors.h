/* SPDX-License-Identifier: MIT */
/* Safetensors files for tests, byte by byte: none of the library's own writer. */
#ifndef Q3_TESTS_TENSORS_H
#define Q3_TESTS_TENSORS_H

#include "t.h"

typedef struct tensors_file {
    char header[16384];
    unsigned char data[1 << 20];
    size_t length, size;
} tensors_file;

static tensors_file out;

/* metadata: what stands between the braces. */
static void file_begin(const char *metadata)
{
    out.size = 0;
    out.length = (size_t)snprintf(out.header, sizeof out.header, "{\"__metadata__\":{%s}",
                                  metadata);
}

static void put_bits(unsigned long long bits, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++) out.data[out.size++] = (unsigned char)(bits >> 8 * i);
}

/* dtype: F32, F64, BF16, F16 (integers up to 2048 only), I32, I64 */
static void put_value(const char *dtype, double value)
{
    float single = (float)value;
    unsigned bits;
    unsigned long long wide;
    memcpy(&bits, &single, sizeof bits);
    memcpy(&wide, &value, sizeof wide);
    if (strcmp(dtype, "F32") == 0) put_bits(bits, 4);
    if (strcmp(dtype, "BF16") == 0) put_bits(bits >> 16, 2);
    if (strcmp(dtype, "F64") == 0) put_bits(wide, 8);
    if (strcmp(dtype, "F16") == 0) put_bits(value == 0 ? 0 : (bits >> 13) - (112u << 10), 2);
    if (dtype[0] == 'I') put_bits((unsigned long long)(long long)value, dtype[1] == '6' ? 8 : 4);
}

/* Its values are to follow. shape: "2,3" */
static void tensor_begin(const char *name, const char *dtype, const char *shape, size_t bytes)
{
    out.length += (size_t)snprintf(out.header + out.length, sizeof out.header - out.length,
                                   ",\"%s\":{\"dtype\":\"%s\",\"shape\":[%s],"
                                   "\"data_offsets\":[%zu,%zu]}",
                                   name, dtype, shape, out.size, out.size + bytes);
}

/* Without the last `cut` bytes. */
static void file_end(const char *path, size_t cut)
{
    FILE *f = fopen(path, "wb");
    out.length += (size_t)snprintf(out.header + out.length, sizeof out.header - out.length, "}");
    for (size_t i = 0; i < 8; i++) fputc((int)(out.length >> 8 * i & 255), f);
    fwrite(out.header, 1, out.length, f);
    fwrite(out.data, 1, out.size - cut, f);
    CHECK(fclose(f) == 0);
}

static inline size_t bytes_of(const char *dtype)
{
    return strstr(dtype, "64") ? 8 : strstr(dtype, "32") ? 4 : 2;
}

#endif
