// SPDX-License-Identifier: GPL-2.0-only
/*
 * KUnit tests of the DMA API for devices that lose their IOMMU: nothing that their
 * drivers do afterwards reaches it, and nobody waits for them.
 */
#include <kunit/device.h>
#include <kunit/test.h>
#include <linux/completion.h>
#include <linux/delay.h>
#include <linux/dma-mapping.h>
#include <linux/iommu.h>
#include <linux/kthread.h>
#include <linux/platform_device.h>
#include <linux/property.h>
#include <linux/scatterlist.h>
#include <linux/slab.h>
#include <linux/xarray.h>

#include "iommu-priv.h"

struct test_iommu {
	struct iommu_device iommu;
	struct device *hwdev;
	struct fwnode_handle *fwnode;
	struct platform_device *pdev;
	bool one_group;
	unsigned int type;
	/* How many domains there are, and calls of their ops so far */
	atomic_t domains;
	atomic_t calls;
	/* All allocation flags that were passed to these ops so far */
	gfp_t gfp;

	/* A thread that calls, or is about to call, into the driver */
	struct task_struct *thread;
	struct device *dev;
	struct completion begun;
	struct completion ended;
	/* The next call that maps stops there until the test lets it go */
	bool park;
	bool go;
	bool mapped;
};

struct test_domain {
	struct iommu_domain domain;
	struct test_iommu *t;
	struct xarray pages;
};

static struct test_domain *to_test_domain(struct iommu_domain *domain)
{
	return container_of(domain, struct test_domain, domain);
}

static struct test_iommu *dev_to_test(struct device *dev)
{
	struct test_iommu **t = dev_get_platdata(dev);

	return t ? *t : NULL;
}

/* Mapping must not sleep, so this spins. The test ends it long before 5 s. */
static void test_park(struct test_iommu *t)
{
	/* Not by mdelay(): a virtual machine can be wrong about its speed */
	unsigned long end = jiffies + 5 * HZ;

	if (!READ_ONCE(t->park))
		return;
	WRITE_ONCE(t->park, false);
	complete(&t->begun);
	while (!READ_ONCE(t->go) && time_before(jiffies, end))
		cpu_relax();
}

static int test_attach(struct iommu_domain *domain, struct device *dev)
{
	return 0;
}

static int test_map_pages(struct iommu_domain *domain, unsigned long iova,
			  phys_addr_t paddr, size_t pgsize, size_t pgcount,
			  int prot, gfp_t gfp, size_t *mapped)
{
	struct test_domain *d = to_test_domain(domain);
	int ret;

	atomic_inc(&d->t->calls);
	d->t->gfp |= gfp;
	test_park(d->t);
	for (; pgcount; pgcount--) {
		ret = xa_err(xa_store(&d->pages, iova / PAGE_SIZE,
				      xa_mk_value(paddr / PAGE_SIZE), gfp));
		if (ret)
			return ret;
		iova += pgsize;
		paddr += pgsize;
		*mapped += pgsize;
	}
	return 0;
}

static size_t test_unmap_pages(struct iommu_domain *domain, unsigned long iova,
			       size_t pgsize, size_t pgcount,
			       struct iommu_iotlb_gather *gather)
{
	struct test_domain *d = to_test_domain(domain);
	size_t unmapped = 0;

	atomic_inc(&d->t->calls);
	for (; pgcount && xa_erase(&d->pages, iova / PAGE_SIZE); pgcount--) {
		iova += pgsize;
		unmapped += pgsize;
	}
	return unmapped;
}

static phys_addr_t test_iova_to_phys(struct iommu_domain *domain,
				     dma_addr_t iova)
{
	struct test_domain *d = to_test_domain(domain);
	void *entry = xa_load(&d->pages, iova / PAGE_SIZE);

	atomic_inc(&d->t->calls);
	return entry ? xa_to_value(entry) * PAGE_SIZE + iova % PAGE_SIZE : 0;
}

static void test_flush(struct iommu_domain *domain)
{
	atomic_inc(&to_test_domain(domain)->t->calls);
}

static void test_free(struct iommu_domain *domain)
{
	struct test_domain *d = to_test_domain(domain);

	atomic_dec(&d->t->domains);
	xa_destroy(&d->pages);
	kfree(d);
}

