/* A body in pieces is sent over a connection, and its answer read if that is of the usual kind, in one call without the
 * interpreter's lock. Compiled by `native.py` where there are Python's headers; never needed.
 *
 * The kernel copies megabytes in milliseconds without a break, and whoever waits for that processor meanwhile waits for all
 * of it: a host's callers among them. So a large body goes part by part, with pauses that add at most PARTS * PAUSE.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>

enum { AT_ONCE = IOV_MAX < 1024 ? IOV_MAX : 1024, HEAD = 4096, BODY = 1 << 16 };
/* Bytes of a part, parts of a body at most, nanoseconds between two. */
enum { PART = 1 << 18, PARTS = 24, PAUSE = 1600000 };
enum { PLAIN, OTHER, UNSENT, UNREAD, BROKEN };

static int waits(int fd, short what, int milliseconds) {
    struct pollfd asked = {.fd = fd, .events = what};
    int found;
    do
        found = poll(&asked, 1, milliseconds);
    while (found < 0 && errno == EINTR);
    return found;
}

static int sent(int fd, int milliseconds, struct iovec *pieces, Py_ssize_t count, size_t part) {
    size_t left = part;
    while (count) {
        if (!left) {
            nanosleep(&(struct timespec){.tv_nsec = PAUSE}, NULL);
            left = part;
        }
        /* The pieces that begin within the part; the last one is cut where it ends. */
        Py_ssize_t some = 0;
        size_t upto = 0;
        while (some < count && some < AT_ONCE && upto < left)
            upto += pieces[some++].iov_len;
        const size_t over = upto > left ? upto - left : 0;
        struct msghdr one = {.msg_iov = pieces, .msg_iovlen = (size_t)some};
        pieces[some - 1].iov_len -= over;
        ssize_t size = sendmsg(fd, &one, MSG_DONTWAIT | MSG_NOSIGNAL);
        pieces[some - 1].iov_len += over;
        if (size < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) {
            const int ready = waits(fd, POLLOUT, milliseconds);
            if (ready <= 0)
                return ready ? BROKEN : UNSENT;
            continue;
        }
        if (size < 0 && errno != EINTR)
            return BROKEN;
        left -= size > 0 ? (size_t)size : 0;
        for (; size >= 0 && count && (size_t)size >= pieces->iov_len; pieces++, count--)
            size -= (ssize_t)pieces->iov_len;
        if (size > 0) {
            pieces->iov_base = (char *)pieces->iov_base + size;
            pieces->iov_len -= (size_t)size;
        }
    }
    return PLAIN;
}

/* Takes so many bytes of the answer, whatever they are. */
static int passed(int fd, int milliseconds, Py_ssize_t size) {
    char gone[HEAD];
    while (size) {
        ssize_t some = recv(fd, gone, (size_t)(size < HEAD ? size : HEAD), MSG_DONTWAIT);
        if (some > 0) {
            size -= some;
        } else if (!some) {
            errno = ECONNRESET;
            return BROKEN;
        } else if (errno == EAGAIN || errno == EWOULDBLOCK) {
            const int ready = waits(fd, POLLIN, milliseconds);
            if (ready <= 0)
                return ready ? BROKEN : UNREAD;
        } else if (errno != EINTR) {
            return BROKEN;
        }
    }
    return PLAIN;
}

/* Bytes of the body of an answer that says in one line each that the body was taken and how long the answer is, and says
 * nothing of the connection or of another coding; -1 of any other. `head` ends with a blank line. */
