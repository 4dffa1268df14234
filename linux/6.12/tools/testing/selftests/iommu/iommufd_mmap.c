// SPDX-License-Identifier: GPL-2.0-only
/*
 * Regions of a vIOMMU, which are the hardware's and which a VM maps. A mapping must
 * not outlive the hardware: it gives SIGBUS when the physical IOMMU is gone.
 *
 * The number that a test's name begins with is that of a rule in "What always
 * holds", in Documentation/userspace-api/iommufd.rst.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>

#define __EXPORTED_HEADERS__
#include "iommufd_race.h"

#define NUM_VMS 2
#define IN_DATA(i) (0x5afe0000 + (i))
/* What may be read of a region: what is written to it has these bits */
#define IS_DATA(value) (((value) >> 16) == 0x5afe)

static __thread sigjmp_buf fault_env;
static __thread int fault_expected;

static void fault_handler(int sig)
{
	if (!__atomic_exchange_n(&fault_expected, 0, __ATOMIC_SEQ_CST)) {
		signal(sig, SIG_DFL);
		return;
	}
	siglongjmp(fault_env, sig);
}

static int fault_setup(void)
{
	struct sigaction action = {
		.sa_handler = fault_handler,
		.sa_flags = SA_NODEFER,
	};

	if (sigaction(SIGBUS, &action, NULL))
		return -1;
	return sigaction(SIGSEGV, &action, NULL);
}

/* 0, or the signal that an access got */
static int try_read(const uint32_t *ptr, uint32_t *value)
{
	int sig = sigsetjmp(fault_env, 0);

	if (sig)
		return sig;
	__atomic_store_n(&fault_expected, 1, __ATOMIC_SEQ_CST);
	*value = __atomic_load_n(ptr, __ATOMIC_SEQ_CST);
	__atomic_store_n(&fault_expected, 0, __ATOMIC_SEQ_CST);
	return 0;
}

static int try_write(uint32_t *ptr, uint32_t value)
{
	int sig = sigsetjmp(fault_env, 0);

	if (sig)
		return sig;
	__atomic_store_n(&fault_expected, 1, __ATOMIC_SEQ_CST);
	__atomic_store_n(ptr, value, __ATOMIC_SEQ_CST);
	__atomic_store_n(&fault_expected, 0, __ATOMIC_SEQ_CST);
	return 0;
}

#define EXPECT_DATA(data, ptr)                         \
	do {                                           \
		uint32_t __value = 0;                  \
						       \
		EXPECT_EQ(0, try_read(ptr, &__value)); \
		EXPECT_EQ(data, __value);              \
	} while (0)

#define EXPECT_FAULT(sig, ptr)                                  \
	do {                                                    \
		uint32_t *__ptr = (void *)(ptr);                \
		uint32_t __value;                               \
		int __sig = sig;                                \
								\
		EXPECT_EQ(__sig, try_read(__ptr, &__value));    \
		EXPECT_EQ(__sig, try_write(__ptr, IN_DATA(0))); \
	} while (0)

/* Another process, which does one thing after the other as it is told */
struct child {
	pid_t pid;
	int go;
	int done;
};

/* In the child, until the parent says so, and for good if it is gone */
static void child_wait(struct child *child)
{
	char c;

	if (read(child->go, &c, 1) != 1)
		_exit(1);
}

static void child_tell(struct child *child, int result)
{
	char c = result;

	if (write(child->done, &c, 1) != 1)
		_exit(1);
}

static pid_t child_fork(struct child *child)
{
	int go[2], done[2];

	if (pipe(go) || pipe(done))
		return -1;
	child->pid = fork();
	if (child->pid == -1)
		return -1;
	close(go[!child->pid]);
	close(done[!!child->pid]);
	/* The parent writes to the one and reads from the other */
	child->go = go[!!child->pid];
	child->done = done[!child->pid];
	return child->pid;
}

/* What the child tells after its next step, -1 if it died */
static int child_step(struct child *child)
{
	char c = 0;

	if (write(child->go, &c, 1) != 1 || read(child->done, &c, 1) != 1)
		return -1;
	return c;
}

static int child_end(struct child *child)
{
	int status = -1;

	close(child->go);
	close(child->done);
	if (waitpid(child->pid, &status, 0) != child->pid)
		return -1;
	return status;
}

struct region {
	uint32_t viommu_id;
	off_t offset;
	size_t length;
};

static int vm_region(struct vm *vm, uint32_t data, struct region *region)
{
	struct iommu_viommu_selftest arg = { .in_data = data };

	if (_test_cmd_viommu_alloc(vm->fd, vm->device_id, vm->parent_id, 0,
				   IOMMU_VIOMMU_TYPE_SELFTEST, &arg,
				   sizeof(arg), &region->viommu_id))
		return -1;
	region->offset = arg.out_mmap_offset;
	region->length = arg.out_mmap_length;
	return 0;
}

static uint32_t *map_region(struct vm *vm, struct region *region)
{
	return mmap(NULL, region->length, PROT_READ | PROT_WRITE, MAP_SHARED,
		    vm->fd, region->offset);
}

/* The second page of the region */
static uint32_t *page2(uint32_t *ptr)
{
	return ptr + PAGE_SIZE / sizeof(*ptr);
}

FIXTURE(iommufd_mmap)
{
	/* For test commands, has no objects of its own */
	int fd;
	uint32_t iommu_id[NUM_VMS];
	struct call unreg;
	struct vm vm[NUM_VMS];
	struct region region[NUM_VMS];
	uint64_t inits;
	uint64_t destroys;
};

FIXTURE_SETUP(iommufd_mmap)
{
	int i;

	self->fd = stats_open(&self->inits, &self->destroys);
	ASSERT_NE(-1, self->fd);
	ASSERT_EQ(0, fault_setup());
	for (i = 0; i != NUM_VMS; i++)
		self->vm[i].fd = -1;
	for (i = 0; i != NUM_VMS; i++) {
		ASSERT_EQ(0, _test_cmd_iommu_register(self->fd, 0,
						      &self->iommu_id[i]));
		ASSERT_EQ(0, vm_open(&self->vm[i], self->iommu_id[i]));
		ASSERT_EQ(0, vm_region(&self->vm[i], IN_DATA(i),
				       &self->region[i]));
		ASSERT_EQ(2 * PAGE_SIZE, self->region[i].length);
		ASSERT_NE(0, self->region[i].offset);
	}
	/* Each file has its own offsets, what tells them apart is the file */
	ASSERT_EQ(self->region[0].offset, self->region[1].offset);
	self->unreg = CALL(unregister, self->fd, self->iommu_id[0]);
}

