/* SPDX-License-Identifier: MIT */
/* gguf_text.c - what a GGUF file's names and metadata mean here (MODEL.md section 11): names of
 * tensors, the metadata as config.json, the tokenizer as tokenizer.json. Values are judged where
 * those are read, and messages have their keys; here is judged what config.json does not have, and
 * what llama.cpp does with it. */
#include "host/gguf.h"
#include "host/tokenizer.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ==== Names =================================================================================== */

bool q3_gguf_name(char name[64], const char *hugging_face)
{
    static const char *const ends[][2] = {
        {"model.embed_tokens.weight", "token_embd.weight"},
        {"model.norm.weight", "output_norm.weight"},
        {"lm_head.weight", "output.weight"}};
    static const char *const layer[][2] = {
        {"input_layernorm.weight", "attn_norm.weight"},
        {"self_attn.q_proj.weight", "attn_q.weight"},
        {"self_attn.k_proj.weight", "attn_k.weight"},
        {"self_attn.v_proj.weight", "attn_v.weight"},
        {"self_attn.o_proj.weight", "attn_output.weight"},
        {"self_attn.q_proj.bias", "attn_q.bias"},
        {"self_attn.k_proj.bias", "attn_k.bias"},
        {"self_attn.v_proj.bias", "attn_v.bias"},
        {"self_attn.o_proj.bias", "attn_output.bias"},
        {"self_attn.q_norm.weight", "attn_q_norm.weight"},
        {"self_attn.k_norm.weight", "attn_k_norm.weight"},
        {"post_attention_layernorm.weight", "ffn_norm.weight"},
        {"mlp.gate.weight", "ffn_gate_inp.weight"},
        {"mlp.experts.gate_proj", "ffn_gate_exps.weight"},
        {"mlp.experts.up_proj", "ffn_up_exps.weight"},
        {"mlp.experts.down_proj", "ffn_down_exps.weight"},
        {"mlp.gate_proj.weight", "ffn_gate.weight"},
        {"mlp.up_proj.weight", "ffn_up.weight"},
        {"mlp.down_proj.weight", "ffn_down.weight"}};
    static const char prefix[] = "model.layers.";
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        if (strcmp(hugging_face, ends[i][0]) != 0) continue;
        snprintf(name, 64, "%s", ends[i][1]);
        return true;
    }
    if (strncmp(hugging_face, prefix, sizeof prefix - 1) != 0) return false;
    const char *number = hugging_face + sizeof prefix - 1, *rest = strchr(number, '.');
    for (size_t i = 0; rest != NULL && i < sizeof layer / sizeof *layer; i++) {
        if (strcmp(rest + 1, layer[i][0]) != 0) continue;
        snprintf(name, 64, "blk.%.*s.%s", (int)(rest - number < 20 ? rest - number : 20), number,
                 layer[i][1]);
        return true;
    }
    return false;
}

/* ==== The metadata as config.json ============================================================= */

/* What the texts below are made of: the values, and where the first error goes. */
typedef struct source {
    const q3_gguf *gguf;
    const char *path;
    char prefix[16]; /* the architecture, which most keys begin with */
    q3_text *json;
    q3_error *error;
} source;

/* The value of a key, "qwen3moe." put before it; NULL: absent. */
static const q3_gguf_value *find(const source *s, const char *key)
{
    char whole[96];
    snprintf(whole, sizeof whole, "%s%s", s->prefix, key);
    return q3_gguf_find(s->gguf, whole);
}

static bool is_float(const q3_gguf_value *v)
{
    return v->type == Q3_GGUF_F32 || v->type == Q3_GGUF_F64;
}

/* A float; others: their bits. */
static double real_of(const q3_gguf_value *v)
{
    uint64_t bits = q3_gguf_load(v->data, q3_gguf_size(v->type)), wide = bits;
    uint32_t narrow = (uint32_t)bits;
    double real;
    float single;
    memcpy(&single, &narrow, sizeof single);
    memcpy(&real, &wide, sizeof real);
    return v->type == Q3_GGUF_F32 ? (double)single : real;
}

