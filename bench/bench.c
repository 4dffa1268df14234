// SPDX-License-Identifier: GPL-2.0-only
/*
 * What a call costs. Where the clock counts instructions (vm/run -i), the figures are
 * instructions, and the same at every run.
 *
 *  bench table      each row of the table: KEY|TITLE|MINIMUM|MEDIAN, or KEY|TITLE|n/a
 *  bench trace KEY  one row, with the functions trace_*() called around the calls of
 *                   one of its samples, for a debugger
 *  bench plot       CURVE NUMBER MEDIAN, the cost of a call beside NUMBER objects
 *  bench parallel   calls a second of one thread and of two:
 *                   TITLE|THE TWO ARE ON|ONE|TWO|RATIO|LOWEST RATIO|HIGHEST
 *  bench commands   invalidations, and what was made, in order: ENTRIES|CALLS
 *
 * On x86-64 the devices are those of the mock driver. On arm64 there is one, behind an
 * SMMUv3, and what the mock driver alone can do is left out.
 *
 * It knows the user interface of mainline Linux and of its mock driver. What needs a
 * command that only the mock driver of the series has, to unregister an IOMMU, is n/a
 * elsewhere, as is all that a kernel does not know.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define __EXPORTED_HEADERS__
#include <linux/iommufd.h>
#include "iommufd_test.h"

#define ARRAY_SIZE(x) (sizeof(x) / sizeof((x)[0]))

#define PAGE 4096
/* Enough for the caches to have what they keep for the next call */
#define WARM_UP 200
#define SAMPLES 1000
/* The sample that trace is about */
#define TRACED 2
#define MANY 10000
#define MANY_DEVICES 1000
/* Of which there is one a device, or one a vIOMMU */
#define MANY_SINGLE 4000
#define EVENTS 1000
/* In seconds, which pass at once if nothing runs; kfree_rcu() may take five */
#define SETTLE 10

struct row {
	const char *key;
	const char *title;
	/* A sample is the cost of so many */
	unsigned int per;
	bool na;
	unsigned int num;
	uint64_t current;
	uint64_t samples[SAMPLES];
};

enum {
	FLOOR,
	LOOK_UP,
	VIOMMU_ALLOC,
	VIOMMU_DESTROY,
	VDEVICE_ALLOC,
	VDEVICE_DESTROY,
	NESTED_ALLOC,
	NESTED_DESTROY,
	INVALIDATE_1,
	INVALIDATE_256,
	INVALIDATE_4096,
	INVALIDATE_TWO,
	INVALIDATE_DEVICE,
	ATTACH_1,
	ATTACH_1000,
	UNMAP_1,
	UNMAP_10,
	UNMAP_100,
	EVENT_REPORT,
	EVENT_READ,
	HW_QUEUE,
	VIOMMU_AT_1,
	VIOMMU_AT_10000,
	VIOMMU_BYTES,
	VDEVICE_BYTES,
	NESTED_BYTES,
	VEVENTQ_BYTES,
	HW_QUEUE_BYTES,
	EVENT_BYTES,
	UNREGISTER_100,
	UNREGISTER_10000,
	UNREGISTER_FULL,
};

static struct row rows[] = {
	[FLOOR] = { "floor", "unknown ioctl number (floor)", 1 },
	[LOOK_UP] = { "look-up", "object look-up (IOMMU_OPTION of an IOAS)", 1 },
	[VIOMMU_ALLOC] = { "viommu-alloc", "vIOMMU allocate", 1 },
	[VIOMMU_DESTROY] = { "viommu-destroy", "vIOMMU destroy", 1 },
	[VDEVICE_ALLOC] = { "vdevice-alloc", "vDEVICE allocate", 1 },
	[VDEVICE_DESTROY] = { "vdevice-destroy", "vDEVICE destroy", 1 },
	[NESTED_ALLOC] = { "nested-alloc", "nested HWPT allocate", 1 },
	[NESTED_DESTROY] = { "nested-destroy", "nested HWPT destroy", 1 },
	[INVALIDATE_1] = { "invalidate-1", "invalidate, 1 entry", 1 },
	[INVALIDATE_256] = {
		"invalidate-256", "invalidate, per entry of 256", 256 },
	[INVALIDATE_4096] = {
		"invalidate-4096", "invalidate, per entry of 4096", 4096 },
	[INVALIDATE_TWO] = {
		"invalidate-two",
		"invalidate, per entry of 256, two devices in turn", 256 },
	[INVALIDATE_DEVICE] = {
		"invalidate-device", "invalidate, per CFGI_CD of 256", 256 },
	[ATTACH_1] = { "attach-1", "attach to nested HWPT beside 1 vDEVICE", 1 },
	[ATTACH_1000] = {
		"attach-1000", "attach to nested HWPT beside 1000 vDEVICEs", 1 },
	[UNMAP_1] = {
		"unmap-1", "unmap a page, 1 vIOMMU on the parent", 1 },
	[UNMAP_10] = {
		"unmap-10", "unmap a page, 10 vIOMMUs on the parent", 1 },
	[UNMAP_100] = {
		"unmap-100", "unmap a page, 100 vIOMMUs on the parent", 1 },
	[EVENT_REPORT] = { "event-report", "event report", 1 },
	[EVENT_READ] = { "event-read", "event read, each of 64", 64 },
	[HW_QUEUE] = { "hw-queue", "hardware queue allocate + destroy", 1 },
	[VIOMMU_AT_1] = {
		"viommu-1", "vIOMMU allocate + destroy beside 1", 1 },
	[VIOMMU_AT_10000] = {
		"viommu-10000", "vIOMMU allocate + destroy beside 10000", 1 },
	[VIOMMU_BYTES] = { "viommu-bytes", "bytes of slab a vIOMMU", MANY - 1 },
	[VDEVICE_BYTES] = {
		"vdevice-bytes", "bytes of slab a vDEVICE", MANY_SINGLE },
	[NESTED_BYTES] = {
		"nested-bytes", "bytes of slab a nested HWPT", MANY },
	[VEVENTQ_BYTES] = {
		"veventq-bytes", "bytes of slab a vEVENTQ and its file", MANY_SINGLE },
	[HW_QUEUE_BYTES] = {
		"hw-queue-bytes", "bytes of slab a hardware queue", MANY_SINGLE },
	[EVENT_BYTES] = {
		"event-bytes", "bytes of slab an unread event of 1000", EVENTS },
	[UNREGISTER_100] = {
		"unregister-100", "unregister, per vIOMMU of 100", 100 },
	[UNREGISTER_10000] = {
		"unregister-10000", "unregister, per vIOMMU of 10000", MANY },
	[UNREGISTER_FULL] = {
		"unregister-full",
		"unregister, per vIOMMU, vDEVICE, nested HWPT, queue", 100 },
};

static struct row *traced;
static uint64_t overhead;

static __attribute__((noreturn, format(printf, 1, 2))) void die(const char *fmt,
								...)
{
	int err = errno;
	va_list ap;

	fprintf(stderr, "bench: ");
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fprintf(stderr, ": %s\n", strerror(err));
	exit(1);
}

/* Where a debugger stops */
__attribute__((noinline)) void trace_begin(void)
{
	asm volatile("" ::: "memory");
}

__attribute__((noinline)) void trace_end(void)
{
	asm volatile("" ::: "memory");
}

