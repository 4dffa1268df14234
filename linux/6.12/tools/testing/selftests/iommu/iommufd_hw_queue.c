// SPDX-License-Identifier: GPL-2.0-only
/*
 * What a VM shares with the physical IOMMU: HW queues, which are memory of the
 * VM that the hardware accesses, and regions of a vIOMMU, which are the
 * hardware's and which the VM maps. Neither may outlive the other side: the
 * memory stays pinned as long as there is a queue on it, and a mapping gives
 * SIGBUS when the physical IOMMU is gone.
 *
 * The order of events is forced by parking calls in the mock driver, or with a
 * page that user space serves. What the kernel itself sees (a queue that is
 * destroyed before one that depends on it, a use after the free) it tells with
 * a WARN or a report of KASAN.
 *
 * The number that a test's name begins with is that of a rule in "What always
 * holds", in Documentation/userspace-api/iommufd.rst.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/wait.h>

#define __EXPORTED_HEADERS__
#include "iommufd_race.h"

static __attribute__((constructor)) void setup_sizes(void)
{
	PAGE_SIZE = sysconf(_SC_PAGE_SIZE);
	BUFFER_SIZE = PAGE_SIZE * 2;
	buffer = mmap(NULL, BUFFER_SIZE, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert(buffer != MAP_FAILED);
}

static int vm_viommu(struct vm *vm, uint32_t *viommu_id)
{
	return _test_cmd_viommu_alloc(vm->fd, vm->device_id, vm->parent_id, 0,
				      IOMMU_VIOMMU_TYPE_SELFTEST, NULL, 0,
				      viommu_id);
}

static int map_at(int fd, uint32_t ioas_id, void *ptr, size_t length,
		  uint64_t iova, uint32_t flags)
{
	__u64 fixed = iova;

	return _test_ioctl_ioas_map(fd, ioas_id, ptr, length, &fixed,
				    IOMMU_IOAS_MAP_FIXED_IOVA | flags);
}

#define MAP_RW (IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE)

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

/*
 * Unregister has begun when an allocation is refused, here that of a VM
 * which has nothing else to do with the test.
 */
static void unregister_begin(struct __test_metadata *_metadata,
			     struct call *unreg, struct vm *probe)
{
	int tries = 0;

	if (probe->fd == -1)
		ASSERT_EQ(0, vm_open(probe, unreg->id));
	call_start(unreg);
	while (!vm_viommu(probe, NULL)) {
		ASSERT_GT(10000, tries++);
		sleep_ms(1);
	}
	ASSERT_EQ(ENODEV, errno);
}

/* What an ioctl says that takes IDs of any kind, for one that is not a HWPT */
static int id_errno(struct vm *other, uint32_t id)
{
	if (!_test_cmd_mock_domain_replace(other->fd, other->stdev_id, id,
					   NULL))
		return 0;
	return errno;
}

/* Begun to destroy, which is when the ID is gone */
static void wait_for_destroy(struct __test_metadata *_metadata,
			     struct vm *other, uint32_t id)
{
	int tries = 0;

	while (id_errno(other, id) != ENOENT) {
		ASSERT_GT(10000, tries++);
		sleep_ms(1);
	}
}

/* HW queues */

/* Pages that are one piece of physical memory, and pages on their own */
#define NUM_PAGES 4
#define BIG_IOVA ((uint64_t)MOCK_APERTURE_START)
#define BIG_LENGTH (NUM_PAGES * PAGE_SIZE)
#define PAGE_IOVA(i) (BIG_IOVA + 0x400000 + (i) * PAGE_SIZE)

FIXTURE(iommufd_hw_queue)
{
	/* For test commands, has no objects of its own */
	int fd;
	uint32_t iommu_id;
	struct call unreg;
	struct vm vm;
	uint32_t viommu_id;
	/* A device of the same file that stays, see id_errno() */
	struct vm other;
	/* Another VM behind the same IOMMU, see unregister_begin() */
	struct vm probe;
	uint8_t *big;
	uint8_t *page[NUM_PAGES];
	uint64_t inits;
	uint64_t destroys;
};

#define test_self struct _test_data_iommufd_hw_queue

static int map_big(test_self *self)
{
	return map_at(self->vm.fd, self->vm.ioas_id, self->big, BIG_LENGTH,
		      BIG_IOVA, MAP_RW);
}

static int map_page(test_self *self, int i)
{
	return map_at(self->vm.fd, self->vm.ioas_id, self->page[i], PAGE_SIZE,
		      PAGE_IOVA(i), MAP_RW);
}

static int unmap(test_self *self, uint64_t iova, uint64_t length)
{
	return _test_ioctl_ioas_unmap(self->vm.fd, self->vm.ioas_id, iova,
				      length, NULL);
}

#define unmap_all() unmap(self, 0, UINT64_MAX)

static int map_all(test_self *self)
{
	int i;

	if (map_big(self))
		return -1;
	for (i = 0; i != NUM_PAGES; i++)
		if (map_page(self, i))
			return -1;
	return 0;
}

