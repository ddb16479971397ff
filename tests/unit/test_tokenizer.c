/* SPDX-License-Identifier: MIT */
/* tokenizer.c and nfc.c against Hugging Face tokenizers (golden/tokenizer/, made by
 * scripts/golden/make_tokenizer_golden.py), malformed files, malformed texts, long inputs.
 * test_tokenizer GOLDEN all that needs nothing else test_tokenizer GOLDEN official the official
 * Qwen3 file, whose path is in the environment variable QWEN3_TOKENIZER_JSON; 77 (did not run)
 * without it */
#include "host/json.h"
#include "host/text.h"
#include "qwen3moe.h"
#include "t.h"

#include <time.h>

/* ==== Hugging Face's ids ====================================================================== */

static uint8_t *read_file(const char *path, size_t *length)
{
    size_t capacity = 1 << 20;
    uint8_t *text = malloc(capacity);
    FILE *file = fopen(path, "rb");
    *length = 0;
    if (text == NULL || file == NULL) {
        fprintf(stderr, "%s: cannot be read\n", path);
        exit(2);
    }
    for (size_t got = 1; got > 0; *length += got) {
        if (*length == capacity) text = realloc(text, capacity *= 2);
        if (text == NULL) exit(2);
        got = fread(text + *length, 1, capacity - *length, file);
    }
    fclose(file);
    return text;
}

static int32_t *read_ids(const q3_json *j, uint32_t list)
{
    int32_t *ids = malloc((j->nodes[list].count + 1) * sizeof *ids);
    uint32_t node = list + 1;
    if (ids == NULL) exit(2);
    for (size_t i = 0; i < j->nodes[list].count; i++, node++) {
        uint64_t value = 0;
        CHECK(q3_json_uint(j, node, &value));
        ids[i] = (int32_t)value;
    }
    return ids;
}

static void check_encode(const q3_tokenizer *t, const q3_json *j, uint32_t node, size_t index)
{
    uint32_t list = j->nodes[node + 1].next;
    size_t n = q3_json_string(j, node + 1, NULL), count = 0, want_count = j->nodes[list].count;
    uint8_t *text = malloc(n + 1);
    int32_t *ids = NULL, *want = read_ids(j, list);
    q3_error error = {""};
    if (text == NULL) exit(2);
    q3_json_string(j, node + 1, text);
    CHECKF(q3_tokenizer_encode(t, text, n, &ids, &count, &error) == Q3_OK, "%s", error.text);
    size_t i = 0;
    while (i < count && i < want_count && ids[i] == want[i]) i++;
    CHECKF(ids != NULL && i == count && count == want_count,
           "case %lu: %.*s: id %lu: got %ld of %lu, want %ld of %lu", (unsigned long)index,
           (int)(j->nodes[node + 1].end - j->nodes[node + 1].start),
           (const char *)j->text + j->nodes[node + 1].start, (unsigned long)i,
           i < count ? (long)ids[i] : -1L, (unsigned long)count,
           i < want_count ? (long)want[i] : -1L, (unsigned long)want_count);
    free(text);
    free(ids);
    free(want);
}

/* All texts as one, with an added token between: the ids are those of the single texts, since
 * nothing reaches across an added token. Long enough for the cache of pieces. */
static void check_joined(const q3_tokenizer *t, const q3_json *j, uint32_t list, const char *token)
{
    size_t n = strlen(token), length = 0, count = 0, total = 0, wrong = 0;
    uint8_t *text = malloc(j->nodes[list].end - j->nodes[list].start + n * j->nodes[list].count);
    int32_t *ids = NULL, between = q3_token_id(t, token, n);
    uint32_t node = list + 1;
    q3_error error = {""};
    if (text == NULL) exit(2);
    for (size_t i = 0; i < j->nodes[list].count; i++, node = j->nodes[node].next) {
        length += q3_json_string(j, node + 1, text + length);
        memcpy(text + length, token, n);
        length += n;
    }
    CHECKF(q3_tokenizer_encode(t, text, length, &ids, &count, &error) == Q3_OK, "%s", error.text);
    node = list + 1;
    for (size_t i = 0; i < j->nodes[list].count; i++, node = j->nodes[node].next) {
        uint32_t want = j->nodes[node + 1].next;
        size_t m = j->nodes[want].count;
        int32_t *single = read_ids(j, want);
        wrong += total + m + 1 > count || memcmp(ids + total, single, m * sizeof *ids) != 0 ||
                 ids[total + m] != between;
        total += m + 1;
        free(single);
    }
    CHECKF(wrong == 0 && total == count, "%lu texts differ, got %lu ids, want %lu",
           (unsigned long)wrong, (unsigned long)count, (unsigned long)total);
    CHECK(length > 4096 && between >= 0);
    free(text);
    free(ids);
}

static void check_decode(const q3_tokenizer *t, const q3_json *j, uint32_t node, size_t index)
{
    uint32_t hex = j->nodes[node + 1].next;
    int32_t *ids = read_ids(j, node + 1);
    uint8_t *bytes = NULL;
    size_t length = 0;
    char *got, *want = calloc(1, j->nodes[hex].end - j->nodes[hex].start);
    q3_error error = {""};
    CHECKF(q3_tokenizer_decode(t, ids, j->nodes[node + 1].count, &bytes, &length, &error) == Q3_OK,
           "case %lu: %s", (unsigned long)index, error.text);
    got = calloc(1, 2 * length + 1);
    if (got == NULL || want == NULL) exit(2);
    for (size_t i = 0; i < length; i++) sprintf(got + 2 * i, "%02x", bytes[i]);
    q3_json_string(j, hex, (uint8_t *)want);
    CHECKF(strcmp(got, want) == 0, "case %lu: got %s, want %s", (unsigned long)index, got, want);
    CHECK(bytes != NULL && bytes[length] == 0);
    free(ids);
    free(bytes);
    free(got);
    free(want);
}