__attribute__((noinline)) void trace_done(void)
{
	asm volatile("" ::: "memory");
}

/*
 * A system call between two readings of the clock. All in one piece, so that the same
 * with nothing in place of the call tells what there is besides it.
 */
#ifdef __aarch64__
#define SYSCALL "svc #0"
#define LOOP "mov x9, #5000\n1:\tsubs x9, x9, #1\n\tb.ne 1b"
#define TIMED(what, time, rc, nr, a, b, c)				       \
	do {								       \
		register long __x8 asm("x8") = (nr);			       \
		register long __x0 asm("x0") = (a);			       \
		register long __x1 asm("x1") = (b);			       \
		register long __x2 asm("x2") = (c);			       \
		uint64_t __from, __to;					       \
									       \
		asm volatile("isb\n\tmrs %[from], cntvct_el0\n\t" what	       \
			     "\n\tisb\n\tmrs %[to], cntvct_el0"	       \
			     : "+r"(__x0), [from] "=&r"(__from),	       \
			       [to] "=&r"(__to)				       \
			     : "r"(__x8), "r"(__x1), "r"(__x2)		       \
			     : "x9", "cc", "memory");			       \
		(rc) = __x0;						       \
		(void)(rc);						       \
		(time) = __to - __from;					       \
	} while (0)
#else
#define SYSCALL "syscall"
#define LOOP "mov $5000, %%ecx\n1:\tdec %%ecx\n\tjnz 1b"
#define TIMED(what, time, rc, nr, a, b, c)				       \
	do {								       \
		uint64_t __from, __to;					       \
									       \
		asm volatile("rdtsc\n\t"				       \
			     "shl $32, %%rdx\n\t"			       \
			     "or %%rdx, %%rax\n\t"			       \
			     "mov %%rax, %[from]\n\t"			       \
			     "mov %[number], %%rax\n\t"			       \
			     "mov %[third], %%rdx\n\t" what "\n\t"	       \
			     "mov %%rax, %[result]\n\t"			       \
			     "rdtsc\n\t"				       \
			     "shl $32, %%rdx\n\t"			       \
			     "or %%rdx, %%rax"				       \
			     : "=&a"(__to), [from] "=&r"(__from),	       \
			       [result] "=&r"(rc)			       \
			     : [number] "r"((long)(nr)), "D"(a), "S"(b),       \
			       [third] "r"((long)(c))			       \
			     : "rcx", "rdx", "r11", "memory");		       \
		(time) = __to - __from;					       \
	} while (0)
#endif

static void measure_overhead(void)
{
	unsigned int i;
	uint64_t t;
	long rc;

	overhead = UINT64_MAX;
	for (i = 0; i != 100; i++) {
		TIMED("", t, rc, 0, 0L, 0L, 0L);
		if (t < overhead)
			overhead = t;
	}
}

/* A loop of known length tells whether the clock counts instructions */
static void check_clock(void)
{
	uint64_t t, least = UINT64_MAX;
	unsigned int i;
	long rc;

	for (i = 0; i != 100; i++) {
		TIMED(LOOP, t, rc, 0, 0L, 0L, 0L);
		if (t < least)
			least = t;
	}
	if (least - overhead != 10001) {
		errno = ERANGE;
		die("10001 instructions take %lld ns", (long long)(least - overhead));
	}
}

/* Adds what the call costs to the row's sample. Gives the call's result. */
static long timed_call(struct row *row, long nr, long a, long b, long c)
{
	bool trace = row && row == traced && row->num == TRACED;
	uint64_t t;
	long rc;

	if (trace)
		trace_begin();
	TIMED(SYSCALL, t, rc, nr, a, b, c);
	if (trace)
		trace_end();
	if (row)
		row->current += t - overhead;
	return rc;
}

static void sample_add(struct row *row, uint64_t value)
{
	if (row->num == SAMPLES)
		return;
	if (row == traced && row->num == TRACED)
		trace_done();
	row->samples[row->num++] = value;
}

static void sample_end(struct row *row)
{
	if (!row)
		return;
	sample_add(row, row->current);
	row->current = 0;
}

static long timed_ioctl(struct row *row, int fd, unsigned long cmd, void *arg)
{
	long rc = timed_call(row, SYS_ioctl, fd, cmd, (long)arg);

	if (rc < 0) {
		errno = -rc;
		return -1;
	}
	return 0;
}

/* What a kernel without it answers */
static bool is_missing(void)
{
	return errno == ENOTTY || errno == EOPNOTSUPP;
}

static void *take_memory(size_t size)
{
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

	if (p == MAP_FAILED)
		die("mmap");
	return p;
}

/* The calls. Each gives 0 or -1, timed in a row if there is one. */

static int destroy(struct row *row, int fd, uint32_t id)
{
	struct iommu_destroy cmd = { .size = sizeof(cmd), .id = id };

	return timed_ioctl(row, fd, IOMMU_DESTROY, &cmd);
}

#ifdef __aarch64__
#include "smmuv3.h"
#else
#include "mock.h"
#endif

static int hwpt_alloc(struct row *row, int fd, uint32_t dev_id, uint32_t pt_id,
		      uint32_t flags, uint32_t *id)
{
	struct nested_data data = {};
	struct iommu_hwpt_alloc cmd = {
		.size = sizeof(cmd),
		.flags = flags,
		.dev_id = dev_id,
		.pt_id = pt_id,
	};

	if (!flags) {
		fill_nested(&data);
		cmd.data_type = NESTED_TYPE;
		cmd.data_len = sizeof(data);
		cmd.data_uptr = (uintptr_t)&data;
	}
	if (timed_ioctl(row, fd, IOMMU_HWPT_ALLOC, &cmd))
		return -1;
	*id = cmd.out_hwpt_id;
	return 0;
}

static int viommu_alloc(struct row *row, int fd, uint32_t dev_id,
			uint32_t hwpt_id, uint32_t *id)
{
	struct iommu_viommu_alloc cmd = {
		.size = sizeof(cmd),
		.type = VIOMMU_TYPE,
		.dev_id = dev_id,
		.hwpt_id = hwpt_id,
	};

	if (timed_ioctl(row, fd, IOMMU_VIOMMU_ALLOC, &cmd))
		return -1;
	*id = cmd.out_viommu_id;
	return 0;
}

static int vdevice_alloc(struct row *row, int fd, uint32_t viommu_id,
			 uint32_t dev_id, uint64_t virt_id, uint32_t *id)
{
	struct iommu_vdevice_alloc cmd = {
		.size = sizeof(cmd),
		.viommu_id = viommu_id,
		.dev_id = dev_id,
		.virt_id = virt_id,
	};

	if (timed_ioctl(row, fd, IOMMU_VDEVICE_ALLOC, &cmd))
		return -1;
	*id = cmd.out_vdevice_id;
	return 0;
}

static int invalidate(struct row *row, int fd, uint32_t viommu_id,
		      struct entry_data *entries, uint32_t num)
{
	struct iommu_hwpt_invalidate cmd = {
		.size = sizeof(cmd),
		.hwpt_id = viommu_id,
		.data_type = INVALIDATE_TYPE,
		.data_uptr = (uintptr_t)entries,
		.entry_len = sizeof(*entries),
		.entry_num = num,
	};

