/* The part of `count.c` that adds batches to a probe's memory, as `probe_state.py` lays it out: small ones only wait until
 * there are enough rows for a pass. */

/* What a state begins with: numbers of 8 bytes; those from `counts` to `groups` say at which of these a part begins (0: there
 * is none). Of so many rows as `unjoined` and `unmerged` cells and moments are in groups alone. */
struct trimtab_state {
    int64_t columns, width, capacity, filled, counts, moments, tables, waiting, groups, unjoined, unmerged;
};

/* So many rows' moments are summed about one number: 1e-9 of M2 is left of double precision. */
enum { MOST_UNMERGED = 4096 };

/* The types of values, as `probe_kernels.py` numbers them. */
enum { SINGLE, DOUBLE, HALF_PRECISION, BRAIN };

static int64_t *part(struct trimtab_state *s, int64_t at) { return (int64_t *)s + at; }

static void join_cells(struct trimtab_state *s) {
    struct trimtab_group *groups = (struct trimtab_group *)part(s, s->groups);
    const int64_t cells = s->width - 1 < LEAVES ? s->width - 1 : LEAVES;
    for (int64_t column = 0; s->unjoined && column < s->columns; column++) {
        int64_t *counts = part(s, s->counts) + column * (s->width + 4) + 1;
        uint16_t *pending = groups[column / 16].pending[column % 16];
        for (int64_t cell = 0; cell < cells; cell++)
            counts[cell] += pending[LEAVES - 1 - cell];
        memset(pending, 0, sizeof groups->pending[0]);
    }
    s->unjoined = 0;
}

static void merge_moments(struct trimtab_state *s) {
    for (int64_t column = 0; s->unmerged && column < s->columns; column++) {
        struct trimtab_group *group = (struct trimtab_group *)part(s, s->groups) + column / 16;
        const int64_t i = column % 16;
        if (!group->rows[i])
            continue;
        const double n = group->rows[i], mean = group->sum[i] / n, squares = group->squares[i] - group->sum[i] * mean;
        merge_float((double *)part(s, s->moments) + column * 5, group->rows[i], (double)group->pivot[i] + mean,
                    squares > 0 ? squares : 0, (double)group->low[i], (double)group->high[i]);
        group->rows[i] = 0;
        group->sum[i] = group->squares[i] = 0;
    }
    s->unmerged = 0;
}

/* Fills in the edges of a state's groups from those of its columns, [columns, width], of which each has 1 to MOST_FEW. */
void trimtab_groups(const float *edges, int64_t columns, int64_t width, struct trimtab_group *groups) {
    memset(groups, 0, (size_t)((columns + 15) / 16) * sizeof *groups);
    for (int64_t column = 0; column < columns; column++, edges += width) {
        struct trimtab_group *group = groups + column / 16;
        float own[MOST_FEW];
        for (int64_t edge = 0; edge < MOST_FEW; edge++)
            own[edge] = edge < width ? edges[edge] : INFINITY;
        tree_float(own, group->tree[column % 16]);
        /* Of the values 0 and -0, neither less -0 has a sign. As bits: of numbers the compiler would leave it out. */
        for (int node = 0; node < LEAVES; node++) {
            uint32_t bits;
            memcpy(&bits, group->tree[column % 16] + node, sizeof bits);
            bits = bits << 1 ? bits : 1u << 31;
            memcpy(group->tree[column % 16] + node, &bits, sizeof bits);
        }
        group->first[column % 16] = own[0], group->last[column % 16] = own[MOST_FEW - 1];
    }
}

/* Numbers of 8 bytes that the groups of so many columns take; 0 where no batch of them is counted so. */
int64_t trimtab_groups_size(int64_t columns) {
    return columns < ENOUGH_COLUMNS ? 0 : (columns + 15) / 16 * (int64_t)(sizeof(struct trimtab_group) / 8);
}

static void count_singles(struct trimtab_state *s, const float *values, int64_t rows) {
    const float *tables = (const float *)part(s, s->tables);
    int64_t *counts = part(s, s->counts);
    double *moments = (double *)part(s, s->moments);
#ifdef COUNT_GROUPS
    for (int64_t n; s->groups && rows; rows -= n, values += n * s->columns) {
        n = rows < MOST_UNMERGED ? rows : MOST_UNMERGED;
        if (s->unjoined + n > UINT16_MAX)
            join_cells(s);
        if (s->unmerged + n > MOST_UNMERGED)
            merge_moments(s);
        COUNT_GROUPS(values, n, s->columns, (struct trimtab_group *)part(s, s->groups), tables, s->width, counts, moments);
        s->unjoined += n, s->unmerged += n;
    }
#endif
    if (rows)
        count_float(values, rows, s->columns, tables, s->width, counts, moments);
}

