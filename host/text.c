/* text.c - messages, texts that grow, and numbers in them. */
#include "host/text.h"

#include "host/json.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

q3_status q3_fail(q3_error *error, q3_status status, const char *format, ...)
{
    va_list arguments;
    if (error == NULL) return status;
    va_start(arguments, format);
    vsnprintf(error->text, sizeof error->text, format, arguments);
    va_end(arguments);
    for (char *c = error->text; *c != 0; c++) {
        if ((uint8_t)*c < 0x20 || (uint8_t)*c == 0x7F) *c = '?';
    }
    return status;
}

static void text_append(q3_text *text, const char *piece, size_t length)
{
    if (text->failed) return;
    if (length >= text->capacity - text->size) {
        size_t capacity = text->size / 2 + text->size + length + 64;
        char *data = capacity > text->size + length ? realloc(text->data, capacity) : NULL;
        if (data == NULL) {
            free(text->data);
            *text = (q3_text){.failed = true};
            return;
        }
        text->data = data;
        text->capacity = capacity;
    }
    memcpy(text->data + text->size, piece, length);
    text->size += length;
    text->data[text->size] = 0;
}

void q3_text_add(q3_text *text, const char *piece)
{
    text_append(text, piece, strlen(piece));
}

void q3_text_uint(q3_text *text, uint64_t value)
{
    char digits[24];
    snprintf(digits, sizeof digits, "%" PRIu64, value);
    q3_text_add(text, digits);
}

void q3_text_real(q3_text *text, double value)
{
    char digits[32];
    q3_json_repr(value, digits);
    q3_text_add(text, digits);
}

char *q3_join(const char *a, const char *b, const char *c)
{
    q3_text text = {0};
    q3_text_add(&text, a);
    q3_text_add(&text, b);
    q3_text_add(&text, c);
    return text.data;
}

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

const char *q3_dtype_name(q3_dtype dtype)
{
    static const char *const names[] = {"float32", "bfloat16", "float16", "float64", "int32",
                                        "int64"};
    return names[dtype];
}
