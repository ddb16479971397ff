/* SPDX-License-Identifier: MIT */
/* checkpoint.c - the model: config.json, and the weights in model.safetensors or in the shards of
 * an index, where each is found by its Hugging Face name; or a GGUF file, by what that calls it. */
#include "host/hints.h"
#include "host/listing.h"
#include "host/quants.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct q3_model {
    char *folder; /* NULL: only a config.json is known */
    char *config_path;
    q3_mapping config_text;
    q3_json document; /* of config_text */
    q3_config_file config;
    q3_gguf *gguf;   /* NULL: a folder, or a config.json */
    q3_listing list; /* its names while the weights are loaded */
    q3_layer *layers; /* [L] */
    q3_mlp *experts;  /* [sparse layers that run, E] */
    q3_quantized *slices; /* of a GGUF file's: [sparse layers that run, E, 3] */
    q3_quantized *quantized; /* of an fp8 checkpoint: every linear map that runs has one */
    q3_weights weights;
    q3_hints hints;
    bool loaded;
    int32_t *eos;
    size_t eos_count;
    bool eos_known;
};

/* ==== config.json and generation_config.json ================================================== */

/* Gives back what q3_model_load made. */
static void forget_weights(q3_model *model)
{
    q3_listing_free(&model->list);
    q3_hints_free(&model->hints);
    free(model->layers);
    free(model->experts);
    free(model->slices);
    free(model->quantized);
    model->layers = NULL;
    model->experts = NULL;
    model->slices = model->quantized = NULL;
    model->weights = (q3_weights){0};
}

void q3_model_close(q3_model *model)
{
    if (model == NULL) return;
    forget_weights(model);
    free(model->eos);
    q3_config_free(&model->config);
    q3_json_free(&model->document);
    q3_unmap(&model->config_text);
    q3_gguf_close(model->gguf);
    free(model->config_path);
    free(model->folder);
    free(model);
}

/* The metadata of a GGUF file, in place of its bytes. */
static q3_status open_gguf(q3_model *model, const char *path, q3_error *error)
{
    char *json = NULL;
    q3_unmap(&model->config_text);
    q3_status status = q3_gguf_open(&model->gguf, path, false, error);
    if (status == Q3_OK) status = q3_gguf_config(&json, model->gguf, error);
    if (status != Q3_OK) return status;
    model->config_text = (q3_mapping){(const uint8_t *)json, strlen(json), json, false};
    return Q3_OK;
}

/* Finds config.json in the folder, or takes path as one, or as a GGUF file, and reads it. */
static q3_status open_config(q3_model *model, const char *path, q3_error *error)
{
    bool folder = q3_is_folder(path);
    if (!folder && !q3_exists(path))
        return q3_fail(error, Q3_ERROR_FILE,
                       "cannot read %.300s: no such model folder, config.json or GGUF file", path);
    model->folder = folder ? q3_join(path, "/", "") : NULL;
    model->config_path = folder ? q3_join(path, "/", "config.json") : q3_join(path, "", "");
    if ((folder && model->folder == NULL) || model->config_path == NULL)
        return q3_no_memory(error, path);
    q3_mapping *text = &model->config_text;
    q3_status status = q3_map(text, model->config_path, error);
    if (status == Q3_OK && !folder && q3_is_gguf(path, text))
        status = open_gguf(model, path, error);
    if (status == Q3_OK)
        status = q3_json_parse(&model->document, model->config_path, text->data, text->size, error);
    return status != Q3_OK ? status : q3_config_read(&model->config, &model->document, error);
}

q3_status q3_model_open(q3_model **model, const char *path, q3_error *error)
{
    q3_model *m = calloc(1, sizeof *m);
    if (m == NULL) return q3_no_memory(error, path);
    q3_status status = open_config(m, path, error);
    if (status == Q3_OK)
        *model = m;
    else
        q3_model_close(m);
    return status;
}

const q3_config *q3_model_config(const q3_model *model)
{
    return &model->config.config;
}

q3_dtype q3_model_dtype(const q3_model *model)
{
    return model->config.dtype;
}

bool q3_model_is_fp8(const q3_model *model)
{
    return model->config.fp8.used;
}

const char *q3_model_config_json(const q3_model *model)
{
    return model->config.json;
}

