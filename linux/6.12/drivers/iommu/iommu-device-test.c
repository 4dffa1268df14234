// SPDX-License-Identifier: GPL-2.0-only
/*
 * KUnit tests of the references on struct iommu_device: who can take one, what
 * iommu_device_unregister() does to those who have one, and when it returns.
 */
#include <kunit/device.h>
#include <kunit/test.h>
#include <linux/completion.h>
#include <linux/console.h>
#include <linux/delay.h>
#include <linux/iommu.h>
#include <linux/kthread.h>
#include <linux/mmu_notifier.h>
#include <linux/platform_device.h>
#include <linux/property.h>
#include <linux/sched/mm.h>
#include <linux/sched/task.h>
#include <linux/string.h>

#include "iommu-priv.h"

struct test_iommu {
	struct iommu_device iommu;
	struct device *hwdev;
	struct fwnode_handle *fwnode;
	/* A device behind the IOMMU */
	struct platform_device *pdev;
	/* What the driver does when it is asked about a device */
	bool one_group;
	int (*probe)(struct test_iommu *t, struct device *dev);
	bool unplugging;
	unsigned int finalized;
	/* What the driver has been told about PASIDs and their domains */
	unsigned int pasids;
	unsigned int sva_domains;
	/* The mm's notifier does not return before this */
	struct completion *flushing;
	struct completion *flush;
	bool freed_too_early;
	/* Page requests, which the driver takes when a feature is enabled */
	struct iopf_queue *queue;
	unsigned int features;
	unsigned int responses;

	struct task_struct *thread;
	struct completion begun;
	struct completion ended;
};

static int test_attach(struct iommu_domain *domain, struct device *dev)
{
	return 0;
}

static struct iommu_domain test_blocked_domain = {
	.type = IOMMU_DOMAIN_BLOCKED,
	.ops = &(const struct iommu_domain_ops){ .attach_dev = test_attach },
};

static struct iommu_domain test_default_domain = {
	.type = IOMMU_DOMAIN_IDENTITY,
	.ops = &(const struct iommu_domain_ops){ .attach_dev = test_attach },
};

static int test_attach_pasid(struct iommu_domain *domain, struct device *dev,
			     ioasid_t pasid, struct iommu_domain *old)
{
	return 0;
}

static const struct iommu_domain_ops test_domain_ops = {
	.attach_dev = test_attach,
	.set_dev_pasid = test_attach_pasid,
};

static struct iommu_device *test_probe_device(struct device *dev)
{
	struct test_iommu **t = dev_get_platdata(dev);
	int ret = 0;

	if (!t)
		return ERR_PTR(-ENODEV);
	if ((*t)->probe)
		ret = (*t)->probe(*t, dev);
	return ret ? ERR_PTR(ret) : &(*t)->iommu;
}

static void test_probe_finalize(struct device *dev)
{
	struct test_iommu **t = dev_get_platdata(dev);

	(*t)->finalized++;
}

static struct iommu_group *test_device_group(struct device *dev)
{
	struct test_iommu **t = dev_get_platdata(dev);

	return (*t)->one_group ? generic_single_device_group(dev) :
				 generic_device_group(dev);
}

#if IS_ENABLED(CONFIG_IOMMU_SVA)
static struct iommu_domain *test_alloc_sva(struct device *dev,
					   struct mm_struct *mm);

static void test_remove_pasid(struct device *dev, ioasid_t pasid,
			      struct iommu_domain *domain)
{
	struct test_iommu **t = dev_get_platdata(dev);

	(*t)->pasids--;
}

static int test_enable_feat(struct device *dev, enum iommu_dev_features feat)
{
	struct test_iommu **t = dev_get_platdata(dev);

	(*t)->features++;
	if (feat == IOMMU_DEV_FEAT_IOPF)
		return iopf_queue_add_device((*t)->queue, dev);
	return 0;
}

static int test_disable_feat(struct device *dev, enum iommu_dev_features feat)
{
	struct test_iommu **t = dev_get_platdata(dev);

	(*t)->features--;
	if (feat == IOMMU_DEV_FEAT_IOPF)
		iopf_queue_remove_device((*t)->queue, dev);
	return 0;
}

static void test_page_response(struct device *dev, struct iopf_fault *fault,
			       struct iommu_page_response *response)
{
	struct test_iommu **t = dev_get_platdata(dev);

	(*t)->responses++;
}
#endif

static const struct iommu_ops test_ops = {
	.default_domain = &test_default_domain,
	.blocked_domain = &test_blocked_domain,
	.probe_device = test_probe_device,
	.probe_finalize = test_probe_finalize,
	.device_group = test_device_group,
#if IS_ENABLED(CONFIG_IOMMU_SVA)
	.domain_alloc_sva = test_alloc_sva,
	.remove_dev_pasid = test_remove_pasid,
	.dev_enable_feat = test_enable_feat,
	.dev_disable_feat = test_disable_feat,
	.page_response = test_page_response,
#endif
};

#if IS_ENABLED(CONFIG_IOMMU_SVA)
struct test_sva {
	struct iommu_domain domain;
	struct mmu_notifier notifier;
	struct test_iommu *t;
};

static int test_sva_attach(struct iommu_domain *domain, struct device *dev,
			   ioasid_t pasid, struct iommu_domain *old)
{
	container_of(domain, struct test_sva, domain)->t->pasids++;
	return 0;
}

static void test_sva_free(struct iommu_domain *domain)
{
	struct test_sva *sva = container_of(domain, struct test_sva, domain);

	sva->t->sva_domains--;
	mmu_notifier_put(&sva->notifier);
}

/* The driver accesses its instance in the mm's notifier */
static void test_sva_flush(struct mmu_notifier *mn, struct mm_struct *mm,
			   unsigned long start, unsigned long end)
{
	struct test_iommu *t = container_of(mn, struct test_sva, notifier)->t;

	if (!t->flush)
		return;
	complete(t->flushing);
	wait_for_completion(t->flush);
	t->freed_too_early = completion_done(&t->ended);
}

static void test_sva_free_notifier(struct mmu_notifier *mn)
{
	kfree(container_of(mn, struct test_sva, notifier));
}

static const struct mmu_notifier_ops test_sva_notifier_ops = {
	.arch_invalidate_secondary_tlbs = test_sva_flush,
	.free_notifier = test_sva_free_notifier,
};

static struct iommu_domain *test_alloc_sva(struct device *dev,
					   struct mm_struct *mm)
{
	static const struct iommu_domain_ops ops = {
		.set_dev_pasid = test_sva_attach,
		.free = test_sva_free,
	};
	struct test_iommu **t = dev_get_platdata(dev);
	struct test_sva *sva;
	int ret;

	sva = kzalloc(sizeof(*sva), GFP_KERNEL);
	if (!sva)
		return ERR_PTR(-ENOMEM);
	sva->t = *t;
	sva->domain.ops = &ops;
	sva->notifier.ops = &test_sva_notifier_ops;
	ret = mmu_notifier_register(&sva->notifier, mm);
	if (ret) {
		kfree(sva);
		return ERR_PTR(ret);
	}
	(*t)->sva_domains++;
	return &sva->domain;
}
#endif

/* A device that will be probed when an instance is registered */
static struct platform_device *test_add(struct test_iommu *t)
{
	struct platform_device *pdev;
	int ret;

	pdev = platform_device_register_data(NULL, "iommu-device-test-dev",
					     PLATFORM_DEVID_AUTO, &t,
					     sizeof(t));
	if (IS_ERR(pdev))
		return pdev;

	mutex_lock(&iommu_probe_device_lock);
	ret = iommu_fwspec_init(&pdev->dev, t->fwnode);
	mutex_unlock(&iommu_probe_device_lock);
	if (ret) {
		platform_device_unregister(pdev);
		return ERR_PTR(ret);
	}
	return pdev;
}

