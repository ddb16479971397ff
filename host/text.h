/* SPDX-License-Identifier: MIT */
/* text.h - one-line messages; texts and arrays that grow; numbers, names and shapes. Private. */
#ifndef Q3_TEXT_H
#define Q3_TEXT_H

#include "qwen3moe.h"

/* ==== Messages ================================================================================ */

#if defined(__GNUC__) || defined(__clang__)
#define Q3_PRINTF(text, first) __attribute__((format(printf, text, first)))
#else
#define Q3_PRINTF(text, first)
#endif

/* Fills error (may be NULL) with one line and returns status. What a terminal would act on, and
 * what is not UTF-8 (names come from files), becomes '?'. */
Q3_PRIVATE_API q3_status q3_fail(q3_error *error, q3_status status, const char *format, ...)
    Q3_PRINTF(3, 4);
/* "THING: not enough memory"; returns Q3_ERROR_MEMORY. */
Q3_PRIVATE_API q3_status q3_no_memory(q3_error *error, const char *thing);

/* The next character of a text (not at its end) as it may be shown: itself, or "?" for a control
 * character (U+0000 to U+001F, U+007F to U+009F) and for a byte that is not UTF-8. Returns how many
 * bytes of the text it takes. */
Q3_PRIVATE_API size_t q3_clean(char shown[5], const char *text);

/* ==== Arrays that grow ======================================================================== */

/* An array of elements of one size; {0} is empty, released by free(data). */
typedef struct q3_buffer {
    void *data;
    size_t count, capacity; /* in elements */
} q3_buffer;

/* Makes room for more elements behind count; false without memory, and nothing has changed then. */
Q3_PRIVATE_API bool q3_reserve(q3_buffer *buffer, size_t more, size_t element_size);
/* Appends bytes to an array of bytes; false without memory. */
Q3_PRIVATE_API bool q3_append(q3_buffer *buffer, const uint8_t *bytes, size_t count);

/* ==== Texts that grow ========================================================================= */

/* {0} is empty. After a failed allocation data is NULL and stays so: one look at `failed` behind
 * many calls is enough. */
typedef struct q3_text {
    char *data; /* ended by 0; to be freed with free() */
    size_t size, capacity;
    bool failed;
} q3_text;

Q3_PRIVATE_API void q3_text_add(q3_text *text, const char *piece);
/* length bytes, which may hold zeros. */
Q3_PRIVATE_API void q3_text_bytes(q3_text *text, const char *piece, size_t length);
/* `before`, then the number. */
Q3_PRIVATE_API void q3_text_count(q3_text *text, const char *before, uint64_t value);
Q3_PRIVATE_API void q3_text_uint(q3_text *text, uint64_t value);
/* A finite number as Python's repr writes it. */
Q3_PRIVATE_API void q3_text_real(q3_text *text, double value);
/* Rounded to so many digits (of its shortest decimal, halves away from 0); "nan", "inf", "-inf". No
 * printf: its exponents and points are not the same everywhere. */
Q3_PRIVATE_API void q3_text_digits(q3_text *text, double value, int count);
/* A text as it may be shown: q3_clean of every character. */
Q3_PRIVATE_API void q3_text_clean(q3_text *text, const char *piece);
/* A JSON string of bytes[length], with its quotes. Escaped: control characters, '"', '\\', and '<',
 * which would end a script in a page. False if some bytes are not UTF-8: each became U+FFFD. */
Q3_PRIVATE_API bool q3_text_string(q3_text *text, const char *bytes, size_t length);

/* a + b + c in new memory; NULL: no memory. */
Q3_PRIVATE_API char *q3_join(const char *a, const char *b, const char *c);

/* ==== Names and shapes ======================================================================== */

/* "float32", "bfloat16", "float16", as Hugging Face calls them; "float64", "int32", "int64",
 * "float8_e4m3fn". Not of Q3_AUTO. */
Q3_PRIVATE_API const char *q3_dtype_name(q3_dtype dtype);
/* "F32", "BF16", as safetensors calls them. */
Q3_PRIVATE_API const char *q3_dtype_code(q3_dtype dtype);
/* Bytes of an element. */
Q3_PRIVATE_API size_t q3_dtype_size(q3_dtype dtype);

#define Q3_ROPE_TYPES ((size_t)Q3_ROPE_LLAMA3 + 1)

/* config.json's rope_type: "default", "linear", "dynamic", "yarn", "llama3". */
Q3_PRIVATE_API const char *q3_rope_name(q3_rope_type type);

/* Room for "[" and eight numbers of 20 digits and "]". */
#define Q3_SHAPE_TEXT 176

/* "[5,7]", cut off where it is too long for text[room]. */
Q3_PRIVATE_API void q3_shape_text(char *text, size_t room, const uint64_t *shape, size_t rank);

#endif
