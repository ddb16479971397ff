/* SPDX-License-Identifier: MIT */
/* How a known mistake is recognised (judge/attempt.c, judge/margins.c): by its own bound, which is
 * not that of the right operator; across midpoints of a coarser format; never as a rounding that is
 * allowed, where the verdict is `differs`. Each tensor is made in float32 by plain loops, as a
 * backend makes it, and judged among right ones of a first layer.
 *
 * test_attempt GOLDEN */
#include "judge/diagnose.h"
#include "judge/judge.h"
#include "model.h"

#include <math.h>

/* A config of golden/hf with weights by the rule, of which the test may change any, and all taps of
 * the first layer over T tokens from position 0. */
typedef struct scene {
    fixture f;
    q3_config c;
    q3_dtype dtype;
    int32_t ids[512];
    size_t T;
    float *tap[Q3_TAP_COUNT];
    int64_t *choice;
} scene;

static void *memory(size_t count, size_t size)
{
    void *block = calloc(count + 1, size);
    if (block == NULL) exit(1);
    return block;
}

static void scene_open(scene *s, const char *golden, const char *name, q3_dtype dtype, size_t T)
{
    char folder[512];
    memset(s, 0, sizeof *s);
    snprintf(folder, sizeof folder, "%s/hf/%s", golden, name);
    fixture_by_rule(&s->f, folder);
    s->c = *s->f.config;
    s->f.config = &s->c;
    s->dtype = dtype;
    s->T = T;
    for (size_t t = 0; t < T; t++)
        s->ids[t] = (int32_t)((t * t * 13 + t * 7 + 3) % s->c.vocab_size);
}

static void capture(void *user, const q3_tap *tap)
{
    scene *s = user;
    size_t T = s->T, H = s->c.num_attention_heads, t = tap->first;
    if (tap->layer != 0 || s->tap[tap->id] == NULL) return;
    if (tap->id == Q3_TAP_SCORES || tap->id == Q3_TAP_PROBS) { /* as [H,T,T] */
        for (size_t h = 0; h < H; h++)
            memcpy(s->tap[tap->id] + (h * T + t) * T, (float *)tap->data + h * tap->shape[2],
                   tap->shape[2] * sizeof(float));
    } else if (tap->id == Q3_TAP_TOPK_INDICES) {
        for (size_t i = 0; i < T * tap->shape[1]; i++) s->choice[i] = ((int32_t *)tap->data)[i];
    } else {
        memcpy(s->tap[tap->id], tap->data,
               tap->shape[0] * tap->shape[1] * (tap->rank > 2 ? tap->shape[2] : 1) * sizeof(float));
    }
}

/* What the library computes, after the test's changes. */
static void scene_run(scene *s)
{
    q3_error error;
    void *block;
    for (size_t i = 0; i < Q3_TAP_COUNT; i++) {
        size_t shape[3], rank = q3_tap_shape(shape, &s->c, (q3_tap_id)i, s->T);
        if (i == Q3_TAP_SCORES || i == Q3_TAP_PROBS)
            shape[0] = s->c.num_attention_heads, shape[1] = shape[2] = s->T;
        s->tap[i] = memory(shape[0] * shape[1] * (rank > 2 ? shape[2] : 1), sizeof(float));
    }
    s->choice = memory(s->T * s->c.num_experts_per_tok, sizeof *s->choice);
    q3_run run = {.dtype = s->dtype, .end_layer = 1, .rows = s->T, .chunk = s->T};
    q3_input input = {.tokens = s->ids, .count = s->T, .length = s->T};
    q3_state *state = fixture_state(&s->f, &run, &block);
    if (state == NULL || q3_forward(state, &input, capture, s, &error) != Q3_OK) exit(1);
    free(block);
}

static void scene_close(scene *s)
{
    for (size_t i = 0; i < Q3_TAP_COUNT; i++) free(s->tap[i]);
    free(s->choice);
    fixture_close(&s->f);
}

