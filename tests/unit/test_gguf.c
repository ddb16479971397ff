/* SPDX-License-Identifier: MIT */
/* GGUF files: each tensor is the one of its Hugging Face name, value by value; the metadata mean
 * what llama.cpp makes of them; every fault is named. golden/gguf has what llama.cpp's tools wrote,
 * and what the gguf package reads in it.
 *
 *   test_gguf [GOLDEN FOLDER]     default: golden */
#define _POSIX_C_SOURCE 200809L
#include "folder.h"
#include "gguf.h"
#include "host/gguf.h"
#include "host/sha256.h"
#include "qwen3moe.h"
#include "rule.h"
#include "t.h"

#include <stdbool.h>

static const char *golden = "golden";

/* ==== A small model =========================================================================== */

enum { V = 12, M = 8, L = 2, H = 2, K = 1, HD = 4, E = 3, A = 2, F = 4,
       F32 = 0, F16 = 1, BF16 = 30 };

/* A value of its metadata, or an edit of it: type 4, 6, 7, 8 as in a file; 0: it is left out; -1:
 * what follows the key are the bytes of text[number]. */
typedef struct setting {
    const char *key;
    int type;
    double number;
    const char *text;
} setting;

#define Q "qwen3moe."
static const setting settings[] = {
    {"general.architecture", 8, 0, "qwen3moe"},
    {Q "block_count", 4, L, NULL},
    {Q "context_length", 4, 640, NULL},
    {Q "embedding_length", 4, M, NULL},
    {Q "feed_forward_length", 4, 20, NULL},
    {Q "attention.head_count", 4, H, NULL},
    {Q "attention.head_count_kv", 4, K, NULL},
    {Q "attention.key_length", 4, HD, NULL},
    {Q "attention.value_length", 4, HD, NULL},
    {Q "attention.layer_norm_rms_epsilon", 6, 1e-6, NULL},
    {Q "rope.freq_base", 6, 1e6, NULL},
    {Q "expert_count", 4, E, NULL},
    {Q "expert_used_count", 4, A, NULL},
    {Q "expert_feed_forward_length", 4, F, NULL},
    {"tokenizer.ggml.eos_token_id", 4, 7, NULL}};
enum { SETTINGS = sizeof settings / sizeof *settings };

static void put_setting(gguf_file *f, const setting *s)
{
    if (s->type == 4) gguf_uint(f, s->key, (uint64_t)s->number);
    if (s->type == 6) gguf_float(f, s->key, (float)s->number);
    if (s->type == 7) gguf_bool(f, s->key, (int)s->number);
    if (s->type == 8) gguf_string(f, s->key, s->text);
    if (s->type != -1) return;
    gguf_text(f, s->key);
    gguf_put(f, s->text, (size_t)s->number);
}

/* A tensor of one layer (or of none), under both names. */
static const struct {
    const char *ours, *theirs;
    size_t experts, rows, cols; /* experts 0: one matrix; cols 1: a vector */
} tensors[] = {
    {"lm_head.weight", "output.weight", 0, V, M}, /* first: tests leave it out */
    {"model.embed_tokens.weight", "token_embd.weight", 0, V, M},
    {"model.norm.weight", "output_norm.weight", 0, M, 1},
    {"input_layernorm.weight", "attn_norm.weight", 0, M, 1},
    {"self_attn.q_proj.weight", "attn_q.weight", 0, H * HD, M},
    {"self_attn.k_proj.weight", "attn_k.weight", 0, K * HD, M},
    {"self_attn.v_proj.weight", "attn_v.weight", 0, K * HD, M},
    {"self_attn.o_proj.weight", "attn_output.weight", 0, M, H * HD},
    {"self_attn.q_norm.weight", "attn_q_norm.weight", 0, HD, 1},
    {"self_attn.k_norm.weight", "attn_k_norm.weight", 0, HD, 1},
    {"post_attention_layernorm.weight", "ffn_norm.weight", 0, M, 1},
    {"mlp.gate.weight", "ffn_gate_inp.weight", 0, E, M},
    {"gate_proj.weight", "ffn_gate_exps.weight", E, F, M},
    {"up_proj.weight", "ffn_up_exps.weight", E, F, M},
    {"down_proj.weight", "ffn_down_exps.weight", E, M, F}};
enum { OUTER = 3, TENSORS = sizeof tensors / sizeof *tensors,
       ALL = OUTER + L * (TENSORS - OUTER) };

/* Tensor i of the whole model: its row of the table, its layer. */
static size_t row_of(size_t i, size_t *layer)
{
    *layer = i < OUTER ? 0 : (i - OUTER) / (TENSORS - OUTER);
    return i < OUTER ? i : OUTER + (i - OUTER) % (TENSORS - OUTER);
}

static void our_name(char name[96], size_t i, size_t expert)
{
    size_t layer, row = row_of(i, &layer);
    if (i < OUTER)
        snprintf(name, 96, "%s", tensors[row].ours);
    else if (tensors[row].experts == 0)
        snprintf(name, 96, "model.layers.%d.%s", (int)layer, tensors[row].ours);
    else
        snprintf(name, 96, "model.layers.%d.mlp.experts.%d.%s", (int)layer, (int)expert,
                 tensors[row].ours);
}

static void their_name(char name[64], size_t i)
{
    size_t layer, row = row_of(i, &layer);
    if (i < OUTER)
        snprintf(name, 64, "%s", tensors[row].theirs);
    else
        snprintf(name, 64, "blk.%d.%s", (int)layer, tensors[row].theirs);
}

/* What is wrong with the description of one tensor: its field n is replaced. */
typedef enum field { NOTHING, NAME, RANK, AXIS0, AXIS1, TYPE, OFFSET } field;
typedef struct fault {
    const char *tensor; /* the name it has */
    field field;
    uint64_t value;
    const char *name; /* NAME: what it gets */
} fault;

