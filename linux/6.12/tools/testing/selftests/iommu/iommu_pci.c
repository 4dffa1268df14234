// SPDX-License-Identifier: GPL-2.0-only
/*
 * PCI devices behind an IOMMU, some in the hands of a program, some in those of
 * drivers that use the DMA API. If it is a virtio-iommu, it goes away and comes back;
 * neither is asked. Wants QEMU's machine with an IOMMU, first of all the devices, as
 *
 *   -machine q35 -device virtio-iommu-pci,addr=1
 *   -device edu,dma_mask=0xffffffffffff,addr=10
 *   -device edu,dma_mask=0xffffffffffff,addr=11.0,multifunction=on
 *   -device virtio-rng-pci,disable-legacy=on,iommu_platform=on,addr=11.1
 *   -device virtio-rng-pci,disable-legacy=on,iommu_platform=on,addr=12
 *
 * and is of the more use the more the kernel checks. "edu" does DMA when told to.
 * The last one is also driven by a program, with CONFIG_VP_VDPA and CONFIG_VHOST_VDPA.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#include <linux/genetlink.h>
#include <linux/iommufd.h>
#include <linux/pci_regs.h>
#include <linux/userfaultfd.h>
#include <linux/vdpa.h>
#include <linux/vfio.h>
#include <linux/vhost.h>
#include <linux/virtio_config.h>
#include <linux/virtio_ids.h>
#include <linux/virtio_ring.h>

#include "../kselftest_harness.h"

#define DRIVER "/sys/bus/virtio/drivers/virtio_iommu/"
#define PCI_DEVICES "/sys/bus/pci/devices/"
#define PCI_DRIVERS "/sys/bus/pci/drivers/"

/* One alone, and one whose neighbour in the group is a virtio-rng */
#define EDU "0000:00:10.0"
#define EDU_SHARED "0000:00:11.0"
#define RNG_SHARED "0000:00:11.1"
#define RNG "0000:00:12.0"

#define EDU_DMA_SRC 0x80
#define EDU_DMA_DST 0x88
#define EDU_DMA_COUNT 0x90
#define EDU_DMA_CMD 0x98
#define EDU_DMA_RUN 1
#define EDU_DMA_TO_MEMORY 2
/* The device's own memory, which only its DMA reaches */
#define EDU_BUFFER 0x40000

#define PAGE 4096
/* QEMU 7.2 takes its whole buffer for too much */
#define DMA_SIZE 2048

/* As in include/linux/map_benchmark.h, which is not for programs */
struct map_benchmark {
	__u64 results[4];
	__u32 threads;
	__u32 seconds;
	__s32 node;
	__u32 dma_bits;
	__u32 dma_dir;
	__u32 dma_trans_ns;
	__u32 granule;
	__u8 expansion[76];
};

#define DMA_MAP_BENCHMARK _IOWR('d', 1, struct map_benchmark)

static void sleep_us(unsigned int us)
{
	struct timespec ts = {
		.tv_sec = us / 1000000,
		.tv_nsec = us % 1000000 * 1000,
	};

	nanosleep(&ts, NULL);
}

static int write_file(const char *dir, const char *file, const char *text)
{
	char path[300];
	int fd, ret;

	snprintf(path, sizeof(path), "%s%s", dir, file);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd == -1)
		return -errno;
	ret = write(fd, text, strlen(text)) < 0 ? -errno : 0;
	close(fd);
	return ret;
}

static int exists(const char *dir, const char *file)
{
	struct stat st;
	char path[300];

	snprintf(path, sizeof(path), "%s%s", dir, file);
	return !stat(path, &st);
}

/* The virtio device that is the IOMMU */
static char iommu_name[32];

static void iommu_find(void)
{
	struct dirent *entry;
	DIR *dir;

	dir = iommu_name[0] ? NULL : opendir(DRIVER);
	if (!dir)
		return;
	while ((entry = readdir(dir)))
		if (!strncmp(entry->d_name, "virtio", 6))
			snprintf(iommu_name, sizeof(iommu_name), "%.31s",
				 entry->d_name);
	closedir(dir);
}

static int iommu_is_there(void)
{
	return !iommu_name[0] || exists(DRIVER, iommu_name);
}

static int iommu_unbind(void)
{
	return write_file(DRIVER, "unbind", iommu_name);
}

static int iommu_bind(void)
{
	return write_file(DRIVER, "bind", iommu_name);
}

/* A device gets this driver, anew if it has it */
static int device_bind(const char *name, const char *driver)
{
	char dir[100], drivers[100];

	snprintf(dir, sizeof(dir), PCI_DEVICES "%s/", name);
	snprintf(drivers, sizeof(drivers), PCI_DRIVERS "%s/", driver);
	write_file(dir, "driver/unbind", name);
	if (write_file(dir, "driver_override", driver))
		return -1;
	return write_file("/sys/bus/pci/", "drivers_probe", name) ||
			       !exists(drivers, name) ?
		       -1 :
		       0;
}

/* What all tests begin and end with */
static int everything_back(void)
{
	if (!exists(PCI_DEVICES, RNG) || !exists(PCI_DEVICES, RNG_SHARED))
		write_file("/sys/bus/pci/", "rescan", "1");
	if (!iommu_is_there() && iommu_bind())
		return -1;
	return device_bind(EDU, "vfio-pci") ||
			       device_bind(EDU_SHARED, "vfio-pci") ||
			       device_bind(RNG_SHARED, "virtio-pci") ||
			       device_bind(RNG, "virtio-pci") ?
		       -1 :
		       0;
}

struct edu {
	int fd;
	__u32 dev_id;
	uint8_t *regs;
};

static int edu_cdev(const char *name)
{
	struct dirent *entry;
	char path[300];
	int fd = -1;
	DIR *dir;

	snprintf(path, sizeof(path), PCI_DEVICES "%s/vfio-dev", name);
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

/* Of an open device: 0, or -errno and it is closed */
static int edu_init(struct edu *edu)
{
	struct vfio_region_info region = {
		.argsz = sizeof(region),
		.index = VFIO_PCI_BAR0_REGION_INDEX,
	};
	struct vfio_region_info config = {
		.argsz = sizeof(config),
		.index = VFIO_PCI_CONFIG_REGION_INDEX,
	};
	uint16_t command = PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER;
	void *regs;
	int ret;

	edu->regs = NULL;
	if (edu->fd == -1)
		return -errno;
	if (ioctl(edu->fd, VFIO_DEVICE_GET_REGION_INFO, &region) ||
	    ioctl(edu->fd, VFIO_DEVICE_GET_REGION_INFO, &config))
		goto fail;
	regs = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, edu->fd,
		    region.offset);
	if (regs == MAP_FAILED)
		goto fail;
	edu->regs = regs;
	if (pwrite(edu->fd, &command, sizeof(command),
		   config.offset + PCI_COMMAND) == sizeof(command))
		return 0;
	munmap(edu->regs, PAGE);
fail:
	ret = -errno;
	close(edu->fd);
	edu->fd = -1;
	edu->regs = NULL;
	return ret;
}

/* 0 or -errno */
static int edu_open(struct edu *edu, const char *name, int iommufd)
{
	struct vfio_device_bind_iommufd bind = {
		.argsz = sizeof(bind),
		.iommufd = iommufd,
	};
	int ret;

	edu->regs = NULL;
	edu->fd = edu_cdev(name);
	if (edu->fd == -1)
		return -errno;
	if (ioctl(edu->fd, VFIO_DEVICE_BIND_IOMMUFD, &bind)) {
		ret = -errno;
		close(edu->fd);
		edu->fd = -1;
		return ret;
	}
	edu->dev_id = bind.out_devid;
	return edu_init(edu);
}

static void edu_close(struct edu *edu)
{
	if (edu->regs)
		munmap(edu->regs, PAGE);
	if (edu->fd != -1)
		close(edu->fd);
	edu->regs = NULL;
	edu->fd = -1;
}

static int edu_attach(struct edu *edu, __u32 pt_id)
{
	struct vfio_device_attach_iommufd_pt attach = {
		.argsz = sizeof(attach),
		.pt_id = pt_id,
	};

	return ioctl(edu->fd, VFIO_DEVICE_ATTACH_IOMMUFD_PT, &attach) ? -errno :
									0;
}

