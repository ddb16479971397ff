/* SPDX-License-Identifier: MIT */
/* The judge against Hugging Face's tensors (golden/hf), and against faults in them.
 *
 *   test_check GOLDEN [--some] CASE...   the folder golden/, and folders of golden/hf with a
 *                                        config.json; --some: 1. of these and no more
 *
 * 1. Every case and dtype: each tensor is exact or within; nothing is left unjudged.
 * 2. golden/tiny: one element of one tensor is changed, for every kind of tensor in turn: that is
 *    the first that differs. What an honest implementation may do (an ulp) is not blamed.
 * 3. Rounding: all elements of a bfloat16 tensor an ulp off, one channel scaled by 1.002:
 *    `rounding`.
 * 4. NaN and infinity, half of the taps, layer outputs only, the last rows only. */
#include "judge/walk.h"
#include "judge/report.h"
#include "model.h"

#include <math.h>

static const char file_name[] = "check.tmp.safetensors";

/* A copy of golden's tensors with changes: what a backend's file may hold. */
typedef struct forgery {
    const char *only;    /* NULL: all; else names that hold this text, and ids */
    const char *target;  /* the tensor that is changed, NULL: none */
    size_t at;           /* element */
    double factor, add;  /* theirs = value * factor + add, rounded to the file's dtype */
    size_t every;        /* 0: one element; n: each n-th from `at` on, up and down in turn */
    size_t skip_rows;    /* of lm_head: tokens that are left out */
    size_t end;          /* elements from here on stay; 0: none */
    bool upward;         /* of every: up alone */
} forgery;

static bool kept(const forgery *forged, const char *name)
{
    return forged->only == NULL || strstr(name, forged->only) != NULL ||
           strcmp(name, "input_ids") == 0;
}

static void copy_tensor(q3_writer *writer, size_t index, const q3_entry *e, const forgery *forged)
{
    q3_error error;
    size_t count = 1;
    bool changed = forged->target != NULL && strcmp(e->name, forged->target) == 0;
    for (size_t i = 0; i < e->rank; i++) count *= (size_t)e->shape[i];
    size_t skip = strcmp(e->name, "lm_head.output") == 0 ? forged->skip_rows * (size_t)e->shape[1]
                                                         : 0;
    for (size_t i = skip; i < count; i++) {
        bool here = changed &&
                    (forged->every == 0 ? i == forged->at : i % forged->every == forged->at) &&
                    (forged->end == 0 || i < forged->end);
        if (e->dtype == Q3_I32 || e->dtype == Q3_I64) {
            int64_t id;
            q3_entry_integers(&id, e, i, 1);
            if (here) id += (int64_t)forged->add;
            if (q3_writer_integers(writer, index, i - skip, &id, 1, &error) != Q3_OK) exit(1);
        } else {
            float value;
            q3_entry_floats(&value, e, i, 1);
            bool down = forged->every > 0 && !forged->upward && i / forged->every % 2 == 1;
            double factor = down ? 2 - forged->factor : forged->factor;
            if (here) value = q3_round((double)value * factor + forged->add, e->dtype);
            if (q3_writer_floats(writer, index, i - skip, &value, 1, &error) != Q3_OK) exit(1);
        }
    }
}

static void forge(const q3_tensors *golden, const forgery *forged)
{
    static q3_entry entries[512];
    static size_t from[512];
    size_t count = 0;
    q3_writer *writer;
    q3_error error;
    const char *dtype = q3_tensors_metadata(golden, "dtype"),
               *start = q3_tensors_metadata(golden, "start");
    const char *metadata[] = {"dtype", dtype, "start", start, NULL};
    for (size_t i = 0; i < q3_tensors_count(golden); i++) {
        if (!kept(forged, q3_tensors_at(golden, i)->name)) continue;
        from[count] = i;
        entries[count] = *q3_tensors_at(golden, i);
        if (strcmp(entries[count].name, "lm_head.output") == 0)
            entries[count].shape[0] -= forged->skip_rows;
        count++;
    }
    CHECK(q3_writer_open(&writer, file_name, entries, count, metadata, &error) == Q3_OK);
    for (size_t i = 0; i < count; i++)
        copy_tensor(writer, i, q3_tensors_at(golden, from[i]), forged);
    CHECK(q3_writer_commit(writer, &error) == Q3_OK);
}

/* ==== Judging a file ========================================================================== */

/* The JSON lines of the last judgement, and what they say. */
static q3_text lines;
static char first_bad[Q3_TAP_NAME_SIZE];
static struct { char name[Q3_TAP_NAME_SIZE]; q3_verdict verdict; } found[1024];
static size_t found_count;
static size_t count_of[Q3_VERDICT_COUNT];

