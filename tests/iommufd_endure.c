// SPDX-License-Identifier: GPL-2.0-only
/*
 * The same again and again, to see that nothing grows. There are three kinds of
 * cycles:
 *
 *  revoke        a device, a vIOMMU and one of each kind of object on it are made,
 *                the physical IOMMU is unregistered under them, every ID answers
 *                ENODEV, and all of it is destroyed;
 *  hotplug       a device is plugged in on a vIOMMU that stays, and unplugged;
 *  registration  an IOMMU is registered and unregistered, with the same objects
 *                on it.
 *
 * In the latter two another thread uses all that there is all the time, and also a
 * VM on an IOMMU that stays, which must not notice anything.
 *
 * What the kernel has allocated is read after a tenth of the cycles and once or four
 * times more until the end, each time with nothing going on. Nothing may grow between
 * the first reading and the last by as much as one unit in a hundred cycles, beside
 * an allowance for what others do. A unit is an object of a slab cache, or a page. If
 * something has grown it is read again, until what is freed late has been. So this
 * wants a machine on which nothing else happens.
 *
 * Usage: iommufd_endure [revocations [hotplugs [registrations [seed]]]]
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <limits.h>
#include <linux/membarrier.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/stat.h>

#define __EXPORTED_HEADERS__
#include "iommufd_race.h"
#include "series.h"

#define NUM_READINGS 5
/* Readings take long on a kernel with KASAN; so many cycles get two only */
#define FEW_CYCLES 1000
#define NUM_QUEUES 2
/* One for each HW queue, and one to map and unmap */
#define NUM_PAGES (NUM_QUEUES + 1)
#define VIRT_ID 0x42
#define REGION_DATA 0x5eed
#define MODULE_EVERY 16
/* A dead vDEVICE keeps its ID until the file is closed */
#define HOTPLUGS_OF_A_FILE 500

enum node {
	DEVICE,
	PARENT,
	VIOMMU,
	VDEVICE,
	NESTED,
	NESTED_IOPF,
	VEVENTQ,
	HW_QUEUE0,
	HW_QUEUE1,
	NUM_NODES,
};

/* Another thread reads this at any time */
struct machine {
	int fd;
	int event_fd;
	int fault_fd;
	uint32_t ioas_id;
	uint32_t fault_id;
	/* What plugs the device in and out */
	uint32_t stdev_id;
	uint32_t id[NUM_NODES];
	void *region;
	/* The lowest ID that is free when there is nothing on the IOMMU */
	uint32_t free_id;
	uint32_t max_id;
	uint32_t dead_ids;
};

#define get(var) __atomic_load_n(&(var), __ATOMIC_RELAXED)
#define set(var, value) __atomic_store_n(&(var), value, __ATOMIC_RELAXED)
#define count(var) __atomic_add_fetch(&(var), 1, __ATOMIC_RELAXED)

/* For test commands, has no objects of its own */
static int test_fd;
static int pipe_fd[2];
static uint64_t rnd_state;
static bool has_module;

/* The first call that gave something else than it should */
static const char *bad_call;
static int bad_line, bad_errno, bad_want;

#define must(want, call)                                \
	({                                              \
		int __want = want;                      \
		int __err;                              \
							\
		errno = 0;                              \
		__err = (call) ? errno ?: -1 : 0;       \
		if (__err != __want && !bad_call) {     \
			bad_call = #call;               \
			bad_line = __LINE__;            \
			bad_errno = __err;              \
			bad_want = __want;              \
		}                                       \
		__err == __want;                        \
	})

/* What the kernel has allocated */

struct counter {
	char name[32];
	long long value;
};

struct reading {
	unsigned int num;
	struct counter counter[400];
};

/*
 * Of /proc/meminfo, in kB: which direction is bad, the bytes that must not be lost
 * in a hundred cycles, and what may come from elsewhere
 */
static const struct {
	const char *name;
	int sign;
	unsigned int unit;
	unsigned int allowance;
} meminfo[] = {
	/* With the pages that the CPUs keep */
	{ "MemFree", -1, 4096, 1024 },
	{ "SUnreclaim", 1, 4096, 1024 },
	{ "KernelStack", 1, 4096, 128 },
	{ "PageTables", 1, 4096, 128 },
	{ "VmallocUsed", 1, 4096, 256 },
	/* Two CPUs, a word each */
	{ "Percpu", 1, 16, 64 },
};

/* Objects of one slab cache that may come from elsewhere */
#define SLAB_ALLOWANCE 40

static void add_counter(struct reading *reading, const char *name,
			long long value)
{
	struct counter *counter = &reading->counter[reading->num];

	if (reading->num == ARRAY_SIZE(reading->counter))
		ksft_exit_fail_msg("too many slab caches\n");
	snprintf(counter->name, sizeof(counter->name), "%s", name);
	counter->value = value;
	reading->num++;
}

