/* SPDX-License-Identifier: MIT */
/* The model folder: small ones are written here, whole, in shards and with packed experts, loaded,
 * and compared with the rule that made the weights; then each fault that a folder can have, and its
 * message. */
#define _POSIX_C_SOURCE 200809L
#include "folder.h"
#include "qwen3moe.h"
#include "rule.h"
#include "t.h"

#include <stdbool.h>
#include <stdint.h>

/* ==== A small model =========================================================================== */

enum { V = 11, M = 6, I = 10, F = 5, H = 4, K = 2, HD = 4, E = 3, L = 3, MOST = 96 };

static const char config_text[] =
    "{\"model_type\":\"qwen3_moe\",\"vocab_size\":11,\"hidden_size\":6,\"intermediate_size\":10,"
    "\"num_hidden_layers\":3,\"num_attention_heads\":4,\"num_key_value_heads\":2,\"head_dim\":4,"
    "\"num_experts\":3,\"num_experts_per_tok\":2,\"moe_intermediate_size\":5,"
    "\"mlp_only_layers\":[1]";

/* A tensor to be written. */
typedef struct tensor {
    char name[96];
    size_t rank;
    uint64_t shape[3];
    q3_dtype dtype;
    int file;  /* which shard */
    float add; /* to its first element */
} tensor;

typedef struct tensors {
    tensor t[MOST];
    size_t count;
} tensors;

static tensor *put(tensors *list, const char *name, uint64_t a, uint64_t b, uint64_t c)
{
    tensor *t = &list->t[list->count++];
    *t = (tensor){.rank = b == 0 ? 1 : c == 0 ? 2 : 3, .shape = {a, b, c}, .dtype = Q3_BF16};
    snprintf(t->name, sizeof t->name, "%.95s", name);
    return t;
}

static void put_mlp(tensors *list, const char *prefix, uint64_t width)
{
    char name[96];
    snprintf(name, sizeof name, "%.70sgate_proj.weight", prefix);
    put(list, name, width, M, 0);
    snprintf(name, sizeof name, "%.70sup_proj.weight", prefix);
    put(list, name, width, M, 0);
    snprintf(name, sizeof name, "%.70sdown_proj.weight", prefix);
    put(list, name, M, width, 0);
}

static void put_layer(tensors *list, int i, bool bias, bool packed)
{
    static const struct { const char *name; uint64_t a, b; } own[] = {
        {"input_layernorm.weight", M, 0}, {"post_attention_layernorm.weight", M, 0},
        {"self_attn.q_norm.weight", HD, 0}, {"self_attn.k_norm.weight", HD, 0},
        {"self_attn.q_proj.weight", H * HD, M}, {"self_attn.k_proj.weight", K * HD, M},
        {"self_attn.v_proj.weight", K * HD, M}, {"self_attn.o_proj.weight", M, H * HD},
        {"self_attn.q_proj.bias", H * HD, 0}, {"self_attn.k_proj.bias", K * HD, 0},
        {"self_attn.v_proj.bias", K * HD, 0}, {"self_attn.o_proj.bias", M, 0}};
    char name[96];
    for (size_t k = 0; k < (bias ? 12 : 8); k++) {
        snprintf(name, sizeof name, "model.layers.%d.%s", i, own[k].name);
        put(list, name, own[k].a, own[k].b, 0);
    }
    if (i == 1) {
        put_mlp(list, "model.layers.1.mlp.", I);
        return;
    }
    snprintf(name, sizeof name, "model.layers.%d.mlp.gate.weight", i);
    put(list, name, E, M, 0);
    for (int e = 0; e < E && !packed; e++) {
        snprintf(name, sizeof name, "model.layers.%d.mlp.experts.%d.", i, e);
        put_mlp(list, name, F);
    }
    if (packed) {
        snprintf(name, sizeof name, "model.layers.%d.mlp.experts.gate_up_proj", i);
        put(list, name, E, 2 * F, M);
        snprintf(name, sizeof name, "model.layers.%d.mlp.experts.down_proj", i);
        put(list, name, E, M, F);
    }
}

/* The tensors of the model; layer i is in shard i, the rest in 0. */
static void make_tensors(tensors *list, bool bias, bool packed, bool tied)
{
    *list = (tensors){.count = 0};
    put(list, "model.embed_tokens.weight", V, M, 0);
    put(list, "model.norm.weight", M, 0, 0);
    if (!tied) put(list, "lm_head.weight", V, M, 0);
    for (int i = 0; i < L; i++) {
        size_t first = list->count;
        put_layer(list, i, bias, packed);
        for (; first < list->count; first++) list->t[first].file = i;
    }
}

static tensor *find(tensors *list, const char *name)
{
    for (size_t i = 0; i < list->count; i++) {
        if (strcmp(list->t[i].name, name) == 0) return &list->t[i];
    }
    fprintf(stderr, "the test has no tensor %s\n", name);
    abort();
}

static void drop(tensors *list, const char *name)
{
    tensor *t = find(list, name), *last = &list->t[--list->count];
    for (; t < last; t++) *t = t[1];
}

/* What one matrix of one expert holds, in either layout. */
static void expert_values(float *values, const char *layer, int expert, const char *matrix)
{
    char name[96];
    bool down = strcmp(matrix, "down_proj") == 0;
    snprintf(name, sizeof name, "%smlp.experts.%d.%s.weight", layer, expert, matrix);
    rule_fill(values, "checkpoint", name, down ? M : F, down ? F : M);
}

