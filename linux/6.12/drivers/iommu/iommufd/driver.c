// SPDX-License-Identifier: GPL-2.0-only
/*
 * Functions for IOMMU drivers. They are built in even if iommufd is a module,
 * so that built-in IOMMU drivers can support vIOMMUs.
 */
#include <linux/export.h>
#include <linux/iommu.h>
#include <linux/iommufd.h>
#include <linux/mm.h>
#include <linux/poll.h>
#include <linux/rbtree.h>
#include <linux/sched/mm.h>
#include <linux/slab.h>
#include <linux/wait.h>

#include "iommufd_private.h"

/**
 * iommufd_vdevice_to_device() - The device of a vDEVICE
 * @vdev: the vDEVICE, in a callback that has it as its argument
 *
 * Return: the device. It is there until the callback returns.
 */
struct device *iommufd_vdevice_to_device(struct iommufd_vdevice *vdev)
{
	return vdev->idev->dev;
}
EXPORT_SYMBOL_NS_GPL(iommufd_vdevice_to_device, IOMMUFD);

/**
 * iommufd_viommu_find_dev() - Find a device by the ID that the VM has for it
 * @viommu: the vIOMMU
 * @vdev_id: the virtual ID of the device
 *
 * Context: Process context. The caller holds the xa_lock of @viommu->vdevs. The
 * device can be unplugged as soon as the lock is dropped.
 * Return: the device, or NULL if there is none with this ID.
 */
struct device *iommufd_viommu_find_dev(struct iommufd_viommu *viommu,
				       unsigned long vdev_id)
{
	XA_STATE(xas, &viommu->vdevs, vdev_id);
	struct iommufd_vdevice *vdev;

	lockdep_assert_held(&viommu->vdevs.xa_lock);

	vdev = xas_load(&xas);
	return vdev && !vdev->hidden ? vdev->idev->dev : NULL;
}
EXPORT_SYMBOL_NS_GPL(iommufd_viommu_find_dev, IOMMUFD);

/**
 * iommufd_viommu_get_vdev_id() - Find the ID that the VM has for a device
 * @viommu: the vIOMMU
 * @dev: a device behind the physical IOMMU of @viommu
 * @vdev_id: Output the virtual ID, unless this fails
 *
 * This takes constant time. A driver should call it whenever it needs the ID,
 * and must not keep the ID: the vDEVICE can be destroyed, and its ID given to
 * another device, while this one stays attached. A driver that must never use a
 * stale ID gets and uses it under a lock that &iommufd_vdevice.destroy takes as
 * well.
 *
 * Context: Any in which a spinlock_t can be taken. The caller keeps the IOMMU
 * driver from releasing @dev.
 * Return: 0, or -ENOENT if @dev has no vDEVICE on @viommu.
 */
int iommufd_viommu_get_vdev_id(struct iommufd_viommu *viommu,
			       struct device *dev, unsigned long *vdev_id)
{
	struct dev_iommu *param = dev->iommu;
	unsigned long flags;
	int rc = -ENOENT;

	/* Other vIOMMUs are set without this lock, but do not matter here */
	spin_lock_irqsave(&viommu->virt_id_lock, flags);
	if (READ_ONCE(param->viommu) == viommu) {
		*vdev_id = param->virt_id;
		rc = 0;
	}
	spin_unlock_irqrestore(&viommu->virt_id_lock, flags);
	return rc;
}
EXPORT_SYMBOL_NS_GPL(iommufd_viommu_get_vdev_id, IOMMUFD);

static struct iommufd_vevent *iommufd_vevent_alloc(struct iommufd_veventq *veventq,
						   const void *event_data,
						   size_t data_len)
{
	struct mem_cgroup *old_memcg;
	struct iommufd_vevent *vevent;

	lockdep_assert_held(&veventq->lock);

	vevent = list_first_entry_or_null(&veventq->spare,
					  struct iommufd_vevent, node);
	if (vevent && data_len <= vevent->room) {
		list_del(&vevent->node);
		veventq->num_spare--;
	} else {
		/* Under a spinlock. If this fails the event counts as lost. */
		old_memcg = set_active_memcg(veventq->memcg);
		vevent = kmalloc(struct_size(vevent, data, data_len),
				 GFP_NOWAIT | __GFP_ACCOUNT | __GFP_NOWARN);
		set_active_memcg(old_memcg);
		if (!vevent)
			return NULL;
		vevent->room = data_len;
	}
	vevent->data_len = data_len;
	memcpy(vevent->data, event_data, data_len);
	return vevent;
}

static int iommufd_veventq_cmp_type(const void *type,
				    const struct rb_node *node)
{
	const u32 other = rb_entry(node, struct iommufd_veventq, node)->type;
	const u32 this = *(const u32 *)type;

	return this < other ? -1 : this > other;
}

static struct iommufd_veventq *
iommufd_viommu_find_veventq(struct iommufd_viommu *viommu, u32 type)
{
	struct rb_node *node;

	lockdep_assert_held(&viommu->veventqs_lock);

	node = rb_find(&type, &viommu->veventqs, iommufd_veventq_cmp_type);
	return rb_entry_safe(node, struct iommufd_veventq, node);
}