static long long find_counter(const struct reading *reading, const char *name)
{
	unsigned int i;

	for (i = 0; i != reading->num; i++)
		if (!strcmp(reading->counter[i].name, name))
			return reading->counter[i].value;
	return 0;
}

/* What was freed, but is kept for later: by RCU, in slabs, on CPUs */
static void settle(void)
{
	struct dirent *entry;
	char path[300];
	DIR *dir;

	/* 4: do not tell in the log */
	write_file("/proc/sys/vm/drop_caches", "4");
	write_file("/proc/sys/vm/drop_caches", "3");
	syscall(__NR_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0);
	sleep_ms(50);
	syscall(__NR_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0);

	dir = opendir("/sys/kernel/slab");
	while (dir && (entry = readdir(dir))) {
		/* Links are other names of merged caches */
		if (entry->d_type != DT_DIR || entry->d_name[0] == '.')
			continue;
		snprintf(path, sizeof(path), "/sys/kernel/slab/%s/shrink",
			 entry->d_name);
		write_file(path, "1");
	}
	if (dir)
		closedir(dir);
}

/* Free pages that CPUs keep, in kB */
static long long cpu_pages(void)
{
	long long value, pages = 0;
	char line[256];
	FILE *file;

	file = fopen("/proc/zoneinfo", "re");
	while (file && fgets(line, sizeof(line), file))
		if (sscanf(line, " count: %lld", &value) == 1)
			pages += value;
	if (file)
		fclose(file);
	return pages * PAGE_SIZE / 1024;
}

static void take(struct reading *reading)
{
	char line[256], name[32];
	long long value;
	unsigned int i;
	FILE *file;

	settle();
	reading->num = 0;
	file = fopen("/proc/slabinfo", "re");
	while (file && fgets(line, sizeof(line), file)) {
		if (line[0] == '#' ||
		    sscanf(line, "%31s %lld", name, &value) != 2 ||
		    !strcmp(name, "slabinfo"))
			continue;
		add_counter(reading, name, value);
	}
	if (file)
		fclose(file);
	file = fopen("/proc/meminfo", "re");
	while (file && fgets(line, sizeof(line), file)) {
		if (sscanf(line, "%31[^:]: %lld", name, &value) != 2)
			continue;
		for (i = 0; i != ARRAY_SIZE(meminfo); i++)
			if (!strcmp(name, meminfo[i].name))
				add_counter(reading, name, i ? value :
					    value + cpu_pages());
	}
	if (file)
		fclose(file);
}

static bool is_meminfo(const char *name, unsigned int *i)
{
	for (*i = 0; *i != ARRAY_SIZE(meminfo); (*i)++)
		if (!strcmp(name, meminfo[*i].name))
			return true;
	return false;
}

/* How much more there is, and how much more there may be */
static long long growth(const struct reading *first, const struct counter *last,
			unsigned long cycles, long long *limit)
{
	long long grown = last->value - find_counter(first, last->name);
	unsigned int i;

	if (!is_meminfo(last->name, &i)) {
		*limit = cycles / 100 + SLAB_ALLOWANCE;
		return grown;
	}
	*limit = cycles / 100 * meminfo[i].unit / 1024 + meminfo[i].allowance;
	return grown * meminfo[i].sign;
}

static unsigned int count_grown(const struct reading *first,
				const struct reading *last,
				unsigned long cycles)
{
	unsigned int i, n = 0;
	long long limit;

	for (i = 0; i != last->num; i++)
		if (growth(first, &last->counter[i], cycles, &limit) > limit)
			n++;
	return n;
}

static void print_growth(const struct reading *readings, unsigned int num,
			 unsigned long cycles)
{
	const struct reading *first = &readings[0], *last = &readings[num - 1];
	long long grown, limit, best, below = LLONG_MAX;
	unsigned int i, n, r;

	/* All that grew too much, the largest caches, and all of meminfo */
	for (n = 0; n != 5; n++) {
		best = 0;
		for (i = 0; i != last->num; i++) {
			grown = growth(first, &last->counter[i], cycles, &limit);
			if (!is_meminfo(last->counter[i].name, &r) &&
			    grown < below && grown > best)
				best = grown;
		}
		if (!best)
			break;
		below = best;
	}
	for (i = 0; i != last->num; i++) {
		grown = growth(first, &last->counter[i], cycles, &limit);
		if (!is_meminfo(last->counter[i].name, &r) && grown < below &&
		    grown <= limit)
			continue;
		printf("# %-22s", last->counter[i].name);
		for (r = 0; r != num; r++)
			printf(" %8lld", find_counter(&readings[r],
						      last->counter[i].name));
		printf("  limit %+lld%s\n", limit,
		       grown > limit ? " EXCEEDED" : "");
	}
}

/* The objects */

static int do_map(struct machine *m, unsigned int page)
{
	__u64 iova = MOCK_APERTURE_START + page * PAGE_SIZE;

	return _test_ioctl_ioas_map(get(m->fd), get(m->ioas_id),
				    buffer + page * PAGE_SIZE, PAGE_SIZE, &iova,
				    IOMMU_IOAS_MAP_FIXED_IOVA |
					    IOMMU_IOAS_MAP_WRITEABLE |
					    IOMMU_IOAS_MAP_READABLE);
}

