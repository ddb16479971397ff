/* operators.c - the operators of a layer that know weights or angles, each with the mistakes that real implementations
 * made in it. Slow and plain: a tensor in trouble is looked at once. */
#include "judge/diagnosis.h"

#include <stdlib.h>
#include <string.h>

double q3_absolute(double x)
{
    return x < 0 ? -x : x;
}

/* ==== Formats ================================================================================== */

static float cut_tf32(double value, uint32_t add)
{
    float x = (float)value;
    uint32_t u;
    memcpy(&u, &x, 4);
    if ((u >> 23 & 0xff) == 0xff) return x;
    u = (u + add) & ~0x1fffu;
    memcpy(&x, &u, 4);
    return x;
}

/* E4M3: 4 significant bits, normal from 2^-6, at most 448. */
static double to_fp8(double value)
{
    double size = q3_absolute(value), unit = 0x1p-9;
    if (!(size <= 448)) return value != value ? value : value < 0 ? -448 : 448;
    while (size >= 16 * unit) unit *= 2;
    double units = (size / unit + 0x1.8p52) - 0x1.8p52;
    return value < 0 ? -units * unit : units * unit;
}

double q3_to_format(double value, format f)
{
    switch (f) {
    case FORMAT_BF16: return (double)q3_round(value, Q3_BF16);
    case FORMAT_F16: return (double)q3_round(value, Q3_F16);
    case FORMAT_TF32_AWAY: return (double)cut_tf32(value, 0x1000);
    case FORMAT_TF32_CUT: return (double)cut_tf32(value, 0);
    case FORMAT_FP8: return to_fp8(value);
    case FORMAT_TF32: default: break;
    }
    float x = (float)value;
    uint32_t u;
    memcpy(&u, &x, 4);
    return (double)cut_tf32(value, 0xfff + (u >> 13 & 1));
}

double q3_softcapped(double x, double cap, q3_dtype dtype)
{
    double y = (double)q3_round((double)q3_round(x, dtype) / cap, dtype), u = q3_exp(-2 * q3_absolute(y));
    double bent = (double)q3_round((1 - u) / (1 + u), dtype) * cap;
    return y < 0 ? -bent : bent;
}

/* ==== Linear maps ============================================================================== */

/* y[T,N] = x[T,K] weight[N,K]^T + bias. second: of a mistake that mixes two weights. */
typedef struct map {
    const float *x;
    q3_tensor weight, bias, second;
    size_t T, N, K;
    bool is_second; /* this is up of gate and up */
} map;

static double largest_weight(const map *m, q3_dtype dtype)
{
    float row[64];
    double most = 0;
    for (size_t i = 0; i < m->N * m->K; i += 64) {
        size_t n = m->N * m->K - i < 64 ? m->N * m->K - i : 64;
        q3_widen(row, m->weight, i, n, dtype);
        for (size_t k = 0; k < n; k++)
            if (q3_absolute((double)row[k]) > most) most = q3_absolute((double)row[k]);
    }
    return most;
}

/* Row o of the weight under a mistake. most: the tensor's largest value (MAP_FP8). */
static void weight_row(float *row, const map *m, mistake_kind kind, size_t o, double most, q3_dtype dtype)
{
    size_t K = m->K;
    q3_tensor weight = m->weight;
    size_t from = o;
    if (kind == MAP_INTERLEAVED) { /* gate and up stacked, and rows taken alternately */
        from = 2 * o + (m->is_second ? 1 : 0);
        bool first_half = from < m->N;
        if (first_half == m->is_second) weight = m->second;
        if (!first_half) from -= m->N;
    }
    if (kind == MAP_OTHER_WEIGHT) weight = m->second;
    if (kind == MAP_TRANSPOSED)
        for (size_t k = 0; k < K; k++) q3_widen(row + k, weight, k * m->N + o, 1, dtype);
    else
        q3_widen(row, weight, from * K, K, dtype);
    double scale = most / 448;
    if (kind == MAP_INT8) {
        scale = 0;
        for (size_t k = 0; k < K; k++)
            if (q3_absolute((double)row[k]) / 127 > scale) scale = q3_absolute((double)row[k]) / 127;
    }
    scale = (double)(float)scale;
    if ((kind != MAP_INT8 && kind != MAP_FP8) || !(scale > 0)) return;
    for (size_t k = 0; k < K; k++) {
        double units = (double)(float)((double)row[k] / scale); /* float32, as the libraries do it */
        units = kind == MAP_FP8 ? to_fp8(units) : (units + 0x1.8p52) - 0x1.8p52;
        row[k] = q3_round((double)(float)(units * scale), dtype);
    }
}

