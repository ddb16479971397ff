/* SPDX-License-Identifier: MIT */
/* Keys that came before the file (MODEL.md 12.11): second turns of Hugging Face with a cache
 * (golden/turns), with the cache and without, under every name and in every layout; runs that begin
 * above 0 with an empty one. What is wrong is found, at the file's own tokens.
 *
 *   test_past GOLDEN */
#include "given.h"

#include <math.h>

static const char *golden;

static void open_turn(fixture *f, given *g, const char *name, const char *dtype)
{
    char path[512];
    snprintf(path, sizeof path, "%s/hf/%s", golden, name);
    fixture_by_rule(f, path);
    snprintf(path, sizeof path, "turns/%s-%s.safetensors", name, dtype);
    given_open(g, golden, path);
}

static q3_report *judge(const fixture *f, const given *g, q3_dtype dtype)
{
    q3_error error = {""};
    q3_report *report = given_judge(f, g, dtype, &error);
    CHECKF(report != NULL, "%s", error.text);
    if (report == NULL) exit(1);
    return report;
}

/* A file with metadata, which memory has not. */
static q3_report *judge_file(const fixture *f, const given *g, const char *const *metadata,
                             q3_dtype dtype, q3_error *error)
{
    static const char path[] = "past.tmp.safetensors";
    q3_writer *writer;
    q3_judge *j = NULL;
    q3_report *report = NULL;
    if (q3_writer_open(&writer, path, g->entries, g->count, metadata, error) != Q3_OK) exit(1);
    for (size_t i = 0; i < g->count; i++) {
        const q3_entry *e = &g->entries[i];
        size_t count = given_size(e);
        float *values = calloc(count + 1, sizeof *values);
        int64_t *ids = calloc(count + 1, sizeof *ids);
        if (values == NULL || ids == NULL) exit(1);
        bool integers = e->dtype == Q3_I32 || e->dtype == Q3_I64;
        if (integers) q3_entry_integers(ids, e, 0, count);
        else q3_entry_floats(values, e, 0, count);
        q3_status status = integers ? q3_writer_integers(writer, i, 0, ids, count, error)
                                    : q3_writer_floats(writer, i, 0, values, count, error);
        if (status != Q3_OK) exit(1);
        free(values);
        free(ids);
    }
    if (q3_writer_commit(writer, error) != Q3_OK) exit(1);
    q3_status status = q3_judge_open(&j, f->config, NULL, error);
    if (status == Q3_OK) status = q3_judge_file(j, path, error);
    if (status == Q3_OK) q3_judge_run(j, f->weights, dtype, &report, error);
    q3_judge_close(j);
    remove(path);
    return report;
}

/* ==== Honest runs ============================================================================= */

/* With the cache every tensor is judged; the rows are those of the file's tokens. */
static void test_whole(const char *name, const char *dtype, q3_dtype d, size_t T, size_t keys)
{
    fixture f;
    given g;
    open_turn(&f, &g, name, dtype);
    q3_report *report = judge(&f, &g, d);
    CHECK(given_check(report, name, NULL, "") == 0);
    q3_coverage c = q3_report_coverage(report);
    CHECK(c.taps_judged == c.taps_expected);
    const q3_finding *probs = given_found(report, "model.layers.0.self_attn.probs.output"),
                     *out = given_found(report, "model.layers.0.output");
    CHECK(probs->shape[0] == T && probs->shape[2] == keys && out->shape[0] == T);
    CHECK(out->elements == T * f.config->hidden_size && out->token_bins == T);
    q3_report_close(report);
    given_close(&g);
    fixture_close(&f);
}

/* Without it what hangs on it is unjudged, and nothing is blamed: where scores are given the number
 * of keys is known, and what is computed from these scores is judged. */
static void test_without(void)
{
    static const char *const hidden[] = {"", "scores", "probs", "o_proj.input", "o_proj.output",
                                         "post_attention_layernorm", "mlp.", "self_attn", NULL};
    fixture f;
    given g;
    open_turn(&f, &g, "base", "bfloat16");
    given_drop(&g, "past_key_values");
    for (size_t i = 0; hidden[i] != NULL; i++) {
        if (hidden[i][0] != 0) given_drop(&g, hidden[i]);
        q3_report *report = judge(&f, &g, Q3_BF16);
        size_t count = given_check(report, hidden[i], "model.layers.", "record past_key_values");
        /* five of eight scores, and sums; probabilities and sums; what is given behind them */
        CHECKF(count == (i < 2 ? 6 : 3) || (i > 4 && count > 0), "without %s: %zu unjudged",
               hidden[i], count);
        if (i == 0)
            CHECK(given_found(report, "model.layers.0.self_attn.probs.output")->verdict <=
                      Q3_VERDICT_WITHIN &&
                  given_found(report, "model.layers.0.self_attn.o_proj.input")->verdict ==
                      Q3_VERDICT_UNJUDGED);
        CHECK(q3_report_decisive(report) == NULL);
        q3_report_close(report);
    }
    given_close(&g);
    fixture_close(&f);
}

