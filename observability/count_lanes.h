/* The part of `count.c` that is the same for float and double: included once with each REAL, INTEGER of its size, LANES
 * that fill 64 bytes, SUFFIX for the names, MARGIN (rounding errors of `place`, in places).
 *
 * A value's cell is found in two steps: a smooth ascending function brings it to one of PLACES places, whose first cell
 * stands in a table; the few edges that lie in one place are compared. The lanes are neighbouring values of rows, each
 * of a column of its own, so that nothing is moved before it is counted.
 */
#define JOINED(name, suffix) name##_##suffix
#define EXPANDED(name, suffix) JOINED(name, suffix)
#define NAMED(name) EXPANDED(name, SUFFIX)
#define EACH for (int j = 0; j < LANES; j++)
/* Places in one INTEGER of the table, and the shift that finds the INTEGER. */
#define PACKED ((int)sizeof(INTEGER))
#define SHIFT (PACKED == 4 ? 2 : 3)

/* What a column's table begins with; behind it are the places (bytes), then the edges, filled up with +inf. */
struct NAMED(table) {
    REAL middle, spread, scale, offset;
    /* Comparisons in a place: 1 to 4; 8 of all edges, without places; 0 where there are too many for a byte. */
    INTEGER steps;
    /* Edges below infinity. */
    INTEGER edges;
    /* 1 where the edges are few enough to be searched in registers, as `count_registers.h` does. */
    INTEGER few, unused;
    /* For it: edges 1 to 127 as a search tree, descending, whose node k has the children 2k and 2k + 1, and the two beside them. */
    REAL first, last, tree[MOST_FEW - 1];
    INTEGER places[PLACES / sizeof(INTEGER)];
};

struct NAMED(lanes) {
    REAL middle[LANES], spread[LANES], scale[LANES], offset[LANES], pivot[LANES], low[LANES], high[LANES];
    INTEGER places[LANES], edges[LANES], histogram[LANES], zeros[LANES];
    double sum[LANES], squares[LANES];
};

static int64_t NAMED(units)(int64_t width) {
    return (int64_t)(sizeof(struct NAMED(table)) / sizeof(REAL)) + width + SPARE_EDGES;
}

/* From 0 to PLACES - 1; never less for a greater value: every step is monotone when it is rounded, too. */
static inline __attribute__((always_inline)) REAL NAMED(place)(REAL value, REAL middle, REAL spread, REAL scale,
                                                               REAL offset) {
    REAL distance = value - middle, share = 1 - spread / (spread + (distance < 0 ? -distance : distance));
    REAL place = (distance < 0 ? -share : share) * scale + offset;
    place = place > 0 ? place : 0;
    return place < PLACES - 1 ? place : PLACES - 1;
}

/* Tries one spread: the most edges that share a place, whose table it fills. */
static int64_t NAMED(spread)(struct NAMED(table) *table, const REAL *edges, int64_t n, REAL spread) {
    REAL low = edges[0], high = edges[n - 1], middle = edges[n / 2];
    REAL before = spread / (spread + (middle - low)) - 1, behind = 1 - spread / (spread + (high - middle));
    if (!(behind > before) || !isfinite(spread + (high - low)) || !isfinite((PLACES - 4) / (behind - before)))
        return INT64_MAX;
    table->middle = middle, table->spread = spread;
    table->scale = (PLACES - 4) / (behind - before), table->offset = 2 - before * table->scale;
    if (!isfinite(table->offset))
        return INT64_MAX;
    unsigned char *places = (unsigned char *)table->places;
    int64_t behind_place[PLACES], most = 0;
    memset(places, 0, PLACES), memset(behind_place, 0, sizeof behind_place);
    for (int64_t edge = 0; edge < n; edge++) {
        REAL place = NAMED(place)(edges[edge], middle, spread, table->scale, table->offset);
        /* Where rounding may bring the edge's own place to either side of a border, it belongs to both. */
        int first = (int)(place > MARGIN ? place - MARGIN : 0), last = (int)(place + MARGIN);
        last = last < PLACES - 1 ? last : PLACES - 1;
        for (int at = last + 1; at < PLACES; at++)
            places[at]++;
        for (int at = first; at < PLACES; at++)
            behind_place[at]++;
    }
    for (int at = 0; at < PLACES; at++)
        most = behind_place[at] - places[at] > most ? behind_place[at] - places[at] : most;
    return most;
}

