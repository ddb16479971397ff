/* SPDX-License-Identifier: MIT */
/* Rows of logits (MODEL.md 12.8): those of other tokens than the last, or in another order, are
 * found by the file's word or by their values; what is wrong in them is found at its token. The
 * logits are Hugging Face's (golden/hf/tiny), or made up where only the reading is tested.
 *
 *   test_rows GOLDEN */
#include "given.h"

#include "judge/backend.h"

static fixture tiny;
static const char *golden, logits[] = "lm_head.output";

/* The golden tensors with rows of[count] of the logits, in this order. */
static float *open_rows(given *g, const size_t *of, size_t count)
{
    given_open(g, golden, "hf/tiny/taps-float32.safetensors");
    q3_entry *e = given_find(g, logits);
    size_t V = (size_t)e->shape[1];
    float *all = given_floats(g, e), *rows = given_block(g, count * V * sizeof *rows);
    for (size_t i = 0; i < count; i++) memcpy(rows + i * V, all + of[i] * V, V * sizeof *rows);
    e->shape[0] = count;
    e->data = rows;
    return rows;
}

static q3_report *judge(const given *g)
{
    q3_error error = {""};
    q3_report *report = given_judge(&tiny, g, Q3_F32, &error);
    CHECKF(report != NULL, "%s", error.text);
    if (report == NULL) exit(1);
    return report;
}

static void say_positions(given *g, const size_t *of, size_t count)
{
    int64_t positions[24];
    for (size_t i = 0; i < count; i++) positions[i] = (int64_t)of[i];
    given_integers(g, "logit_positions", positions, count);
}

/* Rows of some tokens, as the last of each chunk of a prompt, and rows of all in another order:
 * right without a word and with one; and one wrong value is found at its token either way. */
static void test_subset(const size_t *of, size_t count, const char *note)
{
    for (size_t way = 0; way < 4; way++) {
        given g;
        bool said = way % 2 == 1, wrong = way / 2 == 1;
        float *rows = open_rows(&g, of, count);
        size_t V = tiny.config->vocab_size;
        if (said) say_positions(&g, of, count);
        if (wrong) rows[V + 77] += 1;
        q3_report *report = judge(&g);
        const q3_finding *f = given_found(report, logits);
        CHECKF(strstr(f->note, note) != NULL, "way %zu: %s", way, f->note);
        CHECKF(note[0] == 0 ||
                   strstr(f->note, said ? "of logit_positions" : "by their values") != NULL,
               "way %zu: %s", way, f->note);
        CHECK(f->elements == count * V);
        if (wrong) {
            CHECKF(f->verdict == Q3_VERDICT_DIFFERS && f->bad_at[0] == of[1] &&
                       f->bad_at[1] == 77 && f->outside == 1,
                   "way %zu: %s at %zu", way, q3_verdict_name(f->verdict), f->bad_at[0]);
            CHECKF(strstr(f->looks_like, "channel 77") != NULL, "looks like %s", f->looks_like);
        } else {
            CHECK(given_check(report, note, NULL, "") == 0);
        }
        q3_report_close(report);
        given_close(&g);
    }
}

/* A mistake in lm_head itself, where the rows are known, is named; only those given are looked
 * at. */
static void test_cause(void)
{
    static const size_t of[] = {5, 11, 17};
    given g;
    size_t V = tiny.config->vocab_size;
    float *rows = open_rows(&g, of, 3);
    say_positions(&g, of, 3);
    for (size_t i = 0; i < 3 * V; i++) rows[i] *= 1.5f;
    q3_report *report = judge(&g);
    const q3_finding *f = given_found(report, logits);
    CHECKF(f->verdict == Q3_VERDICT_DIFFERS && f->gain > 1.49 && f->gain < 1.51 &&
               strstr(f->looks_like, "scaled by a factor 1.5") != NULL,
           "%s, looks like %s", q3_verdict_name(f->verdict), f->looks_like);
    q3_report_close(report);
    given_close(&g);
}

/* The last row alone, as logits_to_keep=1 has it. One that is no token's is unjudged, unless the
 * file says whose it is; one that is not finite is wrong whosoever it is. */
