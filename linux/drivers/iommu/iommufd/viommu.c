// SPDX-License-Identifier: GPL-2.0-only
/*
 * A vIOMMU is a VM's slice of one physical IOMMU. User space names the physical
 * IOMMU by a device behind it, but the vIOMMU holds the physical IOMMU itself:
 *
 *    vIOMMU --users----------> nesting parent HWPT
 *    vIOMMU --iommu_device_get()--> struct iommu_device --> driver's module
 *
 * and nothing of the device, which may be unplugged while the vIOMMU stays.
 */
#include <linux/iommu.h>
#include <linux/iommufd.h>
#include <uapi/linux/iommufd.h>

#include "iommufd_private.h"

void iommufd_viommu_destroy(struct iommufd_object *obj)
{
	struct iommufd_viommu *viommu =
		container_of(obj, struct iommufd_viommu, obj);

	if (viommu->ops && viommu->ops->destroy)
		viommu->ops->destroy(viommu);
	refcount_dec(&viommu->hwpt->common.obj.users);
	/* The driver, its ops included, may be gone from here on */
	iommu_device_put(viommu->iommu_dev);
}

/* The reference on iommu_dev moves into the vIOMMU, unless this fails */
static struct iommufd_viommu *
iommufd_viommu_alloc(struct iommufd_ctx *ictx, struct iommu_device *iommu_dev,
		     size_t size, enum iommu_viommu_type type,
		     struct iommufd_hwpt_paging *hwpt_paging,
		     const struct iommu_user_data *user_data)
{
	const struct iommu_ops *ops = iommu_dev->ops;
	struct iommufd_viommu *viommu;
	struct iommufd_object *obj;
	int rc;

	/* A parent that another driver made is not what viommu_init() expects */
	if (!hwpt_paging->nest_parent ||
	    hwpt_paging->common.domain->owner != ops)
		return ERR_PTR(-EINVAL);

	obj = _iommufd_object_alloc(ictx, size, IOMMUFD_OBJ_VIOMMU);
	if (IS_ERR(obj))
		return ERR_CAST(obj);

	viommu = container_of(obj, struct iommufd_viommu, obj);
	viommu->ictx = ictx;
	viommu->iommu_dev = iommu_dev;
	viommu->hwpt = hwpt_paging;
	viommu->type = type;

	rc = ops->viommu_init(viommu, hwpt_paging->common.domain, user_data);
	if (!rc && WARN_ON_ONCE(!viommu->ops))
		rc = -EINVAL;
	if (rc) {
		iommufd_object_abort(ictx, obj);
		return ERR_PTR(rc);
	}

	refcount_inc(&hwpt_paging->common.obj.users);
	return viommu;
}

int iommufd_viommu_alloc_ioctl(struct iommufd_ucmd *ucmd)
{
	struct iommu_viommu_alloc *cmd = ucmd->cmd;
	const struct iommu_user_data user_data = {
		.type = cmd->type,
		.uptr = u64_to_user_ptr(cmd->data_uptr),
		.len = cmd->data_len,
	};
	struct iommufd_hwpt_paging *hwpt_paging;
	struct iommu_device *iommu_dev;
	const struct iommu_ops *ops;
	struct iommufd_viommu *viommu;
	struct iommufd_device *idev;
	size_t size = 0;
	int rc;

	if (cmd->flags || cmd->__reserved ||
	    cmd->type == IOMMU_VIOMMU_TYPE_DEFAULT)
		return -EOPNOTSUPP;

	idev = iommufd_get_device(ucmd, cmd->dev_id);
	if (IS_ERR(idev))
		return PTR_ERR(idev);

	iommu_dev = iommu_device_get(idev->dev);
	if (IS_ERR(iommu_dev)) {
		iommufd_put_object(ucmd->ictx, &idev->obj);
		return PTR_ERR(iommu_dev);
	}

	ops = iommu_dev->ops;
	if (ops->get_viommu_size && ops->viommu_init)
		size = ops->get_viommu_size(idev->dev, cmd->type);

	/* The device has served its purpose, do not delay its unplug */
	iommufd_put_object(ucmd->ictx, &idev->obj);

	if (!size || WARN_ON_ONCE(size < sizeof(*viommu))) {
		rc = -EOPNOTSUPP;
		goto out_put_iommu;
	}

	hwpt_paging = iommufd_get_hwpt_paging(ucmd, cmd->hwpt_id);
	if (IS_ERR(hwpt_paging)) {
		rc = PTR_ERR(hwpt_paging);
		goto out_put_iommu;
	}

	viommu = iommufd_viommu_alloc(ucmd->ictx, iommu_dev, size, cmd->type,
				      hwpt_paging,
				      user_data.len ? &user_data : NULL);
	iommufd_put_object(ucmd->ictx, &hwpt_paging->common.obj);
	if (IS_ERR(viommu)) {
		rc = PTR_ERR(viommu);
		goto out_put_iommu;
	}

	cmd->out_viommu_id = viommu->obj.id;
	rc = iommufd_ucmd_respond(ucmd, sizeof(*cmd));
	if (rc) {
		iommufd_object_abort_and_destroy(ucmd->ictx, &viommu->obj);
		return rc;
	}
	iommufd_object_finalize(ucmd->ictx, &viommu->obj);
	return 0;

out_put_iommu:
	iommu_device_put(iommu_dev);
	return rc;
}