	if (timed_ioctl(row, fd, IOMMU_HWPT_INVALIDATE, &cmd))
		return -1;
	if (cmd.entry_num != num) {
		errno = EIO;
		die("%u of %u entries were done", cmd.entry_num, num);
	}
	return 0;
}

static int trigger_event(struct row *row, int fd, uint32_t dev_id)
{
	struct iommu_test_cmd cmd = {
		.size = sizeof(cmd),
		.op = IOMMU_TEST_OP_TRIGGER_VEVENT,
		.trigger_vevent = { .dev_id = dev_id },
	};

	return timed_ioctl(row, fd, IOMMU_TEST_CMD, &cmd);
}

static int hw_queue_alloc(struct row *row, int fd, uint32_t viommu_id,
			  uint64_t iova, uint64_t length, uint32_t *id)
{
	struct iommu_hw_queue_alloc cmd = {
		.size = sizeof(cmd),
		.viommu_id = viommu_id,
		.type = IOMMU_HW_QUEUE_TYPE_SELFTEST,
		.nesting_parent_iova = iova,
		.length = length,
	};

	if (timed_ioctl(row, fd, IOMMU_HW_QUEUE_ALLOC, &cmd))
		return -1;
	*id = cmd.out_hw_queue_id;
	return 0;
}

/* A VM: a file, guest memory, a device and a nesting parent, perhaps a vIOMMU */
struct vm {
	int fd;
	uint32_t ioas_id;
	uint32_t dev;
	uint32_t dev_id;
	uint32_t parent_id;
	uint32_t viommu_id;
};

/* The rest of a VM that has a device attached to its IOAS */
static void vm_open_parent(struct vm *vm)
{
	if (hwpt_alloc(NULL, vm->fd, vm->dev_id, vm->ioas_id,
		       IOMMU_HWPT_ALLOC_NEST_PARENT, &vm->parent_id))
		die("a nesting parent");
}

static void vm_open_ioas(struct vm *vm)
{
	struct iommu_ioas_alloc cmd = { .size = sizeof(cmd) };

	memset(vm, 0, sizeof(*vm));
	vm->fd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	if (vm->fd == -1)
		die("/dev/iommu");
	if (ioctl(vm->fd, IOMMU_IOAS_ALLOC, &cmd))
		die("IOMMU_IOAS_ALLOC");
	vm->ioas_id = cmd.out_ioas_id;
}

static void vm_close(struct vm *vm)
{
	device_close(vm->dev);
	close(vm->fd);
}

static void vm_open(struct vm *vm)
{
	vm_open_ioas(vm);
	if (device_open(vm->fd, vm->ioas_id, &vm->dev, &vm->dev_id))
		die("a mock device");
	vm_open_parent(vm);
}

/* One more device, which is the VM's from here on */
static void vm_add_behind(struct vm *vm, uint32_t iommu_id)
{
	struct iommu_test_cmd cmd = {
		.size = sizeof(cmd),
		.op = IOMMU_TEST_OP_MOCK_DOMAIN_IOMMU,
		.id = vm->ioas_id,
		.mock_domain_iommu.iommu_id = iommu_id,
	};

	if (ioctl(vm->fd, IOMMU_TEST_CMD, &cmd))
		die("a device behind an IOMMU of its own");
	vm->dev = cmd.mock_domain_iommu.out_stdev_id;
	vm->dev_id = cmd.mock_domain_iommu.out_idev_id;
}

/* A VM behind an IOMMU of its own; false if the mock driver has no such thing */
static bool vm_open_behind(struct vm *vm, uint32_t *iommu_id)
{
	struct iommu_test_cmd cmd = {
		.size = sizeof(cmd),
		.op = IOMMU_TEST_OP_IOMMU_REGISTER,
	};

	vm_open_ioas(vm);
	if (ioctl(vm->fd, IOMMU_TEST_CMD, &cmd)) {
		if (!is_missing())
			die("registering an IOMMU");
		close(vm->fd);
		return false;
	}
	*iommu_id = cmd.iommu_register.out_iommu_id;
	vm_add_behind(vm, *iommu_id);
	vm_open_parent(vm);
	return true;
}

/* A VM with a vIOMMU; false if the kernel has none */
static bool vm_open_viommu(struct vm *vm)
{
	vm_open(vm);
	if (!viommu_alloc(NULL, vm->fd, vm->dev_id, vm->parent_id,
			  &vm->viommu_id))
		return true;
	if (!is_missing())
		die("IOMMU_VIOMMU_ALLOC");
	vm_close(vm);
	return false;
}

static void mark_na(int which)
{
	rows[which].na = true;
}

static struct row *after_warm_up(int which, unsigned int i)
{
	return i < WARM_UP ? NULL : &rows[which];
}

static void bench_floor(void)
{
	struct vm vm;
	unsigned int i;
	struct row *row;

	vm_open(&vm);
	for (i = 0; i != WARM_UP + SAMPLES; i++) {
		row = after_warm_up(FLOOR, i);
		if (!timed_ioctl(row, vm.fd, _IO(IOMMUFD_TYPE, 0xff), NULL) ||
		    errno != ENOTTY)
			die("an unknown ioctl");
		sample_end(row);
	}
	vm_close(&vm);
}

static void bench_look_up(void)
{
	struct iommu_option cmd = {
		.size = sizeof(cmd),
		.option_id = IOMMU_OPTION_HUGE_PAGES,
		.op = IOMMU_OPTION_OP_GET,
	};
	struct vm vm;
	unsigned int i;
	struct row *row;

	vm_open(&vm);
	cmd.object_id = vm.ioas_id;
	for (i = 0; i != WARM_UP + SAMPLES; i++) {
		row = after_warm_up(LOOK_UP, i);
		if (timed_ioctl(row, vm.fd, IOMMU_OPTION, &cmd))
			die("IOMMU_OPTION");
		sample_end(row);
	}
	vm_close(&vm);
}

static void viommu_pair(struct vm *vm, struct row *row, struct row *row2)
{
	uint32_t id;

	if (viommu_alloc(row, vm->fd, vm->dev_id, vm->parent_id, &id))
		die("IOMMU_VIOMMU_ALLOC");
	if (row != row2)
		sample_end(row);
	if (destroy(row2, vm->fd, id))
		die("destroying a vIOMMU");
	sample_end(row2);
}

static void bench_viommu(void)
{
	struct vm vm;
	unsigned int i;

	if (!vm_open_viommu(&vm)) {
		mark_na(VIOMMU_ALLOC);
		mark_na(VIOMMU_DESTROY);
		return;
	}
	if (destroy(NULL, vm.fd, vm.viommu_id))
		die("destroying a vIOMMU");
	for (i = 0; i != WARM_UP + SAMPLES; i++)
		viommu_pair(&vm, after_warm_up(VIOMMU_ALLOC, i),
			    after_warm_up(VIOMMU_DESTROY, i));
	vm_close(&vm);
}

static void vdevice_pair(struct vm *vm, uint64_t virt_id, struct row *row,
			 struct row *row2)
{
	uint32_t id;

	if (vdevice_alloc(row, vm->fd, vm->viommu_id, vm->dev_id, virt_id, &id))
		die("IOMMU_VDEVICE_ALLOC");
	if (row != row2)
		sample_end(row);
	if (destroy(row2, vm->fd, id))
		die("destroying a vDEVICE");
	sample_end(row2);
}

