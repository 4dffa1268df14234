// SPDX-License-Identifier: GPL-2.0-only
/*
 * The second act: a real IOMMU is taken away with one line in a shell, that of vm/run -m
 * virtio, under a device that does DMA for a program ("edu", which does it when told to)
 * and under a driver in the kernel. Then it comes back.
 */
#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <linux/iommufd.h>
#include <linux/pci_regs.h>
#include <linux/vfio.h>
#include "say.h"

#define DRIVER "/sys/bus/virtio/drivers/virtio_iommu/"
#define EDU "0000:00:10.0"
/* Both, since the kernel reads one of them */
#define RNG "0000:00:12.0"
#define OTHER_RNG "0000:00:11.1"
#define EDU_BUFFER 0x40000
#define IOVA 0x10000
/* QEMU 7.2 takes the device's whole buffer, a page, for too much */
#define SIZE 2048

static int iommufd, edu;
static uint32_t dev_id, ioas_id;
static volatile uint8_t *regs;
static uint8_t *mem;	/* two pages: the first is mapped, the second never */
static char iommu[32];

static void must(int good, const char *what)
{
	if (!good)
		fail(what);
}

static int write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	int good = fd != -1 && write(fd, text, strlen(text)) > 0;

	if (fd != -1)
		close(fd);
	return good;
}

static void find_iommu(void)
{
	DIR *dir = opendir(DRIVER);
	struct dirent *entry;

	while (dir && (entry = readdir(dir)))
		if (!strncmp(entry->d_name, "virtio", 6))
			snprintf(iommu, sizeof(iommu), "%.31s", entry->d_name);
	must(iommu[0], "looking for the virtio-iommu");
	closedir(dir);
}

/* Its driver is bound to a PCI device anew */
static int rebind(const char *name)
{
	char path[100];

	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/driver/unbind", name);
	return write_file(path, name) && write_file("/sys/bus/pci/drivers_probe", name);
}

/* What every VMM does with a device */
static int open_edu(void)
{
	struct vfio_device_bind_iommufd bind = { .argsz = sizeof(bind), .iommufd = iommufd };
	struct vfio_region_info bar = { .argsz = sizeof(bar), .index = VFIO_PCI_BAR0_REGION_INDEX };
	struct vfio_region_info config = { .argsz = sizeof(config), .index = VFIO_PCI_CONFIG_REGION_INDEX };
	struct vfio_device_attach_iommufd_pt attach = { .argsz = sizeof(attach), .pt_id = ioas_id };
	uint16_t command = PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER;
	char path[300] = "/sys/bus/pci/devices/" EDU "/vfio-dev";
	struct dirent *entry;
	DIR *dir = opendir(path);

	edu = -1;
	while (dir && (entry = readdir(dir)))
		if (!strncmp(entry->d_name, "vfio", 4)) {
			snprintf(path, sizeof(path), "/dev/vfio/devices/%.200s", entry->d_name);
			edu = open(path, O_RDWR | O_CLOEXEC);
		}
	if (dir)
		closedir(dir);
	must(edu != -1, "opening the device");
	if (ioctl(edu, VFIO_DEVICE_BIND_IOMMUFD, &bind)) {
		close(edu);
		return 0;
	}
	dev_id = bind.out_devid;
	must(!ioctl(edu, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach), "attaching the device");
	must(!ioctl(edu, VFIO_DEVICE_GET_REGION_INFO, &bar) &&
	     !ioctl(edu, VFIO_DEVICE_GET_REGION_INFO, &config), "looking for its registers");
	regs = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, edu, bar.offset);
	must(regs != MAP_FAILED, "mapping its registers");
	must(pwrite(edu, &command, 2, config.offset + PCI_COMMAND) == 2, "letting it do DMA");
	return 1;
}

static void reg(unsigned int offset, uint64_t value)
{
	*(volatile uint64_t *)(regs + offset) = value;
}

/* It copies half a page from memory, or to memory, and says when it is done */
static void dma(uint64_t from, uint64_t to, unsigned int command)
{
	struct timespec ms = { .tv_nsec = 1000000 };

	reg(0x80, from);
	reg(0x88, to);
	reg(0x90, SIZE);
	reg(0x98, command | 1);
	while (*(volatile uint64_t *)(regs + 0x98) & 1)
		nanosleep(&ms, NULL);
}

static void map(void *what, uint64_t iova)
{
	struct iommu_ioas_map cmd = {
		.size = sizeof(cmd), .ioas_id = ioas_id, .length = 4096, .iova = iova,
		.flags = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE | IOMMU_IOAS_MAP_WRITEABLE,
		.user_va = (uintptr_t)what,
	};

	must(!ioctl(iommufd, IOMMU_IOAS_MAP, &cmd), "mapping a page");
}

