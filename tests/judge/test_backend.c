/* SPDX-License-Identifier: MIT */
/* backend.c: another implementation's file. Its tensors are written here in every layout, byte by
 * byte, with values that say where they belong: token * 1000 + outer index * 50 + inner index.
 *
 *   test_backend
 *
 * Files go into a folder backend.tmp in the working directory. */
#define _POSIX_C_SOURCE 200809L
#define FOLDER "backend.tmp"
#include "other.h"

/* ==== Files =================================================================================== */

/* Integers first, first + 1, ... but for one of them. */
static void put_integers(const char *name, const char *shape, size_t count, long long first,
                         size_t odd, long long value)
{
    tensor_begin(name, "I64", shape, count * 8);
    for (size_t i = 0; i < count; i++)
        put_value("I64", (double)(i == odd ? value : first + (long long)i));
}

static const q3_model *model;

/* ==== Layouts ================================================================================= */

/* axes, in the file's order: t rows, j outer, k inner; J is j and k in one axis, N t and j; 1; p is
 * k with 7 more that must not be read. The last `rows` of T tokens. */
typedef struct layout_case {
    const char *name, *axes;
    q3_tap_id id;
    size_t outer, inner, tokens, rows;
    const char *note;
} layout_case;

static const layout_case layouts[] = {
    {"model.embed_tokens.output", "tk", Q3_TAP_EMBED_TOKENS, 1, M, T, T, ""},
    {"model.embed_tokens.output", "1tk", Q3_TAP_EMBED_TOKENS, 1, M, T, T, "batch axis"},
    {"model.embed_tokens.output", "t1k", Q3_TAP_EMBED_TOKENS, 1, M, T, T, ""},
    {"model.rotary_emb.cos", "1tk", Q3_TAP_COS, 1, HD, T, T, "batch axis"},
    {"model.layers.0.self_attn.q_proj.output", "tJ", Q3_TAP_Q_PROJ, H, HD, T, T, ""},
    {"model.layers.0.self_attn.q_proj.output", "tjk", Q3_TAP_Q_PROJ, H, HD, T, T, "axes [T,H,hd]"},
    {"model.layers.0.self_attn.q_proj.output", "1jtk", Q3_TAP_Q_PROJ, H, HD, T, T,
     "batch axis, axes [H,T,hd]"},
    {"model.layers.0.self_attn.k_proj.output", "tJ", Q3_TAP_K_PROJ, K, HD, T, T, ""},
    {"model.layers.0.self_attn.v_proj.output", "jtk", Q3_TAP_V_PROJ, K, HD, T, T, "axes [H,T,hd]"},
    {"model.layers.0.self_attn.q_norm.output", "tjk", Q3_TAP_Q_NORM, H, HD, T, T, ""},
    {"model.layers.0.self_attn.q_norm.output", "jtk", Q3_TAP_Q_NORM, H, HD, T, T, "axes [H,T,hd]"},
    {"model.layers.0.self_attn.q_norm.output", "Nk", Q3_TAP_Q_NORM, H, HD, T, T, "axes [T*H,hd]"},
    {"model.layers.0.self_attn.k_norm.output", "1tjk", Q3_TAP_K_NORM, K, HD, T, T, "batch axis"},
    {"model.layers.0.self_attn.q_rope.output", "1jtk", Q3_TAP_Q_ROPE, H, HD, T, T,
     "batch axis, axes [H,T,hd]"},
    {"model.layers.0.self_attn.k_rope.output", "jtk", Q3_TAP_K_ROPE, K, HD, T, T, "axes [H,T,hd]"},
    {"model.layers.0.self_attn.k_rope.output", "tJ", Q3_TAP_K_ROPE, K, HD, T, T, "axes [T,H*hd]"},
    {"model.layers.0.self_attn.o_proj.input", "tJ", Q3_TAP_O_PROJ_INPUT, H, HD, T, T, ""},
    {"model.layers.0.self_attn.o_proj.input", "jtk", Q3_TAP_O_PROJ_INPUT, H, HD, T, T,
     "axes [H,T,hd]"},
    {"model.layers.0.self_attn.scores.output", "jtk", Q3_TAP_SCORES, H, T, T, T, ""},
    {"model.layers.0.self_attn.probs.output", "1jtk", Q3_TAP_PROBS, H, T, T, T, "batch axis"},
    {"model.layers.0.self_attn.probs.output", "tjk", Q3_TAP_PROBS, H, T, T, T, "axes [T,H,S]"},
    {"model.layers.0.self_attn.probs.output", "1jtp", Q3_TAP_PROBS, H, T, T, T,
     "batch axis, keys 0:9 of 16"},
    {"model.layers.0.mlp.topk_weights.output", "tk1", Q3_TAP_TOPK_WEIGHTS, 1, A, T, T, ""},
    {"model.layers.0.mlp.experts.gate_proj.output", "tjk", Q3_TAP_EXPERTS_GATE_PROJ, A, F, T, T,
     ""},
    {"model.layers.0.mlp.experts.gate_proj.output", "Nk", Q3_TAP_EXPERTS_GATE_PROJ, A, F, T, T,
     "axes [T*A,n]"},
    {"model.layers.0.mlp.experts.down_proj.output", "tJ", Q3_TAP_EXPERTS_DOWN_PROJ, A, M, T, T,
     "axes [T,A*n]"},
    {"model.layers.1.mlp.gate_proj.output", "1tk", Q3_TAP_DENSE_GATE_PROJ, 1, I, T, T,
     "batch axis"},
    /* axes of 1 elsewhere: mlx-lm's SwitchGLU has one behind the slots, or behind sorted rows */
    {"model.layers.0.mlp.experts.gate_proj.output", "tj1k", Q3_TAP_EXPERTS_GATE_PROJ, A, F, T, T,
     ""},
    {"model.layers.0.mlp.experts.gate_proj.output", "1tj1k", Q3_TAP_EXPERTS_GATE_PROJ, A, F, T, T,
     "batch axis"},
    {"model.layers.0.mlp.experts.down_proj.output", "N1k", Q3_TAP_EXPERTS_DOWN_PROJ, A, M, T, T,
     "axes [T*A,n]"},
    {"model.layers.0.mlp.experts.down_proj.output", "1Nk", Q3_TAP_EXPERTS_DOWN_PROJ, A, M, T, T,
     "axes [T*A,n]"},
    {"model.layers.0.self_attn.q_rope.output", "1j1tk1", Q3_TAP_Q_ROPE, H, HD, T, T,
     "batch axis, axes [H,T,hd]"},
    {"model.layers.0.self_attn.q_proj.output", "t1J", Q3_TAP_Q_PROJ, H, HD, T, T, ""},
    {"model.layers.0.self_attn.probs.output", "j1t1k", Q3_TAP_PROBS, H, T, T, T, ""},
    {"model.layers.0.mlp.topk_weights.output", "1t1k1", Q3_TAP_TOPK_WEIGHTS, 1, A, T, T,
     "batch axis"},
    {"lm_head.output", "tk", Q3_TAP_LM_HEAD, 1, V, T, T, ""},
    /* the last rows alone */
    {"lm_head.output", "1tk", Q3_TAP_LM_HEAD, 1, V, T, 1, "batch axis, rows 8:9 of 9"},
    {"lm_head.output", "k", Q3_TAP_LM_HEAD, 1, V, T, 1, "rows 8:9 of 9"},
    {"model.layers.1.mlp.output", "tk", Q3_TAP_MLP, 1, M, T, 4, "rows 5:9 of 9"},
    {"model.layers.0.self_attn.q_rope.output", "jtk", Q3_TAP_Q_ROPE, H, HD, T, 2,
     "axes [H,T,hd], rows 7:9 of 9"},
    {"model.layers.0.self_attn.probs.output", "jtk", Q3_TAP_PROBS, H, T, T, 1, "rows 8:9 of 9"},
    {"model.layers.0.mlp.experts.up_proj.output", "tjk", Q3_TAP_EXPERTS_UP_PROJ, A, F, T, 1,
     "rows 8:9 of 9"},
    {"model.layers.0.mlp.experts.up_proj.output", "Nk", Q3_TAP_EXPERTS_UP_PROJ, A, F, T, 4,
     "axes [T*A,n], rows 5:9 of 9"},
    /* one token in all */
    {"model.layers.0.self_attn.q_rope.output", "jtk", Q3_TAP_Q_ROPE, H, HD, 1, 1, ""},
    {"model.layers.0.self_attn.probs.output", "jtk", Q3_TAP_PROBS, H, 1, 1, 1, ""},
    {"lm_head.output", "tk", Q3_TAP_LM_HEAD, 1, V, 1, 1, ""},
    /* T = H: two readings, the rule first */
    {"model.layers.0.self_attn.q_norm.output", "tjk", Q3_TAP_Q_NORM, H, HD, H, H,
     "axes [T,H,hd] or [H,T,hd]"},
    {"model.layers.0.self_attn.q_proj.output", "tjk", Q3_TAP_Q_PROJ, H, HD, H, H,
     "axes [T,H,hd] or [H,T,hd]"},
    {"model.layers.0.self_attn.k_rope.output", "tjk", Q3_TAP_K_ROPE, K, HD, K, K,
     "axes [T,H,hd] or [H,T,hd]"},
    {"model.layers.0.self_attn.scores.output", "jtk", Q3_TAP_SCORES, H, H, H, H,
     "axes [H,T,S] or [T,H,S]"},
    {"model.layers.0.self_attn.q_proj.output", "tJ", Q3_TAP_Q_PROJ, H, HD, H, H, ""},
    /* names of others */
    {"Qcur_normed-0", "tjk", Q3_TAP_Q_NORM, H, HD, T, T, ""},
    {"blocks.0.attn.hook_z", "1tjk", Q3_TAP_O_PROJ_INPUT, H, HD, T, T, "batch axis, axes [T,H,hd]"},
};

