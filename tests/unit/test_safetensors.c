/* SPDX-License-Identifier: MIT */
/* The safetensors format: files read strictly, each fault named; files written byte for byte as
 * expected, in any order of pieces, and replaced whole or not at all. */
#define _POSIX_C_SOURCE 200809L
#include "folder.h"
#include "qwen3moe.h"
#include "t.h"

#include <stdbool.h>
#include <stdint.h>

/* A file of this header and so many bytes of data: 0, 1, 2, ... `length` 0: the header's own. */
static void write_file(const char *name, const char *header, uint64_t length, size_t data)
{
    static uint8_t bytes[70000];
    size_t n = strlen(header);
    if (length == 0) length = n;
    for (size_t i = 0; i < 8; i++) bytes[i] = (uint8_t)(length >> (8 * i));
    memcpy(bytes + 8, header, n);
    for (size_t i = 0; i < data; i++) bytes[8 + n + i] = (uint8_t)i;
    folder_write(name, bytes, 8 + n + data);
}

static q3_tensors *open_file(const char *name, q3_error *error)
{
    q3_tensors *tensors = NULL;
    error->text[0] = 0;
    q3_status status = q3_tensors_open(&tensors, folder_path(name), error);
    CHECK((status == Q3_OK) == (tensors != NULL) && (status == Q3_OK) == (error->text[0] == 0));
    return tensors;
}

/* ==== Reading ================================================================================= */

#define T(name, dtype, shape, begin, end) \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":[" shape "],\"data_offsets\":[" #begin "," \
    #end "]}"

