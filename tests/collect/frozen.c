/*
 * Targets for the tests of freeze.py, each awkward to stop in one way:
 *
 *     frozen WAY FILE [LIBRARY]
 *
 * FILE is mapped and holds three numbers: beats of a thread that never rests, signals received, and what the way counts.
 * Says "ready" once it is as it should be.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct shared {
    _Atomic uint64_t beats, signals, counted;
};
static struct shared *shared;

static void sleep_ms(long ms)
{
    struct timespec left = {ms / 1000, ms % 1000 * 1000000};
    while (nanosleep(&left, &left) != 0)
        ;
}

static void *beat(void *unused)
{
    for (;;) {
        shared->beats++;
        sleep_ms(1);
    }
    return unused;
}

static void on_signal(int signum)
{
    (void)signum;
    shared->signals++;
}

static void start(void *(*run)(void *), void *arg)
{
    pthread_t thread;
    if (pthread_create(&thread, NULL, run, arg) != 0)
        abort();
    pthread_detach(thread);
}

static void *short_life(void *unused)
{
    shared->counted++;
    return unused;
}

static void *breed(void *unused)
{
    for (;;) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, short_life, NULL) == 0)
            pthread_join(thread, NULL);
    }
    return unused;
}

/* Its parent's thread sleeps uninterruptibly until this child, which shares its memory, is gone. */
static void *wait_for_vforked(void *unused)
{
    pid_t child = vfork();
    if (child == 0)
        for (;;)
            syscall(SYS_pause);
    shared->counted = (uint64_t)child;
    return unused;
}

static void ready(void)
{
    puts("ready");
    fflush(stdout);
}

int main(int argc, char **argv)
{
    int fd = argc > 2 ? open(argv[2], O_RDWR) : -1;
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (shared == MAP_FAILED)
        return 2;
    start(beat, NULL);
    if (strcmp(argv[1], "signals") == 0) {
        struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
        sigaction(SIGRTMIN, &action, NULL);
    } else if (strcmp(argv[1], "storm") == 0) {
        for (int i = 0; i < 4; i++)
            start(breed, NULL);
    } else if (strcmp(argv[1], "vfork") == 0) {
        start(wait_for_vforked, NULL);
    } else if (strcmp(argv[1], "leader-gone") == 0) {
        ready();
        pthread_exit(NULL);
    } else if (strcmp(argv[1], "library") == 0) {
        void *library = dlopen(argv[3], RTLD_NOW);
        void *(*wait)(void *) = library != NULL ? (void *(*)(void *))dlsym(library, "wait_in_library") : NULL;
        if (wait == NULL)
            return 3;
        start(wait, NULL);
    } else {
        return 2;
    }
    ready();
    for (;;)
        pause();
}