FIXTURE_TEARDOWN(iommufd_mmap)
{
	int i;

	EXPECT_EQ(0, unpark_all(self->fd));
	for (i = 0; i != NUM_VMS; i++) {
		EXPECT_EQ(0, vm_close(&self->vm[i]));
		/* What a test has left mapped is revoked here, if not before */
		EXPECT_EQ(0, iommu_end(self->fd, self->iommu_id[i]));
	}
	EXPECT_EQ(0, stats_close(self->fd, self->inits, self->destroys));
}

#define unregister() \
	ASSERT_EQ(0, _test_cmd_iommu_unregister(self->fd, self->iommu_id[0]))

#define map_it(i)                                                       \
	({                                                              \
		unsigned int __i = i;                                   \
		uint32_t *__ptr =                                       \
			map_region(&self->vm[__i], &self->region[__i]); \
									\
		ASSERT_NE(MAP_FAILED, __ptr);                           \
		__ptr;                                                  \
	})

#define destroy_it(i)                                             \
	({                                                        \
		unsigned int __i = i;                             \
								  \
		_test_ioctl_destroy(self->vm[__i].fd,             \
				    self->region[__i].viommu_id); \
	})

#define destroy_parent() vm_destroy(&self->vm[0], self->vm[0].parent_id)

#define EXPECT_NO_MMAP(_errno, length, prot, flags, offset)           \
	do {                                                          \
		errno = 0;                                            \
		EXPECT_EQ(MAP_FAILED, mmap(NULL, length, prot, flags, \
					   self->vm[0].fd, offset));  \
		EXPECT_EQ(_errno, errno);                             \
	} while (0)

#define PROT_RW (PROT_READ | PROT_WRITE)

/* What the driver has handed out, and nothing else */
TEST_F(iommufd_mmap, offset_and_length)
{
	const size_t length = self->region[0].length;
	const off_t offset = self->region[0].offset;
	struct region more[3];
	uint32_t viommu_id;
	int i;

	EXPECT_NO_MMAP(ENXIO, PAGE_SIZE, PROT_RW, MAP_SHARED, offset);
	EXPECT_NO_MMAP(ENXIO, PAGE_SIZE, PROT_RW, MAP_SHARED,
		       offset + PAGE_SIZE);
	EXPECT_NO_MMAP(ENXIO, length + PAGE_SIZE, PROT_RW, MAP_SHARED, offset);
	EXPECT_NO_MMAP(ENXIO, length, PROT_RW, MAP_SHARED, offset + PAGE_SIZE);
	EXPECT_NO_MMAP(ENXIO, length, PROT_RW, MAP_SHARED, offset - PAGE_SIZE);
	EXPECT_NO_MMAP(ENXIO, length + PAGE_SIZE, PROT_RW, MAP_SHARED,
		       offset - PAGE_SIZE);
	EXPECT_NO_MMAP(ENXIO, length, PROT_RW, MAP_SHARED, 0);
	EXPECT_NO_MMAP(ENXIO, length, PROT_RW, MAP_SHARED, offset + length);
	EXPECT_NO_MMAP(ENXIO, length, PROT_RW, MAP_SHARED, 1ULL << 40);
	EXPECT_NO_MMAP(ENXIO, length, PROT_RW, MAP_SHARED,
		       (1ULL << 63) - 2 * length);
	/* A vIOMMU without the data has no region */
	ASSERT_EQ(0, vm_viommu(&self->vm[0], &viommu_id));
	EXPECT_NO_MMAP(ENXIO, length, PROT_RW, MAP_SHARED, offset + length);

	/* Regions that another file has */
	for (i = 0; i != 3; i++) {
		ASSERT_EQ(0, vm_region(&self->vm[1], IN_DATA(i), &more[i]));
		EXPECT_NE(offset, more[i].offset);
		EXPECT_NO_MMAP(ENXIO, length, PROT_RW, MAP_SHARED,
			       more[i].offset);
	}

	/* Two regions side by side are two regions */
	ASSERT_EQ(0, vm_region(&self->vm[0], IN_DATA(0), &more[0]));
	EXPECT_NO_MMAP(ENXIO, 2 * length, PROT_RW, MAP_SHARED,
		       offset < more[0].offset ? offset : more[0].offset);
	EXPECT_NO_MMAP(ENXIO, length, PROT_RW, MAP_SHARED, offset + PAGE_SIZE);

	/* All of that has left nothing behind */
	ASSERT_EQ(0, destroy_it(0));
	EXPECT_NO_MMAP(ENXIO, length, PROT_RW, MAP_SHARED, offset);
}

/* Pages that are not memory. What is there does not matter, if anything. */
TEST_F(iommufd_mmap, not_memory)
{
	struct region region;
	uint32_t *ptr;

	ASSERT_EQ(0, vm_region(&self->vm[0], IOMMU_TEST_REGION_MMIO, &region));
	ASSERT_EQ(2 * PAGE_SIZE, region.length);
	ptr = map_region(&self->vm[0], &region);
	ASSERT_NE(MAP_FAILED, ptr);
#if defined(__x86_64__)
	__atomic_store_n(ptr, __atomic_load_n(ptr, __ATOMIC_RELAXED),
			 __ATOMIC_RELAXED);
#endif
	EXPECT_ERRNO(EBUSY, vm_destroy(&self->vm[0], region.viommu_id));
	ASSERT_EQ(0, munmap(ptr, region.length));
	ASSERT_EQ(0, vm_destroy(&self->vm[0], region.viommu_id));
}