static int do_unmap(struct machine *m, unsigned int page)
{
	return _test_ioctl_ioas_unmap(get(m->fd), get(m->ioas_id),
				      MOCK_APERTURE_START + page * PAGE_SIZE,
				      PAGE_SIZE, NULL);
}

static bool machine_open(struct machine *m)
{
	uint32_t id, fault_fd;
	unsigned int i;
	int fd;

	fd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	if (!must(0, fd < 0) || !must(0, _test_ioctl_ioas_alloc(fd, &id)))
		return false;
	set(m->ioas_id, id);
	if (!must(0, _test_ioctl_fault_alloc(fd, &id, &fault_fd)))
		return false;
	set(m->fault_id, id);
	set(m->fault_fd, fault_fd);
	set(m->fd, fd);
	for (i = 0; i != NUM_QUEUES; i++)
		if (!must(0, do_map(m, i)))
			return false;
	m->free_id = free_id(fd);
	m->dead_ids = 0;
	return true;
}

static void machine_close(struct machine *m)
{
	if (m->region)
		munmap(m->region, PAGE_SIZE * 2);
	if (m->event_fd >= 0)
		close(m->event_fd);
	if (m->fault_fd >= 0)
		close(m->fault_fd);
	if (m->fd >= 0)
		close(m->fd);
	m->region = NULL;
	set(m->event_fd, -1);
	set(m->fault_fd, -1);
	set(m->fd, -1);
}

static bool make_nested(struct machine *m, uint32_t pt_id, uint32_t flags,
			enum node node)
{
	struct iommu_hwpt_selftest data = { .iotlb = IOMMU_TEST_IOTLB_DEFAULT };
	uint32_t id;

	if (!must(0, _test_cmd_hwpt_alloc(m->fd, m->id[DEVICE], pt_id,
					  flags ? m->fault_id : 0, flags, &id,
					  IOMMU_HWPT_DATA_SELFTEST, &data,
					  sizeof(data))))
		return false;
	set(m->id[node], id);
	return true;
}

static bool make_viommu(struct machine *m, bool with_region)
{
	struct iommu_viommu_selftest data = { .in_data = REGION_DATA };
	uint32_t id;

	if (!must(0, _test_cmd_viommu_alloc(m->fd, m->id[DEVICE],
					    m->id[PARENT], 0,
					    IOMMU_VIOMMU_TYPE_SELFTEST, &data,
					    sizeof(data), &id)))
		return false;
	set(m->id[VIOMMU], id);
	if (!with_region)
		return true;
	m->region = mmap(NULL, data.out_mmap_length, PROT_READ | PROT_WRITE,
			 MAP_SHARED, m->fd, data.out_mmap_offset);
	if (!must(0, m->region == MAP_FAILED)) {
		m->region = NULL;
		return false;
	}
	return true;
}

static bool make_vdevice(struct machine *m)
{
	uint32_t id;

	if (!must(0, _test_cmd_vdevice_alloc(m->fd, m->id[VIOMMU],
					     m->id[DEVICE], VIRT_ID, &id)))
		return false;
	set(m->id[VDEVICE], id);
	return true;
}

/* All that can be on an IOMMU, with a device attached to it */
static bool make_all(struct machine *m, uint32_t iommu_id, uint32_t flags)
{
	uint32_t id, id2;
	int fd, i;

	if (!must(0, _test_cmd_mock_domain_iommu(m->fd, m->ioas_id, iommu_id,
						 flags, &id, NULL, &id2)))
		return false;
	set(m->stdev_id, id);
	set(m->id[DEVICE], id2);
	if (!must(0, _test_cmd_hwpt_alloc(m->fd, m->id[DEVICE], m->ioas_id, 0,
					  IOMMU_HWPT_ALLOC_NEST_PARENT, &id,
					  IOMMU_HWPT_DATA_NONE, NULL, 0)))
		return false;
	set(m->id[PARENT], id);
	if (!make_viommu(m, true) || !make_vdevice(m) ||
	    !make_nested(m, m->id[VIOMMU], 0, NESTED) ||
	    !make_nested(m, m->id[PARENT], IOMMU_HWPT_FAULT_ID_VALID,
			 NESTED_IOPF) ||
	    !must(0, _test_cmd_veventq_alloc(m->fd, m->id[VIOMMU],
					     IOMMU_VEVENTQ_TYPE_SELFTEST, 64,
					     &id, &fd)))
		return false;
	set(m->id[VEVENTQ], id);
	set(m->event_fd, fd);
	for (i = 0; i != NUM_QUEUES; i++) {
		if (!must(0, _test_cmd_hw_queue_alloc(m->fd, m->id[VIOMMU],
						      IOMMU_HW_QUEUE_TYPE_SELFTEST,
						      i, MOCK_APERTURE_START +
								 i * PAGE_SIZE,
						      PAGE_SIZE, &id)))
			return false;
		set(m->id[HW_QUEUE0 + i], id);
	}
	/* Its automatic HWPT goes with that */
	return must(0, _test_cmd_mock_domain_replace(m->fd, m->stdev_id,
						     m->id[NESTED], NULL));
}

