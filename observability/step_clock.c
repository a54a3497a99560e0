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
    PyObject *loss, *gradient_norm, *learning_rate, *after_step;
} Clock;

/* A step as a block, and what it reports of itself. */
typedef struct {
    PyObject_HEAD
    Clock *clock;
    PyObject *samples, *tokens, *loss, *gradient_norm, *learning_rate;
} Step;

/* A phase as a block. */
typedef struct {
    PyObject_HEAD
    Clock *clock;
    Py_ssize_t index;
} Phase;

static PyTypeObject ClockType, StepType, PhaseType;
static PyObject *name_requires_grad, *name_detach, *name_is_cpu, *name_item, *zero;

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
    Py_XDECREF(self->loss);
    Py_XDECREF(self->gradient_norm);
    Py_XDECREF(self->learning_rate);
    Py_XDECREF(self->after_step);
    Py_TYPE(self)->tp_free((PyObject *)self);
}

static Py_ssize_t index_of(Clock *self, PyObject *phase) {
    for (Py_ssize_t i = 0; i < self->phases; i++)
        if (PyTuple_GET_ITEM(self->names, i) == phase)
            return i;
    for (Py_ssize_t i = 0; i < self->phases && PyUnicode_Check(phase); i++)
        if (PyUnicode_Compare(PyTuple_GET_ITEM(self->names, i), phase) == 0)
            return i;
    PyErr_Format(PyExc_KeyError, "there is no phase %R; there are %R", phase, self->names);
    return -1;
}

static void begin_step(Clock *self) {
    memset(self->spent, 0, sizeof self->spent);
    self->started = self->marked = now();
    put(self, STEP_AT, self->step);
    put(self, STEP_AT + 8, self->started);
    *(unsigned char *)at(self, PHASE_AT) = NO_PHASE;
}

static PyObject *clock_start(Clock *self, PyObject *Py_UNUSED(ignored)) {
    begin_step(self);
    Py_RETURN_NONE;
}

static PyObject *clock_resume(Clock *self, PyObject *Py_UNUSED(ignored)) {
    self->marked = now();
    Py_RETURN_NONE;
}

static void end_phase(Clock *self, int64_t moment, Py_ssize_t index) {
    self->spent[index] += moment - self->marked;
    self->marked = moment;
    *(unsigned char *)at(self, PHASE_AT) = (unsigned char)(self->phases + index);
}

static PyObject *clock_mark(Clock *self, PyObject *phase) {
    int64_t moment = now();
    Py_ssize_t index = index_of(self, phase);
    if (index < 0)
        return NULL;
    end_phase(self, moment, index);
    Py_RETURN_NONE;
}

static PyObject *clock_entering(Clock *self, PyObject *phase) {
    Py_ssize_t index = index_of(self, phase);
    if (index < 0)
        return NULL;
    *(unsigned char *)at(self, PHASE_AT) = (unsigned char)index;
    Py_RETURN_NONE;
}

static int is_true(PyObject *found) {
    int said = found == Py_True;
    Py_XDECREF(found);
    PyErr_Clear();
    return said;
}

/* What is kept of a loss: never its graph, which would keep the step's activations alive. Never an error. */
static PyObject *kept(PyObject *value) {
    if (value == Py_None || PyFloat_CheckExact(value) || !is_true(PyObject_GetAttr(value, name_requires_grad)))
        return Py_NewRef(value);
    /* The number, where the host has it: less than a tensor without a graph. */
    PyObject *found = is_true(PyObject_GetAttr(value, name_is_cpu)) ? PyObject_CallMethodNoArgs(value, name_item) : NULL;
    if (!found) {
        PyErr_Clear();
        found = PyObject_CallMethodNoArgs(value, name_detach);
    }
    if (!found) {
        PyErr_Clear();
        return Py_NewRef(Py_None);
    }
    return found;
}

static int end_step(Clock *self, PyObject *said_samples, PyObject *said_tokens, PyObject *loss, PyObject *norm,
                    PyObject *rate) {
    int64_t duration = now() - self->started;
    int64_t samples = PyLong_AsLongLong(said_samples), tokens = PyLong_AsLongLong(said_tokens);
    if ((samples == -1 || tokens == -1) && PyErr_Occurred())
        return -1;
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
    Py_XSETREF(self->loss, kept(loss));
    Py_XSETREF(self->gradient_norm, kept(norm));
    Py_XSETREF(self->learning_rate, Py_NewRef(rate));
    if (self->after_step && self->after_step != Py_None) {
        PyObject *done = PyObject_CallNoArgs(self->after_step);
        Py_XDECREF(done);
        return done ? 0 : -1;
    }
    return 0;
}