static int test_plug(struct test_iommu *t)
{
	struct platform_device *pdev = test_add(t);

	if (IS_ERR(pdev))
		return PTR_ERR(pdev);
	t->pdev = pdev;
	return iommu_probe_device(&t->pdev->dev);
}

static void test_unplug(struct test_iommu *t)
{
	platform_device_unregister(t->pdev);
	t->pdev = NULL;
}

static int test_init(struct kunit *test)
{
	struct test_iommu *t;

	t = kunit_kzalloc(test, sizeof(*t), GFP_KERNEL);
	if (!t)
		return -ENOMEM;
	test->priv = t;
	init_completion(&t->begun);
	init_completion(&t->ended);

	t->hwdev = kunit_device_register(test, "iommu-device-test");
	if (IS_ERR(t->hwdev))
		return PTR_ERR(t->hwdev);
	t->fwnode = fwnode_create_software_node(NULL, NULL);
	if (IS_ERR(t->fwnode))
		return PTR_ERR(t->fwnode);
	set_primary_fwnode(t->hwdev, t->fwnode);
	KUNIT_ASSERT_EQ(test, 0, iommu_device_sysfs_add(&t->iommu, t->hwdev,
							NULL, "%s",
							"test_iommu"));
	KUNIT_ASSERT_EQ(test, 0, iommu_device_register(&t->iommu, &test_ops,
						       t->hwdev));
	KUNIT_ASSERT_EQ(test, 0, test_plug(t));
	return 0;
}

static void test_exit(struct kunit *test)
{
	struct test_iommu *t = test->priv;

	if (!t || IS_ERR_OR_NULL(t->fwnode))
		return;
	if (t->pdev)
		test_unplug(t);
	/* Does nothing where the test has done it */
	iommu_device_unregister(&t->iommu);
	KUNIT_EXPECT_EQ(test, 0, t->iommu.users);
	if (t->iommu.dev)
		iommu_device_sysfs_remove(&t->iommu);
	set_primary_fwnode(t->hwdev, NULL);
	fwnode_remove_software_node(t->fwnode);
}

static int unregister_thread(void *arg)
{
	struct test_iommu *t = arg;

	complete(&t->begun);
	iommu_device_unregister(&t->iommu);
	complete(&t->ended);
	return 0;
}

/* Unregister in a thread, and wait until that has begun */
static void unregister_start_of(struct kunit *test, struct test_iommu *t)
{
	t->thread = kthread_run(unregister_thread, t, "unregister");
	KUNIT_ASSERT_FALSE(test, IS_ERR(t->thread));
	wait_for_completion(&t->begun);
	while (READ_ONCE(t->iommu.registered))
		usleep_range(1000, 2000);
}

static void unregister_start(struct kunit *test)
{
	unregister_start_of(test, test->priv);
}

static bool unregister_ends(struct test_iommu *t)
{
	return wait_for_completion_timeout(&t->ended, 5 * HZ);
}

static bool unregister_waits(struct test_iommu *t)
{
	msleep(20);
	return !completion_done(&t->ended);
}

static void test_get_put(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	struct device *none = kunit_device_register(test, "no-iommu");

	KUNIT_ASSERT_FALSE(test, IS_ERR(none));
	KUNIT_EXPECT_PTR_EQ(test, ERR_PTR(-ENODEV), iommu_device_get(none));

	KUNIT_EXPECT_PTR_EQ(test, &t->iommu, iommu_device_get(&t->pdev->dev));
	KUNIT_EXPECT_PTR_EQ(test, &t->iommu, iommu_device_get(&t->pdev->dev));
	KUNIT_EXPECT_EQ(test, 2, t->iommu.users);

	/* The device is not held, and one that comes back finds the same */
	test_unplug(t);
	KUNIT_EXPECT_EQ(test, 2, t->iommu.users);
	KUNIT_ASSERT_EQ(test, 0, test_plug(t));
	KUNIT_EXPECT_PTR_EQ(test, &t->iommu, iommu_device_get(&t->pdev->dev));

	/* And it is not needed to take another reference */
	test_unplug(t);
	KUNIT_EXPECT_TRUE(test, iommu_device_tryget(&t->iommu));
	KUNIT_EXPECT_EQ(test, 4, t->iommu.users);

	iommu_device_put(&t->iommu);
	iommu_device_put(&t->iommu);
	iommu_device_put(&t->iommu);
	iommu_device_put(&t->iommu);
	KUNIT_EXPECT_EQ(test, 0, t->iommu.users);
}

static void test_unregister_waits(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	struct iommu_device_holder holder;

	KUNIT_ASSERT_PTR_EQ(test, &t->iommu, iommu_device_get(&t->pdev->dev));
	KUNIT_ASSERT_PTR_EQ(test, &t->iommu, iommu_device_get(&t->pdev->dev));
	unregister_start(test);

	/* New references are refused from the start, while old ones exist */
	KUNIT_EXPECT_PTR_EQ(test, ERR_PTR(-ENODEV),
			    iommu_device_get(&t->pdev->dev));
	KUNIT_EXPECT_FALSE(test, iommu_device_tryget(&t->iommu));
	KUNIT_EXPECT_EQ(test, -ENODEV,
			iommu_device_add_holder(&t->iommu, &holder, NULL));
	KUNIT_EXPECT_FALSE(test, iommu_device_claim_holder(&holder));

	KUNIT_EXPECT_TRUE(test, unregister_waits(t));
	iommu_device_put(&t->iommu);
	KUNIT_EXPECT_TRUE(test, unregister_waits(t));
	iommu_device_put(&t->iommu);
	KUNIT_EXPECT_TRUE(test, unregister_ends(t));
}

/* After unregister the device is not behind the IOMMU any more */
static void test_get_after_unregister(struct kunit *test)
{
	struct test_iommu *t = test->priv;

	iommu_device_unregister(&t->iommu);
	KUNIT_EXPECT_PTR_EQ(test, ERR_PTR(-ENODEV),
			    iommu_device_get(&t->pdev->dev));
}

/*
 * The driver still returns the unregistered instance for a device. It is asked
 * about the device because another instance has the same firmware node.
 */
static void test_probe_after_unregister(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	struct iommu_device other = {};

	test_unplug(t);
	iommu_device_unregister(&t->iommu);
	KUNIT_ASSERT_EQ(test, 0, iommu_device_register(&other, &test_ops,
						       t->hwdev));
	KUNIT_EXPECT_EQ(test, -ENODEV, test_plug(t));
	KUNIT_EXPECT_PTR_EQ(test, ERR_PTR(-ENODEV),
			    iommu_device_get(&t->pdev->dev));
	iommu_device_unregister(&other);
}

/* The sysfs files of the instance can be removed before it is unregistered */
static void test_probe_without_sysfs(struct kunit *test)
{
	struct test_iommu *t = test->priv;

	test_unplug(t);
	iommu_device_sysfs_remove(&t->iommu);
	KUNIT_EXPECT_EQ(test, -ENODEV, test_plug(t));
	KUNIT_EXPECT_PTR_EQ(test, ERR_PTR(-ENODEV),
			    iommu_device_get(&t->pdev->dev));
}

/*
 * Register an instance while three devices exist that have not been probed yet.
 * Then remove them.
 */
static int test_register_another(struct kunit *test, bool *probed)
{
	struct test_iommu *t = test->priv;
	struct platform_device *pdev[3];
	struct iommu_device other = {};
	struct iommu_device *iommu;
	int ret, i;

	test_unplug(t);
	for (i = 0; i != ARRAY_SIZE(pdev); i++) {
		pdev[i] = test_add(t);
		KUNIT_ASSERT_FALSE(test, IS_ERR(pdev[i]));
	}
	t->pdev = pdev[0];
	t->finalized = 0;
	ret = iommu_device_register(&other, &test_ops, t->hwdev);
	if (!IS_ERR_OR_NULL(t->thread))
		wait_for_completion(&t->begun);
	for (i = 0; i != ARRAY_SIZE(pdev); i++) {
		/* Perhaps the thread has unplugged it */
		if (!i && !t->pdev) {
			probed[i] = false;
			continue;
		}
		iommu = iommu_device_get(&pdev[i]->dev);
		probed[i] = iommu == &t->iommu;
		if (probed[i])
			iommu_device_put(iommu);
		platform_device_unregister(pdev[i]);
	}
	t->pdev = NULL;
	iommu_device_unregister(&other);
	return ret;
}

