// SPDX-License-Identifier: GPL-2.0-only
/*
 * A physical IOMMU goes away under devices that are plugged in, unplugged, bound
 * and attached, and under HWPTs: in whatever order, each device is released once,
 * nothing touches what is gone, and who still has an ID gets ENODEV for it.
 *
 * The order of events is forced by parking calls in the mock driver. What the
 * kernel itself sees (a use after the free, a callback that runs twice, a count
 * that is wrong) it tells with a WARN or a report of KASAN.
 *
 * The number that a test's name begins with is that of a rule in "What always
 * holds", in Documentation/userspace-api/iommufd.rst.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <glob.h>
#include <sys/mman.h>
#include <linux/vfio.h>

#define __EXPORTED_HEADERS__
#include "iommufd_race.h"

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

static int call_vm_plug(int fd, uint32_t id, struct call *call)
{
	return vm_plug(call->vm, id);
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
	self->unreg = CALL(unregister, self->fd, self->iommu_id);
}

FIXTURE_TEARDOWN(iommufd_lifetime)
{
	EXPECT_EQ(0, unpark_all(self->fd));
	EXPECT_EQ(0, iommu_end(self->fd, self->iommu_id));
	EXPECT_EQ(0, close(self->fd));
}

#define unregister() \
	ASSERT_EQ(0, _test_cmd_iommu_unregister(self->fd, self->iommu_id))

/* Devices that come and go while their IOMMU goes */

TEST_F(iommufd_lifetime, removal_during_unregister)
{
	struct call unplug = CALL(destroy, self->fd, 0);

	ASSERT_EQ(0, plug_only(self->fd, self->iommu_id, &unplug.id));
	park_call(RELEASE_DEVICE, &self->unreg);
	call_start(&unplug);
	EXPECT_WAITING(&unplug);
	EXPECT_WAITING(&self->unreg);
	park(RELEASE_DEVICE, RELEASE);
	EXPECT_EQ(0, call_end(&unplug));
	EXPECT_EQ(0, call_end(&self->unreg));
}

