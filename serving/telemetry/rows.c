/* The columns of events that differ row by row, from the batches of the shortcut: written without Python, whose lock the
 * event loop keeps meanwhile. `serving/telemetry/served.py` says what they are, and writes the same where there is no
 * compiler.
 */
#include <stdint.h>
#include <string.h>

static char *decimal(char *at, int64_t number) {
    char digits[20];
    int count = 0;
    do
        digits[count++] = (char)('0' + number % 10);
    while (number /= 10);
    while (count)
        *at++ = digits[--count];
    return at;
}

/* `PREFIX-NUMBER` of each request from the first number on, `/ROW` behind it where it has several rows. */
static void ids(const char *prefix, int64_t size, int64_t first, const int64_t *requests, int64_t count, int32_t *offsets,
                char *text) {
    char *at = text;
    *offsets++ = 0;
    for (int64_t k = 0; k < count; k++) {
        const char *start = at;
        int64_t length;
        memcpy(at, prefix, (size_t)size);
        at += size;
        *at++ = '-';
        at = decimal(at, first + k);
        length = at - start;
        if (requests[k] == 1) {
            *offsets++ = (int32_t)(at - text);
            continue;
        }
        for (int64_t row = 0; row < requests[k]; row++) {
            if (row) {
                memcpy(at, start, (size_t)length);
                at += length;
            }
            *at++ = '/';
            at = decimal(at, row);
            *offsets++ = (int32_t)(at - text);
        }
    }
}

/* When each row's request was answered, in whole microseconds as unix nanoseconds, and how long it took, seconds.
 * `offset` is what the clock lacks for unix time.
 */
static void times_of(const int64_t *requests, const double *arrived, const double *done, int64_t count, double offset,
                     int64_t *times, double *latencies) {
    for (int64_t k = 0; k < count; k++) {
        int64_t time = (int64_t)((done[k] + offset) * 1e6) * 1000;
        for (int64_t row = 0; row < requests[k]; row++) {
            *times++ = time;
            *latencies++ = done[k] - arrived[k];
        }
    }
}

/* Values [rows, width] as one column a value, [width, rows] doubles. */
static void values_of(const float *values, int64_t rows, int64_t width, double *columns) {
    /* So many rows at a time that what is read stays at hand. */
    for (int64_t from = 0; from < rows; from += 256) {
        int64_t to = from + 256 < rows ? from + 256 : rows;
        for (int64_t k = 0; k < width; k++)
            for (int64_t row = from; row < to; row++)
                columns[k * rows + row] = values[row * width + k];
    }
}

/* All of them in one call, between which and the next the interpreter's lock need not be had. `outputs` has a place for
 * each output: its values or NULL, how many a row, where their columns go.
 */
void trimtab_event_rows(const char *prefix, int64_t size, int64_t first, double offset, const int64_t *requests,
                        const double *arrived, const double *done, int64_t count, int64_t rows, int32_t *offsets, char *text,
                        int64_t *times, double *latencies, const int64_t *outputs, int64_t number) {
    ids(prefix, size, first, requests, count, offsets, text);
    times_of(requests, arrived, done, count, offset, times, latencies);
    for (; number; number--, outputs += 3)
        if (outputs[0])
            values_of((const float *)(intptr_t)outputs[0], rows, outputs[1], (double *)(intptr_t)outputs[2]);
}
