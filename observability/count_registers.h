/* The part of `count.c` for processors with AVX-512: a column's edges stay in registers while its values are counted.
 *
 * A cell is the number of edges not above the value: 127 of the at most 129 edges are a search tree of seven levels, one
 * register of 16 numbers for the first four of them, one, two and four for the others. What lies beyond the first or the
 * last edge is counted again where there is any. A matrix is turned in blocks of 16 columns, so that 16 values of one
 * column are searched at once.
 */
#include <immintrin.h>

enum {
    TURNED_ROWS = 1024,
    /* Rows of the turned block lie so far apart that they do not meet in the cache. */
    TURNED_STRIDE = TURNED_ROWS + 16,
    /* Behind the leaves: the cell of what is no finite number, and room to a full register. */
    NOWHERE = LEAVES,
    HISTOGRAM = LEAVES + 16,
};

/* 16 values of one column at a time: what their moments are made of. */
struct sums {
    __m512 low, high, nearest;
    __m512d pivot, sums[2], squares[2];
};

/* The first n of 16 lanes. */
#define FIRST(n) ((__mmask16)((1u << (n)) - 1))
#define HALF(values, half) _mm512_cvtps_pd(half ? _mm512_extractf32x8_ps(values, 1) : _mm512_castps512_ps256(values))

static inline __attribute__((always_inline)) void summed(struct sums *s, __m512 values) {
    s->low = _mm512_min_ps(s->low, values);
    s->high = _mm512_max_ps(s->high, values);
    /* To zero. */
    s->nearest = _mm512_min_ps(s->nearest, _mm512_abs_ps(values));
    for (int half = 0; half < 2; half++) {
        __m512d deviation = _mm512_sub_pd(HALF(values, half), s->pivot);
        s->sums[half] = _mm512_add_pd(s->sums[half], deviation);
        s->squares[half] = _mm512_fmadd_pd(deviation, deviation, s->squares[half]);
    }
}

/* Added, it makes 0 of -0. The compiler, which would leave it out, is not to know what it is. */
static inline __attribute__((always_inline)) __m512 no_sign(void) {
    __m512 zero = _mm512_setzero_ps();
    __asm__("" : "+v"(zero));
    return zero;
}

/* The next level's nodes: the second child where the value is below the edge, else the first. */
static inline __attribute__((always_inline)) __m512i descended(__m512i node, __m512 values, __m512 edges) {
#if defined(__AVX512VBMI2__) && !defined(WITHOUT_SHIFTS)
    /* The sign of the difference. */
    return _mm512_shldi_epi32(node, _mm512_castps_si512(_mm512_sub_ps(values, edges)), 1);
#else
    __m512i child = _mm512_add_epi32(node, node);
    return _mm512_mask_add_epi32(child, _mm512_cmp_ps_mask(values, edges, _CMP_LT_OQ), child, _mm512_set1_epi32(1));
#endif
}

/* The tree of a column, for eight registers. */
struct edges {
    __m512 root, of[8];
};

static inline __attribute__((always_inline)) struct edges loaded(const float *tree) {
    struct edges e = {.root = _mm512_set1_ps(tree[1])};
    for (int i = 0; i < 8; i++)
        e.of[i] = _mm512_loadu_ps(tree + 16 * i);
    return e;
}

/* The paths of 16 values through the tree: LEAVES and more, descending. No value is -0, or no edge 0. */
static inline __attribute__((always_inline)) __m512i paths(__m512 values, const struct edges *e) {
    const __mmask16 left = _mm512_cmp_ps_mask(values, e->root, _CMP_LT_OQ);
    __m512i node = _mm512_mask_blend_epi32(left, _mm512_set1_epi32(2), _mm512_set1_epi32(3));
    node = descended(node, values, _mm512_permutexvar_ps(node, e->of[0]));
    node = descended(node, values, _mm512_permutexvar_ps(node, e->of[0]));
    node = descended(node, values, _mm512_permutexvar_ps(node, e->of[0]));
    node = descended(node, values, _mm512_permutexvar_ps(node, e->of[1]));
    node = descended(node, values, _mm512_permutex2var_ps(e->of[2], node, e->of[3]));
    const __m512 some = _mm512_permutex2var_ps(e->of[4], node, e->of[5]);
    const __m512 others = _mm512_permutex2var_ps(e->of[6], node, e->of[7]);
    return descended(node, values, _mm512_mask_blend_ps(left, some, others));
}

/* How many of the tree's edges are not above each of 16 values. */
static inline __attribute__((always_inline)) __m512i leaves(__m512 values, const struct edges *e) {
    return _mm512_xor_si512(paths(values, e), _mm512_set1_epi32(2 * LEAVES - 1));
}

enum comparison { BELOW, FROM, AT };

/* How many finite values are below a number, are at least that, or are it. */
static int64_t times(const float *values, int64_t rows, enum comparison how, float number) {
    int32_t found = 0;
    for (int64_t row = 0; row < rows; row++) {
        const float value = values[row];
        const int there = how == BELOW ? value < number : how == FROM ? value >= number : value == number;
        found += there & (value - value == 0);
    }
    return found;
}

