/* text.h - one-line messages, texts that grow, numbers and names in them. Private. */
#ifndef Q3_TEXT_H
#define Q3_TEXT_H

#include "qwen3moe.h"

#if defined(__GNUC__) || defined(__clang__)
#define Q3_PRINTF(text, first) __attribute__((format(printf, text, first)))
#else
#define Q3_PRINTF(text, first)
#endif

/* Fills error (may be NULL) with one line and returns status. Control characters, which names from
 * a file may hold, become '?'. */
Q3_PRIVATE_API q3_status q3_fail(q3_error *error, q3_status status, const char *format, ...)
    Q3_PRINTF(3, 4);

/* A text that grows; {0} is empty. After a failed allocation data is NULL and stays so. */
typedef struct q3_text {
    char *data; /* ended by 0; to be freed with free() */
    size_t size, capacity;
    bool failed;
} q3_text;

Q3_PRIVATE_API void q3_text_add(q3_text *text, const char *piece);
Q3_PRIVATE_API void q3_text_uint(q3_text *text, uint64_t value);
Q3_PRIVATE_API void q3_text_real(q3_text *text, double value); /* as Python's repr */
/* Rounded to so many digits (of its shortest decimal, halves away from 0). No printf: its exponents
 * and points are not the same everywhere. */
Q3_PRIVATE_API void q3_text_digits(q3_text *text, double value, int count);

/* a + b + c in new memory; NULL: no memory. */
Q3_PRIVATE_API char *q3_join(const char *a, const char *b, const char *c);

/* "float32", "bfloat16", "float16", as Hugging Face calls them; "float64", "int32", "int64". Not of
 * Q3_AUTO. */
Q3_PRIVATE_API const char *q3_dtype_name(q3_dtype dtype);

#endif
