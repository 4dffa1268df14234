// SPDX-License-Identifier: GPL-2.0-only
/*
 * The vIOMMU object, the vDEVICEs and the nested HWPTs on it, and invalidation: what
 * the ioctls accept, what the objects hold and what they do not, and how they get on
 * with devices that come and go.
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

#define test_err_cmd(_errno, field, value)                                     \
	EXPECT_BAD_FIELD(_errno, self->fd, IOMMU_VIOMMU_ALLOC, cmd, id, field, \
			 value)
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

TEST_F(iommufd_viommu, alloc_not_supported)
{
	static const uint32_t flags[] = { MOCK_IOMMU_NO_VIOMMU,
					  MOCK_IOMMU_HALF_VIOMMU };
	uint32_t iommu_id;
	struct vm vm;
	size_t i;

	for (i = 0; i != ARRAY_SIZE(flags); i++) {
		ASSERT_EQ(0, _test_cmd_iommu_register(self->fd, flags[i],
						      &iommu_id));
		ASSERT_EQ(0, vm_open(&vm, iommu_id));
		EXPECT_ERRNO(EOPNOTSUPP, vm_viommu(&vm, NULL));
		ASSERT_EQ(0, close(vm.fd));
		ASSERT_EQ(0, _test_cmd_iommu_unregister(self->fd, iommu_id));
	}
}

TEST_F(iommufd_viommu, alloc_size)
{
	struct iommu_viommu_alloc cmd = {
		.type = IOMMU_VIOMMU_TYPE_SELFTEST,
		.dev_id = self->device_id,
		.hwpt_id = self->parent_id,
	};

	ASSERT_EQ(24, offsetofend(typeof(cmd), out_viommu_id));
	ASSERT_EQ(40, sizeof(cmd));
	SIZE_SWEEP(self->fd, IOMMU_VIOMMU_ALLOC, cmd, out_viommu_id,
		   out_viommu_id);
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
	/* More than is copied to the stack, and than any driver knows */
	for (len = 62; len <= 66; len++)
		EXPECT_ERRNO(EINVAL, try_data(buffer, len, NULL));
	EXPECT_ERRNO(EINVAL, try_data(buffer, PAGE_SIZE, NULL));
	EXPECT_ERRNO(EINVAL, try_data(buffer, PAGE_SIZE + 1, NULL));
	EXPECT_ERRNO(EFAULT, try_data(NULL, PAGE_SIZE, NULL));

	/* Neither a read nor a write that fails leaves anything behind */
	EXPECT_ERRNO(EFAULT, try_data(NULL, sizeof(arg.data), NULL));
	/* The read comes before the IDs are looked up */
	test_err_viommu_alloc(EFAULT, 0, self->parent_id,
			      IOMMU_VIOMMU_TYPE_SELFTEST, NULL,
			      sizeof(arg.data));
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
	EXPECT_ERRNO(EFAULT, ioctl_readonly(self->fd, IOMMU_VIOMMU_ALLOC));

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

	EXPECT_ERRNO(ENOENT, hw_info(self->fd, viommu_id));
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
		EXPECT_ERRNO(ENOENT, hw_info(self->fd, id));
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

/* One device of the fixture's, another one, and a vIOMMU */
FIXTURE(iommufd_vdevice)
{
	int fd;
	uint32_t ioas_id;
	uint32_t stdev_id;
	uint32_t device_id;
	uint32_t parent_id;
	uint32_t other_stdev_id;
	uint32_t other_device_id;
	uint32_t viommu_id;
};

FIXTURE_SETUP(iommufd_vdevice)
{
	self->fd = open("/dev/iommu", O_RDWR);
	ASSERT_NE(-1, self->fd);
	ASSERT_EQ(0, unpark_all(self->fd));
	test_ioctl_ioas_alloc(&self->ioas_id);
	test_cmd_mock_domain(self->ioas_id, &self->stdev_id, NULL,
			     &self->device_id);
	test_cmd_hwpt_alloc(self->device_id, self->ioas_id,
			    IOMMU_HWPT_ALLOC_NEST_PARENT, &self->parent_id);
	test_cmd_mock_domain(self->ioas_id, &self->other_stdev_id, NULL,
			     &self->other_device_id);
	alloc_viommu(&self->viommu_id);
}

FIXTURE_TEARDOWN(iommufd_vdevice)
{
	EXPECT_EQ(0, unpark_all(self->fd));
	teardown_iommufd(self->fd, _metadata);
}

static struct iommu_vdevice_alloc vdevice_cmd(uint32_t viommu_id,
					      uint32_t dev_id, uint64_t virt_id)
{
	return (struct iommu_vdevice_alloc){
		.size = sizeof(struct iommu_vdevice_alloc),
		.viommu_id = viommu_id,
		.dev_id = dev_id,
		.virt_id = virt_id,
	};
}

/* Whether a virtual ID leads to the device, which has its cache back afterwards */
static int invalidate(int fd, uint32_t viommu_id, uint32_t virt_id)
{
	struct iommu_viommu_invalidate_selftest inv = {
		.vdev_id = virt_id,
		.flags = IOMMU_TEST_INVALIDATE_FLAG_ALL,
	};
	uint32_t num = 1;

	return _test_cmd_hwpt_invalidate(fd, viommu_id, &inv,
					 IOMMU_VIOMMU_INVALIDATE_DATA_SELFTEST,
					 sizeof(inv), &num);
}

TEST_F(iommufd_vdevice, alloc)
{
	static const uint64_t virt_ids[] = { 0, 1, 0x99, UINT32_MAX,
					     1ULL << 32, UINT64_MAX };
	uint32_t vdevice_id;
	unsigned int i;

	for (i = 0; i != ARRAY_SIZE(virt_ids); i++) {
		test_cmd_vdevice_alloc(self->viommu_id, self->device_id,
				       virt_ids[i], &vdevice_id);
		/* The vIOMMU is in use, and the vDEVICE by nobody */
		EXPECT_ERRNO(EBUSY,
			     _test_ioctl_destroy(self->fd, self->viommu_id));
		test_ioctl_destroy(vdevice_id);
		EXPECT_ERRNO(ENOENT, _test_ioctl_destroy(self->fd, vdevice_id));
	}
	test_ioctl_destroy(self->viommu_id);
	test_ioctl_destroy(self->parent_id);
}

TEST_F(iommufd_vdevice, bad_arguments)
{
	struct iommu_vdevice_alloc cmd =
		vdevice_cmd(self->viommu_id, self->device_id, 1);
	uint32_t id = free_id(self->fd);

#define test_err_cmd(_errno, field, value)                               \
	EXPECT_BAD_FIELD(_errno, self->fd, IOMMU_VDEVICE_ALLOC, cmd, id, \
			 field, value)
	test_err_cmd(ENOENT, viommu_id, 0);
	test_err_cmd(ENOENT, viommu_id, UINT32_MAX);
	test_err_cmd(ENOENT, viommu_id, self->parent_id);
	test_err_cmd(ENOENT, viommu_id, self->device_id);
	test_err_cmd(ENOENT, dev_id, 0);
	test_err_cmd(ENOENT, dev_id, UINT32_MAX);
	test_err_cmd(ENOENT, dev_id, self->stdev_id);
	test_err_cmd(ENOENT, dev_id, self->viommu_id);
#undef test_err_cmd
	/* Not after all this, and so nothing has been left behind */
	test_ioctl_destroy(self->viommu_id);
}

