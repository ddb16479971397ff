/* SPDX-License-Identifier: MIT */
/* Checkpoints in FP8: folders with sizes that are no multiple of a block are written here and
 * loaded, and each weight is compared with its code, read by the format's definition, times its
 * scale; then each fault that such a folder can have, and which modules are quantised at all. */
#define _POSIX_C_SOURCE 200809L
#include "folder.h"
#include "host/files.h"
#include "host/quants.h"
#include "qwen3moe.h"
#include "rule.h"
#include "t.h"

#include <math.h>

/* ==== A small model =========================================================================== */

enum { V = 5, M = 200, I = 130, F = 129, HD = 66, H = 4, K = 2, E = 2, L = 2, MOST = 96 };

static const char config_text[] =
    "{\"model_type\":\"qwen3_moe\",\"vocab_size\":5,\"hidden_size\":200,\"intermediate_size\":130,"
    "\"num_hidden_layers\":2,\"num_attention_heads\":4,\"num_key_value_heads\":2,\"head_dim\":66,"
    "\"num_experts\":2,\"num_experts_per_tok\":1,\"moe_intermediate_size\":129,"
    "\"mlp_only_layers\":[1],\"dtype\":\"bfloat16\"";

typedef struct tensor {
    char name[80];
    const char *code;
    size_t rows, columns; /* columns 0: one axis */
    uint8_t *bytes;
    size_t size;
} tensor;

static struct {
    tensor t[MOST];
    size_t count;
} list;

static tensor *find(const char *name)
{
    for (size_t i = 0; i < list.count; i++)
        if (strcmp(list.t[i].name, name) == 0) return &list.t[i];
    fprintf(stderr, "the test has no tensor %s\n", name);
    abort();
}

static size_t size_of(const char *code)
{
    return strcmp(code, "F8_E4M3") == 0 ? 1 : strcmp(code, "F32") == 0 ? 4 : 2;
}

/* Random bytes, or zeros. */
static tensor *put(const char *prefix, const char *name, const char *code, size_t rows,
                   size_t columns, bool random)
{
    tensor *t = &list.t[list.count++];
    *t = (tensor){.code = code, .rows = rows, .columns = columns};
    snprintf(t->name, sizeof t->name, "%.36s%.43s", prefix, name);
    t->size = rows * (columns > 0 ? columns : 1) * size_of(code);
    t->bytes = calloc(t->size + 1, 1);
    if (t->bytes == NULL) exit(1);
    uint64_t key = rule_key("fp8", t->name);
    for (size_t i = 0; random && i < t->size; i++) t->bytes[i] = (uint8_t)rule_bits(key, i);
    return t;
}

/* A scale: a bfloat16, or a float32 with all its bits. */
static void set_scale(tensor *t, size_t i, float value)
{
    uint32_t u;
    memcpy(&u, &value, 4);
    if (strcmp(t->code, "BF16") == 0) u >>= 16;
    for (size_t b = 0; b < size_of(t->code); b++)
        t->bytes[i * size_of(t->code) + b] = (uint8_t)(u >> 8 * b & 0xFF);
}

static size_t blocks(size_t n)
{
    return (n + 127) / 128;
}

/* Codes of all kinds, NaN too; scales from a table. */
static void put_linear(const char *prefix, const char *name, const char *scale_code, size_t rows,
                       size_t columns)
{
    static const float scales[] = {1.5f, 1e-23f, 0.0f, 0x1.234567p-9f, 3e38f, -2.0f, 0x1p-149f,
                                   (float)NAN, (float)INFINITY};
    char whole[40];
    snprintf(whole, sizeof whole, "%.15s.weight", name);
    put(prefix, whole, "F8_E4M3", rows, columns, true);
    snprintf(whole, sizeof whole, "%.15s.weight_scale_inv", name);
    tensor *t = put(prefix, whole, scale_code, blocks(rows), blocks(columns), false);
    for (size_t i = 0; i < t->rows * t->columns; i++)
        set_scale(t, i, scales[(i + rows) % (sizeof scales / sizeof *scales)]);
}

