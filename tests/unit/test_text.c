/* SPDX-License-Identifier: MIT */
/* Tests of host/text.c and format.c: messages of one line, texts from formats, JSON strings,
 * numbers of a few digits, names, shapes. */
#include "host/text.h"

#include "t.h"

#include <locale.h>
#include <math.h>

/* What a terminal would act on or a reader would not see, and what is not UTF-8, is shown as an
 * escape; the rest as it is. */
static const struct { const char *text, *shown; } shown[] = {
    {"", ""}, {"plain ~", "plain ~"}, {"a\nb\tc\x1B[1m\r", "a\\nb\\tc\\x1B[1m\\r"},
    {"\x01\x1F\x7F\x08", "\\x01\\x1F\\x7F\\x08"}, {"C:\\new", "C:\\new"},
    {"\xC2\x80\xC2\x9B\xC2\x9F", "\\u{80}\\u{9B}\\u{9F}"}, {"\xC2\xA0", "\xC2\xA0"},
    {"\xC2\xAD\xD8\x9C", "\\u{AD}\\u{61C}"},
    {"\xC3\xA9\xE2\x82\xAC", "\xC3\xA9\xE2\x82\xAC"},
    {"\xE2\x80\xAA\xE2\x80\xAE", "\\u{202A}\\u{202E}"}, {"\xE2\x80\xAF", "\xE2\x80\xAF"},
    {"\xE2\x81\xA6\xE2\x81\xA9", "\\u{2066}\\u{2069}"},
    {"\xE2\x80\xA7\xE2\x80\xA8\xE2\x80\xA9", "\xE2\x80\xA7\\u{2028}\\u{2029}"},
    {"\xE2\x80\x8A\xE2\x80\x8B\xE2\x80\x8F\xE2\x80\x90",
     "\xE2\x80\x8A\\u{200B}\\u{200F}\xE2\x80\x90"},
    {"\xEF\xBB\xBF\xEF\xBF\xBE\xEF\xBF\xBF\xEF\xBF\xBD",
     "\\u{FEFF}\\u{FFFE}\\u{FFFF}\xEF\xBF\xBD"},
    {"\xF3\xA0\x80\x81\xF4\x8F\xBF\xBF", "\\u{E0001}\\u{10FFFF}"},
    {"\xF0\x9F\x98\x80!", "\xF0\x9F\x98\x80!"}, {"\xFF\xC3", "\\xFF\\xC3"},
    {"\xE2\x82z\x9B", "\\xE2\\x82z\\x9B"}, {"\xED\xA0\x80", "\\xED\\xA0\\x80"},
    {"\xC0\x80", "\\xC0\\x80"},
};

static void test_clean(void)
{
    for (size_t i = 0; i < sizeof shown / sizeof shown[0]; i++) {
        q3_error error = {"before"};
        q3_text text = {0};
        CHECK(q3_fail(&error, Q3_ERROR_INPUT, "%s", shown[i].text) == Q3_ERROR_INPUT);
        CHECK_TEXT(error.text, shown[i].shown);
        q3_text_add(&text, "");
        q3_text_shown(&text, shown[i].text);
        CHECK_TEXT(text.data, shown[i].shown);
        q3_fail(&error, Q3_ERROR_INPUT, "%s", text.data); /* what is shown can be shown again */
        CHECK_TEXT(error.text, shown[i].shown);
        free(text.data);
    }
    CHECK(q3_fail(NULL, Q3_ERROR_FILE, "%s", "x") == Q3_ERROR_FILE);
    q3_error error;
    CHECK(q3_no_memory(&error, "thing") == Q3_ERROR_MEMORY);
    CHECK_TEXT(error.text, "thing: not enough memory");
}

/* A message longer than its room, or a text than its precision, is cut off at a character's end, as
 * it is shown; nothing comes behind what did not fit. */
