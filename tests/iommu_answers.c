// SPDX-License-Identifier: GPL-2.0-only
/*
 * What iommufd says about the IOMMU of this machine, a line for each question: its name,
 * a tab, the answer. scripts/answers makes a table of these. It asks for the first device
 * that is in the hands of vfio-pci; built with mainline's header, as a VMM is.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <linux/iommufd.h>
#include <linux/vfio.h>

#define DEVICES "/sys/bus/pci/devices"
#define VIRTIO_IOMMU "/sys/bus/virtio/drivers/virtio_iommu"

static int iommufd, device;
static uint32_t dev_id, ioas_id, parent_id;

static const char *name(int err)
{
	return strerrorname_np(err) ?: "unknown error";
}

static const char *error(void)
{
	return name(errno);
}

/* That is an answer, too */
static void fail(const char *what)
{
	const char *why = error();

	printf("%s\t%s\n", what, why);
	fprintf(stderr, "iommu_answers: %s: %s\n", what, why);
	exit(1);
}

/* /dev/vfio/devices/NAME of the first device that has one */
static void open_device(void)
{
	char path[600];
	struct dirent *entry, *vfio;
	DIR *devices, *dir;
	int err = ENOENT;

	device = -1;
	devices = opendir(DEVICES);
	if (!devices)
		fail(DEVICES);
	while (device == -1 && (entry = readdir(devices))) {
		snprintf(path, sizeof(path), DEVICES "/%s/vfio-dev", entry->d_name);
		dir = opendir(path);
		if (!dir)
			continue;
		while ((vfio = readdir(dir))) {
			if (vfio->d_name[0] == '.')
				continue;
			snprintf(path, sizeof(path), "/dev/vfio/devices/%s", vfio->d_name);
			device = open(path, O_RDWR);
			err = errno;
			break;
		}
		closedir(dir);
	}
	closedir(devices);
	errno = err;
	if (device == -1)
		fail("device in the hands of vfio-pci");
}

static void setup(void)
{
	struct vfio_device_bind_iommufd bind = { .argsz = sizeof(bind) };
	struct iommu_ioas_alloc alloc = { .size = sizeof(alloc) };
	struct vfio_device_attach_iommufd_pt attach = { .argsz = sizeof(attach) };

	iommufd = open("/dev/iommu", O_RDWR);
	if (iommufd == -1)
		fail("/dev/iommu");
	open_device();
	bind.iommufd = iommufd;
	if (ioctl(device, VFIO_DEVICE_BIND_IOMMUFD, &bind))
		fail("VFIO_DEVICE_BIND_IOMMUFD");
	dev_id = bind.out_devid;
	if (ioctl(iommufd, IOMMU_IOAS_ALLOC, &alloc))
		fail("IOMMU_IOAS_ALLOC");
	ioas_id = alloc.out_ioas_id;
	/* The ranges are of what is attached */
	attach.pt_id = ioas_id;
	if (ioctl(device, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach))
		fail("VFIO_DEVICE_ATTACH_IOMMUFD_PT");
}

static void ask_hw_info(void)
{
	static uint8_t data[256];
	struct iommu_hw_info info = {
		.size = sizeof(info),
		.dev_id = dev_id,
		.data_len = sizeof(data),
		.data_uptr = (uintptr_t)data,
	};

	if (ioctl(iommufd, IOMMU_GET_HW_INFO, &info)) {
		printf("HW_INFO: type, bytes of data\t%s\n", error());
		return;
	}
	printf("HW_INFO: type, bytes of data\t%u, %u\n", info.out_data_type, info.data_len);
	printf("HW_INFO: capabilities\t%#llx\n", (unsigned long long)info.out_capabilities);
	printf("HW_INFO: bits of a PASID\t%u\n", info.out_max_pasid_log2);
}

static void ask_ranges(void)
{
	struct iommu_iova_range range[16];
	struct iommu_ioas_iova_ranges ranges = {
		.size = sizeof(ranges),
		.ioas_id = ioas_id,
		.num_iovas = 16,
		.allowed_iovas = (uintptr_t)range,
	};
	unsigned int i;

	if (ioctl(iommufd, IOMMU_IOAS_IOVA_RANGES, &ranges)) {
		printf("IOVAs\t%s\n", error());
		return;
	}
	printf("IOVAs\t");
	for (i = 0; i != ranges.num_iovas; i++)
		printf("%s%llx-%llx", i ? " " : "", (unsigned long long)range[i].start,
		       (unsigned long long)range[i].last);
	printf("\nalignment of IOVAs\t%llu\n", (unsigned long long)ranges.out_iova_alignment);
}