/* Offsets are as many as a file can have, and are used again when they are free */
TEST_F(iommufd_mmap, no_offset_left)
{
	struct region half, more;

	EXPECT_ERRNO(ENOSPC, vm_region(&self->vm[0],
				       IOMMU_TEST_REGION_TOO_LARGE, &half));
	ASSERT_EQ(0, vm_region(&self->vm[0], IOMMU_TEST_REGION_HALF, &half));
	/* There is not another half, since page 0 has no offset */
	EXPECT_ERRNO(ENOSPC,
		     vm_region(&self->vm[0], IOMMU_TEST_REGION_HALF, &more));
	ASSERT_EQ(0, vm_region(&self->vm[0], 0, &more));
	EXPECT_GE(more.offset, half.offset + half.length);
	ASSERT_EQ(0, vm_destroy(&self->vm[0], half.viommu_id));
	ASSERT_EQ(0, vm_region(&self->vm[0], IOMMU_TEST_REGION_HALF, &half));
	EXPECT_GE(half.offset, self->region[0].offset + self->region[0].length);
	EXPECT_LE(half.offset + half.length, more.offset);
	ASSERT_EQ(0, vm_destroy(&self->vm[0], half.viommu_id));
	ASSERT_EQ(0, vm_destroy(&self->vm[0], more.viommu_id));
}

TEST_F(iommufd_mmap, flags)
{
	const size_t length = self->region[0].length;
	const off_t offset = self->region[0].offset;

	EXPECT_NO_MMAP(EINVAL, length, PROT_RW, MAP_PRIVATE, offset);
	EXPECT_NO_MMAP(EINVAL, length, PROT_READ, MAP_PRIVATE, offset);
	EXPECT_NO_MMAP(EPERM, length, PROT_READ | PROT_EXEC, MAP_SHARED,
		       offset);
	EXPECT_NO_MMAP(EPERM, length, PROT_EXEC, MAP_SHARED, offset);
	/* That is so wherever it is */
	EXPECT_NO_MMAP(EINVAL, length, PROT_RW, MAP_PRIVATE, 0);
	EXPECT_NO_MMAP(EPERM, length, PROT_EXEC, MAP_SHARED, 0);
	ASSERT_EQ(0, destroy_it(0));
}

/* Nor by way of what is allowed */
TEST_F(iommufd_mmap, protection)
{
	static const int prots[] = { PROT_NONE, PROT_READ, PROT_RW };
	const size_t length = self->region[0].length;
	uint32_t *ptr;
	size_t i;

	for (i = 0; i != ARRAY_SIZE(prots); i++) {
		ptr = mmap(NULL, length, prots[i], MAP_SHARED, self->vm[0].fd,
			   self->region[0].offset);
		ASSERT_NE(MAP_FAILED, ptr);
		EXPECT_ERRNO(EACCES, mprotect(ptr, length, PROT_EXEC));
		EXPECT_ERRNO(EACCES,
			     mprotect(ptr, length, PROT_READ | PROT_EXEC));
		EXPECT_ERRNO(EACCES,
			     mprotect(ptr, length, PROT_RW | PROT_EXEC));
		EXPECT_ERRNO(EACCES, mprotect(page2(ptr), PAGE_SIZE,
					      PROT_READ | PROT_EXEC));

		EXPECT_EQ(0, mprotect(ptr, length, PROT_READ));
		EXPECT_DATA(IN_DATA(0), ptr);
		EXPECT_EQ(SIGSEGV, try_write(ptr, 0));
		EXPECT_EQ(0, mprotect(ptr, length, PROT_RW));
		EXPECT_EQ(0, try_write(ptr, IN_DATA(0)));
		ASSERT_EQ(0, munmap(ptr, length));
	}
	ASSERT_EQ(0, destroy_it(0));
}

TEST_F(iommufd_mmap, shared_data)
{
	uint32_t *ptr[2], *other;
	size_t i;

	ptr[0] = map_it(0);
	ptr[1] = map_it(0);
	other = map_it(1);
	EXPECT_DATA(IN_DATA(0), ptr[0]);
	EXPECT_DATA(IN_DATA(1), other);
	for (i = 1; i != self->region[0].length / sizeof(*other); i++)
		ASSERT_EQ(0, ptr[1][i]);

	ASSERT_EQ(0, try_write(ptr[0], IN_DATA(2)));
	ASSERT_EQ(0, try_write(page2(ptr[1]), IN_DATA(3)));
	EXPECT_DATA(IN_DATA(2), ptr[1]);
	EXPECT_DATA(IN_DATA(3), page2(ptr[0]));
	EXPECT_DATA(IN_DATA(1), other);
	EXPECT_DATA(0, page2(other));

	/* It is the region's, not the mapping's */
	ASSERT_EQ(0, munmap(ptr[0], self->region[0].length));
	ASSERT_EQ(0, munmap(ptr[1], self->region[0].length));
	ptr[0] = map_it(0);
	EXPECT_DATA(IN_DATA(2), ptr[0]);
	EXPECT_DATA(IN_DATA(3), page2(ptr[0]));
}

TEST_F(iommufd_mmap, destroy_while_mapped)
{
	uint32_t *ptr[3];
	int i;

	for (i = 0; i != 3; i++)
		ptr[i] = map_it(0);
	for (i = 0; i != 3; i++) {
		EXPECT_ERRNO(EBUSY, destroy_it(0));
		EXPECT_ERRNO(EBUSY, destroy_parent());
		EXPECT_DATA(IN_DATA(0), ptr[i]);
		ASSERT_EQ(0, munmap(ptr[i], self->region[0].length));
	}
	ASSERT_EQ(0, destroy_it(0));
	EXPECT_NO_MMAP(ENXIO, self->region[0].length, PROT_RW, MAP_SHARED,
		       self->region[0].offset);
	ASSERT_EQ(0, destroy_parent());
}

/* Memory that is gone when the IOMMU is cannot be given to a device */
TEST_F(iommufd_mmap, not_to_be_pinned)
{
	uint32_t *ptr = map_it(0);
	uint32_t value = 0;
	int fd;

	EXPECT_DATA(IN_DATA(0), ptr);
	EXPECT_ERRNO(EFAULT, map_at(self->vm[0].fd, self->vm[0].ioas_id, ptr,
				    PAGE_SIZE, MOCK_APERTURE_START, MAP_RW));
	fd = open("/proc/self/mem", O_RDONLY);
	ASSERT_NE(-1, fd);
	EXPECT_ERRNO(EIO, pread(fd, &value, sizeof(value), (uintptr_t)ptr));
	ASSERT_EQ(0, close(fd));
	EXPECT_EQ(0, value);
	ASSERT_EQ(0, munmap(ptr, self->region[0].length));
	ASSERT_EQ(0, destroy_it(0));
}

