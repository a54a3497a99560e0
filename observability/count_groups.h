/* The part of `count_registers.h` for wide batches of a model's step, which leaves memory cold: what 16 columns need lies
 * together (`struct trimtab_group`), and until it joins the others a cell has 16 bits, and a column's moments are a lane.
 * A block of rows is turned while its moments are taken. Then the columns are searched 64 values at a time, each while those
 * before are counted, be they of the column before.
 */
enum {
    LINE = 64,
    /* So many rows are counted in cells of 8 bits at a time. */
    FEW_ROWS = 512,
    /* Columns of the turned block lie so far apart that they do not meet in the cache. */
    FEW_STRIDE = FEW_ROWS + 16,
    /* Values of a column that are searched at once: one search waits for itself most of the time. */
    TOGETHER = 64,
    /* Of `_mm512_range_ps`: the number nearer to zero, without its sign. */
    NEARER = 0xa,
    COPIES = 4,
};

/* What a group of columns is turned and counted in. */
struct scratch {
    float block[16 * FEW_STRIDE];
    /* Of two columns, by turns: two pairs of a cell's copies, of 8 bits, so that values that follow each other seldom meet. */
    uint8_t found[2][COPIES / 2][2 * LEAVES];
    uint32_t at[2][TOGETHER];
} __attribute__((aligned(64)));

static inline __attribute__((always_inline)) void wanted(const void *memory, int64_t bytes) {
    for (int64_t byte = 0; byte < bytes; byte += LINE)
        _mm_prefetch((const char *)memory + byte, _MM_HINT_T0);
}

/* Which columns have values that are not finite; and which of the others have some beyond the edges of the tree, or zeros. */
struct strange {
    __mmask16 infinite, below, above, zeros;
};

/* Turns a block, and takes the moments of its columns, which join the group's where all values are finite. Zeros fill it up to
 * rows that are searched together. */
static inline __attribute__((always_inline)) struct strange turned_group(const float *values, int64_t rows, int64_t stride,
                                                                         __mmask16 columns, float *to,
                                                                         struct trimtab_group *group) {
    const __m512 begin = row_of(values, columns);
    const __m512i before = _mm512_loadu_si512(group->rows);
    /* A column's pivot is one of its values. */
    const __mmask16 any = _mm512_test_epi32_mask(before, before);
    const __m512 pivots = _mm512_mask_loadu_ps(begin, any, group->pivot);
    const __m512d pivot[2] = {HALF(pivots, 0), HALF(pivots, 1)};
    __m512 low = begin, high = begin, nearest = _mm512_abs_ps(begin);
    __m512d sums[2], squares[2];
    for (int half = 0; half < 2; half++) {
        sums[half] = _mm512_loadu_pd(group->sum + 8 * half);
        squares[half] = _mm512_loadu_pd(group->squares + 8 * half);
    }
    for (int64_t row = 0; row < rows; row += 16) {
        const int64_t end = row + 16 < rows ? row + 16 : rows;
        for (int64_t i = row; i < end; i++) {
            const float *from = values + i * stride;
            const __m512 value = row_of(from, columns);
            /* The next group's. */
            _mm_prefetch((const char *)from + LINE, _MM_HINT_T0);
            low = _mm512_min_ps(low, value), high = _mm512_max_ps(high, value);
            nearest = _mm512_range_ps(nearest, value, NEARER);
            for (int half = 0; half < 2; half++) {
                /* Read once more: to bring the second half to the front needs what turns the rows, too. */
                const __mmask8 own = (__mmask8)(columns >> 8 * half);
                const __m256 part = own == 0xff ? _mm256_loadu_ps(from + 8 * half) : _mm256_maskz_loadu_ps(own, from + 8 * half);
                const __m512d wide = _mm512_cvtps_pd(part);
                const __m512d deviation = _mm512_sub_pd(wide, pivot[half]);
                sums[half] = _mm512_add_pd(sums[half], deviation);
                squares[half] = _mm512_fmadd_pd(deviation, deviation, squares[half]);
            }
        }
        turned(values + row * stride, rows - row, stride, columns, to + row, FEW_STRIDE);
    }
    for (int64_t row = (rows + 15) / 16 * 16; row < (rows + TOGETHER - 1) / TOGETHER * TOGETHER; row += 16)
        for (int column = 0; column < 16; column++)
            _mm512_store_ps(to + column * FEW_STRIDE + row, _mm512_setzero_ps());
    __mmask16 finite = columns;
    for (int half = 0; half < 2; half++) {
        /* Of 0x99: NaN and infinity, which stay in a sum. */
        const unsigned strange = _mm512_fpclass_pd_mask(sums[half], 0x99);
        finite &= (__mmask16)~(strange << 8 * half);
    }
    struct strange strange = {.infinite = columns & (__mmask16)~finite};
    strange.below = _mm512_mask_cmp_ps_mask(finite, low, _mm512_loadu_ps(group->first), _CMP_LT_OQ);
    strange.above = _mm512_mask_cmp_ps_mask(finite, high, _mm512_loadu_ps(group->last), _CMP_GE_OQ);
    strange.zeros = _mm512_mask_cmp_ps_mask(finite, nearest, _mm512_setzero_ps(), _CMP_EQ_OQ);
    low = _mm512_mask_min_ps(low, any, low, _mm512_loadu_ps(group->low));
    high = _mm512_mask_max_ps(high, any, high, _mm512_loadu_ps(group->high));
    _mm512_mask_storeu_epi32(group->rows, finite, _mm512_add_epi32(before, _mm512_set1_epi32((int)rows)));
    _mm512_mask_storeu_ps(group->pivot, finite, pivots);
    _mm512_mask_storeu_ps(group->low, finite, low);
    _mm512_mask_storeu_ps(group->high, finite, high);
    for (int half = 0; half < 2; half++) {
        _mm512_mask_storeu_pd(group->sum + 8 * half, (__mmask8)(finite >> 8 * half), sums[half]);
        _mm512_mask_storeu_pd(group->squares + 8 * half, (__mmask8)(finite >> 8 * half), squares[half]);
    }
    return strange;
}