static format format_in(const mistake *m)
{
    return m->value >= 0 && m->value <= FORMAT_FP8 ? (format)(int)m->value : FORMAT_BF16;
}

static q3_dtype dtype_of(format f)
{
    return f == FORMAT_F16 ? Q3_F16 : Q3_BF16;
}

/* One sum, rounded as the mistake does it. */
static float one_sum(const float *w, const float *x, size_t K, float bias, const mistake *m, mistake_kind kind,
                     q3_dtype dtype)
{
    format f = format_in(m);
    bool low = kind == MAP_LOW_SUM;
    size_t parts = kind == MAP_PARTS ? (size_t)m->value : 1, end = K;
    if (kind == MAP_TAIL) end = K - (size_t)m->value;
    if (kind == MAP_TAIL_BLOCK) end = K - K % (size_t)m->value;
    double total = 0;
    for (size_t p = 0; p < parts; p++) {
        double sum = 0;
        for (size_t k = end * p / parts; k < end * (p + 1) / parts; k++) {
            double product = (double)w[k] * (double)x[k];
            sum += low ? (double)(float)product : product;
            if (low) sum = (double)q3_round((double)(float)sum, dtype_of(f));
        }
        total = p == 0 && parts == 1 ? sum
                : p == 0 ? (double)q3_round(sum, dtype)
                         : (double)q3_round(total + (double)q3_round(sum, dtype), dtype);
    }
    if (kind == MAP_BIAS_AFTER) total = (double)q3_round(total, dtype);
    total += (double)bias;
    if (kind == MAP_CAST) total = q3_to_format(total, f);
    if (kind == MAP_CAPPED) total = q3_softcapped(total, m->value, dtype);
    return q3_round(total, kind == MAP_NOT_ROUNDED ? Q3_F32 : dtype);
}

static void round_operands(float *y, const float *x, size_t n, format f)
{
    for (size_t i = 0; i < n; i++) y[i] = (float)q3_to_format((double)x[i], f);
}

static bool run_map(float *y, const map *m, const pass *p, mistake_kind kind)
{
    q3_dtype D = p->e->dtype;
    bool operands = kind == MAP_OPERANDS || kind == MAP_CAST;
    float *row = malloc((m->K + 1) * sizeof *row), *rounded = operands ? calloc(m->T, m->K * sizeof *rounded) : NULL;
    const float *x = operands ? rounded : m->x;
    if (row == NULL || x == NULL) {
        free(row);
        free(rounded);
        return false;
    }
    if (operands) round_operands(rounded, m->x, m->T * m->K, format_in(p->m));
    double most = kind == MAP_FP8 ? largest_weight(m, D) : 0;
    for (size_t o = 0; o < m->N; o++) {
        float bias = 0.0f;
        weight_row(row, m, kind, o, most, D);
        if (operands) round_operands(row, row, m->K, format_in(p->m));
        if (m->bias.data != NULL && kind != MAP_NO_BIAS) q3_widen(&bias, m->bias, o, 1, D);
        if (kind == MAP_BIAS_TWICE) bias *= 2;
        for (size_t t = 0; t < m->T; t++)
            y[t * m->N + o] = one_sum(row, x + t * m->K, m->K, bias, p->m, kind, D);
    }
    free(row);
    free(rounded);
    return true;
}