/* The child has it as long as it lives, with the parent or without */
TEST_F(iommufd_mmap, fork)
{
	uint32_t *ptr = map_it(0);
	struct child child;
	uint32_t value;

	EXPECT_DATA(IN_DATA(0), ptr);
	ASSERT_NE(-1, child_fork(&child));
	if (!child.pid) {
		child_wait(&child);
		child_tell(&child,
			   try_read(ptr, &value) || value != IN_DATA(5));
		child_wait(&child);
		child_tell(&child, try_write(page2(ptr), IN_DATA(6)));
		child_wait(&child);
		_exit(0);
	}
	ASSERT_EQ(0, try_write(ptr, IN_DATA(5)));
	EXPECT_EQ(0, child_step(&child));
	ASSERT_EQ(0, munmap(ptr, self->region[0].length));
	EXPECT_ERRNO(EBUSY, destroy_it(0));
	EXPECT_EQ(0, child_step(&child));
	EXPECT_ERRNO(EBUSY, destroy_it(0));
	ptr = map_it(0);
	EXPECT_DATA(IN_DATA(6), page2(ptr));
	ASSERT_EQ(0, munmap(ptr, self->region[0].length));
	ASSERT_EQ(0, kill(child.pid, SIGKILL));
	EXPECT_EQ(SIGKILL, child_end(&child));
	ASSERT_EQ(0, destroy_it(0));
}

TEST_F(iommufd_mmap, fork_without_mapping)
{
	uint32_t *ptr = map_it(0);
	struct child child;

	EXPECT_DATA(IN_DATA(0), ptr);
	ASSERT_EQ(0, madvise(ptr, self->region[0].length, MADV_DONTFORK));
	ASSERT_NE(-1, child_fork(&child));
	if (!child.pid) {
		child_wait(&child);
		child_tell(&child, try_write(ptr, 0));
		child_wait(&child);
		_exit(0);
	}
	EXPECT_EQ(SIGSEGV, child_step(&child));
	EXPECT_DATA(IN_DATA(0), ptr);
	ASSERT_EQ(0, munmap(ptr, self->region[0].length));
	/* The child has the file, and nothing of the region */
	ASSERT_EQ(0, destroy_it(0));
	ASSERT_EQ(0, kill(child.pid, SIGKILL));
	EXPECT_EQ(SIGKILL, child_end(&child));
}

TEST_F(iommufd_mmap, mremap)
{
	const size_t length = self->region[0].length;
	uint32_t *ptr = map_it(0);
	uint32_t *to, *to2;

	to = mmap(NULL, 4 * length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
		  0);
	ASSERT_NE(MAP_FAILED, to);
	ASSERT_EQ(0, try_write(page2(ptr), IN_DATA(4)));

	/* There is nothing to grow into, and a second mapping takes mmap() */
#define EXPECT_NO_MREMAP(_errno, args...)            \
	do {                                         \
		errno = 0;                           \
		EXPECT_EQ(MAP_FAILED, mremap(args)); \
		EXPECT_EQ(_errno, errno);            \
	} while (0)
	EXPECT_NO_MREMAP(EFAULT, ptr, length, length + PAGE_SIZE, 0);
	EXPECT_NO_MREMAP(EFAULT, ptr, length, length + PAGE_SIZE,
			 MREMAP_MAYMOVE);
	EXPECT_NO_MREMAP(EFAULT, page2(ptr), PAGE_SIZE, length, MREMAP_MAYMOVE);
	EXPECT_NO_MREMAP(EFAULT, ptr, 0, length, MREMAP_MAYMOVE);
	EXPECT_NO_MREMAP(EINVAL, ptr, length, length,
			 MREMAP_MAYMOVE | MREMAP_DONTUNMAP);
#undef EXPECT_NO_MREMAP

	ASSERT_EQ(to, mremap(ptr, length, length, MREMAP_MAYMOVE | MREMAP_FIXED,
			     to));
	EXPECT_FAULT(SIGSEGV, ptr);
	EXPECT_DATA(IN_DATA(0), to);
	EXPECT_DATA(IN_DATA(4), page2(to));
	EXPECT_ERRNO(EBUSY, destroy_it(0));

	/* Only the second page, which stays the second one */
	to2 = to + 4 * PAGE_SIZE / sizeof(*to);
	ASSERT_EQ(to2, mremap(page2(to), PAGE_SIZE, PAGE_SIZE,
			      MREMAP_MAYMOVE | MREMAP_FIXED, to2));
	EXPECT_FAULT(SIGSEGV, page2(to));
	EXPECT_DATA(IN_DATA(0), to);
	EXPECT_DATA(IN_DATA(4), to2);
	ASSERT_EQ(0, munmap(to, PAGE_SIZE));
	EXPECT_ERRNO(EBUSY, destroy_it(0));
	ASSERT_EQ(0, munmap(to2, PAGE_SIZE));

	/* Shrink, also one that no page of was touched */
	ptr = map_it(0);
	ASSERT_EQ(ptr, mremap(ptr, length, PAGE_SIZE, 0));
	EXPECT_FAULT(SIGSEGV, page2(ptr));
	EXPECT_DATA(IN_DATA(0), ptr);
	EXPECT_ERRNO(EBUSY, destroy_it(0));
	ASSERT_EQ(0, munmap(ptr, PAGE_SIZE));
	ASSERT_EQ(0, destroy_it(0));
}