static void edu_write(struct edu *edu, unsigned int reg, uint64_t value)
{
	__atomic_store_n((uint64_t *)(edu->regs + reg), value,
			 __ATOMIC_RELAXED);
}

static int edu_busy(struct edu *edu)
{
	return __atomic_load_n((uint64_t *)(edu->regs + EDU_DMA_CMD),
			       __ATOMIC_RELAXED) & EDU_DMA_RUN;
}

/* The device does not tell whether it arrived, only that it is done */
static int edu_dma(struct edu *edu, uint64_t src, uint64_t dst, size_t len,
		   uint64_t flags)
{
	int tries;

	edu_write(edu, EDU_DMA_SRC, src);
	edu_write(edu, EDU_DMA_DST, dst);
	edu_write(edu, EDU_DMA_COUNT, len);
	__sync_synchronize();
	edu_write(edu, EDU_DMA_CMD, EDU_DMA_RUN | flags);
	for (tries = 0; tries != 2000 && edu_busy(edu); tries++)
		sleep_us(5000);
	__sync_synchronize();
	return edu_busy(edu) ? -1 : 0;
}

static int edu_read(struct edu *edu, uint64_t iova)
{
	return edu_dma(edu, iova, EDU_BUFFER, DMA_SIZE, 0);
}

static int edu_write_to(struct edu *edu, uint64_t iova)
{
	return edu_dma(edu, EDU_BUFFER, iova, DMA_SIZE, EDU_DMA_TO_MEMORY);
}

static int ioas_alloc(int iommufd, __u32 *ioas_id)
{
	struct iommu_ioas_alloc cmd = { .size = sizeof(cmd) };

	if (ioctl(iommufd, IOMMU_IOAS_ALLOC, &cmd))
		return -errno;
	*ioas_id = cmd.out_ioas_id;
	return 0;
}

static int ioas_map(int iommufd, __u32 ioas_id, void *mem, uint64_t iova)
{
	struct iommu_ioas_map cmd = {
		.size = sizeof(cmd),
		.flags = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE |
			 IOMMU_IOAS_MAP_WRITEABLE,
		.ioas_id = ioas_id,
		.user_va = (uintptr_t)mem,
		.length = PAGE,
		.iova = iova,
	};

	return ioctl(iommufd, IOMMU_IOAS_MAP, &cmd) ? -errno : 0;
}

/* Where a page of the program is, which only root is told; 0 if it is not */
static uint64_t phys_of(void *mem)
{
	uint64_t entry = 0;
	int fd;

	fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	if (fd == -1)
		return 0;
	if (pread(fd, &entry, 8, (uintptr_t)mem / PAGE * 8) != 8)
		entry = 0;
	close(fd);
	return (entry & ((1ULL << 55) - 1)) * PAGE;
}

static int all_are(const void *mem, int byte)
{
	const uint8_t *p = mem;
	int i;

	for (i = 0; i != DMA_SIZE && p[i] == byte; i++)
		;
	return i == DMA_SIZE;
}

/* Bytes of a virtio-rng, or how it went: it is killed if it takes too long */
static ssize_t rng_read(void)
{
	uint8_t bytes[16];
	int fd, status;
	ssize_t ret;
	pid_t pid;

	pid = fork();
	if (!pid) {
		fd = open("/dev/hwrng", O_RDONLY | O_CLOEXEC);
		alarm(5);
		ret = fd == -1 ? -1 : read(fd, bytes, sizeof(bytes));
		_exit(ret < 0 ? 200 : ret);
	}
	if (pid == -1 || waitpid(pid, &status, 0) != pid)
		return -1;
	return WIFEXITED(status) ? WEXITSTATUS(status) : 0;
}

/* A driver that maps and unmaps through the DMA API as fast as it can */
static void *benchmark_thread(void *arg)
{
	struct map_benchmark bench = {
		.threads = 2,
		.seconds = *(int *)arg,
		.node = -1,
		.dma_bits = 32,
		.granule = 1,
	};
	long ret = -1;
	int fd;

	fd = open("/sys/kernel/debug/dma_map_benchmark", O_RDWR | O_CLOEXEC);
	if (fd != -1) {
		ret = ioctl(fd, DMA_MAP_BENCHMARK, &bench) ? errno : 0;
		close(fd);
	}
	return (void *)ret;
}

FIXTURE(edu)
{
	int iommufd;
	__u32 ioas_id;
	struct edu edu;
	/* Two pages of the program, both pinned */
	uint8_t *mem;
};

FIXTURE_SETUP(edu)
{
	self->edu.fd = -1;
	self->iommufd = -1;
	iommu_find();
	if (!exists(PCI_DEVICES, EDU) || !exists(PCI_DEVICES, EDU_SHARED))
		SKIP(return, "there are no edu devices");
	ASSERT_EQ(0, everything_back());

	self->iommufd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	ASSERT_NE(-1, self->iommufd);
	ASSERT_EQ(0, ioas_alloc(self->iommufd, &self->ioas_id));
	self->mem = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	ASSERT_NE(MAP_FAILED, (void *)self->mem);
	ASSERT_EQ(0, edu_open(&self->edu, EDU, self->iommufd));
	ASSERT_EQ(0, edu_attach(&self->edu, self->ioas_id));
}

FIXTURE_TEARDOWN(edu)
{
	edu_close(&self->edu);
	if (self->iommufd != -1)
		close(self->iommufd);
	EXPECT_EQ(0, everything_back());
}

/* The rig itself: DMA is translated, both that of a program and that of a driver */
TEST_F_TIMEOUT(edu, translates, 300)
{
	ASSERT_EQ(0, ioas_map(self->iommufd, self->ioas_id, self->mem,
			      0x10000));
	memset(self->mem, 1, PAGE);
	ASSERT_EQ(0, edu_read(&self->edu, 0x10000));
	memset(self->mem, 2, PAGE);
	ASSERT_EQ(0, edu_write_to(&self->edu, 0x10000));
	EXPECT_TRUE(all_are(self->mem, 1));
	EXPECT_LT(0, rng_read());
	EXPECT_TRUE(exists(PCI_DEVICES, RNG "/iommu_group"));
}

/*
 * One page is mapped where another one is in physical memory. So DMA to there tells
 * who translates: the one page is written, or the other one, or none.
 */
TEST_F_TIMEOUT(edu, dma_goes_nowhere, 300)
{
	uint8_t *mapped = self->mem, *behind = self->mem + PAGE;
	uint64_t addr;
	int i;

	if (!iommu_name[0])
		SKIP(return, "this is no virtio-iommu");
	ASSERT_EQ(0, ioas_map(self->iommufd, self->ioas_id, behind, 0x10000));
	addr = phys_of(behind);
	ASSERT_NE(0, addr);
	ASSERT_EQ(0, ioas_map(self->iommufd, self->ioas_id, mapped, addr));

	memset(mapped, 1, PAGE);
	memset(behind, 2, PAGE);
	ASSERT_EQ(0, edu_read(&self->edu, addr));
	memset(mapped, 3, PAGE);
	ASSERT_EQ(0, edu_write_to(&self->edu, addr));
	ASSERT_TRUE(all_are(mapped, 1));
	ASSERT_TRUE(all_are(behind, 2));

	/* The device has ones. They must not arrive, nor must it get twos. */
	memset(mapped, 3, PAGE);
	ASSERT_EQ(0, iommu_unbind());
	for (i = 0; i != 2; i++) {
		ASSERT_EQ(0, edu_write_to(&self->edu, addr));
		EXPECT_TRUE(all_are(mapped, 3));
		EXPECT_TRUE(all_are(behind, 2));
	}
	ASSERT_EQ(0, edu_read(&self->edu, addr));

	/* Another one has the IOMMU after that. What the device has read shows now. */
	ASSERT_EQ(0, iommu_bind());
	ASSERT_EQ(0, edu_write_to(&self->edu, addr));
	EXPECT_TRUE(all_are(mapped, 3));
	EXPECT_TRUE(all_are(behind, 2));
	edu_close(&self->edu);
	ASSERT_EQ(0, device_bind(EDU, "vfio-pci"));
	ASSERT_EQ(0, edu_open(&self->edu, EDU, self->iommufd));
	ASSERT_EQ(0, edu_attach(&self->edu, self->ioas_id));
	ASSERT_EQ(0, edu_write_to(&self->edu, addr));
	EXPECT_FALSE(all_are(mapped, 2));
	/* It does arrive here, or nothing of the above says anything */
	EXPECT_FALSE(all_are(mapped, 3));
	EXPECT_TRUE(all_are(behind, 2));
}