/* A whole tensor's map, without its mistake. */
static bool map_of(map *m, pass *p, q3_tap_id id)
{
    const evidence *e = p->e;
    const q3_layer *l = &e->weights->layers[e->layer];
    const q3_tensor none = {NULL, Q3_F32};
    const struct { q3_tap_id id, input; q3_tensor weight, bias, second; } rows[] = {
        {Q3_TAP_Q_PROJ, Q3_TAP_INPUT_LAYERNORM, l->q_proj, l->q_proj_bias, none},
        {Q3_TAP_K_PROJ, Q3_TAP_INPUT_LAYERNORM, l->k_proj, l->k_proj_bias, l->v_proj},
        {Q3_TAP_V_PROJ, Q3_TAP_INPUT_LAYERNORM, l->v_proj, l->v_proj_bias, l->k_proj},
        {Q3_TAP_O_PROJ, Q3_TAP_O_PROJ_INPUT, l->o_proj, l->o_proj_bias, none},
        {Q3_TAP_GATE, Q3_TAP_POST_ATTENTION_LAYERNORM, l->gate, none, none},
        {Q3_TAP_DENSE_GATE_PROJ, Q3_TAP_POST_ATTENTION_LAYERNORM, l->mlp.gate_proj, none, l->mlp.up_proj},
        {Q3_TAP_DENSE_UP_PROJ, Q3_TAP_POST_ATTENTION_LAYERNORM, l->mlp.up_proj, none, l->mlp.gate_proj},
        {Q3_TAP_MLP, Q3_TAP_DENSE_DOWN_PROJ_INPUT, l->mlp.down_proj, none, none},
        {Q3_TAP_LM_HEAD, Q3_TAP_NORM, e->weights->lm_head, none, e->weights->embed_tokens},
    };
    size_t r = 0;
    while (r < sizeof rows / sizeof rows[0] && rows[r].id != id) r++;
    if (r == sizeof rows / sizeof rows[0]) return false;
    m->x = q3_pass_get(p, rows[r].input);
    m->weight = rows[r].weight;
    m->bias = rows[r].bias;
    m->second = rows[r].second;
    m->T = e->T;
    m->N = q3_row_of(e, id);
    m->K = q3_row_of(e, rows[r].input);
    m->is_second = id == Q3_TAP_DENSE_UP_PROJ;
    return m->x != NULL && m->weight.data != NULL;
}

/* Whether a sum of K terms can lose this tail, and keep something. */
static bool has_tail(const mistake *m, mistake_kind kind, size_t K)
{
    size_t block = kind == MAP_TAIL || kind == MAP_TAIL_BLOCK ? (size_t)m->value : 0;
    return block == 0 || (K > block && (kind == MAP_TAIL || K % block != 0));
}

/* What a router or head does behind its map. */
static void softmax_rows(float *y, size_t T, size_t n)
{
    q3_router_probs(y, y, T, n);
}

bool q3_evaluate_map(pass *p, q3_tap_id id, mistake_kind kind, float *y)
{
    map m;
    if (!map_of(&m, p, id)) return false;
    bool second = kind == MAP_OTHER_WEIGHT || kind == MAP_INTERLEAVED, bias = kind == MAP_NO_BIAS ||
                  kind == MAP_BIAS_TWICE || kind == MAP_BIAS_AFTER;
    if ((second && m.second.data == NULL) || (bias && m.bias.data == NULL)) return false;
    if (kind == MAP_INTERLEAVED && id != Q3_TAP_DENSE_GATE_PROJ && id != Q3_TAP_DENSE_UP_PROJ) return false;
    if (kind == MAP_STREAM) m.x = q3_pass_get(p, Q3_TAP_POST_ATTENTION_INPUT);
    if (kind == MAP_OTHER_WEIGHT && id == Q3_TAP_K_PROJ) m.bias = p->e->weights->layers[p->e->layer].v_proj_bias;
    if (kind == MAP_OTHER_WEIGHT && id == Q3_TAP_V_PROJ) m.bias = p->e->weights->layers[p->e->layer].k_proj_bias;
    if (m.x == NULL || !has_tail(p->m, kind, m.K)) return false;
    bool plain = kind == NO_MISTAKE || kind == MAP_STREAM || kind == MAP_SOFTMAX;
    if (plain) q3_linear(y, m.x, m.weight, m.bias, m.T, m.N, m.K, p->e->dtype);
    else if (!run_map(y, &m, p, kind)) return false;
    if (kind == MAP_SOFTMAX) softmax_rows(y, m.T, m.N);
    return true;
}

/* ==== Experts ================================================================================== */

static q3_tensor projection(const q3_mlp *mlp, q3_tap_id id)
{
    if (id == Q3_TAP_EXPERTS_GATE_PROJ) return mlp->gate_proj;
    return id == Q3_TAP_EXPERTS_UP_PROJ ? mlp->up_proj : mlp->down_proj;
}

