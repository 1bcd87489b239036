/* Bicubic resampling of 8-bit RGB images, and sharpening: the arithmetic of Pillow and of numpy to
 * the last bit. Integers may be added in any order, so they are with AVX2 where the processor has it.
 *
 * Without this module Pillow and numpy compute the same. `resampling.py` describes the arithmetic
 * and makes the weights and windows.
 */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#include <Python.h>

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(WITHOUT_AVX2)
#define HAS_AVX2 __builtin_cpu_supports("avx2")
#define WITH_AVX2 __attribute__((target("avx2"))) /* without fused multiply-add: it rounds once */
#include <immintrin.h>
#endif

#define PRECISION_BITS 22
#define HALF (1 << (PRECISION_BITS - 1))
#define CHANNELS 3
#define STORED 4 /* bytes of a pixel in Pillow's memory */
#define BLOCK 32 /* values of a row that are computed together */

/* An axis of the result: each of `length` values is a weighted sum of `count` stored ones. */
typedef struct {
    const int32_t *starts, *weights;
    Py_ssize_t length, count;
} Axis;

/* ------------------------------------------------------------------------------ on any processor */

/* Rounds a sum that begins with one half. */
static inline uint8_t round_sum(int32_t sum) {
    sum >>= PRECISION_BITS;
    return (uint8_t)(sum < 0 ? 0 : sum > 255 ? 255 : sum);
}

/* Resamples a row of stored pixels to packed RGB. */
static void resample_row(const uint8_t *source, Axis axis, uint8_t *target) {
    const int32_t *weights = axis.weights;
    for (Py_ssize_t x = 0; x < axis.length; x++, weights += axis.count, target += CHANNELS) {
        const uint8_t *pixel = source + STORED * (Py_ssize_t)axis.starts[x];
        int32_t red = HALF, green = HALF, blue = HALF;
        for (Py_ssize_t tap = 0; tap < axis.count; tap++, pixel += STORED) {
            red += pixel[0] * weights[tap];
            green += pixel[1] * weights[tap];
            blue += pixel[2] * weights[tap];
        }
        target[0] = round_sum(red);
        target[1] = round_sum(green);
        target[2] = round_sum(blue);
    }
}

/* Computes one row of the result from `count` rows that are `pitch` bytes apart. */
static void sum_rows(const uint8_t *source, Py_ssize_t pitch, const int32_t *weights,
                     Py_ssize_t count, uint8_t *target, Py_ssize_t length) {
    for (Py_ssize_t x = 0; x < length; x++) {
        int32_t sum = HALF;
        for (Py_ssize_t tap = 0; tap < count; tap++) sum += source[tap * pitch + x] * weights[tap];
        target[x] = round_sum(sum);
    }
}

/* Extrapolates from a smoothed value by a factor; what leaves 0 to 255 wraps around. */
static inline uint8_t sharpen_value(uint8_t value, uint8_t smooth, float factor) {
    return (uint8_t)(int32_t)((float)smooth + factor * ((float)value - (float)smooth));
}

static void sharpen_row(const uint8_t *restrict image, const uint8_t *restrict smooth, float factor,
                        uint8_t *restrict target, Py_ssize_t length) {
    for (Py_ssize_t x = 0; x < length; x++) target[x] = sharpen_value(image[x], smooth[x], factor);
}

/* ------------------------------------------------------------------------------------- with AVX2 */

#if defined(HAS_AVX2)

/* Two rows at once; a fourth byte is written behind each pixel, for the next one to overwrite. */
static inline __attribute__((always_inline)) WITH_AVX2 void
resample_two_rows_avx2(const uint8_t *source, const uint8_t *next_source, Axis axis,
                       Py_ssize_t count, uint8_t *target, uint8_t *next_target) {
    const int32_t *weights = axis.weights;
    for (Py_ssize_t x = 0; x < axis.length; x++, weights += count) {
        const Py_ssize_t start = STORED * (Py_ssize_t)axis.starts[x];
        __m256i sums = _mm256_set1_epi32(HALF);
        for (Py_ssize_t tap = 0; tap < count; tap++) {
            int32_t pixel, next;
            memcpy(&pixel, source + start + STORED * tap, STORED);
            memcpy(&next, next_source + start + STORED * tap, STORED);
            const __m128i bytes = _mm_insert_epi32(_mm_cvtsi32_si128(pixel), next, 1);
            const __m256i weight = _mm256_set1_epi32(weights[tap]);
            sums = _mm256_add_epi32(sums, _mm256_mullo_epi32(_mm256_cvtepu8_epi32(bytes), weight));
        }
        sums = _mm256_srai_epi32(sums, PRECISION_BITS);
        sums = _mm256_packs_epi32(sums, sums);
        sums = _mm256_packus_epi16(sums, sums); /* clips to 0..255 */
        const int32_t pixel = _mm256_extract_epi32(sums, 0), next = _mm256_extract_epi32(sums, 4);
        memcpy(target + CHANNELS * x, &pixel, 4);
        memcpy(next_target + CHANNELS * x, &next, 4);
    }
}

