/* SPDX-License-Identifier: MIT */
/* text.c - messages, texts and arrays that grow, names in them. */
#include "host/text.h"

#include "host/json.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* ==== Messages ================================================================================ */

q3_status q3_fail(q3_error *error, q3_status status, const char *format, ...)
{
    va_list arguments;
    if (error == NULL) return status;
    va_start(arguments, format);
    q3_message(error->text, sizeof error->text, format, arguments);
    va_end(arguments);
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
    q3_print(digits, sizeof digits, "%" PRIu64, value);
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

bool q3_text_string(q3_text *text, const char *bytes, size_t length)
{
    bool good = true;
    q3_text_add(text, "\"");
    for (size_t at = 0, step; at < length; at += step) {
        char escaped[16];
        uint32_t code = 0;
        step = q3_utf8_decode((const uint8_t *)bytes + at, length - at, &code);
        bool plain = !q3_is_hidden(code) && code != '"' && code != '\\' && code != '<';
        if (step > 0 && plain) {
            q3_text_bytes(text, bytes + at, step);
        } else if (step == 0) {
            q3_text_add(text, "\xEF\xBF\xBD");
            good = false;
            step = 1;
        } else {
            unsigned high = 0xD7C0 + (unsigned)(code >> 10), low = 0xDC00 + (code & 0x3FF);
            if (code == '"' || code == '\\')
                q3_print(escaped, sizeof escaped, "\\%c", (int)code);
            else if (code < 0x10000)
                q3_print(escaped, sizeof escaped, "\\u%04x", (unsigned)code);
            else
                q3_print(escaped, sizeof escaped, "\\u%04x\\u%04x", high, low);
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
    size_t used = q3_print(text, room, "[");
    for (size_t i = 0; i < rank; i++) {
        char number[24];
        size_t length = q3_print(number, sizeof number, "%s%" PRIu64, i > 0 ? "," : "", shape[i]);
        if (used + length >= room) return;
        used += q3_print(text + used, room - used, "%s", number);
    }
    q3_print(text + used, room - used, "]");
}
