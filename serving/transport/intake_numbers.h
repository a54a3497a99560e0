/* Numbers of JSON, read as Python reads them or not at all. */
#include <Python.h>
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

enum { LONGEST_NUMBER = 64 };

static const long double TENS[] = {1e0L, 1e1L, 1e2L, 1e3L, 1e4L, 1e5L, 1e6L, 1e7L, 1e8L, 1e9L, 1e10L, 1e11L, 1e12L, 1e13L,
                                   1e14L, 1e15L, 1e16L, 1e17L, 1e18L, 1e19L, 1e20L, 1e21L, 1e22L, 1e23L, 1e24L, 1e25L,
                                   1e26L, 1e27L};

/* The double nearest to digits * 10^exponent; 0 where this does not find it for certain. */
static int nearest(uint64_t digits, int exponent, double *value) {
    if (digits <= (1ULL << 53) && exponent >= -22 && exponent <= 22) {
        double tens = (double)TENS[exponent < 0 ? -exponent : exponent];
        *value = exponent < 0 ? (double)digits / tens : (double)digits * tens;
        return 1;
    }
#if LDBL_MANT_DIG == 64
    if (exponent >= -27 && exponent <= 27) {
        /* Exact factors, one rounding to 64 bits, one to 53: wrong only where the first ends in the middle of two doubles. */
        long double found = exponent < 0 ? (long double)digits / TENS[-exponent] : (long double)digits * TENS[exponent];
        uint64_t mantissa;
        memcpy(&mantissa, &found, sizeof mantissa);
        *value = (double)found;
        return (mantissa & 0x7ff) != 0x400;
    }
#endif
    return 0;
}

/* A number of JSON at `at`, which a NUL ends at the latest; 0 where there is none, or none that fits. */
static int number(const char **at, double *value) {
    const char *p = *at, *start = p;
    uint64_t digits = 0;
    int seen = 0, exponent = 0, negative = *p == '-', certain = 1, whole;
    p += negative;
    if (*p == '0')
        p++;
    else if (*p >= '1' && *p <= '9')
        for (; *p >= '0' && *p <= '9'; p++, seen++)
            digits = digits * 10 + (uint64_t)(*p - '0');
    else
        return 0;
    whole = *p != '.' && *p != 'e' && *p != 'E';
    if (*p == '.') {
        const char *point = ++p;
        for (; *p >= '0' && *p <= '9'; p++) {
            digits = digits * 10 + (uint64_t)(*p - '0');
            seen += digits != 0;
        }
        if (p == point || p - point > 1000)
            return 0;
        exponent = -(int)(p - point);
    }
    certain = seen <= 19;
    if (*p == 'e' || *p == 'E') {
        int sign = 1, power = 0;
        const char *first;
        p++;
        if (*p == '+' || *p == '-')
            sign = *p++ == '-' ? -1 : 1;
        for (first = p; *p >= '0' && *p <= '9'; p++)
            if (power < 10000)
                power = power * 10 + (*p - '0');
        if (p == first)
            return 0;
        exponent += sign * power;
    }
    if (certain && digits == 0) {
        /* -0 is a whole number, which has one zero only. */
        *value = negative && !whole ? -0.0 : 0.0;
    } else if (certain && nearest(digits, exponent, value)) {
        if (negative)
            *value = -*value;
    } else {
        char text[LONGEST_NUMBER];
        if (p - start >= LONGEST_NUMBER)
            return 0;
        memcpy(text, start, (size_t)(p - start));
        text[p - start] = 0;
        *value = PyOS_string_to_double(text, NULL, NULL);
        if (PyErr_Occurred()) {
            PyErr_Clear();
            return 0;
        }
    }
    *at = p;
    return isfinite(*value);
}

static const char *blank(const char *p) {
    while (*p == ' ' || *p == '\n' || *p == '\r' || *p == '\t')
        p++;
    return p;
}

/* `count` numbers between commas; where they end, or NULL. */
static const char *numbers(const char *p, char letter, Py_ssize_t count, char *into) {
    double value;
    for (Py_ssize_t i = 0; i < count; i++) {
        p = blank(p);
        if (i) {
            if (*p != ',')
                return NULL;
            p = blank(p + 1);
        }
        if (!number(&p, &value))
            return NULL;
        if (letter == 'f') {
            float single = (float)value;
            if (isinf(single))
                return NULL;
            memcpy(into + i * 4, &single, 4);
        } else {
            memcpy(into + i * 8, &value, 8);
        }
    }
    return blank(p);
}