static void read_lines(void)
{
    memset(count_of, 0, sizeof count_of);
    first_bad[0] = 0;
    found_count = 0;
    for (const char *p = lines.data; p != NULL && *p != 0; p = strchr(p, '\n') + 1) {
        char name[Q3_TAP_NAME_SIZE] = "", said[16] = "";
        const char *tap = strstr(p, "\"tap\":\""), *word = strstr(p, "\"verdict\":\"");
        const char *end = strchr(p, '\n');
        if (end == NULL) break;
        if (tap == NULL || word == NULL || word > end) continue;
        sscanf(tap + 7, "%79[^\"]", name);
        sscanf(word + 11, "%15[^\"]", said);
        for (unsigned v = 0; v < Q3_VERDICT_COUNT; v++) {
            if (strcmp(said, q3_verdict_name(v)) != 0) continue;
            count_of[v]++;
            bool bad = v == Q3_VERDICT_DIFFERS || v == Q3_VERDICT_NON_FINITE ||
                       v == Q3_VERDICT_SHAPE;
            if (bad && first_bad[0] == 0) memcpy(first_bad, name, sizeof name);
            memcpy(found[found_count].name, name, sizeof name);
            found[found_count++].verdict = (q3_verdict)v;
        }
    }
}

/* What was said of a tensor, if nothing was said against those before it; else Q3_VERDICT_COUNT. */
static q3_verdict said_of(const char *name)
{
    for (size_t i = 0; i < found_count; i++) {
        if (strcmp(found[i].name, name) == 0) return found[i].verdict;
        if (found[i].verdict != Q3_VERDICT_EXACT && found[i].verdict != Q3_VERDICT_WITHIN)
            return Q3_VERDICT_COUNT;
    }
    return Q3_VERDICT_COUNT;
}

/* Layers [0, end); norm and lm_head if that is all. */
static void judge_layers(const fixture *f, const char *path, q3_dtype dtype, size_t end,
                         const q3_judge_options *options)
{
    q3_error error = {""};
    q3_judge *judge = NULL;
    q3_report *report = NULL;
    q3_judge_options o = *options;
    o.end_layer = end;
    free(lines.data);
    memset(&lines, 0, sizeof lines);
    q3_status status = q3_judge_open(&judge, f->config, &o, &error);
    if (status == Q3_OK) status = q3_judge_file(judge, path, &error);
    if (status == Q3_OK) status = q3_judge_run(judge, f->weights, dtype, &report, &error);
    if (status == Q3_OK) status = q3_report_lines(report, &lines.data, &lines.size, &error);
    CHECKF(status == Q3_OK, "%s: %s", path, error.text);
    q3_report_close(report);
    q3_judge_close(judge);
    read_lines();
}

static const q3_judge_options usual = {0};

static void judge_file(const fixture *f, const char *path, q3_dtype dtype)
{
    judge_layers(f, path, dtype, f->config->num_hidden_layers, &usual);
}

static void judge_layers_forged(const fixture *f, const q3_tensors *golden, q3_dtype dtype,
                                size_t end, const forgery *forged)
{
    forge(golden, forged);
    judge_layers(f, file_name, dtype, end, &usual);
    remove(file_name);
}

static void judge_forged(const fixture *f, const q3_tensors *golden, q3_dtype dtype,
                         const forgery *forged)
{
    judge_layers_forged(f, golden, dtype, f->config->num_hidden_layers, forged);
}

/* ==== 1. Hugging Face ========================================================================= */

static const char *const dtypes[3] = {"float32", "bfloat16", "float16"};

static void test_honest(const fixture *f, const char *folder)
{
    char path[512];
    for (q3_dtype d = Q3_F32; d <= Q3_F16; d++) {
        snprintf(path, sizeof path, "%s/taps-%s.safetensors", folder, dtypes[d]);
        judge_file(f, path, d);
        size_t good = count_of[Q3_VERDICT_EXACT] + count_of[Q3_VERDICT_WITHIN], all = 0;
        for (size_t v = 0; v < Q3_VERDICT_COUNT; v++) all += count_of[v];
        CHECKF(good == all && all >= 20, "%s: %lu of %lu exact or within; %s", path,
               (unsigned long)good, (unsigned long)all, first_bad);
    }
}

/* ==== 2. One element ========================================================================== */

/* The element whose change must be seen: the largest, so that it is no masked score and no
 * cancelled sum. */
static size_t largest_element(const q3_entry *e)
{
    size_t best = 0, count = 1;
    float most = 0;
    for (size_t i = 0; i < e->rank; i++) count *= (size_t)e->shape[i];
    for (size_t i = 0; i < count; i++) {
        float value;
        q3_entry_floats(&value, e, i, 1);
        if (fabsf(value) > most) most = fabsf(value), best = i;
    }
    return best;
}

