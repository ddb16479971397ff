/* SPDX-License-Identifier: MIT */
/* format.c - what is shown to a person: characters as a terminal may get them, numbers of a few
 * digits, texts from formats. The C library's printf is not used: its numbers depend on the locale
 * and its exponents on the library, and it cuts characters in two. Declared in text.h. */
#include "host/text.h"

#include "host/json.h"

#include <string.h>

/* ==== Characters ============================================================================== */

bool q3_is_hidden(uint32_t code)
{
    static const uint32_t hidden[][2] = {
        {0, 0x1F}, {0x7F, 0x9F}, {0xAD, 0xAD}, {0x34F, 0x34F}, {0x61C, 0x61C}, {0x115F, 0x1160},
        {0x17B4, 0x17B5}, {0x180B, 0x180F}, {0x200B, 0x200F}, {0x2028, 0x202E}, {0x2060, 0x206F},
        {0x3164, 0x3164}, {0xFDD0, 0xFDEF}, {0xFE00, 0xFE0F}, {0xFEFF, 0xFEFF}, {0xFFA0, 0xFFA0},
        {0xFFF0, 0xFFFB}, {0x1BCA0, 0x1BCA3}, {0x1D173, 0x1D17A}, {0xE0000, 0xE0FFF},
    };
    if (code >= 0x20 && code < 0x7F) return false;
    for (size_t i = 0; i < sizeof hidden / sizeof hidden[0]; i++)
        if (code <= hidden[i][1]) return code >= hidden[i][0] || (code & 0xFFFE) == 0xFFFE;
    return (code & 0xFFFE) == 0xFFFE;
}

/* value in hexadecimal, of at least two digits; returns how many. */
static size_t put_hex(char *out, uint32_t value)
{
    size_t count = 2;
    while (count < 8 && value >> (4 * count) != 0) count++;
    for (size_t i = count; i-- > 0; value >>= 4) out[i] = "0123456789ABCDEF"[value & 15];
    return count;
}

size_t q3_show(char shown[Q3_SHOWN], const char *text, size_t left)
{
    uint32_t code = 0;
    size_t length = q3_utf8_decode((const uint8_t *)text, left, &code), n = 0;
    if (length > 0 && !q3_is_hidden(code)) {
        memcpy(shown, text, length);
        shown[length] = 0;
        return length;
    }
    if (length == 0) code = (uint8_t)*text;
    shown[n++] = '\\';
    if (code == '\n' || code == '\t' || code == '\r') {
        shown[n++] = code == '\n' ? 'n' : code == '\t' ? 't' : 'r';
    } else if (length <= 1) {
        shown[n++] = 'x';
        n += put_hex(shown + n, code);
    } else {
        shown[n++] = 'u';
        shown[n++] = '{';
        n += put_hex(shown + n, code);
        shown[n++] = '}';
    }
    shown[n] = 0;
    return length > 0 ? length : 1;
}

void q3_shorten(char *out, size_t room, const char *text, size_t length)
{
    char shown[Q3_SHOWN];
    size_t used = 0, whole = 0; /* whole: behind it "..." fits */
    for (size_t at = 0; at < length;) {
        at += q3_show(shown, text + at, length - at);
        size_t n = strlen(shown);
        if (used + n >= room) {
            memcpy(out + whole, "...", 4);
            return;
        }
        memcpy(out + used, shown, n);
        used += n;
        if (used + 4 <= room) whole = used;
    }
    out[used] = 0;
}

void q3_text_shown(q3_text *text, const char *piece)
{
    char shown[Q3_SHOWN];
    for (size_t left = strlen(piece), step; left > 0; left -= step, piece += step) {
        step = q3_show(shown, piece, left);
        q3_text_add(text, shown);
    }
}

/* ==== Numbers of a few digits ================================================================= */

/* 0.DIGITS * 10^power: written out from 1e-4 up to 10^most, else as 4.82e+07. */
static void lay_out(char out[Q3_NUMBER_TEXT], const char *digits, int power, int most)
{
    int count = (int)strlen(digits), at = 0;
    if (power < -3 || power > most) {
        int e = power < 1 ? 1 - power : power - 1;
        for (int i = 0; i < count; i++) {
            if (i == 1) out[at++] = '.';
            out[at++] = digits[i];
        }
        out[at++] = 'e';
        out[at++] = power < 1 ? '-' : '+';
        if (e >= 100) out[at++] = (char)('0' + e / 100);
        out[at++] = (char)('0' + e / 10 % 10);
        out[at++] = (char)('0' + e % 10);
    } else {
        if (power <= 0) out[at++] = '0';
        for (int i = power < 0 ? power : 0; i < count || i < power; i++) {
            if (i == power) out[at++] = '.';
            out[at++] = i >= 0 && i < count ? digits[i] : '0';
        }
    }
    out[at] = 0;
}