static void check_cases(const char *tokenizer, const char *golden, const char *cases,
                        const char *token)
{
    char path[1024];
    size_t length, texts = 0;
    q3_tokenizer *t = NULL;
    q3_error error = {""};
    q3_json j;
    snprintf(path, sizeof path, "%s/tokenizer/%s", golden, cases);
    uint8_t *text = read_file(path, &length);
    CHECKF(q3_tokenizer_open(&t, tokenizer, &error) == Q3_OK, "%s", error.text);
    CHECKF(q3_json_parse(&j, cases, text, length, &error) == Q3_OK, "%s", error.text);
    if (t == NULL) exit(1);
    for (int decode = 0; decode < 2; decode++) {
        uint32_t list = q3_json_find(&j, 0, decode ? "decode" : "encode"), node = list + 1;
        for (size_t i = 0; i < j.nodes[list].count; i++, node = j.nodes[node].next)
            (decode ? check_decode : check_encode)(t, &j, node, i);
        texts += j.nodes[list].count;
    }
    check_joined(t, &j, q3_json_find(&j, 0, "encode"), token);
    CHECKF(texts > 500, "%s: %lu cases", cases, (unsigned long)texts);
    printf("%s: %lu cases\n", cases, (unsigned long)texts);
    q3_json_free(&j);
    q3_tokenizer_free(t);
    free(text);
}

/* ==== A small file and what is made of it ===================================================== */

#define LEVEL "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"trim_offsets\":false," \
              "\"use_regex\":false}"

static const char valid[] =
    "{\"version\":\"1.0\",\"truncation\":null,\"padding\":null,\"added_tokens\":[{\"id\":6,"
    "\"content\":\"<x>\",\"single_word\":false,\"lstrip\":false,\"rstrip\":false,"
    "\"normalized\":false,\"special\":true}],\"normalizer\":{\"type\":\"NFC\"},"
    "\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\","
    "\"pattern\":{\"Regex\":\"(?i:'s|'t|'re|'ve|'m|'ll|'d)|"
    "[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}| ?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|"
    "\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+\"},"
    "\"behavior\":\"Isolated\",\"invert\":false}," LEVEL
    "]},\"post_processor\":" LEVEL ",\"decoder\":" LEVEL ",\"model\":{\"type\":\"BPE\",\"dropout\":"
    "null,\"unk_token\":null,\"continuing_subword_prefix\":\"\",\"end_of_word_suffix\":\"\","
    "\"fuse_unk\":false,\"byte_fallback\":false,\"ignore_merges\":false,\"vocab\":{\"a\":0,\"b\":1,"
    "\"ab\":2,\"c\":3,\"abc\":4,\"bc\":5},\"merges\":[[\"b\",\"c\"],[\"a\",\"bc\"]]}}";

/* The small file with one `from` replaced: the first not before the quote of key `behind`. */
static char *mutated(const char *behind, const char *from, const char *to)
{
    const char *at = strstr(valid, behind);
    at = at != NULL ? strstr(at > valid ? at - 1 : at, from) : NULL;
    char *text = malloc(sizeof valid + strlen(to));
    if (at == NULL || text == NULL) {
        fprintf(stderr, "no %s behind %s\n", from, behind);
        exit(2);
    }
    memcpy(text, valid, (size_t)(at - valid));
    strcpy(text + (at - valid), to);
    strcat(text, at + strlen(from));
    return text;
}