/* The case's tensor with its axes in this order. */
static void put_case(const layout_case *c, const char *axes)
{
    char shape[100] = "", order[8] = "";
    size_t total = 1, size[4], n = 0, used = 0;
    for (const char *a = axes; *a != 0; a++) {
        size_t axis = *a == 't'   ? c->rows
                      : *a == 'j' ? c->outer
                      : *a == 'k' ? c->inner
                      : *a == 'p' ? c->inner + 7
                      : *a == 'J' ? c->outer * c->inner
                      : *a == 'N' ? c->rows * c->outer
                                  : 1;
        used += (size_t)snprintf(shape + used, sizeof shape - used, "%s%zu", used > 0 ? "," : "",
                                 axis);
        total *= axis;
        strcat(order, *a == 'J'   ? "jk"
                      : *a == 'N' ? "tj"
                      : *a == 'p' ? "p"
                      : *a == '1' ? ""
                                  : (char[2]){*a, 0});
    }
    for (const char *o = order; *o != 0; o++)
        size[n++] = *o == 't'   ? c->rows
                    : *o == 'j' ? c->outer
                    : *o == 'p' ? c->inner + 7
                                : c->inner;
    tensor_begin(c->name, "F32", shape, total * 4);
    for (size_t i = 0; i < total; i++) {
        size_t rest = i, t = 0, j = 0, k = 0;
        for (size_t o = n; o-- > 0; rest /= size[o])
            *(order[o] == 't' ? &t : order[o] == 'j' ? &j : &k) = rest % size[o];
        double value = (double)(1000 * (c->tokens - c->rows + t) + 50 * j + k);
        put_value("F32", k < c->inner ? value : -1);
    }
}

static void check_rows(const backend *b, const backend_tensor *x, const layout_case *c,
                       size_t layout, bool right)
{
    size_t wrong = 0;
    float row[200];
    for (size_t t = x->first; t < c->tokens; t++) {
        q3_backend_row(row, b, x, c->id, layout, t);
        for (size_t i = 0; i < c->outer * c->inner; i++)
            wrong += row[i] != (float)(1000 * t + 50 * (i / c->inner) + i % c->inner);
    }
    CHECKF((wrong == 0) == right, "%s %s, T = %zu, layout %zu: %zu elements are elsewhere", c->name,
           c->axes, c->tokens, layout, wrong);
}

