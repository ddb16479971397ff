/* SPDX-License-Identifier: MIT */
/* config.json: defaults, both spellings, everything that is refused and how it is said, and the
 * line of JSON. What is read is what transformers 4.57.6 and 5.17.0 read; where they differ the
 * file is refused. Argument: the golden folder. */
#define _POSIX_C_SOURCE 200809L
#include "folder.h"
#include "qwen3moe.h"
#include "t.h"

#include <stdint.h>

/* A small configuration; a case replaces, adds or drops keys. */
static const char *const base[][2] = {
    {"model_type", "\"qwen3_moe\""}, {"vocab_size", "50"}, {"hidden_size", "40"},
    {"intermediate_size", "44"}, {"num_hidden_layers", "4"}, {"num_attention_heads", "6"},
    {"num_key_value_heads", "2"}, {"head_dim", "8"}, {"max_position_embeddings", "4096"},
    {"num_experts", "7"}, {"num_experts_per_tok", "3"}, {"moe_intermediate_size", "18"},
    {"norm_topk_prob", "true"}, {"rms_norm_eps", "1e-06"}, {"rope_theta", "1000000.0"},
    {"tie_word_embeddings", "false"}};

/* Whether a key stands in the members at their own level, not inside one of them. */
static int has_key(const char *members, const char *key)
{
    int depth = 0;
    for (const char *c = members; *c != 0; c++) {
        depth += (*c == '{') - (*c == '}');
        if (depth == 0 && strncmp(c, key, strlen(key)) == 0) return 1;
    }
    return 0;
}

/* Writes {base without the keys in drop and in add, add} as config.json. drop: " key key ". */
static void write_config(const char *add, const char *drop)
{
    char text[8192], key[64];
    size_t at = (size_t)snprintf(text, sizeof text, "{%s", add);
    for (size_t i = 0; i < sizeof base / sizeof *base; i++) {
        snprintf(key, sizeof key, " %s ", base[i][0]);
        if (strstr(drop, key) != NULL) continue;
        snprintf(key, sizeof key, "\"%s\":", base[i][0]);
        if (has_key(add, key)) continue;
        at += (size_t)snprintf(text + at, sizeof text - at, "%s\"%s\":%s", at > 1 ? "," : "",
                               base[i][0], base[i][1]);
    }
    at += (size_t)snprintf(text + at, sizeof text - at, "}\n");
    folder_write("config.json", text, at);
}

/* Opens what write_config has written; *error is "" if it was accepted. */
static q3_model *open_config(q3_error *error)
{
    q3_model *model = NULL;
    error->text[0] = 0;
    q3_status status = q3_model_open(&model, folder_path("config.json"), error);
    CHECK((status == Q3_OK) == (model != NULL) && (status == Q3_OK) == (error->text[0] == 0));
    return model;
}

/* ==== Accepted ================================================================================ */