TEST_F(iommufd_lifetime, unregister_during_removal)
{
	struct call unplug = CALL(destroy, self->fd, 0);

	ASSERT_EQ(0, plug_only(self->fd, self->iommu_id, &unplug.id));
	park_call(RELEASE_DEVICE, &unplug);
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

TEST_F(iommufd_lifetime, sysfs_files_stay_during_probe)
{
	struct call plug = CALL(plug_only, self->fd, 0);
	char path[64];

	ASSERT_EQ(0, _test_cmd_iommu_register(self->fd, MOCK_IOMMU_SYSFS_FIRST,
					      &plug.id));
	self->unreg.id = plug.id;
	snprintf(path, sizeof(path), "/sys/class/iommu/iommufd_mock_iommu%u",
		 plug.id);
	park_call(PROBE, &plug);
	call_start(&self->unreg);
	EXPECT_WAITING(&self->unreg);
	EXPECT_EQ(0, access(path, F_OK));
	park(PROBE, RELEASE);
	EXPECT_EQ(0, call_end(&plug));
	EXPECT_EQ(0, call_end(&self->unreg));
	EXPECT_ERRNO(ENOENT, access(path, F_OK));
	ASSERT_EQ(0, _test_ioctl_destroy(self->fd, plug.out_id));
}

TEST_F(iommufd_lifetime, unregister_during_probe)
{
	struct call plug = CALL(plug_only, self->fd, self->iommu_id);

	park_call(PROBE, &plug);
	call_start(&self->unreg);
	EXPECT_WAITING(&self->unreg);
	park(PROBE, RELEASE);
	EXPECT_EQ(0, call_end(&plug));
	EXPECT_EQ(0, call_end(&self->unreg));
	ASSERT_EQ(0, _test_ioctl_destroy(self->fd, plug.out_id));
}

TEST_F(iommufd_lifetime, probe_during_unregister)
{
	struct vm vm = {};
	struct call plug = CALL(vm_plug, -1, self->iommu_id, .vm = &vm);
	uint32_t stdev_id;

	vm.fd = self->fd;
	ASSERT_EQ(0, _test_ioctl_ioas_alloc(vm.fd, &vm.ioas_id));
	ASSERT_EQ(0, plug_only(self->fd, self->iommu_id, &stdev_id));
	park_call(RELEASE_DEVICE, &self->unreg);
	call_start(&plug);
	EXPECT_WAITING(&plug);
	park(RELEASE_DEVICE, RELEASE);
	EXPECT_EQ(0, call_end(&self->unreg));
	/* It is there, but not behind an IOMMU */
	EXPECT_EQ(-ENODEV, call_end(&plug));
	ASSERT_EQ(0, _test_ioctl_destroy(self->fd, stdev_id));
}

/* Devices that are bound to an iommufd */

FIXTURE(iommufd_lifetime_bound)
{
	int fd;
	uint32_t iommu_id;
	struct vm vm;
	/* What the device is attached to */
	uint32_t hwpt_id;
	uint32_t fault_id;
	uint32_t fault_fd;
	/* In the same group */
	struct vm other;
	struct call unreg;
	struct call unplug;
};

FIXTURE_VARIANT(iommufd_lifetime_bound)
{
	bool hwpt;
	bool nested;
	bool fault;
	bool group;
	/* The other one of the group is bound, but not attached */
	bool bind_only;
};

FIXTURE_VARIANT_ADD(iommufd_lifetime_bound, ioas)
{
};

FIXTURE_VARIANT_ADD(iommufd_lifetime_bound, hwpt)
{
	.hwpt = true,
};

FIXTURE_VARIANT_ADD(iommufd_lifetime_bound, nested)
{
	.nested = true,
};

FIXTURE_VARIANT_ADD(iommufd_lifetime_bound, fault)
{
	.nested = true,
	.fault = true,
};

FIXTURE_VARIANT_ADD(iommufd_lifetime_bound, group)
{
	.group = true,
};

FIXTURE_VARIANT_ADD(iommufd_lifetime_bound, group_bound)
{
	.group = true,
	.bind_only = true,
};

FIXTURE_SETUP(iommufd_lifetime_bound)
{
	uint32_t flags;

	self->fd = open("/dev/iommu", O_RDWR);
	ASSERT_NE(-1, self->fd);
	ASSERT_EQ(0, unpark_all(self->fd));
	ASSERT_EQ(0, _test_cmd_iommu_register(self->fd,
					      variant->group ?
						      MOCK_IOMMU_ONE_GROUP : 0,
					      &self->iommu_id));
	ASSERT_EQ(0, vm_open(&self->vm, self->iommu_id));
	self->unreg = CALL(unregister, self->fd, self->iommu_id);
	self->unplug = CALL(destroy, self->vm.fd, self->vm.stdev_id);

	if (variant->hwpt)
		self->hwpt_id = self->vm.parent_id;
	if (variant->fault)
		ASSERT_EQ(0,
			  _test_ioctl_fault_alloc(self->vm.fd, &self->fault_id,
						  &self->fault_fd));
	if (variant->nested && variant->fault)
		ASSERT_EQ(0, vm_nested_fault(&self->vm, self->vm.parent_id,
					     self->fault_id, &self->hwpt_id));
	if (variant->nested && !variant->fault)
		ASSERT_EQ(0, vm_nested(&self->vm, self->vm.parent_id,
				       &self->hwpt_id));
	if (self->hwpt_id)
		ASSERT_EQ(0, vm_attach(&self->vm, self->hwpt_id));
	if (variant->group) {
		self->other = self->vm;
		flags = variant->bind_only ? MOCK_FLAGS_DEVICE_BIND_ONLY : 0;
		ASSERT_EQ(0, _test_cmd_mock_domain_iommu(self->vm.fd,
							 self->vm.ioas_id,
							 self->iommu_id, flags,
							 &self->other.stdev_id,
							 NULL,
							 &self->other.device_id));
	}
}

FIXTURE_TEARDOWN(iommufd_lifetime_bound)
{
	EXPECT_EQ(0, unpark_all(self->fd));
	EXPECT_EQ(0, iommu_end(self->fd, self->iommu_id));
	if (self->fault_fd)
		EXPECT_EQ(0, close(self->fault_fd));
	if (self->vm.fd != -1)
		EXPECT_EQ(0, close(self->vm.fd));
	EXPECT_EQ(0, close(self->fd));
}

/* ENODEV for everything but what ends it, and that works */
TEST_F(iommufd_lifetime_bound, iommu_goes)
{
	struct iommu_hwpt_page_response response = {
		.code = IOMMUFD_PAGE_RESP_SUCCESS,
	};
	struct iommu_hwpt_pgfault fault;
	struct vm *vm = &self->vm;
	uint32_t id;

	if (variant->fault) {
		/* One is unread, the other one unanswered */
		ASSERT_EQ(0, trigger_iopf(vm->fd, vm->device_id, 1));
		ASSERT_EQ(sizeof(fault),
			  read(self->fault_fd, &fault, sizeof(fault)));
		response.cookie = fault.cookie;
		ASSERT_EQ(0, trigger_iopf(vm->fd, vm->device_id, 2));
	}

	unregister();
	EXPECT_ERRNO(ENODEV, hw_info(vm->fd, vm->device_id));
	EXPECT_ERRNO(ENODEV, vm_attach(vm, vm->ioas_id));
	EXPECT_ERRNO(ENODEV, vm_hwpt(vm, 0, &id));
	if (variant->fault) {
		struct pollfd pollfd = { .fd = self->fault_fd,
					 .events = POLLIN };

		EXPECT_ERRNO(ENODEV, trigger_iopf(vm->fd, vm->device_id, 3));
		/* Both have been answered */
		EXPECT_EQ(0, poll(&pollfd, 1, 0));
		EXPECT_EQ(0, read(self->fault_fd, &fault, sizeof(fault)));
		EXPECT_ERRNO(EINVAL, write(self->fault_fd, &response,
					   sizeof(response)));
	}
	/* What it was attached to can be destroyed, but not the device */
	if (self->hwpt_id)
		EXPECT_EQ(0, vm_destroy(vm, self->hwpt_id));
	EXPECT_ERRNO(EBUSY, vm_destroy(vm, vm->device_id));
	if (variant->group) {
		EXPECT_ERRNO(ENODEV, hw_info(vm->fd, self->other.device_id));
		EXPECT_EQ(0, vm_unplug(&self->other));
	}
	EXPECT_EQ(0, vm_unplug(vm));
	EXPECT_ERRNO(ENODEV, vm_plug(vm, self->iommu_id));

	/* Nothing is in use */
	if (!variant->hwpt)
		EXPECT_EQ(0, vm_destroy(vm, vm->parent_id));
	EXPECT_EQ(0, vm_destroy(vm, vm->ioas_id));
	if (variant->fault)
		EXPECT_ERRNO(EBUSY, vm_destroy(vm, self->fault_id));
}

/* Closed without a word */
/* Those of the mock's bus */
static int count_devices(void)
{
	DIR *dir = opendir("/sys/bus/iommufd_mock/devices");
	struct dirent *entry;
	int num = 0;

	if (!dir)
		return -1;
	while ((entry = readdir(dir)))
		if (entry->d_name[0] != '.')
			num++;
	closedir(dir);
	return num;
}

TEST_F(iommufd_lifetime_bound, close_after_unregister)
{
	int devices;

	if (variant->fault)
		ASSERT_EQ(0, trigger_iopf(self->vm.fd, self->vm.device_id, 1));
	devices = count_devices();
	ASSERT_LT(0, devices);
	unregister();
	/* They are still plugged in, and go with the last one that has the file */
	EXPECT_EQ(devices, count_devices());
	EXPECT_EQ(0, close(self->vm.fd));
	self->vm.fd = -1;
	if (variant->fault) {
		EXPECT_EQ(devices, count_devices());
		EXPECT_EQ(0, close(self->fault_fd));
		self->fault_fd = 0;
	}
	EXPECT_EQ(devices - (variant->group ? 2 : 1), count_devices());
}

/* The revocation is detaching the device when its driver does */
TEST_F(iommufd_lifetime_bound, unplug_during_revocation)
{
	park_call(BLOCK, &self->unreg);
	call_start(&self->unplug);
	EXPECT_WAITING(&self->unplug);
	EXPECT_WAITING(&self->unreg);
	park(BLOCK, RELEASE);
	EXPECT_EQ(0, call_end(&self->unplug));
	EXPECT_EQ(0, call_end(&self->unreg));
}

/* The other way round. The last one of a group detaches. */
TEST_F(iommufd_lifetime_bound, unregister_during_unplug)
{
	if (variant->group)
		ASSERT_EQ(0, vm_unplug(&self->other));
	park_call(BLOCK, &self->unplug);
	call_start(&self->unreg);
	EXPECT_WAITING(&self->unplug);
	EXPECT_WAITING(&self->unreg);
	park(BLOCK, RELEASE);
	EXPECT_EQ(0, call_end(&self->unplug));
	EXPECT_EQ(0, call_end(&self->unreg));
}

TEST_F(iommufd_lifetime_bound, close_during_revocation)
{
	struct call closing = CALL(close, self->vm.fd, 0);

	/* It has a reference on the iommufd */
	if (variant->fault) {
		ASSERT_EQ(0, close(self->fault_fd));
		self->fault_fd = 0;
	}
	park_call(BLOCK, &self->unreg);
	call_start(&closing);
	wait_for_close(_metadata, self->vm.fd);
	EXPECT_WAITING(&closing);
	EXPECT_WAITING(&self->unreg);
	park(BLOCK, RELEASE);
	EXPECT_EQ(0, call_end(&closing));
	EXPECT_EQ(0, call_end(&self->unreg));
}

/* In the driver for the device when unregister begins */

static int call_hw_info(int fd, uint32_t id, struct call *call)
{
	return hw_info(fd, id);
}

static int call_hwpt_alloc(int fd, uint32_t id, struct call *call)
{
	return _test_cmd_hwpt_alloc(fd, id, call->vm->ioas_id, 0, 0,
				    &call->out_id, IOMMU_HWPT_DATA_NONE, NULL,
				    0);
}

static int call_replace(int fd, uint32_t id, struct call *call)
{
	return _test_cmd_mock_domain_replace(fd, call->vm->stdev_id,
					     call->vm->parent_id, NULL);
}

static void parked(struct __test_metadata *_metadata,
		   struct _test_data_iommufd_lifetime *self, unsigned int point,
		   int (*fn)(int fd, uint32_t id, struct call *call),
		   int result)
{
	struct vm vm, probe;
	struct call call = { .fn = fn, .vm = &vm };

	ASSERT_EQ(0, vm_open(&vm, self->iommu_id));
	ASSERT_EQ(0, vm_open(&probe, self->iommu_id));
	call.fd = vm.fd;
	call.id = vm.device_id;
	ASSERT_EQ(0, _test_cmd_park(self->fd, point, MOCK_PARK_ARM));
	call_start(&call);
	ASSERT_EQ(0, _test_cmd_park(self->fd, point, MOCK_PARK_WAIT));
	call_start(&self->unreg);
	EXPECT_WAITING(&self->unreg);

	/* Others learn about it at once, but for what it waits for now */
	WAIT_WHILE(!vm_hwpt(&probe, 0, &call.out_id));
	EXPECT_EQ(ENODEV, errno);
	EXPECT_EQ(0, call_is_done(&call));
	ASSERT_EQ(0, _test_cmd_park(self->fd, point, MOCK_PARK_RELEASE));
	EXPECT_EQ(result, call_end(&call));
	EXPECT_EQ(0, call_end(&self->unreg));
	EXPECT_ERRNO(ENODEV, fn(call.fd, call.id, &call));
	ASSERT_EQ(0, close(probe.fd));
	ASSERT_EQ(0, close(vm.fd));
}

TEST_F(iommufd_lifetime, parked_in_hw_info)
{
	parked(_metadata, self, MOCK_PARK_HW_INFO, call_hw_info, 0);
}

TEST_F(iommufd_lifetime, parked_in_domain_alloc)
{
	parked(_metadata, self, MOCK_PARK_DOMAIN_ALLOC, call_hwpt_alloc,
	       -ENODEV);
}

TEST_F(iommufd_lifetime, parked_in_attach)
{
	parked(_metadata, self, MOCK_PARK_ATTACH, call_replace, 0);
}

static int call_nested(int fd, uint32_t id, struct call *call)
{
	return alloc_nested(fd, id, call->vm->parent_id, &call->out_id);
}

TEST_F(iommufd_lifetime, parked_in_nested_alloc)
{
	parked(_metadata, self, MOCK_PARK_DOMAIN_ALLOC, call_nested, -ENODEV);
}

/*
 * One device of a group has lost its IOMMU and may still do DMA, and the others are
 * about to. They are bound, and from before the HWPT that is being freed.
 */
static void attach_others(struct __test_metadata *_metadata,
			  struct _test_data_iommufd_lifetime *self,
			  bool attached)
{
	uint32_t iommu_id, stdev_id, device_id, hwpt_id, lost_id;
	uint32_t other_id = 0;
	struct vm vm = {};

	ASSERT_EQ(0, _test_cmd_iommu_register(self->fd, MOCK_IOMMU_ONE_GROUP,
					      &iommu_id));
	self->unreg.id = iommu_id;
	vm.fd = open("/dev/iommu", O_RDWR);
	ASSERT_NE(-1, vm.fd);
	ASSERT_EQ(0, _test_ioctl_ioas_alloc(vm.fd, &vm.ioas_id));
	ASSERT_EQ(0, vm_bind(&vm, iommu_id, &stdev_id, &device_id));
	ASSERT_EQ(0, _test_cmd_hwpt_alloc(vm.fd, device_id, vm.ioas_id, 0, 0,
					  &hwpt_id, IOMMU_HWPT_DATA_NONE, NULL,
					  0));
	if (attached)
		ASSERT_EQ(0, _test_cmd_mock_domain_iommu(vm.fd, hwpt_id,
							 iommu_id, 0, &other_id,
							 NULL, NULL));
	ASSERT_EQ(0, _test_cmd_hwpt_alloc(vm.fd, device_id, vm.ioas_id, 0, 0,
					  &vm.parent_id, IOMMU_HWPT_DATA_NONE,
					  NULL, 0));
	ASSERT_EQ(0, vm_bind(&vm, iommu_id, &lost_id, NULL));
	park_call(DOMAIN_FREE, &self->unreg);
	/* It has not lost anything so far, and neither has the HWPT */
	EXPECT_EQ(0, hw_info(vm.fd, device_id));
	EXPECT_ERRNO(ENODEV, _test_cmd_mock_domain_replace(vm.fd, stdev_id,
							   hwpt_id, NULL));
	if (attached) {
		/* Then nothing is attached to the group any more */
		EXPECT_EQ(0, vm_destroy(&vm, other_id));
		EXPECT_ERRNO(ENODEV,
			     _test_cmd_mock_domain_replace(vm.fd, stdev_id,
							   hwpt_id, NULL));
	}
	park(DOMAIN_FREE, RELEASE);
	EXPECT_EQ(0, call_end(&self->unreg));
	ASSERT_EQ(0, close(vm.fd));
}

TEST_F(iommufd_lifetime, attach_after_revocation_of_another)
{
	attach_others(_metadata, self, false);
}

TEST_F(iommufd_lifetime, attach_after_revocation_of_another_and_detach)
{
	attach_others(_metadata, self, true);
}

/* The devices are revoked and not released, so the group must stay blocked */
TEST_F(iommufd_lifetime, group_type_after_revocation)
{
	uint32_t device_id;
	struct vm vm;
	glob_t paths;

	ASSERT_EQ(0, vm_open(&vm, self->iommu_id));
	/* It leaves a HWPT that is older than the next one */
	ASSERT_EQ(0, vm_unplug(&vm));
	ASSERT_EQ(0, vm_bind(&vm, self->iommu_id, &vm.stdev_id, &device_id));
	ASSERT_EQ(0, glob("/sys/bus/iommufd_mock/devices/*/iommu_group/type", 0,
			  NULL, &paths));
	/* Nobody else has one */
	ASSERT_EQ(1, paths.gl_pathc);
	park_call(DOMAIN_FREE, &self->unreg);
	EXPECT_ERRNO(ENODEV, hw_info(vm.fd, device_id));
	EXPECT_ERRNO(EPERM, write_file(paths.gl_pathv[0], "identity"));
	park(DOMAIN_FREE, RELEASE);
	EXPECT_EQ(0, call_end(&self->unreg));
	globfree(&paths);
	ASSERT_EQ(0, close(vm.fd));
}

/* The HWPT that the group is attached to is gone, and the devices about to be */
TEST_F(iommufd_lifetime, attach_during_revocation)
{
	uint32_t hwpt_id, iommu_id, stdev_id;
	struct vm vm;

	ASSERT_EQ(0, _test_cmd_iommu_register(self->fd, MOCK_IOMMU_ONE_GROUP,
					      &iommu_id));
	self->unreg.id = iommu_id;
	ASSERT_EQ(0, vm_open(&vm, iommu_id));
	ASSERT_EQ(0, vm_bind(&vm, iommu_id, &stdev_id, NULL));
	ASSERT_EQ(0, vm_hwpt(&vm, 0, &hwpt_id));
	ASSERT_EQ(0, vm_attach(&vm, hwpt_id));
	park_call(DOMAIN_FREE, &self->unreg);
	EXPECT_ERRNO(ENODEV, vm_attach(&vm, vm.parent_id));
	/* That one is bound, but not attached so far */
	EXPECT_ERRNO(ENODEV, _test_cmd_mock_domain_replace(vm.fd, stdev_id,
							   vm.parent_id, NULL));
	park(DOMAIN_FREE, RELEASE);
	EXPECT_EQ(0, call_end(&self->unreg));
	ASSERT_EQ(0, vm_unplug(&vm));
	ASSERT_EQ(0, close(vm.fd));
}

/* What cannot be bound is not held */
TEST_F(iommufd_lifetime, bind_not_coherent)
{
	EXPECT_ERRNO(EINVAL,
		     _test_cmd_mock_domain_iommu(self->fd, 0, self->iommu_id,
						 MOCK_FLAGS_DEVICE_BIND_ONLY |
						 MOCK_FLAGS_DEVICE_NO_COHERENCY,
						 NULL, NULL, NULL));
	call_start(&self->unreg);
	EXPECT_EQ(0, call_end(&self->unreg));
}

/* The newest device is revoked first, with the HWPT that others are attached to */
TEST_F(iommufd_lifetime, unplug_newest_during_revocation)
{
	struct call unplug = { .fn = call_destroy };
	struct vm vm = {};
	struct vm newest;

	ASSERT_EQ(0, vm_open(&vm, self->iommu_id));
	newest = vm;
	ASSERT_EQ(0, vm_plug(&newest, self->iommu_id));
	unplug.fd = vm.fd;
	unplug.id = newest.stdev_id;
	park_call(BLOCK, &self->unreg);
	call_start(&unplug);
	EXPECT_WAITING(&unplug);
	EXPECT_WAITING(&self->unreg);
	park(BLOCK, RELEASE);
	EXPECT_EQ(0, call_end(&unplug));
	EXPECT_EQ(0, call_end(&self->unreg));
	/* It has let go of the HWPT, or this warns */
	EXPECT_EQ(0, close(vm.fd));
}

/* Unregister has begun, so the HWPT that the bind would attach to is too late */
TEST_F(iommufd_lifetime, unregister_during_bind)
{
	struct vm vm = { .fd = self->fd };
	struct call plug = CALL(vm_plug, -1, self->iommu_id, .vm = &vm);

	ASSERT_EQ(0, _test_ioctl_ioas_alloc(vm.fd, &vm.ioas_id));
	park_call(ATTACH, &plug);
	call_start(&self->unreg);
	EXPECT_WAITING(&plug);
	EXPECT_WAITING(&self->unreg);
	park(ATTACH, RELEASE);
	EXPECT_EQ(-ENODEV, call_end(&plug));
	EXPECT_EQ(0, call_end(&self->unreg));
}

/* The bind has ended, so what it has bound and attached is taken away */
TEST_F(iommufd_lifetime, unregister_after_bind)
{
	struct vm vm = { .fd = self->fd };
	struct call plug = CALL(vm_plug, -1, self->iommu_id, .vm = &vm);

	ASSERT_EQ(0, _test_ioctl_ioas_alloc(vm.fd, &vm.ioas_id));
	park_call(ATTACH, &plug);
	park(ATTACH, RELEASE);
	ASSERT_EQ(0, call_end(&plug));
	EXPECT_EQ(0, hw_info(vm.fd, vm.device_id));
	unregister();
	EXPECT_ERRNO(ENODEV, hw_info(vm.fd, vm.device_id));
	EXPECT_ERRNO(ENODEV, vm_plug(&vm, self->iommu_id));
	ASSERT_EQ(0, vm_unplug(&vm));
}

/* The group outlives the device that the page requests of it were enabled on */
TEST_F(iommufd_lifetime_bound, first_of_group_leaves)
{
	struct iommu_hwpt_pgfault request = {};
	uint32_t fault_id, fault_fd, nested_id;

	if (!variant->group || variant->bind_only)
		SKIP(return, "needs a group of two devices");
	ASSERT_EQ(0, _test_ioctl_fault_alloc(self->vm.fd, &fault_id, &fault_fd));
	ASSERT_EQ(0, vm_nested_fault(&self->vm, self->vm.parent_id, fault_id,
				     &nested_id));
	ASSERT_EQ(0, vm_attach(&self->vm, nested_id));
	ASSERT_EQ(0, trigger_iopf(self->vm.fd, self->vm.device_id, 1));
	ASSERT_EQ(sizeof(request), read(fault_fd, &request, sizeof(request)));
	EXPECT_EQ(self->vm.device_id, request.dev_id);

	/* What it has asked for goes with it, what comes is of the other one */
	ASSERT_EQ(0, trigger_iopf(self->vm.fd, self->vm.device_id, 2));
	ASSERT_EQ(0, vm_unplug(&self->vm));
	EXPECT_EQ(0, read(fault_fd, &request, sizeof(request)));
	ASSERT_EQ(0, trigger_iopf(self->vm.fd, self->other.device_id, 3));
	ASSERT_EQ(sizeof(request), read(fault_fd, &request, sizeof(request)));
	EXPECT_EQ(self->other.device_id, request.dev_id);
	EXPECT_EQ(3, request.grpid);

	/* They are disabled where they are enabled */
	ASSERT_EQ(0, _test_cmd_mock_domain_replace(self->vm.fd,
						   self->other.stdev_id,
						   self->vm.parent_id, NULL));
	ASSERT_EQ(0, _test_cmd_mock_domain_replace(self->vm.fd,
						   self->other.stdev_id,
						   nested_id, NULL));
	ASSERT_EQ(0, trigger_iopf(self->vm.fd, self->other.device_id, 4));
	ASSERT_EQ(sizeof(request), read(fault_fd, &request, sizeof(request)));
	EXPECT_EQ(4, request.grpid);
	ASSERT_EQ(0, close(fault_fd));
}

/* Enabled by the one device of a group, and disabled by the other one */
TEST_F(iommufd_lifetime_bound, group_replaces_by_turns)
{
	uint32_t fault_id, fault_fd, nested_id[2];
	int i;

	if (!variant->group || variant->bind_only)
		SKIP(return, "needs a group of two devices");
	ASSERT_EQ(0, _test_ioctl_fault_alloc(self->vm.fd, &fault_id, &fault_fd));
	for (i = 0; i != 2; i++)
		ASSERT_EQ(0, vm_nested_fault(&self->vm, self->vm.parent_id,
					     fault_id, &nested_id[i]));
	for (i = 0; i != 4; i++) {
		ASSERT_EQ(0, vm_attach(&self->vm, nested_id[0]));
		ASSERT_EQ(0, _test_cmd_mock_domain_replace(self->vm.fd,
							   self->other.stdev_id,
							   nested_id[i & 1],
							   NULL));
		ASSERT_EQ(0, _test_cmd_mock_domain_replace(self->vm.fd,
							   self->other.stdev_id,
							   self->vm.parent_id,
							   NULL));
	}
	ASSERT_EQ(0, close(fault_fd));
}

TEST_F_TIMEOUT(iommufd_lifetime, bind_and_unplug_race_unregister, 120)
{
	struct vm vm[2] = {};
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
			ASSERT_EQ(0, vm_open(&vm[j], iommu_id));
			unplug[j].fn = call_destroy;
			unplug[j].fd = vm[j].fd;
			unplug[j].id = vm[j].stdev_id;
			plug[j].fn = call_vm_plug;
			plug[j].id = iommu_id;
			plug[j].vm = &vm[j];
			/* Of a group, one file is the owner */
			if (i & 1)
				break;
		}
		for (j = 0; j != (i & 1 ? 1 : 2); j++)
			call_start(&plug[j]);
		call_start(&self->unreg);
		for (j = 0; j != (i & 1 ? 1 : 2); j++)
			call_start(&unplug[j]);
		for (j = 0; j != (i & 1 ? 1 : 2); j++) {
			int err = call_end(&plug[j]);

			ASSERT_TRUE(!err || err == -ENODEV);
			ASSERT_EQ(0, call_end(&unplug[j]));
		}
		ASSERT_EQ(0, call_end(&self->unreg));
		for (j = 0; j != (i & 1 ? 1 : 2); j++)
			ASSERT_EQ(0, close(vm[j].fd));
	}
}

