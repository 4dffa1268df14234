/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The life of a vIOMMU, for spin: references on an IOMMU instance, holders, their
 * revocation, iommu_device_unregister(), and the objects of iommufd that are
 * holders. scripts/model runs it.
 *
 * "= FUNCTION() FILE" says which function of the kernel the steps below stand for;
 * scripts/model checks that it is there. With the name of a series behind it, it is so
 * in that one alone.
 *
 * Both series are in here. Where the one for 7.3 does something in another way, that is
 * in SERIES_7_3: how a device is bound and unbound, how a vIOMMU is made, a nested HWPT on
 * it, and all of a vDEVICE.
 *
 * One step of the model is what the kernel does under a spinlock (iommu_device_lock,
 * the xa_lock of a file), or under iommu_probe_device_lock without sleeping or
 * touching anything that is not guarded by it, or one atomic operation; each is in a
 * d_step or atomic. A callback of the driver is two steps, its begin and its end,
 * so that all else can happen while it runs. Where several such things are in one
 * step all the same, a comment says why that cannot be seen.
 *
 * User space may stop for ever where it is (end_stop), in user memory that an ioctl
 * accesses as well.
 *
 * Not in here: IOAS and their locks, groups and attachments, memory that is mapped,
 * the events in a queue, HW queues that depend on each other, drivers that use the DMA
 * API, SVA, VFIO's containers, devices without an IOMMU, and that the DMA of a lost device
 * is blocked.
 */

/*
 * The contract's rows. A row's number is in its assertions, where it changes nothing, for
 * the text that spin prints of one that failed. 0 is no row: memory freed too early.
 */
#define ROW(n, c)	assert((c) || module == 100 + n)
#define L1(c)	ROW(1, c)
#define L2(c)	ROW(2, c)
#define L3(c)	ROW(3, c)
#define L4(c)	ROW(4, c)
#define L5(c)	ROW(5, c)
#define L6(c)	ROW(6, c)
#define L7(c)	ROW(7, c)
#define L8(c)	ROW(8, c)
#define L9(c)	ROW(9, c)
#define L10(c)	ROW(10, c)
#define L14(c)	ROW(14, c)
#define MEM(c)	ROW(0, c)

/* A row of a constant table */

#define AT2(o, a, b)	((o) == 0 -> a : b)
#define AT3(o, a, b, c)	((o) == 0 -> a : AT2((o) - 1, b, c))
#define AT4(o, a, b, c, d)	((o) == 0 -> a : AT3((o) - 1, b, c, d))
#define AT5(o, a, b, c, d, e)	((o) == 0 -> a : AT4((o) - 1, b, c, d, e))
#define AT6(o, a, b, c, d, e, f)	((o) == 0 -> a : AT5((o) - 1, b, c, d, e, f))

/* Types of objects */
#define DEVICE	1
#define HWPT	2
#define VIOMMU	3
#define CHILD	4	/* vEVENTQ, HW queue, nested HWPT on a vIOMMU */
#define VDEVICE	5
#define NONE	99

/*
 * The configurations. NI IOMMUs, NF files, ND devices, NT threads in ioctls. Objects
 * 0 to ND - 1 are the devices, as bound to a file. Of each object: its type, its
 * file, its IOMMU, the device that names it, and what it is built on.
 */
#if defined(FILES)
/* One IOMMU, two files with a vIOMMU each */
#define COARSE
#define RESTLESS
#define NI 1
#define NF 2
#define ND 2
#define NT 2
#define NO 4
#define PREBOUND
#define type(o)	AT4(o, DEVICE, DEVICE, VIOMMU, VIOMMU)
#define file(o)	AT4(o, 0, 1, 0, 1)
#define iommu(o)	0
#define device(o)	AT4(o, 0, 1, 0, 1)
#define parent(o)	NONE
#define thread(o)	AT2(o, 0, 1)
#define PICK :: file(2) == f -> o = 2 :: file(3) == f -> o = 3
#elif defined(SMALL) || defined(TWO)
/* One vIOMMU, one thread or two */
#ifdef TWO
#define NT 2
#else
#define NT 1
#endif
#define NI 1
#define NF 1
#define ND 1
#define NO 2
#define PREBOUND
#define PAUSE
#define type(o)	AT2(o, DEVICE, VIOMMU)
#define file(o)	0
#define iommu(o)	0
#define device(o)	0
#define parent(o)	NONE
#define thread(t)	0
#define PICK :: o = 1
#elif defined(ONE)
/* One vIOMMU, in full */
#define NI 1
#define NF 1
#define ND 1
#define NT 2
#define NO 2
#define REBIND
#define REPLUG
#define REREGISTER
#define PAUSE
#define type(o)	AT2(o, DEVICE, VIOMMU)
#define file(o)	0
#define iommu(o)	0
#define device(o)	0
#define parent(o)	NONE
#define thread(o)	0
#define PICK :: o = 1
#elif defined(VDEV) || defined(THREADS)
/* A vIOMMU and a vDEVICE on it, whose device is bound again */
#ifdef THREADS
#define COARSE
#define RESTLESS
#define NT 2
#else
#define NT 1
#endif
#define NI 1
#define NF 1
#define ND 1
#define NO 3
#define PREBOUND
#define REBIND
#define type(o)	AT3(o, DEVICE, VIOMMU, VDEVICE)
#define file(o)	0
#define iommu(o)	0
#define device(o)	0
#define parent(o)	AT3(o, NONE, NONE, 1)
#define thread(t)	0
#define PICK :: o = 1 :: o = 2
#elif defined(VDEV2)
/* A vDEVICE for one of two devices, which are behind two IOMMUs */
#define COARSE
#define RESTLESS
#define NI 2
#define NF 1
#define ND 2
#define NT 1
#define NO 4
#define PREBOUND
#define type(o)	AT4(o, DEVICE, DEVICE, VIOMMU, VDEVICE)
#define file(o)	0
#define iommu(o)	AT4(o, 0, 1, 0, 0)
#define device(o)	AT4(o, 0, 1, 0, NONE)
#define parent(o)	AT4(o, NONE, NONE, NONE, 2)
#define thread(o)	0
#define PICK :: o = 2 :: o = 3
#elif defined(TREE)
/* A nesting parent, a vIOMMU on it, and a child of that */
#define NI 1
#define NF 1
#define ND 1
#define NT 1
#define NO 4
#define PREBOUND
#define type(o)	AT4(o, DEVICE, HWPT, VIOMMU, CHILD)
#define file(o)	0
#define iommu(o)	0
#define device(o)	0
#define parent(o)	AT4(o, NONE, NONE, 1, 2)
#define thread(t)	0
#define PICK :: o = 1 :: o = 2 :: o = 3
#elif defined(SHARED)
/* The nesting parent is shared by two IOMMUs, with a vIOMMU on each */
#define COARSE
#define RESTLESS
#define NI 2
#define NF 1
#define ND 2
#define NT 1
#define NO 5
#define PREBOUND
#define MOVABLE
#define type(o)	AT5(o, DEVICE, DEVICE, HWPT, VIOMMU, VIOMMU)
#define file(o)	0
#define iommu(o)	AT5(o, 0, 1, 0, 0, 1)
#define device(o)	AT5(o, 0, 1, 0, 0, 1)
#define parent(o)	AT5(o, NONE, NONE, NONE, 2, 2)
#define thread(o)	0
#define PICK :: o = 2 :: o = 3 :: o = 4
#endif

/* struct iommu_device. alive: its memory is there, the driver has not freed it */
bit alive[NI], registered[NI];
byte users[NI];
/* iommu->holders, the newest at the end */
byte holders[NI * NO];
byte held[NI];
#define HOLDER(i, n) holders[(i) * NO + (n)]

/* struct iommu_device_holder, of each object. on: it is on a list */
bit on[NO], claimed[NO], revoking[NO];
#ifdef MOVABLE
byte holder_iommu[NO];
#define on_iommu(o) holder_iommu[o]
/* How many are built on it, on whichever instance. It is not revoked before them. */
byte uppers[NO];
/* Of these, how many have put their holder, and are about to let go of its users count */
byte leaving[NO];
#define LEAVING(o) leaving[o]
#ifdef BROKEN_UPPERS_ARE_NOT_COUNTED
#define has_uppers(o) 0
#else
#define has_uppers(o) uppers[o]
#endif
#else
#define LEAVING(o) 0
#define has_uppers(o) 0
#define on_iommu(o) iommu(o)
#endif

/* The driver's module: loaded, in its exit function, gone. And its references. */
#define LIVE 0
#define GOING 1
#define GONE 2
byte module, modref;

/* struct iommufd_object. xa is what the file's xarray has for its ID: reserved is a
 * zero entry, or the object while it is not finalized. */
