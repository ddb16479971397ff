/* SPDX-License-Identifier: MIT */
/* Formats that backends round values to, at their edges: ties, the smallest, the largest, both
 * signs. The values follow from the formats' definitions. */
#include "t.h"

#include "judge/diagnosis.h"

#include <math.h>

static const struct { format to; double value, want; } cases[] = {
    /* E4M3: steps of 2^-9 up to 2^-5, then 8 a binade; what is larger than 448 is 448 */
    {FORMAT_FP8, 0.0, 0.0}, {FORMAT_FP8, 0x1p-9, 0x1p-9}, {FORMAT_FP8, 0x1p-10, 0.0},
    {FORMAT_FP8, 0x1.1p-10, 0x1p-9}, {FORMAT_FP8, 0x1.8p-9, 0x1p-8}, {FORMAT_FP8, 0x1.4p-8, 0x1p-8},
    {FORMAT_FP8, 0x1.fp-6, 0x1p-5}, {FORMAT_FP8, 0x1.dp-6, 0x1.cp-6},
    {FORMAT_FP8, 0x1.1p-5, 0x1p-5},
    {FORMAT_FP8, 0x1.3p-5, 0x1.4p-5}, {FORMAT_FP8, 17, 16}, {FORMAT_FP8, 17.5, 18},
    {FORMAT_FP8, 19, 20}, {FORMAT_FP8, 30.9, 30}, {FORMAT_FP8, 31, 32}, {FORMAT_FP8, 431, 416},
    {FORMAT_FP8, 433, 448}, {FORMAT_FP8, 448, 448}, {FORMAT_FP8, 449, 448}, {FORMAT_FP8, 480, 448},
    {FORMAT_FP8, 1e30, 448}, {FORMAT_FP8, INFINITY, 448},
    /* bfloat16 and float16, to nearest */
    {FORMAT_BF16, 257, 256}, {FORMAT_BF16, 259, 260}, {FORMAT_BF16, 0x1.ffp127, INFINITY},
    {FORMAT_F16, 2049, 2048}, {FORMAT_F16, 2051, 2052}, {FORMAT_F16, 0x1.8p-24, 0x1p-23},
    {FORMAT_F16, 65519, 65504}, {FORMAT_F16, 65520, INFINITY},
    /* towards zero, never to infinity */
    {FORMAT_BF16_CUT, 257, 256}, {FORMAT_BF16_CUT, 259.5, 258}, {FORMAT_BF16_CUT, 258, 258},
    {FORMAT_BF16_CUT, 0x1.ffp127, 0x1.fep127}, {FORMAT_BF16_CUT, INFINITY, INFINITY},
    {FORMAT_F16_CUT, 2049.5, 2048}, {FORMAT_F16_CUT, 2051.5, 2050}, {FORMAT_F16_CUT, 2050, 2050},
    {FORMAT_F16_CUT, 0x1.8p-24, 0x1p-24}, {FORMAT_F16_CUT, 0x1.8p-25, 0},
    {FORMAT_F16_CUT, 65535, 65504},
    {FORMAT_F16_CUT, 1e9, 65504}, {FORMAT_F16_CUT, INFINITY, INFINITY},
    /* TF32: 11 significant bits, three ways */
    {FORMAT_TF32, 1 + 0x1p-11, 1}, {FORMAT_TF32, 1 + 0x3p-11, 1 + 0x1p-9},
    {FORMAT_TF32, 1 + 0x1p-11 + 0x1p-20, 1 + 0x1p-10}, {FORMAT_TF32, 1 + 0x1p-12, 1},
    {FORMAT_TF32, 1 + 0x1p-10, 1 + 0x1p-10}, {FORMAT_TF32, INFINITY, INFINITY},
    {FORMAT_TF32_AWAY, 1 + 0x1p-11, 1 + 0x1p-10}, {FORMAT_TF32_AWAY, 1 + 0x1p-11 - 0x1p-20, 1},
    {FORMAT_TF32_AWAY, 1 + 0x3p-11, 1 + 0x1p-9}, {FORMAT_TF32_AWAY, INFINITY, INFINITY},
    {FORMAT_TF32_CUT, 1 + 0x1p-11, 1}, {FORMAT_TF32_CUT, 1 + 0x3p-11, 1 + 0x1p-10},
    {FORMAT_TF32_CUT, 1 + 0x1p-9 - 0x1p-20, 1 + 0x1p-10}, {FORMAT_TF32_CUT, INFINITY, INFINITY},
};

int main(void)
{
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (int sign = 1; sign >= -1; sign -= 2) {
            double found = q3_to_format(sign * cases[i].value, cases[i].to);
            CHECKF(found == sign * cases[i].want, "case %u: %a: found %a, expected %a", (unsigned)i,
                   sign * cases[i].value, found, sign * cases[i].want);
        }
    for (int to = FORMAT_BF16; to <= FORMAT_F16_CUT; to++) {
        double found = q3_to_format((double)NAN, (format)to);
        CHECK(found != found);
        CHECK(q3_format_in(to) == (format)to);
    }
    CHECK(q3_format_in(-1) == FORMAT_BF16 && q3_format_in(FORMAT_F16_CUT + 1) == FORMAT_BF16);
    return t_done("formats");
}
