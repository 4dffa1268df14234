// SPDX-License-Identifier: GPL-2.0-only
/*
 * A physical IOMMU comes and goes while devices are plugged in and unplugged: in
 * whatever order, each device is released once, none is left behind an IOMMU that
 * is not there any more, and nothing touches what is gone.
 *
 * The order of events is forced by parking calls in the mock driver. What the
 * kernel itself sees (a use after the free, a callback that runs twice, a count
 * that is wrong) it tells with a WARN or a report of KASAN.
 */
#define _GNU_SOURCE

#define __EXPORTED_HEADERS__
#include "iommufd_race.h"

static __attribute__((constructor)) void setup_sizes(void)
{
	PAGE_SIZE = sysconf(_SC_PAGE_SIZE);
}

/* Plugged in, but not bound to anything */
static int plug_only(int fd, uint32_t iommu_id, uint32_t *stdev_id)
{
	return _test_cmd_mock_domain_iommu(fd, 0, iommu_id,
					   MOCK_FLAGS_DEVICE_PLUG_ONLY,
					   stdev_id, NULL, NULL);
}

static int call_plug_only(int fd, uint32_t id, struct call *call)
{
	return plug_only(fd, id, &call->out_id);
}

FIXTURE(iommufd_lifetime)
{
	/* For test commands and devices that are only plugged in */
	int fd;
	uint32_t iommu_id;
	struct call unreg;
};

FIXTURE_SETUP(iommufd_lifetime)
{
	self->fd = open("/dev/iommu", O_RDWR);
	ASSERT_NE(-1, self->fd);
	ASSERT_EQ(0, unpark_all(self->fd));
	ASSERT_EQ(0, _test_cmd_iommu_register(self->fd, 0, &self->iommu_id));
	self->unreg = (struct call){
		.fn = call_unregister,
		.fd = self->fd,
		.id = self->iommu_id,
	};
}

FIXTURE_TEARDOWN(iommufd_lifetime)
{
	EXPECT_EQ(0, unpark_all(self->fd));
	EXPECT_EQ(0, iommu_end(self->fd, self->iommu_id));
	EXPECT_EQ(0, close(self->fd));
}

TEST_F(iommufd_lifetime, removal_during_unregister)
{
	struct call unplug = { .fn = call_destroy, .fd = self->fd };

	ASSERT_EQ(0, plug_only(self->fd, self->iommu_id, &unplug.id));
	park(RELEASE_DEVICE, ARM);
	call_start(&self->unreg);
	park(RELEASE_DEVICE, WAIT);
	call_start(&unplug);
	EXPECT_WAITING(&unplug);
	EXPECT_WAITING(&self->unreg);
	park(RELEASE_DEVICE, RELEASE);
	EXPECT_EQ(0, call_end(&unplug));
	EXPECT_EQ(0, call_end(&self->unreg));
}

TEST_F(iommufd_lifetime, unregister_during_removal)
{
	struct call unplug = { .fn = call_destroy, .fd = self->fd };

	ASSERT_EQ(0, plug_only(self->fd, self->iommu_id, &unplug.id));
	park(RELEASE_DEVICE, ARM);
	call_start(&unplug);
	park(RELEASE_DEVICE, WAIT);
	call_start(&self->unreg);
	EXPECT_WAITING(&self->unreg);
	park(RELEASE_DEVICE, RELEASE);
	EXPECT_EQ(0, call_end(&unplug));
	EXPECT_EQ(0, call_end(&self->unreg));
}

/* Which of the two unregister finds first does not matter */
TEST_F(iommufd_lifetime, removal_of_group_during_unregister)
{
	struct call unplug[2] = {};
	uint32_t iommu_id;
	int i;

	ASSERT_EQ(0, _test_cmd_iommu_register(self->fd, MOCK_IOMMU_ONE_GROUP,
					      &iommu_id));
	for (i = 0; i != 2; i++) {
		unplug[i].fn = call_destroy;
		unplug[i].fd = self->fd;
		ASSERT_EQ(0, plug_only(self->fd, iommu_id, &unplug[i].id));
	}
	park(RELEASE_DEVICE, ARM);
	self->unreg.id = iommu_id;
	call_start(&self->unreg);
	park(RELEASE_DEVICE, WAIT);
	call_start(&unplug[0]);
	call_start(&unplug[1]);
	EXPECT_WAITING(&unplug[0]);
	EXPECT_WAITING(&unplug[1]);
	park(RELEASE_DEVICE, RELEASE);
	EXPECT_EQ(0, call_end(&unplug[0]));
	EXPECT_EQ(0, call_end(&unplug[1]));
	EXPECT_EQ(0, call_end(&self->unreg));
}

/* As several drivers do */
TEST_F(iommufd_lifetime, sysfs_files_go_first)
{
	uint32_t iommu_id, stdev_id;

	ASSERT_EQ(0, _test_cmd_iommu_register(self->fd, MOCK_IOMMU_SYSFS_FIRST,
					      &iommu_id));
	ASSERT_EQ(0, plug_only(self->fd, iommu_id, &stdev_id));
	ASSERT_EQ(0, _test_cmd_iommu_unregister(self->fd, iommu_id));
	ASSERT_EQ(0, _test_ioctl_destroy(self->fd, stdev_id));
}