static void check_layouts(void)
{
    for (size_t i = 0; i < COUNT(layouts); i++) {
        const layout_case *c = &layouts[i];
        size_t layer = strchr(c->name, '1') != NULL ? 1 : 0;
        bool two = strstr(c->note, " or ") != NULL;
        backend b;
        q3_error error = {""};
        file_begin("");
        put_case(c, c->axes);
        file_end(PATH, 0);
        CHECKF(open_file(&b, PATH, model, &error) == Q3_OK, "%s", error.text);
        CHECK(q3_backend_bind(&b, c->tokens, &error) == Q3_OK);
        const backend_tensor *x = q3_backend_find(&b, c->id, layer);
        CHECKF(x != NULL, "%s", c->name);
        if (x == NULL) continue;
        CHECK_TEXT(x->note, c->note);
        CHECKF(x->layouts == (two ? 2 : 1) && x->first == c->tokens - c->rows,
               "%s %s: %zu layouts, first %zu", c->name, c->axes, x->layouts, x->first);
        if (x->layouts > 0) check_rows(&b, x, c, 0, true);
        if (two) check_rows(&b, x, c, 1, false);
        q3_backend_close(&b);
        if (!two) continue;
        /* the same shape, laid out the other way round: the second reading is the right one */
        file_begin("");
        put_case(c, c->axes[0] == 't' ? "jtk" : "tjk");
        file_end(PATH, 0);
        CHECK(open_file(&b, PATH, model, &error) == Q3_OK &&
              q3_backend_bind(&b, c->tokens, &error) == Q3_OK);
        x = q3_backend_find(&b, c->id, layer);
        check_rows(&b, x, c, 0, false);
        check_rows(&b, x, c, 1, true);
        q3_backend_close(&b);
    }
}

/* ==== Fused tensors =========================================================================== */

/* A row of `width` elements t * 1000 + column for each of `lines` lines of a token; the tap is
 * columns [offset, offset + inner) of each line. */
typedef struct fused_case {
    const char *name, *shape;
    q3_tap_id id;
    size_t layer, lines, width, offset, inner;
    const char *note;
} fused_case;

static const fused_case fused[] = {
    {"model.layers.0.self_attn.qkv_proj", "9,40", Q3_TAP_Q_PROJ, 0, 1, 40, 0, 24,
     "columns 0:24 of 40"},
    {"model.layers.0.self_attn.qkv_proj", "9,40", Q3_TAP_K_PROJ, 0, 1, 40, 24, 8,
     "columns 24:32 of 40"},
    {"model.layers.0.self_attn.qkv_proj", "1,9,40", Q3_TAP_V_PROJ, 0, 1, 40, 32, 8,
     "batch axis, columns 32:40 of 40"},
    {"wqkv-0", "9,10,4", Q3_TAP_K_PROJ, 0, 1, 40, 24, 8, "axes [T,H,hd], columns 24:32 of 40"},
    {"model.layers.1.mlp.gate_up_proj", "9,26", Q3_TAP_DENSE_GATE_PROJ, 1, 1, 26, 0, 13,
     "columns 0:13 of 26"},
    {"model.layers.1.mlp.gate_up_proj", "9,26", Q3_TAP_DENSE_UP_PROJ, 1, 1, 26, 13, 13,
     "columns 13:26 of 26"},
    {"model.layers.0.mlp.experts.gate_up_proj", "9,3,14", Q3_TAP_EXPERTS_GATE_PROJ, 0, 3, 14, 0, 7,
     "columns 0:7 of 14"},
    {"model.layers.0.mlp.experts.gate_up_proj", "27,14", Q3_TAP_EXPERTS_UP_PROJ, 0, 3, 14, 7, 7,
     "axes [T*A,n], columns 7:14 of 14"},
    {"ffn_moe_gate_up-0", "9,42", Q3_TAP_EXPERTS_UP_PROJ, 0, 3, 14, 7, 7,
     "axes [T,A*n], columns 7:14 of 14"},
};

/* vLLM's dense MLP: an act_fn behind a fused gate_up_proj multiplies too; alone it does not. */
static void check_fused_activation(void)
{
    for (int with = 0; with < 2; with++) {
        backend b;
        q3_error error = {""};
        file_begin("");
        tensor_begin("model.layers.1.mlp.act_fn", "F32", "9,13", T * 13 * 4);
        for (size_t e = 0; e < T * 13; e++) put_value("F32", (double)e);
        if (with) {
            tensor_begin("model.layers.1.mlp.gate_up_proj", "F32", "9,26", T * 26 * 4);
            for (size_t e = 0; e < T * 26; e++) put_value("F32", (double)e);
        }
        file_end(PATH, 0);
        CHECKF(open_file(&b, PATH, model, &error) == Q3_OK, "%s", error.text);
        CHECK(q3_backend_bind(&b, T, &error) == Q3_OK);
        const backend_tensor *act = q3_backend_find(&b, Q3_TAP_DENSE_ACT_FN, 1);
        const backend_tensor *product = q3_backend_find(&b, Q3_TAP_DENSE_DOWN_PROJ_INPUT, 1),
                             *x = with ? product : act;
        CHECK((act == NULL) == (with == 1) && (product == NULL) == (with == 0));
        CHECK(x != NULL && x->layouts == 1 && x->note[0] == 0);
        q3_backend_close(&b);
    }
}

