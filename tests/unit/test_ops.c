/* SPDX-License-Identifier: MIT */
/* Every public operator against golden/ops: what Hugging Face's modules gave for the same input.
 *
 *   test_ops [GOLDEN FOLDER]     default: golden
 *
 * Expected values are Hugging Face's, whose linear maps, norms and softmaxes add in float32 in an
 * unspecified order; ours add in float64. So each element has a bound: what Hugging Face's float32
 * arithmetic can have lost before the last rounding (`loss`), and one unit in the last place of the
 * dtype D, because two values on two sides of a rounding boundary end one unit apart:
 *   |ours - theirs| <= loss + ulp_D.
 * In a two-byte dtype an element differs at all only where a boundary falls between the two, which
 * happens with probability |difference| / ulp_D. `usual` is the size of that difference to expect
 * of an honest sum (a random walk, not the worst case), and the number of elements that differ must
 * stay below expected + 4 root(expected) + 2. A rounding point in the wrong place changes a tenth
 * of the elements or more. Where the arithmetic is exact the bits must be equal: embedding, RoPE's
 * application, sums, products, the weighted sum of the experts. e is 2^-24 below.
 * "Seen" in a comment is the largest error seen as a share of its bound, in float32; in the
 * two-byte dtypes 9 of 59,500 elements differ, by one unit. The program prints both. */
#include "qwen3moe.h"
#include "rule.h"
#include "t.h"

#include <math.h>

#define E24 (1.0 / 16777216.0)
#define COUNT(array) (sizeof(array) / sizeof *(array))

static const char *const dtype_names[] = {"float32", "bfloat16", "float16"};

/* One case of one file in one dtype, and the memory it took. */
typedef struct op_case {
    const q3_tensors *file;
    const char *operator_name;
    const char *about; /* the case's JSON object */
    size_t number;
    q3_dtype dtype;
    void *memory[64];
    size_t used;
} op_case;

/* What was seen of one operator's output in one dtype, for the report. */
typedef struct op_seen {
    char name[64];
    size_t elements[3], differ[3];
    double most[3]; /* largest error as a share of its bound */
} op_seen;

static op_seen seen[64];
static size_t seen_count;

static void die(const op_case *c, const char *what, const char *name)
{
    fprintf(stderr, "%s case %lu: %s: %s\n", c->operator_name, (unsigned long)c->number, what,
            name);
    exit(1);
}

static void *take(op_case *c, size_t count, size_t size)
{
    void *p = calloc(count > 0 ? count : 1, size);
    if (p == NULL || c->used == COUNT(c->memory)) die(c, "memory", "");
    c->memory[c->used++] = p;
    return p;
}

/* NaN at first, so that an element which is never written shows. */
static float *floats(op_case *c, size_t count)
{
    float *values = take(c, count, sizeof *values);
    for (size_t i = 0; i < count; i++) values[i] = NAN;
    return values;
}

static double *doubles(op_case *c, size_t count)
{
    return take(c, count, sizeof(double));
}

static const q3_entry *find(const op_case *c, const char *field)
{
    char name[128];
    snprintf(name, sizeof name, "case%lu.%s.%s", (unsigned long)c->number, dtype_names[c->dtype],
             field);
    return q3_tensors_find(c->file, name);
}

static size_t elements(const q3_entry *entry)
{
    uint64_t n = 1;
    for (size_t i = 0; i < entry->rank; i++) n *= entry->shape[i];
    return (size_t)n;
}

/* A tensor of the file as floats; its number of elements must be `count`. */
static float *load(op_case *c, const char *field, size_t count)
{
    const q3_entry *entry = find(c, field);
    if (entry == NULL || elements(entry) != count) die(c, "absent, or of another size", field);
    float *values = floats(c, count);
    q3_entry_floats(values, entry, 0, count);
    return values;
}

static int32_t *load_ids(op_case *c, const char *field, size_t count)
{
    const q3_entry *entry = find(c, field);
    if (entry == NULL || elements(entry) != count) die(c, "absent, or of another size", field);
    int64_t *wide = take(c, count, sizeof *wide);
    int32_t *ids = take(c, count, sizeof *ids);
    q3_entry_integers(wide, entry, 0, count);
    for (size_t i = 0; i < count; i++) ids[i] = (int32_t)wide[i];
    return ids;
}

/* A weight as it lies in the file; data NULL if it is not there. */
static q3_tensor weight(const op_case *c, const char *field)
{
    const q3_entry *entry = find(c, field);
    q3_tensor tensor = {NULL, c->dtype};
    if (entry != NULL) tensor.data = entry->data;
    return tensor;
}

