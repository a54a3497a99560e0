/* The way of a request of the usual kind past Python: its header and what stands around its values are bytes that were met
 * before, so the values go from what the connection has read into the batch, and the answer from the batch to the
 * connection. Whatever is not byte for byte of that kind, Python reads. Compiled where there is a compiler; never needed.
 *
 * Answers go to a connection's socket past its transport while that holds nothing back, and the next requests of those
 * answered are looked for there, before the event loop finds them. What a socket does not take, the transport sends.
 *
 * `serving/transport/intake.py` says what may be learned as a form; `serving/express.py` runs the batches.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <structmember.h>
#include <sys/socket.h>
#include <time.h>

#include "intake_numbers.h"

enum { FORMS = 8, MOMENTS = 6, MOST_BACK = 256, READ_BYTES = 1 << 16 };

/* A kind of request: `before`, the digits of its content-length, `behind`, `prefix`, its values, `suffix`. */
struct form {
    PyObject *before, *behind, *prefix, *suffix, *tag;
    Py_ssize_t rows;
    char binary;
};

struct slot;

struct entry {
    struct slot *slot;
    PyObject *data, *tag;
    Py_ssize_t rows;
    double received, queued;
    int kind; /* of the batch's tags */
};

typedef struct {
    PyObject_HEAD
    struct form forms[FORMS];
    int known, oldest;
    char *values, letter; /* f, d, or 0 where JSON is not read here */
    struct entry *entries;
    Py_ssize_t row_bytes, row_values, capacity, most, limit_bytes;
    Py_ssize_t count, rows, held;
    char open, woken;
    PyObject *wake, *spill;
    char *written, *read; /* an answer on its way out, and what was read */
    Py_ssize_t written_bytes;
    struct slot *back[MOST_BACK]; /* those answered last, whose next requests are looked for */
    int count_back;
    unsigned skipped;
    double share; /* of looks that found a request */
} Intake;

/* A connection's place in an intake. Armed: nothing of the connection is on its way, and a request may be taken.
 * Clear: nor does its transport hold bytes that are not sent, so that its socket, `fd`, may be used without it. */
typedef struct slot {
    PyObject_HEAD
    PyObject *owner, *receive, *write, *unsent;
    Intake *intake;
    double since;
    char armed, taken, closed, clear;
    int last, fd; /* -1 where there is no socket to be used */
} Slot;

static PyTypeObject IntakeType;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return ((double)t.tv_sec * 1e9 + (double)t.tv_nsec) / 1e9;
}

/* --- a request ------------------------------------------------------------------------------------------------------- */
static int starts(const char *p, const char *end, PyObject *with, const char **behind) {
    Py_ssize_t size = PyBytes_GET_SIZE(with);
    if (end - p < size || memcmp(p, PyBytes_AS_STRING(with), (size_t)size))
        return 0;
    *behind = p + size;
    return 1;
}

/* Whether the bytes are one whole request of this form, whose values are then behind those of the batch. */
static int reads(const Intake *k, const struct form *f, const char *p, const char *end) {
    Py_ssize_t length = 0, size = f->rows * k->row_bytes;
    const char *digits;
    char *into = k->values + k->rows * k->row_bytes;
    if (k->rows + f->rows > k->capacity || !starts(p, end, f->before, &p))
        return 0;
    for (digits = p; *p >= '0' && *p <= '9' && p - digits < 12; p++)
        length = length * 10 + (*p - '0');
    if (p == digits || !starts(p, end, f->behind, &p) || end - p != length || !starts(p, end, f->prefix, &p))
        return 0;
    if (f->binary) {
        if (end - p != size)
            return 0;
        memcpy(into, p, (size_t)size);
        return 1;
    }
    p = numbers(p, k->letter, f->rows * k->row_values, into);
    return p && end - p == PyBytes_GET_SIZE(f->suffix) && starts(p, end, f->suffix, &p);
}