/* The values of a tensor; the packed ones are put together from those of the experts. */
static size_t values_of(float *values, const tensor *t)
{
    const char *packed = strstr(t->name, "mlp.experts.gate_up_proj");
    const char *down = strstr(t->name, "mlp.experts.down_proj");
    uint64_t columns = t->rank > 1 ? t->shape[1] : 1;
    char layer[96] = "";
    if (packed == NULL && down == NULL) {
        rule_fill(values, "checkpoint", t->name, t->shape[0], columns);
    } else {
        memcpy(layer, t->name, (size_t)((packed != NULL ? packed : down) - t->name));
        for (int e = 0; e < E; e++) {
            if (packed != NULL) {
                expert_values(values + e * 2 * F * M, layer, e, "gate_proj");
                expert_values(values + (e * 2 + 1) * F * M, layer, e, "up_proj");
            } else {
                expert_values(values + e * M * F, layer, e, "down_proj");
            }
        }
        columns *= t->shape[2];
    }
    values[0] += t->add;
    return (size_t)(t->shape[0] * columns);
}

/* Writes the tensors that are in shard `file`, or all of them if it is -1. */
static void write_tensors(const char *name, const tensors *list, int file)
{
    q3_entry entries[MOST];
    size_t from[MOST], count = 0;
    float values[1024];
    int64_t integers[1024] = {0};
    q3_writer *w = NULL;
    q3_error error = {""};
    bool ok = true;
    for (size_t i = 0; i < list->count; i++) {
        const tensor *t = &list->t[i];
        if (file >= 0 && t->file != file) continue;
        entries[count] = (q3_entry){.name = t->name, .dtype = t->dtype, .rank = t->rank,
                                    .shape = {t->shape[0], t->shape[1], t->shape[2]}};
        from[count++] = i;
    }
    folder_expect(name);
    q3_writer_open(&w, folder_path(name), entries, count, NULL, &error);
    for (size_t i = 0; w != NULL && i < count; i++) {
        size_t n = values_of(values, &list->t[from[i]]);
        bool integer = entries[i].dtype == Q3_I32 || entries[i].dtype == Q3_I64;
        ok = ok && (integer ? q3_writer_integers(w, i, 0, integers, n, &error)
                            : q3_writer_floats(w, i, 0, values, n, &error)) == Q3_OK;
    }
    if (w == NULL || !ok || q3_writer_commit(w, &error) != Q3_OK) {
        fprintf(stderr, "cannot write %s: %s\n", name, error.text);
        abort();
    }
}

/* The index of the tensors, with more members at its end. */
static void write_index(const tensors *list, const char *more)
{
    static char text[16384];
    size_t at = (size_t)snprintf(text, sizeof text,
                                 "{\"metadata\":{\"total_size\":1},\"weight_map\":{");
    for (size_t i = 0; i < list->count; i++)
        at += (size_t)snprintf(text + at, sizeof text - at, "%s\"%s\":\"s%d.safetensors\"",
                               i > 0 ? "," : "", list->t[i].name, list->t[i].file);
    at += (size_t)snprintf(text + at, sizeof text - at, "%s}}", more);
    folder_write("model.safetensors.index.json", text, at);
}

static void write_config(const char *more)
{
    char text[1024];
    int n = snprintf(text, sizeof text, "%s%s}", config_text, more);
    folder_write("config.json", text, (size_t)n);
}

/* ==== Loading ================================================================================= */

/* Opens and loads the folder; NULL with the message in *error. */
static q3_model *load(q3_dtype *dtype, size_t first, size_t end, q3_error *error)
{
    q3_model *model = NULL;
    q3_dtype given = *dtype;
    error->text[0] = 0;
    if (q3_model_open(&model, folder.path, error) != Q3_OK) return NULL;
    if (q3_model_load(model, dtype, first, end, error) == Q3_OK) return model;
    CHECK(*dtype == given && error->text[0] != 0);
    q3_model_close(model);
    return NULL;
}

/* Loads all layers and compares the message after the folder's name; "" for none. */
static void expect(const char *what, q3_dtype dtype, const char *want)
{
    char whole[600] = "";
    q3_error error;
    q3_model *model = load(&dtype, 0, L, &error);
    if (want[0] != 0) snprintf(whole, sizeof whole, "%s/%s", folder.path, want);
    CHECKF(strcmp(error.text, whole) == 0, "%s: got \"%s\", want \"%s\"", what, error.text, whole);
    CHECKF((model == NULL) == (want[0] != 0), "%s", what);
    q3_model_close(model);
}

static void check_tensor(q3_tensor got, const char *name, uint64_t rows, uint64_t columns)
{
    float have[256], want[256];
    CHECKF(got.data != NULL, "%s", name);
    if (got.data == NULL) return;
    rule_fill(want, "checkpoint", name, rows, columns);
    q3_widen(have, got, 0, (size_t)(rows * columns), Q3_F32);
    CHECKF(memcmp(have, want, (size_t)(rows * columns) * sizeof *have) == 0, "%s", name);
}

/* prefix + name */
static void check_part(q3_tensor got, const char *prefix, const char *name, uint64_t rows,
                       uint64_t columns)
{
    char whole[96];
    snprintf(whole, sizeof whole, "%s%s", prefix, name);
    check_tensor(got, whole, rows, columns);
}

static void check_mlp(const q3_mlp *mlp, const char *prefix, uint64_t width)
{
    check_part(mlp->gate_proj, prefix, "gate_proj.weight", width, M);
    check_part(mlp->up_proj, prefix, "up_proj.weight", width, M);
    check_part(mlp->down_proj, prefix, "down_proj.weight", M, width);
}