/* The text behind "key": in the case's JSON object, or NULL. */
static const char *scalar_text(const op_case *c, const char *key)
{
    char quoted[64];
    snprintf(quoted, sizeof quoted, "\"%s\": ", key);
    const char *at = strstr(c->about, quoted);
    return at == NULL ? NULL : at + strlen(quoted);
}

static double scalar_or(const op_case *c, const char *key, double absent)
{
    const char *text = scalar_text(c, key);
    return text == NULL ? absent : strtod(text, NULL);
}

static double scalar(const op_case *c, const char *key)
{
    if (scalar_text(c, key) == NULL) die(c, "no scalar", key);
    return scalar_or(c, key, 0.0);
}

static size_t size_of(const op_case *c, const char *key)
{
    return (size_t)scalar(c, key);
}

static double magnitude(double x)
{
    return x < 0.0 ? -x : x;
}

/* 2^exponent, exponent -1022 to 1023. */
static double power(int exponent)
{
    uint64_t u = (uint64_t)(exponent + 1023) << 52;
    double x;
    memcpy(&x, &u, 8);
    return x;
}

/* The root of x >= 0, by Newton; good enough for bounds. */
static double root(double x)
{
    double r = x < 1.0 ? 1.0 : x;
    for (int i = 0; i < 200 && x > 0.0; i++) r = 0.5 * (r + x / r);
    return x > 0.0 ? r : 0.0;
}

/* The distance of neighbours in D around x. */
static double ulp(double x, q3_dtype dtype)
{
    const int digits[] = {24, 8, 11}, lowest[] = {-126, -126, -14};
    uint64_t u;
    memcpy(&u, &x, 8);
    int exponent = (int)(u >> 52 & 0x7FF) - 1023; /* 2^exponent <= |x| */
    if (exponent < lowest[dtype]) exponent = lowest[dtype];
    return power(exponent - digits[dtype] + 1);
}

static op_seen *seen_of(const op_case *c, const char *what)
{
    char name[sizeof seen->name];
    snprintf(name, sizeof name, "%s %s", c->operator_name, what);
    for (size_t i = 0; i < seen_count; i++) {
        if (strcmp(seen[i].name, name) == 0) return &seen[i];
    }
    if (seen_count == COUNT(seen)) die(c, "too many outputs", what);
    memcpy(seen[seen_count].name, name, sizeof name);
    return &seen[seen_count++];
}

static void miss(const op_case *c, const char *what, size_t i, double got, double want,
                 double bound)
{
    CHECKF(false, "%s case %lu (%.60s) %s %s[%lu]: got %a, want %a, at most %.3g apart",
           c->operator_name, (unsigned long)c->number, c->about, dtype_names[c->dtype], what,
           (unsigned long)i, got, want, bound);
}

/* Equal bits; a NaN equals a NaN, but ours is the quiet one. */
static void same(op_case *c, const char *what, const float *got, const float *want, size_t n)
{
    op_seen *s = seen_of(c, what);
    for (size_t i = 0; i < n; i++) {
        uint32_t a, b, nan = 0x7FC00000;
        memcpy(&a, got + i, 4);
        memcpy(&b, want + i, 4);
        bool equal = want[i] != want[i] ? a == nan : a == b;
        if (!equal) {
            miss(c, what, i, (double)got[i], (double)want[i], 0.0);
            s->differ[c->dtype]++;
            return;
        }
    }
    CHECK(n > 0);
    s->elements[c->dtype] += n;
}

static void same_ids(op_case *c, const char *what, const int32_t *got, const int32_t *want,
                     size_t n)
{
    for (size_t i = 0; i < n; i++) {
        if (got[i] != want[i]) {
            miss(c, what, i, (double)got[i], (double)want[i], 0.0);
            return;
        }
    }
    CHECK(n > 0);
}

