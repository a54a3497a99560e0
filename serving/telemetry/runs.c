/* What a run's batches answered, copied behind what is there in one call a batch: `runs.py` says what for. Called with the
 * interpreter's lock held. Compiled where there is a compiler; never needed.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <string.h>
#include <structmember.h>

enum { MOST_OUTPUTS = 64, TOLD = 4 };

/* `blocks` have room for the rows of an output each; `told` are bytearrays: of each request its rows (int64) and arrival
 * (double), of each batch its requests (int64) and when it was answered (double). */
typedef struct {
    PyObject_HEAD
    Py_buffer *blocks;
    Py_ssize_t outputs;
    PyObject *told;
} Answers;

/* Whether the rows of an output are like those of its block. */
static int alike(const Py_buffer *values, const Py_buffer *block) {
    if (values->ndim != block->ndim || values->itemsize != block->itemsize || strcmp(values->format, block->format))
        return 0;
    for (int k = 1; k < values->ndim; k++)
        if (values->shape[k] != block->shape[k])
            return 0;
    return 1;
}

static int extended(PyObject *bytes, const void *with, Py_ssize_t size) {
    const Py_ssize_t had = PyByteArray_GET_SIZE(bytes);
    if (PyByteArray_Resize(bytes, had + size))
        return -1;
    memcpy(PyByteArray_AS_STRING(bytes) + had, with, (size_t)size);
    return 0;
}

/* Copies the outputs' rows behind the first `rows`: 1; 0 where they are not like those before, -1 where they do not lie in
 * one piece each, -2 with an error. */
static int copied(Answers *a, PyObject *outputs, Py_ssize_t rows, Py_ssize_t more) {
    Py_buffer values[MOST_OUTPUTS];
    int found = 1, got = 0;
    for (; got < a->outputs; got++) {
        Py_buffer *one = &values[got], *block = &a->blocks[got];
        if (PyObject_GetBuffer(PySequence_Fast_GET_ITEM(outputs, got), one, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT)) {
            PyErr_Clear();
            found = -1;
            break;
        }
        if (!alike(one, block)) {
            found = 0;
        } else if (one->shape[0] != more || rows > block->shape[0] || more > block->shape[0] - rows) {
            PyErr_SetString(PyExc_ValueError, "there is no room for the rows, or an output has others");
            found = -2;
        }
        if (found < 1) {
            got++;
            break;
        }
    }
    for (int k = 0; k < got; k++) {
        Py_buffer *block = &a->blocks[k];
        if (found == 1 && more)
            memcpy((char *)block->buf + rows * (values[k].len / more), values[k].buf, (size_t)values[k].len);
        PyBuffer_Release(&values[k]);
    }
    return found;
}

/* add(rows, more, outputs, requests, arrived, done): takes in a batch of `more` rows behind the first `rows`. True; False
 * where outputs are not like those before, None where they do not lie in one piece each: nothing was taken in then. */
static PyObject *answers_add(Answers *a, PyObject *const *args, Py_ssize_t count) {
    Py_ssize_t rows, more;
    int found;
    if (!a->told || count != 6 || !(PyList_Check(args[2]) || PyTuple_Check(args[2])) ||
        PySequence_Fast_GET_SIZE(args[2]) != a->outputs || !PyBytes_Check(args[3]) || !PyBytes_Check(args[4]) || PyBytes_GET_SIZE(args[3]) != PyBytes_GET_SIZE(args[4]) ||
        PyBytes_GET_SIZE(args[3]) % 8 || !PyFloat_Check(args[5])) {
        PyErr_SetString(PyExc_TypeError, "a batch is two numbers, its outputs, bytes of eight a request twice, a float");
        return NULL;
    }
    rows = PyLong_AsSsize_t(args[0]);
    more = PyLong_AsSsize_t(args[1]);
    if (PyErr_Occurred())
        return NULL;
    if (rows < 0 || more < 0) {
        PyErr_SetString(PyExc_ValueError, "there are no fewer rows than none");
        return NULL;
    }
    if ((found = copied(a, args[2], rows, more)) == -2)
        return NULL;
    if (found == -1)
        Py_RETURN_NONE;
    if (found) {
        const int64_t requests = PyBytes_GET_SIZE(args[3]) / 8;
        const double done = PyFloat_AS_DOUBLE(args[5]);
        if (extended(PyTuple_GET_ITEM(a->told, 0), PyBytes_AS_STRING(args[3]), 8 * requests) ||
            extended(PyTuple_GET_ITEM(a->told, 1), PyBytes_AS_STRING(args[4]), 8 * requests) ||
            extended(PyTuple_GET_ITEM(a->told, 2), &requests, 8) || extended(PyTuple_GET_ITEM(a->told, 3), &done, 8))
            return NULL;
    }
    return PyBool_FromLong(found);
}

