/* SPDX-License-Identifier: MIT */
/* Tests of command/output.c: what reaches standard output as it is, and what a terminal gets. */
#include "command/command.h"

#include "t.h"

#define FILE_NAME "test_output.tmp"

static bool terminal;

/* In the place of session.c's. */
bool is_terminal(FILE *file)
{
    return terminal && file == stdout;
}

/* What came since the last call, with its length in *size. */
static const char *printed(size_t *size)
{
    static char text[4096];
    FILE *file = fopen(FILE_NAME, "rb");
    fflush(stdout);
    *size = file != NULL ? fread(text, 1, sizeof text - 1, file) : 0;
    text[*size] = 0;
    if (file != NULL) fclose(file);
    if (freopen(FILE_NAME, "wb", stdout) == NULL) exit(1);
    return text;
}

static void prints(const char *want, size_t length)
{
    size_t size;
    const char *got = printed(&size);
    CHECKF(size == length && memcmp(got, want, length) == 0, "got \"%s\", want \"%s\"", got, want);
}

/* What data a terminal gets, however it is cut into pieces. */
static const struct { const char *data, *shown; } cases[] = {
    {"", ""}, {"two\nlines\tand", "two\nlines\tand"}, {"\x1B[31mred", "\\x1B[31mred"},
    {"\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80", "\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80"},
    {"a\rb\x7F\x08", "a\\rb\\x7F\\x08"}, {"\xC2\x9B" "1m", "\\u{9B}1m"}, {"\x9B" "1m", "\\x9B1m"},
    {"\xE2\x80\xAEz", "\\u{202E}z"}, {"\xF0\x9F\x98", "\\xF0\\x9F\\x98"}, {"\xC3", "\\xC3"},
    {"\xC3\xC3\xA9", "\\xC3\xC3\xA9"}, {"\xE2\x82z", "\\xE2\\x82z"}, {"\xFF\xFE", "\\xFF\\xFE"},
    {"\xED\xA0\x80\n", "\\xED\\xA0\\x80\n"}, {"\xF0\x9F\xE2\x82\xAC", "\\xF0\\x9F\xE2\x82\xAC"},
    {"\xC0\x80", "\\xC0\\x80"}, {"\xF4\x8F\xBF\xBF", "\\u{10FFFF}"},
};

static void test_data(void)
{
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const uint8_t *data = (const uint8_t *)cases[i].data;
        size_t length = strlen(cases[i].data);
        for (size_t step = 1; step <= 5; step++) {
            data_output raw = {0}, shown = {0};
            terminal = false;
            for (size_t at = 0; at < length; at += step)
                say_data(&raw, data + at, length - at < step ? length - at : step);
            end_data(&raw);
            prints(cases[i].data, length);
            terminal = true;
            for (size_t at = 0; at < length; at += step)
                say_data(&shown, data + at, length - at < step ? length - at : step);
            end_data(&shown);
            prints(cases[i].shown, strlen(cases[i].shown));
        }
    }
    data_output zero = {0};
    say_data(&zero, (const uint8_t *)"a\0b", 3);
    end_data(&zero);
    prints("a\\x00b", 6);
}

/* Nothing waits for the end of a character that is there. */
static void test_at_once(void)
{
    data_output out = {0};
    terminal = true;
    say_data(&out, (const uint8_t *)"\xE2\x82", 2);
    prints("", 0);
    say_data(&out, (const uint8_t *)"\xAC", 1);
    prints("\xE2\x82\xAC", 3);
    end_data(&out);
    prints("", 0);
}

static void test_say(void)
{
    char name[2000];
    terminal = false;
    say(stdout, "%s: %zu\n", "a\nb\x1B", (size_t)7);
    prints("a\\nb\\x1B: 7\n", 12);
    say_text("one\ntwo\n");
    prints("one\ntwo\n", 8);
    memset(name, 'n', sizeof name);
    name[sizeof name - 1] = 0;
    say(stdout, "%s", name);
    prints(name, 1023);
}

int main(void)
{
    if (freopen(FILE_NAME, "wb", stdout) == NULL) return 1;
    test_data();
    test_at_once();
    test_say();
    remove(FILE_NAME);
    fprintf(stderr, "output: %lu checks, %lu failed\n", (unsigned long)t_count.run,
            (unsigned long)t_count.failed);
    return t_done("output");
}