/* Within loss + ulp_D, element by element; usual NULL: no limit on how many differ. */
static void close_to(op_case *c, const char *what, const float *got, const float *want, size_t n,
                     const double *loss, const double *usual)
{
    op_seen *s = seen_of(c, what);
    double expected = 0.0;
    size_t differ = 0;
    for (size_t i = 0; i < n; i++) {
        double g = (double)got[i], w = (double)want[i];
        if (isnan(w) || isinf(w)) {
            if (!(isnan(w) ? isnan(g) : g == w)) {
                miss(c, what, i, g, w, 0.0);
                return;
            }
            continue;
        }
        double unit = ulp(magnitude(g) > magnitude(w) ? g : w, c->dtype);
        double bound = loss[i] + unit, error = magnitude(g - w);
        if (!(error <= bound)) {
            miss(c, what, i, g, w, bound);
            return;
        }
        differ += g != w;
        if (error / bound > s->most[c->dtype]) s->most[c->dtype] = error / bound;
        if (usual != NULL) expected += usual[i] < unit ? usual[i] / unit : 1.0;
    }
    s->elements[c->dtype] += n;
    s->differ[c->dtype] += differ;
    double most = expected + 4.0 * root(expected) + 2.0;
    CHECKF(usual == NULL || c->dtype == Q3_F32 || (double)differ <= most,
           "%s case %lu %s %s: %lu of %lu elements differ, at most %.1f expected", c->operator_name,
           (unsigned long)c->number, dtype_names[c->dtype], what, (unsigned long)differ,
           (unsigned long)n, most);
    CHECK(n > 0);
}

/* ==== Operators ============================================================================== */

static void embedding(op_case *c)
{
    size_t T = size_of(c, "T"), V = size_of(c, "V"), M = size_of(c, "M");
    float *y = floats(c, T * M);
    q3_embedding(y, load_ids(c, "ids", T), weight(c, "weight"), T, V, M, c->dtype);
    same(c, "y", y, load(c, "y", T * M), T * M);
}

/* Hugging Face squares, means, adds eps, takes rsqrt and multiplies in float32: a relative loss of
 * 1 e for the squares, (2 + 4 sqrt M) e at most in their sum, of which half reaches the root, 2 e
 * for rsqrt and 1 e for the product: (5 + 2 sqrt M) e. Then the value is rounded to D, and may land
 * one unit of D away (times the weight) before the second rounding. Usually all together loses 2 e,
 * at either rounding. Seen: 0.23. */
static void norm(op_case *c)
{
    bool heads = strcmp(c->operator_name, "qk_norm") == 0;
    size_t M = size_of(c, heads ? "hd" : "M");
    size_t T = size_of(c, "T") * (heads ? size_of(c, "H") : 1), n = T * M;
    float *y = floats(c, n), *x = load(c, "x", n), *want = load(c, "y", n);
    float *w = load(c, "weight", M);
    double *loss = doubles(c, n), *usual = doubles(c, n);
    q3_rmsnorm(y, x, weight(c, "weight"), T, M, (float)scalar(c, "eps"), c->dtype);
    for (size_t i = 0; i < n; i++) {
        double size = magnitude((double)want[i]), factor = magnitude((double)w[i % M]);
        loss[i] = (5.0 + 2.0 * root((double)M)) * E24 * size +
                  factor * ulp(size / factor, c->dtype);
        usual[i] = 4.0 * E24 * size;
    }
    close_to(c, "y", y, want, n, loss, usual);
    q3_rmsnorm(x, x, weight(c, "weight"), T, M, (float)scalar(c, "eps"), c->dtype);
    same(c, "in place", x, y, n);
}

/* A float32 sum of C products in any order loses at most (2 + 4 sqrt C) e sum |w x|: the worst case
 * grows with C, but roundings are as often up as down, and 4 sqrt C held beside massive channels
 * and on several libraries. Usually it loses e sqrt(C) times the root of the sum of squares. Seen,
 * in all operators that use this: 0.23. */
static void sum_bounds(double *loss, double *usual, const float *x, const float *w,
                       const float *bias, size_t N, size_t C)
{
    for (size_t o = 0; o < N; o++) {
        double sum = bias == NULL ? 0.0 : magnitude((double)bias[o]), squares = sum * sum;
        for (size_t k = 0; k < C; k++) {
            double product = magnitude((double)x[k] * (double)w[o * C + k]);
            sum += product;
            squares += product * product;
        }
        loss[o] = (2.0 + 4.0 * root((double)C)) * E24 * sum;
        usual[o] = root((double)C * squares) * E24;
    }
}

static void linear(op_case *c)
{
    bool head = strcmp(c->operator_name, "lm_head") == 0;
    size_t T = size_of(c, "T"), N = size_of(c, head ? "V" : "N");
    size_t C = size_of(c, head ? "M" : "K"); /* the golden file's name of it */
    float *y = floats(c, T * N), *x = load(c, "x", T * C), *w = load(c, "weight", N * C);
    float *bias = find(c, "bias") == NULL ? NULL : load(c, "bias", N);
    double *loss = doubles(c, T * N), *usual = doubles(c, T * N);
    q3_linear(y, x, weight(c, "weight"), weight(c, "bias"), T, N, C, c->dtype);
    for (size_t t = 0; t < T; t++) {
        sum_bounds(loss + t * N, usual + t * N, x + t * C, w, bias, N, C);
    }
    close_to(c, "y", y, load(c, "y", T * N), T * N, loss, usual);
}