#define FREE 0
#define RESERVED 1
#define PUBLISHED 2
byte xa[NO], obj_users[NO], shortterm[NO];
bit mem[NO], revoked[NO], removing[NO];
/* The driver's part of it is there */
bit driver[NO];
#if defined(VDEV) || defined(VDEV2) || defined(THREADS)
#define WITH_VDEVICE
#endif
#if defined(PAUSE) || (defined(WITH_VDEVICE) && defined(SERIES_7_3))
byte paused[NO];
#define PAUSED(o) paused[o]
#else
#define PAUSED(o) 0
#endif
/* struct iommufd_vdevice; vdev[d] is idev->vdev, of device d */
#ifdef WITH_VDEVICE
#ifdef SERIES_7_3
/* vdev->unbinding; idev->destroying; idev->igroup->lock, each device has a group */
bit vdev_unbinding[NO], destroying[ND], igroup_lock[ND];
#else
bit taken[NO], removed[NO], released[NO];
#endif
/* The ID was given out, and is not to be given out again */
bit dead[NO];
byte vdev[ND], vdev_device[NO];
#define DEVICE_OF(o) vdev_device[o]
#else
#define DEVICE_OF(o) device(o)
#endif

/* A device is there, and behind its IOMMU */
bit probed[ND];
#ifdef REREGISTER
bit plugged[ND];
#endif
/* References on the file: of each thread, and of each device that is bound */
byte file_refs[NF];

/* For the properties: unregister and unbind have begun and not returned */
bit unregistering[NI], unbinding[ND];

/*
 * wait_event(): the process sleeps on one of these until somebody wakes it up and
 * then looks again. To look and to go to sleep is one step, as prepare_to_wait()
 * makes it.
 */
#define NP (NI + ND + NT + NF)
#define DEVICE_WAIT 1			/* iommu_device_wait */
#define DESTROY_WAIT(f) (2 + (f))	/* ictx->destroy_wait */
byte asleep[NP];

byte k, top;

/* For d_steps only, as all that has no d_step or atomic of its own */
inline wake_up_all(queue)
{
	k = 0;
	do
	:: k < NP && asleep[k] == queue -> asleep[k] = 0; k++
	:: k < NP && asleep[k] != queue -> k++
	:: k == NP -> break
	od;
	k = 0
}

inline list_add(i, o)
{
	HOLDER(i, held[i]) = o;
	held[i]++;
	on[o] = 1
}

inline list_add_tail(i, o)
{
	k = held[i];
	do
	:: k > 0 -> HOLDER(i, k) = HOLDER(i, k - 1); k--
	:: k == 0 -> break
	od;
	HOLDER(i, 0) = o;
	held[i]++;
	on[o] = 1
}

inline list_del(i, o)
{
	k = 0;
	do
	:: HOLDER(i, k) != o -> k++
	:: HOLDER(i, k) == o -> break
	od;
	do
	:: k + 1 < held[i] -> HOLDER(i, k) = HOLDER(i, k + 1); k++
	:: k + 1 == held[i] -> break
	od;
	held[i]--;
	HOLDER(i, held[i]) = 0;
	on[o] = 0
}

/* The instance's memory and the driver's code are there, and stay for the call */
#define CALLBACK(i) L8(module != GONE); L3(alive[i])

/* It begins, and the step after this one is its end, or that is
 * all of it if COARSE, which is for configurations that are too large otherwise; a put is
 * one step then, too. RESTLESS: user space never stops for ever, no allocation fails. */
#ifdef COARSE
#define BEGIN(checks)
#else
#define BEGIN(checks) atomic { checks };
#endif

/* A callback of the driver for an instance, for an object of which nothing is there */
inline callback(i)
{
	BEGIN(CALLBACK(i))
	d_step { CALLBACK(i) }
}

/* A callback of the driver for an object that it has a part of */
inline object_callback(o)
{
	BEGIN(CALLBACK(on_iommu(o)); L3(driver[o]))
	atomic { CALLBACK(on_iommu(o)); L3(driver[o]) }
}

/* No part of what is built on it is there */
inline check_order(o)
{
	k = ND;
	do
	:: k < NO ->
		L14(!(type(o) == HWPT && parent(k) == o && driver[k]));
		L7(!(parent(k) == o && driver[k]));
		k++
	:: k == NO -> break
	od;
	k = 0
}

/* The callback that undoes the driver's part of it */
inline destroy_callback(o)
{
	BEGIN(CALLBACK(on_iommu(o)); L7(driver[o]); check_order(o))
	atomic { CALLBACK(on_iommu(o)); L7(driver[o]); check_order(o); driver[o] = 0 }
}

/* = __iommu_device_put() drivers/iommu/iommu.c */
inline __iommu_device_put(i)
{
	/* One for each holder, and this one */
	L2(users[i] > held[i]);
	MEM(alive[i]);
	users[i]--;
	wake = !users[i] && !registered[i]
}

inline module_put()
{
	d_step { L8(modref > 0); modref-- }
}

inline __iommu_device_put_unlocked()
{
#ifdef BROKEN_LAST_PUT_DOES_NOT_WAKE
	wake = 0
#else
	d_step {
		if
		:: wake -> wake_up_all(DEVICE_WAIT)
		:: else
		fi;
		wake = 0
	}
#endif
}

/* = iommu_device_put() drivers/iommu/iommu.c */
inline iommu_device_put(i)
{
	atomic {
		__iommu_device_put(i);
#ifndef COARSE
	};
#endif
	__iommu_device_put_unlocked();
	module_put()
#ifdef COARSE
	}
#endif
}

/* = iommu_device_tryget() drivers/iommu/iommu.c */
inline tryget(i, ret)
{
	L3(alive[i]);
#ifdef BROKEN_NO_GATE
	ret = 1;
#else
	ret = registered[i];
#endif
	if
	:: ret -> L5(registered[i]); users[i]++; modref++
	:: else
	fi
}

inline iommu_device_tryget(i, ret)
{
	d_step { tryget(i, ret) }
}

/*
 * = iommu_device_get() drivers/iommu/iommu.c
 * One step: all of it is under iommu_probe_device_lock, which guards dev->iommu, and
 * iommu_device_tryget() is the only one that others can tell from the rest.
 */
inline iommu_device_get(d, ret)
{
#ifdef BROKEN_GET_WITHOUT_PROBE_LOCK
	d_step { ret = probed[d] };
	if
	:: ret -> d_step { tryget(iommu(d), ret) }
	:: else
	fi
#else
	d_step {
		ret = probed[d];
		if
		:: ret -> tryget(iommu(d), ret)
		:: else
		fi
	}
#endif
}

/* = iommu_device_add_holder() drivers/iommu/iommu.c
 * = iommu_device_add_upper_holder() drivers/iommu/iommu.c
 * = iommu_device_link_holder() drivers/iommu/iommu.c
 */
inline iommu_device_add_holder(i, o, ret)
{
	d_step {
		MEM(alive[i] && mem[o]);
#ifdef BROKEN_ADD_WITHOUT_GATE
		ret = 1;
#else
		ret = registered[i];
#ifdef MOVABLE
		if
		:: parent(o) != NONE -> ret = (ret && registered[on_iommu(parent(o))])
		:: else
		fi;
#endif
#endif
		if
		:: ret ->
			L5(registered[i]);
#ifdef MOVABLE
			if
			:: parent(o) != NONE -> uppers[parent(o)]++
			:: else
			fi;
#endif
			list_add(i, o)
		:: else
		fi
	}
}

/* = iommu_device_stack_holder() drivers/iommu/iommu.c */
inline iommu_device_stack_holder(lower, o, ret)
{
	d_step {
		MEM(mem[lower] && mem[o]);
		L3(alive[on_iommu(lower)]);
#ifdef BROKEN_STACK_WITHOUT_GATE
		ret = 1;
#else
		ret = registered[on_iommu(lower)];
#endif
		if
		:: ret ->
			L5(registered[on_iommu(lower)]);
			users[on_iommu(lower)]++;
#ifndef BROKEN_STACK_WITHOUT_MODULE
			modref++;
#endif
#ifdef BROKEN_STACK_AT_THE_END
			list_add_tail(on_iommu(lower), o)
#else
			list_add(on_iommu(lower), o)
#endif
		:: else
		fi
	}
}

/* = iommu_device_claim_holder() drivers/iommu/iommu.c
 * = iommu_device_try_claim_holder() drivers/iommu/iommu.c
 */
inline iommu_device_claim_holder(o, ret)
{
	do
#ifdef BROKEN_CLAIM_DOES_NOT_WAIT
	:: d_step { true -> claimed[o] = on[o]; ret = on[o] }; break
#else
	:: d_step { !revoking[o] -> claimed[o] = on[o]; ret = on[o] }; break
	:: d_step { revoking[o] -> asleep[me] = DEVICE_WAIT }; !asleep[me]
#endif
	od
}