/* Each piece of text stands in the line of JSON. */
static const struct { const char *add, *drop, *want; } accepted[] = {
    /* the defaults of Qwen3MoeConfig */
    {"", " vocab_size ", "\"vocab_size\":151936}"},
    {"", " hidden_size ", ",\"hidden_size\":2048,"},
    {"", " intermediate_size ", ",\"intermediate_size\":6144,"},
    {"", " num_hidden_layers ", ",\"num_hidden_layers\":24,"},
    {"\"num_key_value_heads\":4", " num_attention_heads ", ",\"num_attention_heads\":32,"},
    {"\"num_attention_heads\":8", " num_key_value_heads ", ",\"num_key_value_heads\":4,"},
    {"", " max_position_embeddings ", ",\"max_position_embeddings\":32768,"},
    {"", " num_experts ", ",\"num_experts\":128,"},
    {"\"num_experts\":9", " num_experts_per_tok ", ",\"num_experts_per_tok\":8,"},
    {"", " moe_intermediate_size ", ",\"moe_intermediate_size\":768,"},
    {"", " norm_topk_prob ", ",\"norm_topk_prob\":false,"},
    {"", " rms_norm_eps ", ",\"rms_norm_eps\":1e-06,"},
    {"", " rope_theta ", ",\"rope_theta\":10000.0,"},
    {"", " tie_word_embeddings ", ",\"tie_word_embeddings\":false,"},
    {"", "", "{\"attention_bias\":false,\"decoder_sparse_step\":1,\"head_dim\":8,"},
    {"", "", "\"mlp_only_layers\":[],"},
    {"", "", "\"rope_scaling\":null,\"rope_theta\":1000000.0,\"sliding_window\":null,"},
    /* head_dim absent: hidden_size / num_attention_heads, rounded down */
    {"\"hidden_size\":50", " head_dim ", "\"head_dim\":8,"},
    {"\"hidden_size\":48", " head_dim ", "\"head_dim\":8,"},
    /* numbers as Python prints them */
    {"\"rope_theta\":5000000", "", "\"rope_theta\":5000000.0,"},
    {"\"rope_theta\":1e16", "", "\"rope_theta\":1e+16,"},
    {"\"rms_norm_eps\":0.00001", "", "\"rms_norm_eps\":1e-05,"},
    {"\"rms_norm_eps\":0.0", "", "\"rms_norm_eps\":0.0,"},
    /* Qwen3's dense models: Qwen3Config's defaults */
    {"\"model_type\":\"qwen3\"", "", "\"model_type\":\"qwen3\","},
    {"\"model_type\":\"qwen3\"", "", "\"num_experts\":0,"},
    {"\"model_type\":\"qwen3\"", " hidden_size ", ",\"hidden_size\":4096,"},
    {"\"model_type\":\"qwen3\"", " intermediate_size ", ",\"intermediate_size\":22016,"},
    {"\"model_type\":\"qwen3\"", " num_hidden_layers ", ",\"num_hidden_layers\":32,"},
    {"\"model_type\":\"qwen3\",\"num_attention_heads\":32", " num_key_value_heads ",
     ",\"num_key_value_heads\":32,"},
    {"\"model_type\":\"qwen3\"", " head_dim ", ",\"head_dim\":128,"},
    {"\"model_type\":\"qwen3\",\"layer_types\":[\"full_attention\"]", "",
     "\"model_type\":\"qwen3\","},
    {"\"layer_types\":[\"sliding_attention\"]", "", "\"model_type\":\"qwen3_moe\","},
    /* experts and layers */
    {"\"num_experts\":0", "", "\"num_experts\":0,"},
    {"\"num_experts\":0,\"num_experts_per_tok\":9", "", "\"num_experts_per_tok\":9,"},
    {"\"num_hidden_layers\":0", "", "\"num_hidden_layers\":0,"},
    {"\"decoder_sparse_step\":3", "", "\"decoder_sparse_step\":3,"},
    {"\"mlp_only_layers\":null", "", "\"mlp_only_layers\":[],"},
    {"\"mlp_only_layers\":[3,0,-1,4,3,99999999999999999999]", "", "\"mlp_only_layers\":[0,3],"},
    /* quantised weights */
    {"\"quantization_config\":{\"quant_method\":\"fp8\",\"fmt\":\"e4m3\","
     "\"activation_scheme\":\"dynamic\",\"weight_block_size\":[128,128]}", "",
     "{\"attention_bias\":false,"},
    {"\"quantization_config\":{\"quant_method\":\"fp8\",\"modules_to_not_convert\":null,"
     "\"modules_to_convert\":null,\"scale_fmt\":\"float\",\"dequantize\":false}", "",
     "{\"attention_bias\":false,"},
    {"\"quantization_config\":{\"quant_method\":\"fp8\",\"modules_to_not_convert\":[\"lm_head\","
     "\"model.layers.0.mlp.gate\"],\"weight_block_size\":[1,2147483647]}", "",
     "{\"attention_bias\":false,"},
    {"\"quantization_config\":{\"quant_method\":\"fp8\",\"modules_to_not_convert\":[]}", "",
     "{\"attention_bias\":false,"},
    {"\"quantization_config\":{\"quant_method\":\"fp8\"}", "", "{\"attention_bias\":false,"},
    /* sliding window */
    {"\"use_sliding_window\":true", "", "\"sliding_window\":4096,"},
    {"\"use_sliding_window\":true,\"sliding_window\":5", "", "\"sliding_window\":5,"},
    {"\"use_sliding_window\":true,\"sliding_window\":5", "", "\"use_sliding_window\":true,"},
    {"\"use_sliding_window\":true,\"sliding_window\":null", "", "\"use_sliding_window\":false,"},
    {"\"use_sliding_window\":false,\"sliding_window\":5", "", "\"sliding_window\":null,"},
    {"\"sliding_window\":-3", "", "\"sliding_window\":null,"},
    /* 5.x names */
    {"\"num_local_experts\":5", " num_experts ", "\"num_experts\":5,"},
    {"\"num_local_experts\":7", "", "\"num_experts\":7,"},
    {"\"rope_parameters\":{\"rope_type\":\"default\",\"rope_theta\":5e6}", " rope_theta ",
     "\"rope_scaling\":null,\"rope_theta\":5000000.0,"},
    {"\"rope_parameters\":{\"rope_type\":\"default\",\"rope_theta\":1e6}", "",
     "\"rope_theta\":1000000.0,"},
    {"\"rope_parameters\":{}", " rope_theta ", "\"rope_theta\":10000.0,"},
    {"\"rope_parameters\":null", "", "\"rope_theta\":1000000.0,"},
    {"\"rope_parameters\":{\"rope_theta\":5e6},\"rope_scaling\":null", " rope_theta ",
     "\"rope_scaling\":null,\"rope_theta\":5000000.0,"},
    {"\"rope_parameters\":{\"rope_type\":\"linear\",\"factor\":2.0}", " rope_theta ",
     "\"rope_scaling\":{\"factor\":2.0,\"rope_type\":\"linear\"},\"rope_theta\":10000.0,"},
    {"\"rope_parameters\":{\"type\":\"linear\",\"factor\":2}", " rope_theta ",
     "\"rope_scaling\":{\"factor\":2.0,\"rope_type\":\"linear\"},"},
    {"\"rope_parameters\":{\"rope_type\":\"linear\",\"factor\":2.0,\"rope_theta\":1e6},"
     "\"rope_scaling\":{\"type\":\"linear\",\"factor\":2}", "",
     "\"rope_scaling\":{\"factor\":2.0,\"rope_type\":\"linear\"},\"rope_theta\":1000000.0,"},
    /* the types of RoPE */
    {"\"rope_scaling\":{\"rope_type\":\"default\"}", "", "\"rope_scaling\":null,"},
    {"\"rope_scaling\":{\"type\":\"linear\",\"factor\":2}", "",
     "\"rope_scaling\":{\"factor\":2.0,\"rope_type\":\"linear\"},"},
    {"\"rope_scaling\":{\"rope_type\":\"linear\",\"factor\":1,\"rope_theta\":1000000}", "",
     "\"rope_scaling\":{\"factor\":1.0,\"rope_type\":\"linear\"},"},
    {"\"rope_scaling\":{\"rope_type\":\"linear\",\"type\":\"linear\",\"factor\":8.5}", "",
     "\"rope_scaling\":{\"factor\":8.5,\"rope_type\":\"linear\"},"},
    {"\"rope_scaling\":{\"rope_type\":\"dynamic\",\"factor\":2.0,\"beta_fast\":9}", "",
     "\"rope_scaling\":{\"factor\":2.0,\"rope_type\":\"dynamic\"},"},
    {"\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":4.0}", "",
     "\"rope_scaling\":{\"attention_factor\":null,\"beta_fast\":32.0,\"beta_slow\":1.0,"
     "\"factor\":4.0,\"mscale\":null,\"mscale_all_dim\":null,"
     "\"original_max_position_embeddings\":4096,\"rope_type\":\"yarn\",\"truncate\":true},"},
    {"\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":4,\"beta_fast\":0,\"beta_slow\":null,"
     "\"attention_factor\":null,\"mscale\":0.0,\"original_max_position_embeddings\":1024}", "",
     "\"rope_scaling\":{\"attention_factor\":null,\"beta_fast\":32.0,\"beta_slow\":1.0,"
     "\"factor\":4.0,\"mscale\":null,\"mscale_all_dim\":null,"
     "\"original_max_position_embeddings\":1024,\"rope_type\":\"yarn\",\"truncate\":true},"},
    {"\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":4,\"beta_fast\":20,\"beta_slow\":2.5,"
     "\"attention_factor\":1,\"mscale\":0.707,\"mscale_all_dim\":1,\"truncate\":false},"
     "\"original_max_position_embeddings\":4096", "",
     "\"rope_scaling\":{\"attention_factor\":1.0,\"beta_fast\":20.0,\"beta_slow\":2.5,"
     "\"factor\":4.0,\"mscale\":0.707,\"mscale_all_dim\":1.0,"
     "\"original_max_position_embeddings\":4096,\"rope_type\":\"yarn\",\"truncate\":false},"},
    {"\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8,\"low_freq_factor\":1,"
     "\"high_freq_factor\":4.0,\"original_max_position_embeddings\":512}", "",
     "\"rope_scaling\":{\"factor\":8.0,\"high_freq_factor\":4.0,\"low_freq_factor\":1.0,"
     "\"original_max_position_embeddings\":512,\"rope_type\":\"llama3\"},"},
    /* without effect in either version */
    {"\"layer_types\":[\"full_attention\"],\"max_window_layers\":28,\"qkv_bias\":false,"
     "\"use_qk_norm\":true,\"shared_expert_intermediate_size\":0,\"use_cache\":7,\"x\":{\"y\":[]}",
     "", "\"vocab_size\":50}"},
    {"\"partial_rotary_factor\":1,\"is_causal\":true,\"per_layer_config\":null", "",
     "\"vocab_size\":50}"},
    {"\"rope_scaling\":{\"rope_type\":\"linear\",\"factor\":2.0,\"partial_rotary_factor\":1.0}", "",
     "\"factor\":2.0"},
    {"\"dtype\":\"bfloat16\",\"torch_dtype\":\"bfloat16\"", "", "\"vocab_size\":50}"},
    {"\"dtype\":null,\"torch_dtype\":\"float16\"", "", "\"vocab_size\":50}"},
};