static int destroy(int fd, uint32_t id)
{
	time_t end = time(NULL) + 20;
	int ret;

	/* A call of the other thread holds it for a moment */
	while ((ret = _test_ioctl_destroy(fd, id)) && errno == EBUSY &&
	       time(NULL) < end)
		sched_yield();
	return ret;
}

static bool check_revoked(struct machine *m)
{
	struct iommu_hwpt_invalidate cmd = {
		.size = sizeof(cmd),
		.data_type = IOMMU_HWPT_INVALIDATE_DATA_SELFTEST_INVALID,
	};
	struct pollfd pollfd = { .fd = m->event_fd, .events = POLLIN };
	enum node node;
	char data[256];

	for (node = 0; node != NUM_NODES; node++) {
		cmd.hwpt_id = m->id[node];
		if (!must(ENODEV, ioctl(m->fd, IOMMU_HWPT_INVALIDATE, &cmd)))
			return false;
	}
	/* A system call gets EFAULT where the test would get SIGBUS */
	if (!must(EFAULT, write(pipe_fd[1], m->region, 4) != 4))
		return false;
	/* The other thread may read the rest of the events, or not */
	while (read(m->event_fd, data, sizeof(data)) > 0)
		;
	if (!must(ENODEV, read(m->event_fd, data, sizeof(data)) < 0))
		return false;
	return must(0, poll(&pollfd, 1, 0) != 1 || pollfd.revents != POLLHUP);
}

static bool check_alive(struct machine *m)
{
	uint32_t data = 0;

	return must(0, _test_cmd_viommu_call(m->fd, m->id[VIOMMU])) &&
	       must(0, hw_info(m->fd, m->id[DEVICE])) &&
	       must(0, write(pipe_fd[1], m->region, 4) != 4) &&
	       must(0, read(pipe_fd[0], &data, 4) != 4 || data != REGION_DATA);
}

static bool destroy_all(struct machine *m, bool vdevice_first)
{
	int i;

	if (!must(0, munmap(m->region, PAGE_SIZE * 2)))
		return false;
	m->region = NULL;
	i = m->event_fd;
	set(m->event_fd, -1);
	close(i);
	if (vdevice_first && !must(0, destroy(m->fd, m->id[VDEVICE])))
		return false;
	if (!must(0, destroy(m->fd, m->stdev_id)))
		return false;
	for (i = HW_QUEUE1; i >= PARENT; i--)
		if (i != VDEVICE && !must(0, destroy(m->fd, m->id[i])))
			return false;
	return true;
}

/* No ID has been left behind */
static bool check_free_id(struct machine *m)
{
	return must(0, free_id(m->fd) != m->free_id);
}

/* The traffic */

enum op {
	OP_CALL,
	OP_INVALIDATE,
	OP_INVALIDATE_NESTED,
	OP_INFO,
	OP_ATTACH,
	OP_MAP,
	OP_EVENT,
	OP_READ,
	OP_IOPF,
	OP_ANSWER,
	NUM_OPS,
};

static const char *const op_names[NUM_OPS] = {
	"call", "invalidate", "invalidate nested", "info", "attach", "map",
	"event", "read event", "page request", "answer",
};

/* One that stays, and two that something happens to */
static struct machine steady, churn[2];
static unsigned int num_churn;

static struct traffic {
	pthread_t thread;
	bool running;
	uint32_t stop;
	uint64_t state;
	uint64_t done[NUM_OPS];
	uint64_t refused[NUM_OPS];
	uint64_t revoked;
	/* Without those on the one that stays */
	uint64_t on_churn;
	uint32_t bad_op;
	int bad_errno;
} traffic;

static int do_invalidate(int fd, uint32_t id, bool nested)
{
	struct iommu_viommu_invalidate_selftest entry = { .vdev_id = VIRT_ID };
	struct iommu_hwpt_invalidate_selftest nested_entry = {};
	uint32_t num = 1;

	if (nested)
		return _test_cmd_hwpt_invalidate(fd, id, &nested_entry,
						 IOMMU_HWPT_INVALIDATE_DATA_SELFTEST,
						 sizeof(nested_entry), &num);
	return _test_cmd_hwpt_invalidate(fd, id, &entry,
					 IOMMU_VIOMMU_INVALIDATE_DATA_SELFTEST,
					 sizeof(entry), &num);
}

