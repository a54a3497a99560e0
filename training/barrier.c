/* Ranks of one machine wait for each other in memory that they share, without a socket.

   A line of each rank's has how often it came (a number that goes round) and how many sleep until it does. Who comes
   says so before it looks whether anybody sleeps; who is about to sleep says so before the kernel looks whether the
   number is still the one it saw: nobody is left asleep. */
#include <errno.h>
#include <linux/futex.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { CAME, ASLEEP };

static int64_t now(void)
{
    struct timespec told;
    clock_gettime(CLOCK_MONOTONIC, &told);
    return told.tv_sec * 1000000000LL + told.tv_nsec;
}

static void pause_briefly(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

static int is_there(uint32_t *line, uint32_t turn)
{
    return (int32_t)(__atomic_load_n(line + CAME, __ATOMIC_SEQ_CST) - turn) >= 0;
}

static int await_busily(uint32_t *line, uint32_t turn, int64_t until)
{
    do
        for (int turns = 0; turns < 64; turns++) {
            if (is_there(line, turn))
                return 1;
            pause_briefly();
        }
    while (now() < until);
    return 0;
}

static int await_asleep(uint32_t *line, uint32_t turn, int64_t until)
{
    int found;
    __atomic_fetch_add(line + ASLEEP, 1, __ATOMIC_SEQ_CST);
    for (;;) {
        uint32_t seen = __atomic_load_n(line + CAME, __ATOMIC_SEQ_CST);
        int64_t left = until - now();
        if ((found = (int32_t)(seen - turn) >= 0) || left <= 0)
            break;
        struct timespec wait = {left / 1000000000LL, left % 1000000000LL};
        /* A signal's handler is Python's to run: give back. */
        if (syscall(SYS_futex, line + CAME, FUTEX_WAIT, seen, &wait, NULL, 0) && errno == EINTR) {
            found = is_there(line, turn);
            break;
        }
    }
    __atomic_fetch_sub(line + ASLEEP, 1, __ATOMIC_SEQ_CST);
    return found;
}

/* Comes for the `turn`th time and waits for the others: looking for `busy` ns, then asleep until `patience` ns are
   over. `missing` is the first rank that did not come, or -1. */
void trimtab_meet(uint32_t **lines, int64_t ranks, int64_t own, int64_t turn, int64_t busy, int64_t patience,
                  int64_t *missing)
{
    int64_t began = now();
    __atomic_store_n(lines[own] + CAME, (uint32_t)turn, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(lines[own] + ASLEEP, __ATOMIC_SEQ_CST))
        syscall(SYS_futex, lines[own] + CAME, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
    for (int64_t rank = 0; rank < ranks; rank++)
        if (!await_busily(lines[rank], (uint32_t)turn, began + busy) &&
            !await_asleep(lines[rank], (uint32_t)turn, began + patience)) {
            *missing = rank;
            return;
        }
    *missing = -1;
}
