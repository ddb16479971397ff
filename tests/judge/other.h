/* SPDX-License-Identifier: MIT */
/* other.h - files of another implementation, written by tensors.h for a small model, and opened.
 * They lie in a folder backend.tmp or names.tmp of the working directory: who includes this
 * defines FOLDER. */
#ifndef Q3_TESTS_OTHER_H
#define Q3_TESTS_OTHER_H

#include "tensors.h"

#include "judge/backend.h"

#include <sys/stat.h>

#define COUNT(array) (sizeof (array) / sizeof (array)[0])
#define PATH FOLDER "/other.safetensors"

/* H, K, hd, M, V, E, A, F, I: all different, and different from T = 9; layer 1 is dense. */
enum { H = 6, K = 2, HD = 4, M = 11, V = 29, E = 5, A = 3, F = 7, I = 13, T = 9 };

static const char config_text[] =
    "{\"model_type\":\"qwen3_moe\",\"vocab_size\":29,\"hidden_size\":11,\"intermediate_size\":13,"
    "\"num_hidden_layers\":2,\"num_attention_heads\":6,\"num_key_value_heads\":2,\"head_dim\":4,"
    "\"num_experts\":5,\"num_experts_per_tok\":3,\"moe_intermediate_size\":7,\"mlp_only_layers\":["
    "1],"
    "\"norm_topk_prob\":true,\"rms_norm_eps\":1e-06,\"max_position_embeddings\":64}";

static inline q3_status open_file(backend *b, const char *path, const q3_model *of, q3_error *error)
{
    q3_status status = q3_backend_init(b, q3_model_config(of), path, error);
    if (status == Q3_OK) status = q3_backend_add_file(b, path, error);
    if (status == Q3_OK) status = q3_backend_read(b, error);
    if (status != Q3_OK) q3_backend_close(b);
    return status;
}

/* The model of config_text. NULL, a failed check: it did not open. */
static inline q3_model *open_model(void)
{
    q3_model *opened = NULL;
    q3_error error = {""};
    mkdir(FOLDER, 0777);
    FILE *f = fopen(FOLDER "/config.json", "wb");
    fputs(config_text, f);
    CHECK(fclose(f) == 0);
    CHECKF(q3_model_open(&opened, FOLDER "/config.json", &error) == Q3_OK, "%s", error.text);
    return opened;
}

#endif