static void check_accepted(void)
{
    for (size_t i = 0; i < sizeof accepted / sizeof *accepted; i++) {
        q3_error error;
        write_config(accepted[i].add, accepted[i].drop);
        q3_model *model = open_config(&error);
        CHECKF(model != NULL, "case %lu {%s}: %s", (unsigned long)i, accepted[i].add, error.text);
        if (model != NULL) {
            const char *line = q3_model_config_json(model);
            CHECKF(strstr(line, accepted[i].want) != NULL, "case %lu {%s}: got %s, want %s in it",
                   (unsigned long)i, accepted[i].add, line, accepted[i].want);
        }
        q3_model_close(model);
    }
}

/* ==== Refused ================================================================================= */

/* The whole message after the file's name. */
static const struct { const char *add, *drop, *want; } refused[] = {
    /* sizes */
    {"\"vocab_size\":0", "", "vocab_size: found 0, expected an integer from 1 to 2147483647"},
    {"\"vocab_size\":2147483648", "",
     "vocab_size: found 2147483648, expected an integer from 1 to 2147483647"},
    {"\"vocab_size\":99999999999999999999", "",
     "vocab_size: found 99999999999999999999, expected an integer from 1 to 2147483647"},
    {"\"hidden_size\":-40", "", "hidden_size: found -40, expected an integer from 1 to 2147483647"},
    {"\"hidden_size\":40.0", "",
     "hidden_size: found 40.0, expected an integer from 1 to 2147483647"},
    {"\"hidden_size\":\"40\"", "",
     "hidden_size: found \"40\", expected an integer from 1 to 2147483647"},
    {"\"intermediate_size\":true", "",
     "intermediate_size: found true, expected an integer from 1 to 2147483647"},
    {"\"intermediate_size\":[44]", "",
     "intermediate_size: found an array, expected an integer from 1 to 2147483647"},
    {"\"num_hidden_layers\":null", "",
     "num_hidden_layers: found null, expected an integer from 0 to 2147483647"},
    {"\"num_hidden_layers\":65536", "", "num_hidden_layers: found 65536, expected at most 65535"},
    {"\"num_attention_heads\":0", "",
     "num_attention_heads: found 0, expected an integer from 1 to 2147483647"},
    {"\"num_attention_heads\":7", "",
     "num_attention_heads: found 7, expected a multiple of num_key_value_heads"},
    {"\"num_key_value_heads\":null", "",
     "num_key_value_heads: found null, expected an integer from 1 to 2147483647"},
    {"\"num_key_value_heads\":12", "",
     "num_attention_heads: found 6, expected a multiple of num_key_value_heads"},
    {"\"head_dim\":null", "", "head_dim: found null, expected an integer from 1 to 2147483647"},
    {"\"head_dim\":7", "", "head_dim: found 7, expected an even number"},
    {"\"hidden_size\":45", " head_dim ", "head_dim is missing, and hidden_size "
     "/ num_attention_heads is not even"},
    {"\"hidden_size\":5", " head_dim ", "head_dim is missing, and hidden_size "
     "/ num_attention_heads is not even"},
    {"\"max_position_embeddings\":0", "",
     "max_position_embeddings: found 0, expected an integer from 1 to 2147483647"},
    {"\"num_experts\":-1", "", "num_experts: found -1, expected an integer from 0 to 2147483647"},
    {"\"num_experts\":2", "", "num_experts_per_tok: found 3, expected at most num_experts"},
    {"\"num_experts_per_tok\":0", "",
     "num_experts_per_tok: found 0, expected an integer from 1 to 2147483647"},
    {"\"moe_intermediate_size\":0", "",
     "moe_intermediate_size: found 0, expected an integer from 1 to 2147483647"},
    {"\"decoder_sparse_step\":0", "",
     "decoder_sparse_step: found 0, expected an integer from 1 to 2147483647"},
    {"\"vocab_size\":2147483647,\"hidden_size\":2147483647", "",
     "vocab_size: found 2147483647, expected a smaller one: its tensors would not fit 64 bits"},
    {"\"num_attention_heads\":2147483646", "",
     "num_attention_heads: found 2147483646, expected a smaller one: its tensors would not fit "
     "64 bits"},
    {"\"moe_intermediate_size\":2000000000", "",
     "moe_intermediate_size: found 2000000000, expected a smaller one: its tensors would not fit "
     "64 bits"},
    {"\"num_experts\":2147483647,\"moe_intermediate_size\":1000000000", "",
     "moe_intermediate_size: found 1000000000, expected a smaller one: its tensors would not fit "
     "64 bits"},
    /* switches and fixed values */
    {"\"norm_topk_prob\":1", "", "norm_topk_prob: found 1, expected true or false"},
    {"\"norm_topk_prob\":null", "", "norm_topk_prob: found null, expected true or false"},
    {"\"attention_bias\":\"true\"", "", "attention_bias: found \"true\", expected true or false"},
    {"\"tie_word_embeddings\":0", "", "tie_word_embeddings: found 0, expected true or false"},
    {"\"use_sliding_window\":0", "", "use_sliding_window: found 0, expected true or false"},
    {"\"use_sliding_window\":true,\"sliding_window\":0", "",
     "sliding_window: found 0, expected an integer from 1 to 2147483647"},
    {"\"sliding_window\":4096.0", "",
     "sliding_window: found 4096.0, expected an integer from 1 to 2147483647, or null"},
    {"\"rms_norm_eps\":1", "",
     "rms_norm_eps: found 1, expected a number with a point or an exponent, 0 or more"},
    {"\"rms_norm_eps\":-1e-6", "",
     "rms_norm_eps: found -1e-6, expected a number with a point or an exponent, 0 or more"},
    {"\"rms_norm_eps\":\"1e-6\"", "",
     "rms_norm_eps: found \"1e-6\", expected a number with a point or an exponent, 0 or more"},
    {"\"rms_norm_eps\":null", "",
     "rms_norm_eps: found null, expected a number with a point or an exponent, 0 or more"},
    {"\"rms_norm_eps\":1e39", "",
     "rms_norm_eps: found 1e39, expected a number with a point or an exponent, 0 or more"},
    {"\"hidden_act\":\"gelu\"", "", "hidden_act: found \"gelu\", expected \"silu\""},
    {"\"hidden_act\":null", "", "hidden_act: found null, expected \"silu\""},
    {"\"model_type\":\"qwen2\"", "",
     "model_type: found \"qwen2\", expected \"qwen3_moe\" or \"qwen3\""},
    {"", " model_type ", "model_type: found nothing, expected \"qwen3_moe\" or \"qwen3\""},
    {"\"model_type\":\"qwen3\",\"use_sliding_window\":true", "",
     "use_sliding_window: found true, expected false: a window in some layers is not computed"},
    {"\"model_type\":\"qwen3\",\"layer_types\":[\"full_attention\",\"sliding_attention\"]", "",
     "layer_types: found an array, expected \"full_attention\" in every layer"},
    {"\"model_type\":\"qwen3\",\"layer_types\":\"full_attention\"", "",
     "layer_types: found \"full_attention\", expected \"full_attention\" in every layer"},
    /* quantised weights */
    {"\"quantization_config\":null", "",
     "quantization_config: found null, expected an object, or no such key"},
    {"\"quantization_config\":{}", "",
     "quantization_config.quant_method: found nothing, expected \"fp8\": no other quantised "
     "layout of a model folder is read"},
    {"\"quantization_config\":{\"quant_method\":\"awq\"}", "",
     "quantization_config.quant_method: found \"awq\", expected \"fp8\": no other quantised "
     "layout of a model folder is read"},
    {"\"quantization_config\":{\"quant_method\":\"gptq\"}", "",
     "quantization_config.quant_method: found \"gptq\", expected \"fp8\": no other quantised "
     "layout of a model folder is read"},
    {"\"quantization_config\":{\"quant_method\":\"compressed-tensors\"}", "",
     "quantization_config.quant_method: found \"compressed-tensors\", expected \"fp8\": no other "
     "quantised layout of a model folder is read"},
    {"\"quantization_config\":{\"quant_method\":\"bitsandbytes\"}", "",
     "quantization_config.quant_method: found \"bitsandbytes\", expected \"fp8\": no other "
     "quantised layout of a model folder is read"},
    {"\"quantization_config\":{\"quant_method\":\"mxfp4\"}", "",
     "quantization_config.quant_method: found \"mxfp4\", expected \"fp8\": no other quantised "
     "layout of a model folder is read"},
    {"\"quantization_config\":{\"quant_method\":\"FP8\"}", "",
     "quantization_config.quant_method: found \"FP8\", expected \"fp8\": no other quantised "
     "layout of a model folder is read"},
    {"\"quantization_config\":{\"quant_method\":\"fp8\",\"fmt\":\"e5m2\"}", "",
     "quantization_config.fmt: found \"e5m2\", expected \"e4m3\", or no such key"},
    {"\"quantization_config\":{\"quant_method\":\"fp8\",\"activation_scheme\":\"static\"}", "",
     "quantization_config.activation_scheme: found \"static\", expected \"dynamic\": scales of "
     "activations are not read"},
    {"\"quantization_config\":{\"quant_method\":\"fp8\",\"scale_fmt\":\"ue8m0\"}", "",
     "quantization_config.scale_fmt: found \"ue8m0\", expected \"float\", or no such key"},
    {"\"quantization_config\":{\"quant_method\":\"fp8\",\"weight_block_size\":null}", "",
     "quantization_config.weight_block_size: found null, expected two integers from 1 to "
     "2147483647"},
    {"\"quantization_config\":{\"quant_method\":\"fp8\",\"weight_block_size\":[128]}", "",
     "quantization_config.weight_block_size: found an array, expected two integers from 1 to "
     "2147483647"},
    {"\"quantization_config\":{\"quant_method\":\"fp8\",\"weight_block_size\":[128,0]}", "",
     "quantization_config.weight_block_size: found an array, expected two integers from 1 to "
     "2147483647"},
    {"\"quantization_config\":{\"quant_method\":\"fp8\",\"weight_block_size\":[2147483648,1]}", "",
     "quantization_config.weight_block_size: found an array, expected two integers from 1 to "
     "2147483647"},
    {"\"quantization_config\":{\"quant_method\":\"fp8\",\"modules_to_not_convert\":\"lm_head\"}",
     "",
     "quantization_config.modules_to_not_convert: found \"lm_head\", expected a list of names of "
     "modules, or null"},
    {"\"quantization_config\":{\"quant_method\":\"fp8\",\"modules_to_not_convert\":[\"lm_head\","
     "7]}", "",
     "quantization_config.modules_to_not_convert: found 7, expected names of modules: 4.x takes "
     "them as text, 5.x as regular expressions"},
    {"\"quantization_config\":{\"quant_method\":\"fp8\",\"modules_to_not_convert\":[\"\"]}", "",
     "quantization_config.modules_to_not_convert: found \"\", expected names of modules: 4.x "
     "takes them as text, 5.x as regular expressions"},
    {"\"quantization_config\":{\"quant_method\":\"fp8\","
     "\"modules_to_not_convert\":[\"model.layers.*.mlp.gate\"]}", "",
     "quantization_config.modules_to_not_convert: found \"model.layers.*.mlp.gate\", expected "
     "names of modules: 4.x takes them as text, 5.x as regular expressions"},
    {"\"quantization_config\":{\"quant_method\":\"fp8\","
     "\"modules_to_convert\":[\"embed_tokens\"]}", "",
     "quantization_config.modules_to_convert: found an array, expected null, or no such key: 4.x "
     "ignores it"},
    {"\"quantization_config\":{\"quant_method\":\"fp8\",\"ignored_layers\":[\"lm_head\"]}", "",
     "quantization_config.ignored_layers: found an array, expected null, or no such key "
     "(modules_to_not_convert): 4.x ignores it"},
    {"\"quantization_config\":{\"quant_method\":\"fp8\",\"group_size\":128}", "",
     "quantization_config: found \"group_size\", expected keys of Hugging Face's fp8 alone"},
    {"\"per_layer_config\":{\"0\":{}}", "",
     "per_layer_config: found an object, expected no such key"},
    {"\"attention_chunk_size\":8", "", "attention_chunk_size: found 8, expected no such key"},
    {"\"is_causal\":false", "", "is_causal: found false, expected true: 4.x ignores it"},
    {"\"pad_token_id\":50", "",
     "pad_token_id: found 50, expected an integer from -vocab_size to vocab_size - 1, or null"},
    {"\"pad_token_id\":-51", "",
     "pad_token_id: found -51, expected an integer from -vocab_size to vocab_size - 1, or null"},
    {"\"pad_token_id\":1.0", "",
     "pad_token_id: found 1.0, expected an integer from -vocab_size to vocab_size - 1, or null"},
    {"\"mlp_only_layers\":3", "",
     "mlp_only_layers: found 3, expected a list of integers, or null"},
    {"\"mlp_only_layers\":[1,2.0]", "", "mlp_only_layers: found 2.0, expected integers"},
    {"\"mlp_only_layers\":[true]", "", "mlp_only_layers: found true, expected integers"},
    {"\"dtype\":\"float64\"", "",
     "dtype: found \"float64\", expected \"float32\", \"bfloat16\", \"float16\" or null"},
    {"\"torch_dtype\":\"auto\"", "",
     "torch_dtype: found \"auto\", expected \"float32\", \"bfloat16\", \"float16\" or null"},
    /* both spellings, different values */
    {"\"dtype\":\"bfloat16\",\"torch_dtype\":\"float16\"", "",
     "dtype and torch_dtype: found \"bfloat16\" and \"float16\", expected the same in both"},
    {"\"num_local_experts\":8", "",
     "num_experts and num_local_experts: found 7 and 8, expected the same in both"},
    {"\"rope_parameters\":{\"rope_theta\":5e6}", "",
     "rope_parameters.rope_theta and rope_theta: found 5e6 and 1000000.0, expected the same in "
     "both"},
    {"\"rope_parameters\":{\"rope_type\":\"linear\",\"factor\":2.0}", "",
     "rope_theta and rope_parameters: found 1000000.0 and {\"rope_type\":\"linear\","
     "\"factor\":2.0}, expected the same in both"},
    {"\"rope_parameters\":{\"rope_type\":\"linear\",\"factor\":2.0},\"rope_scaling\":null",
     " rope_theta ", "rope_scaling and rope_parameters: found null and {\"rope_type\":\"linear\","
     "\"factor\":2.0}, expected the same in both"},
    {"\"rope_parameters\":{\"rope_type\":\"linear\",\"factor\":2.0},"
     "\"rope_scaling\":{\"type\":\"linear\",\"factor\":3}", " rope_theta ",
     "rope_scaling and rope_parameters: found {\"type\":\"linear\",\"factor\":3} and "
     "{\"rope_type\":\"linear\",\"factor\":2.0}, expected the same in both"},
    {"\"rope_parameters\":{\"rope_type\":\"linear\",\"factor\":3,\"rope_theta\":5e6},"
     "\"rope_scaling\":{\"type\":\"linear\",\"factor\":3}", " rope_theta ",
     "rope_parameters.rope_theta: found 5e6, expected 10000, since there is none "
     "beside rope_scaling"},
    /* RoPE */
    {"\"rope_theta\":1.0", "", "rope_theta: found 1.0, expected a number above 1, up to 1e30"},
    {"\"rope_theta\":0", "", "rope_theta: found 0, expected a number above 1, up to 1e30"},
    {"\"rope_theta\":1e31", "", "rope_theta: found 1e31, expected a number above 1, up to 1e30"},
    {"\"rope_theta\":null", "", "rope_theta: found null, expected a number above 1, up to 1e30"},
    {"\"rope_theta\":\"1e6\"", "",
     "rope_theta: found \"1e6\", expected a number above 1, up to 1e30"},
    {"\"partial_rotary_factor\":0.5", "",
     "partial_rotary_factor: found 0.5, expected 1, or no such key"},
    {"\"partial_rotary_factor\":null", "",
     "partial_rotary_factor: found null, expected 1, or no such key"},
    {"\"rope_scaling\":{\"type\":\"linear\",\"factor\":2,\"partial_rotary_factor\":0.25}", "",
     "rope_scaling.partial_rotary_factor: found 0.25, expected 1, or no such key"},
    {"\"rope_parameters\":{\"rope_theta\":1e6,\"partial_rotary_factor\":0.25}", "",
     "rope_parameters.partial_rotary_factor: found 0.25, expected 1, or no such key"},
    {"\"rope_scaling\":{}", "", "rope_scaling.rope_type: found nothing, expected \"default\", "
     "\"linear\", \"dynamic\", \"yarn\" or \"llama3\""},
    {"\"rope_scaling\":{\"factor\":2.0}", "", "rope_scaling.rope_type: found nothing, expected "
     "\"default\", \"linear\", \"dynamic\", \"yarn\" or \"llama3\""},
    {"\"rope_scaling\":{\"rope_type\":\"longrope\"}", "", "rope_scaling.rope_type: found "
     "\"longrope\", expected \"default\", \"linear\", \"dynamic\", \"yarn\" or \"llama3\""},
    {"\"rope_scaling\":{\"type\":\"su\"}", "", "rope_scaling.type: found \"su\", expected "
     "\"default\", \"linear\", \"dynamic\", \"yarn\" or \"llama3\""},
    {"\"rope_parameters\":{\"rope_type\":null}", "", "rope_parameters.rope_type: found null, "
     "expected \"default\", \"linear\", \"dynamic\", \"yarn\" or \"llama3\""},
    {"\"rope_scaling\":{\"type\":\"linear\",\"rope_type\":\"yarn\",\"factor\":2.0}", "",
     "rope_scaling.rope_type and rope_scaling.type: found \"yarn\" and \"linear\", expected the "
     "same in both"},
    {"\"rope_scaling\":\"yarn\"", "", "rope_scaling: found \"yarn\", expected an object or null"},
    {"\"rope_parameters\":[]", "", "rope_parameters: found an array, expected an object"},
    {"\"rope_parameters\":{\"full_attention\":{\"rope_type\":\"default\"}}", " rope_theta ",
     "rope_parameters: found an object, expected one set of parameters for all layers"},
    {"\"rope_scaling\":{\"type\":\"linear\"}", "",
     "rope_scaling.factor: found nothing, expected a number from 1 to 1e30"},
    {"\"rope_scaling\":{\"type\":\"linear\",\"factor\":null}", "",
     "rope_scaling.factor: found null, expected a number from 1 to 1e30"},
    {"\"rope_scaling\":{\"type\":\"linear\",\"factor\":0.99}", "",
     "rope_scaling.factor: found 0.99, expected a number from 1 to 1e30"},
    {"\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":null}", "",
     "rope_scaling.factor: found null, expected a number from 1 to 1e30"},
    {"\"rope_scaling\":{\"type\":\"linear\",\"factor\":2.0,\"rope_theta\":5e6}", "",
     "rope_theta and rope_scaling.rope_theta: found 1000000.0 and 5e6, expected the same in both"},
    {"\"rope_scaling\":{\"type\":\"linear\",\"factor\":2.0,\"rope_theta\":5e6}", " rope_theta ",
     "rope_scaling.rope_theta: found 5e6, expected rope_theta beside "
     "rope_scaling, not inside it"},
    {"\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":2.0},\"head_dim\":2", "",
     "head_dim: found 2, expected at least 4 with dynamic RoPE"},
    {"\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":1e30}", "",
     "rope_theta: found 1000000.0, expected a smaller one: with this factor dynamic RoPE "
     "grows beyond float32"},
    {"\"rope_parameters\":{\"type\":\"dynamic\",\"factor\":1e30,\"rope_theta\":2e6}",
     " rope_theta ", "rope_parameters.rope_theta: found 2e6, expected a smaller one: with this "
     "factor dynamic RoPE grows beyond float32"},
    {"\"rope_scaling\":{\"type\":\"yarn\",\"factor\":2.0,\"beta_fast\":1e-30},"
     "\"rope_theta\":1.0000000000000002", "",
     "rope_theta: found 1.0000000000000002, expected a larger one: YaRN's ramp would end beyond "
     "2^52 dimensions"},
    {"\"rope_scaling\":{\"type\":\"yarn\",\"factor\":2.0,\"beta_slow\":1e30},"
     "\"rope_theta\":1.0000000000000002", "",
     "rope_theta: found 1.0000000000000002, expected a larger one: YaRN's ramp would end beyond "
     "2^52 dimensions"},
    {"\"rope_scaling\":{\"type\":\"llama3\",\"factor\":2.0,\"low_freq_factor\":159.154942,"
     "\"high_freq_factor\":159.154944,\"original_max_position_embeddings\":1000}", "",
     "rope_scaling.high_freq_factor: found 159.154944, expected at least twice low_freq_factor, or "
     "2^-18 of itself above it and at most original_max_position_embeddings / 7"},
    {"\"rope_scaling\":{\"type\":\"yarn\",\"factor\":2.0,"
     "\"original_max_position_embeddings\":null}", "",
     "rope_scaling.original_max_position_embeddings: found null, expected an integer from 1 to "
     "2147483647"},
    {"\"rope_scaling\":{\"type\":\"yarn\",\"factor\":2.0,\"original_max_position_embeddings\":0}",
     "", "rope_scaling.original_max_position_embeddings: found 0, expected an integer from 1 to "
     "2147483647"},
    {"\"rope_scaling\":{\"type\":\"yarn\",\"factor\":2.0},\"original_max_position_embeddings\":512",
     "", "original_max_position_embeddings: found 512, expected no such key, or the same as in "
     "rope_scaling"},
    {"\"rope_scaling\":{\"type\":\"yarn\",\"factor\":2.0,\"beta_fast\":-1}", "",
     "rope_scaling.beta_fast: found -1, expected a number from 1e-30 to 1e30, 0 or null"},
    {"\"rope_scaling\":{\"type\":\"yarn\",\"factor\":2.0,\"beta_slow\":1e-31}", "",
     "rope_scaling.beta_slow: found 1e-31, expected a number from 1e-30 to 1e30, 0 or null"},
    {"\"rope_scaling\":{\"type\":\"yarn\",\"factor\":2.0,\"mscale\":\"1\"}", "",
     "rope_scaling.mscale: found \"1\", expected a number from 1e-30 to 1e30, 0 or null"},
    {"\"rope_scaling\":{\"type\":\"yarn\",\"factor\":2.0,\"mscale_all_dim\":false}", "",
     "rope_scaling.mscale_all_dim: found false, expected a number from 1e-30 to 1e30, 0 or null"},
    {"\"rope_scaling\":{\"type\":\"yarn\",\"factor\":2.0,\"attention_factor\":-1.0}", "",
     "rope_scaling.attention_factor: found -1.0, expected a number from 0 to 1e30, or null"},
    {"\"rope_scaling\":{\"type\":\"yarn\",\"factor\":2.0,\"truncate\":0}", "",
     "rope_scaling.truncate: found 0, expected true or false"},
    {"\"rope_scaling\":{\"type\":\"llama3\",\"factor\":2.0,\"low_freq_factor\":1.0,"
     "\"high_freq_factor\":4.0}", "", "rope_scaling.original_max_position_embeddings: found "
     "nothing, expected an integer from 1 to 2147483647"},
    {"\"rope_scaling\":{\"type\":\"llama3\",\"factor\":2.0,\"low_freq_factor\":0.0,"
     "\"high_freq_factor\":4.0,\"original_max_position_embeddings\":512}", "",
     "rope_scaling.low_freq_factor: found 0.0, expected a number from 1e-30 to 1e30"},
    {"\"rope_scaling\":{\"type\":\"llama3\",\"factor\":2.0,\"low_freq_factor\":1.0,"
     "\"original_max_position_embeddings\":512}", "",
     "rope_scaling.high_freq_factor: found nothing, expected a number from 1e-30 to 1e30"},
    {"\"rope_scaling\":{\"type\":\"llama3\",\"factor\":2.0,\"low_freq_factor\":4.0,"
     "\"high_freq_factor\":4.0,\"original_max_position_embeddings\":512}", "",
     "rope_scaling.high_freq_factor: found 4.0, expected more than low_freq_factor"},
};