static q3_rope rope_of(const op_case *c)
{
    static const char *const types[] = {"default", "linear", "dynamic", "yarn", "llama3"};
    const char *type = scalar_text(c, "rope_type");
    q3_rope rope = {.type = Q3_ROPE_DEFAULT};
    for (size_t i = 0; type != NULL && i < COUNT(types); i++) {
        if (strncmp(type + 1, types[i], strlen(types[i])) == 0) rope.type = (q3_rope_type)i;
    }
    bool yarn = rope.type == Q3_ROPE_YARN, llama3 = rope.type == Q3_ROPE_LLAMA3;
    rope.rope_theta = scalar(c, "rope_theta");
    rope.factor = scalar_or(c, "factor", 0.0);
    if (yarn || llama3) {
        rope.original_max_position_embeddings = scalar_or(
            c, "original_max_position_embeddings", scalar(c, "max_position_embeddings"));
    }
    rope.has_attention_factor = scalar_text(c, "attention_factor") != NULL;
    rope.attention_factor = scalar_or(c, "attention_factor", 0.0);
    rope.beta_fast = yarn ? scalar_or(c, "beta_fast", 32.0) : 0.0;
    rope.beta_slow = yarn ? scalar_or(c, "beta_slow", 1.0) : 0.0;
    rope.mscale = scalar_or(c, "mscale", 0.0);
    rope.mscale_all_dim = scalar_or(c, "mscale_all_dim", 0.0);
    const char *truncate = scalar_text(c, "truncate");
    rope.truncate = yarn && (truncate == NULL || *truncate == 't');
    rope.low_freq_factor = scalar_or(c, "low_freq_factor", 0.0);
    rope.high_freq_factor = scalar_or(c, "high_freq_factor", 0.0);
    return rope;
}

/* Inverse frequencies: torch's float32 pow is within 1 ulp, 2 e, which the division passes on; the
 * scaled forms add up to eight float32 steps of 1 e. Seen: 0.42, in 1 % of the entries.
 * Table, from Hugging Face's own frequencies: the angle is one float32 product on both sides;
 * torch's cosine is within 1 ulp, so 2 e, and the product with attention_scaling rounds once more:
 * 4 e with something to spare. Seen: 0.48. */
static void rope_table(op_case *c)
{
    size_t T = size_of(c, "T"), hd = size_of(c, "hd"), first = size_of(c, "first"), n = T * hd;
    q3_rope rope = rope_of(c);
    q3_dtype dtype = c->dtype;
    float *inv_freq = floats(c, hd / 2), *want = load(c, "inv_freq", hd / 2);
    float *want_scaling = load(c, "attention_scaling", 1);
    float scaling = q3_rope_frequencies(inv_freq, &rope, hd, size_of(c, "max_position_embeddings"),
                                        size_of(c, "length"));
    double *loss = doubles(c, hd), *usual = doubles(c, n), *table_loss = doubles(c, n);
    for (size_t j = 0; j < hd / 2; j++) {
        loss[j] = (rope.type == Q3_ROPE_DEFAULT ? 2.0 : 10.0) * E24 * magnitude((double)want[j]);
    }
    c->dtype = Q3_F32; /* these two are float32 in every run */
    close_to(c, "inv_freq", inv_freq, want, hd / 2, loss, NULL);
    same(c, "attention_scaling", &scaling, want_scaling, 1);
    c->dtype = dtype;

    float *cos_sin[2] = {floats(c, n), floats(c, n)};
    q3_rope_table(cos_sin[0], cos_sin[1], want, scaling, T, first, hd, dtype);
    for (size_t p = 0; p < 2; p++) {
        float *table = load(c, p == 0 ? "cos" : "sin", n);
        for (size_t i = 0; i < n; i++) {
            table_loss[i] = 4.0 * E24 * magnitude((double)table[i]);
            usual[i] = 2.0 * E24 * magnitude((double)table[i]);
        }
        close_to(c, "cos, sin", cos_sin[p], table, n, table_loss, usual);
    }
}

