/* How many of many requests' durations fall into each cell of their histograms, in one pass: `durations.py` says which.
 * Called with the interpreter's lock held, which thousands of requests take some tens of microseconds. Never needed.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdint.h>

enum { AT_ONCE = 512 };

/* Of so many durations those at most as long as each bound are added to `below`; NaN is at most nothing. */
static double counted(const double *seconds, Py_ssize_t count, const double *bounds, Py_ssize_t number, int64_t *below) {
    double sum = 0, least = INFINITY, most = -INFINITY;
    int64_t numbers = 0;
    for (Py_ssize_t k = 0; k < count; k++) {
        const int known = seconds[k] == seconds[k];
        numbers += known;
        sum += known ? seconds[k] : 0;
        least = seconds[k] < least ? seconds[k] : least;
        most = seconds[k] > most ? seconds[k] : most;
    }
    /* Few bounds lie among them. */
    for (Py_ssize_t at = 0; at < number; at++) {
        const double bound = bounds[at];
        int64_t found = 0;
        if (bound >= most)
            found = numbers;
        else if (bound >= least)
            for (Py_ssize_t k = 0; k < count; k++)
                found += seconds[k] <= bound;
        below[at] += found;
    }
    return sum;
}

/* count(moments, width, spans, bounds, below, sums): `moments` are doubles, `width` a request; each span is two of their
 * places (int64), whose difference counts for its row of `bounds` (doubles, as many for each) and of `below` (int64). */
static PyObject *count(PyObject *module, PyObject *args) {
    Py_buffer moments, spans, bounds, below, sums;
    Py_ssize_t width, number, rows, found, fits;
    if (!PyArg_ParseTuple(args, "y*ny*y*w*w*", &moments, &width, &spans, &bounds, &below, &sums))
        return NULL;
    number = spans.len / 16;
    found = number ? bounds.len / 8 / number : 0;
    rows = width > 0 ? moments.len / 8 / width : 0;
    fits = width > 0 && bounds.len == below.len && sums.len == 8 * number && bounds.len == 8 * number * found;
    for (Py_ssize_t k = 0; fits && k < 2 * number; k++)
        fits = ((int64_t *)spans.buf)[k] >= 0 && ((int64_t *)spans.buf)[k] < width;
    for (Py_ssize_t from = 0; fits && from < rows; from += AT_ONCE) {
        const Py_ssize_t some = rows - from < AT_ONCE ? rows - from : AT_ONCE;
        const double *first = (const double *)moments.buf + from * width;
        double seconds[AT_ONCE];
        for (Py_ssize_t k = 0; k < number; k++) {
            const int64_t *span = (const int64_t *)spans.buf + 2 * k;
            for (Py_ssize_t row = 0; row < some; row++)
                seconds[row] = first[row * width + span[1]] - first[row * width + span[0]];
            ((double *)sums.buf)[k] += counted(seconds, some, (const double *)bounds.buf + k * found, found,
                                               (int64_t *)below.buf + k * found);
        }
    }
    PyBuffer_Release(&moments);
    PyBuffer_Release(&spans);
    PyBuffer_Release(&bounds);
    PyBuffer_Release(&below);
    PyBuffer_Release(&sums);
    if (fits)
        Py_RETURN_NONE;
    PyErr_SetString(PyExc_ValueError, "spans are places of moments, each with as many bounds");
    return NULL;
}

static PyMethodDef methods[] = {{"count", count, METH_VARARGS, NULL}, {NULL, NULL, 0, NULL}};
static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, .m_name = "trimtab_durations", .m_size = -1, .m_methods = methods};

PyMODINIT_FUNC PyInit_trimtab_durations(void) { return PyModule_Create(&module); }