FIXTURE_SETUP(iommufd_hw_queue)
{
	uint8_t *pages;
	int i;

	self->fd = open("/dev/iommu", O_RDWR);
	ASSERT_NE(-1, self->fd);
	ASSERT_EQ(0, unpark_all(self->fd));
	self->vm.fd = -1;
	self->probe.fd = -1;

	/* The length is rounded up to that of a huge page */
	self->big = mmap(NULL, BIG_LENGTH, PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_ANONYMOUS | MAP_HUGETLB |
				 MAP_POPULATE,
			 -1, 0);
	ASSERT_NE(MAP_FAILED, self->big);
	pages = mmap(NULL, NUM_PAGES * PAGE_SIZE, PROT_READ | PROT_WRITE,
		     MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	ASSERT_NE(MAP_FAILED, pages);
	for (i = 0; i != NUM_PAGES; i++)
		self->page[i] = pages + i * PAGE_SIZE;

	ASSERT_EQ(0, _test_cmd_viommu_stats(self->fd, &self->inits,
					    &self->destroys, NULL));
	ASSERT_EQ(0, _test_cmd_iommu_register(self->fd, 0, &self->iommu_id));
	self->unreg = (struct call){
		.fn = call_unregister,
		.fd = self->fd,
		.id = self->iommu_id,
	};
	ASSERT_EQ(0, vm_open(&self->vm, self->iommu_id));
	self->other.fd = self->vm.fd;
	ASSERT_EQ(0, _test_ioctl_ioas_alloc(self->vm.fd, &self->other.ioas_id));
	ASSERT_EQ(0, vm_plug(&self->other, 0));
	ASSERT_EQ(0, vm_viommu(&self->vm, &self->viommu_id));
	ASSERT_EQ(0, map_all(self));
}

/* When all is closed nothing is pinned, and all has been destroyed once */
FIXTURE_TEARDOWN(iommufd_hw_queue)
{
	uint64_t inits = 0, destroys = 1;

	EXPECT_EQ(0, unpark_all(self->fd));
	if (self->vm.fd != -1)
		EXPECT_EQ(0, close(self->vm.fd));
	if (self->probe.fd != -1)
		EXPECT_EQ(0, close(self->probe.fd));
	EXPECT_EQ(0, iommu_end(self->fd, self->iommu_id));
	EXPECT_EQ(0, _test_cmd_viommu_stats(self->fd, &inits, &destroys, NULL));
	EXPECT_EQ(inits - self->inits, destroys - self->destroys);
	check_refs(self->page[0], NUM_PAGES * PAGE_SIZE, 0);
	EXPECT_EQ(0, close(self->fd));
}

#define unregister() \
	ASSERT_EQ(0, _test_cmd_iommu_unregister(self->fd, self->iommu_id))

#define hw_queue(index, iova, length, id)                             \
	_test_cmd_hw_queue_alloc(self->vm.fd, self->viommu_id,        \
				 IOMMU_HW_QUEUE_TYPE_SELFTEST, index, iova, \
				 length, id)

#define destroy(id) _test_ioctl_destroy(self->vm.fd, id)

static struct iommu_hw_queue_alloc hw_queue_cmd(test_self *self, uint32_t index,
						uint64_t iova)
{
	return (struct iommu_hw_queue_alloc){
		.size = sizeof(struct iommu_hw_queue_alloc),
		.viommu_id = self->viommu_id,
		.type = IOMMU_HW_QUEUE_TYPE_SELFTEST,
		.index = index,
		.nesting_parent_iova = iova,
		.length = PAGE_SIZE,
	};
}

static int call_alloc(int fd, uint32_t id, struct call *call)
{
	return ioctl(fd, IOMMU_HW_QUEUE_ALLOC, call->arg);
}

/* No memory is in use by a queue, nor is anything else of what the VM has */
static void expect_no_queue(struct __test_metadata *_metadata, test_self *self)
{
	ASSERT_EQ(0, unmap_all());
	check_refs(self->page[0], NUM_PAGES * PAGE_SIZE, 0);
	EXPECT_EQ(0, destroy(self->viommu_id));
	EXPECT_EQ(0, destroy(self->vm.parent_id));
	EXPECT_EQ(0, destroy(self->vm.stdev_id));
	EXPECT_EQ(0, destroy(self->vm.ioas_id));
}

TEST_F(iommufd_hw_queue, alloc)
{
	uint32_t id[2] = {};
	int i;

	/* As often as one likes */
	for (i = 0; i != 3; i++) {
		ASSERT_EQ(0, hw_queue(0, BIG_IOVA, BIG_LENGTH, &id[0]));
		ASSERT_EQ(0, hw_queue(1, PAGE_IOVA(0), PAGE_SIZE, &id[1]));
		ASSERT_NE(0, id[0]);
		ASSERT_NE(0, id[1]);
		ASSERT_NE(id[0], id[1]);

		/* The second one needs the first, both what is below them */
		EXPECT_ERRNO(EBUSY, destroy(id[0]));
		EXPECT_ERRNO(EBUSY, destroy(self->viommu_id));
		EXPECT_ERRNO(EBUSY, destroy(self->vm.parent_id));
		EXPECT_ERRNO(EBUSY, destroy(self->vm.ioas_id));
		ASSERT_EQ(0, destroy(id[1]));
		EXPECT_ERRNO(ENOENT, destroy(id[1]));
		EXPECT_ERRNO(EBUSY, destroy(self->viommu_id));
		ASSERT_EQ(0, destroy(id[0]));
		EXPECT_ERRNO(ENOENT, destroy(id[0]));
	}
	expect_no_queue(_metadata, self);
}

/* After each of the errors all of the memory can be unmapped */
#define test_err_alloc(_errno, fields...)                                   \
	({                                                                  \
		struct iommu_hw_queue_alloc bad =                           \
			hw_queue_cmd(self, 0, PAGE_IOVA(0));                \
		uint32_t __id = free_id(self->vm.fd);                       \
									    \
		bad.out_hw_queue_id = 0xa5;                                 \
		fields;                                                     \
		EXPECT_ERRNO(_errno, ioctl(self->vm.fd,                     \
					   IOMMU_HW_QUEUE_ALLOC, &bad));    \
		EXPECT_EQ(0xa5, bad.out_hw_queue_id);                       \
		EXPECT_EQ(__id, free_id(self->vm.fd));                      \
		ASSERT_EQ(0, unmap_all());                                  \
		check_refs(self->page[0], NUM_PAGES * PAGE_SIZE, 0);        \
		ASSERT_EQ(0, map_all(self));                                \
	})

TEST_F(iommufd_hw_queue, alloc_bad_arguments)
{
	test_err_alloc(EOPNOTSUPP, bad.flags = 1);
	test_err_alloc(EOPNOTSUPP, bad.flags = 1U << 31);
	test_err_alloc(EOPNOTSUPP, bad.type = IOMMU_HW_QUEUE_TYPE_DEFAULT);
	test_err_alloc(EOPNOTSUPP, bad.type = IOMMU_HW_QUEUE_TYPE_SELFTEST + 1);
	test_err_alloc(EOPNOTSUPP, bad.type = UINT32_MAX);
	test_err_alloc(EINVAL, bad.length = 0);
	test_err_alloc(EINVAL, bad.index = IOMMU_TEST_HW_QUEUE_MAX);
	test_err_alloc(EINVAL, bad.index = UINT32_MAX);
	test_err_alloc(EIO, bad.index = 1);

	/* IDs that never were, and those of objects of another kind */
	test_err_alloc(ENOENT, bad.viommu_id = 0);
	test_err_alloc(ENOENT, bad.viommu_id = UINT32_MAX);
	test_err_alloc(ENOENT, bad.viommu_id = self->vm.ioas_id);
	test_err_alloc(ENOENT, bad.viommu_id = self->vm.stdev_id);
	test_err_alloc(ENOENT, bad.viommu_id = self->vm.device_id);
	test_err_alloc(ENOENT, bad.viommu_id = self->vm.parent_id);

	expect_no_queue(_metadata, self);
}

TEST_F(iommufd_hw_queue, alloc_overflow)
{
	const uint64_t max = UINT64_MAX;

#define test_range(_errno, iova, len)                           \
	test_err_alloc(_errno, bad.nesting_parent_iova = (iova), \
		       bad.length = (len))
	test_range(EOVERFLOW, PAGE_IOVA(0), max);
	test_range(EOVERFLOW, PAGE_IOVA(0), max - PAGE_IOVA(0) + 2);
	test_range(EOVERFLOW, 2, max);
	test_range(EOVERFLOW, max, 2);
	test_range(EOVERFLOW, max, max);
	test_range(EOVERFLOW, max - PAGE_SIZE + 1, PAGE_SIZE + 1);

	/* Up to the last address there is does not wrap around */
	test_range(ENOENT, PAGE_IOVA(0), max - PAGE_IOVA(0) + 1);
	test_range(ENOENT, 1, max);
	test_range(ENOENT, 0, max);
	test_range(ENOENT, max, 1);
	test_range(ENOENT, max - PAGE_SIZE + 1, PAGE_SIZE);
	expect_no_queue(_metadata, self);
}

/* Nothing is allocated for as much as user space says, if it is not mapped */
TEST_F(iommufd_hw_queue, alloc_not_mapped)
{
	uint64_t length;

	test_range(ENOENT, 0, 1);
	test_range(ENOENT, BIG_IOVA - PAGE_SIZE, PAGE_SIZE);
	test_range(ENOENT, BIG_IOVA + BIG_LENGTH, 1);
	test_range(ENOENT, PAGE_IOVA(NUM_PAGES), PAGE_SIZE);

	/* In part: before it, behind it, both, and a hole */
	test_range(ENOENT, BIG_IOVA - 1, 2);
	test_range(ENOENT, BIG_IOVA - PAGE_SIZE, 2 * PAGE_SIZE);
	test_range(ENOENT, BIG_IOVA, BIG_LENGTH + 1);
	test_range(ENOENT, BIG_IOVA + BIG_LENGTH - 1, 2);
	test_range(ENOENT, BIG_IOVA - PAGE_SIZE, BIG_LENGTH + 2 * PAGE_SIZE);
	test_range(ENOENT, BIG_IOVA, PAGE_IOVA(1) - BIG_IOVA);
	test_err_alloc(ENOENT, ({
		ASSERT_EQ(0, unmap(self, PAGE_IOVA(1), PAGE_SIZE));
		bad.length = 3 * PAGE_SIZE;
	}));

	for (length = 1ULL << 20; length < 1ULL << 63; length <<= 1) {
		test_range(ENOENT, BIG_IOVA, length);
		test_range(ENOENT, PAGE_IOVA(0), length);
	}
	expect_no_queue(_metadata, self);
}

#undef test_range

/* Pages of one piece of memory, but not in their order */
TEST_F(iommufd_hw_queue, alloc_not_contiguous)
{
	static const int pages[][2] = {
		{ 1, 0 }, { 0, 2 }, { 0, 0 }, { 3, 3 },
	};
	uint32_t id = free_id(self->vm.fd);
	uint32_t queue_id;
	size_t i;
	int j;

	for (i = 0; i != ARRAY_SIZE(pages); i++) {
		ASSERT_EQ(0, unmap_all());
		for (j = 0; j != 2; j++)
			ASSERT_EQ(0, map_at(self->vm.fd, self->vm.ioas_id,
					    self->big + pages[i][j] * PAGE_SIZE,
					    PAGE_SIZE, PAGE_IOVA(j), MAP_RW));
		EXPECT_ERRNO(EFAULT, hw_queue(0, PAGE_IOVA(0), 2 * PAGE_SIZE,
					      NULL));
		EXPECT_ERRNO(EFAULT, hw_queue(0, PAGE_IOVA(1) - 1, 2, NULL));
		EXPECT_EQ(id, free_id(self->vm.fd));
		EXPECT_EQ(0, unmap(self, PAGE_IOVA(0), PAGE_SIZE));
		EXPECT_EQ(0, map_page(self, 0));

		/* One page is always contiguous */
		ASSERT_EQ(0, hw_queue(0, PAGE_IOVA(1), PAGE_SIZE, &queue_id));
		ASSERT_EQ(0, destroy(queue_id));
	}

	/* The last one of many */
	ASSERT_EQ(0, unmap_all());
	ASSERT_EQ(0, map_big(self));
	ASSERT_EQ(0, map_at(self->vm.fd, self->vm.ioas_id, self->page[0],
			    PAGE_SIZE, BIG_IOVA + BIG_LENGTH, MAP_RW));
	EXPECT_ERRNO(EFAULT,
		     hw_queue(0, BIG_IOVA, BIG_LENGTH + PAGE_SIZE, NULL));
	EXPECT_EQ(id, free_id(self->vm.fd));
	expect_no_queue(_metadata, self);
}

/* How it was mapped does not matter, if the memory is one piece */
TEST_F(iommufd_hw_queue, alloc_across_areas)
{
	uint32_t id;
	int i;

	ASSERT_EQ(0, unmap_all());
	for (i = 0; i != NUM_PAGES; i++)
		ASSERT_EQ(0, map_at(self->vm.fd, self->vm.ioas_id,
				    self->big + i * PAGE_SIZE, PAGE_SIZE,
				    BIG_IOVA + i * PAGE_SIZE, MAP_RW));
	/* From inside the second one to the beginning of the last one */
	ASSERT_EQ(0, hw_queue(0, BIG_IOVA + PAGE_SIZE + 100, 2 * PAGE_SIZE,
			      &id));
	EXPECT_EQ(0, unmap(self, BIG_IOVA, PAGE_SIZE));
	for (i = 1; i != NUM_PAGES; i++)
		EXPECT_ERRNO(EBUSY, unmap(self, BIG_IOVA + i * PAGE_SIZE,
					  PAGE_SIZE));
	ASSERT_EQ(0, destroy(id));
	EXPECT_EQ(0, unmap(self, BIG_IOVA + PAGE_SIZE, 3 * PAGE_SIZE));
	expect_no_queue(_metadata, self);
}

/* The mock driver looks at the address that it is given */
TEST_F(iommufd_hw_queue, alloc_unaligned)
{
	const struct {
		uint64_t offset;
		uint64_t length;
	} ranges[] = {
		{ 0, 1 },
		{ 1, 1 },
		{ 100, 28 },
		{ PAGE_SIZE - 1, 1 },
		{ PAGE_SIZE - 1, 2 },
		{ PAGE_SIZE / 2, PAGE_SIZE },
		{ PAGE_SIZE / 2 + 1, 2 * PAGE_SIZE },
		{ BIG_LENGTH - 1, 1 },
		{ 1, BIG_LENGTH - 2 },
		{ 0, BIG_LENGTH },
	};
	uint32_t id;
	size_t i;

	for (i = 0; i != ARRAY_SIZE(ranges); i++) {
		ASSERT_EQ(0, hw_queue(0, BIG_IOVA + ranges[i].offset,
				      ranges[i].length, &id));
		EXPECT_ERRNO(EBUSY, unmap(self, BIG_IOVA, BIG_LENGTH));
		ASSERT_EQ(0, destroy(id));
		ASSERT_EQ(0, unmap(self, BIG_IOVA, BIG_LENGTH));
		ASSERT_EQ(0, map_big(self));
	}
	expect_no_queue(_metadata, self);
}

/* The mock IOMMU has pages that are half as large as those of the CPU */
static int map_half(test_self *self, uint64_t iova, size_t offset,
		    size_t length)
{
	return map_at(self->vm.fd, self->vm.ioas_id, self->big + offset, length,
		      iova, MAP_RW);
}

/* Other areas than that of the queue do not matter, before it or after it */
TEST_F(iommufd_hw_queue, half_pages_elsewhere)
{
	const size_t half = PAGE_SIZE / 2;
	uint32_t id;

	ASSERT_EQ(0, map_half(self, PAGE_IOVA(10), 0, half));
	ASSERT_EQ(0, map_half(self, PAGE_IOVA(12) + half, 0, PAGE_SIZE));
	ASSERT_EQ(0, hw_queue(0, BIG_IOVA, BIG_LENGTH, &id));
	ASSERT_EQ(0, map_half(self, PAGE_IOVA(14), half, PAGE_SIZE));
	EXPECT_EQ(0, unmap(self, PAGE_IOVA(10), half));
	ASSERT_EQ(0, map_half(self, PAGE_IOVA(10) + half, half, half));
	ASSERT_EQ(0, destroy(id));
	expect_no_queue(_metadata, self);
}

/*
 * Half a page at its place in the page: it is mapped, if not all of the page, and can
 * be had from the beginning of the page on only.
 */
TEST_F(iommufd_hw_queue, alloc_in_half_page)
{
	const size_t half = PAGE_SIZE / 2;
	uint32_t id;
	size_t i;

	for (i = 0; i != 2; i++) {
		uint64_t iova = PAGE_IOVA(10) + i * half;

		ASSERT_EQ(0, map_half(self, iova, i * half, half));
		EXPECT_ERRNO(ENOENT, hw_queue(0, iova - 1, half, NULL));
		EXPECT_ERRNO(ENOENT, hw_queue(0, iova + 1, half, NULL));
		if (i) {
			EXPECT_ERRNO(EINVAL, hw_queue(0, iova, half, NULL));
		} else {
			ASSERT_EQ(0, hw_queue(0, iova, half, &id));
			EXPECT_ERRNO(EBUSY, unmap(self, iova, half));
			ASSERT_EQ(0, destroy(id));
		}
		ASSERT_EQ(0, unmap(self, iova, half));
	}
	expect_no_queue(_metadata, self);
}

/*
 * An IOVA that is the n-th byte of a page of the IOAS, and another one of a
 * page of memory, is refused. What is before it is not pinned either.
 */
TEST_F(iommufd_hw_queue, alloc_misaligned_area)
{
	const size_t half = PAGE_SIZE / 2;
	uint32_t id = free_id(self->vm.fd);

	ASSERT_EQ(0, map_half(self, PAGE_IOVA(10), 0, PAGE_SIZE));
	ASSERT_EQ(0, map_half(self, PAGE_IOVA(11), PAGE_SIZE + half,
			      PAGE_SIZE));
	EXPECT_ERRNO(EINVAL, hw_queue(0, PAGE_IOVA(11), half, NULL));
	EXPECT_ERRNO(EINVAL,
		     hw_queue(0, PAGE_IOVA(10), PAGE_SIZE + half, NULL));

	/* Two halves of two pages are in one page of the IOAS */
	ASSERT_EQ(0, map_half(self, PAGE_IOVA(14), 0, half));
	ASSERT_EQ(0, map_half(self, PAGE_IOVA(14) + half, PAGE_SIZE + half,
			      half));
	EXPECT_ERRNO(EINVAL, hw_queue(0, PAGE_IOVA(14), PAGE_SIZE, NULL));
	EXPECT_EQ(id, free_id(self->vm.fd));
	expect_no_queue(_metadata, self);
}

/* The queue is read, so this is what its memory must be mapped for */
TEST_F(iommufd_hw_queue, alloc_protection)
{
	uint32_t id;

	ASSERT_EQ(0, unmap_all());
	ASSERT_EQ(0, map_at(self->vm.fd, self->vm.ioas_id, self->page[0],
			    PAGE_SIZE, PAGE_IOVA(0), IOMMU_IOAS_MAP_READABLE));
	ASSERT_EQ(0, map_at(self->vm.fd, self->vm.ioas_id, self->page[1],
			    PAGE_SIZE, PAGE_IOVA(1), IOMMU_IOAS_MAP_WRITEABLE));
	ASSERT_EQ(0, hw_queue(0, PAGE_IOVA(0), PAGE_SIZE, &id));
	EXPECT_EQ(-1, hw_queue(1, PAGE_IOVA(1), PAGE_SIZE, NULL));
	EXPECT_EQ(EPERM, errno);
	EXPECT_EQ(0, unmap(self, PAGE_IOVA(1), PAGE_SIZE));
	ASSERT_EQ(0, destroy(id));
	expect_no_queue(_metadata, self);
}

TEST_F(iommufd_hw_queue, alloc_index)
{
	uint32_t id[2], next;

	ASSERT_EQ(0, hw_queue(0, PAGE_IOVA(0), PAGE_SIZE, &id[0]));
	next = free_id(self->vm.fd);
	EXPECT_ERRNO(EEXIST, hw_queue(0, PAGE_IOVA(1), PAGE_SIZE, NULL));
	EXPECT_ERRNO(EINVAL, hw_queue(2, PAGE_IOVA(1), PAGE_SIZE, NULL));
	EXPECT_EQ(next, free_id(self->vm.fd));

	ASSERT_EQ(0, hw_queue(1, PAGE_IOVA(2), PAGE_SIZE, &id[1]));
	next = free_id(self->vm.fd);
	EXPECT_ERRNO(EEXIST, hw_queue(0, PAGE_IOVA(1), PAGE_SIZE, NULL));
	EXPECT_ERRNO(EEXIST, hw_queue(1, PAGE_IOVA(1), PAGE_SIZE, NULL));
	EXPECT_ERRNO(EEXIST, hw_queue(1, PAGE_IOVA(2), PAGE_SIZE, NULL));
	EXPECT_EQ(next, free_id(self->vm.fd));

	/* Nothing of that is pinned, nor is it one queue more to destroy */
	EXPECT_EQ(0, unmap(self, PAGE_IOVA(1), PAGE_SIZE));
	ASSERT_EQ(0, destroy(id[1]));
	EXPECT_EQ(0, unmap(self, PAGE_IOVA(2), PAGE_SIZE));
	ASSERT_EQ(0, destroy(id[0]));
	EXPECT_ERRNO(EIO, hw_queue(1, PAGE_IOVA(0), PAGE_SIZE, NULL));
	expect_no_queue(_metadata, self);
}

/* Each vIOMMU has its own */
TEST_F(iommufd_hw_queue, two_viommus)
{
	uint32_t viommu_id, id[3];

	ASSERT_EQ(0, vm_viommu(&self->vm, &viommu_id));
	ASSERT_EQ(0, hw_queue(0, PAGE_IOVA(0), PAGE_SIZE, &id[0]));
	EXPECT_ERRNO(EIO, _test_cmd_hw_queue_alloc(self->vm.fd, viommu_id,
						   IOMMU_HW_QUEUE_TYPE_SELFTEST,
						   1, PAGE_IOVA(1), PAGE_SIZE,
						   NULL));
	ASSERT_EQ(0, _test_cmd_hw_queue_alloc(self->vm.fd, viommu_id,
					      IOMMU_HW_QUEUE_TYPE_SELFTEST, 0,
					      PAGE_IOVA(0), PAGE_SIZE, &id[1]));
	ASSERT_EQ(0, hw_queue(1, PAGE_IOVA(1), PAGE_SIZE, &id[2]));
	EXPECT_EQ(0, destroy(id[1]));
	EXPECT_EQ(0, destroy(viommu_id));
	EXPECT_ERRNO(EBUSY, unmap(self, PAGE_IOVA(0), PAGE_SIZE));
	EXPECT_EQ(0, destroy(id[2]));
	EXPECT_EQ(0, destroy(id[0]));
	expect_no_queue(_metadata, self);
}

TEST_F(iommufd_hw_queue, alloc_size)
{
	struct {
		struct iommu_hw_queue_alloc cmd;
		uint8_t more[64];
	} arg = { .cmd = hw_queue_cmd(self, 0, PAGE_IOVA(0)) };
	const uint32_t min_size =
		offsetofend(struct iommu_hw_queue_alloc, length);
	uint32_t id = free_id(self->vm.fd);
	uint32_t size;

	ASSERT_EQ(40, min_size);
	ASSERT_EQ(40, sizeof(arg.cmd));

	for (size = 0; size != min_size; size++) {
		arg.cmd.size = size;
		EXPECT_ERRNO(EINVAL,
			     ioctl(self->vm.fd, IOMMU_HW_QUEUE_ALLOC, &arg));
	}

	/* A newer program's larger structure is fine as long as it is zero */
	for (; size <= sizeof(arg); size++) {
		arg.cmd.size = size;
		arg.cmd.out_hw_queue_id = 0;
		ASSERT_EQ(0, ioctl(self->vm.fd, IOMMU_HW_QUEUE_ALLOC, &arg));
		EXPECT_EQ(size, arg.cmd.size);
		EXPECT_EQ(id, arg.cmd.out_hw_queue_id);
		ASSERT_EQ(0, destroy(id));
	}
	for (size = 0; size != sizeof(arg.more); size++) {
		arg.cmd.size = sizeof(arg);
		arg.more[size] = 1;
		EXPECT_ERRNO(E2BIG,
			     ioctl(self->vm.fd, IOMMU_HW_QUEUE_ALLOC, &arg));
		arg.more[size] = 0;
	}

	/* What is beyond the size is not looked at, and not written */
	memset(arg.more, 0xa5, sizeof(arg.more));
	arg.cmd.size = min_size;
	ASSERT_EQ(0, ioctl(self->vm.fd, IOMMU_HW_QUEUE_ALLOC, &arg));
	for (size = 0; size != sizeof(arg.more); size++)
		ASSERT_EQ(0xa5, arg.more[size]);
	ASSERT_EQ(0, destroy(arg.cmd.out_hw_queue_id));

	EXPECT_ERRNO(EFAULT, ioctl(self->vm.fd, IOMMU_HW_QUEUE_ALLOC, NULL));
	EXPECT_EQ(id, free_id(self->vm.fd));
	expect_no_queue(_metadata, self);
}

/* The answer cannot be given, so there is no queue */
TEST_F(iommufd_hw_queue, L12_readonly_argument)
{
	struct iommu_hw_queue_alloc *cmd = buffer;
	uint32_t queue_id = 0;
	uint32_t id, index;

	for (index = 0; index != 2; index++) {
		id = free_id(self->vm.fd);
		*cmd = hw_queue_cmd(self, index, PAGE_IOVA(1));
		ASSERT_EQ(0, mprotect(buffer, PAGE_SIZE, PROT_READ));
		EXPECT_ERRNO(EFAULT,
			     ioctl(self->vm.fd, IOMMU_HW_QUEUE_ALLOC, cmd));
		ASSERT_EQ(0, mprotect(buffer, PAGE_SIZE,
				      PROT_READ | PROT_WRITE));
		EXPECT_EQ(id, free_id(self->vm.fd));
		EXPECT_ERRNO(ENOENT, destroy(id));
		EXPECT_EQ(0, unmap(self, PAGE_IOVA(1), PAGE_SIZE));
		EXPECT_EQ(0, map_page(self, 1));
		/* Nor does the first queue have one that depends on it */
		if (index) {
			EXPECT_EQ(0, destroy(queue_id));
		} else {
			ASSERT_EQ(0, hw_queue(0, PAGE_IOVA(0), PAGE_SIZE,
					      &queue_id));
		}
	}
	expect_no_queue(_metadata, self);
}

/* Its ID is that of a HW queue and of nothing else */
TEST_F(iommufd_hw_queue, id_is_no_other_object)
{
	struct iommu_hw_queue_alloc cmd;
	uint32_t queue_id, id;

	ASSERT_EQ(0, hw_queue(0, PAGE_IOVA(0), PAGE_SIZE, &queue_id));
	id = free_id(self->vm.fd);
	cmd = hw_queue_cmd(self, 1, PAGE_IOVA(1));
	cmd.viommu_id = queue_id;
	EXPECT_ERRNO(ENOENT, ioctl(self->vm.fd, IOMMU_HW_QUEUE_ALLOC, &cmd));
	EXPECT_ERRNO(ENOENT, _test_cmd_get_hw_info(self->vm.fd, queue_id, NULL,
						   0, NULL, NULL));
	EXPECT_EQ(EINVAL, id_errno(&self->other, queue_id));
	EXPECT_EQ(id, free_id(self->vm.fd));
	ASSERT_EQ(0, destroy(queue_id));
	expect_no_queue(_metadata, self);
}

/* Either all of a range is unmapped, or nothing */
TEST_F(iommufd_hw_queue, unmap_pinned)
{
	uint64_t unmapped = 0;
	uint32_t id;
	int i;

	ASSERT_EQ(0, hw_queue(0, PAGE_IOVA(1), PAGE_SIZE, &id));

	EXPECT_ERRNO(EBUSY, unmap(self, PAGE_IOVA(1), PAGE_SIZE));
	EXPECT_ERRNO(EBUSY, unmap(self, PAGE_IOVA(0), 2 * PAGE_SIZE));
	EXPECT_ERRNO(EBUSY, unmap(self, PAGE_IOVA(1), 3 * PAGE_SIZE));
	EXPECT_ERRNO(EBUSY, unmap(self, PAGE_IOVA(0), 4 * PAGE_SIZE));
	EXPECT_ERRNO(EBUSY, unmap(self, BIG_IOVA, UINT32_MAX));
	EXPECT_ERRNO(EBUSY, unmap(self, 1, UINT64_MAX - 1));
	EXPECT_ERRNO(EBUSY, unmap_all());
	EXPECT_EQ(0, _test_cmd_check_map(self->vm.fd, self->vm.parent_id,
					 self->big, BIG_LENGTH, BIG_IOVA));
	for (i = 0; i != NUM_PAGES; i++) {
		EXPECT_EQ(0, _test_cmd_check_map(self->vm.fd,
						 self->vm.parent_id,
						 self->page[i], PAGE_SIZE,
						 PAGE_IOVA(i)));
		/* and not to be mapped a second time */
		EXPECT_ERRNO(EEXIST, map_page(self, i));
	}

	/* Others can come and go */
	EXPECT_EQ(0, unmap(self, PAGE_IOVA(0), PAGE_SIZE));
	EXPECT_EQ(0, unmap(self, PAGE_IOVA(2), 2 * PAGE_SIZE));
	EXPECT_EQ(0, unmap(self, BIG_IOVA, BIG_LENGTH));
	check_refs(self->page[0], PAGE_SIZE, 0);
	check_refs(self->page[1], PAGE_SIZE, 1);
	check_refs(self->page[2], 2 * PAGE_SIZE, 0);
	EXPECT_EQ(0, map_page(self, 0));
	EXPECT_EQ(0, map_page(self, 2));
	EXPECT_ERRNO(EBUSY, unmap_all());

	/* Until it is destroyed */
	ASSERT_EQ(0, destroy(id));
	EXPECT_EQ(0, _test_ioctl_ioas_unmap(self->vm.fd, self->vm.ioas_id,
					    PAGE_IOVA(0), 3 * PAGE_SIZE,
					    &unmapped));
	EXPECT_EQ(3 * PAGE_SIZE, unmapped);
	EXPECT_EQ(0, map_all(self));
	expect_no_queue(_metadata, self);
}

/* What an unmap has left, or has not come to, can be used as before */
TEST_F(iommufd_hw_queue, unmap_fails)
{
	uint32_t id;
	int i;

	EXPECT_ERRNO(ENOENT, unmap(self, BIG_IOVA, PAGE_SIZE));
	EXPECT_ERRNO(ENOENT, unmap(self, BIG_IOVA + PAGE_SIZE, UINT32_MAX));
	ASSERT_EQ(0, hw_queue(0, BIG_IOVA, BIG_LENGTH, &id));
	ASSERT_EQ(0, destroy(id));
	for (i = 0; i != NUM_PAGES; i++) {
		ASSERT_EQ(0, hw_queue(0, PAGE_IOVA(i), PAGE_SIZE, &id));
		ASSERT_EQ(0, destroy(id));
	}
	expect_no_queue(_metadata, self);
}

/* A copy of the area is another one */
TEST_F(iommufd_hw_queue, unmap_copy)
{
	struct iommu_ioas_copy copy = {
		.size = sizeof(copy),
		.flags = IOMMU_IOAS_MAP_FIXED_IOVA | MAP_RW,
		.dst_ioas_id = self->vm.ioas_id,
		.src_ioas_id = self->vm.ioas_id,
		.length = PAGE_SIZE,
		.dst_iova = PAGE_IOVA(10),
		.src_iova = PAGE_IOVA(0),
	};
	uint32_t id;

	ASSERT_EQ(0, hw_queue(0, PAGE_IOVA(0), PAGE_SIZE, &id));
	ASSERT_EQ(0, ioctl(self->vm.fd, IOMMU_IOAS_COPY, &copy));
	EXPECT_EQ(0, unmap(self, PAGE_IOVA(10), PAGE_SIZE));
	EXPECT_ERRNO(EBUSY, unmap(self, PAGE_IOVA(0), PAGE_SIZE));
	ASSERT_EQ(0, ioctl(self->vm.fd, IOMMU_IOAS_COPY, &copy));
	ASSERT_EQ(0, destroy(id));
	EXPECT_EQ(0, unmap(self, PAGE_IOVA(0), PAGE_SIZE));
	expect_no_queue(_metadata, self);
}

/* Two queues in one area, with the same and with other pages of it */
TEST_F(iommufd_hw_queue, unmap_shared_area)
{
	const struct {
		uint64_t offset;
		uint64_t length;
	} second[] = {
		{ 0, 2 * PAGE_SIZE },
		{ 0, PAGE_SIZE },
		{ PAGE_SIZE, 2 * PAGE_SIZE },
		{ 2 * PAGE_SIZE, 2 * PAGE_SIZE },
		{ 0, BIG_LENGTH },
	};
	uint32_t id[2];
	size_t i;

	for (i = 0; i != ARRAY_SIZE(second); i++) {
		ASSERT_EQ(0, hw_queue(0, BIG_IOVA, 2 * PAGE_SIZE, &id[0]));
		ASSERT_EQ(0, hw_queue(1, BIG_IOVA + second[i].offset,
				      second[i].length, &id[1]));
		EXPECT_ERRNO(EBUSY, unmap(self, BIG_IOVA, BIG_LENGTH));
		ASSERT_EQ(0, destroy(id[1]));
		EXPECT_ERRNO(EBUSY, unmap(self, BIG_IOVA, BIG_LENGTH));
		ASSERT_EQ(0, destroy(id[0]));
		EXPECT_EQ(0, unmap(self, BIG_IOVA, BIG_LENGTH));
		ASSERT_EQ(0, map_big(self));
	}
	expect_no_queue(_metadata, self);
}

/* One that the driver has nothing to undo for is undone all the same */
TEST_F(iommufd_hw_queue, plain)
{
	uint32_t id;

	ASSERT_EQ(0, _test_cmd_hw_queue_alloc(self->vm.fd, self->viommu_id,
					      IOMMU_HW_QUEUE_TYPE_SELFTEST_PLAIN,
					      0, PAGE_IOVA(0), PAGE_SIZE, &id));
	EXPECT_ERRNO(EBUSY, unmap(self, PAGE_IOVA(0), PAGE_SIZE));
	ASSERT_EQ(0, destroy(id));
	expect_no_queue(_metadata, self);
}

/* An access of another kind, with what it has pinned of the page */
static int access_pin(test_self *self, uint32_t access_fd, int page,
		      uint64_t iova)
{
	struct iommu_test_cmd cmd = {
		.size = sizeof(cmd),
		.op = IOMMU_TEST_OP_ACCESS_PAGES,
		.id = access_fd,
		.access_pages = {
			.iova = iova,
			.length = PAGE_SIZE,
			.uptr = (uintptr_t)self->page[page],
		},
	};

	return ioctl(self->vm.fd, IOMMU_TEST_CMD, &cmd);
}

static int access_open(test_self *self, uint32_t *access_fd)
{
	return _test_cmd_create_access(self->vm.fd, self->vm.ioas_id, access_fd,
				       MOCK_FLAGS_ACCESS_CREATE_NEEDS_PIN_PAGES);
}

/* Those that can be asked to stop are, and a queue elsewhere is not in the way */
TEST_F(iommufd_hw_queue, unmap_accessed)
{
	uint32_t access_fd, id;

	ASSERT_EQ(0, access_open(self, &access_fd));
	ASSERT_EQ(0, access_pin(self, access_fd, 0, PAGE_IOVA(0)));
	ASSERT_EQ(0, hw_queue(0, PAGE_IOVA(1), PAGE_SIZE, &id));
	EXPECT_EQ(0, unmap(self, PAGE_IOVA(0), PAGE_SIZE));
	check_refs(self->page[0], PAGE_SIZE, 0);
	EXPECT_ERRNO(EBUSY, unmap_all());
	ASSERT_EQ(0, destroy(id));
	ASSERT_EQ(0, close(access_fd));
	expect_no_queue(_metadata, self);
}

static int call_unmap_all(int fd, uint32_t id, struct call *call)
{
	return _test_ioctl_ioas_unmap(fd, id, 0, UINT64_MAX, NULL);
}

/*
 * What is mapped while all is being unmapped is unmapped as well, unless there is a
 * queue on it by then, which ends the unmapping.
 */
static void map_during_unmap(struct __test_metadata *_metadata, test_self *self,
			     bool queue)
{
	struct call call = { .fn = call_unmap_all, .fd = self->vm.fd,
			     .id = self->vm.ioas_id };
	uint32_t access_fd, id = 0;

	ASSERT_EQ(0, access_open(self, &access_fd));
	ASSERT_EQ(0, access_pin(self, access_fd, 0, PAGE_IOVA(0)));
	park(ACCESS_UNMAP, ARM);
	call_start(&call);
	park(ACCESS_UNMAP, WAIT);
	ASSERT_EQ(0, map_at(self->vm.fd, self->vm.ioas_id, self->page[1],
			    PAGE_SIZE, PAGE_IOVA(20), MAP_RW));
	/* Not what is about to go */
	EXPECT_ERRNO(EINVAL, hw_queue(0, PAGE_IOVA(1), PAGE_SIZE, NULL));
	ASSERT_EQ(0, queue ? hw_queue(0, PAGE_IOVA(20), PAGE_SIZE, &id) :
			     access_pin(self, access_fd, 1, PAGE_IOVA(20)));
	park(ACCESS_UNMAP, RELEASE);
	EXPECT_EQ(queue ? -EBUSY : 0, call_end(&call));
	if (queue) {
		/* What is left can be used as before */
		ASSERT_EQ(0, access_pin(self, access_fd, 1, PAGE_IOVA(20)));
		ASSERT_EQ(0, destroy(id));
	} else {
		EXPECT_EQ(0, unmap_all());
		check_refs(self->page[0], NUM_PAGES * PAGE_SIZE, 0);
		ASSERT_EQ(0, map_all(self));
	}
	ASSERT_EQ(0, close(access_fd));
	expect_no_queue(_metadata, self);
}

TEST_F(iommufd_hw_queue, map_during_unmap)
{
	map_during_unmap(_metadata, self, false);
}

TEST_F(iommufd_hw_queue, alloc_during_unmap)
{
	map_during_unmap(_metadata, self, true);
}

static int call_unmap_three(int fd, uint32_t id, struct call *call)
{
	return _test_ioctl_ioas_unmap(fd, id, PAGE_IOVA(20), 3 * PAGE_SIZE,
				      NULL);
}

/* What is not unmapped because of what was mapped meanwhile can be pinned again */
TEST_F(iommufd_hw_queue, map_across_end_during_unmap)
{
	struct call call = { .fn = call_unmap_three, .fd = self->vm.fd,
			     .id = self->vm.ioas_id };
	uint32_t access_fd;

	ASSERT_EQ(0, map_at(self->vm.fd, self->vm.ioas_id, self->page[0],
			    PAGE_SIZE, PAGE_IOVA(20), MAP_RW));
	ASSERT_EQ(0, access_open(self, &access_fd));
	ASSERT_EQ(0, access_pin(self, access_fd, 0, PAGE_IOVA(20)));
	park(ACCESS_UNMAP, ARM);
	call_start(&call);
	park(ACCESS_UNMAP, WAIT);
	ASSERT_EQ(0, map_at(self->vm.fd, self->vm.ioas_id, self->page[1],
			    2 * PAGE_SIZE, PAGE_IOVA(22), MAP_RW));
	park(ACCESS_UNMAP, RELEASE);
	EXPECT_EQ(-ENOENT, call_end(&call));
	EXPECT_EQ(0, access_pin(self, access_fd, 0, PAGE_IOVA(20)));
	ASSERT_EQ(0, unmap(self, PAGE_IOVA(20), 4 * PAGE_SIZE));
	ASSERT_EQ(0, close(access_fd));
	expect_no_queue(_metadata, self);
}

/* A driver that has nothing but the vIOMMU itself, which keeps no vDEVICE away */
TEST(plain_driver)
{
	static const uint32_t types[] = {
		IOMMU_VIOMMU_TYPE_SELFTEST,
		IOMMU_VIOMMU_TYPE_SELFTEST_PLAIN,
	};
	struct iommu_hwpt_selftest nested = {};
	struct iommu_viommu_selftest data = {};
	uint32_t ioas_id, device_id, parent_id, viommu_id, id;
	uint32_t num;
	int fd, dev_fd;
	size_t i;

	if (module_load())
		SKIP(return, "needs the module " TEST_DRIVER);
	fd = open("/dev/iommu", O_RDWR);
	ASSERT_NE(-1, fd);
	dev_fd = module_bind(fd, &device_id);
	ASSERT_NE(-1, dev_fd);
	ASSERT_EQ(0, _test_ioctl_ioas_alloc(fd, &ioas_id));
	ASSERT_EQ(0, _test_cmd_hwpt_alloc(fd, device_id, ioas_id, 0,
					  IOMMU_HWPT_ALLOC_NEST_PARENT,
					  &parent_id, IOMMU_HWPT_DATA_NONE,
					  NULL, 0));
	for (i = 0; i != ARRAY_SIZE(types); i++) {
		ASSERT_EQ(0, _test_cmd_viommu_alloc(fd, device_id, parent_id, 0,
						    types[i], &data,
						    sizeof(data), &viommu_id));
		/* It has not answered */
		EXPECT_EQ(0, data.out_mmap_length);

		EXPECT_ERRNO(EOPNOTSUPP,
			     _test_cmd_hwpt_alloc(fd, device_id, viommu_id, 0,
						  0, &id,
						  IOMMU_HWPT_DATA_SELFTEST,
						  &nested, sizeof(nested)));
		num = 1;
		EXPECT_ERRNO(EOPNOTSUPP,
			     _test_cmd_hwpt_invalidate(fd, viommu_id, &nested,
						       0, sizeof(nested),
						       &num));
		EXPECT_EQ(0, num);
		EXPECT_ERRNO(EOPNOTSUPP,
			     _test_cmd_hw_queue_alloc(fd, viommu_id,
						      IOMMU_HW_QUEUE_TYPE_SELFTEST,
						      0, 0, PAGE_SIZE, &id));
		ASSERT_EQ(0, _test_cmd_vdevice_alloc(fd, viommu_id, device_id,
						     1, &id));
		EXPECT_ERRNO(EBUSY, _test_ioctl_destroy(fd, viommu_id));
		ASSERT_EQ(0, _test_ioctl_destroy(fd, id));
		ASSERT_EQ(0, _test_ioctl_destroy(fd, viommu_id));
	}
	ASSERT_EQ(0, close(dev_fd));
	ASSERT_EQ(0, close(fd));
	ASSERT_EQ(0, module_unload());
}

/* Closing the file finds the order; the teardown looks at what is pinned */
TEST_F(iommufd_hw_queue, close_with_queues)
{
	uint32_t id;

	/* So that the one that goes first has the higher ID, and the lower */
	ASSERT_EQ(0, hw_queue(0, PAGE_IOVA(0), PAGE_SIZE, &id));
	ASSERT_EQ(0, hw_queue(1, PAGE_IOVA(0), PAGE_SIZE, NULL));
	ASSERT_EQ(0, vm_viommu(&self->vm, &self->viommu_id));
	ASSERT_EQ(0, _test_ioctl_ioas_alloc(self->vm.fd, &id));
	ASSERT_EQ(0, hw_queue(0, PAGE_IOVA(0), PAGE_SIZE, NULL));
	ASSERT_EQ(0, destroy(id));
	ASSERT_EQ(0, hw_queue(1, BIG_IOVA, BIG_LENGTH, NULL));
}

/* Other threads see a queue when it is finished, and not before */

TEST_F(iommufd_hw_queue, L12_unfinished_in_init)
{
	struct iommu_hw_queue_alloc *cmd = buffer;
	struct call alloc = { .fn = call_alloc, .fd = self->vm.fd, .arg = cmd };
	uint32_t id = free_id(self->vm.fd);

	*cmd = hw_queue_cmd(self, 0, PAGE_IOVA(0));
	park(HW_QUEUE_INIT, ARM);
	call_start(&alloc);
	park(HW_QUEUE_INIT, WAIT);
	EXPECT_ERRNO(EIO, hw_queue(1, PAGE_IOVA(1), PAGE_SIZE, NULL));
	EXPECT_ERRNO(EEXIST, hw_queue(0, PAGE_IOVA(1), PAGE_SIZE, NULL));
	EXPECT_ERRNO(ENOENT, destroy(id));
	EXPECT_ERRNO(EBUSY, destroy(self->viommu_id));
	/* It is pinned from before it is given to the driver */
	EXPECT_ERRNO(EBUSY, unmap(self, PAGE_IOVA(0), PAGE_SIZE));
	ASSERT_EQ(0, mprotect(buffer, PAGE_SIZE, PROT_READ));
	park(HW_QUEUE_INIT, RELEASE);
	EXPECT_EQ(-EFAULT, call_end(&alloc));
	ASSERT_EQ(0, mprotect(buffer, PAGE_SIZE, PROT_READ | PROT_WRITE));
	EXPECT_EQ(id, free_id(self->vm.fd));
	expect_no_queue(_metadata, self);
}

/* The answer is being written, and then cannot be */
TEST_F(iommufd_hw_queue, L12_unfinished_in_answer)
{
	struct iommu_hw_queue_alloc *cmd = buffer;
	struct call alloc = { .fn = call_alloc, .fd = self->vm.fd, .arg = cmd };
	uint32_t id = free_id(self->vm.fd);
	uint32_t queue_id;
	int uffd;

	*cmd = hw_queue_cmd(self, 0, PAGE_IOVA(0));
	uffd = uffd_open(buffer, UFFDIO_REGISTER_MODE_WP);
	if (uffd == -1)
		SKIP(return, NEEDS_UFFD);
	call_start(&alloc);
	ASSERT_EQ(0, uffd_wait(uffd));
	EXPECT_ERRNO(EIO, hw_queue(1, PAGE_IOVA(1), PAGE_SIZE, NULL));
	EXPECT_ERRNO(EEXIST, hw_queue(0, PAGE_IOVA(1), PAGE_SIZE, NULL));
	EXPECT_ERRNO(ENOENT, destroy(id));
	EXPECT_ERRNO(EBUSY, unmap(self, PAGE_IOVA(0), PAGE_SIZE));
	EXPECT_ERRNO(EBUSY, destroy(self->viommu_id));
	ASSERT_EQ(0, mprotect(buffer, PAGE_SIZE, PROT_READ));
	ASSERT_EQ(0, uffd_unprotect(uffd, buffer));
	EXPECT_EQ(-EFAULT, call_end(&alloc));
	ASSERT_EQ(0, close(uffd));
	EXPECT_EQ(id, free_id(self->vm.fd));
	EXPECT_ERRNO(EIO, hw_queue(1, PAGE_IOVA(1), PAGE_SIZE, NULL));
	ASSERT_EQ(0, hw_queue(0, PAGE_IOVA(0), PAGE_SIZE, &queue_id));
	ASSERT_EQ(0, destroy(queue_id));
	expect_no_queue(_metadata, self);
}

/* The second one depends on the first one as long as it may become one */
TEST_F(iommufd_hw_queue, destroy_during_dependent_alloc)
{
	struct iommu_hw_queue_alloc *cmd = buffer;
	struct call alloc = { .fn = call_alloc, .fd = self->vm.fd, .arg = cmd };
	uint32_t id;
	int i;

	ASSERT_EQ(0, hw_queue(0, PAGE_IOVA(0), PAGE_SIZE, &id));
	for (i = 0; i != 2; i++) {
		*cmd = hw_queue_cmd(self, 1, PAGE_IOVA(1));
		park(HW_QUEUE_INIT, ARM);
		call_start(&alloc);
		park(HW_QUEUE_INIT, WAIT);
		EXPECT_ERRNO(EBUSY, destroy(id));
		if (!i)
			ASSERT_EQ(0, mprotect(buffer, PAGE_SIZE, PROT_READ));
		park(HW_QUEUE_INIT, RELEASE);
		EXPECT_EQ(i ? 0 : -EFAULT, call_end(&alloc));
		ASSERT_EQ(0, mprotect(buffer, PAGE_SIZE,
				      PROT_READ | PROT_WRITE));
	}
	EXPECT_ERRNO(EBUSY, destroy(id));
	ASSERT_EQ(0, destroy(cmd->out_hw_queue_id));
	ASSERT_EQ(0, destroy(id));
	expect_no_queue(_metadata, self);
}

TEST_F(iommufd_hw_queue, dependent_alloc_during_destroy)
{
	struct call call = { .fn = call_destroy, .fd = self->vm.fd };

	ASSERT_EQ(0, hw_queue(0, PAGE_IOVA(0), PAGE_SIZE, &call.id));
	park(HW_QUEUE_DESTROY, ARM);
	call_start(&call);
	park(HW_QUEUE_DESTROY, WAIT);
	EXPECT_ERRNO(EIO, hw_queue(1, PAGE_IOVA(1), PAGE_SIZE, NULL));
	EXPECT_ERRNO(EEXIST, hw_queue(0, PAGE_IOVA(1), PAGE_SIZE, NULL));
	/* The hardware still accesses it */
	EXPECT_ERRNO(EBUSY, unmap(self, PAGE_IOVA(0), PAGE_SIZE));
	EXPECT_ERRNO(EBUSY, destroy(self->viommu_id));
	park(HW_QUEUE_DESTROY, RELEASE);
	EXPECT_EQ(0, call_end(&call));
	expect_no_queue(_metadata, self);
}

struct race {
	test_self *self;
	int stop;
};

static int call_unmap_loop(int fd, uint32_t id, struct call *call)
{
	struct race *race = call->arg;

	while (!__atomic_load_n(&race->stop, __ATOMIC_ACQUIRE)) {
		if (!unmap(race->self, PAGE_IOVA(0), PAGE_SIZE)) {
			call->out_id++;
			if (map_page(race->self, 0))
				return -1;
		} else if (errno != EBUSY) {
			return -1;
		}
	}
	return 0;
}

/* Unmapped or pinned, and never both */
TEST_F_TIMEOUT(iommufd_hw_queue, alloc_races_unmap, 120)
{
	struct race race = { .self = self };
	struct call call = { .fn = call_unmap_loop, .arg = &race };
	unsigned int done = 0, tries = 0;
	uint32_t id;

	call_start(&call);
	while (done != 100) {
		ASSERT_GT(1000000, tries++);
		ASSERT_EQ(0, call_is_done(&call));
		if (hw_queue(0, PAGE_IOVA(0), PAGE_SIZE, &id)) {
			ASSERT_EQ(ENOENT, errno);
			continue;
		}
		/* What is unmapped now is so behind the back of the queue */
		EXPECT_EQ(0, _test_cmd_check_map(self->vm.fd,
						 self->vm.parent_id,
						 self->page[0], PAGE_SIZE,
						 PAGE_IOVA(0)));
		ASSERT_EQ(0, destroy(id));
		done++;
	}
	__atomic_store_n(&race.stop, 1, __ATOMIC_RELEASE);
	EXPECT_EQ(0, call_end(&call));
	expect_no_queue(_metadata, self);
}

/* The physical IOMMU goes away */

static bool thread_is_blocked(pid_t tid)
{
	char path[64], stat[128] = {};
	char *state;
	int fd;

	snprintf(path, sizeof(path), "/proc/self/task/%d/stat", tid);
	fd = open(path, O_RDONLY);
	if (fd == -1)
		return false;
	if (read(fd, stat, sizeof(stat) - 1) < 0)
		stat[0] = 0;
	close(fd);
	state = strrchr(stat, ')');
	return state && !strncmp(state, ") D", 3);
}

static int call_alloc_tid(int fd, uint32_t id, struct call *call)
{
	__atomic_store_n(&call->out_id, syscall(__NR_gettid), __ATOMIC_RELEASE);
	return call_alloc(fd, id, call);
}

static int call_map(int fd, uint32_t id, struct call *call)
{
	return map_at(fd, id, call->arg, PAGE_SIZE, PAGE_IOVA(20), MAP_RW);
}

/*
 * User space is pinning, which holds up another thread that wants to pin a
 * queue. With a parent that is shared with another instance, so that nothing
 * has to be taken out of the IOAS.
 */
TEST_F(iommufd_hw_queue, L4_pin_stalled)
{
	struct uffdio_zeropage zero = {
		.range = { (uintptr_t)buffer, PAGE_SIZE },
	};
	struct iommu_hw_queue_alloc cmd;
	struct call alloc = { .fn = call_alloc_tid, .arg = &cmd };
	struct call map = { .fn = call_map, .arg = buffer };
	struct call unreg = { .fn = call_unregister, .fd = self->fd };
	uint32_t iommu_id[2], viommu_id, id;
	unsigned int tries = 0;
	struct vm vm;
	int i, uffd;

	for (i = 0; i != 2; i++)
		ASSERT_EQ(0, _test_cmd_iommu_register(self->fd,
						      MOCK_IOMMU_SHARED_DOMAINS,
						      &iommu_id[i]));
	ASSERT_EQ(0, vm_open(&vm, iommu_id[0]));
	ASSERT_EQ(0, vm_viommu(&vm, &viommu_id));
	ASSERT_EQ(0, vm_unplug(&vm));
	ASSERT_EQ(0, map_at(vm.fd, vm.ioas_id, self->page[0], PAGE_SIZE,
			    PAGE_IOVA(0), MAP_RW));
	cmd = hw_queue_cmd(self, 0, PAGE_IOVA(0));
	cmd.viommu_id = viommu_id;
	id = free_id(vm.fd);

	uffd = uffd_open(buffer, UFFDIO_REGISTER_MODE_MISSING);
	if (uffd == -1)
		SKIP(return, "needs userfaultfd");
	map.fd = vm.fd;
	map.id = vm.ioas_id;
	call_start(&map);
	ASSERT_EQ(0, uffd_wait(uffd));
	alloc.fd = vm.fd;
	call_start(&alloc);
	while (!thread_is_blocked(__atomic_load_n(&alloc.out_id,
						  __ATOMIC_ACQUIRE))) {
		ASSERT_GT(10000, tries++);
		sleep_ms(1);
	}

	unreg.id = iommu_id[0];
	call_start(&unreg);
	EXPECT_EQ(0, call_end(&unreg));
	EXPECT_EQ(0, call_is_done(&alloc));
	EXPECT_EQ(0, call_is_done(&map));
	EXPECT_ERRNO(ENODEV, _test_cmd_viommu_call(vm.fd, viommu_id));

	ASSERT_EQ(0, ioctl(uffd, UFFDIO_ZEROPAGE, &zero));
	EXPECT_EQ(0, call_end(&map));
	EXPECT_EQ(-ENODEV, call_end(&alloc));
	ASSERT_EQ(0, close(uffd));
	EXPECT_EQ(id, free_id(vm.fd));
	EXPECT_EQ(0, _test_ioctl_ioas_unmap(vm.fd, vm.ioas_id, 0, UINT64_MAX,
					    NULL));
	EXPECT_EQ(0, _test_ioctl_destroy(vm.fd, viommu_id));
	EXPECT_EQ(0, _test_ioctl_destroy(vm.fd, vm.parent_id));
	EXPECT_EQ(0, _test_ioctl_destroy(vm.fd, vm.ioas_id));
	EXPECT_EQ(0, close(vm.fd));
	EXPECT_EQ(0, _test_cmd_iommu_unregister(self->fd, iommu_id[1]));
}

/*
 * While the ID is written the queue is there and is revoked. The allocation
 * ends well, what it gives is a revoked queue. Or it fails, and there is none.
 */
static void answer_stalled(struct __test_metadata *_metadata, test_self *self,
			   uint32_t index, bool writable)
{
	struct iommu_hw_queue_alloc *cmd = buffer;
	struct call alloc = { .fn = call_alloc, .fd = self->vm.fd, .arg = cmd };
	uint32_t first_id = 0;
	uint32_t id;
	int uffd;

	if (index)
		ASSERT_EQ(0, hw_queue(0, PAGE_IOVA(1), PAGE_SIZE, &first_id));
	id = free_id(self->vm.fd);
	*cmd = hw_queue_cmd(self, index, PAGE_IOVA(0));
	uffd = uffd_open(buffer, UFFDIO_REGISTER_MODE_WP);
	if (uffd == -1)
		SKIP(return, NEEDS_UFFD);
	call_start(&alloc);
	ASSERT_EQ(0, uffd_wait(uffd));
	call_start(&self->unreg);
	EXPECT_EQ(0, call_end(&self->unreg));
	EXPECT_EQ(0, call_is_done(&alloc));
	EXPECT_EQ(ENODEV, id_errno(&self->other, self->viommu_id));
	EXPECT_ERRNO(EBUSY, unmap(self, PAGE_IOVA(0), PAGE_SIZE));

	if (!writable)
		ASSERT_EQ(0, mprotect(buffer, PAGE_SIZE, PROT_READ));
	ASSERT_EQ(0, uffd_unprotect(uffd, buffer));
	ASSERT_EQ(writable ? 0 : -EFAULT, call_end(&alloc));
	ASSERT_EQ(0, close(uffd));
	if (writable) {
		EXPECT_EQ(ENODEV, id_errno(&self->other, cmd->out_hw_queue_id));
		EXPECT_ERRNO(EBUSY, unmap(self, PAGE_IOVA(0), PAGE_SIZE));
		ASSERT_EQ(0, destroy(cmd->out_hw_queue_id));
	}
	EXPECT_EQ(id, free_id(self->vm.fd));
	if (index)
		EXPECT_EQ(0, destroy(first_id));
	expect_no_queue(_metadata, self);
}

TEST_F(iommufd_hw_queue, L4_answer_stalled)
{
	answer_stalled(_metadata, self, 0, true);
}

TEST_F(iommufd_hw_queue, L4_dependent_answer_stalled)
{
	answer_stalled(_metadata, self, 1, true);
}

TEST_F(iommufd_hw_queue, L12_answer_fails_after_revocation)
{
	answer_stalled(_metadata, self, 0, false);
}

TEST_F(iommufd_hw_queue, L12_dependent_answer_fails_after_revocation)
{
	answer_stalled(_metadata, self, 1, false);
}

/* Nothing holds the other any more, so they can be destroyed in any order */
TEST_F(iommufd_hw_queue, L6_revoked_queues)
{
	static const int orders[][3] = {
		{ 0, 1, 2 }, { 0, 2, 1 }, { 1, 0, 2 },
		{ 1, 2, 0 }, { 2, 0, 1 }, { 2, 1, 0 },
	};
	/* The two queues and the vIOMMU */
	uint32_t id[3], next;
	size_t i;
	int j;

	for (i = 0; i != ARRAY_SIZE(orders); i++) {
		ASSERT_EQ(0, hw_queue(0, PAGE_IOVA(0), PAGE_SIZE, &id[0]));
		ASSERT_EQ(0, hw_queue(1, PAGE_IOVA(1), PAGE_SIZE, &id[1]));
		id[2] = self->viommu_id;
		check_refs(self->page[0], NUM_PAGES * PAGE_SIZE, 1);
		unregister();

		next = free_id(self->vm.fd);
		EXPECT_ERRNO(ENODEV,
			     hw_queue(0, PAGE_IOVA(2), PAGE_SIZE, NULL));
		EXPECT_EQ(next, free_id(self->vm.fd));
		for (j = 0; j != 3; j++) {
			EXPECT_NE(id[j], next);
			EXPECT_EQ(ENODEV, id_errno(&self->other, id[j]));
		}

		/* What is pinned now is so for the queues */
		check_refs(self->page[0], 2 * PAGE_SIZE, 1);
		check_refs(self->page[2], 2 * PAGE_SIZE, 0);
		EXPECT_EQ(0, unmap(self, PAGE_IOVA(2), PAGE_SIZE));
		for (j = 0; j != 3; j++) {
			if (orders[i][j] != 2)
				EXPECT_ERRNO(EBUSY,
					     unmap(self,
						   PAGE_IOVA(orders[i][j]),
						   PAGE_SIZE));
			ASSERT_EQ(0, destroy(id[orders[i][j]]));
			EXPECT_ERRNO(ENOENT, destroy(id[orders[i][j]]));
			if (orders[i][j] != 2)
				EXPECT_EQ(0, unmap(self,
						   PAGE_IOVA(orders[i][j]),
						   PAGE_SIZE));
		}
		ASSERT_EQ(0, unmap_all());
		check_refs(self->page[0], NUM_PAGES * PAGE_SIZE, 0);
		EXPECT_EQ(0, destroy(self->vm.parent_id));
		EXPECT_EQ(0, vm_unplug(&self->vm));
		EXPECT_EQ(0, destroy(self->vm.ioas_id));

		/* Once more with another one, which the teardown closes */
		ASSERT_EQ(0, close(self->vm.fd));
		ASSERT_EQ(0, _test_cmd_iommu_register(self->fd, 0,
						      &self->iommu_id));
		ASSERT_EQ(0, vm_open(&self->vm, self->iommu_id));
		self->other.fd = self->vm.fd;
		ASSERT_EQ(0, _test_ioctl_ioas_alloc(self->vm.fd,
						    &self->other.ioas_id));
		ASSERT_EQ(0, vm_plug(&self->other, 0));
		ASSERT_EQ(0, vm_viommu(&self->vm, &self->viommu_id));
		ASSERT_EQ(0, map_all(self));
	}
}

/* The teardown closes the file, and looks at what is pinned afterwards */
TEST_F(iommufd_hw_queue, L6_close_with_revoked_queues)
{
	uint32_t id;

	ASSERT_EQ(0, hw_queue(0, PAGE_IOVA(0), PAGE_SIZE, &id));
	ASSERT_EQ(0, hw_queue(1, PAGE_IOVA(1), PAGE_SIZE, NULL));
	unregister();
	check_refs(self->page[0], 2 * PAGE_SIZE, 1);
}

/* Nothing is left of what was refused, with a queue below it or without */
static void parked_in_init(struct __test_metadata *_metadata, test_self *self,
			   uint32_t index)
{
	struct iommu_hw_queue_alloc cmd;
	struct call alloc = { .fn = call_alloc, .fd = self->vm.fd,
			      .arg = &cmd };
	uint32_t first_id = 0;
	uint32_t id;

	if (index)
		ASSERT_EQ(0, hw_queue(0, PAGE_IOVA(1), PAGE_SIZE, &first_id));
	id = free_id(self->vm.fd);
	cmd = hw_queue_cmd(self, index, PAGE_IOVA(0));
	park(HW_QUEUE_INIT, ARM);
	call_start(&alloc);
	park(HW_QUEUE_INIT, WAIT);
	unregister_begin(_metadata, &self->unreg, &self->probe);
	EXPECT_WAITING(&self->unreg);
	EXPECT_EQ(0, call_is_done(&alloc));
	park(HW_QUEUE_INIT, RELEASE);
	EXPECT_EQ(-ENODEV, call_end(&alloc));
	EXPECT_EQ(0, call_end(&self->unreg));
	EXPECT_EQ(0, cmd.out_hw_queue_id);
	EXPECT_EQ(id, free_id(self->vm.fd));
	check_refs(self->page[0], PAGE_SIZE, 0);
	if (index) {
		EXPECT_EQ(ENODEV, id_errno(&self->other, first_id));
		EXPECT_EQ(0, destroy(first_id));
	}
	expect_no_queue(_metadata, self);
}

TEST_F(iommufd_hw_queue, L5_parked_in_init)
{
	parked_in_init(_metadata, self, 0);
}

TEST_F(iommufd_hw_queue, L5_dependent_parked_in_init)
{
	parked_in_init(_metadata, self, 1);
}

/* One queue is being revoked, and no other one can be built on it */
TEST_F(iommufd_hw_queue, L5_alloc_during_revocation)
{
	uint32_t id, next;

	ASSERT_EQ(0, hw_queue(0, PAGE_IOVA(0), PAGE_SIZE, &id));
	next = free_id(self->vm.fd);
	park(HW_QUEUE_DESTROY, ARM);
	call_start(&self->unreg);
	park(HW_QUEUE_DESTROY, WAIT);
	EXPECT_EQ(ENODEV, id_errno(&self->other, id));
	EXPECT_ERRNO(ENODEV, hw_queue(1, PAGE_IOVA(1), PAGE_SIZE, NULL));
	EXPECT_EQ(next, free_id(self->vm.fd));
	/* The hardware still accesses the one */
	EXPECT_ERRNO(EBUSY, unmap(self, PAGE_IOVA(0), PAGE_SIZE));
	EXPECT_EQ(0, unmap(self, PAGE_IOVA(1), PAGE_SIZE));
	EXPECT_EQ(0, call_is_done(&self->unreg));
	park(HW_QUEUE_DESTROY, RELEASE);
	EXPECT_EQ(0, call_end(&self->unreg));
	EXPECT_EQ(0, destroy(id));
	expect_no_queue(_metadata, self);
}

/* User space has begun to destroy, and unregister waits for it */
TEST_F(iommufd_hw_queue, L7_unregister_during_destroy)
{
	struct call call = { .fn = call_destroy, .fd = self->vm.fd };
	uint32_t id;

	ASSERT_EQ(0, hw_queue(0, PAGE_IOVA(0), PAGE_SIZE, &id));
	ASSERT_EQ(0, hw_queue(1, PAGE_IOVA(1), PAGE_SIZE, &call.id));
	park(HW_QUEUE_DESTROY, ARM);
	call_start(&call);
	park(HW_QUEUE_DESTROY, WAIT);
	unregister_begin(_metadata, &self->unreg, &self->probe);
	EXPECT_WAITING(&self->unreg);
	EXPECT_EQ(0, call_is_done(&call));
	park(HW_QUEUE_DESTROY, RELEASE);
	EXPECT_EQ(0, call_end(&call));
	EXPECT_EQ(0, call_end(&self->unreg));
	EXPECT_EQ(0, destroy(id));
	expect_no_queue(_metadata, self);
}

/* The other way round, the memory is pinned until the driver is done with it */
TEST_F(iommufd_hw_queue, L7_destroy_during_revocation)
{
	struct call call = { .fn = call_destroy, .fd = self->vm.fd };
	uint32_t id;

	ASSERT_EQ(0, hw_queue(0, PAGE_IOVA(0), PAGE_SIZE, &id));
	ASSERT_EQ(0, hw_queue(1, PAGE_IOVA(1), PAGE_SIZE, &call.id));
	park(HW_QUEUE_DESTROY, ARM);
	call_start(&self->unreg);
	park(HW_QUEUE_DESTROY, WAIT);
	EXPECT_EQ(ENODEV, id_errno(&self->other, call.id));
	/* What the parked one is built on stays for the time being */
	EXPECT_ERRNO(EBUSY, destroy(id));
	EXPECT_ERRNO(EBUSY, destroy(self->viommu_id));
	call_start(&call);
	wait_for_destroy(_metadata, &self->other, call.id);
	EXPECT_WAITING(&call);
	EXPECT_EQ(0, call_is_done(&self->unreg));
	EXPECT_ERRNO(EBUSY, unmap(self, PAGE_IOVA(1), PAGE_SIZE));
	park(HW_QUEUE_DESTROY, RELEASE);
	EXPECT_EQ(0, call_end(&call));
	EXPECT_EQ(0, call_end(&self->unreg));
	EXPECT_EQ(0, unmap(self, PAGE_IOVA(1), PAGE_SIZE));
	EXPECT_EQ(0, destroy(id));
	expect_no_queue(_metadata, self);
}

TEST_F(iommufd_hw_queue, L7_close_during_revocation)
{
	struct call closing = { .fn = call_close, .fd = self->vm.fd };
	uint32_t id;

	ASSERT_EQ(0, hw_queue(0, PAGE_IOVA(0), PAGE_SIZE, &id));
	ASSERT_EQ(0, hw_queue(1, PAGE_IOVA(1), PAGE_SIZE, NULL));
	park(HW_QUEUE_DESTROY, ARM);
	call_start(&self->unreg);
	park(HW_QUEUE_DESTROY, WAIT);
	call_start(&closing);
	wait_for_close(_metadata, self->vm.fd);
	self->vm.fd = -1;
	EXPECT_WAITING(&closing);
	EXPECT_EQ(0, call_is_done(&self->unreg));
	check_refs(self->page[0], 2 * PAGE_SIZE, 1);
	park(HW_QUEUE_DESTROY, RELEASE);
	EXPECT_EQ(0, call_end(&closing));
	EXPECT_EQ(0, call_end(&self->unreg));
}

TEST_F(iommufd_hw_queue, L7_unregister_during_close)
{
	struct call closing = { .fn = call_close, .fd = self->vm.fd };
	uint32_t id;

	ASSERT_EQ(0, hw_queue(0, PAGE_IOVA(0), PAGE_SIZE, &id));
	ASSERT_EQ(0, hw_queue(1, PAGE_IOVA(1), PAGE_SIZE, NULL));
	park(HW_QUEUE_DESTROY, ARM);
	call_start(&closing);
	self->vm.fd = -1;
	park(HW_QUEUE_DESTROY, WAIT);
	unregister_begin(_metadata, &self->unreg, &self->probe);
	EXPECT_WAITING(&self->unreg);
	EXPECT_EQ(0, call_is_done(&closing));
	park(HW_QUEUE_DESTROY, RELEASE);
	EXPECT_EQ(0, call_end(&closing));
	EXPECT_EQ(0, call_end(&self->unreg));
}

struct queue_loop {
	uint32_t viommu_id;
	uint32_t index;
	unsigned int count;
};

/* Allocate and destroy until the IOMMU is gone; others may do the same */
static int call_queue_loop(int fd, uint32_t id, struct call *call)
{
	struct queue_loop *loop = call->arg;
	uint32_t queue_id;

	for (;;) {
		__atomic_add_fetch(&loop->count, 1, __ATOMIC_RELEASE);
		if (_test_cmd_hw_queue_alloc(fd, loop->viommu_id,
					     IOMMU_HW_QUEUE_TYPE_SELFTEST,
					     loop->index,
					     PAGE_IOVA(loop->index), PAGE_SIZE,
					     &queue_id)) {
			if (errno == ENODEV)
				return 0;
			/* The first one is not there, or still is */
			if (errno != EIO && errno != EEXIST)
				return -1;
			sched_yield();
			continue;
		}
		/* In use by the second one: next time it will say EEXIST */
		while (_test_ioctl_destroy(fd, queue_id)) {
			if (errno != EBUSY)
				return -1;
			sched_yield();
		}
	}
}

TEST_F_TIMEOUT(iommufd_hw_queue, L5_alloc_races_unregister, 120)
{
	struct queue_loop loop[3];
	struct call call[3], unreg;
	uint32_t iommu_id, viommu_id;
	struct vm vm;
	int i, n;

	for (i = 0; i != 20; i++) {
		ASSERT_EQ(0, _test_cmd_iommu_register(self->fd, 0, &iommu_id));
		ASSERT_EQ(0, vm_open(&vm, iommu_id));
		for (n = 0; n != 2; n++)
			ASSERT_EQ(0, map_at(vm.fd, vm.ioas_id, self->page[n],
					    PAGE_SIZE, PAGE_IOVA(n), MAP_RW));
		ASSERT_EQ(0, vm_viommu(&vm, &viommu_id));
		for (n = 0; n != 3; n++) {
			loop[n] = (struct queue_loop){
				.viommu_id = viommu_id,
				.index = n % 2,
			};
			call[n] = (struct call){ .fn = call_queue_loop,
						 .fd = vm.fd,
						 .arg = &loop[n] };
		}
		for (n = 0; n != 3; n++)
			call_start(&call[n]);
		for (n = 0; n != 3; n++)
			while (__atomic_load_n(&loop[n].count,
					       __ATOMIC_ACQUIRE) < 3) {
				ASSERT_EQ(0, call_is_done(&call[n]));
				sched_yield();
			}
		unreg = (struct call){ .fn = call_unregister, .fd = self->fd,
				       .id = iommu_id };
		call_start(&unreg);
		ASSERT_EQ(0, call_end(&unreg));
		for (n = 0; n != 3; n++)
			ASSERT_EQ(0, call_end(&call[n]));
		/* All are destroyed, so nothing is pinned */
		ASSERT_EQ(0, _test_ioctl_ioas_unmap(vm.fd, vm.ioas_id, 0,
						    UINT64_MAX, NULL));
		ASSERT_EQ(0, _test_ioctl_destroy(vm.fd, viommu_id));
		ASSERT_EQ(0, close(vm.fd));
	}
}

/* Regions that are mapped */

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

#define EXPECT_DATA(data, ptr)                               \
	do {                                                 \
		uint32_t __value = 0;                        \
							     \
		EXPECT_EQ(0, try_read(ptr, &__value));       \
		EXPECT_EQ(data, __value);                    \
	} while (0)

#define EXPECT_FAULT(sig, ptr)                               \
	do {                                                 \
		uint32_t *__ptr = (void *)(ptr);             \
		uint32_t __value;                            \
		int __sig = sig;                             \
							     \
		EXPECT_EQ(__sig, try_read(__ptr, &__value)); \
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
	/* See unregister_begin() */
	struct vm probe;
	uint64_t inits;
	uint64_t destroys;
};

FIXTURE_SETUP(iommufd_mmap)
{
	int i;

	self->fd = open("/dev/iommu", O_RDWR);
	ASSERT_NE(-1, self->fd);
	ASSERT_EQ(0, unpark_all(self->fd));
	ASSERT_EQ(0, fault_setup());
	self->probe.fd = -1;
	for (i = 0; i != NUM_VMS; i++)
		self->vm[i].fd = -1;
	ASSERT_EQ(0, _test_cmd_viommu_stats(self->fd, &self->inits,
					    &self->destroys, NULL));
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
	self->unreg = (struct call){
		.fn = call_unregister,
		.fd = self->fd,
		.id = self->iommu_id[0],
	};
}

FIXTURE_TEARDOWN(iommufd_mmap)
{
	uint64_t inits = 0, destroys = 1;
	int i;

	EXPECT_EQ(0, unpark_all(self->fd));
	for (i = 0; i != NUM_VMS; i++) {
		if (self->vm[i].fd != -1)
			EXPECT_EQ(0, close(self->vm[i].fd));
		/* What a test has left mapped is revoked here, if not before */
		EXPECT_EQ(0, iommu_end(self->fd, self->iommu_id[i]));
	}
	if (self->probe.fd != -1)
		EXPECT_EQ(0, close(self->probe.fd));
	EXPECT_EQ(0, _test_cmd_viommu_stats(self->fd, &inits, &destroys, NULL));
	EXPECT_EQ(inits - self->inits, destroys - self->destroys);
	EXPECT_EQ(0, close(self->fd));
}

#undef unregister
#define unregister() \
	ASSERT_EQ(0, _test_cmd_iommu_unregister(self->fd, self->iommu_id[0]))

#define map_it(i)                                                       \
	({                                                              \
		unsigned int __i = i;                                   \
		uint32_t *__ptr = map_region(&self->vm[__i],            \
					     &self->region[__i]);       \
									\
		ASSERT_NE(MAP_FAILED, __ptr);                           \
		__ptr;                                                  \
	})

#define destroy_it(i)                                                   \
	({                                                              \
		unsigned int __i = i;                                   \
									\
		_test_ioctl_destroy(self->vm[__i].fd,                   \
				    self->region[__i].viommu_id);       \
	})

#define destroy_parent() \
	_test_ioctl_destroy(self->vm[0].fd, self->vm[0].parent_id)

#define EXPECT_NO_MMAP(_errno, length, prot, flags, offset)             \
	do {                                                            \
		errno = 0;                                              \
		EXPECT_EQ(MAP_FAILED, mmap(NULL, length, prot, flags,   \
					   self->vm[0].fd, offset));    \
		EXPECT_EQ(_errno, errno);                               \
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
	EXPECT_ERRNO(EBUSY, _test_ioctl_destroy(self->vm[0].fd,
						region.viommu_id));
	ASSERT_EQ(0, munmap(ptr, region.length));
	ASSERT_EQ(0, _test_ioctl_destroy(self->vm[0].fd, region.viommu_id));
}

/* Offsets are as many as a file can have, and are used again when they are free */
TEST_F(iommufd_mmap, no_offset_left)
{
	struct region half, more;

	EXPECT_ERRNO(ENOSPC, vm_region(&self->vm[0],
				       IOMMU_TEST_REGION_TOO_LARGE, &half));
	ASSERT_EQ(0, vm_region(&self->vm[0], IOMMU_TEST_REGION_HALF, &half));
	/* There is not another half, since page 0 has no offset */
	EXPECT_ERRNO(ENOSPC, vm_region(&self->vm[0], IOMMU_TEST_REGION_HALF,
				       &more));
	ASSERT_EQ(0, vm_region(&self->vm[0], 0, &more));
	EXPECT_GE(more.offset, half.offset + half.length);
	ASSERT_EQ(0, _test_ioctl_destroy(self->vm[0].fd, half.viommu_id));
	ASSERT_EQ(0, vm_region(&self->vm[0], IOMMU_TEST_REGION_HALF, &half));
	EXPECT_GE(half.offset, self->region[0].offset + self->region[0].length);
	EXPECT_LE(half.offset + half.length, more.offset);
	ASSERT_EQ(0, _test_ioctl_destroy(self->vm[0].fd, half.viommu_id));
	ASSERT_EQ(0, _test_ioctl_destroy(self->vm[0].fd, more.viommu_id));
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
		EXPECT_ERRNO(EACCES, mprotect(ptr, length,
					      PROT_READ | PROT_EXEC));
		EXPECT_ERRNO(EACCES, mprotect(ptr, length,
					      PROT_RW | PROT_EXEC));
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
#define EXPECT_NO_MREMAP(_errno, args...)                      \
	do {                                                   \
		errno = 0;                                     \
		EXPECT_EQ(MAP_FAILED, mremap(args));           \
		EXPECT_EQ(_errno, errno);                      \
	} while (0)
	EXPECT_NO_MREMAP(EFAULT, ptr, length, length + PAGE_SIZE, 0);
	EXPECT_NO_MREMAP(EFAULT, ptr, length, length + PAGE_SIZE,
			 MREMAP_MAYMOVE);
	EXPECT_NO_MREMAP(EFAULT, page2(ptr), PAGE_SIZE, length, MREMAP_MAYMOVE);
	EXPECT_NO_MREMAP(EFAULT, ptr, 0, length, MREMAP_MAYMOVE);
	EXPECT_NO_MREMAP(EINVAL, ptr, length, length,
			 MREMAP_MAYMOVE | MREMAP_DONTUNMAP);
#undef EXPECT_NO_MREMAP

	ASSERT_EQ(to, mremap(ptr, length, length,
			     MREMAP_MAYMOVE | MREMAP_FIXED, to));
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

static int call_region(int fd, uint32_t id, struct call *call)
{
	return ioctl(fd, IOMMU_VIOMMU_ALLOC, call->arg);
}

static struct iommu_viommu_alloc region_cmd(struct vm *vm, void *data)
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
	struct call alloc = { .fn = call_region, .fd = self->vm[0].fd,
			      .arg = cmd };
	const size_t length = self->region[0].length;
	uint32_t id = free_id(self->vm[0].fd);
	uint32_t *ptr;
	int i;

	EXPECT_EQ(1, map_anywhere(&self->vm[0], length));
	for (i = 0; i != 2; i++) {
		*cmd = region_cmd(&self->vm[0], &data);
		data.out_mmap_offset = 0;
		park(VIOMMU_INIT, ARM);
		call_start(&alloc);
		park(VIOMMU_INIT, WAIT);
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
	EXPECT_EQ(0, _test_ioctl_destroy(self->vm[0].fd, cmd->out_viommu_id));
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
	struct call alloc = { .fn = call_region, .fd = self->vm[0].fd };
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
	*cmd = region_cmd(&self->vm[0], data);
	alloc.arg = cmd;
	ASSERT_EQ(0, _test_cmd_viommu_stats(self->fd, &inits, &before, NULL));
	uffd = uffd_open(buffer, UFFDIO_REGISTER_MODE_WP);
	if (uffd == -1)
		SKIP(return, NEEDS_UFFD);
	call_start(&alloc);
	ASSERT_EQ(0, uffd_wait(uffd));
	EXPECT_EQ(1, map_anywhere(&self->vm[0], length));
	if (!stall_data) {
		EXPECT_NE(0, data->out_mmap_offset);
		EXPECT_NO_MMAP(ENXIO, length, PROT_RW, MAP_SHARED,
			       data->out_mmap_offset);
	}
	EXPECT_ERRNO(ENOENT, _test_ioctl_destroy(self->vm[0].fd, id));
	ASSERT_EQ(0, mprotect(buffer, PAGE_SIZE, PROT_READ));
	ASSERT_EQ(0, uffd_unprotect(uffd, buffer));
	ASSERT_EQ(-EFAULT, call_end(&alloc));
	ASSERT_EQ(0, close(uffd));
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
	struct call call = { .fn = call_destroy, .fd = self->vm[0].fd,
			     .id = self->region[0].viommu_id };

	park(VIOMMU_DESTROY, ARM);
	call_start(&call);
	park(VIOMMU_DESTROY, WAIT);
	EXPECT_EQ(0, map_anywhere(&self->vm[0], self->region[0].length));
	park(VIOMMU_DESTROY, RELEASE);
	EXPECT_EQ(0, call_end(&call));
}

/* The physical IOMMU goes away */

static void child_expect_fault(struct child *child, uint32_t *ptr)
{
	uint32_t value;

	child_wait(child);
	child_tell(child,
		   try_read(ptr, &value) != SIGBUS ||
		   try_write(ptr, 0) != SIGBUS ||
		   try_read(page2(ptr), &value) != SIGBUS ||
		   try_write(page2(ptr), 0) != SIGBUS);
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
	ASSERT_EQ(0, _test_cmd_hwpt_alloc(second.fd, second.device_id,
					  second.ioas_id, 0,
					  IOMMU_HWPT_ALLOC_NEST_PARENT,
					  &parent_id, IOMMU_HWPT_DATA_NONE,
					  NULL, 0));
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
	EXPECT_ERRNO(EBUSY, _test_ioctl_destroy(second.fd, region.viommu_id));
	EXPECT_EQ(0, destroy_it(0));
	ASSERT_EQ(0, munmap(ptr[0], self->region[0].length));
	ASSERT_EQ(0, munmap(ptr[1], region.length));
	EXPECT_EQ(0, _test_ioctl_destroy(second.fd, region.viommu_id));
}

/*
 * The vIOMMU is revoked, but the region is there so far. Who has it mapped uses
 * it until it is not, and nothing new is mapped.
 */
TEST_F(iommufd_mmap, L6_fault_during_revocation)
{
	const size_t length = self->region[0].length;
	uint32_t *ptr = map_it(0), *second = map_it(0);
	struct child child;
	uint32_t value;

	EXPECT_DATA(IN_DATA(0), ptr);
	park(VIOMMU_DESTROY, ARM);
	call_start(&self->unreg);
	park(VIOMMU_DESTROY, WAIT);
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
	struct call call = { .fn = call_destroy, .fd = self->vm[0].fd,
			     .id = self->region[0].viommu_id };
	uint32_t *ptr = map_it(0);
	unsigned int tries = 0;

	park(VIOMMU_DESTROY, ARM);
	call_start(&self->unreg);
	park(VIOMMU_DESTROY, WAIT);
	EXPECT_ERRNO(EBUSY, destroy_it(0));
	ASSERT_EQ(0, munmap(ptr, self->region[0].length));
	call_start(&call);
	while (_test_cmd_viommu_call(call.fd, call.id) && errno != ENOENT) {
		ASSERT_GT(10000, tries++);
		sleep_ms(1);
	}
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
	struct call call = { .fn = call_munmap, .arg = map_it(0) };

	EXPECT_DATA(IN_DATA(0), (uint32_t *)call.arg);
	ASSERT_EQ(0, close(self->vm[0].fd));
	self->vm[0].fd = -1;
	park(VIOMMU_DESTROY, ARM);
	call_start(&self->unreg);
	park(VIOMMU_DESTROY, WAIT);
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
		unreg = (struct call){ .fn = call_unregister, .fd = self->fd,
				       .id = iommu_id };
		call_start(&unreg);
		ASSERT_EQ(0, call_end(&unreg));
		for (n = 0; n != 5; n++)
			ASSERT_EQ(0, call_end(&call[n]));
		EXPECT_FAULT(SIGBUS, loop.ptr);
		EXPECT_EQ(0, _test_ioctl_destroy(loop.vm.fd,
						 loop.region.viommu_id));
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