/* eos_token_id as it stands: an integer, a list of them, or null. */
static q3_status read_eos(q3_model *model, const q3_json *j, uint32_t node, q3_error *error)
{
    static const char what[] = "a token id, a list of token ids, or null";
    q3_json_type type = node != 0 ? q3_json_type_of(j, node) : Q3_JSON_NULL;
    uint32_t count = type == Q3_JSON_NULL ? 0 : type == Q3_JSON_ARRAY ? j->nodes[node].count : 1;
    uint32_t value = type == Q3_JSON_ARRAY ? node + 1 : node;
    int32_t *ids = calloc((size_t)count + 1, sizeof *ids);
    if (ids == NULL) return q3_no_memory(error, j->name);
    for (uint32_t i = 0; i < count; i++, value = j->nodes[value].next) {
        uint64_t id = 0;
        if (!q3_json_uint(j, value, &id) || id > INT32_MAX) {
            free(ids);
            return q3_json_fail(j, value, "eos_token_id", what, error);
        }
        ids[i] = (int32_t)id;
    }
    model->eos = ids;
    model->eos_count = count;
    model->eos_known = true;
    return Q3_OK;
}

/* generation_config.json's eos_token_id if it has that key, else config.json's. */
static q3_status find_eos(q3_model *model, q3_error *error)
{
    q3_mapping text = {0};
    q3_json document = {0};
    uint32_t node = q3_json_find(&model->document, 0, "eos_token_id");
    char *path = NULL;
    if (model->folder != NULL) path = q3_join(model->folder, "generation_config.json", "");
    if (model->folder != NULL && path == NULL) return q3_no_memory(error, model->folder);
    if (path == NULL || !q3_exists(path)) {
        free(path);
        return read_eos(model, &model->document, node, error);
    }
    q3_status status = q3_open_json(&text, &document, path, error);
    if (status == Q3_OK) {
        uint32_t own = q3_json_find(&document, 0, "eos_token_id");
        if (q3_json_type_of(&document, 0) != Q3_JSON_OBJECT)
            status = q3_json_fail(&document, 0, "file", "a JSON object", error);
        else if (own != 0)
            status = read_eos(model, &document, own, error);
        else
            status = read_eos(model, &model->document, node, error);
        q3_json_free(&document);
        q3_unmap(&text);
    }
    free(path);
    return status;
}

q3_status q3_model_eos(q3_model *model, const int32_t **ids, size_t *count, q3_error *error)
{
    q3_status status = model->eos_known ? Q3_OK : find_eos(model, error);
    if (status == Q3_OK) {
        *ids = model->eos;
        *count = model->eos_count;
    }
    return status;
}

/* ==== Which tensors there must be ============================================================= */

/* The same walk over the model's tensors is made three times. */
typedef enum walk {
    WALK_NAMES, /* all of the model: each is listed */
    WALK_FILL,  /* those of the run: dtype, shape, where it lies */
    WALK_SCAN   /* those of the run: no element overflows in the run's dtype */
} walk;

/* What a tensor holds. */
typedef enum kind {
    PLAIN, /* values */
    FP8,   /* values that want scales */
    SCALES
} kind;

typedef struct loader {
    q3_model *model;
    q3_listing *list;       /* the model's */
    size_t first_layer, end_layer;
    walk walk;
    q3_dtype dtype;         /* the run's */
    q3_dtype seen;          /* the weights' one dtype; Q3_AUTO before the first */
    char seen_name[96];     /* the first tensor, and the first one that has another dtype */
    char other_name[96];
    q3_dtype other;
    q3_fp8 near;            /* the model's, with what may keep a module of the layer at hand */
    q3_quantized *next;     /* of WALK_FILL */
    q3_error *error;
} loader;

/* Whether any of n elements has an upper byte, but for the sign, that is not below `least`. */
static inline bool any_large(const uint8_t *element, size_t n, const size_t size, uint8_t least)
{
    uint8_t found = 0;
    for (size_t i = 0; i < n; i++)
        found |= (uint8_t)((element[i * size + size - 1] & 0x7F) >= least);
    return found != 0;
}

/* The index in values[n] of a finite one whose bits, but for the sign, are not below `least`; n if
 * there is none. */
static size_t find_large(const float *values, size_t n, uint32_t least)
{
    const uint32_t infinite = 0x7F800000;
    for (size_t k = 0; k < n; k++) {
        uint32_t bits;
        memcpy(&bits, &values[k], sizeof bits);
        if ((bits & 0x7FFFFFFF) - least < infinite - least) return k;
    }
    return n;
}

/* Whether blocks of a GGUF file can hold what bfloat16 cannot: their scales are float16, but for
 * MXFP4's powers of two. */