/* The whole message after the file's name; where it ends in "...", its start. */
static const struct {
    const char *header;
    uint64_t length;
    size_t data;
    const char *want;
} bad[] = {
    {"{", 0, 0, "byte 1: found the end of the text, expected a key or '}'"},
    {"{}", 3, 0, "header length: found 3, expected at most 2"},
    {"{}", UINT64_MAX, 0, "header length: found 18446744073709551615, expected at most 2"},
    {"{}", UINT64_C(1) << 63, 0, "header length: found 9223372036854775808, expected at most 2"},
    {"[]", 0, 0, "the header does not start with {"},
    {" {}", 0, 0, "the header does not start with {"},
    {"{}", 0, 1, "file: found 1 bytes of data, expected 0, where the last tensor ends"},
    {"{" T("a", "F32", "2", 0, 8) "}", 0, 7,
     "a: found data up to byte 8, expected at most 7, where the file ends"},
    {"{" T("a", "F32", "2", 0, 8) "}", 0, 9,
     "file: found 9 bytes of data, expected 8, where the last tensor ends"},
    {"{" T("a", "F32", "2", 0, 4) "}", 0, 4, "a: found 4 bytes of data, expected 8 for its shape"},
    {"{" T("a", "F32", "2", 1, 9) "}", 0, 9,
     "a: found its data at byte 1, expected 0, where the tensor before it ends"},
    {"{" T("a", "F32", "1", 0, 4) "," T("b", "F32", "1", 5, 9) "}", 0, 9,
     "b: found its data at byte 5, expected 4, where the tensor before it ends"},
    {"{" T("a", "F32", "1", 0, 4) "," T("b", "F32", "1", 2, 6) "}", 0, 6,
     "b: found its data at byte 2, expected 4, where the tensor before it ends"},
    {"{" T("a", "F32", "1", 0, 4) "," T("b", "F32", "1", 0, 4) "}", 0, 4,
     "b: found its data at byte 0, expected 4, where the tensor before it ends"},
    {"{" T("a", "F32", "1", 0, 4) "," T("a", "F32", "1", 4, 8) "}", 0, 8, "..."},
    {"{" T("a", "F32", "1", 4, 0) "}", 0, 4,
     "a: found an array, expected data_offsets, two ascending integers"},
    {"{" T("a", "F32", "1", -4, 0) "}", 0, 4,
     "a: found an array, expected data_offsets, two ascending integers"},
    {"{" T("a", "F32", "1", 0, 4.0) "}", 0, 4,
     "a: found an array, expected data_offsets, two ascending integers"},
    {"{" T("a", "F32", "1", 0, 18446744073709551615) "}", 0, 4,
     "a: found data up to byte 18446744073709551615, expected at most 4, where the file ends"},
    {"{" T("a", "F32", "4294967296,4294967296", 0, 0) "}", 0, 0,
     "a: found a shape of 2^64 bytes or more, expected one that fits"},
    {"{" T("a", "F32", "4294967296,1073741824", 0, 0) "}", 0, 0,
     "a: found a shape of 2^64 bytes or more, expected one that fits"},
    {"{" T("a", "F32", "4294967296,4294967296,0", 0, 0) "}", 0, 0,
     "a: found a shape of 2^64 bytes or more, expected one that fits"},
    {"{" T("a", "F32", "-1", 0, 4) "}", 0, 4, "a: found -1, expected shape, a list of integers"},
    {"{" T("a", "F32", "1.0", 0, 4) "}", 0, 4, "a: found 1.0, expected shape, a list of integers"},
    {"{" T("a", "F32", "\"1\"", 0, 4) "}", 0, 4,
     "a: found \"1\", expected shape, a list of integers"},
    {"{" T("a", "F32", "1,1,1,1,1,1,1,1,1", 0, 4) "}", 0, 4, "a: found 9 axes, expected at most 8"},
    {"{" T("a", "BOOL", "1", 0, 1) "}", 0, 1,
     "a: found \"BOOL\", expected dtype F64, F32, BF16, F16, F8_E4M3, I64 or I32"},
    {"{" T("a", "U8", "1", 0, 1) "}", 0, 1,
     "a: found \"U8\", expected dtype F64, F32, BF16, F16, F8_E4M3, I64 or I32"},
    {"{" T("a", "F8_E5M2", "1", 0, 1) "}", 0, 1,
     "a: found \"F8_E5M2\", expected dtype F64, F32, BF16, F16, F8_E4M3, I64 or I32"},
    {"{" T("a", "F8_E4M3", "2", 0, 1) "}", 0, 1,
     "a: found 1 bytes of data, expected 2 for its shape"},
    {"{" T("a", "f32", "1", 0, 4) "}", 0, 4,
     "a: found \"f32\", expected dtype F64, F32, BF16, F16, F8_E4M3, I64 or I32"},
    {"{\"a\":{\"dtype\":7,\"shape\":[1],\"data_offsets\":[0,4]}}", 0, 4,
     "a: found 7, expected dtype F64, F32, BF16, F16, F8_E4M3, I64 or I32"},
    {"{\"a\":{\"shape\":[1],\"data_offsets\":[0,4]}}", 0, 4,
     "a: found nothing, expected dtype F64, F32, BF16, F16, F8_E4M3, I64 or I32"},
    {"{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 0, 4,
     "a: found nothing, expected shape, a list of integers"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":1,\"data_offsets\":[0,4]}}", 0, 4,
     "a: found 1, expected shape, a list of integers"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 0, 4,
     "a: found nothing, expected data_offsets, two ascending integers"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,4]}}", 0, 4,
     "a: found an array, expected data_offsets, two ascending integers"},
    {"{\"a\":[]}", 0, 0, "a: found an array, expected an object"},
    {"{\"a\":null}", 0, 0, "a: found null, expected an object"},
    {"{" T("a\\u0000b", "F32", "1", 0, 4) "}", 0, 4,
     "header: found \"a\\u0000b\", expected a name without zero bytes"},
    {"{\"__metadata__\":7}", 0, 0, "__metadata__: found 7, expected an object of strings"},
    {"{\"__metadata__\":{\"a\":1}}", 0, 0, "__metadata__: found 1, expected strings"},
    {"{\"__metadata__\":{\"a\":\"\\u0000\"}}", 0, 0,
     "__metadata__: found \"\\u0000\", expected strings without zero bytes"},
    {"{" T("a\\nb", "F32", "2", 0, 4) "}", 0, 4,
     "a?b: found 4 bytes of data, expected 8 for its shape"},
};