static void bench_vdevice(void)
{
	struct vm vm;
	unsigned int i;

	if (!vm_open_viommu(&vm)) {
		mark_na(VDEVICE_ALLOC);
		mark_na(VDEVICE_DESTROY);
		return;
	}
	for (i = 0; i != WARM_UP + SAMPLES; i++)
		vdevice_pair(&vm, 1, after_warm_up(VDEVICE_ALLOC, i),
			     after_warm_up(VDEVICE_DESTROY, i));
	vm_close(&vm);
}

static void nested_pair(struct vm *vm, struct row *row, struct row *row2)
{
	uint32_t id;

	if (hwpt_alloc(row, vm->fd, vm->dev_id, vm->viommu_id, 0, &id))
		die("IOMMU_HWPT_ALLOC on a vIOMMU");
	if (row != row2)
		sample_end(row);
	if (destroy(row2, vm->fd, id))
		die("destroying a nested HWPT");
	sample_end(row2);
}

static void bench_nested(void)
{
	struct vm vm;
	unsigned int i;

	if (!vm_open_viommu(&vm)) {
		mark_na(NESTED_ALLOC);
		mark_na(NESTED_DESTROY);
		return;
	}
	for (i = 0; i != WARM_UP + SAMPLES; i++)
		nested_pair(&vm, after_warm_up(NESTED_ALLOC, i),
			    after_warm_up(NESTED_DESTROY, i));
	vm_close(&vm);
}

static struct entry_data *make_entries(uint32_t num, uint32_t virt_id)
{
	struct entry_data *entries;
	uint32_t i;

	entries = take_memory(num * sizeof(*entries));
	for (i = 0; i != num; i++)
		fill_entry(&entries[i], virt_id, i);
	return entries;
}

/* Adds devices with a vDEVICE each till there are so many; the last is the VM's */
static void more_vdevices(struct vm *vm, uint32_t *have, uint32_t want)
{
	uint32_t id;

	while (*have != want) {
		if (*have && device_open(vm->fd, vm->ioas_id, &vm->dev,
					 &vm->dev_id))
			die("mock device %u", *have);
		++*have;
		if (vdevice_alloc(NULL, vm->fd, vm->viommu_id, vm->dev_id,
				  *have, &id))
			die("vDEVICE %u", *have);
	}
}

static void bench_invalidate(int which)
{
	struct entry_data *entries;
	uint32_t num = rows[which].per;
	unsigned int i;
	uint32_t have = 0;
	struct row *row;
	struct vm vm;

	if (!vm_open_viommu(&vm)) {
		mark_na(which);
		return;
	}
	more_vdevices(&vm, &have, which == INVALIDATE_TWO ? 2 : 1);
	entries = make_entries(num, 1);
	for (i = 1; which == INVALIDATE_TWO && i < num; i += 2)
		fill_entry(&entries[i], 2, i);
	for (i = 0; which == INVALIDATE_DEVICE && i != num; i++)
		fill_entry_device(&entries[i], 1, CMD_CFGI_CD);
	for (i = 0; i != WARM_UP + SAMPLES; i++) {
		row = after_warm_up(which, i);
		if (invalidate(row, vm.fd, vm.viommu_id, entries, num))
			die("IOMMU_HWPT_INVALIDATE");
		sample_end(row);
	}
	munmap(entries, num * sizeof(*entries));
	vm_close(&vm);
}

static void bench_events(struct vm *vm, struct row *report,
			 struct row *reading, int events)
{
	static char buf[64 * 64];
	unsigned int i;
	long rc;

	for (i = 0; i != 64; i++) {
		if (trigger_event(report, vm->fd, vm->dev_id))
			die("an event");
		sample_end(report);
	}
	rc = timed_call(reading, SYS_read, events, (long)buf, sizeof(buf));
	if (rc != 64 * (sizeof(struct iommufd_vevent_header) +
			sizeof(struct iommu_viommu_event_selftest))) {
		errno = rc < 0 ? -rc : EIO;
		die("reading 64 events gave %ld", rc);
	}
	sample_end(reading);
}

static int veventq_alloc(struct vm *vm, uint32_t viommu_id, uint32_t depth)
{
	struct iommu_veventq_alloc cmd = {
		.size = sizeof(cmd),
		.viommu_id = viommu_id,
		.type = IOMMU_VEVENTQ_TYPE_SELFTEST,
		.veventq_depth = depth,
	};

	if (ioctl(vm->fd, IOMMU_VEVENTQ_ALLOC, &cmd))
		return -1;
	return cmd.out_veventq_fd;
}

/* The mock driver's device knows its vIOMMU by what it is attached to */
static void attach_nested(struct vm *vm)
{
	uint32_t id;

	if (vdevice_alloc(NULL, vm->fd, vm->viommu_id, vm->dev_id, 1, &id) ||
	    hwpt_alloc(NULL, vm->fd, vm->dev_id, vm->viommu_id, 0, &id) ||
	    attach(NULL, vm->fd, vm->dev, id))
		die("attaching to a nested HWPT");
}

static void bench_event(void)
{
	struct row *report, *reading;
	struct vm vm;
	unsigned int i;
	int events;

	if (!vm_open_viommu(&vm)) {
		mark_na(EVENT_REPORT);
		mark_na(EVENT_READ);
		return;
	}
	events = veventq_alloc(&vm, vm.viommu_id, 64);
	if (events == -1) {
		if (!is_missing())
			die("IOMMU_VEVENTQ_ALLOC");
		mark_na(EVENT_REPORT);
		mark_na(EVENT_READ);
		vm_close(&vm);
		return;
	}
	attach_nested(&vm);
	for (i = 0; i != WARM_UP / 16 + SAMPLES; i++) {
		report = i < WARM_UP / 16 ? NULL : &rows[EVENT_REPORT];
		reading = report ? &rows[EVENT_READ] : NULL;
		bench_events(&vm, report, reading, events);
	}
	close(events);
	vm_close(&vm);
}

/* Memory for hardware queues, at MOCK_APERTURE_START */
static void map_queue(struct vm *vm)
{
	struct iommu_ioas_map map = {
		.size = sizeof(map),
		.flags = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE |
			 IOMMU_IOAS_MAP_WRITEABLE,
		.length = PAGE,
		.iova = MOCK_APERTURE_START,
		.ioas_id = vm->ioas_id,
		.user_va = (uintptr_t)take_memory(PAGE),
	};

	if (ioctl(vm->fd, IOMMU_IOAS_MAP, &map))
		die("IOMMU_IOAS_MAP");
}

static void bench_hw_queue(void)
{
	unsigned int i;
	struct row *row;
	struct vm vm;
	uint32_t id;

	if (!vm_open_viommu(&vm)) {
		mark_na(HW_QUEUE);
		return;
	}
	map_queue(&vm);
	for (i = 0; i != WARM_UP + SAMPLES; i++) {
		row = after_warm_up(HW_QUEUE, i);
		if (hw_queue_alloc(row, vm.fd, vm.viommu_id,
				   MOCK_APERTURE_START, PAGE, &id)) {
			if (!is_missing())
				die("IOMMU_HW_QUEUE_ALLOC");
			mark_na(HW_QUEUE);
			break;
		}
		if (destroy(row, vm.fd, id))
			die("destroying a hardware queue");
		sample_end(row);
	}
	vm_close(&vm);
}

