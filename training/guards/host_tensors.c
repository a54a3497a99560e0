/* What guards ask of tensors that the host has, in one pass over their memory, with nothing of torch's in between: an
 * operator of torch's takes microseconds before it begins. Compiled where there is a compiler; never needed.
 *
 * `training/guards/host_tensors.py` says what each function is. All of them give None for tensors that they do not know:
 * of another class, type or device, or whose elements do not lie one behind the other.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

typedef enum { FLOAT, DOUBLE, BFLOAT, NUM_KINDS } Kind;
typedef struct {
    const void *data;
    int64_t count;
    Kind kind;
} Seen;

/* torch.Tensor, torch.nn.Parameter, torch.get_num_threads, and the dtypes in the order of Kind: told once, by `know`. */
static PyObject *known_class, *known_subclass, *known_threads, *known_kinds[NUM_KINDS];
static PyObject *name_grad, *name_dtype, *name_is_cpu, *name_numel, *name_data_ptr, *name_is_contiguous, *name_shape;

/* 1 where an attribute, or what a method without arguments gives, is the object; 0 also where there is none such. */
static int is_object(PyObject *found, PyObject *wanted) {
    Py_XDECREF(found);
    return found == wanted;
}

static int64_t number(PyObject *found) {
    int64_t value = found ? PyLong_AsLongLong(found) : -1;
    Py_XDECREF(found);
    return value;
}

/* Whether this is a tensor that can be read here; leaves no error behind. */
static int see(PyObject *tensor, Seen *seen) {
    if ((PyObject *)Py_TYPE(tensor) != known_class && (PyObject *)Py_TYPE(tensor) != known_subclass)
        return 0;
    PyObject *dtype = PyObject_GetAttr(tensor, name_dtype);
    Py_XDECREF(dtype); /* torch keeps it */
    for (seen->kind = FLOAT; seen->kind < NUM_KINDS && known_kinds[seen->kind] != dtype; seen->kind++)
        ;
    int known = seen->kind < NUM_KINDS && is_object(PyObject_GetAttr(tensor, name_is_cpu), Py_True) &&
                is_object(PyObject_CallMethodNoArgs(tensor, name_is_contiguous), Py_True);
    if (known) {
        seen->count = number(PyObject_CallMethodNoArgs(tensor, name_numel));
        seen->data = (const void *)(intptr_t)number(PyObject_CallMethodNoArgs(tensor, name_data_ptr));
        known = seen->count == 0 || (seen->count > 0 && seen->data);
    }
    if (PyErr_Occurred()) {
        PyErr_Clear();
        return 0;
    }
    return known;
}

static inline float of_bfloat(uint16_t value) {
    uint32_t bits = (uint32_t)value << 16;
    float number;
    memcpy(&number, &bits, sizeof number);
    return number;
}

/* Sums side by side, since each waits for its own last one. */
enum { LANES = 64, BLOCK = 4096 };
#define SQUARES(NAME, TYPE, SUM, AS)                                                                                   \
    static double NAME(const TYPE *x, int64_t count) {                                                                 \
        SUM sums[LANES] = {0};                                                                                         \
        double total = 0;                                                                                              \
        int64_t i = 0;                                                                                                 \
        for (; i + LANES <= count; i += LANES)                                                                         \
            for (int j = 0; j < LANES; j++) {                                                                          \
                SUM one = AS(x[i + j]);                                                                                \
                sums[j] += one * one;                                                                                  \
            }                                                                                                          \
        for (; i < count; i++)                                                                                         \
            total += (double)AS(x[i]) * (double)AS(x[i]);                                                              \
        for (int j = 0; j < LANES; j++)                                                                                \
            total += (double)sums[j];                                                                                  \
        return total;                                                                                                  \
    }
SQUARES(quick_float, float, float, (float))
SQUARES(squares_wide, float, double, (double))
SQUARES(squares_double, double, double, (double))
SQUARES(squares_bfloat, uint16_t, double, of_bfloat)

/* In single precision, twice as fast, where no square is too large for it or so small that something is lost. */
static double squares_float(const float *x, int64_t count) {
    double total = 0;
    for (int64_t i = 0; i < count; i += BLOCK) {
        int64_t size = count - i < BLOCK ? count - i : BLOCK;
        double sum = quick_float(x + i, size);
        total += sum > 1e-20 && sum < 1e38 ? sum : squares_wide(x + i, size);
    }
    return total;
}