/* A virtio-rng is read, and somebody wants more when the IOMMU is gone */
TEST_F_TIMEOUT(edu, dma_api_idle, 300)
{
	if (!iommu_name[0])
		SKIP(return, "this is no virtio-iommu");
	ASSERT_LT(0, rng_read());
	ASSERT_EQ(0, iommu_unbind());
	/* Half of the buffer was left */
	rng_read();
	rng_read();

	/* The IOMMU is back, but not for the driver that has been there */
	ASSERT_EQ(0, iommu_bind());
	rng_read();
	ASSERT_EQ(0, device_bind(RNG, "virtio-pci"));
	ASSERT_EQ(0, device_bind(RNG_SHARED, "virtio-pci"));
	EXPECT_LT(0, rng_read());
}

/* In the middle of calls of the DMA API */
TEST_F_TIMEOUT(edu, dma_api_busy, 600)
{
	int i, seconds = 5;
	pthread_t thread;
	void *ret;

	if (!iommu_name[0])
		SKIP(return, "this is no virtio-iommu");
	for (i = 0; i != 5; i++) {
		edu_close(&self->edu);
		ASSERT_EQ(0, device_bind(EDU, "dma_map_benchmark"));
		ASSERT_EQ(0, pthread_create(&thread, NULL, benchmark_thread,
					    &seconds));
		sleep_us(1000000 + i * 1234);
		ASSERT_EQ(0, iommu_unbind());
		ASSERT_EQ(0, pthread_join(thread, &ret));
		/* What it says when a map failed */
		EXPECT_EQ(ENOMEM, (long)ret);
		ASSERT_EQ(0, iommu_bind());

		/* And it works again when it is bound again, not before */
		seconds = 1;
		ASSERT_EQ(0, pthread_create(&thread, NULL, benchmark_thread,
					    &seconds));
		ASSERT_EQ(0, pthread_join(thread, &ret));
		EXPECT_EQ(ENOMEM, (long)ret);
		ASSERT_EQ(0, device_bind(EDU, "dma_map_benchmark"));
		ASSERT_EQ(0, pthread_create(&thread, NULL, benchmark_thread,
					    &seconds));
		ASSERT_EQ(0, pthread_join(thread, &ret));
		EXPECT_EQ(0, (long)ret);
		seconds = 5;
	}
}

/* Two devices in a group: a driver has the one, or a program the other, not both */
TEST_F_TIMEOUT(edu, group, 300)
{
	struct edu edu;

	if (!iommu_name[0])
		SKIP(return, "this is no virtio-iommu");
	ASSERT_GT(0, edu_open(&edu, EDU_SHARED, self->iommufd));
	ASSERT_EQ(0, iommu_unbind());
	EXPECT_GT(0, edu_open(&edu, EDU_SHARED, self->iommufd));
	ASSERT_EQ(0, iommu_bind());

	/* The driver of the other one can map nothing, and gets nothing now */
	ASSERT_EQ(0, device_bind(EDU_SHARED, "vfio-pci"));
	ASSERT_EQ(0, edu_open(&edu, EDU_SHARED, self->iommufd));
	EXPECT_EQ(-1, device_bind(RNG_SHARED, "virtio-pci"));
	edu_close(&edu);
	ASSERT_EQ(0, device_bind(RNG_SHARED, "virtio-pci"));
	ASSERT_GT(0, edu_open(&edu, EDU_SHARED, self->iommufd));
	write_file(PCI_DRIVERS, "virtio-pci/unbind", RNG_SHARED);
	ASSERT_EQ(0, edu_open(&edu, EDU_SHARED, self->iommufd));
	ASSERT_EQ(0, iommu_unbind());
	EXPECT_EQ(-1, device_bind(RNG_SHARED, "virtio-pci"));
	edu_close(&edu);
}

/* A device whose DMA is not translated */
TEST_F_TIMEOUT(edu, identity, 300)
{
	int ret;

	if (!iommu_name[0])
		SKIP(return, "this is no virtio-iommu");
	write_file(PCI_DRIVERS, "virtio-pci/unbind", RNG_SHARED);
	write_file(PCI_DRIVERS, "virtio-pci/unbind", RNG);
	ret = write_file(PCI_DEVICES RNG, "/iommu_group/type", "identity");
	if (ret)
		SKIP(return, "the IOMMU has no identity domains");
	ASSERT_EQ(0, device_bind(RNG, "virtio-pci"));
	ASSERT_LT(0, rng_read());
	ASSERT_EQ(0, iommu_unbind());
	rng_read();
	ASSERT_EQ(0, iommu_bind());
	rng_read();
	ASSERT_EQ(0, device_bind(RNG, "virtio-pci"));
	EXPECT_LT(0, rng_read());
}

static void *replug_thread(void *arg)
{
	int i, *stop = arg;

	for (i = 0; !__atomic_load_n(stop, __ATOMIC_RELAXED); i++) {
		write_file(PCI_DEVICES, i % 2 ? RNG "/remove" :
						RNG_SHARED "/remove", "1");
		sleep_us(random() % 20000);
		write_file("/sys/bus/pci/", "rescan", "1");
	}
	return NULL;
}

/* Devices come and go meanwhile */
TEST_F_TIMEOUT(edu, hotplug, 900)
{
	int i, stop = 0;
	pthread_t thread;

	if (!iommu_name[0])
		SKIP(return, "this is no virtio-iommu");
	ASSERT_EQ(0, pthread_create(&thread, NULL, replug_thread, &stop));
	for (i = 0; i != 20; i++) {
		sleep_us(random() % 200000);
		EXPECT_EQ(0, iommu_unbind());
		sleep_us(random() % 100000);
		EXPECT_EQ(0, iommu_bind());
	}
	__atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
	ASSERT_EQ(0, pthread_join(thread, NULL));
}

static void *dma_thread(void *arg)
{
	struct edu *edu = arg;

	/* Until it is done, wherever it arrives */
	while (edu->regs)
		edu_write_to(edu, 0x10000);
	return NULL;
}

static void *rng_thread(void *arg)
{
	int *fd = arg;
	char byte[64];

	/* Until it is cancelled */
	while (1)
		if (read(*fd, byte, sizeof(byte)) < 0)
			sleep_us(1000);
	return NULL;
}

static void no_more(int signal)
{
}

/*
 * All at once, with random timing: IOMMU_PCI_ROUNDS in the environment is how
 * often, IOMMU_PCI_SEED how.
 */
