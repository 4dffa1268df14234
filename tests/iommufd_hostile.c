// SPDX-License-Identifier: GPL-2.0-only
/*
 * A hostile caller: threads of two processes that share iommufds call
 * everything that there is about vIOMMUs, mostly with arguments that are right
 * but for a field, an ID, the size or where they are in memory, sometimes with
 * random bytes. There is no state to check but this: a call succeeds, or fails
 * with an error that is documented for it. What else may go wrong the kernel
 * tells.
 *
 * Every round has files and processes of its own, so what is alive is limited,
 * and files are closed and processes killed with whatever there is.
 *
 * Usage: iommufd_hostile [seconds [seed]]
 */
#define _GNU_SOURCE
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/wait.h>
#include <time.h>

#define __EXPORTED_HEADERS__
#include "../kselftest.h"
#include "iommufd_utils.h"
#include "series.h"

#define NUM_PROCS 2
#define NUM_THREADS 3
#define NUM_FILES 2
#define NUM_IOMMUS 2
/* How many of a kind a file is meant to have, and a process of event queues */
#define NUM_IDS 6
#define NUM_FDS 12
#define NUM_QUEUE_PAGES 4
/* What each thread maps regions into */
#define WINDOW_PAGES 16

#define ROUND_MS 1500
/* Much more than that, on the slowest of kernels */
#define HANG_SECONDS 40

/*
 * The errors that are documented, in iommufd.h for the ioctl or for all of
 * them: EINVAL and E2BIG for the size, EFAULT for the argument. ENOMEM is not
 * among them, since nothing here is so large that it may fail. For the mock's
 * commands, what stands in for a driver gives.
 */
#define MAX_ERRORS 11

/* For a queue that is too long or, in 7.3, needs one that comes or goes just then */
#ifdef SERIES_7_3
#define HW_QUEUE_ERRORS EOVERFLOW, ERANGE, EBUSY
#else
#define HW_QUEUE_ERRORS EOVERFLOW
#endif

enum op {
	OP_VIOMMU_ALLOC,
	OP_VDEVICE_ALLOC,
	OP_PARENT_ALLOC,
	OP_NESTED_ALLOC,
	OP_INVALIDATE,
	OP_VEVENTQ_ALLOC,
	OP_READ,
	OP_POLL,
	OP_CLOSE,
	OP_HW_QUEUE_ALLOC,
	OP_MMAP,
	OP_MUNMAP,
	OP_MPROTECT,
	OP_MREMAP,
	OP_ACCESS,
	OP_DESTROY,
	OP_NO_IOCTL,
	OP_PLUG,
	OP_REPLACE,
	OP_EVENT,
	OP_MAP,
	OP_UNMAP,
	OP_REGISTER,
	OP_UNREGISTER,
	OP_FORK,
	OP_NUM,
};

static const struct {
	const char *name;
	/* Of 1000 */
	unsigned int chance;
	int errors[MAX_ERRORS];
	bool never;
} ops[OP_NUM] = {
	[OP_VIOMMU_ALLOC] = { "viommu alloc", 70,
			      { EINVAL, E2BIG, EFAULT, EOPNOTSUPP, ENOENT,
				ENODEV } },
	[OP_VDEVICE_ALLOC] = { "vdevice alloc", 80,
			       { EINVAL, E2BIG, EFAULT, ENOENT, EEXIST,
				 ENODEV } },
	[OP_PARENT_ALLOC] = { "parent alloc", 40,
			      { EINVAL, E2BIG, EFAULT, EOPNOTSUPP, ENOENT,
				ENODEV } },
	[OP_NESTED_ALLOC] = { "nested alloc", 80,
			      { EINVAL, E2BIG, EFAULT, EOPNOTSUPP, ENOENT,
				ENODEV } },
	[OP_INVALIDATE] = { "invalidate", 102,
			    { EINVAL, E2BIG, EFAULT, EOPNOTSUPP, ENOENT,
			      ENODEV } },
	[OP_VEVENTQ_ALLOC] = { "veventq alloc", 70,
			       { EINVAL, E2BIG, EFAULT, EOPNOTSUPP, ENOENT,
				 EEXIST, ENODEV } },
	/* EBADF: another thread has closed it */
	[OP_READ] = { "read", 60, { EINVAL, EFAULT, ESPIPE, ENODEV, EBADF } },
	[OP_POLL] = { "poll", 20, { EBADF } },
	[OP_CLOSE] = { "close", 20, { EBADF } },
	/* EIO is the mock's, for a queue that comes before the one it needs */
	[OP_HW_QUEUE_ALLOC] = { "hw queue alloc", 80,
				{ EINVAL, E2BIG, EFAULT, EOPNOTSUPP,
				  HW_QUEUE_ERRORS, ENOENT, EEXIST, EIO,
				  ENODEV } },
	/* Those of all memory, too: EOVERFLOW is one */
	[OP_MMAP] = { "mmap", 50, { ENXIO, EINVAL, EPERM, EOVERFLOW } },
	[OP_MUNMAP] = { "munmap", 15, { EINVAL } },
	[OP_MPROTECT] = { "mprotect", 20, { EACCES, EINVAL, ENOMEM } },
	[OP_MREMAP] = { "mremap", 15, { EINVAL, EFAULT, ENOMEM } },
	[OP_ACCESS] = { "access", 30, { EFAULT } },
	[OP_DESTROY] = { "destroy", 60,
			 { EINVAL, E2BIG, EFAULT, ENOENT, EBUSY } },
	[OP_NO_IOCTL] = { "no ioctl", 5, { ENOTTY, EFAULT }, .never = true },
	[OP_PLUG] = { "plug", 16, { ENOENT, EINVAL, ENODEV } },
	[OP_REPLACE] = { "replace", 70, { ENOENT, EINVAL, ENODEV } },
	[OP_EVENT] = { "event", 68, { ENOENT, EOPNOTSUPP, ENODEV } },
	[OP_MAP] = { "map", 10, { ENOENT, EEXIST } },
	[OP_UNMAP] = { "unmap", 10, { ENOENT, EBUSY } },
	[OP_REGISTER] = { "register", 3, {} },
	[OP_UNREGISTER] = { "unregister", 3, { ENOENT } },
	[OP_FORK] = { "fork", 3, {} },
};