static int taken(Slot *s, PyObject *data) {
    Intake *k = s->intake;
    const char *p = PyBytes_AS_STRING(data), *end = p + PyBytes_GET_SIZE(data);
    double received = now();
    int tried, at = s->last;
    if (!k || !k->open || k->count >= k->most || k->held + (end - p) > k->limit_bytes)
        return 0;
    for (tried = 0; tried < k->known; tried++, at++) {
        if (at >= k->known)
            at = 0;
        if (reads(k, &k->forms[at], p, end))
            break;
    }
    if (tried == k->known)
        return 0;
    s->last = at;
    k->entries[k->count++] = (struct entry){
        .slot = s, .data = data, .tag = k->forms[at].tag, .rows = k->forms[at].rows, .received = received, .queued = now()};
    k->rows += k->forms[at].rows;
    k->held += end - p;
    Py_INCREF(s);
    Py_INCREF(data);
    Py_INCREF(k->forms[at].tag);
    s->taken = 1;
    s->armed = 0;
    if (!k->woken) {
        PyObject *done = PyObject_CallNoArgs(k->wake);
        if (!done)
            return -1;
        Py_DECREF(done);
        k->woken = 1;
    }
    return 1;
}

/* --- slots ----------------------------------------------------------------------------------------------------------- */
static PyObject *slot_feed(Slot *s, PyObject *data) {
    if (s->armed && PyBytes_CheckExact(data)) {
        int found = taken(s, data);
        if (found < 0)
            return NULL;
        if (found)
            Py_RETURN_NONE;
        s->armed = 0;
    }
    if (!s->receive)
        Py_RETURN_NONE;
    return PyObject_CallOneArg(s->receive, data);
}

static PyObject *slot_arm(Slot *s, PyObject *intake) {
    if (!PyObject_TypeCheck(intake, &IntakeType)) {
        PyErr_SetString(PyExc_TypeError, "a slot is armed with an intake");
        return NULL;
    }
    if (!s->closed && !s->taken && s->write && ((Intake *)intake)->open) {
        Py_INCREF(intake);
        Py_XSETREF(s->intake, (Intake *)intake);
        s->armed = 1;
        /* Whoever arms it has written by the transport. */
        s->clear = 0;
    }
    Py_RETURN_NONE;
}

static PyObject *slot_disarm(Slot *s, PyObject *unused) {
    s->armed = 0;
    s->fd = -1;
    Py_CLEAR(s->intake);
    Py_RETURN_NONE;
}

/* Gives a request that was taken back, with all others of the intake. */
static PyObject *slot_release(Slot *s, PyObject *unused) {
    PyObject *done;
    if (!s->taken || !s->intake || !s->intake->spill)
        Py_RETURN_NONE;
    PyObject *spill = s->intake->spill;
    Py_INCREF(spill);
    done = PyObject_CallNoArgs(spill);
    Py_DECREF(spill);
    return done;
}

static int slot_clear(Slot *s) {
    s->armed = 0;
    s->fd = -1;
    Py_CLEAR(s->owner);
    Py_CLEAR(s->receive);
    Py_CLEAR(s->write);
    Py_CLEAR(s->unsent);
    Py_CLEAR(s->intake);
    return 0;
}

static PyObject *slot_close(Slot *s, PyObject *unused) {
    s->closed = 1;
    slot_clear(s);
    Py_RETURN_NONE;
}

/* How the connection writes; where its bytes may go past the transport, its socket and who tells the bytes that wait. */
static PyObject *slot_opened(Slot *s, PyObject *args) {
    PyObject *write, *unsent = NULL;
    int fd = -1;
    if (!PyArg_ParseTuple(args, "O|iO", &write, &fd, &unsent))
        return NULL;
    Py_INCREF(write);
    Py_XSETREF(s->write, write);
    Py_XINCREF(unsent);
    Py_XSETREF(s->unsent, unsent);
    s->fd = unsent ? fd : -1;
    s->clear = 0;
    Py_RETURN_NONE;
}

static int slot_traverse(Slot *s, visitproc visit, void *arg) {
    Py_VISIT(s->owner);
    Py_VISIT(s->receive);
    Py_VISIT(s->write);
    Py_VISIT(s->unsent);
    Py_VISIT(s->intake);
    return 0;
}

static void slot_dealloc(Slot *s) {
    PyObject_GC_UnTrack(s);
    slot_clear(s);
    Py_TYPE(s)->tp_free((PyObject *)s);
}