TEST_F(iommufd_vdevice, size)
{
	struct iommu_vdevice_alloc cmd =
		vdevice_cmd(self->viommu_id, self->device_id, 7);

	ASSERT_EQ(24, sizeof(cmd));
	SIZE_SWEEP(self->fd, IOMMU_VDEVICE_ALLOC, cmd, virt_id, out_vdevice_id);
	test_ioctl_destroy(self->viommu_id);
}

/* A device has one vDEVICE, a virtual ID is one device's of a vIOMMU */
TEST_F(iommufd_vdevice, exists)
{
	uint32_t viommu_id, vdevice_id, other_id, id;

	alloc_viommu(&viommu_id);
	test_cmd_vdevice_alloc(self->viommu_id, self->device_id, 1,
			       &vdevice_id);
	id = free_id(self->fd);

	test_err_vdevice_alloc(EEXIST, self->viommu_id, self->device_id, 1);
	test_err_vdevice_alloc(EEXIST, self->viommu_id, self->device_id, 2);
	test_err_vdevice_alloc(EEXIST, viommu_id, self->device_id, 1);
	test_err_vdevice_alloc(EEXIST, self->viommu_id, self->other_device_id,
			       1);
	EXPECT_EQ(id, free_id(self->fd));

	/* The IDs of another vIOMMU are no concern of this one */
	test_cmd_vdevice_alloc(viommu_id, self->other_device_id, 1, &other_id);
	test_ioctl_destroy(other_id);
	test_cmd_vdevice_alloc(self->viommu_id, self->other_device_id, 2,
			       &other_id);
	test_ioctl_destroy(vdevice_id);
	test_cmd_vdevice_alloc(viommu_id, self->device_id, 2, &vdevice_id);
}

/* A virtual ID leads to its device as long as there is the vDEVICE, and no longer */
TEST_F(iommufd_vdevice, find_by_virtual_id)
{
	uint32_t vdevice_id, other_id;

	EXPECT_ERRNO(EINVAL, invalidate(self->fd, self->viommu_id, 1));
	test_cmd_vdevice_alloc(self->viommu_id, self->device_id, 1,
			       &vdevice_id);
	test_cmd_vdevice_alloc(self->viommu_id, self->other_device_id, 2,
			       &other_id);
	ASSERT_EQ(0, invalidate(self->fd, self->viommu_id, 2));
	test_cmd_dev_check_cache_all(self->device_id,
				     IOMMU_TEST_DEV_CACHE_DEFAULT);
	test_cmd_dev_check_cache_all(self->other_device_id, 0);

	test_ioctl_destroy(vdevice_id);
	EXPECT_ERRNO(EINVAL, invalidate(self->fd, self->viommu_id, 1));
	test_ioctl_destroy(other_id);

	/* Now it is the other way round */
	test_cmd_vdevice_alloc(self->viommu_id, self->device_id, 2,
			       &vdevice_id);
	ASSERT_EQ(0, invalidate(self->fd, self->viommu_id, 2));
	test_cmd_dev_check_cache_all(self->device_id, 0);
}

/* There are many of them */
TEST_F_TIMEOUT(iommufd_vdevice, many, 120)
{
	enum { NUM = 300 };
	uint32_t stdev_id[NUM], device_id[NUM], vdevice_id[NUM];
	int i;

	for (i = 0; i != NUM; i++) {
		test_cmd_mock_domain(self->ioas_id, &stdev_id[i], NULL,
				     &device_id[i]);
		/* Far from each other, and from the order in which they come */
		test_cmd_vdevice_alloc(self->viommu_id, device_id[i],
				       (i * 7919ULL) << 32 | i, &vdevice_id[i]);
	}
	for (i = 0; i != NUM; i += 3)
		test_ioctl_destroy(vdevice_id[i]);
	for (i = 1; i < NUM; i += 3)
		test_ioctl_destroy(stdev_id[i]);
	EXPECT_ERRNO(EBUSY, _test_ioctl_destroy(self->fd, self->viommu_id));
	for (i = 2; i < NUM; i += 3)
		test_ioctl_destroy(vdevice_id[i]);
	for (i = 1; i < NUM; i += 3)
		EXPECT_ERRNO(ENOENT,
			     _test_ioctl_destroy(self->fd, vdevice_id[i]));
	test_ioctl_destroy(self->viommu_id);
}

/* The answer cannot be given, so there is no vDEVICE */
TEST_F(iommufd_vdevice, L12_readonly_argument)
{
	uint32_t id = free_id(self->fd);
	uint32_t vdevice_id;

	*(struct iommu_vdevice_alloc *)buffer =
		vdevice_cmd(self->viommu_id, self->device_id, 1);
	EXPECT_ERRNO(EFAULT, ioctl_readonly(self->fd, IOMMU_VDEVICE_ALLOC));

	EXPECT_EQ(id, free_id(self->fd));
	EXPECT_ERRNO(EINVAL, invalidate(self->fd, self->viommu_id, 1));
	test_cmd_vdevice_alloc(self->viommu_id, self->device_id, 1,
			       &vdevice_id);
	test_ioctl_destroy(vdevice_id);
	test_ioctl_destroy(self->viommu_id);
}

/* A device that comes later is welcome, one behind another IOMMU is not */
TEST_F(iommufd_vdevice, L9_behind_another_instance)
{
	uint32_t iommu_id, stdev_id, device_id, vdevice_id, id;

	ASSERT_EQ(0, _test_cmd_iommu_register(self->fd, 0, &iommu_id));
	ASSERT_EQ(0, _test_cmd_mock_domain_iommu(self->fd, self->ioas_id,
						 iommu_id, 0, &stdev_id, NULL,
						 &device_id));
	id = free_id(self->fd);
	test_err_vdevice_alloc(EINVAL, self->viommu_id, device_id, 1);
	EXPECT_EQ(id, free_id(self->fd));
	test_ioctl_destroy(stdev_id);
	ASSERT_EQ(0, _test_cmd_iommu_unregister(self->fd, iommu_id));

	test_cmd_mock_domain(self->ioas_id, &stdev_id, NULL, &device_id);
	test_cmd_vdevice_alloc(self->viommu_id, device_id, 1, &vdevice_id);
	ASSERT_EQ(0, invalidate(self->fd, self->viommu_id, 1));
	test_cmd_dev_check_cache_all(device_id, 0);
}

/* It goes with its device, and its ID is nothing else's afterwards */
TEST_F(iommufd_vdevice, L10_unplug)
{
	uint32_t vdevice_id[5], id[20];
	unsigned int i, j;

	for (i = 0; i != ARRAY_SIZE(vdevice_id); i++) {
		test_cmd_vdevice_alloc(self->viommu_id, self->device_id, 1,
				       &vdevice_id[i]);
		test_ioctl_destroy(self->stdev_id);
		EXPECT_ERRNO(ENOENT,
			     _test_ioctl_destroy(self->fd, vdevice_id[i]));
		/* Also where any kind of object would do */
		EXPECT_ERRNO(ENOENT,
			     invalidate(self->fd, vdevice_id[i], 1));
		test_err_mock_domain_replace(ENOENT, self->other_stdev_id,
					     vdevice_id[i]);
		EXPECT_ERRNO(EINVAL, invalidate(self->fd, self->viommu_id, 1));
		test_cmd_mock_domain(self->ioas_id, &self->stdev_id, NULL,
				     &self->device_id);
	}
	for (i = 0; i != ARRAY_SIZE(id); i++) {
		test_ioctl_ioas_alloc(&id[i]);
		for (j = 0; j != ARRAY_SIZE(vdevice_id); j++)
			ASSERT_NE(vdevice_id[j], id[i]);
	}
	/* The vIOMMU is not in use any more */
	test_ioctl_destroy(self->viommu_id);
}