static void test_probe_at_register(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	bool probed[3];

	KUNIT_EXPECT_EQ(test, 0, test_register_another(test, probed));
	KUNIT_EXPECT_TRUE(test, probed[0] && probed[1] && probed[2]);
	KUNIT_EXPECT_EQ(test, 3, t->finalized);
}

/* bus_iommu_probe() finds a group once for each of its devices */
static void test_probe_group_at_register(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	bool probed[3];

	t->one_group = true;
	KUNIT_EXPECT_EQ(test, 0, test_register_another(test, probed));
	KUNIT_EXPECT_TRUE(test, probed[0] && probed[1] && probed[2]);
	KUNIT_EXPECT_EQ(test, 3, t->finalized);
}

static int test_probe_all_but_one(struct test_iommu *t, struct device *dev)
{
	return dev == &t->pdev->dev ? 0 : -ENOMEM;
}

/* If a probe fails, groups that were found before are not left on the list */
static void test_probe_fails_at_register(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	bool probed[3];

	t->probe = test_probe_all_but_one;
	KUNIT_EXPECT_EQ(test, -ENOMEM, test_register_another(test, probed));
	KUNIT_EXPECT_TRUE(test, probed[0] && !probed[1] && !probed[2]);
	KUNIT_EXPECT_EQ(test, 0, t->finalized);
}

static int unplug_thread(void *arg)
{
	struct test_iommu *t = arg;

	WRITE_ONCE(t->unplugging, true);
	test_unplug(t);
	complete(&t->begun);
	return 0;
}

/*
 * While others are probed, the first device is unplugged. The unplug waits for
 * a mutex that is taken again and again, but it gets the mutex in the end.
 */
static int test_probe_and_unplug(struct test_iommu *t, struct device *dev)
{
	if (!t->thread && dev != &t->pdev->dev) {
		t->thread = kthread_run(unplug_thread, t, "unplug");
		while (!IS_ERR(t->thread) && !READ_ONCE(t->unplugging))
			msleep(20);
	}
	msleep(50);
	return 0;
}

/* A group is not freed as long as it is on the list */
static void test_unplug_at_register(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	bool probed[3];

	t->probe = test_probe_and_unplug;
	KUNIT_EXPECT_EQ(test, 0, test_register_another(test, probed));
	KUNIT_EXPECT_TRUE(test, !probed[0] && probed[1] && probed[2]);
	KUNIT_EXPECT_EQ(test, 2, t->finalized);
}

/* A new instance finds the devices that exist already, group by group */
static void test_register_finds_devices(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	struct iommu_device other = {};
	struct iommu_group *group;
	int ret;

	iommu_device_unregister(&t->iommu);
	KUNIT_ASSERT_NULL(test, t->pdev->dev.iommu_group);

	/* The firmware node has to lead to a driver when it is told */
	KUNIT_ASSERT_EQ(test, 0, iommu_device_register(&other, &test_ops,
						       t->hwdev));
	mutex_lock(&iommu_probe_device_lock);
	ret = iommu_fwspec_init(&t->pdev->dev, t->fwnode);
	mutex_unlock(&iommu_probe_device_lock);
	iommu_device_unregister(&other);
	KUNIT_ASSERT_EQ(test, 0, ret);
	KUNIT_ASSERT_NULL(test, t->pdev->dev.iommu_group);

	KUNIT_ASSERT_EQ(test, 0, iommu_device_register(&t->iommu, &test_ops,
						       t->hwdev));
	KUNIT_ASSERT_PTR_EQ(test, &t->iommu, iommu_device_get(&t->pdev->dev));
	iommu_device_put(&t->iommu);
	group = iommu_group_get(&t->pdev->dev);
	KUNIT_ASSERT_NOT_NULL(test, group);
	KUNIT_EXPECT_PTR_EQ(test, &test_default_domain,
			    iommu_get_domain_for_dev(&t->pdev->dev));
	test_unplug(t);
	iommu_group_put(group);
}

/* The name is taken, so there are no files, and nothing to remove */
static void test_sysfs_add_fails(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	struct iommu_device other = {};

	KUNIT_EXPECT_EQ(test, -EEXIST,
			iommu_device_sysfs_add(&other, t->hwdev, NULL, "%s",
					       "test_iommu"));
	KUNIT_EXPECT_NULL(test, other.dev);
}

static void test_unregister_unregistered(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	struct iommu_device never = {};

	iommu_device_unregister(&never);
	iommu_device_unregister(&t->iommu);
	iommu_device_unregister(&t->iommu);

	/* It can be registered again and works */
	test_unplug(t);
	KUNIT_ASSERT_EQ(test, 0, iommu_device_register(&t->iommu, &test_ops,
						       t->hwdev));
	KUNIT_ASSERT_EQ(test, 0, test_plug(t));
	KUNIT_EXPECT_PTR_EQ(test, &t->iommu, iommu_device_get(&t->pdev->dev));
	iommu_device_put(&t->iommu);
}

/* After the owner has lost the group, all these requests must fail */
static void test_group_is_blocked(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	struct device *dev = &t->pdev->dev;
	struct iommu_domain domain = {
		.type = IOMMU_DOMAIN_UNMANAGED,
		.owner = &test_ops,
		.ops = &test_domain_ops,
	};
	struct iommu_group *group = iommu_group_get(dev);

	KUNIT_ASSERT_NOT_NULL(test, group);
	KUNIT_EXPECT_EQ(test, -ENODEV, iommu_attach_device(&domain, dev));
	KUNIT_EXPECT_EQ(test, -ENODEV, iommu_attach_group(&domain, group));
	KUNIT_EXPECT_EQ(test, -ENODEV,
			iommu_attach_group_handle(&domain, group, NULL));
	KUNIT_EXPECT_EQ(test, -ENODEV,
			iommu_group_replace_domain(group, &domain));
	KUNIT_EXPECT_EQ(test, -ENODEV,
			iommu_replace_group_handle(group, &domain, NULL));
	KUNIT_EXPECT_EQ(test, -ENODEV,
			iommu_attach_device_pasid(&domain, dev, 1, NULL));
	/* A detach does not change the blocking domain either */
	iommu_detach_group(&domain, group);
	KUNIT_EXPECT_PTR_EQ(test, &test_blocked_domain,
			    iommu_get_domain_for_dev(dev));
	iommu_group_put(group);
}

/* A former owner may still have the device do DMA, so nobody gets the group */
static void test_lose_dma_owner(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	struct device *dev = &t->pdev->dev;

	KUNIT_ASSERT_EQ(test, 0, iommu_device_claim_dma_owner(dev, test));
	KUNIT_ASSERT_EQ(test, 0, iommu_device_claim_dma_owner(dev, test));
	iommu_device_revoke_dma_owner(dev);
	KUNIT_EXPECT_EQ(test, -EPERM, iommu_device_claim_dma_owner(dev, t));
	/* Not even its owner, for another device of the group */
	KUNIT_EXPECT_EQ(test, -ENODEV, iommu_device_claim_dma_owner(dev, test));
	test_group_is_blocked(test);
	iommu_device_release_dma_owner(dev);
	KUNIT_EXPECT_EQ(test, -ENODEV, iommu_device_claim_dma_owner(dev, t));
	KUNIT_EXPECT_EQ(test, -ENODEV, iommu_device_use_default_domain(dev));
	test_group_is_blocked(test);
	iommu_device_unregister(&t->iommu);
}

