/* The part of `count.c` that adds batches to a probe's memory, as `probe_state.py` lays it out: small ones only wait until
 * there are enough rows for a pass. */

/* What a state begins with: numbers of 8 bytes; those from `counts` to `pending` say at which of these a part begins. So
 * many rows as `unjoined` are counted in `pending` alone: 16 bits for each of PENDING cells of a column, behind its first. */
struct trimtab_state {
    int64_t columns, width, capacity, filled, counts, moments, tables, waiting, pending, unjoined;
};

enum { PENDING = 128 };

/* The types of values, as `probe_kernels.py` numbers them. */
enum { SINGLE, DOUBLE, HALF_PRECISION, BRAIN };

static int64_t *part(struct trimtab_state *s, int64_t at) { return (int64_t *)s + at; }

static void join_pending(struct trimtab_state *s) {
    if (!s->unjoined)
        return;
    uint16_t *pending = (uint16_t *)part(s, s->pending);
    const int64_t cells = s->width - 1 < PENDING ? s->width - 1 : PENDING;
    for (int64_t column = 0; column < s->columns; column++) {
        int64_t *counts = part(s, s->counts) + column * (s->width + 4) + 1;
        for (int64_t cell = 0; cell < cells; cell++)
            counts[cell] += pending[column * PENDING + cell];
    }
    memset(pending, 0, (size_t)(s->columns * PENDING) * sizeof *pending);
    s->unjoined = 0;
}

static void count_singles(struct trimtab_state *s, const float *values, int64_t rows) {
#ifdef COUNT_PENDING
    if (s->unjoined + rows > UINT16_MAX)
        join_pending(s);
    if (COUNT_PENDING(values, rows, s->columns, (const float *)part(s, s->tables), s->width,
                      (uint16_t *)part(s, s->pending), part(s, s->counts), (double *)part(s, s->moments))) {
        s->unjoined += rows;
        return;
    }
#endif
    count_float(values, rows, s->columns, (const float *)part(s, s->tables), s->width, part(s, s->counts),
                (double *)part(s, s->moments));
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
    } else if (kind == SINGLE && rows >= ENOUGH_ROWS && columns >= ENOUGH_COLUMNS && by_column == 1 && by_row == columns) {
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
    join_pending(state);
    unlock(lock);
}
