/* What is sent to many sockets, and the frames of answers: what sending.py says in Python, without Python between one
 * send() and the next.
 *
 * A broadcast is little but these calls, and so is the end of a turn of the loop in which many asked for something.
 * With a step of Python between one and the next each cost half as much again (benchmarks/profile.md). */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/types.h>

#ifndef MSG_NOSIGNAL /* where it is not known, Python has told the system already to raise none */
#define MSG_NOSIGNAL 0
#endif

struct message {
    int file;
    const char *data;
    Py_ssize_t size;
    ssize_t sent;
};

/* Send to each of `files`: `data`, or, where that is a list, its own of them. */
static PyObject *send_all(PyObject *files, PyObject *data) {
    PyObject *left = NULL;
    Py_ssize_t count = PyList_GET_SIZE(files);
    struct message *messages = PyMem_New(struct message, count ? count : 1);
    if (!messages)
        return PyErr_NoMemory();
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *its = PyList_Check(data) ? PyList_GET_ITEM(data, i) : data;
        long file = PyLong_AsLong(PyList_GET_ITEM(files, i));
        if (file == -1 && PyErr_Occurred())
            goto done;
        if (!PyBytes_Check(its)) {
            PyErr_SetString(PyExc_TypeError, "only bytes can be sent");
            goto done;
        }
        messages[i] = (struct message){(int)file, PyBytes_AS_STRING(its), PyBytes_GET_SIZE(its), 0};
    }
    Py_BEGIN_ALLOW_THREADS
    for (struct message *each = messages; each < messages + count; each++) {
        each->sent = send(each->file, each->data, each->size, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (each->sent < 0)
            each->sent = errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR ? 0 : -1;
    }
    Py_END_ALLOW_THREADS
    left = PyList_New(0);
    for (Py_ssize_t i = 0; left && i < count; i++) {
        if (messages[i].sent == messages[i].size)
            continue;
        PyObject *pair = Py_BuildValue("(nn)", i, (Py_ssize_t)messages[i].sent);
        if (!pair || PyList_Append(left, pair) < 0)
            Py_CLEAR(left);
        Py_XDECREF(pair);
    }
done:
    PyMem_Free(messages);
    return left;
}

static PyObject *send_each(PyObject *Py_UNUSED(module), PyObject *arguments) {
    PyObject *files, *data;
    if (!PyArg_ParseTuple(arguments, "O!S", &PyList_Type, &files, &data))
        return NULL;
    return send_all(files, data);
}

static PyObject *send_own(PyObject *Py_UNUSED(module), PyObject *arguments) {
    PyObject *files, *frames;
    if (!PyArg_ParseTuple(arguments, "O!O!", &PyList_Type, &files, &PyList_Type, &frames))
        return NULL;
    if (PyList_GET_SIZE(files) != PyList_GET_SIZE(frames)) {
        PyErr_SetString(PyExc_ValueError, "as many frames as files");
        return NULL;
    }
    return send_all(files, frames);
}

static PyObject *join_text_frame(PyObject *Py_UNUSED(module), PyObject *const *parts, Py_ssize_t count) {
    size_t size = 0;
    for (Py_ssize_t i = 0; i < count; i++) {
        if (!PyBytes_Check(parts[i])) {
            PyErr_SetString(PyExc_TypeError, "a frame is made of bytes");
            return NULL;
        }
        size += PyBytes_GET_SIZE(parts[i]);
    }
    int in_bytes = size < 126 ? 0 : size <= 0xFFFF ? 2 : 8; /* RFC 6455, section 5.2 */
    PyObject *frame = PyBytes_FromStringAndSize(NULL, 2 + in_bytes + size);
    if (!frame)
        return NULL;
    unsigned char *to = (unsigned char *)PyBytes_AS_STRING(frame);
    *to++ = 0x81;
    *to++ = in_bytes ? (in_bytes == 2 ? 126 : 127) : size;
    for (int shift = 8 * in_bytes; shift > 0;)
        *to++ = (unsigned char)((unsigned long long)size >> (shift -= 8));
    for (Py_ssize_t i = 0; i < count; i++) {
        memcpy(to, PyBytes_AS_STRING(parts[i]), PyBytes_GET_SIZE(parts[i]));
        to += PyBytes_GET_SIZE(parts[i]);
    }
    return frame;
}

static PyMethodDef methods[] = {
    {"send_each", send_each, METH_VARARGS, "Send the same bytes to many sockets; see sending.py."},
    {"send_own", send_own, METH_VARARGS, "Send each of many sockets its own bytes; see sending.py."},
    {"join_text_frame", (PyCFunction)(void (*)(void))join_text_frame, METH_FASTCALL,
     "Make a text frame of parts; see sending.py."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_sending", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__sending(void) {
    return PyModule_Create(&module);
}