/* A domain of another driver: this driver would misinterpret its data */
static void test_replace_foreign_domain(struct kunit *test)
{
	static const struct iommu_ops other_ops;
	struct test_iommu *t = test->priv;
	struct iommu_attach_handle handle = {};
	struct iommu_domain domain = {
		.type = IOMMU_DOMAIN_UNMANAGED,
		.owner = &other_ops,
		.ops = &test_domain_ops,
	};
	struct iommu_group *group = iommu_group_get(&t->pdev->dev);

	KUNIT_ASSERT_NOT_NULL(test, group);
	KUNIT_ASSERT_EQ(test, 0, iommu_group_claim_dma_owner(group, test));
	KUNIT_EXPECT_EQ(test, -EINVAL,
			iommu_replace_group_handle(group, &domain, &handle));
	domain.owner = &test_ops;
	KUNIT_EXPECT_EQ(test, 0,
			iommu_replace_group_handle(group, &domain, &handle));
	iommu_detach_group_handle(&domain, group);
	iommu_group_release_dma_owner(group);
	iommu_group_put(group);
}

/* What firmware code does when a driver is bound */
static int test_probe_again(struct test_iommu *t, struct device *dev)
{
	int ret;

	mutex_lock(&iommu_probe_device_lock);
	ret = iommu_fwspec_init(dev, t->fwnode);
	mutex_unlock(&iommu_probe_device_lock);
	return ret ?: iommu_probe_device(dev);
}

/* A whole group is revoked. A user of one device is not notified. */
static void test_lose_group_owner(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	struct device *dev = &t->pdev->dev;
	struct iommu_group *group = iommu_group_get(dev);

	KUNIT_ASSERT_NOT_NULL(test, group);
	KUNIT_EXPECT_PTR_EQ(test, &t->iommu, iommu_device_get_group(group));
	iommu_device_put(&t->iommu);

	KUNIT_ASSERT_EQ(test, 0, iommu_group_claim_dma_owner(group, test));
	iommu_device_lose_dma_owner(dev, group);
	iommu_group_revoke_dma_owner(group);
	KUNIT_EXPECT_FALSE(test, iommu_group_dma_owner_claimed(group));
	KUNIT_EXPECT_EQ(test, -ENODEV, iommu_group_claim_dma_owner(group, t));
	KUNIT_EXPECT_EQ(test, -ENODEV, iommu_device_use_default_domain(dev));
	test_group_is_blocked(test);
	iommu_device_unregister(&t->iommu);
	KUNIT_EXPECT_PTR_EQ(test, ERR_PTR(-ENODEV),
			    iommu_device_get_group(group));

	/* It has left the group, and gets no other before it is idle */
	iommu_device_lose_dma_owner(dev, group);
	KUNIT_ASSERT_EQ(test, 0, iommu_device_register(&t->iommu, &test_ops,
						       t->hwdev));
	KUNIT_EXPECT_EQ(test, -ENODEV, test_probe_again(t, dev));
	KUNIT_EXPECT_FALSE(test, device_iommu_mapped(dev));
	iommu_device_forget_dma_owner(dev);
	KUNIT_EXPECT_EQ(test, 0, test_probe_again(t, dev));
	KUNIT_EXPECT_TRUE(test, device_iommu_mapped(dev));
	KUNIT_EXPECT_PTR_EQ(test, ERR_PTR(-ENODEV),
			    iommu_device_get_group(group));
	iommu_group_put(group);
}

/* A driver that uses the DMA API as well has attached a domain of its own */
static void test_revoke_device(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	struct device *dev = &t->pdev->dev;
	struct iommu_domain domain = {
		.type = IOMMU_DOMAIN_UNMANAGED,
		.owner = &test_ops,
		.ops = &test_domain_ops,
	};
	struct iommu_domain *default_domain = iommu_get_domain_for_dev(dev);

	KUNIT_ASSERT_EQ(test, 0, iommu_device_use_default_domain(dev));
	/* It could not be revoked */
	dev->iommu->require_direct = 1;
	KUNIT_EXPECT_EQ(test, -EINVAL, iommu_attach_revocable(&domain, dev));
	KUNIT_EXPECT_PTR_EQ(test, default_domain,
			    iommu_get_domain_for_dev(dev));
	dev->iommu->require_direct = 0;

	KUNIT_ASSERT_EQ(test, 0, iommu_attach_revocable(&domain, dev));
	KUNIT_EXPECT_PTR_EQ(test, &domain, iommu_get_domain_for_dev(dev));
	KUNIT_EXPECT_EQ(test, -EBUSY, iommu_attach_revocable(&domain, dev));
	iommu_detach_device(&domain, dev);
	KUNIT_EXPECT_PTR_EQ(test, default_domain,
			    iommu_get_domain_for_dev(dev));

	KUNIT_ASSERT_EQ(test, 0, iommu_attach_revocable(&domain, dev));
	iommu_revoke_device(&domain, dev);
	KUNIT_EXPECT_EQ(test, -ENODEV, iommu_attach_revocable(&domain, dev));
	test_group_is_blocked(test);
	iommu_device_unregister(&t->iommu);

	/* It may be doing DMA still, so no IOMMU gets it */
	KUNIT_ASSERT_EQ(test, 0, iommu_device_register(&t->iommu, &test_ops,
						       t->hwdev));
	KUNIT_EXPECT_EQ(test, -ENODEV, test_probe_again(t, dev));
	iommu_device_forget_dma_owner(dev);
	iommu_device_unuse_default_domain(dev);
	KUNIT_EXPECT_EQ(test, 0, test_probe_again(t, dev));
	KUNIT_EXPECT_TRUE(test, device_iommu_mapped(dev));
}

struct test_holder {
	struct iommu_device_holder holder;
	struct test_iommu *t;
	/* Position in the order of revocations, from 1; 0 if not revoked */
	unsigned int revoked;
	unsigned int *count;
	struct completion begun;
	struct completion go;
};

static bool test_revoke(struct iommu_device_holder *holder)
{
	struct test_holder *h = container_of(holder, struct test_holder,
					     holder);

	/* The count shows if it is revoked twice */
	h->revoked = ++*h->count;
	iommu_device_put_holder(holder);
	return true;
}

static const struct iommu_device_holder_ops test_holder_ops = {
	.name = "test holder",
	.revoke = test_revoke,
};

static const struct iommu_device_holder_ops test_movable_holder_ops = {
	.name = "movable test holder",
	.movable = true,
	.revoke = test_revoke,
};

static bool test_revoke_slowly(struct iommu_device_holder *holder)
{
	struct test_holder *h = container_of(holder, struct test_holder,
					     holder);

	complete(&h->begun);
	wait_for_completion(&h->go);
	return test_revoke(holder);
}

static const struct iommu_device_holder_ops test_slow_holder_ops = {
	.name = "slow test holder",
	.revoke = test_revoke_slowly,
};

/* As if the owner had begun to release it */
static bool test_revoke_not(struct iommu_device_holder *holder)
{
	complete(&container_of(holder, struct test_holder, holder)->begun);
	return false;
}

static const struct iommu_device_holder_ops test_unwilling_holder_ops = {
	.name = "unwilling test holder",
	.revoke = test_revoke_not,
};

static bool test_revoke_put_late(struct iommu_device_holder *holder)
{
	complete(&container_of(holder, struct test_holder, holder)->begun);
	return true;
}

static const struct iommu_device_holder_ops test_late_holder_ops = {
	.name = "late test holder",
	.revoke = test_revoke_put_late,
};