/*
 * What CPUs keep of free objects would count as in use. The files stay open: to close
 * them frees something later.
 */
static void shrink_slabs(void)
{
	static int fds[512];
	static unsigned int num;
	struct dirent *entry;
	char path[512];
	unsigned int i;
	DIR *dir;

	if (!num) {
		dir = opendir("/sys/kernel/slab");
		if (!dir)
			die("/sys/kernel/slab");
		while ((entry = readdir(dir)) && num != ARRAY_SIZE(fds)) {
			snprintf(path, sizeof(path),
				 "/sys/kernel/slab/%s/shrink", entry->d_name);
			fds[num] = open(path, O_WRONLY | O_CLOEXEC);
			if (fds[num] != -1)
				num++;
		}
		closedir(dir);
		if (!num || num == ARRAY_SIZE(fds))
			die("the slab caches");
		sleep(SETTLE);
	}
	for (i = 0; i != num; i++)
		if (write(fds[i], "1", 1) != 1)
			die("shrinking a slab cache");
}

/* The bytes of all objects in all slab caches, without what is freed a little later */
static uint64_t slab_bytes(void)
{
	static char buf[1 << 16];
	unsigned long active, num, size;
	uint64_t sum = 0;
	size_t len = 0;
	char *line;
	ssize_t n;
	int fd;

	sleep(SETTLE);
	shrink_slabs();
	fd = open("/proc/slabinfo", O_RDONLY);
	if (fd == -1)
		die("/proc/slabinfo");
	while ((n = read(fd, buf + len, sizeof(buf) - 1 - len)) > 0)
		len += n;
	if (n < 0 || len == sizeof(buf) - 1)
		die("reading /proc/slabinfo");
	buf[len] = 0;
	close(fd);
	for (line = strtok(buf, "\n"); line; line = strtok(NULL, "\n"))
		if (sscanf(line, "%*s %lu %lu %lu", &active, &num, &size) == 3)
			sum += (uint64_t)active * size;
	return sum;
}

/* What objects take that make() makes */
static void bench_bytes(int which, struct vm *vm,
			int (*make)(struct vm *vm, unsigned int i))
{
	struct row *row = &rows[which];
	uint64_t before = slab_bytes();
	unsigned int i;

	for (i = 0; i != row->per; i++) {
		if (make(vm, i)) {
			if (!is_missing())
				die("%s, number %u", row->title, i);
			mark_na(which);
			return;
		}
	}
	sample_add(row, slab_bytes() - before);
}

static uint32_t many_ids[MANY_SINGLE];
static int many_fds[MANY_SINGLE];
static unsigned int num_fds;

static int make_vdevice(struct vm *vm, unsigned int i)
{
	uint32_t id;

	return vdevice_alloc(NULL, vm->fd, vm->viommu_id, many_ids[i], 1 + i,
			     &id);
}

static int make_nested(struct vm *vm, unsigned int i)
{
	uint32_t id;

	(void)i;
	return hwpt_alloc(NULL, vm->fd, vm->dev_id, vm->viommu_id, 0, &id);
}

static int make_veventq(struct vm *vm, unsigned int i)
{
	many_fds[i] = veventq_alloc(vm, many_ids[i], 64);
	if (many_fds[i] == -1)
		return -1;
	num_fds = i + 1;
	return 0;
}

static int make_hw_queue(struct vm *vm, unsigned int i)
{
	uint32_t id;

	return hw_queue_alloc(NULL, vm->fd, many_ids[i], MOCK_APERTURE_START,
			      PAGE, &id);
}

static void bench_vdevice_bytes(void)
{
	struct vm vm;
	unsigned int i;

	if (!vm_open_viommu(&vm)) {
		mark_na(VDEVICE_BYTES);
		return;
	}
	for (i = 0; i != MANY_SINGLE; i++) {
		if (device_open(vm.fd, vm.ioas_id, &vm.dev, &vm.dev_id))
			die("mock device %u", i);
		many_ids[i] = vm.dev_id;
	}
	bench_bytes(VDEVICE_BYTES, &vm, make_vdevice);
	vm_close(&vm);
}

static void bench_nested_bytes(void)
{
	struct vm vm;

	if (!vm_open_viommu(&vm)) {
		mark_na(NESTED_BYTES);
		return;
	}
	bench_bytes(NESTED_BYTES, &vm, make_nested);
	vm_close(&vm);
}

/* One of these a vIOMMU */
static void bench_queue_bytes(void)
{
	const struct rlimit files = { MANY_SINGLE + 1024, MANY_SINGLE + 1024 };
	struct vm vm;
	unsigned int i;

	if (!vm_open_viommu(&vm)) {
		mark_na(VEVENTQ_BYTES);
		mark_na(HW_QUEUE_BYTES);
		return;
	}
	/* The table of the files is as large as it will be */
	if (setrlimit(RLIMIT_NOFILE, &files) ||
	    dup2(vm.fd, MANY_SINGLE + 1023) == -1 ||
	    close(MANY_SINGLE + 1023))
		die("a table for many files");
	map_queue(&vm);
	for (i = 0; i != MANY_SINGLE; i++)
		if (viommu_alloc(NULL, vm.fd, vm.dev_id, vm.parent_id,
				 &many_ids[i]))
			die("vIOMMU %u", i);
	bench_bytes(HW_QUEUE_BYTES, &vm, make_hw_queue);
	bench_bytes(VEVENTQ_BYTES, &vm, make_veventq);
	while (num_fds)
		close(many_fds[--num_fds]);
	vm_close(&vm);
}

static int make_event(struct vm *vm, unsigned int i)
{
	(void)i;
	return trigger_event(NULL, vm->fd, vm->dev_id);
}

static void bench_event_bytes(void)
{
	struct vm vm;
	int events;

	if (!vm_open_viommu(&vm)) {
		mark_na(EVENT_BYTES);
		return;
	}
	events = veventq_alloc(&vm, vm.viommu_id, EVENTS);
	if (events == -1) {
		if (!is_missing())
			die("IOMMU_VEVENTQ_ALLOC");
		mark_na(EVENT_BYTES);
		vm_close(&vm);
		return;
	}
	attach_nested(&vm);
	bench_bytes(EVENT_BYTES, &vm, make_event);
	close(events);
	vm_close(&vm);
}

static void bench_many(void)
{
	uint64_t before;
	unsigned int i;
	struct row *row;
	struct vm vm;
	uint32_t id;

	if (!vm_open_viommu(&vm)) {
		mark_na(VIOMMU_AT_1);
		mark_na(VIOMMU_AT_10000);
		mark_na(VIOMMU_BYTES);
		return;
	}
	for (i = 0; i != WARM_UP + SAMPLES; i++) {
		row = after_warm_up(VIOMMU_AT_1, i);
		viommu_pair(&vm, row, row);
	}
	before = slab_bytes();
	for (i = 1; i != MANY; i++)
		if (viommu_alloc(NULL, vm.fd, vm.dev_id, vm.parent_id, &id))
			die("vIOMMU %u", i);
	sample_add(&rows[VIOMMU_BYTES], slab_bytes() - before);
	for (i = 0; i != WARM_UP + SAMPLES; i++) {
		row = after_warm_up(VIOMMU_AT_10000, i);
		viommu_pair(&vm, row, row);
	}
	vm_close(&vm);
}