/* As long as a page of it is mapped */
TEST_F(iommufd_mmap, munmap_one_page)
{
	const size_t length = self->region[0].length;
	uint32_t *ptr;
	int i;

	ptr = map_it(0);
	ASSERT_EQ(0, try_write(page2(ptr), IN_DATA(2)));
	ASSERT_EQ(0, munmap(ptr, length));

	/* The first page of the one, the second of the other; touched or not */
	for (i = 0; i != 4; i++) {
		uint32_t *gone, *left;

		ptr = map_it(0);
		gone = i & 1 ? page2(ptr) : ptr;
		left = i & 1 ? ptr : page2(ptr);
		if (i & 2) {
			EXPECT_DATA(IN_DATA(0), ptr);
			EXPECT_DATA(IN_DATA(2), page2(ptr));
		}
		ASSERT_EQ(0, munmap(gone, PAGE_SIZE));
		EXPECT_FAULT(SIGSEGV, gone);
		EXPECT_DATA(i & 1 ? IN_DATA(0) : IN_DATA(2), left);
		EXPECT_ERRNO(EBUSY, destroy_it(0));
		ASSERT_EQ(0, munmap(left, PAGE_SIZE));
	}

	/* Split in two, which are counted both */
	ptr = map_it(0);
	ASSERT_EQ(0, mprotect(page2(ptr), PAGE_SIZE, PROT_READ));
	EXPECT_EQ(SIGSEGV, try_write(page2(ptr), 0));
	EXPECT_DATA(IN_DATA(2), page2(ptr));
	ASSERT_EQ(0, mprotect(page2(ptr), PAGE_SIZE, PROT_RW));
	EXPECT_EQ(0, try_write(page2(ptr), IN_DATA(2)));
	ASSERT_EQ(0, mprotect(ptr, PAGE_SIZE, PROT_NONE));
	EXPECT_ERRNO(EBUSY, destroy_it(0));
	ASSERT_EQ(0, munmap(ptr, length));
	ASSERT_EQ(0, destroy_it(0));
}

/* It is over when it is unmapped, which the teardown would otherwise find */
TEST_F(iommufd_mmap, close_while_mapped)
{
	uint64_t inits, before, after;
	uint32_t *ptr = map_it(0);

	ASSERT_EQ(0, _test_cmd_viommu_stats(self->fd, &inits, &before, NULL));
	ASSERT_EQ(0, close(self->vm[0].fd));
	self->vm[0].fd = -1;
	EXPECT_DATA(IN_DATA(0), ptr);
	EXPECT_EQ(0, try_write(page2(ptr), IN_DATA(1)));
	EXPECT_DATA(IN_DATA(1), page2(ptr));
	ASSERT_EQ(0, _test_cmd_viommu_stats(self->fd, &inits, &after, NULL));
	EXPECT_EQ(before, after);
	ASSERT_EQ(0, munmap(ptr, self->region[0].length));
	ASSERT_EQ(0, _test_cmd_viommu_stats(self->fd, &inits, &after, NULL));
	EXPECT_EQ(before + 1, after);
}

/* A region of a vIOMMU that user space does not have yet */

/* Wherever it may be in the first pages, to return how many there are */
static int map_anywhere(struct vm *vm, size_t length)
{
	int mapped = 0;
	void *ptr;
	int i;

	for (i = 0; i != 64; i++) {
		ptr = mmap(NULL, length, PROT_RW, MAP_SHARED, vm->fd,
			   (off_t)i * PAGE_SIZE);
		if (ptr != MAP_FAILED) {
			mapped++;
			munmap(ptr, length);
		} else if (errno != ENXIO) {
			return -1;
		}
	}
	return mapped;
}

TEST_F(iommufd_mmap, L12_unfinished_in_init)
{
	struct iommu_viommu_selftest data = { .in_data = IN_DATA(7) };
	struct iommu_viommu_alloc *cmd = buffer;
	struct call alloc =
		CALL(ioctl, self->vm[0].fd, IOMMU_VIOMMU_ALLOC, .arg = cmd);
	const size_t length = self->region[0].length;
	uint32_t id = free_id(self->vm[0].fd);
	uint32_t *ptr;
	int i;

	EXPECT_EQ(1, map_anywhere(&self->vm[0], length));
	for (i = 0; i != 2; i++) {
		*cmd = viommu_alloc_cmd(&self->vm[0], &data);
		data.out_mmap_offset = 0;
		park_call(VIOMMU_INIT, &alloc);
		EXPECT_EQ(1, map_anywhere(&self->vm[0], length));
		if (!i)
			ASSERT_EQ(0, mprotect(buffer, PAGE_SIZE, PROT_READ));
		park(VIOMMU_INIT, RELEASE);
		ASSERT_EQ(i ? 0 : -EFAULT, call_end(&alloc));
		ASSERT_EQ(0, mprotect(buffer, PAGE_SIZE, PROT_RW));
		EXPECT_EQ(1 + i, map_anywhere(&self->vm[0], length));
		if (!i)
			EXPECT_EQ(id, free_id(self->vm[0].fd));
	}
	ptr = mmap(NULL, length, PROT_RW, MAP_SHARED, self->vm[0].fd,
		   data.out_mmap_offset);
	ASSERT_NE(MAP_FAILED, ptr);
	EXPECT_DATA(IN_DATA(7), ptr);
	ASSERT_EQ(0, munmap(ptr, length));
	EXPECT_EQ(0, vm_destroy(&self->vm[0], cmd->out_viommu_id));
	EXPECT_EQ(0, destroy_it(0));
	EXPECT_EQ(0, destroy_parent());
}

/* The driver's answer is being written, or the ID: user space knows it early */
static void unfinished_in_answer(struct __test_metadata *_metadata,
				 struct _test_data_iommufd_mmap *self,
				 bool stall_data)
{
	struct iommu_viommu_selftest local_data = { .in_data = IN_DATA(7) };
	struct iommu_viommu_selftest *data = &local_data;
	struct iommu_viommu_alloc local_cmd;
	struct iommu_viommu_alloc *cmd = &local_cmd;
	struct call alloc = CALL(ioctl, self->vm[0].fd, IOMMU_VIOMMU_ALLOC);
	const size_t length = self->region[0].length;
	uint32_t id = free_id(self->vm[0].fd);
	uint64_t inits, before, after;
	int uffd;

	if (stall_data) {
		data = buffer;
		*data = local_data;
	} else {
		cmd = buffer;
	}
	*cmd = viommu_alloc_cmd(&self->vm[0], data);
	alloc.arg = cmd;
	ASSERT_EQ(0, _test_cmd_viommu_stats(self->fd, &inits, &before, NULL));
	uffd = STALL(&alloc, buffer, WP);
	EXPECT_EQ(1, map_anywhere(&self->vm[0], length));
	if (!stall_data) {
		EXPECT_NE(0, data->out_mmap_offset);
		EXPECT_NO_MMAP(ENXIO, length, PROT_RW, MAP_SHARED,
			       data->out_mmap_offset);
	}
	EXPECT_ERRNO(ENOENT, vm_destroy(&self->vm[0], id));
	ASSERT_EQ(-EFAULT, unstall(_metadata, &alloc, uffd, buffer, false));
	EXPECT_EQ(1, map_anywhere(&self->vm[0], length));
	EXPECT_EQ(id, free_id(self->vm[0].fd));
	ASSERT_EQ(0, _test_cmd_viommu_stats(self->fd, &inits, &after, NULL));
	EXPECT_EQ(before + 1, after);
	EXPECT_EQ(0, destroy_it(0));
	EXPECT_EQ(0, destroy_parent());
}