static void make_layer(size_t i)
{
    char p[40];
    const char *scale = i == 0 ? "BF16" : "F32";
    snprintf(p, sizeof p, "model.layers.%u.", (unsigned)i);
    put(p, "input_layernorm.weight", "BF16", M, 0, false);
    put(p, "post_attention_layernorm.weight", "BF16", M, 0, false);
    put(p, "self_attn.q_norm.weight", "BF16", HD, 0, false);
    put(p, "self_attn.k_norm.weight", "BF16", HD, 0, false);
    snprintf(p, sizeof p, "model.layers.%u.self_attn.", (unsigned)i);
    put_linear(p, "q_proj", scale, H * HD, M);
    put_linear(p, "k_proj", scale, K * HD, M);
    put_linear(p, "v_proj", scale, K * HD, M);
    put_linear(p, "o_proj", scale, M, H * HD);
    for (size_t e = 0; e < (i == 0 ? E : 1); e++) {
        size_t width = i == 0 ? F : I;
        snprintf(p, sizeof p, i == 0 ? "model.layers.0.mlp.experts.%u." : "model.layers.1.mlp.",
                 (unsigned)e);
        put_linear(p, "gate_proj", scale, width, M);
        put_linear(p, "up_proj", scale, width, M);
        put_linear(p, "down_proj", scale, M, width);
    }
    if (i == 0) put("model.layers.0.", "mlp.gate.weight", "BF16", E, M, false);
}

static void make(void)
{
    for (size_t i = 0; i < list.count; i++) free(list.t[i].bytes);
    list.count = 0;
    put("", "model.embed_tokens.weight", "BF16", V, M, false);
    put("", "model.norm.weight", "BF16", M, 0, false);
    put("", "lm_head.weight", "BF16", V, M, false);
    for (size_t i = 0; i < L; i++) make_layer(i);
}

static void drop(const char *name)
{
    tensor *t = find(name), *last = &list.t[--list.count];
    free(t->bytes);
    for (; t < last; t++) *t = t[1];
}

static void write_model(void)
{
    static char header[1 << 14];
    size_t at = 8, end = 0, all = 0;
    for (size_t i = 0; i < list.count; i++) all += list.t[i].size;
    for (size_t i = 0; i < list.count; i++, end += list.t[i - 1].size) {
        const tensor *t = &list.t[i];
        char shape[48];
        snprintf(shape, sizeof shape, t->columns > 0 ? "%u,%u" : "%u", (unsigned)t->rows,
                 (unsigned)t->columns);
        at += (size_t)snprintf(header + at, sizeof header - at, "%c\"%s\":{\"dtype\":\"%s\","
                               "\"shape\":[%s],\"data_offsets\":[%u,%u]}",
                               i > 0 ? ',' : '{', t->name, t->code, shape, (unsigned)end,
                               (unsigned)(end + t->size));
    }
    header[at++] = '}';
    for (size_t b = 0; b < 8; b++) header[b] = (char)((uint64_t)(at - 8) >> 8 * b & 0xFF);
    char *file = malloc(at + all);
    if (file == NULL) exit(1);
    memcpy(file, header, at);
    for (size_t i = 0; i < list.count; at += list.t[i++].size)
        memcpy(file + at, list.t[i].bytes, list.t[i].size);
    folder_write("model.safetensors", file, at);
    free(file);
}

/* kept: modules_to_not_convert, or NULL: without quantization_config. */
static void write_config(const char *kept)
{
    char text[2048];
    int n = snprintf(text, sizeof text, kept != NULL
                     ? "%s,\"quantization_config\":{\"quant_method\":\"fp8\",\"fmt\":\"e4m3\","
                       "\"weight_block_size\":[128,128],\"modules_to_not_convert\":%s}}"
                     : "%s}", config_text, kept);
    folder_write("config.json", text, (size_t)n);
}

/* ==== Loading ================================================================================= */

static q3_model *load(q3_error *error)
{
    q3_model *model = NULL;
    q3_dtype dtype = Q3_AUTO;
    error->text[0] = 0;
    if (q3_model_open(&model, folder.path, error) != Q3_OK) return NULL;
    if (q3_model_load(model, &dtype, 0, L, error) == Q3_OK) {
        CHECK(dtype == Q3_BF16);
        return model;
    }
    q3_model_close(model);
    return NULL;
}