static size_t size_of(size_t row)
{
    size_t experts = tensors[row].experts > 0 ? tensors[row].experts : 1;
    return experts * tensors[row].rows * tensors[row].cols;
}

/* Name, axes, type, offset. */
static void put_info(gguf_file *f, size_t i, int type, uint64_t offset, const fault *wrong)
{
    char name[64];
    size_t layer, row = row_of(i, &layer), rank = tensors[row].experts > 0 ? 3 : 2;
    their_name(name, i);
    field what = wrong != NULL && strcmp(wrong->tensor, name) == 0 ? wrong->field : NOTHING;
    uint64_t value = what != NOTHING ? wrong->value : 0;
    uint64_t axes[3] = {tensors[row].cols, tensors[row].rows, tensors[row].experts};
    if (tensors[row].cols == 1) {
        rank = 1;
        axes[0] = tensors[row].rows;
    }
    if (what == AXIS0) axes[0] = value;
    if (what == AXIS1) axes[1] = value;
    gguf_bytes(f, what == NAME ? wrong->name : name, what == NAME ? value : strlen(name));
    gguf_number(f, what == RANK ? value : rank, 4);
    for (size_t k = 0; k < rank; k++) gguf_number(f, axes[k], 8);
    gguf_number(f, what == TYPE ? value : (uint64_t)type, 4);
    gguf_number(f, what == OFFSET ? value : offset, 8);
}

static uint32_t bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* The rule's values have at most 8 significant bits and fit both small types: binary16 by scaling
 * (they are no subnormals there). */
static void put_value(gguf_file *f, float value, int type)
{
    uint32_t bits = bits_of(value);
    uint32_t half = (bits >> 16 & 0x8000) | ((bits >> 13 & 0x3FFFF) - (112 << 10));
    gguf_number(f, type == F32 ? bits : type == BF16 ? bits >> 16 : half, type == F32 ? 4 : 2);
}

static void put_data(gguf_file *f, size_t i, int type)
{
    float values[V * M];
    char name[96];
    size_t layer, row = row_of(i, &layer), count = tensors[row].rows * tensors[row].cols, e = 0;
    do {
        our_name(name, i, e);
        rule_fill(values, "gguf", name, tensors[row].rows, tensors[row].cols);
        for (size_t k = 0; k < count; k++) put_value(f, values[k], type);
    } while (++e < tensors[row].experts);
}

/* The type of tensor i where the model has many. */
static int type_of(size_t i, int type)
{
    static const int all[] = {F32, F16, BF16};
    char name[64];
    their_name(name, i);
    if (type < 0) type = all[i % 3];
    /* embed_tokens' rows of 2^-17 are binary16's subnormals */
    return type == F16 && strcmp(name, "token_embd.weight") == 0 ? BF16 : type;
}

/* Tensors [first, end) of the model, and its metadata with these edits: a key that it has not is
 * added. */
static void build(gguf_file *f, size_t first, size_t end, int type, const setting *edits,
                  size_t edit_count, const fault *wrong)
{
    size_t values = SETTINGS;
    uint64_t offset = 0;
    f->size = 0;
    for (size_t e = 0; e < edit_count; e++) {
        bool known = false;
        for (size_t i = 0; i < SETTINGS; i++)
            known = known || strcmp(settings[i].key, edits[e].key) == 0;
        values += (size_t)!known;
        values -= (size_t)(edits[e].type == 0);
    }
    gguf_header(f, end - first, values);
    for (size_t i = 0; i < SETTINGS; i++) {
        const setting *s = &settings[i];
        for (size_t e = 0; e < edit_count; e++)
            if (strcmp(settings[i].key, edits[e].key) == 0) s = &edits[e];
        put_setting(f, s);
    }
    for (size_t e = 0; e < edit_count; e++) {
        bool known = false;
        for (size_t i = 0; i < SETTINGS; i++)
            known = known || strcmp(settings[i].key, edits[e].key) == 0;
        if (!known) put_setting(f, &edits[e]);
    }
    for (size_t i = first; i < end; i++) {
        size_t layer, bytes = size_of(row_of(i, &layer)) * (type_of(i, type) == F32 ? 4 : 2);
        put_info(f, i, type_of(i, type), offset, wrong);
        offset += (bytes + 31) / 32 * 32;
    }
    for (size_t i = first; i < end; i++) {
        gguf_pad(f, 32);
        put_data(f, i, type_of(i, type));
    }
    gguf_pad(f, 32);
}

/* ==== What is read ============================================================================ */

/* The model of a file of the folder, loaded; NULL: error says why. */
static q3_model *load(const char *name, q3_error *error)
{
    q3_model *model = NULL;
    q3_dtype dtype = Q3_AUTO;
    error->text[0] = 0;
    q3_status status = q3_model_open(&model, folder_path(name), error);
    if (status == Q3_OK)
        status = q3_model_load(model, &dtype, 0, q3_model_config(model)->num_hidden_layers, error);
    CHECK((status == Q3_OK) == (error->text[0] == 0) && (status != Q3_OK || dtype == Q3_F32));
    if (status == Q3_OK) return model;
    q3_model_close(model);
    return NULL;
}

/* The weight of table row `row`. */
static q3_tensor weight_of(const q3_weights *w, size_t layer, size_t row, size_t e)
{
    const q3_layer *l = &w->layers[layer];
    const q3_tensor all[TENSORS] = {
        w->lm_head, w->embed_tokens, w->norm, l->input_layernorm, l->q_proj, l->k_proj, l->v_proj,
        l->o_proj, l->q_norm, l->k_norm, l->post_attention_layernorm, l->gate,
        l->experts[e].gate_proj, l->experts[e].up_proj, l->experts[e].down_proj};
    return all[row];
}

