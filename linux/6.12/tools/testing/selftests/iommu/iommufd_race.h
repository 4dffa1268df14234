/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What tests share that have an IOMMU go away: a VM to have it go away under,
 * calls in threads of their own, and parking them in the mock driver.
 */
#ifndef __IOMMUFD_RACE_H
#define __IOMMUFD_RACE_H

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <linux/userfaultfd.h>

#include "iommufd_utils.h"

static __attribute__((constructor)) void setup_sizes(void)
{
	PAGE_SIZE = sysconf(_SC_PAGE_SIZE);
	BUFFER_SIZE = PAGE_SIZE * 64;
	buffer = mmap(NULL, BUFFER_SIZE, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert(buffer != MAP_FAILED);
}

static void sleep_ms(int ms)
{
	struct timespec ts = {
		.tv_sec = ms / 1000,
		.tv_nsec = ms % 1000 * 1000000,
	};

	nanosleep(&ts, NULL);
}

/* For ten seconds at least. It leaves the errno of the last try. */
#define WAIT_WHILE(cond)                             \
	({                                           \
		int __tries = 0;                     \
						     \
		while (cond) {                       \
			ASSERT_GT(10000, __tries++); \
			sleep_ms(1);                 \
		}                                    \
	})

/* What a VMM has: a file, a device behind the IOMMU, a nesting parent */
struct vm {
	int fd;
	uint32_t ioas_id;
	uint32_t stdev_id;
	uint32_t device_id;
	uint32_t parent_id;
};

static int vm_plug(struct vm *vm, uint32_t iommu_id)
{
	return _test_cmd_mock_domain_iommu(vm->fd, vm->ioas_id, iommu_id, 0,
					   &vm->stdev_id, NULL, &vm->device_id);
}

static int vm_unplug(struct vm *vm)
{
	return _test_ioctl_destroy(vm->fd, vm->stdev_id);
}

/* Another device, which is not attached to anything */
static int vm_bind(struct vm *vm, uint32_t iommu_id, uint32_t *stdev_id,
		   uint32_t *device_id)
{
	return _test_cmd_mock_domain_iommu(vm->fd, 0, iommu_id,
					   MOCK_FLAGS_DEVICE_BIND_ONLY,
					   stdev_id, NULL, device_id);
}

static int vm_destroy(struct vm *vm, uint32_t id)
{
	return _test_ioctl_destroy(vm->fd, id);
}

static int vm_attach(struct vm *vm, uint32_t pt_id)
{
	return _test_cmd_mock_domain_replace(vm->fd, vm->stdev_id, pt_id, NULL);
}

static int vm_hwpt(struct vm *vm, uint32_t flags, uint32_t *hwpt_id)
{
	return _test_cmd_hwpt_alloc(vm->fd, vm->device_id, vm->ioas_id, 0,
				    flags, hwpt_id, IOMMU_HWPT_DATA_NONE, NULL,
				    0);
}

static struct iommu_hwpt_selftest nested_data = {
	.iotlb = IOMMU_TEST_IOTLB_DEFAULT,
};

static int alloc_nested(int fd, uint32_t device_id, uint32_t pt_id,
			uint32_t *hwpt_id)
{
	return _test_cmd_hwpt_alloc(fd, device_id, pt_id, 0, 0, hwpt_id,
				    IOMMU_HWPT_DATA_SELFTEST, &nested_data,
				    sizeof(nested_data));
}

static int vm_nested(struct vm *vm, uint32_t pt_id, uint32_t *hwpt_id)
{
	return alloc_nested(vm->fd, vm->device_id, pt_id, hwpt_id);
}

static int vm_nested_fault(struct vm *vm, uint32_t pt_id, uint32_t fault_id,
			   uint32_t *hwpt_id)
{
	return _test_cmd_hwpt_alloc(vm->fd, vm->device_id, pt_id, fault_id,
				    IOMMU_HWPT_FAULT_ID_VALID, hwpt_id,
				    IOMMU_HWPT_DATA_SELFTEST, &nested_data,
				    sizeof(nested_data));
}

static int vm_open(struct vm *vm, uint32_t iommu_id)
{
	vm->fd = open("/dev/iommu", O_RDWR);
	if (vm->fd < 0)
		return -1;
	if (_test_ioctl_ioas_alloc(vm->fd, &vm->ioas_id) ||
	    vm_plug(vm, iommu_id))
		return -1;
	return vm_hwpt(vm, IOMMU_HWPT_ALLOC_NEST_PARENT, &vm->parent_id);
}

/* If a test has not done so, which says that by -1 */
static int vm_close(struct vm *vm)
{
	return vm->fd == -1 ? 0 : close(vm->fd);
}

static int vm_viommu(struct vm *vm, uint32_t *viommu_id)
{
	return _test_cmd_viommu_alloc(vm->fd, vm->device_id, vm->parent_id, 0,
				      IOMMU_VIOMMU_TYPE_SELFTEST, NULL, 0,
				      viommu_id);
}

#define MAP_RW (IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE)

static int map_at(int fd, uint32_t ioas_id, void *ptr, size_t length,
		  uint64_t iova, uint32_t flags)
{
	__u64 fixed = iova;

	return _test_ioctl_ioas_map(fd, ioas_id, ptr, length, &fixed,
				    IOMMU_IOAS_MAP_FIXED_IOVA | flags);
}

static int _test_cmd_check_map(int fd, uint32_t hwpt_id, void *ptr,
			       size_t length, uint64_t iova)
{
	struct iommu_test_cmd cmd = {
		.size = sizeof(cmd),
		.op = IOMMU_TEST_OP_MD_CHECK_MAP,
		.id = hwpt_id,
		.check_map = {
			.iova = iova,
			.length = length,
			.uptr = (uintptr_t)ptr,
		},
	};

	return ioctl(fd, IOMMU_TEST_CMD, &cmd);
}

static int hw_info(int fd, uint32_t device_id)
{
	return _test_cmd_get_hw_info(fd, device_id, NULL, 0, NULL, NULL);
}

static int trigger_iopf(int fd, uint32_t device_id, uint32_t grpid)
{
	struct iommu_test_cmd cmd = {
		.size = sizeof(cmd),
		.op = IOMMU_TEST_OP_TRIGGER_IOPF,
		.trigger_iopf = {
			.dev_id = device_id,
			.pasid = 0x1,
			.grpid = grpid,
			.perm = IOMMU_PGFAULT_PERM_READ,
		},
	};

	return ioctl(fd, IOMMU_TEST_CMD, &cmd);
}

/* A call in a thread */
struct call {
	int (*fn)(int fd, uint32_t id, struct call *call);
	int fd;
	uint32_t id;
	struct vm *vm;
	void *arg;

	pthread_t thread;
	pid_t tid;
	uint32_t out_id;
	int err;
	int done;
};

#define CALL(_fn, _fd, _id, ...) \
	((struct call){ .fn = call_##_fn, .fd = _fd, .id = _id, ##__VA_ARGS__ })

static void *call_thread(void *arg)
{
	struct call *call = arg;

	__atomic_store_n(&call->tid, syscall(__NR_gettid), __ATOMIC_RELEASE);
	errno = 0;
	call->err = call->fn(call->fd, call->id, call) ? -errno : 0;
	__atomic_store_n(&call->done, 1, __ATOMIC_RELEASE);
	return NULL;
}

static void call_start(struct call *call)
{
	call->done = 0;
	call->tid = 0;
	assert(!pthread_create(&call->thread, NULL, call_thread, call));
}

static int call_is_done(struct call *call)
{
	return __atomic_load_n(&call->done, __ATOMIC_ACQUIRE);
}

/* What the call gave, 0 or -errno, or -ETIMEDOUT if it hangs */
static int call_end(struct call *call)
{
	struct timespec limit;

	clock_gettime(CLOCK_REALTIME, &limit);
	limit.tv_sec += 10;
	if (pthread_timedjoin_np(call->thread, NULL, &limit))
		return -ETIMEDOUT;
	return call->err;
}

static int call_unregister(int fd, uint32_t id, struct call *call)
{
	return _test_cmd_iommu_unregister(fd, id);
}

static int call_destroy(int fd, uint32_t id, struct call *call)
{
	return _test_ioctl_destroy(fd, id);
}

static int call_close(int fd, uint32_t id, struct call *call)
{
	return close(fd);
}

static void no_action(int sig)
{
}

/* An ioctl, @id is which one */
static int call_ioctl(int fd, uint32_t id, struct call *call)
{
	return ioctl(fd, id, call->arg);
}

/* For tests whose fixture has a file for test commands as self->fd */
#define park(point, action)                                         \
	ASSERT_EQ(0, _test_cmd_park(self->fd, MOCK_PARK_##point,    \
				    MOCK_PARK_##action))

/* Have a call get to where it is parked */
#define park_call(point, call) \
	park_call_at(_metadata, self->fd, MOCK_PARK_##point, call)

static void park_call_at(struct __test_metadata *_metadata, int fd,
			 uint32_t point, struct call *call)
{
	ASSERT_EQ(0, _test_cmd_park(fd, point, MOCK_PARK_ARM));
	call_start(call);
	ASSERT_EQ(0, _test_cmd_park(fd, point, MOCK_PARK_WAIT));
}

/* What an earlier test that was killed may have left; EINVAL: no such point */
static int unpark_all(int fd)
{
	int i;

	for (i = 0; i != MOCK_PARK_NUM; i++)
		if (_test_cmd_park(fd, i, MOCK_PARK_RELEASE) && errno != EINVAL)
			return -1;
	return 0;
}

static int read_file(const char *path, char *text, size_t size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t len;

	if (fd == -1)
		return -1;
	len = read(fd, text, size - 1);
	close(fd);
	if (len < 0)
		return -1;
	text[len] = 0;
	return 0;
}

/* In any base; @none if there is no such file */
static long read_number(const char *path, long none)
{
	char text[32];

	return read_file(path, text, sizeof(text)) ? none :
						     strtol(text, NULL, 0);
}

static int thread_read(pid_t tid, const char *name, char *text, size_t size)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/task/%d/%s", tid, name);
	return read_file(path, text, size);
}

/*
 * How often the thread went to sleep so far, if it sleeps in a system call that a
 * test makes. 0 if it is anywhere else, as on the way there.
 */
static unsigned long thread_sleeps(pid_t tid)
{
	static const char field[] = "\nvoluntary_ctxt_switches:";
	char text[4096], *at;

	if (!tid || thread_read(tid, "syscall", text, sizeof(text)) ||
	    !strncmp(text, "running", 7))
		return 0;
	switch (atol(text)) {
	case __NR_ioctl:
	case __NR_close:
	case __NR_munmap:
	case __NR_read:
	case __NR_ppoll:
#ifdef __NR_poll
	case __NR_poll:
#endif
		break;
	default:
		return 0;
	}
	if (thread_read(tid, "status", text, sizeof(text)))
		return 0;
	at = strstr(text, "\nState:\t");
	if (!at || (at[8] != 'S' && at[8] != 'D'))
		return 0;
	at = strstr(text, field);
	return at ? strtoul(at + strlen(field), NULL, 10) : 0;
}

/* It got to where it sleeps, and nothing woke it up for a while */
static int call_is_waiting(struct call *call)
{
	unsigned long sleeps, last = 0;
	int tries, same = 0;

	for (tries = 0; tries != 2000 && !call_is_done(call); tries++) {
		sleeps = thread_sleeps(__atomic_load_n(&call->tid,
						       __ATOMIC_ACQUIRE));
		same = sleeps && sleeps == last ? same + 1 : 0;
		if (same == 10)
			return 1;
		last = sleeps;
		sleep_ms(5);
	}
	return 0;
}

#define EXPECT_WAITING(call) EXPECT_EQ(1, call_is_waiting(call))

/*
 * For the end of a test, which may have unregistered it or not. Whoever did must
 * have got to the end of it, which is when it leaves sysfs.
 */
static int iommu_end(int fd, uint32_t iommu_id)
{
	char path[64];

	if (_test_cmd_iommu_unregister(fd, iommu_id) && errno != ENOENT)
		return -1;
	snprintf(path, sizeof(path), "/sys/class/iommu/iommufd_mock_iommu%u",
		 iommu_id);
	return access(path, F_OK) && errno == ENOENT ? 0 : -1;
}

/*
 * Unregister has begun when an allocation is refused. What is allocated
 * until then is on the IOMMU that is on its way out, and will be revoked.
 */
static void unregister_begin(struct __test_metadata *_metadata,
			     struct call *unreg, struct vm *probe)
{
	if (probe->fd == -1)
		ASSERT_EQ(0, vm_open(probe, unreg->id));
	call_start(unreg);
	WAIT_WHILE(!vm_viommu(probe, NULL));
	ASSERT_EQ(ENODEV, errno);
}

static struct iommu_viommu_alloc viommu_alloc_cmd(struct vm *vm, void *data)
{
	return (struct iommu_viommu_alloc){
		.size = sizeof(struct iommu_viommu_alloc),
		.type = IOMMU_VIOMMU_TYPE_SELFTEST,
		.dev_id = vm->device_id,
		.hwpt_id = vm->parent_id,
		.data_len = sizeof(struct iommu_viommu_selftest),
		.data_uptr = (uintptr_t)data,
	};
}

/* For the beginning of a test of vIOMMUs: a file for test commands, or -1 */
static int stats_open(uint64_t *inits, uint64_t *destroys)
{
	int fd = open("/dev/iommu", O_RDWR);

	if (fd == -1 || unpark_all(fd) ||
	    _test_cmd_viommu_stats(fd, inits, destroys, NULL))
		return -1;
	return fd;
}

/* What was initialized has been destroyed once when everything is over */
static int stats_close(int fd, uint64_t inits, uint64_t destroys)
{
	uint64_t new_inits, new_destroys;

	if (_test_cmd_viommu_stats(fd, &new_inits, &new_destroys, NULL) ||
	    close(fd))
		return -1;
	return new_inits - inits != new_destroys - destroys;
}

/*
 * Begun to close, which is when the number is free and open() takes it. To ask
 * for the state of the number itself would take a reference on the file, and so
 * could become the one that closes it.
 */
static void wait_for_close(struct __test_metadata *_metadata, int fd)
{
	int tries = 0;
	int new;

	while ((new = open("/dev/null", O_RDONLY)) != fd) {
		ASSERT_NE(-1, new);
		/* A lower number is kept, so that it is not in the way again */
		if (new > fd)
			ASSERT_EQ(0, close(new));
		ASSERT_GT(10000, tries++);
		sleep_ms(1);
	}
}

/* A page that user space serves, or does not */
static int uffd_open(void *page, uint64_t mode)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = {
		.range = { (uintptr_t)page, PAGE_SIZE },
		.mode = mode,
	};
	struct uffdio_writeprotect wp = {
		.range = reg.range,
		.mode = UFFDIO_WRITEPROTECT_MODE_WP,
	};
	int uffd = syscall(__NR_userfaultfd, O_CLOEXEC);

	if (uffd == -1)
		return -1;
	if (ioctl(uffd, UFFDIO_API, &api) || ioctl(uffd, UFFDIO_REGISTER, &reg))
		return -1;
	if (mode == UFFDIO_REGISTER_MODE_WP &&
	    ioctl(uffd, UFFDIO_WRITEPROTECT, &wp))
		return -1;
	return uffd;
}

/* Until a thread waits for the page */
static int uffd_wait(int uffd)
{
	struct pollfd pollfd = { .fd = uffd, .events = POLLIN };
	struct uffd_msg msg;

	if (poll(&pollfd, 1, 10000) != 1)
		return -1;
	return read(uffd, &msg, sizeof(msg)) == sizeof(msg) ? 0 : -1;
}

/* Let the threads go on that wait to write to the page */
static int uffd_unprotect(int uffd, void *page)
{
	struct uffdio_writeprotect wp = {
		.range = { (uintptr_t)page, PAGE_SIZE },
	};

	return ioctl(uffd, UFFDIO_WRITEPROTECT, &wp);
}

static int uffd_zero(int uffd, void *page)
{
	struct uffdio_zeropage zero = {
		.range = { (uintptr_t)page, PAGE_SIZE },
	};

	return ioctl(uffd, UFFDIO_ZEROPAGE, &zero);
}

#define NEEDS_UFFD "needs userfaultfd with write protection"

/* A call that is stopped when it comes to the page */
#define STALL(call, page, mode)                                            \
	({                                                                 \
		int __uffd = uffd_open(page, UFFDIO_REGISTER_MODE_##mode); \
									   \
		if (__uffd == -1)                                          \
			SKIP(return, NEEDS_UFFD);                          \
		call_start(call);                                          \
		ASSERT_EQ(0, uffd_wait(__uffd));                           \
		__uffd;                                                    \
	})

/* It goes on, to find that it may write to the page, or not. What it gave. */
static int unstall(struct __test_metadata *_metadata, struct call *call,
		   int uffd, void *page, bool writable)
{
	EXPECT_EQ(0, call_is_done(call));
	if (!writable)
		ASSERT_EQ(0, mprotect(page, PAGE_SIZE, PROT_READ));
	ASSERT_EQ(0, uffd_unprotect(uffd, page));
	ASSERT_EQ(0, close(uffd));
	return call_end(call);
}

/* The answer cannot be given to what is in the buffer */
static int ioctl_readonly(int fd, unsigned long request)
{
	int ret, err;

	if (mprotect(buffer, PAGE_SIZE, PROT_READ))
		return 0;
	ret = ioctl(fd, request, buffer);
	err = errno;
	assert(!mprotect(buffer, PAGE_SIZE, PROT_READ | PROT_WRITE));
	errno = err;
	return ret;
}

/* A field that is wrong; there is no answer, and @id is still the next one */
#define EXPECT_BAD_FIELD(_errno, fd, request, cmd, id, field, value)  \
	({                                                            \
		typeof(cmd) __want = cmd, __bad;                      \
		int __fd = fd;                                        \
								      \
		__want.field = value;                                 \
		__bad = __want;                                       \
		EXPECT_ERRNO(_errno, ioctl(__fd, request, &__bad));   \
		EXPECT_EQ(0, memcmp(&__want, &__bad, sizeof(__bad))); \
		EXPECT_EQ(id, free_id(__fd));                         \
	})

/* An ioctl that makes something, and what its size has to do with it */
struct size_sweep {
	int fd;
	unsigned long request;
	const void *cmd;
	/* Of the structure, and how much of it must be there */
	size_t size;
	size_t min;
	/* Where in it is the ID, and if there is one, the file */
	size_t id;
	size_t file;
};

#define SIZE_SWEEP(_fd, _request, _cmd, last, out, ...)                        \
	sweep_sizes(_metadata, &(struct size_sweep){                           \
				       .fd = _fd,                              \
				       .request = _request,                    \
				       .cmd = &(_cmd),                         \
				       .size = sizeof(_cmd),                   \
				       .min = offsetofend(typeof(_cmd), last), \
				       .id = offsetof(typeof(_cmd), out),      \
				       ##__VA_ARGS__ })

static void sweep_made(struct __test_metadata *_metadata,
		       const struct size_sweep *sweep, uint8_t *arg,
		       uint32_t size)
{
	memcpy(arg, &size, sizeof(size));
	memset(arg + sweep->id, 0, sizeof(uint32_t));
	ASSERT_EQ(0, ioctl(sweep->fd, sweep->request, arg));
	EXPECT_EQ(0, memcmp(arg, &size, sizeof(size)));
	if (sweep->file)
		ASSERT_EQ(0, close(*(uint32_t *)(arg + sweep->file)));
	ASSERT_EQ(0, _test_ioctl_destroy(sweep->fd,
					 *(uint32_t *)(arg + sweep->id)));
}

static void sweep_sizes(struct __test_metadata *_metadata,
			const struct size_sweep *sweep)
{
	uint64_t room[16] = {};
	uint8_t *arg = (uint8_t *)room;
	const uint32_t id = free_id(sweep->fd);
	uint32_t size, i;

	ASSERT_GE(sizeof(room) - 64, sweep->size);
	memcpy(arg, sweep->cmd, sweep->size);
	for (size = 0; size != sweep->min; size++) {
		memcpy(arg, &size, sizeof(size));
		EXPECT_ERRNO(EINVAL, ioctl(sweep->fd, sweep->request, arg));
	}
	/* A newer program's larger structure is fine as long as it is zero */
	for (; size <= sizeof(room); size++) {
		sweep_made(_metadata, sweep, arg, size);
		EXPECT_EQ(0, memcmp(arg + sweep->id, &id, sizeof(id)));
	}
	for (i = sweep->size; i != sizeof(room); i++) {
		arg[i] = 1;
		EXPECT_ERRNO(E2BIG, ioctl(sweep->fd, sweep->request, arg));
		arg[i] = 0;
	}
	/* What is beyond the size is not looked at, and not written */
	memset(arg + sweep->min, 0xa5, sizeof(room) - sweep->min);
	sweep_made(_metadata, sweep, arg, sweep->min);
	for (i = sweep->min; i != sizeof(room); i++)
		ASSERT_EQ(0xa5, arg[i]);
	EXPECT_ERRNO(EFAULT, ioctl(sweep->fd, sweep->request, NULL));
	EXPECT_EQ(id, free_id(sweep->fd));
}

/*
 * An IOMMU driver in a module of its own, which is found where the kernel was
 * installed or in the current directory.
 */
#define TEST_DRIVER "iommufd_test_driver"

static int module_load_with(const char *name, const char *params)
{
	char command[100], path[60];
	int fd, ret;

	snprintf(command, sizeof(command), "modprobe -q %s %s 2>/dev/null",
		 name, params);
	if (!system(command))
		return 0;
	snprintf(path, sizeof(path), "%s.ko", name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd == -1)
		return -1;
	ret = syscall(__NR_finit_module, fd, params, 0);
	close(fd);
	return ret;
}

static int module_load(void)
{
	return module_load_with(TEST_DRIVER, "");
}

/* EWOULDBLOCK is what rmmod reports as "in use" */
static int module_unload(void)
{
	return syscall(__NR_delete_module, TEST_DRIVER, O_NONBLOCK);
}

static int write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY);
	int ret;

	if (fd == -1)
		return -1;
	ret = write(fd, text, strlen(text)) == strlen(text) ? 0 : -1;
	close(fd);
	return ret;
}

/* Plug a device of the module's in and bind it, close the file to undo that */
static int module_bind(int iommufd, uint32_t *device_id)
{
	static const char unsafe[] =
		"/sys/module/iommufd/parameters/allow_unsafe_interrupts";
	struct iommufd_test_driver_bind bind = { .iommufd = iommufd };
	int fd = open("/dev/" TEST_DRIVER, O_RDWR);
	int ret, err;

	if (fd == -1)
		return -1;
	/* There is no interrupt that could be isolated */
	ret = write_file(unsafe, "Y") ||
	      ioctl(fd, IOMMUFD_TEST_DRIVER_BIND, &bind);
	err = errno;
	if (write_file(unsafe, "N") || ret) {
		close(fd);
		errno = err;
		return -1;
	}
	*device_id = bind.out_dev_id;
	return fd;
}

#endif
