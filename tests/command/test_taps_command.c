/* SPDX-License-Identifier: MIT */
/* `qwen3moe taps`: it lists every tensor of Hugging Face's run (golden/hf/tiny) with its shape,
 * from config.json alone, and other systems' names (that each is read as that tap is
 * test_aliases.c's).
 *
 *   test_taps_command COMMAND GOLDEN */
#define FOLDER "taps.tmp/"
#ifdef __GNUC__
#pragma GCC diagnostic ignored "-Wunused-function" /* of command.h */
#endif
#include "command.h"

#include "host/json.h"

#define SIZES "L 5  M 120  H 6  K 2  hd 24  E 14  A 4  F 56  I 200  V 2040  T tokens  S keys\n"

/* The tensor's name with {i} for its layer, and its layer. */
static bool generic(char out[200], size_t *layer, const char *name)
{
    static const char start[] = "model.layers.";
    *layer = 0;
    snprintf(out, 200, "%s", name);
    if (strncmp(name, start, strlen(start)) != 0) return false;
    const char *rest = name + strlen(start);
    *layer = (size_t)atoi(rest);
    snprintf(out, 200, "%s{i}%s", start, strchr(rest, '.'));
    return true;
}

/* "[T,120]": the tokens, and the keys of scores and probs, are no numbers. */
static void shape_text(char out[64], const q3_entry *e, bool square)
{
    size_t used = 0;
    for (size_t i = 0; i < e->rank; i++) {
        bool tokens = i == (square ? 1 : 0), keys = square && i == 2;
        used += (size_t)snprintf(out + used, 64 - used, "%s", i > 0 ? "," : "[");
        if (tokens || keys)
            used += (size_t)snprintf(out + used, 64 - used, tokens ? "T" : "S");
        else
            used += (size_t)snprintf(out + used, 64 - used, "%zu", (size_t)e->shape[i]);
    }
    snprintf(out + used, 64 - used, "]");
}

/* A line of the last output that starts with the name and has the shape; how often it is there. */
static size_t count_lines(const char *name, const char *shape, const char *dtype)
{
    char want[300];
    size_t count = 0;
    snprintf(want, sizeof want, "] = %s  %s\n    ", shape, dtype);
    for (const char *p = last.out; p != NULL; p = strchr(p, '\n')) {
        p += *p == '\n';
        size_t n = strlen(name), length = strcspn(p, "\n");
        const char *found = strncmp(p, name, n) == 0 && strncmp(p + n, "  [", 3) == 0
                                ? strstr(p, want) : NULL;
        count += found != NULL && found < p + length;
    }
    return count;
}

static void test_text(void)
{
    char path[600];
    q3_tensors *golden;
    q3_error error;
    size_t taps = 0;
    snprintf(path, sizeof path, "%s/hf/tiny/taps-float32.safetensors", golden_path);
    if (q3_tensors_open(&golden, path, &error) != Q3_OK) exit(1);
    for (int layer = -1; layer < 5; layer++) {
        if (layer < 0) run("taps bare");
        else run("taps bare/config.json --layer %d", layer);
        succeeds(NULL);
        for (size_t i = 0; i < q3_tensors_count(golden); i++) {
            const q3_entry *e = q3_tensors_at(golden, i);
            char name[200], shape[64];
            size_t of;
            bool inside = generic(name, &of, e->name);
            bool square = strstr(name, "scores") != NULL || strstr(name, "probs.output") != NULL;
            if (strstr(name, "_ids") != NULL) continue;
            square = square && strstr(name, "router") == NULL;
            shape_text(shape, e, square);
            const char *dtype = e->dtype == Q3_I32                   ? "int32"
                                : strstr(name, "router_probs") != NULL ? "float32"
                                                                     : "the run's dtype";
            size_t want = layer < 0 || (inside && of == (size_t)layer);
            CHECKF(count_lines(layer < 0 ? name : e->name, shape, dtype) == want, "%d: %s %s",
                   layer, e->name, shape);
            taps += want;
        }
        CHECK((strstr(last.out, "{i}") != NULL) == (layer < 0));
        CHECK((strstr(last.out, "in layers with experts: 0, 2 to 4\n") != NULL) == (layer < 0));
        CHECK((strstr(last.out, "in layers with one MLP: 1\n") != NULL) == (layer < 0));
        CHECK(strncmp(last.out, SIZES, strlen(SIZES)) == 0);
    }
    CHECKF(taps > 200, "%zu taps", taps);
    q3_tensors_close(golden);
}

/* The text of a key of an object. */
static const char *text_of(const q3_json *j, uint32_t object, const char *key, char out[300])
{
    uint32_t node = q3_json_find(j, object, key);
    size_t n = node != 0 ? q3_json_string(j, node, (uint8_t *)out) : 0;
    CHECKF(node != 0 && n > 0, "no %s", key);
    out[n] = 0;
    return out;
}

