/* SPDX-License-Identifier: MIT */
/* json.c and decimal.c: what is read, what is refused and how, numbers against known values.
 * The expected bits and spellings of numbers are Python's (float.hex, repr). */
#include "host/json.h"
#include "t.h"

static q3_json parse(const char *text, size_t length, q3_error *error, q3_status *status)
{
    /* A copy of exactly this length, so that a sanitizer sees a read beyond it. */
    q3_json j = {.name = "x", .nodes = NULL};
    uint8_t *copy = malloc(length > 0 ? length : 1);
    if (copy == NULL) abort();
    memcpy(copy, text, length);
    error->text[0] = 0;
    *status = q3_json_parse(&j, "x", copy, length, error);
    if (*status != Q3_OK) free(copy);
    return j;
}

static void release(q3_json *j)
{
    free((void *)(uintptr_t)j->text);
    q3_json_free(j);
}

static void refused(const char *text, size_t length, const char *message)
{
    q3_error error;
    q3_status status;
    q3_json j = parse(text, length, &error, &status);
    CHECKF(status == Q3_ERROR_INPUT, "%s", text);
    CHECKF(j.nodes == NULL, "%s: touched", text);
    CHECK_TEXT(error.text, message);
    if (status == Q3_OK) release(&j);
}

static void test_refused(void)
{
    static const char *const cases[][2] = {
        {"", "x: byte 0: found the end of the text, expected a value"},
        {"  ", "x: byte 2: found the end of the text, expected a value"},
        {"{", "x: byte 1: found the end of the text, expected a key or '}'"},
        {"[", "x: byte 1: found the end of the text, expected a value"},
        {"[1", "x: byte 2: found the end of the text, expected ',' or ']'"},
        {"[1,]", "x: byte 3: found ']', expected a value"},
        {"[,1]", "x: byte 1: found ',', expected a value"},
        {"[1 2]", "x: byte 3: found '2', expected ',' or ']'"},
        {"[1}", "x: byte 2: found '}', expected ',' or ']'"},
        {"{]", "x: byte 1: found ']', expected a key or '}'"},
        {"]", "x: byte 0: found ']', expected a value"},
        {"{\"a\":1,}", "x: byte 7: found '}', expected a key"},
        {"{\"a\" 1}", "x: byte 5: found '1', expected ':'"},
        {"{\"a\":}", "x: byte 5: found '}', expected a value"},
        {"{\"a\":1 \"b\":2}", "x: byte 7: found '\"', expected ',' or '}'"},
        {"{a:1}", "x: byte 1: found 'a', expected a key or '}'"},
        {"{1:1}", "x: byte 1: found '1', expected a key or '}'"},
        {"1 2", "x: byte 2: found '2', expected the end of the text"},
        {"{}}", "x: byte 2: found '}', expected the end of the text"},
        {"01", "x: byte 1: found '1', expected the end of the text"},
        {"-", "x: byte 1: found the end of the text, expected a digit"},
        {"+1", "x: byte 0: found '+', expected a value"},
        {".5", "x: byte 0: found '.', expected a value"},
        {"1.", "x: byte 2: found the end of the text, expected a digit"},
        {"1.e5", "x: byte 2: found 'e', expected a digit"},
        {"1e", "x: byte 2: found the end of the text, expected a digit"},
        {"1e+", "x: byte 3: found the end of the text, expected a digit"},
        {"0x10", "x: byte 1: found 'x', expected the end of the text"},
        {"NaN", "x: byte 0: found 'N', expected a value"},
        {"-Infinity", "x: byte 1: found 'I', expected a digit"},
        {"1e999", "x: byte 0: found '1', expected a number within the range of a float64"},
        {"1.7976931348623159e308",
         "x: byte 0: found '1', expected a number within the range of a float64"},
        {"nul", "x: byte 0: found 'n', expected a value"},
        {"True", "x: byte 0: found 'T', expected a value"},
        {"'a'", "x: byte 0: found ''', expected a value"},
        {"\xEF\xBB\xBF[]", "x: byte 0: found byte 0xEF, expected a value"},
        {"[\f]", "x: byte 1: found byte 0x0C, expected a value"},
        {"// c\n1", "x: byte 0: found '/', expected a value"},
        {"\"a", "x: byte 2: found the end of the text, expected the rest of a string (control "
                "characters need an escape)"},
        {"\"a\n\"", "x: byte 2: found byte 0x0A, expected the rest of a string (control characters "
                    "need an escape)"},
        {"\"\\\"", "x: byte 3: found the end of the text, expected the rest of a string (control "
                   "characters need an escape)"},
        {"\"\\x\"", "x: byte 1: found '\\', expected a JSON escape (surrogates only in pairs)"},
        {"\"\\u12G4\"", "x: byte 1: found '\\', expected a JSON escape (surrogates only in pairs)"},
        {"\"\\u12", "x: byte 1: found '\\', expected a JSON escape (surrogates only in pairs)"},
        {"\"\\ud800\"", "x: byte 1: found '\\', expected a JSON escape (surrogates only in pairs)"},
        {"\"\\ud800\\u0041\"",
         "x: byte 1: found '\\', expected a JSON escape (surrogates only in pairs)"},
        {"\"\\udc00\\ud800\"",
         "x: byte 1: found '\\', expected a JSON escape (surrogates only in pairs)"},
        {"\"\\udc00\\udc00\"",
         "x: byte 1: found '\\', expected a JSON escape (surrogates only in pairs)"},
        {"\"\x80\"", "x: byte 1: found byte 0x80, expected UTF-8"},
        {"\"\xC0\x80\"", "x: byte 1: found byte 0xC0, expected UTF-8"},
        {"\"\xE0\x80\x80\"", "x: byte 1: found byte 0xE0, expected UTF-8"},
        {"\"\xE0\x9F\xBF\"", "x: byte 1: found byte 0xE0, expected UTF-8"},
        {"\"\xF0\x8F\xBF\xBF\"", "x: byte 1: found byte 0xF0, expected UTF-8"},
        {"\"\xED\xA0\x80\"", "x: byte 1: found byte 0xED, expected UTF-8"},
        {"\"\xF4\x90\x80\x80\"", "x: byte 1: found byte 0xF4, expected UTF-8"},
        {"\"\xF5\x80\x80\x80\"", "x: byte 1: found byte 0xF5, expected UTF-8"},
        {"\"\xE4\xB8\"", "x: byte 1: found byte 0xE4, expected UTF-8"},
        {"{\"a\":1,\"a\":2}", "x: byte 7: found the key \"a\" again, expected each key once"},
        {"{\"a\":1,\"b\":{\"\\u0061\":1,\"a\":2}}",
         "x: byte 23: found the key \"a\" again, expected each key once"},
        {"{\"\\n\":1,\"\\u000a\":2}",
         "x: byte 8: found the key \"\\u000a\" again, expected each key once"},
        {"{\"b\":1,\"c\":1,\"d\":1,\"e\":1,\"f\":1,\"g\":1,\"h\":1,\"i\":1,\"j\":1,\"b\":1}",
         "x: byte 55: found the key \"b\" again, expected each key once"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        refused(cases[i][0], strlen(cases[i][0]), cases[i][1]);
    refused("\"\0\"", 3, "x: byte 1: found byte 0x00, expected the rest of a string (control "
                         "characters need an escape)");
    char nested[2 * Q3_JSON_DEPTH + 4];
    for (size_t depth = Q3_JSON_DEPTH; depth <= Q3_JSON_DEPTH + 1; depth++) {
        q3_error error;
        q3_status status;
        memset(nested, '[', depth);
        memset(nested + depth, ']', depth);
        if (depth > Q3_JSON_DEPTH) {
            refused(nested, 2 * depth, "x: byte 128: found '[', expected at most 128 levels of "
                                       "nesting");
            continue;
        }
        q3_json j = parse(nested, 2 * depth, &error, &status);
        CHECK(status == Q3_OK && j.count == Q3_JSON_DEPTH);
        release(&j);
    }
}

static void test_access(void)
{
    static const char text[] =
        " { \"a\" : [1, -0, 5.0, 18446744073709551615, 18446744073709551616, \"5\"],\t"
        "\"b\\u00e9\" :{}, \"\\ud83d\\ude00\\u0000\\/\" : \"x\\n\\\"\\\\\" ,\r\n"
        "\"n\":null,\"t\":true,\"f\":false,\"\":[], \"\xC3\xA9\": \"\xC3\xA9\" } ";
    q3_error error;
    q3_status status;
    q3_json j = parse(text, sizeof text - 1, &error, &status);
    uint8_t out[16];
    uint64_t value = 7;
    CHECKF(status == Q3_OK, "%s", error.text);
    if (status != Q3_OK) return;
    CHECK(j.nodes[0].count == 8 && j.nodes[0].next == j.count && j.count == 23);
    uint32_t a = q3_json_find(&j, 0, "a");
    CHECK(a == 2 && q3_json_type_of(&j, a) == Q3_JSON_ARRAY && j.nodes[a].count == 6);
    CHECK(q3_json_uint(&j, a + 1, &value) && value == 1);
    CHECK(!q3_json_uint(&j, a + 2, &value) && q3_json_is_integer(&j, a + 2));
    CHECK(!q3_json_uint(&j, a + 3, &value) && !q3_json_is_integer(&j, a + 3));
    CHECK(q3_json_uint(&j, a + 4, &value) && value == UINT64_MAX);
    value = 7;
    CHECK(!q3_json_uint(&j, a + 5, &value) && value == 7 && q3_json_is_integer(&j, a + 5));
    CHECK(!q3_json_uint(&j, a + 6, &value) && !q3_json_is_integer(&j, a + 6));
    CHECK(q3_json_equal(&j, a + 6, "5") && !q3_json_equal(&j, a + 6, "55"));
    CHECK(!q3_json_equal(&j, a + 6, "") && !q3_json_equal(&j, a + 1, "1"));
    CHECK(j.nodes[a].next == q3_json_find(&j, 0, "b\xC3\xA9") - 1);
    CHECK(q3_json_type_of(&j, q3_json_find(&j, 0, "b\xC3\xA9")) == Q3_JSON_OBJECT);
    CHECK(q3_json_find(&j, 0, "b") == 0 && q3_json_find(&j, a, "b") == 0);
    uint32_t key = j.nodes[j.nodes[a].next + 1].next;
    CHECK(q3_json_string(&j, key, NULL) == 6 && q3_json_string(&j, key, out) == 6 &&
          memcmp(out, "\xF0\x9F\x98\x80\0/", 6) == 0);
    CHECK(!q3_json_equal(&j, key, "\xF0\x9F\x98\x80"));
    CHECK(q3_json_string(&j, key + 1, out) == 4 && memcmp(out, "x\n\"\\", 4) == 0);
    CHECK(q3_json_type_of(&j, q3_json_find(&j, 0, "n")) == Q3_JSON_NULL);
    CHECK(q3_json_type_of(&j, q3_json_find(&j, 0, "t")) == Q3_JSON_TRUE);
    CHECK(q3_json_type_of(&j, q3_json_find(&j, 0, "f")) == Q3_JSON_FALSE);
    CHECK(j.nodes[q3_json_find(&j, 0, "")].count == 0);
    CHECK(q3_json_string(&j, q3_json_find(&j, 0, "\xC3\xA9"), out) == 2 && out[1] == 0xA9);
    CHECK(q3_json_fail(&j, q3_json_find(&j, 0, "t"), "t", "null", &error) == Q3_ERROR_INPUT);
    CHECK_TEXT(error.text, "x: t: found true, expected null");
    q3_json_fail(&j, 0, "q", "null", &error);
    CHECK_TEXT(error.text, "x: q: found nothing, expected null");
    q3_json_fail(&j, a, "a", "null", &error);
    CHECK_TEXT(error.text, "x: a: found an array, expected null");
    release(&j);
}

/* number, its float64 bits, Python's repr of that. */
static const struct { const char *text; uint64_t bits; const char *repr; } numbers[] = {
    {"0", UINT64_C(0x0000000000000000), "0.0"},
    {"-0", UINT64_C(0x8000000000000000), "-0.0"},
    {"-0.0", UINT64_C(0x8000000000000000), "-0.0"},
    {"1", UINT64_C(0x3FF0000000000000), "1.0"},
    {"-1", UINT64_C(0xBFF0000000000000), "-1.0"},
    {"0.1", UINT64_C(0x3FB999999999999A), "0.1"},
    {"0.5", UINT64_C(0x3FE0000000000000), "0.5"},
    {"1e-6", UINT64_C(0x3EB0C6F7A0B5ED8D), "1e-06"},
    {"1e-06", UINT64_C(0x3EB0C6F7A0B5ED8D), "1e-06"},
    {"1000000.0", UINT64_C(0x412E848000000000), "1000000.0"},
    {"4.0", UINT64_C(0x4010000000000000), "4.0"},
    {"0.1386294361119891", UINT64_C(0x3FC1BE9BFF2E94C1), "0.1386294361119891"},
    {"10000", UINT64_C(0x40C3880000000000), "10000.0"},
    {"5e-324", UINT64_C(0x0000000000000001), "5e-324"},
    {"2e-324", UINT64_C(0x0000000000000000), "0.0"},
    {"2.4703282292062327e-324", UINT64_C(0x0000000000000000), "0.0"},
    {"2.4703282292062328e-324", UINT64_C(0x0000000000000001), "5e-324"},
    {"2.2250738585072011e-308", UINT64_C(0x000FFFFFFFFFFFFF), "2.225073858507201e-308"},
    {"2.2250738585072014e-308", UINT64_C(0x0010000000000000), "2.2250738585072014e-308"},
    {"1.7976931348623157e308", UINT64_C(0x7FEFFFFFFFFFFFFF), "1.7976931348623157e+308"},
    {"1.797693134862315807e308", UINT64_C(0x7FEFFFFFFFFFFFFF), "1.7976931348623157e+308"},
    {"9007199254740993", UINT64_C(0x4340000000000000), "9007199254740992.0"},
    {"9007199254740992.5", UINT64_C(0x4340000000000000), "9007199254740992.0"},
    {"9007199254740993.00000000000000000000000000001", UINT64_C(0x4340000000000001),
     "9007199254740994.0"},
    {"1e22", UINT64_C(0x4480F0CF064DD592), "1e+22"},
    {"1e23", UINT64_C(0x44B52D02C7E14AF6), "1e+23"},
    {"8.98846567431158e307", UINT64_C(0x7FE0000000000000), "8.98846567431158e+307"},
    {"1e-400", UINT64_C(0x0000000000000000), "0.0"},
    {"0e99999", UINT64_C(0x0000000000000000), "0.0"},
    {"0e-99999", UINT64_C(0x0000000000000000), "0.0"},
    {"-0.0e-99999", UINT64_C(0x8000000000000000), "-0.0"},
    {"1E5", UINT64_C(0x40F86A0000000000), "100000.0"},
    {"1e+5", UINT64_C(0x40F86A0000000000), "100000.0"},
    {"5.684341886080801e-14", UINT64_C(0x3D2FFFFFFFFFFFFF), "5.684341886080801e-14"},
    {"5.684341886080802e-14", UINT64_C(0x3D30000000000000), "5.684341886080802e-14"},
    {"9.5367431640625e-07", UINT64_C(0x3EB0000000000000), "9.5367431640625e-07"},
    {"123456789012345680.0", UINT64_C(0x437B69B4BA630F35), "1.2345678901234568e+17"},
    {"1e15", UINT64_C(0x430C6BF526340000), "1000000000000000.0"},
    {"1e16", UINT64_C(0x4341C37937E08000), "1e+16"},
    {"9999999999999998.0", UINT64_C(0x4341C37937E07FFF), "9999999999999998.0"},
    {"12345678901234567", UINT64_C(0x4345EE2A2EB5A5C4), "1.2345678901234568e+16"},
    {"0.0001", UINT64_C(0x3F1A36E2EB1C432D), "0.0001"},
    {"0.00001", UINT64_C(0x3EE4F8B588E368F1), "1e-05"},
    {"0.00012345678901234567", UINT64_C(0x3F202E85BE180B74), "0.00012345678901234567"},
    {"1234567890123456789012345678901234567890123456789012345678901234e-63",
     UINT64_C(0x3FF3C0CA428C59FB), "1.2345678901234567"},
    {"0.000000000000000000000000000000000000000000000000000001", UINT64_C(0x34B8851A0B548EA4),
     "1e-54"},
    {"2.5", UINT64_C(0x4004000000000000), "2.5"},
    {"3.0e0", UINT64_C(0x4008000000000000), "3.0"},
    {"100", UINT64_C(0x4059000000000000), "100.0"},
    {"1e2", UINT64_C(0x4059000000000000), "100.0"},
    {"0.30000000000000004", UINT64_C(0x3FD3333333333334), "0.30000000000000004"},
    {"299792458", UINT64_C(0x41B1DE784A000000), "299792458.0"},
    {"2.7126267136355693e+57", UINT64_C(0x4BDBA8493CEB3FFD), "2.7126267136355693e+57"},
    {"2.9176505403442687e-228", UINT64_C(0x10B1B1B48B529B4A), "2.9176505403442687e-228"},
    {"5.5705027106665415e+256", UINT64_C(0x753DADFA5EB561A4), "5.5705027106665415e+256"},
    {"2.0668446752292503e-16", UINT64_C(0x3CADC94F9A9A80FD), "2.0668446752292503e-16"},
    {"1.4826236772844953e+50", UINT64_C(0x4A595C7EA02F34A6), "1.4826236772844953e+50"},
    {"2.670405756230503e+65", UINT64_C(0x4D84491E10C67FD9), "2.670405756230503e+65"},
    {"2.3095972247362096e+252", UINT64_C(0x7454294F035EFA25), "2.3095972247362096e+252"},
    {"2.1552158160265848e-19", UINT64_C(0x3C0FCE2CD6645FA9), "2.1552158160265848e-19"},
    {"4.084669271327047e+31", UINT64_C(0x46801C7642650644), "4.084669271327047e+31"},
    {"1.89867543353284e-190", UINT64_C(0x188B12133BFD1D33), "1.89867543353284e-190"},
    {"1.5619592075495646e+134", UINT64_C(0x5BCB81C3FEE29476), "1.5619592075495646e+134"},
    {"3.703210565721954e+25", UINT64_C(0x453EA1DA78633074), "3.703210565721954e+25"},
    {"8.339285569756503e+30", UINT64_C(0x465A506BD6225675), "8.339285569756503e+30"},
    {"8.092383615358505e-64", UINT64_C(0x32D54E4179F248B0), "8.092383615358505e-64"},
    {"7.942454533308265e+222", UINT64_C(0x6E35F8F0A399F82A), "7.942454533308265e+222"},
    {"1.0724487151562167e-165", UINT64_C(0x1DAF9EC3268ECC45), "1.0724487151562167e-165"},
    {"3.5334869493505085e-215", UINT64_C(0x13685CA2A2863A7F), "3.5334869493505085e-215"},
    {"6.997119006180081e+262", UINT64_C(0x7681C6DADE383784), "6.997119006180081e+262"},
    {"2.9495629468048806e-68", UINT64_C(0x31E9724885EF3430), "2.9495629468048806e-68"},
    {"2.438173398544643e-299", UINT64_C(0x01F05409BDC2AE99), "2.438173398544643e-299"},
};

static void test_numbers(void)
{
    q3_error error;
    q3_status status;
    char out[32];
    double value;
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        uint64_t bits = 0;
        q3_json j = parse(numbers[i].text, strlen(numbers[i].text), &error, &status);
        CHECKF(status == Q3_OK, "%s", numbers[i].text);
        if (status != Q3_OK) continue;
        CHECKF(q3_json_double(&j, 0, &value), "%s", numbers[i].text);
        memcpy(&bits, &value, sizeof bits);
        CHECKF(bits == numbers[i].bits, "%s: got %016llX, want %016llX", numbers[i].text,
               (unsigned long long)bits, (unsigned long long)numbers[i].bits);
        memcpy(&value, &numbers[i].bits, sizeof value);
        CHECK(q3_json_repr(value, out) == strlen(numbers[i].repr));
        CHECK_TEXT(out, numbers[i].repr);
        release(&j);
    }
    static const char *const limits[] = {
        "11111111111111111111111111111111111111111111111111111111111111111", "1e-401",
        "\"1\"", "null",
    };
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
        q3_json j = parse(limits[i], strlen(limits[i]), &error, &status);
        value = 7;
        CHECKF(status == Q3_OK && !q3_json_double(&j, 0, &value) && value == 7, "%s", limits[i]);
        release(&j);
    }
}