/* = iommu_device_put_holder() drivers/iommu/iommu.c */
inline iommu_device_put_holder(o)
{
	atomic {
		MEM(mem[o]);
		i = on_iommu(o);
		if
		:: on[o] -> list_del(i, o)
		:: else
		fi;
		if
		:: claimed[o] ->
			claimed[o] = 0;
			if
#ifndef BROKEN_PUT_HOLDER_DOES_NOT_WAKE
			:: !registered[i] -> wake_up_all(DEVICE_WAIT)
#endif
			:: else
			fi
		:: else
		fi;
#ifdef MOVABLE
		if
		:: parent(o) != NONE ->
			MEM(mem[parent(o)]);
			uppers[parent(o)]--;
			leaving[parent(o)]++;
			if
			:: !registered[on_iommu(parent(o))] -> wake_up_all(DEVICE_WAIT)
			:: else
			fi
		:: else
		fi;
#endif
		__iommu_device_put(i);
		i = 0;
#ifndef COARSE
	};
#endif
	__iommu_device_put_unlocked();
#ifndef BROKEN_MODULE_PUT_FIRST
	module_put()
#else
	skip
#endif
#ifdef COARSE
	}
#endif
}

/* = _iommufd_object_alloc() drivers/iommu/iommufd/main.c */
inline iommufd_object_alloc(o, ret)
{
	d_step {
		ret = (xa[o] == FREE && !mem[o]);
		if
		:: ret ->
			mem[o] = 1; xa[o] = RESERVED; obj_users[o] = 1; shortterm[o] = 1;
#ifdef MOVABLE
			holder_iommu[o] = iommu(o)
#endif
		:: else
		fi
	}
}

/* = iommufd_object_finalize() drivers/iommu/iommufd/main.c */
inline iommufd_object_finalize(o)
{
	d_step { MEM(mem[o]); xa[o] = PUBLISHED }
}

inline kfree(o)
{
	MEM(mem[o]);
	/* Whoever was to undo the driver's part of it has done so, and is done */
	L7(!driver[o] && !on[o] && !revoking[o] && !claimed[o]);
	mem[o] = 0; obj_users[o] = 0; shortterm[o] = 0; revoked[o] = 0; removing[o] = 0;
#ifdef MOVABLE
	holder_iommu[o] = 0;
#endif
#ifdef WITH_VDEVICE
#ifdef SERIES_7_3
	vdev_unbinding[o] = 0;
#else
	taken[o] = 0; removed[o] = 0; released[o] = 0;
#endif
	vdev_device[o] = 0
#endif
}

/* = iommufd_object_abort() drivers/iommu/iommufd/main.c */
inline iommufd_object_abort(o)
{
	/* Nobody sees it between the two, the ID was never given out */
	atomic { xa[o] = FREE; kfree(o) }
}

#ifdef BROKEN_LOOK_UP_DURING_UNBIND
#define NO_LOOK_UP(o) revoked[o]
#else
#define NO_LOOK_UP(o) (revoked[o] || removing[o])
#endif

/*
 * = iommufd_get_object() drivers/iommu/iommufd/main.c
 * = iommufd_lock_obj() drivers/iommu/iommufd/iommufd_private.h
 * Both counts in one step: who looks at users does so under the xa_lock, too, or is
 * iommufd_fops_release(), when there are no look-ups.
 */
inline iommufd_get_object(o, ret)
{
	atomic {
		ret = 0;
		if
		:: xa[o] != PUBLISHED
		:: xa[o] == PUBLISHED && NO_LOOK_UP(o)
		:: xa[o] == PUBLISHED && !NO_LOOK_UP(o) ->
			if
			:: obj_users[o] && shortterm[o] ->
				obj_users[o]++;
				shortterm[o]++;
				ret = 1
			:: else ->
				/* It would be ENOENT, of what is neither revoked nor unbound */
				L6(false)
			fi
		fi
	}
}

/*
 * = iommufd_put_object() drivers/iommu/iommufd/iommufd_private.h
 * To wake up is in one step with what it is for: who is woken up looks for himself,
 * and if he finds it without, a late wake-up makes him look again at the most.
 */
inline iommufd_put_object(o)
{
#ifdef COARSE
	atomic { obj_users[o]--; dec_shortterm(o) }
#else
	atomic { MEM(mem[o]); obj_users[o]-- };
	dec_shortterm(o)
#endif
}

inline dec_shortterm(o)
{
	d_step {
		MEM(mem[o] && shortterm[o] > 0);
		shortterm[o]--;
#ifndef BROKEN_LAST_USER_DOES_NOT_WAKE
		if
		:: !shortterm[o] -> wake_up_all(DESTROY_WAIT(file(o)))
		:: else
		fi
#endif
	}
}

inline wait_shortterm(o)
{
	do
	:: shortterm[o] == 0 -> break
	:: d_step { shortterm[o] != 0 -> asleep[me] = DESTROY_WAIT(file(o)) }; !asleep[me]
	od
}

/* = iommufd_object_drain() drivers/iommu/iommufd/main.c */
inline iommufd_object_drain(o)
{
	d_step { MEM(mem[o]); L7(shortterm[o] > 0); shortterm[o]-- };
#ifdef BROKEN_NO_DRAIN
	if
	:: type(o) == DEVICE -> wait_shortterm(o)
	:: else
	fi
#else
	wait_shortterm(o)
#endif
}

/*
 * The beginning of iommufd_object_remove() with REMOVE_WAIT: no look-up from here on. It
 * ends when the object is freed. That the removal fails is not in here: who calls this
 * asserts that it does not.
 */
inline set_removing(o)
{
	d_step { MEM(mem[o]); removing[o] = 1 }
}

/* = iommufd_object_revoke() drivers/iommu/iommufd/main.c */
inline iommufd_object_revoke(o, ret)
{
#ifdef BROKEN_DRAIN_BEFORE_GATE
	iommufd_object_drain(o);
#endif
#ifdef BROKEN_WAIT_BEFORE_GATE
	shortterm[o] == 1;
#endif
	atomic {
		MEM(mem[o]);
		ret = (obj_users[o] != 0);
#ifdef BROKEN_REVOKE_WHAT_IS_DESTROYED
		ret = 1;
#endif
#ifndef BROKEN_REVOKE_BEFORE_GATE
		revoked[o] = ret
#endif
	};
#if defined(BROKEN_REVOKE_BEFORE_GATE)
	skip
#elif !defined(BROKEN_DRAIN_BEFORE_GATE)
	if
	:: ret -> iommufd_object_drain(o)
	:: else
	fi
#endif
}

/*
 * When what it is built on is let go: before the holder is put, or after that, so that the
 * holder of what it is built on knows of this one as long.
 */
#if defined(SERIES_7_3) || defined(MOVABLE)
#define PARENT_LAST(o) 1
#else
#define PARENT_LAST(o) (type(o) == VIOMMU)
#endif
inline put_lower(o, now)
{
	if
#ifdef BROKEN_KEEP_PARENT
	:: parent(o) != NONE && (now) && !revoked[o] ->
#else
	:: parent(o) != NONE && (now) ->
#endif
		d_step {
			MEM(mem[parent(o)]);
#ifdef MOVABLE
			leaving[parent(o)]--;
#endif
			obj_users[parent(o)]--
		}
	:: else
	fi
}

/*
 * What is undone of an object by its owner or by the revocation, the reference on the
 * instance last.
 * = iommufd_device_release() drivers/iommu/iommufd/device.c 6.12
 * = iommufd_hwpt_release() drivers/iommu/iommufd/hw_pagetable.c
 * = iommufd_viommu_release() drivers/iommu/iommufd/viommu.c
 * = iommufd_hw_queue_release() drivers/iommu/iommufd/viommu.c
 * = iommufd_veventq_release() drivers/iommu/iommufd/eventq.c
 */
inline release(o)
{
#ifdef BROKEN_MODULE_PUT_FIRST
	module_put();
#endif
#ifdef BROKEN_HOLDER_PUT_FIRST
	iommu_device_put_holder(o);
	destroy_callback(o);
#else
	destroy_callback(o);
#endif
	put_lower(o, !PARENT_LAST(o));
#ifndef BROKEN_HOLDER_PUT_FIRST
	iommu_device_put_holder(o);
#endif
	put_lower(o, PARENT_LAST(o))
}

#if defined(WITH_VDEVICE) && defined(SERIES_7_3)
inline lock_igroup(d)
{
	atomic { !igroup_lock[d] -> igroup_lock[d] = 1 }
}

/*
 * The references on the device that the vDEVICE has had since it was looked up go last.
 * = iommufd_vdevice_release() drivers/iommu/iommufd/viommu.c
 * = iommufd_vdevice_undo_init() drivers/iommu/iommufd/viommu.c
 */
