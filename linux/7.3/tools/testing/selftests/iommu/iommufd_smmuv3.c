// SPDX-License-Identifier: GPL-2.0-only
/*
 * A device behind an SMMUv3, in the hands of a program, through vfio-pci and iommufd:
 * where its DMA arrives and where it does not. The device is QEMU's "edu", which
 * does DMA when told to, as in: qemu-system-aarch64 -machine virt,iommu=smmuv3
 * -device edu -device edu. The tests of what lives on a vIOMMU play the part of a
 * VMM and of the guest's driver: they write the guest's tables.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <endian.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <linux/pci_regs.h>
#include <linux/vfio.h>

#define __EXPORTED_HEADERS__
#include "iommufd_race.h"

#define EDU_VENDOR 0x1234
#define EDU_DEVICE 0x11e8

#define EDU_IRQ_RAISE 0x60
#define EDU_IRQ_ACK 0x64
#define EDU_DMA_SRC 0x80
#define EDU_DMA_DST 0x88
#define EDU_DMA_COUNT 0x90
#define EDU_DMA_CMD 0x98
#define EDU_DMA_RUN 1
#define EDU_DMA_TO_MEMORY 2
/* The device's own memory, which only its DMA reaches */
#define EDU_BUFFER 0x40000
#define EDU_BUFFER_SIZE 4096

#define PCI_DEVICES "/sys/bus/pci/devices/"

/* The program's memory, and where devices see it: they have 28 bits of address */
#define MEM_PAGES 64
#define MEM_IOVA 0x1000000ULL

