// SPDX-License-Identifier: GPL-2.0-only
/*
 * A physical IOMMU goes away under devices that are bound and attached: who still
 * has an ID gets ENODEV for it, what has lost its IOMMU can be detached and unbound
 * as ever, and unregister waits for kernel code, never for user space.
 *
 * The order of events is forced by parking calls in the mock driver. What the
 * kernel itself sees (a use after the free, a callback that runs twice, a count
 * that is wrong) it tells with a WARN or a report of KASAN.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <glob.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <linux/vfio.h>

#define __EXPORTED_HEADERS__
#include "iommufd_race.h"

static __attribute__((constructor)) void setup_sizes(void)
{
	PAGE_SIZE = sysconf(_SC_PAGE_SIZE);
	BUFFER_SIZE = PAGE_SIZE * 16;
	buffer = mmap(NULL, BUFFER_SIZE, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert(buffer != MAP_FAILED);
}

static int call_vm_plug(int fd, uint32_t id, struct call *call)
{
	return vm_plug(call->vm, id);
}

static int get_hw_info(int fd, uint32_t device_id)
{
	return _test_cmd_get_hw_info(fd, device_id, IOMMU_HW_INFO_TYPE_DEFAULT,
				     NULL, 0, NULL, NULL);
}

FIXTURE(iommufd_revoke)
{
	/* For test commands */
	int fd;
	uint32_t iommu_id;
	struct call unreg;
};

FIXTURE_SETUP(iommufd_revoke)
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

FIXTURE_TEARDOWN(iommufd_revoke)
{
	EXPECT_EQ(0, unpark_all(self->fd));
	EXPECT_EQ(0, iommu_end(self->fd, self->iommu_id));
	EXPECT_EQ(0, close(self->fd));
}

#define unregister() \
	ASSERT_EQ(0, _test_cmd_iommu_unregister(self->fd, self->iommu_id))

/* Devices that are bound to an iommufd */

FIXTURE(iommufd_revoke_bound)
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

FIXTURE_VARIANT(iommufd_revoke_bound)
{
	bool hwpt;
	bool nested;
	bool fault;
	bool group;
	/* The other one of the group is bound, but not attached */
	bool bind_only;
	/* Two PASIDs of it are attached as well */
	bool pasid;
};

FIXTURE_VARIANT_ADD(iommufd_revoke_bound, ioas)
{
};

FIXTURE_VARIANT_ADD(iommufd_revoke_bound, hwpt)
{
	.hwpt = true,
};

FIXTURE_VARIANT_ADD(iommufd_revoke_bound, nested)
{
	.nested = true,
};

FIXTURE_VARIANT_ADD(iommufd_revoke_bound, fault)
{
	.nested = true,
	.fault = true,
};

FIXTURE_VARIANT_ADD(iommufd_revoke_bound, group)
{
	.group = true,
};

FIXTURE_VARIANT_ADD(iommufd_revoke_bound, group_bound)
{
	.group = true,
	.bind_only = true,
};

FIXTURE_VARIANT_ADD(iommufd_revoke_bound, pasid)
{
	.pasid = true,
};

#define FIRST_PASID 100
#define NUM_PASIDS 2

/* As a driver does before it unbinds the device */
static int detach_pasids(const struct vm *vm)
{
	uint32_t pasid;
	int ret = 0;

	for (pasid = FIRST_PASID; pasid != FIRST_PASID + NUM_PASIDS; pasid++)
		ret |= _test_cmd_pasid_detach(vm->fd, vm->stdev_id, pasid);
	return ret;
}

static int call_unplug(int fd, uint32_t id, struct call *call)
{
	return detach_pasids(call->vm) || vm_unplug(call->vm) ? -1 : 0;
}