static void attach_pair(struct vm *vm, const uint32_t *nested, struct row *row)
{
	unsigned int i;

	for (i = 0; i != 2; i++) {
		if (attach(row, vm->fd, vm->dev, nested[i]))
			die("attaching to a nested HWPT");
		sample_end(row);
	}
}

static void bench_attach(int which, uint32_t want)
{
	uint32_t have = 0, nested[2];
	struct vm vm;
	unsigned int i;

	if (!vm_open_viommu(&vm)) {
		mark_na(which);
		return;
	}
	more_vdevices(&vm, &have, want);
	for (i = 0; i != 2; i++)
		if (hwpt_alloc(NULL, vm.fd, vm.dev_id, vm.viommu_id, 0,
			       &nested[i]))
			die("IOMMU_HWPT_ALLOC on a vIOMMU");
	for (i = 0; i != WARM_UP + SAMPLES; i++)
		attach_pair(&vm, nested, after_warm_up(which, i));
	vm_close(&vm);
}

/*
 * A page of a VM's memory is unmapped, with num vIOMMUs on the nesting parent. The device
 * is attached to a nested HWPT on the first of them.
 */
static void bench_unmap(int which, unsigned int num)
{
	struct iommu_ioas_map map = {
		.size = sizeof(map),
		.flags = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE |
			 IOMMU_IOAS_MAP_WRITEABLE,
		.length = PAGE,
		.iova = 1 << 30,
		.user_va = (uintptr_t)take_memory(PAGE),
	};
	struct iommu_ioas_unmap unmap = {
		.size = sizeof(unmap),
		.iova = map.iova,
	};
	unsigned int i;
	struct row *row;
	struct vm vm;
	uint32_t id;

	if (!vm_open_viommu(&vm)) {
		mark_na(which);
		return;
	}
	map.ioas_id = vm.ioas_id;
	unmap.ioas_id = vm.ioas_id;
	for (i = 1; i != num; i++)
		if (viommu_alloc(NULL, vm.fd, vm.dev_id, vm.parent_id, &id))
			die("vIOMMU %u", i);
	attach_nested(&vm);
	for (i = 0; i != WARM_UP + SAMPLES; i++) {
		if (ioctl(vm.fd, IOMMU_IOAS_MAP, &map))
			die("IOMMU_IOAS_MAP");
		row = after_warm_up(which, i);
		unmap.length = PAGE;
		if (timed_ioctl(row, vm.fd, IOMMU_IOAS_UNMAP, &unmap))
			die("IOMMU_IOAS_UNMAP");
		sample_end(row);
	}
	vm_close(&vm);
	munmap((void *)(uintptr_t)map.user_va, PAGE);
}

static int unregister_more(struct vm *vm, uint32_t viommu_id, unsigned int i)
{
	uint32_t id;

	if (vdevice_alloc(NULL, vm->fd, viommu_id, vm->dev_id, 1 + i, &id) ||
	    hwpt_alloc(NULL, vm->fd, vm->dev_id, viommu_id, 0, &id))
		return -1;
	return hw_queue_alloc(NULL, vm->fd, viommu_id, MOCK_APERTURE_START,
			      PAGE, &id);
}

/*
 * What it costs to unregister an IOMMU that num vIOMMUs hold; 0 if the mock driver has
 * no command for that. With devices there are so many more of these, and each vIOMMU
 * has the vDEVICE of one, a nested HWPT and a hardware queue.
 */
static uint64_t unregister(struct row *row, unsigned int num,
			   unsigned int devices)
{
	struct iommu_test_cmd cmd = {
		.size = sizeof(cmd),
		.op = IOMMU_TEST_OP_IOMMU_UNREGISTER,
	};
	uint64_t cost;
	unsigned int i;
	struct vm vm;
	uint32_t id;

	if (!vm_open_behind(&vm, &cmd.id))
		return 0;
	if (devices)
		map_queue(&vm);
	for (i = 0; i < num || i < devices; i++) {
		if (i < devices)
			vm_add_behind(&vm, cmd.id);
		if (i >= num)
			continue;
		if (viommu_alloc(NULL, vm.fd, vm.dev_id, vm.parent_id, &id))
			die("vIOMMU %u", i);
		if (i < devices && unregister_more(&vm, id, i))
			die("what is on vIOMMU %u", i);
	}
	/* What was put off when the last such VM was closed is not its cost */
	usleep(100000);
	if (timed_ioctl(row, vm.fd, IOMMU_TEST_CMD, &cmd))
		die("unregistering an IOMMU");
	vm_close(&vm);
	cost = row->current;
	row->current = 0;
	return cost;
}

/* Per vIOMMU: what unregister costs without any is not theirs */
static void bench_unregister(int which)
{
	struct row *row = &rows[which];
	const unsigned int devices = which == UNREGISTER_FULL ? row->per : 0;
	static struct row scratch;
	uint64_t none;
	unsigned int i;
	struct vm vm;

	if (!vm_open_viommu(&vm)) {
		mark_na(which);
		return;
	}
	vm_close(&vm);
	for (i = 0; i != 1 + 7; i++) {
		none = unregister(&scratch, 0, devices);
		if (!none) {
			mark_na(which);
			return;
		}
		if (i)
			sample_add(row, unregister(row, row->per, devices) -
						none);
	}
}