static const struct { const char *behind, *from, *to, *message; } malformed[] = {
    {"version", "\"1.0\"", "\"2.0\"", "version: found \"2.0\", expected \"1.0\""},
    {"version", "\"1.0\"", "1.0", "version: found 1.0, expected \"1.0\""},
    {"", "{\"version\"", "{\"Version\"",
     "top level: found \"Version\", expected only the keys version truncation padding "
     "added_tokens normalizer pre_tokenizer post_processor decoder model"},
    {"version", "\"padding\":null,", "\"extra\":1,",
     "top level: found \"extra\", expected only the keys version truncation padding "
     "added_tokens normalizer pre_tokenizer post_processor decoder model"},
    {"truncation", "null", "{\"max_length\":5}", "truncation: found an object, expected null"},
    {"padding", "null", "{\"strategy\":\"BatchLongest\"}",
     "padding: found an object, expected null"},
    {"padding", "null", "false", "padding: found false, expected null"},
    {"added", "\"added_tokens\":[", "\"added_tokens\":[1,",
     "added_tokens[0]: found 1, expected an object"},
    {"added", "\"added_tokens\":[", "\"added_tokens\":{\"a\":[", "byte"},
    {"added", "\"id\":6,", "",
     "added_tokens[0].id: found nothing, expected an id from 0 to 2147483647"},
    {"added", "\"id\":6", "\"id\":7",
     "added_tokens[0].id: found 7, expected the next id after the vocabulary's, not in use"},
    {"added", "\"id\":6", "\"id\":5",
     "added_tokens[0].id: found 5, expected the next id after the vocabulary's, not in use"},
    {"added", "\"id\":6", "\"id\":-1",
     "added_tokens[0].id: found -1, expected an id from 0 to 2147483647"},
    {"added", "\"id\":6", "\"id\":6.0",
     "added_tokens[0].id: found 6.0, expected an id from 0 to 2147483647"},
    {"added", "\"id\":6", "\"id\":\"6\"",
     "added_tokens[0].id: found \"6\", expected an id from 0 to 2147483647"},
    {"added", "\"id\":6", "\"id\":2147483648",
     "added_tokens[0].id: found 2147483648, expected an id from 0 to 2147483647"},
    {"added", "\"<x>\"", "\"abc\"",
     "added_tokens[0].id: found 6, expected the id that the vocabulary gives this content"},
    {"added", "\"<x>\"", "5", "added_tokens[0].content: found 5, expected a string"},
    {"added", "\"content\":\"<x>\",", "",
     "added_tokens[0].content: found nothing, expected a string"},
    {"added", "\"single_word\":false", "\"single_word\":true",
     "added_tokens[0].single_word: found true, expected false"},
    {"added", "\"lstrip\":false", "\"lstrip\":true",
     "added_tokens[0].lstrip: found true, expected false"},
    {"added", "\"rstrip\":false", "\"rstrip\":true",
     "added_tokens[0].rstrip: found true, expected false"},
    {"added", "\"normalized\":false", "\"normalized\":true",
     "added_tokens[0].normalized: found true, expected false"},
    {"added", "\"lstrip\":false,", "", "added_tokens[0].lstrip: found nothing, expected false"},
    {"added", "\"special\":true", "\"special\":1",
     "added_tokens[0].special: found 1, expected true or false"},
    {"added", ",\"special\":true", "",
     "added_tokens[0].special: found nothing, expected true or false"},
    {"added", "{\"id\":6",
     "{\"id\":6,\"content\":\"<x>\",\"single_word\":false,\"lstrip\":false,\"rstrip\":"
     "false,\"normalized\":false,\"special\":true},{\"id\":7",
     "added_tokens: found \"<x>\", expected each content once"},
    {"normalizer", "\"NFC\"", "\"NFKC\"", "normalizer.type: found \"NFKC\", expected \"NFC\""},
    {"normalizer", "\"NFC\"", "\"nfc\"", "normalizer.type: found \"nfc\", expected \"NFC\""},
    {"normalizer", "{\"type\":\"NFC\"}", "{}",
     "normalizer.type: found nothing, expected \"NFC\""},
    {"normalizer", "{\"type\":\"NFC\"}", "\"NFC\"",
     "normalizer: found \"NFC\", expected an object"},
    {"normalizer", "{\"type\":\"NFC\"}", "{\"type\":\"NFC\",\"form\":1}",
     "normalizer: found \"form\", expected only the keys type"},
    {"pre_tokenizer", "\"Sequence\"", "\"Whitespace\"",
     "pre_tokenizer.type: found \"Whitespace\", expected \"Sequence\""},
    {"pre_tokenizer", "\"pre_tokenizer\":{", "\"pre_tokenizer\":null,\"decoder\":{", "byte"},
    {"pre_tokenizer", "\"Split\"", "\"Punctuation\"",
     "pre_tokenizer.pretokenizers[0].type: found \"Punctuation\", expected \"Split\""},
    {"pre_tokenizer", "{\"Regex\":", "{\"String\":",
     "pre_tokenizer.pretokenizers[0].pattern: found an object, expected {\"Regex\": the "
     "Qwen pattern}"},
    {"pre_tokenizer", "\\\\p{N}", "\\\\p{N}{1,3}", "Qwen"},
    {"pre_tokenizer", "\"Isolated\"", "\"Removed\"",
     "pre_tokenizer.pretokenizers[0].behavior: found \"Removed\", expected \"Isolated\""},
    {"pre_tokenizer", "\"invert\":false", "\"invert\":true",
     "pre_tokenizer.pretokenizers[0].invert: found true, expected false"},
    {"pre_tokenizer", "\"add_prefix_space\":false", "\"add_prefix_space\":true",
     "pre_tokenizer.pretokenizers[1].add_prefix_space: found true, expected false"},
    {"pre_tokenizer", "\"use_regex\":false", "\"use_regex\":true",
     "pre_tokenizer.pretokenizers[1].use_regex: found true, expected false"},
    {"pre_tokenizer", ",\"use_regex\":false", "",
     "pre_tokenizer.pretokenizers[1].use_regex: found nothing, expected false"},
    {"pre_tokenizer", "\"pretokenizers\":[", "\"pretokenizers\":[{\"type\":\"Digits\"},",
     "pre_tokenizer.pretokenizers: found an array, expected an array of Split and ByteLevel"},
    {"post_processor", "\"ByteLevel\"", "\"TemplateProcessing\"",
     "post_processor.type: found \"TemplateProcessing\", expected \"ByteLevel\""},
    {"decoder", "\"ByteLevel\"", "\"WordPiece\"",
     "decoder.type: found \"WordPiece\", expected \"ByteLevel\""},
    {"model", "\"BPE\"", "\"Unigram\"", "model.type: found \"Unigram\", expected \"BPE\""},
    {"model", "\"BPE\"", "\"bpe\"", "model.type: found \"bpe\", expected \"BPE\""},
    {"model", "\"dropout\":null", "\"dropout\":0.1",
     "model.dropout: found 0.1, expected null or 0"},
    {"model", "\"dropout\":null", "\"dropout\":\"0\"",
     "model.dropout: found \"0\", expected null or 0"},
    {"model", "\"unk_token\":null", "\"unk_token\":\"a\"",
     "model.unk_token: found \"a\", expected null"},
    {"model", "\"continuing_subword_prefix\":\"\"", "\"continuing_subword_prefix\":\"##\"",
     "model.continuing_subword_prefix: found \"##\", expected null or \"\""},
    {"model", "\"end_of_word_suffix\":\"\"", "\"end_of_word_suffix\":\"</w>\"",
     "model.end_of_word_suffix: found \"</w>\", expected null or \"\""},
    {"model", "\"fuse_unk\":false", "\"fuse_unk\":0",
     "model.fuse_unk: found 0, expected true or false"},
    {"model", "\"byte_fallback\":false", "\"byte_fallback\":true",
     "model.byte_fallback: found true, expected false"},
    {"model", "\"ignore_merges\":false", "\"ignore_merges\":\"false\"",
     "model.ignore_merges: found \"false\", expected true or false"},
    {"model", "\"vocab\":{", "\"vocabulary\":{",
     "model.vocab: found nothing, expected an object"},
    {"model", "\"a\":0", "\"a\":-1",
     "model.vocab[\"a\"]: found -1, expected an id from 0 to 2147483647 that no other "
     "token has"},
    {"model", "\"a\":0", "\"a\":0.0",
     "model.vocab[\"a\"]: found 0.0, expected an id from 0 to 2147483647 that no other "
     "token has"},
    {"model", "\"a\":0", "\"a\":1e2",
     "model.vocab[\"a\"]: found 1e2, expected an id from 0 to 2147483647 that no other "
     "token has"},
    {"model", "\"a\":0", "\"a\":\"0\"",
     "model.vocab[\"a\"]: found \"0\", expected an id from 0 to 2147483647 that no other "
     "token has"},
    {"model", "\"a\":0", "\"a\":null",
     "model.vocab[\"a\"]: found null, expected an id from 0 to 2147483647 that no other "
     "token has"},
    {"model", "\"a\":0", "\"a\":4294967296",
     "model.vocab[\"a\"]: found 4294967296, expected an id from 0 to 2147483647 that no "
     "other token has"},
    {"model", "\"a\":0", "\"a\":18446744073709551616",
     "model.vocab[\"a\"]: found 18446744073709551616, expected an id from 0 to 2147483647 "
     "that no other token has"},
    {"model", "\"a\":0", "\"a\":[0,1]",
     "model.vocab[\"a\"]: found an array, expected an id from 0 to 2147483647 that no "
     "other token has"},
    {"model", "\"a\":0", "\"a\":1",
     "model.vocab[\"b\"]: found 1, expected an id from 0 to 2147483647 that no other token "
     "has"},
    {"model", "\"bc\":5", "\"bc\":5,\"a\":7", "again"},
    {"model", "\"bc\":5", "\"bc\":5,\"\\u0061\":7", "again"},
    {"model", "\"merges\":[", "\"merge\":[", "model.merges: found nothing, expected an array"},
    {"model", "\"merges\":[", "\"merges\":[1,",
     "model.merges[0]: found 1, expected a pair of strings"},
    {"model", "[\"b\",\"c\"]", "[\"b\",\"c\",\"a\"]",
     "model.merges[0]: found an array, expected a pair of strings"},
    {"model", "[\"b\",\"c\"]", "[\"b\"]",
     "model.merges[0]: found an array, expected a pair of strings"},
    {"model", "[\"b\",\"c\"]", "[\"b\",1]",
     "model.merges[0]: found an array, expected a pair of strings"},
    {"model", "[\"b\",\"c\"]", "[\"b\",\"d\"]",
     "model.merges[0]: found an array, expected two tokens that are in vocab, as their "
     "join is"},
    {"model", "[\"b\",\"c\"]", "[\"d\",\"c\"]",
     "model.merges[0]: found an array, expected two tokens that are in vocab, as their "
     "join is"},
    {"model", "[\"b\",\"c\"]", "[\"c\",\"b\"]",
     "model.merges[0]: found an array, expected two tokens that are in vocab, as their "
     "join is"},
    {"model", "[\"b\",\"c\"]", "[\"b\",\"<x>\"]",
     "model.merges[0]: found an array, expected two tokens that are in vocab, as their "
     "join is"},
    {"model", "[\"b\",\"c\"]", "\"b c\"",
     "model.merges[1]: found an array, expected a string as before"},
    {"model", "[\"a\",\"bc\"]", "\"a bc\"",
     "model.merges[1]: found \"a bc\", expected a pair of strings"},
    {"model", "[\"b\",\"c\"],[\"a\",\"bc\"]", "\"b  c\"",
     "model.merges[0]: found \"b  c\", expected two tokens with one space between"},
    {"model", "[\"b\",\"c\"],[\"a\",\"bc\"]", "\"bc\"",
     "model.merges[0]: found \"bc\", expected two tokens with one space between"},
    {"model", "[\"b\",\"c\"],[\"a\",\"bc\"]", "\"a b c\"",
     "model.merges[0]: found \"a b c\", expected two tokens with one space between"},
    {"model", "[\"b\",\"c\"],[\"a\",\"bc\"]", "\" c\"",
     "model.merges[0]: found \" c\", expected two tokens that are in vocab, as their join is"},
    {"model", "\"a\":0", "\"\\ud800\":0", "byte"},
    {"model", "\"a\":0", "\"\\q\":0", "byte"},
    {"model", "\"a\":0", "\"a\":1e999", "byte"},
    {"model", "}}", "}}}", "byte"},
    {"", "{\"version\"", "[{\"version\"", "byte"},
};