/* Keys alone: scores and probabilities are judged, the sum of values is not. */
static void test_keys_alone(void)
{
    fixture f;
    given g;
    open_turn(&f, &g, "base", "float32");
    given_drop(&g, ".values");
    q3_report *report = judge(&f, &g, Q3_F32);
    CHECK(given_check(report, "keys alone", "o_proj.input", "record past_key_values") == 3);
    CHECK(given_found(report, "model.layers.2.self_attn.scores.output")->judged ==
          given_found(report, "model.layers.2.self_attn.scores.output")->elements);
    q3_report_close(report);
    given_close(&g);
    fixture_close(&f);
}

/* Axes of a copy of the cache [1,K,P,hd]: rows more, zeros, behind; tokens before heads or not. */
static void relay(given *g, q3_entry *e, size_t more, bool tokens_first, bool batch)
{
    size_t K = (size_t)e->shape[1], P = (size_t)e->shape[2], hd = (size_t)e->shape[3], R = P + more;
    float *from = given_floats(g, e), *to = given_block(g, K * R * hd * sizeof *to);
    for (size_t k = 0; k < K; k++)
        for (size_t t = 0; t < P; t++)
            memcpy(to + (tokens_first ? t * K + k : k * R + t) * hd, from + (k * P + t) * hd,
                   hd * sizeof *to);
    e->data = to;
    e->rank = batch ? 4 : 3;
    uint64_t shape[4] = {1, tokens_first ? R : K, tokens_first ? K : R, hd};
    memcpy(e->shape, shape + !batch, e->rank * sizeof *shape);
}

/* Every name and layout, as the cache was before the run and behind it, with scores or without,
 * which say how many keys there were. */
static void test_names(void)
{
    static const char *const names[][2] = {
        {"past_key_values.#.key", "past_key_values.#.value"},
        {"past_key_values.layers.#.keys", "past_key_values.layers.#.values"},
        {"past_key_values.key_cache.#", "past_key_values.value_cache.#"}};
    for (size_t way = 0; way < 3 * 3 * 2 * 2; way++) {
        fixture f;
        given g;
        open_turn(&f, &g, "base", "bfloat16");
        size_t name = way % 3, layout = way / 3 % 3, more = way / 9 % 2 * 3;
        if (way / 18 == 1) given_drop(&g, "scores"), given_drop(&g, "probs");
        for (size_t i = 0; i < 6; i++) {
            char old[80], new[80];
            strcpy(old, names[1][i % 2]);
            strcpy(new, names[name][i % 2]);
            *strchr(old, '#') = *strchr(new, '#') = (char)('0' + i / 2);
            q3_entry *e = given_find(&g, old), *renamed;
            relay(&g, e, more, layout == 2, layout == 0);
            renamed = given_add(&g, new, e);
            *e = *renamed;
            g.count--;
        }
        q3_report *report = judge(&f, &g, Q3_BF16);
        CHECKF(given_check(report, names[name][0], NULL, "") == 0, "way %zu", way);
        q3_report_close(report);
        given_close(&g);
        fixture_close(&f);
    }
}

/* From a layer above 0 on, which starts from the file's hidden states. */
static void test_later_layers(void)
{
    fixture f;
    given g;
    open_turn(&f, &g, "base", "bfloat16");
    g.first_layer = 2;
    q3_report *report = judge(&f, &g, Q3_BF16);
    CHECK(given_check(report, "layer 2 on", NULL, "") == 0);
    q3_report_close(report);
    given_close(&g);
    fixture_close(&f);
}

/* ==== What is wrong =========================================================================== */

/* A cached key that is not the one that was read: found in the scores of this layer, or where the
 * sum of values is the next tensor given. */