static PyObject *clock_end(Clock *self, PyObject *const *args, Py_ssize_t count, PyObject *keywords) {
    static const char *const names[] = {"samples", "loss", "gradient_norm", "learning_rate", "tokens"};
    PyObject *given[] = {zero, Py_None, Py_None, Py_None, zero};
    if (count > 1) {
        PyErr_SetString(PyExc_TypeError, "end takes the samples, and the rest by name");
        return NULL;
    }
    if (count)
        given[0] = args[0];
    for (Py_ssize_t i = 0; keywords && i < PyTuple_GET_SIZE(keywords); i++) {
        PyObject *name = PyTuple_GET_ITEM(keywords, i);
        size_t place = 0;
        while (place < 5 && PyUnicode_CompareWithASCIIString(name, names[place]))
            place++;
        if (place == 5 || (place == 0 && count)) {
            PyErr_Format(PyExc_TypeError, "end takes no %R, or takes it once", name);
            return NULL;
        }
        given[place] = args[count + i];
    }
    return end_step(self, given[0], given[4], given[1], given[2], given[3]) ? NULL : Py_NewRef(Py_None);
}

static PyObject *clock_latest(Clock *self, void *Py_UNUSED(closure)) {
    return PyTuple_Pack(3, self->loss ? self->loss : Py_None, self->gradient_norm ? self->gradient_norm : Py_None,
                        self->learning_rate ? self->learning_rate : Py_None);
}

static PyObject *clock_block(Clock *self, PyObject *const *args, Py_ssize_t count, PyObject *keywords) {
    PyObject *samples = count ? args[0] : zero;
    if (keywords && PyTuple_GET_SIZE(keywords) == 1 && !count &&
        PyUnicode_CompareWithASCIIString(PyTuple_GET_ITEM(keywords, 0), "samples") == 0)
        samples = args[0];
    else if (count > 1 || (keywords && PyTuple_GET_SIZE(keywords))) {
        PyErr_SetString(PyExc_TypeError, "a step takes its samples, and nothing else");
        return NULL;
    }
    Step *step = PyObject_New(Step, &StepType);
    if (!step)
        return NULL;
    step->clock = (Clock *)Py_NewRef(self);
    step->samples = Py_NewRef(samples), step->tokens = Py_NewRef(zero);
    step->loss = step->gradient_norm = step->learning_rate = NULL;
    return (PyObject *)step;
}

static PyObject *clock_phase(Clock *self, PyObject *phase) {
    Py_ssize_t index = index_of(self, phase);
    Phase *made = index < 0 ? NULL : PyObject_New(Phase, &PhaseType);
    if (made)
        made->clock = (Clock *)Py_NewRef(self), made->index = index;
    return (PyObject *)made;
}

static void step_dealloc(Step *self) {
    Py_DECREF(self->clock);
    Py_XDECREF(self->samples);
    Py_XDECREF(self->tokens);
    Py_XDECREF(self->loss);
    Py_XDECREF(self->gradient_norm);
    Py_XDECREF(self->learning_rate);
    PyObject_Free(self);
}

static PyObject *step_enter(Step *self, PyObject *Py_UNUSED(ignored)) {
    begin_step(self->clock);
    return Py_NewRef(self);
}

/* A block that raises is not recorded. */
static PyObject *step_exit(Step *self, PyObject *const *args, Py_ssize_t count) {
    if (count && args[0] != Py_None)
        Py_RETURN_FALSE;
    PyObject *loss = self->loss ? self->loss : Py_None, *norm = self->gradient_norm ? self->gradient_norm : Py_None;
    PyObject *rate = self->learning_rate ? self->learning_rate : Py_None;
    PyObject *samples = self->samples ? self->samples : zero, *tokens = self->tokens ? self->tokens : zero;
    return end_step(self->clock, samples, tokens, loss, norm, rate) ? NULL : Py_NewRef(Py_False);
}