static void check_fused(void)
{
    for (size_t i = 0; i < COUNT(fused); i++) {
        const fused_case *c = &fused[i];
        size_t flat = c->lines * c->width, wrong = 0;
        float row[100];
        backend b;
        q3_error error = {""};
        file_begin("");
        tensor_begin(c->name, "F32", c->shape, T * flat * 4);
        for (size_t e = 0; e < T * flat; e++)
            put_value("F32", (double)(e / flat * 1000 + e % flat));
        file_end(PATH, 0);
        CHECKF(open_file(&b, PATH, model, &error) == Q3_OK, "%s", error.text);
        CHECK(q3_backend_bind(&b, T, &error) == Q3_OK);
        const backend_tensor *x = q3_backend_find(&b, c->id, c->layer);
        CHECK(x != NULL && x->layouts == 1);
        if (x == NULL || x->layouts == 0) continue;
        CHECK_TEXT(x->note, c->note);
        for (size_t t = 0; t < T; t++) {
            q3_backend_row(row, &b, x, c->id, 0, t);
            for (size_t e = 0; e < c->lines * c->inner; e++)
                wrong += row[e] !=
                         (float)(t * 1000 + e / c->inner * c->width + c->offset + e % c->inner);
        }
        CHECKF(wrong == 0, "%s: %zu elements are elsewhere", c->name, wrong);
        q3_backend_close(&b);
    }
}

/* ==== Dtypes ================================================================================== */

static void check_dtypes(void)
{
    static const struct { const char *name, *dtype; q3_tap_id id; const char *note;
    } cases[] = {
        {"model.norm.output", "F32", Q3_TAP_NORM, ""},
        {"model.norm.output", "BF16", Q3_TAP_NORM, ""},
        {"model.norm.output", "F16", Q3_TAP_NORM, ""},
        {"model.norm.output", "F64", Q3_TAP_NORM, ""},
        {"model.norm.output", "I32", Q3_TAP_NORM, "found integers, expected floats"},
        {"model.norm.output", "I64", Q3_TAP_NORM, "found integers, expected floats"},
        {"ffn_moe_topk-0", "I32", Q3_TAP_TOPK_INDICES, ""},
        {"ffn_moe_topk-0", "I64", Q3_TAP_TOPK_INDICES, ""},
        {"ffn_moe_topk-0", "F32", Q3_TAP_TOPK_INDICES, "found floats, expected integers"},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        bool ids = cases[i].id == Q3_TAP_TOPK_INDICES;
        size_t width = ids ? A : M;
        backend b;
        q3_error error = {""};
        float row[M];
        file_begin("");
        tensor_begin(cases[i].name, cases[i].dtype, ids ? "1,9,3" : "9,11",
                     T * width * bytes_of(cases[i].dtype));
        for (size_t e = 0; e < T * width; e++) put_value(cases[i].dtype, (double)(e % 128));
        file_end(PATH, 0);
        CHECKF(open_file(&b, PATH, model, &error) == Q3_OK &&
                   q3_backend_bind(&b, T, &error) == Q3_OK,
               "%s", error.text);
        const backend_tensor *x = q3_backend_find(&b, cases[i].id, 0);
        CHECK(x != NULL && x->layouts == (strstr(cases[i].note, "found") == NULL));
        if (x == NULL) continue;
        if (x->layouts == 0) CHECK_TEXT(x->note, cases[i].note);
        for (size_t t = 0; t < T && x->layouts > 0; t++) {
            q3_backend_row(row, &b, x, cases[i].id, 0, t);
            for (size_t e = 0; e < width; e++)
                CHECKF(row[e] == (float)((t * width + e) % 128), "%s: %a", cases[i].dtype,
                       (double)row[e]);
        }
        q3_backend_close(&b);
    }
}

/* F64 is rounded to nearest, ties to even. */
static void check_double(void)
{
    static const double given[4] = {1 + 0x1p-24, 1 + 0x1p-24 + 0x1p-50, 1 + 0x1p-23 + 0x1p-24,
                                    1e300};
    static const float want[4] = {1.0f, 1.0f + 0x1p-23f, 1.0f + 0x1p-22f, (float)(1.0 / 0.0)};
    backend b;
    q3_error error;
    float row[M];
    file_begin("");
    tensor_begin("model.norm.output", "F64", "1,11", M * 8);
    for (size_t i = 0; i < M; i++) put_value("F64", given[i % 4]);
    file_end(PATH, 0);
    CHECK(open_file(&b, PATH, model, &error) == Q3_OK && q3_backend_bind(&b, 1, &error) == Q3_OK);
    q3_backend_row(row, &b, q3_backend_find(&b, Q3_TAP_NORM, 0), Q3_TAP_NORM, 0, 0);
    for (size_t i = 0; i < M; i++) CHECK(row[i] == want[i % 4]);
    q3_backend_close(&b);
}

/* ==== Shapes that do not fit ================================================================== */

