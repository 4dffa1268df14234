// SPDX-License-Identifier: GPL-2.0-only
/*
 * A tour of the vIOMMU, in the order in which a VMM makes the calls.
 *
 * Everything here is the userspace API of <linux/iommufd.h>, but for the device:
 * a VMM gets one from vfio, with VFIO_DEVICE_BIND_IOMMUFD on an open
 * /dev/vfio/devices/vfioX. Here the kernel's mock IOMMU driver makes one, with a
 * mock IOMMU behind it, so that the tour runs on any machine. What the mock does
 * for hardware and for the administrator is in the functions that are marked so.
 */
#include <fcntl.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <linux/iommufd.h>
#include "say.h"
#include "iommufd_test.h"	/* the mock's test interface */

static int iommufd;

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

/*
 * Mock: a physical IOMMU appears in the machine. Its page tables can be used on
 * others of its kind as well.
 */
static uint32_t register_iommu(void)
{
	struct iommu_test_cmd cmd = {
		.size = sizeof(cmd),
		.op = IOMMU_TEST_OP_IOMMU_REGISTER,
		.iommu_register = { .flags = MOCK_IOMMU_SHARED_DOMAINS },
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
 * Mock: attach a device. A VMM does so with VFIO_DEVICE_ATTACH_IOMMUFD_PT, which
 * replaces what the device was attached to.
 */
static void attach(struct device device, uint32_t pt_id)
{
	struct iommu_test_cmd cmd = {
		.size = sizeof(cmd),
		.op = IOMMU_TEST_OP_MOCK_DOMAIN_REPLACE,
		.id = device.mock_id,
		.mock_domain_replace = { .pt_id = pt_id },
	};

	must("attaching a mock device", IOMMU_TEST_CMD, &cmd);
}

/* Mock: the device does DMA that the guest has not allowed */
static void fault(struct device device)
{
	struct iommu_test_cmd cmd = {
		.size = sizeof(cmd),
		.op = IOMMU_TEST_OP_TRIGGER_VEVENT,
		.trigger_vevent = { .dev_id = device.id },
	};

	must("an event of a mock device", IOMMU_TEST_CMD, &cmd);
}

/* Mock: whether what the device has cached of its translations is there or gone */
static void check_cache(struct device device, uint32_t value)
{
	struct iommu_test_cmd cmd = {
		.size = sizeof(cmd),
		.op = IOMMU_TEST_OP_DEV_CHECK_CACHE,
		.id = device.id,
		.check_dev_cache = { .id = 0, .cache = value },
	};

	must("the cache of a mock device", IOMMU_TEST_CMD, &cmd);
}

/* The VM's slice of a physical IOMMU, with a page that the guest may access */
struct viommu {
	uint32_t id;
	uint32_t *page;
	size_t length;
};

static struct viommu alloc_viommu(struct device device, uint32_t parent_id)
{
	/*
	 * The type says which driver's vIOMMU it is to be, and so what the data
	 * is. The mock's answers with the number that it was given, and with a
	 * region to map, which begins with it.
	 */
	struct iommu_viommu_selftest data = { .in_data = 42 };
	struct iommu_viommu_alloc cmd = {
		.size = sizeof(cmd),
		.type = IOMMU_VIOMMU_TYPE_SELFTEST,
		.dev_id = device.id,
		.hwpt_id = parent_id,
		.data_len = sizeof(data),
		.data_uptr = (uintptr_t)&data,
	};
	struct viommu viommu;

	must("IOMMU_VIOMMU_ALLOC", IOMMU_VIOMMU_ALLOC, &cmd);
	viommu.id = cmd.out_viommu_id;
	viommu.length = data.out_mmap_length;
	viommu.page = mmap(NULL, viommu.length, PROT_READ | PROT_WRITE,
			   MAP_SHARED, iommufd, data.out_mmap_offset);
	if (viommu.page == MAP_FAILED)
		fail("mmap of the vIOMMU's region");
	if (data.out_data != data.in_data || *viommu.page != data.in_data) {
		errno = EPROTO;
		fail("the driver's answer");
	}
	return viommu;
}

static uint32_t alloc_vdevice(struct viommu viommu, struct device device,
			      uint64_t virt_id)
{
	struct iommu_vdevice_alloc cmd = {
		.size = sizeof(cmd),
		.viommu_id = viommu.id,
		.dev_id = device.id,
		.virt_id = virt_id,
	};

	must("IOMMU_VDEVICE_ALLOC", IOMMU_VDEVICE_ALLOC, &cmd);
	return cmd.out_vdevice_id;
}

/* What a guest's page table becomes, or what stands for "bypass" and "abort" */
static uint32_t alloc_nested(struct viommu viommu, struct device device)
{
	struct iommu_hwpt_selftest data = { .iotlb = IOMMU_TEST_IOTLB_DEFAULT };
	struct iommu_hwpt_alloc cmd = {
		.size = sizeof(cmd),
		.dev_id = device.id,
		.pt_id = viommu.id,
		.data_type = IOMMU_HWPT_DATA_SELFTEST,
		.data_len = sizeof(data),
		.data_uptr = (uintptr_t)&data,
	};

	must("IOMMU_HWPT_ALLOC", IOMMU_HWPT_ALLOC, &cmd);
	return cmd.out_hwpt_id;
}

/* Commands of the guest's, in the guest's terms, as many as there are at once */
static struct iommu_hwpt_invalidate
invalidation(struct viommu viommu,
	     struct iommu_viommu_invalidate_selftest *commands, uint32_t num)
{
	return (struct iommu_hwpt_invalidate){
		.size = sizeof(struct iommu_hwpt_invalidate),
		.hwpt_id = viommu.id,
		.data_type = IOMMU_VIOMMU_INVALIDATE_DATA_SELFTEST,
		.data_uptr = (uintptr_t)commands,
		.entry_len = sizeof(*commands),
		.entry_num = num,
	};
}

static void read_event(int fd, uint32_t virt_id, const char *what)
{
	struct {
		struct iommufd_vevent_header header;
		struct iommu_viommu_event_selftest event;
	} event;
	struct pollfd pollfd = { .fd = fd, .events = POLLIN };

	if (poll(&pollfd, 1, 1000) != 1 ||
	    read(fd, &event, sizeof(event)) != sizeof(event))
		fail("reading an event");
	if (event.event.virt_id != virt_id) {
		errno = EPROTO;
		fail(what);
	}
	say("an event of the device that the guest calls %#x, number %u", virt_id,
	    event.header.sequence);
}

static sigjmp_buf after_sigbus;

static void on_sigbus(int sig)
{
	siglongjmp(after_sigbus, 1);
}

/* Whether an access to what was mapped gets SIGBUS */
static int is_gone(volatile uint32_t *page)
{
	if (sigsetjmp(after_sigbus, 1))
		return 1;
	(void)*page;
	return 0;
}

int main(int argc, char **argv)
{
	/* What the guest calls its devices */
	enum { GUEST_NIC = 0x10, GUEST_GPU = 0x20 };
	struct iommu_viommu_invalidate_selftest commands[2];
	struct sigaction sigbus = { .sa_handler = on_sigbus };
	const size_t guest_size = 1 << 20;
	struct iommu_hwpt_invalidate invalidate;
	uint32_t iommu[2], vdevice[2], nested[2];
	struct viommu viommu[2];
	struct device nic, gpu;
	void *guest_memory;

	begin(argc, argv);

	title("A VM, and two devices for it");
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

	iommu[0] = register_iommu();
	nic = plug(ioas.out_ioas_id, iommu[0]);
	iommu[1] = register_iommu();
	gpu = plug(ioas.out_ioas_id, iommu[1]);
	say("two devices: %u behind the physical IOMMU %u, %u behind %u", nic.id,
	    iommu[0], gpu.id, iommu[1]);

	/* A VMM learns here what its emulated IOMMU may promise to the guest */
	struct iommu_hw_info info = { .size = sizeof(info), .dev_id = nic.id };

	must("IOMMU_GET_HW_INFO", IOMMU_GET_HW_INFO, &info);
	say("the physical IOMMU behind device %u is of type %#x", nic.id,
	    info.out_data_type);

	proves("a VMM sets a VM up with the calls that it knows");

	title("A vIOMMU for each physical IOMMU");
	/* Stage 2 of the translation, with what is mapped in the IOAS in it */
	struct iommu_hwpt_alloc parent = {
		.size = sizeof(parent),
		.flags = IOMMU_HWPT_ALLOC_NEST_PARENT,
		.dev_id = nic.id,
		.pt_id = ioas.out_ioas_id,
	};

	must("IOMMU_HWPT_ALLOC", IOMMU_HWPT_ALLOC, &parent);
	say("a nesting parent for IOAS %u, for both: HWPT %u", ioas.out_ioas_id,
	    parent.out_hwpt_id);

	viommu[0] = alloc_viommu(nic, parent.out_hwpt_id);
	viommu[1] = alloc_viommu(gpu, parent.out_hwpt_id);
	say("the VM's slices of the physical IOMMUs: vIOMMU %u and vIOMMU %u",
	    viommu[0].id, viommu[1].id);
	say("each has a region of %zu bytes for the guest, mapped at %p and %p",
	    viommu[0].length, viommu[0].page, viommu[1].page);

	destroy_refused(parent.out_hwpt_id, EBUSY);
	say("HWPT %u cannot be destroyed: EBUSY, they use it",
	    parent.out_hwpt_id);

	/* The guest numbers its devices, on each of its IOMMUs */
	vdevice[0] = alloc_vdevice(viommu[0], nic, GUEST_NIC);
	vdevice[1] = alloc_vdevice(viommu[1], gpu, GUEST_GPU);
	say("the guest calls them %#x and %#x: vDEVICE %u and vDEVICE %u",
	    GUEST_NIC, GUEST_GPU, vdevice[0], vdevice[1]);

	/* The guest's driver has set up page tables: stage 1 */
	nested[0] = alloc_nested(viommu[0], nic);
	nested[1] = alloc_nested(viommu[1], gpu);
	attach(nic, nested[0]);
	attach(gpu, nested[1]);
	say("attached to what the guest translates: HWPT %u and HWPT %u",
	    nested[0], nested[1]);

	proves("one stage 2 serves vIOMMUs on two IOMMUs, and what is in use stays");

	title("The guest's commands");
	/* The guest has changed them, and tells its IOMMU */
	check_cache(nic, IOMMU_TEST_DEV_CACHE_DEFAULT);
	commands[0] = (struct iommu_viommu_invalidate_selftest){
		.vdev_id = GUEST_NIC,
	};
	commands[1] = commands[0];
	commands[1].cache_id = 1;
	invalidate = invalidation(viommu[0], commands, 2);
	must("IOMMU_HWPT_INVALIDATE", IOMMU_HWPT_INVALIDATE, &invalidate);
	check_cache(nic, 0);
	say("%u invalidation commands of the guest's are done",
	    invalidate.entry_num);

	/* A command that is wrong ends it, and the VMM knows where */
	commands[1].vdev_id = GUEST_GPU;
	invalidate = invalidation(viommu[0], commands, 2);
	must_not("IOMMU_HWPT_INVALIDATE", IOMMU_HWPT_INVALIDATE, &invalidate,
		 EINVAL);
	check_cache(gpu, IOMMU_TEST_DEV_CACHE_DEFAULT);
	say("one with a device that is not on this vIOMMU: EINVAL after %u",
	    invalidate.entry_num);

	proves("commands in the guest's own numbers reach its devices, and no others");

	title("The guest's events and queues");
	struct iommu_veventq_alloc veventq = {
		.size = sizeof(veventq),
		.viommu_id = viommu[0].id,
		.type = IOMMU_VEVENTQ_TYPE_SELFTEST,
		.veventq_depth = 64,
	};

	must("IOMMU_VEVENTQ_ALLOC", IOMMU_VEVENTQ_ALLOC, &veventq);
	say("a queue for what the guest is to know: vEVENTQ %u, fd %u",
	    veventq.out_veventq_id, veventq.out_veventq_fd);
	fault(nic);
	read_event(veventq.out_veventq_fd, GUEST_NIC, "the event");

	/* A command queue that hardware reads from the guest's memory */
	struct iommu_hw_queue_alloc hw_queue = {
		.size = sizeof(hw_queue),
		.viommu_id = viommu[0].id,
		.type = IOMMU_HW_QUEUE_TYPE_SELFTEST,
		.nesting_parent_iova = map.iova + 0x1000,
		.length = 0x1000,
	};

	must("IOMMU_HW_QUEUE_ALLOC", IOMMU_HW_QUEUE_ALLOC, &hw_queue);
	say("a queue in the guest's memory, at %#llx: HW queue %u",
	    (unsigned long long)hw_queue.nesting_parent_iova,
	    hw_queue.out_hw_queue_id);

	struct iommu_ioas_unmap unmap = {
		.size = sizeof(unmap),
		.ioas_id = ioas.out_ioas_id,
		.iova = map.iova,
		.length = guest_size,
	};

	must_not("IOMMU_IOAS_UNMAP", IOMMU_IOAS_UNMAP, &unmap, EBUSY);
	say("that memory cannot be unmapped: EBUSY");

	proves("the guest hears of its device, and memory that hardware reads stays");

	title("Hot-unplug");
	/* Hot-unplug. Nothing here holds the device: not the vIOMMU, not the vDEVICE */
	unplug(nic);
	destroy_refused(vdevice[0], ENOENT);
	say("device %u is unplugged at once, and vDEVICE %u with it", nic.id,
	    vdevice[0]);

	nic = plug(ioas.out_ioas_id, iommu[0]);
	vdevice[0] = alloc_vdevice(viommu[0], nic, GUEST_NIC);
	attach(nic, nested[0]);
	fault(nic);
	read_event(veventq.out_veventq_fd, GUEST_NIC, "the event");
	say("another one has its place: device %u, vDEVICE %u, same vIOMMU %u",
	    nic.id, vdevice[0], viommu[0].id);

	proves("a device can be unplugged at any time, and its place taken again");

	title("A physical IOMMU goes away");
	/*
	 * Somebody takes a physical IOMMU away, or unbinds its driver. That does
	 * not wait for the VMM. What the VMM notices is ENODEV, and what it has to
	 * do is to clean up and to treat the devices as unplugged.
	 */
	if (sigaction(SIGBUS, &sigbus, NULL))
		fail("sigaction");
	fault(nic);
	unregister_iommu(iommu[0]);
	say("the physical IOMMU %u goes away under all that, at once", iommu[0]);
	info.dev_id = nic.id;
	must_not("IOMMU_GET_HW_INFO", IOMMU_GET_HW_INFO, &info, ENODEV);
	invalidate = invalidation(viommu[0], commands, 1);
	must_not("IOMMU_HWPT_INVALIDATE", IOMMU_HWPT_INVALIDATE, &invalidate,
		 ENODEV);
	say("device %u, vIOMMU %u and what is on it answer ENODEV", nic.id,
	    viommu[0].id);
	if (!is_gone(viommu[0].page)) {
		errno = EPROTO;
		fail("the region of the vIOMMU");
	}
	say("the region at %p is gone: SIGBUS", viommu[0].page);
	read_event(veventq.out_veventq_fd, GUEST_NIC, "the last event");
	if (read(veventq.out_veventq_fd, commands, sizeof(commands)) >= 0 ||
	    errno != ENODEV)
		fail("reading after the last event");
	say("that was the last one: ENODEV");

	/* and the rest of the VM goes on */
	commands[0].vdev_id = GUEST_GPU;
	invalidate = invalidation(viommu[1], commands, 1);
	must("IOMMU_HWPT_INVALIDATE", IOMMU_HWPT_INVALIDATE, &invalidate);
	check_cache(gpu, 0);
	if (is_gone(viommu[1].page))
		fail("the region of the other vIOMMU");
	say("device %u and vIOMMU %u go on, on HWPT %u as before", gpu.id,
	    viommu[1].id, parent.out_hwpt_id);

	proves("it does not wait for the VMM, leaves nothing in use behind, and harms no other");

	title("The end");
	/* What is left can be destroyed in any order, but for what user space has */
	unplug(nic);
	destroy(viommu[0].id);
	destroy(vdevice[0]);
	destroy(nested[0]);
	destroy(hw_queue.out_hw_queue_id);
	close(veventq.out_veventq_fd);
	destroy(veventq.out_veventq_id);
	must("IOMMU_IOAS_UNMAP", IOMMU_IOAS_UNMAP, &unmap);
	say("device %u is unplugged like any other, all that is left is destroyed",
	    nic.id);

	/* Children first. Closing the iommufd would do it as well. */
	destroy_refused(viommu[1].id, EBUSY);
	if (munmap(viommu[1].page, viommu[1].length))
		fail("munmap");
	attach(gpu, ioas.out_ioas_id);
	destroy(nested[1]);
	destroy(vdevice[1]);
	destroy(viommu[1].id);
	destroy(parent.out_hwpt_id);
	unplug(gpu);
	unregister_iommu(iommu[1]);
	destroy(ioas.out_ioas_id);
	if (close(iommufd))
		fail("close");
	say("everything is cleaned up");
	proves("all can be given back");
	printf("\n%sShown in %d steps and %.1f s: vIOMMUs on two physical IOMMUs, a hot-unplug, and an IOMMU that went away under its users.%s\n",
	       bold, steps, seconds(), plain);
	return 0;
}
