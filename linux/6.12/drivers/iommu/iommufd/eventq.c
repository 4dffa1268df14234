// SPDX-License-Identifier: GPL-2.0-only
/*
 * A vEVENTQ takes the events of a vIOMMU, which iommufd_viommu_report_event() puts
 * there, to user space.
 */
#include <linux/anon_inodes.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/iommufd.h>
#include <linux/memcontrol.h>
#include <linux/module.h>
#include <linux/poll.h>
#include <linux/rbtree.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <uapi/linux/iommufd.h>

#include "../iommu-priv.h"
#include "iommufd_private.h"

/* Far above what a VMM needs for any queue of a physical IOMMU */
#define IOMMU_VEVENTQ_DEPTH_MAX BIT(19)

/* Read events kept for reuse: a queue that is read in time allocates none */
#define IOMMU_VEVENTQ_SPARE_MAX 64

static int iommufd_veventq_cmp(struct rb_node *a, const struct rb_node *b)
{
	const u32 other = rb_entry(b, struct iommufd_veventq, node)->type;
	const u32 this = rb_entry(a, struct iommufd_veventq, node)->type;

	return this < other ? -1 : this > other;
}

/* Start the events. Fails if the vIOMMU has a vEVENTQ of this type already. */
static bool iommufd_veventq_publish(struct iommufd_veventq *veventq)
{
	struct iommufd_viommu *viommu = veventq->viommu;
	struct rb_node *other;

	spin_lock_irq(&viommu->veventqs_lock);
	other = rb_find_add(&veventq->node, &viommu->veventqs,
			    iommufd_veventq_cmp);
	spin_unlock_irq(&viommu->veventqs_lock);
	return !other;
}

static void iommufd_veventq_unpublish(struct iommufd_veventq *veventq)
{
	struct iommufd_viommu *viommu = veventq->viommu;

	spin_lock_irq(&viommu->veventqs_lock);
	rb_erase(&veventq->node, &viommu->veventqs);
	spin_unlock_irq(&viommu->veventqs_lock);
}

/* Stop the events. Those that are in the queue stay. */
static void iommufd_veventq_release(struct iommufd_veventq *veventq)
{
	struct iommufd_viommu *viommu = veventq->viommu;

	iommufd_veventq_unpublish(veventq);
	refcount_dec(&viommu->obj.users);

	spin_lock_irq(&veventq->lock);
	veventq->hangup = true;
	spin_unlock_irq(&veventq->lock);
	/* Wake all waiters: there will be no other wakeup */
	wake_up_all(&veventq->wait_queue);

	iommu_device_put_holder(&veventq->holder);
}

static bool iommufd_veventq_revoke(struct iommu_device_holder *holder)
{
	struct iommufd_veventq *veventq =
		container_of(holder, struct iommufd_veventq, holder);

	if (!iommufd_object_revoke(veventq->ictx, &veventq->obj))
		return false;
	iommufd_veventq_release(veventq);
	return true;
}

static const struct iommu_device_holder_ops iommufd_veventq_holder_ops = {
	.name = "iommufd vEVENTQ",
	.revoke = iommufd_veventq_revoke,
};

static void iommufd_veventq_free_events(struct iommufd_veventq *veventq)
{
	struct iommufd_vevent *cur, *next;

	list_splice(&veventq->spare, &veventq->deliver);
	list_for_each_entry_safe(cur, next, &veventq->deliver, node)
		kfree(cur);
}

/* The file is closed, or was never handed out */
void iommufd_veventq_destroy(struct iommufd_object *obj)
{
	struct iommufd_veventq *veventq =
		container_of(obj, struct iommufd_veventq, obj);

	if (iommu_device_claim_holder(&veventq->holder))
		iommufd_veventq_release(veventq);

	iommufd_veventq_free_events(veventq);
	mem_cgroup_put(veventq->memcg);
}

/*
 * The first event, NULL if there is none, ERR_PTR(-ENODEV) if there will be no
 * more, or ERR_PTR(-EINVAL) if it needs more than @count bytes. Lost events are
 * reported in @lost, an event without data. *@read, the last one, is recycled.
 */
static struct iommufd_vevent *
iommufd_veventq_fetch(struct iommufd_veventq *veventq, size_t count,
		      struct iommufd_vevent *lost, struct iommufd_vevent **read)
{
	struct iommufd_vevent *cur = NULL;