TEST_F_TIMEOUT(edu, traffic, 36000)
{
	const char *text = getenv("IOMMU_PCI_ROUNDS");
	int i, fd, rounds = text ? atoi(text) : 10, seconds = 300;
	struct sigaction action = { .sa_handler = no_more };
	pthread_t dma, rng, bench;
	unsigned int seed;

	if (!iommu_name[0])
		SKIP(return, "this is no virtio-iommu");
	text = getenv("IOMMU_PCI_SEED");
	seed = text ? strtoul(text, NULL, 0) : time(NULL);
	TH_LOG("seed %u, %d rounds", seed, rounds);
	srandom(seed);
	sigaction(SIGUSR1, &action, NULL);
	fd = open("/dev/hwrng", O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	ASSERT_NE(-1, fd);

	memset(self->mem, 1, PAGE);
	for (i = 0; i != rounds; i++) {
		ASSERT_EQ(0, device_bind(EDU_SHARED, "dma_map_benchmark"));
		ASSERT_EQ(0, pthread_create(&bench, NULL, benchmark_thread,
					    &seconds));
		ASSERT_EQ(0, pthread_create(&rng, NULL, rng_thread, &fd));
		ASSERT_EQ(0, ioas_map(self->iommufd, self->ioas_id, self->mem,
				      0x10000));
		ASSERT_EQ(0, pthread_create(&dma, NULL, dma_thread,
					    &self->edu));

		sleep_us(random() % 100000);
		ASSERT_EQ(0, iommu_unbind());
		/* The last one may have arrived. The next ones do not. */
		sleep_us(200000);
		memset(self->mem, 2, PAGE);
		sleep_us(random() % 300000);
		EXPECT_TRUE(all_are(self->mem, 2));

		ASSERT_EQ(0, pthread_cancel(dma));
		ASSERT_EQ(0, pthread_cancel(rng));
		ASSERT_EQ(0, pthread_join(dma, NULL));
		ASSERT_EQ(0, pthread_join(rng, NULL));
		/* Again, if it did not sleep yet */
		while (pthread_tryjoin_np(bench, NULL)) {
			pthread_kill(bench, SIGUSR1);
			sleep_us(10000);
		}
		EXPECT_TRUE(all_are(self->mem, 2));

		edu_close(&self->edu);
		ASSERT_EQ(0, iommu_bind());
		ASSERT_EQ(0, everything_back());
		ASSERT_EQ(0, ioas_alloc(self->iommufd, &self->ioas_id));
		ASSERT_EQ(0, edu_open(&self->edu, EDU, self->iommufd));
		ASSERT_EQ(0, edu_attach(&self->edu, self->ioas_id));
	}
	close(fd);
}

/* The same by way of VFIO's own container, which is not iommufd */

static int group_open(const char *name)
{
	char path[300], target[300];
	ssize_t len;

	snprintf(path, sizeof(path), PCI_DEVICES "%s/iommu_group", name);
	len = readlink(path, target, sizeof(target) - 1);
	if (len < 0)
		return -1;
	target[len] = 0;
	snprintf(path, sizeof(path), "/dev/vfio/%.100s",
		 strrchr(target, '/') + 1);
	return open(path, O_RDWR | O_CLOEXEC);
}

static int group_set(int group, int container)
{
	return ioctl(group, VFIO_GROUP_SET_CONTAINER, &container) ? -errno : 0;
}

static int group_edu(int group, const char *name, struct edu *edu)
{
	edu->fd = ioctl(group, VFIO_GROUP_GET_DEVICE_FD, name);
	return edu_init(edu);
}

static int group_viable(int group)
{
	struct vfio_group_status status = { .argsz = sizeof(status) };

	if (ioctl(group, VFIO_GROUP_GET_STATUS, &status))
		return -errno;
	return !!(status.flags & VFIO_GROUP_FLAGS_VIABLE);
}

static int container_info(int container)
{
	struct vfio_iommu_type1_info info = { .argsz = sizeof(info) };

	return ioctl(container, VFIO_IOMMU_GET_INFO, &info) ? -errno : 0;
}

static int container_map(int container, void *mem, uint64_t iova, size_t size)
{
	struct vfio_iommu_type1_dma_map map = {
		.argsz = sizeof(map),
		.flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
		.vaddr = (uintptr_t)mem,
		.iova = iova,
		.size = size,
	};

	return ioctl(container, VFIO_IOMMU_MAP_DMA, &map) ? -errno : 0;
}

/* How much was unmapped, or -errno */
static ssize_t container_unmap(int container, uint64_t iova, size_t size)
{
	struct vfio_iommu_type1_dma_unmap unmap = {
		.argsz = sizeof(unmap),
		.iova = iova,
		.size = size,
	};

	return ioctl(container, VFIO_IOMMU_UNMAP_DMA, &unmap) ? -errno :
								(ssize_t)unmap.size;
}

static int container_track(int container, int flag)
{
	struct vfio_iommu_type1_dirty_bitmap dirty = {
		.argsz = sizeof(dirty),
		.flags = flag,
	};

	return ioctl(container, VFIO_IOMMU_DIRTY_PAGES, &dirty) ? -errno : 0;
}

/* The bits of up to 64 pages */
static int container_bitmap(int container, uint64_t iova, size_t size,
			    uint64_t *bits)
{
	struct {
		struct vfio_iommu_type1_dirty_bitmap head;
		struct vfio_iommu_type1_dirty_bitmap_get get;
	} dirty = {
		.head = {
			.argsz = sizeof(dirty),
			.flags = VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP,
		},
		.get = {
			.iova = iova,
			.size = size,
			.bitmap = {
				.pgsize = PAGE,
				.size = sizeof(*bits),
				.data = (void *)bits,
			},
		},
	};

	return ioctl(container, VFIO_IOMMU_DIRTY_PAGES, &dirty) ? -errno : 0;
}

static long number_after(const char *file, const char *name)
{
	size_t len = strlen(name);
	long value = -1;
	char line[200];
	FILE *f;

	f = fopen(file, "re");
	if (!f)
		return -1;
	while (value == -1 && fgets(line, sizeof(line), f))
		if (!strncmp(line, name, len))
			value = atol(line + len);
	fclose(f);
	return value;
}

/* Locked memory of the program, in KiB */
static long locked(void)
{
	return number_after("/proc/self/status", "VmLck:");
}

/* Pages of anybody */
static long pinned(void)
{
	/* Each CPU counts by itself, and is in no hurry to tell */
	write_file("/proc/sys/vm/", "stat_refresh", "1");
	return number_after("/proc/vmstat", "nr_foll_pin_acquired") -
	       number_after("/proc/vmstat", "nr_foll_pin_released");
}

FIXTURE(container)
{
	int fd;
	int group;
	struct edu edu;
	uint8_t *mem;
};

/* 0 or -errno: a container with the one device in it */
static int container_open(int *fd, int *group, struct edu *edu)
{
	int ret;

	*fd = open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC);
	*group = group_open(EDU);
	if (*fd == -1 || *group == -1)
		return -errno;
	ret = group_set(*group, *fd);
	if (ret)
		return ret;
	if (ioctl(*fd, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU))
		return -errno;
	return group_edu(*group, EDU, edu);
}

static void fd_close(int *fd)
{
	if (*fd != -1)
		close(*fd);
	*fd = -1;
}

/* "d" is the device, "g" the group, "c" the container */
static void container_close(int *fd, int *group, struct edu *edu,
			    const char *order)
{
	for (; *order; order++) {
		if (*order == 'd')
			edu_close(edu);
		else
			fd_close(*order == 'g' ? group : fd);
	}
}

/* Whether the device's DMA to there arrives in the memory, and comes from it */
static int container_works(struct edu *edu, uint8_t *mem, uint64_t iova)
{
	memset(mem, 1, PAGE);
	if (edu_read(edu, iova))
		return -1;
	memset(mem, 2, PAGE);
	if (edu_write_to(edu, iova))
		return -1;
	return all_are(mem, 1);
}

FIXTURE_SETUP(container)
{
	self->edu.fd = -1;
	self->edu.regs = NULL;
	self->fd = -1;
	self->group = -1;
	iommu_find();
	if (!exists(PCI_DEVICES, EDU) || !exists(PCI_DEVICES, EDU_SHARED))
		SKIP(return, "there are no edu devices");
	ASSERT_EQ(0, everything_back());
	self->mem = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	ASSERT_NE(MAP_FAILED, (void *)self->mem);
	ASSERT_EQ(0, container_open(&self->fd, &self->group, &self->edu));
}

FIXTURE_TEARDOWN(container)
{
	container_close(&self->fd, &self->group, &self->edu, "dgc");
	EXPECT_EQ(0, everything_back());
}

TEST_F_TIMEOUT(container, translates, 300)
{
	ASSERT_EQ(0, container_info(self->fd));
	ASSERT_EQ(0, container_map(self->fd, self->mem, 0x10000, 2 * PAGE));
	EXPECT_EQ(8, locked());
	EXPECT_EQ(1, container_works(&self->edu, self->mem, 0x10000));
	EXPECT_EQ(1, container_works(&self->edu, self->mem + PAGE, 0x11000));
	EXPECT_EQ(2 * PAGE, container_unmap(self->fd, 0x10000, 2 * PAGE));
	EXPECT_EQ(0, locked());
}