static void check_refused(void)
{
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        char want[600];
        q3_error error;
        write_config(refused[i].add, refused[i].drop);
        q3_model *model = open_config(&error);
        snprintf(want, sizeof want, "%s: %s", folder_path("config.json"), refused[i].want);
        CHECKF(strcmp(error.text, want) == 0, "case %lu {%s}: got \"%s\", want \"%s\"",
               (unsigned long)i, refused[i].add, error.text, want);
        q3_model_close(model);
    }
}

/* ==== fields, files, golden configurations ==================================================== */

/* Every field of a configuration in which no two values are alike. */
static void check_fields(void)
{
    q3_error error;
    write_config("\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":4.5,\"beta_fast\":20,"
                 "\"beta_slow\":2,\"attention_factor\":0.75,\"mscale\":0.5,\"mscale_all_dim\":0.25,"
                 "\"truncate\":false,\"original_max_position_embeddings\":1024},"
                 "\"mlp_only_layers\":[2,1],\"decoder_sparse_step\":9,\"attention_bias\":true,"
                 "\"use_sliding_window\":true,\"sliding_window\":33,\"pad_token_id\":-3", "");
    q3_model *model = open_config(&error);
    CHECKF(model != NULL, "%s", error.text);
    if (model == NULL) return;
    const q3_config *c = q3_model_config(model);
    CHECK(c->vocab_size == 50 && c->hidden_size == 40 && c->intermediate_size == 44);
    CHECK(c->num_hidden_layers == 4 && c->num_attention_heads == 6 && c->num_key_value_heads == 2);
    CHECK(c->head_dim == 8 && c->max_position_embeddings == 4096 && c->num_experts == 7);
    CHECK(c->num_experts_per_tok == 3 && c->moe_intermediate_size == 18);
    CHECK(c->decoder_sparse_step == 9 && c->sliding_window == 33 && c->pad_token_id == 47);
    CHECK(c->rms_norm_eps == 1e-6 && c->norm_topk_prob && c->attention_bias);
    CHECK(!c->tie_word_embeddings && c->mlp_only_count == 2 && c->mlp_only_layers[0] == 1 &&
          c->mlp_only_layers[1] == 2);
    CHECK(c->rope.type == Q3_ROPE_YARN && c->rope.rope_theta == 1e6 && c->rope.factor == 4.5);
    CHECK(c->rope.original_max_position_embeddings == 1024.0 && c->rope.has_attention_factor);
    CHECK(c->rope.attention_factor == 0.75 && c->rope.beta_fast == 20.0 &&
          c->rope.beta_slow == 2.0);
    CHECK(c->rope.mscale == 0.5 && c->rope.mscale_all_dim == 0.25 && !c->rope.truncate);
    q3_model_close(model);
    write_config("\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8.0,"
                 "\"low_freq_factor\":1.5,\"high_freq_factor\":4.25,"
                 "\"original_max_position_embeddings\":512},"
                 "\"pad_token_id\":-0", "");
    model = open_config(&error);
    CHECKF(model != NULL, "%s", error.text);
    if (model == NULL) return;
    c = q3_model_config(model);
    CHECK(c->rope.low_freq_factor == 1.5 && c->rope.high_freq_factor == 4.25);
    CHECK(c->pad_token_id == 0);
    q3_model_close(model);
}

