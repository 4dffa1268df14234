// SPDX-License-Identifier: GPL-2.0-only
/*
 * In which order the objects on a vIOMMU can be destroyed. There is a right one
 * for every object, and who tries another gets EBUSY and has changed nothing.
 * So all orders are tried, of objects that use each other as a table says, and
 * a model that knows nothing but the table says what each call has to give:
 *
 *  - as long as the physical IOMMU is there;
 *  - when it has gone away before, or goes away on the way;
 *  - with the file closed on the way, which finds a right order for the rest.
 *
 * After each call it is looked at whether what should be there is there and
 * works, what should not be there is not, and what was revoked answers ENODEV.
 *
 * The number that a test's name begins with is that of a rule in "What always
 * holds", in Documentation/userspace-api/iommufd.rst.
 */
#define _GNU_SOURCE
#include <sys/mman.h>

#define __EXPORTED_HEADERS__
#include "iommufd_race.h"

/* One for each HW queue, and one that stays mapped */
#define NUM_QUEUES 2
#define NUM_PAGES (NUM_QUEUES + 1)

/* What there is to take away, in an order in which it can be made */
enum node {
	IOAS,
	/* Unplugged by destroying the mock's object, not the iommufd device */
	DEVICE,
	PARENT,
	VIOMMU,
	VDEVICE,
	NESTED,
	VEVENTQ,
	/* The file descriptor of VEVENTQ */
	FD,
	HW_QUEUE0,
	HW_QUEUE1,
	/* Where the region of VIOMMU is mapped */
	REGION,
	NUM_NODES,
	/* As what the device is attached to */
	NOWHERE = NUM_NODES,
};

#define BIT(node) (1U << (node))

static const char *const node_names[NUM_NODES] = {
	[IOAS] = "IOAS",
	[DEVICE] = "device",
	[PARENT] = "parent",
	[VIOMMU] = "vIOMMU",
	[VDEVICE] = "vDEVICE",
	[NESTED] = "nested",
	[VEVENTQ] = "vEVENTQ",
	[FD] = "fd",
	[HW_QUEUE0] = "queue0",
	[HW_QUEUE1] = "queue1",
	[REGION] = "region",
};

/*
 * Which object uses which. What is used cannot be destroyed.
 *
 * Revocation takes away what there is in the driver, and with it what that uses
 * (iommufd.rst, "When a physical IOMMU goes away"): a vIOMMU uses no parent any
 * more, a HWPT no IOAS, nothing on a vIOMMU uses the vIOMMU, no HW queue
 * another one, and no device is attached. Two kinds stay:
 *
 *  - user space has the file descriptor of an event queue until it closes it,
 *    since it can still be drained;
 *  - the memory of a HW queue is pinned until the queue is destroyed, as it is
 *    for every access. So the queue, which was in need of the IOAS through the
 *    parent before, uses it by itself.
 *
 * The region is no longer one of them: it faults with SIGBUS, mapped or not.
 */
static const struct {
	enum node user;
	enum node used;
	bool stays;
} edges[] = {
	{ PARENT, IOAS },
	{ DEVICE, PARENT },
	{ DEVICE, NESTED },
	{ VIOMMU, PARENT },
	{ VDEVICE, VIOMMU },
	{ NESTED, VIOMMU },
	{ VEVENTQ, VIOMMU },
	{ FD, VEVENTQ, .stays = true },
	{ HW_QUEUE0, VIOMMU },
	{ HW_QUEUE0, IOAS, .stays = true },
	{ HW_QUEUE1, VIOMMU },
	{ HW_QUEUE1, IOAS, .stays = true },
	{ HW_QUEUE1, HW_QUEUE0 },
	{ REGION, VIOMMU },
};

#define VIRT_ID 0x42
#define REGION_DATA 0x5eed
#define EVENT_SIZE (sizeof(struct iommufd_vevent_header) + \
		    sizeof(struct iommu_viommu_event_selftest))

struct graph {
	/* For test commands, has no objects of its own */
	int fd;
	int pipe[2];
	uint32_t iommu_id;
	uint64_t inits;
	uint64_t destroys;
	uint64_t revokes;
	/* How often each page of the buffer is held when nothing is */
	uint32_t refs;

