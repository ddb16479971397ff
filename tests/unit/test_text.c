/* SPDX-License-Identifier: MIT */
/* Tests of host/text.c: messages of one line, JSON strings, numbers of a few digits, names,
 * shapes. */
#include "host/text.h"

#include "t.h"

#include <math.h>

/* What a terminal would act on, and what is not UTF-8, is shown as '?'; the rest as it is. */
static const struct { const char *text, *shown; } shown[] = {
    {"", ""}, {"plain ~", "plain ~"}, {"a\nb\tc\x1B[1m", "a?b?c?[1m"}, {"\x7F", "?"},
    {"\xC2\x80\xC2\x9F", "??"}, {"\xC2\xA0", "\xC2\xA0"},
    {"\xC3\xA9\xE2\x82\xAC", "\xC3\xA9\xE2\x82\xAC"},
    {"\xF0\x9F\x98\x80!", "\xF0\x9F\x98\x80!"}, {"\xFF\xC3", "??"}, {"\xE2\x82z", "??z"},
    {"\xED\xA0\x80", "???"}, {"\xC0\x80", "??"},
};

static void test_clean(void)
{
    for (size_t i = 0; i < sizeof shown / sizeof shown[0]; i++) {
        q3_error error = {"before"};
        q3_text text = {0};
        CHECK(q3_fail(&error, Q3_ERROR_INPUT, "%s", shown[i].text) == Q3_ERROR_INPUT);
        CHECK_TEXT(error.text, shown[i].shown);
        q3_text_add(&text, "");
        q3_text_clean(&text, shown[i].text);
        CHECK_TEXT(text.data, shown[i].shown);
        free(text.data);
    }
    CHECK(q3_fail(NULL, Q3_ERROR_FILE, "%s", "x") == Q3_ERROR_FILE);
    q3_error error;
    CHECK(q3_no_memory(&error, "thing") == Q3_ERROR_MEMORY);
    CHECK_TEXT(error.text, "thing: not enough memory");
}

/* A message longer than its room is cut off, at a character's end or with '?' for what is left
 * of it. */
static void test_long(void)
{
    char long_text[2 * sizeof ((q3_error *)0)->text];
    q3_error error;
    for (size_t i = 0; i + 2 < sizeof long_text; i += 2) memcpy(long_text + i, "\xC3\xA9", 3);
    q3_fail(&error, Q3_ERROR_INPUT, "%s", long_text);
    size_t length = strlen(error.text);
    CHECK(length == sizeof error.text - 1);
    CHECK(error.text[length - 1] == '?' && error.text[length - 2] == '\xA9');
}

static const struct { const char *text; size_t length; const char *json; bool good; } strings[] = {
    {"", 0, "\"\"", true}, {"a b", 3, "\"a b\"", true}, {"\"\\/", 3, "\"\\\"\\\\/\"", true},
    {"\0\n\x1F", 3, "\"\\u0000\\u000a\\u001f\"", true}, {"</x>", 4, "\"\\u003c/x>\"", true},
    {"\x7F\xC3\xA9", 3, "\"\x7F\xC3\xA9\"", true}, {"a\xFF" "b", 3, "\"a\xEF\xBF\xBD" "b\"", false},
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
    CHECK_TEXT(text, "[184");
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
    test_strings();
    test_digits();
    test_growth();
    test_names();
    return t_done("text");
}