/* Every weight has the rule's values. */
static void check_weights(const q3_weights *w, const char *what)
{
    for (size_t i = 0; i < ALL; i++) {
        size_t layer, row = row_of(i, &layer), count = tensors[row].rows * tensors[row].cols, e = 0;
        do {
            float want[V * M], got[V * M];
            char name[96];
            our_name(name, i, e);
            rule_fill(want, "gguf", name, tensors[row].rows, tensors[row].cols);
            q3_widen(got, weight_of(w, layer, row, e), 0, count, Q3_F32);
            CHECKF(memcmp(got, want, count * sizeof *got) == 0, "%s: %s", what, name);
        } while (++e < tensors[row].experts);
    }
}

static const char config_line[] =
    "{\"attention_bias\":false,\"decoder_sparse_step\":1,\"head_dim\":4,\"hidden_act\":\"silu\","
    "\"hidden_size\":8,\"intermediate_size\":20,\"max_position_embeddings\":640,"
    "\"mlp_only_layers\":[],\"model_type\":\"qwen3_moe\",\"moe_intermediate_size\":4,"
    "\"norm_topk_prob\":true,\"num_attention_heads\":2,\"num_experts\":3,"
    "\"num_experts_per_tok\":2,\"num_hidden_layers\":2,\"num_key_value_heads\":1,"
    "\"rms_norm_eps\":1e-06,\"rope_scaling\":null,\"rope_theta\":1000000.0,"
    "\"sliding_window\":null,\"tie_word_embeddings\":false,\"use_sliding_window\":false,"
    "\"vocab_size\":12}";

static void test_floats(void)
{
    static const struct { int type; const char *name; } runs[] = {
        {F32, "f32.gguf"}, {F16, "f16.gguf"}, {BF16, "bf16.gguf"}, {-1, "mixed"}};
    gguf_file f = {0};
    q3_error error;
    for (size_t i = 0; i < 4; i++) {
        const int32_t *ids = NULL;
        size_t count = 0;
        build(&f, 0, ALL, runs[i].type, NULL, 0, NULL);
        folder_write(runs[i].name, f.bytes, f.size);
        q3_model *model = load(runs[i].name, &error);
        CHECKF(model != NULL, "%s", error.text);
        if (model == NULL) continue;
        CHECK_TEXT(q3_model_config_json(model), config_line);
        CHECK(q3_model_dtype(model) == Q3_F32);
        CHECK(q3_model_eos(model, &ids, &count, NULL) == Q3_OK && count == 1 && ids[0] == 7);
        check_weights(q3_model_weights(model), runs[i].name);
        q3_model_close(model);
    }
    free(f.bytes);
}

/* Which keys change what in the line above. */
static void test_config(void)
{
    static const struct { setting edits[3]; const char *want; } cases[] = {
        {{{Q "attention.head_count_kv", 4, 2, NULL}, {Q "attention.key_length", 0, 0, NULL},
          {Q "attention.value_length", 0, 0, NULL}}, "\"num_key_value_heads\":2,"},
        {{{Q "attention.head_count_kv", 0, 0, NULL}}, "\"num_key_value_heads\":2,"},
        {{{Q "feed_forward_length", 4, 9, NULL}, {Q "expert_feed_forward_length", 0, 0, NULL}},
         "\"moe_intermediate_size\":4,"},
        {{{Q "rope.freq_base", 0, 0, NULL}}, "\"rope_theta\":10000.0,"},
        {{{Q "rope.freq_base", 6, 12345.678, NULL}}, "\"rope_theta\":12345.678,"},
        {{{Q "rope.freq_base", 6, 16777216, NULL}}, "\"rope_theta\":16777216.0,"},
        {{{Q "attention.layer_norm_rms_epsilon", 6, 1e-5, NULL}}, "\"rms_norm_eps\":1e-05,"},
        {{{Q "attention.layer_norm_rms_epsilon", 6, 0.00012345678, NULL}},
         "\"rms_norm_eps\":0.00012345678,"},
        {{{Q "rope.scaling.type", 8, 0, "none"}, {Q "rope.scaling.factor", 6, 4, NULL}},
         "\"rope_scaling\":null,"},
        {{{Q "rope.scaling.factor", 6, 0, NULL}}, "\"rope_scaling\":null,"},
        {{{Q "rope.scaling.factor", 6, 2.5, NULL}},
         "\"rope_scaling\":{\"factor\":2.5,\"rope_type\":\"linear\"},"},
        {{{Q "rope.scaling.type", 8, 0, "yarn"}, {Q "rope.scaling.factor", 6, 4, NULL}},
         "\"rope_scaling\":{\"attention_factor\":null,\"beta_fast\":32.0,\"beta_slow\":1.0,"
         "\"factor\":4.0,\"mscale\":null,\"mscale_all_dim\":null,"
         "\"original_max_position_embeddings\":640,\"rope_type\":\"yarn\",\"truncate\":true},"},
        {{{Q "rope.scaling.type", 8, 0, "yarn"}, {Q "rope.scaling.factor", 6, 4, NULL},
          {Q "rope.scaling.original_context_length", 4, 160, NULL}},
         "\"original_max_position_embeddings\":160,"},
        {{{Q "vocab_size", 4, 99, NULL}}, "\"vocab_size\":99}"},
        {{{Q "expert_weights_norm", 7, 1, NULL}, {Q "expert_gating_func", 4, 1, NULL},
          {Q "expert_weights_scale", 6, 1, NULL}}, "\"norm_topk_prob\":true,"},
        {{{Q "something.new", 4, 1, NULL}}, "\"norm_topk_prob\":true,"}};
    gguf_file f = {0};
    q3_error error;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        size_t count = 0;
        q3_model *model = NULL;
        while (count < 3 && cases[i].edits[count].key != NULL) count++;
        build(&f, 0, ALL, F32, cases[i].edits, count, NULL);
        folder_write("config", f.bytes, f.size);
        q3_status status = q3_model_open(&model, folder_path("config"), &error);
        CHECKF(status == Q3_OK, "%s", error.text);
        if (status != Q3_OK) continue;
        CHECKF(strstr(q3_model_config_json(model), cases[i].want) != NULL, "got %s, want %s in it",
               q3_model_config_json(model), cases[i].want);
        q3_model_close(model);
    }
    free(f.bytes);
}