static void check_shapes(void)
{
    static const struct {
        const char *name, *shape;
        size_t count;
        q3_tap_id id;
        const char *note;
    } cases[] = {
        {"model.norm.output", "10,11", 110, Q3_TAP_NORM, "found [10,11], expected [9,11]"},
        {"model.norm.output", "9,12", 108, Q3_TAP_NORM, "found [9,12], expected [9,11]"},
        {"model.norm.output", "99", 99, Q3_TAP_NORM, "found [99], expected [9,11]"},
        {"model.norm.output", "11,9", 99, Q3_TAP_NORM, "found [11,9], expected [9,11]"},
        {"model.norm.output", "0,11", 0, Q3_TAP_NORM, "found [0,11], expected [9,11]"},
        {"model.norm.output", "2,9,11", 198, Q3_TAP_NORM, "found [2,9,11], expected [9,11]"},
        {"model.norm.output", "", 1, Q3_TAP_NORM, "found [], expected [9,11]"},
        {"model.layers.0.self_attn.k_rope.output", "9,6,4", 216, Q3_TAP_K_ROPE,
         "found [9,6,4], expected [9,2,4]"},
        {"model.layers.0.self_attn.q_norm.output", "4,9,6", 216, Q3_TAP_Q_NORM,
         "found [4,9,6], expected [9,6,4]"},
        {"model.layers.0.self_attn.probs.output", "6,9,8", 432, Q3_TAP_PROBS,
         "found [6,9,8], expected [6,9,9]"},
        {"model.layers.0.self_attn.probs.output", "2,9,9", 162, Q3_TAP_PROBS,
         "found [2,9,9], expected [6,9,9]"},
        {"model.layers.0.mlp.experts.up_proj.output", "26,7", 182, Q3_TAP_EXPERTS_UP_PROJ,
         "found [26,7], expected [9,3,7]"},
        {"model.layers.0.self_attn.qkv_proj", "9,72", 648, Q3_TAP_V_PROJ,
         "found [9,72], expected [9,40]"},
        {"model.layers.0.mlp.experts.gate_up_proj", "9,3,7", 189, Q3_TAP_EXPERTS_UP_PROJ,
         "found [9,3,7], expected [9,3,14]"},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        backend b;
        q3_error error = {""};
        file_begin("");
        tensor_begin(cases[i].name, "F32", cases[i].shape, cases[i].count * 4);
        for (size_t e = 0; e < cases[i].count; e++) put_value("F32", 1);
        file_end(PATH, 0);
        CHECKF(open_file(&b, PATH, model, &error) == Q3_OK &&
                   q3_backend_bind(&b, T, &error) == Q3_OK,
               "%s", error.text);
        const backend_tensor *x = q3_backend_find(&b, cases[i].id, 0);
        CHECKF(x != NULL && x->layouts == 0, "%s [%s]", cases[i].name, cases[i].shape);
        if (x != NULL) CHECK_TEXT(x->note, cases[i].note);
        q3_backend_close(&b);
    }
}

/* ==== The run ================================================================================= */

/* The model's config line with `from` put for `to`, as text inside a JSON string. */
static void config_metadata(char text[4096], const char *from, const char *to)
{
    const char *json = q3_model_config_json(model),
               *found = from != NULL ? strstr(json, from) : NULL;
    size_t used = (size_t)snprintf(text, 4096, "\"config\":\"");
    CHECKF(from == NULL || found != NULL, "the config has no %s", from);
    for (const char *p = json; *p != 0; p++) {
        const char *piece = p;
        size_t n = 1;
        if (p == found) {
            piece = to;
            n = strlen(to);
            p += strlen(from) - 1;
        }
        for (size_t i = 0; i < n; i++) {
            if (piece[i] == '"' || piece[i] == '\\') text[used++] = '\\';
            text[used++] = piece[i];
        }
    }
    snprintf(text + used, 4096 - used, "\"");
}

static void opens(const char *metadata, const char *message)
{
    backend b;
    q3_error error = {""};
    char want[600];
    file_begin(metadata);
    file_end(PATH, 0);
    snprintf(want, sizeof want, "%s: %s", PATH, message);
    q3_status status = open_file(&b, PATH, model, &error);
    CHECKF((status == Q3_OK) == (message[0] == 0), "%.200s: %s", metadata, error.text);
    if (message[0] != 0) CHECK_TEXT(error.text, want);
    q3_backend_close(&b);
}

static void check_metadata(void)
{
    char text[4096];
    opens("", "");
    config_metadata(text, NULL, NULL);
    opens(text, "");
    config_metadata(text, "\"rms_norm_eps\":1e-06", "\"rms_norm_eps\":1e-05");
    opens(text, "metadata config: rms_norm_eps: found 1e-05, expected 1e-06 as in the model");
    config_metadata(text, "\"norm_topk_prob\":true", "\"norm_topk_prob\":false");
    opens(text, "metadata config: norm_topk_prob: found false, expected true as in the model");
    config_metadata(text, "\"mlp_only_layers\":[1]", "\"mlp_only_layers\":[]");
    opens(text, "metadata config: mlp_only_layers: found [], expected [1] as in the model");
    config_metadata(text, "\"vocab_size\":29", "\"vocab_size\":290");
    opens(text, "metadata config: vocab_size: found 290, expected 29 as in the model");
    config_metadata(text, "\"num_experts\":5", "\"num_local_experts\":5"); /* 5.x's spelling */
    opens(text, "");
    opens("\"config\":\"{\"",
          "metadata: config: byte 1: found the end of the text, expected a key or '}'");
    opens("\"dtype\":\"bfloat16\"", "");
    opens("\"dtype\":\"int8\"",
          "metadata dtype: found int8, expected float32, bfloat16 or float16");
    opens("\"start\":\"7\"", "");
    opens("\"start\":\"-1\"", "metadata start: found -1, expected 0 to 1048575");
    opens("\"start\":\"7x\"", "metadata start: found 7x, expected 0 to 1048575");
    opens("\"start\":\"\"", "metadata start: found , expected 0 to 1048575");
    opens("\"start\":\"1048576\"", "metadata start: found 1048576, expected 0 to 1048575");
    opens("\"start\":\"99999999999999999999999\"",
          "metadata start: found 99999999999999999999999, expected 0 to 1048575");
}

/* Configs that lack keys, in either spelling: what is there is compared. The second model has YaRN
 * and a window. */