/* HWPTs */

static int map_buffer(int fd, uint32_t ioas_id, __u64 *iova)
{
	return _test_ioctl_ioas_map(fd, ioas_id, buffer, BUFFER_SIZE, iova,
				    IOMMU_IOAS_MAP_WRITEABLE |
					    IOMMU_IOAS_MAP_READABLE);
}

/* The device that it was made for has been gone for long */
TEST_F(iommufd_lifetime, L14_revoked_hwpt_is_an_id)
{
	struct iommu_hwpt_invalidate_selftest inv = {};
	uint32_t nested_id, dirty_id, id, num = 1;
	struct vm vm;

	ASSERT_EQ(0, vm_open(&vm, self->iommu_id));
	ASSERT_EQ(0, vm_nested(&vm, vm.parent_id, &nested_id));
	ASSERT_EQ(0, vm_hwpt(&vm, IOMMU_HWPT_ALLOC_DIRTY_TRACKING, &dirty_id));
	ASSERT_EQ(0, _test_cmd_set_dirty_tracking(vm.fd, dirty_id, true));
	ASSERT_EQ(0, vm_unplug(&vm));
	unregister();

	EXPECT_EQ(-ENODEV,
		  _test_cmd_set_dirty_tracking(vm.fd, dirty_id, false));
	EXPECT_ERRNO(ENODEV, _test_cmd_get_dirty_bitmap(vm.fd, dirty_id,
							PAGE_SIZE, 0, PAGE_SIZE,
							buffer, 0));
	EXPECT_ERRNO(ENODEV,
		     _test_cmd_hwpt_invalidate(vm.fd, nested_id, &inv,
					       IOMMU_HWPT_INVALIDATE_DATA_SELFTEST,
					       sizeof(inv), &num));
	EXPECT_EQ(0, num);

	/* As what a device of another IOMMU is attached to, or a parent */
	ASSERT_EQ(0, vm_plug(&vm, 0));
	EXPECT_ERRNO(ENODEV, vm_attach(&vm, nested_id));
	EXPECT_ERRNO(ENODEV, vm_attach(&vm, dirty_id));
	EXPECT_ERRNO(ENODEV, vm_nested(&vm, vm.parent_id, &id));

	/* The parent is not in use, nor is the IOAS, and the IDs are not reused */
	ASSERT_EQ(0, _test_ioctl_ioas_alloc(vm.fd, &id));
	EXPECT_NE(nested_id, id);
	ASSERT_EQ(0, vm_destroy(&vm, vm.parent_id));
	ASSERT_EQ(0, vm_unplug(&vm));
	ASSERT_EQ(0, vm_destroy(&vm, vm.ioas_id));
	ASSERT_EQ(0, vm_destroy(&vm, nested_id));
	EXPECT_ERRNO(ENOENT, vm_destroy(&vm, nested_id));
	/* One is left for close */
	ASSERT_EQ(0, close(vm.fd));
}

