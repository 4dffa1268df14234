// SPDX-License-Identifier: GPL-2.0-only
/*
 * A physical IOMMU goes away under vIOMMUs that are in use: whatever happens at
 * the same time, unregistering it ends soon, and nothing touches it afterwards.
 *
 * The order of events is forced by parking calls in the mock driver. What the
 * kernel itself sees (a use after the free, a callback that runs twice, a count
 * that is wrong) it tells with a WARN or a report of KASAN.
 *
 * The number that a test's name begins with is that of a rule in "What always
 * holds", in Documentation/userspace-api/iommufd.rst.
 */
#define _GNU_SOURCE
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>

#define __EXPORTED_HEADERS__
#include "iommufd_race.h"

static int call_viommu(int fd, uint32_t id, struct call *call)
{
	return _test_cmd_viommu_call(fd, id);
}

static int call_alloc(int fd, uint32_t id, struct call *call)
{
	return vm_viommu(call->vm, &call->out_id);
}

FIXTURE(iommufd_revoke)
{
	/* For test commands, has no objects of its own */
	int fd;
	uint32_t iommu_id;
	struct vm vm;
	/* Another one behind the same IOMMU, see unregister_begin() */
	struct vm probe;
	struct call unreg;
	uint64_t inits;
	uint64_t destroys;
};

FIXTURE_SETUP(iommufd_revoke)
{
	self->fd = stats_open(&self->inits, &self->destroys);
	ASSERT_NE(-1, self->fd);
	self->probe.fd = -1;
	ASSERT_EQ(0, _test_cmd_iommu_register(self->fd, 0, &self->iommu_id));
	ASSERT_EQ(0, vm_open(&self->vm, self->iommu_id));
	self->unreg = CALL(unregister, self->fd, self->iommu_id);
}

FIXTURE_TEARDOWN(iommufd_revoke)
{
	EXPECT_EQ(0, unpark_all(self->fd));
	EXPECT_EQ(0, vm_close(&self->vm));
	EXPECT_EQ(0, vm_close(&self->probe));
	EXPECT_EQ(0, iommu_end(self->fd, self->iommu_id));
	EXPECT_EQ(0, stats_close(self->fd, self->inits, self->destroys));
}

#define unregister() \
	ASSERT_EQ(0, _test_cmd_iommu_unregister(self->fd, self->iommu_id))

/* How often driver's destroy has been called since the test began */
#define destroys()                                                           \
	({                                                                   \
		uint64_t __inits, __destroys = 0;                            \
									     \
		ASSERT_EQ(0, _test_cmd_viommu_stats(self->fd, &__inits,      \
						    &__destroys, NULL));     \
		__destroys - self->destroys;                                 \
	})

/* It is there to be destroyed, and the parent is not in use any more */
TEST_F(iommufd_revoke, L6_revoked_viommu_is_an_id)
{
	uint32_t viommu_id, id;
	struct vm other;

	ASSERT_EQ(0, vm_viommu(&self->vm, &viommu_id));
	ASSERT_EQ(0, _test_cmd_viommu_call(self->vm.fd, viommu_id));
	ASSERT_EQ(0, vm_unplug(&self->vm));
	ASSERT_EQ(0, _test_cmd_viommu_call(self->vm.fd, viommu_id));
	EXPECT_ERRNO(EBUSY, vm_destroy(&self->vm, self->vm.parent_id));
	ASSERT_EQ(0, destroys());

	unregister();
	EXPECT_EQ(1, destroys());
	EXPECT_ERRNO(ENODEV, _test_cmd_viommu_call(self->vm.fd, viommu_id));

	/* Everything else that takes the ID of whatever kind of object */
	ASSERT_EQ(0, vm_plug(&self->vm, 0));
	EXPECT_ERRNO(ENODEV, vm_attach(&self->vm, viommu_id));
	EXPECT_ERRNO(ENODEV, vm_nested(&self->vm, viommu_id, &id));
	/* and what takes the ID of one kind, which it is not */
	EXPECT_ERRNO(ENOENT, hw_info(self->vm.fd, viommu_id));

	/* The ID is not given to anything else before it is destroyed */
	ASSERT_EQ(0, _test_ioctl_ioas_alloc(self->vm.fd, &id));
	EXPECT_NE(viommu_id, id);
	ASSERT_EQ(0, vm_destroy(&self->vm, self->vm.parent_id));
	ASSERT_EQ(0, vm_destroy(&self->vm, viommu_id));
	EXPECT_ERRNO(ENOENT, vm_destroy(&self->vm, viommu_id));
	EXPECT_ERRNO(ENOENT, _test_cmd_viommu_call(self->vm.fd, viommu_id));
	EXPECT_EQ(1, destroys());

	/* Other IOMMUs are none the wiser */
	ASSERT_EQ(0, vm_open(&other, 0));
	ASSERT_EQ(0, vm_viommu(&other, &viommu_id));
	ASSERT_EQ(0, _test_cmd_viommu_call(other.fd, viommu_id));
	ASSERT_EQ(0, close(other.fd));
}

/* A revoked vIOMMU that is left to the close of its file */
TEST_F(iommufd_revoke, L6_close_with_revoked_viommu)
{
	uint32_t viommu_id;

	ASSERT_EQ(0, vm_viommu(&self->vm, &viommu_id));
	ASSERT_EQ(0, vm_unplug(&self->vm));
	unregister();
	ASSERT_EQ(0, close(self->vm.fd));
	self->vm.fd = -1;
	EXPECT_EQ(1, destroys());
}