static void check_layer(const q3_layer *l, int i, bool bias)
{
    char p[64];
    snprintf(p, sizeof p, "model.layers.%d.", i);
    check_part(l->input_layernorm, p, "input_layernorm.weight", M, 1);
    check_part(l->post_attention_layernorm, p, "post_attention_layernorm.weight", M, 1);
    check_part(l->q_proj, p, "self_attn.q_proj.weight", H * HD, M);
    check_part(l->k_proj, p, "self_attn.k_proj.weight", K * HD, M);
    check_part(l->v_proj, p, "self_attn.v_proj.weight", K * HD, M);
    check_part(l->o_proj, p, "self_attn.o_proj.weight", M, H * HD);
    check_part(l->q_norm, p, "self_attn.q_norm.weight", HD, 1);
    check_part(l->k_norm, p, "self_attn.k_norm.weight", HD, 1);
    if (bias) {
        check_part(l->q_proj_bias, p, "self_attn.q_proj.bias", H * HD, 1);
        check_part(l->k_proj_bias, p, "self_attn.k_proj.bias", K * HD, 1);
        check_part(l->v_proj_bias, p, "self_attn.v_proj.bias", K * HD, 1);
        check_part(l->o_proj_bias, p, "self_attn.o_proj.bias", M, 1);
    } else {
        CHECK(l->q_proj_bias.data == NULL && l->k_proj_bias.data == NULL &&
              l->v_proj_bias.data == NULL && l->o_proj_bias.data == NULL);
    }
    if (i == 1) {
        check_mlp(&l->mlp, "model.layers.1.mlp.", I);
        CHECK(l->experts == NULL && l->gate.data == NULL);
        return;
    }
    check_part(l->gate, p, "mlp.gate.weight", E, M);
    CHECK(l->experts != NULL && l->mlp.gate_proj.data == NULL);
    for (int e = 0; l->experts != NULL && e < E; e++) {
        snprintf(p, sizeof p, "model.layers.%d.mlp.experts.%d.", i, e);
        check_mlp(&l->experts[e], p, F);
    }
}

/* The folder holds the model, whose run is in dtype. */
static void check_weights(q3_dtype given, q3_dtype want, bool bias, bool tied)
{
    q3_error error;
    q3_model *model = load(&given, 0, L, &error);
    CHECKF(model != NULL, "%s", error.text);
    if (model == NULL) return;
    const q3_weights *w = q3_model_weights(model);
    CHECK(given == want);
    check_tensor(w->embed_tokens, "model.embed_tokens.weight", V, M);
    check_tensor(w->norm, "model.norm.weight", M, 1);
    check_tensor(w->lm_head, tied ? "model.embed_tokens.weight" : "lm_head.weight", V, M);
    for (int i = 0; i < L; i++) check_layer(&w->layers[i], i, bias);
    q3_model_close(model);
}

static void write_shards(const tensors *list)
{
    write_tensors("s0.safetensors", list, 0);
    write_tensors("s1.safetensors", list, 1);
    write_tensors("s2.safetensors", list, 2);
    write_index(list, "");
}

static void check_good(void)
{
    tensors list;
    for (int kind = 0; kind < 16; kind++) {
        bool bias = kind & 1, packed = kind & 2, tied = kind & 4, sharded = kind & 8;
        char more[128];
        folder_empty();
        snprintf(more, sizeof more, ",\"attention_bias\":%s,\"tie_word_embeddings\":%s",
                 bias ? "true" : "false", tied ? "true" : "false");
        write_config(more);
        make_tensors(&list, bias, packed, tied);
        if (sharded)
            write_shards(&list);
        else
            write_tensors("model.safetensors", &list, -1);
        check_weights(Q3_AUTO, Q3_BF16, bias, tied);
    }
    /* dtypes mixed; one layer packed, the other not */
    folder_empty();
    write_config(",\"dtype\":\"float16\"");
    make_tensors(&list, false, true, false);
    tensors apart;
    make_tensors(&apart, false, false, false);
    drop(&list, "model.layers.2.mlp.experts.gate_up_proj");
    drop(&list, "model.layers.2.mlp.experts.down_proj");
    for (size_t i = 0; i < apart.count; i++) {
        if (strncmp(apart.t[i].name, "model.layers.2.mlp.experts.", 27) == 0)
            list.t[list.count++] = apart.t[i];
    }
    for (size_t i = 0; i < list.count; i++)
        list.t[i].dtype = i % 3 == 0 ? Q3_F32 : i % 3 == 1 ? Q3_BF16 : Q3_F16;
    write_tensors("model.safetensors", &list, -1);
    check_weights(Q3_AUTO, Q3_F16, false, false);
    check_weights(Q3_F32, Q3_F32, false, false);
    check_weights(Q3_BF16, Q3_BF16, false, false);
}