/* Edges 1 to 127 of `edges`, with the two beside them, as a search tree. */
static void NAMED(tree)(const REAL *edges, REAL *tree) {
    for (int level = 0, node = 1; level < 7; level++)
        for (int i = 0; i < 1 << level; i++)
            tree[node++] = edges[LEAVES - ((2 * i + 1) << (6 - level))];
}

/* Fills the tables of `columns` columns from their edges, [columns, width]. */
static void NAMED(tables)(const REAL *edges, int64_t columns, int64_t width, REAL *tables) {
    static const double SPREADS[] = {1.0, 0.5, 2.0, 0.25, 8.0, 64.0, 0.0625, 0.015625};
    for (int64_t column = 0; column < columns; column++, edges += width, tables += NAMED(units)(width)) {
        struct NAMED(table) *table = (struct NAMED(table) *)tables, found = {0};
        REAL *own = tables + sizeof *table / sizeof(REAL);
        int64_t n = 0;
        while (n < width && edges[n] < INFINITY)
            n++;
        for (int64_t edge = 0; edge < width + SPARE_EDGES; edge++)
            own[edge] = edge < n ? edges[edge] : (REAL)INFINITY;
        memset(table, 0, sizeof *table);
        table->spread = 1, table->edges = (INTEGER)n, table->steps = n < 2 ? 1 : n < 256 ? 8 : 0;
        for (size_t attempt = 0; table->steps > 1 && attempt < sizeof SPREADS / sizeof *SPREADS; attempt++) {
            REAL spread = (edges[n - 1 - n / 4] - edges[n / 4]) * (REAL)SPREADS[attempt];
            int64_t most = spread > 0 ? NAMED(spread)(&found, edges, n, spread) : INT64_MAX;
            INTEGER steps = most < 2 ? 1 : most < 4 ? 2 : most < 16 ? 4 : 8;
            if (steps < table->steps)
                found.edges = table->edges, found.steps = steps, *table = found;
        }
        table->few = n > 0 && n <= MOST_FEW, table->first = own[0], table->last = own[MOST_FEW - 1];
        NAMED(tree)(own, table->tree);
    }
}

static inline __attribute__((always_inline)) void NAMED(moment)(struct NAMED(lanes) *l, int j, REAL value) {
    double deviation = (double)value - (double)l->pivot[j];
    l->sum[j] += deviation;
    l->squares[j] += deviation * deviation;
    l->low[j] = value < l->low[j] ? value : l->low[j];
    l->high[j] = value > l->high[j] ? value : l->high[j];
    l->zeros[j] += value == 0 ? 1 : 0;
}

