// SPDX-License-Identifier: GPL-2.0-only
/*
 * A tour of the vIOMMU, in the order in which a VMM makes the calls.
 *
 * Everything here is the userspace API of <linux/iommufd.h>, but for the device:
 * a VMM gets one from vfio, with VFIO_DEVICE_BIND_IOMMUFD on an open
 * /dev/vfio/devices/vfioX. Here the kernel's mock IOMMU driver makes one, with a
 * mock IOMMU behind it, so that the tour runs on any machine. What the mock does
 * for hardware and for the administrator is in the functions that are marked so.
 *
 * Each step prints a line. The first one that does not come out as it must ends
 * the tour with exit status 1.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <linux/iommufd.h>
#include "iommufd_test.h"	/* the mock's test interface */

static int iommufd;

__attribute__((format(printf, 1, 2)))
static void say(const char *format, ...)
{
	static int step;
	va_list args;

	printf("%2d  ", ++step);
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	putchar('\n');
	fflush(stdout);
}

static void fail(const char *what)
{
	printf("    FAILED: %s: %s\n", what, strerror(errno));
	exit(1);
}

/*
 * Every ioctl of iommufd takes a pointer to a structure that begins with its own
 * size. So a program that was built against an older or a newer header works:
 * what a structure does not have counts as 0.
 */
static void must(const char *what, unsigned long request, void *arg)
{
	if (ioctl(iommufd, request, arg))
		fail(what);
}

/* The same for a call that must be refused */
static void must_not(const char *what, unsigned long request, void *arg,
		     int expected)
{
	if (!ioctl(iommufd, request, arg))
		errno = 0;
	if (errno != expected)
		fail(what);
}

static void destroy(uint32_t id)
{
	struct iommu_destroy cmd = { .size = sizeof(cmd), .id = id };

	must("IOMMU_DESTROY", IOMMU_DESTROY, &cmd);
}

static void destroy_refused(uint32_t id, int expected)
{
	struct iommu_destroy cmd = { .size = sizeof(cmd), .id = id };

	must_not("IOMMU_DESTROY", IOMMU_DESTROY, &cmd, expected);
}

/* Mock: a physical IOMMU appears in the machine */
static uint32_t register_iommu(void)
{
	struct iommu_test_cmd cmd = {
		.size = sizeof(cmd),
		.op = IOMMU_TEST_OP_IOMMU_REGISTER,
	};

	must("registering a mock IOMMU", IOMMU_TEST_CMD, &cmd);
	return cmd.iommu_register.out_iommu_id;
}

/* Mock: it goes away. Its driver has freed it when this returns. */
static void unregister_iommu(uint32_t iommu_id)
{
	struct iommu_test_cmd cmd = {
		.size = sizeof(cmd),
		.op = IOMMU_TEST_OP_IOMMU_UNREGISTER,
		.id = iommu_id,
	};

	must("unregistering the mock IOMMU", IOMMU_TEST_CMD, &cmd);
}

/* A device: "id" is what vfio would give to the VMM */
struct device {
	uint32_t id;
	uint32_t mock_id;
};

/* Mock: a device behind an IOMMU is plugged in and bound to the iommufd */
static struct device plug(uint32_t ioas_id, uint32_t iommu_id)
{
	struct iommu_test_cmd cmd = {
		.size = sizeof(cmd),
		.op = IOMMU_TEST_OP_MOCK_DOMAIN_IOMMU,
		.id = ioas_id,
		.mock_domain_iommu = { .iommu_id = iommu_id },
	};

	must("plugging a mock device", IOMMU_TEST_CMD, &cmd);
	return (struct device){
		.id = cmd.mock_domain_iommu.out_idev_id,
		.mock_id = cmd.mock_domain_iommu.out_stdev_id,
	};
}

/* Mock: and unplugged */
static void unplug(struct device device)
{
	destroy(device.mock_id);
}

/*
 * Mock: call the driver through the vIOMMU. Stands for the ioctls that will do
 * so, and fails as they do.
 */
static struct iommu_test_cmd viommu_call(uint32_t viommu_id)
{
	return (struct iommu_test_cmd){
		.size = sizeof(struct iommu_test_cmd),
		.op = IOMMU_TEST_OP_VIOMMU_CALL,
		.id = viommu_id,
	};
}

static uint32_t alloc_viommu(uint32_t dev_id, uint32_t parent_id)
{
	/*
	 * The type says which driver's vIOMMU it is to be, and so what the data
	 * is. The mock's answers with the number that it was given.
	 */
	struct iommu_viommu_selftest data = { .in_data = 42 };
	struct iommu_viommu_alloc cmd = {
		.size = sizeof(cmd),
		.type = IOMMU_VIOMMU_TYPE_SELFTEST,
		.dev_id = dev_id,
		.hwpt_id = parent_id,
		.data_len = sizeof(data),
		.data_uptr = (uintptr_t)&data,
	};

	must("IOMMU_VIOMMU_ALLOC", IOMMU_VIOMMU_ALLOC, &cmd);
	if (data.out_data != data.in_data) {
		errno = EPROTO;
		fail("the driver's answer");
	}
	return cmd.out_viommu_id;
}

