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
    /* Edges of 128 bins; all but the outermost are a search tree, whose leaves are the cells behind the first. */
    MOST_FEW = 129,
    LEAVES = 128,
};

/* What is needed of 16 columns to count a batch, in as few lines of memory as can be, and what they have counted of late: the
 * LEAVES cells behind the first, descending, and moments of `rows` values about one of them. `probe_state.py` knows it, too. */
struct trimtab_group {
    float tree[16][LEAVES];
    uint16_t pending[16][LEAVES];
    /* The outermost edges. */
    float first[16], last[16];
    float pivot[16], low[16], high[16];
    int32_t rows[16];
    double sum[16], squares[16];
};

#define REAL float
#define INTEGER int32_t
#define LANES 16
#define SUFFIX float
#define MARGIN 0x1p-12f
#if defined(__AVX512F__) && defined(__AVX512DQ__) && !defined(WITHOUT_REGISTERS)
#define IN_REGISTERS count_in_registers
#define COUNT_GROUPS count_groups
/* So many rows, and values, of so many columns are counted as they come: to copy them, and to find them gone cold, takes
 * longer. */
enum { ENOUGH_ROWS = 128, ENOUGH_VALUES = 8192, ENOUGH_COLUMNS = 16 };
#else
enum { ENOUGH_ROWS = 0, ENOUGH_VALUES = INT32_MAX, ENOUGH_COLUMNS = INT32_MAX };
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

#include "count_probe.h"