static bool leaves_bfloat16(const q3_entry *entry)
{
    const q3_block_format *format = ((const q3_quantized *)entry->data)->format;
    return format->type == 39;
}

/* Finite elements that become infinite in dtype: the first one's index, or count if there is none.
 * Only a wider range can overflow in a narrower one. */
static uint64_t first_overflow(const q3_entry *entry, uint64_t count, q3_dtype dtype)
{
    enum { AT_ONCE = 512 };
    /* half way between the largest finite value and the next power of two */
    const uint32_t least = dtype == Q3_F16 ? 0x477FF000 : 0x7F7F8000;
    const uint8_t top = (uint8_t)(least >> 24);
    bool blocks = entry->dtype == Q3_QUANTIZED; /* GGUF's: float32 values */
    if (dtype == Q3_F32 || entry->dtype == Q3_F16 || entry->dtype == dtype) return count;
    if (blocks && dtype == Q3_BF16 && !leaves_bfloat16(entry)) return count;
    for (uint64_t i = 0; i < count; i += AT_ONCE) {
        size_t n = count - i < AT_ONCE ? (size_t)(count - i) : AT_ONCE;
        const uint8_t *p = entry->data;
        float values[AT_ONCE];
        if (!blocks && !(entry->dtype == Q3_F32 ? any_large(p + 4 * i, n, 4, top)
                                                : any_large(p + 2 * i, n, 2, top)))
            continue;
        q3_widen(values, (q3_tensor){p, entry->dtype}, (size_t)i, n, Q3_F32);
        size_t k = find_large(values, n, least);
        if (k < n) return i + k;
    }
    return count;
}

/* An error if a finite element becomes infinite in the run's dtype. */
static q3_status check_range(loader *l, const char *path, const q3_entry *entry)
{
    uint64_t count = 1;
    char digits[32];
    float value = 0.0f;
    for (size_t i = 0; i < entry->rank; i++) count *= entry->shape[i];
    uint64_t at = first_overflow(entry, count, l->dtype);
    if (at == count) return Q3_OK;
    q3_widen(&value, (q3_tensor){entry->data, entry->dtype}, (size_t)at, 1, Q3_F32);
    q3_json_repr((double)value, digits);
    return q3_fail(l->error, Q3_ERROR_INPUT,
                   "%.200s: %.120s: found %s in element %" PRIu64
                   ", expected a value that is finite in %s",
                   path, entry->name, digits, at, q3_dtype_name(l->dtype));
}

/* Whether an fp8 checkpoint has this dtype where it should. */
static q3_status check_dtype(loader *l, const char *path, const q3_entry *entry, kind what)
{
    bool fp8 = entry->dtype == Q3_F8;
    bool plain = entry->dtype == Q3_F32 || entry->dtype == Q3_BF16 || entry->dtype == Q3_F16 ||
                 (entry->dtype == Q3_QUANTIZED && what == PLAIN);
    if (what == FP8 ? fp8 : plain) return Q3_OK;
    return q3_fail(l->error, Q3_ERROR_INPUT, "%.200s: %.120s: found dtype %s, expected %s%s", path,
                   entry->name, q3_dtype_name(entry->dtype),
                   what == FP8 ? q3_dtype_name(Q3_F8) : "float32, bfloat16 or float16",
                   what == FP8 ? ", since modules_to_not_convert does not name it"
                   : !fp8 || what == SCALES ? ""
                   : l->near.used ? ", since modules_to_not_convert names it, or that is no Linear"
                                  : ", since config.json has no quantization_config");
}

/* Dtype and shape of a tensor that is needed; *out says where it lies. */
static q3_status fill(loader *l, const char *path, const q3_entry *entry, kind what, size_t rank,
                      const uint64_t *shape, q3_tensor *out)
{
    char found[Q3_SHAPE_TEXT], expected[Q3_SHAPE_TEXT];
    q3_status status = check_dtype(l, path, entry, what);
    if (status != Q3_OK) return status;
    if (entry->rank != rank || memcmp(entry->shape, shape, rank * sizeof *shape) != 0) {
        q3_shape_text(found, sizeof found, entry->shape, entry->rank);
        q3_shape_text(expected, sizeof expected, shape, rank);
        return q3_fail(l->error, Q3_ERROR_INPUT, "%.150s: %.100s: found shape %s, expected %s",
                       path, entry->name, found, expected);
    }
    if (what == PLAIN && l->seen == Q3_AUTO) {
        l->seen = entry->dtype;
        snprintf(l->seen_name, sizeof l->seen_name, "%s", entry->name);
    } else if (what == PLAIN && l->other == Q3_AUTO && entry->dtype != l->seen) {
        l->other = entry->dtype;
        snprintf(l->other_name, sizeof l->other_name, "%s", entry->name);
    }
    *out = (q3_tensor){entry->data, entry->dtype};
    return Q3_OK;
}