/* The driver is making the vDEVICE when the device is unplugged */
TEST_F(iommufd_vdevice, L10_unplug_during_init)
{
	struct iommu_vdevice_alloc cmd =
		vdevice_cmd(self->viommu_id, self->device_id, 1);
	struct call alloc =
		CALL(ioctl, self->fd, IOMMU_VDEVICE_ALLOC, .arg = &cmd);
	struct call unplug = CALL(destroy, self->fd, self->stdev_id);

	park_call(VDEVICE_INIT, &alloc);
	/* Neither the device nor the virtual ID can be had twice */
	test_err_vdevice_alloc(EEXIST, self->viommu_id, self->device_id, 2);
	test_err_vdevice_alloc(EEXIST, self->viommu_id, self->other_device_id,
			       1);
	/* and nobody finds what is not made yet */
	EXPECT_ERRNO(EINVAL, invalidate(self->fd, self->viommu_id, 1));
	call_start(&unplug);
	EXPECT_WAITING(&unplug);
	park(VDEVICE_INIT, RELEASE);
	EXPECT_EQ(0, call_end(&alloc));
	EXPECT_EQ(0, call_end(&unplug));
	EXPECT_ERRNO(ENOENT,
		     _test_ioctl_destroy(self->fd, cmd.out_vdevice_id));
	test_ioctl_destroy(self->viommu_id);
}

/* User space is destroying it when the device is unplugged */
TEST_F(iommufd_vdevice, L10_unplug_during_destroy)
{
	struct call destroy = CALL(destroy, self->fd, 0);
	struct call unplug = CALL(destroy, self->fd, self->stdev_id);

	test_cmd_vdevice_alloc(self->viommu_id, self->device_id, 1,
			       &destroy.id);
	park_call(VDEVICE_DESTROY, &destroy);
	call_start(&unplug);
	EXPECT_WAITING(&unplug);
	EXPECT_WAITING(&destroy);
	/* The driver may have got something by that ID, about this device */
	test_err_vdevice_alloc(EEXIST, self->viommu_id, self->other_device_id,
			       1);
	park(VDEVICE_DESTROY, RELEASE);
	EXPECT_EQ(0, call_end(&destroy));
	EXPECT_EQ(0, call_end(&unplug));
	EXPECT_ERRNO(ENOENT, _test_ioctl_destroy(self->fd, destroy.id));
	test_ioctl_destroy(self->viommu_id);
}

/* And the other way round */
TEST_F(iommufd_vdevice, L10_destroy_during_unplug)
{
	struct call unplug = CALL(destroy, self->fd, self->stdev_id);
	uint32_t vdevice_id;

	test_cmd_vdevice_alloc(self->viommu_id, self->device_id, 1,
			       &vdevice_id);
	park_call(VDEVICE_DESTROY, &unplug);
	EXPECT_ERRNO(ENOENT, _test_ioctl_destroy(self->fd, vdevice_id));
	/* It is not over yet, but its virtual ID leads nowhere */
	EXPECT_ERRNO(EBUSY, _test_ioctl_destroy(self->fd, self->viommu_id));
	EXPECT_ERRNO(EINVAL, invalidate(self->fd, self->viommu_id, 1));
	test_err_vdevice_alloc(EEXIST, self->viommu_id, self->other_device_id,
			       1);
	EXPECT_WAITING(&unplug);
	park(VDEVICE_DESTROY, RELEASE);
	EXPECT_EQ(0, call_end(&unplug));
	EXPECT_ERRNO(ENOENT, _test_ioctl_destroy(self->fd, vdevice_id));
	test_cmd_vdevice_alloc(self->viommu_id, self->other_device_id, 1,
			       &vdevice_id);
	test_ioctl_destroy(vdevice_id);
	test_ioctl_destroy(self->viommu_id);
}

/* Unplugged after it was made, before user space has its ID */
static int vdevice_stalled(struct __test_metadata *_metadata,
			   struct _test_data_iommufd_vdevice *self,
			   struct call *alloc, bool writable)
{
	int uffd = uffd_open(buffer, UFFDIO_REGISTER_MODE_WP);

	if (uffd == -1)
		return -1;
	call_start(alloc);
	ASSERT_EQ(0, uffd_wait(uffd));
	test_ioctl_destroy(self->stdev_id);
	/* It does not hold up anything */
	test_ioctl_destroy(self->viommu_id);
	EXPECT_EQ(writable ? 0 : -EFAULT,
		  unstall(_metadata, alloc, uffd, buffer, writable));
	return 0;
}

TEST_F(iommufd_vdevice, L10_unplug_before_the_answer)
{
	struct iommu_vdevice_alloc *cmd = buffer;
	struct call alloc =
		CALL(ioctl, self->fd, IOMMU_VDEVICE_ALLOC, .arg = cmd);
	uint32_t id;
	int i;

	*cmd = vdevice_cmd(self->viommu_id, self->device_id, 1);
	if (vdevice_stalled(_metadata, self, &alloc, true))
		SKIP(return, NEEDS_UFFD);
	EXPECT_ERRNO(ENOENT,
		     _test_ioctl_destroy(self->fd, cmd->out_vdevice_id));
	for (i = 0; i != 10; i++) {
		test_ioctl_ioas_alloc(&id);
		EXPECT_NE(cmd->out_vdevice_id, id);
	}
}

TEST_F(iommufd_vdevice, L12_unplug_and_no_answer)
{
	struct iommu_vdevice_alloc *cmd = buffer;
	struct call alloc =
		CALL(ioctl, self->fd, IOMMU_VDEVICE_ALLOC, .arg = cmd);
	uint32_t id = free_id(self->fd);

	*cmd = vdevice_cmd(self->viommu_id, self->device_id, 1);
	if (vdevice_stalled(_metadata, self, &alloc, false))
		SKIP(return, NEEDS_UFFD);
	/* User space never had the ID, so it is free again */
	EXPECT_ERRNO(ENOENT, _test_ioctl_destroy(self->fd, id));
	EXPECT_GE(id, free_id(self->fd));
}

/* The unplug has the vDEVICE before it is answered for, and takes longer */
static void vdevice_waits(struct __test_metadata *_metadata,
			  struct _test_data_iommufd_vdevice *self,
			  bool writable)
{
	struct iommu_vdevice_alloc *cmd = buffer;
	struct call alloc =
		CALL(ioctl, self->fd, IOMMU_VDEVICE_ALLOC, .arg = cmd);
	struct call unplug = CALL(destroy, self->fd, self->stdev_id);
	int uffd;

	*cmd = vdevice_cmd(self->viommu_id, self->device_id, 1);
	uffd = STALL(&alloc, buffer, WP);
	park_call(VDEVICE_DESTROY, &unplug);
	if (!writable)
		ASSERT_EQ(0, mprotect(buffer, PAGE_SIZE, PROT_READ));
	ASSERT_EQ(0, uffd_unprotect(uffd, buffer));
	EXPECT_WAITING(&alloc);
	park(VDEVICE_DESTROY, RELEASE);
	EXPECT_EQ(writable ? 0 : -EFAULT, call_end(&alloc));
	EXPECT_EQ(0, call_end(&unplug));
	ASSERT_EQ(0, close(uffd));
	test_ioctl_destroy(self->viommu_id);
}

TEST_F(iommufd_vdevice, L10_answer_during_unplug)
{
	vdevice_waits(_metadata, self, true);
}

TEST_F(iommufd_vdevice, L12_no_answer_during_unplug)
{
	vdevice_waits(_metadata, self, false);
}