inline iommufd_vdevice_release(o)
{
#ifdef BROKEN_TELL_FIRST
	iommufd_put_object(DEVICE_OF(o));
#endif
	lock_igroup(DEVICE_OF(o));
	destroy_callback(o);
	d_step { vdev[DEVICE_OF(o)] = 0; igroup_lock[DEVICE_OF(o)] = 0 };
	iommu_device_put_holder(o);
	put_lower(o, 1);
#if !defined(BROKEN_TELL_FIRST) && !defined(BROKEN_UNBIND_KEEPS_VDEVICE)
	iommufd_put_object(DEVICE_OF(o))
#else
	skip
#endif
}

/* = iommufd_vdevice_destroy() drivers/iommu/iommufd/viommu.c */
inline iommufd_vdevice_destroy(o, ret)
{
	iommu_device_claim_holder(o, ret);
	if
	:: ret -> iommufd_vdevice_release(o)
	:: else
	fi
}

#ifdef BROKEN_UNBIND_TAKES_REVOKED
#define IS_TAKEN(v) 0
#else
#define IS_TAKEN(v) revoked[v]
#endif

/*
 * The unbind of a device.
 * = iommufd_device_pre_destroy() drivers/iommu/iommufd/device.c 7.3
 * = iommufd_device_remove_vdev() drivers/iommu/iommufd/device.c 7.3
 * = iommufd_vdevice_try_unbind() drivers/iommu/iommufd/device.c 7.3
 * = iommufd_object_tombstone_user() drivers/iommu/iommufd/iommufd_private.h 7.3
 */
inline iommufd_device_remove_vdev(d, ret)
{
	lock_igroup(d);
	d_step {
		destroying[d] = 1;
		v = NONE;
		if
		:: vdev[d] && xa[vdev[d]] == PUBLISHED && !IS_TAKEN(vdev[d]) ->
			v = vdev[d];
			obj_users[v]++;
			vdev_unbinding[v] = 1
		:: else
		fi;
		igroup_lock[d] = 0
	};
	if
	:: v != NONE ->
		iommu_device_claim_holder(v, ret);
		/* Nobody looks at what it returns */
		L7(ret);
		set_removing(v);
		iommufd_object_drain(v);
		atomic {
			/* Nobody else has it, or this would fail and leave it */
			L10(obj_users[v] == 2);
			obj_users[v] = 0;
#ifdef BROKEN_DEAD_ID_FREED
			xa[v] = FREE;
#else
			xa[v] = RESERVED;
#endif
			dead[v] = 1
		};
		iommufd_vdevice_release(v);
		d_step { kfree(v) }
	:: else
	fi;
	v = 0
}

/* As it is called when the device is revoked: whoever has the vDEVICE, it is not left */
inline revoked_device_remove_vdev(d)
{
	lock_igroup(d);
	d_step {
		destroying[d] = 1;
		L10(!(vdev[d] && xa[vdev[d]] == PUBLISHED && !revoked[vdev[d]]));
		igroup_lock[d] = 0
	}
}
#elif defined(WITH_VDEVICE)
/* = iommufd_vdevice_release() drivers/iommu/iommufd/viommu.c */
inline iommufd_vdevice_release(o)
{
#ifdef BROKEN_TELL_FIRST
	d_step { vdev[DEVICE_OF(o)] = 0; wake_up_all(DESTROY_WAIT(file(o))) };
#endif
	release(o);
	d_step {
		MEM(mem[o] && mem[DEVICE_OF(o)]);
		vdev[DEVICE_OF(o)] = 0;
		released[o] = 1;
		/* As in dec_shortterm() */
		wake_up_all(DESTROY_WAIT(file(o)))
	}
}

/* = iommufd_vdevice_wait_released() drivers/iommu/iommufd/viommu.c 6.12 */
inline iommufd_vdevice_wait_released(o)
{
	do
	:: released[o] -> break
	:: d_step { !released[o] -> asleep[me] = DESTROY_WAIT(file(o)) }; !asleep[me]
	od
}

/*
 * = iommufd_vdevice_destroy() drivers/iommu/iommufd/viommu.c
 * = iommufd_vdevice_take() drivers/iommu/iommufd/viommu.c 6.12
 */
inline iommufd_vdevice_destroy(o, ret)
{
	d_step { ret = !taken[o]; taken[o] = 1 };
	if
	:: !ret && removed[o] -> iommufd_vdevice_wait_released(o)
	:: else ->
		iommu_device_claim_holder(o, ret);
		if
		:: ret -> iommufd_vdevice_release(o)
		:: else
		fi
	fi
}

/* = iommufd_device_remove_vdevice() drivers/iommu/iommufd/viommu.c 6.12 */
inline iommufd_device_remove_vdevice(d, ret)
{
	d_step {
		ret = 0;
		published = 0;
		v = NONE;
		if
		:: vdev[d] && obj_users[vdev[d]] ->
			v = vdev[d];
			ret = !taken[v];
			taken[v] = 1
		:: else
		fi;
		if
		:: ret ->
			removed[v] = 1;
			published = (xa[v] == PUBLISHED);
			if
			:: published ->
#ifdef BROKEN_DEAD_ID_FREED
				xa[v] = FREE;
#else
				xa[v] = RESERVED;
#endif
				dead[v] = 1
			:: else
			fi
		:: else
		fi
	};
	if
	:: ret ->
		if
		:: published -> iommufd_object_drain(v)
		:: else
		fi;
#ifdef BROKEN_REMOVE_WITHOUT_CLAIM
		skip;
#else
		iommu_device_claim_holder(v, ret);
#endif
		iommufd_vdevice_release(v);
		if
		:: published -> d_step { kfree(v) }
		:: else
		fi
	:: else ->
		do
		:: !vdev[d] -> break
		:: d_step { vdev[d] -> asleep[me] = DESTROY_WAIT(file(d)) }; !asleep[me]
		od
	fi;
	v = 0; published = 0
}
#endif

/*
 * The destroy op of an object.
 * = iommufd_viommu_destroy() drivers/iommu/iommufd/viommu.c
 * = iommufd_hw_queue_destroy() drivers/iommu/iommufd/viommu.c
 * = iommufd_veventq_destroy() drivers/iommu/iommufd/eventq.c
 * = iommufd_hwpt_destroy() drivers/iommu/iommufd/hw_pagetable.c
 */
inline destroy_op(o, ret)
{
#ifdef WITH_VDEVICE
	if
	:: type(o) == VDEVICE -> iommufd_vdevice_destroy(o, ret)
	:: else ->
#endif
	iommu_device_claim_holder(o, ret);
	if
	:: ret -> release(o)
	:: else
	fi
#ifdef WITH_VDEVICE
	fi
#endif
}

/* = iommufd_object_abort_and_destroy() drivers/iommu/iommufd/main.c */
inline iommufd_object_abort_and_destroy(o, ret)
{
	destroy_op(o, ret);
	iommufd_object_abort(o)
}

/*
 * The driver of one IOMMU. It is unbound from it at any time, or never unless its
 * module is unloaded.
 */