/* Without output.weight lm_head is the embedding. */
static void test_tied(void)
{
    gguf_file f = {0};
    q3_error error;
    build(&f, 1, ALL, F32, NULL, 0, NULL);
    folder_write("tied.gguf", f.bytes, f.size);
    q3_model *model = load("tied.gguf", &error);
    CHECKF(model != NULL, "%s", error.text);
    if (model != NULL) {
        const q3_weights *w = q3_model_weights(model);
        CHECK(q3_model_config(model)->tie_word_embeddings && w->lm_head.data != NULL &&
              w->lm_head.data == w->embed_tokens.data);
    }
    q3_model_close(model);
    free(f.bytes);
}

/* ==== What is refused ========================================================================= */

/* The file of these bytes is refused, and the message, behind the file's name, is `want`; where
 * that ends in "...", starts so. */
static void check_refused(const gguf_file *f, const char *want)
{
    char whole[600];
    q3_error error;
    size_t n = strlen(want);
    bool start = n >= 3 && strcmp(want + n - 3, "...") == 0;
    folder_write("bad.gguf", f->bytes, f->size);
    q3_model *model = load("bad.gguf", &error);
    CHECKF(model == NULL, "accepted, want \"%s\"", want);
    q3_model_close(model);
    snprintf(whole, sizeof whole, "%s: %.*s", folder_path("bad.gguf"), (int)(start ? n - 3 : n),
             want);
    CHECKF(strncmp(error.text, whole, start ? strlen(whole) : sizeof whole) == 0,
           "got \"%s\", want \"%s\"", error.text, whole);
}

/* Bytes of the file's start replaced. */
static void test_header(void)
{
    static const struct { size_t at, size; uint64_t value; const char *want; } cases[] = {
        {0, 1, 'g', "first bytes: found \"gGUF\", expected \"GGUF\""},
        {4, 4, 1, "version: found 1, expected 2 or 3"},
        {4, 4, 4, "version: found 4, expected 2 or 3"},
        {4, 4, 0, "version: found 0, expected 2 or 3"},
        {4, 4, 0x03000000, "version: found 50331648, expected 2 or 3, little-endian: big-endian "
                           "files are not read"},
        {8, 8, ALL + 1, "tensor 27: found the file's end at byte ..."},
        {8, 8, UINT64_MAX, "tensor 27: found the file's end at byte ..."},
        {8, 8, ALL - 1, "file: found ..."},
        {8, 8, 0, "file: found 6720, expected no bytes of tensors behind the last one's end"},
        {16, 8, SETTINGS + 1, "..."},
        {16, 8, UINT64_MAX, "metadata value 16: found the file's end at byte ..."},
        {24, 8, UINT64_MAX, "metadata value 0: found the file's end at byte 7424, expected "
                            "18446744073709551615 more behind byte 32"},
        {24, 8, UINT64_C(1) << 63, "metadata value 0: found the file's end at byte 7424, expected "
                                   "9223372036854775808 more behind byte 32"},
        {24, 8, 0, "metadata value 0: found 0, expected a key of at least one byte"}};
    gguf_file f = {0};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        build(&f, 0, ALL, F32, NULL, 0, NULL);
        for (size_t k = 0; k < cases[i].size; k++)
            f.bytes[cases[i].at + k] = (uint8_t)(cases[i].value >> (8 * k));
        check_refused(&f, cases[i].want);
    }
    free(f.bytes);
}

#define RAW(text) -1, sizeof text - 1, text