	/*
	 * What there is, as the model has it, and was there from the beginning
	 */
	uint32_t alive;
	uint32_t made;
	uint32_t mapped;
	enum node attached;
	bool revoked;
	bool closed;
	uint64_t expected_revokes;

	int vm_fd;
	uint32_t id[NUM_NODES];
	uint32_t device_id;
	int event_fd;
	uint32_t *region;
	uint32_t sequence;

	/*
	 * What is tried in which order, and how far that is, to tell of a
	 * failure
	 */
	enum node order[NUM_NODES];
	unsigned int step;
	unsigned int num_runs;
	time_t start;
};

FIXTURE(iommufd_order)
{
	struct graph graph;
};

FIXTURE_VARIANT(iommufd_order)
{
	/* All of these are made, those in the order are taken away first */
	uint32_t made;
	enum node attached;
	unsigned int num;
	enum node order[NUM_NODES];
};

#define MADE_VIOMMU (BIT(IOAS) | BIT(DEVICE) | BIT(PARENT) | BIT(VIOMMU))
#define MADE_NESTED (MADE_VIOMMU | BIT(VDEVICE) | BIT(NESTED))
#define MADE_EVENTS (BIT(VEVENTQ) | BIT(FD))
#define MADE_QUEUES (BIT(HW_QUEUE0) | BIT(HW_QUEUE1))

/* Each order ascends, so that it is the first one */
FIXTURE_VARIANT_ADD(iommufd_order, attached)
{
	.made = MADE_NESTED,
	.attached = NESTED,
	.num = 6,
	.order = { IOAS, DEVICE, PARENT, VIOMMU, VDEVICE, NESTED },
};

FIXTURE_VARIANT_ADD(iommufd_order, not_attached)
{
	.made = MADE_NESTED,
	.attached = NOWHERE,
	.num = 6,
	.order = { IOAS, DEVICE, PARENT, VIOMMU, VDEVICE, NESTED },
};

FIXTURE_VARIANT_ADD(iommufd_order, attached_to_parent)
{
	.made = MADE_VIOMMU | BIT(VDEVICE),
	.attached = PARENT,
	.num = 5,
	.order = { IOAS, DEVICE, PARENT, VIOMMU, VDEVICE },
};

FIXTURE_VARIANT_ADD(iommufd_order, events)
{
	.made = MADE_NESTED | MADE_EVENTS,
	.attached = NESTED,
	.num = 6,
	.order = { DEVICE, VIOMMU, VDEVICE, NESTED, VEVENTQ, FD },
};

FIXTURE_VARIANT_ADD(iommufd_order, queues)
{
	.made = MADE_VIOMMU | MADE_QUEUES | BIT(REGION),
	.attached = NOWHERE,
	.num = 6,
	.order = { IOAS, PARENT, VIOMMU, HW_QUEUE0, HW_QUEUE1, REGION },
};

FIXTURE_VARIANT_ADD(iommufd_order, files)
{
	.made = MADE_VIOMMU | MADE_EVENTS | BIT(HW_QUEUE0) | BIT(REGION),
	.attached = PARENT,
	.num = 6,
	.order = { PARENT, VIOMMU, VEVENTQ, FD, HW_QUEUE0, REGION },
};

FIXTURE_VARIANT_ADD(iommufd_order, everything)
{
	.made = MADE_NESTED | MADE_EVENTS | MADE_QUEUES | BIT(REGION),
	.attached = NESTED,
	.num = 6,
	.order = { DEVICE, VIOMMU, VDEVICE, NESTED, FD, HW_QUEUE1 },
};

/* The next order in the sense of a dictionary, false if it was the last one */
static bool next_order(enum node *order, unsigned int num)
{
	unsigned int i, j;
	enum node tmp;

	for (i = num - 1; i && order[i - 1] > order[i]; i--)
		;
	if (!i)
		return false;
	for (j = num - 1; order[j] < order[i - 1]; j--)
		;
	tmp = order[i - 1];
	order[i - 1] = order[j];
	order[j] = tmp;
	for (j = num - 1; i < j; i++, j--) {
		tmp = order[i];
		order[i] = order[j];
		order[j] = tmp;
	}
	return true;
}

/*
 * When something happens after @step of them, those are enough that differ
 * until then. Of the orders that do not, this is the first.
 */
static bool first_with_prefix(const enum node *order, unsigned int num,
			      unsigned int step)
{
	for (step++; step < num; step++)
		if (order[step - 1] > order[step])
			return false;
	return true;
}