static void check_partial_config(void)
{
    static const char scaled_text[] =
        "{\"model_type\":\"qwen3_moe\",\"vocab_size\":29,\"hidden_size\":11,"
        "\"num_hidden_layers\":2,\"num_attention_heads\":6,\"num_key_value_heads\":2,"
        "\"head_dim\":4,\"num_experts\":5,"
        "\"num_experts_per_tok\":3,\"moe_intermediate_size\":7,\"use_sliding_window\":true,"
        "\"sliding_window\":5,\"rope_theta\":5000.0,\"rope_scaling\":{\"rope_type\":\"yarn\","
        "\"factor\":4.0,\"beta_fast\":16.0,\"original_max_position_embeddings\":16}}";
    static const struct { bool scaled; const char *config, *message; } cases[] = {
        {false, "{}", ""},
        {false, "{'hidden_size':11}", ""},
        {false, "{'hidden_size':12}", "hidden_size: found 12, expected 11 as in the model"},
        {false, "{'num_local_experts':5,'norm_topk_prob':true}", ""},
        {false, "{'num_local_experts':6}", "num_experts: found 6, expected 5 as in the model"},
        {false, "{'use_sliding_window':false,'sliding_window':4096}", ""},
        {false, "{'sliding_window':4096}", ""}, /* counts with use_sliding_window alone */
        {false, "{'use_sliding_window':true}",
         "use_sliding_window: found true, expected false as in the model"},
        {false, "{'rope_parameters':{'rope_type':'default','rope_theta':10000}}", ""},
        {false, "{'rope_parameters':{'rope_theta':20000.0}}",
         "rope_theta: found 20000.0, expected 10000.0 as in the model"},
        {false, "{'rope_scaling':null,'torch_dtype':'float16','architectures':['X']}", ""},
        {false, "{'rope_scaling':{'type':'linear','factor':2}}",
         "rope_scaling: found {\"factor\":2.0,\"rope_type\":\"linear\"}, expected null as in the "
         "model"},
        {true, "{}", ""},
        {true, "{'sliding_window':5}", ""},
        {true, "{'sliding_window':6}", "sliding_window: found 6, expected 5 as in the model"},
        {true, "{'sliding_window':null}", "sliding_window: found null, expected 5 as in the model"},
        {true, "{'use_sliding_window':true}", ""},
        {true, "{'use_sliding_window':false}",
         "use_sliding_window: found false, expected true as in the model"},
        {true, "{'rope_theta':5000}", ""},
        {true, "{'rope_theta':10000}",
         "rope_theta: found 10000.0, expected 5000.0 as in the model"},
        {true, "{'rope_scaling':{'type':'yarn','factor':4}}", ""},
        {true, "{'rope_scaling':{'factor':4}}", ""},
        {true, "{'rope_parameters':{'rope_type':'yarn','factor':4.0}}", ""},
        {true, "{'rope_parameters':{'rope_theta':5000.0}}", ""},
        {true, "{'rope_theta':5000,'rope_scaling':{'rope_type':'yarn','beta_fast':16}}", ""},
        {true, "{'rope_parameters':{'rope_theta':10000.0}}",
         "rope_theta: found 10000.0, expected 5000.0 as in the model"},
        {true, "{'rope_scaling':null}", "rope_scaling: found null, expected {"},
        {true, "{'rope_parameters':{'rope_type':'default'}}",
         "rope_scaling: found null, expected {"},
        {true, "{'rope_parameters':{'beta_fast':32}}",
         "rope_scaling: found {\"attention_factor\":null,\"beta_fast\":32.0,"},
    };
    q3_model *scaled;
    q3_error error = {""};
    FILE *f = fopen("backend.tmp/config.json", "wb");
    fputs(scaled_text, f);
    CHECK(fclose(f) == 0);
    CHECKF(q3_model_open(&scaled, "backend.tmp/config.json", &error) == Q3_OK, "%s", error.text);
    for (size_t i = 0; i < COUNT(cases) && error.text[0] == 0; i++) {
        char metadata[400] = "\"config\":\"", want[300];
        size_t n = strlen(metadata);
        for (const char *p = cases[i].config; *p != 0; p++) {
            if (*p == '\'') metadata[n++] = '\\';
            metadata[n++] = *p == '\'' ? '"' : *p;
        }
        metadata[n++] = '"';
        metadata[n] = 0;
        backend b;
        q3_error found = {""};
        file_begin(metadata);
        file_end(PATH, 0);
        q3_status status = open_file(&b, PATH, cases[i].scaled ? scaled : model, &found);
        CHECKF((status == Q3_OK) == (cases[i].message[0] == 0), "%s: %s", cases[i].config,
               found.text);
        snprintf(want, sizeof want, "%s: metadata config: %s", PATH, cases[i].message);
        CHECKF(status == Q3_OK || strncmp(found.text, want, strlen(want)) == 0, "%s: %s",
               cases[i].config, found.text);
        if (status == Q3_OK) q3_backend_close(&b);
    }
    q3_model_close(scaled);
    opens("\"config\":\"[]\"", "metadata: config: file: found nothing, expected a JSON object");
    opens("\"config\":\"{\\\"model_type\\\":\\\"qwen2_moe\\\"}\"",
          "metadata: config: model_type: found \"qwen2_moe\", expected \"qwen3_moe\" or \"qwen3\"");
    opens("\"config\":\"{\\\"hidden_act\\\":\\\"gelu\\\"}\"",
          "metadata: config: hidden_act: found \"gelu\", expected \"silu\"");
}

/* What a file with these two tensors gives. shape NULL: not there. */
typedef struct run_case {
    const char *ids_shape;
    size_t ids_count;
    long long ids_first, odd_id;  /* token 2's id, if not -7 */
    const char *positions_shape;
    size_t positions_count;
    long long first, odd_position; /* token 2's, if not -7 */
    const char *metadata, *message;
} run_case;

static const run_case runs[] = {
    {"9", 9, 3, -7, "9", 9, 0, -7, "", ""},
    {"1,9", 9, 3, -7, "1,9", 9, 40, -7, "", ""},
    {"9", 9, 3, -7, NULL, 0, 0, -7, "", ""},
    {NULL, 0, 0, -7, "9", 9, 5, -7, "\"start\":\"5\"", ""},
    {NULL, 0, 0, -7, "9", 9, 5, -7, "\"start\":\"4\"",
     "position_ids: token 0: found 5, expected 4 as metadata's start"},
    {NULL, 0, 0, -7, "9", 9, 5, 8, "", "position_ids: token 2: found 8, expected 7"},
    {NULL, 0, 0, -7, "9", 9, -1, -7, "", "position_ids: token 0: found -1, expected 0 to 1048567"},
    {NULL, 0, 0, -7, "9", 9, 1048568, -7, "",
     "position_ids: token 0: found 1048568, expected 0 to 1048567"},
    {"9", 9, 3, -7, "8", 8, 0, -7, "", "position_ids: found 8, expected 9 as in input_ids"},
    {"9", 9, 3, 29, NULL, 0, 0, -7, "", "input_ids: token 2: found 29, expected 0 to 28"},
    {"9", 9, 3, -1, NULL, 0, 0, -7, "", "input_ids: token 2: found -1, expected 0 to 28"},
    {"9", 9, 3, 4294967297, NULL, 0, 0, -7, "",
     "input_ids: token 2: found 4294967297, expected 0 to 28"},
    {"3,3", 9, 3, -7, NULL, 0, 0, -7, "",
     "input_ids: found another shape or no integers, expected integers [T]"},
    {"0", 0, 3, -7, NULL, 0, 0, -7, "",
     "input_ids: found another shape or no integers, expected integers [T]"},
};

