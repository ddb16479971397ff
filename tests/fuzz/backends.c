/* SPDX-License-Identifier: MIT */
/* backends.c - the judge on what a backend of bytes gives: each byte chooses for one tap of a small
 * model whether it is there, under which of its names, how its axes lie, as which dtype, and what
 * is wrong with it; and two such files are compared. What nothing is wrong with must not differ. */
#include "fuzz.h"
#include "host/taps.h"
#include "judge/backend.h"
#include "model.h"

#include <math.h>

enum { T = 3, L = 2, MOST = L * Q3_TAP_COUNT + 8, POOL = 1 << 16 };

static const size_t dense[] = {1};
/* No two axes are equally long. */
static const q3_config config = {
    .vocab_size = 11, .hidden_size = 10, .intermediate_size = 7, .moe_intermediate_size = 5,
    .num_hidden_layers = L, .num_attention_heads = 4, .num_key_value_heads = 2, .head_dim = 6,
    .num_experts = 9, .num_experts_per_tok = 2, .norm_topk_prob = true, .decoder_sparse_step = 1,
    .mlp_only_layers = dense, .mlp_only_count = 1, .max_position_embeddings = 4096,
    .pad_token_id = -1, .rms_norm_eps = 1e-6, .rope = {.rope_theta = 1e6}};

/* The model, and its taps as they are right. */
typedef struct truth {
    fixture f;
    int32_t ids[T];
    float *tap[L][Q3_TAP_COUNT]; /* NULL: does not exist */
    size_t rank[Q3_TAP_COUNT], shape[Q3_TAP_COUNT][3];
} truth;

/* A backend's tensors. */
typedef struct file {
    q3_entry entries[MOST];
    size_t count, used;
    char names[MOST][Q3_NAME_ROOM];
    uint8_t pool[POOL];
    bool honest; /* right values under their own names */
} file;

/* What chooses: bytes, and zeros behind them. */
typedef struct choices {
    const uint8_t *data;
    size_t left;
} choices;

static unsigned choose(choices *c)
{
    if (c->left == 0) return 0;
    c->left--;
    return *c->data++;
}

/* scores and probs come query by query, with the keys so far. */
static void capture(void *user, const q3_tap *tap)
{
    truth *m = user;
    float *to = m->tap[tap->layer][tap->id];
    size_t count = 1;
    for (size_t k = 0; k < tap->rank; k++) count *= tap->shape[k];
    for (size_t i = 0; i < count; i++) {
        size_t keys = tap->shape[2], at = i;
        if (q3_tap_is_square(tap->id)) at = (i / keys * T + tap->first) * T + i % keys;
        to[at] = tap->dtype == Q3_I32 ? (float)((int32_t *)tap->data)[i] : ((float *)tap->data)[i];
    }
}

static void make_room(truth *m, q3_tap_id id)
{
    size_t count = 1;
    m->rank[id] = q3_tap_shape(m->shape[id], &config, id, T);
    if (q3_tap_is_square(id)) m->shape[id][0] = 4, m->shape[id][1] = T;
    for (size_t k = 0; k < m->rank[id]; k++) count *= m->shape[id][k];
    for (size_t l = 0; l < L; l++) {
        if (!q3_tap_exists(&config, 0, L, id, l)) continue;
        m->tap[l][id] = calloc(count, sizeof(float));
        REQUIRE(m->tap[l][id] != NULL);
    }
}

/* Made once, kept. */
static const truth *the_truth(void)
{
    static truth m;
    if (m.f.weights != NULL) return &m;
    q3_run run = {.dtype = Q3_F32, .end_layer = L, .rows = T, .chunk = T};
    q3_input input = {.tokens = m.ids, .count = T, .length = T, .logit_rows = T};
    void *memory;
    q3_error error;
    fixture_of(&m.f, &config, "fuzz");
    for (size_t t = 0; t < T; t++) m.ids[t] = (int32_t)(4 * t + 1);
    for (size_t i = 0; i < Q3_TAP_COUNT; i++) make_room(&m, (q3_tap_id)i);
    q3_state *state = fixture_state(&m.f, &run, &memory);
    REQUIRE(state != NULL && q3_forward(state, &input, capture, &m, &error) == Q3_OK);
    free(memory);
    return &m;
}

