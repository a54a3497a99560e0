/* Whether losses are so far from a spike that nothing need be judged: the medians of `training/spikes.py`, which takes
 * ten times as long between two steps. Compiled where there is a compiler; never needed.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <string.h>

/* The element that sorting would bring to `place` (Hoare 1961); those before it are no greater. */
static double selected(double *x, Py_ssize_t count, Py_ssize_t place) {
    Py_ssize_t low = 0, high = count - 1;
    while (low < high) {
        double pivot = x[low + (high - low) / 2];
        Py_ssize_t i = low, j = high;
        while (i <= j) {
            while (x[i] < pivot)
                i++;
            while (x[j] > pivot)
                j--;
            if (i <= j) {
                double kept = x[i];
                x[i++] = x[j], x[j--] = kept;
            }
        }
        if (place <= j)
            high = j;
        else if (place >= i)
            low = i;
        else
            break;
    }
    return x[place];
}

/* The median; reorders what it is taken of. */
static double middle(double *x, Py_ssize_t count) {
    double upper = selected(x, count, count / 2);
    if (count % 2)
        return upper;
    double lower = x[0];
    for (Py_ssize_t i = 1; i < count / 2; i++)
        lower = x[i] > lower ? x[i] : lower;
    return (lower + upper) / 2;
}

/* Whether the level of x[begin..end) after the history before it is surely no spike; `room` has a window's length. */
static int is_quiet(const double *x, Py_ssize_t count, Py_ssize_t span, double limit, double least, double *room) {
    Py_ssize_t known = count - span, half = known / 2;
    memcpy(room, x + known, (size_t)span * sizeof *room);
    double level = middle(room, span);
    memcpy(room, x, (size_t)half * sizeof *room);
    double early = middle(room, half);
    memcpy(room, x + half, (size_t)(known - half) * sizeof *room);
    double late = middle(room, known - half);
    double slope = (late - early) / ((double)known / 2), start = early - slope * (double)known / 4;
    double above = level - (start + slope * (double)known), floor = least * fabs(late);
    /* What is near the limit is left to the one who says how near. */
    limit *= 1 - 1e-6;
    if (above <= limit * floor)
        return 1;
    for (Py_ssize_t i = 0; i < known; i++)
        room[i] = fabs(x[i] - start - slope * (double)i);
    return above <= limit * 1.4826 * middle(room, known);
}

static PyObject *spikes_are_quiet(PyObject *Py_UNUSED(module), PyObject *args) {
    PyObject *losses;
    Py_ssize_t count, fresh, span, history, fewest;
    double limit, least;
    if (!PyArg_ParseTuple(args, "O!nnnnndd", &PyTuple_Type, &losses, &count, &fresh, &span, &history, &fewest, &limit,
                          &least))
        return NULL;
    Py_ssize_t known = PyTuple_GET_SIZE(losses);
    if (span < 1 || history < 2 || fewest < 2 || fresh < 0 || fresh > known) {
        PyErr_SetString(PyExc_ValueError, "a span and a history of losses, and no more fresh ones than there are");
        return NULL;
    }
    double *x = PyMem_Malloc((size_t)(known + history + span + 1) * sizeof *x);
    if (!x)
        return PyErr_NoMemory();
    int quiet = 1;
    for (Py_ssize_t i = 0; i < known; i++)
        x[i] = PyFloat_AsDouble(PyTuple_GET_ITEM(losses, i));
    for (Py_ssize_t end = known - fresh + 1; end <= known && quiet && !PyErr_Occurred(); end++) {
        if ((count - (known - end)) % span || end < fewest + span)
            continue;
        Py_ssize_t begin = end - span - history > 0 ? end - span - history : 0;
        quiet = is_quiet(x + begin, end - begin, span, limit, least, x + known);
    }
    PyMem_Free(x);
    return PyErr_Occurred() ? NULL : PyBool_FromLong(quiet);
}

static PyMethodDef methods[] = {{"are_quiet", spikes_are_quiet, METH_VARARGS, NULL}, {NULL, NULL, 0, NULL}};
static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, .m_name = "trimtab_spikes", .m_size = -1, .m_methods = methods};

PyMODINIT_FUNC PyInit_trimtab_spikes(void) { return PyModule_Create(&module); }