/* What the driver refuses leaves nothing of the ID and the device in use */
TEST_F(iommufd_vdevice, L12_refused)
{
	uint32_t id = free_id(self->fd);
	uint32_t vdevice_id;

	EXPECT_ERRNO(EIO, _test_cmd_vdevice_alloc(self->fd, self->viommu_id,
						  self->device_id,
						  IOMMU_TEST_VIRT_ID_REFUSED,
						  NULL));
	EXPECT_EQ(id, free_id(self->fd));
	test_cmd_vdevice_alloc(self->viommu_id, self->device_id, 1,
			       &vdevice_id);
	test_ioctl_destroy(vdevice_id);
	test_ioctl_destroy(self->viommu_id);
}

/* Make and destroy vDEVICEs of a device until that is gone */
static int call_vdevice_loop(int fd, uint32_t id, struct call *call)
{
	struct iommu_vdevice_alloc *arg = call->arg;
	struct iommu_vdevice_alloc cmd = *arg;
	unsigned int count = 0;

	while (!ioctl(fd, IOMMU_VDEVICE_ALLOC, &cmd) || errno == EEXIST) {
		if (count++ % 2 &&
		    _test_ioctl_destroy(fd, cmd.out_vdevice_id) &&
		    errno != ENOENT)
			break;
		/* As long as both threads find something to do */
		__atomic_store_n(&call->out_id, count, __ATOMIC_RELEASE);
	}
	return -1;
}

TEST_F_TIMEOUT(iommufd_vdevice, L10_unplug_races_alloc_and_destroy, 120)
{
	struct iommu_vdevice_alloc cmd[2];
	struct call loop[2];
	int i, n;

	for (i = 0; i != 50; i++) {
		for (n = 0; n != 2; n++) {
			cmd[n] = vdevice_cmd(self->viommu_id, self->device_id,
					     n);
			loop[n] =
				CALL(vdevice_loop, self->fd, 0, .arg = &cmd[n]);
			call_start(&loop[n]);
		}
		for (n = 0; n != 2; n++)
			while (!__atomic_load_n(&loop[n].out_id,
						__ATOMIC_ACQUIRE))
				ASSERT_EQ(0, call_is_done(&loop[n]));
		test_ioctl_destroy(self->stdev_id);
		for (n = 0; n != 2; n++)
			EXPECT_EQ(-ENOENT, call_end(&loop[n]));
		test_cmd_mock_domain(self->ioas_id, &self->stdev_id, NULL,
				     &self->device_id);
	}
	test_ioctl_destroy(self->viommu_id);
}

TEST_F(iommufd_vdevice, nested_bad_arguments)
{
	struct {
		struct iommu_hwpt_selftest data;
		uint64_t more;
	} data = { .data = nested_data };
	struct iommu_hwpt_alloc cmd = {
		.size = sizeof(cmd),
		.dev_id = self->device_id,
		.pt_id = self->viommu_id,
		.data_type = IOMMU_HWPT_DATA_SELFTEST,
		.data_len = sizeof(data.data),
		.data_uptr = (uintptr_t)&data,
	};
	uint32_t iommu_id, stdev_id, device_id, id;

	ASSERT_EQ(0, _test_cmd_iommu_register(self->fd, 0, &iommu_id));
	ASSERT_EQ(0, _test_cmd_mock_domain_iommu(self->fd, self->ioas_id,
						 iommu_id, 0, &stdev_id, NULL,
						 &device_id));
	id = free_id(self->fd);
#define test_err_cmd(_errno, field, value)                                   \
	EXPECT_BAD_FIELD(_errno, self->fd, IOMMU_HWPT_ALLOC, cmd, id, field, \
			 value)
	test_err_cmd(EOPNOTSUPP, flags, IOMMU_HWPT_ALLOC_NEST_PARENT);
	test_err_cmd(EOPNOTSUPP, flags, IOMMU_HWPT_ALLOC_DIRTY_TRACKING);
	test_err_cmd(EOPNOTSUPP, flags, 1U << 31);
	/* The ID of the fault queue counts only with the flag */
	test_err_cmd(ENOENT, flags, IOMMU_HWPT_FAULT_ID_VALID);
	test_err_cmd(EOPNOTSUPP, __reserved, 1);
	test_err_cmd(ENOENT, dev_id, 0);
	test_err_cmd(ENOENT, dev_id, self->stdev_id);
	/* It is behind another IOMMU */
	test_err_cmd(EINVAL, dev_id, device_id);
	test_err_cmd(EOPNOTSUPP, data_type, IOMMU_HWPT_DATA_VTD_S1);
	/* The type says that there is data */
	test_err_cmd(EINVAL, data_len, 0);
	test_err_cmd(EINVAL, data_len, 3);
	test_err_cmd(EINVAL, data_len, sizeof(data));
	test_err_cmd(EFAULT, data_uptr, 0);
	cmd.data_type = IOMMU_HWPT_DATA_NONE;
	test_err_cmd(EOPNOTSUPP, data_len, 0);
#undef test_err_cmd
	test_ioctl_destroy(stdev_id);
	ASSERT_EQ(0, _test_cmd_iommu_unregister(self->fd, iommu_id));
	test_ioctl_destroy(self->viommu_id);
}

/* What a VM does with it; the vIOMMU stays as long as it is there */
TEST_F(iommufd_vdevice, nested)
{
	uint32_t hwpt_id, vdevice_id, other_id;
	struct iommu_hwpt_invalidate_selftest inv = {
		.flags = IOMMU_TEST_INVALIDATE_FLAG_ALL,
	};
	uint32_t num = 1;

	ASSERT_EQ(0, alloc_nested(self->fd, self->device_id, self->viommu_id,
				  &hwpt_id));
	EXPECT_ERRNO(EBUSY, _test_ioctl_destroy(self->fd, self->viommu_id));

	/* The device has no ID in the VM so far */
	test_err_mock_domain_replace(ENOENT, self->stdev_id, hwpt_id);
	test_cmd_vdevice_alloc(self->viommu_id, self->device_id, 1,
			       &vdevice_id);
	test_cmd_mock_domain_replace(self->stdev_id, hwpt_id);
	EXPECT_ERRNO(EBUSY, _test_ioctl_destroy(self->fd, hwpt_id));
	test_cmd_hwpt_check_iotlb(hwpt_id, 0, IOMMU_TEST_IOTLB_DEFAULT);
	test_cmd_hwpt_invalidate(hwpt_id, &inv,
				 IOMMU_HWPT_INVALIDATE_DATA_SELFTEST,
				 sizeof(inv), &num);
	EXPECT_EQ(1, num);
	test_cmd_hwpt_check_iotlb(hwpt_id, 0, 0);

	/* Others behind the same IOMMU can be attached, it was for all of them */
	test_err_mock_domain_replace(ENOENT, self->other_stdev_id, hwpt_id);
	test_cmd_vdevice_alloc(self->viommu_id, self->other_device_id, 2,
			       &other_id);
	test_cmd_mock_domain_replace(self->other_stdev_id, hwpt_id);

	/* A vDEVICE can go first, and its device stays where it is */
	test_ioctl_destroy(other_id);
	test_cmd_mock_domain_replace(self->other_stdev_id, self->ioas_id);

	/* and the device that it was allocated with can */
	test_ioctl_destroy(self->stdev_id);
	test_cmd_hwpt_check_iotlb(hwpt_id, 0, 0);
	EXPECT_ERRNO(EBUSY, _test_ioctl_destroy(self->fd, self->viommu_id));
	test_ioctl_destroy(hwpt_id);
	test_ioctl_destroy(self->viommu_id);
	test_ioctl_destroy(self->parent_id);
}

