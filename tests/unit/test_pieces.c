/* SPDX-License-Identifier: MIT */
/* tokenizer.c and nfc.c where golden files do not reach: letters that could be taken for a
 * contraction, bytes without a token, tokens made to collide in its hash tables, ids with gaps, a
 * heap as full as it gets. Files are made here; the ids follow from them by the definition of
 * byte-level BPE. (Hugging Face tokenizers 0.23.3 gives the same for all but the collisions, where
 * it was not asked.) */
#include "host/json.h"
#include "host/text.h"
#include "host/tokenizer.h"
#include "t.h"

/* A file of this vocabulary and these merges, whole pieces being asked for or not. */
static q3_tokenizer *make(const char *vocab, const char *merges, const char *added, bool whole)
{
    static const char level[] = "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,"
                                "\"trim_offsets\":false,\"use_regex\":false}";
    q3_text t = {0};
    q3_tokenizer *tokenizer = NULL;
    q3_error error = {""};
    q3_text_add(&t, "{\"added_tokens\":[");
    q3_text_add(&t, added);
    q3_text_add(&t, "],\"normalizer\":null,\"pre_tokenizer\":{\"type\":\"Sequence\","
                    "\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"Regex\":");
    q3_text_string(&t, q3_qwen_pattern, strlen(q3_qwen_pattern));
    q3_text_add(&t, "},\"behavior\":\"Isolated\",\"invert\":false},");
    q3_text_add(&t, level);
    q3_text_add(&t, "]},\"decoder\":");
    q3_text_add(&t, level);
    q3_text_add(&t, whole ? ",\"model\":{\"ignore_merges\":true,\"vocab\":{"
                          : ",\"model\":{\"vocab\":{");
    q3_text_add(&t, vocab);
    q3_text_add(&t, "},\"merges\":[");
    q3_text_add(&t, merges);
    q3_text_add(&t, "]}}");
    if (t.failed) exit(2);
    CHECKF(q3_tokenizer_parse(&tokenizer, "t.json", t.data, t.size, &error) == Q3_OK, "%s",
           error.text);
    free(t.data);
    if (tokenizer == NULL) exit(1);
    return tokenizer;
}

static void check_ids(const q3_tokenizer *t, const char *text, size_t length, const int32_t *want,
                      size_t n)
{
    int32_t *ids = NULL;
    size_t count = 0;
    q3_error error = {""};
    CHECKF(q3_tokenizer_encode(t, text, length, &ids, &count, &error) == Q3_OK, "%s", error.text);
    CHECKF(count == n && memcmp(ids, want, n * sizeof *ids) == 0, "%.40s: %lu ids, first %ld", text,
           (unsigned long)count, count > 0 ? (long)ids[0] : -1L);
    free(ids);
}

/* A member "TOKEN":ID, behind the others. */
static void put_token(q3_text *vocab, const char *token, size_t length, size_t id)
{
    q3_text_add(vocab, vocab->size > 0 ? ",\"" : "\"");
    q3_text_bytes(vocab, token, length);
    q3_text_count(vocab, "\":", id);
}

static void put_merge(q3_text *merges, const char *left, size_t n, const char *right, size_t m)
{
    q3_text_add(merges, merges->size > 0 ? ",[\"" : "[\"");
    q3_text_bytes(merges, left, n);
    q3_text_add(merges, "\",\"");
    q3_text_bytes(merges, right, m);
    q3_text_add(merges, "\"]");
}

/* ==== The split =============================================================================== */

/* U+0140 to U+017F behind an apostrophe, then "a": U+017F is a case of s and ends the piece, so
 * that its last byte is not merged with "a"; the others are letters of one piece with it.
 * Ids: 0 is ', 1 is byte 0xC5, 2 is a, 3 + k is byte 0x80 + k, 67 + k that byte with a. */
static void test_contraction(void)
{
    q3_text vocab = {0}, merges = {0};
    put_token(&vocab, "'", 1, 0);
    put_token(&vocab, "\xC3\x85", 2, 1);
    put_token(&vocab, "a", 1, 2);
    for (uint32_t k = 0; k < 64; k++) {
        uint32_t byte = 0x80 + k;
        uint32_t letter = byte < 0xA1 ? 0x122 + k : byte == 0xAD ? 0x143 : byte;
        char text[8];
        size_t n = q3_utf8_encode(letter, (uint8_t *)text);
        put_token(&vocab, text, n, 3 + k);
        text[n] = 'a';
        put_token(&vocab, text, n + 1, 67 + k);
        put_merge(&merges, text, n, "a", 1);
    }
    if (vocab.failed || merges.failed) exit(2);
    q3_tokenizer *t = make(vocab.data, merges.data, "", false);
    for (uint32_t k = 0; k < 64; k++) {
        const char text[4] = {'\'', (char)0xC5, (char)(0x80 + k), 'a'};
        const int32_t together[3] = {0, 1, (int32_t)(67 + k)};
        const int32_t apart[4] = {0, 1, (int32_t)(3 + k), 2};
        check_ids(t, text, 4, k < 63 ? together : apart, k < 63 ? 3 : 4);
    }
    q3_tokenizer_free(t);
    free(vocab.data);
    free(merges.data);
}