/**
 * iommufd_viommu_report_event() - Report an event for the VM to see
 * @viommu: the vIOMMU that the event is for
 * @type: the type of the event, one of enum iommu_veventq_type
 * @event_data: the event, in the format of @type. It must contain only what the
 *              VM may know: its own IDs and addresses.
 * @data_len: the length of the event in bytes
 *
 * The event is copied into the vEVENTQ of this type. If that is full, or there
 * is no memory, the event is lost, and user space is told so. The time does not
 * depend on the number of events in the queue, but it does depend on the number
 * of waiting threads, which are all woken up.
 *
 * Context: Any in which a spinlock_t can be taken. The caller makes sure that
 * @viommu's destroy callback has not been called, for example with a spinlock
 * that is taken in that callback as well.
 * Return: 0, also if the queue is full, -EOPNOTSUPP if there is no vEVENTQ of
 * this type, -EINVAL if there is no data, or -ENOMEM if the event is lost
 * because there is no memory.
 */
int iommufd_viommu_report_event(struct iommufd_viommu *viommu,
				enum iommu_veventq_type type, void *event_data,
				size_t data_len)
{
	struct iommufd_vevent *vevent = NULL;
	struct iommufd_veventq *veventq;
	unsigned long flags;
	bool wake;
	int rc = 0;

	if (WARN_ON_ONCE(!data_len || !event_data))
		return -EINVAL;

	/* The lock keeps the vEVENTQ that is found from going away */
	spin_lock_irqsave(&viommu->veventqs_lock, flags);
	veventq = iommufd_viommu_find_veventq(viommu, type);
	if (!veventq) {
		rc = -EOPNOTSUPP;
		goto out_unlock;
	}

	spin_lock(&veventq->lock);
	if (veventq->num_events < veventq->depth) {
		vevent = iommufd_vevent_alloc(veventq, event_data, data_len);
		if (!vevent)
			rc = -ENOMEM;
	}
	if (vevent) {
		vevent->header.flags = 0;
		vevent->header.sequence = veventq->sequence;
		list_add_tail(&vevent->node, &veventq->deliver);
		veventq->num_events++;
	}
	veventq->lost = !vevent;
	veventq->sequence = (veventq->sequence + 1) & INT_MAX;
	/* A later waiter takes the lock, so it sees the event */
	wake = waitqueue_active(&veventq->wait_queue);
	spin_unlock(&veventq->lock);

	if (wake)
		wake_up_interruptible_poll(&veventq->wait_queue,
					   EPOLLIN | EPOLLRDNORM);
out_unlock:
	spin_unlock_irqrestore(&viommu->veventqs_lock, flags);
	return rc;
}
EXPORT_SYMBOL_NS_GPL(iommufd_viommu_report_event, IOMMUFD);

/* See iommufd_hw_queue_depend() */
int __iommufd_hw_queue_depend(struct iommufd_hw_queue *dependent,
			      struct iommufd_hw_queue *depended)
{
	struct iommufd_viommu *viommu = dependent->viommu;
	struct xarray *objects = &viommu->ictx->objects;
	struct iommufd_object *obj = &depended->obj;
	int rc = 0;

	if (WARN_ON_ONCE(depended->viommu != viommu || dependent->depended))
		return -EINVAL;

	xa_lock(objects);
	if (xa_load(objects, obj->id) != obj || !obj->finalized)
		rc = -ENOENT;
	else if (obj->revoked)
		rc = -ENODEV;
	else if (WARN_ON_ONCE(!iommufd_lock_obj(obj)))
		/* The users count is not 0 while the xarray has the object */
		rc = -ENOENT;
	xa_unlock(objects);
	if (rc)
		return rc;
	dependent->depended = depended;
	/* Holds off @depended's revocation until @dependent is a holder */
	dependent->depended_locked = true;
	return 0;
}
EXPORT_SYMBOL_NS_GPL(__iommufd_hw_queue_depend, IOMMUFD);

void __iommufd_hw_queue_undepend(struct iommufd_hw_queue *dependent,
				 struct iommufd_hw_queue *depended)
{
	if (WARN_ON_ONCE(dependent->depended != depended))
		return;
	dependent->depended = NULL;
	if (dependent->depended_locked)
		iommufd_put_object(dependent->viommu->ictx, &depended->obj);
	else
		refcount_dec(&depended->obj.users);
}
EXPORT_SYMBOL_NS_GPL(__iommufd_hw_queue_undepend, IOMMUFD);

void iommufd_mmap_release(struct kref *ref)
{
	struct iommufd_mmap *immap =
		container_of(ref, struct iommufd_mmap, ref);

	mutex_destroy(&immap->lock);
	kfree(immap);
}
EXPORT_SYMBOL_NS_GPL(iommufd_mmap_release, IOMMUFD_INTERNAL);