enum kind {
	KIND_IOAS,
	/* The mock's object, and the iommufd device that came with it */
	KIND_STDEV,
	KIND_DEVICE,
	KIND_PARENT,
	KIND_VIOMMU,
	KIND_VDEVICE,
	KIND_NESTED,
	KIND_VEVENTQ,
	KIND_HW_QUEUE,
	KIND_NUM,
};

struct file_state {
	uint32_t id[KIND_NUM][NUM_IDS];
	uint32_t destroyed[8];
	uint64_t region[NUM_IDS];
};

/* Everything here is read and written by all at any time */
struct shared {
	struct file_state files[NUM_FILES];
	uint32_t iommu_id[NUM_IOMMUS];
	uint64_t done[OP_NUM];
	uint64_t refused[OP_NUM][MAX_ERRORS];
	uint64_t nothing[OP_NUM];
	uint32_t stop;
	uint32_t bad_op;
	int bad_errno;
};

/* Where an argument is */
enum place {
	PLACE_GOOD,
	/* The structure, or what is said to be it, ends with the last page */
	PLACE_END,
	/* A part of it is not there */
	PLACE_STRADDLE,
	PLACE_READONLY,
	PLACE_NULL,
	PLACE_UNMAPPED,
	/* A region of a vIOMMU */
	PLACE_REGION,
	PLACE_NUM,
};

/* Two pages twice, once writable and once not, with nothing after them */
struct memory {
	uint8_t *page;
	uint8_t *readonly;
};

struct worker {
	uint64_t state;
	/*
	 * Which of each kind a call is most likely about, so that they go
	 * together
	 */
	unsigned int slot;
	struct memory arg;
	struct memory data;
	uint8_t *window;
	pthread_t thread;
};

static struct shared *shared;
static int files[NUM_FILES];
/* To access memory through it, which does not end with a signal */
static int sink;

/* Of this process */
static int event_fds[NUM_FDS];

#define get(var) __atomic_load_n(&(var), __ATOMIC_RELAXED)
#define set(var, value) __atomic_store_n(&(var), value, __ATOMIC_RELAXED)
#define swap(var, value) __atomic_exchange_n(&(var), value, __ATOMIC_RELAXED)
#define count(var) __atomic_add_fetch(&(var), 1, __ATOMIC_RELAXED)

static bool one_in(struct worker *w, unsigned int n)
{
	return !rnd(&w->state, n);
}

static uint32_t rnd_word(struct worker *w, uint32_t old)
{
	switch (rnd(&w->state, 6)) {
	case 0:
		return 0;
	case 1:
		return UINT32_MAX;
	case 2:
		return old ^ 1U << rnd(&w->state, 32);
	case 3:
		return old + 1 - 2 * rnd(&w->state, 2);
	case 4:
		return rnd(&w->state, 64);
	default:
		return rnd64(&w->state) >> 32;
	}
}

static unsigned int rnd_slot(struct worker *w)
{
	return one_in(w, 5) ? rnd(&w->state, NUM_IDS) : w->slot;
}

static uint32_t rnd_id(struct worker *w, struct file_state *file,
		       enum kind kind)
{
	unsigned int dice = rnd(&w->state, 100);

	if (dice >= 10)
		return get(file->id[kind][rnd_slot(w)]);
	if (dice >= 6)
		return get(file->id[rnd(&w->state, KIND_NUM)][rnd(&w->state, NUM_IDS)]);
	if (dice >= 3)
		return get(file->destroyed[rnd(&w->state, 8)]);
	return rnd_word(w, rnd(&w->state, 100));
}

static void forget(struct worker *w, struct file_state *file, uint32_t id)
{
	set(file->destroyed[rnd(&w->state, 8)], id);
}

/*
 * The one that was there goes, or else the new one, so that there are not too
 * many
 */
static void remember(struct worker *w, int fd, struct file_state *file,
		     enum kind kind, uint32_t id)
{
	uint32_t *slot = &file->id[kind][w->slot];
	uint32_t old = swap(*slot, id);

	/* A device is destroyed by the mock's object */
	if (!old || kind == KIND_DEVICE)
		return;
	if (_test_ioctl_destroy(fd, old) && errno == EBUSY && !one_in(w, 8)) {
		old = swap(*slot, old);
		_test_ioctl_destroy(fd, old);
	}
	forget(w, file, old);
}

