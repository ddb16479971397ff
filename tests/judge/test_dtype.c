/* SPDX-License-Identifier: MIT */
/* dtype.c: the dtype of a run whose file does not say it. The tensors are Hugging Face's
 * (golden/hf) in three dtypes, stored as they were or as F32, and some of them exchanged or rounded
 * here.
 *
 *   test_dtype GOLDEN CASE... */
#include "judge/backend.h"
#include "model.h"

#include <string.h>

enum { MOST = 600, THREE = 3 };

static const char *const dtypes[THREE] = {"float32", "bfloat16", "float16"};

/* A file's tensors without its metadata. */
typedef struct given {
    q3_entry entries[MOST];
    size_t count;
    void *blocks[2 * MOST]; /* of those that were made here */
    size_t block_count;
} given;

static size_t elements(const q3_entry *e)
{
    size_t n = 1;
    for (size_t i = 0; i < e->rank; i++) n *= (size_t)e->shape[i];
    return n;
}

/* value in the dtype, little-endian; all values are the dtype's. */
static void put(uint8_t *at, float value, q3_dtype dtype)
{
    uint32_t u, f16;
    memcpy(&u, &value, sizeof u);
    if (dtype == Q3_F16) {
        /* by its definition: subnormals count in 2^-24, and the exponent is 112 less */
        float size = value < 0 ? -value : value;
        f16 = size < 0x1p-14f ? (uint32_t)(size * 0x1p24f) : ((u & 0x7FFFFFFF) >> 13) - (112 << 10);
        u = (u & 0x80000000) | f16 << 16;
    }
    if (dtype != Q3_F32) u >>= 16;
    for (size_t i = 0; i < (dtype == Q3_F32 ? 4 : 2); i++) at[i] = (uint8_t)(u >> 8 * i & 0xFF);
}

/* The tensor's values, rounded to `values`, stored as `stored`. */
static void remake(given *g, q3_entry *e, q3_dtype values, q3_dtype stored)
{
    size_t n = elements(e), size = stored == Q3_F32 ? 4 : 2;
    uint8_t *bytes = malloc(n * size + 1);
    if (bytes == NULL || g->block_count == 2 * MOST) exit(1);
    for (size_t i = 0; i < n; i++) {
        float x;
        q3_entry_floats(&x, e, i, 1);
        put(bytes + i * size, q3_round((double)x, values), stored);
    }
    e->dtype = stored;
    e->data = g->blocks[g->block_count++] = bytes;
}

static void take(given *g, const q3_tensors *file)
{
    memset(g, 0, sizeof *g);
    if (q3_tensors_count(file) > MOST) exit(1);
    for (size_t i = 0; i < q3_tensors_count(file); i++)
        g->entries[g->count++] = *q3_tensors_at(file, i);
}

static void release(given *g)
{
    for (size_t i = 0; i < g->block_count; i++) free(g->blocks[i]);
    g->block_count = 0;
}

static bool is_float(const q3_entry *e)
{
    return e->dtype == Q3_F32 || e->dtype == Q3_BF16 || e->dtype == Q3_F16;
}

/* The tensors whose names hold one of the texts (NULL: all) become such. */
static void remake_some(given *g, const char *const texts[], q3_dtype values, q3_dtype stored)
{
    for (size_t i = 0; i < g->count; i++) {
        bool some = texts == NULL;
        for (size_t k = 0; texts != NULL && texts[k] != NULL; k++)
            some = some || strstr(g->entries[i].name, texts[k]) != NULL;
        if (some && is_float(&g->entries[i])) remake(g, &g->entries[i], values, stored);
    }
}

/* Only the tokens and the tensors whose names hold the text are left. */
static void keep(given *g, const char *text)
{
    size_t count = 0;
    for (size_t i = 0; i < g->count; i++)
        if (strstr(g->entries[i].name, text) != NULL || strstr(g->entries[i].name, "_ids") != NULL)
            g->entries[count++] = g->entries[i];
    g->count = count;
}

/* ==== What is shown =========================================================================== */

static char note[200]; /* of the last one */

static q3_dtype shown(const q3_config *config, const given *g)
{
    backend b;
    q3_error error = {""};
    q3_status status = q3_backend_init(&b, config, "m", &error);
    for (size_t i = 0; i < g->count && status == Q3_OK; i++)
        status = q3_backend_add_tensor(&b, &g->entries[i], &error);
    if (status == Q3_OK) status = q3_backend_read(&b, &error);
    if (status == Q3_OK) status = q3_backend_bind(&b, b.T, &error);
    CHECKF(status == Q3_OK, "%s", error.text);
    q3_dtype dtype = status == Q3_OK ? q3_backend_dtype(&b) : Q3_AUTO;
    snprintf(note, sizeof note, "%s", b.dtype_note);
    q3_backend_close(&b);
    return dtype;
}