static void test_each_tensor(const fixture *f, const q3_tensors *golden, q3_dtype dtype)
{
    for (size_t i = 0; i < q3_tensors_count(golden); i++) {
        const q3_entry *e = q3_tensors_at(golden, i);
        bool ids = e->dtype == Q3_I32;
        bool tail = strstr(e->name, "norm.output") == e->name + 6 ||
                    strncmp(e->name, "lm_head", 7) == 0;
        bool dense = strstr(e->name, "layers.1.mlp") != NULL,
             sparse = strstr(e->name, "layers.2.") != NULL;
        size_t end = tail ? 5 : dense ? 2 : sparse ? 3 : strstr(e->name, "layers") == NULL ? 1 : 0;
        if (end == 0) continue;
        if (e->dtype == Q3_I64) continue; /* input_ids, position_ids */
        /* a twentieth is many times the bound of the largest element; another expert than the
         * first */
        forgery forged = {NULL, e->name, ids ? 0 : largest_element(e), 1.05, ids ? 100 : 0, 0, 0,
                          0,    false};
        judge_layers_forged(f, golden, dtype, end, &forged);
        CHECKF(strcmp(first_bad, e->name) == 0, "%s changed: first is \"%s\"", e->name, first_bad);
    }
}

/* How far the largest element may be off. In bfloat16 a factor 1 + 2^-k is 2^(7-k) to 2^(8-k) ulp
 * of it; a sum may be off by one (it is stored once), a sum of two tensors by one and a half (but
 * one value alone is right, so that another was rounded elsewhere), a norm by three, a product by
 * two; the router's probabilities are float32, of 2^14 ulp. In float32 a sum's bound is (2 + 4 sqrt
 * n) 2^-24 sum |w||x|, n <= 200, and the sum is largest where it is a tenth of sum |w||x| or more:
 * 4e-5 of it at most. */
static void test_tightness(const fixture *f, q3_tensors *const golden[2])
{
    static const struct {
        const char *name;
        size_t dtype;
        double factor;
        q3_verdict expected;
    } cases[] = {
        {"model.layers.0.self_attn.q_proj.output", 1, 1 + 0x1p-8, Q3_VERDICT_WITHIN},
        {"model.layers.0.self_attn.q_proj.output", 1, 1 + 0x1p-6, Q3_VERDICT_DIFFERS},
        {"model.layers.0.input_layernorm.output", 1, 1 + 0x1p-7, Q3_VERDICT_WITHIN},
        {"model.layers.0.input_layernorm.output", 1, 1 + 0x1p-5, Q3_VERDICT_DIFFERS},
        {"model.layers.0.post_attention_layernorm.input", 1, 1 + 0x1p-6, Q3_VERDICT_DIFFERS},
        {"model.layers.0.output", 1, 1 + 0x1p-8, Q3_VERDICT_ROUNDING},
        {"model.layers.0.output", 1, 1 + 0x1p-6, Q3_VERDICT_DIFFERS},
        {"model.layers.0.mlp.experts.down_proj.input", 1, 1 + 0x1p-5, Q3_VERDICT_DIFFERS},
        {"model.layers.0.mlp.router_probs.output", 1, 1 + 0x1p-10, Q3_VERDICT_DIFFERS},
        {"model.layers.0.self_attn.q_proj.output", 0, 1.0001, Q3_VERDICT_DIFFERS},
        {"model.layers.0.self_attn.o_proj.output", 0, 1.0001, Q3_VERDICT_DIFFERS},
        {"model.layers.0.mlp.gate.output", 0, 1.0001, Q3_VERDICT_DIFFERS},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const q3_tensors *from = golden[cases[i].dtype];
        size_t at = largest_element(q3_tensors_find(from, cases[i].name));
        forgery forged = {NULL, cases[i].name, at, cases[i].factor, 0, 0, 0, 0, false};
        judge_layers_forged(f, from, cases[i].dtype == 0 ? Q3_F32 : Q3_BF16, 1, &forged);
        CHECKF(said_of(cases[i].name) == cases[i].expected, "%s by %g: verdict %d",
               cases[i].name, cases[i].factor, (int)said_of(cases[i].name));
        char why[300]; /* the element itself, not what it does to the whole */
        snprintf(why, sizeof why,
                 "{\"tap\":\"%s\",\"verdict\":\"differs\",\"given_as\":\"%s\",\"note\":\"\","
                 "\"reason\":\"1 of ",
                 cases[i].name, cases[i].name);
        CHECKF(cases[i].expected != Q3_VERDICT_DIFFERS || strstr(lines.data, why) != NULL,
               "%s: not outside", cases[i].name);
    }
    /* The cosine of 23 is -0.533. An angle may err by 4 u of itself, 92 u, of which cos takes 0.85
     * at most. */
    forgery angle = {NULL, "model.rotary_emb.cos", 23 * 24, 1, 40 * 0x1p-24, 0, 0, 0, false};
    judge_layers_forged(f, golden[0], Q3_F32, 1, &angle);
    CHECK(said_of("model.rotary_emb.cos") == Q3_VERDICT_WITHIN);
    angle.add = 400 * 0x1p-24;
    judge_layers_forged(f, golden[0], Q3_F32, 1, &angle);
    CHECK(said_of("model.rotary_emb.cos") == Q3_VERDICT_DIFFERS);
}

