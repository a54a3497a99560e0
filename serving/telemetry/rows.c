/* The events of a run of the shortcut's batches, as the message of an Arrow stream: written in one call without the
 * interpreter's lock, which the event loop needs meanwhile. `served.py` says what they are, and writes the same where this
 * cannot be had; `observability/laid_columns.py` has the message's layout.
 *
 * It pauses each WORK of its time: a host's callers wait for a processor for as long as this holds it.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

/* Nanoseconds. */
enum { WORK = 100000, PAUSE = 1600000 };
enum { TEXTS = 5, ID = 32, MOST_OUTPUTS = 64, DIGITS = 20, BODY_AT = 40, ROWS_AT = 72, NODES_AT = 88 };

/* What is told of a run. `counts` and `done` have a number a batch, `requests` (rows) and `arrived` one a request;
 * `places` are the requests whose trace is kept, `traces` their ids. */
struct run {
    const char *prefix, *traces;
    const int64_t *requests, *counts, *places;
    const double *arrived, *done;
    Py_ssize_t prefix_size, count, batches, traced, rows;
    int64_t first;
    double unix_offset;
};

/* Where the next buffer goes, in memory and in the message's body, and where nodes and buffers are listed; since when it
 * works without a pause. */
struct writer {
    char *at, *end;
    int64_t body, *nodes, *buffers;
    struct timespec since;
};

static void breathe(struct writer *w) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    if ((now.tv_sec - w->since.tv_sec) * 1000000000LL + now.tv_nsec - w->since.tv_nsec < WORK)
        return;
    nanosleep(&(struct timespec){.tv_nsec = PAUSE}, NULL);
    clock_gettime(CLOCK_MONOTONIC, &w->since);
}

static void listed(struct writer *w, int64_t size) {
    *w->buffers++ = w->body;
    *w->buffers++ = size;
    w->body += (size + 7) & ~(int64_t)7;
}

/* Ends a buffer that was written from `w->at` on. */
static void ended(struct writer *w, int64_t size) {
    memset(w->at + size, 0, (size_t)(-size & 7));
    listed(w, size);
    w->at += (size + 7) & ~(int64_t)7;
    breathe(w);
}

static void node(struct writer *w, int64_t values, int64_t nulls) {
    *w->nodes++ = values;
    *w->nodes++ = nulls;
}

/* Copies sixteen bytes at a time: up to fifteen more are read and written behind. */
static char *copied(char *to, const char *from, int64_t size) {
    for (int64_t i = 0; i < size; i += 16)
        memmove(to + i, from + i, 16);
    return to + size;
}

static char *four(char *at, uint32_t number) {
    at[0] = (char)('0' + number / 1000);
    at[1] = (char)('0' + number / 100 % 10);
    at[2] = (char)('0' + number / 10 % 10);
    at[3] = (char)('0' + number % 10);
    return at + 4;
}

static char *decimal(char *at, int64_t number) {
    char digits[4];
    if (number >= 10000)
        return at + sprintf(at, "%lld", (long long)number);
    four(digits, (uint32_t)number);
    for (int k = number >= 1000 ? 0 : number >= 100 ? 1 : number >= 10 ? 2 : 3; k < 4; k++)
        *at++ = digits[k];
    return at;
}

/* `PREFIX-NUMBER` of each request from the first number on, `/ROW` behind it where it has several rows. 0 if there is no
 * room. */
static int ids(struct writer *w, const struct run *r) {
    int32_t *offsets = (int32_t *)w->at;
    char *text, *at;
    /* The id of the last request whose number differs from those behind it in more than four digits, without these. */
    const char *alike = NULL;
    int64_t alike_size = 0;
    node(w, r->rows, 0);
    listed(w, 0);
    ended(w, 4 * (r->rows + 1));
    text = at = w->at;
    *offsets++ = 0;
    for (Py_ssize_t k = 0; k < r->count; k++) {
        const char *start = at;
        const int64_t number = r->first + k;
        int64_t length;
        if (k % 1024 == 0)
            breathe(w);
        if (!r->requests[k])
            continue;
        if ((w->end - at) / (r->prefix_size + 2 * DIGITS + 2) <= r->requests[k])
            return 0;
        if (alike && number % 10000) {
            at = four(copied(at, alike, alike_size), (uint32_t)(number % 10000));
        } else {
            memcpy(at, r->prefix, (size_t)r->prefix_size);
            at += r->prefix_size;
            *at++ = '-';
            at = decimal(at, number);
            alike = number >= 10000 ? start : NULL;
            alike_size = at - start - 4;
        }
        if (r->requests[k] == 1) {
            *offsets++ = (int32_t)(at - text);
            continue;
        }
        *at++ = '/';
        length = at - start;
        for (int64_t row = 0; row < r->requests[k]; row++) {
            if (row)
                at = copied(at, start, length);
            at = decimal(at, row);
            *offsets++ = (int32_t)(at - text);
        }
    }
    ended(w, at - text);
    return 1;
}