static double squares(const Seen *seen) {
    return seen->kind == FLOAT    ? squares_float(seen->data, seen->count)
           : seen->kind == DOUBLE ? squares_double(seen->data, seen->count)
                                  : squares_bfloat(seen->data, seen->count);
}

/* NaN and infinities are those whose exponent is all ones. */
#define ODD(NAME, TYPE, EXPONENT)                                                                                      \
    static int NAME(const TYPE *x, int64_t count) {                                                                    \
        TYPE odd = 0;                                                                                                  \
        for (int64_t i = 0; i < count; i++)                                                                            \
            odd |= (x[i] & EXPONENT) == EXPONENT;                                                                      \
        return odd != 0;                                                                                               \
    }
ODD(odd_4, uint32_t, 0x7f800000u)
ODD(odd_8, uint64_t, 0x7ff0000000000000u)
ODD(odd_2, uint16_t, 0x7f80u)

static int is_odd(const Seen *seen) {
    return seen->kind == FLOAT    ? odd_4(seen->data, seen->count)
           : seen->kind == DOUBLE ? odd_8(seen->data, seen->count)
                                  : odd_2(seen->data, seen->count);
}

/* How many of `units`, of which `inner` values lie side by side, give the same throughout; -1 without memory. */
#define DEAD(NAME, TYPE, NUMBER, AS)                                                                                   \
    static int64_t NAME(const TYPE *x, int64_t outer, int64_t units, int64_t inner) {                                  \
        NUMBER *restrict low = PyMem_Malloc((size_t)units * sizeof *low);                                              \
        NUMBER *restrict high = PyMem_Malloc((size_t)units * sizeof *high);                                            \
        int64_t dead = low && high ? 0 : -1;                                                                           \
        for (int64_t u = 0; u < units && !dead; u++)                                                                   \
            low[u] = (NUMBER)INFINITY, high[u] = -(NUMBER)INFINITY;                                                    \
        for (int64_t o = 0; o < outer && !dead && inner == 1; o++)                                                     \
            for (int64_t u = 0; u < units; u++) {                                                                      \
                NUMBER one = AS(x[o * units + u]);                                                                     \
                low[u] = one < low[u] ? one : low[u];                                                                  \
                high[u] = one > high[u] ? one : high[u];                                                               \
            }                                                                                                          \
        for (int64_t o = 0; o < outer * units && !dead && inner > 1; o++)                                              \
            for (int64_t i = 0; i < inner; i++) {                                                                      \
                NUMBER one = AS(x[o * inner + i]);                                                                     \
                low[o % units] = one < low[o % units] ? one : low[o % units];                                          \
                high[o % units] = one > high[o % units] ? one : high[o % units];                                       \
            }                                                                                                          \
        for (int64_t u = 0; u < units && dead >= 0; u++) {                                                             \
            double least = (double)low[u], most = (double)high[u];                                                     \
            dead += most - least <= 1e-6 * (fabs(most) > fabs(least) ? fabs(most) : fabs(least));                      \
        }                                                                                                              \
        PyMem_Free(low);                                                                                               \
        PyMem_Free(high);                                                                                              \
        return dead;                                                                                                   \
    }
DEAD(dead_float, float, float, (float))
DEAD(dead_double, double, double, (double))
DEAD(dead_bfloat, uint16_t, float, of_bfloat)

/* Above so many numbers several threads of torch's are sooner through than one of ours. */
enum { MOST_OF_MANY_THREADS = 1 << 19 };

static int torch_is_sooner(int64_t count) {
    if (count <= MOST_OF_MANY_THREADS)
        return 0;
    int64_t threads = number(PyObject_CallNoArgs(known_threads));
    PyErr_Clear();
    return threads != 1;
}

/* The norm of tensors, or of their gradients. */
static PyObject *norm_of(PyObject *list, int of_gradients) {
    if (!PyList_Check(list)) {
        PyErr_SetString(PyExc_TypeError, "a list of tensors is wanted");
        return NULL;
    }
    int64_t count = 0;
    double total = 0;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(list); i++) {
        Seen seen;
        PyObject *tensor = PyList_GET_ITEM(list, i);
        tensor = of_gradients ? PyObject_GetAttr(tensor, name_grad) : Py_NewRef(tensor);
        if (!tensor)
            return NULL;
        if (tensor != Py_None || !of_gradients) {
            if (!see(tensor, &seen) || torch_is_sooner(count += seen.count)) {
                Py_DECREF(tensor);
                Py_RETURN_NONE;
            }
            total += squares(&seen);
        }
        Py_DECREF(tensor);
    }
    return PyFloat_FromDouble(sqrt(total));
}