/* All of them, or there would be more and more */
static int do_answer(int fd)
{
	struct iommu_hwpt_page_response response = {
		.code = IOMMUFD_PAGE_RESP_SUCCESS,
	};
	struct iommu_hwpt_pgfault fault;

	while (read(fd, &fault, sizeof(fault)) == sizeof(fault)) {
		response.cookie = fault.cookie;
		/* EINVAL: it has been answered, since the device went away */
		if (write(fd, &response, sizeof(response)) < 0 &&
		    errno != EINVAL)
			return -1;
	}
	return 0;
}

static int do_read(int fd)
{
	char events[1024];
	ssize_t ret;

	while ((ret = read(fd, events, sizeof(events))) > 0)
		;
	return ret;
}

static int do_op(struct machine *m, enum op what, uint64_t *state)
{
	static const enum node to[] = { NESTED, NESTED, NESTED_IOPF, PARENT };
	int ret;

	switch (what) {
	case OP_CALL:
		return _test_cmd_viommu_call(get(m->fd), get(m->id[VIOMMU]));
	case OP_INVALIDATE:
		return do_invalidate(get(m->fd), get(m->id[VIOMMU]), false);
	case OP_INVALIDATE_NESTED:
		return do_invalidate(get(m->fd), get(m->id[NESTED]), true);
	case OP_INFO:
		return hw_info(get(m->fd), get(m->id[DEVICE]));
	case OP_ATTACH:
		return _test_cmd_mock_domain_replace(get(m->fd),
						     get(m->stdev_id),
						     get(m->id[to[rnd(state, 4)]]),
						     NULL);
	case OP_MAP:
		ret = do_map(m, NUM_QUEUES);
		return ret ?: do_unmap(m, NUM_QUEUES);
	case OP_EVENT:
		return _test_cmd_trigger_vevent(get(m->fd), get(m->id[DEVICE]),
						rnd(state, 8) == 0);
	case OP_READ:
		return do_read(get(m->event_fd));
	case OP_IOPF:
		return trigger_iopf(get(m->fd), get(m->id[DEVICE]), 1);
	case OP_ANSWER:
		return do_answer(get(m->fault_fd));
	default:
		return 0;
	}
}

/* What a VM on an IOMMU that stays may get is less */
static bool op_may_fail(enum op op, bool is_steady, int err)
{
	/* ENOENT: it is not on the nested HWPT of the vIOMMU */
	if (op == OP_EVENT && err == ENOENT)
		return true;
	if (is_steady)
		return false;
	switch (err) {
	case ENODEV:
	case ENOENT:
	case EBADF:
	case ENOTTY:
		/* The number of the file may be another one's by now, too */
		return true;
	case EINVAL:
		/* Another kind of object or file, or no vDEVICE */
		return op == OP_INVALIDATE || op == OP_INVALIDATE_NESTED ||
		       op == OP_ATTACH || op == OP_READ || op == OP_ANSWER;
	case EOPNOTSUPP:
		return op == OP_EVENT || op == OP_INVALIDATE_NESTED;
	case EBUSY:
	case EEXIST:
		return op == OP_MAP;
	default:
		return false;
	}
}

static void *traffic_thread(void *arg)
{
	uint64_t state = traffic.state;
	struct machine *m;
	enum op op;

	while (!get(traffic.stop)) {
		m = &steady;
		if (rnd(&state, 4))
			m = &churn[rnd(&state, num_churn)];
		op = rnd(&state, NUM_OPS);
		errno = 0;
		if (!do_op(m, op, &state)) {
			traffic.done[op]++;
		} else {
			traffic.refused[op]++;
			if (errno == ENODEV)
				count(traffic.revoked);
			if (!op_may_fail(op, m == &steady, errno) &&
			    !get(traffic.bad_op)) {
				traffic.bad_errno = errno;
				set(traffic.bad_op, op + 1);
			}
		}
		if (m != &steady)
			count(traffic.on_churn);
	}
	traffic.state = state;
	return NULL;
}

static void traffic_start(void)
{
	set(traffic.stop, 0);
	assert(!pthread_create(&traffic.thread, NULL, traffic_thread, NULL));
	traffic.running = true;
}

static void traffic_stop(void)
{
	if (!traffic.running)
		return;
	set(traffic.stop, 1);
	pthread_join(traffic.thread, NULL);
	traffic.running = false;
	do_answer(steady.fault_fd);
	do_read(steady.event_fd);
}

/* So that the objects are in use when something happens to them */
static void traffic_wait(unsigned int ops)
{
	uint64_t until = get(traffic.on_churn) + ops;
	time_t end = time(NULL) + 20;

	while (get(traffic.on_churn) < until && time(NULL) < end)
		sched_yield();
}

/* The cycles. Each ends with as many objects as it began with. */

static int module_refs(const char *module)
{
	char path[100];
	int refs = -1;
	FILE *file;

	snprintf(path, sizeof(path), "/sys/module/%s/refcnt", module);
	file = fopen(path, "re");
	if (!file)
		return -1;
	if (fscanf(file, "%d", &refs) != 1)
		refs = -1;
	fclose(file);
	return refs;
}