/* All slots that have expert e: gathered, mapped, scattered. in, out: [T*A] rows. */
static bool run_expert(float *y, float *in, float *out, pass *p, q3_tap_id id, mistake_kind kind, size_t e)
{
    const evidence *v = p->e;
    const q3_mlp *experts = v->weights->layers[v->layer].experts;
    size_t A = v->config->num_experts_per_tok, n = 0;
    bool down = id == Q3_TAP_EXPERTS_DOWN_PROJ, up = id == Q3_TAP_EXPERTS_UP_PROJ;
    q3_tap_id input = down ? Q3_TAP_EXPERTS_DOWN_PROJ_INPUT : Q3_TAP_POST_ATTENTION_LAYERNORM;
    const float *x = q3_pass_get(p, input), *ids = q3_pass_get(p, Q3_TAP_TOPK_INDICES);
    const float *weights = kind == MAP_WEIGHTED ? q3_pass_get(p, Q3_TAP_TOPK_WEIGHTS) : NULL;
    size_t N = q3_row_of(v, id) / A, K = down ? q3_row_of(v, input) / A : q3_row_of(v, input);
    if (x == NULL || ids == NULL || (kind == MAP_WEIGHTED && weights == NULL)) return false;
    for (size_t slot = 0; slot < v->T * A; slot++) {
        if (ids[slot] != (float)e) continue;
        const float *from = x + (down ? slot : slot / A) * K;
        for (size_t k = 0; k < K; k++)
            in[n * K + k] = weights == NULL ? from[k]
                                            : q3_round((double)from[k] * (double)weights[slot], v->dtype);
        n++;
    }
    size_t source = kind == MAP_EXPERTS ? p->m->map[e] : e;
    map m = {.x = in, .T = n, .N = N, .K = K, .is_second = up};
    m.weight = projection(&experts[source], id);
    m.second = up ? experts[e].gate_proj : experts[e].up_proj;
    bool plain = kind == NO_MISTAKE || kind == MAP_EXPERTS || kind == MAP_WEIGHTED;
    if (n == 0) return true;
    if (plain) q3_linear(out, in, m.weight, m.bias, n, N, K, v->dtype);
    else if (!run_map(out, &m, p, kind)) return false;
    n = 0;
    for (size_t slot = 0; slot < v->T * A; slot++)
        if (ids[slot] == (float)e) memcpy(y + slot * N, out + n++ * N, N * sizeof *y);
    return true;
}

bool q3_evaluate_experts(pass *p, q3_tap_id id, mistake_kind kind, float *y)
{
    const evidence *v = p->e;
    size_t A = v->config->num_experts_per_tok, M = v->config->hidden_size, F = v->config->moe_intermediate_size;
    size_t rows = v->T * A, wide = M > F ? M : F;
    bool down = id == Q3_TAP_EXPERTS_DOWN_PROJ, good;
    if (!has_tail(p->m, kind, down ? F : M)) return false;
    if (down && (kind == MAP_OTHER_WEIGHT || kind == MAP_INTERLEAVED || kind == MAP_WEIGHTED)) return false;
    if (kind == MAP_NO_BIAS || kind == MAP_BIAS_TWICE || kind == MAP_BIAS_AFTER) return false;
    float *in = calloc(rows, wide * sizeof *in), *out = calloc(rows, wide * sizeof *out);
    good = in != NULL && out != NULL;
    for (size_t e = 0; e < v->config->num_experts && good; e++) good = run_expert(y, in, out, p, id, kind, e);
    free(in);
    free(out);
    return good;
}

/* ==== Norms ==================================================================================== */

typedef struct norm {
    const float *x, *branch; /* branch: what was added to x before its rounding */
    q3_tensor weight, other;
    size_t rows, n, together; /* together: rows whose squares are averaged as one */
} norm;