static int compare(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static uint64_t median(struct row *row)
{
	if (!row->num)
		die("no samples of %s", row->key);
	qsort(row->samples, row->num, sizeof(row->samples[0]), compare);
	return row->samples[row->num / 2];
}

static void print_value(uint64_t value, unsigned int per)
{
	if (per == 1)
		printf("|%llu", (unsigned long long)value);
	else
		printf("|%.1f", (double)value / per);
}

static bool wanted(int first, int last)
{
	return !traced || (traced >= &rows[first] && traced <= &rows[last]);
}

static void bench_table(void)
{
	struct row *row;
	uint64_t mid;

	if (wanted(FLOOR, FLOOR))
		bench_floor();
	if (MOCK && wanted(LOOK_UP, LOOK_UP))
		bench_look_up();
	if (wanted(VIOMMU_ALLOC, VIOMMU_DESTROY))
		bench_viommu();
	if (wanted(VDEVICE_ALLOC, VDEVICE_DESTROY))
		bench_vdevice();
	if (wanted(NESTED_ALLOC, NESTED_DESTROY))
		bench_nested();
	if (wanted(INVALIDATE_1, INVALIDATE_1))
		bench_invalidate(INVALIDATE_1);
	if (wanted(INVALIDATE_256, INVALIDATE_256))
		bench_invalidate(INVALIDATE_256);
	if (wanted(INVALIDATE_4096, INVALIDATE_4096))
		bench_invalidate(INVALIDATE_4096);
	if (MOCK && wanted(INVALIDATE_TWO, INVALIDATE_TWO))
		bench_invalidate(INVALIDATE_TWO);
	if (!MOCK && wanted(INVALIDATE_DEVICE, INVALIDATE_DEVICE))
		bench_invalidate(INVALIDATE_DEVICE);
	if (wanted(ATTACH_1, ATTACH_1))
		bench_attach(ATTACH_1, 1);
	if (MOCK && wanted(ATTACH_1000, ATTACH_1000))
		bench_attach(ATTACH_1000, MANY_DEVICES);
	if (!MOCK && wanted(UNMAP_1, UNMAP_1))
		bench_unmap(UNMAP_1, 1);
	if (!MOCK && wanted(UNMAP_10, UNMAP_10))
		bench_unmap(UNMAP_10, 10);
	if (!MOCK && wanted(UNMAP_100, UNMAP_100))
		bench_unmap(UNMAP_100, 100);
	if (MOCK && wanted(EVENT_REPORT, EVENT_READ))
		bench_event();
	if (MOCK && wanted(HW_QUEUE, HW_QUEUE))
		bench_hw_queue();
	if (wanted(VIOMMU_AT_1, VIOMMU_BYTES))
		bench_many();
	if (MOCK && wanted(VDEVICE_BYTES, VDEVICE_BYTES))
		bench_vdevice_bytes();
	if (MOCK && wanted(NESTED_BYTES, NESTED_BYTES))
		bench_nested_bytes();
	if (MOCK && wanted(VEVENTQ_BYTES, HW_QUEUE_BYTES))
		bench_queue_bytes();
	if (MOCK && wanted(EVENT_BYTES, EVENT_BYTES))
		bench_event_bytes();
	if (MOCK && wanted(UNREGISTER_100, UNREGISTER_100))
		bench_unregister(UNREGISTER_100);
	if (MOCK && wanted(UNREGISTER_10000, UNREGISTER_10000))
		bench_unregister(UNREGISTER_10000);
	if (MOCK && wanted(UNREGISTER_FULL, UNREGISTER_FULL))
		bench_unregister(UNREGISTER_FULL);

	for (row = rows; row != rows + ARRAY_SIZE(rows); row++) {
		if (traced && row != traced)
			continue;
		/* Not on this machine */
		if (!row->na && !row->num)
			continue;
		printf("%s|%s", row->key, row->title);
		if (row->na) {
			printf("|n/a\n");
			continue;
		}
		mid = median(row);
		print_value(row->samples[0], row->per);
		print_value(mid, row->per);
		printf("\n");
	}
}

/* Growth: what calls cost beside so many objects of the kind that grows */

static struct row curve;

static void plot(const char *name, unsigned int num)
{
	printf("%s|%u|%llu\n", name, num, (unsigned long long)median(&curve));
	curve.num = 0;
}

static struct row *curve_after(unsigned int i)
{
	return i < WARM_UP ? NULL : &curve;
}

static void plot_viommu(const uint32_t *steps, unsigned int num_steps)
{
	uint32_t have = 1, id;
	unsigned int i, s;
	struct vm vm;

	if (!vm_open_viommu(&vm))
		return;
	for (s = 0; s != num_steps; s++) {
		for (; have != steps[s]; have++)
			if (viommu_alloc(NULL, vm.fd, vm.dev_id, vm.parent_id,
					 &id))
				die("vIOMMU %u", have);
		for (i = 0; i != 2 * WARM_UP; i++)
			viommu_pair(&vm, curve_after(i), curve_after(i));
		plot("vIOMMU allocate + destroy", have);
	}
	vm_close(&vm);
}

static void plot_nested(const uint32_t *steps, unsigned int num_steps)
{
	uint32_t have = 0, id;
	unsigned int i, s;
	struct vm vm;

	if (!vm_open_viommu(&vm))
		return;
	for (s = 0; s != num_steps; s++) {
		for (; have != steps[s]; have++)
			if (hwpt_alloc(NULL, vm.fd, vm.dev_id, vm.viommu_id, 0,
				       &id))
				die("nested HWPT %u", have);
		for (i = 0; i != 2 * WARM_UP; i++)
			nested_pair(&vm, curve_after(i), curve_after(i));
		plot("nested HWPT allocate + destroy", have);
	}
	vm_close(&vm);
}

static void plot_vdevice(const uint32_t *steps, unsigned int num_steps)
{
	struct entry_data *entry;
	uint32_t have = 0, nested[2];
	struct vm vm, other;
	unsigned int i, s;
	int events;

	if (!vm_open_viommu(&vm))
		return;
	/* The one whose vDEVICE comes and goes */
	other = vm;
	if (device_open(vm.fd, vm.ioas_id, &other.dev, &other.dev_id))
		die("a mock device");
	events = veventq_alloc(&vm, vm.viommu_id, 64);
	if (events == -1)
		die("IOMMU_VEVENTQ_ALLOC");
	for (i = 0; i != 2; i++)
		if (hwpt_alloc(NULL, vm.fd, vm.dev_id, vm.viommu_id, 0,
			       &nested[i]))
			die("IOMMU_HWPT_ALLOC on a vIOMMU");
	entry = make_entries(1, 0);
	for (s = 0; s != num_steps; s++) {
		more_vdevices(&vm, &have, steps[s]);
		for (i = 0; i != 2 * WARM_UP; i++)
			vdevice_pair(&other, have + 1, curve_after(i),
				     curve_after(i));
		plot("vDEVICE allocate + destroy", have);
		fill_entry(entry, have, 0);
		for (i = 0; i != 2 * WARM_UP; i++) {
			if (invalidate(curve_after(i), vm.fd, vm.viommu_id,
				       entry, 1))
				die("IOMMU_HWPT_INVALIDATE");
			sample_end(curve_after(i));
		}
		plot("invalidate, 1 entry", have);
		for (i = 0; i != 2 * WARM_UP; i++)
			attach_pair(&vm, nested, curve_after(i));
		plot("attach to nested HWPT", have);
		for (i = 0; i != WARM_UP / 16; i++)
			bench_events(&vm, i ? &curve : NULL, NULL, events);
		plot("event report", have);
	}
	close(events);
	vm_close(&vm);
}

static void bench_plot(void)
{
	static const uint32_t steps[] = { 1,   3,    10,   30,	 100,
					  300, 1000, 3000, 10000 };

	plot_viommu(steps, ARRAY_SIZE(steps));
	plot_nested(steps, ARRAY_SIZE(steps));
	plot_vdevice(steps, ARRAY_SIZE(steps));
}

/*
 * Only calls, for somebody who watches the SMMU's queue of commands: series of so many
 * with so many entries each, perhaps with one more that is refused, and before each
 * series a CFGI_CD_ALL, which nothing else here makes.
 */
#define CALLS 100

static void bench_series(struct vm *vm, uint32_t num, bool refused)
{
	struct entry_data *entries = make_entries(num + refused, 1);
	struct iommu_hwpt_invalidate cmd;
	unsigned int i;

	if (refused)
		fill_entry_device(&entries[num], 1, CMD_NONE);
	for (i = 0; i != CALLS; i++) {
		cmd = (struct iommu_hwpt_invalidate){
			.size = sizeof(cmd),
			.hwpt_id = vm->viommu_id,
			.data_type = INVALIDATE_TYPE,
			.data_uptr = (uintptr_t)entries,
			.entry_len = sizeof(*entries),
			.entry_num = num + refused,
		};
		if (!ioctl(vm->fd, IOMMU_HWPT_INVALIDATE, &cmd) == refused ||
		    cmd.entry_num != num)
			die("%u of %u entries were done", cmd.entry_num, num);
	}
	munmap(entries, (num + refused) * sizeof(*entries));
}

static void bench_commands(void)
{
	static const struct {
		uint32_t num;
		bool refused;
	} series[] = {
		{ 1, false },  { 63, false },  { 64, false },  { 64, true },
		{ 65, false }, { 256, false }, { 4096, false },
	};
	struct entry_data *mark = make_entries(1, 1);
	struct vm vm;
	unsigned int i;
	uint32_t id;

	if (!vm_open_viommu(&vm)) {
		errno = EOPNOTSUPP;
		die("IOMMU_VIOMMU_ALLOC");
	}
	if (vdevice_alloc(NULL, vm.fd, vm.viommu_id, vm.dev_id, 1, &id))
		die("IOMMU_VDEVICE_ALLOC");
	fill_entry_device(mark, 1, CMD_CFGI_CD_ALL);
	for (i = 0; i <= ARRAY_SIZE(series); i++) {
		if (invalidate(NULL, vm.fd, vm.viommu_id, mark, 1))
			die("IOMMU_HWPT_INVALIDATE");
		if (i == ARRAY_SIZE(series))
			break;
		bench_series(&vm, series[i].num, series[i].refused);
		printf("%u%s|%u\n", series[i].num,
		       series[i].refused ? "+bad" : "", CALLS);
	}
	vm_close(&vm);
}

/*
 * Two threads against one. Slices of each in turn, so that what else the host does
 * hits both; the median of the ratios.
 */

#define SLICES 9
#define SLICE_US 300000

struct worker {
	pthread_t thread;
	struct vm vm;
	bool nested;
	/* Calls in this slice */
	uint64_t done;
};

static struct entry_data *parallel_entry;
static bool stop;

static void *work(void *arg)
{
	struct worker *w = arg;
	uint64_t done = 0;

	while (!__atomic_load_n(&stop, __ATOMIC_RELAXED)) {
		if (w->nested)
			nested_pair(&w->vm, NULL, NULL);
		else if (invalidate(NULL, w->vm.fd, w->vm.viommu_id,
				    parallel_entry, 1))
			die("IOMMU_HWPT_INVALIDATE");
		done++;
	}
	w->done = done;
	return NULL;
}

/* Calls in a second of so many threads */
static double slice(struct worker *workers, int num)
{
	struct timespec from, to;
	uint64_t done = 0;
	cpu_set_t cpus;
	int i;

	stop = false;
	clock_gettime(CLOCK_MONOTONIC, &from);
	for (i = 0; i != num; i++) {
		if (pthread_create(&workers[i].thread, NULL, work, &workers[i]))
			die("a thread");
		CPU_ZERO(&cpus);
		CPU_SET(i, &cpus);
		if (pthread_setaffinity_np(workers[i].thread, sizeof(cpus),
					   &cpus))
			die("binding a thread to CPU %d", i);
	}
	usleep(SLICE_US);
	__atomic_store_n(&stop, true, __ATOMIC_RELAXED);
	for (i = 0; i != num; i++) {
		pthread_join(workers[i].thread, NULL);
		done += workers[i].done;
	}
	clock_gettime(CLOCK_MONOTONIC, &to);
	return done / (to.tv_sec - from.tv_sec +
		       (to.tv_nsec - from.tv_nsec) / 1e9);
}

static int compare_double(const void *a, const void *b)
{
	double x = *(const double *)a, y = *(const double *)b;

	return x < y ? -1 : x > y;
}

static void parallel(const char *title, struct worker *workers)
{
	double one[SLICES], two[SLICES], ratio[SLICES];
	int i;

	for (i = -1; i != SLICES; i++) {
		int k = i < 0 ? 0 : i;

		one[k] = slice(workers, 1);
		two[k] = slice(workers, 2);
		ratio[k] = two[k] / one[k];
	}
	qsort(one, SLICES, sizeof(double), compare_double);
	qsort(two, SLICES, sizeof(double), compare_double);
	qsort(ratio, SLICES, sizeof(double), compare_double);
	printf("%s|%.0f|%.0f|%.2f|%.2f|%.2f\n", title, one[SLICES / 2],
	       two[SLICES / 2], ratio[SLICES / 2], ratio[0], ratio[SLICES - 1]);
	fflush(stdout);
}

static void bench_parallel(void)
{
	struct worker workers[2] = {};
	struct vm first, second;
	uint32_t id;
	int i;

	parallel_entry = make_entries(1, 1);
	if (!vm_open_viommu(&first) || !vm_open_viommu(&second)) {
		errno = EOPNOTSUPP;
		die("IOMMU_VIOMMU_ALLOC");
	}
	if (vdevice_alloc(NULL, first.fd, first.viommu_id, first.dev_id, 1,
			  &id) ||
	    vdevice_alloc(NULL, second.fd, second.viommu_id, second.dev_id, 1,
			  &id))
		die("IOMMU_VDEVICE_ALLOC");
	for (i = 0; i != 2; i++) {
		workers[0].nested = i;
		workers[1].nested = i;
		workers[0].vm = first;
		workers[1].vm = first;
		parallel(i ? "nested HWPT allocate + destroy|same vIOMMU" :
			     "invalidate, 1 entry|same vIOMMU",
			 workers);
		if (!i) {
			/* Its device's vDEVICE must be on it */
			if (device_open(first.fd, first.ioas_id,
					&workers[1].vm.dev,
					&workers[1].vm.dev_id))
				die("a mock device");
		}
		if (viommu_alloc(NULL, first.fd, workers[1].vm.dev_id,
				 first.parent_id, &workers[1].vm.viommu_id))
			die("IOMMU_VIOMMU_ALLOC");
		if (!i && vdevice_alloc(NULL, first.fd, workers[1].vm.viommu_id,
					workers[1].vm.dev_id, 1, &id))
			die("IOMMU_VDEVICE_ALLOC");
		parallel(i ? "nested HWPT allocate + destroy|two vIOMMUs of one file" :
			     "invalidate, 1 entry|two vIOMMUs of one file",
			 workers);
		workers[1].vm = second;
		parallel(i ? "nested HWPT allocate + destroy|two files" :
			     "invalidate, 1 entry|two files",
			 workers);
	}
}

int main(int argc, char **argv)
{
	unsigned int i;

	setvbuf(stdout, NULL, _IOFBF, 1 << 16);
	measure_overhead();
	if (MOCK && argc == 2 && !strcmp(argv[1], "parallel")) {
		bench_parallel();
		return 0;
	}
	if (!MOCK && argc == 2 && !strcmp(argv[1], "commands")) {
		bench_commands();
		return 0;
	}
	check_clock();
	if (argc == 2 && !strcmp(argv[1], "table")) {
		bench_table();
		return 0;
	}
	if (MOCK && argc == 2 && !strcmp(argv[1], "plot")) {
		bench_plot();
		return 0;
	}
	if (argc == 3 && !strcmp(argv[1], "trace")) {
		for (i = 0; i != ARRAY_SIZE(rows); i++)
			if (!strcmp(rows[i].key, argv[2]))
				traced = &rows[i];
		if (traced) {
			bench_table();
			return 0;
		}
	}
	fprintf(stderr, "usage: bench table | %s | trace KEY\nThe keys:",
		MOCK ? "plot | parallel" : "commands");
	for (i = 0; i != ARRAY_SIZE(rows); i++)
		fprintf(stderr, " %s", rows[i].key);
	fprintf(stderr, "\n");
	return 2;
}