static void test_last(void)
{
    static const size_t of[] = {23};
    for (size_t way = 0; way < 4; way++) {
        static const q3_verdict expected[] = {Q3_VERDICT_WITHIN, Q3_VERDICT_UNJUDGED,
                                              Q3_VERDICT_DIFFERS, Q3_VERDICT_NON_FINITE};
        given g;
        float *rows = open_rows(&g, of, 1), zero = 0;
        if (way == 2) say_positions(&g, of, 1);
        for (size_t i = 0; i < tiny.config->vocab_size && way > 0; i++)
            rows[i] = way == 3 ? 1 / zero : (float)(i % 7) - 3;
        q3_report *report = judge(&g);
        const q3_finding *f = given_found(report, logits);
        CHECKF(f->verdict == expected[way], "way %zu: %s, %s", way, q3_verdict_name(f->verdict),
               f->reason);
        CHECK(way > 0 || strstr(f->note, "rows 23:24 of 24") != NULL);
        CHECK(way != 1 || strstr(f->reason, "record logit_positions") != NULL);
        CHECK((q3_report_decisive(report) == NULL) == (way < 2));
        q3_report_close(report);
        given_close(&g);
    }
}

/* All rows, each that of the token before: no order, but a mistake. */
static void test_shifted(void)
{
    size_t of[24];
    given g;
    for (size_t t = 0; t < 24; t++) of[t] = t > 0 ? t - 1 : 0;
    open_rows(&g, of, 24);
    q3_report *report = judge(&g);
    const q3_finding *f = given_found(report, logits);
    CHECKF(f->verdict == Q3_VERDICT_DIFFERS && strstr(f->looks_like, "the token before") != NULL,
           "%s, looks like %s", q3_verdict_name(f->verdict), f->looks_like);
    q3_report_close(report);
    given_close(&g);
}

/* A gain that no element shows, of logits whose norm is not given: it hangs on the weights of all
 * tokens, for what comes in with the norm. */
static void test_gain(void)
{
    given g;
    q3_error error = {""};
    given_open(&g, golden, "hf/tiny/taps-bfloat16.safetensors");
    given_drop(&g, "model.norm.output");
    q3_entry *e = given_find(&g, logits);
    float *values = given_floats(&g, e);
    for (size_t i = 0; i < given_size(e); i++)
        values[i] = q3_round(1.006 * (double)values[i], Q3_BF16);
    q3_report *report = given_judge(&tiny, &g, Q3_BF16, &error);
    CHECKF(report != NULL, "%s", error.text);
    const q3_finding *f = given_found(report, logits);
    CHECKF(f->verdict == Q3_VERDICT_DIFFERS && f->outside == 0 &&
               strstr(f->reason, "times ours over the whole tensor") != NULL,
           "%s, %s", q3_verdict_name(f->verdict), f->reason);
    q3_report_close(report);
    given_close(&g);
}

/* Tokens that lm_head maps to the same logits are one, though their norms differ: rows of zeros are
 * any two's, and so what is wrong in one is wrong. */
static void test_zeros(void)
{
    static const size_t of[] = {5, 11};
    given g;
    q3_error error = {""};
    fixture f = tiny;
    q3_weights weights = *tiny.weights;
    size_t V = tiny.config->vocab_size;
    float *rows = open_rows(&g, of, 2);
    weights.lm_head = (q3_tensor){given_block(&g, V * tiny.config->hidden_size * 2), Q3_BF16};
    f.weights = &weights;
    memset(rows, 0, 2 * V * sizeof *rows);
    rows[V + 3] = 1;
    q3_report *report = given_judge(&f, &g, Q3_F32, &error);
    CHECKF(report != NULL, "%s", error.text);
    const q3_finding *found = given_found(report, logits);
    CHECKF(found->verdict == Q3_VERDICT_DIFFERS && found->outside == 1, "%s, %s",
           q3_verdict_name(found->verdict), found->reason);
    q3_report_close(report);
    given_close(&g);
}

/* What logit_positions cannot say. */
static void test_refused(void)
{
    static const struct {
        int64_t positions[4];
        size_t count;
        const char *said;
    } cases[] = {
        {{3, 7, 24}, 3, "logit_positions: row 2: found 24, expected 0 to 23"},
        {{3, -1, 9}, 3, "logit_positions: row 1: found -1, expected 0 to 23"},
        {{3, 7, 3}, 3, "logit_positions: rows 0 and 2: found 3 twice"},
        {{3, 7}, 2, "logit_positions: found 2, expected 3, one for each row of lm_head.output"},
    };
    static const size_t of[] = {3, 7, 9};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        given g;
        q3_error error = {""};
        open_rows(&g, of, 3);
        given_integers(&g, "logit_positions", cases[i].positions, cases[i].count);
        q3_report *report = given_judge(&tiny, &g, Q3_F32, &error);
        CHECKF(report == NULL && strstr(error.text, cases[i].said) != NULL, "case %zu: %s", i,
               error.text);
        q3_report_close(report);
        given_close(&g);
    }
}