FIXTURE_SETUP(iommufd_revoke_bound)
{
	struct iommu_hwpt_selftest data = { .iotlb = IOMMU_TEST_IOTLB_DEFAULT };
	uint32_t flags = 0;
	uint32_t pasid;

	self->fd = open("/dev/iommu", O_RDWR);
	ASSERT_NE(-1, self->fd);
	ASSERT_EQ(0, unpark_all(self->fd));
	ASSERT_EQ(0, _test_cmd_iommu_register(self->fd,
					      variant->group ?
						      MOCK_IOMMU_ONE_GROUP : 0,
					      &self->iommu_id));
	ASSERT_EQ(0, vm_open_parent(&self->vm, self->iommu_id));
	if (variant->pasid) {
		flags = MOCK_FLAGS_DEVICE_BIND_ONLY | MOCK_FLAGS_DEVICE_PASID;
		ASSERT_EQ(0, vm_unplug(&self->vm));
		ASSERT_EQ(0, _test_cmd_mock_domain_iommu(self->vm.fd, 0,
							 self->iommu_id, flags,
							 &self->vm.stdev_id,
							 NULL,
							 &self->vm.device_id));
		ASSERT_EQ(0, _test_cmd_hwpt_alloc(self->vm.fd,
						  self->vm.device_id,
						  self->vm.ioas_id, 0,
						  IOMMU_HWPT_ALLOC_PASID,
						  &self->hwpt_id,
						  IOMMU_HWPT_DATA_NONE, NULL,
						  0));
	}
	self->unreg = (struct call){
		.fn = call_unregister,
		.fd = self->fd,
		.id = self->iommu_id,
	};
	self->unplug = (struct call){
		.fn = call_unplug,
		.vm = &self->vm,
	};

	if (variant->hwpt)
		self->hwpt_id = self->vm.parent_id;
	if (variant->fault) {
		ASSERT_EQ(0, _test_ioctl_fault_alloc(self->vm.fd,
						     &self->fault_id,
						     &self->fault_fd));
		flags = IOMMU_HWPT_FAULT_ID_VALID;
	}
	if (variant->nested)
		ASSERT_EQ(0, _test_cmd_hwpt_alloc(self->vm.fd,
						  self->vm.device_id,
						  self->vm.parent_id,
						  self->fault_id, flags,
						  &self->hwpt_id,
						  IOMMU_HWPT_DATA_SELFTEST,
						  &data, sizeof(data)));
	if (self->hwpt_id)
		ASSERT_EQ(0, _test_cmd_mock_domain_replace(self->vm.fd,
							   self->vm.stdev_id,
							   self->hwpt_id,
							   NULL));
	for (pasid = FIRST_PASID;
	     variant->pasid && pasid != FIRST_PASID + NUM_PASIDS; pasid++)
		ASSERT_EQ(0, _test_cmd_pasid_attach(self->vm.fd,
						    self->vm.stdev_id, pasid,
						    self->hwpt_id));
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

FIXTURE_TEARDOWN(iommufd_revoke_bound)
{
	EXPECT_EQ(0, unpark_all(self->fd));
	/* Those that the test has left */
	if (variant->pasid && self->vm.fd != -1)
		detach_pasids(&self->vm);
	EXPECT_EQ(0, iommu_end(self->fd, self->iommu_id));
	if (self->fault_fd)
		EXPECT_EQ(0, close(self->fault_fd));
	if (self->vm.fd != -1)
		EXPECT_EQ(0, close(self->vm.fd));
	EXPECT_EQ(0, close(self->fd));
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

/* ENODEV for everything but what ends it, and that works */
TEST_F(iommufd_revoke_bound, iommu_goes)
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
	EXPECT_ERRNO(ENODEV, get_hw_info(vm->fd, vm->device_id));
	EXPECT_ERRNO(ENODEV,
		     _test_cmd_mock_domain_replace(vm->fd, vm->stdev_id,
						   vm->ioas_id, NULL));
	EXPECT_ERRNO(ENODEV,
		     _test_cmd_hwpt_alloc(vm->fd, vm->device_id, vm->ioas_id, 0,
					  0, &id, IOMMU_HWPT_DATA_NONE, NULL,
					  0));
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
	if (variant->pasid) {
		EXPECT_ERRNO(ENODEV,
			     _test_cmd_pasid_attach(vm->fd, vm->stdev_id, 1,
						    vm->ioas_id));
		EXPECT_ERRNO(ENODEV, _test_cmd_pasid_replace(vm->fd,
							     vm->stdev_id,
							     FIRST_PASID,
							     vm->ioas_id));
	}
	/* What it was attached to can be destroyed, but not the device */
	if (self->hwpt_id)
		EXPECT_EQ(0, _test_ioctl_destroy(vm->fd, self->hwpt_id));
	EXPECT_ERRNO(EBUSY, _test_ioctl_destroy(vm->fd, vm->device_id));
	if (variant->group) {
		EXPECT_ERRNO(ENODEV,
			     get_hw_info(vm->fd, self->other.device_id));
		EXPECT_EQ(0, vm_unplug(&self->other));
	}
	EXPECT_EQ(0, detach_pasids(vm));
	EXPECT_EQ(0, vm_unplug(vm));
	EXPECT_ERRNO(ENODEV, vm_plug(vm, self->iommu_id));

	/* Nothing is in use */
	if (!variant->hwpt)
		EXPECT_EQ(0, _test_ioctl_destroy(vm->fd, vm->parent_id));
	EXPECT_EQ(0, _test_ioctl_destroy(vm->fd, vm->ioas_id));
	if (variant->fault)
		EXPECT_ERRNO(EBUSY,
			     _test_ioctl_destroy(vm->fd, self->fault_id));
}

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

/* Closed without a word */
TEST_F(iommufd_revoke_bound, close_after_unregister)
{
	int devices;

	if (variant->fault)
		ASSERT_EQ(0, trigger_iopf(self->vm.fd, self->vm.device_id, 1));
	devices = count_devices();
	ASSERT_LT(0, devices);
	unregister();
	EXPECT_EQ(0, detach_pasids(&self->vm));
	/* They are still plugged in, and go with the last one who has the file */
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
TEST_F(iommufd_revoke_bound, unplug_during_revocation)
{
	park(BLOCK, ARM);
	call_start(&self->unreg);
	park(BLOCK, WAIT);
	call_start(&self->unplug);
	EXPECT_WAITING(&self->unplug);
	EXPECT_WAITING(&self->unreg);
	park(BLOCK, RELEASE);
	EXPECT_EQ(0, call_end(&self->unplug));
	EXPECT_EQ(0, call_end(&self->unreg));
}

/* The other way round. The last one of a group detaches. */
TEST_F(iommufd_revoke_bound, unregister_during_unplug)
{
	if (variant->group)
		ASSERT_EQ(0, vm_unplug(&self->other));
	park(BLOCK, ARM);
	call_start(&self->unplug);
	park(BLOCK, WAIT);
	call_start(&self->unreg);
	EXPECT_WAITING(&self->unplug);
	EXPECT_WAITING(&self->unreg);
	park(BLOCK, RELEASE);
	EXPECT_EQ(0, call_end(&self->unplug));
	EXPECT_EQ(0, call_end(&self->unreg));
}

TEST_F(iommufd_revoke_bound, close_during_revocation)
{
	struct call closing = { .fn = call_close, .fd = self->vm.fd };

	if (variant->pasid)
		SKIP(return, "a driver detaches PASIDs before the file is closed");
	/* It has a reference on the iommufd */
	if (variant->fault) {
		ASSERT_EQ(0, close(self->fault_fd));
		self->fault_fd = 0;
	}
	park(BLOCK, ARM);
	call_start(&self->unreg);
	park(BLOCK, WAIT);
	call_start(&closing);
	wait_for_close(_metadata, self->vm.fd);
	EXPECT_WAITING(&closing);
	EXPECT_WAITING(&self->unreg);
	park(BLOCK, RELEASE);
	EXPECT_EQ(0, call_end(&closing));
	EXPECT_EQ(0, call_end(&self->unreg));
}

/* What cannot be bound is not held */
TEST_F(iommufd_revoke, bind_not_coherent)
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
TEST_F(iommufd_revoke, unplug_newest_during_revocation)
{
	struct call unplug = { .fn = call_destroy };
	struct vm vm = {};
	struct vm newest;

	ASSERT_EQ(0, vm_open_parent(&vm, self->iommu_id));
	newest = vm;
	ASSERT_EQ(0, vm_plug(&newest, self->iommu_id));
	unplug.fd = vm.fd;
	unplug.id = newest.stdev_id;
	park(BLOCK, ARM);
	call_start(&self->unreg);
	park(BLOCK, WAIT);
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
TEST_F(iommufd_revoke, unregister_during_bind)
{
	struct vm vm = { .fd = self->fd };
	struct call plug = {
		.fn = call_vm_plug,
		.id = self->iommu_id,
		.vm = &vm,
	};

	ASSERT_EQ(0, _test_ioctl_ioas_alloc(vm.fd, &vm.ioas_id));
	park(ATTACH, ARM);
	call_start(&plug);
	park(ATTACH, WAIT);
	call_start(&self->unreg);
	EXPECT_WAITING(&plug);
	EXPECT_WAITING(&self->unreg);
	park(ATTACH, RELEASE);
	EXPECT_EQ(-ENODEV, call_end(&plug));
	EXPECT_EQ(0, call_end(&self->unreg));
}

/* The bind has ended, so what it has bound and attached is taken away */
TEST_F(iommufd_revoke, unregister_after_bind)
{
	struct vm vm = { .fd = self->fd };
	struct call plug = {
		.fn = call_vm_plug,
		.id = self->iommu_id,
		.vm = &vm,
	};

	ASSERT_EQ(0, _test_ioctl_ioas_alloc(vm.fd, &vm.ioas_id));
	park(ATTACH, ARM);
	call_start(&plug);
	park(ATTACH, WAIT);
	park(ATTACH, RELEASE);
	ASSERT_EQ(0, call_end(&plug));
	EXPECT_EQ(0, get_hw_info(vm.fd, vm.device_id));
	unregister();
	EXPECT_ERRNO(ENODEV, get_hw_info(vm.fd, vm.device_id));
	EXPECT_ERRNO(ENODEV, vm_plug(&vm, self->iommu_id));
	ASSERT_EQ(0, vm_unplug(&vm));
}

TEST_F_TIMEOUT(iommufd_revoke, bind_and_unplug_race_unregister, 120)
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
			ASSERT_EQ(0, vm_open_parent(&vm[j], iommu_id));
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

static int call_hw_info(int fd, uint32_t id, struct call *call)
{
	return get_hw_info(fd, id);
}

static int md_check_map(int fd, uint32_t hwpt_id, uint64_t iova, size_t length)
{
	struct iommu_test_cmd cmd = {
		.size = sizeof(cmd),
		.op = IOMMU_TEST_OP_MD_CHECK_MAP,
		.id = hwpt_id,
		.check_map = {
			.iova = iova,
			.length = length,
			.uptr = (uintptr_t)buffer,
		},
	};

	return ioctl(fd, IOMMU_TEST_CMD, &cmd);
}

static int map_buffer(int fd, uint32_t ioas_id, __u64 *iova)
{
	return _test_ioctl_ioas_map(fd, ioas_id, buffer, BUFFER_SIZE, iova,
				    IOMMU_IOAS_MAP_WRITEABLE |
					    IOMMU_IOAS_MAP_READABLE);
}

/* The device that it was made for has been gone for long */
TEST_F(iommufd_revoke, revoked_hwpt_is_an_id)
{
	struct iommu_hwpt_selftest data = { .iotlb = IOMMU_TEST_IOTLB_DEFAULT };
	struct iommu_hwpt_invalidate_selftest inv = {};
	uint32_t nested_id, dirty_id, id, num = 1;
	struct vm vm;

	ASSERT_EQ(0, vm_open_parent(&vm, self->iommu_id));
	ASSERT_EQ(0, _test_cmd_hwpt_alloc(vm.fd, vm.device_id, vm.parent_id, 0,
					  0, &nested_id,
					  IOMMU_HWPT_DATA_SELFTEST, &data,
					  sizeof(data)));
	ASSERT_EQ(0, _test_cmd_hwpt_alloc(vm.fd, vm.device_id, vm.ioas_id, 0,
					  IOMMU_HWPT_ALLOC_DIRTY_TRACKING,
					  &dirty_id, IOMMU_HWPT_DATA_NONE, NULL,
					  0));
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
	EXPECT_ERRNO(ENODEV, _test_cmd_mock_domain_replace(vm.fd, vm.stdev_id,
							   nested_id, NULL));
	EXPECT_ERRNO(ENODEV, _test_cmd_mock_domain_replace(vm.fd, vm.stdev_id,
							   dirty_id, NULL));
	EXPECT_ERRNO(ENODEV,
		     _test_cmd_hwpt_alloc(vm.fd, vm.device_id, vm.parent_id, 0,
					  0, &id, IOMMU_HWPT_DATA_SELFTEST,
					  &data, sizeof(data)));

	/* The parent is not in use, nor is the IOAS, and the IDs are not reused */
	ASSERT_EQ(0, _test_ioctl_ioas_alloc(vm.fd, &id));
	EXPECT_NE(nested_id, id);
	ASSERT_EQ(0, _test_ioctl_destroy(vm.fd, vm.parent_id));
	ASSERT_EQ(0, vm_unplug(&vm));
	ASSERT_EQ(0, _test_ioctl_destroy(vm.fd, vm.ioas_id));
	ASSERT_EQ(0, _test_ioctl_destroy(vm.fd, nested_id));
	EXPECT_ERRNO(ENOENT, _test_ioctl_destroy(vm.fd, nested_id));
	/* One is left for close */
	ASSERT_EQ(0, close(vm.fd));
}

/* Only the IDs are in the way of the memory being given to another one */
TEST_F(iommufd_revoke, same_address)
{
	struct iommu_hwpt_selftest data = { .iotlb = IOMMU_TEST_IOTLB_DEFAULT };
	uint32_t nested_id, iommu_id;
	struct vm vm;

	ASSERT_EQ(0, _test_cmd_iommu_register(self->fd, MOCK_IOMMU_SAME_ADDRESS,
					      &iommu_id));
	ASSERT_EQ(0, vm_open_parent(&vm, iommu_id));
	ASSERT_EQ(0, _test_cmd_hwpt_alloc(vm.fd, vm.device_id, vm.parent_id, 0,
					  0, &nested_id,
					  IOMMU_HWPT_DATA_SELFTEST, &data,
					  sizeof(data)));
	ASSERT_EQ(0, vm_unplug(&vm));
	ASSERT_EQ(0, _test_cmd_iommu_unregister(self->fd, iommu_id));

	ASSERT_EQ(0, _test_cmd_iommu_register(self->fd, MOCK_IOMMU_SAME_ADDRESS,
					      &iommu_id));
	ASSERT_EQ(0, vm_plug(&vm, iommu_id));
	EXPECT_ERRNO(ENODEV, _test_cmd_mock_domain_replace(vm.fd, vm.stdev_id,
							   nested_id, NULL));
	EXPECT_ERRNO(ENODEV,
		     _test_cmd_mock_domain_replace(vm.fd, vm.stdev_id,
						   vm.parent_id, NULL));
	ASSERT_EQ(0, close(vm.fd));
	ASSERT_EQ(0, _test_cmd_iommu_unregister(self->fd, iommu_id));
}

/* Without sharing, a HWPT is for one instance */
TEST_F(iommufd_revoke, other_instance_is_refused)
{
	struct iommu_hwpt_selftest data = { .iotlb = IOMMU_TEST_IOTLB_DEFAULT };
	uint32_t stdev_id, device_id, hwpt_id, id;
	struct vm vm;

	ASSERT_EQ(0, vm_open_parent(&vm, self->iommu_id));
	ASSERT_EQ(0, _test_cmd_mock_domain_iommu(vm.fd, vm.ioas_id, 0, 0,
						 &stdev_id, &hwpt_id,
						 &device_id));
	EXPECT_ERRNO(EINVAL, _test_cmd_mock_domain_replace(vm.fd, stdev_id,
							   vm.parent_id, NULL));
	EXPECT_ERRNO(EINVAL,
		     _test_cmd_hwpt_alloc(vm.fd, device_id, vm.parent_id, 0, 0,
					  &id, IOMMU_HWPT_DATA_SELFTEST, &data,
					  sizeof(data)));
	EXPECT_ERRNO(EINVAL,
		     _test_cmd_mock_domain_replace(vm.fd, vm.stdev_id, hwpt_id,
						   NULL));
	ASSERT_EQ(0, close(vm.fd));
}

/* The maps are the IOAS's own, and another instance can have them */
TEST_F(iommufd_revoke, ioas_stays)
{
	struct iommu_test_cmd access_cmd = {
		.size = sizeof(access_cmd),
		.op = IOMMU_TEST_OP_ACCESS_RW,
	};
	uint32_t hwpt_id, access_id, iommu_id, stdev_id;
	__u64 iova, iova2 = MOCK_APERTURE_START + BUFFER_SIZE * 2;
	struct vm vm;
	char c = 0;

	ASSERT_EQ(0, vm_open_parent(&vm, self->iommu_id));
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
	EXPECT_EQ(0, md_check_map(vm.fd, hwpt_id, iova, BUFFER_SIZE));
	EXPECT_EQ(0, md_check_map(vm.fd, hwpt_id, iova2, BUFFER_SIZE));
	ASSERT_EQ(0, _test_ioctl_ioas_unmap(vm.fd, vm.ioas_id, iova,
					    BUFFER_SIZE, NULL));
	ASSERT_EQ(0, _test_cmd_iommu_unregister(self->fd, iommu_id));
	ASSERT_EQ(0, _test_ioctl_ioas_unmap(vm.fd, vm.ioas_id, iova2,
					    BUFFER_SIZE, NULL));
	ASSERT_EQ(0, close(access_id));
	ASSERT_EQ(0, close(vm.fd));
}

TEST_F(iommufd_revoke, vfio_compat)
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

	ASSERT_EQ(0, vm_open_parent(&vm, self->iommu_id));
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
TEST_F(iommufd_revoke, fault_queue_goes_on)
{
	struct iommu_hwpt_selftest data = { .iotlb = IOMMU_TEST_IOTLB_DEFAULT };
	uint32_t fault_id, fault_fd, hwpt_id, parent_id;
	struct vm vm;
	int i;

	ASSERT_EQ(0, vm_open_parent(&vm, self->iommu_id));
	ASSERT_EQ(0, _test_ioctl_fault_alloc(vm.fd, &fault_id, &fault_fd));
	for (i = 0; i != 2; i++) {
		ASSERT_EQ(0, _test_cmd_hwpt_alloc(vm.fd, vm.device_id,
						  vm.ioas_id, 0,
						  IOMMU_HWPT_ALLOC_NEST_PARENT,
						  &parent_id,
						  IOMMU_HWPT_DATA_NONE, NULL,
						  0));
		ASSERT_EQ(0, _test_cmd_hwpt_alloc(vm.fd, vm.device_id,
						  parent_id, fault_id,
						  IOMMU_HWPT_FAULT_ID_VALID,
						  &hwpt_id,
						  IOMMU_HWPT_DATA_SELFTEST,
						  &data, sizeof(data)));
		ASSERT_EQ(0, _test_cmd_mock_domain_replace(vm.fd, vm.stdev_id,
							   hwpt_id, NULL));
		ASSERT_EQ(0, _test_cmd_trigger_iopf(vm.fd, vm.device_id, 0x1,
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
TEST_F(iommufd_revoke, shared_during_unregister)
{
	struct iommu_hwpt_selftest data = { .iotlb = IOMMU_TEST_IOTLB_DEFAULT };
	struct call hw_info = { .fn = call_hw_info };
	uint32_t iommu_id[2], stdev_id, device_id, id = 0;
	struct vm vm;
	int i;

	for (i = 0; i != 2; i++)
		ASSERT_EQ(0, _test_cmd_iommu_register(self->fd,
						      MOCK_IOMMU_SHARED_DOMAINS,
						      &iommu_id[i]));
	ASSERT_EQ(0, vm_open_parent(&vm, iommu_id[0]));
	ASSERT_EQ(0, _test_cmd_mock_domain_iommu(vm.fd, vm.ioas_id, iommu_id[1],
						 0, &stdev_id, NULL,
						 &device_id));
	hw_info.fd = vm.fd;
	hw_info.id = vm.device_id;
	park(HW_INFO, ARM);
	call_start(&hw_info);
	park(HW_INFO, WAIT);
	self->unreg.id = iommu_id[0];
	call_start(&self->unreg);
	EXPECT_WAITING(&self->unreg);
	EXPECT_EQ(0, _test_cmd_hwpt_alloc(vm.fd, device_id, vm.parent_id, 0, 0,
					  &id, IOMMU_HWPT_DATA_SELFTEST, &data,
					  sizeof(data)));
	park(HW_INFO, RELEASE);
	EXPECT_EQ(0, call_end(&hw_info));
	EXPECT_EQ(0, call_end(&self->unreg));
	EXPECT_EQ(0, _test_cmd_mock_domain_replace(vm.fd, stdev_id, id, NULL));
	ASSERT_EQ(0, _test_cmd_iommu_unregister(self->fd, iommu_id[1]));
	ASSERT_EQ(0, close(vm.fd));
}

static void set_hung_task_timeout(const char *value, char *old, size_t old_len)
{
	int fd = open("/proc/sys/kernel/hung_task_timeout_secs", O_RDWR);
	ssize_t len;

	if (fd < 0)
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
TEST_F_TIMEOUT(iommufd_revoke, unbind_waits_for_users, 180)
{
	struct call hw_info = { .fn = call_hw_info };
	struct call unplug = { .fn = call_destroy };
	char timeout[32] = "120";
	struct vm vm;

	ASSERT_EQ(0, vm_open(&vm, self->iommu_id));
	hw_info.fd = vm.fd;
	hw_info.id = vm.device_id;
	unplug.fd = vm.fd;
	unplug.id = vm.stdev_id;
	/* What the test wants to see is what a hung task looks like */
	set_hung_task_timeout("0", timeout, sizeof(timeout));
	park(HW_INFO, ARM);
	call_start(&hw_info);
	park(HW_INFO, WAIT);
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
TEST_F(iommufd_revoke, unbind_ends_look_ups)
{
	struct call hw_info = { .fn = call_hw_info };
	struct call unplug = { .fn = call_destroy };
	struct vm vm;
	int error;

	ASSERT_EQ(0, vm_open(&vm, self->iommu_id));
	hw_info.fd = vm.fd;
	hw_info.id = vm.device_id;
	unplug.fd = vm.fd;
	unplug.id = vm.stdev_id;
	park(HW_INFO, ARM);
	call_start(&hw_info);
	park(HW_INFO, WAIT);
	call_start(&unplug);
	EXPECT_WAITING(&unplug);
	error = get_hw_info(vm.fd, vm.device_id) ? errno : 0;
	park(HW_INFO, RELEASE);
	EXPECT_EQ(0, call_end(&hw_info));
	EXPECT_EQ(0, call_end(&unplug));
	EXPECT_EQ(ENOENT, error);
	ASSERT_EQ(0, close(vm.fd));
}

/* A domain that is shared stays until the last of the instances goes */
TEST_F(iommufd_revoke, shared)
{
	struct iommu_hwpt_selftest data = { .iotlb = IOMMU_TEST_IOTLB_DEFAULT };
	uint32_t iommu_id[3], nested_id, hwpt_id, hwpt_id2, id;
	struct vm vm, vm2;
	__u64 iova;
	int i;

	for (i = 0; i != 3; i++)
		ASSERT_EQ(0, _test_cmd_iommu_register(self->fd,
						      MOCK_IOMMU_SHARED_DOMAINS,
						      &iommu_id[i]));
	ASSERT_EQ(0, vm_open_parent(&vm, iommu_id[0]));
	ASSERT_EQ(0, map_buffer(vm.fd, vm.ioas_id, &iova));
	ASSERT_EQ(0, _test_cmd_hwpt_alloc(vm.fd, vm.device_id, vm.parent_id, 0,
					  0, &nested_id,
					  IOMMU_HWPT_DATA_SELFTEST, &data,
					  sizeof(data)));
	vm2 = vm;
	ASSERT_EQ(0, _test_cmd_mock_domain_iommu(vm.fd, vm.ioas_id, iommu_id[1],
						 0, &vm2.stdev_id, &hwpt_id,
						 &vm2.device_id));
	/* It got what the first device has */
	ASSERT_EQ(0, _test_cmd_mock_domain_iommu(vm.fd, vm.ioas_id, iommu_id[0],
						 0, &id, &hwpt_id2, NULL));
	EXPECT_EQ(hwpt_id, hwpt_id2);

	ASSERT_EQ(0, _test_cmd_iommu_unregister(self->fd, iommu_id[0]));
	EXPECT_ERRNO(ENODEV, get_hw_info(vm.fd, vm.device_id));
	EXPECT_EQ(0, md_check_map(vm.fd, hwpt_id, iova, BUFFER_SIZE));
	EXPECT_EQ(0, md_check_map(vm.fd, vm.parent_id, iova, BUFFER_SIZE));
	ASSERT_EQ(0, _test_cmd_mock_domain_replace(vm.fd, vm2.stdev_id,
						   nested_id, NULL));

	ASSERT_EQ(0, _test_cmd_iommu_unregister(self->fd, iommu_id[1]));
	EXPECT_EQ(0, md_check_map(vm.fd, vm.parent_id, iova, BUFFER_SIZE));

	/* Those that do not share are no help */
	ASSERT_EQ(0, _test_cmd_iommu_unregister(self->fd, iommu_id[2]));
	EXPECT_ERRNO(ENODEV,
		     md_check_map(vm.fd, vm.parent_id, iova, BUFFER_SIZE));
	EXPECT_ERRNO(ENODEV, _test_cmd_mock_domain_replace(vm.fd, vm2.stdev_id,
							   nested_id, NULL));
	ASSERT_EQ(0, close(vm.fd));
}

/* The domain is being freed when somebody else would do it */

static void free_parked(struct __test_metadata *_metadata,
			struct _test_data_iommufd_revoke *self,
			struct call *first, struct call *second)
{
	ASSERT_EQ(0, _test_cmd_park(self->fd, MOCK_PARK_DOMAIN_FREE,
				    MOCK_PARK_ARM));
	call_start(first);
	ASSERT_EQ(0, _test_cmd_park(self->fd, MOCK_PARK_DOMAIN_FREE,
				    MOCK_PARK_WAIT));
	call_start(second);
	EXPECT_WAITING(first);
	EXPECT_WAITING(second);
	ASSERT_EQ(0, _test_cmd_park(self->fd, MOCK_PARK_DOMAIN_FREE,
				    MOCK_PARK_RELEASE));
	EXPECT_EQ(0, call_end(first));
	EXPECT_EQ(0, call_end(second));
}

TEST_F(iommufd_revoke, free_by_destroy)
{
	struct call destroy = { .fn = call_destroy };
	struct vm vm;

	ASSERT_EQ(0, vm_open_parent(&vm, self->iommu_id));
	destroy.fd = vm.fd;
	destroy.id = vm.parent_id;
	free_parked(_metadata, self, &destroy, &self->unreg);
	ASSERT_EQ(0, close(vm.fd));
}

/* The parent is not revoked while the nested one that is on it is destroyed */
TEST_F(iommufd_revoke, free_nested_by_destroy)
{
	struct iommu_hwpt_selftest data = { .iotlb = IOMMU_TEST_IOTLB_DEFAULT };
	struct call destroy = { .fn = call_destroy };
	struct vm vm;

	ASSERT_EQ(0, vm_open_parent(&vm, self->iommu_id));
	ASSERT_EQ(0, _test_cmd_hwpt_alloc(vm.fd, vm.device_id, vm.parent_id, 0,
					  0, &destroy.id,
					  IOMMU_HWPT_DATA_SELFTEST, &data,
					  sizeof(data)));
	destroy.fd = vm.fd;
	free_parked(_metadata, self, &destroy, &self->unreg);
	ASSERT_EQ(0, close(vm.fd));
}

TEST_F(iommufd_revoke, free_by_revocation)
{
	struct call destroy = { .fn = call_destroy };
	struct vm vm;

	ASSERT_EQ(0, vm_open_parent(&vm, self->iommu_id));
	destroy.fd = vm.fd;
	destroy.id = vm.parent_id;
	free_parked(_metadata, self, &self->unreg, &destroy);
	ASSERT_EQ(0, close(vm.fd));
}

TEST_F(iommufd_revoke, free_by_close)
{
	struct call closing = { .fn = call_close };
	struct vm vm;

	ASSERT_EQ(0, vm_open_parent(&vm, self->iommu_id));
	closing.fd = vm.fd;
	free_parked(_metadata, self, &closing, &self->unreg);
}

TEST_F(iommufd_revoke, close_during_revocation)
{
	struct call closing = { .fn = call_close };
	struct vm vm;

	ASSERT_EQ(0, vm_open_parent(&vm, self->iommu_id));
	closing.fd = vm.fd;
	free_parked(_metadata, self, &self->unreg, &closing);
}

/* The module stays, with the device or not */
TEST_F(iommufd_revoke, module_of_a_hwpt)
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

/* In the driver for the device when unregister begins */

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
		   struct _test_data_iommufd_revoke *self, unsigned int point,
		   int (*fn)(int fd, uint32_t id, struct call *call),
		   int result)
{
	struct vm vm, probe;
	struct call call = { .fn = fn, .vm = &vm };
	int tries = 0;

	ASSERT_EQ(0, vm_open_parent(&vm, self->iommu_id));
	ASSERT_EQ(0, vm_open_parent(&probe, self->iommu_id));
	call.fd = vm.fd;
	call.id = vm.device_id;
	ASSERT_EQ(0, _test_cmd_park(self->fd, point, MOCK_PARK_ARM));
	call_start(&call);
	ASSERT_EQ(0, _test_cmd_park(self->fd, point, MOCK_PARK_WAIT));
	call_start(&self->unreg);
	EXPECT_WAITING(&self->unreg);

	/* Others learn about it at once, but for what it waits for now */
	while (!_test_cmd_hwpt_alloc(probe.fd, probe.device_id, probe.ioas_id,
				     0, 0, &call.out_id, IOMMU_HWPT_DATA_NONE,
				     NULL, 0)) {
		ASSERT_GT(10000, tries++);
		sleep_ms(1);
	}
	EXPECT_EQ(ENODEV, errno);
	EXPECT_EQ(0, call_is_done(&call));
	ASSERT_EQ(0, _test_cmd_park(self->fd, point, MOCK_PARK_RELEASE));
	EXPECT_EQ(result, call_end(&call));
	EXPECT_EQ(0, call_end(&self->unreg));
	EXPECT_ERRNO(ENODEV, fn(call.fd, call.id, &call));
	ASSERT_EQ(0, close(probe.fd));
	ASSERT_EQ(0, close(vm.fd));
}

TEST_F(iommufd_revoke, parked_in_hw_info)
{
	parked(_metadata, self, MOCK_PARK_HW_INFO, call_hw_info, 0);
}

TEST_F(iommufd_revoke, parked_in_domain_alloc)
{
	parked(_metadata, self, MOCK_PARK_DOMAIN_ALLOC, call_hwpt_alloc,
	       -ENODEV);
}

TEST_F(iommufd_revoke, parked_in_attach)
{
	parked(_metadata, self, MOCK_PARK_ATTACH, call_replace, 0);
}

static int call_nested(int fd, uint32_t id, struct call *call)
{
	struct iommu_hwpt_selftest data = { .iotlb = IOMMU_TEST_IOTLB_DEFAULT };

	return _test_cmd_hwpt_alloc(fd, id, call->vm->parent_id, 0, 0,
				    &call->out_id, IOMMU_HWPT_DATA_SELFTEST,
				    &data, sizeof(data));
}

TEST_F(iommufd_revoke, parked_in_nested_alloc)
{
	parked(_metadata, self, MOCK_PARK_DOMAIN_ALLOC, call_nested, -ENODEV);
}

/*
 * One device of a group has lost its IOMMU and may still do DMA, and the others are
 * about to. They are bound, and from before the HWPT that is being freed.
 */
static void attach_others(struct __test_metadata *_metadata,
			  struct _test_data_iommufd_revoke *self,
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
	ASSERT_EQ(0, _test_cmd_mock_domain_iommu(vm.fd, 0, iommu_id,
						 MOCK_FLAGS_DEVICE_BIND_ONLY,
						 &stdev_id, NULL, &device_id));
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
	ASSERT_EQ(0, _test_cmd_mock_domain_iommu(vm.fd, 0, iommu_id,
						 MOCK_FLAGS_DEVICE_BIND_ONLY,
						 &lost_id, NULL, NULL));
	park(DOMAIN_FREE, ARM);
	call_start(&self->unreg);
	park(DOMAIN_FREE, WAIT);
	/* It has not lost anything so far, and neither has the HWPT */
	EXPECT_EQ(0, get_hw_info(vm.fd, device_id));
	EXPECT_ERRNO(ENODEV, _test_cmd_mock_domain_replace(vm.fd, stdev_id,
							   hwpt_id, NULL));
	if (attached) {
		/* Then nothing is attached to the group any more */
		EXPECT_EQ(0, _test_ioctl_destroy(vm.fd, other_id));
		EXPECT_ERRNO(ENODEV,
			     _test_cmd_mock_domain_replace(vm.fd, stdev_id,
							   hwpt_id, NULL));
	}
	park(DOMAIN_FREE, RELEASE);
	EXPECT_EQ(0, call_end(&self->unreg));
	ASSERT_EQ(0, close(vm.fd));
}

TEST_F(iommufd_revoke, attach_after_revocation_of_another)
{
	attach_others(_metadata, self, false);
}

TEST_F(iommufd_revoke, attach_after_revocation_of_another_and_detach)
{
	attach_others(_metadata, self, true);
}

/* The devices are revoked and not released, so the group must stay blocked */
TEST_F(iommufd_revoke, group_type_after_revocation)
{
	uint32_t device_id;
	struct vm vm;
	glob_t paths;

	ASSERT_EQ(0, vm_open_parent(&vm, self->iommu_id));
	/* It leaves a HWPT that is older than the next one */
	ASSERT_EQ(0, vm_unplug(&vm));
	ASSERT_EQ(0, _test_cmd_mock_domain_iommu(vm.fd, 0, self->iommu_id,
						 MOCK_FLAGS_DEVICE_BIND_ONLY,
						 &vm.stdev_id, NULL,
						 &device_id));
	ASSERT_EQ(0, glob("/sys/bus/iommufd_mock/devices/*/iommu_group/type", 0,
			  NULL, &paths));
	/* Nobody else has one */
	ASSERT_EQ(1, paths.gl_pathc);
	park(DOMAIN_FREE, ARM);
	call_start(&self->unreg);
	park(DOMAIN_FREE, WAIT);
	EXPECT_ERRNO(ENODEV, get_hw_info(vm.fd, device_id));
	EXPECT_ERRNO(EPERM, write_file(paths.gl_pathv[0], "identity"));
	park(DOMAIN_FREE, RELEASE);
	EXPECT_EQ(0, call_end(&self->unreg));
	globfree(&paths);
	ASSERT_EQ(0, close(vm.fd));
}

/* The HWPT that the group is attached to is gone, and the devices about to be */
TEST_F(iommufd_revoke, attach_during_revocation)
{
	uint32_t hwpt_id, iommu_id, stdev_id;
	struct vm vm;

	ASSERT_EQ(0, _test_cmd_iommu_register(self->fd, MOCK_IOMMU_ONE_GROUP,
					      &iommu_id));
	self->unreg.id = iommu_id;
	ASSERT_EQ(0, vm_open_parent(&vm, iommu_id));
	ASSERT_EQ(0, _test_cmd_mock_domain_iommu(vm.fd, 0, iommu_id,
						 MOCK_FLAGS_DEVICE_BIND_ONLY,
						 &stdev_id, NULL, NULL));
	ASSERT_EQ(0, _test_cmd_hwpt_alloc(vm.fd, vm.device_id, vm.ioas_id, 0, 0,
					  &hwpt_id, IOMMU_HWPT_DATA_NONE, NULL,
					  0));
	ASSERT_EQ(0, _test_cmd_mock_domain_replace(vm.fd, vm.stdev_id, hwpt_id,
						   NULL));
	park(DOMAIN_FREE, ARM);
	call_start(&self->unreg);
	park(DOMAIN_FREE, WAIT);
	EXPECT_ERRNO(ENODEV, _test_cmd_mock_domain_replace(vm.fd, vm.stdev_id,
							   vm.parent_id, NULL));
	/* That one is bound, but not attached so far */
	EXPECT_ERRNO(ENODEV, _test_cmd_mock_domain_replace(vm.fd, stdev_id,
							   vm.parent_id, NULL));
	park(DOMAIN_FREE, RELEASE);
	EXPECT_EQ(0, call_end(&self->unreg));
	ASSERT_EQ(0, vm_unplug(&vm));
	ASSERT_EQ(0, close(vm.fd));
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

TEST_F(iommufd_revoke, unplug_during_hwpt_alloc)
{
	struct call alloc = { .fn = call_hwpt_alloc };
	struct call unplug = { .fn = call_destroy };
	struct call map = { .fn = call_map_page };
	uint32_t hwpt_id;
	struct vm vm, other;
	int uffd;

	ASSERT_EQ(0, vm_open_parent(&vm, self->iommu_id));
	/* One that the device is not attached to, so that unplugging needs no lock */
	other = vm;
	ASSERT_EQ(0, _test_ioctl_ioas_alloc(vm.fd, &other.ioas_id));
	/* What is mapped is pinned at once */
	ASSERT_EQ(0, _test_cmd_hwpt_alloc(vm.fd, vm.device_id, other.ioas_id, 0,
					  0, &hwpt_id, IOMMU_HWPT_DATA_NONE,
					  NULL, 0));
	memset(buffer, 1, PAGE_SIZE);
	uffd = uffd_open(buffer, UFFDIO_REGISTER_MODE_WP);
	if (uffd == -1)
		SKIP(return, NEEDS_UFFD);
	map.fd = vm.fd;
	map.id = other.ioas_id;
	call_start(&map);
	ASSERT_EQ(0, uffd_wait(uffd));

	/* It has found the device when it is let go, and waits next */
	alloc.fd = vm.fd;
	alloc.id = vm.device_id;
	alloc.vm = &other;
	park(DOMAIN_ALLOC, ARM);
	call_start(&alloc);
	park(DOMAIN_ALLOC, WAIT);
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
	EXPECT_EQ(0, _test_ioctl_destroy(vm.fd, alloc.out_id));
	ASSERT_EQ(0, close(uffd));
	unregister();
	ASSERT_EQ(0, close(vm.fd));
}

/* A call that is stuck in user memory is not waited for */

static int call_arg(int fd, uint32_t id, struct call *call)
{
	return ioctl(fd, id, call->arg);
}

static int stalled(struct __test_metadata *_metadata,
		   struct _test_data_iommufd_revoke *self, struct vm *vm,
		   uint32_t request, bool writable, int result)
{
	struct call call = {
		.fn = call_arg,
		.fd = vm->fd,
		.id = request,
		.arg = buffer,
	};
	int uffd = uffd_open(buffer, UFFDIO_REGISTER_MODE_WP);

	if (uffd == -1)
		return -1;
	call_start(&call);
	ASSERT_EQ(0, uffd_wait(uffd));
	unregister();
	EXPECT_EQ(0, call_is_done(&call));
	if (!writable)
		ASSERT_EQ(0, mprotect(buffer, PAGE_SIZE, PROT_READ));
	ASSERT_EQ(0, uffd_unprotect(uffd, buffer));
	EXPECT_EQ(result, call_end(&call));
	ASSERT_EQ(0, close(uffd));
	return 0;
}

TEST_F(iommufd_revoke, hw_info_stalled)
{
	struct iommu_hw_info *cmd = buffer;
	struct vm vm;

	ASSERT_EQ(0, vm_open_parent(&vm, self->iommu_id));
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

TEST_F(iommufd_revoke, hwpt_alloc_stalled)
{
	struct iommu_hwpt_alloc *cmd = buffer;
	struct vm vm;

	ASSERT_EQ(0, vm_open_parent(&vm, self->iommu_id));
	*cmd = (struct iommu_hwpt_alloc){
		.size = sizeof(*cmd),
		.dev_id = vm.device_id,
		.pt_id = vm.ioas_id,
	};
	if (stalled(_metadata, self, &vm, IOMMU_HWPT_ALLOC, true, 0))
		SKIP(return, NEEDS_UFFD);
	EXPECT_EQ(-ENODEV,
		  _test_cmd_set_dirty_tracking(vm.fd, cmd->out_hwpt_id, false));
	ASSERT_EQ(0, _test_ioctl_destroy(vm.fd, cmd->out_hwpt_id));
	ASSERT_EQ(0, close(vm.fd));
}

/* While the driver's data is read nothing is held, and nothing found yet */
TEST_F(iommufd_revoke, hwpt_alloc_stalled_reading)
{
	struct iommu_hwpt_alloc cmd = {
		.size = sizeof(cmd),
		.data_type = IOMMU_HWPT_DATA_SELFTEST,
		.data_len = sizeof(struct iommu_hwpt_selftest),
		.data_uptr = (uintptr_t)buffer,
	};
	struct uffdio_zeropage zero = {
		.range = { (uintptr_t)buffer, PAGE_SIZE },
	};
	struct call call = {
		.fn = call_arg,
		.id = IOMMU_HWPT_ALLOC,
		.arg = &cmd,
	};
	struct vm vm;
	int uffd;

	ASSERT_EQ(0, vm_open_parent(&vm, self->iommu_id));
	call.fd = vm.fd;
	cmd.dev_id = vm.device_id;
	cmd.pt_id = vm.parent_id;
	uffd = uffd_open(buffer, UFFDIO_REGISTER_MODE_MISSING);
	if (uffd == -1)
		SKIP(return, NEEDS_UFFD);
	call_start(&call);
	ASSERT_EQ(0, uffd_wait(uffd));
	unregister();
	EXPECT_EQ(0, call_is_done(&call));
	ASSERT_EQ(0, ioctl(uffd, UFFDIO_ZEROPAGE, &zero));
	EXPECT_EQ(-ENODEV, call_end(&call));
	ASSERT_EQ(0, close(uffd));
	ASSERT_EQ(0, close(vm.fd));
}

TEST_F(iommufd_revoke, iova_ranges_stalled)
{
	struct iommu_ioas_iova_ranges *cmd = buffer;
	struct vm vm;

	ASSERT_EQ(0, vm_open_parent(&vm, self->iommu_id));
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
			  struct _test_data_iommufd_revoke *self, bool write)
{
	struct iommu_hwpt_selftest data = { .iotlb = IOMMU_TEST_IOTLB_DEFAULT };
	struct uffdio_zeropage zero = {
		.range = { (uintptr_t)buffer, PAGE_SIZE },
	};
	struct call call = {
		.fn = write ? call_write_fault : call_read_fault,
	};
	uint32_t fault_id, fault_fd, hwpt_id;
	struct vm vm;
	int uffd;

	ASSERT_EQ(0, vm_open_parent(&vm, self->iommu_id));
	ASSERT_EQ(0, _test_ioctl_fault_alloc(vm.fd, &fault_id, &fault_fd));
	ASSERT_EQ(0, _test_cmd_hwpt_alloc(vm.fd, vm.device_id, vm.parent_id,
					  fault_id, IOMMU_HWPT_FAULT_ID_VALID,
					  &hwpt_id, IOMMU_HWPT_DATA_SELFTEST,
					  &data, sizeof(data)));
	ASSERT_EQ(0, _test_cmd_mock_domain_replace(vm.fd, vm.stdev_id, hwpt_id,
						   NULL));
	ASSERT_EQ(0, trigger_iopf(vm.fd, vm.device_id, 1));
	uffd = uffd_open(buffer, UFFDIO_REGISTER_MODE_MISSING);
	if (uffd == -1)
		SKIP(return, NEEDS_UFFD);
	call.fd = fault_fd;
	call_start(&call);
	ASSERT_EQ(0, uffd_wait(uffd));
	unregister();
	EXPECT_EQ(0, call_is_done(&call));
	ASSERT_EQ(0, ioctl(uffd, UFFDIO_ZEROPAGE, &zero));
	/* The fault has been answered meanwhile */
	EXPECT_EQ(write ? -EINVAL : 0, call_end(&call));
	EXPECT_EQ(0, call.out_id);
	ASSERT_EQ(0, close(uffd));
	ASSERT_EQ(0, close(fault_fd));
	ASSERT_EQ(0, close(vm.fd));
}

TEST_F(iommufd_revoke, fault_read_stalled)
{
	fault_stalled(_metadata, self, false);
}

TEST_F(iommufd_revoke, fault_write_stalled)
{
	fault_stalled(_metadata, self, true);
}

/* Answers that have no place in memory, or not all of them */
TEST_F(iommufd_revoke, bad_buffers)
{
	struct iommu_hwpt_selftest data = { .iotlb = IOMMU_TEST_IOTLB_DEFAULT };
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
	ASSERT_EQ(0, vm_open_parent(&vm, self->iommu_id));

	info.dev_id = vm.device_id;
	EXPECT_ERRNO(EFAULT, ioctl(vm.fd, IOMMU_GET_HW_INFO, &info));
	/* The data fits, but not the zeroes after it */
	info.data_uptr -= sizeof(struct iommu_test_hw_info);
	EXPECT_ERRNO(EFAULT, ioctl(vm.fd, IOMMU_GET_HW_INFO, &info));
	ranges.ioas_id = vm.ioas_id;
	EXPECT_ERRNO(EFAULT, ioctl(vm.fd, IOMMU_IOAS_IOVA_RANGES, &ranges));

	ASSERT_EQ(0, _test_ioctl_fault_alloc(vm.fd, &fault_id, &fault_fd));
	ASSERT_EQ(0, _test_cmd_hwpt_alloc(vm.fd, vm.device_id, vm.parent_id,
					  fault_id, IOMMU_HWPT_FAULT_ID_VALID,
					  &hwpt_id, IOMMU_HWPT_DATA_SELFTEST,
					  &data, sizeof(data)));
	ASSERT_EQ(0, _test_cmd_mock_domain_replace(vm.fd, vm.stdev_id, hwpt_id,
						   NULL));
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

TEST_F(iommufd_revoke, hwpt_alloc_fails_after_revocation)
{
	struct iommu_hwpt_alloc *cmd = buffer;
	struct vm vm;

	ASSERT_EQ(0, vm_open_parent(&vm, self->iommu_id));
	*cmd = (struct iommu_hwpt_alloc){
		.size = sizeof(*cmd),
		.dev_id = vm.device_id,
		.pt_id = vm.ioas_id,
	};
	if (stalled(_metadata, self, &vm, IOMMU_HWPT_ALLOC, false, -EFAULT))
		SKIP(return, NEEDS_UFFD);
	ASSERT_EQ(0, vm_unplug(&vm));
	ASSERT_EQ(0, _test_ioctl_destroy(vm.fd, vm.parent_id));
	ASSERT_EQ(0, _test_ioctl_destroy(vm.fd, vm.ioas_id));
	ASSERT_EQ(0, close(vm.fd));
}

/* A vIOMMU with everything that can be made on it */

#define VIRT_ID 0x99
#define NEW_VIRT_ID 1
#define QUEUE_IOVA MOCK_APERTURE_START

FIXTURE(iommufd_revoke_viommu)
{
	int fd;
	uint32_t iommu_id;
	struct vm vm;
	uint32_t viommu_id;
	uint32_t vdevice_id;
	uint32_t nested_id;
	uint32_t queue_id[IOMMU_TEST_HW_QUEUE_MAX];
	uint32_t veventq_id;
	uint32_t veventq_fd;
	struct iommu_viommu_selftest data;
	uint32_t *region;
	struct call unreg;
};

static int viommu_alloc(struct vm *vm, struct iommu_viommu_selftest *data,
			uint32_t *id)
{
	return _test_cmd_viommu_alloc(vm->fd, vm->device_id, vm->parent_id, 0,
				      IOMMU_VIOMMU_TYPE_SELFTEST, data,
				      sizeof(*data), id);
}

static int nested_alloc(struct vm *vm, uint32_t viommu_id, uint32_t *id)
{
	struct iommu_hwpt_selftest data = { .iotlb = IOMMU_TEST_IOTLB_DEFAULT };

	return _test_cmd_hwpt_alloc(vm->fd, vm->device_id, viommu_id, 0, 0, id,
				    IOMMU_HWPT_DATA_SELFTEST, &data,
				    sizeof(data));
}

static int queue_alloc(int fd, uint32_t viommu_id, uint32_t index, uint32_t *id)
{
	return _test_cmd_hw_queue_alloc(fd, viommu_id,
					IOMMU_HW_QUEUE_TYPE_SELFTEST, index,
					QUEUE_IOVA, PAGE_SIZE, id);
}

static int veventq_alloc(int fd, uint32_t viommu_id, uint32_t *id,
			 uint32_t *veventq_fd)
{
	return _test_cmd_veventq_alloc(fd, viommu_id,
				       IOMMU_VEVENTQ_TYPE_SELFTEST, 4, id,
				       veventq_fd);
}

static int invalidate_virt(int fd, uint32_t id, uint32_t virt_id)
{
	struct iommu_viommu_invalidate_selftest req = { .vdev_id = virt_id };
	uint32_t num = 1;

	return _test_cmd_viommu_invalidate(fd, id, &req,
					   IOMMU_VIOMMU_INVALIDATE_DATA_SELFTEST,
					   sizeof(req), &num);
}

static int invalidate(int fd, uint32_t id)
{
	return invalidate_virt(fd, id, VIRT_ID);
}

static void *region_map(int fd, const struct iommu_viommu_selftest *data)
{
	return mmap(NULL, data->out_mmap_length, PROT_READ | PROT_WRITE,
		    MAP_SHARED, fd, data->out_mmap_offset);
}

/* Another one of them, in a VM of its own */
static void viommu_setup(struct __test_metadata *_metadata,
			 struct _test_data_iommufd_revoke_viommu *self)
{
	struct vm *vm = &self->vm;
	__u64 iova = QUEUE_IOVA;
	int i;

	ASSERT_EQ(0, vm_open_parent(vm, self->iommu_id));
	self->data.in_data = 0x123;
	ASSERT_EQ(0, viommu_alloc(vm, &self->data, &self->viommu_id));
	self->region = region_map(vm->fd, &self->data);
	ASSERT_NE(MAP_FAILED, self->region);
	ASSERT_EQ(0, _test_cmd_vdevice_alloc(vm->fd, self->viommu_id,
					     vm->device_id, VIRT_ID,
					     &self->vdevice_id));
	ASSERT_EQ(0, nested_alloc(vm, self->viommu_id, &self->nested_id));
	ASSERT_EQ(0, _test_cmd_mock_domain_replace(vm->fd, vm->stdev_id,
						   self->nested_id, NULL));
	ASSERT_EQ(0, veventq_alloc(vm->fd, self->viommu_id, &self->veventq_id,
				   &self->veventq_fd));
	ASSERT_EQ(0, _test_ioctl_ioas_map(vm->fd, vm->ioas_id, buffer,
					  PAGE_SIZE, &iova,
					  IOMMU_IOAS_MAP_FIXED_IOVA |
						  IOMMU_IOAS_MAP_READABLE |
						  IOMMU_IOAS_MAP_WRITEABLE));
	for (i = 0; i != IOMMU_TEST_HW_QUEUE_MAX; i++)
		ASSERT_EQ(0, queue_alloc(vm->fd, self->viommu_id, i,
					 &self->queue_id[i]));
}

FIXTURE_SETUP(iommufd_revoke_viommu)
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
	viommu_setup(_metadata, self);
}

FIXTURE_TEARDOWN(iommufd_revoke_viommu)
{
	EXPECT_EQ(0, unpark_all(self->fd));
	EXPECT_EQ(0, iommu_end(self->fd, self->iommu_id));
	if (self->region)
		EXPECT_EQ(0, munmap(self->region, self->data.out_mmap_length));
	if (self->veventq_fd)
		EXPECT_EQ(0, close(self->veventq_fd));
	if (self->vm.fd != -1)
		EXPECT_EQ(0, close(self->vm.fd));
	EXPECT_EQ(0, close(self->fd));
}

static sigjmp_buf touch_env;

static void touch_signal(int sig)
{
	siglongjmp(touch_env, sig);
}

/* The signal that touching it raises, 0 if none */
static int touch(const uint32_t *addr)
{
	struct sigaction act = { .sa_handler = touch_signal };
	struct sigaction old;
	int sig;

	assert(!sigaction(SIGBUS, &act, &old));
	sig = sigsetjmp(touch_env, 1);
	if (!sig)
		__atomic_load_n(addr, __ATOMIC_RELAXED);
	assert(!sigaction(SIGBUS, &old, NULL));
	return sig;
}

/* ENODEV for what is left of them, whatever they are named for */
static void expect_enodev(struct __test_metadata *_metadata,
			  struct _test_data_iommufd_revoke_viommu *self)
{
	uint32_t ids[] = { self->viommu_id, self->vdevice_id, self->nested_id,
			   self->queue_id[0], self->queue_id[1],
			   self->veventq_id };
	struct iommu_viommu_selftest data = {};
	struct vm *vm = &self->vm;
	uint32_t id, fd;
	int i;

	EXPECT_ERRNO(ENODEV, viommu_alloc(vm, &data, &id));
	EXPECT_ERRNO(ENODEV, _test_cmd_vdevice_alloc(vm->fd, self->viommu_id,
						     vm->device_id, 1, &id));
	EXPECT_ERRNO(ENODEV, nested_alloc(vm, self->viommu_id, &id));
	EXPECT_ERRNO(ENODEV, queue_alloc(vm->fd, self->viommu_id, 0, &id));
	EXPECT_ERRNO(ENODEV,
		     veventq_alloc(vm->fd, self->viommu_id, &id, &fd));
	EXPECT_ERRNO(ENODEV, _test_cmd_mock_domain_replace(vm->fd, vm->stdev_id,
							   self->nested_id,
							   NULL));
	EXPECT_ERRNO(ENODEV, _test_cmd_trigger_vevents(vm->fd, vm->device_id,
						       1));
	for (i = 0; i != ARRAY_SIZE(ids); i++)
		EXPECT_ERRNO(ENODEV, invalidate(vm->fd, ids[i]));
	EXPECT_EQ(MAP_FAILED, region_map(vm->fd, &self->data));
	EXPECT_EQ(ENXIO, errno);
}

TEST_F(iommufd_revoke_viommu, iommu_goes)
{
	uint8_t event[sizeof(struct iommufd_vevent_header) +
		      sizeof(struct iommu_viommu_event_selftest)];
	struct pollfd pollfd = { .fd = self->veventq_fd, .events = POLLIN };
	struct vm *vm = &self->vm;
	int i;

	ASSERT_EQ(0, invalidate(vm->fd, self->viommu_id));
	ASSERT_EQ(0x123, *self->region);
	ASSERT_EQ(0, _test_cmd_trigger_vevents(vm->fd, vm->device_id, 2));

	unregister();
	expect_enodev(_metadata, self);

	/* The events that are there can be read */
	for (i = 0; i != 2; i++) {
		ASSERT_EQ(1, poll(&pollfd, 1, 0));
		EXPECT_EQ(POLLIN, pollfd.revents);
		EXPECT_ERRNO(EINVAL, read(self->veventq_fd, event, 1));
		EXPECT_EQ(sizeof(event),
			  read(self->veventq_fd, event, sizeof(event)));
	}
	ASSERT_EQ(1, poll(&pollfd, 1, 0));
	EXPECT_EQ(POLLHUP, pollfd.revents);
	EXPECT_ERRNO(ENODEV, read(self->veventq_fd, event, sizeof(event)));

	/* It was in the page table, and had not been touched before */
	EXPECT_EQ(SIGBUS, touch(self->region));
	EXPECT_EQ(SIGBUS, touch(self->region + PAGE_SIZE / sizeof(uint32_t)));

	EXPECT_ERRNO(EBUSY, _test_ioctl_destroy(vm->fd, self->veventq_id));
	ASSERT_EQ(0, close(self->veventq_fd));
	self->veventq_fd = 0;
	EXPECT_EQ(0, _test_ioctl_destroy(vm->fd, self->veventq_id));
	/* All of it is still mapped */
	EXPECT_EQ(0, _test_ioctl_destroy(vm->fd, self->viommu_id));
	EXPECT_EQ(SIGBUS, touch(self->region));
	EXPECT_EQ(0, vm_unplug(vm));
	EXPECT_EQ(0, _test_ioctl_destroy(vm->fd, self->vdevice_id));
	EXPECT_EQ(0, _test_ioctl_destroy(vm->fd, self->nested_id));
	EXPECT_EQ(0, _test_ioctl_destroy(vm->fd, vm->parent_id));
	/* The memory of the queues is pinned as long as they are there */
	EXPECT_ERRNO(EBUSY, _test_ioctl_destroy(vm->fd, vm->ioas_id));
	for (i = 0; i != IOMMU_TEST_HW_QUEUE_MAX; i++)
		EXPECT_EQ(0, _test_ioctl_destroy(vm->fd, self->queue_id[i]));
	EXPECT_EQ(0, _test_ioctl_destroy(vm->fd, vm->ioas_id));
}

/* One after the other, beginning with each of them, and both ways round */
TEST_F_TIMEOUT(iommufd_revoke_viommu, destroy_in_each_order, 120)
{
	enum { NUM = 7 };
	int first, i;

	for (first = 0; first != 2 * NUM; first++) {
		uint32_t ids[NUM] = { self->viommu_id, self->vdevice_id,
				      self->nested_id, self->queue_id[0],
				      self->queue_id[1], self->veventq_id,
				      self->vm.parent_id };

		ASSERT_EQ(0, close(self->veventq_fd));
		self->veventq_fd = 0;
		unregister();
		for (i = 0; i != NUM; i++) {
			int at = first < NUM ? first + i : first + NUM - i;

			EXPECT_EQ(0, _test_ioctl_destroy(self->vm.fd,
							 ids[at % NUM]));
		}
		EXPECT_EQ(0, vm_unplug(&self->vm));
		EXPECT_EQ(0, _test_ioctl_destroy(self->vm.fd,
						 self->vm.ioas_id));
		ASSERT_EQ(0, munmap(self->region, self->data.out_mmap_length));
		self->region = NULL;
		ASSERT_EQ(0, close(self->vm.fd));
		self->vm.fd = -1;
		ASSERT_EQ(0, _test_cmd_iommu_register(self->fd, 0,
						      &self->iommu_id));
		viommu_setup(_metadata, self);
	}
}

static void close_all(struct __test_metadata *_metadata,
		      struct _test_data_iommufd_revoke_viommu *self)
{
	/* Each of them has the file */
	ASSERT_EQ(0, munmap(self->region, self->data.out_mmap_length));
	self->region = NULL;
	ASSERT_EQ(0, close(self->veventq_fd));
	self->veventq_fd = 0;
}

TEST_F(iommufd_revoke_viommu, close_after_unregister)
{
	unregister();
	close_all(_metadata, self);
	ASSERT_EQ(0, close(self->vm.fd));
	self->vm.fd = -1;
}

static void close_during(struct __test_metadata *_metadata,
			 struct _test_data_iommufd_revoke_viommu *self,
			 unsigned int point)
{
	struct call closing = { .fn = call_close, .fd = self->vm.fd };

	close_all(_metadata, self);
	ASSERT_EQ(0, _test_cmd_park(self->fd, point, MOCK_PARK_ARM));
	call_start(&self->unreg);
	ASSERT_EQ(0, _test_cmd_park(self->fd, point, MOCK_PARK_WAIT));
	call_start(&closing);
	wait_for_close(_metadata, self->vm.fd);
	EXPECT_WAITING(&closing);
	EXPECT_WAITING(&self->unreg);
	ASSERT_EQ(0, _test_cmd_park(self->fd, point, MOCK_PARK_RELEASE));
	EXPECT_EQ(0, call_end(&closing));
	EXPECT_EQ(0, call_end(&self->unreg));
	/* It is a file of another kind now */
	ASSERT_EQ(0, close(self->vm.fd));
	self->vm.fd = -1;
}

TEST_F(iommufd_revoke_viommu, close_during_destroy_of_viommu)
{
	close_during(_metadata, self, MOCK_PARK_VIOMMU_DESTROY);
}

TEST_F(iommufd_revoke_viommu, close_during_destroy_of_vdevice)
{
	close_during(_metadata, self, MOCK_PARK_VDEVICE_DESTROY);
}

TEST_F(iommufd_revoke_viommu, close_during_destroy_of_queue)
{
	close_during(_metadata, self, MOCK_PARK_HW_QUEUE_DESTROY);
}

/* The one is in the driver's destroy callback when the other one begins */
static void destroy_during(struct __test_metadata *_metadata,
			   struct _test_data_iommufd_revoke_viommu *self,
			   unsigned int point, uint32_t id)
{
	struct call destroy = { .fn = call_destroy, .fd = self->vm.fd,
				.id = id };

	ASSERT_EQ(0, _test_cmd_park(self->fd, point, MOCK_PARK_ARM));
	call_start(&self->unreg);
	ASSERT_EQ(0, _test_cmd_park(self->fd, point, MOCK_PARK_WAIT));
	call_start(&destroy);
	EXPECT_WAITING(&destroy);
	EXPECT_WAITING(&self->unreg);
	ASSERT_EQ(0, _test_cmd_park(self->fd, point, MOCK_PARK_RELEASE));
	EXPECT_EQ(0, call_end(&destroy));
	EXPECT_EQ(0, call_end(&self->unreg));
	EXPECT_ERRNO(ENOENT, _test_ioctl_destroy(self->vm.fd, id));
}

static void unregister_during(struct __test_metadata *_metadata,
			      struct _test_data_iommufd_revoke_viommu *self,
			      unsigned int point, struct call *call)
{
	ASSERT_EQ(0, _test_cmd_park(self->fd, point, MOCK_PARK_ARM));
	call_start(call);
	ASSERT_EQ(0, _test_cmd_park(self->fd, point, MOCK_PARK_WAIT));
	call_start(&self->unreg);
	EXPECT_WAITING(&self->unreg);
	EXPECT_EQ(0, call_is_done(call));
	ASSERT_EQ(0, _test_cmd_park(self->fd, point, MOCK_PARK_RELEASE));
}

static void
unregister_during_destroy(struct __test_metadata *_metadata,
			  struct _test_data_iommufd_revoke_viommu *self,
			  unsigned int point, uint32_t id)
{
	struct call destroy = { .fn = call_destroy, .fd = self->vm.fd,
				.id = id };

	unregister_during(_metadata, self, point, &destroy);
	EXPECT_EQ(0, call_end(&destroy));
	EXPECT_EQ(0, call_end(&self->unreg));
}

TEST_F(iommufd_revoke_viommu, destroy_vdevice_during_revocation)
{
	destroy_during(_metadata, self, MOCK_PARK_VDEVICE_DESTROY,
		       self->vdevice_id);
}

TEST_F(iommufd_revoke_viommu, unregister_during_destroy_of_vdevice)
{
	unregister_during_destroy(_metadata, self, MOCK_PARK_VDEVICE_DESTROY,
				  self->vdevice_id);
}

TEST_F(iommufd_revoke_viommu, destroy_queue_during_revocation)
{
	destroy_during(_metadata, self, MOCK_PARK_HW_QUEUE_DESTROY,
		       self->queue_id[1]);
}

TEST_F(iommufd_revoke_viommu, unregister_during_destroy_of_queue)
{
	unregister_during_destroy(_metadata, self, MOCK_PARK_HW_QUEUE_DESTROY,
				  self->queue_id[1]);
}

/* Without anything on it, so that user space can destroy it */
static void destroy_children(struct __test_metadata *_metadata,
			     struct _test_data_iommufd_revoke_viommu *self)
{
	close_all(_metadata, self);
	ASSERT_EQ(0, _test_ioctl_destroy(self->vm.fd, self->veventq_id));
	ASSERT_EQ(0, _test_ioctl_destroy(self->vm.fd, self->queue_id[1]));
	ASSERT_EQ(0, _test_ioctl_destroy(self->vm.fd, self->queue_id[0]));
	ASSERT_EQ(0, _test_cmd_mock_domain_replace(self->vm.fd,
						   self->vm.stdev_id,
						   self->vm.ioas_id, NULL));
	ASSERT_EQ(0, _test_ioctl_destroy(self->vm.fd, self->nested_id));
	ASSERT_EQ(0, _test_ioctl_destroy(self->vm.fd, self->vdevice_id));
}

TEST_F(iommufd_revoke_viommu, destroy_viommu_during_revocation)
{
	destroy_children(_metadata, self);
	destroy_during(_metadata, self, MOCK_PARK_VIOMMU_DESTROY,
		       self->viommu_id);
}

TEST_F(iommufd_revoke_viommu, unregister_during_destroy_of_viommu)
{
	destroy_children(_metadata, self);
	unregister_during_destroy(_metadata, self, MOCK_PARK_VIOMMU_DESTROY,
				  self->viommu_id);
}

static int call_vm_unplug(int fd, uint32_t id, struct call *call)
{
	return vm_unplug(call->vm);
}

/* Whoever takes the vDEVICE off its device, the other one waits */
TEST_F(iommufd_revoke_viommu, unplug_during_revocation)
{
	struct call unplug = { .fn = call_vm_unplug, .vm = &self->vm };

	park(VDEVICE_DESTROY, ARM);
	call_start(&self->unreg);
	park(VDEVICE_DESTROY, WAIT);
	call_start(&unplug);
	EXPECT_WAITING(&unplug);
	EXPECT_WAITING(&self->unreg);
	park(VDEVICE_DESTROY, RELEASE);
	EXPECT_EQ(0, call_end(&unplug));
	EXPECT_EQ(0, call_end(&self->unreg));
	EXPECT_ERRNO(ENODEV, invalidate(self->vm.fd, self->vdevice_id));
	EXPECT_EQ(0, _test_ioctl_destroy(self->vm.fd, self->vdevice_id));
}

TEST_F(iommufd_revoke_viommu, unregister_during_unplug)
{
	struct call unplug = { .fn = call_vm_unplug, .vm = &self->vm };

	unregister_during(_metadata, self, MOCK_PARK_VDEVICE_DESTROY, &unplug);
	EXPECT_EQ(0, call_end(&unplug));
	EXPECT_EQ(0, call_end(&self->unreg));
	EXPECT_ERRNO(ENOENT, invalidate(self->vm.fd, self->vdevice_id));
	EXPECT_ERRNO(ENOENT, _test_ioctl_destroy(self->vm.fd,
						 self->vdevice_id));
}

/* One without a vDEVICE has nothing to wait for */
TEST_F(iommufd_revoke_viommu, unplug_another_during_revocation)
{
	struct vm other = self->vm;

	ASSERT_EQ(0, vm_plug(&other, self->iommu_id));
	park(VDEVICE_DESTROY, ARM);
	call_start(&self->unreg);
	park(VDEVICE_DESTROY, WAIT);
	EXPECT_EQ(0, vm_unplug(&other));
	EXPECT_EQ(0, call_is_done(&self->unreg));
	park(VDEVICE_DESTROY, RELEASE);
	EXPECT_EQ(0, call_end(&self->unreg));
}

/* The device that it was allocated for can go, and the vIOMMU has nothing of it */
TEST_F(iommufd_revoke_viommu, without_devices)
{
	ASSERT_EQ(0, vm_unplug(&self->vm));
	unregister();
	EXPECT_ERRNO(ENODEV, invalidate(self->vm.fd, self->viommu_id));
	EXPECT_EQ(SIGBUS, touch(self->region));
}

TEST_F(iommufd_revoke_viommu, another_iommu_goes_on)
{
	struct _test_data_iommufd_revoke_viommu other = { .fd = self->fd };
	struct rusage before, after;
	int i;

	ASSERT_EQ(0, _test_cmd_iommu_register(self->fd, 0, &other.iommu_id));
	viommu_setup(_metadata, &other);
	/* The regions have the same offset, each in a file of its own */
	ASSERT_EQ(self->data.out_mmap_offset, other.data.out_mmap_offset);
	EXPECT_EQ(0, touch(self->region));
	EXPECT_EQ(0, touch(other.region));
	unregister();
	/* Twice, since the first one can be a fault itself */
	for (i = 0; i != 2; i++)
		ASSERT_EQ(0, getrusage(RUSAGE_THREAD, &before));
	EXPECT_EQ(0, touch(other.region));
	ASSERT_EQ(0, getrusage(RUSAGE_THREAD, &after));
	EXPECT_EQ(before.ru_minflt, after.ru_minflt);
	EXPECT_EQ(SIGBUS, touch(self->region));
	EXPECT_EQ(0, invalidate(other.vm.fd, other.viommu_id));
	EXPECT_EQ(0, _test_cmd_trigger_vevents(other.vm.fd, other.vm.device_id,
					       1));
	EXPECT_EQ(0x123, *other.region);
	close_all(_metadata, &other);
	ASSERT_EQ(0, close(other.vm.fd));
	EXPECT_EQ(0, iommu_end(self->fd, other.iommu_id));
}

/* In the driver for the vIOMMU when unregister begins */

static int call_viommu_alloc(int fd, uint32_t id, struct call *call)
{
	struct iommu_viommu_selftest data = {};

	return viommu_alloc(call->vm, &data, &call->out_id);
}

static int call_vdevice_alloc(int fd, uint32_t id, struct call *call)
{
	return _test_cmd_vdevice_alloc(fd, id, call->vm->device_id, NEW_VIRT_ID,
				       &call->out_id);
}

static int call_viommu_nested(int fd, uint32_t id, struct call *call)
{
	return nested_alloc(call->vm, id, &call->out_id);
}

static int call_queue_alloc(int fd, uint32_t id, struct call *call)
{
	return queue_alloc(fd, id, 1, &call->out_id);
}

static int call_invalidate(int fd, uint32_t id, struct call *call)
{
	return invalidate(fd, id);
}

static int call_event(int fd, uint32_t id, struct call *call)
{
	return _test_cmd_trigger_vevents(fd, call->vm->device_id, 1);
}

static void viommu_parked(struct __test_metadata *_metadata,
			  struct _test_data_iommufd_revoke_viommu *self,
			  unsigned int point, struct vm *vm,
			  int (*fn)(int fd, uint32_t id, struct call *call),
			  int result)
{
	struct call call = { .fn = fn, .vm = vm, .fd = vm->fd,
			     .id = self->viommu_id };

	unregister_during(_metadata, self, point, &call);
	EXPECT_EQ(result, call_end(&call));
	EXPECT_EQ(0, call_end(&self->unreg));
	expect_enodev(_metadata, self);
	EXPECT_EQ(SIGBUS, touch(self->region));
}

TEST_F(iommufd_revoke_viommu, parked_in_viommu_alloc)
{
	viommu_parked(_metadata, self, MOCK_PARK_VIOMMU_INIT, &self->vm,
		      call_viommu_alloc, -ENODEV);
}

TEST_F(iommufd_revoke_viommu, parked_in_vdevice_alloc)
{
	struct vm other = self->vm;

	ASSERT_EQ(0, vm_plug(&other, self->iommu_id));
	viommu_parked(_metadata, self, MOCK_PARK_VDEVICE_INIT, &other,
		      call_vdevice_alloc, -ENODEV);
}

TEST_F(iommufd_revoke_viommu, parked_in_nested_alloc)
{
	viommu_parked(_metadata, self, MOCK_PARK_DOMAIN_ALLOC, &self->vm,
		      call_viommu_nested, -ENODEV);
}

/* It depends on the first one, which goes after it */
TEST_F(iommufd_revoke_viommu, parked_in_queue_alloc)
{
	ASSERT_EQ(0, _test_ioctl_destroy(self->vm.fd, self->queue_id[1]));
	self->queue_id[1] = self->queue_id[0];
	viommu_parked(_metadata, self, MOCK_PARK_HW_QUEUE_INIT, &self->vm,
		      call_queue_alloc, -ENODEV);
}

/* Nobody finds what the driver is still making */
static void unfinished(struct __test_metadata *_metadata,
		       struct _test_data_iommufd_revoke_viommu *self,
		       unsigned int point, struct vm *vm,
		       int (*fn)(int fd, uint32_t id, struct call *call))
{
	struct call call = { .fn = fn, .vm = vm, .fd = vm->fd,
			     .id = self->viommu_id };
	uint32_t id, queue_id;

	/* The ID that it will have */
	ASSERT_EQ(0, _test_ioctl_ioas_alloc(vm->fd, &id));
	ASSERT_EQ(0, _test_ioctl_destroy(vm->fd, id));
	ASSERT_EQ(0, _test_cmd_park(self->fd, point, MOCK_PARK_ARM));
	call_start(&call);
	ASSERT_EQ(0, _test_cmd_park(self->fd, point, MOCK_PARK_WAIT));
	EXPECT_ERRNO(ENOENT, _test_ioctl_destroy(vm->fd, id));
	EXPECT_ERRNO(ENOENT, queue_alloc(vm->fd, id, 0, &queue_id));
	EXPECT_ERRNO(EINVAL, invalidate_virt(vm->fd, self->viommu_id,
					     NEW_VIRT_ID));
	EXPECT_EQ(0, call_is_done(&call));
	ASSERT_EQ(0, _test_cmd_park(self->fd, point, MOCK_PARK_RELEASE));
	EXPECT_EQ(0, call_end(&call));
	EXPECT_EQ(id, call.out_id);
	EXPECT_EQ(0, _test_ioctl_destroy(vm->fd, id));
}

TEST_F(iommufd_revoke_viommu, unfinished_viommu)
{
	unfinished(_metadata, self, MOCK_PARK_VIOMMU_INIT, &self->vm,
		   call_viommu_alloc);
}

TEST_F(iommufd_revoke_viommu, unfinished_vdevice)
{
	struct vm other = self->vm;

	ASSERT_EQ(0, vm_plug(&other, self->iommu_id));
	unfinished(_metadata, self, MOCK_PARK_VDEVICE_INIT, &other,
		   call_vdevice_alloc);
}

TEST_F(iommufd_revoke_viommu, unfinished_nested)
{
	unfinished(_metadata, self, MOCK_PARK_DOMAIN_ALLOC, &self->vm,
		   call_viommu_nested);
}

TEST_F(iommufd_revoke_viommu, unfinished_queue)
{
	ASSERT_EQ(0, _test_ioctl_destroy(self->vm.fd, self->queue_id[1]));
	unfinished(_metadata, self, MOCK_PARK_HW_QUEUE_INIT, &self->vm,
		   call_queue_alloc);
}

/* The vDEVICE that it is for is gone before it goes on */
TEST_F(iommufd_revoke_viommu, parked_in_invalidate)
{
	viommu_parked(_metadata, self, MOCK_PARK_INVALIDATE, &self->vm,
		      call_invalidate, -EINVAL);
}

/* So is the queue of the event */
TEST_F(iommufd_revoke_viommu, parked_in_event)
{
	viommu_parked(_metadata, self, MOCK_PARK_EVENT, &self->vm, call_event,
		      -EOPNOTSUPP);
}

static int call_poll(int fd, uint32_t id, struct call *call)
{
	struct pollfd pollfd = { .fd = fd, .events = POLLIN };

	if (poll(&pollfd, 1, 20000) != 1)
		return -1;
	call->out_id = pollfd.revents;
	return 0;
}

TEST_F(iommufd_revoke_viommu, poll_is_woken_up)
{
	struct call calls[3];
	int i;

	for (i = 0; i != ARRAY_SIZE(calls); i++) {
		calls[i] = (struct call){ .fn = call_poll,
					  .fd = self->veventq_fd };
		call_start(&calls[i]);
		EXPECT_WAITING(&calls[i]);
	}
	unregister();
	for (i = 0; i != ARRAY_SIZE(calls); i++) {
		EXPECT_EQ(0, call_end(&calls[i]));
		EXPECT_EQ(POLLHUP, calls[i].out_id);
	}
}

/* What is left when some of them were lost */
TEST_F(iommufd_revoke_viommu, lost_events)
{
	struct pollfd pollfd = { .fd = self->veventq_fd, .events = POLLIN };
	struct iommufd_vevent_header hdr;
	uint8_t events[4096];

	/* One more than there is room for */
	ASSERT_EQ(0, _test_cmd_trigger_vevents(self->vm.fd,
					       self->vm.device_id, 5));
	unregister();
	EXPECT_EQ(4 * (sizeof(hdr) + sizeof(struct iommu_viommu_event_selftest)) +
			  sizeof(hdr),
		  read(self->veventq_fd, events, sizeof(events)));
	ASSERT_EQ(1, poll(&pollfd, 1, 0));
	EXPECT_EQ(POLLHUP, pollfd.revents);
	EXPECT_ERRNO(ENODEV, read(self->veventq_fd, events, sizeof(events)));
}

/* Parts of the region, one that has moved, and the copy of another process */
TEST_F(iommufd_revoke_viommu, region_in_pieces)
{
	const size_t words = PAGE_SIZE / sizeof(uint32_t);
	int to_child[2], to_parent[2];
	uint32_t *moved;
	int status;
	pid_t pid;
	char c;

	ASSERT_EQ(0, pipe(to_child));
	ASSERT_EQ(0, pipe(to_parent));
	moved = region_map(self->vm.fd, &self->data);
	ASSERT_NE(MAP_FAILED, moved);
	EXPECT_EQ(0, touch(moved + words));
	/* A vma of each of the two pages, the first one at another place */
	ASSERT_EQ(0, munmap(self->region, PAGE_SIZE));
	self->region = NULL;
	moved = mremap(moved, PAGE_SIZE, PAGE_SIZE,
		       MREMAP_MAYMOVE | MREMAP_FIXED,
		       mmap(NULL, PAGE_SIZE, PROT_NONE,
			    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	ASSERT_NE(MAP_FAILED, moved);
	EXPECT_EQ(0x123, *moved);
	EXPECT_ERRNO(EBUSY, _test_ioctl_destroy(self->vm.fd, self->viommu_id));

	pid = fork();
	ASSERT_NE(-1, pid);
	if (!pid) {
		/* It is in its page table as well */
		c = *moved == 0x123;
		if (write(to_parent[1], &c, 1) != 1 ||
		    read(to_child[0], &c, 1) != 1)
			_exit(1);
		_exit(touch(moved) == SIGBUS ? 0 : 2);
	}
	ASSERT_EQ(1, read(to_parent[0], &c, 1));
	EXPECT_EQ(1, c);
	unregister();
	EXPECT_EQ(SIGBUS, touch(moved));
	ASSERT_EQ(1, write(to_child[1], &c, 1));
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_EQ(0, status);
	ASSERT_EQ(0, close(self->veventq_fd));
	self->veventq_fd = 0;
	EXPECT_EQ(0, _test_ioctl_destroy(self->vm.fd, self->viommu_id));
}

/* Nobody waits for a call that is stuck in user memory */

static int viommu_stalled(struct __test_metadata *_metadata,
			  struct _test_data_iommufd_revoke_viommu *self,
			  uint32_t request, void *arg, void *page, bool write,
			  int result)
{
	struct uffdio_zeropage zero = {
		.range = { (uintptr_t)page, PAGE_SIZE },
	};
	struct call call = {
		.fn = call_arg,
		.fd = self->vm.fd,
		.id = request,
		.arg = arg,
	};
	int uffd = uffd_open(page, write ? UFFDIO_REGISTER_MODE_WP :
					   UFFDIO_REGISTER_MODE_MISSING);

	if (uffd == -1)
		return -1;
	call_start(&call);
	ASSERT_EQ(0, uffd_wait(uffd));
	unregister();
	EXPECT_EQ(0, call_is_done(&call));
	EXPECT_EQ(0, write ? uffd_unprotect(uffd, page) :
			     ioctl(uffd, UFFDIO_ZEROPAGE, &zero));
	EXPECT_EQ(result, call_end(&call));
	ASSERT_EQ(0, close(uffd));
	expect_enodev(_metadata, self);
	return 0;
}

/* On a page of its own, the first of the buffer is what the queues are in */
static void *stalled_page(void)
{
	return buffer + PAGE_SIZE;
}

TEST_F(iommufd_revoke_viommu, viommu_alloc_stalled)
{
	struct iommu_viommu_alloc *cmd = stalled_page();

	*cmd = (struct iommu_viommu_alloc){
		.size = sizeof(*cmd),
		.type = IOMMU_VIOMMU_TYPE_SELFTEST,
		.dev_id = self->vm.device_id,
		.hwpt_id = self->vm.parent_id,
	};
	if (viommu_stalled(_metadata, self, IOMMU_VIOMMU_ALLOC, cmd, cmd, true,
			   0))
		SKIP(return, NEEDS_UFFD);
	EXPECT_ERRNO(ENODEV, invalidate(self->vm.fd, cmd->out_viommu_id));
	EXPECT_EQ(0, _test_ioctl_destroy(self->vm.fd, cmd->out_viommu_id));
}

TEST_F(iommufd_revoke_viommu, vdevice_alloc_stalled)
{
	struct iommu_vdevice_alloc *cmd = stalled_page();
	struct vm other = self->vm;

	ASSERT_EQ(0, vm_plug(&other, self->iommu_id));
	*cmd = (struct iommu_vdevice_alloc){
		.size = sizeof(*cmd),
		.viommu_id = self->viommu_id,
		.dev_id = other.device_id,
		.virt_id = 1,
	};
	if (viommu_stalled(_metadata, self, IOMMU_VDEVICE_ALLOC, cmd, cmd, true,
			   -ENODEV))
		SKIP(return, NEEDS_UFFD);
}

TEST_F(iommufd_revoke_viommu, veventq_alloc_stalled)
{
	struct iommu_veventq_alloc *cmd = stalled_page();
	struct pollfd pollfd = { .events = POLLIN };

	*cmd = (struct iommu_veventq_alloc){
		.size = sizeof(*cmd),
		.viommu_id = self->viommu_id,
		.type = IOMMU_VEVENTQ_TYPE_SELFTEST,
		.veventq_depth = 4,
	};
	ASSERT_EQ(0, close(self->veventq_fd));
	self->veventq_fd = 0;
	ASSERT_EQ(0, _test_ioctl_destroy(self->vm.fd, self->veventq_id));
	self->veventq_id = self->viommu_id;
	if (viommu_stalled(_metadata, self, IOMMU_VEVENTQ_ALLOC, cmd, cmd, true,
			   0))
		SKIP(return, NEEDS_UFFD);
	self->veventq_fd = cmd->out_veventq_fd;
	pollfd.fd = self->veventq_fd;
	ASSERT_EQ(1, poll(&pollfd, 1, 0));
	EXPECT_EQ(POLLHUP, pollfd.revents);
}

TEST_F(iommufd_revoke_viommu, queue_alloc_stalled)
{
	struct iommu_hw_queue_alloc *cmd = stalled_page();

	ASSERT_EQ(0, _test_ioctl_destroy(self->vm.fd, self->queue_id[1]));
	self->queue_id[1] = self->queue_id[0];
	*cmd = (struct iommu_hw_queue_alloc){
		.size = sizeof(*cmd),
		.viommu_id = self->viommu_id,
		.type = IOMMU_HW_QUEUE_TYPE_SELFTEST,
		.index = 1,
		.nesting_parent_iova = QUEUE_IOVA,
		.length = PAGE_SIZE,
	};
	if (viommu_stalled(_metadata, self, IOMMU_HW_QUEUE_ALLOC, cmd, cmd,
			   true, 0))
		SKIP(return, NEEDS_UFFD);
	EXPECT_ERRNO(ENODEV, invalidate(self->vm.fd, cmd->out_hw_queue_id));
	EXPECT_EQ(0, _test_ioctl_destroy(self->vm.fd, cmd->out_hw_queue_id));
}

/* In the first page of the data, or in one after it */
static int invalidate_stalled(struct __test_metadata *_metadata,
			      struct _test_data_iommufd_revoke_viommu *self,
			      uint32_t id, uint32_t type, uint32_t entry_len,
			      uint32_t done)
{
	uint8_t *page = stalled_page();
	struct iommu_hwpt_invalidate cmd = {
		.size = sizeof(cmd),
		.hwpt_id = id,
		.data_type = type,
		.entry_len = entry_len,
		.entry_num = done + 1,
		.data_uptr = (uintptr_t)page - done * entry_len,
	};

	if (viommu_stalled(_metadata, self, IOMMU_HWPT_INVALIDATE, &cmd, page,
			   false, -ENODEV))
		return -1;
	EXPECT_EQ(done, cmd.entry_num);
	return 0;
}

TEST_F(iommufd_revoke_viommu, invalidate_stalled)
{
	if (invalidate_stalled(_metadata, self, self->viommu_id,
			       IOMMU_VIOMMU_INVALIDATE_DATA_SELFTEST,
			       sizeof(struct iommu_viommu_invalidate_selftest),
			       0))
		SKIP(return, NEEDS_UFFD);
}

TEST_F(iommufd_revoke_viommu, invalidate_nested_stalled)
{
	if (invalidate_stalled(_metadata, self, self->nested_id,
			       IOMMU_HWPT_INVALIDATE_DATA_SELFTEST,
			       sizeof(struct iommu_hwpt_invalidate_selftest),
			       0))
		SKIP(return, NEEDS_UFFD);
}

/* The first piece is done */
TEST_F(iommufd_revoke_viommu, invalidate_stalled_later)
{
	struct iommu_viommu_invalidate_selftest *reqs;
	uint32_t i, num = 256;

	reqs = stalled_page() - num * sizeof(*reqs);
	for (i = 0; i != num; i++)
		reqs[i] = (struct iommu_viommu_invalidate_selftest){
			.vdev_id = VIRT_ID,
		};
	if (invalidate_stalled(_metadata, self, self->viommu_id,
			       IOMMU_VIOMMU_INVALIDATE_DATA_SELFTEST,
			       sizeof(*reqs), num))
		SKIP(return, NEEDS_UFFD);
}

TEST_HARNESS_MAIN