/* When each row's request was answered, in whole microseconds as unix nanoseconds: beyond them the sum of two clocks as
 * floats says nothing. */
static void times(struct writer *w, const struct run *r) {
    int64_t *to = (int64_t *)w->at;
    const int64_t *rows = r->requests;
    for (Py_ssize_t batch = 0; batch < r->batches; batch++) {
        const int64_t time = (int64_t)((r->done[batch] + r->unix_offset) * 1e6) * 1000;
        for (int64_t k = 0; k < r->counts[batch]; k++, rows++)
            for (int64_t row = 0; row < *rows; row++)
                *to++ = time;
    }
    node(w, r->rows, 0);
    listed(w, 0);
    ended(w, 8 * r->rows);
}

/* How long each row's request took, seconds. */
static void latencies(struct writer *w, const struct run *r) {
    double *to = (double *)w->at;
    Py_ssize_t at = 0;
    for (Py_ssize_t batch = 0; batch < r->batches; batch++)
        for (int64_t k = 0; k < r->counts[batch]; k++, at++)
            for (int64_t row = 0; row < r->requests[at]; row++)
                *to++ = r->done[batch] - r->arrived[at];
    node(w, r->rows, 0);
    listed(w, 0);
    ended(w, 8 * r->rows);
}

/* A text that is the same in all rows; null where there is none. 0 if there is no room. */
static int same(struct writer *w, int64_t rows, const char *text, int64_t size) {
    int32_t *offsets;
    const int64_t bits = (rows + 7) / 8;
    if (w->end - w->at < bits + 4 * (rows + 1) + rows * size + 24)
        return 0;
    node(w, rows, text ? 0 : rows);
    memset(w->at, 0, (size_t)bits);
    if (text)
        listed(w, 0);
    else
        ended(w, bits);
    offsets = (int32_t *)w->at;
    for (int64_t row = 0; row <= rows; row++)
        offsets[row] = (int32_t)(row * size);
    ended(w, 4 * (rows + 1));
    if (size)
        memcpy(w->at, text, (size_t)size);
    for (int64_t have = 1; size && have < rows; have *= 2)
        memcpy(w->at + have * size, w->at, (size_t)((have < rows - have ? have : rows - have) * size));
    ended(w, rows * size);
    return 1;
}

/* The ids of traces, null in the rows of other requests. */
static int traces(struct writer *w, const struct run *r) {
    const int64_t bits = (r->rows + 7) / 8;
    int64_t told = 0, row = 0;
    char *known = w->at, *text;
    int32_t *offsets;
    if (!r->traced)
        return same(w, r->rows, NULL, 0);
    for (Py_ssize_t k = 0; k < r->traced; k++)
        told += r->requests[r->places[k]];
    if (w->end - w->at < bits + 4 * (r->rows + 1) + ID * told + 24)
        return 0;
    node(w, r->rows, r->rows - told);
    memset(w->at, 0, (size_t)bits);
    ended(w, bits);
    offsets = (int32_t *)w->at;
    ended(w, 4 * (r->rows + 1));
    text = w->at;
    *offsets++ = 0;
    for (Py_ssize_t k = 0, trace = 0; k < r->count; k++) {
        const int kept = trace < r->traced && r->places[trace] == k;
        for (int64_t i = 0; i < r->requests[k]; i++, row++) {
            if (kept) {
                known[row / 8] |= (char)(1 << row % 8);
                memcpy(text, r->traces + ID * trace, ID);
                text += ID;
            }
            *offsets++ = (int32_t)(text - w->at);
        }
        trace += kept;
    }
    ended(w, ID * told);
    return 1;
}

