/* The clock of a training's steps: times phases and writes a step's record into its ring, with nothing of Python's in
 * between, whose own code is cold after a step that swept the caches. Compiled where there is a compiler; never needed.
 *
 * `observability/step_clock.py` has the same in Python; `observability/step_ring.py` has the layout.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>
#include <structmember.h>
#include <time.h>

enum { MOST_PHASES = 32, FIELDS = 4, NO_PHASE = 255 };
enum { HEADER = 1024, STEPS_AT = 512, STEP_AT = 536, PHASE_AT = 552, TOKENS_AT = 560 };
enum { WAITED_AT = 768, SPENT_AT = 776, DATA_WAIT = 0 };

typedef struct {
    PyObject_HEAD
    Py_buffer ring;
    int64_t step, started, marked, spent[MOST_PHASES];
    Py_ssize_t capacity, phases;
    PyObject *names; /* a tuple of interned strings */
} Clock;

static int64_t now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static char *at(Clock *self, Py_ssize_t offset) { return (char *)self->ring.buf + offset; }

static void put(Clock *self, Py_ssize_t offset, int64_t value) { memcpy(at(self, offset), &value, sizeof value); }

static int64_t get(Clock *self, Py_ssize_t offset) {
    int64_t value;
    memcpy(&value, at(self, offset), sizeof value);
    return value;
}

static int clock_init(Clock *self, PyObject *args, PyObject *keywords) {
    Py_buffer ring;
    PyObject *names;
    Py_ssize_t capacity;
    if (!PyArg_ParseTuple(args, "w*nO!", &ring, &capacity, &PyTuple_Type, &names))
        return -1;
    Py_ssize_t phases = PyTuple_GET_SIZE(names);
    if (self->names || phases > MOST_PHASES || capacity < 1 || ring.len < HEADER + capacity * 8 * (FIELDS + phases)) {
        PyBuffer_Release(&ring);
        PyErr_SetString(PyExc_ValueError, "a ring of another layout");
        return -1;
    }
    self->ring = ring, self->capacity = capacity, self->phases = phases;
    self->names = Py_NewRef(names);
    self->started = self->marked = now();
    return 0;
}

static void clock_dealloc(Clock *self) {
    if (self->names)
        PyBuffer_Release(&self->ring);
    Py_XDECREF(self->names);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static Py_ssize_t index_of(Clock *self, PyObject *phase) {
    for (Py_ssize_t i = 0; i < self->phases; i++)
        if (PyTuple_GET_ITEM(self->names, i) == phase)
            return i;
    for (Py_ssize_t i = 0; i < self->phases && PyUnicode_Check(phase); i++)
        if (PyUnicode_Compare(PyTuple_GET_ITEM(self->names, i), phase) == 0)
            return i;
    PyErr_SetObject(PyExc_KeyError, phase);
    return -1;
}

static PyObject *clock_start(Clock *self, PyObject *Py_UNUSED(ignored)) {
    memset(self->spent, 0, sizeof self->spent);
    self->started = self->marked = now();
    put(self, STEP_AT, self->step);
    put(self, STEP_AT + 8, self->started);
    *(unsigned char *)at(self, PHASE_AT) = NO_PHASE;
    Py_RETURN_NONE;
}

static PyObject *clock_resume(Clock *self, PyObject *Py_UNUSED(ignored)) {
    self->marked = now();
    Py_RETURN_NONE;
}

static PyObject *clock_mark(Clock *self, PyObject *phase) {
    int64_t moment = now();
    Py_ssize_t index = index_of(self, phase);
    if (index < 0)
        return NULL;
    self->spent[index] += moment - self->marked;
    self->marked = moment;
    *(unsigned char *)at(self, PHASE_AT) = (unsigned char)(self->phases + index);
    Py_RETURN_NONE;
}

static PyObject *clock_entering(Clock *self, PyObject *phase) {
    Py_ssize_t index = index_of(self, phase);
    if (index < 0)
        return NULL;
    *(unsigned char *)at(self, PHASE_AT) = (unsigned char)index;
    Py_RETURN_NONE;
}

static PyObject *clock_end(Clock *self, PyObject *const *args, Py_ssize_t count) {
    int64_t duration = now() - self->started;
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "end takes samples and tokens");
        return NULL;
    }
    int64_t samples = PyLong_AsLongLong(args[0]), tokens = PyLong_AsLongLong(args[1]);
    if ((samples == -1 || tokens == -1) && PyErr_Occurred())
        return NULL;
    int64_t steps = get(self, STEPS_AT), head[FIELDS] = {self->step, self->started, duration, samples};
    char *record = at(self, HEADER + (Py_ssize_t)(steps % self->capacity) * 8 * (FIELDS + self->phases));
    memcpy(record, head, sizeof head);
    memcpy(record + sizeof head, self->spent, 8 * (size_t)self->phases);
    put(self, STEPS_AT + 8, get(self, STEPS_AT + 8) + samples);
    put(self, WAITED_AT, get(self, WAITED_AT) + self->spent[DATA_WAIT]);
    put(self, SPENT_AT, get(self, SPENT_AT) + duration);
    if (tokens)
        put(self, TOKENS_AT, get(self, TOKENS_AT) + tokens);
    /* Last: a record counts once it is whole. */
    __atomic_thread_fence(__ATOMIC_RELEASE);
    put(self, STEPS_AT, steps + 1);
    self->step++;
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"start", (PyCFunction)clock_start, METH_NOARGS, NULL},
    {"resume", (PyCFunction)clock_resume, METH_NOARGS, NULL},
    {"mark", (PyCFunction)clock_mark, METH_O, NULL},
    {"entering", (PyCFunction)clock_entering, METH_O, NULL},
    {"end", (PyCFunction)(void (*)(void))clock_end, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};
static PyMemberDef members[] = {
    {"step", T_LONGLONG, offsetof(Clock, step), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};
static PyTypeObject ClockType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "trimtab_step_clock.Clock",
    .tp_basicsize = sizeof(Clock),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)clock_init,
    .tp_dealloc = (destructor)clock_dealloc,
    .tp_methods = methods,
    .tp_members = members,
};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "trimtab_step_clock", .m_size = -1};

PyMODINIT_FUNC PyInit_trimtab_step_clock(void) {
    PyObject *m;
    if (PyType_Ready(&ClockType) || !(m = PyModule_Create(&module)))
        return NULL;
    if (PyModule_AddObjectRef(m, "Clock", (PyObject *)&ClockType)) {
        Py_DECREF(m);
        return NULL;
    }
    return m;
}
