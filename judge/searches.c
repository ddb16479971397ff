/* SPDX-License-Identifier: MIT */
/* searches.c - mistakes with a number or a choice in them that has to be found first: positions,
 * theta, eps, a limit, which expert's weights, which experts are left out. What is found is then
 * tried like any other. */
#include "judge/diagnosis.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* x with so many significant decimal digits. */
static double shortened(double x, int digits)
{
    double unit = 1, size = q3_absolute(x), limit = 1;
    for (int i = 0; i < digits; i++) limit *= 10;
    if (!(size > 1e-30 && size < 1e30)) return x;
    while (size / unit >= limit) unit *= 10;
    while (size * 10 / unit < limit && unit > 1e-30) unit /= 10;
    double units = (size / unit + 0x1.8p52) - 0x1.8p52, power = 1;
    /* 1e-6, not 0.1 * 0.1 * ...: one rounding, so that it prints as it is written. */
    if (unit >= 1) return (x < 0 ? -units : units) * unit;
    while (power * unit < 0.5) power *= 10;
    return (x < 0 ? -units : units) / power;
}

/* ==== Positions =============================================================================== */

static bool row_agrees(const evidence *e, const float *y, size_t t)
{
    for (size_t i = t * e->row; i < (t + 1) * e->row; i++)
        if (!q3_agrees(e, i, y[i])) return false;
    return true;
}

static void say_positions(char *text, size_t room, const evidence *e, const double *position)
{
    size_t t = e->first, begin = t;
    while (t + 1 < e->T && position[t + 1] == position[t] + 1) t++;
    if (t + 1 < e->T)
        snprintf(text, room,
                 "positions that do not go on: token %zu has position %.9g, token %zu has %.9g",
                     q3_own_token(e, t), position[t], q3_own_token(e, t + 1), position[t + 1]);
    else
        snprintf(text, room, "positions from %.9g instead of %zu", position[begin],
                 e->start + begin);
}

/* Rows of cos, sin or rotated queries and keys, each with the position that it fits. */
void q3_search_positions(diagnosis *d)
{
    const evidence *e = d->e;
    bool table = e->id == Q3_TAP_COS || e->id == Q3_TAP_SIN;
    bool rope = e->id == Q3_TAP_Q_ROPE || e->id == Q3_TAP_K_ROPE;
    size_t count = e->T * e->row, found = 0;
    size_t candidates = e->start < e->T ? e->start + e->T : 2 * e->T;
    if ((!table && !rope) || d->rounding || d->strength == FULL || e->T > 1024) return;
    float *y = calloc(count, sizeof *y);
    double *position = calloc(e->T, sizeof *position);
    bool *known = calloc(e->T, sizeof *known);
    for (size_t k = 0; y != NULL && position != NULL && known != NULL && k < candidates; k++) {
        double p = (double)(k < e->T || e->start < e->T ? k : e->start + k - e->T);
        mistake m = {.at = table ? TAP_BIT(Q3_TAP_COS) | TAP_BIT(Q3_TAP_SIN) : TAP_BIT(e->id),
                     .edits = {{PARAMETER, ONE_POSITION, 0}}, .value = p};
        pass run;
        const float *row = q3_pass_run(&run, e, &m);
        for (size_t t = e->first; row != NULL && t < e->T; t++) {
            bool follows = t > e->first && known[t - 1] && position[t - 1] + 1 == p;
            if ((known[t] && !follows) || !row_agrees(e, row, t)) continue;
            found += !known[t];
            known[t] = true;
            position[t] = p;
            memcpy(y + t * e->row, row + t * e->row, e->row * sizeof *y);
        }
        d->no_memory = d->no_memory || run.no_memory;
        q3_pass_free(&run);
    }
    char text[160];
    if (found == e->T - e->first && found > 0) {
        say_positions(text, sizeof text, e, position);
        q3_weigh(d, y, text);
    }
    free(y);
    free(position);
    free(known);
}

/* ==== Theta =================================================================================== */

/* The angle in [0, pi] whose cosine this is. */
static double arc_cosine(double c)
{
    double low = 0, high = 0x1.921fb54442d18p+1;
    for (int i = 0; i < 60; i++) {
        double middle = (low + high) / 2;
        if ((double)q3_cos((float)middle) > c) low = middle;
        else high = middle;
    }
    return low;
}

/* Tries the mistake with x as its value: with so many digits first, then with more, until one
 * fits. text: what is wrong; right: what the config has, or negative: it has none. */