static bool is_alive(struct graph *graph, enum node node)
{
	return graph->alive & BIT(node);
}

/* What has no ID is not of the iommufd, and is there until it is taken away */
static bool has_id(enum node node)
{
	return node != FD && node != REGION;
}

static bool is_used(struct graph *graph, enum node node)
{
	enum node user;
	unsigned int i;

	for (i = 0; i != ARRAY_SIZE(edges); i++) {
		user = edges[i].user;
		if (edges[i].used != node || !is_alive(graph, user))
			continue;
		if (graph->revoked && !edges[i].stays)
			continue;
		if (user == DEVICE && graph->attached != node)
			continue;
		return true;
	}
	return false;
}

static void describe(struct __test_metadata *_metadata, struct graph *graph,
		     const char *what, enum node node)
{
	char text[256];
	unsigned int i;
	int len = 0;

	for (i = 0; i != NUM_NODES && graph->order[i] != NOWHERE; i++)
		len += snprintf(text + len, sizeof(text) - len, "%s%s",
				i == graph->step ? " | " : " ",
				node_names[graph->order[i]]);
	TH_LOG("%s %s%s%s in:%s", what, node_names[node],
	       graph->revoked ? ", revoked" : "",
	       graph->closed ? ", closed" : "", text);
}

#define expect(want, what, node, call)                                   \
	do {                                                             \
		int __err = (call) ? errno : 0;                          \
		int __want = want;                                       \
									 \
		if (__err != __want)                                     \
			describe(_metadata, graph, what, node);          \
		ASSERT_EQ(__want, __err);                                \
	} while (0)

static int ioas_map(struct graph *graph, unsigned int page)
{
	__u64 iova = MOCK_APERTURE_START + page * PAGE_SIZE;

	return _test_ioctl_ioas_map(graph->vm_fd, graph->id[IOAS],
				    buffer + page * PAGE_SIZE, PAGE_SIZE, &iova,
				    IOMMU_IOAS_MAP_FIXED_IOVA |
					    IOMMU_IOAS_MAP_WRITEABLE |
					    IOMMU_IOAS_MAP_READABLE);
}

static int ioas_unmap(struct graph *graph, unsigned int page)
{
	return _test_ioctl_ioas_unmap(graph->vm_fd, graph->id[IOAS],
				      MOCK_APERTURE_START + page * PAGE_SIZE,
				      PAGE_SIZE, NULL);
}

static void make_device(struct __test_metadata *_metadata, struct graph *graph)
{
	uint32_t flags = 0;

	if (graph->attached == NOWHERE)
		flags = MOCK_FLAGS_DEVICE_BIND_ONLY;
	ASSERT_EQ(0, _test_cmd_mock_domain_iommu(graph->vm_fd, graph->id[IOAS],
						 graph->iommu_id, flags,
						 &graph->id[DEVICE], NULL,
						 &graph->device_id));
}

static void make_viommu(struct __test_metadata *_metadata, struct graph *graph)
{
	struct iommu_viommu_selftest data = { .in_data = REGION_DATA };

	ASSERT_EQ(0, _test_cmd_viommu_alloc(graph->vm_fd, graph->device_id,
					    graph->id[PARENT], 0,
					    IOMMU_VIOMMU_TYPE_SELFTEST, &data,
					    sizeof(data), &graph->id[VIOMMU]));
	if (!(graph->made & BIT(REGION)))
		return;
	graph->region = mmap(NULL, data.out_mmap_length, PROT_READ | PROT_WRITE,
			     MAP_SHARED, graph->vm_fd, data.out_mmap_offset);
	ASSERT_NE(MAP_FAILED, graph->region);
}

static void make_nested(struct __test_metadata *_metadata, struct graph *graph)
{
	struct iommu_hwpt_selftest data = {
		.iotlb = IOMMU_TEST_IOTLB_DEFAULT,
	};

	ASSERT_EQ(0, _test_cmd_hwpt_alloc(graph->vm_fd, graph->device_id,
					  graph->id[VIOMMU], 0, 0,
					  &graph->id[NESTED],
					  IOMMU_HWPT_DATA_SELFTEST, &data,
					  sizeof(data)));
}

static void make(struct __test_metadata *_metadata, struct graph *graph,
		 enum node node)
{
	unsigned int i;