static void let_go(Answers *a) {
    while (a->outputs)
        PyBuffer_Release(&a->blocks[--a->outputs]);
    PyMem_Free(a->blocks);
    a->blocks = NULL;
}

/* Answers(blocks): a tuple of arrays. */
static int answers_init(Answers *a, PyObject *args, PyObject *kwargs) {
    PyObject *blocks;
    if (a->told) {
        PyErr_SetString(PyExc_TypeError, "answers are made once");
        return -1;
    }
    if (!PyArg_ParseTuple(args, "O!", &PyTuple_Type, &blocks))
        return -1;
    if (PyTuple_GET_SIZE(blocks) > MOST_OUTPUTS) {
        PyErr_SetString(PyExc_ValueError, "there are too many outputs");
        return -1;
    }
    let_go(a);
    if (!(a->blocks = PyMem_Calloc((size_t)PyTuple_GET_SIZE(blocks) + 1, sizeof *a->blocks))) {
        PyErr_NoMemory();
        return -1;
    }
    for (; a->outputs < PyTuple_GET_SIZE(blocks); a->outputs++) {
        Py_buffer *block = &a->blocks[a->outputs];
        if (PyObject_GetBuffer(PyTuple_GET_ITEM(blocks, a->outputs), block,
                               PyBUF_C_CONTIGUOUS | PyBUF_FORMAT | PyBUF_WRITABLE))
            return -1;
        if (block->ndim < 1) {
            PyBuffer_Release(block);
            PyErr_SetString(PyExc_ValueError, "a block has rows");
            return -1;
        }
    }
    a->told = PyTuple_New(TOLD);
    for (int k = 0; a->told && k < TOLD; k++) {
        PyObject *bytes = PyByteArray_FromStringAndSize(NULL, 0);
        if (bytes)
            PyTuple_SET_ITEM(a->told, k, bytes);
        else
            Py_CLEAR(a->told);
    }
    return a->told ? 0 : -1;
}

static void answers_dealloc(Answers *a) {
    let_go(a);
    Py_XDECREF(a->told);
    Py_TYPE(a)->tp_free((PyObject *)a);
}

static PyMethodDef answers_methods[] = {
    {"add", (PyCFunction)(void (*)(void))answers_add, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};
static PyMemberDef answers_members[] = {
    {"told", T_OBJECT_EX, offsetof(Answers, told), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};
static PyTypeObject AnswersType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "trimtab_runs.Answers",
    .tp_basicsize = sizeof(Answers),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)answers_init,
    .tp_dealloc = (destructor)answers_dealloc,
    .tp_methods = answers_methods,
    .tp_members = answers_members,
};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "trimtab_runs", .m_size = -1};

PyMODINIT_FUNC PyInit_trimtab_runs(void) {
    PyObject *m;
    if (PyType_Ready(&AnswersType) || !(m = PyModule_Create(&module)))
        return NULL;
    if (PyModule_AddObjectRef(m, "Answers", (PyObject *)&AnswersType)) {
        Py_DECREF(m);
        return NULL;
    }
    return m;
}