/* A finite float32 with the fewest digits that read back as the same float32: 1e-06, which the file
 * cannot hold, is 1e-06 again. A float64 is written as it is. */
static void put_real(q3_text *json, const q3_gguf_value *v)
{
    double real = real_of(v);
    for (int digits = 1; digits < 10 && v->type == Q3_GGUF_F32 && real != 0 &&
                             real < 1e30 && real > -1e30; digits++) {
        q3_text shorter = {0};
        double back = 0;
        q3_text_digits(&shorter, real, digits);
        const uint8_t *text = (const uint8_t *)shorter.data;
        bool is = text != NULL && q3_decimal_to_double(text, text + shorter.size, &back) &&
                  (double)q3_round(back, Q3_F32) == real;
        free(shorter.data);
        if (!is) continue;
        q3_text_real(json, back);
        return;
    }
    q3_text_real(json, real);
}

/* A number, true, false or a string; an array as its type and count alone, which no key may be. */
static void put_value(q3_text *json, const q3_gguf_value *v)
{
    uint64_t number = 0;
    char array[64];
    if (v->array) {
        snprintf(array, sizeof array, "an array of %zu", v->count);
        q3_text_string(json, array, strlen(array));
    } else if (v->type == Q3_GGUF_STRING) {
        q3_span string = q3_gguf_string(v->data);
        q3_text_string(json, (const char *)string.bytes, string.length);
    } else if (v->type == Q3_GGUF_BOOL) {
        q3_text_add(json, v->data[0] != 0 ? "true" : "false");
    } else if (is_float(v)) {
        double real = real_of(v);
        if (real - real == 0)
            put_real(json, v);
        else
            q3_text_add(json, "\"not finite\"");
    } else if (q3_gguf_integer(v, &number)) {
        q3_text_uint(json, number);
    } else {
        uint64_t all = UINT64_MAX << (8 * q3_gguf_size(v->type) - 1);
        q3_text_add(json, "-");
        q3_text_uint(json, ~(number | all) + 1);
    }
}

/* "FILE: KEY: found VALUE, expected WHAT". v NULL: nothing. */
static q3_status refuse(const source *s, const char *key, const q3_gguf_value *v,
                        const char *expected)
{
    q3_text found = {0};
    if (v != NULL) put_value(&found, v);
    q3_status status = q3_fail(s->error, Q3_ERROR_INPUT, "%.200s: %s%s: found %.60s, expected %s",
                               s->path, s->prefix, key, found.data != NULL ? found.data : "nothing",
                               expected);
    free(found.data);
    return status;
}

/* Keys that the graph of llama.cpp 0.3.36's qwen3moe and qwen3 does not read, or reads for other
 * models: only with this one value they mean what it computes. */
