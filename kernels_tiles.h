/* SPDX-License-Identifier: MIT */
/* kernels_tiles.h - attention divided into tiles of query rows, which kernels_attention.h computes:
 * memory, and who sees what; included by kernels.c once.
 *
 * Rows of queries that share a key head (by token, then by head) are computed together, so that
 * keys and values are read and widened once for all of them. What a tile keeps grows with the keys
 * it sees; it is at most MOST_SCRATCH bytes, or attention goes token by token. */

enum {
    KEYS = 16,  /* widened together, */
    VALUES = 32, /* likewise */
    MOST_ROWS = 64,
    MOST_SCRATCH = 16 << 20,
    LINE = 64 / sizeof(double), /* to begin on a cache line */
    PER_LINE = 64 / sizeof(float)
};

typedef struct tile {
    const q3_attention *a;
    size_t share;               /* heads that share a key head */
    size_t stride;              /* floats from a key to the next */
    size_t width, depth;        /* hd rounded up to groups, and to LANES */
    format to;
    const float *k, *v;         /* of this key head */
    size_t key_head;
    size_t row, rows, groups;   /* rows row, row + 1, ... of the T * share, in groups of vectors */
    size_t begin, end;          /* keys that any of them sees; */
    size_t common, common_end;  /* that all see, common_end not below common */
    size_t room;                /* keys that a group's panel holds */
    double largest_q;           /* magnitude in these rows, a NaN if there is one */
    double *wide;  /* keys [KEYS, depth] or values [width / GROUP, VALUES, GROUP] as float64 */
    double *panel; /* [groups, room, GROUP]: scores, then exp(score - max) */
    double *q;     /* [groups, depth, GROUP] */
    double *sums;  /* [width / GROUP, groups * GROUP, GROUP] of values */
    double *probs; /* [groups, VALUES, GROUP] */
    double *max;   /* [groups, GROUP]: the largest score, then the sum of exp */
} tile;

/* The token of row r; rows behind the last stand where the last does. */
static size_t tile_token(const tile *t, size_t r)
{
    return (t->row + least(r, t->rows - 1)) / t->share;
}

/* Whether row r sees key s. */
static bool tile_sees(const tile *t, size_t r, size_t s)
{
    size_t at = t->a->first + tile_token(t, r);
    return s <= at && s >= q3_first_key(at, t->a->window);
}

/* Where row r begins in q and y. */
static size_t tile_row(const tile *t, size_t r)
{
    size_t head = t->key_head * t->share + (t->row + r) % t->share;
    return (tile_token(t, r) * t->a->H + head) * t->a->hd;
}

/* Asks for element c of key or value s, which may lie behind the last, for the second-level cache:
 * those of a key head lie too far apart for a processor to guess them. */
static inline void ask_ahead(const tile *t, const float *first, size_t s, size_t c)
{
    uintptr_t at = (uintptr_t)first + (s * t->stride + c) * sizeof *first;
    __builtin_prefetch((const void *)at, 0, 2);
}

/* The larger magnitude, as bits: infinity above every number, NaN above infinity. */
static inline uint32_t larger_size(uint32_t largest, float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    u &= 0x7FFFFFFF;
    return u > largest ? u : largest;
}

static double as_float(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return (double)x;
}

static size_t round_up(size_t n, size_t step)
{
    return (n + step - 1) / step * step;
}

/* Shares out the scratch of a tile of so many rows, if base is not NULL; returns how many float64
 * it takes. */
static size_t tile_lay_out(tile *t, double *base, size_t rows)
{
    const size_t sizes[] = {round_up(VALUES * (t->width > t->depth ? t->width : t->depth), LINE),
                            rows * t->room, rows * t->depth, rows * t->width, rows * VALUES, rows};
    double **pieces[] = {&t->wide, &t->panel, &t->q, &t->sums, &t->probs, &t->max};
    size_t used = 0;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        if (base != NULL) *pieces[i] = base + used;
        used += sizes[i];
    }
    return used;
}

/* The rows from t->row on: how many, and which keys they see. */
static void tile_begin(tile *t, size_t most, size_t group)
{
    const q3_attention *a = t->a;
    t->rows = least(most, a->T * t->share - t->row);
    t->groups = (t->rows + group - 1) / group;
    size_t low = a->first + tile_token(t, 0), high = a->first + tile_token(t, t->rows - 1);
    t->begin = q3_first_key(low, a->window);
    t->end = high + 1;
    t->common = q3_first_key(high, a->window);
    t->common_end = low + 1;
    if (t->common_end < t->common) t->common = t->common_end = t->end;
}

typedef void run_tile(tile *t);

/* All of attention, tile by tile, by the `run` of an instruction set that has groups of so many
 * rows. False: not done, since there are too few rows for a group, or too little memory. */
static bool attend_tiles(const q3_attention *a, size_t group, run_tile *run)
{
    tile t = {.a = a, .share = a->H / a->K, .stride = a->K * a->hd, .to = format_of(a->dtype)};
    size_t all = a->T * t.share, most = least(MOST_ROWS, round_up(all, group));
    if (4 * all < group || a->hd > 4096) return false;
    t.width = round_up(a->hd, group);
    t.depth = round_up(a->hd, LANES);
    size_t keys = a->first + a->T, seen = a->window + most / t.share + 1; /* by a whole tile */
    t.room = round_up(a->window != 0 ? least(keys, seen) : keys, KEYS);
    if (t.room > MOST_SCRATCH / sizeof(double) / group) return false;
    while (tile_lay_out(&t, NULL, most) + LINE > MOST_SCRATCH / sizeof(double)) {
        if (most == group) return false;
        most -= group;
    }
    size_t used = tile_lay_out(&t, NULL, most);
    double *scratch = malloc((used + LINE) * sizeof *scratch);
    if (scratch == NULL) return false;
    size_t past = (size_t)((uintptr_t)scratch / sizeof *scratch % LINE);
    tile_lay_out(&t, scratch + (LINE - past) % LINE, most);
    memset(t.wide, 0, VALUES * t.width * sizeof *t.wide);
    for (t.key_head = 0; t.key_head < a->K; t.key_head++) {
        t.k = a->k + t.key_head * a->hd;
        t.v = a->v + t.key_head * a->hd;
        for (t.row = 0; t.row < all; t.row += t.rows) {
            tile_begin(&t, most, group);
            run(&t);
        }
    }
    free(scratch);
    return true;
}