static void check_bad(void)
{
    char want[600];
    q3_error error;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        write_file("bad.safetensors", bad[i].header, bad[i].length, bad[i].data);
        q3_tensors *tensors = open_file("bad.safetensors", &error);
        snprintf(want, sizeof want, "%s: %s", folder_path("bad.safetensors"), bad[i].want);
        size_t n = strlen(want);
        if (n > 3 && strcmp(want + n - 3, "...") == 0)
            CHECKF(strncmp(error.text, want, n - 3) == 0, "got \"%s\", want \"%s\"", error.text,
                   want);
        else
            CHECK_TEXT(error.text, want);
        q3_tensors_close(tensors);
    }
    for (size_t n = 0; n < 8; n++) {
        folder_write("bad.safetensors", "\0\0\0\0\0\0\0", n);
        CHECK(open_file("bad.safetensors", &error) == NULL);
        CHECKF(strstr(error.text, "bytes, expected a safetensors file") != NULL, "%s", error.text);
    }
    CHECK(open_file("absent.safetensors", &error) == NULL);
    CHECKF(strncmp(error.text, "cannot read ", 12) == 0, "%s", error.text);
    CHECKF(strstr(error.text, ": no such file") != NULL, "%s", error.text);
}

/* Every prefix of a good file, and every single byte of its header changed. */
static void check_cut_and_changed(void)
{
    static const char header[] = "{\"__metadata__\":{\"k\":\"v\"}," T("a", "F32", "1,2", 0, 8) ","
                                 T("b", "I64", "", 8, 16) "}   ";
    uint8_t bytes[256];
    size_t n = sizeof header - 1, size = 8 + n + 16, opened = 0;
    q3_error error;
    for (size_t i = 0; i < size; i++)
        bytes[i] = i < 8 ? (uint8_t)((uint64_t)n >> (8 * i))
                 : i < 8 + n ? (uint8_t)header[i - 8] : 7;
    folder_write("cut.safetensors", bytes, size);
    q3_tensors *whole = open_file("cut.safetensors", &error);
    CHECKF(whole != NULL, "%s", error.text);
    q3_tensors_close(whole);
    for (size_t i = 0; i < size; i++) {
        folder_write("cut.safetensors", bytes, i);
        CHECKF(open_file("cut.safetensors", &error) == NULL, "%lu bytes", (unsigned long)i);
    }
    for (size_t i = 0; i < 8 + n; i++) {
        for (unsigned change = 1; change < 256; change = change * 3 + 1) {
            bytes[i] ^= (uint8_t)change;
            folder_write("cut.safetensors", bytes, size);
            q3_tensors *tensors = open_file("cut.safetensors", &error);
            opened += tensors != NULL; /* another name, another text of metadata, a space less */
            q3_tensors_close(tensors);
            bytes[i] ^= (uint8_t)change;
        }
    }
    CHECK(opened > 0 && opened < 5 * n);
}