static q3_status check_fixed(const source *s)
{
    static const struct { const char *key; double only; const char *expected; } fixed[] = {
        {"expert_weights_norm", 1, "true: llama.cpp always divides by the chosen experts' sum"},
        {"expert_weights_scale", 1, "1: llama.cpp does not scale them in this architecture"},
        {"expert_gating_func", 1, "1, softmax"},
        {"expert_shared_count", 0, "0"},
        {"expert_shared_feed_forward_length", 0, "0"},
        {"expert_group_count", 0, "0"},
        {"leading_dense_block_count", 0, "0"},
        {"nextn_predict_layers", 0, "0"},
        {"attention.causal", 1, "true"},
        {"attention.sliding_window", 0, "0: llama.cpp has no window in this architecture"},
        {"rope.scale_linear", 1, "1, since rope.scaling.factor took its place"},
        {"rope.scaling.attn_factor", 1, "1: Hugging Face has no such factor"},
        {"rope.scaling.yarn_ext_factor", 1, "1, which llama.cpp takes here without reading it"},
        {"rope.scaling.yarn_attn_factor", 1, "1, which llama.cpp takes here without reading it"},
        {"rope.scaling.yarn_beta_fast", 32, "32, which llama.cpp takes here without reading it"},
        {"rope.scaling.yarn_beta_slow", 1, "1, which llama.cpp takes here without reading it"},
        {"rope.scaling.yarn_log_multiplier", 0, "0: llama.cpp does not read it here"},
        {"rope.scaling.alpha", 0, "0: llama.cpp does not read it here"}};
    for (size_t i = 0; i < sizeof fixed / sizeof *fixed; i++) {
        const q3_gguf_value *v = find(s, fixed[i].key);
        uint64_t number = 0;
        if (v == NULL) continue;
        bool known = !v->array && (v->type == Q3_GGUF_BOOL || is_float(v) ||
                                   q3_gguf_integer(v, &number));
        double found = !known ? -1 : is_float(v) ? real_of(v)
                     : v->type == Q3_GGUF_BOOL ? v->data[0] : (double)number;
        if (found != fixed[i].only) return refuse(s, fixed[i].key, v, fixed[i].expected);
    }
    return Q3_OK;
}

/* A comma behind what there is, and the key. */
static void put_key(q3_text *json, const char *key)
{
    q3_text_add(json, json->size > 0 && json->data[json->size - 1] != '{' ? ",\"" : "\"");
    q3_text_add(json, key);
    q3_text_add(json, "\":");
}

/* Keys that are config.json's under another name, which config.c judges. */
static q3_status put_named(const source *s)
{
    static const struct { const char *key; bool required, real; const char *config; } named[] = {
        {"block_count", true, false, "num_hidden_layers"},
        {"context_length", true, false, "max_position_embeddings"},
        {"embedding_length", true, false, "hidden_size"},
        {"feed_forward_length", false, false, "intermediate_size"},
        {"attention.head_count", true, false, "num_attention_heads"},
        {"attention.layer_norm_rms_epsilon", true, true, "rms_norm_eps"},
        {"rope.freq_base", false, true, "rope_theta"},
        {"expert_count", false, false, "num_experts"},
        {"expert_used_count", false, false, "num_experts_per_tok"}};
    for (size_t i = 0; i < sizeof named / sizeof *named; i++) {
        const q3_gguf_value *v = find(s, named[i].key);
        uint64_t number;
        if (v == NULL && !named[i].required) continue;
        bool right = v != NULL && !v->array &&
                     (named[i].real ? is_float(v) : q3_gguf_integer(v, &number));
        if (!right)
            return refuse(s, named[i].key, v, named[i].real ? "a float" : "an integer from 0 on");
        put_key(s->json, named[i].config);
        put_value(s->json, v);
    }
    return Q3_OK;
}

/* A size that may be absent; *number is then left alone. */
static q3_status read_size(const source *s, const char *key, uint64_t *number)
{
    const q3_gguf_value *v = find(s, key);
    if (v == NULL || q3_gguf_integer(v, number)) return Q3_OK;
    return refuse(s, key, v, "an integer from 0 on");
}

