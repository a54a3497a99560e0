/* Counts a block of numbers over the bins of a profile, with what its moments are made of: what `tally.py` does by
 * sorting, in a third of the time. Compiled by `native.py` where there is a C compiler; never needed.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

/* Rows worked on at once, which stay in the nearest cache; and histograms side by side, so that equal values that follow
 * each other do not wait for each other. */
enum { BLOCK = 1024, COPIES = 4 };
/* Edges are looked up by halves, of as many as a power of two less one: where there are none, NaN is never at or below a
 * value. */
enum { HALVED = 127, EDGES = 256 };

typedef uint32_t Histograms[COPIES][EDGES];

#ifdef __AVX512F__

/* Halving a sorted list of 127 edges seven times, with every level's middles in registers; what is behind the 127 is
 * looked at one by one. Rows at the end of a block are filled up with NaN, which lies in cell 0 and is taken off again.
 */
static void levels_double(const double *edges, double *levels) {
    for (int level = 0, width = 64; level < 7; level++, width /= 2)
        for (int i = 0; i < 1 << level; i++)
            levels[(1 << level) + i] = edges[(2 * i + 1) * width - 1];
}

static void grouped_double(const double *values, int64_t n, const double *edges, int64_t num_edges, Histograms counts) {
    _Alignas(64) double levels[128] = {0};
    _Alignas(64) int64_t cells[8];
    levels_double(edges, levels);
    __m512d first = _mm512_set1_pd(levels[1]), second = _mm512_castpd128_pd512(_mm_loadu_pd(levels + 2));
    __m512d third = _mm512_castpd256_pd512(_mm256_loadu_pd(levels + 4)), fourth = _mm512_loadu_pd(levels + 8);
    __m512d fifth[2], sixth[4], seventh[8];
    for (int i = 0; i < 2; i++)
        fifth[i] = _mm512_loadu_pd(levels + 16 + 8 * i);
    for (int i = 0; i < 4; i++)
        sixth[i] = _mm512_loadu_pd(levels + 32 + 8 * i);
    for (int i = 0; i < 8; i++)
        seventh[i] = _mm512_loadu_pd(levels + 64 + 8 * i);
    const __m512i one = _mm512_set1_epi64(1), sixteen = _mm512_set1_epi64(16), many = _mm512_set1_epi64(32);
    for (int64_t i = 0; i < n; i += 8) {
        __mmask8 held = n - i < 8 ? (__mmask8)((1 << (n - i)) - 1) : 0xff;
        __m512d value = _mm512_mask_loadu_pd(_mm512_set1_pd(NAN), held, values + i);
        __m512i at = _mm512_maskz_mov_epi64(_mm512_cmp_pd_mask(first, value, _CMP_LE_OQ), one);
#define STEP(MIDDLES)                                                                                                  \
    do {                                                                                                               \
        __mmask8 above = _mm512_cmp_pd_mask(MIDDLES, value, _CMP_LE_OQ);                                               \
        at = _mm512_add_epi64(at, at);                                                                                 \
        at = _mm512_mask_add_epi64(at, above, at, one);                                                                \
    } while (0)
        STEP(_mm512_permutexvar_pd(at, second));
        STEP(_mm512_permutexvar_pd(at, third));
        STEP(_mm512_permutexvar_pd(at, fourth));
        STEP(_mm512_permutex2var_pd(fifth[0], at, fifth[1]));
        __mmask8 half = _mm512_test_epi64_mask(at, sixteen);
        STEP(_mm512_mask_blend_pd(half, _mm512_permutex2var_pd(sixth[0], at, sixth[1]),
                                  _mm512_permutex2var_pd(sixth[2], at, sixth[3])));
        half = _mm512_test_epi64_mask(at, sixteen);
        __m512d left = _mm512_mask_blend_pd(half, _mm512_permutex2var_pd(seventh[0], at, seventh[1]),
                                            _mm512_permutex2var_pd(seventh[2], at, seventh[3]));
        __m512d right = _mm512_mask_blend_pd(half, _mm512_permutex2var_pd(seventh[4], at, seventh[5]),
                                             _mm512_permutex2var_pd(seventh[6], at, seventh[7]));
        STEP(_mm512_mask_blend_pd(_mm512_test_epi64_mask(at, many), left, right));
#undef STEP
        for (int64_t edge = HALVED; edge < num_edges; edge++) {
            __mmask8 above = _mm512_cmp_pd_mask(_mm512_set1_pd(edges[edge]), value, _CMP_LE_OQ);
            at = _mm512_mask_add_epi64(at, above, at, one);
        }
        _mm512_store_si512(cells, at);
        for (int lane = 0; lane < 8; lane++)
            counts[lane % COPIES][cells[lane]]++;
    }
    for (int64_t lane = (n + 7) % 8 + 1; n && lane < 8; lane++)
        counts[lane % COPIES][0]--;
}