static void expect(const char *what, const char *want)
{
    char whole[600] = "";
    q3_error error;
    q3_model *model = load(&error);
    if (want[0] != 0) snprintf(whole, sizeof whole, "%s/%s", folder.path, want);
    CHECKF(strcmp(error.text, whole) == 0, "%s: got \"%s\", want \"%s\"", what, error.text, whole);
    q3_model_close(model);
}

/* OCP's E4M3: exponent 15 with all bits of the significand set is NaN, there is no infinity. */
static double of_code(uint8_t code)
{
    int exponent = code >> 3 & 15, bits = code & 7;
    double size = exponent == 0 ? ldexp(bits, -9) : ldexp(8 + bits, exponent - 10);
    if ((code & 0x7F) == 0x7F) return NAN;
    return code & 0x80 ? -size : size;
}

static double scale_of(const tensor *t, size_t i)
{
    uint32_t u = 0;
    float value;
    for (size_t b = 0; b < size_of(t->code); b++)
        u |= (uint32_t)t->bytes[i * size_of(t->code) + b] << 8 * b;
    if (strcmp(t->code, "BF16") == 0) u <<= 16;
    memcpy(&value, &u, 4);
    return (double)value;
}

static bool same(double a, double b)
{
    return a != a ? b != b : memcmp(&a, &b, sizeof a) == 0;
}

/* The exact product, whatever the run's dtype is; and the nearest float32. */
static void check_weight(q3_tensor got, const char *module)
{
    char name[80];
    snprintf(name, sizeof name, "%.60s.weight", module);
    const tensor *codes = find(name);
    snprintf(name, sizeof name, "%.60s.weight_scale_inv", module);
    const tensor *scales = find(name);
    CHECKF(got.dtype == Q3_QUANTIZED, "%s", module);
    if (got.dtype != Q3_QUANTIZED) return;
    const q3_quantized *weight = got.data;
    size_t wrong = 0;
    for (size_t i = 0; i < codes->size; i++) {
        size_t row = i / codes->columns, column = i % codes->columns;
        double scale = scale_of(scales, row / 128 * scales->columns + column / 128), exact;
        double want = of_code(codes->bytes[i]) * scale;
        float narrow;
        weight->dequantize(&exact, weight, i, 1);
        q3_widen(&narrow, got, i, 1, Q3_BF16);
        wrong += !same(exact, want) || !same((double)narrow, (double)(float)want);
    }
    CHECKF(wrong == 0, "%s: %lu elements", module, (unsigned long)wrong);
}

static void check_mlp(const q3_mlp *mlp, const char *prefix)
{
    const q3_tensor weights[] = {mlp->gate_proj, mlp->up_proj, mlp->down_proj};
    static const char *const names[] = {"gate_proj", "up_proj", "down_proj"};
    for (size_t i = 0; i < 3; i++) {
        char module[60];
        snprintf(module, sizeof module, "%.40s%s", prefix, names[i]);
        check_weight(weights[i], module);
    }
}

static void check_good(void)
{
    q3_error error;
    make();
    write_model();
    write_config("[\"lm_head\",\"model.layers.0.mlp.gate\",\"model.norm\"]");
    q3_model *model = load(&error);
    CHECKF(model != NULL, "%s", error.text);
    if (model == NULL) return;
    const q3_layer *l = q3_model_weights(model)->layers;
    for (size_t i = 0; i < L; i++) {
        const q3_tensor weights[] = {l[i].q_proj, l[i].k_proj, l[i].v_proj, l[i].o_proj};
        for (size_t k = 0; k < 4; k++) {
            char module[60];
            snprintf(module, sizeof module, "model.layers.%u.self_attn.%c_proj", (unsigned)i,
                     "qkvo"[k]);
            check_weight(weights[k], module);
        }
    }
    check_mlp(&l[0].experts[0], "model.layers.0.mlp.experts.0.");
    check_mlp(&l[0].experts[1], "model.layers.0.mlp.experts.1.");
    check_mlp(&l[1].mlp, "model.layers.1.mlp.");
    CHECK(l[0].gate.dtype == Q3_BF16 && q3_model_weights(model)->lm_head.dtype == Q3_BF16);
    q3_model_close(model);
    write_config("null"); /* lm_head alone is kept; the router is none of the Linears of 5.x */
    expect("no list", "");
}