static void check_runs(void)
{
    for (size_t i = 0; i < COUNT(runs); i++) {
        const run_case *c = &runs[i];
        backend b;
        q3_error error = {""};
        char want[300];
        file_begin(c->metadata);
        if (c->ids_shape != NULL)
            put_integers("input_ids", c->ids_shape, c->ids_count, c->ids_first,
                         c->odd_id != -7 ? 2 : 99, c->odd_id);
        if (c->positions_shape != NULL)
            put_integers("position_ids", c->positions_shape, c->positions_count, c->first,
                         c->odd_position != -7 ? 2 : 99, c->odd_position);
        file_end(PATH, 0);
        q3_status status = open_file(&b, PATH, model, &error);
        snprintf(want, sizeof want, "%s: %s", PATH, c->message);
        CHECKF((status == Q3_OK) == (c->message[0] == 0), "run %zu: %s", i, error.text);
        if (c->message[0] != 0) CHECK_TEXT(error.text, want);
        if (status == Q3_OK) {
            CHECK(b.T == 9 && b.start == (size_t)c->first &&
                  b.has_start == (c->positions_shape != NULL));
            CHECK((b.ids != NULL) == (c->ids_shape != NULL));
            for (size_t t = 0; b.ids != NULL && t < 9; t++) CHECK(b.ids[t] == (int)t + 3);
            CHECK(q3_backend_bind(&b, 9, &error) == Q3_OK &&
                  q3_backend_bind(&b, 8, &error) != Q3_OK);
        }
        q3_backend_close(&b);
    }
}

/* ==== Several tensors ========================================================================= */

/* Files of tensors [9,11] of F32, one value each. message: the error; else the tap's value and the
 * counts. */
typedef struct names_case {
    const char *names[3];
    double values[3];
    const char *message;
    double value;        /* of layer 0's mlp.output; -1: not there */
    size_t unknown;
    const char *first_unknown;
} names_case;

static const names_case names[] = {
    {{"model.layers.0.mlp.output"}, {1}, "", 1, 0, NULL},
    {{"model.layers.0.mlp.output", "ffn_moe_out-0"},
     {1, 2},
     "found model.layers.0.mlp.output and ffn_moe_out-0, expected one tensor for "
     "model.layers.0.mlp.output",
     0,
     0,
     NULL},
    {{"ffn_moe_out-0", "blocks.0.hook_mlp_out"},
     {1, 2},
     "found ffn_moe_out-0 and blocks.0.hook_mlp_out, expected one tensor for "
     "model.layers.0.mlp.output",
     0,
     0,
     NULL},
    /* the same values */
    {{"model.layers.0.mlp.output", "model.layers.0.mlp"}, {1, 1}, "", 1, 0, NULL},
    /* a weak name */
    {{"model.layers.0.mlp.output", "model.layers.0.mlp.experts"}, {1, 2}, "", 1, 0, NULL},
    {{"model.layers.0.mlp.experts", "model.layers.0.mlp.output"}, {2, 1}, "", 1, 0, NULL},
    {{"model.layers.0.mlp.experts.output", "model.layers.0.mlp.experts"},
     {1, 2},
     "found model.layers.0.mlp.experts.output and model.layers.0.mlp.experts, expected one tensor "
     "for "
     "model.layers.0.mlp.output",
     0,
     0,
     NULL},
    {{"zebra", "model.layers.0.mlp.output", "model.layers.2.mlp.output"},
     {0, 1, 0},
     "",
     1,
     2,
     "zebra"},
    {{"model.layers.0.mlp.gate_proj.output", "model.layers.1.mlp.gate.output"},
     {1, 1},
     "",
     -1,
     2,
     "model.layers.0.mlp.gate_proj.output"}, /* layer 0 has experts, layer 1 none */
};

static void check_several(void)
{
    for (size_t i = 0; i < COUNT(names); i++) {
        const names_case *c = &names[i];
        backend b;
        q3_error error = {""};
        char want[400];
        float row[M];
        file_begin("");
        for (size_t k = 0; k < 3 && c->names[k] != NULL; k++) {
            tensor_begin(c->names[k], "F32", "9,11", T * M * 4);
            for (size_t e = 0; e < T * M; e++) put_value("F32", c->values[k]);
        }
        file_end(PATH, 0);
        snprintf(want, sizeof want, "%s: %s", PATH, c->message);
        q3_status status = open_file(&b, PATH, model, &error);
        CHECKF((status == Q3_OK) == (c->message[0] == 0), "names %zu: %s", i, error.text);
        if (c->message[0] != 0) CHECK_TEXT(error.text, want);
        if (status != Q3_OK) continue;
        CHECK(q3_backend_bind(&b, T, &error) == Q3_OK && b.unknown == c->unknown);
        if (c->first_unknown != NULL) CHECK_TEXT(b.unknown_name, c->first_unknown);
        const backend_tensor *x = q3_backend_find(&b, Q3_TAP_MLP, 0);
        CHECK((x != NULL) == (c->value >= 0));
        if (x != NULL) q3_backend_row(row, &b, x, Q3_TAP_MLP, 0, 3);
        CHECKF(x == NULL || row[0] == (float)c->value, "names %zu: got %g", i, (double)row[0]);
        q3_backend_close(&b);
    }
}