static void check_good(void)
{
    static const char header[] =
        "{" T("late", "F16", "3", 8, 14) ",\"__metadata__\":{\"a\":\"\\\"\\u00e9\\ud83d\\ude00\","
        "\"\":\"empty\"}," T("first", "I32", "2", 0, 8) "," T("none", "F64", "0,7", 8, 8) ","
        T("one", "BF16", "", 14, 16) ",\"x\\u0041\":{\"dtype\":\"F32\",\"shape\":[1],"
        "\"data_offsets\":[16,20],\"more\":null}}\n ";
    q3_error error;
    write_file("good.safetensors", header, 0, 20);
    q3_tensors *t = open_file("good.safetensors", &error);
    CHECKF(t != NULL, "%s", error.text);
    if (t == NULL) return;
    CHECK(q3_tensors_count(t) == 5 && q3_tensors_at(t, 5) == NULL);
    static const char *const order[] = {"late", "first", "none", "one", "xA"};
    for (size_t i = 0; i < 5; i++) {
        CHECK_TEXT(q3_tensors_at(t, i)->name, order[i]);
        CHECK(q3_tensors_find(t, order[i]) == q3_tensors_at(t, i));
    }
    CHECK(q3_tensors_find(t, "lat") == NULL && q3_tensors_find(t, "zzz") == NULL &&
          q3_tensors_find(t, "") == NULL && q3_tensors_find(t, "__metadata__") == NULL);
    const q3_entry *late = q3_tensors_find(t, "late"), *one = q3_tensors_find(t, "one");
    CHECK(late->dtype == Q3_F16 && late->rank == 1 && late->shape[0] == 3);
    CHECK(one->dtype == Q3_BF16 && one->rank == 0);
    CHECK(q3_tensors_find(t, "none")->rank == 2 && q3_tensors_find(t, "none")->shape[1] == 7);
    CHECK(((const uint8_t *)late->data)[0] == 8 && ((const uint8_t *)late->data)[5] == 13);
    CHECK_TEXT(q3_tensors_metadata(t, "a"), "\"\xC3\xA9\xF0\x9F\x98\x80");
    CHECK_TEXT(q3_tensors_metadata(t, ""), "empty");
    CHECK(q3_tensors_metadata(t, "b") == NULL);
    int64_t integers[2] = {0, 0};
    q3_entry_integers(integers, q3_tensors_find(t, "first"), 0, 2);
    CHECK(integers[0] == 0x03020100 && integers[1] == 0x07060504);
    q3_tensors_close(t);
    write_file("good.safetensors", "{}", 0, 0);
    t = open_file("good.safetensors", &error);
    CHECK(t != NULL && q3_tensors_count(t) == 0 && q3_tensors_find(t, "a") == NULL);
    q3_tensors_close(t);
    q3_tensors_close(NULL);
}

/* Values from their bits, which IEEE 754 gives. */
static void check_values(void)
{
    static const char header[] = "{" T("d", "F64", "5", 0, 40) "," T("i", "I32", "3", 40, 52) ","
                                 T("l", "I64", "2", 52, 68) "," T("h", "F16", "4", 68, 76) ","
                                 T("b", "BF16", "2", 76, 80) "," T("f", "F32", "2", 80, 88) "}";
    static const uint8_t data[88] = {
        0, 0, 0, 0, 0, 0, 0xF8, 0x3F,       /* 1.5 */
        0, 0, 0, 0x10, 0, 0, 0xF0, 0x3F,    /* 1 + 2^-24: a tie, to even 1 */
        1, 0, 0, 0x10, 0, 0, 0xF0, 0x3F,    /* just above it: 1 + 2^-23 */
        0, 0, 0, 0, 0, 0, 0xA0, 0xB6,       /* -2^-149, float32's smallest */
        0, 0, 0, 0, 0, 0, 0xF0, 0x7E,       /* 2^752: infinity */
        0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0x80, 0xFF, 0xFF, 0xFF, 0x7F,
        0, 0, 0, 0, 0, 0, 0, 0x80, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x7F,
        0x00, 0x3C, 0x01, 0x80, 0xFF, 0x7B, 0x00, 0xFC, /* 1, -2^-24, 65504, -infinity */
        0x80, 0x3F, 0x49, 0xC0,                         /* 1, -3.140625 */
        0xDB, 0x0F, 0x49, 0x40, 0, 0, 0, 0x80};         /* pi, -0 */
    static const float pi = 3.14159274101257324f;
    uint8_t bytes[512];
    float v[5];
    int64_t n[3];
    q3_error error;
    size_t length = sizeof header - 1;
    memset(bytes, 0, 8);
    bytes[0] = (uint8_t)length, bytes[1] = (uint8_t)(length >> 8);
    memcpy(bytes + 8, header, length);
    memcpy(bytes + 8 + length, data, sizeof data);
    folder_write("values.safetensors", bytes, 8 + length + sizeof data);
    q3_tensors *t = open_file("values.safetensors", &error);
    CHECKF(t != NULL, "%s", error.text);
    if (t == NULL) return;
    q3_entry_floats(v, q3_tensors_find(t, "d"), 0, 5);
    CHECK(v[0] == 1.5f && v[1] == 1.0f && v[2] == 1.00000011920928955f);
    CHECK(v[3] == -1.40129846432481707e-45f && v[4] > 3.4e38f);
    q3_entry_integers(n, q3_tensors_find(t, "i"), 0, 3);
    CHECK(n[0] == -1 && n[1] == INT32_MIN && n[2] == INT32_MAX);
    q3_entry_integers(n, q3_tensors_find(t, "l"), 0, 2);
    CHECK(n[0] == INT64_MIN && n[1] == INT64_MAX);
    q3_entry_floats(v, q3_tensors_find(t, "h"), 0, 4);
    CHECK(v[0] == 1.0f && v[1] == -5.9604644775390625e-8f && v[2] == 65504.0f && v[3] < -3.4e38f);
    q3_entry_floats(v, q3_tensors_find(t, "h"), 2, 1);
    CHECK(v[0] == 65504.0f);
    q3_entry_floats(v, q3_tensors_find(t, "b"), 0, 2);
    CHECK(v[0] == 1.0f && v[1] == -3.140625f);
    q3_entry_floats(v, q3_tensors_find(t, "f"), 0, 2);
    CHECK(v[0] == pi && v[1] == 0.0f && 1.0f / v[1] < 0.0f);
    q3_entry_floats(v, q3_tensors_find(t, "f"), 2, 0);
    q3_tensors_close(t);
}