/* The first token stands at 7000, whose sine is 0.507. An angle may err by 4 u of itself, which
 * moves the cosine by 14000 u at most: 10000 is honest, 100000 is not. */
static void test_start(const fixture *f, const char *folder)
{
    char path[512];
    q3_tensors *golden;
    q3_error error;
    snprintf(path, sizeof path, "%s/taps-float32.safetensors", folder);
    if (q3_tensors_open(&golden, path, &error) != Q3_OK) exit(1);
    forgery angle = {NULL, "model.rotary_emb.cos", 0, 1, 10000 * 0x1p-24, 0, 0, 0, false};
    judge_forged(f, golden, Q3_F32, &angle);
    CHECK(said_of("model.rotary_emb.cos") == Q3_VERDICT_WITHIN);
    angle.add = 100000 * 0x1p-24;
    judge_forged(f, golden, Q3_F32, &angle);
    CHECK(said_of("model.rotary_emb.cos") == Q3_VERDICT_DIFFERS);
    q3_tensors_close(golden);
}

/* A token's expert is another one: in the place of its first (the likeliest) the least likely one,
 * the second, or none at all; in the place of the last the best of those left. That is a near tie
 * if their logits, which are bfloat16, lie an ulp apart at most, for each of them may be rounded
 * otherwise. */
static void test_experts(const fixture *f, const q3_tensors *golden)
{
    const char name[] = "model.layers.2.mlp.topk_indices.output";
    const q3_entry *ids = q3_tensors_find(golden, name),
                   *gate = q3_tensors_find(golden, "model.layers.2.mlp.gate.output");
    size_t ties = 0;
    for (size_t t = 0; t < 24; t++) {
        int64_t id[4];
        float logits[14];
        size_t worst = 0, best = 14;
        int exponent;
        q3_entry_integers(id, ids, t * 4, 4);
        q3_entry_floats(logits, gate, t * 14, 14);
        for (size_t e = 0; e < 14; e++) {
            bool in = id[0] == (int64_t)e || id[1] == (int64_t)e || id[2] == (int64_t)e ||
                      id[3] == (int64_t)e;
            if (logits[e] < logits[worst]) worst = e;
            if (!in && (best == 14 || logits[e] > logits[best])) best = e;
        }
        float last = logits[id[3]], gap = last - logits[best];
        frexpf(last, &exponent);
        if (t == 0) {
            forgery wrong = {NULL, name, 0, 1, (double)((int64_t)worst - id[0]), 0, 0, 0, false};
            judge_layers_forged(f, golden, Q3_BF16, 3, &wrong);
            CHECK(said_of(name) == Q3_VERDICT_DIFFERS);
            forgery twice = {NULL, name, 0, 1, (double)(id[1] - id[0]), 0, 0, 0, false};
            judge_layers_forged(f, golden, Q3_BF16, 3, &twice);
            CHECK(said_of(name) == Q3_VERDICT_DIFFERS &&
                  strstr(lines.data, "stands twice") != NULL);
            forgery beyond = {NULL, name, 0, 1, (double)(14 - id[0]), 0, 0, 0, false};
            judge_layers_forged(f, golden, Q3_BF16, 3, &beyond);
            CHECK(said_of(name) == Q3_VERDICT_DIFFERS &&
                  strstr(lines.data, "is outside 0 to 13") != NULL);
        }
        if (gap > ldexpf(1, exponent - 8) || ties++ > 0) continue;
        forgery near = {NULL, name, t * 4 + 3, 1, (double)((int64_t)best - id[3]), 0, 0, 0, false};
        judge_layers_forged(f, golden, Q3_BF16, 3, &near);
        CHECKF(said_of(name) == Q3_VERDICT_NEAR_TIE, "token %lu: verdict %d", (unsigned long)t,
               (int)said_of(name));
        CHECK(strstr(lines.data, "\"reason\":\"other experts in 1 of ") != NULL);
        /* theirs is followed: what the file holds of that slot was computed by the old one */
        CHECK(strstr(lines.data, "{\"tap\":\"model.layers.2.mlp.experts.gate_proj.output\","
                                 "\"verdict\":\"differs\"") != NULL);
    }
    CHECK(ties > 0);
}

/* Two tokens of two channels, 1 -2 / 4 3 against 2 -2 / 6 3: ulp of the larger value, first of
 * equals. */