static int slot_init(Slot *s, PyObject *args, PyObject *kwargs) {
    PyObject *owner, *receive;
    if (!PyArg_ParseTuple(args, "OO", &owner, &receive))
        return -1;
    Py_INCREF(owner);
    Py_XSETREF(s->owner, owner);
    Py_INCREF(receive);
    Py_XSETREF(s->receive, receive);
    s->fd = -1;
    return 0;
}

/* --- the batch ------------------------------------------------------------------------------------------------------- */
static void forget(Intake *k, Py_ssize_t from, Py_ssize_t to) {
    for (Py_ssize_t i = from; i < to; i++) {
        k->held -= PyBytes_GET_SIZE(k->entries[i].data);
        Py_CLEAR(k->entries[i].slot);
        Py_CLEAR(k->entries[i].data);
        Py_CLEAR(k->entries[i].tag);
    }
}

/* Takes entries out, and their values. */
static void removed(Intake *k, Py_ssize_t from, Py_ssize_t to) {
    Py_ssize_t first = 0, rows = 0;
    struct entry gone[64];
    for (Py_ssize_t i = 0; i < from; i++)
        first += k->entries[i].rows;
    for (Py_ssize_t i = from; i < to; i++)
        rows += k->entries[i].rows;
    memmove(k->values + first * k->row_bytes, k->values + (first + rows) * k->row_bytes,
            (size_t)((k->rows - first - rows) * k->row_bytes));
    k->rows -= rows;
    /* What letting go of an object runs must find the intake in order. */
    while (to > from) {
        Py_ssize_t some = to - from < 64 ? to - from : 64;
        memcpy(gone, k->entries + to - some, (size_t)some * sizeof *gone);
        memmove(k->entries + to - some, k->entries + to, (size_t)(k->count - to) * sizeof *gone);
        k->count -= some;
        to -= some;
        for (Py_ssize_t i = 0; i < some; i++)
            k->held -= PyBytes_GET_SIZE(gone[i].data);
        for (Py_ssize_t i = 0; i < some; i++) {
            Py_DECREF(gone[i].slot);
            Py_DECREF(gone[i].data);
            Py_DECREF(gone[i].tag);
        }
    }
}

static PyObject *intake_learn(Intake *k, PyObject *args) {
    PyObject *parts[5];
    Py_ssize_t rows;
    int binary, at;
    struct form *f;
    if (!PyArg_ParseTuple(args, "SSSSOnp", &parts[0], &parts[1], &parts[2], &parts[3], &parts[4], &rows, &binary))
        return NULL;
    if (rows < 1 || rows > k->capacity || (!binary && !k->letter) || (!binary && !PyBytes_GET_SIZE(parts[3]))) {
        PyErr_SetString(PyExc_ValueError, "a form needs rows that fit, and JSON an end");
        return NULL;
    }
    if (k->known < FORMS) {
        at = k->known++;
    } else {
        at = k->oldest;
        k->oldest = (k->oldest + 1) % FORMS;
    }
    f = &k->forms[at];
    for (int i = 0; i < 5; i++)
        Py_INCREF(parts[i]);
    Py_XSETREF(f->before, parts[0]);
    Py_XSETREF(f->behind, parts[1]);
    Py_XSETREF(f->prefix, parts[2]);
    Py_XSETREF(f->suffix, parts[3]);
    Py_XSETREF(f->tag, parts[4]);
    f->rows = rows;
    f->binary = (char)binary;
    Py_RETURN_NONE;
}

/* The next batch of at most so many rows: (requests, rows, their forms' tags); None where a client has left. */
static PyObject *intake_batch(Intake *k, PyObject *limit) {
    Py_ssize_t most = PyLong_AsSsize_t(limit), rows = 0, count = 0;
    PyObject *tags;
    if (most == -1 && PyErr_Occurred())
        return NULL;
    if (!(tags = PyList_New(0)))
        return NULL;
    for (; count < k->count && rows + k->entries[count].rows <= most; count++) {
        struct entry *e = &k->entries[count];
        Py_ssize_t at, known = PyList_GET_SIZE(tags);
        if (e->slot->closed) {
            Py_DECREF(tags);
            Py_RETURN_NONE;
        }
        for (at = 0; at < known && PyList_GET_ITEM(tags, at) != e->tag; at++)
            ;
        if (at == known && PyList_Append(tags, e->tag)) {
            Py_DECREF(tags);
            return NULL;
        }
        e->kind = (int)at;
        rows += e->rows;
    }
    return Py_BuildValue("nnN", count, rows, tags);
}