static __attribute__((constructor)) void setup_sizes(void)
{
	PAGE_SIZE = sysconf(_SC_PAGE_SIZE);
	BUFFER_SIZE = PAGE_SIZE * MEM_PAGES;
	buffer = mmap(NULL, BUFFER_SIZE, PROT_READ | PROT_WRITE,
		      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert(buffer != MAP_FAILED);
}

/* The driver is found where the kernel was installed or in the current directory */
static int smmu_load(void)
{
	struct stat st;

	if (!stat("/sys/module/arm_smmu_v3", &st))
		return 0;
	return module_load_with("arm_smmu_v3", "");
}

/*
 * Whether firmware says of all PCI root complexes that DMA is coherent whatever a
 * guest's tables ask for: flag CANWBS in the ACPI IORT. Without it a guest could
 * make its device go past the caches, and the driver has to refuse a vIOMMU.
 */
static bool canwbs(void)
{
	uint8_t table[4096];
	uint32_t offset, i;
	bool found = false;
	ssize_t len;
	int fd;

	fd = open("/sys/firmware/acpi/tables/IORT", O_RDONLY);
	if (fd == -1)
		return false;
	len = read(fd, table, sizeof(table));
	close(fd);
	if (len < 48)
		return false;
	memcpy(&offset, table + 40, 4);
	for (i = table[36]; i && offset + 24 <= len; i--) {
		/* Type 2 is a root complex, byte 23 its memory access flags */
		if (table[offset] == 2) {
			if (!(table[offset + 23] & 4))
				return false;
			found = true;
		}
		offset += table[offset + 1] | table[offset + 2] << 8;
	}
	return found;
}

struct edu {
	char name[16];
	/* What the SMMU calls it */
	uint32_t sid;
	int fd;
	uint32_t dev_id;
	uint8_t *regs;
	size_t regs_size;
};

static int edu_is(const struct dirent *entry)
{
	char path[300];

	snprintf(path, sizeof(path), PCI_DEVICES "%s/vendor", entry->d_name);
	if (read_number(path, -1) != EDU_VENDOR)
		return 0;
	snprintf(path, sizeof(path), PCI_DEVICES "%s/device", entry->d_name);
	return read_number(path, -1) == EDU_DEVICE;
}

/* How many there are, and the name of one of them in order of their addresses */
static int edu_find(unsigned int index, char name[16])
{
	struct dirent **list;
	int i, num;

	num = scandir(PCI_DEVICES, &list, edu_is, alphasort);
	for (i = 0; i < num; i++) {
		if (i == index)
			snprintf(name, 16, "%.15s", list[i]->d_name);
		free(list[i]);
	}
	if (num >= 0)
		free(list);
	return num;
}

static int edu_path(const struct edu *edu, const char *file, char *path,
		    size_t size)
{
	return snprintf(path, size, PCI_DEVICES "%s/%s", edu->name, file) <
			       size ?
		       0 :
		       -1;
}

static int edu_exists(const struct edu *edu)
{
	struct stat st;
	char path[64];

	return !edu_path(edu, "", path, sizeof(path)) && !stat(path, &st);
}

/* All of them */
static int edu_remove_all(void)
{
	struct edu edu;
	char path[64];

	while (edu_find(0, edu.name) > 0) {
		if (edu_path(&edu, "remove", path, sizeof(path)) ||
		    write_file(path, "1"))
			return -1;
	}
	return 0;
}

/* Give the device to vfio-pci, unless it has it */
static int edu_bind(struct edu *edu)
{
	struct stat st;
	char path[64];

	if (edu_path(edu, "vfio-dev", path, sizeof(path)))
		return -1;
	if (!stat(path, &st))
		return 0;
	edu_path(edu, "driver_override", path, sizeof(path));
	if (write_file(path, "vfio-pci"))
		return -1;
	edu_path(edu, "driver/unbind", path, sizeof(path));
	if (!stat(path, &st) && write_file(path, edu->name))
		return -1;
	return write_file("/sys/bus/pci/drivers_probe", edu->name);
}

static int edu_open_cdev(struct edu *edu)
{
	struct dirent *entry;
	int fd = -1;
	char path[300];
	DIR *dir;

	edu_path(edu, "vfio-dev", path, sizeof(path));
	dir = opendir(path);
	if (!dir)
		return -1;
	while ((entry = readdir(dir))) {
		if (strncmp(entry->d_name, "vfio", 4))
			continue;
		snprintf(path, sizeof(path), "/dev/vfio/devices/%s",
			 entry->d_name);
		fd = open(path, O_RDWR | O_CLOEXEC);
	}
	closedir(dir);
	return fd;
}

static void edu_close(struct edu *edu)
{
	if (edu->regs)
		munmap(edu->regs, edu->regs_size);
	if (edu->fd != -1)
		close(edu->fd);
	edu->regs = NULL;
	edu->fd = -1;
}

/* The device with that index, bound to the iommufd, able to do DMA, not attached */
static int edu_open(struct edu *edu, unsigned int index, int iommufd)
{
	struct vfio_device_bind_iommufd bind = {
		.argsz = sizeof(bind),
		.iommufd = iommufd,
	};
	struct vfio_region_info region = {
		.argsz = sizeof(region),
		.index = VFIO_PCI_BAR0_REGION_INDEX,
	};
	struct vfio_region_info config = {
		.argsz = sizeof(config),
		.index = VFIO_PCI_CONFIG_REGION_INDEX,
	};
	uint16_t command = PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER;
	unsigned int bus, slot, function;
	void *regs;

	edu->fd = -1;
	edu->regs = NULL;
	if (edu_find(index, edu->name) <= (int)index ||
	    sscanf(edu->name, "%*x:%x:%x.%x", &bus, &slot, &function) != 3) {
		errno = ENOENT;
		return -1;
	}
	/* The IORT of QEMU maps the PCI requester ID to the same stream ID */
	edu->sid = bus << 8 | slot << 3 | function;
	if (edu_bind(edu))
		return -1;
	edu->fd = edu_open_cdev(edu);
	if (edu->fd == -1)
		return -1;
	if (ioctl(edu->fd, VFIO_DEVICE_BIND_IOMMUFD, &bind) ||
	    ioctl(edu->fd, VFIO_DEVICE_GET_REGION_INFO, &region) ||
	    ioctl(edu->fd, VFIO_DEVICE_GET_REGION_INFO, &config))
		goto fail;
	edu->dev_id = bind.out_devid;
	regs = mmap(NULL, region.size, PROT_READ | PROT_WRITE, MAP_SHARED,
		    edu->fd, region.offset);
	if (regs == MAP_FAILED)
		goto fail;
	edu->regs = regs;
	edu->regs_size = region.size;
	if (pwrite(edu->fd, &command, sizeof(command),
		   config.offset + PCI_COMMAND) != sizeof(command))
		goto fail;
	return 0;
fail:
	edu_close(edu);
	return -1;
}

static int edu_attach(struct edu *edu, uint32_t pt_id)
{
	struct vfio_device_attach_iommufd_pt attach = {
		.argsz = sizeof(attach),
		.pt_id = pt_id,
	};

	return ioctl(edu->fd, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach);
}

static int edu_detach(struct edu *edu)
{
	struct vfio_device_detach_iommufd_pt detach = {
		.argsz = sizeof(detach),
	};

	return ioctl(edu->fd, VFIO_DEVICE_DETACH_IOMMUFD_PT, &detach);
}

static void edu_write(struct edu *edu, unsigned int reg, uint64_t value)
{
	__atomic_store_n((uint64_t *)(edu->regs + reg), value,
			 __ATOMIC_RELAXED);
}

static void edu_write32(struct edu *edu, unsigned int reg, uint32_t value)
{
	__atomic_store_n((uint32_t *)(edu->regs + reg), value,
			 __ATOMIC_RELAXED);
}

static uint64_t edu_read(struct edu *edu, unsigned int reg)
{
	return __atomic_load_n((uint64_t *)(edu->regs + reg), __ATOMIC_RELAXED);
}

static void edu_dma_start(struct edu *edu, uint64_t src, uint64_t dst,
			  size_t len, uint64_t flags)
{
	edu_write(edu, EDU_DMA_SRC, src);
	edu_write(edu, EDU_DMA_DST, dst);
	edu_write(edu, EDU_DMA_COUNT, len);
	/* The memory is as the device is to find it, and then as it left it */
	__sync_synchronize();
	edu_write(edu, EDU_DMA_CMD, EDU_DMA_RUN | flags);
}

/* The device does not tell whether it arrived, only that it is done */
static int edu_dma(struct edu *edu, uint64_t src, uint64_t dst, size_t len,
		   uint64_t flags)
{
	int tries;

	edu_dma_start(edu, src, dst, len, flags);
	for (tries = 0; tries != 1000; tries++) {
		if (!(edu_read(edu, EDU_DMA_CMD) & EDU_DMA_RUN)) {
			__sync_synchronize();
			return 0;
		}
		sleep_ms(5);
	}
	errno = ETIMEDOUT;
	return -1;
}

/* The device reads memory into its buffer, or writes its buffer to memory */
static int dma_from(struct edu *edu, uint64_t iova, size_t len)
{
	return edu_dma(edu, iova, EDU_BUFFER, len, 0);
}

static int dma_to(struct edu *edu, uint64_t iova, size_t len)
{
	return edu_dma(edu, EDU_BUFFER, iova, len, EDU_DMA_TO_MEMORY);
}

#define SMMU_DRIVER "/sys/bus/platform/drivers/arm-smmu-v3"

/* It comes back, and so do its devices */
static int smmu_back(char *name)
{
	if (!name[0])
		return 0;
	if (edu_remove_all() || write_file(SMMU_DRIVER "/bind", name) ||
	    write_file("/sys/bus/pci/rescan", "1"))
		return -1;
	name[0] = 0;
	return 0;
}

static int hwpt_alloc(int fd, uint32_t dev_id, uint32_t ioas_id, uint32_t flags,
		      uint32_t *hwpt_id)
{
	return _test_cmd_hwpt_alloc(fd, dev_id, ioas_id, 0, flags, hwpt_id,
				    IOMMU_HWPT_DATA_NONE, NULL, 0);
}

static int viommu_alloc(int fd, uint32_t dev_id, uint32_t parent_id,
			uint32_t *viommu_id)
{
	return _test_cmd_viommu_alloc(fd, dev_id, parent_id, 0,
				      IOMMU_VIOMMU_TYPE_ARM_SMMUV3, NULL, 0,
				      viommu_id);
}

/* An IOAS with the program's memory at MEM_IOVA */
static int ioas_alloc(int fd, uint32_t *ioas_id)
{
	__u64 iova = MEM_IOVA;

	if (_test_ioctl_ioas_alloc(fd, ioas_id))
		return -1;
	return _test_ioctl_ioas_map(fd, *ioas_id, buffer, BUFFER_SIZE, &iova,
				    IOMMU_IOAS_MAP_FIXED_IOVA |
					    IOMMU_IOAS_MAP_READABLE |
					    IOMMU_IOAS_MAP_WRITEABLE);
}

/* Bytes that tell of themselves where they are from */
static uint8_t pattern(unsigned int seed, size_t i)
{
	return (seed * 37 + 11) ^ (i * 7) ^ (i >> 8) * 13;
}

static void fill(void *mem, size_t len, unsigned int seed)
{
	uint8_t *p = mem;
	size_t i;

	for (i = 0; i != len; i++)
		p[i] = pattern(seed, i);
}

/* How many of the bytes are as fill() left them, up to the first one that is not */
static size_t filled(const void *mem, size_t len, unsigned int seed)
{
	const uint8_t *p = mem;
	size_t i;

	for (i = 0; i != len && p[i] == pattern(seed, i); i++)
		;
	return i;
}

static uint8_t *page(unsigned int n)
{
	return (uint8_t *)buffer + n * PAGE_SIZE;
}

static uint64_t page_iova(unsigned int n)
{
	return MEM_IOVA + n * PAGE_SIZE;
}

/*
 * What pages hold before a test uses them. Page GOOD is where DMA always works, to
 * load the device's buffer and to look into it.
 */
enum { BACKGROUND = 1, LOADED, SECRET, OTHER };
enum { GOOD, LOOK, FREE };

/*
 * DMA that must not arrive is this long: QEMU makes a transaction of every 4 bytes of
 * it, and the SMMU an event of every transaction.
 */
#define SMALL 16

#define load(edu, iova, len, seed)                            \
	do {                                                  \
		size_t load_len = len;                        \
							      \
		fill(page(GOOD), load_len, seed);             \
		ASSERT_EQ(0, dma_from(edu, iova, load_len));  \
	} while (0)

/* What the device has in its buffer, by a look through a page that works */
#define EXPECT_BUFFER(edu, look_iova, look, len, seed)             \
	do {                                                       \
		size_t look_len = len;                             \
		uint8_t *look_at = look;                           \
								   \
		memset(look_at, 0, look_len);                      \
		ASSERT_EQ(0, dma_to(edu, look_iova, look_len));    \
		EXPECT_EQ(look_len, filled(look_at, look_len, seed)); \
	} while (0)

/* Not what SMALL bytes of DMA would have brought there */
#define EXPECT_NOT_IN_BUFFER(edu, look_iova, look, seed)               \
	do {                                                           \
		uint8_t *look_at = look;                               \
		size_t byte, same = 0;                                 \
								       \
		memset(look_at, 0, SMALL);                             \
		ASSERT_EQ(0, dma_to(edu, look_iova, SMALL));           \
		for (byte = 0; byte != SMALL; byte++)                  \
			same += look_at[byte] == pattern(seed, byte);  \
		EXPECT_GT(SMALL / 4, same);                            \
	} while (0)

FIXTURE(iommufd_smmuv3)
{
	int fd;
	uint32_t ioas_id;
	struct edu edu;
	struct edu edu2;
	/* To be bound again, if it has a name */
	char smmu[64];
};

FIXTURE_SETUP(iommufd_smmuv3)
{
	char name[16];

	self->edu.fd = -1;
	self->edu2.fd = -1;
	self->fd = open("/dev/iommu", O_RDWR);
	ASSERT_NE(-1, self->fd);
	if (edu_find(0, name) < 2)
		SKIP(return, "needs two of QEMU's edu devices");
	ASSERT_EQ(0, smmu_load())
	{
		TH_LOG("cannot load arm_smmu_v3: %m");
	}
	test_ioctl_ioas_alloc(&self->ioas_id);
	fill(buffer, BUFFER_SIZE, BACKGROUND);
	test_ioctl_ioas_map_fixed(buffer, BUFFER_SIZE, MEM_IOVA);
	ASSERT_EQ(0, edu_open(&self->edu, 0, self->fd))
	{
		TH_LOG("cannot open %s: %m", self->edu.name);
	}
	ASSERT_EQ(0, edu_attach(&self->edu, self->ioas_id));
}

FIXTURE_TEARDOWN(iommufd_smmuv3)
{
	edu_close(&self->edu);
	edu_close(&self->edu2);
	smmu_back(self->smmu);
	teardown_iommufd(self->fd, _metadata);
}

/* What is read is what is written, at the very bytes that were asked for */
TEST_F(iommufd_smmuv3, dma)
{
	static const struct {
		unsigned int from;
		unsigned int to;
		unsigned int len;
	} moves[] = {
		{ 0, 0, 4096 },
		{ 0, 0x123, 1 },
		{ 3, 0xffd, 5 },
		/* Across pages, which are not each other's neighbours in memory */
		{ 0x7f8, 0xabc, 4096 },
	};
	uint8_t *mem = buffer;
	size_t before, i;

	for (i = 0; i != ARRAY_SIZE(moves); i++) {
		size_t from = FREE * PAGE_SIZE + moves[i].from;
		size_t to = (FREE + 8) * PAGE_SIZE + moves[i].to;
		size_t len = moves[i].len;

		fill(mem, BUFFER_SIZE, BACKGROUND);
		fill(mem + from, len, LOADED + i);
		ASSERT_EQ(0, dma_from(&self->edu, MEM_IOVA + from, len));
		/* It has a copy */
		fill(mem + from, len, SECRET);
		ASSERT_EQ(0, dma_to(&self->edu, MEM_IOVA + to, len));
		EXPECT_EQ(len, filled(mem + to, len, LOADED + i));
		EXPECT_EQ(len, filled(mem + from, len, SECRET));
		before = filled(mem, from, BACKGROUND);
		EXPECT_EQ(from, before);
		/* Behind it the pattern goes on as if nothing had been there */
		for (; before != BUFFER_SIZE; before++) {
			if (before >= from && before < from + len)
				continue;
			if (before >= to && before < to + len)
				continue;
			ASSERT_EQ(pattern(BACKGROUND, before), mem[before]);
		}
	}
}

/*
 * The device neither writes to the page nor reads it. What it has read instead is to be
 * looked at when it can be.
 */
#define EXPECT_NO_DMA(dev, iova, at)                                    \
	do {                                                            \
		struct edu *no_dev = dev;                               \
		uint64_t no_iova = iova;                                \
		uint8_t *no_at = at;                                    \
									\
		fill(no_at, PAGE_SIZE, SECRET);                         \
		ASSERT_EQ(0, dma_to(no_dev, no_iova, SMALL));           \
		EXPECT_EQ(PAGE_SIZE, filled(no_at, PAGE_SIZE, SECRET)); \
		ASSERT_EQ(0, dma_from(no_dev, no_iova, SMALL));         \
	} while (0)

/* What is not mapped is neither read nor written */
TEST_F(iommufd_smmuv3, unmap)
{
	struct edu *edu = &self->edu;

	load(edu, page_iova(GOOD), PAGE_SIZE, LOADED);
	fill(page(FREE), PAGE_SIZE, SECRET);
	ASSERT_EQ(0, dma_to(edu, page_iova(FREE), PAGE_SIZE));
	EXPECT_EQ(PAGE_SIZE, filled(page(FREE), PAGE_SIZE, LOADED));

	/* Some pages are left out, and one is mapped on its own */
	test_ioctl_ioas_unmap(MEM_IOVA, BUFFER_SIZE);
	test_ioctl_ioas_map_fixed(buffer, 4 * PAGE_SIZE, MEM_IOVA);
	test_ioctl_ioas_map_fixed(page(4), PAGE_SIZE, page_iova(4));

	load(edu, page_iova(GOOD), PAGE_SIZE, LOADED);
	fill(page(4), PAGE_SIZE, SECRET);
	ASSERT_EQ(0, dma_to(edu, page_iova(4), PAGE_SIZE));
	EXPECT_EQ(PAGE_SIZE, filled(page(4), PAGE_SIZE, LOADED));

	test_ioctl_ioas_unmap(page_iova(4), PAGE_SIZE);
	EXPECT_NO_DMA(edu, page_iova(4), page(4));
	EXPECT_NOT_IN_BUFFER(edu, page_iova(LOOK), page(LOOK), SECRET);

	/* Mapped again, it is there again, in another place */
	test_ioctl_ioas_map_fixed(page(5), PAGE_SIZE, page_iova(4));
	load(edu, page_iova(GOOD), PAGE_SIZE, OTHER);
	ASSERT_EQ(0, dma_to(edu, page_iova(4), PAGE_SIZE));
	EXPECT_EQ(PAGE_SIZE, filled(page(5), PAGE_SIZE, OTHER));
	EXPECT_EQ(PAGE_SIZE, filled(page(4), PAGE_SIZE, SECRET));
}

TEST_F(iommufd_smmuv3, read_only)
{
	struct edu *edu = &self->edu;
	__u64 iova = page_iova(MEM_PAGES);

	ASSERT_EQ(0, _test_ioctl_ioas_map(self->fd, self->ioas_id, page(FREE),
					  PAGE_SIZE, &iova,
					  IOMMU_IOAS_MAP_FIXED_IOVA |
						  IOMMU_IOAS_MAP_READABLE));
	fill(page(FREE), PAGE_SIZE, SECRET);
	ASSERT_EQ(0, dma_from(edu, iova, PAGE_SIZE));
	EXPECT_BUFFER(edu, page_iova(LOOK), page(LOOK), PAGE_SIZE, SECRET);
	load(edu, page_iova(GOOD), PAGE_SIZE, LOADED);
	ASSERT_EQ(0, dma_to(edu, iova, SMALL));
	EXPECT_EQ(PAGE_SIZE, filled(page(FREE), PAGE_SIZE, SECRET));
}

/* Attached to nothing, the device reaches nothing */
TEST_F(iommufd_smmuv3, detach)
{
	struct edu *edu = &self->edu;

	load(edu, page_iova(GOOD), PAGE_SIZE, LOADED);
	ASSERT_EQ(0, edu_detach(edu));
	EXPECT_NO_DMA(edu, page_iova(FREE), page(FREE));
	ASSERT_EQ(0, edu_attach(edu, self->ioas_id));
	EXPECT_NOT_IN_BUFFER(edu, page_iova(LOOK), page(LOOK), SECRET);
}

/* The same address, in the IOAS that the device is attached to now */
TEST_F(iommufd_smmuv3, replace)
{
	struct edu *edu = &self->edu;
	uint32_t ioas_id;
	uint32_t hwpt_id;

	test_ioctl_ioas_alloc(&ioas_id);
	test_ioctl_ioas_map_fixed_id(ioas_id, page(8), 8 * PAGE_SIZE, MEM_IOVA);
	test_cmd_hwpt_alloc(edu->dev_id, ioas_id, 0, &hwpt_id);

	load(edu, page_iova(GOOD), PAGE_SIZE, LOADED);
	ASSERT_EQ(0, edu_attach(edu, hwpt_id));
	fill(page(FREE), PAGE_SIZE, SECRET);
	fill(page(8 + FREE), PAGE_SIZE, SECRET);
	ASSERT_EQ(0, dma_to(edu, page_iova(FREE), PAGE_SIZE));
	EXPECT_EQ(PAGE_SIZE, filled(page(FREE), PAGE_SIZE, SECRET));
	EXPECT_EQ(PAGE_SIZE, filled(page(8 + FREE), PAGE_SIZE, LOADED));

	ASSERT_EQ(0, edu_attach(edu, self->ioas_id));
	test_ioctl_destroy(hwpt_id);
	test_ioctl_destroy(ioas_id);
	ASSERT_EQ(0, dma_to(edu, page_iova(FREE), PAGE_SIZE));
	EXPECT_EQ(PAGE_SIZE, filled(page(FREE), PAGE_SIZE, LOADED));
}

/* Each device has its own view of the same addresses */
TEST_F(iommufd_smmuv3, two_devices)
{
	uint32_t ioas_id;

	test_ioctl_ioas_alloc(&ioas_id);
	test_ioctl_ioas_map_fixed_id(ioas_id, page(8), 8 * PAGE_SIZE, MEM_IOVA);
	ASSERT_EQ(0, edu_open(&self->edu2, 1, self->fd));
	ASSERT_NE(self->edu.sid, self->edu2.sid);
	ASSERT_EQ(0, edu_attach(&self->edu2, ioas_id));

	load(&self->edu, page_iova(GOOD), PAGE_SIZE, LOADED);
	fill(page(8), PAGE_SIZE, OTHER);
	ASSERT_EQ(0, dma_from(&self->edu2, MEM_IOVA, PAGE_SIZE));
	ASSERT_EQ(0, dma_to(&self->edu, page_iova(FREE), PAGE_SIZE));
	ASSERT_EQ(0, dma_to(&self->edu2, page_iova(FREE), PAGE_SIZE));
	EXPECT_EQ(PAGE_SIZE, filled(page(FREE), PAGE_SIZE, LOADED));
	EXPECT_EQ(PAGE_SIZE, filled(page(8 + FREE), PAGE_SIZE, OTHER));
	edu_close(&self->edu2);
}

/* A device that goes and comes back is one like another */
TEST_F_TIMEOUT(iommufd_smmuv3, unplug_and_replug, 120)
{
	struct edu *edu = &self->edu;
	uint32_t dev_id = edu->dev_id;
	uint32_t sid = edu->sid;
	uint32_t hwpt_id;
	char path[64];
	int i;

	for (i = 0; i != 3; i++) {
		load(edu, page_iova(GOOD), PAGE_SIZE, LOADED);
		edu_close(edu);
		ASSERT_EQ(0, edu_path(edu, "remove", path, sizeof(path)));
		ASSERT_EQ(0, write_file(path, "1"));
		ASSERT_EQ(0, edu_exists(edu));
		EXPECT_ERRNO(ENOENT, hwpt_alloc(self->fd, dev_id, self->ioas_id,
						0, &hwpt_id));
		ASSERT_EQ(0, write_file("/sys/bus/pci/rescan", "1"));
		ASSERT_EQ(1, edu_exists(edu));

		ASSERT_EQ(0, edu_open(edu, 0, self->fd));
		ASSERT_EQ(sid, edu->sid);
		dev_id = edu->dev_id;
		/* Attached to nothing yet */
		fill(page(FREE), PAGE_SIZE, SECRET);
		ASSERT_EQ(0, dma_to(edu, page_iova(FREE), SMALL));
		EXPECT_EQ(PAGE_SIZE, filled(page(FREE), PAGE_SIZE, SECRET));

		ASSERT_EQ(0, edu_attach(edu, self->ioas_id));
		load(edu, page_iova(GOOD), PAGE_SIZE, OTHER);
		ASSERT_EQ(0, dma_to(edu, page_iova(FREE), PAGE_SIZE));
		EXPECT_EQ(PAGE_SIZE, filled(page(FREE), PAGE_SIZE, OTHER));
	}
}

/* Where the driver cannot tell that DMA is coherent, there is no vIOMMU */
TEST_F(iommufd_smmuv3, no_canwbs)
{
	uint32_t hwpt_id;

	if (canwbs())
		SKIP(return, "the machine has CANWBS");
	ASSERT_EQ(0, hwpt_alloc(self->fd, self->edu.dev_id, self->ioas_id,
				IOMMU_HWPT_ALLOC_NEST_PARENT, &hwpt_id));
	EXPECT_ERRNO(EOPNOTSUPP,
		     viommu_alloc(self->fd, self->edu.dev_id, hwpt_id, NULL));
}

/*
 * Nested: the IOAS is the guest's physical memory, what MEM_IOVA and page_iova() say
 * is a guest physical address. The guest's stage 1 has 39 bits of address, in pages
 * of 4 KiB, and one context descriptor; its tables are in these pages:
 */
enum { CD = 16, TABLE, TABLE2 = TABLE + 3, CD2 = TABLE2 + 3, TABLE_MSI };

#define BIT64(n) (UINT64_C(1) << (n))

#define STE0_V BIT64(0)
#define STE0_ABORT (0ULL << 1)
#define STE0_BYPASS (4ULL << 1)
#define STE0_S1_TRANS (5ULL << 1)
#define STE1_S1CIR_WB BIT64(2)
#define STE1_S1COR_WB BIT64(4)
#define STE1_S1CSH_INNER (3ULL << 6)

#define CD0_T0SZ(bits) (64ULL - (bits))
#define CD0_IR0_WB BIT64(8)
#define CD0_OR0_WB BIT64(10)
#define CD0_SH0_INNER (3ULL << 12)
#define CD0_EPD1 BIT64(30)
#define CD0_V BIT64(31)
#define CD0_IPS_40 (2ULL << 32)
#define CD0_AA64 BIT64(41)
#define CD0_R BIT64(45)
#define CD0_A BIT64(46)
#define CD0_ASET BIT64(47)
#define CD0_ASID(asid) ((uint64_t)(asid) << 48)

#define PTE_TABLE 3ULL
#define PTE_PAGE 3ULL
#define PTE_USER BIT64(6)
#define PTE_READONLY BIT64(7)
#define PTE_INNER (3ULL << 8)
#define PTE_AF BIT64(10)
#define PTE_NG BIT64(11)

#define CMD_CFGI_CD 0x05
#define CMD_TLBI_NH_ASID 0x11
#define CMD_TLBI_NH_VA 0x12
#define CMD_SYNC 0x46

#define EVT_F_TRANSLATION 0x10
#define EVT_F_PERMISSION 0x13

#define ASID 5
/* The guest knows the device by another name than the SMMU, and at other addresses */
#define VIRT_SID 0x1230
#define GUEST_IOVA 0x2000000ULL

static uint64_t guest_iova(unsigned int n)
{
	return GUEST_IOVA + n * PAGE_SIZE;
}

/* Tables for the 2 MiB at GUEST_IOVA, with nothing mapped, in pages n to n + 2 */
static void guest_tables(unsigned int n)
{
	uint64_t *l1 = (uint64_t *)page(n);
	uint64_t *l2 = (uint64_t *)page(n + 1);

	memset(page(n), 0, 3 * PAGE_SIZE);
	l1[GUEST_IOVA >> 30] = page_iova(n + 1) | PTE_TABLE;
	l2[(GUEST_IOVA >> 21) & 511] = page_iova(n + 2) | PTE_TABLE;
}

static void guest_map(unsigned int tables, uint64_t iova, unsigned int to,
		      uint64_t flags)
{
	uint64_t *l3 = (uint64_t *)page(tables + 2);

	l3[(iova >> 12) & 511] = page_iova(to) | PTE_PAGE | PTE_USER |
				 PTE_INNER | PTE_AF | PTE_NG | flags;
	__sync_synchronize();
}

static void guest_unmap(unsigned int tables, uint64_t iova)
{
	uint64_t *l3 = (uint64_t *)page(tables + 2);

	l3[(iova >> 12) & 511] = 0;
	__sync_synchronize();
}

static void guest_cd_at(unsigned int n, unsigned int tables)
{
	uint64_t *cd = (uint64_t *)page(n);

	memset(cd, 0, 64);
	cd[0] = CD0_T0SZ(39) | CD0_IR0_WB | CD0_OR0_WB | CD0_SH0_INNER |
		CD0_EPD1 | CD0_V | CD0_IPS_40 | CD0_AA64 | CD0_R | CD0_A |
		CD0_ASET | CD0_ASID(ASID);
	cd[1] = page_iova(tables);
	/* MAIR: attribute 0 is normal memory, write-back */
	cd[3] = 0xff;
	__sync_synchronize();
}

static void guest_cd(unsigned int tables)
{
	guest_cd_at(CD, tables);
}

FIXTURE(iommufd_smmuv3_nested)
{
	int fd;
	uint32_t ioas_id;
	struct edu edu;
	struct edu edu2;
	uint32_t parent_id;
	uint32_t viommu_id;
	uint32_t vdevice_id;
	uint32_t veventq_id;
	int veventq_fd;
	uint32_t bypass_id;
	uint32_t abort_id;
	uint32_t s1_id;
	/* To be bound again, if it has a name */
	char smmu[64];
	/* Where an interrupt goes, if that has to be put back */
	char irq_path[64];
	char irq_cpus[64];
};

static int nested_alloc(int fd, uint32_t dev_id, uint32_t viommu_id,
			uint64_t ste0, uint64_t ste1, uint32_t *hwpt_id)
{
	uint64_t ste[2] = { htole64(ste0), htole64(ste1) };

	return _test_cmd_hwpt_alloc(fd, dev_id, viommu_id, 0, 0, hwpt_id,
				    IOMMU_HWPT_DATA_ARM_SMMUV3, ste,
				    sizeof(ste));
}

/* As many commands as there are, and as many as were done, as they come from a queue */
static int commands(int fd, uint32_t viommu_id, uint64_t (*cmds)[2],
		    uint32_t *num)
{
	unsigned int type = IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3;

	return _test_cmd_hwpt_invalidate(fd, viommu_id, cmds, type,
					 sizeof(*cmds), num);
}

/* One command, for all that the guest's driver puts into its queue */
static int command(int fd, uint32_t viommu_id, uint64_t cmd0, uint64_t cmd1,
		   uint32_t *num)
{
	uint64_t cmd[1][2] = { { htole64(cmd0), htole64(cmd1) } };

	*num = 1;
	return commands(fd, viommu_id, cmd, num);
}

#define guest_command(cmd0, cmd1)                                      \
	({                                                             \
		uint32_t num;                                          \
								       \
		ASSERT_EQ(0, command(self->fd, self->viommu_id, cmd0,  \
				     cmd1, &num));                     \
		ASSERT_EQ(1, num);                                     \
	})
#define guest_tlbi_va(iova) \
	guest_command(CMD_TLBI_NH_VA | CD0_ASID(ASID), (iova) | 1)
#define guest_cfgi_cd(sid) guest_command(CMD_CFGI_CD | (uint64_t)(sid) << 32, 1)

static int veventq_alloc(int fd, uint32_t viommu_id, uint32_t *veventq_id,
			 int *veventq_fd)
{
	uint32_t file;

	if (_test_cmd_veventq_alloc(fd, viommu_id,
				    IOMMU_VEVENTQ_TYPE_ARM_SMMUV3, 64,
				    veventq_id, &file))
		return -1;
	*veventq_fd = file;
	return 0;
}

struct event {
	struct iommufd_vevent_header header;
	/* As the SMMU writes it to its queue, with the virtual stream ID */
	uint64_t evt[4];
};

static unsigned int event_type(const struct event *event)
{
	return le64toh(event->evt[0]) & 0xff;
}

static uint32_t event_sid(const struct event *event)
{
	return le64toh(event->evt[0]) >> 32;
}

static uint64_t event_iova(const struct event *event)
{
	return le64toh(event->evt[2]);
}

static bool event_is_read(const struct event *event)
{
	return le64toh(event->evt[1]) >> 35 & 1;
}

/* The next event, 0 if none comes */
static int event_read(int fd, struct event *event, int ms)
{
	struct pollfd pollfd = { .fd = fd, .events = POLLIN };

	if (poll(&pollfd, 1, ms) != 1)
		return 0;
	return read(fd, event, sizeof(*event));
}

static int events_drop(int fd)
{
	struct event event;
	int num = 0;

	while (event_read(fd, &event, 100) > 0)
		num++;
	return num;
}

FIXTURE_SETUP(iommufd_smmuv3_nested)
{
	char name[16];

	self->edu.fd = -1;
	self->edu2.fd = -1;
	self->veventq_fd = -1;
	self->fd = open("/dev/iommu", O_RDWR);
	ASSERT_NE(-1, self->fd);
	if (edu_find(0, name) < 2)
		SKIP(return, "needs two of QEMU's edu devices");
	if (!canwbs())
		SKIP(return, "needs CANWBS in the IORT");
	ASSERT_EQ(0, smmu_load());
	test_ioctl_ioas_alloc(&self->ioas_id);
	fill(buffer, BUFFER_SIZE, BACKGROUND);
	test_ioctl_ioas_map_fixed(buffer, BUFFER_SIZE, MEM_IOVA);
	ASSERT_EQ(0, edu_open(&self->edu, 0, self->fd));
	ASSERT_EQ(0, hwpt_alloc(self->fd, self->edu.dev_id, self->ioas_id,
				IOMMU_HWPT_ALLOC_NEST_PARENT,
				&self->parent_id));
	test_cmd_viommu_alloc(self->edu.dev_id, self->parent_id,
			      IOMMU_VIOMMU_TYPE_ARM_SMMUV3, NULL, 0,
			      &self->viommu_id);
	test_cmd_vdevice_alloc(self->viommu_id, self->edu.dev_id, VIRT_SID,
			       &self->vdevice_id);
	ASSERT_EQ(0, veventq_alloc(self->fd, self->viommu_id,
				   &self->veventq_id, &self->veventq_fd));
	ASSERT_EQ(0, nested_alloc(self->fd, self->edu.dev_id, self->viommu_id,
				  STE0_V | STE0_BYPASS, 0, &self->bypass_id));
	ASSERT_EQ(0, nested_alloc(self->fd, self->edu.dev_id, self->viommu_id,
				  STE0_V | STE0_ABORT, 0, &self->abort_id));
	guest_tables(TABLE);
	guest_tables(TABLE2);
	guest_cd(TABLE);
	guest_map(TABLE, guest_iova(GOOD), GOOD, 0);
	guest_map(TABLE, guest_iova(LOOK), LOOK, 0);
	ASSERT_EQ(0,
		  nested_alloc(self->fd, self->edu.dev_id, self->viommu_id,
			       STE0_V | STE0_S1_TRANS | page_iova(CD),
			       STE1_S1CIR_WB | STE1_S1COR_WB | STE1_S1CSH_INNER,
			       &self->s1_id));
	ASSERT_EQ(0, edu_attach(&self->edu, self->s1_id));
}

FIXTURE_TEARDOWN(iommufd_smmuv3_nested)
{
	edu_close(&self->edu);
	edu_close(&self->edu2);
	if (self->veventq_fd != -1)
		close(self->veventq_fd);
	smmu_back(self->smmu);
	if (self->irq_path[0])
		write_file(self->irq_path, self->irq_cpus);
	teardown_iommufd(self->fd, _metadata);
}

static int get_hw_info(int fd, uint32_t dev_id, struct iommu_hw_info *cmd,
		       struct iommu_hw_info_arm_smmuv3 *info)
{
	cmd->size = sizeof(*cmd);
	cmd->dev_id = dev_id;
	cmd->data_len = sizeof(*info);
	cmd->data_uptr = (uintptr_t)info;
	return ioctl(fd, IOMMU_GET_HW_INFO, cmd);
}

/* What the hardware says that this needs */
TEST_F(iommufd_smmuv3_nested, hw_info)
{
	struct iommu_hw_info_arm_smmuv3 info = {};
	struct iommu_hw_info cmd = {};

	ASSERT_EQ(0, get_hw_info(self->fd, self->edu.dev_id, &cmd, &info));
	EXPECT_EQ(IOMMU_HW_INFO_TYPE_ARM_SMMUV3, cmd.out_data_type);
	EXPECT_EQ(sizeof(info), cmd.data_len);
	EXPECT_EQ(0, info.flags);
	EXPECT_EQ(0, info.__reserved);
	/* IDR0: S1P and S2P, TTF of AArch64; IDR1: no preset tables and queues */
	EXPECT_EQ(3, info.idr[0] & 3);
	EXPECT_EQ(2, info.idr[0] >> 2 & 2);
	EXPECT_EQ(0, info.idr[1] >> 28);
	/* IDR5: pages of 4 KiB, which the tables here have */
	EXPECT_EQ(1, info.idr[5] >> 4 & 1);
}

TEST_F(iommufd_smmuv3_nested, bypass)
{
	struct edu *edu = &self->edu;

	ASSERT_EQ(0, edu_attach(edu, self->bypass_id));
	load(edu, page_iova(GOOD), PAGE_SIZE, LOADED);
	ASSERT_EQ(0, dma_to(edu, page_iova(FREE), PAGE_SIZE));
	EXPECT_EQ(PAGE_SIZE, filled(page(FREE), PAGE_SIZE, LOADED));
}

TEST_F(iommufd_smmuv3_nested, abort)
{
	struct edu *edu = &self->edu;

	load(edu, guest_iova(GOOD), PAGE_SIZE, LOADED);
	ASSERT_EQ(0, edu_attach(edu, self->abort_id));
	EXPECT_NO_DMA(edu, page_iova(FREE), page(FREE));
	ASSERT_EQ(0, edu_attach(edu, self->bypass_id));
	EXPECT_NOT_IN_BUFFER(edu, page_iova(LOOK), page(LOOK), SECRET);
}

/* Through the guest's table, and then through the kernel's */
TEST_F(iommufd_smmuv3_nested, stage1)
{
	struct edu *edu = &self->edu;

	/* Neighbours for the guest, not in its memory */
	guest_map(TABLE, guest_iova(8), 40, 0);
	guest_map(TABLE, guest_iova(9), 30, 0);
	load(edu, guest_iova(GOOD), PAGE_SIZE, LOADED);
	fill(page(30), PAGE_SIZE, BACKGROUND);
	fill(page(40), PAGE_SIZE, BACKGROUND);
	ASSERT_EQ(0, dma_to(edu, guest_iova(8) + 2048, PAGE_SIZE));
	EXPECT_EQ(2048, filled(page(40), PAGE_SIZE, BACKGROUND));
	EXPECT_EQ(2048, filled(page(40) + 2048, 2048, LOADED));
	EXPECT_EQ(0, memcmp(page(30), page(GOOD) + 2048, 2048));
	EXPECT_EQ(pattern(BACKGROUND, 2048), page(30)[2048]);

	fill(page(40), PAGE_SIZE, OTHER);
	ASSERT_EQ(0, dma_from(edu, guest_iova(8), PAGE_SIZE));
	EXPECT_BUFFER(edu, guest_iova(LOOK), page(LOOK), PAGE_SIZE, OTHER);
}

/* What is loaded gets to the one page, and not to the other */
#define EXPECT_DMA_TO(edu, iova, at, not_at)                                \
	do {                                                                \
		uint8_t *to_at = at, *to_not_at = not_at;                   \
									    \
		fill(to_at, PAGE_SIZE, SECRET);                             \
		fill(to_not_at, PAGE_SIZE, SECRET);                         \
		ASSERT_EQ(0, dma_to(edu, iova, PAGE_SIZE));                 \
		EXPECT_EQ(PAGE_SIZE, filled(to_at, PAGE_SIZE, LOADED));     \
		EXPECT_EQ(PAGE_SIZE, filled(to_not_at, PAGE_SIZE, SECRET)); \
	} while (0)

/* What the SMMU remembers of the guest's table goes with the guest's command */
TEST_F(iommufd_smmuv3_nested, invalidate)
{
	struct edu *edu = &self->edu;
	uint64_t iova = guest_iova(8);

	guest_map(TABLE, iova, 30, 0);
	load(edu, guest_iova(GOOD), PAGE_SIZE, LOADED);
	ASSERT_EQ(0, dma_to(edu, iova, PAGE_SIZE));
	EXPECT_EQ(PAGE_SIZE, filled(page(30), PAGE_SIZE, LOADED));

	/* QEMU's does remember, so that this tells whether the command arrived */
	guest_map(TABLE, iova, 40, 0);
	EXPECT_DMA_TO(edu, iova, page(30), page(40));
	guest_tlbi_va(iova);
	EXPECT_DMA_TO(edu, iova, page(40), page(30));

	/* All of the address space */
	guest_map(TABLE, iova, 30, 0);
	guest_command(CMD_TLBI_NH_ASID | CD0_ASID(ASID), 0);
	EXPECT_DMA_TO(edu, iova, page(30), page(40));
}

/* Another table in the context descriptor, by a command that names the device */
TEST_F(iommufd_smmuv3_nested, invalidate_cd)
{
	struct edu *edu = &self->edu;
	uint64_t iova = guest_iova(8);

	guest_map(TABLE, iova, 30, 0);
	guest_map(TABLE2, iova, 40, 0);
	guest_map(TABLE2, guest_iova(LOOK), LOOK, 0);
	load(edu, guest_iova(GOOD), PAGE_SIZE, LOADED);
	ASSERT_EQ(0, dma_to(edu, iova, PAGE_SIZE));
	EXPECT_EQ(PAGE_SIZE, filled(page(30), PAGE_SIZE, LOADED));

	guest_cd(TABLE2);
	guest_cfgi_cd(VIRT_SID);
	guest_command(CMD_TLBI_NH_ASID | CD0_ASID(ASID), 0);
	EXPECT_DMA_TO(edu, iova, page(40), page(30));
}

TEST_F(iommufd_smmuv3_nested, invalidate_bad)
{
	const unsigned int type = IOMMU_VIOMMU_INVALIDATE_DATA_ARM_SMMUV3;
	uint64_t cmds[3][2] = {
		{ htole64(CMD_TLBI_NH_ASID | CD0_ASID(ASID)), 0 },
		{ htole64(CMD_CFGI_CD | (VIRT_SID + 1ULL) << 32), htole64(1) },
		{ htole64(CMD_TLBI_NH_ASID | CD0_ASID(ASID)), 0 },
	};
	uint32_t num;

	/* A stream ID that is nobody's: that of the device itself, here */
	ASSERT_NE(VIRT_SID, self->edu.sid);
	EXPECT_ERRNO(EIO, command(self->fd, self->viommu_id,
				  CMD_CFGI_CD | (uint64_t)self->edu.sid << 32,
				  1, &num));
	EXPECT_EQ(0, num);
	/* Not for a guest */
	EXPECT_ERRNO(EIO,
		     command(self->fd, self->viommu_id, CMD_SYNC, 0, &num));
	EXPECT_EQ(0, num);
	/* What came before the bad one is done, it and what follows is not */
	num = 3;
	EXPECT_ERRNO(EIO, commands(self->fd, self->viommu_id, cmds, &num));
	EXPECT_EQ(1, num);
	num = 1;
	EXPECT_ERRNO(EINVAL,
		     _test_cmd_hwpt_invalidate(self->fd, self->viommu_id, cmds,
					       type, 8, &num));
	num = 1;
	EXPECT_ERRNO(EINVAL,
		     _test_cmd_hwpt_invalidate(self->fd, self->viommu_id, cmds,
					       type + 1, sizeof(*cmds), &num));
}

/* What the guest's table does not allow is told, with the guest's name of the device */
TEST_F(iommufd_smmuv3_nested, event)
{
	struct edu *edu = &self->edu;
	struct event event = {};

	load(edu, guest_iova(GOOD), PAGE_SIZE, LOADED);
	EXPECT_EQ(0, events_drop(self->veventq_fd));

	ASSERT_EQ(0, dma_to(edu, guest_iova(8), SMALL));
	ASSERT_EQ(sizeof(event), event_read(self->veventq_fd, &event, 5000));
	EXPECT_EQ(0, event.header.flags);
	EXPECT_EQ(EVT_F_TRANSLATION, event_type(&event));
	EXPECT_EQ(VIRT_SID, event_sid(&event));
	EXPECT_EQ(guest_iova(8), event_iova(&event));
	EXPECT_EQ(false, event_is_read(&event));
	events_drop(self->veventq_fd);

	ASSERT_EQ(0, dma_from(edu, guest_iova(9), SMALL));
	ASSERT_EQ(sizeof(event), event_read(self->veventq_fd, &event, 5000));
	EXPECT_EQ(EVT_F_TRANSLATION, event_type(&event));
	EXPECT_EQ(VIRT_SID, event_sid(&event));
	EXPECT_EQ(guest_iova(9), event_iova(&event));
	EXPECT_EQ(true, event_is_read(&event));
	events_drop(self->veventq_fd);

	guest_map(TABLE, guest_iova(10), FREE, PTE_READONLY);
	fill(page(FREE), PAGE_SIZE, SECRET);
	ASSERT_EQ(0, dma_to(edu, guest_iova(10), SMALL));
	ASSERT_EQ(sizeof(event), event_read(self->veventq_fd, &event, 5000));
	EXPECT_EQ(EVT_F_PERMISSION, event_type(&event));
	EXPECT_EQ(VIRT_SID, event_sid(&event));
	EXPECT_EQ(PAGE_SIZE, filled(page(FREE), PAGE_SIZE, SECRET));
	events_drop(self->veventq_fd);

	/* Mapped, and unmapped again with the command that belongs to it */
	guest_map(TABLE, guest_iova(8), FREE, 0);
	load(edu, guest_iova(GOOD), PAGE_SIZE, OTHER);
	ASSERT_EQ(0, dma_to(edu, guest_iova(8), PAGE_SIZE));
	EXPECT_EQ(PAGE_SIZE, filled(page(FREE), PAGE_SIZE, OTHER));
	EXPECT_EQ(0, events_drop(self->veventq_fd));
	guest_unmap(TABLE, guest_iova(8));
	guest_tlbi_va(guest_iova(8));
	ASSERT_EQ(0, dma_to(edu, guest_iova(8), SMALL));
	ASSERT_EQ(sizeof(event), event_read(self->veventq_fd, &event, 5000));
	EXPECT_EQ(guest_iova(8), event_iova(&event));
}

/* What the guest maps beyond its memory it cannot reach, and the host is not asked */
TEST_F(iommufd_smmuv3_nested, stage2)
{
	struct edu *edu = &self->edu;

	load(edu, guest_iova(GOOD), PAGE_SIZE, LOADED);
	guest_map(TABLE, guest_iova(8), FREE, 0);
	ASSERT_EQ(0, dma_to(edu, guest_iova(8), PAGE_SIZE));
	EXPECT_EQ(PAGE_SIZE, filled(page(FREE), PAGE_SIZE, LOADED));
	guest_map(TABLE, guest_iova(9), MEM_PAGES, 0);
	ASSERT_EQ(0, dma_to(edu, guest_iova(9), SMALL));

	/* Unmapped by the VMM: nothing of the guest's has to be invalidated */
	test_ioctl_ioas_unmap(MEM_IOVA, BUFFER_SIZE);
	fill(page(FREE), PAGE_SIZE, SECRET);
	ASSERT_EQ(0, dma_to(edu, guest_iova(8), SMALL));
	EXPECT_EQ(PAGE_SIZE, filled(page(FREE), PAGE_SIZE, SECRET));
	test_ioctl_ioas_map_fixed(buffer, BUFFER_SIZE, MEM_IOVA);
	load(edu, guest_iova(GOOD), PAGE_SIZE, OTHER);
	ASSERT_EQ(0, dma_to(edu, guest_iova(8), PAGE_SIZE));
	EXPECT_EQ(PAGE_SIZE, filled(page(FREE), PAGE_SIZE, OTHER));
}

/* The vIOMMU stays when the device goes, and is there for the one that comes */
TEST_F_TIMEOUT(iommufd_smmuv3_nested, unplug_and_replug, 120)
{
	struct edu *edu = &self->edu;
	char path[64];

	load(edu, guest_iova(GOOD), PAGE_SIZE, LOADED);
	edu_close(edu);
	ASSERT_EQ(0, edu_path(edu, "remove", path, sizeof(path)));
	ASSERT_EQ(0, write_file(path, "1"));
	ASSERT_EQ(0, write_file("/sys/bus/pci/rescan", "1"));
	EXPECT_ERRNO(ENOENT, _test_ioctl_destroy(self->fd, self->vdevice_id));

	ASSERT_EQ(0, edu_open(edu, 0, self->fd));
	test_cmd_vdevice_alloc(self->viommu_id, edu->dev_id, VIRT_SID,
			       &self->vdevice_id);
	ASSERT_EQ(0, edu_attach(edu, self->s1_id));
	guest_map(TABLE, guest_iova(8), FREE, 0);
	load(edu, guest_iova(GOOD), PAGE_SIZE, OTHER);
	ASSERT_EQ(0, dma_to(edu, guest_iova(8), PAGE_SIZE));
	EXPECT_EQ(PAGE_SIZE, filled(page(FREE), PAGE_SIZE, OTHER));
}

/* Two devices of one guest, each with a name of its own */
TEST_F(iommufd_smmuv3_nested, two_devices)
{
	struct event event = {};
	uint32_t vdevice_id;

	ASSERT_EQ(0, edu_open(&self->edu2, 1, self->fd));
	EXPECT_ERRNO(EEXIST,
		     _test_cmd_vdevice_alloc(self->fd, self->viommu_id,
					     self->edu2.dev_id, VIRT_SID,
					     NULL));
	test_cmd_vdevice_alloc(self->viommu_id, self->edu2.dev_id, VIRT_SID + 8,
			       &vdevice_id);
	ASSERT_EQ(0, edu_attach(&self->edu2, self->s1_id));
	guest_map(TABLE, guest_iova(8), FREE, 0);
	load(&self->edu2, guest_iova(GOOD), PAGE_SIZE, LOADED);
	ASSERT_EQ(0, dma_to(&self->edu2, guest_iova(8), PAGE_SIZE));
	EXPECT_EQ(PAGE_SIZE, filled(page(FREE), PAGE_SIZE, LOADED));
	EXPECT_EQ(0, events_drop(self->veventq_fd));
	ASSERT_EQ(0, dma_to(&self->edu2, guest_iova(9), SMALL));
	ASSERT_EQ(sizeof(event), event_read(self->veventq_fd, &event, 5000));
	EXPECT_EQ(VIRT_SID + 8, event_sid(&event));
	events_drop(self->veventq_fd);
	ASSERT_EQ(0, dma_to(&self->edu, guest_iova(9), SMALL));
	ASSERT_EQ(sizeof(event), event_read(self->veventq_fd, &event, 5000));
	EXPECT_EQ(VIRT_SID, event_sid(&event));
}

/* Each bit of the STE that is not the guest's, and each value that means nothing */
TEST_F(iommufd_smmuv3_nested, L13_bad_ste)
{
	static const uint64_t guest[2] = {
		/* V, Config, S1Fmt, S1ContextPtr, S1CDMax */
		0x1ULL | 7ULL << 1 | 3ULL << 4 | 0xfffffffffffc0ULL |
			31ULL << 59,
		/* S1DSS, S1CIR, S1COR, S1CSH, S1STALLD, EATS */
		3ULL | 3ULL << 2 | 3ULL << 4 | 3ULL << 6 | 1ULL << 27 |
			3ULL << 28,
	};
	static const uint64_t bad[][2] = {
		{ STE0_V | 1 << 1 },
		{ STE0_V | 2 << 1 },
		{ STE0_V | 3 << 1 },
		{ STE0_V | 6 << 1 },
		{ STE0_V | 7 << 1 },
		/* Full ATS with stage 1 alone, and what is reserved */
		{ STE0_V | STE0_S1_TRANS, 2ULL << 28 },
		{ STE0_V | STE0_S1_TRANS, 3ULL << 28 },
	};
	uint32_t hwpt_id;
	unsigned int i;

	for (i = 0; i != 128; i++) {
		uint64_t ste[2] = { STE0_V | STE0_S1_TRANS | page_iova(CD) };

		if (guest[i / 64] >> (i % 64) & 1)
			continue;
		ste[i / 64] |= 1ULL << (i % 64);
		errno = 0;
		nested_alloc(self->fd, self->edu.dev_id, self->viommu_id,
			     ste[0], ste[1], &hwpt_id);
		EXPECT_EQ(EIO, errno)
		{
			TH_LOG("bit %u", i);
		}
	}
	for (i = 0; i != ARRAY_SIZE(bad); i++) {
		errno = 0;
		nested_alloc(self->fd, self->edu.dev_id, self->viommu_id,
			     bad[i][0], bad[i][1], &hwpt_id);
		EXPECT_EQ(EIO, errno)
		{
			TH_LOG("case %u", i);
		}
	}
	/* ATS is left out where the hardware has none */
	ASSERT_EQ(0, nested_alloc(self->fd, self->edu.dev_id, self->viommu_id,
				  STE0_V | STE0_S1_TRANS | page_iova(CD),
				  1ULL << 28, &hwpt_id));
	test_ioctl_destroy(hwpt_id);
	/* One that is not valid is as if it blocked */
	ASSERT_EQ(0, nested_alloc(self->fd, self->edu.dev_id, self->viommu_id,
				  ~STE0_V, ~0ULL, &hwpt_id));
	load(&self->edu, guest_iova(GOOD), PAGE_SIZE, LOADED);
	ASSERT_EQ(0, edu_attach(&self->edu, hwpt_id));
	fill(page(FREE), PAGE_SIZE, SECRET);
	ASSERT_EQ(0, dma_to(&self->edu, page_iova(FREE), SMALL));
	EXPECT_EQ(PAGE_SIZE, filled(page(FREE), PAGE_SIZE, SECRET));
}

/* The SMMU gets nothing to see that it would find illegal */
TEST_F(iommufd_smmuv3_nested, L13_bad_command)
{
	struct iommu_hw_info_arm_smmuv3 info = {};
	struct iommu_hw_info hw_info = {};
	/* Without the substream ID and what tells that there is one */
	struct {
		uint8_t op;
		uint64_t known[2];
	} cmds[] = {
		{ 0x05, { 0xffffffff00000000, 1 } },
		{ 0x06, { 0xffffffff00000000 } },
		{ 0x10, { 0x0000ffff00000000 } },
		{ 0x11, { 0xffffffff00000000 } },
		{ 0x12, { 0xffffffff01f1f000, ~0xffcULL | 0xf00 } },
		{ 0x13, { 0x0000ffff01f1f000, ~0xffcULL | 0xf00 } },
		{ 0x30 },
		/* Global; the size is a field with values of its own */
		{ 0x40, { 0xffffffff00000200, ~0xfc0ULL } },
	};
	uint64_t ssids;
	uint32_t num;
	unsigned int op, i, bit;
	bool ats;

	ASSERT_EQ(0, get_hw_info(self->fd, self->edu.dev_id, &hw_info, &info));
	/* IDR1.SSIDSIZE, IDR0.ATS, ASID16, IDR3.RIL, IDR5: 4, 16, 64 KiB */
	ats = info.idr[0] >> 10 & 1;
	ssids = (BIT64(info.idr[1] >> 6 & 31) - 1) << 12;
	for (i = 0; i != ARRAY_SIZE(cmds); i++) {
		if (cmds[i].op == 0x05 || cmds[i].op == 0x40)
			cmds[i].known[0] |= ssids;
		if (cmds[i].op == 0x40 && ssids)
			cmds[i].known[0] |= BIT64(11);
		if ((cmds[i].op == 0x11 || cmds[i].op == 0x12) &&
		    !(info.idr[0] >> 12 & 1))
			cmds[i].known[0] &= ~(0xffULL << 56);
	}
	for (i = 1; i != 4; i++) {
		bool ril = info.idr[3] >> 10 & 1;
		int expect = ril && info.idr[5] >> (3 + i) & 1 ? 0 : EIO;

		/* A range of two pages of it */
		errno = 0;
		command(self->fd, self->viommu_id,
			CMD_TLBI_NH_VA | CD0_ASID(ASID) | 1 << 12,
			(uint64_t)i << 10, &num);
		EXPECT_EQ(expect, errno)
		{
			TH_LOG("granule %u", i);
		}
	}

	for (op = 0; op != 256; op++) {
		for (i = 0; i != ARRAY_SIZE(cmds); i++)
			if (cmds[i].op == op)
				break;
		if (i != ARRAY_SIZE(cmds))
			continue;
		errno = 0;
		command(self->fd, self->viommu_id,
			op | (uint64_t)VIRT_SID << 32, 0, &num);
		EXPECT_EQ(EIO, errno)
		{
			TH_LOG("opcode 0x%x", op);
		}
		EXPECT_EQ(0, num);
	}
	for (i = 0; i != ARRAY_SIZE(cmds); i++) {
		for (bit = 8; bit != 128; bit++) {
			uint64_t cmd[2] = { cmds[i].op };

			if (cmds[i].known[bit / 64] >> (bit % 64) & 1)
				continue;
			if (cmds[i].op < 0x10 || cmds[i].op == 0x40)
				cmd[0] |= (uint64_t)VIRT_SID << 32;
			cmd[bit / 64] |= 1ULL << (bit % 64);
			errno = 0;
			command(self->fd, self->viommu_id, cmd[0], cmd[1],
				&num);
			EXPECT_EQ(EIO, errno)
			{
				TH_LOG("opcode 0x%x bit %u", cmds[i].op, bit);
			}
		}
	}
	/* More than all addresses */
	EXPECT_ERRNO(EIO, command(self->fd, self->viommu_id,
				  0x40 | (uint64_t)VIRT_SID << 32, 53, &num));
	/* All of them: without ATS the SMMU finds that illegal, too */
	errno = 0;
	command(self->fd, self->viommu_id, 0x40 | (uint64_t)VIRT_SID << 32, 52,
		&num);
	EXPECT_EQ(ats ? 0 : EIO, errno);
	/* The queue still works */
	guest_command(CMD_TLBI_NH_ASID | CD0_ASID(ASID), 0);
}

/* One more than there are VMIDs: each vIOMMU has one, and each nesting parent */
TEST_F_TIMEOUT(iommufd_smmuv3_nested, L12_no_vmid_left, 900)
{
	uint32_t parent_id, viommu_id, last_id = 0;
	unsigned int num;

	for (num = 0; num <= 0xffff; num++) {
		if (viommu_alloc(self->fd, self->edu.dev_id, self->parent_id,
				 &viommu_id))
			break;
		last_id = viommu_id;
	}
	EXPECT_EQ(ENOSPC, errno);
	/* With 8 or 16 bits, and those that are in use already */
	EXPECT_EQ(true, num >= 256 - 8);
	ASSERT_EQ(true, num <= 65536 - 2);
	EXPECT_ERRNO(ENOSPC, hwpt_alloc(self->fd, self->edu.dev_id,
					self->ioas_id,
					IOMMU_HWPT_ALLOC_NEST_PARENT,
					&parent_id));
	/* Stage 1 needs none */
	ASSERT_EQ(0, hwpt_alloc(self->fd, self->edu.dev_id, self->ioas_id, 0,
				&parent_id));
	test_ioctl_destroy(parent_id);
	test_ioctl_destroy(last_id);
	ASSERT_EQ(0, hwpt_alloc(self->fd, self->edu.dev_id, self->ioas_id,
				IOMMU_HWPT_ALLOC_NEST_PARENT, &parent_id));
	ASSERT_EQ(0, edu_attach(&self->edu, parent_id));
	load(&self->edu, page_iova(GOOD), PAGE_SIZE, LOADED);
	ASSERT_EQ(0, dma_to(&self->edu, page_iova(FREE), PAGE_SIZE));
	EXPECT_EQ(PAGE_SIZE, filled(page(FREE), PAGE_SIZE, LOADED));
	EXPECT_ERRNO(ENOSPC, viommu_alloc(self->fd, self->edu.dev_id,
					  self->parent_id, &viommu_id));
}

/* How many were done is exactly those before the bad one, whatever the batches are */
TEST_F(iommufd_smmuv3_nested, invalidate_count)
{
	static const uint32_t nums[] = {
		1, 63, 64, 65, 128, 255, 256, 257, 4000
	};
	uint64_t(*cmds)[2];
	uint32_t num;
	size_t i, j;

	cmds = calloc(5000, sizeof(*cmds));
	ASSERT_NE(NULL, cmds);
	for (i = 0; i != ARRAY_SIZE(nums); i++) {
		for (j = 0; j != 5000; j++) {
			cmds[j][0] = htole64(CMD_TLBI_NH_VA | CD0_ASID(ASID));
			cmds[j][1] = htole64(guest_iova(j % 16));
		}
		num = nums[i];
		ASSERT_EQ(0, commands(self->fd, self->viommu_id, cmds, &num));
		EXPECT_EQ(nums[i], num);
		cmds[nums[i]][0] = htole64(CMD_SYNC);
		num = 5000;
		EXPECT_ERRNO(EIO, commands(self->fd, self->viommu_id, cmds,
					   &num));
		EXPECT_EQ(nums[i], num);
	}
	free(cmds);
}

/* A nested HWPT that does not translate by the guest's tables needs no vDEVICE */
TEST_F(iommufd_smmuv3_nested, no_vdevice)
{
	struct edu *edu = &self->edu2;

	ASSERT_EQ(0, edu_open(edu, 1, self->fd));
	ASSERT_EQ(0, edu_attach(edu, self->abort_id));
	ASSERT_EQ(0, edu_attach(edu, self->bypass_id));
	load(edu, page_iova(GOOD), PAGE_SIZE, LOADED);
	ASSERT_EQ(0, dma_to(edu, page_iova(FREE), PAGE_SIZE));
	EXPECT_EQ(PAGE_SIZE, filled(page(FREE), PAGE_SIZE, LOADED));
	EXPECT_ERRNO(ENOENT, edu_attach(edu, self->s1_id));
	/* It is where it was */
	fill(page(FREE), PAGE_SIZE, SECRET);
	ASSERT_EQ(0, dma_to(edu, page_iova(FREE), PAGE_SIZE));
	EXPECT_EQ(PAGE_SIZE, filled(page(FREE), PAGE_SIZE, LOADED));
}

struct guest {
	int fd;
	uint32_t ioas_id;
	uint32_t parent_id;
	uint32_t viommu_id;
	uint32_t vdevice_id;
	uint32_t s1_id;
};

/*
 * Another guest, with the second device under the same virtual stream ID and the same
 * ASID. All that is different is the table, and the memory in it.
 */
static int guest_open(struct guest *guest, struct edu *edu, int fd,
		      uint32_t parent_id)
{
	*guest = (struct guest){ .fd = fd, .parent_id = parent_id };
	if (edu_open(edu, 1, fd))
		return -1;
	if (!parent_id &&
	    (ioas_alloc(fd, &guest->ioas_id) ||
	     hwpt_alloc(fd, edu->dev_id, guest->ioas_id,
			IOMMU_HWPT_ALLOC_NEST_PARENT, &guest->parent_id)))
		return -1;
	if (viommu_alloc(fd, edu->dev_id, guest->parent_id,
			 &guest->viommu_id) ||
	    _test_cmd_vdevice_alloc(fd, guest->viommu_id, edu->dev_id, VIRT_SID,
				    &guest->vdevice_id) ||
	    nested_alloc(fd, edu->dev_id, guest->viommu_id,
			 STE0_V | STE0_S1_TRANS | page_iova(CD2),
			 STE1_S1CIR_WB | STE1_S1COR_WB | STE1_S1CSH_INNER,
			 &guest->s1_id))
		return -1;
	return edu_attach(edu, guest->s1_id);
}

/* Neither sees the memory of the other, or loses what is cached, or gets its events */
static void two_guests(struct __test_metadata *_metadata,
		       struct _test_data_iommufd_smmuv3_nested *self,
		       bool same_parent)
{
	uint64_t iova = guest_iova(8);
	struct event event = {};
	uint32_t veventq_id, num;
	struct guest guest;
	int veventq_fd, fd;

	guest_cd_at(CD2, TABLE2);
	guest_map(TABLE2, guest_iova(GOOD), GOOD, 0);
	guest_map(TABLE, iova, 30, 0);
	guest_map(TABLE2, iova, 40, 0);
	fd = same_parent ? self->fd : open("/dev/iommu", O_RDWR);
	ASSERT_NE(-1, fd);
	ASSERT_EQ(0, guest_open(&guest, &self->edu2, fd,
				same_parent ? self->parent_id : 0));
	ASSERT_EQ(0, veventq_alloc(fd, guest.viommu_id, &veventq_id,
				   &veventq_fd));

	/* First one, then the other, and then both find what they have cached */
	load(&self->edu, guest_iova(GOOD), PAGE_SIZE, LOADED);
	load(&self->edu2, guest_iova(GOOD), PAGE_SIZE, OTHER);
	ASSERT_EQ(0, dma_to(&self->edu, iova, PAGE_SIZE));
	ASSERT_EQ(0, dma_to(&self->edu2, iova, PAGE_SIZE));
	EXPECT_EQ(PAGE_SIZE, filled(page(30), PAGE_SIZE, LOADED));
	EXPECT_EQ(PAGE_SIZE, filled(page(40), PAGE_SIZE, OTHER));

	/* All that one guest can say is not about the other one */
	guest_map(TABLE, iova, 31, 0);
	guest_map(TABLE2, iova, 41, 0);
	ASSERT_EQ(0, command(guest.fd, guest.viommu_id, 0x30, 0, &num));
	ASSERT_EQ(0, command(guest.fd, guest.viommu_id,
			     CMD_TLBI_NH_VA | CD0_ASID(ASID), iova, &num));
	fill(page(30), PAGE_SIZE, SECRET);
	fill(page(31), PAGE_SIZE, SECRET);
	fill(page(40), PAGE_SIZE, SECRET);
	fill(page(41), PAGE_SIZE, SECRET);
	ASSERT_EQ(0, dma_to(&self->edu, iova, PAGE_SIZE));
	ASSERT_EQ(0, dma_to(&self->edu2, iova, PAGE_SIZE));
	EXPECT_EQ(PAGE_SIZE, filled(page(30), PAGE_SIZE, LOADED));
	EXPECT_EQ(PAGE_SIZE, filled(page(31), PAGE_SIZE, SECRET));
	EXPECT_EQ(PAGE_SIZE, filled(page(40), PAGE_SIZE, SECRET));
	EXPECT_EQ(PAGE_SIZE, filled(page(41), PAGE_SIZE, OTHER));

	/* Events under the same ID, each to its own */
	ASSERT_EQ(0, dma_to(&self->edu2, guest_iova(12), SMALL));
	ASSERT_EQ(sizeof(event), event_read(veventq_fd, &event, 5000));
	EXPECT_EQ(VIRT_SID, event_sid(&event));
	EXPECT_EQ(guest_iova(12), event_iova(&event));
	EXPECT_EQ(0, events_drop(self->veventq_fd));
	events_drop(veventq_fd);
	ASSERT_EQ(0, dma_to(&self->edu, guest_iova(13), SMALL));
	ASSERT_EQ(sizeof(event), event_read(self->veventq_fd, &event, 5000));
	EXPECT_EQ(guest_iova(13), event_iova(&event));
	EXPECT_EQ(0, events_drop(veventq_fd));

	/* What the VMM takes away from the parent is gone for both */
	if (same_parent) {
		test_ioctl_ioas_unmap(MEM_IOVA, BUFFER_SIZE);
		EXPECT_NO_DMA(&self->edu, iova, page(30));
		EXPECT_NO_DMA(&self->edu2, iova, page(41));
	}
	edu_close(&self->edu2);
	ASSERT_EQ(0, close(veventq_fd));
	if (!same_parent)
		ASSERT_EQ(0, close(fd));
}

TEST_F(iommufd_smmuv3_nested, two_guests)
{
	two_guests(_metadata, self, false);
}

TEST_F(iommufd_smmuv3_nested, two_viommus_of_a_guest)
{
	two_guests(_metadata, self, true);
}

/*
 * Have the SMMU's driver see to events on one CPU only, till the fixture's teardown.
 * -1 if it is not clear which interrupt tells of them.
 */
static int events_on_cpu0(char path[64], char cpus[64])
{
	FILE *file = fopen("/proc/interrupts", "r");
	int irq, fd, num = 0;
	char line[512];
	ssize_t len;

	if (!file)
		return -1;
	while (fgets(line, sizeof(line), file))
		if (strstr(line, "arm-smmu-v3-evtq") &&
		    sscanf(line, "%d:", &irq) == 1)
			num++;
	fclose(file);
	if (num != 1)
		return -1;
	snprintf(path, 64, "/proc/irq/%d/smp_affinity_list", irq);
	fd = open(path, O_RDONLY);
	len = read(fd, cpus, 63);
	close(fd);
	if (len <= 0 || write_file(path, "0")) {
		path[0] = 0;
		return -1;
	}
	cpus[len] = 0;
	return 0;
}

/* While it is busy there and does not sleep, no thread of an interrupt runs */
static int busy_on_cpu0(bool busy, const cpu_set_t *cpus)
{
	struct sched_param param = { .sched_priority = busy ? 99 : 0 };

	if (sched_setaffinity(0, sizeof(*cpus), cpus))
		return -1;
	return sched_setscheduler(0, busy ? SCHED_FIFO : SCHED_OTHER, &param);
}

/* What waits in the SMMU's queue when a device gets to another guest */
TEST_F(iommufd_smmuv3_nested, events_of_former_guest)
{
	struct edu *edu = &self->edu;
	uint32_t viommu_id, veventq_id, vdevice_id, s1_id;
	cpu_set_t cpus, cpu0;
	struct event event;
	int veventq_fd, i;
	time_t end;

	CPU_ZERO(&cpu0);
	CPU_SET(0, &cpu0);
	ASSERT_EQ(0, sched_getaffinity(0, sizeof(cpus), &cpus));
	if (events_on_cpu0(self->irq_path, self->irq_cpus) ||
	    busy_on_cpu0(true, &cpu0) || busy_on_cpu0(false, &cpus))
		SKIP(return, "cannot keep the driver from seeing to events");

	ASSERT_EQ(0, viommu_alloc(self->fd, edu->dev_id, self->parent_id,
				  &viommu_id));
	ASSERT_EQ(0, veventq_alloc(self->fd, viommu_id, &veventq_id,
				   &veventq_fd));
	ASSERT_EQ(0, nested_alloc(self->fd, edu->dev_id, viommu_id,
				  STE0_V | STE0_S1_TRANS | page_iova(CD),
				  STE1_S1CIR_WB | STE1_S1COR_WB |
					  STE1_S1CSH_INNER,
				  &s1_id));
	for (i = 0; i != 3; i++) {
		/* After this the thread of the interrupt is on that CPU, too */
		ASSERT_EQ(0, dma_to(edu, guest_iova(12), SMALL));
		ASSERT_EQ(sizeof(event),
			  event_read(self->veventq_fd, &event, 5000));
		events_drop(self->veventq_fd);

		edu_dma_start(edu, EDU_BUFFER, guest_iova(12), PAGE_SIZE,
			      EDU_DMA_TO_MEMORY);
		ASSERT_EQ(0, busy_on_cpu0(true, &cpu0));
		end = time(NULL) + 5;
		while (edu_read(edu, EDU_DMA_CMD) & EDU_DMA_RUN &&
		       time(NULL) < end)
			;
		test_ioctl_destroy(self->vdevice_id);
		test_cmd_vdevice_alloc(viommu_id, edu->dev_id, VIRT_SID,
				       &vdevice_id);
		ASSERT_EQ(0, edu_attach(edu, s1_id));
		ASSERT_EQ(0, busy_on_cpu0(false, &cpus));
		EXPECT_EQ(0, events_drop(veventq_fd));
		/* Its own are reported */
		ASSERT_EQ(0, dma_to(edu, guest_iova(13), SMALL));
		ASSERT_EQ(sizeof(event), event_read(veventq_fd, &event, 5000));
		EXPECT_EQ(guest_iova(13), event_iova(&event));
		events_drop(veventq_fd);

		test_ioctl_destroy(vdevice_id);
		test_cmd_vdevice_alloc(self->viommu_id, edu->dev_id, VIRT_SID,
				       &self->vdevice_id);
		ASSERT_EQ(0, edu_attach(edu, self->s1_id));
		events_drop(self->veventq_fd);
	}
	ASSERT_EQ(0, close(veventq_fd));
}

/* The device is pulled while it does DMA, and the guest invalidates what it has cached */
struct invalidator {
	pthread_t thread;
	int fd;
	uint32_t viommu_id;
	bool stop;
	uint64_t done;
	/* The device is */
	uint64_t gone;
	/* The SMMU is, and does not come back */
	uint64_t lost;
	int bad;
};

static void *invalidate_thread(void *arg)
{
	struct invalidator *inv = arg;
	uint64_t cmds[][2] = {
		{ htole64(CMD_TLBI_NH_ASID | CD0_ASID(ASID)) },
		{ htole64(CMD_CFGI_CD | (uint64_t)VIRT_SID << 32), htole64(1) },
		{ htole64(CMD_TLBI_NH_VA | CD0_ASID(ASID)) },
		{ htole64(0x06 | (uint64_t)VIRT_SID << 32) },
	};

	while (!__atomic_load_n(&inv->stop, __ATOMIC_RELAXED)) {
		uint32_t num = ARRAY_SIZE(cmds);

		errno = 0;
		if (!commands(inv->fd, inv->viommu_id, cmds, &num) &&
		    num == ARRAY_SIZE(cmds) && !inv->lost)
			inv->done++;
		else if (errno == EIO && num >= 1 && num < ARRAY_SIZE(cmds) &&
			 !inv->lost)
			inv->gone++;
		else if (errno == ENODEV && !num)
			inv->lost++;
		else
			inv->bad = errno ?: -1;
	}
	return NULL;
}

TEST_F_TIMEOUT(iommufd_smmuv3_nested, unplug_during_invalidate, 300)
{
	struct invalidator inv = {
		.fd = self->fd,
		.viommu_id = self->viommu_id,
	};
	struct edu *edu = &self->edu;
	char path[64];
	int i;

	ASSERT_EQ(0,
		  pthread_create(&inv.thread, NULL, invalidate_thread, &inv));
	for (i = 0; i != 5; i++) {
		load(edu, guest_iova(GOOD), PAGE_SIZE, LOADED);
		edu_dma_start(edu, EDU_BUFFER, guest_iova(LOOK), PAGE_SIZE,
			      EDU_DMA_TO_MEMORY);
		edu_close(edu);
		ASSERT_EQ(0, edu_path(edu, "remove", path, sizeof(path)));
		ASSERT_EQ(0, write_file(path, "1"));
		ASSERT_EQ(0, write_file("/sys/bus/pci/rescan", "1"));
		ASSERT_EQ(0, edu_open(edu, 0, self->fd));
		test_cmd_vdevice_alloc(self->viommu_id, edu->dev_id, VIRT_SID,
				       &self->vdevice_id);
		ASSERT_EQ(0, edu_attach(edu, self->s1_id));
	}
	__atomic_store_n(&inv.stop, true, __ATOMIC_RELAXED);
	ASSERT_EQ(0, pthread_join(inv.thread, NULL));
	EXPECT_EQ(0, inv.bad);
	EXPECT_EQ(0, inv.lost);
	EXPECT_LT(0, inv.done);
	EXPECT_LT(0, inv.gone);
	load(edu, guest_iova(GOOD), PAGE_SIZE, OTHER);
}

/* The window that iommufd has set up for MSIs, in which the doorbell is a page */
#define MSI_IOVA 0x8000000ULL

static int edu_msi(struct edu *edu)
{
	struct {
		struct vfio_irq_set set;
		int fd;
	} irq = {
		.set = {
			.argsz = sizeof(irq),
			.flags = VFIO_IRQ_SET_DATA_EVENTFD |
				 VFIO_IRQ_SET_ACTION_TRIGGER,
			.index = VFIO_PCI_MSI_IRQ_INDEX,
			.count = 1,
		},
	};

	irq.fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (irq.fd == -1)
		return -1;
	if (!ioctl(edu->fd, VFIO_DEVICE_SET_IRQS, &irq))
		return irq.fd;
	close(irq.fd);
	return -1;
}

/* Whether an interrupt that the device is asked for arrives */
static bool edu_interrupt(struct edu *edu, int irq_fd)
{
	struct pollfd pollfd = { .fd = irq_fd, .events = POLLIN };
	bool arrived;
	uint64_t num;

	edu_write32(edu, EDU_IRQ_RAISE, 1);
	arrived = poll(&pollfd, 1, 1000) == 1 &&
		  read(irq_fd, &num, sizeof(num)) == sizeof(num);
	edu_write32(edu, EDU_IRQ_ACK, 1);
	return arrived;
}

/* An interrupt is a write, that goes through the guest's table and the kernel's */
TEST_F(iommufd_smmuv3_nested, msi)
{
	uint64_t *l2 = (uint64_t *)page(TABLE + 1);
	uint64_t *l3 = (uint64_t *)page(TABLE_MSI);
	struct edu *edu = &self->edu;
	struct event event = {};
	int irq_fd;

	irq_fd = edu_msi(edu);
	ASSERT_NE(-1, irq_fd);

	/* The guest has not mapped it */
	EXPECT_EQ(false, edu_interrupt(edu, irq_fd));
	ASSERT_EQ(sizeof(event), event_read(self->veventq_fd, &event, 5000));
	EXPECT_EQ(EVT_F_TRANSLATION, event_type(&event));
	EXPECT_EQ(MSI_IOVA, event_iova(&event) & ~(PAGE_SIZE - 1));
	EXPECT_EQ(false, event_is_read(&event));

	/* One to one, as the firmware of the guest says */
	memset(l3, 0, PAGE_SIZE);
	l3[(MSI_IOVA >> 12) & 511] = MSI_IOVA | PTE_PAGE | PTE_USER |
				     PTE_INNER | PTE_AF | PTE_NG;
	l2[(MSI_IOVA >> 21) & 511] = page_iova(TABLE_MSI) | PTE_TABLE;
	__sync_synchronize();
	EXPECT_EQ(true, edu_interrupt(edu, irq_fd));

	/* And without a table of the guest's */
	ASSERT_EQ(0, edu_attach(edu, self->bypass_id));
	EXPECT_EQ(true, edu_interrupt(edu, irq_fd));
	ASSERT_EQ(0, edu_attach(edu, self->abort_id));
	EXPECT_EQ(false, edu_interrupt(edu, irq_fd));
	ASSERT_EQ(0, edu_attach(edu, self->s1_id));
	EXPECT_EQ(true, edu_interrupt(edu, irq_fd));
	ASSERT_EQ(0, close(irq_fd));
}

static int smmu_unload(void)
{
	return syscall(__NR_delete_module, "arm_smmu_v3", O_NONBLOCK);
}

static int pci_has_no_driver(const struct dirent *entry)
{
	struct stat st;
	char path[300];

	snprintf(path, sizeof(path), PCI_DEVICES "%s/driver", entry->d_name);
	return entry->d_name[0] != '.' && stat(path, &st);
}

/* Each device keeps the IOMMU driver loaded, as does the host bridge, which is one, too */
static int smmu_leave(void)
{
	struct dirent **list;
	char path[300];
	int i, num;

	if (edu_remove_all())
		return -1;
	num = scandir(PCI_DEVICES, &list, pci_has_no_driver, NULL);
	for (i = 0; i < num; i++) {
		snprintf(path, sizeof(path), PCI_DEVICES "%s/remove",
			 list[i]->d_name);
		/* It may have been behind another one */
		write_file(path, "1");
		free(list[i]);
	}
	if (num >= 0)
		free(list);
	return num < 0 ? -1 : 0;
}

/* What is still open when the driver is to go, on a device that is gone already */
FIXTURE(iommufd_smmuv3_driver)
{
	int fd;
};

FIXTURE_VARIANT(iommufd_smmuv3_driver)
{
	bool parent;
	bool viommu;
	bool nested;
};

FIXTURE_VARIANT_ADD(iommufd_smmuv3_driver, hwpt)
{
};

FIXTURE_VARIANT_ADD(iommufd_smmuv3_driver, parent)
{
	.parent = true,
};

FIXTURE_VARIANT_ADD(iommufd_smmuv3_driver, viommu)
{
	.parent = true,
	.viommu = true,
};

FIXTURE_VARIANT_ADD(iommufd_smmuv3_driver, nested)
{
	.parent = true,
	.viommu = true,
	.nested = true,
};

FIXTURE_SETUP(iommufd_smmuv3_driver)
{
	char name[16];

	self->fd = -1;
	if (edu_find(0, name) < 2)
		SKIP(return, "needs two of QEMU's edu devices");
	if (variant->viommu && !canwbs())
		SKIP(return, "needs CANWBS in the IORT");
	ASSERT_EQ(0, smmu_load());
}

FIXTURE_TEARDOWN(iommufd_smmuv3_driver)
{
	/* For the next one, whatever happened */
	smmu_load();
	write_file("/sys/bus/pci/rescan", "1");
}

/* Loaded, used, refused while in use, unloaded, and that again */
TEST_F_TIMEOUT(iommufd_smmuv3_driver, L8_unload, 180)
{
	uint32_t ioas_id, hwpt_id, viommu_id = 0, nested_id = 0;
	uint32_t num, num_done;
	uint32_t flags = variant->parent ? IOMMU_HWPT_ALLOC_NEST_PARENT : 0;
	struct edu edu;
	int i;

	for (i = 0; i != 10; i++) {
		ASSERT_EQ(0, smmu_load());
		ASSERT_EQ(0, write_file("/sys/bus/pci/rescan", "1"));
		self->fd = open("/dev/iommu", O_RDWR);
		ASSERT_NE(-1, self->fd);
		ASSERT_EQ(0, ioas_alloc(self->fd, &ioas_id));
		ASSERT_EQ(0, edu_open(&edu, 0, self->fd));
		ASSERT_EQ(0, hwpt_alloc(self->fd, edu.dev_id, ioas_id, flags,
					&hwpt_id));
		ASSERT_EQ(0, edu_attach(&edu, hwpt_id));
		if (variant->viommu)
			ASSERT_EQ(0, viommu_alloc(self->fd, edu.dev_id, hwpt_id,
						  &viommu_id));
		if (variant->nested) {
			ASSERT_EQ(0,
				  nested_alloc(self->fd, edu.dev_id, viommu_id,
					       STE0_V | STE0_BYPASS, 0,
					       &nested_id));
			ASSERT_EQ(0, edu_attach(&edu, nested_id));
		}
		load(&edu, page_iova(GOOD), PAGE_SIZE, LOADED + i);
		ASSERT_EQ(0, dma_to(&edu, page_iova(FREE), PAGE_SIZE));
		ASSERT_EQ(PAGE_SIZE, filled(page(FREE), PAGE_SIZE, LOADED + i));

		edu_close(&edu);
		ASSERT_EQ(0, smmu_leave());
		EXPECT_ERRNO(EAGAIN, smmu_unload());
		/* It is all there, and goes through the driver */
		if (variant->viommu) {
			ASSERT_EQ(0, command(self->fd, viommu_id, 0x30, 0,
					     &num_done));
			EXPECT_EQ(1, num_done);
			EXPECT_ERRNO(EBUSY,
				     _test_ioctl_destroy(self->fd, hwpt_id));
		}
		/* By IOMMU_DESTROY or by close, as it comes */
		if (i & 1) {
			if (variant->nested)
				ASSERT_EQ(0, _test_ioctl_destroy(self->fd,
								 nested_id));
			if (variant->viommu)
				ASSERT_EQ(0, _test_ioctl_destroy(self->fd,
								 viommu_id));
			ASSERT_EQ(0, _test_ioctl_destroy(self->fd, hwpt_id));
			ASSERT_EQ(0, smmu_unload());
			ASSERT_EQ(0, close(self->fd));
		} else {
			ASSERT_EQ(0, close(self->fd));
			ASSERT_EQ(0, smmu_unload());
		}
	}
	num = edu_find(0, edu.name);
	ASSERT_EQ(0, num);
}

static int smmu_find(char *name, size_t size)
{
	DIR *dir = opendir(SMMU_DRIVER);
	struct dirent *entry;
	int ret = -1;

	while (dir && (entry = readdir(dir))) {
		if (strncmp(entry->d_name, "arm-smmu-v3.", 12))
			continue;
		ret = snprintf(name, size, "%s", entry->d_name) < size ? 0 : -1;
	}
	if (dir)
		closedir(dir);
	return ret;
}

#define NEEDS_UNBIND "needs CONFIG_IOMMUFD_TEST"

static bool smmu_can_be_unbound(void)
{
	return !access(SMMU_DRIVER "/unbind", F_OK);
}

static int call_unbind(int fd, uint32_t id, struct call *call)
{
	return write_file(SMMU_DRIVER "/unbind", call->arg);
}

/* The SMMU goes away. It waits for nobody: 10 s are a lot. */
static void smmu_unbind(struct __test_metadata *_metadata, char name[64])
{
	struct call unbind = { .fn = call_unbind, .arg = name };
	char found[64];

	ASSERT_EQ(0, smmu_find(found, sizeof(found)));
	strcpy(name, found);
	call_start(&unbind);
	ASSERT_EQ(0, call_end(&unbind));
	ASSERT_EQ(-1, smmu_find(found, sizeof(found)));
}

/* The physical address of a page, 0 if that is a secret */
static uint64_t page_phys(const void *at)
{
	uint64_t entry = 0;
	int fd = open("/proc/self/pagemap", O_RDONLY);

	if (fd != -1) {
		if (pread(fd, &entry, sizeof(entry),
			  (uintptr_t)at / PAGE_SIZE * sizeof(entry)) < 0)
			entry = 0;
		close(fd);
	}
	return (entry & (BIT64(55) - 1)) * PAGE_SIZE;
}

/*
 * Nothing of the device's arrives in page FREE any more, by any address. It takes a
 * device with more than 28 bits of address to get at memory without an IOMMU:
 * -device edu,dma_mask=0xffffffffffff
 */
static void dma_is_blocked(struct __test_metadata *_metadata, struct edu *edu)
{
	uint64_t phys;

	fill(page(FREE), PAGE_SIZE, SECRET);
	phys = page_phys(page(FREE));
	ASSERT_NE(0, phys);
	ASSERT_EQ(0, dma_to(edu, guest_iova(8), SMALL));
	ASSERT_EQ(0, dma_to(edu, page_iova(FREE), SMALL));
	ASSERT_EQ(0, dma_to(edu, phys, SMALL));
	EXPECT_EQ(PAGE_SIZE, filled(page(FREE), PAGE_SIZE, SECRET));
}

/* The SMMU goes away under a device that has no vIOMMU; what is mapped stays */
TEST_F(iommufd_smmuv3, L14_unbind)
{
	struct iommu_hw_info_arm_smmuv3 info = {};
	struct iommu_hw_info hw_info = {};
	struct edu *edu = &self->edu;
	uint32_t hwpt_id, id;

	if (!smmu_can_be_unbound())
		SKIP(return, NEEDS_UNBIND);
	test_cmd_hwpt_alloc(edu->dev_id, self->ioas_id, 0, &hwpt_id);
	load(edu, page_iova(GOOD), PAGE_SIZE, LOADED);
	ASSERT_EQ(0, dma_to(edu, page_iova(FREE), PAGE_SIZE));
	EXPECT_EQ(PAGE_SIZE, filled(page(FREE), PAGE_SIZE, LOADED));

	smmu_unbind(_metadata, self->smmu);
	dma_is_blocked(_metadata, edu);
	EXPECT_ERRNO(ENODEV, edu_attach(edu, self->ioas_id));
	EXPECT_ERRNO(ENODEV, edu_attach(edu, hwpt_id));
	EXPECT_ERRNO(ENODEV, hwpt_alloc(self->fd, edu->dev_id, self->ioas_id, 0,
					&id));
	EXPECT_ERRNO(ENODEV,
		     get_hw_info(self->fd, edu->dev_id, &hw_info, &info));
	test_ioctl_ioas_map_fixed(page(FREE), PAGE_SIZE, page_iova(MEM_PAGES));
	test_ioctl_ioas_unmap(page_iova(MEM_PAGES), PAGE_SIZE);
	test_ioctl_destroy(hwpt_id);

	edu_close(edu);
	ASSERT_EQ(0, smmu_back(self->smmu));
	ASSERT_EQ(0, edu_open(edu, 0, self->fd));
	ASSERT_EQ(0, edu_attach(edu, self->ioas_id));
	load(edu, page_iova(GOOD), PAGE_SIZE, OTHER);
	ASSERT_EQ(0, dma_to(edu, page_iova(FREE), PAGE_SIZE));
	EXPECT_EQ(PAGE_SIZE, filled(page(FREE), PAGE_SIZE, OTHER));
}

/* The SMMU goes away while a VM is using it; user space and its device stay */
TEST_F(iommufd_smmuv3_nested, L6_unbind)
{
	struct edu *edu = &self->edu;
	struct pollfd pollfd = { .fd = self->veventq_fd, .events = POLLIN };
	struct event event;
	uint32_t id, num;

	if (!smmu_can_be_unbound())
		SKIP(return, NEEDS_UNBIND);
	load(edu, guest_iova(GOOD), PAGE_SIZE, LOADED);
	guest_map(TABLE, guest_iova(8), FREE, 0);
	ASSERT_EQ(0, dma_to(edu, guest_iova(8), PAGE_SIZE));
	EXPECT_EQ(PAGE_SIZE, filled(page(FREE), PAGE_SIZE, LOADED));

	smmu_unbind(_metadata, self->smmu);
	dma_is_blocked(_metadata, edu);
	EXPECT_ERRNO(ENODEV, command(self->fd, self->viommu_id, 0x30, 0, &num));
	EXPECT_EQ(0, num);
	EXPECT_ERRNO(ENODEV,
		     nested_alloc(self->fd, edu->dev_id, self->viommu_id,
				  STE0_V | STE0_BYPASS, 0, &id));
	EXPECT_ERRNO(ENODEV, edu_attach(edu, self->bypass_id));
	EXPECT_ERRNO(ENODEV,
		     _test_cmd_vdevice_alloc(self->fd, self->viommu_id,
					     edu->dev_id, VIRT_SID + 1, &id));
	EXPECT_ERRNO(ENODEV, viommu_alloc(self->fd, edu->dev_id,
					  self->parent_id, &id));
	EXPECT_ERRNO(ENODEV, hwpt_alloc(self->fd, edu->dev_id, self->ioas_id, 0,
					&id));
	while (event_read(self->veventq_fd, &event, 0) > 0)
		;
	ASSERT_EQ(1, poll(&pollfd, 1, 0));
	EXPECT_EQ(POLLHUP, pollfd.revents & POLLHUP);
	EXPECT_ERRNO(ENODEV, read(self->veventq_fd, &event, sizeof(event)));

	test_ioctl_destroy(self->s1_id);
	test_ioctl_destroy(self->bypass_id);
	test_ioctl_destroy(self->abort_id);
	test_ioctl_destroy(self->vdevice_id);
	ASSERT_EQ(0, close(self->veventq_fd));
	self->veventq_fd = -1;
	test_ioctl_destroy(self->veventq_id);
	test_ioctl_destroy(self->viommu_id);
	test_ioctl_destroy(self->parent_id);

	edu_close(edu);
	ASSERT_EQ(0, smmu_back(self->smmu));
	ASSERT_EQ(0, edu_open(edu, 0, self->fd));
	ASSERT_EQ(0, edu_attach(edu, self->ioas_id));
	load(edu, page_iova(GOOD), PAGE_SIZE, OTHER);
	ASSERT_EQ(0, dma_to(edu, page_iova(FREE), PAGE_SIZE));
	EXPECT_EQ(PAGE_SIZE, filled(page(FREE), PAGE_SIZE, OTHER));
}

/* A guest that does not stop to invalidate, and its device does DMA that makes events */
TEST_F_TIMEOUT(iommufd_smmuv3_nested, L3_unbind_in_use, 300)
{
	struct invalidator inv[2];
	struct edu *edu = &self->edu;
	struct event event;
	int i;

	if (!smmu_can_be_unbound())
		SKIP(return, NEEDS_UNBIND);
	load(edu, guest_iova(GOOD), PAGE_SIZE, LOADED);
	for (i = 0; i != ARRAY_SIZE(inv); i++) {
		inv[i] = (struct invalidator){
			.fd = self->fd,
			.viommu_id = self->viommu_id,
		};
		ASSERT_EQ(0, pthread_create(&inv[i].thread, NULL,
					    invalidate_thread, &inv[i]));
	}
	for (i = 0; i != ARRAY_SIZE(inv); i++)
		while (!__atomic_load_n(&inv[i].done, __ATOMIC_RELAXED) &&
		       !__atomic_load_n(&inv[i].bad, __ATOMIC_RELAXED))
			sleep_ms(1);
	/* Each 4 bytes of it are an event */
	edu_dma_start(edu, EDU_BUFFER, guest_iova(12), PAGE_SIZE,
		      EDU_DMA_TO_MEMORY);
	ASSERT_EQ(sizeof(event), event_read(self->veventq_fd, &event, 30000));
	smmu_unbind(_metadata, self->smmu);
	/* Somebody finds it lost before they are told to stop */
	while (!__atomic_load_n(&inv[0].lost, __ATOMIC_RELAXED) &&
	       !__atomic_load_n(&inv[1].lost, __ATOMIC_RELAXED) &&
	       !__atomic_load_n(&inv[0].bad, __ATOMIC_RELAXED) &&
	       !__atomic_load_n(&inv[1].bad, __ATOMIC_RELAXED))
		sleep_ms(1);
	for (i = 0; i != ARRAY_SIZE(inv); i++) {
		__atomic_store_n(&inv[i].stop, true, __ATOMIC_RELAXED);
		ASSERT_EQ(0, pthread_join(inv[i].thread, NULL));
		EXPECT_EQ(0, inv[i].bad);
		EXPECT_LT(0, inv[i].done);
	}
	EXPECT_LT(0, inv[0].lost + inv[1].lost);
	dma_is_blocked(_metadata, edu);
}

/* What a VMM has that is stopped, in a process of its own; 0 if all is as it should be */
static int stopped_vmm(void)
{
	struct edu edu;
	struct guest guest;
	uint32_t num;
	int fd;

	guest_cd_at(CD2, TABLE2);
	guest_map(TABLE2, guest_iova(GOOD), GOOD, 0);
	fd = open("/dev/iommu", O_RDWR);
	if (fd == -1 || guest_open(&guest, &edu, fd, 0))
		return 1;
	if (command(fd, guest.viommu_id, 0x30, 0, &num))
		return 2;
	raise(SIGSTOP);
	if (!command(fd, guest.viommu_id, 0x30, 0, &num) || errno != ENODEV)
		return 3;
	if (!edu_attach(&edu, guest.s1_id) || errno != ENODEV)
		return 4;
	if (_test_ioctl_destroy(fd, guest.vdevice_id) ||
	    _test_ioctl_destroy(fd, guest.s1_id) ||
	    _test_ioctl_destroy(fd, guest.viommu_id))
		return 5;
	edu_close(&edu);
	return close(fd) ? 6 : 0;
}

/* Two VMs lose it at once, and one of them is not there to be asked */
TEST_F(iommufd_smmuv3_nested, L4_unbind_stopped)
{
	struct edu *edu = &self->edu;
	uint32_t num;
	int status;
	pid_t pid;

	if (!smmu_can_be_unbound())
		SKIP(return, NEEDS_UNBIND);
	pid = fork();
	ASSERT_NE(-1, pid);
	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		_exit(stopped_vmm());
	}
	ASSERT_EQ(pid, waitpid(pid, &status, WUNTRACED));
	ASSERT_EQ(true, WIFSTOPPED(status))
	{
		TH_LOG("the other VMM did not get there: status 0x%x", status);
	}
	load(edu, guest_iova(GOOD), PAGE_SIZE, LOADED);
	guest_command(0x30, 0);

	smmu_unbind(_metadata, self->smmu);
	dma_is_blocked(_metadata, edu);
	EXPECT_ERRNO(ENODEV, command(self->fd, self->viommu_id, 0x30, 0, &num));
	ASSERT_EQ(0, kill(pid, SIGCONT));
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_EQ(0, status);
}

TEST_HARNESS_MAIN