/* Unregister with any number of vIOMMUs, of any number of files */
TEST_F_TIMEOUT(iommufd_revoke, L3_unregister_many, 120)
{
	static const unsigned int numbers[] = { 0, 1, 1000 };
	uint32_t iommu_id, viommu_id[1000], id;
	uint64_t before;
	struct vm vm[3];
	unsigned int i, n, files;
	int fd;

	for (i = 0; i != ARRAY_SIZE(numbers); i++) {
		for (files = 1; files <= 3; files += 2) {
			ASSERT_EQ(0, _test_cmd_iommu_register(self->fd, 0,
							      &iommu_id));
			for (n = 0; n != files; n++)
				ASSERT_EQ(0, vm_open(&vm[n], iommu_id));
			for (n = 0; n != numbers[i]; n++)
				ASSERT_EQ(0, vm_viommu(&vm[n % files],
						       &viommu_id[n]));
			for (n = 0; n != files; n++)
				ASSERT_EQ(0, vm_unplug(&vm[n]));
			before = destroys();
			ASSERT_EQ(0, _test_cmd_iommu_unregister(self->fd,
								iommu_id));
			EXPECT_EQ(numbers[i], destroys() - before);
			for (n = 0; n != numbers[i]; n++) {
				fd = vm[n % files].fd;
				id = viommu_id[n];
				ASSERT_EQ(-1, _test_cmd_viommu_call(fd, id));
				ASSERT_EQ(ENODEV, errno);
			}
			/* Some by hand, the others at the close */
			for (n = 0; n < numbers[i]; n += 2)
				ASSERT_EQ(0, vm_destroy(&vm[n % files],
							viommu_id[n]));
			for (n = 0; n != files; n++)
				ASSERT_EQ(0, close(vm[n].fd));
			EXPECT_EQ(numbers[i], destroys() - before);
		}
	}
	EXPECT_ERRNO(ENOENT, _test_cmd_iommu_unregister(self->fd, iommu_id));
	ASSERT_EQ(0, vm_unplug(&self->vm));
}

/*
 * A call is in the driver when unregister begins. Unregister waits
 * for it, new calls are refused, the call ends as it would have anyway.
 */
static void parked(struct __test_metadata *_metadata,
		   struct _test_data_iommufd_revoke *self, uint32_t point,
		   struct call *call, int result, bool may_unplug)
{
	ASSERT_EQ(0, _test_cmd_park(self->fd, point, MOCK_PARK_ARM));
	call_start(call);
	ASSERT_EQ(0, _test_cmd_park(self->fd, point, MOCK_PARK_WAIT));
	unregister_begin(_metadata, &self->unreg, &self->vm);
	/* The device can go even now */
	if (may_unplug)
		ASSERT_EQ(0, vm_unplug(&self->vm));
	EXPECT_WAITING(call);
	EXPECT_WAITING(&self->unreg);
	ASSERT_EQ(0, _test_cmd_park(self->fd, point, MOCK_PARK_RELEASE));
	EXPECT_EQ(result, call_end(call));
	EXPECT_EQ(0, call_end(&self->unreg));
	if (!may_unplug)
		ASSERT_EQ(0, vm_unplug(&self->vm));
}

TEST_F(iommufd_revoke, L5_parked_in_size)
{
	struct call call = CALL(alloc, -1, 0, .vm = &self->vm);

	/* Here the device is in use for the time being */
	parked(_metadata, self, MOCK_PARK_VIOMMU_SIZE, &call, -ENODEV,
	       false);
}

TEST_F(iommufd_revoke, L5_parked_in_init)
{
	struct call call = CALL(alloc, -1, 0, .vm = &self->vm);

	parked(_metadata, self, MOCK_PARK_VIOMMU_INIT, &call, -ENODEV,
	       true);
}

/* The allocation that failed so late holds nothing, nor is it there */
TEST_F(iommufd_revoke, L12_refused_after_init)
{
	struct call call = CALL(alloc, -1, 0, .vm = &self->vm);
	uint32_t free_id, id;

	ASSERT_EQ(0, vm_open(&self->probe, self->iommu_id));
	ASSERT_EQ(0, _test_ioctl_ioas_alloc(self->vm.fd, &free_id));
	ASSERT_EQ(0, vm_destroy(&self->vm, free_id));

	park_call(VIOMMU_INIT, &call);
	unregister_begin(_metadata, &self->unreg, &self->probe);
	ASSERT_EQ(0, vm_unplug(&self->probe));
	park(VIOMMU_INIT, RELEASE);
	EXPECT_EQ(-ENODEV, call_end(&call));
	EXPECT_EQ(0, call_end(&self->unreg));

	ASSERT_EQ(0, _test_ioctl_ioas_alloc(self->vm.fd, &id));
	EXPECT_EQ(free_id, id);
	ASSERT_EQ(0, vm_destroy(&self->vm, self->vm.parent_id));
	ASSERT_EQ(0, vm_unplug(&self->vm));
}

TEST_F(iommufd_revoke, L3_parked_in_call)
{
	struct call call = CALL(viommu, self->vm.fd, 0);

	ASSERT_EQ(0, vm_viommu(&self->vm, &call.id));
	parked(_metadata, self, MOCK_PARK_VIOMMU_CALL, &call, 0,
	       true);
	EXPECT_ERRNO(ENODEV, _test_cmd_viommu_call(self->vm.fd, call.id));
}

TEST_F(iommufd_revoke, L7_parked_in_destroy)
{
	struct call call = CALL(destroy, self->vm.fd, 0);
	uint64_t before;

	ASSERT_EQ(0, vm_viommu(&self->vm, &call.id));
	before = destroys();
	park_call(VIOMMU_DESTROY, &call);
	EXPECT_ERRNO(ENOENT, _test_cmd_viommu_call(self->vm.fd, call.id));
	/* What it is built on stays until the driver is done */
	EXPECT_ERRNO(EBUSY, vm_destroy(&self->vm, self->vm.parent_id));
	ASSERT_EQ(before, destroys());
	park(VIOMMU_DESTROY, RELEASE);
	ASSERT_EQ(0, call_end(&call));
	ASSERT_EQ(before + 1, destroys());

	ASSERT_EQ(0, vm_viommu(&self->vm, &call.id));
	parked(_metadata, self, MOCK_PARK_VIOMMU_DESTROY, &call, 0,
	       true);
}

/* The revocation is calling destroy() when user space destroys or closes */
TEST_F(iommufd_revoke, L7_destroy_during_revocation)
{
	struct call destroy = CALL(destroy, self->vm.fd, 0);

	ASSERT_EQ(0, vm_viommu(&self->vm, &destroy.id));
	ASSERT_EQ(0, vm_unplug(&self->vm));
	park_call(VIOMMU_DESTROY, &self->unreg);
	EXPECT_ERRNO(ENODEV, _test_cmd_viommu_call(self->vm.fd, destroy.id));
	call_start(&destroy);
	WAIT_WHILE(!_test_cmd_viommu_call(self->vm.fd, destroy.id) ||
		   errno != ENOENT);
	EXPECT_WAITING(&destroy);
	EXPECT_WAITING(&self->unreg);
	park(VIOMMU_DESTROY, RELEASE);
	EXPECT_EQ(0, call_end(&destroy));
	EXPECT_EQ(0, call_end(&self->unreg));
	EXPECT_EQ(1, destroys());
}