/* What is left of a container, and that it can be closed in any order */
TEST_F_TIMEOUT(container, lost, 900)
{
	static const char *const orders[] = { "dgc", "cgd", "gdc", "dcg" };
	int i, tries, fd;
	long before;

	if (!iommu_name[0])
		SKIP(return, "this is no virtio-iommu");
	before = pinned();
	for (i = 0; i != 4; i++) {
		ASSERT_EQ(0, container_map(self->fd, self->mem, 0x10000,
					   2 * PAGE));
		ASSERT_EQ(1, container_works(&self->edu, self->mem, 0x10000));
		ASSERT_EQ(8, locked());
		ASSERT_EQ(1, group_viable(self->group));

		ASSERT_EQ(0, iommu_unbind());
		EXPECT_EQ(-ENODEV, container_info(self->fd));
		EXPECT_EQ(0, group_viable(self->group));
		EXPECT_EQ(before, pinned());
		/* That is done soon afterwards */
		for (tries = 0; tries != 100 && locked(); tries++)
			sleep_us(50000);
		EXPECT_EQ(0, locked());
		fd = ioctl(self->group, VFIO_GROUP_GET_DEVICE_FD, EDU);
		EXPECT_EQ(-1, fd);
		EXPECT_EQ(ENODEV, errno);

		/* The device is there, and reaches nothing */
		memset(self->mem, 2, PAGE);
		EXPECT_EQ(0, edu_write_to(&self->edu, 0x10000));
		EXPECT_TRUE(all_are(self->mem, 2));

		/* A VMM goes on, with its mappings as well */
		EXPECT_EQ(0, container_map(self->fd, self->mem + 2 * PAGE,
					   0x20000, PAGE));
		EXPECT_EQ(-EEXIST, container_map(self->fd, self->mem, 0x10000,
						 PAGE));
		EXPECT_EQ(before, pinned());
		EXPECT_EQ(2 * PAGE,
			  container_unmap(self->fd, 0x10000, 2 * PAGE));
		EXPECT_EQ(0, container_unmap(self->fd, 0x10000, 2 * PAGE));

		/* All of it can be closed with and without the IOMMU */
		if (i % 2)
			ASSERT_EQ(0, iommu_bind());
		container_close(&self->fd, &self->group, &self->edu, orders[i]);
		EXPECT_EQ(0, locked());
		ASSERT_EQ(0, everything_back());
		ASSERT_EQ(0, container_open(&self->fd, &self->group,
					    &self->edu));
	}
}

/* Only the group is open, with and without a container that has an IOMMU */
TEST_F_TIMEOUT(container, group_stays, 300)
{
	if (!iommu_name[0])
		SKIP(return, "this is no virtio-iommu");
	ASSERT_EQ(0, container_map(self->fd, self->mem, 0x10000, PAGE));
	edu_close(&self->edu);
	ASSERT_EQ(0, iommu_unbind());
	EXPECT_EQ(0, ioctl(self->group, VFIO_GROUP_UNSET_CONTAINER));
	EXPECT_EQ(0, locked());
	EXPECT_EQ(-EINVAL, container_unmap(self->fd, 0x10000, PAGE));
	EXPECT_EQ(-ENODEV, group_set(self->group, self->fd));

	/* It is another group that the device is in after that */
	ASSERT_EQ(0, iommu_bind());
	EXPECT_EQ(-ENODEV, group_set(self->group, self->fd));
	fd_close(&self->group);
	ASSERT_EQ(0, device_bind(EDU, "vfio-pci"));
	self->group = group_open(EDU);
	ASSERT_NE(-1, self->group);
	ASSERT_EQ(0, group_set(self->group, self->fd));

	/* Nothing is attached to the container's IOMMU, as it has none */
	ASSERT_EQ(0, iommu_unbind());
	EXPECT_EQ(-1, ioctl(self->fd, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU));
	EXPECT_EQ(ENODEV, errno);
	EXPECT_EQ(0, ioctl(self->group, VFIO_GROUP_UNSET_CONTAINER));
}

/* A container that has lost a device gets another one, or the one that came back */
TEST_F_TIMEOUT(container, comes_back, 300)
{
	struct edu other = { .fd = -1 };
	int group;

	if (!iommu_name[0])
		SKIP(return, "this is no virtio-iommu");
	write_file(PCI_DRIVERS, "virtio-pci/unbind", RNG_SHARED);
	group = group_open(EDU_SHARED);
	ASSERT_NE(-1, group);
	ASSERT_EQ(0, container_map(self->fd, self->mem, 0x10000, PAGE));
	ASSERT_EQ(0, group_set(group, self->fd));
	ASSERT_EQ(0, group_edu(group, EDU_SHARED, &other));
	EXPECT_EQ(1, container_works(&self->edu, self->mem, 0x10000));
	EXPECT_EQ(1, container_works(&other, self->mem, 0x10000));

	/* Both are lost, and the one is given back */
	ASSERT_EQ(0, iommu_unbind());
	EXPECT_EQ(-ENODEV, container_info(self->fd));
	ASSERT_EQ(0, container_map(self->fd, self->mem + PAGE, 0x20000, PAGE));
	edu_close(&other);
	fd_close(&group);
	EXPECT_EQ(-ENODEV, container_info(self->fd));

	ASSERT_EQ(0, iommu_bind());
	ASSERT_EQ(0, device_bind(EDU_SHARED, "vfio-pci"));
	group = group_open(EDU_SHARED);
	ASSERT_NE(-1, group);
	ASSERT_EQ(0, group_set(group, self->fd));
	ASSERT_EQ(0, group_edu(group, EDU_SHARED, &other));
	EXPECT_EQ(0, container_info(self->fd));
	EXPECT_EQ(8, locked());
	EXPECT_EQ(1, container_works(&other, self->mem, 0x10000));
	EXPECT_EQ(1, container_works(&other, self->mem + PAGE, 0x20000));
	memset(self->mem, 2, PAGE);
	EXPECT_EQ(0, edu_write_to(&self->edu, 0x10000));
	EXPECT_TRUE(all_are(self->mem, 2));

	/* The lost one goes, and what the other one has stays */
	edu_close(&self->edu);
	fd_close(&self->group);
	EXPECT_EQ(1, container_works(&other, self->mem, 0x10000));
	ASSERT_EQ(0, iommu_unbind());
	edu_close(&other);
	fd_close(&group);
	EXPECT_EQ(0, locked());
}

/* What the device can have written is told once after it is gone */
TEST_F_TIMEOUT(container, dirty, 300)
{
	uint64_t bits = 0;
	int tries;

	if (!iommu_name[0])
		SKIP(return, "this is no virtio-iommu");
	ASSERT_EQ(0, container_map(self->fd, self->mem, 0x10000, 4 * PAGE));
	ASSERT_EQ(0, container_track(self->fd,
				     VFIO_IOMMU_DIRTY_PAGES_FLAG_START));
	ASSERT_EQ(0, container_bitmap(self->fd, 0x10000, 4 * PAGE, &bits));
	EXPECT_EQ(0xf, bits);
	ASSERT_EQ(0, iommu_unbind());
	for (tries = 0; tries != 100 && locked(); tries++)
		sleep_us(50000);
	ASSERT_EQ(0, container_bitmap(self->fd, 0x10000, 4 * PAGE, &bits));
	EXPECT_EQ(0xf, bits);
	ASSERT_EQ(0, container_bitmap(self->fd, 0x10000, 4 * PAGE, &bits));
	EXPECT_EQ(0, bits);
	EXPECT_EQ(0, container_track(self->fd,
				     VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP));
	EXPECT_EQ(-EINVAL,
		  container_bitmap(self->fd, 0x10000, 4 * PAGE, &bits));
}

struct stall {
	int container;
	int group;
	uint64_t *bits;
	int ret;
};

static void *dirty_thread(void *arg)
{
	struct stall *stall = arg;

	stall->ret = container_bitmap(stall->container, 0x10000, PAGE,
				      stall->bits);
	return NULL;
}

static void *set_thread(void *arg)
{
	struct stall *stall = arg;

	stall->ret = group_set(stall->group, stall->container);
	return NULL;
}