/* Many keys are no slower per key than few: 100,000 with one repeated at the end. */
static void test_many_keys(void)
{
    enum { N = 100000 };
    char *text = malloc(N * 16 + 32), message[128];
    size_t n = 0;
    if (text == NULL) abort();
    text[n++] = '{';
    for (unsigned i = 0; i < N; i++) n += (size_t)sprintf(text + n, "\"%u\":%u,", i, i);
    size_t at = n;
    n += (size_t)sprintf(text + n, "\"777\":1}");
    sprintf(message, "x: byte %lu: found the key \"777\" again, expected each key once",
            (unsigned long)at);
    refused(text, n, message);
    text[at + 1] = 'x';
    q3_error error;
    q3_status status;
    q3_json j = parse(text, n, &error, &status);
    CHECK(status == Q3_OK && j.nodes[0].count == N + 1 && q3_json_find(&j, 0, "99999") != 0);
    release(&j);
    free(text);
}

/* Every start of a valid text but the whole is refused. */
static void test_truncated(void)
{
    static const char text[] = "{\"a\":[1.5e3,true,null,"
                               "\"\\u00e9\\ud83d\\ude00\xE4\xB8\x80\"],\"b\":{}}";
    for (size_t n = 0; n < sizeof text; n++) {
        q3_error error;
        q3_status status;
        q3_json j = parse(text, n, &error, &status);
        CHECKF((status == Q3_OK) == (n == sizeof text - 1), "%lu bytes", (unsigned long)n);
        if (status == Q3_OK) release(&j);
    }
}

static void test_utf8(void)
{
    uint8_t out[4];
    uint32_t back;
    size_t wrong = 0;
    for (uint32_t c = 0; c < 0x110000; c++) {
        size_t n = q3_utf8_encode(c, out);
        size_t want = c >= 0xD800 && c < 0xE000 ? 0 : n;
        wrong += n != (c < 0x80 ? 1u : c < 0x800 ? 2u : c < 0x10000 ? 3u : 4u);
        back = UINT32_MAX;
        wrong += q3_utf8_decode(out, n, &back) != want || (want > 0 && back != c);
        wrong += q3_utf8_decode(out, n - 1, &back) != 0;
    }
    CHECKF(wrong == 0, "%lu code points", (unsigned long)wrong);
}

int main(void)
{
    test_refused();
    test_access();
    test_numbers();
    test_many_keys();
    test_truncated();
    test_utf8();
    return t_done("json");
}