/* ==== Writing ================================================================================= */

static size_t read_file(const char *name, uint8_t *bytes, size_t most)
{
    FILE *file = fopen(folder_path(name), "rb");
    if (file == NULL) return 0;
    size_t n = fread(bytes, 1, most, file);
    fclose(file);
    return n;
}

/* The bytes are written out here, from the format's description. */
static void check_written_bytes(void)
{
    static const char header[] =
        "{\"__metadata__\":{\"format\":\"t\",\"q\":\"\\\"\\\\\\u000a\\u001f/\xC3\xA9\"},"
        "\"b\":{\"dtype\":\"BF16\",\"shape\":[3],\"data_offsets\":[20,26]},"
        "\"n\":{\"dtype\":\"I32\",\"shape\":[1],\"data_offsets\":[16,20]},"
        "\"l\":{\"dtype\":\"I64\",\"shape\":[1,2],\"data_offsets\":[0,16]},"
        "\"h\":{\"dtype\":\"F16\",\"shape\":[],\"data_offsets\":[26,28]},"
        "\"e\":{\"dtype\":\"F64\",\"shape\":[0],\"data_offsets\":[16,16]}}   ";
    static const uint8_t data[28] = {
        0xFE, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 1, 2, 3, 4, 5, 6, 7, 0x88,
        0xD2, 0x02, 0x96, 0xC9, 0x80, 0x3F, 0x00, 0x80, 0xC0, 0x7F, 0x01, 0x00};
    static const char *const metadata[] = {"format", "t", "q", "\"\\\n\x1F/\xC3\xA9", NULL};
    const q3_entry entries[] = {
        {.name = "b", .dtype = Q3_BF16, .rank = 1, .shape = {3}},
        {.name = "n", .dtype = Q3_I32, .rank = 1, .shape = {1}},
        {.name = "l", .dtype = Q3_I64, .rank = 2, .shape = {1, 2}},
        {.name = "h", .dtype = Q3_F16, .rank = 0},
        {.name = "e", .dtype = Q3_F64, .rank = 1, .shape = {0}}};
    const int64_t longs[] = {-2, INT64_MIN + INT64_C(0x0807060504030201)}, integer = -912915758;
    uint32_t nan_bits = 0x7FC00000;
    float b[3] = {1.0f, -0.0f, 0.0f}, h = 5.9604644775390625e-8f;
    uint8_t bytes[1024], want[1024];
    q3_writer *w = NULL;
    q3_error error = {""};
    size_t n = sizeof header - 1;
    CHECK(n % 8 == 0);
    memcpy(&b[2], &nan_bits, sizeof nan_bits);
    memset(want, 0, 8);
    want[0] = (uint8_t)n, want[1] = (uint8_t)(n >> 8);
    memcpy(want + 8, header, n);
    memcpy(want + 8 + n, data, sizeof data);
    folder_expect("out.safetensors");
    q3_writer_open(&w, folder_path("out.safetensors"), entries, 5, metadata, &error);
    CHECKF(w != NULL, "%s", error.text);
    if (w == NULL) return;
    CHECK(q3_writer_floats(w, 3, 0, &h, 1, &error) == Q3_OK); /* backwards, and one twice */
    CHECK(q3_writer_integers(w, 2, 1, longs, 1, &error) == Q3_OK);
    CHECK(q3_writer_integers(w, 2, 0, longs, 2, &error) == Q3_OK);
    CHECK(q3_writer_integers(w, 1, 0, &integer, 1, &error) == Q3_OK);
    CHECK(q3_writer_floats(w, 0, 1, b + 1, 2, &error) == Q3_OK);
    CHECK(q3_writer_floats(w, 0, 0, b, 1, &error) == Q3_OK);
    CHECK(q3_writer_floats(w, 4, 0, NULL, 0, &error) == Q3_OK);
    CHECK(read_file("out.safetensors", bytes, sizeof bytes) == 0); /* not there before the commit */
    CHECKF(q3_writer_commit(w, &error) == Q3_OK, "%s", error.text);
    size_t got = read_file("out.safetensors", bytes, sizeof bytes);
    CHECK(got == 8 + n + sizeof data && memcmp(bytes, want, got) == 0);
    CHECK(read_file("out.safetensors.tmp0", bytes, sizeof bytes) == 0);
}