proctype driver_of(byte i0)
{
	byte me = i0;
	byte h, i;
	bit ret, wake, stay;
#ifdef WITH_VDEVICE
	bit skip_it;
#endif

again:
	skip;
#ifndef RESTLESS
	if
	:: stay = 1
	:: stay = 0
	fi;
#endif
end_live:
	if
	:: atomic { module == LIVE && !stay -> stay = 0 }
	:: module == GOING
	fi;

	/*
	 * = iommu_device_unregister() drivers/iommu/iommu.c
	 * = iommu_device_move_holders() drivers/iommu/iommu.c
	 */
	unregistering[i0] = 1;
	/* One step: under iommu_probe_device_lock and iommu_device_lock */
	d_step {
		registered[i0] = 0;
#ifdef MOVABLE
		/* At most one holder is movable, the HWPT, and it is the first of them */
		if
		:: registered[1 - i0] && on[2] && on_iommu(2) == i0 && !claimed[2] ->
			list_del(i0, 2);
			list_add_tail(1 - i0, 2);
			holder_iommu[2] = 1 - i0;
			users[1 - i0]++;
			users[i0]--
		:: else
		fi
#endif
	};

	/*
	 * = iommu_device_revoke() drivers/iommu/iommu.c
	 * = iommu_device_is_unused() drivers/iommu/iommu.c
	 * = iommu_device_first_is_busy() drivers/iommu/iommu.c
	 */
#ifndef BROKEN_WAIT_FOR_USER_SPACE
	if
	:: users[i0] == 0 -> goto revoked_all
	:: else
	fi;
next:
	if
	:: d_step { held[i0] && (claimed[HOLDER(i0, held[i0] - 1)] || has_uppers(HOLDER(i0, held[i0] - 1))) -> skip };
#ifdef BROKEN_CLAIMED_IS_PASSED_BY
		if
		:: d_step {
			held[i0] > 1 && !claimed[HOLDER(i0, held[i0] - 2)] ->
			h = HOLDER(i0, held[i0] - 2);
			list_del(i0, h);
			revoking[h] = 1
			}; goto call
		:: else
		fi;
#endif
		do
		:: d_step { !held[i0] || !(claimed[HOLDER(i0, held[i0] - 1)] || has_uppers(HOLDER(i0, held[i0] - 1))) -> skip }; break
		:: d_step { held[i0] && (claimed[HOLDER(i0, held[i0] - 1)] || has_uppers(HOLDER(i0, held[i0] - 1))) -> asleep[me] = DEVICE_WAIT };
			!asleep[me]
		od;
		goto next

	:: d_step {
		held[i0] && !claimed[HOLDER(i0, held[i0] - 1)] && !has_uppers(HOLDER(i0, held[i0] - 1)) ->
		h = HOLDER(i0, held[i0] - 1);
		list_del(i0, h);
		revoking[h] = 1
		}
	:: held[i0] == 0 -> goto all_revoked
	fi;

#ifdef BROKEN_CLAIMED_IS_PASSED_BY
call:
#endif

	/*
	 * The holder's callback:
	 * = iommufd_viommu_revoke() drivers/iommu/iommufd/viommu.c
	 * = iommufd_vdevice_revoke() drivers/iommu/iommufd/viommu.c
	 * = iommufd_hw_queue_revoke() drivers/iommu/iommufd/viommu.c
	 * = iommufd_veventq_revoke() drivers/iommu/iommufd/eventq.c
	 * = iommufd_hwpt_revoke() drivers/iommu/iommufd/hw_pagetable.c
	 * = iommufd_device_revoke() drivers/iommu/iommufd/device.c
	 */
#ifdef WITH_VDEVICE
	if
	:: type(h) == VDEVICE ->
		d_step {
			MEM(mem[h]);
#ifndef SERIES_7_3
			ret = (obj_users[h] && !taken[h]);
#elif defined(BROKEN_UNBINDING_IS_NOT_SEEN)
			ret = (obj_users[h] != 0);
#else
			ret = (obj_users[h] && !vdev_unbinding[h]);
#endif
			if
			:: ret ->
				revoked[h] = 1;
#ifndef SERIES_7_3
				taken[h] = 1
#endif
			:: else
			fi
		};
		if
		:: ret -> iommufd_object_drain(h); iommufd_vdevice_release(h)
		:: else
		fi
#ifdef SERIES_7_3
	/* iommufd_object_drain() calls pre_destroy() if anybody has it */
	:: type(h) == DEVICE ->
		d_step {
			MEM(mem[h]);
			ret = (obj_users[h] != 0);
			/* WARN_ON() */
			L7(ret);
			revoked[h] = 1;
			L7(shortterm[h] > 0);
			shortterm[h]--
		};
		if
		:: shortterm[h] == 0
		:: shortterm[h] != 0 -> revoked_device_remove_vdev(h); wait_shortterm(h)
		fi;
		release(h)
#endif
	:: else ->
#endif
		iommufd_object_revoke(h, ret);
		if
		:: ret -> release(h)
		:: else
		fi;
#ifdef BROKEN_REVOKE_BEFORE_GATE
		d_step { revoked[h] = ret };
		if
		:: ret -> iommufd_object_drain(h); skip
		:: else
		fi
#endif
#ifdef WITH_VDEVICE
	fi;
#endif
	d_step {
		MEM(mem[h]);
		revoking[h] = 0;
		if
		:: !ret -> list_add(i0, h); claimed[h] = 1
		:: else
		fi;
		ret = 0; h = 0;
#ifndef BROKEN_REVOKED_DOES_NOT_WAKE
		wake_up_all(DEVICE_WAIT)
#endif
	};
	goto next;
all_revoked:
#endif
	do
	:: users[i0] == 0 -> break
	:: d_step { users[i0] != 0 -> asleep[me] = DEVICE_WAIT }; !asleep[me]
	od;
revoked_all:

	/*
	 * = iommu_device_release_devices() drivers/iommu/iommu.c
	 * One step: iommu_probe_device_lock guards all of it but the module's count,
	 * which only who unloads it looks at, and he might as well come later.
	 */
	atomic {
		k = 0;
		do
		:: k < ND && iommu(k) == i0 && probed[k] ->
			CALLBACK(i0);
			probed[k] = 0;
			L8(modref > 0);
			modref--;
			k++
		:: k < ND && !(iommu(k) == i0 && probed[k]) -> k++
		:: k == ND -> break
		od;
		k = 0
	};

	/* It returns, and its caller frees the instance */
	d_step {
		L3(users[i0] == 0 && held[i0] == 0);
		k = 0;
		do
		:: k < NO ->
			L3(!(on_iommu(k) == i0 && (driver[k] || on[k] || revoking[k])));
			L5(!(xa[k] == PUBLISHED && on_iommu(k) == i0 && !revoked[k] && obj_users[k]));
			k++
		:: k == NO -> break
		od;
		alive[i0] = 0;
		unregistering[i0] = 0
	};

#ifdef REREGISTER
	/*
	 * = iommu_device_register() drivers/iommu/iommu.c
	 * The devices that are there are probed one by one; in one step, since the
	 * device's process could be late instead.
	 */
	if
	:: atomic {
		module == LIVE ->
		alive[i0] = 1;
		registered[i0] = 1;
		k = 0;
		do
		:: k < ND && plugged[k] && !probed[k] -> probed[k] = 1; modref++; k++
		:: k < ND && !(plugged[k] && !probed[k]) -> k++
		:: k == ND -> break
		od;
		k = 0
		}; goto again
	:: skip
	fi;
#endif
end_stop:
	0
}

/* rmmod, with the exit function unregistering what is there */
proctype unload()
{
end_loaded:
	d_step {
		modref == 0 ->
		k = 0;
		do
		:: k < NI -> L8(users[k] == 0); k++
		:: k == NI -> break
		od;
		module = GOING
	};
#if NI == 2
	!alive[0] && !alive[1];
#else
	!alive[0];
#endif
	module = GONE
end_stop:
	0
}

/*
 * A device, its hotplug, and the driver that binds it to iommufd for user space,
 * which is vfio. User space keeps it for as long as it likes.
 */