TEST_F(iommufd_lifetime, unregister_during_probe)
{
	struct call plug = {
		.fn = call_plug_only,
		.fd = self->fd,
		.id = self->iommu_id,
	};

	park(PROBE, ARM);
	call_start(&plug);
	park(PROBE, WAIT);
	call_start(&self->unreg);
	EXPECT_WAITING(&self->unreg);
	park(PROBE, RELEASE);
	EXPECT_EQ(0, call_end(&plug));
	EXPECT_EQ(0, call_end(&self->unreg));
	ASSERT_EQ(0, _test_ioctl_destroy(self->fd, plug.out_id));
}

/* An ID is one instance's for good */
TEST_F(iommufd_lifetime, id_of_one_that_left)
{
	uint32_t iommu_id, stdev_id;

	ASSERT_EQ(0, _test_cmd_iommu_unregister(self->fd, self->iommu_id));
	EXPECT_ERRNO(ENOENT,
		     _test_cmd_iommu_unregister(self->fd, self->iommu_id));
	ASSERT_EQ(0, _test_cmd_iommu_register(self->fd, 0, &iommu_id));
	EXPECT_NE(self->iommu_id, iommu_id);
	EXPECT_ERRNO(ENODEV, plug_only(self->fd, self->iommu_id, &stdev_id));
	ASSERT_EQ(0, _test_cmd_iommu_unregister(self->fd, iommu_id));
}

/* Only those behind the instance leave it */
TEST_F(iommufd_lifetime, other_instance_stays)
{
	struct vm vm = {}, other = {};
	uint32_t iommu_id;

	ASSERT_EQ(0, _test_cmd_iommu_register(self->fd, 0, &iommu_id));
	ASSERT_EQ(0, vm_open(&vm, self->iommu_id));
	ASSERT_EQ(0, vm_open(&other, iommu_id));
	ASSERT_EQ(0, close(other.fd));
	ASSERT_EQ(0, _test_cmd_iommu_unregister(self->fd, iommu_id));
	ASSERT_EQ(0, _test_cmd_get_hw_info(vm.fd, vm.device_id,
					   IOMMU_HW_INFO_TYPE_DEFAULT, NULL, 0,
					   NULL, NULL));
	ASSERT_EQ(0, vm_unplug(&vm));
	ASSERT_EQ(0, vm_plug(&vm, self->iommu_id));
	ASSERT_EQ(0, close(vm.fd));
}

/* A domain is its instance's */
TEST_F(iommufd_lifetime, domain_of_another_instance)
{
	uint32_t iommu_id, hwpt_id, stdev_id;
	struct vm vm = {};

	ASSERT_EQ(0, _test_cmd_iommu_register(self->fd, 0, &iommu_id));
	ASSERT_EQ(0, vm_open(&vm, self->iommu_id));
	ASSERT_EQ(0, _test_cmd_hwpt_alloc(vm.fd, vm.device_id, vm.ioas_id, 0,
					  IOMMU_HWPT_ALLOC_NEST_PARENT,
					  &hwpt_id, IOMMU_HWPT_DATA_NONE, NULL,
					  0));
	EXPECT_ERRNO(EINVAL,
		     _test_cmd_mock_domain_iommu(vm.fd, hwpt_id, iommu_id, 0,
						 &stdev_id, NULL, NULL));
	ASSERT_EQ(0, close(vm.fd));
	ASSERT_EQ(0, _test_cmd_iommu_unregister(self->fd, iommu_id));
}

/* Without parking anything: whoever gets there first */
TEST_F_TIMEOUT(iommufd_lifetime, plug_and_unplug_race_unregister, 120)
{
	struct call plug[2] = {}, unplug[2] = {};
	unsigned int i, j;
	uint32_t iommu_id;

	for (i = 0; i != 50; i++) {
		ASSERT_EQ(0,
			  _test_cmd_iommu_register(self->fd,
						   i & 1 ? MOCK_IOMMU_ONE_GROUP :
							   0,
						   &iommu_id));
		self->unreg.id = iommu_id;
		for (j = 0; j != 2; j++) {
			unplug[j].fn = call_destroy;
			unplug[j].fd = self->fd;
			ASSERT_EQ(0, plug_only(self->fd, iommu_id,
					       &unplug[j].id));
			plug[j].fn = call_plug_only;
			plug[j].fd = self->fd;
			plug[j].id = iommu_id;
		}
		for (j = 0; j != 2; j++)
			call_start(&plug[j]);
		call_start(&self->unreg);
		for (j = 0; j != 2; j++)
			call_start(&unplug[j]);
		for (j = 0; j != 2; j++) {
			int err = call_end(&plug[j]);

			ASSERT_TRUE(!err || err == -ENODEV);
			ASSERT_EQ(0, call_end(&unplug[j]));
		}
		ASSERT_EQ(0, call_end(&self->unreg));
		for (j = 0; j != 2; j++)
			if (!plug[j].err)
				ASSERT_EQ(0, _test_ioctl_destroy(self->fd,
								 plug[j].out_id));
	}
}

/* A driver stays as long as a device of its is there, and goes after that */
TEST_F(iommufd_lifetime, module_of_a_device)
{
	uint32_t device_id;
	int dev_fd, fd;

	if (module_load())
		SKIP(return, "needs the module " TEST_DRIVER);
	fd = open("/dev/iommu", O_RDWR);
	ASSERT_NE(-1, fd);
	dev_fd = module_bind(fd, &device_id);
	ASSERT_NE(-1, dev_fd);
	EXPECT_ERRNO(EWOULDBLOCK, module_unload());
	ASSERT_EQ(0, close(dev_fd));
	ASSERT_EQ(0, module_unload());
	ASSERT_EQ(0, close(fd));
}

TEST_HARNESS_MAIN