/* All float16 values: each of the 65,536 patterns comes back, a NaN as the quiet one. */
static void check_halves(void)
{
    static uint8_t bytes[8 + 128 + 131072];
    static float values[65536];
    const q3_entry entry = {.name = "h", .dtype = Q3_F16, .rank = 1, .shape = {65536}};
    q3_writer *w = NULL;
    q3_error error = {""};
    for (uint32_t i = 0; i < 65536; i++) {
        uint32_t e = i >> 10 & 31, f = i & 1023;
        float v = (float)(e == 0 ? f : f + 1024); /* f * 2^-24, or (1024 + f) * 2^(e - 25) */
        for (uint32_t k = e == 0 ? 1 : e; k < 25; k++) v *= 0.5f;
        for (uint32_t k = 25; k < e; k++) v *= 2.0f;
        uint32_t bits = 0x7F800000 | (f != 0 ? 0x400000 : 0);
        if (e == 31) memcpy(&v, &bits, sizeof v);
        values[i] = i < 32768 || (e == 31 && f != 0) ? v : -v;
    }
    folder_expect("halves.safetensors");
    CHECK(q3_writer_open(&w, folder_path("halves.safetensors"), &entry, 1, NULL, &error) == Q3_OK);
    if (w == NULL) return;
    CHECK(q3_writer_floats(w, 0, 0, values, 65536, &error) == Q3_OK);
    CHECK(q3_writer_commit(w, &error) == Q3_OK);
    size_t n = read_file("halves.safetensors", bytes, sizeof bytes), start = n - 131072, wrong = 0;
    CHECK(n > 131072);
    for (size_t i = 0; n > 131072 && i < 65536; i++) {
        uint32_t bits = (uint32_t)bytes[start + 2 * i] | (uint32_t)bytes[start + 2 * i + 1] << 8;
        uint32_t want = (i & 0x7C00) == 0x7C00 && (i & 1023) != 0 ? 0x7E00 : (uint32_t)i;
        wrong += bits != want;
    }
    CHECKF(wrong == 0, "%lu patterns", (unsigned long)wrong);
}