static void levels_float(const float *edges, float *levels) {
    for (int level = 0, width = 64; level < 7; level++, width /= 2)
        for (int i = 0; i < 1 << level; i++)
            levels[(1 << level) + i] = edges[(2 * i + 1) * width - 1];
}

static void grouped_float(const float *values, int64_t n, const float *edges, int64_t num_edges, Histograms counts) {
    _Alignas(64) float levels[128] = {0};
    _Alignas(64) int32_t cells[16];
    levels_float(edges, levels);
    __m512 first = _mm512_set1_ps(levels[1]), second = _mm512_loadu_ps(levels + 2), third = _mm512_loadu_ps(levels + 4);
    __m512 fourth = _mm512_loadu_ps(levels + 8), fifth = _mm512_loadu_ps(levels + 16), sixth[2], seventh[4];
    for (int i = 0; i < 2; i++)
        sixth[i] = _mm512_loadu_ps(levels + 32 + 16 * i);
    for (int i = 0; i < 4; i++)
        seventh[i] = _mm512_loadu_ps(levels + 64 + 16 * i);
    const __m512i one = _mm512_set1_epi32(1), many = _mm512_set1_epi32(32);
    for (int64_t i = 0; i < n; i += 16) {
        __mmask16 held = n - i < 16 ? (__mmask16)((1 << (n - i)) - 1) : 0xffff;
        __m512 value = _mm512_mask_loadu_ps(_mm512_set1_ps(NAN), held, values + i);
        __m512i at = _mm512_maskz_mov_epi32(_mm512_cmp_ps_mask(first, value, _CMP_LE_OQ), one);
#define STEP(MIDDLES)                                                                                                  \
    do {                                                                                                               \
        __mmask16 above = _mm512_cmp_ps_mask(MIDDLES, value, _CMP_LE_OQ);                                              \
        at = _mm512_add_epi32(at, at);                                                                                 \
        at = _mm512_mask_add_epi32(at, above, at, one);                                                                \
    } while (0)
        STEP(_mm512_permutexvar_ps(at, second));
        STEP(_mm512_permutexvar_ps(at, third));
        STEP(_mm512_permutexvar_ps(at, fourth));
        STEP(_mm512_permutexvar_ps(at, fifth));
        STEP(_mm512_permutex2var_ps(sixth[0], at, sixth[1]));
        STEP(_mm512_mask_blend_ps(_mm512_test_epi32_mask(at, many),
                                  _mm512_permutex2var_ps(seventh[0], at, seventh[1]),
                                  _mm512_permutex2var_ps(seventh[2], at, seventh[3])));
#undef STEP
        for (int64_t edge = HALVED; edge < num_edges; edge++) {
            __mmask16 above = _mm512_cmp_ps_mask(_mm512_set1_ps(edges[edge]), value, _CMP_LE_OQ);
            at = _mm512_mask_add_epi32(at, above, at, one);
        }
        _mm512_store_si512(cells, at);
        for (int lane = 0; lane < 16; lane++)
            counts[lane % COPIES][cells[lane]]++;
    }
    for (int64_t lane = (n + 15) % 16 + 1; n && lane < 16; lane++)
        counts[lane % COPIES][0]--;
}

static void range_double(const double *values, int64_t n, double *low, double *high) {
    __m512d least = _mm512_set1_pd(*low), most = _mm512_set1_pd(*high);
    int64_t i = 0;
    for (; i + 8 <= n; i += 8) {
        least = _mm512_min_pd(_mm512_loadu_pd(values + i), least);
        most = _mm512_max_pd(_mm512_loadu_pd(values + i), most);
    }
    *low = _mm512_reduce_min_pd(least), *high = _mm512_reduce_max_pd(most);
    for (; i < n; i++) {
        *low = values[i] < *low ? values[i] : *low;
        *high = values[i] > *high ? values[i] : *high;
    }
}

