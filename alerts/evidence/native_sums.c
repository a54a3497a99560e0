/* The sums of logarithms that a verdict is made of, with the bits that Python gives: the same operations in the same
 * order, and the same functions of the C library. Compiled where there is a compiler; never needed.
 *
 * The formulas and their sources stand beside the same in Python: `segments.py`, `errors.py`, `sample_ratio.py` and
 * `latency.py`; `native_sums.py` has the arguments.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <float.h>
#include <math.h>
#include <string.h>

#if FLT_EVAL_METHOD != 0
#error "sums are kept in more bits than Python's"
#endif

enum { MOST = 256, FRACTIONS = 2 }; /* numbers in a list; bets at a bound */

static PyObject *lgamma_of; /* Python's own, which is not the C library's */

/* The numbers of a tuple or list: as many as `wanted` where that is not negative, at most MOST. -1 with an error set. */
static Py_ssize_t numbers(PyObject *given, Py_ssize_t wanted, double *values) {
    if (!PyTuple_Check(given) && !PyList_Check(given)) {
        PyErr_SetString(PyExc_TypeError, "a tuple or list of numbers is wanted");
        return -1;
    }
    const Py_ssize_t size = PySequence_Fast_GET_SIZE(given);
    if (size > MOST || (wanted >= 0 && size != wanted)) {
        PyErr_Format(PyExc_ValueError, "%zd numbers are wanted, got %zd", wanted >= 0 ? wanted : MOST, size);
        return -1;
    }
    for (Py_ssize_t i = 0; i < size; i++) {
        values[i] = PyFloat_AsDouble(PySequence_Fast_GET_ITEM(given, i));
        if (values[i] == -1.0 && PyErr_Occurred())
            return -1;
    }
    return size;
}

static int arguments(Py_ssize_t given, Py_ssize_t wanted) {
    if (given != wanted)
        PyErr_Format(PyExc_TypeError, "%zd arguments are wanted, got %zd", wanted, given);
    return given == wanted;
}

static PyObject *tuple_of(const double *values, Py_ssize_t size) {
    PyObject *made = PyTuple_New(size);
    for (Py_ssize_t i = 0; made && i < size; i++) {
        PyObject *value = PyFloat_FromDouble(values[i]);
        if (!value)
            Py_CLEAR(made);
        else
            PyTuple_SET_ITEM(made, i, value);
    }
    return made;
}

/* `segments.log_mean_exp`. */
static double log_mean_exp(const double *values, Py_ssize_t size) {
    double highest = values[0], sum = 0.0;
    for (Py_ssize_t i = 1; i < size; i++)
        if (values[i] > highest)
            highest = values[i];
    if (!isfinite(highest))
        return highest;
    for (Py_ssize_t i = 0; i < size; i++)
        sum += exp(values[i] - highest);
    return highest + log(sum / (double)size);
}

/* `segments.log_mixture`: slopes, normalizers by row, and rows of (propensity, canary events, all events). */
static PyObject *label_mixture(PyObject *Py_UNUSED(self), PyObject *const *args, Py_ssize_t count) {
    double values[MOST], norms[MOST], row[3], canary = 0.0;
    Py_ssize_t bets;
    if (!arguments(count, 3) || (bets = numbers(args[0], -1, values)) < 0)
        return NULL;
    const Py_ssize_t rows = PyList_Check(args[1]) && PyList_Check(args[2]) ? PyList_GET_SIZE(args[2]) : 0;
    if (!bets || !rows || PyList_GET_SIZE(args[1]) != rows)
        return PyErr_Format(PyExc_ValueError, "bets, rows, and as many lists of normalizers as rows are wanted");
    for (Py_ssize_t i = 0; i < rows; i++) {
        if (numbers(PyList_GET_ITEM(args[2], i), 3, row) < 0)
            return NULL;
        canary += row[1];
    }
    for (Py_ssize_t bet = 0; bet < bets; bet++)
        values[bet] = canary * values[bet];
    for (Py_ssize_t i = 0; i < rows; i++) {
        if (numbers(PyList_GET_ITEM(args[2], i), 3, row) < 0 || numbers(PyList_GET_ITEM(args[1], i), bets, norms) < 0)
            return NULL;
        for (Py_ssize_t bet = 0; bet < bets; bet++)
            values[bet] = values[bet] - row[2] * norms[bet];
    }
    return PyFloat_FromDouble(log_mean_exp(values, bets));
}

/* `errors.log_rate_safety`: errors, clean requests, and what each of them adds by bet. */
static PyObject *rate_mixture(PyObject *Py_UNUSED(self), PyObject *const *args, Py_ssize_t count) {
    double values[MOST], counts[2], on_errors[MOST];
    Py_ssize_t bets;
    if (!arguments(count, 4) || (bets = numbers(args[3], -1, values)) < 0 || numbers(args[2], bets, on_errors) < 0)
        return NULL;
    for (int i = 0; i < 2; i++) {
        counts[i] = PyFloat_AsDouble(args[i]);
        if (counts[i] == -1.0 && PyErr_Occurred())
            return NULL;
    }
    if (!bets)
        return PyErr_Format(PyExc_ValueError, "bets are wanted");
    for (Py_ssize_t bet = 0; bet < bets; bet++) {
        values[bet] = counts[1] * values[bet];
        if (counts[0] != 0.0) /* 0 times infinity is no number */
            values[bet] = counts[0] * on_errors[bet] + values[bet];
    }
    return PyFloat_FromDouble(log_mean_exp(values, bets));
}