/* A tensor of shape [a,b,c], [a,b] (c 0) or [a] (b and c 0). */
static q3_status visit(loader *l, kind what, const char *name, uint64_t a, uint64_t b, uint64_t c,
                       q3_tensor *out)
{
    const uint64_t shape[3] = {a, b, c};
    size_t rank = b == 0 ? 1 : c == 0 ? 2 : 3;
    char own[64];
    if (l->model->gguf != NULL && q3_gguf_name(own, name)) name = own;
    q3_item *it = q3_find_item(l->list, name);
    if (it == NULL) {
        char expected[Q3_SHAPE_TEXT];
        q3_shape_text(expected, sizeof expected, shape, rank);
        return q3_fail(l->error, Q3_ERROR_INPUT,
                       "%.200s: %.120s: missing, expected a tensor of shape %s", l->list->path,
                       name, expected);
    }
    if (l->walk == WALK_NAMES) {
        it->expected = true;
        l->list->expected++;
        q3_tensor unused; /* shapes bound the tables' sizes where a tensor has all experts */
        return it->tensor == NULL ? Q3_OK
             : fill(l, it->tensor->path, &it->tensor->entry, what, rank, shape, &unused);
    }
    q3_found found;
    q3_status status = q3_find_entry(&found, l->list, it, l->error);
    if (status != Q3_OK) return status;
    if (l->walk == WALK_SCAN)
        return what == PLAIN ? check_range(l, found.path, found.entry) : Q3_OK;
    status = fill(l, found.path, found.entry, what, rank, shape, out);
    if (status != Q3_OK) return status;
    return q3_hints_add(&l->model->hints, found.mapping, found.data, found.size)
         ? Q3_OK : q3_no_memory(l->error, l->list->path);
}

/* The same for prefix + name. */
static q3_status visit_in(loader *l, const char *prefix, const char *name, uint64_t a, uint64_t b,
                          q3_tensor *out)
{
    char whole[128];
    snprintf(whole, sizeof whole, "%s%s", prefix, name);
    return visit(l, PLAIN, whole, a, b, 0, out);
}

/* ==== Linear maps, which an fp8 checkpoint quantises ========================================== */

/* Of modules_to_not_convert what may keep a module whose name begins so. (With hundreds of names
 * and tens of thousands of experts, all of it would take longer than all else.) */
static void choose_near(loader *l, const char *prefix)
{
    static const char layers[] = "model.layers.";
    const q3_fp8 *all = &l->model->config.fp8;
    size_t own = sizeof layers - 1;
    l->near.kept_count = 0;
    for (size_t i = 0; i < all->kept_count; i++) {
        const char *name = all->kept[i];
        size_t k = 0;
        if (strncmp(name, layers, own) == 0)
            while (name[k] != 0 && prefix[k] != 0 && (name[k] == prefix[k] || name[k] == '.')) k++;
        if (k == 0 || name[k] == 0 || prefix[k] == 0) l->near.kept[l->near.kept_count++] = name;
    }
}

/* Whether a Linear is quantised. 4.x knows each matrix of an expert as a module, 5.x a layer's
 * experts as one. */
static q3_status find_kind(loader *l, const char *module, kind *what)
{
    static const char experts[] = ".mlp.experts";
    char module_5[128];
    *what = PLAIN;
    if (!l->near.used) return Q3_OK;
    snprintf(module_5, sizeof module_5, "%s", module);
    char *at = strstr(module_5, experts);
    if (at != NULL) at[sizeof experts - 1] = 0;
    bool kept_4 = q3_fp8_keeps(&l->near, module, false);
    bool kept_5 = q3_fp8_keeps(&l->near, module_5, true);
    if (kept_4 != kept_5)
        return q3_fail(l->error, Q3_ERROR_INPUT, "%.200s: quantization_config."
                       "modules_to_not_convert: %.100s is %squantised in transformers 4.x and "
                       "%sin 5.x, expected names that both take alike", l->model->config_path,
                       module, kept_4 ? "not " : "", kept_5 ? "not " : "");
    *what = kept_4 ? PLAIN : FP8;
    return Q3_OK;
}