static PyObject *host_gradient_norm(PyObject *Py_UNUSED(module), PyObject *parameters) {
    return norm_of(parameters, 1);
}

static PyObject *host_norm(PyObject *Py_UNUSED(module), PyObject *tensors) { return norm_of(tensors, 0); }

/* The loss, where it is one number and with the outputs finite; None where one is not, or is not known. */
static PyObject *host_begin(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count) {
    Seen loss, outputs;
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "begin takes outputs and a loss");
        return NULL;
    }
    if (!see(args[1], &loss) || loss.count != 1 || is_odd(&loss) || !see(args[0], &outputs) || is_odd(&outputs))
        Py_RETURN_NONE;
    if (loss.kind == FLOAT)
        return PyFloat_FromDouble(*(const float *)loss.data);
    return PyFloat_FromDouble(loss.kind == DOUBLE ? *(const double *)loss.data : of_bfloat(*(const uint16_t *)loss.data));
}

static PyObject *host_is_finite(PyObject *Py_UNUSED(module), PyObject *tensor) {
    Seen seen;
    if (!see(tensor, &seen))
        Py_RETURN_NONE;
    return PyBool_FromLong(!is_odd(&seen));
}

static PyObject *host_look(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count) {
    Seen seen;
    Py_ssize_t place = count == 2 ? PyLong_AsSsize_t(args[1]) : -1;
    if (place < 0) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_TypeError, "look takes a tensor and the dimension of its units");
        return NULL;
    }
    if (!see(args[0], &seen) || seen.count == 0)
        Py_RETURN_NONE;
    PyObject *shape = PyObject_GetAttr(args[0], name_shape);
    if (!shape || !PyTuple_Check(shape) || place >= PyTuple_GET_SIZE(shape)) {
        Py_XDECREF(shape);
        return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
    }
    int64_t units = PyLong_AsLongLong(PyTuple_GET_ITEM(shape, place)), inner = 1;
    for (Py_ssize_t i = place + 1; i < PyTuple_GET_SIZE(shape); i++)
        inner *= PyLong_AsLongLong(PyTuple_GET_ITEM(shape, i));
    Py_DECREF(shape);
    int64_t outer = seen.count / units / inner;
    int64_t dead = seen.kind == FLOAT    ? dead_float(seen.data, outer, units, inner)
                   : seen.kind == DOUBLE ? dead_double(seen.data, outer, units, inner)
                                         : dead_bfloat(seen.data, outer, units, inner);
    if (dead < 0)
        return PyErr_NoMemory();
    double share = outer * inner > 1 ? (double)dead / (double)units : 0.0;
    return Py_BuildValue("(dd)", share, sqrt(squares(&seen) / (double)seen.count));
}

static PyObject *host_know(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t count) {
    if (count != 3 + NUM_KINDS) {
        PyErr_SetString(PyExc_TypeError, "know takes two classes, a function and three dtypes");
        return NULL;
    }
    Py_XSETREF(known_class, Py_NewRef(args[0]));
    Py_XSETREF(known_subclass, Py_NewRef(args[1]));
    Py_XSETREF(known_threads, Py_NewRef(args[2]));
    for (int kind = 0; kind < NUM_KINDS; kind++)
        Py_XSETREF(known_kinds[kind], Py_NewRef(args[3 + kind]));
    Py_RETURN_NONE;
}

#define FAST(FUNCTION) ((PyCFunction)(void (*)(void))FUNCTION)
static PyMethodDef methods[] = {
    {"know", FAST(host_know), METH_FASTCALL, NULL},
    {"gradient_norm", host_gradient_norm, METH_O, NULL},
    {"norm", host_norm, METH_O, NULL},
    {"begin", FAST(host_begin), METH_FASTCALL, NULL},
    {"is_finite", host_is_finite, METH_O, NULL},
    {"look", FAST(host_look), METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};
static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, .m_name = "trimtab_host_tensors", .m_size = -1, .m_methods = methods};

PyMODINIT_FUNC PyInit_trimtab_host_tensors(void) {
    const struct {
        PyObject **place;
        const char *name;
    } names[] = {{&name_grad, "grad"},         {&name_dtype, "dtype"},       {&name_is_cpu, "is_cpu"},
                 {&name_numel, "numel"},       {&name_data_ptr, "data_ptr"}, {&name_is_contiguous, "is_contiguous"},
                 {&name_shape, "shape"}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!*names[i].place && !(*names[i].place = PyUnicode_InternFromString(names[i].name)))
            return NULL;
    return PyModule_Create(&module);
}