static void range_float(const float *values, int64_t n, float *low, float *high) {
    __m512 least = _mm512_set1_ps(*low), most = _mm512_set1_ps(*high);
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) {
        least = _mm512_min_ps(_mm512_loadu_ps(values + i), least);
        most = _mm512_max_ps(_mm512_loadu_ps(values + i), most);
    }
    *low = _mm512_reduce_min_ps(least), *high = _mm512_reduce_max_ps(most);
    for (; i < n; i++) {
        *low = values[i] < *low ? values[i] : *low;
        *high = values[i] > *high ? values[i] : *high;
    }
}

#else

enum { LANES = 8 };

/* A search without a branch, which the compiler turns into vector instructions where there are any. */
#define DEFINE_PORTABLE(KIND, INTEGER)                                                                                 \
    static void grouped_##KIND(const KIND *values, int64_t n, const KIND *edges, int64_t num_edges, Histograms counts) {  \
        INTEGER cells[BLOCK];                                                                                          \
        (void)num_edges;                                                                                               \
        memset(cells, 0, sizeof cells);                                                                                \
        for (INTEGER step = EDGES / 2; step; step /= 2)                                                                \
            for (int64_t i = 0; i < n; i++)                                                                            \
                cells[i] += edges[cells[i] + step - 1] <= values[i] ? step : 0;                                        \
        int64_t i = 0;                                                                                                 \
        for (; i + COPIES <= n; i += COPIES)                                                                           \
            for (int copy = 0; copy < COPIES; copy++)                                                                  \
                counts[copy][cells[i + copy]]++;                                                                       \
        for (; i < n; i++)                                                                                             \
            counts[0][cells[i]]++;                                                                                     \
    }                                                                                                                  \
                                                                                                                       \
    static void range_##KIND(const KIND *values, int64_t n, KIND *low, KIND *high) {                                   \
        KIND least[LANES], most[LANES];                                                                                \
        for (int lane = 0; lane < LANES; lane++)                                                                       \
            least[lane] = *low, most[lane] = *high;                                                                    \
        int64_t i = 0;                                                                                                 \
        for (; i + LANES <= n; i += LANES)                                                                             \
            for (int lane = 0; lane < LANES; lane++) {                                                                 \
                KIND value = values[i + lane];                                                                         \
                least[lane] = value < least[lane] ? value : least[lane];                                               \
                most[lane] = value > most[lane] ? value : most[lane];                                                  \
            }                                                                                                          \
        for (; i < n; i++) {                                                                                           \
            least[0] = values[i] < least[0] ? values[i] : least[0];                                                    \
            most[0] = values[i] > most[0] ? values[i] : most[0];                                                       \
        }                                                                                                              \
        for (int lane = 0; lane < LANES; lane++) {                                                                     \
            *low = least[lane] < *low ? least[lane] : *low;                                                            \
            *high = most[lane] > *high ? most[lane] : *high;                                                           \
        }                                                                                                              \
    }

DEFINE_PORTABLE(double, int64_t)
DEFINE_PORTABLE(float, int32_t)

#endif

/* `counts` (num_edges + 1 of them; at most 136 edges) are added to: cell c holds the finite values that lie at or above
 * c of the ascending edges. `special` is set to the numbers of NaN, +inf, -inf and zeros; `sums` to what is known of the
 * finite values: a number near their mean, the sums of their deviations from it and of the squares, least, greatest.
 *
 * The deviations are from the first rows' mean. Where that lies so far from the mean of all that digits would be lost,
 * or the sums overflow, they are taken again from the mean of all.
 */
