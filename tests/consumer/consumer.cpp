/* SPDX-License-Identifier: MIT */
// The same from C++: the header must compile there, and its functions must be found.
#include <qwen3moe.h>

#include <cstdio>

int main(int argc, char **argv)
{
    q3_model *model;
    q3_error error;
    q3_counts counts;
    if (argc != 2 || q3_model_open(&model, argv[1], &error) != Q3_OK) return 2;
    if (!q3_count(&counts, q3_model_config(model))) return 2;
    unsigned long long parameters = counts.parameters;
    std::printf("%s %llu %g\n", q3_version(), parameters, q3_exp(0.0));
    q3_model_close(model);
    return 0;
}