TEST_F(iommufd_revoke, L7_close_during_revocation)
{
	struct call closing = CALL(close, self->vm.fd, 0);
	uint32_t viommu_id;

	ASSERT_EQ(0, vm_viommu(&self->vm, &viommu_id));
	ASSERT_EQ(0, vm_viommu(&self->vm, &viommu_id));
	ASSERT_EQ(0, vm_unplug(&self->vm));
	park_call(VIOMMU_DESTROY, &self->unreg);
	call_start(&closing);
	wait_for_close(_metadata, self->vm.fd);
	self->vm.fd = -1;
	EXPECT_WAITING(&closing);
	EXPECT_WAITING(&self->unreg);
	park(VIOMMU_DESTROY, RELEASE);
	EXPECT_EQ(0, call_end(&closing));
	EXPECT_EQ(0, call_end(&self->unreg));
	EXPECT_EQ(2, destroys());
}

/* The other way round: unregister finds a file that is being closed */
TEST_F(iommufd_revoke, L7_unregister_during_close)
{
	struct call closing = CALL(close, self->vm.fd, 0);
	uint32_t viommu_id;

	ASSERT_EQ(0, vm_viommu(&self->vm, &viommu_id));
	ASSERT_EQ(0, vm_viommu(&self->vm, &viommu_id));
	ASSERT_EQ(0, vm_unplug(&self->vm));
	park(VIOMMU_DESTROY, ARM);
	call_start(&closing);
	self->vm.fd = -1;
	park(VIOMMU_DESTROY, WAIT);
	unregister_begin(_metadata, &self->unreg, &self->probe);
	ASSERT_EQ(0, vm_unplug(&self->probe));
	EXPECT_WAITING(&closing);
	EXPECT_WAITING(&self->unreg);
	park(VIOMMU_DESTROY, RELEASE);
	EXPECT_EQ(0, call_end(&closing));
	EXPECT_EQ(0, call_end(&self->unreg));
	/* And those that unregister_begin() has made */
	EXPECT_LE(2, destroys());
}

/* The file is closed by everybody while its last call is in the driver */
TEST_F(iommufd_revoke, L3_close_during_call)
{
	struct call call = CALL(viommu, self->vm.fd, 0);
	pid_t pid;

	ASSERT_EQ(0, vm_viommu(&self->vm, &call.id));
	ASSERT_EQ(0, vm_unplug(&self->vm));
	park_call(VIOMMU_CALL, &call);
	pid = fork();
	ASSERT_NE(-1, pid);
	if (!pid)
		_exit(close(self->vm.fd) ? 1 : 0);
	ASSERT_EQ(pid, waitpid(pid, NULL, 0));
	ASSERT_EQ(0, close(self->vm.fd));
	self->vm.fd = -1;
	unregister_begin(_metadata, &self->unreg, &self->probe);
	ASSERT_EQ(0, vm_unplug(&self->probe));
	EXPECT_WAITING(&self->unreg);
	park(VIOMMU_CALL, RELEASE);
	EXPECT_EQ(0, call_end(&call));
	EXPECT_EQ(0, call_end(&self->unreg));
}

/* A process is killed while its call is in the driver */
TEST_F(iommufd_revoke, L3_kill_during_call)
{
	uint32_t viommu_id;
	int status;
	pid_t pid;

	ASSERT_EQ(0, vm_viommu(&self->vm, &viommu_id));
	ASSERT_EQ(0, vm_unplug(&self->vm));
	park(VIOMMU_CALL, ARM);
	pid = fork();
	ASSERT_NE(-1, pid);
	if (!pid)
		_exit(_test_cmd_viommu_call(self->vm.fd, viommu_id) ? 1 : 0);
	park(VIOMMU_CALL, WAIT);
	/* Only the child has the file */
	ASSERT_EQ(0, close(self->vm.fd));
	self->vm.fd = -1;
	ASSERT_EQ(0, kill(pid, SIGKILL));
	unregister_begin(_metadata, &self->unreg, &self->probe);
	ASSERT_EQ(0, vm_unplug(&self->probe));
	EXPECT_WAITING(&self->unreg);
	park(VIOMMU_CALL, RELEASE);
	EXPECT_EQ(0, call_end(&self->unreg));
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_EQ(SIGKILL, WTERMSIG(status));
}

/* A process that will not let go is not waited for */
TEST_F(iommufd_revoke, L4_stopped_process)
{
	uint32_t viommu_id;
	int status;
	pid_t pid;

	ASSERT_EQ(0, vm_viommu(&self->vm, &viommu_id));
	ASSERT_EQ(0, vm_unplug(&self->vm));
	pid = fork();
	ASSERT_NE(-1, pid);
	if (!pid) {
		raise(SIGSTOP);
		/* After all that it gets what everybody gets */
		if (!_test_cmd_viommu_call(self->vm.fd, viommu_id) ||
		    errno != ENODEV)
			_exit(1);
		_exit(0);
	}
	ASSERT_EQ(0, close(self->vm.fd));
	self->vm.fd = -1;
	ASSERT_EQ(pid, waitpid(pid, &status, WUNTRACED));
	ASSERT_TRUE(WIFSTOPPED(status));

	call_start(&self->unreg);
	EXPECT_EQ(0, call_end(&self->unreg));
	EXPECT_EQ(1, destroys());
	/* It ended while the process was stopped */
	EXPECT_EQ(0, waitpid(pid, &status, WUNTRACED | WNOHANG));
	ASSERT_EQ(0, kill(pid, SIGCONT));
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_TRUE(WIFEXITED(status) && !WEXITSTATUS(status));
}

/* While the driver's data is read, nothing is held */
TEST_F(iommufd_revoke, L4_alloc_stalled_reading)
{
	struct iommu_viommu_alloc cmd = viommu_alloc_cmd(&self->vm, buffer);
	struct call alloc =
		CALL(ioctl, self->vm.fd, IOMMU_VIOMMU_ALLOC, .arg = &cmd);
	int uffd = STALL(&alloc, buffer, MISSING);

	ASSERT_EQ(0, vm_unplug(&self->vm));
	unregister();
	EXPECT_EQ(0, call_is_done(&alloc));

	ASSERT_EQ(0, uffd_zero(uffd, buffer));
	EXPECT_EQ(-ENOENT, call_end(&alloc));
	EXPECT_EQ(0, destroys());
	ASSERT_EQ(0, close(uffd));
}