	switch (node) {
	case IOAS:
		ASSERT_EQ(0, _test_ioctl_ioas_alloc(graph->vm_fd,
						    &graph->id[IOAS]));
		for (i = 0; i != NUM_PAGES; i++)
			if (graph->mapped & BIT(i))
				ASSERT_EQ(0, ioas_map(graph, i));
		break;
	case DEVICE:
		make_device(_metadata, graph);
		break;
	case PARENT:
		ASSERT_EQ(0, _test_cmd_hwpt_alloc(graph->vm_fd,
						  graph->device_id,
						  graph->id[IOAS], 0,
						  IOMMU_HWPT_ALLOC_NEST_PARENT,
						  &graph->id[PARENT],
						  IOMMU_HWPT_DATA_NONE, NULL,
						  0));
		break;
	case VIOMMU:
		make_viommu(_metadata, graph);
		break;
	case VDEVICE:
		ASSERT_EQ(0, _test_cmd_vdevice_alloc(graph->vm_fd,
						     graph->id[VIOMMU],
						     graph->device_id, VIRT_ID,
						     &graph->id[VDEVICE]));
		break;
	case NESTED:
		make_nested(_metadata, graph);
		break;
	case VEVENTQ:
		ASSERT_EQ(0, _test_cmd_veventq_alloc(graph->vm_fd,
						     graph->id[VIOMMU],
						     IOMMU_VEVENTQ_TYPE_SELFTEST,
						     64, &graph->id[VEVENTQ],
						     &graph->event_fd));
		break;
	case HW_QUEUE0:
	case HW_QUEUE1:
		i = node - HW_QUEUE0;
		ASSERT_EQ(0, _test_cmd_hw_queue_alloc(graph->vm_fd,
						      graph->id[VIOMMU],
						      IOMMU_HW_QUEUE_TYPE_SELFTEST,
						      i, MOCK_APERTURE_START +
								 i * PAGE_SIZE,
						      PAGE_SIZE,
						      &graph->id[node]));
		break;
	default:
		/* Come with the vEVENTQ and the vIOMMU */
		break;
	}
}

static void make_all(struct __test_metadata *_metadata, struct graph *graph,
		     uint32_t made, enum node attached)
{
	enum node node;

	graph->vm_fd = open("/dev/iommu", O_RDWR);
	ASSERT_NE(-1, graph->vm_fd);
	graph->made = made;
	graph->alive = made;
	graph->attached = attached;
	graph->revoked = false;
	graph->closed = false;
	graph->sequence = 0;
	graph->mapped = BIT(NUM_QUEUES);
	if (made & BIT(HW_QUEUE0))
		graph->mapped |= BIT(0);
	if (made & BIT(HW_QUEUE1))
		graph->mapped |= BIT(1);
	for (node = 0; node != NUM_NODES; node++)
		if (made & BIT(node))
			make(_metadata, graph, node);
	/*
	 * From the automatic HWPT, which goes with that, so that none is left
	 */
	if (attached != NOWHERE)
		ASSERT_EQ(0, _test_cmd_mock_domain_replace(graph->vm_fd,
							   graph->id[DEVICE],
							   graph->id[attached],
							   NULL));
}

/* What every ID answers to an ioctl that takes one of any kind */
static void check_id(struct __test_metadata *_metadata, struct graph *graph,
		     enum node node)
{
	struct iommu_hwpt_invalidate cmd = {
		.size = sizeof(cmd),
		.hwpt_id = graph->id[node],
		.data_type = IOMMU_HWPT_INVALIDATE_DATA_SELFTEST_INVALID,
	};
	int want = EINVAL;

	if (!is_alive(graph, node))
		want = ENOENT;
	/* These two belong to no physical IOMMU */
	else if (graph->revoked && node != IOAS && node != DEVICE)
		want = ENODEV;
	expect(want, "ID of", node,
	       ioctl(graph->vm_fd, IOMMU_HWPT_INVALIDATE, &cmd));
}

static int expected_state(struct graph *graph, enum node node)
{
	int state = 0;

	if (!is_alive(graph, node))
		state = ENOENT;
	else if (graph->revoked)
		state = ENODEV;
	return state;
}