/* A HWPT keeps the module of its driver, a vIOMMU too */
static bool cycle_module(struct machine *m)
{
	uint32_t ioas_id, device_id, hwpt_id, viommu_id;
	int fd = module_bind(m->fd, &device_id);
	bool good;

	if (!must(0, fd < 0))
		return false;
	/* It cannot map anything */
	good = must(0, _test_ioctl_ioas_alloc(m->fd, &ioas_id)) &&
	       must(0, _test_cmd_hwpt_alloc(m->fd, device_id, ioas_id, 0,
					    IOMMU_HWPT_ALLOC_NEST_PARENT,
					    &hwpt_id, IOMMU_HWPT_DATA_NONE,
					    NULL, 0)) &&
	       must(0, _test_cmd_viommu_alloc(m->fd, device_id, hwpt_id, 0,
					      IOMMU_VIOMMU_TYPE_SELFTEST, NULL,
					      0, &viommu_id));
	close(fd);
	return good && must(EWOULDBLOCK, module_unload()) &&
	       must(0, _test_ioctl_destroy(m->fd, viommu_id)) &&
	       must(0, _test_ioctl_destroy(m->fd, hwpt_id)) &&
	       must(0, _test_ioctl_destroy(m->fd, ioas_id)) &&
	       must(0, module_refs(TEST_DRIVER));
}

static bool cycle_revoke(unsigned long n)
{
	struct machine *m = &churn[0];
	uint32_t iommu_id;

	if (!must(0, _test_cmd_iommu_register(test_fd, n & 1 ?
						MOCK_IOMMU_SYSFS_FIRST : 0,
					      &iommu_id)) ||
	    !make_all(m, iommu_id, 0) || !check_alive(m) ||
	    !must(0, _test_cmd_trigger_vevent(m->fd, m->id[DEVICE], n & 2)) ||
	    !must(0, _test_cmd_iommu_unregister(test_fd, iommu_id)) ||
	    !check_revoked(m) || !destroy_all(m, true) || !check_free_id(m))
		return false;
	return !has_module || n % MODULE_EVERY || cycle_module(m);
}

/* With a vIOMMU that stays while no device is there */
static bool hotplug_prepare(struct machine *m)
{
	if (!machine_open(m) || !make_all(m, 0, 0) ||
	    !must(0, destroy(m->fd, m->id[VDEVICE])) ||
	    !must(0, destroy(m->fd, m->stdev_id)))
		return false;
	/* Those two are the last but the vIOMMU and what stays on it */
	m->max_id = m->free_id + NUM_NODES + 2;
	return true;
}

/*
 * In the one file vDEVICEs are destroyed before their device is unplugged, in the
 * other one they die with it, which takes an ID each until that file is closed.
 */
static bool cycle_hotplug(unsigned long n)
{
	enum node to = n & 2 ? PARENT : NESTED_IOPF;
	bool dies = n & 1;
	struct machine *m = &churn[dies];
	uint32_t id, id2;

	if (dies && m->dead_ids == HOTPLUGS_OF_A_FILE) {
		machine_close(m);
		if (!hotplug_prepare(m))
			return false;
	}
	if (!must(0, _test_cmd_mock_domain_iommu(m->fd, m->id[to], 0, 0, &id,
						 NULL, &id2)))
		return false;
	set(m->stdev_id, id);
	set(m->id[DEVICE], id2);
	/*
	 * IDs are given out lowest first. Only a device with a virtual ID can be on
	 * a nested HWPT of the vIOMMU.
	 */
	if (!make_vdevice(m) ||
	    !must(0, m->id[VDEVICE] > m->max_id + m->dead_ids) ||
	    !must(0, do_invalidate(m->fd, m->id[VIOMMU], false)) ||
	    !must(0, _test_cmd_mock_domain_replace(m->fd, m->stdev_id,
						   m->id[NESTED], NULL)))
		return false;
	if (dies)
		m->dead_ids++;
	else if (!must(0, destroy(m->fd, m->id[VDEVICE])))
		return false;
	return must(0, destroy(m->fd, m->stdev_id));
}

static bool cycle_registration(unsigned long n)
{
	struct machine *m = &churn[0];
	unsigned int dice = rnd(&rnd_state, 8);
	uint32_t iommu_id;

	if (!must(0, _test_cmd_iommu_register(test_fd, dice & 1 ?
						MOCK_IOMMU_SYSFS_FIRST : 0,
					      &iommu_id)) ||
	    !make_all(m, iommu_id, 0))
		return false;
	traffic_wait(1 + rnd(&rnd_state, 8));
	switch (dice / 2) {
	case 0:
		/* Nothing is there any more */
		if (!destroy_all(m, true) ||
		    !must(0, _test_cmd_iommu_unregister(test_fd, iommu_id)))
			return false;
		break;
	case 1:
		/* The file goes, with what was revoked in it */
		if (!must(0, _test_cmd_iommu_unregister(test_fd, iommu_id)) ||
		    !check_revoked(m))
			return false;
		machine_close(m);
		return machine_open(m);
	default:
		if (!must(0, _test_cmd_iommu_unregister(test_fd, iommu_id)) ||
		    !check_revoked(m) || !destroy_all(m, true))
			return false;
	}
	return check_free_id(m);
}

