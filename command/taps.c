/* SPDX-License-Identifier: MIT */
/* taps.c - `qwen3moe taps`: every tensor that can be judged, its shape and meaning, and what other
 * systems call it. From config.json alone. */
#include "command/command.h"

#include "host/taps.h"
#include "judge/judge.h"

#include <stdlib.h>
#include <string.h>

/* What is listed: of one layer (`all` false), or of all, whose number is then written {i}. */
typedef struct listing {
    const q3_config *config;
    bool all;
    size_t layer;
    q3_text *out;
} listing;

/* ==== What both forms say ===================================================================== */

/* A layer that has the tap: the one that is asked for, or the first; num_hidden_layers: none. */
static size_t layer_of(const listing *l, q3_tap_id id)
{
    size_t L = l->config->num_hidden_layers;
    if (!q3_tap_in_layer(id)) return l->all ? 0 : L;
    for (size_t layer = l->all ? 0 : l->layer; layer < (l->all ? L : l->layer + 1); layer++)
        if (q3_tap_exists(l->config, 0, L, id, layer)) return layer;
    return L;
}

static void put_tap_name(const listing *l, q3_text *out, q3_tap_id id)
{
    char name[Q3_TAP_NAME_SIZE];
    if (l->all && q3_tap_in_layer(id)) {
        q3_text_add(out, "model.layers.{i}.");
        q3_text_add(out, q3_tap_info(id)->name);
        return;
    }
    q3_tap_name(name, id, l->layer);
    q3_text_add(out, name);
}

/* Another system's name, with the number or how it comes from i. */
static void put_other_name(const listing *l, q3_text *out, const q3_other_name *other, q3_tap_id id,
                           size_t layer)
{
    const char *at = strchr(other->name, '#');
    if (!other->numbered) {
        q3_text_add(out, other->name);
        return;
    }
    q3_text_bytes(out, other->name, (size_t)(at - other->name));
    if (!l->all || !q3_tap_in_layer(id)) q3_text_uint(out, other->number);
    else q3_text_add(out, other->among_sparse ? "{n}" : other->number > layer ? "{i+1}" : "{i}");
    q3_text_add(out, at + 1);
}

/* ==== Text ==================================================================================== */

static void put_sizes(const listing *l)
{
    const q3_config *c = l->config;
    const struct { const char *name; size_t size; } sizes[] = {
        {"L ", c->num_hidden_layers}, {"  M ", c->hidden_size}, {"  H ", c->num_attention_heads},
        {"  K ", c->num_key_value_heads}, {"  hd ", c->head_dim}, {"  E ", c->num_experts},
        {"  A ", c->num_experts_per_tok}, {"  F ", c->moe_intermediate_size},
        {"  I ", c->intermediate_size}, {"  V ", c->vocab_size},
    };
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
        q3_text_count(l->out, sizes[i].name, sizes[i].size);
    q3_text_add(l->out, "  T tokens  S keys\n");
}

/* "[T,H*hd] = [T,144]" */
static void put_shape(const listing *l, q3_tap_id id)
{
    size_t shape[3], rank = q3_tap_shape(shape, l->config, id, 0);
    for (int numbers = 0; numbers < 2; numbers++) {
        q3_text_add(l->out, numbers ? " = [" : "  [");
        for (size_t i = 0; i < rank; i++) {
            const char *symbol = q3_tap_symbol(id, i);
            bool letter = !numbers || symbol[0] == 'T' || symbol[0] == 'S';
            q3_text_add(l->out, i > 0 ? "," : "");
            if (letter) q3_text_add(l->out, symbol);
            else q3_text_uint(l->out, shape[i]);
        }
        q3_text_add(l->out, "]");
    }
}

/* The layers that have the tap: "0, 2 to 4". */
static void put_layers(const listing *l, q3_tap_id id)
{
    size_t L = l->config->num_hidden_layers;
    bool first = true;
    for (size_t i = 0; i < L; i++) {
        size_t end = i;
        if (!q3_tap_exists(l->config, 0, L, id, i)) continue;
        while (end + 1 < L && q3_tap_exists(l->config, 0, L, id, end + 1)) end++;
        q3_text_count(l->out, first ? " " : ", ", i);
        if (end > i) q3_text_count(l->out, " to ", end);
        first = false;
        i = end;
    }
}