/* Only what the layers of the run need is opened. */
static void check_layers(void)
{
    tensors list;
    q3_error error;
    q3_dtype dtype = Q3_AUTO;
    folder_empty();
    write_config("");
    make_tensors(&list, false, false, false);
    write_index(&list, "");
    q3_model *model = load(&dtype, 1, 1, &error); /* no weights at all */
    CHECKF(model != NULL && dtype == Q3_F32, "%s", error.text);
    q3_model_close(model);
    write_tensors("s1.safetensors", &list, 1);
    dtype = Q3_AUTO;
    model = load(&dtype, 1, 2, &error);
    CHECKF(model != NULL && dtype == Q3_BF16, "%s", error.text);
    if (model != NULL) {
        const q3_weights *w = q3_model_weights(model);
        check_layer(&w->layers[1], 1, false);
        CHECK(w->embed_tokens.data == NULL && w->norm.data == NULL && w->lm_head.data == NULL);
        CHECK(w->layers[0].q_proj.data == NULL && w->layers[2].q_proj.data == NULL);
        CHECK(w->layers[0].experts == NULL && w->layers[2].experts == NULL);
    }
    q3_model_close(model);
    CHECK(load(&dtype, 1, 3, &error) == NULL);
    CHECKF(strstr(error.text, "s0.safetensors: no such file") != NULL, "%s", error.text);
    CHECK(load(&dtype, 0, 1, &error) == NULL);
    write_tensors("s0.safetensors", &list, 0);
    model = load(&dtype, 0, 2, &error);
    CHECKF(model != NULL, "%s", error.text);
    if (model != NULL) {
        const q3_weights *w = q3_model_weights(model);
        check_tensor(w->embed_tokens, "model.embed_tokens.weight", V, M);
        check_layer(&w->layers[0], 0, false);
        check_layer(&w->layers[1], 1, false);
        CHECK(w->norm.data == NULL && w->lm_head.data == NULL);
    }
    q3_model_close(model);
    /* tied: the last layers need the embedding */
    folder_empty();
    write_config(",\"tie_word_embeddings\":true");
    make_tensors(&list, false, false, true);
    write_shards(&list);
    model = load(&dtype, 2, 3, &error);
    CHECKF(model != NULL, "%s", error.text);
    if (model != NULL) {
        check_tensor(q3_model_weights(model)->lm_head, "model.embed_tokens.weight", V, M);
        check_layer(&q3_model_weights(model)->layers[2], 2, false);
    }
    q3_model_close(model);
}

/* ==== Faults ================================================================================== */

#define UNKNOWN ": the model has no such tensor"
#define NOTHING ": missing, expected a tensor of shape "

/* One change of one tensor, in the one file that has all. */
typedef enum change { DROP, RENAME, SHAPE, DTYPE, ADD } change;

static const struct {
    change change;
    const char *name, *to; /* RENAME: the new name; ADD: the tensor's name is `to` */
    size_t rank;
    uint64_t shape[3];
    q3_dtype dtype;
    const char *want;
} faults[] = {
    {DROP, "model.norm.weight", "", 0, {0}, Q3_BF16,
     "model.norm.weight" NOTHING "[6]"},
    {DROP, "model.embed_tokens.weight", "", 0, {0}, Q3_BF16,
     "model.embed_tokens.weight" NOTHING "[11,6]"},
    {DROP, "lm_head.weight", "", 0, {0}, Q3_BF16,
     "lm_head.weight" NOTHING "[11,6]"},
    {DROP, "model.layers.2.self_attn.k_norm.weight", "", 0, {0}, Q3_BF16,
     "model.layers.2.self_attn.k_norm.weight" NOTHING "[4]"},
    {DROP, "model.layers.0.mlp.experts.2.down_proj.weight", "", 0, {0}, Q3_BF16,
     "model.layers.0.mlp.experts.2.down_proj.weight" NOTHING "[6,5]"},
    {DROP, "model.layers.2.mlp.gate.weight", "", 0, {0}, Q3_BF16,
     "model.layers.2.mlp.gate.weight" NOTHING "[3,6]"},
    {DROP, "model.layers.1.mlp.up_proj.weight", "", 0, {0}, Q3_BF16,
     "model.layers.1.mlp.up_proj.weight" NOTHING "[10,6]"},
    {RENAME, "model.layers.0.self_attn.o_proj.weight", "model.layers.0.self_attn.o_proj.Weight", 0,
     {0}, Q3_BF16,
     "model.layers.0.self_attn.o_proj.weight" NOTHING "[6,16]"},
    {ADD, "", "model.rotary_emb.inv_freq", 1, {2}, Q3_F32,
     "model.rotary_emb.inv_freq" UNKNOWN},
    {ADD, "", "model.layers.3.input_layernorm.weight", 1, {6}, Q3_BF16,
     "model.layers.3.input_layernorm.weight" UNKNOWN},
    {ADD, "", "model.layers.00.input_layernorm.weight", 1, {6}, Q3_BF16,
     "model.layers.00.input_layernorm.weight" UNKNOWN},
    {ADD, "", "model.layers.0.mlp.experts.3.up_proj.weight", 2, {5, 6}, Q3_BF16,
     "model.layers.0.mlp.experts.3.up_proj.weight" UNKNOWN},
    {ADD, "", "model.layers.1.mlp.gate.weight", 2, {3, 6}, Q3_BF16,
     "model.layers.1.mlp.gate.weight" UNKNOWN},
    {ADD, "", "model.layers.0.self_attn.q_proj.bias", 1, {16}, Q3_BF16,
     "model.layers.0.self_attn.q_proj.bias" UNKNOWN},
    {ADD, "", "model.layers.0.mlp.experts.gate_up_proj", 3, {3, 10, 6}, Q3_BF16,
     "model.layers.0.mlp.experts.down_proj" NOTHING "[3,6,5]"},
    {SHAPE, "model.norm.weight", "", 1, {7}, Q3_BF16,
     "model.norm.weight: found shape [7], expected [6]"},
    {SHAPE, "model.norm.weight", "", 2, {6, 1}, Q3_BF16,
     "model.norm.weight: found shape [6,1], expected [6]"},
    {SHAPE, "model.embed_tokens.weight", "", 2, {6, 11}, Q3_BF16,
     "model.embed_tokens.weight: found shape [6,11], expected [11,6]"},
    {SHAPE, "model.embed_tokens.weight", "", 2, {12, 6}, Q3_BF16,
     "model.embed_tokens.weight: found shape [12,6], expected [11,6]"},
    {SHAPE, "lm_head.weight", "", 1, {66}, Q3_BF16,
     "lm_head.weight: found shape [66], expected [11,6]"},
    {SHAPE, "model.layers.0.self_attn.q_proj.weight", "", 2, {6, 16}, Q3_BF16,
     "model.layers.0.self_attn.q_proj.weight: found shape [6,16], expected [16,6]"},
    {SHAPE, "model.layers.0.self_attn.k_proj.weight", "", 2, {16, 6}, Q3_BF16,
     "model.layers.0.self_attn.k_proj.weight: found shape [16,6], expected [8,6]"},
    {SHAPE, "model.layers.0.mlp.experts.1.gate_proj.weight", "", 2, {6, 5}, Q3_BF16,
     "model.layers.0.mlp.experts.1.gate_proj.weight: found shape [6,5], expected [5,6]"},
    {SHAPE, "model.layers.1.mlp.down_proj.weight", "", 2, {10, 6}, Q3_BF16,
     "model.layers.1.mlp.down_proj.weight: found shape [10,6], expected [6,10]"},
    {SHAPE, "model.layers.0.mlp.gate.weight", "", 2, {6, 3}, Q3_BF16,
     "model.layers.0.mlp.gate.weight: found shape [6,3], expected [3,6]"},
    {SHAPE, "model.layers.2.self_attn.q_norm.weight", "", 1, {16}, Q3_BF16,
     "model.layers.2.self_attn.q_norm.weight: found shape [16], expected [4]"},
    {DTYPE, "model.norm.weight", "", 0, {0}, Q3_F64,
     "model.norm.weight: found dtype float64, expected float32, bfloat16 or float16"},
    {DTYPE, "model.layers.0.mlp.gate.weight", "", 0, {0}, Q3_I32,
     "model.layers.0.mlp.gate.weight: found dtype int32, expected float32, bfloat16 or float16"},
    {DTYPE, "lm_head.weight", "", 0, {0}, Q3_I64,
     "lm_head.weight: found dtype int64, expected float32, bfloat16 or float16"},
};