static void rope_apply(op_case *c)
{
    size_t T = size_of(c, "T"), hd = size_of(c, "hd");
    float *cosine = load(c, "cos", T * hd), *sine = load(c, "sin", T * hd);
    for (size_t p = 0; p < 2; p++) {
        size_t H = size_of(c, p == 0 ? "H" : "K"), n = T * H * hd;
        float *x = load(c, p == 0 ? "q" : "k", n), *y = floats(c, n);
        q3_rope_apply(y, x, cosine, sine, T, H, hd, c->dtype);
        same(c, p == 0 ? "q" : "k", y, load(c, p == 0 ? "q_rope" : "k_rope", n), n);
        q3_rope_apply(x, x, cosine, sine, T, H, hd, c->dtype);
        same(c, "in place", x, y, n);
    }
}

/* ==== Attention ============================================================================== */

typedef struct attention_sizes { size_t T, S, H, K, hd, first, window; } attention_sizes;

/* q k loses what a sum of hd products loses and is rounded to D; then comes the scale. */
static void scores(op_case *c, const attention_sizes *z, const float *q, const float *k,
                   const float *want)
{
    size_t n = z->H * z->T * z->S, w = z->hd;
    float *y = floats(c, n);
    double *loss = doubles(c, n), *usual = doubles(c, n), scale = 1.0 / root((double)w);
    q3_attention_scores(y, q, k, z->T, z->H, z->K, z->hd, z->first, z->S, z->window, c->dtype);
    for (size_t i = 0; i < n; i++) {
        size_t h = i / (z->T * z->S), t = i / z->S % z->T, s = i % z->S, row = z->first + t;
        bool masked = s > row || (z->window > 0 && s + z->window <= row);
        if (masked) {
            CHECK(y[i] == 0.0f && want[i] == 0.0f);
            continue;
        }
        const float *head = q + (t * z->H + h) * w;
        sum_bounds(loss + i, usual + i, head, k + (s * z->K + h / (z->H / z->K)) * w, NULL, 1, w);
        double product = (double)want[i] / scale;
        double size = magnitude((double)want[i]);
        loss[i] = scale * (loss[i] + ulp(product, c->dtype)) + 2.0 * E24 * size;
        usual[i] = 2.0 * scale * usual[i] + E24 * size;
    }
    close_to(c, "scores", y, want, n, loss, usual);
}

/* softmax of one row in float32: s - max is rounded (e |s - max| relative after exp), exp loses
 * 2 e, the sum of n terms (2 + 4 sqrt n) e, with each term's own loss weighted by its probability,
 * and the quotient 1 e. Seen: 0.73. */
static void softmax_bounds(double *loss, double *usual, const float *s, const float *p, size_t n)
{
    double most = -INFINITY, mean = 0.0;
    for (size_t i = 0; i < n; i++) most = (double)s[i] > most ? (double)s[i] : most;
    for (size_t i = 0; i < n; i++) {
        if (p[i] > 0.0f) mean += (double)p[i] * (most - (double)s[i]);
    }
    for (size_t i = 0; i < n; i++) {
        double away = p[i] > 0.0f ? most - (double)s[i] : 0.0;
        loss[i] = (7.0 + away + mean + 4.0 * root((double)n)) * E24 * (double)p[i];
        usual[i] = (2.0 + 0.5 * (away + mean)) * E24 * (double)p[i];
    }
}

/* From Hugging Face's scores. Keys that are not seen have probability 0 on both sides. */
static void probs(op_case *c, const attention_sizes *z, float *s, const float *want)
{
    size_t n = z->H * z->T * z->S;
    float *y = floats(c, n);
    double *loss = doubles(c, n), *usual = doubles(c, n), *scratch = doubles(c, z->S);
    q3_attention_probs(y, s, scratch, z->T, z->H, z->first, z->S, z->window, c->dtype);
    for (size_t r = 0; r < z->H * z->T; r++) {
        size_t row = z->first + r % z->T, from = q3_first_key(row, z->window), at = r * z->S + from;
        CHECK(from == (z->window > 0 && row + 1 > z->window ? row + 1 - z->window : 0));
        softmax_bounds(loss + at, usual + at, s + at, want + at, row + 1 - from);
        for (size_t i = 0; i < z->S; i++) {
            if (i < from || i > row) CHECK(y[r * z->S + i] == 0.0f && want[r * z->S + i] == 0.0f);
        }
    }
    close_to(c, "probs", y, want, n, loss, usual);
    q3_attention_probs(s, s, scratch, z->T, z->H, z->first, z->S, z->window, c->dtype);
    same(c, "in place", s, y, n);
}