/* Sizes whose defaults are llama.cpp's, and those that must be one size. */
static q3_status put_sizes(const source *s, bool sparse)
{
    uint64_t heads = 0, width = 0, used = 0, embedding = 0, ff = 0;
    q3_status status = read_size(s, "attention.head_count", &heads);
    uint64_t key_heads = heads;
    if (status == Q3_OK) status = read_size(s, "attention.head_count_kv", &key_heads);
    if (status == Q3_OK) status = read_size(s, "embedding_length", &embedding);
    uint64_t head = heads != 0 ? embedding / heads : 0;
    if (status == Q3_OK) status = read_size(s, "attention.key_length", &head);
    static const char *const same[] = {"attention.value_length", "rope.dimension_count"};
    for (size_t i = 0; i < 2 && status == Q3_OK; i++) {
        uint64_t other = head;
        status = read_size(s, same[i], &other);
        if (status == Q3_OK && other != head)
            status = refuse(s, same[i], find(s, same[i]), "attention.key_length, a head's size");
    }
    put_key(s->json, "num_key_value_heads");
    q3_text_uint(s->json, key_heads);
    put_key(s->json, "head_dim");
    q3_text_uint(s->json, head);
    if (status != Q3_OK || !sparse) return status;
    status = read_size(s, "feed_forward_length", &ff);
    if (status == Q3_OK) status = read_size(s, "expert_used_count", &used);
    width = used != 0 ? ff / used : 0;
    if (status == Q3_OK) status = read_size(s, "expert_feed_forward_length", &width);
    uint64_t experts = 0;
    if (status == Q3_OK) status = read_size(s, "expert_count", &experts);
    if (status != Q3_OK) return status;
    if (experts == 0) return refuse(s, "expert_count", find(s, "expert_count"), "1 or more");
    if (used == 0) return refuse(s, "expert_used_count", find(s, "expert_used_count"), "1 or more");
    put_key(s->json, "moe_intermediate_size");
    q3_text_uint(s->json, width);
    return Q3_OK;
}

/* rope_scaling. llama.cpp's default type is linear, with a factor of 1; 0 means 1. */
static q3_status put_rope(const source *s)
{
    const q3_gguf_value *type = find(s, "rope.scaling.type");
    const q3_gguf_value *factor = find(s, "rope.scaling.factor");
    bool is_type = type == NULL || (!type->array && type->type == Q3_GGUF_STRING);
    q3_span name = {(const uint8_t *)"linear", 6};
    if (type != NULL && is_type) name = q3_gguf_string(type->data);
    bool yarn = q3_span_is(name, "yarn"), linear = q3_span_is(name, "linear");
    if (!is_type || (!yarn && !linear && !q3_span_is(name, "none")))
        return refuse(s, "rope.scaling.type", type, "\"none\", \"linear\" or \"yarn\"");
    if (factor != NULL && (factor->array || !is_float(factor)))
        return refuse(s, "rope.scaling.factor", factor, "a float");
    double by = factor != NULL && real_of(factor) != 0 ? real_of(factor) : 1;
    if (!yarn && (!linear || by == 1)) return Q3_OK;
    uint64_t length = 0;
    q3_status status = read_size(s, "context_length", &length);
    if (status == Q3_OK) status = read_size(s, "rope.scaling.original_context_length", &length);
    if (status != Q3_OK) return status;
    put_key(s->json, "rope_scaling");
    q3_text_add(s->json, yarn ? "{\"rope_type\":\"yarn\",\"factor\":"
                              : "{\"rope_type\":\"linear\",\"factor\":");
    if (by == 1)
        q3_text_add(s->json, "1.0");
    else
        put_value(s->json, factor);
    if (yarn) q3_text_count(s->json, ",\"original_max_position_embeddings\":", length);
    q3_text_add(s->json, "}");
    return Q3_OK;
}

/* Whether there is a tensor of this name; layer: put behind "blk." */
static bool has_tensor(const q3_gguf *gguf, const char *format, size_t layer)
{
    char name[64];
    snprintf(name, sizeof name, "blk.%lu.%s", (unsigned long)layer, format);
    return q3_gguf_tensor_of(gguf, name) != NULL;
}