/* Only the IDs are in the way of the memory being given to another one */
TEST_F(iommufd_lifetime, L14_same_address)
{
	uint32_t nested_id, iommu_id;
	struct vm vm;

	ASSERT_EQ(0, _test_cmd_iommu_register(self->fd, MOCK_IOMMU_SAME_ADDRESS,
					      &iommu_id));
	ASSERT_EQ(0, vm_open(&vm, iommu_id));
	ASSERT_EQ(0, vm_nested(&vm, vm.parent_id, &nested_id));
	ASSERT_EQ(0, vm_unplug(&vm));
	ASSERT_EQ(0, _test_cmd_iommu_unregister(self->fd, iommu_id));

	ASSERT_EQ(0, _test_cmd_iommu_register(self->fd, MOCK_IOMMU_SAME_ADDRESS,
					      &iommu_id));
	ASSERT_EQ(0, vm_plug(&vm, iommu_id));
	EXPECT_ERRNO(ENODEV, vm_attach(&vm, nested_id));
	EXPECT_ERRNO(ENODEV, vm_attach(&vm, vm.parent_id));
	ASSERT_EQ(0, close(vm.fd));
	ASSERT_EQ(0, _test_cmd_iommu_unregister(self->fd, iommu_id));
}

/* Without sharing, a HWPT is for one instance */
TEST_F(iommufd_lifetime, L14_other_instance_is_refused)
{
	uint32_t stdev_id, device_id, hwpt_id, id;
	struct vm vm;

	ASSERT_EQ(0, vm_open(&vm, self->iommu_id));
	ASSERT_EQ(0, _test_cmd_mock_domain_iommu(vm.fd, vm.ioas_id, 0, 0,
						 &stdev_id, &hwpt_id,
						 &device_id));
	EXPECT_ERRNO(EINVAL, _test_cmd_mock_domain_replace(vm.fd, stdev_id,
							   vm.parent_id, NULL));
	EXPECT_ERRNO(EINVAL, alloc_nested(vm.fd, device_id, vm.parent_id, &id));
	EXPECT_ERRNO(EINVAL, vm_attach(&vm, hwpt_id));
	ASSERT_EQ(0, close(vm.fd));
}