TEST_F(iommufd_mmap, L12_unfinished_in_answer_of_driver)
{
	unfinished_in_answer(_metadata, self, true);
}

TEST_F(iommufd_mmap, L12_unfinished_in_answer)
{
	unfinished_in_answer(_metadata, self, false);
}

/* One that is being destroyed is not there any more */
TEST_F(iommufd_mmap, mmap_during_destroy)
{
	struct call call =
		CALL(destroy, self->vm[0].fd, self->region[0].viommu_id);

	park_call(VIOMMU_DESTROY, &call);
	EXPECT_EQ(0, map_anywhere(&self->vm[0], self->region[0].length));
	park(VIOMMU_DESTROY, RELEASE);
	EXPECT_EQ(0, call_end(&call));
}

/* The physical IOMMU goes away */

static void child_expect_fault(struct child *child, uint32_t *ptr)
{
	uint32_t value;
	bool works;

	child_wait(child);
	works = try_read(ptr, &value) != SIGBUS ||
		try_write(ptr, 0) != SIGBUS ||
		try_read(page2(ptr), &value) != SIGBUS ||
		try_write(page2(ptr), 0) != SIGBUS;
	child_tell(child, works);
}

/* In two processes, one has touched the one page and one the other */
TEST_F(iommufd_mmap, L6_revoked_region)
{
	const size_t length = self->region[0].length;
	uint32_t *ptr = map_it(0), *other = map_it(1);
	struct child child, later;
	uint32_t *moved, value;

	EXPECT_DATA(IN_DATA(0), ptr);
	EXPECT_DATA(IN_DATA(1), other);
	EXPECT_EQ(0, try_write(page2(other), IN_DATA(9)));
	ASSERT_NE(-1, child_fork(&child));
	if (!child.pid) {
		child_wait(&child);
		child_tell(&child, try_write(page2(ptr), IN_DATA(1)));
		child_expect_fault(&child, ptr);
		child_wait(&child);
		child_tell(&child, munmap(ptr, length));
		child_wait(&child);
		_exit(0);
	}
	EXPECT_EQ(0, child_step(&child));

	unregister();
	EXPECT_FAULT(SIGBUS, ptr);
	EXPECT_FAULT(SIGBUS, page2(ptr));
	EXPECT_EQ(0, child_step(&child));
	EXPECT_NO_MMAP(ENXIO, length, PROT_RW, MAP_SHARED,
		       self->region[0].offset);
	EXPECT_ERRNO(ENODEV, _test_cmd_viommu_call(self->vm[0].fd,
						   self->region[0].viommu_id));

	/* The ID is not in use, and what is mapped is on its own */
	ASSERT_EQ(0, destroy_it(0));
	EXPECT_ERRNO(ENOENT, destroy_it(0));
	EXPECT_NO_MMAP(ENXIO, length, PROT_RW, MAP_SHARED,
		       self->region[0].offset);
	EXPECT_FAULT(SIGBUS, ptr);
	ASSERT_NE(-1, child_fork(&later));
	if (!later.pid) {
		child_expect_fault(&later, ptr);
		_exit(0);
	}
	EXPECT_EQ(0, child_step(&later));
	EXPECT_EQ(0, child_end(&later));
	moved = mmap(NULL, length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
		     0);
	ASSERT_NE(MAP_FAILED, moved);
	ASSERT_EQ(moved, mremap(ptr, length, length,
				MREMAP_MAYMOVE | MREMAP_FIXED, moved));
	EXPECT_FAULT(SIGBUS, moved);
	EXPECT_FAULT(SIGBUS, page2(moved));
	ASSERT_EQ(0, mprotect(moved, PAGE_SIZE, PROT_READ));
	EXPECT_EQ(SIGBUS, try_read(moved, &value));
	ASSERT_EQ(0, munmap(moved, PAGE_SIZE));
	EXPECT_FAULT(SIGBUS, page2(moved));
	ASSERT_EQ(0, munmap(page2(moved), PAGE_SIZE));
	EXPECT_EQ(0, child_step(&child));

	/* The other VM, with the same offset in another file */
	EXPECT_DATA(IN_DATA(1), other);
	EXPECT_DATA(IN_DATA(9), page2(other));
	EXPECT_EQ(0, try_write(other, IN_DATA(8)));
	EXPECT_DATA(IN_DATA(8), other);
	EXPECT_ERRNO(EBUSY, destroy_it(1));
	ASSERT_EQ(0, kill(child.pid, SIGKILL));
	EXPECT_EQ(SIGKILL, child_end(&child));
	/* Which the child had mapped as well */
	ASSERT_EQ(0, munmap(other, length));
	EXPECT_EQ(0, destroy_it(1));
}

/* A process that does nothing is not waited for, and finds it gone */
TEST_F(iommufd_mmap, L4_stopped_process)
{
	uint32_t *ptr = map_it(0);
	int status;
	pid_t pid;

	pid = fork();
	ASSERT_NE(-1, pid);
	if (!pid) {
		uint32_t value;

		if (try_read(ptr, &value) || value != IN_DATA(0))
			_exit(1);
		raise(SIGSTOP);
		/* As in a program that knows nothing of it */
		signal(SIGBUS, SIG_DFL);
		__atomic_store_n(ptr, value, __ATOMIC_SEQ_CST);
		_exit(2);
	}
	ASSERT_EQ(pid, waitpid(pid, &status, WUNTRACED));
	ASSERT_TRUE(WIFSTOPPED(status));
	call_start(&self->unreg);
	EXPECT_EQ(0, call_end(&self->unreg));
	ASSERT_EQ(0, kill(pid, SIGCONT));
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	ASSERT_TRUE(WIFSIGNALED(status));
	EXPECT_EQ(SIGBUS, WTERMSIG(status));
	ASSERT_EQ(0, destroy_it(0));
	ASSERT_EQ(0, munmap(ptr, self->region[0].length));
}