static void check_faults(void)
{
    tensors list;
    folder_empty();
    write_config("");
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) {
        char want[400];
        make_tensors(&list, false, false, false);
        tensor *t = faults[i].change != ADD ? find(&list, faults[i].name) : NULL;
        if (t == NULL) t = put(&list, faults[i].to, 1, 0, 0);
        if (faults[i].change == DROP) drop(&list, faults[i].name);
        if (faults[i].change == RENAME) snprintf(t->name, sizeof t->name, "%s", faults[i].to);
        if (faults[i].change == DTYPE || faults[i].change == ADD) t->dtype = faults[i].dtype;
        if (faults[i].change == SHAPE || faults[i].change == ADD) {
            t->rank = faults[i].rank;
            memcpy(t->shape, faults[i].shape, sizeof t->shape);
        }
        write_tensors("model.safetensors", &list, -1);
        snprintf(want, sizeof want, "model.safetensors: %s", faults[i].want);
        expect(faults[i].name, Q3_AUTO, want);
    }
    /* packed experts */
    make_tensors(&list, false, true, false);
    find(&list, "model.layers.2.mlp.experts.gate_up_proj")->shape[1] = F;
    write_tensors("model.safetensors", &list, -1);
    expect("gate without up", Q3_AUTO, "model.safetensors: model.layers.2.mlp.experts.gate_up_proj"
           ": found shape [3,5,6], expected [3,10,6]");
    make_tensors(&list, false, true, false);
    drop(&list, "model.layers.2.mlp.experts.gate_up_proj");
    write_tensors("model.safetensors", &list, -1);
    expect("down alone", Q3_AUTO, "model.safetensors: "
           "model.layers.2.mlp.experts.0.gate_proj.weight" NOTHING "[5,6]");
    make_tensors(&list, false, true, false);
    put(&list, "model.layers.0.mlp.experts.1.up_proj.weight", F, M, 0);
    write_tensors("model.safetensors", &list, -1);
    expect("both layouts", Q3_AUTO, "model.safetensors: "
           "model.layers.0.mlp.experts.1.up_proj.weight" UNKNOWN);
}

#define OTHER_HEAD "model.safetensors: lm_head.weight: differs from model.embed_tokens.weight, " \
                   "though tie_word_embeddings is true"

static void check_tied(void)
{
    tensors list;
    folder_empty();
    write_config(",\"tie_word_embeddings\":true");
    make_tensors(&list, false, false, false);
    write_tensors("model.safetensors", &list, -1);
    expect("another head", Q3_AUTO, OTHER_HEAD);
    drop(&list, "lm_head.weight");
    write_tensors("model.safetensors", &list, -1);
    expect("no head", Q3_AUTO, "");
}

/* A model.safetensors of these tensors, all zeros so far. */
static q3_writer *start_writing(const tensors *list)
{
    q3_entry entries[MOST];
    q3_writer *w = NULL;
    q3_error error = {""};
    for (size_t i = 0; i < list->count; i++) {
        const tensor *t = &list->t[i];
        entries[i] = (q3_entry){.name = t->name, .dtype = t->dtype, .rank = t->rank,
                                .shape = {t->shape[0], t->shape[1], t->shape[2]}};
    }
    folder_expect("model.safetensors");
    q3_writer_open(&w, folder_path("model.safetensors"), entries, list->count, NULL, &error);
    if (w == NULL) {
        fprintf(stderr, "cannot write model.safetensors: %s\n", error.text);
        abort();
    }
    return w;
}