static void count_all_waiting(struct trimtab_state *s) {
    if (s->filled)
        count_singles(s, (const float *)part(s, s->waiting), s->filled);
    s->filled = 0;
}

/* Where the next rows go, at most `rows`, whose number comes back in `n`. */
static float *room(struct trimtab_state *s, int64_t rows, int64_t *n) {
    if (s->filled == s->capacity)
        count_all_waiting(s);
    *n = s->capacity - s->filled < rows ? s->capacity - s->filled : rows;
    float *to = (float *)part(s, s->waiting) + s->filled * s->columns;
    s->filled += *n;
    return to;
}

static inline float of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* Exact, whatever becomes of denormal numbers in this thread: those of half precision are whole numbers of 2^-24. */
static inline float of_half(uint16_t half) {
    const uint32_t rest = half & 0x7fff;
    const float small = (float)(int32_t)rest * 0x1p-24f;
    const uint32_t normal = rest < 0x7c00 ? (rest << 13) + (112u << 23) : (rest << 13) | 0x7f800000;
    return of_bits((rest < 0x400 ? bits_of(small) : normal) | (uint32_t)(half & 0x8000) << 16);
}

static inline float of_brain(uint16_t brain) { return of_bits((uint32_t)brain << 16); }

#define COPY(TYPE, CONVERTED)                                                                                          \
    do {                                                                                                               \
        const TYPE *from = values;                                                                                     \
        if (by_column == 1 && (by_row == columns || rows == 1))                                                        \
            for (int64_t i = 0; i < rows * columns; i++)                                                               \
                to[i] = CONVERTED(from[i]);                                                                            \
        else                                                                                                           \
            for (int64_t row = 0; row < rows; row++)                                                                   \
                for (int64_t column = 0; column < columns; column++)                                                   \
                    to[row * columns + column] = CONVERTED(from[row * by_row + column * by_column]);                   \
    } while (0)

static void copy_rows(float *restrict to, const void *values, int64_t kind, int64_t rows, int64_t columns,
                      int64_t by_row, int64_t by_column) {
    if (kind == SINGLE)
        COPY(float, );
    else if (kind == HALF_PRECISION)
        COPY(uint16_t, of_half);
    else
        COPY(uint16_t, of_brain);
}

/* Adds [rows, columns] that lie anywhere; the steps are in values. False, and nothing done, where the state has no tables. */
int trimtab_probe_count(void *state, const void *values, int64_t kind, int64_t rows, int64_t by_row,
                        int64_t by_column) {
    struct trimtab_state *s = state;
    const int64_t columns = s->columns;
    if (!s->tables)
        return 0;
    atomic_flag *lock = locked(s);
    if (kind == DOUBLE) {
        const float *tables = (const float *)part(s, s->tables) + 2 * trimtab_tables_size_double(columns, s->width);
        trimtab_count_double(values, columns, rows, by_column, by_row, (const double *)(const void *)tables, s->width,
                             part(s, s->counts), (double *)part(s, s->moments));
    } else if (kind == SINGLE && s->groups && rows >= ENOUGH_ROWS && rows * columns >= ENOUGH_VALUES && by_column == 1 &&
               by_row == columns) {
        count_singles(s, values, rows);
    } else if (kind == SINGLE && rows > s->capacity / 2) {
        trimtab_count_float(values, columns, rows, by_column, by_row, (const float *)part(s, s->tables), s->width,
                            part(s, s->counts), (double *)part(s, s->moments));
    } else {
        const char *from = values;
        if (s->filled + rows > s->capacity && rows <= s->capacity)
            count_all_waiting(s);
        for (int64_t n; rows; rows -= n, from += n * by_row * (kind == SINGLE ? 4 : 2)) {
            float *to = room(s, rows, &n);
            copy_rows(to, from, kind, n, columns, by_row, by_column);
        }
    }
    unlock(lock);
    return 1;
}

/* The same of float32 columns that lie apart, each without gaps. */
void trimtab_probe_add_columns(void *state, const float *const *columns, int64_t rows) {
    struct trimtab_state *s = state;
    const int64_t width = s->columns;
    atomic_flag *lock = locked(s);
    for (int64_t start = 0, n; start < rows; start += n) {
        float *to = room(s, rows - start, &n);
        for (int64_t column = 0; column < width; column++)
            for (int64_t row = 0; row < n; row++)
                to[row * width + column] = columns[column][start + row];
    }
    unlock(lock);
}

/* Brings the counts of a state with tables up to what was added. */
void trimtab_probe_count_waiting(void *state) {
    atomic_flag *lock = locked(state);
    count_all_waiting(state);
    join_cells(state);
    merge_moments(state);
    unlock(lock);
}