static void test_json(void)
{
    static const struct { const char *tap, *system, *name; } some[] = {
        {"model.layers.2.mlp.output", "llama.cpp", "ffn_moe_out-2"},
        {"model.layers.2.self_attn.k_proj.output", "vLLM, SGLang",
         "model.layers.2.self_attn.qkv_proj.output"},
        {"model.layers.2.output", "TransformerLens", "blocks.3.hook_resid_pre"},
        {"model.layers.2.mlp.gate.output", "Hugging Face", "router_logits.1"},
        {"model.layers.2.mlp.experts.up_proj.output", "mlx-lm",
         "model.layers.2.mlp.switch_mlp.up_proj.output"},
        {"model.layers.2.self_attn.q_norm.output", "litgpt", "transformer.h.2.attn.norm_q.output"},
        {"model.layers.2.self_attn.q_rope.output", "torchtitan",
         "model.layers.2.attention.rope.output"},
        {"model.layers.2.mlp.gate.output", "keras-hub",
         "transformer_layer_2.mlp.sparse_feedforward_gate_dense.output"},
        {"model.layers.2.self_attn.v_proj.output", "tinygrad", "blk.2.attn_v.output"},
    };
    size_t seen = 0, names = 0;
    q3_json j;
    q3_error error = {""};
    run("taps bare --json --layer 2");
    succeeds(NULL);
    CHECKF(q3_json_parse(&j, "taps", (const uint8_t *)last.out, last.size, &error) == Q3_OK, "%s",
           error.text);
    if (error.text[0] != 0) return;
    uint32_t list = q3_json_find(&j, 0, "taps"), tap = list + 1;
    for (uint32_t i = 0; i < j.nodes[list].count; i++, tap = j.nodes[tap].next) {
        char own[300], system_name[300], name[300], meaning[300];
        uint32_t others = q3_json_find(&j, tap, "other_names"), at = others + 1;
        uint32_t shape = q3_json_find(&j, tap, "shape"), sizes = q3_json_find(&j, tap, "sizes");
        text_of(&j, tap, "name", own);
        text_of(&j, tap, "meaning", meaning);
        CHECK(j.nodes[shape].count == j.nodes[sizes].count && j.nodes[shape].count >= 2);
        CHECK(j.nodes[q3_json_find(&j, tap, "layers")].count == 1);
        for (uint32_t k = 0; k < j.nodes[others].count; k++, at = j.nodes[at].next, names++) {
            text_of(&j, at, "system", system_name);
            text_of(&j, at, "name", name);
            CHECK(strpbrk(name, "{#") == NULL);
            for (size_t s = 0; s < COUNT(some); s++)
                seen += strcmp(own, some[s].tap) == 0 && strcmp(name, some[s].name) == 0 &&
                        strcmp(system_name, some[s].system) == 0;
        }
    }
    CHECKF(j.nodes[list].count == 25 && seen == COUNT(some) && names > 100,
           "%u taps, %zu of %zu names, %zu names", j.nodes[list].count, seen, COUNT(some), names);
    q3_json_free(&j);
    run("taps bare --json");
    succeeds(NULL);
    CHECK(strstr(last.out,
                 "\"name\":\"model.layers.{i}.mlp.gate.output\",\"layers\":[0,2,3,4],"
                 "\"shape\":[\"T\",\"E\"],\"sizes\":[\"T\",14],\"dtype\":\"run\"") != NULL);
    CHECK(strstr(last.out, "\"name\":\"router_logits.{n}\"") != NULL);
    CHECK(strstr(last.out, "\"name\":\"blocks.{i+1}.hook_resid_pre\"") != NULL);
    CHECK(strstr(last.out, "\"name\":\"wqkv-{i}\",\"part\":2,\"parts\":3}") != NULL);
    CHECK(strstr(last.out, "\"shape\":[\"H\",\"T\",\"S\"],\"sizes\":[6,\"T\",\"S\"]") != NULL);
}

int main(int argc, char **argv)
{
    static const failure wrong[] = {
        {"taps", "taps: MODEL is missing"},
        {"taps bare more", "taps: unexpected argument 'more'"},
        {"taps bare --layer 5", "--layer: found 5, expected an integer from 0 to 4"},
        {"taps bare --layer -1", "--layer: found -1, expected an integer from 0 to 4"},
        {"taps bare --layer", "--layer needs a value: N"},
        {"taps none --layer 0", "none: num_hidden_layers: found 0, expected layers"},
    };
    set_up(argc, argv);
    shell("mkdir -p bare none && cp tiny/config.json bare && "
          "sed 's/\"num_hidden_layers\": *[0-9]*/\"num_hidden_layers\": 0/' tiny/config.json "
          ">none/config.json");
    test_text();
    test_json();
    all_fail(wrong, COUNT(wrong));
    run("taps nowhere");
    fails_with("nowhere");
    free(last.out);
    free(last.err);
    return t_done("test_taps_command");
}