/* A tied model whose head is the embedding under another name, in the same or another dtype. */
static void check_equal_head(q3_dtype head_dtype, float add, const char *want)
{
    tensors list;
    float values[V * M];
    q3_writer *w;
    q3_error error = {""};
    folder_empty();
    write_config(",\"tie_word_embeddings\":true");
    make_tensors(&list, false, false, false);
    find(&list, "lm_head.weight")->dtype = head_dtype;
    w = start_writing(&list);
    values_of(values, find(&list, "model.embed_tokens.weight"));
    for (size_t i = 0; i < list.count; i++) {
        bool head = strcmp(list.t[i].name, "lm_head.weight") == 0;
        if (head) values[V * M - 1] += add;
        if (head || strcmp(list.t[i].name, "model.embed_tokens.weight") == 0)
            CHECK(q3_writer_floats(w, i, 0, values, V * M, &error) == Q3_OK);
    }
    CHECK(q3_writer_commit(w, &error) == Q3_OK);
    expect("equal head", Q3_F32, want);
}

#define BEYOND " in element 3, expected a value that is finite in "

/* Values on both sides of the largest that a dtype holds; infinity and NaN are no overflow. */
static void check_overflow(void)
{
    static const struct { uint32_t bits; q3_dtype stored, run; const char *want; } at[] = {
        {0x477FEFFF, Q3_F32, Q3_F16, ""}, /* the float before 65520 */
        {0x477FF000, Q3_F32, Q3_F16, "found 65520.0" BEYOND "float16"},
        {0xC77FF000, Q3_F32, Q3_F16, "found -65520.0" BEYOND "float16"},
        {0x477FF000, Q3_F32, Q3_BF16, ""},
        {0x477FF000, Q3_F32, Q3_F32, ""},
        {0x7F7F7FFF, Q3_F32, Q3_BF16, ""}, /* below half way to 2^128 */
        {0x7F7F8000, Q3_F32, Q3_BF16,
         "found 3.39617752923046e+38" BEYOND "bfloat16"},
        {0xFF7FFFFF, Q3_F32, Q3_BF16,
         "found -3.4028234663852886e+38" BEYOND "bfloat16"},
        {0x7F7FFFFF, Q3_F32, Q3_F32, ""},
        {0x7F800000, Q3_F32, Q3_F16, ""},
        {0xFF800000, Q3_F32, Q3_BF16, ""},
        {0x7FC00000, Q3_F32, Q3_F16, ""},
        {0x47800000, Q3_BF16, Q3_F16, "found 65536.0" BEYOND "float16"},
        {0x477F0000, Q3_BF16, Q3_F16, ""},
        {0x7F7F0000, Q3_BF16, Q3_F32, ""},
        {0x7F7F0000, Q3_BF16, Q3_BF16, ""},
        {0x477FE000, Q3_F16, Q3_BF16, ""}, /* 65504 */
    };
    static const char name[] = "model.layers.2.mlp.experts.1.down_proj.weight";
    folder_empty();
    write_config("");
    for (size_t i = 0; i < sizeof at / sizeof *at; i++) {
        tensors list;
        q3_writer *w;
        q3_error error = {""};
        char want[300] = "";
        float value;
        make_tensors(&list, false, false, false);
        find(&list, name)->dtype = at[i].stored;
        w = start_writing(&list);
        memcpy(&value, &at[i].bits, sizeof value);
        size_t index = (size_t)(find(&list, name) - list.t);
        CHECK(q3_writer_floats(w, index, 3, &value, 1, &error) == Q3_OK);
        CHECK(q3_writer_commit(w, &error) == Q3_OK);
        if (at[i].want[0] != 0)
            snprintf(want, sizeof want, "model.safetensors: %s: %s", name, at[i].want);
        expect(name, at[i].run, want);
    }
}

static void check_dtypes(void)
{
    tensors list;
    folder_empty();
    make_tensors(&list, false, false, false);
    find(&list, "model.layers.1.mlp.up_proj.weight")->dtype = Q3_F32;
    write_tensors("model.safetensors", &list, -1);
    write_config("");
    expect("mixed", Q3_AUTO, "model.safetensors: dtype: found bfloat16 in "
           "model.embed_tokens.weight and float32 in model.layers.1.mlp.up_proj.weight; "
           "name the dtype of the run");
    check_weights(Q3_F32, Q3_F32, false, false);
    write_config(",\"torch_dtype\":\"bfloat16\"");
    check_weights(Q3_AUTO, Q3_BF16, false, false);
    check_weights(Q3_F16, Q3_F16, false, false);
    write_config(",\"dtype\":\"float32\"");
    check_weights(Q3_AUTO, Q3_F32, false, false);
}