static void propensities(struct writer *w, int64_t rows, double value) {
    double *to = (double *)w->at;
    for (int64_t row = 0; row < rows; row++)
        to[row] = value;
    node(w, rows, 0);
    listed(w, 0);
    ended(w, 8 * rows);
}

/* Values [rows, width] as one column of doubles a value. */
#define COLUMNS(name, type)                                                                                                  \
    static void name(struct writer *w, const type *values, int64_t rows, int64_t width, double *columns) {                   \
        /* So many rows at a time that what is read stays at hand. */                                                        \
        for (int64_t from = 0; from < rows; from += 256) {                                                                   \
            const int64_t to = from + 256 < rows ? from + 256 : rows;                                                        \
            breathe(w);                                                                                                      \
            for (int64_t k = 0; k < width; k++)                                                                              \
                for (int64_t row = from; row < to; row++)                                                                    \
                    columns[k * rows + row] = values[row * width + k];                                                       \
        }                                                                                                                    \
    }
COLUMNS(of_floats, float)
COLUMNS(of_doubles, double)

struct told {
    Py_buffer block, head, prefix, requests, arrived, counts, done, places, traces, outputs[MOST_OUTPUTS];
    PyObject *texts, *columns;
    Py_ssize_t first, feature_bytes, feature_size;
    double unix_offset, propensity;
    int number;
};

/* Whether the parts fit together; what is told of them then. */
static int understood(const struct told *t, struct run *r) {
    int64_t requests = 0, at = -1;
    *r = (struct run){
        .prefix = t->prefix.buf, .prefix_size = t->prefix.len, .first = t->first, .unix_offset = t->unix_offset,
        .requests = t->requests.buf, .arrived = t->arrived.buf, .count = t->requests.len / 8,
        .counts = t->counts.buf, .done = t->done.buf, .batches = t->counts.len / 8,
        .places = t->places.buf, .traces = t->traces.buf, .traced = t->places.len / 8,
    };
    if (t->arrived.len != t->requests.len || t->done.len != t->counts.len || t->traces.len != ID * r->traced)
        return 0;
    for (Py_ssize_t k = 0; k < r->batches; k++) {
        if (r->counts[k] < 0)
            return 0;
        requests += r->counts[k];
    }
    for (Py_ssize_t k = 0; k < r->count; k++) {
        if (r->requests[k] < 0)
            return 0;
        r->rows += r->requests[k];
    }
    for (Py_ssize_t k = 0; k < r->traced; at = r->places[k++])
        if (r->places[k] <= at || r->places[k] >= r->count)
            return 0;
    return requests == r->count && r->rows > 0;
}

/* Writes: predictions from the block's ninth byte on, the header and the other columns behind them. 0 if they do not fit. */
static int written(const struct told *t, const struct run *r, Py_ssize_t *begin, Py_ssize_t *end) {
    char *base = t->block.buf;
    double *columns = (double *)(base + 8);
    int64_t predictions = 0;
    int32_t sizes[2];
    struct writer w;
    for (int k = 0; k < t->number; k++)
        predictions += t->outputs[k].len / t->outputs[k].itemsize;
    *begin = 8 + 8 * predictions;
    w.at = base + *begin + t->head.len;
    w.end = base + t->block.len;
    /* What has no look for room of its own: times, latencies, propensities, and where texts begin. */
    if (w.end - w.at < 28 * (r->rows + 1) + 64)
        return 0;
    w.end -= 24 * r->rows;
    memcpy(base + *begin, t->head.buf, (size_t)t->head.len);
    w.nodes = (int64_t *)(base + *begin + NODES_AT);
    memcpy(sizes, base + *begin + NODES_AT - 4, 4);
    w.buffers = w.nodes + 2 * sizes[0] + 1;
    w.body = 0;
    clock_gettime(CLOCK_MONOTONIC, &w.since);
    if (!ids(&w, r))
        return 0;
    times(&w, r);
    for (int k = 0; k < TEXTS; k++) {
        PyObject *text = PyTuple_GET_ITEM(t->texts, k);
        const int told = PyBytes_Check(text);
        if (k == TEXTS - 1)
            propensities(&w, r->rows, t->propensity);
        if (!same(&w, r->rows, told ? PyBytes_AS_STRING(text) : NULL, told ? PyBytes_GET_SIZE(text) : 0))
            return 0;
    }
    latencies(&w, r);
    if (!traces(&w, r) || !same(&w, r->rows, NULL, 0))
        return 0;
    *end = w.at - base;
    if (t->feature_bytes >= 0) {
        node(&w, r->rows, 0);
        listed(&w, 0);
        if (t->feature_size) {
            node(&w, r->rows * t->feature_size, 0);
            listed(&w, 0);
        }
        listed(&w, t->feature_bytes);
    }
    memset(base, 0, 8);
    for (int k = 0; k < t->number; k++) {
        const Py_buffer *values = &t->outputs[k];
        const int64_t width = values->len / values->itemsize / r->rows;
        if (values->itemsize == 4)
            of_floats(&w, values->buf, r->rows, width, columns);
        else
            of_doubles(&w, values->buf, r->rows, width, columns);
        columns += r->rows * width;
        for (int64_t column = 0; column < width; column++) {
            node(&w, r->rows, 0);
            listed(&w, 0);
            listed(&w, 8 * r->rows);
        }
    }
    memcpy(base + *begin + BODY_AT, &w.body, 8);
    memcpy(base + *begin + ROWS_AT, &r->rows, 8);
    return (char *)w.nodes == base + *begin + NODES_AT + 16 * sizes[0] && (char *)w.buffers == base + *begin + t->head.len;
}