proctype device_of(byte d)
{
	byte me = NI + d;
	byte i, v;
	bit ret, wake;
#ifndef SERIES_7_3
	bit published;
#endif

#ifdef PREBOUND
	goto bound;
#endif

unbound:
	if
	:: goto end_stop
	:: goto unplug
#if defined(REBIND)
	:: atomic { file_refs[file(d)] > 0 -> file_refs[file(d)]++ }
#endif
	fi;

#if defined(REBIND)
	/* = iommufd_device_bind() drivers/iommu/iommufd/device.c */
#ifdef SERIES_7_3
	/* = iommufd_bind_iommu() drivers/iommu/iommufd/device.c 7.3 */
	iommufd_object_alloc(d, ret);
	if
	:: !ret -> goto no_device
	:: else
	fi;
	iommu_device_get(d, ret);
	if
	:: !ret -> goto abort_bind
	:: else
	fi;
	callback(iommu(d));
	d_step { CALLBACK(iommu(d)); driver[d] = 1 };
	iommu_device_add_holder(iommu(d), d, ret);
	if
	:: !ret ->
		d_step { CALLBACK(iommu(d)); driver[d] = 0 };
		iommu_device_put(iommu(d));
abort_bind:
		iommufd_object_abort(d);
no_device:
		file_refs[file(d)]--;
		goto unbound
	:: else
	fi;
	/* Only here, when it can have been revoked */
	atomic { MEM(mem[d]); obj_users[d]++ };
#else
	iommu_device_get(d, ret);
	if
	:: !ret -> goto no_device
	:: else
	fi;
	callback(iommu(d));
	iommufd_object_alloc(d, ret);
	if
	:: !ret -> goto put_iommu
	:: else
	fi;
	d_step { CALLBACK(iommu(d)); driver[d] = 1; obj_users[d]++ };
	iommu_device_add_holder(iommu(d), d, ret);
	if
	:: !ret ->
		d_step { CALLBACK(iommu(d)); driver[d] = 0 };
		iommufd_object_abort(d);
put_iommu:
		iommu_device_put(iommu(d));
no_device:
		file_refs[file(d)]--;
		goto unbound
	:: else
	fi;
#endif
	iommufd_object_finalize(d);
#endif

bound:
#ifndef RESTLESS
	if
	:: goto end_stop
	:: skip
	fi;
#endif

	/*
	 * = iommufd_device_unbind() drivers/iommu/iommufd/device.c
	 * = iommufd_object_destroy_user() drivers/iommu/iommufd/iommufd_private.h
	 * = iommufd_object_remove() drivers/iommu/iommufd/main.c
	 * = iommufd_object_dec_wait_shortterm() drivers/iommu/iommufd/main.c 6.12
	 * = iommufd_object_dec_wait() drivers/iommu/iommufd/main.c 7.3
	 * From its beginning no look-up gets the device, or two threads of user space with
	 * never a gap between their calls for it would hold this up, and unregister behind it.
	 */
	unbinding[d] = 1;
	iommu_device_claim_holder(d, ret);
	set_removing(d);
	if
	:: revoked[d]
	:: else ->
		d_step { L7(shortterm[d] > 0); shortterm[d]-- };
#if defined(WITH_VDEVICE) && defined(SERIES_7_3) && !defined(BROKEN_UNBIND_KEEPS_VDEVICE)
		if
		:: shortterm[d] == 0
		:: shortterm[d] != 0 -> iommufd_device_remove_vdev(d, ret)
		fi;
#endif
		wait_shortterm(d)
	fi;
	/* Nobody else has it, or this would fail and leave it */
	atomic { L1(obj_users[d] == 2); obj_users[d] = 0; xa[d] = FREE };

	/* = iommufd_device_destroy() drivers/iommu/iommufd/device.c */
#if defined(WITH_VDEVICE) && !defined(SERIES_7_3) && !defined(BROKEN_UNBIND_KEEPS_VDEVICE)
	iommufd_device_remove_vdevice(d, ret);
#endif
	if
	:: !revoked[d] -> release(d)
	:: else
	fi;
	d_step {
#ifdef WITH_VDEVICE
		L10(!vdev[d]);
		k = ND;
		do
		:: k < NO -> L10(!(type(k) == VDEVICE && driver[k] && DEVICE_OF(k) == d)); k++
		:: k == NO -> break
		od;
#ifdef SERIES_7_3
		destroying[d] = 0;
#endif
#endif
		kfree(d);
		file_refs[file(d)]--;
		unbinding[d] = 0
	};
#ifdef REBIND
	if
	:: goto unbound
	:: skip
	fi;
#endif

unplug:
	/* = __iommu_release_device() drivers/iommu/iommu.c */
	atomic {
#ifdef REREGISTER
		plugged[d] = 0;
#endif
		if
		:: probed[d] ->
			CALLBACK(iommu(d));
			probed[d] = 0;
			L8(modref > 0);
			modref--
		:: else
		fi
	};
#ifdef REPLUG
	/*
	 * = iommu_probe_device() drivers/iommu/iommu.c
	 * = iommu_init_device() drivers/iommu/iommu.c
	 */
	if
	:: goto end_stop
	:: d_step {
		plugged[d] = 1;
		if
#ifdef BROKEN_PROBED_ONTO_WHAT_LEAVES
		:: alive[iommu(d)] && module == LIVE ->
#else
		:: registered[iommu(d)] && module == LIVE ->
#endif
			L5(registered[iommu(d)]);
			probed[d] = 1;
			modref++
		:: else
		fi
		}; goto unbound
	fi;
#endif
end_stop:
	0
}

/* User space, or a driver's copy_*_user(): it goes well, fails, or never ends */
#ifdef RESTLESS
#define USER_MEMORY(failed) skip
#else
#define USER_MEMORY(failed)	\
	if			\
	:: skip			\
	:: goto failed		\
	:: goto end_stop	\
	fi
#endif