/* A message of one word (byte, again, Qwen) must be in the text; any other is what follows the
 * name. */
static void test_malformed(void)
{
    for (size_t i = 0; i < sizeof malformed / sizeof *malformed; i++) {
        char *text = mutated(malformed[i].behind, malformed[i].from, malformed[i].to), want[512];
        q3_tokenizer *t = NULL;
        q3_error error = {""};
        q3_status status = q3_tokenizer_parse(&t, "t.json", text, strlen(text), &error);
        CHECKF(status == Q3_ERROR_INPUT && t == NULL, "%s -> %s", malformed[i].from,
               malformed[i].to);
        snprintf(want, sizeof want, "t.json: %s", malformed[i].message);
        if (strchr(malformed[i].message, ' ') != NULL)
            CHECK_TEXT(error.text, want);
        else
            CHECKF(strstr(error.text, malformed[i].message) != NULL, "%s", error.text);
        CHECK(strchr(error.text, '\n') == NULL && strncmp(error.text, "t.json: ", 8) == 0);
        CHECK(q3_tokenizer_parse(&t, "t.json", text, strlen(text), NULL) == Q3_ERROR_INPUT);
        q3_tokenizer_free(t);
        free(text);
    }
    printf("%lu malformed files\n", (unsigned long)(sizeof malformed / sizeof *malformed));
    for (size_t n = 0; n < sizeof valid - 1; n++) {
        q3_tokenizer *t = NULL;
        q3_error error = {""};
        CHECKF(q3_tokenizer_parse(&t, "t.json", valid, n, &error) == Q3_ERROR_INPUT,
               "the first %lu bytes", (unsigned long)n);
        q3_tokenizer_free(t);
    }
}