static int64_t now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000LL + now.tv_nsec / 1000000;
}

/* How often the device can be attached in 100 ms, when nothing else is done */
static unsigned int attach_rate(struct __test_metadata *_metadata,
				struct _test_data_iommufd_vdevice *self,
				uint32_t hwpt_id)
{
	unsigned int best = 0, count;
	int64_t end;
	int i;

	for (i = 0; i != 10; i++) {
		end = now_ms() + 100;
		for (count = 0; now_ms() < end; count++) {
			test_cmd_mock_domain_replace(self->stdev_id, hwpt_id);
			test_cmd_mock_domain_replace(self->stdev_id,
						     self->ioas_id);
		}
		if (count > best)
			best = count;
	}
	return best;
}

/*
 * It does not take long to find the virtual ID of a device among many.
 * A walk over them makes it 25 times as long.
 */
TEST_F_TIMEOUT(iommufd_vdevice, nested_beside_many, 120)
{
	uint32_t stdev_id, device_id, vdevice_id, hwpt_id;
	unsigned int alone = 0, among;
	int i;

	ASSERT_EQ(0, alloc_nested(self->fd, self->device_id, self->viommu_id,
				  &hwpt_id));
	for (i = 1; i != 1000; i++) {
		test_cmd_mock_domain(self->ioas_id, &stdev_id, NULL,
				     &device_id);
		test_cmd_vdevice_alloc(self->viommu_id, device_id, i,
				       &vdevice_id);
		if (i == 1) {
			test_cmd_vdevice_alloc(self->viommu_id,
					       self->device_id, 5000,
					       &vdevice_id);
			alone = attach_rate(_metadata, self, hwpt_id);
		}
	}
	among = attach_rate(_metadata, self, hwpt_id);
	ASSERT_NE(0, alone);
	EXPECT_GT(5 * among, alone);
}

/* One that is invalidated by the vIOMMU alone */
TEST_F(iommufd_vdevice, nested_without_invalidation)
{
	struct iommu_hwpt_selftest data = { .iotlb = IOMMU_TEST_IOTLB_NONE };
	struct iommu_hwpt_invalidate_selftest inv = {};
	uint32_t nested_id;
	uint32_t num = 1;

	ASSERT_EQ(0, _test_cmd_hwpt_alloc(self->fd, self->device_id,
					  self->viommu_id, 0, 0, &nested_id,
					  IOMMU_HWPT_DATA_SELFTEST, &data,
					  sizeof(data)));
	EXPECT_ERRNO(EOPNOTSUPP,
		     _test_cmd_hwpt_invalidate(self->fd, nested_id, &inv,
					       IOMMU_HWPT_INVALIDATE_DATA_SELFTEST,
					       sizeof(inv), &num));
	EXPECT_EQ(0, num);
	test_ioctl_destroy(nested_id);
	test_ioctl_destroy(self->viommu_id);
}

/* One in which nothing is known by a virtual ID */
TEST_F(iommufd_vdevice, nested_without_vdevice)
{
	struct iommu_hwpt_selftest data = { .iotlb = IOMMU_TEST_IOTLB_NONE };
	uint32_t nested_id, plain_id;

	ASSERT_EQ(0, alloc_nested(self->fd, self->device_id, self->viommu_id,
				  &nested_id));
	ASSERT_EQ(0, _test_cmd_hwpt_alloc(self->fd, self->device_id,
					  self->viommu_id, 0, 0, &plain_id,
					  IOMMU_HWPT_DATA_SELFTEST, &data,
					  sizeof(data)));
	test_cmd_mock_domain_replace(self->stdev_id, plain_id);
	test_err_mock_domain_replace(ENOENT, self->stdev_id, nested_id);
	EXPECT_ERRNO(EBUSY, _test_ioctl_destroy(self->fd, plain_id));
	test_cmd_mock_domain_replace(self->stdev_id, self->ioas_id);
	test_ioctl_destroy(plain_id);
	test_ioctl_destroy(nested_id);
}

/* A domain of one vIOMMU does not take a device that is on another one */
TEST_F(iommufd_vdevice, nested_on_another_viommu)
{
	uint32_t viommu_id, hwpt_id, vdevice_id;

	alloc_viommu(&viommu_id);
	ASSERT_EQ(0,
		  alloc_nested(self->fd, self->device_id, viommu_id, &hwpt_id));
	test_cmd_vdevice_alloc(self->viommu_id, self->device_id, 1,
			       &vdevice_id);
	test_err_mock_domain_replace(ENOENT, self->stdev_id, hwpt_id);
}

/* One that has lost its vDEVICE stays where it is, but gets nowhere like that */
TEST_F(iommufd_vdevice, nested_after_vdevice)
{
	uint32_t hwpt_id[2], vdevice_id;
	int i;

	for (i = 0; i != 2; i++)
		ASSERT_EQ(0, alloc_nested(self->fd, self->device_id,
					  self->viommu_id, &hwpt_id[i]));
	test_cmd_vdevice_alloc(self->viommu_id, self->device_id, 1,
			       &vdevice_id);
	test_cmd_mock_domain_replace(self->stdev_id, hwpt_id[0]);
	test_ioctl_destroy(vdevice_id);
	test_err_mock_domain_replace(ENOENT, self->stdev_id, hwpt_id[1]);
	test_cmd_mock_domain_replace(self->stdev_id, self->ioas_id);
	test_err_mock_domain_replace(ENOENT, self->stdev_id, hwpt_id[0]);
	test_ioctl_destroy(hwpt_id[0]);
	test_ioctl_destroy(hwpt_id[1]);
	test_ioctl_destroy(self->viommu_id);
}

/* One that comes to a group which is on the vIOMMU, before it has a vDEVICE */
TEST_F(iommufd_vdevice, L9_plug_into_group)
{
	uint32_t iommu_id, stdev_id[2], device_id[2], parent_id, viommu_id;
	uint32_t hwpt_id, vdevice_id;

	ASSERT_EQ(0, _test_cmd_iommu_register(self->fd, MOCK_IOMMU_ONE_GROUP,
					      &iommu_id));
	ASSERT_EQ(0, _test_cmd_mock_domain_iommu(self->fd, self->ioas_id,
						 iommu_id, 0, &stdev_id[0],
						 NULL, &device_id[0]));
	test_cmd_hwpt_alloc(device_id[0], self->ioas_id,
			    IOMMU_HWPT_ALLOC_NEST_PARENT, &parent_id);
	test_cmd_viommu_alloc(device_id[0], parent_id,
			      IOMMU_VIOMMU_TYPE_SELFTEST, NULL, 0, &viommu_id);
	test_cmd_vdevice_alloc(viommu_id, device_id[0], 1, &vdevice_id);
	ASSERT_EQ(0, alloc_nested(self->fd, device_id[0], viommu_id, &hwpt_id));
	test_cmd_mock_domain_replace(stdev_id[0], hwpt_id);

	ASSERT_EQ(0, _test_cmd_mock_domain_iommu(self->fd, self->ioas_id,
						 iommu_id,
						 MOCK_FLAGS_DEVICE_BIND_ONLY,
						 &stdev_id[1], NULL,
						 &device_id[1]));
	test_cmd_vdevice_alloc(viommu_id, device_id[1], 2, &vdevice_id);
	test_ioctl_destroy(stdev_id[1]);
	test_ioctl_destroy(stdev_id[0]);
	ASSERT_EQ(0, _test_cmd_iommu_unregister(self->fd, iommu_id));
}