static void test_wrong_key(bool scores)
{
    fixture f;
    given g;
    open_turn(&f, &g, "base", "float32");
    float *keys = given_floats(&g, given_find(&g, "past_key_values.layers.1.keys"));
    for (size_t i = 0; i < 8; i++) keys[3 * 8 + i] = -keys[3 * 8 + i];
    if (!scores) given_drop(&g, "scores"), given_drop(&g, "probs");
    q3_report *report = judge(&f, &g, Q3_F32);
    const q3_finding *found = q3_report_decisive(report);
    const char *name = scores ? "model.layers.1.self_attn.scores.output"
                              : "model.layers.1.self_attn.o_proj.input";
    CHECKF(found != NULL && strcmp(found->name, name) == 0 &&
               found->verdict == Q3_VERDICT_DIFFERS,
           "found %s", found != NULL ? found->name : "nothing");
    if (scores && found != NULL) CHECK(found->bad_at[0] == 0 && found->bad_at[2] == 3);
    q3_report_close(report);
    given_close(&g);
    fixture_close(&f);
}

/* One token's rows are wrong: places and words are of the file's own tokens. */
static void test_places(void)
{
    fixture f;
    given g;
    open_turn(&f, &g, "base", "float32");
    q3_entry *e = given_find(&g, "model.layers.1.self_attn.v_proj.output");
    float *values = given_floats(&g, e);
    for (size_t i = 0; i < 16; i++) values[2 * 16 + i] = 0;
    q3_report *report = judge(&f, &g, Q3_F32);
    const q3_finding *found = q3_report_decisive(report);
    CHECK(found != NULL && strcmp(found->name, e->name) == 0);
    if (found != NULL) {
        CHECK(found->bad_at[0] == 2 && found->max_at[0] == 2 && found->worst_token == 2 &&
              found->worst_count > 0 && found->worst[0].at[0] == 2);
        CHECK(found->token_bins == 3 && found->token_profile[2] > 1000 &&
              found->token_profile[1] < 100);
        CHECKF(strstr(found->looks_like, "token 2 ") != NULL, "looks like %s",
               found->looks_like);
    }
    q3_report_close(report);
    given_close(&g);
    fixture_close(&f);
}

/* Mistakes are named as they are without a cache: the run's own keys are not rotated, which shows
 * in the scores alone; those in the cache are right. */
static void test_cause(void)
{
    enum { H = 6, K = 2, N = 8, KEYS = 8, PAST = 5 };
    fixture f;
    given g;
    open_turn(&f, &g, "base", "float32");
    float *q = given_floats(&g, given_find(&g, "model.layers.1.self_attn.q_rope.output"));
    float *own = given_floats(&g, given_find(&g, "model.layers.1.self_attn.k_norm.output"));
    float *past = given_floats(&g, given_find(&g, "past_key_values.layers.1.keys"));
    float *scores = given_floats(&g, given_find(&g, "model.layers.1.self_attn.scores.output"));
    given_drop(&g, "layers.1.self_attn.k_rope");
    for (size_t i = 0; i < H * 3 * KEYS; i++) {
        size_t h = i / KEYS / 3, t = i / KEYS % 3, s = i % KEYS, k = h / (H / K);
        double sum = 0;
        if (s > PAST + t) continue;
        for (size_t d = 0; d < N; d++)
            sum += (double)q[(t * H + h) * N + d] *
                   (double)(s < PAST ? past[(k * PAST + s) * N + d]
                                     : own[((s - PAST) * K + k) * N + d]);
        scores[i] = (float)(sum / sqrt(N));
    }
    q3_report *report = judge(&f, &g, Q3_F32);
    const q3_finding *found = q3_report_decisive(report);
    CHECK(found != NULL && strstr(found->name, "layers.1.self_attn.scores") != NULL);
    CHECKF(found != NULL && strstr(found->looks_like, "RoPE missing") != NULL &&
               strstr(found->looks_like, "explains 100 %") != NULL,
           "looks like %s", found != NULL ? found->looks_like : "nothing");
    q3_report_close(report);
    given_close(&g);
    fixture_close(&f);
}

/* ==== A run that begins above 0 =============================================================== */

/* An empty cache: what agrees with it is judged. What does not is blamed if it is known that the
 * cache was empty: by scores of as many keys as tokens, by metadata, by dump's name. */