static void test_figures(void)
{
    const float ours[4] = {1, -2, 4, 3}, theirs[4] = {2, -2, 6, 3};
    q3_finding found_here = {.rank = 2};
    figures g;
    CHECK(q3_figures_begin(&g, &found_here, Q3_F32, 2, 2));
    for (size_t t = 0; t < 2; t++) q3_figures_row(&g, t, ours + 2 * t, theirs + 2 * t, 2);
    q3_figures_end(&g);
    const q3_finding *r = &found_here;
    CHECK(r->elements == 4 && r->differ == 2 && r->over_1_ulp == 2);
    /* 1 of 2^-22, 2 of 2^-21 */
    CHECK(r->max_ulp == 0x1p22 && r->max_at[0] == 0 && r->max_at[1] == 0);
    CHECK(fabs(r->gain - 39.0 / 30) < 1e-12 && r->offset == 0.75);
    CHECK(fabs(r->relative_l2 - sqrt(5.0 / 30)) < 1e-12);
    CHECK(r->worst_token == 1 && r->worst_channel == 0);
    CHECK(q3_ulp(1, Q3_BF16) == 0x1p-7 && q3_ulp(-1.99, Q3_F16) == 0x1p-10 &&
          q3_ulp(0, Q3_F16) == 0x1p-24);
}

/* ==== 3. Roundings ============================================================================ */

static void test_rounding(const fixture *f, const q3_tensors *golden)
{
    const char norm[] = "model.layers.2.input_layernorm.output",
               queries[] = "model.layers.0.self_attn.q_norm.output";
    forgery ulp = {NULL, norm, 0, 1 + 0x1p-8, 0, 3, 0, 0, false};
    judge_forged(f, golden, Q3_BF16, &ulp);
    CHECK(said_of(norm) == Q3_VERDICT_ROUNDING);
    CHECK(strstr(lines.data, "\"reason\":\"channel") == NULL); /* of the tensor as a whole */
    /* One channel of 120, in 24 tokens; half of one head in one token. Of the whole tensor that is
     * little; of the channel, of the head it is more than honest sums make (some 4 in 1000
     * elements). */
    forgery channel = {NULL, norm, 5, 1 + 0x1p-8, 0, 120, 0, 0, false},
            head = {NULL, queries, 0, 1 + 0x1p-8, 0, 1, 0, 12, false};
    judge_layers_forged(f, golden, Q3_BF16, 3, &channel);
    CHECK(said_of(norm) == Q3_VERDICT_ROUNDING &&
          strstr(lines.data, "\"reason\":\"channel 5: ") != NULL);
    judge_layers_forged(f, golden, Q3_BF16, 1, &head);
    CHECK(said_of(queries) == Q3_VERDICT_ROUNDING &&
          strstr(lines.data, "\"reason\":\"head 0: ") != NULL);
    const q3_entry *e = q3_tensors_find(golden, norm);
    forgery one = {NULL, norm, largest_element(e), 1 + 0x1p-8, 0, 0, 0, 0, false};
    judge_forged(f, golden, Q3_BF16, &one);
    CHECK(said_of(norm) == Q3_VERDICT_WITHIN);
}

/* Ours just below a power of two: of a norm, 3 ulp of theirs are 6 of ours. 1 and 2 of theirs are
 * 5, 1 and 3 are 7. */
static void test_binade(const fixture *f, const q3_tensors *golden)
{
    const char norm[] = "model.layers.0.input_layernorm.output";
    const q3_entry *e = q3_tensors_find(golden, norm);
    size_t at = 0;
    float value = 0;
    int exponent;
    for (; at < 24 * 120; at++) { /* eight ones */
        q3_entry_floats(&value, e, at, 1);
        if (frexp((double)value, &exponent) == 255.0 / 256) break;
    }
    CHECK(at < 24 * 120);
    double ulp = ldexp(1, exponent - 8);
    forgery inside = {NULL, norm, at, 1, 5 * ulp, 0, 0, 0, false},
            outside = {NULL, norm, at, 1, 7 * ulp, 0, 0, 0, false};
    judge_layers_forged(f, golden, Q3_BF16, 1, &inside);
    CHECK(said_of(norm) == Q3_VERDICT_WITHIN);
    judge_layers_forged(f, golden, Q3_BF16, 1, &outside);
    CHECK(said_of(norm) == Q3_VERDICT_DIFFERS);
}

/* Where ours is 0, an ulp of theirs is allowed, not its size: a sum that cancels hides nothing. */
static void test_zero(const fixture *f, const q3_tensors *golden)
{
    static const struct { const char *name; size_t end; } sums[] = {
        {"model.layers.0.post_attention_layernorm.input", 1}, {"model.layers.2.output", 3},
    };
    for (size_t i = 0; i < 2; i++) {
        const q3_entry *e = q3_tensors_find(golden, sums[i].name);
        size_t at = 0;
        float value = 1;
        for (; at < 24 * 120 && value != 0; at++) q3_entry_floats(&value, e, at, 1);
        CHECK(value == 0);
        for (double theirs = 1; theirs < 1e7; theirs *= 1000) {
            forgery forged = {NULL, sums[i].name, at - 1, 1, theirs, 0, 0, 0, false};
            judge_layers_forged(f, golden, Q3_BF16, sums[i].end, &forged);
            CHECKF(said_of(sums[i].name) == Q3_VERDICT_DIFFERS, "0 became %g: verdict %d", theirs,
                   (int)said_of(sums[i].name));
        }
    }
}