/* What Hugging Face takes too, and gives the same ids. */
static void test_accepted(void)
{
    static const struct { const char *behind, *from, *to; } cases[] = {
        {"version", "\"version\":\"1.0\",", ""}, {"version", "\"truncation\":null,", ""},
        {"padding", "\"padding\":null,", ""}, {"normalizer", "{\"type\":\"NFC\"}", "null"},
        {"normalizer", "\"normalizer\":{\"type\":\"NFC\"},", ""},
        {"post_processor", "\"post_processor\":" LEVEL, "\"post_processor\":null"},
        {"post_processor", "\"post_processor\":" LEVEL ",", ""},
        {"post_processor", "\"trim_offsets\":false", "\"trim_offsets\":true"},
        {"pre_tokenizer", "\"trim_offsets\":false", "\"trim_offsets\":true"},
        {"decoder", "\"add_prefix_space\":false", "\"add_prefix_space\":true"},
        {"model", "\"type\":\"BPE\",", ""}, {"model", "\"dropout\":null", "\"dropout\":0.0"},
        {"model", "\"dropout\":null,", ""}, {"model", "\"unk_token\":null,", ""},
        {"model", "\"continuing_subword_prefix\":\"\"", "\"continuing_subword_prefix\":null"},
        {"model", "\"end_of_word_suffix\":\"\",", ""}, {"model", "\"fuse_unk\":false,", ""},
        {"model", "\"byte_fallback\":false,", ""}, {"model", "\"ignore_merges\":false,", ""},
        {"model", "\"ignore_merges\":false", "\"ignore_merges\":true"},
        {"model", "\"type\"", "\"unknown\":[{\"x\":1}],\"type\""},
        {"added", "\"id\":6", "\"unknown\":null,\"id\":6"},
        {"added", "\"special\":true", "\"special\":false"},
        {"model", "[\"b\",\"c\"],[\"a\",\"bc\"]", "\"b c\",\"a bc\""},
        {"model", "[\"b\",\"c\"],[\"a\",\"bc\"]", "\"#version: 0.2\",\"b c\",\"a bc\""},
        {"model", "{\"a\":0,\"b\":1,", "{\"b\":1,\"a\":0,"},
        {"model", "\"a\":0", "\"\\u0061\":0"}, {"model", "[\"b\",", "[\"\\u0062\","},
        {"model", "[\"b\",\"c\"]", "[\"b\",\"c\"],[\"b\",\"c\"]"},
        {"model", "\"vocab\"", "\n\t\r \"vocab\""}, {"", "{", "{"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *text = mutated(cases[i].behind, cases[i].from, cases[i].to);
        q3_tokenizer *t = NULL;
        q3_error error = {""};
        int32_t *ids = NULL;
        size_t count = 0;
        CHECKF(q3_tokenizer_parse(&t, "t.json", text, strlen(text), &error) == Q3_OK, "%s",
               error.text);
        free(text);
        if (t == NULL) continue;
        CHECK(q3_tokenizer_encode(t, "abc<x>bab", 9, &ids, &count, &error) == Q3_OK);
        static const int32_t want[5] = {4, 6, 1, 0, 1};
        CHECKF(count == 5 && memcmp(ids, want, sizeof want) == 0, "%s -> %s", cases[i].from,
               cases[i].to);
        free(ids);
        q3_tokenizer_free(t);
    }
}

/* With ignore_merges the vocabulary is asked for a whole piece, and only the vocabulary: KELVIN
 * SIGN becomes K, which is here an added token alone. Hugging Face gives no id either. */
static void test_whole_piece(void)
{
    char *text = mutated("added", "<x>", "K");
    char *flag = strstr(text, "\"ignore_merges\":false");
    q3_tokenizer *t = NULL;
    q3_error error = {""};
    int32_t *ids = NULL;
    size_t count = 77;
    memcpy(flag, "\"ignore_merges\": true", 21);
    CHECKF(q3_tokenizer_parse(&t, "t.json", text, strlen(text), &error) == Q3_OK, "%s", error.text);
    free(text);
    if (t == NULL) return;
    CHECK(q3_tokenizer_encode(t, "\xE2\x84\xAA", 3, &ids, &count, &error) == Q3_OK && count == 0);
    free(ids);
    CHECK(q3_tokenizer_encode(t, "K", 1, &ids, &count, &error) == Q3_OK && count == 1);
    CHECK(ids[0] == 6);
    free(ids);
    /* "ab" is in the vocabulary, but no merge makes it. */
    CHECK(q3_tokenizer_encode(t, "ab", 2, &ids, &count, &error) == Q3_OK && count == 1);
    CHECK(ids[0] == 2);
    free(ids);
    q3_tokenizer_free(t);
}

/* No merges at all, as the last thing in the file: every letter is a token. */
static void test_no_merges(void)
{
    char *text = mutated("model", "[\"b\",\"c\"],[\"a\",\"bc\"]", "");
    q3_tokenizer *t = NULL;
    q3_error error = {""};
    int32_t *ids = NULL;
    size_t count = 0;
    static const int32_t want[4] = {0, 1, 3, 6};
    CHECKF(q3_tokenizer_parse(&t, "t.json", text, strlen(text), &error) == Q3_OK, "%s", error.text);
    free(text);
    if (t == NULL) return;
    CHECK(q3_tokenizer_encode(t, "abc<x>", 6, &ids, &count, &error) == Q3_OK);
    CHECK(count == 4 && memcmp(ids, want, sizeof want) == 0);
    free(ids);
    q3_tokenizer_free(t);
}

/* ==== Texts and ids =========================================================================== */

static q3_tokenizer *open_tiny(const char *golden)
{
    char path[1024];
    q3_tokenizer *t = NULL;
    q3_error error = {""};
    snprintf(path, sizeof path, "%s/tiny/tokenizer.json", golden);
    CHECKF(q3_tokenizer_open(&t, path, &error) == Q3_OK, "%s", error.text);
    if (t == NULL) exit(1);
    return t;
}

static void test_errors(const q3_tokenizer *t, const char *golden)
{
    static const struct { const char *text; size_t length; const char *message; } cases[] = {
        {"\xFF", 1, "text: byte 0: found 0xFF, expected UTF-8"},
        {"abcdefgh\x80", 9, "text: byte 8: found 0x80, expected UTF-8"},
        {"abcdefghijkl\xC0\x80", 14, "text: byte 12: found 0xC0, expected UTF-8"},
        {"a\0\xE4\xB8", 4, "text: byte 2: found 0xE4, expected UTF-8"},
        {"\xED\xA0\x80", 3, "text: byte 0: found 0xED, expected UTF-8"},
        {"\xF4\x90\x80\x80", 4, "text: byte 0: found 0xF4, expected UTF-8"},
        {"<think>\xE0\x9F\xBF", 10, "text: byte 7: found 0xE0, expected UTF-8"},
    };
    q3_error error = {""};
    int32_t *ids = NULL, bad[3] = {0, -1, 0};
    uint8_t *bytes = NULL;
    size_t count = 77, length = 77;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        CHECK(q3_tokenizer_encode(t, cases[i].text, cases[i].length, &ids, &count, &error) ==
              Q3_ERROR_INPUT);
        CHECK_TEXT(error.text, cases[i].message);
        CHECK(ids == NULL && count == 77);
    }
    CHECK(q3_tokenizer_decode(t, bad, 3, &bytes, &length, &error) == Q3_ERROR_INPUT);
    CHECK_TEXT(error.text, "ids[1]: found -1, expected the id of a token");
    bad[1] = INT32_MAX;
    CHECK(q3_tokenizer_decode(t, bad, 3, &bytes, &length, &error) == Q3_ERROR_INPUT);
    CHECK_TEXT(error.text, "ids[1]: found 2147483647, expected the id of a token");
    CHECK(bytes == NULL && length == 77);
    CHECK(q3_tokenizer_decode(t, NULL, 0, &bytes, &length, &error) == Q3_OK && length == 0);
    free(bytes);
    CHECK(q3_tokenizer_encode(t, NULL, 0, &ids, &count, &error) == Q3_OK && count == 0);
    CHECK(ids != NULL);
    free(ids);
    int32_t end = q3_token_id(t, "<|im_end|>", 10);
    CHECK(end >= 0 && q3_token_id(t, "<|im_end|", 9) == -1 && q3_token_id(t, "", 0) == -1);
    CHECK(q3_token_id(t, " the", 4) >= 0 && q3_token_id(t, " ", 1) >= 0);
    CHECK(q3_tokenizer_decode(t, &end, 1, &bytes, &length, &error) == Q3_OK);
    CHECK_TEXT((const char *)bytes, "<|im_end|>");
    free(bytes);
    q3_tokenizer *none = NULL;
    CHECK(q3_tokenizer_open(&none, golden, &error) != Q3_OK && none == NULL);
    CHECK(strstr(error.text, golden) != NULL);
    CHECK(q3_tokenizer_open(&none, "no/such/file", &error) == Q3_ERROR_FILE && none == NULL);
    CHECK(strcmp(error.text, "cannot read no/such/file: no such file") == 0);
    CHECK(q3_tokenizer_parse(&none, "x", NULL, 0, &error) == Q3_ERROR_INPUT);
    CHECK_TEXT(error.text, "x: byte 0: found the end of the text, expected a value");
}