static bool norm_of(norm *m, pass *p, q3_tap_id id)
{
    const evidence *e = p->e;
    const q3_layer *l = &e->weights->layers[e->layer < e->config->num_hidden_layers ? e->layer : 0];
    size_t hd = e->config->head_dim, last = e->config->num_hidden_layers - 1;
    m->branch = NULL;
    m->together = 1;
    m->rows = e->T;
    m->n = e->config->hidden_size;
    m->x = e->input;
    switch ((int)id) {
    case Q3_TAP_INPUT_LAYERNORM: m->weight = l->input_layernorm, m->other = l->post_attention_layernorm; break;
    case Q3_TAP_POST_ATTENTION_LAYERNORM:
        m->x = q3_pass_get(p, Q3_TAP_POST_ATTENTION_INPUT);
        m->weight = l->post_attention_layernorm, m->other = l->input_layernorm;
        break;
    case Q3_TAP_NORM:
        m->weight = e->weights->norm, m->other = e->weights->layers[last].post_attention_layernorm;
        break;
    default: {
        bool q = id == Q3_TAP_Q_NORM;
        size_t heads = q ? e->config->num_attention_heads : e->config->num_key_value_heads;
        m->x = q3_pass_get(p, q ? Q3_TAP_Q_PROJ : Q3_TAP_K_PROJ);
        m->weight = q ? l->q_norm : l->k_norm, m->other = q ? l->k_norm : l->q_norm;
        m->rows *= heads, m->n = hd;
    } }
    return m->x != NULL && m->weight.data != NULL;
}

/* The row's values before squares are taken, and their mean square. */
static double mean_square(double *x, const norm *m, size_t row, mistake_kind kind)
{
    double sum = 0, mean = 0, squares = 0;
    size_t first = row / m->together * m->together, n = m->together * m->n;
    for (size_t i = 0; i < m->n; i++) {
        x[i] = (double)m->x[row * m->n + i];
        if (m->branch != NULL) x[i] += (double)m->branch[row * m->n + i];
        sum += x[i];
    }
    if (kind == NORM_CENTRED) mean = sum / (double)m->n;
    for (size_t i = 0; i < m->n; i++) x[i] -= mean;
    for (size_t i = 0; i < n; i++) {
        double v = m->together > 1 ? (double)m->x[first * m->n + i] : x[i];
        squares += v * v;
    }
    return kind == NORM_SUM ? squares : squares / (double)n;
}

static bool norm_rows(float *y, const norm *m, const pass *p, mistake_kind kind)
{
    q3_dtype D = p->e->dtype;
    double eps = kind == NORM_EPS ? p->m->value : (double)(float)p->e->config->rms_norm_eps;
    double *x = malloc((m->n + 1) * sizeof *x);
    float *w = malloc((m->n + 1) * sizeof *w);
    for (size_t r = 0; x != NULL && w != NULL && r < m->rows; r++) {
        double variance = mean_square(x, m, r, kind);
        if (kind == NORM_VARIANCE_FORMAT) variance = q3_to_format(variance, format_in(p->m));
        double root = kind == NORM_EPS_OUTSIDE ? q3_sqrt(variance) + eps : q3_sqrt(variance + eps);
        q3_widen(w, kind == NORM_OTHER_WEIGHT ? m->other : m->weight, 0, m->n, D);
        for (size_t i = 0; i < m->n; i++) {
            double weight = kind == NORM_NO_WEIGHT ? 1 : (double)w[i], normal = x[i] / root;
            if (kind == NORM_PLUS_ONE) weight = (double)q3_round(weight + 1, D);
            if (kind != NORM_BEFORE_CAST) normal = (double)q3_round(normal, D);
            y[r * m->n + i] = q3_round(weight * normal, D);
        }
    }
    bool good = x != NULL && w != NULL;
    free(x);
    free(w);
    return good;
}

/* Queries or keys, rotated before they are normalised. owned. */
static float *rotated_first(pass *p, const norm *m)
{
    const evidence *e = p->e;
    const float *cos = q3_pass_get(p, Q3_TAP_COS), *sin = q3_pass_get(p, Q3_TAP_SIN);
    if (cos == NULL || sin == NULL) return NULL;
    float *x = calloc(m->rows, m->n * sizeof *x);
    if (x != NULL) q3_rope_apply(x, m->x, cos, sin, e->T, m->rows / (e->T > 0 ? e->T : 1), m->n, e->dtype);
    return x;
}