/* The file is closed, only what is mapped has it */
TEST_F(iommufd_mmap, L6_revoked_after_close)
{
	uint32_t *ptr = map_it(0);

	EXPECT_DATA(IN_DATA(0), ptr);
	ASSERT_EQ(0, close(self->vm[0].fd));
	self->vm[0].fd = -1;
	unregister();
	EXPECT_FAULT(SIGBUS, ptr);
	EXPECT_FAULT(SIGBUS, page2(ptr));
	ASSERT_EQ(0, munmap(ptr, self->region[0].length));
}

/* Two vIOMMUs on two IOMMUs in one file: only one of the regions is gone */
TEST_F(iommufd_mmap, L6_one_of_two_regions)
{
	struct vm second = { .fd = self->vm[0].fd };
	uint32_t *ptr[2], parent_id;
	struct region region;

	ASSERT_EQ(0, _test_ioctl_ioas_alloc(second.fd, &second.ioas_id));
	ASSERT_EQ(0, vm_plug(&second, self->iommu_id[1]));
	ASSERT_EQ(0,
		  vm_hwpt(&second, IOMMU_HWPT_ALLOC_NEST_PARENT, &parent_id));
	second.parent_id = parent_id;
	ASSERT_EQ(0, vm_region(&second, IN_DATA(3), &region));
	ptr[0] = map_it(0);
	ptr[1] = map_region(&second, &region);
	ASSERT_NE(MAP_FAILED, ptr[1]);
	EXPECT_DATA(IN_DATA(0), ptr[0]);
	EXPECT_DATA(IN_DATA(3), ptr[1]);
	unregister();
	EXPECT_FAULT(SIGBUS, ptr[0]);
	EXPECT_DATA(IN_DATA(3), ptr[1]);
	EXPECT_DATA(0, page2(ptr[1]));
	EXPECT_ERRNO(EBUSY, vm_destroy(&second, region.viommu_id));
	EXPECT_EQ(0, destroy_it(0));
	ASSERT_EQ(0, munmap(ptr[0], self->region[0].length));
	ASSERT_EQ(0, munmap(ptr[1], region.length));
	EXPECT_EQ(0, vm_destroy(&second, region.viommu_id));
}

/* Nobody else's page is taken out, even if it is at the same offset */
TEST_F(iommufd_mmap, L6_other_file)
{
	uint32_t *ptr[] = { map_it(0), map_it(1) };
	struct rusage before, after;
	uint32_t value = 0;
	int i;

	EXPECT_DATA(IN_DATA(0), ptr[0]);
	EXPECT_DATA(IN_DATA(1), ptr[1]);
	unregister();
	/* Twice, since the first one can be a fault itself */
	for (i = 0; i != 2; i++)
		ASSERT_EQ(0, getrusage(RUSAGE_THREAD, &before));
	EXPECT_EQ(0, try_read(ptr[1], &value));
	ASSERT_EQ(0, getrusage(RUSAGE_THREAD, &after));
	EXPECT_EQ(IN_DATA(1), value);
	EXPECT_EQ(before.ru_minflt, after.ru_minflt);
	EXPECT_FAULT(SIGBUS, ptr[0]);
	ASSERT_EQ(0, munmap(ptr[0], self->region[0].length));
	ASSERT_EQ(0, munmap(ptr[1], self->region[1].length));
}

/*
 * The vIOMMU is revoked, but the region is there so far. A process that has it
 * mapped uses it until it is not, and nothing new is mapped.
 */
TEST_F(iommufd_mmap, L6_fault_during_revocation)
{
	const size_t length = self->region[0].length;
	uint32_t *ptr = map_it(0), *second = map_it(0);
	struct child child;
	uint32_t value;

	EXPECT_DATA(IN_DATA(0), ptr);
	park_call(VIOMMU_DESTROY, &self->unreg);
	EXPECT_DATA(IN_DATA(0), ptr);
	EXPECT_DATA(0, page2(ptr));
	EXPECT_EQ(0, try_write(page2(ptr), IN_DATA(1)));
	EXPECT_EQ(0, map_anywhere(&self->vm[0], length));
	ASSERT_EQ(0, munmap(second, length));
	ASSERT_NE(-1, child_fork(&child));
	if (!child.pid) {
		child_wait(&child);
		child_tell(&child,
			   try_read(page2(ptr), &value) || value != IN_DATA(1));
		child_expect_fault(&child, ptr);
		_exit(0);
	}
	EXPECT_EQ(0, child_step(&child));
	EXPECT_ERRNO(EBUSY, destroy_it(0));
	EXPECT_EQ(0, call_is_done(&self->unreg));
	park(VIOMMU_DESTROY, RELEASE);
	EXPECT_EQ(0, call_end(&self->unreg));
	EXPECT_FAULT(SIGBUS, ptr);
	EXPECT_FAULT(SIGBUS, page2(ptr));
	EXPECT_EQ(0, child_step(&child));
	EXPECT_EQ(0, child_end(&child));
	EXPECT_EQ(0, destroy_it(0));
	ASSERT_EQ(0, munmap(ptr, length));
}

/* What has it mapped holds it until it is revoked in full, or unmapped */
TEST_F(iommufd_mmap, L7_destroy_during_revocation)
{
	struct call call =
		CALL(destroy, self->vm[0].fd, self->region[0].viommu_id);
	uint32_t *ptr = map_it(0);

	park_call(VIOMMU_DESTROY, &self->unreg);
	EXPECT_ERRNO(EBUSY, destroy_it(0));
	ASSERT_EQ(0, munmap(ptr, self->region[0].length));
	call_start(&call);
	WAIT_WHILE(_test_cmd_viommu_call(call.fd, call.id) && errno != ENOENT);
	EXPECT_WAITING(&call);
	EXPECT_EQ(0, call_is_done(&self->unreg));
	park(VIOMMU_DESTROY, RELEASE);
	EXPECT_EQ(0, call_end(&call));
	EXPECT_EQ(0, call_end(&self->unreg));
}