static void phase_dealloc(Phase *self) {
    Py_DECREF(self->clock);
    PyObject_Free(self);
}

static PyObject *phase_enter(Phase *self, PyObject *Py_UNUSED(ignored)) {
    self->clock->marked = now();
    *(unsigned char *)at(self->clock, PHASE_AT) = (unsigned char)self->index;
    Py_RETURN_NONE;
}

static PyObject *phase_exit(Phase *self, PyObject *const *args, Py_ssize_t count) {
    if (!count || args[0] == Py_None)
        end_phase(self->clock, now(), self->index);
    Py_RETURN_FALSE;
}

#define FAST(FUNCTION) ((PyCFunction)(void (*)(void))FUNCTION)
static PyMethodDef methods[] = {
    {"start", (PyCFunction)clock_start, METH_NOARGS, NULL},
    {"resume", (PyCFunction)clock_resume, METH_NOARGS, NULL},
    {"mark", (PyCFunction)clock_mark, METH_O, NULL},
    {"entering", (PyCFunction)clock_entering, METH_O, NULL},
    {"end", FAST(clock_end), METH_FASTCALL | METH_KEYWORDS, NULL},
    {"block", FAST(clock_block), METH_FASTCALL | METH_KEYWORDS, NULL},
    {"phase", (PyCFunction)clock_phase, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};
static PyMemberDef members[] = {
    {"step", T_LONGLONG, offsetof(Clock, step), 0, NULL},
    {"after_step", T_OBJECT, offsetof(Clock, after_step), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};
static PyGetSetDef getters[] = {{"latest", (getter)clock_latest, NULL, NULL, NULL}, {NULL, NULL, NULL, NULL, NULL}};
static PyTypeObject ClockType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "trimtab_step_clock.Clock",
    .tp_basicsize = sizeof(Clock),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)clock_init,
    .tp_dealloc = (destructor)clock_dealloc,
    .tp_methods = methods,
    .tp_members = members,
    .tp_getset = getters,
};
static PyMethodDef step_methods[] = {
    {"__enter__", (PyCFunction)step_enter, METH_NOARGS, NULL},
    {"__exit__", FAST(step_exit), METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};
static PyMemberDef step_members[] = {
    {"samples", T_OBJECT, offsetof(Step, samples), 0, NULL},
    {"tokens", T_OBJECT, offsetof(Step, tokens), 0, NULL},
    {"loss", T_OBJECT, offsetof(Step, loss), 0, NULL},
    {"gradient_norm", T_OBJECT, offsetof(Step, gradient_norm), 0, NULL},
    {"learning_rate", T_OBJECT, offsetof(Step, learning_rate), 0, NULL},
    {NULL, 0, 0, 0, NULL},
};
static PyTypeObject StepType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "trimtab_step_clock.Step",
    .tp_basicsize = sizeof(Step),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_dealloc = (destructor)step_dealloc,
    .tp_methods = step_methods,
    .tp_members = step_members,
};
static PyMethodDef phase_methods[] = {
    {"__enter__", (PyCFunction)phase_enter, METH_NOARGS, NULL},
    {"__exit__", FAST(phase_exit), METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};
static PyTypeObject PhaseType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "trimtab_step_clock.Phase",
    .tp_basicsize = sizeof(Phase),
    .tp_flags = Py_TPFLAGS_DEFAULT,
    .tp_dealloc = (destructor)phase_dealloc,
    .tp_methods = phase_methods,
};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "trimtab_step_clock", .m_size = -1};

PyMODINIT_FUNC PyInit_trimtab_step_clock(void) {
    PyObject *m;
    if (!zero && !((zero = PyLong_FromLong(0)) && (name_requires_grad = PyUnicode_InternFromString("requires_grad")) &&
                   (name_detach = PyUnicode_InternFromString("detach")) &&
                   (name_is_cpu = PyUnicode_InternFromString("is_cpu")) &&
                   (name_item = PyUnicode_InternFromString("item"))))
        return NULL;
    if (PyType_Ready(&ClockType) || PyType_Ready(&StepType) || PyType_Ready(&PhaseType) ||
        !(m = PyModule_Create(&module)))
        return NULL;
    if (PyModule_AddObjectRef(m, "Clock", (PyObject *)&ClockType)) {
        Py_DECREF(m);
        return NULL;
    }
    return m;
}