/* Copies the values of the first rows. */
static PyObject *intake_read(Intake *k, PyObject *into) {
    Py_buffer view;
    if (PyObject_GetBuffer(into, &view, PyBUF_WRITABLE))
        return NULL;
    if (view.len > k->rows * k->row_bytes) {
        PyBuffer_Release(&view);
        PyErr_SetString(PyExc_ValueError, "there are fewer rows");
        return NULL;
    }
    memcpy(view.buf, k->values, (size_t)view.len);
    PyBuffer_Release(&view);
    Py_RETURN_NONE;
}

/* Whether all of an array's values are finite: True where they are integers, None where this cannot tell. */
static PyObject *intake_finite(Intake *k, PyObject *array) {
    Py_buffer view;
    uint64_t bad = 0;
    if (PyObject_GetBuffer(array, &view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT)) {
        PyErr_Clear();
        Py_RETURN_NONE;
    }
    char letter = view.format && view.format[0] && !view.format[1] ? view.format[0] : 0;
    if (letter == 'f') {
        const uint32_t *at = view.buf, *end = at + view.len / 4;
        for (; at < end; at++)
            bad |= (*at & 0x7f800000u) == 0x7f800000u;
    } else if (letter == 'd') {
        const uint64_t *at = view.buf, *end = at + view.len / 8;
        for (; at < end; at++)
            bad |= (*at & 0x7ff0000000000000u) == 0x7ff0000000000000u;
    } else if (!letter || !strchr("?bBhHiIlLqQ", letter)) {
        PyBuffer_Release(&view);
        Py_RETURN_NONE;
    }
    PyBuffer_Release(&view);
    return PyBool_FromLong(!bad);
}

static char *put(char *at, const char *from, Py_ssize_t size) {
    memcpy(at, from, (size_t)size);
    return at + size;
}

static char *put_number(char *at, Py_ssize_t number) {
    char digits[24], *first = digits + sizeof digits;
    do
        *--first = (char)('0' + number % 10);
    while (number /= 10);
    return put(at, first, digits + sizeof digits - first);
}

/* An answer: `head`, the body's length, a blank line, `before`, the rows' values, `after`. Its size, or -1. */
static Py_ssize_t answer(Intake *k, PyObject *how, Py_ssize_t from, Py_ssize_t rows) {
    PyObject *head = PyTuple_GET_ITEM(how, 0), *before = PyTuple_GET_ITEM(how, 1), *after = PyTuple_GET_ITEM(how, 2);
    PyObject *values = PyTuple_GET_ITEM(how, 3);
    Py_ssize_t size, width = 0, length, most;
    char *at;
    if (PyBytes_Check(values)) {
        width = PyLong_AsSsize_t(PyTuple_GET_ITEM(how, 4));
        if (width < 0 || (from + rows) * width > PyBytes_GET_SIZE(values))
            goto wrong;
        size = rows * width;
    } else {
        if (!PyList_Check(values) || from + rows > PyList_GET_SIZE(values))
            goto wrong;
        size = rows - 1;
        for (Py_ssize_t i = from; i < from + rows; i++) {
            if (!PyBytes_Check(PyList_GET_ITEM(values, i)))
                goto wrong;
            size += PyBytes_GET_SIZE(PyList_GET_ITEM(values, i));
        }
    }
    length = PyBytes_GET_SIZE(before) + size + PyBytes_GET_SIZE(after);
    most = PyBytes_GET_SIZE(head) + length + 32;
    if (most > k->written_bytes) {
        if (!(at = PyMem_Realloc(k->written, (size_t)most))) {
            PyErr_NoMemory();
            return -1;
        }
        k->written = at;
        k->written_bytes = most;
    }
    at = put(k->written, PyBytes_AS_STRING(head), PyBytes_GET_SIZE(head));
    at = put(put_number(at, length), "\r\n\r\n", 4);
    at = put(at, PyBytes_AS_STRING(before), PyBytes_GET_SIZE(before));
    if (PyBytes_Check(values))
        at = put(at, PyBytes_AS_STRING(values) + from * width, size);
    else
        for (Py_ssize_t i = from; i < from + rows; i++) {
            PyObject *row = PyList_GET_ITEM(values, i);
            if (i > from)
                *at++ = ',';
            at = put(at, PyBytes_AS_STRING(row), PyBytes_GET_SIZE(row));
        }
    return put(at, PyBytes_AS_STRING(after), PyBytes_GET_SIZE(after)) - k->written;
wrong:
    PyErr_SetString(PyExc_ValueError, "the answers do not fit the batch");
    return -1;
}