/* The weight [a,b] of the Linear prefix + name; quantised, with its scales, one for each block. */
static q3_status visit_linear(loader *l, const char *prefix, const char *name, uint64_t a,
                              uint64_t b, q3_tensor *out)
{
    char whole[128];
    q3_tensor values = {0}, scales = {0};
    kind what;
    snprintf(whole, sizeof whole, "%s%s", prefix, name);
    size_t length = strlen(whole);
    q3_status status = find_kind(l, whole, &what);
    snprintf(whole + length, sizeof whole - length, ".weight");
    if (status == Q3_OK) status = visit(l, what, whole, a, b, 0, &values);
    *out = values;
    if (status != Q3_OK || what == PLAIN) return status;
    size_t rows = l->near.block_rows, columns = l->near.block_columns;
    snprintf(whole + length, sizeof whole - length, ".weight_scale_inv");
    status = visit(l, SCALES, whole, (a + rows - 1) / rows, (b + columns - 1) / columns, 0,
                   &scales);
    if (status != Q3_OK || l->walk != WALK_FILL) return status;
    *l->next = q3_fp8_weight(values.data, (size_t)b, scales, rows, columns);
    *out = (q3_tensor){l->next++, Q3_QUANTIZED};
    return Q3_OK;
}

/* gate_proj [width,M], up_proj [width,M] and down_proj [M,width] of a dense layer or of one
 * expert. */
static q3_status walk_mlp(loader *l, const char *prefix, size_t width, q3_mlp *mlp)
{
    size_t M = l->model->config.config.hidden_size;
    q3_status status = visit_linear(l, prefix, "gate_proj", width, M, &mlp->gate_proj);
    if (status == Q3_OK) status = visit_linear(l, prefix, "up_proj", width, M, &mlp->up_proj);
    if (status == Q3_OK) status = visit_linear(l, prefix, "down_proj", M, width, &mlp->down_proj);
    return status;
}

/* The experts of a layer as a GGUF file keeps them: a tensor for each matrix, of all experts. */
static q3_status walk_gguf_experts(loader *l, const char *prefix, q3_mlp *experts)
{
    const q3_config *c = &l->model->config.config;
    uint64_t E = c->num_experts, F = c->moe_intermediate_size, M = c->hidden_size;
    static const char *const names[] = {"gate_proj", "up_proj", "down_proj"};
    q3_tensor all[3];
    q3_status status = Q3_OK;
    for (size_t i = 0; i < 3 && status == Q3_OK; i++) {
        char name[128];
        snprintf(name, sizeof name, "%s%s", prefix, names[i]);
        status = visit(l, PLAIN, name, E, i < 2 ? F : M, i < 2 ? M : F, &all[i]);
    }
    if (status != Q3_OK || l->walk != WALK_FILL) return status;
    q3_quantized *own = l->model->slices + 3 * (experts - l->model->experts);
    for (size_t e = 0; e < E; e++, own += 3)
        experts[e] = (q3_mlp){q3_tensor_from(all[0], (size_t)(e * F * M), own),
                              q3_tensor_from(all[1], (size_t)(e * F * M), own + 1),
                              q3_tensor_from(all[2], (size_t)(e * F * M), own + 2)};
    return Q3_OK;
}

/* No version of transformers writes packed experts in FP8. */
static q3_status check_packed(loader *l, const char *prefix, const char *name)
{
    char module[128];
    kind what;
    snprintf(module, sizeof module, "%s0.gate_proj", prefix);
    q3_status status = find_kind(l, module, &what);
    if (status != Q3_OK || what == PLAIN) return status;
    return q3_fail(l->error, Q3_ERROR_INPUT, "%.200s: %.120s: found packed experts in an fp8 "
                   "checkpoint, expected a tensor for each matrix", l->list->path, name);
}

/* The experts of a layer: one tensor for each matrix, or, as 5.x keeps them, gate_up_proj [E,2F,M]
 * with the rows of gate_proj before those of up_proj, and down_proj [E,M,F]. */
