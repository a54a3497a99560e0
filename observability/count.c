/* Counts columns of numbers over the bins of a profile, with moments: what `probe_kernels.py` does with numpy, several
 * times as fast. Compiled by `native.py` where there is a C compiler; never needed.
 *
 * A row of `counts` has `width` cells, then +inf, -inf, NaN, zeros. Its `width` edges ascend, the last of them are
 * +inf. A row of `moments` is count, mean, M2, minimum, maximum. Moments of a pass are taken about one of its values:
 * the sum of squares is then at most (rows + 1) times M2, so that 1e-9 of it is left of double precision in any case.
 */
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

enum {
    PLACES = 256,
    /* A search of the last place reads so far behind the last edge. */
    SPARE_EDGES = 256,
    GROUP_ROWS = 32,
    PASS_ROWS = 8192,
    BLOCK = 16384,
    /* Edges of 128 bins. */
    MOST_FEW = 129,
};

#define REAL float
#define INTEGER int32_t
#define LANES 16
#define SUFFIX float
#define MARGIN 0x1p-12f
#if defined(__AVX512F__) && defined(__AVX512DQ__) && !defined(WITHOUT_REGISTERS)
#define IN_REGISTERS count_in_registers
/* So many rows of so many columns are counted as they come: to copy them, and to find them gone cold, takes longer. */
enum { ENOUGH_ROWS = 192, ENOUGH_COLUMNS = 32 };
#else
enum { ENOUGH_ROWS = INT32_MAX, ENOUGH_COLUMNS = 0 };
#endif
#include "count_lanes.h"
#undef IN_REGISTERS
#undef REAL
#undef INTEGER
#undef LANES
#undef SUFFIX
#undef MARGIN
#define REAL double
#define INTEGER int64_t
#define LANES 8
#define SUFFIX double
#define MARGIN 0x1p-36
#include "count_lanes.h"

/* Threads that call one module at once add to the same memory. A lock is held for microseconds and never while Python
 * runs, so that whoever waits for it may hold Python's own. */
static atomic_flag locks[64];

static atomic_flag *locked(const void *key) {
    atomic_flag *lock = locks + ((uintptr_t)key >> 6) % 64;
    while (atomic_flag_test_and_set_explicit(lock, memory_order_acquire))
        sched_yield();
    return lock;
}

static void unlock(atomic_flag *lock) { atomic_flag_clear_explicit(lock, memory_order_release); }

static void unlock_all(void) {
    for (int i = 0; i < 64; i++)
        unlock(locks + i);
}

__attribute__((constructor)) static void start(void) { pthread_atfork(0, 0, unlock_all); }

/* A probe's memory. `waiting` holds up to `capacity` rows that are not counted yet, `filled` says how many. */
struct trimtab_probe {
    int64_t columns, width, capacity;
    const float *tables;
    int64_t *counts;
    double *moments;
    float *waiting;
    int64_t *filled;
};

static void count_waiting(const struct trimtab_probe *probe) {
    count_float(probe->waiting, *probe->filled, probe->columns, probe->tables, probe->width, probe->counts,
                probe->moments);
    *probe->filled = 0;
}

/* Adds [rows, columns] that lie without gaps: a small batch only joins those that wait. */
void trimtab_probe_add(const struct trimtab_probe *probe, const float *values, int64_t rows) {
    atomic_flag *lock = locked(probe->counts);
    if (rows > probe->capacity / 2 || (rows >= ENOUGH_ROWS && probe->columns >= ENOUGH_COLUMNS)) {
        count_float(values, rows, probe->columns, probe->tables, probe->width, probe->counts, probe->moments);
    } else {
        if (*probe->filled + rows > probe->capacity)
            count_waiting(probe);
        memcpy(probe->waiting + *probe->filled * probe->columns, values,
               (size_t)(rows * probe->columns) * sizeof(float));
        *probe->filled += rows;
    }
    unlock(lock);
}

/* The same of columns that lie apart, each without gaps. */
void trimtab_probe_add_columns(const struct trimtab_probe *probe, const float *const *columns, int64_t rows) {
    const int64_t width = probe->columns;
    atomic_flag *lock = locked(probe->counts);
    for (int64_t start = 0, n; start < rows; start += n) {
        if (*probe->filled == probe->capacity)
            count_waiting(probe);
        n = probe->capacity - *probe->filled;
        n = n < rows - start ? n : rows - start;
        float *to = probe->waiting + *probe->filled * width;
        for (int64_t column = 0; column < width; column++)
            for (int64_t row = 0; row < n; row++)
                to[row * width + column] = columns[column][start + row];
        *probe->filled += n;
    }
    unlock(lock);
}

/* Counts what waits; of a copy that nobody adds to. */
void trimtab_probe_count_waiting(const struct trimtab_probe *probe) {
    atomic_flag *lock = locked(probe->counts);
    count_waiting(probe);
    unlock(lock);
}

/* Adds values that lie anywhere, of either type, to counts that others add to as well. */
void trimtab_add_float(const float *values, int64_t columns, int64_t rows, int64_t column_stride, int64_t row_stride,
                       const float *tables, int64_t width, int64_t *counts, double *moments) {
    atomic_flag *lock = locked(counts);
    trimtab_count_float(values, columns, rows, column_stride, row_stride, tables, width, counts, moments);
    unlock(lock);
}

void trimtab_add_double(const double *values, int64_t columns, int64_t rows, int64_t column_stride,
                        int64_t row_stride, const double *tables, int64_t width, int64_t *counts, double *moments) {
    atomic_flag *lock = locked(counts);
    trimtab_count_double(values, columns, rows, column_stride, row_stride, tables, width, counts, moments);
    unlock(lock);
}

/* Adds codes: those outside the list are code 0, negative ones are missing: the last of the `width` cells. */
void trimtab_add_codes(const int64_t *codes, int64_t num_rows, int64_t row_stride, int64_t size, int64_t width,
                       int64_t *counts, const void *key) {
    atomic_flag *lock = locked(key);
    for (int64_t i = 0; i < num_rows; i++) {
        int64_t code = codes[i * row_stride];
        counts[code < 0 ? width - 1 : code < size ? code : 0]++;
    }
    unlock(lock);
}

/* Copies several pieces of memory as they are at one moment; `key` is that of the counts. */
void trimtab_copy(int64_t pieces, const void *const *from, void *const *to, const int64_t *bytes, const void *key) {
    atomic_flag *lock = locked(key);
    for (int64_t piece = 0; piece < pieces; piece++)
        memcpy(to[piece], from[piece], (size_t)bytes[piece]);
    unlock(lock);
}