static void attempt_digits(diagnosis *d, mistake m, double x, int digits, const char *text,
                           double right)
{
    for (int n = 1; n <= digits && d->strength != FULL; n++) {
        char full[96];
        m.value = shortened(x, n);
        int used = snprintf(full, sizeof full, "%s %.9g", text, m.value);
        if (right >= 0)
            snprintf(full + used, sizeof full - (size_t)used, " instead of %.9g", right);
        q3_attempt(d, &m, full);
    }
}

static double power_of(double base, double y)
{
    return q3_exp(y * q3_log(base));
}

/* From the slowest angle of the last row to the fastest, each time the turn that is nearest to
 * what the slower ones say: the error of theta shrinks as the angles grow. */
static double theta_of(const evidence *e)
{
    size_t hd = e->config->head_dim, half = hd / 2, t = e->T - 1;
    double p = (double)(e->start + t), theta = 0, turn = 0x1.921fb54442d18p+2;
    const float *row = e->theirs + t * hd;
    for (size_t j = half - 1; j > 0; j--) {
        double c = (double)row[j], exponent = 2 * (double)j / (double)hd;
        if (!(q3_absolute(c) < 1)) continue;
        double a = arc_cosine(c), near = theta > 0 ? p * power_of(theta, -exponent) : a, best = a;
        if (!(near < 1e7)) break;
        double whole = (double)(int64_t)(near / turn);
        for (double k = whole > 1 ? whole - 1 : 0; k <= whole + 1; k++) {
            if (q3_absolute(k * turn + a - near) < q3_absolute(best - near)) best = k * turn + a;
            if (k > 0 && q3_absolute(k * turn - a - near) < q3_absolute(best - near))
                best = k * turn - a;
        }
        if (theta > 0 && q3_absolute(best - near) > 0.7) break;
        if (best > 0.05) theta = power_of(best / p, -1 / exponent);
        /* wide heads, and cosines that no theta has */
        if (theta != 0 && !(theta > 1e-300 && theta < 1e300)) return 0;
    }
    return theta;
}

void q3_search_theta(diagnosis *d)
{
    const evidence *e = d->e;
    mistake m = {.at = TAP_BIT(Q3_TAP_COS) | TAP_BIT(Q3_TAP_SIN), .edits = {{PARAMETER, THETA, 0}}};
    bool plain = e->config->rope.type == Q3_ROPE_DEFAULT && e->config->head_dim >= 4;
    if (e->id != Q3_TAP_COS || d->rounding || d->strength == FULL || e->start + e->T < 3 || !plain)
        return;
    double theta = theta_of(e);
    if (theta > 1 && theta < 1e12)
        attempt_digits(d, m, theta, 5, "rope_theta", e->config->rope.rope_theta);
}

/* ==== Eps ===================================================================================== */

/* From the row with the smallest mean square: theirs = gain * weight * x. */
static double eps_of(const evidence *e, const float *plain, const float *x, size_t n)
{
    double least = 0, eps = -1;
    for (size_t r = e->first * e->row / n; r < e->T * e->row / n; r++) {
        double square = 0, xy = 0, yy = 0;
        for (size_t i = r * n; i < (r + 1) * n; i++) {
            square += (double)x[i] * (double)x[i];
            xy += (double)e->theirs[i] * (double)plain[i];
            yy += (double)plain[i] * (double)plain[i];
        }
        square /= (double)n;
        if (!(square > 0 && yy > 0) || (eps >= 0 && square >= least)) continue;
        double gain = xy / yy; /* plain is the norm without eps */
        least = square;
        eps = gain > 0 ? square / (gain * gain) - square : -1;
    }
    return eps;
}

void q3_search_eps(diagnosis *d)
{
    const evidence *e = d->e;
    bool heads = e->id == Q3_TAP_Q_NORM || e->id == Q3_TAP_K_NORM;
    q3_tap_id from = e->id == Q3_TAP_Q_NORM ? Q3_TAP_Q_PROJ : Q3_TAP_K_PROJ;
    mistake m = {.at = TAP_BIT(e->id), .edits = {{PARAMETER, EPS, 0}}};
    pass run;
    if (d->rounding || d->strength == FULL) return;
    const float *x = heads ? e->tap[from] : e->input;
    if (e->id == Q3_TAP_POST_ATTENTION_LAYERNORM) x = e->tap[Q3_TAP_POST_ATTENTION_INPUT];
    else if (!heads && e->id != Q3_TAP_INPUT_LAYERNORM && e->id != Q3_TAP_NORM) return;
    const float *plain = q3_pass_run(&run, e, &m);
    double eps = plain != NULL && x != NULL
        ? eps_of(e, plain, x, heads ? e->config->head_dim : e->row) : -1;
    q3_pass_free(&run);
    if (eps > 0) attempt_digits(d, m, eps, 3, "eps", e->config->rms_norm_eps);
}

