/* Counts columns of numbers over the bins of a profile, with moments: what `probe_kernels.py` does with numpy, three
 * times as fast on small batches. Compiled by `native.py` where there is a C compiler; never needed.
 *
 * A row of `counts` has `width` cells, then +inf, -inf, NaN, zeros. Its `width` edges ascend, the last of them are
 * +inf; `width` is a power of two, so that the search has no branch and the compiler turns it into vector gathers.
 * A row of `moments` is count, mean, M2, minimum, maximum.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define BLOCK 512

/* The bits of IEEE numbers, read as integers, order the numbers, negative ones upside down: `KEY` turns those round.
 * On integers the compiler vectorises minimum and maximum, on numbers that may be NaN it does not. */
#define KEY(bits, most) ((bits) ^ (((bits) >> (8 * sizeof(bits) - 1)) & (most)))

#define DEFINE_COUNT(NAME, REAL, INTEGER, MOST, INFINITE)                                                              \
    static REAL NAME##_of_key(INTEGER key) {                                                                           \
        REAL value;                                                                                                    \
        key = KEY(key, MOST);                                                                                          \
        memcpy(&value, &key, sizeof value);                                                                            \
        return value;                                                                                                  \
    }                                                                                                                  \
                                                                                                                       \
    static void NAME##_block(const REAL *restrict values, int64_t n, const REAL *restrict edges, int64_t width,        \
                             int64_t *restrict counts, double *restrict moments) {                                     \
        INTEGER low_keys[BLOCK], high_keys[BLOCK], cells[BLOCK], steps = (INTEGER)width;                               \
        INTEGER finite = 0, zeros = 0, low = MOST, high = -MOST - 1;                                                   \
        memcpy(high_keys, values, (size_t)n * sizeof(REAL));                                                           \
        for (int64_t i = 0; i < n; i++) {                                                                              \
            INTEGER bits = high_keys[i], size = bits & MOST, is_finite = -(INTEGER)(size < INFINITE);                  \
            INTEGER key = KEY(bits, MOST);                                                                             \
            finite -= is_finite;                                                                                       \
            zeros += size == 0;                                                                                        \
            low_keys[i] = (key & is_finite) | (~is_finite & MOST);                                                     \
            high_keys[i] = (key & is_finite) | (~is_finite & (-MOST - 1));                                             \
            cells[i] = 0;                                                                                              \
        }                                                                                                              \
        for (INTEGER step = steps / 2; step; step /= 2)                                                                \
            for (int64_t i = 0; i < n; i++)                                                                            \
                cells[i] += edges[cells[i] + step - 1] <= values[i] ? step : 0;                                        \
        if (finite < n)                                                                                                \
            for (int64_t i = 0; i < n; i++)                                                                            \
                if (!(values[i] - values[i] == 0))                                                                     \
                    cells[i] = steps + (values[i] != values[i] ? 2 : values[i] < 0);                                   \
        for (int64_t i = 0; i < n; i++)                                                                                \
            counts[cells[i]]++;                                                                                        \
        counts[width + 3] += zeros;                                                                                    \
        if (!finite)                                                                                                   \
            return;                                                                                                    \
        for (int64_t i = 0; i < n; i++)                                                                                \
            low = low_keys[i] < low ? low_keys[i] : low;                                                               \
        for (int64_t i = 0; i < n; i++)                                                                                \
            high = high_keys[i] > high ? high_keys[i] : high;                                                          \
        double sum = 0.0, squares = 0.0;                                                                               \
        for (int64_t i = 0; i < n; i++) {                                                                              \
            REAL value = values[i] - values[i] == 0 ? values[i] : 0;                                                   \
            sum += (double)value;                                                                                      \
        }                                                                                                              \
        double mean = sum / (double)finite;                                                                            \
        for (int64_t i = 0; i < n; i++) {                                                                              \
            double deviation = values[i] - values[i] == 0 ? (double)values[i] - mean : 0.0;                            \
            squares += deviation * deviation;                                                                          \
        }                                                                                                              \
        /* Chan, Golub and LeVeque (1979), "Updating formulae", equation 2.1. */                                       \
        double before = moments[0], total = before + (double)finite, share = (double)finite / total;                   \
        double delta = mean - moments[1];                                                                              \
        moments[0] = total;                                                                                            \
        moments[1] = before > 0 ? moments[1] + delta * share : mean;                                                   \
        moments[2] += squares + (before > 0 ? delta * delta * before * share : 0.0);                                   \
        moments[3] = fmin(moments[3], (double)NAME##_of_key(low));                                                     \
        moments[4] = fmax(moments[4], (double)NAME##_of_key(high));                                                    \
    }                                                                                                                  \
                                                                                                                       \
    void NAME(const REAL *values, int64_t num_columns, int64_t num_rows, int64_t column_stride, int64_t row_stride,    \
              const REAL *edges, int64_t width, int64_t *counts, double *moments) {                                    \
        REAL block[BLOCK];                                                                                             \
        for (int64_t start = 0; start < num_rows; start += BLOCK)                                                      \
            for (int64_t column = 0; column < num_columns; column++) {                                                 \
                int64_t n = num_rows - start < BLOCK ? num_rows - start : BLOCK;                                       \
                const REAL *first = values + column * column_stride + start * row_stride;                              \
                for (int64_t i = 0; row_stride != 1 && i < n; i++)                                                     \
                    block[i] = first[i * row_stride];                                                                  \
                NAME##_block(row_stride == 1 ? first : block, n, edges + column * width, width,                        \
                             counts + column * (width + 4), moments + column * 5);                                     \
            }                                                                                                          \
    }

DEFINE_COUNT(trimtab_count_float, float, int32_t, INT32_MAX, 0x7f800000)
DEFINE_COUNT(trimtab_count_double, double, int64_t, INT64_MAX, 0x7ff0000000000000)

/* Codes outside the list are code 0, negative ones are missing: the last of the `width` cells. */
void trimtab_count_codes(const int64_t *codes, int64_t num_rows, int64_t row_stride, int64_t size, int64_t width,
                         int64_t *counts) {
    for (int64_t i = 0; i < num_rows; i++) {
        int64_t code = codes[i * row_stride];
        counts[code < 0 ? width - 1 : code < size ? code : 0]++;
    }
}