static void finding_of(q3_finding *out, const scene *s, q3_tap_id id, uint64_t hidden)
{
    q3_judge *j = NULL;
    q3_report *report = NULL;
    q3_error error;
    char names[Q3_TAP_COUNT][Q3_TAP_NAME_SIZE];
    const q3_judge_options options = {.end_layer = 1};
    q3_dtype dtype = s->dtype;
    q3_status status = q3_judge_open(&j, &s->c, &options, &error);
    if (status == Q3_OK) status = q3_judge_tokens(j, s->ids, s->T, &error);
    for (size_t i = 0; i <= id && status == Q3_OK; i++) {
        q3_entry e = {.name = names[i], .dtype = Q3_F32, .data = s->tap[i]};
        size_t shape[3];
        if ((hidden >> i & 1) || !q3_tap_exists(&s->c, 0, 1, (q3_tap_id)i, 0)) continue;
        q3_tap_name(names[i], (q3_tap_id)i, 0);
        e.rank = q3_tap_shape(shape, &s->c, (q3_tap_id)i, s->T);
        if (i == Q3_TAP_SCORES || i == Q3_TAP_PROBS)
            shape[0] = s->c.num_attention_heads, shape[1] = shape[2] = s->T;
        for (size_t k = 0; k < e.rank; k++) e.shape[k] = shape[k];
        if (i == Q3_TAP_TOPK_INDICES) e.dtype = Q3_I64, e.data = s->choice;
        status = q3_judge_tensor(j, &e, &error);
    }
    if (status == Q3_OK) status = q3_judge_prepare(j, &dtype, &error);
    if (status == Q3_OK) status = q3_judge_run(j, s->f.weights, s->dtype, &report, &error);
    CHECKF(status == Q3_OK, "%s", error.text);
    memset(out, 0, sizeof *out);
    for (size_t i = 0; status == Q3_OK && i < q3_report_count(report); i++)
        if (strcmp(q3_report_finding(report, i)->name, names[id]) == 0)
            *out = *q3_report_finding(report, i);
    q3_report_close(report);
    q3_judge_close(j);
}

static void expect(const scene *s, const char *what, q3_tap_id id, uint64_t hidden,
                   const char *want)
{
    q3_finding f;
    finding_of(&f, s, id, hidden);
    CHECKF(f.verdict == Q3_VERDICT_DIFFERS && strncmp(f.looks_like, want, strlen(want)) == 0,
           "%s, %zu tokens: %s, looks like \"%s\", want \"%s\"", what, s->T,
           q3_verdict_name(f.verdict), f.looks_like, want);
}

static float D(const scene *s, double x)
{
    return q3_round(x, s->dtype);
}

/* ==== Attention, in float32 =================================================================== */

typedef struct attention_options {
    bool all_keys; /* the window is ignored */
    bool tiled;    /* query head h reads key head h mod K */
    bool fused;    /* scores and probabilities are not rounded, nor tensors of their own */
} attention_options;

/* From q_rope, k_rope and v_proj: scores and probs [H,T,T], values [T,H,hd]. */
static void attention(scene *s, attention_options o)
{
    size_t T = s->T, H = s->c.num_attention_heads, K = s->c.num_key_value_heads, hd = s->c.head_dim;
    const float *q = s->tap[Q3_TAP_Q_ROPE], *k = s->tap[Q3_TAP_K_ROPE], *v = s->tap[Q3_TAP_V_PROJ];
    float scale = (float)(1 / sqrt((double)hd));
    for (size_t h = 0; h < H; h++)
        for (size_t t = 0; t < T; t++) {
            float score[512], sum = 0, most = -INFINITY;
            size_t window = s->c.sliding_window, head = o.tiled ? h % K : h / (H / K);
            size_t low = window != 0 && t + 1 > window && !o.all_keys ? t + 1 - window : 0;
            for (size_t i = low; i <= t; i++) {
                float dot = 0;
                for (size_t d = 0; d < hd; d++)
                    dot += q[(t * H + h) * hd + d] * k[(i * K + head) * hd + d];
                score[i] = dot * scale;
                if (o.fused) continue;
                score[i] = D(s, (double)(D(s, (double)dot) * scale));
                if (!o.all_keys) s->tap[Q3_TAP_SCORES][(h * T + t) * T + i] = score[i];
            }
            for (size_t i = low; i <= t; i++) most = score[i] > most ? score[i] : most;
            for (size_t i = low; i <= t; i++) sum += expf(score[i] - most);
            for (size_t i = low; i <= t; i++) {
                score[i] = expf(score[i] - most) / sum;
                if (!o.fused) score[i] = D(s, (double)score[i]);
                if (!o.fused) s->tap[Q3_TAP_PROBS][(h * T + t) * T + i] = score[i];
            }
            for (size_t d = 0; d < hd; d++) {
                float y = 0;
                for (size_t i = low; i <= t; i++) y += score[i] * v[(i * K + head) * hd + d];
                s->tap[Q3_TAP_O_PROJ_INPUT][(t * H + h) * hd + d] = D(s, (double)y);
            }
        }
}