static q3_status walk_experts(loader *l, const char *prefix, q3_mlp *experts)
{
    const q3_config *c = &l->model->config.config;
    uint64_t E = c->num_experts, F = c->moe_intermediate_size, M = c->hidden_size;
    q3_tensor gate_up = {0}, down = {0};
    q3_mlp unused;
    char name[128];
    q3_status status = Q3_OK;
    if (l->model->gguf != NULL) return walk_gguf_experts(l, prefix, experts);
    snprintf(name, sizeof name, "%sgate_up_proj", prefix);
    if (q3_find_item(l->list, name) == NULL) {
        for (size_t e = 0; status == Q3_OK && e < E; e++) {
            snprintf(name, sizeof name, "%s%lu.", prefix, (unsigned long)e);
            status = walk_mlp(l, name, (size_t)F, experts != NULL ? &experts[e] : &unused);
        }
        return status;
    }
    status = check_packed(l, prefix, name);
    if (status == Q3_OK) status = visit(l, PLAIN, name, E, 2 * F, M, &gate_up);
    snprintf(name, sizeof name, "%sdown_proj", prefix);
    if (status == Q3_OK) status = visit(l, PLAIN, name, E, M, F, &down);
    if (status != Q3_OK || l->walk != WALK_FILL) return status;
    for (size_t e = 0; e < E; e++)
        experts[e] = (q3_mlp){q3_tensor_from(gate_up, (size_t)(e * 2 * F * M), NULL),
                              q3_tensor_from(gate_up, (size_t)((e * 2 + 1) * F * M), NULL),
                              q3_tensor_from(down, (size_t)(e * M * F), NULL)};
    return Q3_OK;
}

/* All tensors of layer i; experts: where its experts go, NULL unless WALK_FILL. */
static q3_status walk_layer(loader *l, size_t i, q3_layer *layer, q3_mlp *experts)
{
    const q3_config *c = &l->model->config.config;
    size_t M = c->hidden_size, hd = c->head_dim;
    size_t q = c->num_attention_heads * hd, kv = c->num_key_value_heads * hd;
    enum { ALWAYS, LINEAR, BIAS };
    const struct { const char *name; size_t a, b; q3_tensor *out; int what; } tensor[] = {
        {"input_layernorm.weight", M, 0, &layer->input_layernorm, ALWAYS},
        {"self_attn.q_proj", q, M, &layer->q_proj, LINEAR},
        {"self_attn.k_proj", kv, M, &layer->k_proj, LINEAR},
        {"self_attn.v_proj", kv, M, &layer->v_proj, LINEAR},
        {"self_attn.o_proj", M, q, &layer->o_proj, LINEAR},
        {"self_attn.q_proj.bias", q, 0, &layer->q_proj_bias, BIAS},
        {"self_attn.k_proj.bias", kv, 0, &layer->k_proj_bias, BIAS},
        {"self_attn.v_proj.bias", kv, 0, &layer->v_proj_bias, BIAS},
        {"self_attn.o_proj.bias", M, 0, &layer->o_proj_bias, BIAS},
        {"self_attn.q_norm.weight", hd, 0, &layer->q_norm, ALWAYS},
        {"self_attn.k_norm.weight", hd, 0, &layer->k_norm, ALWAYS},
        {"post_attention_layernorm.weight", M, 0, &layer->post_attention_layernorm, ALWAYS}};
    char prefix[64];
    q3_status status = Q3_OK;
    snprintf(prefix, sizeof prefix, "model.layers.%lu.", (unsigned long)i);
    choose_near(l, prefix);
    for (size_t t = 0; status == Q3_OK && t < sizeof tensor / sizeof *tensor; t++) {
        if (tensor[t].what == LINEAR)
            status = visit_linear(l, prefix, tensor[t].name, tensor[t].a, tensor[t].b,
                                  tensor[t].out);
        else if (tensor[t].what == ALWAYS || c->attention_bias)
            status = visit_in(l, prefix, tensor[t].name, tensor[t].a, tensor[t].b, tensor[t].out);
    }
    if (status != Q3_OK) return status;
    if (!q3_layer_is_sparse(c, i)) {
        snprintf(prefix, sizeof prefix, "model.layers.%lu.mlp.", (unsigned long)i);
        return walk_mlp(l, prefix, c->intermediate_size, &layer->mlp);
    }
    status = visit_in(l, prefix, "mlp.gate.weight", c->num_experts, M, &layer->gate);
    layer->experts = experts;
    if (l->walk == WALK_FILL) q3_hints_experts(&l->model->hints, i);
    snprintf(prefix, sizeof prefix, "model.layers.%lu.mlp.experts.", (unsigned long)i);
    return status != Q3_OK ? status : walk_experts(l, prefix, experts);
}

/* lm_head may stand in the file of a tied model if it is the embedding, value for value: 4.x would
 * not look at it, 5.x would use it. */
