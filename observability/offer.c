/* One call from Python for a probe's usual batch: a matrix of floating-point numbers in memory is counted or joins those
 * that wait, past torch's dispatch and the dozen look-ups that Python would take to see that it may. Compiled by
 * `native.py` where there are Python's headers; never needed.
 *
 * What a tensor is comes of the table that torch gives for this (DLPack's `DLPackExchangeAPI`, version 1).
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>

struct tensor {
    void *data;
    int32_t device_type, device_id, dimensions;
    uint8_t type, bits;
    uint16_t lanes;
    int64_t *shape, *strides;
    uint64_t byte_offset;
};

struct exchange {
    uint32_t major, minor;
    void *older, *allocate, *take, *give;
    int (*view)(void *object, struct tensor *found);
    void *stream;
};

enum { ON_CPU = 1, FLOAT = 2, BRAIN = 4 };

/* `trimtab_probe_count` of `count_probe.h`, which numbers the types. */
typedef int (*count)(void *state, const void *values, int64_t kind, int64_t rows, int64_t by_row, int64_t by_column);

/* `dicts` are a module's hooks, which must be empty; `buffers` must still hold `state`, the tensor that is added to. */
struct state {
    const struct exchange *exchange;
    count count;
    void *memory;
    int64_t columns, most_rows;
    PyObject *type, *dicts, *buffers, *name, *tensor;
};

static const char NAME[] = "trimtab.offer";

static int taken(const struct state *s, PyObject *inputs) {
    struct tensor found;
    PyObject *values;
    if (!PyTuple_CheckExact(inputs) || PyTuple_GET_SIZE(inputs) != 1)
        return 0;
    values = PyTuple_GET_ITEM(inputs, 0);
    if ((PyObject *)Py_TYPE(values) != s->type)
        return 0;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(s->dicts); i++)
        if (PyDict_GET_SIZE(PyTuple_GET_ITEM(s->dicts, i)))
            return 0;
    if (PyDict_GetItemWithError(s->buffers, s->name) != s->tensor || s->exchange->view(values, &found)) {
        PyErr_Clear();
        return 0;
    }
    const int kind = found.type == BRAIN && found.bits == 16 ? 3
                     : found.type != FLOAT                   ? -1
                     : found.bits == 32                      ? 0
                     : found.bits == 64                      ? 1
                     : found.bits == 16                      ? 2
                                                             : -1;
    if (found.device_type != ON_CPU || kind < 0 || found.lanes != 1)
        return 0;
    if (found.dimensions != 2 || found.shape[1] != s->columns || found.shape[0] > s->most_rows)
        return 0;
    if (found.strides && ((found.strides[1] != 1 && s->columns > 1) ||
                          (found.strides[0] != s->columns && found.shape[0] > 1)))
        return 0;
    return s->count(s->memory, (const char *)found.data + found.byte_offset, kind, found.shape[0], s->columns, 1);
}

static PyObject *offered(PyObject *capsule, PyObject *inputs) {
    const struct state *s = PyCapsule_GetPointer(capsule, NAME);
    return s ? PyBool_FromLong(taken(s, inputs)) : NULL;
}

static void forget(PyObject *capsule) {
    struct state *s = PyCapsule_GetPointer(capsule, NAME);
    Py_DECREF(s->type), Py_DECREF(s->dicts), Py_DECREF(s->buffers), Py_DECREF(s->name), Py_DECREF(s->tensor);
    PyMem_Free(s);
}

static PyMethodDef METHOD = {"offer", offered, METH_O, "True if the inputs were taken: one matrix in memory."};

/* A function of the inputs' tuple; None where torch has no such table. `parts` are the tensor's type, a tuple of dicts, the
 * dict of buffers, the name of the state in it, the state. Called with Python's lock held. */
PyObject *trimtab_offer(PyObject *exchange, void *counting, void *memory, int64_t columns, int64_t most_rows,
                        PyObject *parts) {
    const struct exchange *table = PyCapsule_GetPointer(exchange, "dlpack_exchange_api");
    if (!table)
        return NULL;
    if (table->major != 1 || !table->view)
        Py_RETURN_NONE;
    struct state *s = PyMem_Malloc(sizeof *s);
    if (!s)
        return PyErr_NoMemory();
    *s = (struct state){table, (count)counting, memory, columns, most_rows};
    if (!PyArg_ParseTuple(parts, "OO!O!UO", &s->type, &PyTuple_Type, &s->dicts, &PyDict_Type, &s->buffers, &s->name,
                          &s->tensor)) {
        PyMem_Free(s);
        return NULL;
    }
    Py_INCREF(s->type), Py_INCREF(s->dicts), Py_INCREF(s->buffers), Py_INCREF(s->name), Py_INCREF(s->tensor);
    PyObject *capsule = PyCapsule_New(s, NAME, forget);
    if (!capsule)
        return NULL;
    PyObject *function = PyCFunction_New(&METHOD, capsule);
    Py_DECREF(capsule);
    return function;
}