static void test_long(void)
{
    char long_text[2 * sizeof ((q3_error *)0)->text];
    q3_error error;
    for (size_t i = 0; i + 2 < sizeof long_text; i += 2) memcpy(long_text + i, "\xC3\xA9", 3);
    q3_fail(&error, Q3_ERROR_INPUT, "%s", long_text);
    CHECK(strlen(error.text) == sizeof error.text - 2);
    CHECK(memcmp(error.text, long_text, sizeof error.text - 2) == 0);
    q3_fail(&error, Q3_ERROR_INPUT, "%s%s", long_text, "z");
    CHECK(strlen(error.text) == sizeof error.text - 2);
    static const struct { const char *text, *five, *eight; } cut[] = {
        {"abcdefghi", "abcde", "abcdefgh"}, {"abcd\xC3\xA9z", "abcd", "abcd\xC3\xA9z"},
        {"abc\xC3\xA9z", "abc\xC3\xA9", "abc\xC3\xA9z"},
        {"ab\xF0\x9F\x98\x80", "ab", "ab\xF0\x9F\x98\x80"},
        {"ab\x1B" "c", "ab", "ab\\x1B" "c"}, {"\n\n\n\n\n", "\\n\\n", "\\n\\n\\n\\n"},
        {"\xE2\x80\xAEz", "", "\\u{202E}"}, {"\x80\x80\x80\x80\x80", "\\x80", "\\x80\\x80"},
    };
    for (size_t i = 0; i < sizeof cut / sizeof cut[0]; i++) {
        q3_fail(&error, Q3_ERROR_INPUT, "%.5s", cut[i].text);
        CHECK_TEXT(error.text, cut[i].five);
        q3_fail(&error, Q3_ERROR_INPUT, "%.8s", cut[i].text);
        CHECK_TEXT(error.text, cut[i].eight);
    }
    q3_fail(&error, Q3_ERROR_INPUT, "%.*s|", 3, "a\x1B" "bcd");
    CHECK_TEXT(error.text, "a\\x1B" "b|");
}

/* Shortened texts end with "...", and take the whole room where they fit it. */
static void test_shorten(void)
{
    static const struct { const char *text, *shown; } cases[] = {
        {"", ""}, {"123456789", "123456789"}, {"1234567890", "123456..."},
        {"12345\xC3\xA9\xC3\xA9", "12345\xC3\xA9\xC3\xA9"}, {"12345\xC3\xA9\xC3\xA9z", "12345..."},
        {"\x1B\x1B", "\\x1B\\x1B"}, {"\x1B\x1B\x1B", "\\x1B..."}, {"1234\x1B\x1B", "1234..."},
    };
    char out[10];
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        q3_shorten(out, sizeof out, cases[i].text, strlen(cases[i].text));
        CHECK_TEXT(out, cases[i].shown);
    }
}

/* Formats: every directive that is used, against what C says of them. */
static void test_print(void)
{
    char out[64];
    CHECK(q3_print(out, sizeof out, "%s %c %d %ld %lld %u %lu %llu %zu%%", "x\x1B", '!', -7, -8L,
                   -9LL, 1u, 2ul, 3ull, (size_t)4) == 22);
    CHECK_TEXT(out, "x\x1B ! -7 -8 -9 1 2 3 4%");
    q3_print(out, sizeof out, "%d %lld %llu", INT32_MIN, (long long)INT64_MIN,
             (unsigned long long)UINT64_MAX);
    CHECK_TEXT(out, "-2147483648 -9223372036854775808 18446744073709551615");
    q3_print(out, sizeof out, "%02d %05lu %04x %02X %08lx %d", 7, 42ul, 0x1Fu, 0xABu, 0xBEEFul, 0);
    CHECK_TEXT(out, "07 00042 001f AB 0000beef 0");
    q3_print(out, sizeof out, "[%-4s][%-4d][%4d][%03d]", "ab", 7, -7, -7);
    CHECK_TEXT(out, "[ab  ][7   ][  -7][-07]");
    const char *volatile none = NULL;
    q3_print(out, sizeof out, "%s", none);
    CHECK_TEXT(out, "(null)");
    CHECK(q3_print(out, 5, "%s", "abc\xC3\xA9") == 3);
    CHECK_TEXT(out, "abc");
    CHECK(q3_print(out, 6, "%.5s%d", "abcd\xC3\xA9", 12) == 4);
    CHECK_TEXT(out, "abcd");
    CHECK(q3_print(out, 4, "%s%s%d", "abcd", "", 1) == 3);
    CHECK_TEXT(out, "abc");
    CHECK(q3_print(out, 3, "%d", 1234) == 0 && out[0] == 0);
    CHECK(q3_print(out, 1, "a") == 0 && out[0] == 0);
    out[0] = 'k';
    CHECK(q3_print(out, 0, "a%d", 1) == 0 && out[0] == 'k');
}