static int parent_check_map(struct graph *graph)
{
	struct iommu_test_cmd cmd = {
		.size = sizeof(cmd),
		.op = IOMMU_TEST_OP_MD_CHECK_MAP,
		.id = graph->id[PARENT],
		.check_map = {
			.iova = MOCK_APERTURE_START + NUM_QUEUES * PAGE_SIZE,
			.length = PAGE_SIZE,
			.uptr = (uintptr_t)buffer + NUM_QUEUES * PAGE_SIZE,
		},
	};

	return ioctl(graph->vm_fd, IOMMU_TEST_CMD, &cmd);
}

static int nested_check_iotlb(struct graph *graph)
{
	struct iommu_test_cmd cmd = {
		.size = sizeof(cmd),
		.op = IOMMU_TEST_OP_MD_CHECK_IOTLB,
		.id = graph->id[NESTED],
		.check_iotlb = { .iotlb = IOMMU_TEST_IOTLB_DEFAULT },
	};

	return ioctl(graph->vm_fd, IOMMU_TEST_CMD, &cmd);
}

static int viommu_invalidate(struct graph *graph)
{
	struct iommu_viommu_invalidate_selftest entry = { .vdev_id = VIRT_ID };
	struct iommu_hwpt_invalidate cmd = {
		.size = sizeof(cmd),
		.hwpt_id = graph->id[VIOMMU],
		.data_uptr = (uintptr_t)&entry,
		.data_type = IOMMU_VIOMMU_INVALIDATE_DATA_SELFTEST,
		.entry_len = sizeof(entry),
		.entry_num = 1,
	};

	return ioctl(graph->vm_fd, IOMMU_HWPT_INVALIDATE, &cmd);
}

/* An ID that user space has does not answer for what the object can do */
static void check_works(struct __test_metadata *_metadata, struct graph *graph)
{
	int want;

	expect(expected_state(graph, PARENT), "map of", PARENT,
	       parent_check_map(graph));

	want = expected_state(graph, VIOMMU);
	expect(want, "call of", VIOMMU,
	       _test_cmd_viommu_call(graph->vm_fd, graph->id[VIOMMU]));
	if (graph->made & BIT(VDEVICE)) {
		if (!want && !is_alive(graph, VDEVICE))
			want = EINVAL;
		expect(want, "invalidation of", VDEVICE,
		       viommu_invalidate(graph));
	}
	if (graph->made & BIT(NESTED))
		expect(expected_state(graph, NESTED), "IOTLB of", NESTED,
		       nested_check_iotlb(graph));
}

/*
 * The page of a queue cannot be unmapped until that is destroyed, and then it
 * can
 */
static void check_pages(struct __test_metadata *_metadata, struct graph *graph)
{
	unsigned int i;
	int want;

	for (i = 0; i != NUM_QUEUES; i++) {
		if (!(graph->mapped & BIT(i)))
			continue;
		want = 0;
		if (!is_alive(graph, IOAS))
			want = ENOENT;
		else if (is_alive(graph, HW_QUEUE0 + i))
			want = EBUSY;
		expect(want, "unmap of", IOAS, ioas_unmap(graph, i));
		if (!want)
			graph->mapped &= ~BIT(i);
	}
}

/*
 * A device on the nested HWPT, known by a virtual ID, and a queue: all it takes
 */
static void check_event(struct __test_metadata *_metadata, struct graph *graph)
{
	struct {
		struct iommufd_vevent_header header;
		struct iommu_viommu_event_selftest data;
	} event;
	int want = expected_state(graph, DEVICE);

	if (!want && (graph->attached != NESTED || !is_alive(graph, VDEVICE)))
		want = ENOENT;
	else if (!want && !is_alive(graph, VEVENTQ))
		want = EOPNOTSUPP;
	expect(want, "event of", DEVICE,
	       _test_cmd_trigger_vevent(graph->vm_fd, graph->device_id, false));
	if (!is_alive(graph, FD) || want)
		return;
	ASSERT_EQ(EVENT_SIZE, sizeof(event));
	expect(0, "read of", FD,
	       read(graph->event_fd, &event, sizeof(event)) != sizeof(event));
	EXPECT_EQ(0, event.header.flags);
	EXPECT_EQ(graph->sequence, event.header.sequence);
	EXPECT_EQ(VIRT_ID, event.data.virt_id);
	graph->sequence++;
}