static void put_title(const listing *l, q3_tap_id id)
{
    q3_tap_place place = q3_tap_info(id)->place;
    q3_text_add(l->out, place == Q3_PLACE_FRONT    ? "\nbefore the layers"
                        : place == Q3_PLACE_HEAD   ? "\nbehind the layers"
                        : place == Q3_PLACE_SPARSE ? "\nin layers with experts:"
                        : place == Q3_PLACE_DENSE  ? "\nin layers with one MLP:"
                                                   : "\nin every layer:");
    if (q3_tap_in_layer(id)) put_layers(l, id);
    q3_text_add(l->out, "\n\n");
}

/* What the last layer's output is called by those who call it the final norm's input. */
static void put_last_names(const listing *l)
{
    size_t last = l->config->num_hidden_layers - 1;
    bool first = true;
    q3_other_name other;
    for (size_t i = 0; q3_other_name_at(&other, l->config, Q3_TAP_LAYER, last, i); i++) {
        if (other.numbered) continue;
        q3_text_add(l->out, first ? "    of the last layer: " : ", ");
        q3_text_add(l->out, other.name);
        first = false;
    }
    q3_text_add(l->out, first ? "" : "\n");
}

/* A line for each system. */
static void put_names(const listing *l, q3_tap_id id, size_t layer)
{
    q3_other_name other;
    const char *before = "";
    for (size_t i = 0; q3_other_name_at(&other, l->config, id, layer, i); i++) {
        bool same = strcmp(before, other.system) == 0;
        q3_text_add(l->out, same ? ", " : i > 0 ? "\n    " : "    ");
        if (!same) q3_text_add(l->out, other.system);
        if (!same) q3_text_add(l->out, ": ");
        put_other_name(l, l->out, &other, id, layer);
        if (other.parts > 1) {
            q3_text_count(l->out, " (", other.part + 1);
            q3_text_count(l->out, " of ", other.parts);
            q3_text_add(l->out, ")");
        }
        before = other.system;
    }
    q3_text_add(l->out, before[0] != 0 ? "\n" : "");
    if (l->all && id == Q3_TAP_LAYER) put_last_names(l);
}

static void put_text(const listing *l)
{
    q3_tap_place place = Q3_PLACE_NONE;
    put_sizes(l);
    if (!l->all) q3_text_add(l->out, "\n");
    for (int i = 0; i < Q3_TAP_COUNT; i++) {
        q3_tap_id id = (q3_tap_id)i;
        q3_dtype dtype = q3_tap_dtype(id, Q3_AUTO);
        size_t layer = layer_of(l, id);
        if (layer >= l->config->num_hidden_layers && (q3_tap_in_layer(id) || !l->all)) continue;
        if (l->all && q3_tap_info(id)->place != place) put_title(l, id);
        place = q3_tap_info(id)->place;
        put_tap_name(l, l->out, id);
        put_shape(l, id);
        q3_text_add(l->out, dtype == Q3_AUTO ? "  the run's dtype" : "  ");
        q3_text_add(l->out, dtype == Q3_AUTO ? "" : q3_dtype_name(dtype));
        q3_text_add(l->out, "\n    ");
        q3_text_add(l->out, q3_tap_info(id)->meaning);
        q3_text_add(l->out, "\n");
        put_names(l, id, layer);
    }
    q3_text_add(l->out, "\n(1 of 3): a part of a fused tensor. A name may stand without .output, "
                        "and behind a class or a wrapper.\n");
    if (l->all) q3_text_add(l->out, "{i} is the layer, {n} its number among those with experts.\n");
}

/* ==== JSON ==================================================================================== */

static void put_string(const listing *l, const char *before, const q3_text *text)
{
    q3_text_add(l->out, before);
    q3_text_string(l->out, text->data != NULL ? text->data : "", text->size);
    l->out->failed = l->out->failed || text->failed;
}