/* What the tensors say: how many tokens, whether lm_head is there, biases, dense layers. */
static q3_status put_tensors(const source *s, bool sparse)
{
    const q3_gguf_value *tokens = q3_gguf_find(s->gguf, "tokenizer.ggml.tokens");
    const q3_gguf_tensor *embedding = q3_gguf_tensor_of(s->gguf, "token_embd.weight");
    uint64_t vocabulary = embedding != NULL ? embedding->entry.shape[0] : 0, layers = 0;
    q3_status status = read_size(s, "vocab_size", &vocabulary);
    if (status == Q3_OK) status = read_size(s, "block_count", &layers);
    if (status != Q3_OK) return status;
    if (tokens != NULL && tokens->array) vocabulary = tokens->count;
    put_key(s->json, "vocab_size");
    q3_text_uint(s->json, vocabulary);
    put_key(s->json, "tie_word_embeddings");
    q3_text_add(s->json, q3_gguf_tensor_of(s->gguf, "output.weight") != NULL ? "false" : "true");
    put_key(s->json, "attention_bias");
    q3_text_add(s->json, has_tensor(s->gguf, "attn_q.bias", 0) ? "true" : "false");
    if (!sparse) return Q3_OK;
    const char *before = ",\"mlp_only_layers\":[";
    for (size_t i = 0; i < q3_gguf_count(s->gguf) && i < layers; i++) {
        if (!has_tensor(s->gguf, "ffn_gate.weight", i)) continue;
        q3_text_count(s->json, before, i);
        before = ",";
    }
    if (before[1] == 0) q3_text_add(s->json, "]");
    return Q3_OK;
}

/* Ids that end a generation. */
static q3_status put_eos(const source *s)
{
    static const char *const keys[] = {"tokenizer.ggml.eos_token_id",
                                       "tokenizer.ggml.eot_token_id"};
    const char *before = ",\"eos_token_id\":[";
    uint64_t first = UINT64_MAX;
    for (size_t i = 0; i < 2; i++) {
        const q3_gguf_value *v = q3_gguf_find(s->gguf, keys[i]);
        uint64_t id = 0;
        if (v == NULL) continue;
        if (!q3_gguf_integer(v, &id))
            return q3_fail(s->error, Q3_ERROR_INPUT, "%.200s: %s: expected an integer from 0 on",
                           s->path, keys[i]);
        if (id == first) continue;
        first = id;
        q3_text_count(s->json, before, id);
        before = ",";
    }
    if (before[1] == 0) q3_text_add(s->json, "]");
    return Q3_OK;
}

/* general.architecture, which is model_type too. */
static q3_status put_architecture(source *s, bool *sparse)
{
    static const char key[] = "general.architecture";
    const q3_gguf_value *v = q3_gguf_find(s->gguf, key);
    bool known = v != NULL && !v->array && v->type == Q3_GGUF_STRING;
    q3_span name = {(const uint8_t *)"", 0};
    if (known) name = q3_gguf_string(v->data);
    *sparse = q3_span_is(name, "qwen3moe");
    if (!*sparse && !q3_span_is(name, "qwen3"))
        return refuse(s, key, v, "\"qwen3moe\" or \"qwen3\"");
    snprintf(s->prefix, sizeof s->prefix, "%s", *sparse ? "qwen3moe." : "qwen3.");
    put_key(s->json, "model_type");
    q3_text_add(s->json, *sparse ? "\"qwen3_moe\"" : "\"qwen3\"");
    return Q3_OK;
}

q3_status q3_gguf_config(char **json, const q3_gguf *gguf, q3_error *error)
{
    q3_text text = {0};
    source s = {.gguf = gguf, .path = q3_gguf_path(gguf), .json = &text, .error = error};
    bool sparse;
    q3_text_add(&text, "{");
    q3_status status = put_architecture(&s, &sparse);
    if (status == Q3_OK) status = check_fixed(&s);
    if (status == Q3_OK) status = put_named(&s);
    if (status == Q3_OK) status = put_sizes(&s, sparse);
    if (status == Q3_OK) status = put_rope(&s);
    if (status == Q3_OK) status = put_tensors(&s, sparse);
    if (status == Q3_OK) status = put_eos(&s);
    /* llama.cpp's activations are float32, whatever its weights are */
    q3_text_add(&text, sparse ? ",\"dtype\":\"float32\",\"norm_topk_prob\":true}"
                              : ",\"dtype\":\"float32\"}");
    if (status == Q3_OK && text.failed) status = q3_no_memory(error, s.path);
    if (status == Q3_OK)
        *json = text.data;
    else
        free(text.data);
    return status;
}