/* ==== Faults ================================================================================== */

#define FILE_ "model.safetensors: "
#define Q0 "model.layers.0.self_attn.q_proj.weight"
#define KEPT "[\"lm_head\",\"model.layers.0.mlp.gate\"%s]"

static void check_faults(void)
{
    write_config("[\"lm_head\"]");
    make();
    drop(Q0 "_scale_inv");
    write_model();
    expect("no scales", FILE_ Q0 "_scale_inv: missing, expected a tensor of shape [3,2]");
    make();
    find(Q0 "_scale_inv")->rows = 2, find(Q0 "_scale_inv")->columns = 3;
    write_model();
    expect("scales of another shape", FILE_ Q0 "_scale_inv: found shape [2,3], expected [3,2]");
    make();
    find(Q0 "_scale_inv")->code = "I32", find(Q0 "_scale_inv")->rows = 3;
    find(Q0 "_scale_inv")->columns = 1; /* 6 halves are 3 integers */
    write_model();
    expect("whole scales", FILE_ Q0 "_scale_inv: found dtype int32, expected float32, bfloat16 or "
           "float16");
    make();
    find(Q0 "_scale_inv")->code = "F8_E4M3", find(Q0 "_scale_inv")->columns = 4;
    write_model();
    expect("scales in FP8", FILE_ Q0 "_scale_inv: found dtype float8_e4m3fn, expected float32, "
           "bfloat16 or float16");
    make();
    find(Q0)->code = "BF16", find(Q0)->columns = M / 2;
    write_model();
    expect("weights that are not quantised", FILE_ Q0 ": found dtype bfloat16, expected "
           "float8_e4m3fn, since modules_to_not_convert does not name it");
    make();
    put("", "model.norm.weight_scale_inv", "BF16", 2, 2, false);
    write_model();
    expect("scales of a norm", FILE_ "model.norm.weight_scale_inv: the model has no such tensor: "
           "modules_to_not_convert names its module, or that is no Linear");
    make();
    find("model.norm.weight")->code = "F8_E4M3", find("model.norm.weight")->rows = 2 * M;
    write_model();
    expect("a norm in FP8", FILE_ "model.norm.weight: found dtype float8_e4m3fn, expected float32, "
           "bfloat16 or float16, since modules_to_not_convert names it, or that is no Linear");
    make();
    put("", "model.layers.0.mlp.experts.gate_up_proj", "F8_E4M3", E, 2 * F * M, false);
    write_model();
    expect("packed experts", FILE_ "model.layers.0.mlp.experts.gate_up_proj: found packed experts "
           "in an fp8 checkpoint, expected a tensor for each matrix");
    make();
    write_model();
    write_config(NULL);
    expect("no quantization_config", FILE_ "model.layers.0.mlp.experts.0.down_proj.weight_scale_inv"
           ": the model has no such tensor: config.json has no quantization_config");
    for (size_t i = 0; i < list.count; i++)
        if (strstr(list.t[i].name, "_scale_inv") != NULL) drop(list.t[i--].name);
    write_model();
    expect("codes alone", FILE_ Q0 ": found dtype float8_e4m3fn, expected float32, bfloat16 or "
           "float16, since config.json has no quantization_config");
}

/* ==== Which modules are quantised ============================================================= */

#define DIFFER(module, four, five) \
    "config.json: quantization_config.modules_to_not_convert: " module " is " four \
    "quantised in transformers 4.x and " five "in 5.x, expected names that both take alike"