/* Which files there are, and the index. */
static void check_files(void)
{
    tensors list;
    q3_dtype dtype = Q3_AUTO;
    q3_error error;
    q3_model *model = NULL;
    folder_empty();
    write_config("");
    make_tensors(&list, false, false, false);
    expect("no weights", Q3_AUTO, ": weights: found neither file, expected model.safetensors or "
           "model.safetensors.index.json");
    CHECK(q3_model_open(&model, folder_path("config.json"), &error) == Q3_OK);
    CHECK(model != NULL && q3_model_load(model, &dtype, 0, L, &error) == Q3_ERROR_INPUT);
    CHECKF(strstr(error.text, "config.json: a config.json alone has no weights, expected a model "
                  "folder") != NULL, "%s", error.text);
    q3_model_close(model);
    write_shards(&list);
    expect("shards", Q3_AUTO, "");
    write_tensors("model.safetensors", &list, -1);
    expect("both", Q3_AUTO, ": weights: found both files, expected model.safetensors or "
           "model.safetensors.index.json");
    remove(folder_path("model.safetensors"));
    write_index(&list, ",\"model.rotary_emb.inv_freq\":\"s0.safetensors\"");
    expect("index lists more", Q3_AUTO,
           "model.safetensors.index.json: model.rotary_emb.inv_freq" UNKNOWN);
    drop(&list, "model.layers.2.mlp.gate.weight");
    write_index(&list, "");
    expect("index lists less", Q3_AUTO,
           "model.safetensors.index.json: model.layers.2.mlp.gate.weight" NOTHING "[3,6]");
    make_tensors(&list, false, false, false);
    write_index(&list, "");
    drop(&list, "model.layers.1.mlp.up_proj.weight");
    write_tensors("s1.safetensors", &list, 1);
    expect("shard has less", Q3_AUTO, "s1.safetensors: model.layers.1.mlp.up_proj.weight: "
           "missing, though the index puts it here");
    make_tensors(&list, false, false, false);
    put(&list, "model.norm.weight", M, 0, 0)->file = 1;
    write_tensors("s1.safetensors", &list, 1);
    expect("twice", Q3_AUTO, "s1.safetensors: model.norm.weight: the index puts this "
           "tensor into another file");
    make_tensors(&list, false, false, false);
    put(&list, "extra", M, 0, 0)->file = 1;
    write_tensors("s1.safetensors", &list, 1);
    expect("unlisted", Q3_AUTO, "s1.safetensors: extra: the index does not list this tensor");
}

#define NO_FILE ", expected the name of a file in the folder"

/* The index itself. */
static void check_index(void)
{
    static const struct { const char *text, *want; } cases[] = {
        {"{}", "weight_map: found nothing, expected an object of tensors and their files"},
        {"[]", "weight_map: found nothing, expected an object of tensors and their files"},
        {"{\"weight_map\":[]}",
         "weight_map: found an array, expected an object of tensors and their files"},
        {"{\"weight_map\":{}}", "model.embed_tokens.weight" NOTHING "[11,6]"},
        {"{\"weight_map\":{\"a\":1}}", "a: found 1" NO_FILE},
        {"{\"weight_map\":{\"a\":null}}", "a: found null" NO_FILE},
        {"{\"weight_map\":{\"a\":\"\"}}", "a: found \"\"" NO_FILE},
        {"{\"weight_map\":{\"a\":\"../b\"}}",
         "a: found \"../b\"" NO_FILE},
        {"{\"weight_map\":{\"a\":\"/b\"}}",
         "a: found \"/b\"" NO_FILE},
        {"{\"weight_map\":{\"a\":\"c\\\\b\"}}",
         "a: found \"c\\\\b\"" NO_FILE},
        {"{\"weight_map\":{\"a\":\"..\"}}",
         "a: found \"..\"" NO_FILE},
        {"{\"weight_map\":{\"a\":\"b\\u0000\"}}",
         "a: found \"b\\u0000\"" NO_FILE},
        {"{\"weight_map\":{\"a\\u0000\":\"b\"}}",
         "weight_map: found \"a\\u0000\", expected a name without zero bytes"},
    };
    folder_empty();
    write_config("");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char want[300];
        folder_write("model.safetensors.index.json", cases[i].text, strlen(cases[i].text));
        snprintf(want, sizeof want, "model.safetensors.index.json: %s", cases[i].want);
        expect(cases[i].text, Q3_AUTO, want);
    }
    static const char twice[] = "{\"weight_map\":{\"a\":\"b\",\"a\":\"b\"}}";
    folder_write("model.safetensors.index.json", twice, sizeof twice - 1);
    q3_error error;
    q3_dtype dtype = Q3_AUTO;
    CHECK(load(&dtype, 0, L, &error) == NULL);
    CHECKF(strstr(error.text, "model.safetensors.index.json: ") != NULL, "%s", error.text);
}

/* ==== Ids that end a generation =============================================================== */

static void check_eos_case(const char *config, const char *generation, size_t count, int32_t first,
                           int32_t last, const char *want)
{
    char text[64];
    q3_model *model = NULL;
    q3_error error = {""};
    const int32_t *ids = NULL;
    size_t found = 77;
    folder_empty();
    snprintf(text, sizeof text, "%s%s", config[0] != 0 ? ",\"eos_token_id\":" : "", config);
    write_config(text);
    if (generation != NULL) folder_write("generation_config.json", generation, strlen(generation));
    CHECK(q3_model_open(&model, folder.path, &error) == Q3_OK);
    for (int again = 0; model != NULL && again < 2; again++) {
        q3_status status = q3_model_eos(model, &ids, &found, &error);
        CHECK((status == Q3_OK) == (want == NULL));
        if (want == NULL)
            CHECKF(found == count && (count == 0 || (ids[0] == first && ids[count - 1] == last)),
                   "{%s} {%s}", config, generation != NULL ? generation : "");
        else
            CHECKF(strstr(error.text, want) != NULL && found == 77, "got \"%s\", want \"%s\" in it",
                   error.text, want);
    }
    q3_model_close(model);
}

