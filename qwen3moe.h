/* SPDX-License-Identifier: MIT */
/* qwen3moe.h - the Qwen3-MoE transformer (Qwen3-235B-A22B, 30B-A3B, Coder-480B-A35B), exactly.
 *
 * A small reference that other implementations are judged against: it computes what Hugging Face
 * transformers computes in eager mode (4.56, 4.57, 5.6 or later), rounding where Hugging Face
 * stores a tensor, and nowhere else. Not for serving, training, quantised arithmetic or threads.
 *
 * Numbers. Activations are float32. A run has a dtype D: in a bfloat16 or float16 run every stored
 * value is a float32 that D can hold. Inside an operator the arithmetic is float64, and each stored
 * element is rounded once, to nearest, ties to even. Dot products multiply float32 by float32,
 * which is exact in float64, and add into 16 lanes (element i to lane i mod 16, ascending); then
 * lane l takes lane l + s for s = 8, 4, 2, 1. So the bits depend neither on the compiler nor on the
 * processor, nor on how the tokens are divided into calls. Needed: IEEE 754 binary32 and binary64,
 * round to nearest, subnormals kept, FLT_EVAL_METHOD 0, 1 or 16, no -ffast-math. A NaN that is
 * stored becomes the one quiet NaN 0x7FC00000; NaN and infinity are not errors.
 *
 * Sizes (shapes are row-major, the last index runs fastest):
 *   T tokens   M hidden size   H query heads   K key/value heads   hd head dimension
 *   E experts  A experts per token   F expert width   I dense width   V vocabulary   L layers
 *   S cached positions   N outputs and C inputs of a linear map
 *
 * Use:
 *   q3_model *model;  q3_error error;  q3_dtype dtype = Q3_AUTO;
 *   if (q3_model_open(&model, "Qwen3-30B-A3B", &error)) die(error.text);
 *   const q3_config *config = q3_model_config(model);
 *   q3_run run = { .end_layer = config->num_hidden_layers, .rows = 4096, .chunk = 32 };
 *   if (q3_model_load(model, &dtype, run.first_layer, run.end_layer, &error)) die(error.text);
 *   run.dtype = dtype;
 *   size_t size = q3_state_size(config, &run);
 *   q3_state *state = q3_state_init(malloc(size), size, config, q3_model_weights(model), &run);
 *   q3_input input = { .tokens = ids, .count = n, .logit_rows = 1 };
 *   if (q3_forward(state, &input, NULL, NULL, &error)) die(error.text);
 *   next = q3_argmax(q3_logits(state), config->vocab_size);
 *
 * Errors. A broken precondition is the caller's mistake and stops the program (Q3_CHECK, on in
 * every build). Bad input (a file, a config, a token) returns a status and fills q3_error with one
 * line that names the thing, what was found and what was expected; outputs are then untouched.
 * Every `error` argument may be NULL: the status alone is then told. The library never prints or
 * exits, and reads neither environment nor locale. Fields of structs are to be read only, unless
 * said otherwise; their layout may change.
 *
 * Threads. There is no shared state: no variable of the library ever changes but the one that
 * q3_use_kernels sets, which programs need not call. Functions that take values and arrays alone
 * may run at any time in any thread. Of the objects:
 *   q3_config, q3_weights, what they point to   never changed; any number of states may share them
 *   q3_model      q3_model_open, _load, _eos, _close: one thread; the others: any number
 *   q3_state      one thread at a time
 *   q3_tensors    q3_tensors_open, _close: one thread; the others: any number
 *   q3_writer     one thread at a time
 *   q3_tokenizer  q3_tokenizer_open, _parse, _free: one thread; the others: any number
 * Two objects never get into each other's way. */
#ifndef QWEN3MOE_H
#define QWEN3MOE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define Q3_VERSION "0.1.0" /* of this header; CMakeLists.txt reads it here */

/* Q3_API is what a shared library shows: this header. Q3_PRIVATE_API is shown too, but only the
 * judge and the command of the same version may use it: functions of host/ that change without
 * notice. Who builds a Windows DLL defines Q3_BUILD_DLL; its users define nothing. */
#if defined(_WIN32) && defined(Q3_BUILD_DLL)
#define Q3_API __declspec(dllexport)
#elif !defined(_WIN32) && (defined(__GNUC__) || defined(__clang__))
#define Q3_API __attribute__((visibility("default")))
#else
#define Q3_API
#endif
#define Q3_PRIVATE_API Q3_API

/* Q3_ABORT(file, line, text) is called when a precondition is broken and must not return. The
 * default needs no libc. Whoever wants a message compiles the sources with -DQ3_ABORT=NAME and
 * defines void NAME(const char *file, int line, const char *text), or gives a macro of three
 * arguments, -D'Q3_ABORT(file, line, text)=...'. */
