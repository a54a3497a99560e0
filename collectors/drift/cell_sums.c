/* One pass over the cells of each column: what `column_scores.py` and `null.py` compute with numpy, in a tenth of the time.
 * The formulas and their sources stand there. Compiled where there is a C compiler; never needed.
 */
#include <math.h>
#include <stdint.h>

/* The two largest eigenvalues by Rayleigh and Ritz: `null.py`, `_largest`. Moments and squares are of the vectors 00, 01, 11. */
static void two_largest(const double moments[3], const double squares[3], double *largest, double *next) {
    const double unit = moments[0] > 0 ? moments[0] : 1.0, part = moments[1] / unit, own = moments[2] - part * moments[1];
    const double first = squares[0] / unit, across = squares[1] - part * squares[0];
    double second = 0, between = 0;
    if (own > 1e-9 * moments[2]) {
        second = (squares[2] - part * (2.0 * squares[1] - part * squares[0])) / own;
        between = across * across / (unit * own);
    }
    const double middle = (first + second) / 2, radius = sqrt((first - second) * (first - second) / 4 + between);
    *largest = middle + radius, *next = middle > radius ? middle - radius : 0.0;
}

/* Scores, and the sums, squares, cubes and two largest of the law's weights: `null.py`, `_test`. `found` is (6, columns). */
void trimtab_ordered_test(int64_t columns, int64_t cells, const int64_t *reference, const int64_t *window, double *found) {
    for (int64_t column = 0; column < columns; column++, reference += cells, window += cells) {
        int64_t rows = 0, others = 0, before = 0, now = 0;
        for (int64_t cell = 0; cell < cells; cell++)
            rows += reference[cell], others += window[cell];
        const double share = 1.0 / (double)(rows ? rows : 1), other_share = 1.0 / (double)(others ? others : 1);
        const double pooled_share = 1.0 / (double)(rows + others ? rows + others : 1);
        double squared = 0, first = 0, products = 0, squares = 0, cubes = 0, earlier = 0, pairs = 0, thirds = 0;
        double totals[2] = {0}, left_totals[2] = {0};
        for (int64_t cell = 0; cell + 1 < cells; cell++) {
            before += reference[cell], now += window[cell];
            const double weight = (double)(reference[cell] + reference[cell + 1]) * (0.5 * share);
            /* Of two equal distributions exactly 0. */
            const double gap = ((double)before * (double)others - (double)now * (double)rows) * (share * other_share);
            const double pooled = (double)(before + now) * pooled_share;
            const double below = weight * pooled * pooled, both = weight * pooled - below;
            const double above = weight * (1.0 - pooled) - both, triples = (6.0 * earlier + 3.0 * below) * both;
            squared += gap * gap * weight;
            first += both, squares += both * both, cubes += both * both * both;
            products += above * earlier;
            thirds += above * (pairs + 3.0 * both * earlier);
            earlier += below, pairs += triples;
            const double even = weight * (pooled - pooled * pooled), odd = even * (1.0 - 2.0 * pooled);
            totals[0] += even, left_totals[0] += pooled * even;
            totals[1] += odd, left_totals[1] += pooled * odd;
        }
        double moments[3] = {0}, image_squares[3] = {0}, running[2] = {0}, left[2] = {0};
        before = now = 0;
        for (int64_t cell = 0; cell + 1 < cells; cell++) {
            before += reference[cell], now += window[cell];
            const double weight = (double)(reference[cell] + reference[cell + 1]) * (0.5 * share);
            const double pooled = (double)(before + now) * pooled_share, even = weight * (pooled - pooled * pooled);
            const double vectors[2] = {even, even * (1.0 - 2.0 * pooled)};
            double images[2];
            for (int i = 0; i < 2; i++) {
                running[i] += vectors[i], left[i] += pooled * vectors[i];
                images[i] = pooled * (totals[i] - running[i] - left_totals[i]) + left[i];
            }
            moments[0] += images[0] * vectors[0], moments[1] += images[0] * vectors[1], moments[2] += images[1] * vectors[1];
            image_squares[0] += images[0] * images[0] * weight, image_squares[1] += images[0] * images[1] * weight;
            image_squares[2] += images[1] * images[1] * weight;
        }
        two_largest(moments, image_squares, found + 4 * columns + column, found + 5 * columns + column);
        found[column] = rows && others ? sqrt(squared) : 0.0;
        found[columns + column] = first;
        found[2 * columns + column] = 2.0 * products + squares;
        found[3 * columns + column] = thirds + cubes;
    }
}

enum { PSI, JENSEN_SHANNON, HELLINGER, TOTAL_VARIATION, KS, KS_ERROR, CRAMER_VON_MISES, WASSERSTEIN, WASSERSTEIN_ERROR };

