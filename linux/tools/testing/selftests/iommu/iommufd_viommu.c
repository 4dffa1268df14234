// SPDX-License-Identifier: GPL-2.0-only
/*
 * The vIOMMU object: what IOMMU_VIOMMU_ALLOC accepts, what the object holds and
 * what it does not, and how it gets on with devices that come and go.
 */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define __EXPORTED_HEADERS__
#include "iommufd_utils.h"

static __attribute__((constructor)) void setup_sizes(void)
{
	PAGE_SIZE = sysconf(_SC_PAGE_SIZE);
	BUFFER_SIZE = PAGE_SIZE * 2;
	buffer = mmap(NULL, BUFFER_SIZE, PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	assert(buffer != MAP_FAILED);
}

FIXTURE(iommufd_viommu)
{
	int fd;
	uint32_t ioas_id;
	uint32_t stdev_id;
	uint32_t device_id;
	uint32_t parent_id;
};

FIXTURE_SETUP(iommufd_viommu)
{
	self->fd = open("/dev/iommu", O_RDWR);
	ASSERT_NE(-1, self->fd);
	test_ioctl_ioas_alloc(&self->ioas_id);
	test_cmd_mock_domain(self->ioas_id, &self->stdev_id, NULL,
			     &self->device_id);
	test_cmd_hwpt_alloc(self->device_id, self->ioas_id,
			    IOMMU_HWPT_ALLOC_NEST_PARENT, &self->parent_id);
}

FIXTURE_TEARDOWN(iommufd_viommu)
{
	teardown_iommufd(self->fd, _metadata);
}

/*
 * IDs are given out lowest first, so this tells whether one was left behind.
 * 0 if there is none to be had.
 */
static uint32_t free_id(int fd)
{
	uint32_t id;

	if (_test_ioctl_ioas_alloc(fd, &id) || _test_ioctl_destroy(fd, id))
		return 0;
	return id;
}

#define alloc_viommu(viommu_id)                             \
	test_cmd_viommu_alloc(self->device_id, self->parent_id, \
			      IOMMU_VIOMMU_TYPE_SELFTEST, NULL, 0, viommu_id)

TEST_F(iommufd_viommu, alloc)
{
	uint32_t viommu_id = 0;

	alloc_viommu(&viommu_id);
	ASSERT_NE(0, viommu_id);

	/* It is in use by nobody, and destroyed once */
	test_ioctl_destroy(viommu_id);
	EXPECT_ERRNO(ENOENT, _test_ioctl_destroy(self->fd, viommu_id));
}

/* Closing the file finds an order in which everything can be destroyed */
TEST_F(iommufd_viommu, auto_destroy)
{
	uint32_t viommu_id;
	int i;

	for (i = 0; i != 10; i++)
		alloc_viommu(&viommu_id);
}

TEST_F(iommufd_viommu, alloc_bad_arguments)
{
	struct iommu_hwpt_selftest nested_data = {
		.iotlb = IOMMU_TEST_IOTLB_DEFAULT,
	};
	struct iommu_viommu_alloc cmd = {
		.size = sizeof(cmd),
		.type = IOMMU_VIOMMU_TYPE_SELFTEST,
		.dev_id = self->device_id,
		.hwpt_id = self->parent_id,
	};
	uint32_t no_parent_id;
	uint32_t nested_id;
	uint32_t id;

	test_cmd_hwpt_alloc(self->device_id, self->ioas_id, 0, &no_parent_id);
	test_cmd_hwpt_alloc_nested(self->device_id, self->parent_id, 0,
				   &nested_id, IOMMU_HWPT_DATA_SELFTEST,
				   &nested_data, sizeof(nested_data));
	id = free_id(self->fd);
	ASSERT_NE(0, id);

#define test_err_cmd(_errno, field, value)                             \
	({                                                             \
		struct iommu_viommu_alloc bad = cmd;                   \
								       \
		bad.field = value;                                     \
		EXPECT_ERRNO(_errno,                                   \
			     ioctl(self->fd, IOMMU_VIOMMU_ALLOC, &bad)); \
		EXPECT_EQ(0, bad.out_viommu_id);                       \
		EXPECT_EQ(id, free_id(self->fd));                      \
	})
	test_err_cmd(EOPNOTSUPP, flags, 1);
	test_err_cmd(EOPNOTSUPP, flags, 1U << 31);
	test_err_cmd(EOPNOTSUPP, __reserved, 1);
	test_err_cmd(EOPNOTSUPP, type, IOMMU_VIOMMU_TYPE_DEFAULT);
	test_err_cmd(EOPNOTSUPP, type, IOMMU_VIOMMU_TYPE_SELFTEST + 1);
	test_err_cmd(EOPNOTSUPP, type, UINT32_MAX);
	/* IDs that never were, and those of objects of another kind */
	test_err_cmd(ENOENT, dev_id, 0);
	test_err_cmd(ENOENT, dev_id, UINT32_MAX);
	test_err_cmd(ENOENT, dev_id, self->stdev_id);
	test_err_cmd(ENOENT, dev_id, self->parent_id);
	test_err_cmd(ENOENT, hwpt_id, 0);
	test_err_cmd(ENOENT, hwpt_id, UINT32_MAX);
	test_err_cmd(ENOENT, hwpt_id, self->ioas_id);
	test_err_cmd(ENOENT, hwpt_id, nested_id);
	test_err_cmd(EINVAL, hwpt_id, no_parent_id);
#undef test_err_cmd

	/* Nothing of this has left a reference behind */
	test_ioctl_destroy(nested_id);
	test_ioctl_destroy(no_parent_id);
	test_ioctl_destroy(self->parent_id);
}

TEST_F(iommufd_viommu, alloc_size)
{
	struct {
		struct iommu_viommu_alloc cmd;
		uint8_t more[64];
	} arg = {
		.cmd = {
			.type = IOMMU_VIOMMU_TYPE_SELFTEST,
			.dev_id = self->device_id,
			.hwpt_id = self->parent_id,
		},
	};
	const uint32_t min_size =
		offsetofend(struct iommu_viommu_alloc, out_viommu_id);
	uint32_t id = free_id(self->fd);
	uint32_t size;

	ASSERT_EQ(24, min_size);
	ASSERT_EQ(40, sizeof(arg.cmd));

	for (size = 0; size != min_size; size++) {
		arg.cmd.size = size;
		EXPECT_ERRNO(EINVAL,
			     ioctl(self->fd, IOMMU_VIOMMU_ALLOC, &arg));
	}

	/* A newer program's larger structure is fine as long as it is zero */
	for (; size != sizeof(arg); size++) {
		arg.cmd.size = size;
		arg.cmd.out_viommu_id = 0;
		ASSERT_EQ(0, ioctl(self->fd, IOMMU_VIOMMU_ALLOC, &arg));
		EXPECT_EQ(size, arg.cmd.size);
		EXPECT_EQ(id, arg.cmd.out_viommu_id);
		test_ioctl_destroy(arg.cmd.out_viommu_id);
	}
	for (size = 0; size != sizeof(arg.more); size++) {
		arg.cmd.size = sizeof(arg);
		arg.more[size] = 1;
		EXPECT_ERRNO(E2BIG, ioctl(self->fd, IOMMU_VIOMMU_ALLOC, &arg));
		arg.more[size] = 0;
	}

	/* What is beyond the size is not looked at, and not written */
	memset(&arg.cmd.data_len, 0xa5, sizeof(arg) - min_size);
	arg.cmd.size = min_size;
	ASSERT_EQ(0, ioctl(self->fd, IOMMU_VIOMMU_ALLOC, &arg));
	for (size = min_size; size != sizeof(arg); size++)
		ASSERT_EQ(0xa5, ((uint8_t *)&arg)[size]);
	test_ioctl_destroy(arg.cmd.out_viommu_id);

	EXPECT_ERRNO(EFAULT, ioctl(self->fd, IOMMU_VIOMMU_ALLOC, NULL));
	EXPECT_EQ(id, free_id(self->fd));
	test_ioctl_destroy(self->parent_id);
}

TEST_F(iommufd_viommu, alloc_data)
{
	struct {
		struct iommu_viommu_selftest data;
		uint64_t more;
	} arg = {};
	const size_t min_len =
		offsetofend(struct iommu_viommu_selftest, out_data);
	uint32_t id = free_id(self->fd);
	uint32_t viommu_id;
	size_t len;

#define try_data(ptr, len, id)                                         \
	_test_cmd_viommu_alloc(self->fd, self->device_id, self->parent_id, 0, \
			       IOMMU_VIOMMU_TYPE_SELFTEST, ptr, len, id)

	/* No data, so no pointer that could be wrong */
	ASSERT_EQ(0, try_data((void *)1, 0, &viommu_id));
	test_ioctl_destroy(viommu_id);

	for (len = 1; len <= sizeof(arg); len++) {
		arg.data.in_data = 0x1000 + len;
		arg.data.out_data = 0;
		if (len < min_len || len > sizeof(arg.data)) {
			EXPECT_ERRNO(EINVAL, try_data(&arg, len, NULL));
			EXPECT_EQ(0, arg.data.out_data);
		} else {
			ASSERT_EQ(0, try_data(&arg, len, &viommu_id));
			EXPECT_EQ(arg.data.in_data, arg.data.out_data);
			test_ioctl_destroy(viommu_id);
		}
	}
	EXPECT_ERRNO(EINVAL, try_data(&arg, UINT32_MAX, NULL));

	/* Neither a read nor a write that fails leaves anything behind */
	EXPECT_ERRNO(EFAULT, try_data(NULL, sizeof(arg.data), NULL));
	memcpy(buffer, &arg.data, sizeof(arg.data));
	ASSERT_EQ(0, mprotect(buffer, PAGE_SIZE, PROT_READ));
	EXPECT_ERRNO(EFAULT, try_data(buffer, sizeof(arg.data), NULL));
	ASSERT_EQ(0, mprotect(buffer, PAGE_SIZE, PROT_READ | PROT_WRITE));
#undef try_data

	EXPECT_EQ(id, free_id(self->fd));
	test_ioctl_destroy(self->parent_id);
}

/* The answer cannot be given, so there is no vIOMMU */
TEST_F(iommufd_viommu, alloc_readonly_argument)
{
	struct iommu_viommu_alloc *cmd = buffer;
	uint32_t id = free_id(self->fd);

	*cmd = (struct iommu_viommu_alloc){
		.size = sizeof(*cmd),
		.type = IOMMU_VIOMMU_TYPE_SELFTEST,
		.dev_id = self->device_id,
		.hwpt_id = self->parent_id,
	};
	ASSERT_EQ(0, mprotect(buffer, PAGE_SIZE, PROT_READ));
	EXPECT_ERRNO(EFAULT, ioctl(self->fd, IOMMU_VIOMMU_ALLOC, cmd));
	ASSERT_EQ(0, mprotect(buffer, PAGE_SIZE, PROT_READ | PROT_WRITE));

	EXPECT_EQ(id, free_id(self->fd));
	EXPECT_ERRNO(ENOENT, _test_ioctl_destroy(self->fd, id));
	test_ioctl_destroy(self->parent_id);
}

/* Its ID is that of a vIOMMU and of nothing else */
TEST_F(iommufd_viommu, id_is_no_other_object)
{
	uint32_t viommu_id;
	uint32_t id;

	alloc_viommu(&viommu_id);
	id = free_id(self->fd);

	EXPECT_ERRNO(ENOENT, _test_cmd_get_hw_info(self->fd, viommu_id, NULL, 0,
						   NULL, NULL));
	test_err_viommu_alloc(ENOENT, viommu_id, self->parent_id,
			      IOMMU_VIOMMU_TYPE_SELFTEST, NULL, 0);
	test_err_viommu_alloc(ENOENT, self->device_id, viommu_id,
			      IOMMU_VIOMMU_TYPE_SELFTEST, NULL, 0);
	EXPECT_EQ(-ENOENT,
		  _test_cmd_set_dirty_tracking(self->fd, viommu_id, true));
	test_err_mock_domain_replace(EINVAL, self->stdev_id, viommu_id);

	EXPECT_EQ(id, free_id(self->fd));
	test_ioctl_destroy(viommu_id);
}

/* The parent is in use by as many vIOMMUs as there are on it */
TEST_F(iommufd_viommu, two_on_one_parent)
{
	uint32_t viommu_id[2];

	alloc_viommu(&viommu_id[0]);
	alloc_viommu(&viommu_id[1]);
	ASSERT_NE(viommu_id[0], viommu_id[1]);

	EXPECT_ERRNO(EBUSY, _test_ioctl_destroy(self->fd, self->parent_id));
	test_ioctl_destroy(viommu_id[0]);
	EXPECT_ERRNO(EBUSY, _test_ioctl_destroy(self->fd, self->parent_id));
	EXPECT_ERRNO(EBUSY, _test_ioctl_destroy(self->fd, self->ioas_id));
	test_ioctl_destroy(viommu_id[1]);
	EXPECT_ERRNO(ENOENT, _test_ioctl_destroy(self->fd, viommu_id[0]));
	test_ioctl_destroy(self->parent_id);
}

/* Two VMs on one physical IOMMU, with nothing in common but that */
TEST_F(iommufd_viommu, two_files)
{
	uint32_t parent_id, device_id, ioas_id;
	uint32_t viommu_id, other_viommu_id;
	int fd;

	fd = open("/dev/iommu", O_RDWR);
	ASSERT_NE(-1, fd);
	ASSERT_EQ(0, _test_ioctl_ioas_alloc(fd, &ioas_id));
	ASSERT_EQ(0, _test_cmd_mock_domain(fd, ioas_id, NULL, NULL,
					   &device_id));
	ASSERT_EQ(0, _test_cmd_hwpt_alloc(fd, device_id, ioas_id, 0,
					  IOMMU_HWPT_ALLOC_NEST_PARENT,
					  &parent_id, IOMMU_HWPT_DATA_NONE, NULL,
					  0));

	alloc_viommu(&viommu_id);
	ASSERT_EQ(0, _test_cmd_viommu_alloc(fd, device_id, parent_id, 0,
					    IOMMU_VIOMMU_TYPE_SELFTEST, NULL, 0,
					    &other_viommu_id));

	/* Both are in use, and closing one file is nothing to the other */
	EXPECT_ERRNO(EBUSY, _test_ioctl_destroy(fd, parent_id));
	EXPECT_ERRNO(EBUSY, _test_ioctl_destroy(self->fd, self->parent_id));
	ASSERT_EQ(0, close(fd));
	EXPECT_ERRNO(EBUSY, _test_ioctl_destroy(self->fd, self->parent_id));
	test_ioctl_destroy(viommu_id);
	test_ioctl_destroy(self->parent_id);
}

/*
 * The device that led to the physical IOMMU is not held, so its unplug is neither
 * refused nor delayed. When a device is back, it can use the parent of the
 * vIOMMUs that stayed, and lead to further vIOMMUs on it.
 */
TEST_F(iommufd_viommu, unplug_and_replug)
{
	struct timespec start, end;
	uint32_t viommu_id[10];
	uint32_t id;
	int i;

	for (i = 0; i != 10; i++) {
		id = self->device_id;
		alloc_viommu(&viommu_id[i]);

		clock_gettime(CLOCK_MONOTONIC, &start);
		test_ioctl_destroy(self->stdev_id);
		clock_gettime(CLOCK_MONOTONIC, &end);
		ASSERT_GT(10, end.tv_sec - start.tv_sec);

		/* Gone is the device, but not the vIOMMU */
		EXPECT_ERRNO(ENOENT, _test_cmd_get_hw_info(self->fd, id, NULL,
							   0, NULL, NULL));
		test_err_viommu_alloc(ENOENT, id, self->parent_id,
				      IOMMU_VIOMMU_TYPE_SELFTEST, NULL, 0);
		EXPECT_ERRNO(EBUSY,
			     _test_ioctl_destroy(self->fd, self->parent_id));

		/* What comes back can use the parent of the vIOMMU at once */
		test_cmd_mock_domain(self->ioas_id, &self->stdev_id, NULL,
				     &self->device_id);
		test_cmd_mock_domain_replace(self->stdev_id, self->parent_id);
	}

	/* And the vIOMMUs can be destroyed with the device there or not */
	for (i = 0; i != 5; i++)
		test_ioctl_destroy(viommu_id[i]);
	test_ioctl_destroy(self->stdev_id);
	EXPECT_ERRNO(EBUSY, _test_ioctl_destroy(self->fd, self->parent_id));
	for (; i != 10; i++)
		test_ioctl_destroy(viommu_id[i]);
	test_ioctl_destroy(self->parent_id);
}

struct alloc_loop {
	int fd;
	uint32_t device_id;
	uint32_t parent_id;
	unsigned int count;
	int err;
};

/* Allocate and destroy until the device is gone */
static void *alloc_loop(void *arg)
{
	struct alloc_loop *loop = arg;
	uint32_t viommu_id;

	while (!_test_cmd_viommu_alloc(loop->fd, loop->device_id,
				       loop->parent_id, 0,
				       IOMMU_VIOMMU_TYPE_SELFTEST, NULL, 0,
				       &viommu_id)) {
		/* Leave some for the close to clean up */
		if (loop->count % 16 &&
		    _test_ioctl_destroy(loop->fd, viommu_id))
			break;
		__atomic_add_fetch(&loop->count, 1, __ATOMIC_RELEASE);
	}
	loop->err = errno;
	/* In case that it failed before the unplug began */
	__atomic_or_fetch(&loop->count, 1, __ATOMIC_RELEASE);
	return NULL;
}

/* Allocations that race with the unplug succeed, or find no device */
TEST_F(iommufd_viommu, unplug_during_alloc)
{
	struct alloc_loop loop[2];
	struct timespec start, end;
	pthread_t thread[2];
	int i, j;

	for (i = 0; i != 50; i++) {
		for (j = 0; j != 2; j++) {
			loop[j] = (struct alloc_loop){
				.fd = self->fd,
				.device_id = self->device_id,
				.parent_id = self->parent_id,
			};
			ASSERT_EQ(0, pthread_create(&thread[j], NULL,
						    alloc_loop, &loop[j]));
		}
		for (j = 0; j != 2; j++)
			while (!__atomic_load_n(&loop[j].count,
						__ATOMIC_ACQUIRE))
				;

		clock_gettime(CLOCK_MONOTONIC, &start);
		test_ioctl_destroy(self->stdev_id);
		clock_gettime(CLOCK_MONOTONIC, &end);
		ASSERT_GT(10, end.tv_sec - start.tv_sec);

		for (j = 0; j != 2; j++) {
			ASSERT_EQ(0, pthread_join(thread[j], NULL));
			ASSERT_EQ(ENOENT, loop[j].err);
		}
		test_cmd_mock_domain(self->ioas_id, &self->stdev_id, NULL,
				     &self->device_id);
	}
}

TEST_HARNESS_MAIN