static const struct kind {
	const char *name;
	bool (*cycle)(unsigned long n);
	bool (*prepare)(struct machine *m);
	unsigned int num_churn;
	bool with_traffic;
} kinds[] = {
	{ "revoke", cycle_revoke, machine_open, 1, false },
	{ "hotplug", cycle_hotplug, hotplug_prepare, 2, true },
	{ "registration", cycle_registration, machine_open, 1, true },
};

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

static void print_result(const struct kind *kind)
{
	if (bad_call)
		ksft_print_msg("line %d: %s gave %d (%s) instead of %d\n",
			       bad_line, bad_call, bad_errno,
			       strerror(bad_errno), bad_want);
	if (traffic.bad_op)
		ksft_print_msg("the call \"%s\" of the traffic gave %d (%s)\n",
			       op_names[traffic.bad_op - 1], traffic.bad_errno,
			       strerror(traffic.bad_errno));
	ksft_test_result(!bad_call && !traffic.bad_op,
			 "%s: every call gave what it should\n", kind->name);
}

/* The files whose IDs grow by design begin anew for a reading */
static bool read_all(const struct kind *kind, struct reading *reading)
{
	traffic_stop();
	if (kind->num_churn == 2) {
		machine_close(&churn[1]);
		if (!kind->prepare(&churn[1]))
			return false;
	}
	do_answer(churn[0].fault_fd);
	take(reading);
	return true;
}

static void run(const struct kind *kind, unsigned long cycles)
{
	static struct reading readings[NUM_READINGS];
	unsigned long n, first = cycles / 10, next = first;
	unsigned int num_readings = NUM_READINGS;
	unsigned int num = 0, i, tries;
	double start = now(), spent = 0;

	if (!cycles) {
		ksft_test_result_skip("%s: every call gave what it should\n",
				      kind->name);
		ksft_test_result_skip("%s: nothing grows\n", kind->name);
		return;
	}
	if (cycles <= FEW_CYCLES)
		num_readings = 2;
	bad_call = NULL;
	traffic.bad_op = 0;
	num_churn = kind->num_churn;
	for (i = 0; i != num_churn; i++)
		kind->prepare(&churn[i]);
	if (kind->with_traffic && machine_open(&steady))
		make_all(&steady, 0, 0);

	for (n = 0; !bad_call && !get(traffic.bad_op); n++) {
		if (n == next) {
			spent += now() - start;
			if (!read_all(kind, &readings[num]))
				break;
			num++;
			ksft_print_msg("%s: reading %u after %lu cycles, %.0f s\n",
				       kind->name, num, n, spent);
			fflush(stdout);
			if (num == num_readings)
				break;
			next = first + (cycles - first) * num /
				       (num_readings - 1);
			start = now();
		}
		if (kind->with_traffic && !traffic.running)
			traffic_start();
		if (!kind->cycle(n))
			break;
	}
	traffic_stop();
	ksft_print_msg("%s: %lu cycles in %.0f s, %.1f a second\n", kind->name,
		       n, spent, spent > 0 ? n / spent : 0);
	print_result(kind);

	if (num != num_readings) {
		ksft_test_result_fail("%s: nothing grows\n", kind->name);
	} else {
		for (tries = 0; tries != 10; tries++) {
			if (!count_grown(&readings[0], &readings[num - 1],
					 cycles - first))
				break;
			sleep_ms(900);
			take(&readings[num - 1]);
		}
		print_growth(readings, num, cycles - first);
		ksft_test_result(!count_grown(&readings[0], &readings[num - 1],
					      cycles - first),
				 "%s: nothing grows\n", kind->name);
	}
	for (i = 0; i != num_churn; i++)
		machine_close(&churn[i]);
	if (kind->with_traffic)
		machine_close(&steady);
}

/* What is there of the mock and comes and goes, and what files we have */
static const char *const dirs[] = {
	"/sys/bus/iommufd_mock/devices",
	"/sys/class/iommu",
	"/sys/kernel/iommu_groups",
	"/proc/self/fd",
};

struct state {
	unsigned int entries[ARRAY_SIZE(dirs)];
	int module_refs;
	int driver_refs;
	/* vIOMMUs that were made and not destroyed */
	uint64_t viommus;
};

static void get_state(struct state *state)
{
	uint64_t inits = 0, destroys = 0;
	unsigned int i;

	memset(state, 0, sizeof(*state));
	for (i = 0; i != ARRAY_SIZE(dirs); i++)
		state->entries[i] = count_dir(dirs[i]);
	/* -1 if it is built in */
	state->module_refs = module_refs("iommufd");
	state->driver_refs = module_refs(TEST_DRIVER);
	_test_cmd_viommu_stats(test_fd, &inits, &destroys, NULL);
	state->viommus = inits - destroys;
}