static int log_gamma(double x, double *found) {
    PyObject *given = PyFloat_FromDouble(x);
    PyObject *made = given ? PyObject_CallOneArg(lgamma_of, given) : NULL;
    Py_XDECREF(given);
    if (!made)
        return 0;
    *found = PyFloat_AS_DOUBLE(made);
    Py_DECREF(made);
    return 1;
}

/* ln B(a, b), where `sum` is a + b. */
static int log_beta(double a, double b, double sum, double *found) {
    double of_a, of_b, of_sum;
    if (!log_gamma(a, &of_a) || !log_gamma(b, &of_b) || !log_gamma(sum, &of_sum))
        return 0;
    *found = of_a + of_b - of_sum;
    return 1;
}

/* `sample_ratio._log_beta_binomial` of each row, where chance has routed: (propensity, canary, stable). */
static PyObject *split_terms(PyObject *Py_UNUSED(self), PyObject *const *args, Py_ssize_t count) {
    double row[3], terms[MOST], first, after;
    if (!arguments(count, 2))
        return NULL;
    const double prior = PyFloat_AsDouble(args[1]);
    if (prior == -1.0 && PyErr_Occurred())
        return NULL;
    if (!PyList_Check(args[0]) || PyList_GET_SIZE(args[0]) > MOST)
        return PyErr_Format(PyExc_ValueError, "a list of at most %d rows is wanted", MOST);
    const Py_ssize_t rows = PyList_GET_SIZE(args[0]);
    for (Py_ssize_t i = 0; i < rows; i++) {
        if (numbers(PyList_GET_ITEM(args[0], i), 3, row) < 0)
            return NULL;
        const double rho = row[0], canary = row[1], stable = row[2];
        const double a = prior * rho, b = prior * (1.0 - rho);
        if (!log_beta(a, b, a + b, &first) || !log_beta(a + canary, b + stable, prior + canary + stable, &after))
            return NULL;
        terms[i] = after - first - canary * log(rho) - stable * log1p(-rho);
    }
    return tuple_of(terms, rows);
}

/* `latency.Pace.evidence`: weights, the wealth by fraction, the fractions' shares of it, and the largest logarithm. */
static PyObject *mixed_wealth(PyObject *Py_UNUSED(self), PyObject *const *args, Py_ssize_t count) {
    double weights[MOST], wealth[FRACTIONS][MOST], shares[FRACTIONS], total = 0.0, most_part = 0.0;
    Py_ssize_t bounds, telling = 0;
    if (!arguments(count, 4) || (bounds = numbers(args[0], -1, weights)) < 0 || numbers(args[2], FRACTIONS, shares) < 0)
        return NULL;
    const double most = PyFloat_AsDouble(args[3]);
    if (most == -1.0 && PyErr_Occurred())
        return NULL;
    if (!bounds || !PyTuple_Check(args[1]) || PyTuple_GET_SIZE(args[1]) != FRACTIONS)
        return PyErr_Format(PyExc_ValueError, "bounds, and the wealth of %d fractions are wanted", FRACTIONS);
    for (int f = 0; f < FRACTIONS; f++)
        if (numbers(PyTuple_GET_ITEM(args[1], f), bounds, wealth[f]) < 0)
            return NULL;
    for (Py_ssize_t i = 0; i < bounds; i++) {
        double part = 0.0;
        if (weights[i] != 0.0) {
            const double a = wealth[0][i] < most ? wealth[0][i] : most, b = wealth[1][i] < most ? wealth[1][i] : most;
            part = weights[i] * (shares[0] * exp(a) + shares[1] * exp(b));
        }
        total += part;
        if (!i || part > most_part)
            most_part = part, telling = i;
    }
    return Py_BuildValue("dn", total != 0.0 ? log(total) : 0.0, telling);
}

/* A look as `latency.Pace._bet` takes it. */
struct look {
    double canary[MOST], stable[MOST], usual[MOST], weights[MOST], slow[MOST];
    double canary_requests, stable_requests, tolerance, most_gain, least_requests, remembered;
};