/* ==== The tokenizer as tokenizer.json ========================================================= */

/* What a token is, by the numbers of tokenizer.ggml.token_type; others are refused. */
enum { TOKEN_NORMAL = 1, TOKEN_CONTROL = 3, TOKEN_USER_DEFINED = 4, TOKEN_UNUSED = 5 };

/* An array of this type, or NULL with a message. */
static const q3_gguf_value *find_array(const source *s, const char *key, q3_gguf_type type)
{
    const q3_gguf_value *v = q3_gguf_find(s->gguf, key);
    if (v != NULL && v->array && v->type == type) return v;
    refuse(s, key, v, type == Q3_GGUF_STRING ? "an array of strings" : "an array of int32");
    return NULL;
}

/* A JSON string of a token or merge; false with a message where it is no UTF-8. */
static q3_status put_string(const source *s, const char *key, size_t index, q3_span string)
{
    if (q3_text_string(s->json, (const char *)string.bytes, string.length)) return Q3_OK;
    return q3_fail(s->error, Q3_ERROR_INPUT, "%.200s: %s: element %zu: found %.*s, expected UTF-8",
                   s->path, key, index, (int)(string.length < 40 ? string.length : 40),
                   (const char *)string.bytes);
}

/* Tokens of the vocabulary ("token":id), or (added) the others, each an object. */
static q3_status put_tokens(const source *s, const q3_gguf_value *tokens,
                            const q3_gguf_value *types, bool added)
{
    const uint8_t *at = tokens->data;
    q3_status status = Q3_OK;
    bool first = true;
    for (size_t i = 0; i < tokens->count && status == Q3_OK; i++) {
        q3_span token = q3_gguf_string(at);
        uint64_t type = q3_gguf_load(types->data + 4 * i, 4);
        at = token.bytes + token.length;
        if (type == TOKEN_UNUSED || (type != TOKEN_NORMAL) != added) continue;
        if (added && type != TOKEN_CONTROL && type != TOKEN_USER_DEFINED)
            return q3_fail(s->error, Q3_ERROR_INPUT, "%.200s: tokenizer.ggml.token_type: element "
                           "%zu: found %" PRIu64 ", expected 1, 3, 4 or 5", s->path, i, type);
        if (!first) q3_text_add(s->json, ",");
        first = false;
        if (added) q3_text_count(s->json, "{\"id\":", i);
        if (added) q3_text_add(s->json, ",\"content\":");
        status = put_string(s, "tokenizer.ggml.tokens", i, token);
        if (added) q3_text_add(s->json, ",\"special\":");
        if (added) q3_text_add(s->json, type == TOKEN_CONTROL ? "true" : "false");
        if (added)
            q3_text_add(s->json, ",\"single_word\":false,\"lstrip\":false,\"rstrip\":false,"
                                 "\"normalized\":false}");
        else
            q3_text_count(s->json, ":", i);
    }
    return status;
}

/* Keys with one value only. */
static q3_status check_tokenizer(const source *s)
{
    static const struct { const char *key, *text; bool number; const char *expected; } fixed[] = {
        {"tokenizer.ggml.model", "gpt2", false, "\"gpt2\""},
        {"tokenizer.ggml.pre", "qwen2", false, "\"qwen2\", the only one that is built in"},
        {"tokenizer.ggml.add_bos_token", NULL, false, "false"},
        {"tokenizer.ggml.add_eos_token", NULL, false, "false"},
        {"tokenizer.ggml.add_space_prefix", NULL, false, "false"}};
    for (size_t i = 0; i < sizeof fixed / sizeof *fixed; i++) {
        const q3_gguf_value *v = q3_gguf_find(s->gguf, fixed[i].key);
        bool one = v != NULL && !v->array, is = v == NULL && fixed[i].text == NULL;
        if (one && fixed[i].text == NULL) is = v->type == Q3_GGUF_BOOL && v->data[0] == 0;
        if (one && fixed[i].text != NULL)
            is = v->type == Q3_GGUF_STRING && q3_span_is(q3_gguf_string(v->data), fixed[i].text);
        if (!is) return refuse(s, fixed[i].key, v, fixed[i].expected);
    }
    return Q3_OK;
}

