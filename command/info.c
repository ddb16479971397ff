/* SPDX-License-Identifier: MIT */
/* info.c - `qwen3moe info`: the module tree and the counts, from config.json alone. */
#include "command/command.h"

#include <stdlib.h>

/* Sizes in bytes are those of the config's dtype, or of float32 if it names none. */
q3_status verb_info(const command_line *command, q3_error *error)
{
    q3_model *model;
    q3_counts counts;
    q3_status status = q3_model_open(&model, command->model, error);
    if (status != Q3_OK) return status;
    const q3_config *config = q3_model_config(model);
    q3_dtype dtype = q3_model_dtype(model);
    if (dtype == Q3_AUTO) dtype = Q3_F32; /* what transformers 4.x takes */
    unsigned long long size = q3_dtype_size(dtype);
    bool fp8 = q3_model_is_fp8(model);
    char *tree = q3_module_tree(config);
    if (tree == NULL)
        status = q3_no_memory(error, command->model);
    else if (!q3_count(&counts, config))
        status = q3_fail(error, Q3_ERROR_INPUT, "%s: the counts do not fit 64 bits",
                         command->model);
    if (status == Q3_OK) {
        unsigned long long parameters = counts.parameters, active = counts.active_per_token;
        unsigned long long cache = counts.key_value_elements_per_token * size;
        if (command->value[OPTION_JSON] == NULL)
            printf("%s\nparameters %llu\nactive per token %llu\nweights %s %llu\n"
                   "key/value per token %llu\n%s",
                   tree, parameters, active, q3_dtype_name(dtype), parameters * size, cache,
                   fp8 ? "quantised fp8: the linear maps take a byte for each weight\n" : "");
        else
            printf("{\"config\":%s,\"parameters\":%llu,\"active_per_token\":%llu,"
                   "\"weights_dtype\":\"%s\",\"weights_bytes\":%llu,"
                   "\"key_value_bytes_per_token\":%llu%s}\n",
                   q3_model_config_json(model), parameters, active, q3_dtype_name(dtype),
                   parameters * size, cache, fp8 ? ",\"quantised\":\"fp8\"" : "");
    }
    free(tree);
    q3_model_close(model);
    return status;
}
