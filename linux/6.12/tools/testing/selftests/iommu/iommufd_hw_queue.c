// SPDX-License-Identifier: GPL-2.0-only
/*
 * HW queues, which are memory of a VM that the hardware accesses. The memory stays
 * pinned as long as there is a queue on it, whatever becomes of the physical IOMMU.
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
#include <stdio.h>
#include <sys/mman.h>

#define __EXPORTED_HEADERS__
#include "iommufd_race.h"

/* What an ioctl says that takes IDs of any kind, for one that is not a HWPT */
static int id_errno(struct vm *other, uint32_t id)
{
	if (!vm_attach(other, id))
		return 0;
	return errno;
}

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

	self->fd = stats_open(&self->inits, &self->destroys);
	ASSERT_NE(-1, self->fd);
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

	ASSERT_EQ(0, _test_cmd_iommu_register(self->fd, 0, &self->iommu_id));
	self->unreg = CALL(unregister, self->fd, self->iommu_id);
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
	EXPECT_EQ(0, unpark_all(self->fd));
	EXPECT_EQ(0, vm_close(&self->vm));
	EXPECT_EQ(0, vm_close(&self->probe));
	EXPECT_EQ(0, iommu_end(self->fd, self->iommu_id));
	check_refs(self->page[0], NUM_PAGES * PAGE_SIZE, 0);
	EXPECT_EQ(0, stats_close(self->fd, self->inits, self->destroys));
}

#define unregister() \
	ASSERT_EQ(0, _test_cmd_iommu_unregister(self->fd, self->iommu_id))

#define hw_queue(index, iova, length, id)                             \
	_test_cmd_hw_queue_alloc(self->vm.fd, self->viommu_id,        \
				 IOMMU_HW_QUEUE_TYPE_SELFTEST, index, iova, \
				 length, id)