bool q3_evaluate_norm(pass *p, q3_tap_id id, mistake_kind kind, float *y)
{
    norm m;
    float *own = NULL;
    bool heads = id == Q3_TAP_Q_NORM || id == Q3_TAP_K_NORM, good = true;
    if (!norm_of(&m, p, id)) return false;
    if (kind == NORM_OTHER_WEIGHT && m.other.data == NULL) return false;
    if ((kind == NORM_ALL_HEADS || kind == NORM_AFTER_ROPE || kind == NORM_ROTATED) && !heads) return false;
    if (kind == NORM_ALL_HEADS) m.together = m.rows / (p->e->T > 0 ? p->e->T : 1);
    if (kind == NORM_UNROUNDED_SUM) {
        m.x = p->e->input;
        m.branch = id == Q3_TAP_POST_ATTENTION_LAYERNORM ? q3_pass_get(p, Q3_TAP_O_PROJ) : NULL;
        if (m.branch == NULL) return false;
    }
    if (kind == NORM_MISSING) {
        memcpy(y, m.x, m.rows * m.n * sizeof *y);
        return true;
    }
    if (kind == NORM_AFTER_ROPE || kind == NORM_TWICE) {
        own = kind == NORM_TWICE ? calloc(m.rows, m.n * sizeof *own) : rotated_first(p, &m);
        if (own == NULL) return false;
        if (kind == NORM_TWICE) good = norm_rows(own, &m, p, NO_MISTAKE);
        m.x = own;
    }
    good = good && norm_rows(y, &m, p, kind);
    free(own);
    if (good && kind == NORM_ROTATED) {
        const float *cos = q3_pass_get(p, Q3_TAP_COS), *sin = q3_pass_get(p, Q3_TAP_SIN);
        if (cos == NULL || sin == NULL || id != p->e->id) return false;
        q3_rope_apply(y, y, cos, sin, p->e->T, m.rows / (p->e->T > 0 ? p->e->T : 1), m.n, p->e->dtype);
    }
    return good;
}

/* ==== Rotary embedding ========================================================================= */

/* cos and sin [T,hd] with a mistake; either may be NULL. */
static void make_table(float *cos, float *sin, float *inv_freq, const evidence *e, const mistake *m,
                       mistake_kind kind)
{
    q3_rope rope = e->config->rope;
    size_t hd = e->config->head_dim, half = hd / 2;
    format f = format_in(m);
    if (kind == TABLE_THETA) rope.rope_theta = m->value;
    if (kind == TABLE_UNSCALED) rope.type = Q3_ROPE_DEFAULT;
    if (kind == TABLE_FACTOR) rope.factor = m->value;
    float scaling = q3_rope_frequencies(inv_freq, &rope, hd, e->config->max_position_embeddings, e->start + e->T);
    if (kind == TABLE_NO_FACTOR) scaling = 1.0f;
    for (size_t j = 0; j < half && kind == TABLE_FREQUENCY_FORMAT; j++)
        inv_freq[j] = (float)q3_to_format((double)inv_freq[j], f);
    for (size_t t = 0; t < e->T; t++) {
        double position = (double)(e->start + t);
        if (kind == TABLE_OFFSET) position += m->value;
        if (kind == TABLE_FROM_ZERO) position = (double)t;
        if (kind == TABLE_CONSTANT || kind == ROPE_POSITION) position = m->value;
        if (kind == TABLE_POSITION_FORMAT) position = q3_to_format(position, f);
        for (size_t j = 0; j < half; j++) {
            float angle = (float)(position * (double)inv_freq[j]);
            if (!(q3_absolute((double)angle) <= 0x1p20)) angle = 0.0f;
            double c = (double)(float)((double)q3_cos(angle) * (double)scaling);
            double s = (double)(float)((double)q3_sin(angle) * (double)scaling);
            if (kind == TABLE_FORMAT) c = q3_to_format(c, f), s = q3_to_format(s, f);
            float *first = kind == TABLE_SWAPPED ? sin : cos, *second = kind == TABLE_SWAPPED ? cos : sin;
            if (first != NULL) first[t * hd + j] = first[t * hd + half + j] = q3_round(c, e->dtype);
            if (second != NULL) second[t * hd + j] = second[t * hd + half + j] = q3_round(s, e->dtype);
        }
    }
}