static void attention(op_case *c)
{
    attention_sizes z = {size_of(c, "T"), size_of(c, "S"), size_of(c, "H"), size_of(c, "K"),
                         size_of(c, "hd"), size_of(c, "first"), size_of(c, "window")};
    size_t n = z.T * z.H * z.hd;
    float *q = load(c, "q", n), *k = load(c, "k", z.S * z.K * z.hd);
    float *v = load(c, "v", z.S * z.K * z.hd), *p = load(c, "probs", z.H * z.T * z.S);
    float *y = floats(c, n), *column = floats(c, z.S);
    double *loss = doubles(c, n), *usual = doubles(c, n);
    scores(c, &z, q, k, load(c, "scores", z.H * z.T * z.S));
    probs(c, &z, load(c, "scores", z.H * z.T * z.S), p);
    q3_attention_values(y, p, v, z.T, z.H, z.K, z.hd, z.first, z.S, z.window, c->dtype);
    for (size_t i = 0; i < n; i++) {
        size_t t = i / (z.H * z.hd), h = i / z.hd % z.H;
        for (size_t s = 0; s < z.S; s++) {
            column[s] = v[(s * z.K + h / (z.H / z.K)) * z.hd + i % z.hd];
        }
        sum_bounds(loss + i, usual + i, p + (h * z.T + t) * z.S, column, NULL, 1, z.S);
    }
    close_to(c, "y", y, load(c, "y", n), n, loss, usual);
}

/* ==== Experts ================================================================================ */

/* Each step from Hugging Face's own tensors. The sum of A probabilities loses at most A e, the
 * quotient 1 e; without renormalisation a weight is the probability, rounded to D.
 * Seen: 0.29. */
static void router(op_case *c)
{
    size_t T = size_of(c, "T"), M = size_of(c, "M"), E = size_of(c, "E"), A = size_of(c, "A");
    bool renormalise = *scalar_text(c, "norm_topk_prob") == 't';
    float *x = load(c, "x", T * M), *w = load(c, "weight", E * M), *y = floats(c, T * E);
    float *logits = load(c, "logits", T * E), *weights = floats(c, T * A);
    float *want = load(c, "weights", T * A);
    int32_t *ids = take(c, T * A, sizeof *ids), *want_ids = load_ids(c, "ids", T * A);
    double *loss = doubles(c, T * E), *usual = doubles(c, T * E);
    q3_dtype dtype = c->dtype;
    q3_linear(y, x, weight(c, "weight"), (q3_tensor){0}, T, E, M, dtype);
    for (size_t t = 0; t < T; t++) {
        sum_bounds(loss + t * E, usual + t * E, x + t * M, w, NULL, E, M);
    }
    close_to(c, "logits", y, logits, T * E, loss, usual);

    float *p = load(c, "probs", T * E);
    q3_router_probs(y, logits, T, E);
    for (size_t t = 0; t < T; t++) {
        softmax_bounds(loss + t * E, usual + t * E, logits + t * E, p + t * E, E);
    }
    c->dtype = Q3_F32; /* in every run */
    close_to(c, "probs", y, p, T * E, loss, NULL);
    q3_router_probs(logits, logits, T, E);
    same(c, "in place", logits, y, T * E);
    c->dtype = dtype;

    q3_router_topk(ids, p, T, E, A);
    same_ids(c, "ids", ids, want_ids, T * A);
    q3_router_weights(weights, p, want_ids, T, E, A, renormalise, dtype);
    for (size_t i = 0; i < T * A; i++) {
        loss[i] = ((double)A + 1.0) * E24 * (double)want[i];
        usual[i] = 2.0 * E24 * (double)want[i];
    }
    if (renormalise) {
        close_to(c, "weights", weights, want, T * A, loss, usual);
    } else {
        same(c, "weights", weights, want, T * A);
    }
}

/* torch's float32 x / (1 + exp(-x)): exp loses 2 e, the sum and the quotient 1 e each, and exp
 * overflows below -88.72, where it gives -0: all of y is lost (MODEL.md 10). Then one rounding.
 * Seen: 0.33, and all of it below -88.72. */
static void silu_close(op_case *c, const char *what, const float *got, const float *want,
                       const float *x, size_t n)
{
    double *loss = doubles(c, n), *usual = doubles(c, n);
    for (size_t i = 0; i < n; i++) {
        double lost = (double)x[i] < -88.72 ? magnitude((double)got[i]) : 0;
        loss[i] = 4.0 * E24 * magnitude((double)want[i]) + lost;
        usual[i] = 2.0 * E24 * magnitude((double)want[i]);
    }
    close_to(c, what, got, want, n, loss, usual);
}

