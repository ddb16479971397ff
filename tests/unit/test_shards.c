/* SPDX-License-Identifier: MIT */
/* A checkpoint of many shards: 40 files, 6,003 tensors. Each weight is the one of its name, and the
 * time to open grows with the number of tensors, not with its square. */
#include "folder.h"
#include "qwen3moe.h"
#include "t.h"

#include <time.h>

/* Layers of 9 + 3 E tensors; 1 and 10 of them are 603 and 6,003 tensors with the three ends. */
enum { M = 2, E = 197, MOST_LAYERS = 10, LAYER = 9 + 3 * E, MOST = 3 + MOST_LAYERS * LAYER };

static struct {
    char names[MOST][64];
    q3_entry entries[MOST]; /* all [M,M] or [M]; the first element is the tensor's number */
    size_t count;
} all;

static void add(const char *name, uint64_t rows, uint64_t columns)
{
    q3_entry *entry = &all.entries[all.count];
    snprintf(all.names[all.count], sizeof all.names[0], "%.63s", name);
    *entry = (q3_entry){.name = all.names[all.count++], .dtype = Q3_F32,
                        .rank = columns == 0 ? 1 : 2, .shape = {rows, columns}};
}

static void add_layer(int i)
{
    static const char *const own[] = {
        "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate",
        "self_attn.q_norm", "self_attn.k_norm", "input_layernorm", "post_attention_layernorm"};
    static const char *const matrices[] = {"gate", "up", "down"};
    char name[64];
    for (int k = 0; k < 9; k++) {
        snprintf(name, sizeof name, "model.layers.%d.%s.weight", i, own[k]);
        add(name, k == 4 ? E : M, k < 5 ? M : 0);
    }
    for (int k = 0; k < 3 * E; k++) {
        snprintf(name, sizeof name, "model.layers.%d.mlp.experts.%d.%s_proj.weight", i, k / 3,
                 matrices[k % 3]);
        add(name, M, M);
    }
}

static void fail(const char *what)
{
    fprintf(stderr, "cannot write %s\n", what);
    exit(1);
}

/* Shard number `shard` of so many: an equal part of the tensors. */
static void write_shard(size_t shard, size_t shards, FILE *index)
{
    char name[64];
    size_t first = all.count * shard / shards, end = all.count * (shard + 1) / shards;
    q3_writer *writer;
    snprintf(name, sizeof name, "model-%05d-of-%05d.safetensors", (int)shard + 1, (int)shards);
    folder_expect(name);
    if (q3_writer_open(&writer, folder_path(name), all.entries + first, end - first, NULL, NULL))
        fail(name);
    for (size_t i = first; i < end; i++) {
        float number = (float)i;
        if (q3_writer_floats(writer, i - first, 0, &number, 1, NULL) != Q3_OK) fail(name);
        fprintf(index, "%s\n\"%s\": \"%s\"", i > 0 ? "," : "", all.names[i], name);
    }
    if (q3_writer_commit(writer, NULL) != Q3_OK) fail(name);
}

static void write_checkpoint(int layers, size_t shards)
{
    char config[400];
    int n = snprintf(config, sizeof config,
                     "{\"model_type\":\"qwen3_moe\",\"vocab_size\":2,\"hidden_size\":2,"
                     "\"intermediate_size\":2,\"num_hidden_layers\":%d,\"num_attention_heads\":1,"
                     "\"num_key_value_heads\":1,\"head_dim\":2,\"num_experts\":%d,"
                     "\"moe_intermediate_size\":2}", layers, E);
    folder_empty();
    folder_write("config.json", config, (size_t)n);
    all.count = 0;
    add("model.embed_tokens.weight", 2, M);
    for (int i = 0; i < layers; i++) add_layer(i);
    add("model.norm.weight", M, 0);
    add("lm_head.weight", 2, M);
    folder_expect("model.safetensors.index.json");
    FILE *index = fopen(folder_path("model.safetensors.index.json"), "wb");
    if (index == NULL) fail("the index");
    fputs("{\"metadata\": {\"total_size\": 1}, \"weight_map\": {", index);
    for (size_t i = 0; i < shards; i++) write_shard(i, shards, index);
    fputs("}}\n", index);
    if (fclose(index) != 0) fail("the index");
}

static bool is_number(q3_tensor tensor, size_t number)
{
    float value = -1.0f;
    if (tensor.data != NULL) q3_widen(&value, tensor, 0, 1, Q3_F32);
    return value == (float)number;
}

/* Every weight, in the order that add_layer gives them. */
static void check_weights(const q3_model *model, size_t layers)
{
    const q3_weights *w = q3_model_weights(model);
    size_t number = 1, wrong = 0;
    CHECK(is_number(w->embed_tokens, 0));
    CHECK(is_number(w->norm, all.count - 2) && is_number(w->lm_head, all.count - 1));
    for (size_t i = 0; i < layers; i++) {
        const q3_layer *l = &w->layers[i];
        const q3_tensor own[] = {l->q_proj, l->k_proj, l->v_proj, l->o_proj, l->gate, l->q_norm,
                                 l->k_norm, l->input_layernorm, l->post_attention_layernorm};
        for (size_t k = 0; k < 9; k++) wrong += !is_number(own[k], number++);
        for (size_t e = 0; e < E; e++) {
            wrong += !is_number(l->experts[e].gate_proj, number++);
            wrong += !is_number(l->experts[e].up_proj, number++);
            wrong += !is_number(l->experts[e].down_proj, number++);
        }
    }
    CHECK(number == all.count - 2 && wrong == 0);
}

/* The least processor time of five openings, in ticks. */
static double open_all(size_t layers)
{
    double least = 0;
    for (int turn = 0; turn < 5; turn++) {
        q3_model *model = NULL;
        q3_dtype dtype = Q3_AUTO;
        q3_error error = {""};
        clock_t begin = clock();
        q3_status status = q3_model_open(&model, folder.path, &error);
        if (status == Q3_OK) status = q3_model_load(model, &dtype, 0, layers, &error);
        double ticks = (double)(clock() - begin);
        CHECKF(status == Q3_OK, "%s", error.text);
        if (status == Q3_OK && turn == 0) check_weights(model, layers);
        q3_model_close(model);
        if (turn == 0 || ticks < least) least = ticks;
    }
    return least;
}

int main(void)
{
    folder_make("shards.tmp");
    write_checkpoint(1, 4);
    double few = open_all(1);
    write_checkpoint(MOST_LAYERS, 40);
    CHECK(all.count == 6003);
    double many = open_all(MOST_LAYERS);
    /* Ten times the tensors and files: n log n is 13 times the time, n^2 100 times. A clock of
     * coarse ticks sees nothing of the first. */
    CHECKF(many <= 36 * (few + CLOCKS_PER_SEC / 1000.0),
           "found %.0f ticks for 603 tensors and %.0f for 6003", few, many);
    folder_remove();
    return t_done("shards");
}