static int call_munmap(int fd, uint32_t id, struct call *call)
{
	return munmap(call->arg, 2 * PAGE_SIZE);
}

/* The file is released by the last munmap(), in the middle of the revocation */
TEST_F(iommufd_mmap, L7_last_munmap_during_revocation)
{
	struct call call = CALL(munmap, -1, 0, .arg = map_it(0));

	EXPECT_DATA(IN_DATA(0), (uint32_t *)call.arg);
	ASSERT_EQ(0, close(self->vm[0].fd));
	self->vm[0].fd = -1;
	park_call(VIOMMU_DESTROY, &self->unreg);
	call_start(&call);
	EXPECT_WAITING(&call);
	EXPECT_EQ(0, call_is_done(&self->unreg));
	park(VIOMMU_DESTROY, RELEASE);
	EXPECT_EQ(0, call_end(&call));
	EXPECT_EQ(0, call_end(&self->unreg));
}

/* Everything at once: what is read is what was written, until it is gone */

struct mmap_loop {
	struct vm vm;
	struct region region;
	uint32_t *ptr;
	unsigned int count;
};

/* 0 if it is gone, as it has to be; 1 if it is there */
static int use_region(uint32_t *ptr, uint32_t data)
{
	uint32_t value = data;
	int sig;

	sig = try_read(ptr, &value);
	if (!sig)
		sig = try_write(ptr, data);
	if ((sig && sig != SIGBUS) || !IS_DATA(value)) {
		errno = EIO;
		return -1;
	}
	return !sig;
}

static int call_use_loop(int fd, uint32_t id, struct call *call)
{
	struct mmap_loop *loop = call->arg;
	int ret;

	do {
		ret = use_region(id ? page2(loop->ptr) : loop->ptr,
				 IN_DATA(id));
		__atomic_add_fetch(&call->out_id, 1, __ATOMIC_RELEASE);
		/* So that those who do more get on as well */
		sched_yield();
	} while (ret > 0);
	return ret;
}

static int call_mmap_loop(int fd, uint32_t id, struct call *call)
{
	struct mmap_loop *loop = call->arg;
	const size_t length = loop->region.length;
	uint32_t *ptr, *to;
	int ret;

	for (;;) {
		__atomic_add_fetch(&call->out_id, 1, __ATOMIC_RELEASE);
		ptr = map_region(&loop->vm, &loop->region);
		if (ptr == MAP_FAILED)
			return errno == ENXIO ? 0 : -1;
		ret = use_region(ptr, IN_DATA(2));
		if (ret < 0)
			return -1;
		if (!id) {
			if (munmap(ptr, length))
				return -1;
			continue;
		}
		/* Moved, and one page after the other */
		to = mmap(NULL, length, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS,
			  -1, 0);
		if (to == MAP_FAILED ||
		    mremap(ptr, length, length, MREMAP_MAYMOVE | MREMAP_FIXED,
			   to) != to ||
		    use_region(to, IN_DATA(3)) < 0 ||
		    munmap(page2(to), PAGE_SIZE) || munmap(to, PAGE_SIZE))
			return -1;
	}
}

static int call_fork_loop(int fd, uint32_t id, struct call *call)
{
	struct mmap_loop *loop = call->arg;
	int status;
	pid_t pid;

	do {
		__atomic_add_fetch(&call->out_id, 1, __ATOMIC_RELEASE);
		pid = fork();
		if (pid == -1)
			return -1;
		if (!pid) {
			int ret = use_region(loop->ptr, IN_DATA(4));

			if (ret >= 0)
				ret = use_region(page2(loop->ptr), IN_DATA(5));
			_exit(ret + 1);
		}
		if (waitpid(pid, &status, 0) != pid)
			return -1;
		if (!WIFEXITED(status) || !WEXITSTATUS(status)) {
			errno = EIO;
			return -1;
		}
		/* 1 is that it was gone */
	} while (WEXITSTATUS(status) == 2);
	return 0;
}

TEST_F_TIMEOUT(iommufd_mmap, L6_use_races_unregister, 240)
{
	uint32_t *other = map_it(1);
	struct call call[5], unreg;
	struct mmap_loop loop;
	uint32_t iommu_id;
	int i, n;

	EXPECT_DATA(IN_DATA(1), other);
	for (i = 0; i != 50; i++) {
		ASSERT_EQ(0, _test_cmd_iommu_register(self->fd, 0, &iommu_id));
		ASSERT_EQ(0, vm_open(&loop.vm, iommu_id));
		ASSERT_EQ(0, vm_region(&loop.vm, IN_DATA(0), &loop.region));
		loop.ptr = map_region(&loop.vm, &loop.region);
		ASSERT_NE(MAP_FAILED, loop.ptr);
		*page2(loop.ptr) = IN_DATA(1);
		for (n = 0; n != 5; n++) {
			call[n] = (struct call){
				.fn = n < 2 ? call_use_loop :
				      n < 4 ? call_mmap_loop :
					      call_fork_loop,
				.id = n % 2,
				.arg = &loop,
			};
			call_start(&call[n]);
		}
		for (n = 0; n != 5; n++)
			while (__atomic_load_n(&call[n].out_id,
					       __ATOMIC_ACQUIRE) < 2) {
				ASSERT_EQ(0, call_is_done(&call[n]));
				sched_yield();
			}
		unreg = CALL(unregister, self->fd, iommu_id);
		call_start(&unreg);
		ASSERT_EQ(0, call_end(&unreg));
		for (n = 0; n != 5; n++)
			ASSERT_EQ(0, call_end(&call[n]));
		EXPECT_FAULT(SIGBUS, loop.ptr);
		EXPECT_EQ(0, vm_destroy(&loop.vm, loop.region.viommu_id));
		/* In either order */
		if (i % 2)
			ASSERT_EQ(0, close(loop.vm.fd));
		ASSERT_EQ(0, munmap(loop.ptr, loop.region.length));
		if (!(i % 2))
			ASSERT_EQ(0, close(loop.vm.fd));
		EXPECT_DATA(IN_DATA(1), other);
	}
	ASSERT_EQ(0, munmap(other, self->region[1].length));
}

TEST_HARNESS_MAIN