/* The message of a path that is no configuration has the path and the text. */
static void check_path(const char *path, const char *text)
{
    q3_model *model = NULL;
    q3_error error = {""};
    CHECK(q3_model_open(&model, path, &error) != Q3_OK && model == NULL);
    CHECKF(strstr(error.text, path) != NULL && strstr(error.text, text) != NULL,
           "got \"%s\", want \"%s\" in it", error.text, text);
}

static void check_files(void)
{
    static const char *const broken[] = {"", "[]", "7", "{\"vocab_size\":1,", "{\"a\":1}x",
                                         "\xEF\xBB\xBF{}", "{\"a\":NaN}", "{'a':1}",
                                         "\xFF\xFE{"};
    folder_empty();
    check_path(folder_path("absent"), "absent: no such model folder, config.json or GGUF file");
    check_path(folder.path, "/config.json: no such file");
    for (size_t i = 0; i < sizeof broken / sizeof *broken; i++) {
        folder_write("config.json", broken[i], strlen(broken[i]));
        check_path(folder_path("config.json"), ": found ");
        check_path(folder.path, "/config.json: ");
    }
    folder_write("config.json", "{\"vocab_size\":5,\"vocab_size\":5}", 31);
    check_path(folder_path("config.json"), "once");
}

/* The configurations of the golden runs: the metadata of their tensors holds the line of JSON as
 * Python wrote it. */