static void *unbind_thread(void *arg)
{
	*(int *)arg = iommu_unbind();
	return NULL;
}

/*
 * The program does not serve a page fault of an ioctl, and another ioctl waits for
 * that one. The IOMMU goes away in the meantime.
 */
TEST_F_TIMEOUT(container, waits_for_nobody, 300)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	struct stall dirty = { .container = self->fd };
	struct stall set = { .container = self->fd };
	pthread_t dirty_tid, set_tid, unbind_tid;
	struct timespec deadline;
	struct uffd_msg msg;
	int uffd, late, ret = -1;

	if (!iommu_name[0])
		SKIP(return, "this is no virtio-iommu");
	uffd = syscall(__NR_userfaultfd, O_CLOEXEC);
	if (uffd == -1 || ioctl(uffd, UFFDIO_API, &api))
		SKIP(return, "there is no userfaultfd");
	dirty.bits = mmap(NULL, PAGE, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, (void *)dirty.bits);
	reg.range.start = (uintptr_t)dirty.bits;
	reg.range.len = PAGE;
	ASSERT_EQ(0, ioctl(uffd, UFFDIO_REGISTER, &reg));
	write_file(PCI_DRIVERS, "virtio-pci/unbind", RNG_SHARED);
	set.group = group_open(EDU_SHARED);
	ASSERT_NE(-1, set.group);
	ASSERT_EQ(0, container_map(self->fd, self->mem, 0x10000, PAGE));
	ASSERT_EQ(0, container_track(self->fd,
				     VFIO_IOMMU_DIRTY_PAGES_FLAG_START));

	ASSERT_EQ(0, pthread_create(&dirty_tid, NULL, dirty_thread, &dirty));
	/* There is the fault */
	ASSERT_EQ(sizeof(msg), read(uffd, &msg, sizeof(msg)));
	ASSERT_EQ(0, pthread_create(&set_tid, NULL, set_thread, &set));
	sleep_us(500000);

	ASSERT_EQ(0, pthread_create(&unbind_tid, NULL, unbind_thread, &ret));
	clock_gettime(CLOCK_REALTIME, &deadline);
	deadline.tv_sec += 20;
	late = pthread_timedjoin_np(unbind_tid, NULL, &deadline);
	EXPECT_EQ(0, late);

	/* Nobody listens any more, so it is an ordinary page */
	close(uffd);
	if (late)
		ASSERT_EQ(0, pthread_join(unbind_tid, NULL));
	EXPECT_EQ(0, ret);
	ASSERT_EQ(0, pthread_join(dirty_tid, NULL));
	ASSERT_EQ(0, pthread_join(set_tid, NULL));
	EXPECT_EQ(0, dirty.ret);
	EXPECT_EQ(-ENODEV, set.ret);
	close(set.group);
}

struct load {
	int container;
	uint8_t *mem;
	int stop;
	int failed;
};

static void *map_thread(void *arg)
{
	struct load *load = arg;
	ssize_t size = 64 * PAGE;

	while (!__atomic_load_n(&load->stop, __ATOMIC_RELAXED))
		if (container_map(load->container, load->mem, 0x100000, size) ||
		    container_unmap(load->container, 0x100000, size) != size)
			load->failed++;
	return NULL;
}

/* While it maps and unmaps, with random timing */
TEST_F_TIMEOUT(container, busy, 900)
{
	struct load load = {};
	pthread_t tid;
	long before;
	int i;

	if (!iommu_name[0])
		SKIP(return, "this is no virtio-iommu");
	load.mem = mmap(NULL, 64 * PAGE, PROT_READ | PROT_WRITE,
			MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	ASSERT_NE(MAP_FAILED, (void *)load.mem);
	before = pinned();
	for (i = 0; i != 10; i++) {
		load.container = self->fd;
		load.stop = 0;
		ASSERT_EQ(0, pthread_create(&tid, NULL, map_thread, &load));
		sleep_us(random() % 100000);
		ASSERT_EQ(0, iommu_unbind());
		sleep_us(random() % 20000);
		__atomic_store_n(&load.stop, 1, __ATOMIC_RELAXED);
		ASSERT_EQ(0, pthread_join(tid, NULL));
		EXPECT_EQ(0, load.failed);
		container_close(&self->fd, &self->group, &self->edu, "gcd");
		EXPECT_EQ(before, pinned());
		EXPECT_EQ(0, locked());
		ASSERT_EQ(0, everything_back());
		ASSERT_EQ(0, container_open(&self->fd, &self->group,
					    &self->edu));
	}
}

/*
 * vhost-vdpa: a program drives a virtio-rng, which does DMA to what the program has
 * mapped.
 */
#define VDPA "vdpa-rng"
#define QUEUE_SIZE 4

/* What the device reads, in a page of the program */
struct ring {
	struct vring_desc desc[QUEUE_SIZE];
	__u16 avail_flags;
	__u16 avail_idx;
	__u16 avail[QUEUE_SIZE + 1];
	__u16 gap;
	__u16 used_flags;
	__u16 used_idx;
	struct vring_used_elem used[QUEUE_SIZE];
};

/* A message of generic netlink, with three strings at most. 0 or -errno. */
static int netlink(int fd, __u16 family, __u8 cmd, const __u16 *types,
		   const char *const *strings, char *answer, size_t size)
{
	struct sockaddr_nl kernel = { .nl_family = AF_NETLINK };
	struct {
		struct nlmsghdr nl;
		struct genlmsghdr genl;
		char attrs[256];
	} msg = {
		.nl.nlmsg_type = family,
		.nl.nlmsg_flags = NLM_F_REQUEST | (answer ? 0 : NLM_F_ACK),
		.genl.cmd = cmd,
		.genl.version = 1,
	};
	char ack[512];
	struct nlmsghdr *nl = (void *)(answer ?: ack);
	char *end = msg.attrs;
	ssize_t ret;
	int i;

	for (i = 0; i != 3 && strings[i]; i++) {
		struct nlattr *attr = (void *)end;

		attr->nla_type = types[i];
		attr->nla_len = NLA_HDRLEN + strlen(strings[i]) + 1;
		memcpy(end + NLA_HDRLEN, strings[i], strlen(strings[i]) + 1);
		end += NLA_ALIGN(attr->nla_len);
	}
	msg.nl.nlmsg_len = end - (char *)&msg;
	if (sendto(fd, &msg, msg.nl.nlmsg_len, 0, (void *)&kernel,
		   sizeof(kernel)) < 0)
		return -errno;
	ret = recv(fd, nl, answer ? size : sizeof(ack), 0);
	if (ret < 0)
		return -errno;
	if (nl->nlmsg_type == NLMSG_ERROR)
		return ((struct nlmsgerr *)NLMSG_DATA(nl))->error;
	return 0;
}

/* As "vdpa dev add name NAME mgmtdev pci/DEVICE" */
static int vdpa_add(const char *name, const char *device)
{
	static const __u16 family_types[] = { CTRL_ATTR_FAMILY_NAME };
	static const char *const family[3] = { VDPA_GENL_NAME };
	static const __u16 types[] = { VDPA_ATTR_DEV_NAME,
				       VDPA_ATTR_MGMTDEV_BUS_NAME,
				       VDPA_ATTR_MGMTDEV_DEV_NAME };
	const char *const strings[3] = { name, "pci", device };
	char answer[4096];
	struct nlmsghdr *nl = (void *)answer;
	struct nlattr *attr;
	char *end;
	int fd, ret;

	fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_GENERIC);
	if (fd == -1)
		return -errno;
	ret = netlink(fd, GENL_ID_CTRL, CTRL_CMD_GETFAMILY, family_types,
		      family, answer, sizeof(answer));
	if (ret)
		goto out;
	ret = -ENOENT;
	attr = (void *)((char *)NLMSG_DATA(nl) + GENL_HDRLEN);
	end = answer + nl->nlmsg_len;
	while ((char *)attr < end && attr->nla_type != CTRL_ATTR_FAMILY_ID)
		attr = (void *)((char *)attr + NLA_ALIGN(attr->nla_len));
	if ((char *)attr < end)
		ret = netlink(fd, *(__u16 *)((char *)attr + NLA_HDRLEN),
			      VDPA_CMD_DEV_NEW, types, strings, NULL, 0);
out:
	close(fd);
	return ret;
}

