/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * How a program of the fuzzer is run: a list of calls, each on one of three threads,
 * one after the other as far as they do not block. A reproducer is this file with
 * the calls written out below it, so both run them in the same way.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <linux/iommufd.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "iommufd_test.h"

#define NUM_THREADS 3
#define MAX_CALLS 40
#define MAX_OUTS 4
#define PAGE 4096UL

/*
 * Memory is at fixed addresses, so that pointers are numbers that mean the same in
 * each run. ARENA is what is mapped into IOASs, WINDOW is for mmap(). A call has
 * two slots of its own, for its argument and for what that points to. A slot is a
 * page that can be written, and one that is not there. RDONLY is the same memory, to
 * read only. Who accesses SLOW, which has a page for each slot, waits until serve().
 */
#define ARENA 0x10000000UL
#define ARENA_SIZE 0x400000UL
#define WINDOW 0x20000000UL
#define WINDOW_SIZE (32 * PAGE)
#define SLOTS 0x30000000UL
#define RDONLY 0x40000000UL
#define SLOW 0x50000000UL
#define SLOT_SIZE (2 * PAGE)
#define NUM_SLOTS (2 * MAX_CALLS)

/* Where something is put in its slot */
enum place {
	AT_BEGIN,
	/* The structure ends with the page */
	AT_END,
	/* The last words of it are not there */
	AT_CUT,
	AT_RDONLY,
	AT_NULL,
	AT_HOLE,
	/* What mmap() has made of an iommufd, if anything */
	AT_WINDOW,
	/* Who reads it, or writes to it, waits */
	AT_SLOW_READ,
	AT_SLOW_WRITE,
	NUM_PLACES,
};

struct step {
	unsigned char thread;
	/* Do not wait until it is done before the next one begins */
	bool async;
	/* The calls whose results it takes, by bit */
	uint64_t needs;
	/* Let the nth allocation, or the like, fail in it; 0 for none */
	unsigned int fail;
};

/* What run() has to undo when the program has called for it */
#define UNDO_PARK 1
#define UNDO_LIMIT 2

/* What the calls have given out, by the number of the call: r[3][0] */
static long r[MAX_CALLS][MAX_OUTS];

/* What is below has this: does call number i */
static void do_call(unsigned int i);

/* How long a call may take before it counts as one that blocks */
static unsigned int sync_ms = 20;

static int sink = -1;
static int first_fd;
/* FORKING while there is none yet */
#define FORKING -1
static pid_t children[4];
static int uffd = -1;
static bool is_slow[NUM_SLOTS];

static int futex_wait(uint32_t *word, uint32_t val, unsigned int ms)
{
	struct timespec ts = { ms / 1000, ms % 1000 * 1000000L };

	return syscall(SYS_futex, word, FUTEX_WAIT, val, &ts, NULL, 0);
}

static void futex_wake(uint32_t *word)
{
	syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

static uint64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000ULL + ts.tv_nsec / 1000000;
}

/* Wait until it is not @val any more */
static bool wait_not(uint32_t *word, uint32_t val, unsigned int ms)
{
	uint64_t now = now_ms(), end = now + ms;

	while (__atomic_load_n(word, __ATOMIC_ACQUIRE) == val) {
		if (now >= end)
			return false;
		futex_wait(word, val, end - now);
		now = now_ms();
	}
	return true;
}

static void store_wake(uint32_t *word, uint32_t val)
{
	__atomic_store_n(word, val, __ATOMIC_RELEASE);
	futex_wake(word);
}

static void fatal(const char *what)
{
	fprintf(stderr, "fuzz: %s: %s\n", what, strerror(errno));
	exit(2);
}