static q3_status check_tied(loader *l, q3_tensor head)
{
    const q3_config *c = &l->model->config.config;
    q3_tensor embedding = l->model->weights.embed_tokens;
    float a[256], b[256];
    uint64_t count = (uint64_t)c->vocab_size * c->hidden_size;
    for (uint64_t i = 0; i < count; i += 256) {
        size_t n = count - i < 256 ? (size_t)(count - i) : 256;
        q3_widen(a, embedding, (size_t)i, n, Q3_F32);
        q3_widen(b, head, (size_t)i, n, Q3_F32);
        if (memcmp(a, b, n * sizeof *a) != 0)
            return q3_fail(l->error, Q3_ERROR_INPUT,
                           "%.300s: lm_head.weight: differs from model.embed_tokens.weight, though "
                           "tie_word_embeddings is true", l->list->path);
    }
    return Q3_OK;
}

/* Embedding, final norm and lm_head. */
static q3_status walk_ends(loader *l)
{
    const q3_config *c = &l->model->config.config;
    q3_weights *w = &l->model->weights;
    q3_tensor head = {0};
    bool all = l->walk == WALK_NAMES, last = l->end_layer == c->num_hidden_layers;
    bool tied = c->tie_word_embeddings;
    bool has_head = q3_find_item(l->list, "lm_head.weight") != NULL;
    q3_status status = Q3_OK;
    if (all || l->first_layer == 0 || (last && tied))
        status = visit(l, PLAIN, "model.embed_tokens.weight", c->vocab_size, c->hidden_size, 0,
                       &w->embed_tokens);
    if (!all && !last) return status;
    if (status == Q3_OK) status = visit_in(l, "", "model.norm.weight", c->hidden_size, 0, &w->norm);
    if (status == Q3_OK && !tied)
        status = visit_linear(l, "", "lm_head", c->vocab_size, c->hidden_size, &head);
    else if (status == Q3_OK && has_head)
        status = visit_in(l, "", "lm_head.weight", c->vocab_size, c->hidden_size, &head);
    if (status == Q3_OK && l->walk == WALK_FILL) {
        if (tied && has_head) status = check_tied(l, head);
        w->lm_head = tied ? w->embed_tokens : head;
    }
    return status;
}

/* All tensors that the walk is about, in the order of the layers. */
static q3_status walk_model(loader *l)
{
    const q3_config *c = &l->model->config.config;
    size_t i = l->walk == WALK_NAMES ? 0 : l->first_layer;
    size_t end = l->walk == WALK_NAMES ? c->num_hidden_layers : l->end_layer;
    q3_mlp *experts = l->model->experts;
    choose_near(l, "lm_head");
    q3_status status = walk_ends(l);
    for (; status == Q3_OK && i < end; i++) {
        q3_layer unused = {0};
        q3_layer *layer = l->walk == WALK_FILL ? &l->model->layers[i] : &unused;
        if (l->walk == WALK_FILL) q3_hints_layer(&l->model->hints, i);
        status = walk_layer(l, i, layer, l->walk == WALK_FILL ? experts : NULL);
        if (experts != NULL && q3_layer_is_sparse(c, i)) experts += c->num_experts;
    }
    if (status == Q3_OK && l->walk == WALK_FILL) q3_hints_layer(&l->model->hints, end);
    return status;
}

/* ==== Loading ================================================================================= */

/* Of scales: why there should be none. */
static const char *why_unknown(const loader *l, const char *name)
{
    static const char end[] = ".weight_scale_inv";
    size_t length = strlen(name), own = sizeof end - 1;
    if (length < own || strcmp(name + (length - own), end) != 0) return "";
    return l->near.used ? ": modules_to_not_convert names its module, or that is no Linear"
                        : ": config.json has no quantization_config";
}

/* Every listed tensor is one of the model's. */
static q3_status check_unknown(const loader *l)
{
    for (size_t i = 0; l->list->expected < l->list->count && i < l->list->count; i++) {
        const q3_item *it = &l->list->items[i];
        if (!it->expected)
            return q3_fail(l->error, Q3_ERROR_INPUT, "%.200s: %.120s: the model has no such tensor"
                           "%s", l->list->path, it->name, why_unknown(l, it->name));
    }
    return Q3_OK;
}