static struct test_holder *test_hold(struct kunit *test, unsigned int *count,
				     const struct iommu_device_holder_ops *ops)
{
	struct test_iommu *t = test->priv;
	struct test_holder *h;

	h = kunit_kzalloc(test, sizeof(*h), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, h);
	h->t = t;
	h->count = count;
	init_completion(&h->begun);
	init_completion(&h->go);
	KUNIT_ASSERT_PTR_EQ(test, &t->iommu, iommu_device_get(&t->pdev->dev));
	KUNIT_ASSERT_EQ(test, 0,
			iommu_device_add_holder(&t->iommu, &h->holder, ops));
	return h;
}

static void test_let_go(struct kunit *test, struct test_holder *h)
{
	KUNIT_EXPECT_TRUE(test, iommu_device_claim_holder(&h->holder));
	iommu_device_put_holder(&h->holder);
}

static void test_revoke_newest_first(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	unsigned int count = 0;
	struct test_holder *h[4];
	int i;

	for (i = 0; i != ARRAY_SIZE(h); i++)
		h[i] = test_hold(test, &count, &test_holder_ops);

	/* A holder that its owner releases is not revoked */
	test_let_go(test, h[1]);

	iommu_device_unregister(&t->iommu);
	KUNIT_EXPECT_EQ(test, 3, count);
	KUNIT_EXPECT_EQ(test, 1, h[3]->revoked);
	KUNIT_EXPECT_EQ(test, 2, h[2]->revoked);
	KUNIT_EXPECT_EQ(test, 0, h[1]->revoked);
	KUNIT_EXPECT_EQ(test, 3, h[0]->revoked);

	/* Claiming again does not wait, and is harmless */
	KUNIT_EXPECT_FALSE(test, iommu_device_claim_holder(&h[0]->holder));
	KUNIT_EXPECT_EQ(test, 3, count);
}

/* An older holder is not revoked while the owner of a newer one releases it */
static void test_claimed(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	struct test_holder *low, *high;
	unsigned int count = 0;

	low = test_hold(test, &count, &test_holder_ops);
	high = test_hold(test, &count, &test_holder_ops);
	KUNIT_EXPECT_TRUE(test, iommu_device_claim_holder(&high->holder));
	unregister_start(test);
	KUNIT_EXPECT_TRUE(test, unregister_waits(t));
	KUNIT_EXPECT_EQ(test, 0, count);
	iommu_device_put_holder(&high->holder);
	KUNIT_EXPECT_TRUE(test, unregister_ends(t));
	KUNIT_EXPECT_EQ(test, 1, low->revoked);
	KUNIT_EXPECT_EQ(test, 0, high->revoked);
}

/* An owner releases two holders, of which the newer needs the older */
static void test_claimed_both(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	struct test_holder *low, *high;
	unsigned int count = 0;

	low = test_hold(test, &count, &test_holder_ops);
	high = test_hold(test, &count, &test_holder_ops);
	KUNIT_EXPECT_TRUE(test, iommu_device_claim_holder(&low->holder));
	KUNIT_EXPECT_TRUE(test, iommu_device_claim_holder(&high->holder));
	unregister_start(test);
	KUNIT_EXPECT_TRUE(test, unregister_waits(t));
	iommu_device_put_holder(&high->holder);
	KUNIT_EXPECT_TRUE(test, unregister_waits(t));
	iommu_device_put_holder(&low->holder);
	KUNIT_EXPECT_TRUE(test, unregister_ends(t));
	KUNIT_EXPECT_EQ(test, 0, count);
}

/* As test_claimed(), but the revocation finds the holder before the claim */
static void test_claimed_late(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	struct test_holder *low, *high;
	unsigned int count = 0;

	low = test_hold(test, &count, &test_holder_ops);
	high = test_hold(test, &count, &test_unwilling_holder_ops);
	unregister_start(test);
	wait_for_completion(&high->begun);
	KUNIT_EXPECT_TRUE(test, unregister_waits(t));
	KUNIT_EXPECT_EQ(test, 0, count);
	test_let_go(test, high);
	KUNIT_EXPECT_TRUE(test, unregister_ends(t));
	KUNIT_EXPECT_EQ(test, 1, low->revoked);
}

/* Holders move to another instance, as its oldest ones and in the same order */
static void test_movable(struct kunit *test)
{
	const struct iommu_device_holder_ops *movable = &test_movable_holder_ops;
	const struct iommu_ops other_ops = test_ops;
	struct test_holder *low, *high, *fixed, *top;
	struct iommu_device other = {}, alien = {};
	struct test_iommu *t = test->priv;
	unsigned int count = 0;

	KUNIT_ASSERT_EQ(test, 0, iommu_device_register(&alien, &other_ops,
						       t->hwdev));
	KUNIT_ASSERT_EQ(test, 0, iommu_device_register(&other, &test_ops,
						       t->hwdev));
	low = test_hold(test, &count, movable);
	high = test_hold(test, &count, movable);
	test_let_go(test, high);
	KUNIT_ASSERT_EQ(test, 0, iommu_device_stack_holder(&low->holder,
							   &high->holder,
							   movable));
	KUNIT_EXPECT_EQ(test, 2, t->iommu.users);
	fixed = test_hold(test, &count, &test_holder_ops);
	top = test_hold(test, &count, &test_holder_ops);
	test_let_go(test, top);
	KUNIT_EXPECT_TRUE(test, iommu_device_tryget(&other));
	KUNIT_ASSERT_EQ(test, 0,
			iommu_device_add_holder(&other, &top->holder,
						&test_holder_ops));

	iommu_device_unregister(&t->iommu);
	KUNIT_EXPECT_EQ(test, 1, count);
	KUNIT_EXPECT_EQ(test, 1, fixed->revoked);
	KUNIT_EXPECT_PTR_EQ(test, &other, low->holder.iommu);
	KUNIT_EXPECT_PTR_EQ(test, &other, high->holder.iommu);
	KUNIT_EXPECT_EQ(test, 0, t->iommu.users);
	KUNIT_EXPECT_EQ(test, 3, other.users);

	/* Only an instance of another driver is left */
	iommu_device_unregister(&other);
	KUNIT_EXPECT_EQ(test, 2, top->revoked);
	KUNIT_EXPECT_EQ(test, 3, high->revoked);
	KUNIT_EXPECT_EQ(test, 4, low->revoked);
	KUNIT_EXPECT_EQ(test, 0, other.users);
	KUNIT_EXPECT_EQ(test, -ENODEV,
			iommu_device_stack_holder(&low->holder, &high->holder,
						  movable));
	iommu_device_unregister(&alien);
}

/* No older holder is revoked before the reference is dropped */
static void test_put_late(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	struct test_holder *low, *high;
	unsigned int count = 0;

	low = test_hold(test, &count, &test_holder_ops);
	high = test_hold(test, &count, &test_late_holder_ops);
	unregister_start(test);
	wait_for_completion(&high->begun);
	KUNIT_EXPECT_TRUE(test, unregister_waits(t));
	KUNIT_EXPECT_EQ(test, 0, low->revoked);
	iommu_device_put_holder(&high->holder);
	KUNIT_EXPECT_FALSE(test, iommu_device_claim_holder(&high->holder));
	KUNIT_EXPECT_TRUE(test, unregister_ends(t));
	KUNIT_EXPECT_EQ(test, 1, low->revoked);
}

static struct test_iommu *test_register_other(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	struct test_iommu *other;

	other = kunit_kzalloc(test, sizeof(*other), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, other);
	init_completion(&other->begun);
	init_completion(&other->ended);
	KUNIT_ASSERT_EQ(test, 0, iommu_device_register(&other->iommu, &test_ops,
						       t->hwdev));
	return other;
}