/*
 * While the driver's answer, or the ID, is written, the vIOMMU is there and is
 * revoked. The allocation ends well; what it gives is a revoked vIOMMU.
 */
static int stalled_writing(struct __test_metadata *_metadata,
			   struct _test_data_iommufd_revoke *self, void *cmd,
			   bool writable, int result)
{
	struct call alloc =
		CALL(ioctl, self->vm.fd, IOMMU_VIOMMU_ALLOC, .arg = cmd);
	int uffd = uffd_open(buffer, UFFDIO_REGISTER_MODE_WP);

	if (uffd == -1)
		return -1;
	call_start(&alloc);
	ASSERT_EQ(0, uffd_wait(uffd));
	ASSERT_EQ(0, vm_unplug(&self->vm));
	unregister();
	EXPECT_EQ(1, destroys());
	EXPECT_EQ(result, unstall(_metadata, &alloc, uffd, buffer, writable));
	EXPECT_EQ(1, destroys());
	return 0;
}

TEST_F(iommufd_revoke, L4_alloc_stalled_writing_data)
{
	struct iommu_viommu_alloc cmd = viommu_alloc_cmd(&self->vm, buffer);

	memset(buffer, 0, PAGE_SIZE);
	if (stalled_writing(_metadata, self, &cmd, true, 0))
		SKIP(return, NEEDS_UFFD);
	EXPECT_ERRNO(ENODEV,
		     _test_cmd_viommu_call(self->vm.fd, cmd.out_viommu_id));
	ASSERT_EQ(0, vm_destroy(&self->vm, cmd.out_viommu_id));
}

TEST_F(iommufd_revoke, L4_alloc_stalled_writing_id)
{
	struct iommu_viommu_selftest data = {};
	struct iommu_viommu_alloc *cmd = buffer;

	*cmd = viommu_alloc_cmd(&self->vm, &data);
	if (stalled_writing(_metadata, self, cmd, true, 0))
		SKIP(return, NEEDS_UFFD);
	EXPECT_ERRNO(ENODEV,
		     _test_cmd_viommu_call(self->vm.fd, cmd->out_viommu_id));
	ASSERT_EQ(0, vm_destroy(&self->vm, cmd->out_viommu_id));
}

/* And if it cannot be written, nothing is left, revoked or not */
TEST_F(iommufd_revoke, L12_alloc_fails_after_revocation)
{
	struct iommu_viommu_selftest data = {};
	struct iommu_viommu_alloc *cmd = buffer;

	*cmd = viommu_alloc_cmd(&self->vm, &data);
	if (stalled_writing(_metadata, self, cmd, false, -EFAULT))
		SKIP(return, NEEDS_UFFD);
	ASSERT_EQ(0, vm_destroy(&self->vm, self->vm.parent_id));
}

/* Without parking: allocations that race are revoked, or refused */
static int call_alloc_loop(int fd, uint32_t id, struct call *call)
{
	unsigned int *count = call->arg;
	uint32_t viommu_id;

	while (!vm_viommu(call->vm, &viommu_id)) {
		call->out_id = viommu_id;
		__atomic_add_fetch(count, 1, __ATOMIC_RELEASE);
	}
	__atomic_add_fetch(count, 1, __ATOMIC_RELEASE);
	return -1;
}

TEST_F_TIMEOUT(iommufd_revoke, L5_alloc_races_unregister, 120)
{
	unsigned int revoked = 0, i, n;
	struct call loop[2], unreg;
	unsigned int count[2];
	uint32_t iommu_id;
	struct vm vm[2];

	for (i = 0; i != 30; i++) {
		ASSERT_EQ(0, _test_cmd_iommu_register(self->fd, 0, &iommu_id));
		for (n = 0; n != 2; n++) {
			ASSERT_EQ(0, vm_open(&vm[n], iommu_id));
			count[n] = 0;
			loop[n] = CALL(alloc_loop, -1, 0, .vm = &vm[n],
				       .arg = &count[n]);
			call_start(&loop[n]);
		}
		for (n = 0; n != 2; n++)
			while (__atomic_load_n(&count[n], __ATOMIC_ACQUIRE) < 3)
				ASSERT_EQ(0, call_is_done(&loop[n]));
		unreg = CALL(unregister, self->fd, iommu_id);
		call_start(&unreg);
		for (n = 0; n != 2; n++) {
			ASSERT_EQ(-ENODEV, call_end(&loop[n]));
			revoked += count[n] - 1;
		}
		ASSERT_EQ(0, call_end(&unreg));
		/* Some were refused after their init, and so destroyed, too */
		ASSERT_LE(revoked, destroys());
		for (n = 0; n != 2; n++) {
			EXPECT_ERRNO(ENODEV,
				     _test_cmd_viommu_call(vm[n].fd,
							   loop[n].out_id));
			ASSERT_EQ(0, vm_unplug(&vm[n]));
			ASSERT_EQ(0, close(vm[n].fd));
		}
	}
	ASSERT_EQ(0, vm_unplug(&self->vm));
}

/* Two are unregistered at once, while other threads allocate on them */
TEST_F_TIMEOUT(iommufd_revoke, L5_two_unregister, 120)
{
	struct call unreg[2], loop[2];
	unsigned int count[2], i, n;
	uint32_t iommu_id[2];
	struct vm vm[2];

	for (i = 0; i != 30; i++) {
		for (n = 0; n != 2; n++) {
			ASSERT_EQ(0, _test_cmd_iommu_register(self->fd, 0,
							      &iommu_id[n]));
			ASSERT_EQ(0, vm_open(&vm[n], iommu_id[n]));
			count[n] = 0;
			loop[n] = CALL(alloc_loop, -1, 0, .vm = &vm[n],
				       .arg = &count[n]);
			unreg[n] = CALL(unregister, self->fd, iommu_id[n]);
			call_start(&loop[n]);
		}
		for (n = 0; n != 2; n++)
			call_start(&unreg[n]);
		for (n = 0; n != 2; n++) {
			ASSERT_EQ(0, call_end(&unreg[n]));
			ASSERT_EQ(-ENODEV, call_end(&loop[n]));
			ASSERT_EQ(0, vm_unplug(&vm[n]));
			ASSERT_EQ(0, close(vm[n].fd));
		}
	}
	ASSERT_EQ(0, vm_unplug(&self->vm));
}