TEST_F(iommufd_vdevice, nested_with_fault_queue)
{
	uint32_t hwpt_id, vdevice_id, fault_id, fault_fd;

	test_ioctl_fault_alloc(&fault_id, &fault_fd);
	test_cmd_vdevice_alloc(self->viommu_id, self->device_id, 1,
			       &vdevice_id);
	test_cmd_hwpt_alloc_iopf(self->device_id, self->viommu_id, fault_id,
				 IOMMU_HWPT_FAULT_ID_VALID, &hwpt_id,
				 IOMMU_HWPT_DATA_SELFTEST, &nested_data,
				 sizeof(nested_data));
	test_cmd_mock_domain_replace(self->stdev_id, hwpt_id);
	EXPECT_ERRNO(EBUSY, _test_ioctl_destroy(self->fd, fault_id));
	test_cmd_trigger_iopf(self->device_id, fault_fd);
	test_cmd_mock_domain_replace(self->stdev_id, self->ioas_id);
	test_ioctl_destroy(hwpt_id);
	close(fault_fd);
	test_ioctl_destroy(fault_id);
}

/* No answer, no HWPT */
TEST_F(iommufd_vdevice, L12_nested_readonly_argument)
{
	struct iommu_hwpt_alloc *cmd = buffer;
	uint32_t id = free_id(self->fd);

	*cmd = (struct iommu_hwpt_alloc){
		.size = sizeof(*cmd),
		.dev_id = self->device_id,
		.pt_id = self->viommu_id,
		.data_type = IOMMU_HWPT_DATA_SELFTEST,
		.data_len = sizeof(nested_data),
		.data_uptr = (uintptr_t)&nested_data,
	};
	EXPECT_ERRNO(EFAULT, ioctl_readonly(self->fd, IOMMU_HWPT_ALLOC));
	EXPECT_EQ(id, free_id(self->fd));
	test_ioctl_destroy(self->viommu_id);
}

/* Two devices of a VM, with the virtual IDs 1 and 2, and room for requests */
FIXTURE(iommufd_invalidate)
{
	int fd;
	uint32_t iommu_id;
	uint32_t ioas_id;
	uint32_t parent_id;
	uint32_t viommu_id;
	uint32_t stdev_id[2];
	uint32_t device_id[2];
	struct iommu_viommu_invalidate_selftest *inv;
};

/* As many as there can be in a call */
#define INV_MAX 524288
#define INV_SIZE (INV_MAX * sizeof(struct iommu_viommu_invalidate_selftest))
/* How many of them the driver gets at once */
#define INV_PIECE (PAGE_SIZE / sizeof(struct iommu_viommu_invalidate_selftest))

FIXTURE_SETUP(iommufd_invalidate)
{
	unsigned int i;
	uint32_t id;

	self->fd = open("/dev/iommu", O_RDWR);
	ASSERT_NE(-1, self->fd);
	ASSERT_EQ(0, unpark_all(self->fd));
	ASSERT_EQ(0, _test_cmd_iommu_register(self->fd, 0, &self->iommu_id));
	test_ioctl_ioas_alloc(&self->ioas_id);
	for (i = 0; i != 2; i++)
		ASSERT_EQ(0, _test_cmd_mock_domain_iommu(self->fd, self->ioas_id,
							 self->iommu_id, 0,
							 &self->stdev_id[i],
							 NULL,
							 &self->device_id[i]));
	test_cmd_hwpt_alloc(self->device_id[0], self->ioas_id,
			    IOMMU_HWPT_ALLOC_NEST_PARENT, &self->parent_id);
	test_cmd_viommu_alloc(self->device_id[0], self->parent_id,
			      IOMMU_VIOMMU_TYPE_SELFTEST, NULL, 0,
			      &self->viommu_id);
	for (i = 0; i != 2; i++)
		test_cmd_vdevice_alloc(self->viommu_id, self->device_id[i],
				       i + 1, &id);
	self->inv = mmap(NULL, INV_SIZE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, self->inv);
}

FIXTURE_TEARDOWN(iommufd_invalidate)
{
	int fd = open("/dev/iommu", O_RDWR);

	ASSERT_NE(-1, fd);
	EXPECT_EQ(0, unpark_all(fd));
	teardown_iommufd(self->fd, _metadata);
	/* Some tests have done so */
	EXPECT_EQ(0, iommu_end(fd, self->iommu_id));
	EXPECT_EQ(0, close(fd));
}

#define INV_TYPE IOMMU_VIOMMU_INVALIDATE_DATA_SELFTEST
#define INV_LEN sizeof(*self->inv)

/* The number that is done comes back whatever the result is */
#define try_invalidate(reqs, num, done)                                      \
	({                                                                   \
		uint32_t __num = num;                                        \
		int __rc = _test_cmd_hwpt_invalidate(self->fd,               \
						     self->viommu_id, reqs,  \
						     INV_TYPE, INV_LEN,      \
						     &__num);                \
									     \
		EXPECT_EQ(done, __num);                                      \
		__rc;                                                        \
	})

static void fill(struct iommu_viommu_invalidate_selftest *inv, uint32_t num,
		 uint32_t virt_id)
{
	while (num--)
		*inv++ = (struct iommu_viommu_invalidate_selftest){
			.vdev_id = virt_id,
		};
}

TEST_F(iommufd_invalidate, words)
{
	uint32_t i;

	for (i = 0; i != MOCK_DEV_CACHE_NUM; i++) {
		self->inv[0] = (struct iommu_viommu_invalidate_selftest){
			.vdev_id = 1,
			.cache_id = i,
		};
		ASSERT_EQ(0, try_invalidate(self->inv, 1, 1));
		test_cmd_dev_check_cache(self->device_id[0], i, 0);
		if (i + 1 != MOCK_DEV_CACHE_NUM)
			test_cmd_dev_check_cache(self->device_id[0], i + 1,
						 IOMMU_TEST_DEV_CACHE_DEFAULT);
	}
	test_cmd_dev_check_cache_all(self->device_id[1],
				     IOMMU_TEST_DEV_CACHE_DEFAULT);
	self->inv[0].vdev_id = 2;
	self->inv[0].flags = IOMMU_TEST_INVALIDATE_FLAG_ALL;
	ASSERT_EQ(0, try_invalidate(self->inv, 1, 1));
	test_cmd_dev_check_cache_all(self->device_id[1], 0);
	EXPECT_ERRNO(EINVAL, _test_cmd_dev_check_cache(self->fd,
						       self->device_id[0],
						       MOCK_DEV_CACHE_NUM, 0));
}