/* A holder that has moved is revoked after uppers that could not move */
static void test_moved_lower(struct kunit *test)
{
	struct test_holder *low, *top, *more;
	struct test_iommu *other, *third;
	struct test_iommu *t = test->priv;
	unsigned int count = 0;

	other = test_register_other(test);
	low = test_hold(test, &count, &test_movable_holder_ops);
	top = test_hold(test, &count, &test_slow_holder_ops);
	more = test_hold(test, &count, &test_holder_ops);
	test_let_go(test, more);
	test_let_go(test, top);
	KUNIT_ASSERT_TRUE(test, iommu_device_tryget(&t->iommu));
	KUNIT_ASSERT_EQ(test, 0,
			iommu_device_add_upper_holder(&t->iommu, &low->holder,
						      &top->holder,
						      &test_slow_holder_ops));
	unregister_start(test);
	wait_for_completion(&top->begun);
	KUNIT_EXPECT_PTR_EQ(test, &other->iommu, low->holder.iommu);

	unregister_start_of(test, other);
	KUNIT_EXPECT_TRUE(test, unregister_waits(other));
	KUNIT_EXPECT_EQ(test, 0, low->revoked);
	third = test_register_other(test);
	KUNIT_EXPECT_EQ(test, -ENODEV,
			iommu_device_add_upper_holder(&third->iommu,
						      &low->holder,
						      &more->holder,
						      &test_holder_ops));
	iommu_device_unregister(&third->iommu);

	complete(&top->go);
	KUNIT_EXPECT_TRUE(test, unregister_ends(t));
	KUNIT_EXPECT_TRUE(test, unregister_ends(other));
	KUNIT_EXPECT_EQ(test, 1, top->revoked);
	KUNIT_EXPECT_EQ(test, 2, low->revoked);
}

/* An instance that waits does not hold up other instances of the driver */
static void test_stuck_elsewhere(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	struct test_holder *low, *stuck;
	struct test_iommu *other;
	unsigned int count = 0;

	other = test_register_other(test);
	low = test_hold(test, &count, &test_movable_holder_ops);
	stuck = test_hold(test, &count, &test_slow_holder_ops);
	unregister_start(test);
	wait_for_completion(&stuck->begun);
	KUNIT_EXPECT_PTR_EQ(test, &other->iommu, low->holder.iommu);

	unregister_start_of(test, other);
	KUNIT_EXPECT_TRUE(test, unregister_ends(other));
	KUNIT_EXPECT_EQ(test, 1, low->revoked);
	KUNIT_EXPECT_TRUE(test, unregister_waits(t));
	complete(&stuck->go);
	KUNIT_EXPECT_TRUE(test, unregister_ends(t));
}

static int claim_thread(void *arg)
{
	struct test_holder *h = arg;

	WARN_ON(iommu_device_claim_holder(&h->holder));
	/* The owner may free the holder now, so nobody may access it */
	memset(&h->holder, 0xa5, sizeof(h->holder));
	complete(&h->begun);
	return 0;
}

static void test_claim_during_revoke(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	unsigned int count = 0;
	struct task_struct *thread;
	struct test_holder *h;

	h = test_hold(test, &count, &test_slow_holder_ops);
	unregister_start(test);
	wait_for_completion(&h->begun);
	KUNIT_EXPECT_TRUE(test, unregister_waits(t));

	thread = kthread_run(claim_thread, h, "claim_holder");
	KUNIT_ASSERT_FALSE(test, IS_ERR(thread));
	msleep(20);
	KUNIT_EXPECT_FALSE(test, completion_done(&h->begun));
	complete(&h->go);
	KUNIT_EXPECT_TRUE(test,
			  wait_for_completion_timeout(&h->begun, 5 * HZ));
	KUNIT_EXPECT_TRUE(test, unregister_ends(t));
	KUNIT_EXPECT_EQ(test, 1, count);
	KUNIT_EXPECT_NULL(test, memchr_inv(&h->holder, 0xa5,
					   sizeof(h->holder)));
}

static const char *test_hang_report;
static bool test_hang_unnamed;
static unsigned int test_hang_reports;
static unsigned int test_wrong_hang_reports;

static void test_console_write(struct console *console, const char *text,
			       unsigned int len)
{
	if (strnstr(text, test_hang_report, len))
		test_hang_reports++;
	else if (strnstr(text, "does not let go", len))
		test_wrong_hang_reports++;
}

static struct console test_console = {
	.name = "iommutest",
	.write = test_console_write,
	.flags = CON_ENABLED,
	.index = -1,
};

/* Unregister with two slow holders, whose revocations take the given times */
static void test_hang(struct kunit *test, unsigned long hang_timeout,
		      unsigned int first_ms, unsigned int second_ms)
{
	unsigned long timeout = iommu_hang_timeout;
	int loglevel = console_loglevel;
	struct test_iommu *t = test->priv;
	struct test_holder *h, *first, *second;
	unsigned int count = 0;

	second = test_hold(test, &count, &test_slow_holder_ops);
	first = test_hold(test, &count, &test_slow_holder_ops);
	h = test_hold(test, &count, &test_holder_ops);
	if (test_hang_unnamed)
		iommu_device_sysfs_remove(&t->iommu);
	test_hang_reports = 0;
	test_wrong_hang_reports = 0;
	console_loglevel = CONSOLE_LOGLEVEL_DEBUG;
	/* It is cleared when a console is unregistered */
	test_console.flags = CON_ENABLED;
	register_console(&test_console);
	iommu_hang_timeout = hang_timeout;

	unregister_start(test);
	wait_for_completion(&first->begun);
	KUNIT_EXPECT_EQ(test, 1, h->revoked);
	msleep(first_ms);
	KUNIT_EXPECT_FALSE(test, completion_done(&second->begun));
	complete(&first->go);
	wait_for_completion(&second->begun);
	msleep(second_ms);
	KUNIT_EXPECT_FALSE(test, completion_done(&t->ended));
	complete(&second->go);
	KUNIT_EXPECT_TRUE(test, unregister_ends(t));

	iommu_hang_timeout = timeout;
	unregister_console(&test_console);
	console_loglevel = loglevel;
	KUNIT_EXPECT_EQ(test, 1, test_hang_reports);
	KUNIT_EXPECT_EQ(test, 0, test_wrong_hang_reports);
}

/* The holder that hangs is reported once, and no other one is */
static void test_hang_is_reported(struct kunit *test)
{
	test_hang_report =
		"test_iommu: cannot be unregistered yet: slow test holder";
	test_hang_unnamed = false;
	test_hang(test, HZ / 10, 500, 0);
}

/* Each holder has its own timeout, and an instance can have no name */
static void test_second_hang_is_reported(struct kunit *test)
{
	test_hang_report =
		"an IOMMU: cannot be unregistered yet: slow test holder";
	test_hang_unnamed = true;
	test_hang(test, HZ, 300, 1500);
}

#if IS_ENABLED(CONFIG_IOMMU_SVA)
static struct mm_struct *test_mm(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	struct mm_struct *mm = mm_alloc();

	KUNIT_ASSERT_NOT_NULL(test, mm);
	/* No firmware says it */
	t->pdev->dev.iommu->max_pasids = 16;
	return mm;
}

/* SVA with an IOMMU that stays registered */
static void test_sva(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	struct mm_struct *mm = test_mm(test), *other = test_mm(test);
	struct device *dev = &t->pdev->dev;
	struct iommu_sva *bond, *another;

	bond = __iommu_sva_bind_device(dev, mm);
	KUNIT_ASSERT_FALSE(test, IS_ERR(bond));
	KUNIT_EXPECT_PTR_EQ(test, bond, __iommu_sva_bind_device(dev, mm));
	KUNIT_EXPECT_EQ(test, 1, t->pasids);
	another = __iommu_sva_bind_device(dev, other);
	KUNIT_ASSERT_FALSE(test, IS_ERR(another));
	KUNIT_EXPECT_PTR_NE(test, bond, another);
	KUNIT_EXPECT_EQ(test, 2, t->pasids);
	KUNIT_EXPECT_EQ(test, 2, t->sva_domains);
	KUNIT_EXPECT_NE(test, iommu_sva_get_pasid(bond),
			iommu_sva_get_pasid(another));
	KUNIT_EXPECT_EQ(test, 2, t->iommu.users);

	iommu_sva_unbind_device(bond);
	KUNIT_EXPECT_EQ(test, 2, t->pasids);
	iommu_sva_unbind_device(bond);
	iommu_sva_unbind_device(another);
	KUNIT_EXPECT_EQ(test, 0, t->pasids);
	KUNIT_EXPECT_EQ(test, 0, t->sva_domains);
	KUNIT_EXPECT_EQ(test, 0, t->iommu.users);
	mmput(mm);
	mmput(other);
}