/* ==== 4. Other files ========================================================================== */

static void test_special(const fixture *f, const q3_tensors *golden)
{
    const char mlp[] = "model.layers.2.mlp.output";
    forgery nan = {NULL, mlp, 7, 1, (double)NAN, 0, 0, 0, false},
            infinite = {NULL, mlp, 7, 1, (double)INFINITY, 0, 0, 0, false};
    judge_forged(f, golden, Q3_F32, &nan);
    CHECKF(strcmp(first_bad, mlp) == 0 && count_of[Q3_VERDICT_NON_FINITE] == 1, "NaN: %s, %lu",
           first_bad, (unsigned long)count_of[Q3_VERDICT_NON_FINITE]);
    judge_forged(f, golden, Q3_F32, &infinite);
    CHECKF(strcmp(first_bad, mlp) == 0 && count_of[Q3_VERDICT_NON_FINITE] == 1, "infinity: %s",
           first_bad);
    forgery some = {"layernorm", NULL, 0, 1, 0, 0, 0, 0, false},
            logits = {NULL, NULL, 0, 1, 0, 0, 20, 0, false};
    judge_forged(f, golden, Q3_F32, &some);
    CHECKF(first_bad[0] == 0 && count_of[Q3_VERDICT_WITHIN] + count_of[Q3_VERDICT_EXACT] == 15,
           "norms alone: %s, %lu within", first_bad, (unsigned long)count_of[Q3_VERDICT_WITHIN]);
    CHECK(strstr(lines.data, "\"operators\":[\"model.embed_tokens.output\"]") != NULL);
    judge_forged(f, golden, Q3_F32, &logits);
    CHECKF(first_bad[0] == 0 && count_of[Q3_VERDICT_MISSING] == 0,
           "the last rows of the logits: %s", first_bad);
}

/* Of layer outputs alone, a twentieth is seen in the layer where it is. */
static void test_layers(const fixture *f, const q3_tensors *golden)
{
    char name[64];
    for (int i = 0; i < 5; i++) {
        snprintf(name, sizeof name, "model.layers.%d.output", i);
        forgery forged = {".output", name, largest_element(q3_tensors_find(golden, name)),
                          1.05,      0,    0,
                          0,         0,    false};
        judge_forged(f, golden, Q3_F32, &forged);
        CHECKF(strcmp(first_bad, name) == 0, "%s changed: first is \"%s\"", name, first_bad);
    }
}

/* A hundredth more over a whole tensor, no element of which need leave its bound: mlp.output, of
 * which experts' sums may be rounded in many ways. */
static void test_gain(const fixture *f, const q3_tensors *golden)
{
    const char mlp[] = "model.layers.2.mlp.output";
    forgery more = {NULL, mlp, 0, 1.01, 0, 1, 0, 0, true};
    judge_layers_forged(f, golden, Q3_BF16, 3, &more);
    CHECK(said_of(mlp) == Q3_VERDICT_DIFFERS);
    CHECK(strstr(lines.data, "over the whole tensor, which no rounding makes") != NULL);
    /* the whole, not what left its bound */
    CHECK(strstr(lines.data, "\"looks_like\":\"scaled by a factor 1.0") != NULL);
}

/* The logits and one layer alone: the operators of the layers between are named with their
 * layers. */
static void test_gap(const fixture *f, const q3_tensors *golden)
{
    forgery few = {"layers.1.output", NULL, 0, 1, 0, 0, 0, 0, false};
    judge_forged(f, golden, Q3_F32, &few);
    const char *line = strstr(lines.data, "{\"tap\":\"model.layers.1.output\"");
    const char *list = line != NULL ? strstr(line, "\"operators\":[") : NULL,
               *end = list != NULL ? strchr(list, ']') : NULL;
    static const char *const wanted[] = {
        "\"model.embed_tokens.output\"", "\"model.layers.0.self_attn.q_proj.output\"",
        "\"model.layers.0.output\"", "\"model.layers.1.mlp.gate_proj.output\""};
    for (size_t i = 0; i < sizeof wanted / sizeof wanted[0]; i++) {
        const char *at = list != NULL ? strstr(list, wanted[i]) : NULL;
        CHECKF(at != NULL && at < end, "%s is not named", wanted[i]);
    }
    CHECK(end != NULL &&
          (strstr(list, "layers.1.mlp.gate.") == NULL || strstr(list, "layers.1.mlp.gate.") > end));
}