/* Bytes without a token are dropped, from pieces of any length. */
static void test_dropped(void)
{
    static const char text[] = "zazzazzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzzz";
    static const int32_t two[] = {7, 7};
    q3_tokenizer *t = make("\"a\":7", "", "", false);
    check_ids(t, text, 5, two, 2);
    check_ids(t, text, sizeof text - 1, two, 2);
    check_ids(t, text + 5, 3, two, 0);
    check_ids(t, text + 5, sizeof text - 6, two, 0);
    q3_tokenizer_free(t);
}

/* Merges of what is no letter of a byte: such files are read, and no text has a use for them. */
static void test_no_letters(void)
{
    static const int32_t one[] = {0};
    q3_tokenizer *t = make("\"a\":0,\"\\u6F22\":1,\"\\u6F22a\":2,\"a\\u6F22\":3",
                           "[\"\\u6F22\",\"a\"],[\"a\",\"\\u6F22\"]", "", false);
    check_ids(t, "a", 1, one, 1);
    check_ids(t, "\xE6\xBC\xA2" "a", 4, one, 1);
    CHECK(q3_token_id(t, "\xE6\xBC\xA2" "a", 4) == 2);
    q3_tokenizer_free(t);
}

/* NFC: a syllable takes a final consonant in, and no other mark. */
static void test_syllable(void)
{
    static const char *const texts[][2] = {{"\xEA\xB0\x80\xE1\x86\xA8", "\xEA\xB0\x81"},
                                           {"\xEA\xB0\x80\xCC\x81", "\xEA\xB0\x80\xCC\x81"}};
    uint16_t *properties = q3_properties();
    q3_nfc nfc = {.properties = properties};
    for (size_t i = 0; i < 2; i++) {
        const uint8_t *p = (const uint8_t *)texts[i][0];
        size_t n = strlen(texts[i][0]);
        CHECK(q3_normalise(&nfc, &p, &n));
        CHECK(n == strlen(texts[i][1]) && memcmp(p, texts[i][1], n) == 0);
    }
    free(nfc.out.data);
    free(nfc.codes.data);
    free(nfc.scratch.data);
    free(properties);
}

/* ==== Hash tables ============================================================================= */

static uint32_t next_random(uint64_t *seed)
{
    *seed = *seed * UINT64_C(6364136223846793005) + 1442695040888963407u;
    return (uint32_t)(*seed >> 33);
}

/* So many words of seven letters, different ones, that have a slot of the first seed in common. */
static void colliding(char (*words)[8], size_t count, size_t mask, size_t slot)
{
    const q3_tokenizer first = {.slot_seed = 0};
    uint64_t seed = 7;
    for (size_t i = 0; i < count;) {
        for (size_t k = 0; k < 7; k++) words[i][k] = (char)('a' + next_random(&seed) % 26);
        words[i][7] = 0;
        if ((q3_token_hash(&first, 0, (const uint8_t *)words[i], 7) & mask) == slot) i++;
    }
}

/* A vocabulary that is one long chain of a hash table is given another seed; 2 % fewer are a chain
 * that holds. */
static void test_colliding_tokens(void)
{
    enum { MOST = 1100, MASK = 2047 };
    static char words[MOST][8];
    colliding(words, MOST, MASK, 0);
    for (size_t count = 990; count <= MOST; count += MOST - 990) {
        q3_text vocab = {0};
        for (size_t i = 0; i < count; i++) put_token(&vocab, words[i], 7, i);
        if (vocab.failed) exit(2);
        q3_tokenizer *t = make(vocab.data, "", "", true);
        CHECK(t->slot_mask == MASK && t->slot_seed == (count == MOST ? 1 : 0));
        for (size_t i = 0; i < count; i++) {
            const int32_t want = (int32_t)i;
            check_ids(t, words[i], 7, &want, 1);
        }
        CHECK(q3_token_id(t, "abcdefg", 7) == -1);
        q3_tokenizer_free(t);
        free(vocab.data);
    }
}