/* ==== The reading alone ======================================================================= */

enum { T = 6, V = 40 };

/* Reads rows of a model whose logits are ours[T,V]; row_of[T], or NULL. */
static size_t *match(const float *ours, const float *theirs, size_t rows, bool *doubtful)
{
    static const q3_config config = {.num_hidden_layers = 1, .hidden_size = 8, .vocab_size = V,
                                     .head_dim = 4, .num_attention_heads = 2,
                                     .num_key_value_heads = 1};
    const q3_entry entry = {logits, Q3_F32, 2, {rows, V}, theirs};
    size_t *row_of = NULL;
    backend b;
    q3_error error = {""};
    CHECK(q3_backend_init(&b, &config, "tensors", &error) == Q3_OK);
    CHECK(q3_backend_add_tensor(&b, &entry, &error) == Q3_OK);
    CHECK(q3_backend_read(&b, &error) == Q3_OK && q3_backend_bind(&b, T, &error) == Q3_OK);
    CHECK(q3_match_rows(&row_of, doubtful, &b, q3_backend_find(&b, Q3_TAP_LM_HEAD, 0),
                        Q3_TAP_LM_HEAD, &(own_rows){.values = ours}));
    q3_backend_close(&b);
    return row_of;
}

/* Tokens 1 and 4 have the same logits, so that a row of them may be either's: both are taken.
 * Tokens 2 and 3 are as near to each other as rounding is to them: rows of theirs are nobody's. */
static void test_equal(void)
{
    float ours[T][V], theirs[T][V];
    bool doubtful;
    for (size_t t = 0; t < T; t++)
        for (size_t i = 0; i < V; i++)
            ours[t][i] = (float)((7 * i + (t == 4 ? 1 : t) * 13 * (i + 1)) % 31) - 15;
    for (size_t i = 0; i < V; i++) ours[3][i] = ours[2][i] + (i % 2 == 0 ? 0x1p-10f : -0x1p-10f);
    const struct {
        size_t of[3], count, row_of[T];
        bool doubtful;
    } cases[] = {
        {{1}, 1, {9, 9, 9, 9, 0, 9}, false}, /* of equals the last */
        {{1, 4, 5}, 3, {9, 0, 9, 9, 1, 2}, false},
        {{0, 1}, 2, {0, 9, 9, 9, 1, 9}, false},
        {{2}, 1, {0}, true},
        {{0, 3}, 2, {0}, true},
        {{0, 0}, 2, {0}, true}, /* twice */
    };
    for (size_t k = 0; k < sizeof cases / sizeof cases[0]; k++) {
        for (size_t r = 0; r < cases[k].count; r++)
            for (size_t i = 0; i < V; i++)
                theirs[r][i] = ours[cases[k].of[r]][i] + (i % 3 == 0 ? 0x1p-11f : 0);
        size_t *row_of = match(ours[0], theirs[0], cases[k].count, &doubtful);
        CHECKF(doubtful == cases[k].doubtful && (row_of == NULL) == doubtful, "case %zu", k);
        for (size_t t = 0; t < T && row_of != NULL; t++)
            CHECKF(row_of[t] == (cases[k].row_of[t] == 9 ? Q3_NO_ROW : cases[k].row_of[t]),
                   "case %zu, token %zu: row %zu", k, t, row_of[t]);
        free(row_of);
    }
    CHECK(match(ours[0], ours[0], T, &doubtful) == NULL && !doubtful); /* all, in order */
    CHECK(match(ours[0], ours[T - 1], 1, &doubtful) == NULL && !doubtful);
}

int main(int argc, char **argv)
{
    static const size_t chunks[] = {3, 9, 20}, last[] = {21, 22, 23};
    size_t reversed[24];
    char path[512];
    if (argc != 2) return 2;
    golden = argv[1];
    snprintf(path, sizeof path, "%s/tiny", golden);
    fixture_from_folder(&tiny, path);
    for (size_t t = 0; t < 24; t++) reversed[t] = 23 - t;
    test_subset(chunks, 3, "rows of tokens 3, 9, 20");
    test_subset(reversed, 24, "rows of tokens 23, 22, 21, 20, 19, 18, 17, 16, ...");
    test_subset(last, 3, "");
    test_cause();
    test_last();
    test_shifted();
    test_gain();
    test_zeros();
    test_refused();
    test_equal();
    fixture_close(&tiny);
    return t_done("test_rows");
}