/* Encoding and decoding gives the text back (ASCII is its own NFC), also where a piece is long:
 * anything quadratic would take minutes here. */
static void test_long(const q3_tokenizer *t)
{
    enum { N = 1 << 20 };
    static const char *const alphabets[] = {
        "a", " ", "\n", "ab", "abcdefghijklmnopqrstuvwxyz", "!", "7", " a", " \n", "<|im_end|>",
        "'s ", "abcdefghijklmnopqrstuvwxyz ABC012.,;:\n\t<>|'",
    };
    uint8_t *text = malloc(N), *back;
    uint64_t seed = 1;
    q3_error error = {""};
    if (text == NULL) exit(2);
    for (size_t a = 0; a < sizeof alphabets / sizeof *alphabets + 2; a++) {
        static const uint8_t marks[2][4] = {{0xCC, 0x81, 0xCC, 0xA3}, {0xCC, 0xA3, 0xCC, 0x81}};
        size_t plain = sizeof alphabets / sizeof *alphabets;
        size_t n = a < plain ? strlen(alphabets[a]) : 0;
        for (size_t i = 0; i < N; i++) {
            seed = seed * UINT64_C(6364136223846793005) + 1442695040888963407u;
            text[i] = n > 0 ? (uint8_t)alphabets[a][(seed >> 33) % n] : marks[a - plain][i % 4];
        }
        int32_t *ids = NULL;
        size_t count = 0, length = 0;
        back = NULL;
        CHECK(q3_tokenizer_encode(t, text, N, &ids, &count, &error) == Q3_OK);
        CHECK(q3_tokenizer_decode(t, ids, count, &back, &length, &error) == Q3_OK && length == N);
        /* U+0301 has class 230 and U+0323 class 220: half a million of each, all below first. */
        for (size_t i = 0; n == 0 && i < N; i++)
            text[i] = (uint8_t)(i % 2 == 0 ? 0xCC : i < N / 2 ? 0xA3 : 0x81);
        CHECKF(back != NULL && memcmp(text, back, N) == 0, "alphabet %lu", (unsigned long)a);
        free(ids);
        free(back);
    }
    free(text);
}

