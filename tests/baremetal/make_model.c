/* SPDX-License-Identifier: MIT */
/* Prints the weights of the small model of tests/platforms/core.h as a C array, for boards that
 * keep them in flash. Runs on the machine that builds. */
#include "../platforms/core.h"

#include <stdio.h>

int main(void)
{
    static uint8_t blob[CORE_BLOB_SIZE];
    static core_model model;
    (void)core_all;
    core_model_make(&model, blob, blob);
    if (model.used != sizeof blob) {
        fprintf(stderr, "model: found %lu bytes, expected %lu\n", (unsigned long)model.used,
                (unsigned long)sizeof blob);
        return 1;
    }
    printf("/* Made by make_model.c. */\nstatic const unsigned char model_data[%lu] = {",
           (unsigned long)sizeof blob);
    for (size_t i = 0; i < sizeof blob; i++) printf("%s%d,", i % 20 == 0 ? "\n" : "", blob[i]);
    printf("\n};\n");
    return 0;
}