static void test_sva_revoked(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	struct mm_struct *mm = test_mm(test);
	struct device *dev = &t->pdev->dev;
	struct iommu_sva *bond;
	u32 pasid;

	bond = __iommu_sva_bind_device(dev, mm);
	KUNIT_ASSERT_FALSE(test, IS_ERR(bond));
	KUNIT_ASSERT_PTR_EQ(test, bond, __iommu_sva_bind_device(dev, mm));
	pasid = iommu_sva_get_pasid(bond);

	iommu_device_unregister(&t->iommu);
	KUNIT_EXPECT_EQ(test, 0, t->pasids);
	KUNIT_EXPECT_EQ(test, 0, t->sva_domains);
	KUNIT_EXPECT_EQ(test, pasid, iommu_sva_get_pasid(bond));
	KUNIT_EXPECT_PTR_EQ(test, ERR_PTR(-ENODEV),
			    __iommu_sva_bind_device(dev, mm));

	/* The last process goes first, and the mm's notifier with it */
	mmput(mm);
	iommu_sva_unbind_device(bond);
	iommu_sva_unbind_device(bond);
	KUNIT_EXPECT_EQ(test, 0, t->pasids);
	KUNIT_EXPECT_EQ(test, 0, t->sva_domains);
}

static int sva_flush_thread(void *arg)
{
	struct mm_struct *mm = arg;

	mmu_notifier_arch_invalidate_secondary_tlbs(mm, 0, PAGE_SIZE);
	return 0;
}

/* The driver is in the mm's notifier when the IOMMU goes away */
static void test_sva_notified(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	struct mm_struct *mm = test_mm(test);
	DECLARE_COMPLETION_ONSTACK(flushing);
	DECLARE_COMPLETION_ONSTACK(flush);
	struct task_struct *thread;
	struct iommu_sva *bond;
	bool waits;

	t->flushing = &flushing;
	t->flush = &flush;
	bond = __iommu_sva_bind_device(&t->pdev->dev, mm);
	KUNIT_ASSERT_FALSE(test, IS_ERR(bond));
	thread = kthread_run(sva_flush_thread, mm, "sva-flush");
	KUNIT_ASSERT_FALSE(test, IS_ERR(thread));
	get_task_struct(thread);
	wait_for_completion(&flushing);

	unregister_start(test);
	waits = unregister_waits(t);
	complete(&flush);
	KUNIT_EXPECT_TRUE(test, waits);
	KUNIT_EXPECT_TRUE(test, unregister_ends(t));
	kthread_stop(thread);
	put_task_struct(thread);
	KUNIT_EXPECT_FALSE(test, t->freed_too_early);
	iommu_sva_unbind_device(bond);
	mmput(mm);
}

static void test_sva_enable(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	struct device *dev = &t->pdev->dev;

	t->queue = iopf_queue_alloc("iommu-device-test");
	KUNIT_ASSERT_NOT_NULL(test, t->queue);
	KUNIT_ASSERT_EQ(test, 0,
			iommu_dev_enable_feature(dev, IOMMU_DEV_FEAT_IOPF));
	KUNIT_ASSERT_EQ(test, 0,
			iommu_dev_enable_feature(dev, IOMMU_DEV_FEAT_SVA));
}

/* The IOMMU driver frees its queue before the device driver disables SVA */
static void test_sva_features(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	struct device *dev = &t->pdev->dev;

	test_sva_enable(test);
	KUNIT_EXPECT_EQ(test, 2, t->features);
	KUNIT_EXPECT_EQ(test, 0,
			iommu_dev_disable_feature(dev, IOMMU_DEV_FEAT_SVA));
	KUNIT_EXPECT_EQ(test, 1, t->features);

	iommu_device_unregister(&t->iommu);
	KUNIT_EXPECT_EQ(test, 0, t->features);
	iopf_queue_free(t->queue);
	KUNIT_EXPECT_NE(test, 0,
			iommu_dev_disable_feature(dev, IOMMU_DEV_FEAT_IOPF));
	KUNIT_EXPECT_EQ(test, -ENODEV,
			iommu_dev_enable_feature(dev, IOMMU_DEV_FEAT_IOPF));
	KUNIT_EXPECT_EQ(test, 0, t->features);
}

/* A request to read page 1 */
static struct iopf_fault test_page_request(struct iommu_sva *bond)
{
	return (struct iopf_fault) {
		.fault = {
			.type = IOMMU_FAULT_PAGE_REQ,
			.prm = {
				.flags = IOMMU_FAULT_PAGE_REQUEST_PASID_VALID |
					 IOMMU_FAULT_PAGE_REQUEST_LAST_PAGE,
				.pasid = iommu_sva_get_pasid(bond),
				.perm = IOMMU_FAULT_PERM_READ,
				.addr = PAGE_SIZE,
			},
		},
	};
}

/* A page request that is being handled when the IOMMU goes away, and a later one */
static void test_sva_fault(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	struct mm_struct *mm = test_mm(test);
	struct device *dev = &t->pdev->dev;
	struct iopf_fault fault;
	struct iommu_sva *bond;
	bool waits;

	test_sva_enable(test);
	bond = __iommu_sva_bind_device(dev, mm);
	KUNIT_ASSERT_FALSE(test, IS_ERR(bond));
	fault = test_page_request(bond);

	mmap_write_lock(mm);
	KUNIT_EXPECT_EQ(test, 0, iommu_report_device_fault(dev, &fault));
	unregister_start(test);
	waits = unregister_waits(t);
	KUNIT_EXPECT_EQ(test, 0, t->pasids);
	KUNIT_EXPECT_EQ(test, 0, t->responses);
	/* Nobody handles this one */
	KUNIT_EXPECT_EQ(test, -EINVAL, iommu_report_device_fault(dev, &fault));
	KUNIT_EXPECT_EQ(test, 1, t->responses);
	mmap_write_unlock(mm);
	KUNIT_EXPECT_TRUE(test, waits);
	KUNIT_EXPECT_TRUE(test, unregister_ends(t));
	KUNIT_EXPECT_EQ(test, 2, t->responses);
	iopf_queue_free(t->queue);
	iommu_sva_unbind_device(bond);
	mmput(mm);
}

static int test_sva_report(struct iopf_group *group)
{
	struct test_iommu **t = dev_get_platdata(group->fault_param->dev);

	complete((*t)->flushing);
	wait_for_completion((*t)->flush);
	return -EBUSY;
}

static int sva_report_thread(void *arg)
{
	struct iommu_sva *bond = arg;
	struct iopf_fault fault = test_page_request(bond);

	return iommu_report_device_fault(bond->dev, &fault);
}