/* Of what has no digits. */
static const char *name_of(double value)
{
    return value != value ? "nan" : value > 0 ? "inf" : "-inf";
}

/* The digits of a positive number's shortest decimal, without leading zeros: 0.DIGITS * 10^power.
 * Returns how many. */
static int shortest_digits(char digits[32], int *power, double value)
{
    char repr[32];
    int n = 0, exponent = 0;
    bool fraction = false;
    *power = 0;
    q3_json_repr(value, repr);
    const char *e = strchr(repr, 'e');
    for (const char *p = repr; *p != 0 && p != e; p++) {
        if (*p == '.') {
            fraction = true;
            continue;
        }
        if (n > 0 || *p != '0') digits[n++] = *p;
        *power += fraction ? -(n == 0) : n > 0;
    }
    for (const char *p = e != NULL ? e + 2 : ""; *p != 0; p++) exponent = exponent * 10 + *p - '0';
    *power += e != NULL && e[1] == '-' ? -exponent : exponent;
    return n;
}

void q3_text_digits(q3_text *out, double value, int count)
{
    char digits[32], number[Q3_NUMBER_TEXT];
    int power;
    if (!(value < 0x1p100 && value > -0x1p100)) { /* as good as infinite */
        q3_text_add(out, name_of(value));
        return;
    }
    if (value >= 0 && value < 100 && value == (double)(unsigned)value && count > 1) { /* most are */
        q3_text_uint(out, (unsigned)value);
        return;
    }
    int n = shortest_digits(digits, &power, value < 0 ? -value : value);
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
    lay_out(number, digits, power, 6);
    q3_text_add(out, number);
}

/* As printf writes value with %.PRECISIONg, or with %.0f if whole; a NaN has no sign. */
static void write_real(char out[Q3_NUMBER_TEXT], double value, int precision, bool whole)
{
    char digits[Q3_NUMBER_TEXT];
    int power;
    uint64_t bits;
    if (value - value != 0) {
        memcpy(out, name_of(value), strlen(name_of(value)) + 1);
        return;
    }
    memcpy(&bits, &value, sizeof bits);
    if (bits >> 63 != 0) *out++ = '-';
    if (precision < 1) precision = 1;
    size_t count = q3_decimal_round(digits, &power, value, precision, whole);
    while (!whole && count > 1 && digits[count - 1] == '0') count--;
    digits[count] = 0;
    lay_out(out, digits, power, whole ? Q3_NUMBER_TEXT : precision);
}

/* ==== Texts from formats ====================================================================== */

typedef struct writer {
    char *out;
    size_t room, used;
    bool shown; /* texts as they may be shown */
} writer;

/* All of a piece or nothing; behind what did not fit nothing comes any more. */
static bool put(writer *w, const char *piece, size_t length)
{
    if (length >= w->room - w->used) {
        w->room = w->used + 1;
        return false;
    }
    memcpy(w->out + w->used, piece, length);
    w->used += length;
    w->out[w->used] = 0;
    return true;
}

typedef struct directive {
    bool left, zeros, bounded, star; /* '-', '0'; a precision is given, as '*' */
    size_t width, precision;
    int longs;                       /* of an integer: 1 long, 2 long long, 3 size_t */
} directive;

/* A text's next character, as it is or as it may be shown; returns how many bytes it takes. */
static size_t take(char piece[Q3_SHOWN], const writer *w, const char *text, size_t left)
{
    uint32_t code;
    if (w->shown) return q3_show(piece, text, left);
    size_t length = q3_utf8_decode((const uint8_t *)text, left, &code);
    if (length == 0) length = 1;
    memcpy(piece, text, length);
    piece[length] = 0;
    return length;
}

/* The precision says how many bytes are read, if there is no 0 before; without a star it is where a
 * long text is cut, behind a whole character, and as it is shown it takes no more bytes. */
static void put_text(writer *w, const directive *d, const char *text)
{
    char piece[Q3_SHOWN];
    size_t length = 0, begin = w->used;
    if (text == NULL) text = "(null)";
    if (!d->bounded) length = strlen(text);
    while (d->bounded && length < d->precision && text[length] != 0) length++;
    for (int i = 0; i < 3 && !d->star && length > 0 && ((uint8_t)text[length] & 0xC0u) == 0x80; i++)
        length--;
    size_t whole = !w->shown && length < w->room - w->used ? length : 0; /* at once: as most are */
    put(w, text, whole);
    for (size_t at = whole; at < length;) {
        at += take(piece, w, text + at, length - at);
        size_t n = strlen(piece);
        if (d->bounded && !d->star && w->used - begin + n > d->precision) break;
        if (!put(w, piece, n)) break;
    }
    while (w->used - begin < d->width && put(w, " ", 1)) continue;
}

