/* SPDX-License-Identifier: MIT */
/* Another project's program, for scripts/ci/install_test.sh: uses the installed header and library.
 * consumer CONFIG.JSON prints the number of parameters. */
#include <qwen3moe.h>

#include <stdio.h>

int main(int argc, char **argv)
{
    q3_model *model;
    q3_error error;
    q3_counts counts;
    if (argc != 2 || q3_model_open(&model, argv[1], &error) != Q3_OK) {
        puts(argc != 2 ? "usage: consumer CONFIG.JSON" : error.text);
        return 2;
    }
    if (!q3_count(&counts, q3_model_config(model))) return 2;
    printf("%s %llu %g\n", q3_version(), (unsigned long long)counts.parameters, q3_exp(0.0));
    q3_model_close(model);
    return 0;
}