static void test_empty(void)
{
    static const struct {
        const char *metadata[5];
        bool scores;
        q3_verdict verdict;
    } cases[] = {
        {{"start", "100", NULL}, false, Q3_VERDICT_UNJUDGED},
        {{"start", "100", NULL}, true, Q3_VERDICT_DIFFERS},
        {{"start", "100", "past", "0", NULL}, false, Q3_VERDICT_DIFFERS},
        {{"start", "100", "producer", "qwen3moe", NULL}, false, Q3_VERDICT_DIFFERS},
        {{"start", "100", "producer", "someone", NULL}, false, Q3_VERDICT_UNJUDGED},
    };
    static const char name[] = "model.layers.1.self_attn.o_proj.input";
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        fixture f;
        given g;
        q3_error error = {""};
        char path[512];
        snprintf(path, sizeof path, "%s/hf/mlp-only", golden);
        fixture_by_rule(&f, path);
        given_open(&g, golden, "hf/mlp-only/taps-float32.safetensors");
        if (!cases[i].scores) given_drop(&g, "scores"), given_drop(&g, "probs");
        q3_report *report = judge_file(&f, &g, cases[i].metadata, Q3_F32, &error);
        CHECKF(report != NULL, "%s", error.text);
        if (report != NULL) CHECK(given_check(report, "an empty cache", NULL, "") == 0);
        q3_report_close(report);
        given_floats(&g, given_find(&g, name));
        for (size_t k = 0; k < 8; k++) ((float *)g.blocks[g.block_count - 1])[k] += 1;
        report = judge_file(&f, &g, cases[i].metadata, Q3_F32, &error);
        CHECKF(report != NULL, "%s", error.text);
        if (report != NULL)
            CHECKF(given_found(report, name)->verdict == cases[i].verdict, "case %zu: %s", i,
                   q3_verdict_name(given_found(report, name)->verdict));
        q3_report_close(report);
        given_close(&g);
        fixture_close(&f);
    }
}

/* A cache of as many rows as the run has tokens, at positions that are as many: it may have been
 * recorded before the run or behind it. Nothing is blamed. */
static void test_ambiguous(void)
{
    fixture f;
    given g;
    open_turn(&f, &g, "base", "bfloat16");
    static const int64_t positions[] = {3, 4, 5};
    given_drop(&g, "scores");
    given_drop(&g, "probs");
    given_drop(&g, "position_ids");
    given_drop(&g, "rotary");
    given_integers(&g, "position_ids", positions, 3);
    for (size_t i = 0; i < g.count; i++)
        if (strstr(g.entries[i].name, "past_key") != NULL) {
            relay(&g, &g.entries[i], 0, true, false);
            g.entries[i].shape[0] = 3;
        }
    q3_report *report = judge(&f, &g, Q3_BF16);
    for (size_t i = 0; i < q3_report_count(report); i++) {
        const q3_finding *found = q3_report_finding(report, i);
        if (strstr(found->name, "self_attn.o_proj.input") == NULL) continue;
        CHECK(found->verdict == Q3_VERDICT_UNJUDGED);
        CHECK(strstr(found->reason, "position 3") != NULL);
    }
    q3_report_close(report);
    given_close(&g);
    fixture_close(&f);
}

/* metadata's past that cannot be. */
static void test_refused(void)
{
    static const char *const past[] = {"", "x", "5x", "-1", "6", "99999999999999999999999"};
    fixture f;
    given g;
    open_turn(&f, &g, "base", "bfloat16");
    for (size_t i = 0; i < sizeof past / sizeof past[0]; i++) {
        q3_error error = {""};
        const char *metadata[] = {"start", "5", "past", past[i], NULL};
        q3_report *report = judge_file(&f, &g, metadata, Q3_BF16, &error);
        CHECKF(report == NULL && strstr(error.text, "metadata past: found ") != NULL &&
                   strstr(error.text, "expected 0 to 5") != NULL,
               "past %s: %s", past[i], error.text);
        q3_report_close(report);
    }
    given_close(&g);
    fixture_close(&f);
}

int main(int argc, char **argv)
{
    if (argc != 2) return 2;
    golden = argv[1];
    test_whole("base", "float32", Q3_F32, 3, 8);
    test_whole("base", "bfloat16", Q3_BF16, 3, 8);
    test_whole("window", "bfloat16", Q3_BF16, 4, 8);
    test_whole("rope-dynamic", "float32", Q3_F32, 6, 18);
    test_without();
    test_keys_alone();
    test_names();
    test_later_layers();
    test_wrong_key(true);
    test_wrong_key(false);
    test_places();
    test_cause();
    test_empty();
    test_ambiguous();
    test_refused();
    return t_done("test_past");
}