static inline __attribute__((always_inline)) void NAMED(rows)(int steps, const REAL *values, int64_t rows,
                                                              int64_t stride, struct NAMED(lanes) *restrict lanes,
                                                              const REAL *restrict tables, INTEGER cells,
                                                              uint16_t *restrict histograms) {
    struct NAMED(lanes) l = *lanes;
    const INTEGER *places = (const INTEGER *)tables;
    uint16_t at[GROUP_ROWS * LANES];
    for (int64_t n; rows; rows -= n, values += n * stride) {
        n = rows < GROUP_ROWS ? rows : GROUP_ROWS;
        for (int64_t row = 0; row < n; row++)
            EACH {
                REAL value = values[row * stride + j];
                INTEGER cell = 0;
                if (steps < 8) {
                    INTEGER place = (int)NAMED(place)(value, l.middle[j], l.spread[j], l.scale[j], l.offset[j]);
                    cell = (places[l.places[j] + (place >> SHIFT)] >> ((place & (PACKED - 1)) * 8)) & 255;
                }
                if (steps == 8) {
                    cell += tables[l.edges[j] + cell + 127] <= value ? 128 : 0;
                    cell += tables[l.edges[j] + cell + 63] <= value ? 64 : 0;
                    cell += tables[l.edges[j] + cell + 31] <= value ? 32 : 0;
                    cell += tables[l.edges[j] + cell + 15] <= value ? 16 : 0;
                }
                if (steps >= 4)
                    cell += tables[l.edges[j] + cell + 7] <= value ? 8 : 0;
                if (steps >= 4)
                    cell += tables[l.edges[j] + cell + 3] <= value ? 4 : 0;
                if (steps >= 2)
                    cell += tables[l.edges[j] + cell + 1] <= value ? 2 : 0;
                cell += tables[l.edges[j] + cell] <= value ? 1 : 0;
                at[row * LANES + j] = (uint16_t)(l.histogram[j] + cell);
            }
        const struct NAMED(lanes) before = l;
        INTEGER strange = 0;
        for (int64_t row = 0; row < n; row++)
            EACH NAMED(moment)(&l, j, values[row * stride + j]);
        /* NaN and infinity stay in a sum. */
        EACH strange += l.sum[j] - l.sum[j] == 0 ? 0 : 1;
        if (strange) {
            l = before;
            for (int64_t row = 0; row < n; row++)
                EACH {
                    REAL value = values[row * stride + j];
                    int special = value != value ? 2 : value > 0 ? 0 : 1;
                    if (isfinite(value))
                        NAMED(moment)(&l, j, value);
                    else
                        at[row * LANES + j] = (uint16_t)(l.histogram[j] + cells + special);
                }
        }
        /* Apart from the search, which would wait where two values that follow each other meet in a cell. */
        for (int64_t i = 0; i < n * LANES; i++)
            histograms[at[i]]++;
    }
    *lanes = l;
}

#define DEFINE_ROWS(STEPS)                                                                                             \
    static __attribute__((noinline)) void NAMED(EXPANDED(rows, STEPS))(                                                \
        const REAL *values, int64_t rows, int64_t stride, struct NAMED(lanes) *lanes, const REAL *tables,              \
        INTEGER cells, uint16_t *histograms) {                                                                         \
        NAMED(rows)(STEPS, values, rows, stride, lanes, tables, cells, histograms);                                    \
    }
DEFINE_ROWS(1)
DEFINE_ROWS(2)
DEFINE_ROWS(4)
DEFINE_ROWS(8)

/* A lane's values join a column's moments: Chan, Golub and LeVeque (1979), "Updating formulae", equation 2.1. */
static void NAMED(merge)(double *moments, int64_t n, double mean, double squares, double low, double high) {
    double before = moments[0], total = before + (double)n, share = (double)n / total, delta = mean - moments[1];
    moments[0] = total;
    moments[1] = !(before > 0)     ? mean
                 : isfinite(delta) ? moments[1] + delta * share
                                   : moments[1] * (1 - share) + mean * share;
    moments[2] += squares + (before > 0 ? delta * delta * before * share : 0.0);
    moments[3] = low < moments[3] ? low : moments[3];
    moments[4] = high > moments[4] ? high : moments[4];
}

#ifdef IN_REGISTERS
#include "count_registers.h"
#endif

/* Counts LANES neighbouring positions of rows of `period` values, from `first` on; the first `known` are counted
 * already. Rows are fewer than 65,536: the histograms' cells have 16 bits. */