TEST_F(iommufd_invalidate, bad_arguments)
{
	struct iommu_hwpt_invalidate cmd = {
		.size = sizeof(cmd),
		.hwpt_id = self->viommu_id,
		.data_uptr = (uintptr_t)self->inv,
		.data_type = INV_TYPE,
		.entry_len = INV_LEN,
		.entry_num = 1,
	};
	uint32_t hwpt_id;

	self->inv[0].vdev_id = 1;
#define test_err_cmd(_errno, field, value)                                  \
	({                                                                  \
		struct iommu_hwpt_invalidate bad = cmd;                     \
									    \
		bad.field = value;                                          \
		EXPECT_ERRNO(_errno,                                        \
			     ioctl(self->fd, IOMMU_HWPT_INVALIDATE, &bad)); \
		EXPECT_EQ(0, bad.entry_num);                                \
	})
	test_err_cmd(EOPNOTSUPP, __reserved, 1);
	test_err_cmd(ENOENT, hwpt_id, 0);
	test_err_cmd(ENOENT, hwpt_id, UINT32_MAX);
	/* Objects of other kinds */
	test_err_cmd(EINVAL, hwpt_id, self->ioas_id);
	test_err_cmd(EINVAL, hwpt_id, self->parent_id);
	test_err_cmd(EINVAL, hwpt_id, self->device_id[0]);
	test_err_cmd(EINVAL, data_uptr, 0);
	test_err_cmd(EFAULT, data_uptr, 1);
	test_err_cmd(EINVAL, data_type, IOMMU_HWPT_INVALIDATE_DATA_VTD_S1);
	test_err_cmd(EINVAL, data_type,
		     IOMMU_VIOMMU_INVALIDATE_DATA_SELFTEST_INVALID);
	/* One that is too short is wrong because of that */
	test_err_cmd(EINVAL, entry_len, 0);
	test_err_cmd(EINVAL, entry_len, 1);
	test_err_cmd(EINVAL, entry_len, INV_LEN - 1);
	test_err_cmd(EINVAL, entry_len, INV_LEN + 1);
	test_err_cmd(EINVAL, entry_len, PAGE_SIZE);
	test_err_cmd(EINVAL, entry_len, PAGE_SIZE + 1);
	test_err_cmd(EINVAL, entry_num, INV_MAX + 1);
	test_err_cmd(EINVAL, entry_num, UINT32_MAX);
	/* What is wrong with the object or the type comes before the memory */
	cmd.data_uptr = 1;
	test_err_cmd(ENOENT, hwpt_id, 0);
	test_err_cmd(EINVAL, hwpt_id, self->ioas_id);
	test_err_cmd(EINVAL, data_type, INV_TYPE + 1);
	cmd.data_uptr = (uintptr_t)self->inv;
	test_cmd_dev_check_cache_all(self->device_id[0],
				     IOMMU_TEST_DEV_CACHE_DEFAULT);

	/* With no entries it is a question, and only the type matters */
	cmd.entry_num = 0;
	cmd.data_uptr = 0;
	cmd.entry_len = 0;
	ASSERT_EQ(0, ioctl(self->fd, IOMMU_HWPT_INVALIDATE, &cmd));
	test_err_cmd(EINVAL, data_type, INV_TYPE + 1);
	test_err_cmd(ENOENT, hwpt_id, 0);
	test_err_cmd(EINVAL, hwpt_id, self->ioas_id);

	/* A nested HWPT of the vIOMMU has a type of its own */
	ASSERT_EQ(0, alloc_nested(self->fd, self->device_id[0], self->viommu_id,
				  &hwpt_id));
	test_err_cmd(EINVAL, data_type,
		     IOMMU_HWPT_INVALIDATE_DATA_SELFTEST_INVALID);
#undef test_err_cmd
}

/* What an entry can have wrong; those before it are done, those after it are not */
TEST_F(iommufd_invalidate, partial)
{
	static const struct {
		struct iommu_viommu_invalidate_selftest inv;
		int err;
	} bad[] = {
		{ { .vdev_id = 1, .flags = 2 }, EOPNOTSUPP },
		{ { .vdev_id = 1, .flags = 1U << 31 }, EOPNOTSUPP },
		{ { .vdev_id = 1, .cache_id = MOCK_DEV_CACHE_NUM }, EINVAL },
		{ { .vdev_id = 1, .cache_id = UINT32_MAX }, EINVAL },
		{ { .vdev_id = 0 }, EINVAL },
		{ { .vdev_id = 3 }, EINVAL },
	};
	const uint32_t at[] = { 0, 1, 100, INV_PIECE - 1, INV_PIECE,
				INV_PIECE + 1, 3 * INV_PIECE + 7 };
	const uint32_t num = 4 * INV_PIECE;
	unsigned int i, j;

	for (i = 0; i != ARRAY_SIZE(bad); i++) {
		for (j = 0; j != ARRAY_SIZE(at); j++) {
			fill(self->inv, num, 1);
			self->inv[at[j]] = bad[i].inv;
			self->inv[at[j] + 1].vdev_id = 2;
			EXPECT_ERRNO(bad[i].err,
				     try_invalidate(self->inv, num, at[j]));
		}
	}
	test_cmd_dev_check_cache(self->device_id[0], 0, 0);
	test_cmd_dev_check_cache_all(self->device_id[1],
				     IOMMU_TEST_DEV_CACHE_DEFAULT);
}

/* Memory that ends in the middle: whole entries before that are done */
TEST_F(iommufd_invalidate, EFAULT_in_the_middle)
{
	uint8_t *hole = (uint8_t *)self->inv + 4 * PAGE_SIZE;
	const uint32_t nums[] = { 1, 2, 10, INV_PIECE - 1, INV_PIECE,
				  INV_PIECE + 1, 2 * INV_PIECE + 5 };
	struct iommu_viommu_invalidate_selftest *inv;
	unsigned int i, missing;

	ASSERT_EQ(0, munmap(hole, PAGE_SIZE));
	for (i = 0; i != ARRAY_SIZE(nums); i++) {
		for (missing = 1; missing <= INV_LEN; missing += 11) {
			/* The last entry misses some bytes */
			inv = (void *)(hole - nums[i] * INV_LEN + missing);
			fill(inv, nums[i] - 1, 1);
			memset((uint8_t *)inv + (nums[i] - 1) * INV_LEN, 0,
			       INV_LEN - missing);
			EXPECT_ERRNO(EFAULT, try_invalidate(inv, nums[i],
							    nums[i] - 1));
			/* and there are more that would be missing as well */
			EXPECT_ERRNO(EFAULT, try_invalidate(inv, INV_MAX,
							    nums[i] - 1));
		}
	}
}

/* As many as are allowed are not too many */
TEST_F_TIMEOUT(iommufd_invalidate, maximum, 300)
{
	fill(self->inv, INV_MAX, 1);
	self->inv[INV_MAX - 1].vdev_id = 2;
	ASSERT_EQ(0, try_invalidate(self->inv, INV_MAX, INV_MAX));
	test_cmd_dev_check_cache(self->device_id[0], 0, 0);
	test_cmd_dev_check_cache(self->device_id[1], 0, 0);

	self->inv[INV_MAX - 1].vdev_id = 3;
	EXPECT_ERRNO(EINVAL, try_invalidate(self->inv, INV_MAX, INV_MAX - 1));
}

/* The work is done, but it cannot be told how much */
TEST_F(iommufd_invalidate, readonly_argument)
{
	struct iommu_hwpt_invalidate *cmd = buffer;
	/* On the kernel's stack, and not */
	const unsigned int nums[] = { 1, 300 };
	unsigned int i;

	for (i = 0; i != ARRAY_SIZE(nums); i++) {
		fill(self->inv, nums[i], 1);
		self->inv[nums[i] - 1].vdev_id = i + 1;
		*cmd = (struct iommu_hwpt_invalidate){
			.size = sizeof(*cmd),
			.hwpt_id = self->viommu_id,
			.data_uptr = (uintptr_t)self->inv,
			.data_type = INV_TYPE,
			.entry_len = INV_LEN,
			.entry_num = nums[i],
		};
		EXPECT_ERRNO(EFAULT,
			     ioctl_readonly(self->fd, IOMMU_HWPT_INVALIDATE));
		test_cmd_dev_check_cache(self->device_id[i], 0, 0);
	}
}

static int call_invalidate(int fd, uint32_t id, struct call *call)
{
	return _test_cmd_hwpt_invalidate(fd, id, call->arg, INV_TYPE,
					 sizeof(struct iommu_viommu_invalidate_selftest),
					 &call->out_id);
}