static q3_tensors *open_case(const char *folder, q3_dtype dtype)
{
    char path[640];
    q3_error error;
    q3_tensors *file;
    snprintf(path, sizeof path, "%s/taps-%s.safetensors", folder, dtypes[dtype]);
    if (q3_tensors_open(&file, path, &error) == Q3_OK) return file;
    fprintf(stderr, "%s\n", error.text);
    exit(1);
}

/* Every golden run, stored in its own dtype and as F32. */
static void test_case(const char *folder)
{
    q3_model *model;
    q3_error error;
    static given g;
    if (q3_model_open(&model, folder, &error) != Q3_OK) exit(1);
    for (q3_dtype d = Q3_F32; d <= Q3_F16; d++) {
        q3_tensors *file = open_case(folder, d);
        take(&g, file);
        CHECKF(shown(q3_model_config(model), &g) == d, "%s, %s: %s", folder, dtypes[d], note);
        CHECKF((note[0] != 0) == (d == Q3_F32), "%s", note);
        remake_some(&g, NULL, Q3_F32, Q3_F32);
        CHECKF(shown(q3_model_config(model), &g) == d, "%s, %s as F32: %s", folder, dtypes[d],
               note);
        CHECKF(strstr(note, d == Q3_F32 ? "its values need float32: judged as float32"
                            : d == Q3_BF16
                                ? "its values are all bfloat16: judged as bfloat16"
                                : "its values are all float16: judged as float16") != NULL, "%s",
               note);
        release(&g);
        q3_tensors_close(file);
    }
    q3_model_close(model);
}

/* Parts of golden/tiny's runs, and mixtures. `of`: the run; texts: tensors that are exchanged for
 * those of `values`, stored as `stored`. */
static void test_mixtures(const fixture *f, const char *folder)
{
    static const char *const tables[] = {"rotary_emb", NULL}, *const rope[] = {"_rope", NULL},
        *const router[] = {"mlp.gate.", NULL}, *const cache[] = {"k_rope", "v_proj", NULL},
        *const experts[] = {"experts.", NULL}, *const logits[] = {"lm_head", NULL},
        *const wider[] = {"rotary_emb", "mlp.gate.", "scores", "probs", "topk_weights", "lm_head",
                          NULL},
        *const autocast[] = {"_proj", "experts.", "act_fn", "mlp.output", "lm_head", NULL},
        *const maps[] = {"q_proj", "k_proj", "v_proj", "experts.", NULL},
        *const most[] = {"norm", "rope", "_proj", "experts", NULL};
    static const struct {
        q3_dtype of;
        const char *keep, *const *exchanged; /* keep: NULL: all */
        q3_dtype values, stored, want;
    } cases[] = {
        /* a float32 run with a table, a step or a cache in bfloat16 or float16 */
        {Q3_F32, NULL, tables, Q3_BF16, Q3_BF16, Q3_F32},
        {Q3_F32, NULL, tables, Q3_BF16, Q3_F32, Q3_F32},
        {Q3_F32, NULL, rope, Q3_BF16, Q3_BF16, Q3_F32},
        {Q3_F32, NULL, rope, Q3_BF16, Q3_F32, Q3_F32},
        {Q3_F32, NULL, router, Q3_BF16, Q3_F32, Q3_F32},
        {Q3_F32, NULL, cache, Q3_F16, Q3_F16, Q3_F32},
        /* a run in bfloat16 with what backends keep in float32 */
        {Q3_BF16, NULL, wider, Q3_F32, Q3_F32, Q3_BF16},
        {Q3_BF16, NULL, experts, Q3_F32, Q3_F32, Q3_BF16},
        {Q3_F16, NULL, wider, Q3_F32, Q3_F32, Q3_F16},
        /* linear maps in bfloat16, the rest in float32 */
        {Q3_F32, NULL, autocast, Q3_BF16, Q3_BF16, Q3_BF16},
        {Q3_F32, NULL, maps, Q3_BF16, Q3_BF16, Q3_BF16},
        {Q3_F32, NULL, most, Q3_F16, Q3_F32, Q3_F16},
        /* parts */
        {Q3_F32, "embed_tokens", NULL, 0, 0, Q3_AUTO}, /* the checkpoint is bfloat16 */
        {Q3_BF16, "embed_tokens", NULL, 0, 0, Q3_BF16},
        {Q3_F32, "rotary_emb", NULL, 0, 0, Q3_AUTO},
        {Q3_BF16, "rotary_emb", NULL, 0, 0, Q3_AUTO},
        {Q3_F32, "router_probs", NULL, 0, 0, Q3_AUTO},
        {Q3_F32, "mlp.gate.", NULL, 0, 0, Q3_AUTO},
        {Q3_BF16, "mlp.gate.", NULL, 0, 0, Q3_BF16},
        {Q3_F32, "lm_head", NULL, 0, 0, Q3_AUTO},
        {Q3_BF16, "lm_head", logits, Q3_BF16, Q3_F32, Q3_BF16},
        {Q3_F32, "layers.0.self_attn.q_proj", NULL, 0, 0, Q3_F32},
        {Q3_F32, "layers.4.output", NULL, 0, 0, Q3_F32},
        {Q3_F16, "layers.4.output", NULL, 0, 0, Q3_F16},
    };
    static given g;
    q3_tensors *file[THREE];
    for (q3_dtype d = Q3_F32; d <= Q3_F16; d++) file[d] = open_case(folder, d);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        take(&g, file[cases[i].of]);
        if (cases[i].exchanged != NULL && cases[i].values == Q3_F32) {
            for (size_t k = 0; k < g.count; k++)
                for (size_t t = 0; cases[i].exchanged[t] != NULL; t++)
                    if (strstr(g.entries[k].name, cases[i].exchanged[t]) != NULL)
                        g.entries[k] = *q3_tensors_find(file[Q3_F32], g.entries[k].name);
        } else if (cases[i].exchanged != NULL) {
            remake_some(&g, cases[i].exchanged, cases[i].values, cases[i].stored);
        }
        if (cases[i].keep != NULL) keep(&g, cases[i].keep);
        q3_dtype got = shown(f->config, &g);
        CHECKF(got == cases[i].want, "mixture %zu: got %d: %s", i, (int)got, note);
        CHECKF((got == Q3_AUTO) == (strstr(note, "no tensor shows it") != NULL), "%s", note);
        release(&g);
    }
    /* zeros and ones are values of every dtype, and so are a few others */
    take(&g, file[Q3_F32]);
    keep(&g, "layers.4.output");
    q3_entry *e = &g.entries[g.count - 1];
    float *x = calloc(elements(e), sizeof *x);
    if (x == NULL) exit(1);
    e->data = x;
    for (size_t i = 0; i < 60; i++) {
        put((uint8_t *)&x[i], i < 20 ? 1 : 3, Q3_F32);
        CHECK(shown(f->config, &g) == (i < 20 + 31 ? Q3_AUTO : Q3_BF16));
    }
    free(x);
    for (q3_dtype d = Q3_F32; d <= Q3_F16; d++) q3_tensors_close(file[d]);
}