/* The maps are the IOAS's own, and another instance can have them */
TEST_F(iommufd_lifetime, L14_ioas_stays)
{
	struct iommu_test_cmd access_cmd = {
		.size = sizeof(access_cmd),
		.op = IOMMU_TEST_OP_ACCESS_RW,
	};
	uint32_t hwpt_id, access_id, iommu_id, stdev_id;
	__u64 iova, iova2 = MOCK_APERTURE_START + BUFFER_SIZE * 2;
	struct vm vm;
	char c = 0;

	ASSERT_EQ(0, vm_open(&vm, self->iommu_id));
	ASSERT_EQ(0, map_buffer(vm.fd, vm.ioas_id, &iova));
	ASSERT_EQ(0,
		  _test_cmd_create_access(vm.fd, vm.ioas_id, &access_id,
					  MOCK_FLAGS_ACCESS_CREATE_NEEDS_PIN_PAGES));
	unregister();

	/* Without a HWPT */
	*(char *)buffer = 'x';
	access_cmd.id = access_id;
	access_cmd.access_rw.iova = iova;
	access_cmd.access_rw.length = 1;
	access_cmd.access_rw.uptr = (uintptr_t)&c;
	ASSERT_EQ(0, ioctl(vm.fd, _IOMMU_TEST_CMD(IOMMU_TEST_OP_ACCESS_RW),
			   &access_cmd));
	EXPECT_EQ('x', c);
	ASSERT_EQ(0, _test_ioctl_ioas_map(vm.fd, vm.ioas_id, buffer, BUFFER_SIZE,
					  &iova2,
					  IOMMU_IOAS_MAP_FIXED_IOVA |
						  IOMMU_IOAS_MAP_WRITEABLE |
						  IOMMU_IOAS_MAP_READABLE));

	/* And with that of another instance */
	ASSERT_EQ(0, _test_cmd_iommu_register(self->fd, 0, &iommu_id));
	ASSERT_EQ(0, _test_cmd_mock_domain_iommu(vm.fd, vm.ioas_id, iommu_id, 0,
						 &stdev_id, &hwpt_id, NULL));
	EXPECT_EQ(0, _test_cmd_check_map(vm.fd, hwpt_id, buffer, BUFFER_SIZE, iova));
	EXPECT_EQ(0, _test_cmd_check_map(vm.fd, hwpt_id, buffer, BUFFER_SIZE, iova2));
	ASSERT_EQ(0, _test_ioctl_ioas_unmap(vm.fd, vm.ioas_id, iova,
					    BUFFER_SIZE, NULL));
	ASSERT_EQ(0, _test_cmd_iommu_unregister(self->fd, iommu_id));
	ASSERT_EQ(0, _test_ioctl_ioas_unmap(vm.fd, vm.ioas_id, iova2,
					    BUFFER_SIZE, NULL));
	ASSERT_EQ(0, close(access_id));
	ASSERT_EQ(0, close(vm.fd));
}

TEST_F(iommufd_lifetime, L14_vfio_compat)
{
	struct iommu_vfio_ioas vfio_ioas = {
		.size = sizeof(vfio_ioas),
		.op = IOMMU_VFIO_IOAS_SET,
	};
	struct vfio_iommu_type1_dma_map map = {
		.argsz = sizeof(map),
		.flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
		.vaddr = (uintptr_t)buffer,
		.size = PAGE_SIZE,
		.iova = MOCK_APERTURE_START,
	};
	struct vfio_iommu_type1_dma_unmap unmap = {
		.argsz = sizeof(unmap),
		.size = PAGE_SIZE,
		.iova = MOCK_APERTURE_START,
	};
	struct vm vm;

	ASSERT_EQ(0, vm_open(&vm, self->iommu_id));
	vfio_ioas.ioas_id = vm.ioas_id;
	ASSERT_EQ(0, ioctl(vm.fd, IOMMU_VFIO_IOAS, &vfio_ioas));
	ASSERT_EQ(0, ioctl(vm.fd, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU));
	ASSERT_EQ(0, ioctl(vm.fd, VFIO_IOMMU_MAP_DMA, &map));
	unregister();
	/* There is no HWPT that would not be coherent */
	EXPECT_EQ(1, ioctl(vm.fd, VFIO_CHECK_EXTENSION, VFIO_DMA_CC_IOMMU));
	EXPECT_EQ(1, ioctl(vm.fd, VFIO_CHECK_EXTENSION, VFIO_TYPE1v2_IOMMU));
	ASSERT_EQ(0, ioctl(vm.fd, VFIO_IOMMU_UNMAP_DMA, &unmap));
	ASSERT_EQ(0, ioctl(vm.fd, VFIO_IOMMU_MAP_DMA, &map));
	ASSERT_EQ(0, vm_unplug(&vm));
	ASSERT_EQ(0, vm_plug(&vm, 0));
	ASSERT_EQ(0, ioctl(vm.fd, VFIO_IOMMU_UNMAP_DMA, &unmap));
	ASSERT_EQ(0, close(vm.fd));
}

/* A fault queue belongs to no instance */
TEST_F(iommufd_lifetime, L14_fault_queue_goes_on)
{
	uint32_t fault_id, fault_fd, hwpt_id, parent_id;
	struct vm vm;
	int i;

	ASSERT_EQ(0, vm_open(&vm, self->iommu_id));
	ASSERT_EQ(0, _test_ioctl_fault_alloc(vm.fd, &fault_id, &fault_fd));
	for (i = 0; i != 2; i++) {
		ASSERT_EQ(0, vm_hwpt(&vm, IOMMU_HWPT_ALLOC_NEST_PARENT,
				     &parent_id));
		ASSERT_EQ(0,
			  vm_nested_fault(&vm, parent_id, fault_id, &hwpt_id));
		ASSERT_EQ(0, vm_attach(&vm, hwpt_id));
		ASSERT_EQ(0, _test_cmd_trigger_iopf(vm.fd, vm.device_id,
						    fault_fd));
		if (i)
			break;
		unregister();
		ASSERT_EQ(0, vm_unplug(&vm));
		ASSERT_EQ(0, vm_plug(&vm, 0));
	}
	ASSERT_EQ(0, close(fault_fd));
	ASSERT_EQ(0, close(vm.fd));
}