/* Sets `histograms` and the sums to what is found where all values are finite; else nothing that counts. */
static void counted_quickly(const float *values, int64_t rows, const float *tree, __m512 zero, __m512 pivots,
                            uint32_t histograms[2][HISTOGRAM], struct sums *s) {
    int32_t at[2][16] __attribute__((aligned(64)));
    int now = 0;
    /* What was found of 16 values is added to the histograms while the next 16 are searched. */
    _mm512_store_si512(at[1], _mm512_set1_epi32(NOWHERE));
    for (int64_t row = 0; row < rows; row += 16, now ^= 1) {
        __m512 value = rows - row < 16 ? _mm512_mask_loadu_ps(pivots, FIRST(rows - row), values + row)
                                       : _mm512_loadu_ps(values + row);
        value = _mm512_add_ps(value, zero);
        /* Here and not before: with the sums in registers, too, the edges are read where they are used. */
        const struct edges edges = loaded(tree);
        _mm512_store_si512(at[now], leaves(value, &edges));
        summed(s, value);
        const int32_t *before = at[now ^ 1];
        for (int i = 0; i < 16; i += 2)
            histograms[0][before[i]]++, histograms[1][before[i + 1]]++;
    }
    for (int64_t i = 0; i < rows - (rows - 1) / 16 * 16; i++)
        histograms[i % 2][at[now ^ 1][i]]++;
}

/* The same of any values, which takes twice as long: what is not finite goes to `special` (+inf, -inf, NaN). */
static void counted_carefully(const float *values, int64_t rows, const float *tree, __m512 zero, __m512 pivots,
                              uint32_t histograms[2][HISTOGRAM], struct sums *s, int64_t *special) {
    int32_t at[16] __attribute__((aligned(64)));
    const struct edges edges = loaded(tree);
    for (int64_t row = 0; row < rows; row += 16) {
        const int64_t n = rows - row < 16 ? rows - row : 16;
        __m512 value = _mm512_add_ps(_mm512_mask_loadu_ps(pivots, FIRST(n), values + row), zero);
        /* Of 0x99: quiet NaN, both infinities, signalling NaN. */
        const __mmask16 strange = _mm512_fpclass_ps_mask(value, 0x99);
        const int positive = __builtin_popcount(_mm512_mask_cmp_ps_mask(strange, value, zero, _CMP_GT_OQ));
        const int negative = __builtin_popcount(_mm512_mask_cmp_ps_mask(strange, value, zero, _CMP_LT_OQ));
        special[0] += positive, special[1] += negative;
        special[2] += __builtin_popcount(strange) - positive - negative;
        value = _mm512_mask_mov_ps(value, strange, pivots);
        _mm512_store_si512(at, _mm512_mask_mov_epi32(leaves(value, &edges), strange, _mm512_set1_epi32(NOWHERE)));
        summed(s, value);
        for (int64_t i = 0; i < n; i++)
            histograms[i % 2][at[i]]++;
    }
}

/* Adds what lies beyond the edges of the tree, and zeros; `low` and `high` say whether there can be any. */
static void add_outside(const float *values, int64_t rows, const struct table_float *table, float low, float high,
                        float nearest, int64_t width, int64_t *counts) {
    if (low < table->first) {
        const int64_t below = times(values, rows, BELOW, table->first);
        counts[0] += below, counts[1] -= below;
    }
    if (high >= table->last) {
        const int64_t above = times(values, rows, FROM, table->last);
        counts[LEAVES + 1] += above, counts[LEAVES] -= above;
    }
    if (nearest == 0)
        counts[width + 3] += times(values, rows, AT, 0);
}

/* Counts `rows` values of one column that lie without gaps, at most TURNED_ROWS. */
static void counted_in_registers(const float *values, int64_t rows, const struct table_float *table, int64_t width,
                                 int64_t *counts, double *moments) {
    uint32_t histograms[2][HISTOGRAM];
    int64_t special[3] = {0, 0, 0}, first = 0;
    while (first < rows && !isfinite(values[first]))
        first++;
    const float pivot = first < rows ? values[first] : 0;
    const __m512 pivots = _mm512_set1_ps(pivot);
    const struct sums none = {.low = pivots, .high = pivots, .nearest = _mm512_abs_ps(pivots), .pivot = _mm512_set1_pd((double)pivot)};
    struct sums s = none;
    const __m512 zero = no_sign();
    memset(histograms, 0, sizeof histograms);
    counted_quickly(values, rows, table->tree, zero, pivots, histograms, &s);
    double sum = _mm512_reduce_add_pd(_mm512_add_pd(s.sums[0], s.sums[1]));
    /* NaN and infinity stay in a sum. */
    if (!isfinite(sum)) {
        s = none;
        memset(histograms, 0, sizeof histograms);
        counted_carefully(values, rows, table->tree, zero, pivots, histograms, &s, special);
        sum = _mm512_reduce_add_pd(_mm512_add_pd(s.sums[0], s.sums[1]));
    }
    for (int kind = 0; kind < 3; kind++)
        counts[width + kind] += special[kind];
    const int64_t n = rows - special[0] - special[1] - special[2];
    if (!n)
        return;
    const int cells = table->edges < LEAVES ? (int)table->edges : LEAVES;
    for (int cell = 0; cell < cells; cell++)
        counts[1 + cell] += (int64_t)histograms[0][cell] + histograms[1][cell];
    const float low = _mm512_reduce_min_ps(s.low), high = _mm512_reduce_max_ps(s.high);
    add_outside(values, rows, table, low, high, _mm512_reduce_min_ps(s.nearest), width, counts);
    const double squares = _mm512_reduce_add_pd(_mm512_add_pd(s.squares[0], s.squares[1])) - sum * sum / (double)n;
    merge_float(moments, n, (double)pivot + sum / (double)n, squares > 0 ? squares : 0, (double)low, (double)high);
}