/* Unplug, destroy and close all race with unregister */
TEST_F_TIMEOUT(iommufd_revoke, L7_unplug_destroy_close_race_unregister, 120)
{
	struct call unreg, unplug, destroy, closing;
	uint32_t iommu_id, viommu_id[3];
	struct vm vm[2];
	unsigned int i;

	for (i = 0; i != 100; i++) {
		ASSERT_EQ(0, _test_cmd_iommu_register(self->fd, 0, &iommu_id));
		ASSERT_EQ(0, vm_open(&vm[0], iommu_id));
		ASSERT_EQ(0, vm_viommu(&vm[0], &viommu_id[0]));
		ASSERT_EQ(0, vm_viommu(&vm[0], &viommu_id[1]));
		ASSERT_EQ(0, vm_open(&vm[1], iommu_id));
		ASSERT_EQ(0, vm_viommu(&vm[1], &viommu_id[2]));
		ASSERT_EQ(0, vm_unplug(&vm[1]));

		unreg = CALL(unregister, self->fd, iommu_id);
		unplug = CALL(destroy, vm[0].fd, vm[0].stdev_id);
		destroy = CALL(destroy, vm[0].fd, viommu_id[0]);
		closing = CALL(close, vm[1].fd, 0);
		call_start(&unplug);
		call_start(&unreg);
		call_start(&destroy);
		call_start(&closing);
		ASSERT_EQ(0, call_end(&closing));
		ASSERT_EQ(0, call_end(&destroy));
		ASSERT_EQ(0, call_end(&unreg));
		ASSERT_EQ(0, call_end(&unplug));
		EXPECT_ERRNO(ENODEV,
			     _test_cmd_viommu_call(vm[0].fd, viommu_id[1]));
		ASSERT_EQ(3 * (i + 1), destroys());
		ASSERT_EQ(0, close(vm[0].fd));
	}
	ASSERT_EQ(0, vm_unplug(&self->vm));
}

/* Another instance is refused, unless the driver shares domains */
TEST_F(iommufd_revoke, L9_parent_of_another_instance)
{
	uint32_t iommu_id[2], viommu_id, id;
	struct vm vm;
	int i;

	/* The parent is of the fixture's, the device is behind the default */
	vm = self->vm;
	ASSERT_EQ(0, vm_plug(&vm, 0));
	EXPECT_ERRNO(EINVAL, vm_viommu(&vm, &viommu_id));
	ASSERT_EQ(0, vm_unplug(&vm));

	for (i = 0; i != 2; i++)
		ASSERT_EQ(0, _test_cmd_iommu_register(self->fd,
						      MOCK_IOMMU_SHARED_DOMAINS,
						      &iommu_id[i]));
	ASSERT_EQ(0, vm_open(&vm, iommu_id[0]));
	ASSERT_EQ(0, vm_unplug(&vm));
	ASSERT_EQ(0, vm_plug(&vm, iommu_id[1]));
	ASSERT_EQ(0, vm_viommu(&vm, &viommu_id));
	ASSERT_EQ(0, vm_nested(&vm, vm.parent_id, &id));

	/* The parent moves to where the vIOMMU is, and is revoked after it */
	ASSERT_EQ(0, _test_cmd_iommu_unregister(self->fd, iommu_id[0]));
	EXPECT_EQ(0, _test_cmd_viommu_call(vm.fd, viommu_id));
	ASSERT_EQ(0, _test_cmd_iommu_unregister(self->fd, iommu_id[1]));
	EXPECT_ERRNO(ENODEV, _test_cmd_viommu_call(vm.fd, viommu_id));
	ASSERT_EQ(0, close(vm.fd));
}

/*
 * What lives on a vIOMMU. Each of the calls is in the driver when unregister begins;
 * the device is in use by some of them.
 */

static int call_nested(int fd, uint32_t id, struct call *call)
{
	return vm_nested(call->vm, id, &call->out_id);
}

static int call_vdevice(int fd, uint32_t id, struct call *call)
{
	return _test_cmd_vdevice_alloc(fd, id, call->vm->device_id, 1,
				       &call->out_id);
}

static int call_invalidate(int fd, uint32_t id, struct call *call)
{
	struct iommu_viommu_invalidate_selftest inv = { .vdev_id = 1 };
	uint32_t num = 1;

	return _test_cmd_hwpt_invalidate(fd, id, &inv,
					 IOMMU_VIOMMU_INVALIDATE_DATA_SELFTEST,
					 sizeof(inv), &num);
}

TEST_F(iommufd_revoke, L5_parked_in_nested_alloc)
{
	struct call call = CALL(nested, self->vm.fd, 0, .vm = &self->vm);

	ASSERT_EQ(0, vm_viommu(&self->vm, &call.id));
	parked(_metadata, self, MOCK_PARK_NESTED_ALLOC, &call, -ENODEV, false);
	ASSERT_EQ(0, vm_destroy(&self->vm, call.id));
	ASSERT_EQ(0, vm_destroy(&self->vm, self->vm.parent_id));
}

TEST_F(iommufd_revoke, L5_parked_in_vdevice_init)
{
	struct call call = CALL(vdevice, self->vm.fd, 0, .vm = &self->vm);

	ASSERT_EQ(0, vm_viommu(&self->vm, &call.id));
	parked(_metadata, self, MOCK_PARK_VDEVICE_INIT, &call, -ENODEV, false);
	ASSERT_EQ(0, vm_destroy(&self->vm, call.id));
}

TEST_F(iommufd_revoke, L3_parked_in_invalidate)
{
	struct call call = CALL(invalidate, self->vm.fd, 0, .vm = &self->vm);
	uint32_t vdevice_id;

	ASSERT_EQ(0, vm_viommu(&self->vm, &call.id));
	ASSERT_EQ(0, _test_cmd_vdevice_alloc(self->vm.fd, call.id,
					     self->vm.device_id, 1,
					     &vdevice_id));
	/* The vDEVICE goes before the vIOMMU, so the device is not found */
	parked(_metadata, self, MOCK_PARK_INVALIDATE, &call, -EINVAL, true);
	EXPECT_EQ(-1, call.fn(call.fd, call.id, &call));
	EXPECT_EQ(ENODEV, errno);
}