static void check_eos(void)
{
    static const char what[] = ", expected a token id, a list of token ids, or null";
    char want[200];
    check_eos_case("", NULL, 0, 0, 0, NULL);
    check_eos_case("null", NULL, 0, 0, 0, NULL);
    check_eos_case("7", NULL, 1, 7, 7, NULL);
    check_eos_case("[7,9,8]", NULL, 3, 7, 8, NULL);
    check_eos_case("[]", NULL, 0, 0, 0, NULL);
    check_eos_case("7", "{\"eos_token_id\":[5,6]}", 2, 5, 6, NULL);
    check_eos_case("7", "{\"eos_token_id\":0}", 1, 0, 0, NULL);
    check_eos_case("7", "{\"eos_token_id\":null}", 0, 0, 0, NULL);
    check_eos_case("7", "{\"top_k\":20}", 1, 7, 7, NULL);
    check_eos_case("", "{\"eos_token_id\":2147483647}", 1, INT32_MAX, INT32_MAX, NULL);
    check_eos_case("\"x\"", "{\"eos_token_id\":3}", 1, 3, 3, NULL);
    snprintf(want, sizeof want, "/config.json: eos_token_id: found \"x\"%s", what);
    check_eos_case("\"x\"", NULL, 0, 0, 0, want);
    snprintf(want, sizeof want, "/config.json: eos_token_id: found -1%s", what);
    check_eos_case("[3,-1]", NULL, 0, 0, 0, want);
    snprintf(want, sizeof want, "/config.json: eos_token_id: found 2147483648%s", what);
    check_eos_case("2147483648", NULL, 0, 0, 0, want);
    snprintf(want, sizeof want, "/generation_config.json: eos_token_id: found true%s", what);
    check_eos_case("7", "{\"eos_token_id\":true}", 0, 0, 0, want);
    check_eos_case("7", "[]", 0, 0, 0, "/generation_config.json: file: found ");
    check_eos_case("7", "{\"eos_token_id\":1", 0, 0, 0, "/generation_config.json: byte 17: ");
}

/* ==== Sizes =================================================================================== */

/* The index of Qwen3-235B-A22B: 36,945 tensors in 118 shards, none of which is there. A run of no
 * layers loads; a missing or an unknown name is found. */
static void check_large_index(void)
{
    static const char *const rest[] = {
        "input_layernorm.weight", "post_attention_layernorm.weight", "mlp.gate.weight",
        "self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight",
        "self_attn.o_proj.weight", "self_attn.q_norm.weight", "self_attn.k_norm.weight"};
    static const char *const matrices[] = {"gate", "up", "down"};
    static const char config[] =
        "{\"model_type\":\"qwen3_moe\",\"hidden_size\":4096,\"intermediate_size\":12288,"
        "\"num_hidden_layers\":94,\"num_attention_heads\":64,\"head_dim\":128,"
        "\"moe_intermediate_size\":1536}";
    size_t capacity = 5000000, at = 0, count = 3;
    char *text = malloc(capacity);
    q3_dtype dtype = Q3_AUTO;
    q3_error error;
    if (text == NULL) abort();
    at += (size_t)snprintf(text, capacity, "{\"weight_map\":{\"lm_head.weight\":\"m-117\","
                           "\"model.norm.weight\":\"m-117\","
                           "\"model.embed_tokens.weight\":\"m-000\"");
    for (int i = 0; i < 94; i++) {
        for (size_t k = 0; k < 9 + 128 * 3; k++, count++) {
            at += (size_t)snprintf(text + at, capacity - at, ",\"model.layers.%d.", i);
            if (k < 9)
                at += (size_t)snprintf(text + at, capacity - at, "%s", rest[k]);
            else
                at += (size_t)snprintf(text + at, capacity - at, "mlp.experts.%d.%s_proj.weight",
                                       (int)(k - 9) / 3, matrices[(k - 9) % 3]);
            at += (size_t)snprintf(text + at, capacity - at, "\":\"m-%03d-of-00118.safetensors\"",
                                   (int)(count * 118 / 36945));
        }
    }
    CHECK(count == 36945 && at < capacity - 100);
    folder_empty();
    folder_write("config.json", config, sizeof config - 1);
    size_t n = at + (size_t)snprintf(text + at, capacity - at, "}}");
    folder_write("model.safetensors.index.json", text, n);
    q3_model *model = load(&dtype, 40, 40, &error);
    CHECKF(model != NULL, "%s", error.text);
    q3_model_close(model);
    CHECK(load(&dtype, 40, 41, &error) == NULL);
    CHECKF(strstr(error.text, ".safetensors: no such file") != NULL, "%s", error.text);
    n = at + (size_t)snprintf(text + at, capacity - at,
                              ",\"model.layers.94.mlp.gate.weight\":\"m\"}}");
    folder_write("model.safetensors.index.json", text, n);
    CHECK(load(&dtype, 40, 40, &error) == NULL);
    CHECKF(strstr(error.text, "model.layers.94.mlp.gate.weight: the model has no such "
                  "tensor") != NULL, "%s", error.text);
    text[at - 40 - 27] = 'X'; /* in the last tensor's name */
    n = at + (size_t)snprintf(text + at, capacity - at, "}}");
    folder_write("model.safetensors.index.json", text, n);
    CHECK(load(&dtype, 40, 40, &error) == NULL);
    CHECKF(strstr(error.text, "model.layers.93.mlp.experts.127.down_proj.weight: missing, "
                  "expected a tensor of shape [4096,1536]") != NULL, "%s", error.text);
    free(text);
}

int main(int argc, char **argv)
{
    (void)argv;
    if (argc > 2) {
        fprintf(stderr, "usage: test_checkpoint\n");
        return 2;
    }
    folder_make("test_checkpoint.tmp");
    check_good();
    check_layers();
    check_faults();
    check_tied();
    check_equal_head(Q3_BF16, 0.0f, "");
    check_equal_head(Q3_F32, 0.0f, "");
    check_equal_head(Q3_F32, 0.5f, OTHER_HEAD);
    check_overflow();
    check_dtypes();
    check_files();
    check_index();
    check_eos();
    check_large_index();
    folder_remove();
    return t_done("checkpoint");
}