static int taken(struct told *t, PyObject *columns) {
    for (; t->number < PyTuple_GET_SIZE(columns); t->number++) {
        Py_buffer *values = &t->outputs[t->number];
        if (PyObject_GetBuffer(PyTuple_GET_ITEM(columns, t->number), values, PyBUF_FORMAT | PyBUF_C_CONTIGUOUS))
            return 0;
        if (strcmp(values->format, values->itemsize == 4 ? "f" : "d")) {
            PyBuffer_Release(values);
            PyErr_SetString(PyExc_ValueError, "outputs are floats or doubles");
            return 0;
        }
    }
    return 1;
}

/* (where the message begins, where what stands before the feature ends, where the predictions begin and end, with what
 * fills the feature up to eight bytes before them). */
static PyObject *message(PyObject *module, PyObject *args) {
    struct told t = {0};
    struct run r;
    Py_ssize_t begin, end, fill;
    PyObject *found = NULL;
    if (!PyArg_ParseTuple(args, "w*y*y*nd(y*y*y*y*)(y*y*)O!dnnO!", &t.block, &t.head, &t.prefix, &t.first, &t.unix_offset,
                          &t.requests, &t.arrived, &t.counts, &t.done, &t.places, &t.traces, &PyTuple_Type, &t.texts,
                          &t.propensity, &t.feature_bytes, &t.feature_size, &PyTuple_Type, &t.columns))
        return NULL;
    if (PyTuple_GET_SIZE(t.columns) > MOST_OUTPUTS || PyTuple_GET_SIZE(t.texts) != TEXTS || t.head.len < NODES_AT)
        PyErr_SetString(PyExc_ValueError, "there are too many outputs, or not five texts");
    else if (taken(&t, t.columns)) {
        int fits = 0;
        Py_BEGIN_ALLOW_THREADS;
        if (understood(&t, &r)) {
            fits = 1;
            for (int k = 0; k < t.number; k++)
                fits = fits && (t.outputs[k].len / t.outputs[k].itemsize) % r.rows == 0;
            fits = fits && written(&t, &r, &begin, &end);
        }
        Py_END_ALLOW_THREADS;
        fill = t.feature_bytes > 0 ? -t.feature_bytes & 7 : 0;
        if (fits)
            found = Py_BuildValue("nnnn", begin, end, 8 - fill, begin);
        else
            PyErr_SetString(PyExc_ValueError, "what is told of the run does not fit together, or not into the block");
    }
    while (t.number)
        PyBuffer_Release(&t.outputs[--t.number]);
    for (Py_buffer *one = &t.block; one <= &t.traces; one++)
        PyBuffer_Release(one);
    return found;
}

static PyMethodDef methods[] = {{"message", message, METH_VARARGS, NULL}, {NULL, NULL, 0, NULL}};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "trimtab_rows", .m_size = -1, .m_methods = methods};

PyMODINIT_FUNC PyInit_trimtab_rows(void) { return PyModule_Create(&module); }