bool q3_evaluate_table(pass *p, q3_tap_id id, mistake_kind kind, float *y)
{
    float *inv_freq = malloc((p->e->config->head_dim + 1) * sizeof *inv_freq);
    if (inv_freq == NULL) return false;
    make_table(id == Q3_TAP_COS ? y : NULL, id == Q3_TAP_SIN ? y : NULL, inv_freq, p->e, p->m, kind);
    free(inv_freq);
    return true;
}

/* One head of one token. */
static void rotate(float *y, const float *x, const float *cos, const float *sin, size_t hd, mistake_kind kind,
                   q3_dtype D)
{
    size_t half = hd / 2;
    bool in = kind == ROPE_INTERLEAVED || kind == ROPE_INTERLEAVED_IN, out = kind == ROPE_INTERLEAVED;
    for (size_t i = 0; i < half; i++) {
        double a = (double)x[in ? 2 * i : i], b = (double)x[in ? 2 * i + 1 : half + i];
        double c = (double)cos[i], s = (double)sin[i];
        if (kind == ROPE_BACKWARDS) s = -s;
        double ac = a * c, bs = b * s, bc = b * c, as = a * s;
        if (kind != ROPE_ONCE) {
            ac = (double)q3_round(ac, D), bs = (double)q3_round(bs, D);
            bc = (double)q3_round(bc, D), as = (double)q3_round(as, D);
        }
        y[out ? 2 * i : i] = q3_round(ac - bs, D);
        y[out ? 2 * i + 1 : half + i] = kind == ROPE_HALF ? x[half + i] : q3_round(bc + as, D);
    }
}

/* Partial: the first half of the dimensions is rotated, as if it were the whole head. */
static bool partial_table(float *cos, float *sin, const evidence *e)
{
    size_t dim = e->config->head_dim / 2;
    float *inv_freq = malloc((dim + 1) * sizeof *inv_freq);
    if (inv_freq == NULL || dim % 2 != 0) {
        free(inv_freq);
        return false;
    }
    float scaling = q3_rope_frequencies(inv_freq, &e->config->rope, dim, e->config->max_position_embeddings,
                                        e->start + e->T);
    q3_rope_table(cos, sin, inv_freq, scaling, e->T, e->start, dim, e->dtype);
    free(inv_freq);
    return true;
}

bool q3_evaluate_rope(pass *p, q3_tap_id id, mistake_kind kind, float *y)
{
    const evidence *e = p->e;
    bool q = id == Q3_TAP_Q_ROPE, own = kind == ROPE_POSITION || kind == ROPE_PARTIAL, good = true;
    size_t hd = e->config->head_dim, heads = q ? e->config->num_attention_heads : e->config->num_key_value_heads;
    q3_tap_id before = q ? Q3_TAP_Q_NORM : Q3_TAP_K_NORM;
    if (kind == ROPE_NORM_AFTER) return !e->given[before] && q3_evaluate_norm(p, before, NORM_AFTER_ROPE, y);
    const float *x = q3_pass_get(p, before), *cos = q3_pass_get(p, Q3_TAP_COS), *sin = q3_pass_get(p, Q3_TAP_SIN);
    float *table = own ? calloc(e->T, 2 * hd * sizeof *table) : NULL, *inv_freq = calloc(hd + 1, sizeof *inv_freq);
    if (x == NULL || inv_freq == NULL || (own ? table == NULL : cos == NULL || sin == NULL)) good = false;
    if (good && own) cos = table, sin = table + e->T * hd;
    if (good && kind == ROPE_POSITION) make_table(table, table + e->T * hd, inv_freq, e, p->m, kind);
    if (good && kind == ROPE_PARTIAL) good = partial_table(table, table + e->T * hd, e);
    size_t count = e->T * heads * hd, width = kind == ROPE_PARTIAL ? hd / 2 : hd;
    if (good) memcpy(y, x, count * sizeof *y);
    for (size_t row = 0; good && kind != ROPE_MISSING && row < e->T * heads; row++) {
        const float *c = cos + row / heads * width, *s = sin + row / heads * width;
        rotate(y + row * hd, x + row * hd, c, s, width, kind, e->dtype);
    }
    if (good && kind == ROPE_TWICE) q3_rope_apply(y, y, cos, sin, e->T, heads, hd, e->dtype);
    free(table);
    free(inv_freq);
    return good;
}