/* ==== A limit of up =========================================================================== */

void q3_search_limit(diagnosis *d)
{
    const evidence *e = d->e;
    bool sparse = e->id == Q3_TAP_EXPERTS_DOWN_PROJ_INPUT;
    const float *act = e->tap[sparse ? Q3_TAP_EXPERTS_ACT_FN : Q3_TAP_DENSE_ACT_FN];
    double sum = 0, count = 0;
    mistake m = {.at = TAP_BIT(e->id), .edits = {{ARG_2, WITHIN, 0}}};
    if (!sparse && e->id != Q3_TAP_DENSE_DOWN_PROJ_INPUT) return;
    if (act == NULL || d->rounding || d->strength == FULL) return;
    for (size_t i = e->first * e->row; i < e->T * e->row; i++) {
        if (act[i] == 0.0f || q3_agrees(e, i, e->ours[i])) continue;
        sum += q3_absolute((double)e->theirs[i] / (double)act[i]);
        count++;
    }
    if (count > 0) attempt_digits(d, m, sum / count, 4, "up clamped at", -1);
}

/* ==== Experts ================================================================================= */

/* "4 has the weights of 5, 5 has the weights of 4": at most three. */
static void say_experts(char *text, size_t room, const size_t *map, size_t E)
{
    size_t wrong = 0, used = (size_t)snprintf(text, room, "experts permuted: ");
    for (size_t e = 0; e < E; e++) {
        if (map[e] == e || wrong++ >= 3 || used >= room) continue;
        used += (size_t)snprintf(text + used, room - used, "%s%zu has the weights of %zu", wrong > 1
                                 ? ", " : "", e, map[e]);
    }
    if (wrong > 3 && used < room)
        snprintf(text + used, room - used, " and so on, %zu in all", wrong);
}

/* Which expert's weights make this slot: by the first outputs. E: none. */
static size_t maker_of(const evidence *e, const float *x, size_t slot, size_t N, size_t K)
{
    enum { SOME = 12 };
    float y[SOME];
    const q3_mlp *experts = e->weights->layers[e->layer].experts;
    const q3_tensor none = {NULL, Q3_F32};
    size_t E = e->config->num_experts, n = N < SOME ? N : SOME;
    for (size_t other = 0; other < E; other++) {
        const q3_mlp *m = &experts[other];
        q3_tensor w = e->id == Q3_TAP_EXPERTS_GATE_PROJ ? m->gate_proj
                      : e->id == Q3_TAP_EXPERTS_UP_PROJ ? m->up_proj : m->down_proj;
        bool good = true;
        q3_linear(y, x, w, none, 1, n, K, e->dtype);
        for (size_t i = 0; i < n && good; i++) good = q3_agrees(e, slot * N + i, y[i]);
        if (good) return other;
    }
    return E;
}

/* Each expert's maker, from the first slot of it that is wrong. */
void q3_search_experts(diagnosis *d)
{
    const evidence *e = d->e;
    size_t A = e->config->num_experts_per_tok, E = e->config->num_experts, changed = 0;
    bool down = e->id == Q3_TAP_EXPERTS_DOWN_PROJ;
    const float *ids = e->tap[Q3_TAP_TOPK_INDICES];
    const float *x = e->tap[down ? Q3_TAP_EXPERTS_DOWN_PROJ_INPUT
                            : Q3_TAP_POST_ATTENTION_LAYERNORM];
    if (e->id != Q3_TAP_EXPERTS_GATE_PROJ && e->id != Q3_TAP_EXPERTS_UP_PROJ && !down) return;
    if (ids == NULL || x == NULL || d->rounding) return;
    size_t N = e->row / A, K = down ? e->config->moe_intermediate_size : e->config->hidden_size;
    size_t *map = malloc(E * sizeof *map);
    for (size_t i = 0; map != NULL && i < E; i++) map[i] = i;
    for (size_t slot = e->first * A; map != NULL && slot < e->T * A; slot++) {
        size_t id = (size_t)ids[slot], bad = 0;
        for (size_t i = slot * N; i < (slot + 1) * N; i++) bad += !q3_agrees(e, i, e->ours[i]);
        if (bad == 0 || map[id] != id) continue;
        map[id] = maker_of(e, x + (down ? slot : slot / A) * K, slot, N, K);
        if (map[id] == E) map[id] = id;
        changed += map[id] != id;
    }
    if (map != NULL && changed > 0) {
        char text[160];
        mistake m = {.at = TAP_BIT(e->id), .edits = {{WEIGHT, PERMUTED, 0}}, .map = map,
                     .cause = "experts permuted"};
        say_experts(text, sizeof text, map, E);
        q3_attempt(d, &m, text);
    }
    free(map);
}

