/* SPDX-License-Identifier: MIT */
/* Writes golden/math/: inputs and correctly rounded results as hexadecimal bits, from MPFR alone.
 * usage: make_golden HARD.TXT FOLDER */
#include "reference.h"

#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static FILE *create(const char *folder, const char *name, const char *heading)
{
    char path[1024];
    snprintf(path, sizeof path, "%s/%s.txt", folder, name);
    FILE *file = fopen(path, "w");
    if (file == NULL) {
        perror(path);
        exit(2);
    }
    fprintf(file, "# %s; bits in hexadecimal, rounded correctly by MPFR.\n", heading);
    return file;
}

static bool in_domain(function f, float x)
{
    return f == F_EXP || f == F_SILU || fabsf(x) <= 0x1p20f;
}

static void put_f32(FILE *file, function f, float x)
{
    if (!in_domain(f, x) || !isfinite(x)) return;
    fprintf(file, "%08x %08x\n", bits32(x), bits32((float)correct(f, (double)x, 0.0, F32)));
}

/* The float32 inputs nearest to a multiple of pi/2, where reduction loses most. */
static void put_multiples(FILE *file, function f)
{
    enum { KEPT = 40 };
    static struct { double distance; float x; } best[KEPT];
    for (int i = 0; i < KEPT; i++) best[i].distance = 1.0;
    const long double half_pi = 0xc.90fdaa22168c235p-3L;
    for (int k = 1; k < 667544; k++) {
        float x = (float)(k * half_pi);
        double distance = (double)(fabsl((long double)x - k * half_pi) / k);
        if (distance >= best[KEPT - 1].distance) continue;
        int i = KEPT - 1;
        for (; i > 0 && distance < best[i - 1].distance; i--) best[i] = best[i - 1];
        best[i].distance = distance;
        best[i].x = x;
    }
    for (int i = 0; i < KEPT; i++) put_f32(file, f, best[i].x);
}

static void put_hard(FILE *file, function f, const char *name, const char *hard)
{
    char line[256], found[16];
    unsigned bits;
    FILE *list = fopen(hard, "r");
    if (list == NULL) {
        perror(hard);
        exit(2);
    }
    while (fgets(line, sizeof line, list) != NULL)
        if (sscanf(line, "%15s %x", found, &bits) == 2 && strcmp(found, name) == 0) {
            put_f32(file, f, from32(bits));
            put_f32(file, f, -from32(bits));
        }
    fclose(list);
}

/* Zeros, subnormals, powers of two and their neighbours, the ends of the domain, the hardest
 * inputs, and random ones of every exponent and of the exponents that matter. */
static void write_f32(function f, const char *name, const char *hard, const char *folder)
{
    static const float ends[] = {88.722839f, 88.72284f, -87.336548f, -87.336544f, -103.27893f,
                                 -103.972084f, -103.97208f, -103.97f, -104.0f, -745.0f, -800.0f,
                                 709.0f, 17.328680f, -17.328680f, 0x1.fffffep19f, 0x1p20f,
                                 0x1.333330p13f};
    FILE *file = create(folder, name, "float32 input and result");
    uint64_t state = 1;
    put_hard(file, f, name, hard);
    for (int sign = 0; sign < 2; sign++) {
        for (uint32_t e = 0; e < 255; e++)
            for (uint32_t d = 0; d < 3; d++) {
                if (e < 90 && e > 3 && e % 8 != 0) continue;
                if (e + d == 0) continue;
                put_f32(file, f, from32((uint32_t)sign << 31 | ((e << 23) + d - 1)));
            }
        put_f32(file, f, sign ? -0.0f : 0.0f);
        put_f32(file, f, from32((uint32_t)sign << 31 | 1));
    }
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) put_f32(file, f, ends[i]);
    if (f == F_SIN || f == F_COS) put_multiples(file, f);
    for (int i = 0; i < 200; i++) put_f32(file, f, from32((uint32_t)(next_random(&state) >> 32)));
    for (int i = 0; i < 500; i++) put_f32(file, f, (float)random_between(&state, -110.0, 110.0));
    for (int i = 0; i < 200; i++)
        put_f32(file, f, (float)ldexp(random_between(&state, -2.0, 2.0), i % 40 - 20));
    fclose(file);
}

static void put_f64(FILE *file, function f, double x)
{
    fprintf(file, "%016llx %016llx\n", (unsigned long long)bits64(x),
            (unsigned long long)bits64(correct(f, x, 0.0, F64)));
}

/* Ends of the reduction's intervals ((k + 1/2) ln 2) and their neighbours, tiny arguments,
 * overflow, subnormal results, random ones. */
static void write_exp(const char *folder)
{
    FILE *file = create(folder, "exp_float64", "float64 x and exp(x)");
    uint64_t state = 2;
    for (int k = -1075; k <= 1023; k += 7)
        for (int d = -1; d <= 1; d++) {
            double x = (k + 0.5) * 0x1.62e42fefa39efp-1;
            put_f64(file, F_EXP, from64(bits64(x) + (uint64_t)(int64_t)d));
        }
    for (int e = -1074; e <= 9; e += e < -60 ? 97 : 1) {
        put_f64(file, F_EXP, ldexp(1.0, e));
        put_f64(file, F_EXP, -ldexp(1.0, e));
    }
    static const double ends[] = {0.0, -0.0, 709.782712893384, 709.7827128933841, 709.79,
                                  -708.3964185322641, -708.396418532264, -744.4400719213812,
                                  -745.1332191019411, -745.1332191019412, -745.2, -746.0, 1000.0,
                                  -1000.0};
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) put_f64(file, F_EXP, ends[i]);
    for (int i = 0; i < 400; i++) put_f64(file, F_EXP, random_between(&state, -745.0, 709.7));
    for (int i = 0; i < 400; i++) put_f64(file, F_EXP, random_between(&state, -40.0, 0.0));
    for (int i = 0; i < 200; i++) put_f64(file, F_EXP, random_between(&state, -745.13, -708.4));
    fclose(file);
}