/* Normalizer, splitting and decoder of Qwen's tokenizer.json, which "qwen2" stands for; then the
 * file's tokens and merges. */
static q3_status put_tokenizer(const source *s)
{
    static const char merge_key[] = "tokenizer.ggml.merges";
    q3_status status = check_tokenizer(s);
    if (status != Q3_OK) return status;
    const q3_gguf_value *tokens = find_array(s, "tokenizer.ggml.tokens", Q3_GGUF_STRING);
    if (tokens == NULL) return Q3_ERROR_INPUT;
    const q3_gguf_value *types = find_array(s, "tokenizer.ggml.token_type", Q3_GGUF_I32);
    if (types == NULL) return Q3_ERROR_INPUT;
    const q3_gguf_value *merges = find_array(s, merge_key, Q3_GGUF_STRING);
    if (merges == NULL) return Q3_ERROR_INPUT;
    if (types->count != tokens->count)
        return q3_fail(s->error, Q3_ERROR_INPUT, "%.200s: tokenizer.ggml.token_type: found %zu "
                       "elements, expected %zu, as many as tokens", s->path, types->count,
                       tokens->count);
    q3_text_add(s->json, "{\"normalizer\":{\"type\":\"NFC\"},\"pre_tokenizer\":{\"type\":"
                "\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"Regex\":");
    q3_text_string(s->json, q3_qwen_pattern, strlen(q3_qwen_pattern));
    q3_text_add(s->json, "},\"behavior\":\"Isolated\",\"invert\":false},{\"type\":\"ByteLevel\","
                "\"add_prefix_space\":false,\"use_regex\":false}]},\"decoder\":{\"type\":"
                "\"ByteLevel\"},\"model\":{\"type\":\"BPE\",\"vocab\":{");
    status = put_tokens(s, tokens, types, false);
    q3_text_add(s->json, "},\"merges\":[");
    const uint8_t *at = merges->data;
    for (size_t i = 0; i < merges->count && status == Q3_OK; i++) {
        q3_span merge = q3_gguf_string(at);
        at = merge.bytes + merge.length;
        if (i > 0) q3_text_add(s->json, ",");
        status = put_string(s, merge_key, i, merge);
    }
    q3_text_add(s->json, "]},\"added_tokens\":[");
    if (status == Q3_OK) status = put_tokens(s, tokens, types, true);
    q3_text_add(s->json, "]}");
    return status;
}

q3_status q3_gguf_tokenizer(char **json, const q3_gguf *gguf, q3_error *error)
{
    q3_text text = {0};
    source s = {.gguf = gguf, .path = q3_gguf_path(gguf), .json = &text, .error = error};
    q3_status status = put_tokenizer(&s);
    if (status == Q3_OK && text.failed) status = q3_no_memory(error, s.path);
    if (status == Q3_OK)
        *json = text.data;
    else
        free(text.data);
    return status;
}

q3_status q3_gguf_chat_template(uint8_t **text, size_t *length, const q3_gguf *gguf,
                                q3_error *error)
{
    static const char key[] = "tokenizer.chat_template";
    const q3_gguf_value *v = q3_gguf_find(gguf, key);
    source s = {.gguf = gguf, .path = q3_gguf_path(gguf), .error = error};
    if (v == NULL || v->array || v->type != Q3_GGUF_STRING) return refuse(&s, key, v, "a string");
    q3_span string = q3_gguf_string(v->data);
    *text = malloc(string.length + 1);
    if (*text == NULL) return q3_no_memory(error, s.path);
    memcpy(*text, string.bytes, string.length);
    *length = string.length;
    return Q3_OK;
}