static void put_json_names(const listing *l, q3_tap_id id, size_t layer)
{
    q3_other_name other;
    q3_text_add(l->out, ",\"other_names\":[");
    for (size_t i = 0; q3_other_name_at(&other, l->config, id, layer, i); i++) {
        q3_text name = {0};
        put_other_name(l, &name, &other, id, layer);
        q3_text_add(l->out, i > 0 ? ",{\"system\":" : "{\"system\":");
        q3_text_string(l->out, other.system, strlen(other.system));
        put_string(l, ",\"name\":", &name);
        q3_text_count(l->out, ",\"part\":", other.part + 1);
        q3_text_count(l->out, ",\"parts\":", other.parts);
        q3_text_add(l->out, "}");
        free(name.data);
    }
    q3_text_add(l->out, "]}");
}

static void put_json_tap(const listing *l, q3_tap_id id, size_t layer)
{
    size_t L = l->config->num_hidden_layers, shape[3];
    size_t rank = q3_tap_shape(shape, l->config, id, 0), count = 0;
    q3_dtype dtype = q3_tap_dtype(id, Q3_AUTO);
    const char *meaning = q3_tap_info(id)->meaning;
    q3_text name = {0};
    put_tap_name(l, &name, id);
    put_string(l, "{\"name\":", &name);
    free(name.data);
    q3_text_add(l->out, ",\"layers\":[");
    for (size_t i = l->all ? 0 : l->layer; q3_tap_in_layer(id) && i < (l->all ? L : l->layer + 1);
         i++)
        if (q3_tap_exists(l->config, 0, L, id, i)) q3_text_count(l->out, count++ > 0 ? "," : "", i);
    for (int numbers = 0; numbers < 2; numbers++) {
        q3_text_add(l->out, numbers ? "],\"sizes\":[" : "],\"shape\":[");
        for (size_t i = 0; i < rank; i++) {
            const char *symbol = q3_tap_symbol(id, i);
            q3_text_add(l->out, i > 0 ? "," : "");
            if (!numbers || symbol[0] == 'T' || symbol[0] == 'S')
                q3_text_string(l->out, symbol, strlen(symbol));
            else
                q3_text_uint(l->out, shape[i]);
        }
    }
    q3_text_add(l->out, "],\"dtype\":\"");
    q3_text_add(l->out, dtype == Q3_AUTO ? "run" : q3_dtype_name(dtype));
    q3_text_add(l->out, "\",\"meaning\":");
    q3_text_string(l->out, meaning, strlen(meaning));
    put_json_names(l, id, layer);
}

static void put_json(const listing *l)
{
    bool first = true;
    q3_text_add(l->out, "{\"taps\":[");
    for (int i = 0; i < Q3_TAP_COUNT; i++) {
        size_t layer = layer_of(l, (q3_tap_id)i);
        bool inside = q3_tap_in_layer((q3_tap_id)i);
        if (layer >= l->config->num_hidden_layers && (inside || !l->all)) continue;
        q3_text_add(l->out, first ? "\n" : ",\n");
        put_json_tap(l, (q3_tap_id)i, layer);
        first = false;
    }
    q3_text_add(l->out, "\n]}\n");
}

/* ==== The verb ================================================================================ */

q3_status verb_taps(const command_line *command, q3_error *error)
{
    q3_model *model;
    q3_text out = {0};
    uint64_t number = 0;
    q3_status status = q3_model_open(&model, command->model, error);
    if (status != Q3_OK) return status;
    const q3_config *config = q3_model_config(model);
    size_t L = config->num_hidden_layers;
    if (L == 0)
        status = q3_fail(error, Q3_ERROR_INPUT,
                         "%s: num_hidden_layers: found 0, expected layers", command->model);
    else
        status = integer_option(command, OPTION_LAYER, 0, L - 1, 0, &number, error);
    const listing l = {config, command->value[OPTION_LAYER] == NULL, (size_t)number, &out};
    if (status == Q3_OK && command->value[OPTION_JSON] != NULL) put_json(&l);
    else if (status == Q3_OK) put_text(&l);
    if (status == Q3_OK && out.failed) status = q3_no_memory(error, command->model);
    if (status == Q3_OK) fputs(out.data, stdout);
    free(out.data);
    q3_model_close(model);
    return status;
}
