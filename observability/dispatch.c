/* Makes C code the operator `trimtab::count` on the CPU, so that a compiled graph reaches it without Python. Compiled by
 * `native.py`; never needed.
 *
 * It uses the plain C functions that torch exports for extensions (its stable ABI, since 2.8), whose prototypes are these
 * members; their results are 0 where all went well. Of a kernel's arguments a tensor is a handle that it must delete.
 */
#include <stdint.h>

typedef void kernel(uint64_t *stack, uint64_t inputs, uint64_t outputs);

struct torch {
    int32_t (*library_init_impl)(const char *of, const char *key, const char *file, uint32_t line, void **library);
    int32_t (*library_impl)(void *library, const char *name, kernel *function);
    int32_t (*call_dispatcher)(const char *name, const char *overload, uint64_t *stack);
    int32_t (*get_data_ptr)(void *tensor, void **data);
    int32_t (*get_sizes)(void *tensor, int64_t **sizes);
    int32_t (*get_strides)(void *tensor, int64_t **strides);
    int32_t (*get_dtype)(void *tensor, int32_t *type);
    int32_t (*delete_tensor_object)(void *tensor);
    /* In the order in which `count_probe.h` numbers the types. */
    int32_t (*types[4])(void);
};

typedef int count(void *state, const void *values, int64_t kind, int64_t rows, int64_t by_row, int64_t by_column);

static struct torch torch;
static count *counting;
static int32_t types[4];

static int counted(void *values, void *state, int64_t width) {
    void *data, *memory;
    int64_t *sizes, *strides;
    int32_t type;
    if (torch.get_data_ptr(values, &data) || torch.get_data_ptr(state, &memory) || torch.get_sizes(values, &sizes) ||
        torch.get_strides(values, &strides) || torch.get_dtype(values, &type))
        return 0;
    /* A state begins with its columns and width. Of other values Python says what is wrong. */
    if (((const int64_t *)memory)[0] != sizes[1] || ((const int64_t *)memory)[1] != width)
        return 0;
    for (int kind = 0; kind < 4; kind++)
        if (type == types[kind])
            return counting(memory, data, kind, sizes[0], strides[0], strides[1]);
    return 0;
}

static void count_kernel(uint64_t *stack, uint64_t inputs, uint64_t outputs) {
    void *values = (void *)(uintptr_t)stack[0], *state = (void *)(uintptr_t)stack[1];
    (void)inputs, (void)outputs;
    if (!counted(values, state, (int64_t)stack[2])) {
        /* Which takes the tensors. */
        torch.call_dispatcher("trimtab::count_in_python", "", stack);
        return;
    }
    torch.delete_tensor_object(values), torch.delete_tensor_object(state);
}

/* Registers the kernel, which calls `count`, for good; 0 where all went well. Called once. */
int32_t trimtab_register(const struct torch *functions, void *count_function) {
    void *library;
    torch = *functions;
    counting = (count *)count_function;
    for (int kind = 0; kind < 4; kind++)
        types[kind] = torch.types[kind]();
    if (torch.library_init_impl("trimtab", "CPU", __FILE__, __LINE__, &library))
        return 1;
    return torch.library_impl(library, "count", count_kernel);
}