int main(void)
{
	const size_t guest_size = 1 << 20;
	struct iommu_test_cmd call;
	uint32_t viommu_id[2];
	struct device device;
	uint32_t iommu_id;
	void *guest_memory;

	/* An iommufd belongs to one VM: all IDs are private to it */
	iommufd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	if (iommufd < 0)
		fail("open /dev/iommu");
	say("an iommufd: fd %d", iommufd);

	/* What the VM's memory looks like to devices: guest physical addresses */
	struct iommu_ioas_alloc ioas = { .size = sizeof(ioas) };

	must("IOMMU_IOAS_ALLOC", IOMMU_IOAS_ALLOC, &ioas);
	say("an I/O address space for the guest's memory: IOAS %u",
	    ioas.out_ioas_id);

	guest_memory = mmap(NULL, guest_size, PROT_READ | PROT_WRITE,
			    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (guest_memory == MAP_FAILED)
		fail("mmap");
	struct iommu_ioas_map map = {
		.size = sizeof(map),
		.flags = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE |
			 IOMMU_IOAS_MAP_WRITEABLE,
		.ioas_id = ioas.out_ioas_id,
		.user_va = (uintptr_t)guest_memory,
		.length = guest_size,
		.iova = 0x40000000,
	};

	must("IOMMU_IOAS_MAP", IOMMU_IOAS_MAP, &map);
	say("guest memory mapped: %zu KiB at guest physical address %#llx",
	    guest_size >> 10, (unsigned long long)map.iova);

	iommu_id = register_iommu();
	device = plug(ioas.out_ioas_id, iommu_id);
	say("a device behind the physical IOMMU %u is plugged in: device %u",
	    iommu_id, device.id);

	/* A VMM learns here what its emulated IOMMU may promise to the guest */
	struct iommu_hw_info info = {
		.size = sizeof(info),
		.dev_id = device.id,
	};

	must("IOMMU_GET_HW_INFO", IOMMU_GET_HW_INFO, &info);
	say("the physical IOMMU behind device %u is of type %#x", device.id,
	    info.out_data_type);

	/* Stage 2 of the translation, with what is mapped in the IOAS in it */
	struct iommu_hwpt_alloc parent = {
		.size = sizeof(parent),
		.flags = IOMMU_HWPT_ALLOC_NEST_PARENT,
		.dev_id = device.id,
		.pt_id = ioas.out_ioas_id,
	};

	must("IOMMU_HWPT_ALLOC", IOMMU_HWPT_ALLOC, &parent);
	say("a nesting parent for IOAS %u: HWPT %u", ioas.out_ioas_id,
	    parent.out_hwpt_id);

	viommu_id[0] = alloc_viommu(device.id, parent.out_hwpt_id);
	say("the VM's slice of the physical IOMMU behind device %u: vIOMMU %u",
	    device.id, viommu_id[0]);

	destroy_refused(parent.out_hwpt_id, EBUSY);
	say("HWPT %u cannot be destroyed: EBUSY, vIOMMU %u uses it",
	    parent.out_hwpt_id, viommu_id[0]);

	/* The vIOMMU has a reference on the physical IOMMU, not on the device */
	unplug(device);
	must_not("IOMMU_GET_HW_INFO", IOMMU_GET_HW_INFO, &info, ENOENT);
	say("device %u is unplugged at once, its ID answers ENOENT", device.id);

	call = viommu_call(viommu_id[0]);
	must("calling the vIOMMU", IOMMU_TEST_CMD, &call);
	say("vIOMMU %u still answers", viommu_id[0]);

	device = plug(ioas.out_ioas_id, iommu_id);
	say("a device is plugged in again, behind the same physical IOMMU: device %u",
	    device.id);

	viommu_id[1] = alloc_viommu(device.id, parent.out_hwpt_id);
	say("device %u leads to the same physical IOMMU: vIOMMU %u on HWPT %u",
	    device.id, viommu_id[1], parent.out_hwpt_id);

	/*
	 * Children first, in whatever order is convenient otherwise. Closing the
	 * iommufd would do it as well.
	 */
	destroy(viommu_id[0]);
	destroy_refused(viommu_id[0], ENOENT);
	say("vIOMMU %u is destroyed, its ID answers ENOENT", viommu_id[0]);

	/*
	 * Somebody takes the physical IOMMU away, or unbinds its driver. That
	 * does not wait for the VMM. What the VMM notices is ENODEV, and what it
	 * has to do is to clean up and to treat the devices as unplugged.
	 */
	unregister_iommu(iommu_id);
	say("the physical IOMMU %u goes away under device %u and vIOMMU %u, at once",
	    iommu_id, device.id, viommu_id[1]);
	info.dev_id = device.id;
	must_not("IOMMU_GET_HW_INFO", IOMMU_GET_HW_INFO, &info, ENODEV);
	call = viommu_call(viommu_id[1]);
	must_not("calling the vIOMMU", IOMMU_TEST_CMD, &call, ENODEV);
	say("device %u and vIOMMU %u answer ENODEV", device.id, viommu_id[1]);
	unplug(device);
	say("device %u is unplugged like any other", device.id);

	destroy(parent.out_hwpt_id);
	say("HWPT %u is in use by nobody now, and destroyed",
	    parent.out_hwpt_id);
	destroy(viommu_id[1]);
	say("vIOMMU %u is destroyed like any other", viommu_id[1]);
	destroy(ioas.out_ioas_id);
	if (close(iommufd))
		fail("close");
	say("everything is cleaned up");
	return 0;
}