/* -errno, or -ENOENT if vhost-vdpa does not have the device */
static int vdpa_open(void)
{
	struct dirent *entry;
	char path[300];
	int fd = -ENOENT;
	DIR *dir;

	dir = opendir(PCI_DEVICES RNG "/" VDPA);
	if (!dir)
		return -errno;
	while ((entry = readdir(dir))) {
		if (strncmp(entry->d_name, "vhost-vdpa-", 11))
			continue;
		snprintf(path, sizeof(path), "/dev/%s", entry->d_name);
		fd = open(path, O_RDWR | O_CLOEXEC);
		if (fd == -1)
			fd = -errno;
	}
	closedir(dir);
	return fd;
}

static int vdpa_msg(int fd, __u8 type, void *mem, uint64_t iova, size_t size)
{
	struct vhost_msg_v2 msg = {
		.type = VHOST_IOTLB_MSG_V2,
		.iotlb = {
			.iova = iova,
			.size = size,
			.uaddr = (uintptr_t)mem,
			.perm = VHOST_ACCESS_RW,
			.type = type,
		},
	};

	/* EFAULT is the only error that there is for a message */
	return write(fd, &msg, sizeof(msg)) == sizeof(msg) ? 0 : -errno;
}

static int vdpa_map(int fd, void *mem, uint64_t iova, size_t size)
{
	return vdpa_msg(fd, VHOST_IOTLB_UPDATE, mem, iova, size);
}

static int vdpa_unmap(int fd, uint64_t iova, size_t size)
{
	return vdpa_msg(fd, VHOST_IOTLB_INVALIDATE, NULL, iova, size);
}

/* The open file is a program's that can map */
static int vdpa_own(int fd)
{
	uint64_t features;

	if (ioctl(fd, VHOST_SET_OWNER) ||
	    ioctl(fd, VHOST_GET_BACKEND_FEATURES, &features))
		return -errno;
	features &= 1ULL << VHOST_BACKEND_F_IOTLB_MSG_V2;
	return ioctl(fd, VHOST_SET_BACKEND_FEATURES, &features) ? -errno : 0;
}

/* Reset the device, and have it do what is in the ring, which is empty */
static int vdpa_start(int fd, struct ring *ring, uint64_t iova, int kick)
{
	struct vhost_vring_state num = { .num = QUEUE_SIZE };
	struct vhost_vring_state base = {}, enable = { .num = 1 };
	struct vhost_vring_addr addr = {
		.desc_user_addr = iova,
		.avail_user_addr = iova + offsetof(struct ring, avail_flags),
		.used_user_addr = iova + offsetof(struct ring, used_flags),
	};
	struct vhost_vring_file file = { .fd = kick };
	uint64_t features = 1ULL << VIRTIO_F_VERSION_1 |
			    1ULL << VIRTIO_F_ACCESS_PLATFORM;
	uint8_t status = 0;

	if (ioctl(fd, VHOST_VDPA_SET_STATUS, &status))
		return -errno;
	memset(ring, 0, sizeof(*ring));
	status = VIRTIO_CONFIG_S_ACKNOWLEDGE | VIRTIO_CONFIG_S_DRIVER;
	if (ioctl(fd, VHOST_VDPA_SET_STATUS, &status) ||
	    ioctl(fd, VHOST_SET_FEATURES, &features))
		return -errno;
	status |= VIRTIO_CONFIG_S_FEATURES_OK;
	if (ioctl(fd, VHOST_VDPA_SET_STATUS, &status) ||
	    ioctl(fd, VHOST_SET_VRING_NUM, &num) ||
	    ioctl(fd, VHOST_SET_VRING_BASE, &base) ||
	    ioctl(fd, VHOST_SET_VRING_ADDR, &addr) ||
	    ioctl(fd, VHOST_SET_VRING_KICK, &file) ||
	    ioctl(fd, VHOST_VDPA_SET_VRING_ENABLE, &enable))
		return -errno;
	status |= VIRTIO_CONFIG_S_DRIVER_OK;
	return ioctl(fd, VHOST_VDPA_SET_STATUS, &status) ? -errno : 0;
}

/* Random bytes, please. Whether the device said that they are there. */
static int vdpa_dma(struct ring *ring, int kick, uint64_t iova)
{
	uint64_t one = 1;
	int tries;
	__u16 idx = ring->avail_idx;

	ring->desc[0].addr = iova;
	ring->desc[0].len = DMA_SIZE;
	ring->desc[0].flags = VRING_DESC_F_WRITE;
	ring->avail[idx % QUEUE_SIZE] = 0;
	__sync_synchronize();
	__atomic_store_n(&ring->avail_idx, idx + 1, __ATOMIC_SEQ_CST);
	if (write(kick, &one, sizeof(one)) != sizeof(one))
		return -1;
	for (tries = 0; tries != 400; tries++) {
		sleep_us(5000);
		if (__atomic_load_n(&ring->used_idx, __ATOMIC_SEQ_CST) ==
		    (__u16)(idx + 1))
			return 1;
	}
	return 0;
}

FIXTURE(vdpa)
{
	int fd;
	int kick;
	/* Pages of the program, the first of them is the ring */
	uint8_t *mem;
	struct ring *ring;
	uint64_t ring_iova;
};

/* 0 or -errno: the device is the program's, by a file that can map */
static int vdpa_init(int *fd)
{
	*fd = vdpa_open();
	return *fd < 0 ? *fd : vdpa_own(*fd);
}

