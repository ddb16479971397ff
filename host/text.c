/* SPDX-License-Identifier: MIT */
/* text.c - messages, texts and arrays that grow, numbers and names in them. */
#include "host/text.h"

#include "host/json.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ==== Messages ================================================================================ */

size_t q3_clean(char shown[5], const char *text)
{
    uint32_t code = 0;
    size_t left = 0;
    while (left < 4 && text[left] != 0) left++;
    size_t length = q3_utf8_decode((const uint8_t *)text, left, &code);
    bool good = length > 0 && code >= 0x20 && (code < 0x7F || code > 0x9F);
    memcpy(shown, good ? text : "?", good ? length : 1);
    shown[good ? length : 1] = 0;
    return length > 0 ? length : 1;
}

q3_status q3_fail(q3_error *error, q3_status status, const char *format, ...)
{
    va_list arguments;
    if (error == NULL) return status;
    va_start(arguments, format);
    vsnprintf(error->text, sizeof error->text, format, arguments);
    va_end(arguments);
    char shown[5], *out = error->text; /* what is shown is never longer than what it stands for */
    for (const char *at = error->text; *at != 0;) {
        at += q3_clean(shown, at);
        memmove(out, shown, strlen(shown));
        out += strlen(shown);
    }
    *out = 0;
    return status;
}

q3_status q3_no_memory(q3_error *error, const char *thing)
{
    return q3_fail(error, Q3_ERROR_MEMORY, "%.300s: not enough memory", thing);
}

/* ==== Arrays and texts that grow ============================================================== */

bool q3_reserve(q3_buffer *buffer, size_t more, size_t element_size)
{
    if (more <= buffer->capacity - buffer->count) return true;
    if (more > SIZE_MAX / 4 / element_size - buffer->count) return false;
    size_t capacity = buffer->count + more + buffer->capacity;
    void *data = realloc(buffer->data, capacity * element_size);
    if (data == NULL) return false;
    buffer->data = data;
    buffer->capacity = capacity;
    return true;
}

bool q3_append(q3_buffer *buffer, const uint8_t *bytes, size_t count)
{
    if (!q3_reserve(buffer, count, 1)) return false;
    if (count > 0) memcpy((uint8_t *)buffer->data + buffer->count, bytes, count);
    buffer->count += count;
    return true;
}

void q3_text_bytes(q3_text *text, const char *piece, size_t length)
{
    q3_buffer bytes = {text->data, text->size, text->capacity};
    if (text->failed) return;
    if (!q3_reserve(&bytes, length + 1, 1)) {
        free(text->data);
        *text = (q3_text){.failed = true};
        return;
    }
    text->data = bytes.data;
    text->capacity = bytes.capacity;
    memcpy(text->data + text->size, piece, length);
    text->size += length;
    text->data[text->size] = 0;
}

void q3_text_add(q3_text *text, const char *piece)
{
    q3_text_bytes(text, piece, strlen(piece));
}

void q3_text_uint(q3_text *text, uint64_t value)
{
    char digits[24];
    snprintf(digits, sizeof digits, "%" PRIu64, value);
    q3_text_add(text, digits);
}

void q3_text_count(q3_text *text, const char *before, uint64_t value)
{
    q3_text_add(text, before);
    q3_text_uint(text, value);
}

void q3_text_real(q3_text *text, double value)
{
    char digits[32];
    q3_json_repr(value, digits);
    q3_text_add(text, digits);
}

void q3_text_clean(q3_text *text, const char *piece)
{
    char shown[5];
    while (*piece != 0) {
        piece += q3_clean(shown, piece);
        q3_text_add(text, shown);
    }
}

bool q3_text_string(q3_text *text, const char *bytes, size_t length)
{
    bool good = true;
    q3_text_add(text, "\"");
    for (size_t at = 0, step; at < length; at += step) {
        char escaped[8];
        uint32_t code = 0;
        step = q3_utf8_decode((const uint8_t *)bytes + at, length - at, &code);
        bool plain = code >= 0x20 && code != '"' && code != '\\' && code != '<';
        if (step > 0 && plain) {
            q3_text_bytes(text, bytes + at, step);
        } else if (step == 0) {
            q3_text_add(text, "\xEF\xBF\xBD");
            good = false;
            step = 1;
        } else {
            bool mark = code == '"' || code == '\\';
            snprintf(escaped, sizeof escaped, mark ? "\\%c" : "\\u%04x", (unsigned)code);
            q3_text_add(text, escaped);
        }
    }
    q3_text_add(text, "\"");
    return good;
}

char *q3_join(const char *a, const char *b, const char *c)
{
    q3_text text = {0};
    q3_text_add(&text, a);
    q3_text_add(&text, b);
    q3_text_add(&text, c);
    return text.data;
}