static void write_log(const char *folder)
{
    FILE *file = create(folder, "log_float64", "float64 x and log(x)");
    uint64_t state = 3;
    for (int e = -1022; e <= 1023; e += 11) put_f64(file, F_LOG, ldexp(1.0, e));
    for (int i = 1; i <= 60; i++) {
        put_f64(file, F_LOG, 1.0 + ldexp(1.0, -i));
        put_f64(file, F_LOG, 1.0 - ldexp(1.0, -i));
        put_f64(file, F_LOG, from64(bits64(0x1.6a09e667f3bcdp+0) + (uint64_t)(int64_t)(i - 30)));
    }
    for (int i = 0; i < 400; i++)
        put_f64(file, F_LOG, ldexp(random_between(&state, 1.0, 2.0), i - 200));
    for (int i = 0; i < 400; i++) put_f64(file, F_LOG, random_between(&state, 0.5, 2.0));
    fclose(file);
}

/* Squares and the squares of the middles of two results, where rounding decides; their
 * neighbours. */
static void write_sqrt(const char *folder)
{
    FILE *file = create(folder, "sqrt_float64", "float64 x and sqrt(x)");
    uint64_t state = 4;
    for (int i = 0; i < 300; i++) {
        double root = random_between(&state, 1.0, 2.0);
        long double middle = (long double)root + 0x1p-53L;
        int e = i < 150 ? 2 * (i - 75) : 0;
        for (int d = -1; d <= 1; d++) {
            double x = from64(bits64((double)(middle * middle)) + (uint64_t)(int64_t)d);
            put_f64(file, F_SQRT, ldexp(x, e));
        }
        double small = (double)(float)root;
        for (int d = -1; d <= 1; d++)
            put_f64(file, F_SQRT, from64(bits64(small * small) + (uint64_t)(int64_t)d));
    }
    for (int i = 0; i < 300; i++)
        put_f64(file, F_SQRT, from64(next_random(&state) % UINT64_C(0x7FF0000000000000)));
    for (int i = 0; i < 100; i++)
        put_f64(file, F_SQRT, from64(next_random(&state) >> (12 + i % 52)));
    for (int i = 1; i <= 100; i++) put_f64(file, F_SQRT, i);
    put_f64(file, F_SQRT, 0.0);
    put_f64(file, F_SQRT, -0.0);
    put_f64(file, F_SQRT, 0x1.fffffffffffffp+1023);
    fclose(file);
}

static void put_pow(FILE *file, float base, float y)
{
    fprintf(file, "%08x %08x %08x\n", bits32(base), bits32(y),
            bits32((float)correct(F_POW, (double)base, (double)y, F32)));
}

/* theta^(2j/hd) of the published models, and the growth of dynamic RoPE. */
static void write_pow(const char *folder)
{
    static const float thetas[] = {1e4f, 5e5f, 1e6f, 5e6f, 1e7f};
    static const int heads[] = {64, 80, 128, 96};
    FILE *file = create(folder, "pow_float32", "float32 base, exponent and power");
    uint64_t state = 5;
    for (size_t t = 0; t < sizeof thetas / sizeof *thetas; t++)
        for (size_t h = 0; h < sizeof heads / sizeof *heads; h++)
            for (int j = 0; j < heads[h] / 2; j++)
                put_pow(file, thetas[t], (float)(2 * j) / (float)heads[h]);
    for (int i = 0; i < 300; i++)
        put_pow(file, (float)random_between(&state, 1.0, 64.0),
                128.0f / (float)(126 - 2 * (i % 60)));
    for (int i = 0; i < 300; i++)
        put_pow(file, (float)ldexp(random_between(&state, 1.0, 2.0), i % 20 - 10),
                (float)random_between(&state, -5.0, 5.0));
    fclose(file);
}

static void write_scale(const char *folder)
{
    FILE *file = create(folder, "scale_float32", "head_dim and float32 head_dim^-0.5");
    for (int hd = 2; hd <= 4096; hd += 2)
        fprintf(file, "%x %08x\n", (unsigned)hd, bits32((float)correct(F_RSQRT, hd, 0.0, F32)));
    fclose(file);
}

int main(int argc, char **argv)
{
    if (argc != 3) return 2;
    write_f32(F_EXP, "exp", argv[1], argv[2]);
    write_f32(F_SILU, "silu", argv[1], argv[2]);
    write_f32(F_SIN, "sin", argv[1], argv[2]);
    write_f32(F_COS, "cos", argv[1], argv[2]);
    write_exp(argv[2]);
    write_log(argv[2]);
    write_sqrt(argv[2]);
    write_pow(argv[2]);
    write_scale(argv[2]);
    return 0;
}