/* These work with the file closed, too */
static void check_fd(struct __test_metadata *_metadata, struct graph *graph)
{
	struct pollfd pollfd = { .fd = graph->event_fd, .events = POLLIN };
	char data[EVENT_SIZE];

	ASSERT_NE(-1, poll(&pollfd, 1, 0));
	EXPECT_EQ(graph->revoked ? POLLHUP : 0, pollfd.revents);
	expect(graph->revoked ? ENODEV : 0, "empty read of", FD,
	       read(graph->event_fd, data, sizeof(data)));
}

/* A system call gets EFAULT where the test would get SIGBUS */
static void check_region(struct __test_metadata *_metadata, struct graph *graph)
{
	uint32_t data = 0;

	expect(graph->revoked ? EFAULT : 0, "access to", REGION,
	       write(graph->pipe[1], graph->region, sizeof(data)) !=
		       sizeof(data));
	if (graph->revoked)
		return;
	ASSERT_EQ(sizeof(data), read(graph->pipe[0], &data, sizeof(data)));
	EXPECT_EQ(REGION_DATA, data);
}

static void check_all(struct __test_metadata *_metadata, struct graph *graph)
{
	enum node node;

	if (is_alive(graph, FD))
		check_fd(_metadata, graph);
	if (is_alive(graph, REGION))
		check_region(_metadata, graph);
	if (graph->closed)
		return;

	for (node = 0; node != NUM_NODES; node++)
		if ((graph->made & BIT(node)) && has_id(node))
			check_id(_metadata, graph, node);
	check_works(_metadata, graph);
	check_pages(_metadata, graph);
	check_event(_metadata, graph);
}

/* Try to, and see that it is as the model says */
static void take(struct __test_metadata *_metadata, struct graph *graph,
		 enum node node)
{
	int want = 0;

	if (node == FD) {
		ASSERT_EQ(0, close(graph->event_fd));
	} else if (node == REGION) {
		ASSERT_EQ(0, munmap(graph->region, 2 * PAGE_SIZE));
	} else {
		if (!is_alive(graph, node))
			want = ENOENT;
		else if (is_used(graph, node))
			want = EBUSY;
		expect(want, "destroy", node,
		       _test_ioctl_destroy(graph->vm_fd, graph->id[node]));
		if (!want)
			expect(ENOENT, "destroy twice", node,
			       _test_ioctl_destroy(graph->vm_fd,
						   graph->id[node]));
	}
	if (want)
		return;
	graph->alive &= ~BIT(node);
	/* It goes with its device, unless only a revoked one is left */
	if (node == DEVICE && !graph->revoked)
		graph->alive &= ~BIT(VDEVICE);
}

/* Each node of the order once, up to the step */
static void take_until(struct __test_metadata *_metadata, struct graph *graph,
		       unsigned int step)
{
	for (; graph->step != step; graph->step++) {
		take(_metadata, graph, graph->order[graph->step]);
		check_all(_metadata, graph);
	}
}

/* Once more, those that were in use, until there is nothing left */
static void take_rest(struct __test_metadata *_metadata, struct graph *graph)
{
	uint32_t before;
	enum node node;

	while (graph->alive) {
		before = graph->alive;
		for (node = 0; node != NUM_NODES; node++)
			if (is_alive(graph, node) &&
			    (!graph->closed || !has_id(node)))
				take(_metadata, graph, node);
		check_all(_metadata, graph);
		ASSERT_NE(before, graph->alive);
	}
}

static void unregister(struct __test_metadata *_metadata, struct graph *graph)
{
	if (is_alive(graph, VIOMMU))
		graph->expected_revokes++;
	ASSERT_EQ(0, _test_cmd_iommu_unregister(graph->fd, graph->iommu_id));
	graph->revoked = true;
	check_all(_metadata, graph);
	ASSERT_EQ(0, _test_cmd_iommu_register(graph->fd, 0, &graph->iommu_id));
}

/*
 * What the file is needed for keeps it: a process that has a file descriptor of an
 * event queue or a part of a region has everything else as well.
 */
static void close_vm(struct __test_metadata *_metadata, struct graph *graph)
{
	ASSERT_EQ(0, close(graph->vm_fd));
	graph->closed = true;
	graph->alive &= BIT(FD) | BIT(REGION);
	check_all(_metadata, graph);
}