#define HIDDEN(tap) ((uint64_t)1 << Q3_TAP_##tap)

/* Few keys of a window in bfloat16: what is right has one probability, 1, and no noise. */
static void test_window(const char *golden)
{
    static const size_t tokens[] = {3, 4, 6, 12, 40};
    const uint64_t inner = HIDDEN(SCORES) | HIDDEN(PROBS);
    for (size_t i = 0; i < 10; i++) {
        scene s;
        scene_open(&s, golden, "window", Q3_BF16, tokens[i / 2]);
        s.c.sliding_window = i % 2 + 1;
        scene_run(&s);
        attention(&s, (attention_options){.all_keys = true});
        expect(&s, "window ignored", Q3_TAP_PROBS, 0, "window ignored");
        expect(&s, "window ignored, scores hidden", Q3_TAP_PROBS, HIDDEN(SCORES), "window ignored");
        expect(&s, "window ignored, both hidden", Q3_TAP_O_PROJ_INPUT, inner, "window ignored");
        attention(&s, (attention_options){.all_keys = true, .fused = true});
        expect(&s, "window ignored, fused", Q3_TAP_O_PROJ_INPUT, inner, "window ignored");
        scene_close(&s);
    }
}

static void test_tiled(const char *golden)
{
    static const char want[] = "KV head mapping tiled (h mod K), explains 100 %";
    static const size_t tokens[] = {2, 5, 12, 40};
    const uint64_t inner = HIDDEN(SCORES) | HIDDEN(PROBS);
    for (size_t i = 0; i < 8; i++) {
        scene s;
        scene_open(&s, golden, "base", i % 2 ? Q3_F32 : Q3_BF16, tokens[i / 2]);
        scene_run(&s);
        attention(&s, (attention_options){.tiled = true});
        expect(&s, "tiled", Q3_TAP_SCORES, 0, want);
        expect(&s, "tiled, scores hidden", Q3_TAP_PROBS, HIDDEN(SCORES), want);
        expect(&s, "tiled, both hidden", Q3_TAP_O_PROJ_INPUT, inner, want);
        attention(&s, (attention_options){.tiled = true, .fused = true});
        expect(&s, "tiled, fused", Q3_TAP_O_PROJ_INPUT, inner, want);
        scene_close(&s);
    }
}

/* ==== Linear maps ============================================================================= */

/* The bfloat16 weight times 2^-shift. */
static uint8_t *scaled(q3_tensor w, size_t count, unsigned shift)
{
    uint8_t *bytes = memory(count, 2);
    const uint8_t *from = w.data;
    for (size_t i = 0; i < count; i++) {
        unsigned u = from[2 * i] | (unsigned)from[2 * i + 1] << 8;
        if ((u & 0x7FFF) != 0) u -= shift << 7;
        bytes[2 * i] = (uint8_t)(u & 0xFF);
        bytes[2 * i + 1] = (uint8_t)(u >> 8);
    }
    return bytes;
}

static void linear(const scene *s, float *y, const float *x, q3_tensor weight, size_t N, size_t K)
{
    float *w = memory(N * K, sizeof *w);
    q3_widen(w, weight, 0, N * K, s->dtype);
    for (size_t t = 0; t < s->T; t++)
        for (size_t o = 0; o < N; o++) {
            float sum = 0;
            for (size_t k = 0; k < K; k++) sum += w[o * K + k] * x[t * K + k];
            y[t * N + o] = D(s, (double)sum);
        }
    free(w);
}