static const struct iommu_domain_ops test_domain_ops = {
	.attach_dev = test_attach,
	.map_pages = test_map_pages,
	.unmap_pages = test_unmap_pages,
	.iova_to_phys = test_iova_to_phys,
	.flush_iotlb_all = test_flush,
	.free = test_free,
};

static struct iommu_domain *test_domain_alloc(struct device *dev)
{
	struct test_domain *d = kzalloc(sizeof(*d), GFP_KERNEL);

	if (!d)
		return ERR_PTR(-ENOMEM);
	d->t = dev_to_test(dev);
	atomic_inc(&d->t->domains);
	xa_init_flags(&d->pages, XA_FLAGS_LOCK_IRQ);
	d->domain.geometry.aperture_end = DMA_BIT_MASK(32);
	return &d->domain;
}

static struct iommu_domain test_identity_domain = {
	.type = IOMMU_DOMAIN_IDENTITY,
	.ops = &(const struct iommu_domain_ops){ .attach_dev = test_attach },
};

static struct iommu_domain test_blocked_domain = {
	.type = IOMMU_DOMAIN_BLOCKED,
	.ops = &(const struct iommu_domain_ops){ .attach_dev = test_attach },
};

static bool test_capable(struct device *dev, enum iommu_cap cap)
{
	return cap == IOMMU_CAP_DEFERRED_FLUSH;
}

static struct iommu_device *test_probe_device(struct device *dev)
{
	struct test_iommu *t = dev_to_test(dev);

	return t ? &t->iommu : ERR_PTR(-ENODEV);
}

static int test_def_domain_type(struct device *dev)
{
	return dev_to_test(dev)->type;
}

static struct iommu_group *test_device_group(struct device *dev)
{
	return dev_to_test(dev)->one_group ? generic_single_device_group(dev) :
					     generic_device_group(dev);
}

static const struct iommu_ops test_ops = {
	.identity_domain = &test_identity_domain,
	.blocked_domain = &test_blocked_domain,
	.domain_alloc_paging = test_domain_alloc,
	.pgsize_bitmap = PAGE_SIZE,
	.capable = test_capable,
	.probe_device = test_probe_device,
	.def_domain_type = test_def_domain_type,
	.device_group = test_device_group,
	.default_domain_ops = &test_domain_ops,
};

/* The steps of each driver bind, without those of the bus */
static int test_probe(struct test_iommu *t, struct device *dev)
{
	int ret;

	mutex_lock(&iommu_probe_device_lock);
	ret = iommu_fwspec_init(dev, t->fwnode);
	mutex_unlock(&iommu_probe_device_lock);
	return ret ?: iommu_probe_device(dev);
}

static struct platform_device *test_plug(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	struct platform_device *pdev;

	pdev = platform_device_register_data(NULL, "iommu-dma-test-dev",
					     PLATFORM_DEVID_AUTO, &t,
					     sizeof(t));
	KUNIT_ASSERT_FALSE(test, IS_ERR(pdev));
	KUNIT_ASSERT_EQ(test, 0, test_probe(t, &pdev->dev));
	return pdev;
}

static void test_register(struct kunit *test)
{
	struct test_iommu *t = test->priv;

	KUNIT_ASSERT_EQ(test, 0, iommu_device_register(&t->iommu, &test_ops,
						       t->hwdev));
}

static int test_init_type(struct kunit *test, unsigned int type)
{
	struct test_iommu *t;

	t = kunit_kzalloc(test, sizeof(*t), GFP_KERNEL);
	if (!t)
		return -ENOMEM;
	test->priv = t;
	t->type = type;
	init_completion(&t->begun);
	init_completion(&t->ended);

	t->hwdev = kunit_device_register(test, "iommu-dma-test");
	if (IS_ERR(t->hwdev))
		return PTR_ERR(t->hwdev);
	t->fwnode = fwnode_create_software_node(NULL, NULL);
	if (IS_ERR(t->fwnode))
		return PTR_ERR(t->fwnode);
	set_primary_fwnode(t->hwdev, t->fwnode);
	KUNIT_ASSERT_EQ(test, 0, iommu_device_sysfs_add(&t->iommu, t->hwdev,
							NULL, "%s",
							"test_dma_iommu"));
	test_register(test);
	t->pdev = test_plug(test);
	t->dev = &t->pdev->dev;
	KUNIT_ASSERT_EQ(test, 0, iommu_device_use_default_domain(t->dev));
	return 0;
}