/* A chain that a search would not end at: it runs into another one. */
static void test_colliding_chains(void)
{
    enum { FIRST_CHAIN = 40, BOTH = 1040, MASK = 2047 };
    static char words[BOTH][8];
    q3_text vocab = {0};
    colliding(words, FIRST_CHAIN, MASK, 990);
    colliding(words + FIRST_CHAIN, BOTH - FIRST_CHAIN, MASK, 0);
    for (size_t i = 0; i < BOTH; i++) put_token(&vocab, words[i], 7, i);
    if (vocab.failed) exit(2);
    q3_tokenizer *t = make(vocab.data, "", "", true);
    CHECK(t->slot_mask == MASK && t->slot_seed == 1);
    q3_tokenizer_free(t);
    free(vocab.data);
}

/* Two words in one slot whose hashes have the same upper half; a word that one of them begins. */
static void test_equal_tags(void)
{
    static const char *const pairs[][2] = {{"fvxahqk", "fniatbk"}, {"cxvtvhg", "kmgzmly"},
                                           {"cduqlmq", "mbjgsrk"}, {"aumphqz", "wjnwrup"}};
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        static const int32_t ids[2] = {4, 9};
        char vocab[64];
        snprintf(vocab, sizeof vocab, "\"%s\":4,\"%s\":9", pairs[i][0], pairs[i][1]);
        q3_tokenizer *t = make(vocab, "", "", true);
        uint64_t first = q3_token_hash(t, 0, (const uint8_t *)pairs[i][0], 7);
        uint64_t second = q3_token_hash(t, 0, (const uint8_t *)pairs[i][1], 7);
        CHECK(first >> 32 == second >> 32 && ((first ^ second) & t->slot_mask) == 0);
        check_ids(t, pairs[i][0], 7, &ids[0], 1);
        check_ids(t, pairs[i][1], 7, &ids[1], 1);
        q3_tokenizer_free(t);
    }
}

/* Tokens of three letters, one of each of three sets; all merges that make them, and those of two
 * of them that the first seed puts into slot 0. */
enum { FIRST = 20, SECOND = 16, THIRD = 16, TRIPLES = FIRST * SECOND * THIRD, CHAIN = 1250 };

static void triple(char text[3], size_t i)
{
    static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    text[0] = letters[i / SECOND / THIRD];
    text[1] = letters[FIRST + i / THIRD % SECOND];
    text[2] = letters[FIRST + SECOND + i % THIRD];
}

static void test_colliding_pairs(void)
{
    enum { MASK = 16383 };
    const q3_tokenizer first = {.pair_seed = 0, .pair_mask = MASK};
    static uint32_t chain[CHAIN][2];
    char text[6];
    size_t id = TRIPLES, count = 0;
    q3_text vocab = {0}, merges = {0};
    for (size_t i = 0; i < TRIPLES; i++) { /* ids 0 to TRIPLES - 1, and so indices */
        triple(text, i);
        put_token(&vocab, text, 3, i);
    }
    for (size_t i = 0; i < FIRST + SECOND + THIRD; i++) {
        triple(text, i < FIRST ? i * SECOND * THIRD : i < FIRST + SECOND ? (i - FIRST) * THIRD
                                                                         : i - FIRST - SECOND);
        put_token(&vocab, text + (i >= FIRST) + (i >= FIRST + SECOND), 1, id++);
    }
    for (size_t i = 0; i < TRIPLES; i += THIRD) {
        triple(text, i);
        put_token(&vocab, text, 2, id++);
        put_merge(&merges, text, 1, text + 1, 1);
    }
    for (size_t i = 0; i < TRIPLES; i++) {
        triple(text, i);
        put_merge(&merges, text, 2, text + 2, 1);
    }
    for (uint32_t i = 0; i < TRIPLES; i++)
        for (uint32_t k = 0; k < TRIPLES && count < CHAIN; k++) {
            if (q3_pair_slot(&first, i, k) != 0) continue;
            chain[count][0] = i, chain[count++][1] = k;
            triple(text, i);
            triple(text + 3, k);
            put_token(&vocab, text, 6, id + count);
            put_merge(&merges, text, 3, text + 3, 3);
        }
    CHECK(count > 1000 && !vocab.failed && !merges.failed);
    q3_tokenizer *t = make(vocab.data, merges.data, "", false);
    CHECKF(t->pair_mask == MASK && t->pair_seed > 0, "%lu pairs, mask %lu, seed %lu",
           (unsigned long)count, (unsigned long)t->pair_mask, (unsigned long)t->pair_seed);
    for (size_t i = 0; i < count; i++) {
        const int32_t want = (int32_t)(id + i + 1);
        triple(text, chain[i][0]);
        triple(text + 3, chain[i][1]);
        check_ids(t, text, 6, &want, 1);
    }
    q3_tokenizer_free(t);
    free(vocab.data);
    free(merges.data);
}

/* ==== Ids and letters ========================================================================= */