/* Keys that are much smaller than values, so that the right bound is, too. */
static void test_swapped(const char *golden)
{
    for (size_t i = 0; i < 2; i++) {
        scene s;
        scene_open(&s, golden, "base", i == 0 ? Q3_BF16 : Q3_F32, 40);
        size_t N = s.c.num_key_value_heads * s.c.head_dim, M = s.c.hidden_size;
        uint8_t *small = scaled(s.f.layers[0].k_proj, N * M, 12);
        s.f.layers[0].k_proj.data = small;
        scene_run(&s);
        const float *x = s.tap[Q3_TAP_INPUT_LAYERNORM];
        linear(&s, s.tap[Q3_TAP_K_PROJ], x, s.f.layers[0].v_proj, N, M);
        expect(&s, "values' weight", Q3_TAP_K_PROJ, 0, "weights of k_proj and v_proj swapped");
        scene_close(&s);
        free(small);
    }
}

/* ==== Midpoints =============================================================================== */

/* The router's softmax in float32, rounded to bfloat16: of thousands some are at a midpoint. */
static void test_router(const char *golden)
{
    static const char *const names[] = {"base", "wide-router"};
    for (size_t i = 0; i < 4; i++) {
        scene s;
        scene_open(&s, golden, names[i % 2], i < 2 ? Q3_BF16 : Q3_F32, 400);
        scene_run(&s);
        size_t E = s.c.num_experts, flips = 0;
        for (size_t t = 0; t < s.T; t++) {
            const float *x = s.tap[Q3_TAP_GATE] + t * E;
            float *p = s.tap[Q3_TAP_ROUTER_PROBS] + t * E, most = x[0], sum = 0;
            for (size_t e = 0; e < E; e++) most = x[e] > most ? x[e] : most;
            for (size_t e = 0; e < E; e++) sum += expf(x[e] - most);
            for (size_t e = 0; e < E; e++) {
                float right = q3_round((double)p[e], Q3_BF16);
                /* another order of the sum: within its noise, an ulp or two of float32 */
                double noise = e % 2 ? 0x1p-22 : -0x1p-22;
                p[e] = q3_round((double)(expf(x[e] - most) / sum) * (1 + noise), Q3_BF16);
                flips += right != p[e];
            }
        }
        CHECK(flips > 0 || i % 2 == 0);
        expect(&s, names[i % 2], Q3_TAP_ROUTER_PROBS, 0,
               "router probabilities rounded to bfloat16, explains 100 %");
        scene_close(&s);
    }
}

/* ==== Roundings that are allowed ============================================================== */

/* What the diagnosis says of y in the place of a tap, all taps before it given. */
static void ask(char text[200], const scene *s, q3_tap_id id, const float *y, bool differs)
{
    q3_error error;
    char cause[160];
    size_t shape[3], rank = q3_tap_shape(shape, &s->c, id, s->T);
    size_t n = shape[1] * (rank > 2 ? shape[2] : 1);
    double *bound = memory(s->T * n, sizeof *bound);
    evidence e = {.config = &s->c, .weights = s->f.weights, .dtype = s->dtype, .T = s->T,
                  .ids = s->ids, .input = s->tap[Q3_TAP_EMBED_TOKENS], .id = id, .row = n,
                  .ours = s->tap[id], .theirs = y, .bound = bound, .differs = differs};
    for (size_t i = 0; i < s->T * n; i++) bound[i] = fabs((double)s->tap[id][i]) / 16 + 1e-6;
    for (size_t i = 0; i < id; i++) {
        bool square = i == Q3_TAP_SCORES || i == Q3_TAP_PROBS;
        e.given[i] = !square && q3_tap_exists(&s->c, 0, 1, (q3_tap_id)i, 0);
        if (e.given[i]) e.tap[i] = s->tap[i];
    }
    CHECK(q3_diagnose(text, cause, &e, NULL, &error) == Q3_OK);
    free(bound);
}