static int check_page_refs(struct graph *graph, uint32_t refs)
{
	struct iommu_test_cmd cmd = {
		.size = sizeof(cmd),
		.op = IOMMU_TEST_OP_MD_CHECK_REFS,
		.check_refs = {
			.length = BUFFER_SIZE,
			.uptr = (uintptr_t)buffer,
			.refs = refs,
		},
	};

	return ioctl(graph->fd, IOMMU_TEST_CMD, &cmd);
}

/* Every page that was pinned is not, and every vIOMMU was destroyed, once */
static void check_nothing_left(struct __test_metadata *_metadata,
			       struct graph *graph)
{
	uint64_t inits, destroys, revokes;

	if (!graph->closed) {
		uint32_t id;

		/*
		 * IDs are given out lowest first. A vDEVICE may have kept its.
		 */
		ASSERT_EQ(0, _test_ioctl_ioas_alloc(graph->vm_fd, &id));
		EXPECT_EQ(1, id);
		ASSERT_EQ(0, close(graph->vm_fd));
	}
	graph->vm_fd = -1;
	expect(0, "pages pinned after", IOAS,
	       check_page_refs(graph, graph->refs));
	ASSERT_EQ(0, _test_cmd_viommu_stats(graph->fd, &inits, &destroys,
					    &revokes));
	ASSERT_EQ(++graph->inits, inits);
	ASSERT_EQ(++graph->destroys, destroys);
	ASSERT_EQ(graph->expected_revokes, revokes - graph->revokes);
}

FIXTURE_SETUP(iommufd_order)
{
	struct graph *graph = &self->graph;
	unsigned int i;

	BUFFER_SIZE = PAGE_SIZE * NUM_PAGES;
	buffer = mmap(NULL, BUFFER_SIZE, PROT_READ | PROT_WRITE,
		      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, buffer);
	/* Each page for itself, one holds a reference on all of a huge one */
	madvise(buffer, BUFFER_SIZE, MADV_NOHUGEPAGE);
	memset(buffer, 1, BUFFER_SIZE);

	graph->start = time(NULL);
	graph->vm_fd = -1;
	graph->fd = open("/dev/iommu", O_RDWR);
	ASSERT_NE(-1, graph->fd);
	ASSERT_EQ(0, unpark_all(graph->fd));
	ASSERT_EQ(0, pipe(graph->pipe));
	ASSERT_EQ(0, _test_cmd_iommu_register(graph->fd, 0, &graph->iommu_id));
	ASSERT_EQ(0, _test_cmd_viommu_stats(graph->fd, &graph->inits,
					    &graph->destroys, &graph->revokes));
	while (check_page_refs(graph, graph->refs))
		ASSERT_GT(100, graph->refs++);
	for (i = 0; i != NUM_NODES; i++)
		graph->order[i] = i < variant->num ? variant->order[i] :
						     NOWHERE;
}

FIXTURE_TEARDOWN(iommufd_order)
{
	struct graph *graph = &self->graph;

	if (graph->vm_fd != -1)
		close(graph->vm_fd);
	EXPECT_EQ(0, _test_cmd_iommu_unregister(graph->fd, graph->iommu_id));
	EXPECT_EQ(0, close(graph->pipe[0]));
	EXPECT_EQ(0, close(graph->pipe[1]));
	EXPECT_EQ(0, close(graph->fd));
}

#define NEVER NUM_NODES
/*
 * After how many steps something happens, so that this does not take for ever
 */
#define MAX_ON_THE_WAY 3
/*
 * A kernel with all checkers takes a hundred times as long. There, after so
 * many seconds a test goes on with some of its orders. The number is a prime,
 * so that they are not all alike.
 */
#define MAX_SECONDS 1
#define SAMPLE 17

/*
 * Take all away, with the IOMMU that goes and the file that is closed on the
 * way
 */
static void run_order(struct __test_metadata *_metadata, struct graph *graph,
		      uint32_t made, enum node attached, unsigned int num,
		      unsigned int revoke_at, unsigned int close_at)
{
	if (graph->num_runs++ % SAMPLE &&
	    time(NULL) > graph->start + MAX_SECONDS)
		return;
	graph->step = 0;
	make_all(_metadata, graph, made, attached);
	check_all(_metadata, graph);
	if (revoke_at != NEVER) {
		take_until(_metadata, graph, revoke_at);
		unregister(_metadata, graph);
	}
	take_until(_metadata, graph, close_at == NEVER ? num : close_at);
	if (close_at != NEVER)
		close_vm(_metadata, graph);
	take_rest(_metadata, graph);
	check_nothing_left(_metadata, graph);
}