static int test_init(struct kunit *test)
{
	/* What the system has by default, that is translation with a flush queue */
	return test_init_type(test, 0);
}

static int test_init_identity(struct kunit *test)
{
	return test_init_type(test, IOMMU_DOMAIN_IDENTITY);
}

static void test_exit(struct kunit *test)
{
	struct test_iommu *t = test->priv;

	if (!t || IS_ERR_OR_NULL(t->fwnode))
		return;
	if (t->pdev) {
		iommu_device_unuse_default_domain(t->dev);
		platform_device_unregister(t->pdev);
	}
	iommu_device_unregister(&t->iommu);
	KUNIT_EXPECT_EQ(test, 0, atomic_read(&t->domains));
	if (t->iommu.dev)
		iommu_device_sysfs_remove(&t->iommu);
	set_primary_fwnode(t->hwdev, NULL);
	fwnode_remove_software_node(t->fwnode);
}

/* All kinds of mappings that a driver may have when the IOMMU goes away */
struct test_buffers {
	void *page;
	dma_addr_t single;
	struct scatterlist sg[2];
	int nents;
	void *coherent[2];
	dma_addr_t coherent_addr[2];
	struct sg_table *sgt;
	dma_addr_t resource;
};

#define TEST_RESOURCE	0xc0000000

static void test_map_all(struct kunit *test, struct test_buffers *b)
{
	struct test_iommu *t = test->priv;
	struct device *dev = t->dev;

	b->page = (void *)kunit_kzalloc(test, 2 * PAGE_SIZE, GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, b->page);

	b->single = dma_map_single(dev, b->page, PAGE_SIZE, DMA_BIDIRECTIONAL);
	KUNIT_ASSERT_FALSE(test, dma_mapping_error(dev, b->single));
	sg_init_table(b->sg, 2);
	sg_set_buf(&b->sg[0], b->page, 100);
	sg_set_buf(&b->sg[1], b->page + PAGE_SIZE, 200);
	b->nents = dma_map_sg(dev, b->sg, 2, DMA_FROM_DEVICE);
	KUNIT_ASSERT_GT(test, b->nents, 0);
	/* One made of single pages, and one made of contiguous memory */
	b->coherent[0] = dma_alloc_coherent(dev, 3 * PAGE_SIZE,
					    &b->coherent_addr[0], GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, b->coherent[0]);
	b->coherent[1] = dma_alloc_coherent(dev, PAGE_SIZE,
					    &b->coherent_addr[1], GFP_ATOMIC);
	KUNIT_ASSERT_NOT_NULL(test, b->coherent[1]);
	b->sgt = dma_alloc_noncontiguous(dev, 2 * PAGE_SIZE, DMA_TO_DEVICE,
					 GFP_KERNEL, 0);
	KUNIT_ASSERT_NOT_NULL(test, b->sgt);
	/* Page tables do not wait for a disk, which can be one that is lost */
	KUNIT_EXPECT_EQ(test, 0, (__force u32)(t->gfp & (__GFP_IO | __GFP_FS)));
	b->resource = dma_map_resource(dev, TEST_RESOURCE, PAGE_SIZE,
				       DMA_TO_DEVICE, 0);
	KUNIT_ASSERT_FALSE(test, dma_mapping_error(dev, b->resource));
}

static void test_unmap_all(struct kunit *test, struct test_buffers *b)
{
	struct test_iommu *t = test->priv;
	struct device *dev = t->dev;

	dma_sync_single_for_cpu(dev, b->single, PAGE_SIZE, DMA_BIDIRECTIONAL);
	dma_sync_single_for_device(dev, b->single, PAGE_SIZE,
				   DMA_BIDIRECTIONAL);
	dma_sync_sg_for_cpu(dev, b->sg, 2, DMA_FROM_DEVICE);
	dma_unmap_single(dev, b->single, PAGE_SIZE, DMA_BIDIRECTIONAL);
	dma_unmap_sg(dev, b->sg, 2, DMA_FROM_DEVICE);
	/* The CPU can still access the memory */
	memset(b->coherent[0], 1, 3 * PAGE_SIZE);
	dma_free_coherent(dev, 3 * PAGE_SIZE, b->coherent[0],
			  b->coherent_addr[0]);
	dma_free_coherent(dev, PAGE_SIZE, b->coherent[1], b->coherent_addr[1]);
	dma_free_noncontiguous(dev, 2 * PAGE_SIZE, b->sgt, DMA_TO_DEVICE);
	dma_unmap_resource(dev, b->resource, PAGE_SIZE, DMA_TO_DEVICE, 0);
}