/* ==== Added tokens and cost =================================================================== */

/* One entry of added_tokens; content needs no escapes. */
static void put_added(q3_text *out, uint64_t id, const char *content, size_t length)
{
    q3_text_count(out, "{\"id\":", id);
    q3_text_add(out, ",\"content\":\"");
    q3_text_bytes(out, content, length);
    q3_text_add(out, "\",\"single_word\":false,\"lstrip\":false,\"rstrip\":false,"
                     "\"normalized\":false,\"special\":true}");
}

/* The small file with these added tokens alone. */
static q3_tokenizer *with_added(const char *entries)
{
    static const char key[] = "\"added_tokens\":[";
    const char *from = strstr(valid, key) + sizeof key - 1, *to = strstr(valid, "],\"normalizer\"");
    q3_text text = {0};
    q3_tokenizer *t = NULL;
    q3_error error = {""};
    q3_text_bytes(&text, valid, (size_t)(from - valid));
    q3_text_add(&text, entries);
    q3_text_add(&text, to);
    if (text.failed) exit(2);
    CHECKF(q3_tokenizer_parse(&t, "t.json", text.data, text.size, &error) == Q3_OK, "%s",
           error.text);
    free(text.data);
    if (t == NULL) exit(1);
    return t;
}

static uint32_t next_random(uint64_t *seed)
{
    *seed = *seed * UINT64_C(6364136223846793005) + 1442695040888963407u;
    return (uint32_t)(*seed >> 33);
}

/* Added tokens of two letters that begin, end and hold each other, against the rule itself: at each
 * place the longest that fits, then on behind it. Between them each letter is a token. */
static void test_overlaps(void)
{
    uint64_t seed = 1;
    for (int round = 0; round < 200; round++) {
        char contents[12][8], text[3000];
        size_t count = 1 + next_random(&seed) % 12, kept = 0, n = round % 2 ? 200 : sizeof text;
        int32_t id[12], next = 6, *ids = NULL;
        q3_text entries = {0};
        q3_error error = {""};
        for (size_t i = 0; i < count; i++) {
            size_t length = 1 + next_random(&seed) % 7, same = 0;
            for (size_t k = 0; k < length; k++) contents[kept][k] = "ab"[next_random(&seed) % 2];
            contents[kept][length] = 0;
            while (strcmp(contents[same], contents[kept]) != 0) same++;
            if (same < kept) continue;
            id[kept] = length == 1 ? contents[kept][0] - 'a'
                                   : strcmp(contents[kept], "ab") == 0 ? 2 : next++;
            q3_text_add(&entries, kept > 0 ? "," : "");
            put_added(&entries, (uint64_t)id[kept], contents[kept], length);
            kept++;
        }
        q3_tokenizer *t = with_added(entries.data);
        for (size_t i = 0; i < n; i++) text[i] = "ab"[next_random(&seed) % 2];
        CHECK(q3_tokenizer_encode(t, text, n, &ids, &count, &error) == Q3_OK);
        size_t at = 0, k = 0;
        for (; at < n && k < count; k++) {
            size_t longest = 0;
            int32_t want = text[at] - 'a';
            for (size_t i = 0; i < kept; i++) {
                size_t length = strlen(contents[i]);
                if (length <= longest || length > n - at ||
                    memcmp(contents[i], text + at, length) != 0)
                    continue;
                longest = length;
                want = id[i];
            }
            if (ids[k] != want) break;
            at += longest > 0 ? longest : 1;
        }
        CHECKF(at == n && k == count, "round %d: differs at byte %lu", round, (unsigned long)at);
        free(ids);
        free(entries.data);
        q3_tokenizer_free(t);
    }
}

/* Pieces that come again, in a text long enough to remember them, with others between that take
 * their places: "ab" is in the vocabulary, but no merge makes it; "abc" is made; runs of 1 to 40
 * letters and words of 7 have as many ids. */