/* Values of metadata that no file may have, and values that mean what is not computed here. */
static void test_metadata(void)
{
    static const struct { setting edit; const char *want; } cases[] = {
        {{"x", RAW("\15\0\0\0")}, "x: found 13, expected a type from 0 to 12"},
        {{"x", RAW("\377\377\377\377")}, "x: found 4294967295, expected a type from 0 to 12"},
        {{"x", RAW("\7\0\0\0\2")}, "x: found 2, expected 0 or 1, since it is a bool"},
        {{"x", RAW("\11\0\0\0\7\0\0\0\2\0\0\0\0\0\0\0\1\3")},
         "x: found 3, expected 0 or 1, since it is a bool"},
        {{"x", RAW("\11\0\0\0\11\0\0\0\1\0\0\0\0\0\0\0")},
         "x: found 9, expected elements of a type from 0 to 12, no arrays"},
        {{"x", RAW("\11\0\0\0\15\0\0\0\1\0\0\0\0\0\0\0")},
         "x: found 13, expected elements of a type from 0 to 12, no arrays"},
        {{"x", RAW("\11\0\0\0\4\0\0\0\0\0\0\0\0\0\0\100")}, "x: found the file's end at byte ..."},
        {{"x", RAW("\11\0\0\0\4\0\0\0\377\377\377\377\377\377\377\377")},
         "x: found the file's end at byte ..."},
        {{"x", RAW("\11\0\0\0\10\0\0\0\377\377\377\377\377\377\377\377")},
         "x: found the file's end at byte ..."},
        {{"x", RAW("\11\0\0\0\10\0\0\0\1\0\0\0\0\0\0\0\0\0\0\0\0\0\0\200")},
         "x: found the file's end at byte ..."},
        {{"x", RAW("\10\0\0\0\377\377\377\377\377\377\377\377")},
         "x: found the file's end at byte ..."},
        {{Q "block_count\0x", RAW("")}, "..."},
        {{"general.alignment", 4, 0, NULL},
         "general.alignment: found 0, expected a power of two of type uint32"},
        {{"general.alignment", 4, 3, NULL},
         "general.alignment: found 3, expected a power of two of type uint32"},
        {{"general.alignment", 6, 32, NULL},
         "general.alignment: found 0, expected a power of two of type uint32"},
        {{"general.alignment", RAW("\12\0\0\0\40\0\0\0\0\0\0\0")},
         "general.alignment: found 0, expected a power of two of type uint32"},
        {{"general.alignment", 4, 2147483648.0, NULL}, "..."},
        {{"general.architecture", 8, 0, "qwen2moe"},
         "general.architecture: found \"qwen2moe\", expected \"qwen3moe\" or \"qwen3\""},
        {{"general.architecture", 0, 0, NULL},
         "general.architecture: found nothing, expected \"qwen3moe\" or \"qwen3\""},
        {{"general.architecture", 4, 1, NULL},
         "general.architecture: found 1, expected \"qwen3moe\" or \"qwen3\""},
        {{Q "block_count", 0, 0, NULL},
         Q "block_count: found nothing, expected an integer from 0 on"},
        {{Q "block_count", 6, 2, NULL}, Q "block_count: found 2.0, expected an integer from 0 on"},
        {{Q "block_count", 8, 0, "two"},
         Q "block_count: found \"two\", expected an integer from 0 on"},
        {{Q "block_count", RAW("\5\0\0\0\376\377\377\377")},
         Q "block_count: found -2, expected an integer from 0 on"},
        {{Q "block_count", RAW("\11\0\0\0\4\0\0\0\1\0\0\0\0\0\0\0\2\0\0\0")},
         Q "block_count: found \"an array of 1\", expected an integer from 0 on"},
        {{Q "block_count", 4, 4294967295.0, NULL},
         "num_hidden_layers: found 4294967295, expected an integer from 0 to 2147483647"},
        {{Q "block_count", 4, 3, NULL}, "blk.2.attn_norm.weight: missing, expected a tensor of "
                                        "shape [8]"},
        {{Q "block_count", 4, 1, NULL}, "blk.1.attn_k.weight: the model has no such tensor"},
        {{Q "context_length", 0, 0, NULL},
         Q "context_length: found nothing, expected an integer from 0 on"},
        {{Q "embedding_length", 4, 16, NULL},
         "token_embd.weight: found shape [12,8], expected [12,16]"},
        {{Q "attention.head_count", 0, 0, NULL},
         Q "attention.head_count: found nothing, expected an integer from 0 on"},
        {{Q "attention.head_count", 4, 0, NULL},
         "num_attention_heads: found 0, expected an integer from 1 to 2147483647"},
        {{Q "attention.head_count_kv", 6, 1, NULL},
         Q "attention.head_count_kv: found 1.0, expected an integer from 0 on"},
        {{Q "attention.head_count_kv", 4, 0, NULL},
         "num_key_value_heads: found 0, expected an integer from 1 to 2147483647"},
        {{Q "attention.key_length", 4, 6, NULL},
         Q "attention.value_length: found 4, expected attention.key_length, a head's size"},
        {{Q "rope.dimension_count", 4, 2, NULL},
         Q "rope.dimension_count: found 2, expected attention.key_length, a head's size"},
        {{Q "attention.layer_norm_rms_epsilon", 0, 0, NULL},
         Q "attention.layer_norm_rms_epsilon: found nothing, expected a float"},
        {{Q "attention.layer_norm_rms_epsilon", 4, 1, NULL},
         Q "attention.layer_norm_rms_epsilon: found 1, expected a float"},
        {{Q "attention.layer_norm_rms_epsilon", RAW("\6\0\0\0\0\0\200\177")},
         "rms_norm_eps: found \"not finite\", expected a number with a point or an exponent, 0 or "
         "more"},
        {{Q "rope.freq_base", 6, -1, NULL},
         "rope_theta: found -1.0, expected a number above 1, up to 1e30"},
        {{Q "rope.scaling.type", 8, 0, "longrope"},
         Q "rope.scaling.type: found \"longrope\", expected \"none\", \"linear\" or \"yarn\""},
        {{Q "rope.scaling.type", 4, 1, NULL},
         Q "rope.scaling.type: found 1, expected \"none\", \"linear\" or \"yarn\""},
        {{Q "rope.scaling.factor", 4, 4, NULL},
         Q "rope.scaling.factor: found 4, expected a float"},
        {{Q "rope.scaling.factor", 6, 0.5, NULL},
         "rope_scaling.factor: found 0.5, expected a number from 1 to 1e30"},
        {{Q "rope.scaling.attn_factor", 6, 1.5, NULL},
         Q "rope.scaling.attn_factor: found 1.5, expected 1: Hugging Face has no such factor"},
        {{Q "rope.scaling.yarn_beta_fast", 6, 16, NULL},
         Q "rope.scaling.yarn_beta_fast: found 16.0, expected 32, which llama.cpp takes here "
         "without reading it"},
        {{Q "expert_count", 4, 0, NULL}, Q "expert_count: found 0, expected 1 or more"},
        {{Q "expert_count", 0, 0, NULL}, Q "expert_count: found nothing, expected 1 or more"},
        {{Q "expert_count", 4, 2147483647, NULL},
         "blk.0.ffn_gate_inp.weight: found shape [3,8], expected [2147483647,8]"},
        {{Q "expert_used_count", 4, 0, NULL}, Q "expert_used_count: found 0, expected 1 or more"},
        {{Q "expert_used_count", 4, 4, NULL},
         "num_experts_per_tok: found 4, expected at most num_experts"},
        {{Q "expert_weights_norm", 7, 0, NULL},
         Q "expert_weights_norm: found false, expected true: llama.cpp always divides by the "
         "chosen experts' sum"},
        {{Q "expert_weights_scale", 6, 2.5, NULL},
         Q "expert_weights_scale: found 2.5, expected 1: llama.cpp does not scale them in this "
         "architecture"},
        {{Q "expert_gating_func", 4, 2, NULL},
         Q "expert_gating_func: found 2, expected 1, softmax"},
        {{Q "expert_shared_count", 4, 1, NULL}, Q "expert_shared_count: found 1, expected 0"},
        {{Q "attention.sliding_window", 4, 128, NULL},
         Q "attention.sliding_window: found 128, expected 0: llama.cpp has no window in this "
         "architecture"},
        {{Q "vocab_size", 8, 0, "x"}, Q "vocab_size: found \"x\", expected an integer from 0 on"},
        {{Q "vocab_size", 4, 13, NULL},
         "token_embd.weight: found shape [12,8], expected [13,8]"},
        {{"tokenizer.ggml.eos_token_id", 8, 0, "x"},
         "tokenizer.ggml.eos_token_id: expected an integer from 0 on"}};
    gguf_file f = {0};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        build(&f, 0, ALL, F32, &cases[i].edit, 1, NULL);
        check_refused(&f, cases[i].want);
    }
    setting twice[2] = {{"x", 4, 1, NULL}, {"x", 4, 1, NULL}};
    build(&f, 0, ALL, F32, twice, 2, NULL);
    check_refused(&f, "x: found twice, expected each key once");
    free(f.bytes);
}