/* The wealth of one fraction after the look; 0 with an error set where there is no logarithm. */
static int bet(const struct look *look, Py_ssize_t bounds, double fraction, double *wealth) {
    const double least = look->least_requests / look->stable_requests;
    for (Py_ssize_t i = 0; i < bounds; i++) {
        const double a = look->canary[i] / look->canary_requests, b = look->stable[i] / look->stable_requests;
        if (look->weights[i] == 0.0 || (a == 0.0 && b == 0.0))
            continue;
        double cap = least > look->usual[i] ? least : look->usual[i];
        cap = 1.0 < cap ? 1.0 : cap;
        const double stake = fraction / (cap * look->tolerance), limit = look->most_gain / stake;
        const double d = stake * ((limit < a ? limit : a) - look->tolerance * b);
        double parts = d < 0.0 ? ceil(b / cap) : 1.0;
        parts = 1.0 > parts ? 1.0 : parts;
        if (d / parts <= -1.0) {
            PyErr_SetString(PyExc_ValueError, "math domain error");
            return 0;
        }
        wealth[i] = wealth[i] + parts * log1p(d / parts);
    }
    return 1;
}

/* wealth, weights, usual, slow, (canary, stable: requests above each bound), (their requests, tolerance, MOST,
 * LEAST_REQUESTS, REMEMBERED), FRACTIONS, since any: the next wealth, usual and slow. */
static PyObject *wealth_after(PyObject *Py_UNUSED(self), PyObject *const *args, Py_ssize_t count) {
    struct look look;
    double wealth[MOST], fractions[FRACTIONS], settings[6];
    Py_ssize_t bounds;
    if (!arguments(count, 9) || (bounds = numbers(args[1], -1, look.weights)) < 0 ||
        numbers(args[2], bounds, look.usual) < 0 || numbers(args[3], bounds, look.slow) < 0 ||
        numbers(args[4], bounds, look.canary) < 0 || numbers(args[5], bounds, look.stable) < 0 ||
        numbers(args[6], 6, settings) < 0 || numbers(args[7], FRACTIONS, fractions) < 0)
        return NULL;
    memcpy(&look.canary_requests, settings, sizeof settings);
    if (look.canary_requests == 0.0 || look.stable_requests == 0.0)
        return PyErr_Format(PyExc_ZeroDivisionError, "float division by zero");
    if (!PyTuple_Check(args[0]) || PyTuple_GET_SIZE(args[0]) != FRACTIONS)
        return PyErr_Format(PyExc_ValueError, "the wealth of %d fractions is wanted", FRACTIONS);
    PyObject *rows[FRACTIONS] = {NULL}, *found = NULL;
    for (int f = 0; f < FRACTIONS; f++) {
        if (numbers(PyTuple_GET_ITEM(args[0], f), bounds, wealth) < 0)
            goto end;
        for (Py_ssize_t i = 0; args[8] == Py_True && i < bounds; i++) /* `segments.log_plus_one` */
            wealth[i] = wealth[i] > 0 ? wealth[i] + log1p(exp(-wealth[i])) : log1p(exp(wealth[i]));
        if (!bet(&look, bounds, fractions[f], wealth) || !(rows[f] = tuple_of(wealth, bounds)))
            goto end;
    }
    for (Py_ssize_t i = 0; i < bounds; i++) {
        const double before = look.remembered * look.usual[i], share = look.stable[i] / look.stable_requests;
        look.usual[i] = share > before ? share : before;
        look.slow[i] = look.slow[i] + look.canary[i];
    }
    PyObject *usual = tuple_of(look.usual, bounds), *slow = tuple_of(look.slow, bounds);
    if (usual && slow)
        found = Py_BuildValue("(OO)OO", rows[0], rows[1], usual, slow);
    Py_XDECREF(usual);
    Py_XDECREF(slow);
end:
    for (int f = 0; f < FRACTIONS; f++)
        Py_XDECREF(rows[f]);
    return found;
}

/* The functions of the C library, so that it can be seen whether they are those of Python. */
static PyObject *elementary(PyObject *Py_UNUSED(self), PyObject *given) {
    const double x = PyFloat_AsDouble(given);
    if (x == -1.0 && PyErr_Occurred())
        return NULL;
    return Py_BuildValue("dddd", exp(-x), exp(x), log(x), log1p(x));
}

static PyMethodDef methods[] = {
    {"label_mixture", (PyCFunction)(void (*)(void))label_mixture, METH_FASTCALL, NULL},
    {"rate_mixture", (PyCFunction)(void (*)(void))rate_mixture, METH_FASTCALL, NULL},
    {"split_terms", (PyCFunction)(void (*)(void))split_terms, METH_FASTCALL, NULL},
    {"mixed_wealth", (PyCFunction)(void (*)(void))mixed_wealth, METH_FASTCALL, NULL},
    {"wealth_after", (PyCFunction)(void (*)(void))wealth_after, METH_FASTCALL, NULL},
    {"elementary", (PyCFunction)elementary, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};
static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, .m_name = "trimtab_native_sums", .m_size = -1, .m_methods = methods};

PyMODINIT_FUNC PyInit_trimtab_native_sums(void) {
    PyObject *math = PyImport_ImportModule("math"), *made = NULL;
    if (math && (lgamma_of = PyObject_GetAttrString(math, "lgamma")) && (made = PyModule_Create(&module)) &&
        PyModule_AddIntConstant(made, "MOST", MOST))
        Py_CLEAR(made);
    Py_XDECREF(math);
    return made;
}