	spin_lock_irq(&veventq->lock);
	if (*read) {
		if (veventq->num_spare < IOMMU_VEVENTQ_SPARE_MAX) {
			list_add(&(*read)->node, &veventq->spare);
			veventq->num_spare++;
		} else {
			kfree(*read);
		}
		*read = NULL;
	}
	if (!list_empty(&veventq->deliver)) {
		cur = list_first_entry(&veventq->deliver, struct iommufd_vevent,
				       node);
	} else if (veventq->lost) {
		cur = lost;
		cur->header.flags = IOMMU_VEVENTQ_FLAG_LOST_EVENTS;
		cur->header.sequence = (veventq->sequence - 1) & INT_MAX;
		cur->data_len = 0;
	} else if (veventq->hangup) {
		cur = ERR_PTR(-ENODEV);
		goto out_unlock;
	}
	if (count < sizeof(cur->header) + (cur ? cur->data_len : 0)) {
		cur = ERR_PTR(-EINVAL);
	} else if (cur == lost) {
		veventq->lost = false;
	} else if (cur) {
		list_del(&cur->node);
		veventq->num_events--;
	}
out_unlock:
	spin_unlock_irq(&veventq->lock);
	return cur;
}

/*
 * The copy to user space failed. The next read gets the event. If several reads failed,
 * their events are still in the order of their numbers.
 */
static void iommufd_veventq_restore(struct iommufd_veventq *veventq,
				    struct iommufd_vevent *cur,
				    struct iommufd_vevent *lost)
{
	struct iommufd_vevent *next;

	spin_lock_irq(&veventq->lock);
	if (cur != lost) {
		/* Find the first one after @cur. Numbers wrap at INT_MAX. */
		list_for_each_entry(next, &veventq->deliver, node)
			if (((next->header.sequence - cur->header.sequence) &
			     INT_MAX) <= INT_MAX / 2)
				break;
		/* This may exceed the depth by one event */
		list_add_tail(&cur->node, &next->node);
		veventq->num_events++;
	} else if (((veventq->sequence - 1) & INT_MAX) ==
		   lost->header.sequence) {
		veventq->lost = true;
	}
	/* Otherwise a later event tells by its number that some were lost */
	spin_unlock_irq(&veventq->lock);

	wake_up_interruptible_poll(&veventq->wait_queue,
				   EPOLLIN | EPOLLRDNORM);
}

static ssize_t iommufd_veventq_fops_read(struct file *filep, char __user *buf,
					 size_t count, loff_t *ppos)
{
	struct iommufd_veventq *veventq = filep->private_data;
	struct iommufd_vevent lost, *cur, *read = NULL;
	size_t done = 0;
	size_t len;
	int rc = 0;

	if (*ppos)
		return -ESPIPE;

	while ((cur = iommufd_veventq_fetch(veventq, count - done, &lost,
					    &read))) {
		if (IS_ERR(cur)) {
			rc = PTR_ERR(cur);
			break;
		}
		len = sizeof(cur->header) + cur->data_len;
		if (copy_to_user(buf + done, &cur->header, len)) {
			iommufd_veventq_restore(veventq, cur, &lost);
			rc = -EFAULT;
			break;
		}
		done += len;
		if (cur != &lost)
			read = cur;

		if (signal_pending(current))
			break;
		cond_resched();
	}
	kfree(read);
	return done ?: rc;
}

static __poll_t iommufd_veventq_fops_poll(struct file *filep,
					  struct poll_table_struct *wait)
{
	struct iommufd_veventq *veventq = filep->private_data;
	__poll_t pollflags = 0;

	poll_wait(filep, &veventq->wait_queue, wait);
	spin_lock_irq(&veventq->lock);
	if (!list_empty(&veventq->deliver) || veventq->lost)
		pollflags = EPOLLIN | EPOLLRDNORM;
	else if (veventq->hangup)
		pollflags = EPOLLHUP;
	spin_unlock_irq(&veventq->lock);
	return pollflags;
}