/* What is shared can be built on while it is on its way to another instance */
TEST_F(iommufd_lifetime, L14_shared_during_unregister)
{
	struct call hw_info = { .fn = call_hw_info };
	uint32_t iommu_id[2], stdev_id, device_id, id;
	struct vm vm;
	int i;

	for (i = 0; i != 2; i++)
		ASSERT_EQ(0, _test_cmd_iommu_register(self->fd,
						      MOCK_IOMMU_SHARED_DOMAINS,
						      &iommu_id[i]));
	ASSERT_EQ(0, vm_open(&vm, iommu_id[0]));
	ASSERT_EQ(0, _test_cmd_mock_domain_iommu(vm.fd, vm.ioas_id, iommu_id[1],
						 0, &stdev_id, NULL,
						 &device_id));
	hw_info.fd = vm.fd;
	hw_info.id = vm.device_id;
	park_call(HW_INFO, &hw_info);
	self->unreg.id = iommu_id[0];
	call_start(&self->unreg);
	EXPECT_WAITING(&self->unreg);
	EXPECT_EQ(0, alloc_nested(vm.fd, device_id, vm.parent_id, &id));
	park(HW_INFO, RELEASE);
	EXPECT_EQ(0, call_end(&hw_info));
	EXPECT_EQ(0, call_end(&self->unreg));
	EXPECT_EQ(0, _test_cmd_mock_domain_replace(vm.fd, stdev_id, id, NULL));
	ASSERT_EQ(0, _test_cmd_iommu_unregister(self->fd, iommu_id[1]));
	ASSERT_EQ(0, close(vm.fd));
}

/* One that cannot be unregistered yet does not keep the others from it */
TEST_F(iommufd_lifetime, L14_shared_stuck)
{
	struct call other = CALL(unregister, self->fd, 0);
	struct call hw_info = { .fn = call_hw_info };
	struct vm vm, vm2, probe;
	uint32_t iommu_id[2], id;
	int i;

	for (i = 0; i != 2; i++)
		ASSERT_EQ(0, _test_cmd_iommu_register(self->fd,
						      MOCK_IOMMU_SHARED_DOMAINS,
						      &iommu_id[i]));
	ASSERT_EQ(0, vm_open(&vm, iommu_id[0]));
	ASSERT_EQ(0, vm_open(&probe, iommu_id[0]));
	ASSERT_EQ(0, vm_open(&vm2, iommu_id[1]));
	hw_info.fd = vm.fd;
	hw_info.id = vm.device_id;
	park_call(HW_INFO, &hw_info);
	self->unreg.id = iommu_id[0];
	call_start(&self->unreg);
	WAIT_WHILE(!vm_hwpt(&probe, 0, &id));

	other.id = iommu_id[1];
	call_start(&other);
	EXPECT_EQ(0, call_end(&other));
	EXPECT_EQ(0, call_is_done(&self->unreg));
	/* The last of them took the domains with it */
	EXPECT_ERRNO(ENODEV, _test_cmd_hwpt_alloc(vm.fd, vm.device_id,
						  vm.parent_id, 0, 0, &id,
						  IOMMU_HWPT_DATA_NONE, NULL,
						  0));
	park(HW_INFO, RELEASE);
	EXPECT_EQ(0, call_end(&hw_info));
	EXPECT_EQ(0, call_end(&self->unreg));
	ASSERT_EQ(0, close(probe.fd));
	ASSERT_EQ(0, close(vm2.fd));
	ASSERT_EQ(0, close(vm.fd));
}

/* A domain that is shared stays until the last of the instances goes */
TEST_F(iommufd_lifetime, L14_shared)
{
	uint32_t iommu_id[3], nested_id, hwpt_id, hwpt_id2, id;
	struct vm vm, vm2;
	__u64 iova;
	int i;

	for (i = 0; i != 3; i++)
		ASSERT_EQ(0, _test_cmd_iommu_register(self->fd,
						      MOCK_IOMMU_SHARED_DOMAINS,
						      &iommu_id[i]));
	ASSERT_EQ(0, vm_open(&vm, iommu_id[0]));
	ASSERT_EQ(0, map_buffer(vm.fd, vm.ioas_id, &iova));
	ASSERT_EQ(0, vm_nested(&vm, vm.parent_id, &nested_id));
	vm2 = vm;
	ASSERT_EQ(0, _test_cmd_mock_domain_iommu(vm.fd, vm.ioas_id, iommu_id[1],
						 0, &vm2.stdev_id, &hwpt_id,
						 &vm2.device_id));
	/* It got what the first device has */
	ASSERT_EQ(0, _test_cmd_mock_domain_iommu(vm.fd, vm.ioas_id, iommu_id[0],
						 0, &id, &hwpt_id2, NULL));
	EXPECT_EQ(hwpt_id, hwpt_id2);

	ASSERT_EQ(0, _test_cmd_iommu_unregister(self->fd, iommu_id[0]));
	EXPECT_ERRNO(ENODEV, hw_info(vm.fd, vm.device_id));
	EXPECT_EQ(0, _test_cmd_check_map(vm.fd, hwpt_id, buffer, BUFFER_SIZE, iova));
	EXPECT_EQ(0, _test_cmd_check_map(vm.fd, vm.parent_id, buffer, BUFFER_SIZE, iova));
	ASSERT_EQ(0, _test_cmd_mock_domain_replace(vm.fd, vm2.stdev_id,
						   nested_id, NULL));

	ASSERT_EQ(0, _test_cmd_iommu_unregister(self->fd, iommu_id[1]));
	EXPECT_EQ(0, _test_cmd_check_map(vm.fd, vm.parent_id, buffer, BUFFER_SIZE, iova));

	/* Those that do not share are no help */
	ASSERT_EQ(0, _test_cmd_iommu_unregister(self->fd, iommu_id[2]));
	EXPECT_ERRNO(ENODEV,
		     _test_cmd_check_map(vm.fd, vm.parent_id, buffer, BUFFER_SIZE, iova));
	EXPECT_ERRNO(ENODEV, _test_cmd_mock_domain_replace(vm.fd, vm2.stdev_id,
							   nested_id, NULL));
	ASSERT_EQ(0, close(vm.fd));
}

/* The domain is being freed when somebody else would do it */

static void free_parked(struct __test_metadata *_metadata,
			struct _test_data_iommufd_lifetime *self,
			struct call *first, struct call *second)
{
	park_call(DOMAIN_FREE, first);
	call_start(second);
	EXPECT_WAITING(first);
	EXPECT_WAITING(second);
	park(DOMAIN_FREE, RELEASE);
	EXPECT_EQ(0, call_end(first));
	EXPECT_EQ(0, call_end(second));
}

TEST_F(iommufd_lifetime, L14_free_by_destroy)
{
	struct call destroy = { .fn = call_destroy };
	struct vm vm;

	ASSERT_EQ(0, vm_open(&vm, self->iommu_id));
	destroy.fd = vm.fd;
	destroy.id = vm.parent_id;
	free_parked(_metadata, self, &destroy, &self->unreg);
	ASSERT_EQ(0, close(vm.fd));
}

/* The parent is not revoked while the nested one that is on it is destroyed */
TEST_F(iommufd_lifetime, L14_free_nested_by_destroy)
{
	struct call destroy = { .fn = call_destroy };
	struct vm vm;

	ASSERT_EQ(0, vm_open(&vm, self->iommu_id));
	ASSERT_EQ(0, vm_nested(&vm, vm.parent_id, &destroy.id));
	destroy.fd = vm.fd;
	free_parked(_metadata, self, &destroy, &self->unreg);
	ASSERT_EQ(0, close(vm.fd));
}

TEST_F(iommufd_lifetime, L14_free_by_revocation)
{
	struct call destroy = { .fn = call_destroy };
	struct vm vm;

	ASSERT_EQ(0, vm_open(&vm, self->iommu_id));
	destroy.fd = vm.fd;
	destroy.id = vm.parent_id;
	free_parked(_metadata, self, &self->unreg, &destroy);
	ASSERT_EQ(0, close(vm.fd));
}

TEST_F(iommufd_lifetime, L14_free_by_close)
{
	struct call closing = { .fn = call_close };
	struct vm vm;

	ASSERT_EQ(0, vm_open(&vm, self->iommu_id));
	closing.fd = vm.fd;
	free_parked(_metadata, self, &closing, &self->unreg);
}

TEST_F(iommufd_lifetime, L14_close_during_revocation)
{
	struct call closing = { .fn = call_close };
	struct vm vm;

	ASSERT_EQ(0, vm_open(&vm, self->iommu_id));
	closing.fd = vm.fd;
	free_parked(_metadata, self, &self->unreg, &closing);
}