static void check_golden(const char *golden)
{
    static const char *const names[] = {
        "all-experts", "base", "bias", "eps", "every-head-its-own", "head-dim-absent", "long-rows",
        "mlp-only", "negative-router", "no-experts", "no-renormalise", "odd-sizes",
        "one-expert-of-many", "one-expert-renormalised", "one-kv-head", "positions", "rope-absent",
        "rope-dynamic", "rope-dynamic-short", "rope-linear", "rope-llama3", "rope-yarn",
        "rope-yarn-attention-factor", "rope-yarn-mscale", "rope-yarn-not-truncated", "sparse-step",
        "spelling-5", "spelling-5-yarn", "step-and-mlp-only", "tied", "wide-router", "window",
        "window-ignored", "window-three"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char path[512];
        q3_model *model = NULL;
        q3_tensors *tensors = NULL;
        q3_error error = {""};
        snprintf(path, sizeof path, "%s/hf/%s/config.json", golden, names[i]);
        CHECKF(q3_model_open(&model, path, &error) == Q3_OK, "%s", error.text);
        snprintf(path, sizeof path, "%s/hf/%s/taps-float32.safetensors", golden, names[i]);
        CHECKF(q3_tensors_open(&tensors, path, &error) == Q3_OK, "%s", error.text);
        if (model != NULL && tensors != NULL) {
            const char *line = q3_tensors_metadata(tensors, "config");
            CHECKF(line != NULL, "%s", names[i]);
            if (line != NULL) CHECK_TEXT(q3_model_config_json(model), line);
        }
        q3_model_close(model);
        q3_tensors_close(tensors);
    }
}