/* A thread of user space that calls ioctls on the file f */
proctype user(byte t; byte f)
{
	byte me = NI + ND + t;
	byte o, d, p, i;
	bit ret, wake, got;

idle:
	atomic {
		o = 0; d = 0; p = 0; got = 0; ret = 0;
		if
#ifndef RESTLESS
		:: goto end_stop
#endif
		:: file_refs[f]--; goto end_stop
		PICK
		fi;
		if
		:: xa[o] == FREE && !mem[o] -> goto alloc
		:: xa[o] == PUBLISHED -> goto use
		:: xa[o] == PUBLISHED -> goto destroy
		:: else -> o = 0; goto idle
		fi
	};

use:
	/*
	 * = iommufd_hwpt_invalidate() drivers/iommu/iommufd/hw_pagetable.c
	 * = iommufd_invalidate() drivers/iommu/iommufd/hw_pagetable.c 6.12
	 * = iommufd_hwpt_invalidate_pieces() drivers/iommu/iommufd/hw_pagetable.c 7.3
	 */
	iommufd_get_object(o, ret);
	if
	:: !ret -> goto idle
	:: else
	fi;
piece:
	object_callback(o);
#ifdef PAUSE
	if
	:: skip
	:: goto pause
	fi;
#endif
	iommufd_put_object(o);
	goto idle;

#ifdef PAUSE
pause:
	/* = iommufd_object_pause() drivers/iommu/iommufd/main.c */
	paused[o]++;
	dec_shortterm(o);
	USER_MEMORY(unpause);
	/* = iommufd_object_resume() drivers/iommu/iommufd/main.c */
	d_step {
#ifdef BROKEN_RESUME_WITHOUT_GATE
		ret = 1;
#else
		ret = !revoked[o];
#endif
		if
		:: ret -> shortterm[o]++; paused[o]--
		:: else
		fi
	};
	if
	:: ret -> goto piece
	:: else
	fi;
unpause:
	atomic { MEM(mem[o]); obj_users[o]--; paused[o]-- };
	goto idle;
#endif

destroy:
	/*
	 * = iommufd_destroy() drivers/iommu/iommufd/main.c
	 * = iommufd_object_remove() drivers/iommu/iommufd/main.c
	 * = iommufd_object_dec_wait_shortterm() drivers/iommu/iommufd/main.c 6.12
	 * = iommufd_object_dec_wait() drivers/iommu/iommufd/main.c 7.3
	 */
	atomic {
		ret = (xa[o] == PUBLISHED && obj_users[o] == 1);
		if
		:: ret -> obj_users[o] = 0; xa[o] = FREE
		:: else ->
			/*
			 * If it is revoked, and all of it is over, nothing is in the way; of what was
			 * built on it, it may be over a moment later, if that is on another IOMMU
			 */
			L6(!(xa[o] == PUBLISHED && revoked[o] && !alive[on_iommu(o)] &&
			     obj_users[o] > 1 + PAUSED(o) + LEAVING(o)))
		fi
	};
	if
	:: !ret -> goto idle
	:: else
	fi;
	if
	:: revoked[o]
	:: else ->
		d_step { MEM(mem[o]); L7(shortterm[o] > 0); shortterm[o]-- };
		wait_shortterm(o)
	fi;
	destroy_op(o, ret);
	atomic { kfree(o) };
	goto idle;

alloc:
	if
	:: type(o) == VIOMMU -> goto alloc_viommu
	:: type(o) == CHILD || type(o) == VDEVICE -> goto alloc_child
	:: type(o) == HWPT -> goto alloc_hwpt
	fi;

alloc_viommu:
	/*
	 * = iommufd_viommu_alloc_ioctl() drivers/iommu/iommufd/viommu.c
	 * = __iommufd_user_data_read() drivers/iommu/iommufd/main.c
	 * Reading is not in here: nothing is held, so it is a part of being idle.
	 */
	d = device(o);
	iommufd_get_object(d, ret);
	if
	:: !ret -> goto idle
	:: else
	fi;
#ifdef SERIES_7_3
	/* The device is looked up until the vIOMMU is a holder */
	callback(iommu(d));
	p = parent(o);
	if
	:: p != NONE ->
		iommufd_get_object(p, ret);
		if
		:: !ret -> iommufd_put_object(d); goto idle
		:: else
		fi
	:: else
	fi;
	iommufd_object_alloc(o, ret);
	if
	:: !ret -> goto put_parent
	:: else
	fi;
	got = 1;
#ifdef BROKEN_COUNT_TOO_LATE
	iommufd_put_object(d);
#endif
	iommu_device_tryget(iommu(d), ret);
	if
	:: !ret -> goto put_parent
	:: else
	fi;
	/* = iommufd_viommu_init() drivers/iommu/iommufd/viommu.c 7.3 */
	BEGIN(CALLBACK(iommu(o)))
	if
	:: d_step { CALLBACK(iommu(o)); driver[o] = 1 }
#ifndef RESTLESS
	:: d_step { CALLBACK(iommu(o)) }; goto put_iommu
#endif
	fi;
	if
	:: p != NONE -> d_step { MEM(mem[p]); L14(driver[p]); obj_users[p]++ }
	:: else
	fi;
	iommu_device_add_holder(iommu(o), o, ret);
	if
	:: !ret ->
destroy_callback(o);
		if
		:: p != NONE -> d_step { MEM(mem[p]); obj_users[p]-- }
		:: else
		fi;
#ifdef BROKEN_DOUBLE_PUT_ON_ERROR
		iommu_device_put(iommu(o));
#endif
		goto put_iommu
	:: else
	fi;
	if
	:: p != NONE -> iommufd_put_object(p)
	:: else
	fi;
#if !defined(BROKEN_DEVICE_HELD) && !defined(BROKEN_COUNT_TOO_LATE)
	iommufd_put_object(d);
#endif
	got = 0;
	goto respond;

put_iommu:
#ifndef BROKEN_NO_PUT_ON_ERROR
	iommu_device_put(iommu(o));
#else
	skip;
#endif
put_parent:
	if
	:: p != NONE -> iommufd_put_object(p)
	:: else
	fi;
#ifdef BROKEN_COUNT_TOO_LATE
	if
	:: !got -> iommufd_put_object(d)
	:: else
	fi;
#else
	iommufd_put_object(d);
#endif
	/* iommufd_fops_ioctl() */
	if
	:: got -> iommufd_object_abort(o)
	:: else
	fi;
	goto idle;
#else
#ifdef BROKEN_COUNT_TOO_LATE
	iommufd_put_object(d);
	iommu_device_tryget(iommu(d), ret);
	if
	:: !ret -> goto idle
	:: else
	fi;
	callback(iommu(d));
#else
	iommu_device_tryget(iommu(d), ret);
	if
	:: !ret -> iommufd_put_object(d); goto idle
	:: else
	fi;
	/* get_viommu_size() */
	callback(iommu(d));
#ifndef BROKEN_DEVICE_HELD
	iommufd_put_object(d);
#endif
#endif
	p = parent(o);
	if
	:: p != NONE ->
		iommufd_get_object(p, ret);
		if
		:: !ret -> goto put_iommu
		:: else
		fi
	:: else
	fi;

	/* = iommufd_viommu_alloc() drivers/iommu/iommufd/viommu.c 6.12 */
	iommufd_object_alloc(o, ret);
	if
	:: !ret -> goto put_parent
	:: else
	fi;
	/* viommu_init() */
	BEGIN(CALLBACK(iommu(o)))
	if
	:: d_step { CALLBACK(iommu(o)); driver[o] = 1 }
#ifndef RESTLESS
	:: d_step { CALLBACK(iommu(o)) }; iommufd_object_abort(o); goto put_parent
#endif
	fi;
	if
	:: p != NONE -> d_step { MEM(mem[p]); L14(driver[p]); obj_users[p]++ }
	:: else
	fi;
	iommu_device_add_holder(iommu(o), o, ret);
	if
	:: !ret ->
destroy_callback(o);
		if
		:: p != NONE -> d_step { MEM(mem[p]); obj_users[p]-- }
		:: else
		fi;
		iommufd_object_abort(o);
#ifdef BROKEN_DOUBLE_PUT_ON_ERROR
		iommu_device_put(iommu(o));
#endif
		goto put_parent
	:: else
	fi;
	if
	:: p != NONE -> iommufd_put_object(p)
	:: else
	fi;
	goto respond;

put_parent:
	if
	:: p != NONE -> iommufd_put_object(p)
	:: else
	fi;
put_iommu:
#ifdef BROKEN_DEVICE_HELD
	iommufd_put_object(d);
#endif
#ifndef BROKEN_NO_PUT_ON_ERROR
	iommu_device_put(iommu(o));
#endif
	goto idle;
#endif

alloc_hwpt:
	/*
	 * = iommufd_hwpt_alloc() drivers/iommu/iommufd/hw_pagetable.c
	 * = iommufd_hwpt_paging_create() drivers/iommu/iommufd/hw_pagetable.c
	 * = iommufd_hwpt_paging_add() drivers/iommu/iommufd/hw_pagetable.c
	 * = iommufd_hwpt_paging_abort() drivers/iommu/iommufd/hw_pagetable.c
	 */
	d = device(o);
	iommufd_get_object(d, ret);
	if
	:: !ret -> goto idle
	:: else
	fi;
	iommufd_object_alloc(o, ret);
	if
	:: !ret -> iommufd_put_object(d); goto idle
	:: else
	fi;
	iommu_device_tryget(iommu(d), ret);
	if
	:: !ret -> iommufd_object_abort(o); iommufd_put_object(d); goto idle
	:: else
	fi;
	/* domain_alloc_paging_flags() */
	BEGIN(CALLBACK(iommu(d)))
	if
	:: d_step { CALLBACK(iommu(d)); driver[o] = 1 }; ret = 1
	:: d_step { CALLBACK(iommu(d)) }; ret = 0
	fi;
	if
	:: ret ->
		iommufd_put_object(d);
		iommu_device_add_holder(iommu(o), o, ret);
		if
		:: ret -> goto respond
		:: else
		fi;
destroy_callback(o);
		iommu_device_put(iommu(o));
		iommufd_object_abort(o)
	:: else ->
		iommu_device_put(iommu(d));
		iommufd_object_abort(o);
		iommufd_put_object(d)
	fi;
	goto idle;

alloc_child:
	/*
	 * = iommufd_vdevice_alloc_ioctl() drivers/iommu/iommufd/viommu.c
	 * = iommufd_hw_queue_alloc_ioctl() drivers/iommu/iommufd/viommu.c
	 * = iommufd_veventq_alloc_ioctl() drivers/iommu/iommufd/eventq.c 6.12
	 * = iommufd_veventq_alloc() drivers/iommu/iommufd/eventq.c 7.3
	 * = iommufd_viommu_alloc_hwpt_nested() drivers/iommu/iommufd/hw_pagetable.c
	 */
	p = parent(o);
	iommufd_get_object(p, ret);
	if
	:: !ret -> goto idle
	:: else
	fi;
#if defined(WITH_VDEVICE) && defined(SERIES_7_3)
	iommufd_object_alloc(o, ret);
	if
	:: !ret -> goto put_viommu
	:: else
	fi;
	/* It answers first, and holds only the vIOMMU's users count meanwhile */
	paused[p]++;
	dec_shortterm(p);
	USER_MEMORY(vdevice_fault);
	got = 1;
vdevice_fault:
	atomic {
		ret = !revoked[p];
		if
		:: ret -> shortterm[p]++; paused[p]--
		:: else
		fi
	};
	if
	:: !ret ->
		iommufd_object_abort(o);
		atomic { MEM(mem[p]); obj_users[p]--; paused[p]-- };
		goto idle
	:: else
	fi;
	if
	:: !got -> goto abort_vdevice
	:: else
	fi;
	if
	:: d = 0
#if ND > 1
	:: d = 1
#endif
	fi;
	iommufd_get_object(d, ret);
	if
	:: !ret -> goto abort_vdevice
	:: else
	fi;
#ifndef BROKEN_ANY_IOMMU
	if
	:: iommu(d) != iommu(p) -> iommufd_put_object(d); goto abort_vdevice
	:: else
	fi;
#endif
	lock_igroup(d);
	d_step {
		L10(!dead[o]);
#ifdef BROKEN_DESTROYING_IS_NOT_SEEN
		ret = !vdev[d];
#else
		ret = (!destroying[d] && !vdev[d]);
#endif
		if
		:: ret -> obj_users[p]++; vdev_device[o] = d; vdev[d] = o
		:: else -> igroup_lock[d] = 0
		fi
	};
	if
	:: !ret -> iommufd_put_object(d); goto abort_vdevice
	:: else
	fi;
	/* vdevice_init() */
	d_step {
		CALLBACK(on_iommu(p));
		L3(driver[p]);
		L9(iommu(d) == on_iommu(p))
	};
	if
	:: d_step { CALLBACK(on_iommu(p)); L3(driver[p]); driver[o] = 1 }
	:: d_step { CALLBACK(on_iommu(p)); L3(driver[p]); ret = 0 }
	fi;
	if
	:: ret ->
		iommu_device_stack_holder(p, o, ret);
		if
		:: !ret ->
destroy_callback(o)
		:: else
		fi
	:: else
	fi;
	if
	:: !ret ->
		/* = iommufd_vdevice_abort() drivers/iommu/iommufd/viommu.c 7.3 */
		d_step { vdev[d] = 0; obj_users[p]-- };
		iommufd_object_abort(o);
		igroup_lock[d] = 0;
		iommufd_put_object(d);
		goto put_viommu
	:: else
	fi;
#ifdef BROKEN_VDEVICE_PUBLISHED_TOO_LATE
	igroup_lock[d] = 0;
	iommufd_object_finalize(o);
#else
	iommufd_object_finalize(o);
	igroup_lock[d] = 0;
#endif
	/* It keeps its references on the device */
#ifdef BROKEN_UNBIND_KEEPS_VDEVICE
	iommufd_put_object(d);
#endif
	goto put_viommu;

abort_vdevice:
	iommufd_object_abort(o);
put_viommu:
	iommufd_put_object(p);
	goto idle;
#else
#ifdef WITH_VDEVICE
	/* = iommufd_vdevice_alloc() drivers/iommu/iommufd/viommu.c 6.12 */
	if
	:: d = 0
#if ND > 1
	:: d = 1
#endif
	fi;
	iommufd_get_object(d, ret);
	if
	:: !ret -> goto put_viommu
	:: else
	fi;
	got = 1;
#ifndef BROKEN_ANY_IOMMU
	if
	:: iommu(d) != iommu(p) -> goto put_viommu
	:: else
	fi;
#endif
#endif
	iommufd_object_alloc(o, ret);
	if
	:: !ret -> goto put_viommu
	:: else
	fi;
#ifdef WITH_VDEVICE
	d_step {
		L10(!dead[o]);
		vdev_device[o] = d;
		ret = !vdev[d];
		if
		:: ret -> vdev[d] = o
		:: else
		fi
	};
	if
	:: !ret -> iommufd_object_abort(o); goto put_viommu
	:: else
	fi;
#endif
#if defined(SERIES_7_3) && !defined(WITH_VDEVICE)
	/* A nested HWPT takes its reference as the vIOMMU has done, and is stacked on nothing */
	if
	:: skip
	:: goto alloc_nested
	fi;
#endif
	/* vdevice_init(), hw_queue_init_phys(), alloc_domain_nested() */
	d_step {
		CALLBACK(on_iommu(p));
		L3(driver[p]);
#ifdef WITH_VDEVICE
		L9(iommu(d) == on_iommu(p));
#endif
	};
	if
	:: d_step { CALLBACK(on_iommu(p)); L3(driver[p]); driver[o] = 1 }; ret = 1
	:: d_step { CALLBACK(on_iommu(p)); L3(driver[p]) }; ret = 0
	fi;
	if
	:: ret ->
		d_step { MEM(mem[p]); obj_users[p]++ };
		iommu_device_stack_holder(p, o, ret);
		if
		:: !ret ->
			d_step { obj_users[p]-- };
			destroy_callback(o)
		:: else
		fi
	:: else
	fi;
	if
	:: !ret ->
#ifdef WITH_VDEVICE
		d_step { vdev[d] = 0 };
#endif
		iommufd_object_abort(o);
put_viommu:
#ifdef WITH_VDEVICE
		if
		:: got -> iommufd_put_object(d)
		:: else
		fi;
#endif
		iommufd_put_object(p);
		goto idle
	:: else
	fi;
#ifdef WITH_VDEVICE
	iommufd_put_object(d);
#endif
#ifndef BROKEN_VIOMMU_HELD
	iommufd_put_object(p);
#endif
#if defined(SERIES_7_3) && !defined(WITH_VDEVICE)
	goto respond;

alloc_nested:
	atomic { MEM(mem[p]); obj_users[p]++ };
	iommu_device_tryget(iommu(o), ret);
	if
	:: !ret -> goto abort_nested
	:: else
	fi;
	BEGIN(CALLBACK(on_iommu(p)); L3(driver[p]))
	if
	:: d_step { CALLBACK(on_iommu(p)); L3(driver[p]); driver[o] = 1 }; ret = 1
	:: d_step { CALLBACK(on_iommu(p)); L3(driver[p]) }; ret = 0
	fi;
	if
	:: ret ->
		iommu_device_add_holder(iommu(o), o, ret);
		if
		:: !ret ->
destroy_callback(o)
		:: else -> goto put_nested
		fi
	:: else
	fi;
	iommu_device_put(iommu(o));
abort_nested:
	atomic { obj_users[p]-- };
	iommufd_object_abort(o);
	iommufd_put_object(p);
	goto idle;
put_nested:
#ifndef BROKEN_VIOMMU_HELD
	iommufd_put_object(p);
#else
	skip;
#endif
#endif
#endif

respond:
	/* = iommufd_ucmd_respond() drivers/iommu/iommufd/iommufd_private.h */
	USER_MEMORY(fault);
#ifdef BROKEN_DEVICE_HELD
	if
	:: type(o) == VIOMMU -> iommufd_put_object(d)
	:: else
	fi;
#endif
#ifdef BROKEN_VIOMMU_HELD
	if
	:: type(o) == CHILD -> iommufd_put_object(p)
	:: else
	fi;
#endif
#if defined(WITH_VDEVICE) && !defined(SERIES_7_3)
	/* = iommufd_vdevice_finalize() drivers/iommu/iommufd/viommu.c 6.12 */
	if
	:: type(o) == VDEVICE ->
		d_step {
			ret = removed[o];
			if
			:: !ret -> xa[o] = PUBLISHED
			:: else
			fi
		};
		if
		:: ret ->
			iommufd_vdevice_wait_released(o);
			atomic { kfree(o) }
		:: else
		fi;
		goto idle
	:: else
	fi;
#endif
	iommufd_object_finalize(o);
	goto idle;

fault:
#ifdef BROKEN_DEVICE_HELD
	if
	:: type(o) == VIOMMU -> iommufd_put_object(d)
	:: else
	fi;
#endif
#ifdef BROKEN_VIOMMU_HELD
	if
	:: type(o) == CHILD -> iommufd_put_object(p)
	:: else
	fi;
#endif
	iommufd_object_abort_and_destroy(o, ret);
	goto idle;

end_stop:
	0
}