/* ==== Numbers of a few digits ================================================================= */

/* 0.DIGITS * 10^power: written out from 1e-4 up to 1e6, else as 4.82e+07. */
static void put_decimal(q3_text *out, const char *digits, int power)
{
    char text[64];
    int count = (int)strlen(digits);
    if (power < -3 || power > 6)
        snprintf(text, sizeof text, "%.1s%s%se%c%02d", digits, count > 1 ? "." : "", digits + 1,
                 power < 1 ? '-' : '+', power < 1 ? 1 - power : power - 1);
    else if (power <= 0)
        snprintf(text, sizeof text, "0.%.*s%s", -power, "000", digits);
    else if (count > power)
        snprintf(text, sizeof text, "%.*s.%s", power, digits, digits + power);
    else
        snprintf(text, sizeof text, "%s%.*s", digits, power - count, "000000");
    q3_text_add(out, text);
}

void q3_text_digits(q3_text *out, double value, int count)
{
    char repr[32], digits[32];
    int n = 0, power = 0;
    bool fraction = false;
    if (value != value || value >= 0x1p100 || value <= -0x1p100) { /* as good as infinite */
        q3_text_add(out, value != value ? "nan" : value > 0 ? "inf" : "-inf");
        return;
    }
    if (value >= 0 && value < 100 && value == (double)(unsigned)value && count > 1) { /* most are */
        q3_text_uint(out, (unsigned)value);
        return;
    }
    q3_json_repr(value < 0 ? -value : value, repr);
    const char *e = strchr(repr, 'e');
    for (const char *p = repr; *p != 0 && p != e; p++) { /* digits without leading zeros */
        if (*p == '.') {
            fraction = true;
            continue;
        }
        if (n > 0 || *p != '0') digits[n++] = *p;
        power += fraction ? -(n == 0) : n > 0;
    }
    if (e != NULL) power += (int)strtol(e + 1, NULL, 10);
    bool up = n > count && digits[count] >= '5';
    if (n > count) n = count;
    while (up && n > 0 && digits[n - 1] == '9') n--;
    if (up && n > 0) {
        digits[n - 1]++;
    } else if (up || n == 0) { /* 9.99 becomes 10; 0 */
        digits[n++] = up ? '1' : '0';
        power = up ? power + 1 : 1;
    }
    while (n > 1 && digits[n - 1] == '0') n--;
    digits[n] = 0;
    q3_text_add(out, value < 0 ? "-" : "");
    put_decimal(out, digits, power);
}

/* ==== Names and shapes ======================================================================== */

typedef struct dtype_row {
    const char *name, *code; /* Hugging Face's, safetensors' */
    size_t size;
} dtype_row;

static const dtype_row dtypes[Q3_AUTO] = {
    [Q3_F32] = {"float32", "F32", 4}, [Q3_BF16] = {"bfloat16", "BF16", 2},
    [Q3_F16] = {"float16", "F16", 2}, [Q3_F64] = {"float64", "F64", 8},
    [Q3_I32] = {"int32", "I32", 4},   [Q3_I64] = {"int64", "I64", 8},
    [Q3_F8] = {"float8_e4m3fn", "F8_E4M3", 1},
};

static const dtype_row *dtype_of(q3_dtype dtype)
{
    Q3_CHECK(dtype < Q3_AUTO);
    return &dtypes[dtype];
}

const char *q3_dtype_name(q3_dtype dtype)
{
    return dtype_of(dtype)->name;
}

const char *q3_dtype_code(q3_dtype dtype)
{
    return dtype_of(dtype)->code;
}

size_t q3_dtype_size(q3_dtype dtype)
{
    return dtype_of(dtype)->size;
}

const char *q3_rope_name(q3_rope_type type)
{
    static const char *const names[Q3_ROPE_TYPES] = {
        [Q3_ROPE_DEFAULT] = "default", [Q3_ROPE_LINEAR] = "linear", [Q3_ROPE_DYNAMIC] = "dynamic",
        [Q3_ROPE_YARN] = "yarn", [Q3_ROPE_LLAMA3] = "llama3",
    };
    Q3_CHECK((size_t)type < Q3_ROPE_TYPES);
    return names[type];
}

void q3_shape_text(char *text, size_t room, const uint64_t *shape, size_t rank)
{
    size_t used = (size_t)snprintf(text, room, "[");
    for (size_t i = 0; i < rank && used < room; i++)
        used += (size_t)snprintf(text + used, room - used, "%s%" PRIu64, i > 0 ? "," : "",
                                 shape[i]);
    if (used < room) snprintf(text + used, room - used, "]");
}