/* The page of a slot is there, as a copy of the slot's first one */
static void serve_slot(unsigned int slot, unsigned int mode)
{
	struct uffdio_copy copy = {
		.dst = SLOW + slot * PAGE,
		.src = SLOTS + slot * SLOT_SIZE,
		.len = PAGE,
		.mode = mode,
	};
	struct uffdio_writeprotect wp = {
		.range = { .start = copy.dst, .len = PAGE },
	};

	/* It fails if the page is there already */
	ioctl(uffd, UFFDIO_COPY, &copy);
	if (!mode)
		ioctl(uffd, UFFDIO_WRITEPROTECT, &wp);
}

static void serve(void)
{
	unsigned int i;

	for (i = 0; i != NUM_SLOTS; i++)
		if (is_slow[i])
			serve_slot(i, 0);
}

/* Where the kernel is to look for it, with as much of it there as there can be */
static void *put(unsigned int slot, enum place place, const void *from, size_t size)
{
	size_t given = size > PAGE ? PAGE : size;
	size_t offset = 0;

	if (place == AT_END)
		offset = PAGE - given;
	if (place == AT_CUT) {
		offset = PAGE - given / 2 / 4 * 4;
		given = PAGE - offset;
	}
	if (place == AT_NULL)
		return NULL;
	if (place == AT_HOLE)
		return (void *)(SLOTS + slot * SLOT_SIZE + PAGE);
	if (place == AT_WINDOW)
		return (void *)(WINDOW + slot % 8 * SLOT_SIZE);
	memcpy((void *)(SLOTS + slot * SLOT_SIZE + offset), from, given);
	if (place == AT_SLOW_READ || place == AT_SLOW_WRITE) {
		is_slow[slot] = true;
		if (place == AT_SLOW_WRITE)
			serve_slot(slot, UFFDIO_COPY_MODE_WP);
		return (void *)(SLOW + slot * PAGE);
	}
	if (place == AT_RDONLY)
		return (void *)(RDONLY + slot * SLOT_SIZE + offset);
	return (void *)(SLOTS + slot * SLOT_SIZE + offset);
}

#define put_arg(i, place, from, size) put(2 * (i), place, from, size)
#define put_data(i, place, from, size) \
	((uintptr_t)put(2 * (i) + 1, place, from, size))

/* Copy an answer back from where put() has put it, if it could be written there */
static bool get(void *to, const void *from, size_t size)
{
	uintptr_t begin = (uintptr_t)from;

	if (begin >= WINDOW && begin < WINDOW + WINDOW_SIZE)
		return pwrite(sink, from, size, 0) == (ssize_t)size &&
		       pread(sink, to, size, 0) == (ssize_t)size;
	if ((begin < SLOTS || begin >= SLOTS + NUM_SLOTS * SLOT_SIZE ||
	     begin % SLOT_SIZE + size > PAGE) &&
	    (begin < SLOW || begin >= SLOW + NUM_SLOTS * PAGE))
		return false;
	memcpy(to, from, size);
	return true;
}

static void map_slow(void)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = {
		.range = { .start = SLOW, .len = NUM_SLOTS * PAGE },
		.mode = UFFDIO_REGISTER_MODE_MISSING | UFFDIO_REGISTER_MODE_WP,
	};

	uffd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api) ||
	    mmap((void *)SLOW, NUM_SLOTS * PAGE, PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED ||
	    ioctl(uffd, UFFDIO_REGISTER, &reg))
		fatal("no userfaultfd");
}