/* Descriptions of tensors. */
static void test_tensors(void)
{
    static const char long_name[] =
        "0123456789012345678901234567890123456789012345678901234567890123";
    static const struct { fault wrong; const char *want; } cases[] = {
        {{"blk.0.attn_q.weight", RANK, 0, NULL},
         "blk.0.attn_q.weight: found 0, expected 1 to 4 axes"},
        {{"blk.0.attn_q.weight", RANK, 5, NULL},
         "blk.0.attn_q.weight: found 5, expected 1 to 4 axes"},
        {{"blk.0.attn_q.weight", AXIS0, 0, NULL},
         "blk.0.attn_q.weight: found 0, expected an axis above 0, and fewer than 2^63 elements"},
        {{"blk.0.attn_q.weight", AXIS0, UINT64_C(1) << 63, NULL},
         "blk.0.attn_q.weight: found 9223372036854775808, expected an axis above 0, and fewer than "
         "2^63 elements"},
        {{"blk.0.attn_q.weight", AXIS1, UINT64_C(1) << 60, NULL},
         "blk.0.attn_q.weight: found 1152921504606846976, expected an axis above 0, and fewer than "
         "2^63 elements"},
        {{"blk.0.attn_q.weight", AXIS1, UINT64_C(1) << 59, NULL},
         "blk.0.attn_q.weight: found 4611686018427387904, expected fewer elements: their bytes "
         "cannot be counted"},
        {{"blk.0.attn_q.weight", TYPE, 4, NULL},
         "blk.0.attn_q.weight: found 4, expected the number of a type of weights (MODEL.md section "
         "11)"},
        {{"blk.0.attn_q.weight", TYPE, UINT32_MAX, NULL},
         "blk.0.attn_q.weight: found 4294967295, expected the number of a type of weights "
         "(MODEL.md section 11)"},
        {{"blk.0.attn_q.weight", TYPE, 24, NULL}, /* I8 */
         "blk.0.attn_q.weight: found 24, expected the number of a type of weights (MODEL.md "
         "section 11)"},
        {{"blk.0.attn_q.weight", TYPE, 8, NULL},
         "blk.0.attn_q.weight: found 8, expected rows of whole blocks"},
        {{"blk.0.attn_q.weight", TYPE, F16, NULL},
         "blk.0.attn_k.weight: found 1088, expected an offset where the tensor before it ends"},
        {{"blk.0.attn_q.weight", AXIS0, 9, NULL},
         "blk.0.attn_k.weight: found 1088, expected an offset where the tensor before it ends"},
        {{"blk.0.attn_q.weight", OFFSET, 1, NULL},
         "blk.0.attn_q.weight: found 1, expected an offset where the tensor before it ends"},
        {{"blk.0.attn_q.weight", OFFSET, 1025, NULL},
         "blk.0.attn_q.weight: found 1025, expected an offset where the tensor before it ends"},
        {{"blk.0.attn_q.weight", OFFSET, UINT64_MAX, NULL},
         "blk.0.attn_q.weight: found 18446744073709551615, expected an offset where the tensor "
         "before it ends"},
        {{"blk.1.ffn_down_exps.weight", AXIS1, UINT64_C(1) << 20, NULL},
         "blk.1.ffn_down_exps.weight: found 5088, expected more bytes of tensors: the file ends "
         "within this one"},
        {{"blk.1.ffn_down_exps.weight", AXIS0, 5, NULL},
         "blk.1.ffn_down_exps.weight: found 5088, expected more bytes of tensors: the file ends "
         "within this one"},
        {{"blk.1.ffn_down_exps.weight", AXIS0, 2, NULL},
         "file: found 5088, expected no bytes of tensors behind the last one's end"},
        {{"blk.0.attn_q.weight", NAME, 0, ""},
         "tensor 4: found 0, expected a name of 1 to 63 bytes, none of them 0"},
        {{"blk.0.attn_q.weight", NAME, 64, long_name},
         "tensor 4: found 64, expected a name of 1 to 63 bytes, none of them 0"},
        {{"blk.0.attn_q.weight", NAME, 19, "blk.0.attn_q\0weight"},
         "tensor 4: found 19, expected a name of 1 to 63 bytes, none of them 0"},
        {{"blk.0.attn_q.weight", NAME, 63, long_name},
         "blk.0.attn_q.weight: missing, expected a tensor of shape [8,8]"},
        {{"blk.0.attn_q.weight", NAME, 19, "blk.0.attn_k.weight"},
         "blk.0.attn_k.weight: found twice, expected each tensor once"},
        {{"blk.0.attn_q.weight", RANK, 1, NULL}, "..."},
        {{"blk.0.ffn_gate_exps.weight", NAME, 21, "blk.0.ffn_gate.weight"},
         "blk.0.ffn_gate.weight: found shape [3,4,8], expected [20,8]"},
        {{"output.weight", NAME, 17, "rope_freqs.weight"},
         "rope_freqs.weight: the model has no such tensor"},
        {{"output.weight", NAME, 17, "blk.0.attn_q.bias"},
         "blk.0.attn_q.bias: found shape [12,8], expected [8]"}};
    gguf_file f = {0};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        build(&f, 0, ALL, F32, NULL, 0, &cases[i].wrong);
        check_refused(&f, cases[i].want);
    }
    /* one byte more, some less */
    build(&f, 0, ALL, F32, NULL, 0, NULL);
    f.size++;
    check_refused(&f, "file: found 5089, expected no bytes of tensors behind the last one's end");
    for (size_t whole = f.size - 1, size = 0; size < whole; size++) {
        f.size = size;
        check_refused(&f, "...");
    }
    free(f.bytes);
}