/* As many tokens as heads, so that [H,T,hd] and [T,H,hd] both fit: the closer reading is taken. */
static void test_axes(const fixture *f, const q3_tensors *golden)
{
    enum { N = 6, HD = 24 };
    const char norm[] = "model.layers.0.self_attn.q_norm.output";
    q3_entry entries[] = {{"input_ids", Q3_I64, 1, {N}, NULL}, {norm, Q3_F32, 3, {N, N, HD}, NULL}};
    const q3_entry *ids = q3_tensors_find(golden, "input_ids"),
                   *heads = q3_tensors_find(golden, norm);
    for (int turned = 0; turned < 2; turned++) {
        q3_writer *writer;
        q3_error error;
        int64_t id[N];
        float head[HD];
        if (q3_writer_open(&writer, file_name, entries, 2, NULL, &error) != Q3_OK) exit(1);
        q3_entry_integers(id, ids, 0, N);
        if (q3_writer_integers(writer, 0, 0, id, N, &error) != Q3_OK) exit(1);
        for (size_t t = 0; t < N; t++)
            for (size_t h = 0; h < N; h++) {
                q3_entry_floats(head, heads, (t * N + h) * HD, HD);
                uint64_t at = (turned ? h * N + t : t * N + h) * HD;
                if (q3_writer_floats(writer, 1, at, head, HD, &error) != Q3_OK) exit(1);
            }
        if (q3_writer_commit(writer, &error) != Q3_OK) exit(1);
        judge_layers(f, file_name, Q3_F32, 1, &usual);
        remove(file_name);
        CHECKF(count_of[Q3_VERDICT_WITHIN] == 1 && first_bad[0] == 0, "turned %d: %s", turned,
               first_bad);
    }
}

/* Experts' rows in one axis: token by token, or expert by expert with those of one in any order
 * (here backwards). One element that is off is seen all the same. */
static void test_by_expert(const fixture *f, const q3_tensors *golden)
{
    enum { T = 24, A = 4, F = 56, E = 14 };
    const char act[] = "model.layers.0.mlp.experts.act_fn.output",
               topk[] = "model.layers.0.mlp.topk_indices.output";
    q3_entry entries[] = {{"input_ids", Q3_I64, 1, {T}, NULL}, {topk, Q3_I64, 2, {T, A}, NULL},
                          {act, Q3_F32, 2, {T * A, F}, NULL}};
    int64_t id[T], chosen[T * A];
    float row[F];
    q3_entry_integers(id, q3_tensors_find(golden, "input_ids"), 0, T);
    q3_entry_integers(chosen, q3_tensors_find(golden, topk), 0, T * A);
    /* the last two with an axis of 1, as mlx-lm has it */
    for (int way = 0; way < 5; way++) {
        q3_writer *writer;
        q3_error error;
        size_t order[T * A], count = 0;
        bool off = way == 2 || way == 4;
        if (way == 3) entries[2] = (q3_entry){act, Q3_F32, 3, {T * A, 1, F}, NULL};
        for (int64_t e = 0; e < E; e++)
            for (size_t i = T * A; i-- > 0;)
                if (chosen[i] == e) order[count++] = i;
        CHECK(count == T * A);
        if (q3_writer_open(&writer, file_name, entries, 3, NULL, &error) != Q3_OK) exit(1);
        if (q3_writer_integers(writer, 0, 0, id, T, &error) != Q3_OK) exit(1);
        if (q3_writer_integers(writer, 1, 0, chosen, T * A, &error) != Q3_OK) exit(1);
        for (size_t i = 0; i < T * A; i++) {
            q3_entry_floats(row, q3_tensors_find(golden, act), (way == 0 ? i : order[i]) * F, F);
            if (off && i == 50) row[3] += 0.01f;
            if (q3_writer_floats(writer, 2, i * F, row, F, &error) != Q3_OK) exit(1);
        }
        if (q3_writer_commit(writer, &error) != Q3_OK) exit(1);
        judge_layers(f, file_name, Q3_F32, 1, &usual);
        remove(file_name);
        CHECKF(strcmp(first_bad, off ? act : "") == 0, "way %d: %s", way, first_bad);
        /* of those given */
        CHECK(count_of[Q3_VERDICT_EXACT] + count_of[Q3_VERDICT_WITHIN] == (off ? 1 : 2));
        CHECK((strstr(lines.data, "[T*A,n], expert by expert") != NULL) == (way > 0));
        CHECK(!off || strstr(lines.data, "1 of 5376 elements outside the bound") != NULL);
    }
}

/* A token's experts in another order (turned by one) and nothing said of which they are: read by
 * content. With the ids, or with one element that is off, or with rows of two tokens that changed
 * places, it is seen. */