/* Writes down the paths of TOGETHER values. */
static inline __attribute__((always_inline)) void searched(const float *values, const float *tree, uint32_t *at) {
    const struct edges edges = loaded(tree);
    __m512i found[TOGETHER / 16];
#pragma GCC unroll 4
    for (int i = 0; i < TOGETHER / 16; i++)
        found[i] = paths(_mm512_load_ps(values + 16 * i), &edges);
#pragma GCC unroll 4
    for (int i = 0; i < TOGETHER / 16; i++)
        _mm512_store_si512(at + 16 * i, found[i]);
}

static inline __attribute__((always_inline)) void added(uint8_t found[COPIES / 2][2 * LEAVES], const uint32_t *at) {
#pragma GCC unroll 64
    for (int i = 0; i < TOGETHER; i++)
        found[i / 2 % 2][2 * ((size_t)at[i] - LEAVES) + i % 2]++;
}

/* Adds a column's copies of its cells to the 16-bit ones, and clears them. */
static inline __attribute__((always_inline)) void joined(uint8_t found[COPIES / 2][2 * LEAVES], uint16_t *pending) {
    const __m512i one = _mm512_set1_epi8(1);
#pragma GCC unroll 4
    for (int part = 0; part < 2 * LEAVES; part += LINE) {
        const __m512i some = _mm512_maddubs_epi16(_mm512_load_si512(found[0] + part), one);
        const __m512i others = _mm512_maddubs_epi16(_mm512_load_si512(found[1] + part), one);
        uint16_t *to = pending + part / 2;
        _mm512_storeu_si512(to, _mm512_add_epi16(_mm512_loadu_si512(to), _mm512_add_epi16(some, others)));
        _mm512_store_si512(found[0] + part, _mm512_setzero_si512());
        _mm512_store_si512(found[1] + part, _mm512_setzero_si512());
    }
}

/* Counts at most FEW_ROWS rows of at most 16 columns; tables, counts and moments are those of the first of them. */
static void count_few_rows(const float *values, int64_t rows, int64_t stride, int64_t columns, struct trimtab_group *group,
                           const float *tables, int64_t width, int64_t *counts, double *moments) {
    const int64_t units = units_float(width), cells = width + 4;
    const int turns = (int)((rows + TOGETHER - 1) / TOGETHER), spare = (int)(turns * TOGETHER - rows);
    struct scratch s;
    int now = 0;
    wanted(group->first, (char *)(group + 1) - (char *)group->first);
    wanted(group->tree, 2 * sizeof *group->tree), wanted(group->pending, sizeof *group->pending);
    /* To load parts of rows takes more. */
    struct strange strange = columns == 16 ? turned_group(values, rows, stride, 0xffff, s.block, group)
                                           : turned_group(values, rows, stride, FIRST(columns), s.block, group);
    memset(s.found, 0, sizeof s.found);
    searched(s.block, group->tree[0], s.at[0]);
    for (int64_t i = 0; i < columns; i++) {
        const float *own = s.block + i * FEW_STRIDE;
        /* What a model does in between leaves it in a slower cache. */
        wanted(group->tree[i + 2 < columns ? i + 2 : 0], sizeof *group->tree);
        wanted(group->pending[i + 1 < columns ? i + 1 : 0], sizeof *group->pending);
        for (int turn = 1; turn < turns; turn++, now ^= 1) {
            searched(own + turn * TOGETHER, group->tree[i], s.at[now ^ 1]);
            added(s.found[i & 1], s.at[now]);
        }
        if (i + 1 < columns)
            searched(own + FEW_STRIDE, group->tree[i + 1], s.at[now ^ 1]);
        added(s.found[i & 1], s.at[now]);
        const uint32_t last = s.at[now][TOGETHER - 1];
        now ^= 1;
        if (strange.infinite >> i & 1)
            memset(s.found[i & 1], 0, sizeof s.found[i & 1]);
        else {
            joined(s.found[i & 1], group->pending[i]);
            uint16_t *cell = group->pending[i] + (last - LEAVES);
            *cell = (uint16_t)(*cell - spare);
        }
    }
    for (int64_t i = 0; i < columns; i++) {
        const struct table_float *table = (const struct table_float *)(tables + i * units);
        if (strange.infinite >> i & 1)
            counted_in_registers(s.block + i * FEW_STRIDE, rows, table, width, counts + i * cells, moments + i * 5);
        else if ((strange.below | strange.above | strange.zeros) >> i & 1)
            add_outside(s.block + i * FEW_STRIDE, rows, table, strange.below >> i & 1 ? -INFINITY : INFINITY,
                        strange.above >> i & 1 ? INFINITY : -INFINITY, strange.zeros >> i & 1 ? 0 : 1, width,
                        counts + i * cells);
    }
}

/* Counts [rows, columns] that lie without gaps. */
static void count_groups(const float *values, int64_t rows, int64_t columns, struct trimtab_group *groups,
                         const float *tables, int64_t width, int64_t *counts, double *moments) {
    for (int64_t start = 0, n; start < rows; start += n) {
        n = rows - start < FEW_ROWS ? rows - start : FEW_ROWS;
        for (int64_t from = 0; from < columns; from += 16)
            count_few_rows(values + start * columns + from, n, columns, columns - from < 16 ? columns - from : 16,
                           groups + from / 16, tables + from * units_float(width), width, counts + from * (width + 4),
                           moments + from * 5);
    }
}