/* Roundings that are left out explain a `rounding`, and no `differs`, whose elements may all be
 * within the bound (a gain). */
static void test_allowed(const char *golden)
{
    scene s;
    char text[200];
    scene_open(&s, golden, "base", Q3_BF16, 24);
    scene_run(&s);
    size_t M = s.c.hidden_size, hd = s.c.head_dim, row = s.c.num_attention_heads * hd;
    float *y = memory(s.T * (row + M), sizeof *y);
    const float *x = s.tap[Q3_TAP_EMBED_TOKENS], *branch = s.tap[Q3_TAP_O_PROJ];
    for (size_t i = 0; i < s.T * M; i++) y[i] = x[i] + branch[i];
    ask(text, &s, Q3_TAP_POST_ATTENTION_INPUT, y, false);
    CHECKF(strncmp(text, "residual sum not rounded", 24) == 0, "sum: %s", text);
    ask(text, &s, Q3_TAP_POST_ATTENTION_INPUT, y, true);
    CHECKF(text[0] == 0, "sum: %s", text);

    const float *q = s.tap[Q3_TAP_Q_NORM], *cos = s.tap[Q3_TAP_COS], *sin = s.tap[Q3_TAP_SIN];
    for (size_t i = 0; i < s.T * row; i++) {
        size_t d = i % hd, at = i / row * hd + d;
        double other = (double)(d < hd / 2 ? -q[i + hd / 2] : q[i - hd / 2]);
        y[i] = D(&s, (double)q[i] * (double)cos[at] + other * (double)sin[at]);
    }
    ask(text, &s, Q3_TAP_Q_ROPE, y, false);
    CHECKF(strncmp(text, "RoPE with one rounding", 22) == 0, "RoPE: %s", text);
    ask(text, &s, Q3_TAP_Q_ROPE, y, true);
    CHECKF(text[0] == 0, "RoPE: %s", text);
    free(y);
    scene_close(&s);
}

/* ==== Layers ================================================================================== */

enum { LAYERS = 5 }; /* of golden/tiny */

/* All values of a tensor of the file, which is float32. */
static float *floats_of(const q3_tensors *file, const char *name, size_t *count)
{
    const q3_entry *e = q3_tensors_find(file, name);
    if (e == NULL) exit(1);
    *count = 1;
    for (size_t k = 0; k < e->rank; k++) *count *= (size_t)e->shape[k];
    float *values = memory(*count, sizeof *values);
    q3_entry_floats(values, e, 0, *count);
    return values;
}

/* A layer's q_rope: q_norm ('m', RoPE is missing), the other direction ('d'), each head reversed
 * ('?', which nothing explains). */
static float *other_rope(const q3_tensors *file, const q3_config *c, size_t layer, char how)
{
    char name[80];
    size_t count, hd = c->head_dim, row = c->num_attention_heads * hd;
    float *cos = floats_of(file, "model.rotary_emb.cos", &count);
    float *sin = floats_of(file, "model.rotary_emb.sin", &count);
    snprintf(name, sizeof name, "model.layers.%zu.self_attn.q_rope.output", layer);
    float *right = floats_of(file, name, &count);
    snprintf(name, sizeof name, "model.layers.%zu.self_attn.q_norm.output", layer);
    float *x = floats_of(file, name, &count), *y = memory(count, sizeof *y);
    for (size_t i = 0; i < count; i++) {
        size_t d = i % hd, at = i / row * hd + d;
        float other = d < hd / 2 ? x[i + hd / 2] : -x[i - hd / 2];
        if (how == 'm') y[i] = x[i];
        else y[i] = how == 'd' ? x[i] * cos[at] + other * sin[at] : right[i - d + hd - 1 - d];
    }
    free(cos), free(sin), free(right), free(x);
    return y;
}