#ifndef Q3_ABORT
#if defined(__GNUC__) || defined(__clang__)
#define Q3_ABORT(file, line, text) __builtin_trap()
#else
#define Q3_ABORT(file, line, text) for (;;) *(volatile int *)0 = 0
#endif
#else
/* The parentheses keep a macro with arguments from being expanded here. */
void (Q3_ABORT)(const char *file, int line, const char *text);
#endif
#define Q3_CHECK(condition) \
    do { if (!(condition)) { Q3_ABORT(__FILE__, __LINE__, #condition); } } while (0)

/* The Q3_VERSION that the library was built with. */
Q3_API const char *q3_version(void);

typedef enum q3_status {
    Q3_OK = 0,
    Q3_ERROR_INPUT = -1,  /* what was read or given is not what it must be */
    Q3_ERROR_MEMORY = -2, /* the system gave no memory */
    Q3_ERROR_FILE = -3,   /* the system could not open, read or write a file */
    Q3_ERROR_ARITHMETIC = -4 /* this compiler or processor does not do what is said above */
} q3_status;

/* One line of text, without a newline, ended by 0. Untouched where a function returns Q3_OK. */
typedef struct q3_error { char text[512]; } q3_error;

typedef enum q3_dtype {
    Q3_F32, Q3_BF16, Q3_F16, /* a run's, a weight's or a tap's */
    Q3_F64, Q3_I32, Q3_I64, Q3_F8, /* in files only; Q3_F8: e4m3 */
    Q3_AUTO,                 /* q3_model_load: as the model folder says */
    Q3_QUANTIZED             /* a weight that a q3_quantized describes */
} q3_dtype;

/* ==== The model's description ================================================================= */

typedef enum q3_rope_type {
    Q3_ROPE_DEFAULT, Q3_ROPE_LINEAR, Q3_ROPE_DYNAMIC, Q3_ROPE_YARN, Q3_ROPE_LLAMA3
} q3_rope_type;

/* rope_scaling of the 4.x config together with rope_theta (rope_parameters in 5.x). What a type
 * does not use is 0. An absent number is a NaN-free "not given": has_attention_factor says so. */
typedef struct q3_rope {
    q3_rope_type type;
    double rope_theta;                       /* > 1 */
    double factor;                           /* linear, dynamic, yarn, llama3: >= 1 */
    double original_max_position_embeddings; /* yarn, llama3: > 0 */
    bool has_attention_factor;               /* yarn: attention_factor is given */
    double attention_factor;
    double beta_fast, beta_slow;             /* yarn: 32 and 1 where absent, null or 0 */
    double mscale, mscale_all_dim;           /* yarn: 0 where absent or null */
    bool truncate;                           /* yarn: true where absent */
    double low_freq_factor, high_freq_factor; /* llama3 */
} q3_rope;

/* config.json after defaults; the fields have the names of transformers 4.x. */
typedef struct q3_config {
    size_t vocab_size;              /* V */
    size_t hidden_size;             /* M */
    size_t intermediate_size;       /* I, of dense layers */
    size_t num_hidden_layers;       /* L */
    size_t num_attention_heads;     /* H, a multiple of K */
    size_t num_key_value_heads;     /* K */
    size_t head_dim;                /* hd, even */
    size_t max_position_embeddings; /* enters dynamic RoPE and YaRN's defaults, limits nothing */
    size_t num_experts;             /* E; 0: every layer is dense */
    size_t num_experts_per_tok;     /* A, 1 to E */
    size_t moe_intermediate_size;   /* F */
    size_t decoder_sparse_step;     /* layer i may be sparse only if (i + 1) mod this is 0 */
    size_t sliding_window;          /* keys a query sees, itself included; 0: all */
    int64_t pad_token_id;           /* from 0, or -1 if none; only the module tree shows it */
    double rms_norm_eps;
    bool norm_topk_prob;            /* the chosen probabilities are divided by their sum */
    bool attention_bias;            /* biases on q_proj, k_proj, v_proj and o_proj */
    bool tie_word_embeddings;       /* lm_head is embed_tokens */
    bool dense;                     /* model_type "qwen3": E is 0; the modules' names are others */
    q3_rope rope;
    const size_t *mlp_only_layers;  /* layers that are dense, any order; may be NULL */
    size_t mlp_only_count;
} q3_config;

/* Whether layer i has experts (else one dense MLP). Source: Qwen3MoeDecoderLayer.__init__. */
Q3_API bool q3_layer_is_sparse(const q3_config *config, size_t layer);

/* A weight as it lies in its file: little-endian float32, bfloat16 or float16 elements, row-major,
 * at any alignment; or, with dtype Q3_QUANTIZED, data points to a q3_quantized. data NULL: absent
 * (biases). Each element is rounded to the run's dtype as it is read, unless a q3_quantized says
 * otherwise. */
typedef struct q3_tensor {
    const void *data;
    q3_dtype dtype;
} q3_tensor;

/* A weight that its file keeps as blocks of small numbers (MODEL.md section 2). An element is a
 * float64 of at most 29 significant bits, so that its product with a float32 is exact; in sums of
 * products it is used as it is, elsewhere as the nearest float32. The core knows no format: it
 * calls dequantize (host/quants.h has some, a program may bring its own). What the object points to
 * belongs to the caller, as the object does. */
typedef struct q3_quantized q3_quantized;
struct q3_quantized {
    /* values[0..count) = elements first, first + 1, ... of the tensor, row-major. Any bytes give
     * some values; NaN and infinity too. Reads nothing but the weight, from any thread. */
    void (*dequantize)(double *values, const q3_quantized *weight, size_t first, size_t count);
    const void *format;   /* of GGUF: the q3_block_format, from which the judge knows what backends
                           * make of activations; NULL otherwise */
    /* What dequantize looks at. */
    const void *data;     /* the first block, as in the file, at any alignment */
    const void *scales;   /* of blocks that have theirs elsewhere, else NULL; row-major, */
    q3_dtype scale_dtype; /* little-endian float32, bfloat16 or float16 */
    size_t first;         /* which element of data is the tensor's first */
    size_t columns;       /* elements of a row, where scales are used */
    size_t block_rows, block_columns; /* that share one of the scales; the last ones may be short */
    bool rounded; /* to the run's dtype as it is read, as other weights are (GGUF); false: every run
                   * uses the element itself (fp8) */
};

/* One expert, or a dense layer's MLP. Hugging Face: model.layers.{i}.mlp[.experts.{e}].* */
typedef struct q3_mlp {
    q3_tensor gate_proj; /* [F,M], dense [I,M] */
    q3_tensor up_proj;   /* [F,M], dense [I,M] */
    q3_tensor down_proj; /* [M,F], dense [M,I] */
} q3_mlp;

/* model.layers.{i}.*, weights unless named otherwise */
typedef struct q3_layer {
    q3_tensor input_layernorm;          /* [M] */
    q3_tensor q_proj, k_proj, v_proj;   /* self_attn.*: [H*hd,M], [K*hd,M], [K*hd,M] */
    q3_tensor o_proj;                   /* self_attn.o_proj [M,H*hd] */
    q3_tensor q_proj_bias, k_proj_bias, v_proj_bias, o_proj_bias; /* [rows of the weight] */
    q3_tensor q_norm, k_norm;           /* self_attn.* [hd] */
    q3_tensor post_attention_layernorm; /* [M] */
    q3_tensor gate;                     /* mlp.gate [E,M], sparse layers */
    const q3_mlp *experts;              /* mlp.experts.{e}, E of them, sparse layers */
    q3_mlp mlp;                         /* mlp.*, dense layers */
} q3_layer;

typedef struct q3_weights {
    q3_tensor embed_tokens; /* model.embed_tokens.weight [V,M] */
    q3_tensor norm;         /* model.norm.weight [M] */
    q3_tensor lm_head;      /* lm_head.weight [V,M]; embed_tokens again if tied */
    const q3_layer *layers; /* L of them; those that do not run may be zeros */
} q3_weights;

/* ==== Arithmetic (qwen3moe.c) ================================================================= */

/* value rounded once to D (float32, bfloat16 or float16), to nearest, ties to even, as a float32.
 * Overflow gives infinity, any NaN the quiet NaN 0x7FC00000. */
Q3_API float q3_round(double value, q3_dtype dtype);

/* exp(x) in float64 for every x: overflow gives infinity, below -745.2 it is 0, NaN gives NaN. */
Q3_API double q3_exp(double x);
/* x / (1 + exp(-x)) in float64; -infinity gives -0. */
Q3_API double q3_silu(double x);
/* sine and cosine of |x| <= 2^20 (radians), rounded to float32. */
Q3_API float q3_sin(float x);
Q3_API float q3_cos(float x);
/* The natural logarithm of a positive finite x, in float64. */
Q3_API double q3_log(double x);
/* base^y rounded to float32, for float32 base > 0 and y with |y log(base)| <= 80. */
Q3_API float q3_pow(float base, float y);
/* The square root, correctly rounded; of a negative number NaN. */
Q3_API double q3_sqrt(double x);

/* values[0..count) = elements first, first + 1, ... of a weight, each rounded to dtype (a quantised
 * one to float32, unless its `rounded` is true). A NaN may keep its payload here; operators store
 * the quiet one. */
Q3_API void q3_widen(float *values, q3_tensor tensor, size_t first, size_t count, q3_dtype dtype);

/* ==== Kernels (qwen3moe.c, kernels.c) ============================================================
 * The operators' inner loops, behind one table. Every table gives the same bits: the plain one of
 * qwen3moe.c, which is the definition and all that firmware has, and those of kernels.c, one for
 * each instruction set. Nobody need call this: q3_best_kernels is what the library takes, once for
 * each call of an operator. */

/* T rows of x times N rows of a weight: sums[t,n] = sum_c x[t,c] w[n,c] in 16 lanes, as above. What
 * is NULL of sums, sizes and y is not wanted. */
typedef struct q3_dots {
    const float *x;
    size_t x_stride;    /* floats from a row of x to the next */
    q3_tensor weight;   /* elements rounded to dtype as they are read, or exact (q3_quantized); */
    const float *rows;  /* or, if not NULL: floats as they are (cached keys) */
    size_t row_stride;  /* elements from a row of the weight to the next */
    q3_tensor bias;     /* [N], added to each sum for y; data NULL: none */
    size_t T, N, C;
    q3_dtype dtype;
    double *sums;       /* [T,N] */
    double *sizes;      /* [T,N], sum_c |x[t,c]| |w[n,c]| in the same order */
    float *y;           /* y[t * y_stride + n] = D(sum + bias) */
    size_t y_stride;
} q3_dots;

/* Scores, probabilities and weighted values of T tokens at once: y as q3_attention_values gives it.
 * k and v are the cache's first first + T rows. */
typedef struct q3_attention {
    float *y;               /* [T,H,hd] */
    const float *q, *k, *v; /* [T,H,hd]; [first + T,K,hd] twice */
    size_t T, H, K, hd, first, window;
    q3_dtype dtype;
} q3_attention;

typedef struct q3_kernels {
    const char *name; /* of the instruction set, "plain" for none */
    void (*dots)(const q3_dots *dots);
    /* sums[i] += sum_s probs[s] rows[s * stride + i], i below n: one accumulator each, s ascending
     * from 0 to count - 1. */
    void (*values)(double *sums, const float *probs, const float *rows, size_t stride, size_t count,
                   size_t n);
    /* y[i] = D(x[i]), i below n; y = D(a b); y = D(a + b); y = D(silu(x)): y may be a, b or x. */
    void (*round)(float *y, const double *x, size_t n, q3_dtype dtype);
    void (*multiply)(float *y, const float *a, const float *b, size_t n, q3_dtype dtype);
    void (*add)(float *y, const float *a, const float *b, size_t n, q3_dtype dtype);
    void (*silu)(float *y, const float *x, size_t n, q3_dtype dtype);
    /* y[i] = exp(x[i]); y == x allowed. */
    void (*exp)(double *y, const double *x, size_t n);
    /* False: not done (too little memory; few rows), the operators must. NULL: never done. It takes
     * at most 16 MB while it runs. */
    bool (*attend)(const q3_attention *attention);
} q3_kernels;

/* The table of plain loops. */
Q3_API const q3_kernels *q3_plain_kernels(void);
/* The fastest that this processor runs, and each of them: plain is the first; NULL behind the last.
 * A build of qwen3moe.c without kernels.c has neither. */
Q3_API const q3_kernels *q3_best_kernels(void);
Q3_API const q3_kernels *q3_kernels_available(size_t index);
/* From now on all operators take this table (NULL: the library's own choice); returns what was set
 * before. For tests and measurements: while no other thread is in the library. */
Q3_API const q3_kernels *q3_use_kernels(const q3_kernels *kernels);
/* The dots of the table that the operators take: for sums that no operator makes. */
Q3_API void q3_run_dots(const q3_dots *dots);

/* ==== Operators (qwen3moe.c) =====================================================================
 * Outputs first. Nothing is allocated, nothing kept. No overlap between arguments unless said.
 * Sizes may be 0 where that makes sense (T = 0 does nothing). The formulas, the order of each sum
 * and the rounding points stand above each definition, and in MODEL.md. */

/* y[T,M]: rows ids[t] of embed_tokens[V,M]. Every id is in [0, V). */
Q3_API void q3_embedding(float *y, const int32_t *ids, q3_tensor embed_tokens, size_t T, size_t V,
                         size_t M, q3_dtype dtype);

/* y[T,M] = weight[M] * D(x / sqrt(mean(x^2) + eps)), row by row. y == x is allowed. The norm of q
 * and k is this one over rows of hd: T*H rows for q, T*K for k. */
Q3_API void q3_rmsnorm(float *y, const float *x, q3_tensor weight, size_t T, size_t M, float eps,
                       q3_dtype dtype);

/* y[T,N] = x[T,C] weight[N,C]^T + bias[N]. bias.data NULL: none. lm_head and the router's gate
 * too. */
Q3_API void q3_linear(float *y, const float *x, q3_tensor weight, q3_tensor bias, size_t T,
                      size_t N, size_t C, q3_dtype dtype);

/* inv_freq[hd/2] for a run of `length` positions in all (which only dynamic RoPE looks at); returns
 * attention_scaling. hd is even; rope is one that a config may have (MODEL.md section 5): both ends
 * of YaRN's ramp are within 2^62, dynamic RoPE's theta is below e^80. */
Q3_API float q3_rope_frequencies(float *inv_freq, const q3_rope *rope, size_t hd,
                                 size_t max_position_embeddings, size_t length);

/* cos[T,hd], sin[T,hd] of positions first, first + 1, ...; the second half of a row repeats the
 * first. Every position * inv_freq is at most 2^20. */
Q3_API void q3_rope_table(float *cos, float *sin, const float *inv_freq, float attention_scaling,
                          size_t T, size_t first, size_t hd, q3_dtype dtype);

/* y[T,H,hd] = x * cos + rotate_half(x) * sin, each product and the sum rounded; element j is paired
 * with j + hd/2. y == x is allowed. */
Q3_API void q3_rope_apply(float *y, const float *x, const float *cos, const float *sin, size_t T,
                          size_t H, size_t hd, q3_dtype dtype);

/* Which cached rows a query at cache row r sees: [q3_first_key(r, window), r]. */
Q3_API size_t q3_first_key(size_t row, size_t window);

/* scores[H,T,S] = D(D(q k) * hd^-0.5), 0 where masked. q[T,H,hd]; k[S,K,hd]; query t stands at
 * cache row first + t < S; query head h reads key head h / (H/K). */
Q3_API void q3_attention_scores(float *scores, const float *q, const float *k, size_t T, size_t H,
                                size_t K, size_t hd, size_t first, size_t S, size_t window,
                                q3_dtype dtype);

/* probs[H,T,S] = softmax of scores[H,T,S] over the keys that are seen, 0 elsewhere. probs == scores
 * is allowed. scratch: S float64. */
Q3_API void q3_attention_probs(float *probs, const float *scores, double *scratch, size_t T,
                               size_t H, size_t first, size_t S, size_t window, q3_dtype dtype);

/* y[T,H,hd] = probs[H,T,S] v[S,K,hd], heads mapped as in the scores. */
Q3_API void q3_attention_values(float *y, const float *probs, const float *v, size_t T, size_t H,
                                size_t K, size_t hd, size_t first, size_t S, size_t window,
                                q3_dtype dtype);

/* probs[T,E] = softmax(logits[T,E]) over all experts, float32 in every run. probs == logits
 * allowed. */
Q3_API void q3_router_probs(float *probs, const float *logits, size_t T, size_t E);

/* ids[T,A]: the A largest of probs[T,E] by falling probability; ties to the lowest id; NaN counts
 * as larger than any number, as in torch.topk. 1 <= A <= E. */
Q3_API void q3_router_topk(int32_t *ids, const float *probs, size_t T, size_t E, size_t A);

/* weights[T,A] = D(probs at ids), divided by their sum first if norm_topk_prob. */
Q3_API void q3_router_weights(float *weights, const float *probs, const int32_t *ids, size_t T,
                              size_t E, size_t A, bool norm_topk_prob, q3_dtype dtype);

typedef enum q3_projection { Q3_GATE_PROJ, Q3_UP_PROJ, Q3_DOWN_PROJ } q3_projection;

/* y[T,A,N] = x W^T with W[N,C] the projection of expert ids[t,a]. x is [T,C] for gate_proj and
 * up_proj (every slot reads its token's row), [T,A,C] for down_proj. ids lie in [0, E); an expert
 * stands at most once in a row. scratch: T*(C+N) floats. A dense MLP is the case A = E = 1 with ids
 * all 0. */
Q3_API void q3_expert_linear(float *y, const float *x, const int32_t *ids, const q3_mlp *experts,
                             q3_projection projection, float *scratch, size_t T, size_t E, size_t A,
                             size_t N, size_t C, q3_dtype dtype);

/* y[n] = silu(x[n]); y == x allowed. */
Q3_API void q3_silu_map(float *y, const float *x, size_t n, q3_dtype dtype);
/* y[n] = a[n] * b[n]; y == a or y == b allowed. */
Q3_API void q3_multiply(float *y, const float *a, const float *b, size_t n, q3_dtype dtype);
/* y[n] = a[n] + b[n]; y == a or y == b allowed. */
Q3_API void q3_residual_add(float *y, const float *a, const float *b, size_t n, q3_dtype dtype);

/* y[T,M] = sum over slots by ascending expert id of D(down[T,A,M] * weights[T,A]), from +0, rounded
 * after every addition. */
Q3_API void q3_expert_combine(float *y, const float *down, const int32_t *ids, const float *weights,
                              size_t T, size_t A, size_t M, q3_dtype dtype);

/* The index of the largest of values[n], the lowest on ties; NaN counts as the largest. n > 0. */
Q3_API size_t q3_argmax(const float *values, size_t n);

/* ==== Forward pass (qwen3moe.c) =============================================================== */

/* Every named tensor of a pass, in the order of computation. host/taps.c has the names. */
typedef enum q3_tap_id {
    Q3_TAP_EMBED_TOKENS, Q3_TAP_COS, Q3_TAP_SIN,
    Q3_TAP_INPUT_LAYERNORM, /* the first of a layer's taps */
    Q3_TAP_Q_PROJ, Q3_TAP_K_PROJ, Q3_TAP_V_PROJ, Q3_TAP_Q_NORM, Q3_TAP_K_NORM, Q3_TAP_Q_ROPE,
    Q3_TAP_K_ROPE, Q3_TAP_SCORES, Q3_TAP_PROBS, Q3_TAP_O_PROJ_INPUT, Q3_TAP_O_PROJ,
    Q3_TAP_POST_ATTENTION_INPUT, Q3_TAP_POST_ATTENTION_LAYERNORM,
    Q3_TAP_GATE, Q3_TAP_ROUTER_PROBS, Q3_TAP_TOPK_INDICES, Q3_TAP_TOPK_WEIGHTS,
    Q3_TAP_EXPERTS_GATE_PROJ, Q3_TAP_EXPERTS_UP_PROJ, Q3_TAP_EXPERTS_ACT_FN,
    Q3_TAP_EXPERTS_DOWN_PROJ_INPUT, Q3_TAP_EXPERTS_DOWN_PROJ,
    Q3_TAP_DENSE_GATE_PROJ, Q3_TAP_DENSE_UP_PROJ, Q3_TAP_DENSE_ACT_FN, Q3_TAP_DENSE_DOWN_PROJ_INPUT,
    Q3_TAP_MLP,
    Q3_TAP_LAYER, /* the last of a layer's taps */
    Q3_TAP_NORM, Q3_TAP_LM_HEAD,
    Q3_TAP_COUNT
} q3_tap_id;

/* One piece of a named tensor: some of its tokens. */
typedef struct q3_tap {
    q3_tap_id id;
    size_t layer;      /* for a layer's taps, else 0 */
    q3_dtype dtype;    /* what the values are rounded to: the run's, Q3_F32, or Q3_I32 */
    size_t rank;
    size_t shape[3];   /* of this piece; scores and probs: [H, tokens, keys so far] */
    size_t token_axis; /* 1 for scores and probs, else 0 */
    size_t first;      /* row of the run that the piece's first token is */
    void *data;        /* float, or int32_t for topk_indices; may be changed, and counts then */
} q3_tap;

/* Called once for every piece. Expert ids written by a tap must be distinct and lie in [0, E). */
typedef void q3_tap_fn(void *user, const q3_tap *tap);

/* What a state is made for. */
typedef struct q3_run {
    q3_dtype dtype;     /* Q3_F32, Q3_BF16 or Q3_F16 */
    size_t first_layer; /* layers [first_layer, end_layer) run; the embedding only if this is 0, */
    size_t end_layer;   /* the final norm and lm_head only if this is L */
    size_t start;       /* position of the run's first token */
    size_t rows;        /* tokens the cache can hold, >= 1; start + rows <= Q3_MAX_POSITIONS */
    size_t chunk;       /* most tokens of one call, 1 to rows; no bit depends on it */
    size_t logit_rows;  /* most rows of logits that are kept, up to chunk; 0: chunk. A call that */
                        /* wants more makes them piece by piece, each of which the tap sees */
} q3_run;

#define Q3_MAX_POSITIONS ((size_t)1 << 20)

typedef struct q3_state q3_state;

/* Bytes of memory for a state; 0 if they do not fit a size_t. */
Q3_API size_t q3_state_size(const q3_config *config, const q3_run *run);
/* Makes an empty state in memory of at least q3_state_size bytes, aligned for double. config,
 * weights and all they point to, and memory, belong to the caller and must outlive the state. NULL
 * if q3_selftest finds a broken rule. */
Q3_API q3_state *q3_state_init(void *memory, size_t size, const q3_config *config,
                               const q3_weights *weights, const q3_run *run);
/* Forgets all cached tokens, so that the next call starts the run again. */
Q3_API void q3_state_reset(q3_state *state);
/* Puts the keys (behind RoPE) and values [count,K,hd] of tokens that were run elsewhere into a
 * layer's cache, as its first rows. The state is empty but for this, and each of the run's layers
 * gets as many; the next call's tokens then stand at start + count. */
Q3_API void q3_state_fill(q3_state *state, size_t layer, const float *keys, const float *values,
                          size_t count);

typedef struct q3_input {
    const int32_t *tokens; /* [count], if first_layer is 0 */
    const float *hidden;   /* [count,M], if not: the output of layer first_layer - 1 */
    size_t count;          /* 1 to chunk, and no more than rows of the cache are left */
    size_t length;         /* positions of the whole run (dynamic RoPE); 0: up to this call's end */
    size_t logit_rows;     /* lm_head on the last so many of the tokens, 0 to count */
} q3_input;

/* Runs the next `count` tokens through the layers. tap may be NULL. Before anything is changed:
 * Q3_ERROR_INPUT for a token outside the vocabulary or more tokens than fit, Q3_ERROR_ARITHMETIC if
 * the processor's modes were changed. */
Q3_API q3_status q3_forward(q3_state *state, const q3_input *input, q3_tap_fn *tap, void *user,
                            q3_error *error);
/* Of the last call: logits[n,V] of its last n tokens, n the smaller of the input's and the run's
 * logit_rows, and hidden[count,M], the last layer's output (not normalised). Both valid until the
 * next call. */
Q3_API const float *q3_logits(const q3_state *state);
Q3_API const float *q3_hidden(const q3_state *state);
/* Tokens in the cache. */
Q3_API size_t q3_cached(const q3_state *state);

/* ==== Self-test (qwen3moe.c) =====================================================================
 * Run whenever a state is made, and its first check at each call of q3_forward. */

/* NULL if this compiler and processor keep the rules above, else the one that is broken: subnormals
 * flushed, rounding mode changed, sums reordered or kept wider, values that are not MPFR's. */
Q3_API const char *q3_selftest(void);
/* What check number `index` looks at, and whether it holds; NULL behind the last. */
Q3_API const char *q3_selftest_check(size_t index, bool *holds);

/* ==== Tap names (host/taps.c) ================================================================= */

#define Q3_TAP_NAME_SIZE 80

/* Writes the tap's name, such as model.layers.3.self_attn.q_proj.output (MODEL.md section 8). */
Q3_API void q3_tap_name(char name[Q3_TAP_NAME_SIZE], q3_tap_id id, size_t layer);
/* The reverse. False if no tap is called that. */
Q3_API bool q3_tap_find(const char *name, q3_tap_id *id, size_t *layer);
/* Whether a run of this model over layers [first_layer, end_layer) has the tap. */
Q3_API bool q3_tap_exists(const q3_config *config, size_t first_layer, size_t end_layer,
                          q3_tap_id id, size_t layer);
/* shape of the whole tensor of a run of T tokens; returns its rank. */
Q3_API size_t q3_tap_shape(size_t shape[3], const q3_config *config, q3_tap_id id, size_t T);
/* The dtype its values are rounded to and stored in. */
Q3_API q3_dtype q3_tap_dtype(q3_tap_id id, q3_dtype run);

/* ==== Files (host/checkpoint.c, host/safetensors.c) =========================================== */

typedef struct q3_model q3_model;

/* Opens a Hugging Face model folder, or a bare config.json: reads and checks the config alone. */
Q3_API q3_status q3_model_open(q3_model **model, const char *path, q3_error *error);
/* Frees everything that came from the model. NULL is allowed. */
Q3_API void q3_model_close(q3_model *model);
Q3_API const q3_config *q3_model_config(const q3_model *model);
/* The config's dtype; Q3_AUTO if it names none. */
Q3_API q3_dtype q3_model_dtype(const q3_model *model);
/* Maps the weights that layers [first_layer, end_layer) of the run need (embed_tokens if
 * first_layer is 0; norm and lm_head if end_layer is L) and checks every name, dtype and shape.
 * *dtype Q3_AUTO becomes the config's dtype, else the weights' one dtype. A finite weight that
 * overflows in *dtype is an error. Call once. */
Q3_API q3_status q3_model_load(q3_model *model, q3_dtype *dtype, size_t first_layer,
                               size_t end_layer, q3_error *error);
/* Valid after q3_model_load, until q3_model_close. */
Q3_API const q3_weights *q3_model_weights(const q3_model *model);
/* The config after defaults as one line of JSON: 4.x names, keys sorted, no spaces, numbers as
 * Python's json writes them. Belongs to the model. */
Q3_API const char *q3_model_config_json(const q3_model *model);
/* Ids that end a generation, from generation_config.json, else config.json. Belongs to the
 * model. */
Q3_API q3_status q3_model_eos(q3_model *model, const int32_t **ids, size_t *count, q3_error *error);

/* What stands in a safetensors file under one name. */
typedef struct q3_entry {
    const char *name;
    q3_dtype dtype;
    size_t rank;
    uint64_t shape[8];
    const void *data; /* little-endian elements, at any alignment; not used by the writer */
} q3_entry;

typedef struct q3_tensors q3_tensors;

/* Maps a safetensors file (F64, F32, BF16, F16, F8_E4M3, I64, I32 tensors). */
Q3_API q3_status q3_tensors_open(q3_tensors **tensors, const char *path, q3_error *error);
Q3_API void q3_tensors_close(q3_tensors *tensors);
Q3_API size_t q3_tensors_count(const q3_tensors *tensors);
/* In the order of the file's header. Valid until closed, as is the next one; NULL if there is
 * none. */
Q3_API const q3_entry *q3_tensors_at(const q3_tensors *tensors, size_t index);
Q3_API const q3_entry *q3_tensors_find(const q3_tensors *tensors, const char *name);
/* A value of __metadata__, or NULL. */
Q3_API const char *q3_tensors_metadata(const q3_tensors *tensors, const char *key);
/* count elements from first on, as floats (F64 rounded to float32; not for I32 and I64), or as
 * integers (not for the others). The range lies inside the tensor. */
Q3_API void q3_entry_floats(float *values, const q3_entry *entry, uint64_t first, size_t count);
Q3_API void q3_entry_integers(int64_t *values, const q3_entry *entry, uint64_t first, size_t count);

typedef struct q3_writer q3_writer;

/* Starts a safetensors file of these tensors in this order. metadata: key, value, key, value, ...,
 * NULL. Written beside path under a temporary name until it is committed; path "-" is standard
 * output, and the file is then kept in memory until it is committed. entries are copied. */
Q3_API q3_status q3_writer_open(q3_writer **writer, const char *path, const q3_entry *entries,
                                size_t count, const char *const *metadata, q3_error *error);
/* Elements first, first + 1, ... of tensor `index`: floats that its dtype can hold, or integers.
 * What is never put reads as 0. */
Q3_API q3_status q3_writer_floats(q3_writer *writer, size_t index, uint64_t first,
                                  const float *values, size_t count, q3_error *error);
Q3_API q3_status q3_writer_integers(q3_writer *writer, size_t index, uint64_t first,
                                    const int64_t *values, size_t count, q3_error *error);
/* Puts the finished file in the place of path; the writer is gone in any case. */
Q3_API q3_status q3_writer_commit(q3_writer *writer, q3_error *error);
/* Removes what was written. NULL is allowed. */
Q3_API void q3_writer_abandon(q3_writer *writer);

/* ==== Tokenizer (tokenizer.c) ====================================================================
 * Text to ids and back, as Hugging Face tokenizers 0.23 does it with the Qwen tokenizer.json: added
 * tokens are cut out of the raw text; what lies between them is normalised (NFC of Unicode 9.0, or
 * not at all), split by the Qwen pattern (letters and numbers of Unicode 16.0) and merged by
 * byte-level BPE. A file that asks for anything else is refused, and the message names the key.
 * Refused although Hugging Face takes them: truncation or padding not null, dropout above 0, no
 * pre_tokenizer or decoder, a key or an id given twice, ids of added tokens other than Hugging
 * Face's own numbering, ids above 2^31 - 1, added tokens with lstrip, rstrip, single_word or
 * normalized, unk_token, byte_fallback. A byte whose letter is not in the vocabulary gives no id,
 * as there. No limit on the length of a text or of a word; time is O(n log n), whatever the added
 * tokens are. Memory: 12 MiB for Qwen3's file (24 bytes a byte of added tokens); while a text is
 * encoded, 4 bytes for each of its tokens, 8 for each place where an added token fits, 40 for each
 * byte of its longest word, NFC's copy of what it changes, and 2 MiB. */
typedef struct q3_tokenizer q3_tokenizer;

/* Reads a tokenizer.json; *tokenizer is released by q3_tokenizer_free (NULL allowed).
 * Q3_ERROR_FILE: path cannot be read. Q3_ERROR_INPUT: not a tokenizer as above. Q3_ERROR_MEMORY. */
Q3_API q3_status q3_tokenizer_open(q3_tokenizer **tokenizer, const char *path, q3_error *error);

/* The same from text[length], which messages call name; nothing of text is kept. */
Q3_API q3_status q3_tokenizer_parse(q3_tokenizer **tokenizer, const char *name, const void *text,
                                    size_t length, q3_error *error);

Q3_API void q3_tokenizer_free(q3_tokenizer *tokenizer);

/* *ids[*count] are the tokens of text[length], any bytes (zeros too) that are UTF-8; no token is
 * added. *ids is a new block (never NULL on success) that the caller releases with free.
 * Q3_ERROR_INPUT: text is not UTF-8 (the message has the byte offset). Q3_ERROR_MEMORY. */
Q3_API q3_status q3_tokenizer_encode(const q3_tokenizer *tokenizer, const void *text, size_t length,
                                     int32_t **ids, size_t *count, q3_error *error);

/* *bytes[*length] is the text of ids[count], control tokens included; a zero follows it that is not
 * counted. Single tokens may hold a part of a character: a stream of them must be joined as bytes.
 * *bytes is a new block that the caller releases with free.
 * Q3_ERROR_INPUT: an id without a token (the message has its index). Q3_ERROR_MEMORY. */
Q3_API q3_status q3_tokenizer_decode(const q3_tokenizer *tokenizer, const int32_t *ids,
                                     size_t count, uint8_t **bytes, size_t *length,
                                     q3_error *error);

/* The id of the token that stands for exactly these bytes ("<|im_end|>", " the"); -1 if there is
 * none. */
Q3_API int32_t q3_token_id(const q3_tokenizer *tokenizer, const void *bytes, size_t length);

/* ==== Chat (host/chat.c) =========================================================================
 * Messages to the text that the model's chat template makes of them, as Hugging Face transformers
 * renders it. Templates are recognised by the SHA-256 of their text and rendered by code:
 * golden/tiny's, Qwen3 of April 2025 and its later revision, Instruct-2507, Thinking-2507. Tokenize
 * the text as any other: control tokens in contents become control ids there too. */
enum {
    Q3_CHAT_NO_PROMPT = 1,  /* add_generation_prompt false: no opening of the assistant's answer */
    Q3_CHAT_NO_THINKING = 2 /* enable_thinking false; no effect where the template has no switch */
};

/* The template of a model folder: chat_template.jinja, or tokenizer_config.json's chat_template
 * where there is no such file. *text[*length] is a new block that the caller releases with free. */
Q3_API q3_status q3_chat_template(const char *folder, uint8_t **text, size_t *length,
                                  q3_error *error);

/* messages[length] is JSON, a list of {"role", "content"} with strings, which messages call name;
 * flags of Q3_CHAT_. *text[*text_length] is a new block, released with free; a zero that is not
 * counted follows. Other keys (name, tool_call_id) are skipped where the template does not read
 * them. Q3_ERROR_INPUT: an unknown template, an empty list, tool messages, tool_calls or
 * reasoning_content that the template writes. */
Q3_API q3_status q3_chat_render(const void *chat_template, size_t template_length, const char *name,
                                const void *messages, size_t length, unsigned flags, uint8_t **text,
                                size_t *text_length, q3_error *error);

/* ==== Counts and the module tree (host/info.c) ================================================ */

/* The tree that PyTorch prints for the Hugging Face model (transformers 4.51), lines ended by \n;
 * to be freed with free(). NULL: no memory. */
Q3_API char *q3_module_tree(const q3_config *config);

typedef struct q3_counts {
    uint64_t parameters;       /* tied weights once */
    uint64_t active_per_token; /* with embedding and head, and A of E experts */
    uint64_t key_value_elements_per_token;
} q3_counts;
/* False if a count does not fit 64 bits. */
Q3_API bool q3_count(q3_counts *counts, const q3_config *config);

#ifdef __cplusplus
}
#endif

#endif