/* Files that start as GGUF and are no model: nothing in front of the model's own messages. */
static void test_paths(void)
{
    q3_model *model;
    q3_error error;
    folder_write("empty.gguf", "", 0);
    CHECK(q3_model_open(&model, folder_path("empty.gguf"), &error) == Q3_ERROR_INPUT);
    CHECKF(strstr(error.text, "empty.gguf: header: found the file's end at byte 0") != NULL, "%s",
           error.text);
    CHECK(q3_model_open(&model, folder_path("absent.gguf"), &error) == Q3_ERROR_FILE);
    CHECKF(strstr(error.text, "absent.gguf: no such model folder") != NULL, "%s", error.text);
}

/* ==== Parts =================================================================================== */

static void write_part(const char *name, size_t first, size_t end, unsigned number, unsigned count,
                       unsigned total)
{
    gguf_file f = {0};
    char no[16] = "\2\0\0\0", all[16] = "\2\0\0\0", sum[16] = "\5\0\0\0";
    no[4] = (char)number;
    all[4] = (char)count;
    sum[4] = (char)total;
    const setting edits[] = {{"split.no", -1, 6, no}, {"split.count", -1, 6, all},
                             {"split.tensors.count", -1, 8, sum}};
    build(&f, first, end, BF16, edits, 3, NULL);
    folder_write(name, f.bytes, f.size);
    free(f.bytes);
}

static void test_parts(void)
{
    static const char *const names[] = {"m-00001-of-00003.gguf", "m-00002-of-00003.gguf",
                                        "m-00003-of-00003.gguf"};
    static const struct { size_t ends[4]; unsigned numbers[3], count, total; const char *want; }
    cases[] = {
        {{0, 9, 10, ALL}, {0, 1, 2}, 3, ALL, NULL},
        {{0, 0, ALL, ALL}, {0, 1, 2}, 3, ALL, NULL},
        {{0, 9, 10, ALL}, {0, 2, 1}, 3, ALL, "m-0000..."},
        {{0, 9, 10, ALL}, {0, 1, 3}, 3, ALL, "split.no: expected an integer below 3"},
        {{0, 9, 10, ALL}, {0, 1, 2}, 4, ALL, "of 4, expected a name that ends with -0000"},
        {{0, 9, 10, ALL}, {0, 1, 2}, 3, 7,
         "split.tensors.count: found 7, expected 27, which is how many tensors the parts have"},
        {{0, 9, 8, ALL}, {0, 1, 2}, 3, ALL, "..."}};
    q3_error error;
    for (size_t i = 0; i + 1 < sizeof cases / sizeof *cases; i++) {
        for (size_t p = 0; p < 3; p++)
            write_part(names[p], cases[i].ends[p], cases[i].ends[p + 1], cases[i].numbers[p],
                       cases[i].count, cases[i].total);
        for (size_t p = 0; p < 3; p++) { /* any part may be named */
            q3_model *model = load(names[p], &error);
            CHECKF((model != NULL) == (cases[i].want == NULL), "case %d: %s", (int)i, error.text);
            if (model != NULL) check_weights(q3_model_weights(model), names[p]);
            q3_model_close(model);
            if (cases[i].want == NULL || cases[i].want[0] == 'm') continue;
            CHECKF(strstr(error.text, cases[i].want) != NULL || p < 2, "case %d: got \"%s\"",
                   (int)i, error.text);
        }
    }
    write_part(names[0], 0, 9, 0, 3, ALL);
    remove(folder_path(names[1]));
    CHECK(load(names[0], &error) == NULL && strstr(error.text, names[1]) != NULL);
    write_part("other.gguf", 0, 9, 0, 3, ALL);
    CHECK(load("other.gguf", &error) == NULL);
    CHECKF(strstr(error.text, "it is part 1 of 3, expected a name that ends with "
                              "-00001-of-00003.gguf") != NULL, "%s", error.text);
    write_part("one.gguf", 0, ALL, 0, 1, ALL); /* one part is a whole file, whatever its name */
    q3_model *model = load("one.gguf", &error);
    CHECKF(model != NULL, "%s", error.text);
    q3_model_close(model);
}