/**
 * iommufd_viommu_alloc_mmap() - Let user space map a region of the vIOMMU
 * @viommu: the vIOMMU that the region belongs to
 * @mmio_addr: physical address of the region, a multiple of PAGE_SIZE
 * @length: length of the region in bytes, a multiple of PAGE_SIZE
 * @offset: Output the offset for mmap(), not 0, unless this fails
 *
 * The driver tells user space the offset and the length. Once the vIOMMU is
 * finalized, user space can mmap() the region through the iommufd, only as a
 * whole. While that is mapped, user space cannot destroy @viommu.
 *
 * Context: May sleep. For &iommu_ops.viommu_init and the callbacks in
 * &struct iommufd_viommu_ops.
 * Return: 0, -EINVAL if the region is not one of whole pages, -ENOMEM, or -ENOSPC if
 * there is no offset left.
 */
int iommufd_viommu_alloc_mmap(struct iommufd_viommu *viommu,
			      phys_addr_t mmio_addr, size_t length,
			      unsigned long *offset)
{
	/* The byte offset of a page below this is not negative as a long */
	const unsigned long end = ULONG_MAX >> (PAGE_SHIFT + 1);
	unsigned long npages = length >> PAGE_SHIFT;
	struct iommufd_ctx *ictx = viommu->ictx;
	struct interval_tree_node *node;
	struct iommufd_mmap *immap;
	bool wrapped = false;
	unsigned long start;

	if (WARN_ON_ONCE(!length || !PAGE_ALIGNED(length) ||
			 !PAGE_ALIGNED(mmio_addr)))
		return -EINVAL;

	immap = kzalloc(sizeof(*immap), GFP_KERNEL_ACCOUNT);
	if (!immap)
		return -ENOMEM;
	kref_init(&immap->ref);
	mutex_init(&immap->lock);
	immap->owner = &viommu->obj;
	immap->pfn = PHYS_PFN(mmio_addr);

	mutex_lock(&ictx->mmaps_lock);
	/* Give out offsets in turn, so that none is reused soon */
	for (start = ictx->mmaps_next;; start = node->last + 1) {
		if (npages > end || start > end - npages) {
			if (wrapped || npages > end)
				break;
			wrapped = true;
			start = 1;
		}
		node = interval_tree_iter_first(&ictx->mmaps, start,
						start + npages - 1);
		if (!node) {
			immap->node.start = start;
			immap->node.last = start + npages - 1;
			interval_tree_insert(&immap->node, &ictx->mmaps);
			ictx->mmaps_next = immap->node.last + 1;
			*offset = start << PAGE_SHIFT;
			mutex_unlock(&ictx->mmaps_lock);
			return 0;
		}
	}
	mutex_unlock(&ictx->mmaps_lock);
	kref_put(&immap->ref, iommufd_mmap_release);
	return -ENOSPC;
}
EXPORT_SYMBOL_NS_GPL(iommufd_viommu_alloc_mmap, IOMMUFD);

/**
 * iommufd_viommu_destroy_mmap() - Undo iommufd_viommu_alloc_mmap()
 * @viommu: the vIOMMU that the region belongs to
 * @offset: what iommufd_viommu_alloc_mmap() has given
 *
 * User space may have the region mapped when the physical IOMMU goes away. This
 * unmaps it: when it returns, touching the region raises SIGBUS.
 *
 * Context: May sleep. For &iommufd_viommu_ops.destroy, and for
 * &iommu_ops.viommu_init if it fails after all.
 */
void iommufd_viommu_destroy_mmap(struct iommufd_viommu *viommu,
				 unsigned long offset)
{
	unsigned long pgoff = offset >> PAGE_SHIFT;
	struct iommufd_ctx *ictx = viommu->ictx;
	struct interval_tree_node *node;
	struct iommufd_mmap *immap;
	bool mapped;

	mutex_lock(&ictx->mmaps_lock);
	node = interval_tree_iter_first(&ictx->mmaps, pgoff, pgoff);
	immap = container_of(node, struct iommufd_mmap, node);
	if (WARN_ON_ONCE(!node || node->start != pgoff ||
			 immap->owner != &viommu->obj)) {
		mutex_unlock(&ictx->mmaps_lock);
		return;
	}
	interval_tree_remove(node, &ictx->mmaps);
	mutex_unlock(&ictx->mmaps_lock);

	mutex_lock(&immap->lock);
	immap->gone = true;
	mapped = immap->num_vmas;
	if (mapped)
		WARN_ON(refcount_sub_and_test(immap->num_vmas,
					      &immap->owner->users));
	mutex_unlock(&immap->lock);

	/* A vma keeps the file open, and with it the mapping */
	if (mapped)
		unmap_mapping_range(&ictx->mapping, offset,
				    (loff_t)(node->last - node->start + 1)
					    << PAGE_SHIFT,
				    1);
	kref_put(&immap->ref, iommufd_mmap_release);
}
EXPORT_SYMBOL_NS_GPL(iommufd_viommu_destroy_mmap, IOMMUFD);