/* Whether the connection's socket may be used past its transport. */
static int past_transport(Slot *s) {
    if (s->fd >= 0 && !s->clear) {
        PyObject *waiting = PyObject_CallNoArgs(s->unsent);
        s->clear = waiting && PyLong_Check(waiting) && PyLong_AsLong(waiting) == 0;
        Py_XDECREF(waiting);
        if (PyErr_Occurred())
            PyErr_WriteUnraisable((PyObject *)s);
    }
    return s->fd >= 0 && s->clear;
}

/* Sends an answer; what the socket does not take at once its transport sends. */
static int written(Slot *s, const char *answer, Py_ssize_t size, double at) {
    PyObject *rest, *done, *write = s->write;
    s->taken = 0;
    if (s->closed || !write)
        return 0;
    s->since = at;
    s->armed = s->intake && s->intake->open;
    if (past_transport(s)) {
        ssize_t sent = send(s->fd, answer, (size_t)size, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent == size)
            return 0;
        /* An error the transport will meet, too, and say what becomes of the connection. */
        answer += sent > 0 ? sent : 0;
        size -= sent > 0 ? sent : 0;
    }
    s->clear = 0;
    if (!(rest = PyBytes_FromStringAndSize(answer, size)))
        return -1;
    Py_INCREF(write);
    done = PyObject_CallOneArg(write, rest);
    Py_DECREF(write);
    Py_DECREF(rest);
    Py_XDECREF(done);
    return done ? 0 : -1;
}

/* Writes the answers of the first `count` requests: `hows` by the place of their tags. They stay until `end`. */
static PyObject *intake_answer(Intake *k, PyObject *args) {
    PyObject *hows;
    Py_ssize_t count, row = 0, size;
    double at = now();
    if (!PyArg_ParseTuple(args, "nO!", &count, &PyTuple_Type, &hows))
        return NULL;
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(hows); i++) {
        PyObject *how = PyTuple_GET_ITEM(hows, i);
        int fits = PyTuple_Check(how) && PyTuple_GET_SIZE(how) == 5;
        for (Py_ssize_t part = 0; fits && part < 3; part++)
            fits = PyBytes_Check(PyTuple_GET_ITEM(how, part));
        if (!fits)
            count = -1;
    }
    if (count < 0 || count > k->count) {
        PyErr_SetString(PyExc_ValueError, "an answer is bytes head, before, after; values; width");
        return NULL;
    }
    for (Py_ssize_t i = 0; i < count && i < k->count; i++) {
        struct entry *e = &k->entries[i];
        Slot *s = e->slot;
        if (e->kind >= PyTuple_GET_SIZE(hows)) {
            PyErr_SetString(PyExc_ValueError, "a form has no answer");
            return NULL;
        }
        if ((size = answer(k, PyTuple_GET_ITEM(hows, e->kind), row, e->rows)) < 0)
            return NULL;
        row += e->rows;
        Py_INCREF(s);
        if (written(s, k->written, size, at))
            PyErr_WriteUnraisable((PyObject *)s);
        Py_DECREF(s);
    }
    Py_RETURN_NONE;
}