#define run(revoke_at, close_at)                                     \
	run_order(_metadata, &self->graph, variant->made,            \
		  variant->attached, variant->num, revoke_at, close_at)

TEST_F_TIMEOUT(iommufd_order, L7_destroy, 600)
{
	do
		run(NEVER, NEVER);
	while (next_order(self->graph.order, variant->num));
}

TEST_F_TIMEOUT(iommufd_order, L6_destroy_revoked, 600)
{
	do
		run(0, NEVER);
	while (next_order(self->graph.order, variant->num));
}

/* Some of it is destroyed before, some in vain, and the rest after it */
TEST_F_TIMEOUT(iommufd_order, L6_revoke_on_the_way, 600)
{
	unsigned int at;

	do {
		for (at = 1; at <= MAX_ON_THE_WAY; at++) {
			if (first_with_prefix(self->graph.order, variant->num,
					      at))
				run(at, NEVER);
		}
	} while (next_order(self->graph.order, variant->num));
}

TEST_F_TIMEOUT(iommufd_order, L7_close_on_the_way, 600)
{
	unsigned int at;

	do {
		for (at = 0; at <= MAX_ON_THE_WAY; at++) {
			if (first_with_prefix(self->graph.order, variant->num,
					      at))
				run(NEVER, at);
		}
	} while (next_order(self->graph.order, variant->num));
}

TEST_F_TIMEOUT(iommufd_order, L6_close_revoked_on_the_way, 600)
{
	unsigned int at;

	do {
		for (at = 0; at <= MAX_ON_THE_WAY; at++) {
			if (first_with_prefix(self->graph.order, variant->num,
					      at))
				run(0, at);
		}
	} while (next_order(self->graph.order, variant->num));
}

/*
 * A vDEVICE can be destroyed while its device is attached. To attach the
 * device to another HWPT of the vIOMMU is refused then, and leaves it where it
 * was.
 */
TEST(L12_replace_without_vdevice)
{
	struct iommu_hwpt_selftest data = {};
	uint32_t viommu_id, vdevice_id, hwpt_id[2];
	struct vm vm;
	int i;

	ASSERT_EQ(0, vm_open(&vm, 0));
	ASSERT_EQ(0, _test_cmd_viommu_alloc(vm.fd, vm.device_id, vm.parent_id,
					    0, IOMMU_VIOMMU_TYPE_SELFTEST, NULL,
					    0, &viommu_id));
	ASSERT_EQ(0, _test_cmd_vdevice_alloc(vm.fd, viommu_id, vm.device_id,
					     VIRT_ID, &vdevice_id));
	for (i = 0; i != 2; i++)
		ASSERT_EQ(0, _test_cmd_hwpt_alloc(vm.fd, vm.device_id,
						  viommu_id, 0, 0, &hwpt_id[i],
						  IOMMU_HWPT_DATA_SELFTEST,
						  &data, sizeof(data)));
	ASSERT_EQ(0, _test_cmd_mock_domain_replace(vm.fd, vm.stdev_id,
						   hwpt_id[0], NULL));
	ASSERT_EQ(0, _test_ioctl_destroy(vm.fd, vdevice_id));

	EXPECT_ERRNO(ENOENT, _test_cmd_mock_domain_replace(vm.fd, vm.stdev_id,
							   hwpt_id[1], NULL));
	EXPECT_ERRNO(EBUSY, _test_ioctl_destroy(vm.fd, hwpt_id[0]));
	ASSERT_EQ(0, _test_ioctl_destroy(vm.fd, hwpt_id[1]));

	/* With a virtual ID again, all is as if nothing had been */
	ASSERT_EQ(0, _test_cmd_vdevice_alloc(vm.fd, viommu_id, vm.device_id,
					     VIRT_ID, &vdevice_id));
	ASSERT_EQ(0, _test_cmd_mock_domain_replace(vm.fd, vm.stdev_id,
						   vm.parent_id, NULL));
	ASSERT_EQ(0, _test_ioctl_destroy(vm.fd, hwpt_id[0]));
	ASSERT_EQ(0, close(vm.fd));
}

TEST_HARNESS_MAIN
