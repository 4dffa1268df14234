// SPDX-License-Identifier: GPL-2.0-only
/*
 * KUnit tests of an IOMMU that is there without its files in sysfs: some drivers
 * remove them before they unregister the IOMMU.
 */
#include <kunit/device.h>
#include <kunit/test.h>
#include <linux/iommu.h>
#include <linux/platform_device.h>
#include <linux/property.h>

#include "iommu-priv.h"

struct test_iommu {
	struct iommu_device iommu;
	struct fwnode_handle *fwnode;
	struct device *hwdev;
	/* Behind the IOMMU */
	struct platform_device *pdev;
	bool registered;
};

static int test_attach(struct iommu_domain *domain, struct device *dev,
		       struct iommu_domain *old)
{
	return 0;
}

static struct iommu_domain test_blocked_domain = {
	.type = IOMMU_DOMAIN_BLOCKED,
	.ops = &(const struct iommu_domain_ops){ .attach_dev = test_attach },
};

static struct iommu_device *test_probe_device(struct device *dev)
{
	struct test_iommu **t = dev_get_platdata(dev);

	return t ? &(*t)->iommu : ERR_PTR(-ENODEV);
}

static const struct iommu_ops test_ops = {
	.default_domain = &test_blocked_domain,
	.blocked_domain = &test_blocked_domain,
	.probe_device = test_probe_device,
	.device_group = generic_device_group,
};

static int test_probe(struct test_iommu *t)
{
	int ret;

	mutex_lock(&iommu_probe_device_lock);
	ret = iommu_fwspec_init(&t->pdev->dev, t->fwnode);
	mutex_unlock(&iommu_probe_device_lock);
	return ret ?: iommu_probe_device(&t->pdev->dev);
}

static int test_init(struct kunit *test)
{
	struct test_iommu *t;

	t = kunit_kzalloc(test, sizeof(*t), GFP_KERNEL);
	if (!t)
		return -ENOMEM;
	test->priv = t;

	t->hwdev = kunit_device_register(test, "iommu-sysfs-test");
	if (IS_ERR(t->hwdev))
		return PTR_ERR(t->hwdev);
	t->fwnode = fwnode_create_software_node(NULL, NULL);
	if (IS_ERR(t->fwnode))
		return PTR_ERR(t->fwnode);
	set_primary_fwnode(t->hwdev, t->fwnode);

	KUNIT_ASSERT_EQ(test, 0,
			iommu_device_sysfs_add(&t->iommu, t->hwdev, NULL,
					       "iommu-sysfs-test"));
	KUNIT_ASSERT_EQ(test, 0,
			iommu_device_register(&t->iommu, &test_ops, t->hwdev));
	t->registered = true;

	t->pdev = platform_device_register_data(NULL, "iommu-sysfs-test-dev",
						PLATFORM_DEVID_AUTO, &t,
						sizeof(t));
	return PTR_ERR_OR_ZERO(t->pdev);
}

static void test_exit(struct kunit *test)
{
	struct test_iommu *t = test->priv;

	if (!t || IS_ERR_OR_NULL(t->fwnode))
		return;
	if (!IS_ERR_OR_NULL(t->pdev))
		platform_device_unregister(t->pdev);
	if (t->registered)
		iommu_device_unregister(&t->iommu);
	if (t->iommu.dev)
		iommu_device_sysfs_remove(&t->iommu);
	set_primary_fwnode(t->hwdev, NULL);
	fwnode_remove_software_node(t->fwnode);
}

/* A device that is there is released */
static void test_unregister(struct kunit *test)
{
	struct test_iommu *t = test->priv;

	KUNIT_ASSERT_EQ(test, 0, test_probe(t));
	KUNIT_ASSERT_NOT_NULL(test, t->pdev->dev.iommu_group);

	iommu_device_sysfs_remove(&t->iommu);
	t->registered = false;
	iommu_device_unregister(&t->iommu);
	KUNIT_EXPECT_NULL(test, t->pdev->dev.iommu_group);
}

/* So is one that is removed before the IOMMU is unregistered */
static void test_remove(struct kunit *test)
{
	struct test_iommu *t = test->priv;

	KUNIT_ASSERT_EQ(test, 0, test_probe(t));
	iommu_device_sysfs_remove(&t->iommu);
	platform_device_unregister(t->pdev);
	t->pdev = NULL;
}

/* And one that comes then is refused */
static void test_add(struct kunit *test)
{
	struct test_iommu *t = test->priv;

	iommu_device_sysfs_remove(&t->iommu);
	KUNIT_EXPECT_EQ(test, -ENODEV, test_probe(t));
	KUNIT_EXPECT_NULL(test, t->pdev->dev.iommu_group);
}

static struct kunit_case iommu_sysfs_test_cases[] = {
	KUNIT_CASE(test_unregister),
	KUNIT_CASE(test_remove),
	KUNIT_CASE(test_add),
	{}
};

static struct kunit_suite iommu_sysfs_test_suite = {
	.name = "iommu_sysfs",
	.init = test_init,
	.exit = test_exit,
	.test_cases = iommu_sysfs_test_cases,
};

kunit_test_suite(iommu_sysfs_test_suite);