/* Random changes of bytes: never a crash, and one line that names the file where it is refused. */
static void check_mutations(void)
{
    static const char text[] =
        "{\"model_type\":\"qwen3_moe\",\"vocab_size\":50,\"num_local_experts\":7,"
        "\"num_experts_per_tok\":3,\"mlp_only_layers\":[1,2],\"dtype\":\"bfloat16\","
        "\"rope_parameters\":{\"rope_type\":\"yarn\",\"factor\":4.0,\"rope_theta\":1e6,"
        "\"original_max_position_embeddings\":512,\"beta_fast\":32,\"truncate\":true}}";
    static const char bytes[] = "{}[]\",:0123456789.eE-+ntf\\u\n ";
    uint32_t random = 1;
    size_t opened = 0;
    for (size_t i = 0; i < 2000; i++) {
        char copy[sizeof text];
        q3_error error;
        memcpy(copy, text, sizeof text);
        for (size_t k = 0; k < 1 + i % 3; k++) {
            random = random * 1664525u + 1013904223u;
            copy[(random >> 8) % (sizeof text - 1)] = bytes[(random >> 24) % (sizeof bytes - 1)];
        }
        folder_write("config.json", copy, sizeof text - 1);
        q3_model *model = open_config(&error);
        opened += model != NULL;
        CHECKF(model != NULL || strncmp(error.text, folder.path, strlen(folder.path)) == 0,
               "%s: %s", copy, error.text);
        CHECKF(strchr(error.text, '\n') == NULL, "%s", error.text);
        q3_model_close(model);
    }
    CHECK(opened > 100 && opened < 1900);
}