TEST_F(iommufd_revoke, L7_parked_in_vdevice_destroy)
{
	struct call call = CALL(destroy, self->vm.fd, 0);
	uint32_t viommu_id;

	ASSERT_EQ(0, vm_viommu(&self->vm, &viommu_id));
	ASSERT_EQ(0, _test_cmd_vdevice_alloc(self->vm.fd, viommu_id,
					     self->vm.device_id, 1, &call.id));
	parked(_metadata, self, MOCK_PARK_VDEVICE_DESTROY, &call, 0, false);
	ASSERT_EQ(0, vm_destroy(&self->vm, viommu_id));
}

/* A path that comes when the revocation has taken the vDEVICE waits for it */
static void vdevice_revoking(struct __test_metadata *_metadata,
			     struct _test_data_iommufd_revoke *self,
			     uint32_t *vdevice_id, struct call *call)
{
	uint32_t viommu_id;

	ASSERT_EQ(0, vm_viommu(&self->vm, &viommu_id));
	ASSERT_EQ(0, _test_cmd_vdevice_alloc(self->vm.fd, viommu_id,
					     self->vm.device_id, 1,
					     vdevice_id));
	park_call(VDEVICE_DESTROY, &self->unreg);
	call_start(call);
	EXPECT_WAITING(call);
	EXPECT_WAITING(&self->unreg);
	park(VDEVICE_DESTROY, RELEASE);
	EXPECT_EQ(0, call_end(call));
	EXPECT_EQ(0, call_end(&self->unreg));
}

TEST_F(iommufd_revoke, L7_vdevice_destroy_during_revocation)
{
	struct call call = CALL(destroy, self->vm.fd, 0);

	vdevice_revoking(_metadata, self, &call.id, &call);
	EXPECT_ERRNO(ENOENT, vm_destroy(&self->vm, call.id));
	ASSERT_EQ(0, vm_unplug(&self->vm));
}

TEST_F(iommufd_revoke, L10_unplug_during_revocation)
{
	struct call call = CALL(destroy, self->vm.fd, self->vm.stdev_id);
	uint32_t vdevice_id;

	vdevice_revoking(_metadata, self, &vdevice_id, &call);
	/* It was revoked, which comes first */
	ASSERT_EQ(0, vm_destroy(&self->vm, vdevice_id));
}

TEST_F(iommufd_revoke, L7_close_during_vdevice_revocation)
{
	struct call call = CALL(close, self->vm.fd, 0);
	uint32_t vdevice_id;

	vdevice_revoking(_metadata, self, &vdevice_id, &call);
	self->vm.fd = -1;
}

/* The unplug has the vDEVICE in its hands when unregister begins */
TEST_F(iommufd_revoke, L10_unregister_during_unplug)
{
	struct call unplug = CALL(destroy, self->vm.fd, self->vm.stdev_id);
	uint32_t viommu_id, vdevice_id;

	ASSERT_EQ(0, vm_viommu(&self->vm, &viommu_id));
	ASSERT_EQ(0, _test_cmd_vdevice_alloc(self->vm.fd, viommu_id,
					     self->vm.device_id, 1,
					     &vdevice_id));
	park_call(VDEVICE_DESTROY, &unplug);
	unregister_begin(_metadata, &self->unreg, &self->probe);
	ASSERT_EQ(0, vm_unplug(&self->probe));
	EXPECT_WAITING(&unplug);
	EXPECT_WAITING(&self->unreg);
	park(VDEVICE_DESTROY, RELEASE);
	EXPECT_EQ(0, call_end(&unplug));
	EXPECT_EQ(0, call_end(&self->unreg));
	EXPECT_ERRNO(ENOENT, vm_destroy(&self->vm, vdevice_id));
	ASSERT_EQ(0, vm_destroy(&self->vm, viommu_id));
}

/* A VM with one of everything, in whatever state it can be */
struct full_vm {
	struct vm vm;
	uint32_t viommu_id;
	uint32_t vdevice_id;
	uint32_t nested_id;
	uint32_t unused_id;
	uint32_t fault_id;
	uint32_t fault_fd;
	uint32_t veventq_id;
	int veventq_fd;
	uint32_t hw_queue_id[2];
	uint32_t *map;
	struct iommu_viommu_selftest data;
	__u64 iova;
};

/* To be used with ASSERT_EQ(0, ...) */
static int full_vm_open(struct full_vm *full, uint32_t iommu_id)
{
	struct vm *vm = &full->vm;
	struct iommu_hwpt_pgfault fault;
	int i;

	if (vm_open(vm, iommu_id))
		return 1;
	full->iova = MOCK_APERTURE_START;
	if (_test_ioctl_ioas_map(vm->fd, vm->ioas_id, buffer, PAGE_SIZE,
				 &full->iova,
				 IOMMU_IOAS_MAP_FIXED_IOVA |
					 IOMMU_IOAS_MAP_WRITEABLE |
					 IOMMU_IOAS_MAP_READABLE))
		return 2;
	full->data.in_data = 0x12345678;
	if (_test_cmd_viommu_alloc(vm->fd, vm->device_id, vm->parent_id, 0,
				   IOMMU_VIOMMU_TYPE_SELFTEST, &full->data,
				   sizeof(full->data), &full->viommu_id))
		return 3;
	full->map = mmap(NULL, full->data.out_mmap_length,
			 PROT_READ | PROT_WRITE, MAP_SHARED, vm->fd,
			 full->data.out_mmap_offset);
	if (full->map == MAP_FAILED || *full->map != full->data.in_data)
		return 4;
	if (_test_cmd_vdevice_alloc(vm->fd, full->viommu_id, vm->device_id, 1,
				    &full->vdevice_id))
		return 5;
	if (_test_ioctl_fault_alloc(vm->fd, &full->fault_id, &full->fault_fd))
		return 6;
	if (vm_nested_fault(vm, full->viommu_id, full->fault_id,
			    &full->nested_id))
		return 7;
	if (vm_nested(vm, full->viommu_id, &full->unused_id))
		return 8;
	if (vm_attach(vm, full->nested_id))
		return 9;
	/* One fault is not answered, another one not read */
	for (i = 0; i != 2; i++) {
		if (trigger_iopf(vm->fd, vm->device_id, i))
			return 10;
		if (!i && read(full->fault_fd, &fault, sizeof(fault)) !=
				  sizeof(fault))
			return 11;
	}
	/* Full, and events are lost */
	if (_test_cmd_veventq_alloc(vm->fd, full->viommu_id,
				    IOMMU_VEVENTQ_TYPE_SELFTEST, 2,
				    &full->veventq_id, &full->veventq_fd))
		return 12;
	for (i = 0; i != 3; i++)
		if (_test_cmd_trigger_vevent(vm->fd, vm->device_id, false))
			return 13;
	for (i = 0; i != 2; i++)
		if (_test_cmd_hw_queue_alloc(vm->fd, full->viommu_id,
					     IOMMU_HW_QUEUE_TYPE_SELFTEST, i,
					     full->iova, PAGE_SIZE,
					     &full->hw_queue_id[i]))
			return 14;
	return 0;
}