static WITH_AVX2 void resample_rows_avx2(const uint8_t *source, Py_ssize_t stride, Py_ssize_t rows,
                                         Axis axis, uint8_t *target, Py_ssize_t pitch) {
    for (Py_ssize_t y = 0; y < rows; y += 2) {
        const Py_ssize_t next = y + 1 < rows ? y + 1 : y;
        const uint8_t *from = source + y * stride, *next_from = source + next * stride;
        uint8_t *to = target + y * pitch, *next_to = target + next * pitch;
        switch (axis.count) { /* a constant lets the compiler unroll the loop */
        case 4: resample_two_rows_avx2(from, next_from, axis, 4, to, next_to); break;
        case 5: resample_two_rows_avx2(from, next_from, axis, 5, to, next_to); break;
        case 6: resample_two_rows_avx2(from, next_from, axis, 6, to, next_to); break;
        default: resample_two_rows_avx2(from, next_from, axis, axis.count, to, next_to);
        }
    }
}

static inline __attribute__((always_inline)) WITH_AVX2 __m256i widen_avx2(const uint8_t *values) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)values));
}

static WITH_AVX2 void sum_rows_avx2(const uint8_t *source, Py_ssize_t pitch, const int32_t *weights,
                                    Py_ssize_t count, uint8_t *target, Py_ssize_t length) {
    /* What packing leaves: the fours of values 0, 8, 16, 24 and then 4, 12, 20, 28. */
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    for (Py_ssize_t x = 0; x < length; x += BLOCK) {
        __m256i sums[BLOCK / 8];
        for (int part = 0; part < BLOCK / 8; part++) sums[part] = _mm256_set1_epi32(HALF);
        for (Py_ssize_t tap = 0; tap < count; tap++) {
            const uint8_t *row = source + tap * pitch + x;
            const __m256i weight = _mm256_set1_epi32(weights[tap]);
            for (int part = 0; part < BLOCK / 8; part++)
                sums[part] = _mm256_add_epi32(
                    sums[part], _mm256_mullo_epi32(widen_avx2(row + 8 * part), weight));
        }
        for (int part = 0; part < BLOCK / 8; part++)
            sums[part] = _mm256_srai_epi32(sums[part], PRECISION_BITS);
        __m256i packed = _mm256_packus_epi16(_mm256_packs_epi32(sums[0], sums[1]),
                                             _mm256_packs_epi32(sums[2], sums[3]));
        packed = _mm256_permutevar8x32_epi32(packed, order);
        uint8_t bytes[BLOCK];
        _mm256_storeu_si256((__m256i *)bytes, packed);
        memcpy(target + x, bytes, length - x < BLOCK ? (size_t)(length - x) : BLOCK);
    }
}

static WITH_AVX2 void sharpen_row_avx2(const uint8_t *restrict image,
                                       const uint8_t *restrict smooth, float factor,
                                       uint8_t *restrict target, Py_ssize_t length) {
    for (Py_ssize_t x = 0; x < length; x++) target[x] = sharpen_value(image[x], smooth[x], factor);
}

#else
#define HAS_AVX2 0
#define resample_rows_avx2(...) ((void)0)
#define sum_rows_avx2(...) ((void)0)
#define sharpen_row_avx2(...) ((void)0)
#endif

/* ------------------------------------------------------------------------------------- images */

/* Resamples both axes; returns -1 without memory. */
static int resample_image(const uint8_t *source, Py_ssize_t width, Axis columns, Axis rows,
                          uint8_t *target) {
    int32_t first = INT32_MAX, last = 0;
    for (Py_ssize_t y = 0; y < rows.length; y++) {
        if (rows.starts[y] < first) first = rows.starts[y];
        if (rows.starts[y] > last) last = rows.starts[y];
    }
    const Py_ssize_t needed = last - first + rows.count;
    const Py_ssize_t length = CHANNELS * columns.length;
    /* Whole blocks are read, and one byte is written, behind the end of a row. */
    const Py_ssize_t pitch = (length / BLOCK + 2) * BLOCK;
    uint8_t *between = malloc((size_t)(needed * pitch));
    if (!between) return -1;
    const Py_ssize_t stride = STORED * width;
    source += first * stride;
    if (HAS_AVX2)
        resample_rows_avx2(source, stride, needed, columns, between, pitch);
    else
        for (Py_ssize_t y = 0; y < needed; y++)
            resample_row(source + y * stride, columns, between + y * pitch);
    for (Py_ssize_t y = 0; y < rows.length; y++) {
        const uint8_t *from = between + (rows.starts[y] - first) * pitch;
        const int32_t *weights = rows.weights + y * rows.count;
        if (HAS_AVX2)
            sum_rows_avx2(from, pitch, weights, rows.count, target + y * length, length);
        else
            sum_rows(from, pitch, weights, rows.count, target + y * length, length);
    }
    free(between);
    return 0;
}

/* ------------------------------------------------------------------------------------- Python */

/* The Arrow C data interface (https://arrow.apache.org/docs/format/CDataInterface.html). */
struct ArrowArray {
    int64_t length, null_count, offset, n_buffers, n_children;
    const void **buffers;
    struct ArrowArray **children;
    struct ArrowArray *dictionary;
    void (*release)(struct ArrowArray *);
    void *private_data;
};