/* Expected: Python's %, which rounds as IEEE 754 and C ask for. */
static const struct { double value; const char *three, *six, *nine, *whole; } reals[] = {
    {0.0, "0", "0", "0", "0"},
    {-0.0, "-0", "-0", "-0", "-0"},
    {1.0, "1", "1", "1", "1"},
    {-1.0, "-1", "-1", "-1", "-1"},
    {0.5, "0.5", "0.5", "0.5", "0"},
    {1.5, "1.5", "1.5", "1.5", "2"},
    {2.5, "2.5", "2.5", "2.5", "2"},
    {3.5, "3.5", "3.5", "3.5", "4"},
    {9.995, "9.99", "9.995", "9.995", "10"},
    {9.985, "9.98", "9.985", "9.985", "10"},
    {0.1, "0.1", "0.1", "0.1", "0"},
    {99.95, "100", "99.95", "99.95", "100"},
    {99.5, "99.5", "99.5", "99.5", "100"},
    {999.5, "1e+03", "999.5", "999.5", "1000"},
    {1000.5, "1e+03", "1000.5", "1000.5", "1000"},
    {123456.5, "1.23e+05", "123456", "123456.5", "123456"},
    {1234567.0, "1.23e+06", "1.23457e+06", "1234567", "1234567"},
    {0.0001, "0.0001", "0.0001", "0.0001", "0"},
    {0.00001, "1e-05", "1e-05", "1e-05", "0"},
    {9.9995e-05, "0.0001", "9.9995e-05", "9.9995e-05", "0"},
    {0.00012345, "0.000123", "0.00012345", "0.00012345", "0"},
    {5e-324, "4.94e-324", "4.94066e-324", "4.94065646e-324", "0"},
    {2.2250738585072014e-308, "2.23e-308", "2.22507e-308", "2.22507386e-308", "0"},
    {1.7976931348623157e308, "1.8e+308", "1.79769e+308", "1.79769313e+308",
     "17976931348623157081452742373170435679807056752584499659891747680315726078002853"
     "87605895586327668781715404589535143824642343213268894641827684675467035375169860"
     "49910576551282076245490090389328944075868508455133942304583236903222948165808559"
     "332123348274797826204144723168738177180919299881250404026184124858368"},
    {1e22, "1e+22", "1e+22", "1e+22",
     "10000000000000000000000"},
    {1e23, "1e+23", "1e+23", "1e+23",
     "99999999999999991611392"},
    {4.5e15, "4.5e+15", "4.5e+15", "4.5e+15", "4500000000000000"},
    {9007199254740993.0, "9.01e+15", "9.0072e+15", "9.00719925e+15", "9007199254740992"},
    {1e-10, "1e-10", "1e-10", "1e-10", "0"},
    {0.49999999999999994, "0.5", "0.5", "0.5", "0"},
    {0.09995, "0.0999", "0.09995", "0.09995", "0"},
    {1e15, "1e+15", "1e+15", "1e+15", "1000000000000000"},
    {999999.5, "1e+06", "1e+06", "999999.5", "1000000"},
    {999999.4, "1e+06", "999999", "999999.4", "999999"},
    {0.125, "0.125", "0.125", "0.125", "0"},
    {0.0625, "0.0625", "0.0625", "0.0625", "0"},
    {1000000.0, "1e+06", "1e+06", "1000000", "1000000"},
    {100000.0, "1e+05", "100000", "100000", "100000"},
    {-2.5, "-2.5", "-2.5", "-2.5", "-2"},
    {-0.4, "-0.4", "-0.4", "-0.4", "-0"},
    {1e100, "1e+100", "1e+100", "1e+100",
     "10000000000000000159028911097599180468360808563945281389781327557747838772170381"
     "060813469985856815104"},
    {3.14159265358979, "3.14", "3.14159", "3.14159265", "3"},
    {1.0000000005, "1", "1", "1", "1"},
};