static bool test_maps(struct test_iommu *t, struct device *dev)
{
	void *buf = kzalloc(PAGE_SIZE, GFP_KERNEL);
	dma_addr_t addr;
	bool ok;

	addr = dma_map_single(dev, buf, PAGE_SIZE, DMA_TO_DEVICE);
	ok = !dma_mapping_error(dev, addr);
	if (ok)
		dma_unmap_single(dev, addr, PAGE_SIZE, DMA_TO_DEVICE);
	kfree(buf);
	return ok;
}

/* Each way to get a new DMA address fails */
static void test_is_lost(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	struct device *dev = t->dev;
	struct scatterlist sg;
	dma_addr_t addr;
	void *buf;

	buf = kunit_kzalloc(test, PAGE_SIZE, GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, buf);
	KUNIT_EXPECT_FALSE(test, test_maps(t, dev));
	sg_init_one(&sg, buf, 100);
	KUNIT_EXPECT_EQ(test, 0, dma_map_sg(dev, &sg, 1, DMA_TO_DEVICE));
	KUNIT_EXPECT_NULL(test, dma_alloc_coherent(dev, PAGE_SIZE, &addr,
						   GFP_KERNEL));
	KUNIT_EXPECT_NULL(test, dma_alloc_coherent(dev, PAGE_SIZE, &addr,
						   GFP_ATOMIC));
	KUNIT_EXPECT_NULL(test, dma_alloc_noncontiguous(dev, PAGE_SIZE,
							DMA_TO_DEVICE,
							GFP_KERNEL, 0));
	KUNIT_EXPECT_EQ(test, DMA_MAPPING_ERROR,
			dma_map_resource(dev, TEST_RESOURCE, PAGE_SIZE,
					 DMA_TO_DEVICE, 0));
	KUNIT_EXPECT_EQ(test, 0, dma_get_merge_boundary(dev));
	KUNIT_EXPECT_NULL(test, iommu_get_domain_for_dev(dev));
	KUNIT_EXPECT_NULL(test, iommu_lock_domain_for_dev(dev));
}

/* The IOMMU goes away under a bound driver, which is not notified */
static void test_lose(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	struct test_buffers b = {};
	int calls;

	test_map_all(test, &b);
	KUNIT_EXPECT_NE(test, 0, dma_get_merge_boundary(t->dev));
	iommu_device_unregister(&t->iommu);
	KUNIT_EXPECT_EQ(test, 0, atomic_read(&t->domains));

	calls = atomic_read(&t->calls);
	test_is_lost(test);
	test_unmap_all(test, &b);
	test_is_lost(test);
	KUNIT_EXPECT_EQ(test, calls, atomic_read(&t->calls));
}

/* The IOMMU goes away while unmapped IOVAs are in the flush queue */
static void test_lose_flush_queue(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	struct iommu_domain *domain;
	int calls, i;

	domain = iommu_get_domain_for_dev(t->dev);
	if (domain->type != IOMMU_DOMAIN_DMA_FQ)
		kunit_skip(test, "mappings are flushed at once");
	for (i = 0; i != 100; i++)
		KUNIT_EXPECT_TRUE(test, test_maps(t, t->dev));
	iommu_device_unregister(&t->iommu);
	calls = atomic_read(&t->calls);
	/* Longer than the queue's timer takes */
	msleep(50);
	KUNIT_EXPECT_EQ(test, calls, atomic_read(&t->calls));
}

static int unregister_thread(void *arg)
{
	struct test_iommu *t = arg;

	iommu_device_unregister(&t->iommu);
	complete(&t->ended);
	return 0;
}

static int map_thread(void *arg)
{
	struct test_iommu *t = arg;

	t->mapped = test_maps(t, t->dev);
	complete(&t->ended);
	return 0;
}

static int alloc_thread(void *arg)
{
	struct test_iommu *t = arg;
	dma_addr_t addr;
	void *buf;

	buf = dma_alloc_coherent(t->dev, PAGE_SIZE, &addr, GFP_KERNEL);
	t->mapped = buf;
	if (buf)
		dma_free_coherent(t->dev, PAGE_SIZE, buf, addr);
	complete(&t->ended);
	return 0;
}