/* A number's sign and digits, filled up to the width. */
static void put_digits(writer *w, const directive *d, const char *text)
{
    size_t length = strlen(text), sign = d->zeros && *text == '-';
    size_t fill = d->width > length ? d->width - length : 0;
    put(w, text, sign);
    for (size_t i = 0; i < fill && !d->left; i++) put(w, d->zeros ? "0" : " ", 1);
    put(w, text + sign, length - sign);
    for (size_t i = 0; i < fill && d->left; i++) put(w, " ", 1);
}

static void put_integer(writer *w, const directive *d, bool negative, uint64_t value, char kind)
{
    const char *signs = kind == 'x' ? "0123456789abcdef" : "0123456789ABCDEF";
    unsigned base = kind == 'x' || kind == 'X' ? 16 : 10;
    char text[24];
    size_t at = sizeof text;
    text[--at] = 0;
    for (; value != 0 || text[at] == 0; value /= base) text[--at] = signs[value % base];
    if (negative) text[--at] = '-';
    put_digits(w, d, text + at);
}

/* Flags, width, precision, size: what stands between '%' and the letter, to which *p goes on. */
static directive read_directive(const char **p, va_list *arguments)
{
    directive d = {0};
    for (; **p == '-' || **p == '0'; ++*p) {
        d.left = d.left || **p == '-';
        d.zeros = d.zeros || **p == '0';
    }
    for (; **p >= '0' && **p <= '9'; ++*p) d.width = d.width * 10 + (size_t)(**p - '0');
    if (**p == '.') {
        d.bounded = true;
        d.star = *++*p == '*';
        int given = d.star ? va_arg(*arguments, int) : 0;
        *p += d.star;
        for (; **p >= '0' && **p <= '9'; ++*p) given = given * 10 + (**p - '0');
        d.precision = given > 0 ? (size_t)given : 0;
    }
    if (strncmp(*p, "I64", 3) == 0) { /* PRIu64 with Windows' old library */
        d.longs = 2;
        *p += 3;
    }
    for (; **p == 'l'; ++*p) d.longs++;
    if (**p == 'z') d.longs = 3;
    *p += **p == 'z';
    return d;
}

static uint64_t next_unsigned(const directive *d, va_list *arguments)
{
    if (d->longs == 0) return va_arg(*arguments, unsigned);
    if (d->longs == 1) return va_arg(*arguments, unsigned long);
    return d->longs == 2 ? va_arg(*arguments, unsigned long long) : va_arg(*arguments, size_t);
}

static int64_t next_signed(const directive *d, va_list *arguments)
{
    if (d->longs == 0) return va_arg(*arguments, int);
    return d->longs == 1 ? va_arg(*arguments, long) : va_arg(*arguments, long long);
}

/* The directive whose letter is kind takes its argument. */
static void put_argument(writer *w, const directive *d, char kind, va_list *arguments)
{
    char number[Q3_NUMBER_TEXT];
    if (kind == 's') {
        put_text(w, d, va_arg(*arguments, const char *));
    } else if (kind == 'd') {
        int64_t value = next_signed(d, arguments);
        put_integer(w, d, value < 0, value < 0 ? 0 - (uint64_t)value : (uint64_t)value, kind);
    } else if (kind == 'u' || kind == 'x' || kind == 'X') {
        put_integer(w, d, false, next_unsigned(d, arguments), kind);
    } else if (kind == 'c') {
        const char one[2] = {(char)va_arg(*arguments, int), 0};
        put_text(w, d, one);
    } else {
        Q3_CHECK(kind == 'g' || (kind == 'f' && d->bounded && d->precision == 0));
        int precision = d->bounded ? (int)d->precision : 6;
        write_real(number, va_arg(*arguments, double), precision, kind == 'f');
        put_digits(w, d, number);
    }
}

static size_t write_format(writer *w, const char *format, va_list given)
{
    va_list arguments;
    va_copy(arguments, given);
    if (w->room > 0) w->out[0] = 0;
    for (const char *p = format; *p != 0 && w->room > 0;) {
        const char *end = strchr(p, '%');
        size_t length = end != NULL ? (size_t)(end - p) : strlen(p);
        bool whole = length < w->room - w->used;
        put(w, p, whole ? length : 0);
        for (size_t i = whole ? length : 0; i < length; i++) put(w, p + i, 1);
        p += length;
        if (*p == 0) break;
        p++;
        directive d = read_directive(&p, &arguments);
        if (*p == '%') put(w, "%", 1);
        else put_argument(w, &d, *p, &arguments);
        p++;
    }
    va_end(arguments);
    return w->used;
}

size_t q3_vprint(char *out, size_t room, const char *format, va_list arguments)
{
    writer w = {.out = out, .room = room};
    return write_format(&w, format, arguments);
}

size_t q3_print(char *out, size_t room, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    size_t length = q3_vprint(out, room, format, arguments);
    va_end(arguments);
    return length;
}

size_t q3_message(char *out, size_t room, const char *format, va_list arguments)
{
    writer w = {.out = out, .room = room, .shown = true};
    return write_format(&w, format, arguments);
}