/* Takes the first `count` requests out: (moments of each as doubles, arrivals as doubles, rows as int64), as bytes. */
static PyObject *intake_end(Intake *k, PyObject *args) {
    double started, ended, encoded, done;
    Py_ssize_t count;
    PyObject *moments, *arrived, *rows;
    if (!PyArg_ParseTuple(args, "ndddd", &count, &started, &ended, &encoded, &done))
        return NULL;
    if (count < 0 || count > k->count) {
        PyErr_SetString(PyExc_ValueError, "there are fewer requests");
        return NULL;
    }
    moments = PyBytes_FromStringAndSize(NULL, count * MOMENTS * 8);
    arrived = PyBytes_FromStringAndSize(NULL, count * 8);
    rows = PyBytes_FromStringAndSize(NULL, count * 8);
    if (!moments || !arrived || !rows) {
        Py_XDECREF(moments);
        Py_XDECREF(arrived);
        Py_XDECREF(rows);
        return NULL;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        struct entry *e = &k->entries[i];
        double row[MOMENTS] = {e->received, e->queued, started, ended, encoded, done};
        int64_t number = e->rows;
        memcpy(PyBytes_AS_STRING(moments) + i * (Py_ssize_t)sizeof row, row, sizeof row);
        memcpy(PyBytes_AS_STRING(arrived) + i * 8, &e->received, 8);
        memcpy(PyBytes_AS_STRING(rows) + i * 8, &number, 8);
    }
    for (Py_ssize_t i = 0; i < count && k->count_back < MOST_BACK; i++) {
        Slot *s = k->entries[i].slot;
        if (s->armed && s->clear && s->fd >= 0) {
            Py_INCREF(s);
            k->back[k->count_back++] = s;
        }
    }
    removed(k, 0, count);
    return Py_BuildValue("NNN", moments, arrived, rows);
}

/* What was read of a connection goes the way of all that is read. */
static void fed(Slot *s, const char *read, Py_ssize_t size) {
    PyObject *data = PyBytes_FromStringAndSize(read, size), *done = data ? slot_feed(s, data) : NULL;
    Py_XDECREF(data);
    Py_XDECREF(done);
    if (!done) {
        /* The stream has lost its sense. */
        PyErr_WriteUnraisable((PyObject *)s);
        if (s->fd >= 0)
            shutdown(s->fd, SHUT_RDWR);
    }
}

/* Reads what the clients answered last have sent since; how many requests were taken. */
static Py_ssize_t look(Intake *k) {
    Slot *asked[MOST_BACK];
    Py_ssize_t taken = 0;
    int count = k->count_back;
    memcpy(asked, k->back, (size_t)count * sizeof *asked);
    k->count_back = 0;
    for (int i = 0; i < count; i++) {
        Slot *s = asked[i];
        if (k->open && k->count < k->most && s->armed && s->clear && s->intake == k && s->fd >= 0) {
            ssize_t size = recv(s->fd, k->read, READ_BYTES, MSG_DONTWAIT);
            if (size > 0) {
                fed(s, k->read, size);
                taken += s->taken;
            } else if (size < 0 && (errno == EAGAIN || errno == EINTR) && k->count_back < MOST_BACK) {
                k->back[k->count_back++] = s;
                continue;
            }
            /* The end of a stream, or an error: the loop finds it, too. */
        }
        Py_DECREF(s);
    }
    return taken;
}

static void forget_back(Intake *k) {
    while (k->count_back) {
        Slot *s = k->back[--k->count_back];
        Py_DECREF(s);
    }
}

/* Whether it pays to look: most of those answered before had sent again. Else one look in sixteen finds out. */
static int pays(Intake *k) {
    return k->count_back && (k->share >= 0.1 || ++k->skipped % 16 == 0);
}

/* Takes what the clients answered last have sent again, until all have, the intake has so many rows, or for so many
 * seconds none has; then it is over for them. Once a turn of the loop: looked for more often they would be answered
 * again and again before those that the loop has yet to find. */