static void clear_window(void)
{
	mmap((void *)WINDOW, WINDOW_SIZE, PROT_NONE,
	     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
}

static void map_memory(void)
{
	int fd = memfd_create("slots", MFD_CLOEXEC);
	unsigned int i;

	if (fd < 0 || ftruncate(fd, NUM_SLOTS * PAGE))
		fatal("no memory");
	for (i = 0; i != NUM_SLOTS; i++) {
		if (mmap((void *)(SLOTS + i * SLOT_SIZE), PAGE, PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_FIXED, fd, i * PAGE) == MAP_FAILED ||
		    mmap((void *)(RDONLY + i * SLOT_SIZE), PAGE, PROT_READ,
			 MAP_SHARED | MAP_FIXED, fd, i * PAGE) == MAP_FAILED)
			fatal("no memory");
	}
	close(fd);
	if (mmap((void *)ARENA, ARENA_SIZE, PROT_READ | PROT_WRITE,
		 MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
		fatal("no memory");
	map_slow();
	clear_window();
	/* To access memory through, which does not end with a signal */
	sink = memfd_create("sink", MFD_CLOEXEC);
	if (sink < 0 || ftruncate(sink, PAGE))
		fatal("no memory");
}

/* The calls that are no ioctls. Arguments and result are as in the table. */

static long sys_open(const unsigned long *a)
{
	int fd = open("/dev/iommu", O_RDWR | O_CLOEXEC | (a[0] & O_NONBLOCK));

	return fd;
}

static long sys_close(const unsigned long *a)
{
	/* Not what the program runs with */
	if ((long)a[0] < first_fd)
		return -1;
	return close(a[0]);
}

static long sys_dup(const unsigned long *a)
{
	if ((long)a[0] < first_fd)
		return -1;
	return fcntl(a[0], F_DUPFD_CLOEXEC, first_fd);
}

static long sys_mmap(const unsigned long *a)
{
	unsigned long at = WINDOW + a[4] % 8 * SLOT_SIZE;
	void *got;

	if ((long)a[0] < first_fd)
		return -1;
	got = mmap((void *)at, a[2] < WINDOW_SIZE / 2 ? a[2] : 0, a[3] & 7,
		   MAP_FIXED | (a[5] & 1 ? MAP_PRIVATE : MAP_SHARED), a[0], a[1]);
	return got == MAP_FAILED ? -1 : (long)got;
}

static long sys_munmap(const unsigned long *a)
{
	return munmap((void *)(WINDOW + a[0] % 16 * PAGE), (1 + a[1] % 4) * PAGE);
}

static long sys_mprotect(const unsigned long *a)
{
	return mprotect((void *)(WINDOW + a[0] % 16 * PAGE), (1 + a[1] % 4) * PAGE,
			a[2] & 7);
}

static long sys_mremap(const unsigned long *a)
{
	void *got = mremap((void *)(WINDOW + a[0] % 16 * PAGE), (a[1] % 4) * PAGE,
			   (1 + a[2] % 4) * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED,
			   (void *)(WINDOW + a[3] % 16 * PAGE));

	return got == MAP_FAILED ? -1 : 0;
}

/* What is mapped, or not there */
static long sys_access(const unsigned long *a)
{
	void *at = (void *)(WINDOW + a[0] % 16 * PAGE + a[1] % PAGE / 4 * 4);

	return a[2] & 1 ? pread(sink, at, 4, 0) : pwrite(sink, at, 4, 0);
}

/* Pages that are mapped into an IOAS are given back, or get a new place */
static long sys_madvise(const unsigned long *a)
{
	return madvise((void *)(ARENA + a[0] % 16 * PAGE), (1 + a[1] % 4) * PAGE,
		       a[2] & 1 ? MADV_REMOVE : MADV_DONTNEED);
}

static long sys_read(const unsigned long *a)
{
	if ((long)a[0] < first_fd)
		return -1;
	return read(a[0], (void *)a[1], a[2]);
}

static long sys_write(const unsigned long *a)
{
	if ((long)a[0] < first_fd)
		return -1;
	return write(a[0], (void *)a[1], a[2]);
}

static long sys_poll(const unsigned long *a)
{
	struct pollfd pollfd = { .fd = a[0], .events = POLLIN | POLLOUT };

	if (!(a[1] & 1))
		pollfd.events = POLLIN;
	return poll(&pollfd, 1, a[2] % 300);
}

/* Answer the page requests that are there */
static long sys_answer(const unsigned long *a)
{
	struct iommu_hwpt_pgfault fault[4];
	struct iommu_hwpt_page_response response[4];
	ssize_t n, i;

	if ((long)a[0] < first_fd)
		return -1;
	n = read(a[0], fault, sizeof(fault)) / (ssize_t)sizeof(fault[0]);
	for (i = 0; i < n; i++) {
		response[i].cookie = fault[i].cookie + a[2];
		response[i].code = a[1];
	}
	return n > 0 ? write(a[0], response, n * sizeof(response[0])) : n;
}

/* A child that has all that is open and mapped, until it is killed */
static long sys_fork(const unsigned long *a)
{
	unsigned int i = a[0] % 4;
	pid_t none = 0;
	pid_t pid;

	/* Two threads may be here at the same time, and each child has to be known */
	if (!__atomic_compare_exchange_n(&children[i], &none, FORKING, false,
					 __ATOMIC_RELAXED, __ATOMIC_RELAXED))
		return -1;
	pid = fork();
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;)
			pause();
	}
	__atomic_store_n(&children[i], pid > 0 ? pid : 0, __ATOMIC_RELAXED);
	return pid;
}

static long sys_kill(const unsigned long *a)
{
	pid_t *child = &children[a[0] % 4];
	pid_t pid = __atomic_load_n(child, __ATOMIC_RELAXED);

	if (pid <= 0 || !__atomic_compare_exchange_n(child, &pid, 0, false,
						     __ATOMIC_RELAXED,
						     __ATOMIC_RELAXED))
		return -1;
	kill(pid, SIGKILL);
	return waitpid(pid, NULL, 0);
}

static long sys_serve(const unsigned long *a)
{
	(void)a;
	serve();
	return 0;
}

static long sys_sleep(const unsigned long *a)
{
	return usleep(a[0] % 20000);
}

/* The threads */

enum { IDLE, BUSY };

struct thread {
	pthread_t pthread;
	uint32_t state;
	unsigned int call;
	unsigned int fail;
	/* It has been waited for long enough */
	bool blocked;
};

static struct thread threads[NUM_THREADS];

/* For who wants to know what a thread does */
static void thread_begin(void);
static void call_begin(void);
static void call_end(void);

static void fail_nth(int fd, unsigned int n)
{
	char buf[16];
	int len = snprintf(buf, sizeof(buf), "%u", n), tries;

	/* To write it may be what fails */
	for (tries = 0; tries != 3; tries++)
		if (pwrite(fd, buf, len, 0) == len)
			return;
}

static void *thread_main(void *arg)
{
	struct thread *thread = arg;
	char name[64];
	int fd;

	snprintf(name, sizeof(name), "/proc/self/task/%ld/fail-nth",
		 syscall(SYS_gettid));
	fd = open(name, O_RDWR | O_CLOEXEC);
	thread_begin();
	__atomic_add_fetch(&first_fd, 1, __ATOMIC_RELEASE);
	futex_wake((uint32_t *)&first_fd);
	for (;;) {
		wait_not(&thread->state, IDLE, 1000000);
		if (__atomic_load_n(&thread->state, __ATOMIC_ACQUIRE) != BUSY)
			continue;
		call_begin();
		if (thread->fail && fd >= 0)
			fail_nth(fd, thread->fail);
		do_call(thread->call);
		if (thread->fail && fd >= 0)
			fail_nth(fd, 0);
		call_end();
		store_wake(&thread->state, IDLE);
	}
	return NULL;
}

static void on_signal(int sig)
{
	(void)sig;
}

static void write_file(const char *name, const char *text)
{
	int fd = open(name, O_WRONLY | O_CLOEXEC);

	if (fd < 0)
		return;
	if (write(fd, text, strlen(text)) < 0)
		fatal(name);
	close(fd);
}

/* Any allocation may fail, without a word; which one each thread says */
static void set_up_faults(void)
{
	write_file("/sys/kernel/debug/failslab/ignore-gfp-wait", "N");
	write_file("/sys/kernel/debug/failslab/verbose", "0");
	write_file("/sys/kernel/debug/fail_page_alloc/ignore-gfp-wait", "N");
	write_file("/sys/kernel/debug/fail_page_alloc/ignore-gfp-highmem", "N");
	write_file("/sys/kernel/debug/fail_page_alloc/min-order", "0");
	write_file("/sys/kernel/debug/fail_page_alloc/verbose", "0");
	write_file("/sys/kernel/debug/fail_usercopy/verbose", "0");
	write_file("/sys/kernel/debug/fail_iommufd/verbose", "0");
}

/* Once in a process, before run() */
static void run_init(void)
{
	struct sigaction sa = { .sa_handler = on_signal };
	unsigned int i;

	map_memory();
	/* Not restarted: to let go what waits and can be interrupted */
	sigaction(SIGUSR1, &sa, NULL);
	first_fd = 0;
	for (i = 0; i != NUM_THREADS; i++)
		if (pthread_create(&threads[i].pthread, NULL, thread_main, &threads[i]))
			fatal("no threads");
	for (i = 0; i != NUM_THREADS; i++)
		wait_not((uint32_t *)&first_fd, i, 10000);
	/* What is open is not for the program's calls */
	first_fd = fcntl(sink, F_DUPFD_CLOEXEC, 0);
	if (first_fd < 0)
		fatal("no file");
	close(first_fd);
	memset(r, 0xff, sizeof(r));
}

static int test_cmd(int fd, struct iommu_test_cmd *cmd)
{
	cmd->size = sizeof(*cmd);
	return ioctl(fd, IOMMU_TEST_CMD, cmd);
}

/* Wait for the call of a thread as long as a call may take */
static void wait_thread(struct thread *thread)
{
	if (!thread->blocked)
		thread->blocked = !wait_not(&thread->state, BUSY, sync_ms);
}

static bool is_idle(struct thread *thread)
{
	if (__atomic_load_n(&thread->state, __ATOMIC_ACQUIRE) != IDLE)
		return false;
	thread->blocked = false;
	return true;
}

/* Until all calls have ended: let go what is parked or waits, if it can be */
static bool let_go(unsigned int ms)
{
	uint64_t end = now_ms() + ms;
	unsigned int i, busy;
	int fd = -1;

	for (;;) {
		busy = 0;
		for (i = 0; i != NUM_THREADS; i++)
			busy += __atomic_load_n(&threads[i].state,
						__ATOMIC_ACQUIRE) != IDLE;
		if (!busy || now_ms() > end)
			break;
		serve();
		if (fd < 0)
			fd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
		for (i = 0; i != MOCK_PARK_NUM; i++) {
			struct iommu_test_cmd cmd = { .op = IOMMU_TEST_OP_PARK };

			cmd.park.point = i;
			cmd.park.action = MOCK_PARK_RELEASE;
			test_cmd(fd, &cmd);
		}
		for (i = 0; i != NUM_THREADS; i++) {
			if (__atomic_load_n(&threads[i].state, __ATOMIC_ACQUIRE) == IDLE)
				continue;
			pthread_kill(threads[i].pthread, SIGUSR1);
			wait_not(&threads[i].state, BUSY, 10);
		}
	}
	if (fd >= 0)
		close(fd);
	return !busy;
}

/* Told where the kernel tells of its own bugs */
static void report(const char *what)
{
	char buf[128];

	snprintf(buf, sizeof(buf), "fuzz: BUG: %s\n", what);
	write_file("/dev/kmsg", buf);
}

static unsigned int count_dir(const char *name)
{
	DIR *dir = opendir(name);
	unsigned int n = 0;

	while (dir && readdir(dir))
		n++;
	if (dir)
		closedir(dir);
	return n;
}

/* What is there besides the program's files */
struct state {
	uint64_t viommus;
	unsigned int devices;
	unsigned int iommus;
	unsigned int groups;
#ifndef SERIES_7_3
	/* Pages that are pinned, and charged for */
	struct iommu_test_state test;
#endif
};

static void get_state(struct state *state)
{
#ifdef SERIES_7_3
	/* Its mock driver does not tell more */
	memset(state, 0, sizeof(*state));
#else
	int fd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	struct iommu_test_cmd cmd = { .op = IOMMU_TEST_OP_VIOMMU_STATS };

	memset(state, 0, sizeof(*state));
	test_cmd(fd, &cmd);
	state->viommus = cmd.viommu_stats.out_inits - cmd.viommu_stats.out_destroys;
	memset(&cmd, 0, sizeof(cmd));
	cmd.op = IOMMU_TEST_OP_STATE;
	cmd.state.uptr = (uintptr_t)&state->test;
	test_cmd(fd, &cmd);
	close(fd);
#endif
	state->devices = count_dir("/sys/bus/iommufd_mock/devices");
	state->iommus = count_dir("/sys/class/iommu");
	state->groups = count_dir("/sys/kernel/iommu_groups");
}

/*
 * Run the calls, then undo what they have done, which @undo and the bits of @iommus
 * tell: the calls that register a physical IOMMU. False if a call does not end.
 */
static bool run(const struct step *steps, unsigned int n, uint64_t iommus,
		unsigned int undo)
{
	static struct state before, after;
	unsigned int i, t;
	bool done;
	int fd;

	if (!before.iommus)
		get_state(&before);
	for (i = 0; i != n; i++) {
		struct thread *thread = &threads[steps[i].thread];

		/* What it takes may not be there yet */
		for (t = 0; t != NUM_THREADS; t++)
			if (steps[i].needs >> threads[t].call & 1)
				wait_thread(&threads[t]);
		/* If it is blocked, another one does */
		wait_thread(thread);
		for (t = 0; t != NUM_THREADS && !is_idle(thread); t++)
			thread = &threads[t];
		if (!is_idle(thread))
			break;
		thread->call = i;
		thread->blocked = false;
		thread->fail = steps[i].fail;
		store_wake(&thread->state, BUSY);
		if (!steps[i].async)
			wait_thread(thread);
	}
	for (i = 0; i != NUM_THREADS; i++)
		wait_not(&threads[i].state, BUSY, 5);
	done = let_go(20000);

	call_begin();
	if (iommus || undo) {
		fd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
		for (i = 0; undo & UNDO_PARK && i != MOCK_PARK_NUM; i++) {
			struct iommu_test_cmd cmd = { .op = IOMMU_TEST_OP_PARK };

			cmd.park.point = i;
			cmd.park.action = MOCK_PARK_RELEASE;
			test_cmd(fd, &cmd);
		}
		for (i = 0; i != n; i++) {
			struct iommu_test_cmd cmd = {
				.op = IOMMU_TEST_OP_IOMMU_UNREGISTER,
				.id = r[i][0],
			};

			if (iommus >> i & 1 && r[i][0] > 0)
				test_cmd(fd, &cmd);
		}
		if (undo & UNDO_LIMIT) {
			struct iommu_test_cmd cmd = {
				.op = IOMMU_TEST_OP_SET_TEMP_MEMORY_LIMIT,
			};

			cmd.memory_limit.limit = 65536;
			test_cmd(fd, &cmd);
		}
		close(fd);
	}
	for (i = 0; i != 4; i++)
		sys_kill(&(unsigned long){ i });
	clear_window();
	for (i = 0; i != NUM_SLOTS; i++) {
		if (is_slow[i])
			madvise((void *)(SLOW + i * PAGE), PAGE, MADV_DONTNEED);
		is_slow[i] = false;
	}
	syscall(SYS_close_range, first_fd, ~0U, 0);
	call_end();
	memset(r, 0xff, sizeof(r));
	if (!done) {
		report("a call does not end");
		return false;
	}
	get_state(&after);
	if (before.viommus != after.viommus)
		report("a vIOMMU is left");
	if (before.devices != after.devices || before.iommus != after.iommus ||
	    before.groups != after.groups)
		report("a device, an IOMMU or a group is left");
#ifndef SERIES_7_3
	if (memcmp(&before.test, &after.test, sizeof(before.test)))
		report("pages or counts are not as they were");
#endif
	return true;
}