/* The next id after a vocabulary of four is 4, whatever the largest is: it lies between the others,
 * and 2 is nobody's. A token as long as the one that a merge makes, but kept as it
 * is written, stands where that would be looked for first. */
static void test_gaps(void)
{
    static const char added[] = "{\"id\":4,\"content\":\"<x>\",\"single_word\":false,"
        "\"lstrip\":false,\"rstrip\":false,\"normalized\":false,\"special\":true}";
    static const int32_t want[] = {7, 4, 0}, unknown[] = {0, 2};
    uint8_t *bytes = NULL;
    size_t length = 0;
    q3_error error = {""};
    q3_tokenizer *t = make("\"a\":0,\" c\":1,\"b\":5,\"ab\":7", "[\"a\",\"b\"]", added, false);
    check_ids(t, "ab<x>a", 6, want, 3);
    CHECK(q3_tokenizer_decode(t, want, 3, &bytes, &length, &error) == Q3_OK);
    CHECK(length == 6 && memcmp(bytes, "ab<x>a", 6) == 0);
    free(bytes);
    CHECK(q3_tokenizer_decode(t, unknown, 2, &bytes, &length, &error) == Q3_ERROR_INPUT);
    CHECK_TEXT(error.text, "ids[1]: found 2, expected the id of a token");
    int32_t *ids = NULL;
    CHECK(q3_tokenizer_encode(t, "", UINT32_MAX, &ids, &length, &error) == Q3_ERROR_INPUT);
    CHECK_TEXT(error.text, "text: found 4 GiB or more, expected less");
    CHECK(ids == NULL);
    q3_tokenizer_free(t);
}

/* A byte without a token is left out; what stays of a piece is not the token that the piece has,
 * also where a text is long enough to remember pieces. */
static void test_no_letter(void)
{
    enum { N = 400000 }; /* 1.2 MB, more than the largest table of pieces is made for */
    q3_tokenizer *t = make("\"!\":0,\"!~\":1,\"b\":2", "", "", false);
    char *text = malloc(3 * N);
    int32_t *want = malloc(2 * N * sizeof *want);
    if (text == NULL || want == NULL) exit(2);
    for (size_t i = 0; i < N; i++) {
        memcpy(text + 3 * i, "b!~", 3);
        want[2 * i] = 2, want[2 * i + 1] = 0;
    }
    check_ids(t, text, 3 * N, want, 2 * N);
    memset(text, '~', 100);
    check_ids(t, text, 100, want, 0);
    check_ids(t, text, 20, want, 0);
    q3_tokenizer_free(t);
    free(text);
    free(want);
}

/* ==== The heap ================================================================================ */

/* xyzxyz...: every pair can be merged, xy first, then xyz; a merge of low rank leaves the entries
 * of its two neighbours, of high rank, behind and adds two. At the end tokens of 48 letters. */
static void test_heap(void)
{
    enum { N = 3 << 17 };
    q3_text vocab = {0}, merges = {0};
    char *text = malloc(N);
    int32_t *want = malloc(N / 48 * sizeof *want);
    if (text == NULL || want == NULL) exit(2);
    for (size_t i = 0; i < N; i++) text[i] = "xyz"[i % 3];
    for (size_t i = 0; i < 3; i++) put_token(&vocab, text + i, 1, i);
    put_token(&vocab, text, 2, 3);
    put_merge(&merges, text, 1, text + 1, 1);
    put_token(&vocab, text, 3, 4);
    put_merge(&merges, text, 2, text + 2, 1);
    for (size_t n = 3, id = 5; n < 48; n *= 2) {
        put_token(&vocab, text, 2 * n, id++);
        put_merge(&merges, text, n, text + n, n);
    }
    static const struct { size_t at, n, m; } late[] = {{1, 1, 1}, {2, 1, 1}, {2, 1, 2}};
    for (size_t i = 0; i < 3; i++) {
        put_token(&vocab, text + late[i].at, late[i].n + late[i].m, 20 + i);
        put_merge(&merges, text + late[i].at, late[i].n, text + late[i].at + late[i].n, late[i].m);
    }
    if (vocab.failed || merges.failed) exit(2);
    q3_tokenizer *t = make(vocab.data, merges.data, "", false);
    for (size_t i = 0; i < N / 48; i++) want[i] = 8;
    check_ids(t, text, N, want, N / 48);
    q3_tokenizer_free(t);
    free(vocab.data);
    free(merges.data);
    free(text);
    free(want);
}

int main(void)
{
    test_contraction();
    test_dropped();
    test_no_letters();
    test_syllable();
    test_colliding_tokens();
    test_colliding_chains();
    test_equal_tags();
    test_colliding_pairs();
    test_gaps();
    test_no_letter();
    test_heap();
    return t_done("pieces");
}