/* Where the experts' own tensors are not given: all ids one further, and every two of few
 * experts exchanged. */
void q3_search_hidden_experts(diagnosis *d)
{
    const evidence *e = d->e;
    size_t E = e->config->num_experts;
    mistake m = {.at = TAP_BIT(Q3_TAP_EXPERTS_GATE_PROJ) | TAP_BIT(Q3_TAP_EXPERTS_UP_PROJ) |
                       TAP_BIT(Q3_TAP_EXPERTS_DOWN_PROJ), .edits = {{WEIGHT, PERMUTED, 0}},
                 .cause = "experts permuted"};
    if ((e->id != Q3_TAP_MLP && e->id != Q3_TAP_LAYER) || d->rounding || d->strength == FULL ||
        E == 0) return;
    size_t *map = malloc(E * sizeof *map), pairs = E <= 32 ? E * (E - 1) / 2 : 0, a = 0, b = 0;
    m.map = map;
    for (size_t k = 0; map != NULL && k < pairs + 2 && d->strength != FULL; k++) {
        char text[160];
        for (size_t i = 0; i < E; i++) map[i] = k < 2 ? (i + (k == 0 ? 1 : E - 1)) % E : i;
        if (k >= 2 && ++b == E) b = ++a + 1;
        if (k >= 2) map[a] = b, map[b] = a;
        say_experts(text, sizeof text, map, E);
        q3_attempt(d, &m, text);
    }
    free(map);
}

/* The slots that token t's sum lacks, as bits; 0: none of 2^A choices fits. */
static size_t missing_slots(const evidence *e, size_t t, float *y)
{
    size_t A = e->config->num_experts_per_tok, M = e->row;
    const float *weights = e->tap[Q3_TAP_TOPK_WEIGHTS] + t * A;
    const float *ids = e->tap[Q3_TAP_TOPK_INDICES] + t * A;
    int32_t whole[8];
    float w[8];
    for (size_t bits = 1; bits < (size_t)1 << A; bits++) {
        for (size_t a = 0; a < A; a++) {
            whole[a] = (int32_t)ids[a];
            w[a] = bits >> a & 1 ? 0.0f : weights[a];
        }
        q3_expert_combine(y + t * M, e->tap[Q3_TAP_EXPERTS_DOWN_PROJ] + t * A * M, whole, w, 1, A,
                          M, e->dtype);
        if (row_agrees(e, y, t)) return bits;
    }
    return 0;
}

/* Experts that some tokens' sums lack: over capacity, not traced. */
void q3_search_missing(diagnosis *d)
{
    const evidence *e = d->e;
    size_t A = e->config->num_experts_per_tok, tokens = 0, first = 0, slot = 0;
    bool known = e->tap[Q3_TAP_EXPERTS_DOWN_PROJ] != NULL && e->tap[Q3_TAP_TOPK_WEIGHTS] != NULL &&
                 e->tap[Q3_TAP_TOPK_INDICES] != NULL;
    if (e->id != Q3_TAP_MLP || !known || A > 8 || d->rounding || d->strength == FULL) return;
    float *y = calloc(e->T, e->row * sizeof *y);
    for (size_t t = e->first; y != NULL && t < e->T; t++) {
        size_t bits = 0;
        memcpy(y + t * e->row, e->ours + t * e->row, e->row * sizeof *y);
        if (row_agrees(e, y, t)) continue;
        bits = missing_slots(e, t, y);
        if (bits == 0) {
            free(y);
            return;
        }
        if (tokens++ > 0) continue;
        first = t;
        while (!(bits >> slot & 1)) slot++;
    }
    if (y != NULL && tokens > 0) {
        char text[160];
        snprintf(text, sizeof text,
                 "experts missing from the sum in %zu of %zu tokens (first: token %zu, expert %zu)",
                     tokens,
                 e->T - e->first, q3_own_token(e, first),
                 (size_t)e->tap[Q3_TAP_TOPK_INDICES][first * A + slot]);
        q3_weigh(d, y, text);
    }
    free(y);
}