/* 0, or an errno with the ID 0 */
static int alloc_hwpt(uint32_t flags, uint32_t fault_id, uint32_t *id)
{
	struct iommu_hwpt_alloc alloc = {
		.size = sizeof(alloc),
		.flags = flags,
		.dev_id = dev_id,
		.pt_id = ioas_id,
		.fault_id = fault_id,
	};
	int ret;

	ret = ioctl(iommufd, IOMMU_HWPT_ALLOC, &alloc) ? errno : 0;
	*id = ret ? 0 : alloc.out_hwpt_id;
	return ret;
}

static void ask_hwpt(const char *what, uint32_t flags, uint32_t fault_id, uint32_t *id)
{
	uint32_t unused;
	int ret = alloc_hwpt(flags, fault_id, id ?: &unused);

	printf("HWPT_ALLOC: %s\t%s\n", what, ret ? name(ret) : "yes");
}

static void ask_fault_queue(void)
{
	struct iommu_fault_alloc alloc = { .size = sizeof(alloc) };
	struct vfio_device_attach_iommufd_pt attach = { .argsz = sizeof(attach) };
	uint32_t id;
	int ret;

	if (ioctl(iommufd, IOMMU_FAULT_QUEUE_ALLOC, &alloc)) {
		printf("fault queue\t%s\n", error());
		return;
	}
	ret = alloc_hwpt(IOMMU_HWPT_FAULT_ID_VALID, alloc.out_fault_id, &id);
	if (ret) {
		printf("fault queue\tHWPT_ALLOC: %s\n", name(ret));
		return;
	}
	attach.pt_id = id;
	if (ioctl(device, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach))
		printf("fault queue\tattach: %s\n", error());
	else
		printf("fault queue\tyes\n");
	attach.pt_id = ioas_id;
	if (ioctl(device, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach))
		fail("attach to the IOAS again");
}

static void ask_viommu(const char *name, uint32_t type)
{
	struct iommu_viommu_alloc alloc = {
		.size = sizeof(alloc),
		.type = type,
		.dev_id = dev_id,
		.hwpt_id = parent_id,
	};

	if (!parent_id)
		printf("vIOMMU: %s\tno nesting parent\n", name);
	else
		printf("vIOMMU: %s\t%s\n", name,
		       ioctl(iommufd, IOMMU_VIOMMU_ALLOC, &alloc) ? error() : "yes");
}

static int write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY), ret;

	if (fd == -1)
		return -1;
	ret = write(fd, text, strlen(text)) == (ssize_t)strlen(text) ? 0 : -1;
	close(fd);
	return ret;
}

/* A driver that can be unbound has its devices there */
static void ask_unbind(void)
{
	struct iommu_hw_info info = { .size = sizeof(info), .dev_id = dev_id };
	struct dirent *entry;
	DIR *dir = opendir(VIRTIO_IOMMU);
	char name[64] = "";

	while (dir && (entry = readdir(dir)))
		if (!strncmp(entry->d_name, "virtio", 6))
			snprintf(name, sizeof(name), "%.60s", entry->d_name);
	if (dir)
		closedir(dir);
	if (!name[0]) {
		printf("unbind\tno driver to unbind it from\n");
		return;
	}
	fflush(stdout);
	if (write_file(VIRTIO_IOMMU "/unbind", name))
		printf("unbind\t%s\n", error());
	else if (ioctl(iommufd, IOMMU_GET_HW_INFO, &info))
		printf("unbind\tdone; then %s\n", error());
	else
		printf("unbind\tdone; HW_INFO goes on\n");
}

int main(void)
{
	setup();
	ask_hw_info();
	ask_ranges();
	ask_hwpt("NEST_PARENT", IOMMU_HWPT_ALLOC_NEST_PARENT, 0, &parent_id);
	ask_hwpt("DIRTY_TRACKING", IOMMU_HWPT_ALLOC_DIRTY_TRACKING, 0, NULL);
	ask_hwpt("PASID", IOMMU_HWPT_ALLOC_PASID, 0, NULL);
	ask_fault_queue();
	ask_viommu("ARM_SMMUV3", IOMMU_VIOMMU_TYPE_ARM_SMMUV3);
	ask_viommu("TEGRA241_CMDQV", IOMMU_VIOMMU_TYPE_TEGRA241_CMDQV);
	ask_unbind();
	return 0;
}