/* Any value: its bits by a rule. */
static double next_value(uint64_t *state)
{
    uint64_t bits = *state = *state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    double value;
    bits ^= bits >> 31;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static void test_reals(void)
{
    char out[400];
    for (size_t i = 0; i < sizeof reals / sizeof reals[0]; i++) {
        q3_print(out, sizeof out, "%.3g", reals[i].value);
        CHECK_TEXT(out, reals[i].three);
        q3_print(out, sizeof out, "%g", reals[i].value);
        CHECK_TEXT(out, reals[i].six);
        q3_print(out, sizeof out, "%.9g", reals[i].value);
        CHECK_TEXT(out, reals[i].nine);
        q3_print(out, sizeof out, "%.0f", reals[i].value);
        CHECK_TEXT(out, reals[i].whole);
    }
    q3_print(out, sizeof out, "%g %g %.2g %.0f", (double)INFINITY, -(double)INFINITY, (double)NAN,
             -(double)NAN);
    CHECK_TEXT(out, "inf -inf nan nan");
#ifdef __GLIBC__ /* rounds correctly, and writes exponents of two digits */
    uint64_t state = 1;
    for (int i = 0; i < 20000; i++) {
        char want[400];
        double value = next_value(&state);
        if (i % 4 == 1) value = (double)(int)(state >> 40) / (double)(1u << (state & 7)); /* ties */
        if (i % 4 == 2) value = (double)(float)(state >> 44) / 1000.0;
        if (value != value) continue;
        int digits = i % 17;
        static const char *const formats[] = {
            "%.0g", "%.1g", "%.2g", "%.3g", "%.4g", "%.5g", "%.6g", "%.7g", "%.8g", "%.9g", "%.10g",
            "%.11g", "%.12g", "%.13g", "%.14g", "%.15g", "%.17g"};
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
        q3_print(out, sizeof out, formats[digits], value);
        snprintf(want, sizeof want, formats[digits], value);
#pragma GCC diagnostic pop
        CHECKF(strcmp(out, want) == 0, "%s: got %s, want %s", formats[digits], out, want);
        q3_print(out, sizeof out, "%.0f", value);
        snprintf(want, sizeof want, "%.0f", value);
        CHECKF(strcmp(out, want) == 0, "got %s, want %s", out, want);
    }
#else
    (void)next_value;
#endif
}

/* A program that has set a locale whose numbers have commas reads the same. */
static void test_locale(void)
{
    static const char *const names[] = {"de_DE.UTF-8", "de_DE", "fr_FR.UTF-8", "German", ""};
    char out[32];
    q3_text text = {0};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (setlocale(LC_ALL, names[i]) != NULL && localeconv()->decimal_point[0] == ',') break;
    q3_print(out, sizeof out, "%.3g %.0f", 1234.5, 1e6);
    CHECK_TEXT(out, "1.23e+03 1000000");
    q3_text_real(&text, 0.5);
    q3_text_digits(&text, 2.25, 2);
    CHECK_TEXT(text.data, "0.52.3");
    free(text.data);
    setlocale(LC_ALL, "C");
}

static const struct { const char *text; size_t length; const char *json; bool good; } strings[] = {
    {"", 0, "\"\"", true}, {"a b", 3, "\"a b\"", true}, {"\"\\/", 3, "\"\\\"\\\\/\"", true},
    {"\0\n\x1F", 3, "\"\\u0000\\u000a\\u001f\"", true}, {"</x>", 4, "\"\\u003c/x>\"", true},
    {"\x7F\xC3\xA9", 3, "\"\\u007f\xC3\xA9\"", true},
    {"\xC2\x9B\xE2\x80\xAE\xEF\xBB\xBF", 8, "\"\\u009b\\u202e\\ufeff\"", true},
    {"\xF3\xA0\x80\x81\xF0\x9F\x98\x80", 8, "\"\\udb40\\udc01\xF0\x9F\x98\x80\"", true},
    {"a\xFF" "b", 3, "\"a\xEF\xBF\xBD" "b\"", false},
    {"\xE2\x82", 2, "\"\xEF\xBF\xBD\xEF\xBF\xBD\"", false},
};

static void test_strings(void)
{
    for (size_t i = 0; i < sizeof strings / sizeof strings[0]; i++) {
        q3_text text = {0};
        CHECKF(q3_text_string(&text, strings[i].text, strings[i].length) == strings[i].good, "%zu",
               i);
        CHECK_TEXT(text.data, strings[i].json);
        free(text.data);
    }
}

static const struct { double value; int count; const char *text; } digits[] = {
    {0, 3, "0"}, {-0.0, 3, "0"}, {7, 3, "7"}, {99, 1, "100"}, {99, 2, "99"}, {1.25, 2, "1.3"},
    {1.24, 2, "1.2"},
    {9.99, 2, "10"}, {-9.99, 2, "-10"}, {0.0001234, 3, "0.000123"}, {0.00001234, 3, "1.23e-05"},
    {482000, 3, "482000"}, {999999, 3, "1e+06"}, {48200000, 3, "4.82e+07"}, {1e30, 3, "1e+30"},
    {5e-324, 2, "5e-324"}, {123.456, 4, "123.5"}, {0.5, 1, "0.5"}, {-1.5, 1, "-2"}, {100, 3, "100"},
    {12.0, 1, "10"}, {1e6, 3, "1e+06"}, {999.5, 3, "1000"},
};

static void test_digits(void)
{
    for (size_t i = 0; i < sizeof digits / sizeof digits[0]; i++) {
        q3_text text = {0};
        q3_text_digits(&text, digits[i].value, digits[i].count);
        CHECKF(strcmp(text.data, digits[i].text) == 0, "%g to %d digits: got %s, want %s",
               digits[i].value, digits[i].count, text.data, digits[i].text);
        free(text.data);
    }
    q3_text text = {0};
    q3_text_digits(&text, (double)INFINITY, 3);
    q3_text_digits(&text, -(double)INFINITY, 3);
    q3_text_digits(&text, (double)NAN, 3);
    q3_text_digits(&text, -0x1p100, 3);
    q3_text_count(&text, " and ", UINT64_MAX);
    q3_text_real(&text, 0.1);
    CHECK_TEXT(text.data, "inf-infnan-inf and 184467440737095516150.1");
    free(text.data);
}

/* Texts and arrays grow by far less than one allocation a piece, and keep what they have. */
static void test_growth(void)
{
    q3_text text = {0};
    q3_buffer bytes = {0};
    size_t moves = 0;
    for (size_t i = 0; i < 100000; i++) {
        const void *before = text.data;
        q3_text_add(&text, "abc");
        moves += text.data != before;
        CHECK(text.size == 3 * (i + 1) && text.size < text.capacity);
        if (!q3_append(&bytes, (const uint8_t *)"abc", 3)) exit(1);
    }
    CHECK(!text.failed && moves < 60);
    CHECK(bytes.count == text.size && memcmp(bytes.data, text.data, text.size) == 0);
    CHECK(text.data[text.size] == 0 && strlen(text.data) == text.size);
    CHECK(!q3_reserve(&bytes, SIZE_MAX / 8 * 7, 1) && bytes.count == text.size);
    CHECK(!q3_reserve(&bytes, SIZE_MAX / 16, 8) && q3_reserve(&bytes, 0, 8));
    free(bytes.data);
    free(text.data);
    char *joined = q3_join("a", "", "bc");
    CHECK_TEXT(joined, "abc");
    free(joined);
}

static void test_names(void)
{
    static const struct { q3_dtype dtype; const char *name, *code; size_t size; } dtypes[] = {
        {Q3_F32, "float32", "F32", 4}, {Q3_BF16, "bfloat16", "BF16", 2},
        {Q3_F16, "float16", "F16", 2},
        {Q3_F64, "float64", "F64", 8}, {Q3_I32, "int32", "I32", 4}, {Q3_I64, "int64", "I64", 8},
        {Q3_F8, "float8_e4m3fn", "F8_E4M3", 1}};
    static const char *const ropes[] = {"default", "linear", "dynamic", "yarn", "llama3"};
    const uint64_t shape[8] = {UINT64_MAX, UINT64_MAX, UINT64_MAX, UINT64_MAX,
                               UINT64_MAX, UINT64_MAX, UINT64_MAX, UINT64_MAX};
    char text[Q3_SHAPE_TEXT];
    CHECK(sizeof dtypes / sizeof dtypes[0] == Q3_AUTO && Q3_ROPE_TYPES == 5);
    for (size_t i = 0; i < Q3_AUTO; i++) {
        CHECK_TEXT(q3_dtype_name(dtypes[i].dtype), dtypes[i].name);
        CHECK_TEXT(q3_dtype_code(dtypes[i].dtype), dtypes[i].code);
        CHECK(q3_dtype_size(dtypes[i].dtype) == dtypes[i].size);
    }
    for (size_t i = 0; i < Q3_ROPE_TYPES; i++) CHECK_TEXT(q3_rope_name((q3_rope_type)i), ropes[i]);
    q3_shape_text(text, sizeof text, shape, 8);
    CHECK(strlen(text) == 8 * 20 + 7 + 2 && text[strlen(text) - 1] == ']');
    q3_shape_text(text, 5, shape, 8);
    CHECK_TEXT(text, "[");
    q3_shape_text(text, sizeof text, (const uint64_t[]){5, 7}, 2);
    CHECK_TEXT(text, "[5,7]");
    q3_shape_text(text, 5, (const uint64_t[]){5, 7}, 2);
    CHECK_TEXT(text, "[5,7");
    q3_shape_text(text, sizeof text, shape, 0);
    CHECK_TEXT(text, "[]");
}

int main(void)
{
    test_clean();
    test_long();
    test_shorten();
    test_print();
    test_reals();
    test_locale();
    test_strings();
    test_digits();
    test_growth();
    test_names();
    return t_done("text");
}
