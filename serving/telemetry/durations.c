/* How many requests' durations fall into each cell of their histograms: `durations.py` says which. What is counted waits
 * here until somebody takes it. Called with the interpreter's lock held, for some microseconds a batch. Never needed.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <structmember.h>

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

/* Spans are two places (int64) of the `width` moments of a request each; with each go `found` bounds. */
typedef struct {
    PyObject_HEAD
    Py_ssize_t width, number, found, requests;
    int64_t *spans, *below;
    double *bounds, *sums;
} Cells;

/* Counts requests by their moments, doubles, request behind request; a rest that is no whole request is left out. */
static PyObject *cells_add(Cells *c, PyObject *given) {
    Py_buffer moments;
    Py_ssize_t rows;
    if (!c->number) {
        PyErr_SetString(PyExc_ValueError, "these cells were not made");
        return NULL;
    }
    if (PyObject_GetBuffer(given, &moments, PyBUF_SIMPLE))
        return NULL;
    rows = moments.len / 8 / c->width;
    for (Py_ssize_t from = 0; from < rows; from += AT_ONCE) {
        const Py_ssize_t some = rows - from < AT_ONCE ? rows - from : AT_ONCE;
        const double *first = (const double *)moments.buf + from * c->width;
        double seconds[AT_ONCE];
        for (Py_ssize_t k = 0; k < c->number; k++) {
            const int64_t begun = c->spans[2 * k], ended = c->spans[2 * k + 1];
            for (Py_ssize_t row = 0; row < some; row++)
                seconds[row] = first[row * c->width + ended] - first[row * c->width + begun];
            c->sums[k] += counted(seconds, some, c->bounds + k * c->found, c->found, c->below + k * c->found);
        }
    }
    c->requests += rows;
    PyBuffer_Release(&moments);
    Py_RETURN_NONE;
}

/* What was counted since the last time, a span each: ([how many in each cell], sum of the durations). */
static PyObject *cells_take(Cells *c, PyObject *unused) {
    PyObject *all = PyList_New(c->number);
    for (Py_ssize_t k = 0; all && k < c->number; k++) {
        PyObject *cells = PyList_New(c->found), *both;
        int64_t before = 0;
        for (Py_ssize_t at = 0; cells && at < c->found; at++) {
            PyObject *in_it = PyLong_FromLongLong(c->below[k * c->found + at] - before);
            before = c->below[k * c->found + at];
            if (in_it)
                PyList_SET_ITEM(cells, at, in_it);
            else
                Py_CLEAR(cells);
        }
        if ((both = cells ? Py_BuildValue("Nd", cells, c->sums[k]) : NULL))
            PyList_SET_ITEM(all, k, both);
        else
            Py_CLEAR(all);
    }
    if (all) {
        memset(c->below, 0, (size_t)(c->number * c->found) * sizeof *c->below);
        memset(c->sums, 0, (size_t)c->number * sizeof *c->sums);
        c->requests = 0;
    }
    return all;
}

static int fits(Cells *c, const Py_buffer *spans, const Py_buffer *bounds) {
    c->number = spans->len / 16;
    c->found = c->number ? bounds->len / 8 / c->number : 0;
    if (c->width < 1 || c->found < 1 || spans->len != 16 * c->number || bounds->len != 8 * c->number * c->found)
        return 0;
    for (Py_ssize_t k = 0; k < 2 * c->number; k++)
        if (((int64_t *)spans->buf)[k] < 0 || ((int64_t *)spans->buf)[k] >= c->width)
            return 0;
    return 1;
}

static int cells_init(Cells *c, PyObject *args, PyObject *kwargs) {
    Py_buffer spans, bounds;
    int done = -1;
    if (c->spans) {
        PyErr_SetString(PyExc_TypeError, "cells are made once");
        return -1;
    }
    if (!PyArg_ParseTuple(args, "ny*y*", &c->width, &spans, &bounds))
        return -1;
    if (!fits(c, &spans, &bounds)) {
        PyErr_SetString(PyExc_ValueError, "spans are places of moments, each with as many bounds");
    } else {
        c->bounds = PyMem_Malloc((size_t)bounds.len);
        c->below = PyMem_Calloc((size_t)(c->number * c->found), sizeof *c->below);
        c->sums = PyMem_Calloc((size_t)c->number, sizeof *c->sums);
        c->spans = PyMem_Malloc((size_t)spans.len);
        if (c->bounds && c->below && c->sums && c->spans) {
            memcpy(c->bounds, bounds.buf, (size_t)bounds.len);
            memcpy(c->spans, spans.buf, (size_t)spans.len);
            done = 0;
        } else {
            PyErr_NoMemory();
        }
    }
    PyBuffer_Release(&spans);
    PyBuffer_Release(&bounds);
    if (done)
        c->number = 0;
    return done;
}

static void cells_dealloc(Cells *c) {
    PyMem_Free(c->bounds);
    PyMem_Free(c->below);
    PyMem_Free(c->sums);
    PyMem_Free(c->spans);
    Py_TYPE(c)->tp_free((PyObject *)c);
}

static PyMethodDef cells_methods[] = {
    {"add", (PyCFunction)cells_add, METH_O, NULL},
    {"take", (PyCFunction)cells_take, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};
static PyMemberDef cells_members[] = {
    {"requests", T_PYSSIZET, offsetof(Cells, requests), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};
static PyTypeObject CellsType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "trimtab_durations.Cells",
    .tp_basicsize = sizeof(Cells),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)cells_init,
    .tp_dealloc = (destructor)cells_dealloc,
    .tp_methods = cells_methods,
    .tp_members = cells_members,
};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "trimtab_durations", .m_size = -1};

PyMODINIT_FUNC PyInit_trimtab_durations(void) {
    PyObject *m;
    if (PyType_Ready(&CellsType) || !(m = PyModule_Create(&module)))
        return NULL;
    if (PyModule_AddObjectRef(m, "Cells", (PyObject *)&CellsType)) {
        Py_DECREF(m);
        return NULL;
    }
    return m;
}
