/* SPDX-License-Identifier: MIT */
/* rows.c - which tokens the rows of logits are of: as the file says it, or as their values do. */
#include "judge/backend.h"

#include "host/taps.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ==== As the file says it ===================================================================== */

static const q3_entry *find(const backend *b, const char *name)
{
    for (size_t i = 0; i < b->count; i++)
        if (strcmp(b->entries[i].name, name) == 0) return &b->entries[i];
    return NULL;
}

/* Row `row` is of the token at this position. */
static q3_status set_position(backend *b, size_t row, int64_t position, q3_error *error)
{
    int64_t token = position - (int64_t)b->start;
    if (token < 0 || token >= (int64_t)b->T)
        return q3_fail(error, Q3_ERROR_INPUT,
                       "%s: logit_positions: row %zu: found %lld, expected %zu to %zu", b->name,
                       row, (long long)position, b->start, b->start + b->T - 1);
    if (b->logit_rows[token] != Q3_NO_ROW)
        return q3_fail(error, Q3_ERROR_INPUT,
                       "%s: logit_positions: rows %zu and %zu: found %lld twice, expected it once",
                       b->name, b->logit_rows[token], row, (long long)position);
    b->logit_rows[token] = row;
    return Q3_OK;
}

static q3_status read_tensor(backend *b, const q3_entry *e, q3_error *error)
{
    uint64_t count = 1;
    for (size_t i = 0; i < e->rank; i++) count *= e->shape[i];
    if ((e->dtype != Q3_I32 && e->dtype != Q3_I64) || count > b->T)
        return q3_fail(error, Q3_ERROR_INPUT,
                       "%s: logit_positions: found no integers or %llu, expected integers, %zu at"
                       " most",
                       b->name, (unsigned long long)count, b->T);
    q3_status status = Q3_OK;
    for (size_t i = 0; i < count && status == Q3_OK; i++, b->logit_count++) {
        int64_t position;
        q3_entry_integers(&position, e, i, 1);
        status = set_position(b, i, position, error);
    }
    return status;
}

/* Decimal numbers with commas between them. */
static q3_status read_text(backend *b, const char *text, q3_error *error)
{
    q3_status status = Q3_OK;
    for (const char *p = text; status == Q3_OK; p++, b->logit_count++) {
        int64_t position = 0;
        const char *digits = p;
        for (; *p >= '0' && *p <= '9' && position <= (int64_t)Q3_MAX_POSITIONS; p++)
            position = 10 * position + (*p - '0');
        if (p == digits || (*p != ',' && *p != 0))
            return q3_fail(error, Q3_ERROR_INPUT,
                           "%s: metadata logit_positions: found %.40s, expected numbers with commas"
                           " between them",
                           b->name, text);
        status = set_position(b, b->logit_count, position, error);
        if (*p == 0) break;
    }
    if (status == Q3_OK) b->logit_count++;
    return status;
}

q3_status q3_rows_read(backend *b, q3_error *error)
{
    const q3_entry *e = find(b, "logit_positions");
    const char *text = b->file == NULL ? NULL : q3_tensors_metadata(b->file, "logit_positions");
    const backend_tensor *logits = q3_backend_find(b, Q3_TAP_LM_HEAD, 0);
    free(b->logit_rows);
    b->logit_rows = NULL;
    b->logit_count = 0;
    if ((e == NULL && text == NULL) || logits == NULL || logits->layouts == 0) return Q3_OK;
    b->logit_rows = malloc(b->T * sizeof *b->logit_rows);
    if (b->logit_rows == NULL) return q3_no_memory(error, b->name);
    for (size_t t = 0; t < b->T; t++) b->logit_rows[t] = Q3_NO_ROW;
    q3_status status = e != NULL ? read_tensor(b, e, error) : read_text(b, text, error);
    size_t rows = b->T - logits->first;
    if (status != Q3_OK || b->logit_count == rows) return status;
    return q3_fail(error, Q3_ERROR_INPUT,
                   "%s: logit_positions: found %zu, expected %zu, one for each row of %.100s",
                   b->name, b->logit_count, rows, logits->entry->name);
}

/* ==== As the values do ======================================================================== */

#define MOST_COLUMNS 256 /* that are looked at */
#define MOST_WORK 1e9    /* differences */
#define FAR 256.0        /* in squares, as for experts' rows (layout.c) */

/* The rows that are compared: some of the columns, evenly spread. */
typedef struct samples {
    size_t T, rows, columns, n; /* n: of a whole row */
    float *ours, *theirs;       /* [T,columns], [rows,columns] */
    const own_rows *own;
    double *away;               /* [T] */
} samples;

/* The squared distance of their row and our token's; what is not finite does not count. */
static double apart(const samples *s, size_t row, size_t t)
{
    const float *a = s->theirs + row * s->columns, *b = s->ours + t * s->columns;
    double sum = 0;
    for (size_t i = 0; i < s->columns; i++) {
        double d = (double)a[i] - (double)b[i];
        if (d - d == 0) sum += d * d;
    }
    return sum;
}

/* Whether two tokens have the same logits: then a row may be either's. */
static bool equal(const samples *s, size_t a, size_t b)
{
    const float *whole = s->own->values;
    if (a == b || whole == NULL) return a == b;
    return memcmp(whole + a * s->n, whole + b * s->n, s->n * sizeof *whole) == 0;
}

/* The token whose logits the row is by far nearest to (of equal ones the last that is free); T: no
 * token is. *distance: to it. */