static int iommufd_veventq_fops_release(struct inode *inode, struct file *filep)
{
	struct iommufd_veventq *veventq = filep->private_data;
	/* veventq may be freed once the users reference is dropped. */
	struct iommufd_ctx *ictx = veventq->ictx;

	refcount_dec(&veventq->obj.users);
	iommufd_ctx_put(ictx);
	return 0;
}

static const struct file_operations iommufd_veventq_fops = {
	.owner		= THIS_MODULE,
	.read		= iommufd_veventq_fops_read,
	.poll		= iommufd_veventq_fops_poll,
	.release	= iommufd_veventq_fops_release,
};

static struct iommufd_veventq *
iommufd_veventq_alloc(struct iommufd_viommu *viommu, u32 type, u32 depth)
{
	struct iommufd_ctx *ictx = viommu->ictx;
	struct iommufd_veventq *veventq;
	int rc;

	veventq = iommufd_object_alloc(ictx, veventq, IOMMUFD_OBJ_VEVENTQ);
	if (IS_ERR(veventq))
		return veventq;
	veventq->ictx = ictx;
	veventq->viommu = viommu;
	veventq->type = type;
	veventq->depth = depth;
	INIT_LIST_HEAD(&veventq->deliver);
	INIT_LIST_HEAD(&veventq->spare);
	spin_lock_init(&veventq->lock);
	init_waitqueue_head(&veventq->wait_queue);
	veventq->memcg = get_mem_cgroup_from_mm(current->mm);

	if (!iommufd_veventq_publish(veventq)) {
		rc = -EEXIST;
		goto out_abort;
	}
	refcount_inc(&viommu->obj.users);

	/* From here on it can be revoked */
	rc = iommu_device_stack_holder(&viommu->holder, &veventq->holder,
				       &iommufd_veventq_holder_ops);
	if (rc) {
		refcount_dec(&viommu->obj.users);
		iommufd_veventq_unpublish(veventq);
		iommufd_veventq_free_events(veventq);
		goto out_abort;
	}
	return veventq;

out_abort:
	mem_cgroup_put(veventq->memcg);
	iommufd_object_abort(ictx, &veventq->obj);
	return ERR_PTR(rc);
}

int iommufd_veventq_alloc_ioctl(struct iommufd_ucmd *ucmd)
{
	struct iommu_veventq_alloc *cmd = ucmd->cmd;
	struct iommufd_veventq *veventq;
	struct iommufd_viommu *viommu;
	int fdno;
	int rc;

	if (cmd->flags || cmd->__reserved ||
	    cmd->type == IOMMU_VEVENTQ_TYPE_DEFAULT)
		return -EOPNOTSUPP;
	if (!cmd->veventq_depth || cmd->veventq_depth > IOMMU_VEVENTQ_DEPTH_MAX)
		return -EINVAL;

	viommu = iommufd_get_viommu(ucmd, cmd->viommu_id);
	if (IS_ERR(viommu))
		return PTR_ERR(viommu);
	veventq = iommufd_veventq_alloc(viommu, cmd->type, cmd->veventq_depth);
	/* User space decides how long it takes to write to its memory */
	iommufd_put_object(ucmd->ictx, &viommu->obj);
	if (IS_ERR(veventq))
		return PTR_ERR(veventq);

	veventq->filep = anon_inode_getfile("[iommufd-veventq]",
					    &iommufd_veventq_fops, veventq,
					    O_RDONLY);
	if (IS_ERR(veventq->filep)) {
		rc = PTR_ERR(veventq->filep);
		veventq->filep = NULL;
		goto out_abort;
	}
	/* The file holds these two until it is released */
	refcount_inc(&veventq->obj.users);
	iommufd_ctx_get(veventq->ictx);

	fdno = get_unused_fd_flags(O_CLOEXEC);
	if (fdno < 0) {
		rc = fdno;
		goto out_abort;
	}

	cmd->out_veventq_id = veventq->obj.id;
	cmd->out_veventq_fd = fdno;
	rc = iommufd_ucmd_respond(ucmd, sizeof(*cmd));
	if (rc)
		goto out_put_fdno;
	iommufd_object_finalize(ucmd->ictx, &veventq->obj);
	fd_install(fdno, veventq->filep);
	return 0;

out_put_fdno:
	put_unused_fd(fdno);
out_abort:
	iommufd_object_abort_and_destroy(ucmd->ictx, &veventq->obj);
	return rc;
}