/* ==== The files of golden/gguf ================================================================ */

/* The SHA-256 of a weight's elements as little-endian float32. */
static void add_values(sha256 *sum, q3_tensor tensor, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        float value;
        uint8_t bytes[4];
        q3_widen(&value, tensor, i, 1, Q3_F32);
        for (size_t k = 0; k < 4; k++) bytes[k] = (uint8_t)(bits_of(value) >> (8 * k));
        sha256_add(sum, bytes, 4);
    }
}

/* The weight that a line names: its digest through the model, all experts one after the other. */
static void digest_of(char digest[65], const q3_model *model, const char *name,
                      const size_t axes[3], size_t rank)
{
    size_t layer = 0, row = 0, experts = rank == 3 ? axes[0] : 1;
    size_t count = rank == 1 ? axes[0] : axes[rank - 1] * axes[rank - 2];
    const char *rest = name;
    if (strncmp(name, "blk.", 4) == 0) {
        layer = (size_t)strtoul(name + 4, NULL, 10);
        rest = strchr(name + 4, '.') + 1;
    }
    while (row < TENSORS && strcmp(tensors[row].theirs, rest) != 0) row++;
    CHECKF(row < TENSORS, "%s", name);
    sha256 sum;
    sha256_init(&sum);
    for (size_t e = 0; row < TENSORS && e < experts; e++)
        add_values(&sum, weight_of(q3_model_weights(model), layer, row, e), count);
    sha256_text(&sum, digest);
}

static q3_model *open_golden(const char *name)
{
    char path[512];
    q3_model *model = NULL;
    q3_error error = {""};
    q3_dtype dtype = Q3_AUTO;
    snprintf(path, sizeof path, "%s/gguf/%s", golden, name);
    q3_status status = q3_model_open(&model, path, &error);
    if (status == Q3_OK)
        status = q3_model_load(model, &dtype, 0, q3_model_config(model)->num_hidden_layers, &error);
    CHECKF(status == Q3_OK, "%s", error.text);
    return model;
}

/* Every tensor of every file, dequantised. */
static void test_golden(void)
{
    char path[512], line[512], open[64] = "", name[64], of[64], type[16], shape[64], want[80];
    snprintf(path, sizeof path, "%s/gguf/weights.txt", golden);
    FILE *file = fopen(path, "r");
    q3_model *model = NULL;
    size_t lines = 0;
    CHECK(file != NULL);
    while (file != NULL && fgets(line, sizeof line, file) != NULL) {
        size_t axes[3] = {0, 0, 0}, rank = 0;
        char digest[65];
        if (sscanf(line, "%63s %63s %15s %63s %79s", of, name, type, shape, want) != 5) break;
        for (char *p = shape; p != NULL && rank < 3; p = strchr(p, ',')) {
            p += *p == ',';
            axes[rank++] = (size_t)strtoul(p, NULL, 10);
        }
        if (strcmp(open, of) != 0) {
            q3_model_close(model);
            model = open_golden(of);
            snprintf(open, sizeof open, "%s", of);
        }
        digest_of(digest, model, name, axes, rank);
        CHECKF(strcmp(digest, want) == 0, "%s: %s, %s", of, name, type);
        lines++;
    }
    CHECK(lines == 2 * (OUTER + 2 * (TENSORS - OUTER)));
    q3_model_close(model);
    if (file != NULL) fclose(file);
}

/* A finite weight that overflows in float16. */
static void test_overflow(void)
{
    gguf_file f = {0};
    q3_model *model = NULL;
    q3_error error = {""};
    q3_dtype dtype = Q3_F16;
    char path[512];
    snprintf(path, sizeof path, "%s/gguf/q8_0.gguf", golden);
    q3_gguf *gguf = NULL;
    CHECK(q3_gguf_open(&gguf, path, false, &error) == Q3_OK);
    FILE *in = fopen(path, "rb");
    CHECK(in != NULL);
    for (int c; in != NULL && (c = fgetc(in)) != EOF;) gguf_number(&f, (uint64_t)c, 1);
    if (in != NULL) fclose(in);
    /* the last block of the file's last tensor: the scale 32768, the first number 2 */
    size_t at = f.size - 34;
    while (at > 0 && f.size % 32 != 0) at--;
    f.bytes[at] = 0;
    f.bytes[at + 1] = 0x78;
    f.bytes[at + 2] = 2;
    folder_write("large.gguf", f.bytes, f.size);
    CHECK(q3_model_open(&model, folder_path("large.gguf"), &error) == Q3_OK);
    CHECK(q3_model_load(model, &dtype, 0, 2, &error) == Q3_ERROR_INPUT);
    CHECKF(strstr(error.text, "found 65536.0 in element ") != NULL &&
           strstr(error.text, ", expected a value that is finite in float16") != NULL, "%s",
           error.text);
    q3_model_close(model);
    q3_gguf_close(gguf);
    free(f.bytes);
}

int main(int count, char **arguments)
{
    if (count > 1) golden = arguments[1];
    folder_make("test_gguf.tmp");
    test_floats();
    test_config();
    test_tied();
    test_header();
    test_metadata();
    test_tensors();
    test_paths();
    test_parts();
    test_golden();
    test_overflow();
    folder_remove();
    return t_done("gguf");
}