/* The module stays, with the device or not */
TEST_F(iommufd_lifetime, L8_module_of_a_hwpt)
{
	uint32_t ioas_id, device_id, hwpt_id;
	int dev_fd, fd, i;

	if (module_load())
		SKIP(return, "needs the module " TEST_DRIVER);
	for (i = 0; i != 2; i++) {
		fd = open("/dev/iommu", O_RDWR);
		ASSERT_NE(-1, fd);
		ASSERT_EQ(0, _test_ioctl_ioas_alloc(fd, &ioas_id));
		dev_fd = module_bind(fd, &device_id);
		ASSERT_NE(-1, dev_fd);
		ASSERT_EQ(0, _test_cmd_hwpt_alloc(fd, device_id, ioas_id, 0, 0,
						  &hwpt_id,
						  IOMMU_HWPT_DATA_NONE, NULL,
						  0));
		ASSERT_EQ(0, close(dev_fd));
		EXPECT_ERRNO(EWOULDBLOCK, module_unload());
		if (i)
			ASSERT_EQ(0, _test_ioctl_destroy(fd, hwpt_id));
		ASSERT_EQ(0, close(fd));
		ASSERT_EQ(0, module_unload());
		ASSERT_EQ(0, module_load());
	}
	ASSERT_EQ(0, module_unload());
}

/* The mock is not the IOMMU of all that no firmware describes, there can be another */
TEST_F(iommufd_lifetime, driver_without_fwnode)
{
	uint32_t device_id;
	int dev_fd, fd;
	glob_t paths;

	/* The first of them in the core's list is the one that is asked */
	if (!glob("/sys/class/iommu/dmar*", 0, NULL, &paths) ||
	    !glob("/sys/class/iommu/ivhd*", 0, NULL, &paths))
		SKIP(return, "there is one already");
	if (module_load_with(TEST_DRIVER, "fwnode=0"))
		SKIP(return, "needs the module " TEST_DRIVER);
	fd = open("/dev/iommu", O_RDWR);
	ASSERT_NE(-1, fd);
	dev_fd = module_bind(fd, &device_id);
	EXPECT_NE(-1, dev_fd)
		TH_LOG("binding it: %s", strerror(errno));
	close(dev_fd);
	ASSERT_EQ(0, close(fd));
	ASSERT_EQ(0, module_unload());
}

/*
 * A device is unplugged while a HWPT that is allocated for it waits for the locks of
 * the IOAS, under which a page of user space's is being pinned.
 */

static int call_map_page(int fd, uint32_t id, struct call *call)
{
	__u64 iova;

	return _test_ioctl_ioas_map(fd, id, buffer, PAGE_SIZE, &iova,
				    IOMMU_IOAS_MAP_READABLE |
					    IOMMU_IOAS_MAP_WRITEABLE);
}

TEST_F(iommufd_lifetime, unplug_during_hwpt_alloc)
{
	struct call alloc = { .fn = call_hwpt_alloc };
	struct call unplug = { .fn = call_destroy };
	struct call map = { .fn = call_map_page };
	uint32_t hwpt_id;
	struct vm vm, other;
	int uffd;

	ASSERT_EQ(0, vm_open(&vm, self->iommu_id));
	/* One that the device is not attached to, so that unplugging needs no lock */
	other = vm;
	ASSERT_EQ(0, _test_ioctl_ioas_alloc(vm.fd, &other.ioas_id));
	/* What is mapped is pinned at once */
	ASSERT_EQ(0, _test_cmd_hwpt_alloc(vm.fd, vm.device_id, other.ioas_id, 0,
					  0, &hwpt_id, IOMMU_HWPT_DATA_NONE,
					  NULL, 0));
	memset(buffer, 1, PAGE_SIZE);
	map.fd = vm.fd;
	map.id = other.ioas_id;
	uffd = STALL(&map, buffer, WP);

	/* It has found the device when it is let go, and waits next */
	alloc.fd = vm.fd;
	alloc.id = vm.device_id;
	alloc.vm = &other;
	park_call(DOMAIN_ALLOC, &alloc);
	unplug.fd = vm.fd;
	unplug.id = vm.stdev_id;
	call_start(&unplug);
	EXPECT_WAITING(&unplug);
	park(DOMAIN_ALLOC, RELEASE);
	EXPECT_EQ(0, call_end(&unplug));
	EXPECT_EQ(0, call_is_done(&alloc));
	EXPECT_EQ(0, call_is_done(&map));

	ASSERT_EQ(0, uffd_unprotect(uffd, buffer));
	EXPECT_EQ(0, call_end(&map));
	EXPECT_EQ(0, call_end(&alloc));
	/* The HWPT is as good as any whose device is gone */
	EXPECT_EQ(0, vm_destroy(&vm, alloc.out_id));
	ASSERT_EQ(0, close(uffd));
	unregister();
	ASSERT_EQ(0, close(vm.fd));
}

static void set_hung_task_timeout(const char *value, char *old, size_t old_len)
{
	int fd = open("/proc/sys/kernel/hung_task_timeout_secs", O_RDWR);
	ssize_t len;

	if (fd == -1)
		return;
	if (old) {
		len = pread(fd, old, old_len - 1, 0);
		if (len > 0)
			old[len] = 0;
	}
	/* Not at offset 0 the write would be ignored */
	len = pwrite(fd, value, strlen(value), 0);
	close(fd);
}

/* An unbind waits for a call for as long as that lasts, and no longer */
TEST_F_TIMEOUT(iommufd_lifetime, unbind_waits_for_users, 180)
{
	struct call hw_info, unplug;
	char timeout[32] = "120";
	struct vm vm;

	ASSERT_EQ(0, vm_open(&vm, self->iommu_id));
	hw_info = CALL(hw_info, vm.fd, vm.device_id);
	unplug = CALL(destroy, vm.fd, vm.stdev_id);
	/* What the test wants to see is what a hung task looks like */
	set_hung_task_timeout("0", timeout, sizeof(timeout));
	park_call(HW_INFO, &hw_info);
	call_start(&unplug);
	EXPECT_WAITING(&unplug);
	/* It would have given up by then */
	sleep_ms(65000);
	EXPECT_WAITING(&unplug);
	park(HW_INFO, RELEASE);
	EXPECT_EQ(0, call_end(&hw_info));
	EXPECT_EQ(0, call_end(&unplug));
	set_hung_task_timeout(timeout, NULL, 0);
	ASSERT_EQ(0, close(vm.fd));
}

/* And not for calls that come meanwhile, which could be there all the time */
TEST_F(iommufd_lifetime, unbind_ends_look_ups)
{
	struct call call, unplug;
	struct vm vm;
	int error;

	ASSERT_EQ(0, vm_open(&vm, self->iommu_id));
	call = CALL(hw_info, vm.fd, vm.device_id);
	unplug = CALL(destroy, vm.fd, vm.stdev_id);
	park_call(HW_INFO, &call);
	call_start(&unplug);
	EXPECT_WAITING(&unplug);
	error = hw_info(vm.fd, vm.device_id) ? errno : 0;
	park(HW_INFO, RELEASE);
	EXPECT_EQ(0, call_end(&call));
	EXPECT_EQ(0, call_end(&unplug));
	EXPECT_EQ(ENOENT, error);
	ASSERT_EQ(0, close(vm.fd));
}

/* A call that is stuck in user memory is not waited for */

static int stalled(struct __test_metadata *_metadata,
		   struct _test_data_iommufd_lifetime *self, struct vm *vm,
		   uint32_t request, bool writable, int result)
{
	struct call call = CALL(ioctl, vm->fd, request, .arg = buffer);
	int uffd = uffd_open(buffer, UFFDIO_REGISTER_MODE_WP);

	if (uffd == -1)
		return -1;
	call_start(&call);
	ASSERT_EQ(0, uffd_wait(uffd));
	unregister();
	EXPECT_EQ(result, unstall(_metadata, &call, uffd, buffer, writable));
	return 0;
}

TEST_F(iommufd_lifetime, L4_hw_info_stalled)
{
	struct iommu_hw_info *cmd = buffer;
	struct vm vm;

	ASSERT_EQ(0, vm_open(&vm, self->iommu_id));
	*cmd = (struct iommu_hw_info){
		.size = sizeof(*cmd),
		.dev_id = vm.device_id,
		.data_len = sizeof(struct iommu_test_hw_info),
		.data_uptr = (uintptr_t)(cmd + 1),
	};
	if (stalled(_metadata, self, &vm, IOMMU_GET_HW_INFO, true, 0))
		SKIP(return, NEEDS_UFFD);
	ASSERT_EQ(0, close(vm.fd));
}