static void expect_told(const q3_report *report, const char *how, const char *const *want,
                        const char *const *causes)
{
    size_t found = 0;
    for (size_t i = 0; i < q3_report_count(report); i++) {
        const q3_finding *f = q3_report_finding(report, i);
        if (strstr(f->name, "q_rope.output") == NULL) continue;
        const char *text = want[f->layer], *cause = causes[f->layer];
        bool none = text[0] == 0 && f->looks_like[0] == 0;
        CHECKF(none || (text[0] != 0 && strncmp(f->looks_like, text, strlen(text)) == 0),
               "%s, layer %zu: looks like \"%s\", want \"%s\"", how, f->layer, f->looks_like,
               text);
        CHECKF(strcmp(f->cause, cause) == 0, "%s, layer %zu: cause \"%s\", want \"%s\"", how,
               f->layer, f->cause, cause);
        found++;
    }
    CHECK(found == LAYERS);
}

/* Hugging Face's tensors of golden/tiny, of which some layers have another q_rope ('.': its
 * own). */
static void test_layers(const char *golden, const char *how, const char *const *want,
                        const char *const *causes)
{
    fixture f;
    q3_tensors *file = NULL;
    q3_judge *j = NULL;
    q3_report *report = NULL;
    q3_error error;
    char path[512];
    float *own[LAYERS] = {NULL};
    snprintf(path, sizeof path, "%s/tiny", golden);
    fixture_from_folder(&f, path);
    snprintf(path, sizeof path, "%s/hf/tiny/taps-float32.safetensors", golden);
    q3_status status = q3_tensors_open(&file, path, &error);
    if (status == Q3_OK) status = q3_judge_open(&j, f.config, NULL, &error);
    for (size_t i = 0; status == Q3_OK && i < q3_tensors_count(file); i++) {
        q3_entry e = *q3_tensors_at(file, i);
        unsigned layer = 0;
        bool rope = sscanf(e.name, "model.layers.%u.self_attn.q_rope.output", &layer) == 1 &&
                    strstr(e.name, "q_rope") != NULL;
        if (rope && how[layer] != '.')
            e.data = own[layer] = other_rope(file, f.config, layer, how[layer]);
        if (strcmp(e.name, "input_ids") != 0) {
            status = q3_judge_tensor(j, &e, &error);
            continue;
        }
        int64_t ids[64];
        int32_t tokens[64];
        q3_entry_integers(ids, &e, 0, (size_t)e.shape[0]);
        for (size_t t = 0; t < e.shape[0]; t++) tokens[t] = (int32_t)ids[t];
        status = q3_judge_tokens(j, tokens, (size_t)e.shape[0], &error);
    }
    q3_dtype dtype = Q3_F32;
    if (status == Q3_OK) status = q3_judge_prepare(j, &dtype, &error);
    if (status == Q3_OK) status = q3_judge_run(j, f.weights, Q3_F32, &report, &error);
    CHECKF(status == Q3_OK, "%s", error.text);
    if (status == Q3_OK) expect_told(report, how, want, causes);
    q3_report_close(report);
    q3_judge_close(j);
    q3_tensors_close(file);
    for (size_t i = 0; i < LAYERS; i++) free(own[i]);
    fixture_close(&f);
}

/* A mistake in every layer is told once and is the cause in each; another one in a later layer has
 * its own text; what is right in between, or is not explained, changes nothing. */
static void test_told(const char *golden)
{
#define MISSING "RoPE missing"
#define DIRECTION "RoPE in the other direction (sign of sin)"
    test_layers(golden, "mmmmm", (const char *[]){MISSING, "", "", "", ""},
                (const char *[]){MISSING, MISSING, MISSING, MISSING, MISSING});
    test_layers(golden, "mdmd.", (const char *[]){MISSING, DIRECTION, "", "", ""},
                (const char *[]){MISSING, DIRECTION, MISSING, DIRECTION, ""});
    test_layers(golden, ".?mdm", (const char *[]){"", "", MISSING, DIRECTION, ""},
                (const char *[]){"", "", MISSING, DIRECTION, MISSING});
}

int main(int argc, char **argv)
{
    if (argc != 2) return 2;
    test_window(argv[1]);
    test_tiled(argv[1]);
    test_swapped(argv[1]);
    test_router(argv[1]);
    test_allowed(argv[1]);
    test_told(argv[1]);
    return t_done("attempt");
}