/* Touching what is mapped; in a process of its own, for it may not survive it */
static int map_signal(uint32_t *map)
{
	int status;
	pid_t pid = fork();

	if (pid == -1)
		return -1;
	if (!pid) {
		signal(SIGBUS, SIG_DFL);
		_exit(__atomic_load_n(map, __ATOMIC_RELAXED) ? 0 : 1);
	}
	if (waitpid(pid, &status, 0) != pid)
		return -1;
	return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

static int call_poll(int fd, uint32_t id, struct call *call)
{
	struct pollfd pollfd = { .fd = fd, .events = POLLIN };

	if (poll(&pollfd, 1, 10000) != 1)
		return -1;
	call->out_id = pollfd.revents;
	return 0;
}

/* All of them are revoked, the ones on top first, and can be destroyed */
TEST_F(iommufd_revoke, L6_everything)
{
	struct {
		struct iommufd_vevent_header header;
		struct iommu_viommu_event_selftest event;
	} event;
	struct full_vm full, other;
	struct pollfd pollfd;
	struct call polling;
	uint32_t type_id;
	int type_fd;

	ASSERT_EQ(0, full_vm_open(&full, self->iommu_id));
	ASSERT_EQ(0, full_vm_open(&other, 0));
	/* And one that is asleep, in a queue that is empty */
	ASSERT_EQ(0, _test_cmd_veventq_alloc(full.vm.fd, full.viommu_id,
					     IOMMU_VEVENTQ_TYPE_SELFTEST + 1, 1,
					     &type_id, &type_fd));
	polling = CALL(poll, type_fd, 0);
	call_start(&polling);
	EXPECT_WAITING(&polling);

	unregister();
	EXPECT_EQ(0, call_end(&polling));
	EXPECT_EQ(POLLHUP, polling.out_id);
	EXPECT_EQ(SIGBUS, map_signal(full.map));

	/* Every ioctl, by every ID */
#define gone(call) EXPECT_ERRNO(ENODEV, call)
	gone(_test_cmd_viommu_call(full.vm.fd, full.viommu_id));
	gone(_test_cmd_vdevice_alloc(full.vm.fd, full.viommu_id,
				     full.vm.device_id, 2, NULL));
	gone(_test_cmd_veventq_alloc(full.vm.fd, full.viommu_id, 5, 1, &type_id,
				     &type_fd));
	gone(_test_cmd_hw_queue_alloc(full.vm.fd, full.viommu_id,
				      IOMMU_HW_QUEUE_TYPE_SELFTEST, 0,
				      full.iova, PAGE_SIZE, NULL));
	gone(_test_cmd_trigger_vevent(full.vm.fd, full.vm.device_id, false));
	polling = CALL(invalidate, full.vm.fd, 0);
#define gone_id(_id)                                                       \
	({                                                                 \
		uint32_t __id = _id;                                       \
									   \
		gone(call_invalidate(full.vm.fd, __id, &polling));         \
		gone(_test_cmd_mock_domain_replace(full.vm.fd,             \
						   full.vm.stdev_id, __id, \
						   NULL));                 \
	})
	gone_id(full.viommu_id);
	gone_id(full.nested_id);
	gone_id(full.unused_id);
	gone_id(full.vdevice_id);
	gone_id(full.veventq_id);
	gone_id(full.hw_queue_id[0]);
	gone_id(full.hw_queue_id[1]);
#undef gone_id
#undef gone

	/* The events are there still, and that one was lost */
	pollfd = (struct pollfd){ .fd = full.veventq_fd, .events = POLLIN };
	ASSERT_EQ(1, poll(&pollfd, 1, 0));
	EXPECT_EQ(POLLIN, pollfd.revents);
	ASSERT_EQ(sizeof(event), read(full.veventq_fd, &event, sizeof(event)));
	EXPECT_EQ(0, event.header.sequence);
	EXPECT_EQ(1, event.event.virt_id);
	ASSERT_EQ(sizeof(event), read(full.veventq_fd, &event, sizeof(event)));
	ASSERT_EQ(sizeof(event.header),
		  read(full.veventq_fd, &event, sizeof(event)));
	EXPECT_EQ(IOMMU_VEVENTQ_FLAG_LOST_EVENTS, event.header.flags);
	EXPECT_EQ(2, event.header.sequence);
	EXPECT_ERRNO(ENODEV, read(full.veventq_fd, &event, sizeof(event)));
	ASSERT_EQ(1, poll(&pollfd, 1, 0));
	EXPECT_EQ(POLLHUP, pollfd.revents);

	/*
	 * Each can be destroyed, in the order of the allocation, but for what has
	 * a user in user space: the file of a queue
	 */
	ASSERT_EQ(0, vm_destroy(&full.vm, full.vm.parent_id));
	ASSERT_EQ(0, vm_destroy(&full.vm, full.viommu_id));
	ASSERT_EQ(0, vm_destroy(&full.vm, full.vdevice_id));
	ASSERT_EQ(0, vm_destroy(&full.vm, full.nested_id));
	ASSERT_EQ(0, vm_destroy(&full.vm, full.unused_id));
	EXPECT_ERRNO(EBUSY, vm_destroy(&full.vm, full.veventq_id));
	ASSERT_EQ(0, close(full.veventq_fd));
	ASSERT_EQ(0, vm_destroy(&full.vm, full.veventq_id));
	ASSERT_EQ(0, vm_destroy(&full.vm, full.hw_queue_id[0]));
	ASSERT_EQ(0, vm_destroy(&full.vm, full.hw_queue_id[1]));
	ASSERT_EQ(0, vm_unplug(&full.vm));
	ASSERT_EQ(0, munmap(full.map, full.data.out_mmap_length));

	/* The other VM has not noticed anything */
	EXPECT_EQ(0, _test_cmd_viommu_call(other.vm.fd, other.viommu_id));
	EXPECT_EQ(other.data.in_data, *other.map);
	EXPECT_EQ(0, call_invalidate(other.vm.fd, other.viommu_id, &polling));
	ASSERT_EQ(sizeof(event), read(other.veventq_fd, &event, sizeof(event)));
	EXPECT_EQ(0, _test_cmd_trigger_vevent(other.vm.fd, other.vm.device_id,
					      false));
	EXPECT_ERRNO(EBUSY, vm_destroy(&other.vm, other.viommu_id));

	ASSERT_EQ(0, close(type_fd));
	ASSERT_EQ(0, close(full.fault_fd));
	ASSERT_EQ(0, close(full.vm.fd));
	ASSERT_EQ(0, munmap(other.map, other.data.out_mmap_length));
	ASSERT_EQ(0, close(other.veventq_fd));
	ASSERT_EQ(0, close(other.fault_fd));
	ASSERT_EQ(0, close(other.vm.fd));
}

/* The same when everything is closed without a word, before or after */
TEST_F(iommufd_revoke, L7_close_with_everything)
{
	struct full_vm full[2];
	uint64_t before;
	int i;

	before = destroys();
	for (i = 0; i != 2; i++) {
		ASSERT_EQ(0, full_vm_open(&full[i], self->iommu_id));
		/* The file of the vIOMMU stays, since these are open */
		ASSERT_EQ(0, close(full[i].vm.fd));
	}
	ASSERT_EQ(0, close(full[0].veventq_fd));
	ASSERT_EQ(0, close(full[0].fault_fd));
	ASSERT_EQ(0, munmap(full[0].map, full[0].data.out_mmap_length));
	EXPECT_EQ(before + 1, destroys());
	unregister();
	EXPECT_EQ(before + 2, destroys());
	EXPECT_EQ(SIGBUS, map_signal(full[1].map));
	ASSERT_EQ(0, munmap(full[1].map, full[1].data.out_mmap_length));
	ASSERT_EQ(0, close(full[1].fault_fd));
	ASSERT_EQ(0, close(full[1].veventq_fd));
	EXPECT_EQ(before + 2, destroys());
}

static int call_close_full(int fd, uint32_t id, struct call *call)
{
	struct full_vm *full = call->arg;

	return munmap(full->map, full->data.out_mmap_length) |
	       close(full->veventq_fd) | close(full->fault_fd) |
	       close(full->vm.fd);
}

TEST_F_TIMEOUT(iommufd_revoke, L7_close_with_everything_races, 120)
{
	struct call unreg, closing;
	struct full_vm full;
	uint32_t iommu_id;
	int i;

	for (i = 0; i != 50; i++) {
		ASSERT_EQ(0, _test_cmd_iommu_register(self->fd, 0, &iommu_id));
		ASSERT_EQ(0, full_vm_open(&full, iommu_id));
		unreg = CALL(unregister, self->fd, iommu_id);
		closing = CALL(close_full, -1, 0, .arg = &full);
		call_start(i % 2 ? &unreg : &closing);
		/* From one end of the overlap to the other */
		if (i > 2)
			usleep(i * 50);
		call_start(i % 2 ? &closing : &unreg);
		ASSERT_EQ(0, call_end(&closing));
		ASSERT_EQ(0, call_end(&unreg));
	}
	ASSERT_EQ(0, vm_unplug(&self->vm));
}

static int viommu_on(int fd, uint32_t device_id, uint32_t parent_id,
		     uint32_t *viommu_id)
{
	return _test_cmd_viommu_alloc(fd, device_id, parent_id, 0,
				      IOMMU_VIOMMU_TYPE_SELFTEST, NULL, 0,
				      viommu_id);
}

/* The module stays as long as there is a vIOMMU, with the device or not */
TEST(L8_module_in_use)
{
	uint32_t ioas_id, device_id, parent_id, viommu_id, id;
	int i, dev_fd;
	struct vm vm;

	if (module_load())
		SKIP(return, "needs the module " TEST_DRIVER);

	for (i = 0; i != 3; i++) {
		ASSERT_EQ(0, vm_open(&vm, 0));
		dev_fd = module_bind(vm.fd, &device_id);
		ASSERT_NE(-1, dev_fd);
		ASSERT_EQ(0, _test_ioctl_ioas_alloc(vm.fd, &ioas_id));
		ASSERT_EQ(0, _test_cmd_hwpt_alloc(vm.fd, device_id, ioas_id, 0,
						  IOMMU_HWPT_ALLOC_NEST_PARENT,
						  &parent_id,
						  IOMMU_HWPT_DATA_NONE, NULL,
						  0));

		/* A parent that another driver has made is refused */
		EXPECT_ERRNO(EINVAL,
			     viommu_on(vm.fd, device_id, vm.parent_id, &id));
		EXPECT_ERRNO(EINVAL,
			     viommu_on(vm.fd, vm.device_id, parent_id, &id));

		ASSERT_EQ(0, viommu_on(vm.fd, device_id, parent_id,
				       &viommu_id));

		/* Unbound and unplugged, nothing of the device is left */
		ASSERT_EQ(0, close(dev_fd));
		EXPECT_ERRNO(EWOULDBLOCK, module_unload());

		/* And back again, so this is not about the first device */
		dev_fd = open("/dev/" TEST_DRIVER, O_RDWR);
		ASSERT_NE(-1, dev_fd);
		ASSERT_EQ(0, close(dev_fd));
		EXPECT_ERRNO(EWOULDBLOCK, module_unload());

		EXPECT_ERRNO(EBUSY, vm_destroy(&vm, parent_id));
		ASSERT_EQ(0, vm_destroy(&vm, viommu_id));
		EXPECT_ERRNO(EWOULDBLOCK, module_unload());
		ASSERT_EQ(0, vm_destroy(&vm, parent_id));

		ASSERT_EQ(0, module_unload());
		ASSERT_EQ(0, close(vm.fd));
		ASSERT_EQ(0, module_load());
	}
	ASSERT_EQ(0, module_unload());
}

TEST_HARNESS_MAIN
