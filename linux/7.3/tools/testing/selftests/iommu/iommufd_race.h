/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What tests need that have an IOMMU go away: a VM to have it go away under,
 * calls in threads of their own, and parking them in the mock driver.
 */
#ifndef __IOMMUFD_RACE_H
#define __IOMMUFD_RACE_H

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <linux/userfaultfd.h>

#include "iommufd_utils.h"

/* What a VMM has: a file, a device behind the IOMMU, perhaps a nesting parent */
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

static int vm_open(struct vm *vm, uint32_t iommu_id)
{
	vm->fd = open("/dev/iommu", O_RDWR);
	if (vm->fd < 0)
		return -1;
	return _test_ioctl_ioas_alloc(vm->fd, &vm->ioas_id) ||
	       vm_plug(vm, iommu_id) ? -1 : 0;
}

static int vm_open_parent(struct vm *vm, uint32_t iommu_id)
{
	if (vm_open(vm, iommu_id))
		return -1;
	return _test_cmd_hwpt_alloc(vm->fd, vm->device_id, vm->ioas_id, 0,
				    IOMMU_HWPT_ALLOC_NEST_PARENT,
				    &vm->parent_id, IOMMU_HWPT_DATA_NONE, NULL,
				    0);
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

static void sleep_ms(int ms)
{
	struct timespec ts = {
		.tv_sec = ms / 1000,
		.tv_nsec = ms % 1000 * 1000000,
	};

	nanosleep(&ts, NULL);
}

/* For tests whose fixture has a file for test commands as self->fd */
#define park(point, action)                                         \
	ASSERT_EQ(0, _test_cmd_park(self->fd, MOCK_PARK_##point,    \
				    MOCK_PARK_##action))

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
	case __NR_read:
	case __NR_write:
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

#define NEEDS_UFFD "needs userfaultfd with write protection"

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

	if (fd == -1)
		return -1;
	/* There is no interrupt that could be isolated */
	if (write_file(unsafe, "Y") ||
	    ioctl(fd, IOMMUFD_TEST_DRIVER_BIND, &bind) ||
	    write_file(unsafe, "N")) {
		close(fd);
		return -1;
	}
	*device_id = bind.out_dev_id;
	return fd;
}

#endif
