/* SPDX-License-Identifier: MIT */
/* output.c - all that the command prints: messages, finished texts, and data, such as a model's
 * words, which a terminal does not get as they are. */
#include "command/command.h"

#include <string.h>

void say(FILE *file, const char *format, ...)
{
    char line[1024];
    va_list arguments;
    va_start(arguments, format);
    q3_message(line, sizeof line, format, arguments);
    va_end(arguments);
    fputs(line, file);
}

void say_text(const char *text)
{
    fputs(text, stdout);
}

/* Of a character that begins with this byte. */
static size_t length_of(uint8_t first)
{
    return first < 0xC2 ? 1 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : first < 0xF5 ? 4 : 1;
}

/* Shows what is held; of a character that is not complete, and may become so, nothing. */
static void show_held(data_output *out, bool all)
{
    char shown[Q3_SHOWN];
    while (out->count > 0) {
        size_t whole = 1, length = length_of(out->held[0]);
        while (whole < out->count && (out->held[whole] & 0xC0) == 0x80) whole++;
        if (!all && whole == out->count && whole < length) return;
        size_t step = q3_show(shown, (const char *)out->held, out->count);
        bool blank = out->held[0] == '\n' || out->held[0] == '\t';
        fwrite(blank ? (const char *)out->held : shown, 1, blank ? 1 : strlen(shown), stdout);
        out->count -= step;
        memmove(out->held, out->held + step, out->count);
    }
}

void say_data(data_output *out, const uint8_t *bytes, size_t length)
{
    if (!out->begun) out->terminal = is_terminal(stdout);
    out->begun = true;
    if (!out->terminal) fwrite(bytes, 1, length, stdout);
    for (size_t i = 0; i < length && out->terminal; i++) {
        out->held[out->count++] = bytes[i];
        show_held(out, false);
    }
}

void end_data(data_output *out)
{
    show_held(out, true);
}