/* What a row has of 16 columns; where these are known to be all, it takes less. */
static inline __attribute__((always_inline)) __m512 row_of(const float *values, __mmask16 columns) {
    return columns == 0xffff ? _mm512_loadu_ps(values) : _mm512_maskz_loadu_ps(columns, values);
}

/* Turns 16 rows of at most 16 columns: `to` has a row a column. */
static inline __attribute__((always_inline)) void turned(const float *values, int64_t rows, int64_t stride,
                                                         __mmask16 columns, float *to, int64_t apart) {
    __m512 r[16], t[16];
    for (int i = 0; i < 16; i++)
        r[i] = i < rows ? row_of(values + i * stride, columns) : _mm512_setzero_ps();
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int c = 0; c < 4; c++) {
            __m512d one = _mm512_castps_pd(t[i + c / 2]), other = _mm512_castps_pd(t[i + 2 + c / 2]);
            r[i + c] = _mm512_castpd_ps(c % 2 ? _mm512_unpackhi_pd(one, other) : _mm512_unpacklo_pd(one, other));
        }
    for (int c = 0; c < 4; c++) {
        __m512 even = _mm512_shuffle_f32x4(r[c], r[4 + c], 0x88), odd = _mm512_shuffle_f32x4(r[c], r[4 + c], 0xdd);
        __m512 even_behind = _mm512_shuffle_f32x4(r[8 + c], r[12 + c], 0x88);
        __m512 odd_behind = _mm512_shuffle_f32x4(r[8 + c], r[12 + c], 0xdd);
        _mm512_storeu_ps(to + (0 + c) * apart, _mm512_shuffle_f32x4(even, even_behind, 0x88));
        _mm512_storeu_ps(to + (4 + c) * apart, _mm512_shuffle_f32x4(odd, odd_behind, 0x88));
        _mm512_storeu_ps(to + (8 + c) * apart, _mm512_shuffle_f32x4(even, even_behind, 0xdd));
        _mm512_storeu_ps(to + (12 + c) * apart, _mm512_shuffle_f32x4(odd, odd_behind, 0xdd));
    }
}

#include "count_groups.h"

/* Counts at most TURNED_ROWS rows of at most 16 columns; tables, counts and moments are those of the first of them. */
static void count_many_rows(const float *values, int64_t rows, int64_t stride, int64_t columns, const float *tables,
                            int64_t width, int64_t *counts, double *moments) {
    const int64_t units = units_float(width), cells = width + 4;
    float block[16 * TURNED_STRIDE] __attribute__((aligned(64)));
    for (int64_t row = 0; row < rows && stride > 1; row += 16)
        if (columns == 16)
            turned(values + row * stride, rows - row, stride, 0xffff, block + row, TURNED_STRIDE);
        else
            turned(values + row * stride, rows - row, stride, FIRST(columns), block + row, TURNED_STRIDE);
    for (int64_t i = 0; i < columns; i++)
        counted_in_registers(stride > 1 ? block + i * TURNED_STRIDE : values, rows,
                             (const struct table_float *)(tables + i * units), width, counts + i * cells,
                             moments + i * 5);
}

/* Whether every column has few enough edges. */
static int all_few(int64_t columns, const float *tables, int64_t width) {
    for (int64_t column = 0; column < columns; column++)
        if (!((const struct table_float *)(tables + column * units_float(width)))->few)
            return 0;
    return 1;
}

/* Counts [rows, columns] that lie without gaps; false, and nothing done, where a column has too many edges. */
static int count_in_registers(const float *values, int64_t rows, int64_t columns, const float *tables, int64_t width,
                              int64_t *counts, double *moments) {
    if (!all_few(columns, tables, width))
        return 0;
    for (int64_t start = 0; start < rows; start += TURNED_ROWS) {
        const int64_t n = rows - start < TURNED_ROWS ? rows - start : TURNED_ROWS;
        for (int64_t from = 0; from < columns; from += 16)
            count_many_rows(values + start * columns + from, n, columns, columns - from < 16 ? columns - from : 16,
                            tables + from * units_float(width), width, counts + from * (width + 4),
                            moments + from * 5);
    }
    return 1;
}

#undef FIRST
#undef HALF