#define FAR 1e4
#define DEFINE_TALLY(KIND)                                                                                             \
    static double mean_##KIND(const KIND *values, int64_t rows, int64_t finite) {                                      \
        double sum = 0.0;                                                                                              \
        for (int64_t i = 0; i < rows; i++)                                                                             \
            sum += isfinite(values[i]) ? (double)values[i] / (double)finite : 0.0;                                     \
        return sum;                                                                                                    \
    }                                                                                                                  \
                                                                                                                       \
    void trimtab_tally_##KIND(const KIND *values, int64_t rows, const KIND *edges, int64_t num_edges, int64_t *counts, \
                              int64_t *special, double *sums) {                                                        \
        _Alignas(64) Histograms found;                                                                                 \
        _Alignas(64) KIND padded[EDGES];                                                                               \
        KIND low = INFINITY, high = -INFINITY;                                                                         \
        int64_t nan = 0, up = 0, down = 0, zeros = 0;                                                                  \
        memset(found, 0, sizeof found);                                                                                \
        for (int64_t i = 0; i < EDGES; i++)                                                                            \
            padded[i] = i < num_edges ? edges[i] : NAN;                                                                \
        double center = 0.0, rest = 0.0, squares = 0.0;                                                                \
        for (int64_t i = 0; i < rows && i < BLOCK; i++)                                                                \
            center += (double)values[i];                                                                               \
        center = isfinite(center) && rows ? center / (double)(rows < BLOCK ? rows : BLOCK) : 0.0;                      \
        for (int64_t start = 0; start < rows; start += BLOCK) {                                                        \
            int64_t n = rows - start < BLOCK ? rows - start : BLOCK;                                                   \
            const KIND *block = values + start;                                                                        \
            grouped_##KIND(block, n, padded, num_edges, found);                                                        \
            int32_t zero = 0;                                                                                          \
            for (int64_t i = 0; i < n; i++)                                                                            \
                zero += block[i] == 0;                                                                                 \
            zeros += zero;                                                                                             \
            double sum = 0.0, squared = 0.0;                                                                           \
            for (int64_t i = 0; i < n; i++) {                                                                          \
                double deviation = (double)block[i] - center;                                                          \
                sum += deviation;                                                                                      \
                squared += deviation * deviation;                                                                      \
            }                                                                                                          \
            if (isfinite(sum)) {                                                                                       \
                range_##KIND(block, n, &low, &high);                                                                   \
            } else {                                                                                                   \
                sum = squared = 0.0;                                                                                   \
                for (int64_t i = 0; i < n; i++)                                                                        \
                    if (isfinite(block[i])) {                                                                          \
                        double deviation = (double)block[i] - center;                                                  \
                        sum += deviation;                                                                              \
                        squared += deviation * deviation;                                                              \
                        low = block[i] < low ? block[i] : low;                                                         \
                        high = block[i] > high ? block[i] : high;                                                      \
                    } else {                                                                                           \
                        nan += isnan(block[i]) != 0;                                                                   \
                        up += block[i] > 0;                                                                            \
                        down += block[i] < 0;                                                                          \
                    }                                                                                                  \
            }                                                                                                          \
            rest += sum;                                                                                               \
            squares += squared;                                                                                        \
        }                                                                                                              \
        int64_t finite = rows - nan - up - down;                                                                       \
        double lost = finite ? rest / (double)finite * rest : 0.0;                                                     \
        if (!(lost <= FAR * (squares - lost)) && finite) {                                                             \
            center = isfinite(rest) ? center + rest / (double)finite : mean_##KIND(values, rows, finite);              \
            rest = squares = 0.0;                                                                                      \
            for (int64_t i = 0; i < rows; i++) {                                                                       \
                double deviation = isfinite(values[i]) ? (double)values[i] - center : 0.0;                             \
                rest += deviation;                                                                                     \
                squares += deviation * deviation;                                                                      \
            }                                                                                                          \
        }                                                                                                              \
        special[0] = nan, special[1] = up, special[2] = down, special[3] = zeros;                                      \
        sums[0] = center, sums[1] = rest, sums[2] = squares, sums[3] = low, sums[4] = high;                            \
        for (int64_t cell = 0; cell <= num_edges; cell++)                                                              \
            for (int copy = 0; copy < COPIES; copy++)                                                                  \
                counts[cell] += found[copy][cell];                                                                     \
        /* Below all edges, NaN is not above any; +inf is above all. */                                                \
        counts[0] -= nan + down;                                                                                       \
        counts[num_edges] -= up;                                                                                       \
    }

DEFINE_TALLY(double)
DEFINE_TALLY(float)