static int memory_init(struct memory *memory)
{
	int fd = memfd_create("hostile", MFD_CLOEXEC);
	uint8_t *page, *readonly;

	if (fd == -1 || ftruncate(fd, 2 * PAGE_SIZE))
		return -1;
	page = mmap(NULL, 3 * PAGE_SIZE, PROT_NONE,
		    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	readonly = mmap(NULL, 3 * PAGE_SIZE, PROT_NONE,
			MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (page == MAP_FAILED || readonly == MAP_FAILED)
		return -1;
	if (mmap(page, 2 * PAGE_SIZE, PROT_READ | PROT_WRITE,
		 MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED ||
	    mmap(readonly, 2 * PAGE_SIZE, PROT_READ, MAP_SHARED | MAP_FIXED, fd,
		 0) == MAP_FAILED)
		return -1;
	memory->page = page;
	memory->readonly = readonly;
	return close(fd);
}

/* Put it somewhere, and say where the kernel is to look for it */
static void *put(struct worker *w, struct memory *memory, const void *from,
		 size_t size)
{
	enum place place = one_in(w, 8) ? rnd(&w->state, PLACE_NUM) : PLACE_GOOD;
	size_t offset = rnd(&w->state, 64) * 8;

	switch (place) {
	case PLACE_END:
		offset = 2 * PAGE_SIZE - size;
		break;
	case PLACE_STRADDLE:
		offset = 2 * PAGE_SIZE - (size ? rnd(&w->state, size) : 0);
		size = 2 * PAGE_SIZE - offset;
		break;
	case PLACE_NULL:
		return NULL;
	case PLACE_UNMAPPED:
		return memory->page + 2 * PAGE_SIZE + offset;
	case PLACE_REGION:
		return w->window + PAGE_SIZE * rnd(&w->state, WINDOW_PAGES) + offset;
	default:
		break;
	}
	memcpy(memory->page + offset, from, size);
	return (place == PLACE_READONLY ? memory->readonly : memory->page) +
	       offset;
}

/*
 * Call it with what is right, or nearly so. What the kernel has answered is
 * copied back if there is a good place where it was.
 */
static int call(struct worker *w, int fd, unsigned long cmd, void *arg,
		size_t size)
{
	uint32_t buf[64] = {};
	unsigned int dice = rnd(&w->state, 100), i;
	size_t given = size;
	uint8_t *where;
	int ret;

	memcpy(buf, arg, size);
	if (dice < 15) {
		for (i = 1 + rnd(&w->state, 2); i; i--) {
			unsigned int word = 1 + rnd(&w->state, size / 4 - 1);

			buf[word] = rnd_word(w, buf[word]);
		}
	} else if (dice < 23) {
		given = rnd(&w->state, size + 65);
		if (given > size && one_in(w, 2))
			((uint8_t *)buf)[size + rnd(&w->state, given - size)] = 1;
	} else if (dice < 26) {
		for (i = 0; i != ARRAY_SIZE(buf); i++)
			buf[i] = rnd64(&w->state) >> 32;
		given = one_in(w, 4) ? buf[0] : size;
	}
	buf[0] = given;
	if (given > sizeof(buf))
		given = sizeof(buf);

	where = put(w, &w->arg, buf, given < 4 ? 4 : given);
	ret = ioctl(fd, cmd, where);
	if (!ret && where >= w->arg.page &&
	    where + size <= w->arg.page + 2 * PAGE_SIZE)
		memcpy(arg, where, size);
	return ret;
}

static int do_viommu_alloc(struct worker *w, int fd, struct file_state *file)
{
	struct iommu_viommu_selftest data = { .in_data = rnd(&w->state, 1000) };
	struct iommu_viommu_alloc cmd = {
		.type = IOMMU_VIOMMU_TYPE_SELFTEST,
		.dev_id = rnd_id(w, file, KIND_DEVICE),
		.hwpt_id = rnd_id(w, file, KIND_PARENT),
	};
	uint8_t *where = NULL;

	if (!one_in(w, 4)) {
		cmd.data_len = one_in(w, 10) ? rnd(&w->state, 5000) : sizeof(data);
		where = put(w, &w->data, &data, sizeof(data));
		cmd.data_uptr = (uintptr_t)where;
	}
	if (call(w, fd, IOMMU_VIOMMU_ALLOC, &cmd, sizeof(cmd)))
		return -1;
	if (!cmd.out_viommu_id)
		return 0;
	remember(w, fd, file, KIND_VIOMMU, cmd.out_viommu_id);
	if (where >= w->data.page &&
	    where + sizeof(data) <= w->data.page + 2 * PAGE_SIZE) {
		memcpy(&data, where, sizeof(data));
		set(file->region[w->slot], data.out_mmap_offset);
	}
	return 0;
}

static int do_vdevice_alloc(struct worker *w, int fd, struct file_state *file)
{
	struct iommu_vdevice_alloc cmd = {
		.viommu_id = rnd_id(w, file, KIND_VIOMMU),
		.dev_id = rnd_id(w, file, KIND_DEVICE),
		.virt_id = one_in(w, 10) ? rnd64(&w->state) : rnd(&w->state, 8),
	};

	if (call(w, fd, IOMMU_VDEVICE_ALLOC, &cmd, sizeof(cmd)))
		return -1;
	if (cmd.out_vdevice_id)
		remember(w, fd, file, KIND_VDEVICE, cmd.out_vdevice_id);
	return 0;
}

static int do_hwpt_alloc(struct worker *w, int fd, struct file_state *file,
			 bool nested)
{
	struct iommu_hwpt_selftest data = { .iotlb = IOMMU_TEST_IOTLB_DEFAULT };
	struct iommu_hwpt_alloc cmd = {
		.dev_id = rnd_id(w, file, KIND_DEVICE),
	};

	if (nested) {
		cmd.pt_id = rnd_id(w, file,
				   one_in(w, 5) ? KIND_PARENT : KIND_VIOMMU);
		cmd.data_type = IOMMU_HWPT_DATA_SELFTEST;
		cmd.data_len = one_in(w, 10) ? rnd(&w->state, 5000) : sizeof(data);
		cmd.data_uptr = (uintptr_t)put(w, &w->data, &data,
					       sizeof(data));
		if (one_in(w, 20))
			cmd.flags = IOMMU_HWPT_FAULT_ID_VALID;
	} else {
		cmd.pt_id = rnd_id(w, file, KIND_IOAS);
		cmd.flags = IOMMU_HWPT_ALLOC_NEST_PARENT;
	}
	if (call(w, fd, IOMMU_HWPT_ALLOC, &cmd, sizeof(cmd)))
		return -1;
	if (cmd.out_hwpt_id)
		remember(w, fd, file, nested ? KIND_NESTED : KIND_PARENT,
			 cmd.out_hwpt_id);
	return 0;
}

static int do_invalidate(struct worker *w, int fd, struct file_state *file)
{
	struct iommu_viommu_invalidate_selftest entries[100] = {};
	struct iommu_hwpt_invalidate cmd = {
		/* The same number for both */
		.data_type = IOMMU_VIOMMU_INVALIDATE_DATA_SELFTEST,
		.entry_num = rnd(&w->state, one_in(w, 4) ? ARRAY_SIZE(entries) : 3),
		.entry_len = sizeof(entries[0]),
	};
	unsigned int i;

	if (one_in(w, 4)) {
		cmd.hwpt_id = rnd_id(w, file, KIND_NESTED);
		cmd.entry_len = sizeof(struct iommu_hwpt_invalidate_selftest);
		for (i = 0; i != cmd.entry_num; i++)
			((uint32_t *)entries)[i * 2 + 1] =
				rnd(&w->state, MOCK_NESTED_DOMAIN_IOTLB_NUM);
	} else {
		cmd.hwpt_id = rnd_id(w, file, KIND_VIOMMU);
		for (i = 0; i != cmd.entry_num; i++) {
			entries[i].vdev_id = rnd(&w->state, 8);
			entries[i].cache_id = rnd(&w->state, MOCK_DEV_CACHE_NUM);
		}
	}
	if (one_in(w, 10))
		cmd.entry_len = rnd(&w->state, 5000);
	if (one_in(w, 20))
		cmd.entry_num = rnd64(&w->state) & 0x1fffff;
	if (one_in(w, 10))
		((uint32_t *)entries)[rnd(&w->state, 300)] = rnd64(&w->state) >> 32;
	cmd.data_uptr = (uintptr_t)put(w, &w->data, entries, sizeof(entries));
	return call(w, fd, IOMMU_HWPT_INVALIDATE, &cmd, sizeof(cmd));
}

static int do_veventq_alloc(struct worker *w, int fd, struct file_state *file)
{
	struct iommu_veventq_alloc cmd = {
		.viommu_id = rnd_id(w, file, KIND_VIOMMU),
		.type = IOMMU_VEVENTQ_TYPE_SELFTEST,
		.veventq_depth = 1 + rnd(&w->state, one_in(w, 4) ? 1 << 19 : 8),
		.out_veventq_fd = -1,
	};
	int old;

	/* Another type is as good, if nobody sends events of it */
	if (one_in(w, 8))
		cmd.type = 1 + rnd(&w->state, 4);
	if (call(w, fd, IOMMU_VEVENTQ_ALLOC, &cmd, sizeof(cmd)))
		return -1;
	if ((int)cmd.out_veventq_fd == -1)
		return 0;
	old = swap(event_fds[rnd(&w->state, NUM_FDS)], cmd.out_veventq_fd);
	if (old != -1)
		close(old);
	remember(w, fd, file, KIND_VEVENTQ, cmd.out_veventq_id);
	return 0;
}

static int do_read(struct worker *w)
{
	static const uint8_t zero[4096];
	int fd = get(event_fds[rnd(&w->state, NUM_FDS)]);
	size_t size = rnd(&w->state, one_in(w, 2) ? 200 : sizeof(zero));
	ssize_t ret;
	void *where;

	if (fd == -1)
		return 1;
	where = put(w, &w->data, zero, size);
	if (one_in(w, 20))
		ret = pread(fd, where, size, rnd64(&w->state) >> 1);
	else
		ret = read(fd, where, size);
	return ret < 0 ? -1 : !ret;
}

static int do_poll(struct worker *w)
{
	struct pollfd pollfd = {
		.fd = get(event_fds[rnd(&w->state, NUM_FDS)]),
		.events = POLLIN,
	};
	int ret;

	if (pollfd.fd == -1)
		return 1;
	ret = poll(&pollfd, 1, rnd(&w->state, 2));
	if (ret > 0 && (pollfd.revents & POLLNVAL)) {
		errno = EBADF;
		return -1;
	}
	return ret < 0 ? -1 : !ret;
}

static int do_close(struct worker *w)
{
	int fd = swap(event_fds[rnd(&w->state, NUM_FDS)], -1);

	return fd == -1 ? 1 : close(fd);
}

static int do_hw_queue_alloc(struct worker *w, int fd, struct file_state *file)
{
	struct iommu_hw_queue_alloc cmd = {
		.viommu_id = rnd_id(w, file, KIND_VIOMMU),
		.type = IOMMU_HW_QUEUE_TYPE_SELFTEST,
		.index = one_in(w, 10) ? rnd_word(w, 0) : rnd(&w->state, 2),
		.nesting_parent_iova = MOCK_APERTURE_START +
				       PAGE_SIZE * rnd(&w->state, NUM_QUEUE_PAGES),
		.length = PAGE_SIZE,
	};

	if (one_in(w, 8))
		cmd.length = one_in(w, 2) ? rnd64(&w->state) : rnd(&w->state, 5 * PAGE_SIZE);
	if (one_in(w, 8))
		cmd.nesting_parent_iova = one_in(w, 2) ?
						  rnd64(&w->state) :
						  cmd.nesting_parent_iova +
							  rnd(&w->state, PAGE_SIZE);
	if (call(w, fd, IOMMU_HW_QUEUE_ALLOC, &cmd, sizeof(cmd)))
		return -1;
	if (cmd.out_hw_queue_id)
		remember(w, fd, file, KIND_HW_QUEUE, cmd.out_hw_queue_id);
	return 0;
}

static void *rnd_window(struct worker *w)
{
	return w->window + PAGE_SIZE * rnd(&w->state, WINDOW_PAGES - 1);
}

static int do_mmap(struct worker *w, int fd, struct file_state *file)
{
	uint64_t offset = get(file->region[rnd(&w->state, NUM_IDS)]);
	int prot = PROT_READ | PROT_WRITE;
	size_t length = 2 * PAGE_SIZE;
	int flags = MAP_SHARED;

	if (one_in(w, 10))
		offset = one_in(w, 2) ? rnd64(&w->state) : rnd(&w->state, 40) * PAGE_SIZE;
	if (one_in(w, 10))
		length = rnd(&w->state, 3) * PAGE_SIZE;
	if (one_in(w, 10))
		prot = rnd(&w->state, 8);
	if (one_in(w, 20))
		flags = MAP_PRIVATE;
	if (mmap(rnd_window(w), length, prot, flags | MAP_FIXED, fd, offset) ==
	    MAP_FAILED)
		return -1;
	return 0;
}

static int do_mremap(struct worker *w)
{
	void *from = rnd_window(w), *to = rnd_window(w), *got;
	size_t length = PAGE_SIZE * (1 + rnd(&w->state, 2));
	size_t new_length = PAGE_SIZE * (1 + rnd(&w->state, 2));

	got = mremap(from, length, new_length, MREMAP_MAYMOVE | MREMAP_FIXED,
		     to);
	return got == MAP_FAILED ? -1 : 0;
}

/* A region, a hole or something that is no file: all EFAULT or not */
static int do_access(struct worker *w)
{
	uint32_t *where = rnd_window(w);
	ssize_t ret;

	if (one_in(w, 2))
		ret = pwrite(sink, where, sizeof(*where), 0);
	else
		ret = pread(sink, where, sizeof(*where), 0);
	return ret < 0 ? -1 : !ret;
}

static int do_destroy(struct worker *w, int fd, struct file_state *file)
{
	static const enum kind kinds[] = {
		KIND_VDEVICE, KIND_NESTED,   KIND_HW_QUEUE,
		KIND_VEVENTQ, KIND_HW_QUEUE, KIND_VIOMMU,
	};
	struct iommu_destroy cmd = {
		.id = rnd_id(w, file, kinds[rnd(&w->state, ARRAY_SIZE(kinds))]),
	};

	if (one_in(w, 40))
		cmd.id = rnd_id(w, file, rnd(&w->state, KIND_NUM));
	if (call(w, fd, IOMMU_DESTROY, &cmd, sizeof(cmd)))
		return -1;
	forget(w, file, cmd.id);
	return 0;
}

/* Numbers that mean something in other kernels */
static int do_no_ioctl(struct worker *w, int fd)
{
#ifdef SERIES_7_3
	static const unsigned int nr[] = { 0x96, 0x97, 0x9f };
#else
	static const unsigned int nr[] = { 0x8f, 0x92, 0x95 };
#endif
	uint32_t arg[8] = { sizeof(arg) };

	return call(w, fd, _IO(IOMMUFD_TYPE, nr[rnd(&w->state, ARRAY_SIZE(nr))]), arg,
		    sizeof(arg));
}

static int do_plug(struct worker *w, int fd, struct file_state *file)
{
	uint32_t iommu_id = 0, stdev_id, device_id;
	uint32_t flags = 0;

	if (one_in(w, 4))
		iommu_id = get(shared->iommu_id[rnd(&w->state, NUM_IOMMUS)]);
	if (one_in(w, 10))
		flags = MOCK_FLAGS_DEVICE_BIND_ONLY;
	if (_test_cmd_mock_domain_iommu(fd, rnd_id(w, file, KIND_IOAS),
					iommu_id, flags, &stdev_id, NULL,
					&device_id))
		return -1;
	remember(w, fd, file, KIND_STDEV, stdev_id);
	remember(w, fd, file, KIND_DEVICE, device_id);
	return 0;
}

static int do_replace(struct worker *w, int fd, struct file_state *file)
{
	static const enum kind kinds[] = {
		KIND_NESTED, KIND_NESTED, KIND_NESTED, KIND_PARENT, KIND_IOAS,
	};
	enum kind kind = kinds[rnd(&w->state, ARRAY_SIZE(kinds))];

	return _test_cmd_mock_domain_replace(fd, rnd_id(w, file, KIND_STDEV),
					     rnd_id(w, file, kind), NULL);
}

/* So much has to fit for an event that it hardly does by chance */
static void prepare_event(struct worker *w, int fd, struct file_state *file)
{
	struct iommu_hwpt_selftest data = { .iotlb = IOMMU_TEST_IOTLB_DEFAULT };
	uint32_t viommu_id = get(file->id[KIND_VIOMMU][w->slot]);
	uint32_t device_id = get(file->id[KIND_DEVICE][w->slot]);
	uint32_t id;
	int event_fd;

	if (!_test_cmd_vdevice_alloc(fd, viommu_id, device_id, rnd(&w->state, 8), &id))
		remember(w, fd, file, KIND_VDEVICE, id);
	if (!_test_cmd_veventq_alloc(fd, viommu_id, IOMMU_VEVENTQ_TYPE_SELFTEST,
				     1 + rnd(&w->state, 8), &id, &event_fd)) {
		event_fd = swap(event_fds[rnd(&w->state, NUM_FDS)], event_fd);
		if (event_fd != -1)
			close(event_fd);
		remember(w, fd, file, KIND_VEVENTQ, id);
	}
	if (_test_cmd_hwpt_alloc(fd, device_id, viommu_id, 0, 0, &id,
				 IOMMU_HWPT_DATA_SELFTEST, &data, sizeof(data)))
		return;
	remember(w, fd, file, KIND_NESTED, id);
	_test_cmd_mock_domain_replace(fd, get(file->id[KIND_STDEV][w->slot]),
				      id, NULL);
}

static int do_event(struct worker *w, int fd, struct file_state *file)
{
	if (one_in(w, 4))
		prepare_event(w, fd, file);
	return _test_cmd_trigger_vevent(fd, rnd_id(w, file, KIND_DEVICE),
					one_in(w, 4));
}

static int do_map(struct worker *w, int fd, struct file_state *file, bool map)
{
	unsigned int page = rnd(&w->state, NUM_QUEUE_PAGES);
	__u64 iova = MOCK_APERTURE_START + PAGE_SIZE * page;
	uint32_t id = rnd_id(w, file, KIND_IOAS);

	if (!map)
		return _test_ioctl_ioas_unmap(fd, id, iova, PAGE_SIZE, NULL);
	return _test_ioctl_ioas_map(fd, id, buffer + PAGE_SIZE * page,
				    PAGE_SIZE, &iova,
				    IOMMU_IOAS_MAP_FIXED_IOVA |
					    IOMMU_IOAS_MAP_WRITEABLE |
					    IOMMU_IOAS_MAP_READABLE);
}

static int do_register(struct worker *w, int fd)
{
	uint32_t id;

	if (_test_cmd_iommu_register(fd, 0, &id))
		return -1;
	id = swap(shared->iommu_id[rnd(&w->state, NUM_IOMMUS)], id);
	if (id)
		_test_cmd_iommu_unregister(fd, id);
	return 0;
}

static int do_unregister(struct worker *w, int fd)
{
	uint32_t id = swap(shared->iommu_id[rnd(&w->state, NUM_IOMMUS)], 0);

	return id ? _test_cmd_iommu_unregister(fd, id) : 1;
}

/* What is mapped and open is so twice for a moment */
static int do_fork(void)
{
	pid_t pid = fork();

	if (!pid)
		_exit(0);
	return pid < 0 || waitpid(pid, NULL, 0) != pid ? -1 : 0;
}

/* 0, -1 with errno, or 1 if there was nothing to do it with */
static int do_op(struct worker *w, enum op op)
{
	unsigned int i = rnd(&w->state, NUM_FILES);
	struct file_state *file = &shared->files[i];
	int fd = files[i];

	w->slot = rnd(&w->state, NUM_IDS);
	switch (op) {
	case OP_VIOMMU_ALLOC:
		return do_viommu_alloc(w, fd, file);
	case OP_VDEVICE_ALLOC:
		return do_vdevice_alloc(w, fd, file);
	case OP_PARENT_ALLOC:
	case OP_NESTED_ALLOC:
		return do_hwpt_alloc(w, fd, file, op == OP_NESTED_ALLOC);
	case OP_INVALIDATE:
		return do_invalidate(w, fd, file);
	case OP_VEVENTQ_ALLOC:
		return do_veventq_alloc(w, fd, file);
	case OP_READ:
		return do_read(w);
	case OP_POLL:
		return do_poll(w);
	case OP_CLOSE:
		return do_close(w);
	case OP_HW_QUEUE_ALLOC:
		return do_hw_queue_alloc(w, fd, file);
	case OP_MMAP:
		return do_mmap(w, fd, file);
	case OP_MUNMAP:
		return munmap(rnd_window(w), PAGE_SIZE * rnd(&w->state, 3));
	case OP_MPROTECT:
		return mprotect(rnd_window(w), PAGE_SIZE * (1 + rnd(&w->state, 2)),
				rnd(&w->state, 8));
	case OP_MREMAP:
		return do_mremap(w);
	case OP_ACCESS:
		return do_access(w);
	case OP_DESTROY:
		return do_destroy(w, fd, file);
	case OP_NO_IOCTL:
		return do_no_ioctl(w, fd);
	case OP_PLUG:
		return do_plug(w, fd, file);
	case OP_REPLACE:
		return do_replace(w, fd, file);
	case OP_EVENT:
		return do_event(w, fd, file);
	case OP_MAP:
	case OP_UNMAP:
		return do_map(w, fd, file, op == OP_MAP);
	case OP_REGISTER:
		return do_register(w, fd);
	case OP_UNREGISTER:
		return do_unregister(w, fd);
	case OP_FORK:
		return do_fork();
	default:
		return 1;
	}
}

static void *worker(void *arg)
{
	struct worker *w = arg;
	unsigned int dice, i;
	enum op op;
	int ret;

	while (!get(shared->stop)) {
		dice = rnd(&w->state, 1000);
		for (op = 0; dice >= ops[op].chance; op++)
			dice -= ops[op].chance;

		errno = 0;
		ret = do_op(w, op);
		if (ret > 0) {
			count(shared->nothing[op]);
			continue;
		}
		if (!ret && !ops[op].never) {
			count(shared->done[op]);
			continue;
		}
		for (i = 0; i != MAX_ERRORS; i++)
			if (errno && errno == ops[op].errors[i])
				break;
		if (i != MAX_ERRORS) {
			count(shared->refused[op][i]);
		} else {
			set(shared->bad_errno, errno);
			set(shared->bad_op, op + 1);
			set(shared->stop, 1);
		}
	}
	return NULL;
}

static pid_t start_process(uint64_t seed)
{
	static struct worker workers[NUM_THREADS];
	unsigned int i;
	pid_t pid;

	pid = fork();
	if (pid)
		return pid;
	memset(event_fds, 0xff, sizeof(event_fds));
	for (i = 0; i != NUM_THREADS; i++) {
		struct worker *w = &workers[i];

		w->state = seed * 64 + i + 1;
		assert(!memory_init(&w->arg) && !memory_init(&w->data));
		/* A page more, that regions do not run into others' */
		w->window = mmap(NULL, (WINDOW_PAGES + 4) * PAGE_SIZE,
				 PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		assert(w->window != MAP_FAILED);
	}
	for (i = 0; i != NUM_THREADS; i++)
		assert(!pthread_create(&workers[i].thread, NULL, worker,
				       &workers[i]));
	for (i = 0; i != NUM_THREADS; i++)
		pthread_join(workers[i].thread, NULL);
	_exit(0);
}

/* So much that everything can succeed, as long as nobody destroys it */
static int file_init(unsigned int n, struct worker *w)
{
	struct file_state *file = &shared->files[n];
	uint32_t ioas_id, stdev_id, device_id, parent_id, viommu_id;
	struct iommu_viommu_selftest data = {};
	int fd, i;

	memset(file, 0, sizeof(*file));
	fd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	files[n] = fd;
	if (fd == -1 || _test_ioctl_ioas_alloc(fd, &ioas_id))
		return -1;
	for (i = 0; i != NUM_IDS; i++) {
		file->id[KIND_IOAS][i] = ioas_id;
		if (_test_cmd_mock_domain(fd, ioas_id, &stdev_id, NULL,
					  &device_id))
			return -1;
		file->id[KIND_STDEV][i] = stdev_id;
		file->id[KIND_DEVICE][i] = device_id;
		if (_test_cmd_hwpt_alloc(fd, device_id, ioas_id, 0,
					 IOMMU_HWPT_ALLOC_NEST_PARENT,
					 &parent_id, IOMMU_HWPT_DATA_NONE, NULL,
					 0) ||
		    _test_cmd_viommu_alloc(fd, device_id, parent_id, 0,
					   IOMMU_VIOMMU_TYPE_SELFTEST, &data,
					   sizeof(data), &viommu_id))
			return -1;
		file->id[KIND_PARENT][i] = parent_id;
		file->id[KIND_VIOMMU][i] = viommu_id;
		file->region[i] = data.out_mmap_offset;
	}
	for (i = 0; i != NUM_QUEUE_PAGES; i++)
		while (do_map(w, fd, file, true) && errno != EEXIST)
			;
	return 0;
}

/* What is there of the mock and comes and goes */
struct left {
	uint64_t inits;
	uint64_t viommus;
	unsigned int devices;
	unsigned int iommus;
	unsigned int groups;
};

static void count_left(int fd, struct left *left)
{
	uint64_t destroys;

	if (_test_cmd_viommu_stats(fd, &left->inits, &destroys, NULL))
		ksft_exit_skip("no IOMMUFD_TEST\n");
	left->viommus = left->inits - destroys;
	left->devices = count_dir("/sys/bus/iommufd_mock/devices");
	left->iommus = count_dir("/sys/class/iommu");
	left->groups = count_dir("/sys/kernel/iommu_groups");
}

static bool nothing_left(const struct left *before, const struct left *after)
{
	if (before->viommus == after->viommus &&
	    before->devices == after->devices &&
	    before->iommus == after->iommus && before->groups == after->groups)
		return true;
	ksft_print_msg("left: %lld vIOMMUs, %d devices, %d IOMMUs, %d groups\n",
		       (long long)(after->viommus - before->viommus),
		       after->devices - before->devices,
		       after->iommus - before->iommus,
		       after->groups - before->groups);
	return false;
}

/* Every call ends, also when others do not */
static void hang(int sig)
{
	static const char text[] =
		"Bail out! a call does not end, see the kernel's log\n";
	int sysrq = open("/proc/sysrq-trigger", O_WRONLY);

	write(STDOUT_FILENO, text, sizeof(text) - 1);
	/* Who waits, and who runs */
	write(sysrq, "w", 1);
	write(sysrq, "l", 1);
	_exit(KSFT_FAIL);
}

static void run_round(struct worker *w, int fd, unsigned int ms)
{
	pid_t pid[NUM_PROCS];
	unsigned int i;

	alarm(HANG_SECONDS);
	for (i = 0; i != NUM_FILES; i++)
		if (file_init(i, w))
			ksft_exit_fail_msg("no file: %s\n", strerror(errno));
	set(shared->stop, 0);
	for (i = 0; i != NUM_PROCS; i++)
		pid[i] = start_process(rnd64(&w->state) >> 16 | 1ULL << 40);
	while (ms && !get(shared->stop)) {
		usleep(1000);
		ms--;
	}
	/* In the middle of whatever they are doing, or not */
	for (i = 0; i != NUM_PROCS; i++)
		if (one_in(w, 2))
			kill(pid[i], SIGKILL);
	set(shared->stop, 1);
	if (one_in(w, 2))
		do_unregister(w, fd);
	for (i = 0; i != NUM_FILES; i++)
		close(files[i]);
	/* Also for what those have forked who were killed */
	while (waitpid(-1, NULL, 0) > 0)
		;
	if (unregister_all(fd))
		ksft_exit_fail_msg("no IOMMU\n");
	memset(shared->iommu_id, 0, sizeof(shared->iommu_id));
}

static bool chances_fit(void)
{
	unsigned int sum = 0;
	enum op op;

	for (op = 0; op != OP_NUM; op++)
		sum += ops[op].chance;
	return sum == 1000;
}

static bool all_succeeded(void)
{
	enum op op;

	for (op = 0; op != OP_NUM; op++)
		if (!shared->done[op] && !ops[op].never)
			return false;
	return true;
}

static void print_summary(void)
{
	char text[256];
	unsigned int i;
	enum op op;
	int len;

	for (op = 0; op != OP_NUM; op++) {
		len = 0;
		text[0] = 0;
		for (i = 0; i != MAX_ERRORS; i++)
			if (shared->refused[op][i])
				len += snprintf(text + len, sizeof(text) - len,
						" %s %llu",
						strerrorname_np(ops[op].errors[i]),
						(unsigned long long)
							shared->refused[op][i]);
		ksft_print_msg("%-14s %8llu done, %llu nothing,%s\n",
			       ops[op].name,
			       (unsigned long long)shared->done[op],
			       (unsigned long long)shared->nothing[op], text);
	}
}

/* Small enough to be typed again */
static uint64_t random_seed(void)
{
	uint32_t seed;

	if (getrandom(&seed, sizeof(seed), 0) != sizeof(seed))
		ksft_exit_fail_msg("no seed\n");
	return seed;
}

int main(int argc, char *argv[])
{
	unsigned long seconds = argc > 1 ? strtoul(argv[1], NULL, 0) : 10;
	struct left before, after;
	struct worker w = {};
	bool clean = true;
	uint64_t seed;
	time_t end;
	int fd;

	PAGE_SIZE = sysconf(_SC_PAGE_SIZE);
	BUFFER_SIZE = PAGE_SIZE * NUM_QUEUE_PAGES;
	buffer = mmap(NULL, BUFFER_SIZE, PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	assert(buffer != MAP_FAILED);
	assert(chances_fit());
	signal(SIGALRM, hang);
	assert(!prctl(PR_SET_CHILD_SUBREAPER, 1));
	ksft_print_header();
	ksft_set_plan(3);
	seed = argc > 2 ? strtoull(argv[2], NULL, 0) & 0xffffffff : random_seed();
	w.state = seed | 1ULL << 40;
	ksft_print_msg("%lu seconds with seed %llu\n", seconds,
		       (unsigned long long)seed);

	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	sink = memfd_create("sink", MFD_CLOEXEC);
	if (shared == MAP_FAILED || sink == -1 || ftruncate(sink, PAGE_SIZE))
		ksft_exit_fail_msg("no memory\n");
	fd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	if (fd < 0)
		ksft_exit_skip("no /dev/iommu\n");
	if (unregister_all(fd))
		ksft_exit_fail_msg("no IOMMU\n");
	memset(shared->iommu_id, 0, sizeof(shared->iommu_id));
	count_left(fd, &before);
	after = before;

	/* On a slow machine longer, until every call has succeeded */
	end = time(NULL) + seconds;
	while (!shared->bad_op && clean &&
	       (time(NULL) < end || (seconds >= 10 && !all_succeeded() &&
				     time(NULL) < end + 19 * seconds))) {
		run_round(&w, fd, 1 + rnd(&w.state, ROUND_MS));
		count_left(fd, &after);
		clean = nothing_left(&before, &after);
	}

	print_summary();
	if (shared->bad_op)
		ksft_print_msg("%s gave the error %d, %s\n",
			       ops[shared->bad_op - 1].name, shared->bad_errno,
			       strerror(shared->bad_errno));
	ksft_test_result(!shared->bad_op, "every error fits\n");
	ksft_test_result(all_succeeded() || seconds < 10, "every call succeeds at times\n");

	ksft_print_msg("%llu vIOMMUs made\n",
		       (unsigned long long)(after.inits - before.inits));
	ksft_test_result(clean, "nothing is left\n");
	ksft_finished();
}