/* Rows of one expert, which are at most T, are not the experts' tensor, and nobody's fault. */
static void check_one_expert(void)
{
    static const struct { const char *shape; size_t rows; bool one; } cases[] = {
        {"1,7", 1, true}, {"6,7", 6, true}, {"9,7", 9, true}, {"12,7", 12, false},
        /* with axes of 1; 6 rows are two tokens' there */
        {"8,1,7", 8, true}, {"1,8,7", 8, true}, {"6,1,7", 6, false}, {"10,1,7", 10, false},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        backend b;
        q3_error error = {""};
        file_begin("");
        tensor_begin("model.layers.0.mlp.experts.act_fn.output", "F32", cases[i].shape,
                     cases[i].rows * F * 4);
        for (size_t e = 0; e < cases[i].rows * F; e++) put_value("F32", 0);
        file_end(PATH, 0);
        CHECK(open_file(&b, PATH, model, &error) == Q3_OK &&
              q3_backend_bind(&b, T, &error) == Q3_OK);
        CHECKF((q3_backend_find(&b, Q3_TAP_EXPERTS_ACT_FN, 0) == NULL) == cases[i].one &&
                   b.unknown == cases[i].one,
               "[%s]", cases[i].shape);
        CHECK(!cases[i].one ||
              strcmp(b.unknown_name, "model.layers.0.mlp.experts.act_fn.output") == 0);
        q3_backend_close(&b);
    }
}

/* Which shapes of experts' rows may lie expert by expert: those with one axis for all rows. */
static void check_sorted_shapes(void)
{
    static const struct { const char *shape; size_t tokens; bool merged; } cases[] = {
        {"27,7", 9, true},    {"27,1,7", 9, true}, {"1,27,7", 9, true}, {"1,27,1,7", 9, true},
        {"27,7,1", 9, true},  {"9,3,7", 9, false}, {"9,3,1,7", 9, false}, {"9,21", 9, false},
        {"12,1,7", 9, false}, {"3,7", 1, true},    {"3,1,7", 1, true},  {"1,3,7", 1, false},
    };
    for (size_t i = 0; i < COUNT(cases); i++) {
        backend b;
        q3_error error = {""};
        size_t count = strncmp(cases[i].shape, "12", 2) == 0 ? 84 : cases[i].tokens * A * F;
        file_begin("");
        tensor_begin("model.layers.0.mlp.experts.up_proj.output", "F32", cases[i].shape, count * 4);
        for (size_t e = 0; e < count; e++) put_value("F32", 0);
        file_end(PATH, 0);
        CHECK(open_file(&b, PATH, model, &error) == Q3_OK &&
              q3_backend_bind(&b, cases[i].tokens, &error) == Q3_OK);
        const backend_tensor *x = q3_backend_find(&b, Q3_TAP_EXPERTS_UP_PROJ, 0);
        CHECKF(x != NULL && x->layouts > 0 && x->merged == cases[i].merged, "[%s]",
               cases[i].shape);
        q3_backend_close(&b);
    }
}

/* metadata's dtype is the run's, whatever the values need. */
static void check_said_dtype(void)
{
    for (int said = 0; said < 2; said++) {
        backend b;
        q3_error error = {""};
        file_begin(said ? "\"dtype\":\"float16\"" : "");
        tensor_begin("model.norm.output", "F32", "9,11", T * M * 4);
        for (size_t e = 0; e < T * M; e++) put_value("F32", 0.1 + (double)e);
        file_end(PATH, 0);
        CHECK(open_file(&b, PATH, model, &error) == Q3_OK &&
              q3_backend_bind(&b, T, &error) == Q3_OK);
        CHECK(q3_backend_dtype(&b) == (said ? Q3_F16 : Q3_F32));
        CHECK((b.dtype_note[0] == 0) == (said == 1));
        q3_backend_close(&b);
    }
}

/* Tensors of dtypes that no tap has: ignored, or said where the name is a tap's. */
static void check_other_dtypes(void)
{
    backend b;
    q3_error error = {""};
    file_begin("");
    tensor_begin("attention_mask", "BOOL", "1,9", 9);
    for (size_t e = 0; e < 9; e++) put_bits(1, 1);
    tensor_begin("model.norm.output", "F8_E4M3", "9,11", T * M);
    for (size_t e = 0; e < T * M; e++) put_bits(0, 1);
    file_end(PATH, 0);
    CHECKF(open_file(&b, PATH, model, &error) == Q3_OK && q3_backend_bind(&b, T, &error) == Q3_OK,
           "%s", error.text);
    CHECK(b.unknown == 1 && strcmp(b.unknown_name, "attention_mask") == 0);
    const backend_tensor *norm = q3_backend_find(&b, Q3_TAP_NORM, 0);
    CHECK(norm != NULL && norm->layouts == 0);
    if (norm != NULL) CHECK_TEXT(norm->note, "found another dtype, expected F64, F32, BF16 or F16");
    q3_backend_close(&b);
}

static void check_no_file(void)
{
    backend b;
    q3_error error = {""};
    file_begin("");
    tensor_begin("model.norm.output", "F32", "9,11", T * M * 4);
    for (size_t e = 0; e < T * M; e++) put_value("F32", 0);
    file_end(PATH, T * M * 2);
    CHECK(open_file(&b, PATH, model, &error) == Q3_ERROR_INPUT &&
          strncmp(error.text, PATH, strlen(PATH)) == 0);
    CHECK(open_file(&b, "backend.tmp/none", model, &error) == Q3_ERROR_FILE);
    CHECK(strcmp(error.text, "cannot read backend.tmp/none: no such file") == 0);
    q3_backend_close(&b);
}

int main(void)
{
    q3_model *opened = open_model();
    if (opened == NULL) return t_done("backend");
    model = opened;
    check_layouts();
    check_fused();
    check_fused_activation();
    check_dtypes();
    check_double();
    check_shapes();
    check_metadata();
    check_partial_config();
    check_runs();
    check_several();
    check_one_expert();
    check_sorted_shapes();
    check_said_dtype();
    check_other_dtypes();
    check_no_file();
    q3_model_close(opened);
    return t_done("backend");
}