static Py_ssize_t plain(const char *head, const char *end) {
    Py_ssize_t length = -1;
    const char *line = head;
    if (end - head < 13 || memcmp(head, "HTTP/1.1 2", 10) || memcmp(head, "HTTP/1.1 204", 12) == 0)
        return -1;
    while ((line = memchr(line, '\n', (size_t)(end - line)))) {
        const size_t left = (size_t)(end - ++line);
        if ((left >= 11 && !strncasecmp(line, "connection:", 11)) ||
            (left >= 18 && !strncasecmp(line, "transfer-encoding:", 18)))
            return -1;
        if (left < 15 || strncasecmp(line, "content-length:", 15))
            continue;
        if (length >= 0)
            return -1;
        for (line += 15; *line == ' '; line++)
            ;
        for (length = 0; *line >= '0' && *line <= '9' && length <= BODY; line++)
            length = length * 10 + (*line - '0');
        if (line[-1] == ' ' || line[-1] == ':' || *line != '\r' || length > BODY)
            return -1;
    }
    return length;
}

/* Reads an answer of the usual kind; of another, nothing. */
static int answered(int fd, int milliseconds) {
    char head[HEAD + 1];
    ssize_t size;
    const char *end;
    Py_ssize_t body;
    const int ready = waits(fd, POLLIN, milliseconds);
    if (ready <= 0)
        return ready ? BROKEN : UNREAD;
    do
        size = recv(fd, head, HEAD, MSG_PEEK | MSG_DONTWAIT);
    while (size < 0 && errno == EINTR);
    if (size <= 0)
        return OTHER;
    head[size] = 0;
    if (!(end = strstr(head, "\r\n\r\n")) || (body = plain(head, end + 2)) < 0)
        return OTHER;
    return passed(fd, milliseconds, end + 4 - head + body);
}

/* post(fd, seconds, pieces): whether all pieces were sent and the answer was a plain one of success, which is read then; any
 * other is still to be read. Raises OSError, TimeoutError when nothing moves for so many seconds (negative: never). */
static PyObject *post(PyObject *module, PyObject *args) {
    PyObject *given, *found = NULL;
    int fd, how = BROKEN, broken = 0;
    double seconds;
    Py_ssize_t count, held = 0, used = 0;
    size_t total = 0;
    Py_buffer *views;
    struct iovec *pieces;
    if (!PyArg_ParseTuple(args, "idO!", &fd, &seconds, &PyTuple_Type, &given))
        return NULL;
    count = PyTuple_GET_SIZE(given);
    views = PyMem_Calloc((size_t)count + 1, sizeof *views);
    pieces = PyMem_Calloc((size_t)count + 1, sizeof *pieces);
    if (!views || !pieces) {
        PyErr_NoMemory();
        goto over;
    }
    for (; held < count; held++) {
        if (PyObject_GetBuffer(PyTuple_GET_ITEM(given, held), &views[held], PyBUF_SIMPLE))
            goto over;
        total += (size_t)views[held].len;
        if (views[held].len)
            pieces[used++] = (struct iovec){.iov_base = views[held].buf, .iov_len = (size_t)views[held].len};
    }
    Py_BEGIN_ALLOW_THREADS;
    const int milliseconds = seconds < 0 || seconds > 1e6 ? -1 : (int)(seconds * 1e3) + 1;
    how = sent(fd, milliseconds, pieces, used, total / PARTS < PART ? PART : total / PARTS + 1);
    if (how == PLAIN)
        how = answered(fd, milliseconds);
    broken = errno;
    Py_END_ALLOW_THREADS;
    if (how == UNREAD) {
        PyErr_SetString(PyExc_TimeoutError, "timed out");
    } else if (how == UNSENT) {
        PyErr_Format(PyExc_TimeoutError, "the receiver took nothing for %R s", PyTuple_GET_ITEM(args, 1));
    } else if (how == BROKEN) {
        errno = broken;
        PyErr_SetFromErrno(PyExc_OSError);
    } else {
        found = PyBool_FromLong(how == PLAIN);
    }
over:
    while (held)
        PyBuffer_Release(&views[--held]);
    PyMem_Free(views);
    PyMem_Free(pieces);
    return found;
}

static PyMethodDef methods[] = {{"post", post, METH_VARARGS, NULL}, {NULL, NULL, 0, NULL}};
static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, .m_name = "trimtab_gathering", .m_size = -1, .m_methods = methods};

PyMODINIT_FUNC PyInit_trimtab_gathering(void) { return PyModule_Create(&module); }