/* Cells that are one of the few bins, and what the bins before it have added. */
struct bins {
    int64_t rows, others;
    double psi, divergence, roots, variation;
};

static double entropy(double share, double middle) { return share > 0 ? share * log(share / middle) : 0.0; }

static void close_bin(struct bins *b, double rows, double others, double empty) {
    const double p = (double)b->rows / rows, q = (double)b->others / others, middle = (p + q) / 2;
    const double before = b->rows ? p : empty, now = b->others ? q : empty, root = sqrt(p) - sqrt(q);
    b->psi += (now - before) * log(now / before);
    b->divergence += entropy(p, middle) + entropy(q, middle);
    b->roots += root * root, b->variation += fabs(p - q);
    b->rows = b->others = 0;
}

/* Statistics of columns with values on both sides: `column_scores.py`, `_cell_scores`; `found` is (9, columns), as above.
 * `edges` are (columns, cells - 1), the rest (columns); `bins` of about equal mass serve the first four. */
void trimtab_cell_scores(int64_t columns, int64_t cells, const int64_t *reference, const int64_t *window,
                         const double *edges, const double *deviation, const double *lowest, const double *highest,
                         int64_t bins, double empty, double tail, double least, double reach, double *found) {
    for (int64_t column = 0; column < columns; column++, reference += cells, window += cells, edges += cells - 1) {
        int64_t n = 0, m = 0, before_rows = 0;
        struct bins few = {0};
        for (int64_t cell = 0; cell < cells; cell++)
            n += reference[cell], m += window[cell];
        const double rows = (double)n, others = (double)m;
        const double unit = deviation[column] > least ? deviation[column] : least, far = reach * unit;
        const double bottom = edges[0], top = edges[cells - 2];
        double low = lowest[column] < bottom ? lowest[column] : bottom, high = highest[column] > top ? highest[column] : top;
        low = low > bottom - far ? low : bottom - far, high = high < top + far ? high : top + far;
        double after = 0, ks = 0, inside = 0, cvm = 0, area = 0, error = 0, group = 0;
        for (int64_t cell = 0; cell < cells; cell++) {
            const double r = (double)reference[cell] / rows, w = (double)window[cell] / others;
            const double next = cell + 1 < cells ? (double)reference[cell + 1] / rows : 0.0;
            const double before = after, wide = (cell + 1 < cells ? edges[cell] : high) - (cell ? edges[cell - 1] : low);
            after += r - w;
            const double a = fabs(before), b = fabs(after);
            double part = fabs(wide * (before + after) / 2);
            if (before * after < 0) {
                const double crossed = wide * (a * a + b * b) / (2 * (a + b));
                part = crossed > part ? crossed : part;
            }
            area += part;
            ks = b > ks ? b : ks;
            inside = fabs(before + r) > inside ? fabs(before + r) : inside;
            inside = fabs(before - w) > inside ? fabs(before - w) : inside;
            cvm += (r + next) * after * after;
            if (cell && cell + 1 < cells)
                error += wide * (r + w) / 2;
            /* A cell belongs to the bin in which its middle lies; a new bin begins where that changes, and at full tails. */
            before_rows += reference[cell];
            double own = floor(((double)before_rows - (double)reference[cell] / 2) * (double)bins / rows);
            own = own < (double)(bins - 1) ? own : (double)(bins - 1);
            const int behind_tail = cell == 1 && !reference[0] && (double)window[0] >= tail * others;
            const int is_tail = cell + 1 == cells && !reference[cell] && (double)window[cell] >= tail * others;
            if (cell && (own > group || behind_tail || is_tail))
                close_bin(&few, rows, others, empty);
            few.rows += reference[cell], few.others += window[cell], group = own;
        }
        close_bin(&few, rows, others, empty);
        error += (bottom > lowest[column] ? bottom - lowest[column] : 0.0) *
                 ((double)reference[0] / rows + (double)window[0] / others);
        error += (highest[column] > top ? highest[column] - top : 0.0) *
                 ((double)reference[cells - 1] / rows + (double)window[cells - 1] / others);
        double *own = found + column;
        own[PSI * columns] = few.psi;
        own[JENSEN_SHANNON * columns] = few.divergence > 0 ? sqrt(few.divergence / 2) : 0.0;
        own[HELLINGER * columns] = few.roots < 2 ? sqrt(few.roots / 2) : 1.0;
        own[TOTAL_VARIATION * columns] = few.variation < 2 ? few.variation / 2 : 1.0;
        own[KS * columns] = ks;
        own[KS_ERROR * columns] = inside > ks ? inside - ks : 0.0;
        own[CRAMER_VON_MISES * columns] = cvm / 2;
        own[WASSERSTEIN * columns] = area / unit;
        own[WASSERSTEIN_ERROR * columns] = error;
    }
}