/* A signal ends one that is long, and the rest can be done then */
TEST_F(iommufd_invalidate, signal)
{
	struct sigaction action = { .sa_handler = no_action };
	struct call call = CALL(invalidate, self->fd, self->viommu_id,
				.arg = self->inv, .out_id = INV_MAX);

	ASSERT_EQ(0, sigaction(SIGUSR1, &action, NULL));
	fill(self->inv, INV_MAX, 1);
	self->inv[INV_MAX - 1].vdev_id = 2;
	park_call(INVALIDATE, &call);
	ASSERT_EQ(0, pthread_kill(call.thread, SIGUSR1));
	park(INVALIDATE, RELEASE);
	EXPECT_EQ(-EINTR, call_end(&call));
	EXPECT_EQ(0, call.out_id % INV_PIECE);
	EXPECT_LE(65536, call.out_id * INV_LEN);
	EXPECT_GT(65536 + PAGE_SIZE, call.out_id * INV_LEN);
	ASSERT_EQ(0, try_invalidate(self->inv + call.out_id,
				    INV_MAX - call.out_id,
				    INV_MAX - call.out_id));
	test_cmd_dev_check_cache(self->device_id[1], 0, 0);

	/* but not what a VMM has at a time, which may not expect it */
	call.out_id = 65536 / INV_LEN;
	park_call(INVALIDATE, &call);
	ASSERT_EQ(0, pthread_kill(call.thread, SIGUSR1));
	park(INVALIDATE, RELEASE);
	EXPECT_EQ(0, call_end(&call));
	EXPECT_EQ(65536 / INV_LEN, call.out_id);
}

/* A process that is killed does not go on */
TEST_F(iommufd_invalidate, kill)
{
	int status;
	pid_t pid;

	fill(self->inv, 2 * INV_PIECE, 1);
	self->inv[INV_PIECE].vdev_id = 2;
	park(INVALIDATE, ARM);
	pid = fork();
	ASSERT_NE(-1, pid);
	if (!pid) {
		try_invalidate(self->inv, 2 * INV_PIECE, 0);
		_exit(0);
	}
	park(INVALIDATE, WAIT);
	ASSERT_EQ(0, kill(pid, SIGKILL));
	park(INVALIDATE, RELEASE);
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_TRUE(WIFSIGNALED(status));
	test_cmd_dev_check_cache(self->device_id[0], 0, 0);
	test_cmd_dev_check_cache(self->device_id[1], 0,
				 IOMMU_TEST_DEV_CACHE_DEFAULT);
}

/* Between two pieces, user space lets it wait for the second one */
TEST_F(iommufd_invalidate, L4_unregister_between_pieces)
{
	struct call call = CALL(invalidate, self->fd, self->viommu_id,
				.arg = self->inv, .out_id = 2 * INV_PIECE);
	uint8_t *page = (uint8_t *)self->inv + PAGE_SIZE;
	int uffd;

	/* Its first bytes are a part of the second piece */
	call.arg = page - INV_PIECE * INV_LEN;
	fill(call.arg, INV_PIECE, 1);
	uffd = STALL(&call, page, MISSING);
	test_cmd_dev_check_cache(self->device_id[0], 0, 0);
	/* It is in use, and goes away all the same */
	EXPECT_ERRNO(EBUSY, _test_ioctl_destroy(self->fd, self->viommu_id));
	ASSERT_EQ(0, _test_cmd_iommu_unregister(self->fd, self->iommu_id));
	EXPECT_EQ(0, call_is_done(&call));
	ASSERT_EQ(0, uffd_zero(uffd, page));
	EXPECT_EQ(-ENODEV, call_end(&call));
	EXPECT_EQ(INV_PIECE, call.out_id);
	ASSERT_EQ(0, close(uffd));
}

TEST_F(iommufd_invalidate, L4_unregister_before_the_first_piece)
{
	struct call call = CALL(invalidate, self->fd, self->viommu_id,
				.arg = self->inv, .out_id = 1);
	int uffd = STALL(&call, self->inv, MISSING);

	ASSERT_EQ(0, _test_cmd_iommu_unregister(self->fd, self->iommu_id));
	ASSERT_EQ(0, uffd_zero(uffd, self->inv));
	EXPECT_EQ(-ENODEV, call_end(&call));
	EXPECT_EQ(0, call.out_id);
	ASSERT_EQ(0, close(uffd));
}

/* The same for a nested HWPT, which has its own way to the driver */
static int call_invalidate_hwpt(int fd, uint32_t id, struct call *call)
{
	return _test_cmd_hwpt_invalidate(fd, id, call->arg,
					 IOMMU_HWPT_INVALIDATE_DATA_SELFTEST,
					 sizeof(struct iommu_hwpt_invalidate_selftest),
					 &call->out_id);
}

TEST_F(iommufd_invalidate, L4_nested_between_pieces)
{
	const uint32_t num = PAGE_SIZE /
			     sizeof(struct iommu_hwpt_invalidate_selftest);
	struct call call = CALL(invalidate_hwpt, self->fd, 0, .arg = self->inv,
				.out_id = 2 * num);
	uint8_t *page = (uint8_t *)self->inv + PAGE_SIZE;
	int uffd;

	ASSERT_EQ(0, alloc_nested(self->fd, self->device_id[0], self->viommu_id,
				  &call.id));
	memset(self->inv, 0, PAGE_SIZE);
	uffd = STALL(&call, page, MISSING);
	test_cmd_hwpt_check_iotlb(call.id, 0, 0);
	EXPECT_ERRNO(EBUSY, _test_ioctl_destroy(self->fd, call.id));
	ASSERT_EQ(0, _test_cmd_iommu_unregister(self->fd, self->iommu_id));
	ASSERT_EQ(0, uffd_zero(uffd, page));
	EXPECT_EQ(-ENODEV, call_end(&call));
	EXPECT_EQ(num, call.out_id);
	ASSERT_EQ(0, close(uffd));
}

/* Two VMs on one IOMMU, with equal virtual IDs */
TEST_F(iommufd_invalidate, two_files)
{
	struct iommu_viommu_invalidate_selftest inv = {
		.vdev_id = 1,
		.flags = IOMMU_TEST_INVALIDATE_FLAG_ALL,
	};
	uint32_t viommu_id, vdevice_id, num = 1;
	struct vm vm;

	ASSERT_EQ(0, vm_open(&vm, self->iommu_id));
	ASSERT_EQ(0, vm_viommu(&vm, &viommu_id));
	/* Its vIOMMU has no device of this VM's, whatever the numbers are */
	EXPECT_ERRNO(EINVAL, invalidate(vm.fd, viommu_id, 1));
	ASSERT_EQ(0, _test_cmd_vdevice_alloc(vm.fd, viommu_id, vm.device_id, 1,
					     &vdevice_id));
	ASSERT_EQ(0, invalidate(vm.fd, viommu_id, 1));
	EXPECT_EQ(0, _test_cmd_dev_check_cache(vm.fd, vm.device_id, 0, 0));
	test_cmd_dev_check_cache_all(self->device_id[0],
				     IOMMU_TEST_DEV_CACHE_DEFAULT);
	ASSERT_EQ(0, close(vm.fd));
	test_cmd_hwpt_invalidate(self->viommu_id, &inv, INV_TYPE, sizeof(inv),
				 &num);
	test_cmd_dev_check_cache_all(self->device_id[0], 0);
}

TEST_HARNESS_MAIN