/* Reads an axis from the buffers of its starts and weights; returns 0 and sets an error if a sum
 * would leave the `stored` values. */
static int read_axis(const Py_buffer *starts, const Py_buffer *weights, Py_ssize_t stored,
                     Axis *axis) {
    const Py_ssize_t item = sizeof(int32_t);
    axis->starts = starts->buf;
    axis->weights = weights->buf;
    axis->length = starts->len / item;
    axis->count = axis->length ? weights->len / item / axis->length : 0;
    int fits = axis->length > 0 && axis->count > 0 && starts->len == axis->length * item &&
               weights->len == axis->length * axis->count * item;
    for (Py_ssize_t at = 0; fits && at < axis->length; at++)
        fits = axis->starts[at] >= 0 && axis->starts[at] + axis->count <= stored;
    if (!fits) PyErr_SetString(PyExc_ValueError, "the windows do not fit the image");
    return fits;
}

/* Returns the pixels that an Arrow array of four bytes each holds; NULL and an error if not. */
static const uint8_t *read_pixels(PyObject *capsule, Py_ssize_t width, Py_ssize_t height) {
    const struct ArrowArray *array = PyCapsule_GetPointer(capsule, "arrow_array");
    if (!array) return NULL;
    if (width > 0 && height > 0 && width <= INT32_MAX && height <= INT32_MAX && array->release &&
        array->length == (int64_t)width * height && !array->offset && array->n_children == 1) {
        const struct ArrowArray *bytes = array->children[0];
        if (bytes->length == STORED * array->length && !bytes->offset && bytes->n_buffers == 2)
            return bytes->buffers[1];
    }
    PyErr_SetString(PyExc_ValueError, "the array does not hold the pixels of the image");
    return NULL;
}

static PyObject *resample(PyObject *module, PyObject *arguments) {
    PyObject *source, *result = NULL;
    Py_ssize_t width, height;
    Py_buffer buffers[5]; /* starts and weights of columns and rows, and the target */
    if (!PyArg_ParseTuple(arguments, "Onny*y*y*y*w*", &source, &width, &height, buffers,
                          buffers + 1, buffers + 2, buffers + 3, buffers + 4))
        return NULL;
    Axis columns, rows;
    const uint8_t *pixels = read_pixels(source, width, height);
    if (pixels && read_axis(buffers, buffers + 1, width, &columns) &&
        read_axis(buffers + 2, buffers + 3, height, &rows)) {
        if (buffers[4].len != CHANNELS * columns.length * rows.length) {
            PyErr_SetString(PyExc_ValueError, "the target has another size");
        } else {
            int failed;
            Py_BEGIN_ALLOW_THREADS
            failed = resample_image(pixels, width, columns, rows, buffers[4].buf);
            Py_END_ALLOW_THREADS
            result = failed ? PyErr_NoMemory() : Py_NewRef(Py_None);
        }
    }
    for (int number = 0; number < 5; number++) PyBuffer_Release(buffers + number);
    return result;
}

static PyObject *sharpen(PyObject *module, PyObject *arguments) {
    PyObject *result = NULL;
    Py_ssize_t height;
    float factor;
    Py_buffer image, smooth, target;
    if (!PyArg_ParseTuple(arguments, "y*y*fnw*", &image, &smooth, &factor, &height, &target))
        return NULL;
    if (height < 1 || image.len % height || image.len / height < CHANNELS ||
        smooth.len != image.len || target.len != image.len) {
        PyErr_SetString(PyExc_ValueError, "the images have different sizes");
    } else {
        const Py_ssize_t row = image.len / height, inner = row - 2 * CHANNELS;
        const uint8_t *from = image.buf, *smoothed = smooth.buf;
        uint8_t *to = target.buf;
        Py_BEGIN_ALLOW_THREADS
        memcpy(to, from, (size_t)image.len); /* the outermost pixels stay */
        for (Py_ssize_t y = 1; y + 1 < height; y++) {
            const Py_ssize_t at = y * row + CHANNELS;
            if (HAS_AVX2)
                sharpen_row_avx2(from + at, smoothed + at, factor, to + at, inner);
            else
                sharpen_row(from + at, smoothed + at, factor, to + at, inner);
        }
        Py_END_ALLOW_THREADS
        result = Py_NewRef(Py_None);
    }
    PyBuffer_Release(&image);
    PyBuffer_Release(&smooth);
    PyBuffer_Release(&target);
    return result;
}

static PyMethodDef methods[] = {
    {"resample", resample, METH_VARARGS,
     "resample(arrow_array, width, height, column_starts, column_weights, row_starts, "
     "row_weights, target)\n\nResamples an image into a writable buffer of RGB."},
    {"sharpen", sharpen, METH_VARARGS,
     "sharpen(image, smooth, factor, height, target)\n\nExtrapolates from a smoothed image; the "
     "outermost pixels stay as they are."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_image_kernels", NULL, 0, methods, NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__image_kernels(void) { return PyModuleDef_Init(&definition); }