/* A thread that is in a call is waited for, and its next call fails */
static void test_in_flight(struct kunit *test, int (*fn)(void *))
{
	struct test_iommu *t = test->priv;
	struct task_struct *thread;

	if (num_online_cpus() < 2)
		kunit_skip(test, "one is busy waiting, so it takes two CPUs");

	WRITE_ONCE(t->park, true);
	thread = kthread_run(fn, t, "in flight");
	KUNIT_ASSERT_FALSE(test, IS_ERR(thread));
	wait_for_completion(&t->begun);

	thread = kthread_run(unregister_thread, t, "unregister");
	KUNIT_ASSERT_FALSE(test, IS_ERR(thread));
	msleep(100);
	KUNIT_EXPECT_FALSE(test, completion_done(&t->ended));
	KUNIT_EXPECT_EQ(test, 1, atomic_read(&t->domains));
	/* New calls already fail */
	KUNIT_EXPECT_FALSE(test, test_maps(t, t->dev));

	WRITE_ONCE(t->go, true);
	wait_for_completion(&t->ended);
	wait_for_completion(&t->ended);
	KUNIT_EXPECT_TRUE(test, t->mapped);
	KUNIT_EXPECT_EQ(test, 0, atomic_read(&t->domains));
}

static void test_lose_in_map(struct kunit *test)
{
	test_in_flight(test, map_thread);
}

static void test_lose_in_alloc(struct kunit *test)
{
	test_in_flight(test, alloc_thread);
}

/* Many short calls in a row, until one fails */
static int hammer_thread(void *arg)
{
	struct test_iommu *t = arg;

	while (test_maps(t, t->dev)) {
		if (!t->mapped) {
			t->mapped = true;
			complete(&t->begun);
		}
		cond_resched();
	}
	complete(&t->ended);
	return 0;
}

static void test_lose_under_load(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	struct task_struct *thread;

	thread = kthread_run(hammer_thread, t, "hammer");
	KUNIT_ASSERT_FALSE(test, IS_ERR(thread));
	wait_for_completion(&t->begun);
	iommu_device_unregister(&t->iommu);
	wait_for_completion(&t->ended);
	KUNIT_EXPECT_EQ(test, 0, atomic_read(&t->domains));
}

/* The IOMMU comes back: the driver's old DMA addresses are not valid there */
static void test_come_back(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	struct test_buffers b = {};
	struct iommu_group *group;
	int calls;

	test_map_all(test, &b);
	iommu_device_unregister(&t->iommu);
	test_register(test);
	KUNIT_ASSERT_EQ(test, 0, test_probe(t, t->dev));
	KUNIT_EXPECT_EQ(test, 1, atomic_read(&t->domains));
	KUNIT_EXPECT_NOT_NULL(test, iommu_get_domain_for_dev(t->dev));

	/* The driver stays bound, so nobody else can own the device */
	group = iommu_group_get(t->dev);
	KUNIT_ASSERT_NOT_NULL(test, group);
	KUNIT_EXPECT_TRUE(test, iommu_group_dma_owner_claimed(group));
	KUNIT_EXPECT_EQ(test, -EPERM, iommu_device_claim_dma_owner(t->dev, t));

	calls = atomic_read(&t->calls);
	KUNIT_EXPECT_FALSE(test, test_maps(t, t->dev));
	test_unmap_all(test, &b);
	iommu_device_unuse_default_domain(t->dev);
	KUNIT_EXPECT_FALSE(test, iommu_group_dma_owner_claimed(group));
	/* The driver core frees leftover memory of the driver after that */
	KUNIT_EXPECT_FALSE(test, test_maps(t, t->dev));
	KUNIT_EXPECT_EQ(test, calls, atomic_read(&t->calls));
	iommu_group_put(group);

	KUNIT_EXPECT_EQ(test, 0, iommu_device_use_default_domain(t->dev));
	KUNIT_EXPECT_TRUE(test, test_maps(t, t->dev));
	KUNIT_EXPECT_NE(test, calls, atomic_read(&t->calls));
}