FIXTURE_SETUP(vdpa)
{
	int ret;

	self->fd = -1;
	self->kick = -1;
	iommu_find();
	if (!exists(PCI_DEVICES, RNG) || !exists(PCI_DRIVERS, "vp-vdpa"))
		SKIP(return, "there is no virtio-rng, or no vp_vdpa");
	ASSERT_EQ(0, everything_back());
	ASSERT_EQ(0, device_bind(RNG, "vp-vdpa"));
	ASSERT_EQ(0, vdpa_add(VDPA, RNG));
	self->mem = mmap(NULL, 64 * PAGE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	ASSERT_NE(MAP_FAILED, (void *)self->mem);
	self->ring = (void *)self->mem;
	/* So that the device finds it without an IOMMU, too, if nothing stops it */
	self->ring_iova = phys_of(self->ring);
	ASSERT_NE(0, self->ring_iova);
	self->kick = eventfd(0, EFD_CLOEXEC);
	ASSERT_NE(-1, self->kick);
	ret = vdpa_init(&self->fd);
	if (ret == -ENOENT)
		SKIP(return, "there is no vhost-vdpa");
	ASSERT_EQ(0, ret);
}

FIXTURE_TEARDOWN(vdpa)
{
	if (self->fd >= 0)
		close(self->fd);
	if (self->kick != -1)
		close(self->kick);
	EXPECT_EQ(0, everything_back());
}

/* The device writes to what is mapped at that address, and nowhere else */
static int vdpa_works(int fd, struct ring *ring, uint64_t ring_iova, int kick,
		      uint8_t *mapped, uint8_t *behind, uint64_t addr)
{
	if (vdpa_map(fd, ring, ring_iova, PAGE) ||
	    vdpa_map(fd, mapped, addr, PAGE) ||
	    vdpa_start(fd, ring, ring_iova, kick))
		return -errno;
	memset(mapped, 1, PAGE);
	memset(behind, 2, PAGE);
	return vdpa_dma(ring, kick, addr) == 1 && !all_are(mapped, 1) &&
	       all_are(behind, 2);
}

/* As edu.dma_goes_nowhere, with a device that is started again each time */
TEST_F_TIMEOUT(vdpa, dma_goes_nowhere, 300)
{
	uint8_t *mapped = self->mem + PAGE, *behind = self->mem + 2 * PAGE;
	long before = pinned();
	uint64_t addr;
	int i;

	if (!iommu_name[0])
		SKIP(return, "this is no virtio-iommu");
	addr = phys_of(behind);
	ASSERT_NE(0, addr);
	ASSERT_EQ(1, vdpa_works(self->fd, self->ring, self->ring_iova,
				self->kick, mapped, behind, addr));

	memset(mapped, 1, PAGE);
	ASSERT_EQ(0, iommu_unbind());
	/* It runs, and is started anew */
	for (i = 0; i != 2; i++) {
		EXPECT_EQ(0, vdpa_dma(self->ring, self->kick, addr));
		EXPECT_TRUE(all_are(mapped, 1));
		EXPECT_TRUE(all_are(behind, 2));
		ASSERT_EQ(0, vdpa_start(self->fd, self->ring, self->ring_iova,
					self->kick));
	}

	/* What is left of the file: memory is given back, and none taken */
	EXPECT_EQ(-EFAULT, vdpa_map(self->fd, self->mem + 3 * PAGE, 0x20000,
				    PAGE));
	EXPECT_EQ(0, vdpa_unmap(self->fd, addr, PAGE));
	EXPECT_EQ(0, vdpa_unmap(self->fd, self->ring_iova, PAGE));
	EXPECT_EQ(before, pinned());

	/* The IOMMU is back, but not for this file */
	ASSERT_EQ(0, iommu_bind());
	ASSERT_EQ(0, vdpa_start(self->fd, self->ring, self->ring_iova,
				self->kick));
	EXPECT_EQ(0, vdpa_dma(self->ring, self->kick, addr));
	EXPECT_TRUE(all_are(mapped, 1));
	EXPECT_TRUE(all_are(behind, 2));
	EXPECT_EQ(-EFAULT, vdpa_map(self->fd, mapped, addr, PAGE));
	ASSERT_EQ(0, close(self->fd));
	self->fd = -1;

	/* With its driver bound again, the device is as it was */
	ASSERT_EQ(0, device_bind(RNG, "vp-vdpa"));
	ASSERT_EQ(0, vdpa_add(VDPA, RNG));
	ASSERT_EQ(0, vdpa_init(&self->fd));
	EXPECT_EQ(1, vdpa_works(self->fd, self->ring, self->ring_iova,
				self->kick, mapped, behind, addr));
}

/* Closed without the IOMMU, with memory mapped, and opened when it is back */
TEST_F_TIMEOUT(vdpa, close_without, 300)
{
	uint8_t *behind = self->mem + 2 * PAGE;
	long before = pinned();

	if (!iommu_name[0])
		SKIP(return, "this is no virtio-iommu");
	ASSERT_EQ(0, vdpa_map(self->fd, self->mem, 0x10000, 64 * PAGE));
	EXPECT_EQ(before + 64, pinned());
	ASSERT_EQ(0, iommu_unbind());
	EXPECT_EQ(-EFAULT, vdpa_map(self->fd, self->mem, 0x100000, PAGE));
	ASSERT_EQ(0, close(self->fd));
	EXPECT_EQ(before, pinned());
	self->fd = vdpa_open();
	EXPECT_EQ(-ENODEV, self->fd);
	/* Not for the driver that has been there, nor for who uses that */
	ASSERT_EQ(0, iommu_bind());
	self->fd = vdpa_open();
	EXPECT_EQ(-ENODEV, self->fd);
	ASSERT_EQ(0, device_bind(RNG, "vp-vdpa"));
	ASSERT_EQ(0, vdpa_add(VDPA, RNG));
	ASSERT_EQ(0, vdpa_init(&self->fd));
	EXPECT_EQ(1, vdpa_works(self->fd, self->ring, self->ring_iova,
				self->kick, self->mem + PAGE, behind,
				phys_of(behind)));
}

struct vdpa_load {
	int fd;
	uint8_t *mem;
	int stop;
	int mapped;
	int ret;
};

static void *vdpa_map_thread(void *arg)
{
	struct vdpa_load *load = arg;
	int ret;

	while (!__atomic_load_n(&load->stop, __ATOMIC_RELAXED)) {
		ret = vdpa_map(load->fd, load->mem, 0x100000, 64 * PAGE);
		if (!ret)
			load->mapped++;
		else if (ret != -EFAULT)
			load->ret = ret;
		ret = vdpa_unmap(load->fd, 0x100000, 64 * PAGE);
		if (ret)
			load->ret = ret;
	}
	return NULL;
}

/* While it maps and unmaps, with random timing */
TEST_F_TIMEOUT(vdpa, busy, 900)
{
	struct vdpa_load load = { .mem = self->mem };
	long before = pinned();
	pthread_t tid;
	int i, ret;

	if (!iommu_name[0])
		SKIP(return, "this is no virtio-iommu");
	for (i = 0; i != 10; i++) {
		load.fd = self->fd;
		load.stop = 0;
		ASSERT_EQ(0, pthread_create(&tid, NULL, vdpa_map_thread,
					    &load));
		sleep_us(random() % 100000);
		ret = iommu_unbind();
		sleep_us(random() % 20000);
		__atomic_store_n(&load.stop, 1, __ATOMIC_RELAXED);
		ASSERT_EQ(0, pthread_join(tid, NULL));
		ASSERT_EQ(0, ret);
		EXPECT_EQ(0, load.ret);
		ASSERT_EQ(0, close(self->fd));
		self->fd = -1;
		EXPECT_EQ(before, pinned());
		ASSERT_EQ(0, iommu_bind());
		ASSERT_EQ(0, device_bind(RNG, "vp-vdpa"));
		ASSERT_EQ(0, vdpa_add(VDPA, RNG));
		ASSERT_EQ(0, vdpa_init(&self->fd));
	}
	EXPECT_LT(0, load.mapped);
}

/* Holds the mutex of the file until the page is there */
static void *vdpa_stall_thread(void *arg)
{
	struct vdpa_load *load = arg;

	load->ret = ioctl(load->fd, VHOST_VDPA_SET_STATUS, load->mem) ?
			    -errno : 0;
	return NULL;
}

static void *vdpa_wait_thread(void *arg)
{
	struct vdpa_load *load = arg;

	load->ret = vdpa_map(load->fd, load->mem, 0x100000, PAGE);
	return NULL;
}

/* The program does not serve the page fault of a call, and a map waits for that one */
TEST_F_TIMEOUT(vdpa, waits_for_nobody, 300)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	struct vdpa_load map = { .fd = self->fd, .mem = self->mem };
	struct vdpa_load stall = { .fd = self->fd };
	pthread_t stall_tid, map_tid, unbind_tid;
	struct timespec deadline;
	struct pollfd pollfd = { .events = POLLIN };
	int uffd, late, ret = -1;

	if (!iommu_name[0])
		SKIP(return, "this is no virtio-iommu");
	uffd = syscall(__NR_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (uffd == -1 || ioctl(uffd, UFFDIO_API, &api))
		SKIP(return, "there is no userfaultfd");
	stall.mem = mmap(NULL, PAGE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, (void *)stall.mem);
	reg.range.start = (uintptr_t)stall.mem;
	reg.range.len = PAGE;
	ASSERT_EQ(0, ioctl(uffd, UFFDIO_REGISTER, &reg));

	ASSERT_EQ(0, pthread_create(&stall_tid, NULL, vdpa_stall_thread,
				    &stall));
	/* There is the fault */
	pollfd.fd = uffd;
	ASSERT_EQ(1, poll(&pollfd, 1, 20000));
	ASSERT_EQ(0, pthread_create(&map_tid, NULL, vdpa_wait_thread, &map));
	sleep_us(500000);

	ASSERT_EQ(0, pthread_create(&unbind_tid, NULL, unbind_thread, &ret));
	clock_gettime(CLOCK_REALTIME, &deadline);
	deadline.tv_sec += 20;
	late = pthread_timedjoin_np(unbind_tid, NULL, &deadline);
	EXPECT_EQ(0, late);

	/* Nobody listens any more, so it is an ordinary page */
	close(uffd);
	if (late)
		ASSERT_EQ(0, pthread_join(unbind_tid, NULL));
	EXPECT_EQ(0, ret);
	ASSERT_EQ(0, pthread_join(stall_tid, NULL));
	ASSERT_EQ(0, pthread_join(map_tid, NULL));
	EXPECT_EQ(0, stall.ret);
	EXPECT_EQ(-EFAULT, map.ret);
}

TEST_HARNESS_MAIN