/* The tables that the weights are found in; the number of listed tensors bounds their sizes. */
static q3_status make_tables(loader *l)
{
    const q3_config *c = &l->model->config.config;
    size_t sparse = 0;
    for (size_t i = l->first_layer; i < l->end_layer; i++) sparse += q3_layer_is_sparse(c, i);
    size_t experts = c->num_experts > 0 && sparse <= SIZE_MAX / 4 / c->num_experts
                   ? sparse * c->num_experts : 0;
    size_t maps = l->near.used ? 1 + 7 * c->num_hidden_layers + 3 * experts : 0;
    l->model->layers = calloc(c->num_hidden_layers + 1, sizeof *l->model->layers);
    l->model->experts = calloc(experts + 1, sizeof *l->model->experts);
    if (l->model->gguf != NULL)
        l->model->slices = calloc(3 * experts + 1, sizeof *l->model->slices);
    l->next = l->model->quantized = calloc(maps + 1, sizeof *l->model->quantized);
    if (l->model->layers == NULL || l->model->experts == NULL || l->next == NULL ||
        (l->model->gguf != NULL && l->model->slices == NULL) ||
        !q3_hints_init(&l->model->hints, l->first_layer, l->end_layer, c->num_experts))
        return q3_no_memory(l->error, l->list->path);
    l->model->weights.layers = l->model->layers;
    return Q3_OK;
}

/* The run's dtype: as asked for, else config.json's, else the weights' one. */
static q3_status choose_dtype(loader *l)
{
    if (l->dtype == Q3_AUTO) l->dtype = l->model->config.dtype;
    if (l->dtype != Q3_AUTO) return Q3_OK;
    if (l->other != Q3_AUTO)
        return q3_fail(l->error, Q3_ERROR_INPUT, "%.150s: dtype: found %s in %s and %s in %s; "
                       "name the dtype of the run", l->list->path, q3_dtype_name(l->seen),
                       l->seen_name, q3_dtype_name(l->other), l->other_name);
    l->dtype = l->seen != Q3_AUTO ? l->seen : Q3_F32; /* Q3_AUTO: a run without weights */
    return Q3_OK;
}

/* Lists, names, fills, scans. */
static q3_status load(loader *l)
{
    q3_model *m = l->model;
    if (m->folder == NULL && m->gguf == NULL)
        return q3_fail(l->error, Q3_ERROR_INPUT,
                       "%.300s: a config.json alone has no weights, expected a model folder",
                       m->config_path);
    q3_status status = m->gguf != NULL ? q3_list_gguf(l->list, m->gguf, m->config_path, l->error)
                                       : q3_list_tensors(l->list, m->folder, l->error);
    l->walk = WALK_NAMES;
    if (status == Q3_OK) status = walk_model(l);
    if (status == Q3_OK) status = check_unknown(l);
    if (status == Q3_OK) status = make_tables(l);
    l->walk = WALK_FILL;
    if (status == Q3_OK) status = walk_model(l);
    if (status == Q3_OK) status = choose_dtype(l);
    l->walk = WALK_SCAN;
    return status == Q3_OK ? walk_model(l) : status;
}

q3_status q3_model_load(q3_model *model, q3_dtype *dtype, size_t first_layer, size_t end_layer,
                        q3_error *error)
{
    loader l = {.model = model, .list = &model->list, .first_layer = first_layer,
                .end_layer = end_layer, .dtype = *dtype, .seen = Q3_AUTO, .other = Q3_AUTO,
                .error = error};
    Q3_CHECK(!model->loaded && first_layer <= end_layer &&
             end_layer <= model->config.config.num_hidden_layers);
    Q3_CHECK(*dtype == Q3_AUTO || *dtype == Q3_F32 || *dtype == Q3_BF16 || *dtype == Q3_F16);
    const q3_fp8 *fp8 = &model->config.fp8;
    l.near = *fp8;
    l.near.kept = calloc(fp8->kept_count + 1, sizeof *l.near.kept);
    q3_status status = l.near.kept != NULL ? load(&l) : q3_no_memory(error, model->config_path);
    free(l.near.kept);
    q3_listing_forget(&model->list);
    if (status != Q3_OK) {
        forget_weights(model);
        return status;
    }
    model->loaded = true;
    *dtype = l.dtype;
    return Q3_OK;
}

const q3_weights *q3_model_weights(const q3_model *model)
{
    Q3_CHECK(model->loaded);
    return &model->weights;
}

void q3_model_turn(const q3_model *model, size_t layer)
{
    q3_hints_turn(&model->hints, layer);
}

void q3_model_chosen(const q3_model *model, size_t layer, const int32_t *ids, size_t count)
{
    q3_hints_chosen(&model->hints, layer, ids, count);
}