/* What is never put reads as 0; pieces larger than any buffer; the same bytes in either order. */
static void check_pieces(void)
{
    static float values[20000], back[20000];
    const q3_entry entries[] = {{.name = "x", .dtype = Q3_F32, .rank = 2, .shape = {4, 5000}},
                                {.name = "y", .dtype = Q3_F64, .rank = 1, .shape = {20000}},
                                {.name = "z", .dtype = Q3_F32, .rank = 1, .shape = {3}}};
    static const char *const names[] = {"up.safetensors", "down.safetensors"};
    q3_error error = {""};
    for (size_t i = 0; i < 20000; i++) values[i] = (float)i * 0.5f - 77.0f;
    for (size_t k = 0; k < 2; k++) {
        q3_writer *w = NULL;
        folder_expect(names[k]);
        CHECK(q3_writer_open(&w, folder_path(names[k]), entries, 3, NULL, &error) == Q3_OK);
        if (w == NULL) return;
        for (size_t i = 0; i < 4; i++) {
            size_t row = k == 0 ? i : 3 - i;
            if (row != 2)
                CHECK(q3_writer_floats(w, 0, row * 5000, values + row * 5000, 5000, &error) ==
                      Q3_OK);
        }
        CHECK(q3_writer_floats(w, 1, 0, values, 20000, &error) == Q3_OK);
        CHECK(q3_writer_commit(w, &error) == Q3_OK);
        q3_tensors *t = open_file(names[k], &error);
        CHECKF(t != NULL, "%s", error.text);
        if (t == NULL) return;
        q3_entry_floats(back, q3_tensors_find(t, "x"), 0, 20000);
        for (size_t i = 10000; i < 15000; i++) CHECK(back[i] == 0.0f && values[i] != 0.0f);
        CHECK(memcmp(back, values, 10000 * sizeof *back) == 0);
        CHECK(memcmp(back + 15000, values + 15000, 5000 * sizeof *back) == 0);
        q3_entry_floats(back, q3_tensors_find(t, "y"), 0, 20000);
        CHECK(memcmp(back, values, sizeof values) == 0);
        q3_entry_floats(back, q3_tensors_find(t, "z"), 0, 3);
        CHECK(back[0] == 0.0f && back[1] == 0.0f && back[2] == 0.0f);
        q3_tensors_close(t);
    }
    static uint8_t a[300000], b[300000];
    size_t n = read_file(names[0], a, sizeof a), m = read_file(names[1], b, sizeof b);
    CHECK(n > 240000 && n == m && memcmp(a, b, n) == 0);
}

/* The header is padded with spaces to a multiple of 8, whatever the lengths of the names. */
static void check_padding(void)
{
    char name[16] = "";
    for (size_t i = 0; i < 9; i++) {
        const q3_entry entry = {.name = name, .dtype = Q3_F64, .rank = 1, .shape = {1}};
        uint8_t bytes[256];
        q3_error error = {""};
        q3_writer *w = NULL;
        strcat(name, "n");
        folder_expect("padded.safetensors");
        CHECK(q3_writer_open(&w, folder_path("padded.safetensors"), &entry, 1, NULL, &error) ==
              Q3_OK);
        if (w == NULL) return;
        CHECK(q3_writer_commit(w, &error) == Q3_OK);
        size_t n = read_file("padded.safetensors", bytes, sizeof bytes);
        CHECK(n % 8 == 0 && n == 8 + (size_t)bytes[0] + 8);
        CHECK(n > 16 && (bytes[n - 9] == ' ' || bytes[n - 9] == '}'));
    }
}