/* The elements with their axes in another order: order[k] is the axis that becomes the k-th. */
static void permute(float *to, const float *from, const size_t shape[3], size_t rank,
                    const size_t order[3])
{
    size_t stride[3], n[3] = {1, 1, 1}, step[3] = {0, 0, 0};
    for (size_t k = rank, s = 1; k-- > 0; s *= shape[k]) stride[k] = s;
    for (size_t k = 0; k < rank; k++) n[k] = shape[order[k]], step[k] = stride[order[k]];
    for (size_t i = 0; i < n[0]; i++)
        for (size_t j = 0; j < n[1]; j++)
            for (size_t k = 0; k < n[2]; k++)
                to[(i * n[1] + j) * n[2] + k] = from[i * step[0] + j * step[1] + k * step[2]];
}

/* Spoils values: one, all, or one to a value that is no number. */
static void spoil(float *y, size_t count, choices *c)
{
    static const float values[] = {0.0f, -1.0f, 1e-45f, 3e38f, INFINITY, NAN, 1e9f, 0.5f};
    unsigned how = choose(c);
    size_t at = choose(c) % count;
    if (how % 4 == 0) y[at] = values[how / 4 % 8];
    else if (how % 4 == 1) y[at] += y[at] / 64;
    else
        for (size_t i = 0; i < count; i++)
            y[i] = how % 4 == 2 ? y[i] * 2 : values[how / 4 % 8];
}

/* Little-endian. */
static void put_value(file *f, float value, q3_dtype dtype)
{
    uint64_t bits = 0;
    uint32_t low;
    double wide = (double)value;
    if (dtype == Q3_F64) memcpy(&bits, &wide, 8);
    else if (dtype == Q3_F32) memcpy(&low, &value, 4), bits = low;
    else bits = value > -1e6f && value < 1e6f ? (uint64_t)(int64_t)value : UINT64_MAX;
    for (size_t k = 0; k < (dtype == Q3_F64 || dtype == Q3_I64 ? 8 : 4); k++)
        f->pool[f->used++] = (uint8_t)(bits >> 8 * k & 0xFF);
}

static void add_tap(file *f, const truth *m, q3_tap_id id, size_t layer, choices *c)
{
    static const size_t orders[][3] = {{0, 1, 2}, {1, 0, 2}, {0, 2, 1}, {2, 1, 0}, {1, 2, 0}};
    unsigned how = choose(c);
    size_t rank = m->rank[id], count = 1, order[3];
    q3_entry *e = &f->entries[f->count];
    float y[512];
    if (how % 8 == 3) return;
    size_t nth = how % 8 == 4 ? choose(c) % 5 : 0;
    memcpy(order, orders[rank == 2 && nth > 1 ? 0 : nth], sizeof order);
    *e = (q3_entry){.name = f->names[f->count], .dtype = Q3_F32, .rank = rank,
                    .data = f->pool + f->used};
    if (how & 16) e->dtype = Q3_F64;
    if (id == Q3_TAP_TOPK_INDICES) e->dtype = how & 16 ? Q3_I64 : Q3_I32;
    for (size_t k = 0; k < rank; k++) count *= (size_t)(e->shape[k] = m->shape[id][order[k]]);
    REQUIRE(count <= 512 && f->used + 8 * count <= POOL && f->count < MOST);
    permute(y, m->tap[layer][id], m->shape[id], rank, order);
    q3_tap_name(f->names[f->count], id, layer);
    if (how % 8 == 5) { /* another name; of a part of a tensor, maybe */
        q3_other_name other;
        size_t index = choose(c);
        if (q3_other_name_at(&other, &config, id, layer, index)) {
            size_t before = strcspn(other.name, "#");
            if (other.name[before] == '#')
                snprintf(f->names[f->count], Q3_NAME_ROOM, "%.*s%zu%s", (int)before, other.name,
                         other.number, other.name + before + 1);
            else
                snprintf(f->names[f->count], Q3_NAME_ROOM, "%s", other.name);
            f->honest = false;
        }
    }
    if (how % 8 == 6) spoil(y, count, c), f->honest = false;
    if (how % 8 == 7) e->shape[choose(c) % rank] += choose(c) % 3, f->honest = false;
    if (how & 8) { /* a batch axis */
        memmove(e->shape + 1, e->shape, rank * sizeof *e->shape);
        e->shape[0] = 1;
        e->rank++;
    }
    uint64_t all = 1;
    for (size_t k = 0; k < e->rank; k++) all *= e->shape[k];
    if (all > 512) return;
    for (size_t i = count; i < all; i++) y[i] = 0.0f;
    for (size_t i = 0; i < all; i++) put_value(f, y[i], e->dtype);
    f->count++;
}