static void test_again(void)
{
    q3_tokenizer *t = with_added("");
    q3_error error = {""};
    q3_text text = {0};
    int32_t *ids = NULL;
    size_t count = 0, at = 0, wrong = 0;
    for (int round = 0; round < 4; round++) {
        q3_text_add(&text, "ab.abc.");
        for (size_t n = 1; n <= 40; n++) {
            for (size_t i = 0; i < n; i++) q3_text_add(&text, n % 2 ? "a" : "b");
            q3_text_add(&text, ".");
        }
        for (int word = 0; word < 128; word++) {
            for (int bit = 0; bit < 7; bit++) q3_text_add(&text, word >> bit & 1 ? "a" : "b");
            q3_text_add(&text, ".");
        }
    }
    CHECK(!text.failed && text.size > 2048);
    CHECK(q3_tokenizer_encode(t, text.data, text.size, &ids, &count, &error) == Q3_OK);
    CHECK(count == 4 * (3 + 820 + 896));
    for (int round = 0; round < 4 && count == 4 * (3 + 820 + 896); round++) {
        static const int32_t first[3] = {0, 1, 4};
        wrong += memcmp(ids + at, first, sizeof first) != 0;
        at += 3;
        for (size_t n = 1; n <= 40; n++)
            for (size_t i = 0; i < n; i++) wrong += ids[at++] != (n % 2 ? 0 : 1);
        for (int word = 0; word < 128; word++)
            for (int bit = 0; bit < 7; bit++) wrong += ids[at++] != (word >> bit & 1 ? 0 : 1);
    }
    CHECK(wrong == 0);
    free(ids);
    free(text.data);
    q3_tokenizer_free(t);
}

/* Seconds, the least of three, that a text of n bytes takes, which repeats `unit`. */
static double encode_time(const q3_tokenizer *t, const char *unit, size_t n, size_t *count)
{
    size_t length = strlen(unit);
    char *text = malloc(n + length);
    double least = 1e9;
    if (text == NULL) exit(2);
    for (size_t i = 0; i < n; i += length) memcpy(text + i, unit, length);
    for (int i = 0; i < 3 && (i == 0 || least < 0.5); i++) {
        int32_t *ids = NULL;
        q3_error error = {""};
        clock_t start = clock();
        CHECK(q3_tokenizer_encode(t, text, n / length * length, &ids, count, &error) == Q3_OK);
        double took = (double)(clock() - start) / CLOCKS_PER_SEC;
        least = took < least ? took : least;
        free(ids);
    }
    free(text);
    return least;
}

/* Four times the text takes four times as long; with a square sixteen times. The texts are long
 * enough that a square is seconds, and the bound lies between. */
static void check_growth(const q3_tokenizer *small, const q3_tokenizer *large, const char *unit,
                         size_t n, const char *what)
{
    size_t count = 0;
    double one = encode_time(small, unit, n, &count);
    double four = encode_time(large, unit, 4 * n, &count);
    CHECKF(four <= 9 * one + 0.05, "%s: %.3f s, and %.3f s for four times the text", what, one,
           four);
}

/* An added token of length - 1 letters and a "b". */
static q3_tokenizer *with_long(size_t length)
{
    char *content = malloc(length);
    q3_text entry = {0};
    if (content == NULL) exit(2);
    memset(content, 'a', length);
    content[length - 1] = 'b';
    put_added(&entry, 6, content, length);
    q3_tokenizer *t = with_added(entry.data);
    free(entry.data);
    free(content);
    return t;
}

/* Added tokens "ab", "aab", ... of up to count letters. */
static q3_tokenizer *with_many(size_t count)
{
    char *content = malloc(count);
    q3_text entries = {0};
    if (content == NULL) exit(2);
    memset(content, 'a', count);
    content[count - 1] = 'b';
    for (size_t n = 2; n <= count; n++) {
        put_added(&entries, n == 2 ? 2 : 3 + n, content + count - n, n);
        if (n < count) q3_text_add(&entries, ",");
    }
    q3_tokenizer *t = with_added(entries.data);
    free(entries.data);
    free(content);
    return t;
}

static void test_growth(const q3_tokenizer *tiny)
{
    static const char *const units[] = {"a", " ", "\n", "!", "7", "the", "\xCC\x81",
                                        "\xCC\x81\xCC\xA3", "\xE4\xB8\x80", "<", "<|im_end|>"};
    for (size_t i = 0; i < sizeof units / sizeof *units; i++)
        check_growth(tiny, tiny, units[i], 1 << 16, units[i]);
    q3_tokenizer *small = with_long(8 << 10), *large = with_long(32 << 10);
    check_growth(small, large, "a", 16 << 10, "a long added token that never ends");
    q3_tokenizer_free(small);
    q3_tokenizer_free(large);
    small = with_many(200);
    large = with_many(800);
    check_growth(small, large, "a", 200 << 10, "many added tokens");
    q3_tokenizer_free(small);
    q3_tokenizer_free(large);
}

int main(int argc, char **argv)
{
    char path[1024];
    const char *official = getenv("QWEN3_TOKENIZER_JSON");
    if (argc < 2) {
        fprintf(stderr, "usage: test_tokenizer GOLDEN [official]\n");
        return 2;
    }
    if (argc > 2) {
        if (official == NULL || official[0] == 0) {
            printf("QWEN3_TOKENIZER_JSON is not set: the official file's cases did not run\n");
            return 77;
        }
        check_cases(official, argv[1], "qwen3.cases.json", "<|im_end|>");
        return t_done("tokenizer, official file");
    }
    snprintf(path, sizeof path, "%s/tokenizer/small.json", argv[1]);
    check_cases(path, argv[1], "small.cases.json", "<end>");
    snprintf(path, sizeof path, "%s/tiny/tokenizer.json", argv[1]);
    check_cases(path, argv[1], "tiny.cases.json", "<|im_end|>");
    test_malformed();
    test_accepted();
    test_whole_piece();
    test_no_merges();
    q3_tokenizer *t = open_tiny(argv[1]);
    test_errors(t, argv[1]);
    test_long(t);
    test_overlaps();
    test_again();
    test_growth(t);
    q3_tokenizer_free(t);
    return t_done("tokenizer");
}