/* What transformers' should_convert_module (5.17.0) and _replace_with_fp8_linear (4.57.6) say. */
static void check_names(void)
{
    static const struct { const char *kept, *want; } cases[] = {
        {"[\"lm_head\",\"model.layers.0.mlp.gate\"]", ""},
        {"[\"lm_head\",\"model.layers.1.mlp.gate\"]", /* a prefix of gate_proj's name */
         FILE_ "model.layers.1.mlp.gate_proj.weight_scale_inv: the model has no such tensor: "
         "modules_to_not_convert names its module, or that is no Linear"},
        {"[\"lm_head\",\"mlp.gate\"]",
         DIFFER("model.layers.1.mlp.gate_proj", "not ", "")},
        {"[\"lm_head\",\"q_proj\"]", FILE_ Q0 "_scale_inv: the model has no such tensor: "
         "modules_to_not_convert names its module, or that is no Linear"},
        {"[\"lm_head\",\"down_proj\"]",
         DIFFER("model.layers.0.mlp.experts.0.down_proj", "not ", "")},
        {"[\"lm_head\",\"model.layers.0.mlp.experts.1\"]",
         DIFFER("model.layers.0.mlp.experts.1.gate_proj", "not ", "")},
        {"[\"lm_head\",\"layers.0.self_attn\"]",
         DIFFER("model.layers.0.self_attn.q_proj", "not ", "")},
        {"[\"lm_head\",\"model.layers.0.self.attn\"]", /* a point of a regular expression */
         DIFFER("model.layers.0.self_attn.q_proj", "", "not ")},
        {"[\"lm_head\",\"model.layers.0.self_attn.q_proj.weight\"]", ""},
        {"[\"lm_head\",\"model.layers.10\",\"model.layers.0x\"]", ""},
        {"[]", FILE_ "lm_head.weight_scale_inv: missing, expected a tensor of shape [1,2]"},
        {"[\"model\"]",
         FILE_ "lm_head.weight_scale_inv: missing, expected a tensor of shape [1,2]"},
    };
    make();
    write_model();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_config(cases[i].kept);
        expect(cases[i].kept, cases[i].want);
    }
    /* a whole layer's experts, as they are */
    make();
    for (size_t i = 0; i < list.count; i++) {
        tensor *t = &list.t[i];
        if (strstr(t->name, ".experts.") == NULL) continue;
        if (strstr(t->name, "_scale_inv") != NULL) {
            drop(list.t[i--].name);
            continue;
        }
        t->code = "BF16", t->size *= 2;
        free(t->bytes);
        t->bytes = calloc(t->size, 1);
        if (t->bytes == NULL) exit(1);
    }
    write_model();
    write_config("[\"lm_head\",\"model.layers.0.mlp\"]");
    expect("experts that are kept", "");
    write_config("[\"lm_head\",\"model.layers.0.mlp.experts\"]");
    expect("experts that are kept", "");
}

/* Every code, as a tensor of a file. */
static void check_codes(void)
{
    q3_tensors *tensors = NULL;
    q3_error error = {""};
    for (size_t i = 0; i < list.count; i++) free(list.t[i].bytes);
    list.count = 0;
    tensor *t = put("", "codes", "F8_E4M3", 256, 0, false);
    for (size_t i = 0; i < 256; i++) t->bytes[i] = (uint8_t)i;
    write_model();
    CHECKF(q3_tensors_open(&tensors, folder_path("model.safetensors"), &error) == Q3_OK, "%s",
           error.text);
    if (tensors == NULL) return;
    const q3_entry *entry = q3_tensors_at(tensors, 0);
    float values[256];
    CHECK(entry->dtype == Q3_F8);
    q3_entry_floats(values, entry, 0, 256);
    for (size_t i = 0; i < 256; i++) CHECK(same((double)values[i], of_code((uint8_t)i)));
    q3_entry_floats(values, entry, 255, 1);
    q3_entry_floats(values, entry, 200, 0);
    CHECK(values[0] != values[0]);
    q3_tensors_close(tensors);
    CHECK(q3_tensors_open_any(&tensors, folder_path("model.safetensors"), &error) == Q3_OK);
    CHECK(q3_tensors_at(tensors, 0)->dtype == Q3_AUTO);
    q3_tensors_close(tensors);
}

int main(void)
{
    folder_make("test_fp8.tmp");
    check_good();
    check_faults();
    check_names();
    check_codes();
    for (size_t i = 0; i < list.count; i++) free(list.t[i].bytes);
    folder_remove();
    return t_done("fp8");
}