/* The next driver is bound before the IOMMU is back: as without an IOMMU */
static void test_bind_without(struct kunit *test)
{
	struct test_iommu *t = test->priv;

	iommu_device_unregister(&t->iommu);
	iommu_device_unuse_default_domain(t->dev);
	KUNIT_EXPECT_FALSE(test, test_maps(t, t->dev));
	KUNIT_EXPECT_EQ(test, 0, iommu_device_use_default_domain(t->dev));
	KUNIT_EXPECT_TRUE(test, test_maps(t, t->dev));
	iommu_device_unuse_default_domain(t->dev);
}

/* An IOMMU is registered under a driver whose DMA addresses are physical */
static void test_come_late(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	struct iommu_group *group;
	dma_addr_t addr;
	void *buf;
	int calls;

	buf = kunit_kzalloc(test, PAGE_SIZE, GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, buf);
	iommu_device_unregister(&t->iommu);
	iommu_device_unuse_default_domain(t->dev);
	KUNIT_ASSERT_EQ(test, 0, iommu_device_use_default_domain(t->dev));
	addr = dma_map_single(t->dev, buf, PAGE_SIZE, DMA_TO_DEVICE);
	KUNIT_ASSERT_FALSE(test, dma_mapping_error(t->dev, addr));

	test_register(test);
	KUNIT_ASSERT_EQ(test, 0, test_probe(t, t->dev));
	group = iommu_group_get(t->dev);
	KUNIT_ASSERT_NOT_NULL(test, group);
	KUNIT_EXPECT_TRUE(test, iommu_group_dma_owner_claimed(group));
	calls = atomic_read(&t->calls);
	KUNIT_EXPECT_TRUE(test, test_maps(t, t->dev));
	dma_unmap_single(t->dev, addr, PAGE_SIZE, DMA_TO_DEVICE);
	KUNIT_EXPECT_EQ(test, calls, atomic_read(&t->calls));

	iommu_device_unuse_default_domain(t->dev);
	KUNIT_EXPECT_FALSE(test, iommu_group_dma_owner_claimed(group));
	iommu_group_put(group);
	KUNIT_EXPECT_EQ(test, 0, iommu_device_use_default_domain(t->dev));
	KUNIT_EXPECT_TRUE(test, test_maps(t, t->dev));
	KUNIT_EXPECT_NE(test, calls, atomic_read(&t->calls));
}

/* A device is unplugged, and a user who had it open unmaps later */
static void test_unplug(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	struct test_buffers b = {};
	int calls;

	test_map_all(test, &b);
	get_device(t->dev);
	iommu_device_unuse_default_domain(t->dev);
	platform_device_unregister(t->pdev);
	t->pdev = NULL;
	KUNIT_EXPECT_EQ(test, 0, atomic_read(&t->domains));

	calls = atomic_read(&t->calls);
	test_is_lost(test);
	test_unmap_all(test, &b);
	KUNIT_EXPECT_EQ(test, calls, atomic_read(&t->calls));
	put_device(t->dev);
}

/* Two devices with one domain: one loses it, and the other keeps it */
static void test_group(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	struct platform_device *pdev[2];
	int i;

	t->one_group = true;
	for (i = 0; i != 2; i++) {
		pdev[i] = test_plug(test);
		KUNIT_EXPECT_EQ(test, 0,
				iommu_device_use_default_domain(&pdev[i]->dev));
		KUNIT_EXPECT_TRUE(test, test_maps(t, &pdev[i]->dev));
	}
	KUNIT_EXPECT_EQ(test, 2, atomic_read(&t->domains));

	get_device(&pdev[0]->dev);
	iommu_device_unuse_default_domain(&pdev[0]->dev);
	platform_device_unregister(pdev[0]);
	KUNIT_EXPECT_FALSE(test, test_maps(t, &pdev[0]->dev));
	put_device(&pdev[0]->dev);
	KUNIT_EXPECT_TRUE(test, test_maps(t, &pdev[1]->dev));
	KUNIT_EXPECT_TRUE(test, test_maps(t, t->dev));

	iommu_device_unregister(&t->iommu);
	KUNIT_EXPECT_FALSE(test, test_maps(t, &pdev[1]->dev));
	KUNIT_EXPECT_FALSE(test, test_maps(t, t->dev));
	iommu_device_unuse_default_domain(&pdev[1]->dev);
	platform_device_unregister(pdev[1]);
}