static PyObject *intake_gather(Intake *k, PyObject *args) {
    Py_ssize_t most, found, all = 0;
    double seconds, last;
    int asked = k->count_back;
    if (!PyArg_ParseTuple(args, "nd", &most, &seconds))
        return NULL;
    if (pays(k)) {
        last = now();
        do {
            if ((found = look(k)))
                last = now();
            all += found;
        } while (k->count_back && k->rows < most && now() - last < seconds);
        k->share += 0.1 * ((double)all / asked - k->share);
    }
    forget_back(k);
    Py_RETURN_NONE;
}

/* Gives requests from place `from` to `to` back to Python: [(slot, owner or None, data, received)]. */
static PyObject *intake_give(Intake *k, PyObject *args) {
    Py_ssize_t from, to;
    PyObject *given;
    if (!PyArg_ParseTuple(args, "nn", &from, &to))
        return NULL;
    if (from < 0 || to < from || to > k->count) {
        PyErr_SetString(PyExc_ValueError, "there are fewer requests");
        return NULL;
    }
    if (!(given = PyList_New(to - from)))
        return NULL;
    for (Py_ssize_t i = from; i < to; i++) {
        struct entry *e = &k->entries[i];
        PyObject *owner = e->slot->closed || !e->slot->owner ? Py_None : e->slot->owner;
        PyObject *one = Py_BuildValue("OOOd", e->slot, owner, e->data, e->received);
        if (!one) {
            Py_DECREF(given);
            return NULL;
        }
        PyList_SET_ITEM(given, i - from, one);
    }
    for (Py_ssize_t i = from; i < to; i++)
        k->entries[i].slot->taken = 0;
    removed(k, from, to);
    return given;
}

/* Says that the next request is to wake the loop again. */
static PyObject *intake_slept(Intake *k, PyObject *unused) {
    k->woken = 0;
    Py_RETURN_NONE;
}

static int intake_clear(Intake *k) {
    k->open = 0;
    for (int i = 0; i < k->known; i++) {
        Py_CLEAR(k->forms[i].before);
        Py_CLEAR(k->forms[i].behind);
        Py_CLEAR(k->forms[i].prefix);
        Py_CLEAR(k->forms[i].suffix);
        Py_CLEAR(k->forms[i].tag);
    }
    k->known = 0;
    forget_back(k);
    Py_CLEAR(k->wake);
    Py_CLEAR(k->spill);
    return 0;
}

/* No request is taken any more; those that were should have been given back. */
static PyObject *intake_close(Intake *k, PyObject *unused) {
    intake_clear(k);
    Py_RETURN_NONE;
}

static int intake_traverse(Intake *k, visitproc visit, void *arg) {
    for (int i = 0; i < k->known; i++)
        Py_VISIT(k->forms[i].tag);
    for (Py_ssize_t i = 0; i < k->count; i++) {
        Py_VISIT(k->entries[i].slot);
        Py_VISIT(k->entries[i].tag);
    }
    for (int i = 0; i < k->count_back; i++)
        Py_VISIT(k->back[i]);
    Py_VISIT(k->wake);
    Py_VISIT(k->spill);
    return 0;
}

static void intake_dealloc(Intake *k) {
    PyObject_GC_UnTrack(k);
    intake_clear(k);
    forget(k, 0, k->count);
    PyMem_Free(k->entries);
    PyMem_Free(k->written);
    PyMem_Free(k->read);
    PyMem_RawFree(k->values);
    Py_TYPE(k)->tp_free((PyObject *)k);
}

static int intake_init(Intake *k, PyObject *args, PyObject *kwargs) {
    PyObject *wake, *spill;
    const char *letter;
    if (k->values) {
        PyErr_SetString(PyExc_TypeError, "an intake is made once");
        return -1;
    }
    if (!PyArg_ParseTuple(args, "nnsnnnOO", &k->row_values, &k->row_bytes, &letter, &k->capacity, &k->most,
                          &k->limit_bytes, &wake, &spill))
        return -1;
    k->letter = *letter;
    if (k->row_values < 1 || k->row_bytes < 1 || k->capacity < 1 || k->most < 1 ||
        k->capacity > PY_SSIZE_T_MAX / k->row_bytes ||
        (k->letter && k->row_bytes != k->row_values * (k->letter == 'f' ? 4 : 8))) {
        PyErr_SetString(PyExc_ValueError, "sizes are positive, and those of the values fit together");
        return -1;
    }
    k->values = PyMem_RawCalloc((size_t)k->capacity, (size_t)k->row_bytes);
    k->entries = PyMem_Calloc((size_t)k->most, sizeof *k->entries);
    k->read = PyMem_Malloc(READ_BYTES);
    k->share = 1.0;
    if (!k->values || !k->entries || !k->read) {
        PyErr_NoMemory();
        return -1;
    }
    Py_INCREF(wake);
    Py_INCREF(spill);
    k->wake = wake;
    k->spill = spill;
    k->open = 1;
    return 0;
}