/* Whatever is accepted can be computed: frequencies of any parameters, angles at the last position.
 * (A precondition of the core that is broken stops the program.) */
static void check_computed(void)
{
    static const double sizes[] = {1e-30, 1e-9, 0.5, 1, 1.0000000000000002, 1.001, 2, 6.5, 159.155,
                                   1e4, 1e15, 1e30};
    static const char *const types[] = {"linear", "dynamic", "yarn", "llama3"};
    uint64_t seed = 11;
    size_t computed = 0;
    for (size_t n = 0; n < 4000; n++) {
        double value[8];
        char add[900];
        float inv[32], cos[64], sin[64];
        q3_error error;
        for (size_t i = 0; i < 8; i++) {
            uint64_t u = (seed = seed * 6364136223846793005u + 1442695040888963407u) >> 33;
            value[i] = sizes[u % 12] * (u >> 8 & 1 ? 1 + 0x1p-20 * (double)(u >> 9 & 7) : 1);
        }
        unsigned long original = n % 3 == 0 ? 7 : n % 3 == 1 ? 1000 : 2147483647;
        /* 2 pi, the first frequency's period, in llama3's step */
        double near = 1 - 0x1p-18 * (double)(n / 8 % 8);
        if (n % 8 == 7) value[3] = (double)original / 6.2831855 * near;
        snprintf(add, sizeof add,
                 "\"rope_scaling\":{\"type\":\"%s\",\"factor\":%.17g,\"beta_fast\":%.17g,"
                 "\"beta_slow\":%.17g,\"low_freq_factor\":%.17g,\"high_freq_factor\":%.17g,"
                 "\"mscale\":%.17g,\"truncate\":%s,\"original_max_position_embeddings\":%lu},"
                 "\"rope_theta\":%.17g,\"head_dim\":%d,\"max_position_embeddings\":%d",
                 types[n % 4], value[0] < 1 ? 1 : value[0], value[1], value[2], value[3],
                 n % 8 < 4 ? value[4] : value[3] * (1 + 0x1p-16), value[5],
                 n % 5 == 0 ? "false" : "true", original, value[6], n % 7 == 0 ? 4 : 64,
                 n % 2 == 0 ? 2 : 4096);
        write_config(add, "");
        q3_model *model = open_config(&error);
        if (model == NULL) continue;
        const q3_config *c = q3_model_config(model);
        const size_t lengths[] = {1, 100, Q3_MAX_POSITIONS};
        for (size_t i = 0; i < 3; i++) {
            float scaling = q3_rope_frequencies(inv, &c->rope, c->head_dim,
                                                c->max_position_embeddings, lengths[i]);
            q3_rope_table(cos, sin, inv, scaling, 1, lengths[i] - 1, c->head_dim, Q3_F32);
            computed++;
        }
        q3_model_close(model);
    }
    CHECK(computed > 2000);
}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: test_config GOLDEN\n");
        return 2;
    }
    folder_make("test_config.tmp");
    check_accepted();
    check_refused();
    check_fields();
    check_files();
    check_golden(argv[1]);
    check_mutations();
    check_computed();
    folder_remove();
    return t_done("config");
}