/* ==== How it is judged ======================================================================== */

/* The verdict where nobody says a dtype. */
static q3_report *judge(const fixture *f, const given *g, q3_dtype want)
{
    q3_error error = {""};
    q3_judge *j = NULL;
    q3_report *report = NULL;
    q3_dtype dtype = Q3_AUTO;
    q3_status status = q3_judge_open(&j, f->config, NULL, &error);
    for (size_t i = 0; i < g->count && status == Q3_OK; i++)
        status = q3_judge_tensor(j, &g->entries[i], &error);
    if (status == Q3_OK) status = q3_judge_prepare(j, &dtype, &error);
    CHECKF(status == Q3_OK && dtype == want, "%s", error.text);
    if (status == Q3_OK) status = q3_judge_run(j, f->weights, want, &report, &error);
    CHECKF(status == Q3_OK, "%s", error.text);
    if (report == NULL) exit(1);
    q3_judge_close(j);
    return report;
}

static void test_verdicts(const fixture *f, const char *folder)
{
    static given g;
    for (int way = 0; way < 4; way++) {
        static const char *const tables[] = {"rotary_emb", NULL};
        static const q3_dtype of[] = {Q3_F32, Q3_BF16, Q3_F32, Q3_F32};
        q3_tensors *file = open_case(folder, of[way]);
        take(&g, file);
        remake_some(&g, NULL, Q3_F32, Q3_F32);
        if (way >= 2) remake_some(&g, tables, Q3_BF16, way == 2 ? Q3_BF16 : Q3_F32);
        q3_report *report = judge(f, &g, of[way]);
        const q3_finding *bad = q3_report_decisive(report);
        size_t rounding = 0;
        for (size_t i = 0; i < q3_report_count(report); i++)
            rounding += q3_report_finding(report, i)->verdict == Q3_VERDICT_ROUNDING;
        CHECKF((bad == NULL) == (way < 2) && (bad != NULL || rounding == 0),
               "way %d: %s, %zu roundings", way, bad != NULL ? bad->name : "agrees", rounding);
        if (bad != NULL) CHECK_TEXT(bad->name, "model.rotary_emb.cos");
        q3_report_close(report);
        release(&g);
        q3_tensors_close(file);
    }
}

int main(int argc, char **argv)
{
    char path[512];
    static fixture f;
    if (argc < 2) return t_done("test_dtype");
    for (int i = 2; i < argc; i++) test_case(argv[i]);
    snprintf(path, sizeof path, "%s/tiny", argv[1]);
    fixture_from_folder(&f, path);
    snprintf(path, sizeof path, "%s/hf/tiny", argv[1]);
    test_mixtures(&f, path);
    test_verdicts(&f, path);
    fixture_close(&f);
    return t_done("test_dtype");
}