static void NAMED(group)(const REAL *values, int64_t rows, int64_t period, int64_t first, int known, int64_t columns,
                         const REAL *tables, int64_t width, int64_t *counts, double *moments) {
    uint16_t histograms[LANES * (256 + 4)];
    struct NAMED(lanes) l;
    const int64_t units = NAMED(units)(width), header = sizeof(struct NAMED(table)) / sizeof(REAL);
    int steps = 1, cells = 1;
    int64_t own[LANES];
    memset(&l, 0, sizeof l);
    own[0] = first % columns;
    for (int j = 1; j < LANES; j++)
        own[j] = own[j - 1] + 1 < columns ? own[j - 1] + 1 : 0;
    EACH {
        const struct NAMED(table) *table = (const struct NAMED(table) *)(tables + own[j] * units);
        steps = table->steps > steps ? (int)table->steps : steps;
        cells = table->edges + 1 > cells ? (int)table->edges + 1 : cells;
        l.middle[j] = table->middle, l.spread[j] = table->spread;
        l.scale[j] = table->scale, l.offset[j] = table->offset;
        l.places[j] = (INTEGER)(own[j] * units + header - PLACES / PACKED);
        l.edges[j] = (INTEGER)(own[j] * units + header);
        /* What a model has in between may have left nothing of these in the cache. */
        for (int64_t byte = 0; byte < header * (int64_t)sizeof(REAL) + table->edges * (int64_t)sizeof(REAL); byte += 64)
            __builtin_prefetch((const char *)table + byte);
        for (int64_t row = 0; row < rows; row++)
            if (isfinite(values[row * period + first + j])) {
                l.pivot[j] = l.low[j] = l.high[j] = values[row * period + first + j];
                break;
            }
    }
    EACH l.histogram[j] = j * (cells + 3);
    memset(histograms, 0, sizeof *histograms * (size_t)(LANES * (cells + 3)));
    values += first;
    (steps == 1 ? NAMED(rows_1) : steps == 2 ? NAMED(rows_2) : steps == 4 ? NAMED(rows_4) : NAMED(rows_8))(
        values, rows, period, &l, tables, cells, histograms);
    for (int j = known; j < LANES; j++) {
        int64_t column = own[j], *row = counts + column * (width + 4);
        const uint16_t *found = histograms + j * (cells + 3);
        for (int cell = 0; cell < cells; cell++)
            row[cell] += found[cell];
        for (int special = 0; special < 3; special++)
            row[width + special] += found[cells + special];
        row[width + 3] += l.zeros[j];
        int64_t n = rows - found[cells] - found[cells + 1] - found[cells + 2];
        if (!n)
            continue;
        double mean = (double)l.pivot[j] + l.sum[j] / (double)n, squares = l.squares[j] - l.sum[j] * l.sum[j] / (double)n;
        if (!isfinite(mean)) {
            mean = 0.0;
            for (int64_t i = 0; i < rows; i++)
                mean += isfinite(values[i * period + j]) ? (double)values[i * period + j] / (double)n : 0.0;
        }
        squares = isfinite(l.squares[j]) ? (squares > 0.0 ? squares : 0.0) : (double)INFINITY;
        NAMED(merge)(moments + column * 5, n, mean, squares, (double)l.low[j], (double)l.high[j]);
    }
}

/* One value after another: for tables with more edges than a byte can number. */
static void NAMED(slowly)(const REAL *values, int64_t rows, int64_t columns, const REAL *tables, int64_t width,
                          int64_t *counts, double *moments) {
    for (int64_t i = 0; i < rows * columns; i++) {
        int64_t column = i % columns, low = 0, high = width, *row = counts + column * (width + 4);
        const REAL *edges =
            tables + column * NAMED(units)(width) + sizeof(struct NAMED(table)) / sizeof(REAL), value = values[i];
        if (!isfinite(value)) {
            row[width + (value != value ? 2 : value < 0)]++;
            continue;
        }
        while (low < high) {
            int64_t half = (low + high) / 2;
            if (edges[half] <= value)
                low = half + 1;
            else
                high = half;
        }
        row[low]++;
        row[width + 3] += value == 0;
        NAMED(merge)(moments + column * 5, 1, (double)value, 0.0, (double)value, (double)value);
    }
}