/* The group gets a DMA owner before this device is back in it */
static void test_come_back_to_owner(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	struct platform_device *other;

	iommu_device_unregister(&t->iommu);
	t->one_group = true;
	test_register(test);
	other = test_plug(test);
	KUNIT_ASSERT_EQ(test, 0, iommu_device_claim_dma_owner(&other->dev, t));
	KUNIT_EXPECT_EQ(test, -ENODEV, test_probe(t, t->dev));
	KUNIT_EXPECT_FALSE(test, test_maps(t, t->dev));
	iommu_device_release_dma_owner(&other->dev);

	KUNIT_EXPECT_EQ(test, 0, test_probe(t, t->dev));
	KUNIT_EXPECT_EQ(test, -EPERM,
			iommu_device_claim_dma_owner(&other->dev, t));
	platform_device_unregister(other);
}

/* A former DMA owner was not notified, and may still have the device do DMA */
static void test_come_back_owned(struct kunit *test)
{
	struct test_iommu *t = test->priv;

	iommu_device_unuse_default_domain(t->dev);
	KUNIT_ASSERT_EQ(test, 0, iommu_device_claim_dma_owner(t->dev, t));
	iommu_device_revoke_dma_owner(t->dev);
	iommu_device_unregister(&t->iommu);
	test_register(test);
	KUNIT_EXPECT_EQ(test, -ENODEV, test_probe(t, t->dev));
	KUNIT_EXPECT_NULL(test, iommu_get_domain_for_dev(t->dev));

	iommu_device_forget_dma_owner(t->dev);
	KUNIT_EXPECT_EQ(test, 0, test_probe(t, t->dev));
	KUNIT_EXPECT_NOT_NULL(test, iommu_get_domain_for_dev(t->dev));
}

/* With an identity domain nothing is lost; no translation for this driver */
static void test_identity(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	struct iommu_domain *domain;

	KUNIT_EXPECT_TRUE(test, test_maps(t, t->dev));
	iommu_device_unregister(&t->iommu);
	KUNIT_EXPECT_TRUE(test, test_maps(t, t->dev));

	t->type = IOMMU_DOMAIN_DMA;
	test_register(test);
	KUNIT_ASSERT_EQ(test, 0, test_probe(t, t->dev));
	domain = iommu_get_domain_for_dev(t->dev);
	KUNIT_ASSERT_NOT_NULL(test, domain);
	KUNIT_EXPECT_TRUE(test, domain->type & __IOMMU_DOMAIN_PAGING);
	KUNIT_EXPECT_TRUE(test, test_maps(t, t->dev));
	KUNIT_EXPECT_EQ(test, 0, atomic_read(&t->calls));

	/* The next driver gets translation */
	iommu_device_unuse_default_domain(t->dev);
	KUNIT_EXPECT_EQ(test, 0, iommu_device_use_default_domain(t->dev));
	KUNIT_EXPECT_TRUE(test, test_maps(t, t->dev));
	KUNIT_EXPECT_NE(test, 0, atomic_read(&t->calls));
}

static struct kunit_case iommu_dma_test_cases[] = {
	KUNIT_CASE(test_lose),
	KUNIT_CASE(test_lose_flush_queue),
	KUNIT_CASE(test_lose_in_map),
	KUNIT_CASE(test_lose_in_alloc),
	KUNIT_CASE(test_lose_under_load),
	KUNIT_CASE(test_come_back),
	KUNIT_CASE(test_bind_without),
	KUNIT_CASE(test_come_late),
	KUNIT_CASE(test_unplug),
	KUNIT_CASE(test_group),
	KUNIT_CASE(test_come_back_to_owner),
	KUNIT_CASE(test_come_back_owned),
	{}
};

static struct kunit_suite iommu_dma_test_suite = {
	.name = "iommu_dma",
	.init = test_init,
	.exit = test_exit,
	.test_cases = iommu_dma_test_cases,
};

static struct kunit_case iommu_dma_identity_test_cases[] = {
	KUNIT_CASE(test_identity),
	{}
};

static struct kunit_suite iommu_dma_identity_test_suite = {
	.name = "iommu_dma_identity",
	.init = test_init_identity,
	.exit = test_exit,
	.test_cases = iommu_dma_identity_test_cases,
};

kunit_test_suites(&iommu_dma_test_suite, &iommu_dma_identity_test_suite);