/* Where a page is in memory, which only root is told */
static uint64_t address_of(void *page)
{
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	uint64_t entry = 0;

	must(fd != -1 && pread(fd, &entry, 8, (uintptr_t)page / 4096 * 8) == 8, "looking for a page");
	close(fd);
	return (entry & ((1ULL << 55) - 1)) * 4096;
}

/* Whether a virtio-rng's driver gets bytes from it, in 5 seconds; it keeps some */
static int random_bytes(void)
{
	char bytes[512];
	int status, fd;
	pid_t pid = fork();

	if (!pid) {
		alarm(5);
		fd = open("/dev/hwrng", O_RDONLY | O_CLOEXEC);
		_exit(fd != -1 && read(fd, bytes, 8) == 8 && read(fd, bytes, sizeof(bytes)) > 8 ? 0 : 1);
	}
	waitpid(pid, &status, 0);
	return WIFEXITED(status) && !WEXITSTATUS(status);
}

int main(int argc, char **argv)
{
	struct iommu_ioas_alloc alloc = { .size = sizeof(alloc) };
	struct iommu_hw_info info = { .size = sizeof(info) };
	uint64_t behind;
	double took;

	begin(argc, argv);
	find_iommu();
	iommufd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	must(iommufd != -1, "opening /dev/iommu");
	must(!ioctl(iommufd, IOMMU_IOAS_ALLOC, &alloc), "allocating an IOAS");
	ioas_id = alloc.out_ioas_id;
	mem = mmap(NULL, 2 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	must(mem != MAP_FAILED, "getting memory");

	title("A real IOMMU, and what is behind it");
	must(open_edu(), "binding the device");
	/* Pinned, so that it stays where it is */
	map(mem + 4096, IOVA + 4096);
	behind = address_of(mem + 4096);
	must(behind, "looking for a page");
	map(mem, behind);
	memset(mem, 'a', 4096);
	memset(mem + 4096, 'b', 4096);
	dma(behind, EDU_BUFFER, 0);
	memset(mem, 'c', 4096);
	dma(EDU_BUFFER, behind, 2);
	must(mem[0] == 'a' && mem[SIZE - 1] == 'a' && mem[4096] == 'b', "DMA");
	say("the device " EDU " does DMA to 0x%llx, where page 1 of the VMM is mapped", (unsigned long long)behind);
	must(random_bytes(), "reading random bytes");
	say("a driver of the kernel has " RNG " and " OTHER_RNG ", and gets random bytes by DMA");

	title("The IOMMU goes away under them");
	took = seconds();
	must(write_file(DRIVER "unbind", iommu), "unbinding the driver of the IOMMU");
	took = seconds() - took;
	say("echo %s >%sunbind: done in %.3f s", iommu, DRIVER, took);
	memset(mem, 'c', 4096);
	dma(EDU_BUFFER, behind, 2);
	must(mem[0] == 'c' && mem[SIZE - 1] == 'c', "the mapped page is as it was");
	must(mem[4096] == 'b' && mem[4096 + SIZE - 1] == 'b', "memory at that address is as it was");
	say("the device does that DMA again: neither page 1 nor memory at 0x%llx changes", (unsigned long long)behind);
	info.dev_id = dev_id;
	must(ioctl(iommufd, IOMMU_GET_HW_INFO, &info) && errno == ENODEV, "ENODEV");
	say("the VMM asks about its device %u: ENODEV", dev_id);
	must(!random_bytes(), "the driver gets no random bytes");
	say("the driver of " RNG " and " OTHER_RNG " is still there, and maps nothing");
	proves("no one was asked, nothing crashes, and no DMA arrives anywhere");

	title("It comes back");
	must(write_file(DRIVER "bind", iommu), "binding the driver of the IOMMU");
	say("echo %s >%sbind", iommu, DRIVER);
	munmap((void *)regs, 4096);
	close(edu);
	must(rebind(EDU), "binding vfio-pci anew");
	must(open_edu(), "binding the device");
	dma(behind, EDU_BUFFER, 0);
	memset(mem, 'd', 4096);
	dma(EDU_BUFFER, behind, 2);
	must(mem[0] == 'c' && mem[SIZE - 1] == 'c' && mem[4096] == 'b', "DMA");
	say("vfio-pci is bound to the device anew: its DMA arrives in page 1, of the same IOAS");
	must(rebind(RNG) && rebind(OTHER_RNG), "binding the drivers anew");
	must(random_bytes(), "reading random bytes");
	say("so is the driver of " RNG " and " OTHER_RNG ": it gets random bytes");
	proves("it takes a new bind of each driver");
	return 0;
}