/* One projection of the chosen experts; rows of x: one a token, or one a slot. */
static void projection(op_case *c, const char *what, const char *weights, q3_projection which,
                       const float *x, bool by_slot, const int32_t *ids, const q3_mlp *experts,
                       const size_t sizes[5])
{
    size_t T = sizes[0], E = sizes[1], A = sizes[2], N = sizes[3], C = sizes[4], n = T * A * N;
    float *w = load(c, weights, E * N * C), *y = floats(c, n), *scratch = floats(c, T * (C + N));
    double *loss = doubles(c, n), *usual = doubles(c, n);
    q3_expert_linear(y, x, ids, experts, which, scratch, T, E, A, N, C, c->dtype);
    for (size_t i = 0; i < T * A; i++) {
        const float *row = x + (by_slot ? i : i / A) * C;
        sum_bounds(loss + i * N, usual + i * N, row, w + (size_t)ids[i] * N * C, NULL, N, C);
    }
    close_to(c, what, y, load(c, what, n), n, loss, usual);
}

static q3_tensor slice(q3_tensor tensor, size_t first)
{
    const size_t size = tensor.dtype == Q3_F32 ? 4 : 2;
    tensor.data = (const unsigned char *)tensor.data + first * size;
    return tensor;
}

/* A dense MLP is one expert that every token chooses. */
static void expert(op_case *c)
{
    bool dense = strcmp(c->operator_name, "dense_mlp") == 0;
    size_t T = size_of(c, "T"), M = size_of(c, "M"), F = size_of(c, dense ? "I" : "F");
    size_t E = dense ? 1 : size_of(c, "E"), A = dense ? 1 : size_of(c, "A"), n = T * A * F;
    int32_t *ids = dense ? take(c, T, sizeof *ids) : load_ids(c, "ids", T * A);
    float *x = load(c, "x", T * M), *gate = load(c, "gate", n), *up = load(c, "up", n);
    float *act = load(c, "act", n), *product = load(c, "product", n), *y = floats(c, n);
    q3_mlp *experts = take(c, E, sizeof *experts);
    for (size_t e = 0; e < E; e++) {
        experts[e].gate_proj = slice(weight(c, "gate_proj"), e * F * M);
        experts[e].up_proj = slice(weight(c, "up_proj"), e * F * M);
        experts[e].down_proj = slice(weight(c, "down_proj"), e * M * F);
    }
    const size_t in[5] = {T, E, A, F, M}, out[5] = {T, E, A, M, F};
    projection(c, "gate", "gate_proj", Q3_GATE_PROJ, x, false, ids, experts, in);
    projection(c, "up", "up_proj", Q3_UP_PROJ, x, false, ids, experts, in);
    q3_silu_map(y, gate, n, c->dtype);
    silu_close(c, "act", y, act, gate, n);
    q3_multiply(y, act, up, n, c->dtype);
    same(c, "product", y, product, n);
    projection(c, dense ? "y" : "down", "down_proj", Q3_DOWN_PROJ, product, true, ids, experts,
               out);
    if (!dense) {
        float *sum = floats(c, T * M), *down = load(c, "down", T * A * M);
        q3_expert_combine(sum, down, ids, load(c, "weights", T * A), T, A, M, c->dtype);
        same(c, "y", sum, load(c, "y", T * M), T * M);
    }
}

static void combine(op_case *c)
{
    size_t T = size_of(c, "T"), M = size_of(c, "M"), A = size_of(c, "A");
    float *y = floats(c, T * M);
    q3_expert_combine(y, load(c, "down", T * A * M), load_ids(c, "ids", T * A),
                      load(c, "weights", T * A), T, A, M, c->dtype);
    same(c, "y", y, load(c, "y", T * M), T * M);
}

/* ==== Element by element ===================================================================== */

static void silu(op_case *c)
{
    size_t n = size_of(c, "n");
    float *x = load(c, "x", n), *y = floats(c, n);
    q3_silu_map(y, x, n, c->dtype);
    silu_close(c, "y", y, load(c, "y", n), x, n);
    q3_silu_map(x, x, n, c->dtype);
    same(c, "in place", x, y, n);
}

static void pairs(op_case *c)
{
    size_t n = size_of(c, "n");
    float *a = load(c, "a", n), *b = load(c, "b", n), *y = floats(c, n);
    void (*apply)(float *, const float *, const float *, size_t, q3_dtype) =
        strcmp(c->operator_name, "multiply") == 0 ? q3_multiply : q3_residual_add;
    apply(y, a, b, n, c->dtype);
    same(c, "y", y, load(c, "y", n), n);
    apply(a, a, b, n, c->dtype);
    same(c, "in place", a, y, n);
    apply(b, load(c, "a", n), b, n, c->dtype);
    same(c, "in place", b, y, n);
}