/*
 * The last reference on a file is gone.
 * = iommufd_fops_release() drivers/iommu/iommufd/main.c
 */
proctype release_of(byte f)
{
	byte me = NI + ND + NT + f;
	byte o, i;
	bit ret, wake, left, destroyed;

end_open:
	file_refs[f] == 0;
	do
	:: atomic { left = 0; destroyed = 0; o = 0 };
		do
		:: o < NO && (file(o) != f || xa[o] != PUBLISHED) -> o++
		:: o < NO && file(o) == f && xa[o] == PUBLISHED ->
			/* refcount_dec_if_one() */
			d_step {
				left = 1;
				ret = (obj_users[o] == 1);
				if
				:: ret -> obj_users[o] = 0
				:: else
				fi
			};
			if
			:: ret ->
				destroyed = 1;
				d_step { xa[o] = FREE };
				destroy_op(o, ret);
				atomic { kfree(o) }
			:: else
			fi;
			o++
		:: o == NO -> break
		od;
		L6(!left || destroyed);
		if
		:: !left -> break
		:: else
		fi
	od;
	atomic {
		o = 0;
		do
		:: o < NO && file(o) == f -> L7(!mem[o]); xa[o] = FREE; o++
		:: o < NO && file(o) != f -> o++
		:: o == NO -> break
		od;
		o = 0; left = 0; destroyed = 0; ret = 0
	};
end_stop:
	0
}

/*
 * When nothing can go on any more, user space has stopped for ever, and the kernel is
 * done with everything that it had begun. If others have not ended, spin says so.
 */
proctype watch()
{
end_watch:
	timeout ->
	d_step {
		k = 0;
		do
		:: k < ND -> L1(!unbinding[k]); k++
		:: k == ND -> break
		od;
		top = 0;
		k = 0;
		do
		:: k < NI ->
			L2(!(alive[k] && !unregistering[k] && users[k] != held[k]));
			L4(!unregistering[k]);
			top = top + users[k];
			k++
		:: k == NI -> break
		od;
		k = 0;
		do
		:: k < ND -> top = top + probed[k]; k++
		:: k == ND -> break
		od;
		L8(modref == top);
		k = 0; top = 0
	}
}

init
{
	byte n;

	d_step {
		for (n : 0 .. NI - 1) {
			alive[n] = 1;
			registered[n] = 1
		};
		for (n : 0 .. NT - 1) {
			file_refs[thread(n)]++
		};
		for (n : 0 .. ND - 1) {
			probed[n] = 1;
			modref++;
#ifdef REREGISTER
			plugged[n] = 1;
#endif
#ifdef PREBOUND
			mem[n] = 1; xa[n] = PUBLISHED; obj_users[n] = 2; shortterm[n] = 1;
			driver[n] = 1;
#ifdef MOVABLE
			holder_iommu[n] = iommu(n);
#endif
			list_add(iommu(n), n);
			users[iommu(n)]++;
			modref++;
			file_refs[file(n)]++
#endif
		};
		n = 0; k = 0
	};
	atomic {
		for (n : 0 .. NI - 1) {
			run driver_of(n)
		};
		for (n : 0 .. ND - 1) {
			run device_of(n)
		};
		for (n : 0 .. NT - 1) {
			run user(n, thread(n))
		};
		for (n : 0 .. NF - 1) {
			run release_of(n)
		};
		run unload();
		run watch();
		n = 0
	}
}

ltl L4_returns { [] (unregistering[0] -> <> !unregistering[0]) }
ltl L1_returns { [] (unbinding[0] -> <> !unbinding[0]) }
