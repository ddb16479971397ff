/* SPDX-License-Identifier: MIT */
/* A caller that changed the rounding mode is refused, at state creation and at each call; used by
 * scripts/ci/guards.sh. Prints one line a case, exits 1 if one was not refused. */
#include "qwen3moe.h"

#include <fenv.h>
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
    static const int modes[] = {FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO};
    static const int32_t ids[] = {1, 2, 3};
    q3_model *model;
    q3_error error;
    q3_dtype dtype = Q3_F32;
    int failed = 0;
    if (argc != 2 || q3_model_open(&model, argv[1], &error) != Q3_OK) return 1;
    const q3_config *config = q3_model_config(model);
    q3_run run = {.dtype = dtype, .end_layer = config->num_hidden_layers, .rows = 9, .chunk = 3};
    if (q3_model_load(model, &dtype, 0, run.end_layer, &error) != Q3_OK) return 1;
    size_t size = q3_state_size(config, &run);
    void *memory = malloc(size);
    q3_input input = {.tokens = ids, .count = 3, .logit_rows = 1};
    q3_state *state = q3_state_init(memory, size, config, q3_model_weights(model), &run);
    if (state == NULL || q3_forward(state, &input, NULL, NULL, &error) != Q3_OK) return 1;
    for (size_t i = 0; i < 3; i++) {
        fesetround(modes[i]);
        q3_status status = q3_forward(state, &input, NULL, NULL, &error);
        const char *broken = q3_selftest();
        fesetround(FE_TONEAREST);
        int refused = status == Q3_ERROR_ARITHMETIC && broken != NULL && q3_cached(state) == 3;
        printf("rounding mode %lu: %s\n", (unsigned long)i, refused ? error.text : "not refused");
        failed |= !refused;
    }
    failed |= q3_forward(state, &input, NULL, NULL, &error) != Q3_OK;
    free(memory);
    q3_model_close(model);
    return failed;
}