/* Counts [rows, columns] that lie without gaps. */
static void NAMED(count)(const REAL *values, int64_t rows, int64_t columns, const REAL *tables, int64_t width,
                         int64_t *counts, double *moments) {
    const int64_t units = NAMED(units)(width);
#ifdef IN_REGISTERS
    if (IN_REGISTERS(values, rows, columns, tables, width, counts, moments))
        return;
#endif
    for (int64_t column = 0; column < columns; column++)
        if (!((const struct NAMED(table) *)(tables + column * units))->steps || columns * units > INT32_MAX) {
            NAMED(slowly)(values, rows, columns, tables, width, counts, moments);
            return;
        }
    /* Several narrow rows are one, so that lanes are full. */
    int64_t folded = 1;
    while (columns * folded < LANES || (columns * folded % LANES && columns * folded < 8 * LANES))
        folded *= 2;
    const int64_t period = columns * folded;
    for (int64_t start = 0; start < rows / folded; start += PASS_ROWS) {
        int64_t n = rows / folded - start < PASS_ROWS ? rows / folded - start : PASS_ROWS;
        for (int64_t first = 0; first < period; first += LANES) {
            /* The last group goes back to be full; what it counts again is left out. */
            int64_t begin = first + LANES <= period ? first : period - LANES;
            NAMED(group)(values + start * period, n, period, begin, (int)(first - begin), columns, tables, width, counts,
                         moments);
        }
    }
    int64_t rest = rows % folded * columns;
    if (!rest)
        return;
    /* The last rows are filled up with NaN, which are taken off again. */
    REAL last[16 * LANES];
    memcpy(last, values + (rows - rows % folded) * columns, (size_t)rest * sizeof(REAL));
    for (int64_t i = rest; i < period; i++)
        last[i] = (REAL)NAN;
    for (int64_t first = 0; first < period; first += LANES) {
        int64_t begin = first + LANES <= period ? first : period - LANES;
        NAMED(group)(last, 1, period, begin, (int)(first - begin), columns, tables, width, counts, moments);
    }
    for (int64_t i = rest; i < period; i++)
        counts[i % columns * (width + 4) + width + 2]--;
}

/* Values that lie anywhere: a strided column is copied together, some thousands at a time. */
void NAMED(trimtab_count)(const REAL *values, int64_t columns, int64_t rows, int64_t column_stride, int64_t row_stride,
                          const REAL *tables, int64_t width, int64_t *counts, double *moments) {
    if (column_stride == 1 && (row_stride == columns || rows == 1)) {
        NAMED(count)(values, rows, columns, tables, width, counts, moments);
        return;
    }
    for (int64_t column = 0; column < columns; column++) {
        const REAL *first = values + column * column_stride, *own = tables + column * NAMED(units)(width);
        for (int64_t start = 0; start < rows; start += BLOCK) {
            int64_t n = rows - start < BLOCK ? rows - start : BLOCK;
            REAL block[BLOCK];
            for (int64_t i = 0; row_stride != 1 && i < n; i++)
                block[i] = first[(start + i) * row_stride];
            NAMED(count)(row_stride == 1 ? first + start : block, n, 1, own, width, counts + column * (width + 4),
                         moments + column * 5);
        }
    }
}

/* Numbers of 8 bytes that the tables of `columns` columns take. */
int64_t NAMED(trimtab_tables_size)(int64_t columns, int64_t width) {
    return (columns * NAMED(units)(width) * (int64_t)sizeof(REAL) + 7) / 8;
}

void NAMED(trimtab_tables)(const REAL *edges, int64_t columns, int64_t width, REAL *tables) {
    NAMED(tables)(edges, columns, width, tables);
}

#undef DEFINE_ROWS
#undef SHIFT
#undef PACKED
#undef EACH
#undef NAMED
#undef EXPANDED
#undef JOINED