static size_t nearest(samples *s, const size_t *row_of, size_t row, double *distance)
{
    size_t best = 0, chosen = s->T;
    double second = -1;
    for (size_t t = 0; t < s->T; t++) {
        s->away[t] = apart(s, row, t);
        if (s->away[t] < s->away[best]) best = t;
    }
    *distance = s->away[best];
    for (size_t t = 0; t < s->T; t++) {
        bool twin = s->away[t] == *distance && equal(s, t, best);
        if (twin && row_of[t] == Q3_NO_ROW) chosen = t;
        if (!twin && (second < 0 || s->away[t] < second)) second = s->away[t];
    }
    return second < 0 || second > FAR * *distance ? chosen : s->T;
}

/* Each row's token. False: some row may be more than one token's, or two are the same one's. */
static bool match(samples *s, size_t *row_of, double *sum)
{
    *sum = 0;
    for (size_t t = 0; t < s->T; t++) row_of[t] = Q3_NO_ROW;
    for (size_t row = s->rows; row-- > 0;) {
        double distance = 0;
        size_t t = nearest(s, row_of, row, &distance);
        if (t == s->T) return false;
        row_of[t] = row;
        *sum += distance;
    }
    return true;
}

/* Column k of the samples: this of the rows. */
static size_t column_of(const samples *s, size_t k)
{
    return k * s->n / s->columns;
}

static void take_own(samples *s)
{
    const float *whole = s->own->values;
    for (size_t k = 0; k < s->columns; k++) {
        if (whole == NULL) s->own->column(s->own->user, s->ours + k, s->columns, column_of(s, k));
        for (size_t t = 0; whole != NULL && t < s->T; t++)
            s->ours[t * s->columns + k] = whole[t * s->n + column_of(s, k)];
    }
}

static bool take_samples(samples *s, const backend *b, const backend_tensor *tensor, q3_tap_id id)
{
    float *row = malloc(s->n * sizeof *row);
    s->ours = calloc(s->T, s->columns * sizeof *s->ours);
    s->theirs = calloc(s->rows, s->columns * sizeof *s->theirs);
    s->away = calloc(s->T, sizeof *s->away);
    bool memory = row != NULL && s->ours != NULL && s->theirs != NULL && s->away != NULL;
    if (memory) take_own(s);
    for (size_t i = 0; memory && i < s->rows; i++) {
        q3_backend_row(row, b, tensor, id, 0, tensor->first + i);
        for (size_t k = 0; k < s->columns; k++)
            s->theirs[i * s->columns + k] = row[column_of(s, k)];
    }
    free(row);
    return memory;
}

/* So many that the work stays small. */
static size_t count_columns(size_t rows, size_t T, size_t n)
{
    double columns = MOST_WORK / ((double)rows * (double)T);
    if (columns > MOST_COLUMNS) columns = MOST_COLUMNS;
    if (columns < 8) columns = 8;
    return (size_t)columns < n ? (size_t)columns : n;
}

bool q3_match_rows(size_t **row_of, bool *doubtful, const backend *b, const backend_tensor *tensor,
                   q3_tap_id id, const own_rows *ours)
{
    size_t n = q3_tap_row_size(b->config, id, b->T), rows = b->T - tensor->first;
    samples s = {.T = b->T, .rows = rows, .columns = count_columns(rows, b->T, n), .n = n,
                 .own = ours};
    size_t *map = malloc(b->T * sizeof *map);
    double in_order = 0, matched = 0, size = 0;
    *row_of = NULL;
    *doubtful = false;
    bool memory = map != NULL && take_samples(&s, b, tensor, id);
    for (size_t row = 0; memory && row < rows; row++)
        in_order += apart(&s, row, tensor->first + row);
    for (size_t i = 0; memory && i < s.T * s.columns; i++)
        if (s.ours[i] - s.ours[i] == 0.0f) size += (double)s.ours[i] * (double)s.ours[i];
    /* rows of all tokens that are near where they stand are not looked for elsewhere */
    bool look = memory && (rows < b->T || in_order * FAR > size);
    bool found = look && match(&s, map, &matched);
    bool moved = false;
    for (size_t t = 0; found && t < b->T; t++)
        moved = moved || map[t] != (t < tensor->first ? Q3_NO_ROW : t - tensor->first);
    if (rows == b->T) moved = moved && matched * FAR < in_order;
    *doubtful = look && !found && rows < b->T;
    free(s.ours);
    free(s.theirs);
    free(s.away);
    if (moved) *row_of = map;
    else free(map);
    return memory;
}

/* ==== What is said of them ==================================================================== */

void q3_note_rows(char *note, size_t room, const size_t *row_of, size_t T, const char *how)
{
    size_t used = strlen(note), listed = 0;
    if (used + 40 < room) used += (size_t)snprintf(note + used, room - used, "%srows of tokens ",
                                                   used > 0 ? ", " : "");
    for (size_t row = 0; row < T; row++) {
        size_t t = 0;
        while (t < T && row_of[t] != row) t++;
        if (t == T) break;
        bool full = listed == 8 || used + 60 > room;
        int more = full ? snprintf(note + used, room - used, ", ...")
                        : snprintf(note + used, room - used, "%s%zu", listed > 0 ? ", " : "", t);
        if (more > 0) used += (size_t)more;
        if (full) break;
        listed++;
    }
    if (used < room) snprintf(note + used, room - used, ", %s", how);
}