static PyMethodDef slot_methods[] = {
    {"feed", (PyCFunction)slot_feed, METH_O, NULL},
    {"arm", (PyCFunction)slot_arm, METH_O, NULL},
    {"disarm", (PyCFunction)slot_disarm, METH_NOARGS, NULL},
    {"release", (PyCFunction)slot_release, METH_NOARGS, NULL},
    {"opened", (PyCFunction)slot_opened, METH_VARARGS, NULL},
    {"close", (PyCFunction)slot_close, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};
static PyMemberDef slot_members[] = {
    {"taken", T_BOOL, offsetof(Slot, taken), READONLY, NULL},
    {"armed", T_BOOL, offsetof(Slot, armed), READONLY, NULL},
    {"since", T_DOUBLE, offsetof(Slot, since), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};
static PyMethodDef intake_methods[] = {
    {"learn", (PyCFunction)intake_learn, METH_VARARGS, NULL},
    {"batch", (PyCFunction)intake_batch, METH_O, NULL},
    {"read", (PyCFunction)intake_read, METH_O, NULL},
    {"finite", (PyCFunction)intake_finite, METH_O, NULL},
    {"answer", (PyCFunction)intake_answer, METH_VARARGS, NULL},
    {"end", (PyCFunction)intake_end, METH_VARARGS, NULL},
    {"gather", (PyCFunction)intake_gather, METH_VARARGS, NULL},
    {"give", (PyCFunction)intake_give, METH_VARARGS, NULL},
    {"slept", (PyCFunction)intake_slept, METH_NOARGS, NULL},
    {"close", (PyCFunction)intake_close, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};
static PyMemberDef intake_members[] = {
    {"count", T_PYSSIZET, offsetof(Intake, count), READONLY, NULL},
    {"rows", T_PYSSIZET, offsetof(Intake, rows), READONLY, NULL},
    {"known", T_INT, offsetof(Intake, known), READONLY, NULL},
    {"open", T_BOOL, offsetof(Intake, open), READONLY, NULL},
    {NULL, 0, 0, 0, NULL},
};

static PyTypeObject SlotType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "trimtab_intake.Slot",
    .tp_basicsize = sizeof(Slot),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)slot_init,
    .tp_dealloc = (destructor)slot_dealloc,
    .tp_traverse = (traverseproc)slot_traverse,
    .tp_clear = (inquiry)slot_clear,
    .tp_methods = slot_methods,
    .tp_members = slot_members,
};
static PyTypeObject IntakeType = {
    PyVarObject_HEAD_INIT(NULL, 0).tp_name = "trimtab_intake.Intake",
    .tp_basicsize = sizeof(Intake),
    .tp_flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
    .tp_new = PyType_GenericNew,
    .tp_init = (initproc)intake_init,
    .tp_dealloc = (destructor)intake_dealloc,
    .tp_traverse = (traverseproc)intake_traverse,
    .tp_clear = (inquiry)intake_clear,
    .tp_methods = intake_methods,
    .tp_members = intake_members,
};
static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, .m_name = "trimtab_intake", .m_size = -1};

PyMODINIT_FUNC PyInit_trimtab_intake(void) {
    PyObject *m;
    if (PyType_Ready(&SlotType) || PyType_Ready(&IntakeType) || !(m = PyModule_Create(&module)))
        return NULL;
    if (PyModule_AddObjectRef(m, "Slot", (PyObject *)&SlotType) ||
        PyModule_AddObjectRef(m, "Intake", (PyObject *)&IntakeType)) {
        Py_DECREF(m);
        return NULL;
    }
    return m;
}