static void make_file(file *f, const truth *m, choices *c)
{
    f->count = f->used = 0;
    f->honest = true;
    for (size_t l = 0; l < L; l++)
        for (size_t id = 0; id < Q3_TAP_COUNT; id++)
            if (m->tap[l][id] != NULL) add_tap(f, m, (q3_tap_id)id, l, c);
}

static void judge(const file *f, const truth *m, choices *c)
{
    unsigned how = choose(c), more = choose(c);
    const q3_judge_options options = {
        .free_running = how & 1, .strict = how >> 1 & 1, .accumulate = (q3_accumulate)(more % 8),
        .kv = (q3_dtype)(how >> 2 & 1), .router = (q3_dtype)(how >> 3 & 1),
        .first_layer = how >> 4 & 1, .end_layer = how >> 5 & 3, .side = how & 128 ? 'A' : 0};
    q3_judge *judge = NULL;
    q3_report *report = NULL;
    q3_error error = {""};
    q3_status status = q3_judge_open(&judge, &config, &options, &error);
    if (status == Q3_OK) status = q3_judge_tokens(judge, m->ids, T, &error);
    for (size_t i = 0; i < f->count && status == Q3_OK; i++)
        status = q3_judge_tensor(judge, &f->entries[i], &error);
    if (status == Q3_OK) status = q3_judge_run(judge, m->f.weights, Q3_F32, &report, &error);
    require_line(status, &error);
    if (status == Q3_OK) {
        bool wrong = f->honest && q3_report_outcome(report) == Q3_OUTCOME_DIFFERS;
        if (wrong) q3_report_sentence(report, &error), fprintf(stderr, "%s\n", error.text);
        REQUIRE(!wrong || options.strict);
        require_forms(report);
    }
    q3_report_close(report);
    q3_judge_close(judge);
}

/* False: the names are not such that a file can have them. */
static bool write_file(const file *f, const char *path)
{
    q3_writer *writer;
    q3_error error = {""};
    q3_status status = q3_writer_open(&writer, path, f->entries, f->count, NULL, &error);
    require_line(status, &error);
    if (status != Q3_OK) return false;
    for (size_t i = 0; i < f->count; i++) {
        const q3_entry *e = &f->entries[i];
        float y[512];
        int64_t ids[512];
        size_t count = 1;
        for (size_t k = 0; k < e->rank; k++) count *= (size_t)e->shape[k];
        if (e->dtype == Q3_I32 || e->dtype == Q3_I64) {
            q3_entry_integers(ids, e, 0, count);
            REQUIRE(q3_writer_integers(writer, i, 0, ids, count, &error) == Q3_OK);
        } else {
            q3_entry_floats(y, e, 0, count);
            REQUIRE(q3_writer_floats(writer, i, 0, y, count, &error) == Q3_OK);
        }
    }
    REQUIRE(q3_writer_commit(writer, &error) == Q3_OK);
    return true;
}

static void compare(const char *a, const char *b, bool same)
{
    q3_report *report = NULL;
    q3_error error = {""};
    q3_status status = q3_diff(&report, a, b, NULL, NULL, NULL, &error);
    require_line(status, &error);
    if (status != Q3_OK) return;
    REQUIRE(!same || q3_report_outcome(report) != Q3_OUTCOME_DIFFERS);
    require_forms(report);
    q3_report_close(report);
}

void fuzz_backends(const uint8_t *data, size_t size)
{
    static file first, second;
    choices c = {data, size};
    const truth *m = the_truth();
    make_file(&first, m, &c);
    judge(&first, m, &c);
    make_file(&second, m, &c);
    if (choose(&c) % 4 == 0 && write_file(&first, "fuzz-1.safetensors")) {
        compare("fuzz-1.safetensors", "fuzz-1.safetensors", true);
        if (write_file(&second, "fuzz-2.safetensors"))
            compare("fuzz-1.safetensors", "fuzz-2.safetensors", false);
    }
    remove("fuzz-1.safetensors");
    remove("fuzz-2.safetensors");
}