/* The rule's C half gives the bits of the Python half. */
static void rule(op_case *c)
{
    if (c->dtype != Q3_F32) return;
    const q3_entry *entry = find(c, "y");
    const char *text = scalar_text(c, "name");
    if (entry == NULL || text == NULL) die(c, "absent", "y or name");
    char name[96];
    snprintf(name, sizeof name, "%.*s", (int)strcspn(text + 1, "\""), text + 1);
    size_t rows = (size_t)entry->shape[0], n = elements(entry);
    float *y = floats(c, n);
    rule_fill(y, "any text", name, rows, n / rows);
    same(c, "y", y, load(c, "y", n), n);
}

/* ==== What no golden tensor can say ========================================================== */

/* Ties go to the lowest index and NaN counts as largest; Hugging Face's order of ties is arbitrary,
 * so these are ours by definition. */
static void choices(void)
{
    const float values[] = {1.0f, 3.0f, -2.0f, 3.0f, NAN, 0.0f, -0.0f, NAN};
    CHECK(q3_argmax(values, 4) == 1);
    CHECK(q3_argmax(values, 8) == 4);
    CHECK(q3_argmax(values + 5, 2) == 0);
    CHECK(q3_argmax(values + 2, 1) == 0);
    int32_t ids[8];
    const int32_t want[] = {4, 7, 1, 3, 0, 5, 6, 2};
    q3_router_topk(ids, values, 1, 8, 8);
    CHECK(memcmp(ids, want, sizeof want) == 0);
    q3_router_topk(ids, values, 2, 4, 1);
    CHECK(ids[0] == 1 && ids[1] == 0);
    /* torch computes -infinity / infinity; the function's limit is -0. */
    const float low = -INFINITY;
    float y = 1.0f;
    q3_silu_map(&y, &low, 1, Q3_F32);
    CHECK(y == 0.0f && 1.0f / y < 0.0f);
}

/* ==== The run ================================================================================ */

static void run_file(const char *golden, const char *name, void (*test)(op_case *))
{
    char path[1024];
    q3_tensors *file;
    q3_error error;
    snprintf(path, sizeof path, "%s/ops/%s.safetensors", golden, name);
    if (q3_tensors_open(&file, path, &error) != Q3_OK) {
        fprintf(stderr, "%s\n", error.text);
        exit(1);
    }
    const char *cases = q3_tensors_metadata(file, "cases");
    size_t count = cases == NULL ? 0 : (size_t)strtoul(cases, NULL, 10);
    CHECKF(count > 0, "%s: no cases", path);
    for (size_t n = 0; n < count; n++) {
        char key[32];
        snprintf(key, sizeof key, "case%lu", (unsigned long)n);
        for (int d = Q3_F32; d <= Q3_F16; d++) {
            op_case c = {.file = file, .operator_name = name, .number = n, .dtype = (q3_dtype)d};
            c.about = q3_tensors_metadata(file, key);
            if (c.about == NULL) die(&c, "no metadata", key);
            test(&c);
            while (c.used > 0) free(c.memory[--c.used]);
        }
    }
    q3_tensors_close(file);
}

static void report(void)
{
    printf("%-28s %30s %30s %30s\n", "elements, share that differs", "float32", "bfloat16",
           "float16");
    for (size_t i = 0; i < seen_count; i++) {
        printf("%-28s", seen[i].name);
        for (int d = 0; d < 3; d++) {
            size_t n = seen[i].elements[d];
            printf(" %6lu %7.3f %% %4.2f of bound", (unsigned long)n,
                   n == 0 ? 0.0 : 100.0 * (double)seen[i].differ[d] / (double)n, seen[i].most[d]);
        }
        printf("\n");
    }
}

int main(int argc, char **argv)
{
    const char *golden = argc > 1 ? argv[1] : "golden";
    static const struct { const char *name; void (*test)(op_case *); } files[] = {
        {"rule", rule}, {"embedding", embedding}, {"rmsnorm", norm}, {"qk_norm", norm},
        {"linear", linear}, {"lm_head", linear}, {"rope_table", rope_table},
        {"rope_apply", rope_apply}, {"attention", attention}, {"router", router},
        {"swiglu_expert", expert}, {"dense_mlp", expert}, {"expert_combine", combine},
        {"silu", silu}, {"multiply", pairs}, {"residual_add", pairs}};
    for (size_t i = 0; i < COUNT(files); i++) {
        run_file(golden, files[i].name, files[i].test);
    }
    choices();
    report();
    return t_done("test_ops");
}