#define destroy(id) vm_destroy(&self->vm, id)

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
	struct iommu_hw_queue_alloc cmd = hw_queue_cmd(self, 0, PAGE_IOVA(0));

	ASSERT_EQ(40, offsetofend(typeof(cmd), length));
	ASSERT_EQ(40, sizeof(cmd));
	SIZE_SWEEP(self->vm.fd, IOMMU_HW_QUEUE_ALLOC, cmd, length,
		   out_hw_queue_id);
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
		EXPECT_ERRNO(EFAULT,
			     ioctl_readonly(self->vm.fd, IOMMU_HW_QUEUE_ALLOC));
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
	EXPECT_ERRNO(ENOENT, hw_info(self->vm.fd, queue_id));
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
	struct call call = CALL(unmap_all, self->vm.fd, self->vm.ioas_id);
	uint32_t access_fd, id = 0;

	ASSERT_EQ(0, access_open(self, &access_fd));
	ASSERT_EQ(0, access_pin(self, access_fd, 0, PAGE_IOVA(0)));
	park_call(ACCESS_UNMAP, &call);
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
	struct call call = CALL(unmap_three, self->vm.fd, self->vm.ioas_id);
	uint32_t access_fd;

	ASSERT_EQ(0, map_at(self->vm.fd, self->vm.ioas_id, self->page[0],
			    PAGE_SIZE, PAGE_IOVA(20), MAP_RW));
	ASSERT_EQ(0, access_open(self, &access_fd));
	ASSERT_EQ(0, access_pin(self, access_fd, 0, PAGE_IOVA(20)));
	park_call(ACCESS_UNMAP, &call);
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
	struct call alloc =
		CALL(ioctl, self->vm.fd, IOMMU_HW_QUEUE_ALLOC, .arg = cmd);
	uint32_t id = free_id(self->vm.fd);

	*cmd = hw_queue_cmd(self, 0, PAGE_IOVA(0));
	park_call(HW_QUEUE_INIT, &alloc);
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
	struct call alloc =
		CALL(ioctl, self->vm.fd, IOMMU_HW_QUEUE_ALLOC, .arg = cmd);
	uint32_t id = free_id(self->vm.fd);
	uint32_t queue_id;
	int uffd;

	*cmd = hw_queue_cmd(self, 0, PAGE_IOVA(0));
	uffd = STALL(&alloc, buffer, WP);
	EXPECT_ERRNO(EIO, hw_queue(1, PAGE_IOVA(1), PAGE_SIZE, NULL));
	EXPECT_ERRNO(EEXIST, hw_queue(0, PAGE_IOVA(1), PAGE_SIZE, NULL));
	EXPECT_ERRNO(ENOENT, destroy(id));
	EXPECT_ERRNO(EBUSY, unmap(self, PAGE_IOVA(0), PAGE_SIZE));
	EXPECT_ERRNO(EBUSY, destroy(self->viommu_id));
	EXPECT_EQ(-EFAULT, unstall(_metadata, &alloc, uffd, buffer, false));
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
	struct call alloc =
		CALL(ioctl, self->vm.fd, IOMMU_HW_QUEUE_ALLOC, .arg = cmd);
	uint32_t id;
	int i;

	ASSERT_EQ(0, hw_queue(0, PAGE_IOVA(0), PAGE_SIZE, &id));
	for (i = 0; i != 2; i++) {
		*cmd = hw_queue_cmd(self, 1, PAGE_IOVA(1));
		park_call(HW_QUEUE_INIT, &alloc);
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
	struct call call = CALL(destroy, self->vm.fd, 0);

	ASSERT_EQ(0, hw_queue(0, PAGE_IOVA(0), PAGE_SIZE, &call.id));
	park_call(HW_QUEUE_DESTROY, &call);
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
	struct call call = CALL(unmap_loop, -1, 0, .arg = &race);
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
	struct iommu_hw_queue_alloc cmd;
	struct call alloc = CALL(ioctl, -1, IOMMU_HW_QUEUE_ALLOC, .arg = &cmd);
	struct call map = CALL(map, -1, 0, .arg = buffer);
	struct call unreg = CALL(unregister, self->fd, 0);
	uint32_t iommu_id[2], viommu_id, id;
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

	map.fd = vm.fd;
	map.id = vm.ioas_id;
	uffd = STALL(&map, buffer, MISSING);
	alloc.fd = vm.fd;
	call_start(&alloc);
	EXPECT_WAITING(&alloc);

	unreg.id = iommu_id[0];
	call_start(&unreg);
	EXPECT_EQ(0, call_end(&unreg));
	EXPECT_EQ(0, call_is_done(&alloc));
	EXPECT_EQ(0, call_is_done(&map));
	EXPECT_ERRNO(ENODEV, _test_cmd_viommu_call(vm.fd, viommu_id));

	ASSERT_EQ(0, uffd_zero(uffd, buffer));
	EXPECT_EQ(0, call_end(&map));
	EXPECT_EQ(-ENODEV, call_end(&alloc));
	ASSERT_EQ(0, close(uffd));
	EXPECT_EQ(id, free_id(vm.fd));
	EXPECT_EQ(0, _test_ioctl_ioas_unmap(vm.fd, vm.ioas_id, 0, UINT64_MAX,
					    NULL));
	EXPECT_EQ(0, vm_destroy(&vm, viommu_id));
	EXPECT_EQ(0, vm_destroy(&vm, vm.parent_id));
	EXPECT_EQ(0, vm_destroy(&vm, vm.ioas_id));
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
	struct call alloc =
		CALL(ioctl, self->vm.fd, IOMMU_HW_QUEUE_ALLOC, .arg = cmd);
	uint32_t first_id = 0;
	uint32_t id;
	int uffd;

	if (index)
		ASSERT_EQ(0, hw_queue(0, PAGE_IOVA(1), PAGE_SIZE, &first_id));
	id = free_id(self->vm.fd);
	*cmd = hw_queue_cmd(self, index, PAGE_IOVA(0));
	uffd = STALL(&alloc, buffer, WP);
	call_start(&self->unreg);
	EXPECT_EQ(0, call_end(&self->unreg));
	EXPECT_EQ(0, call_is_done(&alloc));
	EXPECT_EQ(ENODEV, id_errno(&self->other, self->viommu_id));
	EXPECT_ERRNO(EBUSY, unmap(self, PAGE_IOVA(0), PAGE_SIZE));

	ASSERT_EQ(writable ? 0 : -EFAULT,
		  unstall(_metadata, &alloc, uffd, buffer, writable));
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
	struct call alloc =
		CALL(ioctl, self->vm.fd, IOMMU_HW_QUEUE_ALLOC, .arg = &cmd);
	uint32_t first_id = 0;
	uint32_t id;

	if (index)
		ASSERT_EQ(0, hw_queue(0, PAGE_IOVA(1), PAGE_SIZE, &first_id));
	id = free_id(self->vm.fd);
	cmd = hw_queue_cmd(self, index, PAGE_IOVA(0));
	park_call(HW_QUEUE_INIT, &alloc);
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
	park_call(HW_QUEUE_DESTROY, &self->unreg);
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
	struct call call = CALL(destroy, self->vm.fd, 0);
	uint32_t id;

	ASSERT_EQ(0, hw_queue(0, PAGE_IOVA(0), PAGE_SIZE, &id));
	ASSERT_EQ(0, hw_queue(1, PAGE_IOVA(1), PAGE_SIZE, &call.id));
	park_call(HW_QUEUE_DESTROY, &call);
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
	struct call call = CALL(destroy, self->vm.fd, 0);
	uint32_t id;

	ASSERT_EQ(0, hw_queue(0, PAGE_IOVA(0), PAGE_SIZE, &id));
	ASSERT_EQ(0, hw_queue(1, PAGE_IOVA(1), PAGE_SIZE, &call.id));
	park_call(HW_QUEUE_DESTROY, &self->unreg);
	EXPECT_EQ(ENODEV, id_errno(&self->other, call.id));
	/* What the parked one is built on stays for the time being */
	EXPECT_ERRNO(EBUSY, destroy(id));
	EXPECT_ERRNO(EBUSY, destroy(self->viommu_id));
	call_start(&call);
	WAIT_WHILE(id_errno(&self->other, call.id) != ENOENT);
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
	struct call closing = CALL(close, self->vm.fd, 0);
	uint32_t id;

	ASSERT_EQ(0, hw_queue(0, PAGE_IOVA(0), PAGE_SIZE, &id));
	ASSERT_EQ(0, hw_queue(1, PAGE_IOVA(1), PAGE_SIZE, NULL));
	park_call(HW_QUEUE_DESTROY, &self->unreg);
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
	struct call closing = CALL(close, self->vm.fd, 0);
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
			call[n] = CALL(queue_loop, vm.fd, 0, .arg = &loop[n]);
		}
		for (n = 0; n != 3; n++)
			call_start(&call[n]);
		for (n = 0; n != 3; n++)
			while (__atomic_load_n(&loop[n].count,
					       __ATOMIC_ACQUIRE) < 3) {
				ASSERT_EQ(0, call_is_done(&call[n]));
				sched_yield();
			}
		unreg = CALL(unregister, self->fd, iommu_id);
		call_start(&unreg);
		ASSERT_EQ(0, call_end(&unreg));
		for (n = 0; n != 3; n++)
			ASSERT_EQ(0, call_end(&call[n]));
		/* All are destroyed, so nothing is pinned */
		ASSERT_EQ(0, _test_ioctl_ioas_unmap(vm.fd, vm.ioas_id, 0,
						    UINT64_MAX, NULL));
		ASSERT_EQ(0, vm_destroy(&vm, viommu_id));
		ASSERT_EQ(0, close(vm.fd));
	}
}

TEST_HARNESS_MAIN