/* Every tensor starts at a multiple of its element size, whatever stands before it. */
static void check_alignment(void)
{
    static const q3_dtype kinds[] = {Q3_BF16, Q3_F32, Q3_F16, Q3_F64, Q3_I32, Q3_I64};
    static const size_t sizes[] = {2, 4, 2, 8, 4, 8};
    q3_entry entries[36] = {{0}};
    char names[36][8];
    q3_error error = {""};
    q3_writer *w = NULL;
    for (size_t i = 0; i < 36; i++) {
        snprintf(names[i], sizeof names[i], "t%lu", (unsigned long)i);
        entries[i] = (q3_entry){.name = names[i], .dtype = kinds[(i * 5 + i / 6) % 6], .rank = 1,
                                .shape = {1 + i % 4}};
    }
    folder_expect("aligned.safetensors");
    q3_writer_open(&w, folder_path("aligned.safetensors"), entries, 36, NULL, &error);
    CHECK(w != NULL);
    if (w == NULL) return;
    CHECK(q3_writer_commit(w, &error) == Q3_OK);
    q3_tensors *t = open_file("aligned.safetensors", &error);
    CHECKF(t != NULL && q3_tensors_count(t) == 36, "%s", error.text);
    for (size_t i = 0; t != NULL && i < 36; i++) {
        const q3_entry *e = q3_tensors_at(t, i); /* the header keeps the order given */
        CHECK_TEXT(e->name, names[i]);
        CHECK(e->dtype == entries[i].dtype && e->shape[0] == 1 + i % 4);
        for (size_t k = 0; k < 6; k++) /* the file starts at a page, or where malloc gave memory */
            CHECK(kinds[k] != e->dtype || (uintptr_t)e->data % sizes[k] == 0);
    }
    q3_tensors_close(t);
}

/* An old file stays until the commit, an abandoned one leaves nothing, and a name that is in use is
 * passed over. */
static void check_replacing(void)
{
    const q3_entry entry = {.name = "a", .dtype = Q3_F32, .rank = 1, .shape = {1}};
    uint8_t bytes[256];
    q3_error error = {""};
    q3_writer *w = NULL, *v = NULL;
    folder_write("old.safetensors", "old", 3);
    folder_write("old.safetensors.tmp0", "mine", 4);
    folder_expect("old.safetensors.tmp1");
    folder_expect("old.safetensors.tmp2");
    CHECK(q3_writer_open(&w, folder_path("old.safetensors"), &entry, 1, NULL, &error) == Q3_OK);
    CHECK(q3_writer_open(&v, folder_path("old.safetensors"), &entry, 1, NULL, &error) == Q3_OK);
    CHECK(read_file("old.safetensors", bytes, sizeof bytes) == 3);
    q3_writer_abandon(v);
    CHECK(read_file("old.safetensors.tmp2", bytes, sizeof bytes) == 0);
    CHECK(w != NULL && q3_writer_commit(w, &error) == Q3_OK);
    CHECK(read_file("old.safetensors", bytes, sizeof bytes) > 8);
    CHECK(read_file("old.safetensors.tmp0", bytes, sizeof bytes) == 4);
    CHECK(read_file("old.safetensors.tmp1", bytes, sizeof bytes) == 0);
    q3_writer_abandon(NULL);
    w = NULL;
    CHECK(q3_writer_open(&w, folder_path("no/such/x"), &entry, 1, NULL, &error) == Q3_ERROR_FILE);
    CHECKF(w == NULL && strstr(error.text, "no/such/x: no such folder") != NULL, "%s", error.text);
    CHECK(q3_writer_open(&w, folder.path, &entry, 1, NULL, &error) == Q3_ERROR_FILE);
    CHECKF(w == NULL && strstr(error.text, "it is a folder or a device") != NULL, "%s", error.text);
    const q3_entry large = {.name = "a", .dtype = Q3_F32, .rank = 2,
                            .shape = {UINT32_MAX, UINT32_MAX}};
    CHECK(q3_writer_open(&w, folder_path("x"), &large, 1, NULL, &error) == Q3_ERROR_INPUT);
    CHECKF(strstr(error.text, "x: file: found tensors of more than 2^63 bytes") != NULL, "%s",
           error.text);
}

int main(void)
{
    folder_make("test_safetensors.tmp");
    check_bad();
    check_cut_and_changed();
    check_good();
    check_values();
    check_written_bytes();
    check_halves();
    check_pieces();
    check_padding();
    check_alignment();
    check_replacing();
    folder_remove();
    return t_done("safetensors");
}