static void report_state(const struct state *before, const struct state *after)
{
	unsigned int i;

	for (i = 0; i != ARRAY_SIZE(dirs); i++)
		if (before->entries[i] != after->entries[i])
			ksft_print_msg("%s: %u entries, then %u\n", dirs[i],
				       before->entries[i], after->entries[i]);
	ksft_print_msg("references on modules: iommufd %d then %d, "
		       TEST_DRIVER " %d then %d\n",
		       before->module_refs, after->module_refs,
		       before->driver_refs, after->driver_refs);
	ksft_print_msg("vIOMMUs: %lld then %lld\n",
		       (long long)before->viommus, (long long)after->viommus);
	ksft_test_result(!memcmp(before, after, sizeof(*before)),
			 "all is as in the beginning\n");
}

static void report_traffic(void)
{
	bool good = traffic.revoked;
	enum op op;

	for (op = 0; op != NUM_OPS; op++) {
		ksft_print_msg("%-18s %10llu done %10llu refused\n",
			       op_names[op],
			       (unsigned long long)traffic.done[op],
			       (unsigned long long)traffic.refused[op]);
		if (!traffic.done[op])
			good = false;
	}
	ksft_print_msg("%llu met a revoked one\n",
		       (unsigned long long)traffic.revoked);
	ksft_test_result(good, "the traffic met what is there and what is not\n");
}

static unsigned long arg_number(int argc, char *argv[], int i,
				unsigned long number)
{
	char *end;

	if (i >= argc)
		return number;
	errno = 0;
	number = strtoul(argv[i], &end, 0);
	if (!argv[i][0] || *end || errno)
		ksft_exit_fail_msg("%s: not a number\n", argv[i]);
	return number;
}

int main(int argc, char *argv[])
{
	unsigned long cycles[ARRAY_SIZE(kinds)];
	struct state before, after;
	unsigned int i;

	ksft_print_header();
	if (argc > ARRAY_SIZE(kinds) + 2)
		ksft_exit_fail_msg("too many arguments\n");
	cycles[0] = arg_number(argc, argv, 1, 100);
	cycles[1] = arg_number(argc, argv, 2, 150);
	cycles[2] = arg_number(argc, argv, 3, 100);
	/* Fewer would tell nothing */
	for (i = 0; i != ARRAY_SIZE(kinds); i++)
		if (cycles[i] && cycles[i] < 100)
			ksft_exit_fail_msg("%lu: less than 100 cycles\n",
					   cycles[i]);
	if (argc <= 4 && getrandom(&rnd_state, sizeof(rnd_state), 0) !=
				 sizeof(rnd_state))
		ksft_exit_fail_msg("no seed\n");
	rnd_state = arg_number(argc, argv, 4, rnd_state & 0xffffffff);
	ksft_print_msg("%lu %s, %lu %s, %lu %s, seed %llu\n", cycles[0],
		       "revocations", cycles[1], "hotplugs", cycles[2],
		       "registrations",
		       (unsigned long long)rnd_state);
	rnd_state |= 1ULL << 40;
	traffic.state = rnd_state;

	PAGE_SIZE = sysconf(_SC_PAGE_SIZE);
	BUFFER_SIZE = PAGE_SIZE * NUM_PAGES;
	buffer = mmap(NULL, BUFFER_SIZE, PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	assert(buffer != MAP_FAILED);
	/* Each page for itself */
	madvise(buffer, BUFFER_SIZE, MADV_NOHUGEPAGE);
	memset(buffer, 1, BUFFER_SIZE);
	assert(!pipe2(pipe_fd, O_CLOEXEC));

	test_fd = open("/dev/iommu", O_RDWR | O_CLOEXEC);
	if (test_fd < 0)
		ksft_exit_skip("no /dev/iommu\n");
	if (unpark_all(test_fd))
		ksft_exit_skip("no IOMMUFD_TEST\n");
	steady.fd = -1;
	steady.event_fd = -1;
	steady.fault_fd = -1;
	for (i = 0; i != ARRAY_SIZE(churn); i++)
		churn[i] = steady;
	if (access("/proc/slabinfo", R_OK) ||
	    access("/sys/kernel/slab", R_OK))
		ksft_exit_skip("needs /proc/slabinfo and /sys/kernel/slab\n");
	has_module = cycles[0] && !module_load();
	ksft_set_plan(2 * ARRAY_SIZE(kinds) + 2);

	get_state(&before);
	for (i = 0; i != ARRAY_SIZE(kinds); i++)
		run(&kinds[i], cycles[i]);
	if (cycles[2])
		report_traffic();
	else
		ksft_test_result_skip("the traffic met what is there and what is not\n");
	get_state(&after);
	report_state(&before, &after);
	if (has_module && module_unload())
		ksft_exit_fail_perror("the module stays");
	ksft_finished();
}