/* The IOMMU goes away while a page request is in the handler of the bond */
static void test_sva_reported(struct kunit *test)
{
	struct test_iommu *t = test->priv;
	struct mm_struct *mm = test_mm(test);
	DECLARE_COMPLETION_ONSTACK(flushing);
	DECLARE_COMPLETION_ONSTACK(flush);
	struct task_struct *thread;
	struct iommu_sva *bond;
	bool waits;

	test_sva_enable(test);
	bond = __iommu_sva_bind_device(&t->pdev->dev, mm);
	KUNIT_ASSERT_FALSE(test, IS_ERR(bond));
	bond->handle.domain->iopf_handler = test_sva_report;
	t->flushing = &flushing;
	t->flush = &flush;
	thread = kthread_run(sva_report_thread, bond, "sva-report");
	KUNIT_ASSERT_FALSE(test, IS_ERR(thread));
	get_task_struct(thread);
	wait_for_completion(&flushing);

	unregister_start(test);
	waits = unregister_waits(t);
	KUNIT_EXPECT_EQ(test, 1, t->sva_domains);
	complete(&flush);
	KUNIT_EXPECT_TRUE(test, waits);
	KUNIT_EXPECT_TRUE(test, unregister_ends(t));
	KUNIT_EXPECT_EQ(test, 0, kthread_stop(thread));
	put_task_struct(thread);
	KUNIT_EXPECT_EQ(test, 0, t->sva_domains);
	KUNIT_EXPECT_EQ(test, 1, t->responses);
	t->flushing = NULL;
	t->flush = NULL;
	iopf_queue_free(t->queue);
	iommu_sva_unbind_device(bond);
	mmput(mm);
}
#endif /* CONFIG_IOMMU_SVA */

struct test_data {
	u32 a;
	u32 b;
};

/* Copy between a driver and the kernel copy of user data */
static void test_copy_struct(struct kunit *test)
{
	struct test_data data = { 1, 2 }, copy;
	struct iommu_user_data user = { .type = 7, .len = sizeof(data) };

	user.buffer = kunit_kzalloc(test,
				    struct_size(user.buffer, data, user.len),
				    GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, user.buffer);
	/* Lest gcc warn of what would be read if it were NULL */
	OPTIMIZER_HIDE_VAR(user.buffer);

	KUNIT_EXPECT_EQ(test, -EINVAL,
			iommu_copy_struct_to_user(&user, &data, 8, a));
	user.len = sizeof(data) + 1;
	KUNIT_EXPECT_EQ(test, -EINVAL,
			iommu_copy_struct_to_user(&user, &data, 7, a));
	user.len = sizeof(data.a) - 1;
	KUNIT_EXPECT_EQ(test, -EINVAL,
			iommu_copy_struct_to_user(&user, &data, 7, a));
	KUNIT_EXPECT_FALSE(test, user.buffer->written);

	/* Copy as much as the other side knows, and zero the rest */
	user.len = sizeof(data.a);
	KUNIT_EXPECT_EQ(test, 0, iommu_copy_struct_to_user(&user, &data, 7, a));
	KUNIT_EXPECT_TRUE(test, user.buffer->written);
	copy = data;
	KUNIT_EXPECT_EQ(test, 0,
			iommu_copy_struct_from_user(&copy, &user, 7, a));
	KUNIT_EXPECT_EQ(test, 1, copy.a);
	KUNIT_EXPECT_EQ(test, 0, copy.b);
	user.len = sizeof(data);
	KUNIT_EXPECT_EQ(test, 0, iommu_copy_struct_to_user(&user, &data, 7, a));
	KUNIT_EXPECT_EQ(test, 0,
			iommu_copy_struct_from_user(&copy, &user, 7, a));
	KUNIT_EXPECT_MEMEQ(test, &copy, &data, sizeof(data));
}

static void test_copy_array(struct kunit *test)
{
	const struct test_data data[] = { { 1, 2 }, { 3, 4 } };
	struct iommu_user_data_array array = {
		.type = 7,
		.entries = data,
		.entry_len = sizeof(*data),
		.entry_num = ARRAY_SIZE(data),
	};
	struct test_data copy[2];

	KUNIT_EXPECT_EQ(test, -EINVAL,
			iommu_copy_struct_from_user_array(&copy[0], &array, 8,
							  1, a));
	KUNIT_EXPECT_EQ(test, -EINVAL,
			iommu_copy_struct_from_full_user_array(copy,
							       sizeof(*copy),
							       &array, 8));
	KUNIT_EXPECT_EQ(test, 0,
			iommu_copy_struct_from_user_array(&copy[0], &array, 7,
							  1, a));
	KUNIT_EXPECT_MEMEQ(test, &copy[0], &data[1], sizeof(*data));
	KUNIT_EXPECT_EQ(test, 0,
			iommu_copy_struct_from_full_user_array(copy,
							       sizeof(*copy),
							       &array, 7));
	KUNIT_EXPECT_MEMEQ(test, copy, data, sizeof(data));
	KUNIT_EXPECT_PTR_EQ(test, (const void *)data,
			    iommu_user_array_entries(&array, 7, sizeof(*data)));
	KUNIT_EXPECT_NULL(test,
			  iommu_user_array_entries(&array, 8, sizeof(*data)));

	array.entry_len = sizeof(*data) + 1;
	KUNIT_EXPECT_EQ(test, -EINVAL,
			iommu_copy_struct_from_user_array(&copy[0], &array, 7,
							  0, a));
	KUNIT_EXPECT_EQ(test, -EINVAL,
			iommu_copy_struct_from_full_user_array(copy,
							       sizeof(*copy),
							       &array, 7));
	KUNIT_EXPECT_NULL(test,
			  iommu_user_array_entries(&array, 7, sizeof(*data)));
	array.entry_len = sizeof(data->a) - 1;
	KUNIT_EXPECT_EQ(test, -EINVAL,
			iommu_copy_struct_from_user_array(&copy[0], &array, 7,
							  0, a));
	array.entry_len = sizeof(*data);
	array.entry_num = 0;
	KUNIT_EXPECT_EQ(test, -EINVAL,
			iommu_copy_struct_from_full_user_array(copy,
							       sizeof(*copy),
							       &array, 7));
	KUNIT_EXPECT_NULL(test,
			  iommu_user_array_entries(&array, 7, sizeof(*data)));
}

static struct kunit_case iommu_device_test_cases[] = {
	KUNIT_CASE(test_get_put),
	KUNIT_CASE(test_unregister_waits),
	KUNIT_CASE(test_get_after_unregister),
	KUNIT_CASE(test_probe_after_unregister),
	KUNIT_CASE(test_probe_without_sysfs),
	KUNIT_CASE(test_probe_at_register),
	KUNIT_CASE(test_probe_group_at_register),
	KUNIT_CASE(test_probe_fails_at_register),
	KUNIT_CASE(test_unplug_at_register),
	KUNIT_CASE(test_register_finds_devices),
	KUNIT_CASE(test_sysfs_add_fails),
	KUNIT_CASE(test_unregister_unregistered),
	KUNIT_CASE(test_lose_dma_owner),
	KUNIT_CASE(test_replace_foreign_domain),
	KUNIT_CASE(test_lose_group_owner),
	KUNIT_CASE(test_revoke_device),
	KUNIT_CASE(test_revoke_newest_first),
	KUNIT_CASE(test_movable),
	KUNIT_CASE(test_claimed),
	KUNIT_CASE(test_claimed_both),
	KUNIT_CASE(test_claimed_late),
	KUNIT_CASE(test_claim_during_revoke),
	KUNIT_CASE(test_put_late),
	KUNIT_CASE(test_moved_lower),
	KUNIT_CASE(test_stuck_elsewhere),
#if IS_ENABLED(CONFIG_IOMMU_SVA)
	KUNIT_CASE(test_sva),
	KUNIT_CASE(test_sva_revoked),
	KUNIT_CASE(test_sva_notified),
	KUNIT_CASE(test_sva_features),
	KUNIT_CASE(test_sva_fault),
	KUNIT_CASE(test_sva_reported),
#endif
	KUNIT_CASE(test_copy_struct),
	KUNIT_CASE(test_copy_array),
	KUNIT_CASE(test_hang_is_reported),
	KUNIT_CASE(test_second_hang_is_reported),
	{}
};

static struct kunit_suite iommu_device_test_suite = {
	.name = "iommu_device",
	.init = test_init,
	.exit = test_exit,
	.test_cases = iommu_device_test_cases,
};

kunit_test_suite(iommu_device_test_suite);