static void test_slots_turned(const fixture *f, const q3_tensors *golden)
{
    enum { T = 24, A = 4, F = 56 };
    const char act[] = "model.layers.0.mlp.experts.act_fn.output",
               topk[] = "model.layers.0.mlp.topk_indices.output";
    q3_entry entries[] = {{"input_ids", Q3_I64, 1, {T}, NULL}, {topk, Q3_I64, 2, {T, A}, NULL},
                          {act, Q3_F32, 3, {T, A, F}, NULL}};
    int64_t id[T], chosen[T * A];
    float row[F];
    q3_entry_integers(id, q3_tensors_find(golden, "input_ids"), 0, T);
    q3_entry_integers(chosen, q3_tensors_find(golden, topk), 0, T * A);
    for (int way = 0; way < 4; way++) {
        bool off = way == 1, with_ids = way == 2;
        q3_writer *writer;
        q3_error error;
        entries[1].name = with_ids ? topk : "position_ids";
        entries[1].rank = with_ids ? 2 : 1;
        if (q3_writer_open(&writer, file_name, entries, 3, NULL, &error) != Q3_OK) exit(1);
        if (q3_writer_integers(writer, 0, 0, id, T, &error) != Q3_OK) exit(1);
        for (int64_t t = 0; t < T && !with_ids; t++)
            if (q3_writer_integers(writer, 1, (uint64_t)t, &t, 1, &error) != Q3_OK) exit(1);
        if (with_ids && q3_writer_integers(writer, 1, 0, chosen, T * A, &error) != Q3_OK) exit(1);
        for (size_t i = 0; i < T * A; i++) {
            size_t from = i / A * A + (i + 1) % A;
            if (way == 3 && i < 2 * A && i % A == 0) from = A + 1 - i; /* of two tokens */
            q3_entry_floats(row, q3_tensors_find(golden, act), from * F, F);
            if (off && i == 50) row[3] += 0.01f;
            if (q3_writer_floats(writer, 2, i * F, row, F, &error) != Q3_OK) exit(1);
        }
        if (q3_writer_commit(writer, &error) != Q3_OK) exit(1);
        judge_layers(f, file_name, Q3_F32, 1, &usual);
        remove(file_name);
        CHECKF(strcmp(first_bad, way > 0 ? act : "") == 0, "way %d: %s", way, first_bad);
        CHECK((strstr(lines.data, "a token's experts in another order") != NULL) == (way < 2));
        CHECK(!off || strstr(lines.data, "1 of 5376 elements outside the bound") != NULL);
    }
}

int main(int argc, char **argv)
{
    static fixture f;
    char path[512];
    bool some = argc > 2 && strcmp(argv[2], "--some") == 0;
    CHECKF(some || argc >= 18, "%d cases, expected at least 16", argc - 2);
    if (argc < 2) return t_done("test_check");
    bool started = false;
    for (int i = 2 + some; i < argc; i++) {
        fixture_by_rule(&f, argv[i]);
        test_honest(&f, argv[i]);
        if (strstr(argv[i], "positions") != NULL) test_start(&f, argv[i]), started = true;
        fixture_close(&f);
    }
    if (some) {
        free(lines.data);
        return t_done("test_check");
    }
    CHECK(started);
    snprintf(path, sizeof path, "%s/tiny", argv[1]);
    fixture_from_folder(&f, path);
    snprintf(path, sizeof path, "%s/hf/tiny", argv[1]);
    test_honest(&f, path);
    q3_tensors *golden[2];
    q3_error error;
    for (q3_dtype d = Q3_F32; d <= Q3_BF16; d++) {
        snprintf(path, sizeof path, "%s/hf/tiny/taps-%s.safetensors", argv[1], dtypes[d]);
        if (q3_tensors_open(&golden[d], path, &error) != Q3_OK) {
            fprintf(stderr, "%s\n", error.text);
            return 1;
        }
    }
    /* From the shortest to the longest: what is wrong is found soon. */
    test_figures();
    test_axes(&f, golden[Q3_F32]);
    test_gain(&f, golden[Q3_BF16]);
    test_gap(&f, golden[Q3_F32]);
    test_binade(&f, golden[Q3_BF16]);
    test_zero(&f, golden[Q3_BF16]);
    test_rounding(&f, golden[Q3_BF16]);
    test_special(&f, golden[Q3_F32]);
    test_experts(&f, golden[Q3_BF16]);
    test_by_expert(&f, golden[Q3_F32]);
    test_tightness(&f, golden);
    test_slots_turned(&f, golden[Q3_F32]);
    test_layers(&f, golden[Q3_F32]);
    test_each_tensor(&f, golden[Q3_BF16], Q3_BF16);
    q3_tensors_close(golden[0]);
    q3_tensors_close(golden[1]);
    free(lines.data);
    fixture_close(&f);
    return t_done("test_check");
}