TEST_F(iommufd_lifetime, L4_hwpt_alloc_stalled)
{
	struct iommu_hwpt_alloc *cmd = buffer;
	struct vm vm;

	ASSERT_EQ(0, vm_open(&vm, self->iommu_id));
	*cmd = (struct iommu_hwpt_alloc){
		.size = sizeof(*cmd),
		.dev_id = vm.device_id,
		.pt_id = vm.ioas_id,
	};
	if (stalled(_metadata, self, &vm, IOMMU_HWPT_ALLOC, true, 0))
		SKIP(return, NEEDS_UFFD);
	EXPECT_EQ(-ENODEV,
		  _test_cmd_set_dirty_tracking(vm.fd, cmd->out_hwpt_id, false));
	ASSERT_EQ(0, vm_destroy(&vm, cmd->out_hwpt_id));
	ASSERT_EQ(0, close(vm.fd));
}

/* While the driver's data is read nothing is held, and nothing found yet */
TEST_F(iommufd_lifetime, L4_hwpt_alloc_stalled_reading)
{
	struct iommu_hwpt_alloc cmd = {
		.size = sizeof(cmd),
		.data_type = IOMMU_HWPT_DATA_SELFTEST,
		.data_len = sizeof(struct iommu_hwpt_selftest),
		.data_uptr = (uintptr_t)buffer,
	};
	struct call call = CALL(ioctl, -1, IOMMU_HWPT_ALLOC, .arg = &cmd);
	struct vm vm;
	int uffd;

	ASSERT_EQ(0, vm_open(&vm, self->iommu_id));
	call.fd = vm.fd;
	cmd.dev_id = vm.device_id;
	cmd.pt_id = vm.parent_id;
	uffd = STALL(&call, buffer, MISSING);
	unregister();
	EXPECT_EQ(0, call_is_done(&call));
	ASSERT_EQ(0, uffd_zero(uffd, buffer));
	EXPECT_EQ(-ENODEV, call_end(&call));
	ASSERT_EQ(0, close(uffd));
	ASSERT_EQ(0, close(vm.fd));
}

TEST_F(iommufd_lifetime, L4_iova_ranges_stalled)
{
	struct iommu_ioas_iova_ranges *cmd = buffer;
	struct vm vm;

	ASSERT_EQ(0, vm_open(&vm, self->iommu_id));
	*cmd = (struct iommu_ioas_iova_ranges){
		.size = sizeof(*cmd),
		.ioas_id = vm.ioas_id,
		.num_iovas = 10,
		.allowed_iovas = (uintptr_t)(cmd + 1),
	};
	if (stalled(_metadata, self, &vm, IOMMU_IOAS_IOVA_RANGES, true, 0))
		SKIP(return, NEEDS_UFFD);
	EXPECT_EQ(1, cmd->num_iovas);
	ASSERT_EQ(0, close(vm.fd));
}

static int call_read_fault(int fd, uint32_t id, struct call *call)
{
	call->out_id = read(fd, buffer, sizeof(struct iommu_hwpt_pgfault));
	return (int)call->out_id < 0 ? -1 : 0;
}

static int call_write_fault(int fd, uint32_t id, struct call *call)
{
	return write(fd, buffer, sizeof(struct iommu_hwpt_page_response)) < 0 ?
		       -1 : 0;
}

/* Nor is one that reads or answers page faults */
static void fault_stalled(struct __test_metadata *_metadata,
			  struct _test_data_iommufd_lifetime *self, bool write)
{
	struct call call = {
		.fn = write ? call_write_fault : call_read_fault,
	};
	uint32_t fault_id, fault_fd, hwpt_id;
	struct vm vm;
	int uffd;

	ASSERT_EQ(0, vm_open(&vm, self->iommu_id));
	ASSERT_EQ(0, _test_ioctl_fault_alloc(vm.fd, &fault_id, &fault_fd));
	ASSERT_EQ(0, vm_nested_fault(&vm, vm.parent_id, fault_id, &hwpt_id));
	ASSERT_EQ(0, vm_attach(&vm, hwpt_id));
	ASSERT_EQ(0, trigger_iopf(vm.fd, vm.device_id, 1));
	call.fd = fault_fd;
	uffd = STALL(&call, buffer, MISSING);
	unregister();
	EXPECT_EQ(0, call_is_done(&call));
	ASSERT_EQ(0, uffd_zero(uffd, buffer));
	/* The fault has been answered meanwhile */
	EXPECT_EQ(write ? -EINVAL : 0, call_end(&call));
	EXPECT_EQ(0, call.out_id);
	ASSERT_EQ(0, close(uffd));
	ASSERT_EQ(0, close(fault_fd));
	ASSERT_EQ(0, close(vm.fd));
}

TEST_F(iommufd_lifetime, L4_fault_read_stalled)
{
	fault_stalled(_metadata, self, false);
}

TEST_F(iommufd_lifetime, L4_fault_write_stalled)
{
	fault_stalled(_metadata, self, true);
}

/* Answers that have no place in memory, or not all of them */
TEST_F(iommufd_lifetime, L12_bad_buffers)
{
	const size_t size = sizeof(struct iommu_hwpt_pgfault);
	void *end = buffer + PAGE_SIZE;
	struct iommu_hw_info info = {
		.size = sizeof(info),
		.data_uptr = (uintptr_t)end,
		.data_len = PAGE_SIZE,
	};
	struct iommu_ioas_iova_ranges ranges = {
		.size = sizeof(ranges),
		.num_iovas = 1,
		.allowed_iovas = (uintptr_t)end,
	};
	uint32_t fault_id, fault_fd, hwpt_id;
	struct vm vm;

	ASSERT_EQ(0, mprotect(end, PAGE_SIZE, PROT_NONE));
	ASSERT_EQ(0, vm_open(&vm, self->iommu_id));

	info.dev_id = vm.device_id;
	EXPECT_ERRNO(EFAULT, ioctl(vm.fd, IOMMU_GET_HW_INFO, &info));
	/* The data fits, but not the zeroes after it */
	info.data_uptr -= sizeof(struct iommu_test_hw_info);
	EXPECT_ERRNO(EFAULT, ioctl(vm.fd, IOMMU_GET_HW_INFO, &info));
	ranges.ioas_id = vm.ioas_id;
	EXPECT_ERRNO(EFAULT, ioctl(vm.fd, IOMMU_IOAS_IOVA_RANGES, &ranges));

	ASSERT_EQ(0, _test_ioctl_fault_alloc(vm.fd, &fault_id, &fault_fd));
	ASSERT_EQ(0, vm_nested_fault(&vm, vm.parent_id, fault_id, &hwpt_id));
	ASSERT_EQ(0, vm_attach(&vm, hwpt_id));
	ASSERT_EQ(0, trigger_iopf(vm.fd, vm.device_id, 1));
	ASSERT_EQ(0, trigger_iopf(vm.fd, vm.device_id, 2));
	EXPECT_ERRNO(EFAULT, read(fault_fd, end, size));
	EXPECT_ERRNO(EFAULT, read(fault_fd, end - 1, size));
	/* The first one is not read twice if it is the second that has no place */
	EXPECT_EQ(size, read(fault_fd, end - size, 2 * size));
	EXPECT_EQ(1, ((struct iommu_hwpt_pgfault *)(end - size))->grpid);
	EXPECT_EQ(size, read(fault_fd, end - size, size));
	EXPECT_EQ(2, ((struct iommu_hwpt_pgfault *)(end - size))->grpid);
	ASSERT_EQ(0, close(fault_fd));
	ASSERT_EQ(0, close(vm.fd));
}

TEST_F(iommufd_lifetime, L12_hwpt_alloc_fails_after_revocation)
{
	struct iommu_hwpt_alloc *cmd = buffer;
	struct vm vm;

	ASSERT_EQ(0, vm_open(&vm, self->iommu_id));
	*cmd = (struct iommu_hwpt_alloc){
		.size = sizeof(*cmd),
		.dev_id = vm.device_id,
		.pt_id = vm.ioas_id,
	};
	if (stalled(_metadata, self, &vm, IOMMU_HWPT_ALLOC, false, -EFAULT))
		SKIP(return, NEEDS_UFFD);
	ASSERT_EQ(0, vm_unplug(&vm));
	ASSERT_EQ(0, vm_destroy(&vm, vm.parent_id));
	ASSERT_EQ(0, vm_destroy(&vm, vm.ioas_id));
	ASSERT_EQ(0, close(vm.fd));
}

TEST_HARNESS_MAIN
